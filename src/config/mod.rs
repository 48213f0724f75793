//! Configuration: deserialise, validate, build.
//!
//! A file and the environment are parsed into a tree of values with their origins. Reading the tree returns a valid
//! [`Config`], or all errors at once.

mod backtest;
mod change;
mod checkpoint;
mod cluster;
mod fields;
mod http;
mod keys;
mod ledger;
mod lists;
mod otlp;
mod patterns;
mod routes;
mod rule_changes;
mod rule_files;
mod rule_tests;
mod rules;
mod schemas;
mod sinks;
mod source;
mod spaces;
mod state;
mod windows;

pub use crate::connectors::{
    FileSinkConfig, FileSourceConfig, KafkaSinkConfig, KafkaSourceConfig, ListConfig, OutputKind,
    PostgresSinkConfig, SinkConfig, SinksConfig, SourceConfig, SqliteSinkConfig, StartFrom, TablesConfig,
};
pub use crate::settings::{ConfigError, Origin};
pub use backtest::Candidate;
pub use change::{IncompatibleChange, RecordedRules, changes, recorded_rules, with_recorded_rules};
pub use checkpoint::CheckpointConfig;
pub use cluster::{ClusterConfig, ClusterTls};
pub use http::{HttpConfig, TlsFiles};
pub use keys::reference;
pub use ledger::LedgerConfig;
pub use otlp::OtlpConfig;
pub use rule_changes::{ChangedRule, ChangedSetting, RemovedRule, RuleDifferences};
pub use rules::RuleScope;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use headwater_dataflows::Epoch;

use crate::coordination::{AcceptedLoss, Skip};
use crate::decode::{Decoding, FieldMap};
use crate::fields::Layout;
use crate::json::of_toml;
use crate::lists::Lists;
use crate::outputs::Severity;
use crate::pipeline::{Limits, LiveRules, Patterns, Plan, Resets, RulePlan, RuleSetPlan, Time, WindowPlan};
use crate::routes::Route;
use crate::settings::{Diagnostics, Node, Section, environment, millis, renamed, tree};
use crate::state::StateConfig;
use spaces::Spaces;

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The computation. The run decides where it begins and ends.
    pub plan: Plan,
    /// The fields and keys that rules can refer to, for those that are changed while a run goes on.
    pub rule_scope: RuleScope,
    /// True if files of rules are watched while a run goes on.
    pub reloads_rules: bool,
    /// The source of records.
    pub source: SourceConfig,
    /// The sinks of results.
    pub sinks: SinksConfig,
    /// The lists that rules look values up in.
    pub lists: Vec<ListConfig>,
    /// The routes of alerts to receivers.
    pub routes: Vec<Route>,
    /// The ledger, if there is one.
    pub ledger: Option<LedgerConfig>,
    /// The state store for checkpoints.
    pub state: StateConfig,
    /// The interval and number of checkpoints; None if checkpoints are off.
    pub checkpoint: Option<CheckpointConfig>,
    /// The maximum time to finish the records that were read, after a request to stop.
    pub shutdown_timeout: Duration,
    /// The fields of dead letters whose values are never shown.
    pub masked_fields: Vec<String>,
    /// The HTTP server, if it is enabled.
    pub http: Option<HttpConfig>,
    /// The connections between the processes of a cluster.
    pub cluster: ClusterConfig,
    /// The export of traces, if it is enabled.
    pub otlp: Option<OtlpConfig>,
    /// The format and level of the log.
    pub log: LogConfig,
    /// The resets that the command line permits for this start. They are not configuration keys.
    pub resets: Resets,
    /// The outputs to skip, from the command line.
    pub skips: Vec<Skip>,
    /// Warnings about valid settings that are probably mistakes.
    pub warnings: Vec<ConfigError>,
    /// The records that may be missing from the source, from the command line.
    pub accepted_losses: Vec<AcceptedLoss>,
    effective: Vec<(String, String)>,
}

/// The format and level of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// True for JSON, false for text.
    pub json: bool,
    /// The least severe level that is logged.
    pub level: String,
}

/// All errors of a configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, config_error) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            config_error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl Config {
    /// Parses a configuration and applies the overrides of the environment.
    ///
    /// # Errors
    /// Returns all errors of the configuration.
    pub fn parse(
        text: &str,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, ConfigErrors> {
        Config::parse_filtered(text, environment, |_| false)
    }

    /// Parses a configuration for a command that writes to no sink; the configuration need not have one.
    ///
    /// # Errors
    /// Returns all errors of the configuration, except that it has no sink.
    pub fn parse_without_sinks(
        text: &str,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, ConfigErrors> {
        Config::parse_filtered(text, environment, |config_error| config_error.message == sinks::no_sink())
    }

    /// Returns true if the configuration sets the log format to JSON. The configuration may contain errors.
    pub fn has_json_log(text: &str, environment: impl Iterator<Item = (String, String)>) -> bool {
        let entry = |item: &tree::Item, name: &str| match &item.node {
            tree::Node::Table(entries) => entries.get(name).cloned(),
            _ => None,
        };
        let tree = tree::parse(text, &environment.collect::<Vec<_>>());
        let format = tree.ok().and_then(|tree| entry(&entry(&tree, "log")?, "format"));
        format.is_some_and(|format| matches!(format.node, tree::Node::Text(text) if text == "json"))
    }

    fn parse_filtered(
        text: &str,
        environment: impl Iterator<Item = (String, String)>,
        is_permitted: fn(&ConfigError) -> bool,
    ) -> Result<Config, ConfigErrors> {
        Config::parse_completed(text, environment, |_| {}, is_permitted)
    }

    /// Parses a configuration. `complete` changes the tree of its values before they are read.
    fn parse_completed(
        text: &str,
        environment: impl Iterator<Item = (String, String)>,
        complete: impl FnOnce(&mut tree::Item),
        is_permitted: fn(&ConfigError) -> bool,
    ) -> Result<Config, ConfigErrors> {
        let mut environment: Vec<_> = environment.collect();
        environment.sort();
        let mut tree = tree::parse(text, &environment).map_err(|(origin, message)| {
            ConfigErrors(vec![ConfigError { origin, key: "the file".into(), message }])
        })?;
        complete(&mut tree);
        let (mut substituted, mut errors) = environment::substitute(&mut tree, &environment);
        let mut diagnostics = Diagnostics::default();
        let (of_files, mut errors_of_files) = rule_files::read(&mut tree, &environment, &mut diagnostics);
        substituted.extend(of_files);
        errors.append(&mut errors_of_files);
        renamed::modernize(&mut tree, &mut diagnostics);
        otlp::add_environment(&mut tree, &environment);
        let config = read_config(&mut Section::top(&tree, keys::find), &mut diagnostics);
        // If a variable in a text could not be replaced, further errors about that text would be misleading.
        diagnostics
            .errors
            .retain(|read| errors.iter().all(|config_error| config_error.origin != read.origin));
        let keys: Vec<_> = keys::keys().map(|key| key.path).collect();
        errors.extend(environment::unknown_variables(&environment, &substituted, &keys));
        diagnostics.errors.append(&mut errors);
        diagnostics.errors.retain(|config_error| !is_permitted(config_error));
        match config {
            Some(mut config) if diagnostics.errors.is_empty() => {
                config.effective = diagnostics.effective;
                config.warnings = diagnostics.warnings;
                Ok(config)
            }
            _ => {
                diagnostics.errors.sort_by(|a, b| (&a.origin, &a.key).cmp(&(&b.origin, &b.key)));
                Err(ConfigErrors(diagnostics.errors))
            }
        }
    }

    /// Returns the rules of the configuration, as they are until a run begins, and the means to read others.
    pub fn live_rules(&self) -> LiveRules {
        let scope = self.rule_scope.clone();
        let compile = move |rules: &[&str]| scope.compile(rules).map_err(|errors| errors.to_string());
        LiveRules::new(RuleSetPlan::first(self.plan.rules.clone()), compile)
    }

    /// Returns all effective keys and their values as one JSON object, without secrets.
    pub fn effective_json(&self) -> serde_json::Value {
        self.effective.iter().map(|(key, text)| (key.clone(), of_toml(text))).collect()
    }

    /// Returns the paths of the files of rules that a configuration names. It may contain errors.
    pub fn rule_files(text: &str) -> Vec<PathBuf> {
        tree::parse(text, &[]).map(|tree| rule_files::paths(&tree)).unwrap_or_default()
    }

    /// Returns the environment variables of this process.
    ///
    /// # Errors
    /// If the value of a variable of Headwater is not UTF-8.
    pub fn environment() -> Result<Vec<(String, String)>, ConfigErrors> {
        environment::from_process().map_err(|config_error| ConfigErrors(vec![config_error]))
    }

    /// Returns all effective keys and their values, one per line, without secrets.
    pub fn effective(&self) -> String {
        self.effective.iter().map(|(key, value)| format!("{key} = {value}\n")).collect()
    }
}

const SEVERITIES: [(&str, Severity); 4] = [
    ("low", Severity::Low),
    ("medium", Severity::Medium),
    ("high", Severity::High),
    ("critical", Severity::Critical),
];

/// Returns true if a text has 1 to 63 lower-case letters, digits and characters of `also`.
pub(crate) fn is_name(text: &str, also: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || also.contains(c);
    (1..=63).contains(&text.len()) && text.chars().all(allowed)
}

/// Reads the section `[limits]`, without the time to live of keys, and the timeout of a shutdown.
fn read_limits(mut section: Section<'_>, diagnostics: &mut Diagnostics) -> Option<(Limits, Duration)> {
    let bytes_in_flight = section.size("bytes_in_flight", diagnostics);
    let unfinal_bytes = section.size("unfinal_bytes", diagnostics);
    let epochs_in_flight = section.int("epochs_in_flight", 2..=1_000_000, diagnostics);
    let dedup_horizon_ms = section.duration("dedup_horizon", 0, diagnostics);
    let backfill_horizon_ms = section.duration("backfill_horizon", 0, diagnostics);
    let max_rejected_share = read_share(&mut section, diagnostics);
    let rejected_window = section.duration("rejected_window", 1000, diagnostics);
    let shutdown_timeout = section.duration("shutdown_timeout", 0, diagnostics);
    section.end(diagnostics);
    let limits = Limits {
        bytes_in_flight: bytes_in_flight?,
        unfinal_bytes: unfinal_bytes? as u64,
        epochs_in_flight: epochs_in_flight? as u64,
        dedup_horizon_ms: dedup_horizon_ms?,
        max_rejected_share: max_rejected_share?,
        rejected_window: millis(rejected_window?),
        ttl_ms: 0,
        backfill_horizon_ms: backfill_horizon_ms?,
    };
    Some((limits, millis(shutdown_timeout?)))
}

/// Reads the share of rejected records above which a run stops: a number, or `off`.
fn read_share(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<Option<f64>> {
    section.get("max_rejected_share", diagnostics, |node| {
        let share = match node {
            Node::Text(text) if text == "off" => return Ok(None),
            Node::Text(text) => text.parse().ok(),
            Node::Int(value) => Some(*value as f64),
            Node::Float(value) => Some(*value),
            _ => None,
        };
        let share = share.filter(|share| (0.0..1.0).contains(share));
        share.map(Some).ok_or_else(|| "a number from 0 to below 1, such as 0.5, or \"off\"".to_owned())
    })
}

/// Reads the section `[dead_letters]`: the fields to mask.
fn read_dead_letters(mut section: Section<'_>, diagnostics: &mut Diagnostics) -> Vec<String> {
    let masked = section.list("mask", diagnostics);
    section.end(diagnostics);
    masked.unwrap_or_default()
}

/// Reads the section `[log]`.
fn read_log(mut section: Section<'_>, diagnostics: &mut Diagnostics) -> Option<LogConfig> {
    let json = section.choice("format", &[("human", false), ("json", true)], diagnostics);
    let levels = ["error", "warn", "info", "debug", "trace"].map(|level| (level, level));
    let level = section.choice("level", &levels, diagnostics);
    section.end(diagnostics);
    Some(LogConfig { json: json?, level: level?.to_owned() })
}

/// The source of records, and their fields.
struct Input {
    source: Option<SourceConfig>,
    decode_settings: Option<source::DecodeSettings>,
    fields: Option<Arc<FieldMap>>,
    layout: Arc<Layout>,
}

/// Reads the sections `[source]` and `[fields]`.
fn read_input(top: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Input {
    let (source, decode_settings) = match top.section("source", diagnostics) {
        Some(section) => source::read(section, diagnostics).unzip(),
        None => {
            top.report_error("source", "the section is missing", diagnostics);
            (None, None)
        }
    };

    let format = decode_settings.as_ref().map_or(crate::decode::JSON, |settings| settings.format);
    let (fields, layout) = match top.section("fields", diagnostics) {
        Some(section) => fields::read(section, format, diagnostics),
        None => (None, Arc::default()),
    };
    if format.needs_fields && !top.has("fields") {
        let message = format!("the format {} needs a section [fields], which names the fields", format.name);
        top.report_error("fields", message, diagnostics);
    }
    Input { source, decode_settings, fields, layout }
}

/// The computation over events.
struct Flow {
    windows: Vec<WindowPlan>,
    patterns: Patterns,
    rules: Vec<RulePlan>,
    /// The fields and keys that rules can refer to, as yet without the time to live of keys.
    rule_scope: RuleScope,
}

/// Reads the sections `[keys]`, `[[windows]]`, `[patterns]` and `[[rules]]`.
fn read_flow(
    top: &mut Section<'_>,
    layout: &Arc<Layout>,
    lists: Lists,
    epoch_ms: u64,
    backfill_horizon_ms: i64,
    diagnostics: &mut Diagnostics,
) -> Flow {
    let spaces = Spaces::read(top.section_or_default("keys", diagnostics), layout, diagnostics);
    let windows = windows::read(top.sections("windows", diagnostics), epoch_ms, &spaces, diagnostics);
    let mut section = top.section_or_default("patterns", diagnostics);
    let patterns = patterns::read(&mut section, diagnostics);
    section.end(diagnostics);
    let (layout, patterns_of) = (Arc::clone(layout), patterns.names());
    let rule_scope =
        RuleScope { layout, spaces, lists, patterns: patterns_of, ttl_ms: 0, backfill_horizon_ms };
    let rules = rules::read(top.sections("rules", diagnostics), &rule_scope, diagnostics);
    Flow { windows, patterns, rules, rule_scope }
}

/// Reads all sections; returns None if a required part has an error.
fn read_config(top: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<Config> {
    let pipeline = top.text("pipeline", diagnostics);
    if pipeline.as_deref().is_some_and(|name| !is_name(name, "-_")) {
        top.report_error("pipeline", "expected at most 63 lower-case letters, digits, - and _", diagnostics);
    }
    let reloads_rules = top.choice("rules_reload", &[("auto", true), ("off", false)], diagnostics);
    let Input { source, decode_settings, fields, layout } = read_input(top, diagnostics);
    let time = read_time(top.section_or_default("time", diagnostics), decode_settings.as_ref(), diagnostics);
    let limits = read_limits(top.section_or_default("limits", diagnostics), diagnostics);
    let epoch_ms = time.map_or(10, |time| time.epoch.as_millis() as u64).max(1);
    let declared = lists::read(top, diagnostics);
    let horizon_ms = limits.as_ref().map_or(i64::MAX, |(limits, _)| limits.backfill_horizon_ms);
    let Flow { windows, patterns, rules, rule_scope } =
        read_flow(top, &layout, lists::registry(&declared), epoch_ms, horizon_ms, diagnostics);
    let look_back_ms = Plan::longest_look_back_ms(&patterns, &rules);

    let state = state::read(top.section_or_default("state", diagnostics), look_back_ms, diagnostics);

    let sinks = sinks::read(top, diagnostics);
    sinks::check(top, pipeline.as_deref(), source.as_ref(), &sinks, diagnostics);
    sinks::check_retention(top, &sinks, (&windows, look_back_ms, time), diagnostics);
    let lists = lists::read_sources(declared, source.as_ref(), &sinks, diagnostics);
    lists::check_store(top, diagnostics);
    let own = rules.iter().map(|rule| &*rule.id);
    let rule_ids: Vec<&str> = patterns.names().into_iter().chain(own).collect();
    let routes = routes::read(top, &rule_ids, diagnostics);
    routes::check_sinks(top, &sinks, diagnostics);

    let ledger =
        top.section("ledger", diagnostics).and_then(|section| ledger::read(section, &sinks, diagnostics));
    let checkpoint = checkpoint::read(top, diagnostics);
    let masked_fields = read_dead_letters(top.section_or_default("dead_letters", diagnostics), diagnostics);
    let http = top.section("http", diagnostics).and_then(|section| http::read(section, diagnostics));
    let cluster = cluster::read(top.section_or_default("cluster", diagnostics), diagnostics);
    let otlp = top.section("otlp", diagnostics).and_then(|section| otlp::read(section, diagnostics));
    let log = read_log(top.section_or_default("log", diagnostics), diagnostics);
    Section::end_of(top, diagnostics);

    let joining =
        if routes.is_empty() { BTreeSet::new() } else { BTreeSet::from([crate::routes::SINK.to_owned()]) };
    let (state, ttl_ms) = state?;
    let (limits, shutdown_timeout) = limits?;
    let source::DecodeSettings { format, binary, strict_fields, .. } = decode_settings?;
    Some(Config {
        plan: Plan {
            pipeline: pipeline?.into(),
            decoding: Decoding { format, binary, fields, strict: strict_fields },
            source_topic: match &source {
                Some(SourceConfig::Kafka(kafka)) => Some(kafka.topic.as_str().into()),
                _ => None,
            },
            time: time?,
            limits: Limits { ttl_ms, ..limits },
            windows,
            patterns,
            rules,
            spaces: rule_scope.spaces.declared().cloned().collect(),
            first_epoch: Epoch(1),
            close_at_end: false,
            record_bindings: None,
        },
        rule_scope: RuleScope { ttl_ms, ..rule_scope },
        reloads_rules: reloads_rules?,
        source: source?,
        sinks,
        lists,
        routes,
        ledger,
        state,
        checkpoint,
        shutdown_timeout,
        masked_fields,
        http,
        cluster: cluster?,
        otlp,
        log: log?,
        resets: Resets { joining, ..Resets::default() },
        skips: Vec::new(),
        warnings: Vec::new(),
        accepted_losses: Vec::new(),
        effective: Vec::new(),
    })
}

/// Reads the section `[time]`.
fn read_time(
    mut section: Section<'_>,
    decode_settings: Option<&source::DecodeSettings>,
    diagnostics: &mut Diagnostics,
) -> Option<Time> {
    let epoch = section.duration("epoch", 1, diagnostics);
    let max_out_of_orderness_ms = section.duration("max_out_of_orderness", 0, diagnostics);
    let idle_timeout = section.duration("idle_timeout", 1, diagnostics);
    let max_future_skew_ms = section.duration("max_future_skew", 0, diagnostics);
    let max_drift_ms = section.duration("max_drift", 1, diagnostics);
    let held_warning = section.duration("held_warning", 0, diagnostics);
    let held_timeout = section.duration("held_timeout", 0, diagnostics).map(millis);
    let idle_advance_ms = section.duration("idle_advance", 0, diagnostics);
    section.end(diagnostics);
    let &source::DecodeSettings { epoch_records, max_jump_ms, .. } = decode_settings?;
    Some(Time {
        epoch: millis(epoch?),
        epoch_records,
        max_out_of_orderness_ms: max_out_of_orderness_ms?,
        idle_timeout: millis(idle_timeout?),
        max_future_skew_ms: max_future_skew_ms?,
        max_jump_ms,
        max_drift_ms,
        held_warning: millis(held_warning?),
        held_timeout,
        idle_advance_ms,
    })
}

#[cfg(test)]
mod tests;

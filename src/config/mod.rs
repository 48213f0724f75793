//! Configuration: deserialize, validate, build.
//!
//! A file and the environment become a tree of values that know where they were written; reading the tree yields a
//! [`Config`], which is valid, or every complaint at once.

mod change;
mod checkpoint;
mod keys;
mod ledger;
mod read;
mod source;
mod state;
mod tree;
mod values;

pub use change::{Unchangeable, changes};
pub use checkpoint::CheckpointConfig;
pub use keys::reference;
pub use ledger::LedgerConfig;
pub use read::Complaint;
pub use state::{Durability, RedisConfig, StateConfig};
pub use tree::Origin;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use headwater_dataflows::windows::Refresh;
use headwater_dataflows::{Emission, Epoch};

use crate::coordination::Skip;
use crate::outputs::Severity;
use crate::runtime::{
    AmountPlan, By, DiversityPlan, FrequencyPlan, Limits, Patterns, Plan, Resets, Telling, Time, TravelPlan,
    WindowKind, WindowPlan,
};
use read::{Notes, Section};
pub use source::{KafkaSourceConfig, SourceConfig, StartFrom};

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// What to compute. Where it begins and ends is up to the run.
    pub plan: Plan,
    /// Where records come from.
    pub source: SourceConfig,
    /// Where results go.
    pub sinks: SinksConfig,
    /// Where what was done is recorded, if anywhere.
    pub ledger: Option<LedgerConfig>,
    /// Where checkpoints are put.
    pub state: StateConfig,
    /// How often checkpoints are made, if any are.
    pub checkpoint: Option<CheckpointConfig>,
    /// How long a run that was asked to stop may take to finish what it has read.
    pub drain: Duration,
    /// Where to serve HTTP, if anywhere.
    pub http: Option<std::net::SocketAddr>,
    /// How to log.
    pub log: LogConfig,
    /// What a start may reset where it has to, as the command line has it: no key of a file says so.
    pub resets: Resets,
    /// What sinks are not to be given any more; from the command line, too.
    pub skips: Vec<Skip>,
    effective: Vec<(String, String)>,
}

/// An output that a sink may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// Events, enriched.
    Events,
    /// Alerts.
    Alerts,
    /// Window aggregates.
    Windows,
    /// Dead letters.
    DeadLetters,
}

/// Where results go.
#[derive(Clone, Debug, Default)]
pub struct SinksConfig {
    /// Topics.
    pub kafka: Option<KafkaSinkConfig>,
    /// PostgreSQL.
    pub postgres: Option<PostgresSinkConfig>,
    /// SQLite.
    pub sqlite: Option<TablesConfig>,
}

/// Topics to write.
#[derive(Clone)]
pub struct KafkaSinkConfig {
    /// The brokers to ask first.
    pub brokers: String,
    /// Which outputs to write.
    pub topics: Vec<OutputKind>,
    /// Least time between two transactions.
    pub commit_interval: Duration,
    /// Passed on as they are. They may hold secrets, so they do not show in `Debug`.
    pub options: BTreeMap<String, String>,
}

impl fmt::Debug for KafkaSinkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kafka({:?} at {})", self.topics, self.brokers)
    }
}

/// Tables of PostgreSQL to write.
#[derive(Clone, Debug)]
pub struct PostgresSinkConfig {
    /// The schema that they are in; without it, where the connection puts tables.
    pub schema: Option<String>,
    /// Which, and where the database is.
    pub tables: TablesConfig,
}

/// Tables to write.
#[derive(Clone)]
pub struct TablesConfig {
    /// A URL, or the path of a file.
    pub place: String,
    /// Which outputs to write.
    pub tables: Vec<OutputKind>,
    /// Least time between two transactions.
    pub commit_interval: Duration,
}

impl fmt::Debug for TablesConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tables({:?} at {})", self.tables, values::without_password(&self.place))
    }
}

/// How to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// As JSON, or for people.
    pub json: bool,
    /// What is worth a line.
    pub level: String,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct Complaints(pub Vec<Complaint>);

impl fmt::Display for Complaints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, complaint) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            complaint.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Complaints {}

impl Config {
    /// Reads a configuration's text, with what the environment overrides.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(
        text: &str,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, Complaints> {
        let mut environment: Vec<_> = environment.collect();
        environment.sort();
        let tree = tree::parse(text, &environment).map_err(|(origin, message)| {
            Complaints(vec![Complaint { origin, key: "the file".into(), message }])
        })?;
        let mut notes = Notes::default();
        let config = read_config(&mut Section::top(&tree), &mut notes);
        match config {
            Some(mut config) if notes.complaints.is_empty() => {
                config.effective = notes.effective;
                Ok(config)
            }
            _ => {
                notes.complaints.sort_by(|a, b| (&a.origin, &a.key).cmp(&(&b.origin, &b.key)));
                Err(Complaints(notes.complaints))
            }
        }
    }

    /// Every key in force, one a line, secrets left out.
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

const TABLES: [(&str, OutputKind); 4] = [
    ("events", OutputKind::Events),
    ("alerts", OutputKind::Alerts),
    ("windows", OutputKind::Windows),
    ("dead_letters", OutputKind::DeadLetters),
];

const TOPICS: [(&str, OutputKind); 3] = [
    ("enriched-events", OutputKind::Events),
    ("alerts", OutputKind::Alerts),
    ("dead-letters", OutputKind::DeadLetters),
];

fn is_name(text: &str, also: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || also.contains(c);
    (1..=63).contains(&text.len()) && text.chars().all(allowed)
}

/// None if something was complained of without which the rest makes no sense.
fn read_config(top: &mut Section<'_>, notes: &mut Notes) -> Option<Config> {
    let pipeline = top.text("pipeline", notes);
    if pipeline.as_deref().is_some_and(|name| !is_name(name, "-_")) {
        top.complain("pipeline", "expected at most 63 lower-case letters, digits, - and _", notes);
    }
    let source = match top.section("source", notes) {
        Some(section) => source::read(section, notes),
        None => {
            top.complain("source", "the section is missing", notes);
            None
        }
    };

    let mut section = top.section_or_default("time", notes);
    let time = (|| {
        let epoch = section.duration("epoch", 1, notes);
        let max_out_of_orderness_ms = section.duration("max_out_of_orderness", 0, notes);
        let idle_timeout = section.duration("idle_timeout", 1, notes);
        let max_future_skew_ms = section.duration("max_future_skew", 0, notes);
        let max_drift_ms = section.duration("max_drift", 1, notes);
        Some(Time {
            epoch: millis(epoch?),
            max_out_of_orderness_ms: max_out_of_orderness_ms?,
            idle_timeout: millis(idle_timeout?),
            max_future_skew_ms: max_future_skew_ms?,
            max_drift_ms: max_drift_ms?,
        })
    })();
    section.end(notes);

    let mut section = top.section_or_default("limits", notes);
    let bytes_in_flight = section.size("bytes_in_flight", notes);
    let epochs_in_flight = section.int("epochs_in_flight", 2..=1_000_000, notes);
    let dedup_horizon_ms = section.duration("dedup_horizon", 0, notes);
    let drain = section.duration("drain", 0, notes);
    section.end(notes);

    let epoch_ms = time.map_or(10, |time| time.epoch.as_millis() as u64).max(1);
    let mut names = std::collections::BTreeSet::new();
    let mut windows = Vec::new();
    for section in top.sections("windows", notes) {
        if let Some(window) = read_window(section, epoch_ms, &mut names, notes) {
            windows.push(window);
        }
    }

    let mut section = top.section_or_default("patterns", notes);
    let patterns = read_patterns(&mut section, notes);
    section.end(notes);

    let state = state::read(top.section_or_default("state", notes), &patterns, notes);

    let mut section = top.section_or_default("sinks", notes);
    let sinks = read_sinks(&mut section, notes);
    if section_is_empty(&sinks) {
        top.complain(
            "sinks",
            "expected at least one of [sinks.kafka], [sinks.postgres] and [sinks.sqlite]",
            notes,
        );
    }
    section.end(notes);
    if let (Some(SourceConfig::Kafka(kafka)), Some(sink)) = (&source, &sinks.kafka) {
        let written = TOPICS.iter().find(|(name, kind)| *name == kafka.topic && sink.topics.contains(kind));
        if written.is_some() {
            top.complain(
                "source",
                format!("the topic {} is also written by sinks.kafka", kafka.topic),
                notes,
            );
        }
    }

    let ledger = top.section("ledger", notes).and_then(|section| ledger::read(section, &sinks, notes));
    let checkpoint = checkpoint::read(top, notes);
    let http = top.section("http", notes).and_then(|mut section| {
        let listen = section.get("listen", notes, |node| match node {
            tree::Node::Text(text) => {
                text.parse().map_err(|_| "an address such as \"127.0.0.1:9464\"".into())
            }
            _ => Err("an address such as \"127.0.0.1:9464\"".into()),
        });
        section.end(notes);
        listen
    });
    let mut section = top.section_or_default("log", notes);
    let json = section.choice("format", &[("human", false), ("json", true)], notes);
    let levels = ["error", "warn", "info", "debug", "trace"].map(|level| (level, level));
    let level = section.choice("level", &levels, notes);
    section.end(notes);
    std::mem::replace(top, Section::none()).end(notes);

    let (state, ttl_ms) = state?;
    Some(Config {
        plan: Plan {
            pipeline: pipeline?.into(),
            time: time?,
            limits: Limits {
                bytes_in_flight: bytes_in_flight?,
                epochs_in_flight: epochs_in_flight? as u64,
                dedup_horizon_ms: dedup_horizon_ms?,
                ttl_ms,
            },
            windows,
            patterns,
            first_epoch: Epoch(1),
            close_at_end: false,
            record_bindings: None,
        },
        source: source?,
        sinks,
        ledger,
        state,
        checkpoint,
        drain: millis(drain?),
        http,
        log: LogConfig { json: json?, level: level?.to_owned() },
        resets: Resets::default(),
        skips: Vec::new(),
        effective: Vec::new(),
    })
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(ms.unsigned_abs())
}

fn section_is_empty(sinks: &SinksConfig) -> bool {
    sinks.kafka.is_none() && sinks.postgres.is_none() && sinks.sqlite.is_none()
}

fn read_window(
    mut section: Section<'_>,
    epoch_ms: u64,
    names: &mut std::collections::BTreeSet<String>,
    notes: &mut Notes,
) -> Option<WindowPlan> {
    #[derive(Clone, Copy)]
    enum Kind {
        Tumbling,
        Sliding,
        Session,
    }
    let name = section.text("name", notes);
    if let Some(name) = &name {
        if !is_name(name, "_") {
            section.complain("name", "expected at most 63 lower-case letters, digits and _", notes);
        }
        if !names.insert(name.clone()) {
            section.complain("name", format!("there are two windows named {name}"), notes);
        }
    }
    let kinds = [("tumbling", Kind::Tumbling), ("sliding", Kind::Sliding), ("session", Kind::Session)];
    let by =
        section.choice("by", &[("user_id", By::User), ("device_id", By::Device), ("key", By::Key)], notes);
    let kind = section.choice("kind", &kinds, notes);
    let mut needed = |section: &mut Section<'_>, key: &str| {
        let value = section.duration(key, 1, notes);
        if value.is_none() {
            section.complain(key, "this kind of window needs it", notes);
        }
        value
    };
    let kind = match kind {
        None => None,
        Some(Kind::Tumbling) => needed(&mut section, "size").map(|size_ms| WindowKind::Tumbling { size_ms }),
        Some(Kind::Session) => needed(&mut section, "gap").map(|gap_ms| WindowKind::Session { gap_ms }),
        Some(Kind::Sliding) => match (needed(&mut section, "size"), needed(&mut section, "every")) {
            (Some(size_ms), Some(every_ms)) => {
                if size_ms % every_ms != 0 {
                    section.complain("every", "the size must be a multiple of it", notes);
                }
                Some(WindowKind::Sliding { size_ms, every_ms })
            }
            _ => None,
        },
    };
    let revised = section.choice("emit", &[("final", false), ("revised", true)], notes);
    let revise_every = section.duration("revise_every", 1, notes);
    section.end(notes);
    let refresh = match revised? {
        false => Refresh::Final,
        true => Refresh::Revised { epochs: (revise_every? as u64).div_ceil(epoch_ms) },
    };
    Some(WindowPlan { name: Arc::from(name?), kind: kind?, by: by?, refresh })
}

fn read_telling(section: &mut Section<'_>, notes: &mut Notes) -> Option<Telling> {
    let severity = section.choice("severity", &SEVERITIES, notes);
    let emissions = [("immediate", Emission::Immediate), ("final", Emission::Final)];
    let emission = section.choice("emit", &emissions, notes);
    Some(Telling { severity: severity?, emission: emission? })
}

fn read_patterns(patterns: &mut Section<'_>, notes: &mut Notes) -> Patterns {
    const COUNTS: std::ops::RangeInclusive<i64> = 1..=1_000_000;
    let mut read = Patterns::default();
    if let Some(mut section) = patterns.section("velocity_spike", notes) {
        let more_than = section.int("more_than", COUNTS, notes);
        let within_ms = section.duration("within", 1, notes);
        let telling = read_telling(&mut section, notes);
        section.end(notes);
        read.velocity_spike = (|| {
            Some(FrequencyPlan {
                at_least: more_than? as usize + 1,
                within_ms: within_ms?,
                telling: telling?,
            })
        })();
    }
    if let Some(mut section) = patterns.section("rapid_fire_burst", notes) {
        let at_least = section.int("at_least", COUNTS, notes);
        let within_ms = section.duration("within", 1, notes);
        let telling = read_telling(&mut section, notes);
        section.end(notes);
        read.rapid_fire_burst = (|| {
            Some(FrequencyPlan { at_least: at_least? as usize, within_ms: within_ms?, telling: telling? })
        })();
    }
    if let Some(mut section) = patterns.section("merchant_diversity", notes) {
        let at_least = section.int("at_least", 1..=10_000, notes);
        let within_ms = section.duration("within", 1, notes);
        let telling = read_telling(&mut section, notes);
        section.end(notes);
        read.merchant_diversity = (|| {
            Some(DiversityPlan { at_least: at_least? as usize, within_ms: within_ms?, telling: telling? })
        })();
    }
    if let Some(mut section) = patterns.section("amount_anomaly", notes) {
        let sigmas = section.float("sigmas", 0.0..=1000.0, notes);
        let high_sigmas = section.float("high_sigmas", 0.0..=1000.0, notes);
        let at_least = section.int("at_least", 2..=1_000_000_000, notes);
        let min_sigma = section.float("min_sigma", 0.0..=1e12, notes);
        let per_currency = section.bool("per_currency", notes);
        let telling = read_telling(&mut section, notes);
        section.end(notes);
        read.amount_anomaly = (|| {
            Some(AmountPlan {
                sigmas: sigmas?,
                high_sigmas: high_sigmas?,
                at_least: at_least? as u64,
                min_sigma: min_sigma?,
                per_currency: per_currency?,
                telling: telling?,
            })
        })();
    }
    if let Some(mut section) = patterns.section("impossible_travel", notes) {
        let km = section.float("more_than_km", 0.0..=20_100.0, notes);
        let kmh = section.float("more_than_kmh", 0.0..=1e9, notes);
        let telling = read_telling(&mut section, notes);
        section.end(notes);
        read.impossible_travel = (|| Some(TravelPlan { km: km?, kmh: kmh?, telling: telling? }))();
    }
    read
}

fn read_sinks(sinks: &mut Section<'_>, notes: &mut Notes) -> SinksConfig {
    let mut read = SinksConfig::default();
    if let Some(mut section) = sinks.section("kafka", notes) {
        let brokers = section.text("brokers", notes);
        let topics = section.choices("topics", &TOPICS, notes);
        let interval = section.duration("commit_interval", 0, notes);
        let options = match section.section("options", notes) {
            Some(mut section) => section.kafka_options(notes),
            None => BTreeMap::new(),
        };
        section.end(notes);
        read.kafka = (|| {
            Some(KafkaSinkConfig {
                brokers: brokers?,
                topics: topics?,
                commit_interval: millis(interval?),
                options,
            })
        })();
    }
    if let Some(mut section) = sinks.section("postgres", notes) {
        let schema = section.text("schema", notes);
        let tables = read_tables(&mut section, "url", notes);
        if let Some(tables) = &tables {
            check_postgres(&section, &tables.place, notes);
        }
        section.end(notes);
        read.postgres = tables.map(|tables| PostgresSinkConfig { schema, tables });
    }
    if let Some(mut section) = sinks.section("sqlite", notes) {
        read.sqlite = read_tables(&mut section, "path", notes);
        section.end(notes);
    }
    read
}

/// Complains of a `url` that is none of PostgreSQL, or that this program cannot use.
fn check_postgres(section: &Section<'_>, url: &str, notes: &mut Notes) {
    if let Err(wrong) = headwater_sinks::postgres::Target::parse(url) {
        section.complain("url", wrong.to_string(), notes);
    }
}

fn read_tables(section: &mut Section<'_>, place: &str, notes: &mut Notes) -> Option<TablesConfig> {
    let place = section.text(place, notes);
    let tables = section.choices("tables", &TABLES, notes);
    let interval = section.duration("commit_interval", 0, notes);
    Some(TablesConfig { place: place?, tables: tables?, commit_interval: millis(interval?) })
}

#[cfg(test)]
mod tests;

//! `headwater rules`: the rules of a configuration, and the differences between those of two configurations.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueHint};
use serde_json::{Value, json};

use super::output;
use super::{load_with, warn};
use crate::config::{ChangedRule, ChangedSetting, Config, ConfigErrors, RemovedRule, RuleDifferences};
use crate::outputs::RuleMode;
use crate::pipeline::{Patterns, RuleDescription, RulePlan, describe, preset, span};

/// Commands on rules.
#[derive(Clone, Debug, PartialEq, Subcommand)]
pub enum RulesCommand {
    /// List the rules of a configuration, and each pattern as the rule that it stands for.
    List(ListRulesArgs),
    /// Compare the rules of two configurations by their ids: added, removed and changed ones, and which lose their state.
    Diff(DiffRulesArgs),
    /// Let the rules of a configuration come into force in its run, without a stop.
    Apply(ApplyRulesArgs),
}

/// Arguments of `rules list`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct ListRulesArgs {
    /// The configuration file, or a file that has only fields, keys, rules and patterns.
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `rules diff`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct DiffRulesArgs {
    /// The configuration file, or a file that has only fields, keys, rules and patterns.
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// The changed file.
    #[arg(value_hint = ValueHint::FilePath)]
    pub new: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `rules apply`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct ApplyRulesArgs {
    /// The configuration file of the run, with its changed rules.
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// Change nothing, and only print what would change.
    #[arg(long)]
    pub dry_run: bool,
    /// The address of the run's HTTP server, such as http://127.0.0.1:9464; by default `http.listen`.
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    pub url: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Runs a command on rules.
///
/// # Errors
/// If a configuration is wrong, or the result cannot be printed.
pub fn run(command: &RulesCommand) -> anyhow::Result<()> {
    match command {
        RulesCommand::List(args) => {
            let config = load(&args.config)?;
            warn(&config);
            let rules = listed(&config);
            Ok(output::report(args.json, || list_json(&rules), || list_text(&rules))?)
        }
        RulesCommand::Diff(args) => {
            let (before, now) = (load_named(&args.config)?, load_named(&args.new)?);
            let differences = before.rule_differences(&now);
            Ok(output::report(args.json, || diff_json(&differences), || diff_text(&differences))?)
        }
        RulesCommand::Apply(args) => super::apply_rules::apply(args),
    }
}

/// Loads the part of a configuration that rules need, so that neither variables nor files of other sections are needed.
fn load(path: &Path) -> anyhow::Result<Config> {
    load_with(path, Config::parse_to_test_rules, |_| "warn")
}

/// Does the same, with the name of the file in errors of the configuration: it is one of two.
fn load_named(path: &Path) -> anyhow::Result<Config> {
    load(path).map_err(|error| match error.is::<ConfigErrors>() {
        true => error.context(path.display().to_string()),
        false => error,
    })
}

/// A rule, with what only the list shows.
enum ListedRule {
    /// A pattern, and the text of the rule that it stands for.
    Pattern(RuleDescription, String),
    /// A rule of the user's own, and its plan.
    Own(RuleDescription, RulePlan),
}

/// Returns the rules of a configuration, those of patterns first.
fn listed(config: &Config) -> Vec<ListedRule> {
    let (patterns, own) = (&config.plan.patterns, &config.plan.rules);
    let of_patterns = describe(patterns, &[]).into_iter().filter_map(|rule| {
        let as_rule = preset(&rule.id, patterns)?;
        Some(ListedRule::Pattern(rule, as_rule))
    });
    let of_own = describe(&Patterns::default(), own).into_iter().zip(own);
    of_patterns.chain(of_own.map(|(rule, plan)| ListedRule::Own(rule, plan.clone()))).collect()
}

fn list_json(rules: &[ListedRule]) -> Value {
    let rules = rules.iter().map(|rule| match rule {
        ListedRule::Pattern(rule, as_rule) => {
            let mut object = json!(rule);
            object["as_rule"] = as_rule.as_str().into();
            object
        }
        ListedRule::Own(rule, _) => json!(rule),
    });
    json!({ "rules": rules.collect::<Vec<_>>() })
}

fn list_text(rules: &[ListedRule]) -> String {
    if rules.is_empty() {
        return "no rules: the configuration has no [[rules]] and no [patterns]\n".to_owned();
    }
    let texts: Vec<_> = rules.iter().map(rule_text).collect();
    texts.join("\n")
}

fn rule_text(rule: &ListedRule) -> String {
    let labels = |RuleDescription { by, severity, emit, mode, suppress_ms, .. }: &RuleDescription| {
        let suppress = suppress_ms.map_or(String::new(), |ms| format!(", suppress {}", span(ms)));
        let shadow = if *mode == RuleMode::Shadow.as_str() { ", mode shadow" } else { "" };
        format!("  by {by}, severity {severity}, emit {emit}{suppress}{shadow}\n")
    };
    match rule {
        ListedRule::Pattern(rule, as_rule) => {
            let RuleDescription { id, description, .. } = rule;
            let lines: String = as_rule.lines().map(|line| format!("    {line}\n")).collect();
            let labels = labels(rule);
            format!("{id}: {description}\n{labels}  [patterns.{id}] stands for the rule\n{lines}")
        }
        ListedRule::Own(rule, plan) => {
            let description = plan.description.as_ref().map_or(String::new(), |text| format!(": {text}"));
            let settings = plan.settings.iter().filter(|(key, _)| key != "by");
            let lines: String = settings.map(|(key, value)| format!("  {key} = {value}\n")).collect();
            format!("{}{description}\n{}{lines}", rule.id, labels(rule))
        }
    }
}

fn diff_json(differences: &RuleDifferences) -> Value {
    let RuleDifferences { added, removed, changed, unchanged } = differences;
    let removed = removed
        .iter()
        .map(|RemovedRule { id, discard_state }| json!({ "id": id, "discard_state": discard_state }));
    let changed = changed.iter().map(|ChangedRule { id, settings, keeps_state, discard_state }| {
        let settings = settings.iter().map(|ChangedSetting { key, before, now }| {
            let value = |text: &Option<String>| text.as_deref().map(crate::json::of_toml);
            json!({ "key": key, "before": value(before), "now": value(now) })
        });
        json!({
            "id": id,
            "settings": settings.collect::<Vec<_>>(),
            "keeps_state": keeps_state,
            "discard_state": discard_state,
        })
    });
    json!({
        "added": added,
        "removed": removed.collect::<Vec<_>>(),
        "changed": changed.collect::<Vec<_>>(),
        "unchanged": unchanged,
    })
}

fn diff_text(differences: &RuleDifferences) -> String {
    let RuleDifferences { added, removed, changed, unchanged } = differences;
    let mut text = String::new();
    for id in added {
        text += &format!("added {id}: starts without state\n");
    }
    for RemovedRule { id, discard_state } in removed {
        text += &format!("removed {id}{}\n", permission(discard_state.as_deref()));
    }
    for ChangedRule { id, settings, keeps_state, discard_state } in changed {
        let state = if *keeps_state { "keeps its state" } else { "starts without state" };
        text += &format!("changed {id}: {state}{}\n", permission(discard_state.as_deref()));
        for ChangedSetting { key, before, now } in settings {
            let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
            text += &format!("  {key}: {} -> {}\n", value(before), value(now));
        }
    }
    text += &format!(
        "{} added, {} removed, {} changed, {unchanged} unchanged\n",
        added.len(),
        removed.len(),
        changed.len()
    );
    text
}

/// Returns what a start needs to discard the state of a pattern.
fn permission(discard_state: Option<&str>) -> String {
    discard_state.map_or(String::new(), |section| format!("; a start needs --discard-state {section}"))
}

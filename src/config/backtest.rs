//! The parts of two configurations that a backtest needs: the rules in force, and a candidate.
//!
//! ```text
//!   CONFIG ─ without windows, sinks, ledger, … ────────────────────────────────────▶ Config in force
//!     └─ source, time, limits, state; fields, keys and lists unless NEW has them ─┐
//!   NEW ─ rules, patterns, fields, keys ───────────────────────────────────┴───────▶ Config of the candidate
//! ```

use super::rule_tests::{is_permitted, keep_ttl, remove_unused};
use super::{Config, ConfigError, ConfigErrors};
use crate::settings::tree::{self, Item, Node};

/// The sections of the configuration in force that apply to the candidate, too, whatever the candidate has.
const SHARED: [&str; 5] = ["pipeline", "source", "time", "limits", "state"];

/// The sections of the configuration in force that apply to a candidate without them.
const INHERITED: [&str; 3] = ["fields", "keys", "lists"];

/// The configuration of a candidate.
pub struct Candidate {
    /// The rules of the candidate, with the source and the times of the configuration in force.
    pub config: Config,
    /// True if the candidate has fields of its own, so that records decode to other events.
    pub has_fields: bool,
}

impl Config {
    /// Parses a configuration whose rules are evaluated without sinks, windows, ledger and other sections that have no
    /// effect on alerts. These are not read: `headwater check` does that.
    ///
    /// # Errors
    /// Returns all errors of the sections that are read, and of unknown sections.
    pub fn parse_to_backtest(
        text: &str,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, ConfigErrors> {
        Config::parse_completed(text, environment, remove, is_permitted)
    }
}

impl Candidate {
    /// Parses a candidate: a whole configuration, or a file that has only fields, keys, rules and patterns. The source,
    /// the times and the limits are those of `in_force`, and so are fields and keys unless the candidate has them.
    ///
    /// # Errors
    /// Returns all errors of the candidate.
    pub fn parse(
        text: &str,
        in_force: &str,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Candidate, ConfigErrors> {
        let environment: Vec<_> = environment.collect();
        let parse = |text: &str, environment: &[(String, String)]| {
            tree::parse(text, environment).map_err(|(origin, message)| {
                ConfigErrors(vec![ConfigError { origin, key: "the file".into(), message }])
            })
        };
        let (own, shared) = (parse(text, &[])?, parse(in_force, &environment)?);
        // A variable such as HEADWATER__FIELDS__X is not a section of the candidate.
        let has = |name: &str| matches!(&own.node, Node::Table(entries) if entries.contains_key(name));
        let inherited: Vec<_> = INHERITED.into_iter().filter(|name| !has(name)).collect();
        let complete = |tree: &mut Item| share(tree, shared, &inherited);
        let config = Config::parse_completed(text, environment.into_iter(), complete, is_permitted)?;
        Ok(Candidate { config, has_fields: has("fields") })
    }
}

/// Removes the sections that a backtest does not use.
fn remove(tree: &mut Item) {
    let Node::Table(entries) = &mut tree.node else { return };
    remove_unused(entries, &["source"]);
    keep_ttl(entries);
}

/// Replaces the shared and the inherited sections of a candidate by those of the configuration in force.
fn share(tree: &mut Item, mut in_force: Item, inherited: &[&str]) {
    let (Node::Table(entries), Node::Table(others)) = (&mut tree.node, &mut in_force.node) else { return };
    remove_unused(entries, &[]);
    for name in SHARED.iter().chain(inherited) {
        entries.remove(*name);
        if let Some(mut item) = others.remove(*name) {
            tree::clear_places(&mut item);
            entries.insert((*name).to_owned(), item);
        }
    }
    keep_ttl(entries);
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN_FORCE: &str = "pipeline = \"p\"\n[source]\nkind = \"file\"\npaths = \"a.ndjson\"\n[time]\n\
        max_out_of_orderness = \"1m\"\n[fields]\nevent_id = \"id\"\nevent_time = \"ts\"\n\
        event_type = { const = \"payment\" }\nuser_id = \"user\"\ncard = \"card\"\n[keys]\ncard = \"card\"\n\
        [sinks.postgres]\nurl = \"${NOT_SET}\"\n[patterns.velocity_spike]\nmore_than = 3\n\
        [[rules]]\nid = \"a\"\nby = \"card\"\nmatch = true\n";

    fn candidate(text: &str) -> Result<Candidate, String> {
        Candidate::parse(text, IN_FORCE, std::iter::empty()).map_err(|errors| errors.to_string())
    }

    #[test]
    fn a_configuration_needs_no_sink_or_service() {
        let config = Config::parse_to_backtest(IN_FORCE, std::iter::empty()).expect("valid");
        assert_eq!(config.plan.rule_ids(), ["velocity_spike", "a"]);
        let error =
            Config::parse_to_backtest("pipeline = \"p\"\n", std::iter::empty()).expect_err("no source");
        assert!(error.to_string().contains("source: the section is missing"), "{error}");
    }

    #[test]
    fn a_candidate_has_its_own_rules_and_the_source_in_force() {
        let Candidate { config, has_fields } =
            candidate("[[rules]]\nid = \"b\"\nby = \"card\"\nwhere = \"event.card != ''\"\nmatch = true\n")
                .expect("valid");
        assert_eq!(config.plan.rule_ids(), ["b"], "no pattern of the configuration in force");
        assert_eq!((&*config.plan.pipeline, has_fields), ("p", false));
        assert_eq!(config.plan.time.max_out_of_orderness_ms, 60_000);
        let whole = "pipeline = \"q\"\n[source]\nkind = \"kafka\"\nbrokers = \"${NOT_SET}\"\n[time]\n\
            max_out_of_orderness = \"9m\"\n[sinks.x]\n[patterns.velocity_spike]\nmore_than = 5\n";
        let Candidate { config, .. } = candidate(whole).expect("valid");
        assert_eq!((&*config.plan.pipeline, config.plan.time.max_out_of_orderness_ms), ("p", 60_000));
    }

    #[test]
    fn a_candidate_with_fields_and_keys_has_only_those() {
        let fields = "[fields]\nevent_id = \"id\"\nevent_time = \"ts\"\nevent_type = { const = \"payment\" }\n\
            user_id = \"user\"\nip = \"ip\"\n[keys]\nip = \"ip\"\n[[rules]]\nid = \"b\"\nmatch = true\n";
        assert!(candidate(&format!("{fields}by = \"ip\"\n")).expect("valid").has_fields);
        assert!(candidate(&format!("{fields}by = \"card\"\n")).is_err());
    }

    #[test]
    fn errors_have_the_lines_of_the_candidate() {
        let error = |text| candidate(text).err().expect("wrong");
        assert_eq!(error("[[rule]]\nid = \"a\"\n"), "line 1: rule: unknown key; did you mean rules?");
        let unknown = error("\n[[rules]]\nid = \"a\"\nwhere = \"event.x\"\nmatch = true\n");
        assert!(unknown.starts_with("line 4: rules[0].where: column 7: unknown field x"), "{unknown}");
        let long = error("[[rules]]\nid = \"a\"\ncount = { at_least = 2, within = \"99d\" }\n");
        assert!(long.contains("state.ttl") && !long.contains("line"), "{long}");
    }
}

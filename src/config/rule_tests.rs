//! The part of a configuration that tests of rules need.
//!
//! ```text
//!   a whole configuration ─ without the sections that tests do not use ─┐
//!   [fields], [keys], [[rules]], [patterns] only ───────────────────────┴─ with a source and a name ─▶ Config
//! ```

use std::collections::BTreeMap;

use super::{Config, ConfigError, ConfigErrors, keys, sinks};
use crate::settings::environment::ENVIRONMENT;
use crate::settings::tree::{Item, Node};

/// The sections that decide nothing in a test of rules. They may need services, files or variables that are not there.
const UNUSED: [&str; 10] =
    ["source", "windows", "sinks", "routes", "ledger", "checkpoint", "dead_letters", "http", "otlp", "log"];

/// The name of a pipeline that has none.
const NAME: &str = "rules";

impl Config {
    /// Parses a configuration to test, list or compare its rules, or a file that has only fields, keys, rules and patterns. Source, sinks
    /// and other sections that have no effect on rules are not read: `headwater check` does that.
    ///
    /// # Errors
    /// Returns all errors of the sections that are read, and of unknown sections.
    pub fn parse_to_test_rules(
        text: &str,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, ConfigErrors> {
        Config::parse_completed(text, environment, complete, is_permitted)
    }
}

/// Removes the sections that are not used, and adds the name and the source that a configuration must have.
fn complete(tree: &mut Item) {
    let Node::Table(entries) = &mut tree.node else { return };
    remove_unused(entries, &[]);
    let kind = Item::of_default(Node::Text("generator".to_owned()));
    entries.insert(
        "source".to_owned(),
        Item::of_default(Node::Table(BTreeMap::from([("kind".to_owned(), kind)]))),
    );
    entries.entry("pipeline".to_owned()).or_insert_with(|| Item::of_default(Node::Text(NAME.to_owned())));
    keep_ttl(entries);
    if let Some(Item { node: Node::Array(lists), .. }) = entries.get_mut("lists") {
        lists.iter_mut().for_each(without_source);
    }
}

/// Replaces the source of a list, which a test does not read, by one that needs nothing.
fn without_source(list: &mut Item) {
    let Node::Table(entries) = &mut list.node else { return };
    let text = |text: &str| Item::of_default(Node::Text(text.to_owned()));
    let source = [("kind", text("file")), ("path", text("unused.csv"))];
    let source = source.map(|(key, value)| (key.to_owned(), value)).into();
    entries.insert("source".to_owned(), Item::of_default(Node::Table(source)));
}

/// Returns true for errors that have no meaning where rules are evaluated without the unused sections: there is no sink,
/// and variables that only those sections name are not known.
pub(super) fn is_permitted(error: &ConfigError) -> bool {
    error.message == sinks::no_sink() || error.key == ENVIRONMENT
}

/// Removes the sections that decide nothing in an evaluation of rules, except these.
pub(super) fn remove_unused(entries: &mut BTreeMap<String, Item>, except: &[&str]) {
    entries.retain(|name, _| !UNUSED.contains(&name.as_str()) || except.contains(&name.as_str()));
}

/// Removes the settings of the state store, except the time to live of keys.
pub(super) fn keep_ttl(entries: &mut BTreeMap<String, Item>) {
    if let Some(Item { node: Node::Table(state), .. }) = entries.get_mut("state") {
        state.retain(|key, _| key == "ttl" || keys::find(&format!("state.{key}")).is_none());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::rules::CONDITIONS;

    fn parse(text: &str) -> Result<Config, String> {
        let environment = [("HEADWATER_PASSWORD".to_owned(), "x".to_owned())];
        Config::parse_to_test_rules(text, environment.into_iter()).map_err(|errors| errors.to_string())
    }

    const RULE: &str = "[[rules]]\nid = \"a\"\nmatch = true\n";

    #[test]
    fn rules_alone_are_a_configuration() {
        let config = parse(RULE).expect("valid");
        assert_eq!((config.plan.rules.len(), &*config.plan.pipeline), (1, NAME));
        assert!(Config::parse_without_sinks(RULE, std::iter::empty()).is_err());
    }

    #[test]
    fn sections_that_tests_do_not_use_are_not_read() {
        let text = format!(
            "pipeline = \"p\"\n[source]\nkind = \"kafka\"\nbrokers = \"${{NOT_SET}}\"\n[sinks.x]\n[ledger]\n\
             [state]\nkind = \"redis\"\nurl_file = \"none\"\nttl = \"9d\"\n[time]\nmax_out_of_orderness = \"1m\"\n{RULE}"
        );
        let plan = parse(&text).expect("valid").plan;
        assert_eq!((&*plan.pipeline, plan.limits.ttl_ms), ("p", 9 * 86_400_000));
        assert_eq!(plan.time.max_out_of_orderness_ms, 60_000);
    }

    #[test]
    fn the_rules_of_the_documentation_are_valid() {
        let text = include_str!("../../docs/rules.md");
        let blocks = text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
        let mut conditions = BTreeSet::new();
        for block in blocks.filter(|block| block.starts_with("[[rules]]")) {
            let plan = parse(block).unwrap_or_else(|error| panic!("{error}\n{block}")).plan;
            conditions.extend(plan.rules.iter().map(|rule| rule.condition.name()));
        }
        assert_eq!(conditions, CONDITIONS.into(), "there is an example of each condition");
    }

    #[test]
    fn errors_name_the_line_of_the_file() {
        let error = parse("[[rule]]\nid = \"a\"\n").expect_err("an unknown section");
        assert_eq!(error, "line 1: rule: unknown key; did you mean rules?");
        let error = parse(&format!("\n{RULE}where = \"event.x\"\n")).expect_err("an unknown field");
        assert!(error.starts_with("line 5: rules[0].where: column 7: unknown field x"), "{error}");
    }
}

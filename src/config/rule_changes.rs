//! The rules of a configuration with all their settings, and the differences between the rules of two configurations.
//!
//! ```text
//!   effective keys ─▶ rules by id ─┐
//!   effective keys ─▶ rules by id ─┴▶ added, removed, changed: each with what becomes of its state
//! ```

use std::collections::BTreeMap;

use super::Config;
use super::change::stateful_section;
use crate::pipeline::{RulePlan, keeps_state};

/// A rule of the user's own, or a pattern, with all its effective settings.
struct Settings<'a> {
    /// The rule; None for a pattern, whose state is identified by its section.
    own: Option<&'a RulePlan>,
    /// The values as TOML, by key.
    values: BTreeMap<&'a str, &'a str>,
}

/// The differences between the rules of two configurations. Rules are identified by their ids, not by their places.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RuleDifferences {
    /// The ids of the rules that only the second configuration has.
    pub added: Vec<String>,
    /// The rules that only the first configuration has.
    pub removed: Vec<RemovedRule>,
    /// The rules that both have, with different settings.
    pub changed: Vec<ChangedRule>,
    /// The number of rules that both have with the same settings.
    pub unchanged: usize,
}

/// A rule that only the first configuration has.
#[derive(Debug, PartialEq, Eq)]
pub struct RemovedRule {
    /// The id.
    pub id: String,
    /// The argument of `--discard-state` without which a start refuses the change; None if it needs none.
    pub discard_state: Option<String>,
}

/// A rule whose settings differ.
#[derive(Debug, PartialEq, Eq)]
pub struct ChangedRule {
    /// The id.
    pub id: String,
    /// The settings that differ.
    pub settings: Vec<ChangedSetting>,
    /// True if the rule goes on with its state; false if it starts without state.
    pub keeps_state: bool,
    /// The argument of `--discard-state` without which a start refuses the change; None if it needs none.
    pub discard_state: Option<String>,
}

/// A setting that differs. The values are TOML; None if the setting is not set.
#[derive(Debug, PartialEq, Eq)]
pub struct ChangedSetting {
    /// The key, without the section of the rule.
    pub key: String,
    /// The value of the first configuration.
    pub before: Option<String>,
    /// The value of the second configuration.
    pub now: Option<String>,
}

impl Config {
    /// Returns the differences between the rules of a configuration and of a changed one.
    pub fn rule_differences(&self, changed: &Config) -> RuleDifferences {
        let (before, mut now) = (self.rules_by_id(), changed.rules_by_id());
        let mut differences = RuleDifferences::default();
        for (id, before) in before {
            // A pattern and a rule with the same id have nothing else in common.
            let same = now.remove(&id);
            let Some(now) = same else {
                let discard_state = before.own.is_none().then(|| section(id.1));
                differences.removed.push(RemovedRule { id: id.1.to_owned(), discard_state });
                continue;
            };
            match compare(id.1, &before, &now) {
                Some(changed) => differences.changed.push(changed),
                None => differences.unchanged += 1,
            }
        }
        differences.added = now.into_keys().map(|(_, id)| id.to_owned()).collect();
        differences
    }

    /// Returns the settings of all rules, by whether the rule is the user's own, and by id.
    fn rules_by_id(&self) -> BTreeMap<(bool, &str), Settings<'_>> {
        let mut rules: BTreeMap<(bool, &str), Settings<'_>> = BTreeMap::new();
        for pattern in self.plan.patterns.names() {
            rules.insert((false, pattern), Settings { own: None, values: BTreeMap::new() });
        }
        for rule in &self.plan.rules {
            let settings = Settings { own: Some(rule), values: BTreeMap::new() };
            rules.insert((true, &rule.id), settings);
        }
        for (key, value) in &self.effective {
            let found = match key.strip_prefix("patterns.").and_then(|key| key.split_once('.')) {
                Some((pattern, key)) => Some(((false, pattern), key)),
                None => key.strip_prefix("rules[").and_then(|key| {
                    let (index, key) = key.split_once("].")?;
                    let rule = self.plan.rules.get(index.parse::<usize>().ok()?)?;
                    Some(((true, &*rule.id), key))
                }),
            };
            if let Some((id, key)) = found
                && let Some(rule) = rules.get_mut(&id)
            {
                rule.values.insert(key, value);
            }
        }
        rules
    }
}

/// Returns the section of a pattern.
fn section(pattern: &str) -> String {
    format!("patterns.{pattern}")
}

/// Compares the settings of a rule; returns None if they are equal.
fn compare(id: &str, before: &Settings<'_>, now: &Settings<'_>) -> Option<ChangedRule> {
    let keys: std::collections::BTreeSet<_> = before.values.keys().chain(now.values.keys()).collect();
    let differs = |key: &&str| before.values.get(key) != now.values.get(key);
    let settings = keys.into_iter().filter(|key| differs(key)).map(|&key| ChangedSetting {
        key: key.to_owned(),
        before: before.values.get(key).map(|&value| value.to_owned()),
        now: now.values.get(key).map(|&value| value.to_owned()),
    });
    let settings: Vec<_> = settings.collect();
    if settings.is_empty() {
        return None;
    }
    let (keeps_state, discard_state) = match before.own {
        Some(before) => (now.own.is_some_and(|now| keeps_state(now, before)), None),
        None => {
            let section = section(id);
            let is_stateful =
                |changed: &ChangedSetting| stateful_section(&format!("{section}.{}", changed.key)).is_some();
            let is_discarded = settings.iter().any(is_stateful);
            (!is_discarded, is_discarded.then_some(section))
        }
    };
    Some(ChangedRule { id: id.to_owned(), settings, keeps_state, discard_state })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(rules: &str) -> Config {
        Config::parse_to_test_rules(rules, std::iter::empty()).expect("valid")
    }

    const A: &str = "[[rules]]\nid = \"a\"\noutlier = { of = \"amount\" }\n";
    const B: &str = "[[rules]]\nid = \"b\"\nmatch = true\n";
    const PATTERNS: &str = "[patterns.velocity_spike]\n[patterns.amount_anomaly]\n";

    fn setting(key: &str, before: Option<&str>, now: Option<&str>) -> ChangedSetting {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        ChangedSetting { key: key.to_owned(), before: owned(before), now: owned(now) }
    }

    #[test]
    fn order_is_no_difference() {
        let (before, now) = (config(&format!("{A}{B}{PATTERNS}")), config(&format!("{B}{A}{PATTERNS}")));
        assert_eq!(before.rule_differences(&now), RuleDifferences { unchanged: 4, ..Default::default() });
    }

    #[test]
    fn added_and_removed_rules_are_found_by_id() {
        let differences = config(&format!("{A}{PATTERNS}")).rule_differences(&config(B));
        assert_eq!(differences.added, ["b"]);
        let removed: Vec<_> =
            differences.removed.iter().map(|rule| (&*rule.id, rule.discard_state.as_deref())).collect();
        assert_eq!(
            removed,
            [
                ("amount_anomaly", Some("patterns.amount_anomaly")),
                ("velocity_spike", Some("patterns.velocity_spike")),
                ("a", None),
            ]
        );
        let own = B.replace("\"b\"", "\"velocity_spike\"");
        let replaced = config("[patterns.velocity_spike]\n").rule_differences(&config(&own));
        assert_eq!((replaced.added.len(), replaced.removed.len(), replaced.changed.len()), (1, 1, 0));
    }

    #[test]
    fn labels_and_bounds_keep_state_and_filters_do_not() {
        let changed = |before: &str, now: &str| config(before).rule_differences(&config(now)).changed;
        let labels =
            format!("{A}severity = \"low\"\nsuppress = \"1h\"\n").replace(" }", ", high_sigmas = 6.0 }");
        assert_eq!(
            changed(A, &labels),
            [ChangedRule {
                id: "a".to_owned(),
                settings: vec![
                    setting("outlier.high_sigmas", None, Some("6.0")),
                    setting("severity", Some("\"medium\""), Some("\"low\"")),
                    setting("suppress", None, Some("\"1h\"")),
                ],
                keeps_state: true,
                discard_state: None,
            }]
        );
        let other = changed(A, &A.replace(" }", ", at_least = 9 }"));
        assert_eq!(other[0].settings, [setting("outlier.at_least", Some("30"), Some("9"))]);
        assert!(other[0].keeps_state && other[0].discard_state.is_none());
        for now in [
            A.replace("\"amount\"", "\"event.amount * 2.0\""),
            format!("{A}where = \"event.amount > 1.0\"\n"),
            format!("{A}by = \"user\"\n"),
            "[[rules]]\nid = \"a\"\nmatch = true\n".to_owned(),
        ] {
            assert!(!changed(A, &now)[0].keeps_state, "{now}");
        }
        let absence =
            |within: &str| format!("[[rules]]\nid = \"a\"\nabsence = {{ within = \"{within}\" }}\n");
        assert!(!changed(&absence("1m"), &absence("2m"))[0].keeps_state, "what waits has its time");
    }

    #[test]
    fn patterns_need_permission_where_their_state_does_not_fit() {
        for (line, discard_state) in [
            ("severity = \"low\"", None),
            ("emit = \"final\"", Some("patterns.velocity_spike")),
            ("within = \"2h\"", Some("patterns.velocity_spike")),
        ] {
            let now = config(&format!("[patterns.velocity_spike]\n{line}\n"));
            let [changed] = &config("[patterns.velocity_spike]\n").rule_differences(&now).changed[..] else {
                panic!("one change: {line}")
            };
            assert_eq!(changed.discard_state.as_deref(), discard_state, "{line}");
            assert_eq!(changed.keeps_state, discard_state.is_none(), "{line}");
        }
    }
}

//! Comparison of a pipeline's previous and current configuration: the changes, and the state that they invalidate.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use super::ledger::STRICT_FIELDS;
use crate::pipeline::ConfigChange;

/// The settings that a pipeline's results depend on, by key: see [`Config::semantics`](super::Config::semantics).
/// Windows and rules are identified by their names, not by their indexes.
type Semantics<'a> = BTreeMap<String, &'a str>;

/// The beginnings of the keys that, like the decoder version, change how records are decoded, not which records are read.
const DECODING: [&str; 4] = [STRICT_FIELDS, "source.schema", "source.avro.", "source.protobuf."];

/// A change of the configuration with which a pipeline cannot resume, even after a stop.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum IncompatibleChange {
    /// The input differs.
    #[error(
        "the pipeline began with {before} and is now configured with {now}: its input cannot change; give it another \
         name, or restore the configuration"
    )]
    Input {
        /// The previous setting.
        before: String,
        /// The current setting.
        now: String,
    },
    /// The state of a window or pattern does not fit its settings.
    #[error(
        "the pipeline was configured with {before} and is now configured with {now}: the state of {section} does not fit; \
         `--discard-state {section}` discards it, or restore the configuration"
    )]
    State {
        /// The section that the state belongs to, as an argument of `--discard-state`.
        section: String,
        /// The previous setting.
        before: String,
        /// The current setting.
        now: String,
    },
}

/// Compares two sets of settings; returns None if they are equal. Each section whose state must be discarded has to be
/// in `permitted`.
///
/// # Errors
/// If a pipeline cannot resume with the change.
pub fn changes(
    before: &str,
    now: &str,
    permitted: &BTreeSet<String>,
) -> Result<Option<ConfigChange>, IncompatibleChange> {
    let (before, now) = (parse_semantics(before), parse_semantics(now));
    let keys: BTreeSet<_> = before.keys().chain(now.keys()).collect();
    let mut changes: Option<ConfigChange> = None;
    for key in keys.into_iter().filter(|&key| before.get(key) != now.get(key)) {
        let describe = |semantics: &Semantics<'_>| match semantics.get(key) {
            Some(value) => format!("`{key} = {value}`"),
            None => format!("no `{key}`"),
        };
        let (was, is) = (describe(&before), describe(&now));
        if key.starts_with("source.") && !DECODING.iter().any(|prefix| key.starts_with(prefix)) {
            return Err(IncompatibleChange::Input { before: was, now: is });
        }
        let changes = changes.get_or_insert_with(|| ConfigChange {
            reason: format!("the pipeline was configured with {was} and is now configured with {is}"),
            discarded: BTreeSet::new(),
        });
        if let Some(section) = stateful_section(key).filter(|section| has_section(&before, section)) {
            let group = section.split('.').next().unwrap_or_default();
            if !permitted.contains(section) && !permitted.contains(group) {
                return Err(IncompatibleChange::State { section: section.to_owned(), before: was, now: is });
            }
            changes.discarded.insert(section.to_owned());
        }
        if let Some(space) = redefined_space(key, &before, &now) {
            changes.discarded.extend([format!("keys.{space}"), format!("rules.{space}")]);
            for section in windows_by(space, &now).filter(|section| has_section(&before, section)) {
                if !permitted.contains(section) && !permitted.contains("windows") {
                    let section = section.to_owned();
                    return Err(IncompatibleChange::State { section, before: was, now: is });
                }
                changes.discarded.insert(section.to_owned());
            }
        }
    }
    Ok(changes)
}

/// The key under which a pipeline's settings have the text of the rules that were in force when they were recorded.
const RULES_IN_FORCE: &str = "rules_in_force = ";

/// The rules that a pipeline's settings were recorded with.
pub enum RecordedRules<'a> {
    /// Their text.
    Text(&'a str),
    /// Their ids: settings that were recorded before rules could change while a run goes on.
    Ids(Vec<&'a str>),
}

/// Returns the settings of a pipeline together with the text of its rules, which has one line.
pub fn with_recorded_rules(semantics: &str, rules: &str) -> String {
    format!("{semantics}{RULES_IN_FORCE}{rules}\n")
}

/// Returns the rules that a pipeline's settings were recorded with.
pub fn recorded_rules(semantics: &str) -> RecordedRules<'_> {
    if let Some(text) = semantics.lines().find_map(|line| line.strip_prefix(RULES_IN_FORCE)) {
        return RecordedRules::Text(text);
    }
    let ids = semantics.lines().filter_map(|line| {
        let (key, value) = line.split_once(" = ")?;
        (key.starts_with("rules[") && key.ends_with("].id")).then(|| value.trim_matches('"'))
    });
    RecordedRules::Ids(ids.collect())
}

/// Returns the key space that a setting defines, if it had another definition before: the state of its keys belongs to
/// other events. That of rules is discarded without a permission, as if the space were removed and added.
fn redefined_space<'a>(key: &'a str, before: &Semantics<'_>, now: &Semantics<'_>) -> Option<&'a str> {
    let space = key.strip_prefix("keys.")?;
    (before.contains_key(key) && now.contains_key(key)).then_some(space)
}

/// Returns the sections of the windows that group by a key space.
fn windows_by<'a>(space: &str, semantics: &'a Semantics<'_>) -> impl Iterator<Item = &'a str> {
    let by = format!("{space:?}");
    semantics.iter().filter_map(move |(key, value)| {
        let section = key.strip_suffix(".by").filter(|section| section.starts_with("windows."))?;
        (*value == by).then_some(section)
    })
}

/// Returns true if the section exists.
fn has_section(semantics: &Semantics<'_>, section: &str) -> bool {
    semantics.keys().any(|key| key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.')))
}

/// Returns the section whose state depends on a key, if there is one. The state of `amount_anomaly`, sums of amounts,
/// does not depend on `min_relative_sigma`; pipelines that were started before this key existed did not have it.
pub(super) fn stateful_section(key: &str) -> Option<&str> {
    // These keys change only how alerts are decided or labelled from the same state.
    if [".severity", ".high_sigmas", ".min_relative_sigma"].iter().any(|free| key.ends_with(free)) {
        return None;
    }
    let (section, _) = key.rsplit_once('.')?;
    (section.starts_with("windows.") || section.starts_with("patterns.")).then_some(section)
}

fn parse_semantics(text: &str) -> Semantics<'_> {
    // Rules of the user's own change by themselves: see `recorded_rules`.
    let is_of_rules = |line: &&str| line.starts_with("rules[") || line.starts_with(RULES_IN_FORCE);
    let lines: Vec<_> =
        text.lines().filter(|line| !is_of_rules(line)).filter_map(|line| line.split_once(" = ")).collect();
    let names: BTreeMap<_, _> = lines
        .iter()
        .filter_map(|(key, value)| {
            let index = key.strip_suffix(".name").or_else(|| key.strip_suffix(".id"))?;
            Some((index, value.trim_matches('"')))
        })
        .collect();
    let by_name = |key: &str| {
        let (index, field) = key.split_once(']').unwrap_or((key, ""));
        match names.get(format!("{index}]").as_str()) {
            Some(name) => {
                let section = index.split('[').next().unwrap_or_default();
                format!("{section}.{name}{field}")
            }
            None => key.to_owned(),
        }
    };
    lines.iter().map(|(key, value)| (by_name(key), *value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const BASE: &str = "pipeline = \"p\"\n[source]\nkind = \"generator\"\n[sinks.sqlite]\npath = \"a.db\"\n";
    const FLOW: &str = "[[windows]]\nname = \"w\"\nkind = \"tumbling\"\nsize = \"1m\"\n\
        [[windows]]\nname = \"v\"\nkind = \"session\"\ngap = \"1m\"\n[patterns.velocity_spike]\n";

    fn changed(before: &str, now: &str, permitted: &[&str]) -> Result<Option<Vec<String>>, String> {
        let semantics = |flow: &str| {
            Config::parse(&format!("{BASE}{flow}"), std::iter::empty()).expect("valid").semantics()
        };
        let permitted = permitted.iter().map(|&section| section.to_owned()).collect();
        changes(&semantics(before), &semantics(now), &permitted)
            .map(|changes| changes.map(|changes| changes.discarded.into_iter().collect()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn only_affected_state_is_discarded_and_only_with_permission() {
        let (w, v) = FLOW.split_at(FLOW[1..].find("[[").expect("two windows") + 1);
        let (v, velocity) = v.split_at(v.find("[patterns").expect("a pattern"));
        assert_eq!(changed(FLOW, FLOW, &["windows.w"]), Ok(None));
        assert_eq!(
            changed(FLOW, &format!("{v}{w}{velocity}"), &[]),
            Ok(None),
            "the order of windows does not matter"
        );
        let compatible = [
            format!("{FLOW}severity = \"low\"\n"),
            format!("{FLOW}[time]\nmax_out_of_orderness = \"6s\"\n"),
            format!("{FLOW}[state]\nttl = \"40d\"\n"),
            format!("{FLOW}[patterns.rapid_fire_burst]\n"),
            format!("[[windows]]\nname = \"new\"\nkind = \"tumbling\"\nsize = \"1m\"\n{FLOW}"),
        ];
        for now in &compatible {
            assert_eq!(changed(FLOW, now, &[]), Ok(Some(vec![])), "{now}");
        }
        for (now, section) in [
            (FLOW.replace("size = \"1m\"", "size = \"2m\""), "windows.w"),
            (format!("{w}{velocity}"), "windows.v"),
            (format!("{FLOW}more_than = 7\n"), "patterns.velocity_spike"),
            (format!("{w}{v}"), "patterns.velocity_spike"),
        ] {
            let refused = changed(FLOW, &now, &["windows.other"]).expect_err(section);
            assert!(refused.contains(&format!("`--discard-state {section}` discards it")), "{refused}");
            let permitted = changed(FLOW, &now, &[section, "windows.other"]);
            assert_eq!(permitted, Ok(Some(vec![section.to_owned()])), "only this section");
        }
    }

    /// Keys of another definition have nothing to do with those of the same text before.
    #[test]
    fn a_redefined_key_discards_its_state() {
        let keys = "[keys]\nshop = \"merchant_id\"\nother = \"currency\"\n";
        let rule = "[[rules]]\nid = \"r\"\nby = \"shop\"\nmatch = true\n";
        let window = "[[windows]]\nname = \"w\"\nby = \"shop\"\nkind = \"tumbling\"\nsize = \"1m\"\n";
        let redefined = keys.replace("merchant_id", "ip_address");
        let of_space = vec!["keys.shop".to_owned(), "rules.shop".to_owned()];
        assert_eq!(
            changed(&format!("{keys}{rule}"), &format!("{redefined}{rule}"), &[]),
            Ok(Some(of_space.clone()))
        );
        let added = keys.replace("[keys]\n", "[keys]\nnew = [\"currency\", \"merchant_id\"]\n");
        for now in [added.as_str(), "[keys]\nshop = \"merchant_id\"\n"] {
            assert_eq!(changed(&format!("{keys}{rule}"), &format!("{now}{rule}"), &[]), Ok(Some(vec![])));
        }
        let (before, now) = (format!("{keys}{rule}{window}"), format!("{redefined}{rule}{window}"));
        let refused = changed(&before, &now, &[]).expect_err("a window needs a permission");
        assert!(refused.contains("`--discard-state windows.w` discards it"), "{refused}");
        let permitted = changed(&before, &now, &["windows.w"]);
        assert_eq!(permitted, Ok(Some([of_space, vec!["windows.w".to_owned()]].concat())));
    }

    /// A pipeline that was started before `min_relative_sigma` existed has not recorded it.
    #[test]
    fn min_relative_sigma_can_change_without_a_reset() {
        let semantics = |flow: &str| {
            Config::parse(&format!("{BASE}{flow}"), std::iter::empty()).expect("valid").semantics()
        };
        let now = semantics("[patterns.amount_anomaly]\n");
        let floor = "patterns.amount_anomaly.min_relative_sigma = 0.01\n";
        assert!(now.contains(floor), "{now}");
        let change = changes(&now.replace(floor, ""), &now, &BTreeSet::new()).expect("permitted");
        let change = change.expect("a change");
        assert_eq!(
            change.reason,
            "the pipeline was configured with no `patterns.amount_anomaly.min_relative_sigma` and is now configured with \
             `patterns.amount_anomaly.min_relative_sigma = 0.01`"
        );
        assert!(change.discarded.is_empty());
    }

    /// Rules change by themselves, also those that earlier versions recorded here.
    #[test]
    fn rules_are_no_part_of_the_settings() {
        let rule = "[[rules]]\nid = \"r\"\nmatch = true\n";
        assert_eq!(changed(rule, "", &[]), Ok(None));
        let semantics = Config::parse(BASE, std::iter::empty()).expect("valid").semantics();
        let earlier = format!("{semantics}rules[0].id = \"a\"\nrules[0].match = true\nrules[1].id = \"b\"\n");
        let recorded = with_recorded_rules(&semantics, "{\"version\":1}");
        for before in [&earlier, &recorded] {
            assert_eq!(changes(before, &semantics, &BTreeSet::new()), Ok(None));
        }
        assert!(matches!(recorded_rules(&earlier), RecordedRules::Ids(ids) if ids == ["a", "b"]));
        assert!(matches!(recorded_rules(&recorded), RecordedRules::Text("{\"version\":1}")));
    }

    #[test]
    fn strict_fields_is_recorded_and_can_change_without_a_reset() {
        let semantics = |base: &str| Config::parse(base, std::iter::empty()).expect("valid").semantics();
        let strict = BASE.replace("\"generator\"\n", "\"generator\"\nstrict_fields = true\n");
        let lenient = strict.replace("true", "false");
        assert_eq!(semantics(BASE), semantics(&lenient), "the default is not recorded");
        let none = BTreeSet::new();
        for (before, now, expected) in [
            (semantics(BASE), semantics(&strict), "now configured with `source.strict_fields = true`"),
            (semantics(&strict), semantics(BASE), "now configured with no `source.strict_fields`"),
            (
                semantics(BASE).replace("decoder = 2", "decoder = 1"),
                semantics(BASE),
                "was configured with `decoder = 1`",
            ),
        ] {
            let change = changes(&before, &now, &none).expect("permitted").expect("a change");
            assert!(change.reason.contains(expected), "{}", change.reason);
            assert!(change.discarded.is_empty());
        }
    }

    #[test]
    fn the_input_cannot_change() {
        let all = ["windows.w", "windows.v", "patterns.velocity_spike"];
        let semantics = |base: &str| Config::parse(base, std::iter::empty()).expect("valid").semantics();
        let other = BASE.replace("\"generator\"\n", "\"generator\"\nseed = 2\n");
        let permitted = all.iter().map(|&section| section.to_owned()).collect();
        let refused =
            changes(&semantics(BASE), &semantics(&other), &permitted).expect_err("another input").to_string();
        assert!(
            refused.starts_with(
                "the pipeline began with `source.seed = 1` and is now configured with `source.seed = 2`"
            ),
            "{refused}"
        );
    }
}

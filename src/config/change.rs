//! A configuration that is not the one that a pipeline has had: what has changed, and what has to be forgotten for it.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use super::ledger::STRICT_FIELDS;
use crate::runtime::ConfigChange;

/// What decides a pipeline's answers, by key: see [`Config::semantics`](super::Config::meaning). Windows go by their
/// names, not by their places.
type Semantics<'a> = BTreeMap<String, &'a str>;

/// Why a pipeline cannot go on with a configuration, whatever it has finished.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Unchangeable {
    /// What was read is not what would be.
    #[error(
        "the pipeline began with {before} and is configured with {now}: its input cannot change; give it another \
         name, or restore the configuration"
    )]
    Input {
        /// As it was.
        before: String,
        /// As it is.
        now: String,
    },
    /// What is remembered does not fit.
    #[error(
        "the pipeline has had {before} and is configured with {now}: what {section} remembers does not fit; \
         `--reset {section}` forgets it, or restore the configuration"
    )]
    State {
        /// What remembers it, as `--reset` has it.
        section: String,
        /// As it was.
        before: String,
        /// As it is.
        now: String,
    },
}

/// What has changed between two meanings; none if nothing has. What has to be forgotten must be among `permitted`.
///
/// # Errors
/// If the change is not one that a pipeline can go on with.
pub fn changes(
    before: &str,
    now: &str,
    permitted: &BTreeSet<String>,
) -> Result<Option<ConfigChange>, Unchangeable> {
    let (before, now) = (semantics(before), semantics(now));
    let keys: BTreeSet<_> = before.keys().chain(now.keys()).collect();
    let mut changes: Option<ConfigChange> = None;
    for key in keys.into_iter().filter(|&key| before.get(key) != now.get(key)) {
        let say = |semantics: &Semantics<'_>| match semantics.get(key) {
            Some(value) => format!("`{key} = {value}`"),
            None => format!("no `{key}`"),
        };
        let (was, is) = (say(&before), say(&now));
        // Like the decoder, it says how records are read, not which.
        if key.starts_with("source.") && key != STRICT_FIELDS {
            return Err(Unchangeable::Input { before: was, now: is });
        }
        let changes = changes.get_or_insert_with(|| ConfigChange {
            because: format!("the pipeline has had {was} and is configured with {is}"),
            forget: BTreeSet::new(),
        });
        if let Some(section) = remembering(key).filter(|section| has(&before, section)) {
            let whole = section.split('.').next().unwrap_or_default();
            if !permitted.contains(section) && !permitted.contains(whole) {
                return Err(Unchangeable::State { section: section.to_owned(), before: was, now: is });
            }
            changes.forget.insert(section.to_owned());
        }
    }
    Ok(changes)
}

/// Whether a section was there.
fn has(semantics: &Semantics<'_>, section: &str) -> bool {
    semantics.keys().any(|key| key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.')))
}

/// Whose state depends on a key, if any does. What `amount_anomaly` remembers, sums of amounts, is the same under any
/// `min_relative_sigma`, which pipelines that began before there was such a key did not have.
fn remembering(key: &str) -> Option<&str> {
    // The others only say how an answer is worded.
    if [".severity", ".high_sigmas", ".min_relative_sigma"].iter().any(|free| key.ends_with(free)) {
        return None;
    }
    let (section, _) = key.rsplit_once('.')?;
    (section.starts_with("windows.") || section.starts_with("patterns.")).then_some(section)
}

fn semantics(text: &str) -> Semantics<'_> {
    let lines: Vec<_> = text.lines().filter_map(|line| line.split_once(" = ")).collect();
    let names: BTreeMap<_, _> = lines
        .iter()
        .filter_map(|(key, value)| Some((key.strip_suffix(".name")?, value.trim_matches('"'))))
        .collect();
    let named = |key: &str| {
        let (place, field) = key.split_once("].").map_or((key, ""), |(place, field)| (place, field));
        match names.get(format!("{place}]").as_str()) {
            Some(name) => format!("windows.{name}.{field}"),
            None => key.to_owned(),
        }
    };
    lines.iter().map(|(key, value)| (named(key), *value)).collect()
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
            .map(|changes| changes.map(|changes| changes.forget.into_iter().collect()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn only_what_remembers_by_other_numbers_has_to_forget_and_only_if_it_may() {
        let (w, v) = FLOW.split_at(FLOW[1..].find("[[").expect("two windows") + 1);
        let (v, velocity) = v.split_at(v.find("[patterns").expect("a pattern"));
        assert_eq!(changed(FLOW, FLOW, &["windows.w"]), Ok(None));
        assert_eq!(changed(FLOW, &format!("{v}{w}{velocity}"), &[]), Ok(None), "the order means nothing");
        let free = [
            format!("{FLOW}severity = \"low\"\n"),
            format!("{FLOW}[time]\nmax_out_of_orderness = \"6s\"\n"),
            format!("{FLOW}[state]\nttl = \"40d\"\n"),
            format!("{FLOW}[patterns.rapid_fire_burst]\n"),
            format!("[[windows]]\nname = \"new\"\nkind = \"tumbling\"\nsize = \"1m\"\n{FLOW}"),
        ];
        for now in &free {
            assert_eq!(changed(FLOW, now, &[]), Ok(Some(vec![])), "{now}");
        }
        for (now, section) in [
            (FLOW.replace("size = \"1m\"", "size = \"2m\""), "windows.w"),
            (format!("{w}{velocity}"), "windows.v"),
            (format!("{FLOW}more_than = 7\n"), "patterns.velocity_spike"),
            (format!("{w}{v}"), "patterns.velocity_spike"),
        ] {
            let refused = changed(FLOW, &now, &["windows.other"]).expect_err(section);
            assert!(refused.contains(&format!("`--reset {section}` forgets it")), "{refused}");
            let permitted = changed(FLOW, &now, &[section, "windows.other"]);
            assert_eq!(permitted, Ok(Some(vec![section.to_owned()])), "and nothing else");
        }
    }

    /// As a pipeline has recorded it that began when the deviation of amounts had no floor.
    #[test]
    fn a_floor_of_the_deviation_needs_a_stop_but_no_reset() {
        let semantics = |flow: &str| {
            Config::parse(&format!("{BASE}{flow}"), std::iter::empty()).expect("valid").semantics()
        };
        let now = semantics("[patterns.amount_anomaly]\n");
        let floor = "patterns.amount_anomaly.min_relative_sigma = 0.01\n";
        assert!(now.contains(floor), "{now}");
        let change = changes(&now.replace(floor, ""), &now, &BTreeSet::new()).expect("permitted");
        let change = change.expect("a change");
        assert_eq!(
            change.because,
            "the pipeline has had no `patterns.amount_anomaly.min_relative_sigma` and is configured with \
             `patterns.amount_anomaly.min_relative_sigma = 0.01`"
        );
        assert!(change.forget.is_empty());
    }

    #[test]
    fn a_stricter_decoder_is_recorded_and_needs_a_stop_but_no_reset() {
        let semantics = |base: &str| Config::parse(base, std::iter::empty()).expect("valid").semantics();
        let strict = BASE.replace("\"generator\"\n", "\"generator\"\nstrict_fields = true\n");
        let lenient = strict.replace("true", "false");
        assert_eq!(semantics(BASE), semantics(&lenient), "the default is not recorded");
        let none = BTreeSet::new();
        for (before, now, said) in [
            (semantics(BASE), semantics(&strict), "configured with `source.strict_fields = true`"),
            (semantics(&strict), semantics(BASE), "configured with no `source.strict_fields`"),
            (semantics(BASE).replace("decoder = 2", "decoder = 1"), semantics(BASE), "has had `decoder = 1`"),
        ] {
            let change = changes(&before, &now, &none).expect("permitted").expect("a change");
            assert!(change.because.contains(said), "{}", change.because);
            assert!(change.forget.is_empty());
        }
    }

    #[test]
    fn an_input_does_not_change() {
        let all = ["windows.w", "windows.v", "patterns.velocity_spike"];
        let semantics = |base: &str| Config::parse(base, std::iter::empty()).expect("valid").semantics();
        let other = BASE.replace("\"generator\"\n", "\"generator\"\nseed = 2\n");
        let permitted = all.iter().map(|&section| section.to_owned()).collect();
        let refused =
            changes(&semantics(BASE), &semantics(&other), &permitted).expect_err("another input").to_string();
        assert!(
            refused.starts_with(
                "the pipeline began with `source.seed = 1` and is configured with `source.seed = 2`"
            ),
            "{refused}"
        );
    }
}

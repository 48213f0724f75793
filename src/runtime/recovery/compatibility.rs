//! Starts with another configuration or another program version than those that created the state: nothing may need a
//! replay, and state that does not fit is discarded, if that is permitted by name.

use std::collections::BTreeSet;

use headwater_dataflows::{Record, SHARDS, ShardId};
use thiserror::Error;

use crate::coordination::{Manifest, Operator, PartKind, PartName, Resume, chain};
use crate::pipeline::{self, ConfigChange, ENRICH, OWN_RULES, REFUSED, RULES, SPACE, WINDOW};
use crate::runtime::checkpoint::writer::{WriterId, merge, put, read};
use crate::runtime::failure::RunError;
use crate::state::StateStore;
use crate::state::part::Content;

/// The reason why a start cannot resume after a change.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum IncompatibleState {
    /// Epochs would have to be replayed, with other results.
    #[error(
        "{reason}, and not every epoch through {durable} is in a checkpoint and in every sink, so a replay would give \
         other results: undo the change, start once, stop with SIGTERM (with [checkpoint]), and repeat the change; \
         or `--discard-state all:{durable}` discards all state and replays nothing: open windows and pattern state are lost, as \
         are results that a sink has not committed"
    )]
    Unfinished {
        /// The change.
        reason: String,
        /// The last epoch of the ledger.
        durable: headwater_dataflows::Epoch,
    },
    /// The state of an operator does not fit, and its discarding is not permitted.
    #[error("operator {operator:?}: {reason}; `--discard-state {section}` discards its state")]
    Operator {
        /// The operator's name.
        operator: String,
        /// The mismatch.
        reason: String,
        /// The section to be permitted with `--discard-state`.
        section: String,
    },
    /// The state of an operator does not fit, and the pipeline cannot run without it.
    #[error(
        "operator {operator:?}: {reason}; run the program that wrote the checkpoint, or discard all state: \
         `--discard-state all:EPOCH`, where EPOCH is the last recorded epoch, which `headwater status` prints"
    )]
    Core {
        /// The operator's name.
        operator: String,
        /// The mismatch.
        reason: String,
    },
}

/// Returns true if `section` is a valid argument of `--discard-state`.
pub fn is_discardable(section: &str) -> bool {
    match section.split_once('.') {
        Some(("windows" | "keys" | "rules", name)) => !name.is_empty(),
        Some(("patterns", name)) => pipeline::patterns().any(|pattern| pattern == name),
        _ => ["patterns", "enrichment"].contains(&section),
    }
}

/// Returns the configuration section of an operator's state; None if the state cannot be discarded.
fn section(operator: &str) -> Option<String> {
    let space = operator.strip_prefix(SPACE).map(|space| space.strip_suffix(": ids").unwrap_or(space));
    match operator.strip_prefix(WINDOW) {
        Some(name) => Some(format!("windows.{name}")),
        None if space.is_some() => space.map(|space| format!("keys.{space}")),
        None if operator.starts_with(OWN_RULES) => {
            operator.strip_prefix(OWN_RULES).map(|space| format!("rules.{space}"))
        }
        None if operator == RULES => Some("patterns".into()),
        None if operator == ENRICH => Some("enrichment".into()),
        None => None,
    }
}

/// Returns the change that the ledger must record to resume from a checkpoint of the operators `before` with the
/// operators `now`. It includes the `changes` of the configuration. None if nothing has changed.
///
/// # Errors
/// If an operator does not fit its state, and its section is not `permitted`.
pub fn config_change(
    changes: Option<&ConfigChange>,
    before: &[Operator],
    now: &[Operator],
    permitted: &BTreeSet<String>,
) -> Result<Option<ConfigChange>, IncompatibleState> {
    let mut config_change = changes.cloned();
    // Nobody reads the state of a key space or of rules that are no longer configured.
    let is_gone = |operator: &&Operator| {
        let name = &operator.name;
        let of_rules = name.starts_with(SPACE) || name.starts_with(OWN_RULES);
        of_rules && now.iter().all(|now| now.name != *name)
    };
    for operator in before.iter().filter(is_gone) {
        let change = config_change.get_or_insert_with(|| ConfigChange {
            reason: format!("operator {:?} is no longer configured", operator.name),
            ..ConfigChange::default()
        });
        change.discarded.extend(section(&operator.name));
    }
    for (operator, reason) in incompatible_operators(before, now) {
        let Some(section) = section(operator) else {
            return Err(IncompatibleState::Core { operator: operator.to_owned(), reason });
        };
        let config_change = config_change.get_or_insert_with(|| ConfigChange {
            reason: format!("operator {operator:?} has changed"),
            ..ConfigChange::default()
        });
        if !permitted.contains(&section) {
            return Err(IncompatibleState::Operator { operator: operator.to_owned(), reason, section });
        }
        config_change.discarded.insert(section);
    }
    Ok(config_change)
}

/// The prefix under which checkpoints recorded each rule of the user's own, before they recorded the rules in force.
const EARLIER_RULE: &str = "Rule: ";

/// Returns true if an operator exists or not as the configuration says: that of a window, of a key space, or of rules of
/// the user's own; or if it stands for such a rule.
fn is_configured(operator: &str) -> bool {
    // Earlier programs did not keep the positions of refused events.
    operator == REFUSED
        || [WINDOW, SPACE, OWN_RULES, EARLIER_RULE].iter().any(|prefix| operator.starts_with(prefix))
}

/// Returns the operators that do not fit their state, each with the reason. Added and removed windows, rules and key
/// spaces are changes of the configuration and are handled there.
fn incompatible_operators<'a>(before: &'a [Operator], now: &'a [Operator]) -> Vec<(&'a str, String)> {
    let find =
        |operators: &'a [Operator], name: &str| operators.iter().find(|operator| operator.name == name);
    let mut incompatible_operators = Vec::new();
    for Operator { name, version } in before {
        match find(now, name) {
            None if is_configured(name) => {}
            None => incompatible_operators.push((
                &**name,
                "the checkpoint has its state, and the operator no longer exists".to_owned(),
            )),
            Some(now) if now.version != *version => incompatible_operators.push((
                name,
                format!(
                    "its state in the checkpoint has version {version}, and this program supports {}",
                    now.version
                ),
            )),
            Some(_) => {}
        }
    }
    let new = |operator: &&Operator| find(before, &operator.name).is_none() && !is_configured(&operator.name);
    for Operator { name, .. } in now.iter().filter(new) {
        incompatible_operators.push((name, "it is new and has no state in the checkpoint".to_owned()));
    }
    incompatible_operators
}

/// Checks that a start may resume with a change: nothing needs a replay.
///
/// # Errors
/// If something would have to be replayed.
pub fn check_finished(resume: &Resume, config_change: &ConfigChange) -> Result<(), IncompatibleState> {
    if resume.is_finished() {
        return Ok(());
    }
    Err(IncompatibleState::Unfinished { reason: config_change.reason.clone(), durable: resume.durable })
}

/// Returns the manifest of a checkpoint without the discarded state. Its parts are durable, but nothing refers to them
/// yet.
///
/// # Errors
/// If parts cannot be read or put.
pub fn with_changes(
    store: &mut dyn StateStore,
    writer_id: &WriterId,
    manifest: &Manifest,
    config_change: &ConfigChange,
    now: &[Operator],
) -> Result<Manifest, RunError> {
    let mut with_changes = Manifest { operators: now.to_vec(), ..manifest.clone() };
    if config_change.discarded.is_empty() {
        return Ok(with_changes);
    }
    let WriterId { ledger_id, generation } = writer_id.clone();
    (with_changes.generation, with_changes.parts) = (generation, Vec::new());
    for shard in (0..SHARDS).map(ShardId) {
        let loaded = read(store, chain(&manifest.parts, shard))?;
        let mut content = merge(&loaded)?;
        content.settle();
        let mut records = Vec::new();
        for record in content.records(shard) {
            records.extend(without_discarded(record, &config_change.discarded)?);
        }
        if records.is_empty() {
            continue;
        }
        let bytes = Content::of(&records).encode();
        let (epoch, kind) = (manifest.epoch, PartKind::Base);
        let name = PartName { ledger_id: ledger_id.clone(), generation, epoch, shard, kind };
        with_changes.parts.push(put(store, name, &bytes)?);
    }
    store.sync()?;
    Ok(with_changes)
}

/// Removes discarded state from a record; returns None if nothing remains.
fn without_discarded(mut record: Record, discarded: &BTreeSet<String>) -> Result<Option<Record>, RunError> {
    if section(&record.operator).is_some_and(|section| discarded.contains(&section)) {
        return Ok(None);
    }
    let patterns: Vec<_> = discarded.iter().filter_map(|section| section.strip_prefix("patterns.")).collect();
    if &*record.operator == RULES
        && !patterns.is_empty()
        && let Some(value) = &record.value
    {
        record.value = pipeline::discard(&patterns, value).map_err(|damage| RunError::Part {
            name: format!("of {:?}", record.operator),
            damage: damage.to_string(),
        })?;
    }
    Ok(record.value.is_some().then_some(record))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operators(names: &[&str]) -> Vec<Operator> {
        names.iter().map(|&name| Operator { name: name.into(), version: 1 }).collect()
    }

    fn sections(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn operators_resume_only_from_their_own_state() {
        let before = operators(&["Admit", "Rules", "Window: w"]);
        assert_eq!(config_change(None, &before, &before, &sections(&["windows.w"])), Ok(None));

        // The configuration change includes the state of the windows; other sections need a permission.
        let changes = ConfigChange { reason: "a setting".into(), discarded: sections(&["windows.w"]) };
        let now = operators(&["Admit", "Enrich", "Rules", "Window: v"]);
        let refused = config_change(Some(&changes), &before, &now, &sections(&["windows.w"]));
        let Err(IncompatibleState::Operator { section, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(section, "enrichment");
        let with_changes = config_change(Some(&changes), &before, &now, &sections(&["enrichment"]));
        let discarded = sections(&["enrichment", "windows.w"]);
        assert_eq!(with_changes, Ok(Some(ConfigChange { discarded, ..changes.clone() })));

        // Another version of the state.
        let mut now = before.clone();
        now[1].version = 2;
        let refused = config_change(None, &before, &now, &sections(&[])).expect_err("another version");
        assert_eq!(
            refused.to_string(),
            "operator \"Rules\": its state in the checkpoint has version 1, and this program supports 2; `--discard-state \
             patterns` discards its state"
        );
        let with_changes = config_change(None, &before, &now, &sections(&["patterns"])).expect("permitted");
        assert_eq!(with_changes.expect("something").discarded, sections(&["patterns"]));
        now[0].version = 2;
        let core = config_change(None, &before, &now, &sections(&["patterns", "Admit"]));
        assert!(
            matches!(core, Err(IncompatibleState::Core { .. })),
            "the un-final events cannot be discarded: {core:?}"
        );
    }

    #[test]
    fn discarded_state_is_removed_from_records() {
        let record = |operator: &str| Record {
            operator: operator.into(),
            shard: ShardId(1),
            key: b"k".to_vec(),
            value: Some(vec![9]),
        };
        let discarded = sections(&["windows.w", "patterns.velocity_spike"]);
        let left =
            |operator: &str| without_discarded(record(operator), &discarded).map(|left| left.is_some());
        assert!(matches!(left("Window: w"), Ok(false)));
        assert!(matches!(left("Window: v"), Ok(true)));
        assert!(matches!(left(ENRICH), Ok(true)));
        assert!(left(RULES).is_err(), "the state of the rules is decoded");
        let all =
            without_discarded(record(RULES), &sections(&["patterns"])).expect("the state is not decoded");
        assert_eq!(all, None);
    }

    #[test]
    fn only_sections_with_state_is_discardable() {
        for section in
            ["windows.a", "patterns.amount_anomaly", "patterns", "enrichment", "keys.card", "rules.key"]
        {
            assert!(is_discardable(section), "{section}");
        }
        // What an error says can be discarded, the command line accepts.
        for operator in [format!("{SPACE}card"), format!("{SPACE}card: ids"), format!("{OWN_RULES}card")] {
            assert!(section(&operator).is_some_and(|section| is_discardable(&section)), "{operator}");
        }
        for section in ["windows", "windows.", "keys", "rules.", "patterns.amounts", "Admit", ""] {
            assert!(!is_discardable(section), "{section}");
        }
    }
}

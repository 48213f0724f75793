//! A start under another configuration, or by another version of this program, than the state was made by: nothing may
//! have to be done again, and what does not fit is forgotten, by name.

use std::collections::BTreeSet;

use headwater_dataflows::{Record, SHARDS, ShardId};
use thiserror::Error;

use super::checkpoint_writer::{WriterId, merge, put, read};
use super::compute::{ENRICH, RULES, WINDOW};
use super::failure::RunError;
use super::rules;
use crate::coordination::{Manifest, Operator, PartKind, PartName, Resume, chain};
use crate::state::StateStore;
use crate::state::part::Content;

/// What is no longer as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigChange {
    /// The first difference, in words.
    pub because: String,
    /// What has to forget its state, by its section of the configuration: `windows.NAME`, `patterns.NAME`, `patterns`
    /// (all of them) or `enrichment`.
    pub forget: BTreeSet<String>,
}

/// Why a start cannot go on under what is no longer as it was.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum IncompatibleState {
    /// Something would have to be done again, and would come out otherwise.
    #[error(
        "{because}, and not everything through epoch {durable} is in a checkpoint and in every sink, or it would be \
         done again otherwise: have it stopped once as it was (SIGTERM, with [checkpoint]); or `--reset all:{durable}` forgets \
         all state and does nothing again: what was open is lost, and what a sink has not got of it"
    )]
    Unfinished {
        /// What is no longer as it was.
        because: String,
        /// The ledger's end.
        durable: headwater_dataflows::Epoch,
    },
    /// The state of an operator is not what this one goes on from, and must not be forgotten unasked.
    #[error("operator {operator:?}: {reason}; `--reset {section}` discards its state")]
    Operator {
        /// Its name.
        operator: String,
        /// What does not fit.
        reason: String,
        /// What permits it.
        section: String,
    },
    /// The state of an operator is not what this one goes on from, and the pipeline is nothing without it.
    #[error(
        "operator {operator:?}: {reason}; run the program that made the checkpoint, or forget all state: `--reset all:EPOCH` \
         with the epoch through which `headwater status` says that it is recorded"
    )]
    Core {
        /// Its name.
        operator: String,
        /// What does not fit.
        reason: String,
    },
}

/// Whether a word names what `--reset` can have forgotten.
pub fn can_be_reset(section: &str) -> bool {
    match section.split_once('.') {
        Some(("windows", name)) => !name.is_empty(),
        Some(("patterns", name)) => rules::patterns().any(|pattern| pattern == name),
        _ => ["patterns", "enrichment"].contains(&section),
    }
}

/// What an operator's state goes by in the configuration; none if it cannot be done without.
fn section(operator: &str) -> Option<String> {
    match operator.strip_prefix(WINDOW) {
        Some(name) => Some(format!("windows.{name}")),
        None if operator == RULES => Some("patterns".into()),
        None if operator == ENRICH => Some("enrichment".into()),
        None => None,
    }
}

/// What has to be amended to go on from a checkpoint of the operators `before` with those of `now`, given what the
/// configuration's changes come to; none if nothing has.
///
/// # Errors
/// If an operator does not fit its state, which it is not `permitted` to forget.
pub fn config_change(
    changes: Option<&ConfigChange>,
    before: &[Operator],
    now: &[Operator],
    permitted: &BTreeSet<String>,
) -> Result<Option<ConfigChange>, IncompatibleState> {
    let mut config_change = changes.cloned();
    for (operator, reason) in unfit(before, now) {
        let Some(section) = section(operator) else {
            return Err(IncompatibleState::Core { operator: operator.to_owned(), reason });
        };
        let config_change = config_change.get_or_insert_with(|| ConfigChange {
            because: format!("operator {operator:?} has changed"),
            ..ConfigChange::default()
        });
        if !permitted.contains(&section) {
            return Err(IncompatibleState::Operator { operator: operator.to_owned(), reason, section });
        }
        config_change.forget.insert(section);
    }
    Ok(config_change)
}

/// The operators that do not fit, each with a reason. Which windows there are is the configuration's business.
fn unfit<'a>(before: &'a [Operator], now: &'a [Operator]) -> Vec<(&'a str, String)> {
    let find =
        |operators: &'a [Operator], name: &str| operators.iter().find(|operator| operator.name == name);
    let mut unfit = Vec::new();
    for Operator { name, version } in before {
        match find(now, name) {
            None if name.starts_with(WINDOW) => {}
            None => {
                unfit.push((&**name, "the checkpoint has its state, and it is not there any more".to_owned()))
            }
            Some(now) if now.version != *version => unfit.push((
                name,
                format!(
                    "the checkpoint has its state in version {version}, and this program knows {}",
                    now.version
                ),
            )),
            Some(_) => {}
        }
    }
    let new =
        |operator: &&Operator| find(before, &operator.name).is_none() && !operator.name.starts_with(WINDOW);
    for Operator { name, .. } in now.iter().filter(new) {
        unfit.push((name, "it is new, and does not know what came before the checkpoint".to_owned()));
    }
    unfit
}

/// Whether a start may go on otherwise than before.
///
/// # Errors
/// If something would have to be done again.
pub fn check_finished(resume: &Resume, config_change: &ConfigChange) -> Result<(), IncompatibleState> {
    if resume.is_finished() {
        return Ok(());
    }
    Err(IncompatibleState::Unfinished { because: config_change.because.clone(), durable: resume.durable })
}

/// The checkpoint as it is without what has to be forgotten, its parts durable. Nothing refers to them yet.
///
/// # Errors
/// If its parts cannot be read, or others cannot be put.
pub fn with_changes(
    store: &mut dyn StateStore,
    writer_id: &WriterId,
    manifest: &Manifest,
    config_change: &ConfigChange,
    now: &[Operator],
) -> Result<Manifest, RunError> {
    let mut with_changes = Manifest { operators: now.to_vec(), ..manifest.clone() };
    if config_change.forget.is_empty() {
        return Ok(with_changes);
    }
    let WriterId { ledger_id, generation } = writer_id.clone();
    (with_changes.generation, with_changes.parts) = (generation, Vec::new());
    for shard in (0..SHARDS).map(ShardId) {
        let kept = read(store, chain(&manifest.parts, shard))?;
        let mut content = merge(&kept)?;
        content.settle();
        let mut records = Vec::new();
        for record in content.records(shard) {
            records.extend(remembered(record, &config_change.forget)?);
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

/// What is left of a record; none if all of it is forgotten.
fn remembered(mut record: Record, forget: &BTreeSet<String>) -> Result<Option<Record>, RunError> {
    if section(&record.operator).is_some_and(|section| forget.contains(&section)) {
        return Ok(None);
    }
    let patterns: Vec<_> = forget.iter().filter_map(|section| section.strip_prefix("patterns.")).collect();
    if &*record.operator == RULES
        && !patterns.is_empty()
        && let Some(value) = &record.value
    {
        record.value = rules::forget(&patterns, value).map_err(|damage| RunError::Part {
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
    fn operators_go_on_from_their_own_state_and_from_no_other() {
        let before = operators(&["Admit", "Rules", "Window: w"]);
        assert_eq!(config_change(None, &before, &before, &sections(&["windows.w"])), Ok(None));

        // A changed configuration has said what its windows forget; the rest needs a word.
        let changes = ConfigChange { because: "it has".into(), forget: sections(&["windows.w"]) };
        let now = operators(&["Admit", "Enrich", "Rules", "Window: v"]);
        let refused = config_change(Some(&changes), &before, &now, &sections(&["windows.w"]));
        let Err(IncompatibleState::Operator { section, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(section, "enrichment");
        let with_changes = config_change(Some(&changes), &before, &now, &sections(&["enrichment"]));
        let forget = sections(&["enrichment", "windows.w"]);
        assert_eq!(with_changes, Ok(Some(ConfigChange { forget, ..changes.clone() })));

        // Another version of the state.
        let mut now = before.clone();
        now[1].version = 2;
        let refused = config_change(None, &before, &now, &sections(&[])).expect_err("another version");
        assert_eq!(
            refused.to_string(),
            "operator \"Rules\": the checkpoint has its state in version 1, and this program knows 2; `--reset \
             patterns` discards its state"
        );
        let with_changes = config_change(None, &before, &now, &sections(&["patterns"])).expect("permitted");
        assert_eq!(with_changes.expect("something").forget, sections(&["patterns"]));
        now[0].version = 2;
        let core = config_change(None, &before, &now, &sections(&["patterns", "Admit"]));
        assert!(
            matches!(core, Err(IncompatibleState::Core { .. })),
            "nothing goes on without what is not final: {core:?}"
        );
    }

    #[test]
    fn what_is_forgotten_is_in_no_record_any_more() {
        let record = |operator: &str| Record {
            operator: operator.into(),
            shard: ShardId(1),
            key: b"k".to_vec(),
            value: Some(vec![9]),
        };
        let forget = sections(&["windows.w", "patterns.velocity_spike"]);
        let left = |operator: &str| remembered(record(operator), &forget).map(|left| left.is_some());
        assert!(matches!(left("Window: w"), Ok(false)));
        assert!(matches!(left("Window: v"), Ok(true)));
        assert!(matches!(left(ENRICH), Ok(true)));
        assert!(left(RULES).is_err(), "the rules' state is looked into");
        let all = remembered(record(RULES), &sections(&["patterns"])).expect("unseen");
        assert_eq!(all, None);
    }

    #[test]
    fn only_what_remembers_can_be_reset() {
        for section in ["windows.a", "patterns.amount_anomaly", "patterns", "enrichment"] {
            assert!(can_be_reset(section), "{section}");
        }
        for section in ["windows", "windows.", "patterns.amounts", "Admit", ""] {
            assert!(!can_be_reset(section), "{section}");
        }
    }
}

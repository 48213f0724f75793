//! The rules that a start begins with: those of the ledger, which the configuration's follow once they have changed.
//!
//! ```text
//!   genesis: first rules ─▶ manifest: rules in force ─▶ replayed epochs: changes ─▶ rules of the configuration, if new
//! ```

use std::sync::mpsc::sync_channel;

use headwater_dataflows::{EventTime, Since};
use headwater_sinks::LedgerId;

use crate::config::{RecordedRules, recorded_rules};
use crate::coordination::{Change, EpochRecord, InForce, Manifest, StoredPasts, Versions};
use crate::ledger::{Genesis, LedgerError, StoredManifest, readable};
use crate::pipeline::{LiveRules, Plan, RuleHistory, RuleSetPlan, identity};
use crate::runtime::checkpoint::contents;
use crate::runtime::failure::RunError;
use crate::runtime::ingest::changes::{ChangeRequest, ChangeRequests};
use crate::runtime::recovery::origin::{Checkpoints, Origin, Records};

/// Returns the text of the rules with which a pipeline began. Pipelines that began before rules could change have not
/// recorded a text, but the ids of the rules, of which the configuration's may have changed since.
pub fn first_rules(genesis: Option<&Genesis>, plan: &Plan) -> String {
    let first = |rules| RuleSetPlan::first(rules).to_text();
    match genesis.map(|genesis| recorded_rules(&genesis.semantics)) {
        Some(RecordedRules::Text(text)) => text.to_owned(),
        Some(RecordedRules::Ids(ids)) => {
            let known = plan.rules.iter().filter(|rule| ids.contains(&&*rule.id)).cloned();
            first(known.collect())
        }
        None => first(plan.rules.clone()),
    }
}

/// Returns the texts of all rules that a start may replay, the first ones first.
pub fn all_rules(first: &str, manifests: &[StoredManifest], epochs: &[EpochRecord]) -> Vec<String> {
    let in_force = readable(manifests).flat_map(|manifest| manifest.in_force.as_slice());
    let of_manifests = in_force.filter_map(|in_force| in_force.change.rules.as_deref());
    let of_epochs = epochs.iter().filter_map(|record| record.change.rules.as_deref());
    std::iter::once(first).chain(of_manifests).chain(of_epochs).map(str::to_owned).collect()
}

/// Returns the text of rules without those that a changed configuration no longer permits, by fields or keys that it does
/// not have. They are removed with its change: no event is judged by them any more.
///
/// # Errors
/// If the text cannot be read.
pub fn permitted_rules(text: &str, live: &LiveRules) -> Result<String, RunError> {
    let (text, removed) = live.without_invalid(text).map_err(unreadable)?;
    removed.iter().for_each(|reason| tracing::debug!(reason, "a rule of the ledger is removed"));
    Ok(text)
}

/// Adds the key spaces of these rules to a plan, so that its dataflow has their operators.
///
/// # Errors
/// If a text cannot be read.
pub fn add_spaces(plan: &mut Plan, texts: &[String], live: &LiveRules) -> Result<(), RunError> {
    for text in texts {
        let set = live.read(text).map_err(unreadable)?;
        plan.spaces.extend(set.all().into_iter().filter_map(|rule| rule.by.space().cloned()));
    }
    Ok(())
}

/// Returns the refusal of rules of the ledger that this program cannot read.
fn unreadable(reason: String) -> RunError {
    LedgerError::Refused(format!(
        "the rules in force, which the ledger has, are not valid in this program or with this configuration: {reason}; \
         restore the program and the sections [fields] and [keys], or discard all state: `--discard-state all:EPOCH`, where \
         EPOCH is the last recorded epoch, which `headwater status` prints"
    ))
    .into()
}

/// Returns what is in force at the point at which a run resumes.
pub fn in_force(origin: &Origin, first: String) -> Versions {
    let recorded = origin.manifest.as_ref().map(|manifest| manifest.in_force.clone()).unwrap_or_default();
    if recorded.rules().is_some() {
        return recorded;
    }
    let change = Change { rules: Some(first), ..Change::default() };
    let beginning = InForce { since: Since::beginning(), change };
    Versions::of(std::iter::once(beginning).chain(recorded.as_slice().iter().cloned()).collect())
}

/// Returns the rules that the dataflow begins with, and lets the newest of them come into force.
///
/// # Errors
/// If a text cannot be read.
pub fn history(in_force: &Versions, live: &LiveRules) -> Result<RuleHistory, RunError> {
    let mut sets = Vec::new();
    for InForce { since, change } in in_force.as_slice() {
        if let Some(text) = &change.rules {
            sets.push((since.clone(), live.read(text).map_err(unreadable)?));
        }
    }
    let history = RuleHistory::new(sets);
    live.begin(history.newest());
    Ok(history)
}

/// Returns the pasts of rules that enter in the replay of these epochs.
pub fn replayed_pasts(replay: &[EpochRecord]) -> Vec<StoredPasts> {
    replay.iter().filter_map(|record| record.change.pasts).collect()
}

/// Reads the pasts of rules that a replay needs, for the workers of this process.
///
/// # Errors
/// If they are missing or damaged.
pub fn load_pasts(
    live: &LiveRules,
    pasts: &[StoredPasts],
    workers: usize,
    stored: Option<(&mut Checkpoints, &LedgerId)>,
) -> Result<(), RunError> {
    let Some((Checkpoints { store, .. }, ledger_id)) = stored else { return Ok(()) };
    for StoredPasts { hash, .. } in pasts {
        let bytes = contents::get(&mut **store, ledger_id, "the pasts of rules", *hash)?;
        live.keep_pasts(*hash, bytes, workers);
    }
    Ok(())
}

/// Requests that the rules of the configuration come into force after the replay, if they have changed since the
/// configuration was last applied.
///
/// # Errors
/// If a text cannot be read.
pub fn request_configured(
    in_force: &Versions,
    replay: &[EpochRecord],
    plan: &Plan,
    live: &LiveRules,
    requests: &ChangeRequests,
) -> Result<(), RunError> {
    let replayed = replay.iter().rev().find_map(|record| record.change.rules.as_deref());
    let newest = replayed.or(in_force.rules()).expect("some rules are in force");
    let newest = live.read(newest).map_err(unreadable)?;
    live.resume(&newest, plan.all_spaces());
    let file = identity(&plan.rules);
    let is_in_force = newest.has(&plan.rules);
    if newest.file == file {
        if !is_in_force {
            tracing::info!(
                version = newest.version,
                "the rules that were applied while an earlier run went on stay in force: those of the configuration have not \
                 changed since"
            );
        }
        return Ok(());
    }
    // If they have been applied before, the set that follows has the same rules, and knows that they are the configuration's:
    // else the configuration could not return to its rules before.
    if !is_in_force {
        tracing::info!(
            before = newest.version,
            "the rules of the configuration have changed: they come into force"
        );
    }
    let (bound, _) = sync_channel(1);
    requests.add(ChangeRequest::of_rules(live, plan.rules.clone(), Some(file), bound));
    Ok(())
}

/// Returns the newest rules of a ledger that began with the `first` ones.
pub fn newest_rules<'a>(
    first: &'a str,
    manifest: Option<&'a Manifest>,
    epochs: &'a [EpochRecord],
) -> &'a str {
    let of_epochs = epochs.iter().rev().find_map(|record| record.change.rules.as_deref());
    of_epochs.or_else(|| manifest?.in_force.rules()).unwrap_or(first)
}

/// Returns what is in force at the end of a ledger for all events, once none before is un-final. Lists are left out: the next
/// start reads them, whatever is left of their contents.
pub fn settled(first: &str, records: &Records) -> Versions {
    let manifest = readable(&records.manifests).last();
    let mut versions = manifest.map(|manifest| manifest.in_force.clone()).unwrap_or_default();
    let later =
        records.epochs.iter().filter(|record| manifest.is_none_or(|before| before.epoch < record.epoch));
    for record in later {
        let change = Change { rules: record.change.rules.clone(), ..Change::default() };
        versions.add(InForce { since: Since::beginning(), change });
    }
    let rules = versions.rules().unwrap_or(first).to_owned();
    versions.add(InForce {
        since: Since::beginning(),
        change: Change { rules: Some(rules), ..Change::default() },
    });
    versions.settle(EventTime::MAX);
    let without_lists = versions.as_slice().iter().cloned().map(|InForce { since, change }| {
        let change = Change { lists: Vec::new(), ..change };
        InForce { since, change }
    });
    Versions::of(without_lists.filter(|in_force| !in_force.change.is_empty()).collect())
}

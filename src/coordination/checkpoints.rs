//! Checkpoints: decides which epochs are marked, when a marked epoch can become a manifest, from which manifest a
//! start resumes, and what can be deleted.
//!
//! ```text
//!   Marks ── F ──▶ workers store their parts of F ┐
//!                                                 ├─▶ Checkpoint ──▶ manifest F in the ledger ──▶ older parts are deleted
//!   sinks ── progress ≥ F ────────────────────────┘
//! ```
//!
//! A start resumes from the newest manifest that can be read and is not above the progress of any sink, and replays
//! the epochs recorded after it. Until rounds are pruned, the beginning of the pipeline counts as the manifest of
//! epoch 0.

use std::collections::BTreeSet;

use headwater_dataflows::{Epoch, EventTime, ShardId};
use headwater_sinks::{Generation, LedgerId, Shards};
use thiserror::Error;

use super::{EpochRecord, Manifest, Part, PartKind, PartName};

/// The number of deltas after a base beyond which the next part is a base again: a start must read each of them.
const MAX_DELTAS: usize = 8;

/// The time after a mark, in milliseconds of recorded wall time, in which a checkpoint on demand would save too little.
const RECENT_MS: i64 = 1_000;

/// Decides which epochs are marked: at most one at a time, at intervals of `interval_ms` of recorded wall time, and on demand.
#[derive(Clone, Debug)]
pub struct Marks {
    interval_ms: i64,
    /// The epoch that was marked last, or the epoch of the newest manifest.
    last: Epoch,
    since_ms: Option<i64>,
    /// The recorded wall time of the last mark of this run.
    marked_ms: Option<i64>,
    in_flight: bool,
    /// True if anything was recorded after `last`.
    behind: bool,
    /// True if the next epoch is to be marked, however short the time since the last mark.
    demanded: bool,
}

impl Marks {
    /// Returns the marks for a ledger whose newest manifest, readable or not, is of epoch `newest`. The first interval
    /// begins with the first epoch.
    pub fn new(interval_ms: i64, newest: Epoch) -> Marks {
        Marks {
            interval_ms,
            last: newest,
            since_ms: None,
            marked_ms: None,
            in_flight: false,
            behind: false,
            demanded: false,
        }
    }

    /// Returns true if the epoch is to be marked; must be called for each epoch, in order. Epochs that are not
    /// recorded are not marked, because no manifest may be above the ledger.
    pub fn mark(&mut self, record: &EpochRecord) -> bool {
        self.behind |= record.epoch > self.last && !record.is_empty();
        let since_ms = *self.since_ms.get_or_insert(record.wall_ms);
        let elapsed_ms = record.wall_ms.saturating_sub(since_ms);
        // A clock that was set back must not delay checkpoints.
        let due = elapsed_ms >= self.interval_ms || elapsed_ms < 0;
        let wanted = if self.demanded { self.behind } else { due && !record.is_empty() };
        if !wanted || self.in_flight || record.epoch <= self.last {
            return false;
        }
        self.marked(record);
        true
    }

    /// Demands a checkpoint beside the run, unless one is in flight, was marked just before `wall_ms`, or would have nothing
    /// new. It is concluded once [`is_settled`](Marks::is_settled) returns true.
    pub fn demand(&mut self, wall_ms: i64) {
        let is_recent =
            self.marked_ms.is_some_and(|marked_ms| (0..RECENT_MS).contains(&(wall_ms - marked_ms)));
        self.demanded = self.behind && !self.in_flight && !is_recent;
    }

    /// Returns true if no checkpoint is demanded or in flight.
    pub fn is_settled(&self) -> bool {
        !self.demanded && !self.in_flight
    }

    /// Returns true if the last epoch of a run is to be marked, so that the next start has nothing to replay. Returns
    /// false if nothing was recorded since the last mark. A marked epoch must be recorded even if it is empty.
    pub fn mark_last(&mut self, record: &EpochRecord) -> bool {
        self.behind |= !record.is_empty();
        let wanted = self.behind && record.epoch > self.last;
        if wanted {
            self.marked(record);
        }
        wanted
    }

    fn marked(&mut self, record: &EpochRecord) {
        (self.last, self.since_ms, self.in_flight) = (record.epoch, Some(record.wall_ms), true);
        self.marked_ms = self.since_ms;
        (self.behind, self.demanded) = (false, false);
    }

    /// Notes that the manifest of `epoch`, and every manifest before it, is durable.
    pub fn concluded(&mut self, epoch: Epoch) {
        self.in_flight &= epoch < self.last;
    }
}

/// The parts of a marked epoch that workers have put into the state store.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    epoch: Epoch,
    shards: Shards,
    parts: Vec<Part>,
}

/// A message of a worker that contradicts the state of the checkpoint.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum InvalidPart {
    /// Two workers have stored the parts of one shard.
    #[error("the parts of shard {} were stored twice", .0.0)]
    Twice(ShardId),
    /// The part is of another shard or epoch, or is a delta that follows no base.
    #[error("unexpected part of shard {}: its shard or epoch is wrong, or it is a delta without a base", .0.0)]
    Stray(ShardId),
}

impl Checkpoint {
    /// Returns a checkpoint of `epoch` without parts.
    pub fn of(epoch: Epoch) -> Checkpoint {
        Checkpoint { epoch, shards: Shards::default(), parts: Vec::new() }
    }

    /// Returns the marked epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Adds the durable parts of a worker for `shards`, at most one per shard. A shard that did not change has none.
    ///
    /// # Errors
    /// If the parts contradict the state of the checkpoint; then none is added.
    pub fn stored(&mut self, shards: Shards, parts: Vec<Part>) -> Result<(), InvalidPart> {
        let both = Shards(self.shards.0 & shards.0);
        if both != Shards::default() {
            return Err(InvalidPart::Twice(ShardId(both.0.trailing_zeros())));
        }
        let mut seen = BTreeSet::new();
        for PartName { shard, epoch, .. } in parts.iter().map(|part| &part.name) {
            if !shards.contains(*shard) || *epoch != self.epoch || !seen.insert(shard.0) {
                return Err(InvalidPart::Stray(*shard));
            }
        }
        self.shards.0 |= shards.0;
        self.parts.extend(parts);
        Ok(())
    }

    /// Returns true if the manifest can be written: the parts of every shard are durable, and every sink has committed
    /// through the epoch. `sinks` contains the last epoch that each sink has committed; None if it has committed
    /// nothing.
    pub fn is_complete(&self, sinks: &[Option<Epoch>]) -> bool {
        self.shards == Shards::ALL && sinks.iter().all(|sink| *sink >= Some(self.epoch))
    }

    /// Returns all parts of the manifest: those of the previous checkpoint `before`, and then its own, whose deltas
    /// follow them.
    ///
    /// # Errors
    /// If a delta follows no base.
    pub fn parts_after(&self, before: &[Part]) -> Result<Vec<Part>, InvalidPart> {
        let mut parts = before.to_vec();
        for part in &self.parts {
            if part.name.kind == PartKind::Base {
                parts.retain(|before| before.name.shard != part.name.shard);
            }
            parts.push(part.clone());
        }
        parts.sort_by_key(|part| part.name.shard);
        match self.parts.iter().map(|part| part.name.shard).find(|&shard| !is_chain(chain(&parts, shard))) {
            Some(shard) => Err(InvalidPart::Stray(shard)),
            None => Ok(parts),
        }
    }
}

/// Returns the parts of one shard, in the order in which they are applied.
pub fn chain(parts: &[Part], shard: ShardId) -> impl Iterator<Item = &Part> {
    parts.iter().filter(move |part| part.name.shard == shard)
}

/// Returns true if the parts of a shard are a base and deltas of ascending epochs, or nothing.
fn is_chain<'a>(chain: impl Iterator<Item = &'a Part>) -> bool {
    let mut before = None;
    chain.map(|part| &part.name).all(|name| match before.replace(name.epoch) {
        None => name.kind == PartKind::Base,
        Some(before) => name.kind == PartKind::Delta && before < name.epoch,
    })
}

/// Returns true if parts are sorted by shard, and those of each shard are a base and deltas of ascending epochs.
pub fn are_chains(parts: &[Part]) -> bool {
    parts.is_sorted_by_key(|part| part.name.shard)
        && parts.chunk_by(|a, b| a.name.shard == b.name.shard).all(|chain| is_chain(chain.iter()))
}

/// Returns true if the next part of a shard must be a base: it has no base, or its deltas are larger than its base or
/// too many.
pub fn wants_base<'a>(chain: impl IntoIterator<Item = &'a Part>) -> bool {
    let mut chain = chain.into_iter();
    let Some(base) = chain.next() else { return true };
    let (deltas, bytes) =
        chain.fold((0, 0u64), |(deltas, bytes), delta| (deltas + 1, bytes.saturating_add(delta.bytes)));
    deltas > MAX_DELTAS || bytes > base.bytes
}

/// Returns the last epoch of a ledger: that of its last round or, if all rounds were pruned, of its newest manifest.
pub fn durable(last_round: Option<Epoch>, manifests: &[Epoch]) -> Epoch {
    manifests.iter().copied().chain(last_round).max().unwrap_or(Epoch(0))
}

/// Returns true if the input had ended, and every window was final, after the replay from an origin: nothing can
/// follow.
pub fn is_closed(origin: Option<&Manifest>, replay: &[EpochRecord]) -> bool {
    origin.is_some_and(|manifest| manifest.watermark == EventTime::MAX)
        || replay.iter().any(|record| record.closes)
}

/// The part of a ledger that is pruned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prune {
    /// The ledger can go back to the beginning: nothing is pruned.
    Nothing,
    /// The ledger can go back to this manifest: older manifests, and rounds that end at or before it, are deleted.
    Before(Epoch),
}

/// Returns what to prune from a ledger with manifests of these epochs, in ascending order, so that a start can go back
/// to `keep` of them. The beginning counts as one.
pub fn prune(manifests: &[Epoch], keep: usize) -> Prune {
    let oldest = manifests.len().checked_sub(keep.max(1)).and_then(|at| manifests.get(at));
    oldest.map_or(Prune::Nothing, |&oldest| Prune::Before(oldest))
}

/// No checkpoint is old enough to resume from.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NoOrigin {
    /// A sink has committed less than the ledger can replay.
    #[error(
        "sink {sink} has results through epoch {has} only, and the ledger cannot replay from before epoch {oldest}: \
         the sink is new, or was wiped or restored from an older copy; `--adopt-sink {sink}` marks it as caught up with \
         the ledger: nothing is duplicated, and the recorded results of the epochs after {has} are never written to it"
    )]
    Behind {
        /// The name of the sink.
        sink: String,
        /// The last epoch that the sink has committed; 0 if none.
        has: Epoch,
        /// The epoch of the oldest manifest that can be read.
        oldest: Epoch,
    },
    /// No checkpoint can be read.
    #[error(
        "no checkpoint can be read, and the ledger goes back to epoch {pruned} only: the state store was lost, emptied or \
         damaged, or `state` names another store; restore it, or discard all state: `--discard-state all:{durable}` resumes after \
         epoch {durable} and reads nothing again: open windows, pattern state and the ids of duplicates are lost, and a \
         sink that has not committed everything through epoch {durable} never gets the rest"
    )]
    Unreadable {
        /// The last epoch of the pruned rounds.
        pruned: Epoch,
        /// The last epoch of the ledger.
        durable: Epoch,
    },
    /// No manifest can be read, so the positions are lost as well.
    #[error(
        "no manifest can be read, and the epochs through {pruned} were pruned, so the positions to read from are unknown: \
         restore the ledger, or start under another `pipeline` name with its own tables: that pipeline reads the source from \
         the beginning and has none of the previous state"
    )]
    NoPositions {
        /// The last epoch of the pruned rounds.
        pruned: Epoch,
    },
}

/// Returns the epochs after which a start can resume, best first. The arguments are the epochs of the manifests that
/// can be read, the last epoch of the pruned rounds (0: none), the last epoch of the ledger, and the last epoch that
/// each sink has committed. Epoch 0 is the beginning of the pipeline. If the state of the best epoch cannot be read,
/// the next one gives the same results, but takes longer.
///
/// # Errors
/// If there is no such epoch.
pub fn origins(
    readable: &[Epoch],
    pruned: Epoch,
    durable: Epoch,
    sinks: &[(&str, Option<Epoch>)],
) -> Result<Vec<Epoch>, NoOrigin> {
    let beginning = (pruned == Epoch(0)).then_some(Epoch(0));
    let mut origins: Vec<_> =
        readable.iter().copied().filter(|&epoch| epoch >= pruned).chain(beginning).collect();
    origins.sort_unstable_by(|a, b| b.cmp(a));
    let oldest = *origins.last().ok_or(NoOrigin::Unreadable { pruned, durable })?;
    // A sink without progress needs every epoch from the beginning.
    let least = sinks.iter().map(|&(sink, has)| (has.unwrap_or(Epoch(0)), sink)).min();
    if let Some((has, sink)) = least {
        origins.retain(|&origin| origin <= has);
        if origins.is_empty() {
            return Err(NoOrigin::Behind { sink: sink.to_owned(), has, oldest });
        }
    }
    Ok(origins)
}

/// Returns the parts of `dropped` manifests that no `kept` manifest needs. They must be deleted only after the ledger
/// has dropped those manifests durably.
pub fn unreferenced<'a>(
    dropped: impl IntoIterator<Item = &'a Manifest>,
    kept: impl IntoIterator<Item = &'a Manifest>,
) -> BTreeSet<PartName> {
    let kept = referenced(kept);
    referenced(dropped).difference(&kept).copied().cloned().collect()
}

/// Returns the parts of these manifests.
fn referenced<'a>(manifests: impl IntoIterator<Item = &'a Manifest>) -> BTreeSet<&'a PartName> {
    manifests.into_iter().flat_map(|manifest| &manifest.parts).map(|part| &part.name).collect()
}

/// Returns the contents of lists that dropped manifests and pruned epochs refer to, and no kept ones.
pub fn unreferenced_lists<'a, 'b>(
    (dropped, pruned): (impl IntoIterator<Item = &'a Manifest>, &[[u8; 32]]),
    (kept, recorded): (impl IntoIterator<Item = &'a Manifest>, impl IntoIterator<Item = &'b [u8; 32]>),
) -> BTreeSet<[u8; 32]> {
    let mut kept = lists_of(kept);
    kept.extend(recorded);
    let mut dropped = lists_of(dropped);
    dropped.extend(pruned);
    dropped.difference(&kept).copied().collect()
}

/// Returns the contents of lists that manifests refer to.
pub fn lists_of<'a>(manifests: impl IntoIterator<Item = &'a Manifest>) -> BTreeSet<[u8; 32]> {
    let in_force = manifests.into_iter().flat_map(|manifest| manifest.in_force.as_slice());
    in_force.flat_map(|in_force| &in_force.change.lists).map(|list| list.hash).collect()
}

/// Returns those parts among the names `found` in a state store that were written by starts before generation `mine`
/// and are in no manifest. `manifests` must be all manifests, read *after* `mine` was claimed, so that none of the
/// earlier starts can write another one. Names that are not parts of this ledger are not returned.
pub fn left_behind<'a, 'b>(
    found: impl IntoIterator<Item = &'a str>,
    ledger_id: &LedgerId,
    mine: Generation,
    manifests: impl IntoIterator<Item = &'b Manifest>,
) -> Vec<PartName> {
    let referenced = referenced(manifests);
    found
        .into_iter()
        .filter_map(PartName::parse)
        .filter(|name| name.ledger_id == *ledger_id && name.generation < mine && !referenced.contains(name))
        .collect()
}

#[cfg(test)]
mod tests;

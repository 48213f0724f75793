//! Checkpoints: which epochs are marked, when a marked one may become a manifest, from which manifest a start goes on,
//! and what may be deleted.
//!
//! ```text
//!   Marks ── F ──▶ workers put their parts of F ──┐
//!                                                 ├─▶ Checkpoint ──▶ manifest F in the ledger ──▶ what it replaces goes
//!   sinks ── progress ≥ F ────────────────────────┘
//! ```
//!
//! A start goes on from the newest manifest that can be read and is not above any sink's progress, and does again what
//! is recorded after it. The beginning of the pipeline counts as the manifest of epoch 0, until rounds are pruned.

use std::collections::BTreeSet;

use headwater_dataflows::{Epoch, EventTime, ShardId};
use headwater_sinks::{Generation, LedgerId, Shards};
use thiserror::Error;

use super::{EpochRecord, Manifest, Part, PartKind, PartName};

/// How many deltas may follow a base: each is one more thing to read at a start.
const MOST_DELTAS: usize = 8;

/// Decides which epochs are marked: at most one at a time, `interval_ms` of recorded wall time apart.
#[derive(Clone, Debug)]
pub struct Marks {
    interval_ms: i64,
    /// Marked last, or recorded in the newest manifest there is.
    last: Epoch,
    since_ms: Option<i64>,
    in_flight: bool,
    /// Whether anything was recorded after `last`.
    behind: bool,
}

impl Marks {
    /// For a ledger whose newest manifest, readable or not, is that of `newest`. The first interval begins with the
    /// first epoch.
    pub fn new(interval_ms: i64, newest: Epoch) -> Marks {
        Marks { interval_ms, last: newest, since_ms: None, in_flight: false, behind: false }
    }

    /// Whether to mark an epoch; asked of each, in order. Epochs that are not recorded are not marked: no manifest
    /// stands above the ledger.
    pub fn mark(&mut self, record: &EpochRecord) -> bool {
        self.behind |= record.epoch > self.last && !record.is_empty();
        let since_ms = *self.since_ms.get_or_insert(record.wall_ms);
        let elapsed_ms = record.wall_ms.saturating_sub(since_ms);
        // A clock that was set back must not put checkpoints off.
        let due = elapsed_ms >= self.interval_ms || elapsed_ms < 0;
        if !due || self.in_flight || record.is_empty() || record.epoch <= self.last {
            return false;
        }
        self.marked(record);
        true
    }

    /// Whether to mark the last epoch of a run, so that the next start has nothing to replay: unless nothing was
    /// recorded since the mark before. It is to be recorded, even if it is empty.
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
        self.behind = false;
    }

    /// The manifest of `epoch` is durable, and so are those before it.
    pub fn concluded(&mut self, epoch: Epoch) {
        self.in_flight &= epoch < self.last;
    }
}

/// The parts of a marked epoch, as workers put them into the state store.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    epoch: Epoch,
    shards: Shards,
    parts: Vec<Part>,
}

/// A worker's word that contradicts what is known.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum InvalidPart {
    /// Two workers have put a shard's parts.
    #[error("the parts of shard {} were put twice", .0.0)]
    Twice(ShardId),
    /// A part of another shard or epoch, or a delta that follows nothing.
    #[error("a part of shard {} does not belong there", .0.0)]
    Stray(ShardId),
}

impl Checkpoint {
    /// Nothing of `epoch` is put yet.
    pub fn of(epoch: Epoch) -> Checkpoint {
        Checkpoint { epoch, shards: Shards::default(), parts: Vec::new() }
    }

    /// The marked epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// A worker's parts are durable: all that it has of `shards`, at most one each. A shard that did not change has
    /// none.
    ///
    /// # Errors
    /// If it contradicts what is known; nothing is taken in.
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

    /// Whether its manifest may be written: every shard's part is durable, and so is every sink's progress through
    /// the epoch. `sinks` has each one's last durable epoch, none if it has nothing.
    pub fn is_complete(&self, sinks: &[Option<Epoch>]) -> bool {
        self.shards == Shards::ALL && sinks.iter().all(|sink| *sink >= Some(self.epoch))
    }

    /// All parts of its manifest: its own, after those of the checkpoint `before`, which its deltas follow.
    ///
    /// # Errors
    /// If a delta follows nothing.
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

/// The parts of one shard, in the order in which they are applied.
pub fn chain(parts: &[Part], shard: ShardId) -> impl Iterator<Item = &Part> {
    parts.iter().filter(move |part| part.name.shard == shard)
}

/// Whether a shard's parts are a base and deltas of ascending epochs; or nothing.
fn is_chain<'a>(chain: impl Iterator<Item = &'a Part>) -> bool {
    let mut before = None;
    chain.map(|part| &part.name).all(|name| match before.replace(name.epoch) {
        None => name.kind == PartKind::Base,
        Some(before) => name.kind == PartKind::Delta && before < name.epoch,
    })
}

/// Whether parts lie by shard, and each shard's are a base and deltas of ascending epochs.
pub fn are_chains(parts: &[Part]) -> bool {
    parts.is_sorted_by_key(|part| part.name.shard)
        && parts.chunk_by(|a, b| a.name.shard == b.name.shard).all(|chain| is_chain(chain.iter()))
}

/// Whether a shard's next part is to be a base: it has none, or its deltas have become more than it.
pub fn wants_base<'a>(chain: impl IntoIterator<Item = &'a Part>) -> bool {
    let mut chain = chain.into_iter();
    let Some(base) = chain.next() else { return true };
    let (deltas, bytes) =
        chain.fold((0, 0u64), |(deltas, bytes), delta| (deltas + 1, bytes.saturating_add(delta.bytes)));
    deltas > MOST_DELTAS || bytes > base.bytes
}

/// The last epoch that a ledger knows: that of its last round or, if all were pruned, of its newest manifest.
pub fn durable(last_round: Option<Epoch>, manifests: &[Epoch]) -> Epoch {
    manifests.iter().copied().chain(last_round).max().unwrap_or(Epoch(0))
}

/// Whether the input was over, and every window final, at the end of what is done again after an origin: nothing can
/// follow.
pub fn is_closed(origin: Option<&Manifest>, replay: &[EpochRecord]) -> bool {
    origin.is_some_and(|manifest| manifest.watermark == EventTime::MAX)
        || replay.iter().any(|record| record.closes)
}

/// What a ledger goes back to, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prune {
    /// To the beginning: nothing is pruned.
    Nothing,
    /// To this manifest: those before it, and rounds that end at or before it, go.
    Before(Epoch),
}

/// What to prune from a ledger with manifests of these epochs, in ascending order, so that it can go back to `keep` of
/// them; the beginning is one.
pub fn prune(manifests: &[Epoch], keep: usize) -> Prune {
    let oldest = manifests.len().checked_sub(keep.max(1)).and_then(|at| manifests.get(at));
    oldest.map_or(Prune::Nothing, |&oldest| Prune::Before(oldest))
}

/// No checkpoint is low enough to go on from.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NoOrigin {
    /// A sink has less than what can be gone back to.
    #[error(
        "sink {sink} has results through epoch {has} only, and the ledger does not go back further than epoch {oldest}: \
         the sink is new, or was wiped or restored from an older copy; `--reset-sink {sink}` takes it for having \
         everything that is recorded: nothing is doubled, and results of the epochs after {has} that are recorded are never \
         written to it"
    )]
    Behind {
        /// The sink's name.
        sink: String,
        /// Its last epoch; 0 if it has none.
        has: Epoch,
        /// The oldest manifest that can be read.
        oldest: Epoch,
    },
    /// Nothing that is left can be read.
    #[error(
        "no checkpoint can be read, and the ledger goes back to epoch {pruned} only: the state store was lost, emptied or \
         damaged, or `state` names another place; restore it, or forget all state: `--reset all:{durable}` goes on \
         after epoch {durable} and reads nothing again, so windows, patterns and duplicates that were open know nothing of \
         what came before, and a sink that has not everything through epoch {durable} never gets the rest"
    )]
    Unreadable {
        /// Through which epoch rounds were pruned.
        pruned: Epoch,
        /// The ledger's end.
        durable: Epoch,
    },
    /// Not even where reading goes on.
    #[error(
        "no manifest can be read, and the ledger has no epochs through {pruned} any more, so nobody knows where reading \
         goes on: restore the ledger, or begin under another `pipeline` name, with tables of its own: it reads everything \
         again that the source has, and knows nothing of what came before"
    )]
    NoPositions {
        /// Through which epoch rounds were pruned.
        pruned: Epoch,
    },
}

/// The epochs after which a start may go on, best first, given those of the manifests that can be read, how far rounds
/// were pruned (0: not at all), where the ledger ends, and each sink with the last epoch that it has. 0 is the beginning of the pipeline. If
/// the state of the best turns out to be unreadable, the next one is as right, and only takes longer.
///
/// # Errors
/// If there is none.
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
    // A sink without progress is given everything, from the beginning on.
    let least = sinks.iter().map(|&(sink, has)| (has.unwrap_or(Epoch(0)), sink)).min();
    if let Some((has, sink)) = least {
        origins.retain(|&origin| origin <= has);
        if origins.is_empty() {
            return Err(NoOrigin::Behind { sink: sink.to_owned(), has, oldest });
        }
    }
    Ok(origins)
}

/// The parts of manifests that were dropped, by whoever dropped them, that no manifest kept needs. To be deleted only
/// once the ledger has dropped them durably.
pub fn unreferenced<'a>(
    dropped: impl IntoIterator<Item = &'a Manifest>,
    kept: impl IntoIterator<Item = &'a Manifest>,
) -> BTreeSet<PartName> {
    let kept = needed(kept);
    needed(dropped).difference(&kept).copied().cloned().collect()
}

/// The parts of these manifests.
fn needed<'a>(manifests: impl IntoIterator<Item = &'a Manifest>) -> BTreeSet<&'a PartName> {
    manifests.into_iter().flat_map(|manifest| &manifest.parts).map(|part| &part.name).collect()
}

/// Of the names found in a state store, the parts that starts before `mine` left behind and no manifest needs:
/// `manifests` are all there are, read *after* `mine` was claimed, so that none of those starts can write another.
/// What is not a part of this lineage stays.
pub fn left_behind<'a, 'b>(
    found: impl IntoIterator<Item = &'a str>,
    ledger_id: &LedgerId,
    mine: Generation,
    manifests: impl IntoIterator<Item = &'b Manifest>,
) -> Vec<PartName> {
    let needed = needed(manifests);
    found
        .into_iter()
        .filter_map(PartName::parse)
        .filter(|name| name.ledger_id == *ledger_id && name.generation < mine && !needed.contains(name))
        .collect()
}

#[cfg(test)]
mod tests;

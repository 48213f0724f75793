//! What a start may go on from: what the ledger has, and what each sink has.

use headwater_dataflows::{Epoch, SHARDS, ShardId};
use headwater_sinks::{Progress, Shards};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::checkpoints::{NoOrigin, durable, origins};

/// A sink and the ledger do not belong together.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Mismatch {
    /// A sink commits only what is durable in the ledger, so this ledger is not the one that it followed.
    #[error(
        "it has results through epoch {sink}, and the ledger ends at epoch {ledger}: the ledger was wiped or restored \
         from an older copy"
    )]
    Ahead {
        /// The sink's last epoch.
        sink: Epoch,
        /// The ledger's.
        ledger: Epoch,
    },
    /// A sink that has committed has progress, for as long as nobody takes it away.
    #[error(
        "it has committed results before, and its progress is gone: its tables were emptied or restored from an older \
         copy, or its progress topic was deleted; given everything again, it would have every result twice that it \
         still has"
    )]
    Lost,
}

impl Mismatch {
    /// What permits a start with it, and what that costs.
    fn way_on(self, sink: &str) -> String {
        match self {
            Mismatch::Ahead { sink: has, ledger } => format!(
                "`--reset-sink {sink} --accept-duplicates` goes on after epoch {ledger}: the input of the {} epochs that \
                 the ledger lost is read again, and its results are written a second time",
                has.0 - ledger.0
            ),
            Mismatch::Lost => format!(
                "`--reset-sink {sink}` marks it as caught up with the ledger: nothing is doubled, and what it \
                 had not committed of that is never written to it; where its results are gone, too, `--accept-duplicates` alone gives it \
                 everything again that can be replayed"
            ),
        }
    }
}

/// What a sink has: by shard, the last epoch of those that are recorded; none if nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommittedThrough(Vec<Option<Epoch>>);

impl CommittedThrough {
    /// Nothing.
    pub fn nothing() -> CommittedThrough {
        CommittedThrough(vec![None; SHARDS as usize])
    }

    /// By what all its writers, of all starts, have promised, of the epochs that the ledger has through `durable`.
    ///
    /// # Errors
    /// If what the sink has does not follow from this ledger.
    fn of(progress: &[Progress], durable: Epoch) -> Result<CommittedThrough, Mismatch> {
        let last = progress.iter().map(|progress| progress.through).max();
        if let Some(sink) = last.filter(|&last| last > durable) {
            return Err(Mismatch::Ahead { sink, ledger: durable });
        }
        let mut committed_through = CommittedThrough::nothing();
        for &Progress { shards, through, .. } in progress {
            for (shard, committed_through) in (0..SHARDS).map(ShardId).zip(&mut committed_through.0) {
                *committed_through = if shards.contains(shard) {
                    (*committed_through).max(Some(through))
                } else {
                    *committed_through
                };
            }
        }
        Ok(committed_through)
    }

    /// The last epoch of which it has every shard.
    pub fn least(&self) -> Option<Epoch> {
        self.0.iter().copied().min().flatten()
    }

    /// The last epoch of which it has every one of these shards: a writer of theirs goes on after it.
    pub fn least_of(&self, shards: Shards) -> Option<Epoch> {
        let own = (0..SHARDS).map(ShardId).zip(&self.0).filter(|(shard, _)| shards.contains(*shard));
        own.map(|(_, &committed_through)| committed_through).min().flatten()
    }

    /// Whether it has a shard's outputs of an epoch.
    pub fn has(&self, ShardId(shard): ShardId, epoch: Epoch) -> bool {
        self.0[shard as usize] >= Some(epoch)
    }

    /// The last epoch of which it has any shard.
    pub fn most(&self) -> Option<Epoch> {
        self.0.iter().copied().max().flatten()
    }
}

/// What a ledger has, as epochs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recorded<'a> {
    /// The last that is recorded.
    pub last_round: Option<Epoch>,
    /// Those of all manifests.
    pub manifests: &'a [Epoch],
    /// Those of the manifests that can be read.
    pub readable: &'a [Epoch],
    /// Through which rounds were pruned; 0 if none were.
    pub pruned: Epoch,
    /// The sinks that have committed before, by name.
    pub committed: &'a [String],
}

/// How a start goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The ledger's end.
    pub durable: Epoch,
    /// By sink, what it has.
    pub committed_through: Vec<CommittedThrough>,
    /// See [`origins`].
    pub origins: Vec<Epoch>,
}

impl Resume {
    /// Whether nothing is to be done again, by anyone: there is a checkpoint where the ledger ends, and every sink has
    /// everything. So is a pipeline that has not recorded anything.
    pub fn is_finished(&self) -> bool {
        let all = |committed_through: &CommittedThrough| {
            committed_through.least().unwrap_or_default() == self.durable
        };
        self.origins.first() == Some(&self.durable) && self.committed_through.iter().all(all)
    }
}

/// A start must not go on.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NoResume {
    /// A sink and the ledger do not belong together.
    #[error("sink {sink}: {mismatch}; {}", .mismatch.way_on(.sink))]
    Mismatch {
        /// Which sink.
        sink: String,
        /// What does not fit.
        mismatch: Mismatch,
    },
    /// There is nothing to go on from.
    #[error(transparent)]
    NoOrigin(#[from] NoOrigin),
}

/// What a sink has of the epochs that the ledger has through `durable`, given the sinks that have `committed` before.
///
/// # Errors
/// If what the sink has does not follow from this ledger.
pub fn committed_through(
    sink: &str,
    progress: &[Progress],
    durable: Epoch,
    committed: &[String],
) -> Result<CommittedThrough, NoResume> {
    let has_committed = committed.iter().any(|committed| committed == sink);
    let committed_through = if has_committed && progress.is_empty() {
        Err(Mismatch::Lost)
    } else {
        CommittedThrough::of(progress, durable)
    };
    committed_through.map_err(|mismatch| NoResume::Mismatch { sink: sink.to_owned(), mismatch })
}

/// How a start goes on, from what the ledger has and each sink's progress.
///
/// # Errors
/// If it must not.
pub fn resume(recorded: Recorded<'_>, sinks: &[(&str, &[Progress])]) -> Result<Resume, NoResume> {
    let durable = durable(recorded.last_round, recorded.manifests);
    let committed_through = |&(sink, progress): &(&str, &[Progress])| {
        committed_through(sink, progress, durable, recorded.committed)
    };
    let committed_through = sinks.iter().map(committed_through).collect::<Result<Vec<_>, _>>()?;
    let named: Vec<_> = sinks
        .iter()
        .map(|(sink, _)| *sink)
        .zip(committed_through.iter().map(CommittedThrough::least))
        .collect();
    let origins = origins(recorded.readable, recorded.pruned, durable, &named)?;
    Ok(Resume { durable, committed_through, origins })
}

#[cfg(test)]
mod tests {
    use headwater_sinks::{Generation, LedgerId};

    use super::*;

    fn progress(generation: u64, through: u64, shards: Shards) -> Progress {
        let (ledger_id, generation) = (LedgerId("a".into()), Generation(generation));
        Progress { ledger_id, generation, shards, through: Epoch(through) }
    }

    #[test]
    fn a_sink_goes_on_after_what_it_has_and_must_not_be_ahead_of_the_ledger() {
        let committed_through = |progress: &[Progress], durable| {
            CommittedThrough::of(progress, Epoch(durable))
                .map(|committed_through| committed_through.least_of(Shards::ALL))
        };
        assert_eq!(committed_through(&[], 7), Ok(None), "new: it is given everything");
        let two = [progress(1, 5, Shards::ALL), progress(2, 6, Shards::ALL)];
        assert_eq!(committed_through(&two, 7), Ok(Some(Epoch(6))));
        assert_eq!(committed_through(&two, 6), Ok(Some(Epoch(6))), "everything");
        assert_eq!(committed_through(&two, 5), Err(Mismatch::Ahead { sink: Epoch(6), ledger: Epoch(5) }));
        assert_eq!(
            committed_through(&two, 0),
            Err(Mismatch::Ahead { sink: Epoch(6), ledger: Epoch(0) }),
            "wiped"
        );
    }

    #[test]
    fn each_writer_goes_on_after_what_its_own_shards_have() {
        let part = |process| Shards::of_workers(process..process + 1, 3);
        let found = [progress(1, 5, part(0)), progress(1, 7, part(1)), progress(2, 6, part(0))];
        let committed_through = CommittedThrough::of(&found, Epoch(7)).expect("they follow");
        assert_eq!(
            [0, 1, 2].map(|process| committed_through.least_of(part(process)).map(|epoch| epoch.0)),
            [Some(6), Some(7), None]
        );
        assert_eq!(
            (committed_through.least(), committed_through.most()),
            (None, Some(Epoch(7))),
            "the third has written nothing"
        );
        // Now they lie otherwise on processes: each goes on after what the least of its shards has, and has some of more.
        let rest = [progress(3, 5, part(2))];
        let committed_through =
            CommittedThrough::of(&[&found[..], &rest].concat(), Epoch(7)).expect("they follow");
        assert_eq!(committed_through.least_of(Shards::of_workers(0..1, 2)), Some(Epoch(5)));
        for (shard, through) in [(0, 6), (1, 7), (2, 5), (63, 6)] {
            let has = |epoch| committed_through.has(ShardId(shard), Epoch(epoch));
            assert!(has(through) && has(1) && !has(through + 1), "{shard}");
        }
        assert!(!CommittedThrough::nothing().has(ShardId(0), Epoch(0)));
    }

    #[test]
    fn nothing_is_to_be_done_again_if_checkpoint_ledger_and_sinks_end_together() {
        let finished = |last: u64, manifest: &[Epoch], sinks: &[u64]| {
            let recorded = Recorded {
                last_round: (last > 0).then_some(Epoch(last)),
                manifests: manifest,
                readable: manifest,
                pruned: Epoch(0),
                committed: &[],
            };
            let progress: Vec<_> = sinks.iter().map(|&through| [progress(1, through, Shards::ALL)]).collect();
            let sinks: Vec<_> = progress.iter().map(|progress| ("a", &progress[..])).collect();
            resume(recorded, &sinks).expect("they belong together").is_finished()
        };
        assert!(finished(7, &[Epoch(7)], &[7, 7]));
        assert!(!finished(7, &[Epoch(6)], &[7, 7]), "the last epoch is in no checkpoint");
        assert!(!finished(7, &[Epoch(7)], &[7, 6]), "a sink is behind");
        assert!(!finished(7, &[], &[7]));
        assert!(finished(0, &[], &[0]), "nothing has been done");
    }

    #[test]
    fn a_start_goes_on_from_what_ledger_and_sinks_have_together() {
        let manifests = [Epoch(4), Epoch(6)];
        let recorded = Recorded {
            last_round: Some(Epoch(7)),
            manifests: &manifests,
            readable: &manifests,
            pruned: Epoch(4),
            committed: &[],
        };
        let (ahead, behind) = ([progress(1, 7, Shards::ALL)], [progress(1, 5, Shards::ALL)]);
        let both = [("a", &ahead[..]), ("b", &behind[..])];
        let committed_through =
            [7, 5].map(|through| CommittedThrough(vec![Some(Epoch(through)); SHARDS as usize])).to_vec();
        let expected = Resume { durable: Epoch(7), committed_through, origins: vec![Epoch(4)] };
        assert_eq!(resume(recorded, &both), Ok(expected));
        let lost = Recorded { last_round: None, ..recorded };
        let mismatch = Mismatch::Ahead { sink: Epoch(7), ledger: Epoch(6) };
        assert_eq!(resume(lost, &both), Err(NoResume::Mismatch { sink: "a".into(), mismatch }));
        let committed = ["b".to_owned()];
        let registered = Recorded { committed: &committed, pruned: Epoch(0), ..recorded };
        let gone = resume(registered, &[("a", &ahead[..]), ("b", &[])]);
        assert_eq!(gone, Err(NoResume::Mismatch { sink: "b".into(), mismatch: Mismatch::Lost }));
        assert!(resume(registered, &[("new", &[])]).is_ok(), "it is given everything");
        let unreadable = Recorded { readable: &[], ..recorded };
        assert_eq!(
            resume(unreadable, &both),
            Err(NoResume::NoOrigin(NoOrigin::Unreadable { pruned: Epoch(4), durable: Epoch(7) }))
        );
    }
}

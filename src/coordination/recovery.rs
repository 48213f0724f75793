//! Recovery: decides how a start resumes from the contents of the ledger and the progress of each sink.

use headwater_dataflows::{Epoch, SHARDS, ShardId};
use headwater_sinks::{Progress, Shards};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::checkpoints::{NoOrigin, durable, origins};

/// A contradiction between a sink's progress and the ledger.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Mismatch {
    /// The sink has committed more than the ledger contains. A sink commits only what is durable in its ledger, so
    /// this is not the ledger that it followed.
    #[error(
        "it has results through epoch {sink}, and the ledger ends at epoch {ledger}: the ledger was wiped or restored \
         from an older copy"
    )]
    Ahead {
        /// The last epoch that the sink has committed.
        sink: Epoch,
        /// The last epoch of the ledger.
        ledger: Epoch,
    },
    /// The progress of the sink is gone. A sink that has committed has progress unless something deletes it.
    #[error(
        "it has committed results before, and its progress is gone: its tables were emptied or restored from an older \
         copy, or its progress topic was deleted; if everything were written to it again, every result that it \
         still has would be duplicated"
    )]
    Lost,
}

impl Mismatch {
    /// Returns the options that permit a start in spite of the mismatch, and their cost.
    fn remedy(self, sink: &str) -> String {
        match self {
            Mismatch::Ahead { sink: has, ledger } => format!(
                "`--adopt-sink {sink} --accept-duplicates` resumes after epoch {ledger}: the input of the {} epochs that \
                 the ledger lost is read again, and its results are written a second time",
                has.0 - ledger.0
            ),
            Mismatch::Lost => format!(
                "`--adopt-sink {sink}` marks it as caught up with the ledger: nothing is duplicated, and the \
                 recorded results that it had not committed are never written to it; if its results are gone, too, \
                 `--accept-duplicates` alone writes everything to it again that can be replayed"
            ),
        }
    }
}

/// The progress of a sink: the last recorded epoch that it has committed, by shard; None if nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommittedThrough(Vec<Option<Epoch>>);

impl CommittedThrough {
    /// Returns the progress of a sink that has committed nothing.
    pub fn nothing() -> CommittedThrough {
        CommittedThrough(vec![None; SHARDS as usize])
    }

    /// Merges the progress of all writers of all generations, within the epochs of the ledger, which ends at
    /// `durable`.
    ///
    /// # Errors
    /// If the progress of the sink does not follow from this ledger.
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

    /// Returns the last epoch that the sink has committed for every shard.
    pub fn least(&self) -> Option<Epoch> {
        self.0.iter().copied().min().flatten()
    }

    /// Returns the last epoch that the sink has committed for every one of these shards. Their writer resumes after
    /// it.
    pub fn least_of(&self, shards: Shards) -> Option<Epoch> {
        let shard_progress =
            (0..SHARDS).map(ShardId).zip(&self.0).filter(|(shard, _)| shards.contains(*shard));
        shard_progress.map(|(_, &committed_through)| committed_through).min().flatten()
    }

    /// Returns true if the sink has committed the outputs of a shard in an epoch.
    pub fn has(&self, ShardId(shard): ShardId, epoch: Epoch) -> bool {
        self.0[shard as usize] >= Some(epoch)
    }

    /// Returns the last epoch that the sink has committed for any shard.
    pub fn most(&self) -> Option<Epoch> {
        self.0.iter().copied().max().flatten()
    }
}

/// The contents of a ledger, as epochs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recorded<'a> {
    /// The last epoch that is recorded in a round.
    pub last_round: Option<Epoch>,
    /// The epochs of all manifests.
    pub manifests: &'a [Epoch],
    /// The epochs of the manifests that can be read.
    pub readable: &'a [Epoch],
    /// The last epoch of the pruned rounds; 0 if none were pruned.
    pub pruned: Epoch,
    /// The names of the sinks that have committed before.
    pub committed: &'a [String],
}

/// The result of recovery: how a start resumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The last epoch of the ledger.
    pub durable: Epoch,
    /// The progress of each sink.
    pub committed_through: Vec<CommittedThrough>,
    /// See [`origins`].
    pub origins: Vec<Epoch>,
}

impl Resume {
    /// Returns true if there is nothing to replay: the newest checkpoint is at the end of the ledger, and every sink
    /// has committed everything. This includes a pipeline that has not recorded anything.
    pub fn is_finished(&self) -> bool {
        let all = |committed_through: &CommittedThrough| {
            committed_through.least().unwrap_or_default() == self.durable
        };
        self.origins.first() == Some(&self.durable) && self.committed_through.iter().all(all)
    }
}

/// The reason why a start must not resume.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NoResume {
    /// The progress of a sink contradicts the ledger.
    #[error("sink {sink}: {mismatch}; {}", .mismatch.remedy(.sink))]
    Mismatch {
        /// The name of the sink.
        sink: String,
        /// The contradiction.
        mismatch: Mismatch,
    },
    /// There is no checkpoint to resume from.
    #[error(transparent)]
    NoOrigin(#[from] NoOrigin),
}

/// Returns the progress of a sink within the epochs of the ledger, which ends at `durable`, given the sinks that have
/// `committed` before.
///
/// # Errors
/// If the progress of the sink does not follow from this ledger.
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

/// Decides how a start resumes, given the contents of the ledger and the progress of each sink.
///
/// # Errors
/// If the start must not resume.
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
    fn sinks_resume_after_progress_and_not_ahead_of_the_ledger() {
        let committed_through = |progress: &[Progress], durable| {
            CommittedThrough::of(progress, Epoch(durable))
                .map(|committed_through| committed_through.least_of(Shards::ALL))
        };
        assert_eq!(committed_through(&[], 7), Ok(None), "a new sink needs everything");
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
    fn each_writer_resumes_after_the_progress_of_its_shards() {
        let part = |process| Shards::of_workers(process..process + 1, 3);
        let found = [progress(1, 5, part(0)), progress(1, 7, part(1)), progress(2, 6, part(0))];
        let committed_through =
            CommittedThrough::of(&found, Epoch(7)).expect("progress follows from the ledger");
        assert_eq!(
            [0, 1, 2].map(|process| committed_through.least_of(part(process)).map(|epoch| epoch.0)),
            [Some(6), Some(7), None]
        );
        assert_eq!(
            (committed_through.least(), committed_through.most()),
            (None, Some(Epoch(7))),
            "the third has written nothing"
        );
        // With another number of processes, the writer resumes after the least epoch of its shards, and some shards
        // have more.
        let rest = [progress(3, 5, part(2))];
        let committed_through = CommittedThrough::of(&[&found[..], &rest].concat(), Epoch(7))
            .expect("progress follows from the ledger");
        assert_eq!(committed_through.least_of(Shards::of_workers(0..1, 2)), Some(Epoch(5)));
        for (shard, through) in [(0, 6), (1, 7), (2, 5), (63, 6)] {
            let has = |epoch| committed_through.has(ShardId(shard), Epoch(epoch));
            assert!(has(through) && has(1) && !has(through + 1), "{shard}");
        }
        assert!(!CommittedThrough::nothing().has(ShardId(0), Epoch(0)));
    }

    #[test]
    fn nothing_is_replayed_if_checkpoint_ledger_and_sinks_agree() {
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
            resume(recorded, &sinks).expect("progress follows from the ledger").is_finished()
        };
        assert!(finished(7, &[Epoch(7)], &[7, 7]));
        assert!(!finished(7, &[Epoch(6)], &[7, 7]), "the last epoch is in no checkpoint");
        assert!(!finished(7, &[Epoch(7)], &[7, 6]), "a sink is behind");
        assert!(!finished(7, &[], &[7]));
        assert!(finished(0, &[], &[0]), "nothing is recorded");
    }

    #[test]
    fn a_start_resumes_from_the_ledger_and_the_sinks() {
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
        assert!(resume(registered, &[("new", &[])]).is_ok(), "a new sink needs everything");
        let unreadable = Recorded { readable: &[], ..recorded };
        assert_eq!(
            resume(unreadable, &both),
            Err(NoResume::NoOrigin(NoOrigin::Unreadable { pruned: Epoch(4), durable: Epoch(7) }))
        );
    }
}

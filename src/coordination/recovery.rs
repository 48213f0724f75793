//! What a start may go on from: what the ledger has, and what each sink has.

use headwater_dataflows::Epoch;
use headwater_sinks::{Progress, Shards};
use thiserror::Error;

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
    /// Several processes have written it.
    #[error("it was written by several processes, and a ledger goes with one process so far")]
    Parted,
}

/// The last epoch whose results a sink has, of those that the ledger has through `durable`; none if it has nothing.
///
/// # Errors
/// If what the sink has does not follow from this ledger.
pub fn taken(progress: &[Progress], durable: Epoch) -> Result<Option<Epoch>, Mismatch> {
    if progress.iter().any(|progress| progress.shards != Shards::ALL) {
        return Err(Mismatch::Parted);
    }
    let taken = progress.iter().map(|progress| progress.through).max();
    match taken {
        Some(sink) if sink > durable => Err(Mismatch::Ahead { sink, ledger: durable }),
        taken => Ok(taken),
    }
}

#[cfg(test)]
mod tests {
    use headwater_sinks::{Generation, Lineage};

    use super::*;

    fn progress(generation: u64, through: u64, shards: Shards) -> Progress {
        let (lineage, generation) = (Lineage("a".into()), Generation(generation));
        Progress { lineage, generation, shards, through: Epoch(through) }
    }

    #[test]
    fn a_sink_goes_on_after_what_it_has_and_must_not_be_ahead_of_the_ledger() {
        assert_eq!(taken(&[], Epoch(7)), Ok(None), "new: it is given everything");
        let two = [progress(1, 5, Shards::ALL), progress(2, 6, Shards::ALL)];
        assert_eq!(taken(&two, Epoch(7)), Ok(Some(Epoch(6))));
        assert_eq!(taken(&two, Epoch(6)), Ok(Some(Epoch(6))), "everything");
        let ahead = Mismatch::Ahead { sink: Epoch(6), ledger: Epoch(5) };
        assert_eq!(taken(&two, Epoch(5)), Err(ahead));
        assert_eq!(taken(&two, Epoch(0)), Err(Mismatch::Ahead { sink: Epoch(6), ledger: Epoch(0) }), "wiped");
        assert_eq!(taken(&[progress(1, 5, Shards(1))], Epoch(7)), Err(Mismatch::Parted));
    }
}

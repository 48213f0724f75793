//! The exchange between the thread that makes the pasts of rules and the operator that binds epochs.
//!
//! ```text
//!   Bind ── newest bound epoch: positions, watermark ──▶ Gate ──▶ Backfiller
//!     ◀── hold: read nothing, watermark stays ──────────  │  ◀───
//!     ◀── entry, if the positions are still those ──────  │  ◀───
//! ```

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use headwater_dataflows::{Epoch, EventTime, Offset};

use crate::runtime::ingest::changes::ChangeRequest;

/// The state at the end of a bound epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundState {
    /// The epoch.
    pub epoch: Epoch,
    /// The offset of the next record, by partition.
    pub positions: Vec<Offset>,
    /// The timestamp of the last record before it, by partition, if one was read.
    pub timestamps_ms: Vec<Option<i64>>,
    /// The watermark.
    pub watermark: EventTime,
    /// A time that no event of the epoch or an earlier one is after, unless it is final.
    pub last_time: EventTime,
}

impl BoundState {
    /// Returns true if no record and no progress of the watermark is between the two.
    pub fn is_same(&self, other: &BoundState) -> bool {
        self.positions == other.positions && self.watermark == other.watermark
    }
}

/// The gate. Clones share it.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<Shared>, Condvar)>);

#[derive(Default)]
struct Shared {
    /// True if the thread wants to know what is bound.
    is_watched: bool,
    /// True if nothing is to be read.
    is_held: bool,
    bound: Option<BoundState>,
    /// The entry of rules whose pasts are those at a bound state.
    entry: Option<(BoundState, ChangeRequest)>,
    is_ended: bool,
}

/// The run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunEnded;

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.0.lock().expect("no thread panics while it holds the lock")
    }

    /// Returns the state at the end of an epoch after `after`, as soon as there is one; None after `timeout`.
    ///
    /// # Errors
    /// If the run ends.
    pub fn bound_after(&self, after: Epoch, timeout: Duration) -> Result<Option<BoundState>, RunEnded> {
        let until = Instant::now() + timeout;
        let mut shared = self.lock();
        shared.is_watched = true;
        loop {
            if shared.is_ended {
                return Err(RunEnded);
            }
            if let Some(bound) = shared.bound.as_ref().filter(|bound| bound.epoch > after) {
                return Ok(Some(bound.clone()));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let waited = self.0.1.wait_timeout(shared, left);
            shared = waited.expect("no thread panics while it holds the lock").0;
        }
    }

    /// Holds the reading of records and the watermark.
    pub fn hold(&self) {
        self.lock().is_held = true;
    }

    /// Lets records be read again, and withdraws the entry unless it is bound.
    pub fn release(&self) {
        let mut shared = self.lock();
        (shared.is_held, shared.is_watched, shared.bound, shared.entry) = (false, false, None, None);
    }

    /// Offers the entry of rules whose pasts are those at a bound state. It is bound to a later epoch without records, if
    /// nothing was read since that state, and reading goes on then.
    pub fn offer(&self, state: BoundState, request: ChangeRequest) {
        self.lock().entry = Some((state, request));
    }

    /// Withdraws the entry; returns false if it is bound.
    pub fn withdraw(&self) -> bool {
        self.lock().entry.take().is_some()
    }

    /// Returns true if the thread waits for epochs.
    pub fn is_watched(&self) -> bool {
        self.lock().is_watched
    }

    /// Returns true if nothing is to be read, and the watermark stays.
    pub fn is_held(&self) -> bool {
        self.lock().is_held
    }

    /// Removes and returns the entry of rules that can be bound to an epoch without records with this state.
    pub fn take_entry(&self, state: &BoundState) -> Option<ChangeRequest> {
        let mut shared = self.lock();
        let (_, request) = shared.entry.take_if(|(of, _)| of.is_same(state))?;
        shared.is_held = false;
        Some(request)
    }

    /// Notes the state at the end of an epoch, which `state` returns.
    pub fn note(&self, state: impl FnOnce() -> BoundState) {
        let mut shared = self.lock();
        if shared.is_watched {
            shared.bound = Some(state());
            drop(shared);
            self.0.1.notify_all();
        }
    }

    /// Notes that the run binds no more.
    pub fn end(&self) {
        let mut shared = self.lock();
        (shared.is_ended, shared.is_held, shared.entry) = (true, false, None);
        drop(shared);
        self.0.1.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;
    use crate::coordination::Change;

    fn state(epoch: u64, next: i64, watermark: i64) -> BoundState {
        BoundState {
            epoch: Epoch(epoch),
            positions: vec![Offset(next)],
            timestamps_ms: vec![None],
            watermark: EventTime(watermark),
            last_time: EventTime(watermark),
        }
    }

    #[test]
    fn an_entry_is_bound_only_where_its_pasts_end() {
        let gate = Gate::default();
        gate.note(|| panic!("nobody watches"));
        assert_eq!(gate.bound_after(Epoch(0), Duration::ZERO), Ok(None));
        gate.note(|| state(7, 10, 5));
        assert_eq!(gate.bound_after(Epoch(6), Duration::ZERO), Ok(Some(state(7, 10, 5))));
        assert_eq!(gate.bound_after(Epoch(7), Duration::ZERO), Ok(None));
        let (bound, _) = sync_channel(1);
        let make = Box::new(|_: &_| Change::default());
        gate.hold();
        gate.offer(state(7, 10, 5), ChangeRequest { make, contents: Vec::new(), bound });
        assert!(gate.take_entry(&state(8, 11, 5)).is_none() && gate.take_entry(&state(8, 10, 6)).is_none());
        assert!(gate.is_held());
        assert!(gate.take_entry(&state(8, 10, 5)).is_some());
        assert!(!gate.is_held() && gate.take_entry(&state(9, 10, 5)).is_none());
        gate.end();
        assert_eq!(gate.bound_after(Epoch(0), Duration::ZERO), Err(RunEnded));
    }
}

//! Waiting of operators while little arrives, and what wakes them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use timely::scheduling::{Activator, SyncActivator};

/// The pause after a read that returned nothing, if nothing wakes the reader.
const PAUSE: Duration = Duration::from_millis(1);

/// The pause after a read that returned nothing, if records wake the reader.
const LONG_PAUSE: Duration = Duration::from_millis(50);

/// The time of the next read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextRead {
    /// There may be more records.
    Now,
    /// Something is waited for that does not wake the reader.
    Soon,
    /// Records wake the reader.
    Later,
}

/// Activates an operator after a time. An activation that is due earlier makes a later one needless, so that repeated
/// calls do not add up.
pub struct Alarm {
    activator: Activator,
    due: Option<Instant>,
}

impl Alarm {
    /// Creates an alarm for an operator.
    pub fn new(activator: Activator) -> Alarm {
        Alarm { activator, due: None }
    }

    /// Activates the operator at once.
    pub fn now(&self) {
        self.activator.activate();
    }

    /// Activates the operator for its next read.
    pub fn at(&mut self, next: NextRead) {
        match next {
            NextRead::Now => self.now(),
            NextRead::Soon => self.within(PAUSE),
            NextRead::Later => self.within(LONG_PAUSE),
        }
    }

    /// Activates the operator after a time at most.
    pub fn within(&mut self, time: Duration) {
        let now = Instant::now();
        let due = now + time;
        if self.due.is_none_or(|before| before <= now || before > due) {
            self.activator.activate_after(time);
            self.due = Some(due);
        }
    }
}

/// The signal of the readers of a process to its clock that an epoch has records. Clones share it.
#[derive(Clone, Default)]
pub struct Activity(Arc<Signal>);

#[derive(Default)]
struct Signal {
    has_records: AtomicBool,
    clock: Mutex<Option<SyncActivator>>,
}

impl Activity {
    /// Sets the clock, which is woken.
    pub fn wake(&self, clock: SyncActivator) {
        *self.0.clock.lock().expect(LOCK) = Some(clock);
    }

    /// Notes that the open epoch has records.
    pub fn note(&self) {
        if !self.0.has_records.swap(true, Ordering::AcqRel)
            && let Some(clock) = &*self.0.clock.lock().expect(LOCK)
        {
            // An error means that the dataflow has ended.
            let _ = clock.activate();
        }
    }

    /// Returns true if an epoch has had records since the last [`reset`](Activity::reset).
    pub fn has_records(&self) -> bool {
        self.0.has_records.load(Ordering::Acquire)
    }

    /// Forgets the records: a new epoch begins.
    pub fn reset(&self) {
        self.0.has_records.store(false, Ordering::Release);
    }
}

const LOCK: &str = "no thread panics while it holds the lock";

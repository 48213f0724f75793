//! One partition as its reader follows it: how far it pushes the watermark, whether it is idle, what it waits for.

use std::time::Duration;

use headwater_dataflows::{EventTime, Offset, Partition};
use serde::{Deserialize, Serialize};

use super::{PushTime, TimeRules, UnfinalBytes};
use crate::coordination::{Binding, Position};
use crate::source::PartitionState;

/// The numbers by which partitions are judged.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long nothing must raise a partition's pushing time, while it is read to its end, for it to be idle.
    pub idle_timeout: Duration,
    /// How long a transaction may hold a partition before it counts as idle; none waits for ever.
    pub held_timeout: Option<Duration>,
    /// How far beyond its clocks an event may lie, in milliseconds.
    pub max_future_skew_ms: i64,
    /// How far a record may jump ahead before another one must confirm it, in milliseconds; none lets all jumps count.
    pub max_jump_ms: Option<i64>,
    /// Whether epochs are counts of records: then a partition is idle only once it has ended.
    pub counted: bool,
}

/// The longest time between two looks at a partition that counts as reading it: a process that was stopped for longer
/// has not read meanwhile.
const LONGEST_LOOK: Duration = Duration::from_millis(100);

/// What a partition that holds the watermark back is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Waiting {
    /// An upstream transaction that is open at this offset, for so many milliseconds.
    Transaction {
        /// The offset of the transaction's first record.
        offset: Offset,
        /// For how long reading has stood there.
        for_ms: u64,
    },
    /// Its leader does not answer, for so many milliseconds.
    Leader {
        /// Since when nothing came.
        for_ms: u64,
    },
    /// Records that wait to be read.
    Backlog {
        /// How many are known.
        records: u64,
    },
    /// Nothing: the time is running after which it is idle.
    Silence,
}

/// The partition of a worker that holds the watermark back most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Slowest {
    /// Its greatest pushing time; none if no record was accepted.
    pub greatest: Option<EventTime>,
    /// The partition.
    pub partition: Partition,
    /// What it waits for.
    pub waiting: Waiting,
}

/// How long a partition has been read without its pushing time being raised.
#[derive(Clone, Copy, Debug, Default)]
struct IdleTimer {
    elapsed: Duration,
    /// The high watermark when the timer started, once the client has observed one since.
    target: Option<Offset>,
    /// The client's observation before the timer started.
    started_at: u64,
}

/// What the open epoch took from a partition.
#[derive(Clone, Copy, Debug, Default)]
struct EpochSoFar {
    /// The offset after the last record, and that record's timestamp.
    end: Option<(Offset, i64)>,
    max_event_time: Option<EventTime>,
    raised: bool,
    unfinal: UnfinalBytes,
}

/// Follows one partition.
#[derive(Clone, Debug)]
pub struct PartitionTracker {
    partition: Partition,
    push: PushTime,
    /// As it was bound last.
    bound_idle: bool,
    /// As of now, by what was read live.
    idle: bool,
    epoch: EpochSoFar,
    timer: IdleTimer,
    restart_timer: bool,
    leader_failures: u64,
    unavailable_since: Option<Duration>,
    held: Option<(Offset, Duration)>,
    at_end_since: Option<Duration>,
    looked: Option<Duration>,
    /// How long its records have not been asked for.
    unread: Duration,
    /// What the open epoch took from it before, if it is replayed and took anything.
    target: Option<Binding>,
    /// Whether it was added in the open epoch, which is recorded even if nothing else is to be said.
    added: bool,
}

impl PartitionTracker {
    /// Of a partition that has come as far as `position`.
    pub fn new(partition: Partition, position: &Position) -> PartitionTracker {
        PartitionTracker {
            partition,
            push: position.push,
            bound_idle: position.idle,
            idle: false,
            epoch: EpochSoFar::default(),
            timer: IdleTimer::default(),
            restart_timer: true,
            leader_failures: 0,
            unavailable_since: None,
            held: None,
            at_end_since: None,
            looked: None,
            unread: Duration::ZERO,
            target: None,
            added: false,
        }
    }

    /// Of a partition that was added, in an epoch that takes no record of it.
    pub fn added(partition: Partition, first: Offset) -> PartitionTracker {
        PartitionTracker { added: true, ..PartitionTracker::new(partition, &Position::starting(first)) }
    }

    /// Which partition it is.
    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// Whether it was bound as idle.
    pub fn is_idle(&self) -> bool {
        self.bound_idle
    }

    /// The greatest pushing time.
    pub fn greatest(&self) -> Option<EventTime> {
        self.push.greatest
    }

    /// Turns to an epoch that is replayed, and took this from the partition before.
    pub fn replay(&mut self, target: Option<Binding>) {
        self.target = target;
        self.restart_timer = true;
    }

    /// Whether everything was read that a replayed epoch is known to hold.
    pub fn is_complete(&self) -> bool {
        match self.target {
            Some(Binding { end, timestamp: Some(timestamp), .. }) => self.epoch.end == Some((end, timestamp)),
            _ => true,
        }
    }

    /// What the open epoch took before, if it is replayed.
    pub fn target(&self) -> Option<Binding> {
        self.target
    }

    /// The last record that the open epoch took so far: the offset after it, and its timestamp.
    pub fn end(&self) -> Option<(Offset, i64)> {
        self.epoch.end
    }

    /// A record was read into the open epoch.
    pub fn record(&mut self, offset: Offset, timestamp_ms: i64) {
        self.epoch.end = Some((Offset(offset.0 + 1), timestamp_ms));
    }

    /// It is an event that is accepted. Only one that is not late, by the watermark that is known, ends idleness.
    pub fn accept(
        &mut self,
        time: EventTime,
        pushing: EventTime,
        bytes: usize,
        timing: &Timing,
        watermark: EventTime,
    ) {
        self.epoch.max_event_time = self.epoch.max_event_time.max(Some(time));
        let raised = self.push.accept(pushing, timing.max_jump_ms);
        self.epoch.raised |= raised;
        self.epoch.unfinal.add(time, self.push.greatest, bytes);
        if raised && time > watermark {
            self.idle = false;
            self.restart_timer = true;
        }
    }

    /// Looks at the partition after reading at `now`; `reading` says whether its records were asked for since the look
    /// before: it was not paused, not limited, and there was a budget.
    pub fn observe(&mut self, state: &PartitionState, now: Duration, reading: bool, timing: &Timing) {
        let since = self.looked.replace(now).map_or(Duration::ZERO, |before| now.saturating_sub(before));
        self.unavailable_since = match state.available {
            true => None,
            false => Some(self.unavailable_since.unwrap_or(now)),
        };
        let failed =
            std::mem::replace(&mut self.leader_failures, state.leader_failures) != state.leader_failures;
        self.unread = if reading { since } else { self.unread + since };
        if failed || !state.available || self.unread >= timing.idle_timeout {
            // Whoever cannot be asked, or was not, is not known to be silent.
            self.idle = false;
            self.restart_timer = true;
        }
        if std::mem::take(&mut self.restart_timer) {
            self.timer = IdleTimer { started_at: state.observation, ..IdleTimer::default() };
        } else if reading {
            self.timer.elapsed += since.min(LONGEST_LOOK);
        }
        if self.timer.target.is_none() && state.observation > self.timer.started_at {
            self.timer.target = state.high_watermark;
        }
        let holds = state.available
            && state.high_watermark.zip(state.stable_offset).is_some_and(|(high, stable)| {
                stable < high && state.position >= stable && state.position < high
            });
        self.held = match self.held {
            _ if !holds => None,
            Some((offset, since)) if offset == state.position => Some((offset, since)),
            _ => Some((state.position, now)),
        };
        let at_end = state.available && !failed && state.high_watermark == Some(state.position);
        self.at_end_since = at_end.then(|| self.at_end_since.unwrap_or(now));
        let silent = self.timer.elapsed >= timing.idle_timeout
            && self.timer.target.is_some_and(|target| state.position >= target);
        let held = self.held_for(now).map_or(Duration::ZERO, |(_, held)| held);
        if timing.held_timeout.is_some_and(|timeout| held >= timeout) {
            self.idle = !timing.counted;
        } else if held >= timing.idle_timeout {
            // What an open transaction holds is not silence, even if nothing came for long before.
            self.idle = false;
            self.restart_timer = true;
        } else if silent {
            self.idle = !timing.counted;
        }
    }

    /// The offset at which an open transaction holds the partition, and for how long.
    pub fn held_for(&self, now: Duration) -> Option<(Offset, Duration)> {
        self.held.map(|(offset, since)| (offset, now.saturating_sub(since)))
    }

    /// For how long the position has equalled the high watermark, as far as the leader says.
    pub fn at_end_for(&self, now: Duration) -> Option<Duration> {
        self.at_end_since.map(|since| now.saturating_sub(since))
    }

    /// Why the partition holds the watermark back, if it is not idle.
    pub fn slowness(&self, state: &PartitionState, now: Duration) -> Option<Slowest> {
        if self.bound_idle {
            return None;
        }
        let for_ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let waiting = match (self.unavailable_since, self.held_for(now)) {
            (Some(since), _) => Waiting::Leader { for_ms: for_ms(now.saturating_sub(since)) },
            (None, Some((offset, time))) => Waiting::Transaction { offset, for_ms: for_ms(time) },
            (None, None) if state.backlog > 0 => Waiting::Backlog { records: state.backlog },
            (None, None) => Waiting::Silence,
        };
        Some(Slowest { greatest: self.push.greatest, partition: self.partition, waiting })
    }

    /// Ends the open epoch: what it took, if that or the partition's idleness is worth recording, and the bytes that
    /// are not final yet.
    pub fn close(
        &mut self,
        state: &PartitionState,
        replaying: bool,
        rules: TimeRules,
    ) -> (Option<Binding>, UnfinalBytes) {
        let target = self.target.take();
        let EpochSoFar { end, max_event_time, raised, unfinal } = std::mem::take(&mut self.epoch);
        let idle = match (replaying, target) {
            (true, target) => target.map_or(self.bound_idle, |target| target.idle),
            (false, _) => self.idle || state.ended,
        };
        let changed =
            std::mem::replace(&mut self.bound_idle, idle) != idle || std::mem::take(&mut self.added);
        if end.is_none() && !changed && target.is_none() {
            return (None, unfinal);
        }
        let position = target.map_or(state.position, |target| target.end);
        let pushing_time = match rules {
            TimeRules::EventTime => max_event_time,
            TimeRules::EarliestClock => self.push.greatest.filter(|_| raised),
        };
        let binding = Binding {
            partition: self.partition,
            end: end.map_or(position, |(end, _)| end),
            timestamp: end.map(|(_, timestamp)| timestamp),
            max_event_time,
            pushing_time,
            candidate: self.push.candidate,
            idle,
        };
        if let Some(target) = target {
            // Records that are lost have pushed all the same.
            self.push.greatest = self.push.greatest.max(target.pushing_time);
            self.push.candidate = target.candidate;
        }
        (Some(binding), unfinal)
    }
}

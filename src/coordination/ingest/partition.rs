//! The state of one partition during reading: its pushing time, its idleness, and what it waits for.

use std::time::Duration;

use headwater_dataflows::{EventTime, Offset, Partition};
use serde::{Deserialize, Serialize};

use super::state::PartitionState;
use super::{PushTime, TimeRules, UNFINAL_PART, UnfinalBytes};
use crate::coordination::{Binding, Position};

/// The parameters for tracking partitions.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The time after which a partition is idle, if it is read to its end and nothing raises its pushing time.
    pub idle_timeout: Duration,
    /// The time that a transaction may hold a partition before the partition counts as idle; None waits forever.
    pub held_timeout: Option<Duration>,
    /// The maximum distance of an event time after its clocks, in milliseconds.
    pub max_future_skew_ms: i64,
    /// The distance that a record may jump ahead without being confirmed by another one, in milliseconds; None accepts
    /// all jumps.
    pub max_jump_ms: Option<i64>,
    /// True if epochs are counts of records: then a partition is idle only once it has ended.
    pub counted: bool,
}

/// The maximum time between two observations of a partition that counts as reading it: a process that was stopped for
/// longer has not read in the meantime.
const MAX_OBSERVATION_GAP: Duration = Duration::from_millis(100);

/// The reason why a partition holds back the watermark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Waiting {
    /// An upstream transaction is open.
    Transaction {
        /// The offset of the transaction's first record.
        offset: Offset,
        /// The time for which reading has been held at that offset, in milliseconds.
        for_ms: u64,
    },
    /// The leader of the partition does not respond.
    Leader {
        /// The time since the last response, in milliseconds.
        for_ms: u64,
    },
    /// The schema of the next record is not known.
    Schema {
        /// The offset of the record.
        offset: Offset,
        /// The time for which it has been waiting, in milliseconds.
        for_ms: u64,
    },
    /// Records are waiting to be read.
    Backlog {
        /// The number of known records.
        records: u64,
    },
    /// Nothing is waiting: the idle timeout is running.
    Silence,
}

/// The partition of a worker that holds back the watermark most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Slowest {
    /// The greatest pushing time; None if no record was accepted.
    pub greatest: Option<EventTime>,
    /// The partition.
    pub partition: Partition,
    /// The reason why it holds back the watermark.
    pub waiting: Waiting,
}

/// The time for which a partition has been read without its pushing time being raised.
#[derive(Clone, Copy, Debug, Default)]
struct IdleTimer {
    elapsed: Duration,
    /// The high watermark at the start of the timer, once the client has observed one since.
    target: Option<Offset>,
    /// The client's last observation before the timer started.
    started_at: u64,
}

/// The records that the open epoch has read from a partition.
#[derive(Clone, Debug, Default)]
struct OpenEpoch {
    /// The offset after the last record, and the timestamp of that record.
    end: Option<(Offset, i64)>,
    max_event_time: Option<EventTime>,
    raised: bool,
    /// The bytes of its events, in parts of which only the last one is not full.
    unfinal: Vec<UnfinalBytes>,
}

/// Tracks one partition.
#[derive(Clone, Debug)]
pub struct PartitionTracker {
    partition: Partition,
    push: PushTime,
    /// True if the last binding declared the partition idle.
    bound_idle: bool,
    /// True if the partition is idle now, according to live reading.
    idle: bool,
    epoch: OpenEpoch,
    timer: IdleTimer,
    restart_timer: bool,
    leader_failures: u64,
    unavailable_since: Option<Duration>,
    held: Option<(Offset, Duration)>,
    withheld: Option<(Offset, Duration)>,
    at_end_since: Option<Duration>,
    observed_at: Option<Duration>,
    /// The time for which its records have not been requested.
    unread: Duration,
    /// The binding of the partition in the open epoch, if the epoch is replayed and has one.
    target: Option<Binding>,
    /// True if the partition was added in the open epoch, which is then recorded even if nothing else happens.
    added: bool,
}

impl PartitionTracker {
    /// Returns the tracker of a partition that continues from `position`.
    pub fn new(partition: Partition, position: &Position) -> PartitionTracker {
        PartitionTracker {
            partition,
            push: position.push,
            bound_idle: position.idle,
            idle: false,
            epoch: OpenEpoch::default(),
            timer: IdleTimer::default(),
            restart_timer: true,
            leader_failures: 0,
            unavailable_since: None,
            held: None,
            withheld: None,
            at_end_since: None,
            observed_at: None,
            unread: Duration::ZERO,
            target: None,
            added: false,
        }
    }

    /// Returns the tracker of a partition that was just added, in an epoch that reads no record of it.
    pub fn added(partition: Partition, first: Offset) -> PartitionTracker {
        PartitionTracker { added: true, ..PartitionTracker::new(partition, &Position::starting(first)) }
    }

    /// Returns the partition.
    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// Returns true if the last binding declared the partition idle.
    pub fn is_idle(&self) -> bool {
        self.bound_idle
    }

    /// Returns the greatest pushing time.
    pub fn greatest(&self) -> Option<EventTime> {
        self.push.greatest
    }

    /// Begins an epoch that is replayed; `target` is its binding of the partition.
    pub fn replay(&mut self, target: Option<Binding>) {
        self.target = target;
        self.restart_timer = true;
    }

    /// Returns true if all records that a replayed epoch contains were read.
    pub fn is_complete(&self) -> bool {
        match self.target {
            Some(Binding { end, timestamp: Some(timestamp), .. }) => self.epoch.end == Some((end, timestamp)),
            _ => true,
        }
    }

    /// Returns the recorded binding of the open epoch, if it is replayed.
    pub fn target(&self) -> Option<Binding> {
        self.target
    }

    /// Returns the offset after the last record that the open epoch has read so far, and the timestamp of that record.
    pub fn end(&self) -> Option<(Offset, i64)> {
        self.epoch.end
    }

    /// Adds a record to the open epoch.
    pub fn record(&mut self, offset: Offset, timestamp_ms: i64) {
        self.epoch.end = Some((Offset(offset.0 + 1), timestamp_ms));
    }

    /// Applies an accepted event. Only an event that is not late by the known watermark ends idleness.
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
        let unfinal = &mut self.epoch.unfinal;
        match unfinal.last_mut() {
            Some(part) if part.total() < UNFINAL_PART => part.add(time, self.push.greatest, bytes),
            _ => unfinal.push(UnfinalBytes::of(time, self.push.greatest, bytes)),
        }
        if raised && time > watermark {
            self.idle = false;
            self.restart_timer = true;
        }
    }

    /// Observes the partition after reading at `now`. `reading` is true if its records were requested since the last
    /// observation: the partition was not paused or limited, and there was a budget.
    pub fn observe(&mut self, state: &PartitionState, now: Duration, reading: bool, timing: &Timing) {
        let since = self.observed_at.replace(now).map_or(Duration::ZERO, |before| now.saturating_sub(before));
        self.unavailable_since = match state.available {
            true => None,
            false => Some(self.unavailable_since.unwrap_or(now)),
        };
        let has_failed =
            std::mem::replace(&mut self.leader_failures, state.leader_failures) != state.leader_failures;
        self.unread = if reading { since } else { self.unread + since };
        self.withheld = match self.withheld {
            _ if !state.is_withheld => None,
            Some((offset, since)) if offset == state.position => Some((offset, since)),
            _ => Some((state.position, now)),
        };
        if has_failed || !state.available || state.is_withheld || self.unread >= timing.idle_timeout {
            // A partition is not known to be silent if its leader does not respond, if it was not read, or if records of it
            // wait for a schema.
            self.idle = false;
            self.restart_timer = true;
        }
        if std::mem::take(&mut self.restart_timer) {
            self.timer = IdleTimer { started_at: state.observation, ..IdleTimer::default() };
        } else if reading {
            self.timer.elapsed += since.min(MAX_OBSERVATION_GAP);
        }
        if self.timer.target.is_none() && state.observation > self.timer.started_at {
            self.timer.target = state.high_watermark;
        }
        let is_held = state.available
            && state.high_watermark.zip(state.stable_offset).is_some_and(|(high, stable)| {
                stable < high && state.position >= stable && state.position < high
            });
        self.held = match self.held {
            _ if !is_held => None,
            Some((offset, since)) if offset == state.position => Some((offset, since)),
            _ => Some((state.position, now)),
        };
        let is_at_end = state.available && !has_failed && state.high_watermark == Some(state.position);
        self.at_end_since = is_at_end.then(|| self.at_end_since.unwrap_or(now));
        let is_silent = self.timer.elapsed >= timing.idle_timeout
            && self.timer.target.is_some_and(|target| state.position >= target);
        let held = self.held_for(now).map_or(Duration::ZERO, |(_, held)| held);
        if timing.held_timeout.is_some_and(|timeout| held >= timeout) {
            self.idle = !timing.counted;
        } else if held >= timing.idle_timeout {
            // A partition that is held by an open transaction is not silent, even if nothing came for a long time
            // before.
            self.idle = false;
            self.restart_timer = true;
        } else if is_silent {
            self.idle = !timing.counted;
        }
    }

    /// Returns the offset at which an open transaction holds the partition, and the time for which it does.
    pub fn held_for(&self, now: Duration) -> Option<(Offset, Duration)> {
        self.held.map(|(offset, since)| (offset, now.saturating_sub(since)))
    }

    /// Returns the offset of the record that waits for its schema, and the time for which it does.
    pub fn withheld_for(&self, now: Duration) -> Option<(Offset, Duration)> {
        self.withheld.map(|(offset, since)| (offset, now.saturating_sub(since)))
    }

    /// Returns the time for which the position has equalled the high watermark, as last reported by the leader.
    pub fn at_end_for(&self, now: Duration) -> Option<Duration> {
        self.at_end_since.map(|since| now.saturating_sub(since))
    }

    /// Returns the reason why the partition holds back the watermark, if it is not idle.
    pub fn slowness(&self, state: &PartitionState, now: Duration) -> Option<Slowest> {
        if self.bound_idle {
            return None;
        }
        let for_ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let waiting = match (self.unavailable_since, self.held_for(now)) {
            _ if let Some((offset, time)) = self.withheld_for(now) => {
                Waiting::Schema { offset, for_ms: for_ms(time) }
            }
            (Some(since), _) => Waiting::Leader { for_ms: for_ms(now.saturating_sub(since)) },
            (None, Some((offset, time))) => Waiting::Transaction { offset, for_ms: for_ms(time) },
            (None, None) if state.backlog > 0 => Waiting::Backlog { records: state.backlog },
            (None, None) => Waiting::Silence,
        };
        Some(Slowest { greatest: self.push.greatest, partition: self.partition, waiting })
    }

    /// Ends the open epoch. Returns its binding, if records were read or the idleness changed, and its un-final bytes.
    pub fn close(
        &mut self,
        state: &PartitionState,
        replaying: bool,
        rules: TimeRules,
    ) -> (Option<Binding>, Vec<(Partition, UnfinalBytes)>) {
        let target = self.target.take();
        let OpenEpoch { end, max_event_time, raised, unfinal } = std::mem::take(&mut self.epoch);
        let unfinal = unfinal.into_iter().map(|part| (self.partition, part)).collect();
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
            // Lost records have pushed the watermark nevertheless.
            self.push.greatest = self.push.greatest.max(target.pushing_time);
            self.push.candidate = target.candidate;
        }
        (Some(binding), unfinal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordination::ingest::Unfinal;

    const TIMING: Timing = Timing {
        idle_timeout: Duration::from_millis(100),
        held_timeout: None,
        max_future_skew_ms: 0,
        max_jump_ms: None,
        counted: false,
    };

    /// Otherwise all that a long epoch has read would count as un-final until the next one is bound, however far the watermark is.
    #[test]
    fn what_a_long_epoch_has_read_is_not_all_un_final() {
        let mut tracker = PartitionTracker::new(Partition(0), &Position::starting(Offset(0)));
        for time in 1..=10_000 {
            tracker.accept(EventTime(time), EventTime(time), 1000, &TIMING, EventTime::MIN);
        }
        let state = PartitionState::finite(Partition(0), Offset(10_000), false, 0);
        let (_, parts) = tracker.close(&state, false, TimeRules::default());
        let mut unfinal = Unfinal::default();
        parts.into_iter().for_each(|(partition, part)| unfinal.add(partition, part));
        assert_eq!(unfinal.total(), 10_000_000);
        unfinal.settle(EventTime(9_000));
        let part = 2 * (UNFINAL_PART + 1000);
        assert!((1_000_000..1_000_000 + part).contains(&unfinal.total()), "{}", unfinal.total());
        assert_eq!(
            tracker.close(&state, false, TimeRules::default()).1,
            [],
            "the next epoch begins with none"
        );
    }

    /// Otherwise its records would be late once their schema is known.
    #[test]
    fn a_partition_that_waits_for_a_schema_is_not_idle() {
        let mut tracker = PartitionTracker::new(Partition(3), &Position::starting(Offset(0)));
        let mut now = Duration::ZERO;
        let mut observe = |tracker: &mut PartitionTracker, position, is_withheld| {
            let state = PartitionState {
                high_watermark: Some(Offset(position)),
                observation: now.as_millis() as u64,
                is_withheld,
                ..PartitionState::finite(Partition(3), Offset(position), false, 0)
            };
            for _ in 0..20 {
                now += Duration::from_millis(10);
                let observation = now.as_millis() as u64;
                tracker.observe(&PartitionState { observation, ..state }, now, true, &TIMING);
            }
            let (binding, _) = tracker.close(&state, false, TimeRules::default());
            (binding.map(|binding| (binding.end, binding.idle)), tracker.slowness(&state, now))
        };
        assert_eq!(observe(&mut tracker, 7, false), (Some((Offset(7), true)), None), "it is silent");
        let (binding, slowest) = observe(&mut tracker, 7, true);
        assert_eq!(binding, Some((Offset(7), false)), "a record that waits ends the idleness");
        let waiting = slowest.map(|slowest| slowest.waiting);
        assert_eq!(waiting, Some(Waiting::Schema { offset: Offset(7), for_ms: 190 }));
        assert_eq!(
            observe(&mut tracker, 8, false).0,
            Some((Offset(8), true)),
            "it is read, and silent again"
        );
    }
}

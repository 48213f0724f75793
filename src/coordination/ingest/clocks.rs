//! Clocks: the limits for a record's event time, and the pushing time by which a record advances the watermark.

use std::time::Duration;

use headwater_dataflows::EventTime;
use serde::{Deserialize, Serialize};

/// 2000-01-01T00:00:00Z, in milliseconds since 1970. An earlier timestamp counts as absent: Kafka uses −1 for no
/// timestamp, and a timestamp in seconds falls in January 1970.
const FIRST_TIMESTAMP_MS: i64 = 946_684_800_000;

/// The time rules for the records of an epoch. They are recorded with the epoch, so that replay applies the same
/// rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TimeRules {
    /// Format 1: only the event time pushes the watermark, and any timestamp is valid.
    EventTime,
    /// Format 2: the earliest of event time, timestamp and wall time pushes the watermark.
    #[default]
    EarliestClock,
}

/// The clock readings of when a record was written and when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    rules: TimeRules,
    /// The record's timestamp, in milliseconds since 1970, if it has one.
    pub timestamp_ms: Option<i64>,
    /// The recorded wall time of the epoch, in milliseconds since 1970; None for input that is read by count.
    pub wall_ms: Option<i64>,
}

impl Clocks {
    /// Returns the clocks of a record with this raw timestamp, in an epoch of this wall time.
    pub fn new(rules: TimeRules, timestamp_ms: i64, wall_ms: Option<i64>) -> Clocks {
        let known = match rules {
            TimeRules::EventTime => timestamp_ms < i64::MAX,
            TimeRules::EarliestClock => (FIRST_TIMESTAMP_MS..i64::MAX).contains(&timestamp_ms),
        };
        Clocks { rules, timestamp_ms: known.then_some(timestamp_ms), wall_ms }
    }

    /// Returns the earlier of the two clocks, if there is any.
    fn earliest_ms(self) -> Option<i64> {
        [self.timestamp_ms, self.wall_ms].into_iter().flatten().min()
    }

    /// Returns true if an event time is more than `skew_ms` after the earlier clock.
    pub fn is_future(self, time: EventTime, skew_ms: i64) -> bool {
        self.earliest_ms().is_some_and(|clock| time.0 > clock.saturating_add(skew_ms))
    }

    /// Returns the pushing time of an accepted record. It is limited by the clocks, so that a producer whose clock is
    /// ahead does not make the records of others late.
    pub fn pushing_time(self, time: EventTime) -> EventTime {
        match (self.rules, self.earliest_ms()) {
            (TimeRules::EarliestClock, Some(clock)) => time.min(EventTime(clock)),
            _ => time,
        }
    }
}

/// The progress of event time in a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushTime {
    /// The greatest pushing time of its records.
    pub greatest: Option<EventTime>,
    /// The time of its last accepted record, if the record jumped so far ahead that another record must confirm it.
    pub candidate: Option<EventTime>,
}

impl PushTime {
    /// Applies the pushing time of an accepted record; returns true if the greatest was raised.
    ///
    /// With `max_jump_ms`, a record that is further than that beyond the greatest is only a candidate. The candidate
    /// counts once the next record is not more than `max_jump_ms` before it; otherwise the next record replaces it.
    pub fn accept(&mut self, time: EventTime, max_jump_ms: Option<i64>) -> bool {
        let before = self.greatest;
        let Some(jump_ms) = max_jump_ms else {
            self.greatest = before.max(Some(time));
            return self.greatest > before;
        };
        if let Some(candidate) = self.candidate.take()
            && time >= candidate.minus_ms(jump_ms)
        {
            self.greatest = self.greatest.max(Some(candidate));
        }
        if self.greatest.is_none_or(|greatest| time > greatest.plus_ms(jump_ms)) {
            self.candidate = Some(time);
        } else {
            self.greatest = self.greatest.max(Some(time));
        }
        self.greatest > before
    }
}

/// The wall time that is recorded with epochs: it never goes back, and advances even if the system clock does not.
#[derive(Clone, Copy, Debug, Default)]
pub struct WallClock {
    last: Option<(i64, Duration)>,
}

impl WallClock {
    /// Continues from the last recorded wall time, in milliseconds since 1970, if there is one; `now` is the time
    /// since the start of the process.
    pub fn after(recorded_ms: Option<i64>, now: Duration) -> WallClock {
        WallClock { last: recorded_ms.map(|ms| (ms, now)) }
    }

    /// Returns the wall time to record now, given the system time.
    pub fn read(&mut self, system_ms: i64, now: Duration) -> i64 {
        let least = self.last.map_or(i64::MIN, |(ms, at)| {
            let elapsed = i64::try_from(now.saturating_sub(at).as_millis()).unwrap_or(i64::MAX);
            ms.saturating_add(elapsed)
        });
        let wall_ms = system_ms.max(least);
        // The anchor moves only with the system clock: rounding each reading down would lose time.
        if self.last.is_none() || system_ms >= least {
            self.last = Some((wall_ms, now));
        }
        wall_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: i64 = 1_800_000_000_000;

    #[test]
    fn clocks_that_are_ahead_do_not_push_others() {
        let clocks = |timestamp, wall| Clocks::new(TimeRules::EarliestClock, timestamp, wall);
        let push = |clocks: Clocks| clocks.pushing_time(EventTime(T)).0;
        assert_eq!(push(clocks(T - 5, Some(T - 3))), T - 5);
        assert_eq!(push(clocks(T + 5, Some(T - 3))), T - 3);
        assert_eq!(push(clocks(T + 5, Some(T + 3))), T, "an event of the past");
        assert_eq!(push(clocks(i64::MAX, None)), T, "a line of a file");
        for none in [-1, 0, T / 1000] {
            assert_eq!(push(clocks(none, Some(T + 1))), T, "{none} is no timestamp");
            assert!(!clocks(none, Some(T)).is_future(EventTime(T), 0), "{none}");
        }
        let old = Clocks::new(TimeRules::EventTime, -1, Some(T));
        assert_eq!(old.pushing_time(EventTime(T)).0, T);
        assert!(old.is_future(EventTime(T), 300_000), "format 1 took −1 for a timestamp");
    }

    #[test]
    fn the_earlier_clock_limits_event_time() {
        let clocks = Clocks::new(TimeRules::EarliestClock, T, Some(T + 60_000));
        assert!(!clocks.is_future(EventTime(T + 100), 100));
        assert!(clocks.is_future(EventTime(T + 101), 100));
        assert!(!Clocks::new(TimeRules::EarliestClock, i64::MAX, None).is_future(EventTime(i64::MAX), 0));
    }

    fn pushed(times: &[i64]) -> (Option<i64>, Option<i64>) {
        let mut push = PushTime::default();
        for &time in times {
            push.accept(EventTime(time), Some(100));
        }
        (push.greatest.map(|time| time.0), push.candidate.map(|time| time.0))
    }

    #[test]
    fn a_jump_counts_once_the_next_record_confirms_it() {
        assert_eq!(pushed(&[1000]), (None, Some(1000)), "nothing confirms the first record");
        assert_eq!(pushed(&[1000, 1001]), (Some(1001), None));
        assert_eq!(pushed(&[1000, 1001, 9000]), (Some(1001), Some(9000)));
        assert_eq!(pushed(&[1000, 1001, 9000, 1002]), (Some(1002), None), "a clock that was ahead");
        assert_eq!(pushed(&[1000, 1001, 9000, 8900]), (Some(9000), None), "a gap");
        assert_eq!(pushed(&[1000, 1001, 9000, 5000]), (Some(1001), Some(5000)), "the next takes its place");
        assert_eq!(pushed(&[9000, 1000, 1001]), (Some(1001), None), "the first was ahead");
        assert_eq!(pushed(&[1000, 2000, 3000, 4000]), (Some(3000), Some(4000)), "each a day apart");
    }

    #[test]
    fn recorded_wall_time_always_advances() {
        let at = Duration::from_millis;
        let mut clock = WallClock::after(Some(T), at(0));
        assert_eq!(clock.read(T + 10, at(10)), T + 10);
        assert_eq!(clock.read(T + 9, at(11)), T + 11, "a step back");
        assert_eq!(clock.read(T - 3_600_000, at(1010)), T + 1010, "an hour back");
        let sub_millis: Vec<_> =
            (0..4).map(|n| clock.read(T, Duration::from_micros(2_000_400 + 400 * n)) - T).collect();
        assert_eq!(sub_millis, [2000, 2000, 2001, 2001], "fractions of a millisecond add up");
        assert_eq!(clock.read(T + 5_000, at(2010)), T + 5_000, "a step forward is taken");
        assert_eq!(WallClock::default().read(7, at(0)), 7);
        assert_eq!(WallClock::after(Some(T), at(0)).read(T - 60_000, at(20)), T + 20, "across a restart");
    }
}

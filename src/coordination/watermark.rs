//! The watermark W(e), computed only from the bindings up to epoch e.

use headwater_dataflows::EventTime;

use super::ingest::TimeRules;
use super::{Binding, Manifest};

/// Computes the watermark epoch by epoch.
///
/// Of each partition: the greatest pushing time − `max_out_of_orderness` − 1 ms. W is the minimum over the partitions
/// that are not idle, and never goes back. A partition that has accepted no record and is not idle holds W back
/// completely. While all partitions are idle, W is the maximum, in whatever order they became idle, and stays there
/// unless it is configured to follow the recorded wall time then.
#[derive(Clone, Debug)]
pub struct Watermark {
    rule: WatermarkRule,
    partitions: Vec<Progress>,
    watermark: EventTime,
    all_idle: Option<AllIdle>,
}

/// The parameters of the watermark, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatermarkRule {
    /// The maximum distance of an event behind the greatest pushing time of its partition; an event further behind is
    /// late.
    pub max_out_of_orderness_ms: i64,
    /// The time that all partitions must have been idle before W follows the recorded wall time; None if W never does.
    pub idle_advance_ms: Option<i64>,
}

/// The state in which every partition is idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllIdle {
    /// The recorded wall time since which they are idle, in milliseconds since 1970.
    pub since_ms: i64,
    /// The distance of W behind that wall time, in milliseconds.
    pub lag_ms: i64,
}

/// The minimum step in which W follows the wall time, in milliseconds: each step is a row in the ledger.
const MIN_IDLE_STEP_MS: i64 = 1000;

#[derive(Clone, Copy, Debug)]
struct Progress {
    greatest: EventTime,
    idle: bool,
}

const UNKNOWN: Progress = Progress { greatest: EventTime::MIN, idle: false };

impl Watermark {
    /// Returns the watermark of `partitions` partitions from which nothing was read yet.
    pub fn new(partitions: usize, rule: WatermarkRule) -> Watermark {
        Watermark { rule, partitions: vec![UNKNOWN; partitions], watermark: EventTime::MIN, all_idle: None }
    }

    /// Returns the watermark at the end of a checkpoint's epoch.
    pub fn of(manifest: &Manifest, rule: WatermarkRule) -> Watermark {
        let partitions = manifest.positions.iter().map(|position| Progress {
            greatest: position.push.greatest.unwrap_or(EventTime::MIN),
            idle: position.idle,
        });
        let (watermark, all_idle) = (manifest.watermark, manifest.all_idle);
        Watermark { rule, partitions: partitions.collect(), watermark, all_idle }
    }

    /// Applies the bindings and the recorded wall time of an epoch, in milliseconds since 1970; returns W at the end
    /// of the epoch. An unknown partition is added.
    pub fn advance(&mut self, bindings: &[Binding], wall_ms: i64, rules: TimeRules) -> EventTime {
        for binding in bindings {
            let at = binding.partition.0 as usize;
            if at >= self.partitions.len() {
                self.partitions.resize(at + 1, UNKNOWN);
            }
            let partition = &mut self.partitions[at];
            partition.greatest = partition.greatest.max(binding.pushing_time.unwrap_or(EventTime::MIN));
            partition.idle = binding.idle;
        }
        let active = self.partitions.iter().filter(|partition| !partition.idle);
        if let Some(slowest) = active.map(|partition| partition.greatest).min() {
            self.advance_to(slowest);
            self.all_idle = None;
        } else {
            // Under the rules of format 1, W stayed where the last partition to become idle had left it.
            if rules == TimeRules::EarliestClock
                && let Some(newest) = self.partitions.iter().map(|partition| partition.greatest).max()
            {
                self.advance_to(newest);
            }
            self.follow_wall_time(wall_ms);
        }
        self.watermark
    }

    /// Advances W to a partition's greatest pushing time.
    fn advance_to(&mut self, greatest: EventTime) {
        let reached = greatest.minus_ms(self.rule.max_out_of_orderness_ms).minus_ms(1);
        self.watermark = self.watermark.max(reached);
    }

    /// Lets W follow the wall time with its lag, once every partition has been idle for long enough.
    fn follow_wall_time(&mut self, wall_ms: i64) {
        let Some(advance_ms) = self.rule.idle_advance_ms else { return };
        if self.watermark == EventTime::MIN || self.watermark == EventTime::MAX {
            return;
        }
        let fresh = AllIdle { since_ms: wall_ms, lag_ms: wall_ms.saturating_sub(self.watermark.0) };
        let AllIdle { since_ms, lag_ms } = *self.all_idle.get_or_insert(fresh);
        let reached = wall_ms.saturating_sub(lag_ms);
        if wall_ms.saturating_sub(since_ms) >= advance_ms
            && reached.saturating_sub(self.watermark.0) >= MIN_IDLE_STEP_MS
        {
            self.watermark = EventTime(reached);
        }
    }

    /// Ends the input: W goes to infinity, and stays there.
    pub fn close(&mut self) -> EventTime {
        self.watermark = EventTime::MAX;
        self.watermark
    }

    /// Returns W as of the last epoch.
    pub fn current(&self) -> EventTime {
        self.watermark
    }

    /// Returns the watermark of each partition alone, [`EventTime::MIN`] if it has accepted no record, and whether it is
    /// idle.
    pub fn partitions(&self) -> impl Iterator<Item = (EventTime, bool)> {
        self.partitions.iter().map(|partition| match partition.greatest {
            EventTime::MIN => (EventTime::MIN, partition.idle),
            greatest => (greatest.minus_ms(self.rule.max_out_of_orderness_ms).minus_ms(1), partition.idle),
        })
    }

    /// Returns the time since which every partition is idle, if they all are and W is to follow the wall time.
    pub fn all_idle(&self) -> Option<AllIdle> {
        self.all_idle
    }
}

#[cfg(test)]
mod tests {
    use headwater_dataflows::{Epoch, Offset, Partition};
    use headwater_sinks::Generation;

    use super::*;
    use crate::coordination::{Positions, Versions};

    const NOW: TimeRules = TimeRules::EarliestClock;
    const RULE: WatermarkRule = WatermarkRule { max_out_of_orderness_ms: 100, idle_advance_ms: Some(2_000) };

    fn binding(partition: u32, time: i64, idle: bool) -> Binding {
        let time = (time >= 0).then_some(EventTime(time));
        Binding {
            partition: Partition(partition),
            end: Offset(0),
            timestamp: None,
            max_event_time: time,
            pushing_time: time,
            candidate: None,
            idle,
        }
    }

    #[test]
    fn the_slowest_active_partition_decides_and_w_is_monotonic() {
        let mut watermark = Watermark::new(2, RULE);
        assert_eq!(
            watermark.advance(&[binding(0, 1000, false)], 0, NOW),
            EventTime::MIN,
            "partition 1 has no records"
        );
        assert_eq!(watermark.advance(&[binding(1, 500, false)], 0, NOW), EventTime(399));
        assert_eq!(
            watermark.advance(&[binding(1, 300, false)], 0, NOW),
            EventTime(399),
            "an older event changes nothing"
        );
        assert_eq!(
            watermark.advance(&[binding(1, -1, true)], 0, NOW),
            EventTime(899),
            "without the idle partition"
        );
        assert_eq!(watermark.advance(&[binding(0, -1, true)], 0, NOW), EventTime(899), "all idle: it stays");
        assert_eq!(
            watermark.advance(&[binding(1, 600, false)], 0, NOW),
            EventTime(899),
            "busy again, but behind"
        );
        assert_eq!(watermark.advance(&[binding(1, 2000, false)], 0, NOW), EventTime(1899));
    }

    #[test]
    fn the_watermark_resumes_from_a_checkpoint() {
        // Not every epoch names every partition: the earlier state of the others still counts, including that they are
        // idle.
        let epochs: [&[Binding]; 12] = [
            &[binding(0, 1000, false), binding(1, 500, false)],
            &[binding(1, -1, true), binding(0, 1200, false)],
            &[binding(0, -1, true), binding(1, 700, false)],
            &[binding(0, 900, false), binding(1, -1, false)],
            &[binding(0, 3000, false), binding(1, 3000, false)],
            &[binding(1, 4000, false)],
            &[binding(0, 5000, false)],
            &[binding(1, -1, true)],
            &[binding(0, 7000, false)],
            &[binding(0, 8000, false)],
            &[binding(0, -1, true)],
            &[],
        ];
        for cut in 0..epochs.len() {
            let (before, after) = epochs.split_at(cut);
            let mut whole = Watermark::new(2, RULE);
            let mut positions = Positions::starting(&[Offset(0); 2]);
            let wall_ms = |epoch: usize| 1_500 * epoch as i64;
            for (epoch, bindings) in before.iter().enumerate() {
                whole.advance(bindings, wall_ms(epoch), NOW);
                positions.advance(bindings);
            }
            let manifest = Manifest {
                epoch: Epoch(cut as u64),
                generation: Generation(1),
                wall_ms: 0,
                watermark: whole.current(),
                positions: positions.as_slice().to_vec(),
                unfinal: Vec::new(),
                all_idle: whole.all_idle(),
                in_force: Versions::default(),
                operators: Vec::new(),
                keys: None,
                parts: Vec::new(),
            };
            let mut restored = Watermark::of(&manifest, RULE);
            for (epoch, bindings) in after.iter().enumerate() {
                let wall_ms = wall_ms(cut + epoch);
                assert_eq!(
                    restored.advance(bindings, wall_ms, NOW),
                    whole.advance(bindings, wall_ms, NOW),
                    "cut after {cut}"
                );
            }
        }
    }

    #[test]
    fn the_watermark_follows_the_wall_once_all_are_idle() {
        let mut watermark = Watermark::new(2, RULE);
        let mut advance =
            |bindings: &[Binding], wall_ms: i64| watermark.advance(bindings, 1_000_000 + wall_ms, NOW).0;
        assert_eq!(advance(&[binding(0, 1000, false), binding(1, 2000, true)], 0), 899);
        assert_eq!(advance(&[binding(0, -1, true)], 500), 1_899);
        assert_eq!(advance(&[], 2_400), 1_899, "not for long enough");
        assert_eq!(advance(&[], 2_500), 3_899, "all the elapsed time");
        assert_eq!(advance(&[], 3_400), 3_899, "in steps of a second");
        assert_eq!(advance(&[], 3_500), 4_899);
        assert_eq!(advance(&[binding(0, 1500, false)], 9_000), 4_899, "a record ends the idle time");
        assert_eq!(advance(&[binding(0, -1, true)], 9_100), 4_899);
        assert_eq!(advance(&[], 11_200), 6_999);

        let stays = WatermarkRule { idle_advance_ms: None, ..RULE };
        let mut watermark = Watermark::new(1, stays);
        watermark.advance(&[binding(0, 1000, true)], 0, NOW);
        assert_eq!(watermark.advance(&[], i64::MAX, NOW), EventTime(899), "time alone changes nothing");
    }

    #[test]
    fn an_added_partition_holds_the_watermark_until_idle_or_read() {
        let mut watermark = Watermark::new(1, RULE);
        assert_eq!(watermark.advance(&[binding(0, 1000, false)], 0, NOW), EventTime(899));
        assert_eq!(
            watermark.advance(&[binding(0, 2000, false), binding(2, -1, false)], 0, NOW),
            EventTime(899)
        );
        let idle = [binding(1, -1, true), binding(2, -1, true)];
        assert_eq!(watermark.advance(&idle, 0, NOW), EventTime(1899));
    }

    #[test]
    fn the_order_of_becoming_idle_does_not_matter() {
        let reached = |epochs: &[&[Binding]], rules| {
            let mut watermark = Watermark::new(2, RULE);
            for bindings in epochs {
                watermark.advance(bindings, 0, rules);
            }
            watermark.current().0
        };
        let (read, idle) = (binding(0, 5000, false), |partition| binding(partition, -1, true));
        for rules in [NOW, TimeRules::EventTime] {
            assert_eq!(reached(&[&[read], &[idle(1)], &[idle(0)]], rules), 4899);
        }
        let together: [&[Binding]; 2] = [&[read], &[idle(0), idle(1)]];
        assert_eq!(reached(&together, NOW), 4899);
        assert_eq!(reached(&together, TimeRules::EventTime), i64::MIN, "as in format 1");
    }
}

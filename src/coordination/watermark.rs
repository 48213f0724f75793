//! The watermark W(e), from the bindings up to e alone.

use headwater_dataflows::EventTime;

use super::ingest::TimeRules;
use super::{Binding, Manifest};

/// Computes the watermark epoch by epoch.
///
/// Per partition: the greatest pushing time − `max_out_of_orderness` − 1 ms. W is the minimum over the partitions that
/// are not idle, and never goes back. A partition that has accepted no record and is not idle holds it back altogether.
/// While all are idle nobody holds it back: it is the maximum, in whatever order they became idle, and stays there unless
/// it is to follow the recorded wall time then.
#[derive(Clone, Debug)]
pub struct Watermark {
    rule: WatermarkRule,
    partitions: Vec<Progress>,
    watermark: EventTime,
    all_idle: Option<AllIdle>,
}

/// The numbers by which the watermark is computed, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatermarkRule {
    /// How far behind the greatest pushing time of its partition an event may be and still count.
    pub max_out_of_orderness_ms: i64,
    /// How long all partitions must have been idle for W to follow the recorded wall time; none lets it stay.
    pub idle_advance_ms: Option<i64>,
}

/// Every partition is idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllIdle {
    /// Since this recorded wall time, in milliseconds since 1970.
    pub since_ms: i64,
    /// How far W was behind it, in milliseconds.
    pub lag_ms: i64,
}

/// The least step in which W follows the wall time, in milliseconds: each is a row in the ledger.
const IDLE_STEP_MS: i64 = 1000;

#[derive(Clone, Copy, Debug)]
struct Progress {
    greatest: EventTime,
    idle: bool,
}

const UNKNOWN: Progress = Progress { greatest: EventTime::MIN, idle: false };

impl Watermark {
    /// For so many partitions, of which nothing is known yet.
    pub fn new(partitions: usize, rule: WatermarkRule) -> Watermark {
        Watermark { rule, partitions: vec![UNKNOWN; partitions], watermark: EventTime::MIN, all_idle: None }
    }

    /// As it was at the end of a checkpoint's epoch.
    pub fn of(manifest: &Manifest, rule: WatermarkRule) -> Watermark {
        let partitions = manifest.positions.iter().map(|position| Progress {
            greatest: position.push.greatest.unwrap_or(EventTime::MIN),
            idle: position.idle,
        });
        let (watermark, all_idle) = (manifest.watermark, manifest.all_idle);
        Watermark { rule, partitions: partitions.collect(), watermark, all_idle }
    }

    /// Takes in an epoch's bindings and recorded wall time, in milliseconds since 1970; returns W at its end. A
    /// partition that was not known is taken in.
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
        let busy = self.partitions.iter().filter(|partition| !partition.idle);
        if let Some(slowest) = busy.map(|partition| partition.greatest).min() {
            self.reach(slowest);
            self.all_idle = None;
        } else {
            // Under the rules of format 1 it stayed where the last partition to become idle had left it.
            if rules == TimeRules::EarliestClock
                && let Some(newest) = self.partitions.iter().map(|partition| partition.greatest).max()
            {
                self.reach(newest);
            }
            self.follow(wall_ms);
        }
        self.watermark
    }

    /// A partition has pushed this far.
    fn reach(&mut self, greatest: EventTime) {
        let reached = greatest.minus_ms(self.rule.max_out_of_orderness_ms).minus_ms(1);
        self.watermark = self.watermark.max(reached);
    }

    /// Every partition is idle: W follows the wall time, keeping its lag, once that has been so for long enough.
    fn follow(&mut self, wall_ms: i64) {
        let Some(advance_ms) = self.rule.idle_advance_ms else { return };
        if self.watermark == EventTime::MIN || self.watermark == EventTime::MAX {
            return;
        }
        let fresh = AllIdle { since_ms: wall_ms, lag_ms: wall_ms.saturating_sub(self.watermark.0) };
        let AllIdle { since_ms, lag_ms } = *self.all_idle.get_or_insert(fresh);
        let reached = wall_ms.saturating_sub(lag_ms);
        if wall_ms.saturating_sub(since_ms) >= advance_ms
            && reached.saturating_sub(self.watermark.0) >= IDLE_STEP_MS
        {
            self.watermark = EventTime(reached);
        }
    }

    /// The input is over: W goes to infinity, and stays there.
    pub fn close(&mut self) -> EventTime {
        self.watermark = EventTime::MAX;
        self.watermark
    }

    /// W as of the last epoch.
    pub fn current(&self) -> EventTime {
        self.watermark
    }

    /// Since when every partition is idle, if each is and W is to follow the wall time.
    pub fn all_idle(&self) -> Option<AllIdle> {
        self.all_idle
    }
}

#[cfg(test)]
mod tests {
    use headwater_dataflows::{Epoch, Offset, Partition};
    use headwater_sinks::Generation;

    use super::*;
    use crate::coordination::Positions;

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
    fn the_slowest_partition_that_is_not_idle_decides_and_w_never_goes_back() {
        let mut watermark = Watermark::new(2, RULE);
        assert_eq!(
            watermark.advance(&[binding(0, 1000, false)], 0, NOW),
            EventTime::MIN,
            "partition 1 is unknown"
        );
        assert_eq!(watermark.advance(&[binding(1, 500, false)], 0, NOW), EventTime(399));
        assert_eq!(
            watermark.advance(&[binding(1, 300, false)], 0, NOW),
            EventTime(399),
            "an older event moves nothing"
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
    fn a_checkpoint_remembers_what_the_watermark_follows_from() {
        // Not every partition is named in every epoch: what is known of the others counts, and that they are idle.
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
    fn the_watermark_follows_the_wall_once_every_partition_has_been_idle() {
        let mut watermark = Watermark::new(2, RULE);
        let mut advance =
            |bindings: &[Binding], wall_ms: i64| watermark.advance(bindings, 1_000_000 + wall_ms, NOW).0;
        assert_eq!(advance(&[binding(0, 1000, false), binding(1, 2000, true)], 0), 899);
        assert_eq!(advance(&[binding(0, -1, true)], 500), 1_899);
        assert_eq!(advance(&[], 2_400), 1_899, "not for long enough");
        assert_eq!(advance(&[], 2_500), 3_899, "all the time that has passed");
        assert_eq!(advance(&[], 3_400), 3_899, "in steps of a second");
        assert_eq!(advance(&[], 3_500), 4_899);
        assert_eq!(advance(&[binding(0, 1500, false)], 9_000), 4_899, "a record ends it");
        assert_eq!(advance(&[binding(0, -1, true)], 9_100), 4_899);
        assert_eq!(advance(&[], 11_200), 6_999);

        let stays = WatermarkRule { idle_advance_ms: None, ..RULE };
        let mut watermark = Watermark::new(1, stays);
        watermark.advance(&[binding(0, 1000, true)], 0, NOW);
        assert_eq!(watermark.advance(&[], i64::MAX, NOW), EventTime(899), "time alone moves nothing");
    }

    #[test]
    fn a_partition_that_was_added_holds_the_watermark_until_it_is_idle_or_pushes() {
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
    fn the_order_in_which_partitions_become_idle_means_nothing() {
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
        assert_eq!(reached(&together, TimeRules::EventTime), i64::MIN, "as format 1 had it");
    }
}

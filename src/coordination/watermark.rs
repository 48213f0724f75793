//! The watermark W(e), from the bindings up to e alone.

use headwater_dataflows::EventTime;

use super::{Binding, Manifest};

/// Computes the watermark epoch by epoch.
///
/// Per partition: the greatest event time accepted − `max_out_of_orderness` − 1 ms. W is the minimum over the
/// partitions that are not idle, and never goes back; while all are idle it stays. A partition that has had no
/// event and is not idle holds it back altogether.
#[derive(Clone, Debug)]
pub struct Watermark {
    max_out_of_orderness_ms: i64,
    partitions: Vec<Progress>,
    watermark: EventTime,
}

#[derive(Clone, Copy, Debug)]
struct Progress {
    max_event_time: EventTime,
    idle: bool,
}

impl Watermark {
    /// For so many partitions, of which nothing is known yet.
    pub fn new(partitions: usize, max_out_of_orderness_ms: i64) -> Watermark {
        let unknown = Progress { max_event_time: EventTime::MIN, idle: false };
        Watermark {
            max_out_of_orderness_ms,
            partitions: vec![unknown; partitions],
            watermark: EventTime::MIN,
        }
    }

    /// As it was at the end of a checkpoint's epoch.
    pub fn of(manifest: &Manifest, max_out_of_orderness_ms: i64) -> Watermark {
        let partitions = manifest.positions.iter().map(|position| Progress {
            max_event_time: position.max_event_time.unwrap_or(EventTime::MIN),
            idle: position.idle,
        });
        Watermark { max_out_of_orderness_ms, partitions: partitions.collect(), watermark: manifest.watermark }
    }

    /// Takes in an epoch's bindings; returns W at its end.
    pub fn advance(&mut self, bindings: &[Binding]) -> EventTime {
        for binding in bindings {
            let partition = &mut self.partitions[binding.partition.0 as usize];
            partition.max_event_time =
                partition.max_event_time.max(binding.max_event_time.unwrap_or(EventTime::MIN));
            partition.idle = binding.idle;
        }
        let busy = self.partitions.iter().filter(|partition| !partition.idle);
        if let Some(slowest) = busy.map(|partition| partition.max_event_time).min() {
            let reached = slowest.minus_ms(self.max_out_of_orderness_ms).minus_ms(1);
            self.watermark = self.watermark.max(reached);
        }
        self.watermark
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
}

#[cfg(test)]
mod tests {
    use headwater_dataflows::{Epoch, Offset, Partition};
    use headwater_sinks::Generation;

    use super::*;
    use crate::coordination::Positions;

    fn binding(partition: u32, time: i64, idle: bool) -> Binding {
        let max_event_time = (time >= 0).then_some(EventTime(time));
        Binding { partition: Partition(partition), end: Offset(0), timestamp: None, max_event_time, idle }
    }

    #[test]
    fn the_slowest_partition_that_is_not_idle_decides_and_w_never_goes_back() {
        let mut watermark = Watermark::new(2, 100);
        assert_eq!(watermark.advance(&[binding(0, 1000, false)]), EventTime::MIN, "partition 1 is unknown");
        assert_eq!(watermark.advance(&[binding(1, 500, false)]), EventTime(399));
        assert_eq!(
            watermark.advance(&[binding(1, 300, false)]),
            EventTime(399),
            "an older event moves nothing"
        );
        assert_eq!(watermark.advance(&[binding(1, -1, true)]), EventTime(899), "without the idle partition");
        assert_eq!(watermark.advance(&[binding(0, -1, true)]), EventTime(899), "all idle: it stays");
        assert_eq!(watermark.advance(&[binding(1, 600, false)]), EventTime(899), "busy again, but behind");
        assert_eq!(watermark.advance(&[binding(1, 2000, false)]), EventTime(1899));
    }

    #[test]
    fn a_checkpoint_remembers_what_the_watermark_follows_from() {
        // Not every partition is named in every epoch: what is known of the others counts, and that they are idle.
        let epochs: [&[Binding]; 10] = [
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
        ];
        for cut in 0..epochs.len() {
            let (before, after) = epochs.split_at(cut);
            let mut whole = Watermark::new(2, 100);
            let mut positions = Positions::starting(&[Offset(0); 2]);
            for bindings in before {
                whole.advance(bindings);
                positions.advance(bindings);
            }
            let manifest = Manifest {
                epoch: Epoch(cut as u64),
                generation: Generation(1),
                wall_ms: 0,
                watermark: whole.current(),
                positions: positions.as_slice().to_vec(),
                operators: Vec::new(),
                keys: None,
                parts: Vec::new(),
            };
            let mut restored = Watermark::of(&manifest, 100);
            for bindings in after {
                assert_eq!(restored.advance(bindings), whole.advance(bindings), "cut after {cut}");
            }
        }
    }
}

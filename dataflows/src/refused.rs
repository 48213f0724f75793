//! The positions of refused events: without them, the events of a topic that is read again are more than those that were
//! admitted.
//!
//! ```text
//!   refused events ─ exchange ─▶ worker 0: Log ─▶ RefusedLog, read by other threads
//!   control ───────────────────▶    │ at a mark
//!                                   └─▶ records: the positions since the mark before, one that says what was forgotten
//! ```

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};

use differential_dataflow::VecCollection;
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::vec::Map;

use crate::admit::Refused;
use crate::capture::{Captures, Damage, Record, decode, encode};
use crate::control::ControlStream;
use crate::frontier::passed;
use crate::{Control, Epoch, Event, EventTime, Position, ShardId};

/// The maximum number of positions that are kept: 16 MB.
const MAX_KEPT: usize = 1 << 20;

/// A shard of worker 0, whatever the number of workers.
const SHARD: ShardId = ShardId(0);

/// The positions of events that were refused, as far as they are kept. Clones share them. Only the process of worker 0
/// fills it.
#[derive(Clone, Default)]
pub struct RefusedLog(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    /// The epoch up to which all refused events are known.
    through: Option<Epoch>,
    log: Log,
}

/// The refused events up to an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedEvents {
    /// The time after which all refused events are known.
    pub since: EventTime,
    /// Their positions.
    pub positions: HashSet<Position>,
}

impl RefusedLog {
    /// Returns the refused events; `None` if those of this epoch are not all known yet.
    ///
    /// # Panics
    /// Panics if a thread has panicked while it changed the log.
    pub fn through(&self, epoch: Epoch) -> Option<RefusedEvents> {
        let known = self.0.lock().expect(LOCK);
        known.through.filter(|through| *through >= epoch).map(|_| known.log.events())
    }
}

const LOCK: &str = "no thread panics while it holds the lock";

/// Refused events with their event times, between two marks.
#[derive(Debug)]
struct Segment {
    /// The mark at its end.
    epoch: Epoch,
    /// The greatest event time.
    latest: EventTime,
    events: Vec<(EventTime, Position)>,
}

/// The refused events that are kept.
#[derive(Debug)]
struct Log {
    /// The time after which all refused events are known: that of the latest one that was forgotten.
    since: EventTime,
    /// `since` of the newest record; `None` if there is none.
    stored_since: Option<EventTime>,
    watermark: EventTime,
    horizon_ms: i64,
    segments: VecDeque<Segment>,
    /// The events since the last mark.
    newest: Vec<(EventTime, Position)>,
}

impl Default for Log {
    fn default() -> Log {
        Log {
            since: EventTime::MIN,
            stored_since: None,
            watermark: EventTime::MIN,
            horizon_ms: i64::MAX,
            segments: VecDeque::new(),
            newest: Vec::new(),
        }
    }
}

#[derive(Serialize, Deserialize)]
enum Stored {
    Since(EventTime),
    Events(Vec<(EventTime, Position)>),
}

impl Log {
    /// Returns the time up to which nothing is kept.
    fn horizon(&self) -> EventTime {
        self.since.max(self.watermark.minus_ms(self.horizon_ms))
    }

    fn add(&mut self, events: Vec<(EventTime, Position)>) {
        let horizon = self.horizon();
        for event in events {
            if event.0 > horizon {
                self.newest.push(event);
            } else {
                self.since = self.since.max(event.0);
            }
        }
        let kept: usize = self.segments.iter().map(|segment| segment.events.len()).sum();
        if kept + self.newest.len() > MAX_KEPT {
            self.forget_half();
        }
    }

    /// Forgets the events of the earlier half of the times.
    fn forget_half(&mut self) {
        let mut times: Vec<_> = self.all().map(|(time, _)| *time).collect();
        let middle = times.len() / 2;
        self.since = *times.select_nth_unstable(middle).1;
        self.newest.retain(|(time, _)| *time > self.since);
    }

    fn all(&self) -> impl Iterator<Item = &(EventTime, Position)> {
        self.segments.iter().flat_map(|segment| &segment.events).chain(&self.newest)
    }

    fn events(&self) -> RefusedEvents {
        RefusedEvents { since: self.since, positions: self.all().map(|(_, position)| *position).collect() }
    }

    /// Returns the changes of records since the mark before: their keys and values.
    fn mark(&mut self, epoch: Epoch) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let (horizon, mut since) = (self.horizon(), self.since);
        let mut records = Vec::new();
        self.segments.retain(|segment| {
            let is_kept = segment.latest > horizon;
            if !is_kept {
                since = since.max(segment.latest);
                records.push((key(segment.epoch), None));
            }
            is_kept
        });
        self.newest.retain(|(time, _)| {
            let is_kept = *time > horizon;
            since = if is_kept { since } else { since.max(*time) };
            is_kept
        });
        self.since = since;
        if let Some(latest) = self.newest.iter().map(|(time, _)| *time).max() {
            let mut events = std::mem::take(&mut self.newest);
            // They arrive in an order that depends on the workers.
            events.sort_unstable();
            records.push((key(epoch), Some(encode(&Stored::Events(events.clone())))));
            self.segments.push_back(Segment { epoch, latest, events });
        }
        if self.stored_since != Some(self.since) {
            self.stored_since = Some(self.since);
            records.push((Vec::new(), Some(encode(&Stored::Since(self.since)))));
        }
        records
    }

    /// Restores the log of a checkpoint with this watermark. One that has no records knows nothing of the events before.
    fn restore(&mut self, records: &[Record], watermark: EventTime) -> Result<(), (usize, Damage)> {
        (self.watermark, self.since) = (watermark, watermark);
        for (at, record) in records.iter().enumerate() {
            let Some(value) = &record.value else { continue };
            match decode(value).map_err(|damage| (at, damage))? {
                Stored::Since(since) => (self.since, self.stored_since) = (since, Some(since)),
                Stored::Events(events) => {
                    let epoch = <[u8; 8]>::try_from(&*record.key);
                    let epoch = epoch.map_err(|_| (at, Damage::Impossible("the key is not an epoch")))?;
                    let epoch = Epoch(u64::from_be_bytes(epoch));
                    let latest = events.iter().map(|(time, _)| *time).max().unwrap_or(EventTime::MIN);
                    self.segments.push_back(Segment { epoch, latest, events });
                }
            }
        }
        Ok(())
    }
}

fn key(epoch: Epoch) -> Vec<u8> {
    epoch.0.to_be_bytes().to_vec()
}

impl<'scope> Captures<'scope> {
    /// Keeps the positions of refused events in `log`, captured under `name`: those whose event times are at most
    /// `horizon_ms` before the watermark, and at most about a million.
    pub fn log_refused<E: Event>(
        &self,
        name: &str,
        refused: VecCollection<'scope, Epoch, Refused<E>>,
        control: ControlStream<'scope>,
        horizon_ms: i64,
        log: &RefusedLog,
    ) {
        let worker = refused.inner.scope().index();
        let mut known = Log { horizon_ms, ..Log::default() };
        let mut operator = None;
        if let Some(mut register) = self.register() {
            let (entered, records) = register.enter(name);
            operator = Some(entered);
            if let Some((_, watermark)) = register.from()
                && let Err((at, damage)) = known.restore(&records, watermark)
            {
                register.damaged(&records[at], damage);
            }
        }
        if worker == 0 {
            log.0.lock().expect(LOCK).log = known;
        }
        let positions = refused.inner.flat_map(|(refused, epoch, diff)| {
            (diff > 0).then(|| (epoch, refused.event.time(), refused.event.position()))
        });
        let captured = keep(name, positions, control, log.clone());
        if let (Some(mut register), Some(operator)) = (self.register(), operator) {
            register.add(captured.map(move |(key, value)| Record {
                operator: Arc::clone(&operator),
                shard: SHARD,
                key,
                value,
            }));
        }
    }
}

/// A refused event: its epoch, time and position.
type RefusedAt = (Epoch, EventTime, Position);

/// Builds the operator, which emits changes of records at marks.
fn keep<'scope>(
    name: &str,
    positions: StreamVec<'scope, Epoch, RefusedAt>,
    control: ControlStream<'scope>,
    log: RefusedLog,
) -> StreamVec<'scope, Epoch, (Vec<u8>, Option<Vec<u8>>)> {
    let mut builder = OperatorBuilder::new(name.to_owned(), positions.scope());
    let is_first = positions.scope().index() == 0;
    let mut positions = builder.new_input(positions, Exchange::new(|_: &RefusedAt| 0));
    let mut control = builder.new_input(control, Pipeline);
    let (output, stream) = builder.new_output();
    let mut output =
        OutputBuilder::<_, CapacityContainerBuilder<Vec<(Vec<u8>, Option<Vec<u8>>)>>>::from(output);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut arrived: BTreeMap<Epoch, Vec<(EventTime, Position)>> = BTreeMap::new();
        let mut controls: BTreeMap<Epoch, (Control, _)> = BTreeMap::new();
        move |frontiers| {
            positions.for_each(|_, data| {
                for (epoch, time, position) in data.drain(..) {
                    arrived.entry(epoch).or_default().push((time, position));
                }
            });
            control.for_each(|stamp, data| {
                let epoch = *stamp.least().expect("a message has a timestamp");
                if let Some(control) = data.pop().filter(|_| is_first) {
                    controls.insert(epoch, (control, stamp.delayed(&epoch, 0)));
                }
            });
            if !is_first {
                return;
            }
            let mut known = log.0.lock().expect(LOCK);
            let mut output = output.activate();
            while let Some(epoch) = arrived.keys().chain(controls.keys()).min().copied() {
                if !frontiers.iter().all(|frontier| passed(frontier, epoch)) {
                    break;
                }
                known.log.add(arrived.remove(&epoch).unwrap_or_default());
                if let Some((Control { watermark, checkpoint }, capability)) = controls.remove(&epoch) {
                    known.log.watermark = known.log.watermark.max(watermark);
                    if checkpoint {
                        output.session(&capability).give_iterator(known.log.mark(epoch).into_iter());
                    }
                }
            }
            let open = frontiers.iter().filter_map(|frontier| frontier.frontier().first().copied()).min();
            known.through = Some(open.map_or(Epoch(u64::MAX), |open| Epoch(open.0.saturating_sub(1))));
        }
    });
    stream
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Offset, Partition};

    fn event(time: i64) -> (EventTime, Position) {
        (EventTime(time), Position { partition: Partition(0), offset: Offset(time) })
    }

    fn times(log: &Log) -> Vec<i64> {
        let mut times: Vec<_> = log.events().positions.iter().map(|position| position.offset.0).collect();
        times.sort_unstable();
        times
    }

    #[test]
    fn events_are_kept_for_the_horizon_and_restored() {
        let mut log = Log { horizon_ms: 100, ..Log::default() };
        log.add(vec![event(3), event(50)]);
        log.watermark = EventTime(60);
        let mut records: BTreeMap<_, _> = log.mark(Epoch(1)).into_iter().collect();
        log.add(vec![event(90)]);
        log.watermark = EventTime(151);
        assert_eq!((log.since, times(&log)), (EventTime::MIN, vec![3, 50, 90]));
        records.extend(log.mark(Epoch(5)));
        assert_eq!((log.since, times(&log)), (EventTime(50), vec![90]), "those up to 50 may be unknown");
        records.retain(|_, value| value.is_some());
        let record = |(key, value): (&Vec<u8>, &Option<Vec<u8>>)| Record {
            operator: "Refused".into(),
            shard: SHARD,
            key: key.clone(),
            value: value.clone(),
        };
        let records: Vec<_> = records.iter().map(record).collect();
        let mut restored = Log { horizon_ms: 100, ..Log::default() };
        restored.restore(&records, EventTime(151)).expect("whole");
        assert_eq!((restored.since, times(&restored)), (EventTime(50), vec![90]));
        assert!(restored.mark(Epoch(6)).is_empty(), "nothing has changed");
        restored.add(vec![event(51)]);
        assert_eq!((restored.since, times(&restored)), (EventTime(51), vec![90]), "it is too old to be kept");
        let mut unknown = Log { horizon_ms: 1000, ..Log::default() };
        unknown.restore(&[], EventTime(151)).expect("whole");
        assert_eq!(unknown.events().since, EventTime(151));
    }

    #[test]
    fn too_many_events_raise_the_time_of_knowledge() {
        let mut log = Log::default();
        log.add((0..=MAX_KEPT as i64).map(event).collect());
        let since = log.events().since.0;
        assert_eq!(since, MAX_KEPT as i64 / 2);
        assert_eq!(times(&log).first(), Some(&(since + 1)));
    }
}

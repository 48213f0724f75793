//! Admission: the first operator of a key. Refuses late and duplicate events, and sorts the others.

mod capture;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::rc::Rc;

use differential_dataflow::{AsCollection, VecCollection};
use serde::{Deserialize, Serialize};
use timely::ExchangeData;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{ExchangeCore, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::batch::{Batch, Containers, Entry, EntryRef, History, Run, RunRef, Slot, TargetIndex};
use crate::control::ControlStream;
use crate::dedup::{Dedup, Fingerprint};
use crate::event::order;
use crate::exchanged::{Exchanged, exchanged};
use crate::expiry::Expiry;
use crate::frontier::{Watermarks, passed, reached};
use crate::keyed::Keyed;
use crate::keys::{Keys, NEVER};
use crate::{Epoch, Event, EventTime, Position};
pub use capture::ids_of;

/// The conditions under which events are admitted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Admission {
    /// The deduplication horizon, in milliseconds of event time. Of the events of a key with the same id within the
    /// horizon, the first in the order (epoch, event time, position) is admitted, and the others are duplicates. If
    /// that event is retracted, its id can be admitted again from the same epoch on. Zero turns deduplication off.
    pub dedup_horizon_ms: i64,
    /// The time to live of a key after its last event, in milliseconds of event time. When the watermark has passed it,
    /// the state of the key is evicted, and later events of the key start without state. Open windows extend it. It
    /// should be longer than the interval of any pattern. `None` keeps every key forever.
    pub ttl_ms: Option<i64>,
}

/// The reason why an event was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Refusal {
    /// The event time is at or below the watermark of the previous epoch; or the update retracts such an event, or an
    /// event that was not admitted.
    Late,
    /// An event of the same key with the same id was admitted before and has not been retracted.
    Duplicate,
}

/// An event that was not admitted, and the reason. A refused retraction has a negative diff.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Refused<E> {
    /// The event.
    pub event: E,
    /// The reason.
    pub refusal: Refusal,
}

/// Extension trait for admitting a collection of events to keyed operators.
pub trait Admit<'scope, E: Event> {
    /// Exchanges events by shard, sorts each epoch by key and order of evaluation, and refuses late events and
    /// duplicates. Returns the admitted events, and the refused events as a separate collection.
    ///
    /// Epoch e is admitted once the watermark of epoch e − 1 is known. Every worker must receive the same control
    /// stream.
    ///
    /// ```
    /// use headwater_dataflows::{Admission, Admit, Refusal, testing};
    ///
    /// let refused = testing::run(1, |events, control| {
    ///     let (_keyed, refused) = events.admit(control, Admission { dedup_horizon_ms: 60_000, ..Admission::default() });
    ///     refused.map(|refused| (refused.event.offset, refused.refusal))
    /// }, vec![
    ///     // Events as (key, time, offset, id), and the watermark after them.
    ///     (vec![("ann", 10, 0, "x"), ("ann", 20, 1, "x"), ("bob", 20, 2, "x")], 15),
    ///     (vec![("ann", 15, 3, "y"), ("ann", 16, 4, "z")], 16),
    /// ]);
    /// assert_eq!(refused, vec![((1, Refusal::Duplicate), 0, 1), ((3, Refusal::Late), 1, 1)]);
    /// ```
    fn admit(
        self,
        control: ControlStream<'scope>,
        admission: Admission,
    ) -> (Keyed<'scope, E>, VecCollection<'scope, Epoch, Refused<E>>);
}

impl<'scope, E: Event + ExchangeData> Admit<'scope, E> for VecCollection<'scope, Epoch, E> {
    fn admit(
        self,
        control: ControlStream<'scope>,
        admission: Admission,
    ) -> (Keyed<'scope, E>, VecCollection<'scope, Epoch, Refused<E>>) {
        let keys = Rc::new(RefCell::new(Keys::new()));
        let admitter = Rc::new(RefCell::new(Admitter::new(admission, Rc::clone(&keys))));
        let (batches, refused) = build(self.inner, control.clone(), admitter);
        (Keyed::new(batches, control, keys, None), refused.as_collection())
    }
}

type RefusedUpdate<E> = (Refused<E>, Epoch, isize);

/// Streams of batches of admitted events, and of refused events.
type Outputs<'scope, E> =
    (StreamVec<'scope, Epoch, Rc<Batch<E>>>, StreamVec<'scope, Epoch, RefusedUpdate<E>>);

fn build<'scope, E: Event + ExchangeData>(
    events: StreamVec<'scope, Epoch, (E, Epoch, isize)>,
    control: ControlStream<'scope>,
    admitter: Rc<RefCell<Admitter<E>>>,
) -> Outputs<'scope, E> {
    let mut builder = OperatorBuilder::new("Admit".to_owned(), events.scope());
    let by_shard = ExchangeCore::<CapacityContainerBuilder<Exchanged<E>>, _>::new(
        |(event, _, _): &(E, Epoch, isize)| u64::from(event.key_hash().shard().0),
    );
    let mut events = builder.new_input(exchanged(events), by_shard);
    let mut control = builder.new_input(control, Pipeline);
    let (batches, batch_stream) = builder.new_output();
    let (refused, refused_stream) = builder.new_output();
    let mut batches = OutputBuilder::<_, CapacityContainerBuilder<Vec<Rc<Batch<E>>>>>::from(batches);
    let mut refused = OutputBuilder::<_, CapacityContainerBuilder<Vec<RefusedUpdate<E>>>>::from(refused);

    builder.build(move |capabilities| {
        drop(capabilities);
        let mut arrived: BTreeMap<Epoch, ArrivedEpoch<E>> = BTreeMap::new();
        let mut watermarks = Watermarks::default();
        let mut checkpoints: BTreeMap<Epoch, EventTime> = BTreeMap::new();
        move |frontiers| {
            events.for_each(|stamp, data| {
                let epoch = *stamp.least().expect("a message has a timestamp");
                let arrived = arrived.entry(epoch).or_insert_with(|| ArrivedEpoch {
                    batch: stamp.delayed(&epoch, 0),
                    refused: stamp.delayed(&epoch, 1),
                    containers: Vec::new(),
                });
                arrived.containers.push(std::mem::take(&mut data.updates));
            });
            control.for_each(|stamp, data| {
                let epoch = *stamp.least().expect("a message has a timestamp");
                for control in data.drain(..) {
                    watermarks.insert(epoch, control);
                    if control.checkpoint {
                        checkpoints.insert(epoch, control.watermark);
                    }
                }
            });
            let mut admitter = admitter.borrow_mut();
            let mut batches = batches.activate();
            let mut refused = refused.activate();
            while let Some(entry) = arrived.first_entry() {
                let epoch = *entry.key();
                if !passed(&frontiers[0], epoch) || !reached(&frontiers[1], epoch) {
                    break;
                }
                while let Some(due) = checkpoints.first_entry().filter(|due| *due.key() < epoch) {
                    let (epoch, watermark) = due.remove_entry();
                    admitter.mark(epoch, watermark);
                }
                if let Some(watermark) = watermarks.take_before(epoch) {
                    admitter.advance(watermark);
                }
                let arrived = entry.remove();
                let (batch, out) = admitter.admit(epoch, arrived.containers);
                if let Some(batch) = batch {
                    batches.session(&arrived.batch).give(batch);
                }
                refused.session(&arrived.refused).give_iterator(out.into_iter());
            }
            let complete = |epoch| frontiers.iter().all(|frontier| passed(frontier, epoch));
            while let Some(due) = checkpoints.first_entry().filter(|due| complete(*due.key())) {
                let (epoch, watermark) = due.remove_entry();
                admitter.mark(epoch, watermark);
            }
        }
    });
    (batch_stream, refused_stream)
}

struct ArrivedEpoch<E> {
    batch: Capability<Epoch>,
    refused: Capability<Epoch>,
    containers: Containers<E>,
}

/// An event of the epoch: its position in the order of evaluation, and its location in the containers.
#[derive(Clone, Copy)]
struct Place {
    order: (EventTime, Position),
    container: u32,
    index: u32,
    /// True for a single insertion, the usual case.
    single: bool,
    /// The id of the event, if it has one and ids are compared.
    id: Option<Fingerprint>,
}

impl Place {
    fn event<'a, E>(&self, containers: &'a Containers<E>) -> &'a E {
        &containers[self.container as usize][self.index as usize].0
    }

    fn diff<E>(&self, containers: &Containers<E>) -> isize {
        containers[self.container as usize][self.index as usize].2
    }
}

/// Returns the sorted changes of a key in an epoch, as events with the sums of their diffs. Identical events are added
/// up, and may cancel.
fn net<'a, E: Event>(
    run: &'a [Place],
    containers: &'a Containers<E>,
) -> impl Iterator<Item = (&'a Place, isize)> {
    // A record that was corrected in this epoch has several forms at the same position, in any order.
    let forms = run.chunk_by(|a, b| a.order == b.order);
    forms.flat_map(|forms| {
        forms.iter().enumerate().filter_map(|(i, place)| {
            let same = |other: &&Place| other.event(containers) == place.event(containers);
            let (before, after) = (&forms[..i], &forms[i + 1..]);
            let others = || after.iter().filter(same).map(|other| other.diff(containers)).sum::<isize>();
            (!before.iter().any(|other| same(&other))).then(|| (place, place.diff(containers) + others()))
        })
    })
}

/// The number of events between prefetching memory and reading it.
const AHEAD: usize = 16;

/// The state of admission, which decides which events are admitted.
struct Admitter<E: Event> {
    keys: Rc<RefCell<Keys<E>>>,
    dedup: Dedup,
    /// The expiry of keys; `None` if keys are kept forever.
    expiry: Option<Expiry>,
    /// Keys that expired since the last batch.
    expired: Vec<Slot>,
    /// Slots of expired keys, each with the batch that reports them. They are freed once all operators have read the
    /// batch.
    leaving: VecDeque<(Rc<Batch<E>>, Vec<Slot>)>,
    watermark: EventTime,
    history: History<E, ()>,
    /// The un-final insertions that were retracted.
    retracted: HashSet<EntryRef>,
    next_batch: u64,
    /// The epoch's events in the order of arrival.
    places: Vec<Place>,
    /// The slots of the events, each with an index of `places`.
    slots: Vec<(Slot, u32)>,
    /// The places of one key, in the order of evaluation.
    run: Vec<Place>,
    /// `None` if capture is off.
    capture: Option<capture::Tracked<E>>,
}

impl<E: Event> Admitter<E> {
    fn new(admission: Admission, keys: Rc<RefCell<Keys<E>>>) -> Self {
        keys.borrow_mut().expire_after(admission.ttl_ms);
        Admitter {
            keys,
            dedup: Dedup::new(admission.dedup_horizon_ms),
            expiry: admission.ttl_ms.map(Expiry::new),
            expired: Vec::new(),
            leaving: VecDeque::new(),
            watermark: EventTime::MIN,
            history: History::new(),
            retracted: HashSet::new(),
            next_batch: 0,
            places: Vec::new(),
            slots: Vec::new(),
            run: Vec::new(),
            capture: None,
        }
    }

    fn advance(&mut self, watermark: EventTime) {
        self.watermark = self.watermark.max(watermark);
        self.history.settle(self.watermark);
        if !self.retracted.is_empty() {
            self.retracted.retain(|entry| self.history.get(entry.batch).is_some());
        }
        self.dedup.expire(self.watermark);
    }

    /// Watches and captures the keys that operators have added.
    fn adopt(&mut self) {
        let keys = Rc::clone(&self.keys);
        let mut keys = keys.borrow_mut();
        for slot in keys.take_adopted() {
            let info = keys.info_mut(slot);
            if let Some(expiry) = &mut self.expiry
                && !std::mem::replace(&mut info.watched, true)
            {
                expiry.watch(slot, info.last.0);
            }
            self.touch(slot);
        }
    }

    /// Removes the keys that have expired, and frees the slots of those whose state all operators have removed.
    fn expire(&mut self) {
        let Some(expiry) = &mut self.expiry else { return };
        let keys = Rc::clone(&self.keys);
        let mut keys = keys.borrow_mut();
        expiry.at_least(keys.reach_ms());
        let first = self.expired.len();
        while self.leaving.front().is_some_and(|(batch, _)| Rc::strong_count(batch) == 1) {
            keys.free(self.leaving.pop_front().map(|(_, slots)| slots).unwrap_or_default());
        }
        while let Some(slots) = expiry.take(self.watermark) {
            for slot in slots {
                // A key without admitted events has no state.
                let (last, _) = keys.info_mut(slot).last;
                if expiry.death(last) <= self.watermark {
                    self.expired.push(slot);
                } else {
                    expiry.watch(slot, last);
                }
            }
        }
        for at in first..self.expired.len() {
            let slot = self.expired[at];
            self.removed(slot, &keys);
            keys.remove(slot);
        }
    }

    /// Admits the events of an epoch. Returns the batch, unless it is empty, and the refused events.
    fn admit(
        &mut self,
        epoch: Epoch,
        containers: Containers<E>,
    ) -> (Option<Rc<Batch<E>>>, Vec<RefusedUpdate<E>>) {
        self.adopt();
        self.expire();
        let keys = Rc::clone(&self.keys);
        let mut keys = keys.borrow_mut();
        self.arrive(&containers, &mut keys);
        self.before(&keys);
        let mut parts = BatchBuilder {
            epoch,
            max_time: EventTime::MIN,
            entries: Vec::with_capacity(self.places.len()),
            targets: Vec::new(),
            runs: Vec::with_capacity(self.places.len()),
            expired: self.expired.clone(),
            refused: Vec::new(),
        };
        let (slots, mut run) = (std::mem::take(&mut self.slots), std::mem::take(&mut self.run));
        let mut at = 0;
        for same in slots.chunk_by(|a, b| a.0 == b.0) {
            at += same.len();
            if let Some(&(slot, place)) = slots.get(at + AHEAD) {
                keys.prefetch(slot);
                if let Some(id) = self.places[place as usize].id {
                    self.dedup.prefetch(id);
                }
            }
            run.clear();
            run.extend(same.iter().map(|&(_, place)| self.places[place as usize]));
            if run.len() > 1 {
                // Usually they are in order already.
                run.sort_by_key(|place| place.order);
            }
            self.admit_run(same[0].0, &run, &containers, &mut keys, &mut parts);
        }
        (self.slots, self.run) = (slots, run);
        let BatchBuilder { max_time, entries, targets, runs, expired, refused, .. } = parts;
        if entries.is_empty() && expired.is_empty() {
            return (None, refused);
        }
        let batch = Rc::new(Batch {
            number: self.next_batch,
            epoch,
            max_time,
            entries,
            targets,
            runs,
            expired,
            containers,
        });
        self.next_batch += 1;
        if !self.expired.is_empty() {
            self.leaving.push_back((Rc::clone(&batch), std::mem::take(&mut self.expired)));
        }
        self.history.push(Rc::clone(&batch), ());
        self.after(&batch);
        (Some(batch), refused)
    }

    /// Fills `places`, and `slots` in sorted order.
    ///
    /// Keys are looked up in the order of arrival, which is the order of events in memory. States are visited in the
    /// order of slots, which is the order of states in memory. An order by hash would make both accesses random.
    fn arrive(&mut self, containers: &Containers<E>, keys: &mut Keys<E>) {
        self.places.clear();
        self.slots.clear();
        for (container, updates) in containers.iter().enumerate() {
            let first = self.places.len();
            keys.slots(updates, |slot, (event, _, diff)| {
                let place = self.places.len();
                self.slots.push((slot, place as u32));
                self.places.push(Place {
                    order: order(event),
                    container: container as u32,
                    index: (place - first) as u32,
                    single: *diff == 1,
                    id: self.dedup.id_of(event),
                });
            });
        }
        self.slots.sort_unstable();
    }

    /// Admits the sorted events of one key in the epoch.
    fn admit_run(
        &mut self,
        slot: Slot,
        run: &[Place],
        containers: &Containers<E>,
        keys: &mut Keys<E>,
        parts: &mut BatchBuilder<E>,
    ) {
        let info = keys.info_mut(slot);
        if let Some(expiry) = &mut self.expiry {
            if info.last != NEVER && expiry.death(info.last.0) <= self.watermark {
                (info.last, info.run) = (NEVER, None);
                parts.expired.push(slot);
            }
            if !std::mem::replace(&mut info.watched, true) {
                expiry.watch(slot, self.watermark);
            }
        }
        let start = parts.entries.len();
        let mut in_order = true;
        if run.iter().all(|place| place.single) && run.is_sorted_by(|a, b| a.order < b.order) {
            for place in run {
                in_order &= self.insert(place, 1, containers, &mut info.last, parts);
            }
        } else {
            // Retractions first: a corrected event must be able to use its id again, at any position in the order.
            for (place, diff) in net(run, containers) {
                in_order &= self.retract(place, -diff, containers, info.run, parts);
            }
            for (place, diff) in net(run, containers) {
                in_order &= self.insert(place, diff, containers, &mut info.last, parts);
            }
        }
        let end = parts.entries.len();
        if end > start {
            let previous = info.run.replace(RunRef::new(self.next_batch, parts.runs.len()));
            let newest = info.last.0;
            parts.runs.push(Run { slot, start: start as u32, end: end as u32, in_order, newest, previous });
        }
    }

    /// Inserts an event `times` times. Returns true if it comes after all earlier events in the order of evaluation.
    fn insert(
        &mut self,
        place: &Place,
        times: isize,
        containers: &Containers<E>,
        last: &mut (EventTime, Position),
        parts: &mut BatchBuilder<E>,
    ) -> bool {
        let mut in_order = true;
        for _ in 0..times {
            match self.check(place, containers) {
                Err(refusal) => parts.refuse(place.event(containers), refusal, 1),
                Ok(()) => {
                    in_order &= *last <= place.order;
                    *last = (*last).max(place.order);
                    parts.push(place, None);
                }
            }
        }
        in_order
    }

    /// Retracts `times` insertions of an event, searched from the run `newest` backwards. Returns true if there were
    /// none.
    fn retract(
        &mut self,
        place: &Place,
        times: isize,
        containers: &Containers<E>,
        newest: Option<RunRef>,
        parts: &mut BatchBuilder<E>,
    ) -> bool {
        let event = place.event(containers);
        let mut untouched = true;
        for _ in 0..times {
            match self.find(event, newest) {
                None => parts.refuse(event, Refusal::Late, -1),
                Some(target) => {
                    untouched = false;
                    self.retracted.insert(target);
                    if let Some(id) = place.id {
                        self.dedup.forget(event.key_hash(), id, event.time());
                    }
                    parts.push(place, Some(target));
                }
            }
        }
        untouched
    }

    fn check(&mut self, place: &Place, containers: &Containers<E>) -> Result<(), Refusal> {
        if place.order.0 <= self.watermark {
            return Err(Refusal::Late);
        }
        let Some(id) = place.id else { return Ok(()) };
        let key = place.event(containers).key_hash();
        if self.dedup.accept(key, id, place.order.0) { Ok(()) } else { Err(Refusal::Duplicate) }
    }

    /// Returns an admitted insertion of an equal event, if it is above the watermark and has not been retracted.
    fn find(&self, event: &E, newest: Option<RunRef>) -> Option<EntryRef> {
        if event.time() <= self.watermark {
            return None;
        }
        let mut found = None;
        self.history.for_each_since(newest, event.time(), |entry, batch, index| {
            if found.is_none()
                && batch.entries[index].time == event.time()
                && batch.event(index) == event
                && !self.retracted.contains(&entry)
            {
                found = Some(entry);
            }
        });
        found
    }
}

/// The parts of a batch that is being built.
struct BatchBuilder<E> {
    epoch: Epoch,
    max_time: EventTime,
    entries: Vec<Entry>,
    targets: Vec<EntryRef>,
    runs: Vec<Run>,
    expired: Vec<Slot>,
    refused: Vec<RefusedUpdate<E>>,
}

impl<E: Event> BatchBuilder<E> {
    fn refuse(&mut self, event: &E, refusal: Refusal, diff: isize) {
        self.refused.push((Refused { event: event.clone(), refusal }, self.epoch, diff));
    }

    fn push(&mut self, place: &Place, target: Option<EntryRef>) {
        let Place { order: (time, _), container, index, .. } = *place;
        self.max_time = self.max_time.max(time);
        self.targets.extend(target);
        let retracts = target.and_then(|_| TargetIndex::new(self.targets.len() as u32));
        self.entries.push(Entry { time, container, index, retracts });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Line;

    #[test]
    fn slots_are_reused_once_no_operator_refers_to_them() {
        let keys = Rc::new(RefCell::new(Keys::new()));
        let admission = Admission { ttl_ms: Some(100), ..Admission::default() };
        let mut admitter = Admitter::new(admission, Rc::clone(&keys));
        let names: Vec<String> = (0..10).map(|n| n.to_string()).collect();
        let mut epoch = |of: std::ops::Range<usize>, time: i64, watermark: i64| {
            let lines = names[of].iter().map(|name| Line::from((name.as_str(), time, time, "a")));
            let updates = lines.map(|line| (line, Epoch(0), 1)).collect();
            admitter.advance(EventTime(watermark));
            let (batch, _) = admitter.admit(Epoch(0), vec![updates]);
            batch.expect("the epoch has events")
        };
        epoch(0..4, 0, -1);
        assert_eq!((keys.borrow().load().keys(), keys.borrow().slot_count()), (4, 4));

        let news = epoch(4..6, 150, 140);
        assert_eq!(news.expired.len(), 4);
        assert_eq!((keys.borrow().load().keys(), keys.borrow().slot_count()), (2, 6), "no slot is free yet");
        let unread_news = Rc::clone(&news);
        drop(news);
        epoch(6..7, 150, 145);
        assert_eq!(keys.borrow().slot_count(), 7, "an operator has yet to read the expired keys");

        drop(unread_news);
        // The batch itself is dropped once its events are final.
        epoch(7..10, 200, 160);
        assert_eq!(
            (keys.borrow().load().keys(), keys.borrow().slot_count()),
            (6, 7),
            "three of four slots are reused"
        );
    }
}

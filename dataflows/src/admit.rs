//! Admission: the first operator of a key. Late and duplicate events leave here; the rest go on, sorted.

mod capture;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::rc::Rc;

use differential_dataflow::{AsCollection, VecCollection};
use serde::{Deserialize, Serialize};
use timely::ExchangeData;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::batch::{Batch, Containers, Entry, EntryRef, History, Run, RunRef, Slot, TargetIndex};
use crate::control::ControlStream;
use crate::dedup::Dedup;
use crate::event::order;
use crate::expiry::Expiry;
use crate::frontier::{Watermarks, passed, reached};
use crate::keyed::Keyed;
use crate::keys::{Keys, NEVER};
use crate::{Epoch, Event, EventTime, Position};
pub use capture::ids_of;

/// What is asked of an event before it is processed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Admission {
    /// Events of one key with the same id no further apart than this, in milliseconds of event time, are one:
    /// the first in the order (epoch, event time, position) counts, and the room of one that is retracted is free
    /// from the epoch that retracts it. Zero switches deduplication off.
    pub dedup_horizon_ms: i64,
    /// How long a key is remembered after its last event, in milliseconds of event time: once the watermark is so far
    /// past it the key leaves memory, and begins anew should it come back. Windows are waited for. It should be longer
    /// than what any pattern looks back on. None remembers every key for ever.
    pub ttl_ms: Option<i64>,
}

/// Why an event was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Refusal {
    /// Its time is at or below the watermark of the epoch before; or it retracts an event of which that is
    /// true, or which was never admitted.
    Late,
    /// An event of its key with its id was admitted before and has not been retracted.
    Duplicate,
}

/// An event that was not admitted, and why. A refused retraction has a negative diff.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Refused<E> {
    /// The event.
    pub event: E,
    /// Why it changes nothing.
    pub refusal: Refusal,
}

/// Extension trait for admitting a collection of events to keyed operators.
pub trait Admit<'scope, E: Event> {
    /// Exchanges events by shard, sorts each epoch by key and order of evaluation, and refuses what is late or a
    /// duplicate. What was refused comes out as a collection of its own.
    ///
    /// Epoch e is admitted once the watermark of epoch e − 1 is known. Every worker must be given the same
    /// control stream.
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
        (Keyed::new(batches, control, keys), refused.as_collection())
    }
}

type RefusedUpdate<E> = (Refused<E>, Epoch, isize);

/// Batches of what was admitted, and what was refused.
type Outputs<'scope, E> =
    (StreamVec<'scope, Epoch, Rc<Batch<E>>>, StreamVec<'scope, Epoch, RefusedUpdate<E>>);

fn build<'scope, E: Event + ExchangeData>(
    events: StreamVec<'scope, Epoch, (E, Epoch, isize)>,
    control: ControlStream<'scope>,
    admitter: Rc<RefCell<Admitter<E>>>,
) -> Outputs<'scope, E> {
    let mut builder = OperatorBuilder::new("Admit".to_owned(), events.scope());
    let by_shard = Exchange::new(|(event, _, _): &(E, Epoch, isize)| u64::from(event.key_hash().shard().0));
    let mut events = builder.new_input(events, by_shard);
    let mut control = builder.new_input(control, Pipeline);
    let (batches, batch_stream) = builder.new_output();
    let (refused, refused_stream) = builder.new_output();
    let mut batches = OutputBuilder::<_, CapacityContainerBuilder<Vec<Rc<Batch<E>>>>>::from(batches);
    let mut refused = OutputBuilder::<_, CapacityContainerBuilder<Vec<RefusedUpdate<E>>>>::from(refused);

    builder.build(move |capabilities| {
        drop(capabilities);
        let mut arrived: BTreeMap<Epoch, Arrived<E>> = BTreeMap::new();
        let mut watermarks = Watermarks::default();
        let mut checkpoints: BTreeMap<Epoch, EventTime> = BTreeMap::new();
        move |frontiers| {
            events.for_each(|stamp, data| {
                let epoch = *stamp.least().expect("data travels with a time");
                let arrived = arrived.entry(epoch).or_insert_with(|| Arrived {
                    batch: stamp.delayed(&epoch, 0),
                    refused: stamp.delayed(&epoch, 1),
                    containers: Vec::new(),
                });
                arrived.containers.push(std::mem::take(data));
            });
            control.for_each(|stamp, data| {
                let epoch = *stamp.least().expect("control travels with a time");
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

struct Arrived<E> {
    batch: Capability<Epoch>,
    refused: Capability<Epoch>,
    containers: Containers<E>,
}

/// An event of the epoch: its place in the order of evaluation, and where it lies.
#[derive(Clone, Copy)]
struct Place {
    order: (EventTime, Position),
    container: u32,
    index: u32,
    /// Whether it is one insertion: the usual case.
    single: bool,
}

impl Place {
    fn event<'a, E>(&self, containers: &'a Containers<E>) -> &'a E {
        &containers[self.container as usize][self.index as usize].0
    }

    fn diff<E>(&self, containers: &Containers<E>) -> isize {
        containers[self.container as usize][self.index as usize].2
    }
}

/// The changes of one key in an epoch, sorted, as events and what their diffs sum up to: identical events add up,
/// and may cancel.
fn net<'a, E: Event>(
    run: &'a [Place],
    containers: &'a Containers<E>,
) -> impl Iterator<Item = (&'a Place, isize)> {
    // Several forms of one record stand at the same place, in any order, if it was corrected in this epoch.
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

/// How many events lie between asking for memory and reading it.
const AHEAD: usize = 16;

/// Decides which events take part.
struct Admitter<E: Event> {
    keys: Rc<RefCell<Keys<E>>>,
    dedup: Dedup,
    /// Where keys do not live for ever.
    expiry: Option<Expiry>,
    /// Keys that died since the last batch.
    expired: Vec<Slot>,
    /// Slots of keys that died, each with the batch that says so: free once all operators have read it.
    leaving: VecDeque<(Rc<Batch<E>>, Vec<Slot>)>,
    watermark: EventTime,
    history: History<E, ()>,
    /// Insertions that were retracted, among those not final.
    retracted: HashSet<EntryRef>,
    next_batch: u64,
    /// The epoch's events in the order of arrival.
    places: Vec<Place>,
    /// Slots of events, each with the number of its place.
    slots: Vec<(Slot, u32)>,
    /// One key's places in order.
    run: Vec<Place>,
    /// None if nothing is captured.
    capture: Option<capture::Tracked<E>>,
}

impl<E: Event> Admitter<E> {
    fn new(admission: Admission, keys: Rc<RefCell<Keys<E>>>) -> Self {
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

    /// Lets go of keys that have died, and frees the slots of those that all operators have let go of.
    fn expire(&mut self) {
        let Some(expiry) = &mut self.expiry else { return };
        let keys = Rc::clone(&self.keys);
        let mut keys = keys.borrow_mut();
        expiry.at_least(keys.reach_ms());
        let dead = self.expired.len();
        while self.leaving.front().is_some_and(|(batch, _)| Rc::strong_count(batch) == 1) {
            keys.free(self.leaving.pop_front().map(|(_, slots)| slots).unwrap_or_default());
        }
        while let Some(slots) = expiry.take(self.watermark) {
            for slot in slots {
                // One that was never admitted an event has nothing that could be remembered.
                let (last, _) = keys.info_mut(slot).last;
                if expiry.death(last) <= self.watermark {
                    self.expired.push(slot);
                } else {
                    expiry.watch(slot, last);
                }
            }
        }
        for at in dead..self.expired.len() {
            let slot = self.expired[at];
            self.removed(slot, &keys);
            keys.remove(slot);
        }
    }

    /// The batch of an epoch, unless it has no events, and what was refused.
    fn admit(
        &mut self,
        epoch: Epoch,
        containers: Containers<E>,
    ) -> (Option<Rc<Batch<E>>>, Vec<RefusedUpdate<E>>) {
        self.expire();
        let keys = Rc::clone(&self.keys);
        let mut keys = keys.borrow_mut();
        self.arrive(&containers, &mut keys);
        self.before(&keys);
        let mut decided = Decided {
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
            if let Some(&(slot, _)) = slots.get(at + AHEAD) {
                keys.prefetch(slot);
            }
            run.clear();
            run.extend(same.iter().map(|&(_, place)| self.places[place as usize]));
            if run.len() > 1 {
                // Mostly they came in order.
                run.sort_by_key(|place| place.order);
            }
            self.admit_run(same[0].0, &run, &containers, &mut keys, &mut decided);
        }
        (self.slots, self.run) = (slots, run);
        let Decided { max_time, entries, targets, runs, expired, refused, .. } = decided;
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

    /// Fills `places`, and `slots` sorted.
    ///
    /// Keys are looked up in the order of arrival, in which events lie in memory, and states are visited in the
    /// order of slots, in which they do: sorted by hash, either would be a walk at random.
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
                });
            });
        }
        self.slots.sort_unstable();
    }

    /// Admits one key's events of the epoch, sorted.
    fn admit_run(
        &mut self,
        slot: Slot,
        run: &[Place],
        containers: &Containers<E>,
        keys: &mut Keys<E>,
        decided: &mut Decided<E>,
    ) {
        let info = keys.info_mut(slot);
        if let Some(expiry) = &mut self.expiry {
            if info.last != NEVER && expiry.death(info.last.0) <= self.watermark {
                (info.last, info.run) = (NEVER, None);
                decided.expired.push(slot);
            }
            if !std::mem::replace(&mut info.watched, true) {
                expiry.watch(slot, self.watermark);
            }
        }
        let start = decided.entries.len();
        let mut in_order = true;
        if run.iter().all(|place| place.single) && run.is_sorted_by(|a, b| a.order < b.order) {
            for place in run {
                in_order &= self.insert(place, 1, containers, &mut info.last, decided);
            }
        } else {
            // Retractions first: a corrected event must find room for its id, wherever in the order it has moved to.
            for (place, diff) in net(run, containers) {
                in_order &= self.retract(place, -diff, containers, info.run, decided);
            }
            for (place, diff) in net(run, containers) {
                in_order &= self.insert(place, diff, containers, &mut info.last, decided);
            }
        }
        let end = decided.entries.len();
        if end > start {
            let previous = info.run.replace(RunRef::new(self.next_batch, decided.runs.len()));
            decided.runs.push(Run { slot, start: start as u32, end: end as u32, in_order, previous });
        }
    }

    /// Inserts an event so many times; says whether it came after all before.
    fn insert(
        &mut self,
        place: &Place,
        times: isize,
        containers: &Containers<E>,
        last: &mut (EventTime, Position),
        decided: &mut Decided<E>,
    ) -> bool {
        let mut in_order = true;
        for _ in 0..times {
            match self.check(place, containers) {
                Err(refusal) => decided.refuse(place.event(containers), refusal, 1),
                Ok(()) => {
                    in_order &= *last <= place.order;
                    *last = (*last).max(place.order);
                    decided.push(place, None);
                }
            }
        }
        in_order
    }

    /// Retracts an event so many times, from what the runs back from `newest` inserted; says whether nothing was.
    fn retract(
        &mut self,
        place: &Place,
        times: isize,
        containers: &Containers<E>,
        newest: Option<RunRef>,
        decided: &mut Decided<E>,
    ) -> bool {
        let event = place.event(containers);
        let mut untouched = true;
        for _ in 0..times {
            match self.find(event, newest) {
                None => decided.refuse(event, Refusal::Late, -1),
                Some(target) => {
                    untouched = false;
                    self.retracted.insert(target);
                    if let Some(id) = event.id() {
                        self.dedup.forget(event.key_hash(), id, event.time());
                    }
                    decided.push(place, Some(target));
                }
            }
        }
        untouched
    }

    fn check(&mut self, place: &Place, containers: &Containers<E>) -> Result<(), Refusal> {
        if place.order.0 <= self.watermark {
            return Err(Refusal::Late);
        }
        if !self.dedup.is_on() {
            return Ok(());
        }
        let event = place.event(containers);
        match event.id() {
            Some(id) if !self.dedup.accept(event.key_hash(), id, event.time()) => Err(Refusal::Duplicate),
            _ => Ok(()),
        }
    }

    /// The admitted insertion of this very event, if it is above the watermark and still counts.
    fn find(&self, event: &E, newest: Option<RunRef>) -> Option<EntryRef> {
        if event.time() <= self.watermark {
            return None;
        }
        let mut found = None;
        self.history.for_each(newest, |entry, batch, index| {
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

/// What an epoch comes to, while it is being decided.
struct Decided<E> {
    epoch: Epoch,
    max_time: EventTime,
    entries: Vec<Entry>,
    targets: Vec<EntryRef>,
    runs: Vec<Run>,
    expired: Vec<Slot>,
    refused: Vec<RefusedUpdate<E>>,
}

impl<E: Event> Decided<E> {
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
    fn slots_of_the_dead_are_given_away_once_no_operator_reads_of_them_any_more() {
        let keys = Rc::new(RefCell::new(Keys::new()));
        let admission = Admission { ttl_ms: Some(100), ..Admission::default() };
        let mut admitter = Admitter::new(admission, Rc::clone(&keys));
        let names: Vec<String> = (0..10).map(|n| n.to_string()).collect();
        let mut epoch = |of: std::ops::Range<usize>, time: i64, watermark: i64| {
            let lines = names[of].iter().map(|name| Line::from((name.as_str(), time, time, "a")));
            let updates = lines.map(|line| (line, Epoch(0), 1)).collect();
            admitter.advance(EventTime(watermark));
            let (batch, _) = admitter.admit(Epoch(0), vec![updates]);
            batch.expect("there are events")
        };
        epoch(0..4, 0, -1);
        assert_eq!((keys.borrow().load().keys(), keys.borrow().slots_in_all()), (4, 4));

        let news = epoch(4..6, 150, 140);
        assert_eq!(news.expired.len(), 4);
        assert_eq!((keys.borrow().load().keys(), keys.borrow().slots_in_all()), (2, 6), "none is free yet");
        let unread_news = Rc::clone(&news);
        drop(news);
        epoch(6..7, 150, 145);
        assert_eq!(keys.borrow().slots_in_all(), 7, "somebody still has to read who died");

        drop(unread_news);
        // The batch itself goes once its events are final.
        epoch(7..10, 200, 160);
        assert_eq!(
            (keys.borrow().load().keys(), keys.borrow().slots_in_all()),
            (6, 7),
            "three of four again"
        );
    }
}

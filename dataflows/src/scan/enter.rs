//! The entry of rules as if they had always been there: with their states of all events up to a time, and the effect of
//! those after it.
//!
//! ```text
//!   steps of a key, in order      a  b │ c  d  e            │ the time up to which the states are
//!   undone, newest first               ← ←  ←  ←
//!   states added, rules judge          +
//!   stepped, results compared          → →  →  →             raises what the rules find; other results are the same
//! ```

use differential_dataflow::Data;

use super::{Scanner, Selection, give};
use crate::batch::{EntryRef, Slot};
use crate::event::order;
use crate::keys::Keys;
use crate::rules::{Entering, KeyedState, Rules};
use crate::{Epoch, Event, EventTime, Position};

/// The states of rules that enter, by the slots of their keys.
pub(super) struct Placed<E: Event, S> {
    /// The time up to which the states are.
    after: EventTime,
    /// The states, by the slots of their keys.
    states: Vec<(Slot, S)>,
    /// The keys of the operator.
    selection: Selection<E>,
}

/// A step to be made, by key and order.
type Place = (Slot, (EventTime, Position), EntryRef);

impl<E: Event, S> Placed<E, S> {
    /// Finds the slots of the keys, and adds the keys that are not known. Those that have expired are left out.
    pub fn new(
        Entering { after, states }: Entering<E, S>,
        keys: &mut Keys<E>,
        selection: &Selection<E>,
    ) -> Self {
        let place = |KeyedState { hash, key, last, state }: KeyedState<E, S>| {
            Some((keys.adopt(hash, std::borrow::Borrow::borrow(&key), last, after)?, state))
        };
        let states = states.into_iter().filter_map(place).collect();
        Placed { after, states, selection: selection.clone() }
    }

    /// Returns the slots of keys whose states change.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.states.iter().map(|(slot, _)| *slot)
    }
}

impl<E: Event, R: Rules<E, D>, D: Data> Scanner<E, R, D> {
    /// Lets rules enter at the end of an epoch.
    pub(super) fn enter(
        &mut self,
        epoch: Epoch,
        entering: Placed<E, R::State>,
        keys: &Keys<E>,
        out: &mut Vec<(D, Epoch, isize)>,
    ) {
        let Placed { after, states, selection } = entering;
        let places = self.places_after(after, &selection);
        self.undo_places(&places);
        self.rules.enter(epoch);
        for (slot, state) in states {
            let key = std::borrow::Borrow::borrow(keys.key(slot));
            self.rules.waiting(&state, key, after, &mut self.found);
            give(&self.rules, &mut self.waiting, self.found.drain(..), epoch, 1, out);
            self.rules.merge(self.states.made(slot), state);
        }
        self.step_places(&places, epoch, out);
    }

    /// Returns the events above a time, by key and order, stepped or not.
    fn places_after(&self, after: EventTime, selection: &Selection<E>) -> Vec<Place> {
        let live = selection.live_after(&self.history, after);
        let mut places: Vec<Place> = live.map(|(slot, entry, event)| (slot, order(event), entry)).collect();
        places.sort_unstable();
        places
    }

    fn undo_places(&mut self, places: &[Place]) {
        let Scanner { rules, states, history, .. } = self;
        for (slot, _, EntryRef { batch, entry }) in places.iter().rev() {
            let (batch, steps) = history.get_mut(*batch).expect("its batch is in the history");
            if let Some(undo) = steps.undos.take(*entry as usize) {
                rules.undo(states.at_mut(*slot), batch.event(*entry as usize), undo);
            }
        }
    }

    fn step_places(&mut self, places: &[Place], epoch: Epoch, out: &mut Vec<(D, Epoch, isize)>) {
        let Scanner { rules, states, waiting, history, found, again, .. } = self;
        for (slot, _, EntryRef { batch, entry }) in places {
            let (batch, steps) = history.get_mut(*batch).expect("its batch is in the history");
            let event = batch.event(*entry as usize);
            rules.step(states.made(*slot), event, again, found);
            steps.undos.set(*entry as usize, again);
            let mut before = steps.found.remove(entry).unwrap_or_default();
            before.sort_by_key(|found| std::cmp::Reverse(found.rule));
            found.sort_by_key(|found| std::cmp::Reverse(found.rule));
            if *found != before {
                give(rules, waiting, before.into_iter(), epoch, -1, out);
                give(rules, waiting, found.iter().cloned(), epoch, 1, out);
            }
            if !found.is_empty() {
                steps.found.insert(*entry, std::mem::take(found));
            }
        }
    }
}

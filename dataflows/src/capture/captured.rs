//! Keyed events whose operators capture their state.

use std::cell::RefCell;
use std::rc::Rc;

use differential_dataflow::{AsCollection, Data, VecCollection};
use timely::dataflow::StreamVec;

use super::{Capture, Captures, Stored, Tracker, build, logic::Capturing};
use crate::accumulate::Accumulator;
use crate::batch::Batch;
use crate::keyed::Keyed;
use crate::patterns::{Absence, Run};
use crate::rules::{Missing, Rule, Rules};
use crate::scan::Scanner;
use crate::windows::{Aggregate, Aligned, EmitPolicy, Row, Sessions};
use crate::{Emission, Epoch, Event, EventTime, EventUse, Events as _, KeyStates, Load, OwnedKey, Pattern};

/// [`Keyed`] events, returned by [`Captures::admit`]. The operators are those of `Keyed`, and each captures its state
/// under its name. The names must be unique.
///
/// The types of states and window results must be [`Stored`]:
///
/// ```compile_fail
/// use headwater_dataflows::{Captured, Emission, Pattern, testing::Line};
///
/// struct Twice;
///
/// impl Pattern<Line> for Twice {
///     type State = Option<std::thread::ThreadId>;
///     type Undo = ();
///     type Match = ();
///     fn step(&self, _: &mut Self::State, _: &Line) -> (Option<()>, ()) { (None, ()) }
///     fn undo(&self, _: &mut Self::State, _: &Line, _: ()) {}
/// }
///
/// fn matches(keyed: Captured<'_, Line>) {
///     keyed.scan("Twice", Twice, Emission::Final, |_, ()| ());
/// }
/// ```
pub struct Captured<'scope, E: Event> {
    keyed: Keyed<'scope, E>,
    captures: Captures<'scope>,
    /// The restored un-final events.
    resumed: Option<Rc<Batch<E>>>,
}

impl<E: Event> Clone for Captured<'_, E> {
    fn clone(&self) -> Self {
        Captured { keyed: self.keyed.clone(), captures: self.captures.clone(), resumed: self.resumed.clone() }
    }
}

impl<'scope, E: Event> Captured<'scope, E> {
    pub(crate) fn new(
        keyed: Keyed<'scope, E>,
        captures: Captures<'scope>,
        resumed: Option<Rc<Batch<E>>>,
    ) -> Self {
        Captured { keyed, captures, resumed }
    }

    /// Like [`Keyed::load`].
    pub fn load(&self) -> Load {
        self.keyed.load()
    }

    /// Like [`Keyed::key_states`].
    pub fn key_states(&self) -> KeyStates<E> {
        self.keyed.key_states()
    }

    /// Like [`Events::events`](crate::Events::events).
    pub fn events(self, name: &str) -> VecCollection<'scope, Epoch, E> {
        self.keyed.events(name)
    }

    /// Like [`Events::events_while`](crate::Events::events_while).
    pub fn events_while(self, name: &str, used: EventUse) -> VecCollection<'scope, Epoch, E> {
        self.keyed.events_while_from(name, used, self.resumed)
    }

    /// Like [`Keyed::only`].
    pub fn only(mut self, only: impl Fn(&E::Key) -> bool + 'static) -> Self {
        self.keyed = self.keyed.only(only);
        self
    }
}

impl<'scope, E: Event<Key: ToOwned<Owned: Stored>>> Captured<'scope, E> {
    /// Like [`Scan::scan`](crate::Scan::scan).
    pub fn scan<P, D, F>(
        self,
        name: &str,
        pattern: P,
        emission: Emission,
        result: F,
    ) -> VecCollection<'scope, Epoch, D>
    where
        P: Pattern<E, State: Stored>,
        D: Data,
        F: Fn(&E, P::Match) -> D + 'static,
    {
        self.scan_all(name, (Rule::new(pattern, emission, result), ()))
    }

    /// Like [`Scan::scan_all`](crate::Scan::scan_all).
    pub fn scan_all<R, D>(self, name: &str, rules: R) -> VecCollection<'scope, Epoch, D>
    where
        R: Rules<E, D, State: Stored>,
        D: Data,
    {
        self.run(name, Scanner::new(rules)).as_collection()
    }

    /// Like [`Scan::scan_absence`](crate::Scan::scan_absence).
    pub fn scan_absence<T, D, F>(
        self,
        name: &str,
        absence: Absence<E, T>,
        result: F,
    ) -> VecCollection<'scope, Epoch, D>
    where
        T: Stored + Clone + PartialEq + 'static,
        D: Data,
        F: Fn(&E::Key, &Run<T>) -> D + 'static,
    {
        self.scan_all(name, (Missing::new(absence, result), ()))
    }

    /// Like [`Accumulate::accumulate`](crate::Accumulate::accumulate).
    pub fn accumulate<S, O, F>(self, name: &str, step: F) -> StreamVec<'scope, Epoch, (Epoch, O)>
    where
        S: Stored + Default + 'static,
        O: Default + Clone + 'static,
        F: FnMut(Epoch, &mut S, &E, &mut O) + 'static,
    {
        self.run(name, Accumulator::new(step))
    }

    /// Like [`Tumbling::tumbling`](crate::windows::Tumbling::tumbling).
    pub fn tumbling<A, D, F>(
        self,
        name: &str,
        size_ms: i64,
        emit: EmitPolicy,
        aggregate: A,
        result: F,
    ) -> VecCollection<'scope, Epoch, D>
    where
        A: Aggregate<E, State: Stored>,
        D: Data + Stored,
        F: Fn(Row<'_, OwnedKey<E>, A::State>) -> D + 'static,
    {
        self.sliding(name, size_ms, size_ms, emit, aggregate, result)
    }

    /// Like [`Sliding::sliding`](crate::windows::Sliding::sliding).
    ///
    /// # Panics
    /// Panics if `slide_ms` is not in 1..=`size_ms`.
    pub fn sliding<A, D, F>(
        self,
        name: &str,
        size_ms: i64,
        slide_ms: i64,
        emit: EmitPolicy,
        aggregate: A,
        result: F,
    ) -> VecCollection<'scope, Epoch, D>
    where
        A: Aggregate<E, State: Stored>,
        D: Data + Stored,
        F: Fn(Row<'_, OwnedKey<E>, A::State>) -> D + 'static,
    {
        self.keyed.keep_for(size_ms);
        let load = self.load();
        self.run(name, Aligned::new(size_ms, slide_ms, emit, aggregate, result, load)).as_collection()
    }

    /// Like [`Session::session`](crate::windows::Session::session).
    ///
    /// # Panics
    /// Panics if `gap_ms` is below 1.
    pub fn session<A, D, F>(
        self,
        name: &str,
        gap_ms: i64,
        emit: EmitPolicy,
        aggregate: A,
        result: F,
    ) -> VecCollection<'scope, Epoch, D>
    where
        A: Aggregate<E, State: Stored>,
        D: Data + Stored,
        F: Fn(Row<'_, OwnedKey<E>, A::State>) -> D + 'static,
    {
        self.keyed.keep_for(gap_ms);
        let load = self.load();
        self.run(name, Sessions::new(gap_ms, emit, aggregate, result, load)).as_collection()
    }

    /// Restores and runs the logic of an operator, and captures its state.
    fn run<L: Capture<E>>(self, name: &str, mut logic: L) -> StreamVec<'scope, Epoch, L::Out> {
        let Captured { keyed, captures, resumed } = self;
        let Some(mut register) = captures.register() else { return keyed.run(name, logic) };
        let (operator, records) = register.enter(name);
        let mut tracker = Tracker::new(operator);
        let mut watermark = EventTime::MIN;
        if let Some((epoch, restored)) = register.from() {
            watermark = restored;
            logic.begin_restore(epoch);
            let known = keyed.keys.borrow().slot_count();
            register.load(records, &mut keyed.keys.borrow_mut(), |slot, key, saved| {
                tracker.restored(slot);
                logic.load(slot, key, watermark, saved)
            });
            // Keys that this operator had added, and admission had not captured.
            keyed.keys.borrow_mut().adopt_from(known, watermark);
            if let Some(batch) = &resumed {
                tracker.resumed(batch, keyed.selection.numbered_runs(batch));
            }
            logic.resume(epoch, resumed.as_ref(), &keyed.selection);
        }
        let keys = Rc::clone(&keyed.keys);
        let state = Rc::new(RefCell::new(Capturing { logic, tracker, keys, watermark, closing: Vec::new() }));
        register.add(build(name, keyed.control.clone(), Rc::clone(&state)));
        keyed.run(name, state)
    }
}

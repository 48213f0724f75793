//! The state of one key, read from the operators of a worker between its steps.
//!
//! ```text
//!   between two steps:  visit(key) ─▶ keys of admission ─▶ slot ─▶ each operator ─▶ StatePart, borrowed ─▶ visitor
//! ```
//!
//! The operators step without regard to visits: they note the epoch and the watermark that they have reached, once each
//! epoch. What a visit reads is *live*: it is ahead of the results that a sink has committed, and an un-final part of it
//! can still be corrected.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::batch::Slot;
use crate::keyed::{Logic, Selection};
use crate::keys::Keys;
use crate::patterns::Description;
use crate::{Epoch, Event, EventTime, Key, OwnedKey};

/// A part of the state that an operator holds for a key.
pub enum StatePart<'a> {
    /// The row of an open window, with all of its events so far. It has the type of the operator's results, and the
    /// latest window comes first.
    Window(&'a dyn Any),
    /// The number of open windows without a row, because they are too many. They are earlier than those with a row.
    MoreWindows(usize),
    /// The running state of [`accumulate`](crate::Accumulate::accumulate), of the type of its states.
    Running(&'a dyn Any),
    /// The state of a rule.
    Rule {
        /// The number of the rule: the count of rules after it, or its number in a [`RuleSet`](crate::RuleSet).
        rule: u32,
        /// The description of its state.
        description: Description,
    },
}

/// The progress of operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsOf {
    /// The latest epoch whose events all operators have processed; `None` before the first.
    pub epoch: Option<Epoch>,
    /// The watermark that all operators have reached.
    pub watermark: EventTime,
}

/// A handle that reads the state of one key in the operators of one [`admit`](crate::Admit::admit) on its worker.
///
/// Use it between steps of the worker. All operators step an epoch in the same step of the worker, so they usually
/// show the state at the end of the same epoch.
///
/// ```
/// use headwater_dataflows::patterns::{Description, Frequency};
/// use headwater_dataflows::testing::{Kit, Line};
/// use headwater_dataflows::{Emission, Scan, StatePart};
///
/// let mut states = None;
/// let mut kit = Kit::new(|keyed| {
///     states = Some(keyed.key_states());
///     keyed.scan("Three", Frequency::at_least(3, 10), Emission::Immediate, |line: &Line, _| line.time)
/// });
/// let states = states.expect("the dataflow is built");
/// kit.push_at(5, Line::of("ann", "a"));
/// kit.push_at(14, Line::of("ann", "b"));
///
/// let mut counts = Vec::new();
/// let known = states.visit("ann", &mut |operator, part| {
///     if let StatePart::Rule { description: Description::Count { count, .. }, .. } = part {
///         counts.push((operator.to_owned(), count));
///     }
/// });
/// assert!(known);
/// assert_eq!(counts, [("Three".to_owned(), 2)]);
/// assert!(!states.visit("bob", &mut |_, _| panic!("bob has no state")));
/// ```
pub struct KeyStates<E: Event>(Rc<Operators<E>>);

impl<E: Event> Clone for KeyStates<E> {
    fn clone(&self) -> Self {
        KeyStates(Rc::clone(&self.0))
    }
}

struct Operators<E: Event> {
    keys: Rc<RefCell<Keys<E>>>,
    /// The epoch and watermark that the operators were restored at.
    restored: Option<(Epoch, EventTime)>,
    operators: RefCell<Vec<Rc<dyn Visited<E>>>>,
}

/// The epoch and the watermark that an operator has reached.
pub(crate) struct Progress {
    epoch: Cell<Option<Epoch>>,
    watermark: Cell<EventTime>,
}

impl Progress {
    /// Records that all events of an epoch are processed.
    pub fn stepped(&self, epoch: Epoch) {
        self.epoch.set(Some(epoch));
    }

    /// Records the watermark of an epoch that has ended.
    pub fn closed(&self, watermark: EventTime) {
        self.watermark.set(self.watermark.get().max(watermark));
    }
}

/// An operator whose logic has the type `L`.
struct Operator<E: Event, L> {
    name: Box<str>,
    logic: Rc<RefCell<L>>,
    progress: Rc<Progress>,
    selection: Selection<E>,
}

/// An operator whose state can be visited.
trait Visited<E: Event> {
    fn progress(&self) -> &Progress;

    fn visit(&self, slot: Slot, key: &OwnedKey<E>, visitor: &mut dyn FnMut(&str, StatePart<'_>));
}

impl<E: Event, L: Logic<E>> Visited<E> for Operator<E, L> {
    fn progress(&self) -> &Progress {
        &self.progress
    }

    fn visit(&self, slot: Slot, key: &OwnedKey<E>, visitor: &mut dyn FnMut(&str, StatePart<'_>)) {
        if self.selection.selects(std::borrow::Borrow::borrow(key)) {
            let watermark = self.progress.watermark.get();
            self.logic.borrow().visit(slot, key, watermark, &mut |part| visitor(&self.name, part));
        }
    }
}

impl<E: Event> KeyStates<E> {
    pub(crate) fn new(keys: Rc<RefCell<Keys<E>>>, restored: Option<(Epoch, EventTime)>) -> Self {
        KeyStates(Rc::new(Operators { keys, restored, operators: RefCell::default() }))
    }

    /// Adds an operator. Returns its progress, which the operator must keep up to date.
    pub(crate) fn add<L: Logic<E>>(
        &self,
        name: &str,
        logic: Rc<RefCell<L>>,
        selection: Selection<E>,
    ) -> Rc<Progress> {
        let (epoch, watermark) = self.0.restored.unzip();
        let watermark = watermark.unwrap_or(EventTime::MIN);
        let progress = Rc::new(Progress { epoch: Cell::new(epoch), watermark: Cell::new(watermark) });
        let operator = Operator { name: name.into(), logic, progress: Rc::clone(&progress), selection };
        self.0.operators.borrow_mut().push(Rc::new(operator));
        progress
    }

    /// Returns the progress that all operators have made.
    pub fn as_of(&self) -> AsOf {
        let operators = self.0.operators.borrow();
        let progress = operators.iter().map(|operator| operator.progress());
        let reached = progress.map(|progress| (progress.epoch.get(), progress.watermark.get()));
        let least = reached
            .reduce(|(epoch, watermark), (other, of_other)| (epoch.min(other), watermark.min(of_other)));
        let (epoch, watermark) = least.unwrap_or((None, EventTime::MIN));
        AsOf { epoch, watermark }
    }

    /// Passes the state of a key to `visitor`, with the names of the operators, in the order in which they were built.
    /// Returns false, without a call, if no event of the key was admitted, or the key has expired.
    ///
    /// Admission can be one epoch ahead of the operators. The state of a key that is new in that epoch is empty.
    ///
    /// Takes microseconds, and at most milliseconds: the rows of windows are limited in number, and so are the un-final
    /// events of sessions that it aggregates.
    ///
    /// # Panics
    /// Panics if an operator is being stepped.
    pub fn visit(&self, key: &E::Key, visitor: &mut dyn FnMut(&str, StatePart<'_>)) -> bool {
        let keys = self.0.keys.borrow();
        let watermark = self.as_of().watermark;
        let found = keys.find(key.key_hash(), key).filter(|slot| keys.is_live(*slot, watermark));
        let Some(slot) = found else { return false };
        for operator in self.0.operators.borrow().iter() {
            operator.visit(slot, keys.key(slot), visitor);
        }
        true
    }
}

#[cfg(test)]
mod tests;

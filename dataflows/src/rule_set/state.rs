//! The states of the rules of a set for one key.

use std::num::NonZeroU32;
use std::rc::Rc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::finding::Milestone;
use crate::capture::{Damage, decode, encode_unless_default};
use crate::patterns::{
    Displaced, Evicted, Groups, LastSeen, Located, Moments, Overwritten, Recent, Stepped, Trailing, Waiting,
    all,
};
use crate::prefetch::prefetch;

/// The states of the rules that have processed an event of a key.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SetState {
    /// Sorted by id.
    pub(super) entries: Vec<Entry>,
}

/// The identity of a state, and of the rule that stepped it last. All keys share it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// The id of the rule.
    pub id: u64,
    /// The definition of the rule; `None` if the state was stored without.
    pub definition: Option<u64>,
}

/// The state of one rule.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub identity: Rc<Identity>,
    /// The time up to which results are suppressed; `i64::MIN` before the first result.
    pub until: i64,
    pub state: ConditionState,
}

/// The part of a stored entry between its id and its state. The first two variants have the form of `Option<i64>`, which
/// was stored before there were definitions.
#[derive(Serialize, Deserialize)]
enum Mark {
    Undefined,
    UndefinedUntil(i64),
    Defined(u64),
    DefinedUntil(u64, i64),
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Entry { identity, until, state } = self;
        let mark = match (identity.definition, *until) {
            (None, i64::MIN) => Mark::Undefined,
            (None, until) => Mark::UndefinedUntil(until),
            (Some(definition), i64::MIN) => Mark::Defined(definition),
            (Some(definition), until) => Mark::DefinedUntil(definition, until),
        };
        (identity.id, mark, state).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entry, D::Error> {
        let (id, mark, state) = Deserialize::deserialize(deserializer)?;
        let (definition, until) = match mark {
            Mark::Undefined => (None, i64::MIN),
            Mark::UndefinedUntil(until) => (None, until),
            Mark::Defined(definition) => (Some(definition), i64::MIN),
            Mark::DefinedUntil(definition, until) => (Some(definition), until),
        };
        Ok(Entry { identity: Rc::new(Identity { id, definition }), until, state })
    }
}

impl Entry {
    /// Returns the id of the rule.
    #[inline]
    pub fn id(&self) -> u64 {
        self.identity.id
    }

    /// Returns true if the rule with this identity stepped the state last.
    #[inline]
    pub fn is_of(&self, identity: &Rc<Identity>) -> bool {
        Rc::ptr_eq(&self.identity, identity) || self.identity == *identity
    }

    /// Returns true if one state can replace the other: see [`Pattern::same`](crate::Pattern::same).
    pub fn same(&self, other: &Entry) -> bool {
        self.until == other.until && self.is_of(&other.identity) && self.state.same(&other.state)
    }
}

/// The state of a condition. New variants are added at the end, so that stored states stay valid.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum ConditionState {
    Nothing,
    Count(Recent),
    Distinct(LastSeen),
    Trailing(Box<Trailing>),
    Outlier(Box<Moments>),
    Groups(Option<Box<Groups<Moments>>>),
    Travel(Option<Located>),
    Runs(Waiting<Milestone>),
}

/// The effect that is undone. There is one for each rule and un-final event, so it is small.
#[derive(Clone, Debug)]
pub(super) enum ConditionUndo {
    /// The rule had no state.
    Fresh,
    /// The event is enough.
    Event,
    Count(Overwritten),
    /// Like [`Displaced`], of an event with a value.
    Distinct {
        value: (u64, i64),
        from: Option<NonZeroU32>,
        held: bool,
    },
    /// Like [`Evicted`], of an event with a number.
    Trailing {
        numbers: Box<[(i64, i64)]>,
        held: bool,
    },
    Groups(Stepped<()>),
    Travel(Option<Located>),
    /// The previous runs, if they changed.
    Runs(Option<Box<Waiting<Milestone>>>),
    /// The time up to which results were suppressed, if the step changed it: another item after that of the step.
    Until(i64),
    /// A rule with another definition had stepped the previous entry.
    Adopted(Box<Entry>),
}

/// An item of the data needed to undo the step of one rule.
#[derive(Clone, Debug)]
pub struct RuleUndo {
    /// The index of the rule in the version that judges the event.
    pub(super) rule: u32,
    pub(super) undo: ConditionUndo,
}

const _: () = assert!(size_of::<Option<RuleUndo>>() <= 32);

impl ConditionUndo {
    /// Replaces [`Event`](ConditionUndo::Event), which need not be dropped.
    #[inline]
    pub fn put(&mut self, undo: ConditionUndo) {
        debug_assert!(matches!(self, ConditionUndo::Event));
        std::mem::forget(std::mem::replace(self, undo));
    }
}

impl From<Displaced> for ConditionUndo {
    #[inline]
    fn from(Displaced { has_value, held, from, value }: Displaced) -> ConditionUndo {
        if has_value { ConditionUndo::Distinct { value, from, held } } else { ConditionUndo::Event }
    }
}

impl From<Evicted> for ConditionUndo {
    #[inline]
    fn from(Evicted { has_number, held, numbers }: Evicted) -> ConditionUndo {
        if has_number { ConditionUndo::Trailing { numbers, held } } else { ConditionUndo::Event }
    }
}

impl ConditionState {
    /// Returns true if one state can replace the other: see [`Pattern::same`](crate::Pattern::same).
    fn same(&self, other: &ConditionState) -> bool {
        match (self, other) {
            (ConditionState::Nothing, ConditionState::Nothing) => true,
            (ConditionState::Count(one), ConditionState::Count(other)) => one.same(other),
            (ConditionState::Distinct(one), ConditionState::Distinct(other)) => one == other,
            (ConditionState::Trailing(one), ConditionState::Trailing(other)) => one == other,
            (ConditionState::Outlier(one), ConditionState::Outlier(other)) => one == other,
            (ConditionState::Groups(one), ConditionState::Groups(other)) => all(one) == all(other),
            (ConditionState::Travel(one), ConditionState::Travel(other)) => one == other,
            (ConditionState::Runs(one), ConditionState::Runs(other)) => one == other,
            _ => false,
        }
    }

    /// Prefetches the memory that the state points to and that a step will read.
    #[inline]
    pub(super) fn prefetch(&self) {
        match self {
            ConditionState::Count(state) => state.prefetch(),
            ConditionState::Distinct(state) => state.prefetch(),
            ConditionState::Trailing(state) => prefetch(&**state),
            ConditionState::Outlier(state) => prefetch(&**state),
            ConditionState::Groups(Some(state)) => prefetch(&**state),
            ConditionState::Travel(Some(state)) => state.prefetch(),
            ConditionState::Runs(runs) => runs.first().into_iter().for_each(prefetch),
            ConditionState::Nothing | ConditionState::Groups(None) | ConditionState::Travel(None) => {}
        }
    }
}

impl SetState {
    /// Returns the state at an index, if it is that of the rule.
    pub(super) fn at(&self, at: usize, id: u64) -> Option<&Entry> {
        self.entries.get(at).filter(|entry| entry.id() == id)
    }

    /// Returns the index of the first state from `at` on whose rule has this id or a greater one.
    #[inline]
    pub(super) fn seek(&self, mut at: usize, id: u64) -> usize {
        while self.entries.get(at).is_some_and(|entry| entry.id() < id) {
            at += 1;
        }
        at
    }

    /// Returns the index of the first state from `at` on whose rule has the id of this identity or a greater one.
    #[inline]
    pub(super) fn find(&self, at: usize, identity: &Rc<Identity>) -> usize {
        let is_next = self.entries.get(at).is_some_and(|entry| Rc::ptr_eq(&entry.identity, identity));
        if is_next { at } else { self.seek(at, identity.id) }
    }

    /// Inserts a state. There may be millions of idle keys, so little memory is reserved.
    pub(super) fn insert(&mut self, at: usize, entry: Entry) {
        if self.entries.len() == self.entries.capacity() {
            self.entries.reserve_exact(1 + self.entries.len() / 8);
        }
        self.entries.insert(at, entry);
    }
}

/// Removes the state of the rules with these ids from `saved`, the captured state of a key in a scan of a
/// [`RuleSet`](super::RuleSet). Returns the rest; `None` if no state is left.
///
/// # Errors
/// Fails if `saved` cannot be decoded as such a state.
pub fn forget_rules_by_id(ids: &[u64], saved: &[u8]) -> Result<Option<Vec<u8>>, Damage> {
    let mut state: SetState = decode(saved)?;
    state.entries.retain(|entry| !ids.contains(&entry.id()));
    Ok(encode_unless_default(&state))
}

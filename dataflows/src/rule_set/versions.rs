//! Versions of a set: which rules judge an event, from when on, and until when that must be known.
//!
//! ```text
//!   offsets of a partition  0 ·········· 41 │ 42 ·········· 97 │ 98 ·········▶
//!   judged by                  version 0    │    version 1     │   version 2        each begins at its `ends`
//!
//!   event time              ───────────────────┬──────────┬──────────────────▶
//!                               last_time of version 1   last_time of version 2
//!   watermark               ──────────────────▶│ 0 is forgotten                    no event above it is judged by 0
//! ```
//!
//! An event is judged by the newest version that begins at or before its offset, whenever it is stepped. So nothing is
//! stored with events, and a late event between events of earlier versions is judged by its own.
//!
//! A rule with a [`Backfill`] also judges the events of earlier versions that come after the time up to which its states
//! are.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::condition::Condition;
use super::rule::{Filter, Rule};
use super::state::{Identity, SetState};
use super::{RuleSetError, SetRule};
use crate::rules::{Entering, KeyedState, Live};
use crate::{Epoch, Event, EventTime, Position, Since};

/// The past of rules that enter with a version as if they had always been there.
pub struct Backfill<E: Event> {
    /// The ids of the rules.
    pub rules: Vec<u64>,
    /// The time up to which the states are. It is the watermark of the epoch of the version and of the one before it.
    pub after: EventTime,
    /// The states of all events up to that time, of keys of this worker. Empty if a restored set has them.
    pub states: Vec<KeyedState<E, SetState>>,
}

/// A handle that adds versions to a [`RuleSet`](super::RuleSet) while the dataflow runs. Cloning is cheap.
pub struct RuleVersions<E: Event, D>(Rc<Shared<E, D>>);

impl<E: Event, D> Clone for RuleVersions<E, D> {
    fn clone(&self) -> Self {
        RuleVersions(Rc::clone(&self.0))
    }
}

impl<E: Event, D> RuleVersions<E, D> {
    /// Adds a version. Returns the number of each rule: that of the rule with the same id in an earlier version, if there
    /// is one.
    ///
    /// Call it before the operator steps or closes an epoch after `since.epoch`; earlier is harmless. A restored set
    /// needs, before the operator is built, all versions that judge un-final events and the one in force after the
    /// restored epoch: the oldest of them as its first rules, the others added.
    ///
    /// A rule of the version before that is not in `rules` is removed. This revokes nothing: what it finds at the events
    /// that it judges is emitted and corrected as before. Only its absences are not emitted in an epoch after
    /// `since.epoch`, because no event can end them any more.
    ///
    /// # Errors
    /// Fails if [`RuleSet::new`](super::RuleSet::new) would fail, or the rules or the order of versions contradict those
    /// added before: see [`RuleSetError`]. The set does not change then.
    pub fn add(&self, since: Since, rules: Vec<SetRule<E, D>>) -> Result<Vec<u32>, RuleSetError> {
        self.add_backfilled(since, rules, None)
    }

    /// Like [`add`](RuleVersions::add), with the past of rules that are new in the version. At the end of `since.epoch`,
    /// which has no events, these rules raise what they find at un-final events; from then on, their results are those of
    /// rules that have always been there.
    ///
    /// # Errors
    /// Fails if [`add`](RuleVersions::add) would fail, or a rule with a backfill is not new.
    pub fn add_backfilled(
        &self,
        since: Since,
        rules: Vec<SetRule<E, D>>,
        backfill: Option<Backfill<E>>,
    ) -> Result<Vec<u32>, RuleSetError> {
        if let Some(Backfill { rules: ids, .. }) = &backfill {
            let known = self.0.known.borrow();
            let is_new =
                |id: &&u64| !known.rules.contains_key(*id) && rules.iter().any(|rule| rule.id == **id);
            if let Some(id) = ids.iter().find(|id| !is_new(id)) {
                return Err(RuleSetError::NotNew(*id));
            }
        }
        let (mut version, numbers) = self.0.make(Some(since), rules)?;
        version.backfill = backfill;
        self.0.added.borrow_mut().push(version);
        Ok(numbers)
    }
}

/// The part of a set that its handles share.
struct Shared<E: Event, D> {
    known: RefCell<Known>,
    /// The versions that the set has not taken over.
    added: RefCell<Vec<Version<E, D>>>,
}

/// The rules of all versions that are still needed.
#[derive(Default)]
struct Known {
    /// The rules by id.
    rules: BTreeMap<u64, KnownRule>,
    /// The number of the next rule with a new id.
    next: u32,
    /// The epoch of the newest version.
    newest: Option<Epoch>,
}

#[derive(Clone)]
struct KnownRule {
    number: u32,
    /// The identity in the newest version that has the rule.
    identity: Rc<Identity>,
    is_absence: bool,
    /// True if the newest version has the rule.
    is_active: bool,
}

impl Known {
    /// Checks whether a version can follow those before.
    fn check<E: Event, D>(&self, since: Option<&Since>, rules: &[SetRule<E, D>]) -> Result<(), RuleSetError> {
        if let Some((since, newest)) = since.zip(self.newest)
            && since.epoch < newest
        {
            return Err(RuleSetError::Unordered { epoch: since.epoch, newest });
        }
        let mut ids: Vec<u64> = rules.iter().map(|rule| rule.id).collect();
        ids.sort_unstable();
        if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(RuleSetError::Ambiguous(pair[0]));
        }
        for rule in rules {
            if matches!(&rule.condition, Condition::Sequence { steps, .. } if steps.is_empty()) {
                return Err(RuleSetError::NoSteps(rule.id));
            }
            let Some(known) = self.rules.get(&rule.id) else { continue };
            if !known.is_active {
                return Err(RuleSetError::Reused(rule.id));
            }
            let is_other = known.identity.definition != Some(rule.definition);
            if is_other && (known.is_absence || rule.condition.is_absence()) {
                return Err(RuleSetError::ChangedAbsence(rule.id));
            }
        }
        Ok(())
    }

    /// Returns what is known of a rule of a new version. A new id gets the next number.
    fn rule<E: Event, D>(&mut self, rule: &SetRule<E, D>) -> KnownRule {
        let identity = || Rc::new(Identity { id: rule.id, definition: Some(rule.definition) });
        let is_absence = rule.condition.is_absence();
        let next = &mut self.next;
        let known = self.rules.entry(rule.id).or_insert_with(|| {
            *next += 1;
            KnownRule { number: *next - 1, identity: identity(), is_absence, is_active: true }
        });
        if known.identity.definition != Some(rule.definition) {
            known.identity = identity();
        }
        (known.is_absence, known.is_active) = (is_absence, true);
        known.clone()
    }
}

impl<E: Event, D> Shared<E, D> {
    /// Makes a version, the newest one, and the numbers of its rules in the order of `rules`.
    fn make(
        &self,
        since: Option<Since>,
        rules: Vec<SetRule<E, D>>,
    ) -> Result<(Version<E, D>, Vec<u32>), RuleSetError> {
        let known = &mut *self.known.borrow_mut();
        known.check(since.as_ref(), &rules)?;
        known.newest = since.as_ref().map(|since| since.epoch).or(known.newest);
        known.rules.values_mut().for_each(|rule| rule.is_active = false);
        let mut numbers = Vec::with_capacity(rules.len());
        let mut list = Vec::with_capacity(rules.len());
        for rule in rules {
            let KnownRule { number, identity, .. } = known.rule(&rule);
            numbers.push(number);
            let (rule, filter) = Rule::new(rule, identity, number);
            list.push((Rc::new(rule), filter));
        }
        let judges = Judges::of(list);
        Ok((Version { since, judges, with_entered: Vec::new(), backfill: None }, numbers))
    }
}

/// A rule and its filter, which versions share.
type Filtered<E, D> = (Rc<Rule<E, D>>, Filter<E>);

/// The rules that judge an event.
pub(super) struct Judges<E: Event, D> {
    /// Sorted by id.
    pub rules: Box<[Rc<Rule<E, D>>]>,
    /// The filter of each rule. They lie together because an event passes few of many.
    pub filters: Box<[Filter<E>]>,
}

impl<E: Event, D> Judges<E, D> {
    fn of(mut rules: Vec<Filtered<E, D>>) -> Judges<E, D> {
        rules.sort_unstable_by_key(|(rule, _)| rule.id());
        let (rules, filters): (Vec<_>, Vec<_>) = rules.into_iter().unzip();
        Judges { rules: rules.into(), filters: filters.into() }
    }

    fn each(&self) -> impl Iterator<Item = Filtered<E, D>> + '_ {
        self.rules.iter().cloned().zip(self.filters.iter().cloned())
    }
}

/// A version of a set.
pub(super) struct Version<E: Event, D> {
    /// `None` for the first.
    since: Option<Since>,
    judges: Judges<E, D>,
    /// The rules with those that have entered later with a backfill, which judge the events after these times, in order.
    with_entered: Vec<(EventTime, Judges<E, D>)>,
    /// The past of some rules, until they have entered.
    backfill: Option<Backfill<E>>,
}

impl<E: Event, D> Version<E, D> {
    /// Returns true if the event at this position does not belong to an earlier version.
    fn has_begun_at(&self, position: Position) -> bool {
        self.since.as_ref().is_none_or(|since| since.includes(position))
    }

    /// Returns true if the version is in force in this epoch, unless a later one is.
    fn has_begun_in(&self, epoch: Epoch) -> bool {
        self.since.as_ref().is_none_or(|since| since.epoch < epoch)
    }

    /// Returns the rule with this id, if the version has it.
    pub fn rule(&self, id: u64) -> Option<&Rule<E, D>> {
        let rules = &self.judges.rules;
        let at = rules.binary_search_by_key(&id, |rule| rule.id()).ok()?;
        rules.get(at).map(|rule| &**rule)
    }

    /// Returns the rules that judge an event of the version of this time.
    #[inline]
    fn at(&self, time: EventTime) -> &Judges<E, D> {
        match &*self.with_entered {
            [] => &self.judges,
            entered => {
                let entered = entered.iter().rfind(|(after, _)| time > *after);
                entered.map_or(&self.judges, |(_, judges)| judges)
            }
        }
    }

    /// Lets rules of a later version judge the events after a time.
    fn let_enter(&mut self, after: EventTime, entering: &[Filtered<E, D>]) {
        let before = self.with_entered.last().map_or(&self.judges, |(_, judges)| judges);
        let judges = Judges::of(before.each().chain(entering.iter().cloned()).collect());
        self.with_entered.push((after, judges));
    }
}

/// The versions of a set that are still needed.
pub(super) struct Versions<E: Event, D> {
    shared: Rc<Shared<E, D>>,
    /// The versions, oldest first; at least one.
    kept: Vec<Version<E, D>>,
    /// The number of versions that have come into force.
    begun: usize,
    /// The id and the number of each rule of these versions, sorted by id.
    ids: Box<[(u64, u32)]>,
    /// The numbers.
    all: Live,
    /// The numbers of absences that the newest version in force does not have.
    removed: Vec<u32>,
}

impl<E: Event, D> Versions<E, D> {
    /// Creates the first version.
    pub fn new(rules: Vec<SetRule<E, D>>) -> Result<Versions<E, D>, RuleSetError> {
        let shared = Shared { known: RefCell::default(), added: RefCell::default() };
        let (first, _) = shared.make(None, rules)?;
        let mut versions = Versions {
            shared: Rc::new(shared),
            kept: vec![first],
            begun: 1,
            ids: Box::default(),
            all: Live::all(0),
            removed: Vec::new(),
        };
        versions.index();
        Ok(versions)
    }

    pub fn handle(&self) -> RuleVersions<E, D> {
        RuleVersions(Rc::clone(&self.shared))
    }

    /// Returns the rules that judge an event.
    #[inline]
    pub fn of(&self, event: &E) -> &Judges<E, D> {
        match &*self.kept {
            [only] => only.at(event.time()),
            several => {
                let position = event.position();
                let newest = several.iter().rfind(|version| version.has_begun_at(position));
                // An older event is final: its result is not needed.
                newest.unwrap_or(&several[0]).at(event.time())
            }
        }
    }

    /// Removes and returns the states of rules that enter at the end of an epoch, and the time up to which they are.
    pub fn entering(&mut self, epoch: Epoch) -> Option<Entering<E, SetState>> {
        let enters = |version: &&mut Version<E, D>| {
            version.since.as_ref().is_some_and(|since| since.epoch == epoch) && version.backfill.is_some()
        };
        let version = self.kept.iter_mut().find(enters)?;
        let backfill = version.backfill.as_mut()?;
        Some(Entering { after: backfill.after, states: std::mem::take(&mut backfill.states) })
    }

    /// Lets rules enter whose version begins with this epoch or an earlier one.
    pub fn enter(&mut self, epoch: Epoch) {
        for at in 0..self.kept.len() {
            let (older, version) = self.kept.split_at_mut(at);
            let version = &mut version[0];
            if version.since.as_ref().is_some_and(|since| since.epoch > epoch) {
                return;
            }
            let Some(Backfill { rules, after, .. }) = version.backfill.take() else { continue };
            let entering: Vec<_> =
                version.judges.each().filter(|(rule, _)| rules.contains(&rule.id())).collect();
            older.iter_mut().for_each(|older| older.let_enter(after, &entering));
        }
    }

    /// Returns the newest version in force.
    pub fn in_force(&self) -> &Version<E, D> {
        &self.kept[self.begun - 1]
    }

    /// Returns the rule with this id in the newest version that has it.
    pub fn rule(&self, id: u64) -> Option<&Rule<E, D>> {
        self.kept.iter().rev().find_map(|version| version.rule(id))
    }

    /// Returns the rule with this identity, if a version has it.
    pub fn rule_like(&self, identity: &Identity) -> Option<&Rule<E, D>> {
        let mut rules = self.kept.iter().filter_map(|version| version.rule(identity.id));
        rules.find(|rule| *rule.identity == *identity)
    }

    /// Returns the number of the rule with this id, if a version has it.
    pub fn number(&self, id: u64) -> Option<u32> {
        let at = self.ids.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.ids[at].1)
    }

    /// Returns the id and the number of each rule of all versions, sorted by id.
    pub fn ids(&self) -> &[(u64, u32)] {
        &self.ids
    }

    /// Returns the numbers of the rules of all versions.
    pub fn all(&self) -> Live {
        self.all
    }

    /// Returns the number of numbers given so far.
    pub fn count(&self) -> u32 {
        self.shared.known.borrow().next
    }

    /// Returns true if a result of this rule is an absence that is not emitted any more.
    #[inline]
    pub fn is_removed(&self, number: u32) -> bool {
        self.removed.binary_search(&number).is_ok()
    }

    /// Takes over the versions that were added, of which some may come into force with this epoch. Returns true if
    /// absences were removed.
    pub fn begin(&mut self, epoch: Epoch) -> bool {
        let mut added = std::mem::take(&mut *self.shared.added.borrow_mut());
        if !added.is_empty() {
            self.kept.append(&mut added);
            self.index();
        }
        let begun = self.kept.iter().take_while(|version| version.has_begun_in(epoch)).count();
        if begun <= self.begun {
            return false;
        }
        // In a restored set: else they have entered at the end of the epoch before.
        if let Some(ended) = epoch.0.checked_sub(1) {
            self.enter(Epoch(ended));
        }
        self.begun = begun;
        let (newest, older) = self.kept[..begun].split_last().expect("a set has a version");
        let absences = older.iter().flat_map(|version| &version.judges.rules);
        let absences = absences.filter(|rule| rule.is_absence());
        let removed = absences.filter(|rule| newest.rule(rule.id()).is_none());
        self.removed = removed.map(|rule| rule.number).collect();
        self.removed.sort_unstable();
        self.removed.dedup();
        !self.removed.is_empty()
    }

    /// Forgets the versions that judge no event above this watermark. Returns true if rules were forgotten with them.
    pub fn forget(&mut self, watermark: EventTime) -> bool {
        let is_last =
            |next: &&Version<E, D>| next.since.as_ref().is_some_and(|since| since.last_time <= watermark);
        let count = self.kept[1..self.begun].iter().take_while(is_last).count();
        if count == 0 {
            return false;
        }
        self.kept.drain(..count);
        self.begun -= count;
        let before = self.ids.len();
        self.index();
        let Versions { shared, ids, .. } = self;
        let is_kept = |id: &u64| ids.binary_search_by_key(id, |(id, _)| *id).is_ok();
        // `begin` has taken over all versions.
        shared.known.borrow_mut().rules.retain(|id, rule| rule.is_active || is_kept(id));
        ids.len() < before
    }

    fn index(&mut self) {
        let rules = self.kept.iter().flat_map(|version| &version.judges.rules);
        let ids: BTreeMap<u64, u32> = rules.map(|rule| (rule.id(), rule.number)).collect();
        self.ids = ids.into_iter().collect();
        self.all = self.ids.iter().fold(Live::all(0), |all, (_, number)| all.with(*number));
    }
}

//! The operators of a worker that evaluate the rules of the user's own, and the sets that come into force in them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use headwater_dataflows::{Position, RuleSet, RuleVersions, SetRule, Since};

use super::compute::own_rules_of;
use super::own::{RulePlan, rule_set, set_rule};
use super::plan::Plan;
use super::rule_sets::RuleSetPlan;
use super::spaces::{KeySpace, SpaceEvent};
use crate::event::Event;
use crate::outputs::Alert;

/// The sets with which a dataflow begins, in order. Each is in force for the events that none of the later ones includes.
#[derive(Clone, Debug)]
pub struct RuleHistory(Vec<(Since, Arc<RuleSetPlan>)>);

impl RuleHistory {
    /// Returns the history in which the rules of a plan are in force for all events.
    pub fn of(plan: &Plan) -> RuleHistory {
        RuleHistory::new(vec![(Since::beginning(), Arc::new(RuleSetPlan::first(plan.rules.clone())))])
    }

    /// Returns the history of these sets, at least one.
    pub fn new(sets: Vec<(Since, Arc<RuleSetPlan>)>) -> RuleHistory {
        assert!(!sets.is_empty(), "some set is in force, if only one without rules");
        RuleHistory(sets)
    }

    /// Returns the sets, in order.
    pub fn sets(&self) -> &[(Since, Arc<RuleSetPlan>)] {
        &self.0
    }

    /// Returns the newest set.
    pub fn newest(&self) -> &Arc<RuleSetPlan> {
        &self.0[self.0.len() - 1].1
    }

    /// Returns the first set.
    pub(super) fn first(&self) -> &RuleSetPlan {
        &self.0[0].1
    }
}

/// Returns the rules over events of these keys: of a key space, or by the events' own keys.
pub fn rules_by<'a>(rules: &'a [RulePlan], space: Option<&KeySpace>) -> Vec<&'a RulePlan> {
    rules.iter().filter(|rule| rule.by.space().map(|by| &**by) == space).collect()
}

/// The ids of rules by operator, in the order of their numbers.
pub type RuleNumbers = Rc<RefCell<BTreeMap<String, Vec<Arc<str>>>>>;

/// Makes the rules of operators, and names them by their numbers. Clones share the names.
#[derive(Clone)]
pub(super) struct RuleMaker {
    pipeline: Arc<str>,
    numbers: RuleNumbers,
}

impl RuleMaker {
    pub(super) fn new(pipeline: &Arc<str>) -> RuleMaker {
        RuleMaker { pipeline: Arc::clone(pipeline), numbers: RuleNumbers::default() }
    }

    /// Returns the ids of the rules by their numbers, which follow the sets.
    pub(super) fn numbers(&self) -> RuleNumbers {
        Rc::clone(&self.numbers)
    }

    /// Returns the rules of one key space, or by the events' own keys, in all sets of a history: an operator that restores
    /// its state evaluates un-final events when it is built.
    pub(super) fn begin<E>(&self, space: Option<&KeySpace>, history: &RuleHistory) -> RuleSet<E, Alert>
    where
        E: headwater_dataflows::Event<Key = str> + AsRef<Event>,
    {
        let first = rules_by(&history.first().rules, space);
        let set = rule_set(&self.pipeline, &first);
        self.name(space, &first, &(0..first.len() as u32).collect::<Vec<_>>());
        let versions = set.versions();
        history.sets()[1..].iter().for_each(|(since, set)| self.add(&versions, space, since, set));
        set
    }

    /// Adds the rules of a set that is in force for the events from `since` on.
    fn add<E>(
        &self,
        versions: &RuleVersions<E, Alert>,
        space: Option<&KeySpace>,
        since: &Since,
        set: &RuleSetPlan,
    ) where
        E: headwater_dataflows::Event<Key = str> + AsRef<Event>,
    {
        let rules = rules_by(&set.rules, space);
        let made: Vec<SetRule<E, Alert>> = rules.iter().map(|rule| set_rule(&self.pipeline, rule)).collect();
        let numbers = versions.add(since.clone(), made);
        let numbers = numbers.expect("the ids of rules differ, and sequences have steps: both are validated");
        self.name(space, &rules, &numbers);
    }

    fn name(&self, space: Option<&KeySpace>, rules: &[&RulePlan], numbers: &[u32]) {
        let mut all = self.numbers.borrow_mut();
        let ids = all.entry(own_rules_of(space)).or_default();
        for (rule, &number) in rules.iter().zip(numbers) {
            let number = number as usize;
            ids.resize_with(ids.len().max(number + 1), || Arc::from(""));
            ids[number] = Arc::clone(&rule.id);
        }
    }
}

/// The operators of a worker that evaluate rules.
pub struct RuleOperators {
    maker: RuleMaker,
    of_keys: RuleVersions<Event, Alert>,
    of_spaces: Vec<SpaceOperator>,
}

/// The operator of a key space, and the use of the key space.
struct SpaceOperator {
    space: Arc<KeySpace>,
    versions: RuleVersions<SpaceEvent, Alert>,
    space_use: Rc<SpaceUse>,
}

impl RuleOperators {
    /// Returns the operators by the keys of events.
    pub(super) fn new(maker: RuleMaker, of_keys: RuleVersions<Event, Alert>) -> RuleOperators {
        RuleOperators { maker, of_keys, of_spaces: Vec::new() }
    }

    /// Adds the operator of a key space.
    pub(super) fn push(
        &mut self,
        space: Arc<KeySpace>,
        versions: RuleVersions<SpaceEvent, Alert>,
        space_use: Rc<SpaceUse>,
    ) {
        self.of_spaces.push(SpaceOperator { space, versions, space_use });
    }

    /// Adds a set that is in force for the events from `since` on.
    pub fn add(&self, since: &Since, set: &RuleSetPlan) {
        self.maker.add(&self.of_keys, None, since, set);
        for SpaceOperator { space, versions, space_use } in &self.of_spaces {
            space_use.add(since.clone(), !rules_by(&set.rules, Some(space)).is_empty());
            self.maker.add(versions, Some(space), since, set);
        }
    }
}

/// The events of which a key space is used, so that no others are exchanged.
pub struct SpaceUse {
    /// True if a window uses the key space, of all events.
    by_window: bool,
    /// True from there on if a rule uses it.
    by_rules: RefCell<Vec<(Since, bool)>>,
}

impl SpaceUse {
    /// Returns the use by windows and by the rules of a history.
    pub(super) fn new(by_window: bool, space: &KeySpace, history: &RuleHistory) -> SpaceUse {
        let space_use = SpaceUse { by_window, by_rules: RefCell::default() };
        for (at, (since, set)) in history.sets().iter().enumerate() {
            let since = if at == 0 { Since::beginning() } else { since.clone() };
            space_use.add(since, !rules_by(&set.rules, Some(space)).is_empty());
        }
        space_use
    }

    fn add(&self, since: Since, is_used: bool) {
        let mut by_rules = self.by_rules.borrow_mut();
        if by_rules.last().is_none_or(|(_, before)| *before != is_used) {
            by_rules.push((since, is_used));
        }
    }

    /// Returns true if the key space is used for the event at a position.
    pub(super) fn has(&self, position: Position) -> bool {
        self.by_window || {
            let by_rules = self.by_rules.borrow();
            by_rules
                .iter()
                .rev()
                .find(|(since, _)| since.includes(position))
                .is_some_and(|(_, is_used)| *is_used)
        }
    }
}

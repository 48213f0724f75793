//! The operators of a worker that evaluate the rules of the user's own, and the sets that come into force in them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use headwater_dataflows::{Backfill, Damage, EventTime, EventUse, RuleSet, RuleVersions, SetRule, Since};

use super::compute::own_rules_of;
use super::own::{RulePlan, rule_set, set_rule};
use super::plan::Plan;
use super::rule_pasts::RulePasts;
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
        // The states of rules that entered with their past are in the operator's.
        let past = RulePasts::default();
        for (since, set) in &history.sets()[1..] {
            self.add(&versions, space, since, set, &past).expect("nothing has to be decoded");
        }
        set
    }

    /// Adds the rules of a set that is in force for the events from `since` on. Those that enter with their past have it in
    /// `pasts`.
    ///
    /// # Errors
    /// If a past cannot be decoded.
    fn add<E>(
        &self,
        versions: &RuleVersions<E, Alert>,
        space: Option<&KeySpace>,
        since: &Since,
        set: &RuleSetPlan,
        pasts: &RulePasts,
    ) -> Result<(), Damage>
    where
        E: headwater_dataflows::Event<Key = str> + AsRef<Event>,
    {
        let rules = rules_by(&set.rules, space);
        let entering = set.entry.iter().flat_map(|entry| &entry.rules);
        let entering = entering.filter(|id| rules.iter().any(|rule| rule.state_id == **id)).copied();
        let entering: Vec<u64> = entering.collect();
        let backfill = match &set.entry {
            Some(entry) if !entering.is_empty() => Some(Backfill {
                rules: entering,
                after: EventTime(entry.after_ms),
                states: pasts.states(&own_rules_of(space))?,
            }),
            _ => None,
        };
        let made: Vec<SetRule<E, Alert>> = rules.iter().map(|rule| set_rule(&self.pipeline, rule)).collect();
        let numbers = versions.add_backfilled(since.clone(), made, backfill);
        let numbers = numbers.expect("the ids of rules differ, and sequences have steps: both are validated");
        self.name(space, &rules, &numbers);
        Ok(())
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
    used: EventUse,
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
        used: EventUse,
    ) {
        self.of_spaces.push(SpaceOperator { space, versions, used });
    }

    /// Adds a set that is in force for the events from `since` on, with the past of the rules that enter with it.
    ///
    /// # Errors
    /// If the past cannot be decoded.
    pub fn add(&self, since: &Since, set: &RuleSetPlan, pasts: &RulePasts) -> Result<(), Damage> {
        self.maker.add(&self.of_keys, None, since, set, pasts)?;
        for SpaceOperator { space, versions, used } in &self.of_spaces {
            used.add(since.clone(), set.uses(space));
            self.maker.add(versions, Some(space), since, set, pasts)?;
        }
        Ok(())
    }
}

/// Returns the events of which a key space is used, by windows and by the rules of a history, so that no others are
/// exchanged.
pub(super) fn use_of(by_window: bool, space: &KeySpace, history: &RuleHistory) -> EventUse {
    if by_window {
        return EventUse::always();
    }
    let used = EventUse::changing();
    for (at, (since, set)) in history.sets().iter().enumerate() {
        let since = if at == 0 { Since::beginning() } else { since.clone() };
        used.add(since, set.uses(space));
    }
    used
}

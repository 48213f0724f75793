//! The states of a rule of the user's own, for explanations.

use std::sync::Arc;

use headwater_dataflows::Rules;
use serde_json::Value;

use super::key_state::words;
use super::own::{RulePlan, rule_set};
use super::spaces::SpaceEvent;
use crate::event::Event;

/// The state of a rule for one key.
#[derive(Clone, Debug, PartialEq)]
pub struct StateBefore {
    /// The state in words.
    pub text: String,
    /// The state in numbers, with the thresholds of the rule.
    pub state: Value,
}

/// Returns the state of a rule before each of the events of one key, which are in the order in which the rule sees them.
/// None before the first event that the rule considers, and of conditions without state.
pub fn states_before<'a>(
    rule: &RulePlan,
    events: impl Iterator<Item = &'a Event>,
) -> Vec<Option<StateBefore>> {
    match rule.by.space() {
        None => before_each(rule, events.cloned()),
        Some(space) => before_each(rule, events.filter_map(|event| SpaceEvent::new(event.clone(), space))),
    }
}

fn before_each<E>(rule: &RulePlan, events: impl Iterator<Item = E>) -> Vec<Option<StateBefore>>
where
    E: headwater_dataflows::Event<Key = str> + AsRef<Event>,
{
    let rules = rule_set::<E>(&Arc::from(""), &[rule]);
    let (mut state, mut found) = (Default::default(), Vec::new());
    let before = events.map(|event| {
        let mut before = None;
        // At the time of the event, so that what is too old for it does not count.
        rules.describe(&state, event.time(), &mut |_, description| {
            let (text, state) = words::describe(&rule.id, &description);
            before = Some(StateBefore { text, state });
        });
        rules.step(&mut state, &event, &mut None, &mut found);
        found.clear();
        before
    });
    before.collect()
}

//! The state of one key: open windows, the enrichment profile, and the state of each rule in words.
//!
//! ```text
//!   worker, between steps:  operators ─▶ KeyReading: copied, no text
//!   thread that asked:      KeyReading ─▶ KeyState ─▶ JSON
//! ```
//!
//! It is *live* state, which [`KeyState::as_of_epoch`] dates: ahead of the committed results by the epochs in flight, and
//! with un-final events, which an out-of-order event can still follow.

pub(super) mod words;

use std::sync::Arc;

use headwater_dataflows::patterns::{Description, Location};
use headwater_dataflows::{AsOf, EventTime, KeyStates, StatePart};
use serde::Serialize;
use utoipa::ToSchema;

use super::rule_operators::RuleNumbers;
use super::rules::pattern_of;
use super::spaces::SpaceEvent;
use crate::event::{Event, split_key};
use crate::json::{decimal, rfc3339};
use crate::outputs::{KeyHistory, WindowRow};

/// The state of a key as its worker reads it, in the terms of the operators.
#[derive(Clone, Debug)]
pub struct KeyReading {
    as_of: AsOf,
    found: bool,
    history: Option<KeyHistory>,
    windows: Vec<WindowRow>,
    windows_left_out: usize,
    rules: Vec<(RuleRef, Description)>,
}

/// A rule whose state was read.
#[derive(Clone, Debug)]
enum RuleRef {
    /// That of a pattern, by its number.
    Pattern(u32),
    /// One of the user's own, by its id.
    Own(Arc<str>),
}

/// Reads the states of keys in the operators of a worker.
#[derive(Clone)]
pub struct States {
    /// Those by the keys of events.
    pub keys: KeyStates<Event>,
    /// Those of key spaces, by the name of the space.
    pub spaces: Vec<(Arc<str>, KeyStates<SpaceEvent>)>,
    /// The ids of the user's own rules, by operator, in the order of their numbers.
    pub own_rules: RuleNumbers,
}

impl States {
    /// Reads the state of a key, given with its prefix. Call it between steps of the worker.
    pub fn read(&self, key: &str) -> KeyReading {
        let mut reading = KeyReading {
            as_of: self.keys.as_of(),
            found: false,
            history: None,
            windows: Vec::new(),
            windows_left_out: 0,
            rules: Vec::new(),
        };
        let mut known = self.keys.visit(key, &mut |operator, part| reading.add(part, operator, self));
        let kind = split_key(key).0.as_str();
        for (_, states) in self.spaces.iter().filter(|(name, _)| **name == *kind) {
            known |= states.visit(key, &mut |operator, part| reading.add(part, operator, self));
            let AsOf { epoch, watermark } = states.as_of();
            let before = reading.as_of;
            reading.as_of =
                AsOf { epoch: before.epoch.min(epoch), watermark: before.watermark.min(watermark) };
        }
        let counts_nothing = reading.rules.iter().all(|(_, description)| description.is_empty());
        let is_new = reading.history.is_none_or(|history| history.events == 0);
        reading.found = known && !(is_new && reading.windows.is_empty() && counts_nothing);
        reading
    }
}

impl KeyReading {
    /// Adds a part of the state.
    fn add(&mut self, part: StatePart<'_>, operator: &str, states: &States) {
        match part {
            StatePart::Window(row) => self.windows.extend(row.downcast_ref::<WindowRow>().cloned()),
            StatePart::MoreWindows(count) => self.windows_left_out += count,
            StatePart::Running(state) => {
                self.history = state.downcast_ref::<KeyHistory>().copied().or(self.history);
            }
            StatePart::Rule { rule, description } => {
                let own_rules = states.own_rules.borrow();
                let rule = match own_rules.get(operator).and_then(|ids| ids.get(rule as usize)) {
                    Some(id) => RuleRef::Own(Arc::clone(id)),
                    None => RuleRef::Pattern(rule),
                };
                self.rules.push((rule, description));
            }
        }
    }
}

/// The live state of a key, as the API serves it.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct KeyState {
    /// True if the operators have state of the key: events, open windows, or a rule with anything to report.
    pub found: bool,
    /// The worker that owns the key.
    pub worker: usize,
    /// The latest epoch whose events are in this state; None before the first. Results of it may not be committed yet.
    pub as_of_epoch: Option<u64>,
    /// The watermark of the operators; None if there is none, at the beginning and after the end of the input.
    pub watermark: Option<String>,
    /// The profile by which events are enriched; None if the key has none, or no sink takes events.
    pub profile: Option<Profile>,
    /// The open windows, by name and start.
    pub windows: Vec<OpenWindow>,
    /// The number of open windows that are left out, because they are too many: those that started first.
    #[serde(skip_serializing_if = "is_zero")]
    pub windows_left_out: usize,
    /// The state of each enabled rule, in the order of the rules.
    pub rules: Vec<RuleState>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// The statistics of a key's events in order of arrival, by which events are enriched.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Profile {
    /// The number of events.
    pub events: u64,
    /// The number of events with an amount.
    pub amount_count: u64,
    /// The mean of the amounts, to six digits.
    pub amount_mean: Option<f64>,
    /// The time of the event that arrived last.
    pub last_event_time: Option<String>,
    /// The location of the last event with one.
    #[schema(value_type = Option<Object>)]
    pub last_location: Option<Location>,
}

/// The aggregates of an open window so far. Amounts are decimal numbers.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct OpenWindow {
    /// The name of the window.
    pub name: String,
    /// Its start.
    pub start: String,
    /// Its end: the first instant after it. The end of a session is later once it has further events.
    pub end: String,
    /// The number of events.
    pub count: u64,
    /// The number of events with an amount.
    pub amount_count: u64,
    /// The sum of the amounts.
    pub amount_sum: String,
    /// The least amount.
    pub min: Option<String>,
    /// The greatest amount.
    pub max: Option<String>,
    /// The number of distinct merchants.
    pub distinct_merchants: u64,
}

/// The state of a rule.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct RuleState {
    /// The name of the rule.
    pub rule: String,
    /// The state in words.
    pub text: String,
    /// The state in numbers, with the thresholds of the rule.
    #[schema(value_type = Object)]
    pub state: serde_json::Value,
}

impl KeyReading {
    /// Returns the state for readers. `worker` is the worker that read it.
    pub fn into_state(self, worker: usize) -> KeyState {
        let KeyReading { as_of, found, history, mut windows, windows_left_out, rules } = self;
        windows.sort_by(|a, b| (&a.name, a.window.start).cmp(&(&b.name, b.window.start)));
        let rules = rules.into_iter().filter_map(|(rule, description)| {
            let rule = match rule {
                RuleRef::Pattern(number) => pattern_of(number)?.to_owned(),
                RuleRef::Own(id) => id.to_string(),
            };
            let (text, state) = words::describe(&rule, &description);
            Some(RuleState { rule, text, state })
        });
        KeyState {
            found,
            worker,
            as_of_epoch: as_of.epoch.map(|epoch| epoch.0),
            watermark: time(as_of.watermark),
            profile: history.filter(|history| history.events > 0).map(|history| profile(&history)),
            windows: windows.iter().map(open_window).collect(),
            windows_left_out,
            rules: rules.collect(),
        }
    }
}

/// Returns a time as text; None for one before or after all events.
fn time(time: EventTime) -> Option<String> {
    (time != EventTime::MIN && time != EventTime::MAX).then(|| rfc3339(time.0))
}

fn profile(history: &KeyHistory) -> Profile {
    Profile {
        events: history.events,
        amount_count: history.amounts,
        amount_mean: history.amount_mean(),
        last_event_time: time(history.previous),
        last_location: history.located,
    }
}

fn open_window(row: &WindowRow) -> OpenWindow {
    OpenWindow {
        name: row.name.to_string(),
        start: rfc3339(row.window.start.0),
        end: rfc3339(row.window.end.0),
        count: row.count,
        amount_count: row.amounts.count(),
        amount_sum: decimal(row.amounts.sum()),
        min: row.extremes.map(|(min, _)| decimal(min.into())),
        max: row.extremes.map(|(_, max)| decimal(max.into())),
        distinct_merchants: row.distinct_merchants,
    }
}

#[cfg(test)]
mod tests;

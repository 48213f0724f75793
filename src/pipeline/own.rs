//! Rules of the user's own: their plan, and their alerts.
//!
//! ```text
//!   [[rules]] ─▶ RulePlan ─▶ SetRule: filter ─▶ condition ─▶ suppression ─▶ alert
//! ```

use std::sync::Arc;

use headwater_dataflows::patterns::Bound;
use headwater_dataflows::{
    Anchor, Condition, Course, Emission, Finding, KeyHash, Locate, Number, Predicate, RuleSet, SetRule, Step,
    Value,
};

use super::alerts::{AlertBuilder, Details, decimal, details, deviation_details, trip_details};
use super::plan::By;
use super::rule_sets::Completeness;
use crate::cel;
use crate::event::{Event, KeyKind, split_key};
use crate::json::{rfc3339, round6};
use crate::outputs::{Alert, MICROS, RuleMode, Severity};

/// A rule of the user's own.
#[derive(Clone, Debug)]
pub struct RulePlan {
    /// The id in outputs and metrics.
    pub id: Arc<str>,
    /// The identity of its state.
    pub state_id: u64,
    /// The number of the rule's definition: one more with each change of what decides which events match.
    pub revision: u32,
    /// The events for which its alerts are complete.
    pub complete: Completeness,
    /// The rule as an inline table in TOML.
    pub text: Arc<str>,
    /// The keys that it groups by.
    pub by: By,
    /// The events that it considers; None: all.
    pub filter: Option<cel::Predicate>,
    /// The condition.
    pub condition: ConditionPlan,
    /// The severity of its alerts.
    pub severity: SeverityPlan,
    /// The time of emission.
    pub emission: Emission,
    /// The event time after an alert in which there is no further one of the key, in milliseconds.
    pub suppress_ms: Option<i64>,
    /// The mode, which decides where its alerts go.
    pub mode: RuleMode,
    /// True if it enters a run with its past: as if it had always been there.
    pub has_backfill: bool,
    /// The description for people.
    pub description: Option<Arc<str>>,
    /// The condition and the filter as they are configured, for people: `count = { at_least = 3, within = "1m" }`.
    pub settings: Vec<(String, String)>,
}

/// The severity of a rule's alerts.
#[derive(Clone, Debug)]
pub enum SeverityPlan {
    /// The same for all.
    Fixed(Severity),
    /// Chosen by the triggering event, as the index of [`Severity::ALL`].
    Chosen(cel::Choice),
}

impl SeverityPlan {
    /// Returns the severity that no event chooses: that of an absence, which has no event.
    pub(super) fn fixed(&self) -> Severity {
        match self {
            SeverityPlan::Fixed(severity) => *severity,
            SeverityPlan::Chosen(_) => Severity::Medium,
        }
    }
}

/// The condition of a rule. Times are in milliseconds, and numbers in millionths.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the fields are the keys of the configuration, which has their reference")]
pub enum ConditionPlan {
    /// Each event.
    Match,
    /// A number of events.
    Count { at_least: usize, within_ms: i64 },
    /// A sum.
    Sum { of: cel::Number, bound: Bound, within_ms: i64 },
    /// An average.
    Average { of: cel::Number, bound: Bound, at_least_events: u64, within_ms: i64 },
    /// A number of distinct values.
    Distinct { of: cel::Scalar, at_least: usize, within_ms: i64 },
    /// A share of the events, in millionths.
    Share { of: cel::Predicate, more_than_ppm: u32, at_least_events: u64, within_ms: i64 },
    /// A number far from the mean of all earlier ones.
    Outlier {
        of: cel::Number,
        sigmas: f64,
        high_sigmas: Option<f64>,
        at_least: u64,
        min_sigma: f64,
        min_relative_sigma: f64,
        group_by: Option<cel::Scalar>,
    },
    /// Movement that is too fast.
    Travel { km: f64, kmh: f64 },
    /// Events one after the other, each step a number of times; or the absence of an event after them.
    Sequence { steps: Vec<(cel::Predicate, u32)>, within_ms: i64, absent: Option<cel::Predicate> },
    /// No event after one.
    Absence { within_ms: i64 },
}

impl ConditionPlan {
    /// Returns the name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            ConditionPlan::Match => "match",
            ConditionPlan::Count { .. } => "count",
            ConditionPlan::Sum { .. } => "sum",
            ConditionPlan::Average { .. } => "average",
            ConditionPlan::Distinct { .. } => "distinct",
            ConditionPlan::Share { .. } => "share",
            ConditionPlan::Outlier { .. } => "outlier",
            ConditionPlan::Travel { .. } => "travel",
            ConditionPlan::Sequence { .. } => "sequence",
            ConditionPlan::Absence { .. } => "absence",
        }
    }

    /// Returns the names of its bounds: settings that do not decide what the condition remembers of an event.
    pub(super) fn bounds(&self) -> &'static [&'static str] {
        match self {
            ConditionPlan::Match | ConditionPlan::Absence { .. } => &[],
            ConditionPlan::Count { .. } | ConditionPlan::Sum { .. } | ConditionPlan::Distinct { .. } => {
                &["at_least", "more_than", "within"]
            }
            ConditionPlan::Average { .. } | ConditionPlan::Share { .. } => {
                &["at_least", "more_than", "at_least_events", "within"]
            }
            ConditionPlan::Outlier { .. } => &["sigmas", "at_least", "min_sigma", "min_relative_sigma"],
            ConditionPlan::Travel { .. } => &["more_than_km", "more_than_kmh"],
            ConditionPlan::Sequence { .. } => &["within"],
        }
    }

    /// Returns true if the condition is met by time: its alerts are final.
    pub fn is_absence(&self) -> bool {
        matches!(self, ConditionPlan::Absence { .. } | ConditionPlan::Sequence { absent: Some(_), .. })
    }

    /// Returns the time that it looks back; None if it looks at no other event, or at all earlier ones.
    pub fn look_back_ms(&self) -> Option<i64> {
        match self {
            ConditionPlan::Match | ConditionPlan::Outlier { .. } | ConditionPlan::Travel { .. } => None,
            ConditionPlan::Count { within_ms, .. }
            | ConditionPlan::Sum { within_ms, .. }
            | ConditionPlan::Average { within_ms, .. }
            | ConditionPlan::Distinct { within_ms, .. }
            | ConditionPlan::Share { within_ms, .. }
            | ConditionPlan::Sequence { within_ms, .. }
            | ConditionPlan::Absence { within_ms } => Some(*within_ms),
        }
    }
}

impl RulePlan {
    /// Returns the identity of what decides which events match.
    fn definition(&self) -> u64 {
        let text: String = self.settings.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        KeyHash::of(format!("{text}{:?}", self.suppress_ms).as_bytes()).0
    }

    /// Returns the time for which the state of a key must be kept after its last event, in milliseconds.
    pub fn reach_ms(&self) -> i64 {
        self.condition.look_back_ms().unwrap_or(0).max(self.suppress_ms.unwrap_or(0))
    }

    /// Returns the time before its entry of which the rule needs the events, in milliseconds; None if it needs all. It is
    /// twice the reach, because the edge of a condition depends on what held at the event before.
    pub fn past_ms(&self) -> Option<i64> {
        match self.condition {
            ConditionPlan::Outlier { .. } | ConditionPlan::Travel { .. } => None,
            _ => Some(self.reach_ms().saturating_mul(2)),
        }
    }

    /// Returns true if the rule considers an event, if the event has the key.
    pub fn considers(&self, event: &Event) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.holds(event))
    }

    /// Returns the number of evaluations of its expressions that ended with an error, in this process.
    pub fn errors(&self) -> u64 {
        let of_condition = match &self.condition {
            ConditionPlan::Sum { of, .. } | ConditionPlan::Average { of, .. } => of.errors(),
            ConditionPlan::Distinct { of, .. } => of.errors(),
            ConditionPlan::Share { of, .. } => of.errors(),
            ConditionPlan::Outlier { of, group_by, .. } => {
                of.errors() + group_by.as_ref().map_or(0, cel::Scalar::errors)
            }
            ConditionPlan::Sequence { steps, absent, .. } => {
                let all = steps.iter().map(|(filter, _)| filter).chain(absent);
                all.map(cel::Predicate::errors).sum()
            }
            ConditionPlan::Match
            | ConditionPlan::Count { .. }
            | ConditionPlan::Travel { .. }
            | ConditionPlan::Absence { .. } => 0,
        };
        let of_severity = match &self.severity {
            SeverityPlan::Fixed(_) => 0,
            SeverityPlan::Chosen(choice) => choice.errors(),
        };
        self.filter.as_ref().map_or(0, cel::Predicate::errors) + of_condition + of_severity
    }

    fn severity(&self, event: &Event) -> Severity {
        match &self.severity {
            SeverityPlan::Fixed(severity) => *severity,
            // A severity that cannot be said is the least that is not overlooked.
            SeverityPlan::Chosen(choice) => {
                choice.index(event).map_or(Severity::Medium, |index| Severity::ALL[index])
            }
        }
    }
}

/// Returns the rules, to be scanned together over events of one key space.
pub fn rule_set<E>(pipeline: &Arc<str>, rules: &[&RulePlan]) -> RuleSet<E, Alert>
where
    E: headwater_dataflows::Event<Key = str> + AsRef<Event>,
{
    let rules = rules.iter().map(|rule| set_rule(pipeline, rule)).collect();
    RuleSet::new(rules).expect("the ids of rules differ, and sequences have steps: both are validated")
}

pub(super) fn set_rule<E>(pipeline: &Arc<str>, rule: &RulePlan) -> SetRule<E, Alert>
where
    E: headwater_dataflows::Event<Key = str> + AsRef<Event>,
{
    let emission = if rule.condition.is_absence() { Emission::Final } else { rule.emission };
    let builder = AlertBuilder::new(pipeline, &rule.id, rule.revision, emission);
    let builder = Arc::new(builder.in_mode(rule.mode));
    let (plan, absent) = (rule.clone(), Arc::clone(&builder));
    let severity = rule.severity.fixed();
    let within_ms = rule.condition.look_back_ms().unwrap_or(0);
    SetRule {
        id: rule.state_id,
        definition: rule.definition(),
        filter: filter(rule),
        condition: condition(&rule.condition),
        emission,
        suppress_ms: rule.suppress_ms,
        result: Box::new(move |event, finding| raise(&builder, &plan, event, finding)),
        absent: Box::new(move |key, since, finding| {
            let Finding::Absence { course, at } = finding else {
                unreachable!("what no event follows is an absence")
            };
            let details = details! { "since": rfc3339(since.time.0), "within_ms": within_ms };
            let ids = course_ids(course);
            absent.of(key, since.position, *at, ids, severity, details)
        }),
    }
}

/// Returns the filter of a rule: its own, of the keys that it groups by.
fn filter<E>(rule: &RulePlan) -> Option<Predicate<E>>
where
    E: headwater_dataflows::Event<Key = str> + AsRef<Event>,
{
    let own = rule.filter.clone();
    let kind = match rule.by {
        By::KeyOfUser => KeyKind::User,
        By::KeyOfDevice => KeyKind::Device,
        By::Key | By::Space(_) => return own.map(predicate),
    };
    Some(Box::new(move |event| {
        split_key(event.key()).0 == kind && own.as_ref().is_none_or(|own| own.holds(event.as_ref()))
    }))
}

/// Returns the alert of a match.
fn raise<E>(builder: &AlertBuilder, rule: &RulePlan, event: &E, finding: &Finding) -> Alert
where
    E: headwater_dataflows::Event<Key = str> + AsRef<Event>,
{
    let mut severity = rule.severity(event.as_ref());
    let within_ms = rule.condition.look_back_ms().unwrap_or(0);
    let mut before = Vec::new();
    let details = match finding {
        Finding::Match | Finding::Absence { .. } => details! {},
        Finding::Count(rate) => details! { "count": rate.count, "within_ms": within_ms },
        Finding::Distinct(variety) => details! { "distinct": variety.distinct, "within_ms": within_ms },
        Finding::Sum(total) => details! { "sum": decimal(total.sum), "n": total.n, "within_ms": within_ms },
        Finding::Average(total) => details! {
            "average": round6(total.sum as f64 / total.n as f64 / MICROS), "n": total.n, "within_ms": within_ms,
        },
        Finding::Share(part) => details! {
            "share": round6(part.hits as f64 / part.n as f64), "hits": part.hits, "n": part.n,
            "within_ms": within_ms,
        },
        Finding::Outlier(deviation) => {
            if let ConditionPlan::Outlier { high_sigmas: Some(high), .. } = rule.condition
                && deviation.sigmas > high
            {
                severity = severity.max(Severity::High);
            }
            deviation_details("value", deviation)
        }
        Finding::Travel(trip) => {
            before.push(id_of(&trip.from));
            trip_details(trip)
        }
        Finding::Sequence(course) => {
            before = course_ids(course);
            // The event that completes the last step is the triggering one.
            before.pop();
            let seconds = (event.time().0 - course.first.time.0) as f64 / 1000.0;
            details! { "steps": course.completed.len(), "seconds": round6(seconds), "within_ms": within_ms }
        }
    };
    let mut event_ids = before;
    event_ids.push(event.as_ref().id().into());
    builder.of(event.key(), event.position(), event.time(), event_ids, severity, details)
}

/// Returns the id of an event; without one, the id that outputs give it.
fn id_of(anchor: &Anchor) -> Box<str> {
    match &anchor.id {
        Some(id) => String::from_utf8_lossy(id).into(),
        None => format!("{}-{}", anchor.position.partition.0, anchor.position.offset.0).into(),
    }
}

/// Returns the ids of the first event and of those that completed the steps, each once.
fn course_ids(course: &Course) -> Vec<Box<str>> {
    let first = std::iter::once(&course.first);
    let mut ids: Vec<_> = first.chain(&course.completed).map(|anchor| id_of(anchor)).collect();
    ids.dedup();
    ids
}

fn predicate<E: AsRef<Event> + 'static>(predicate: cel::Predicate) -> Predicate<E> {
    Box::new(move |event| predicate.holds(event.as_ref()))
}

fn number<E: AsRef<Event> + 'static>(number: &cel::Number) -> Number<E> {
    let number = number.clone();
    Box::new(move |event| number.micros(event.as_ref()))
}

fn value<E: AsRef<Event> + 'static>(scalar: &cel::Scalar) -> Value<E> {
    let scalar = scalar.clone();
    Box::new(move |event| scalar.hash(event.as_ref()))
}

fn location<E: AsRef<Event> + 'static>() -> Locate<E> {
    Box::new(|event| event.as_ref().location())
}

fn condition<E: AsRef<Event> + 'static>(plan: &ConditionPlan) -> Condition<E> {
    match plan {
        ConditionPlan::Match => Condition::Match,
        ConditionPlan::Count { at_least, within_ms } => {
            Condition::Count { at_least: *at_least, within_ms: *within_ms }
        }
        ConditionPlan::Sum { of, bound, within_ms } => {
            Condition::Sum { of: number(of), bound: *bound, within_ms: *within_ms }
        }
        ConditionPlan::Average { of, bound, at_least_events, within_ms } => Condition::Average {
            of: number(of),
            bound: *bound,
            at_least_events: *at_least_events,
            within_ms: *within_ms,
        },
        ConditionPlan::Distinct { of, at_least, within_ms } => {
            Condition::Distinct { of: value(of), at_least: *at_least, within_ms: *within_ms }
        }
        ConditionPlan::Share { of, more_than_ppm, at_least_events, within_ms } => Condition::Share {
            of: predicate(of.clone()),
            more_than_ppm: *more_than_ppm,
            at_least_events: *at_least_events,
            within_ms: *within_ms,
        },
        ConditionPlan::Outlier { of, sigmas, at_least, min_sigma, min_relative_sigma, group_by, .. } => {
            Condition::Outlier {
                of: number(of),
                sigmas: *sigmas,
                at_least: *at_least,
                min_sigma: min_sigma * MICROS,
                min_relative_sigma: *min_relative_sigma,
                group_by: group_by.as_ref().map(value),
            }
        }
        ConditionPlan::Travel { km, kmh } => Condition::Travel { km: *km, kmh: *kmh, location: location() },
        ConditionPlan::Sequence { steps, within_ms, absent } => Condition::Sequence {
            steps: steps
                .iter()
                .map(|(filter, times)| Step { filter: predicate(filter.clone()), times: *times })
                .collect(),
            within_ms: *within_ms,
            absent: absent.clone().map(predicate),
        },
        ConditionPlan::Absence { within_ms } => Condition::Absence { within_ms: *within_ms },
    }
}

#[cfg(test)]
mod tests;

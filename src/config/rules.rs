//! The sections `[[rules]]`: rules of the user's own.

use std::collections::BTreeSet;
use std::sync::Arc;

use headwater_dataflows::patterns::Bound;
use headwater_dataflows::{Emission, KeyHash};

use super::spaces::Spaces;
use super::{ConfigErrors, SEVERITIES, is_name, keys};
use crate::cel::{self, CelError, Scope};
use crate::decode::decimal_micros;
use crate::fields::Layout;
use crate::lists::Lists;
use crate::outputs::{RuleMode, Severity};
use crate::pipeline::{By, Completeness, ConditionPlan, RulePlan, SeverityPlan, span};
use crate::settings::tree::{self, Item};
use crate::settings::{ConfigError, Diagnostics, Node, Origin, Section};

/// The names of conditions.
pub(super) const CONDITIONS: [&str; 10] =
    ["match", "count", "sum", "average", "distinct", "share", "outlier", "travel", "sequence", "absence"];

/// The keys that do not decide which events match, so that changes of them keep a rule's state.
const LABELS: [&str; 7] = ["severity", "emit", "suppress", "mode", "description", "high_sigmas", "backfill"];

/// The maximum number of rules.
const MAX_RULES: usize = 10_000;

/// The maximum count of events or values of a condition: each takes memory for each key.
const COUNTS: std::ops::RangeInclusive<i64> = 1..=1_000_000;

/// The fields and keys that rules can refer to, and the bounds of rules.
#[derive(Clone, Debug)]
pub struct RuleScope {
    /// The fields of events.
    pub(super) layout: Arc<Layout>,
    /// The key spaces.
    pub(super) spaces: Spaces,
    /// The lists.
    pub(super) lists: Lists,
    /// The ids that are taken, by patterns.
    pub(super) patterns: Vec<&'static str>,
    /// The time for which the state of a key is kept after its last event, in milliseconds.
    pub(super) ttl_ms: i64,
    /// The event time before the watermark of which a backfill can read, in milliseconds.
    pub(super) backfill_horizon_ms: i64,
}

impl RuleScope {
    /// Returns the lists that the rules refer to.
    pub fn lists(&self) -> &Lists {
        &self.lists
    }

    /// Compiles rules, each of which is an inline table in TOML.
    ///
    /// # Errors
    /// Returns all errors of the rules. They have no lines.
    pub fn compile(&self, rules: &[&str]) -> Result<Vec<RulePlan>, ConfigErrors> {
        let mut diagnostics = Diagnostics::default();
        let mut items = Vec::new();
        for (at, rule) in rules.iter().enumerate() {
            match tree::parse(&format!("rule = {rule}"), &[]) {
                Ok(Item { node: Node::Table(mut entries), .. }) => items.extend(entries.remove("rule")),
                Ok(_) => {}
                Err((_, message)) => {
                    let (origin, key) = (Origin::Default, format!("rules[{at}]"));
                    diagnostics.errors.push(ConfigError { origin, key, message });
                }
            }
        }
        items.iter_mut().for_each(tree::clear_places);
        let rules = Item::of_default(Node::Array(items));
        let top = Item::of_default(Node::Table([("rules".to_owned(), rules)].into()));
        let sections = Section::top(&top, keys::find).sections("rules", &mut diagnostics);
        let plans = read(sections, self, &mut diagnostics);
        for (at, plan) in plans.iter().enumerate().filter(|(_, plan)| plan.reach_ms() > self.ttl_ms) {
            let message = format!(
                "the rule spans {} ms, and keys are kept for {} ms after their last event (state.ttl): shorten it, or raise \
                 state.ttl and start again",
                plan.reach_ms(),
                self.ttl_ms
            );
            let (origin, key) = (Origin::Default, format!("rules[{at}].{}", plan.condition.name()));
            diagnostics.errors.push(ConfigError { origin, key, message });
        }
        if diagnostics.errors.is_empty() { Ok(plans) } else { Err(ConfigErrors(diagnostics.errors)) }
    }
}

/// Reads the sections.
pub(super) fn read(
    sections: Vec<Section<'_>>,
    names: &RuleScope,
    diagnostics: &mut Diagnostics,
) -> Vec<RulePlan> {
    let mut ids: BTreeSet<String> = names.patterns.iter().map(|&name| name.to_owned()).collect();
    if let Some(first) = sections.first().filter(|_| sections.len() > MAX_RULES) {
        first.report_error("id", format!("there are more than {MAX_RULES} rules"), diagnostics);
    }
    sections.into_iter().filter_map(|section| read_rule(section, names, &mut ids, diagnostics)).collect()
}

fn read_rule(
    mut section: Section<'_>,
    names: &RuleScope,
    ids: &mut BTreeSet<String>,
    diagnostics: &mut Diagnostics,
) -> Option<RulePlan> {
    let first = diagnostics.effective.len();
    let path = section.path().to_owned();
    let text_of_rule = section.to_toml();
    let id = section.text("id", diagnostics);
    if let Some(id) = &id {
        if !is_name(id, "_") {
            section.report_error("id", "expected at most 63 lower-case letters, digits and _", diagnostics);
        } else if !ids.insert(id.clone()) {
            section.report_error("id", format!("two rules have the id {id}"), diagnostics);
        }
    }
    let by = names.spaces.by(&mut section, diagnostics);
    let scope = match by.as_ref().and_then(By::space) {
        Some(_) => Scope::of_events(&names.layout).without_key(),
        None => Scope::of_events(&names.layout),
    };
    let scope = scope.with_lists(&names.lists);
    let filter = expression(&mut section, "where", diagnostics, |text| cel::compile_predicate(text, &scope));
    let condition = read_condition(&mut section, &scope, &names.layout, diagnostics);
    let severity = read_severity(&mut section, &scope, diagnostics);
    let emissions = [("immediate", Emission::Immediate), ("final", Emission::Final)];
    let emission = section.choice("emit", &emissions, diagnostics);
    let suppress_ms = section.duration("suppress", 1, diagnostics);
    let mode = section.choice("mode", &RuleMode::ALL.map(|mode| (mode.as_str(), mode)), diagnostics);
    let description = section.text("description", diagnostics);
    let has_backfill = section.bool("backfill", diagnostics);
    let is_absence = condition.as_ref().is_some_and(ConditionPlan::is_absence);
    if is_absence && matches!(severity, Some(SeverityPlan::Chosen(_))) {
        let message = "no event raises an absence, so its severity is one of low, medium, high and critical";
        section.report_error("severity", message, diagnostics);
    }
    if has_backfill == Some(true)
        && let Some(reason) = objection(&text_of_rule, condition.as_ref(), suppress_ms, names)
    {
        section.report_error("backfill", reason, diagnostics);
    }
    section.end(diagnostics);

    let settings = semantics(&diagnostics.effective[first..], &path);
    let id = id?;
    let text: String = settings.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
    Some(RulePlan {
        state_id: KeyHash::of(format!("{id}\n{text}").as_bytes()).0,
        id: id.into(),
        revision: 1,
        complete: Completeness::Always,
        text: text_of_rule.into(),
        by: by?,
        filter: filter.ok()?,
        condition: condition?,
        severity: severity?,
        emission: emission?,
        suppress_ms,
        mode: mode?,
        has_backfill: has_backfill?,
        description: description.map(Arc::from),
        settings,
    })
}

/// Returns the reason why a rule cannot have a backfill; None if it can.
fn objection(
    text: &str,
    condition: Option<&ConditionPlan>,
    suppress_ms: Option<i64>,
    names: &RuleScope,
) -> Option<String> {
    if let Some(list) = names.lists.iter().find(|list| text.contains(&format!("lists.{}", list.name()))) {
        return Some(format!(
            "the rule looks values up in the list {}, and what it said of earlier events is not kept: leave out backfill",
            list.name()
        ));
    }
    let reach_ms = condition?.look_back_ms().unwrap_or(0).max(suppress_ms.unwrap_or(0));
    let (past, horizon) = (reach_ms.saturating_mul(2), names.backfill_horizon_ms);
    (past > horizon).then(|| {
        format!(
            "the rule spans {}, of which a backfill needs twice as much, and limits.backfill_horizon is {}: raise it and start again, \
             or leave out backfill",
            span(reach_ms),
            span(horizon)
        )
    })
}

/// Returns the settings of a rule that decide which events match, without the path of the rule.
fn semantics(effective: &[(String, String)], path: &str) -> Vec<(String, String)> {
    let settings = effective.iter().filter_map(|(key, value)| {
        let key = key.strip_prefix(path)?;
        let last = key.rsplit('.').next().unwrap_or(key);
        (key != "id" && !LABELS.contains(&last)).then(|| (key.to_owned(), value.clone()))
    });
    settings.collect()
}

/// The rule cannot be read; the error is reported.
struct Reported;

/// Reads an expression; None if there is none.
fn expression<T>(
    section: &mut Section<'_>,
    key: &str,
    diagnostics: &mut Diagnostics,
    compile: impl Fn(&str) -> Result<T, CelError>,
) -> Result<Option<T>, Reported> {
    let Some(text) = section.text(key, diagnostics) else {
        return if section.has(key) { Err(Reported) } else { Ok(None) };
    };
    match compile(&text) {
        Ok(expression) => Ok(Some(expression)),
        Err(error) => {
            section.report_error(key, format!("{error}, in: {text}"), diagnostics);
            Err(Reported)
        }
    }
}

/// Reads an expression that a condition needs. Its key is required in the reference, so that its absence is reported.
fn required<T>(
    section: &mut Section<'_>,
    key: &str,
    diagnostics: &mut Diagnostics,
    compile: impl Fn(&str) -> Result<T, CelError>,
) -> Option<T> {
    expression(section, key, diagnostics, compile).ok().flatten()
}

/// Reads the severity: a name, or an expression of one.
fn read_severity(
    section: &mut Section<'_>,
    scope: &Scope<'_>,
    diagnostics: &mut Diagnostics,
) -> Option<SeverityPlan> {
    let text = section.text("severity", diagnostics)?;
    if let Some((_, severity)) = SEVERITIES.iter().find(|(name, _)| *name == text) {
        return Some(SeverityPlan::Fixed(*severity));
    }
    let names = Severity::ALL.map(Severity::as_str);
    if text.chars().all(|c| c.is_ascii_alphanumeric()) {
        let message = format!("expected low, medium, high, critical or an expression of one, got {text:?}");
        section.report_error("severity", message, diagnostics);
        return None;
    }
    match cel::compile_choice(&text, scope, &names) {
        Ok(choice) => Some(SeverityPlan::Chosen(choice)),
        Err(error) => {
            section.report_error("severity", format!("{error}, in: {text}"), diagnostics);
            None
        }
    }
}

/// Reads the only condition of a rule.
fn read_condition(
    section: &mut Section<'_>,
    scope: &Scope<'_>,
    layout: &Layout,
    diagnostics: &mut Diagnostics,
) -> Option<ConditionPlan> {
    let named: Vec<_> = CONDITIONS.into_iter().filter(|name| section.has(name)).collect();
    let name = match named[..] {
        [name] => name,
        [] => {
            let message = format!("the rule needs a condition: one of {}", CONDITIONS.join(", "));
            section.report_error("id", message, diagnostics);
            return None;
        }
        [first, second, ..] => {
            let message = format!("a rule has one condition, and this one has `{first}` and `{second}`");
            section.report_error(second, message, diagnostics);
            // They count as known keys.
            for name in named {
                let _ = section.item(name);
            }
            return None;
        }
    };
    if name == "match" {
        let is_match = section.bool("match", diagnostics)?;
        if !is_match {
            section.report_error("match", "expected true: the condition is met by each event", diagnostics);
        }
        return is_match.then_some(ConditionPlan::Match);
    }
    let mut inner = section.section(name, diagnostics)?;
    let read = read_parameters(name, &mut inner, scope, layout, diagnostics);
    inner.end(diagnostics);
    read
}

fn read_parameters(
    name: &str,
    section: &mut Section<'_>,
    scope: &Scope<'_>,
    layout: &Layout,
    diagnostics: &mut Diagnostics,
) -> Option<ConditionPlan> {
    match name {
        "outlier" => return read_outlier(section, scope, layout, diagnostics),
        "travel" => {
            let km = section.float("more_than_km", 0.0..=20_100.0, diagnostics);
            let kmh = section.float("more_than_kmh", 0.0..=1e9, diagnostics);
            return Some(ConditionPlan::Travel { km: km?, kmh: kmh? });
        }
        "sequence" => return read_sequence(section, scope, diagnostics),
        _ => {}
    }
    let within_ms = section.duration("within", 1, diagnostics);
    match name {
        "absence" => Some(ConditionPlan::Absence { within_ms: within_ms? }),
        "count" => {
            let at_least = read_count(section, diagnostics);
            Some(ConditionPlan::Count { at_least: at_least?, within_ms: within_ms? })
        }
        "distinct" => {
            let of = required(section, "of", diagnostics, |text| scalar(text, scope, layout));
            let at_least = section.int("at_least", 1..=10_000, diagnostics);
            let at_least = at_least? as usize;
            Some(ConditionPlan::Distinct { of: of?, at_least, within_ms: within_ms? })
        }
        "share" => {
            let of = required(section, "of", diagnostics, |text| cel::compile_predicate(text, scope));
            let more_than = section.float("more_than", 0.0..=1.0, diagnostics);
            let at_least_events = section.int("at_least_events", COUNTS, diagnostics);
            let more_than_ppm = (more_than? * 1e6).round() as u32;
            let at_least_events = at_least_events? as u64;
            Some(ConditionPlan::Share { of: of?, more_than_ppm, at_least_events, within_ms: within_ms? })
        }
        "average" => {
            let of = required(section, "of", diagnostics, |text| number(text, scope, layout));
            let bound = read_bound(section, diagnostics);
            let at_least_events = section.int("at_least_events", COUNTS, diagnostics);
            let (at_least_events, within_ms) = (at_least_events? as u64, within_ms?);
            Some(ConditionPlan::Average { of: of?, bound: bound?, at_least_events, within_ms })
        }
        _ => {
            let of = required(section, "of", diagnostics, |text| number(text, scope, layout));
            let bound = read_bound(section, diagnostics);
            Some(ConditionPlan::Sum { of: of?, bound: bound?, within_ms: within_ms? })
        }
    }
}

/// Compiles a number: an expression, or the name of a field.
fn number(text: &str, scope: &Scope<'_>, layout: &Layout) -> Result<cel::Number, CelError> {
    cel::compile_number(&of_field(text, layout), scope)
}

/// Compiles a value: an expression, or the name of a field.
fn scalar(text: &str, scope: &Scope<'_>, layout: &Layout) -> Result<cel::Scalar, CelError> {
    cel::compile_scalar(&of_field(text, layout), scope)
}

/// Returns the expression of a field that is given by its name alone.
fn of_field(text: &str, layout: &Layout) -> String {
    match layout.field(text) {
        Some(_) => format!("event.{text}"),
        None => text.to_owned(),
    }
}

/// Reads the number of events: `at_least`, or `more_than`.
fn read_count(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<usize> {
    let (more_than, at_least) = (section.has("more_than"), section.has("at_least"));
    if more_than == at_least {
        section.report_error("at_least", "expected either `at_least` or `more_than`", diagnostics);
        let _ = (section.item("more_than"), section.item("at_least"));
        return None;
    }
    if more_than {
        return section.int("more_than", 0..=1_000_000, diagnostics).map(|count| count as usize + 1);
    }
    section.int("at_least", COUNTS, diagnostics).map(|count| count as usize)
}

/// Reads the bound of a sum or an average: `at_least`, or `more_than`.
fn read_bound(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<Bound> {
    let (more_than, at_least) = (section.has("more_than"), section.has("at_least"));
    if more_than == at_least {
        section.report_error("more_than", "expected either `more_than` or `at_least`", diagnostics);
        let _ = (section.item("more_than"), section.item("at_least"));
        return None;
    }
    let key = if more_than { "more_than" } else { "at_least" };
    let micros = section.get(key, diagnostics, |node| {
        let text = match node {
            Node::Int(_) | Node::Float(_) => Some(node.describe()),
            Node::Text(text) => Some(text.clone()),
            _ => None,
        };
        let micros = text.as_deref().and_then(decimal_micros);
        micros.ok_or_else(|| "a number of at most 10^12 in size, with at most 6 decimals".to_owned())
    })?;
    Some(if more_than { Bound::MoreThan(micros) } else { Bound::AtLeast(micros) })
}

fn read_outlier(
    section: &mut Section<'_>,
    scope: &Scope<'_>,
    layout: &Layout,
    diagnostics: &mut Diagnostics,
) -> Option<ConditionPlan> {
    let of = required(section, "of", diagnostics, |text| number(text, scope, layout));
    let sigmas = section.float("sigmas", 0.0..=1000.0, diagnostics);
    let high_sigmas = section.float("high_sigmas", 0.0..=1000.0, diagnostics);
    let at_least = section.int("at_least", 2..=1_000_000_000, diagnostics);
    let min_sigma = section.float("min_sigma", 0.0..=1e12, diagnostics);
    let min_relative_sigma = section.float("min_relative_sigma", 0.0..=1e3, diagnostics);
    let group_by = expression(section, "group_by", diagnostics, |text| scalar(text, scope, layout));
    Some(ConditionPlan::Outlier {
        of: of?,
        sigmas: sigmas?,
        high_sigmas,
        at_least: at_least? as u64,
        min_sigma: min_sigma?,
        min_relative_sigma: min_relative_sigma?,
        group_by: group_by.ok()?,
    })
}

/// Reads a sequence. Its last step may be `{ not = "…" }`.
fn read_sequence(
    section: &mut Section<'_>,
    scope: &Scope<'_>,
    diagnostics: &mut Diagnostics,
) -> Option<ConditionPlan> {
    const MAX_STEPS: usize = 16;
    let within_ms = section.duration("within", 1, diagnostics);
    let mut sections = section.sections("steps", diagnostics);
    let predicate = |text: &str| cel::compile_predicate(text, scope);
    let mut absent = None;
    let mut is_complete = true;
    if let Some(mut last) = sections.pop_if(|last| last.has("not")) {
        absent = required(&mut last, "not", diagnostics, predicate);
        is_complete &= absent.is_some();
        last.end(diagnostics);
    }
    if sections.is_empty() || sections.len() > MAX_STEPS {
        let message = format!("expected 1 to {MAX_STEPS} steps such as {{ where = \"…\", times = 1 }}");
        section.report_error("steps", message, diagnostics);
        return None;
    }
    let mut steps = Vec::new();
    for mut step in sections {
        let filter = required(&mut step, "where", diagnostics, predicate);
        let times = step.int("times", 1..=100, diagnostics);
        step.end(diagnostics);
        is_complete &= filter.is_some() && times.is_some();
        steps.extend(filter.zip(times).map(|(filter, times)| (filter, times as u32)));
    }
    let within_ms = within_ms?;
    is_complete.then_some(ConditionPlan::Sequence { steps, within_ms, absent })
}

//! The computation of a pipeline, independent of its source: admission, enrichment, rules and windows, encoded for
//! sinks.

use std::sync::Arc;

use differential_dataflow::VecCollection;
use headwater_dataflows::windows::{EmitPolicy, Row, Statistics, Summary};
use headwater_dataflows::{
    Admission, Captured, Captures, ControlStream, Epoch, Load, RefusedLog, RuleVersions,
};
use timely::dataflow::StreamVec;
use timely::dataflow::operators::Concatenate;

use super::key_state::States;
use super::plan::{By, Limits, Plan, WindowKind, WindowPlan};
use super::rule_operators::{RuleHistory, RuleMaker, RuleOperators, use_of};
use super::rules::rules;
use super::spaces::{KeySpace, SpaceEvent};
use crate::coordination::Operator;
use crate::event::{Event, KeyKind, split_key};
use crate::metrics::Metrics;
use crate::outputs::{
    Alert, DeadLetter, EncodedOutputs, Identity, KeyHistory, RecentAlerts, SinkEncoding, SinkRoute, Status,
    WindowRow, encode_for_sinks, encode_outputs,
};

/// The operator that admits events.
pub const ADMIT: &str = "Admit";
/// The operator that enriches events.
pub const ENRICH: &str = "Enrich";
/// The operator that evaluates all patterns.
pub const RULES: &str = "Rules";
/// The operator that keeps the positions of refused events.
pub const REFUSED: &str = "Refused";
/// The prefix of the name of the operator of the user's own rules by a key space, or by `key`.
pub const OWN_RULES: &str = "Rules: ";
/// The prefix of the name of the admission of a key space.
pub const SPACE: &str = "Key: ";
/// The prefix of the name of a window's operator.
pub const WINDOW: &str = "Window: ";

/// The inputs of the computation.
pub struct Inputs<'scope> {
    /// Decoded events.
    pub events: VecCollection<'scope, Epoch, Event>,
    /// Records that were rejected when they were read or decoded.
    pub rejected: VecCollection<'scope, Epoch, DeadLetter>,
    /// The watermark.
    pub control: ControlStream<'scope>,
    /// Receives the positions of refused events, if they are kept.
    pub refused: Option<RefusedLog>,
}

/// The results of the computation.
pub struct Computed<'scope> {
    /// Changes for each sink, encoded.
    pub encoded: StreamVec<'scope, Epoch, (Epoch, EncodedOutputs)>,
    /// The number of keys and windows that the operators hold.
    pub load: Load,
    /// Reads the state of a key in the operators.
    pub states: States,
    /// The operators that evaluate rules of the user's own.
    pub rules: RuleOperators,
}

/// Computes the results of a plan and encodes them for the sinks. Registers every operator that has state in
/// `captures`. Every change of an alert is added to `recent`, if there is one. `history` has the rules of the user's own.
pub fn compute<'scope>(
    inputs: Inputs<'scope>,
    captures: &Captures<'scope>,
    plan: &Plan,
    history: &RuleHistory,
    routes: &Arc<[SinkRoute]>,
    metrics: &Arc<Metrics>,
    recent: Option<Arc<RecentAlerts>>,
) -> Computed<'scope> {
    let Inputs { events, rejected, control, refused: log } = inputs;
    let scope = events.inner.scope();
    let Limits { dedup_horizon_ms, ttl_ms, .. } = plan.limits;
    let admission = Admission { dedup_horizon_ms, ttl_ms: Some(ttl_ms) };
    let (keyed, refused) = captures.admit(ADMIT, events, control.clone(), admission);
    let admitted = keyed.clone();
    let (load, states) = (keyed.load(), keyed.key_states());
    if let Some(log) = log {
        captures.log_refused(
            REFUSED,
            refused.clone(),
            control.clone(),
            plan.limits.backfill_horizon_ms,
            &log,
        );
    }
    let letters =
        refused.map(|refused| DeadLetter::refused(&refused.event, refused.refusal)).concat(rejected);
    let mut all = vec![encode_letters(letters, routes, metrics)];

    if any_sink_takes_events(routes.iter().map(|route| &route.encoding)) {
        let (routes, layout) = (Arc::clone(routes), plan.decoding.layout());
        all.push(keyed.clone().accumulate(
            ENRICH,
            move |epoch, history: &mut KeyHistory, event: &Event, encoded: &mut EncodedOutputs| {
                encode_for_sinks(&history.arrive(event, &layout), epoch, Status::Raised, &routes, encoded);
            },
        ));
    }

    // Events without a key are in no rule or window of it. Standard events have one.
    let keyed = match &plan.decoding.fields {
        None => keyed,
        Some(_) => keyed.only(|key| split_key(key).0 != KeyKind::Absent),
    };
    let alerts = keyed.clone().scan_all(RULES, rules(&plan.pipeline, &plan.patterns));
    all.push(encode_alerts(alerts, routes, metrics, recent.clone()));
    let maker = RuleMaker::new(&plan.pipeline);
    let (found, versions) = own_rules(keyed.clone(), None, &maker, history);
    all.push(encode_alerts(found, routes, metrics, recent.clone()));
    let mut rule_operators = RuleOperators::new(maker.clone(), versions);
    let takes_windows = routes.iter().any(|route| route.encoding.mapping().windows.is_some());
    for window in plan.windows.iter().filter(|window| window.by.space().is_none()) {
        let selected = match window.by {
            By::KeyOfUser => keyed.clone().only(|key| split_key(key).0 == KeyKind::User),
            By::KeyOfDevice => keyed.clone().only(|key| split_key(key).0 == KeyKind::Device),
            By::Key | By::Space(_) => keyed.clone(),
        };
        all.push(encode_rows(rows(selected, window, takes_windows), window, routes));
    }
    let mut spaces = Vec::new();
    for space in plan.all_spaces() {
        let by_space = Arc::clone(&space);
        let is_of_space = |window: &&WindowPlan| window.by.space() == Some(&space);
        let by_window = plan.windows.iter().any(|window| is_of_space(&window));
        let used = use_of(by_window, &space, history);
        let name = format!("{SPACE}{}", space.name);
        let events = admitted.clone().events_while(&format!("Events: {}", space.name), used.clone());
        let events = events.flat_map(move |event| SpaceEvent::new(event, &by_space));
        let admission = Admission { dedup_horizon_ms: 0, ttl_ms: Some(ttl_ms) };
        // Nothing is refused: these events were admitted at the same watermark, and only they are in this collection.
        let (keyed, _none) = captures.admit(&name, events, control.clone(), admission);
        spaces.push((Arc::clone(&space.name), keyed.key_states()));
        let (found, versions) = own_rules(keyed.clone(), Some(&space), &maker, history);
        all.push(encode_alerts(found, routes, metrics, recent.clone()));
        for window in plan.windows.iter().filter(is_of_space) {
            all.push(encode_rows(rows(keyed.clone(), window, takes_windows), window, routes));
        }
        rule_operators.push(Arc::clone(&space), versions, used);
    }
    Computed {
        encoded: scope.concatenate(all),
        load,
        states: States { keys: states, spaces, own_rules: maker.numbers() },
        rules: rule_operators,
    }
}

/// Encodes dead letters, and counts those that admission refused. Others were counted when they were read.
fn encode_letters<'scope>(
    letters: VecCollection<'scope, Epoch, DeadLetter>,
    routes: &Arc<[SinkRoute]>,
    metrics: &Arc<Metrics>,
) -> StreamVec<'scope, Epoch, (Epoch, EncodedOutputs)> {
    let counted = Arc::clone(metrics);
    encode_outputs("Dead letters", letters, Arc::clone(routes), move |letter: &DeadLetter, _, _| {
        counted.rejection(|| letter.to_string());
        if matches!(letter.reason(), crate::decode::Reason::Late | crate::decode::Reason::Duplicate) {
            counted.rejected(letter.reason().as_str(), 1);
        }
    })
}

/// Returns the alerts of the user's own rules over events of one key space, or by the events' own keys, and the handle that
/// changes the rules.
fn own_rules<'scope, E>(
    keyed: Captured<'scope, E>,
    space: Option<&KeySpace>,
    maker: &RuleMaker,
    history: &RuleHistory,
) -> (VecCollection<'scope, Epoch, Alert>, RuleVersions<E, Alert>)
where
    E: headwater_dataflows::Event<Key = str> + AsRef<Event>,
{
    let rules = maker.begin(space, history);
    let versions = rules.versions();
    (keyed.scan_all(&own_rules_of(space), rules), versions)
}

/// Returns the name of the operator of the user's own rules over events of one key space.
pub(super) fn own_rules_of(space: Option<&KeySpace>) -> String {
    format!("{OWN_RULES}{}", space.map_or("key", |space| &space.name))
}

/// Encodes alerts, counts them, and adds them to `recent`.
fn encode_alerts<'scope>(
    alerts: VecCollection<'scope, Epoch, Alert>,
    routes: &Arc<[SinkRoute]>,
    metrics: &Arc<Metrics>,
    recent: Option<Arc<RecentAlerts>>,
) -> StreamVec<'scope, Epoch, (Epoch, EncodedOutputs)> {
    let counted = Arc::clone(metrics);
    encode_outputs("Alerts", alerts, Arc::clone(routes), move |alert: &Alert, epoch, status| {
        counted.alert(&alert.rule, status.as_str(), alert.mode.as_str());
        if let Some(recent) = &recent {
            recent.add(alert, epoch, status);
        }
    })
}

/// Encodes the rows of a window.
fn encode_rows<'scope>(
    rows: VecCollection<'scope, Epoch, WindowRow>,
    window: &WindowPlan,
    routes: &Arc<[SinkRoute]>,
) -> StreamVec<'scope, Epoch, (Epoch, EncodedOutputs)> {
    encode_outputs(&format!("Rows: {}", window.name), rows, Arc::clone(routes), |_, _, _| {})
}

/// Returns true if any sink accepts events, so that they must be enriched.
fn any_sink_takes_events<'a>(encodings: impl IntoIterator<Item = &'a SinkEncoding>) -> bool {
    encodings.into_iter().any(|encoding| encoding.mapping().events.is_some())
}

/// Returns the operators that [`compute`] registers in its captures, sorted by name, each with the version of its
/// state.
pub fn operators<'a>(plan: &Plan, encodings: impl IntoIterator<Item = &'a SinkEncoding>) -> Vec<Operator> {
    let ids = headwater_dataflows::ids_of(ADMIT);
    let mut names = vec![ADMIT.to_owned(), ids, REFUSED.to_owned(), RULES.to_owned()];
    names.extend(any_sink_takes_events(encodings).then(|| ENRICH.to_owned()));
    let spaces = plan.all_spaces();
    for space in &spaces {
        let name = format!("{SPACE}{}", space.name);
        names.extend([headwater_dataflows::ids_of(&name), name]);
    }
    let of_rules = std::iter::once(None).chain(spaces.iter().map(|space| Some(&**space)));
    names.extend(of_rules.map(own_rules_of));
    names.extend(plan.windows.iter().map(|window| format!("{WINDOW}{}", window.name)));
    names.sort_unstable();
    names
        .into_iter()
        .map(|name| Operator { name, version: headwater_dataflows::STATE_VERSION.into() })
        .collect()
}

/// Returns the rows of one window; none if no sink takes windows, whose state can then only be queried.
fn rows<'scope, E>(
    keyed: Captured<'scope, E>,
    plan: &WindowPlan,
    is_taken: bool,
) -> VecCollection<'scope, Epoch, WindowRow>
where
    E: headwater_dataflows::Event<Key = str> + AsRef<Event>,
{
    let statistics =
        Statistics::new(|event: &E| event.as_ref().amount(), |event: &E| event.as_ref().merchant());
    let name = Arc::clone(&plan.name);
    let operator = format!("{WINDOW}{name}");
    let row = move |row: Row<'_, String, Summary>| {
        WindowRow::new(&name, row.key, row.window, row.closed, row.summary)
    };
    let emit = if is_taken { plan.emit } else { EmitPolicy::Never };
    match plan.kind {
        WindowKind::Tumbling { size_ms } => keyed.sliding(&operator, size_ms, size_ms, emit, statistics, row),
        WindowKind::Sliding { size_ms, slide_ms } => {
            keyed.sliding(&operator, size_ms, slide_ms, emit, statistics, row)
        }
        WindowKind::Session { gap_ms } => keyed.session(&operator, gap_ms, emit, statistics, row),
    }
}

impl Identity for Alert {
    fn is_version_of(&self, other: &Self) -> bool {
        self.position == other.position && self.rule == other.rule
    }
}

impl Identity for WindowRow {
    fn is_version_of(&self, other: &Self) -> bool {
        self.name == other.name && self.key == other.key && self.window.start == other.window.start
    }
}

impl Identity for DeadLetter {
    fn is_version_of(&self, other: &Self) -> bool {
        self.position == other.position
    }
}

#[cfg(test)]
mod tests;

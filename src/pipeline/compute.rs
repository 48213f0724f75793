//! The computation of a pipeline, independent of its source: admission, enrichment, rules and windows, encoded for
//! sinks.

use std::sync::Arc;

use differential_dataflow::VecCollection;
use headwater_dataflows::windows::{Row, Statistics, Summary};
use headwater_dataflows::{Admission, Captured, Captures, ControlStream, Epoch, Load};
use timely::dataflow::StreamVec;
use timely::dataflow::operators::Concatenate;

use super::plan::{By, Limits, Plan, WindowKind, WindowPlan};
use super::rules::rules;
use crate::coordination::Operator;
use crate::event::{Event, KeyKind, split_key};
use crate::metrics::Metrics;
use crate::outputs::{
    Alert, DeadLetter, EncodedOutputs, Identity, KeyHistory, SinkEncoding, SinkRoute, Status, WindowRow,
    encode_for_sinks, encode_outputs,
};

/// The operator that admits events.
const ADMIT: &str = "Admit";
/// The operator that enriches events.
pub const ENRICH: &str = "Enrich";
/// The operator that evaluates all patterns.
pub const RULES: &str = "Rules";
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
}

/// The results of the computation.
pub struct Computed<'scope> {
    /// Changes for each sink, encoded.
    pub encoded: StreamVec<'scope, Epoch, (Epoch, EncodedOutputs)>,
    /// The number of keys and windows that the operators hold.
    pub load: Load,
}

/// Computes the results of a plan and encodes them for the sinks. Registers every operator that has state in
/// `captures`.
pub fn compute<'scope>(
    inputs: Inputs<'scope>,
    captures: &Captures<'scope>,
    plan: &Plan,
    routes: &Arc<[SinkRoute]>,
    metrics: &Arc<Metrics>,
) -> Computed<'scope> {
    let Inputs { events, rejected, control } = inputs;
    let scope = events.inner.scope();
    let Limits { dedup_horizon_ms, ttl_ms, .. } = plan.limits;
    let admission = Admission { dedup_horizon_ms, ttl_ms: Some(ttl_ms) };
    let (keyed, refused) = captures.admit(ADMIT, events, control, admission);
    let load = keyed.load();
    let letters =
        refused.map(|refused| DeadLetter::refused(&refused.event, refused.refusal)).concat(rejected);
    let counted = Arc::clone(metrics);
    let letters =
        encode_outputs("Dead letters", letters, Arc::clone(routes), move |letter: &DeadLetter, _| {
            counted.rejection(|| letter.to_string());
            if matches!(letter.reason(), crate::decode::Reason::Late | crate::decode::Reason::Duplicate) {
                counted.rejected(letter.reason().as_str(), 1);
            }
        });
    let mut all = vec![letters];

    if any_sink_takes_events(routes.iter().map(|route| &route.encoding)) {
        let routes = Arc::clone(routes);
        all.push(keyed.clone().accumulate(
            ENRICH,
            move |epoch, history: &mut KeyHistory, event: &Event, encoded: &mut EncodedOutputs| {
                encode_for_sinks(&history.arrive(event), epoch, Status::Raised, &routes, encoded);
            },
        ));
    }

    let alerts = keyed.clone().scan_all(RULES, rules(&plan.pipeline, &plan.patterns));
    let counted = Arc::clone(metrics);
    all.push(encode_outputs("Alerts", alerts, Arc::clone(routes), move |alert: &Alert, status| {
        counted.alert(
            alert.rule,
            match status {
                Status::Raised => "raised",
                Status::Revoked => "revoked",
            },
        );
    }));

    for window in &plan.windows {
        let rows = rows(keyed.clone(), window);
        all.push(encode_outputs(&format!("Rows: {}", window.name), rows, Arc::clone(routes), |_, _| {}));
    }
    Computed { encoded: scope.concatenate(all), load }
}

/// Returns true if any sink accepts events, so that they must be enriched.
fn any_sink_takes_events<'a>(encodings: impl IntoIterator<Item = &'a SinkEncoding>) -> bool {
    encodings.into_iter().any(|encoding| encoding.mapping().events.is_some())
}

/// Returns the operators that [`compute`] registers in its captures, sorted by name, each with the version of its
/// state.
pub fn operators<'a>(plan: &Plan, encodings: impl IntoIterator<Item = &'a SinkEncoding>) -> Vec<Operator> {
    let mut names = vec![ADMIT.to_owned(), headwater_dataflows::ids_of(ADMIT), RULES.to_owned()];
    names.extend(any_sink_takes_events(encodings).then(|| ENRICH.to_owned()));
    names.extend(plan.windows.iter().map(|window| format!("{WINDOW}{}", window.name)));
    names.sort_unstable();
    names
        .into_iter()
        .map(|name| Operator { name, version: headwater_dataflows::STATE_VERSION.into() })
        .collect()
}

/// Returns the rows of one window.
fn rows<'scope>(
    keyed: Captured<'scope, Event>,
    plan: &WindowPlan,
) -> VecCollection<'scope, Epoch, WindowRow> {
    let keyed = match plan.by {
        By::Key => keyed,
        By::User => keyed.only(|key| split_key(key).0 == KeyKind::User),
        By::Device => keyed.only(|key| split_key(key).0 == KeyKind::Device),
    };
    let statistics = Statistics::new(Event::amount, Event::merchant);
    let name = Arc::clone(&plan.name);
    let operator = format!("{WINDOW}{name}");
    let row = move |row: Row<'_, String, Summary>| {
        WindowRow::new(&name, row.key, row.window, row.closed, row.summary)
    };
    match plan.kind {
        WindowKind::Tumbling { size_ms } => {
            keyed.sliding(&operator, size_ms, size_ms, plan.emit, statistics, row)
        }
        WindowKind::Sliding { size_ms, slide_ms } => {
            keyed.sliding(&operator, size_ms, slide_ms, plan.emit, statistics, row)
        }
        WindowKind::Session { gap_ms } => keyed.session(&operator, gap_ms, plan.emit, statistics, row),
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

//! The traces that a collector has received.

use std::collections::BTreeSet;

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;

use crate::collector::Collector;

/// The trace of a round.
#[derive(Debug)]
pub struct Trace {
    /// The root.
    pub commit: Span,
    /// The other spans, in order.
    pub steps: Vec<Span>,
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()
}

/// Returns an attribute that is text.
pub fn text<'a>(attributes: &'a [KeyValue], key: &str) -> &'a str {
    match value(attributes, key) {
        Some(Value::StringValue(text)) => text,
        other => panic!("{key} is {other:?}"),
    }
}

/// Returns an attribute that is a number.
pub fn number(attributes: &[KeyValue], key: &str) -> i64 {
    match value(attributes, key) {
        Some(Value::IntValue(number)) => *number,
        other => panic!("{key} is {other:?}"),
    }
}

/// Returns the traces in the order of their epochs. Each has one root, to which the other spans belong, within its time.
pub fn traces(collector: &Collector) -> Vec<Trace> {
    let accepted = collector.accepted().into_iter();
    let resources = accepted.flat_map(|received| received.request.resource_spans);
    let spans: Vec<Span> = resources.flat_map(|of| of.scope_spans).flat_map(|of| of.spans).collect();
    let ids: BTreeSet<_> = spans.iter().map(|span| &span.span_id).collect();
    assert_eq!(ids.len(), spans.len(), "every span has an id of its own");
    let (roots, others): (Vec<_>, Vec<_>) =
        spans.iter().cloned().partition(|span| span.parent_span_id.is_empty());
    let mut traces: Vec<Trace> =
        roots.into_iter().map(|commit| Trace { commit, steps: Vec::new() }).collect();
    for span in others {
        let of = traces.iter_mut().find(|trace| trace.commit.trace_id == span.trace_id);
        let Trace { commit, steps } = of.unwrap_or_else(|| panic!("{span:?} belongs to no root"));
        assert_eq!(span.parent_span_id, commit.span_id);
        let (root, step) = (times(commit), times(&span));
        assert!(
            root.0 <= step.0 && step.0 <= step.1 && step.1 <= root.1,
            "{}: {step:?}, {root:?}",
            span.name
        );
        steps.push(span);
    }
    traces.sort_by_key(|trace| number(&trace.commit.attributes, "headwater.epoch.first"));
    traces
}

/// Returns the beginning and the end of a span, in nanoseconds since 1970.
pub fn times(span: &Span) -> (u64, u64) {
    (span.start_time_unix_nano, span.end_time_unix_nano)
}

impl Trace {
    /// Returns the steps of this name.
    pub fn steps(&self, name: &str) -> Vec<&Span> {
        self.steps.iter().filter(|span| span.name == name).collect()
    }

    /// Returns the first and the last epoch.
    pub fn epochs(&self) -> (i64, i64) {
        let of = |key| number(&self.commit.attributes, key);
        (of("headwater.epoch.first"), of("headwater.epoch.last"))
    }
}

//! Rounds as spans of OTLP.

use std::hash::BuildHasher;
use std::hash::RandomState;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use headwater_sinks::WriterContext;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Link, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, SpanFlags, Status};

use crate::rounds::{Epochs, Round, SinkTransaction, Step, TraceContext, Transaction};

/// A round to be exported, with the wall time at one instant.
#[derive(Debug)]
pub struct TimedRound {
    round: Round,
    at: Instant,
    wall: SystemTime,
}

impl TimedRound {
    /// Returns a round with the present wall time.
    pub fn now(round: Round) -> TimedRound {
        TimedRound { round, at: Instant::now(), wall: SystemTime::now() }
    }

    /// Returns the number of spans of the round.
    pub fn spans(&self) -> u64 {
        let Round { epochs: Epochs { bound, computed, .. }, appends, transactions, .. } = &self.round;
        1 + u64::from(bound.is_some())
            + u64::from(computed.is_some())
            + appends.len() as u64
            + transactions.len() as u64
    }

    /// Returns the wall time of an instant before that of the round, in nanoseconds since 1970.
    fn unix_nanos(&self, instant: Instant) -> u64 {
        let wall = self.wall.checked_sub(self.at.saturating_duration_since(instant)).unwrap_or(UNIX_EPOCH);
        let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Makes spans from rounds.
pub struct Encoder {
    service_name: String,
    pipeline: String,
    process: usize,
    generation: u64,
    ids: Ids,
}

/// Random ids: hashes of a counter, under keys from the random number generator of the operating system.
#[derive(Default)]
pub struct Ids {
    keys: RandomState,
    count: u64,
}

impl Ids {
    /// Returns the next number; never zero, which is no id.
    pub fn next(&mut self) -> u64 {
        self.count += 1;
        self.keys.hash_one(self.count).max(1)
    }
}

/// The ids of the span that further spans belong to.
struct Parent {
    trace_id: Vec<u8>,
    span_id: Vec<u8>,
}

impl Encoder {
    /// Creates an encoder of the spans of a run.
    pub fn new(service_name: String, context: &WriterContext) -> Encoder {
        Encoder {
            service_name,
            pipeline: context.pipeline.clone(),
            process: context.process,
            generation: context.generation.0,
            ids: Ids::default(),
        }
    }

    /// Returns the request that exports these rounds.
    pub fn request(&mut self, rounds: &[TimedRound]) -> ExportTraceServiceRequest {
        let mut spans = Vec::new();
        for round in rounds {
            self.add_spans(round, &mut spans);
        }
        let version = env!("CARGO_PKG_VERSION");
        let resource = Resource {
            attributes: vec![text("service.name", &self.service_name), text("service.version", version)],
            ..Resource::default()
        };
        let scope =
            InstrumentationScope { name: "headwater".into(), version: version.into(), ..Default::default() };
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, schema_url: String::new() }];
        let resource_spans =
            ResourceSpans { resource: Some(resource), scope_spans, schema_url: String::new() };
        ExportTraceServiceRequest { resource_spans: vec![resource_spans] }
    }

    /// Adds the span of a round and those of its steps.
    fn add_spans(&mut self, timed: &TimedRound, spans: &mut Vec<Span>) {
        let Round { epochs, records, links, appends, transactions } = &timed.round;
        let Epochs { first, last, opened, bound, computed, ended } = *epochs;
        let trace_id = [self.ids.next().to_be_bytes(), self.ids.next().to_be_bytes()].concat();
        let parent = Parent { trace_id, span_id: self.span_id() };
        // A transaction can begin before the last epoch of its round, and is recorded after the frontier was observed.
        let begun = transactions.iter().map(|of| of.transaction.step.begun).chain([opened]).min();
        let ended = transactions.iter().map(|of| of.transaction.step.ended).chain([ended]).max();
        let whole = Step { begun: begun.unwrap_or(opened), ended: ended.unwrap_or(opened) };
        let error = transactions.iter().find_map(|of| of.error.as_deref());
        spans.push(Span {
            trace_id: parent.trace_id.clone(),
            span_id: parent.span_id.clone(),
            flags: FLAGS,
            name: "commit".into(),
            kind: SpanKind::Internal.into(),
            start_time_unix_nano: timed.unix_nanos(whole.begun),
            end_time_unix_nano: timed.unix_nanos(whole.ended),
            attributes: vec![
                text("headwater.pipeline", &self.pipeline),
                number("headwater.process", self.process as u64),
                number("headwater.generation", self.generation),
                number("headwater.epoch.first", first.0),
                number("headwater.epoch.last", last.0),
                number("headwater.records", *records),
            ],
            links: links.iter().map(link).collect(),
            status: status(error),
            ..Span::default()
        });
        let mut add = |name: String, kind, step, attributes, status| {
            spans.push(self.child(&parent, timed, Child { name, kind, step, attributes, status }));
        };
        if let Some(bound) = bound {
            add("bind".into(), SpanKind::Internal, Step { begun: opened, ended: bound }, Vec::new(), None);
        }
        for Transaction { first, last, step } in appends {
            let attributes =
                vec![number("headwater.epoch.first", first.0), number("headwater.epoch.last", last.0)];
            add("append".into(), SpanKind::Client, *step, attributes, None);
        }
        if let Some(ended) = computed {
            let begun = bound.unwrap_or(opened).min(ended);
            add("compute".into(), SpanKind::Internal, Step { begun, ended }, Vec::new(), None);
        }
        for SinkTransaction { sink, transaction, outputs, attempts, error } in transactions {
            let attributes = vec![
                text("headwater.sink", sink),
                number("headwater.epoch.first", transaction.first.0),
                number("headwater.epoch.last", transaction.last.0),
                number("headwater.outputs", *outputs),
                number("headwater.attempts", u64::from(*attempts)),
                text("headwater.outcome", if error.is_some() { "failed" } else { "committed" }),
            ];
            let status = status(error.as_deref());
            add(format!("sink {sink}"), SpanKind::Client, transaction.step, attributes, status);
        }
    }

    fn child(&mut self, parent: &Parent, timed: &TimedRound, child: Child) -> Span {
        Span {
            trace_id: parent.trace_id.clone(),
            span_id: self.span_id(),
            parent_span_id: parent.span_id.clone(),
            flags: FLAGS,
            name: child.name,
            kind: child.kind.into(),
            start_time_unix_nano: timed.unix_nanos(child.step.begun),
            end_time_unix_nano: timed.unix_nanos(child.step.ended),
            attributes: child.attributes,
            status: child.status,
            ..Span::default()
        }
    }

    fn span_id(&mut self) -> Vec<u8> {
        self.ids.next().to_be_bytes().to_vec()
    }
}

/// A span of a step.
struct Child {
    name: String,
    kind: SpanKind,
    step: Step,
    attributes: Vec<KeyValue>,
    status: Option<Status>,
}

/// The flags of a span: its trace is sampled, and its parent is of the same process.
const FLAGS: u32 = 1 | SpanFlags::ContextHasIsRemoteMask as u32;

fn link(context: &TraceContext) -> Link {
    let remote = SpanFlags::ContextHasIsRemoteMask as u32 | SpanFlags::ContextIsRemoteMask as u32;
    Link {
        trace_id: context.trace_id.to_vec(),
        span_id: context.span_id.to_vec(),
        flags: u32::from(context.flags) | remote,
        ..Link::default()
    }
}

fn status(error: Option<&str>) -> Option<Status> {
    error.map(|message| Status { message: message.to_owned(), code: StatusCode::Error.into() })
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: u64) -> KeyValue {
    attribute(key, Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

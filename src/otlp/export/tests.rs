use std::collections::BTreeSet;

use opentelemetry_proto::tonic::trace::v1::Span;

use self::collector::{Collector, Response};
use super::*;
use crate::config::Config;
use crate::rounds::{Epochs, Round, SinkTransaction, Step, Transaction};
use crate::runtime::fakes::{context, wait_until};
use headwater_dataflows::Epoch;

#[path = "../../../tests/otlp/collector.rs"]
mod collector;

/// Limits that a test reaches within a second.
const SHORT: ExportLimits = ExportLimits {
    queue: 4,
    batch: 2,
    linger: Duration::from_millis(1),
    give_up: Duration::from_millis(500),
    pause: Duration::from_millis(10),
    longest_pause: Duration::from_millis(20),
    flush: Duration::from_millis(200),
};

/// The number of spans of [`round`].
const SPANS: u64 = 4;

fn round(epoch: u64, error: Option<&str>) -> Round {
    let (now, epoch) = (std::time::Instant::now(), Epoch(epoch));
    let transaction = Transaction { first: epoch, last: epoch, step: Step { begun: now, ended: now } };
    let (bound, computed) = (Some(now), Some(now));
    Round {
        epochs: Epochs { first: epoch, last: epoch, opened: now, bound, computed, ended: now },
        records: 7,
        links: Vec::new(),
        appends: Vec::new(),
        transactions: vec![SinkTransaction {
            sink: "memory".to_owned(),
            transaction,
            outputs: 1,
            attempts: 1,
            error: error.map(str::to_owned),
        }],
    }
}

struct Fixture {
    exporter: Exporter,
    metrics: Arc<Metrics>,
}

fn fixture(url: &str, limits: ExportLimits) -> Fixture {
    let text = format!(
        "pipeline = 'p'\nsource = {{ kind = 'generator' }}\nsinks.sqlite.path = 'x'\notlp.endpoint = '{url}'"
    );
    let config = Config::parse(&text, std::iter::empty()).expect("valid").otlp.expect("the section");
    let metrics = Arc::<Metrics>::default();
    let exporter = Exporter::with_limits(config, &context(), &metrics, limits).expect("started");
    Fixture { exporter, metrics }
}

impl Fixture {
    /// Records rounds of these epochs.
    fn record(&self, epochs: std::ops::RangeInclusive<u64>) {
        let recorder = self.metrics.rounds().expect("it is set");
        for epoch in epochs {
            let mut round = round(epoch, None);
            recorder.transacted(round.transactions.remove(0));
            recorder.committed(round.epochs);
        }
    }

    fn dropped(&self) -> u64 {
        self.metrics.spans_dropped().get()
    }

    /// Ends the run; returns the number of dropped spans and the time that it took.
    fn end(self) -> (u64, Duration) {
        let Fixture { exporter, metrics } = self;
        let begun = std::time::Instant::now();
        drop(exporter);
        (metrics.spans_dropped().get(), begun.elapsed())
    }
}

/// Returns all spans that a collector has accepted.
fn spans(collector: &Collector) -> Vec<Span> {
    let accepted = collector.accepted().into_iter();
    let resources = accepted.flat_map(|received| received.request.resource_spans);
    resources.flat_map(|of| of.scope_spans).flat_map(|of| of.spans).collect()
}

#[test]
fn what_is_left_is_sent_at_the_end() {
    let collector = Collector::start(Response::Accept);
    let limits = ExportLimits { linger: Duration::from_secs(60), batch: 3, flush: LIMITS.flush, ..SHORT };
    let fixture = fixture(&collector.url(), limits);
    fixture.record(1..=4);
    assert_eq!(fixture.end().0, 0);
    for received in collector.accepted() {
        assert_eq!(
            (received.path.as_str(), received.headers.contains_key("user-agent")),
            ("/v1/traces", true)
        );
    }
    let spans = spans(&collector);
    assert_eq!(spans.len() as u64, 4 * SPANS);
    let ids: BTreeSet<_> = spans.iter().map(|span| span.span_id.clone()).collect();
    let traces: BTreeSet<_> = spans.iter().map(|span| span.trace_id.clone()).collect();
    assert_eq!((ids.len() as u64, traces.len()), (4 * SPANS, 4), "ids are distinct");
}

#[test]
fn a_full_queue_drops_rounds_and_counts_their_spans() {
    let collector = Collector::start(Response::Hang);
    let fixture = fixture(&collector.url(), SHORT);
    fixture.record(1..=1);
    wait_until(|| collector.requests() == 1);
    fixture.record(2..=9);
    assert_eq!(fixture.dropped(), 4 * SPANS, "four of eight wait in the queue");
    let (dropped, time) = fixture.end();
    assert_eq!(dropped, 9 * SPANS, "none is exported");
    assert!(time < Duration::from_secs(2), "{time:?}");
}

#[test]
fn a_request_is_repeated_until_it_is_given_up() {
    let collector = Collector::start(Response::Unavailable);
    let fixture = fixture(&collector.url(), SHORT);
    fixture.record(1..=1);
    wait_until(|| collector.requests() >= 3);
    collector.respond(Response::Accept);
    wait_until(|| spans(&collector).len() as u64 == SPANS);
    assert_eq!(fixture.dropped(), 0, "nothing is lost");

    collector.respond(Response::Unavailable);
    fixture.record(2..=2);
    wait_until(|| fixture.dropped() == SPANS);
    collector.respond(Response::Accept);
    fixture.record(3..=3);
    wait_until(|| spans(&collector).len() as u64 == 2 * SPANS);
    assert_eq!(fixture.end().0, SPANS);
}

#[test]
fn a_rejected_request_is_not_repeated() {
    let collector = Collector::start(Response::Reject);
    let fixture = fixture(&collector.url(), SHORT);
    fixture.record(1..=1);
    wait_until(|| fixture.dropped() == SPANS);
    assert_eq!((collector.requests(), fixture.end().0), (1, SPANS));
}

#[test]
fn the_end_of_a_run_does_not_wait_for_a_missing_collector() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let fixture = fixture(&url, LIMITS);
    fixture.record(1..=3);
    let (dropped, time) = fixture.end();
    assert_eq!(dropped, 3 * SPANS);
    assert!(time < Duration::from_secs(2), "{time:?}");
}

#[test]
fn a_failed_transaction_is_exported_with_its_error() {
    let collector = Collector::start(Response::Accept);
    let fixture = fixture(&collector.url(), LIMITS);
    let failed = round(5, Some("fenced")).transactions.remove(0);
    fixture.metrics.rounds().expect("it is set").transacted(failed);
    assert_eq!(fixture.end().0, 0);
    let errors =
        spans(&collector).into_iter().map(|span| (span.name, span.status.expect("a status").message));
    let fenced = |name: &str| (name.to_owned(), "fenced".to_owned());
    assert_eq!(errors.collect::<Vec<_>>(), [fenced("commit"), fenced("sink memory")]);
}

#[test]
fn the_ratio_of_sampled_rounds_is_as_configured() {
    for ratio in [0.0, 0.25, 1.0] {
        let sampler = Sampler::new(ratio);
        let sampled = (0..4000).filter(|_| sampler.samples()).count() as f64 / 4000.0;
        assert!((sampled - ratio).abs() < 0.05, "{sampled} of {ratio}");
    }
}

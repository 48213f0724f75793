//! Runs into SQLite: their traces, and collectors that fail.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use headwater::source::generator::{GeneratorSettings, RecordMaker};

use crate::collector::{Collector, Response};
use crate::program::{Program, log, wait_for};
use crate::spans::{Trace, number, text, times, traces};

const RECORDS: i64 = 60_000;

/// Returns a configuration of generated records, with two sinks and a ledger.
fn config() -> String {
    format!(
        "pipeline = 'traced'\nsource = {{ kind = 'generator', records = {RECORDS}, epoch_records = 100 }}\n\
         limits.epochs_in_flight = 4\n[patterns.velocity_spike]\nmore_than = 10\nwithin = '1h'\n[sinks.sqlite]\n\
         path = 'results.db'\n[sinks.file]\npath = 'results'\n[ledger]\nkind = 'sqlite'\npath = 'ledger.db'\n"
    )
}

/// Checks the steps of a round.
fn check(trace: &Trace) {
    let (first, last) = trace.epochs();
    let commit = times(&trace.commit);
    let [bind] = trace.steps("bind")[..] else { panic!("{trace:?}") };
    let [compute] = trace.steps("compute")[..] else { panic!("{trace:?}") };
    assert_eq!(times(bind).1, times(compute).0, "operators complete what is bound");
    for append in trace.steps("append") {
        let last_append = number(&append.attributes, "headwater.epoch.last");
        assert!((first..=last).contains(&last_append), "{last_append} is outside {first} to {last}");
        assert!(times(append).0 >= commit.0);
    }
    let sinks = ["sink sqlite", "sink file"].map(|name| trace.steps(name));
    assert!(sinks.iter().any(|sinks| !sinks.is_empty()), "{trace:?}");
    for sink in sinks.into_iter().flatten() {
        let of = |key| number(&sink.attributes, key);
        let through = of("headwater.epoch.last");
        assert!((first..=last).contains(&through) && of("headwater.epoch.first") <= through);
        assert!(of("headwater.attempts") == 1 && of("headwater.outputs") > 0, "{sink:?}");
        assert_eq!(text(&sink.attributes, "headwater.outcome"), "committed");
        assert_eq!(format!("sink {}", text(&sink.attributes, "headwater.sink")), sink.name);
        // A sink commits only what is durable in the ledger.
        let appends = trace.steps("append").into_iter();
        let mut before =
            appends.filter(|append| number(&append.attributes, "headwater.epoch.last") <= through);
        assert!(before.all(|append| times(append).1 <= times(sink).1), "{trace:?}");
    }
}

#[test]
fn every_round_of_a_run_is_a_trace() {
    let collector = Collector::start(Response::Accept);
    let program = Program::new(&config(), &collector.url());
    let token = [("HEADWATER__OTLP__HEADERS__X-TOKEN", "secret"), ("OTEL_SERVICE_NAME", "fraud-desk")];
    let log = log(program.command(&["-w", "2"]).envs(token).output().expect("it starts"));
    assert!(!log.contains("span") && !log.contains("secret"), "{log}");

    for received in collector.accepted() {
        assert_eq!(received.path, "/v1/traces");
        assert_eq!(received.headers["content-type"], "application/x-protobuf");
        assert_eq!(received.headers["x-token"], "secret");
        for of in received.request.resource_spans {
            let attributes = of.resource.expect("a resource").attributes;
            assert_eq!(text(&attributes, "service.name"), "fraud-desk");
            assert_eq!(text(&attributes, "service.version"), env!("CARGO_PKG_VERSION"));
        }
    }
    let traces = traces(&collector);
    assert!(traces.len() > 2, "{}", traces.len());
    let (mut records, mut before) = (0, 0);
    for trace in &traces {
        check(trace);
        let of = |key| number(&trace.commit.attributes, key);
        assert_eq!(text(&trace.commit.attributes, "headwater.pipeline"), "traced");
        assert_eq!((of("headwater.process"), of("headwater.generation")), (0, 1));
        let (first, last) = trace.epochs();
        assert!(before < first && first <= last, "{first} to {last} after {before}");
        assert_eq!((trace.commit.name.as_str(), trace.commit.links.len()), ("commit", 0));
        before = last;
        records += of("headwater.records");
    }
    assert_eq!(records, RECORDS, "each record is in one round");
    let outputs = |name: &str| {
        let steps = traces.iter().flat_map(|trace| trace.steps(name));
        steps.map(|sink| number(&sink.attributes, "headwater.outputs")).sum::<i64>()
    };
    assert_eq!(outputs("sink sqlite"), outputs("sink file"), "both have the same outputs");
    assert!(outputs("sink sqlite") >= RECORDS);
    assert!(traces.iter().any(|trace| !trace.steps("append").is_empty()));
}

#[test]
fn a_share_of_the_rounds_is_sampled() {
    let collector = Collector::start(Response::Accept);
    let program = Program::new(&config(), &collector.url());
    program.run(&[]);
    assert!(!traces(&collector).is_empty());
    let none = Collector::start(Response::Accept);
    let program = Program::new(&config(), &none.url());
    let mut command = program.command(&[]);
    let log = log(command.env("HEADWATER__OTLP__SAMPLE_RATIO", "0").output().expect("it starts"));
    assert_eq!(none.requests(), 0);
    assert!(!log.contains("spans"), "those are not dropped: {log}");
}

#[test]
fn a_collector_that_hangs_holds_up_nothing() {
    let collector = Collector::start(Response::Hang);
    let program = Program::new(&config(), &collector.url());
    let begun = Instant::now();
    let log = program.run(&[]);
    // The run itself takes a second or two, and its end waits for the collector for two at most.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let count = |text| log.matches(text).count();
    assert_eq!(count("spans are dropped; headwater_spans_dropped_total counts them"), 1, "{log}");
    assert_eq!(count("did not respond in time"), 1, "{log}");
    assert_eq!(count("spans of this run were not exported"), 1, "{log}");
    assert!(program.path("results.db").exists() && collector.requests() > 0);
}

#[test]
fn a_collector_that_is_not_there_gives_one_warning() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let log = Program::new(&config(), &url).run(&[]);
    assert_eq!(log.matches("cannot export spans; the run goes on without").count(), 1, "{log}");
    assert_eq!(log.matches("spans of this run were not exported").count(), 1, "{log}");
}

#[test]
fn a_collector_that_rejects_spans_is_logged_once() {
    let collector = Collector::start(Response::Reject);
    let log = Program::new(&config(), &collector.url()).run(&[]);
    assert_eq!(log.matches("cannot export spans; the run goes on without").count(), 1, "{log}");
    assert!(log.contains("the receiver answered 400 Bad Request"), "{log}");
}

#[test]
fn an_outage_is_logged_when_it_begins_and_ends() {
    let collector = Collector::start(Response::Unavailable);
    let config =
        "pipeline = 'live'\nsource = { kind = 'file', paths = '/dev/stdin' }\nsinks.sqlite.path = 'r.db'";
    let program = Program::new(config, &collector.url());
    let mut run = program.command(&[]).stdin(Stdio::piped()).spawn().expect("it starts");
    let mut input = run.stdin.take().expect("it is piped");
    let mut maker = RecordMaker::new(GeneratorSettings::default());
    let mut offset = 0;
    let mut write = || {
        maker.make(0, offset, None);
        offset += 1;
        input.write_all(&maker.value).and_then(|()| input.write_all(b"\n")).expect("it is read");
    };
    wait_for("a second attempt", || {
        write();
        collector.requests() >= 2
    });
    collector.respond(Response::Accept);
    wait_for("the first accepted request", || {
        write();
        !collector.accepted().is_empty()
    });
    drop(input);
    let log = log(run.wait_with_output().expect("it ends"));
    let count = |text| log.matches(text).count();
    assert_eq!(count("cannot export spans; the run goes on without"), 1, "{log}");
    assert_eq!(count("503 Service Unavailable"), 1, "{log}");
    assert_eq!(count("the collector accepts spans again"), 1, "{log}");
    assert_eq!(count("dropped=0"), 1, "{log}");
}

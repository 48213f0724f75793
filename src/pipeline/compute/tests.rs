//! The operators and outputs of plans.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use differential_dataflow::AsCollection;
use differential_dataflow::input::InputSession;
use headwater_dataflows::windows::EmitPolicy;
use headwater_dataflows::{Clock, EventTime, RefusedLog};
use headwater_sinks::{Changes, row_name, tables};
use timely::WorkerConfig;
use timely::communication::Allocator;
use timely::communication::allocator::thread::Thread;
use timely::dataflow::operators::Inspect;
use timely::dataflow::operators::vec::Input;
use timely::worker::Worker;

use super::*;
use crate::outputs::OutputMapping;
use crate::pipeline::fixtures::{T, all_patterns, event, typed};
use crate::pipeline::plan::{Patterns, Time};
use crate::pipeline::rule_operators::RuleHistory;

fn plan(windows: Vec<WindowPlan>, patterns: Patterns) -> Plan {
    Plan {
        pipeline: "fraud".into(),
        decoding: crate::decode::JSON.standard(),
        source_topic: None,
        time: Time {
            epoch: Duration::from_millis(10),
            max_out_of_orderness_ms: 0,
            idle_timeout: Duration::from_secs(1),
            max_future_skew_ms: 0,
            epoch_records: 1,
            max_jump_ms: None,
            max_drift_ms: None,
            held_warning: Duration::from_secs(60),
            held_timeout: None,
            idle_advance_ms: None,
        },
        limits: Limits {
            bytes_in_flight: 1 << 20,
            unfinal_bytes: 1 << 20,
            epochs_in_flight: 10,
            dedup_horizon_ms: 60_000,
            max_rejected_share: None,
            rejected_window: Duration::from_secs(60),
            ttl_ms: 3_600_000,
            backfill_horizon_ms: 3_600_000,
        },
        windows,
        patterns,
        rules: Vec::new(),
        spaces: Vec::new(),
        first_epoch: Epoch(0),
        close_at_end: true,
        record_bindings: None,
    }
}

fn minute(name: &str, by: By) -> WindowPlan {
    let kind = WindowKind::Tumbling { size_ms: 60_000 };
    WindowPlan { name: name.into(), kind, by, emit: EmitPolicy::Final }
}

/// All outputs, as rows.
const ALL: OutputMapping = OutputMapping {
    events: Some(tables::EVENTS),
    alerts: Some(tables::ALERTS),
    windows: Some(tables::WINDOW_AGGREGATES),
    dead_letters: Some(tables::DEAD_LETTERS),
    shadow_alerts: true,
};

/// The outputs of a pipeline for a test.
struct Outputs {
    /// The names of the rows of each sink, sorted.
    rows: Vec<Vec<String>>,
    metrics: Arc<Metrics>,
    /// The operators that were registered.
    operators: Vec<Operator>,
}

/// Computes the outputs of epochs of events, each of which ends with a watermark, in seconds after [`T`]; at last the
/// watermark goes to infinity.
fn run(plan: &Plan, sinks: &[OutputMapping], epochs: Vec<(Vec<Event>, i64)>) -> Outputs {
    let mut worker = Worker::new(WorkerConfig::default(), Allocator::Thread(Thread::default()), None);
    let routes: Arc<[SinkRoute]> =
        sinks.iter().map(|mapping| SinkRoute::to_all(SinkEncoding::Rows(*mapping))).collect();
    let (metrics, encoded) = (Arc::<Metrics>::default(), Rc::new(RefCell::new(Vec::new())));
    let list = Rc::clone(&encoded);
    let (mut events, mut clock, operators) = worker.dataflow::<Epoch, _, _>(|scope| {
        let mut events = InputSession::new();
        let (clock, control) = Clock::new(scope);
        let captures = Captures::new(scope);
        let (_, rejected) = scope.new_input();
        let log = RefusedLog::default();
        let inputs = Inputs {
            events: events.to_collection(scope),
            rejected: rejected.as_collection(),
            control,
            refused: Some(log),
        };
        let Computed { encoded, .. } =
            compute(inputs, &captures, plan, &RuleHistory::of(plan), &routes, &metrics, None);
        encoded.inspect(move |(_, encoded)| list.borrow_mut().push(encoded.clone()));
        let registered = captures.operators().into_iter();
        let operators = registered.map(|(name, version)| Operator { name: name.to_string(), version });
        (events, clock, operators.collect())
    });
    let end = (Vec::new(), i64::MAX);
    for (epoch, (read, watermark)) in (1..).map(Epoch).zip(epochs.into_iter().chain([end])) {
        read.into_iter().for_each(|event| events.insert(event));
        events.advance_to(epoch);
        events.flush();
        clock.end_epoch(EventTime(watermark.saturating_mul(1000).saturating_add(T)));
        for _ in 0..30 {
            worker.step();
        }
    }
    let mut rows = vec![Vec::new(); sinks.len()];
    for encoded in encoded.take() {
        let of_sinks = rows.iter_mut().zip(&encoded);
        of_sinks.for_each(|(rows, changes): (&mut Vec<_>, &Changes)| {
            rows.extend(changes.rows.iter().map(|row| row_name(&row)))
        });
    }
    rows.iter_mut().for_each(|rows| rows.sort());
    Outputs { rows, metrics, operators }
}

#[test]
fn the_listed_operators_are_those_of_the_dataflow() {
    let without_events = OutputMapping { events: None, ..ALL };
    for (windows, sinks) in [
        (vec![], vec![]),
        (vec![minute("a", By::KeyOfUser)], vec![without_events]),
        (vec![minute("b", By::Key), minute("a", By::KeyOfDevice)], vec![without_events, ALL]),
    ] {
        let plan = plan(windows, all_patterns());
        let encodings: Vec<_> = sinks.iter().map(|mapping| SinkEncoding::Rows(*mapping)).collect();
        let listed = operators(&plan, &encodings);
        assert_eq!(listed, run(&plan, &sinks, Vec::new()).operators);
        let enriched = listed.iter().any(|operator| operator.name == ENRICH);
        assert_eq!(enriched, sinks.contains(&ALL), "events are enriched only for a sink that accepts them");
    }
}

/// Checkpoints name operators: a renamed one would lose its state.
#[test]
fn operators_have_the_names_of_stored_checkpoints() {
    let plan = plan(vec![minute("user_1m", By::KeyOfUser)], Patterns::default());
    let listed = operators(&plan, &[SinkEncoding::Rows(ALL)]);
    let names: Vec<_> = listed.iter().map(|operator| &*operator.name).collect();
    assert_eq!(names, ["Admit", "Admit: ids", "Enrich", "Refused", "Rules", "Rules: key", "Window: user_1m"]);
}

#[test]
fn each_sink_receives_the_kinds_of_outputs_it_accepts() {
    let plan = plan(vec![minute("user_1m", By::KeyOfUser)], all_patterns());
    let alerts = OutputMapping { alerts: Some(tables::ALERTS), ..OutputMapping::default() };
    let windows = OutputMapping { windows: Some(tables::WINDOW_AGGREGATES), ..OutputMapping::default() };
    let epochs = vec![(vec![event(0, 0, ""), event(1, 1, "")], -1)];
    let Outputs { rows, metrics, .. } = run(&plan, &[alerts, windows, ALL], epochs);
    let window = "window_aggregates/user_1m/user/ann/2027-01-15T08:00:00.000Z";
    assert!(matches!(&rows[0][..], [alert] if alert.starts_with("alerts/")), "{rows:?}");
    assert_eq!(rows[1], [window]);
    assert_eq!(rows[2], [&rows[0][0], "events/0/0", "events/0/1", window]);
    assert_eq!(metrics.alert_count("rapid_fire_burst", "raised"), 1);
}

#[test]
fn late_and_duplicate_events_become_dead_letters() {
    let plan = plan(Vec::new(), Patterns::default());
    let duplicate = typed(7, 30, r#""event_type":"transaction","user_id":"ann""#);
    let same = Event { position: event(9, 0, "").position(), ..duplicate.clone() };
    let epochs = vec![(vec![duplicate], 20), (vec![event(8, 20, ""), event(10, 21, ""), same], 20)];
    let Outputs { rows, metrics, .. } = run(&plan, &[ALL], epochs);
    assert_eq!(rows[0], ["dead_letters/0/8", "dead_letters/0/9", "events/0/10", "events/0/7"]);
    let counts = ["late", "duplicate", "future"].map(|reason| metrics.rejected_count(reason));
    assert_eq!(counts, [1, 1, 0], "other reasons are counted when they are read");
    assert!(metrics.first_rejection().is_some());
}

#[test]
fn windows_aggregate_only_their_kind_of_key() {
    let windows =
        vec![minute("user", By::KeyOfUser), minute("device", By::KeyOfDevice), minute("key", By::Key)];
    let plan = plan(windows, Patterns::default());
    let device = typed(1, 1, r#""event_type":"iot_sensor","device_id":"ann""#);
    let only = OutputMapping { windows: Some(tables::WINDOW_AGGREGATES), ..OutputMapping::default() };
    let Outputs { rows, .. } = run(&plan, &[only], vec![(vec![event(0, 0, ""), device], -1)]);
    let keys: Vec<_> =
        rows[0].iter().map(|name| name.split('/').skip(1).take(3).collect::<Vec<_>>()).collect();
    let expected = [
        ["device", "device", "ann"],
        ["key", "device", "ann"],
        ["key", "user", "ann"],
        ["user", "user", "ann"],
    ];
    assert_eq!(keys, expected);
}

#[test]
fn key_spaces_and_rules_have_operators_of_their_own() {
    let text = "pipeline = \"p\"\n[source]\nkind = \"generator\"\n[keys]\nshop = \"merchant_id\"\nunused = \"currency\"\n\
        [[windows]]\nname = \"w\"\nkind = \"tumbling\"\nby = \"shop\"\nsize = \"1m\"\n\
        [[rules]]\nid = \"pair\"\nby = \"shop\"\ncount = { at_least = 2, within = \"1m\" }\n\
        [[rules]]\nid = \"any\"\nwhere = \"event.amount > 1.0\"\nmatch = true\n";
    let config = crate::config::Config::parse_without_sinks(text, std::iter::empty()).expect("valid");
    let named = |n: i64, user: &str| {
        typed(
            n,
            n,
            &format!(r#""event_type":"transaction","user_id":"{user}","merchant_id":"m","amount":{n}"#),
        )
    };
    // Two users pay at one shop; the last event is in no key space.
    let events = vec![named(1, "ann"), named(2, "bob"), event(3, 3, "")];
    let sinks = [OutputMapping { events: None, ..ALL }];
    let Outputs { rows, metrics, operators: built } = run(&config.plan, &sinks, vec![(events, -1)]);
    let encodings = sinks.map(SinkEncoding::Rows);
    assert_eq!(operators(&config.plan, &encodings), built);
    let names: Vec<_> = built.iter().map(|operator| &*operator.name).collect();
    let expected = [
        "Admit",
        "Admit: ids",
        "Key: shop",
        "Key: shop: ids",
        "Key: unused",
        "Key: unused: ids",
        "Refused",
        "Rules",
        "Rules: key",
        "Rules: shop",
        "Rules: unused",
        "Window: w",
    ];
    assert_eq!(names, expected);
    let windows: Vec<_> = rows[0].iter().filter(|name| name.starts_with("window")).collect();
    assert_eq!(windows, ["window_aggregates/w/shop/m/2027-01-15T08:00:00.000Z"]);
    assert_eq!([metrics.alert_count("pair", "raised"), metrics.alert_count("any", "raised")], [1, 1]);
}

#[test]
fn shadow_alerts_reach_only_sinks_that_store_them() {
    let text = "pipeline = \"p\"\n[source]\nkind = \"generator\"\n\
        [[rules]]\nid = \"tried\"\nmode = \"shadow\"\nmatch = true\n[[rules]]\nid = \"any\"\nmatch = true\n";
    let config = crate::config::Config::parse_without_sinks(text, std::iter::empty()).expect("valid");
    let stored = OutputMapping { events: None, windows: None, ..ALL };
    let sinks = [stored, OutputMapping { shadow_alerts: false, ..stored }];
    let Outputs { rows, metrics, .. } = run(&config.plan, &sinks, vec![(vec![event(1, 1, "")], -1)]);
    assert_eq!((rows[0].len(), rows[1].len()), (2, 1), "{rows:?}");
    let total = |mode| metrics.alert_total("raised", mode);
    assert_eq!((total("live"), total("shadow"), metrics.rule_counts("tried")), (1, 1, (1, 0)));
}

#[test]
fn an_alert_that_an_earlier_event_refutes_is_revoked() {
    let Patterns { impossible_travel, .. } = all_patterns();
    let plan = plan(Vec::new(), Patterns { impossible_travel, ..Patterns::default() });
    let place = |lon: f64| format!(r#","location":{{"lat":0,"lon":{lon}}}"#);
    let travel = vec![event(0, 0, &place(0.0)), event(1, 60, &place(1.0))];
    let between = vec![event(2, 30, &place(0.9))];
    let alerts = OutputMapping { alerts: Some(tables::ALERTS), ..OutputMapping::default() };
    let Outputs { rows, metrics, .. } = run(&plan, &[alerts], vec![(travel, -1), (between, -1)]);
    let count = |status| metrics.alert_count("impossible_travel", status);
    assert_eq!((count("raised"), count("revoked")), (2, 1), "the trip to the place between is impossible");
    assert_eq!(rows[0].len(), 3, "{rows:?}");
}

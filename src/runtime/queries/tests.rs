//! Queries to the workers of a run, and their refusals.

use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Instant;

use headwater_dataflows::Scan;
use headwater_dataflows::testing::Kit;
use headwater_sinks::memory::Memory;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::config::OutputKind;
use crate::embed::{Pipeline, Stopper};
use crate::event::Event;
use crate::outputs::Alert;
use crate::pipeline::{Patterns, RuleState, rules};

/// More than any worker needs, even if other programs take its processor.
const TIMEOUT: Duration = Duration::from_secs(20);

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(future)
}

fn ask(queries: &Queries, key: &str) -> Result<KeyState, QueryError> {
    wait(queries.ask(KeyKind::User, key, TIMEOUT))
}

/// A run that reads a pipe.
struct Run {
    queries: Queries,
    input: File,
    stopper: Stopper,
    thread: JoinHandle<()>,
    _folder: TempDir,
}

impl Run {
    fn start(workers: usize, configuration: &str) -> Run {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("events");
        assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
        let source = format!("pipeline = 'queries'\nsource = {{ kind = 'file', paths = [{path:?}] }}\n");
        let pipeline = Pipeline::from_toml(&(source + configuration)).expect("valid");
        let sink = Memory::default().sink("memory");
        let pipeline = pipeline.workers(workers).row_sink(sink, &[OutputKind::Events]);
        let (queries, stopper) = (pipeline.queries(), pipeline.stopper());
        assert_eq!(ask(&queries, "ann"), Err(QueryError::Starting));
        let thread = std::thread::spawn(move || _ = pipeline.run().expect("the run ends well"));
        let input = File::options().write(true).open(path).expect("the pipe has a reader");
        Run { queries, input, stopper, thread, _folder: folder }
    }

    fn push(&mut self, id: &str, user: &str, time: &str, fields: &str) {
        let time = format!("2026-11-29T07:{time}Z");
        writeln!(
            self.input,
            r#"{{"event_id":"{id}","event_type":"transaction","user_id":"{user}","event_time":"{time}"{fields}}}"#
        )
        .expect("the run reads the pipe");
    }

    /// Asks until the state of a key has this number of events.
    fn state(&self, user: &str, events: u64) -> KeyState {
        let started = Instant::now();
        loop {
            match ask(&self.queries, user) {
                Ok(state) if state.profile.as_ref().is_some_and(|profile| profile.events == events) => {
                    return state;
                }
                Ok(_) | Err(QueryError::Starting) => {}
                Err(error) => panic!("{error}"),
            }
            assert!(started.elapsed() < Duration::from_secs(30), "{user} has not had {events} events");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn stop(self) -> Queries {
        self.stopper.stop();
        self.thread.join().expect("no panic");
        self.queries
    }
}

const CONFIGURATION: &str = "
[[windows]]
name = 'user_1m'
kind = 'tumbling'
size = '1m'
[[windows]]
name = 'by_device'
kind = 'session'
gap = '1m'
by = 'device_id'
[patterns.velocity_spike]
more_than = 2
[patterns.merchant_diversity]
at_least = 3
";

/// Returns the state of ann in a run with other keys, some of which have an event later.
fn state_of_ann(workers: usize) -> serde_json::Value {
    let mut run = Run::start(workers, CONFIGURATION);
    for (n, user) in ["ann", "bob", "carl", "dora", "emil", "ann", "bob", "ann"].into_iter().enumerate() {
        let fields = match n {
            0 => r#","amount":10,"merchant_id":"m1""#,
            5 => r#","amount":"20.55","merchant_id":"m2","location":{"lat":48.5,"lon":2}"#,
            _ => r#","merchant_id":"m1""#,
        };
        run.push(&n.to_string(), user, &format!("00:{:02}", 10 + n), fields);
    }
    let state = run.state("ann", 3);
    run.state("bob", 2);

    // An idle dataflow answers, too.
    std::thread::sleep(Duration::from_millis(100));
    let second = Duration::from_secs(1);
    let answers = (0..3).map(|_| wait(run.queries.ask(KeyKind::User, "ann", second)));
    let again = answers.filter_map(Result::ok).next().expect("an answer within a second");
    assert_eq!(
        (&again.windows, &again.rules, &again.profile),
        (&state.windows, &state.rules, &state.profile)
    );
    assert_eq!(again.worker, KeyHash::of(b"uann").shard().worker(workers));
    assert!(again.as_of_epoch >= state.as_of_epoch && again.as_of_epoch.is_some());
    assert!(!ask(&run.queries, "zoe").expect("an answer").found);
    let as_device = wait(run.queries.ask(KeyKind::Device, "ann", TIMEOUT)).expect("an answer");
    assert!(!as_device.found && as_device.windows.is_empty(), "device ann is another key");

    let queries = run.stop();
    assert!(matches!(ask(&queries, "ann"), Err(QueryError::Ended { .. })));
    let mut state = serde_json::to_value(again).expect("JSON");
    state["worker"] = 0.into();
    state["as_of_epoch"] = 0.into();
    state
}

#[test]
fn any_number_of_workers_gives_the_same_state() {
    let expected = json!({
        "found": true,
        "worker": 0,
        "as_of_epoch": 0,
        "watermark": "2026-11-29T07:00:11.999Z",
        "profile": {
            "events": 3,
            "amount_count": 2,
            "amount_mean": 15.275,
            "last_event_time": "2026-11-29T07:00:17.000Z",
            "last_location": {"lat": 48.5, "lon": 2.0},
        },
        "windows": [{
            "name": "user_1m",
            "start": "2026-11-29T07:00:00.000Z",
            "end": "2026-11-29T07:01:00.000Z",
            "count": 3,
            "amount_count": 2,
            "amount_sum": "30.55",
            "min": "10",
            "max": "20.55",
            "distinct_merchants": 2,
        }],
        "rules": [
            {
                "rule": "velocity_spike",
                "text": "3 or more events in the last 1 h; raises above 2",
                "state": {"count": 3, "within_ms": 3_600_000, "more_than": 2},
            },
            {
                "rule": "merchant_diversity",
                "text": "2 merchants in the last 1 h; raises at 3",
                "state": {"distinct": 2, "within_ms": 3_600_000, "at_least": 3},
            },
        ],
    });
    for workers in [1, 3] {
        assert_eq!(state_of_ann(workers), expected, "{workers} workers");
    }
}

#[test]
fn answers_under_load_are_of_one_epoch() {
    let source = "pipeline = 'load'\nsource = { kind = 'generator', users = 6 }\n[patterns.amount_anomaly]\n";
    let pipeline = Pipeline::from_toml(source).expect("valid").workers(2);
    let pipeline = pipeline.row_sink(Memory::default().sink("memory"), &[OutputKind::Events]);
    let (queries, stopper) = (pipeline.queries(), pipeline.stopper());
    let run = std::thread::spawn(move || _ = pipeline.run().expect("the run ends well"));
    let (started, mut epochs) = (Instant::now(), std::collections::BTreeSet::new());
    while epochs.len() < 10 {
        assert!(started.elapsed() < TIMEOUT, "answers are of too few epochs: {epochs:?}");
        let state = match ask(&queries, "user-1") {
            Ok(state) if state.found => state,
            Ok(_) | Err(QueryError::Starting) => continue,
            Err(error) => panic!("{error}"),
        };
        let profile = state.profile.expect("the key has events");
        let [RuleState { state: amounts, .. }] = &state.rules[..] else { panic!("{:?}", state.rules) };
        assert_eq!(amounts["n"], json!(profile.amount_count), "the operators are at one epoch");
        epochs.insert(state.as_of_epoch);
    }
    stopper.stop();
    run.join().expect("no panic");
}

#[test]
fn queries_that_no_worker_takes_are_bounded_and_time_out() {
    let queries = Queries::default();
    let mailboxes = queries.open(0..1, 1);
    let after = Duration::from_millis(1);
    for _ in 0..QUEUE {
        let answer = wait(queries.ask(KeyKind::User, "ann", after));
        assert_eq!(answer, Err(QueryError::TimedOut { worker: 0, after }));
    }
    assert_eq!(ask(&queries, "ann"), Err(QueryError::TooMany { worker: 0 }));
    assert!(mailboxes[0].queries.try_iter().all(|query| query.reply.is_closed()), "they are not computed");

    let (_, answer) = queries.send("uann".to_owned()).expect("the queue is empty");
    drop(mailboxes);
    assert!(wait(answer).is_err(), "the worker has ended");
    assert_eq!(ask(&queries, "ann"), Err(QueryError::Ended { worker: 0 }));
}

#[test]
fn queries_take_a_limited_share_of_the_time() {
    let mut states = None;
    let kit: Kit<Event, Alert> = Kit::new(|keyed| {
        states = Some(keyed.key_states());
        keyed.scan_all("Rules", rules(&"queries".into(), &Patterns::default()))
    });
    let states = States {
        keys: states.expect("the dataflow is built"),
        spaces: Vec::new(),
        own_rules: crate::pipeline::RuleNumbers::default(),
    };
    let queries = Queries::default();
    let mut mailbox = queries.open(0..1, 1).remove(0);
    let (_, mut answer) = queries.send("uann".to_owned()).expect("the queue is empty");
    mailbox.rests_until = Some(Instant::now() + Duration::from_secs(3600));
    mailbox.answer_next(&states);
    assert!(answer.try_recv().is_err(), "the worker rests");
    mailbox.rests_until = Some(Instant::now());
    mailbox.answer_next(&states);
    assert!(!answer.try_recv().expect("an answer").into_state(0).found);
    let rest = mailbox.rests_until.expect("it rests after an answer");
    assert!(rest <= Instant::now() + MAX_REST);
    mailbox.rests_until = Some(Instant::now());
    mailbox.answer_next(&states);
    assert_eq!(mailbox.rests_until, None, "without a query it does not");
    kit.finish();
}

#[test]
fn keys_of_other_processes_are_refused_with_the_process() {
    let queries = Queries::default();
    let mailboxes = queries.open(2..4, 6);
    let owners: Vec<_> = mailboxes.iter().map(Mailbox::worker).collect();
    assert_eq!(owners, [2, 3]);
    let mut refused = [0; 3];
    for n in 0..100 {
        let (user, worker) = (n.to_string(), KeyHash::of(format!("u{n}").as_bytes()).shard().worker(6));
        let answer = wait(queries.ask(KeyKind::User, &user, Duration::ZERO));
        match answer.expect_err("no worker answers") {
            QueryError::NotHere { process } => {
                assert_eq!(process, worker / 2);
                refused[process] += 1;
            }
            error => assert!(owners.contains(&worker), "{error}"),
        }
    }
    assert!(refused[0] > 10 && refused[1] == 0 && refused[2] > 10, "{refused:?}");
}

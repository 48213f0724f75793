//! Checkpoints by hand: what is captured when, and what cannot be gone on from. That a restored dataflow says what an
//! uninterrupted one says is shown over random streams, in `specification`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use differential_dataflow::VecCollection;
use differential_dataflow::input::InputSession;
use headwater_dataflows::patterns::Frequency;
use headwater_dataflows::testing::Line;
use headwater_dataflows::windows::{Refresh, Statistics};
use headwater_dataflows::{
    Admission, Captured, Captures, Checkpoint, Clock, Damage, Emission, Epoch, EventTime, Record,
    RestoreError,
};
use timely::dataflow::ProbeHandle;
use timely::dataflow::operators::{Inspect, Probe};
use timely::worker::Worker;

/// A dataflow on one worker, driven by hand.
struct Driven<'w> {
    worker: &'w mut Worker,
    events: InputSession<Epoch, Line, isize>,
    clock: Clock,
    /// What is captured, in the order in which it comes.
    records: Rc<RefCell<Vec<Record>>>,
    results: ProbeHandle<Epoch>,
    captured: ProbeHandle<Epoch>,
}

/// How a dataflow begins.
enum Start {
    /// Nothing is ever captured.
    Off,
    Empty,
    From(Checkpoint),
}

/// Operators behind an admission; their results are looked at no further.
type Operators = for<'s> fn(Captured<'s, Line>) -> VecCollection<'s, Epoch, String>;

impl<'w> Driven<'w> {
    fn new(worker: &'w mut Worker, start: Start, operators: Operators) -> Result<Driven<'w>, RestoreError> {
        let (results, captured) = (ProbeHandle::new(), ProbeHandle::new());
        let records = Rc::new(RefCell::new(Vec::new()));
        let built = worker.dataflow::<Epoch, _, _>(|scope| {
            let mut events = InputSession::new();
            let (clock, control) = Clock::new(scope);
            let captures = match start {
                Start::Off => Captures::off(scope),
                Start::Empty => Captures::new(scope),
                Start::From(checkpoint) => Captures::restore(scope, checkpoint),
            };
            let admission = Admission { dedup_horizon_ms: 50 };
            let (keyed, _) = captures.admit("Admit", events.to_collection(scope), control, admission);
            operators(keyed).inner.probe_with(&results);
            let records = Rc::clone(&records);
            let stream = captures.finish()?;
            stream.inspect(move |record| records.borrow_mut().push(record.clone())).probe_with(&captured);
            Ok((events, clock))
        });
        let (events, clock) = built?;
        Ok(Driven { worker, events, clock, records, results, captured })
    }

    /// An epoch with these lines that ends with this watermark, and perhaps a checkpoint.
    fn end_epoch(&mut self, lines: &[(&str, i64, i64, &str)], watermark: i64, checkpoint: bool) {
        lines.iter().for_each(|line| self.events.insert(Line::from(*line)));
        let watermark = EventTime(watermark);
        if checkpoint {
            self.clock.checkpoint(watermark)
        } else {
            self.clock.end_epoch(watermark)
        }
        self.events.advance_to(self.events.time().next());
        self.events.flush();
        let epoch = *self.events.time();
        self.step_while(|this| this.results.less_than(&epoch));
    }

    fn step_while(&mut self, unfinished: impl Fn(&Self) -> bool) {
        while unfinished(self) {
            self.worker.step();
        }
    }

    /// All records since the last call, complete up to the epoch that is open.
    fn records(&mut self) -> Vec<Record> {
        let epoch = *self.events.time();
        self.step_while(|this| this.captured.less_than(&epoch));
        self.records.take()
    }

    /// Operators and keys of all records since the last call, and whether there is state, sorted.
    fn named(&mut self) -> Vec<(String, bool)> {
        let name = |record: &Record| {
            let key = String::from_utf8_lossy(record.key.get(9..).unwrap_or_default()).into_owned();
            (format!("{} {key}", record.operator), record.value.is_some())
        };
        let mut named: Vec<_> = self.records().iter().map(name).collect();
        named.sort();
        named
    }
}

fn text<T: std::fmt::Debug>(what: T) -> String {
    format!("{what:?}")
}

fn pairs(keyed: Captured<'_, Line>) -> VecCollection<'_, Epoch, String> {
    keyed.scan("Pair", Frequency::at_least(2, 10), Emission::Immediate, |_, rate| text(rate))
}

fn hours(keyed: Captured<'_, Line>) -> VecCollection<'_, Epoch, String> {
    let count = Statistics::new(|_: &Line| None, |_: &Line| None);
    keyed.tumbling("Hour", 60, Refresh::Final, count, |row| text(row.window))
}

#[test]
fn a_checkpoint_is_captured_as_it_was_while_results_go_on() {
    timely::execute_directly(|worker| {
        let mut run = Driven::new(worker, Start::Empty, pairs).expect("nothing to restore");
        let keys: Vec<String> = (0..3000).map(|key| format!("key {key}")).collect();
        let lines = |time| -> Vec<(&str, i64, i64, &str)> {
            keys.iter().map(|key| (key.as_str(), time, time, if time == 10 { "a" } else { "b" })).collect()
        };
        run.end_epoch(&lines(10), 10, true);
        assert!(run.captured.less_equal(&Epoch(0)), "results are out and not everything is captured");
        let before = run.records.borrow().len();
        run.end_epoch(&lines(15), 10, false);
        let after = run.records.borrow().len();
        assert!(before < 3000 && after > before, "{before} records, and then {after}");

        let records = run.records();
        let of = |operator: &str| {
            records.iter().filter(|record| &*record.operator == operator).collect::<Vec<_>>()
        };
        // One event each, however many there have been since.
        let states: Vec<_> = of("Pair").into_iter().map(|record| &record.value).collect();
        assert_eq!(states.len(), 3000);
        assert!(states.iter().all(|state| *state == states[0]), "{states:?}");
        assert!(of("Admit").is_empty(), "all events are final");
        assert_eq!(of("Admit: ids").len(), 64, "one for each shard");
    });
}

#[test]
fn a_key_that_has_not_changed_is_not_captured_again() {
    timely::execute_directly(|worker| {
        let mut run = Driven::new(worker, Start::Empty, pairs).expect("nothing to restore");
        run.end_epoch(&[("ann", 10, 0, "a"), ("bob", 30, 1, "b")], 20, true);
        let ids = "Admit: ids ".to_owned();
        let named = |names: &[(&str, bool)]| -> Vec<(String, bool)> {
            names.iter().map(|(name, state)| (name.to_string(), *state)).collect()
        };
        let first = named(&[("Admit bob", true), (&ids, true), (&ids, true), ("Pair ann", true)]);
        assert_eq!(run.named(), first, "bob's event is not final");
        run.end_epoch(&[], 20, true);
        assert_eq!(run.named(), []);
        run.end_epoch(&[("ann", 35, 2, "c")], 20, true);
        assert_eq!(run.named(), named(&[("Admit ann", true), (&ids, true), ("Pair ann", true)]), "ann alone");
        run.end_epoch(&[], 32, true);
        assert_eq!(
            run.named(),
            named(&[("Admit bob", false), ("Pair bob", true)]),
            "bob's event is final now"
        );
        run.end_epoch(&[], 100, true);
        let last = [("Admit ann", false), (&ids, false), (&ids, false), (&ids, false), ("Pair ann", true)];
        assert_eq!(run.named(), named(&last), "no id can come again");
    });
}

#[test]
fn a_key_whose_windows_have_closed_is_deleted() {
    timely::execute_directly(|worker| {
        let mut run = Driven::new(worker, Start::Empty, hours).expect("nothing to restore");
        run.end_epoch(&[("ann", 10, 0, "a")], 30, true);
        assert!(run.named().contains(&("Hour ann".to_owned(), true)));
        run.end_epoch(&[], 59, true);
        assert!(run.named().contains(&("Hour ann".to_owned(), false)));
        run.end_epoch(&[], 500, true);
        assert!(!run.named().iter().any(|(name, _)| name == "Hour ann"), "once");
    });
}

#[test]
fn where_capture_is_off_nothing_is_captured() {
    timely::execute_directly(|worker| {
        let mut run = Driven::new(worker, Start::Off, pairs).expect("nothing to restore");
        run.end_epoch(&[("ann", 10, 0, "a")], 5, true);
        assert_eq!(run.records(), []);
    });
}

/// A checkpoint of one key, with an event that is final and one that is not.
fn checkpoint() -> Checkpoint {
    timely::execute_directly(|worker| {
        let mut run = Driven::new(worker, Start::Empty, both).expect("nothing to restore");
        run.end_epoch(&[("ann", 10, 0, "a"), ("ann", 30, 1, "b")], 20, true);
        Checkpoint { epoch: Epoch(0), watermark: EventTime(20), records: run.records() }
    })
}

fn both(keyed: Captured<'_, Line>) -> VecCollection<'_, Epoch, String> {
    pairs(keyed.clone()).concat(hours(keyed))
}

fn restore(checkpoint: Checkpoint, operators: Operators) -> Result<(), RestoreError> {
    timely::execute_directly(move |worker| {
        Driven::new(worker, Start::From(checkpoint), operators).map(|_| ())
    })
}

#[test]
fn a_damaged_record_is_an_error_that_names_operator_and_key() {
    let whole = checkpoint();
    let operators: BTreeMap<&str, usize> =
        whole.records.iter().fold(BTreeMap::new(), |mut counts, record| {
            *counts.entry(&*record.operator).or_default() += 1;
            counts
        });
    let expected = [("Admit", 1), ("Admit: ids", 1), ("Hour", 1), ("Pair", 1)];
    assert_eq!(operators, BTreeMap::from(expected));
    for (at, record) in whole.records.iter().enumerate() {
        let value = record.value.clone().expect("it has state");
        let cut = (0..value.len()).map(|end| value[..end].to_vec());
        let longer = [value.clone(), vec![0]].concat();
        let newer = [&[2], &value[1..]].concat();
        for damaged in cut.chain([longer, newer]) {
            let mut checkpoint = whole.clone();
            checkpoint.records[at].value = Some(damaged.clone());
            let error = restore(checkpoint, both).expect_err("it is damaged").to_string();
            let key = if &*record.operator == "Admit: ids" { "0000000000000000" } else { "\"ann\"" };
            let named = format!("checkpoint of operator {:?}, key {key}: ", record.operator);
            assert!(error.starts_with(&named), "{damaged:?} is {error}");
        }
    }
    assert_eq!(restore(whole, both), Ok(()));
}

#[test]
fn a_key_that_cannot_be_read_and_an_event_of_another_key_are_damage() {
    let mut unreadable = checkpoint();
    unreadable.records.retain(|record| &*record.operator == "Pair");
    unreadable.records[0].key.pop();
    let error = restore(unreadable, both).expect_err("it is damaged");
    assert!(matches!(&error, RestoreError::Damaged { damage: Damage::Undecodable(_), .. }), "{error}");

    let mut exchanged = checkpoint();
    let of_ann =
        exchanged.records.iter_mut().find(|record| &*record.operator == "Admit").expect("it is there");
    let last = of_ann.key.len() - 1;
    of_ann.key[last] = b'a';
    let error = restore(exchanged, both).expect_err("it is damaged");
    assert_eq!(
        error.to_string(),
        "checkpoint of operator \"Admit\", key \"ana\": it has events of another key"
    );
}

#[test]
fn state_of_an_operator_that_is_gone_or_there_twice_is_refused() {
    assert_eq!(restore(checkpoint(), hours), Err(RestoreError::Unclaimed(Arc::from("Pair"))));
    let twice: Operators = |keyed| pairs(keyed.clone()).concat(pairs(keyed));
    let ambiguous = timely::execute_directly(move |worker| Driven::new(worker, Start::Empty, twice).err());
    assert_eq!(ambiguous, Some(RestoreError::Ambiguous(Arc::from("Pair"))));
}

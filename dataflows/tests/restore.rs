//! Handwritten checkpoint tests: the records captured at each mark, and checkpoints that cannot be restored. The tests
//! in `specification` compare restored with uninterrupted dataflows over random streams.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::rc::Rc;
use std::sync::Arc;

use differential_dataflow::input::InputSession;
use differential_dataflow::{AsCollection, VecCollection};
use headwater_dataflows::patterns::{
    Diversity, Frequency, Grouped, Location, Outlier, Run, Sequence, Travel,
};
use headwater_dataflows::testing::Line;
use headwater_dataflows::windows::{EmitPolicy, Statistics};
use headwater_dataflows::{
    Admission, Captured, Captures, Checkpoint, Clock, Emission, Epoch, EventTime, Missing, Pattern, Record,
    RestoreError, Rule, SHARDS, ShardId,
};
use timely::dataflow::ProbeHandle;
use timely::dataflow::operators::vec::Map;
use timely::dataflow::operators::{Inspect, Probe};
use timely::worker::Worker;

/// A manually driven dataflow on one worker.
struct TestDataflow<'w> {
    worker: &'w mut Worker,
    events: InputSession<Epoch, Line, isize>,
    clock: Clock,
    /// The captured records, in the order of emission.
    records: Rc<RefCell<Vec<Record>>>,
    /// The ids of the refused events.
    refused: Rc<RefCell<Vec<String>>>,
    results: ProbeHandle<Epoch>,
    captured: ProbeHandle<Epoch>,
}

/// The initial state of a dataflow.
enum Start {
    /// Capture is off.
    Off,
    Empty,
    From(Checkpoint),
}

/// The operators after admission. Their results are not checked.
type Operators = for<'s> fn(Captured<'s, Line>) -> VecCollection<'s, Epoch, String>;

impl<'w> TestDataflow<'w> {
    fn new(
        worker: &'w mut Worker,
        start: Start,
        operators: Operators,
    ) -> Result<TestDataflow<'w>, RestoreError> {
        let (results, captured) = (ProbeHandle::new(), ProbeHandle::new());
        let records = Rc::new(RefCell::new(Vec::new()));
        let refused = Rc::new(RefCell::new(Vec::new()));
        let first = if let Start::From(checkpoint) = &start { checkpoint.epoch.next() } else { Epoch(0) };
        let built = worker.dataflow::<Epoch, _, _>(|scope| {
            let mut events = InputSession::<Epoch, Line, isize>::new();
            let (clock, control) = Clock::new(scope);
            let captures = match start {
                Start::Off => Captures::off(scope),
                Start::Empty => Captures::new(scope),
                Start::From(checkpoint) => Captures::restore(scope, checkpoint),
            };
            let admission = Admission { dedup_horizon_ms: 50, ttl_ms: None };
            let (keyed, no) = captures.admit("Admit", events.to_collection(scope), control, admission);
            let ids = Rc::clone(&refused);
            no.inspect(move |(refused, _, _)| ids.borrow_mut().push(refused.event.id.clone()));
            operators(keyed).inner.probe_with(&results);
            let records = Rc::clone(&records);
            let stream = captures.finish()?;
            stream.inspect(move |record| records.borrow_mut().push(record.clone())).probe_with(&captured);
            Ok((events, clock))
        });
        let (mut events, mut clock) = built?;
        events.advance_to(first);
        events.flush();
        clock.advance_to(first);
        Ok(TestDataflow { worker, events, clock, records, refused, results, captured })
    }

    /// Ends an epoch with these lines and this watermark, and requests a checkpoint if `checkpoint` is true.
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

    /// Returns all records since the last call, complete up to the current epoch.
    fn records(&mut self) -> Vec<Record> {
        let epoch = *self.events.time();
        self.step_while(|this| this.captured.less_than(&epoch));
        self.records.take()
    }

    /// Returns the operator and key of all records since the last call, with true if the record has state, sorted.
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

fn text<T: Debug>(value: T) -> String {
    format!("{value:?}")
}

fn pairs(keyed: Captured<'_, Line>) -> VecCollection<'_, Epoch, String> {
    keyed.scan("Pair", Frequency::at_least(2, 10), Emission::Immediate, |_, rate| text(rate))
}

fn hours(keyed: Captured<'_, Line>) -> VecCollection<'_, Epoch, String> {
    let count = Statistics::new(|_: &Line| None, |_: &Line| None);
    keyed.tumbling("Hour", 60, EmitPolicy::Final, count, |row| text(row.window))
}

#[test]
fn later_events_do_not_change_a_checkpoint_in_progress() {
    timely::execute_directly(|worker| {
        let mut run = TestDataflow::new(worker, Start::Empty, pairs).expect("nothing to restore");
        let keys: Vec<String> = (0..3000).map(|key| format!("key {key}")).collect();
        let lines = |time| -> Vec<(&str, i64, i64, &str)> {
            keys.iter().map(|key| (key.as_str(), time, time, if time == 10 { "a" } else { "b" })).collect()
        };
        run.end_epoch(&lines(10), 10, true);
        assert!(run.captured.less_equal(&Epoch(0)), "results are emitted before everything is captured");
        let before = run.records.borrow().len();
        run.end_epoch(&lines(15), 10, false);
        let after = run.records.borrow().len();
        assert!(before < 3000 && after > before, "{before} records, and then {after}");

        let records = run.records();
        let of = |operator: &str| {
            records.iter().filter(|record| &*record.operator == operator).collect::<Vec<_>>()
        };
        // Each state has one event, without the later events.
        let states: Vec<_> = of("Pair").into_iter().map(|record| &record.value).collect();
        assert_eq!(states.len(), 3000);
        assert!(states.iter().all(|state| *state == states[0]), "{states:?}");
        assert!(of("Admit").is_empty(), "all events are final");
        assert_eq!(of("Admit: ids").len(), 64, "one record for each shard");
    });
}

#[test]
fn an_unchanged_key_is_not_captured_again() {
    timely::execute_directly(|worker| {
        let mut run = TestDataflow::new(worker, Start::Empty, pairs).expect("nothing to restore");
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
        assert_eq!(
            run.named(),
            named(&[("Admit ann", true), (&ids, true), ("Pair ann", true)]),
            "only ann has changed"
        );
        run.end_epoch(&[], 32, true);
        assert_eq!(
            run.named(),
            named(&[("Admit bob", false), ("Pair bob", true)]),
            "bob's event is final now"
        );
        run.end_epoch(&[], 100, true);
        let last = [("Admit ann", false), (&ids, false), (&ids, false), (&ids, false), ("Pair ann", true)];
        assert_eq!(run.named(), named(&last), "no id can be repeated");
    });
}

#[test]
fn a_key_whose_windows_have_closed_is_deleted() {
    timely::execute_directly(|worker| {
        let mut run = TestDataflow::new(worker, Start::Empty, hours).expect("nothing to restore");
        run.end_epoch(&[("ann", 10, 0, "a")], 30, true);
        assert!(run.named().contains(&("Hour ann".to_owned(), true)));
        run.end_epoch(&[], 59, true);
        assert!(run.named().contains(&("Hour ann".to_owned(), false)));
        run.end_epoch(&[], 500, true);
        assert!(!run.named().iter().any(|(name, _)| name == "Hour ann"), "the key is deleted only once");
    });
}

#[test]
fn after_a_restore_ids_of_retracted_events_are_free() {
    let checkpoint = timely::execute_directly(|worker| {
        let mut run = TestDataflow::new(worker, Start::Empty, pairs).expect("nothing to restore");
        run.end_epoch(
            &[("ann", 10, 0, "stays"), ("ann", 30, 1, "goes"), ("ann", 31, 2, "comes back")],
            5,
            false,
        );
        run.events.remove(Line::from(("ann", 30, 1, "goes")));
        run.events.remove(Line::from(("ann", 31, 2, "comes back")));
        run.end_epoch(&[("ann", 32, 3, "comes back")], 20, true);
        Checkpoint { epoch: Epoch(1), watermark: EventTime(20), records: run.records() }
    });
    timely::execute_directly(|worker| {
        let mut run =
            TestDataflow::new(worker, Start::From(checkpoint), pairs).expect("the checkpoint is valid");
        run.end_epoch(
            &[("ann", 40, 4, "stays"), ("ann", 40, 5, "goes"), ("ann", 40, 6, "comes back")],
            20,
            false,
        );
        assert_eq!(run.refused.take(), ["stays", "comes back"]);
    });
}

#[test]
fn nothing_is_captured_while_capture_is_off() {
    timely::execute_directly(|worker| {
        let mut run = TestDataflow::new(worker, Start::Off, pairs).expect("nothing to restore");
        run.end_epoch(&[("ann", 10, 0, "a")], 5, true);
        assert_eq!(run.records(), []);
    });
}

/// Returns a checkpoint of one key with a final and an un-final event.
fn checkpoint() -> Checkpoint {
    checkpoint_of(both)
}

fn checkpoint_of(operators: Operators) -> Checkpoint {
    timely::execute_directly(move |worker| {
        let mut run = TestDataflow::new(worker, Start::Empty, operators).expect("nothing to restore");
        run.end_epoch(&[("ann", 10, 0, "a"), ("ann", 30, 1, "b")], 20, true);
        Checkpoint { epoch: Epoch(0), watermark: EventTime(20), records: run.records() }
    })
}

fn both(keyed: Captured<'_, Line>) -> VecCollection<'_, Epoch, String> {
    pairs(keyed.clone()).concat(hours(keyed))
}

fn restore(checkpoint: Checkpoint, operators: Operators) -> Result<(), RestoreError> {
    timely::execute_directly(move |worker| {
        TestDataflow::new(worker, Start::From(checkpoint), operators).map(|_| ())
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
        let value = record.value.clone().expect("the record has state");
        let cut = (0..value.len()).map(|end| value[..end].to_vec());
        let longer = [value.clone(), vec![0]].concat();
        let newer = [&[2], &value[1..]].concat();
        for damaged in cut.chain([longer, newer]) {
            let mut checkpoint = whole.clone();
            checkpoint.records[at].value = Some(damaged.clone());
            let error = restore(checkpoint, both).expect_err("the checkpoint is damaged").to_string();
            let key = if &*record.operator == "Admit: ids" { "0000000000000000" } else { "\"ann\"" };
            let named = format!("checkpoint of operator {:?}, key {key}: ", record.operator);
            assert!(error.starts_with(&named), "{damaged:?} is {error}");
        }
    }
    assert_eq!(restore(whole, both), Ok(()));
}

#[test]
fn an_undecodable_or_misplaced_key_is_an_error() {
    /// Returns the error of restoring a checkpoint in which the record of an operator was changed.
    fn error_after(operator: &str, change: impl FnOnce(&mut Record)) -> String {
        let mut checkpoint = checkpoint();
        let record = checkpoint.records.iter_mut().find(|record| &*record.operator == operator);
        change(record.expect("the operator has a record"));
        restore(checkpoint, both).expect_err("the checkpoint is damaged").to_string()
    }
    let error = error_after("Pair", |record| record.key.truncate(11));
    assert!(
        error.starts_with("checkpoint of operator \"Pair\", key ") && error.contains("cannot be decoded"),
        "{error}"
    );
    let error = error_after("Pair", |record| record.shard = ShardId((record.shard.0 + 1) % SHARDS));
    assert_eq!(error, "checkpoint of operator \"Pair\", key \"ann\": the key belongs to another shard");
    let error = error_after("Admit", |record| record.key[11] = b'a');
    assert_eq!(error, "checkpoint of operator \"Admit\", key \"ana\": the value has events of another key");
    let error = error_after("Admit: ids", |record| record.key.truncate(7));
    assert_eq!(error, "checkpoint of operator \"Admit: ids\", key 00000000000000: the key is not an epoch");
}

#[test]
fn state_of_missing_or_duplicate_operators_is_an_error() {
    assert_eq!(restore(checkpoint(), hours), Err(RestoreError::Unclaimed(Arc::from("Pair"))));
    let twice: Operators = |keyed| pairs(keyed.clone()).concat(pairs(keyed));
    let ambiguous =
        timely::execute_directly(move |worker| TestDataflow::new(worker, Start::Empty, twice).err());
    assert_eq!(ambiguous, Some(RestoreError::Ambiguous(Arc::from("Pair"))));
}

fn rule<P: Pattern<Line, Match: Debug>>(pattern: P) -> Rule<P, impl Fn(&Line, P::Match) -> String> {
    Rule::new(pattern, Emission::Final, |_: &Line, found| text(found))
}

/// Builds every kind of operator.
fn every(keyed: Captured<'_, Line>) -> VecCollection<'_, Epoch, String> {
    let amount = |line: &Line| Some(7 * line.offset - 3);
    let value = |line: &Line| Some(line.offset.unsigned_abs());
    let place = |line: &Line| Some(Location { lat: line.offset as f64, lon: 0.5 });
    let paid = Sequence::first(|line: &Line| Some(line.id.clone())).then(|_, _| None).within(60);
    let unpaid = Sequence::first(|line: &Line| Some(line.id.clone())).then_not(|_, _| false).within(30);
    let grouped = Grouped::by(Frequency::at_least(2, 10), value);
    let travel = Travel::beyond(50.0, 900.0, place, |line: &Line| &line.id);
    let absent = Missing::new(unpaid, |_: &str, run: &Run<String>| text(run));
    let sequences = (rule(paid), (absent, ()));
    let rules = (rule(travel), (rule(grouped), sequences));
    let rules =
        (rule(Outlier::beyond(3.0, 30, 0.5, amount)), (rule(Diversity::at_least(3, 60, value)), rules));
    let shown = keyed.clone().session(
        "Visit",
        40,
        EmitPolicy::Early { epochs: 1 },
        Statistics::new(amount, value),
        |row| text(row.window.end),
    );
    let seen =
        keyed.clone().accumulate("Seen", |_, seen: &mut Vec<i64>, line, _: &mut ()| seen.push(line.time));
    let seen = seen.flat_map(|(epoch, ())| [(String::new(), epoch, 0)]).as_collection();
    both(keyed.clone()).concatenate([keyed.scan_all("Rules", rules), shown, seen])
}

/// The records of version 1: operator, shard, key and state. If the test fails, stored checkpoints cannot be read.
const GOLDEN: [&str; 7] = [
    "Admit 22 5bc8f4ddc166f2a003616e6e 013c00020103616e6e3c020162",
    "Admit: ids 22 0000000000000000 0102feaafc56bb554da4077a761639a70b98511401fe586a84e4e12a0c2038a86905349b73943c01",
    "Hour 22 5bc8f4ddc166f2a003616e6e 010100010100000000000000",
    "Pair 22 5bc8f4ddc166f2a003616e6e 0101140000",
    "Rules 22 5bc8f4ddc166f2a003616e6e 010105090001001400010000000000000000000000000000e03f14016101010100011400000114000001610001140000016100",
    "Seen 22 5bc8f4ddc166f2a003616e6e 0102143c",
    "Visit 22 5bc8f4ddc166f2a003616e6e 010114140101050900010505010001140d4576656e7454696d6528373029",
];

#[test]
fn the_state_format_does_not_change() {
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let line = |record: &Record| {
        let value = record.value.as_deref().expect("the record has state");
        format!("{} {} {} {}", record.operator, record.shard.0, hex(&record.key), hex(value))
    };
    let mut lines: Vec<String> = checkpoint_of(every).records.iter().map(line).collect();
    lines.sort();
    assert_eq!(lines, GOLDEN, "{lines:#?}");
}

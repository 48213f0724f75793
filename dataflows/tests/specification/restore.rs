//! Checkpoints over random streams: a dataflow restored from a checkpoint, on another number of workers, has the same
//! output as an uninterrupted dataflow from then on; and capture does not change the output.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use differential_dataflow::{AsCollection, Data, VecCollection, consolidation};
use headwater_dataflows::windows::EmitPolicy;
use headwater_dataflows::{
    Admission, Captures, Checkpoint, ControlStream, Emission, Epoch, EventTime, Record, Refused,
    STATE_VERSION, ShardId,
};
use proptest::prelude::*;
use timely::dataflow::operators::Inspect;
use timely::dataflow::operators::vec::Map;

use crate::event::Tx;
use crate::harness::{Before, Changes, check, run_from, watermarks};
use crate::scan::{ADMISSION, all_rules};
use crate::sequences::{offsets, offsets_of_all, related, unplaced, unrelated};
use crate::streams::{Round, rounds};
use crate::windows::{row, statistics};
use crate::workers::recorded_input;

/// The content of a checkpoint: the latest state by operator, shard and key.
pub type State = BTreeMap<Name, Vec<u8>>;

/// Operator, shard and key.
pub type Name = (Arc<str>, ShardId, Vec<u8>);

/// The output of an accumulation for an event: its epoch, its key, and the offsets of the key's events so far.
type Said = (u64, u16, Vec<i64>);

/// Builds every operator, with all output as text.
fn everything<'s>(
    captures: &Captures<'s>,
    events: VecCollection<'s, Epoch, Tx>,
    control: ControlStream<'s>,
    ttl_ms: Option<i64>,
) -> VecCollection<'s, Epoch, String> {
    use Emission::{Final, Immediate};
    let (keyed, refused) = captures.admit("Admit", events, control, Admission { ttl_ms, ..ADMISSION });
    let refused = refused.map(|Refused { event, refusal }| format!("{refusal:?} {event:?}"));
    let now = keyed.clone().scan_all("Now", all_rules([Immediate; 5]));
    let finals = keyed.clone().scan_all("Final", all_rules([Final; 5]));
    let some = keyed.clone().only(|key| key % 2 == 1).scan_all("Some", all_rules([Immediate; 5]));
    let unrelated = keyed.clone().scan("Unrelated", unrelated(), Immediate, offsets);
    let related = keyed.clone().scan("Related", related(), Final, offsets_of_all);
    let absent = keyed.clone().scan_absence("Absent", unplaced(), |key, run| format!("absent {key} {run:?}"));
    let answers = [("now", now), ("final", finals), ("some", some), ("un", unrelated), ("re", related)];
    let answers = answers.map(|(name, answers)| answers.map(move |answer| format!("{name} {answer:?}")));

    let text = |name: &'static str| {
        move |shown: headwater_dataflows::windows::Row<'_, _, _>| format!("{name} {:?}", row(shown))
    };
    let revised = |epochs| EmitPolicy::Early { epochs };
    let windows = [
        keyed.clone().tumbling("Tumbling", 16, EmitPolicy::Final, statistics(), text("tumbling")),
        keyed.clone().sliding("Sliding", 20, 10, revised(1), statistics(), text("sliding")),
        keyed.clone().sliding("Hopping", 25, 7, revised(3), statistics(), text("hopping")),
        keyed.clone().session("Session", 9, EmitPolicy::Final, statistics(), text("session")),
        keyed.clone().session("Shown", 9, revised(2), statistics(), text("shown")),
    ];
    let step = |epoch: Epoch, seen: &mut Vec<i64>, event: &Tx, said: &mut Vec<Said>| {
        seen.push(event.offset);
        said.push((epoch.0, event.key, seen.clone()));
    };
    let said = keyed.accumulate("Seen", step);
    let said = said.flat_map(|(epoch, all)| all.into_iter().map(move |said| (format!("{said:?}"), epoch, 1)));
    refused.concatenate(answers.into_iter().chain(windows).chain([absent, said.as_collection()]))
}

/// The output from an epoch on, and the records captured at each epoch, in the order of emission.
pub struct Outcome<D> {
    pub changes: Changes<D>,
    pub captured: BTreeMap<u64, Vec<Record>>,
}

fn run(rounds: &[Round], workers: usize, ttl_ms: Option<i64>, from: Option<Checkpoint>) -> Outcome<String> {
    run_captured(rounds, workers, from, move |captures, events, control| {
        everything(captures, events, control, ttl_ms)
    })
}

/// Runs a dataflow with captured state, from a checkpoint if there is one.
pub fn run_captured<D, F>(rounds: &[Round], workers: usize, from: Option<Checkpoint>, build: F) -> Outcome<D>
where
    D: Data + Send,
    F: for<'s> Fn(
        &Captures<'s>,
        VecCollection<'s, Epoch, Tx>,
        ControlStream<'s>,
    ) -> VecCollection<'s, Epoch, D>,
    F: Send + Sync + 'static,
{
    run_captured_with(rounds, workers, from, move |captures, events, control| {
        (build(captures, events, control), Box::new(|_| ()))
    })
}

/// Like [`run_captured`], with a function to be called before each epoch.
pub fn run_captured_with<D, F>(
    rounds: &[Round],
    workers: usize,
    from: Option<Checkpoint>,
    build: F,
) -> Outcome<D>
where
    D: Data + Send,
    F: for<'s> Fn(
        &Captures<'s>,
        VecCollection<'s, Epoch, Tx>,
        ControlStream<'s>,
    ) -> (VecCollection<'s, Epoch, D>, Before),
    F: Send + Sync + 'static,
{
    let captured = Arc::new(Mutex::new(BTreeMap::<u64, Vec<Record>>::new()));
    let first = from.as_ref().map_or(Epoch(0), |from| from.epoch.next());
    let records = Arc::clone(&captured);
    let mut changes = run_from(first, workers, &rounds[first.0 as usize..], move |events, control| {
        let scope = events.inner.scope();
        let captures = match &from {
            None => Captures::new(scope),
            Some(checkpoint) => Captures::restore(scope, checkpoint.clone()),
        };
        let built = build(&captures, events, control);
        let records = Arc::clone(&records);
        captures.finish().expect("the checkpoint is valid").inspect_core(move |seen| {
            if let Ok((stamp, new)) = seen {
                let epoch = stamp.least().expect("records have an epoch").0;
                records.lock().expect("no panic").entry(epoch).or_default().extend_from_slice(new);
            }
        });
        built
    });
    consolidation::consolidate_updates(&mut changes);
    let captured = std::mem::take(&mut *captured.lock().expect("no panic"));
    Outcome { changes, captured }
}

/// Applies the records up to `epoch` to an earlier state.
pub fn merge(mut state: State, captured: &BTreeMap<u64, Vec<Record>>, epoch: u64) -> State {
    for record in captured.range(..=epoch).flat_map(|(_, records)| records).cloned() {
        let name = (record.operator, record.shard, record.key);
        match record.value {
            Some(value) => state.insert(name, value),
            None => state.remove(&name),
        };
    }
    state
}

pub fn checkpoint(state: &State, rounds: &[Round], epoch: u64) -> Checkpoint {
    let watermark = EventTime(watermarks(rounds)[epoch as usize]);
    let record = |((operator, shard, key), value): (&Name, &Vec<u8>)| Record {
        operator: Arc::clone(operator),
        shard: *shard,
        key: key.clone(),
        value: Some(value.clone()),
    };
    Checkpoint { epoch: Epoch(epoch), watermark, records: state.iter().map(record).collect() }
}

/// Returns the entries of one state that another does not have, or has with another value. The times of a frequency lie in a
/// ring, which may start elsewhere after steps were repeated, so of these operators only the lengths are compared.
fn beyond<'a>(one: &'a State, other: &State) -> Vec<(&'a Name, &'a Vec<u8>)> {
    let has_ring = |name: &Name| ["Now", "Final", "Some"].contains(&&*name.0);
    let is_same = |name: &Name, value: &Vec<u8>| {
        let other = other.get(name);
        other == Some(value) || has_ring(name) && other.map(Vec::len) == Some(value.len())
    };
    one.iter().filter(|(name, value)| !is_same(name, value)).collect()
}

pub fn after<D: Data>(changes: &Changes<D>, epoch: u64) -> Changes<D> {
    changes.iter().filter(|change| change.1 > epoch).cloned().collect()
}

#[test]
fn a_restored_dataflow_has_the_output_of_an_uninterrupted_one() {
    let (streams, restored, revoked) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let cases = (rounds(), prop::collection::vec(any::<bool>(), 16), prop::array::uniform3(1..=3usize));
    let ttls = prop_oneof![2 => Just(None), 1 => Just(Some(45)), 1 => Just(Some(130))];
    let cases = (cases, ttls, any::<prop::sample::Index>());
    check(file!(), cases, |((mut rounds, marks, workers), ttl, chosen)| {
        // A checkpoint needs a control message.
        let said = watermarks(&rounds);
        for ((round, mark), watermark) in rounds.iter_mut().zip(&marks).zip(said) {
            round.watermark = if *mark { Some(watermark) } else { round.watermark };
        }
        let plain = run(&rounds, workers[0], ttl, None);
        prop_assert!(plain.captured.is_empty(), "state was captured without a request");
        rounds.iter_mut().zip(&marks).for_each(|(round, mark)| round.checkpoint = *mark);
        let through = run(&rounds, workers[1], ttl, None);
        prop_assert_eq!(&through.changes, &plain.changes, "capture changed the output");

        let marked: Vec<u64> =
            (0..rounds.len()).filter(|&at| rounds[at].checkpoint).map(|at| at as u64).collect();
        prop_assume!(!marked.is_empty());
        streams.set(streams.get() + 1);
        let first = marked[chosen.index(marked.len())];
        let state = merge(State::new(), &through.captured, first);
        let again = run(&rounds, workers[2], ttl, Some(checkpoint(&state, &rounds, first)));
        restored.set(restored.get() + state.len());
        revoked.set(revoked.get() + again.changes.iter().filter(|change| change.2 < 0).count());
        prop_assert_eq!(&again.changes, &after(&through.changes, first), "restored from epoch {}", first);

        // Later captures are also those of an uninterrupted dataflow. This does not hold with a time to live, because
        // each worker evicts expired keys at its own time.
        let marked = if ttl.is_some() { Vec::new() } else { marked };
        for &later in marked.iter().filter(|epoch| **epoch > first) {
            let resumed = merge(state.clone(), &again.captured, later);
            let uninterrupted = merge(State::new(), &through.captured, later);
            let (more, less) = (beyond(&resumed, &uninterrupted), beyond(&uninterrupted, &resumed));
            prop_assert!(
                more.is_empty() && less.is_empty(),
                "captured at {later}, restored from {first}: {more:?} instead of {less:?}"
            );
        }
        Ok(())
    });
    println!(
        "{} streams, {} records restored, {} retractions after",
        streams.get(),
        restored.get(),
        revoked.get()
    );
    assert!(
        restored.get() > 0 && revoked.get() > 0,
        "the streams have no restored records or no retractions"
    );
}

/// Returns the path of the recorded state of a version: of all operators (`state`), or of a rule set (`rule-set`).
pub fn recorded_path(what: &str, version: u8) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/specification/recorded");
    folder.join(format!("{what}-{version}.txt"))
}

/// Formats a state, with a line for each record: operator, shard, key and value.
pub fn format_state(state: &State) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let line = |((operator, shard, key), value): (&Name, &Vec<u8>)| {
        format!("{operator}\t{}\t{}\t{}\n", shard.0, hex(key), hex(value))
    };
    state.iter().map(line).collect()
}

pub fn parse_state(text: &str) -> Option<State> {
    let bytes = |hex: &str| -> Option<Vec<u8>> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect()
    };
    let record = |line: &str| match line.split('\t').collect::<Vec<_>>()[..] {
        [operator, shard, key, value] => {
            Some(((Arc::from(operator), ShardId(shard.parse().ok()?), bytes(key)?), bytes(value)?))
        }
        _ => None,
    };
    text.lines().map(record).collect()
}

/// The recorded state of every version is kept forever. After a version increase, run `HEADWATER_RECORD=1 cargo test` to
/// record the state of the new version.
#[test]
fn recorded_state_of_every_version_is_restored() {
    let mut rounds = recorded_input(include_str!("recorded/input.txt")).expect("the recorded input is valid");
    let half = rounds.len() / 2;
    rounds[half].checkpoint = true;
    let uninterrupted = run(&rounds, 2, None, None);
    let state = merge(State::new(), &uninterrupted.captured, half as u64);
    let today = recorded_path("state", STATE_VERSION);
    if std::env::var_os("HEADWATER_RECORD").is_some() && !today.exists() {
        std::fs::write(&today, format_state(&state)).expect("the recorded state is writable");
    }
    let text = std::fs::read_to_string(&today).expect("the state is recorded");
    let differs = text
        .lines()
        .zip(format_state(&state).lines())
        .find(|(was, is)| was != is)
        .map(|(was, _)| was.to_owned());
    assert!(text == format_state(&state), "the state format has changed without a new version: {differs:?}");
    for version in 1..=STATE_VERSION {
        let text = std::fs::read_to_string(recorded_path("state", version))
            .expect("the state of the version is recorded");
        let state = parse_state(&text).expect("the recorded state is valid");
        let again = run(&rounds, 3, None, Some(checkpoint(&state, &rounds, half as u64)));
        assert_eq!(
            again.changes,
            after(&uninterrupted.changes, half as u64),
            "restored from state of version {version}"
        );
        assert!(again.changes.len() > 10, "there are too few changes after the checkpoint");
    }
}

/// The events of the key were un-final at the previous mark, so it must be captured again. By then it has another slot.
#[test]
fn an_expired_key_that_returns_is_captured() {
    let event = |key, time, offset| Tx::plain(key, time, offset);
    let mut rounds = vec![
        Round::of(&[event(11, 1, 2), event(11, 11, 14)], -16),
        Round::of(&[event(3, 60, 33)], -10),
        Round::of(&[], 72),
        Round::of(&[event(11, 84, 64)], 81),
        Round::of(&[event(11, 93, 70)], 81),
        Round::of(&[event(11, 94, 71)], 81),
    ];
    let marks = [1, 3];
    marks.iter().for_each(|&at: &usize| rounds[at].checkpoint = true);
    for steps in 0..4 {
        rounds.iter_mut().for_each(|round| round.steps = steps);
        let through = run(&rounds, 1, Some(45), None);
        let state = merge(State::new(), &through.captured, 3);
        let again = run(&rounds, 1, Some(45), Some(checkpoint(&state, &rounds, 3)));
        assert_eq!(again.changes, after(&through.changes, 3), "{steps} steps per epoch");
    }
}

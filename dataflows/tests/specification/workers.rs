//! The same input gives the same output on one, two and three workers, byte for byte.
//!
//! The tests compare the changes that an operator emits for one key in one epoch, in the order of emission, neither
//! sorted nor consolidated. Changes of different keys have no defined order: keys are on different workers, and on each
//! worker they are ordered by their first events. Therefore lines are grouped by epoch, operator and key, and compared
//! as text with each other and with the output recorded in the repository.

use std::fmt::Write;
use std::path::Path;

use differential_dataflow::{AsCollection, VecCollection};
use headwater_dataflows::windows::{EmitPolicy, Session, Sliding, Tumbling};
use headwater_dataflows::{Accumulate, Admit, ControlStream, Emission, Epoch, Missing, Refused, Rule, Scan};
use proptest::prelude::*;
use timely::dataflow::operators::vec::Map;

use crate::event::Tx;
use crate::harness::{Changes, Seen, check, run};
use crate::scan::{ADMISSION, deviation, diversity, frequency, journey, outlier, rate, travel, variety};
use crate::sequences::{missing, offsets, unplaced, unrelated};
use crate::spec::patterns::Answer;
use crate::streams::{Round, rounds};
use crate::windows::{row, statistics};

/// An output of an operator for a key: operator, key and text.
type Said = (&'static str, u16, String);

/// Builds every operator.
fn everything<'s>(
    events: VecCollection<'s, Epoch, Tx>,
    control: ControlStream<'s>,
) -> VecCollection<'s, Epoch, Said> {
    use Emission::{Final, Immediate};
    let (keyed, refused) = events.admit(control, ADMISSION);
    let patterns = (
        Rule::new(frequency(), Immediate, rate),
        (Rule::new(diversity(), Final, variety), (Rule::new(outlier(), Immediate, deviation), ())),
    );
    let others = (Rule::new(travel(), Final, journey), (Rule::new(unrelated(), Immediate, offsets), ()));
    let emit = EmitPolicy::Early { epochs: 2 };
    let seen = |_: Epoch, seen: &mut u64, event: &Tx, out: &mut Vec<Said>| {
        *seen += 1;
        out.push(("running", event.key, format!("{seen} at {}", event.offset)));
    };
    let answers = [
        ("patterns", keyed.clone().scan_all("Patterns", patterns)),
        ("others", keyed.clone().scan_all("Others", others)),
        ("absence", keyed.clone().scan_all("Absence", (Missing::new(unplaced(), missing(15)), ()))),
    ];
    let windows = [
        ("tumbling", keyed.clone().tumbling("Tumbling", 16, emit, statistics(), row)),
        ("sliding", keyed.clone().sliding("Sliding", 20, 10, emit, statistics(), row)),
        ("session", keyed.clone().session("Session", 9, emit, statistics(), row)),
    ];
    let running = keyed.accumulate("Running", seen);
    let running = running.flat_map(|(epoch, all)| all.into_iter().map(move |one| (one, epoch, 1)));
    let answers = answers.into_iter().map(|(operator, answers)| {
        answers.map(move |Answer { key, time, offset, found, .. }| {
            (operator, key, format!("{offset} at {time}: {found:?}"))
        })
    });
    let windows = windows.into_iter().map(|(operator, rows)| {
        rows.map(move |(row, closed)| {
            let closed = if closed { ", closed" } else { "" };
            let said = format!("{} to {}: count {}, sum {}{closed}", row.start, row.end, row.count, row.sum);
            (operator, row.key, said)
        })
    });
    let refused = refused.map(|Refused { event, refusal }: Refused<Tx>| {
        ("refused", event.key, format!("{} at {}: {refusal:?}", event.offset, event.time))
    });
    refused.concatenate(answers.chain(windows).chain([running.as_collection()]))
}

/// Returns the output on `workers` workers as text, grouped, with each group in the order of emission.
fn text(workers: usize, rounds: &[Round]) -> (String, Changes<Said>) {
    let changes = run(workers, rounds, everything);
    let mut lines: Vec<_> = changes.iter().collect();
    lines.sort_by_key(|((operator, key, _), epoch, _)| (*epoch, *operator, *key));
    let mut text = String::new();
    for ((operator, key, said), epoch, diff) in lines {
        writeln!(text, "{epoch} {operator} {key} {diff:+} {said}")
            .expect("writing to a string does not fail");
    }
    (text, changes)
}

#[test]
fn the_number_of_workers_does_not_change_the_output() {
    let seen = Seen::default();
    check(file!(), rounds(), |rounds| {
        let (one, changes) = text(1, &rounds);
        seen.note(&changes);
        prop_assert_eq!(&one, &text(2, &rounds).0);
        prop_assert_eq!(&one, &text(3, &rounds).0);
        Ok(())
    });
    seen.demand("one, two and three workers", 3000, 1000);
}

/// Parses recorded input: a line for each inserted (`+`) or retracted (`-`) event, and a line for each end of an epoch.
pub fn recorded_input(text: &str) -> Option<Vec<Round>> {
    let mut rounds = vec![Round::changing(Vec::new(), i64::MIN)];
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let round = rounds.last_mut()?;
        match fields[..] {
            ["epoch", "ends", "with", "watermark", watermark] => {
                round.watermark = Some(watermark.parse().ok()?);
                rounds.push(Round::changing(Vec::new(), i64::MIN));
            }
            [sign @ ("+" | "-"), key, time, partition, offset, id, amount, merchant, place] => {
                let event = Tx {
                    key: key.parse().ok()?,
                    time: time.parse().ok()?,
                    partition: partition.parse().ok()?,
                    offset: offset.parse().ok()?,
                    id: id.parse().ok().map(|id| [key.parse().unwrap_or(0), id]),
                    amount: amount.parse().ok(),
                    merchant: merchant.parse().ok(),
                    place: place.parse().ok(),
                };
                round.updates.push((event, if sign == "+" { 1 } else { -1 }));
            }
            _ => return None,
        }
    }
    rounds.pop();
    Some(rounds)
}

/// After an intended change of the output, `HEADWATER_RECORD=1 cargo test` records it again.
#[test]
fn recorded_input_gives_the_recorded_output() {
    let output = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/specification/recorded/output.txt");
    let rounds = recorded_input(include_str!("recorded/input.txt")).expect("the recorded input is valid");
    if std::env::var_os("HEADWATER_RECORD").is_some() {
        std::fs::write(&output, text(1, &rounds).0).expect("the recorded output is writable");
    }
    let want = std::fs::read_to_string(&output).expect("the output is recorded");
    for workers in 1..=3 {
        let (got, _) = text(workers, &rounds);
        let differs = got.lines().zip(want.lines()).position(|(got, want)| got != want);
        let at = differs.unwrap_or(got.lines().count().min(want.lines().count()));
        let line = |text: &str| text.lines().nth(at).unwrap_or("the end").to_owned();
        assert!(got == want, "{workers} workers, line {}: {}\nrecorded: {}", at + 1, line(&got), line(&want));
    }
}

//! A harness for tests and examples, with manual events and watermarks, that returns every change of the result.

mod kit;

use std::sync::{Arc, Mutex};

use differential_dataflow::input::InputSession;
use differential_dataflow::{ExchangeData, VecCollection, consolidation};
use serde::{Deserialize, Serialize};
use timely::dataflow::operators::Inspect;

use crate::{Clock, ControlStream, Epoch, Event, EventTime, Offset, Partition, Position};

pub use kit::Kit;

/// A small event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Line {
    /// The key.
    pub key: String,
    /// The event time in milliseconds.
    pub time: i64,
    /// The offset in the only partition.
    pub offset: i64,
    /// The id for deduplication.
    pub id: String,
}

impl Line {
    /// Returns a function that makes a line with this key and id, given its time and position.
    pub fn of(key: &str, id: &str) -> impl FnOnce(EventTime, Position) -> Line {
        let (key, id) = (key.to_owned(), id.to_owned());
        move |time, position| Line { key, time: time.0, offset: position.offset.0, id }
    }
}

impl From<(&str, i64, i64, &str)> for Line {
    fn from((key, time, offset, id): (&str, i64, i64, &str)) -> Line {
        Line { key: key.to_owned(), time, offset, id: id.to_owned() }
    }
}

impl Event for Line {
    type Key = str;
    fn key(&self) -> &str {
        &self.key
    }
    fn time(&self) -> EventTime {
        EventTime(self.time)
    }
    fn position(&self) -> Position {
        Position { partition: Partition(0), offset: Offset(self.offset) }
    }
    fn id(&self) -> Option<&[u8]> {
        Some(self.id.as_bytes())
    }
}

/// Runs a dataflow over epochs of [`Line`]s, each with its watermark; see [`run_updates`].
pub fn run<D, L, F>(workers: usize, build: F, epochs: Vec<(Vec<L>, i64)>) -> Vec<(D, u64, isize)>
where
    D: ExchangeData,
    L: Into<Line>,
    F: for<'s> Fn(VecCollection<'s, Epoch, Line>, ControlStream<'s>) -> VecCollection<'s, Epoch, D>,
    F: Send + Sync + 'static,
{
    let updates = |lines: Vec<L>| lines.into_iter().map(|line| (line.into(), 1)).collect();
    run_updates(workers, build, epochs.into_iter().map(|(lines, w)| (updates(lines), EventTime(w))).collect())
}

/// Runs a dataflow on `workers` workers over epochs of updates, each with its watermark, and then over one more epoch
/// in which the watermark advances to infinity. Returns every change of the result as (result, epoch, diff),
/// consolidated and sorted.
///
/// # Panics
/// Panics if a worker panics.
pub fn run_updates<E, D, F>(
    workers: usize,
    build: F,
    epochs: Vec<(Vec<(E, isize)>, EventTime)>,
) -> Vec<(D, u64, isize)>
where
    E: Event + ExchangeData + Sync,
    D: ExchangeData,
    F: for<'s> Fn(VecCollection<'s, Epoch, E>, ControlStream<'s>) -> VecCollection<'s, Epoch, D>,
    F: Send + Sync + 'static,
{
    let changes = Arc::new(Mutex::new(Vec::new()));
    let results = Arc::clone(&changes);
    let guards = timely::execute(timely::Config::process(workers), move |worker| {
        let results = Arc::clone(&results);
        let (mut events, mut clock) = worker.dataflow::<Epoch, _, _>(|scope| {
            let mut events = InputSession::new();
            let (clock, control) = Clock::new(scope);
            let collected = build(events.to_collection(scope), control);
            collected.inner.inspect(move |(data, epoch, diff): &(D, Epoch, isize)| {
                results.lock().expect("no worker panicked").push((data.clone(), epoch.0, *diff));
            });
            (events, clock)
        });
        let mut epoch = Epoch(0);
        for (updates, watermark) in epochs.iter().chain([&(Vec::new(), EventTime::MAX)]) {
            // Every worker reads a share of the updates, like readers of partitions.
            let share = updates.iter().skip(worker.index()).step_by(worker.peers());
            share.for_each(|(event, diff)| events.update(event.clone(), *diff));
            if worker.index() == 0 {
                clock.end_epoch(*watermark);
            } else {
                clock.advance_to(epoch.next());
            }
            epoch = epoch.next();
            events.advance_to(epoch);
            events.flush();
            worker.step();
        }
    });
    for result in guards.expect("workers start").join() {
        result.expect("no worker panicked");
    }
    let mut changes = std::mem::take(&mut *changes.lock().expect("no worker panicked"));
    consolidation::consolidate_updates(&mut changes);
    changes
}

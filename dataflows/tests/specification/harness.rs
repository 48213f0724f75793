//! Runs a dataflow over a stream, and compares what comes out with what should.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use differential_dataflow::input::InputSession;
use differential_dataflow::{Data, VecCollection, consolidation};
use headwater_dataflows::{Clock, ControlStream, Epoch, EventTime};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use timely::dataflow::operators::Inspect;

use crate::event::Tx;
use crate::streams::Round;

/// Changes of a collection as they came, neither sorted nor consolidated: (result, epoch, diff).
pub type Changes<D> = Vec<(D, u64, isize)>;

/// What stands in a collection at the end of each epoch.
pub type Snapshots<D> = Vec<BTreeMap<D, isize>>;

/// Runs a dataflow over rounds on so many workers, and then over an epoch with the watermark at infinity.
///
/// # Panics
/// If a worker panics.
pub fn run<D, F>(workers: usize, rounds: &[Round], build: F) -> Changes<D>
where
    D: Data + Send,
    F: for<'s> Fn(VecCollection<'s, Epoch, Tx>, ControlStream<'s>) -> VecCollection<'s, Epoch, D>,
    F: Send + Sync + 'static,
{
    run_from(Epoch(0), workers, rounds, build)
}

/// As [`run`], the first of the rounds being that epoch.
///
/// # Panics
/// If a worker panics.
pub fn run_from<D, F>(first: Epoch, workers: usize, rounds: &[Round], build: F) -> Changes<D>
where
    D: Data + Send,
    F: for<'s> Fn(VecCollection<'s, Epoch, Tx>, ControlStream<'s>) -> VecCollection<'s, Epoch, D>,
    F: Send + Sync + 'static,
{
    let mut rounds = rounds.to_vec();
    rounds.push(Round::of(&[], i64::MAX));
    let changes = Arc::new(Mutex::new(Vec::new()));
    let results = Arc::clone(&changes);
    let failed = Arc::new(AtomicBool::new(false));
    let guards = timely::execute(timely::Config::process(workers), move |worker| {
        let alarm = Alarm(Arc::clone(&failed));
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
        clock.advance_to(first);
        events.advance_to(first);
        events.flush();
        for (epoch, round) in (first.0..).zip(&rounds) {
            // Every worker reads its share, as readers of partitions would.
            for (event, diff) in round.updates.iter().skip(worker.index()).step_by(worker.peers()) {
                events.update(event.clone(), *diff);
            }
            let next = Epoch(epoch + 1);
            match round.watermark {
                Some(watermark) if worker.index() == 0 && round.checkpoint => {
                    clock.checkpoint(EventTime(watermark));
                }
                Some(watermark) if worker.index() == 0 => clock.end_epoch(EventTime(watermark)),
                _ => clock.advance_to(next),
            }
            events.advance_to(next);
            events.flush();
            for _ in 0..round.steps {
                worker.step();
            }
        }
        drop((events, clock));
        // Until all is captured, too.
        while worker.step_or_park(Some(Duration::from_millis(1))) && !alarm.0.load(Ordering::Relaxed) {}
        // After a panic elsewhere nothing completes any more: let go, so that the test can say so.
        worker.installed_dataflows().into_iter().for_each(|dataflow| worker.drop_dataflow(dataflow));
    });
    for result in guards.expect("workers start").join() {
        result.expect("no worker panicked");
    }
    std::mem::take(&mut *changes.lock().expect("no worker panicked"))
}

/// Tells the other workers of a panic.
struct Alarm(Arc<AtomicBool>);

impl Drop for Alarm {
    fn drop(&mut self) {
        self.0.fetch_or(std::thread::panicking(), Ordering::Relaxed);
    }
}

/// What stands in a collection at the end of each epoch of so many rounds, and after the last.
pub fn snapshots<D: Data>(rounds: usize, changes: &[(D, u64, isize)]) -> Snapshots<D> {
    let mut by_epoch: BTreeMap<u64, Vec<(D, isize)>> = BTreeMap::new();
    for (data, epoch, diff) in changes {
        by_epoch.entry(*epoch).or_default().push((data.clone(), *diff));
    }
    let mut standing: BTreeMap<D, isize> = BTreeMap::new();
    let mut snapshots = Vec::new();
    for epoch in 0..=rounds as u64 {
        for (data, diff) in by_epoch.remove(&epoch).into_iter().flatten() {
            *standing.entry(data).or_default() += diff;
        }
        standing.retain(|_, count| *count != 0);
        snapshots.push(standing.clone());
    }
    assert!(by_epoch.is_empty(), "changes after the last epoch: {by_epoch:?}");
    snapshots
}

/// The watermark at the end of each epoch, and after the last.
pub fn watermarks(rounds: &[Round]) -> Vec<i64> {
    let said = rounds.iter().map(|round| round.watermark).chain([Some(i64::MAX)]);
    let newest = said.scan(i64::MIN, |newest, said| {
        *newest = said.unwrap_or(*newest);
        Some(*newest)
    });
    newest.collect()
}

/// Fails, with the first epoch that differs, unless two collections are the same at every epoch.
pub fn equal<D: Data>(what: &str, got: &Snapshots<D>, want: &Snapshots<D>) -> Result<(), TestCaseError> {
    prop_assert_eq!(got.len(), want.len());
    for (epoch, (got, want)) in got.iter().zip(want).enumerate() {
        let surplus = |one: &BTreeMap<D, isize>, other: &BTreeMap<D, isize>| -> Vec<(D, isize)> {
            let more = one.iter().map(|(data, n)| (data.clone(), n - other.get(data).unwrap_or(&0)));
            more.filter(|(_, n)| *n > 0).collect()
        };
        let (wrong, missing) = (surplus(got, want), surplus(want, got));
        prop_assert!(
            wrong.is_empty() && missing.is_empty(),
            "{what}, epoch {epoch}:\n  wrong:   {wrong:?}\n  missing: {missing:?}"
        );
    }
    Ok(())
}

/// What the streams of a property have exercised. A test that exercises nothing shows nothing.
#[derive(Default)]
pub struct Seen {
    streams: Cell<usize>,
    given: Cell<usize>,
    revoked: Cell<usize>,
}

impl Seen {
    /// Notes what came of one more stream: changes, of which those that cancel within an epoch count for nothing.
    pub fn note<D: Data>(&self, changes: &Changes<D>) {
        let mut changes = changes.clone();
        consolidation::consolidate_updates(&mut changes);
        let revoked = changes.iter().filter(|(_, _, diff)| *diff < 0).count();
        self.streams.set(self.streams.get() + 1);
        self.given.set(self.given.get() + changes.len() - revoked);
        self.revoked.set(self.revoked.get() + revoked);
    }

    /// How many streams there were.
    pub fn streams(&self) -> usize {
        self.streams.get()
    }

    /// Demands so many results given and so many revoked: see [`demand`].
    pub fn demand(&self, what: &str, given: usize, revoked: usize) {
        let counts = [("given", self.given.get(), given), ("revoked", self.revoked.get(), revoked)];
        demand(what, self.streams.get(), &counts);
    }
}

/// The number of streams that [`check`] tries unless told otherwise.
const STREAMS: usize = 64;

/// Says how often each thing was seen in so many streams, and demands that often at the least in every 64 of them.
///
/// The least is a small part of what the generator gives: it fails when that kind of stream is no longer produced.
#[track_caller]
pub fn demand(what: &str, streams: usize, counts: &[(&str, usize, usize)]) {
    let said: Vec<String> = counts.iter().map(|(thing, count, _)| format!("{count} {thing}")).collect();
    println!("{what}: {streams} streams, {}", said.join(", "));
    for (thing, count, least) in counts {
        let least = least * streams / STREAMS;
        assert!(*count >= least, "{what}: {count} {thing} in {streams} streams, not even {least}");
    }
}

/// Tries a property on random input; `file` is the caller's `file!()`, beside which failures are kept.
pub fn check<S: Strategy>(
    file: &'static str,
    strategy: S,
    property: impl Fn(S::Value) -> Result<(), TestCaseError>,
) where
    S::Value: Debug,
{
    let set = std::env::var_os("PROPTEST_CASES").is_some();
    let cases = if set { Config::default().cases } else { STREAMS as u32 };
    let mut runner = TestRunner::new(Config { cases, ..Config::with_source_file(file) });
    if let Err(failure) = runner.run(&strategy, property) {
        panic!("{failure}\n{runner}");
    }
}

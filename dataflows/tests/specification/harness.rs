//! Functions that run a dataflow over a stream and compare its output with the expected output.

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
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use timely::dataflow::operators::Inspect;

use crate::event::Tx;
use crate::streams::Round;

/// Changes of a collection in the order of emission, not consolidated: (result, epoch, diff).
pub type Changes<D> = Vec<(D, u64, isize)>;

/// The contents of a collection at the end of each epoch.
pub type Snapshots<D> = Vec<BTreeMap<D, isize>>;

/// Runs a dataflow over epochs of input on `workers` workers, and then over an epoch with the watermark at infinity.
///
/// # Panics
/// Panics if a worker panics.
pub fn run<D, F>(workers: usize, rounds: &[Round], build: F) -> Changes<D>
where
    D: Data + Send,
    F: for<'s> Fn(VecCollection<'s, Epoch, Tx>, ControlStream<'s>) -> VecCollection<'s, Epoch, D>,
    F: Send + Sync + 'static,
{
    run_from(Epoch(0), workers, rounds, move |events, control| (build(events, control), Box::new(|_| ())))
}

/// A function that each worker calls before it reads an epoch.
pub type Before = Box<dyn FnMut(Epoch)>;

/// Like [`run`], with `first` as the first epoch, and a function to be called before each epoch.
///
/// # Panics
/// Panics if a worker panics.
pub fn run_from<D, F>(first: Epoch, workers: usize, rounds: &[Round], build: F) -> Changes<D>
where
    D: Data + Send,
    F: for<'s> Fn(VecCollection<'s, Epoch, Tx>, ControlStream<'s>) -> (VecCollection<'s, Epoch, D>, Before),
    F: Send + Sync + 'static,
{
    let mut rounds = rounds.to_vec();
    rounds.push(Round::of(&[], i64::MAX));
    let changes = Arc::new(Mutex::new(Vec::new()));
    let results = Arc::clone(&changes);
    let failed = Arc::new(AtomicBool::new(false));
    let guards = timely::execute(timely::Config::process(workers), move |worker| {
        let panicked = PanicFlag(Arc::clone(&failed));
        let results = Arc::clone(&results);
        let (mut events, mut clock, mut before) = worker.dataflow::<Epoch, _, _>(|scope| {
            let mut events = InputSession::new();
            let (clock, control) = Clock::new(scope);
            let (collected, before) = build(events.to_collection(scope), control);
            collected.inner.inspect(move |(data, epoch, diff): &(D, Epoch, isize)| {
                results.lock().expect("no worker panicked").push((data.clone(), epoch.0, *diff));
            });
            (events, clock, before)
        });
        clock.advance_to(first);
        events.advance_to(first);
        events.flush();
        for (epoch, round) in (first.0..).zip(&rounds) {
            before(Epoch(epoch));
            // Every worker reads a share of the updates, like readers of partitions.
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
        // Also run until all state is captured.
        while worker.step_or_park(Some(Duration::from_millis(1))) && !panicked.0.load(Ordering::Relaxed) {}
        // After a panic of another worker nothing completes: drop the dataflows, so that the test can fail.
        worker.installed_dataflows().into_iter().for_each(|dataflow| worker.drop_dataflow(dataflow));
    });
    for result in guards.expect("workers start").join() {
        result.expect("no worker panicked");
    }
    std::mem::take(&mut *changes.lock().expect("no worker panicked"))
}

/// A flag that is set for the other workers when a worker panics.
struct PanicFlag(Arc<AtomicBool>);

impl Drop for PanicFlag {
    fn drop(&mut self) {
        self.0.fetch_or(std::thread::panicking(), Ordering::Relaxed);
    }
}

/// Returns the contents of a collection at the end of each of `rounds` epochs, and after the last.
pub fn snapshots<D: Data>(rounds: usize, changes: &[(D, u64, isize)]) -> Snapshots<D> {
    let mut by_epoch: BTreeMap<u64, Vec<(D, isize)>> = BTreeMap::new();
    for (data, epoch, diff) in changes {
        by_epoch.entry(*epoch).or_default().push((data.clone(), *diff));
    }
    let mut contents: BTreeMap<D, isize> = BTreeMap::new();
    let mut snapshots = Vec::new();
    for epoch in 0..=rounds as u64 {
        for (data, diff) in by_epoch.remove(&epoch).into_iter().flatten() {
            *contents.entry(data).or_default() += diff;
        }
        contents.retain(|_, count| *count != 0);
        snapshots.push(contents.clone());
    }
    assert!(by_epoch.is_empty(), "changes after the last epoch: {by_epoch:?}");
    snapshots
}

/// Returns the watermark at the end of each epoch, and after the last.
pub fn watermarks(rounds: &[Round]) -> Vec<i64> {
    let controls = rounds.iter().map(|round| round.watermark).chain([Some(i64::MAX)]);
    let newest = controls.scan(i64::MIN, |newest, watermark| {
        *newest = watermark.unwrap_or(*newest);
        Some(*newest)
    });
    newest.collect()
}

/// Fails at the first epoch at which two collections differ.
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

/// The counts of streams and results of a property. A test with too few results proves nothing.
#[derive(Default)]
pub struct Seen {
    streams: Cell<usize>,
    emitted: Cell<usize>,
    revoked: Cell<usize>,
}

impl Seen {
    /// Adds the changes of one stream. Changes that cancel within an epoch are not counted.
    pub fn note<D: Data>(&self, changes: &Changes<D>) {
        let mut changes = changes.clone();
        consolidation::consolidate_updates(&mut changes);
        let revoked = changes.iter().filter(|(_, _, diff)| *diff < 0).count();
        self.streams.set(self.streams.get() + 1);
        self.emitted.set(self.emitted.get() + changes.len() - revoked);
        self.revoked.set(self.revoked.get() + revoked);
    }

    /// Returns the number of streams.
    pub fn streams(&self) -> usize {
        self.streams.get()
    }

    /// Requires minimum numbers of emitted and revoked results: see [`demand`].
    pub fn demand(&self, what: &str, emitted: usize, revoked: usize) {
        let counts = [("emitted", self.emitted.get(), emitted), ("revoked", self.revoked.get(), revoked)];
        demand(what, self.streams.get(), &counts);
    }
}

/// The default number of streams that [`check`] tries.
const STREAMS: usize = 64;

/// The seed of the streams that are the same in every run. With it, they have all results that any test demands.
const SEED: [u8; 32] = [1; 32];

/// Prints the counts of several kinds of results, passed as (kind, count, minimum), and requires the minimum for every
/// 64 streams.
///
/// The same half of the streams in every run (see [`check`]) has the minimum, so this fails only if the generator no
/// longer produces such streams, and not by chance.
#[track_caller]
pub fn demand(what: &str, streams: usize, counts: &[(&str, usize, usize)]) {
    let parts: Vec<String> = counts.iter().map(|(thing, count, _)| format!("{count} {thing}")).collect();
    println!("{what}: {streams} streams, {}", parts.join(", "));
    for (thing, count, least) in counts {
        let least = least * streams / STREAMS;
        assert!(*count >= least, "{what}: {count} {thing} in {streams} streams, fewer than {least}");
    }
}

/// Tests a property on random input: half of the inputs are the same in every run, so that they alone can give the
/// results that [`demand`] requires. `file` is the caller's `file!()`, beside which failures are stored.
pub fn check<S: Strategy>(
    file: &'static str,
    strategy: S,
    property: impl Fn(S::Value) -> Result<(), TestCaseError>,
) where
    S::Value: Debug,
{
    let set = std::env::var_os("PROPTEST_CASES").is_some();
    let cases = if set { Config::default().cases } else { STREAMS as u32 };
    let fixed = Config { cases: cases / 2, failure_persistence: None, ..Config::default() };
    let fixed = TestRunner::new_with_rng(fixed, TestRng::from_seed(RngAlgorithm::ChaCha, &SEED));
    let random = TestRunner::new(Config { cases: cases - cases / 2, ..Config::with_source_file(file) });
    for mut runner in [fixed, random] {
        if let Err(failure) = runner.run(&strategy, &property) {
            panic!("{failure}\n{runner}");
        }
    }
}

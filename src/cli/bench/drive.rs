//! A driver that feeds a dataflow with events from memory at full speed, without source, sinks or clock.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use differential_dataflow::input::InputSession;
use differential_dataflow::{AsCollection, VecCollection};
use headwater_dataflows::{
    Captures, Clock, ControlStream, Epoch, EventTime, KeyHash, Offset, Partition, Position,
};
use timely::dataflow::StreamVec;
use timely::dataflow::operators::generic::operator::empty;
use timely::dataflow::operators::{Inspect, Probe};

use super::usage;
use crate::config::Config;
use crate::decode::{Decoder, JsonDecoder};
use crate::event::Event;
use crate::metrics::Metrics;
use crate::outputs::{OutputMapping, SinkEncoding, SinkRoute};
use crate::pipeline::{Inputs, Plan, RuleHistory, compute};
use crate::source::Raw;
use crate::source::generator::{GeneratorSettings, RecordMaker};

/// The number of events per epoch: those of 10 ms at 600,000 events per second.
pub const EPOCH: usize = 6000;

/// The maximum number of epochs between the input and the results.
const IN_FLIGHT: u64 = 4;

/// The parameters of a driven dataflow.
#[derive(Clone, Copy, Debug)]
pub struct Drive {
    /// The number of workers.
    pub workers: usize,
    /// The lag of the watermark behind the newest event, in milliseconds of event time.
    pub behind_ms: i64,
    /// True to advance the watermark to its maximum at the end, so that all windows close.
    pub close: bool,
}

/// The time that a run took, and the number of its results.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// The wall time from the first event to the last result.
    pub wall: Duration,
    /// The CPU time of all workers; None if the kernel does not report it.
    pub cpu: Option<Duration>,
    /// The number of results.
    pub results: u64,
}

/// Returns the plan of a pipeline with these sections of a configuration.
///
/// # Panics
/// If they are invalid.
pub fn plan(sections: &str) -> Plan {
    let text = format!("pipeline = \"bench\"\n[source]\nkind = \"generator\"\n{sections}\n[sinks.kafka]\n");
    Config::parse(&text, std::iter::empty()).expect("the sections are valid").plan
}

/// Returns the generator's settings for an ordered stream without invalid or duplicate records.
pub fn in_order() -> GeneratorSettings {
    GeneratorSettings {
        disorder: 0.0,
        late: 0.0,
        duplicates: 0.0,
        malformed: 0.0,
        invalid: 0.0,
        ..GeneratorSettings::default()
    }
}

/// Returns the events of the first `records` records of a generated stream. The records are taken from the partitions
/// in turn.
pub fn events(settings: GeneratorSettings, records: usize) -> Vec<Event> {
    let partitions = settings.partitions as usize;
    let mut maker = RecordMaker::new(settings);
    let mut decoder = JsonDecoder::default();
    let event = |at: usize| {
        let (partition, offset) = ((at % partitions) as u32, (at / partitions) as u64);
        let timestamp = maker.make(partition, offset, None);
        let position = Position { partition: Partition(partition), offset: Offset(offset as i64) };
        let raw = Raw {
            position,
            timestamp,
            key: Some(&maker.key),
            value: Some(&maker.value),
            retries: 0,
            producer: None,
        };
        decoder.decode(raw).ok()
    };
    (0..records).filter_map(event).collect()
}

/// Reorders events as if a random share of them arrived up to `disorder_ms` milliseconds of event time late.
pub fn disordered(mut events: Vec<Event>, share: f64, disorder_ms: i64) -> Vec<Event> {
    let arrival = |event: &Event| {
        // Hash the event id, so that the random numbers are the same in every run.
        let random = |seed| KeyHash::of_seeded(event.id().as_bytes(), seed).0 as f64 / u64::MAX as f64;
        let late = if random(1) < share { (random(2) * disorder_ms as f64) as i64 } else { 0 };
        event.event_time().plus_ms(late)
    };
    if disorder_ms > 0 {
        events.sort_by_cached_key(arrival);
    }
    events
}

/// The input of one worker: the events of its partitions, by epoch.
type Share = Vec<Vec<Event>>;

impl Drive {
    /// Runs the dataflow that `build` constructs over `events`, with [`EPOCH`] events per epoch.
    ///
    /// # Panics
    /// If a worker panics.
    pub fn run<D, F>(self, events: &[Event], build: F) -> Spent
    where
        D: Clone + 'static,
        F: for<'s> Fn(VecCollection<'s, Epoch, Event>, ControlStream<'s>) -> StreamVec<'s, Epoch, D>,
        F: Send + Sync + 'static,
    {
        let shares = shares(events, self.workers);
        let shares: Arc<Vec<_>> = Arc::new(shares.into_iter().map(|share| Mutex::new(Some(share))).collect());
        let watermarks = self.watermarks(events);
        let start = Arc::new(Barrier::new(self.workers));
        let guards = timely::execute(timely::Config::process(self.workers), move |worker| {
            let share = shares[worker.index()]
                .lock()
                .expect("no thread panics while it holds the lock")
                .take()
                .unwrap_or_default();
            let results = Rc::new(Cell::new(0u64));
            let counted = Rc::clone(&results);
            let (mut input, mut clock, probe) = worker.dataflow::<Epoch, _, _>(|scope| {
                let mut input = InputSession::new();
                let (clock, control) = Clock::new(scope);
                let out = build(input.to_collection(scope), control);
                let (probe, _) = out.inspect(move |_| counted.set(counted.get() + 1)).probe();
                (input, clock, probe)
            });
            start.wait();
            let (started, cpu_before) = (Instant::now(), usage::thread_cpu());
            let mut epoch = Epoch(0);
            for (events, &watermark) in share.into_iter().chain([Vec::new()]).zip(&watermarks) {
                events.into_iter().for_each(|event| input.insert(event));
                epoch = epoch.next();
                match worker.index() {
                    0 => clock.end_epoch(watermark),
                    _ => clock.advance_to(epoch),
                }
                input.advance_to(epoch);
                input.flush();
                worker.step();
                while probe.less_than(&Epoch(epoch.0.saturating_sub(IN_FLIGHT))) {
                    worker.step();
                }
            }
            drop((input, clock));
            while !probe.done() {
                worker.step();
            }
            let cpu = usage::thread_cpu().zip(cpu_before).map(|(now, before)| now - before);
            Spent { wall: started.elapsed(), cpu, results: results.get() }
        });
        let all = guards.expect("workers start").join().into_iter();
        let none = Spent { cpu: Some(Duration::ZERO), ..Spent::default() };
        all.map(|spent| spent.expect("no worker panics")).fold(none, |all, one| Spent {
            wall: all.wall.max(one.wall),
            cpu: all.cpu.zip(one.cpu).map(|(all, one)| all + one),
            results: all.results + one.results,
        })
    }

    /// Runs the dataflow of a plan over `events`, into encoded outputs, without capturing state. Rows of windows are made for a
    /// sink of messages, in which they have no form.
    ///
    /// # Panics
    /// If a worker panics.
    pub fn run_plan(self, events: &[Event], plan: &Plan) -> Spent {
        let (plan, history, metrics) = (plan.clone(), RuleHistory::of(plan), Arc::new(Metrics::default()));
        let windows = OutputMapping { windows: Some(0), ..OutputMapping::default() };
        let routes = Arc::from([SinkRoute::to_all(SinkEncoding::Messages(windows, usize::MAX))]);
        self.run(events, move |events, control| {
            let scope = events.inner.scope();
            let (rejected, captures) = (empty(scope).as_collection(), Captures::off(scope));
            let inputs = Inputs { events, rejected, control, refused: None };
            compute(inputs, &captures, &plan, &history, &routes, &metrics, None).encoded
        })
    }

    /// Returns the watermark of each epoch, and of one further epoch if all windows are to close.
    pub fn watermarks(self, events: &[Event]) -> Vec<EventTime> {
        let mut newest = EventTime::MIN;
        let mut watermarks = Vec::with_capacity(events.len() / EPOCH + 2);
        for epoch in events.chunks(EPOCH) {
            newest = epoch.iter().map(Event::event_time).fold(newest, EventTime::max);
            watermarks.push(newest.minus_ms(self.behind_ms + 1));
        }
        watermarks.extend(self.close.then_some(EventTime::MAX));
        watermarks
    }
}

/// Divides the events among the workers by partition.
fn shares(events: &[Event], workers: usize) -> Vec<Share> {
    let mut shares: Vec<Share> = vec![Vec::new(); workers];
    for epoch in events.chunks(EPOCH) {
        for (worker, share) in shares.iter_mut().enumerate() {
            let is_own = |event: &&Event| event.position().partition.0 as usize % workers == worker;
            share.push(epoch.iter().filter(is_own).cloned().collect());
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use headwater_dataflows::windows::{EmitPolicy, Statistics, Tumbling};
    use headwater_dataflows::{Admission, Admit};

    use super::*;

    #[test]
    fn every_event_is_emitted_once_with_any_number_of_workers() {
        let events = events(in_order(), 2 * EPOCH + 7);
        assert_eq!(events.len(), 2 * EPOCH + 7);
        for workers in 1..=3 {
            let drive = Drive { workers, behind_ms: 5000, close: false };
            let spent = drive.run(&events, |events, _control| events.inner);
            assert_eq!(spent.results, events.len() as u64, "{workers} workers");
        }
    }

    #[test]
    fn windows_close_only_with_the_close_setting() {
        let events = events(in_order(), 1000);
        let rows = |close| {
            let drive = Drive { workers: 2, behind_ms: 5000, close };
            drive.run(&events, |events, control| {
                let (keyed, _) = events.admit(control, Admission::default());
                let count = Statistics::new(|_: &Event| None, |_: &Event| None);
                keyed.tumbling("Hour", 3_600_000, EmitPolicy::Final, count, |row| row.summary.count).inner
            })
        };
        assert_eq!(rows(false).results, 0);
        let keys: std::collections::HashSet<_> = events.iter().map(Event::key).collect();
        assert_eq!(rows(true).results, keys.len() as u64);
    }
}

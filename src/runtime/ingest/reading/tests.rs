use std::cell::RefCell;

use headwater_dataflows::Position as At;

use super::records::{FIRST_WITHIN, LEAST_STEP};
use super::*;
use crate::coordination::ingest::{Paced, ReadPermission, TimeRules};
use crate::rounds::{Epochs, Round, RoundRecorder, SinkTransaction, Step, Transaction};
use crate::source::Raw;

const T: i64 = 1_800_000_000_000;

/// A partition whose records and state a test sets.
#[derive(Clone)]
struct Scripted(Rc<RefCell<Script>>);

struct Script {
    state: PartitionState,
    /// The event time, timestamp and size of each record to be read.
    records: VecDeque<(i64, i64, usize)>,
    limit: Option<i64>,
    paused: bool,
    /// The number of contexts to collect, and those that were: each record has one.
    wanted: usize,
    contexts: Vec<TraceContext>,
}

impl Scripted {
    fn new(position: i64, backlog: u64) -> Scripted {
        let state = PartitionState {
            high_watermark: Some(Offset(position)),
            stable_offset: Some(Offset(position)),
            observation: 1,
            ..PartitionState::finite(Partition(0), Offset(position), false, backlog)
        };
        let script = Script {
            state,
            records: VecDeque::new(),
            limit: None,
            paused: false,
            wanted: 0,
            contexts: Vec::new(),
        };
        Scripted(Rc::new(RefCell::new(script)))
    }

    fn push(&self, records: impl IntoIterator<Item = (i64, i64)>) {
        self.0.borrow_mut().records.extend(records.into_iter().map(|(time, stamp)| (time, stamp, 100)));
    }
}

impl Reader for Scripted {
    fn read(&mut self, budget: Budget, each: &mut dyn FnMut(Raw<'_>)) -> Result<usize, SourceError> {
        let mut script = self.0.borrow_mut();
        let (mut read, mut bytes) = (0, 0);
        while read < budget.records
            && bytes < budget.bytes
            && !script.paused
            && script.limit.is_none_or(|limit| script.state.position.0 < limit)
            && let Some((time, timestamp, size)) = script.records.pop_front()
        {
            let PartitionState { position: offset, partition, .. } = script.state;
            let event = format!(
                r#"{{"event_id":"{offset:?}","event_type":"api_call","user_id":"u","event_time":{time}}}"#
            );
            let value = format!("{event:size$}");
            each(Raw {
                position: At { partition, offset },
                timestamp,
                key: None,
                value: Some(value.as_bytes()),
                retries: 0,
                producer: None,
            });
            if script.wanted > 0 {
                script.wanted -= 1;
                let id = offset.0.to_be_bytes();
                script.contexts.push(TraceContext { trace_id: [1; 16], span_id: id, flags: 1 });
            }
            script.state.position = Offset(offset.0 + 1);
            read += 1;
            bytes += value.len();
        }
        Ok(read)
    }

    fn collect_contexts(&mut self, most: usize) {
        self.0.borrow_mut().wanted = most;
    }

    fn take_contexts(&mut self) -> Vec<TraceContext> {
        std::mem::take(&mut self.0.borrow_mut().contexts)
    }

    fn partitions(&self) -> Vec<PartitionState> {
        vec![self.0.borrow().state]
    }

    fn set_paused(&mut self, _: Partition, paused: bool) -> Result<(), SourceError> {
        self.0.borrow_mut().paused = paused;
        Ok(())
    }

    fn set_limit(&mut self, _: Partition, limit: Option<Offset>) -> Result<(), SourceError> {
        self.0.borrow_mut().limit = limit.map(|limit| limit.0);
        Ok(())
    }
}

/// Partitions of one worker. Only what they are asked for in an order is read.
struct Many {
    partitions: Vec<Scripted>,
    order: Vec<usize>,
}

impl Reader for Many {
    fn read(&mut self, budget: Budget, each: &mut dyn FnMut(Raw<'_>)) -> Result<usize, SourceError> {
        let mut left = budget;
        for &place in &self.order {
            left.records -= self.partitions[place].read(left, each)?;
        }
        Ok(budget.records - left.records)
    }

    fn partitions(&self) -> Vec<PartitionState> {
        self.partitions.iter().flat_map(Scripted::partitions).collect()
    }

    fn set_paused(&mut self, partition: Partition, paused: bool) -> Result<(), SourceError> {
        self.partitions[partition.0 as usize].set_paused(partition, paused)
    }

    fn set_limit(&mut self, partition: Partition, limit: Option<Offset>) -> Result<(), SourceError> {
        self.partitions[partition.0 as usize].set_limit(partition, limit)
    }

    fn set_order(&mut self, places: &[usize]) {
        self.order = places.to_vec();
    }
}

struct Fixture {
    reading: Reading,
    script: Scripted,
    epoch: Epoch,
    given: Vec<Result<Event, DeadLetter>>,
}

fn fixture(position: Position, backlog: u64, counted: bool, bytes_in_flight: usize) -> Fixture {
    fixture_with(Arc::default(), position, backlog, counted, bytes_in_flight)
}

fn fixture_with(
    metrics: Arc<Metrics>,
    position: Position,
    backlog: u64,
    counted: bool,
    bytes_in_flight: usize,
) -> Fixture {
    let script = Scripted::new(position.next.0, backlog);
    let reader = Box::new(script.clone());
    let reading = reading(metrics, reader, [position].into(), counted, bytes_in_flight);
    Fixture { reading, script, epoch: Epoch(0), given: Vec::new() }
}

fn reading(
    metrics: Arc<Metrics>,
    reader: Box<dyn Reader>,
    positions: Arc<[Position]>,
    counted: bool,
    bytes_in_flight: usize,
) -> Reading {
    let settings = ReadSettings {
        timing: Timing {
            idle_timeout: Duration::from_secs(60),
            held_timeout: None,
            max_future_skew_ms: 300_000,
            max_jump_ms: None,
            counted,
        },
        epoch_records: 3,
        bytes_in_flight,
        reports: true,
        decoding: crate::decode::JSON.standard(),
    };
    let context = ReadContext {
        activity: Activity::default(),
        positions,
        slowest: SlowestTimes::new(1),
        added: Rc::new(Vec::new),
        stopping: Arc::default(),
        watermark: Rc::new(Cell::new(EventTime::MIN)),
        committed: Probe::new(),
        failure: Failure::default(),
        rejections: None,
        metrics,
    };
    Reading::new(0, reader, settings, context)
}

impl Fixture {
    /// Reads a new epoch and returns its bindings.
    fn epoch(&mut self, tick: &Tick) -> Vec<Binding> {
        self.epoch = self.epoch.next();
        self.reading.begin_epoch(self.epoch, tick);
        let Fixture { reading, given, epoch, .. } = self;
        while reading.read(*epoch, tick, &mut |outcome| given.push(outcome)) == NextRead::Now {}
        self.reading.close(tick).bindings
    }
}

/// Otherwise the watermark would advance without the partition, and the records waiting there would be late.
#[test]
fn a_partition_idle_at_the_checkpoint_resumes_as_not_idle() {
    let position = |idle| Position { idle, ..Position::starting(Offset(7)) };
    let first = |idle, backlog| fixture(position(idle), backlog, false, 1 << 20).epoch(&Tick::new(T));
    let expected = Binding {
        partition: Partition(0),
        end: Offset(7),
        timestamp: None,
        max_event_time: None,
        pushing_time: None,
        candidate: None,
        idle: false,
    };
    assert_eq!(first(true, 3), [expected]);
    assert_eq!(first(false, 3), [], "nothing has changed");
    assert_eq!(first(true, 0), [expected], "the idle timeout starts again");
}

#[test]
fn the_earliest_clock_pushes_and_all_three_limit_the_future() {
    let mut fixture = fixture(Position::starting(Offset(0)), 0, false, 1 << 20);
    fixture.script.push([(T - 50, T - 70), (T + 200_000, T), (T + 300_001, T + 90_000), (T - 60, -1)]);
    let bindings = fixture.epoch(&Tick::new(T));
    assert_eq!(fixture.given.iter().filter(|given| given.is_ok()).count(), 3);
    assert_eq!(bindings[0].max_event_time, Some(EventTime(T + 200_000)));
    assert_eq!(bindings[0].pushing_time, Some(EventTime(T)), "not the clock that is ahead");
    let letter = fixture.given.iter().find_map(|given| given.as_ref().err()).expect("one is future");
    let message = letter.rejection.message.clone();
    assert!(message.contains("300000 ms") && message.contains("wall time"), "{message}");

    // Epochs that were bound under the first format are replayed by its rules.
    let mut fixture = self::fixture(Position::starting(Offset(0)), 0, false, 1 << 20);
    fixture.script.push([(T - 50, T - 70), (T - 60, -1)]);
    let target = Binding { end: Offset(2), timestamp: Some(-1), ..bindings[0] };
    let replay = Tick { rules: TimeRules::EventTime, replay: Some(vec![target]), ..Tick::new(T) };
    let bindings = fixture.epoch(&replay);
    assert_eq!(bindings[0].pushing_time, Some(EventTime(T - 50)));
    assert_eq!(fixture.given.iter().filter(|given| given.is_ok()).count(), 1, "−1 was a timestamp");
}

#[test]
fn the_lag_is_what_the_waiting_records_take_at_the_pace_of_the_epoch() {
    let lag_s = |records: i64, backlog, counted| {
        let fixture = fixture(Position::starting(Offset(0)), backlog, counted, 1 << 20);
        fixture.script.push((0..records).map(|n| (T + n, T)));
        let (mut reading, tick) = (fixture.reading, Tick::new(T));
        reading.begin_epoch(Epoch(1), &tick);
        reading.opened -= Duration::from_secs(1);
        while reading.read(Epoch(1), &tick, &mut |_| {}) == NextRead::Now {}
        reading.close(&tick).lag.as_secs()
    };
    assert_eq!([lag_s(2, 20, false), lag_s(0, 20, false), lag_s(2, 20, true)], [10, 0, 0]);
    assert!(lag_s(1, u64::MAX, false) > 1 << 60, "an input without an end");
}

#[test]
fn a_counted_epoch_reads_its_share_whatever_the_time() {
    let mut fixture = fixture(Position::starting(Offset(0)), 9, true, 1);
    fixture.script.push((0..7).map(|n| (T + 1_000_000 * n, i64::MAX)));
    let tick = Tick::new(0);
    assert_eq!(
        fixture.epoch(&tick)[0].end,
        Offset(3),
        "the limit of bytes in flight is exceeded, since the epoch must end"
    );
    assert!(fixture.reading.is_complete());
    assert_eq!(fixture.given.iter().filter(|given| given.is_ok()).count(), 3, "the wall time is 1970");
    let only = Paced { permission: ReadPermission::Only(Partition(1)), ..Paced::default() };
    let only = Tick { paced: only, ..tick };
    let before = fixture.script.0.borrow().state.position;
    fixture.epoch(&only);
    assert_eq!(fixture.script.0.borrow().state.position, before, "another partition is the slowest");
    assert!(fixture.reading.is_complete(), "its share is empty");
}

#[test]
fn reading_stops_at_the_byte_limit_before_the_record_limit() {
    let mut fixture = fixture(Position::starting(Offset(0)), 0, false, 10_000);
    {
        let mut script = fixture.script.0.borrow_mut();
        script.records.extend((0..100).map(|n| (T + n, T, 4_000)));
    }
    let mut given = 0;
    fixture.reading.begin_epoch(Epoch(1), &Tick::new(T));
    let next = fixture.reading.read(Epoch(1), &Tick::new(T), &mut |_| given += 1);
    assert_eq!(next, NextRead::Now, "more records are available");
    assert_eq!(given, 3, "the third reaches the limit");
}

#[test]
fn each_epoch_records_its_first_contexts() {
    let (metrics, (sender, rounds)) = (Arc::<Metrics>::default(), std::sync::mpsc::channel());
    let emit = move |round: Round| sender.send(round).expect("it is received");
    metrics.record_rounds(RoundRecorder::new(Box::new(emit)));
    let mut fixture = fixture_with(Arc::clone(&metrics), Position::starting(Offset(0)), 0, false, 1 << 20);
    let (now, recorder) = (Instant::now(), metrics.rounds().expect("it is set"));
    for (records, first_offset) in [(1500, 0), (10, 1500), (0, 1510), (40, 1510)] {
        fixture.script.push((0..records).map(|n| (T + n, T)));
        fixture.epoch(&Tick::new(T));
        let epoch = fixture.epoch;
        let transaction = Transaction { first: epoch, last: epoch, step: Step { begun: now, ended: now } };
        let (sink, outputs, attempts, error) = ("memory".to_owned(), 1, 1, None);
        recorder.transacted(SinkTransaction { sink, transaction, outputs, attempts, error });
        let (first, last, bound, computed) = (epoch, epoch, None, None);
        recorder.committed(Epochs { first, last, opened: now, bound, computed, ended: now });
        let round = rounds.recv().expect("a round");
        let offsets: Vec<_> = round.links.iter().map(|link| i64::from_be_bytes(link.span_id)).collect();
        let expected: Vec<_> = (first_offset..first_offset + records.min(MAX_LINKS as i64)).collect();
        assert_eq!((round.records, offsets), (records as u64, expected));
    }
}

#[test]
fn contexts_are_not_collected_without_a_recorder() {
    let mut fixture = fixture(Position::starting(Offset(0)), 0, false, 1 << 20);
    fixture.script.push((0..50).map(|n| (T + n, T)));
    fixture.epoch(&Tick::new(T));
    assert_eq!(fixture.script.0.borrow().contexts, []);
}

/// With many partitions, a budget for the one that is furthest behind would bring it far ahead of all others. Those that have
/// begun wait for the first records of others, which are still being fetched, but not for long.
#[test]
fn partitions_stay_together() {
    const COUNT: u32 = 100;
    let partitions: Vec<_> = (0..COUNT).map(|_| Scripted::new(0, 200)).collect();
    for (number, script) in (0..COUNT).zip(&partitions) {
        script.0.borrow_mut().state.partition = Partition(number);
    }
    let records = |script: &Scripted| script.push((T - 1000..T - 800).map(|time| (time, time)));
    let read = |from: std::ops::Range<usize>| -> Vec<i64> {
        partitions[from].iter().map(|script| script.0.borrow().state.position.0).collect()
    };
    let reader = Box::new(Many { partitions: partitions.clone(), order: Vec::new() });
    let positions = vec![Position::starting(Offset(0)); COUNT as usize];
    let mut reading = reading(Arc::default(), reader, positions.into(), false, 64 << 20);
    let epoch = |number, reading: &mut Reading| {
        reading.begin_epoch(Epoch(number), &Tick::new(T));
        reading.read(Epoch(number), &Tick::new(T), &mut |_| {});
        reading.close(&Tick::new(T));
    };

    records(&partitions[0]);
    epoch(1, &mut reading);
    epoch(2, &mut reading);
    assert_eq!(read(0..2), [LEAST_STEP as i64, 0], "the others have not begun");
    partitions[1..COUNT as usize - 1].iter().for_each(records);
    (3..12).for_each(|number| epoch(number, &mut reading));
    assert!(read(0..99).iter().all(|read| *read == LEAST_STEP as i64), "{:?}", read(0..99));
    reading.first_asked = reading.first_asked.map(|asked| asked - FIRST_WITHIN);
    epoch(12, &mut reading);
    let ahead = read(0..99).into_iter().filter(|read| *read == 2 * LEAST_STEP as i64).count();
    assert_eq!(ahead, BUDGET.records / LEAST_STEP, "the last one is not waited for, and none is far ahead");
}

/// Otherwise un-final events of all partitions but the slowest one would fill the memory within one epoch.
#[test]
fn a_partition_that_leads_waits_until_the_slowest_one_has_caught_up() {
    let partitions: Vec<_> = (0..2).map(|_| Scripted::new(0, 9)).collect();
    partitions[1].0.borrow_mut().state.partition = Partition(1);
    let reader = Box::new(Many { partitions: partitions.clone(), order: Vec::new() });
    let mut reading =
        reading(Arc::default(), reader, vec![Position::starting(Offset(0)); 2].into(), false, 64 << 20);
    let lead = |lead_ms| {
        let paced = Paced { lead_ms, ..Paced::default() };
        Tick { paced, ..Tick::new(T) }
    };
    let read = |number, reading: &mut Reading, tick: &Tick| {
        reading.begin_epoch(Epoch(number), tick);
        let next = reading.read(Epoch(number), tick, &mut |_| {});
        let positions = partitions.iter().map(|script| script.0.borrow().state.position.0);
        (next, positions.collect::<Vec<_>>())
    };
    let push = |partition: usize, times: &[i64]| {
        partitions[partition].push(times.iter().map(|time| (T + time, T + time)));
    };
    push(0, &[-90_000]);
    push(1, &[-50_000]);
    assert_eq!(read(1, &mut reading, &lead(None)).1, [1, 1]);
    reading.close(&lead(None));

    push(1, &[-49_000]);
    let (next, positions) = read(2, &mut reading, &lead(Some(30_000)));
    assert_eq!((next, positions), (NextRead::Soon, vec![1, 1]), "it leads");
    push(0, &[-60_000]);
    assert_eq!(read(2, &mut reading, &lead(Some(30_000))).1, [2, 1]);
    assert_eq!(read(2, &mut reading, &lead(Some(30_000))).1, [2, 2], "in the same epoch");
    reading.close(&lead(None));

    push(1, &[-10_000]);
    assert_eq!(read(3, &mut reading, &lead(None)).1, [2, 3]);
    reading.close(&lead(None));
    push(1, &[-9_000]);
    assert_eq!(read(4, &mut reading, &lead(Some(30_000))).1, [2, 3]);
    partitions[0].0.borrow_mut().state.backlog = 0;
    assert_eq!(read(4, &mut reading, &lead(Some(30_000))).1, [2, 4], "nothing is to be read of the other");
}

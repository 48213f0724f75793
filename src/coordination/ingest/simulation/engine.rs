//! The simulated program: the production code that makes the decisions of a run, and a client with the same view of
//! the world as Kafka's client.

use std::time::Duration;

use headwater_dataflows::{Epoch, EventTime, Offset, Partition};

use super::super::PartitionState;
use super::world::{Record, START_MS, World};
use super::{Guards, Tally, Violation};
use crate::coordination::ingest::{
    Clocks, Liveness, Pace, Paced, PartitionTracker, TimeRules, Timing, Unfinal, WallClock,
};
use crate::coordination::{Binding, Position, Positions, Watermark, WatermarkRule};

const IDLE_TIMEOUT: Duration = Duration::from_secs(1);
/// The time that results may stand still: twice the idle timeout and one epoch.
const STALL_LIMIT_MS: i64 = 2_050;
const HELD_WARNING_MS: i64 = 4_000;
const MAX_OUT_OF_ORDERNESS_MS: i64 = 5_000;
const MAX_SKEW_MS: i64 = 300_000;
/// The number of records that an epoch reads.
const RECORDS_PER_EPOCH: usize = 120;
const EVENT_BYTES: usize = 100;
const UNFINAL_LIMIT: u64 = 150_000;
/// The interval of the client's observations, and the silence after which a leader is unavailable, in milliseconds.
const OBSERVATION_INTERVAL_MS: i64 = 200;
const LEADER_TIMEOUT_MS: i64 = 600;

const TIMING: Timing = Timing {
    idle_timeout: IDLE_TIMEOUT,
    held_timeout: None,
    max_future_skew_ms: MAX_SKEW_MS,
    max_jump_ms: None,
    counted: false,
};

/// The client's view of a partition, and the simulation's own records of how it is read.
struct Client {
    state: PartitionState,
    fetched: usize,
    responded_at: i64,
    /// The greatest pushing time of records that were not late, and the time when it was raised.
    greatest: i64,
    raised_at: i64,
    /// The time when the partition was last held, disconnected, paused, or had waiting records.
    disturbed: i64,
}

/// A record that was read: its offset, its timestamp, and its event time if it was accepted.
type Read = (usize, i64, Option<i64>);

/// The records that an epoch read from a partition, and their binding.
type Bound = (Vec<Read>, Option<Binding>);

pub struct Engine {
    guards: Guards,
    trackers: Vec<PartitionTracker>,
    clients: Vec<Client>,
    wall: WallClock,
    watermark: Watermark,
    positions: Positions,
    pace: Pace,
    paced: Paced,
    epoch: Epoch,
    first: usize,
    watermark_moved_at: i64,
    /// The last time when the partition that holds the watermark was read, or none held it.
    slowest_read_at: i64,
    /// The last time when any record was read or none was waiting.
    last_progress: i64,
    /// The wall time of each epoch and, by partition, the records read and their binding.
    history: Vec<(i64, Vec<Bound>)>,
}

impl Engine {
    pub fn new(world: &World, guards: Guards) -> Engine {
        let partitions = world.logs.len();
        let starts = vec![Offset(0); partitions];
        let client = |partition| Client {
            state: PartitionState {
                available: false,
                ..PartitionState::finite(Partition(partition as u32), Offset(0), false, 0)
            },
            fetched: 0,
            responded_at: -LEADER_TIMEOUT_MS,
            greatest: i64::MIN,
            raised_at: i64::MIN / 2,
            disturbed: 0,
        };
        let bound = Duration::from_millis(STALL_LIMIT_MS as u64);
        Engine {
            guards,
            trackers: trackers(partitions),
            clients: (0..partitions).map(client).collect(),
            wall: WallClock::default(),
            watermark: Watermark::new(partitions, RULE),
            positions: Positions::starting(&starts),
            pace: Pace {
                unfinal: Unfinal::default(),
                unfinal_limit: UNFINAL_LIMIT,
                max_drift_ms: None,
                liveness: Liveness::new(bound, Duration::from_millis(HELD_WARNING_MS as u64)),
            },
            paced: Paced::default(),
            epoch: Epoch(0),
            first: 0,
            watermark_moved_at: 0,
            slowest_read_at: 0,
            last_progress: 0,
            history: Vec::new(),
        }
    }

    /// Simulates one epoch.
    pub fn step(&mut self, world: &mut World, tally: &mut Tally) -> Result<(), Violation> {
        self.epoch = self.epoch.next();
        let now = Duration::from_millis(world.now as u64);
        let wall_ms = match self.guards.wall_time_never_goes_back {
            true => self.wall.read(world.system_ms(), now),
            false => world.system_ms(),
        };
        for at in 0..self.clients.len() {
            self.observe(world, at, tally);
        }
        let allowed: Vec<bool> = self.trackers.iter().map(|tracker| self.is_allowed(tracker)).collect();
        let read = self.read(world, wall_ms, &allowed, tally)?;
        let before = self.watermark.current();
        let mut slowest = None;
        let mut epoch = Vec::new();
        let (mut bindings, mut unfinal) = (Vec::new(), Vec::new());
        for (at, read) in read.into_iter().enumerate() {
            let reading = allowed[at] && !world.is_stalled();
            let state = self.partition_state(at);
            let tracker = &mut self.trackers[at];
            let counts = reading || !self.guards.only_time_of_reading_counts_for_idleness;
            tracker.observe(&state, now, counts, &TIMING);
            tally.held += usize::from(tracker.held_for(now).is_some_and(|(_, time)| time >= IDLE_TIMEOUT));
            let (binding, parts) = tracker.close(&state, false, TimeRules::EarliestClock);
            bindings.extend(binding);
            unfinal.extend(parts);
            epoch.push((read, binding));
            slowest = [slowest, tracker.slowness(&state, now)].into_iter().flatten().min();
            tally.idle += usize::from(binding.is_some_and(|binding| binding.idle));
            tally.paused += usize::from(!allowed[at]);
        }
        self.history.push((wall_ms, epoch));
        let watermark = self.watermark.advance(&bindings, wall_ms, TimeRules::EarliestClock);
        self.positions.advance(&bindings);
        self.pace.add(&unfinal);
        self.paced = self.pace.end_epoch(now, self.positions.as_slice(), slowest, watermark);
        tally.stalls += usize::from(self.paced.stall.is_some());
        if !self.guards.stalls_are_named {
            self.paced.stall = None;
        }
        // While all partitions are idle, none holds the watermark.
        if watermark != before || self.positions.as_slice().iter().all(|position| position.idle) {
            self.watermark_moved_at = world.now;
        }
        self.check(world, &allowed)
    }

    fn is_allowed(&self, tracker: &PartitionTracker) -> bool {
        let partition = tracker.partition();
        if !self.guards.all_but_the_slowest_pause_at_the_limit {
            return true;
        }
        if !self.guards.the_slowest_reads_on && self.paced.permission.allows(partition) {
            return self.paced.permission == Default::default();
        }
        self.paced.allows(partition, tracker.greatest(), tracker.is_idle())
    }

    /// Updates the client's view: it sees fetched records at once, and end offsets at intervals.
    fn observe(&mut self, world: &World, at: usize, tally: &mut Tally) {
        let (log, Client { state, fetched, responded_at, .. }) = (&world.logs[at], &mut self.clients[at]);
        let was_available = state.available;
        if log.is_reachable {
            *fetched = log.stable();
            if world.now - *responded_at >= OBSERVATION_INTERVAL_MS || !state.available {
                *responded_at = world.now;
                state.observation += 1;
                state.high_watermark = Some(Offset(log.high_watermark() as i64));
                state.stable_offset = Some(Offset(log.stable() as i64));
                state.available = true;
            }
        } else if world.now - *responded_at >= LEADER_TIMEOUT_MS {
            state.available = false;
            state.leader_failures += u64::from(was_available);
            tally.outages += usize::from(was_available);
        }
        state.backlog = (*fetched as i64 - state.position.0).max(0) as u64;
    }

    /// Returns the state of a partition as input for the decisions; without a guard, a wrong state.
    fn partition_state(&self, at: usize) -> PartitionState {
        let mut state = self.clients[at].state;
        if !self.guards.idle_partitions_were_read_to_their_end {
            state.high_watermark = Some(state.position);
        }
        if !self.guards.leaders_that_fail_are_not_silent {
            (state.available, state.leader_failures) = (true, 0);
        }
        if !self.guards.held_partitions_are_not_idle {
            state.high_watermark = state.stable_offset;
        }
        state
    }

    fn read(
        &mut self,
        world: &World,
        wall_ms: i64,
        allowed: &[bool],
        tally: &mut Tally,
    ) -> Result<Vec<Vec<Read>>, Violation> {
        let partitions = self.clients.len();
        let mut read = vec![Vec::new(); partitions];
        if world.is_stalled() {
            return Ok(read);
        }
        let share = RECORDS_PER_EPOCH / partitions;
        self.first = (self.first + 1) % partitions;
        for turn in 0..partitions {
            let at = (self.first + turn) % partitions;
            if !allowed[at] {
                continue;
            }
            let from = self.clients[at].state.position.0 as usize;
            let to = self.clients[at].fetched.min(from + share).max(from);
            for offset in from..to {
                let record = world.logs[at].records[offset];
                let outcome = self.accept_record(at, offset, record, wall_ms, world, tally)?;
                read[at].extend(outcome);
            }
            let state = &mut self.clients[at].state;
            state.position = Offset(to as i64);
            state.backlog -= ((to - from) as u64).min(state.backlog);
            tally.read += to - from;
        }
        Ok(read)
    }

    fn accept_record(
        &mut self,
        at: usize,
        offset: usize,
        record: Record,
        wall_ms: i64,
        world: &World,
        tally: &mut Tally,
    ) -> Result<Option<Read>, Violation> {
        let tracker = &mut self.trackers[at];
        let Record::Event { time, timestamp, honest } = record else {
            let Record::Junk = record else { return Ok(None) };
            tracker.record(Offset(offset as i64), START_MS);
            if !self.guards.rejected_records_do_not_postpone_idleness {
                self.clients[at].state.leader_failures += 1;
            }
            return Ok(Some((offset, START_MS, None)));
        };
        tracker.record(Offset(offset as i64), timestamp);
        let clocks = Clocks::new(TimeRules::EarliestClock, timestamp, Some(wall_ms));
        if clocks.is_future(EventTime(time), MAX_SKEW_MS) {
            return if honest { Err("an honest record is rejected as future") } else { Ok(None) };
        }
        let pushing = match self.guards.no_clock_ahead_pushes_others {
            true => clocks.pushing_time(EventTime(time)),
            false => EventTime(time),
        };
        let watermark = self.watermark.current();
        tracker.accept(EventTime(time), pushing, EVENT_BYTES, &TIMING, watermark);
        let late = EventTime(time) <= watermark;
        tally.late += usize::from(late);
        if late && honest {
            return Err("an honest record is late");
        }
        let client = &mut self.clients[at];
        let pushes = [time, wall_ms].into_iter().chain((timestamp > 0).then_some(timestamp)).min();
        let pushes = pushes.expect("there is a wall time");
        if !late && pushes > client.greatest {
            client.raised_at = world.now;
        }
        client.greatest = client.greatest.max(pushes);
        Ok(Some((offset, timestamp, Some(time))))
    }

    /// Checks the decisions against the true state of the world.
    fn check(&mut self, world: &World, allowed: &[bool]) -> Result<(), Violation> {
        let now = world.now;
        let recently = |at: i64| now - at <= STALL_LIMIT_MS;
        let mut is_waiting = false;
        for (at, (client, log)) in self.clients.iter_mut().zip(&world.logs).enumerate() {
            let waiting = client.state.position.0 < log.stable() as i64;
            is_waiting |= waiting && client.state.available;
            let unknown = client.state.observation < 2 || !client.state.available;
            if waiting || unknown || log.open.is_some() || !log.is_reachable || !allowed[at] {
                client.disturbed = now;
            }
        }
        // Idleness and reading are only as exact as the client's observations.
        let watermark = self.watermark.current();
        let is_calm =
            !recently(world.disturbed) && !self.clients.iter().any(|client| recently(client.disturbed));
        let busy = self.clients.iter().filter(|client| recently(client.raised_at + OBSERVATION_INTERVAL_MS));
        if is_calm
            && let Some(least) = busy.map(|client| client.greatest).min()
            && watermark < EventTime(least - MAX_OUT_OF_ORDERNESS_MS - 1)
        {
            return Err("a partition without progress holds the watermark");
        }
        if let Some(stall) = self.paced.stall {
            let named = &self.clients[stall.slowest.partition.0 as usize];
            // A partition whose event time advances slowly may be named as well.
            if !recently(named.disturbed) && !recently(named.raised_at) && !recently(world.disturbed) {
                return Err("a stall is reported for a healthy partition");
            }
            let (_, epoch) = self.history.last().expect("an epoch was just read");
            let (at, log) =
                (stall.slowest.partition.0 as usize, &world.logs[stall.slowest.partition.0 as usize]);
            let waiting = named.fetched > named.state.position.0 as usize && log.open.is_none();
            if !waiting || !epoch[at].0.is_empty() || recently(world.disturbed) {
                self.slowest_read_at = now;
            }
            if now - self.slowest_read_at > STALL_LIMIT_MS {
                return Err("the partition that holds the watermark is not read");
            }
        } else {
            self.slowest_read_at = now;
        }
        let reads =
            self.history.last().is_some_and(|(_, epoch)| epoch.iter().any(|(read, _)| !read.is_empty()));
        if reads || !is_waiting || world.is_stalled() || self.paced.stall.is_some() {
            self.last_progress = now;
        }
        let stalled_ms = now - self.last_progress.max(world.disturbed);
        let is_unreported = now - self.watermark_moved_at.max(world.disturbed)
            > STALL_LIMIT_MS + HELD_WARNING_MS + 500
            && self.paced.stall.is_none();
        if stalled_ms > STALL_LIMIT_MS + HELD_WARNING_MS || is_unreported {
            return Err("nothing is read, and no stall is reported");
        }
        let slack = (4 * RECORDS_PER_EPOCH * EVENT_BYTES) as u64;
        if !world.has_clocks_ahead && self.pace.unfinal.total() > UNFINAL_LIMIT + slack {
            return Err("un-final bytes exceed the limit");
        }
        Ok(())
    }

    /// Checks that the same records in the same epochs give the same bindings.
    pub fn replay(&self) -> Result<(), Violation> {
        let mut trackers = trackers(self.clients.len());
        let mut watermark = Watermark::new(trackers.len(), RULE);
        for (wall_ms, epoch) in &self.history {
            let mut bindings = Vec::new();
            for (tracker, (read, bound)) in trackers.iter_mut().zip(epoch) {
                tracker.replay(*bound);
                for &(offset, timestamp, time) in read {
                    tracker.record(Offset(offset as i64), timestamp);
                    let clocks = Clocks::new(TimeRules::EarliestClock, timestamp, Some(*wall_ms));
                    if let Some(time) = time.map(EventTime) {
                        let pushing = clocks.pushing_time(time);
                        tracker.accept(time, pushing, EVENT_BYTES, &TIMING, watermark.current());
                    }
                }
                let state = PartitionState::finite(tracker.partition(), Offset(0), false, 0);
                if tracker.close(&state, true, TimeRules::EarliestClock).0 != *bound {
                    return Err("a replayed epoch has other bindings");
                }
                bindings.extend(*bound);
            }
            watermark.advance(&bindings, *wall_ms, TimeRules::EarliestClock);
        }
        if watermark.current() != self.watermark.current() {
            return Err("replay computes another watermark");
        }
        Ok(())
    }
}

const RULE: WatermarkRule =
    WatermarkRule { max_out_of_orderness_ms: MAX_OUT_OF_ORDERNESS_MS, idle_advance_ms: None };

fn trackers(partitions: usize) -> Vec<PartitionTracker> {
    let position = Position::starting(Offset(0));
    (0..partitions).map(|at| PartitionTracker::new(Partition(at as u32), &position)).collect()
}

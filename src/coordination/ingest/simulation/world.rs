//! The environment of the program: producers, leaders, and the machine.

use super::Random;

/// The duration of a step, which is one epoch, in milliseconds.
pub const STEP_MS: i64 = 50;

/// The wall time at the beginning, in milliseconds since 1970.
pub const START_MS: i64 = 1_800_000_000_000;

/// A record, as its producer intended it.
#[derive(Clone, Copy, Debug)]
pub enum Record {
    /// An event, the timestamp of its record, and whether both clocks are right.
    Event { time: i64, timestamp: i64, honest: bool },
    /// A record that is not an event.
    Junk,
    /// A record of an aborted transaction.
    Aborted,
}

/// The activity of a partition's producer for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    Events { every: i64, stamped: bool },
    Junk { every: i64 },
    JunkTransactions,
    Late,
    Ahead,
    Nothing,
    OpenTransaction { aborts: bool },
}

pub struct Log {
    pub records: Vec<Record>,
    /// The offset at which the open transaction begins, and the time when it was opened.
    pub open: Option<(usize, i64)>,
    activity: Activity,
    activity_until: i64,
    /// True if the leader responds to the program; producers may reach it even if not.
    pub is_reachable: bool,
    reachability_until: i64,
    is_producer_connected: bool,
}

impl Log {
    /// Returns the offset after the last record.
    pub fn high_watermark(&self) -> usize {
        self.records.len()
    }

    /// Returns the offset up to which records can be read.
    pub fn stable(&self) -> usize {
        self.open.map_or(self.records.len(), |(begin, _)| begin)
    }

    fn end_transaction(&mut self, aborts: bool) {
        if let Some((begin, _)) = self.open.take()
            && aborts
        {
            self.records[begin..].fill(Record::Aborted);
        }
    }
}

pub struct World {
    /// The time since the beginning, in milliseconds.
    pub now: i64,
    pub logs: Vec<Log>,
    /// True if any producer's clock is ahead.
    pub has_clocks_ahead: bool,
    /// The error of the system clock, in milliseconds.
    pub system_offset: i64,
    frozen_until: i64,
    /// The time until which no sink commits, so that nothing is read.
    stalled_until: i64,
    /// The last time when the program was frozen or blocked.
    pub disturbed: i64,
}

impl World {
    pub fn new(random: &mut Random) -> World {
        let log = |_| Log {
            records: Vec::new(),
            open: None,
            activity: Activity::Nothing,
            activity_until: 0,
            is_reachable: true,
            reachability_until: 0,
            is_producer_connected: false,
        };
        World {
            now: 0,
            logs: (0..1 + random.below(4)).map(log).collect(),
            has_clocks_ahead: random.one_in(2),
            system_offset: 0,
            frozen_until: 0,
            stalled_until: 0,
            disturbed: i64::MIN / 2,
        }
    }

    pub fn wall_ms(&self) -> i64 {
        START_MS + self.now
    }

    /// Returns the wall time according to the system clock.
    pub fn system_ms(&self) -> i64 {
        self.wall_ms() + self.system_offset
    }

    pub fn is_frozen(&self) -> bool {
        self.now < self.frozen_until
    }

    /// Returns true if sinks block reading.
    pub fn is_stalled(&self) -> bool {
        self.now < self.stalled_until
    }

    pub fn step(&mut self, random: &mut Random) {
        self.now += STEP_MS;
        let mut pause = |until: &mut i64| {
            if random.one_in(600) {
                *until = self.now + 500 + random.below(9_000);
            }
        };
        pause(&mut self.frozen_until);
        pause(&mut self.stalled_until);
        if self.is_frozen() || self.is_stalled() {
            self.disturbed = self.now;
        }
        // The clock is right at first: the program can only trust its first reading.
        if self.now > 12_000 && random.one_in(1500) {
            self.system_offset -= random.below(3_600_000);
        }
        let (now, wall, ahead) = (self.now, self.wall_ms(), self.has_clocks_ahead);
        for log in &mut self.logs {
            if now >= log.activity_until {
                log.begin_activity(now, ahead, random);
            }
            if now >= log.reachability_until {
                log.is_reachable = !log.is_reachable || random.one_in(2);
                log.is_producer_connected = random.one_in(2);
                let time = if log.is_reachable { 20_000 } else { 6_000 };
                log.reachability_until = now + 500 + random.below(time);
            }
            // If the leader is unavailable to producers, they wait.
            if log.is_reachable || log.is_producer_connected {
                log.produce(now, wall, random);
            }
        }
    }
}

impl Log {
    fn begin_activity(&mut self, now: i64, ahead: bool, random: &mut Random) {
        if let Activity::OpenTransaction { aborts } = self.activity {
            self.end_transaction(aborts);
        }
        self.activity_until = now + 500 + random.below(12_000);
        self.activity = match random.below(12) {
            0..4 => Activity::Events { every: 1 + random.below(10), stamped: !random.one_in(5) },
            4 | 5 => Activity::Junk { every: 1 + random.below(10) },
            6 => Activity::JunkTransactions,
            7 => Activity::Late,
            8 if ahead => Activity::Ahead,
            9 | 10 => Activity::OpenTransaction { aborts: random.one_in(2) },
            _ => Activity::Nothing,
        };
        if self.activity == (Activity::Junk { every: 1 }) {
            // An event then has to wait behind a backlog of junk.
            self.records.extend([Record::Junk; 400]);
        }
        if matches!(self.activity, Activity::OpenTransaction { .. }) {
            self.open = Some((self.records.len(), now));
        }
    }

    fn produce(&mut self, now: i64, wall: i64, random: &mut Random) {
        let honest = |random: &mut Random, stamped: bool| Record::Event {
            time: wall - random.below(1_500),
            timestamp: if stamped { wall } else { -1 },
            honest: true,
        };
        let turn = |every: i64| (now / STEP_MS) % every == 0;
        match self.activity {
            Activity::Events { every, stamped } if turn(every) => {
                for _ in 0..1 + random.below(8) {
                    let record = honest(random, stamped);
                    self.records.push(record);
                }
            }
            Activity::Junk { every } if turn(every) => self.records.push(Record::Junk),
            Activity::JunkTransactions => {
                if turn(4) {
                    self.end_transaction(false);
                    self.open = Some((self.records.len(), now));
                    self.records.push(Record::Junk);
                } else if turn(2) {
                    self.end_transaction(false);
                }
            }
            Activity::Late if turn(3) => {
                let time = wall - 60_000 - random.below(10_000);
                self.records.push(Record::Event { time, timestamp: wall, honest: false });
            }
            Activity::Ahead if turn(2) => {
                let time = wall + random.below(290_000);
                self.records.push(Record::Event { time, timestamp: wall, honest: false });
            }
            Activity::OpenTransaction { .. } if turn(5) => {
                let record = honest(random, true);
                self.records.push(record);
            }
            _ => {}
        }
        if !matches!(self.activity, Activity::OpenTransaction { .. } | Activity::JunkTransactions) {
            self.end_transaction(false);
        }
    }
}

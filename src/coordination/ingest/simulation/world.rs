//! What goes on outside: producers, leaders, and the machine on which the program runs.

use super::Random;

/// How long a step is, in milliseconds: an epoch.
pub const STEP_MS: i64 = 50;

/// The wall time at the beginning, in milliseconds since 1970.
pub const BEGUN_MS: i64 = 1_800_000_000_000;

/// A record, as its producer meant it.
#[derive(Clone, Copy, Debug)]
pub enum Record {
    /// An event, its record's timestamp, and whether both clocks are right.
    Event { time: i64, timestamp: i64, honest: bool },
    /// No event.
    Junk,
    /// Of a transaction that was aborted.
    Aborted,
}

/// What a partition's producer does for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
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
    /// Where the open transaction begins, and since when it is open.
    pub open: Option<(usize, i64)>,
    doing: Doing,
    until: i64,
    /// Whether its leader answers the program; producers may reach it all the same.
    pub reachable: bool,
    reachable_until: i64,
    cut_off: bool,
}

impl Log {
    /// The offset after the last record.
    pub fn high_watermark(&self) -> usize {
        self.records.len()
    }

    /// The offset up to which records can be read.
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
    /// Milliseconds since the beginning.
    pub now: i64,
    pub logs: Vec<Log>,
    /// Whether any clock is ahead.
    pub with_clocks_ahead: bool,
    /// How far the system's clock is off.
    pub system_offset: i64,
    frozen_until: i64,
    /// Until when no sink commits, so that nothing is read.
    stalled_until: i64,
    /// When the program was last frozen or held back.
    pub disturbed: i64,
}

impl World {
    pub fn new(random: &mut Random) -> World {
        let log = |_| Log {
            records: Vec::new(),
            open: None,
            doing: Doing::Nothing,
            until: 0,
            reachable: true,
            reachable_until: 0,
            cut_off: false,
        };
        World {
            now: 0,
            logs: (0..1 + random.below(4)).map(log).collect(),
            with_clocks_ahead: random.one_in(2),
            system_offset: 0,
            frozen_until: 0,
            stalled_until: 0,
            disturbed: i64::MIN / 2,
        }
    }

    pub fn wall_ms(&self) -> i64 {
        BEGUN_MS + self.now
    }

    /// What the system says of the wall.
    pub fn system_ms(&self) -> i64 {
        self.wall_ms() + self.system_offset
    }

    pub fn is_frozen(&self) -> bool {
        self.now < self.frozen_until
    }

    /// Whether sinks hold reading up.
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
        // The first reading of the clock is all that the program has.
        if self.now > 12_000 && random.one_in(1500) {
            self.system_offset -= random.below(3_600_000);
        }
        let (now, wall, ahead) = (self.now, self.wall_ms(), self.with_clocks_ahead);
        for log in &mut self.logs {
            if now >= log.until {
                log.begin(now, ahead, random);
            }
            if now >= log.reachable_until {
                log.reachable = !log.reachable || random.one_in(2);
                log.cut_off = random.one_in(2);
                let time = if log.reachable { 20_000 } else { 6_000 };
                log.reachable_until = now + 500 + random.below(time);
            }
            // Where the leader is gone, producers wait.
            if log.reachable || log.cut_off {
                log.produce(now, wall, random);
            }
        }
    }
}

impl Log {
    fn begin(&mut self, now: i64, ahead: bool, random: &mut Random) {
        if let Doing::OpenTransaction { aborts } = self.doing {
            self.end_transaction(aborts);
        }
        self.until = now + 500 + random.below(12_000);
        self.doing = match random.below(12) {
            0..4 => Doing::Events { every: 1 + random.below(10), stamped: !random.one_in(5) },
            4 | 5 => Doing::Junk { every: 1 + random.below(10) },
            6 => Doing::JunkTransactions,
            7 => Doing::Late,
            8 if ahead => Doing::Ahead,
            9 | 10 => Doing::OpenTransaction { aborts: random.one_in(2) },
            _ => Doing::Nothing,
        };
        if self.doing == (Doing::Junk { every: 1 }) {
            // Something waits behind a heap of it.
            self.records.extend([Record::Junk; 400]);
        }
        if matches!(self.doing, Doing::OpenTransaction { .. }) {
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
        match self.doing {
            Doing::Events { every, stamped } if turn(every) => {
                for _ in 0..1 + random.below(8) {
                    let record = honest(random, stamped);
                    self.records.push(record);
                }
            }
            Doing::Junk { every } if turn(every) => self.records.push(Record::Junk),
            Doing::JunkTransactions => {
                if turn(4) {
                    self.end_transaction(false);
                    self.open = Some((self.records.len(), now));
                    self.records.push(Record::Junk);
                } else if turn(2) {
                    self.end_transaction(false);
                }
            }
            Doing::Late if turn(3) => {
                let time = wall - 60_000 - random.below(10_000);
                self.records.push(Record::Event { time, timestamp: wall, honest: false });
            }
            Doing::Ahead if turn(2) => {
                let time = wall + random.below(290_000);
                self.records.push(Record::Event { time, timestamp: wall, honest: false });
            }
            Doing::OpenTransaction { .. } if turn(5) => {
                let record = honest(random, true);
                self.records.push(record);
            }
            _ => {}
        }
        if !matches!(self.doing, Doing::OpenTransaction { .. } | Doing::JunkTransactions) {
            self.end_transaction(false);
        }
    }
}

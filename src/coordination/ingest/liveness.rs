//! Whether final results go on, and what holds them up if they do not.

use std::fmt;
use std::time::Duration;

use headwater_dataflows::{EventTime, Partition};
use serde::{Deserialize, Serialize};

use super::{ReadPermission, Slowest, Waiting};

/// What holds a pipeline up, as `headwater_stalled{cause}` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Cause {
    /// An upstream transaction was left open.
    Transaction,
    /// The leader of a partition does not answer.
    Leader,
    /// Records are read, and none of them moves event time on: they are rejected, late or repeated.
    Records,
    /// Un-final events have used up their memory, and the slowest partition does not go on.
    Memory,
    /// A sink does not commit.
    Sink,
    /// The ledger does not record.
    Ledger,
    /// Another process, or this one's workers, hold the frontier.
    Frontier,
    /// The topic is not the one that was opened: partitions that nobody reads.
    Topic,
}

impl Cause {
    /// All of them.
    pub const ALL: [Cause; 8] = [
        Cause::Transaction,
        Cause::Leader,
        Cause::Records,
        Cause::Memory,
        Cause::Sink,
        Cause::Ledger,
        Cause::Frontier,
        Cause::Topic,
    ];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Transaction => "transaction",
            Cause::Leader => "leader",
            Cause::Records => "records",
            Cause::Memory => "memory",
            Cause::Sink => "sink",
            Cause::Ledger => "ledger",
            Cause::Frontier => "frontier",
            Cause::Topic => "topic",
        }
    }
}

/// The watermark stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stall {
    /// The partition that holds it back.
    pub slowest: Slowest,
    /// For how long it has stood, in milliseconds.
    pub for_ms: u64,
    /// How many bytes are un-final, if that is as many as may be.
    pub unfinal: Option<u64>,
}

impl Stall {
    /// What kind of stall it is.
    pub fn cause(&self) -> Cause {
        match (self.unfinal, self.slowest.waiting) {
            (Some(_), _) => Cause::Memory,
            (None, Waiting::Transaction { .. }) => Cause::Transaction,
            (None, Waiting::Leader { .. }) => Cause::Leader,
            (None, Waiting::Backlog { .. } | Waiting::Silence) => Cause::Records,
        }
    }
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Slowest { partition: Partition(partition), waiting, .. } = self.slowest;
        let stands = self.for_ms / 1000;
        if let Some(bytes) = self.unfinal {
            let mebibytes = bytes >> 20;
            write!(
                f,
                "un-final events take {mebibytes} MiB, all that limits.unfinal_bytes allows: only the slowest \
                 partition is read; "
            )?;
        }
        match waiting {
            Waiting::Transaction { offset, for_ms } => write!(
                f,
                "source partition {partition} is held by a transaction that is open at offset {} for {} s; final \
                 results wait for it",
                offset.0,
                for_ms / 1000
            ),
            Waiting::Leader { for_ms } => write!(
                f,
                "the leader of source partition {partition} has not answered for {} s; final results wait for it",
                for_ms / 1000
            ),
            Waiting::Silence => write!(
                f,
                "source partition {partition} is the slowest, and nothing more is to be read there now; the watermark \
                 has stood for {stands} s, until a record moves its event time on or it counts as idle"
            ),
            Waiting::Backlog { records } => write!(
                f,
                "source partition {partition} holds the watermark, which has stood for {stands} s: {records} records \
                 wait there, and of those read none has moved its event time on (rejected, late or repeated ones do \
                 not)"
            ),
        }
    }
}

/// Watches the watermark.
#[derive(Clone, Debug)]
pub struct Liveness {
    /// How long it may stand while a partition holds it back.
    bound: Duration,
    /// How long a transaction may hold it.
    held_warning: Duration,
    moved: Option<(EventTime, Duration)>,
    /// Since when nothing but the idle timeout has been waited for.
    silent: Option<Duration>,
}

impl Liveness {
    /// With these bounds; a transaction may hold the watermark for `held_warning`.
    pub fn new(bound: Duration, held_warning: Duration) -> Liveness {
        Liveness { bound, held_warning, moved: None, silent: None }
    }

    /// Takes in the watermark at `now` and the slowest partition that is not idle; what holds it up, if anything does
    /// for longer than it may.
    pub fn observe(
        &mut self,
        now: Duration,
        watermark: EventTime,
        slowest: Option<Slowest>,
        permission: ReadPermission,
        unfinal: u64,
    ) -> Option<Stall> {
        let since = match self.moved {
            Some((before, since)) if before == watermark => since,
            _ => {
                self.moved = Some((watermark, now));
                now
            }
        };
        let Some(slowest) = slowest else {
            // Nobody holds it back: every partition is idle.
            self.moved = Some((watermark, now));
            return None;
        };
        let stood = now.saturating_sub(since);
        let memory = permission != ReadPermission::All;
        let silent = matches!(slowest.waiting, Waiting::Silence);
        let silent_for = match (silent, self.silent) {
            (true, since) => now.saturating_sub(*self.silent.insert(since.unwrap_or(now))),
            (false, _) => {
                self.silent = None;
                Duration::ZERO
            }
        };
        // An ordinary transaction ends soon, and so does the time after which a partition is idle.
        let passes = match slowest.waiting {
            Waiting::Transaction { for_ms, .. } => Duration::from_millis(for_ms) < self.held_warning,
            Waiting::Silence => silent_for <= self.bound,
            _ => false,
        };
        // They may follow each other, each of them short.
        let overdue = stood > self.bound && (memory || !passes || stood > self.held_warning + self.bound);
        let for_ms = u64::try_from(stood.as_millis()).unwrap_or(u64::MAX);
        overdue.then_some(Stall { slowest, for_ms, unfinal: memory.then_some(unfinal) })
    }
}

#[cfg(test)]
mod tests {
    use headwater_dataflows::Offset;

    use super::*;

    fn slowest(waiting: Waiting) -> Option<Slowest> {
        Some(Slowest { greatest: Some(EventTime(5)), partition: Partition(3), waiting })
    }

    #[test]
    fn a_watermark_that_stands_is_reported_with_what_holds_it() {
        let second = Duration::from_secs;
        let mut liveness = Liveness::new(second(2), second(60));
        let mut observe = |at, watermark, waiting, permission| {
            liveness.observe(second(at), EventTime(watermark), slowest(waiting), permission, 1 << 28)
        };
        let backlog = Waiting::Backlog { records: 7 };
        assert_eq!(observe(0, 1, backlog, ReadPermission::All), None);
        assert_eq!(observe(2, 1, backlog, ReadPermission::All), None);
        let stall = observe(3, 1, backlog, ReadPermission::All).expect("it stands");
        assert_eq!((stall.cause(), stall.for_ms), (Cause::Records, 3000));
        assert!(
            stall.to_string().contains("partition 3") && stall.to_string().contains("7 records"),
            "{stall}"
        );
        assert_eq!(observe(4, 2, backlog, ReadPermission::All), None, "it moved");

        let held = |seconds: u64| Waiting::Transaction { offset: Offset(8812), for_ms: seconds * 1000 };
        assert_eq!(observe(40, 2, held(36), ReadPermission::All), None, "not for long enough");
        let stall = observe(64, 2, held(60), ReadPermission::All).expect("a minute");
        assert_eq!(stall.cause(), Cause::Transaction);
        assert!(stall.to_string().contains("open at offset 8812 for 60 s"), "{stall}");
        let stall = observe(64, 2, held(3), ReadPermission::Only(Partition(3))).expect("no memory is left");
        assert_eq!(stall.cause(), Cause::Memory);
        assert!(stall.to_string().contains("256 MiB") && stall.to_string().contains("8812"), "{stall}");
        assert_eq!(
            liveness.observe(second(99), EventTime(2), None, ReadPermission::All, 0),
            None,
            "all are idle"
        );
    }
}

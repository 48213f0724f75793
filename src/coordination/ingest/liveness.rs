//! Liveness: detects that final results do not advance, and the cause.

use std::fmt;
use std::time::Duration;

use headwater_dataflows::{EventTime, Partition};
use serde::{Deserialize, Serialize};

use super::{ReadPermission, Slowest, Waiting};

/// The cause of a stall, as in the label of `headwater_stalled{cause}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Cause {
    /// An upstream transaction was left open.
    Transaction,
    /// The leader of a partition does not answer.
    Leader,
    /// A schema is not known.
    Schema,
    /// Records are read, but none of them advances event time: they are rejected, late or duplicates.
    Records,
    /// Un-final events have used up their memory, and the slowest partition does not advance.
    Memory,
    /// A sink does not commit.
    Sink,
    /// The ledger does not record epochs.
    Ledger,
    /// Another process, or the workers of this one, hold back the frontier.
    Frontier,
    /// The topic has changed since it was opened, so it has partitions that are not read.
    Topic,
}

impl Cause {
    /// All causes.
    pub const ALL: [Cause; 9] = [
        Cause::Transaction,
        Cause::Leader,
        Cause::Schema,
        Cause::Records,
        Cause::Memory,
        Cause::Sink,
        Cause::Ledger,
        Cause::Frontier,
        Cause::Topic,
    ];

    /// Returns the value of the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Transaction => "transaction",
            Cause::Leader => "leader",
            Cause::Schema => "schema",
            Cause::Records => "records",
            Cause::Memory => "memory",
            Cause::Sink => "sink",
            Cause::Ledger => "ledger",
            Cause::Frontier => "frontier",
            Cause::Topic => "topic",
        }
    }
}

/// A watermark that does not advance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stall {
    /// The partition that holds back the watermark.
    pub slowest: Slowest,
    /// The time since the watermark last advanced, in milliseconds.
    pub for_ms: u64,
    /// The number of un-final bytes, if the limit is reached.
    pub unfinal: Option<u64>,
}

impl Stall {
    /// Returns the cause of the stall.
    pub fn cause(&self) -> Cause {
        match (self.unfinal, self.slowest.waiting) {
            (Some(_), _) => Cause::Memory,
            (None, Waiting::Transaction { .. }) => Cause::Transaction,
            (None, Waiting::Leader { .. }) => Cause::Leader,
            (None, Waiting::Schema { .. }) => Cause::Schema,
            (None, Waiting::Backlog { .. } | Waiting::Silence) => Cause::Records,
        }
    }
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Slowest { partition: Partition(partition), waiting, .. } = self.slowest;
        let stalled_s = self.for_ms / 1000;
        if let Some(bytes) = self.unfinal {
            let mebibytes = bytes >> 20;
            write!(
                f,
                "un-final events use {mebibytes} MiB, the limit of limits.unfinal_bytes: only the slowest partition is \
                 read; "
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
                "the leader of source partition {partition} has not responded for {} s; final results wait for it",
                for_ms / 1000
            ),
            Waiting::Schema { offset, for_ms } => write!(
                f,
                "the record at offset {} of source partition {partition} has been waiting for its schema for {} s; final \
                 results wait for it, and the log says why the schema registry does not return it",
                offset.0,
                for_ms / 1000
            ),
            Waiting::Silence => write!(
                f,
                "source partition {partition} is the slowest and has no more records; the watermark has not advanced \
                 for {stalled_s} s, and waits until a record advances its event time or the partition becomes idle"
            ),
            Waiting::Backlog { records } => write!(
                f,
                "source partition {partition} holds the watermark, which has not advanced for {stalled_s} s: {records} \
                 records are waiting, and none of those read has advanced its event time (rejected, late and \
                 duplicate records do not)"
            ),
        }
    }
}

/// Monitors the watermark.
#[derive(Clone, Debug)]
pub struct Liveness {
    /// The time that the watermark may stand still while a partition holds it back.
    limit: Duration,
    /// The time that a transaction may hold back the watermark.
    held_warning: Duration,
    last_advance: Option<(EventTime, Duration)>,
    /// The time since which the idle timeout has been the only thing waited for.
    silent_since: Option<Duration>,
}

impl Liveness {
    /// Returns a monitor with these limits; a transaction may hold back the watermark for `held_warning`.
    pub fn new(limit: Duration, held_warning: Duration) -> Liveness {
        Liveness { limit, held_warning, last_advance: None, silent_since: None }
    }

    /// Observes the watermark at `now` and the slowest partition that is not idle. Returns the stall, if the watermark
    /// has stood still for longer than allowed.
    pub fn observe(
        &mut self,
        now: Duration,
        watermark: EventTime,
        slowest: Option<Slowest>,
        permission: ReadPermission,
        unfinal: u64,
    ) -> Option<Stall> {
        let since = match self.last_advance {
            Some((before, since)) if before == watermark => since,
            _ => {
                self.last_advance = Some((watermark, now));
                now
            }
        };
        let Some(slowest) = slowest else {
            // Every partition is idle, so none holds back the watermark.
            self.last_advance = Some((watermark, now));
            return None;
        };
        let stalled_for = now.saturating_sub(since);
        let is_memory_full = permission != ReadPermission::All;
        let is_silent = matches!(slowest.waiting, Waiting::Silence);
        let silent_for = match (is_silent, self.silent_since) {
            (true, since) => now.saturating_sub(*self.silent_since.insert(since.unwrap_or(now))),
            (false, _) => {
                self.silent_since = None;
                Duration::ZERO
            }
        };
        // An ordinary transaction ends soon, and so does the idle timeout.
        let is_tolerated = match slowest.waiting {
            Waiting::Transaction { for_ms, .. } => Duration::from_millis(for_ms) < self.held_warning,
            Waiting::Silence => silent_for <= self.limit,
            _ => false,
        };
        // Short waits may follow each other.
        let overdue = stalled_for > self.limit
            && (is_memory_full || !is_tolerated || stalled_for > self.held_warning + self.limit);
        let for_ms = u64::try_from(stalled_for.as_millis()).unwrap_or(u64::MAX);
        overdue.then_some(Stall { slowest, for_ms, unfinal: is_memory_full.then_some(unfinal) })
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
    fn a_stalled_watermark_is_reported_with_its_cause() {
        let second = Duration::from_secs;
        let mut liveness = Liveness::new(second(2), second(60));
        let mut observe = |at, watermark, waiting, permission| {
            liveness.observe(second(at), EventTime(watermark), slowest(waiting), permission, 1 << 28)
        };
        let backlog = Waiting::Backlog { records: 7 };
        assert_eq!(observe(0, 1, backlog, ReadPermission::All), None);
        assert_eq!(observe(2, 1, backlog, ReadPermission::All), None);
        let stall = observe(3, 1, backlog, ReadPermission::All).expect("a stall");
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
        let stall = observe(64, 2, held(3), ReadPermission::Only(Partition(3))).expect("no memory left");
        assert_eq!(stall.cause(), Cause::Memory);
        assert!(stall.to_string().contains("256 MiB") && stall.to_string().contains("8812"), "{stall}");
        assert_eq!(
            liveness.observe(second(99), EventTime(2), None, ReadPermission::All, 0),
            None,
            "all are idle"
        );
    }
}

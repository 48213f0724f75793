//! Readiness of the process, and the causes that delay it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use headwater_dataflows::{Offset, Partition};

use crate::coordination::ingest::{Cause, Stall};

/// The reasons for which the process is not ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unready {
    /// The description.
    pub reason: String,
    /// The causes of the stall.
    pub causes: Vec<Cause>,
    /// The time since all sinks last made progress, in seconds; None if there was none yet.
    pub standstill_s: Option<u64>,
    /// The number of unread records in this process's partitions.
    pub lag_records: i64,
    /// The sink of this process with the longest commit in progress.
    pub committing: Option<String>,
}

/// The state of everything that can stall a process.
pub(super) struct Health {
    /// The current step of the start, and the time at which it began; None once the workers run.
    pub starting: Option<(String, Instant)>,
    pub frontier: Option<Frontier>,
    /// The maximum time without progress of the frontier, in addition to the sinks' commit interval. The frontier
    /// advances with the epochs, even when no records are read.
    pub standstill: Duration,
    /// The maximum time for which a transaction may hold a partition.
    pub held_warning: Duration,
    /// The longest commit interval of the sinks.
    pub interval: Duration,
    /// The sinks with a commit in progress, and the time at which it began.
    pub committing: BTreeMap<String, Instant>,
    /// The time at which the current write to the ledger began, if one is in progress.
    pub writes_ledger: Option<Instant>,
    /// The cause that holds the watermark.
    pub watermark: Option<Stall>,
    /// The partitions that are held by an open transaction, with its offset and the time since which it is held.
    pub held: BTreeMap<Partition, (Offset, Instant)>,
    /// The problem of the source's topic.
    pub topic: Option<String>,
    /// The logged stalls whose end has not been logged yet.
    logged: BTreeMap<Cause, String>,
}

/// The frontier behind all sinks.
#[derive(Clone, Copy)]
pub(super) struct Frontier {
    /// The time at which the frontier's epoch was opened; None if no epoch is in flight.
    pub begun: Option<Instant>,
    pub moved: Instant,
}

impl Default for Health {
    fn default() -> Self {
        Health {
            starting: None,
            frontier: None,
            standstill: Duration::from_secs(10),
            held_warning: Duration::from_secs(60),
            interval: Duration::ZERO,
            committing: BTreeMap::new(),
            writes_ledger: None,
            watermark: None,
            held: BTreeMap::new(),
            topic: None,
            logged: BTreeMap::new(),
        }
    }
}

impl Health {
    /// Returns the sink with the longest commit in progress, and the time at which it began.
    pub fn committing_longest(&self) -> Option<(&String, &Instant)> {
        self.committing.iter().min_by_key(|(_, since)| **since)
    }

    /// Returns the time since the frontier last advanced; None if it never did.
    pub fn standstill_time(&self, now: Instant) -> Option<Duration> {
        self.frontier.map(|frontier| now.saturating_duration_since(frontier.moved))
    }

    /// Returns the current stalls by cause, each with a description.
    pub fn stalls(&self, now: Instant) -> BTreeMap<Cause, String> {
        let mut stalls = BTreeMap::new();
        if let Some(stall) = &self.watermark {
            stalls.insert(stall.cause(), stall.to_string());
        }
        for (partition, &(offset, since)) in &self.held {
            let time = now.saturating_duration_since(since);
            if time >= self.held_warning {
                stalls.entry(Cause::Transaction).or_insert_with(|| {
                    format!(
                        "source partition {} is held by a transaction that is open at offset {} for {} s; final \
                         results wait for it",
                        partition.0,
                        offset.0,
                        time.as_secs()
                    )
                });
            }
        }
        if let Some(topic) = &self.topic {
            stalls.insert(Cause::Topic, topic.clone());
        }
        if let Some(time) = self.standstill_time(now).filter(|&time| time > self.standstill + self.interval) {
            let reason = format!("nothing has been committed for {} s", time.as_secs());
            let since = |since: Instant| now.saturating_duration_since(since).as_secs();
            let (cause, holder) = match (self.committing_longest(), self.writes_ledger) {
                (Some((sink, &at)), _) => {
                    (Cause::Sink, format!("; sink {sink} has been committing for {} s", since(at)))
                }
                (None, Some(at)) => {
                    (Cause::Ledger, format!("; the ledger has been writing for {} s", since(at)))
                }
                (None, None) => (Cause::Frontier, String::new()),
            };
            stalls.insert(cause, reason + &holder);
        }
        stalls
    }

    /// Returns true if a transaction has held a partition for longer than ordinary transactions stay open.
    pub fn is_held(&self, now: Instant) -> bool {
        self.held.values().any(|&(_, since)| now.saturating_duration_since(since) > self.standstill)
    }

    /// Logs each stall once, and its end.
    pub fn log(&mut self, now: Instant) {
        let stalls = self.stalls(now);
        for (cause, reason) in &stalls {
            if !self.logged.contains_key(cause) {
                tracing::warn!(cause = cause.as_str(), reason, "stalled");
            }
        }
        for cause in self.logged.keys().filter(|cause| !stalls.contains_key(cause)) {
            tracing::info!(cause = cause.as_str(), "no longer stalled");
        }
        self.logged = stalls;
    }

    /// Returns the reasons for which the process is not ready; None if it is ready. `lag_records` is the number of
    /// unread records.
    pub fn unready(&self, now: Instant, lag_records: i64) -> Option<Unready> {
        let stalls = self.stalls(now);
        let standstill = self.standstill_time(now);
        let mut reasons: Vec<_> = stalls.values().cloned().collect();
        if standstill.is_none() {
            let reason = match &self.starting {
                Some((what, since)) => {
                    format!("starting: {what} for {} s", now.saturating_duration_since(*since).as_secs())
                }
                None => "no epoch has been committed yet".to_owned(),
            };
            reasons.insert(0, reason);
        }
        if reasons.is_empty() {
            return None;
        }
        if lag_records > 0 {
            reasons.push(format!("{lag_records} records are waiting to be read"));
        }
        Some(Unready {
            reason: reasons.join("; "),
            causes: stalls.into_keys().collect(),
            standstill_s: standstill.map(|time| time.as_secs()),
            lag_records,
            committing: self.committing_longest().map(|(sink, _)| sink.clone()),
        })
    }
}

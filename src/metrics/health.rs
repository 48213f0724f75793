//! Whether the process gets on, and what holds it up if it does not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use headwater_dataflows::{Offset, Partition};

use crate::coordination::ingest::{Cause, Stall};

/// Why the process is not ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unready {
    /// In words.
    pub reason: String,
    /// What kinds of things hold it up.
    pub causes: Vec<Cause>,
    /// How long the frontier behind all sinks has stood still, in seconds; none if it has never moved.
    pub standstill_s: Option<u64>,
    /// How many records are known to wait in this process's partitions.
    pub lag_records: i64,
    /// The sink of this process that has been committing for longest.
    pub committing: Option<String>,
}

/// What is known of the things that can hold a process up.
pub(super) struct Health {
    /// What the start is about, and since when; none once workers run.
    pub starting: Option<(String, Instant)>,
    pub frontier: Option<Frontier>,
    /// How long the frontier may stand still, beside the time that sinks wait between commits. It moves with the epochs,
    /// also when nothing is read.
    pub standstill: Duration,
    /// How long a transaction may hold a partition.
    pub held_warning: Duration,
    /// The longest time that a sink waits between two commits.
    pub interval: Duration,
    /// Which sinks are committing, and since when.
    pub committing: BTreeMap<String, Instant>,
    /// Since when the ledger has been writing.
    pub writes_ledger: Option<Instant>,
    /// What holds the watermark.
    pub watermark: Option<Stall>,
    /// By partition that is held by an open transaction: its offset, and since when.
    pub held: BTreeMap<Partition, (Offset, Instant)>,
    /// What is wrong with the source's topic.
    pub topic: Option<String>,
    /// What was logged, and not yet taken back.
    logged: BTreeMap<Cause, String>,
}

/// Where the frontier behind all sinks stands.
#[derive(Clone, Copy)]
pub(super) struct Frontier {
    /// When the epoch that it stands at began; none if no epoch is under way.
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
    /// The sink that has been committing for longest, and since when.
    pub fn committing_longest(&self) -> Option<(&String, &Instant)> {
        self.committing.iter().min_by_key(|(_, since)| **since)
    }

    /// For how long the frontier has stood, if it ever moved.
    pub fn stands(&self, now: Instant) -> Option<Duration> {
        self.frontier.map(|frontier| now.saturating_duration_since(frontier.moved))
    }

    /// Everything that holds the process up, with a sentence each.
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
        if let Some(time) = self.stands(now).filter(|&time| time > self.standstill + self.interval) {
            let stands = format!("nothing has been committed for {} s", time.as_secs());
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
            stalls.insert(cause, stands + &holder);
        }
        stalls
    }

    /// Whether a transaction has held any partition for longer than an ordinary one is open.
    pub fn is_held(&self, now: Instant) -> bool {
        self.held.values().any(|&(_, since)| now.saturating_duration_since(since) > self.standstill)
    }

    /// Logs what holds the process up, once, and when it no longer does.
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

    /// Why the process is not ready, if it is not, when so many records wait.
    pub fn unready(&self, now: Instant, lag_records: i64) -> Option<Unready> {
        let stalls = self.stalls(now);
        let standstill = self.stands(now);
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
            reasons.push(format!("{lag_records} records wait"));
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

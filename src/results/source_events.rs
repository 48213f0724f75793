//! The events of a key, read from the source again, where no sink stores events in a table.
//!
//! ```text
//!   RecordHistory (connection of its own, bounds) ── Raw ──▶ Collector: decode ─▶ future? ─▶ of the key, within the look-back
//!        ─▶ order of arrival ─▶ late? ─▶ duplicate? ─▶ order of the rule ─▶ SourceRead
//! ```
//!
//! The epoch of a record is not known here, so what was refused as late is estimated ([`late`]).

mod collect;
mod late;

use std::time::{Duration, Instant};

use self::collect::Collector;
use super::alert::AlertRecord;
use super::stored::EventRecord;
use super::{MAX_EVENTS, ResultsError};
use crate::config::Config;
use crate::connectors::causes;
use crate::decode::Decoding;
use crate::pipeline::{RulePlan, Time};
use crate::source::history::{Gap, HistoryQuery, RecordHistory};

/// The maximum time for reading.
const READ_TIME: Duration = Duration::from_secs(5);

/// The source of a pipeline, as far as events are read from it again.
pub struct SourceEvents {
    /// The reason if its records cannot be read again.
    history: Result<Box<dyn RecordHistory>, String>,
    settings: Settings,
}

/// The settings that decide which records are events of the pipeline.
#[derive(Clone, Debug)]
struct Settings {
    decoding: Decoding,
    time: Time,
    dedup_horizon_ms: i64,
}

/// The events of a key up to an alert's triggering event.
#[derive(Debug)]
pub struct SourceRead {
    /// The place from which they were read, for people.
    pub place: String,
    /// The events, in the order in which a rule sees them.
    pub events: Vec<EventRecord>,
    /// The event time after which all events are known; None if all are.
    pub known_from_ms: Option<i64>,
    /// True if events may be missing even after that time.
    pub has_gaps: bool,
    /// True if not all events of the key are known.
    pub is_partial: bool,
    /// The missing records, in words.
    pub missing: Option<String>,
    /// The number of events that are left out because they were probably refused as late.
    pub late: usize,
}

impl SourceEvents {
    /// Returns the source of a configuration.
    pub fn of_config(config: &Config) -> SourceEvents {
        let plan = &config.plan;
        SourceEvents {
            history: config.source.connector().history(plan.time.epoch_records),
            settings: Settings {
                decoding: plan.decoding.clone(),
                time: plan.time,
                dedup_horizon_ms: plan.limits.dedup_horizon_ms,
            },
        }
    }

    /// Returns the reason why nothing can be read again; None if it can.
    pub fn objection(&self) -> Option<&str> {
        self.history.as_ref().err().map(String::as_str)
    }

    /// Reads the events of an alert's key, which is that of `own` if it is an alert of a rule of the user's own: those of the last `look_back_ms` milliseconds before it and as many before
    /// those, or all. Returns None if nothing can be read again.
    ///
    /// # Errors
    /// If the source cannot be read.
    pub fn read(
        &self,
        alert: &AlertRecord,
        look_back_ms: Option<i64>,
        own: Option<&RulePlan>,
    ) -> Result<Option<SourceRead>, ResultsError> {
        let Ok(history) = &self.history else { return Ok(None) };
        let time = &self.settings.time;
        let trigger_ms = alert.event_time_ms;
        // The state before the first event that took part depends on what lies as far before it.
        let after_ms = look_back_ms.map(|ms| trigger_ms.saturating_sub(ms.saturating_mul(2)));
        let idle_ms = i64::try_from(time.idle_timeout.as_millis()).unwrap_or(i64::MAX);
        // The usual bound of the difference between event times and the timestamps of records.
        let margin_ms = time.max_out_of_orderness_ms.saturating_add(idle_ms.saturating_mul(2));
        let query = HistoryQuery {
            position: alert.position,
            earliest_ms: trigger_ms.saturating_sub(margin_ms),
            from_ms: after_ms.map(|ms| ms.saturating_sub(margin_ms)),
            // An accepted event is never later than the timestamp of its record by more than `max_future_skew`.
            spare_ms: time.max_future_skew_ms.saturating_sub(margin_ms).max(0),
            after_ms: margin_ms,
            deadline: Instant::now() + READ_TIME,
        };
        let mut collector = Collector::new(alert, after_ms, own, self.settings.clone());
        let read = history
            .read(&query, &mut collector)
            .map_err(|error| ResultsError { place: history.name(), reason: causes(&error) })?;
        let collected = collector.finish();
        let since_ms = read.since_ms.map(|ms| ms.saturating_add(margin_ms));
        let known_from_ms = since_ms.max(collected.known_from_ms);
        let is_searched = query.position.is_none() && !read.is_found && read.gaps.is_empty();
        let not_found =
            || format!("none of the records from {} on is it", crate::json::rfc3339(query.earliest_ms));
        Ok(Some(SourceRead {
            place: history.name(),
            missing: read.missing().or_else(|| is_searched.then(not_found)),
            known_from_ms,
            has_gaps: read.gaps.iter().any(|gap: &Gap| gap.is_after_start()),
            is_partial: !read.gaps.is_empty() || known_from_ms.is_some(),
            events: if read.is_found { collected.events } else { Vec::new() },
            late: collected.late,
        }))
    }
}

/// The number of events of a key that are kept.
const KEPT: usize = MAX_EVENTS;

#[cfg(test)]
mod tests;

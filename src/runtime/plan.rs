//! What a run computes, validated: the engine's own terms, whatever they were configured by.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use headwater_dataflows::windows::Refresh;
use headwater_dataflows::{Emission, Epoch};

use crate::coordination::WatermarkRule;
use crate::outputs::{Provenance, Severity};

/// A pipeline.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its name.
    pub pipeline: Arc<str>,
    /// Whether a record is rejected for an optional field of a wrong form.
    pub strict_fields: bool,
    /// The topic that it reads, if it reads one: dead letters name it.
    pub source_topic: Option<Arc<str>>,
    /// Time and its bounds.
    pub time: Time,
    /// Bounds of memory.
    pub limits: Limits,
    /// The windows.
    pub windows: Vec<WindowPlan>,
    /// The patterns.
    pub patterns: Patterns,
    /// The first epoch of this run.
    pub first_epoch: Epoch,
    /// Whether the watermark goes to infinity when the input ends, so that all windows close.
    pub close_at_end: bool,
    /// Where to write down the bindings, if anywhere.
    pub record_bindings: Option<PathBuf>,
}

impl Plan {
    /// What its outputs are of.
    pub fn provenance(&self) -> Provenance {
        Provenance { pipeline: Arc::clone(&self.pipeline), source_topic: self.source_topic.clone() }
    }
}

/// Time and its bounds.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    /// How long an epoch lasts, at least.
    pub epoch: Duration,
    /// How much later than a younger event of its partition an event may come and still count.
    pub max_out_of_orderness_ms: i64,
    /// How long a partition must be silent to be idle.
    pub idle_timeout: Duration,
    /// How far an event may lie in the future.
    pub max_future_skew_ms: i64,
    /// How many records of each partition an epoch has, where records are all there from the start.
    pub epoch_records: i64,
    /// How far a record may jump ahead before another one must confirm it, where no clock stands by.
    pub max_jump_ms: Option<i64>,
    /// How far partitions may be apart, if that is limited.
    pub max_drift_ms: Option<i64>,
    /// How long an open transaction may hold a partition before that is reported.
    pub held_warning: Duration,
    /// How long it may hold a partition at all, if that is limited.
    pub held_timeout: Option<Duration>,
    /// How long all partitions must have been idle for the watermark to follow the wall time, if it does.
    pub idle_advance_ms: Option<i64>,
}

impl Time {
    /// The numbers by which the watermark is computed.
    pub fn watermark_rule(&self) -> WatermarkRule {
        WatermarkRule {
            max_out_of_orderness_ms: self.max_out_of_orderness_ms,
            idle_advance_ms: self.idle_advance_ms,
        }
    }

    /// How long the watermark, or the frontier of the sinks, may stand before something is held up.
    pub fn standstill(&self) -> Duration {
        2 * self.idle_timeout + self.epoch
    }
}

/// Bounds of memory.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many bytes a process may have read that are not committed.
    pub bytes_in_flight: usize,
    /// How many bytes of a process's events may be un-final.
    pub unfinal_bytes: u64,
    /// How many epochs may lie between reading and the slowest sink.
    pub epochs_in_flight: u64,
    /// Within which time an id is a duplicate.
    pub dedup_horizon_ms: i64,
    /// How long a key is remembered after its last event.
    pub ttl_ms: i64,
}

/// A window.
#[derive(Clone, Debug)]
pub struct WindowPlan {
    /// Its name.
    pub name: Arc<str>,
    /// Its bounds.
    pub kind: WindowKind,
    /// Which keys have it.
    pub by: By,
    /// When its rows are given.
    pub refresh: Refresh,
}

/// The bounds of a window, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowKind {
    /// One after the other.
    Tumbling {
        /// How long each is.
        size_ms: i64,
    },
    /// Overlapping.
    Sliding {
        /// How long each is.
        size_ms: i64,
        /// How far apart they start.
        every_ms: i64,
    },
    /// As long as events follow each other.
    Session {
        /// Which silence ends it.
        gap_ms: i64,
    },
}

/// Which keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Users.
    User,
    /// Devices.
    Device,
    /// All.
    Key,
}

/// The patterns that run.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    /// Many events in a long time.
    pub velocity_spike: Option<FrequencyPlan>,
    /// Many events in a short time.
    pub rapid_fire_burst: Option<FrequencyPlan>,
    /// Many merchants.
    pub merchant_diversity: Option<DiversityPlan>,
    /// An amount far from the mean.
    pub amount_anomaly: Option<AmountPlan>,
    /// Two places too far apart.
    pub impossible_travel: Option<TravelPlan>,
}

/// How a rule's matches are told.
#[derive(Clone, Copy, Debug)]
pub struct AlertPolicy {
    /// How bad they are.
    pub severity: Severity,
    /// When they are given.
    pub emission: Emission,
}

/// So many events in such a time.
#[derive(Clone, Copy, Debug)]
pub struct FrequencyPlan {
    /// How many.
    pub at_least: usize,
    /// In which time.
    pub within_ms: i64,
    /// How it is told.
    pub alert_policy: AlertPolicy,
}

/// So many distinct merchants in such a time.
#[derive(Clone, Copy, Debug)]
pub struct DiversityPlan {
    /// How many.
    pub at_least: usize,
    /// In which time.
    pub within_ms: i64,
    /// How it is told.
    pub alert_policy: AlertPolicy,
}

/// An amount so far from the mean.
#[derive(Clone, Copy, Debug)]
pub struct AmountPlan {
    /// How many standard deviations.
    pub sigmas: f64,
    /// From how many on it is as bad as [`Severity::High`].
    pub high_sigmas: f64,
    /// How many earlier amounts there must be.
    pub at_least: u64,
    /// How large the standard deviation must be, in units of the amount.
    pub min_sigma: f64,
    /// The same, as a share of the mean.
    pub min_relative_sigma: f64,
    /// Whether each currency has a mean of its own.
    pub per_currency: bool,
    /// How it is told.
    pub alert_policy: AlertPolicy,
}

/// A movement so far and so fast.
#[derive(Clone, Copy, Debug)]
pub struct TravelPlan {
    /// How far, in kilometres.
    pub km: f64,
    /// How fast, in kilometres an hour.
    pub kmh: f64,
    /// How it is told.
    pub alert_policy: AlertPolicy,
}

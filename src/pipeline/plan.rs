//! The validated plan of a run, in the engine's own terms and independent of the configuration format.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use headwater_dataflows::windows::EmitPolicy;
use headwater_dataflows::{Emission, Epoch};

use super::own::RulePlan;
use super::rules::longest_look_back_ms;
use super::spaces::KeySpace;
use crate::coordination::WatermarkRule;
use crate::decode::Decoding;
use crate::outputs::{Provenance, Severity};

/// A pipeline.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The name of the pipeline.
    pub pipeline: Arc<str>,
    /// The way in which records are decoded.
    pub decoding: Decoding,
    /// The topic that is read, recorded in dead letters; None if the source is not a topic.
    pub source_topic: Option<Arc<str>>,
    /// Time settings and limits.
    pub time: Time,
    /// Memory limits.
    pub limits: Limits,
    /// The windows.
    pub windows: Vec<WindowPlan>,
    /// The patterns.
    pub patterns: Patterns,
    /// The rules of the user's own, as the configuration has them.
    pub rules: Vec<RulePlan>,
    /// The key spaces of the user's own, which rules may use at any time.
    pub spaces: Vec<Arc<KeySpace>>,
    /// The first epoch of this run.
    pub first_epoch: Epoch,
    /// True if the watermark goes to infinity at the end of the input, so that all windows close.
    pub close_at_end: bool,
    /// The file that the bindings are written to, if any.
    pub record_bindings: Option<PathBuf>,
}

impl Plan {
    /// Returns the key spaces that windows or rules use or may use, each once, by name.
    pub fn all_spaces(&self) -> Vec<Arc<KeySpace>> {
        let (windows, rules) = (self.windows.iter(), self.rules.iter());
        let used = windows.map(|window| &window.by).chain(rules.map(|rule| &rule.by)).filter_map(By::space);
        let mut spaces: Vec<_> = self.spaces.iter().chain(used).cloned().collect();
        spaces.sort_by(|a, b| a.name.cmp(&b.name));
        spaces.dedup_by(|a, b| a.name == b.name);
        spaces
    }

    /// Returns the ids of all rules: of patterns and of the user's own.
    pub fn rule_ids(&self) -> Vec<String> {
        let own = self.rules.iter().map(|rule| rule.id.to_string());
        self.patterns.names().into_iter().map(str::to_owned).chain(own).collect()
    }

    /// Returns the longest time that a rule looks back or is suppressed, in milliseconds of event time.
    pub fn longest_look_back_ms(patterns: &Patterns, rules: &[RulePlan]) -> i64 {
        rules.iter().map(RulePlan::reach_ms).fold(longest_look_back_ms(patterns), i64::max)
    }

    /// Returns the provenance of the outputs: the pipeline and its source topic.
    pub fn provenance(&self) -> Provenance {
        Provenance { pipeline: Arc::clone(&self.pipeline), source_topic: self.source_topic.clone() }
    }
}

/// Time settings and limits.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    /// The minimum length of an epoch.
    pub epoch: Duration,
    /// The time by which an event may be older than the newest event read from its partition without being late.
    pub max_out_of_orderness_ms: i64,
    /// The time without an accepted event after which a partition is idle.
    pub idle_timeout: Duration,
    /// The maximum time by which an event may lie in the future.
    pub max_future_skew_ms: i64,
    /// The number of records that an epoch takes from each partition, for sources whose epochs are counted.
    pub epoch_records: i64,
    /// The maximum jump in event time that needs no confirmation by another record, for sources without a second clock.
    pub max_jump_ms: Option<i64>,
    /// The maximum drift between partitions; None if unlimited.
    pub max_drift_ms: Option<i64>,
    /// The time after which a partition that is held by an open transaction is reported.
    pub held_warning: Duration,
    /// The time after which a held partition counts as idle; None if never.
    pub held_timeout: Option<Duration>,
    /// The time for which all partitions must be idle before the watermark follows the wall time; None if it never does.
    pub idle_advance_ms: Option<i64>,
}

impl Time {
    /// Returns the parameters from which the watermark is computed.
    pub fn watermark_rule(&self) -> WatermarkRule {
        WatermarkRule {
            max_out_of_orderness_ms: self.max_out_of_orderness_ms,
            idle_advance_ms: self.idle_advance_ms,
        }
    }

    /// Returns the time without progress after which the watermark, or the frontier behind the sinks, counts as stalled.
    pub fn standstill(&self) -> Duration {
        2 * self.idle_timeout + self.epoch
    }
}

/// Limits of memory, of state and of rejected records.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The maximum number of bytes that a process has read and not committed.
    pub bytes_in_flight: usize,
    /// The maximum number of bytes of un-final events in a process.
    pub unfinal_bytes: u64,
    /// The maximum number of epochs between reading and the slowest sink.
    pub epochs_in_flight: u64,
    /// The event time within which a repeated id is a duplicate, in milliseconds.
    pub dedup_horizon_ms: i64,
    /// The share of rejected records above which the run stops; None without a limit.
    pub max_rejected_share: Option<f64>,
    /// The wall time over which that share is taken.
    pub rejected_window: Duration,
    /// The time after its last event for which the state of a key is kept, in milliseconds.
    pub ttl_ms: i64,
    /// The event time before the watermark for which the positions of refused events are kept, in milliseconds.
    pub backfill_horizon_ms: i64,
}

/// A window.
#[derive(Clone, Debug)]
pub struct WindowPlan {
    /// The name of the window.
    pub name: Arc<str>,
    /// The kind and size.
    pub kind: WindowKind,
    /// The keys that it aggregates by.
    pub by: By,
    /// The times at which its rows are emitted.
    pub emit: EmitPolicy,
}

/// The kind and size of a window, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowKind {
    /// Consecutive windows of equal length.
    Tumbling {
        /// The length of each window.
        size_ms: i64,
    },
    /// Overlapping windows of equal length.
    Sliding {
        /// The length of each window.
        size_ms: i64,
        /// The time between the starts of two windows.
        slide_ms: i64,
    },
    /// Windows that last as long as events follow each other.
    Session {
        /// The inactivity gap that ends a session.
        gap_ms: i64,
    },
}

impl WindowKind {
    /// Returns the length of a window; of a session, the gap that ends it, since its length has no limit.
    pub fn length_ms(&self) -> i64 {
        match *self {
            WindowKind::Tumbling { size_ms } | WindowKind::Sliding { size_ms, .. } => size_ms,
            WindowKind::Session { gap_ms } => gap_ms,
        }
    }
}

/// The keys that a window or a rule groups by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// The key of an event: its device if it is of a sensor, else its user.
    Key,
    /// The key of an event, where it is a user.
    KeyOfUser,
    /// The key of an event, where it is a device.
    KeyOfDevice,
    /// A key space.
    Space(Arc<KeySpace>),
}

impl By {
    /// Returns the name in configurations.
    pub fn name(&self) -> &str {
        match self {
            By::Key => "key",
            By::KeyOfUser => "user_id",
            By::KeyOfDevice => "device_id",
            By::Space(space) => &space.name,
        }
    }

    /// Returns the key space; None if the keys are those of events.
    pub fn space(&self) -> Option<&Arc<KeySpace>> {
        match self {
            By::Space(space) => Some(space),
            By::Key | By::KeyOfUser | By::KeyOfDevice => None,
        }
    }
}

/// The enabled patterns.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    /// Many events in a long time.
    pub velocity_spike: Option<FrequencyPlan>,
    /// Many events in a short time.
    pub rapid_fire_burst: Option<FrequencyPlan>,
    /// Many distinct merchants in a time.
    pub merchant_diversity: Option<DiversityPlan>,
    /// An amount far from the mean.
    pub amount_anomaly: Option<AmountPlan>,
    /// Two places too far apart.
    pub impossible_travel: Option<TravelPlan>,
}

impl Patterns {
    /// Returns the names of the enabled patterns, which are those of their rules.
    pub fn names(&self) -> Vec<&'static str> {
        let enabled = [
            ("velocity_spike", self.velocity_spike.is_some()),
            ("rapid_fire_burst", self.rapid_fire_burst.is_some()),
            ("merchant_diversity", self.merchant_diversity.is_some()),
            ("amount_anomaly", self.amount_anomaly.is_some()),
            ("impossible_travel", self.impossible_travel.is_some()),
        ];
        enabled.into_iter().filter_map(|(name, is_enabled)| is_enabled.then_some(name)).collect()
    }
}

/// The severity and emission of a rule's alerts.
#[derive(Clone, Copy, Debug)]
pub struct AlertPolicy {
    /// The alert severity.
    pub severity: Severity,
    /// The time of emission: at once, or when the alert is final.
    pub emission: Emission,
}

/// A minimum number of events within a time.
#[derive(Clone, Copy, Debug)]
pub struct FrequencyPlan {
    /// The minimum number of events.
    pub at_least: usize,
    /// The time, in milliseconds.
    pub within_ms: i64,
    /// The severity and emission of the alerts.
    pub alert_policy: AlertPolicy,
}

/// A minimum number of distinct merchants within a time.
#[derive(Clone, Copy, Debug)]
pub struct DiversityPlan {
    /// The minimum number of distinct merchants.
    pub at_least: usize,
    /// The time, in milliseconds.
    pub within_ms: i64,
    /// The severity and emission of the alerts.
    pub alert_policy: AlertPolicy,
}

/// An amount that deviates from the mean.
#[derive(Clone, Copy, Debug)]
pub struct AmountPlan {
    /// The deviation that must be exceeded, in standard deviations.
    pub sigmas: f64,
    /// The deviation above which the severity is at least [`Severity::High`], in standard deviations.
    pub high_sigmas: f64,
    /// The minimum number of earlier amounts.
    pub at_least: u64,
    /// The lower bound of the standard deviation, in units of the amount.
    pub min_sigma: f64,
    /// The lower bound of the standard deviation, as a fraction of the mean.
    pub min_relative_sigma: f64,
    /// True if each currency has its own mean.
    pub per_currency: bool,
    /// The severity and emission of the alerts.
    pub alert_policy: AlertPolicy,
}

/// A movement that is too far and too fast.
#[derive(Clone, Copy, Debug)]
pub struct TravelPlan {
    /// The distance that must be exceeded, in kilometres.
    pub km: f64,
    /// The speed that must be exceeded, in kilometres per hour.
    pub kmh: f64,
    /// The severity and emission of the alerts.
    pub alert_policy: AlertPolicy,
}

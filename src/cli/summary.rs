//! The summary that a run logs at its end.

use std::time::Duration;

use crate::decode::Reason;
use crate::metrics::Metrics;
use crate::outputs::RuleMode;

/// Logs the numbers of events, dead letters and alerts of a run. In a cluster, each process counts those of its own
/// workers.
pub fn log(metrics: &Metrics, elapsed: Duration) {
    let [malformed, invalid, late, future, duplicate] =
        [Reason::Malformed, Reason::Invalid, Reason::Late, Reason::Future, Reason::Duplicate]
            .map(|reason| metrics.rejected_count(reason.as_str()));
    let events = metrics.event_count().saturating_sub(late + duplicate);
    let dead_letters = malformed + invalid + late + future + duplicate;
    let [live, shadow] = RuleMode::ALL.map(RuleMode::as_str);
    let [alerts, revoked] = ["raised", "revoked"].map(|status| metrics.alert_total(status, live));
    let shadow_alerts = Some(metrics.alert_total("raised", shadow)).filter(|count| *count > 0);
    if events == 0
        && let Some(first) = metrics.first_rejection()
    {
        tracing::warn!(dead_letters, "no record was an event; first record: {first}");
    }
    let seconds = elapsed.as_secs_f64();
    let events_per_s = (events as f64 / seconds).round();
    tracing::info!(
        events,
        dead_letters,
        malformed,
        invalid,
        late,
        future,
        duplicate,
        alerts,
        revoked,
        shadow_alerts,
        seconds,
        events_per_s,
        "done"
    );
}

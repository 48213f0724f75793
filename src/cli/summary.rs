//! What a run says of itself at its end.

use std::time::Duration;

use crate::decode::Reason;
use crate::metrics::Metrics;

/// Logs what took part in a run, and what did not. In a cluster each process counts what its own workers did.
pub fn log(metrics: &Metrics, took: Duration) {
    let [malformed, invalid, late, future, duplicate] =
        [Reason::Malformed, Reason::Invalid, Reason::Late, Reason::Future, Reason::Duplicate]
            .map(|reason| metrics.rejected_count(reason.as_str()));
    let events = metrics.event_count().saturating_sub(late + duplicate);
    let dead_letters = malformed + invalid + late + future + duplicate;
    let [alerts, revoked] = ["raised", "revoked"].map(|status| metrics.alert_total(status));
    if events == 0
        && let Some(first) = metrics.first_rejection()
    {
        tracing::warn!(dead_letters, "no record was an event; the first one, {first}");
    }
    let seconds = took.as_secs_f64();
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
        seconds,
        events_per_s,
        "done"
    );
}

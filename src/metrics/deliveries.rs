//! The metrics of routes.

use prometheus::{IntCounterVec, IntGaugeVec};

use super::Metrics;

/// The metrics of deliveries, by route.
pub(super) struct DeliveryMetrics {
    pub total: IntCounterVec,
    pub waiting: IntGaugeVec,
    pub oldest: IntGaugeVec,
    pub condition_errors: IntCounterVec,
}

/// The outcome of an attempt to deliver, or of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryOutcome {
    /// The receiver has accepted the delivery.
    Delivered,
    /// The attempt failed, and will be repeated unless the delivery is given up.
    Failed,
    /// The receiver does not accept the request.
    Rejected,
    /// The delivery was given up.
    Dead,
}

impl DeliveryOutcome {
    const ALL: [DeliveryOutcome; 4] = [
        DeliveryOutcome::Delivered,
        DeliveryOutcome::Failed,
        DeliveryOutcome::Rejected,
        DeliveryOutcome::Dead,
    ];

    fn as_str(self) -> &'static str {
        match self {
            DeliveryOutcome::Delivered => "delivered",
            DeliveryOutcome::Failed => "failed",
            DeliveryOutcome::Rejected => "rejected",
            DeliveryOutcome::Dead => "dead",
        }
    }
}

impl Metrics {
    /// Counts an outcome of a route's deliveries.
    pub fn delivery(&self, route: &str, outcome: DeliveryOutcome) {
        self.deliveries.total.with_label_values(&[route, outcome.as_str()]).inc();
    }

    /// Sets the number of evaluations of a route's condition that ended with an error.
    pub fn route_errors(&self, route: &str, count: u64) {
        let counter = self.deliveries.condition_errors.with_label_values(&[route]);
        counter.inc_by(count.saturating_sub(counter.get()));
    }

    /// Sets the number of a route's deliveries that wait, and the age of the oldest.
    pub fn deliveries_waiting(&self, route: &str, count: i64, oldest_ms: i64) {
        for outcome in DeliveryOutcome::ALL {
            self.deliveries.total.with_label_values(&[route, outcome.as_str()]);
        }
        self.deliveries.waiting.with_label_values(&[route]).set(count);
        self.deliveries.oldest.with_label_values(&[route]).set(oldest_ms / 1000);
    }
}

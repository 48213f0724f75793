//! Events and patterns for unit tests.

use headwater_dataflows::{Emission, EventTime, Offset, Partition, Position};

use super::plan::{AlertPolicy, AmountPlan, DiversityPlan, FrequencyPlan, Patterns, TravelPlan};
use crate::decode::{Decoder, JsonDecoder};
use crate::event::Event;
use crate::outputs::Severity;
use crate::source::Raw;

/// The event time that tests count from, in milliseconds since 1970.
pub const T: i64 = 1_800_000_000_000;

/// Returns the event `eN` of user `ann`, where N is the offset, with further fields. `seconds` is its event time after
/// [`T`].
pub fn event(offset: i64, seconds: i64, fields: &str) -> Event {
    typed(offset, seconds, &format!(r#""event_type":"transaction","user_id":"ann"{fields}"#))
}

/// Returns an event with these fields, of which the type and the key are required.
pub fn typed(offset: i64, seconds: i64, fields: &str) -> Event {
    let time = T + 1000 * seconds;
    let text = format!(r#"{{"event_id":"e{offset}","event_time":{time},{fields}}}"#);
    let raw = Raw {
        position: Position { partition: Partition(0), offset: Offset(offset) },
        timestamp: time,
        key: None,
        value: Some(text.as_bytes()),
        retries: 0,
        producer: None,
    };
    JsonDecoder::new(true).decode(raw).expect("the event is valid")
}

/// Returns a function that makes the event `eN` of user `ann` of its time and its offset N, for a
/// [`Kit`](headwater_dataflows::testing::Kit).
pub fn at(fields: &str) -> impl FnOnce(EventTime, Position) -> Event {
    move |time, position| event(position.offset.0, (time.0 - T) / 1000, fields)
}

/// The policy of an alert that is raised at once.
pub fn policy(severity: Severity) -> AlertPolicy {
    AlertPolicy { severity, emission: Emission::Immediate }
}

/// Returns all patterns: two events in 10 s, three in 60 s, two merchants in 5 s, an amount beyond three standard
/// deviations, and 50 km at 900 km/h.
pub fn all_patterns() -> Patterns {
    let frequency = |at_least, within_ms, severity| {
        Some(FrequencyPlan { at_least, within_ms, alert_policy: policy(severity) })
    };
    Patterns {
        velocity_spike: frequency(3, 60_000, Severity::High),
        rapid_fire_burst: frequency(2, 10_000, Severity::Medium),
        merchant_diversity: Some(DiversityPlan {
            at_least: 2,
            within_ms: 5_000,
            alert_policy: policy(Severity::Low),
        }),
        amount_anomaly: Some(AmountPlan {
            sigmas: 3.0,
            high_sigmas: 5.0,
            at_least: 2,
            min_sigma: 0.01,
            min_relative_sigma: 0.0,
            per_currency: false,
            alert_policy: policy(Severity::Medium),
        }),
        impossible_travel: Some(TravelPlan {
            km: 50.0,
            kmh: 900.0,
            alert_policy: policy(Severity::Critical),
        }),
    }
}

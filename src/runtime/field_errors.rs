//! Optional fields of a wrong form: each is counted, and a sample is logged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_dataflows::Position;

use crate::decode::FieldError;
use crate::metrics::Metrics;

/// How often a worker logs an example of a field: one record in ten may have such a field.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// What one worker has come across.
pub struct FieldErrors {
    metrics: Arc<Metrics>,
    fields: BTreeMap<&'static str, Sample>,
}

/// When an example of a field was logged, and how many there were since.
#[derive(Default)]
struct Sample {
    logged: Option<Instant>,
    since: u64,
}

impl Sample {
    /// One more; says whether it is to be logged, and how many it stands for.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.since += 1;
        if self.logged.is_some_and(|at| now.duration_since(at) < LOG_EVERY) {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.since))
    }
}

impl FieldErrors {
    /// Counted there.
    pub fn new(metrics: Arc<Metrics>) -> FieldErrors {
        FieldErrors { metrics, fields: BTreeMap::new() }
    }

    /// Takes note of the fields of an event that were taken as absent.
    pub fn note(&mut self, position: Position, errors: &[FieldError]) {
        for FieldError { field, message } in errors {
            self.metrics.field_error(field);
            if let Some(count) = self.fields.entry(field).or_default().count(Instant::now()) {
                tracing::warn!(field, example = message, record = %position, count, "optional field taken as absent");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_rare_and_say_how_many_they_stand_for() {
        let mut sample = Sample::default();
        let start = Instant::now();
        assert_eq!(sample.count(start), Some(1), "the first one at once");
        for _ in 0..5 {
            assert_eq!(sample.count(start + LOG_EVERY / 2), None);
        }
        assert_eq!(sample.count(start + LOG_EVERY), Some(6));
    }
}

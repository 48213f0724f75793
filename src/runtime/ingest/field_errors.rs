//! Malformed optional fields: counts each, and logs examples.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_dataflows::Position;

use crate::decode::FieldError;
use crate::metrics::Metrics;

/// The minimum time between two logged examples of a field by a worker: one record in ten may have such a field.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The field errors of one worker.
pub struct FieldErrors {
    metrics: Arc<Metrics>,
    fields: BTreeMap<Cow<'static, str>, Sample>,
}

/// The time of the last logged example of a field, and the number of errors since.
#[derive(Default)]
struct Sample {
    logged: Option<Instant>,
    since: u64,
}

impl Sample {
    /// Counts an error. If an example is to be logged, returns the number of errors since the last one.
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
    /// Creates a counter that updates these metrics.
    pub fn new(metrics: Arc<Metrics>) -> FieldErrors {
        FieldErrors { metrics, fields: BTreeMap::new() }
    }

    /// Counts the fields of an event that were treated as absent, and logs examples.
    pub fn note(&mut self, position: Position, errors: &[FieldError]) {
        for FieldError { field, message } in errors {
            self.metrics.field_error(field);
            let sample = self.fields.entry(field.clone()).or_default();
            if let Some(count) = sample.count(Instant::now()) {
                tracing::warn!(
                    field = &**field, example = message, record = %position, count,
                    "malformed optional field treated as absent"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_rare_and_have_the_number_of_errors() {
        let mut sample = Sample::default();
        let start = Instant::now();
        assert_eq!(sample.count(start), Some(1), "the first one at once");
        for _ in 0..5 {
            assert_eq!(sample.count(start + LOG_EVERY / 2), None);
        }
        assert_eq!(sample.count(start + LOG_EVERY), Some(6));
    }

    #[test]
    fn errors_are_counted_by_field_and_each_has_its_own_examples() {
        let metrics = Arc::<Metrics>::default();
        let mut errors = FieldErrors::new(Arc::clone(&metrics));
        let error =
            |field| FieldError { field: Cow::Borrowed(field), message: "expected a number".to_owned() };
        errors.note(Position::default(), &[error("amount"), error("currency")]);
        errors.note(Position::default(), &[error("amount")]);
        let counts = ["amount", "currency", "location"].map(|field| metrics.field_error_count(field));
        assert_eq!(counts, [2, 1, 0]);
        let unlogged: Vec<_> = errors.fields.iter().map(|(field, sample)| (&**field, sample.since)).collect();
        assert_eq!(unlogged, [("amount", 1), ("currency", 0)], "the first one of each field is logged");
    }
}

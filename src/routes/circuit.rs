//! Decisions about failures: how long to wait before the next try, and when to leave a receiver alone.

use sha2::{Digest, Sha256};

/// The longest time before the first repetition, in milliseconds. It doubles with each further one.
const FIRST_WAIT_MS: i64 = 500;

/// The longest time before any repetition, in milliseconds.
const LONGEST_WAIT_MS: i64 = 300_000;

/// Returns the time to wait after this many failed attempts, in milliseconds: exponential, at random in its upper half,
/// so that deliveries that failed together do not all come back together. The same delivery waits the same time.
pub fn backoff_ms(delivery_id: &str, attempts: i64) -> i64 {
    let doublings = attempts.clamp(1, 20) - 1;
    let most = (FIRST_WAIT_MS << doublings).min(LONGEST_WAIT_MS);
    let hash = Sha256::new().chain_update(delivery_id).chain_update(attempts.to_be_bytes()).finalize();
    let random = i64::from(u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]));
    most / 2 + random % (most / 2 + 1)
}

/// The number of consecutive failures that opens a circuit.
const FAILURES: u32 = 10;

/// The time for which a circuit is open at first, in milliseconds. It doubles with each failed trial.
const OPEN_MS: i64 = 1000;

/// The longest time for which a circuit is open, in milliseconds.
const LONGEST_OPEN_MS: i64 = 60_000;

/// A change of a circuit, to be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CircuitChange {
    /// It opened: the receiver gets no requests, except one at a time as a trial.
    Opened,
    /// It closed.
    Closed,
}

/// The circuit breaker of a receiver: after consecutive failures it gets only trials, so that a receiver that is down is
/// not asked for every delivery that waits, and has room to recover.
#[derive(Debug, Default)]
pub struct Circuit {
    /// The number of consecutive failures.
    failures: u32,
    /// The time until which the circuit is open, in milliseconds since 1970; None if it is closed.
    open_until_ms: Option<i64>,
    /// The number of failed trials.
    trials: u32,
}

impl Circuit {
    /// Returns the number of requests that may be started, of at most `most`, while `under_way` are under way.
    pub fn permits(&self, now_ms: i64, most: usize, under_way: usize) -> usize {
        let most = match self.open_until_ms {
            None => most,
            Some(until) if now_ms < until => 0,
            Some(_) => 1,
        };
        most.saturating_sub(under_way)
    }

    /// Records that the receiver answered.
    pub fn succeeded(&mut self) -> Option<CircuitChange> {
        std::mem::take(self).open_until_ms.map(|_| CircuitChange::Closed)
    }

    /// Records that a request failed.
    pub fn failed(&mut self, now_ms: i64) -> Option<CircuitChange> {
        self.failures = self.failures.saturating_add(1);
        match self.open_until_ms {
            None if self.failures < FAILURES => None,
            None => {
                self.open_until_ms = Some(now_ms + OPEN_MS);
                Some(CircuitChange::Opened)
            }
            // Requests that were under way when it opened are no trials.
            Some(until) if now_ms < until => None,
            Some(_) => {
                self.trials = (self.trials + 1).min(10);
                self.open_until_ms = Some(now_ms + (OPEN_MS << self.trials).min(LONGEST_OPEN_MS));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_differ_by_delivery() {
        for attempts in 1..40 {
            let most = (FIRST_WAIT_MS << (attempts - 1).min(20)).min(LONGEST_WAIT_MS);
            let wait = backoff_ms("a", attempts);
            assert!((most / 2..=most).contains(&wait), "{attempts}: {wait}");
        }
        let waits: std::collections::BTreeSet<_> =
            (0..50).map(|at| backoff_ms(&format!("delivery {at}"), 10)).collect();
        assert!(waits.len() > 40, "{waits:?}");
        assert_eq!(backoff_ms("a", 3), backoff_ms("a", 3));
    }

    #[test]
    fn an_open_circuit_permits_one_trial_at_a_time() {
        let mut circuit = Circuit::default();
        for _ in 1..FAILURES {
            assert_eq!(circuit.failed(0), None);
        }
        assert_eq!(circuit.permits(0, 4, 1), 3);
        assert_eq!(circuit.failed(0), Some(CircuitChange::Opened));
        assert_eq!(circuit.failed(10), None, "it was under way");
        assert_eq!(
            (circuit.permits(999, 4, 0), circuit.permits(1000, 4, 0), circuit.permits(1000, 4, 1)),
            (0, 1, 0)
        );
        assert_eq!(circuit.failed(1000), None);
        assert_eq!((circuit.permits(2999, 4, 0), circuit.permits(3000, 4, 0)), (0, 1), "twice as long");
        for _ in 0..20 {
            circuit.failed(1_000_000);
        }
        assert_eq!(circuit.succeeded(), Some(CircuitChange::Closed));
        assert_eq!(circuit.permits(0, 4, 0), 4);
        assert_eq!(circuit.succeeded(), None);
    }

    #[test]
    fn a_success_between_failures_keeps_the_circuit_closed() {
        let mut circuit = Circuit::default();
        for _ in 0..10 * FAILURES {
            assert_eq!(circuit.failed(0), None);
            assert_eq!(circuit.succeeded(), None);
        }
    }
}

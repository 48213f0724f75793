//! Takeovers: slows down two processes that use one pipeline name and take over from each other whenever they are
//! restarted.

use std::time::Duration;

/// The time within which a takeover from a live run is counted together with the previous one, in milliseconds: 10
/// minutes.
pub const TAKEOVERS_WITHIN_MS: i64 = 600_000;

/// The number of takeovers from which a start waits: a deployment that replaces a run causes fewer.
const MIN_COUNT: u64 = 3;
const FIRST_WAIT: Duration = Duration::from_secs(5);
const MAX_WAIT: Duration = Duration::from_secs(120);

/// Takeovers from runs that were still alive, each within [`TAKEOVERS_WITHIN_MS`] of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takeovers {
    /// The number of takeovers.
    pub count: u64,
    /// The time at which the replaced run noticed the last takeover, in milliseconds since 1970.
    pub last_ms: i64,
}

impl Takeovers {
    /// Returns the takeovers after one more, noticed at `now_ms`.
    pub fn after(before: Option<Takeovers>, now_ms: i64) -> Takeovers {
        let counted = before.filter(|before| before.is_recent(now_ms)).map_or(0, |before| before.count);
        Takeovers { count: counted.saturating_add(1), last_ms: now_ms }
    }

    fn is_recent(&self, now_ms: i64) -> bool {
        now_ms.abs_diff(self.last_ms) <= TAKEOVERS_WITHIN_MS.unsigned_abs()
    }

    /// Returns the time that a start waits before it takes over, so that the other process can make progress: 5 s
    /// after three takeovers, doubled for each further one, at most two minutes. None if it need not wait.
    pub fn wait(&self, now_ms: i64) -> Option<Duration> {
        let further = self.count.checked_sub(MIN_COUNT).filter(|_| self.is_recent(now_ms))?;
        let factor = 2u32.saturating_pow(u32::try_from(further).unwrap_or(u32::MAX));
        Some(FIRST_WAIT.saturating_mul(factor).min(MAX_WAIT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_with_the_number_of_takeovers() {
        let wait = |count| Takeovers { count, last_ms: 1_000_000 }.wait(1_000_500).map(|wait| wait.as_secs());
        let waits = [0, 2, 3, 4, 5, 7, 8, 40, u64::MAX].map(wait);
        assert_eq!(
            waits,
            [None, None, Some(5), Some(10), Some(20), Some(80), Some(120), Some(120), Some(120)]
        );
    }

    #[test]
    fn old_takeovers_and_clock_jumps_cause_no_wait() {
        let takeovers = Takeovers { count: 9, last_ms: 1_000_000 };
        for now in [1_000_000 + TAKEOVERS_WITHIN_MS + 1, 1_000_000 - TAKEOVERS_WITHIN_MS - 1] {
            assert_eq!(takeovers.wait(now), None);
        }
    }
}

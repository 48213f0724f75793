//! Two processes that use one pipeline name and are started again whenever they end: each takes over from the other.

use std::time::Duration;

/// How soon after another one a takeover from a live run must come to be counted with it, in milliseconds: 10 minutes.
pub const TAKEOVERS_WITHIN_MS: i64 = 600_000;

/// From this many on it is no deployment that replaces a run by its successor.
const MANY: u64 = 3;
const FIRST_WAIT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// Takeovers from runs that were still alive, each within [`TAKEOVERS_WITHIN_MS`] of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takeovers {
    /// How many.
    pub count: u64,
    /// When the last one was noticed by the run that was replaced, in milliseconds since 1970.
    pub last_ms: i64,
}

impl Takeovers {
    /// With one more, noticed at `now_ms`.
    pub fn after(before: Option<Takeovers>, now_ms: i64) -> Takeovers {
        let counted = before.filter(|before| before.is_recent(now_ms)).map_or(0, |before| before.count);
        Takeovers { count: counted.saturating_add(1), last_ms: now_ms }
    }

    fn is_recent(&self, now_ms: i64) -> bool {
        now_ms.abs_diff(self.last_ms) <= TAKEOVERS_WITHIN_MS.unsigned_abs()
    }

    /// How long a start waits before it takes over, so that the other process gets on with its work: 5 s after three
    /// takeovers, twice as long after each further one, and two minutes at most.
    pub fn wait(&self, now_ms: i64) -> Option<Duration> {
        let further = self.count.checked_sub(MANY).filter(|_| self.is_recent(now_ms))?;
        let factor = 2u32.saturating_pow(u32::try_from(further).unwrap_or(u32::MAX));
        Some(FIRST_WAIT.saturating_mul(factor).min(LONGEST_WAIT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_wait_longer_the_more_often_live_runs_were_replaced() {
        let wait = |count| Takeovers { count, last_ms: 1_000_000 }.wait(1_000_500).map(|wait| wait.as_secs());
        let waits = [0, 2, 3, 4, 5, 7, 8, 40, u64::MAX].map(wait);
        assert_eq!(
            waits,
            [None, None, Some(5), Some(10), Some(20), Some(80), Some(120), Some(120), Some(120)]
        );
    }

    #[test]
    fn takeovers_of_long_ago_or_of_another_clock_delay_nobody() {
        let takeovers = Takeovers { count: 9, last_ms: 1_000_000 };
        for now in [1_000_000 + TAKEOVERS_WITHIN_MS + 1, 1_000_000 - TAKEOVERS_WITHIN_MS - 1] {
            assert_eq!(takeovers.wait(now), None);
        }
    }
}

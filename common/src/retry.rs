//! When to try again: exponential backoff with full jitter, as data. Randomness is an input.

use std::time::Duration;

/// How long to wait before the n-th try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Upper bound of the first wait.
    pub first: Duration,
    /// No wait is longer.
    pub cap: Duration,
}

impl Backoff {
    /// Upper bound of the wait before try `attempt` (0 is the first retry): `first * 2^attempt`, at most `cap`.
    pub fn ceiling(&self, attempt: u32) -> Duration {
        self.first.saturating_mul(1u32.checked_shl(attempt.min(31)).unwrap_or(u32::MAX)).min(self.cap)
    }

    /// The wait itself, uniform in `0..=ceiling` (full jitter), drawn from `random`.
    pub fn delay(&self, attempt: u32, random: u64) -> Duration {
        let ceiling_ms = u64::try_from(self.ceiling(attempt).as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(random % ceiling_ms.saturating_add(1).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_cap_and_never_beyond() {
        let backoff = Backoff { first: Duration::from_millis(500), cap: Duration::from_secs(30) };
        assert_eq!(backoff.ceiling(0), Duration::from_millis(500));
        assert_eq!(backoff.ceiling(3), Duration::from_secs(4));
        assert_eq!(backoff.ceiling(40), Duration::from_secs(30));
        for attempt in 0..64 {
            for random in [0, 1, 499, u64::MAX] {
                assert!(backoff.delay(attempt, random) <= backoff.ceiling(attempt));
            }
        }
    }
}

//! A token bucket: calls per minute with a small burst, and the patience that a receiver asked for. Time is tokio's clock,
//! which tests drive by hand.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// This part of a minute's calls may be made at once: burst plus refill of 100 stay below PagerDuty's 120.
const BURST_PART: u32 = 10;

/// A receiver that asks for patience is left alone for as long as this at most: more would turn a page into history, and
/// what it says may be a mistake of something in between. The page that was told so waits no longer than the others: it is
/// often the first of its incident, and whatever follows on it waits behind it.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Hands out the right to make a call.
#[derive(Debug)]
pub(super) struct Bucket {
    /// When the bucket is full again. In the past: it is full.
    full_at: Mutex<Instant>,
    /// Nobody calls before. In the past: everybody may.
    paused_until: Mutex<Instant>,
    refill: Duration,
    burst: u32,
}

impl Bucket {
    pub(super) fn new(per_minute: u32) -> Self {
        let refill = Duration::from_secs(60) / per_minute.max(1);
        let (full_at, paused_until) = (Mutex::new(Instant::now()), Mutex::new(Instant::now()));
        Self { full_at, paused_until, refill, burst: (per_minute / BURST_PART).max(1) }
    }

    /// Waits for a token, and until the receiver is to be called again.
    pub(super) async fn acquire(&self) {
        self.token().await;
        loop {
            let until = *self.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }

    /// Nobody is to call for so long: the receiver said so.
    pub(super) fn pause(&self, length: Duration) {
        let until = Instant::now() + length.min(PAUSE_MAX);
        let mut paused_until = self.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
        *paused_until = (*paused_until).max(until);
    }

    /// Waits for a token alone, for a person who wants to see what a receiver says. The order of waiters is the order of
    /// asking.
    pub(super) async fn token(&self) {
        let at = {
            let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            *full_at = (*full_at).max(now) + self.refill;
            // Behind by up to the burst is free; beyond it one waits for one's own refill.
            (*full_at).checked_sub(self.refill * self.burst).unwrap_or(now)
        };
        sleep_until(at).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stays_below_120_calls_in_any_minute() {
        let bucket = Bucket::new(100);
        let start = Instant::now();
        let mut calls = Vec::new();
        for _ in 0..400 {
            bucket.acquire().await;
            calls.push(start.elapsed());
        }
        assert_eq!(calls[9], Duration::ZERO, "the burst is free");
        bucket.pause(Duration::from_secs(3600));
        let paused = Instant::now();
        bucket.token().await;
        assert!(paused.elapsed() < Duration::from_secs(2), "whoever looks is not held");
        bucket.acquire().await;
        let waited = paused.elapsed();
        assert!((PAUSE_MAX..2 * PAUSE_MAX).contains(&waited), "everybody else is, for a while: {waited:?}");
        for first in &calls {
            let in_a_minute = calls.iter().filter(|at| *at >= first && **at < *first + Duration::from_secs(60)).count();
            assert!(in_a_minute < 115, "{in_a_minute}");
        }
    }
}

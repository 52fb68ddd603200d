//! A token bucket: calls per minute with a small burst. Time is tokio's clock, which tests drive by hand.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// PagerDuty takes about 120 calls in any 60 seconds per key and refuses the rest; burst plus refill stay below it.
const BURST: u32 = 10;
/// One call per 600 ms: 100 a minute.
const REFILL: Duration = Duration::from_millis(600);

/// Hands out the right to make a call.
#[derive(Debug)]
pub(super) struct Bucket {
    /// When the bucket is full again. In the past: it is full.
    full_at: Mutex<Instant>,
}

impl Bucket {
    pub(super) fn new() -> Self {
        Self { full_at: Mutex::new(Instant::now()) }
    }

    /// Waits for a token. The order of waiters is the order of asking.
    pub(super) async fn acquire(&self) {
        let at = {
            let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            *full_at = (*full_at).max(now) + REFILL;
            // Behind by up to the burst is free; beyond it one waits for one's own refill.
            (*full_at).checked_sub(REFILL * BURST).unwrap_or(now)
        };
        sleep_until(at).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stays_below_120_calls_in_any_minute() {
        let bucket = Bucket::new();
        let start = Instant::now();
        let mut calls = Vec::new();
        for _ in 0..400 {
            bucket.acquire().await;
            calls.push(start.elapsed());
        }
        assert_eq!(calls[9], Duration::ZERO, "the burst is free");
        for first in &calls {
            let in_a_minute = calls.iter().filter(|at| *at >= first && **at < *first + Duration::from_secs(60)).count();
            assert!(in_a_minute < 115, "{in_a_minute}");
        }
    }
}

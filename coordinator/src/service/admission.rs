//! How many agents are let in per second: after a start or a takeover the whole fleet comes at once.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A second's worth may come at once.
const BURST: Duration = Duration::from_secs(1);

/// A token bucket, as the moment at which it will be full again.
#[derive(Debug)]
pub(super) struct Admission {
    full_at: Mutex<Instant>,
}

impl Default for Admission {
    fn default() -> Self {
        Self { full_at: Mutex::new(Instant::now()) }
    }
}

impl Admission {
    /// Takes a token at `now`, with `per_s` tokens a second; `false` when there is none.
    pub(super) fn admit(&self, now: Instant, per_s: u32) -> bool {
        let cost = Duration::from_secs(1) / per_s.max(1);
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let next = (*full_at).max(now) + cost;
        let admitted = next.duration_since(now) <= BURST.max(cost);
        if admitted {
            *full_at = next;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admits_a_burst_then_the_rate() {
        let (admission, start) = (Admission::default(), Instant::now());
        let admitted = (0..50).filter(|_| admission.admit(start, 10)).count();
        assert_eq!(admitted, 10);
        let later = start + Duration::from_millis(300);
        assert_eq!((0..50).filter(|_| admission.admit(later, 10)).count(), 3);
    }
}

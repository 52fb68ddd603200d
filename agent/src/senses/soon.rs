//! Looks again soon after a process ended: how it ended comes from others, a moment later, and its successor is there within
//! a second where a supervisor starts it. Whoever waits for the next look of the usual interval tells of a service that
//! is down while it runs.
//!
//! Must never make a short life look like health: two looks that see the successor are a second apart.

use std::time::Duration;

/// In the first second after the end, until a successor is seen.
const AT_FIRST: Duration = Duration::from_millis(200);
const AT_FIRST_MS: u64 = 1_000;
/// Afterwards, and between two looks at a successor.
const THEN: Duration = Duration::from_secs(1);
/// For so long; a service that is down for longer is looked at as usual.
const FOR_MS: u64 = 30_000;
/// Looks that see all well, as many as it takes to clear what was told of the end.
const WELL: u32 = 2;

/// When to look again at a service whose process ended.
#[derive(Debug, Default)]
pub(super) struct Soon {
    since_ms: Option<u64>,
    well: u32,
    next: Option<Duration>,
}

impl Soon {
    /// One look: whether it was the first to see an end, and whether all is well.
    pub(super) fn looked(&mut self, now_ms: u64, ended: bool, well: bool) {
        if ended {
            self.since_ms = Some(now_ms);
        }
        self.well = if well && !ended { self.well.saturating_add(1) } else { 0 };
        self.since_ms = self.since_ms.filter(|since| now_ms.saturating_sub(*since) < FOR_MS && self.well < WELL);
        let young = |since: u64| now_ms.saturating_sub(since) < AT_FIRST_MS && self.well == 0;
        self.next = self.since_ms.map(|since| if young(since) { AT_FIRST } else { THEN });
    }

    /// For [`crate::probe::Probe::again_in`].
    pub(super) const fn again_in(&self) -> Option<Duration> {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_come_soon_until_the_successor_was_seen_twice() {
        let mut soon = Soon::default();
        soon.looked(0, false, true);
        assert_eq!(soon.again_in(), None, "nothing ended");
        soon.looked(5_000, true, false);
        assert_eq!(soon.again_in(), Some(AT_FIRST));
        soon.looked(5_200, false, false);
        soon.looked(5_400, false, true);
        assert_eq!(soon.again_in(), Some(THEN), "a short life is no health");
        soon.looked(6_400, false, true);
        assert_eq!(soon.again_in(), None);
        soon.looked(10_000, false, false);
        assert_eq!(soon.again_in(), None, "not an end");
    }

    #[test]
    fn what_stays_down_is_looked_at_as_usual() {
        let (mut soon, mut now_ms, mut looks) = (Soon::default(), 0, 0);
        soon.looked(now_ms, true, false);
        while let Some(next) = soon.again_in() {
            now_ms += u64::try_from(next.as_millis()).unwrap();
            soon.looked(now_ms, false, false);
            looks += 1;
        }
        assert!(now_ms >= FOR_MS && looks <= 40, "{looks} looks in {now_ms} ms");
    }
}

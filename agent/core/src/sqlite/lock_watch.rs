//! Since when a lock is held without progress. There are no timestamps in the kernel's table, so the answer is "at
//! least since the first sample that showed the same holder and nothing moved".

use super::state::{LockName, Progress, Snapshot};
use crate::clock::Now;
use std::time::Duration;

/// A lock that has not moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Which.
    pub name: LockName,
    /// By whom, where the kernel says.
    pub pid: Option<u32>,
    /// At least this long.
    pub held: Duration,
}

/// Remembers the last samples of one database.
#[derive(Debug, Clone, Default)]
pub struct LockWatch {
    since: Option<(LockName, Option<u32>, Progress, u64)>,
}

impl LockWatch {
    /// Notes a sample; answers how long the same holder has held the same lock while nothing moved.
    pub fn sample(&mut self, snapshot: &Snapshot, now: &Now) -> Option<Held> {
        let Some((name, pid)) = snapshot.locks.strongest() else {
            self.since = None;
            return None;
        };
        let progress = snapshot.progress();
        let start = match &self.since {
            Some((old_name, old_pid, old, start)) if (*old_name, *old_pid) == (name, pid) && *old == progress => *start,
            _ => {
                self.since = Some((name, pid, progress, now.boottime_ms));
                now.boottime_ms
            }
        };
        Some(Held { name, pid, held: now.since(start) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::snapshot;
    use super::*;
    use muster_common::time::Timestamp;

    #[test]
    fn progress_or_another_holder_starts_the_clock_again() {
        let at = |boottime_ms| Now { boottime_ms, wall: Timestamp::UNIX_EPOCH };
        let mut watch = LockWatch::default();
        let mut sample = snapshot(false);
        assert_eq!(watch.sample(&sample, &at(0)), None);
        sample.locks.reserved = Some(Some(7));
        assert_eq!(watch.sample(&sample, &at(1_000)).unwrap().held, Duration::ZERO);
        assert_eq!(watch.sample(&sample, &at(12_000)).unwrap().held, Duration::from_secs(11));
        sample.database.modified_ns += 1;
        assert_eq!(watch.sample(&sample, &at(13_000)).unwrap().held, Duration::ZERO);
        sample.locks.reserved = Some(Some(8));
        assert_eq!(watch.sample(&sample, &at(14_000)).unwrap().held, Duration::ZERO);
        sample.locks.reserved = None;
        assert_eq!(watch.sample(&sample, &at(15_000)), None);
        sample.locks.reserved = Some(Some(8));
        assert_eq!(watch.sample(&sample, &at(99_000)).unwrap().held, Duration::ZERO);
    }
}

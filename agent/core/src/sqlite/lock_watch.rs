//! Since when a lock is held without progress. There are no timestamps in the kernel's table, so the answer is "at
//! least since the first sample that showed the same holder and nothing moved".

use super::state::{LockName, Snapshot};
use crate::clock::Now;
use serde::{Deserialize, Serialize};
use std::hash::{DefaultHasher, Hash, Hasher};
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockWatch {
    since: Option<Since>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Since {
    name: LockName,
    pid: Option<u32>,
    /// Of what would move; another release of the agent may hash otherwise, and the clock then starts again.
    progress_hash: u64,
    boottime_ms: u64,
}

impl LockWatch {
    /// Notes a sample; answers how long the same holder has held the same lock while nothing moved.
    pub fn sample(&mut self, snapshot: &Snapshot, now: &Now) -> Option<Held> {
        let Some((name, pid)) = snapshot.locks.strongest() else {
            self.since = None;
            return None;
        };
        let mut hasher = DefaultHasher::new();
        snapshot.progress().hash(&mut hasher);
        let mut since = Since { name, pid, progress_hash: hasher.finish(), boottime_ms: now.boottime_ms };
        let same =
            |old: &&Since| (old.name, old.pid, old.progress_hash) == (since.name, since.pid, since.progress_hash);
        if let Some(old) = self.since.as_ref().filter(same) {
            // After a reboot the clock starts again.
            since.boottime_ms = old.boottime_ms.min(now.boottime_ms);
        }
        self.since = Some(since);
        Some(Held { name, pid, held: now.since(since.boottime_ms) })
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
        watch = serde_json::from_str(&serde_json::to_string(&watch).unwrap()).unwrap();
        assert_eq!(watch.sample(&sample, &at(12_500)).unwrap().held, Duration::from_millis(11_500), "a restart");
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

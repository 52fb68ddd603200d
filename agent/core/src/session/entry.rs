//! A spooled entry and how old it is.

use crate::clock::Now;
use muster_common::ids::BootId;
use muster_common::spool::EntryHash;
use muster_common::time::Timestamp;

/// When an entry was written, by the clocks of the boot it was written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The boot.
    pub boot: BootId,
    /// `CLOCK_BOOTTIME` of what happened.
    pub boottime_ms: u64,
    /// Wall clock at the same moment.
    pub wall: Timestamp,
}

/// How long ago something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age {
    /// Milliseconds.
    pub ms: u64,
    /// True across a reboot: the boot-time clock started anew, so this is the difference of two wall clocks.
    pub estimated: bool,
}

impl Written {
    /// The age at `now` in boot `boot`. Within one boot it is exact whatever the wall clock did.
    pub fn age(&self, now: Now, boot: BootId) -> Age {
        if self.boot == boot {
            Age { ms: now.boottime_ms.saturating_sub(self.boottime_ms), estimated: false }
        } else {
            // Since the boot it is at least as old as this boot, also when the wall clock was set back.
            let wall_ms = u64::try_from(now.wall.since(self.wall).as_millis()).unwrap_or(u64::MAX);
            Age { ms: wall_ms.max(now.boottime_ms), estimated: true }
        }
    }
}

/// One entry of the spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// 1 is the first of a spool id.
    pub sequence: u64,
    /// Hash of the entry before it.
    pub previous_hash: EntryHash,
    /// Its own hash.
    pub hash: EntryHash,
    /// The encoded event; the hash covers these bytes.
    pub body: Vec<u8>,
    /// When.
    pub written: Written,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_is_exact_in_one_boot_and_marked_across_boots() {
        let (this, other) = (BootId(uuid_of(1)), BootId(uuid_of(2)));
        let written = Written { boot: this, boottime_ms: 1_000, wall: Timestamp::from_unix_ms(500_000) };
        let now = |boottime_ms, wall| Now { boottime_ms, wall: Timestamp::from_unix_ms(wall) };
        // The wall clock jumped to 1970: no matter.
        assert_eq!(written.age(now(61_000, 0), this), Age { ms: 60_000, estimated: false });
        assert_eq!(written.age(now(5_000, 560_000), other), Age { ms: 60_000, estimated: true });
        assert_eq!(written.age(now(5_000, 0), other), Age { ms: 5_000, estimated: true });
        assert_eq!(written.age(now(0, 500_000), this), Age { ms: 0, estimated: false });
    }

    fn uuid_of(n: u8) -> uuid::Uuid {
        uuid::Uuid::from_bytes([n; 16])
    }
}

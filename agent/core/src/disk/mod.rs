//! Whether a file system that services' files live on has room and can be written to.
//!
//! One file system, one finding, however many services write to it: its evidence names them all.

mod trend;
mod words;

use crate::clock::Now;
use crate::judgement::{Judgement, Problem};
use crate::mounts::Mount;
use muster_common::evidence::{Evidence, Grade};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use serde::{Deserialize, Serialize};
use trend::Trend;

pub use trend::Outlook;
pub use words::Use;

/// A threshold is left upwards only a tenth above it, so that a value on the line does not flap.
const BACK_SHARE: u64 = 10;
/// Default share that must be left.
const PERCENT_DEFAULT: u8 = 5;
/// More than this is never asked for by the default: a twentieth of a large array is a lot of room.
const AMOUNT_DEFAULT_MAX: u64 = 20 << 30;

/// How much must be left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Least {
    /// Bytes, or inodes.
    Amount(u64),
    /// Of all there is; 0 asks for nothing.
    Percent(u8),
    /// What fits most hosts.
    Usual,
}

impl Least {
    fn of(self, total: u64) -> u64 {
        let share = |percent: u8| {
            let share = u128::from(total) * u128::from(percent) / 100;
            u64::try_from(share).unwrap_or(total)
        };
        match self {
            Self::Amount(amount) => amount,
            Self::Percent(percent) => share(percent),
            Self::Usual => share(PERCENT_DEFAULT).min(AMOUNT_DEFAULT_MAX),
        }
    }
}

/// What must be left of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Space.
    pub free: Least,
    /// Inodes.
    pub inodes: Least,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { free: Least::Usual, inodes: Least::Percent(PERCENT_DEFAULT) }
    }
}

/// What `statvfs` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// Size; 0 where the file system counts none.
    pub total_bytes: u64,
    /// Free for root.
    pub free_bytes: u64,
    /// Free for everybody else.
    pub available_bytes: u64,
    /// Inodes in all; 0 where they are made as needed.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_available: u64,
}

impl Space {
    /// What others than root can use in all: what `df` takes its percentage of.
    fn usable_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.reserved_bytes())
    }

    fn reserved_bytes(&self) -> u64 {
        self.free_bytes.saturating_sub(self.available_bytes)
    }
}

/// One look at a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading<'a> {
    /// The mount.
    pub mount: &'a Mount,
    /// Whether the host's own mount of it (that of PID 1) is read-only, where that could be seen.
    pub host_read_only: Option<bool>,
    /// What `/etc/fstab` wants, where it says something.
    pub fstab_writable: Option<bool>,
    /// Room; `None` where it was not asked.
    pub space: Option<Space>,
}

/// Judges one file system over time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiskJudge {
    space_low: bool,
    inodes_low: bool,
    bytes: Trend,
    /// What was seen to be writable here: another file system at the same place has a history of its own.
    writable_source: Option<String>,
    read_only_since_boottime_ms: Option<u64>,
}

impl DiskJudge {
    /// The host was rebooted since this was saved: the boot-time clock starts anew.
    pub fn rebooted(&mut self) {
        self.bytes = Trend::default();
        self.read_only_since_boottime_ms = self.read_only_since_boottime_ms.map(|_| 0);
    }

    /// One reading.
    pub fn judge(&mut self, reading: &Reading<'_>, uses: &[Use], thresholds: Thresholds, now: Now) -> Judgement {
        let mount = reading.mount;
        let seen = words::mount_evidence(mount, uses);
        let read_only = mount.super_read_only || reading.host_read_only == Some(true);
        if mount.is_read_only_by_type() {
            return Judgement::ok(seen.flag("read_only", true));
        }
        let mut judgement = Judgement::default();
        judgement.problems.extend(self.read_only(reading, read_only, uses, now));
        let mut seen = seen.flag("read_only", read_only);
        match reading.space {
            None => seen = seen.text("not_asked", "automount: asking would mount it"),
            // On what was never writable nothing can run out.
            Some(_) if read_only && judgement.problems.is_empty() => (self.space_low, self.inodes_low) = (false, false),
            Some(space) => {
                self.bytes.add(now.boottime_ms, space.available_bytes);
                let outlook = self.bytes.outlook(space.available_bytes).filter(|_| !read_only);
                seen = words::space_evidence(seen, &space, outlook);
                judgement.problems.extend(self.space(mount, &space, outlook, thresholds, uses, &seen));
                judgement.problems.extend(self.inodes(mount, &space, thresholds, uses, &seen));
            }
        }
        Judgement { seen, ..judgement }
    }

    fn space(
        &mut self,
        mount: &Mount,
        space: &Space,
        outlook: Option<Outlook>,
        thresholds: Thresholds,
        uses: &[Use],
        seen: &Evidence,
    ) -> Option<Problem> {
        let least = thresholds.free.of(space.usable_bytes());
        self.space_low = space.total_bytes > 0 && is_below(space.available_bytes, least, self.space_low);
        if !self.space_low {
            return None;
        }
        let problem = Problem::new(Reason::DiskSpaceLow, words::space(mount, space, least, outlook, uses))
            .evidence(seen.clone().bytes("threshold_bytes", least))
            .next_steps(words::space_steps(mount));
        // What writes there fails now, not soon.
        let full = space.available_bytes <= space.usable_bytes() / 1000;
        Some(if full { problem.severity(Severity::Sev2) } else { problem })
    }

    fn inodes(
        &mut self,
        mount: &Mount,
        space: &Space,
        thresholds: Thresholds,
        uses: &[Use],
        seen: &Evidence,
    ) -> Option<Problem> {
        let least = thresholds.inodes.of(space.inodes);
        self.inodes_low = space.inodes > 0 && is_below(space.inodes_available, least, self.inodes_low);
        if !self.inodes_low {
            return None;
        }
        let problem = Problem::new(Reason::DiskInodesLow, words::inodes(mount, space, least, uses))
            .evidence(seen.clone().count("threshold_inodes", least))
            .next_steps(words::inode_steps(mount));
        Some(if space.inodes_available == 0 { problem.severity(Severity::Sev2) } else { problem })
    }

    /// Read-only is a problem only where it was, or is meant to be, otherwise.
    fn read_only(&mut self, reading: &Reading<'_>, read_only: bool, uses: &[Use], now: Now) -> Option<Problem> {
        let mount = reading.mount;
        if !read_only {
            self.writable_source = Some(mount.source.clone());
            self.read_only_since_boottime_ms = None;
            return None;
        }
        let was_writable = self.writable_source.as_ref() == Some(&mount.source);
        let (why, grade) = if was_writable {
            ("it was writable before", Grade::Confirmed)
        } else if reading.fstab_writable == Some(true) {
            ("/etc/fstab has it writable", Grade::Likely)
        } else if mount.super_read_only && mount.errors_remount_ro && reading.fstab_writable.is_none() {
            ("it is mounted with errors=remount-ro", Grade::Possible)
        } else {
            return None;
        };
        let since = *self.read_only_since_boottime_ms.get_or_insert(now.boottime_ms);
        let evidence = words::mount_evidence(mount, uses)
            .text("why", why)
            .flag("super_block_read_only", mount.super_read_only)
            .flag("errors_remount_ro", mount.errors_remount_ro)
            .duration("read_only_for_ms", now.since(since));
        let problem = Problem::new(Reason::DiskReadOnly, words::read_only(mount, why, uses)).grade(grade);
        Some(problem.evidence(evidence).next_steps(words::read_only_steps(mount)))
    }
}

fn is_below(value: u64, least: u64, was_below: bool) -> bool {
    let least = if was_below { least.saturating_add(least / BACK_SHARE) } else { least };
    value < least
}

#[cfg(test)]
mod tests;

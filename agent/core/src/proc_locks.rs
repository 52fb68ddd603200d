//! Reads `/proc/locks`: who holds which lock on which inode, and who waits.
//!
//! The table has no timestamps, hides holders in other pid namespaces and shows OFD locks with pid -1. Lines that are
//! not understood are counted, never guessed at.

/// Lines read; a host with more locks is read in part, and [`ProcLocks::unread_lines`] says so.
const LINES_MAX: usize = 65_536;

/// Whose lock it is: the process's, the open file description's, or something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// `fcntl(F_SETLK)`: belongs to a process; what SQLite uses.
    Posix,
    /// `fcntl(F_OFD_SETLK)`: belongs to an open file description.
    Ofd,
    /// `flock(2)`.
    Flock,
    /// Leases, delegations, and whatever a newer kernel adds.
    Other,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// Number of the lock in the table; a waiter has the number of the lock it waits for.
    pub number: u64,
    /// True for a waiter (`->`).
    pub waits: bool,
    /// Kind of lock.
    pub class: Class,
    /// True for an exclusive (write) lock.
    pub write: bool,
    /// The holder; `None` for OFD locks and for holders of other pid namespaces.
    pub pid: Option<u32>,
    /// Major number of the file system's device.
    pub major: u32,
    /// Minor number of the file system's device.
    pub minor: u32,
    /// The inode.
    pub inode: u64,
    /// First byte.
    pub start: u64,
    /// Last byte; `None` means to the end of the file.
    pub end: Option<u64>,
}

impl Lock {
    /// True when the lock covers at least one byte of `first..=last`.
    pub fn covers(&self, first: u64, last: u64) -> bool {
        self.start <= last && self.end.is_none_or(|end| end >= first)
    }
}

/// The table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProcLocks {
    /// Every line that was understood, in order.
    pub locks: Vec<Lock>,
    /// Lines that were not understood, or were beyond the bound.
    pub unread_lines: usize,
}

impl ProcLocks {
    /// The locks on one inode whose device is one of `devices` (overlayfs and btrfs show another device here than
    /// `stat` does: pass both that one and the one of `mountinfo`).
    pub fn on<'a>(&'a self, devices: &'a [(u32, u32)], inode: u64) -> impl Iterator<Item = &'a Lock> {
        self.locks.iter().filter(move |lock| lock.inode == inode && devices.contains(&(lock.major, lock.minor)))
    }
}

/// Parses the whole table.
pub fn parse(text: &str) -> ProcLocks {
    let mut table = ProcLocks::default();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        match parse_line(line).filter(|_| index < LINES_MAX) {
            Some(lock) => table.locks.push(lock),
            None => table.unread_lines += 1,
        }
    }
    table
}

/// `1: POSIX  ADVISORY  WRITE 812 00:2a:1234 0 EOF`, or with `->` after the number.
fn parse_line(line: &str) -> Option<Lock> {
    let mut words = line.split_ascii_whitespace().peekable();
    let number = words.next()?.strip_suffix(':')?.parse().ok()?;
    let waits = words.next_if_eq(&"->").is_some();
    let class = match words.next()? {
        "POSIX" => Class::Posix,
        "OFDLCK" => Class::Ofd,
        "FLOCK" => Class::Flock,
        _ => Class::Other,
    };
    let _mode = words.next()?;
    let write = matches!(words.next()?, "WRITE");
    let pid = words.next()?.parse::<i64>().ok()?;
    let mut place = words.next()?.splitn(3, ':');
    let major = u32::from_str_radix(place.next()?, 16).ok()?;
    let minor = u32::from_str_radix(place.next()?, 16).ok()?;
    let inode = place.next()?.parse().ok()?;
    let start = words.next()?.parse().ok()?;
    let end = match words.next()? {
        "EOF" => None,
        number => Some(number.parse().ok()?),
    };
    let pid = u32::try_from(pid).ok().filter(|pid| *pid > 0);
    Some(Lock { number, waits, class, write, pid, major, minor, inode, start, end })
}

/// The device (major, minor) of the mount `mount_id`, from the text of `/proc/self/mountinfo`.
pub fn mount_device(mountinfo: &str, mount_id: u64) -> Option<(u32, u32)> {
    mountinfo.lines().find_map(|line| {
        let mut words = line.split(' ');
        if words.next()?.parse() != Ok(mount_id) {
            return None;
        }
        let (major, minor) = words.nth(1)?.split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    })
}

/// The mount id in the text of a `/proc/self/fdinfo/N`.
pub fn mount_id(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: &str = "\
1: POSIX  ADVISORY  READ  812 fe:00:131 1073741826 1073742335
2: OFDLCK ADVISORY  WRITE -1 fe:00:131 0 EOF
2: -> FLOCK  ADVISORY  WRITE 99 fe:00:131 0 EOF
3: LEASE  ACTIVE    READ  7 00:1f:9 0 EOF
nonsense
";

    #[test]
    fn reads_every_form() {
        let table = parse(TABLE);
        assert_eq!((table.locks.len(), table.unread_lines), (4, 1));
        let first = &table.locks[0];
        assert_eq!((first.pid, first.major, first.inode, first.write), (Some(812), 0xfe, 131, false));
        assert!(first.covers(0x4000_0002, 0x4000_0002) && !first.covers(0x4000_0001, 0x4000_0001));
        assert_eq!((table.locks[1].pid, table.locks[1].end), (None, None));
        assert!(table.locks[2].waits);
        assert_eq!(table.on(&[(0xfe, 0)], 131).count(), 3);
        assert_eq!(table.on(&[(0xfd, 0)], 131).count(), 0);
    }

    #[test]
    fn finds_the_device_of_a_mount() {
        let mountinfo = "21 28 0:20 / /proc rw - proc proc rw\n28 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n";
        assert_eq!(mount_id("pos:\t0\nflags:\t0100000\nmnt_id:\t28\n"), Some(28));
        assert_eq!(mount_device(mountinfo, 28), Some((254, 0)));
        assert_eq!(mount_device(mountinfo, 29), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in "[0-9A-Z:>\\- \n]{0,400}", id in any::<u64>()) {
            let _ = parse(&text);
            let _ = (mount_device(&text, id), mount_id(&text));
        }
    }
}

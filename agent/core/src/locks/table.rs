//! Reads `/proc/locks`, line by line: who holds which lock on which inode, and who waits.
//!
//! Open file description locks show no pid, locks of processes in a pid namespace outside of the reader's are left out
//! by the kernel, and a flock keeps the pid of who took it also when only a child still has it. Lines that are not
//! understood are counted, never guessed at.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// Lines read of one table; a host with more locks is read in part, and [`Table::cut`] says so.
pub const LINES_MAX: u64 = 65_536;
/// Locks kept on files of interest: a file with more readers than this is still told to be locked.
const WATCHED_MAX: usize = 1024;
/// Waiters kept; behind so many the first ones tell enough.
const WAITERS_MAX: usize = 1024;

/// Whose lock it is: the process's, the open file description's, or something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// `fcntl(F_SETLK)`: belongs to a process; what SQLite uses.
    Posix,
    /// `fcntl(F_OFD_SETLK)`: belongs to an open file description.
    Ofd,
    /// `flock(2)`.
    Flock,
    /// `fcntl(F_SETLEASE)`: its holder is told before others open the file.
    Lease,
    /// A lease of the NFS server.
    Delegation,
    /// Whatever a newer kernel adds.
    Other,
}

impl Class {
    /// What a person calls it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Posix => "POSIX lock",
            Self::Ofd => "OFD lock",
            Self::Flock => "flock",
            Self::Lease => "lease",
            Self::Delegation => "NFS delegation",
            Self::Other => "lock",
        }
    }

    /// Whether the lock keeps others from locking (a lease keeps others from opening, and only for a while).
    pub const fn is_lock(self) -> bool {
        matches!(self, Self::Posix | Self::Ofd | Self::Flock)
    }
}

/// Shared or exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
    /// Neither: a lease that is being given back, or what a kernel may add.
    Other,
}

impl Mode {
    /// `"read"`, `"write"` or `"other"`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Other => "other",
        }
    }
}

/// The file as the table names it: on overlayfs and btrfs the device is not that of `stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId {
    /// Major number of the file system's device.
    pub major: u32,
    /// Minor number of it.
    pub minor: u32,
    /// The inode.
    pub inode: u64,
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode {} on device {}:{}", self.inode, self.major, self.minor)
    }
}

/// One line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    /// Number of the lock in the table; a waiter has the number of the lock it waits for.
    pub number: u64,
    /// 0 for a holder, 1 for who waits for it, more for who waits behind a waiter.
    pub depth: usize,
    /// Kind of lock.
    pub class: Class,
    /// A lease that is being taken back, or who has it taken back.
    pub breaking: bool,
    /// Shared or exclusive.
    pub mode: Mode,
    /// Who took it; `None` for OFD locks, for locks that came over the network, and for hidden processes.
    pub pid: Option<u32>,
    /// The file; who breaks a lease has none.
    pub file: Option<FileId>,
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

    /// True when this is about the same lock as `other`, whatever its number: in the table and in an `fdinfo`.
    pub fn is_same(&self, other: &Self) -> bool {
        let what = |lock: &Self| (lock.class, lock.mode, lock.file, lock.start, lock.end);
        what(self) == what(other)
    }
}

/// A lock that somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contended {
    /// The lock.
    pub holder: Lock,
    /// Who waits for it, in the kernel's order.
    pub waiters: Vec<Lock>,
}

/// What was kept of the table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// Locks on files of interest, waiters left out.
    pub watched: Vec<Lock>,
    /// Locks that somebody waits for, on any file.
    pub contended: Vec<Contended>,
    /// Lines seen.
    pub lines: u64,
    /// Lines that were not understood.
    pub unread_lines: u64,
    /// There was more than the bounds allow.
    pub cut: bool,
}

impl Table {
    /// The locks held on one file.
    pub fn on(&self, is_it: impl Fn(&FileId) -> bool) -> impl Iterator<Item = &Lock> {
        self.watched.iter().filter(move |lock| lock.file.as_ref().is_some_and(&is_it))
    }
}

/// Takes lines and keeps what matters: waiters with what they wait for, and the locks on files of interest.
#[derive(Debug)]
pub struct Collector<'a> {
    interest: &'a BTreeSet<u64>,
    table: Table,
    last: Option<Lock>,
    waiters: usize,
}

impl<'a> Collector<'a> {
    /// With the inodes of interest, on whatever device.
    pub fn new(interest: &'a BTreeSet<u64>) -> Self {
        Self { interest, table: Table::default(), last: None, waiters: 0 }
    }

    /// Takes one line; `false` when no more are wanted.
    pub fn line(&mut self, line: &str) -> bool {
        if line.trim().is_empty() {
            return true;
        }
        if self.table.lines >= LINES_MAX {
            self.table.cut = true;
            return false;
        }
        self.table.lines += 1;
        match parse_line(line) {
            Some(lock) if lock.depth > 0 => self.waiter(lock),
            Some(lock) => self.holder(lock),
            None => {
                self.table.unread_lines += 1;
                self.last = None;
            }
        }
        true
    }

    /// All lines were taken.
    pub fn end(self) -> Table {
        self.table
    }

    fn holder(&mut self, lock: Lock) {
        self.last = Some(lock);
        if lock.file.is_none_or(|file| !self.interest.contains(&file.inode)) {
            return;
        }
        if self.table.watched.len() < WATCHED_MAX {
            self.table.watched.push(lock);
        } else {
            self.table.cut = true;
        }
    }

    fn waiter(&mut self, lock: Lock) {
        // A waiter without its holder is half a record.
        let Some(holder) = self.last.filter(|holder| holder.number == lock.number) else {
            self.table.unread_lines += 1;
            return;
        };
        if self.waiters >= WAITERS_MAX {
            self.table.cut = true;
            return;
        }
        self.waiters += 1;
        match self.table.contended.last_mut() {
            Some(contended) if contended.holder == holder => contended.waiters.push(lock),
            _ => self.table.contended.push(Contended { holder, waiters: vec![lock] }),
        }
    }
}

/// The whole text at once.
pub fn parse(text: &str, interest: &BTreeSet<u64>) -> Table {
    let mut collector = Collector::new(interest);
    for line in text.lines() {
        if !collector.line(line) {
            break;
        }
    }
    collector.end()
}

/// The locks that the text of a `/proc/PID/fdinfo/N` shows to be held through that descriptor.
pub fn of_descriptor(fdinfo: &str) -> impl Iterator<Item = Lock> {
    fdinfo.lines().filter_map(|line| parse_line(line.strip_prefix("lock:")?.trim_start()))
}

/// `1: POSIX  ADVISORY  WRITE 812 00:2a:1234 0 EOF`, or with `->` after the number, further in for who waits behind a
/// waiter.
pub fn parse_line(line: &str) -> Option<Lock> {
    let (number, rest) = line.split_once(':')?;
    let number = number.trim().parse().ok()?;
    let inner = rest.trim_start();
    let (depth, inner) = match inner.strip_prefix("->") {
        Some(inner) => ((rest.len() - (inner.len() + 2)).max(1), inner),
        None => (0, inner),
    };
    let mut words = inner.split_ascii_whitespace();
    let class = match words.next()? {
        "POSIX" => Class::Posix,
        "OFDLCK" => Class::Ofd,
        "FLOCK" => Class::Flock,
        "LEASE" => Class::Lease,
        "DELEG" => Class::Delegation,
        _ => Class::Other,
    };
    let breaking = matches!(words.next()?, "BREAKING" | "BREAKER");
    let mode = match words.next()? {
        "READ" | "RDLCK" => Mode::Read,
        "WRITE" | "WRLCK" | "RW" => Mode::Write,
        _ => Mode::Other,
    };
    let pid = words.next()?.parse::<i64>().ok()?;
    let pid = u32::try_from(pid).ok().filter(|pid| *pid > 0);
    let file = parse_place(words.next()?)?;
    let start = words.next()?.parse().ok()?;
    let end = match words.next()? {
        "EOF" => None,
        number => Some(number.parse().ok()?),
    };
    Some(Lock { number, depth, class, breaking, mode, pid, file, start, end })
}

/// `fe:00:131`, or `<none>:0` for who waits for a lease to be given back.
fn parse_place(place: &str) -> Option<Option<FileId>> {
    if place.starts_with("<none>") {
        return Some(None);
    }
    let mut parts = place.splitn(3, ':');
    let major = u32::from_str_radix(parts.next()?, 16).ok()?;
    let minor = u32::from_str_radix(parts.next()?, 16).ok()?;
    Some(Some(FileId { major, minor, inode: parts.next()?.parse().ok()? }))
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

/// The inode in it as `/proc/locks` prints it (kernels from 5.14 on tell).
pub fn inode(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("ino:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As 4.19 prints: mandatory locks, and waiters without a tree.
    const OLD: &str = "\
1: POSIX  MANDATORY WRITE 812 fd:01:131 0 99
2: FLOCK  ADVISORY  WRITE 700 fd:01:132 0 EOF
2: -> FLOCK  ADVISORY  WRITE 701 fd:01:132 0 EOF
2: -> FLOCK  ADVISORY  READ  702 fd:01:132 0 EOF
3: FLOCK  MSNFS     RW    900 fd:01:133 0 EOF
";
    /// As 5.10 to 6.x print: waiters behind waiters, OFD locks, leases in every phase.
    const NEW: &str = "\
1: POSIX  ADVISORY  READ  812 fe:00:131 1073741826 1073742335
2: OFDLCK ADVISORY  WRITE -1 fe:00:131 0 EOF
2: -> OFDLCK ADVISORY  WRITE -1 fe:00:131 5 9
2:  -> POSIX  ADVISORY  READ 99 fe:00:131 7 7
3: LEASE  ACTIVE    READ  7 00:1f:9 0 EOF
4: LEASE  BREAKING  UNLCK 8 00:1f:10 0 EOF
4: -> LEASE  BREAKER   WRITE 0 <none>:0 0 EOF
5: DELEG  ACTIVE    READ  11 103:02:18446744073709551615 0 EOF
6: POSIX  *NOINODE* WRITE 12 <none>:0 0 EOF
nonsense
7: FLOCK  ADVISORY  WRITE -31 00:2f:40 0 EOF
";

    fn all(text: &str) -> Table {
        let inodes = text.lines().filter_map(|line| Some(parse_line(line)?.file?.inode)).collect();
        parse(text, &inodes)
    }

    #[test]
    fn reads_what_old_kernels_print() {
        let table = all(OLD);
        assert_eq!((table.lines, table.unread_lines, table.watched.len()), (5, 0, 3));
        assert_eq!((table.watched[0].class, table.watched[0].end), (Class::Posix, Some(99)));
        let [contended] = table.contended.as_slice() else { panic!("{table:?}") };
        assert_eq!(contended.holder.pid, Some(700));
        let waiters: Vec<_> = contended.waiters.iter().map(|lock| (lock.pid, lock.mode, lock.depth)).collect();
        assert_eq!(waiters, [(Some(701), Mode::Write, 1), (Some(702), Mode::Read, 1)]);
    }

    #[test]
    fn reads_what_new_kernels_print() {
        let table = all(NEW);
        assert_eq!((table.lines, table.unread_lines, table.watched.len(), table.cut), (11, 1, 6, false));
        let first = &table.watched[0];
        assert_eq!((first.pid, first.file.unwrap().major, first.mode), (Some(812), 0xfe, Mode::Read));
        assert!(first.covers(0x4000_0002, 0x4000_0002) && !first.covers(0x4000_0001, 0x4000_0001));
        assert_eq!((table.watched[1].class, table.watched[1].pid, table.watched[1].end), (Class::Ofd, None, None));
        assert_eq!(table.watched[4].file.unwrap(), FileId { major: 0x103, minor: 2, inode: u64::MAX });
        assert_eq!(table.watched[5].pid, None, "a lock that came over the network has no process here");
        let depths: Vec<Vec<usize>> = table
            .contended
            .iter()
            .map(|contended| contended.waiters.iter().map(|waiter| waiter.depth).collect())
            .collect();
        assert_eq!(depths, [vec![1, 2], vec![1]]);
        let lease = &table.contended[1];
        assert!(lease.holder.breaking && lease.waiters[0].breaking && lease.waiters[0].file.is_none());
    }

    #[test]
    fn only_what_matters_is_kept_and_the_rest_is_counted() {
        let mut text: String = (0..5_000).map(|n| format!("{n}: FLOCK  ADVISORY  WRITE 9 fe:00:{n} 0 EOF\n")).collect();
        text.push_str("6000: -> FLOCK  ADVISORY  WRITE 9 fe:00:7 0 EOF\n");
        let table = parse(&text, &BTreeSet::from([17]));
        assert_eq!((table.lines, table.watched.len(), table.contended.len()), (5_001, 1, 0));
        assert_eq!(table.unread_lines, 1, "a waiter without its holder");
        assert_eq!(table.on(|file| file.inode == 17).count(), 1);
        let many: String = (0..=LINES_MAX).map(|n| format!("{n}: FLOCK  ADVISORY  WRITE 9 fe:00:1 0 EOF\n")).collect();
        assert!(parse(&many, &BTreeSet::new()).cut);
    }

    #[test]
    fn a_descriptor_tells_the_locks_that_are_held_through_it() {
        let fdinfo = "pos:\t0\nflags:\t0100002\nmnt_id:\t28\nino:\t131\n\
                      lock:\t1: OFDLCK ADVISORY  WRITE -1 fe:00:131 0 EOF\n";
        assert_eq!((mount_id(fdinfo), inode(fdinfo)), (Some(28), Some(131)));
        let held: Vec<Lock> = of_descriptor(fdinfo).collect();
        assert!(held.len() == 1 && held[0].is_same(&all(NEW).watched[1]));
        assert!(!held[0].is_same(&all(NEW).watched[0]));
    }

    #[test]
    fn finds_the_device_of_a_mount() {
        let mountinfo = "21 28 0:20 / /proc rw - proc proc rw\n28 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n";
        assert_eq!(mount_device(mountinfo, 28), Some((254, 0)));
        assert_eq!(mount_device(mountinfo, 29), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in "[0-9A-Z:>\\- \n<]{0,400}", id in any::<u64>()) {
            let _ = parse(&text, &BTreeSet::from([0, 1]));
            let _ = (mount_device(&text, id), mount_id(&text), inode(&text), of_descriptor(&text).count());
        }

        #[test]
        fn a_broken_line_is_counted_and_hides_no_other(cut in 0usize..70, bytes in proptest::collection::vec(any::<u8>(), 0..8)) {
            let mut line = OLD.lines().next().unwrap().as_bytes().to_vec();
            line.truncate(cut);
            line.extend(bytes);
            let broken = String::from_utf8_lossy(&line).replace(['\n', '\r'], "?");
            let table = all(&format!("{broken}\n{OLD}"));
            prop_assert_eq!(table.contended.len(), 1);
        }
    }
}

//! Who holds file locks and who waits for them: the kernel's table, read once for all probes of a round, and the
//! processes behind it.
//!
//! Must never open a file that is locked: the open breaks a lease and the close drops this process's own POSIX locks.
//! A path is only looked at (`O_PATH`), which does neither.

mod people;
mod probe;

pub use probe::{LockProbe, MAX_WAIT_DEFAULT};

pub(crate) use people::{Holder, Openers, holders_of_deleted, openers, party};
pub(crate) use probe::living;

use super::HostRoot;
use muster_agent_core::locks::party::Party;
use muster_agent_core::locks::table::{Collector, FileId, Table, inode, mount_device, mount_id};
use muster_agent_core::services::Instance;
use muster_common::ids::ServiceName;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, fstat, makedev, open, statx};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// One read serves all lock probes of a cycle.
const FRESH_MS: u64 = 300;
/// Bytes read of the table: far more than its bound of lines needs.
const TABLE_BYTES_MAX: u64 = 8 << 20;
/// The kernel holds a lock of its own while it fills a buffer: a few pages at a time.
const BUFFER_BYTES: usize = 16 * 1024;
/// Processes looked up in one round; behind so many waiters the first ones tell enough.
const PARTIES_MAX: usize = 128;

/// What all lock probes share: the last read of the table, and the processes found in it.
#[derive(Debug)]
pub struct LockTable {
    root: HostRoot,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    taken_boottime_ms: Option<u64>,
    /// Inodes whose locks are wanted, by who wants them.
    interest: BTreeMap<String, BTreeSet<u64>>,
    /// Those that the last read kept.
    kept: BTreeSet<u64>,
    table: Result<Arc<Table>, String>,
    parties: BTreeMap<u32, Option<Party>>,
    reads: u64,
}

impl LockTable {
    /// The table of the host under `root`.
    pub fn new(root: HostRoot) -> Arc<Self> {
        let state = State {
            taken_boottime_ms: None,
            interest: BTreeMap::new(),
            kept: BTreeSet::new(),
            table: Err("not read yet".to_owned()),
            parties: BTreeMap::new(),
            reads: 0,
        };
        Arc::new(Self { root, state: Mutex::new(state) })
    }

    /// The root it reads under.
    pub fn root(&self) -> &HostRoot {
        &self.root
    }

    /// The table as of `now_boottime_ms`, at most a moment old, with all locks on the inodes that `who` wants.
    pub fn read(&self, who: &str, inodes: BTreeSet<u64>, now_boottime_ms: u64) -> Result<Arc<Table>, String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = state.taken_boottime_ms.is_some_and(|taken| now_boottime_ms.abs_diff(taken) < FRESH_MS);
        let complete = inodes.is_subset(&state.kept);
        if state.interest.get(who) != Some(&inodes) {
            state.interest.insert(who.to_owned(), inodes);
        }
        if !fresh || !complete {
            let wanted: BTreeSet<u64> = state.interest.values().flatten().copied().collect();
            state.table = read_table(&self.root, &wanted).map(Arc::new);
            state.kept = wanted;
            state.taken_boottime_ms = Some(now_boottime_ms);
            state.parties.clear();
            state.reads += 1;
        }
        state.table.clone()
    }

    /// The process `pid`, looked up once per read.
    pub fn party(&self, pid: u32, living: &[(ServiceName, Instance)]) -> Option<Party> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = state.parties.get(&pid) {
            return known.clone();
        }
        if state.parties.len() >= PARTIES_MAX {
            return None;
        }
        let found = people::party(&self.root, living, pid);
        state.parties.insert(pid, found.clone());
        found
    }

    /// How often the table was read.
    pub fn reads(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).reads
    }
}

/// Reads the table as it is now, keeping the waiters and the locks on these inodes.
pub(crate) fn read_table(root: &HostRoot, wanted: &BTreeSet<u64>) -> Result<Table, String> {
    let file = File::open(root.path("/proc/locks")).map_err(|error| format!("/proc/locks: {error}"))?;
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, file.take(TABLE_BYTES_MAX));
    let mut collector = Collector::new(wanted);
    let mut line = String::new();
    loop {
        line.clear();
        match reader.read_line(&mut line) {
            Ok(0) => break,
            Ok(_) if collector.line(&line) => {}
            Ok(_) => break,
            Err(error) => return Err(format!("/proc/locks: {error}")),
        }
    }
    Ok(collector.end())
}

/// A file as `/proc/locks` may name it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Located {
    inode: u64,
    /// That of `stat`, and that of the mount where it is another (overlayfs, btrfs).
    devices: Vec<(u32, u32)>,
    /// What the answer depends on: while it is the same the mounts are not read again.
    of: (u64, u64, Option<u64>),
}

impl Located {
    /// Looks at what is at `path`; a symbolic link is followed, nothing is opened.
    pub fn find(path: &Path, before: Option<&Self>) -> rustix::io::Result<Self> {
        if let Some(before) = before.filter(|before| Some(before.of) == identity(path)) {
            return Ok(before.clone());
        }
        let handle = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        Self::of(&handle, before)
    }

    /// The file behind an open descriptor. `before` is taken when it is still right.
    fn of(handle: impl AsFd, before: Option<&Self>) -> rustix::io::Result<Self> {
        let stat = fstat(&handle)?;
        let fdinfo = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", handle.as_fd().as_raw_fd()));
        let fdinfo = fdinfo.unwrap_or_default();
        let mount = mount_id(&fdinfo);
        let of = (stat.st_dev, stat.st_ino, mount);
        if let Some(before) = before.filter(|before| before.of == of) {
            return Ok(before.clone());
        }
        let mut devices = vec![(rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev))];
        if let (Some(mount), Ok(mountinfo)) = (mount, std::fs::read("/proc/self/mountinfo")) {
            // A mount point may be any bytes.
            let mountinfo = String::from_utf8_lossy(&mountinfo);
            devices.extend(mount_device(&mountinfo, mount).filter(|device| !devices.contains(device)));
        }
        Ok(Self { inode: inode(&fdinfo).unwrap_or(stat.st_ino), devices, of })
    }

    /// The inode as the table has it.
    pub const fn inode(&self) -> u64 {
        self.inode
    }

    /// True when the table's `file` is this one.
    pub fn is(&self, file: &FileId) -> bool {
        self.inode == file.inode && self.devices.contains(&(file.major, file.minor))
    }
}

/// What [`Located::of`] depends on, in one question; `None` where the kernel does not tell the mount (before Linux 5.8)
/// or nothing is there.
fn identity(path: &Path) -> Option<(u64, u64, Option<u64>)> {
    let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
    let told = statx(CWD, path, AtFlags::NO_AUTOMOUNT, wanted).ok()?;
    let mount = StatxFlags::from_bits_retain(told.stx_mask).contains(StatxFlags::MNT_ID).then_some(told.stx_mnt_id)?;
    Some((makedev(told.stx_dev_major, told.stx_dev_minor), told.stx_ino, Some(mount)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_read_serves_a_round_until_somebody_wants_another_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("proc")).unwrap();
        let text = "1: FLOCK  ADVISORY  WRITE 7 fe:00:41 0 EOF\n2: FLOCK  ADVISORY  WRITE 7 fe:00:42 0 EOF\n";
        std::fs::write(folder.path().join("proc/locks"), text).unwrap();
        let table = LockTable::new(HostRoot(folder.path().to_owned()));
        let kept = |who: &str, inode, now| table.read(who, BTreeSet::from([inode]), now).unwrap().watched.len();
        assert_eq!((kept("a", 41, 1_000), kept("a", 41, 1_100), table.reads()), (1, 1, 1));
        assert_eq!((kept("b", 42, 1_100), kept("a", 41, 1_200), table.reads()), (2, 2, 2));
        assert_eq!((kept("a", 41, 6_000), kept("b", 42, 6_100), table.reads()), (2, 2, 3));
        let nowhere = LockTable::new(HostRoot("/nonexistent".into()));
        assert!(nowhere.read("a", BTreeSet::new(), 1).unwrap_err().contains("/proc/locks"));
    }

    #[test]
    fn a_file_is_located_without_opening_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let located = Located::find(&path, None).unwrap();
        assert_eq!(Located::find(&path, Some(&located)).unwrap(), located);
        let (major, minor) = located.devices[0];
        assert!(located.is(&FileId { major, minor, inode: located.inode() }));
        assert!(!located.is(&FileId { major, minor, inode: located.inode() + 1 }));
        assert!(Located::find(&folder.path().join("none"), None).is_err());
    }
}

//! The processes behind locks: what they are doing, whose they are, and which of them has a file open.
//!
//! Walks over descriptors are bounded in number and time. They need CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH for the
//! processes of other users; who cannot be looked into is counted, not guessed at.

use super::Located;
use crate::senses::{HostRoot, process};
use muster_agent_core::locks::party::{Activity, Party, service_of};
use muster_agent_core::locks::table::{FileId, Lock, inode, of_descriptor};
use muster_agent_core::services::Instance;
use muster_common::ids::{ProcessId, ServiceName};
use procfs::process::Process;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Descriptors looked at of one process.
const DESCRIPTORS_MAX: usize = 4096;
/// A walk over all processes ends after this; what it found until then is what is told.
const WALK_MAX: Duration = Duration::from_millis(300);

/// What `pid` is and does.
pub(crate) fn party(root: &HostRoot, living: &[(ServiceName, Instance)], pid: u32) -> Option<Party> {
    let process = Process::new_with_root(root.path(format!("/proc/{pid}"))).ok()?;
    let stat = process.stat().ok()?;
    // With more threads nobody can tell which one waits, and the count is that of the first alone.
    let switches = (stat.num_threads == 1).then(|| process.status().ok()?.voluntary_ctxt_switches).flatten();
    let owner = if living.is_empty() { None } else { process::owner(root, pid) };
    Some(Party {
        process: ProcessId { pid, start_ticks: stat.starttime },
        comm: stat.comm,
        activity: Activity::of(stat.state),
        service: owner.as_ref().and_then(|owner| service_of(owner, living)).cloned(),
        switches,
    })
}

/// The text of each `fdinfo` of `pid` with its number, until `found` says that it is enough; `None` when it cannot be
/// listed.
fn descriptors(root: &HostRoot, pid: u32, mut found: impl FnMut(&str, &str) -> bool) -> Option<bool> {
    let folder = root.path(format!("/proc/{pid}/fdinfo"));
    let mut readable = true;
    for entry in std::fs::read_dir(&folder).ok()?.flatten().take(DESCRIPTORS_MAX) {
        let name = entry.file_name();
        match std::fs::read_to_string(entry.path()) {
            Ok(text) if name.to_str().is_some_and(|number| found(number, &text)) => return Some(true),
            Ok(_) => {}
            Err(error) => readable &= error.kind() != std::io::ErrorKind::PermissionDenied,
        }
    }
    readable.then_some(false)
}

/// Whether `pid` holds `lock` through one of its descriptors; `None` when it cannot be looked into.
pub(super) fn holds(root: &HostRoot, pid: u32, lock: &Lock) -> Option<bool> {
    descriptors(root, pid, |_, fdinfo| of_descriptor(fdinfo).any(|held| held.is_same(lock)))
}

/// The first process that holds `lock`: `first` is asked before all others. The flag tells whether everybody could be
/// looked into.
pub(super) fn holder(root: &HostRoot, lock: &Lock, first: &[u32]) -> (Option<u32>, bool) {
    let mut everybody = true;
    let until = Instant::now() + WALK_MAX;
    for pid in first.iter().copied().chain(pids(root)) {
        if Instant::now() > until {
            return (None, false);
        }
        match holds(root, pid, lock) {
            Some(true) => return (Some(pid), true),
            Some(false) => {}
            // A process that has ended meanwhile cannot be listed either.
            None => everybody &= process::id(root, pid).is_none(),
        }
    }
    (None, everybody)
}

/// The path under which `pid` has the file open.
pub(super) fn path_of(root: &HostRoot, pid: u32, file: FileId) -> Option<String> {
    let mut path = None;
    descriptors(root, pid, |number, fdinfo| {
        if inode(fdinfo) != Some(file.inode) {
            return false;
        }
        path = std::fs::read_link(root.path(format!("/proc/{pid}/fd/{number}"))).ok();
        path.is_some()
    });
    path.map(|path| path.to_string_lossy().into_owned())
}

/// Who has a file open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Openers {
    /// These, as far as they were found.
    pub(crate) pids: Vec<u32>,
    /// Processes that could not be looked into, or were not reached in time.
    pub(crate) hidden: usize,
}

/// Everybody who has the file at `path` open, this process left out; at most `pids_max`.
pub(crate) fn openers(root: &HostRoot, path: &Path, located: &Located, pids_max: usize) -> Openers {
    let mut openers = Openers::default();
    let until = Instant::now() + WALK_MAX;
    for pid in pids(root).filter(|pid| *pid != std::process::id()) {
        if Instant::now() > until || openers.pids.len() >= pids_max {
            openers.hidden += 1;
            continue;
        }
        match has_open(root, pid, path, located) {
            Some(true) => openers.pids.push(pid),
            Some(false) => {}
            None => openers.hidden += usize::from(process::id(root, pid).is_some()),
        }
    }
    openers
}

/// By the link of each descriptor, which costs no look at the file itself; by the inode where the kernel tells it.
fn has_open(root: &HostRoot, pid: u32, path: &Path, located: &Located) -> Option<bool> {
    let mut readable = true;
    for entry in std::fs::read_dir(root.path(format!("/proc/{pid}/fd"))).ok()?.flatten().take(DESCRIPTORS_MAX) {
        match std::fs::read_link(entry.path()) {
            // Another mount namespace may show another folder, never another name.
            Ok(link) if link.file_name() == path.file_name() => {
                let fdinfo = root.path(format!("/proc/{pid}/fdinfo")).join(entry.file_name());
                let inode = std::fs::read_to_string(fdinfo).ok().and_then(|text| inode(&text));
                if inode.map_or(link == path, |inode| inode == located.inode()) {
                    return Some(true);
                }
            }
            Ok(_) => {}
            Err(error) => readable &= error.kind() != std::io::ErrorKind::PermissionDenied,
        }
    }
    readable.then_some(false)
}

/// A process that has a file open which is gone from its folder, or one of the files beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Who.
    pub(crate) pid: u32,
    /// The number of its descriptor of the deleted file.
    pub(crate) descriptor: Option<u32>,
}

/// Who has the deleted SQLite database of `path` open, or its -wal or -shm, at most `pids_max`; and whether everybody could
/// be looked into.
pub(crate) fn holders_of_deleted(root: &HostRoot, path: &Path, pids_max: usize) -> (Vec<Holder>, bool) {
    let named = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let deleted = named(" (deleted)");
    let beside = ["-wal", "-shm", "-wal (deleted)", "-shm (deleted)"].map(named);
    let (mut holders, mut everybody) = (Vec::new(), true);
    let until = Instant::now() + WALK_MAX;
    for pid in pids(root).filter(|pid| *pid != std::process::id()) {
        if Instant::now() > until || holders.len() >= pids_max {
            return (holders, false);
        }
        let Ok(entries) = std::fs::read_dir(root.path(format!("/proc/{pid}/fd"))) else {
            everybody &= process::id(root, pid).is_none();
            continue;
        };
        let (mut has_it, mut descriptor) = (false, None);
        for entry in entries.flatten().take(DESCRIPTORS_MAX) {
            let Ok(link) = std::fs::read_link(entry.path()) else { continue };
            if link == deleted {
                (has_it, descriptor) = (true, entry.file_name().to_str().and_then(|number| number.parse().ok()));
            }
            has_it |= beside.contains(&link);
        }
        holders.extend(has_it.then_some(Holder { pid, descriptor }));
    }
    (holders, everybody)
}

fn pids(root: &HostRoot) -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir(root.path("/proc")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

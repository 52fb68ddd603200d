//! What procfs tells about one process, read through a descriptor of its `/proc/PID` folder, so that all of it is about
//! the same (pid, start time).
//!
//! Must never signal a process: whether a pid exists beyond what procfs shows is asked by opening a pidfd.

use super::HostRoot;
use super::small::{read_piece, read_piece_text, text};
use muster_agent_core::pid_file::{Facts, ProcessReading};
use muster_agent_core::port::Owner;
use muster_agent_core::process::proc_text::{self, Stat};
use muster_common::ids::ProcessId;
use procfs::{FromRead, ProcessCGroups};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fstat, open, openat, readlinkat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::OwnedFd;

/// `stat` has a line of fifty numbers, `cgroup` one a hierarchy.
const TEXT_BYTES_MAX: u64 = 64 * 1024;
/// Parents followed upwards; no real tree is deeper, and a torn read cannot loop for ever.
const ANCESTORS_MAX: usize = 32;
/// Room for the path of an executable at the first try.
const PATH_BYTES: usize = 256;

/// `/proc/PID` of one process, held open: whoever has its pid later is not found in it.
struct Folder(OwnedFd);

impl Folder {
    fn open(root: &HostRoot, pid: u32) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(open(root.path(format!("/proc/{pid}")), flags, Mode::empty())?))
    }

    fn text(&self, name: &str) -> Result<String> {
        let file = openat(&self.0, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        read_piece(&File::from(file), TEXT_BYTES_MAX).map(text)
    }

    fn stat(&self) -> Result<Stat> {
        parsed(&self.text("stat")?)
    }

    fn facts(&self, stat: &Stat) -> Facts {
        // It counts CLOCK_BOOTTIME.
        let hz = procfs::ticks_per_second().max(1);
        let exe = readlinkat(&self.0, "exe", Vec::with_capacity(PATH_BYTES)).ok();
        Facts {
            process: stat.process,
            start_boottime_ms: stat.process.start_ticks.saturating_mul(1000) / hz,
            comm: stat.comm.clone(),
            exe: exe.map(|exe| text(exe.into_bytes())),
            cgroup: self.cgroup(),
        }
    }

    /// The memory controller's path where there is one (that is what the OOM killer prints), else the unified one.
    fn cgroup(&self) -> Option<String> {
        let groups = ProcessCGroups::from_read(self.text("cgroup").ok()?.as_bytes()).ok()?;
        let memory = groups.0.iter().find(|group| group.controllers.iter().any(|name| name == "memory"));
        let group = memory.or_else(|| groups.0.iter().find(|group| group.hierarchy == 0))?;
        Some(group.pathname.clone())
    }
}

/// `/proc/PID/stat`, of whoever has the pid now.
fn stat(root: &HostRoot, pid: u32) -> Result<Stat> {
    parsed(&read_piece_text(root.path(format!("/proc/{pid}/stat")), TEXT_BYTES_MAX)?)
}

fn parsed(text: &str) -> Result<Stat> {
    proc_text::stat(text).ok_or_else(|| Error::other("its stat is not understood"))
}

/// The process that `pid` names now.
pub fn read(root: &HostRoot, pid: u32) -> ProcessReading {
    let looked = Folder::open(root, pid).and_then(|folder| folder.stat().map(|stat| (folder, stat)));
    let (folder, stat) = match looked {
        Ok(looked) => looked,
        Err(error) => return absent(root, pid, &error),
    };
    match ended(&stat) {
        Some('Z') => ProcessReading::Zombie(folder.facts(&stat)),
        Some(_) => ProcessReading::Gone,
        None if stat.kernel => ProcessReading::Kernel(folder.facts(&stat)),
        None => ProcessReading::Alive(folder.facts(&stat)),
    }
}

/// The state of one that has ended.
fn ended(stat: &Stat) -> Option<char> {
    // A leader that has exited shows as a zombie while its other threads still work.
    let is_over = match stat.state {
        'Z' => stat.threads <= 1,
        state => matches!(state, 'X' | 'x'),
    };
    is_over.then_some(stat.state)
}

/// Whether this process still runs, by `stat` alone.
pub fn runs(root: &HostRoot, process: ProcessId) -> bool {
    stat(root, process.pid).is_ok_and(|stat| stat.process == process && ended(&stat).is_none())
}

/// The process, if it lives.
pub fn alive(root: &HostRoot, pid: u32) -> Option<Facts> {
    match read(root, pid) {
        ProcessReading::Alive(facts) => Some(facts),
        _ => None,
    }
}

/// The start time of `pid`, zombie or not: enough to tell whether it is still the same process.
pub fn id(root: &HostRoot, pid: u32) -> Option<ProcessId> {
    Some(stat(root, pid).ok()?.process)
}

/// The process as the holder of a socket, with its parents.
pub fn owner(root: &HostRoot, pid: u32) -> Option<Owner> {
    let folder = Folder::open(root, pid).ok()?;
    let first = folder.stat().ok()?;
    let Facts { process: id, comm, exe, cgroup, .. } = folder.facts(&first);
    let (mut ancestors, mut parent) = (Vec::new(), first.parent);
    while parent > 0 && ancestors.len() < ANCESTORS_MAX {
        let Ok(next) = stat(root, parent) else { break };
        ancestors.push(next.process);
        parent = next.parent;
    }
    let uid = fstat(&folder.0).ok().map(|its| its.st_uid);
    Some(Owner { process: id, comm, exe, uid, cgroup, ancestors })
}

/// True when the process lives in the same network namespace as the agent, or that cannot be told.
pub fn shares_network(root: &HostRoot, pid: u32) -> bool {
    let link = |path: String| std::fs::read_link(root.path(path)).ok();
    match (link(format!("/proc/{pid}/ns/net")), link("/proc/self/ns/net".to_owned())) {
        (Some(its), Some(ours)) => its == ours,
        _ => true,
    }
}

/// Opens a pidfd of `process` and makes sure that it is of this instance, not of a later one with its pid.
pub fn watch(root: &HostRoot, process: ProcessId) -> Option<OwnedFd> {
    if !root.is_real() {
        return None;
    }
    let pid = Pid::from_raw(i32::try_from(process.pid).ok()?)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // The pidfd holds the pid; if the start time still fits after the open, both are of one process.
    (id(root, process.pid) == Some(process)).then_some(pidfd)
}

/// Whether the process behind a pidfd has ended (it is a zombie, or reaped).
pub fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&now)), Ok(ready) if ready > 0)
}

/// Why procfs does not show it. Under hidepid it looks gone, and only a pidfd tells the difference.
fn absent(root: &HostRoot, pid: u32, error: &Error) -> ProcessReading {
    let gone = [Errno::NOENT, Errno::SRCH].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
    if !gone {
        return ProcessReading::Hidden(format!("/proc/{pid} cannot be read: {error}"));
    }
    if !root.is_real() {
        return ProcessReading::Gone;
    }
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    match raw.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
        // It may have started, or ended, between the two looks: what procfs says now decides.
        Some(Ok(pidfd)) if !has_ended(&pidfd) && Folder::open(root, pid).is_err() => {
            ProcessReading::Hidden("/proc is mounted with hidepid".to_owned())
        }
        _ => ProcessReading::Gone,
    }
}

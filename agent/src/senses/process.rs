//! What procfs tells about one process, read through a descriptor of its `/proc/PID` folder, so that all of it is about
//! the same (pid, start time).
//!
//! Must never signal a process: whether a pid exists beyond what procfs shows is asked by opening a pidfd.

use super::HostRoot;
use muster_agent_core::pid_file::{Facts, ProcessReading};
use muster_agent_core::port::Owner;
use muster_common::ids::ProcessId;
use procfs::ProcError;
use procfs::process::{Process, Stat};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::OwnedFd;

/// Parents followed upwards; no real tree is deeper, and a torn read cannot loop for ever.
const ANCESTORS_MAX: usize = 32;

/// Opens `/proc/PID` under `root`.
fn open(root: &HostRoot, pid: u32) -> Result<Process, ProcError> {
    Process::new_with_root(root.path(format!("/proc/{pid}")))
}

/// The process that `pid` names now.
pub fn read(root: &HostRoot, pid: u32) -> ProcessReading {
    let process = match open(root, pid) {
        Ok(process) => process,
        Err(error) => return absent(root, pid, &error),
    };
    let stat = match process.stat() {
        Ok(stat) => stat,
        Err(error) => return absent(root, pid, &error),
    };
    let facts = facts(&process, &stat);
    match ended(&stat) {
        Some('Z') => ProcessReading::Zombie(facts),
        Some(_) => ProcessReading::Gone,
        None => ProcessReading::Alive(facts),
    }
}

/// The state of one that has ended.
fn ended(stat: &Stat) -> Option<char> {
    // A leader that has exited shows as a zombie while its other threads still work.
    let is_over = match stat.state {
        'Z' => stat.num_threads <= 1,
        state => matches!(state, 'X' | 'x'),
    };
    is_over.then_some(stat.state)
}

/// Whether this process still runs, by `stat` alone.
pub fn runs(root: &HostRoot, process: ProcessId) -> bool {
    let stat = open(root, process.pid).ok().and_then(|process| process.stat().ok());
    stat.is_some_and(|stat| stat.starttime == process.start_ticks && ended(&stat).is_none())
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
    let stat = open(root, pid).ok()?.stat().ok()?;
    Some(ProcessId { pid, start_ticks: stat.starttime })
}

/// The process as the holder of a socket, with its parents.
pub fn owner(root: &HostRoot, pid: u32) -> Option<Owner> {
    let process = open(root, pid).ok()?;
    let stat = process.stat().ok()?;
    let Facts { process: id, comm, exe, cgroup, .. } = facts(&process, &stat);
    let mut ancestors = Vec::new();
    let mut parent = u32::try_from(stat.ppid).unwrap_or(0);
    while parent > 0 && ancestors.len() < ANCESTORS_MAX {
        let Some(stat) = open(root, parent).ok().and_then(|process| process.stat().ok()) else { break };
        ancestors.push(ProcessId { pid: parent, start_ticks: stat.starttime });
        parent = u32::try_from(stat.ppid).unwrap_or(0);
    }
    Some(Owner { process: id, comm, exe, uid: process.uid().ok(), cgroup, ancestors })
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

fn facts(process: &Process, stat: &Stat) -> Facts {
    // `starttime` is field 22 and counts CLOCK_BOOTTIME.
    let hz = procfs::ticks_per_second().max(1);
    Facts {
        process: ProcessId { pid: u32::try_from(stat.pid).unwrap_or(0), start_ticks: stat.starttime },
        start_boottime_ms: stat.starttime.saturating_mul(1000) / hz,
        comm: stat.comm.clone(),
        exe: process.exe().ok().map(|exe| exe.to_string_lossy().into_owned()),
        cgroup: cgroup(process),
    }
}

/// The memory controller's path where there is one (that is what the OOM killer prints), else the unified one.
fn cgroup(process: &Process) -> Option<String> {
    let groups = process.cgroups().ok()?;
    let memory = groups.0.iter().find(|group| group.controllers.iter().any(|name| name == "memory"));
    let group = memory.or_else(|| groups.0.iter().find(|group| group.hierarchy == 0))?;
    Some(group.pathname.clone())
}

/// Why procfs does not show it. Under hidepid it looks gone, and only a pidfd tells the difference.
fn absent(root: &HostRoot, pid: u32, error: &ProcError) -> ProcessReading {
    let gone = matches!(error, ProcError::NotFound(_)) || is_errno(error, Errno::SRCH);
    if !gone {
        return ProcessReading::Hidden(format!("/proc/{pid} cannot be read: {error}"));
    }
    if !root.is_real() {
        return ProcessReading::Gone;
    }
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    match raw.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
        // It may have started, or ended, between the two looks: what procfs says now decides.
        Some(Ok(pidfd)) if !has_ended(&pidfd) && open(root, pid).is_err() => {
            ProcessReading::Hidden("/proc is mounted with hidepid".to_owned())
        }
        _ => ProcessReading::Gone,
    }
}

fn is_errno(error: &ProcError, errno: Errno) -> bool {
    matches!(error, ProcError::Io(io, _) if io.raw_os_error() == Some(errno.raw_os_error()))
}

//! A process watched by its pidfd to its end and beyond: how it ended is asked of the kernel once its parent has
//! reaped it.
//!
//! `PIDFD_GET_INFO` with `PIDFD_INFO_EXIT` (Linux 6.15) tells everybody who opened a pidfd while the process lived;
//! before the reaping (a zombie) there is no code yet, so the second wake waits for the hang-up of the pidfd. On older
//! kernels nobody tells a stranger: the proc connector needs CAP_NET_ADMIN before Linux 6.6, wakes its listener for
//! every fork and exit of the host, and is refused in another network namespace, so it is not used; systemd's
//! `ExecMainStatus` is the second way, for services with a unit.
//!
//! Must never reap, signal or wait for a process: it belongs to its parent.

use super::{HostRoot, process};
use muster_agent_core::process::exit::{Exit, ExitStatus};
use muster_common::ids::ProcessId;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// `PIDFS_IOCTL_MAGIC` and the number of `PIDFD_GET_INFO`.
const GET_INFO: Opcode = opcode::read_write::<PidfdInfo>(0xff, 11);
/// `PIDFD_INFO_EXIT`: asked for, and answered, in `mask`.
const INFO_EXIT: u64 = 1 << 3;
/// Why the kernel does not tell.
const TOO_OLD: &str = "this kernel does not tell a stranger how a process ended (Linux 6.15 does)";

/// `struct pidfd_info` of the kernel, as of its first version: 64 bytes, which every later kernel takes too.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    /// pid, tgid, ppid, ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid.
    ids: [u32; 11],
    exit_code: i32,
}

/// One process, watched.
#[derive(Debug)]
pub struct ExitWatch {
    process: ProcessId,
    pidfd: Arc<OwnedFd>,
    /// Becomes readable when the process has been reaped; made when it has ended.
    reaped: Option<Arc<OwnedFd>>,
    exit: Exit,
}

impl ExitWatch {
    /// Watches `process`, if it still is that process.
    pub fn open(root: &HostRoot, process: ProcessId) -> Option<Self> {
        let pidfd = Arc::new(process::watch(root, process)?);
        Some(Self { process, pidfd, reaped: None, exit: Exit::Pending })
    }

    /// Which one.
    pub const fn process(&self) -> ProcessId {
        self.process
    }

    /// Whether it has ended (a zombie, or reaped).
    pub fn has_ended(&self) -> bool {
        process::has_ended(&self.pidfd)
    }

    /// How it ended, as far as that can be had now; meaningless while it lives.
    pub fn exit(&mut self) -> &Exit {
        if self.exit == Exit::Pending && self.has_ended() {
            self.exit = self.ask();
        }
        &self.exit
    }

    /// Whether it has ended and its parent has not reaped it.
    pub fn is_zombie(&self) -> bool {
        self.has_ended() && !is_reaped(&self.pidfd)
    }

    /// Waits for the reaping, which for a supervisor is a matter of a millisecond; then asks again.
    pub fn wait_for_reaping(&mut self, at_most: Duration) -> &Exit {
        if *self.exit() == Exit::Pending
            && let Some(reaped) = &self.reaped
        {
            let bound = Timespec::try_from(at_most).ok();
            // Interrupted or too late: the hang-up wakes the probe again.
            poll(&mut [PollFd::new(reaped, PollFlags::IN)], bound.as_ref()).ok();
        }
        self.exit()
    }

    /// What to wait for: its end, then its reaping, then nothing.
    pub fn wake(&self) -> Option<Arc<OwnedFd>> {
        match (&self.exit, &self.reaped) {
            (Exit::Pending, Some(reaped)) => Some(Arc::clone(reaped)),
            (Exit::Pending, None) => Some(Arc::clone(&self.pidfd)),
            _ => None,
        }
    }

    fn ask(&mut self) -> Exit {
        // Looked at before the question: who was reaped between the two is asked again at the next run.
        let reaped = is_reaped(&self.pidfd);
        match get_info(&self.pidfd) {
            Ok(info) if info.mask & INFO_EXIT != 0 => match ExitStatus::from_wait_status(info.exit_code) {
                Some(status) => Exit::Known { status, source: "kernel".to_owned() },
                None => Exit::Unknown(format!("the kernel told a wait status without meaning: {}", info.exit_code)),
            },
            Ok(_) | Err(rustix::io::Errno::SRCH) if !reaped => self.pending(),
            _ => Exit::Unknown(TOO_OLD.to_owned()),
        }
    }

    fn pending(&mut self) -> Exit {
        if self.reaped.is_none() {
            match hang_up_of(&self.pidfd) {
                Ok(epoll) => self.reaped = Some(Arc::new(epoll)),
                Err(error) => return Exit::Unknown(format!("its reaping cannot be waited for: {error}")),
            }
        }
        Exit::Pending
    }
}

/// A descriptor that is readable when, and only when, the pidfd hangs up: an epoll that asks for no event but that one.
/// The pidfd itself stays readable as long as the zombie is there.
fn hang_up_of(pidfd: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&set, pidfd, epoll::EventData::new_u64(0), epoll::EventFlags::HUP)?;
    Ok(set)
}

/// Pidfds hang up at the reaping from Linux 6.9 on; before it, only what the kernel tells of the descriptor does.
fn is_reaped(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let hung_up = poll(&mut fds, Some(&now)).is_ok() && fds.iter().any(|fd| fd.revents().contains(PollFlags::HUP));
    hung_up || leads_nowhere(pidfd)
}

/// Whether a pidfd belongs to no process any more, not even to a zombie (Linux 5.4).
fn leads_nowhere(pidfd: &OwnedFd) -> bool {
    let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap_or_default();
    told.lines().any(|line| line.strip_prefix("Pid:").is_some_and(|pid| pid.trim() == "-1"))
}

#[expect(unsafe_code, reason = "no safe wrapper of PIDFD_GET_INFO exists in std, nix or rustix")]
fn get_info(pidfd: &OwnedFd) -> rustix::io::Result<PidfdInfo> {
    let mut info = PidfdInfo { mask: INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the opcode carries the size of `PidfdInfo`, the kernel writes at most that many bytes, into plain
    // integers for which every bit pattern is valid; on a descriptor that is no pidfd the call fails with ENOTTY.
    unsafe { ioctl(pidfd, Updater::<{ GET_INFO }, PidfdInfo>::new(&mut info)) }?;
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Child, Command, Stdio};

    #[test]
    fn the_structure_is_that_of_the_kernel() {
        assert_eq!(size_of::<PidfdInfo>(), 64);
        assert_eq!(GET_INFO, 0xc040_ff0b);
    }

    /// A shell that waits for a line and then does `what`.
    fn shell(what: &str) -> (Child, ExitWatch) {
        let script = format!("read go; {what}");
        let child = Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
        let root = HostRoot::default();
        let watch = ExitWatch::open(&root, process::id(&root, child.id()).unwrap()).unwrap();
        (child, watch)
    }

    #[test]
    fn a_zombie_is_told_from_what_was_reaped_also_where_no_pidfd_hangs_up() {
        let (mut child, watch) = shell("exit 3");
        assert!(!leads_nowhere(&watch.pidfd) && !watch.is_zombie());
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        wait_for(&watch.pidfd);
        assert!(!leads_nowhere(&watch.pidfd) && watch.is_zombie());
        child.wait().unwrap();
        assert!(leads_nowhere(&watch.pidfd) && !watch.is_zombie());
    }

    fn wait_for(fd: &OwnedFd) {
        let bound = Timespec { tv_sec: 60, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&bound));
        assert_eq!(ready, Ok(1));
    }

    #[test]
    fn codes_and_signals_are_told_after_the_reaping() {
        for (what, name) in [
            ("exit 0", "exit code 0"),
            ("exit 3", "exit code 3"),
            ("kill -9 $$", "SIGKILL"),
            ("kill -15 $$", "SIGTERM"),
            ("kill -11 $$", "SIGSEGV"),
        ] {
            let (mut child, mut watch) = shell(what);
            assert!(!watch.has_ended());
            assert_eq!(*watch.exit(), Exit::Pending);
            let first = watch.wake().unwrap();
            child.stdin.take().unwrap().write_all(b"go\n").unwrap();
            wait_for(&first);
            // A zombie: no code yet, and the descriptor to wait for is another one, that does not ring meanwhile.
            if matches!(watch.exit(), Exit::Unknown(why) if why == TOO_OLD) {
                println!("skipped: {TOO_OLD}");
                child.wait().unwrap();
                return;
            }
            assert_eq!(*watch.exit(), Exit::Pending, "{what}");
            let second = watch.wake().unwrap();
            assert!(!Arc::ptr_eq(&first, &second));
            assert!(!process::has_ended(&second), "it rings before the reaping");
            child.wait().unwrap();
            wait_for(&second);
            assert_eq!(watch.exit().status().map(ExitStatus::name).as_deref(), Some(name));
            assert!(watch.wake().is_none());
        }
    }
}

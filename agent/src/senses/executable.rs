//! Reads the program behind the main process of a service, once for each file that it ever runs.
//!
//! A restart of the same program costs one `stat`. A new one is read piece by piece, one piece a run, so that no other
//! probe waits for it; the file is held open meanwhile, so that a package manager that replaces it does not matter.

use super::regular::{Found, open_regular};
use super::{HostRoot, process};
use crate::bell::Bell;
use crate::probe::{Context, Lane, Probe, Remembered};
use muster_agent_core::executable::{Executable, ExecutableJudge, FileVersion, SUBJECT};
use muster_agent_core::judgement::Judgement;
use muster_agent_core::services::{Instance, Services};
use muster_common::evidence::Evidence;
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::{ProcessId, ServiceName};
use muster_common::units::human_bytes;
use rustix::fs::{AtFlags, CWD, OFlags, Stat, StatxFlags, StatxTimestamp, fstat, stat, statx};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// A larger program is not read: an image that brings everything with it would cost seconds of a core.
const FILE_BYTES_MAX: u64 = 512 << 20;
/// Read in one run: 20 ms of a core, 80 ms of a slow disk.
const PIECE_BYTES: u64 = 8 << 20;
/// Read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// Where a file cannot be read.
const WAY_OUT: &str = "the agent needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH for it";

/// Watches which program one service runs.
#[derive(Debug)]
pub struct ExecutableProbe {
    subject: SubjectKey,
    root: HostRoot,
    judge: ExecutableJudge,
    /// Looked at to the end.
    done: Option<ProcessId>,
    reading: Option<Reading>,
    /// Rings while there is more to read.
    bell: Option<Bell>,
}

/// A file that is being read.
#[derive(Debug)]
struct Reading {
    process: ProcessId,
    file: File,
    version: FileVersion,
    hasher: Sha256,
    left_bytes: u64,
}

impl ExecutableProbe {
    /// Of a service with a pid file, a unit, or both.
    pub fn new(service: ServiceName, root: HostRoot) -> Self {
        let subject = SubjectKey::new(service, ProbeKind::Process, SUBJECT);
        Self { subject, root, judge: ExecutableJudge::default(), done: None, reading: None, bell: Bell::new().ok() }
    }

    /// What stands behind the process; `None` while there is more to read.
    fn look(&mut self, process: ProcessId) -> Option<Executable> {
        if self.reading.as_ref().is_none_or(|reading| reading.process != process) {
            self.reading = None;
            match self.open(process) {
                Ok(reading) => self.reading = Some(reading),
                Err(known) => return Some(known),
            }
        }
        let reading = self.reading.as_mut()?;
        let version = Some(reading.version);
        let sha256 = match reading.read_piece() {
            Ok(false) => return None,
            Ok(true) => self.reading.take()?.finish(),
            Err(error) => Err(format!("it cannot be read: {error}")),
        };
        self.reading = None;
        Some(Executable { version, sha256 })
    }

    /// Opens it for reading, unless all is known without.
    fn open(&self, process: ProcessId) -> Result<Reading, Executable> {
        let unknown = |version, why: String| Executable { version, sha256: Err(why) };
        let path = self.root.path(format!("/proc/{}/exe", process.pid));
        let refused = |errno: Errno| match errno {
            Errno::ACCESS | Errno::PERM => unknown(None, WAY_OUT.to_owned()),
            errno => unknown(None, std::io::Error::from(errno).to_string()),
        };
        let version = version(&stat(&path).map_err(refused)?);
        let ours = process::id(&self.root, process.pid) == Some(process);
        if !ours {
            return Err(unknown(None, "its process has ended".to_owned()));
        }
        if let Some(sha256) = self.judge.sha256_of(&version) {
            return Err(Executable { version: Some(version), sha256: Ok(sha256.to_owned()) });
        }
        if version.size_bytes > FILE_BYTES_MAX {
            let why = format!("it is larger than {}, the bound for hashing", human_bytes(FILE_BYTES_MAX));
            return Err(unknown(Some(version), why));
        }
        let (file, stat) = match open_regular(&path, OFlags::empty()).map_err(refused)? {
            Found::File(file, stat) => (file, stat),
            Found::Other(_) => return Err(unknown(None, "it is no regular file".to_owned())),
        };
        if process::id(&self.root, process.pid) != Some(process) {
            return Err(unknown(None, "its process has ended".to_owned()));
        }
        let version = self::version(&stat);
        Ok(Reading { process, file, version, hasher: Sha256::new(), left_bytes: version.size_bytes })
    }

    fn newest(&self, context: &Context) -> Option<Instance> {
        let services = context.services.lock().unwrap_or_else(PoisonError::into_inner);
        services.newest(&self.subject.service).filter(|newest| newest.ended_boottime_ms.is_none()).cloned()
    }
}

impl Reading {
    /// True when all of it is read.
    fn read_piece(&mut self) -> std::io::Result<bool> {
        let mut chunk = vec![0u8; CHUNK_BYTES];
        let mut piece_bytes = PIECE_BYTES.min(self.left_bytes);
        while piece_bytes > 0 {
            let wanted = usize::try_from(piece_bytes).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            match self.file.read(chunk.get_mut(..wanted).unwrap_or_default()) {
                // Shorter than it was: its version is another one now, as `finish` finds out.
                Ok(0) => self.left_bytes = 0,
                Ok(read) => {
                    self.hasher.update(chunk.get(..read).unwrap_or_default());
                    let read_bytes = u64::try_from(read).unwrap_or(u64::MAX);
                    self.left_bytes = self.left_bytes.saturating_sub(read_bytes);
                    piece_bytes = piece_bytes.saturating_sub(read_bytes);
                    continue;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            break;
        }
        Ok(self.left_bytes == 0)
    }

    fn finish(self) -> Result<String, String> {
        let after = fstat(&self.file).map_err(|errno| std::io::Error::from(errno).to_string())?;
        let after = version(&after);
        // An unlink, as an upgrade does it, changes the inode's time and not the content.
        let same = (after.size_bytes, after.modified_ns) == (self.version.size_bytes, self.version.modified_ns);
        if !same {
            return Err("it changed while it was read".to_owned());
        }
        Ok(self.hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl Probe for ExecutableProbe {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn lane(&self) -> Lane {
        Lane::Files
    }

    fn run(&mut self, context: &Context) -> Judgement {
        if let Some(bell) = &self.bell {
            bell.silence();
        }
        let Some(newest) = self.newest(context) else {
            self.reading = None;
            return Judgement::no_process();
        };
        let process = newest.process;
        // Whoever looks once does not wait for a large file, and knows no build to compare it with.
        if self.done == Some(process) || context.one_shot {
            return Judgement::ok(Evidence::new().count("pid", process.pid));
        }
        let Some(executable) = self.look(process) else {
            if let Some(bell) = &self.bell {
                bell.ring();
            }
            return Judgement::ok(Evidence::new().count("pid", process.pid).flag("is_being_read", true));
        };
        // What could not be read is tried again: the file system may come back.
        self.done = executable.sha256.is_ok().then_some(process);
        {
            let mut services = context.services.lock().unwrap_or_else(PoisonError::into_inner);
            services.note_executable(&self.subject.service, process, executable.clone());
        }
        let hz = procfs::ticks_per_second().max(1);
        let start_ms = process.start_ticks.saturating_mul(1000) / hz;
        let path = newest.exe.as_deref();
        self.judge.judge(&self.subject.service, process, path, &executable, start_ms, context.now)
    }

    fn wake(&self) -> Option<Arc<OwnedFd>> {
        self.bell.as_ref().map(Bell::fd)
    }

    fn save(&self) -> Option<Remembered> {
        Remembered::of(&self.judge)
    }

    fn restore(&mut self, saved: Remembered) {
        // A build outlives a reboot; devices may have other numbers then, and the file is read again.
        if let Ok(judge) = saved.read::<ExecutableJudge>() {
            self.judge = judge;
        }
    }
}

/// A new process of a service, as soon as it is seen: where it runs the file that was read before, its hash is known
/// without another look. Asks no file server, so that it may be called on any lane.
pub fn glance(root: &HostRoot, services: &Mutex<Services>, service: &ServiceName, process: ProcessId) {
    let path = root.path(format!("/proc/{}/exe", process.pid));
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let Ok(found) = statx(CWD, &path, flags, StatxFlags::BASIC_STATS) else { return };
    let nanos =
        |time: StatxTimestamp| time.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(time.tv_nsec));
    let version = FileVersion {
        device: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
        size_bytes: found.stx_size,
        modified_ns: nanos(found.stx_mtime),
        changed_ns: nanos(found.stx_ctime),
    };
    if process::id(root, process.pid) != Some(process) {
        return;
    }
    let mut services = services.lock().unwrap_or_else(PoisonError::into_inner);
    if services.executable(service, process).is_none()
        && let Some(sha256) = services.sha256_of(service, &version).map(str::to_owned)
    {
        services.note_executable(service, process, Executable { version: Some(version), sha256: Ok(sha256) });
    }
}

/// Of a file, as the kernel tells it.
pub(super) fn version(stat: &Stat) -> FileVersion {
    let nanos = |seconds: i64, nanos: u64| {
        seconds.saturating_mul(1_000_000_000).saturating_add(i64::try_from(nanos).unwrap_or(0))
    };
    FileVersion {
        device: stat.st_dev,
        inode: stat.st_ino,
        size_bytes: u64::try_from(stat.st_size).unwrap_or(u64::MAX),
        modified_ns: nanos(stat.st_mtime, stat.st_mtime_nsec),
        changed_ns: nanos(stat.st_ctime, stat.st_ctime_nsec),
    }
}

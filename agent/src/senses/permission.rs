//! Looks at modes and owners of what a service trusts, and of the folders above.
//!
//! Must never open a file: `stat` and `readlink` tell all that is asked, and disturb nobody.

use super::small::read_small_text;
use super::{HostRoot, process};
use crate::probe::{Context, Lane, Probe};
use muster_agent_core::accounts::Accounts;
use muster_agent_core::judgement::Judgement;
use muster_agent_core::permission::{Inode, Reading, Role, RunsAs, judge};
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::{ProcessId, ServiceName};
use rustix::fs::{Stat, lstat, stat};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

/// `/etc/passwd` and `/etc/group` are read up to this size.
const ACCOUNTS_BYTES_MAX: u64 = 1 << 20;
/// Folders looked at above a file; deeper ones are no real paths.
const FOLDERS_MAX: usize = 64;
/// What belongs to a database.
const BESIDE_DATABASE: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Looks at one path of one service.
#[derive(Debug)]
pub struct PermissionProbe {
    subject: SubjectKey,
    root: HostRoot,
    role: Role,
    path: PathBuf,
}

impl PermissionProbe {
    /// Looks at `path` (absolute, as the host knows it).
    pub fn new(service: ServiceName, role: Role, path: &Path, root: HostRoot) -> Self {
        let subject = SubjectKey::new(service, ProbeKind::Permission, &path.to_string_lossy());
        Self { subject, root, role, path: path.to_owned() }
    }

    fn reading(&self, runs_as: Option<RunsAs>) -> Result<Reading, Errno> {
        let path = self.root.path(&self.path);
        let mut reading = Reading { runs_as, ..Reading::default() };
        match lstat(&path) {
            Ok(stat) if stat.st_mode & FILE_TYPE == SYMLINK => reading.link = Some(inode(&self.path, &stat)),
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => return Err(errno),
        }
        let real = path.canonicalize().ok();
        let beside: &[&str] = if self.role == Role::Database { &BESIDE_DATABASE } else { &[] };
        if let Some(real) = &real {
            let named = |suffix: &&str| PathBuf::from(format!("{}{suffix}", real.display()));
            for file in std::iter::once(real.clone()).chain(beside.iter().map(named)) {
                if let Ok(stat) = stat(&file) {
                    reading.files.push(inode(&self.as_host(&file), &stat));
                }
            }
        }
        // Where nothing is, somebody may put something.
        let parent = real.as_deref().unwrap_or(&path).parent().and_then(|folder| folder.canonicalize().ok());
        let mut folder = parent.as_deref();
        while let Some(above) = folder.filter(|above| above.starts_with(&self.root.0))
            && reading.folders.len() < FOLDERS_MAX
        {
            reading.folders.push(inode(&self.as_host(above), &stat(above)?));
            folder = above.parent();
        }
        Ok(reading)
    }

    fn as_host(&self, path: &Path) -> PathBuf {
        Path::new("/").join(path.strip_prefix(&self.root.0).unwrap_or(path))
    }

    /// Whom the newest instance of the service runs as.
    fn runs_as(&self, context: &Context) -> Option<RunsAs> {
        let process = {
            let services = context.services.lock().unwrap_or_else(PoisonError::into_inner);
            let newest = services.newest(&self.subject.service)?;
            newest.ended_boottime_ms.is_none().then_some(newest.process)?
        };
        runs_as(&self.root, process)
    }
}

impl Probe for PermissionProbe {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn lane(&self) -> Lane {
        Lane::Files
    }

    fn run(&mut self, context: &Context) -> Judgement {
        match self.reading(self.runs_as(context)) {
            Ok(reading) => judge(self.role, &self.path.to_string_lossy(), &reading, &accounts(&self.root)),
            Err(errno) => {
                let why = format!("{} cannot be looked at: {}", self.path.display(), std::io::Error::from(errno));
                let denied = matches!(errno, Errno::ACCESS | Errno::PERM);
                Judgement::unknown(why, denied.then_some("give the agent CAP_DAC_READ_SEARCH"))
            }
        }
    }
}

const FILE_TYPE: u32 = 0o170_000;
const SYMLINK: u32 = 0o120_000;

fn inode(path: &Path, stat: &Stat) -> Inode {
    let path = path.to_string_lossy().into_owned();
    Inode { path, mode: stat.st_mode, uid: stat.st_uid, gid: stat.st_gid }
}

/// Effective user and all groups, from `/proc/PID/status`, if the process is still the same one.
fn runs_as(root: &HostRoot, process: ProcessId) -> Option<RunsAs> {
    // The name of a process is cut after 15 bytes, also within a character.
    let status = std::fs::read(root.path(format!("/proc/{}/status", process.pid))).ok()?;
    let status = String::from_utf8_lossy(&status);
    if process::id(root, process.pid) != Some(process) {
        return None;
    }
    let numbers = |key: &str| -> Option<Vec<u32>> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect())
    };
    // Real, effective, saved, of the file system.
    let uid = *numbers("Uid:")?.get(1)?;
    let mut gids: BTreeSet<u32> = numbers("Groups:").unwrap_or_default().into_iter().collect();
    gids.insert(*numbers("Gid:")?.get(1)?);
    Some(RunsAs { uid, gids })
}

/// The host's users and groups, as far as its files tell.
pub(super) fn accounts(root: &HostRoot) -> Accounts {
    let text = |path: &str| read_small_text(root.path(path), ACCOUNTS_BYTES_MAX).unwrap_or_default();
    Accounts::parse(&text("/etc/passwd"), &text("/etc/group"))
}

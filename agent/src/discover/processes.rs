//! What the processes of a host hold open: sockets, databases, logs.
//!
//! Bounded, and reads only: a file is taken for a database by the magic in its header alone, and for a log by how it is
//! held open.

use super::units::{Place, place};
use crate::config;
use crate::senses::HostRoot;
use muster_agent_core::process::proc_text;
use muster_common::limits::SUBJECT_BYTES_MAX;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Processes looked at.
pub(super) const PROCESSES_MAX: usize = 8192;
/// Open files looked at, over all processes: a database server with a million connections is not worth a minute.
pub(super) const FDS_MAX: usize = 100_000;
/// The agent's program, and its name as the kernel has it.
const OWN_COMM: &str = "muster-agent";
/// Bytes of a name that the kernel keeps.
const COMM_BYTES_MAX: usize = 15;
/// What a SQLite file begins with.
pub(super) const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// `O_APPEND` in `/proc/PID/fdinfo`.
const APPEND: u32 = 0o2000;
/// Records of logins in a binary form.
const BINARY_LOGS: [&str; 4] = ["wtmp", "btmp", "lastlog", "faillog"];

/// One process, as far as it could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) comm: String,
    pub(super) place: Place,
    pub(super) exe: Option<PathBuf>,
    pub(super) uid: Option<u32>,
    pub(super) start_ticks: u64,
}

impl Process {
    /// Its unit, where the host has that for a service of its own.
    pub(super) fn unit(&self) -> Option<&str> {
        match &self.place {
            Place::Unit(unit) => Some(unit),
            _ => None,
        }
    }

    /// What its service is called: the same on every host where the same unit, or program, runs.
    pub(super) fn service(&self) -> &str {
        self.unit().map_or_else(|| self.name(), |unit| unit.trim_end_matches(".service"))
    }

    /// The kernel cuts names; that of the program is whole.
    fn name(&self) -> &str {
        let program = self.exe.as_deref().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
        let program = program.strip_suffix(" (deleted)").unwrap_or(program);
        let is_cut = self.comm.len() == COMM_BYTES_MAX && program.starts_with(&self.comm);
        if is_cut { program } else { &self.comm }
    }

    /// Whether what it holds may be watched as a service of this host.
    pub(super) const fn is_of_a_service(&self) -> bool {
        matches!(self.place, Place::Unit(_) | Place::Nowhere)
    }
}

/// What the processes of a host hold open.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) processes: BTreeMap<u32, Process>,
    /// Inode of a socket to the process that has it.
    pub(super) sockets: BTreeMap<u64, u32>,
    /// Path of a database to the processes that have it.
    pub(super) databases: BTreeMap<PathBuf, BTreeSet<u32>>,
    /// Path of a log to the processes that append to it.
    pub(super) logs: BTreeMap<PathBuf, BTreeSet<u32>>,
    pub(super) unreadable: usize,
    pub(super) cut_short: bool,
}

/// The first process.
struct First {
    cgroup: String,
    systemd: bool,
}

/// Looks at all of them.
pub(super) fn look(host: &HostRoot) -> Held {
    let mut held = Held::default();
    let mut fds = 0;
    let of_first = fs::read_to_string(host.path("/proc/1/cgroup")).unwrap_or_default();
    let named_so = || fs::read_to_string(host.path("/proc/1/comm")).is_ok_and(|comm| comm.trim_end() == "systemd");
    let first = First { cgroup: of_first, systemd: host.path("/run/systemd/system").exists() || named_so() };
    let Ok(entries) = fs::read_dir(host.path("/proc")) else { return held };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if held.processes.len() == PROCESSES_MAX {
            held.cut_short = true;
            break;
        }
        let folder = entry.path();
        let Some(process) = read(host, pid, &folder, &first) else { continue };
        held.processes.insert(pid, process);
        match fs::read_dir(folder.join("fd")) {
            Ok(open) => {
                for fd in open.flatten() {
                    fds += 1;
                    if fds > FDS_MAX {
                        held.cut_short = true;
                        return held;
                    }
                    if let Ok(target) = fs::read_link(fd.path()) {
                        let info = folder.join("fdinfo").join(fd.file_name());
                        note_open(host, pid, &target, &info, &mut held);
                    }
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => held.unreadable += 1,
            Err(_) => {}
        }
    }
    held
}

fn read(host: &HostRoot, pid: u32, folder: &Path, first: &First) -> Option<Process> {
    let comm = String::from_utf8_lossy(&fs::read(folder.join("comm")).ok()?).trim_end().to_owned();
    let exe = fs::read_link(folder.join("exe")).ok();
    // Neither this process nor a daemon: the agent's own spool is no subject of the agent.
    if (pid == std::process::id() && host.is_real()) || comm == OWN_COMM || exe.as_deref().is_some_and(is_own_program) {
        return None;
    }
    let text = |name: &str| {
        let bytes = fs::read(folder.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let uid =
        text("status").lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1)?.parse().ok());
    let start_ticks = proc_text::stat(&text("stat")).map_or(0, |stat| stat.process.start_ticks);
    Some(Process { comm, place: place(&text("cgroup"), &first.cgroup, first.systemd), exe, uid, start_ticks })
}

/// Also under another thread's name, and after an upgrade replaced the file.
fn is_own_program(exe: &Path) -> bool {
    let name = exe.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.strip_suffix(" (deleted)").unwrap_or(&name) == OWN_COMM
}

fn note_open(host: &HostRoot, pid: u32, target: &Path, info: &Path, held: &mut Held) {
    let Some(text) = target.to_str() else { return };
    if let Some(inode) = text.strip_prefix("socket:[").and_then(|text| text.strip_suffix(']')) {
        if let Ok(inode) = inode.parse() {
            // The lowest pid: the parent that listens, not the worker that inherited; but not the service manager,
            // which keeps what it passed on.
            let known = held.sockets.entry(inode).or_insert(pid);
            if *known == 1 || (pid != 1 && pid < *known) {
                *known = pid;
            }
        }
        return;
    }
    if !target.is_absolute() || text.len() > SUBJECT_BYTES_MAX || text.ends_with(" (deleted)") {
        return;
    }
    // Devices and memory are no databases, and looking costs a system call each; the agent's own spool is no subject.
    let elsewhere =
        ["/dev", "/proc", "/sys", "/memfd:", config::STATE_DIR_DEFAULT].iter().any(|folder| target.starts_with(folder));
    if elsewhere {
        return;
    }
    if looks_like_a_log(target) {
        if held.logs.contains_key(target) || appends(info) && is_regular(&host.path(target)) {
            held.logs.entry(target.to_owned()).or_default().insert(pid);
        }
        return;
    }
    if held.databases.contains_key(target) || has_magic(&host.path(target)) {
        held.databases.entry(target.to_owned()).or_default().insert(pid);
    }
}

/// By its place or its name.
fn looks_like_a_log(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_named_so = name.ends_with(".log");
    let is_among_logs = path.starts_with("/var/log") && !path.starts_with("/var/log/journal");
    (is_named_so || is_among_logs) && !BINARY_LOGS.contains(&name) && !name.ends_with(".db")
}

fn is_regular(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
}

/// Whether a descriptor was opened to append.
fn appends(info: &Path) -> bool {
    let text = fs::read_to_string(info).unwrap_or_default();
    let flags = text.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    flags.is_some_and(|flags| flags & APPEND != 0)
}

/// True when a regular file begins like a SQLite database.
fn has_magic(path: &Path) -> bool {
    let regular = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() >= 512);
    if !regular {
        return false;
    }
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC;
    let Ok(mut file) = fs::OpenOptions::new().read(true).custom_flags(flags).open(path) else { return false };
    let mut head = [0u8; 16];
    file.read_exact(&mut head).is_ok() && &head == SQLITE_MAGIC
}

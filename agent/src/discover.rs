//! Finds what could be watched on this host: pid files, listening ports, SQLite files that processes hold open. For
//! `doctor` without a config and for `init`.
//!
//! Reads only; a file is taken for a database by the magic in its header alone. Bounded: a host with more than it
//! takes in is told so.

use crate::config::unit::Unit;
use crate::config::sqlite::Sqlite;
use crate::config::{self, Config, Service, Watch};
use crate::senses::{HostRoot, sockets};
use muster_agent_core::port::{Address, Target};
use muster_common::ids::ServiceName;
use muster_common::limits::{NAME_BYTES_MAX, SUBJECT_BYTES_MAX};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Folders deep under /run where pid files are: `/run/NAME/NAME.pid` and one more.
const PID_FILE_DEPTH_MAX: usize = 3;
/// Entries of /run looked at.
const RUN_ENTRIES_MAX: usize = 8192;
/// Processes looked at.
const PROCESSES_MAX: usize = 8192;
/// Open files looked at, over all processes: a database server with a million connections is not worth a minute.
const FDS_MAX: usize = 100_000;
/// Services taken in; a config with more is written by hand.
const SERVICES_MAX: usize = 256;
/// Subjects of one kind of one service.
const SUBJECTS_MAX: usize = 32;
/// The agent's program, and its name as the kernel has it.
const OWN_COMM: &str = "muster-agent";
/// What a SQLite file begins with.
const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Discovered {
    /// By name.
    pub services: Vec<Service>,
    /// What could not be seen, for people.
    pub notes: Vec<String>,
}

/// One process, as far as it could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    name: String,
    unit: Option<String>,
}

/// What the processes of a host hold open.
#[derive(Debug, Default)]
struct Held {
    processes: BTreeMap<u32, Process>,
    /// Inode of a socket to the process that has it.
    sockets: BTreeMap<u64, u32>,
    /// Path of a database to the process that has it.
    databases: BTreeMap<PathBuf, u32>,
    unreadable: usize,
    cut_short: bool,
}

/// Looks at the host.
pub fn discover(host: &HostRoot) -> Discovered {
    let held = look_at_processes(host);
    let mut services: BTreeMap<String, Service> = BTreeMap::new();
    for (path, pid) in pid_files(host) {
        let owner = pid.and_then(|pid| held.processes.get(&pid));
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let name = owner.map(|owner| owner.name.clone()).or(stem).unwrap_or_default();
        let service = entry(&mut services, &name, owner);
        // One service, one pid file: another one is a service of its own.
        if service.pid_file.is_none() {
            service.pid_file = Some(Watch { what: path, interval: None });
        } else if let Some(stem) = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()) {
            let other = entry(&mut services, &format!("{name}-{stem}"), owner);
            other.pid_file.get_or_insert(Watch { what: path, interval: None });
        }
    }
    for (target, inode) in listening(host) {
        let owner = held.sockets.get(&inode).and_then(|pid| held.processes.get(pid));
        let unix = target.to_string().starts_with("unix:");
        // Sockets of the service manager and of nobody known are not a service's own.
        if unix && owner.is_none_or(|owner| owner.name == "systemd") {
            continue;
        }
        let port = target.to_string().rsplit(':').next().map(|port| format!("port-{port}"));
        let name = owner.map(|owner| owner.name.clone()).or(port).unwrap_or_default();
        let service = entry(&mut services, &name, owner);
        let known = service.ports.iter().any(|port| port.what == target);
        if !known && service.ports.len() < SUBJECTS_MAX {
            service.ports.push(Watch { what: target, interval: None });
        }
    }
    for (path, pid) in &held.databases {
        let Some(owner) = held.processes.get(pid) else { continue };
        let service = entry(&mut services, &owner.name, Some(owner));
        if service.sqlite.len() < SUBJECTS_MAX {
            service.sqlite.push(Sqlite::new(path.clone()));
        }
    }
    let mut notes = notes(&held);
    if services.len() > SERVICES_MAX {
        notes.push(format!("{} services found, only the first {SERVICES_MAX} are taken", services.len()));
    }
    Discovered { services: services.into_values().take(SERVICES_MAX).collect(), notes }
}

/// A config that watches what was found, with comments, for `init`.
pub fn to_toml(found: &Discovered) -> String {
    let mut out = String::from(
        "# Written by `muster-agent init` from what runs on this host now. Keep what you want to be told about,\n\
         # rename services so that the same one has the same name on every host, then: muster-agent check-config\n\n\
         [agent]\n# labels = { zone = \"a\", role = \"worker\" }\n\n\
         # [coordinator]\n# endpoints = [\"https://coord-a:7420\", \"https://coord-b:7420\"]\n\n\
         # [memory]                  # the defaults follow from the size of the host\n\
         # approaching = \"4GiB\"\n# critical = \"2GiB\"\n",
    );
    for note in &found.notes {
        let _infallible = writeln!(out, "\n# note: {note}");
    }
    for service in &found.services {
        let _infallible = write!(out, "\n[service.{}]\n", key(service.name.as_str()));
        if let Some(unit) = &service.unit {
            let _infallible = writeln!(out, "unit = {}", quoted(&unit.name));
        }
        if let Some(pid_file) = &service.pid_file {
            let _infallible = writeln!(out, "pid_file = {}", quoted(&pid_file.what.display().to_string()));
        }
        let ports: Vec<String> = service.ports.iter().map(|port| quoted(&port.what.to_string())).collect();
        if !ports.is_empty() {
            let _infallible = writeln!(out, "ports = [{}]", ports.join(", "));
        }
        let paths: Vec<String> = service.sqlite.iter().map(|db| quoted(&db.path.display().to_string())).collect();
        if !paths.is_empty() {
            let _infallible = writeln!(out, "sqlite = [{}]", paths.join(", "));
        }
    }
    out
}

/// The config of `doctor` where there is none.
pub fn to_config(found: &Discovered) -> Config {
    Config { services: found.services.clone(), ..Config::default() }
}

/// Bare where TOML allows it.
fn key(name: &str) -> String {
    let bare = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if bare { name.to_owned() } else { quoted(name) }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn notes(held: &Held) -> Vec<String> {
    let mut notes = Vec::new();
    if held.unreadable > 0 {
        notes.push(format!(
            "the open files of {} processes of other users could not be read; run as root to see their ports and databases",
            held.unreadable
        ));
    }
    if held.cut_short {
        notes.push(format!("more than {PROCESSES_MAX} processes or {FDS_MAX} open files; the rest was not looked at"));
    }
    notes
}

fn entry<'a>(services: &'a mut BTreeMap<String, Service>, name: &str, owner: Option<&Process>) -> &'a mut Service {
    let name = service_name(name);
    let service = services.entry(name.to_string()).or_insert_with(|| Service::named(name));
    if service.unit.is_none() {
        service.unit = owner.and_then(|owner| owner.unit.clone()).map(Unit::new);
    }
    service
}

/// The nearest name that is allowed.
fn service_name(text: &str) -> ServiceName {
    let kept: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-@:".contains(c) { c } else { '-' })
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .take(NAME_BYTES_MAX)
        .collect();
    match ServiceName::new(kept) {
        Ok(name) if !name.is_host() => name,
        _ => ServiceName::new("unnamed").unwrap_or_else(|_| ServiceName::host()),
    }
}

fn look_at_processes(host: &HostRoot) -> Held {
    let mut held = Held::default();
    let mut fds = 0;
    let Ok(entries) = fs::read_dir(host.path("/proc")) else { return held };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if held.processes.len() == PROCESSES_MAX {
            held.cut_short = true;
            break;
        }
        let folder = entry.path();
        let Ok(comm) = fs::read(folder.join("comm")) else { continue };
        let comm = String::from_utf8_lossy(&comm).trim_end().to_owned();
        // Neither this process nor a daemon: the agent's own spool is no subject of the agent.
        if (pid == std::process::id() && host.is_real()) || comm == OWN_COMM || is_own_program(&folder) {
            continue;
        }
        let cgroup = fs::read_to_string(folder.join("cgroup")).unwrap_or_default();
        let unit = unit_of(&cgroup);
        let name = unit.as_deref().and_then(|unit| unit.strip_suffix(".service")).map_or(comm, str::to_owned);
        held.processes.insert(pid, Process { name, unit });
        match fs::read_dir(folder.join("fd")) {
            Ok(open) => {
                for fd in open.flatten() {
                    fds += 1;
                    if fds > FDS_MAX {
                        held.cut_short = true;
                        return held;
                    }
                    if let Ok(target) = fs::read_link(fd.path()) {
                        note_open(host, pid, &target, &mut held);
                    }
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => held.unreadable += 1,
            Err(_) => {}
        }
    }
    held
}

/// Also under another thread's name, and after an upgrade replaced the file.
fn is_own_program(process: &Path) -> bool {
    let Ok(exe) = fs::read_link(process.join("exe")) else { return false };
    let name = exe.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.strip_suffix(" (deleted)").unwrap_or(&name) == OWN_COMM
}

fn note_open(host: &HostRoot, pid: u32, target: &Path, held: &mut Held) {
    if let Some(inode) = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')) {
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
    if !target.is_absolute() || target.as_os_str().len() > SUBJECT_BYTES_MAX || held.databases.contains_key(target) {
        return;
    }
    // Devices and memory are no databases, and looking costs a system call each; the agent's own spool is no subject.
    let elsewhere =
        ["/dev", "/proc", "/sys", "/memfd:", config::STATE_DIR_DEFAULT].iter().any(|folder| target.starts_with(folder));
    if !elsewhere && target.to_str().is_some() && has_magic(&host.path(target)) {
        held.databases.insert(target.to_owned(), pid);
    }
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

/// The systemd unit of a process: the last `.service` of its cgroup path, on either hierarchy.
fn unit_of(cgroup: &str) -> Option<String> {
    let path = cgroup.lines().find_map(|line| {
        line.strip_prefix("0::").or_else(|| line.split_once(":name=systemd:").map(|(_, path)| path))
    })?;
    let unit = path.split('/').rev().find(|part| part.ends_with(".service"))?;
    // A user's manager is no service of the host.
    (!unit.starts_with("user@")).then(|| unit.to_owned())
}

/// Pid files, each with the pid in it where there is one.
fn pid_files(host: &HostRoot) -> Vec<(PathBuf, Option<u32>)> {
    let mut found = BTreeMap::new();
    let mut budget = RUN_ENTRIES_MAX;
    let same = fs::canonicalize(host.path("/var/run")).ok() == fs::canonicalize(host.path("/run")).ok();
    let roots: &[&str] = if same { &["/run"] } else { &["/run", "/var/run"] };
    for root in roots {
        walk_run(host, Path::new(root), PID_FILE_DEPTH_MAX, &mut budget, &mut found);
    }
    found.into_iter().collect()
}

fn walk_run(
    host: &HostRoot,
    folder: &Path,
    depth: usize,
    budget: &mut usize,
    found: &mut BTreeMap<PathBuf, Option<u32>>,
) {
    let Ok(entries) = fs::read_dir(host.path(folder)) else { return };
    for entry in entries.flatten() {
        let Some(left) = budget.checked_sub(1) else { return };
        *budget = left;
        let (Ok(kind), path) = (entry.file_type(), folder.join(entry.file_name())) else { continue };
        if kind.is_dir() && depth > 1 && path != Path::new("/run/user") {
            walk_run(host, &path, depth - 1, budget, found);
        }
        let fits = path.to_str().is_some_and(|text| text.ends_with(".pid") && text.len() <= SUBJECT_BYTES_MAX);
        if kind.is_file() && fits {
            found.insert(path.clone(), read_pid(&entry.path()));
        }
    }
}

/// What listens, as it would be written in a config, with the socket's inode.
fn listening(host: &HostRoot) -> Vec<(Target, u64)> {
    let mut found: Vec<(Target, u64)> = sockets::listening(host)
        .into_iter()
        .filter_map(|listener| Some((target(&listener.address)?, listener.inode)))
        .collect();
    found.sort_by_key(|(target, _)| target.to_string());
    found
}

fn target(address: &Address) -> Option<Target> {
    let text = match address {
        Address::Tcp { ip, port, v6only } => match ip {
            IpAddr::V4(ip) => format!("{ip}:{port}"),
            IpAddr::V6(ip) if ip.is_unspecified() && !v6only => format!("*:{port}"),
            IpAddr::V6(ip) => format!("[{ip}]:{port}"),
        },
        Address::Unix { path, .. } => format!("unix:{path}"),
        Address::Abstract(name) => format!("unix:@{name}"),
    };
    text.parse().ok()
}

fn read_pid(path: &Path) -> Option<u32> {
    let file = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).ok()?;
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn file(root: &Path, path: &str, text: &[u8]) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn process(root: &Path, pid: u32, comm: &str, cgroup: &str, open: &[&str]) {
        file(root, &format!("proc/{pid}/comm"), format!("{comm}\n").as_bytes());
        file(root, &format!("proc/{pid}/cgroup"), format!("0::{cgroup}\n").as_bytes());
        let fds = root.join(format!("proc/{pid}/fd"));
        fs::create_dir_all(&fds).unwrap();
        for (index, target) in open.iter().enumerate() {
            symlink(target, fds.join(index.to_string())).unwrap();
        }
    }

    #[test]
    fn groups_what_belongs_to_one_process_into_one_service() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let database = [SQLITE_MAGIC.as_slice(), &[0; 1000]].concat();
        file(root, "var/lib/spl/hub.db", &database);
        file(root, "var/lib/spl/notes.txt", &[b'x'; 1000]);
        file(root, "run/spl/spl.pid", b"70\n");
        file(root, "run/gone.pid", b"999\n");
        let slice = "/system.slice/spl.service";
        process(root, 70, "spl-main", slice, &["socket:[41]", "/var/lib/spl/hub.db", "/var/lib/spl/notes.txt"]);
        process(root, 71, "spl-worker", slice, &["socket:[41]"]);
        process(root, 1, "systemd", "/init.scope", &["socket:[41]", "socket:[42]"]);
        let line = |inode: u32, port: &str| {
            format!(
                "   0: 0100007F:{port} 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 {inode} 1\n"
            )
        };
        let table = format!("  sl  local_address ...\n{}", line(41, "238C"));
        file(root, "proc/net/tcp", table.as_bytes());

        let found = discover(&HostRoot(root.to_owned()));
        let names: Vec<&str> = found.services.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["gone", "spl"]);
        let spl = &found.services[1];
        assert_eq!(spl.unit, Some(Unit::new("spl.service".to_owned())));
        assert_eq!(spl.pid_file.as_ref().unwrap().what, Path::new("/run/spl/spl.pid"));
        let ports: Vec<String> = spl.ports.iter().map(|port| port.what.to_string()).collect();
        assert_eq!(ports, ["127.0.0.1:9100"]);
        let databases: Vec<&Path> = spl.sqlite.iter().map(|sqlite| sqlite.path.as_path()).collect();
        assert_eq!(databases, [Path::new("/var/lib/spl/hub.db")]);

        // What is printed is read back as what was found.
        let config = Config::parse("agent.toml", &to_toml(&found)).unwrap();
        assert_eq!(config.services, found.services);
    }

    #[test]
    fn the_agent_itself_is_not_discovered() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let database = [SQLITE_MAGIC.as_slice(), &[0; 1000]].concat();
        for path in ["/srv/muster/spool.db", "/srv/muster/again.db", "/var/lib/muster-agent/spool.db"] {
            file(root, path.trim_start_matches('/'), &database);
        }
        process(root, 70, "muster-agent", "/system.slice/agent.service", &["/srv/muster/spool.db"]);
        process(root, 71, "judge", "/system.slice/agent.service", &["/srv/muster/again.db"]);
        symlink("/usr/bin/muster-agent (deleted)", root.join("proc/71/exe")).unwrap();
        process(root, 72, "sqlite3", "/user.slice", &["/var/lib/muster-agent/spool.db"]);
        assert_eq!(discover(&HostRoot(root.to_owned())).services, []);
    }

    #[test]
    fn an_empty_host_has_nothing_to_discover() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(discover(&HostRoot(folder.path().to_owned())), Discovered::default());
    }

    #[test]
    fn names_are_made_fit() {
        assert_eq!(service_name("(sd-pam)").as_str(), "sd-pam-");
        assert_eq!(service_name("host").as_str(), "unnamed");
        assert_eq!(service_name("\u{1b}[31m").as_str(), "31m");
        assert_eq!(unit_of("0::/user.slice/user-1.slice/user@1.service"), None);
        assert_eq!(unit_of("1:name=systemd:/system.slice/a.service").as_deref(), Some("a.service"));
    }
}

//! Finds what could be watched on this host: services, by the systemd unit or else the program of their processes, each
//! with its pid file, listening ports, logs and SQLite files; and units that have failed, or are enabled and do not run.
//! For `doctor` without a config and for `init`.
//!
//! Reads only. Nothing is guessed: a health endpoint or a backup that nobody declared is a suggestion in a comment.
//! Bounded: a host with more than it takes in is told so. The same host gives the same answer.

mod processes;
mod toml;
mod units;

use crate::config::log::{Log, LogFormat, LogSource};
use crate::config::sqlite::Sqlite;
use crate::config::unit::Unit;
use crate::config::{Config, Service, Watch};
use crate::senses::unit::{failed_services, is_systemd};
use crate::senses::{HostRoot, sockets};
use muster_agent_core::accounts::Accounts;
use muster_agent_core::port::{Address, Target};
use muster_agent_core::process::proc_text;
use muster_common::ids::ServiceName;
use muster_common::limits::{NAME_BYTES_MAX, SUBJECT_BYTES_MAX};
use muster_common::time::Timestamp;
use processes::{FDS_MAX, Held, PROCESSES_MAX, Process};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
pub use toml::to_toml;
use units::{Place, UnitFile, enabled, place_of_unit, unit_file};

/// Folders deep under /run where pid files are: `/run/NAME/NAME.pid` and one more.
const PID_FILE_DEPTH_MAX: usize = 3;
/// Entries of /run looked at.
const RUN_ENTRIES_MAX: usize = 8192;
/// Services taken in; a config with more is written by hand.
const SERVICES_MAX: usize = 256;
/// Subjects of one kind of one service.
const SUBJECTS_MAX: usize = 32;
/// Log files of one service: beyond, somebody has one per customer, and a pattern is what they want.
const LOGS_MAX: usize = 8;
/// Entries of one folder of logs looked at.
const LOG_ENTRIES_MAX: usize = 512;
/// Where a journal is, if there is one.
const JOURNAL_FOLDERS: [&str; 2] = ["/var/log/journal", "/run/log/journal"];
/// Services that write down the lines of all others.
const SYSLOGS: [&str; 3] = ["rsyslog", "syslog-ng", "syslog"];
/// Ticks of a process's start time in a second, on every architecture since Linux 2.6.
const TICKS_PER_SECOND: u64 = 100;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Discovered {
    /// By name.
    pub services: Vec<Service>,
    /// What could not be seen, for people.
    pub notes: Vec<String>,
    /// What is known of them beside, by name.
    about: BTreeMap<String, About>,
    /// Why something is no service of its own, to its names.
    left_out: BTreeMap<&'static str, BTreeSet<String>>,
}

/// What a person wants to know of a service before it is watched.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct About {
    description: String,
    exe: Option<PathBuf>,
    /// What the process is called, where its program has another name.
    other_name: Option<String>,
    user: Option<String>,
    since: Option<Timestamp>,
    open_files_limit: Option<u64>,
    /// Log files that were found by their owner rather than held open.
    found_by_owner: BTreeSet<PathBuf>,
    /// Ports that it may have drawn, and has others of at its next start.
    drawn_ports: BTreeSet<String>,
    /// Why it has no process now, though it should.
    down: Option<&'static str>,
    /// What belongs to it and is not watched, with the reason.
    asides: BTreeSet<String>,
}

/// Looks at the host, and asks systemd what has failed.
pub fn discover(host: &HostRoot) -> Discovered {
    discover_with(host, if is_systemd(host) { failed_services(None) } else { Ok(Vec::new()) })
}

/// Looks at the host, of which `failed` is known.
fn discover_with(host: &HostRoot, failed: Result<Vec<String>, String>) -> Discovered {
    let mut search =
        Search { host, held: processes::look(host), services: BTreeMap::new(), found: Discovered::default() };
    search.of_pid_files();
    search.of_ports();
    search.of_databases();
    search.of_units();
    match failed {
        Ok(failed) => search.of_units_down(&failed),
        Err(why) => {
            search.of_units_down(&[]);
            search
                .found
                .notes
                .push(format!("systemd does not say which units have failed ({why}): systemctl --failed"));
        }
    }
    search.of_logs();
    search.finish()
}

struct Search<'a> {
    host: &'a HostRoot,
    held: Held,
    services: BTreeMap<String, Service>,
    found: Discovered,
}

impl Search<'_> {
    fn of_pid_files(&mut self) {
        for (path, pid) in pid_files(self.host) {
            let owner = pid.and_then(|pid| self.held.processes.get(&pid)).cloned();
            if owner.as_ref().is_some_and(|owner| !owner.is_of_a_service()) {
                continue;
            }
            let Some(stem) = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()) else { continue };
            let name = owner.as_ref().map_or(stem.as_str(), Process::service).to_owned();
            let Some(service) = self.entry(&name, owner.as_ref()) else { continue };
            // One service, one pid file: another one is a service of its own.
            if service.pid_file.is_none() {
                service.pid_file = Some(Watch { what: path, interval: None });
            } else if let Some(other) = self.entry(&format!("{name}-{stem}"), None) {
                other.pid_file.get_or_insert(Watch { what: path, interval: None });
            }
        }
    }

    fn of_ports(&mut self) {
        let random = random_ports(self.host);
        for (address, inode) in listening(self.host) {
            let pid = self.held.sockets.get(&inode).copied();
            let owner = pid.and_then(|pid| self.held.processes.get(&pid)).cloned();
            let Some(target) = target(&address) else { continue };
            let (unix, text) = (matches!(address, Address::Unix { .. } | Address::Abstract(_)), target.to_string());
            let Some(owner) = owner else {
                // Without any process a socket is the kernel's, or of a process that could not be looked at.
                let port = text.rsplit(':').next().unwrap_or_default();
                if !unix
                    && self.held.unreadable > 0
                    && let Some(service) = self.entry(&format!("port-{port}"), None)
                {
                    add_port(service, target);
                }
                continue;
            };
            if !owner.is_of_a_service() {
                self.leave_out(&owner);
                continue;
            }
            // Names that are made anew at every start.
            let passing = unix && (matches!(address, Address::Abstract(_)) || pid.is_some_and(|pid| names(&text, pid)));
            let drawn =
                random.as_ref().is_some_and(|range| tcp_port(&address).is_some_and(|port| range.contains(&port)));
            if drawn {
                let name = owner.service().to_owned();
                if self.entry(&name, Some(&owner)).is_some() {
                    self.found.about.entry(fit(&name)).or_default().drawn_ports.insert(text);
                }
            } else if !passing && let Some(service) = self.entry(owner.service(), Some(&owner)) {
                add_port(service, target);
            }
        }
    }

    fn of_databases(&mut self) {
        for (path, pids) in self.held.databases.clone() {
            // One database, one service: not that of whoever looks into it just now.
            let owners = || pids.iter().filter_map(|pid| self.held.processes.get(pid));
            let Some(owner) = owners().find(|owner| owner.is_of_a_service()).or(owners().next()).cloned() else {
                continue;
            };
            if !owner.is_of_a_service() {
                self.leave_out(&owner);
            } else if let Some(service) = self.entry(owner.service(), Some(&owner))
                && service.sqlite.len() < SUBJECTS_MAX
            {
                service.sqlite.push(Sqlite::new(path));
            }
        }
    }

    /// Units that neither listen nor write a pid file, and what there is to say of each service.
    fn of_units(&mut self) {
        let mut oldest: BTreeMap<String, u32> = BTreeMap::new();
        for (pid, process) in &self.held.processes {
            if let Place::Helper(unit) = &process.place {
                let names = self.found.left_out.entry("the system's own services").or_default();
                names.insert(unit.clone());
            }
            let name = fit(process.service());
            if !process.is_of_a_service() || (process.unit().is_none() && !self.services.contains_key(&name)) {
                continue;
            }
            let age = |pid: &u32| self.held.processes.get(pid).map(|process| (process.start_ticks, *pid));
            let known = oldest.entry(name).or_insert(*pid);
            if age(pid) < age(known) {
                *known = *pid;
            }
        }
        let passwd = fs::read_to_string(self.host.path("/etc/passwd")).unwrap_or_default();
        let accounts = Accounts::parse(&passwd, "");
        let booted_at = booted_at_seconds(self.host);
        for (name, pid) in oldest {
            let Some(process) = self.held.processes.get(&pid).cloned() else { continue };
            let file = process.unit().map(|unit| unit_file(self.host, unit)).unwrap_or_default();
            if !self.services.contains_key(&name) && (file.oneshot || self.entry(&name, Some(&process)).is_none()) {
                continue;
            }
            if let Some(unit) = self.services.get_mut(&name).and_then(|service| service.unit.as_mut()) {
                unit.may_be_inactive = file.on_demand;
            }
            let about = self.found.about.entry(name).or_default();
            let UnitFile { description, .. } = file;
            about.description = description;
            let file_name = process.exe.as_deref().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
            // The kernel keeps 15 bytes of a name.
            let known = file_name.is_empty() || file_name.starts_with(&process.comm);
            about.other_name = (!known).then(|| process.comm.clone());
            about.exe = process.exe;
            about.user = process.uid.map(|uid| accounts.user(uid));
            let started = |booted: i64| booted.saturating_add_unsigned(process.start_ticks / TICKS_PER_SECOND);
            about.since = booted_at.map(|booted| Timestamp::from_unix_ms(started(booted).saturating_mul(1000)));
            let limits = fs::read_to_string(self.host.path(format!("/proc/{pid}/limits"))).unwrap_or_default();
            about.open_files_limit = proc_text::limits(&limits).open_files;
        }
    }

    /// Units without a process: what is down is what somebody looks for.
    fn of_units_down(&mut self, failed: &[String]) {
        let failed = failed.iter().map(|unit| (unit.clone(), "it has failed"));
        // Whoever sees no process of others cannot say which are missing.
        let sees_all = is_systemd(self.host) && self.host.path("/proc/1/comm").exists();
        let enabled = if sees_all { enabled(self.host) } else { BTreeSet::new() };
        let lives = |unit: &str| self.held.processes.values().any(|process| process.unit() == Some(unit));
        let missing = enabled.into_iter().filter(|unit| unit_file(self.host, unit).lasts && !lives(unit));
        let missing: Vec<_> = missing.map(|unit| (unit, "it is enabled, and was not running")).collect();
        for (unit, why) in failed.chain(missing) {
            if place_of_unit(&unit) != Place::Unit(unit.clone()) {
                continue;
            }
            let name = unit.trim_end_matches(".service").to_owned();
            let Some(service) = self.entry(&name, None) else { continue };
            // Another unit of that name, or its pid file, may have been seen.
            let its = service.unit.get_or_insert_with(|| Unit::new(unit.clone()));
            if its.name != unit {
                continue;
            }
            let file = unit_file(self.host, &unit);
            let about = self.found.about.entry(fit(&name)).or_default();
            about.down.get_or_insert(why);
            if about.description.is_empty() {
                about.description = file.description;
            }
        }
    }

    fn of_logs(&mut self) {
        for (path, pids) in self.held.logs.clone() {
            let mut owners = pids.iter().filter_map(|pid| self.held.processes.get(pid));
            let Some(owner) = owners.find(|owner| owner.is_of_a_service()).cloned() else { continue };
            let name = fit(owner.service());
            let Some(service) = self.services.get_mut(&name) else { continue };
            let about = self.found.about.entry(name.clone()).or_default();
            let base = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if SYSLOGS.contains(&name.as_str()) {
                about.asides.insert("its files in /var/log: they hold the lines of all other services".to_owned());
            } else if base.contains("access") {
                about.asides.insert(format!("{}: requests, not events", path.display()));
            } else if service.logs.len() < LOGS_MAX {
                service.logs.push(log(LogSource::File(path)));
            }
        }
        self.of_log_folders();
        // An empty folder is left where journald does not run.
        let holds = |folder| fs::read_dir(self.host.path(folder)).is_ok_and(|mut entries| entries.next().is_some());
        let journal = JOURNAL_FOLDERS.into_iter().any(holds);
        for service in self.services.values_mut().filter(|_| journal) {
            if let Some(unit) = &service.unit {
                service.logs.insert(0, log(LogSource::Journal(unit.name.clone())));
            }
        }
    }

    /// Logs that are opened for each line and closed again: those of a service's own user, written since it started.
    fn of_log_folders(&mut self) {
        let mut folders: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        let passwd = fs::read_to_string(self.host.path("/etc/passwd")).unwrap_or_default();
        let accounts = Accounts::parse(&passwd, "");
        for entry in fs::read_dir(self.host.path("/var/log")).into_iter().flatten().flatten().take(LOG_ENTRIES_MAX) {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() && metadata.uid() != 0 {
                let folder = Path::new("/var/log").join(entry.file_name());
                folders.entry(accounts.user(metadata.uid())).or_default().push(folder);
            }
        }
        for (name, service) in &mut self.services {
            let Some(about) = self.found.about.get_mut(name) else { continue };
            let (Some(user), Some(since)) = (&about.user, about.since) else { continue };
            let has_file = service.logs.iter().any(|log| matches!(log.source, LogSource::File(_)));
            for folder in folders.get(user).into_iter().flatten().filter(|_| !has_file) {
                for path in written_since(self.host, folder, since) {
                    if service.logs.len() < LOGS_MAX {
                        about.found_by_owner.insert(path.clone());
                        service.logs.push(log(LogSource::File(path)));
                    }
                }
            }
        }
    }

    fn leave_out(&mut self, owner: &Process) {
        let why = match &owner.place {
            Place::Session => "programs of users' sessions",
            Place::Container => "programs in containers, which their own host or an agent inside should watch",
            // Those are told as units; the manager holds sockets for others.
            _ => return,
        };
        self.found.left_out.entry(why).or_default().insert(owner.comm.clone());
    }

    fn entry(&mut self, name: &str, owner: Option<&Process>) -> Option<&mut Service> {
        let name = service_name(name);
        if self.services.len() >= SERVICES_MAX && !self.services.contains_key(name.as_str()) {
            let note = format!("more than {SERVICES_MAX} services were found, the others are not taken");
            if !self.found.notes.contains(&note) {
                self.found.notes.push(note);
            }
            return None;
        }
        let service = self.services.entry(name.to_string()).or_insert_with(|| Service::named(name));
        if service.unit.is_none() {
            service.unit = owner.and_then(Process::unit).map(|unit| Unit::new(unit.to_owned()));
        }
        Some(service)
    }

    fn finish(self) -> Discovered {
        let mut found = self.found;
        if self.held.unreadable > 0 {
            found.notes.push(format!(
                "the open files of {} processes of other users could not be read; run as root to see their ports, logs \
                 and databases",
                self.held.unreadable
            ));
        }
        if self.held.cut_short {
            let note =
                format!("more than {PROCESSES_MAX} processes or {FDS_MAX} open files; the rest was not looked at");
            found.notes.push(note);
        }
        found.services = self.services.into_values().collect();
        found
    }
}

/// The config of `doctor` where there is none.
pub fn to_config(found: &Discovered) -> Config {
    Config { services: found.services.clone(), ..Config::default() }
}

const fn log(source: LogSource) -> Log {
    Log { source, format: LogFormat::Auto, rules: None, interval: None }
}

fn add_port(service: &mut Service, target: Target) {
    let known = service.ports.iter().any(|port| port.what == target);
    if !known && service.ports.len() < SUBJECTS_MAX {
        service.ports.push(Watch { what: target, interval: None });
    }
}

/// Whether a path has the process's own pid in it.
fn names(path: &str, pid: u32) -> bool {
    path.split(|c: char| !c.is_ascii_digit()).any(|digits| digits == pid.to_string())
}

const fn tcp_port(address: &Address) -> Option<u16> {
    match address {
        Address::Tcp { port, .. } => Some(*port),
        _ => None,
    }
}

/// What the kernel draws from for whoever asks for any port.
fn random_ports(host: &HostRoot) -> Option<std::ops::RangeInclusive<u16>> {
    let text = fs::read_to_string(host.path("/proc/sys/net/ipv4/ip_local_port_range")).ok()?;
    let mut numbers = text.split_whitespace().map(|number| number.parse::<u16>().ok());
    Some(numbers.next()??..=numbers.next()??)
}

/// The second at which the host booted, by its clock.
fn booted_at_seconds(host: &HostRoot) -> Option<i64> {
    let text = fs::read_to_string(host.path("/proc/stat")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

/// Logs of a folder, by name.
fn written_since(host: &HostRoot, folder: &Path, since: Timestamp) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(host.path(folder)).into_iter().flatten().flatten().take(LOG_ENTRIES_MAX) {
        let (path, Ok(metadata)) = (folder.join(entry.file_name()), entry.metadata()) else { continue };
        let fits = path.to_str().is_some_and(|text| text.ends_with(".log") && text.len() <= SUBJECT_BYTES_MAX);
        if fits && metadata.is_file() && metadata.mtime().saturating_mul(1000) >= since.unix_ms() {
            found.insert(path);
        }
    }
    found
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

/// The same as text.
fn fit(name: &str) -> String {
    service_name(name).to_string()
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

/// What listens, in a fixed order, with the socket's inode.
fn listening(host: &HostRoot) -> Vec<(Address, u64)> {
    let mut found: Vec<(Address, u64)> =
        sockets::listening(host).into_iter().map(|listener| (listener.address, listener.inode)).collect();
    found.sort_by_key(|(address, _)| target(address).map(|target| target.to_string()));
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
    use super::processes::SQLITE_MAGIC;
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
    fn units_that_have_failed_or_should_run_are_found_without_a_process() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("run/systemd/system")).unwrap();
        process(root, 1, "systemd", "/init.scope", &[]);
        process(root, 70, "web", "/system.slice/web.service", &[]);
        let wants = |target: &str, unit: &str, file_name: &str| {
            let wants = root.join(format!("etc/systemd/system/{target}.wants"));
            fs::create_dir_all(&wants).unwrap();
            symlink(format!("/lib/systemd/system/{file_name}"), wants.join(unit)).unwrap();
        };
        for (unit, text) in [
            ("web.service", "[Service]\nType=simple\n"),
            ("queue.service", "[Unit]\nDescription=The queue\n[Service]\nType=notify\n[Install]\n"),
            ("once.service", "[Service]\nType=oneshot\n"),
            ("firewall.service", "[Service]\nType=simple\nRemainAfterExit=yes\n"),
            ("rsync.service", "[Unit]\nConditionPathExists=/etc/rsyncd.conf\n[Service]\nType=simple\n"),
            ("masked.service", "[Service]\nType=simple\n"),
            ("screen.service", "[Service]\nType=simple\n"),
            ("systemd-x.service", "[Service]\nType=simple\n"),
        ] {
            file(root, &format!("lib/systemd/system/{unit}"), text.as_bytes());
            wants(if unit == "screen.service" { "graphical.target" } else { "multi-user.target" }, unit, unit);
        }
        wants("multi-user.target", "alias.service", "web.service");
        wants("multi-user.target", "removed.service", "removed.service");
        symlink("/dev/null", root.join("etc/systemd/system/masked.service")).unwrap();
        let failed = ["job.service", "run-u7.service", "systemd-y.service"].map(str::to_owned).to_vec();
        let host = HostRoot(root.to_owned());
        let found = discover_with(&host, Ok(failed));
        let units: Vec<&str> =
            found.services.iter().map(|service| service.unit.as_ref().unwrap().name.as_str()).collect();
        assert_eq!(units, ["job.service", "queue.service", "web.service"]);
        let printed = to_toml(&found);
        for part in [
            "unit = \"job.service\"   # it has failed",
            "# The queue\n[service.queue]\nunit = \"queue.service\"   # it is enabled, and was not running",
        ] {
            assert!(printed.contains(part), "{part}: {printed}");
        }
        assert_eq!(Config::parse("agent.toml", &printed).unwrap().services, found.services);
        let blind = discover_with(&host, Err("no bus".to_owned()));
        assert!(blind.notes[0].contains("systemctl --failed"), "{:?}", blind.notes);
        assert_eq!(blind.services.len(), 2);
    }

    #[test]
    fn the_agent_itself_is_not_discovered() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let database = [SQLITE_MAGIC.as_slice(), &[0; 1000]].concat();
        for path in ["/srv/muster/spool.db", "/srv/muster/again.db", "/var/lib/muster-agent/spool.db"] {
            file(root, path.trim_start_matches('/'), &database);
        }
        process(root, 1, "systemd", "/init.scope", &[]);
        process(root, 70, "muster-agent", "/system.slice/agent.service", &["/srv/muster/spool.db"]);
        process(root, 71, "judge", "/system.slice/agent.service", &["/srv/muster/again.db"]);
        symlink("/usr/bin/muster-agent (deleted)", root.join("proc/71/exe")).unwrap();
        process(root, 72, "sqlite3", "/user.slice", &["/var/lib/muster-agent/spool.db"]);
        assert_eq!(discover(&HostRoot(root.to_owned())).services, []);
    }

    #[test]
    fn a_long_name_is_that_of_the_program_and_many_random_ports_are_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        process(root, 1, "systemd", "/init.scope", &[]);
        file(root, "proc/sys/net/ipv4/ip_local_port_range", b"32768\t60999\n");
        let sockets: Vec<String> = (41..=46).map(|inode| format!("socket:[{inode}]")).collect();
        let sockets: Vec<&str> = sockets.iter().map(String::as_str).collect();
        process(root, 70, "a-coordinator-o", "/", &sockets);
        symlink("/usr/bin/a-coordinator-of-many (deleted)", root.join("proc/70/exe")).unwrap();
        let line = |inode: u32, port: u32| {
            format!(
                "   0: 0100007F:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 {inode} 1\n"
            )
        };
        let lines: String = line(41, 80) + &(42..=46).map(|inode| line(inode, 40_000 + inode)).collect::<String>();
        file(root, "proc/net/tcp", format!("  sl  local_address ...\n{lines}").as_bytes());
        let found = discover(&HostRoot(root.to_owned()));
        let names: Vec<&str> = found.services.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["a-coordinator-of-many"]);
        let printed = to_toml(&found);
        let told: Vec<&str> = printed.lines().filter(|line| line.contains("not watched")).collect();
        let expected = "# not watched: ports 127.0.0.1:40042, 127.0.0.1:40043, 127.0.0.1:40044 and 2 more: in the range of \
                        ports that the kernel draws at random";
        assert_eq!(told, [expected]);
    }

    #[test]
    fn logs_are_told_from_requests_and_random_ports_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        process(root, 1, "systemd", "/init.scope", &[]);
        file(root, "proc/sys/net/ipv4/ip_local_port_range", b"32768\t60999\n");
        file(root, "run/log/journal/0af/system.journal", b"");
        file(root, "lib/systemd/system/web.service", b"[Unit]\nDescription=The web\n[Install]\n");
        file(root, "lib/systemd/system/once.service", b"[Service]\nType=oneshot\n");
        let logs = ["/var/log/web/error.log", "/var/log/web/access.log", "/var/log/wtmp", "/srv/web/read.log"];
        for path in logs {
            file(root, path.trim_start_matches('/'), b"x");
        }
        process(root, 70, "web", "/system.slice/web.service", &[logs[0], logs[1], logs[2], logs[3], "socket:[41]"]);
        for (index, flags) in [(0, "0102001"), (1, "0102001"), (2, "0102001"), (3, "0100000")] {
            file(root, &format!("proc/70/fdinfo/{index}"), format!("pos:\t0\nflags:\t{flags}\n").as_bytes());
        }
        process(root, 71, "cron", "/system.slice/cron.service", &[]);
        process(root, 72, "apt", "/system.slice/once.service", &[]);
        process(root, 73, "bash", "/user.slice/user-0.slice/session-1.scope", &[]);
        process(root, 74, "dbus-daemon", "/system.slice/dbus.service", &[]);
        let line = "   0: 0100007F:C350 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 41 1\n";
        file(root, "proc/net/tcp", format!("  sl  local_address ...\n{line}").as_bytes());

        let found = discover(&HostRoot(root.to_owned()));
        let names: Vec<&str> = found.services.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["cron", "web"]);
        let web = &found.services[1];
        let sources: Vec<String> = web.logs.iter().map(|log| log.source.to_string()).collect();
        assert_eq!((sources, web.ports.len()), (vec!["journal:web.service".into(), logs[0].into()], 0));
        let printed = to_toml(&found);
        for part in ["# The web\n", "not watched: port 127.0.0.1:50000", "access.log: requests", "#     dbus.service\n"]
        {
            assert!(printed.contains(part), "{part}: {printed}");
        }
        assert_eq!(Config::parse("agent.toml", &printed).unwrap().services, found.services);
        assert_eq!(discover(&HostRoot(root.to_owned())), found);
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
    }
}

//! The walk over the config: every known key, its bounds and what is expected of it.

use super::log::LogSource;
use super::{
    Baseline, Config, Memory, Probes, Service, Watch, backup, baseline, clock, disk, health, lock, log, pressure,
    process, sqlite, unit,
};
use crate::run::SPOOL_FILE;
use muster_agent_core::backup::pattern::{Pattern, fits};
use muster_agent_core::port::Target;
use muster_common::config::{Reader, Value};
use muster_common::ids::ServiceName;
use muster_common::limits::{LABEL_BYTES_MAX, LABELS_MAX, SUBJECT_BYTES_MAX, SUBJECTS_PER_AGENT_MAX};
use muster_common::units::human_bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// Coordinators one agent may try.
const ENDPOINTS_MAX: usize = 16;
/// Anything shorter wakes the host for nothing, anything longer is no watching.
pub(super) const INTERVALS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);
/// Deadlines and time-outs.
pub(super) const DEADLINES: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(600);

/// The whole file.
pub(super) fn walk(root: &Reader<'_>) -> Config {
    let mut config = Config::default();
    if let Some(agent) = root.table("agent") {
        config.labels = labels(&agent);
        set(&mut config.state_dir, agent.parsed("state_dir", absolute));
        set(&mut config.socket, agent.parsed("socket", absolute));
        set(&mut config.second_opinion, agent.boolean("second_opinion"));
    }
    if let Some(coordinator) = root.table("coordinator") {
        config.endpoints = endpoints(&coordinator);
    }
    if let Some(tls) = root.table("tls") {
        set(&mut config.tls.ca, tls.parsed("ca", absolute));
        set(&mut config.tls.cert, tls.parsed("cert", absolute));
        set(&mut config.tls.key, tls.parsed("key", absolute));
    }
    if let Some(memory) = root.table("memory") {
        config.memory = walk_memory(&memory);
    }
    if let Some(probes) = root.table("probes") {
        config.probes = walk_probes(&probes);
    }
    if let Some(reader) = root.table("disk") {
        config.disk = disk::walk(&reader);
    }
    if let Some(reader) = root.table("clock") {
        config.clock = clock::walk(&reader);
    }
    if let Some(reader) = root.table("pressure") {
        config.pressure = pressure::walk(&reader);
    }
    if let Some(reader) = root.table("process") {
        config.process = process::walk(&reader);
    }
    let mut seen = Seen { state_dir: plain_path(&config.state_dir), ..Seen::default() };
    if let Some(reader) = root.table("baseline") {
        config.baseline = baseline::walk_host(&reader, &|path, at| seen.check_foreign(path, at));
    }
    config.log_rules = log::walk_rules(root);
    if let Some(spool) = root.table("spool") {
        set(&mut config.spool_bytes_max, spool.parsed("max_bytes", spool_size));
    }
    seen.log_rules = config.log_rules.iter().map(|rule| rule.name.clone()).collect();
    for (name, _, reader) in root.named_tables("service") {
        let before = seen.subjects.len();
        config.services.extend(walk_service(&name, &reader, &mut seen));
        // Told once, at the service that goes beyond.
        if (before + 1..=seen.subjects.len()).contains(&(SUBJECTS_PER_AGENT_MAX + 1)) {
            let bound = format!("from here on more than {SUBJECTS_PER_AGENT_MAX}, the bound of one agent");
            reader.mistake("too many subjects", &bound);
        }
    }
    config
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn labels(agent: &Reader<'_>) -> BTreeMap<String, String> {
    let labels = agent.string_map("labels");
    let too_long = labels.iter().any(|(key, value)| key.len() > LABEL_BYTES_MAX || value.len() > LABEL_BYTES_MAX);
    if let (true, Some(value)) = (labels.len() > LABELS_MAX || too_long, agent.value("labels")) {
        let bound = format!("expected at most {LABELS_MAX} labels of at most {LABEL_BYTES_MAX} bytes");
        value.mistake("labels are over their bound", &bound);
    }
    labels
}

fn endpoints(coordinator: &Reader<'_>) -> Vec<String> {
    let value = coordinator.required("endpoints");
    let endpoints = coordinator.list("endpoints", |text| {
        let uri: Result<tonic::codegen::http::Uri, _> = text.parse();
        match uri {
            Ok(uri) if uri.scheme_str() == Some("https") && names_a_host(&uri) => Ok(text.to_owned()),
            _ => Err("expected an address such as \"https://coord-a:7420\"; the link is always mutual TLS".to_owned()),
        }
    });
    let mut unique = BTreeSet::new();
    if let Some(value) =
        value.filter(|_| endpoints.len() > ENDPOINTS_MAX || !endpoints.iter().all(|e| unique.insert(e)))
    {
        value.mistake("bad list of endpoints", &format!("expected at most {ENDPOINTS_MAX} different addresses"));
    }
    endpoints
}

fn walk_memory(reader: &Reader<'_>) -> Memory {
    let memory = Memory { approaching_bytes: reader.bytes("approaching"), critical_bytes: reader.bytes("critical") };
    if let (Some(approaching), Some(critical)) = (memory.approaching_bytes, memory.critical_bytes)
        && critical >= approaching
        && let Some(value) = reader.value("critical")
    {
        value.mistake(
            "critical is not below approaching",
            &format!("expected less than {}: both are thresholds of available memory", human_bytes(approaching)),
        );
    }
    memory
}

fn walk_probes(reader: &Reader<'_>) -> Probes {
    let mut probes = Probes::default();
    for (key, place, bounds) in [
        ("pid_file", &mut probes.pid_file, INTERVALS),
        ("port", &mut probes.port, INTERVALS),
        ("memory", &mut probes.memory, INTERVALS),
        ("oom", &mut probes.oom, INTERVALS),
        ("sqlite", &mut probes.sqlite, INTERVALS),
        ("sqlite_quick", &mut probes.sqlite_quick, INTERVALS),
        ("sqlite_deep", &mut probes.sqlite_deep, INTERVALS),
        ("unit", &mut probes.unit, INTERVALS),
        ("process", &mut probes.process, INTERVALS),
        ("lock", &mut probes.lock, INTERVALS),
        ("health", &mut probes.health, INTERVALS),
        ("backup", &mut probes.backup, INTERVALS),
        ("log", &mut probes.log, INTERVALS),
        ("disk", &mut probes.disk, INTERVALS),
        ("clock", &mut probes.clock, INTERVALS),
        ("baseline", &mut probes.baseline, INTERVALS),
        ("permission", &mut probes.permission, INTERVALS),
        ("pressure", &mut probes.pressure, INTERVALS),
        ("query", &mut probes.query, INTERVALS),
        ("deadline", &mut probes.deadline, DEADLINES),
        ("sqlite_deadline", &mut probes.sqlite_deadline, DEADLINES),
        ("blind_after", &mut probes.blind_after, INTERVALS),
    ] {
        set(place, reader.duration(key, bounds));
    }
    probes
}

/// Subjects named so far, with the service that named them first.
#[derive(Default)]
struct Seen {
    subjects: BTreeMap<String, String>,
    state_dir: PathBuf,
    log_rules: Vec<String>,
}

impl Seen {
    /// The agent's own files are none of its subjects: to open and close its spool for a look would drop the locks
    /// the agent itself holds on it.
    fn check_foreign(&self, path: &Path, at: &Value<'_>) {
        if plain_path(path).starts_with(&self.state_dir) {
            let folder = self.state_dir.display();
            at.mistake(
                "the agent cannot watch its own files",
                &format!("expected a path outside of {folder}, its state_dir"),
            );
        }
    }

    /// The same of copies. Wildcards in folders may lead to the spool, too.
    fn check_foreign_copies(&self, pattern: &Pattern, at: &Value<'_>) {
        let folder = Path::new(pattern.folder());
        let names = |path: &Path| -> Vec<String> {
            path.iter().skip(1).map(|name| name.to_string_lossy().into_owned()).collect()
        };
        let parts: Vec<String> = names(folder).into_iter().chain(pattern.components().iter().cloned()).collect();
        let spool = names(&self.state_dir.join(SPOOL_FILE));
        let is_found = parts.len() == spool.len() && parts.iter().zip(&spool).all(|(part, name)| fits(part, name));
        self.check_foreign(if is_found { &self.state_dir } else { folder }, at);
    }

    fn note(&mut self, service: &str, subject: String, at: &Value<'_>) {
        if let Some(first) = self.subjects.get(&subject) {
            let message = format!("{subject} is watched twice");
            at.mistake(&message, &format!("already named by [service.{first}]"));
            return;
        }
        self.subjects.insert(subject, service.to_owned());
    }
}

fn walk_service(name: &str, reader: &Reader<'_>, seen: &mut Seen) -> Option<Service> {
    let checked = ServiceName::new(name);
    if let Err(error) = &checked {
        reader.mistake(&format!("{name:?} is no service name"), &error.to_string());
    }
    if name == ServiceName::host().as_str() {
        reader.mistake("\"host\" is the host itself", "expected another name for a service");
    }
    let unit = reader.value("unit").and_then(|value| {
        let unit = unit::walk(&value)?;
        seen.note(name, format!("unit {}", unit.name), &value);
        Some(unit)
    });
    let pid_file = reader.value("pid_file").and_then(|value| {
        let watch = short_or_table(&value, "path", absolute)?;
        seen.check_foreign(&watch.what, &value);
        seen.note(name, format!("pid file {}", watch.what.display()), &value);
        Some(watch)
    });
    let ports = one_or_many(reader, "ports").into_iter().filter_map(|value| {
        let watch = short_or_table(&value, "address", |text| text.parse::<Target>().map_err(|e| e.to_string()))?;
        seen.note(name, format!("port {}", watch.what), &value);
        Some(watch)
    });
    let ports = ports.collect();
    let sqlite = one_or_many(reader, "sqlite").into_iter().filter_map(|value| {
        let sqlite = sqlite::walk(&value)?;
        seen.check_foreign(&sqlite.path, &value);
        seen.note(name, format!("database {}", sqlite.path.display()), &value);
        for query in &sqlite.queries {
            seen.note(name, format!("query {} of {}", query.name, sqlite.path.display()), &value);
        }
        Some(sqlite)
    });
    let sqlite = sqlite.collect();
    let health = one_or_many(reader, "health").into_iter().filter_map(|value| {
        let health = health::walk(&value)?;
        seen.note(name, format!("health {}", health.url), &value);
        Some(health)
    });
    let health = health.collect();
    let backups = one_or_many(reader, "backups").into_iter().filter_map(|value| {
        let backup = backup::walk(&value)?;
        seen.check_foreign_copies(&backup.path, &value);
        seen.note(name, format!("backups {}", backup.path.as_str()), &value);
        Some(backup)
    });
    let backups = backups.collect();
    let locks = one_or_many(reader, "locks").into_iter().filter_map(|value| {
        let lock = lock::walk(&value)?;
        seen.check_foreign(&lock.path, &value);
        seen.note(name, format!("lock {}", lock.path.display()), &value);
        Some(lock)
    });
    let locks = locks.collect();
    let logs = one_or_many(reader, "logs").into_iter().filter_map(|value| {
        let log = log::walk(&value, &seen.log_rules)?;
        if let LogSource::File(path) = &log.source {
            seen.check_foreign(path, &value);
        }
        seen.note(name, format!("log {}", log.source), &value);
        Some(log)
    });
    let logs = logs.collect();
    // Only looked at, never opened: the agent's own may be among them.
    let keys = one_or_many(reader, "keys").into_iter().filter_map(|value| value.parsed(absolute)).collect();
    let baseline = reader
        .table("baseline")
        .map_or_else(Baseline::new, |table| baseline::walk_service(&table, &|path, at| seen.check_foreign(path, at)));
    let (reporters, singleton) = (reporters(reader), reader.boolean("singleton").unwrap_or(false));
    // A key that is there but wrong, or misspelt, has its own mistake already.
    let empty = ["unit", "pid_file", "ports", "health", "sqlite", "backups", "locks", "logs"]
        .iter()
        .all(|key| reader.value(key).is_none());
    if empty && !reader.has_unknown_key() {
        reader.mistake(
            &format!("[service.{name}] watches nothing"),
            "expected one or more of: unit, pid_file, ports, health, sqlite, backups, locks, logs",
        );
    }
    let service = Service {
        name: checked.ok()?,
        unit,
        pid_file,
        ports,
        health,
        sqlite,
        backups,
        locks,
        logs,
        keys,
        baseline,
        reporters,
        singleton,
    };
    Some(service)
}

/// Numbers, not names: a directory service that hangs must not keep the agent from starting.
fn reporters(reader: &Reader<'_>) -> Vec<u32> {
    let users = reader.items("reporters");
    users.iter().filter_map(|value| u32::try_from(value.integer(0..=i64::from(u32::MAX))?).ok()).collect()
}

/// One value, or a list of them.
fn one_or_many<'a>(reader: &Reader<'a>, key: &str) -> Vec<Value<'a>> {
    match reader.value(key) {
        Some(value) if value.is_table() || value.if_string().is_some() => vec![value],
        Some(value) => value.items(),
        None => Vec::new(),
    }
}

/// `"…"`, or `{ KEY = "…", interval = "…" }`.
fn short_or_table<T>(value: &Value<'_>, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<Watch<T>> {
    if value.if_string().is_some() {
        return Some(Watch { what: value.parsed(parse)?, interval: None });
    }
    let table = table_or_string(value)?;
    let what = table.required(key).and_then(|inner| inner.parsed(parse));
    let interval = table.duration("interval", INTERVALS);
    Some(Watch { what: what?, interval })
}

/// The long form, where it is not the short one.
pub(super) fn table_or_string<'a>(value: &Value<'a>) -> Option<Reader<'a>> {
    if !value.is_table() {
        value.wrong_type("a string or a table");
        return None;
    }
    value.table()
}

/// The path of one thing.
pub(super) fn absolute(text: &str) -> Result<PathBuf, String> {
    // As a letter it would page for a file of that very name.
    if text.contains(['*', '?']) {
        return Err("expected one path, without `*` and `?`: only `logs` and `backups` take patterns".to_owned());
    }
    absolute_pattern(text)
}

/// A path, or a pattern of paths.
pub(super) fn absolute_pattern(text: &str) -> Result<PathBuf, String> {
    if !text.starts_with('/') {
        return Err(format!("expected an absolute path, found {text:?}"));
    }
    if text.len() > SUBJECT_BYTES_MAX || text.contains('\0') {
        return Err(format!("expected a path of at most {SUBJECT_BYTES_MAX} bytes without NUL"));
    }
    Ok(PathBuf::from(text))
}

/// `host`, or `host:port` with a port that there is.
pub(super) fn names_a_host(uri: &tonic::codegen::http::Uri) -> bool {
    let Some(authority) = uri.authority() else { return false };
    let Some(port) = authority.as_str().strip_prefix(authority.host()) else { return false };
    let port_is_well = port.is_empty() || authority.port_u16().is_some_and(|port| port > 0);
    !authority.host().is_empty() && port_is_well
}

/// Without `.` and `..`, as far as the text alone tells.
fn plain_path(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

pub(super) fn unit_name(text: &str) -> Result<String, String> {
    let known = [".service", ".socket", ".timer", ".mount", ".target", ".path", ".slice", ".scope"];
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c));
    let suffix = known.iter().any(|suffix| text.len() > suffix.len() && text.ends_with(suffix));
    if plain && suffix && text.len() <= 255 {
        Ok(text.to_owned())
    } else {
        Err(format!("expected the name of a systemd unit such as \"spl.service\", found {text:?}"))
    }
}

fn spool_size(text: &str) -> Result<u64, String> {
    let bytes = muster_common::units::parse_bytes(text)?;
    let bounds = (1 << 20)..=(16 << 30);
    if bounds.contains(&bytes) { Ok(bytes) } else { Err("expected a size from \"1MiB\" to \"16GiB\"".to_owned()) }
}

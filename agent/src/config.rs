//! `/etc/muster/agent.toml`: read whole, checked whole, every mistake told at once with its place.
//!
//! The walk below is the list of known keys; there is no second one. A string is the short form of a subject, a table
//! gives every option. Nothing here touches the host: a path that does not exist is a finding, not a mistake.

use muster_agent_core::port::Target;
use muster_common::config::{ConfigErrors, Reader, Value};
use muster_common::ids::ServiceName;
use muster_common::limits::{LABEL_BYTES_MAX, LABELS_MAX, SUBJECT_BYTES_MAX, SUBJECTS_PER_AGENT_MAX};
use muster_common::units::human_bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the config is looked for.
pub const PATH_DEFAULT: &str = "/etc/muster/agent.toml";
/// Bytes of a config file; beyond it is not one.
pub const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// Coordinators one agent may try.
const ENDPOINTS_MAX: usize = 16;
/// Anything shorter wakes the host for nothing, anything longer is no watching.
const INTERVALS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);
/// Deadlines and time-outs.
const DEADLINES: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(600);

/// Why there is no config.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the config {path:?}; {}", way_out(path, source))]
    Read {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is read but wrong.
    #[error(transparent)]
    Wrong(#[from] ConfigErrors),
}

fn way_out(path: &str, source: &std::io::Error) -> String {
    match source.kind() {
        std::io::ErrorKind::NotFound => {
            format!("create it with `muster-agent init > {path}` or name one with --config")
        }
        std::io::ErrorKind::PermissionDenied => {
            "run as root or as the agent's user, or let this user read it and the folders above it".to_owned()
        }
        _ => "name a readable file with --config".to_owned(),
    }
}

/// The whole config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What to tell the fleet about this host.
    pub labels: BTreeMap<String, String>,
    /// Where the spool and the agent's memory are kept.
    pub state_dir: PathBuf,
    /// The local socket for applications.
    pub socket: PathBuf,
    /// The coordinators, in order of preference; none means: watch, spool and log only.
    pub endpoints: Vec<String>,
    /// Who this agent is.
    pub tls: TlsFiles,
    /// The memory bands.
    pub memory: Memory,
    /// How often, and how long at most.
    pub probes: Probes,
    /// Bound of the spool on disk.
    pub spool_bytes_max: u64,
    /// What is watched, in the order of the file.
    pub services: Vec<Service>,
}

/// Certificate files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The fleet's CA.
    pub ca: PathBuf,
    /// This agent's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// `[memory]`; what is not set follows from the size of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// MemAvailable below this approaches.
    pub approaching_bytes: Option<u64>,
    /// MemAvailable below this is critical.
    pub critical_bytes: Option<u64>,
}

/// `[probes]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probes {
    /// Pid files.
    pub pid_file: Duration,
    /// Ports.
    pub port: Duration,
    /// Memory.
    pub memory: Duration,
    /// The kernel log; new lines wake it between.
    pub oom: Duration,
    /// A look at a database: there, readable, locks that move.
    pub sqlite: Duration,
    /// The quick check of a database that changes.
    pub sqlite_quick: Duration,
    /// The deep check of a database, on a copy.
    pub sqlite_deep: Duration,
    /// After this a quick probe counts as hung.
    pub deadline: Duration,
    /// After this a database probe counts as hung.
    pub sqlite_deadline: Duration,
    /// After this long without an answer a probe is itself a finding.
    pub blind_after: Duration,
}

impl Default for Probes {
    fn default() -> Self {
        Self {
            pid_file: Duration::from_secs(5),
            port: Duration::from_secs(5),
            memory: Duration::from_secs(5),
            oom: Duration::from_secs(10),
            sqlite: Duration::from_secs(5),
            sqlite_quick: Duration::from_secs(300),
            sqlite_deep: Duration::from_secs(24 * 3600),
            deadline: Duration::from_secs(2),
            sqlite_deadline: Duration::from_secs(60),
            blind_after: muster_agent_core::ledger::BLIND_AFTER_DEFAULT,
        }
    }
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name, the same on every host of the fleet.
    pub name: ServiceName,
    /// Its systemd unit.
    pub unit: Option<String>,
    /// Its pid file.
    pub pid_file: Option<Watch<PathBuf>>,
    /// Its ports and sockets.
    pub ports: Vec<Watch<Target>>,
    /// Its health endpoint.
    pub health: Option<Health>,
    /// Its databases.
    pub sqlite: Vec<Sqlite>,
    /// Its backups.
    pub backups: Vec<Backup>,
    /// At most one instance in the fleet.
    pub singleton: bool,
}

impl Service {
    /// A service that watches nothing yet.
    pub const fn named(name: ServiceName) -> Self {
        Self {
            name,
            unit: None,
            pid_file: None,
            ports: Vec::new(),
            health: None,
            sqlite: Vec::new(),
            backups: Vec::new(),
            singleton: false,
        }
    }
}

/// A subject with its own interval, where it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch<T> {
    /// What.
    pub what: T,
    /// How often, instead of the interval in `[probes]`.
    pub interval: Option<Duration>,
}

/// A health endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// `http://` or `https://`.
    pub url: String,
    /// How often.
    pub interval: Option<Duration>,
    /// How long at most.
    pub timeout: Option<Duration>,
}

/// A database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sqlite {
    /// Its path.
    pub path: PathBuf,
    /// How often it is looked at.
    pub interval: Option<Duration>,
    /// How often it is checked quickly.
    pub quick_interval: Option<Duration>,
    /// How often it is checked deeply.
    pub deep_interval: Option<Duration>,
}

impl Sqlite {
    /// With the intervals of `[probes]`.
    pub const fn new(path: PathBuf) -> Self {
        Self { path, interval: None, quick_interval: None, deep_interval: None }
    }
}

/// A set of backups of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Pattern of the copies.
    pub path: String,
    /// What they are copies of.
    pub of: Option<PathBuf>,
    /// How old the newest may be.
    pub max_age: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            labels: BTreeMap::new(),
            state_dir: PathBuf::from("/var/lib/muster-agent"),
            socket: PathBuf::from("/run/muster-agent/agent.sock"),
            endpoints: Vec::new(),
            tls: TlsFiles {
                ca: PathBuf::from("/etc/muster/ca.pem"),
                cert: PathBuf::from("/etc/muster/cert.pem"),
                key: PathBuf::from("/etc/muster/key.pem"),
            },
            memory: Memory::default(),
            probes: Probes::default(),
            spool_bytes_max: 64 << 20,
            services: Vec::new(),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = read_bounded(path).map_err(|source| ConfigError::Read { path: name.clone(), source })?;
        Ok(Self::parse(&name, &text)?)
    }

    /// Checks a text; `file` is its name in messages.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigErrors> {
        muster_common::config::read(file, text, walk)
    }
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let file = std::fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    let mut text = String::new();
    file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > CONFIG_BYTES_MAX {
        return Err(std::io::Error::other(format!("larger than {}", human_bytes(CONFIG_BYTES_MAX))));
    }
    Ok(text)
}

fn walk(root: &Reader<'_>) -> Config {
    let mut config = Config::default();
    if let Some(agent) = root.table("agent") {
        config.labels = labels(&agent);
        set(&mut config.state_dir, agent.parsed("state_dir", absolute));
        set(&mut config.socket, agent.parsed("socket", absolute));
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
    if let Some(spool) = root.table("spool") {
        set(&mut config.spool_bytes_max, spool.parsed("max_bytes", spool_size));
    }
    let mut seen = Seen::default();
    for (name, _, reader) in root.named_tables("service") {
        config.services.extend(walk_service(&name, &reader, &mut seen));
    }
    if seen.subjects.len() > SUBJECTS_PER_AGENT_MAX {
        root.mistake("too many subjects", &format!("at most {SUBJECTS_PER_AGENT_MAX} are watched by one agent"));
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
            Ok(uri) if uri.scheme_str() == Some("https") && uri.host().is_some() => Ok(text.to_owned()),
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
}

impl Seen {
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
    let pid_file = reader.value("pid_file").and_then(|value| {
        let watch = short_or_table(&value, "path", absolute)?;
        seen.note(name, format!("pid file {}", watch.what.display()), &value);
        Some(watch)
    });
    let ports = reader.items("ports").into_iter().filter_map(|value| {
        let watch = short_or_table(&value, "address", |text| text.parse::<Target>().map_err(|e| e.to_string()))?;
        seen.note(name, format!("port {}", watch.what), &value);
        Some(watch)
    });
    let ports = ports.collect();
    let sqlite = reader.items("sqlite").into_iter().filter_map(|value| {
        let sqlite = walk_sqlite(&value)?;
        seen.note(name, format!("database {}", sqlite.path.display()), &value);
        Some(sqlite)
    });
    let sqlite = sqlite.collect();
    let health = reader.value("health").and_then(|value| {
        let health = walk_health(&value)?;
        seen.note(name, format!("health {}", health.url), &value);
        Some(health)
    });
    // A key that is there but wrong has its own mistake already.
    let empty =
        ["unit", "pid_file", "ports", "health", "sqlite", "backups"].iter().all(|key| reader.value(key).is_none());
    if empty {
        reader.mistake(
            &format!("[service.{name}] watches nothing"),
            "expected one or more of: unit, pid_file, ports, health, sqlite, backups",
        );
    }
    let service = Service {
        name: checked.ok()?,
        unit: reader.parsed("unit", unit_name),
        pid_file,
        ports,
        health,
        sqlite,
        backups: reader.tables("backups").iter().filter_map(walk_backup).collect(),
        singleton: reader.boolean("singleton").unwrap_or(false),
    };
    Some(service)
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
fn table_or_string<'a>(value: &Value<'a>) -> Option<Reader<'a>> {
    if !value.is_table() {
        value.wrong_type("a string or a table");
        return None;
    }
    value.table()
}

fn walk_sqlite(value: &Value<'_>) -> Option<Sqlite> {
    if value.if_string().is_some() {
        return Some(Sqlite::new(value.parsed(absolute)?));
    }
    let table = table_or_string(value)?;
    let path = table.required("path").and_then(|inner| inner.parsed(absolute));
    let interval = table.duration("interval", INTERVALS);
    let quick_interval = table.duration("quick_interval", INTERVALS);
    let deep_interval = table.duration("deep_interval", INTERVALS);
    Some(Sqlite { path: path?, interval, quick_interval, deep_interval })
}

fn walk_health(value: &Value<'_>) -> Option<Health> {
    if value.if_string().is_some() {
        return Some(Health { url: value.parsed(http_url)?, interval: None, timeout: None });
    }
    let table = table_or_string(value)?;
    let url = table.required("url").and_then(|inner| inner.parsed(http_url));
    let interval = table.duration("interval", INTERVALS);
    let timeout = table.duration("timeout", DEADLINES);
    Some(Health { url: url?, interval, timeout })
}

fn walk_backup(reader: &Reader<'_>) -> Option<Backup> {
    let path = reader.required("path").and_then(|value| value.parsed(absolute));
    let of = reader.parsed("of", absolute);
    let ages = Duration::from_secs(60)..=Duration::from_secs(400 * 86_400);
    let max_age = reader.duration("max_age", ages);
    Some(Backup { path: path?.display().to_string(), of, max_age })
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    if !text.starts_with('/') {
        return Err(format!("expected an absolute path, found {text:?}"));
    }
    if text.len() > SUBJECT_BYTES_MAX || text.contains('\0') {
        return Err(format!("expected a path of at most {SUBJECT_BYTES_MAX} bytes without NUL"));
    }
    Ok(PathBuf::from(text))
}

fn http_url(text: &str) -> Result<String, String> {
    let uri: Result<tonic::codegen::http::Uri, _> = text.parse();
    match uri {
        Ok(uri) if matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some() => Ok(text.to_owned()),
        _ => Err(format!("expected an address such as \"http://127.0.0.1:9100/health\", found {text:?}")),
    }
}

fn unit_name(text: &str) -> Result<String, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const DESIGN: &str = r#"
[agent]
labels = { zone = "a", role = "worker" }

[coordinator]
endpoints = ["https://coord-a:7420", "https://coord-b:7420"]

[memory]
approaching = "4GiB"      # below: approaching
critical    = "2GiB"      # below: critical

[service.spl]
unit      = "spl.service"
pid_file  = "/run/spl/spl.pid"
ports     = ["127.0.0.1:9100", "unix:/run/spl/spl.sock"]
health    = "http://127.0.0.1:9100/health"
sqlite    = ["/var/lib/spl/hub.db"]
backups   = [{ path = "/backup/spl/hub.db.*.bak", of = "/var/lib/spl/hub.db", max_age = "26h" }]
singleton = true
"#;

    #[test]
    fn the_documented_config_passes() {
        let config = Config::parse("agent.toml", DESIGN).unwrap();
        assert_eq!(config.labels.len(), 2);
        assert_eq!(config.endpoints, ["https://coord-a:7420", "https://coord-b:7420"]);
        assert_eq!(config.memory.critical_bytes, Some(2 << 30));
        assert_eq!(config.tls.key, Path::new("/etc/muster/key.pem"));
        let service = &config.services[0];
        assert_eq!(service.name.as_str(), "spl");
        assert_eq!(service.ports[1].what.to_string(), "unix:/run/spl/spl.sock");
        assert_eq!(service.backups[0].max_age, Some(Duration::from_secs(26 * 3600)));
        assert!(service.singleton);
        assert_eq!(Config::parse("agent.toml", "").unwrap(), Config::default());
    }

    #[test]
    fn tables_give_every_option() {
        let text = r#"
[service.spl]
pid_file = { path = "/run/spl.pid", interval = "1s" }
ports = [{ address = "*:80", interval = "10s" }, "localhost:81"]
health = { url = "https://127.0.0.1/", interval = "30s", timeout = "2s" }
sqlite = [{ path = "/a.db", interval = "2s", quick_interval = "1m", deep_interval = "1h" }]
"#;
        let config = Config::parse("agent.toml", text).unwrap();
        let service = &config.services[0];
        assert_eq!(service.pid_file.as_ref().unwrap().interval, Some(Duration::from_secs(1)));
        assert_eq!(service.ports[0].interval, Some(Duration::from_secs(10)));
        assert_eq!(service.sqlite[0].deep_interval, Some(Duration::from_secs(3600)));
        assert_eq!(service.health.as_ref().unwrap().timeout, Some(Duration::from_secs(2)));
    }

    /// (text under the caret, a part of message or of what was expected) per mistake, in order.
    fn check(text: &str, expected: &[(&str, &str)]) {
        let error = Config::parse("agent.toml", text).unwrap_err();
        let found: Vec<(&str, String)> = error
            .mistakes
            .iter()
            .map(|mistake| (&text[mistake.span.clone()], format!("{}; {}", mistake.message, mistake.expected)))
            .collect();
        assert_eq!(found.len(), expected.len(), "{error}");
        for ((under, told), (expected_under, part)) in found.iter().zip(expected) {
            assert!(under == expected_under && told.contains(part), "{under:?} {told:?}\nexpected {part:?}\n{error}");
        }
    }

    #[test]
    fn each_mistake_is_told_with_its_place() {
        check("[service.a]\npid_fil = \"/run/a\"\nports = [\"*:1\"]", &[("pid_fil", "did you mean \"pid_file\"?")]);
        check("[memory]\ncritical = \"4G\"", &[("\"4G\"", "expected a size such as")]);
        check(
            "[memory]\napproaching = \"1GiB\"\ncritical = \"2GiB\"",
            &[("\"2GiB\"", "critical is not below approaching")],
        );
        check("[coordinator]\nendpoints = [\"http://a:7420\"]", &[("\"http://a:7420\"", "mutual TLS")]);
        check("[service.a]\nports = [\"84430\"]", &[("\"84430\"", "expected \"127.0.0.1:80\"")]);
        check("[service.a]\npid_file = \"run/a.pid\"", &[("\"run/a.pid\"", "expected an absolute path")]);
        check("[probes]\nport = \"5\"", &[("\"5\"", "expected a duration")]);
        check("[probes]\nport = \"1ms\"", &[("\"1ms\"", "expected a duration from 1 s")]);
        check("[service.a]\nunit = \"spl\"", &[("\"spl\"", "\"spl.service\"")]);
        check("[service.a]\nhealth = \"ftp://x\"", &[("\"ftp://x\"", "http://127.0.0.1")]);
        check("[spool]\nmax_bytes = \"1KiB\"", &[("\"1KiB\"", "\"1MiB\"")]);
        check(
            "[service.a]\nsqlite = [{ paht = \"/a\" }]",
            &[("{ paht = \"/a\" }", "lacks the key \"path\""), ("paht", "did you mean \"path\"?")],
        );
        check(
            "[service.a]\npid_file = \"/run/a\"\n[service.b]\npid_file = \"/run/a\"",
            &[("\"/run/a\"", "already named by [service.a]")],
        );
    }

    #[test]
    fn all_mistakes_come_at_once() {
        let text = "[agnt]\n[memory]\ncritical = 2\n[service.host]\nports = [\"x\", 7]\n[service.\"a b\"]\n";
        let error = Config::parse("agent.toml", text).unwrap_err();
        let told = error.to_string();
        for part in [
            "agent.toml:1:2",
            "did you mean \"agent\"?",
            "agent.toml:3:12",
            "\"host\" is the host itself",
            "expected a string or a table, found integer",
            "is no service name",
            "watches nothing",
            "agent.toml: 7 mistakes",
        ] {
            assert!(told.contains(part), "{part:?} is not in:\n{told}");
        }
    }

    #[test]
    fn a_config_that_cannot_be_read_says_what_to_do() {
        let error = Config::load(Path::new("/nonexistent/agent.toml")).unwrap_err();
        assert!(error.to_string().contains("muster-agent init"), "{error}");
        let error = Config::load(Path::new("/")).unwrap_err();
        assert!(matches!(error, ConfigError::Read { .. }), "{error}");
    }
}

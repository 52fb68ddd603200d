//! `/etc/muster/agent.toml`: read whole, checked whole, every mistake told at once with its place.
//!
//! The walk is the list of known keys; there is no second one. A string is the short form of a subject, a table
//! gives every option. Nothing here touches the host: a path that does not exist is a finding, not a mistake.

pub mod backup;
pub mod baseline;
pub mod clock;
pub mod disk;
pub mod health;
pub mod lock;
pub mod log;
pub mod pressure;
pub mod process;
pub mod sqlite;
pub mod unit;
mod walk;

use backup::Backup;
use baseline::Baseline;
use clock::Clock;
use disk::Disk;
use health::Health;
use lock::Lock;
use log::{Log, LogRule};
use pressure::Pressure;
use process::Process;
use sqlite::Sqlite;
use unit::Unit;

use muster_agent_core::port::Target;
use muster_common::config::ConfigErrors;
use muster_common::ids::ServiceName;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the config is looked for.
pub const PATH_DEFAULT: &str = "/etc/muster/agent.toml";
/// Where the spool is kept unless the config says otherwise.
pub const STATE_DIR_DEFAULT: &str = "/var/lib/muster-agent";

/// Where applications report unless the config says otherwise.
pub const SOCKET_DEFAULT: &str = "/run/muster-agent/agent.sock";

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
        std::io::ErrorKind::NotFound if path == PATH_DEFAULT => {
            format!("create it with `muster-agent init > {path}` or name one with --config")
        }
        std::io::ErrorKind::NotFound => "name one that exists; `muster-agent init` prints one to start with".to_owned(),
        std::io::ErrorKind::PermissionDenied => {
            "run as root or as the agent's user, or let this user read it and the folders above it".to_owned()
        }
        _ => "name a readable file with --config".to_owned(),
    }
}

/// The whole config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file it was read from, where it was one.
    pub source: Option<PathBuf>,
    /// What to tell the fleet about this host.
    pub labels: BTreeMap<String, String>,
    /// Where the spool and the agent's memory are kept.
    pub state_dir: PathBuf,
    /// The local socket for applications.
    pub socket: PathBuf,
    /// Whether this host takes part in second opinions: looks at neighbours that fell silent, and is looked at.
    pub second_opinion: bool,
    /// The coordinators, in order of preference; none means: watch, spool and log only.
    pub endpoints: Vec<String>,
    /// Who this agent is.
    pub tls: TlsFiles,
    /// The memory bands.
    pub memory: Memory,
    /// How often, and how long at most.
    pub probes: Probes,
    /// Space and inodes.
    pub disk: Disk,
    /// The host's clock.
    pub clock: Clock,
    /// Memory stalls and limits.
    pub pressure: Pressure,
    /// What is normal for a process.
    pub process: Process,
    /// What is declared of the host itself.
    pub baseline: Baseline,
    /// Rules for logs beside the shipped ones.
    pub log_rules: Vec<LogRule>,
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
    /// A systemd unit; its own signals wake it between.
    pub unit: Duration,
    /// The main process of a service; its exit wakes it between.
    pub process: Duration,
    /// File locks.
    pub lock: Duration,
    /// A health endpoint.
    pub health: Duration,
    /// Copies.
    pub backup: Duration,
    /// Logs.
    pub log: Duration,
    /// Space and inodes.
    pub disk: Duration,
    /// The clock.
    pub clock: Duration,
    /// Declared settings.
    pub baseline: Duration,
    /// Modes and owners.
    pub permission: Duration,
    /// Memory stalls and limits of cgroups.
    pub pressure: Duration,
    /// A SQL assertion.
    pub query: Duration,
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
            unit: Duration::from_secs(60),
            process: Duration::from_secs(10),
            lock: Duration::from_secs(5),
            health: Duration::from_secs(10),
            backup: Duration::from_secs(60),
            log: Duration::from_secs(5),
            disk: Duration::from_secs(30),
            clock: Duration::from_secs(60),
            baseline: Duration::from_secs(300),
            permission: Duration::from_secs(300),
            pressure: Duration::from_secs(5),
            query: Duration::from_secs(60),
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
    pub unit: Option<Unit>,
    /// Its pid file.
    pub pid_file: Option<Watch<PathBuf>>,
    /// Its ports and sockets.
    pub ports: Vec<Watch<Target>>,
    /// Its health endpoints.
    pub health: Vec<Health>,
    /// Its databases.
    pub sqlite: Vec<Sqlite>,
    /// Its backups.
    pub backups: Vec<Backup>,
    /// Its lock files.
    pub locks: Vec<Lock>,
    /// Its log files, and the journal of its unit.
    pub logs: Vec<Log>,
    /// Private keys that only it may read.
    pub keys: Vec<PathBuf>,
    /// What is declared of it.
    pub baseline: Baseline,
    /// Users, by number, that may report for it beside root and its own.
    pub reporters: Vec<u32>,
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
            health: Vec::new(),
            sqlite: Vec::new(),
            backups: Vec::new(),
            locks: Vec::new(),
            logs: Vec::new(),
            keys: Vec::new(),
            baseline: Baseline::new(),
            reporters: Vec::new(),
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

impl Default for Config {
    fn default() -> Self {
        Self {
            source: None,
            labels: BTreeMap::new(),
            state_dir: PathBuf::from(STATE_DIR_DEFAULT),
            socket: PathBuf::from(SOCKET_DEFAULT),
            second_opinion: true,
            endpoints: Vec::new(),
            tls: TlsFiles {
                ca: PathBuf::from("/etc/muster/ca.pem"),
                cert: PathBuf::from("/etc/muster/cert.pem"),
                key: PathBuf::from("/etc/muster/key.pem"),
            },
            memory: Memory::default(),
            probes: Probes::default(),
            disk: Disk::default(),
            clock: Clock::default(),
            pressure: Pressure::default(),
            process: Process::default(),
            baseline: Baseline::new(),
            log_rules: Vec::new(),
            spool_bytes_max: 64 << 20,
            services: Vec::new(),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = muster_common::config::read_file(path)
            .map_err(|source| ConfigError::Read { path: name.clone(), source })?;
        let source = std::path::absolute(path).ok();
        Ok(Self { source, ..Self::parse(&name, &text)? })
    }

    /// Checks a text; `file` is its name in messages.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigErrors> {
        muster_common::config::read(file, text, walk::walk)
    }
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
    fn one_subject_needs_no_list() {
        let text = "[service.a]\nports = \"127.0.0.1:80\"\nsqlite = { path = \"/a.db\", interval = \"2s\" }\n";
        let service = &Config::parse("agent.toml", text).unwrap().services[0];
        assert_eq!((service.ports.len(), service.sqlite[0].interval), (1, Some(Duration::from_secs(2))));
        check("[service.a]\nports = \"http\"", &[("\"http\"", "127.0.0.1:80")]);
    }

    #[test]
    fn tables_give_every_option() {
        let text = r#"
[service.spl]
pid_file = { path = "/run/spl.pid", interval = "1s" }
ports = [{ address = "*:80", interval = "10s" }, "localhost:81"]
unit = { name = "spl.service", interval = "20s", max_activating = "1h", may_be_inactive = true }
health = { url = "https://127.0.0.1/", interval = "30s", timeout = "2s" }
sqlite = [{ path = "/a.db", interval = "2s", quick_interval = "1m", deep_interval = "1h" }]
"#;
        let config = Config::parse("agent.toml", text).unwrap();
        let service = &config.services[0];
        assert_eq!(service.pid_file.as_ref().unwrap().interval, Some(Duration::from_secs(1)));
        let unit = service.unit.as_ref().unwrap();
        assert_eq!((unit.interval, unit.may_be_inactive), (Some(Duration::from_secs(20)), true));
        assert_eq!(unit.options(false).activating_max, Some(Duration::from_secs(3600)));
        assert_eq!(service.ports[0].interval, Some(Duration::from_secs(10)));
        assert_eq!(service.sqlite[0].deep_interval, Some(Duration::from_secs(3600)));
        assert_eq!(service.health[0].timeout, Duration::from_secs(2));
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
        // What a misspelt key was to watch is not told a second time as nothing.
        check("[service.a]\npid_fil = \"/run/a\"", &[("pid_fil", "did you mean \"pid_file\"?")]);
        check("[service.a]\nsingleton = true", &[("[service.a]", "watches nothing")]);
        check("[memory]\ncritical = \"4G\"", &[("\"4G\"", "expected a size such as")]);
        check(
            "[memory]\napproaching = \"1GiB\"\ncritical = \"2GiB\"",
            &[("\"2GiB\"", "critical is not below approaching")],
        );
        check("[coordinator]\nendpoints = [\"http://a:7420\"]", &[("\"http://a:7420\"", "mutual TLS")]);
        check("[service.a]\nports = [\"84430\"]", &[("\"84430\"", "expected \"127.0.0.1:80\"")]);
        for host in ["https://:7420", "https://a:0", "https://a:99999", "https://"] {
            let quoted = format!("{host:?}");
            check(&format!("[coordinator]\nendpoints = [{quoted}]"), &[(&quoted, "mutual TLS")]);
        }
        check("[service.a]\npid_file = \"run/a.pid\"", &[("\"run/a.pid\"", "expected an absolute path")]);
        check("[probes]\nport = \"5\"", &[("\"5\"", "expected a duration")]);
        check("[probes]\nport = \"1ms\"", &[("\"1ms\"", "expected a duration from 1 s")]);
        check("[service.a]\nunit = \"spl\"", &[("\"spl\"", "\"spl.service\"")]);
        check(
            "[service.a]\nunit = { name = \"a.service\", max_activatin = \"1m\" }",
            &[("max_activatin", "did you mean \"max_activating\"?")],
        );
        check(
            "[service.a]\nunit = \"a.service\"\n[service.b]\nunit = \"a.service\"",
            &[("\"a.service\"", "already named by [service.a]")],
        );
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
    fn a_pattern_where_one_path_is_meant_is_a_mistake() {
        for key in ["pid_file", "sqlite", "locks", "keys"] {
            for path in ["/run/x/*.db", "/run/*/x.db", "/run/x/?.db"] {
                let quoted = format!("{path:?}");
                check(
                    &format!("[service.a]\nunit = \"a.service\"\n{key} = {quoted}"),
                    &[(&quoted, "only `logs` and `backups` take patterns")],
                );
            }
        }
        for table in ["sqlite", "locks", "pid_file"] {
            let text = format!("[service.a]\n{table} = {{ path = \"/run/*.x\" }}");
            check(&text, &[("\"/run/*.x\"", "expected one path")]);
        }
        let of = "[service.a]\nbackups = { path = \"/backup/*.db\", of = \"/var/*.db\" }";
        check(of, &[("\"/var/*.db\"", "expected one path")]);
        // What takes them still does, and other signs are letters.
        for line in ["logs = \"/var/log/*.log\"", "backups = \"/b/*/?.db\"", "sqlite = \"/var/a[1] {b}.db\""] {
            assert!(Config::parse("a", &format!("[service.a]\n{line}")).is_ok(), "{line}");
        }
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

    #[test]
    fn the_agents_own_files_are_refused() {
        for path in ["/var/lib/muster-agent/spool.db", "/var/lib/x/.././muster-agent//spool.db"] {
            let quoted = format!("{path:?}");
            check(&format!("[service.a]\nsqlite = [{quoted}]"), &[(&quoted, "outside of /var/lib/muster-agent")]);
            check(&format!("[service.a]\npid_file = {quoted}"), &[(&quoted, "its own files")]);
        }
        for (key, path) in [
            ("logs", "/var/lib/muster-agent/spool.db"),
            ("backups", "/var/lib/muster-agent/*.db"),
            ("backups", "/var/lib/*/*.db"),
            ("backups", "/var/lib/muster-?gent/spool.*"),
        ] {
            let quoted = format!("{path:?}");
            check(&format!("[service.a]\n{key} = [{quoted}]"), &[(&quoted, "its own files")]);
        }
        for path in ["/var/lib/*/backup/*.db", "/var/lib/*/*.bak", "/var/lib/muster-agent-2/*"] {
            assert!(Config::parse("a", &format!("[service.a]\nbackups = [{path:?}]")).is_ok(), "{path}");
        }
        let own = "[service.a]\nsqlite = [\"/srv/muster/spool.db\"]\n[agent]\nstate_dir = \"/srv/muster\"";
        check(own, &[("\"/srv/muster/spool.db\"", "outside of /srv/muster, its state_dir")]);
        assert!(Config::parse("a", "[service.a]\nsqlite = [\"/var/lib/muster-agent-2/a.db\"]").is_ok());
    }

    #[test]
    fn a_path_that_would_be_cut_as_a_subject_is_refused() {
        let path = |bytes: usize| format!("/{}", "a".repeat(bytes - 1));
        let config = |path: &str| Config::parse("a", &format!("[service.a]\npid_file = {path:?}"));
        assert!(config(&path(512)).is_ok());
        assert!(config(&path(513)).unwrap_err().to_string().contains("at most 512 bytes"));
    }

    #[test]
    fn too_many_subjects_are_told_at_the_service_that_goes_beyond() {
        let text: String = (0..4100).map(|n| format!("[service.s{n}]\npid_file = \"/run/{n}\"\n")).collect();
        let error = Config::parse("a", &text).unwrap_err();
        let [mistake] = error.mistakes.as_slice() else { panic!("{error}") };
        assert!(text[mistake.span.clone()].starts_with("[service.s4096]"), "{error}");
    }

    #[test]
    fn what_is_no_file_is_refused_before_it_can_block() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("agent.toml");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [fifo.as_path(), Path::new("/dev/zero")] {
            let error = Config::load(path).unwrap_err();
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert_eq!(source, "not a regular file", "{error}");
        }
    }
}

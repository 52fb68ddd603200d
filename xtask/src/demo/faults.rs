//! The faults of the demo: how each is made, which page it must lead to, how it is mended.

use crate::lab::Lab;
use crate::lab::receiver::Call;
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The three hosts.
pub(crate) const HOSTS: [&str; 3] = ["web-1", "web-2", "db-1"];

/// One fault.
pub(crate) struct Fault {
    /// What is broken, for the table.
    pub(crate) name: &'static str,
    /// Breaks it. `Some(why)` when this machine does not allow it.
    pub(crate) inject: fn(&Lab) -> Result<Option<String>>,
    /// Repairs it, where the demo also waits for the resolve.
    pub(crate) mend: Option<fn(&Lab) -> Result<()>>,
    /// Reason codes of which the page has one.
    reasons: &'static [&'static str],
    /// Words of which the page's `agents`, `services` or title must have all.
    about: &'static [&'static str],
}

impl Fault {
    /// Whether a call is the trigger for this fault.
    pub(crate) fn matches(&self, call: &Call) -> bool {
        let text = format!("{} {} {}", call.body["agents"], call.body["services"], call.text("/title"));
        call.text("/action") == "trigger"
            && self.reasons.contains(&call.text("/reason"))
            && self.about.iter().all(|word| text.contains(word))
    }
}

/// In this order.
pub(crate) const ALL: &[Fault] = &[
    Fault {
        name: "service killed (kill -9)",
        inject: |lab| lab.kill("web-1.spl", Signal::SIGKILL).map(|()| None),
        mend: Some(|lab| start_spl(lab, "web-1")),
        reasons: &["process_down"],
        about: &["web-1", "spl"],
    },
    Fault {
        name: "stale pid file",
        inject: stale_pid_file,
        mend: Some(|lab| Ok(fs::write(lab.path("run/db-1.cron.pid"), format!("{}\n", lab.pid("db-1.cron")?))?)),
        reasons: &["pid_file_stale", "pid_file_orphaned", "process_down"],
        about: &["db-1", "cron"],
    },
    Fault {
        name: "port taken by a stranger",
        inject: |lab| {
            let port = lab_port(lab, "web-2.api")?;
            fs::write(lab.root.join("run/release"), "")?;
            lab.start_service("stranger", &["--port", &port]).map(|()| None)
        },
        mend: None,
        reasons: &["port_conflict"],
        about: &["web-2", "api"],
    },
    Fault {
        name: "SQLite file corrupted",
        inject: corrupt_database,
        mend: None,
        reasons: &["sqlite_corrupt"],
        about: &["db-1", "archive"],
    },
    Fault {
        name: "backup overwritten by an empty one",
        inject: |lab| Ok(fs::write(backup(lab, 3), "").map(|()| None)?),
        mend: Some(|lab| Ok(fs::copy(database(lab, "web-2", "vault"), backup(lab, 3)).map(drop)?)),
        reasons: &["backup_shrunk"],
        about: &["web-2", "vault"],
    },
    Fault {
        name: "upgrade that loses rows",
        inject: lossy_upgrade,
        mend: None,
        reasons: &["sqlite_rows_lost"],
        about: &["web-1", "ledger"],
    },
    Fault {
        name: "jobs that never end (SQL assertion)",
        inject: |lab| set_stuck(lab, true).map(|()| None),
        mend: Some(|lab| set_stuck(lab, false)),
        reasons: &["query_threshold"],
        about: &["db-1", "mailer"],
    },
    Fault {
        name: "provider that throttles (log line)",
        inject: throttled,
        mend: None,
        reasons: &["provider_rate_limited"],
        about: &["web-2", "gateway"],
    },
    Fault {
        name: "lock held across three databases",
        inject: |lab| {
            let paths: Vec<String> = HOSTS.iter().map(|host| database(lab, host, "queue")).collect();
            let arguments: Vec<&str> = paths.iter().flat_map(|path| ["--lock", path.as_str()]).collect();
            lab.start_service("locker", &arguments).map(|()| None)
        },
        mend: Some(|lab| lab.kill("locker", Signal::SIGKILL)),
        reasons: &["lock_contention_fleet"],
        about: &["queue"],
    },
    Fault {
        name: "restart loop",
        inject: restart_loop,
        mend: None,
        reasons: &["restart_storm"],
        about: &["db-1", "looper"],
    },
    Fault {
        name: "OOM kill in a memory cgroup",
        inject: oom_kill,
        mend: None,
        reasons: &["oom_kill"],
        // The other two agents tell the same kill as one of a process that is none of their services'.
        about: &["web-1", "service glutton"],
    },
    Fault {
        name: "agent killed",
        inject: |lab| lab.kill("web-2", Signal::SIGKILL).map(|()| None),
        mend: None,
        reasons: &["agent_stale"],
        about: &["web-2"],
    },
];

/// Made while a silence holds.
pub(crate) const SILENCED: Fault = Fault {
    name: "service killed under a silence",
    inject: |lab| lab.kill("web-2.spl", Signal::SIGKILL).map(|()| None),
    mend: Some(|lab| start_spl(lab, "web-2")),
    reasons: &["process_down"],
    about: &["web-2", "spl"],
};

/// Made under the new primary.
pub(crate) const AFTER_TAKEOVER: Fault = Fault {
    name: "service killed under the new primary",
    inject: |lab| lab.kill("db-1.spl", Signal::SIGKILL).map(|()| None),
    mend: Some(|lab| start_spl(lab, "db-1")),
    reasons: &["process_down"],
    about: &["db-1", "spl"],
};

/// Processes that run all the while, with a pid file each: host and service.
const STARTED: [&str; 7] =
    ["web-1.spl", "web-2.spl", "db-1.spl", "web-2.api", "db-1.cron", "db-1.looper", "web-1.glutton"];

/// Starts everything that the agents watch.
pub(crate) fn start_services(lab: &Lab) -> Result<()> {
    for folder in ["run", "data"] {
        fs::create_dir_all(lab.root.join(folder))?;
    }
    for host in HOSTS {
        fs::write(lab.root.join(format!("run/{host}.spl.port")), crate::lab::free_port()?.to_string())?;
        start_spl(lab, host)?;
        make_database(&database(lab, host, "queue"))?;
    }
    for (host, name) in [("db-1", "archive"), ("web-2", "vault"), ("web-1", "ledger"), ("db-1", "mailer")] {
        make_database(&database(lab, host, name))?;
    }
    for n in 1..=2 {
        fs::copy(database(lab, "web-2", "vault"), backup(lab, n))?;
    }
    fs::write(lab.path(GATEWAY_LOG), "gateway started\n")?;
    fs::write(lab.root.join("run/web-2.api.port"), crate::lab::free_port()?.to_string())?;
    let pid_file = |name: &str| lab.path(&format!("run/{name}.pid"));
    let (port, release) = (lab_port(lab, "web-2.api")?, lab.path("run/release"));
    let api_pid_file = pid_file("web-2.api");
    let api = ["--pid-file", &api_pid_file, "--port", &port, "--release-port-when", &release];
    lab.start_service("web-2.api", &api)?;
    lab.start_service("db-1.cron", &["--pid-file", &pid_file("db-1.cron")])?;
    lab.start_service("db-1.looper", &["--pid-file", &pid_file("db-1.looper")])?;
    let feast = lab.path("run/feast");
    lab.start_service("web-1.glutton", &["--pid-file", &pid_file("web-1.glutton"), "--eat-memory-when", &feast])?;
    for name in STARTED {
        lab.wait(&format!("{name} is ready"), std::time::Duration::from_secs(10), || {
            Ok(Path::new(&pid_file(name)).exists().then_some(()))
        })?;
    }
    lab.check_running(&STARTED)
}

/// Whether every service was seen alive by its agent, which then tells its build. What ends before is told in other words.
pub(crate) fn all_seen_alive(lab: &Lab) -> Result<bool> {
    for host in HOSTS {
        let events = lab.ctl("coord-a", &["events", "list", "--agent", host, "--limit", "200"])?.to_string();
        let services = STARTED.iter().filter_map(|name| name.strip_prefix(host)?.strip_prefix('.'));
        if !services.into_iter().all(|service| events.contains(&format!("{service} runs build "))) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The `[service.…]` tables of a host's agent.
pub(crate) fn services_config(lab: &Lab, host: &str) -> String {
    let pid_file = |service: &str| lab.path(&format!("run/{host}.{service}.pid"));
    let mut config = String::new();
    let mut table = |service: &str, lines: &[(&str, String)]| {
        config.push_str(&format!("[service.{service}]\n"));
        lines.iter().for_each(|(key, value)| config.push_str(&format!("{key} = {value}\n")));
        config.push('\n');
    };
    let port =
        |service: &str| format!("[\"127.0.0.1:{}\"]", lab_port(lab, &format!("{host}.{service}")).unwrap_or_default());
    let quoted = |text: String| format!("{text:?}");
    let databases = [database(lab, host, "hub")];
    table(
        "spl",
        &[("pid_file", quoted(pid_file("spl"))), ("ports", port("spl")), ("sqlite", format!("{databases:?}"))],
    );
    table("queue", &[("sqlite", format!("[{:?}]", database(lab, host, "queue")))]);
    match host {
        "web-1" => {
            table("glutton", &[("pid_file", quoted(pid_file("glutton")))]);
            let ledger = format!("[{{ path = {:?}, rows = [\"job\"] }}]", database(lab, host, "ledger"));
            table("ledger", &[("sqlite", ledger)]);
        }
        "web-2" => {
            table("api", &[("pid_file", quoted(pid_file("api"))), ("ports", port("api"))]);
            let (vault, copies) = (database(lab, host, "vault"), lab.path("data/web-2/vault.*.bak"));
            table("vault", &[("backups", format!("[{{ path = {copies:?}, of = {vault:?} }}]"))]);
            table("gateway", &[("logs", format!("[{:?}]", lab.path(GATEWAY_LOG)))]);
        }
        _ => {
            let sql = "select count(*) from job where name = 'running'";
            let query = format!("[{{ name = \"stuck-jobs\", sql = {sql:?}, max = 0, interval = \"1s\" }}]");
            let mailer = format!("[{{ path = {:?}, queries = {query} }}]", database(lab, host, "mailer"));
            table("mailer", &[("sqlite", mailer)]);
            table("archive", &[("sqlite", format!("[{:?}]", database(lab, host, "archive")))]);
            table("cron", &[("pid_file", quoted(pid_file("cron")))]);
            table("looper", &[("pid_file", quoted(pid_file("looper")))]);
        }
    }
    config
}

fn lab_port(lab: &Lab, name: &str) -> Result<String> {
    Ok(fs::read_to_string(lab.root.join(format!("run/{name}.port")))?)
}

fn database(lab: &Lab, host: &str, name: &str) -> String {
    lab.path(&format!("data/{host}/{name}.db"))
}

fn start_spl(lab: &Lab, host: &str) -> Result<()> {
    let database = database(lab, host, "hub");
    fs::create_dir_all(Path::new(&database).parent().context("no folder")?)?;
    let name = format!("{host}.spl");
    let pid_file = lab.path(&format!("run/{name}.pid"));
    lab.start_service(&name, &["--pid-file", &pid_file, "--port", &lab_port(lab, &name)?, "--database", &database])
}

/// A closed database in rollback mode with a table, an index and enough rows to damage.
fn make_database(path: &str) -> Result<()> {
    fs::create_dir_all(Path::new(path).parent().context("no folder")?)?;
    let database = rusqlite::Connection::open(path)?;
    database.execute_batch(
        "CREATE TABLE job (id INTEGER PRIMARY KEY, name TEXT, payload BLOB);
         CREATE INDEX job_by_name ON job (name);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
         INSERT INTO job (name, payload) SELECT 'job-' || i, zeroblob(200) FROM n;",
    )?;
    Ok(())
}

/// The gateway's log, below the lab's folder.
const GATEWAY_LOG: &str = "data/web-2/gateway.log";

/// The copies of the vault, oldest first.
fn backup(lab: &Lab, n: usize) -> String {
    lab.path(&format!("data/web-2/vault.{n}.bak"))
}

/// A migration that drops most rows, and says that it was one.
fn lossy_upgrade(lab: &Lab) -> Result<Option<String>> {
    let database = rusqlite::Connection::open(database(lab, "web-1", "ledger"))?;
    database.execute_batch("BEGIN; DELETE FROM job WHERE id > 100; PRAGMA user_version = 2; COMMIT")?;
    Ok(None)
}

fn set_stuck(lab: &Lab, stuck: bool) -> Result<()> {
    let database = rusqlite::Connection::open(database(lab, "db-1", "mailer"))?;
    let names = if stuck { ("job-1", "running") } else { ("running", "job-1") };
    database.execute("UPDATE job SET name = ?2 WHERE name = ?1", names)?;
    Ok(())
}

fn throttled(lab: &Lab) -> Result<Option<String>> {
    let mut log = fs::OpenOptions::new().append(true).open(lab.path(GATEWAY_LOG))?;
    writeln!(log, "ERROR upstream answered 429 Too Many Requests, retry after 30 s")?;
    Ok(None)
}

fn stale_pid_file(lab: &Lab) -> Result<Option<String>> {
    // The pid of a process that has ended and was reaped: ours, so nobody else's is named.
    let mut ended = std::process::Command::new("/bin/true").spawn()?;
    let pid = ended.id();
    ended.wait()?;
    fs::write(lab.path("run/db-1.cron.pid"), format!("{pid}\n"))?;
    Ok(None)
}

fn corrupt_database(lab: &Lab) -> Result<Option<String>> {
    let mut file = fs::OpenOptions::new().write(true).open(database(lab, "db-1", "archive"))?;
    // Two whole pages in the middle of the table.
    file.seek(SeekFrom::Start(10 * 4096))?;
    file.write_all(&[0xA5; 2 * 4096])?;
    file.sync_all()?;
    Ok(None)
}

fn restart_loop(lab: &Lab) -> Result<Option<String>> {
    let pid_file = lab.path("run/db-1.looper.pid");
    for _ in 0..6 {
        lab.kill("db-1.looper", Signal::SIGKILL)?;
        let old = fs::read_to_string(&pid_file)?;
        lab.start_service("db-1.looper", &["--pid-file", &pid_file])?;
        lab.wait("the next instance", std::time::Duration::from_secs(10), || {
            Ok((fs::read_to_string(&pid_file)? != old).then_some(()))
        })?;
        // The agent looks once a second; a loop quicker than that would be seen as fewer restarts.
        std::thread::sleep(std::time::Duration::from_millis(1500));
    }
    Ok(None)
}

/// Puts the service into a memory cgroup of its own and lets it eat. The cgroup is removed afterwards.
fn oom_kill(lab: &Lab) -> Result<Option<String>> {
    let Some((group, limit)) = memory_cgroup() else {
        return Ok(Some("no memory cgroup can be made here (needs root and a memory controller)".to_owned()));
    };
    let outcome = (|| -> Result<()> {
        fs::write(group.join(limit), (64u64 << 20).to_string())?;
        fs::write(group.join("cgroup.procs"), lab.pid("web-1.glutton")?.to_string())?;
        fs::write(lab.root.join("run/feast"), "")?;
        lab.wait("the kernel kills it", std::time::Duration::from_secs(20), || {
            Ok(lab.check_running(&["web-1.glutton"]).is_err().then_some(()))
        })?;
        Ok(())
    })();
    fs::remove_dir(&group)?;
    outcome.map(|()| None)
}

/// A new cgroup with a memory controller, v2 or v1, and the name of its limit file.
fn memory_cgroup() -> Option<(PathBuf, &'static str)> {
    let name = format!("muster-demo-{}", std::process::id());
    for (root, limit) in [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")] {
        let group = Path::new(root).join(&name);
        if fs::create_dir(&group).is_err() {
            continue;
        }
        if group.join(limit).exists() {
            return Some((group, limit));
        }
        // Not a controller that limits memory; nothing was put into it.
        drop(fs::remove_dir(&group));
    }
    None
}

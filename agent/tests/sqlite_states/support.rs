//! What the SQLite tests share: children that hold, write, break or probe a database as real processes. A child is
//! this test binary itself, told by the environment what to be: locks of one's own process cannot be tested.

use muster_agent::probe::{Context, Probe};
use muster_agent::senses::sqlite::{SqliteOptions, SqliteProbe};
use muster_agent_core::clock::Now;
use muster_agent_core::judgement::Judgement;
use muster_agent_core::services::Services;
use muster_common::ids::ServiceName;
use muster_common::time::Timestamp;
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const ROLE: &str = "MUSTER_TEST_ROLE";
const PATH: &str = "MUSTER_TEST_PATH";
const OPTION: &str = "MUSTER_TEST_OPTION";
const MARK: &str = "child says: ";

/// The body of the test `child`: does nothing unless a parent told it what to be.
pub(crate) fn child_main() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let path = PathBuf::from(std::env::var_os(PATH).unwrap());
    let option = std::env::var(OPTION).unwrap_or_default();
    match role.as_str() {
        "hold" => hold(&path, &option),
        "commit" => commit(&path, &option),
        "churn" => crate::churn::churn(&path, &option),
        "probe" => probe_as(&path, &option),
        other => panic!("unknown role {other}"),
    }
}

/// A running child and the lines it says.
pub(crate) struct Role {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: BufReader<std::process::ChildStdout>,
}

impl Role {
    /// Starts a child and waits for its first word.
    pub(crate) fn start(role: &str, path: &Path, option: &str) -> (Self, String) {
        Self::start_with(Command::new(std::env::current_exe().unwrap()), role, path, option)
    }

    /// The same, through `command`, whose last argument is this binary.
    pub(crate) fn start_with(mut command: Command, role: &str, path: &Path, option: &str) -> (Self, String) {
        command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
        command.env(ROLE, role).env(PATH, path).env(OPTION, option);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut role = Self { child, stdin, lines };
        let first = role.word();
        (role, first)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end and returns its last word.
    pub(crate) fn end(mut self) -> String {
        drop(self.stdin.take());
        let word = self.word();
        assert!(self.child.wait().unwrap().success());
        word
    }

    fn word(&mut self) -> String {
        let mut line = String::new();
        while self.lines.read_line(&mut line).unwrap() > 0 {
            if let Some((_, word)) = line.split_once(MARK) {
                return word.trim().to_owned();
            }
            line.clear();
        }
        panic!("the child ended without a word");
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        if self.stdin.is_some() {
            let _already_gone = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}

/// Runs the probe once as user `uid` in a child; `one_shot` as `doctor` does.
pub(crate) fn probe_once_as(uid: u32, path: &Path) -> Judgement {
    let (role, word) = Role::start("probe", path, &uid.to_string());
    role.end();
    serde_json::from_str(&word).unwrap()
}

/// Runs the probe once in this process, as `doctor` does.
pub(crate) fn probe_once(path: &Path) -> Judgement {
    SqliteProbe::new(service(), path.to_owned(), SqliteOptions::default()).run(&context(1_000, true))
}

pub(crate) fn service() -> ServiceName {
    ServiceName::new("spl").unwrap()
}

pub(crate) fn context(boottime_ms: u64, one_shot: bool) -> Context {
    let now = Now { boottime_ms, wall: Timestamp::from_unix_ms(0) };
    Context { now, services: Arc::new(Mutex::new(Services::default())), one_shot }
}

/// Every file of a folder with its content.
pub(crate) fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())).collect()
}

/// The names of the reasons that a judgement holds.
pub(crate) fn reasons(judgement: &Judgement) -> Vec<&'static str> {
    judgement.problems.iter().map(|problem| problem.reason.as_str()).collect()
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Writes a file as if long ago: nobody can have written it since without a trace in its times.
pub(crate) fn write_long_ago(path: &Path, content: &[u8]) {
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(content).unwrap();
    file.set_modified(std::time::SystemTime::now() - Duration::from_secs(3600)).unwrap();
}

pub(crate) fn say(word: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "\n{MARK}{word}").unwrap();
    out.flush().unwrap();
}

/// True from the moment on when the parent asks to end.
pub(crate) fn told_to_end() -> Arc<std::sync::atomic::AtomicBool> {
    let ended = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = ended.clone();
    std::thread::spawn(move || {
        wait_for_the_end();
        told.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    ended
}

fn wait_for_the_end() {
    let _closed = std::io::stdin().read(&mut [0]).unwrap();
}

pub(crate) fn rows(connection: &Connection, count: u32) {
    connection.execute_batch("CREATE TABLE IF NOT EXISTS jobs(id INTEGER PRIMARY KEY, state TEXT, body BLOB); CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs(state)").unwrap();
    connection.execute_batch("BEGIN").unwrap();
    for number in 0..count {
        connection
            .execute("INSERT INTO jobs(state, body) VALUES (?1, zeroblob(500))", [format!("state {number}")])
            .unwrap();
    }
    connection.execute_batch("COMMIT").unwrap();
}

/// Opens the database in a mode, does what `option` says, and holds what it got.
fn hold(path: &Path, option: &str) {
    let (mode, action) = option.split_once(' ').unwrap();
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(5)).unwrap();
    connection.pragma_update(None, "journal_mode", mode).unwrap();
    connection.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
    rows(&connection, 50);
    match action {
        "idle" => {}
        "reserved" => connection.execute_batch("BEGIN IMMEDIATE").unwrap(),
        "exclusive" => connection.execute_batch("BEGIN EXCLUSIVE").unwrap(),
        // Pages of an open transaction reach the file: the journal is synced before, and hot after a kill.
        "spilled" => connection
            .execute_batch("PRAGMA cache_size=2; PRAGMA cache_spill=1; BEGIN; UPDATE jobs SET body = randomblob(490)")
            .unwrap(),
        other => panic!("unknown action {other}"),
    }
    say("ready");
    wait_for_the_end();
    drop(connection);
    say("done");
}

/// Commits until it is told to end; says how often, how often it met a lock, and the longest time in a row it did.
fn commit(path: &Path, option: &str) {
    let (mode, busy_timeout_ms) = option.split_once(' ').unwrap();
    let connection = Connection::open(path).unwrap();
    connection.pragma_update(None, "journal_mode", mode).unwrap();
    connection.pragma_update(None, "synchronous", "OFF").unwrap();
    rows(&connection, 3000);
    connection.busy_timeout(Duration::from_millis(busy_timeout_ms.parse().unwrap())).unwrap();
    let ended = told_to_end();
    say("ready");
    let (mut commits, mut busy, mut longest) = (0u64, 0u64, Duration::ZERO);
    let mut blocked: Option<Instant> = None;
    // Rows move between pages and the index with every commit, and between two commits the file is at rest for a
    // while: a check that begins there and believes what it reads while the next commit runs sees damage.
    const CHURN: &str = "BEGIN IMMEDIATE; DELETE FROM jobs WHERE id % 9 = abs(random()) % 9;
        INSERT INTO jobs(state, body) SELECT hex(randomblob(20)), randomblob(100 + abs(random()) % 900) FROM jobs LIMIT 400;
        COMMIT";
    while !ended.load(std::sync::atomic::Ordering::SeqCst) {
        match connection.execute_batch(CHURN) {
            Ok(()) => {
                commits += 1;
                if let Some(since) = blocked.take() {
                    longest = longest.max(since.elapsed());
                }
                std::thread::sleep(Duration::from_millis(commits % 6));
            }
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => {
                busy += 1;
                blocked.get_or_insert_with(Instant::now);
                if !connection.is_autocommit() {
                    connection.execute_batch("ROLLBACK").unwrap();
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
    let check: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    say(&format!("{commits} {busy} {}", longest.as_millis()));
}

/// Becomes another user, probes once as `doctor` does, and says the judgement.
fn probe_as(path: &Path, uid: &str) {
    let uid: u32 = uid.parse().unwrap();
    if uid != 0 {
        nix::unistd::setgroups(&[]).unwrap();
        let (group, user) = (nix::unistd::Gid::from_raw(uid), nix::unistd::Uid::from_raw(uid));
        nix::unistd::setresgid(group, group, group).unwrap();
        nix::unistd::setresuid(user, user, user).unwrap();
    }
    say(&serde_json::to_string(&probe_once(path)).unwrap());
    wait_for_the_end();
    say("done");
}

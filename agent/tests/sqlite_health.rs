//! A database that is whole and yet not well: a log that lost what was committed or that grows, rows that went away with
//! an upgrade, rows that refer to nothing, numbers beyond their bounds. With real writers and readers, living and
//! killed; and beside busy ones never a false alarm.

#![expect(
    clippy::unwrap_used,
    reason = "a test binary: a failed step ends the test, and children talk over their output"
)]

use muster_agent::probe::{Context, Probe};
use muster_agent::senses::sqlite::{CountedTable, QueryOptions, QueryProbe, SqliteOptions, SqliteProbe};
use muster_agent_core::clock::Now;
use muster_agent_core::judgement::{Judgement, Verdict};
use muster_agent_core::services::Services;
use muster_agent_core::sqlite::query::{Bounds, Number};
use muster_common::evidence::{Grade, Value};
use muster_common::ids::ServiceName;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PATH: &str = "MUSTER_TEST_PATH";
const MARK: &str = "child says: ";
/// What busy writers do again and again; more of it finds rarer accidents.
const RUNS_VARIABLE: &str = "MUSTER_SQLITE_HEALTH_RUNS";
const RUNS_DEFAULT: u64 = 200;

/// Does nothing unless a parent told it which database to open: executes each line of its input as SQL.
#[test]
fn child() {
    let Some(path) = std::env::var_os(PATH).map(PathBuf::from) else { return };
    // Whoever meets a lock goes on with something else.
    let open = || {
        let connection = Connection::open(&path).unwrap();
        connection.busy_timeout(Duration::from_millis(2)).unwrap();
        connection
    };
    let mut connection = open();
    let mut stdout = std::io::stdout();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let answer = if line == "reopen" {
            drop(connection);
            connection = open();
            Ok(())
        } else {
            connection.execute_batch(&line)
        };
        // What fails beside another writer is tried again by whoever asked for it.
        let answer = answer.map_or_else(|error| error.to_string(), |()| "ok".to_owned());
        if !connection.is_autocommit() && answer != "ok" {
            connection.execute_batch("ROLLBACK").unwrap();
        }
        writeln!(stdout, "\n{MARK}{answer}").unwrap();
        stdout.flush().unwrap();
    }
}

/// Another process that has a database open.
struct Shell {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
}

impl Shell {
    fn open(path: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--nocapture", "--test-threads=1"]).env(PATH, path);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdin, lines }
    }

    /// In WAL mode, with no checkpoints of its own.
    fn wal(path: &Path) -> Self {
        let mut shell = Self::open(path);
        shell.must("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; PRAGMA synchronous=OFF");
        shell
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn execute(&mut self, sql: &str) -> String {
        writeln!(self.stdin.as_mut().unwrap(), "{}", sql.replace('\n', " ")).unwrap();
        let mut line = String::new();
        while self.lines.read_line(&mut line).unwrap() > 0 {
            if let Some((_, answer)) = line.split_once(MARK) {
                return answer.trim().to_owned();
            }
            line.clear();
        }
        panic!("the child ended without an answer to {sql}");
    }

    fn must(&mut self, sql: &str) {
        assert_eq!(self.execute(sql), "ok", "{sql}");
    }

    /// `kill -9`: its log and its index stay as they are.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn close(mut self) {
        drop(self.stdin.take());
        self.child.wait().unwrap();
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn service() -> ServiceName {
    ServiceName::new("spl").unwrap()
}

fn context(second: u64, one_shot: bool) -> Context {
    let now = Now { boottime_ms: 1_000 * second, wall: Timestamp::from_unix_ms(0) };
    Context { now, services: Arc::new(Mutex::new(Services::default())), one_shot }
}

/// Every run looks at everything.
fn options() -> SqliteOptions {
    SqliteOptions { quick_interval: Duration::ZERO, ..SqliteOptions::default() }
}

fn probe(path: &Path, options: SqliteOptions) -> SqliteProbe {
    SqliteProbe::new(service(), path.to_owned(), options)
}

fn doctor(path: &Path) -> Judgement {
    probe(path, SqliteOptions::default()).run(&context(1, true))
}

fn reasons(judgement: &Judgement) -> Vec<&'static str> {
    judgement.problems.iter().map(|problem| problem.reason.as_str()).collect()
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

const FILL: &str = "INSERT INTO jobs(body) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 40) \
                    SELECT randomblob(900) FROM n";

/// A database that a killed writer left with a log of several transactions, none of them in the database.
fn killed(folder: &Path) -> PathBuf {
    let path = folder.join("hub.db");
    let mut writer = Shell::wal(&path);
    writer.must("CREATE TABLE jobs(id INTEGER PRIMARY KEY, body BLOB)");
    for _ in 0..8 {
        writer.must(FILL);
    }
    writer.kill();
    path
}

fn cut(path: &Path, keep_of_100: u64) {
    let wal = std::fs::OpenOptions::new().write(true).open(sibling(path, "-wal")).unwrap();
    wal.set_len(wal.metadata().unwrap().len() * keep_of_100 / 100).unwrap();
}

/// Looks for lost rows: in `doctor`, and in the second run of a daemon; changes nothing.
fn verify_loss_is_told(path: &Path) -> Judgement {
    let before = files(path.parent().unwrap());
    let told = doctor(path);
    assert_eq!(reasons(&told), ["sqlite_rows_lost"], "{told:?}");
    let mut daemon = probe(path, options());
    let first = daemon.run(&context(1, false));
    assert!(reasons(&first).is_empty(), "{first:?}");
    assert!(first.unknown.unwrap().why.contains("a second look"));
    let second = daemon.run(&context(6, false));
    assert_eq!(reasons(&second), ["sqlite_rows_lost"], "{second:?}");
    assert_eq!(files(path.parent().unwrap()), before);
    second
}

#[test]
fn a_log_that_was_cut_is_lost_rows_though_the_database_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = killed(folder.path());
    assert!(reasons(&doctor(&path)).is_empty(), "{:?}", doctor(&path));
    cut(&path, 50);
    let told = verify_loss_is_told(&path);
    let problem = &told.problems[0];
    assert_eq!(problem.grade, Grade::Confirmed);
    let count = |key: &str| match problem.evidence.get(key) {
        Some(Value::Count(count)) => *count,
        other => panic!("{key}: {other:?}"),
    };
    assert_eq!(count("frames_committed"), count("frames_kept") + count("frames_lost"));
    assert!(count("frames_lost") > 20, "{problem:?}");
    // Whoever opens it makes log and index agree again: the loss stays told, also after a restart of the agent.
    let mut daemon = probe(&path, options());
    for second in [1, 2] {
        daemon.run(&context(second, false));
    }
    let connection = Connection::open(&path).unwrap();
    let check: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok", "SQLite does not see it");
    drop(connection);
    let mut next = probe(&path, options());
    next.restore(daemon.save().unwrap());
    assert_eq!(reasons(&next.run(&context(60, false))), ["sqlite_rows_lost"]);
    assert!(reasons(&next.run(&context(4_000, false))).is_empty(), "an hour later it is old news");
}

#[test]
fn a_frame_that_was_overwritten_is_found_by_walking_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = killed(folder.path());
    let wal = sibling(&path, "-wal");
    let mut content = std::fs::read(&wal).unwrap();
    let middle = content.len() / 2;
    content[middle..middle + 64].fill(0xee);
    std::fs::write(&wal, content).unwrap();
    verify_loss_is_told(&path);
}

#[test]
fn an_index_that_claims_more_than_the_log_holds_is_a_loss() {
    let folder = tempfile::tempdir().unwrap();
    let (live, path) = (folder.path().join("live.db"), folder.path().join("copy/hub.db"));
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    let mut writer = Shell::wal(&live);
    writer.must("CREATE TABLE jobs(id INTEGER PRIMARY KEY, body BLOB)");
    for suffix in ["", "-wal"] {
        std::fs::copy(sibling(&live, suffix), sibling(&path, suffix)).unwrap();
    }
    writer.must(FILL);
    std::fs::copy(sibling(&live, "-shm"), sibling(&path, "-shm")).unwrap();
    verify_loss_is_told(&path);
    // By hand, without its checksum: SQLite would not believe it, and less is claimed.
    std::fs::copy(sibling(&live, "-wal"), sibling(&path, "-wal")).unwrap();
    assert!(reasons(&doctor(&path)).is_empty());
    let mut index = std::fs::read(sibling(&path, "-shm")).unwrap();
    for copy in [0, 48] {
        let frames = u32::from_ne_bytes(index[copy + 16..copy + 20].try_into().unwrap());
        index[copy + 16..copy + 20].copy_from_slice(&(frames + 5).to_ne_bytes());
    }
    std::fs::write(sibling(&path, "-shm"), index).unwrap();
    let told = doctor(&path);
    assert_eq!((reasons(&told), told.problems[0].grade), (vec!["sqlite_rows_lost"], Grade::Possible));
    assert_eq!(told.problems[0].severity, Some(Severity::Sev3));
}

#[test]
fn a_log_that_is_gone_as_a_whole_is_a_loss_only_if_it_was_seen_before() {
    for how in ["emptied", "removed"] {
        let folder = tempfile::tempdir().unwrap();
        let path = killed(folder.path());
        let mut watching = probe(&path, options());
        assert_eq!(watching.run(&context(1, false)).verdict(), Verdict::Ok);
        match how {
            "emptied" => cut(&path, 0),
            _ => std::fs::remove_file(sibling(&path, "-wal")).unwrap(),
        }
        let first = watching.run(&context(6, false));
        assert!(reasons(&first).is_empty(), "{how}: {first:?}");
        let second = watching.run(&context(11, false));
        assert_eq!(reasons(&second), ["sqlite_rows_lost"], "{how}: {second:?}");
        assert_eq!(second.problems[0].grade, Grade::Confirmed);
        // An index that an exclusive writer left long ago looks the same to whoever comes now.
        let mut late = probe(&path, options());
        for second in [1, 6, 11] {
            assert!(reasons(&late.run(&context(second, false))).is_empty(), "{how}");
        }
        assert_eq!(doctor(&path).problems[0].grade, Grade::Possible, "{how}");
    }
}

#[test]
fn a_log_that_is_cut_under_a_living_writer_is_told_and_one_that_was_copied_back_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    let mut writer = Shell::wal(&path);
    writer.must("CREATE TABLE jobs(id INTEGER PRIMARY KEY, body BLOB)");
    writer.must(FILL);
    writer.must("PRAGMA wal_checkpoint(PASSIVE)");
    cut(&path, 50);
    assert!(reasons(&doctor(&path)).is_empty(), "all of it is in the database");
    writer.must("PRAGMA wal_checkpoint(RESTART)");
    for _ in 0..4 {
        writer.must(FILL);
    }
    assert!(reasons(&doctor(&path)).is_empty());
    cut(&path, 50);
    assert_eq!(reasons(&doctor(&path)), ["sqlite_rows_lost"]);
}

/// What busy writers do to a log, in an order that the dice decide.
const DEEDS: &[&str] = &[
    FILL,
    FILL,
    "DELETE FROM jobs WHERE id % 3 = abs(random()) % 3",
    "PRAGMA wal_checkpoint(PASSIVE)",
    "PRAGMA wal_checkpoint(FULL)",
    "PRAGMA wal_checkpoint(RESTART)",
    "PRAGMA wal_checkpoint(TRUNCATE)",
    "PRAGMA wal_autocheckpoint=10",
    "PRAGMA wal_autocheckpoint=0",
    "PRAGMA journal_size_limit=20000",
    "PRAGMA journal_size_limit=-1",
    "PRAGMA cache_size=5; BEGIN IMMEDIATE; UPDATE jobs SET body = randomblob(700); ROLLBACK; PRAGMA cache_size=200",
    "PRAGMA cache_size=5; BEGIN IMMEDIATE; UPDATE jobs SET body = randomblob(700); COMMIT; PRAGMA cache_size=200",
    "PRAGMA journal_mode=DELETE",
    "PRAGMA journal_mode=WAL",
    "PRAGMA locking_mode=EXCLUSIVE; DELETE FROM jobs WHERE id % 50 = 0",
    "PRAGMA locking_mode=NORMAL; DELETE FROM jobs WHERE id % 50 = 1",
    "VACUUM",
    "reopen",
    "reopen",
];

fn busy(path: &Path, mut dice: u64, stop: &std::sync::atomic::AtomicBool) -> (u64, u64) {
    let mut writer = Shell::open(path);
    let (mut deeds, mut kills) = (0, 0);
    while !stop.load(std::sync::atomic::Ordering::SeqCst) {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        if dice.is_multiple_of(97) {
            writer.kill();
            writer = Shell::open(path);
            kills += 1;
        }
        let answer = writer.execute(DEEDS[usize::try_from((dice >> 11) % 20).unwrap()]);
        assert!(!answer.contains("malformed"), "a false premise: {answer}");
        deeds += u64::from(answer == "ok");
    }
    writer.close();
    (deeds, kills)
}

#[test]
fn whatever_busy_writers_do_to_the_log_no_rows_are_called_lost() {
    assert_eq!(DEEDS.len(), 20);
    let runs = std::env::var(RUNS_VARIABLE).map_or(RUNS_DEFAULT, |runs| runs.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    let mut first = Shell::wal(&path);
    first.must("CREATE TABLE jobs(id INTEGER PRIMARY KEY, body BLOB)");
    first.must(FILL);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers = [3, 7].map(|seed| {
            let (path, stop) = (&path, &stop);
            scope.spawn(move || busy(path, 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed) | 1, stop))
        });
        let mut daemon = probe(&path, SqliteOptions { lock_held_after: Duration::MAX, ..options() });
        let mut in_use = 0;
        let judgements = (0..runs).map(|run| match run % 4 {
            0 => doctor(&path),
            _ => daemon.run(&context(run, false)),
        });
        let doubtful = judgements.map(|judgement| format!("{judgement:?}")).find(|told| {
            in_use += u64::from(told.contains("write-ahead log in use"));
            told.contains("SqliteRowsLost") || told.contains("seems to lack")
        });
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        let (deeds, kills) = writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        println!("{runs} runs, {in_use} of them with a log in use; {deeds} deeds, {kills} writers killed");
        assert_eq!(doubtful, None);
        assert!(in_use > 0 && deeds > 0);
    });
}

/// A probe whose bound a few transactions reach.
fn bounded(path: &Path) -> SqliteProbe {
    probe(path, SqliteOptions { wal_max_bytes: Some(100_000), ..SqliteOptions::default() })
}

/// Lets a minute and a half pass, with work between the looks; the last look.
fn later(probe: &mut SqliteProbe, start: u64, mut between: impl FnMut()) -> Judgement {
    for second in [start, start + 30] {
        let judgement = probe.run(&context(second, false));
        assert!(reasons(&judgement).is_empty(), "not before it stays: {judgement:?}");
        between();
    }
    probe.run(&context(start + 90, false))
}

fn growth(judgement: &Judgement) -> (String, Option<Value>) {
    assert_eq!(reasons(judgement), ["sqlite_wal_growth"], "{judgement:?}");
    let evidence = &judgement.problems[0].evidence;
    (evidence.get("wal_cause").unwrap().to_string(), evidence.get("pid").cloned())
}

#[test]
fn a_log_that_a_reader_keeps_names_the_reader_and_comes_back_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    let mut writer = Shell::wal(&path);
    writer.must("CREATE TABLE jobs(id INTEGER PRIMARY KEY, body BLOB)");
    writer.must(FILL);
    let mut reader = Shell::open(&path);
    reader.must("BEGIN; SELECT count(*) FROM jobs");
    for _ in 0..5 {
        writer.must(FILL);
    }
    let mut daemon = bounded(&path);
    let told = later(&mut daemon, 0, || {
        writer.must(FILL);
        writer.must("PRAGMA wal_checkpoint(PASSIVE)");
    });
    assert_eq!(growth(&told), ("reader".to_owned(), Some(Value::Count(reader.pid().into()))));
    assert_eq!(growth(&bounded(&path).run(&context(1, true))).0, "reader", "doctor sees it at once");
    // Known across a restart of the agent: not cleared before it is known to be over.
    let mut next = bounded(&path);
    next.restore(daemon.save().unwrap());
    let first = next.run(&context(95, false));
    assert!(first.unknown.clone().unwrap().why.contains("beyond its bound"), "{first:?}");
    reader.close();
    writer.must("PRAGMA wal_checkpoint(PASSIVE)");
    let over = later(&mut daemon, 100, || {});
    assert_eq!(over.verdict(), Verdict::Ok, "left large, and empty: {over:?}");
}

#[test]
fn a_log_that_nobody_checkpoints_is_told_and_one_in_use_from_its_start_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    let mut writer = Shell::wal(&path);
    writer.must("CREATE TABLE jobs(id INTEGER PRIMARY KEY, body BLOB)");
    for _ in 0..6 {
        writer.must(FILL);
    }
    let mut daemon = bounded(&path);
    let told = later(&mut daemon, 0, || writer.must(FILL));
    assert_eq!(growth(&told), ("no_checkpoint".to_owned(), None));
    writer.must("PRAGMA wal_checkpoint(RESTART)");
    writer.must("INSERT INTO jobs(body) VALUES ('x')");
    assert!(std::fs::metadata(sibling(&path, "-wal")).unwrap().len() > 100_000);
    let over = later(&mut daemon, 100, || writer.must("INSERT INTO jobs(body) VALUES ('x')"));
    assert_eq!(over.verdict(), Verdict::Ok, "{over:?}");
}

#[test]
fn a_log_that_one_open_transaction_writes_names_the_writer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    let mut writer = Shell::wal(&path);
    writer.must("CREATE TABLE jobs(id INTEGER PRIMARY KEY, body BLOB); PRAGMA cache_size=5; BEGIN IMMEDIATE");
    for _ in 0..6 {
        writer.must(FILL);
    }
    let options = SqliteOptions {
        wal_max_bytes: Some(100_000),
        lock_held_after: Duration::from_secs(3600),
        ..SqliteOptions::default()
    };
    let told = later(&mut probe(&path, options), 0, || {
        for _ in 0..6 {
            writer.must(FILL);
        }
    });
    assert_eq!(growth(&told), ("open_transaction".to_owned(), Some(Value::Count(writer.pid().into()))));
}

fn counting(tables: &[&str]) -> SqliteOptions {
    let counted = |table: &&str| CountedTable { table: (*table).to_owned(), min_percent: 90 };
    SqliteOptions { rows: tables.iter().map(counted).collect(), ..options() }
}

fn execute(path: &Path, sql: &str) {
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

#[test]
fn free_pages_are_told_as_sqlite_counts_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    let numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) SELECT i FROM n";
    let fill = format!("INSERT INTO jobs SELECT hex(randomblob(500)) FROM ({numbers})");
    execute(&path, &format!("CREATE TABLE jobs (note); {fill}; DELETE FROM jobs"));
    let connection = Connection::open(&path).unwrap();
    let pragma = |name: &str| {
        connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, u32>(0)).map(u64::from).unwrap()
    };
    let (free, pages, page_bytes) = (pragma("freelist_count"), pragma("page_count"), pragma("page_size"));
    drop(connection);
    assert!(free > 10, "{free} of {pages}");
    let seen = doctor(&path).seen;
    assert_eq!(seen.get("free_pages_count"), Some(&Value::Count(free)));
    assert_eq!(seen.get("free_bytes"), Some(&Value::Bytes(free * page_bytes)));
    assert_eq!(seen.get("free_percent"), Some(&Value::Count(free * 100 / pages)));
}

#[test]
fn an_upgrade_that_loses_rows_is_told_with_both_numbers_and_deletes_are_not() {
    for mode in ["DELETE", "WAL"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hub.db");
        let create = "CREATE TABLE jobs(id INTEGER PRIMARY KEY, body BLOB); CREATE TABLE kept(x); INSERT INTO kept VALUES (1), (2)";
        execute(&path, &format!("PRAGMA journal_mode={mode}; PRAGMA user_version=3; {create}; {FILL}"));
        let mut daemon = probe(&path, counting(&["jobs", "kept"]));
        // Right after a write nothing proves that none followed.
        let run = |daemon: &mut SqliteProbe, second: u64| {
            std::thread::sleep(Duration::from_millis(60));
            daemon.run(&context(second, false))
        };
        let seen = run(&mut daemon, 1);
        assert_eq!(seen.verdict(), Verdict::Ok, "{mode}: {seen:?}");
        assert_eq!(seen.seen.get("rows_of_jobs"), Some(&Value::Count(40)));
        assert_eq!(seen.seen.get("user_version"), Some(&Value::Integer(3)));
        execute(&path, "DELETE FROM jobs WHERE id > 30; VACUUM");
        let deleted = run(&mut daemon, 2);
        assert!(deleted.problems.is_empty() && deleted.occurrences.is_empty(), "{mode}: {deleted:?}");
        let saved = daemon.save().unwrap();
        let mut daemon = probe(&path, counting(&["jobs", "kept"]));
        daemon.restore(saved);
        execute(&path, "PRAGMA user_version=4; DELETE FROM jobs WHERE id > 10");
        let upgraded = run(&mut daemon, 3);
        assert_eq!(reasons(&upgraded), ["sqlite_rows_lost"], "{mode}: {upgraded:?}");
        let problem = &upgraded.problems[0];
        assert!(problem.summary.contains("table \"jobs\" had 30 rows and has 10"), "{}", problem.summary);
        assert_eq!(problem.evidence.get("table_1_rows_before"), Some(&Value::Count(30)));
        let change = &upgraded.occurrences[0];
        assert_eq!(change.reason, Reason::Change);
        assert!(change.summary.contains("user_version 3 before, 4 now"), "{}", change.summary);
        execute(&path, FILL);
        let back = run(&mut daemon, 4);
        assert_eq!((back.verdict(), back.occurrences.len()), (Verdict::Ok, 0), "{mode}: {back:?}");
    }
}

#[test]
fn a_replaced_file_that_lacks_rows_is_told_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("hub.db"), folder.path().join("other.db"));
    for path in [&path, &other] {
        execute(path, &format!("CREATE TABLE jobs(id INTEGER PRIMARY KEY, body BLOB); {FILL}"));
    }
    execute(&other, "DELETE FROM jobs WHERE id > 5");
    let mut daemon = probe(&path, counting(&["jobs", "nothing"]));
    let first = daemon.run(&context(1, false));
    assert!(first.seen.get("rows_not_counted").unwrap().to_string().contains("no table \"nothing\""), "{first:?}");
    let doctor = probe(&path, counting(&["nothing"])).run(&context(1, true));
    assert!(doctor.unknown.unwrap().why.contains("no table \"nothing\""));
    std::fs::rename(&other, &path).unwrap();
    let told = daemon.run(&context(2, false));
    assert_eq!(reasons(&told), ["sqlite_replaced", "sqlite_rows_lost"], "{told:?}");
    assert!(told.problems[1].summary.contains("since the file was replaced"), "{}", told.problems[1].summary);
}

#[test]
fn rows_that_refer_to_nothing_are_told_by_table_until_they_are_mended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    execute(
        &path,
        "CREATE TABLE runs(id INTEGER PRIMARY KEY); INSERT INTO runs VALUES (1);
         CREATE TABLE findings(id INTEGER PRIMARY KEY, run REFERENCES runs(id));
         PRAGMA foreign_keys=OFF; INSERT INTO findings(run) VALUES (1), (2), (3)",
    );
    assert!(reasons(&doctor(&path)).is_empty(), "not unless it is asked");
    let asked = SqliteOptions { foreign_keys: true, ..options() };
    let mut daemon = probe(&path, asked);
    let told = daemon.run(&context(1, false));
    assert_eq!(reasons(&told), ["sqlite_foreign_keys"], "{told:?}");
    assert!(told.problems[0].summary.contains("2 of \"findings\" to \"runs\""), "{}", told.problems[0].summary);
    execute(&path, "DELETE FROM findings WHERE run > 1");
    assert_eq!(daemon.run(&context(2, false)).verdict(), Verdict::Ok);
}

fn question(sql: &str, max: i64) -> QueryOptions {
    QueryOptions {
        name: "stuck-jobs".to_owned(),
        sql: sql.to_owned(),
        bounds: Bounds { min: None, max: Some(Number::Integer(max)) },
        timeout: Duration::from_secs(5),
        severity: Some(Severity::Sev2),
        summary: Some("jobs are stuck".to_owned()),
        scratch_dir: None,
    }
}

fn ask(path: &Path, sql: &str) -> Judgement {
    QueryProbe::new(service(), path.to_owned(), question(sql, 10)).run(&context(1, true))
}

const COUNT: &str = "SELECT count(*), min(id) AS oldest FROM jobs";

#[test]
fn an_assertion_is_answered_in_every_state_that_may_be_read_and_changes_nothing() {
    type Make = fn(&Path) -> Option<Shell>;
    let scenes: [(&str, Make, Verdict); 6] = [
        (
            "live log",
            |path| {
                let mut writer = Shell::wal(path);
                writer.must(FILL);
                Some(writer)
            },
            Verdict::Problem,
        ),
        (
            "killed writer",
            |path| {
                let mut writer = Shell::wal(path);
                writer.must(FILL);
                writer.kill();
                None
            },
            Verdict::Problem,
        ),
        (
            "log without its index",
            |path| {
                let mut writer = Shell::wal(path);
                writer.must(FILL);
                writer.kill();
                std::fs::remove_file(sibling(path, "-shm")).unwrap();
                None
            },
            Verdict::Problem,
        ),
        ("at rest", |_| None, Verdict::Problem),
        (
            "a writer in a transaction",
            |path| {
                let mut writer = Shell::open(path);
                writer.must("BEGIN IMMEDIATE");
                Some(writer)
            },
            Verdict::Problem,
        ),
        (
            "held exclusively",
            |path| {
                let mut writer = Shell::open(path);
                writer.must("BEGIN EXCLUSIVE");
                Some(writer)
            },
            Verdict::Unknown,
        ),
    ];
    for (name, make, expected) in scenes {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hub.db");
        execute(&path, &format!("CREATE TABLE jobs(id INTEGER PRIMARY KEY, body BLOB); {FILL}"));
        let holder = make(&path);
        let before = files(folder.path());
        let told = ask(&path, COUNT);
        assert_eq!(told.verdict(), expected, "{name}: {told:?}");
        assert_eq!(files(folder.path()), before, "{name}");
        if expected == Verdict::Problem {
            let problem = &told.problems[0];
            assert_eq!((problem.reason, problem.severity), (Reason::QueryThreshold, Some(Severity::Sev2)));
            assert!(problem.summary.starts_with("jobs are stuck: ") && problem.summary.ends_with("at most 10 allowed"));
            assert_eq!(problem.evidence.get("row_oldest").unwrap().to_string(), "1", "{name}");
        }
        drop(holder);
    }
}

#[test]
fn rows_and_statements_lose_their_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    execute(&path, "CREATE TABLE jobs(id INTEGER PRIMARY KEY, url TEXT, token TEXT)");
    execute(&path, "INSERT INTO jobs VALUES (1, 'https://bob:hunter2@host/x', 'hunter2')");
    let sql = "SELECT count(*) + 10, url, token FROM jobs WHERE url <> 'https://eve:hunter2@host/'";
    let told = ask(&path, sql);
    let evidence = &told.problems[0].evidence;
    assert_eq!(evidence.get("row_url"), Some(&Value::Text("https://bob:***@host/x".into())));
    assert_eq!(evidence.get("row_token"), Some(&Value::Text("***".into())));
    assert!(!format!("{told:?}").contains("hunter2"), "{told:?}");
}

#[test]
fn a_command_is_one_that_a_shell_takes_whatever_the_path_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ann's hub; x.db");
    execute(&path, &format!("CREATE TABLE jobs(id INTEGER PRIMARY KEY, body BLOB); {FILL}"));
    let told = ask(&path, COUNT);
    let step = &told.problems[0].next_steps[0];
    let (_, command) = step.split_once("sqlite3 -readonly ").unwrap_or_else(|| panic!("{step}"));
    let said = Command::new("sh").args(["-c", &format!("printf %s {command}")]).output().unwrap();
    assert_eq!(String::from_utf8(said.stdout).unwrap(), path.display().to_string(), "{step}");
}

#[test]
fn what_cannot_be_answered_is_unknown_with_sqlites_own_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    execute(&path, &format!("CREATE TABLE jobs(id INTEGER PRIMARY KEY, body BLOB); {FILL}; {FILL}"));
    let before = files(folder.path());
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let sorts = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 40000) \
                 SELECT count(*) FROM (SELECT hex(zeroblob(500)) || i AS t FROM n ORDER BY t DESC LIMIT 39000)";
    for (sql, why) in [
        ("SELECT count(*) FROM absent", "no such table: absent"),
        ("SELECT 'many'", " gave no number: its first column is not a number"),
        ("SELECT NULL", " gave no number: its first column is NULL"),
        ("DELETE FROM jobs RETURNING id", "not authorized"),
        ("PRAGMA wal_checkpoint", "not authorized"),
        (endless, "it took longer than 50 ms"),
        (sorts, "temporary file"),
    ] {
        let options = QueryOptions { timeout: Duration::from_millis(50), ..question(sql, 10) };
        let options = if sql == sorts { QueryOptions { timeout: Duration::from_secs(5), ..options } } else { options };
        let told = QueryProbe::new(service(), path.clone(), options).run(&context(1, true));
        assert_eq!(told.verdict(), Verdict::Unknown, "{sql}: {told:?}");
        let told = told.unknown.unwrap().why;
        assert!(told.contains(why), "{sql}: {told}");
    }
    assert_eq!(ask(&folder.path().join("none.db"), COUNT).verdict(), Verdict::Unknown);
    assert_eq!(files(folder.path()), before);
}

#[test]
fn since_when_it_is_broken_outlives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    execute(&path, &format!("CREATE TABLE jobs(id INTEGER PRIMARY KEY, body BLOB); {FILL}"));
    let new = || QueryProbe::new(service(), path.clone(), question(COUNT, 10));
    let mut asked = new();
    asked.run(&context(100, false));
    let mut next = new();
    next.restore(asked.save().unwrap());
    let told = next.run(&context(160, false));
    assert_eq!(told.problems[0].evidence.get("broken_for_ms"), Some(&Value::Millis(60_000)));
    execute(&path, "DELETE FROM jobs WHERE id > 3");
    let over = next.run(&context(220, false));
    assert_eq!((over.verdict(), over.seen.get("value")), (Verdict::Ok, Some(&Value::Integer(3))));
}

/// Several threads of `doctor` ask the same database at once, beside a writer whose locks must not be disturbed.
#[test]
fn doctor_answers_many_questions_about_one_database_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    let mut writer = Shell::wal(&path);
    writer.must("CREATE TABLE jobs(id INTEGER PRIMARY KEY, body BLOB)");
    for _ in 0..20 {
        writer.must(FILL);
    }
    let queries: String = (0..12)
        .map(|number| format!("{{ name = \"q{number}\", sql = \"select count(*) + {number} from jobs\", max = 805 }},"))
        .collect();
    let config = folder.path().join("agent.toml");
    let enough_memory = "[memory]\napproaching = \"2B\"\ncritical = \"1B\"\n";
    let text = format!(
        "{enough_memory}[service.spl]\nsqlite = [{{ path = {path:?}, rows = [\"jobs\"], foreign_keys = true, queries = [{queries}] }}]\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster-agent"));
    let output = command.args(["doctor", "--format", "json", "--config"]).arg(&config).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |list: &str| -> Vec<String> {
        let of_database = |entry: &&serde_json::Value| entry["probe"] == "sqlite" || entry["probe"] == "query";
        let entries = report[list].as_array().unwrap().iter().filter(of_database);
        entries.map(|entry| format!("{} {}", entry["probe"], entry["subject"])).collect()
    };
    assert_eq!(of("unknown"), Vec::<String>::new(), "{report:#}");
    assert_eq!(of("findings").len(), 6, "q6 to q11 are above 805: {report:#}");
    assert_eq!(of("probes").len(), 13);
}

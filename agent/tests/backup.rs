//! The backup sense against real SQLite files and a real rotation script.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, in its helpers too")]

use muster_agent::clock;
use muster_agent::config::backup::Backup;
use muster_agent::probe::{Context, Probe};
use muster_agent::senses::HostRoot;
use muster_agent::senses::backup::{BackupOptions, BackupProbe};
use muster_agent_core::backup::pattern::Pattern;
use muster_agent_core::clock::Now;
use muster_agent_core::judgement::Judgement;
use muster_common::evidence::Value;
use muster_common::ids::ServiceName;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use rusqlite::Connection;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// One look at a time in a process: the tests take turns, so that none waits for another's.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
const DAY: Duration = Duration::from_secs(86_400);
/// Far more than a look takes; reached only when something is broken.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

struct Stage {
    folder: tempfile::TempDir,
    probe: BackupProbe,
    pattern: String,
    /// Days since the start of the test; the clock that the probe is given.
    day: u32,
    _turn: MutexGuard<'static, ()>,
}

impl Stage {
    fn new(pattern: &str) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("backup")).unwrap();
        let pattern = folder.path().join("backup").join(pattern).display().to_string();
        let probe = probe(&pattern, &folder.path().join("hub.db"));
        Self { folder, probe, pattern, day: 0, _turn: turn }
    }

    fn source(&self) -> PathBuf {
        self.folder.path().join("hub.db")
    }

    fn copy(&self, name: &str) -> PathBuf {
        self.folder.path().join("backup").join(name)
    }

    /// As if a day had passed and the copies had been made at its start.
    fn next_day(&mut self, made: &[&str]) {
        self.day += 1;
        for name in made {
            let at = SystemTime::now() + DAY * self.day;
            OpenOptions::new().write(true).open(self.copy(name)).unwrap().set_modified(at).unwrap();
        }
    }

    fn context(&self, one_shot: bool) -> Context {
        let now = clock::now();
        // Noon of the day: copies were made a while ago.
        let passed = DAY * self.day + DAY / 2;
        let boottime_ms = now.boottime_ms + u64::try_from(passed.as_millis()).unwrap();
        Context { now: Now { boottime_ms, wall: now.wall + passed }, services: Arc::default(), one_shot }
    }

    /// Runs until every copy has been looked into.
    fn run(&mut self) -> Judgement {
        loop {
            let judgement = self.probe.run(&self.context(false));
            let Some(bell) = self.probe.wake() else { return judgement };
            let rang = poll(&mut [PollFd::new(&*bell, PollFlags::IN)], Some(&PATIENCE)).unwrap();
            assert_eq!(rang, 1, "no look ended: {judgement:?}");
        }
    }

    fn restart_agent(&mut self) {
        let saved = self.probe.save().unwrap();
        self.probe = probe(&self.pattern, &self.source());
        self.probe.restore(saved);
    }
}

fn probe(pattern: &str, source: &Path) -> BackupProbe {
    let mut backup = Backup::new(Pattern::parse(pattern).unwrap());
    backup.of = Some(source.to_owned());
    backup.max_age = Some(Duration::from_secs(26 * 3600));
    BackupProbe::new(ServiceName::new("hub").unwrap(), BackupOptions::from(&backup), HostRoot::default())
}

fn database(path: &Path, rows: u32, mode: &str) {
    let connection = Connection::open(path).unwrap();
    connection.pragma_update(None, "journal_mode", mode).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE jobs (id INTEGER PRIMARY KEY, state TEXT, body BLOB); CREATE INDEX s ON jobs (state);",
        )
        .unwrap();
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
               INSERT INTO jobs SELECT i, 'state ' || i, zeroblob(200) FROM n";
    if rows > 0 {
        connection.execute(sql, [rows]).unwrap();
    }
    connection.close().unwrap();
}

fn reasons(judgement: &Judgement) -> Vec<Reason> {
    judgement.problems.iter().map(|problem| problem.reason).collect()
}

/// What people have in cron: three copies, the oldest goes.
fn rotate(stage: &Stage) {
    let script = r#"cd "$1" || exit 1
        [ -e hub.db.2 ] && mv hub.db.2 hub.db.3
        [ -e hub.db.1 ] && mv hub.db.1 hub.db.2
        cp "$2" hub.db.1"#;
    let folder = stage.folder.path().join("backup");
    let status = Command::new("sh").arg("-c").arg(script).arg("rotate").arg(folder).arg(stage.source()).status();
    assert!(status.unwrap().success());
}

#[test]
fn a_database_that_loses_a_little_each_day_is_told_beside_whole_copies() {
    let mut stage = Stage::new("hub.db.*");
    database(&stage.source(), 2_000, "delete");
    let mut told = Vec::new();
    for _ in 0..6 {
        rotate(&stage);
        stage.next_day(&["hub.db.1"]);
        told.push(stage.run());
        stage.restart_agent();
        let connection = Connection::open(stage.source()).unwrap();
        connection.execute("DELETE FROM jobs WHERE id IN (SELECT id FROM jobs ORDER BY id LIMIT 120)", []).unwrap();
    }
    let counts: Vec<usize> = told.iter().map(|judgement| judgement.problems.len()).collect();
    assert_eq!(counts, [0, 0, 0, 0, 0, 1], "2000 rows, 1880 … 1400: {told:?}");
    let problem = &told[5].problems[0];
    assert_eq!((problem.reason, problem.severity), (Reason::BackupShrunk, Some(Severity::Sev4)));
    assert!(problem.summary.contains("has 1400 rows (70 %) of the 2000 rows"), "{}", problem.summary);
    assert_eq!(told[5].seen.get("good_copies"), Some(&Value::Count(3)), "each of them is whole");
}

#[test]
fn a_rotation_that_destroys_is_told_while_good_copies_are_left() {
    let mut stage = Stage::new("hub.db.*");
    database(&stage.source(), 2_000, "delete");
    for _ in 0..3 {
        rotate(&stage);
        stage.next_day(&["hub.db.1"]);
        let judgement = stage.run();
        assert_eq!(reasons(&judgement), [], "{judgement:?}");
        stage.restart_agent();
    }
    let whole = stage.run();
    assert_eq!(whole.seen.get("rows"), Some(&Value::Count(2_000)), "{whole:?}");
    assert_eq!(whole.seen.get("good_copies"), Some(&Value::Count(3)));

    // Somebody made the database anew: it has its tables and passes every check.
    std::fs::remove_file(stage.source()).unwrap();
    database(&stage.source(), 0, "delete");
    rotate(&stage);
    stage.next_day(&["hub.db.1"]);
    stage.restart_agent();
    let told = stage.run();
    assert_eq!(reasons(&told), [Reason::BackupShrunk], "{told:?}");
    let problem = &told.problems[0];
    assert!(problem.summary.contains("holds 0 rows where the last good copy held 2000"), "{}", problem.summary);
    assert_eq!(problem.evidence.get("rotations_left"), Some(&Value::Count(2)), "{problem:?}");
    assert_eq!(problem.evidence.get("source_state"), Some(&Value::Text("shrunk".into())), "{problem:?}");
    assert_eq!(problem.evidence.get("lost_tables"), Some(&Value::Text("jobs (2000 rows)".into())));
    let good = problem.evidence.get("good_copy_1").unwrap().to_string();
    assert!(good.contains("/backup/hub.db.2 ("), "{good}");

    // The same again: one rotation later the newest good copy is the last.
    rotate(&stage);
    stage.next_day(&["hub.db.1"]);
    let later = stage.run();
    assert_eq!(later.problems[0].evidence.get("rotations_left"), Some(&Value::Count(1)), "{later:?}");
    assert_eq!(later.problems[0].evidence.get("good_copies"), Some(&Value::Count(1)), "{later:?}");

    // Restored from it, and backed up again.
    std::fs::copy(stage.copy("hub.db.3"), stage.source()).unwrap();
    rotate(&stage);
    stage.next_day(&["hub.db.1"]);
    let healed = stage.run();
    assert_eq!(reasons(&healed), [], "{healed:?}");
}

#[test]
fn one_name_overwritten_by_nothing() {
    let mut stage = Stage::new("hub.db.bak");
    database(&stage.source(), 500, "delete");
    std::fs::copy(stage.source(), stage.copy("hub.db.bak")).unwrap();
    stage.next_day(&["hub.db.bak"]);
    assert_eq!(reasons(&stage.run()), []);
    File::create(stage.source()).unwrap();
    std::fs::copy(stage.source(), stage.copy("hub.db.bak")).unwrap();
    stage.next_day(&["hub.db.bak"]);
    let told = stage.run();
    assert_eq!(reasons(&told), [Reason::BackupShrunk], "{told:?}");
    assert_eq!(told.problems[0].evidence.get("good_copies"), Some(&Value::Count(0)));
    assert_eq!(told.problems[0].evidence.get("source_state"), Some(&Value::Text("empty".into())));
}

#[test]
fn a_vacuum_is_not_told_as_a_loss() {
    let mut stage = Stage::new("hub.*.bak");
    database(&stage.source(), 4_000, "delete");
    let source = Connection::open(stage.source()).unwrap();
    source.execute_batch("UPDATE jobs SET body = zeroblob(2000); UPDATE jobs SET body = NULL").unwrap();
    std::fs::copy(stage.source(), stage.copy("hub.1.bak")).unwrap();
    stage.next_day(&["hub.1.bak"]);
    assert_eq!(reasons(&stage.run()), []);
    source.execute_batch("VACUUM").unwrap();
    std::fs::copy(stage.source(), stage.copy("hub.2.bak")).unwrap();
    let size = |name| std::fs::metadata(stage.copy(name)).unwrap().len();
    assert!(size("hub.2.bak") < size("hub.1.bak") / 3);
    stage.next_day(&["hub.2.bak"]);
    let judgement = stage.run();
    assert_eq!(reasons(&judgement), [], "{judgement:?}");
}

#[test]
fn damage_is_found_and_named() {
    let whole = tempfile::tempdir().unwrap();
    let whole = whole.path().join("hub.db");
    database(&whole, 2_000, "delete");
    let bytes = std::fs::read(&whole).unwrap();
    let mut garbled = bytes.clone();
    garbled[4096 * 20..4096 * 24].fill(0xa5);
    let mut zeroed = bytes.clone();
    zeroed[..4096].fill(0);
    let cases: [(&str, &[u8], &str); 6] = [
        ("hub.db", &garbled, "unusable: "),
        ("hub.db", &bytes[..bytes.len() / 2], "cut off"),
        ("hub.db", &zeroed, "nothing but zero bytes"),
        ("hub.db", b"mysqldump: error: 2002", "does not begin like a SQLite database"),
        ("hub.db.gz", b"mysqldump: error: 2002", "does not begin like the gzip file that its name promises"),
        ("hub.tar.zst", &[0x28, 0xb5, 0x2f, 0xfd, 0x24, 0x05, 0x29, 0, 0, b'h'], "cut off"),
    ];
    for (name, content, expected) in cases {
        // A copy is judged at its first sight as well as after a good one.
        for after_a_good_one in [false, true] {
            let mut stage = Stage::new("hub*");
            if after_a_good_one {
                std::fs::write(stage.copy("hub.1"), &bytes).unwrap();
                stage.next_day(&["hub.1"]);
                assert_eq!(reasons(&stage.run()), []);
            }
            std::fs::write(stage.copy(name), content).unwrap();
            stage.next_day(&[name]);
            let told = stage.run();
            assert_eq!(reasons(&told), [Reason::BackupCorrupt], "{name} {told:?}");
            assert!(told.problems[0].summary.contains(expected), "{}", told.problems[0].summary);
            let left = Value::Count(u64::from(after_a_good_one));
            assert_eq!(told.problems[0].evidence.get("good_copies"), Some(&left));
        }
    }
}

/// `pg_dump | gzip > d.sql.gz`, where the dump failed: whole, and empty.
#[test]
fn a_compressed_copy_of_nothing_is_no_copy() {
    const NOTHING: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x03\0\0\0\0\0\0\0\0\0";
    let mut stage = Stage::new("d.*.gz");
    std::fs::write(stage.copy("d.1.gz"), NOTHING).unwrap();
    stage.next_day(&["d.1.gz"]);
    let told = stage.run();
    assert_eq!(reasons(&told), [Reason::BackupCorrupt], "{told:?}");
    assert_eq!(told.problems[0].severity, Some(Severity::Sev1), "{told:?}");
    assert!(told.problems[0].summary.contains("it holds nothing"), "{}", told.problems[0].summary);
    // A small one, but of something; and after it the accident, seven times: nobody wants that.
    let something = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xcb\xc8\x04\0\xac*\x93\xd8\x02\0\0\0";
    std::fs::write(stage.copy("d.2.gz"), something).unwrap();
    stage.next_day(&["d.2.gz"]);
    assert_eq!(reasons(&stage.run()), []);
    for day in 3..11 {
        let name = format!("d.{day}.gz");
        std::fs::write(stage.copy(&name), NOTHING).unwrap();
        stage.next_day(&[&name]);
        let told = stage.run();
        assert_eq!(reasons(&told), [Reason::BackupShrunk], "{day}: {told:?}");
        let summary = &told.problems[0].summary;
        assert!(summary.contains("it holds nothing (gzip of 20 B)"), "{summary}");
        assert_eq!(told.problems[0].evidence.get("empty"), Some(&Value::Flag(true)), "{told:?}");
    }
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let mut stage = Stage::new("disk/daily/hub.*");
    let missing = stage.folder.path().join("backup/disk").display().to_string();
    let told = stage.run();
    assert_eq!(reasons(&told), [Reason::BackupMissing]);
    let problem = &told.problems[0];
    assert!(problem.summary.contains(&format!("there is no folder {missing}")), "{}", problem.summary);
    assert_eq!(problem.evidence.get("missing_folder"), Some(&Value::Text(missing.clone())));
    assert!(problem.next_steps[0].contains(&missing), "{problem:?}");
    // The folder is there and empty: then the job is the first suspect.
    std::fs::create_dir_all(stage.copy("disk/daily")).unwrap();
    let told = stage.run();
    assert_eq!(reasons(&told), [Reason::BackupMissing]);
    assert!(!told.problems[0].summary.contains("no folder"), "{told:?}");
    assert_eq!(told.problems[0].evidence.get("missing_folder"), None);
    // A file in its place is no folder.
    std::fs::remove_dir(stage.copy("disk/daily")).unwrap();
    std::fs::write(stage.copy("disk/daily"), "").unwrap();
    let told = stage.run();
    assert!(told.problems[0].summary.contains(&format!("there is no folder {missing}/daily")), "{told:?}");
}

#[test]
fn what_is_just_being_written_waits() {
    let mut stage = Stage::new("hub.*");
    database(&stage.source(), 1_000, "delete");
    let bytes = std::fs::read(stage.source()).unwrap();
    std::fs::write(stage.copy("hub.1"), &bytes).unwrap();
    stage.next_day(&["hub.1"]);
    assert_eq!(reasons(&stage.run()), []);
    // Half of it, this moment; and a name that says so itself.
    let at_noon = SystemTime::now() + DAY * stage.day + DAY / 2;
    for name in ["hub.2", "hub.3.tmp"] {
        std::fs::write(stage.copy(name), &bytes[..bytes.len() / 2]).unwrap();
        OpenOptions::new().write(true).open(stage.copy(name)).unwrap().set_modified(at_noon).unwrap();
    }
    let context = stage.context(true);
    let judgement = stage.probe.run(&context);
    assert_eq!(reasons(&judgement), [], "{judgement:?}");
    assert_eq!(judgement.seen.get("being_written"), Some(&Value::Count(2)), "{judgement:?}");
    std::fs::write(stage.copy("hub.2"), &bytes).unwrap();
    stage.next_day(&["hub.2"]);
    let judgement = stage.run();
    assert_eq!(reasons(&judgement), [], "{judgement:?}");
    assert_eq!(judgement.seen.get("good_copies"), Some(&Value::Count(2)), "{judgement:?}");
}

#[test]
fn doctor_judges_at_once_and_leaves_no_trace() {
    let mut stage = Stage::new("hub.*");
    database(&stage.source(), 1_000, "wal");
    // Cleanly closed, in WAL mode: SQLite would make -wal and -shm beside it.
    for name in ["hub.1", "hub.2"] {
        std::fs::copy(stage.source(), stage.copy(name)).unwrap();
        stage.next_day(&[name]);
    }
    std::fs::write(stage.copy("hub.3"), "").unwrap();
    stage.next_day(&["hub.3"]);
    let context = stage.context(true);
    let told = stage.probe.run(&context);
    assert_eq!(reasons(&told), [Reason::BackupShrunk], "{told:?}");
    let mut names: Vec<String> = std::fs::read_dir(stage.folder.path().join("backup"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["hub.1", "hub.2", "hub.3"]);
}

#[test]
fn stale_and_missing() {
    let mut stage = Stage::new("hub.*");
    assert_eq!(reasons(&stage.run()), [Reason::BackupMissing]);
    database(&stage.source(), 10, "delete");
    std::fs::copy(stage.source(), stage.copy("hub.1")).unwrap();
    stage.next_day(&["hub.1"]);
    assert_eq!(reasons(&stage.run()), []);
    stage.next_day(&[]);
    assert_eq!(reasons(&stage.run()), [Reason::BackupStale]);
    std::fs::remove_file(stage.copy("hub.1")).unwrap();
    let gone = stage.run();
    assert_eq!(reasons(&gone), [Reason::BackupMissing]);
    assert!(gone.problems[0].summary.contains("the last good copy was"), "{gone:?}");
}

#[test]
fn a_fifo_that_fits_is_not_opened() {
    let mut stage = Stage::new("hub.*");
    rustix::fs::mkfifoat(rustix::fs::CWD, stage.copy("hub.1"), rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
        .unwrap();
    assert_eq!(reasons(&stage.run()), [Reason::BackupMissing]);
}

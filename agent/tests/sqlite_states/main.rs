//! Every state a database can be in, probed as root, as its owner and as nobody, under Landlock and on a read-only
//! mount: the answer is right, and not one byte beside it changes.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test binary: a failed step ends the test, and skips are said"
)]

mod churn;
mod live;
mod support;

use muster_agent::probe::{Context, Probe, Remembered};
use muster_agent::senses::sqlite::{CountedTable, SqliteOptions, SqliteProbe};
use muster_agent_core::clock::Now;
use muster_agent_core::judgement::{Judgement, Verdict};
use muster_common::evidence::Value;
use muster_common::time::Timestamp;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Role, context, files, is_root, probe_once, probe_once_as, reasons, service, write_long_ago};
use tempfile::TempDir;

const OWNER: u32 = 1000;
const NOBODY: u32 = 65_534;

#[test]
fn child() {
    support::child_main();
}

/// The states of a database, as a scene: a folder, the database in it, and who holds it.
struct Scene {
    folder: TempDir,
    name: &'static str,
    holder: Option<Role>,
    expected: &'static [&'static str],
}

impl Scene {
    fn new(name: &'static str, option: &str, expected: &'static [&'static str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (holder, _) = Role::start("hold", &folder.path().join("hub.db"), option);
        Self { folder, name, holder: Some(holder), expected }
    }

    fn database(&self) -> PathBuf {
        self.folder.path().join("hub.db")
    }

    fn kill(mut self) -> Self {
        self.holder.take().unwrap().kill();
        self
    }

    /// Owned by [`OWNER`], readable by all.
    fn hand_over(self) -> Self {
        std::fs::set_permissions(self.folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        if is_root() {
            chown(self.folder.path(), Some(OWNER), Some(OWNER)).unwrap();
            for name in files(self.folder.path()).keys() {
                chown(self.folder.path().join(name), Some(OWNER), Some(OWNER)).unwrap();
            }
        }
        self
    }

    fn verify(&self, judgement: &Judgement, who: &str) {
        let place = format!("{} as {who}: {judgement:?}", self.name);
        assert_eq!(reasons(judgement), self.expected, "{place}");
        if self.expected.is_empty() {
            assert_eq!(judgement.verdict(), Verdict::Ok, "{place}");
        }
    }
}

fn scenes() -> Vec<Scene> {
    let live = Scene::new("live WAL", "WAL idle", &[]);
    let killed = Scene::new("writer killed, -wal and -shm left", "WAL idle", &[]).kill();
    let alone = Scene::new("-wal without -shm", "WAL idle", &[]).kill();
    std::fs::remove_file(alone.folder.path().join("hub.db-shm")).unwrap();
    let mut closed = Scene::new("cleanly closed WAL", "WAL idle", &[]);
    closed.holder.take().unwrap().end();
    let hot = Scene::new("hot journal", "DELETE spilled", &["sqlite_journal_hot"]).kill();
    let rollback = Scene::new("rollback mode with a writer", "DELETE reserved", &[]);
    let mut at_rest = Scene::new("rollback mode at rest", "DELETE idle", &[]);
    at_rest.holder.take().unwrap().end();
    [live, killed, alone, closed, hot, rollback, at_rest].into_iter().map(Scene::hand_over).collect()
}

#[test]
fn every_state_is_judged_and_nothing_changes_whoever_asks() {
    for scene in scenes() {
        let before = files(scene.folder.path());
        scene.verify(&probe_once(&scene.database()), "the user of this test");
        assert!(files(scene.folder.path()) == before, "{}: files changed", scene.name);
        if !is_root() {
            println!("skipped: other users, this test does not run as root");
            continue;
        }
        for uid in [0, OWNER, NOBODY] {
            scene.verify(&probe_once_as(uid, &scene.database()), &uid.to_string());
            assert!(files(scene.folder.path()) == before, "{} as {uid}: files changed", scene.name);
        }
    }
}

#[test]
fn every_state_is_judged_on_a_read_only_mount() {
    const MOUNT: &str = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";
    let works = Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|status| status.success());
    if !is_root() || !works {
        println!("skipped: no private mount namespace can be made here");
        return;
    }
    for scene in scenes() {
        let before = files(scene.folder.path());
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", MOUNT]).arg(scene.folder.path()).arg(std::env::current_exe().unwrap());
        let (role, word) = Role::start_with(command, "probe", &scene.database(), "0");
        role.end();
        scene.verify(&serde_json::from_str(&word).unwrap(), "root on a read-only mount");
        assert!(files(scene.folder.path()) == before, "{}: files changed", scene.name);
    }
}

#[test]
fn a_held_lock_is_named_and_clears_when_it_is_released() {
    for (option, lock) in
        [("DELETE exclusive", "EXCLUSIVE"), ("DELETE reserved", "RESERVED"), ("WAL reserved", "WAL write lock")]
    {
        let scene = Scene::new("lock", option, &[]);
        let mut probe = SqliteProbe::new(service(), scene.database(), SqliteOptions::default());
        let first = probe.run(&context(1_000, false));
        assert!(reasons(&first).is_empty(), "held since now only");
        if lock == "EXCLUSIVE" {
            let pid = scene.holder.as_ref().unwrap().pid();
            let unknown = first.unknown.unwrap();
            assert_eq!(unknown.why, format!("the database is locked exclusively by pid {pid}"));
            assert!(unknown.way_out.unwrap().contains(&format!("ps -fp {pid};")));
        }
        let judgement = probe.run(&context(12_000, false));
        assert_eq!(reasons(&judgement), ["sqlite_lock_held"], "{judgement:?}");
        let evidence = &judgement.problems[0].evidence;
        let pid = u64::from(scene.holder.as_ref().unwrap().pid());
        assert_eq!(evidence.get("holder_pid"), Some(&muster_common::evidence::Value::Count(pid)));
        assert_eq!(evidence.get("lock"), Some(&muster_common::evidence::Value::Text(lock.to_owned())));
        scene.holder.unwrap().end();
        assert_eq!(probe.run(&context(13_000, false)).verdict(), Verdict::Ok);
    }
}

#[test]
fn what_is_not_a_database_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    assert_eq!(reasons(&probe_once(&at("nothing.db"))), ["sqlite_missing"]);
    std::fs::create_dir(at("folder.db")).unwrap();
    assert_eq!(reasons(&probe_once(&at("folder.db"))), ["sqlite_not_a_database"]);
    assert!(Command::new("mkfifo").arg(at("fifo.db")).status().unwrap().success());
    assert_eq!(reasons(&probe_once(&at("fifo.db"))), ["sqlite_not_a_database"]);
    let _socket = std::os::unix::net::UnixListener::bind(at("socket.db")).unwrap();
    assert_eq!(reasons(&probe_once(&at("socket.db"))), ["sqlite_not_a_database"]);
    std::fs::write(at("text.db"), "not a database at all").unwrap();
    assert_eq!(reasons(&probe_once(&at("text.db"))), ["sqlite_not_a_database"]);
    std::fs::write(at("empty.db"), "").unwrap();
    let empty = probe_once(&at("empty.db"));
    assert!(empty.problems.is_empty() && empty.unknown.as_ref().unwrap().why.contains("it has 0 bytes"), "{empty:?}");
    let rows = vec![CountedTable { table: "jobs".to_owned(), min_percent: 50 }];
    let named = |one_shot| {
        let options = SqliteOptions { rows: rows.clone(), ..SqliteOptions::default() };
        SqliteProbe::new(service(), at("empty.db"), options).run(&context(1_000, one_shot))
    };
    assert_eq!(reasons(&named(true)), ["sqlite_shrunk"]);
    assert!(named(false).problems.is_empty(), "the daemon sees new ones before their first table");
}

#[test]
fn without_permission_it_is_unknown_with_the_way_out() {
    if !is_root() {
        println!("skipped: needs root to become nobody");
        return;
    }
    let mut scene = Scene::new("closed", "DELETE idle", &[]);
    scene.holder.take().unwrap().end();
    let scene = scene.hand_over();
    std::fs::set_permissions(scene.database(), std::fs::Permissions::from_mode(0o600)).unwrap();
    let judgement = probe_once_as(NOBODY, &scene.database());
    assert_eq!(judgement.verdict(), Verdict::Unknown);
    assert!(judgement.unknown.unwrap().way_out.unwrap().contains("CAP_DAC_READ_SEARCH"));
}

#[test]
fn a_replaced_an_emptied_and_a_truncated_file_are_told_apart() {
    let mut scene = Scene::new("closed", "DELETE idle", &[]);
    scene.holder.take().unwrap().end();
    let path = scene.database();
    let mut probe = SqliteProbe::new(service(), path.clone(), SqliteOptions::default());
    assert_eq!(probe.run(&context(1_000, false)).verdict(), Verdict::Ok);
    let mut next = SqliteProbe::new(service(), path.clone(), SqliteOptions::default());
    next.restore(probe.save().unwrap());
    let content = std::fs::read(&path).unwrap();
    std::fs::write(path.with_extension("new"), &content).unwrap();
    std::fs::rename(path.with_extension("new"), &path).unwrap();
    assert_eq!(reasons(&next.run(&context(2_000, false))), ["sqlite_replaced"]);
    assert_eq!(next.run(&context(3_600_000, false)).verdict(), Verdict::Ok, "it clears after a check and a while");
    write_long_ago(&path, &content[..content.len() - 8192]);
    let truncated = reasons(&next.run(&context(7_200_000, false)));
    assert_eq!(truncated, ["sqlite_corrupt", "sqlite_shrunk"]);
    std::fs::write(&path, "").unwrap();
    assert_eq!(reasons(&next.run(&context(7_300_000, false))), ["sqlite_shrunk"]);
    std::fs::write(&path, &content).unwrap();
    assert_eq!(next.run(&context(7_400_000, false)).verdict(), Verdict::Ok);
}

#[test]
fn damage_names_the_index_and_clears_after_a_repair() {
    let mut scene = Scene::new("closed", "DELETE idle", &[]);
    scene.holder.take().unwrap().end();
    let path = scene.database();
    let healthy = std::fs::read(&path).unwrap();
    let connection = rusqlite::Connection::open(&path).unwrap();
    let root: usize = connection
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'jobs_by_state'", [], |row| row.get::<_, i64>(0))
        .unwrap()
        .try_into()
        .unwrap();
    drop(connection);
    let mut broken = healthy.clone();
    broken[(root - 1) * 4096..][..64].fill(0xff);
    write_long_ago(&path, &broken);
    let mut probe = SqliteProbe::new(service(), path.clone(), SqliteOptions::default());
    let judgement = probe.run(&context(1_000, false));
    assert_eq!(reasons(&judgement), ["sqlite_corrupt"], "{judgement:?}");
    assert!(judgement.problems[0].summary.contains("jobs_by_state"), "{judgement:?}");
    assert_eq!(reasons(&probe.run(&context(2_000, false))), ["sqlite_corrupt"], "a skip keeps what is known");
    std::fs::write(&path, &healthy).unwrap();
    assert_eq!(probe.run(&context(3_000, false)).verdict(), Verdict::Ok);
}

#[test]
fn a_deep_check_runs_on_a_copy_and_leaves_nothing() {
    for option in ["WAL idle", "DELETE idle"] {
        let scene = Scene::new("deep", option, &[]);
        let scratch = tempfile::tempdir().unwrap();
        let before = files(scene.folder.path());
        let options = SqliteOptions { scratch_dir: Some(scratch.path().to_owned()), ..SqliteOptions::default() };
        let mut probe = SqliteProbe::new(service(), scene.database(), options);
        let mut at = 1_000;
        let judgement = loop {
            let judgement = probe.run(&context(at, false));
            if judgement.seen.get("deep_check_age_ms").is_some() {
                break judgement;
            }
            assert!(at < 100_000, "no deep check: {judgement:?}");
            at += 1;
        };
        assert_eq!(judgement.verdict(), Verdict::Ok, "{judgement:?}");
        assert!(files(scene.folder.path()) == before);
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_deep_check_that_came_due_while_the_host_was_down_runs_soon_after_the_boot() {
    const DAY_MS: i64 = 86_400_000;
    let scene = Scene::new("deep", "DELETE idle", &[]);
    let scratch = tempfile::tempdir().unwrap();
    let options = || SqliteOptions { scratch_dir: Some(scratch.path().to_owned()), ..SqliteOptions::default() };
    let at = |up_minutes: u64, wall_ms: i64| {
        let context = context(up_minutes * 60_000, false);
        Context { now: Now { wall: Timestamp::from_unix_ms(wall_ms), ..context.now }, ..context }
    };
    let age = |judgement: &Judgement| match judgement.seen.get("deep_check_age_ms") {
        Some(Value::Millis(age)) => Some(*age),
        _ => None,
    };
    let mut probe = SqliteProbe::new(service(), scene.database(), options());
    let checked = |probe: &mut SqliteProbe, at: &Context| {
        let start = Instant::now();
        while age(&probe.run(at)) != Some(0) {
            assert!(start.elapsed() < Duration::from_secs(60), "no deep check has ended");
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    checked(&mut probe, &at(2, DAY_MS));
    let saved = probe.save().unwrap();
    // The same boot: a restart of the agent alone.
    let mut probe = SqliteProbe::new(service(), scene.database(), options());
    probe.restore(saved.clone());
    assert_eq!(age(&probe.run(&at(3, DAY_MS))), Some(60_000));

    // Another boot, three days later.
    let mut saved = saved.read::<serde_json::Value>().unwrap();
    saved["boot"] = serde_json::json!("5eb7d0a2-0000-4000-8000-000000000000");
    let mut probe = SqliteProbe::new(service(), scene.database(), options());
    probe.restore(Remembered::of(saved).unwrap());
    for up_minutes in [3, 9] {
        let judgement = probe.run(&at(up_minutes, 4 * DAY_MS));
        assert_eq!(judgement.seen.get("deep_check"), None, "the host boots: {judgement:?}");
        assert_eq!(age(&judgement), Some(3 * 86_400_000));
    }
    checked(&mut probe, &at(31, 4 * DAY_MS));
}

#[test]
fn damage_in_a_file_that_may_just_be_written_is_told_when_two_runs_saw_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    // A writer that holds its lock: the damage cannot be read without anybody beside it.
    let (holder, _) = Role::start("hold", &path, "DELETE reserved");
    let healthy = std::fs::read(&path).unwrap();
    let mut broken = healthy.clone();
    broken[2 * 4096..][..64].fill(0xff);
    write_over(&path, &broken);
    let options = SqliteOptions { quick_interval: Duration::ZERO, ..SqliteOptions::default() };
    let mut probe = SqliteProbe::new(service(), path.clone(), options);
    let first = probe.run(&context(1_000, false));
    assert_eq!(first.verdict(), Verdict::Unknown, "{first:?}");
    assert!(first.unknown.unwrap().why.contains("a second check has to confirm"));
    assert_eq!(reasons(&probe.run(&context(2_000, false))), ["sqlite_corrupt"]);
    assert_eq!(reasons(&probe_once(&path)), ["sqlite_corrupt"], "doctor looks twice at once");

    write_over(&path, &healthy);
    assert_eq!(probe.run(&context(3_000, false)).verdict(), Verdict::Ok);
    write_over(&path, &broken);
    assert_eq!(probe.run(&context(4_000, false)).verdict(), Verdict::Unknown);
    write_over(&path, &healthy);
    let judgement = probe.run(&context(5_000, false));
    assert_eq!(judgement.verdict(), Verdict::Ok, "what only one run saw is no damage");
    assert_eq!(judgement.seen.get("unconfirmed_damage_count"), Some(&muster_common::evidence::Value::Count(1)));
    holder.end();
}

/// Writes into the file that is there, as a disk or a stray program would.
fn write_over(path: &Path, content: &[u8]) {
    use std::os::unix::fs::FileExt;
    std::fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(content, 0).unwrap();
}

#[test]
fn a_much_smaller_database_over_it_is_told_from_a_vacuum() {
    let folder = tempfile::tempdir().unwrap();
    let (path, small) = (folder.path().join("hub.db"), folder.path().join("small.db"));
    let connection = rusqlite::Connection::open(&path).unwrap();
    support::rows(&connection, 2_000);
    rusqlite::Connection::open(&small).unwrap().execute_batch("CREATE TABLE jobs(id)").unwrap();
    let mut probe = SqliteProbe::new(service(), path.clone(), SqliteOptions::default());
    let before = std::fs::metadata(&path).unwrap().len();
    assert_eq!(probe.run(&context(1_000, false)).verdict(), Verdict::Ok);
    connection.execute_batch("DELETE FROM jobs WHERE id > 300; VACUUM").unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() < before / 2);
    assert_eq!(probe.run(&context(400_000, false)).verdict(), Verdict::Ok, "somebody deleted rows and packed it");
    drop(connection);
    let kept = std::fs::read(&path).unwrap();
    std::fs::write(&path, std::fs::read(&small).unwrap()).unwrap();
    let judgement = probe.run(&context(800_000, false));
    assert_eq!(reasons(&judgement), ["sqlite_shrunk"], "{judgement:?}");
    std::fs::write(&path, &kept).unwrap();
    assert_eq!(probe.run(&context(1_200_000, false)).verdict(), Verdict::Ok, "it came back");
    std::fs::write(&path, std::fs::read(&small).unwrap()).unwrap();
    let mut next = SqliteProbe::new(service(), path.clone(), SqliteOptions::default());
    next.restore(probe.save().unwrap());
    assert_eq!(reasons(&next.run(&context(1_600_000, false))), ["sqlite_shrunk"], "remembered over a restart");
    assert_eq!(next.run(&context(4_000_000, false)).verdict(), Verdict::Ok, "it clears after a check and a while");
}

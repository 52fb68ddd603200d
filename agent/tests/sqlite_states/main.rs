//! Every state a database can be in, probed as root, as its owner and as nobody, under Landlock and on a read-only
//! mount: the answer is right, and not one byte beside it changes.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test binary: a failed step ends the test, and skips are said"
)]

mod live;
mod support;

use muster_agent::probe::Probe;
use muster_agent::senses::sqlite::{SqliteOptions, SqliteProbe};
use muster_agent_core::judgement::{Judgement, Verdict};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{Role, context, files, is_root, probe_once, probe_once_as, reasons, service};
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
        assert!(reasons(&probe.run(&context(1_000, false))).is_empty(), "held since now only");
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
    assert_eq!(probe_once(&at("empty.db")).verdict(), Verdict::Ok);
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
    std::fs::write(&path, &content[..content.len() - 8192]).unwrap();
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
    std::fs::write(&path, &broken).unwrap();
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
fn what_does_not_fit_is_checked_table_by_table_and_damage_is_found_there_too() {
    const TABLES: u32 = 40;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    for number in 0..TABLES {
        let sql = format!(
            "CREATE TABLE t{number}(body);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
             INSERT INTO t{number} SELECT randomblob(400) FROM n"
        );
        connection.execute_batch(&sql).unwrap();
    }
    let root = |name: &str| {
        let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
        usize::try_from(connection.query_row(sql, [name], |row| row.get::<_, i64>(0)).unwrap()).unwrap()
    };
    let last = root("t39");
    drop(connection);
    let options = SqliteOptions { quick_bound: std::time::Duration::from_millis(40), ..SqliteOptions::default() };
    let mut probe = SqliteProbe::new(service(), path.clone(), options.clone());
    let first = probe.run(&context(1_000, false));
    assert_eq!(first.verdict(), Verdict::Unknown, "not all of it has been covered: {first:?}");
    let rest = (1..10_000).map(|run| probe.run(&context(1_000 + run, false)));
    let done = rest.into_iter().find(|judgement| judgement.verdict() != Verdict::Unknown).unwrap();
    assert_eq!(done.verdict(), Verdict::Ok, "{done:?}");

    let mut content = std::fs::read(&path).unwrap();
    content[(last - 1) * 4096..][..64].fill(0xff);
    std::fs::write(&path, &content).unwrap();
    let mut probe = SqliteProbe::new(service(), path, options);
    let mut runs = (1..10_000).map(|run| probe.run(&context(1_000 + run, false)));
    let found = runs.find(|judgement| judgement.verdict() != Verdict::Unknown).unwrap();
    assert_eq!(reasons(&found), ["sqlite_corrupt"], "{found:?}");
    assert!(found.problems[0].summary.contains("t39"), "{found:?}");
}

#[test]
fn every_corrupt_image_is_reported_and_stays_as_it_is() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/corrupt-sqlite");
    if !folder.is_dir() {
        println!("skipped: {} is missing", folder.display());
        return;
    }
    let before = files(&folder);
    let mut missed = Vec::new();
    for name in before.keys().filter(|name| name.ends_with(".db")) {
        let judgement = probe_once(&folder.join(name));
        let found = reasons(&judgement);
        if !found.contains(&"sqlite_corrupt") && !found.contains(&"sqlite_not_a_database") {
            missed.push(format!("{name}: {judgement:?}"));
        }
        assert!(!format!("{judgement:?}").contains("longer than its bound"), "{name}: {judgement:?}");
    }
    assert!(files(&folder) == before, "a fixture or a sibling changed");
    assert!(missed.is_empty(), "{} missed:\n{}", missed.len(), missed.join("\n"));
}

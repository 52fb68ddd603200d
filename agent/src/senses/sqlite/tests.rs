//! The probe from within: what it may open where, and what it remembers.

use super::*;
use crate::sandbox::Enforcement;
use muster_agent_core::judgement::Verdict;
use muster_common::evidence::Value;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::sync::Arc;

#[test]
fn what_is_saved_comes_back_and_nonsense_is_ignored() {
    let new = || SqliteProbe::new(ServiceName::host(), PathBuf::from("/x.db"), SqliteOptions::default());
    let mut probe = new();
    probe.memory.inode = Some(7);
    let mut next = new();
    next.restore(probe.save().unwrap());
    assert_eq!(next.memory, probe.memory);
    next.restore(Remembered::of("nonsense").unwrap());
    assert_eq!(next.memory.inode, Some(7));
}

/// Runs `work` on the thread that a probe runs on; `None` where the kernel has no Landlock.
fn on_the_probes_thread<T: Send>(work: impl FnOnce(&Ground) -> T + Send) -> Option<T> {
    let answer = on_restricted_thread(None, |ground| {
        let enforced = ground.sandbox.as_ref().is_some_and(|sandbox| sandbox.enforcement != Enforcement::None);
        enforced.then(|| work(ground))
    });
    let answer = answer.unwrap();
    if answer.is_none() {
        println!("skipped: this kernel has no Landlock");
    }
    answer
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// A WAL database as a killed writer leaves it: whoever opens it without care rewrites the -shm, checkpoints the -wal
/// and deletes both.
fn left_by_a_killed_writer(folder: &Path) -> PathBuf {
    let (live, left) = (folder.join("live.db"), folder.join("hub.db"));
    let writer = rusqlite::Connection::open(&live).unwrap();
    writer.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE jobs(id); INSERT INTO jobs VALUES (1)").unwrap();
    for suffix in ["", "-wal", "-shm"] {
        std::fs::copy(files::sibling(&live, suffix), files::sibling(&left, suffix)).unwrap();
    }
    drop(writer);
    std::fs::remove_file(live).unwrap();
    left
}

/// What a careless probe would do: a connection that may write.
fn careless(path: &Path) -> rusqlite::Result<i64> {
    let connection = rusqlite::Connection::open(path)?;
    connection.execute_batch("INSERT INTO jobs VALUES (2)")?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
}

#[test]
fn on_the_probes_thread_even_a_careless_connection_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = left_by_a_killed_writer(folder.path());
    let before = files(folder.path());
    let Some(answer) = on_the_probes_thread(|_| careless(&path).map_err(|error| error.to_string())) else { return };
    assert!(answer.is_err(), "{answer:?}");
    assert_eq!(files(folder.path()), before);
    careless(&path).unwrap();
    assert_ne!(files(folder.path()), before, "on another thread the same connection changes them");
}

#[test]
fn on_the_probes_thread_nothing_is_created_written_cut_renamed_or_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    std::fs::write(&path, b"content").unwrap();
    let before = files(folder.path());
    type Deed = (&'static str, fn(&Path) -> std::io::Result<()>);
    let deeds: [Deed; 8] = [
        ("create", |path| std::fs::File::create_new(files::sibling(path, "-wal")).map(drop)),
        ("write", |path| OpenOptions::new().write(true).open(path).map(drop)),
        ("append", |path| OpenOptions::new().append(true).open(path).map(drop)),
        ("cut while opening", |path| OpenOptions::new().write(true).truncate(true).open(path).map(drop)),
        ("cut by its path", |path| Ok(nix::unistd::truncate(path, 1)?)),
        ("delete", |path| std::fs::remove_file(path)),
        ("rename", |path| std::fs::rename(path, files::sibling(path, "-old"))),
        ("link", |path| std::fs::hard_link(path, files::sibling(path, "-link"))),
    ];
    let refused = on_the_probes_thread(|ground| {
        let newest = ground.sandbox.as_ref().is_some_and(|sandbox| sandbox.enforcement == Enforcement::Full);
        for (name, deed) in deeds {
            // Kernels before Landlock's third version know no right to truncate by path.
            if newest || name != "cut by its path" {
                assert!(deed(&path).is_err(), "the kernel let a probe {name}");
            }
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"content", "reading is allowed");
    });
    if refused.is_some() {
        assert_eq!(files(folder.path()), before);
    }
}

#[test]
fn the_thread_of_the_deep_check_is_restricted_but_for_its_scratch_folder() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = left_by_a_killed_writer(folder.path());
    let before = files(folder.path());
    let (theirs, mine) = (path.clone(), scratch.path().join("copy"));
    let thread = sandbox::spawn_database_thread("test", vec![scratch.path().to_owned()], move |sandbox| {
        let enforced = sandbox.is_ok_and(|sandbox| sandbox.enforcement != Enforcement::None);
        enforced.then(|| (careless(&theirs).is_err(), std::fs::write(mine, b"copy").is_ok()))
    });
    let Some(answer) = thread.unwrap().join().unwrap() else {
        println!("skipped: this kernel has no Landlock");
        return;
    };
    assert_eq!(answer, (true, true));
    assert_eq!(files(folder.path()), before);
}

fn context(boottime_ms: u64, one_shot: bool) -> Context {
    let now = Now { boottime_ms, wall: muster_common::time::Timestamp::from_unix_ms(0) };
    Context { now, services: Arc::default(), one_shot }
}

#[test]
fn without_the_kernel_holding_it_back_sqlite_opens_nothing_it_could_write() {
    let folder = tempfile::tempdir().unwrap();
    let path = left_by_a_killed_writer(folder.path()).canonicalize().unwrap();
    let before = files(folder.path());
    let ground = |enforcement, writable: &[PathBuf]| Ground {
        sandbox: Some(SandboxState { enforcement, writable: writable.to_vec() }),
        scratch: None,
    };
    assert!(ground(Enforcement::Full, &[]).allows(&path));
    assert!(ground(Enforcement::Partial, &[]).allows(&path));
    let around = [path.parent().unwrap().to_owned()];
    let unheld =
        [ground(Enforcement::None, &[]), ground(Enforcement::Full, &around), Ground { sandbox: None, scratch: None }];
    for ground in unheld {
        let mut probe = SqliteProbe::new(ServiceName::host(), path.clone(), SqliteOptions::default());
        let judgement = probe.examine(&context(1_000, true), &ground);
        assert_eq!(judgement.verdict(), Verdict::Unknown, "{judgement:?}");
        assert!(judgement.unknown.unwrap().way_out.unwrap().contains("Landlock"));
        assert_eq!(files(folder.path()), before);
    }
}

/// A database of `tables` tables whose files times prove that nobody writes.
fn tables(folder: &Path, tables: u32) -> (PathBuf, Vec<usize>) {
    let path = folder.join("hub.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    for number in 0..tables {
        let sql = format!("CREATE TABLE t{number}(body); INSERT INTO t{number} VALUES (zeroblob(9000))");
        connection.execute_batch(&sql).unwrap();
    }
    let mut roots = connection.prepare("SELECT rootpage FROM sqlite_schema ORDER BY rowid").unwrap();
    let roots = roots.query_map([], |row| row.get::<_, i64>(0)).unwrap();
    (path, roots.map(|root| usize::try_from(root.unwrap()).unwrap()).collect())
}

/// A probe that goes table by table, with time for everything.
fn rotating(path: &Path) -> SqliteProbe {
    let plenty = Duration::from_secs(3600);
    let options = SqliteOptions { quick_interval: Duration::ZERO, quick_bound: plenty, ..SqliteOptions::default() };
    let mut probe = SqliteProbe::new(ServiceName::host(), path.to_owned(), options);
    by_table(&mut probe);
    probe
}

/// As if the whole file had not fitted in a run.
fn by_table(probe: &mut SqliteProbe) {
    probe.rotation.too_large_whole = Some((0, Duration::MAX));
}

/// Writes the file as if long ago, so that a check without a lock proves something.
fn write_long_ago(path: &Path, content: &[u8]) {
    std::fs::write(path, content).unwrap();
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_modified(std::time::SystemTime::now() - Duration::from_secs(3600)).unwrap();
}

#[test]
fn a_table_that_does_not_fit_is_said_and_the_others_count() {
    let folder = tempfile::tempdir().unwrap();
    let (path, roots) = tables(folder.path(), 8);
    let content = std::fs::read(&path).unwrap();
    write_long_ago(&path, &content);
    let mut probe = rotating(&path);
    probe.rotation.too_large.insert("t5".to_owned());
    let first = probe.run(&context(1_000, false));
    assert_eq!(first.verdict(), Verdict::Unknown, "{first:?}");
    assert!(first.unknown.unwrap().why.contains("table \"t5\" did not fit"));
    assert_eq!(first.seen.get("checked").unwrap().to_string(), "quick_check of 8 of 9 tables");
    // The next round finds the host busy elsewhere: what was covered before still counts.
    by_table(&mut probe);
    probe.rotation.too_large.insert("t2".to_owned());
    let second = probe.run(&context(2_000, false));
    assert_eq!(second.verdict(), Verdict::Ok, "{second:?}");

    let mut broken = content.clone();
    broken[(roots[7] - 1) * 4096..][..64].fill(0xff);
    write_long_ago(&path, &broken);
    by_table(&mut probe);
    let third = probe.run(&context(3_000, false));
    assert!(third.problems[0].summary.contains("t7"), "{third:?}");
    // A round that left a table out clears nothing; one that covered all does.
    write_long_ago(&path, &content);
    by_table(&mut probe);
    probe.rotation.too_large.insert("t7".to_owned());
    assert_eq!(probe.run(&context(4_000, false)).problems.len(), 1);
    by_table(&mut probe);
    assert_eq!(probe.run(&context(5_000, false)).verdict(), Verdict::Ok);
}

#[test]
fn without_any_time_nothing_is_claimed_and_with_time_the_rest_is_covered() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = tables(folder.path(), 4);
    let mut probe = rotating(&path);
    probe.options.quick_bound = Duration::ZERO;
    for run in 0..20 {
        let judgement = probe.run(&context(1_000 + run, false));
        assert!(judgement.problems.is_empty(), "{judgement:?}");
    }
    probe.options.quick_bound = Duration::from_secs(3600);
    // At most one run ends the round with what is left; the next round covers everything.
    probe.run(&context(2_000, false));
    assert_eq!(probe.run(&context(3_000, false)).verdict(), Verdict::Ok);
}

#[test]
fn an_end_of_its_service_has_an_unchanged_database_checked_again() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = tables(folder.path(), 2);
    write_long_ago(&path, &std::fs::read(&path).unwrap());
    let options = SqliteOptions { quick_interval: Duration::from_secs(3600), ..SqliteOptions::default() };
    let mut probe = SqliteProbe::new(ServiceName::host(), path, options);
    let services = context(0, false).services;
    let mut age_ms = |at_ms| {
        let judgement = probe.run(&Context { services: Arc::clone(&services), ..context(at_ms, false) });
        judgement.seen.get("check_age_ms").cloned()
    };
    assert_eq!(age_ms(10_000), Some(Value::Millis(0)));
    assert_eq!(age_ms(100_000), Some(Value::Millis(90_000)), "nothing was written");
    services.lock().unwrap().note_kill(&ServiceName::host(), 99_000);
    assert_eq!(age_ms(105_000), Some(Value::Millis(0)));
    assert_eq!(age_ms(200_000), Some(Value::Millis(95_000)), "once");
}

#[test]
fn damage_that_only_a_deep_check_sees_is_not_cleared_by_a_quick_one() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = tables(folder.path(), 2);
    let mut probe = rotating(&path);
    let deep = |pass: Pass| Some(std::thread::spawn(move || Ok(pass)));
    let ended = |probe: &SqliteProbe| while !probe.deep.as_ref().unwrap().is_finished() {};
    let found = Pass { damage: Damage::of_table("t1", "row 1 missing from index x"), ..Pass::default() };
    probe.deep = deep(found.clone());
    ended(&probe);
    let first = probe.run(&context(1_000, false));
    assert_eq!(first.verdict(), Verdict::Unknown, "one copy beside a writer proves nothing: {first:?}");
    probe.deep = deep(found);
    ended(&probe);
    assert_eq!(probe.run(&context(2_000, false)).problems.len(), 1);
    assert_eq!(probe.run(&context(3_000, false)).problems.len(), 1, "a quick check says nothing about it");
    let mut next = rotating(&path);
    next.restore(probe.save().unwrap());
    assert_eq!(next.run(&context(4_000, false)).verdict(), Verdict::Unknown, "nor after a restart");
    next.deep = deep(Pass { whole: true, integrity: true, ..Pass::default() });
    ended(&next);
    assert_eq!(next.run(&context(5_000, false)).verdict(), Verdict::Ok);
}

/// Set for the child that has no rights.
const UNREADABLE_KEY: &str = "MUSTER_TEST_UNREADABLE_WAL";

#[test]
fn a_log_that_may_not_be_read_is_told_as_such() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if let Some(path) = std::env::var_os(UNREADABLE_KEY).map(PathBuf::from) {
        let claim = files::Claim::take(&path).unwrap();
        let wal = files::sibling(&path, "-wal").display().to_string();
        assert_eq!(files::look(&path, &claim).unwrap_err(), files::Obstacle::Denied(wal));
        println!("the log was refused");
        return;
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: this test does not run as root, and makes no file of another user");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = left_by_a_killed_writer(folder.path());
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(folder.path(), 0o755);
    mode(&path, 0o644);
    mode(&files::sibling(&path, "-shm"), 0o644);
    mode(&files::sibling(&path, "-wal"), 0o600);
    // The folder that this program was built in may be nobody's to enter.
    let program = folder.path().join("program");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut child = std::process::Command::new(&program);
    child.uid(65_534).gid(65_534).env(UNREADABLE_KEY, &path).current_dir("/");
    let name = "senses::sqlite::tests::a_log_that_may_not_be_read_is_told_as_such";
    let output = child.args(["--exact", name, "--nocapture"]).output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains("the log was refused"), "{told}");
}

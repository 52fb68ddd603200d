//! SQLite's locks: the holder in every state is named with its role, and a busy writer is never called stuck.

use crate::support::{Role, until};
use crate::{count, service};
use muster_agent::clock::now;
use muster_agent::probe::{Context, Probe};
use muster_agent::senses::sqlite::{SqliteOptions, SqliteProbe};
use muster_agent_core::judgement::{Judgement, Problem};
use muster_common::reason::Reason;
use std::path::Path;
use std::sync::Arc;

const TABLE: &str = "sql CREATE TABLE IF NOT EXISTS jobs(id INTEGER PRIMARY KEY, body)";

/// Two looks, a minute apart.
fn looks(path: &Path) -> Judgement {
    let mut probe = SqliteProbe::new(service(), path.to_owned(), SqliteOptions::default());
    let mut context = Context { now: now(), services: Arc::default(), one_shot: false };
    let first = probe.run(&context);
    assert!(first.problems.is_empty(), "one look tells nothing: {first:?}");
    // An agent that was restarted meanwhile still knows since when.
    let saved = probe.save().unwrap();
    let mut probe = SqliteProbe::new(service(), path.to_owned(), SqliteOptions::default());
    probe.restore(saved);
    context.now.boottime_ms += 60_000;
    probe.run(&context)
}

/// The one problem: a lock, and nothing about damage.
fn stuck(path: &Path) -> Problem {
    let judgement = looks(path);
    let [problem] = judgement.problems.as_slice() else { panic!("{judgement:?}") };
    assert_eq!(problem.reason, Reason::SqliteLockHeld, "busy is not corrupt: {problem:?}");
    assert!(problem.evidence.get("held_ms").is_some());
    problem.clone()
}

fn text(problem: &Problem, key: &str) -> String {
    problem.evidence.get(key).map(ToString::to_string).unwrap_or_default()
}

/// (steps before the database is looked at, lock, a role of the holder).
fn check(steps: &str, lock: &str, role: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    let holder = Role::start(folder.path(), &format!("sqlite hub.db; {steps}; say"));
    let other = Role::start(folder.path(), "sqlite hub.db; say");
    let problem = stuck(&path);
    assert_eq!(text(&problem, "lock"), lock, "{steps}: {problem:?}");
    assert!(text(&problem, "holder_locks").contains(role), "{steps}: {problem:?}");
    assert_eq!(count(&problem, "pid"), Some(holder.pid().into()), "{steps}");
    assert_eq!(count(&problem, "start_ticks"), Some(crate::start_ticks(holder.pid())));
    let possible = text(&problem, "possible_waiters");
    assert!(possible.contains(&format!("(pid {})", other.pid())), "{steps}: {problem:?}");
    assert!(!possible.contains(&format!("(pid {})", holder.pid())), "{steps}: {problem:?}");
}

#[test]
fn each_state_of_a_writer_is_named() {
    check(&format!("{TABLE}; sql BEGIN IMMEDIATE"), "RESERVED", "RESERVED");
    check(&format!("{TABLE}; sql BEGIN EXCLUSIVE"), "EXCLUSIVE", "EXCLUSIVE");
    check(&format!("sql PRAGMA journal_mode=WAL; {TABLE}; sql BEGIN IMMEDIATE"), "WAL write lock", "WAL writer");
}

#[test]
fn a_writer_that_waits_for_a_reader_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    let reader = Role::start(folder.path(), &format!("sqlite hub.db; {TABLE}; read; say"));
    let writer = Role::start(
        folder.path(),
        "sqlite hub.db; sql BEGIN IMMEDIATE; sql INSERT INTO jobs(body) VALUES (1); say; sql COMMIT",
    );
    until("the writer has PENDING", || {
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        locks.lines().any(|line| line.contains(&format!(" {} ", writer.pid())) && line.contains(" 1073741824 "))
    });
    let problem = stuck(&path);
    assert_eq!((text(&problem, "lock"), count(&problem, "pid")), ("PENDING".to_owned(), Some(writer.pid().into())));
    assert!(text(&problem, "waits_for").contains(&format!("(pid {})", reader.pid())), "{problem:?}");
    assert!(problem.summary.contains("to finish reading"), "{}", problem.summary);
}

#[test]
fn a_checkpointer_that_waits_for_a_reader_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    let wal = "sqlite hub.db; sql PRAGMA journal_mode=WAL; sql PRAGMA wal_autocheckpoint=0";
    let writer = Role::start(folder.path(), &format!("{wal}; {TABLE}; sql INSERT INTO jobs(body) VALUES (1); say"));
    let reader = Role::start(folder.path(), "sqlite hub.db; read; say");
    let checkpointer = Role::start(
        folder.path(),
        "sqlite hub.db; sql INSERT INTO jobs(body) VALUES (2); say; sql PRAGMA wal_checkpoint(RESTART)",
    );
    until("the checkpointer has its lock", || {
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        locks.lines().any(|line| line.contains(&format!(" {} ", checkpointer.pid())) && line.ends_with(" 120 121"))
    });
    let problem = stuck(&path);
    assert_eq!(count(&problem, "pid"), Some(checkpointer.pid().into()), "{problem:?}");
    assert!(text(&problem, "holder_locks").contains("WAL checkpointer"), "{problem:?}");
    assert!(text(&problem, "waits_for").contains(&format!("(pid {})", reader.pid())), "{problem:?}");
    drop(writer);
}

/// Held where SQLite itself is in the midst of it, for as long as it takes to look twice.
#[test]
fn a_recovery_of_the_log_that_does_not_end_names_who_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    let wal = "sqlite hub.db; sql PRAGMA journal_mode=WAL; sql PRAGMA wal_autocheckpoint=0";
    let writer = Role::start(folder.path(), &format!("{wal}; {TABLE}; sql INSERT INTO jobs(body) VALUES (1); say"));
    // Killed, so that its log is left: who opens the database next recovers it.
    drop(writer);
    let steps = "say-in-recovery; sqlite hub.db; sql SELECT count(*) FROM jobs";
    let recoverer = Role::start(folder.path(), steps);
    let problem = stuck(&path);
    assert_eq!(
        (text(&problem, "lock"), count(&problem, "pid")),
        ("WAL recovery lock".into(), Some(recoverer.pid().into()))
    );
    assert!(text(&problem, "holder_locks").contains("WAL recovery"), "{problem:?}");
}

#[test]
fn exclusive_mode_of_a_log_is_a_choice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    let steps = "sql PRAGMA locking_mode=EXCLUSIVE; sql PRAGMA journal_mode=WAL";
    let _holder = Role::start(folder.path(), &format!("sqlite hub.db; {steps}; {TABLE}; say"));
    let judgement = looks(&path);
    assert!(judgement.problems.is_empty(), "{judgement:?}");
    assert_eq!(judgement.seen.get("locking_mode").map(ToString::to_string).as_deref(), Some("EXCLUSIVE"));
}

#[test]
fn a_stopped_writer_is_told_by_one_look() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    let steps = format!("sqlite hub.db; sql PRAGMA journal_mode=WAL; {TABLE}; sql BEGIN IMMEDIATE; say");
    let holder = Role::start(folder.path(), &steps);
    let once = || {
        let mut probe = SqliteProbe::new(service(), path.clone(), SqliteOptions::default());
        probe.run(&Context { now: now(), services: Arc::default(), one_shot: true })
    };
    let running = once();
    assert!(running.problems.is_empty(), "a transaction may take a while: {running:?}");
    holder.stop();
    let judgement = once();
    let [problem] = judgement.problems.as_slice() else { panic!("{judgement:?}") };
    assert_eq!((problem.reason, text(problem, "holder_state").as_str()), (Reason::SqliteLockHeld, "stopped"));
    assert!(problem.next_steps.iter().any(|step| step.contains(&format!("kill -CONT {}", holder.pid()))));
}

#[test]
fn a_busy_writer_is_never_called_stuck() {
    // The last one takes the lock again and again and never commits a thing: only closer looks see that it lets go.
    for (mode, transaction) in [
        ("WAL", "BEGIN IMMEDIATE; INSERT INTO jobs(body) VALUES (1); COMMIT"),
        ("DELETE", "BEGIN IMMEDIATE; INSERT INTO jobs(body) VALUES (1); COMMIT"),
        ("WAL", "BEGIN IMMEDIATE; SELECT count(*) FROM jobs; COMMIT"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hub.db");
        let setup = format!("sqlite hub.db; sql PRAGMA journal_mode={mode}; sql PRAGMA synchronous=OFF; {TABLE}");
        let _writer = Role::start(folder.path(), &format!("{setup}; say; repeat {}", transaction.replace("; ", ";")));
        let mut probe = SqliteProbe::new(service(), path, SqliteOptions::default());
        let mut context = Context { now: now(), services: Arc::default(), one_shot: false };
        for _ in 0..40 {
            let judgement = probe.run(&context);
            assert!(judgement.problems.is_empty(), "{mode} {transaction}: {judgement:?}");
            context.now.boottime_ms += 60_000;
        }
    }
}

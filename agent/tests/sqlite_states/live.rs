//! No false alarm: a writer commits without a pause while the probe runs again and again.

use crate::support::{Role, context, reasons, service};
use muster_agent::probe::Probe;
use muster_agent::senses::sqlite::{SqliteOptions, SqliteProbe};
use muster_common::evidence::Value;
use std::time::Duration;

/// The longest a writer may have met our lock in a row: the hold of 20 ms, and room for a busy machine's scheduler.
const BLOCKED_MS_MAX: u64 = 1_000;
const RUNS: u64 = 200;

fn probe_beside_a_writer(option: &str) -> (u64, u64, u64) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    let (writer, _) = Role::start("commit", &path, option);
    // Every run checks: nothing is skipped because a check was made lately.
    let options = SqliteOptions { quick_interval: Duration::ZERO, ..SqliteOptions::default() };
    let mut probe = SqliteProbe::new(service(), path, options);
    let mut answered = 0;
    for run in 0..RUNS {
        let judgement = probe.run(&context(1_000 + run, false));
        assert!(reasons(&judgement).is_empty(), "{option}, run {run}: {judgement:?}");
        answered += u64::from(judgement.seen.get("check_age_ms") == Some(&Value::Millis(0)));
    }
    println!("{option}: {answered} of {RUNS} runs checked the database");
    assert!(answered > 0, "{option}: no run ever got an answer");
    let said = writer.end();
    let mut numbers = said.split(' ').map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn a_wal_writer_is_never_disturbed() {
    for option in ["WAL 0", "WAL 5000"] {
        let (commits, busy, _) = probe_beside_a_writer(option);
        assert!(commits > 0);
        assert_eq!(busy, 0, "{option}: a reader never blocks a writer in WAL mode");
    }
}

#[test]
fn a_rollback_writer_is_disturbed_for_no_longer_than_the_bound() {
    let (commits, _, longest_ms) = probe_beside_a_writer("DELETE 0");
    assert!(commits > 0);
    assert!(longest_ms <= BLOCKED_MS_MAX, "blocked for {longest_ms} ms in a row");
    let (commits, busy, _) = probe_beside_a_writer("DELETE 5000");
    assert!(commits > 0);
    assert_eq!(busy, 0, "with a busy time-out the writer never sees an error");
}

//! No false alarm, by force: two writers do to a database whatever SQLite allows, one of them is killed again and again,
//! and everything the probe says is looked at. The database is whole at every moment, so every sign of damage is false.

use crate::support::{Role, context, reasons, rows, say, service, told_to_end};
use muster_agent::probe::Probe;
use muster_agent::senses::sqlite::{SqliteOptions, SqliteProbe};
use muster_common::evidence::Value;
use rusqlite::{Connection, ErrorCode};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// More of them find rarer accidents: thousands take minutes.
const RUNS_VARIABLE: &str = "MUSTER_SQLITE_CHURN_RUNS";
const RUNS_DEFAULT: u64 = 150;
/// One writer is killed in the middle of whatever it does, every so many runs.
const RUNS_PER_KILL: u64 = 25;
/// So far apart by the clock of the runs that a deep check is due in each.
const RUN_STEP_MS: u64 = 700_000;

#[test]
fn whatever_two_writers_do_is_never_called_damage() {
    let runs = std::env::var(RUNS_VARIABLE).map_or(RUNS_DEFAULT, |runs| runs.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    let (steady, _) = Role::start("churn", &path, "1");
    let (mut victim, _) = Role::start("churn", &path, "2");
    let options = SqliteOptions {
        quick_interval: Duration::ZERO,
        deep_interval: Duration::ZERO,
        scratch_dir: Some(scratch.path().to_owned()),
        lock_held_after: Duration::MAX,
        ..SqliteOptions::default()
    };
    let mut probe = SqliteProbe::new(service(), path.clone(), options.clone());
    let (mut checked, mut hot) = (0, 0);
    for run in 0..runs {
        let one_shot = run % 5 == 4;
        let judgement = if one_shot {
            SqliteProbe::new(service(), path.clone(), options.clone()).run(&context(1_000, true))
        } else {
            probe.run(&context(1_000 + run * RUN_STEP_MS, false))
        };
        let told = reasons(&judgement);
        // A writer that was killed leaves a hot journal until the other one comes by: that is true.
        assert!(told.is_empty() || told == ["sqlite_journal_hot"], "run {run}: {judgement:?}");
        let text = format!("{judgement:?}");
        assert!(!text.contains("signs of damage") && !text.contains("unconfirmed_damage"), "run {run}: {text}");
        checked += u64::from(judgement.seen.get("check_age_ms") == Some(&Value::Millis(0)));
        hot += u64::from(!told.is_empty());
        if run % RUNS_PER_KILL == RUNS_PER_KILL - 1 {
            victim.kill();
            (victim, _) = Role::start("churn", &path, &format!("{}", run + 3));
        }
    }
    println!("{checked} of {runs} runs checked the database, {hot} met a hot journal");
    assert!(checked > 0);
    victim.end();
    println!("the writer that was never killed: {}", steady.end());
}

/// What happens to a database, one after the other in an order that the seed decides.
const DEEDS: &[&str] = &[
    "BEGIN IMMEDIATE; DELETE FROM jobs WHERE id % 9 = abs(random()) % 9;
     INSERT INTO jobs(state, body) SELECT hex(randomblob(20)), randomblob(abs(random()) % 900) FROM jobs LIMIT 400; COMMIT",
    "INSERT INTO jobs(state, body) SELECT hex(randomblob(9)), randomblob(300) FROM jobs LIMIT 50",
    "UPDATE jobs SET state = hex(randomblob(12)) WHERE id % 7 = abs(random()) % 7",
    // Pages of a transaction that is never committed reach the file and are taken back.
    "PRAGMA cache_size=5; BEGIN IMMEDIATE; UPDATE jobs SET body = randomblob(abs(random()) % 1200); ROLLBACK; PRAGMA cache_size=200",
    "PRAGMA cache_size=5; BEGIN IMMEDIATE; UPDATE jobs SET body = randomblob(300); COMMIT; PRAGMA cache_size=200",
    "DELETE FROM jobs WHERE id > (SELECT min(id) + 1500 FROM jobs)",
    "PRAGMA incremental_vacuum(7)",
    "VACUUM",
    "PRAGMA page_size=1024; VACUUM",
    "PRAGMA page_size=4096; VACUUM",
    "PRAGMA auto_vacuum=1; VACUUM",
    "PRAGMA auto_vacuum=2; VACUUM",
    "PRAGMA journal_mode=DELETE",
    "PRAGMA journal_mode=TRUNCATE",
    "PRAGMA journal_mode=PERSIST",
    "PRAGMA journal_mode=WAL",
    "PRAGMA wal_checkpoint(TRUNCATE)",
    "PRAGMA wal_checkpoint(RESTART)",
    "CREATE TABLE IF NOT EXISTS more(a, b); CREATE INDEX IF NOT EXISTS more_b ON more(b);
     INSERT INTO more SELECT id, state FROM jobs LIMIT 300",
    "DROP TABLE IF EXISTS more",
    "REINDEX",
];

/// The body of a writer: deeds at random, with small pauses, and now and then a new connection.
pub(crate) fn churn(path: &Path, seed: &str) {
    let mut dice = Dice(seed.parse::<u64>().unwrap().wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut connection = open(path);
    retried(|| rows_once(&connection));
    let ended = told_to_end();
    say("ready");
    let (mut deeds, mut refused) = (0u64, 0u64);
    while !ended.load(Ordering::SeqCst) {
        let deed = DEEDS[usize::try_from(dice.roll(DEEDS.len() as u64)).unwrap()];
        match connection.execute_batch(deed) {
            Ok(()) => deeds += 1,
            Err(error) if passes(&error) => {
                refused += 1;
                if !connection.is_autocommit() {
                    let _already_over = connection.execute_batch("ROLLBACK");
                }
            }
            Err(error) => panic!("{deed}: {error}: {:?}", error.sqlite_error()),
        }
        if dice.roll(8) == 0 {
            drop(connection);
            connection = open(path);
        }
        std::thread::sleep(Duration::from_millis(dice.roll(6)));
    }
    let check = || connection.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
    assert_eq!(retried(check), "ok", "a false premise: the database was damaged in truth");
    say(&format!("{deeds} deeds, {refused} refused"));
}

fn open(path: &Path) -> Connection {
    retried(|| {
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_millis(200))?;
        connection.execute_batch("PRAGMA synchronous=OFF; PRAGMA cache_spill=1")?;
        Ok(connection)
    })
}

fn rows_once(connection: &Connection) -> rusqlite::Result<()> {
    let sql = "SELECT count(*) FROM sqlite_schema WHERE name = 'jobs'";
    if connection.query_row(sql, [], |row| row.get::<_, i64>(0))? == 0 {
        rows(connection, 3000);
    }
    Ok(())
}

/// What one writer may meet beside the other.
fn passes(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed))
        || error.to_string().contains("SQL logic error")
        || error.to_string().contains("schema has changed")
        || error.to_string().contains("no such table: more")
        || error.to_string().contains("no such table: main.more")
}

fn retried<T>(mut work: impl FnMut() -> rusqlite::Result<T>) -> T {
    loop {
        match work() {
            Ok(done) => return done,
            Err(error) if passes(&error) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Numbers that the same seed gives again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

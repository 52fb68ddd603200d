//! A spool whose writer is killed with SIGKILL at any moment: what it said is durable is there, and the chain holds.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use muster_agent::spool::{Append, Spool, SpoolLimits};
use muster_common::finding::{Finding, FindingEvent, FindingKey, ProbeKind, SubjectKey};
use muster_common::ids::{BootId, ServiceName};
use muster_common::reason::Reason;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const FOLDER: &str = "MUSTER_TEST_SPOOL_FOLDER";
const ROUNDS: u64 = 30;

fn open(folder: &Path) -> Spool {
    // A small bound, so that eviction is killed in the middle as well.
    let limits = SpoolLimits { max_bytes: 0, keep_acked: Duration::ZERO };
    Spool::open(&folder.join("spool.db"), limits, BootId(uuid::Uuid::nil()), muster_agent::clock::now()).unwrap()
}

fn events(count: u64) -> Vec<Append> {
    let event = |n: u64| {
        let subject = SubjectKey::new(ServiceName::host(), ProbeKind::Port, &n.to_string());
        let finding = Finding::new(FindingKey { subject, reason: Reason::PortClosed }, &"x".repeat(800));
        Append { event: FindingEvent::Opened(finding), observed_boottime_ms: 0 }
    };
    (0..count).map(event).collect()
}

/// The writer: nothing unless started by the test below. Says each position after it is durable.
#[test]
fn writer() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let mut spool = open(Path::new(&folder));
    let mut stdout = std::io::stdout();
    for round in 0u64.. {
        let now = muster_agent::clock::now();
        let position = spool.append(&events(1 + round % 7 * 5), &[("ledger", &round.to_be_bytes())], now).unwrap();
        writeln!(stdout, "durable {} {}", position.sequence, position.hash).unwrap();
        if round % 5 == 4 {
            let sequence = position.sequence;
            spool.ack(position.spool, sequence - sequence % 3, sequence / 2, now).unwrap();
        }
    }
}

#[test]
fn nothing_that_was_durable_is_lost_by_sigkill() {
    let folder = tempfile::tempdir().unwrap();
    let mut before = open(folder.path()).position();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["writer", "--exact", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // The kill meets the writer wherever it is after so many appends: round * 7 is coprime to its pattern of 5.
        let enough = 1 + usize::try_from(round * 7 % 23).unwrap();
        let said: Vec<String> = lines.by_ref().map_while(Result::ok).filter_map(durable).take(enough).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        // What it still said before it died counts too.
        let last = lines.map_while(Result::ok).filter_map(durable).last().or(said.last().cloned()).unwrap();
        let (sequence, hash) = last.split_once(' ').unwrap();
        let sequence: u64 = sequence.parse().unwrap();

        // Opening follows the hash chain from the oldest entry to the head.
        let spool = open(folder.path());
        assert_eq!(spool.loss(), None, "round {round}");
        let position = spool.position();
        assert_eq!(position.spool, before.spool);
        assert!(position.sequence >= sequence && sequence > before.sequence, "round {round}: {position:?} {last}");
        if position.sequence == sequence {
            assert_eq!(position.hash.to_string(), hash);
        } else {
            let next = spool.read(sequence, sequence + 1, 1, 1).unwrap();
            assert_eq!(next[0].previous_hash.to_string(), hash);
        }
        assert!(spool.get_state("ledger").unwrap().is_some());
        before = position;
    }
}

fn durable(line: String) -> Option<String> {
    // The test harness may have begun the line.
    line.split_once("durable ").map(|(_, said)| said.to_owned())
}

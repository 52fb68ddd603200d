//! An agent: the real session and the real ledger; what is wrong with its host, its spool and its clocks are the world's.

use super::spool::Spool;
use super::{FLEET, HEARTBEAT};
use crate::scenario::key;
use muster_agent_core::clock::Now;
use muster_agent_core::judgement::{Judgement, Problem, Verdict};
use muster_agent_core::ledger::Ledger;
use muster_agent_core::session::{Input, Output, Phase, Session};
use muster_common::evidence::Evidence;
use muster_common::finding::{FindingEvent, FindingKey, SubjectKey};
use muster_common::ids::{AgentName, BootId, FleetName, SpoolId};
use muster_common::reason::Reason;
use muster_common::spool::EntryHash;
use muster_common::time::Timestamp;
use muster_coordinator_core::entry::SubjectState;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Between two runs of a host's probes.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Before the world begins the host was up for so long.
const UPTIME: Duration = Duration::from_secs(86_400);

/// Conditions that hosts of the world may have.
pub(super) fn conditions() -> Vec<FindingKey> {
    vec![
        end(),
        restart_loop(),
        key("spl", "127.0.0.1:1", Reason::PortClosed),
        key("dba", "/run/dba.pid", Reason::PidFileStale),
        key("dba", "/dba.db", Reason::SqliteCorrupt),
        key("dba", "/dba.db", Reason::SqliteLockHeld),
        key("host", "memory", Reason::MemoryCritical),
        key("host", "memory", Reason::MemoryApproaching),
        key("host", "memory stalls", Reason::MemoryPressure),
        key("dba", "/run/dba.pid", Reason::ProbeBlind),
    ]
}

/// An end of the service that may loop.
pub(super) fn end() -> FindingKey {
    key("spl", "/run/spl.pid", Reason::ProcessDown)
}

/// Its loop.
pub(super) fn restart_loop() -> FindingKey {
    key("spl", "restarts", Reason::RestartLoop)
}

/// Occurrences that hosts of the world may have.
pub(super) fn occurrences() -> Vec<FindingKey> {
    let restart = key("spl", "/run/spl.pid", Reason::ProcessRestarted);
    let kill = key("spl", "oom", Reason::OomKill);
    let timeout = key("dba", "provider", Reason::Timeout);
    let (program, singleton) = (key("spl", "executable", Reason::Change), key("spl", "singleton", Reason::Change));
    let (failed, taken_back) = (key("spl", "it", Reason::UpdateFailed), key("spl", "it", Reason::UpdateRollback));
    let host = key("host", "oom", Reason::OomKill);
    vec![restart.clone(), restart, kill, host, timeout, program, singleton, failed, taken_back]
}

/// What survives a crash, and what a reverted disk brings back.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) spool: Spool,
    pub(super) ledger: Ledger,
}

/// A whole virtual machine, put aside.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    disk: Disk,
    boot: BootId,
    uptime: Duration,
}

/// The process: gone after a crash.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) session: Session,
    /// The session's number of its stream, and the world's.
    pub(super) stream: Option<(u64, usize)>,
    /// The open set as last taken.
    pub(super) open_set: Option<(u64, Vec<SubjectState>)>,
    last_beat: Option<Timestamp>,
}

/// The agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) name: AgentName,
    pub(super) unreachable_until: Timestamp,
    /// What is wrong with the host.
    pub(super) sick: BTreeSet<FindingKey>,
    /// Seen by the next run of the probes.
    pub(super) happened: Vec<(FindingKey, Timestamp)>,
    pub(super) disk: Disk,
    pub(super) process: Option<Process>,
    /// Rises with each start: what an earlier process asked for is answered to nobody.
    pub(super) life: u64,
    pub(super) boot: BootId,
    pub(super) next_probe: Timestamp,
    /// When the spool is done with what it was asked last.
    pub(super) spool_busy_until: Timestamp,
    /// Every entry ever written, by its hash: which event it tells.
    pub(super) written: BTreeMap<EntryHash, u64>,
    /// Events that may be told twice: their spool had to start anew.
    pub(super) repeated: BTreeSet<u64>,
    /// Events that may be missing: evicted, or on a disk that is no more.
    pub(super) gone: BTreeSet<u64>,
    pub(super) snapshot: Option<Snapshot>,
    /// Ends that their loop alone told.
    pub(super) folded: u64,
    rounds: u64,
    boot_at: Timestamp,
    index: usize,
    ids: u64,
}

impl Agent {
    pub(super) fn new(name: &str, index: usize, now: Timestamp) -> Self {
        let mut agent = Self {
            name: super::agent_name(name),
            unreachable_until: now,
            sick: BTreeSet::new(),
            happened: Vec::new(),
            disk: Disk { spool: Spool::new(SpoolId(super::uuid(index, 0))), ledger: Ledger::default() },
            process: None,
            life: 0,
            boot: BootId(super::uuid(index, 1)),
            next_probe: now + Duration::from_millis(700 * index as u64),
            spool_busy_until: now,
            written: BTreeMap::new(),
            repeated: BTreeSet::new(),
            gone: BTreeSet::new(),
            snapshot: None,
            folded: 0,
            rounds: 0,
            boot_at: now - UPTIME,
            index,
            ids: 2,
        };
        agent.start();
        agent
    }

    fn fresh_uuid(&mut self) -> uuid::Uuid {
        self.ids += 1;
        super::uuid(self.index, self.ids)
    }

    pub(super) fn clocks(&self, now: Timestamp) -> Now {
        Now { boottime_ms: u64::try_from(now.since(self.boot_at).as_millis()).unwrap_or(u64::MAX), wall: now }
    }

    pub(super) fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// A new process on what the disk holds.
    pub(super) fn start(&mut self) {
        let fleet = FleetName::new(FLEET).unwrap_or_else(|error| panic!("{error}"));
        let endpoints = super::COORDINATORS.iter().map(|name| super::endpoint(name)).collect();
        let spool = &self.disk.spool;
        let session = Session::new(fleet, endpoints, spool.epoch.clone(), spool.view());
        self.life += 1;
        self.process = Some(Process { session, stream: None, open_set: None, last_beat: None });
    }

    /// kill -9; gives the stream that breaks.
    pub(super) fn crash(&mut self) -> Option<usize> {
        self.process.take().and_then(|process| process.stream).map(|(_, stream)| stream)
    }

    /// Another boot of the same disk.
    pub(super) fn reboot(&mut self, now: Timestamp) {
        self.boot = BootId(self.fresh_uuid());
        self.boot_at = now;
        self.disk.ledger.rebooted();
    }

    pub(super) fn take_snapshot(&mut self, now: Timestamp) {
        let uptime = now.since(self.boot_at);
        self.snapshot = Some(Snapshot { disk: self.disk.clone(), boot: self.boot, uptime });
    }

    /// The machine as it was put aside, boot clock and all. What was written since is on no disk any more.
    pub(super) fn revert(&mut self, snapshot: Snapshot, now: Timestamp) {
        self.lose_disk();
        let kept = snapshot.disk.spool.entries.iter().filter_map(|entry| self.written.get(&entry.hash));
        for event in kept {
            self.gone.remove(event);
            // Coordinators remember one spool of an agent: one that comes back after another tells all again.
            if snapshot.disk.spool.id != self.disk.spool.id {
                self.repeated.insert(*event);
            }
        }
        self.disk = snapshot.disk;
        self.boot = snapshot.boot;
        self.boot_at = now - snapshot.uptime;
    }

    /// A new disk.
    pub(super) fn replace_disk(&mut self) {
        self.lose_disk();
        let id = SpoolId(self.fresh_uuid());
        self.disk = Disk { spool: Spool::new(id), ledger: Ledger::default() };
    }

    fn lose_disk(&mut self) {
        let spool = &self.disk.spool;
        let lost = spool.entries.iter().filter(|entry| entry.sequence > spool.replicated);
        let lost: Vec<u64> = lost.filter_map(|entry| self.written.get(&entry.hash).copied()).collect();
        self.gone.extend(lost);
    }

    pub(super) fn evict(&mut self) -> usize {
        let lost = self.disk.spool.evict();
        self.gone.extend(lost.iter().filter_map(|hash| self.written.get(hash)));
        lost.len()
    }

    pub(super) fn restart_spool(&mut self) {
        let id = SpoolId(self.fresh_uuid());
        for (old, new) in self.disk.spool.restart(id) {
            if let Some(event) = self.written.get(&old).copied() {
                self.repeated.insert(event);
                self.written.insert(new, event);
            }
        }
    }

    /// Nothing is wrong with the host any more, and what may run once runs elsewhere.
    pub(super) fn get_well(&mut self, now: Timestamp) {
        self.sick.clear();
        let is_singleton = |key: &FindingKey| key.subject.subject == "singleton";
        let stopped = if tells_running(now) { now - Duration::from_millis(1) } else { now };
        self.happened.extend(occurrences().into_iter().filter(is_singleton).map(|key| (key, stopped)));
    }

    /// One run of all probes; each is blind `blind` times in a hundred. What `loops` is down at every third look. True when
    /// something was written.
    pub(super) fn probe(&mut self, now: Timestamp, loops: bool, mut blind: impl FnMut() -> bool) -> bool {
        self.next_probe = now + PROBE_INTERVAL;
        self.rounds += 1;
        let dies = loops && self.rounds.is_multiple_of(3) && self.sick.contains(&restart_loop());
        let clocks = self.clocks(now);
        let subjects: BTreeSet<SubjectKey> =
            conditions().into_iter().chain(occurrences()).map(|key| key.subject).collect();
        let mut wrote = false;
        for subject in subjects {
            let mut problems: BTreeSet<FindingKey> =
                self.sick.iter().filter(|key| key.subject == subject).cloned().collect();
            problems.extend(Some(end()).filter(|end| dies && end.subject == subject));
            let problems = problems.into_iter().map(|key| Problem::new(key.reason, "broken")).collect();
            let mut judgement = Judgement { problems, seen: Evidence::new(), ..Judgement::default() };
            if blind() {
                judgement = Judgement::unknown("cannot see", None);
            }
            let happened = self.happened.extract_if(.., |(key, _)| key.subject == subject).collect::<Vec<_>>();
            for (key, at) in happened {
                let mut occurrence = Problem::new(key.reason, "happened").evidence(told(&key, at));
                occurrence.observed_boottime_ms = Some(self.clocks(at).boottime_ms);
                judgement = judgement.occurred(occurrence);
            }
            for change in self.disk.ledger.observe(clocks, &subject, &judgement) {
                if let FindingEvent::Cleared { key, .. } = &change.event {
                    assert!(!self.sick.contains(key), "{} clears {key}, which nobody saw well", self.name);
                }
                let hash = self.disk.spool.append(&change.event, change.observed_boottime_ms, self.boot, clocks);
                let event = self.written.len() as u64;
                // After a revert the same words may take the same place in the chain again.
                if let Some(known) = self.written.insert(hash, event) {
                    self.written.insert(hash, known);
                    self.repeated.insert(known);
                }
                wrote = true;
            }
            let seen = judgement.problems.iter().any(|problem| problem.reason == Reason::ProcessDown);
            let told = || self.disk.ledger.open().any(|finding| finding.key == end());
            self.folded += u64::from(seen && !told());
        }
        wrote
    }

    /// Gives the session an input and checks what it says.
    pub(super) fn handle(&mut self, now: Timestamp, random: u64, input: Input) -> Vec<Output> {
        let now_ms = self.clocks(now).boottime_ms;
        let Some(process) = self.process.as_mut() else { return Vec::new() };
        let outputs = process.session.handle(now_ms, random, input);
        for output in &outputs {
            match output {
                Output::SendHeartbeat { .. } => process.last_beat = Some(now),
                Output::Connect { .. } => process.last_beat = None,
                _ => {}
            }
        }
        if process.session.phase() == Phase::Streaming
            && let Some(last) = process.last_beat
        {
            assert!(now.since(last) <= HEARTBEAT, "{}: no heartbeat since {last}", self.name);
        }
        outputs
    }

    pub(super) fn deadline(&self) -> Option<Timestamp> {
        let deadline_ms = self.process.as_ref()?.session.deadline_ms()?;
        Some(self.boot_at + Duration::from_millis(deadline_ms))
    }

    pub(super) fn stream(&self) -> Option<usize> {
        self.process.as_ref()?.stream.map(|(_, stream)| stream)
    }

    /// Verdicts and open conditions, as a resync tells them.
    pub(super) fn subjects(&self) -> Vec<SubjectState> {
        let state = |state: muster_agent_core::ledger::SubjectState<'_>| SubjectState {
            subject: state.subject.clone(),
            ok: match state.verdict {
                Verdict::Ok => Some(true),
                Verdict::Problem => Some(false),
                Verdict::Unknown => None,
            },
            open: state.open.into_iter().cloned().collect(),
        };
        self.disk.ledger.subjects().map(state).collect()
    }
}

/// Of the moment depends whether a singleton was seen to start or to stop.
fn tells_running(at: Timestamp) -> bool {
    at.unix_ms() % 2 == 0
}

/// What an occurrence proves: which of a host's callers it was.
fn told(key: &FindingKey, at: Timestamp) -> Evidence {
    let evidence = Evidence::new().text("source", format!("{}-{}", key.subject.service, at.unix_ms() % 3));
    match (key.reason, key.subject.subject.as_str()) {
        (Reason::Change, "executable") => {
            let hash = if at.unix_ms() % 3 == 0 { "aa" } else { "bb" }.repeat(32);
            evidence.text("what", "deploy").text("executable_sha256", &hash).text("new", hash)
        }
        (Reason::Change, _) => {
            let state = if tells_running(at) { "running" } else { "stopped" };
            evidence.text("what", "singleton").text("new", state)
        }
        // Some were down for long after a long life: repairs. The others are told without, as by agents that saw no end.
        (Reason::ProcessRestarted, _) if at.unix_ms() % 3 == 0 => {
            let hours = Duration::from_secs(7_200);
            evidence.duration("gap_ms", Duration::from_secs(120)).duration("old_lifetime_ms", hours)
        }
        (Reason::UpdateRollback, _) if at.unix_ms() % 2 == 0 => evidence.text("outcome", "failed"),
        _ => evidence,
    }
}

//! A model of an agent: a spool with positions, one stream at a time, heartbeats with a digest.

use super::{Down, Up, agent_name, spool_id};
use crate::scenario::key;
use muster_common::finding::{Finding, FindingEvent, FindingKey, SubjectKey, open_digest};
use muster_common::ids::{AgentName, SpoolId};
use muster_common::reason::Reason;
use muster_common::time::Timestamp;
use muster_coordinator_core::entry::SubjectState;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Between heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Entries said in one step.
const BURST: usize = 20;

/// Conditions that agents of the world may have.
pub(super) fn conditions() -> Vec<FindingKey> {
    vec![
        key("spl", "/run/spl.pid", Reason::ProcessDown),
        key("spl", "127.0.0.1:1", Reason::PortClosed),
        key("dba", "/run/dba.pid", Reason::PidFileStale),
        key("dba", "/dba.db", Reason::SqliteCorrupt),
        key("dba", "/dba.db", Reason::SqliteLockHeld),
        key("host", "memory", Reason::MemoryCritical),
        key("host", "memory", Reason::MemoryApproaching),
    ]
}

/// Occurrences that agents of the world may have.
pub(super) fn occurrences() -> Vec<FindingKey> {
    let restart = key("spl", "/run/spl.pid", Reason::ProcessRestarted);
    vec![restart.clone(), restart, key("spl", "oom", Reason::OomKill), key("host", "oom", Reason::OomKill)]
}

#[derive(Debug, Clone)]
struct Link {
    stream: usize,
    welcomed: bool,
    sent: u64,
    resync: bool,
}

/// The model.
#[derive(Debug)]
pub(super) struct ModelAgent {
    pub(super) name: AgentName,
    pub(super) up: bool,
    pub(super) unreachable_until: Timestamp,
    pub(super) spool: SpoolId,
    pub(super) head: u64,
    pub(super) open: BTreeMap<FindingKey, Finding>,
    index: usize,
    lives: u64,
    kept: VecDeque<(u64, Timestamp, FindingEvent)>,
    replicated: u64,
    epoch: u64,
    link: Option<Link>,
    next_try: Timestamp,
    next_beat: Timestamp,
}

impl ModelAgent {
    pub(super) fn new(name: &str, index: usize, now: Timestamp) -> Self {
        Self {
            name: agent_name(name),
            up: true,
            unreachable_until: now,
            spool: spool_id(index, 1),
            head: 0,
            open: BTreeMap::new(),
            index,
            lives: 1,
            kept: VecDeque::new(),
            replicated: 0,
            epoch: 0,
            link: None,
            next_try: now,
            next_beat: now,
        }
    }

    pub(super) fn stream(&self) -> Option<usize> {
        self.link.as_ref().map(|link| link.stream)
    }

    fn spool_event(&mut self, now: Timestamp, event: FindingEvent) {
        self.head += 1;
        self.kept.push_back((self.head, now, event));
    }

    pub(super) fn open(&mut self, finding: Finding, now: Timestamp) {
        self.open.insert(finding.key.clone(), finding.clone());
        self.spool_event(now, FindingEvent::Opened(finding));
    }

    pub(super) fn clear(&mut self, key: &FindingKey, now: Timestamp) {
        self.open.remove(key);
        let event =
            FindingEvent::Cleared { key: key.clone(), summary: "well".to_owned(), evidence: Default::default() };
        self.spool_event(now, event);
    }

    pub(super) fn occur(&mut self, finding: Finding, now: Timestamp) {
        self.spool_event(now, FindingEvent::Occurred(finding));
    }

    /// Another spool: a new disk. What was not sent is gone; what is open is found again by the resync.
    pub(super) fn replace_spool(&mut self) {
        self.lives += 1;
        self.spool = spool_id(self.index, self.lives);
        self.head = 0;
        self.replicated = 0;
        self.kept.clear();
    }

    /// Evicts the older half, acknowledged or not.
    pub(super) fn evict(&mut self) -> usize {
        let half = self.kept.len() / 2;
        self.kept.drain(..half);
        half
    }

    pub(super) fn wants_to_connect(&self, now: Timestamp) -> bool {
        self.up && self.link.is_none() && now >= self.next_try && now >= self.unreachable_until
    }

    pub(super) fn connected(&mut self, stream: usize) -> Up {
        self.link = Some(Link { stream, welcomed: false, sent: 0, resync: false });
        Up::Hello { spool: self.spool }
    }

    pub(super) fn disconnected(&mut self, next_try: Timestamp) {
        self.link = None;
        self.next_try = next_try;
    }

    /// What it has to say now.
    pub(super) fn speak(&mut self, now: Timestamp) -> Vec<Up> {
        let Some(link) = self.link.as_mut().filter(|link| link.welcomed && self.up) else { return Vec::new() };
        let mut said = Vec::new();
        let oldest = self.kept.front().map_or(self.head + 1, |(sequence, ..)| *sequence);
        if oldest > link.sent + 1 {
            said.push(Up::Lost { first: link.sent + 1, last: oldest - 1 });
            link.sent = oldest - 1;
        }
        let unsent = self.kept.iter().filter(|(sequence, ..)| *sequence > link.sent).take(BURST);
        let unsent: Vec<_> = unsent.cloned().collect();
        for (sequence, observed, event) in unsent {
            link.sent = sequence;
            said.push(Up::Entry { sequence, age: now.since(observed), event });
        }
        let resync = link.resync && link.sent == self.head;
        if resync {
            link.resync = false;
        }
        if now >= self.next_beat {
            self.next_beat = now + HEARTBEAT;
            said.push(Up::Beat { head: self.head, digest: open_digest(self.open.keys()) });
        }
        if resync {
            said.push(Up::OpenSet { subjects: self.subjects() });
        }
        said
    }

    fn subjects(&self) -> Vec<SubjectState> {
        let subjects: BTreeSet<SubjectKey> = conditions().into_iter().map(|key| key.subject).collect();
        let state = |subject: SubjectKey| {
            let open = self.open.values().filter(|finding| finding.key.subject == subject).cloned();
            let open: Vec<Finding> = open.collect();
            SubjectState { subject, ok: Some(open.is_empty()), open }
        };
        subjects.into_iter().map(state).collect()
    }

    /// False when the stream must end: a coordinator of a lower epoch.
    pub(super) fn hear(&mut self, message: Down) -> bool {
        let Some(link) = self.link.as_mut() else { return true };
        match message {
            Down::Welcome { epoch, known } => {
                if epoch < self.epoch {
                    return false;
                }
                self.epoch = epoch;
                let known = known.filter(|(spool, _)| *spool == self.spool).map_or(0, |(_, sequence)| sequence);
                assert!(
                    known >= self.replicated,
                    "{} was told that {} is safe, {known} is known",
                    self.name,
                    self.replicated
                );
                link.welcomed = true;
                link.sent = known.min(self.head);
            }
            Down::Ack { stored, replicated } => {
                assert!(stored <= self.head, "{} was told that more is stored than it sent", self.name);
                self.replicated = self.replicated.max(replicated);
                while self.kept.front().is_some_and(|(sequence, ..)| *sequence <= replicated) {
                    self.kept.pop_front();
                }
            }
            Down::Resync => link.resync = true,
        }
        true
    }
}

//! The coordinator's side: the real machine and liveness table around an in-memory journal.

use super::{Down, Up};
use crate::scenario::{hello, policy};
use muster_common::ids::{AgentName, CoordinatorId, Epoch, FleetName};
use muster_common::spool::{EntryHash, Position};
use muster_common::time::Timestamp;
use muster_coordinator_core::entry::{Disconnect, Entry, Fact, IncidentKey, OperatorAction};
use muster_coordinator_core::liveness::{Heard, Liveness, Swept};
use muster_coordinator_core::page::PageId;
use muster_coordinator_core::policy::Policy;
use muster_coordinator_core::state::PageRecord;
use muster_coordinator_core::{Machine, State, apply, invariants};
use std::collections::BTreeMap;

/// One of the two.
#[derive(Debug)]
pub(super) struct Coordinator {
    pub(super) name: String,
    pub(super) up: bool,
    pub(super) primary: bool,
    pub(super) epoch: u64,
    pub(super) back_at: Option<Timestamp>,
    pub(super) machine: Machine,
    pub(super) committed: Vec<Entry>,
    pub(super) pending: Vec<Entry>,
    reigned: bool,
    liveness: Liveness,
    streams: BTreeMap<AgentName, usize>,
}

impl Coordinator {
    pub(super) fn new(name: &str) -> Self {
        let genesis = State::genesis();
        Self {
            name: name.to_owned(),
            up: true,
            primary: false,
            epoch: 0,
            back_at: None,
            liveness: Liveness::from_state(&genesis, genesis.last_at()),
            machine: Machine::new(genesis),
            committed: Vec::new(),
            pending: Vec::new(),
            reigned: false,
            streams: BTreeMap::new(),
        }
    }

    fn id(&self) -> CoordinatorId {
        CoordinatorId::new(self.name.as_str()).unwrap_or_else(|error| panic!("{error}"))
    }

    fn feed(&mut self, now: Timestamp, fact: Fact) {
        let entries = self.machine.feed(now, fact);
        self.pending.extend(entries);
        let found = invariants::check(self.machine.state());
        assert!(found.is_empty(), "{found:#?} after {:#?}", self.pending.last());
    }

    fn started(&self) -> Fact {
        let fleet = FleetName::new("test").unwrap_or_else(|error| panic!("{error}"));
        let epoch = Epoch { number: self.epoch, coordinator: self.id() };
        Fact::Started { coordinator: self.id(), fleet, version: "0.1.0".to_owned(), epoch }
    }

    pub(super) fn start(&mut self, now: Timestamp, epoch: u64, policy: Policy) {
        self.primary = true;
        self.epoch = epoch;
        let started = self.started();
        self.feed(now, started);
        self.feed(now, Fact::PolicyLoaded { policy: Box::new(policy) });
        self.begin_to_listen(now);
        self.commit();
    }

    fn begin_to_listen(&mut self, now: Timestamp) {
        self.liveness = Liveness::from_state(self.machine.state(), now);
        self.streams.clear();
    }

    /// Loses what was not committed; says how much.
    pub(super) fn crash(&mut self) -> usize {
        self.up = false;
        let lost = self.pending.len();
        self.pending.clear();
        let mut state = State::genesis();
        self.committed.iter().for_each(|entry| apply(&mut state, entry));
        self.machine = Machine::new(state);
        lost
    }

    pub(super) fn restart(&mut self, now: Timestamp) {
        self.back_at = None;
        self.up = true;
        let started = self.started();
        self.feed(now, started);
        self.begin_to_listen(now);
        self.commit();
    }

    /// Ends its reign; follows from here on.
    pub(super) fn step_down(&mut self) {
        self.crash();
        self.up = true;
        self.back_at = None;
        self.primary = false;
        self.reigned = true;
    }

    pub(super) fn take_over(&mut self, now: Timestamp, epoch: u64) {
        self.primary = true;
        self.epoch = epoch;
        let epoch = Epoch { number: epoch, coordinator: self.id() };
        let (by, reason) = ("ops".to_owned(), "drill".to_owned());
        self.feed(now, Fact::TookOver { epoch, from: None, by, reason, overridden: Vec::new() });
        if self.machine.state().policy().receivers.is_empty() {
            self.feed(now, Fact::PolicyLoaded { policy: Box::new(policy()) });
        }
        self.begin_to_listen(now);
        self.commit();
    }

    /// Takes over the other's journal; another history than its own is replaced as a whole.
    pub(super) fn follow(&mut self, entries: &[Entry]) {
        // After its own reign it may have entries that nobody else has: compared as a whole, once.
        let common = !self.reigned || entries.starts_with(&self.committed);
        self.reigned = false;
        if !common {
            self.committed.clear();
            self.machine = Machine::new(State::genesis());
        }
        let news = entries.get(self.committed.len()..).unwrap_or_default();
        for entry in news {
            self.machine.apply_replicated(entry).unwrap_or_else(|error| panic!("{error}"));
        }
        self.committed.extend_from_slice(news);
    }

    pub(super) fn commit(&mut self) {
        self.committed.append(&mut self.pending);
    }

    pub(super) fn paused(&mut self, now: Timestamp) {
        self.feed(now, Fact::Paused { gap_ms: 60_000 });
        if let Some(until) = self.machine.state().rehear_until() {
            self.liveness.paused(until);
        }
    }

    pub(super) fn tick(&mut self, now: Timestamp) {
        let entries = self.machine.run_deadlines(now);
        self.pending.extend(entries);
        let policy = self.machine.state().policy().liveness.clone();
        for swept in self.liveness.sweep(now, &policy) {
            let fact = match swept {
                Swept::Silent { agent, last_heard, silence } => Fact::AgentSilent { agent, last_heard, silence },
                Swept::Disconnected { agent, how } => Fact::AgentDisconnected { agent, how },
                Swept::Flapping { agent, reconnects } => Fact::AgentFlapping { agent, reconnects },
            };
            self.feed(now, fact);
        }
    }

    pub(super) fn stream_ended(&mut self, agent: &AgentName, stream: usize, now: Timestamp, goodbye: bool) {
        if !self.up || self.streams.get(agent) != Some(&stream) {
            return;
        }
        self.streams.remove(agent);
        let how = if goodbye { Disconnect::Goodbye } else { Disconnect::Reset };
        if self.liveness.disconnected(agent, how, now) {
            self.feed(now, Fact::AgentDisconnected { agent: agent.clone(), how });
        }
    }

    /// A message of an agent; perhaps an answer.
    pub(super) fn hear(&mut self, now: Timestamp, agent: &AgentName, stream: usize, message: Up) -> Option<Down> {
        if !self.up || !self.primary {
            return None;
        }
        if let Up::Hello { spool } = message {
            self.streams.insert(agent.clone(), stream);
            if self.liveness.connected(agent, now) == Heard::Back {
                let hello = hello(agent.as_str());
                self.feed(now, Fact::AgentConnected { agent: agent.clone(), hello });
            }
            let known = self.machine.state().agent(agent).and_then(|agent| agent.position);
            if known.is_none_or(|known| known.spool != spool) {
                self.feed(now, Fact::SpoolReplaced { agent: agent.clone(), old: known, new: spool });
            }
            let known = known.map(|known| (known.spool, known.sequence));
            return Some(Down::Welcome { epoch: self.epoch, known });
        }
        if self.streams.get(agent) != Some(&stream) {
            return None;
        }
        if self.liveness.heard(agent, now) == Heard::Back {
            self.feed(now, Fact::AgentHeard { agent: agent.clone() });
        }
        self.hear_on_stream(now, agent, stream, message)
    }

    fn hear_on_stream(&mut self, now: Timestamp, agent: &AgentName, stream: usize, message: Up) -> Option<Down> {
        let position = self.machine.state().agent(agent)?.position?;
        let who = agent.clone();
        match message {
            Up::Entry { sequence, age, event } if sequence == position.sequence + 1 => {
                let position = Position { spool: position.spool, sequence, hash: EntryHash([1; 16]) };
                let observed = now - age;
                self.feed(now, Fact::FindingReceived { agent: who, position, observed, estimated: false, event });
                None
            }
            Up::Lost { first, last } => {
                self.feed(now, Fact::FindingsLost { agent: who, spool: position.spool, first, last });
                None
            }
            Up::Beat { head, digest } => {
                let known = self.machine.state().agent(agent)?;
                let doubtful = !known.digest_matches || known.digest != digest;
                if head != position.sequence || !doubtful {
                    return None;
                }
                if known.digest_matches {
                    self.feed(now, Fact::DigestDiffers { agent: who });
                }
                Some(Down::Resync)
            }
            Up::OpenSet { subjects } => {
                self.feed(now, Fact::OpenSetReceived { agent: who, subjects });
                None
            }
            Up::Goodbye => {
                self.stream_ended(agent, stream, now, true);
                None
            }
            Up::Entry { .. } | Up::Hello { .. } => None,
        }
    }

    pub(super) fn operate(&mut self, now: Timestamp, key: &IncidentKey, resolve: bool) {
        let action = if resolve {
            OperatorAction::Resolve { summary: "done".to_owned() }
        } else {
            OperatorAction::Acknowledge { note: String::new() }
        };
        let (cause, generation) = (key.cause.clone(), key.generation);
        self.feed(now, Fact::Operator { by: "ann".to_owned(), cause, generation, action });
    }

    /// Journals that the sendable pages are about to leave, durably, and gives them.
    pub(super) fn begin_pages(&mut self, now: Timestamp) -> Vec<PageRecord> {
        let pages: Vec<PageRecord> = self.machine.state().sendable_pages().into_iter().cloned().collect();
        for page in &pages {
            if !page.attempted {
                self.feed(now, Fact::PageAttempted { page: page.id });
            }
        }
        self.commit();
        pages
    }

    pub(super) fn page_delivered(&mut self, now: Timestamp, page: PageId) {
        self.feed(now, Fact::PageDelivered { page });
    }
}

//! The coordinator's side: the real machine, liveness table and stream rules around an in-memory journal.
//!
//! Invariant: an acknowledgement is made of what is committed, never of what is pending.

use super::{RESYNC_INTERVAL, Up};
use crate::scenario::hello;
use muster_agent_core::session::{End, Message, Welcome};
use muster_common::ids::{AgentName, CoordinatorId, Epoch, FleetName, SpoolId};
use muster_common::time::Timestamp;
use muster_coordinator_core::agent_stream::{Acks, Offered, Refusal, SpoolReader, greet, wants_resync};
use muster_coordinator_core::entry::{Disconnect, Entry, EntryBody, Fact, IncidentKey, OperatorAction};
use muster_coordinator_core::liveness::{Heard, Liveness, Swept};
use muster_coordinator_core::page::PageId;
use muster_coordinator_core::policy::Policy;
use muster_coordinator_core::state::PageRecord;
use muster_coordinator_core::{Machine, State, apply, invariants};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// One agent's stream after its welcome.
#[derive(Debug)]
struct Stream {
    number: usize,
    reader: SpoolReader,
    acks: Acks,
    /// (journal index, sequence) of batches that are fed and not committed.
    in_flight: VecDeque<(u64, u64)>,
    owes_ack: bool,
    asked: u64,
    asked_at: Option<Timestamp>,
    /// (head, digest) of the newest heartbeat.
    newest: Option<(u64, u64)>,
}

/// One of the two.
#[derive(Debug)]
pub(super) struct Coordinator {
    pub(super) name: String,
    pub(super) up: bool,
    pub(super) primary: bool,
    pub(super) epoch: u64,
    pub(super) back_at: Option<Timestamp>,
    /// It stands still until then.
    pub(super) frozen_until: Option<Timestamp>,
    pub(super) machine: Machine,
    pub(super) committed: Vec<Entry>,
    pub(super) pending: Vec<Entry>,
    /// Journal index that the other one is known to have.
    pub(super) follower_index: u64,
    /// How far each agent's spool is committed, told by the journal alone.
    pub(super) stored: BTreeMap<AgentName, (SpoolId, u64)>,
    reigned: bool,
    liveness: Liveness,
    streams: BTreeMap<AgentName, Stream>,
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
            frozen_until: None,
            liveness: Liveness::from_state(&genesis, genesis.last_at()),
            machine: Machine::new(genesis),
            committed: Vec::new(),
            pending: Vec::new(),
            follower_index: 0,
            stored: BTreeMap::new(),
            reigned: false,
            streams: BTreeMap::new(),
        }
    }

    pub(super) fn own_epoch(&self) -> Epoch {
        Epoch { number: self.epoch, coordinator: self.id() }
    }

    pub(super) fn reigns(&self) -> bool {
        self.up && self.primary
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
        let fleet = FleetName::new(super::FLEET).unwrap_or_else(|error| panic!("{error}"));
        Fact::Started { coordinator: self.id(), fleet, version: "0.1.0".to_owned(), epoch: self.own_epoch() }
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
        self.frozen_until = None;
        let lost = self.pending.len();
        self.streams.clear();
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
        // What it has came from the other one, which thus has it too.
        self.follower_index = self.committed.len() as u64;
        let (by, reason) = ("ops".to_owned(), "drill".to_owned());
        self.feed(now, Fact::TookOver { epoch: self.own_epoch(), from: None, by, reason, overridden: Vec::new() });
        if self.machine.state().policy().receivers.is_empty() {
            self.feed(now, Fact::PolicyLoaded { policy: Box::new(super::world_policy()) });
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
            self.stored.clear();
            self.machine = Machine::new(State::genesis());
        }
        let news = entries.get(self.committed.len()..).unwrap_or_default();
        for entry in news {
            self.machine.apply_replicated(entry).unwrap_or_else(|error| panic!("{error}"));
        }
        self.note_stored(news);
        self.committed.extend_from_slice(news);
    }

    fn note_stored(&mut self, entries: &[Entry]) {
        for entry in entries {
            match &entry.body {
                EntryBody::Fact(Fact::FindingReceived { agent, position, .. }) => {
                    self.stored.insert(agent.clone(), (position.spool, position.sequence));
                }
                EntryBody::Fact(Fact::FindingsLost { agent, spool, last, .. }) => {
                    self.stored.insert(agent.clone(), (*spool, *last));
                }
                EntryBody::Fact(Fact::SpoolReplaced { agent, new, .. }) => {
                    self.stored.insert(agent.clone(), (*new, 0));
                }
                _ => {}
            }
        }
    }

    pub(super) fn commit(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        self.note_stored(&pending);
        self.committed.extend(pending);
        let head = self.committed.len() as u64;
        for stream in self.streams.values_mut() {
            while let Some((_, sequence)) = stream.in_flight.pop_front_if(|(index, _)| *index <= head) {
                stream.acks.committed(head, sequence);
                stream.owes_ack = true;
            }
        }
    }

    /// What is to be acknowledged now, by stream.
    pub(super) fn due_acks(&mut self) -> Vec<(AgentName, usize, Message)> {
        let mut due = Vec::new();
        for (agent, stream) in &mut self.streams {
            if stream.acks.replicated(Some(self.follower_index)) || stream.owes_ack {
                stream.owes_ack = false;
                let (stored, replicated) = stream.acks.told();
                let spool = stream.reader.position().spool;
                due.push((agent.clone(), stream.number, Message::Ack { spool, stored, replicated }));
            }
        }
        due
    }

    pub(super) fn paused(&mut self, now: Timestamp) {
        self.feed(now, Fact::Paused { gap_ms: 60_000 });
        if let Some(until) = self.machine.state().rehear_until() {
            self.liveness.paused(now, until);
        }
        self.frozen_until = None;
    }

    pub(super) fn tick(&mut self, now: Timestamp) {
        let entries = self.machine.run_deadlines(now);
        self.pending.extend(entries);
        let policy = self.machine.state().policy().liveness.clone();
        let state = self.machine.state();
        let swept = self.liveness.sweep(now, &policy, |agent| state.maintenance_of(agent).is_some());
        for swept in swept {
            let fact = match swept {
                Swept::Silent { agent, last_heard, silence } => Fact::AgentSilent { agent, last_heard, silence },
                Swept::Disconnected { agent, how } => Fact::AgentDisconnected { agent, how },
                Swept::Flapping { agent, reconnects } => Fact::AgentFlapping { agent, reconnects },
            };
            self.feed(now, fact);
        }
    }

    /// Asks those whose open set is in doubt.
    pub(super) fn due_resyncs(&mut self, now: Timestamp) -> Vec<(usize, Message)> {
        let (mut due, mut differ) = (Vec::new(), Vec::new());
        for (agent, stream) in &mut self.streams {
            let (Some((head, digest)), Some(record)) = (stream.newest, self.machine.state().agent(agent)) else {
                continue;
            };
            let asked_lately = stream.asked_at.is_some_and(|at| now.since(at) < RESYNC_INTERVAL);
            if asked_lately || !wants_resync(record, head, digest) {
                continue;
            }
            stream.asked += 1;
            stream.asked_at = Some(now);
            due.push((stream.number, Message::Resync { id: stream.asked }));
            if record.digest_matches {
                differ.push(agent.clone());
            }
        }
        for agent in differ {
            self.feed(now, Fact::DigestDiffers { agent });
        }
        due
    }

    pub(super) fn stream_ended(&mut self, agent: &AgentName, number: usize, now: Timestamp, how: Disconnect) {
        if !self.up || self.streams.get(agent).is_none_or(|stream| stream.number != number) {
            return;
        }
        self.streams.remove(agent);
        if self.liveness.disconnected(agent, how, now) {
            self.feed(now, Fact::AgentDisconnected { agent: agent.clone(), how });
        }
    }

    /// Somebody tells of an epoch, with proof. True when that ends this reign.
    pub(super) fn hear_epoch(&mut self, now: Timestamp, epoch: Epoch, from: &str) -> bool {
        if !self.reigns() || epoch <= self.own_epoch() {
            return false;
        }
        self.feed(now, Fact::EpochHeard { epoch, from: from.to_owned() });
        let after = self.pending.len();
        let deadlines = self.machine.run_deadlines(now + Duration::from_secs(3600));
        assert!(deadlines.is_empty(), "{} went on after it heard of a higher epoch", self.name);
        assert_eq!(after, self.pending.len());
        true
    }

    /// The first message of a stream, and its answer.
    pub(super) fn welcome(&mut self, now: Timestamp, agent: &AgentName, number: usize, spool: SpoolId) -> Message {
        let mut said = muster_coordinator_core::entry::AgentHello { spool, ..hello(agent.as_str()) };
        said.labels = super::labels(agent);
        let heard = self.liveness.connected(agent, now);
        let (facts, position) = greet(self.machine.state().agent(agent), heard, agent, said);
        for fact in facts {
            self.feed(now, fact);
        }
        let index = self.machine.state().head_index();
        // Pages, acknowledgements and welcomes alike: nothing leaves before it is committed.
        self.commit();
        let stream = Stream {
            number,
            reader: SpoolReader::new(agent.clone(), position),
            acks: Acks::new(index, position.sequence),
            in_flight: VecDeque::new(),
            owes_ack: position.sequence > 0,
            asked: 0,
            asked_at: None,
            newest: None,
        };
        self.streams.insert(agent.clone(), stream);
        Message::Welcome(Box::new(Welcome {
            fleet: super::FLEET.to_owned(),
            epoch: self.own_epoch(),
            proof: vec![1],
            heartbeat_interval_ms: u64::try_from(super::HEARTBEAT.as_millis()).unwrap_or(u64::MAX),
            resume: Some(position),
            endpoints: Vec::new(),
        }))
    }

    /// A later message; perhaps the end of the stream.
    pub(super) fn hear(&mut self, now: Timestamp, agent: &AgentName, number: usize, message: Up) -> Result<(), End> {
        if !self.reigns() || self.streams.get(agent).is_none_or(|stream| stream.number != number) {
            return Ok(());
        }
        if self.liveness.heard(agent, now) == Heard::Back {
            self.feed(now, Fact::AgentHeard { agent: agent.clone() });
        }
        let Some(stream) = self.streams.get_mut(agent) else { return Ok(()) };
        match read(stream, now, message) {
            Ok(facts) => {
                let any = !facts.is_empty();
                for fact in facts {
                    self.feed(now, fact);
                }
                let index = self.machine.state().head_index();
                if let Some(stream) = self.streams.get_mut(agent).filter(|_| any) {
                    stream.in_flight.push_back((index, stream.reader.position().sequence));
                }
                Ok(())
            }
            Err(refusal) => {
                // A disk that went back in time is the one honest reason.
                assert!(matches!(refusal, Refusal::Diverged(_)), "{agent} was refused: {refusal}");
                self.stream_ended(agent, number, now, Disconnect::Refused);
                Err(End::NotPrimary)
            }
        }
    }

    /// What others found out.
    pub(super) fn hear_fact(&mut self, now: Timestamp, fact: Fact) {
        self.feed(now, fact);
    }

    /// An agent is forgotten.
    pub(super) fn archive(&mut self, now: Timestamp, agent: &AgentName) {
        let (by, reason) = ("ann".to_owned(), "gone".to_owned());
        self.feed(now, Fact::AgentArchived { agent: agent.clone(), by, reason });
        self.liveness.forget(agent);
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

    /// A receiver refuses a page for good.
    pub(super) fn page_refused(&mut self, now: Timestamp, page: PageId) {
        self.feed(now, Fact::PageFailed { page, error: "answered 400".to_owned() });
    }

    pub(super) fn page_delivered(&mut self, now: Timestamp, page: PageId) {
        self.feed(now, Fact::PageDelivered { page });
    }
}

fn read(stream: &mut Stream, now: Timestamp, message: Up) -> Result<Vec<Fact>, Refusal> {
    let mut facts = Vec::new();
    match message {
        Up::Beat { head, digest } => stream.newest = Some((head, digest)),
        Up::Entries { spool, entries } => {
            stream.reader.must_be_ours(spool)?;
            for (entry, age) in &entries {
                let offered = Offered {
                    sequence: entry.sequence,
                    previous_hash: entry.previous_hash,
                    hash: entry.hash,
                    age: Duration::from_millis(age.ms),
                    estimated: age.estimated,
                    body: &entry.body,
                };
                match stream.reader.entry(offered, now, muster_proto::convert::finding_event)? {
                    Some(fact) => facts.push(fact),
                    None => stream.owes_ack = true,
                }
            }
        }
        Up::Gap { spool, first, last } => {
            stream.reader.must_be_ours(spool)?;
            facts.extend(stream.reader.gap(first, last)?);
        }
        Up::OpenSet { request, head, subjects } => {
            facts.extend(stream.reader.open_set(stream.asked, request, head, subjects, true)?);
        }
        Up::Hello { .. } | Up::Goodbye { .. } | Up::Closed => {}
    }
    Ok(facts)
}

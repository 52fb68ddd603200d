//! A seeded world: agents that spool, a network that delays, cuts and repeats, two coordinators of which one reigns,
//! crashes that lose what was not committed, takeovers, a pager that forgets to answer.
//!
//! The coordinator's side is the real machine and the real liveness table; agents are a model of the protocol's promises
//! ([`agent::ModelAgent`]). First faults with invariants after every fact, then healing, after which all must agree.
//! Whatever is done at random is written to the trace as what it was; a seed gives the same trace each time.

mod agent;
mod coordinator;

use crate::rng::Rng;
use crate::scenario::{START_UNIX_MS, json, policy};
use agent::ModelAgent;
use coordinator::Coordinator;
use muster_common::finding::{Finding, FindingEvent};
use muster_common::ids::{AgentName, SpoolId};
use muster_common::time::Timestamp;
use muster_coordinator_core::entry::{IncidentKey, SubjectState};
use muster_coordinator_core::page::PageAction;
use muster_coordinator_core::{State, apply, replay};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Agents of a world.
const AGENTS: [&str; 5] = ["a1", "a2", "a3", "a4", "a5"];
/// One step of the world.
const TICK: Duration = Duration::from_secs(1);
/// Steps with faults.
const FAULT_TICKS: u64 = 400;
/// Steps after healing: every reconnect, the stability windows twice, and the storm window.
const HEALED_TICKS: u64 = 1100;
/// Seconds of one of them: still several within the stale threshold.
const HEALED_TICK: Duration = Duration::from_secs(3);
/// Longest delay of a message.
const DELAY_MS_MAX: u64 = 2_500;

/// To the coordinator.
#[derive(Debug, Clone)]
pub(crate) enum Up {
    Hello { spool: SpoolId },
    Entry { sequence: u64, age: Duration, event: FindingEvent },
    Lost { first: u64, last: u64 },
    Beat { head: u64, digest: u64 },
    OpenSet { subjects: Vec<SubjectState> },
    Goodbye,
}

/// To the agent.
#[derive(Debug, Clone)]
pub(crate) enum Down {
    Welcome { epoch: u64, known: Option<(SpoolId, u64)> },
    Ack { stored: u64, replicated: u64 },
    Resync,
}

/// Either way.
#[derive(Debug, Clone)]
enum Message {
    Up(Up),
    Down(Down),
}

/// A connection. Messages of one arrive in order; after it was cut they arrive nowhere.
#[derive(Debug, Clone)]
struct Stream {
    agent: usize,
    coordinator: usize,
    open: bool,
    last_up: Timestamp,
    last_down: Timestamp,
}

/// Everything there is.
#[derive(Debug)]
pub struct World {
    rng: Rng,
    now: Timestamp,
    agents: Vec<ModelAgent>,
    coordinators: Vec<Coordinator>,
    streams: Vec<Stream>,
    network: BTreeMap<(Timestamp, u64), (usize, Message)>,
    sent: u64,
    faults: bool,
    told: BTreeMap<(String, u64), BTreeSet<String>>,
    /// What happened, in words.
    pub trace: Vec<String>,
}

impl World {
    /// A fresh fleet under `seed`.
    pub fn new(seed: u64) -> Self {
        let now = Timestamp::from_unix_ms(START_UNIX_MS);
        let agents = AGENTS.iter().enumerate().map(|(index, name)| ModelAgent::new(name, index, now)).collect();
        let coordinators = vec![Coordinator::new("coord-a"), Coordinator::new("coord-b")];
        let mut world = Self {
            rng: Rng::new(seed),
            now,
            agents,
            coordinators,
            streams: Vec::new(),
            network: BTreeMap::new(),
            sent: 0,
            faults: true,
            told: BTreeMap::new(),
            trace: Vec::new(),
        };
        if let Some(first) = world.coordinators.first_mut() {
            first.start(now, 1, policy());
        }
        world
    }

    /// Faults, then healing; panics with what is wrong.
    pub fn run(&mut self) {
        for tick in 0..FAULT_TICKS {
            self.act();
            self.step();
            if tick % 100 == 99 {
                self.check_journal();
            }
        }
        self.heal();
        for _ in 0..HEALED_TICKS {
            self.step();
        }
        self.check_journal();
        self.check_agreement();
    }

    fn note(&mut self, words: String) {
        self.trace.push(format!("{} {words}", self.now));
    }

    /// One random thing.
    fn act(&mut self) {
        let who = usize::try_from(self.rng.below(self.agents.len() as u64)).unwrap_or_default();
        match self.rng.below(100) {
            0..=29 => self.change_condition(who),
            30..=39 => self.occur(who),
            40..=44 => self.cut(who),
            45..=47 => {
                let until = self.now + Duration::from_secs(self.rng.below(90));
                self.agents[who].unreachable_until = until;
                self.cut(who);
                self.note(format!("{} is unreachable until {until}", AGENTS[who]));
            }
            48 => self.toggle_agent(who),
            49 => {
                self.agents[who].replace_spool();
                self.cut(who);
                self.note(format!("{} lost its spool", AGENTS[who]));
            }
            50 => {
                let lost = self.agents[who].evict();
                self.note(format!("{} evicted {lost} entries", AGENTS[who]));
            }
            51 => self.crash(),
            52 if self.rng.chance(50) => self.take_over(),
            53..=55 => self.operate(),
            56 => self.pause(),
            _ => {}
        }
    }

    fn change_condition(&mut self, who: usize) {
        let conditions = agent::conditions();
        let Some(key) = self.rng.pick(&conditions).cloned() else { return };
        let agent = &mut self.agents[who];
        let words = if agent.open.contains_key(&key) {
            agent.clear(&key, self.now);
            format!("{} clears {key}", AGENTS[who])
        } else {
            let finding = Finding::new(key.clone(), "broken");
            agent.open(finding, self.now);
            format!("{} opens {key}", AGENTS[who])
        };
        self.note(words);
    }

    fn occur(&mut self, who: usize) {
        let occurrences = agent::occurrences();
        let Some(key) = self.rng.pick(&occurrences).cloned() else { return };
        self.agents[who].occur(Finding::new(key.clone(), "happened"), self.now);
        self.note(format!("{} has {key}", AGENTS[who]));
    }

    /// Ends the agent's stream; both sides notice.
    fn cut(&mut self, who: usize) {
        let Some(stream) = self.agents[who].stream() else { return };
        self.streams[stream].open = false;
        let coordinator = self.streams[stream].coordinator;
        let name = self.agents[who].name.clone();
        let delay = Duration::from_millis(500 + self.rng.below(5_000));
        self.agents[who].disconnected(self.now + delay);
        let now = self.now;
        self.coordinators[coordinator].stream_ended(&name, stream, now, false);
        self.note(format!("the stream of {name} is cut"));
    }

    fn toggle_agent(&mut self, who: usize) {
        let name = self.agents[who].name.clone();
        if self.agents[who].up {
            if let Some(stream) = self.agents[who].stream() {
                self.send_up(stream, Up::Goodbye);
            }
            self.agents[who].up = false;
            self.note(format!("{name} is stopped"));
        } else {
            self.agents[who].up = true;
            let now = self.now;
            self.agents[who].disconnected(now);
            self.note(format!("{name} is started"));
        }
    }

    fn primary(&self) -> usize {
        self.coordinators.iter().position(|coordinator| coordinator.primary).unwrap_or_default()
    }

    fn crash(&mut self) {
        let index = self.primary();
        if !self.coordinators[index].up {
            return;
        }
        let lost = self.coordinators[index].crash();
        let back = self.now + Duration::from_secs(1 + self.rng.below(60));
        self.coordinators[index].back_at = Some(back);
        self.cut_all(index);
        self.note(format!("the primary crashes, loses {lost} entries, is back at {back}"));
    }

    fn cut_all(&mut self, coordinator: usize) {
        for who in 0..self.agents.len() {
            let stream = self.agents[who].stream();
            if stream.is_some_and(|stream| self.streams[stream].coordinator == coordinator) {
                if let Some(stream) = stream {
                    self.streams[stream].open = false;
                }
                let delay = Duration::from_millis(500 + self.rng.below(30_000));
                self.agents[who].disconnected(self.now + delay);
            }
        }
    }

    /// The standby becomes the primary; the old one ends and follows.
    fn take_over(&mut self) {
        let old = self.primary();
        let new = 1 - old;
        let epoch = self.coordinators[old].epoch.max(self.coordinators[new].epoch) + 1;
        self.cut_all(old);
        self.coordinators[old].step_down();
        let now = self.now;
        self.coordinators[new].take_over(now, epoch);
        self.note(format!("{} takes over with epoch {epoch}", self.coordinators[new].name));
    }

    fn operate(&mut self) {
        let index = self.primary();
        let open: Vec<IncidentKey> = {
            let state = self.coordinators[index].machine.state();
            state.incidents().filter(|incident| incident.is_unresolved()).map(|incident| incident.key.clone()).collect()
        };
        let resolve = self.rng.chance(40);
        let Some(key) = self.rng.pick(&open).cloned() else { return };
        let now = self.now;
        if self.coordinators[index].up {
            self.coordinators[index].operate(now, &key, resolve);
            self.note(format!("{} of {}", if resolve { "resolve" } else { "acknowledge" }, key.cause));
        }
    }

    fn pause(&mut self) {
        let index = self.primary();
        if !self.coordinators[index].up {
            return;
        }
        self.now = self.now + Duration::from_secs(60);
        let now = self.now;
        self.coordinators[index].paused(now);
        self.note("the primary stood still for 60 s".to_owned());
    }

    fn send_up(&mut self, stream: usize, message: Up) {
        self.send(stream, Message::Up(message));
    }

    fn send(&mut self, stream: usize, message: Message) {
        let delay_ms = if self.faults { self.rng.below(DELAY_MS_MAX) } else { 10 };
        let route = &mut self.streams[stream];
        let last = if matches!(message, Message::Up(_)) { &mut route.last_up } else { &mut route.last_down };
        let at = (self.now + Duration::from_millis(delay_ms)).max(*last);
        *last = at;
        self.sent += 1;
        self.network.insert((at, self.sent), (stream, message));
    }

    fn step(&mut self) {
        self.now = self.now + if self.faults { TICK } else { HEALED_TICK };
        self.restart_coordinators();
        self.agents_act();
        self.deliver();
        self.coordinators_act();
    }

    fn restart_coordinators(&mut self) {
        let now = self.now;
        for coordinator in &mut self.coordinators {
            if coordinator.back_at.is_some_and(|back| back <= now) {
                coordinator.restart(now);
            }
        }
    }

    fn agents_act(&mut self) {
        for who in 0..self.agents.len() {
            let now = self.now;
            if self.agents[who].wants_to_connect(now) {
                let index = self.primary();
                if self.coordinators[index].up {
                    let stream = self.streams.len();
                    let (agent, coordinator) = (who, index);
                    self.streams.push(Stream { agent, coordinator, open: true, last_up: now, last_down: now });
                    let hello = self.agents[who].connected(stream);
                    self.send_up(stream, hello);
                } else {
                    self.agents[who].disconnected(now + Duration::from_secs(1 + self.rng.below(20)));
                }
            }
            for message in self.agents[who].speak(now) {
                if let Some(stream) = self.agents[who].stream() {
                    self.send_up(stream, message);
                }
            }
        }
    }

    fn deliver(&mut self) {
        while let Some(entry) = self.network.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (stream, message) = entry.remove();
            let Stream { agent, coordinator, open, .. } = self.streams[stream];
            if !open {
                continue;
            }
            let now = self.now;
            match message {
                Message::Up(message) => {
                    let repeated = self.faults && self.rng.chance(3);
                    let name = self.agents[agent].name.clone();
                    for _ in 0..=u8::from(repeated) {
                        let answer = self.coordinators[coordinator].hear(now, &name, stream, message.clone());
                        if let Some(answer) = answer {
                            self.send(stream, Message::Down(answer));
                        }
                    }
                }
                Message::Down(message) => {
                    if !self.agents[agent].hear(message) {
                        self.cut(agent);
                    }
                }
            }
        }
    }

    fn coordinators_act(&mut self) {
        let index = self.primary();
        if !self.coordinators[index].up {
            return;
        }
        let now = self.now;
        self.coordinators[index].tick(now);
        if self.faults && self.rng.chance(30) {
            return;
        }
        self.coordinators[index].commit();
        if !self.faults || self.rng.chance(60) {
            self.replicate(index);
        }
        self.acknowledge(index);
        if !self.faults || self.rng.chance(70) {
            self.page(index);
        }
    }

    fn replicate(&mut self, index: usize) {
        let (before, after) = self.coordinators.split_at_mut(1);
        match (index, before.first_mut(), after.first_mut()) {
            (0, Some(primary), Some(standby)) | (1, Some(standby), Some(primary)) => standby.follow(&primary.committed),
            _ => {}
        }
    }

    fn acknowledge(&mut self, index: usize) {
        for who in 0..self.agents.len() {
            let Some(stream) = self.agents[who].stream().filter(|stream| self.streams[*stream].open) else { continue };
            let name = self.agents[who].name.clone();
            let spool = self.agents[who].spool;
            let position = |coordinator: &Coordinator| {
                let position = coordinator.machine.state().agent(&name)?.position?;
                (position.spool == spool).then_some(position.sequence)
            };
            let stored = position(&self.coordinators[index]).unwrap_or(0);
            let replicated = position(&self.coordinators[1 - index]).unwrap_or(0).min(stored);
            if self.streams[stream].coordinator == index {
                self.send(stream, Message::Down(Down::Ack { stored, replicated }));
            }
        }
    }

    /// Sends what may be sent. Attempted is committed before it leaves; the answer may get lost.
    fn page(&mut self, index: usize) {
        let now = self.now;
        for page in self.coordinators[index].begin_pages(now) {
            let state = self.coordinators[index].machine.state();
            if page.page.action == PageAction::Trigger {
                // A page that was tried before is tried again: its receiver may know of it already.
                let silence = page.page.cause_key.ends_with("/agent") && !page.attempted;
                assert!(!(silence && state.rehear_until().is_some()), "paged about a silence while re-hearing");
                let repages = state.incident(&page.incident).map_or(0, |incident| incident.repages);
                let key = (page.incident.cause.clone(), page.incident.generation);
                let keys = self.told.entry(key.clone()).or_default();
                keys.insert(page.page.dedup_key.clone());
                assert!(keys.len() as u64 <= repages + 1, "{key:?} was paged under {keys:?}");
            }
            if !self.faults || self.rng.chance(80) {
                self.coordinators[index].page_delivered(now, page.id);
            }
        }
    }

    fn heal(&mut self) {
        self.faults = false;
        let now = self.now;
        for who in 0..self.agents.len() {
            let agent = &mut self.agents[who];
            agent.unreachable_until = now;
            if !agent.up {
                agent.up = true;
                agent.disconnected(now);
            }
            let open: Vec<_> = agent.open.keys().cloned().collect();
            for key in open {
                agent.clear(&key, now);
            }
        }
        let state = self.coordinators[self.primary()].machine.state();
        let (entries, incidents) = (state.head_index(), state.incidents().count());
        let keys = self.told.values().map(BTreeSet::len).sum::<usize>();
        self.note(format!("healed after {entries} entries, {incidents} incidents, {keys} deduplication keys"));
    }

    fn check_journal(&self) {
        for coordinator in &self.coordinators {
            let mut fresh = State::genesis();
            let all = coordinator.committed.iter().chain(&coordinator.pending);
            all.clone().for_each(|entry| apply(&mut fresh, entry));
            let live = json(coordinator.machine.state());
            assert_eq!(json(&fresh), live, "{}: the journal gives another state", coordinator.name);
            let all: Vec<_> = all.cloned().collect();
            if let Err(divergence) = replay::verify(State::genesis(), &all) {
                panic!("{}: the replay diverges: {divergence:#?}", coordinator.name);
            }
        }
    }

    fn check_agreement(&self) {
        let state = self.coordinators[self.primary()].machine.state();
        for agent in &self.agents {
            let known = state.agent(&agent.name).unwrap_or_else(|| panic!("{} is not known", agent.name));
            let theirs: Vec<_> = known.open.keys().collect();
            let ours: Vec<_> = agent.open.keys().collect();
            assert_eq!(theirs, ours, "open conditions of {} differ", agent.name);
            assert!(known.digest_matches, "the digest of {} is in doubt", agent.name);
            let position = known.position.map(|position| position.sequence);
            assert_eq!(position, Some(agent.head), "entries of {} are missing", agent.name);
        }
        assert_eq!(state.n_silent(), 0, "someone still counts as silent");
        assert_eq!(state.pending_pages().count(), 0, "pages are pending");
        let unresolved: Vec<_> = state.incidents().filter(|incident| incident.is_unresolved()).collect();
        assert!(unresolved.is_empty(), "unresolved: {unresolved:#?}");
    }
}

/// A spool id of the model.
fn spool_id(agent: usize, life: u64) -> SpoolId {
    let text = format!("{agent:08x}-0000-4000-8000-{life:012x}");
    serde_json::from_value(serde_json::Value::String(text)).unwrap_or_else(|error| panic!("{error}"))
}

/// A name of the model.
fn agent_name(name: &str) -> AgentName {
    crate::scenario::agent(name)
}

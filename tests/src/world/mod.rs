//! A seeded world: hosts that fall ill, agents that spool, a network that delays, cuts and repeats, disks that are lost,
//! filled or reverted, two coordinators of which one should reign, crashes that lose what was not committed, takeovers
//! that the old primary hears of late, a pager that forgets to answer.
//!
//! What is decided is decided by the real pieces: the agents' session and ledger, the coordinator's machine, liveness
//! table and stream rules. The world is their shell: clocks, network, disks, randomness from the seed. First faults with
//! invariants after every event, then healing, after which all must agree. Whatever is done at random is written to the
//! trace as what it was; a seed gives the same trace each time.

mod agent;
mod checks;
mod coordinator;
mod faults;
mod neighbours;
mod people;
mod shell;
mod spool;

use crate::rng::Rng;
use crate::scenario::{START_UNIX_MS, policy};
use agent::Agent;
use coordinator::Coordinator;
use muster_agent_core::session::{Age, End, Entry, Message};
use muster_common::ids::{AgentName, Epoch, SpoolId};
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use muster_coordinator_core::entry::{Disconnect, Fact, SubjectState};
use muster_coordinator_core::policy::{Policy, Route};
use shell::Work;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The fleet.
const FLEET: &str = "test";
/// Agents of a world.
const AGENTS: [&str; 5] = ["a1", "a2", "a3", "a4", "a5"];
/// Its coordinators.
const COORDINATORS: [&str; 2] = ["coord-a", "coord-b"];
/// Heartbeats, as the policy of the scenarios has them.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A resync is not asked for again sooner.
const RESYNC_INTERVAL: Duration = Duration::from_secs(10);
/// One turn of the coordinators.
const TICK: Duration = Duration::from_secs(1);
/// Steps with faults.
const FAULT_TICKS: u64 = 400;
/// Steps after healing until all must agree about what is still wrong: back-offs, re-hear window, resyncs.
const AGREE_TICKS: u64 = 120;
/// Steps after all is well: the stability windows twice, and the storm window.
const HEALED_TICKS: u64 = 1000;
/// Seconds of one of them: still several within the stale threshold.
const HEALED_TICK: Duration = Duration::from_secs(3);
/// Longest delay of a message.
const DELAY_MS_MAX: u64 = 2_500;

/// To the coordinator.
#[derive(Debug, Clone)]
pub(crate) enum Up {
    Hello {
        spool: SpoolId,
        highest: Option<Epoch>,
    },
    Beat {
        head: u64,
        digest: u64,
    },
    Entries {
        spool: SpoolId,
        entries: Vec<(Entry, Age)>,
    },
    Gap {
        spool: SpoolId,
        first: u64,
        last: u64,
    },
    OpenSet {
        request: u64,
        head: u64,
        subjects: Vec<SubjectState>,
    },
    Goodbye {
        how: Disconnect,
    },
    /// The agent closed its end; what it said before comes before.
    Closed,
}

/// What happens at its time.
#[derive(Debug, Clone)]
enum Event {
    /// An agent knocks.
    Knock {
        stream: usize,
    },
    /// The transport stands, or does not.
    Connected {
        stream: usize,
        refused: Option<End>,
    },
    Up {
        stream: usize,
        message: Up,
    },
    Down {
        stream: usize,
        message: Message,
    },
    /// An end notices that the stream is over.
    AgentSees {
        stream: usize,
        end: End,
    },
    CoordinatorSees {
        stream: usize,
    },
    /// A spool did what its agent's process number `life` asked for under `session_stream`.
    Spool {
        agent: usize,
        life: u64,
        session_stream: u64,
        work: Box<Work>,
    },
    /// An agent that was down starts again.
    Starts {
        agent: usize,
        life: u64,
    },
}

/// A connection. Messages of one arrive in order; after it was cut they arrive nowhere.
#[derive(Debug, Clone)]
struct Stream {
    agent: usize,
    coordinator: usize,
    /// The session's number.
    number: u64,
    /// Of the agent's process.
    life: u64,
    open: bool,
    last_up: Timestamp,
    last_down: Timestamp,
}

/// What receivers were told about one incident.
#[derive(Debug, Default)]
struct Told {
    /// Deduplication keys.
    keys: BTreeSet<String>,
    /// The most re-pages any coordinator counted for it.
    repages: u64,
    /// It was told while two reigned: each may have let it go on under another page's key.
    of_two: bool,
}

/// Everything there is.
#[derive(Debug)]
pub struct World {
    rng: Rng,
    now: Timestamp,
    agents: Vec<Agent>,
    coordinators: Vec<Coordinator>,
    streams: Vec<Stream>,
    events: BTreeMap<(Timestamp, u64), Event>,
    n_events: u64,
    faults: bool,
    /// What receivers were told about each incident, by cause and generation.
    told: BTreeMap<(String, u64), Told>,
    /// Deduplication keys that are open at the receiver.
    ringing: BTreeSet<String>,
    /// Events that an agent was told are safe for ever.
    safe: BTreeSet<(usize, u64)>,
    takeovers: u64,
    /// Entries of each coordinator's journal in which questions to neighbours were looked for.
    asked: BTreeMap<usize, usize>,
    /// Answers to them on their way: when, to which coordinator.
    opinions: Vec<(Timestamp, usize, Fact)>,
    /// What was seen at least once over the run, for those who ask whether a seed tries anything.
    pub seen: BTreeMap<&'static str, u64>,
    /// What happened, in words.
    pub trace: Vec<String>,
}

impl World {
    /// A fresh fleet under `seed`.
    pub fn new(seed: u64) -> Self {
        let now = Timestamp::from_unix_ms(START_UNIX_MS);
        let mut world = Self {
            rng: Rng::new(seed),
            now,
            agents: AGENTS.iter().enumerate().map(|(index, name)| Agent::new(name, index, now)).collect(),
            coordinators: COORDINATORS.iter().map(|name| Coordinator::new(name)).collect(),
            streams: Vec::new(),
            events: BTreeMap::new(),
            n_events: 0,
            faults: true,
            told: BTreeMap::new(),
            ringing: BTreeSet::new(),
            safe: BTreeSet::new(),
            takeovers: 0,
            asked: BTreeMap::new(),
            opinions: Vec::new(),
            seen: BTreeMap::new(),
            trace: Vec::new(),
        };
        // One whose service loops from the beginning: long enough for its ends to be its loop's.
        if let Some(last) = world.agents.last_mut() {
            last.sick.insert(agent::restart_loop());
        }
        if let Some(first) = world.coordinators.first_mut() {
            first.start(now, 1, world_policy());
        }
        world
    }

    /// Faults, then healing; panics with what is wrong.
    pub fn run(&mut self) {
        for tick in 0..FAULT_TICKS {
            self.act();
            self.step(TICK);
            if tick % 200 == 199 {
                self.check_journal();
            }
        }
        self.heal();
        for _ in 0..AGREE_TICKS {
            self.step(HEALED_TICK);
        }
        self.check_open_sets();
        let now = self.now;
        self.agents.iter_mut().for_each(|agent| agent.get_well(now));
        for _ in 0..HEALED_TICKS {
            self.step(HEALED_TICK);
        }
        self.check_journal();
        self.check_open_sets();
        self.check_what_if();
        self.check_everything_is_over();
        self.count_conclusions();
        if self.agents.iter().any(|agent| agent.folded > 0) {
            self.count("an end that its loop alone tells");
        }
        self.check_every_event_once();
    }

    fn note(&mut self, words: String) {
        self.trace.push(format!("{} {words}", self.now));
    }

    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn schedule(&mut self, at: Timestamp, event: Event) {
        self.n_events += 1;
        self.events.insert((at.max(self.now), self.n_events), event);
    }

    /// The one that reigns by right: of the highest epoch.
    fn primary(&self) -> usize {
        let reigning = self.coordinators.iter().enumerate().filter(|(_, coordinator)| coordinator.primary);
        reigning.max_by_key(|(_, coordinator)| coordinator.epoch).map_or(0, |(index, _)| index)
    }

    /// Everything that happens within `length`, in its order; then the coordinators' turn.
    fn step(&mut self, length: Duration) {
        let end = self.now + length;
        loop {
            let event = self.events.first_key_value().map(|((at, _), _)| *at).filter(|at| *at <= end);
            let due = |agent: &Agent| {
                let probe = agent.is_up().then_some(agent.next_probe);
                agent.deadline().into_iter().chain(probe).min()
            };
            let next = self.agents.iter().enumerate().filter_map(|(who, agent)| Some((due(agent)?, who))).min();
            let next = next.filter(|(at, _)| *at <= end);
            match (event, next) {
                (None, None) => break,
                (Some(at), next) if next.is_none_or(|(due, _)| at <= due) => {
                    self.now = self.now.max(at);
                    if let Some(((_, order), event)) = self.events.pop_first() {
                        self.happen(order, event);
                    }
                }
                (_, Some((at, who))) => {
                    self.now = self.now.max(at);
                    self.agent_due(who);
                }
                (Some(_), None) => {}
            }
        }
        self.now = end;
        self.restart_coordinators();
        for index in 0..self.coordinators.len() {
            self.coordinator_turn(index);
        }
    }

    fn restart_coordinators(&mut self) {
        let now = self.now;
        for coordinator in &mut self.coordinators {
            if coordinator.back_at.is_some_and(|back| back <= now) {
                coordinator.restart(now);
            }
            if coordinator.frozen_until.is_some_and(|until| until <= now) {
                coordinator.paused(now);
            }
        }
    }

    fn coordinator_turn(&mut self, index: usize) {
        let now = self.now;
        if !self.coordinators[index].reigns() || self.coordinators[index].frozen_until.is_some() {
            return;
        }
        self.coordinators[index].tick(now);
        for (stream, message) in self.coordinators[index].due_resyncs(now) {
            self.count("resync");
            self.send_down(stream, message);
        }
        if self.faults && self.rng.chance(30) {
            return;
        }
        self.coordinators[index].commit();
        self.answer_questions(index);
        if !self.faults || self.rng.chance(60) {
            self.replicate(index);
        }
        for (agent, stream, ack) in self.coordinators[index].due_acks() {
            self.check_ack(index, &agent, &ack);
            self.send_down(stream, ack);
        }
        if !self.faults || self.rng.chance(70) {
            self.page(index);
        }
    }

    fn replicate(&mut self, index: usize) {
        let (before, after) = self.coordinators.split_at_mut(1);
        let (Some(first), Some(second)) = (before.first_mut(), after.first_mut()) else { return };
        let (primary, standby) = if index == 0 { (first, second) } else { (second, first) };
        // One that believes to reign itself follows nobody.
        if standby.up && !standby.primary {
            standby.follow(&primary.committed);
            primary.follower_index = primary.committed.len() as u64;
        }
    }

    /// Sends what may be sent. Attempted is committed before it leaves; the answer may get lost.
    fn page(&mut self, index: usize) {
        let now = self.now;
        for page in self.coordinators[index].begin_pages(now) {
            self.check_page(index, &page);
            if self.faults && self.rng.chance(5) {
                self.coordinators[index].page_refused(now, page.id);
            } else if !self.faults || self.rng.chance(80) {
                self.coordinators[index].page_delivered(now, page.id);
            }
        }
    }
}

/// The address of a coordinator.
fn endpoint(name: &str) -> String {
    format!("https://{name}:7420")
}

/// The policy of the scenarios, with thresholds over many hosts that a fleet of five reaches.
fn world_policy() -> Policy {
    let mut policy = policy();
    // Small enough for five hosts and some minutes.
    policy.correlation.incidents = 6;
    policy.escalation.sev2 = Duration::from_secs(90);
    policy.escalation.sev3 = Duration::from_secs(120);
    policy.restart_storm.fleet_hosts = 2;
    policy.restart_storm.window = Duration::from_secs(60);
    policy.detect.oom_storm.window = Duration::from_secs(60);
    policy.detect.oom_storm.hosts = 2;
    policy.detect.reason_widespread.hosts = 3;
    policy.detect.memory_group.hosts = 3;
    policy.detect.memory_group.place_hosts_min = 2;
    policy.detect.probe_blind.hosts = 2;
    policy.detect.mass_place.agents_min = 2;
    // Everything to one receiver, what is bad or in the east to all; each stands in for the other.
    let route = |receivers: &[&str]| Route {
        receivers: receivers.iter().map(ToString::to_string).collect(),
        ..Route::default()
    };
    let bad = Route { severities: [Severity::Sev0, Severity::Sev1].into(), ..route(&["ops", "chat"]) };
    let east = Route { labels: [("zone".to_owned(), "east".to_owned())].into(), goes_on: true, ..route(&["chat"]) };
    policy.routes = vec![bad, east, route(&["ops"])];
    policy.fallbacks = [("ops", "chat"), ("chat", "ops")].map(|(a, b)| (a.to_owned(), b.to_owned())).into();
    policy
}

/// What an agent says of where it is: two zones.
fn labels(agent: &AgentName) -> BTreeMap<String, String> {
    let zone = if agent.as_str() < "a3" { "east" } else { "west" };
    BTreeMap::from([("zone".to_owned(), zone.to_owned())])
}

/// The `n`th id of an agent.
fn uuid(agent: usize, n: u64) -> uuid::Uuid {
    uuid::Uuid::from_u64_pair(agent as u64 + 1, n)
}

/// A name of the world.
fn agent_name(name: &str) -> AgentName {
    crate::scenario::agent(name)
}

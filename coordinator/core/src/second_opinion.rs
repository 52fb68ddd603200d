//! Second opinions: before an agent's silence is paged, up to three live agents near it are asked whether its host
//! answers. The page then says whether the host or only its agent is down.
//!
//! Nobody can aim it: the target is the address that the coordinator itself saw the silent agent connect from, the ports
//! are those that this very agent had told of itself, and both are bounded in number and in time. An opinion changes
//! words, never whether somebody is paged.
//!
//! A question is a conclusion, its answers are a fact: a replay asks nobody.

mod by_address;

use crate::apply::incidents::note;
use crate::apply::{Step, incidents};
use crate::cause::{self, CauseKind};
use crate::detect;
use crate::entry::{Conclusion, IncidentKey, TimerKey};
use crate::state::{AgentRecord, Incident, IncidentStatus, Link, State};
use crate::timeline::LineKind;
use muster_common::ids::AgentName;
use muster_common::limits::{LISTENING_PORTS_MAX, NAME_BYTES_MAX, clip};
use muster_common::neighbour::may_be_asked;
use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use by_address::ByAddress;

/// Agents asked about one silence: an odd number, so that they may outvote one that is cut off itself.
pub const ASKERS_MAX: usize = 3;
/// Answers later than this are not waited for. Each of them takes a second at most.
pub const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Silences come staggered by a heartbeat or two: whoever is asked at once is asked before a mass is known as one.
const WAIT: Duration = Duration::from_secs(10);
/// What must be left of the hold for an answer to come in time.
const REST_MIN: Duration = Duration::from_secs(2);
/// Between two questions about one agent.
const TARGET_INTERVAL: Duration = Duration::from_secs(120);
/// Questions are counted over this long.
const WINDOW: Duration = Duration::from_secs(60);
/// Questions to one agent in that time. Below what an agent itself takes.
const PER_ASKER_MAX: usize = 4;
/// Questions in that time, all together. More silences than this are no matter of single hosts.
const QUESTIONS_MAX: usize = 32;
/// Agents looked at in each direction, by address and by name: the fleet is never scanned.
const NEAR_MAX: usize = 32;

/// What one peer met on one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortOutcome {
    /// It accepted the connection.
    Open,
    /// It answered that nobody listens: the host lives.
    Refused,
    /// No answer in time.
    Timeout,
    /// No way there, told by the network.
    Unreachable,
}

/// What one peer said about one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortAnswer {
    /// Which.
    pub port: u16,
    /// What it met.
    pub outcome: PortOutcome,
}

/// What one peer said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAnswer {
    /// Who.
    pub peer: AgentName,
    /// Port by port.
    pub ports: Vec<PortAnswer>,
    /// Why it did not look, if it did not.
    pub refused: Option<String>,
}

/// What the answers come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opinion {
    /// All who looked met the host.
    Answers {
        /// Ports that accepted a connection; empty when all that was heard was a refusal.
        open: Vec<u16>,
        /// How many looked.
        peers: usize,
    },
    /// None who looked met it.
    Nobody {
        /// How many looked.
        peers: usize,
    },
    /// Some met it, some did not.
    Disagree {
        /// Who met it.
        reached: Vec<AgentName>,
        /// Who did not.
        missed: Vec<AgentName>,
        /// Ports that accepted a connection.
        open: Vec<u16>,
    },
    /// Nobody could or would look.
    Unanswered {
        /// How many were asked.
        peers: usize,
    },
}

/// A question that was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Index of its conclusion: what an answer names.
    pub index: u64,
    /// Index of the silence it is about.
    pub silence: u64,
    /// When.
    pub at: Timestamp,
    /// Whom the host was looked for at.
    pub address: IpAddr,
    /// On which ports.
    pub ports: Vec<u16>,
    /// Who was asked.
    pub askers: Vec<AgentName>,
    /// What came of it.
    pub opinion: Option<Opinion>,
}

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SecondOpinions {
    /// Known agents by the address they connect from.
    pub(crate) by_address: ByAddress,
    /// The newest question about each silent agent.
    pub(crate) questions: BTreeMap<AgentName, Question>,
    /// Who was asked about, when and of whom: for the rates. At most one window's bound, and one per target.
    pub(crate) recent: VecDeque<(Timestamp, AgentName, Vec<AgentName>)>,
}

/// Questions remembered for the rates: as many as may be asked in the longer of the two intervals.
pub(crate) const RECENT_MAX: usize = 2 * QUESTIONS_MAX;

impl State {
    /// What was asked about an agent that is silent, if anything.
    pub fn second_opinion(&self, agent: &AgentName) -> Option<&Question> {
        self.second_opinions.questions.get(agent)
    }
}

impl Opinion {
    /// For a page.
    pub fn words(&self, address: IpAddr) -> String {
        match self {
            Self::Answers { open, peers } if open.is_empty() => format!(
                "the host answers {} that nothing listens there: it lives, its agent and its services are down",
                from(*peers)
            ),
            Self::Answers { open, peers } => {
                format!("the host answers on {} {}: it lives, its agent is down", list(open), from(*peers))
            }
            Self::Nobody { peers } => {
                let asked = if *peers == 1 { "1 peer".to_owned() } else { format!("{peers} peers") };
                format!("nobody reaches {address} ({asked} asked): the host or its network is down")
            }
            Self::Disagree { reached, missed, open } => {
                let on = if open.is_empty() { String::new() } else { format!(" on {}", list(open)) };
                format!(
                    "peers disagree: {} of {} reach {address}{on} ({}), {} not ({})",
                    reached.len(),
                    reached.len() + missed.len(),
                    list(reached),
                    if missed.len() == 1 { "1 does" } else { "the others do" },
                    list(missed)
                )
            }
            Self::Unanswered { peers } => {
                format!("{peers} of its peers were asked whether the host answers, and none of them could say")
            }
        }
    }

    /// What to do about it.
    pub(crate) fn next_steps(&self, agent: &AgentName, address: IpAddr) -> Vec<String> {
        let log_in = "on the host: systemctl status muster-agent; journalctl -u muster-agent -n 50".to_owned();
        match self {
            Self::Answers { .. } => vec![log_in],
            Self::Nobody { .. } => vec![
                format!("look at the power, console and network port of {agent} ({address}); ask its hypervisor"),
                "ask whether somebody works on it".to_owned(),
            ],
            Self::Disagree { missed, .. } => {
                vec![format!("compare the routes to {address} from {} and from the others", list(missed)), log_in]
            }
            Self::Unanswered { .. } => vec![format!("see whether the host answers: ping {address}"), log_in],
        }
    }
}

fn from(peers: usize) -> String {
    if peers == 1 { "from 1 peer".to_owned() } else { format!("from {peers} peers") }
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// When within a hold of this length the question is due.
fn due_after(hold: Duration) -> Duration {
    WAIT.min(hold / 2)
}

/// The address an agent connects from, where it can be asked for there.
fn address_of(record: &AgentRecord) -> Option<IpAddr> {
    let address: IpAddr = record.hello.as_ref()?.peer_address.parse().ok()?;
    let address = address.to_canonical();
    may_be_asked(address).ok().map(|()| address)
}

/// The question about a silent agent, when it is due and allowed.
pub(crate) fn wanted(state: &State, now: Timestamp, incident: &Incident) -> Option<Conclusion> {
    let policy = &state.policy().second_opinion;
    if !policy.enabled || cause::kind_of(&incident.key.cause) != CauseKind::AgentStale {
        return None;
    }
    let until = incident.hold_until.filter(|_| incident.status == IncidentStatus::Open)?;
    let due = incident.opened + due_after(until.since(incident.opened));
    // Many silences are no question about one host.
    if now < due || until.since(now) < REST_MIN || state.rehear_until().is_some() {
        return None;
    }
    let record = state.agent(incident.agents.first()?)?;
    if detect::is_gathered(state, &record.name) {
        return None;
    }
    let Link::Silent { index: silence, .. } = record.link else { return None };
    let asked = state.second_opinion(&record.name).is_some_and(|question| question.silence == silence);
    if asked || !rates_allow(state, now, &record.name) {
        return None;
    }
    let address = address_of(record)?;
    // Behind a shared address it is not known which host answers.
    let alone = state.second_opinions.by_address.get(address).is_none_or(|agents| agents.len() == 1);
    let ports = record.hello.as_ref().map(|hello| hello.listening_ports.clone()).unwrap_or_default();
    let askers = askers(state, now, record, address);
    if !alone || ports.is_empty() || askers.is_empty() {
        return None;
    }
    let why = format!("{} is silent, and these are near it: does {address} answer?", record.name);
    let (incident, agent) = (incident.key.clone(), record.name.clone());
    Some(Conclusion::SecondOpinionWanted { incident, agent, address, ports, askers, why })
}

fn rates_allow(state: &State, now: Timestamp, target: &AgentName) -> bool {
    let recent = &state.second_opinions.recent;
    let in_window = recent.iter().filter(|(at, ..)| now.since(*at) < WINDOW).count();
    let lately = recent.iter().any(|(at, asked, _)| asked == target && now.since(*at) < TARGET_INTERVAL);
    in_window < QUESTIONS_MAX && !lately
}

/// Live agents near `target`: those that share the most labels, of these the nearest by address, of these by name.
fn askers(state: &State, now: Timestamp, target: &AgentRecord, address: IpAddr) -> Vec<AgentName> {
    let index = &state.second_opinions.by_address;
    let (below, above) = (index.below(address).take(NEAR_MAX), index.above(address).take(NEAR_MAX));
    let by_address = below.chain(above).flat_map(|agents| agents.iter().take(2));
    let before = state.agents.before(&target.name).take(NEAR_MAX);
    let after = state.agents.after(&target.name).take(NEAR_MAX - 1);
    let by_name = before.chain(after);
    let near: BTreeSet<&AgentName> = by_address.chain(by_name).filter(|name| **name != target.name).collect();
    let free = |asker: &AgentName| {
        let asked = |(at, _, askers): &&(Timestamp, AgentName, Vec<AgentName>)| {
            now.since(*at) < WINDOW && askers.contains(asker)
        };
        state.second_opinions.recent.iter().filter(asked).count() < PER_ASKER_MAX
    };
    let mut ranked: Vec<_> = near
        .into_iter()
        .filter_map(|name| state.agent(name))
        .filter(|record| record.link == Link::Heard && free(&record.name))
        .filter_map(|record| {
            let own = address_of(record).filter(|own| *own != address && own.is_ipv4() == address.is_ipv4())?;
            let far = u8::MAX - shared_labels(record, target);
            Some((far, u8::MAX - shared_prefix(own, address), &record.name))
        })
        .collect();
    ranked.sort();
    let most = usize::try_from(state.policy().second_opinion.askers).unwrap_or(ASKERS_MAX).min(ASKERS_MAX);
    ranked.into_iter().take(most).map(|(.., name)| name.clone()).collect()
}

fn shared_labels(a: &AgentRecord, b: &AgentRecord) -> u8 {
    let (Some(a), Some(b)) = (&a.hello, &b.hello) else { return 0 };
    let shared = a.labels.iter().filter(|(key, value)| b.labels.get(*key) == Some(value)).count();
    u8::try_from(shared).unwrap_or(u8::MAX)
}

/// Leading bits that two addresses of one family share.
fn shared_prefix(a: IpAddr, b: IpAddr) -> u8 {
    let bits = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => 0,
    };
    u8::try_from(bits).unwrap_or(u8::MAX)
}

/// The agent connects from the address `new` now, before it did from `old`.
pub(crate) fn moved(state: &mut State, agent: &AgentName, old: Option<&str>, new: Option<&str>) {
    let parsed = |text: &str| text.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    let new_address = new.and_then(parsed);
    let old = if old == new { new_address } else { old.and_then(parsed) };
    let new = new_address;
    let index = &mut state.second_opinions.by_address;
    if let Some(old) = old.filter(|old| Some(*old) != new) {
        index.leave(old, agent);
    }
    // Also where it did not move: snapshots of older versions have no index.
    if let Some(new) = new {
        index.enter(new, agent);
    }
}

/// It is heard again, or forgotten: what was asked about it matters no more.
pub(crate) fn over(state: &mut State, agent: &AgentName) {
    state.second_opinions.questions.remove(agent);
}

/// An incident was opened: looks at it again when the question is due.
pub(crate) fn opened(state: &mut State, step: Step, key: &IncidentKey) {
    if !state.policy.second_opinion.enabled || cause::kind_of(&key.cause) != CauseKind::AgentStale {
        return;
    }
    let Some(until) = state.incident(key).and_then(|incident| incident.hold_until) else { return };
    let (cause, generation) = (key.cause.clone(), key.generation);
    let due = step.at + due_after(until.since(step.at));
    state.timers.insert((due, TimerKey::SecondOpinionDue { cause, generation }));
}

/// A question goes out.
pub(crate) fn asked(state: &mut State, step: Step, conclusion: &Conclusion) {
    let Conclusion::SecondOpinionWanted { incident, agent, address, ports, askers, .. } = conclusion else { return };
    let Some(Link::Silent { index: silence, .. }) = state.agents.get(agent).map(|record| &record.link) else { return };
    let question = Question {
        index: step.index,
        silence: *silence,
        at: step.at,
        address: *address,
        ports: ports.clone(),
        askers: askers.clone(),
        opinion: None,
    };
    state.second_opinions.questions.insert(agent.clone(), question);
    let recent = &mut state.second_opinions.recent;
    recent.retain(|(at, ..)| step.at.since(*at) < TARGET_INTERVAL);
    if recent.len() >= RECENT_MAX {
        recent.pop_front();
    }
    recent.push_back((step.at, agent.clone(), askers.clone()));
    if let Some(incident) = incidents::get_mut(state, incident) {
        let text = format!("asked {} whether {address} answers on {}", list(askers), list(ports));
        note(incident, step, LineKind::Decision, text);
    }
}

/// Answers came. What nobody asked for, of whom nobody asked it, about other ports, or after the page went out, does
/// not count.
pub(crate) fn answered(state: &mut State, step: Step, agent: &AgentName, index: u64, answers: &[PeerAnswer]) {
    let key = cause::agent_stale(agent);
    let silent = match state.agents.get(agent).map(|record| &record.link) {
        Some(Link::Silent { index, .. }) => *index,
        _ => return,
    };
    let in_time = state.unresolved(&key).is_some_and(|incident| !incident.hold_over);
    let Some(question) = state.second_opinions.questions.get_mut(agent) else { return };
    let fits = question.index == index && question.silence == silent && question.opinion.is_none();
    if !fits || !in_time {
        return;
    }
    let opinion = weigh(question, answers);
    let said = opinion.words(question.address);
    question.opinion = Some(opinion);
    let mut lines: Vec<String> = Vec::new();
    for asker in &question.askers {
        let answer = answers.iter().find(|answer| answer.peer == *asker);
        lines.push(match answer {
            None => format!("{asker} did not answer"),
            Some(PeerAnswer { refused: Some(why), .. }) => {
                format!("{asker} did not look: {}", clip(why, 2 * NAME_BYTES_MAX))
            }
            Some(answer) => {
                let ports = answer.ports.iter().take(LISTENING_PORTS_MAX);
                let ports: Vec<String> = ports.map(|at| format!("{} {}", at.port, word(at.outcome))).collect();
                format!("{asker}: {}", ports.join(", "))
            }
        });
    }
    if let Some(incident) = state.incidents.get_mut(&key).and_then(|generations| generations.values_mut().next_back()) {
        note(incident, step, LineKind::Decision, format!("{said} [{}]", lines.join("; ")));
    }
    state.touched.insert(key);
}

fn word(outcome: PortOutcome) -> &'static str {
    match outcome {
        PortOutcome::Open => "open",
        PortOutcome::Refused => "refused",
        PortOutcome::Timeout => "no answer",
        PortOutcome::Unreachable => "unreachable",
    }
}

fn weigh(question: &Question, answers: &[PeerAnswer]) -> Opinion {
    let (mut reached, mut missed, mut open) = (Vec::new(), Vec::new(), BTreeSet::new());
    for asker in &question.askers {
        let Some(answer) = answers.iter().find(|answer| answer.peer == *asker && answer.refused.is_none()) else {
            continue;
        };
        let asked: Vec<&PortAnswer> = answer.ports.iter().filter(|at| question.ports.contains(&at.port)).collect();
        open.extend(asked.iter().filter(|at| at.outcome == PortOutcome::Open).map(|at| at.port));
        match () {
            () if asked.is_empty() => {}
            () if asked.iter().any(|at| matches!(at.outcome, PortOutcome::Open | PortOutcome::Refused)) => {
                reached.push(asker.clone());
            }
            () => missed.push(asker.clone()),
        }
    }
    let open: Vec<u16> = open.into_iter().collect();
    match (reached.len(), missed.len()) {
        (0, 0) => Opinion::Unanswered { peers: question.askers.len() },
        (peers, 0) => Opinion::Answers { open, peers },
        (0, peers) => Opinion::Nobody { peers },
        _ => Opinion::Disagree { reached, missed, open },
    }
}

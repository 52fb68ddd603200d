//! How agents stand: connects, silences, re-hear windows, digests. Whatever makes an agent unheard, or its open set
//! doubtful, stops the stability windows of the incidents it takes part in.

use super::{Step, facts, findings, incidents};
use crate::cause;
use crate::detect::{self, places};
use crate::entry::{AgentHello, Disconnect, Silence, TimerKey};
use crate::liveness::rehear_window;
use crate::policy::LivenessPolicy;
use crate::second_opinion;
use crate::signals;
use crate::state::{AgentRecord, AgentWatch, Few, Link, Listening, MemberRef, State};
use muster_common::finding::FindingKey;
use muster_common::ids::AgentName;
use muster_common::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Silences remembered for the mass window. The policy's largest absolute count is far below.
const SILENCES_MAX: usize = 4096;

/// The agent's record; a new one on its first fact.
pub(super) fn record<'a>(state: &'a mut State, step: Step, agent: &AgentName) -> &'a mut AgentRecord {
    state.agents.get_or_insert_with(agent, || unheard(agent.clone(), step.at))
}

/// An agent of which nothing is known.
pub(crate) fn unheard(name: AgentName, first_seen: Timestamp) -> AgentRecord {
    AgentRecord {
        name,
        hello: None,
        first_seen,
        connected_at: None,
        link: Link::Heard,
        position: None,
        open: Few::default(),
        digest: 0,
        digest_matches: true,
        suppressed: 0,
        entries_lost: 0,
        reboots: 0,
        reconnects: 0,
        restarts: BTreeMap::new(),
        watched_oom_at: None,
        incidents: BTreeSet::new(),
        watch: AgentWatch::default(),
    }
}

/// True when silence of this agent would be noticed and its open set is believed.
pub(crate) fn is_sure(record: &AgentRecord) -> bool {
    record.link == Link::Heard && record.digest_matches
}

/// Looks its record up once where nothing else hangs on it: among a million that is most of what a connect costs.
pub(super) fn connected(state: &mut State, step: Step, agent: &AgentName, hello: &Arc<AgentHello>) {
    state.archived.remove(agent);
    let record = record(state, step, agent);
    let old = record.hello.clone();
    let old_boot = old.as_ref().and_then(|hello| hello.boot_id);
    let rebooted = old_boot.is_some() && hello.boot_id.is_some() && old_boot != hello.boot_id;
    if rebooted {
        record.reboots = record.reboots.saturating_add(1);
    }
    if matches!(record.link, Link::Silent { .. }) {
        record.watch.rebooted_while_silent = rebooted;
    }
    record.connected_at = Some(step.at);
    let relabelled = old.as_ref().is_some_and(|known| known.labels != hello.labels);
    let stays = !relabelled && old.as_ref().is_some_and(|known| known.peer_address == hello.peer_address);
    // A silence of a label holds for it no more, or now.
    let concerned: Vec<String> = record.incidents.iter().filter(|_| relabelled).cloned().collect();
    // An agent that neither was silent nor has anything open moves by itself.
    let (was_silent, is_alone) = (matches!(record.link, Link::Silent { .. }), record.incidents.is_empty());
    record.link = Link::Heard;
    let moves_alone = !was_silent && record.open.is_empty();
    if stays || moves_alone {
        record.hello = Some(Arc::clone(hello));
    }
    state.touched.extend(concerned);
    let old_address = old.as_ref().map(|old| old.peer_address.as_str());
    second_opinion::moved(state, agent, old_address, Some(&hello.peer_address));
    link_changed(state, step, agent, was_silent, is_alone);
    if !stays {
        moved(state, agent, old.as_deref(), hello, moves_alone);
    }
    signals::connected(state, step, agent, old.as_deref(), hello);
}

/// The agent is in other places, or in its first ones: its open conditions move with it.
fn moved(state: &mut State, agent: &AgentName, old: Option<&AgentHello>, hello: &Arc<AgentHello>, alone: bool) {
    let (old, new) = (old.map(places::of_hello), places::of_hello(hello));
    let stays = old.as_ref() == Some(&new);
    let open: Vec<FindingKey> = match stays || alone {
        true => Vec::new(),
        false => state.agents.get(agent).into_iter().flat_map(|record| record.open.keys().cloned()).collect(),
    };
    let before: Vec<Vec<String>> = open.iter().map(|key| detect::groups(state, agent, key)).collect();
    if !stays {
        places::leave(state, &old.unwrap_or_default(), false);
        places::enter(state, &new, false);
    }
    if !alone && let Some(record) = state.agents.get_mut(agent) {
        record.hello = Some(Arc::clone(hello));
    }
    for (key, before) in open.iter().zip(before) {
        findings::regroup(state, agent, key, &before);
    }
}

pub(super) fn heard(state: &mut State, step: Step, agent: &AgentName) {
    let record = record(state, step, agent);
    let (was_silent, is_alone) = (matches!(record.link, Link::Silent { .. }), record.incidents.is_empty());
    record.link = Link::Heard;
    link_changed(state, step, agent, was_silent, is_alone);
}

/// An agent is heard now. `is_alone`: it takes part in no incident.
fn link_changed(state: &mut State, step: Step, agent: &AgentName, was_silent: bool, is_alone: bool) {
    if was_silent {
        end_silence(state, agent);
        facts::fact_of_agent(state, step, agent, &format!("{agent} is heard again"));
    }
    match is_alone {
        true => signals::link_changed(state, step, agent),
        false => incidents::sureness_changed(state, step, agent),
    }
}

/// A silent agent is silent no more: heard again, or forgotten.
pub(super) fn end_silence(state: &mut State, agent: &AgentName) {
    state.n_silent = state.n_silent.saturating_sub(1);
    second_opinion::over(state, agent);
    remove_silence(state, &cause::agent_stale(agent), agent);
    remove_silence(state, cause::MASS_STALE, agent);
    places::silence(state, agent, false);
    for mass in detect::mass_of_places(state, agent) {
        remove_silence(state, &mass, agent);
    }
}

fn remove_silence(state: &mut State, key: &str, agent: &AgentName) {
    if let Some(cause) = state.causes.get_mut(key)
        && cause.members.remove(agent.as_str()).is_some()
    {
        cause.agents.remove(agent);
        cause.unjoined.remove(agent.as_str());
        state.touched.insert(key.to_owned());
        super::drop_if_empty(state, key);
    }
}

pub(super) fn disconnected(state: &mut State, step: Step, agent: &AgentName, how: Disconnect) {
    let record = record(state, step, agent);
    record.watch.left = Some(how);
    if !matches!(record.link, Link::Silent { .. }) {
        record.link = Link::Disconnected { how, at: step.at };
    }
    if record.incidents.is_empty() {
        return signals::link_changed(state, step, agent);
    }
    incidents::sureness_changed(state, step, agent);
}

pub(super) fn silent(state: &mut State, step: Step, agent: &AgentName, last_heard: Timestamp, silence: Silence) {
    let record = record(state, step, agent);
    if matches!(record.link, Link::Silent { .. }) {
        return;
    }
    record.link = Link::Silent { since: step.at, last_heard, silence, index: step.index };
    record.watch.rebooted_while_silent = false;
    state.n_silent = state.n_silent.saturating_add(1);
    facts::fact_of_agent(state, step, agent, &format!("{agent} is not heard any more, last {last_heard}"));
    places::silence(state, agent, true);
    let member = MemberRef::of_agent(agent.clone());
    add_silence(state, &cause::agent_stale(agent), member.clone());
    remember_silence(state, step, agent);
    for (mass, agents) in detect::mass_groups(state, agent) {
        for agent in agents {
            add_silence(state, &mass, MemberRef::of_agent(agent));
        }
    }
    incidents::sureness_changed(state, step, agent);
}

fn add_silence(state: &mut State, key: &str, member: Box<MemberRef>) {
    let cause = state.causes.entry(key.to_owned()).or_default();
    cause.agents.insert(member.agent.clone(), 1);
    state.touched.insert(cause::agent_stale(&member.agent));
    cause.unjoined.insert(member.agent.to_string());
    cause.members.insert(member.agent.to_string(), member);
    state.touched.insert(key.to_owned());
}

fn remember_silence(state: &mut State, step: Step, agent: &AgentName) {
    let oldest = step.at - state.policy.liveness.mass_window;
    while state.silences.front().is_some_and(|(at, _)| *at < oldest) || state.silences.len() >= SILENCES_MAX {
        state.silences.pop_front();
    }
    state.silences.push_back((step.at, agent.clone()));
}

pub(super) fn digest(state: &mut State, step: Step, agent: &AgentName, matches: bool) {
    record(state, step, agent).digest_matches = matches;
    incidents::sureness_changed(state, step, agent);
}

/// This coordinator begins to listen: nobody has been heard by it yet. One pass over the fleet, at a start only.
pub(super) fn begin_rehear(state: &mut State, step: Step) {
    match state.rehear_until {
        // Of who was not heard in the window that this one cuts off nothing more is known.
        Some(until) => drop(state.timers.remove(&(until, TimerKey::RehearOver))),
        None => {
            let policy = &state.policy.liveness;
            let heard_until = step.before - policy.heartbeat * policy.stale_after;
            state.listening = Some(Listening { since: step.at, heard_until });
        }
    }
    let until = step.at + rehear_window(&state.policy.liveness, state.agents.len() as u64);
    state.rehear_until = Some(until);
    state.timers.insert((until, TimerKey::RehearOver));
    let names: Vec<AgentName> = state.agents.keys().cloned().collect();
    for name in names {
        if let Some(record) = state.agents.get_mut(&name) {
            let planned =
                matches!(record.link, Link::Disconnected { how: Disconnect::Goodbye | Disconnect::HostShutdown, .. });
            if !planned && !matches!(record.link, Link::Silent { .. }) {
                record.link = Link::NotReheard;
            }
        }
        incidents::sureness_changed(state, step, &name);
    }
    incidents::postpone_silences(state, until);
}

/// Another policy says how long agents may take to come back: a window that runs is as long as it says.
pub(super) fn adjust_rehear(state: &mut State, step: Step, old: &LivenessPolicy) {
    let Some(until) = state.rehear_until else { return };
    let n_agents = state.agents.len() as u64;
    let (before, after) = (rehear_window(old, n_agents), rehear_window(&state.policy.liveness, n_agents));
    let adjusted = (until + after.saturating_sub(before)) - before.saturating_sub(after);
    let adjusted = adjusted.max(step.at);
    state.timers.remove(&(until, TimerKey::RehearOver));
    state.timers.insert((adjusted, TimerKey::RehearOver));
    state.rehear_until = Some(adjusted);
    if adjusted > until {
        incidents::postpone_silences(state, adjusted);
    }
}

//! Restarts close together, counted by the time they were observed: a backlog that arrives at once is not a storm, and
//! a storm that arrives late is dated when it was.

use super::{Step, incidents, links};
use crate::cause;
use crate::entry::TimerKey;
use crate::state::{FLEET_RESTARTS_MAX, HOST_RESTARTS_MAX, RESTARTED_SERVICES_MAX, State, Storm};
use muster_common::ids::{AgentName, ServiceName};
use muster_common::limits::SUBJECTS_PER_AGENT_MAX;
use muster_common::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(super) fn restarted(state: &mut State, step: Step, agent: &AgentName, service: &ServiceName, observed: Timestamp) {
    host(state, step, agent, service, observed);
    fleet(state, step, agent, service, observed);
}

fn host(state: &mut State, step: Step, agent: &AgentName, service: &ServiceName, observed: Timestamp) {
    let policy = state.policy.restart_storm.clone();
    let record = links::record(state, step, agent);
    if record.restarts.len() >= SUBJECTS_PER_AGENT_MAX && !record.restarts.contains_key(service) {
        forget_oldest(&mut record.restarts, |times| times.last().copied());
    }
    let times = record.restarts.entry(service.clone()).or_default();
    let place = times.partition_point(|time| *time <= observed);
    times.insert(place, observed);
    if times.len() > HOST_RESTARTS_MAX {
        times.remove(0);
    }
    let around = around(times, |time| *time, observed, policy.window);
    let needed = usize::try_from(policy.host_restarts.max(2)).unwrap_or(usize::MAX);
    let storm = around
        .windows(needed)
        .filter(|times| times.last().copied().unwrap_or_default().since(times[0]) <= policy.window)
        .map(|times| (times[0], times.last().copied().unwrap_or_default(), times.len() as u64))
        .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1), a.2 + 1));
    if let Some((began, last, restarts)) = storm {
        note(state, step, &cause::service(agent, service), began, last, restarts, BTreeSet::from([agent.clone()]));
    }
}

fn fleet(state: &mut State, step: Step, agent: &AgentName, service: &ServiceName, observed: Timestamp) {
    let policy = state.policy.restart_storm.clone();
    if state.service_restarts.len() >= RESTARTED_SERVICES_MAX && !state.service_restarts.contains_key(service) {
        forget_oldest(&mut state.service_restarts, |restarts| restarts.last().map(|(time, _)| *time));
    }
    let restarts = state.service_restarts.entry(service.clone()).or_default();
    let place = restarts.partition_point(|(time, _)| *time <= observed);
    restarts.insert(place, (observed, agent.clone()));
    if restarts.len() > FLEET_RESTARTS_MAX {
        restarts.remove(0);
    }
    let around = around(restarts, |(time, _)| *time, observed, policy.window);
    let needed = usize::try_from(policy.fleet_hosts.max(2)).unwrap_or(usize::MAX);
    if let Some(inside) = first_on_many(around, needed, policy.window) {
        let (began, last) = (inside.first().map_or(observed, |(t, _)| *t), inside.last().map_or(observed, |(t, _)| *t));
        let (restarts, agents) = (inside.len() as u64, inside.iter().map(|(_, agent)| agent.clone()).collect());
        note(state, step, &cause::fleet_storm(service), began, last, restarts, agents);
    }
}

/// The first part of an ascending list no longer than `window` that names `needed` agents: one pass, the window slides.
fn first_on_many(
    list: &[(Timestamp, AgentName)],
    needed: usize,
    window: Duration,
) -> Option<&[(Timestamp, AgentName)]> {
    let mut inside: BTreeMap<&AgentName, usize> = BTreeMap::new();
    let mut end = 0;
    for (start, (first, leaving)) in list.iter().enumerate() {
        while let Some((_, agent)) = list.get(end).filter(|(time, _)| time.since(*first) <= window) {
            *inside.entry(agent).or_default() += 1;
            end += 1;
        }
        if inside.len() >= needed {
            return list.get(start..end);
        }
        if let Some(count) = inside.get_mut(leaving) {
            *count -= 1;
            if *count == 0 {
                inside.remove(leaving);
            }
        }
    }
    None
}

/// Makes room by forgetting the service that restarted last the longest ago: made-up names do not push out what rages.
fn forget_oldest<T>(services: &mut BTreeMap<ServiceName, T>, last: impl Fn(&T) -> Option<Timestamp>) {
    let oldest = services.iter().min_by_key(|(_, restarts)| last(restarts)).map(|(service, _)| service.clone());
    if let Some(oldest) = oldest {
        services.remove(&oldest);
    }
}

/// The part of an ascending list that can share a window with `observed`.
fn around<T>(list: &[T], time: impl Fn(&T) -> Timestamp, observed: Timestamp, window: std::time::Duration) -> &[T] {
    let start = list.partition_point(|item| time(item) < observed - window);
    let end = list.partition_point(|item| time(item) <= observed + window);
    list.get(start..end).unwrap_or_default()
}

fn note(
    state: &mut State,
    step: Step,
    key: &str,
    began: Timestamp,
    last: Timestamp,
    restarts: u64,
    agents: BTreeSet<AgentName>,
) {
    let window = state.policy.restart_storm.window;
    let cause = state.causes.entry(key.to_owned()).or_default();
    if cause.storm.as_ref().is_some_and(|known| known.active && last + window < known.began) {
        // An older storm than the one that rages: the incident is open, and its end is what counts.
        return;
    }
    // The same storm goes on when the two are not further apart than a window.
    let known = cause.storm.take().filter(|known| began <= known.last + window && known.began <= last + window);
    let had_timer = known.as_ref().is_some_and(|known| known.active);
    let fresh = Storm {
        began,
        last,
        restarts: restarts.saturating_sub(1),
        agents: BTreeSet::new(),
        received: step.at,
        active: false,
        index: step.index,
    };
    let mut storm = known.unwrap_or(fresh);
    storm.began = storm.began.min(began);
    storm.last = storm.last.max(last);
    storm.restarts = storm.restarts.saturating_add(1);
    storm.received = step.at;
    storm.index = step.index;
    let new_agents: BTreeSet<AgentName> =
        agents.into_iter().filter(|agent| storm.agents.insert(agent.clone())).collect();
    let ends = storm.last + window;
    storm.active = ends > step.at;
    if storm.active && !had_timer {
        state.timers.insert((ends, TimerKey::WindowOver { window: key.to_owned() }));
    }
    cause.storm = Some(storm);
    incidents::agents_joined(state, key, &new_agents);
    incidents::restart_stability(state, step, key);
    touch(state, key, &new_agents);
}

fn touch(state: &mut State, key: &str, agents: &BTreeSet<AgentName>) {
    state.touched.insert(key.to_owned());
    if let Some(service) = key.strip_prefix("fleet/restart_storm/") {
        state.touched.extend(agents.iter().map(|agent| format!("host/{agent}/service/{service}")));
    }
    // A contended lock is worse while its service restarts in a storm.
    let service =
        key.strip_prefix("fleet/restart_storm/").or_else(|| key.split_once("/service/").map(|(_, name)| name));
    if let Some(service) = service {
        let locks = format!("fleet/lock/{service}/");
        let causes = state.causes.range(locks.clone()..).take_while(|(key, _)| key.starts_with(&locks));
        state.touched.extend(causes.map(|(key, _)| key.clone()));
    }
}

/// The window after a storm's last restart is over, unless there was another one meanwhile.
pub(super) fn window_over(state: &mut State, step: Step, key: &str) {
    let window = state.policy.restart_storm.window;
    let Some(storm) = state.causes.get_mut(key).and_then(|cause| cause.storm.as_mut()) else { return };
    let ends = storm.last + window;
    if ends > step.at {
        state.timers.insert((ends, TimerKey::WindowOver { window: key.to_owned() }));
        return;
    }
    storm.active = false;
    let agents = storm.agents.clone();
    let unresolved = state.unresolved(key).is_some();
    if let Some(cause) = state.causes.get_mut(key).filter(|_| !unresolved) {
        cause.storm = None;
        super::drop_if_empty(state, key);
    }
    touch(state, key, &agents);
}

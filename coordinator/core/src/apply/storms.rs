//! Occurrences close together, counted by the time they were observed: a backlog that arrives at once is not a storm, and
//! a storm that arrives late is dated when it was. Which of them belong together is the detectors' to say.

use super::{Step, fallen, findings, incidents, links};
use crate::cause;
use crate::detect::{self, Raging};
use crate::entry::TimerKey;
use crate::state::{HOST_RESTARTS_MAX, STORM_AGENTS_MAX, State, Storm};
use muster_common::finding::Finding;
use muster_common::ids::{AgentName, ServiceName};
use muster_common::limits::SUBJECTS_PER_AGENT_MAX;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Something happened on a host: it counts there, and for its groups over all hosts.
pub(super) fn occurred(state: &mut State, step: Step, agent: &AgentName, finding: &Finding, observed: Timestamp) {
    if finding.key.reason == Reason::ProcessRestarted {
        host(state, step, agent, &finding.key.subject.service, observed);
    }
    for detector in detect::all() {
        let feeds = detector.occurrences(state, agent, finding);
        // What rages goes on, and takes what it explains; else the narrowest group that is enough.
        let rages = |state: &State, group: &str| {
            state.cause(group).and_then(|cause| cause.storm.as_ref()).is_some_and(|storm| storm.active)
        };
        let raging = feeds.iter().position(|feed| rages(state, &feed.group));
        let fed = match raging {
            Some(place) => feeds.get(place..=place).unwrap_or_default(),
            None => &feeds,
        };
        for feed in fed {
            let Some(rule) = detector.storm_rule(&state.policy, &feed.group) else { continue };
            if let Some(raging) = detect::count(&mut state.detect.windows, agent, feed, observed, &rule) {
                note(state, step, &feed.group, raging);
                break;
            }
        }
    }
}

fn host(state: &mut State, step: Step, agent: &AgentName, service: &ServiceName, observed: Timestamp) {
    let policy = state.policy.restart_storm.clone();
    let record = links::record(state, step, agent);
    if record.restarts.len() >= SUBJECTS_PER_AGENT_MAX && !record.restarts.contains_key(service) {
        forget_oldest(&mut record.restarts);
    }
    let times = record.restarts.entry(service.clone()).or_default();
    let place = times.partition_point(|time| *time <= observed);
    times.insert(place, observed);
    if times.len() > HOST_RESTARTS_MAX {
        times.remove(0);
    }
    let start = times.partition_point(|time| *time < observed - policy.window);
    let end = times.partition_point(|time| *time <= observed + policy.window);
    let needed = usize::try_from(policy.host_restarts.max(2)).unwrap_or(usize::MAX);
    let storm = times
        .get(start..end)
        .unwrap_or_default()
        .windows(needed)
        .filter(|times| times.last().copied().unwrap_or_default().since(times[0]) <= policy.window)
        .map(|times| (times[0], times.last().copied().unwrap_or_default(), times.len() as u64))
        .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1), a.2 + 1));
    if let Some((began, last, count)) = storm {
        let agents = BTreeSet::from([agent.clone()]);
        let raging = Raging { began, last, count, agents, symptoms: BTreeSet::new() };
        note(state, step, &cause::service(agent, service), raging);
    }
}

/// Makes room by forgetting the service that restarted last the longest ago: made-up names do not push out what rages.
fn forget_oldest(services: &mut BTreeMap<ServiceName, Vec<Timestamp>>) {
    let oldest = services.iter().min_by_key(|(_, restarts)| restarts.last()).map(|(service, _)| service.clone());
    if let Some(oldest) = oldest {
        services.remove(&oldest);
    }
}

fn note(state: &mut State, step: Step, key: &str, raging: Raging) {
    let window = detect::window_of(&state.policy, key);
    let Raging { began, last, count, agents, symptoms } = raging;
    let cause = state.causes.entry(key.to_owned()).or_default();
    if cause.storm.as_ref().is_some_and(|known| known.active && last + window < known.began) {
        // An older storm than the one that rages: the incident is open, and its end is what counts.
        return;
    }
    // The same storm goes on when the two are not further apart than a window. Of one that is over only what fell in it is
    // still waited for.
    let goes_on = |known: &Storm| began <= known.last + window && known.began <= last + window;
    let before = cause.storm.take();
    let had_timer = before.as_ref().is_some_and(|known| known.active && goes_on(known));
    let mut storm = match before {
        Some(known) if goes_on(&known) => known,
        before => {
            let down = before.map(|before| before.down).unwrap_or_default();
            Box::new(Storm {
                began,
                last,
                restarts: count.saturating_sub(1),
                agents: BTreeSet::new(),
                received: step.at,
                active: false,
                index: step.index,
                symptoms: down.clone(),
                down,
            })
        }
    };
    storm.began = storm.began.min(began);
    storm.last = storm.last.max(last);
    storm.restarts = storm.restarts.saturating_add(1);
    storm.received = step.at;
    storm.index = step.index;
    let mut new_agents = BTreeSet::new();
    for agent in agents {
        if storm.agents.len() < STORM_AGENTS_MAX && storm.agents.insert(agent.clone()) {
            new_agents.insert(agent);
        }
    }
    let fresh = symptoms.into_iter().filter(|symptom| !storm.symptoms.contains(symptom));
    let new_symptoms: Vec<String> = fresh.take(STORM_AGENTS_MAX.saturating_sub(storm.symptoms.len())).collect();
    let ends = storm.last + window;
    storm.active = ends > step.at;
    let resumes = storm.active && !had_timer;
    if storm.active && !had_timer {
        state.timers.insert((ends, TimerKey::WindowOver { window: key.to_owned() }));
    }
    cause.storm = Some(storm);
    state.causes.storms(key);
    for symptom in &new_symptoms {
        let indexed = cause::agent_of(symptom).is_none_or(|agent| detect::index(state, &agent, symptom, key));
        if indexed && let Some(storm) = state.causes.get_mut(key).and_then(|cause| cause.storm.as_mut()) {
            storm.symptoms.insert(symptom.clone());
            fallen::joined(state, key, symptom);
        }
    }
    if resumes {
        fallen::resumed(state, key);
    }
    incidents::agents_joined(state, key, &new_agents);
    incidents::restart_stability(state, step, key);
    touch(state, key, new_symptoms);
}

fn touch(state: &mut State, key: &str, symptoms: impl IntoIterator<Item = String>) {
    state.touched.insert(key.to_owned());
    state.touched.extend(symptoms);
    let concerned = detect::concerned(state, key);
    state.touched.extend(concerned);
}

/// The window after a storm's last occurrence is over, unless there was another one meanwhile.
pub(super) fn window_over(state: &mut State, step: Step, key: &str) {
    findings::lasted(state, step, key);
    let window = detect::window_of(&state.policy, key);
    let Some(storm) = state.causes.get_mut(key).and_then(|cause| cause.storm.as_mut()) else { return };
    let ends = storm.last + window;
    if ends > step.at {
        state.timers.insert((ends, TimerKey::WindowOver { window: key.to_owned() }));
        return;
    }
    let symptoms = storm.symptoms.clone();
    // A host's own storm that ends at the same moment is no news: it was told in this one.
    for symptom in &symptoms {
        if is_over(state, step, symptom) {
            calm(state, symptom);
        }
    }
    calm(state, key);
    touch(state, key, symptoms);
}

fn is_over(state: &State, step: Step, key: &str) -> bool {
    let window = detect::window_of(&state.policy, key);
    state.cause(key).and_then(|cause| cause.storm.as_ref()).is_some_and(|storm| storm.last + window <= step.at)
}

/// A storm does not go on. Where nobody is told of it, it is forgotten.
fn calm(state: &mut State, key: &str) {
    let unresolved = state.unresolved(key).is_some();
    let Some(cause) = state.causes.get_mut(key) else { return };
    if let Some(storm) = cause.storm.as_mut() {
        storm.active = false;
    }
    if !unresolved {
        cause.storm = None;
        super::drop_if_empty(state, key);
    }
}

//! What fell in the course of a storm and is not well again. That nothing more happens is no recovery of what is dead: the
//! storm's incident stays open for it, with its owner, instead of ending and paging anew host by host.

use crate::cause;
use crate::detect;
use crate::state::{Cause, OpenFinding, State, Storm};
use muster_common::finding::FindingKey;
use muster_common::ids::AgentName;
use muster_common::severity::Severity;

/// Whether an open condition of `symptom` fell in the storm of `group`, and would call somebody without it. What falls
/// later than a window after it is news of its own.
pub(crate) fn fell_in(state: &State, group: &str, storm: &Storm, symptom: &str, open: &OpenFinding) -> bool {
    let waits = detect::of(group).is_some_and(|detector| detector.waits_for(open.finding.key.reason));
    waits
        && storm.symptoms.contains(symptom)
        && open.opened <= storm.last + detect::window_of(&state.policy, group)
        && open.event_index > state.cause(symptom).map_or(0, |cause| cause.dismissed_index)
        && calls(state, open)
}

fn calls(state: &State, open: &OpenFinding) -> bool {
    state.severity_of(open.finding.key.reason, open.finding.severity) >= Severity::Sev3
}

/// A cause's open conditions.
pub(crate) fn conditions<'a>(state: &'a State, cause: &'a Cause) -> impl Iterator<Item = &'a OpenFinding> {
    cause.members.values().filter_map(|member| {
        let open = state.agent(&member.agent)?.open.get(member.key.as_ref()?)?;
        Some(open.as_ref())
    })
}

/// A condition of `agent` is open.
pub(super) fn opened(state: &mut State, agent: &AgentName, key: &FindingKey) {
    for (symptom, group) in groups(state, agent, key) {
        let open = state.agent(agent).and_then(|record| record.open.get(key));
        let storm = state.cause(&group).and_then(|cause| cause.storm.as_ref());
        if open.zip(storm).is_some_and(|(open, storm)| fell_in(state, &group, storm, &symptom, open)) {
            fell(state, &group, &symptom);
        }
    }
}

/// A cause is a symptom of a storm from now on: what is down there already fell in it.
pub(super) fn joined(state: &mut State, group: &str, symptom: &str) {
    let storm = state.cause(group).and_then(|cause| cause.storm.as_ref());
    let Some((storm, cause)) = storm.zip(state.cause(symptom)) else { return };
    if conditions(state, cause).any(|open| fell_in(state, group, storm, symptom, open)) {
        fell(state, group, symptom);
    }
}

/// A storm that was over goes on: what fell meanwhile fell in it after all. Once for each time that it resumes, and not for
/// each restart: what falls while it goes on is counted when it falls.
pub(super) fn resumed(state: &mut State, group: &str) {
    let Some(storm) = state.cause(group).and_then(|cause| cause.storm.as_ref()) else { return };
    for symptom in storm.symptoms.clone() {
        joined(state, group, &symptom);
        // What has an incident of its own since the storm took only its dead is a symptom again.
        state.touched.insert(symptom);
    }
}

fn fell(state: &mut State, group: &str, symptom: &str) {
    let Some(storm) = state.causes.get_mut(group).and_then(|cause| cause.storm.as_mut()) else { return };
    if storm.down.insert(symptom.to_owned()) && !storm.active {
        state.touched.insert(group.to_owned());
    }
}

/// A condition of `agent` is over. What fell is up again once nothing of it is open that would call somebody: a service
/// whose process runs while its port is closed is not.
pub(super) fn cleared(state: &mut State, agent: &AgentName, key: &FindingKey) {
    for (symptom, group) in groups(state, agent, key) {
        let cause = state.cause(&symptom);
        if cause.is_some_and(|cause| conditions(state, cause).any(|open| calls(state, open))) {
            continue;
        }
        let Some(storm) = state.causes.get_mut(&group).and_then(|cause| cause.storm.as_mut()) else { continue };
        if storm.down.remove(&symptom) && !storm.active {
            state.touched.insert(group);
        }
    }
}

/// The storms that count the cause of a condition. Few agents have any.
fn groups(state: &State, agent: &AgentName, key: &FindingKey) -> Vec<(String, String)> {
    let Some(storms) = state.agent(agent).map(|record| &record.watch.storms).filter(|storms| !storms.is_empty()) else {
        return Vec::new();
    };
    let symptom = cause::of_finding(agent, key);
    let groups = storms.get(&symptom).into_iter().flatten();
    groups.map(|group| (symptom.clone(), group.clone())).collect()
}

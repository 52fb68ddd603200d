//! What must hold of what detectors keep, after every entry. Not for production: it looks at everything.

use super::places::{self, Place};
use super::{WINDOW_EVENTS_MAX, WINDOWS_MAX};
use crate::apply::fallen::{conditions, fell_in};
use crate::entry::TimerKey;
use crate::state::{IncidentStatus, STORM_AGENTS_MAX, State, Storm};
use crate::{cause, symptom};
use std::collections::BTreeMap;

/// Tells each promise that does not hold, and what was found.
pub(crate) fn check(state: &State, mut broken: impl FnMut(&'static str, String)) {
    let mut unless = |holds: bool, invariant: &'static str, what: &dyn Fn() -> String| {
        if !holds {
            broken(invariant, what());
        }
    };
    let mut counted: BTreeMap<String, Place> = BTreeMap::new();
    for agent in state.agents() {
        for place in agent.hello.as_deref().map(places::of_hello).unwrap_or_default() {
            let count = counted.entry(place).or_default();
            count.agents += 1;
            count.silent += u64::from(places::is_silent(state, &agent.name));
        }
        for key in agent.open.keys() {
            let member = cause::member_name(&agent.name, key);
            for group in super::groups(state, &agent.name, key) {
                let known = state.cause(&group).is_some_and(|cause| cause.members.contains_key(&member));
                unless(known, "an open condition is a member of its groups", &|| format!("{group}: {member}"));
            }
        }
    }
    let places_agree = state.detect.places.iter().eq(&counted) || state.detect.places_dropped > 0;
    unless(places_agree, "places count their agents", &|| format!("{:?} {counted:?}", state.detect.places));
    unless(state.detect.places.len() <= super::PLACES_MAX, "places are bounded", &String::new);
    unless(state.detect.windows.len() <= WINDOWS_MAX, "windows are bounded", &String::new);
    for (group, window) in &state.detect.windows {
        let events = window.events();
        let ordered = events.is_sorted_by_key(|event| event.at) && events.len() <= WINDOW_EVENTS_MAX;
        unless(ordered, "a window is bounded and in order", &|| group.clone());
    }
    for (key, cause) in state.causes.iter() {
        if let Some(at) = cause.look_at {
            let timer = TimerKey::WindowOver { window: key.clone() };
            unless(state.timers.contains(&(at, timer)), "a cause that is looked at later has a timer", &|| key.clone());
        }
        if let Some(storm) = &cause.storm {
            let few = storm.agents.len() <= STORM_AGENTS_MAX && storm.symptoms.len() <= STORM_AGENTS_MAX;
            unless(few, "storms are bounded", &|| key.clone());
            fallen(state, key, storm, &mut unless);
        }
    }
    if state.fenced_by().is_none() {
        for incident in state.incidents().filter(|incident| incident.is_unresolved()) {
            let key = &incident.key.cause;
            let of = state.cause(key).and_then(|cause| symptom::of_cause(state, key, cause));
            unless(of.is_none(), "a symptom has no incident of its own", &|| {
                format!("{} in {}", incident.key.cause, of.map_or("?", |of| &of.key.cause))
            });
        }
    }
}

/// A storm waits for what fell in it, for all of that and for nothing else.
fn fallen(state: &State, group: &str, storm: &Storm, unless: &mut impl FnMut(bool, &'static str, &dyn Fn() -> String)) {
    for symptom in &storm.symptoms {
        let Some(cause) = state.cause(symptom) else { continue };
        let known = super::windows::storms_of(state, symptom).is_some_and(|groups| groups.contains(group));
        let fell = conditions(state, cause).any(|open| fell_in(state, group, storm, symptom, open));
        let waited = storm.down.contains(symptom);
        // One that is over is not gone through again for each late word of when it was.
        unless(!fell || !known || waited || !storm.active, "a storm waits for what fell in it", &|| {
            format!("{group}: {symptom}")
        });
    }
    for symptom in &storm.down {
        let ill = state.cause(symptom).is_some_and(|cause| !cause.members.is_empty());
        let counted = storm.symptoms.contains(symptom);
        unless(ill && counted, "what a storm waits for is not well", &|| format!("{group}: {symptom}"));
    }
    let ends = state.unresolved(group).is_some_and(|incident| incident.status == IncidentStatus::Recovering);
    let ends = ends && state.fenced_by().is_none() && storm.index > state.cause(group).map_or(0, |c| c.dismissed_index);
    unless(!ends || storm.down.is_empty(), "a storm does not recover while what fell in it is down", &|| {
        group.to_owned()
    });
}

//! Services that hosts have told of. Hosts tell of what is wrong alone, so that a name that nobody told of is that of
//! something well, or misspelt: an answer about it says so, and must not look like "all is well".

use crate::silence::{Matchers, fits};
use crate::state::{AgentRecord, State};
use muster_common::ids::AgentName;
use std::collections::BTreeSet;

/// Names told to whoever asked for one that is not known.
const NAMED_MAX: usize = 8;

/// The sentence about a service that neither any host nor, where one is asked about, `agent` told of; none when it is
/// known. For a question, not for an input: it goes through what is open and what is kept.
pub fn unheard_service(state: &State, agent: Option<&AgentName>, service: &str) -> Option<String> {
    let told = told(state, agent);
    if told.contains(service) {
        return None;
    }
    let who = agent.map_or("no host has".to_owned(), |agent| format!("{agent} has not"));
    let others: Vec<&str> = told.iter().copied().take(NAMED_MAX).collect();
    let more = told.len().saturating_sub(others.len());
    let known = match (others.as_slice(), more) {
        ([], _) => "none was told of lately".to_owned(),
        (_, 0) => format!("told of lately: {}", others.join(", ")),
        (_, more) => format!("told of lately: {} and {more} more", others.join(", ")),
    };
    Some(format!(
        "{who} told of a service {service:?}: hosts tell only of what is wrong, so it is well or the name is misspelt ({known})"
    ))
}

/// What matchers of a silence fit nothing that is known now, one sentence each: it holds all the same when it comes, and
/// one that is misspelt holds nothing back. An agent named in full is asked about by whoever names it. For a question, not for an input.
pub fn fits_nothing(state: &State, matchers: &Matchers) -> Vec<String> {
    let mut notes = Vec::new();
    let services = told(state, None);
    for pattern in matchers.services.iter().filter(|pattern| !services.iter().any(|name| fits(pattern, name))) {
        notes.extend(match pattern.contains('*') {
            true => Some(format!("no service that hosts told of lately fits {pattern:?}")),
            false => unheard_service(state, None, pattern),
        });
    }
    for pattern in matchers.agents.iter().filter(|pattern| pattern.ends_with('*')) {
        if !state.agents().any(|agent| fits(pattern, agent.name.as_str())) {
            notes.push(format!("no agent that is known now fits {pattern:?}: see musterctl agents list"));
        }
    }
    for (name, pattern) in &matchers.labels {
        let value = |agent: &AgentRecord| agent.hello.as_ref()?.labels.get(name).cloned();
        let values: BTreeSet<String> = state.agents().filter_map(value).collect();
        if !values.iter().any(|value| fits(pattern, value)) {
            let known: Vec<&str> = values.iter().map(String::as_str).take(NAMED_MAX).collect();
            let known = match known.as_slice() {
                [] => "no agent has that label".to_owned(),
                known => format!("there are: {}", known.join(", ")),
            };
            notes.push(format!("no agent that is known now has the label {name}={pattern}: {known}"));
        }
    }
    for pattern in &matchers.causes {
        let known = |key: &String| fits(pattern, key);
        if !state.causes.keys().any(known) && !state.incidents().any(|incident| known(&incident.key.cause)) {
            notes.push(format!(
                "no cause that is known now fits {pattern:?}: musterctl incidents show has that of an incident"
            ));
        }
    }
    notes
}

fn told<'a>(state: &'a State, agent: Option<&AgentName>) -> BTreeSet<&'a str> {
    let of_agent = |name: &AgentName| agent.is_none_or(|agent| agent == name);
    let mut told: BTreeSet<&str> = BTreeSet::new();
    match agent {
        Some(agent) => {
            let open = state.agent(agent).into_iter().flat_map(|record| record.open.keys());
            told.extend(open.map(|key| key.subject.service.as_str()));
        }
        None => told.extend(state.open_findings().map(|(_, open)| open.finding.key.subject.service.as_str())),
    }
    let recent = state.recent_occurrences().filter(|seen| of_agent(&seen.agent));
    told.extend(recent.map(|seen| seen.finding.key.subject.service.as_str()));
    for incident in state.incidents() {
        match agent {
            None => told.extend(incident.services.iter().map(String::as_str)),
            Some(agent) if incident.agents.contains(agent) => {
                told.extend(incident.services.iter().map(String::as_str));
                let own = incident.members.iter().filter_map(|member| member.strip_prefix(agent.as_str()));
                told.extend(own.filter_map(|rest| rest.strip_prefix('/')?.split('/').next()));
            }
            Some(_) => {}
        }
    }
    told
}

//! Many locks, or many repositories, of one service on one host at once: each of them is worse than alone, since what holds
//! one holds all.

use crate::cause;
use crate::policy::Policy;
use crate::severity::When;
use crate::state::State;
use muster_common::finding::FindingKey;
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;

fn needed(policy: &Policy) -> usize {
    usize::try_from(policy.lock_contention.host_subjects.max(2)).unwrap_or(usize::MAX)
}

pub(crate) const fn is_lock(reason: Reason) -> bool {
    matches!(reason, Reason::LockContention | Reason::SqliteLockHeld)
}

/// The contended locks of a service on a host, as many as count and one more.
fn locks(state: &State, agent: &AgentName, service: &str) -> Vec<String> {
    let open = state.agent(agent).into_iter().flat_map(|record| record.open.keys());
    let of_service = open.filter(|key| is_lock(key.reason) && key.subject.service.as_str() == service);
    // A file that is found both contended and held is one lock.
    let mut causes: Vec<String> = of_service.map(|key| cause::of_finding(agent, key)).collect();
    causes.sort();
    causes.dedup();
    causes.truncate(needed(state.policy()) + 1);
    causes
}

/// The repositories of a service on a host that were found locked within the window of what is widespread.
fn repositories(state: &State, agent: &AgentName, service: &str, now: Timestamp) -> Vec<String> {
    let prefix = format!("host/{agent}/{}/{service}/", Reason::RepoLocked);
    let window = state.policy().detect.reason_widespread.window;
    let causes = state.causes.starting_with(&prefix);
    let lately = causes.filter(|(_, cause)| cause.occurrences.back().is_some_and(|last| last.observed + window >= now));
    lately.take(needed(state.policy()) + 1).map(|(key, _)| key.clone()).collect()
}

/// What makes a contended lock of the service worse.
pub(super) fn many_locks(state: &State, agent: &AgentName, service: &str) -> Option<When> {
    (locks(state, agent, service).len() >= needed(state.policy())).then_some(When::ManySubjects)
}

/// What makes a locked repository of the service worse.
pub(crate) fn many_repositories(state: &State, agent: &AgentName, service: &str, now: Timestamp) -> Option<When> {
    (repositories(state, agent, service, now).len() >= needed(state.policy())).then_some(When::ManySubjects)
}

/// The causes beside that of a finding which it makes worse: those that were too few without it.
pub(crate) fn made_many(state: &State, agent: &AgentName, key: &FindingKey, now: Timestamp) -> Vec<String> {
    let service = key.subject.service.as_str();
    let all = match key.reason {
        reason if is_lock(reason) => locks(state, agent, service),
        Reason::RepoLocked => repositories(state, agent, service, now),
        _ => return Vec::new(),
    };
    if all.len() == needed(state.policy()) { all } else { Vec::new() }
}

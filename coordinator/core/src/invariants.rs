//! What must hold after every entry; the simulator asks after each event. Not for production: it looks at everything.

mod responses;

pub use responses::check_entry;

use crate::cause::{self, CauseKind};
use crate::detect;
use crate::entry::TimerKey;
use crate::freeze::FREEZES_MAX;
use crate::singletons;
use crate::state::{
    AgentRecord, CAUSE_OCCURRENCES_MAX, DEAD_LETTERS_MAX, Incident, Link, MEMBERS_MAX, OUTSIDE_EVENTS_MAX,
    PAST_PAGES_MAX, RECENT_OCCURRENCES_MAX, State, TIMELINE_MAX,
};
use crate::symptom;
use muster_common::finding::open_digest;
use muster_common::ids::AgentName;
use muster_common::severity::Severity;
use std::collections::{BTreeMap, BTreeSet};

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: &'static str,
    /// What was found.
    pub what: String,
}

/// Everything that is wrong with `state`.
pub fn check(state: &State) -> Vec<Violation> {
    let mut found = Found(Vec::new());
    agents(state, &mut found);
    causes(state, &mut found);
    for incident in state.incidents() {
        one_incident(state, incident, &mut found);
    }
    pages(state, &mut found);
    timers(state, &mut found);
    freezes(state, &mut found);
    responses::check(state, &mut found);
    detect::invariants::check(state, |invariant, what| found.unless(false, invariant, || what));
    found.0
}

struct Found(Vec<Violation>);

impl Found {
    fn unless(&mut self, holds: bool, invariant: &'static str, what: impl FnOnce() -> String) {
        if !holds {
            self.0.push(Violation { invariant, what: what() });
        }
    }
}

fn freezes(state: &State, found: &mut Found) {
    found.unless(state.freezes.len() <= FREEZES_MAX, "freezes are bounded", || state.freezes.len().to_string());
    for (index, freeze) in &state.freezes {
        let timed =
            freeze.expires.is_none_or(|at| state.timers.contains(&(at, TimerKey::FreezeOver { index: *index })));
        found.unless(timed, "a freeze that ends by itself has a timer", || freeze.id.clone());
    }
}

fn agents(state: &State, found: &mut Found) {
    let mut n_silent = 0;
    for agent in state.agents() {
        let digest = open_digest(agent.open.keys());
        found.unless(digest == agent.digest, "the digest is that of the open set", || agent.name.to_string());
        if matches!(agent.link, Link::Silent { .. }) {
            n_silent += 1;
            if state.fenced_by().is_none() {
                silence_is_known(state, agent, found);
            }
        }
        for (key, open) in &agent.open {
            let cause_key = cause::of_finding(&agent.name, key);
            let member = cause::member_name(&agent.name, key);
            let cause = state.cause(&cause_key);
            let known = cause.is_some_and(|cause| cause.members.contains_key(&member));
            found.unless(known, "an open condition is a member of its cause", || member.clone());
            let severity = singletons::severity(state, &agent.name, open);
            let dismissed = cause.is_some_and(|cause| open.event_index <= cause.dismissed_index);
            if severity >= Severity::Sev3 && !dismissed && state.fenced_by().is_none() {
                found.unless(is_covered(state, &cause_key), "an open condition has an incident", || member.clone());
            }
        }
    }
    found.unless(n_silent == state.n_silent(), "silent agents are counted", || n_silent.to_string());
}

fn silence_is_known(state: &State, agent: &AgentRecord, found: &mut Found) {
    let key = cause::agent_stale(&agent.name);
    let Link::Silent { index, .. } = agent.link else { return };
    let dismissed = state.cause(&key).is_some_and(|cause| index <= cause.dismissed_index);
    found.unless(dismissed || is_covered(state, &key), "a silence has an incident", || agent.name.to_string());
}

/// An unresolved incident of its own, or one it folds into.
fn is_covered(state: &State, cause_key: &str) -> bool {
    let flood = cause::teller_of(cause_key).and_then(|agent| AgentName::new(agent).ok());
    let flood = flood.map(|agent| cause::agent_flood(&agent));
    state.unresolved(cause_key).is_some()
        || symptom::of(state, cause_key).is_some()
        || flood.is_some_and(|target| state.unresolved(&target).is_some())
}

fn causes(state: &State, found: &mut Found) {
    for (key, cause) in state.causes.iter() {
        for (name, member) in &cause.members {
            let exists = state.agent(&member.agent).is_some_and(|agent| match &member.key {
                Some(key) => agent.open.contains_key(key),
                None if cause::kind_of(key) == CauseKind::AgentFlood => agent.floods(state.policy()),
                None if key.starts_with("fleet/singleton/") => {
                    let of_agent = state.signals.singletons.of_agent(&agent.name);
                    of_agent.map(crate::singletons::cause_key).any(|running| running == *key)
                }
                None => matches!(agent.link, Link::Silent { .. }),
            });
            found.unless(exists, "a member of a cause is open", || format!("{key}: {name}"));
        }
        let mut counts: BTreeMap<_, u64> = BTreeMap::new();
        for member in cause.members.values() {
            *counts.entry(member.agent.clone()).or_default() += 1;
        }
        found.unless(cause.agents.iter().eq(&counts), "members are counted by agent", || key.clone());
        found.unless(cause.occurrences.len() <= CAUSE_OCCURRENCES_MAX, "occurrences are bounded", || key.clone());
        let unresolved = state.unresolved(key).is_some();
        found.unless(!unresolved || cause.active, "the cause of an unresolved incident is active", || key.clone());
    }
    found.unless(state.occurrences.len() <= RECENT_OCCURRENCES_MAX, "occurrences are bounded", String::new);
}

fn one_incident(state: &State, incident: &Incident, found: &mut Found) {
    let name = || format!("{}#{}", incident.key.cause, incident.key.generation);
    let resolved = !incident.is_unresolved();
    found.unless(resolved == incident.resolution.is_some(), "what is resolved says how", name);
    found.unless(incident.timeline.len() <= TIMELINE_MAX, "timelines are bounded", name);
    found.unless(incident.members.len() <= MEMBERS_MAX + 1, "members are bounded", name);
    let known = state.numbers.get(&incident.number) == Some(&incident.key);
    found.unless(known, "a number names one incident", name);
    if resolved {
        let idle = incident.hold_until.is_none() && incident.stability_from.is_none();
        found.unless(idle, "a resolved incident has no timer", name);
    }
    if incident.stability_from.is_some() {
        found.unless(incident.blind.is_empty(), "stability counts only while all hosts are heard", name);
    }
    everybody_told(state, incident, found);
    let mut keys: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for page in &incident.page_keys {
        keys.entry(&page.receiver).or_default().insert(&page.dedup_key);
    }
    let most = incident.repages.saturating_add(incident.response.adoptions);
    let most = usize::try_from(most).unwrap_or(usize::MAX).saturating_add(1);
    let few = keys.values().all(|keys| keys.len() <= most);
    found.unless(few, "one deduplication key per generation and re-page", name);
}

/// Who is to be told is told in the same step as the first of them.
fn everybody_told(state: &State, incident: &Incident, found: &mut Found) {
    let Some(newest) = incident.page_keys.last().map(|page| &page.dedup_key) else { return };
    if state.fenced_by().is_some() {
        return;
    }
    let keys = incident.page_keys.iter().filter(|page| page.dedup_key == *newest);
    let told: BTreeSet<&str> = keys.map(|page| page.receiver.as_str()).collect();
    let own = cause::failing_receiver(&incident.key.cause);
    for receiver in incident.receivers.iter().filter(|receiver| own != Some(receiver.as_str())) {
        let asked = told.contains(receiver.as_str()) || !state.policy().receivers.contains(receiver);
        found.unless(asked, "a page goes to every receiver", || format!("{} {receiver}", incident.number));
    }
}

fn pages(state: &State, found: &mut Found) {
    for record in state.pending_pages() {
        found.unless(record.outcome.is_none(), "a pending page has no outcome", || format!("{:?}", record.id));
        let known = state
            .incident(&record.incident)
            .is_some_and(|incident| incident.page_keys.iter().any(|page| page.pending.contains(&record.id)));
        found.unless(known, "a pending page belongs to an incident", || format!("{:?}", record.id));
    }
    found.unless(state.past_pages.len() <= PAST_PAGES_MAX, "past pages are bounded", String::new);
    found.unless(state.dead_letters.len() <= DEAD_LETTERS_MAX, "dead letters are bounded", String::new);
    found.unless(state.outside_events.len() <= OUTSIDE_EVENTS_MAX, "outside events are bounded", String::new);
    for name in state.receivers.keys() {
        let configured = state.policy().receivers.contains(name);
        found.unless(configured, "a receiver that is kept is configured", || name.clone());
    }
}

fn timers(state: &State, found: &mut Found) {
    for incident in state.incidents() {
        if let Some(until) = incident.hold_until {
            let (cause, generation) = (incident.key.cause.clone(), incident.key.generation);
            let timer = TimerKey::HoldOver { cause, generation };
            let known = state.timers.contains(&(until, timer));
            found.unless(known, "a hold has its timer", || incident.number.clone());
        }
    }
    for (at, timer) in &state.timers {
        if let TimerKey::HoldOver { cause, generation } | TimerKey::StabilityOver { cause, generation } = timer {
            let live = state.unresolved(cause).is_some_and(|incident| incident.key.generation == *generation);
            found.unless(live, "an incident's timer belongs to an unresolved one", || format!("{at} {timer:?}"));
        }
    }
}

//! The detectors: rules about the fleet, or about an agent as a whole, one file each, and the table of them.
//!
//! A detector owns cause keys (its groups). Findings feed a group in one of two ways: *conditions* count at once, as
//! members of the group's [`Cause`]; *occurrences* count within a window of observed time, and a group with enough of
//! them rages ([`StormRule`], kept by `apply/storms.rs`). A group's incident takes the causes of single hosts in as its
//! symptoms. A detector looks at State and never changes it.
//!
//! To add one: a file here with a [`Detector`], a line in [`DETECTORS`], a table in [`policy`] and in the config.

mod agent_flood;
mod agent_stale;
mod at_once;
mod auth_abuse;
mod behind;
mod corruption_spread;
mod explain;
mod incident_burst;
pub(crate) mod invariants;
mod lock_contention;
mod many_subjects;
mod mass_stale;
mod memory_group;
mod oom_storm;
pub(crate) mod places;
pub mod policy;
mod probe_blind;
mod restart_storm;
mod singleton;
mod version_skew;
mod widespread;
mod windows;

pub use explain::{Look, explain};
pub(crate) use lock_contention::{lock_circumstances, storm_circumstance, sustained_at};
pub(crate) use many_subjects::{is_lock, made_many, many_repositories};
pub(crate) use mass_stale::{forget_silences, is_gathered, mass_groups, mass_of_places};
pub use places::{PLACES_MAX, Place};
pub(crate) use restart_storm::{harmless, is_crash_loop};
pub use windows::{AgentStorms, WINDOW_EVENTS_MAX, WINDOWS_MAX, Window, WindowEvent};
pub(crate) use windows::{Raging, count, index, is_in_storm};

use crate::cause::{self, CauseKind};
use crate::decide::assess::Assessment;
use crate::policy::Policy;
use crate::state::{Cause, Incident, IncidentStatus, State};
use muster_common::finding::{Finding, FindingKey};
use muster_common::ids::{AgentName, ServiceName};
use muster_common::reason::Reason;
use muster_common::time::Timestamp;
use std::time::Duration;

/// The table. Where a host's cause is a symptom of several open incidents, the first in this order takes it.
static DETECTORS: &[&dyn Detector] = &[
    &mass_stale::MassStale,
    &corruption_spread::CorruptionSpread,
    &oom_storm::OomStorm,
    &restart_storm::RestartStorm,
    &lock_contention::LockContention,
    &memory_group::MemoryGroup,
    &widespread::Widespread,
    &probe_blind::ProbeBlind,
    &agent_stale::AgentStale,
    &agent_flood::AgentFlood,
    &singleton::Singleton,
    &version_skew::VersionSkew,
    &auth_abuse::AuthAbuse,
    &incident_burst::IncidentBurst,
];

/// How many occurrences of a group, within what time, are too many. A number that is 0 asks for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StormRule {
    /// Counted together, by the time they were observed.
    pub(crate) window: Duration,
    /// Enough: so many hosts.
    pub(crate) hosts: u32,
    /// Enough as well: so many sources (a service on a host).
    pub(crate) sources: u32,
    /// Enough as well: so many occurrences, wherever.
    pub(crate) count: u32,
}

/// A group that an occurrence counts for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Feed {
    /// Cause key of the group.
    pub(crate) group: String,
    /// Where on the host it came from.
    pub(crate) source: String,
    /// Cause key on the host that is a symptom of the group once it rages.
    pub(crate) symptom: String,
}

/// One rule. What most have in common is the default.
pub(crate) trait Detector: Sync {
    /// Its name, as in the policy and in explanations.
    fn name(&self) -> &'static str;

    /// Whether a cause key is one of its groups.
    fn owns(&self, key: &str) -> bool;

    /// What is wrong with a group; none when nothing counts.
    fn assess(&self, state: &State, now: Timestamp, key: &str, cause: &Cause) -> Option<Assessment>;

    /// Rule, values and thresholds of what was found.
    fn why(&self, state: &State, key: &str, found: &Assessment) -> String;

    /// Why the group counts as recovering.
    fn recovered(&self, state: &State, key: &str) -> String;

    /// How it ended, where there is more to tell than that health held.
    fn ended(&self, _state: &State, _incident: &Incident) -> Option<String> {
        None
    }

    /// Lines of detail in its pages, where the members' own do not tell it.
    fn details(&self, _state: &State, _key: &str, _cause: &Cause) -> Option<Vec<String>> {
        None
    }

    /// Services that a group's key names.
    fn services(&self, _key: &str) -> Vec<String> {
        Vec::new()
    }

    /// Groups that an open condition is a member of. Depends on the agent's places and the finding's key alone, so that
    /// it leaves the groups that it came to.
    fn conditions(&self, _state: &State, _agent: &AgentName, _key: &FindingKey) -> Vec<String> {
        Vec::new()
    }

    /// How many hosts are around the threshold of a group of conditions: from there on one more host changes what the
    /// others fold into.
    fn threshold(&self, _policy: &Policy, _key: &str) -> usize {
        0
    }

    /// Groups that an occurrence counts for, the narrowest first. The first that rages takes it; the wider ones count
    /// what no narrower one explains.
    fn occurrences(&self, _state: &State, _agent: &AgentName, _finding: &Finding) -> Vec<Feed> {
        Vec::new()
    }

    /// When a group of occurrences rages.
    fn storm_rule(&self, _policy: &Policy, _group: &str) -> Option<StormRule> {
        None
    }

    /// Groups that `cause` may be a symptom of, besides those of the windows that know it by name.
    fn groups_of(&self, _state: &State, _cause: &str) -> Vec<String> {
        Vec::new()
    }

    /// Whether a group counts `symptom`, the cause key of `agent`'s own trouble or of a narrower group.
    fn takes(&self, _state: &State, _group: &str, cause: &Cause, symptom: &str) -> bool {
        cause.storm.as_ref().is_some_and(|storm| storm.symptoms.contains(symptom))
    }

    /// The causes that a group takes, or gives back when it ends.
    fn symptoms(&self, _state: &State, _group: &str, cause: &Cause) -> Vec<String> {
        cause.storm.iter().flat_map(|storm| storm.symptoms.iter().cloned()).collect()
    }

    /// Its groups that are judged by a storm of another detector, or of one host.
    fn concerned_by(&self, _state: &State, _storm: &str) -> Vec<String> {
        Vec::new()
    }

    /// Symptoms fold until the incident is resolved, and not only while it is open: its last hosts are no news.
    fn lasting(&self) -> bool {
        false
    }

    /// Symptoms are no members of the group's cause and join its incident by their names.
    fn joins_by_name(&self) -> bool {
        true
    }

    /// Whether its storms stay open for a symptom that fell in the course of them and is told with this reason.
    fn waits_for(&self, _reason: Reason) -> bool {
        false
    }

    /// Why another host joins a group whose members are no conditions.
    fn joined(&self) -> &'static str {
        "fell silent as well"
    }

    /// It is told although it is less bad than what opens an incident otherwise.
    fn minor(&self) -> bool {
        false
    }

    /// What it sees of one host, and how far that is below its thresholds.
    fn looks(&self, _state: &State, _now: Timestamp, _agent: &AgentName) -> Vec<Look> {
        Vec::new()
    }
}

/// Every detector, in the table's order.
pub(crate) fn all() -> impl Iterator<Item = &'static dyn Detector> {
    DETECTORS.iter().copied()
}

/// The detector that owns a cause key; none for what hosts tell of themselves.
pub(crate) fn of(key: &str) -> Option<&'static dyn Detector> {
    // Most keys are of that kind, and every rule asks.
    let own = key.starts_with("host/") && cause::kind_of(key) == CauseKind::Host;
    if own { None } else { all().find(|detector| detector.owns(key)) }
}

/// Every group that an open condition is a member of.
pub(crate) fn groups(state: &State, agent: &AgentName, key: &FindingKey) -> Vec<String> {
    let mut groups = Vec::new();
    for detector in all() {
        groups.append(&mut detector.conditions(state, agent, key));
    }
    groups
}

/// The unresolved incident of a group that `cause` is a symptom of.
pub(crate) fn explained_by<'a>(state: &'a State, cause: &str) -> Option<&'a Incident> {
    let storms = windows::storms_of(state, cause).into_iter().flatten();
    let storms: Vec<&String> = storms.filter(|group| state.unresolved(group).is_some()).collect();
    all().find_map(|detector| {
        let groups = detector.groups_of(state, cause);
        if storms.is_empty() && groups.is_empty() {
            return None;
        }
        let by_name = storms.iter().copied().filter(|group| detector.owns(group));
        by_name.chain(&groups).filter(|group| *group != cause).find_map(|group| {
            let incident = state.unresolved(group)?;
            let takes = detector.lasting() || incident.status == IncidentStatus::Open;
            (takes && detector.takes(state, group, state.cause(group)?, cause)).then_some(incident)
        })
    })
}

/// The causes that fold into a group while its incident is open.
pub(crate) fn symptoms(state: &State, group: &str) -> Vec<String> {
    match (of(group), state.cause(group)) {
        (Some(detector), Some(cause)) => detector.symptoms(state, group, cause),
        _ => Vec::new(),
    }
}

/// Whether a group of conditions has about as many hosts as it takes.
pub(crate) fn is_near_threshold(state: &State, group: &str) -> bool {
    let Some(few) = of(group).map(|detector| detector.threshold(&state.policy, group)) else { return false };
    state.cause(group).is_some_and(|cause| cause.agents.len() <= few)
}

/// What a group that is open waits for, where nothing happens any more.
pub(crate) fn waits(state: &State, group: &str) -> Option<String> {
    let storm = state.cause(group)?.storm.as_ref().filter(|storm| !storm.active && !storm.down.is_empty())?;
    of(group)?;
    Some(restart_storm::waits(storm))
}

/// Other groups that are judged anew when a storm begins, goes on or ends.
pub(crate) fn concerned(state: &State, storm: &str) -> Vec<String> {
    all().flat_map(|detector| detector.concerned_by(state, storm)).collect()
}

/// The window of a cause's storm: a service that restarts on one host has that of its detector.
pub(crate) fn window_of(policy: &Policy, key: &str) -> Duration {
    let rule = of(key).and_then(|detector| detector.storm_rule(policy, key));
    rule.map_or(policy.restart_storm.window, |rule| rule.window)
}

/// The last change of a service on a host within `limit` before `at`, and what it was.
fn change_of(
    state: &State,
    agent: &AgentName,
    service: &ServiceName,
    at: Timestamp,
    limit: Duration,
) -> Option<(Timestamp, String)> {
    let of_service = state.signals.changes.of_agent(agent).filter(|change| change.service.as_ref() == Some(service));
    let before = of_service.filter(|change| change.observed <= at && change.observed + limit >= at);
    before.max_by_key(|change| change.observed).map(|change| (change.observed, change.words.clone()))
}

/// What a group counts as for a person: `group` without the detector's `prefix`.
fn rest<'a>(key: &'a str, prefix: &str) -> Option<&'a str> {
    key.strip_prefix(prefix)?.strip_prefix('/')
}

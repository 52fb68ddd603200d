//! Many hosts are short of memory at once, or a share of those of one place: what they do is too much for them, which is
//! one cause. The hosts' own memory alone; a service at the limit of its cgroup is its own.

use super::{Detector, Look, at_once, places, rest};
use crate::cause;
use crate::decide::assess::{Assessment, names, of_fleet};
use crate::policy::Policy;
use crate::state::{Cause, State};
use muster_common::finding::FindingKey;
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;
use std::collections::BTreeMap;

/// Cause key of the whole fleet, and before the place in those of one.
const PREFIX: &str = "fleet/reason/memory";
/// Members looked at for which reasons they have.
const LOOKED_AT_MAX: usize = 256;

/// See the head of the file.
#[derive(Debug)]
pub(super) struct MemoryGroup;

/// Whether so many hosts are enough, for a place or for the fleet.
fn is_enough(state: &State, key: &str, hosts: usize) -> bool {
    let rule = &state.policy().detect.memory_group;
    let Some(place) = rest(key, PREFIX) else { return hosts >= needed(rule.hosts) };
    let share = hosts as f64 / places::count(state, place).agents.max(1) as f64;
    hosts >= needed(rule.place_hosts_min) && share >= rule.place_share && places::are_counted(state)
}

fn needed(hosts: u32) -> usize {
    usize::try_from(hosts.max(2)).unwrap_or(usize::MAX)
}

#[expect(clippy::cast_possible_truncation, reason = "a share of a count of agents is no larger than that count")]
fn share_of(agents: f64, share: f64) -> usize {
    (agents * share).ceil() as usize
}

/// `memory_critical on 4, memory_pressure on 2`.
fn reasons(cause: &Cause) -> String {
    let mut counts: BTreeMap<Reason, usize> = BTreeMap::new();
    for key in cause.members.values().take(LOOKED_AT_MAX).filter_map(|member| member.key.as_ref()) {
        *counts.entry(key.reason).or_default() += 1;
    }
    counts.iter().map(|(reason, n)| format!("{reason} on {n}")).collect::<Vec<_>>().join(", ")
}

impl Detector for MemoryGroup {
    fn name(&self) -> &'static str {
        "memory_group"
    }

    fn owns(&self, key: &str) -> bool {
        key == PREFIX || rest(key, PREFIX).is_some()
    }

    fn assess(&self, state: &State, _now: Timestamp, key: &str, cause: &Cause) -> Option<Assessment> {
        let seen = at_once::at_once(state, cause)?;
        let n = seen.hosts as u64;
        let narrow = places::narrowest(state, cause).map(|(place, count)| (place, count.agents));
        let place = rest(key, PREFIX).map(|place| (place.to_owned(), places::count(state, place).agents));
        let who = match narrow.or(place) {
            Some((place, all)) => places::words(n, "hosts", &place, all),
            None => format!("{n} of {} hosts", state.agents.len()),
        };
        let summary = format!("{who} are short of memory ({}): {}", reasons(cause), names(cause.agents.keys()));
        let next_steps = vec![
            "start no new work there: musterctl freeze on, for these hosts".to_owned(),
            "on one of them: muster-agent doctor --service host: what takes the memory, and since when?".to_owned(),
            "look for what they share: a job, a release, a tenant".to_owned(),
        ];
        let open = is_enough(state, key, seen.hosts) && !seen.dismissed;
        let mut found = of_fleet(state, Reason::ReasonWidespread, seen.began, open, summary, next_steps);
        // A wider or better fitting group with the same hosts tells it instead.
        let tells = |other: &String| {
            let outer = state.cause(other).filter(|outer| is_enough(state, other, outer.agents.len()));
            other != key && outer.is_some_and(|outer| self.takes(state, other, outer, key))
        };
        found.raises = open && !self.groups_of(state, key).iter().any(tells);
        Some(found)
    }

    fn why(&self, state: &State, key: &str, found: &Assessment) -> String {
        let rule = &state.policy().detect.memory_group;
        let severity = found.severity;
        match rest(key, PREFIX) {
            Some(place) => {
                let (min, share) = (rule.place_hosts_min, rule.place_share * 100.0);
                format!("short of memory on at least {min} hosts and {share:.0} % of {place} at once: {severity}")
            }
            None => format!("short of memory on at least {} hosts at once: {severity}", rule.hosts),
        }
    }

    fn recovered(&self, _state: &State, _key: &str) -> String {
        "fewer hosts than the threshold are short of memory".to_owned()
    }

    fn conditions(&self, state: &State, agent: &AgentName, key: &FindingKey) -> Vec<String> {
        if !matches!(key.reason, Reason::MemoryCritical | Reason::MemoryPressure) || !key.subject.service.is_host() {
            return Vec::new();
        }
        let of_places = places::of(state, agent).into_iter().map(|place| format!("{PREFIX}/{place}"));
        of_places.chain([PREFIX.to_owned()]).collect()
    }

    fn threshold(&self, policy: &Policy, key: &str) -> usize {
        let rule = &policy.detect.memory_group;
        needed(if key == PREFIX { rule.hosts } else { rule.place_hosts_min })
    }

    /// A place is a symptom of the fleet, and of another place that its hosts are all part of.
    fn groups_of(&self, state: &State, cause: &str) -> Vec<String> {
        // Nearly every cause asks; where no host is short of memory there are no groups.
        let may = cause.ends_with("/memory") || cause.starts_with(PREFIX);
        if !may || state.causes.starting_with(PREFIX).next().is_none() {
            return Vec::new();
        }
        let of_place = |agent: &AgentName| {
            let places = places::of(state, agent).into_iter().map(|place| format!("{PREFIX}/{place}"));
            [PREFIX.to_owned()].into_iter().chain(places).collect()
        };
        let own = cause.strip_prefix("host/").and_then(|own| own.strip_suffix("/memory"));
        // An agent's name has no slash in it.
        if let Some(agent) = own.and_then(|own| AgentName::new(own).ok()) {
            return of_place(&agent);
        }
        let first = rest(cause, PREFIX).and_then(|_| state.cause(cause)?.agents.keys().next());
        first.map(of_place).unwrap_or_default()
    }

    fn takes(&self, state: &State, group: &str, cause: &Cause, symptom: &str) -> bool {
        match cause::agent_of(symptom) {
            Some(agent) => cause.agents.contains_key(&agent),
            None => state.cause(symptom).is_some_and(|inner| {
                let outer = (group, cause.agents.len());
                places::yields(state, (symptom, inner.agents.len()), outer, |key| rest(key, PREFIX))
                    && places::is_part(inner, cause)
            }),
        }
    }

    fn symptoms(&self, state: &State, group: &str, cause: &Cause) -> Vec<String> {
        at_once::host_causes(cause).into_iter().chain(places::other_groups(state, PREFIX, group)).collect()
    }

    fn lasting(&self) -> bool {
        true
    }

    fn joins_by_name(&self) -> bool {
        false
    }

    fn looks(&self, state: &State, _now: Timestamp, agent: &AgentName) -> Vec<Look> {
        let rule = &state.policy().detect.memory_group;
        let threshold = |key: &str| match rest(key, PREFIX) {
            Some(place) => {
                let all = places::count(state, place).agents as f64;
                let by_share = share_of(all, rule.place_share);
                let (min, percent) = (rule.place_hosts_min, rule.place_share * 100.0);
                let words = format!("short of memory on {min} hosts and {percent:.0} % of {place} at once");
                (by_share.max(needed(min)), words)
            }
            None => (needed(rule.hosts), format!("short of memory on {} hosts at once", rule.hosts)),
        };
        super::explain::conditions(self, state, agent, threshold)
    }
}

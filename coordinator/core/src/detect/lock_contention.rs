//! The same lock is contended on many hosts at once: by service and the file's name, since paths differ between hosts.

use super::{Detector, Look, at_once, many_subjects, restart_storm};
use crate::cause;
use crate::decide::assess::{Assessment, names, of_fleet};
use crate::policy::Policy;
use crate::severity::When;
use crate::state::{Cause, OpenFinding, State};
use muster_common::finding::FindingKey;
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;

/// Before service and file in the cause keys.
const PREFIX: &str = "fleet/lock";
/// Hosts of a contended lock that are looked at for a storm: one is enough, and any of the first will do.
const STORMING_AGENTS_MAX: usize = 64;

/// Members asked for how long they have lasted.
const LOOKED_AT_MAX: usize = 64;

/// See the head of the file.
#[derive(Debug)]
pub(super) struct LockContention;

fn needed(policy: &Policy) -> usize {
    usize::try_from(policy.lock_contention.fleet_hosts.max(2)).unwrap_or(usize::MAX)
}

/// When the next of a cause's contended locks has lasted long enough to be worse; of many members some are asked.
pub(crate) fn sustained_at(state: &State, cause: &Cause) -> Option<Timestamp> {
    let contended = cause.members.values().take(LOOKED_AT_MAX).filter(|member| {
        member.key.as_ref().is_some_and(|key| matches!(key.reason, Reason::LockContention | Reason::SqliteLockHeld))
    });
    let lasts = contended.filter_map(|member| {
        let open = state.agent(&member.agent)?.open.get(member.key.as_ref()?)?;
        Some(open.opened + state.policy().lock_contention.sustained)
    });
    lasts.filter(|at| *at > state.last_at()).min()
}

/// What makes a host's own contended lock worse.
pub(crate) fn lock_circumstances(state: &State, now: Timestamp, agent: &AgentName, open: &OpenFinding) -> Vec<When> {
    let mut holds = Vec::new();
    if now.since(open.opened) >= state.policy().lock_contention.sustained {
        holds.push(When::Sustained);
    }
    let service = open.finding.key.subject.service.as_str();
    holds.extend(storm_circumstance(state, agent, service));
    holds.extend(many_subjects::many_locks(state, agent, service));
    holds
}

/// A lock found taken is worse, too, while its service restarts again and again.
pub(crate) fn storm_circumstance(state: &State, agent: &AgentName, service: &str) -> Option<When> {
    restart_storm::rages(state, service, [agent].into_iter()).then_some(When::WithRestartStorm)
}

impl Detector for LockContention {
    fn name(&self) -> &'static str {
        "lock_contention"
    }

    fn owns(&self, key: &str) -> bool {
        super::rest(key, PREFIX).is_some()
    }

    fn assess(&self, state: &State, now: Timestamp, key: &str, cause: &Cause) -> Option<Assessment> {
        let seen = at_once::at_once(state, cause)?;
        let (n, needed) = (seen.hosts, needed(state.policy()));
        let subject = super::rest(key, PREFIX)?;
        let summary = format!("the lock of {subject} is contended on {n} hosts: {}", names(cause.agents.keys()));
        let next_steps =
            vec!["compare the lock holders named by the hosts: the same job usually runs on all".to_owned()];
        let open = n >= needed && !seen.dismissed;
        let mut found = of_fleet(state, Reason::LockContentionFleet, seen.began, open, summary, next_steps);
        let mut holds = Vec::new();
        if n >= needed * 2 {
            holds.push(When::TwiceTheHosts);
        }
        let service = subject.split('/').next().unwrap_or(subject);
        if restart_storm::rages(state, service, cause.agents.keys().take(STORMING_AGENTS_MAX)) {
            holds.push(When::WithRestartStorm);
        }
        if open && now.since(seen.began) >= state.policy().lock_contention.sustained {
            holds.push(When::Sustained);
        }
        found.raise(state, Reason::LockContentionFleet, &holds);
        Some(found)
    }

    fn why(&self, state: &State, _key: &str, found: &Assessment) -> String {
        let hosts = state.policy().lock_contention.fleet_hosts;
        format!("contended on at least {hosts} hosts at once: {}{}", found.severity, found.raised_words())
    }

    fn recovered(&self, _state: &State, _key: &str) -> String {
        "fewer hosts than the threshold are contended".to_owned()
    }

    fn conditions(&self, _state: &State, _agent: &AgentName, key: &FindingKey) -> Vec<String> {
        cause::of_fleet_lock(key).into_iter().collect()
    }

    fn threshold(&self, policy: &Policy, _key: &str) -> usize {
        needed(policy)
    }

    fn groups_of(&self, _state: &State, cause: &str) -> Vec<String> {
        cause::fleet_lock_of(cause).into_iter().collect()
    }

    fn takes(&self, _state: &State, _group: &str, cause: &Cause, symptom: &str) -> bool {
        cause::agent_of(symptom).is_some_and(|agent| cause.agents.contains_key(&agent))
    }

    fn symptoms(&self, _state: &State, _group: &str, cause: &Cause) -> Vec<String> {
        at_once::host_causes(cause)
    }

    /// A contended lock is worse while its service restarts in a storm.
    fn concerned_by(&self, state: &State, storm: &str) -> Vec<String> {
        let Some(service) = restart_storm::service_of(storm) else { return Vec::new() };
        let of_fleet = [PREFIX, "/", service, "/"].concat();
        let of_fleet = state.causes.starting_with(&of_fleet).map(|(key, _)| key);
        let of_storm = state.cause(storm).and_then(|cause| cause.storm.as_ref());
        let agents = of_storm.into_iter().flat_map(|storm| storm.agents.iter().take(STORMING_AGENTS_MAX));
        of_fleet.chain(state.causes.locks(service, agents.map(AgentName::as_str))).cloned().collect()
    }

    fn lasting(&self) -> bool {
        true
    }

    fn joins_by_name(&self) -> bool {
        false
    }

    fn looks(&self, state: &State, _now: Timestamp, agent: &AgentName) -> Vec<Look> {
        let needed = needed(state.policy());
        let threshold = |_: &str| (needed, format!("the same lock contended on {needed} hosts at once"));
        super::explain::conditions(self, state, agent, threshold)
    }
}

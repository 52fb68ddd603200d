//! OOM kills on several hosts, or many of one service: one cause, such as a release that needs more memory. Grouped by
//! the service that was hit; what no service explains is counted over all of them. A restart storm of the same service on
//! the same hosts is its symptom.

use super::{Detector, Feed, Look, StormRule, behind, places, rest, restart_storm};
use crate::cause;
use crate::decide::assess::{Assessment, names, of_fleet};
use crate::decide::human;
use crate::policy::Policy;
use crate::same_kill;
use crate::state::{Cause, State, Storm};
use muster_common::finding::Finding;
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;
use std::collections::BTreeSet;

/// Cause key of kills of many services, and before the service's name in those of one.
const PREFIX: &str = "fleet/oom_storm";
/// Causes looked at for the services that were hit.
const LOOKED_AT_MAX: usize = 256;
/// Services named in a sentence.
const SERVICES_NAMED_MAX: usize = 5;

/// What nobody watches, for people.
const UNWATCHED: &str = "unwatched processes";

/// See the head of the file.
#[derive(Debug)]
pub(super) struct OomStorm;

/// Which services the kernel hit: those whose causes are symptoms. `host`: a process that nobody watches.
fn victims(storm: &Storm) -> BTreeSet<&str> {
    let causes = storm.symptoms.iter().take(LOOKED_AT_MAX);
    causes.map(|cause| cause.split_once("/service/").map_or(UNWATCHED, |(_, service)| service)).collect()
}

/// The unwatched processes that were hit, by name where the hosts told it.
fn unwatched(state: &State, storm: &Storm) -> String {
    let name = |finding: &Finding| behind::victim(finding).filter(|_| finding.key.subject.service.is_host());
    match behind::named(state, storm, Reason::OomKill, name) {
        names if names.is_empty() => UNWATCHED.to_owned(),
        names => format!("{UNWATCHED} ({})", names.join(", ")),
    }
}

impl Detector for OomStorm {
    fn name(&self) -> &'static str {
        "oom_storm"
    }

    fn owns(&self, key: &str) -> bool {
        key == PREFIX || rest(key, PREFIX).is_some()
    }

    fn assess(&self, state: &State, _now: Timestamp, key: &str, cause: &Cause) -> Option<Assessment> {
        let storm = cause.storm.as_ref().filter(|storm| storm.index > cause.dismissed_index)?;
        let span = human(storm.last.since(storm.began));
        let (kills, hosts) = (storm.restarts, storm.agents.len());
        let named = names(storm.agents.iter());
        let summary = match rest(key, PREFIX) {
            Some("host") => {
                let killed = unwatched(state, storm);
                format!("{kills} OOM kills of {killed} on {hosts} hosts within {span}: {named}")
            }
            Some(service) => format!("{service} was OOM-killed {kills} times on {hosts} hosts within {span}: {named}"),
            None => {
                let mut some: Vec<String> =
                    victims(storm).into_iter().take(SERVICES_NAMED_MAX).map(str::to_owned).collect();
                if let Some(killed) = some.iter_mut().find(|name| *name == UNWATCHED) {
                    *killed = unwatched(state, storm);
                }
                let some = some.join(", ");
                format!("{kills} OOM kills on {hosts} hosts within {span} ({some}): {named}")
            }
        };
        let next_steps = vec![
            format!("ask what was deployed, or what load came, shortly before {}", storm.began),
            "on one of the hosts: muster-agent doctor: was it the cgroup's limit or the host's memory?".to_owned(),
            "start no new work there: muster-agent preflight says what there is room for".to_owned(),
        ];
        let summary = match storm.active {
            true => summary,
            false => summary + &restart_storm::still_down(storm),
        };
        let mut found = of_fleet(state, Reason::OomStorm, storm.began, storm.is_open(), summary, next_steps);
        found.raises = true;
        found.happened = true;
        found.late = storm.received.since(storm.last);
        Some(found)
    }

    fn why(&self, state: &State, key: &str, found: &Assessment) -> String {
        let rule = &state.policy().detect.oom_storm;
        let (hosts, kills, window, severity) = (rule.hosts, rule.kills, human(rule.window), found.severity);
        match rest(key, PREFIX) {
            Some("host") => format!(
                "OOM kills of {UNWATCHED} on at least {hosts} hosts, or {kills} of them, within {window}: {severity}"
            ),
            Some(_) => format!(
                "OOM kills of one service on at least {hosts} hosts, or {kills} of them, within {window}: {severity}"
            ),
            None => format!("OOM kills on at least {hosts} hosts within {window}: {severity}"),
        }
    }

    fn recovered(&self, state: &State, _key: &str) -> String {
        let window = human(state.policy().detect.oom_storm.window);
        format!("no OOM kill for {window}, and what fell is up again")
    }

    fn waits_for(&self, reason: Reason) -> bool {
        restart_storm::is_fall(reason)
    }

    /// Whom the kernel hit, on each host, in which cgroup and at which limit.
    fn details(&self, state: &State, key: &str, cause: &Cause) -> Option<Vec<String>> {
        let (storm, group) = (cause.storm.as_ref()?, rest(key, PREFIX));
        let fits = |finding: &Finding| group.is_none_or(|service| finding.key.subject.service.as_str() == service);
        Some(behind::details(state, storm, Reason::OomKill, "killed", behind::victim, fits))
    }

    fn services(&self, key: &str) -> Vec<String> {
        rest(key, PREFIX).filter(|service| *service != "host").map(str::to_owned).into_iter().collect()
    }

    fn occurrences(&self, state: &State, agent: &AgentName, finding: &Finding) -> Vec<Feed> {
        if finding.key.reason != Reason::OomKill {
            return Vec::new();
        }
        let service = &finding.key.subject.service;
        // What rages takes it all the same: it is one of its symptoms there.
        let groups = [format!("{PREFIX}/{service}"), PREFIX.to_owned()];
        let rages = groups.iter().any(|group| state.cause(group).is_some_and(|cause| cause.storm.is_some()));
        if !rages && same_kill::is_told_by_another(state, agent, finding) {
            return Vec::new();
        }
        let feed = |group: String| Feed {
            group,
            source: service.to_string(),
            symptom: cause::of_finding(agent, &finding.key),
        };
        vec![feed(format!("{PREFIX}/{service}")), feed(PREFIX.to_owned())]
    }

    /// Many kills alone say something about one service only: a host may lose many things at once.
    fn storm_rule(&self, policy: &Policy, group: &str) -> Option<StormRule> {
        let rule = &policy.detect.oom_storm;
        let count = if group == PREFIX { 0 } else { rule.kills };
        Some(StormRule { window: rule.window, hosts: rule.hosts, sources: 0, count })
    }

    fn groups_of(&self, _state: &State, cause: &str) -> Vec<String> {
        if !cause.starts_with("fleet/") {
            return Vec::new();
        }
        let service = restart_storm::service_of(cause);
        service.map(|service| format!("{PREFIX}/{service}")).into_iter().collect()
    }

    fn takes(&self, state: &State, _group: &str, cause: &Cause, symptom: &str) -> bool {
        let Some(storm) = &cause.storm else { return false };
        let inner = state.cause(symptom).and_then(|cause| cause.storm.as_ref());
        storm.takes(symptom)
            || (symptom.starts_with("fleet/")
                && inner.is_some_and(|inner| places::are_part(&inner.agents, &storm.agents)))
    }

    /// The storms of restarts that a storm of kills explains begin before it or after.
    fn symptoms(&self, state: &State, group: &str, cause: &Cause) -> Vec<String> {
        let own = cause.storm.iter().flat_map(|storm| storm.symptoms.iter().cloned());
        let of_restarts = rest(group, PREFIX).map(|service| restart_storm::groups_of_service(state, service));
        own.chain(of_restarts.into_iter().flatten()).collect()
    }

    fn concerned_by(&self, state: &State, storm: &str) -> Vec<String> {
        match rest(storm, PREFIX) {
            Some(service) => restart_storm::groups_of_service(state, service),
            None => Vec::new(),
        }
    }

    fn looks(&self, state: &State, now: Timestamp, agent: &AgentName) -> Vec<Look> {
        super::explain::windows(self, state, now, agent)
    }
}

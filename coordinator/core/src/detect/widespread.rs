//! The same reason from many hosts, or from many sources: rate limits, network errors, timeouts, errors that stay, failed
//! installations. One cause that lies outside of the hosts.

use super::{Detector, Feed, Look, StormRule, rest};
use crate::cause;
use crate::decide::assess::{Assessment, names, of_fleet};
use crate::decide::human;
use crate::policy::Policy;
use crate::severity::When;
use crate::state::{Cause, STORM_AGENTS_MAX, State, Storm};
use muster_common::finding::Finding;
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use std::collections::BTreeSet;

/// Before the reason in the cause keys.
const PREFIX: &str = "fleet/reason";
/// What programs report of the world outside of their host, or of what all hosts share.
const REASONS: &[Reason] = &[
    Reason::ProviderRateLimited,
    Reason::NetworkError,
    Reason::Timeout,
    Reason::RetryBudgetExceeded,
    Reason::PermanentError,
    Reason::PermissionDenied,
    Reason::ResourceExhausted,
    Reason::DatabaseBusy,
    Reason::DatabaseError,
    Reason::RepoLocked,
    Reason::InstallFailed,
];
/// Being widespread alone makes them no worse than they are on one host: the matrix asks for the whole fleet.
const WORSE_FLEET_WIDE_ALONE: &[Reason] = &[Reason::InstallFailed];
/// Causes looked at for the services concerned.
const LOOKED_AT_MAX: usize = 256;
/// Services named in a sentence.
const SERVICES_NAMED_MAX: usize = 5;

/// See the head of the file.
#[derive(Debug)]
pub(super) struct Widespread;

fn reason_of(key: &str) -> Option<Reason> {
    let code = rest(key, PREFIX)?;
    REASONS.iter().copied().find(|reason| reason.as_str() == code)
}

/// `host/AGENT/REASON/SERVICE/SUBJECT`: who told.
fn services_of(storm: &Storm) -> BTreeSet<&str> {
    storm.symptoms.iter().take(LOOKED_AT_MAX).filter_map(|cause| cause.split('/').nth(3)).collect()
}

fn circumstances(state: &State, storm: &Storm) -> Vec<When> {
    let rule = &state.policy().detect.reason_widespread;
    let mut holds = vec![When::Widespread];
    let share = (state.agents.len() as f64 * rule.fleet_share).min(STORM_AGENTS_MAX as f64);
    if storm.agents.len() >= 2 && storm.agents.len() as f64 >= share {
        holds.push(When::FleetWide);
    }
    if storm.active && storm.last.since(storm.began) >= rule.prolonged {
        holds.push(When::Prolonged);
    }
    holds
}

impl Detector for Widespread {
    fn name(&self) -> &'static str {
        "reason_widespread"
    }

    fn owns(&self, key: &str) -> bool {
        reason_of(key).is_some()
    }

    fn assess(&self, state: &State, _now: Timestamp, key: &str, cause: &Cause) -> Option<Assessment> {
        let storm = cause.storm.as_ref().filter(|storm| storm.index > cause.dismissed_index)?;
        let reason = reason_of(key)?;
        let span = human(storm.last.since(storm.began));
        let services = services_of(storm);
        let some = services.iter().take(SERVICES_NAMED_MAX).copied().collect::<Vec<_>>().join(", ");
        let (n, hosts) = (storm.restarts, storm.agents.len());
        let named = names(storm.agents.iter());
        let summary = format!("{reason} {n} times on {hosts} hosts within {span} (told by {some}): {named}");
        let next_steps = vec![
            format!("musterctl findings list --reason {reason} --occurrences: what do they share, such as a provider?"),
            "see whether that which they all need answers, and whether its operator tells of an outage".to_owned(),
        ];
        let mut found = of_fleet(state, Reason::ReasonWidespread, storm.began, storm.active, summary, next_steps);
        found.raises = true;
        found.happened = true;
        found.late = storm.received.since(storm.last);
        if !state.policy().severities.contains_key(&Reason::ReasonWidespread) {
            if WORSE_FLEET_WIDE_ALONE.contains(&reason) {
                found.severity = state.severity_of(reason, reason.default_severity());
            }
            found.raise(state, reason, &circumstances(state, storm));
        }
        Some(found)
    }

    fn why(&self, state: &State, key: &str, found: &Assessment) -> String {
        let rule = &state.policy().detect.reason_widespread;
        let (hosts, sources, window) = (rule.hosts, rule.sources, human(rule.window));
        let reason = reason_of(key).map_or("the same reason", Reason::as_str);
        let (severity, raised) = (found.severity, found.raised_words());
        format!("{reason} on at least {hosts} hosts, or from {sources} sources, within {window}: {severity}{raised}")
    }

    fn recovered(&self, state: &State, key: &str) -> String {
        let reason = reason_of(key).map_or("occurrence", Reason::as_str);
        format!("no {reason} for {}", human(state.policy().detect.reason_widespread.window))
    }

    /// What a policy keeps for the audit trail alone is not made the fleet's matter.
    fn occurrences(&self, state: &State, agent: &AgentName, finding: &Finding) -> Vec<Feed> {
        let reason = finding.key.reason;
        if !REASONS.contains(&reason) || state.severity_of(reason, finding.severity) == Severity::Sev4 {
            return Vec::new();
        }
        vec![Feed {
            group: format!("{PREFIX}/{reason}"),
            source: finding.key.subject.service.to_string(),
            symptom: cause::of_finding(agent, &finding.key),
        }]
    }

    fn storm_rule(&self, policy: &Policy, _group: &str) -> Option<StormRule> {
        let rule = &policy.detect.reason_widespread;
        Some(StormRule { window: rule.window, hosts: rule.hosts, sources: rule.sources, count: 0 })
    }

    fn looks(&self, state: &State, now: Timestamp, agent: &AgentName) -> Vec<Look> {
        super::explain::windows(self, state, now, agent)
    }
}

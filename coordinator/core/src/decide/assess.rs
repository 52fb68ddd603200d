//! What is wrong under one cause key, and in which words. Costs what the cause's own host costs; fleet-wide causes are
//! judged by their counts.

use crate::apply::links::mass_reached;
use crate::cause::{self, CauseKind};
use crate::entry::Silence;
use crate::state::{Cause, CauseOccurrence, INCIDENTS_PER_AGENT_MAX, IncidentStatus, Link, State, Storm};
use muster_common::evidence::{Grade, Value};
use muster_common::ids::AgentName;
use muster_common::limits::{NEXT_STEPS_MAX, SUMMARY_BYTES_MAX, clip};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use std::time::Duration;

use super::human;

/// An OOM kill of a watched service this long ago still makes critical memory worse.
const OOM_MATTERS_FOR: Duration = Duration::from_secs(900);
/// Names listed in a sentence.
const NAMED_MAX: usize = 5;
/// A mass silence goes on while more than one in this many of its agents is silent.
const MASS_BACK_ONE_IN: usize = 10;
/// Hosts of a contended lock that are looked at for a storm: one is enough, and any of the first will do.
const STORMING_AGENTS_MAX: usize = 64;
/// Lines of detail in a page.
const DETAILS_MAX: usize = 12;

/// What is wrong.
#[derive(Debug, Clone)]
pub(super) struct Assessment {
    /// The most telling reason.
    pub(super) reason: Reason,
    /// The worst severity.
    pub(super) severity: Severity,
    /// How sure the most telling one is.
    pub(super) grade: Grade,
    /// When it began.
    pub(super) began: Timestamp,
    /// Something is still wrong.
    pub(super) open: bool,
    /// Enough for an incident: something is wrong, or happened.
    pub(super) raises: bool,
    /// Something happened that matters although it is over.
    pub(super) happened: bool,
    /// How much later than it happened the coordinator heard of it.
    pub(super) late: Duration,
    /// The worst one, in words.
    pub(super) worst: String,
    summary: String,
    next_steps: Vec<String>,
}

/// Title and the rest.
#[derive(Debug, Clone)]
pub(super) struct Wording {
    pub(super) title: String,
    pub(super) why: String,
    pub(super) next_steps: Vec<String>,
    pub(super) details: Vec<String>,
    pub(super) services: Vec<String>,
}

/// One thing that counts.
struct Item<'a> {
    reason: Reason,
    severity: Severity,
    grade: Grade,
    observed: Timestamp,
    received: Timestamp,
    condition: bool,
    summary: &'a str,
    next_steps: &'a [String],
}

/// None when nothing counts.
pub(super) fn assess(state: &State, now: Timestamp, key: &str, cause: &Cause) -> Option<Assessment> {
    match cause::kind_of(key) {
        CauseKind::Host => host(state, now, key, cause),
        CauseKind::AgentStale => agent_stale(state, cause),
        CauseKind::AgentFlood => agent_flood(state, cause),
        CauseKind::MassStale => mass_stale(state, cause),
        CauseKind::FleetStorm => fleet_storm(state, key, cause),
        CauseKind::FleetLock => fleet_lock(state, key, cause),
    }
}

fn items<'a>(state: &'a State, now: Timestamp, cause: &'a Cause) -> Vec<Item<'a>> {
    let conditions = cause.members.values().filter_map(|member| {
        let agent = state.agent(&member.agent)?;
        let open = agent.open.get(member.key.as_ref()?)?;
        let finding = &open.finding;
        let reason = finding.key.reason;
        let mut severity = state.severity_of(reason, finding.severity);
        let oom = agent.watched_oom_at.is_some_and(|at| at + OOM_MATTERS_FOR >= now || at >= open.opened);
        if reason == Reason::MemoryCritical && oom && !state.policy().severities.contains_key(&reason) {
            severity = severity.max(Severity::Sev2);
        }
        let counts = open.event_index > cause.dismissed_index && severity >= Severity::Sev3;
        counts.then_some(Item {
            reason,
            severity,
            grade: finding.grade,
            observed: open.opened,
            received: open.received,
            condition: true,
            summary: &finding.summary,
            next_steps: &finding.next_steps,
        })
    });
    let occurrences = cause.occurrences.iter().map(|occurrence| Item {
        reason: occurrence.reason,
        severity: occurrence_severity(state, occurrence),
        grade: occurrence.grade,
        observed: occurrence.observed,
        received: occurrence.received,
        condition: false,
        summary: &occurrence.summary,
        next_steps: &occurrence.next_steps,
    });
    conditions.chain(occurrences).collect()
}

/// An OOM kill of a watched service is an outage, whoever told it with what.
fn occurrence_severity(state: &State, occurrence: &CauseOccurrence) -> Severity {
    let watched = occurrence.service.as_ref().is_some_and(|service| !service.is_host());
    let told = match occurrence.reason {
        Reason::OomKill if watched => occurrence.severity.max(Severity::Sev2),
        _ => occurrence.severity,
    };
    state.severity_of(occurrence.reason, told)
}

fn host(state: &State, now: Timestamp, key: &str, cause: &Cause) -> Option<Assessment> {
    let mut all = items(state, now, cause);
    let storm_words;
    if let Some(storm) = cause.storm.as_ref().filter(|storm| storm.index > cause.dismissed_index) {
        let reason = Reason::RestartStorm;
        let span = human(storm.last.since(storm.began));
        let behind = all.iter().max_by_key(|item| (cause::telling(item.reason), item.severity));
        let behind = behind.map(|item| format!("; behind it {}: {}", item.reason, item.summary)).unwrap_or_default();
        storm_words = format!("{} restarted {} times within {span}{behind}", subject_of(key), storm.restarts);
        all.push(Item {
            reason,
            severity: storm_severity(state, storm),
            grade: Grade::Confirmed,
            observed: storm.began,
            received: storm.began + storm.received.since(storm.last),
            condition: storm.active,
            summary: &storm_words,
            next_steps: &[],
        });
    }
    let top = all.iter().max_by_key(|item| (cause::telling(item.reason), item.severity, item.observed))?;
    let worst = all.iter().max_by_key(|item| (item.severity, cause::telling(item.reason)))?;
    let mut next_steps: Vec<String> = Vec::new();
    for step in top.next_steps.iter().chain(worst.next_steps).chain(all.iter().flat_map(|item| item.next_steps)) {
        if next_steps.len() < NEXT_STEPS_MAX && !next_steps.contains(step) {
            next_steps.push(step.clone());
        }
    }
    Some(Assessment {
        reason: top.reason,
        severity: worst.severity,
        grade: top.grade,
        began: all.iter().map(|item| item.observed).min().unwrap_or(now),
        open: all.iter().any(|item| item.condition),
        raises: true,
        happened: all.iter().any(|item| !item.condition),
        late: top.received.since(top.observed),
        worst: format!("{} ({})", worst.reason, worst.summary),
        summary: top.summary.to_owned(),
        next_steps,
    })
}

/// `spl on web-1` from `host/web-1/service/spl`.
fn subject_of(key: &str) -> String {
    let mut parts = key.splitn(4, '/').skip(1);
    let agent = parts.next().unwrap_or(key);
    match (parts.next(), parts.next()) {
        (Some("service"), Some(service)) => format!("{service} on {agent}"),
        _ => agent.to_owned(),
    }
}

/// Why an agent is silent, as a sentence.
fn silence_words(state: &State, agent: &AgentName) -> Option<(String, Timestamp, u64)> {
    let record = state.agent(agent)?;
    let Link::Silent { last_heard, silence, index, .. } = &record.link else { return None };
    let how = match silence {
        Silence::Goodbye => {
            format!("said goodbye and did not come back within {}", human(state.policy().liveness.goodbye_grace))
        }
        Silence::Reset => "had its connection reset and did not come back".to_owned(),
        Silence::Nothing => "says nothing on an open connection".to_owned(),
        Silence::NotReheard => "did not come back after this coordinator began to listen".to_owned(),
    };
    Some((format!("agent {agent} {how}; last heard {last_heard}"), *last_heard, *index))
}

fn agent_stale(state: &State, cause: &Cause) -> Option<Assessment> {
    let agent = cause.agents.keys().next()?;
    let (summary, last_heard, index) = silence_words(state, agent)?;
    if index <= cause.dismissed_index {
        return None;
    }
    let next_steps = vec![
        format!("see whether the host answers: ping {agent}"),
        "on the host: systemctl status muster-agent; journalctl -u muster-agent -n 50".to_owned(),
    ];
    Some(of_fleet(state, Reason::AgentStale, last_heard, true, summary, next_steps))
}

fn agent_flood(state: &State, cause: &Cause) -> Option<Assessment> {
    let agent = cause.agents.keys().next()?;
    let summary = format!(
        "agent {agent} has {INCIDENTS_PER_AGENT_MAX} unresolved incidents: what else it tells is gathered here"
    );
    let next_steps = vec![
        format!("see what it tells, and whether that is believable: musterctl findings list --agent {agent}"),
        format!("on {agent}: muster-agent doctor; look for what its troubles share"),
    ];
    Some(of_fleet(state, Reason::AgentFlood, state.last_at(), true, summary, next_steps))
}

/// Restarts that go on for longer than a window, without one in which there are none, are a crash loop without recovery.
fn storm_severity(state: &State, storm: &Storm) -> Severity {
    let reason = Reason::RestartStorm;
    let lasting = storm.active && storm.last.since(storm.began) >= state.policy().restart_storm.window;
    let default = reason.default_severity();
    state.severity_of(reason, if lasting { default.worse() } else { default })
}

fn of_fleet(
    state: &State,
    reason: Reason,
    began: Timestamp,
    open: bool,
    summary: String,
    next_steps: Vec<String>,
) -> Assessment {
    Assessment {
        reason,
        severity: state.severity_of(reason, reason.default_severity()),
        grade: Grade::Confirmed,
        began,
        open,
        raises: open,
        happened: false,
        late: Duration::ZERO,
        worst: reason.to_string(),
        summary,
        next_steps,
    }
}

fn mass_stale(state: &State, cause: &Cause) -> Option<Assessment> {
    let n = cause.members.len();
    let open = match state.unresolved(cause::MASS_STALE) {
        None => n > 0,
        Some(incident) if incident.status == IncidentStatus::Recovering => mass_reached(state),
        // After a relapse the new silences count by themselves: of a very large mass they may be few.
        Some(incident) => {
            let ever = incident.agents.len().max(n);
            n * MASS_BACK_ONE_IN > ever || (incident.relapses > 0 && mass_reached(state))
        }
    };
    let named = names(cause.agents.keys());
    let first = state.silences.iter().find(|(_, agent)| cause.agents.contains_key(agent));
    let began = first
        .and_then(|(_, agent)| silence_words(state, agent))
        .map_or(state.last_at(), |(_, last_heard, _)| last_heard);
    let n_agents = state.agents.len();
    let summary = format!("{n} of {n_agents} agents fell silent together, the first last heard {began}: {named}");
    let next_steps = vec![
        "look for what they share: a switch, a zone, a certificate authority, an upgrade".to_owned(),
        "see whether this coordinator itself is cut off: musterctl failover status on the standby".to_owned(),
    ];
    Some(of_fleet(state, Reason::MassStale, began, open, summary, next_steps))
}

fn names<'a>(agents: impl ExactSizeIterator<Item = &'a AgentName>) -> String {
    let n = agents.len();
    let named: Vec<&str> = agents.take(NAMED_MAX).map(AgentName::as_str).collect();
    let more = n.saturating_sub(NAMED_MAX);
    if more == 0 { named.join(", ") } else { format!("{} and {more} more", named.join(", ")) }
}

fn fleet_storm(state: &State, key: &str, cause: &Cause) -> Option<Assessment> {
    let storm = cause.storm.as_ref().filter(|storm| storm.index > cause.dismissed_index)?;
    let service = key.rsplit('/').next().unwrap_or(key);
    let span = human(storm.last.since(storm.began));
    let (n, named) = (storm.agents.len(), names(storm.agents.iter()));
    let summary = format!("{service} restarted {} times on {n} hosts within {span}: {named}", storm.restarts);
    let next_steps = vec![
        format!("ask what was deployed or changed for {service} shortly before {}", storm.began),
        format!("read the log of {service} on one of the hosts before its last exit"),
    ];
    let mut found = of_fleet(state, Reason::RestartStorm, storm.began, storm.active, summary, next_steps);
    found.severity = storm_severity(state, storm);
    found.raises = true;
    found.happened = true;
    found.late = storm.received.since(storm.last);
    Some(found)
}

fn fleet_lock(state: &State, key: &str, cause: &Cause) -> Option<Assessment> {
    let needed = usize::try_from(state.policy().lock_contention.fleet_hosts.max(2)).unwrap_or(usize::MAX);
    let n = cause.agents.len();
    if n == 0 {
        return None;
    }
    let opened = |member: &crate::state::MemberRef| {
        let open = state.agent(&member.agent)?.open.get(member.key.as_ref()?)?;
        Some((open.opened, open.event_index))
    };
    let dismissed = cause.dismissed_index > 0
        && cause.members.values().filter_map(opened).all(|(_, index)| index <= cause.dismissed_index);
    let subject = key.strip_prefix("fleet/lock/").unwrap_or(key);
    let summary = format!("the lock of {subject} is contended on {n} hosts: {}", names(cause.agents.keys()));
    let next_steps = vec!["compare the lock holders named by the hosts: the same job usually runs on all".to_owned()];
    let began = cause.members.values().take(64).filter_map(opened).map(|(at, _)| at).min().unwrap_or(state.last_at());
    let open = n >= needed && !dismissed;
    let mut found = of_fleet(state, Reason::LockContentionFleet, began, open, summary, next_steps);
    let worse = found.severity.max(Severity::Sev2);
    if n >= needed * 2 || restarts_rage(state, subject, cause) {
        found.severity = state.severity_of(Reason::LockContentionFleet, worse);
    }
    Some(found)
}

/// Whether the service whose lock is contended also restarts in a storm, on these hosts or on many.
fn restarts_rage(state: &State, subject: &str, cause: &Cause) -> bool {
    let service = subject.split('/').next().unwrap_or(subject);
    let rages = |key: &str| state.cause(key).and_then(|cause| cause.storm.as_ref()).is_some_and(|storm| storm.active);
    rages(&format!("fleet/restart_storm/{service}"))
        || cause.agents.keys().take(STORMING_AGENTS_MAX).any(|agent| rages(&format!("host/{agent}/service/{service}")))
}

impl Assessment {
    /// Sentences for people.
    pub(super) fn wording(&self, state: &State, now: Timestamp, key: &str, cause: &Cause) -> Wording {
        let details = match cause::kind_of(key) {
            CauseKind::MassStale => {
                let words = cause.agents.keys().take(DETAILS_MAX).filter_map(|agent| silence_words(state, agent));
                words.map(|(words, ..)| words).collect()
            }
            _ => {
                let seen = items(state, now, cause);
                story(state, cause).into_iter().chain(seen.iter().map(Item::line)).take(DETAILS_MAX).collect()
            }
        };
        let about = subject_of(key);
        let title = if key.starts_with("host/") && !self.summary.contains(about.as_str()) {
            format!("{about}: {}", self.summary)
        } else {
            self.summary.clone()
        };
        Wording {
            title: clip(&title, SUMMARY_BYTES_MAX),
            why: self.why(state, key),
            next_steps: self.next_steps.clone(),
            details,
            services: services(key, cause),
        }
    }

    fn why(&self, state: &State, key: &str) -> String {
        let (severity, policy) = (self.severity, state.policy());
        match cause::kind_of(key) {
            CauseKind::Host if self.reason == Reason::RestartStorm => {
                let rule = &policy.restart_storm;
                let (restarts, window) = (rule.host_restarts, human(rule.window));
                format!("at least {restarts} restarts within {window} make {severity}; longer without end, one worse")
            }
            CauseKind::Host => format!("{} was told with {severity}", self.worst),
            CauseKind::AgentFlood => {
                format!("at most {INCIDENTS_PER_AGENT_MAX} incidents are opened for one agent: {severity}")
            }
            CauseKind::AgentStale => {
                let stale = policy.liveness.heartbeat * policy.liveness.stale_after;
                format!("not heard for {} or more: {severity}", human(stale))
            }
            CauseKind::MassStale => {
                let rule = &policy.liveness;
                let (min, share, n, window) =
                    (rule.mass_agents_min, rule.mass_share * 100.0, rule.mass_agents, human(rule.mass_window));
                format!(
                    "at least {min} agents and {share:.0} % of those heard, or {n} agents, within {window}: {severity}"
                )
            }
            CauseKind::FleetStorm => {
                let rule = &policy.restart_storm;
                format!("restarts on at least {} hosts within {} make {severity}", rule.fleet_hosts, human(rule.window))
            }
            CauseKind::FleetLock => {
                format!("contended on at least {} hosts at once: {severity}", policy.lock_contention.fleet_hosts)
            }
        }
    }
}

/// What the host itself made of it: the diagnosis that came with the worst of its findings.
fn story(state: &State, cause: &Cause) -> Option<String> {
    let open = cause.members.values().take(64).filter_map(|member| {
        let finding = &state.agent(&member.agent)?.open.get(member.key.as_ref()?)?.finding;
        match finding.evidence.get("diagnosis")? {
            Value::Text(diagnosis) => Some((finding.severity, diagnosis)),
            _ => None,
        }
    });
    let (_, diagnosis) = open.max_by_key(|(severity, diagnosis)| (*severity, diagnosis.len()))?;
    Some(clip(&format!("the host's diagnosis: {diagnosis}"), SUMMARY_BYTES_MAX))
}

impl Item<'_> {
    fn line(&self) -> String {
        let word = if self.condition { "since" } else { "at" };
        clip(&format!("{} {word} {}: {}", self.reason, self.observed, self.summary), SUMMARY_BYTES_MAX)
    }
}

fn services(key: &str, cause: &Cause) -> Vec<String> {
    let of_members = cause.members.values().take(64).filter_map(|member| member.key.as_ref());
    let mut names: Vec<String> = of_members.map(|key| key.subject.service.to_string()).collect();
    names
        .extend(cause.occurrences.iter().filter_map(|occurrence| occurrence.service.as_ref()).map(ToString::to_string));
    let from_key = key.strip_prefix("fleet/restart_storm/").or_else(|| key.split("/service/").nth(1));
    names.extend(from_key.map(str::to_owned));
    names.sort();
    names.dedup();
    names
}

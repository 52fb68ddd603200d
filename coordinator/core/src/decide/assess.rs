//! What is wrong under one cause key, and in which words. Costs what the cause's own host costs; fleet-wide causes are
//! judged by their counts.

use crate::cause;
use crate::detect;
use crate::severity::{self, Raise, When};
use crate::singletons;
use crate::state::{Cause, CauseOccurrence, State};
use crate::updates;
use muster_common::evidence::{Grade, Value};
use muster_common::ids::{AgentName, ServiceName};
use muster_common::limits::{NEXT_STEPS_MAX, SUMMARY_BYTES_MAX, clip};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use std::time::Duration;

use super::{human, lasting};

/// An OOM kill of a watched service this long ago still makes critical memory worse.
const OOM_MATTERS_FOR: Duration = Duration::from_secs(900);
/// Names listed in a sentence.
const NAMED_MAX: usize = 5;
/// Room for a name in a sentence; a longer one makes the sentence grow.
const NAME_BYTES_USUAL: usize = 20;
/// Lines of detail in a page.
pub(crate) const DETAILS_MAX: usize = 12;

/// What is wrong.
#[derive(Debug, Clone)]
pub(crate) struct Assessment {
    /// The most telling reason.
    pub(crate) reason: Reason,
    /// The worst severity.
    pub(crate) severity: Severity,
    /// How sure the most telling one is.
    pub(crate) grade: Grade,
    /// When it began.
    pub(crate) began: Timestamp,
    /// Something is still wrong.
    pub(crate) open: bool,
    /// Enough for an incident: something is wrong, or happened.
    pub(crate) raises: bool,
    /// Something happened that matters although it is over.
    pub(crate) happened: bool,
    /// How much later than it happened the coordinator heard of it.
    pub(crate) late: Duration,
    /// The worst one, in words.
    pub(crate) worst: String,
    pub(crate) summary: String,
    pub(crate) next_steps: Vec<String>,
    /// The line of the severity matrix that made it worse than it was told.
    pub(crate) raised: Option<&'static Raise>,
}

/// Title and the rest.
#[derive(Debug, Clone)]
pub(crate) struct Wording {
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
    raised: Option<&'static Raise>,
    grade: Grade,
    observed: Timestamp,
    received: Timestamp,
    /// It is wrong now.
    condition: bool,
    /// It happened at one moment.
    happened: bool,
    summary: &'a str,
    next_steps: &'a [String],
}

/// None when nothing counts.
pub(super) fn assess(state: &State, now: Timestamp, key: &str, cause: &Cause) -> Option<Assessment> {
    match detect::of(key) {
        Some(detector) => detector.assess(state, now, key, cause),
        None => host(state, now, key, cause),
    }
}

fn items<'a>(state: &'a State, now: Timestamp, key: &str, cause: &'a Cause) -> Vec<Item<'a>> {
    let conditions = cause.members.values().filter_map(|member| {
        let agent = state.agent(&member.agent)?;
        let open = agent.open.get(member.key.as_ref()?)?;
        let finding = &open.finding;
        let reason = finding.key.reason;
        let severity = singletons::severity(state, &member.agent, open);
        let oom = agent.watched_oom_at.is_some_and(|at| at + OOM_MATTERS_FOR >= now || at >= open.opened);
        let mut holds = match reason {
            Reason::LockContention | Reason::SqliteLockHeld => {
                detect::lock_circumstances(state, now, &member.agent, open)
            }
            _ => Vec::new(),
        };
        if oom {
            holds.push(When::WatchedOom);
        }
        let (severity, raised) = severity::raised(state.policy(), reason, severity, &holds);
        let counts = open.event_index > cause.dismissed_index && severity >= Severity::Sev3;
        counts.then_some(Item {
            reason,
            severity,
            raised,
            grade: finding.grade,
            observed: open.opened,
            received: open.received,
            condition: true,
            happened: false,
            summary: &finding.summary,
            next_steps: &finding.next_steps,
        })
    });
    let lasts = lasting::lasts(state, now, key, cause);
    let occurrences = cause.occurrences.iter().map(|occurrence| {
        let (severity, raised) = occurrence_severity(state, now, cause, occurrence);
        Item {
            reason: occurrence.reason,
            severity,
            raised,
            grade: occurrence.grade,
            observed: occurrence.observed,
            received: occurrence.received,
            condition: lasts,
            happened: true,
            summary: &occurrence.summary,
            next_steps: &occurrence.next_steps,
        }
    });
    conditions.chain(occurrences).collect()
}

/// An OOM kill of a watched service is an outage, whoever told it with what.
fn occurrence_severity(
    state: &State,
    now: Timestamp,
    cause: &Cause,
    occurrence: &CauseOccurrence,
) -> (Severity, Option<&'static Raise>) {
    let mut holds = updates::circumstances(state, now, cause, occurrence);
    if occurrence.service.as_ref().is_some_and(|service| !service.is_host()) {
        holds.push(When::WatchedService);
    }
    if let (Reason::RepoLocked, Some(agent), Some(service)) =
        (occurrence.reason, &occurrence.agent, &occurrence.service)
    {
        holds.extend(detect::storm_circumstance(state, agent, service.as_str()));
        holds.extend(detect::many_repositories(state, agent, service.as_str(), now));
    }
    let told = state.severity_of(occurrence.reason, occurrence.severity);
    severity::raised(state.policy(), occurrence.reason, told, &holds)
}

fn host(state: &State, now: Timestamp, key: &str, cause: &Cause) -> Option<Assessment> {
    let mut all = items(state, now, key, cause);
    let storm_words;
    if let Some(storm) = cause.storm.as_ref().filter(|storm| storm.index > cause.dismissed_index) {
        let reason = Reason::RestartStorm;
        let span = human(storm.last.since(storm.began));
        let behind = all.iter().max_by_key(|item| (cause::telling(item.reason), item.severity));
        let behind = behind.map(|item| format!("; behind it {}: {}", item.reason, item.summary)).unwrap_or_default();
        let holds: &[When] = if detect::is_crash_loop(state, storm) { &[When::NoRecovery] } else { &[] };
        let told = state.severity_of(reason, reason.default_severity());
        let (severity, raised) = severity::raised(state.policy(), reason, told, holds);
        storm_words = format!("{} restarted {} times within {span}{behind}", subject_of(key), storm.restarts);
        all.push(Item {
            reason,
            severity,
            raised,
            grade: Grade::Confirmed,
            observed: storm.began,
            received: storm.began + storm.received.since(storm.last),
            condition: storm.active,
            happened: !storm.active,
            summary: &storm_words,
            next_steps: &[],
        });
    }
    let top = all.iter().max_by_key(|item| (cause::telling(item.reason), item.severity, item.observed))?;
    let worst = all.iter().max_by_key(|item| (item.severity, cause::telling(item.reason)))?;
    let mut next_steps: Vec<String> = Vec::new();
    // What others say of the same cause is the same in other words, and asked only where these say nothing.
    let telling = top.next_steps.iter().chain(worst.next_steps);
    let others = all.iter().filter(|_| top.next_steps.is_empty() && worst.next_steps.is_empty());
    for step in telling.chain(others.flat_map(|item| item.next_steps)) {
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
        happened: all.iter().any(|item| item.happened),
        late: top.received.since(top.observed),
        worst: [worst.reason.as_str(), " (", worst.summary, ")"].concat(),
        summary: top.summary.to_owned(),
        next_steps,
        raised: worst.raised,
    })
}

/// `spl on web-1` from `host/web-1/service/spl` and from `host/web-1/timeout/spl/api.example`.
fn subject_of(key: &str) -> String {
    let mut parts = key.splitn(5, '/').skip(1);
    let agent = parts.next().unwrap_or(key);
    match (parts.next(), parts.next(), parts.next()) {
        (Some("service"), Some(service), _) => format!("{service} on {agent}"),
        (Some(_), Some(service), Some(_)) if service != ServiceName::host().as_str() => format!("{service} on {agent}"),
        _ => agent.to_owned(),
    }
}

/// A summary with the host, the service and the subject that it leaves out: "call timed out" alone wakes nobody wisely.
fn titled(key: &str, summary: &str) -> String {
    let about = subject_of(key);
    if !key.starts_with("host/") || summary.contains(about.as_str()) {
        return summary.to_owned();
    }
    match key.splitn(5, '/').nth(4).filter(|subject| !subject.is_empty() && !summary.contains(*subject)) {
        Some(subject) => format!("{about}, {subject}: {summary}"),
        None => format!("{about}: {summary}"),
    }
}

/// An assessment of a detector: nothing about it is known but its own words.
pub(crate) fn of_fleet(
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
        raised: None,
    }
}

/// The first few, and how many more.
pub(crate) fn names<'a>(agents: impl ExactSizeIterator<Item = &'a AgentName>) -> String {
    let more = agents.len().saturating_sub(NAMED_MAX);
    // Each decision about a group names its hosts: one block of memory, and not one for each step.
    let mut named = String::with_capacity(NAMED_MAX * NAME_BYTES_USUAL);
    for (place, agent) in agents.take(NAMED_MAX).enumerate() {
        named.push_str(if place == 0 { "" } else { ", " });
        named.push_str(agent.as_str());
    }
    if more == 0 { named } else { format!("{named} and {more} more") }
}

impl Assessment {
    /// Sentences for people.
    pub(crate) fn wording(&self, state: &State, now: Timestamp, key: &str, cause: &Cause) -> Wording {
        let own = match detect::of(key) {
            Some(detector) => detector.details(state, key, cause),
            None => None,
        };
        let details = own.unwrap_or_else(|| {
            let seen = items(state, now, key, cause);
            story(state, cause).into_iter().chain(seen.iter().map(Item::line)).take(DETAILS_MAX).collect()
        });
        let title = titled(key, &self.summary);
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
        if let Some(detector) = detect::of(key) {
            return detector.why(state, key, self);
        }
        let raised = self.raised_words();
        match cause::kind_of(key) {
            _ if self.reason == Reason::RestartStorm => {
                let rule = &policy.restart_storm;
                let (restarts, window) = (rule.host_restarts, human(rule.window));
                format!("at least {restarts} restarts within {window} make {severity}{raised}")
            }
            _ => {
                let missed = singletons::missed_under(state, key).map(|words| format!("; {words}")).unwrap_or_default();
                format!("{} was told with {severity}{raised}{missed}", self.worst)
            }
        }
    }

    /// Makes it as bad as the severity matrix says that these circumstances make its reason.
    pub(crate) fn raise(&mut self, state: &State, reason: Reason, holds: &[When]) {
        let (severity, raised) = severity::raised(state.policy(), reason, self.severity, holds);
        self.severity = self.severity.max(severity);
        self.raised = raised.or(self.raised);
    }

    /// `: the rule that made it worse`, or nothing.
    pub(crate) fn raised_words(&self) -> String {
        self.raised.map(|line| format!(", since {}", line.words)).unwrap_or_default()
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
        let word = if self.happened { "at" } else { "since" };
        clip(&format!("{} {word} {}: {}", self.reason, self.observed, self.summary), SUMMARY_BYTES_MAX)
    }
}

fn services(key: &str, cause: &Cause) -> Vec<String> {
    let of_members = cause.members.values().take(64).filter_map(|member| member.key.as_ref());
    let mut names: Vec<String> = of_members.map(|key| key.subject.service.to_string()).collect();
    names
        .extend(cause.occurrences.iter().filter_map(|occurrence| occurrence.service.as_ref()).map(ToString::to_string));
    names.extend(detect::of(key).into_iter().flat_map(|detector| detector.services(key)));
    names.extend(key.split("/service/").nth(1).map(str::to_owned));
    names.extend(cause.burst.iter().flat_map(|burst| burst.services.iter().cloned()));
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_names_host_service_and_subject_once() {
        for (key, summary, expected) in [
            ("host/web-1/timeout/spl/api.example", "call timed out", "spl on web-1, api.example: call timed out"),
            ("host/web-1/timeout/spl/api.example", "api.example is slow", "spl on web-1: api.example is slow"),
            ("host/web-1/sqlite/spl//var/a.db", "/var/a.db is damaged", "spl on web-1: /var/a.db is damaged"),
            ("host/web-1/disk_full/host//var", "98 % are used", "web-1, /var: 98 % are used"),
            ("host/web-1/service/spl", "it is down", "spl on web-1: it is down"),
            ("host/web-1/service/spl", "spl on web-1 restarted 5 times", "spl on web-1 restarted 5 times"),
            ("host/web-1/memory", "memory runs out", "web-1: memory runs out"),
            ("fleet/mass_stale", "20 agents fell silent", "20 agents fell silent"),
        ] {
            assert_eq!(titled(key, summary), expected);
        }
    }
}

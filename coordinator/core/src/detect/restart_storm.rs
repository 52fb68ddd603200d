//! A service restarts on many hosts: "the same build on 14 hosts" is one page. Grouped by service and executable; what no
//! build explains is grouped by service alone. A service that restarts on one host is that host's own cause, and folds
//! in.

use super::{Detector, Feed, Look, StormRule, behind, rest};
use crate::cause;
use crate::decide::assess::{Assessment, names, of_fleet};
use crate::decide::human;
use crate::policy::Policy;
use crate::severity::When;
use crate::state::{Cause, State, Storm};
use muster_common::evidence::Value;
use muster_common::finding::Finding;
use muster_common::ids::{AgentName, ServiceName};
use muster_common::limits::clip;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;
use std::collections::BTreeSet;
use std::time::Duration;

/// Before the service's name in the cause keys.
const PREFIX: &str = "fleet/restart_storm";
/// Hosts of a storm that are looked at for a crash loop: one is enough, and any of the first will do.
const LOOPING_AGENTS_MAX: usize = 64;
/// Builds of one service that are looked at.
const BUILDS_MAX: usize = 64;
/// Bytes of a build's name in a cause key: more than enough of a hash to tell builds apart.
const BUILD_BYTES_MAX: usize = 24;
/// Down for so long before a restart: no supervisor that backs off, which waits for a minute at most as a rule and needs
/// a while to start, but somebody who came.
const REPAIR_AFTER_MS: u64 = 90_000;
/// How processes end that are asked to, as agents tell it: by these signals, or with these codes by which programs pass
/// them on. One that ends by itself without an error looks the same.
const ORDERLY: &[&str] = &["SIGHUP", "SIGINT", "SIGPIPE", "SIGTERM", "exit code 0", "exit code 130", "exit code 143"];

/// See the head of the file.
#[derive(Debug)]
pub(super) struct RestartStorm;

/// The group of a service and its build, or of the service alone.
fn group(service: &ServiceName, build: Option<&str>) -> String {
    match build {
        Some(build) => [PREFIX, "/", service.as_str(), "/", build].concat(),
        None => [PREFIX, "/", service.as_str()].concat(),
    }
}

/// Which executable restarted: its hash, else its version. Only letters that a cause key can hold.
pub(super) fn build_of(finding: &Finding) -> Option<String> {
    let text = |key: &str| match finding.evidence.get(key) {
        Some(Value::Text(text)) if !text.is_empty() => Some(text.as_str()),
        _ => None,
    };
    let named = match text("executable_sha256") {
        Some(hash) => hash.strip_prefix("sha256:").unwrap_or(hash).to_owned(),
        None => format!("v{}", text("executable_version")?),
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-+".contains(c) { c } else { '_' };
    Some(clip(&named.chars().map(plain).collect::<String>(), BUILD_BYTES_MAX))
}

/// Service and build of a group.
fn parts(key: &str) -> Option<(&str, Option<&str>)> {
    let rest = rest(key, PREFIX)?;
    Some(rest.split_once('/').map_or((rest, None), |(service, build)| (service, Some(build))))
}

/// The service whose restarts a storm's cause key is about, on one host or on many.
pub(super) fn service_of(storm: &str) -> Option<&str> {
    match parts(storm) {
        Some((service, _)) => Some(service),
        None => storm.split_once("/service/").map(|(_, service)| service),
    }
}

/// The groups of a service that have something to tell, one for each build at most; a few are enough.
pub(super) fn groups_of_service(state: &State, service: &str) -> Vec<String> {
    let own = format!("{PREFIX}/{service}");
    let builds = format!("{own}/");
    let of_builds = state.causes.starting_with(&builds);
    let of_builds: Vec<String> = of_builds.take(BUILDS_MAX).map(|(key, _)| key.clone()).collect();
    [own].into_iter().chain(of_builds).collect()
}

impl Detector for RestartStorm {
    fn name(&self) -> &'static str {
        "restart_storm"
    }

    fn owns(&self, key: &str) -> bool {
        rest(key, PREFIX).is_some()
    }

    fn assess(&self, state: &State, _now: Timestamp, key: &str, cause: &Cause) -> Option<Assessment> {
        let storm = cause.storm.as_ref().filter(|storm| storm.index > cause.dismissed_index)?;
        let (service, build) = parts(key)?;
        let span = human(storm.last.since(storm.began));
        let (n, named) = (storm.agents.len(), names(storm.agents.iter()));
        let of_build = build.map(|build| format!(", the same build {build},")).unwrap_or_default();
        let summary =
            format!("{service}{of_build} restarted {} times on {n} hosts within {span}: {named}", storm.restarts);
        let next_steps = vec![
            format!("ask what was deployed or changed for {service} shortly before {}", storm.began),
            format!(
                "read the log of {service} on one of the hosts before its last exit; how each ended is among the details"
            ),
        ];
        let summary = match storm.active {
            true => summary,
            false => summary + &still_down(storm),
        };
        let mut found = of_fleet(state, Reason::RestartStorm, storm.began, storm.is_open(), summary, next_steps);
        found.raise(state, Reason::RestartStorm, &circumstances(state, service, storm));
        found.raises = true;
        found.happened = true;
        found.late = storm.received.since(storm.last);
        Some(found)
    }

    fn why(&self, state: &State, _key: &str, found: &Assessment) -> String {
        let rule = &state.policy().restart_storm;
        let (hosts, window) = (rule.fleet_hosts, human(rule.window));
        format!("restarts on at least {hosts} hosts within {window} make {}{}", found.severity, found.raised_words())
    }

    fn recovered(&self, _state: &State, key: &str) -> String {
        let service = parts(key).map_or("its service", |(service, _)| service);
        format!("no restart for a whole window, and where {service} fell it is up again")
    }

    /// How they ended, on each host: a loop without its cause is only a number.
    fn details(&self, state: &State, key: &str, cause: &Cause) -> Option<Vec<String>> {
        let (storm, (service, build)) = (cause.storm.as_ref()?, parts(key)?);
        let fits = |finding: &Finding| {
            finding.key.subject.service.as_str() == service
                && build.is_none_or(|build| build_of(finding).as_deref() == Some(build))
        };
        Some(behind::details(state, storm, Reason::ProcessRestarted, "how they ended", behind::ending, fits))
    }

    fn services(&self, key: &str) -> Vec<String> {
        parts(key).map(|(service, _)| service.to_owned()).into_iter().collect()
    }

    fn occurrences(&self, state: &State, agent: &AgentName, finding: &Finding) -> Vec<Feed> {
        let is_restart = finding.key.reason == Reason::ProcessRestarted;
        if !is_restart || harmless(state.policy(), finding).is_some() {
            return Vec::new();
        }
        let service = &finding.key.subject.service;
        let feed = |build: Option<&str>| Feed {
            group: group(service, build),
            source: service.to_string(),
            symptom: cause::service(agent, service),
        };
        let build = build_of(finding);
        build.iter().map(|build| feed(Some(build))).chain([feed(None)]).collect()
    }

    fn storm_rule(&self, policy: &Policy, _group: &str) -> Option<StormRule> {
        let rule = &policy.restart_storm;
        Some(StormRule { window: rule.window, hosts: rule.fleet_hosts.max(2), sources: 0, count: 0 })
    }

    fn takes(&self, _state: &State, _group: &str, cause: &Cause, symptom: &str) -> bool {
        cause.storm.as_ref().is_some_and(|storm| storm.takes(symptom))
    }

    fn waits_for(&self, reason: Reason) -> bool {
        is_fall(reason)
    }

    fn looks(&self, state: &State, now: Timestamp, agent: &AgentName) -> Vec<Look> {
        let rule = &state.policy().restart_storm;
        let Some(record) = state.agent(agent) else { return Vec::new() };
        let window = human(rule.window);
        let on_host = record.restarts.iter().map(|(service, times)| {
            let n = times.iter().filter(|at| **at + rule.window >= now).count();
            let needed = usize::try_from(rule.host_restarts).unwrap_or(usize::MAX);
            let threshold = format!("{needed} restarts of one service on one host within {window}");
            super::explain::look(self.name(), cause::service(agent, service), (n, needed, "restarts"), threshold)
        });
        on_host.chain(super::explain::windows(self, state, now, agent)).collect()
    }
}

/// A service does not run, or does not stay up.
pub(super) fn is_fall(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ProcessDown
            | Reason::ProcessZombie
            | Reason::RestartLoop
            | Reason::UnitFailed
            | Reason::UnitInactive
            | Reason::UnitStuck
    )
}

/// `; since then still down: web-2`, of a storm that is open for nothing else.
pub(super) fn still_down(storm: &Storm) -> String {
    if storm.down.is_empty() { String::new() } else { format!("; since then still down: {}", down(storm)) }
}

/// Why a storm is open in which nothing happens any more.
pub(super) fn waits(storm: &Storm) -> String {
    let last = storm.last;
    format!(
        "nothing more of it happened since {last}, and it stays open for what fell in it and is down: {}",
        down(storm)
    )
}

fn down(storm: &Storm) -> String {
    let down: BTreeSet<AgentName> = storm.down.iter().filter_map(|symptom| cause::agent_of(symptom)).collect();
    names(down.iter())
}

/// Why a restart is no part of a storm of many hosts.
pub(crate) fn harmless(policy: &Policy, finding: &Finding) -> Option<String> {
    let by_itself = finding.evidence.get("automatic") == Some(&Value::Flag(true));
    if finding.key.reason != Reason::ProcessRestarted || by_itself {
        return None;
    }
    repair(policy, finding).or_else(|| asked(policy, finding))
}

/// A length of time that the agent measured.
fn measured_ms(finding: &Finding, key: &str) -> Option<u64> {
    match finding.evidence.get(key) {
        Some(Value::Millis(ms)) => Some(*ms),
        _ => None,
    }
}

fn window_ms(policy: &Policy) -> u64 {
    u64::try_from(policy.restart_storm.window.as_millis()).unwrap_or(u64::MAX)
}

/// Why a restart is one that somebody asked for, as when a fleet is restarted host by host: it ended as a process does
/// that is asked to, had run for longer than a window, and systemd did not restart it by itself. Whoever restarts the same
/// service again within a window has trouble with it.
fn asked(policy: &Policy, finding: &Finding) -> Option<String> {
    let ended = behind::ending(finding).filter(|how| ORDERLY.contains(&how.as_str()))?;
    let lived_ms = measured_ms(finding, "old_lifetime_ms").filter(|lived| *lived >= window_ms(policy))?;
    let lived = human(Duration::from_millis(lived_ms));
    Some(format!(
        "an orderly restart, which counts for no storm of many hosts: it ended with {ended} after {lived}, and systemd did not restart it by itself"
    ))
}

/// Why a restart is a repair, and no part of a storm of many hosts: what had run for longer than a window was down for so
/// long that no supervisor started it, but somebody who came. A loop that backs off is known by what it restarts: that has
/// died within a window of its start, so that such a loop counts from its second round on. What is not proven counts.
fn repair(policy: &Policy, finding: &Finding) -> Option<String> {
    let (down_ms, lived_ms) = (measured_ms(finding, "gap_ms")?, measured_ms(finding, "old_lifetime_ms")?);
    if down_ms < REPAIR_AFTER_MS || lived_ms < window_ms(policy) {
        return None;
    }
    let [down, lived] = [down_ms, lived_ms].map(|ms| human(Duration::from_millis(ms)));
    Some(format!(
        "a repair, which counts for no storm of many hosts: it ended {down} of being down, and had run for {lived}"
    ))
}

/// Whether a storm on one host is a crash loop without recovery: it has gone on for longer than a window, without one
/// in which there were none.
pub(crate) fn is_crash_loop(state: &State, storm: &Storm) -> bool {
    storm.active && storm.last.since(storm.began) >= state.policy().restart_storm.window
}

fn circumstances(state: &State, service: &str, storm: &Storm) -> Vec<When> {
    let mut holds = Vec::new();
    let mut key = String::new();
    let may = state.causes.may_storm(service);
    let mut loops = |agent: &AgentName| {
        if may.is_none_or(|agents| !agents.contains(agent.as_str())) {
            return false;
        }
        cause::set_of_service(&mut key, agent, service);
        let cause = state.cause(&key);
        cause.and_then(|cause| cause.storm.as_ref()).is_some_and(|storm| is_crash_loop(state, storm))
    };
    if storm.active && storm.agents.iter().take(LOOPING_AGENTS_MAX).any(&mut loops) {
        holds.push(When::NoRecovery);
    }
    if storm.active && storm.last.since(storm.began) > state.policy().restart_storm.window * 2 {
        holds.push(When::TwoWindows);
    }
    holds
}

/// Whether a service restarts in a storm, on these hosts or on many.
pub(super) fn rages<'a>(state: &State, service: &str, mut agents: impl Iterator<Item = &'a AgentName>) -> bool {
    let rages = |key: &str| state.cause(key).and_then(|cause| cause.storm.as_ref()).is_some_and(|storm| storm.active);
    let mut key = [PREFIX, "/", service].concat();
    let may = state.causes.may_storm(service);
    rages(&key)
        || agents.any(|agent| {
            let own = may.is_some_and(|agents| agents.contains(agent.as_str()));
            let groups = state.agent(agent).map(|record| &record.watch.storms).filter(|groups| !groups.is_empty());
            if !own && groups.is_none() {
                return false;
            }
            cause::set_of_service(&mut key, agent, service);
            let groups = groups.and_then(|groups| groups.get(&key));
            (own && rages(&key)) || groups.into_iter().flatten().any(|group| rages(group))
        })
}

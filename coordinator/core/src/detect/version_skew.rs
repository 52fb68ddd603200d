//! More versions of the agent than an upgrade explains, agents too old for what this coordinator asks, and builds of a
//! service that differ between hosts: for a day, so that no rolling upgrade is told of. One matter, whatever differs.

use super::{Detector, Look};
use crate::builds::{Hosts, VERSION_SKEW, Versions, is_too_old};
use crate::decide::assess::{Assessment, DETAILS_MAX, names, of_fleet};
use crate::decide::human;
use crate::state::{Cause, State};
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;

/// Of a hash, what a sentence shows.
const HASH_CHARS: usize = 12;

/// See the head of the file.
#[derive(Debug)]
pub(super) struct VersionSkew;

impl Detector for VersionSkew {
    fn name(&self) -> &'static str {
        "version_skew"
    }

    fn owns(&self, key: &str) -> bool {
        key == VERSION_SKEW
    }

    fn assess(&self, state: &State, now: Timestamp, _key: &str, _cause: &Cause) -> Option<Assessment> {
        let lines = lines(state, now);
        let began = since(state, now)?;
        let summary = match lines.as_slice() {
            [] => "versions differ, but not for long enough to be told".to_owned(),
            [one] => one.clone(),
            [first, rest @ ..] => format!("{first}; and {} more services with builds that differ", rest.len()),
        };
        let next_steps = vec![
            "see who has which: musterctl agents list".to_owned(),
            "finish the upgrade or take it back everywhere; hosts that were down for it come first".to_owned(),
        ];
        Some(of_fleet(state, Reason::VersionSkew, began, !lines.is_empty(), summary, next_steps))
    }

    fn why(&self, state: &State, _key: &str, found: &Assessment) -> String {
        let policy = &state.policy().signals.version_skew;
        format!(
            "more than {} versions of the agent, one older than {}, or more than one build of a service, for {} or longer: {}",
            policy.versions,
            policy.oldest,
            human(policy.after),
            found.severity
        )
    }

    fn recovered(&self, _state: &State, _key: &str) -> String {
        "versions and builds differ no more than they may".to_owned()
    }

    fn details(&self, state: &State, _key: &str, _cause: &Cause) -> Option<Vec<String>> {
        Some(lines(state, state.last_at()))
    }

    /// Nobody is called for it, but it must be seen.
    fn minor(&self) -> bool {
        true
    }

    fn looks(&self, state: &State, now: Timestamp, agent: &AgentName) -> Vec<Look> {
        let policy = &state.policy().signals.version_skew;
        let versions = &state.signals.builds.agents;
        let own = state.agent(agent).and_then(|record| Some(record.hello.as_ref()?.agent_version.clone()));
        let Some(own) = own else { return Vec::new() };
        let n = versions.iter().count();
        let reached = versions.skewed().is_some_and(|since| now >= since + policy.after);
        let held_back_by = match versions.skewed() {
            None => {
                format!("{n} versions are not more than {}, and none is older than {}", policy.versions, policy.oldest)
            }
            Some(since) if !reached => format!("it has lasted for {}", human(now.since(since))),
            Some(_) => String::new(),
        };
        vec![Look {
            rule: self.name(),
            about: VERSION_SKEW.to_owned(),
            seen: format!("this agent is {own}, one of {n} versions"),
            threshold: format!(
                "more than {} versions, or older than {}, for {}",
                policy.versions,
                policy.oldest,
                human(policy.after)
            ),
            reached,
            held_back_by,
        }]
    }
}

/// Those that have differed for long enough.
fn lasting<'a>(state: &'a State, now: Timestamp, versions: &'a Versions) -> Option<&'a Versions> {
    let after = state.policy().signals.version_skew.after;
    versions.skewed().filter(|since| now >= *since + after).map(|_| versions)
}

/// Since when, of all that differ.
fn since(state: &State, now: Timestamp) -> Option<Timestamp> {
    let builds = &state.signals.builds;
    let all = || builds.services.values().chain([&builds.agents]);
    let told = all().filter_map(|versions| lasting(state, now, versions)?.skewed()).min();
    told.or_else(|| all().filter_map(Versions::skewed).min())
}

/// One line for the agents, then one for each service.
fn lines(state: &State, now: Timestamp) -> Vec<String> {
    let (builds, policy) = (&state.signals.builds, &state.policy().signals.version_skew);
    let mut lines = Vec::new();
    if let Some(agents) = lasting(state, now, &builds.agents) {
        let each = agents.iter().map(|(version, hosts)| {
            let old = if is_too_old(version, policy) { ", too old" } else { "" };
            format!("{version} on {}{old}", hosts_words(hosts))
        });
        let n = agents.iter().count();
        lines.push(format!("agents run {n} versions: {}", each.collect::<Vec<_>>().join("; ")));
    }
    for (service, versions) in &builds.services {
        let Some(versions) = lasting(state, now, versions) else { continue };
        let common = builds.common(service);
        let others = versions.iter().filter(|(build, _)| Some(*build) != common);
        let each: Vec<String> = others
            .map(|(build, hosts)| format!("{} on {}", build.get(..HASH_CHARS).unwrap_or(build), hosts_words(hosts)))
            .collect();
        let most = common.map(|build| format!(", most hosts run {}", build.get(..HASH_CHARS).unwrap_or(build)));
        lines.push(format!("builds of {service} differ{}: {}", most.unwrap_or_default(), each.join("; ")));
        if lines.len() >= DETAILS_MAX {
            break;
        }
    }
    lines
}

fn hosts_words(hosts: &Hosts) -> String {
    match hosts.count {
        n if n == hosts.named.len() as u64 => names(hosts.named.iter()),
        n => format!("{n} hosts"),
    }
}

//! What each detector saw of one host, for those who ask why nobody was paged. Looks at State alone.

use super::windows::{Seen, Window};
use super::{Detector, StormRule, all};
use crate::decide::human;
use crate::state::{Incident, IncidentStatus, State};
use muster_common::ids::AgentName;
use muster_common::time::Timestamp;
use std::collections::BTreeSet;

/// One rule that looked at a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Name of the detector.
    pub rule: &'static str,
    /// Cause key that it would raise.
    pub about: String,
    /// What it saw, with figures.
    pub seen: String,
    /// What it asks for, with figures.
    pub threshold: String,
    /// True when that is met.
    pub reached: bool,
    /// Why there is no incident, or the number of the one there is.
    pub held_back_by: String,
}

impl Look {
    /// Whether the incident is of this rule's making: what it asks for is there, or was. The trouble of one service on one
    /// host has a cause key that several rules look at.
    pub fn has_part_in(&self, incident: &Incident) -> bool {
        let is_its_own = super::of(&self.about).is_some_and(|detector| detector.name() == self.rule);
        self.reached || is_its_own || incident.reason.as_str() == self.rule || incident.key.cause != self.about
    }
}

/// Every detector's look at a host, at the time of `state`: what it saw, what it asks for and what held it back.
pub fn explain(state: &State, now: Timestamp, agent: &AgentName) -> Vec<Look> {
    let mut looks: Vec<Look> = all().flat_map(|detector| detector.looks(state, now, agent)).collect();
    for look in &mut looks {
        if let Some(incident) = state.unresolved(&look.about) {
            let recovers = incident.status == IncidentStatus::Recovering;
            let stands = if recovers { "recovering" } else { "open" };
            look.held_back_by = format!("{} is {stands}", incident.number);
        } else if let Some(incident) = super::explained_by(state, &look.about) {
            look.held_back_by = format!("it is a symptom of {}: {}", incident.number, incident.title);
        } else if look.reached && look.held_back_by.is_empty() {
            let dismissed = state.cause(&look.about).is_some_and(|cause| cause.dismissed_index > 0);
            let why = if dismissed { "it was closed by hand, and nothing new was found since" } else { "it is over" };
            look.held_back_by = why.to_owned();
        }
    }
    looks
}

/// `1 host`, `2 hosts`. `units`: of several.
fn counted(n: usize, units: &str) -> String {
    let unit = if n == 1 { units.strip_suffix('s').unwrap_or(units) } else { units };
    format!("{n} {unit}")
}

/// A look at figures: how many more it takes.
pub(super) fn look(rule: &'static str, about: String, seen: (usize, usize, &str), threshold: String) -> Look {
    let (n, needed, unit) = seen;
    let reached = n >= needed;
    let held_back_by =
        if reached { String::new() } else { format!("below the threshold by {}", counted(needed - n, unit)) };
    Look { rule, about, seen: counted(n, unit), threshold, reached, held_back_by }
}

/// A detector's look at the windows that a host's occurrences are in. For a question, not for an input: it goes through
/// all windows.
pub(super) fn windows(detector: &dyn Detector, state: &State, now: Timestamp, agent: &AgentName) -> Vec<Look> {
    let of_host = |window: &Window| window.events().iter().any(|event| event.agent == *agent);
    let own = state.detect.windows.iter().filter(|(key, window)| detector.owns(key) && of_host(window));
    own.filter_map(|(key, window)| {
        let rule = detector.storm_rule(state.policy(), key)?;
        let seen = window.seen(now, &rule);
        let held_back_by = if seen.is_enough(&rule) {
            String::new()
        } else {
            format!("below the threshold by {}", below(&seen, &rule))
        };
        Some(Look {
            rule: detector.name(),
            about: key.clone(),
            seen: format!(
                "{} from {} on {} within {}",
                counted(seen.count, "occurrences"),
                counted(seen.sources, "sources"),
                counted(seen.hosts, "hosts"),
                human(rule.window)
            ),
            threshold: format!(
                "{} within {}",
                figures(&rule, [rule.hosts, rule.sources, rule.count]),
                human(rule.window)
            ),
            reached: held_back_by.is_empty(),
            held_back_by,
        })
    })
    .collect()
}

fn below(seen: &Seen, rule: &StormRule) -> String {
    let short = |needed: u32, seen: usize| needed.saturating_sub(u32::try_from(seen).unwrap_or(u32::MAX));
    let short = [short(rule.hosts, seen.hosts), short(rule.sources, seen.sources), short(rule.count, seen.count)];
    figures(rule, short)
}

/// `3 hosts or 10 occurrences`.
fn figures(rule: &StormRule, [hosts, sources, count]: [u32; 3]) -> String {
    let asked = [(rule.hosts, hosts, "hosts"), (rule.sources, sources, "sources"), (rule.count, count, "occurrences")];
    let n = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    let parts = asked.iter().filter(|(needed, ..)| *needed > 0).map(|(_, short, unit)| counted(n(*short), unit));
    parts.collect::<Vec<_>>().join(" or ")
}

/// A detector's look at the groups that a host's open conditions are in. `threshold`: hosts that a group asks for, and in
/// words.
pub(super) fn conditions(
    detector: &dyn Detector,
    state: &State,
    agent: &AgentName,
    threshold: impl Fn(&str) -> (usize, String),
) -> Vec<Look> {
    let Some(record) = state.agent(agent) else { return Vec::new() };
    let groups: BTreeSet<String> = record.open.keys().flat_map(|key| detector.conditions(state, agent, key)).collect();
    let look = |group: String| {
        let hosts = state.cause(&group).map_or(0, |cause| cause.agents.len());
        let (needed, words) = threshold(&group);
        look(detector.name(), group, (hosts, needed, "hosts"), words)
    };
    groups.into_iter().map(look).collect()
}

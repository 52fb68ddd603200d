//! Occurrences that count together, as State keeps them: one bounded window per group, and per agent an index from its
//! own causes to the groups that rage and count them.

use super::{Feed, StormRule};
use crate::cause;
use crate::state::State;
use muster_common::ids::AgentName;
use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Occurrences of one group kept for its window; the oldest go first.
pub const WINDOW_EVENTS_MAX: usize = 512;
/// Groups with occurrences; beyond, the one whose last is the longest ago is forgotten, so that made-up names do not push
/// out what rages.
pub const WINDOWS_MAX: usize = 4096;
/// Causes of one agent that are indexed; beyond, those whose groups are over go, and then no more fold by name.
const STORMS_PER_AGENT_MAX: usize = 256;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowEvent {
    /// When it happened, by observed time.
    pub at: Timestamp,
    /// Where.
    pub agent: AgentName,
    /// From what on the host.
    pub source: String,
    /// The host's own cause key.
    pub symptom: String,
}

/// The occurrences of one group, ascending by time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Window {
    events: Vec<WindowEvent>,
}

/// Per cause key of an agent: the groups that count it. Old ones stay until there is no room.
pub type AgentStorms = BTreeMap<String, BTreeSet<String>>;

/// Part of a window that is enough to rage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Raging {
    pub(crate) began: Timestamp,
    pub(crate) last: Timestamp,
    pub(crate) count: u64,
    pub(crate) agents: BTreeSet<AgentName>,
    pub(crate) symptoms: BTreeSet<String>,
}

/// How much of a threshold was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Seen {
    pub(super) hosts: usize,
    pub(super) sources: usize,
    pub(super) count: usize,
}

impl Window {
    /// The occurrences, oldest first.
    pub fn events(&self) -> &[WindowEvent] {
        &self.events
    }

    fn insert(&mut self, event: WindowEvent) {
        let place = self.events.partition_point(|known| known.at <= event.at);
        self.events.insert(place, event);
        if self.events.len() > WINDOW_EVENTS_MAX {
            self.events.remove(0);
        }
    }

    /// The part that can share a window with `observed`.
    fn around(&self, observed: Timestamp, rule: &StormRule) -> &[WindowEvent] {
        let start = self.events.partition_point(|event| event.at < observed - rule.window);
        let end = self.events.partition_point(|event| event.at <= observed + rule.window);
        self.events.get(start..end).unwrap_or_default()
    }

    /// What the fullest part seen from its newest event back holds.
    pub(super) fn seen(&self, now: Timestamp, rule: &StormRule) -> Seen {
        let start = self.events.partition_point(|event| event.at < now - rule.window);
        let events = self.events.get(start..).unwrap_or_default();
        let hosts: BTreeSet<&AgentName> = events.iter().map(|event| &event.agent).collect();
        let sources: BTreeSet<_> = events.iter().map(|event| (&event.agent, &event.source)).collect();
        Seen { hosts: hosts.len(), sources: sources.len(), count: events.len() }
    }
}

impl Seen {
    pub(super) fn is_enough(&self, rule: &StormRule) -> bool {
        let enough = |seen: usize, needed: u32| needed > 0 && seen >= usize::try_from(needed).unwrap_or(usize::MAX);
        enough(self.hosts, rule.hosts) || enough(self.sources, rule.sources) || enough(self.count, rule.count)
    }
}

/// Notes an occurrence under its group; what rages now, if that is enough.
pub(crate) fn count(
    windows: &mut BTreeMap<String, Window>,
    agent: &AgentName,
    feed: &Feed,
    observed: Timestamp,
    rule: &StormRule,
) -> Option<Raging> {
    if windows.len() >= WINDOWS_MAX && !windows.contains_key(&feed.group) {
        let last = |window: &Window| window.events.last().map(|event| event.at);
        let oldest = windows.iter().min_by_key(|(_, window)| last(window)).map(|(group, _)| group.clone());
        oldest.and_then(|oldest| windows.remove(&oldest));
    }
    let window = windows.entry(feed.group.clone()).or_default();
    let (source, symptom) = (feed.source.clone(), feed.symptom.clone());
    window.insert(WindowEvent { at: observed, agent: agent.clone(), source, symptom });
    let inside = first_enough(window.around(observed, rule), rule)?;
    Some(Raging {
        began: inside.first().map_or(observed, |event| event.at),
        last: inside.last().map_or(observed, |event| event.at),
        count: inside.len() as u64,
        agents: inside.iter().map(|event| event.agent.clone()).collect(),
        symptoms: inside.iter().map(|event| event.symptom.clone()).collect(),
    })
}

/// The first part of an ascending list no longer than the window that is enough: one pass, the window slides.
fn first_enough<'a>(list: &'a [WindowEvent], rule: &StormRule) -> Option<&'a [WindowEvent]> {
    let mut hosts: BTreeMap<&AgentName, usize> = BTreeMap::new();
    let mut sources: BTreeMap<(&AgentName, &str), usize> = BTreeMap::new();
    let mut end = 0;
    for (start, first) in list.iter().enumerate() {
        while let Some(event) = list.get(end).filter(|event| event.at.since(first.at) <= rule.window) {
            *hosts.entry(&event.agent).or_default() += 1;
            *sources.entry((&event.agent, &event.source)).or_default() += 1;
            end += 1;
        }
        let seen = Seen { hosts: hosts.len(), sources: sources.len(), count: end - start };
        if seen.is_enough(rule) {
            return list.get(start..end);
        }
        leave(&mut hosts, &first.agent);
        leave(&mut sources, (&first.agent, first.source.as_str()));
    }
    None
}

fn leave<K: Ord + Copy>(counts: &mut BTreeMap<K, usize>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

/// The groups that count a cause of an agent.
pub(super) fn storms_of<'a>(state: &'a State, key: &str) -> Option<&'a BTreeSet<String>> {
    let storms = &state.agent(&cause::agent_of(key)?)?.watch.storms;
    if storms.is_empty() { None } else { storms.get(key) }
}

/// Whether a group counts a cause of an agent in a storm that is not told to its end. The index alone remembers more.
pub(crate) fn is_in_storm(state: &State, agent: &AgentName, key: &str) -> bool {
    let Some(storms) = state.agent(agent).map(|record| &record.watch.storms).filter(|storms| !storms.is_empty()) else {
        return false;
    };
    let goes_on = |group: &String| state.cause(group).is_some_and(|cause| cause.storm.is_some());
    storms.get(key).is_some_and(|groups| groups.iter().any(goes_on))
}

/// Remembers that a group counts a cause of an agent. False where there is no room: it does not fold then.
pub(crate) fn index(state: &mut State, agent: &AgentName, symptom: &str, group: &str) -> bool {
    let Some(storms) = state.agents.get_mut(agent).map(|record| &mut record.watch.storms) else { return true };
    if storms.len() >= STORMS_PER_AGENT_MAX && !storms.contains_key(symptom) {
        let causes = &state.causes;
        let rages = |group: &String| causes.get(group).is_some_and(|cause| cause.storm.is_some());
        storms.retain(|_, groups| {
            groups.retain(|group| rages(group));
            !groups.is_empty()
        });
        if storms.len() >= STORMS_PER_AGENT_MAX {
            return false;
        }
    }
    let causes = &state.causes;
    let groups = storms.entry(symptom.to_owned()).or_default();
    groups.retain(|known| causes.get(known).is_some_and(|cause| cause.storm.is_some()));
    groups.insert(group.to_owned());
    true
}

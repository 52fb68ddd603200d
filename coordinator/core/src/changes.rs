//! What changed lately: deploys, upgrades, edits, reboots, by host, so that every page about what came after can say so.
//!
//! By the time at which a change was observed: a backlog that arrives late is dated when it was. Each change has one
//! source. Agents tell builds, configuration and services that may run once; the coordinator concludes a reboot and an
//! agent's upgrade from what agents say of themselves when they connect.

use crate::apply::Step;
use crate::entry::AgentHello;
use crate::state::{Incident, State};
use crate::updates;
use muster_common::evidence::Value;
use muster_common::finding::Finding;
use muster_common::ids::{AgentName, ServiceName};
use muster_common::limits::clip;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;
use muster_common::units::human_duration;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Changes remembered over all hosts: a deploy to the largest part of a fleet. The oldest to arrive go first.
pub const CHANGES_MAX: usize = 16_384;
/// Changes remembered of one host: one that lies cannot push out what others told. The oldest to arrive go first.
pub const CHANGES_PER_AGENT_MAX: usize = 32;
/// Remembered beyond the window that pages look at: incidents begin before they are concluded.
const KEPT_BEYOND: Duration = Duration::from_secs(3600);
/// Changes this long after the beginning count as well: what is seen first is not always what happened first.
const AFTER: Duration = Duration::from_secs(60);
/// Hosts of one incident whose changes are looked at.
const HOSTS_LOOKED_AT_MAX: usize = 512;
/// Lines of one incident.
const LINES_MAX: usize = 6;
/// Bytes of one change in words.
const WORDS_BYTES_MAX: usize = 200;
/// Of a hash, what a sentence shows.
const HASH_CHARS: usize = 12;

/// How far back pages look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangesPolicy {
    /// Before the beginning of an incident.
    pub window: Duration,
}

impl Default for ChangesPolicy {
    fn default() -> Self {
        Self { window: Duration::from_secs(3600) }
    }
}

/// Something that changed on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Where.
    pub agent: AgentName,
    /// Of which service; none for the host and its agent.
    pub service: Option<ServiceName>,
    /// What, in words that are equal for equal changes on other hosts.
    pub words: String,
    /// When it happened.
    pub observed: Timestamp,
    /// When the coordinator heard of it.
    pub received: Timestamp,
}

/// The changes of the last hours.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Changes {
    next: u64,
    /// In the order in which they arrived.
    list: BTreeMap<u64, Change>,
    by_agent: BTreeMap<AgentName, BTreeSet<u64>>,
}

impl Changes {
    /// All of them, oldest arrival first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Change> {
        self.list.values()
    }

    /// Those of one host, oldest arrival first.
    pub fn of_agent(&self, agent: &AgentName) -> impl DoubleEndedIterator<Item = &Change> {
        self.by_agent.get(agent).into_iter().flatten().filter_map(|id| self.list.get(id))
    }

    fn add(&mut self, change: Change, keep: Duration) {
        let now = change.received;
        while let Some((id, oldest)) = self.list.first_key_value()
            && (self.list.len() >= CHANGES_MAX || oldest.received + keep < now)
        {
            let id = *id;
            self.remove(id);
        }
        let own = self.by_agent.get(&change.agent);
        if let Some(oldest) = own.filter(|own| own.len() >= CHANGES_PER_AGENT_MAX).and_then(|own| own.first().copied())
        {
            self.remove(oldest);
        }
        let id = self.next;
        self.next += 1;
        self.by_agent.entry(change.agent.clone()).or_default().insert(id);
        self.list.insert(id, change);
    }

    fn remove(&mut self, id: u64) {
        let Some(change) = self.list.remove(&id) else { return };
        if let Some(own) = self.by_agent.get_mut(&change.agent) {
            own.remove(&id);
            if own.is_empty() {
                self.by_agent.remove(&change.agent);
            }
        }
    }
}

/// A finding that may be a change.
pub(crate) fn occurred(state: &mut State, step: Step, agent: &AgentName, finding: &Finding, observed: Timestamp) {
    let Some(words) = words_of(finding) else { return };
    let service = Some(&finding.key.subject.service).filter(|service| !service.is_host()).cloned();
    add(state, step, Change { agent: agent.clone(), service, words, observed, received: step.at });
}

/// An agent connected: is it another boot, another version? `old` is what it said before.
pub(crate) fn connected(state: &mut State, step: Step, agent: &AgentName, old: Option<&AgentHello>, new: &AgentHello) {
    let Some(old) = old else { return };
    let mut words = Vec::new();
    if old.boot_id.is_some() && new.boot_id.is_some() && old.boot_id != new.boot_id {
        words.push("the host was rebooted".to_owned());
    }
    if old.kernel_version != new.kernel_version {
        words.push(format!("the kernel is {}, it was {}", new.kernel_version, old.kernel_version));
    }
    if old.agent_version != new.agent_version {
        words.push(format!("the agent was upgraded from {} to {}", old.agent_version, new.agent_version));
    }
    for words in words {
        let words = clip(&words, WORDS_BYTES_MAX);
        add(state, step, Change { agent: agent.clone(), service: None, words, observed: step.at, received: step.at });
    }
}

/// An agent is forgotten.
pub(crate) fn forget(state: &mut State, agent: &AgentName) {
    let own: Vec<u64> = state.signals.changes.by_agent.get(agent).into_iter().flatten().copied().collect();
    for id in own {
        state.signals.changes.remove(id);
    }
}

fn add(state: &mut State, step: Step, change: Change) {
    let agent = change.agent.clone();
    let keep = state.policy.signals.changes.window + KEPT_BEYOND;
    if change.observed + keep < step.at {
        return;
    }
    state.signals.changes.add(change, keep);
    // What arrives after the incident that it may explain.
    let causes: Vec<String> =
        state.agents.get(&agent).into_iter().flat_map(|record| record.incidents.iter().cloned()).collect();
    for cause in causes {
        note(state, &cause);
    }
}

/// Writes down with an unresolved incident what changed before it.
pub(crate) fn note(state: &mut State, cause: &str) {
    let Some(incident) = state.unresolved(cause) else { return };
    let (key, found) = (incident.key.clone(), lines(state, incident));
    let known = state.incidents.get_mut(&key.cause).and_then(|generations| generations.get_mut(&key.generation));
    if let Some(incident) = known.filter(|_| !found.is_empty()) {
        incident.changes = found;
    }
}

/// In words; `None` for what is told for another purpose.
fn words_of(finding: &Finding) -> Option<String> {
    let text = |key: &str| match finding.evidence.get(key) {
        Some(Value::Text(text)) if !text.is_empty() => Some(text.as_str()),
        _ => None,
    };
    let flag = |key: &str| finding.evidence.get(key) == Some(&Value::Flag(true));
    let service = &finding.key.subject.service;
    let words = match (finding.key.reason, text("what")) {
        // The first look at a build, and what is told again so that it is known, changed nothing.
        (Reason::Change, _) if flag("first_seen") || flag("told_again") => return None,
        (Reason::Change, Some("deploy")) => match (text("old"), text("new")) {
            (Some(old), Some(new)) => format!("{service} runs a new build {}, it was {}", short(new), short(old)),
            (None, Some(new)) => format!("{service} runs a new build {}", short(new)),
            _ => finding.summary.clone(),
        },
        (Reason::Change, Some("config")) => match text("path") {
            Some(_) => finding.summary.clone(),
            None => format!("{service}: configuration: {}", finding.summary),
        },
        (Reason::Change, Some("singleton")) => match text("new") {
            Some("running") => format!("{service} began to run"),
            _ => format!("{service} stopped"),
        },
        (Reason::Change, _) => format!("{service}: {}", finding.summary),
        (Reason::UpdateRollback, _) if updates::rollback_failed(finding) => {
            format!("an update of {service} could not be taken back: {}", finding.summary)
        }
        (Reason::UpdateFailed, _) if updates::rollback_failed(finding) => {
            format!("an update of {service} failed, and so did its rollback: {}", finding.summary)
        }
        (Reason::UpdateFailed, _) => format!("an update of {service} failed: {}", finding.summary),
        (Reason::UpdateRollback, _) => format!("an update of {service} was taken back: {}", finding.summary),
        _ => return None,
    };
    Some(clip(&words, WORDS_BYTES_MAX))
}

/// Enough of a hash; all of what is none.
fn short(text: &str) -> &str {
    let is_hash = text.len() >= 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hash { text.get(..HASH_CHARS).unwrap_or(text) } else { text }
}

/// Equal changes of several hosts.
struct Group<'a> {
    words: &'a str,
    hosts: BTreeSet<&'a AgentName>,
    /// Of the one closest to the beginning.
    at: Timestamp,
}

/// What changed on the hosts of an incident shortly before it began, the closest to its beginning first. Equal changes
/// on several hosts are one line.
pub fn lines(state: &State, incident: &Incident) -> Vec<String> {
    let (began, window) = (incident.began, state.policy.signals.changes.window);
    let concerns = |change: &&Change| {
        let inside = change.observed + window >= began && change.observed <= began + AFTER;
        let own = change
            .service
            .as_ref()
            .is_none_or(|service| incident.services.is_empty() || incident.services.contains(service.as_str()));
        inside && own
    };
    let changes = &state.signals.changes;
    let mut groups: BTreeMap<(Option<&ServiceName>, &str), Group<'_>> = BTreeMap::new();
    let of_hosts = incident.agents.iter().take(HOSTS_LOOKED_AT_MAX).flat_map(|agent| changes.of_agent(agent));
    for change in of_hosts.filter(concerns) {
        let group = groups.entry((change.service.as_ref(), change.words.as_str())).or_insert_with(|| Group {
            words: &change.words,
            hosts: BTreeSet::new(),
            at: change.observed,
        });
        group.hosts.insert(&change.agent);
        if distance(change.observed, began) < distance(group.at, began) {
            group.at = change.observed;
        }
    }
    let mut groups: Vec<Group<'_>> = groups.into_values().collect();
    groups.sort_by_key(|group| (distance(group.at, began), std::cmp::Reverse(group.hosts.len())));
    let more = groups.len().saturating_sub(LINES_MAX);
    let mut lines: Vec<String> = groups.iter().take(LINES_MAX).map(|group| line(group, began)).collect();
    if more > 0 {
        lines.push(format!("and {more} more changes within {} before it", human_duration(window)));
    }
    lines
}

fn distance(at: Timestamp, began: Timestamp) -> Duration {
    at.since(began).max(began.since(at))
}

/// `3 min before: spl runs a new build 3f2a…, it was 91bc…, on 14 hosts`.
fn line(group: &Group<'_>, began: Timestamp) -> String {
    let length = human_duration(Duration::from_secs(distance(group.at, began).as_secs()));
    let when = match () {
        () if distance(group.at, began) < Duration::from_secs(1) => "at the same time".to_owned(),
        () if group.at > began => format!("{length} after it began"),
        () => format!("{length} before"),
    };
    let hosts = match (group.hosts.len(), group.hosts.first()) {
        (1, Some(host)) => format!("on {host}"),
        (n, _) => format!("on {n} hosts"),
    };
    format!("{when}: {}, {hosts}", group.words)
}

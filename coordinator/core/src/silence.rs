//! Silences: what operators hold back. Pages about what matches wait until the silence is over; detection, joining,
//! resolving and acknowledging go on, so that the incident tells the truth all the while and pages if it outlives it.
//!
//! Each kind of matcher that is given must fit, and one about hosts or services fits an incident only when it fits **all**
//! of them: a silence for web-1 does not hide an incident of fourteen hosts that web-1 is one of.

use crate::entry::TimerKey;
use crate::state::{INCIDENT_SERVICES_MAX, Incident, IncidentStatus, MEMBERS_MAX, State};
use muster_common::ids::AgentName;
use muster_common::time::Timestamp;
use muster_common::units::human_duration;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Silences that hold or are to come: each is asked about each page. An operator expires some before there may be more.
pub const SILENCES_MAX: usize = 256;
/// Silences that are over and kept for lists; the oldest go first. The journal keeps them all.
pub const PAST_SILENCES_MAX: usize = 256;
/// Matchers of one kind in one silence; beyond it a label or a `*` says it better.
pub const PATTERNS_MAX: usize = 64;
/// Incidents named by what tells that a silence ends; more are counted.
const NAMED_MAX: usize = 5;

/// Why pages are held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SilenceKind {
    /// Somebody knows of it.
    #[default]
    Silence,
    /// Planned work: an agent that says goodbye within it is expected to, until it is over.
    Maintenance,
}

impl SilenceKind {
    /// For sentences.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Silence => "silence",
            Self::Maintenance => "maintenance",
        }
    }
}

/// What a silence concerns. A `*` at the end of a pattern stands for anything. A kind that is empty is not asked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Matchers {
    /// Names of agents: every host of the incident has one of them.
    #[serde(default)]
    pub agents: BTreeSet<String>,
    /// Labels: every host of the incident carries all of them.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Services: every service of the incident is one of them.
    #[serde(default)]
    pub services: BTreeSet<String>,
    /// Reason codes: the incident's is one of them, or those of all incidents that it gathers.
    #[serde(default)]
    pub reasons: BTreeSet<String>,
    /// Cause keys: the incident's is one of them.
    #[serde(default)]
    pub causes: BTreeSet<String>,
}

impl Matchers {
    /// True when nothing is asked: such a silence would hide everything and is refused.
    pub fn is_empty(&self) -> bool {
        let names = [&self.agents, &self.services, &self.reasons, &self.causes];
        self.labels.is_empty() && names.iter().all(|patterns| patterns.is_empty())
    }

    /// Whether the host is among those that the matchers about hosts name.
    fn fit_host(&self, agent: &AgentName, labels: Option<&BTreeMap<String, String>>) -> bool {
        let carries = |(key, pattern): (&String, &String)| {
            labels.and_then(|labels| labels.get(key)).is_some_and(|value| fits(pattern, value))
        };
        fit_any(&self.agents, agent.as_str()) && self.labels.iter().all(carries)
    }

    fn ask_hosts(&self) -> bool {
        !self.agents.is_empty() || !self.labels.is_empty()
    }

    /// Whether the incident is one of those that are held back. Of an incident with more hosts or services than are
    /// remembered nobody can say that all of them fit.
    fn fit(&self, state: &State, incident: &Incident) -> bool {
        let (hosts, services) = (&incident.agents, &incident.services);
        let hosts_fit = !self.ask_hosts()
            || (!hosts.is_empty()
                && hosts.len() < MEMBERS_MAX
                && hosts.iter().all(|agent| self.fit_host(agent, labels_of(state, agent))));
        let services_fit = self.services.is_empty()
            || (!services.is_empty()
                && services.len() < INCIDENT_SERVICES_MAX
                && services.iter().all(|service| fit_any(&self.services, service)));
        self.fit_reasons(state, incident) && fit_any(&self.causes, &incident.key.cause) && services_fit && hosts_fit
    }

    /// Many incidents told as one are about what each of them is about: to be gathered does not get around a silence.
    fn fit_reasons(&self, state: &State, incident: &Incident) -> bool {
        if fit_any(&self.reasons, incident.reason.as_str()) {
            return true;
        }
        let burst = state.cause(&incident.key.cause).and_then(|cause| cause.burst.as_ref());
        let gathered = burst.map(|burst| &burst.reasons).filter(|reasons| !reasons.is_empty());
        gathered.is_some_and(|reasons| reasons.iter().all(|reason| fit_any(&self.reasons, reason.as_str())))
    }
}

fn labels_of<'a>(state: &'a State, agent: &AgentName) -> Option<&'a BTreeMap<String, String>> {
    state.agent(agent)?.hello.as_ref().map(|hello| &hello.labels)
}

fn fit_any(patterns: &BTreeSet<String>, text: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| fits(pattern, text))
}

/// A `*` at the end stands for anything, also for nothing; elsewhere it is a letter like others.
///
/// ```
/// use muster_coordinator_core::silence::fits;
/// assert!(fits("web-*", "web-1") && fits("web-1", "web-1") && fits("*", ""));
/// assert!(!fits("web-1", "web-14") && !fits("w*b", "web"));
/// ```
pub fn fits(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => text.starts_with(start),
        None => pattern == text,
    }
}

/// One silence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// `SIL-N`, with the journal index of its fact.
    pub id: String,
    /// Silence or maintenance.
    pub kind: SilenceKind,
    /// What it concerns.
    pub matchers: Matchers,
    /// Why.
    pub reason: String,
    /// Who made it.
    pub by: String,
    /// When, log time.
    pub created: Timestamp,
    /// From when on it holds.
    pub starts: Timestamp,
    /// Until when.
    pub ends: Timestamp,
    /// It holds.
    pub active: bool,
    /// When it was over; earlier than `ends` when somebody ended it.
    pub ended: Option<Timestamp>,
    /// Who ended it before its time.
    pub ended_by: Option<String>,
    /// When it is told that it ends soon: a timer, until then.
    #[serde(default)]
    pub notice_at: Option<Timestamp>,
    /// Who was to page at its end when that was told; what is open or held back changes afterwards.
    #[serde(default)]
    pub noticed: Option<String>,
    /// Cause keys of incidents that were told to be held back by it; no more than there are unresolved incidents.
    pub holds: BTreeSet<String>,
}

impl Silence {
    /// `SIL-7 of ann until 2026-11-22 05:00 (upgrade of the switches)`.
    pub fn words(&self) -> String {
        format!("{} of {} until {} ({})", self.id, self.by, self.ends.to_utc_minute(), self.reason)
    }
}

/// Those to come, those that hold and those that were.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Silences {
    current: BTreeMap<u64, Silence>,
    past: VecDeque<Silence>,
}

/// The id of the silence that the fact at `index` made.
pub fn id(index: u64) -> String {
    format!("SIL-{index}")
}

/// What it meant that its time came `at`, the deadline of a silence: it began, or it was over.
pub fn turned(state: &State, index: u64, at: Timestamp) -> String {
    let name = id(index);
    let past = state.held_back.past.iter().rev().find(|silence| silence.id == name);
    let Some(silence) = state.held_back.current.get(&index).or(past) else {
        return format!("{name} began, or was over: it is not kept any more");
    };
    let (kind, by, reason) = (silence.kind.as_str(), &silence.by, &silence.reason);
    if at < silence.ended.unwrap_or(silence.ends) {
        let until = silence.ends.to_utc_minute();
        return format!("{kind} {name} of {by} begins ({reason}): pages about what it matches wait until {until}");
    }
    let held = human_duration(at.since(silence.starts.min(at)));
    format!("{kind} {name} of {by} ({reason}) is over after {held}: what it held back and is still open pages now")
}

/// What it means that a silence ends soon: who pages then, as far as it holds something back now.
pub fn ends_soon(state: &State, index: u64, at: Timestamp) -> String {
    ending_words(state, index, at, |silence| pages_then(state, silence))
}

/// What it meant when it was told, `at`: of that moment, whatever is open now.
pub fn ended_soon(state: &State, index: u64, at: Timestamp) -> String {
    let then = |silence: &Silence| silence.noticed.clone().unwrap_or_else(|| pages_then(state, silence));
    ending_words(state, index, at, then)
}

fn ending_words(state: &State, index: u64, at: Timestamp, then: impl Fn(&Silence) -> String) -> String {
    let name = id(index);
    let past = state.held_back.past.iter().rev().find(|silence| silence.id == name);
    let Some(silence) = state.held_back.current.get(&index).or(past) else {
        return format!("{name} ends soon: it is not kept any more");
    };
    let (kind, by, reason, ends) = (silence.kind.as_str(), &silence.by, &silence.reason, silence.ends.to_utc_minute());
    let within = human_duration(silence.ends.since(at.min(silence.ends)));
    format!("{kind} {name} of {by} ({reason}) ends at {ends}, within {within}: {}", then(silence))
}

fn pages_then(state: &State, silence: &Silence) -> String {
    let open: Vec<&str> = held_open(state, silence).map(|incident| incident.number.as_str()).collect();
    match open.as_slice() {
        [] => "nothing that it holds back is open".to_owned(),
        _ => {
            let (named, more) = (open.iter().take(NAMED_MAX).copied().collect::<Vec<_>>().join(", "), open.len());
            let more = more.checked_sub(NAMED_MAX).filter(|more| *more > 0);
            let more = more.map(|more| format!(" and {more} more")).unwrap_or_default();
            format!("{named}{more} pages then, unless it is over or somebody makes another silence")
        }
    }
}

/// What a silence holds back and is wrong now: it pages when the silence is over.
pub(crate) fn held_open<'a>(state: &'a State, silence: &'a Silence) -> impl Iterator<Item = &'a Incident> {
    let held = silence.holds.iter().filter_map(|cause| state.unresolved(cause));
    held.filter(|incident| incident.status == IncidentStatus::Open)
}

/// The index in an id, or none when it is not one.
pub fn index_of(id: &str) -> Option<u64> {
    id.strip_prefix("SIL-")?.parse().ok()
}

impl State {
    /// Silences that hold or are to come, oldest first, with the index of their facts.
    pub fn silences(&self) -> impl Iterator<Item = (u64, &Silence)> {
        self.held_back.current.iter().map(|(index, silence)| (*index, silence))
    }

    /// Those that are over and still kept, oldest first.
    pub fn past_silences(&self) -> impl Iterator<Item = &Silence> {
        self.held_back.past.iter()
    }

    /// The silence that holds pages about the incident back: of several the one that ends last.
    pub fn silence_of<'a>(&'a self, incident: &'a Incident) -> Option<(u64, &'a Silence)> {
        self.silences_of(incident).max_by_key(|(index, silence)| (silence.ends, *index))
    }

    /// Every silence that holds pages about the incident back.
    pub fn silences_of<'a>(&'a self, incident: &'a Incident) -> impl Iterator<Item = (u64, &'a Silence)> {
        self.silences().filter(|(_, silence)| silence.active && silence.matchers.fit(self, incident))
    }

    /// Silences that end within the policy's notice and hold back something open, with the index of their facts.
    pub fn silences_ending(&self, now: Timestamp) -> impl Iterator<Item = (u64, &Silence)> {
        let notice = self.policy().silence_notice;
        let soon = move |silence: &Silence| silence.active && !notice.is_zero() && now + notice >= silence.ends;
        self.silences().filter(move |(_, silence)| soon(silence) && held_open(self, silence).next().is_some())
    }

    /// The maintenance that an agent is in, for what it says goodbye for: one that names hosts, and this one.
    pub fn maintenance_of(&self, agent: &AgentName) -> Option<&Silence> {
        let labels = labels_of(self, agent);
        let planned = |silence: &&Silence| {
            silence.active
                && silence.kind == SilenceKind::Maintenance
                && silence.matchers.ask_hosts()
                && silence.matchers.services.is_empty()
                && silence.matchers.causes.is_empty()
                && silence.matchers.fit_host(agent, labels)
        };
        self.held_back.current.values().filter(planned).max_by_key(|silence| silence.ends)
    }
}

pub(crate) fn set(state: &mut State, index: u64, now: Timestamp, mut silence: Silence) {
    let nothing = silence.matchers.is_empty() || silence.ends <= now.max(silence.starts);
    if nothing || state.held_back.current.len() >= SILENCES_MAX {
        return;
    }
    silence.starts = silence.starts.max(now);
    silence.active = silence.starts <= now;
    let next = if silence.active { silence.ends } else { silence.starts };
    state.timers.insert((next, TimerKey::SilenceTurn { index }));
    // One that is shorter than the notice was made a moment ago: its end is no news.
    let notice = state.policy.silence_notice;
    silence.notice_at = (!notice.is_zero() && silence.starts + notice < silence.ends).then(|| silence.ends - notice);
    state.timers.extend(silence.notice_at.map(|at| (at, TimerKey::SilenceEnds { index })));
    state.held_back.current.insert(index, silence);
}

/// A silence ends soon: cause keys of what it holds back and is open, and the words for their timelines.
pub(crate) fn ending(state: &mut State, index: u64) -> Option<(Vec<String>, String)> {
    let silence = state.held_back.current.get(&index)?;
    let causes = held_open(state, silence).map(|incident| incident.key.cause.clone()).collect();
    let (then, words) = (pages_then(state, silence), silence.words());
    let silence = state.held_back.current.get_mut(&index)?;
    (silence.notice_at, silence.noticed) = (None, Some(then));
    Some((causes, format!("{words} ends soon: it pages then, unless it is over")))
}

/// A silence begins, or is over.
pub(crate) fn turn(state: &mut State, index: u64, now: Timestamp) -> Option<Ended> {
    let silence = state.held_back.current.get_mut(&index)?;
    if silence.ends <= now {
        return end(state, index, now, None);
    }
    if silence.starts <= now && !silence.active {
        silence.active = true;
        state.timers.insert((silence.ends, TimerKey::SilenceTurn { index }));
    }
    None
}

/// What a silence that is over leaves behind.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Cause keys of what it held back.
    pub(crate) causes: BTreeSet<String>,
    /// For timelines and pages.
    pub(crate) words: String,
}

/// Over, by its time or by hand; also when it was over before.
pub(crate) fn end(state: &mut State, index: u64, now: Timestamp, by: Option<&str>) -> Option<Ended> {
    let mut silence = state.held_back.current.remove(&index)?;
    let next = if silence.active { silence.ends } else { silence.starts };
    state.timers.remove(&(next, TimerKey::SilenceTurn { index }));
    if let Some(at) = silence.notice_at.take() {
        state.timers.remove(&(at, TimerKey::SilenceEnds { index }));
    }
    silence.active = false;
    silence.ended = Some(now);
    silence.ended_by = by.map(str::to_owned);
    let causes = std::mem::take(&mut silence.holds);
    let held = human_duration(now.since(silence.starts.min(now)));
    let how = by.map(|by| format!("was ended by {by}")).unwrap_or_else(|| "ended".to_owned());
    let words = format!("{} of {} ({}) {how} after {held}", silence.id, silence.by, silence.reason);
    state.held_back.past.push_back(silence);
    if state.held_back.past.len() > PAST_SILENCES_MAX {
        state.held_back.past.pop_front();
    }
    Some(Ended { causes, words })
}

/// An incident is told to be held back.
pub(crate) fn holds(state: &mut State, index: u64, cause: &str) {
    if let Some(silence) = state.held_back.current.get_mut(&index) {
        silence.holds.insert(cause.to_owned());
    }
}

/// An incident is over: nothing of it is held back any more.
pub(crate) fn releases(state: &mut State, index: u64, cause: &str) {
    if let Some(silence) = state.held_back.current.get_mut(&index) {
        silence.holds.remove(cause);
    }
}

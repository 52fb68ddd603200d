//! Correlation: many new incidents within a short time that no detector explains are gathered into one, with its blast
//! radius. Those of one host are that host's; others are the fleet's.
//!
//! What is gathered goes on to be watched by its own cause: when few of them are wrong any more the gathering incident
//! recovers, and what is still wrong comes back as an incident of its own. What was well for long and is wrong again is
//! on its own at once.
//!
//! A gathering takes new ones in for a bounded time: who was paged about it hours ago is not told of what happens now.
//! What comes later is told by itself, or makes another gathering beside it.

use crate::cause::{self, CauseKind};
use crate::singletons;
use crate::state::{Cause, INCIDENT_SERVICES_MAX, IncidentStatus, Link, MEMBERS_MAX, MemberRef, State};
use crate::symptom;
use muster_common::ids::AgentName;
use muster_common::limits::{SUMMARY_BYTES_MAX, clip};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The incidents that came first are told in full; of the others the number.
pub const FIRST_TOLD_MAX: usize = 12;
/// Causes in one gathering; what comes beyond pages by itself.
pub const GATHERED_MAX: usize = 65_536;
/// Windows for which a gathering takes new ones in, however closely they follow each other: in a large fleet something is
/// always new, and what has nothing to do with the rest is not to be swallowed for hours.
pub const HOT_WINDOWS_MAX: u32 = 10;
/// Gatherings open at once, of the fleet and of each host; what would make one more joins the last.
pub const BURSTS_MAX: usize = 8;

/// What was gathered under one cause key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Burst {
    /// Cause keys, and whether something is wrong there now.
    pub gathered: BTreeMap<String, bool>,
    /// How many of them are wrong.
    pub n_wrong: u64,
    /// The worst severity of them.
    pub worst: Severity,
    /// What came first, in words, in the order it came.
    pub first: Vec<String>,
    /// Hosts, bounded like the members of an incident.
    pub agents: BTreeSet<AgentName>,
    /// Services, bounded like those of an incident.
    pub services: BTreeSet<String>,
    /// Labels that all hosts share.
    pub labels: BTreeMap<String, String>,
    /// When the first began.
    pub began: Timestamp,
    /// When the first was opened.
    pub first_opened: Timestamp,
    /// When one was gathered last.
    pub last: Timestamp,
    /// Some of them only happened: they are over, and matter nevertheless.
    pub happened: bool,
    /// The fleet-wide cause that was found to explain some of them later.
    pub explained_by: Option<String>,
    /// Which of them.
    pub explained: BTreeSet<String>,
    /// Since when those that are well are.
    #[serde(default)]
    pub well_since: BTreeMap<String, Timestamp>,
    /// What they are about: a silence of one reason holds back many of it.
    #[serde(default)]
    pub reasons: BTreeSet<Reason>,
}

impl Burst {
    fn new(now: Timestamp) -> Self {
        Self {
            gathered: BTreeMap::new(),
            n_wrong: 0,
            worst: Severity::Sev4,
            first: Vec::new(),
            agents: BTreeSet::new(),
            services: BTreeSet::new(),
            labels: BTreeMap::new(),
            began: now,
            first_opened: now,
            last: now,
            happened: false,
            explained_by: None,
            explained: BTreeSet::new(),
            well_since: BTreeMap::new(),
            reasons: BTreeSet::new(),
        }
    }

    /// Takes the word of a cause: whether it is wrong now.
    fn is_now(&mut self, key: &str, wrong: bool, was: bool, now: Timestamp) {
        self.n_wrong = self.n_wrong + u64::from(wrong) - u64::from(was);
        if wrong {
            self.well_since.remove(key);
        } else if was {
            self.well_since.insert(key.to_owned(), now);
        }
    }

    /// It is on its own again.
    fn leave(&mut self, key: &str) {
        let was = self.gathered.remove(key).unwrap_or_default();
        self.n_wrong = self.n_wrong.saturating_sub(u64::from(was));
        self.well_since.remove(key);
        self.explained.remove(key);
    }

    /// One of them is a symptom of that, or of nothing; whether that is news.
    fn is_explained(&mut self, key: String, by: Option<String>) -> bool {
        let Some(by) = by else { return self.explained.remove(&key) };
        if self.explained_by.as_ref() != Some(&by) {
            self.explained.clear();
            self.explained_by = Some(by);
        }
        self.explained.insert(key)
    }

    /// The fleet-wide cause that explains most of them.
    pub(crate) fn explanation(&self) -> Option<&String> {
        self.explained_by.as_ref().filter(|_| self.explained.len() * 2 > self.gathered.len())
    }

    /// Enough of them are wrong for it to go on: half as many as make one.
    pub(crate) fn goes_on(&self, count: u32) -> bool {
        self.n_wrong * 2 >= u64::from(count)
    }
}

/// An incident was opened under `key`: is it one of many?
pub(crate) fn opened(state: &mut State, now: Timestamp, key: &str) {
    let Some(own_burst) = burst_of(key) else { return };
    let policy = state.policy.correlation.clone();
    let oldest = now - policy.window;
    let mut recent = std::mem::take(&mut state.recently_opened);
    recent.retain(|(at, key)| *at >= oldest && state.unresolved(key).is_some());
    recent.push_back((now, key.to_owned()));
    let count = usize::try_from(policy.incidents).unwrap_or(usize::MAX);
    let nths = |base: &str| (1..=BURSTS_MAX).map(|nth| cause::nth_burst(base, nth)).collect::<Vec<_>>();
    let hot = |burst: &String| burst != key && is_hot(state, burst, now);
    let known = [own_burst.as_str(), cause::FLEET_BURST].into_iter();
    let known = known.filter(|base| state.incidents.starting_with(base).next().is_some());
    let to = known.flat_map(nths).find(hot);
    // One that is open and does not gather any more is told already: these are others.
    let free = |base: &str| nths(base).into_iter().find(|burst| state.unresolved(burst).is_none());
    let free = |base: &str| free(base).unwrap_or_else(|| cause::nth_burst(base, BURSTS_MAX));
    let of_one_host = |other: &String| burst_of(other).as_deref() == Some(own_burst.as_str());
    let n_of_host = recent.iter().filter(|(_, other)| of_one_host(other)).count();
    let (burst, gathered): (String, Vec<String>) = match to {
        Some(burst) => (burst, vec![key.to_owned()]),
        None if n_of_host >= count => {
            let of_host = recent.iter().map(|(_, other)| other).filter(|other| of_one_host(other));
            (free(&own_burst), of_host.cloned().collect())
        }
        None if recent.len() >= count => {
            (free(cause::FLEET_BURST), recent.iter().map(|(_, other)| other.clone()).collect())
        }
        None => {
            state.recently_opened = recent;
            return;
        }
    };
    recent.retain(|(_, other)| !gathered.contains(other));
    state.recently_opened = recent;
    for key in gathered {
        gather(state, now, &burst, key);
    }
}

/// The gathering of the host that a cause is about; none for what is the fleet's already.
fn burst_of(key: &str) -> Option<String> {
    match cause::kind_of(key) {
        // A host's own gathering may be one of many, but not one of itself.
        CauseKind::Burst if key.starts_with("host/") => Some(cause::FLEET_BURST.to_owned()),
        CauseKind::Host | CauseKind::AgentStale => {
            let agent = key.strip_prefix("host/")?.split('/').next()?;
            Some(cause::host_burst(&AgentName::new(agent).ok()?))
        }
        _ => None,
    }
}

/// Still gathers: it goes on, or is about what only happened, something joined it within the window, and it did not begin
/// too long ago.
fn is_hot(state: &State, burst: &str, now: Timestamp) -> bool {
    let Some(incident) = state.unresolved(burst) else { return false };
    let Some(burst) = state.cause(burst).and_then(|cause| cause.burst.as_ref()) else { return false };
    let window = state.policy.correlation.window;
    let joined_lately = burst.last + window >= now && burst.first_opened + window * HOT_WINDOWS_MAX >= now;
    joined_lately && (incident.status == IncidentStatus::Open || burst.happened)
}

fn gather(state: &mut State, now: Timestamp, burst_key: &str, key: String) {
    let Some(incident) = state.unresolved(&key) else { return };
    let told = clip(
        &format!("{} {} at {}: {}", incident.number, incident.reason, incident.began, incident.title),
        SUMMARY_BYTES_MAX,
    );
    let (severity, began, opened, reason) = (incident.severity, incident.began, incident.opened, incident.reason);
    let (agents, services) = (incident.agents.clone(), incident.services.clone());
    let wrong = is_wrong(state, &key);
    let only_happened = state.cause(&key).is_some_and(|cause| !cause.occurrences.is_empty() || cause.storm.is_some());
    let labels: Vec<BTreeMap<String, String>> = agents
        .iter()
        .map(|agent| state.agent(agent).and_then(|agent| agent.hello.as_ref()).map(|hello| hello.labels.clone()))
        .map(Option::unwrap_or_default)
        .collect();
    leave_other(state, burst_key, &key);
    let cause = state.causes.entry(burst_key.to_owned()).or_default();
    let burst = cause.burst.get_or_insert_with(|| Box::new(Burst { first_opened: opened, ..Burst::new(began) }));
    if burst.gathered.len() >= GATHERED_MAX {
        return;
    }
    if burst.first.len() < FIRST_TOLD_MAX {
        burst.first.push(told);
    }
    if burst.gathered.insert(key.clone(), wrong) != Some(true) {
        burst.n_wrong += u64::from(wrong);
    }
    burst.reasons.insert(reason);
    if !wrong {
        burst.well_since.insert(key.clone(), now);
    }
    burst.worst = burst.worst.max(severity);
    burst.began = burst.began.min(began);
    burst.last = now;
    burst.happened |= only_happened;
    for of_host in labels {
        if burst.agents.is_empty() && burst.labels.is_empty() {
            burst.labels = of_host;
        } else {
            burst.labels.retain(|name, value| of_host.get(name) == Some(value));
        }
        // The second host of one incident is compared with the first.
        burst.agents.extend(agents.iter().take(MEMBERS_MAX.saturating_sub(burst.agents.len())).cloned());
    }
    let room = INCIDENT_SERVICES_MAX.saturating_sub(burst.services.len());
    burst.services.extend(services.into_iter().take(room));
    state.gathered_in.insert(key.clone(), burst_key.to_owned());
    state.touched.insert(key);
    state.touched.insert(burst_key.to_owned());
}

/// What came back from an older gathering is watched by one alone: else the older would never hear that it is well.
fn leave_other(state: &mut State, burst_key: &str, key: &str) {
    let Some(other) = state.gathered_in.get(key).filter(|other| *other != burst_key).cloned() else { return };
    if let Some(burst) = state.causes.get_mut(&other).and_then(|cause| cause.burst.as_mut()) {
        burst.leave(key);
    }
    state.gathered_in.remove(key);
    state.touched.insert(other);
}

/// Something is wrong under the key now that no fleet-wide incident explains.
fn is_wrong(state: &State, key: &str) -> bool {
    is_open(state, key) && symptom::of_detector(state, key).is_none()
}

/// Something is wrong under the key now.
fn is_open(state: &State, key: &str) -> bool {
    let Some(cause) = state.cause(key) else { return false };
    let count = state.policy.correlation.incidents;
    let storms = cause.storm.as_ref().is_some_and(|storm| storm.active && storm.index > cause.dismissed_index);
    let bursts = cause.burst.as_ref().is_some_and(|burst| burst.goes_on(count));
    storms || bursts || cause.members.values().any(|member| member_counts(state, cause, member))
}

fn member_counts(state: &State, cause: &Cause, member: &MemberRef) -> bool {
    let Some(agent) = state.agent(&member.agent) else { return false };
    match &member.key {
        None => matches!(agent.link, Link::Silent { index, .. } if index > cause.dismissed_index),
        Some(key) => agent.open.get(key).is_some_and(|open| {
            let severity = singletons::severity(state, &member.agent, open);
            severity >= Severity::Sev3 && open.event_index > cause.dismissed_index
        }),
    }
}

/// After each entry: what it touched may be gathered somewhere, and be wrong or well now. Costs what was touched costs.
pub(crate) fn update(state: &mut State) {
    if state.gathered_in.is_empty() {
        return;
    }
    let known = |key: &String| state.gathered_in.get(key).map(|burst| (key.clone(), burst.clone()));
    let touched: Vec<(String, String)> = state.touched.iter().filter_map(known).collect();
    for (key, burst_key) in touched {
        let explained = symptom::of_detector(state, &key).map(|incident| incident.key.cause.clone());
        let wrong = explained.is_none() && is_open(state, &key);
        let speaks = wrong || state.cause(&key).is_some_and(|cause| !cause.occurrences.is_empty());
        let now = state.last_at;
        let stability = &state.policy.stability;
        let Some(burst) = state.causes.get_mut(&burst_key).and_then(|cause| cause.burst.as_mut()) else { continue };
        let Some(was) = burst.gathered.get(&key).copied() else { continue };
        // An incident of its own would have been over by now: this is another one.
        let long_well = burst.well_since.get(&key).is_some_and(|since| now > *since + *stability.get(burst.worst));
        if speaks && !was && long_well {
            burst.leave(&key);
            state.gathered_in.remove(&key);
            state.touched.insert(burst_key);
            continue;
        }
        burst.gathered.insert(key.clone(), wrong);
        burst.is_now(&key, wrong, was, now);
        let news = burst.is_explained(key, explained);
        if was != wrong || news {
            state.touched.insert(burst_key);
        }
    }
}

/// A gathering incident is resolved: what was gathered is on its own again.
pub(crate) fn dissolve(state: &mut State, burst_key: &str) {
    let Some(burst) = state.causes.get_mut(burst_key).and_then(|cause| cause.burst.take()) else { return };
    for key in burst.gathered.keys() {
        if state.gathered_in.get(key).is_some_and(|known| known == burst_key) {
            state.gathered_in.remove(key);
        }
    }
}

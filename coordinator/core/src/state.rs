//! Everything the coordinator knows, as a fold over its journal. Read through accessors; changed by
//! [`crate::apply::apply`] alone. Its JSON is the snapshot: ordered maps only, so equal states print equally.

mod agents;
mod causes;
mod detect;
mod feeds;
mod few;
mod incident;
mod keyed;
mod pairs;
mod unwritten;

use crate::cause;
use crate::entry::shared;
use crate::entry::{AgentHello, Disconnect, IncidentKey, Silence, TimerKey};
use crate::freeze::Freeze;
use crate::page::{PageAction, PageId};
use crate::policy::Policy;
use crate::second_opinion::SecondOpinions;
use crate::signals::Signals;
use crate::silence::Silences;
use muster_common::finding::{Finding, FindingKey};
use muster_common::ids::{AgentName, BootId, CoordinatorId, Epoch, FleetName, ServiceName};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::spool::Position;
use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub use feeds::{Cause, CauseOccurrence, MemberRef, Storm};
pub use few::{Few, FewSet};
pub use incident::{Incident, IncidentStatus, PageKey, PageOutcome, PageRecord, ResendWish};

pub(crate) use agents::Agents;
pub(crate) use causes::Causes;
pub use detect::{AgentWatch, Detect};
pub(crate) use keyed::Keyed;
pub(crate) use unwritten::{Known, Touched};

/// Occurrences kept for lists, over all agents; the oldest go first. The journal keeps them all.
pub const RECENT_OCCURRENCES_MAX: usize = 2048;
/// Resolved incidents kept for lists; the oldest go first. The journal keeps them all.
pub const RESOLVED_INCIDENTS_MAX: usize = 1000;
/// Lines of one incident's timeline: the first half of them is kept, then the newest.
pub const TIMELINE_MAX: usize = 200;
/// Members of one incident that are named; more are counted.
pub const MEMBERS_MAX: usize = 4096;
/// Services of one incident that are remembered.
pub const INCIDENT_SERVICES_MAX: usize = 64;
/// Occurrences of one cause kept for its pages.
pub const CAUSE_OCCURRENCES_MAX: usize = 16;
/// Restarts of one service on one host kept for the storm window.
pub const HOST_RESTARTS_MAX: usize = 64;
/// Hosts of one storm that are named, and causes on them that fold into it; more are counted by their occurrences alone.
pub const STORM_AGENTS_MAX: usize = 4096;
/// Pages with an outcome kept for lists.
pub const PAST_PAGES_MAX: usize = 500;
/// Pages that were given up and are kept until somebody sends them again; the oldest go first.
pub const DEAD_LETTERS_MAX: usize = 200;
/// Events of other systems remembered by their id; the oldest go first. Far above what arrives within the day for which
/// such a system repeats itself.
pub const OUTSIDE_EVENTS_MAX: usize = 4096;

/// The fold over the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub(crate) head_index: u64,
    pub(crate) last_at: Timestamp,
    pub(crate) fleet: Option<FleetName>,
    pub(crate) coordinator: Option<CoordinatorId>,
    pub(crate) epoch: Option<Epoch>,
    pub(crate) fenced_by: Option<Epoch>,
    pub(crate) policy: Policy,
    pub(crate) agents: Agents,
    pub(crate) n_silent: u64,
    pub(crate) causes: Causes,
    /// Boxed: a cause has few of them, and a map makes room for many.
    pub(crate) incidents: Keyed<BTreeMap<u64, Box<Incident>>>,
    pub(crate) numbers: BTreeMap<String, IncidentKey>,
    pub(crate) number_day: u32,
    pub(crate) number_next: u64,
    pub(crate) resolved_order: VecDeque<IncidentKey>,
    /// Boxed as well.
    pub(crate) pages: BTreeMap<PageId, Box<PageRecord>>,
    pub(crate) past_pages: VecDeque<PageRecord>,
    #[serde(default)]
    pub(crate) dead_letters: VecDeque<DeadLetter>,
    /// Receivers of the policy that were ever asked.
    #[serde(default)]
    pub(crate) receivers: BTreeMap<String, ReceiverRecord>,
    #[serde(default)]
    pub(crate) outside_events: VecDeque<String>,
    pub(crate) occurrences: VecDeque<OccurrenceRecord>,
    pub(crate) timers: BTreeSet<(Timestamp, TimerKey)>,
    pub(crate) rehear_until: Option<Timestamp>,
    /// What is known of agents that have not been heard since.
    #[serde(default)]
    pub(crate) listening: Option<Listening>,
    /// What detectors count over all hosts.
    #[serde(default)]
    pub(crate) detect: detect::Detect,
    /// What the fleet is compared by.
    #[serde(default)]
    pub(crate) signals: Signals,
    /// Highest generation of an incident that is no longer kept: new ones count on from there.
    pub(crate) generation_floor: u64,
    pub(crate) silences: VecDeque<(Timestamp, AgentName)>,
    /// By the index of the fact that set it.
    #[serde(default)]
    pub(crate) freezes: BTreeMap<u64, Freeze>,
    #[serde(default)]
    pub(crate) held_back: Silences,
    /// Incidents opened a short while ago that nothing explains, oldest first; fewer than make a gathering.
    #[serde(default)]
    pub(crate) recently_opened: VecDeque<(Timestamp, String)>,
    /// The gathering that each gathered cause key is in.
    #[serde(default)]
    pub(crate) gathered_in: Keyed<String>,
    /// Questions to the neighbours of silent agents.
    #[serde(default)]
    pub(crate) second_opinions: SecondOpinions,
    /// Agents forgotten by an operator, the newest ones.
    #[serde(default)]
    pub(crate) archived: BTreeMap<AgentName, Archived>,
    /// Cause keys that the entry applied last may have changed. Not part of what is known.
    #[serde(skip)]
    pub(crate) touched: Touched,
}

/// When a coordinator began to listen and could not know who was heard meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listening {
    /// Since then.
    pub(crate) since: Timestamp,
    /// Whoever was connected and did not count as silent was heard at least until then: heartbeats are not journaled, but
    /// their absence would have been.
    pub(crate) heard_until: Timestamp,
}

/// What is known of one agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// Its name.
    pub name: AgentName,
    /// What it said of itself when it last connected.
    #[serde(with = "shared::option", default)]
    pub hello: Option<Arc<AgentHello>>,
    /// First fact about it.
    pub first_seen: Timestamp,
    /// Last time it connected.
    pub connected_at: Option<Timestamp>,
    /// How it stands.
    pub link: Link,
    /// How far its spool has been read.
    pub position: Option<Position>,
    /// Open conditions.
    #[serde(with = "pairs")]
    pub open: Few<FindingKey, Box<OpenFinding>>,
    /// [`muster_common::finding::open_digest`] of `open`.
    pub digest: u64,
    /// False from `DigestDiffers` until the next resync.
    pub digest_matches: bool,
    /// Conditions not kept because the agent has too many open.
    pub suppressed: u64,
    /// Spool entries that it evicted before they were acknowledged.
    pub entries_lost: u64,
    /// Reboots seen (another boot id than at the previous connect).
    pub reboots: u64,
    /// Reconnects counted, not journaled.
    pub reconnects: u64,
    /// Observed times of recent restarts by service, ascending.
    pub restarts: BTreeMap<ServiceName, Vec<Timestamp>>,
    /// When a process of a watched service was last OOM-killed, by observed time.
    pub watched_oom_at: Option<Timestamp>,
    /// Cause keys of unresolved incidents this agent takes part in.
    pub incidents: BTreeSet<String>,
    /// What detectors remember of it.
    #[serde(default)]
    pub watch: AgentWatch,
}

impl AgentRecord {
    /// True when no more incidents are opened for what it tells.
    pub fn floods(&self, policy: &Policy) -> bool {
        let (n, most) = (self.incidents.len(), policy.detect.agent_flood.incidents as usize);
        n >= most && n - usize::from(self.incidents.contains(&cause::agent_flood(&self.name))) >= most
    }
}

/// An agent that an operator forgot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archived {
    /// Index of the fact.
    pub index: u64,
    /// Who.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// How an agent stands, as far as the journal knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// Heard.
    Heard,
    /// Known from before the coordinator began to listen; not heard since.
    NotReheard,
    /// Its stream ended; not silent for long enough yet.
    Disconnected {
        /// How.
        how: Disconnect,
        /// When.
        at: Timestamp,
    },
    /// Silent.
    Silent {
        /// Log time of the fact.
        since: Timestamp,
        /// Last heard.
        last_heard: Timestamp,
        /// Why.
        silence: Silence,
        /// Index of the fact.
        index: u64,
    },
}

/// An open condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFinding {
    /// As last told.
    pub finding: Finding,
    /// When it became true, by observed time.
    pub opened: Timestamp,
    /// When the coordinator first heard of it.
    pub received: Timestamp,
    /// Index of the entry that opened it (or made it worse).
    pub event_index: u64,
    /// The observed time is an estimate.
    pub estimated: bool,
}

/// A point in time worth remembering.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OccurrenceRecord {
    /// Index of the fact.
    pub index: u64,
    /// Whose.
    pub agent: AgentName,
    /// When it happened.
    pub observed: Timestamp,
    /// When the coordinator heard of it.
    pub received: Timestamp,
    /// What.
    pub finding: Finding,
    /// Of a kill: the kernel that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<BootId>,
}

/// A page that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Which, with its error.
    pub record: PageRecord,
    /// When it was given up.
    pub failed: Timestamp,
    /// The page that an operator sent in its place.
    pub resent: Option<PageId>,
}

/// How a receiver does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReceiverRecord {
    /// Pages accepted.
    pub delivered: u64,
    /// Pages given up.
    pub failed: u64,
    /// When it last accepted one.
    pub last_delivered: Option<Timestamp>,
    /// Why the last one was given up, or why it counts as failing; empty since it accepted one.
    pub last_error: String,
    /// Since when it counts as failing.
    pub failing_since: Option<Timestamp>,
    /// Since when a page to it was given up, and it has accepted none.
    #[serde(default)]
    pub given_up_since: Option<Timestamp>,
}

impl ReceiverRecord {
    /// It took no page when it was last asked.
    pub fn takes_nothing(&self) -> bool {
        self.failing_since.is_some() || self.given_up_since.is_some()
    }
}

impl State {
    /// Before the first entry.
    pub fn genesis() -> Self {
        Self {
            head_index: 0,
            last_at: Timestamp::UNIX_EPOCH,
            fleet: None,
            coordinator: None,
            epoch: None,
            fenced_by: None,
            policy: Policy::default(),
            agents: Agents::default(),
            n_silent: 0,
            causes: Causes::default(),
            incidents: Keyed::default(),
            numbers: BTreeMap::new(),
            number_day: 0,
            number_next: 1,
            resolved_order: VecDeque::new(),
            pages: BTreeMap::new(),
            past_pages: VecDeque::new(),
            dead_letters: VecDeque::new(),
            receivers: BTreeMap::new(),
            outside_events: VecDeque::new(),
            occurrences: VecDeque::new(),
            timers: BTreeSet::new(),
            rehear_until: None,
            listening: None,
            detect: detect::Detect::default(),
            signals: Signals::default(),
            generation_floor: 0,
            silences: VecDeque::new(),
            freezes: BTreeMap::new(),
            held_back: Silences::default(),
            recently_opened: VecDeque::new(),
            gathered_in: Keyed::default(),
            second_opinions: SecondOpinions::default(),
            archived: BTreeMap::new(),
            touched: Touched::default(),
        }
    }

    /// Index of the last entry; 0 before the first.
    pub fn head_index(&self) -> u64 {
        self.head_index
    }

    /// Log time of the last entry.
    pub fn last_at(&self) -> Timestamp {
        self.last_at
    }

    /// The fleet, once a coordinator started.
    pub fn fleet(&self) -> Option<&FleetName> {
        self.fleet.as_ref()
    }

    /// Who started last, or took over.
    pub fn coordinator(&self) -> Option<&CoordinatorId> {
        self.coordinator.as_ref()
    }

    /// The current reign.
    pub fn epoch(&self) -> Option<&Epoch> {
        self.epoch.as_ref()
    }

    /// The higher epoch that ended this coordinator's reign: nothing more is concluded.
    pub fn fenced_by(&self) -> Option<&Epoch> {
        self.fenced_by.as_ref()
    }

    /// Thresholds and matrix.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Every known agent, by name.
    pub fn agents(&self) -> impl Iterator<Item = &AgentRecord> {
        self.agents.values()
    }

    /// What the fleet is compared by: changes, builds, singletons, refusals.
    pub fn signals(&self) -> &Signals {
        &self.signals
    }

    /// How many agents are known.
    pub fn n_agents(&self) -> usize {
        self.agents.len()
    }

    /// How many of them are silent.
    pub fn n_silent(&self) -> u64 {
        self.n_silent
    }

    /// One agent.
    pub fn agent(&self, name: &AgentName) -> Option<&AgentRecord> {
        self.agents.get(name)
    }

    /// Open conditions of all agents, by agent and key.
    pub fn open_findings(&self) -> impl Iterator<Item = (&AgentName, &OpenFinding)> {
        self.agents.values().flat_map(|agent| agent.open.values().map(|open| (&agent.name, open.as_ref())))
    }

    /// Recent occurrences, oldest first.
    pub fn recent_occurrences(&self) -> impl DoubleEndedIterator<Item = &OccurrenceRecord> {
        self.occurrences.iter()
    }

    /// Every incident that is kept, by cause and generation.
    pub fn incidents(&self) -> impl Iterator<Item = &Incident> {
        self.incidents.values().flat_map(BTreeMap::values).map(Box::as_ref)
    }

    /// The operator who forgot an agent, while that is remembered.
    pub fn archived(&self, agent: &AgentName) -> Option<&Archived> {
        self.archived.get(agent)
    }

    /// One incident.
    pub fn incident(&self, key: &IncidentKey) -> Option<&Incident> {
        self.incidents.get(&key.cause)?.get(&key.generation).map(Box::as_ref)
    }

    /// One incident by its `INC-…` number.
    pub fn incident_by_number(&self, number: &str) -> Option<&Incident> {
        self.incident(self.numbers.get(number)?)
    }

    /// The newest incident of a cause key.
    pub fn newest_incident(&self, cause: &str) -> Option<&Incident> {
        self.incidents.get(cause)?.values().next_back().map(Box::as_ref)
    }

    /// What feeds a cause key.
    pub fn cause(&self, cause: &str) -> Option<&Cause> {
        self.causes.get(cause)
    }

    /// Pages without an outcome, oldest first.
    pub fn pending_pages(&self) -> impl Iterator<Item = &PageRecord> {
        self.pages.values().map(Box::as_ref)
    }

    /// Pending pages that may be sent now: for each receiver and key the oldest only, no resolve while the page that takes
    /// its place under another key is not told (a phone would say that it is over when it got worse), and no silence of
    /// an agent while agents are still being re-heard.
    pub fn sendable_pages(&self) -> Vec<&PageRecord> {
        let mut seen = BTreeSet::new();
        let mut calls = BTreeSet::new();
        self.pages
            .values()
            .filter(|record| {
                let of_incident = (&record.page.receiver, &record.incident);
                let waits = record.page.action == PageAction::Resolve && calls.contains(&of_incident);
                if record.page.action == PageAction::Trigger {
                    calls.insert(of_incident);
                }
                seen.insert((&record.page.receiver, &record.page.dedup_key)) && !waits
            })
            .filter(|record| {
                let of_silence = matches!(record.page.reason, Reason::AgentStale | Reason::MassStale);
                let trigger = record.page.action == PageAction::Trigger;
                !(of_silence && trigger && !record.attempted && self.rehear_until.is_some())
            })
            .map(Box::as_ref)
            .collect()
    }

    /// One page, pending or among the recent past.
    pub fn page(&self, id: PageId) -> Option<&PageRecord> {
        self.pages.get(&id).map(Box::as_ref).or_else(|| self.past_pages.iter().find(|record| record.id == id))
    }

    /// Pages that were given up, oldest first.
    pub fn dead_letters(&self) -> impl DoubleEndedIterator<Item = &DeadLetter> {
        self.dead_letters.iter()
    }

    /// How a receiver does, once it was asked.
    pub fn receiver(&self, name: &str) -> Option<&ReceiverRecord> {
        self.receivers.get(name)
    }

    /// True when another system's event is known already.
    pub fn knows_outside_event(&self, source: &str, id: &str) -> bool {
        self.outside_events.contains(&outside_event(source, id))
    }

    /// Recent pages with an outcome, oldest first.
    pub fn past_pages(&self) -> impl DoubleEndedIterator<Item = &PageRecord> {
        self.past_pages.iter()
    }

    /// End of the re-hear window, while it runs.
    pub fn rehear_until(&self) -> Option<Timestamp> {
        self.rehear_until
    }

    /// The timers, earliest first.
    pub fn timers(&self) -> impl Iterator<Item = &(Timestamp, TimerKey)> {
        self.timers.iter()
    }

    /// The unresolved incident of a cause key.
    pub fn unresolved(&self, cause: &str) -> Option<&Incident> {
        self.newest_incident(cause).filter(|incident| incident.is_unresolved())
    }

    /// Severity of a reason told with `told`, under the policy: it names one, or what was told counts up to one worse
    /// than the reason's default. A complete outage is not for an agent to tell.
    pub fn severity_of(&self, reason: Reason, told: Severity) -> Severity {
        let worst = reason.default_severity().worse().min(Severity::Sev1);
        self.policy.severities.get(&reason).copied().unwrap_or(told.min(worst))
    }
}

/// The name under which another system's event is remembered.
pub(crate) fn outside_event(source: &str, id: &str) -> String {
    format!("{source}/{id}")
}

/// The earliest timer.
pub fn next_deadline(state: &State) -> Option<(Timestamp, TimerKey)> {
    state.timers.first().cloned()
}

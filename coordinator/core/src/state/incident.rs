//! One incident, and what receivers were told of it.

use super::State;
use crate::entry::{IncidentKey, Resolution};
use crate::page::{Page, PageAction, PageId};
use crate::response::Response;
use crate::timeline::TimelineLine;
use muster_common::evidence::Grade;
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Name of the service that stands for the host itself.
const HOST: &str = "host";

/// Where an incident stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IncidentStatus {
    /// Something is wrong.
    Open,
    /// Evidence of health is complete; the stability window runs.
    Recovering,
    /// Over.
    Resolved,
}

/// One incident.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// Identity.
    pub key: IncidentKey,
    /// For people.
    pub number: String,
    /// The fleet's name when it was opened: part of its deduplication keys, which never change.
    pub fleet: String,
    /// Where it stands.
    pub status: IncidentStatus,
    /// What.
    pub reason: Reason,
    /// How bad.
    pub severity: Severity,
    /// How sure.
    pub grade: Grade,
    /// One sentence.
    pub title: String,
    /// Rule, values, thresholds.
    pub why: String,
    /// What to do.
    pub next_steps: Vec<String>,
    /// When it began, by observed time.
    pub began: Timestamp,
    /// When it was concluded.
    pub opened: Timestamp,
    /// Who took it.
    pub owner: Option<String>,
    /// When it was acknowledged.
    pub acknowledged: Option<Timestamp>,
    /// When it was resolved.
    pub resolved: Option<Timestamp>,
    /// How it was resolved.
    pub resolution: Option<Resolution>,
    /// Everything that ever joined, bounded by [`super::MEMBERS_MAX`].
    pub members: BTreeSet<String>,
    /// Members beyond the bound.
    pub members_dropped: u64,
    /// Hosts concerned, bounded like the members.
    pub agents: BTreeSet<AgentName>,
    /// Services concerned, bounded by [`super::INCIDENT_SERVICES_MAX`].
    #[serde(default)]
    pub services: BTreeSet<String>,
    /// How people stand to it.
    #[serde(default)]
    pub response: Response,
    /// What changed on its hosts shortly before it began, the closest first; see [`crate::changes::lines`].
    #[serde(default)]
    pub changes: Vec<String>,
    /// What happened to it, oldest first, bounded by [`super::TIMELINE_MAX`].
    pub timeline: Vec<TimelineLine>,
    /// How often it relapsed.
    pub relapses: u64,
    /// How often it was paged again under a new key.
    pub repages: u64,
    /// Timer of the hold, while it runs.
    pub hold_until: Option<Timestamp>,
    /// The hold is over: it may page.
    pub hold_over: bool,
    /// The reason for not paging has been given.
    pub explained: bool,
    /// Keys under which it was paged.
    pub page_keys: Vec<PageKey>,
    /// The receivers there were when the first page under the newest key was requested: each of them gets one.
    pub receivers: Vec<String>,
    /// When a receiver first accepted a trigger.
    #[serde(default)]
    pub first_delivered: Option<Timestamp>,
    /// Pages accepted.
    #[serde(default)]
    pub pages_delivered: u64,
    /// Triggers given up.
    #[serde(default)]
    pub triggers_failed: u64,
    /// Hosts concerned that are not heard, or whose open set is in doubt: the stability window stands still.
    pub blind: BTreeSet<AgentName>,
    /// What is left of the stability window, at `stability_from`.
    pub stability_left_ms: u64,
    /// Since when the window runs; none while it stands still.
    pub stability_from: Option<Timestamp>,
    /// The window has run out.
    pub stability_over: bool,
    /// An operator asked for it to be resolved.
    pub resolve_wish: Option<(String, String)>,
    /// Who is told in place of a receiver that did not take its page.
    #[serde(default)]
    pub stands_in: BTreeMap<String, String>,
    /// Pages given up that an operator asked to send again, by receiver.
    #[serde(default)]
    pub resend: BTreeMap<String, ResendWish>,
}

/// An operator's wish to send a page again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResendWish {
    /// The page that was given up.
    pub page: PageId,
    /// What it was to do.
    pub action: PageAction,
    /// Who asked.
    pub by: String,
}

impl Incident {
    /// True until it is resolved.
    pub fn is_unresolved(&self) -> bool {
        self.status != IncidentStatus::Resolved
    }

    /// Services concerned, for people: what the host itself stands for is no service.
    pub fn services_named(&self) -> impl Iterator<Item = &str> {
        self.services.iter().map(String::as_str).filter(|service| *service != HOST)
    }

    /// Whether it is about a service, or a finding or a symptom in it is; the names of services are bounded, so that both
    /// are asked.
    pub fn concerns_service(&self, service: &str) -> bool {
        self.services.contains(service)
            || self.members.iter().any(|member| match member.strip_prefix("host/") {
                Some(cause) => cause.split_once("/service/").is_some_and(|(_, named)| named == service),
                None => !member.starts_with("fleet/") && member.split('/').nth(1) == Some(service),
            })
    }

    /// True once a trigger was requested.
    pub fn has_paged(&self) -> bool {
        !self.page_keys.is_empty()
    }
}

/// Steps from a symptom to its cause that are followed: a host's trouble, that of its place, the fleet's, and some more.
const FOLDS_MAX: usize = 16;

impl State {
    /// The unresolved incident that `incident` goes on in, where it ended as a symptom: whoever was paged about it knows
    /// its number alone.
    pub fn goes_on_in(&self, incident: &Incident) -> Option<&Incident> {
        let mut last = None;
        let mut resolution = incident.resolution.as_ref();
        for _ in 0..FOLDS_MAX {
            let Some(Resolution::FoldedInto { incident } | Resolution::MergedInto { incident }) = resolution else {
                break;
            };
            let cause = self.incident(incident)?;
            (last, resolution) = (Some(cause), cause.resolution.as_ref());
        }
        last.filter(|cause| cause.is_unresolved())
    }
}

/// What was sent to one receiver under one deduplication key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageKey {
    /// To whom.
    pub receiver: String,
    /// Under which key.
    pub dedup_key: String,
    /// Severity told last.
    pub severity: Severity,
    /// Reason told last.
    pub reason: Reason,
    /// A page under this key was tried, so that the receiver may know of it.
    pub attempted: bool,
    /// How often it had been escalated when it was told last.
    #[serde(default)]
    pub escalations: u64,
    /// Requested and without outcome.
    pub pending: BTreeSet<PageId>,
    /// An acknowledgement was requested.
    pub acknowledged: bool,
    /// A resolve was requested, or is not needed.
    pub settled: bool,
}

/// How a page ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PageOutcome {
    /// Accepted.
    Delivered,
    /// Given up.
    Failed {
        /// Why.
        error: String,
    },
    /// Not needed any more and never tried.
    Cancelled {
        /// Why.
        why: String,
    },
}

/// A page and how it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRecord {
    /// Which.
    pub id: PageId,
    /// About which incident.
    pub incident: IncidentKey,
    /// What.
    pub page: Page,
    /// It may have reached the receiver.
    pub attempted: bool,
    /// When it was tried first; none of what an older version wrote, either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempted_at: Option<Timestamp>,
    /// None while pending.
    pub outcome: Option<PageOutcome>,
}

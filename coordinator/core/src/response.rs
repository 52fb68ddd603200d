//! What people do about an incident, and by when: severity set by hand, commander, acknowledgement in time or escalation,
//! and under which key its pages go on when incidents merge.

use crate::entry::IncidentKey;
use crate::policy::Policy;
use crate::state::Incident;
use crate::working_days::later;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use muster_common::units::human_duration;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::time::Duration;

/// Times that one incident is told again because nobody acknowledged it: whoever has not come after so many is not going
/// to. What is beyond is in the timeline and in the lists.
pub const ESCALATIONS_MAX: u64 = 10;

/// How people stand to an incident.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Response {
    /// Who leads the response.
    pub commander: Option<String>,
    /// The severity that a person set last.
    pub by_hand: Option<ByHand>,
    /// The severity that a person asked for; the rules answer it.
    pub wish: Option<SeverityWish>,
    /// Index of the silence that was told to hold it back.
    pub silenced_by: Option<u64>,
    /// The silence that held it back and is over, in words: the next page tells of it.
    pub unsilenced: Option<String>,
    /// When the first page under the key in use was requested: acknowledgement and escalation count from here.
    pub paged_at: Option<Timestamp>,
    /// When it is told again, unless somebody acknowledges it; its timer runs.
    pub escalate_at: Option<Timestamp>,
    /// That moment has come.
    pub escalation_due: bool,
    /// How often nobody acknowledged it in time.
    pub escalations: u64,
    /// Facts that its timeline does not hold any more.
    pub facts_dropped: u64,
    /// Its pages go on under the key of an older incident that merged into it.
    pub adopted: Option<Adopted>,
    /// How many keys it had been paged under before.
    pub adoptions: u64,
}

/// A severity set by a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByHand {
    /// Who.
    pub by: String,
    /// What the rules made of it at that moment: they raise it only beyond this.
    pub assessed: Severity,
}

/// A severity asked for by a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeverityWish {
    /// Who.
    pub by: String,
    /// To what.
    pub severity: Severity,
    /// Why.
    pub note: String,
}

/// The incident whose page goes on as that of another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// Fleet of its keys.
    pub fleet: String,
    /// Identity of its keys.
    pub key: IncidentKey,
    /// For people.
    pub number: String,
    /// When it was opened: of two the older keeps its page.
    pub opened: Timestamp,
}

/// The deduplication key: equal on every coordinator that knows the same incident.
pub fn dedup_key(fleet: &str, cause: &str, generation: u64, repages: u64) -> String {
    let mut hash = Sha256::new();
    for part in [fleet, cause] {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.update(generation.to_be_bytes());
    hash.update(repages.to_be_bytes());
    let digit = |half: u8| char::from(if half < 10 { b'0' + half } else { b'a' + half - 10 });
    hash.finalize().iter().take(20).flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

impl Incident {
    /// Under which key it is paged from now on: its own, or that of the oldest incident that merged into it.
    pub fn dedup_key(&self) -> String {
        let (fleet, key) = match &self.response.adopted {
            Some(adopted) => (&adopted.fleet, &adopted.key),
            None => (&self.fleet, &self.key),
        };
        dedup_key(fleet, &key.cause, key.generation, self.repages)
    }

    /// Whose key that is, and since when there is something under it.
    pub(crate) fn key_holder(&self) -> Adopted {
        self.response.adopted.clone().unwrap_or_else(|| Adopted {
            fleet: self.fleet.clone(),
            key: self.key.clone(),
            number: self.number.clone(),
            opened: self.opened,
        })
    }

    /// A rule raises it beyond this: what a person raised is not raised by less, and what a person lowered stays until
    /// it is worse than at that moment.
    pub(crate) fn raised_beyond(&self) -> Severity {
        self.response.by_hand.as_ref().map_or(self.severity, |hand| hand.assessed.max(self.severity))
    }
}

/// When an incident of this severity, paged first at `paged_at` and told again `escalations` times, is told again; none
/// when it never is.
pub fn escalates_at(
    policy: &Policy,
    severity: Severity,
    paged_at: Timestamp,
    escalations: u64,
    now: Timestamp,
) -> Option<Timestamp> {
    let after = *policy.escalation.get(severity);
    if after.is_zero() || escalations >= ESCALATIONS_MAX || severity < policy.page_from {
        return None;
    }
    // Of those that follow each counts from the one before.
    Some(later(if escalations == 0 { paged_at } else { now }, after, &policy.working_days))
}

/// Whether a line of what to do is [`asks`]: it counts for the page alone.
pub(crate) fn is_ask(step: &str) -> bool {
    step.starts_with("acknowledge ") && step.contains(": musterctl incidents ack ")
}

/// What a page asks for: by when to acknowledge, and what happens otherwise.
pub fn asks(policy: &Policy, incident: &Incident, escalates_itself: bool, now: Timestamp) -> Option<String> {
    if incident.acknowledged.is_some() {
        return None;
    }
    let within = *policy.response.get(incident.severity);
    let response = &incident.response;
    let paged_at = response.paged_at.unwrap_or(now);
    // The moment as well as the length: a page may be read long after it was sent.
    let due = later(paged_at, within, &policy.working_days);
    let on = if due == paged_at + within { "" } else { " of working days" };
    let when = match () {
        () if within.is_zero() => "at once".to_owned(),
        () if due < now => format!("now, it was expected by {}", due.to_utc_minute()),
        () => format!("within {}{on}, by {}", human_duration(within), due.to_utc_minute()),
    };
    // The first of a round of pages begins the time; it is told what will be.
    let first = || escalates_at(policy, incident.severity, paged_at, response.escalations, now);
    let otherwise = match (escalates_itself, response.escalate_at.or_else(first)) {
        (true, _) => "; whoever calls you escalates by their own rules".to_owned(),
        (false, Some(at)) => format!("; otherwise it is told again at {}", at.to_utc_minute()),
        (false, None) => String::new(),
    };
    Some(format!("acknowledge {when}: musterctl incidents ack {}{otherwise}", incident.number))
}

/// Why an incident is told again.
pub fn unanswered(policy: &Policy, incident: &Incident, now: Timestamp) -> String {
    let waited: Duration = now.since(incident.response.paged_at.unwrap_or(incident.opened));
    let expected = *policy.response.get(incident.severity);
    format!("nobody acknowledged it for {}, expected within {}", human_duration(waited), human_duration(expected))
}

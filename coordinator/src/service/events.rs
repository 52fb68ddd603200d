//! Journal entries for people: name, agent, incident and one sentence, taken from the entry's own JSON.

use crate::store::StoredEntry;
use muster_common::finding::{Finding, FindingEvent};
use muster_common::time::Timestamp;
use muster_coordinator_core::entry::{Entry, EntryBody, Fact, IncidentKey, TimerKey};
use muster_coordinator_core::page::PageId;
use muster_coordinator_core::state::{Incident, State};
use muster_coordinator_core::{explain, freeze, silence};
use muster_proto::convert::timestamp_to_wire;
use muster_proto::v1;
use serde_json::Value;

/// Fields that make a sentence, best first.
const SENTENCES: [&str; 7] = ["title", "why", "summary", "message", "reason", "text", "error"];

/// The wire form of an entry; `None` when it does not decode, which the store would have refused.
pub(super) fn event(state: &State, stored: &StoredEntry) -> Option<v1::JournalEvent> {
    let entry = stored.decode().ok()?;
    let json: Value = serde_json::from_slice(&stored.body).ok()?;
    let kind = match &entry.body {
        EntryBody::Fact(_) => "fact",
        EntryBody::Deadline(_) => "deadline",
        EntryBody::Conclusion(_) => "conclusion",
    };
    let (name, inner) = named(json.get(kind)?);
    let incident = incident_of(state, &entry).and_then(|key| state.incident(&key));
    let incident = incident.or_else(|| told_of(state, &entry));
    Some(v1::JournalEvent {
        index: entry.index,
        at: Some(timestamp_to_wire(entry.at)),
        kind: kind.to_owned(),
        agent: inner.get("agent").and_then(Value::as_str).unwrap_or_default().to_owned(),
        incident: incident.map(|incident| incident.number.clone()).unwrap_or_default(),
        summary: told(state, &entry).or_else(|| sentence(inner)).unwrap_or_else(|| name.replace('_', " ")),
        name,
        body_json: String::from_utf8_lossy(&stored.body).into_owned(),
        trace_id: entry.trace.to_string(),
    })
}

/// Serde writes a variant as its name, or as an object with its name as the only key.
fn named(value: &Value) -> (String, &Value) {
    match value {
        Value::Object(map) => map.iter().next().map_or((String::new(), value), |(name, inner)| (name.clone(), inner)),
        other => (other.as_str().unwrap_or_default().to_owned(), other),
    }
}

/// Entries whose fields make no sentence by themselves.
fn told(state: &State, entry: &Entry) -> Option<String> {
    let page = |id: &PageId| {
        let record = state.page(*id)?;
        Some((format!("page {} ({})", id.0, record.page.action.as_str()), &record.page.receiver))
    };
    match &entry.body {
        EntryBody::Fact(Fact::PageAttempted { page: id }) => {
            page(id).map(|(page, to)| format!("{page} is sent to {to}"))
        }
        EntryBody::Fact(Fact::PageDelivered { page: id }) => {
            page(id).map(|(page, by)| format!("{page} accepted by {by}"))
        }
        EntryBody::Fact(Fact::PageFailed { page: id, error }) => {
            page(id).map(|(page, to)| format!("{page} to {to} given up: {error}"))
        }
        EntryBody::Fact(Fact::Operator { by, action, .. }) => Some(action.told(by)),
        EntryBody::Deadline(TimerKey::RehearOver) => Some("the time to be heard again is over".to_owned()),
        EntryBody::Deadline(TimerKey::HoldOver { cause, .. }) => Some(format!("the hold of {cause} is over")),
        EntryBody::Deadline(TimerKey::StabilityOver { cause, .. }) => {
            Some(format!("{cause} has been well for long enough"))
        }
        EntryBody::Deadline(TimerKey::EscalationDue { cause, .. }) => {
            Some(format!("nobody acknowledged {cause} in time"))
        }
        EntryBody::Fact(Fact::FreezeSet { by, reason, expires, .. }) => {
            let until = expires.map(|until| format!(" until {}", until.to_utc_minute())).unwrap_or_default();
            Some(format!("{} by {by}{until}: {reason}", freeze::id(entry.index)))
        }
        EntryBody::Fact(Fact::FreezeLifted { by, index }) => Some(format!("{} lifted by {by}", freeze::id(*index))),
        EntryBody::Fact(Fact::SilenceSet { by, kind, reason, starts, ends, .. }) => {
            let (kind, id) = (kind.as_str(), silence::id(entry.index));
            let (from, until) = (starts.to_utc_minute(), ends.to_utc_minute());
            Some(format!("{kind} {id} by {by} from {from} until {until}: {reason}"))
        }
        EntryBody::Fact(Fact::SilenceExpired { by, index }) => Some(format!("{} ended by {by}", silence::id(*index))),
        EntryBody::Deadline(TimerKey::SilenceTurn { index }) => Some(silence::turned(state, *index, entry.at)),
        EntryBody::Deadline(TimerKey::SilenceEnds { index }) => Some(silence::ended_soon(state, *index, entry.at)),
        EntryBody::Deadline(TimerKey::FreezeOver { index }) => Some(format!("{} is over", freeze::id(*index))),
        _ => None,
    }
}

fn sentence(inner: &Value) -> Option<String> {
    if let Some(event) = inner.get("event") {
        let (change, finding) = named(event);
        return Some(format!("{change}: {}", finding.get("summary")?.as_str()?));
    }
    SENTENCES.iter().find_map(|key| inner.get(key)?.as_str()).map(str::to_owned)
}

/// The incident an entry is about.
pub(super) fn incident_of(state: &State, entry: &Entry) -> Option<IncidentKey> {
    use muster_coordinator_core::entry::Conclusion as C;
    let page = |id| state.page(id).map(|record| record.incident.clone());
    match &entry.body {
        EntryBody::Fact(Fact::Operator { cause, generation, .. }) => {
            Some(IncidentKey { cause: cause.clone(), generation: *generation })
        }
        EntryBody::Fact(
            Fact::PageAttempted { page: id } | Fact::PageDelivered { page: id } | Fact::PageFailed { page: id, .. },
        ) => page(*id),
        EntryBody::Deadline(
            TimerKey::HoldOver { cause, generation }
            | TimerKey::StabilityOver { cause, generation }
            | TimerKey::EscalationDue { cause, generation }
            | TimerKey::SecondOpinionDue { cause, generation },
        ) => Some(IncidentKey { cause: cause.clone(), generation: *generation }),
        EntryBody::Conclusion(conclusion) => match conclusion {
            C::IncidentOpened { incident, .. }
            | C::IncidentJoined { incident, .. }
            | C::IncidentChanged { incident, .. }
            | C::IncidentRecovering { incident, .. }
            | C::IncidentRelapsed { incident, .. }
            | C::IncidentResolved { incident, .. }
            | C::PageRequested { incident, .. }
            | C::SeveritySet { incident, .. }
            | C::IncidentEscalated { incident, .. }
            | C::IncidentSilenced { incident, .. }
            | C::SecondOpinionWanted { incident, .. }
            | C::NotPaged { incident, .. } => Some(incident.clone()),
            C::PageCancelled { page: id, .. } => page(*id),
        },
        _ => None,
    }
}

/// The incident that tells of what a host told, whatever its own cause came to.
fn told_of<'a>(state: &'a State, entry: &Entry) -> Option<&'a Incident> {
    let EntryBody::Fact(Fact::FindingReceived { agent, event, .. }) = &entry.body else { return None };
    match event {
        FindingEvent::Opened(finding) | FindingEvent::Updated(finding) | FindingEvent::Occurred(finding) => {
            explain::incident_of(state, agent, finding, entry.at)
        }
        FindingEvent::Cleared { key, summary, .. } => {
            explain::incident_of(state, agent, &Finding::new(key.clone(), summary), entry.at)
        }
    }
}

/// An optional point in time on the wire.
pub(super) fn maybe(time: Option<Timestamp>) -> Option<prost_types::Timestamp> {
    time.map(timestamp_to_wire)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::JournalHash;
    use muster_coordinator_core::entry::OperatorAction;

    #[test]
    fn what_a_person_did_is_summed_up_by_what_was_done() {
        let summary = |action| {
            let fact = Fact::Operator { by: "ann".to_owned(), cause: "host/a/agent".to_owned(), generation: 1, action };
            let entry = Entry { index: 7, at: Timestamp::from_unix_ms(1), trace: 7, body: EntryBody::Fact(fact) };
            let stored = StoredEntry { index: 7, hash: JournalHash::ZERO, body: serde_json::to_vec(&entry).unwrap() };
            event(&State::genesis(), &stored).unwrap().summary
        };
        let commander = |name: &str| OperatorAction::SetCommander { commander: name.to_owned() };
        assert_eq!(summary(commander("bob")), "ann named bob to lead the response");
        assert_eq!(summary(commander("")), "ann took the command back: nobody leads the response");
        assert_eq!(summary(OperatorAction::Acknowledge { note: String::new() }), "acknowledged by ann");
        assert_eq!(summary(OperatorAction::Note { text: "look".to_owned() }), "note by ann: look");
    }
}

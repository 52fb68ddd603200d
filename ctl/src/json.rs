//! The API's messages as plain JSON: field names as in the `.proto` files, enums as lower-case words without their
//! prefix, times as RFC 3339, durations in seconds, unset messages as null.

use crate::render::to_jiff;
use muster_proto::v1;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// A severity's word; empty when unspecified.
pub(crate) fn severity(value: i32) -> &'static str {
    match v1::Severity::try_from(value) {
        Ok(v1::Severity::Sev0) => "sev0",
        Ok(v1::Severity::Sev1) => "sev1",
        Ok(v1::Severity::Sev2) => "sev2",
        Ok(v1::Severity::Sev3) => "sev3",
        Ok(v1::Severity::Sev4) => "sev4",
        Ok(v1::Severity::Unspecified) | Err(_) => "",
    }
}

/// A grade's word; empty when unspecified.
pub(crate) fn grade(value: i32) -> &'static str {
    match v1::Grade::try_from(value) {
        Ok(v1::Grade::Possible) => "possible",
        Ok(v1::Grade::Likely) => "likely",
        Ok(v1::Grade::Confirmed) => "confirmed",
        Ok(v1::Grade::Unspecified) | Err(_) => "",
    }
}

/// An agent state's word.
pub(crate) fn agent_state(value: i32) -> &'static str {
    match v1::AgentState::try_from(value) {
        Ok(v1::AgentState::Live) => "live",
        Ok(v1::AgentState::Stale) => "stale",
        Ok(v1::AgentState::Stopped) => "stopped",
        Ok(v1::AgentState::NotYetReheard) => "not_yet_reheard",
        Ok(v1::AgentState::Unspecified) | Err(_) => "unknown",
    }
}

/// An incident state's word.
pub(crate) fn incident_state(value: i32) -> &'static str {
    match v1::IncidentState::try_from(value) {
        Ok(v1::IncidentState::Open) => "open",
        Ok(v1::IncidentState::Acknowledged) => "acknowledged",
        Ok(v1::IncidentState::Recovering) => "recovering",
        Ok(v1::IncidentState::Resolved) => "resolved",
        Ok(v1::IncidentState::Unspecified) | Err(_) => "unknown",
    }
}

/// Whether somebody was told, as a word.
pub(crate) fn paged_state(value: i32) -> &'static str {
    match v1::PagedState::try_from(value) {
        Ok(v1::PagedState::No) => "no",
        Ok(v1::PagedState::Pending) => "pending",
        Ok(v1::PagedState::Yes) => "yes",
        Ok(v1::PagedState::Failed) => "failed",
        Ok(v1::PagedState::Unspecified) | Err(_) => "unknown",
    }
}

/// A coordinator role's word.
pub(crate) fn role(value: i32) -> &'static str {
    match v1::CoordinatorRole::try_from(value) {
        Ok(v1::CoordinatorRole::Primary) => "primary",
        Ok(v1::CoordinatorRole::Standby) => "standby",
        Ok(v1::CoordinatorRole::Fenced) => "fenced",
        Ok(v1::CoordinatorRole::Unspecified) | Err(_) => "unknown",
    }
}

fn time(at: &Option<prost_types::Timestamp>) -> Value {
    at.as_ref().and_then(to_jiff).map_or(Value::Null, |at| json!(at.to_string()))
}

fn seconds(length: &Option<prost_types::Duration>) -> Value {
    // Whole milliseconds are exact in a double over any length of time that occurs here.
    length.as_ref().map_or(Value::Null, |length| {
        let ms = length.seconds.saturating_mul(1000).saturating_add(i64::from(length.nanos) / 1_000_000);
        let seconds: f64 = f64::from(i32::try_from(ms / 1000).unwrap_or(i32::MAX));
        json!(seconds + f64::from(i32::try_from(ms % 1000).unwrap_or(0)) / 1000.0)
    })
}

fn labels(labels: &HashMap<String, String>) -> Value {
    let mut pairs: Vec<_> = labels.iter().collect();
    pairs.sort();
    Value::Object(pairs.into_iter().map(|(key, value)| (key.clone(), json!(value))).collect())
}

fn evidence_value(value: &v1::EvidenceValue) -> Value {
    use v1::evidence_value::Value as Kind;
    match &value.value {
        None => Value::Null,
        Some(Kind::Text(text)) => json!(text),
        Some(Kind::Count(number) | Kind::Bytes(number) | Kind::Millis(number)) => json!(number),
        Some(Kind::Integer(number)) => json!(number),
        Some(Kind::TimeUnixMs(ms)) => json!(muster_common::time::Timestamp::from_unix_ms(*ms).to_string()),
        Some(Kind::Flag(flag)) => json!(flag),
    }
}

/// Evidence as an object of plain values; the keys carry the units.
pub(crate) fn evidence(evidence: &HashMap<String, v1::EvidenceValue>) -> Value {
    let mut keys: Vec<_> = evidence.iter().collect();
    keys.sort_by_key(|(key, _)| *key);
    Value::Object(keys.into_iter().map(|(key, value)| (key.clone(), evidence_value(value))).collect())
}

/// An epoch.
pub(crate) fn epoch(epoch: &Option<v1::Epoch>) -> Value {
    epoch
        .as_ref()
        .map_or(Value::Null, |epoch| json!({ "number": epoch.number, "coordinator_id": epoch.coordinator_id }))
}

/// `GetFleetStatusResponse`.
pub(crate) fn fleet_status(status: &v1::GetFleetStatusResponse) -> Value {
    json!({
        "fleet": status.fleet,
        "coordinator_id": status.coordinator_id,
        "role": status.role,
        "epoch": epoch(&status.epoch),
        "version": status.version,
        "started": time(&status.started),
        "now": time(&status.now),
        "agents_live": status.agents_live,
        "agents_stale": status.agents_stale,
        "agents_stopped": status.agents_stopped,
        "agents_not_yet_reheard": status.agents_not_yet_reheard,
        "open_findings": status.open_findings,
        "open_incidents": status.open_incidents,
        "unacknowledged_incidents": status.unacknowledged_incidents,
        "pages_pending": status.pages_pending,
        "pages_failed": status.pages_failed,
        "journal_index": status.journal_index,
        "rehear_until": time(&status.rehear_until),
        "standbys": status.standbys,
        "silences_active": status.silences_active,
        "silences_ending": status.silences_ending,
    })
}

/// `Agent`.
pub(crate) fn agent(agent: &v1::Agent) -> Value {
    json!({
        "id": agent.id,
        "state": agent_state(agent.state),
        "state_reason": agent.state_reason,
        "host_name": agent.host_name,
        "agent_version": agent.agent_version,
        "os_version": agent.os_version,
        "kernel_version": agent.kernel_version,
        "boot_id": agent.boot_id,
        "labels": labels(&agent.labels),
        "last_heard": time(&agent.last_heard),
        "first_seen": time(&agent.first_seen),
        "connected": agent.connected,
        "peer_address": agent.peer_address,
        "open_findings": agent.open_findings,
        "worst_severity": severity(agent.worst_severity),
        "stored_sequence": agent.stored_sequence,
        "lost_entries": agent.lost_entries,
        "memory_available_bytes": agent.memory_available_bytes,
        "clock_skew_seconds": seconds(&agent.clock_skew),
    })
}

/// `PingAgentResponse`.
pub(crate) fn ping(id: &str, answer: &v1::PingAgentResponse) -> Value {
    json!({ "id": id, "round_trip_seconds": seconds(&answer.round_trip) })
}

/// `WatchFindingsResponse`.
pub(crate) fn finding_change(change: &v1::WatchFindingsResponse) -> Value {
    let finding = change.finding.as_ref().map_or(Value::Null, finding);
    json!({ "change": change.change, "by_resync": change.by_resync, "finding": finding })
}

/// `Finding`.
pub(crate) fn finding(finding: &v1::Finding) -> Value {
    let mut object = Map::new();
    let mut set = |key: &str, value: Value| object.insert(key.to_owned(), value);
    set("id", json!(finding.id));
    set("agent", json!(finding.agent));
    set("kind", json!(finding.kind));
    if let Some(detail) = &finding.detail {
        for (key, value) in detail_fields(detail) {
            set(key, value);
        }
    }
    set("observed", time(&finding.observed));
    set("received", time(&finding.received));
    set("observed_estimated", json!(finding.observed_estimated));
    set("incident", json!(finding.incident));
    set("trace_id", json!(finding.trace_id));
    Value::Object(object)
}

fn detail_fields(detail: &v1::FindingDetail) -> [(&'static str, Value); 9] {
    let subject = detail.subject.clone().unwrap_or_default();
    [
        ("service", json!(subject.service)),
        ("probe", json!(subject.probe)),
        ("subject", json!(subject.subject)),
        ("reason", json!(detail.reason)),
        ("severity", json!(severity(detail.severity))),
        ("grade", json!(grade(detail.grade))),
        ("summary", json!(detail.summary)),
        ("evidence", evidence(&detail.evidence)),
        ("next_steps", json!(detail.next_steps)),
    ]
}

/// `DiagnoseAgentResponse`.
pub(crate) fn diagnosis(id: &str, answer: &v1::DiagnoseAgentResponse) -> Value {
    let diagnosis = answer.diagnosis.clone().unwrap_or_default();
    let finding = |detail: &v1::FindingDetail| {
        Value::Object(detail_fields(detail).into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    };
    let unknown = diagnosis.unknown.iter().map(|unknown| {
        let subject = unknown.subject.clone().unwrap_or_default();
        json!({ "service": subject.service, "probe": subject.probe, "subject": subject.subject, "why": unknown.why })
    });
    json!({
        "id": id,
        "judged": time(&diagnosis.judged),
        "round_trip_seconds": seconds(&answer.round_trip),
        "stories": diagnosis.stories,
        "findings": diagnosis.findings.iter().map(finding).collect::<Vec<_>>(),
        "findings_left_out": diagnosis.findings_left_out,
        "unknown": unknown.collect::<Vec<_>>(),
        "subjects_ok": diagnosis.subjects_ok,
    })
}

/// A silence's kind, as a word.
pub(crate) fn silence_kind(value: i32) -> &'static str {
    match v1::SilenceKind::try_from(value) {
        Ok(v1::SilenceKind::Maintenance) => "maintenance",
        Ok(v1::SilenceKind::Silence) => "silence",
        Ok(v1::SilenceKind::Unspecified) | Err(_) => "unknown",
    }
}

/// Where a silence stands, as a word.
pub(crate) fn silence_state(value: i32) -> &'static str {
    match v1::SilenceState::try_from(value) {
        Ok(v1::SilenceState::Pending) => "pending",
        Ok(v1::SilenceState::Active) => "active",
        Ok(v1::SilenceState::Expired) => "expired",
        Ok(v1::SilenceState::Unspecified) | Err(_) => "unknown",
    }
}

/// `Silence`.
pub(crate) fn silence(silence: &v1::Silence) -> Value {
    let matchers = silence.matchers.clone().unwrap_or_default();
    json!({
        "id": silence.id,
        "kind": silence_kind(silence.kind),
        "state": silence_state(silence.state),
        "matchers": {
            "agents": matchers.agents,
            "labels": labels(&matchers.labels),
            "services": matchers.services,
            "reasons": matchers.reasons,
            "causes": matchers.causes,
        },
        "reason": silence.reason,
        "created_by": silence.created_by,
        "create_time": time(&silence.create_time),
        "start_time": time(&silence.start_time),
        "end_time": time(&silence.end_time),
        "expired_by": silence.expired_by,
        "incidents": silence.incidents,
        "ends_soon": silence.ends_soon,
        "notes": silence.notes,
    })
}

/// `Receiver`.
pub(crate) fn receiver(receiver: &v1::Receiver) -> Value {
    json!({
        "name": receiver.name,
        "kind": receiver.kind,
        "target": receiver.target,
        "routes": receiver.routes,
        "fallback": receiver.fallback,
        "pages_pending": receiver.pages_pending,
        "pages_delivered": receiver.pages_delivered,
        "pages_failed": receiver.pages_failed,
        "last_delivered": time(&receiver.last_delivered),
        "last_error": receiver.last_error,
        "next_try": time(&receiver.next_try),
        "escalates_itself": receiver.escalates_itself,
        "dead_letters": receiver.dead_letters,
    })
}

/// `TestReceiverResponse`.
pub(crate) fn receiver_test(name: &str, answer: &v1::TestReceiverResponse) -> Value {
    json!({
        "name": name,
        "delivered": answer.delivered,
        "answer": answer.answer,
        "took_seconds": seconds(&answer.took),
    })
}

/// `DeadLetter`.
pub(crate) fn dead_letter(letter: &v1::DeadLetter) -> Value {
    json!({
        "page_id": letter.page_id,
        "receiver": letter.receiver,
        "incident": letter.incident,
        "action": letter.action,
        "severity": severity(letter.severity),
        "title": letter.title,
        "error": letter.error,
        "requested": time(&letter.requested),
        "failed": time(&letter.failed),
        "settled_because": letter.settled_because,
    })
}

/// What became of what a rule looked at, as a word.
pub(crate) fn rule_outcome(value: i32) -> &'static str {
    match v1::RuleOutcome::try_from(value) {
        Ok(v1::RuleOutcome::Paged) => "paged",
        Ok(v1::RuleOutcome::HeldBack) => "held_back",
        Ok(v1::RuleOutcome::BelowThreshold) => "below_threshold",
        Ok(v1::RuleOutcome::NothingSeen) => "nothing_seen",
        Ok(v1::RuleOutcome::Unspecified) | Err(_) => "unknown",
    }
}

/// `ExplainResponse`.
pub(crate) fn explanation(answer: &v1::ExplainResponse) -> Value {
    let figure =
        |figure: &v1::Figure| json!({ "name": figure.name, "value": figure.value, "threshold": figure.threshold });
    let rule = |rule: &v1::RuleExplanation| {
        json!({
            "rule": rule.rule,
            "about": rule.about,
            "outcome": rule_outcome(rule.outcome),
            "held_back_by": rule.held_back_by,
            "why": rule.why,
            "figures": rule.figures.iter().map(figure).collect::<Vec<_>>(),
            "grade": grade(rule.grade),
            "at": time(&rule.at),
            "journal_index": rule.journal_index,
            "incident": rule.incident,
        })
    };
    json!({
        "answer": answer.answer,
        "rules": answer.rules.iter().map(rule).collect::<Vec<_>>(),
        "unknown": answer.unknown,
    })
}

/// `JournalEvent`; its body as an object where it parses.
pub(crate) fn event(event: &v1::JournalEvent) -> Value {
    let body = serde_json::from_str(&event.body_json).unwrap_or_else(|_| json!(event.body_json));
    json!({
        "index": event.index,
        "at": time(&event.at),
        "kind": event.kind,
        "name": event.name,
        "agent": event.agent,
        "incident": event.incident,
        "summary": event.summary,
        "trace_id": event.trace_id,
        "body": body,
    })
}

/// `Incident`.
pub(crate) fn incident(incident: &v1::Incident) -> Value {
    let timeline = incident.timeline.iter().map(
        |item| json!({ "at": time(&item.at), "kind": item.kind, "text": item.text, "journal_index": item.journal_index }),
    );
    json!({
        "id": incident.id,
        "cause_key": incident.cause_key,
        "generation": incident.generation,
        "dedup_key": incident.dedup_key,
        "state": incident_state(incident.state),
        "severity": severity(incident.severity),
        "reason": incident.reason,
        "title": incident.title,
        "why": incident.why,
        "grade": grade(incident.grade),
        "opened": time(&incident.opened),
        "began": time(&incident.began),
        "resolved": time(&incident.resolved),
        "resolution": incident.resolution,
        "owner": incident.owner,
        "acknowledged": time(&incident.acknowledged),
        "agents": incident.agents,
        "services": incident.services,
        "findings": incident.findings,
        "findings_over": incident.findings_over,
        "next_steps": incident.next_steps,
        "paged": time(&incident.paged),
        "paged_state": paged_state(incident.paged_state),
        "pages_sent": incident.pages_sent,
        "pages_failed": incident.pages_failed,
        "folded_into": incident.folded_into,
        "not_paged_because": incident.not_paged_because,
        "waiting_for": incident.waiting_for,
        "commander": incident.commander,
        "silenced_by": incident.silenced_by,
        "escalate_time": time(&incident.escalate_time),
        "escalations": incident.escalations,
        "changes": incident.changes,
        "timeline": timeline.collect::<Vec<_>>(),
    })
}

/// `Freeze`.
pub(crate) fn freeze(freeze: &v1::Freeze) -> Value {
    let scope = freeze.scope.clone().unwrap_or_default();
    json!({
        "id": freeze.id,
        "agents": scope.agents,
        "labels": labels(&scope.labels),
        "reason": freeze.reason,
        "created_by": freeze.created_by,
        "create_time": time(&freeze.create_time),
        "expire_time": time(&freeze.expire_time),
    })
}

/// `GetFailoverStatusResponse`. The proof of the highest epoch is for machines that verify it and is left out.
pub(crate) fn failover_status(status: &v1::GetFailoverStatusResponse) -> Value {
    let highest = status.highest_epoch.as_ref().and_then(|proof| proof.epoch.clone());
    let standbys = status.standbys.iter().map(|standby| {
        json!({
            "coordinator_id": standby.coordinator_id,
            "journal_index": standby.journal_index,
            "last_heard": time(&standby.last_heard),
        })
    });
    json!({
        "role": role(status.role),
        "coordinator_id": status.coordinator_id,
        "epoch": epoch(&status.epoch),
        "highest_epoch": epoch(&highest),
        "journal_index": status.journal_index,
        "journal_hash": status.journal_hash,
        "follows": status.follows,
        "following": status.following,
        "primary_journal_index": status.primary_journal_index,
        "last_heard_primary": time(&status.last_heard_primary),
        "lag_seconds": seconds(&status.lag),
        "standbys": standbys.collect::<Vec<_>>(),
        "problems": status.problems,
    })
}

/// `PromoteResponse`, and whether the old primary attached (null: not looked for).
pub(crate) fn promotion(answer: &v1::PromoteResponse, old_primary_attached: Option<bool>) -> Value {
    json!({
        "epoch": epoch(&answer.epoch),
        "journal_index": answer.journal_index,
        "overridden": answer.overridden,
        "agents_known": answer.agents_known,
        "rehear_until": time(&answer.rehear_until),
        "open_incidents": answer.open_incidents,
        "pages_pending": answer.pages_pending,
        "old_primary_attached": old_primary_attached,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_plain() {
        let length = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        assert_eq!(seconds(&length(1, 250_000_000)), json!(1.25));
        assert_eq!(seconds(&length(0, -250_000_000)), json!(-0.25));
        assert_eq!(seconds(&None), Value::Null);
        assert_eq!(time(&Some(prost_types::Timestamp { seconds: 0, nanos: 0 })), json!("1970-01-01T00:00:00Z"));
        let agent = agent(&v1::Agent { id: "web-1".to_owned(), state: 2, worst_severity: 1, ..Default::default() });
        assert_eq!((agent["state"].as_str(), agent["worst_severity"].as_str()), (Some("stale"), Some("sev0")));
        assert_eq!(agent["last_heard"], Value::Null);
    }
}

//! `findings …`, `events …` and `trace`.

use super::{PAGE_SIZE, all_pages, counted, note_doubt, note_unknown};
use crate::connect::Channel;
use crate::error::CtlError;
use crate::json;
use crate::render::{Out, clean};
use muster_common::severity::Severity;
use muster_proto::convert::severity_to_wire;
use muster_proto::v1::finding_service_client::FindingServiceClient;
use muster_proto::v1::{
    Finding, GetTraceRequest, JournalEvent, ListEventsRequest, ListFindingsRequest, WatchFindingsRequest,
    WatchFindingsResponse,
};

/// What `findings list` was asked for.
#[derive(Debug)]
pub(super) struct Filter {
    pub(super) agent: Option<String>,
    pub(super) service: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) occurrences: bool,
}

pub(super) async fn list(channel: Channel, out: &mut Out, filter: Filter) -> Result<(), CtlError> {
    let client = FindingServiceClient::new(channel.clone());
    let findings = all_pages(usize::MAX, |page_token| {
        let mut client = client.clone();
        let request = ListFindingsRequest {
            page_size: PAGE_SIZE,
            page_token,
            agent: filter.agent.clone().unwrap_or_default(),
            service: filter.service.clone().unwrap_or_default(),
            reason: filter.reason.clone().unwrap_or_default(),
            min_severity: 0,
            include_occurrences: filter.occurrences,
        };
        async move {
            let answer = client.list_findings(request).await?.into_inner();
            note_doubt(&answer.note);
            Ok((answer.findings, answer.next_page_token))
        }
    })
    .await?;
    if findings.is_empty() {
        note_unknown(channel, &filter.agent).await;
    }
    if out.is_json() {
        let findings: Vec<_> = findings.iter().map(json::finding).collect();
        return Ok(out.json(&serde_json::json!({ "total_size": findings.len(), "findings": findings }))?);
    }
    if findings.is_empty() {
        return Ok(out.line("no open findings")?);
    }
    let rows = findings.iter().map(|finding| row(finding, out)).collect();
    out.table(&["sev", "agent", "service", "reason", "subject", "observed", "incident", "summary"], rows)?;
    Ok(out.line(&format!("\n{}", counted(findings.len(), "finding")))?)
}

/// One line for each change, until the coordinator or the reader ends it.
pub(super) async fn watch(
    channel: Channel,
    out: &mut Out,
    filter: Filter,
    min_severity: Option<Severity>,
) -> Result<(), CtlError> {
    let request = WatchFindingsRequest {
        agent: filter.agent.unwrap_or_default(),
        service: filter.service.unwrap_or_default(),
        reason: filter.reason.unwrap_or_default(),
        min_severity: min_severity.map(severity_to_wire).unwrap_or_default(),
    };
    let mut changes = FindingServiceClient::new(channel).watch_findings(request).await?.into_inner();
    while let Some(change) = changes.message().await? {
        if out.is_json() {
            out.json_line(&json::finding_change(&change))?;
        } else {
            out.now();
            let line = change_line(&change, out);
            out.line(&line)?;
        }
    }
    Err(CtlError::Ended)
}

/// `2026-11-21 03:04:05Z opened sev2 web-1 spl port_closed: nothing listens`.
pub(super) fn change_line(change: &WatchFindingsResponse, out: &Out) -> String {
    let finding = change.finding.clone().unwrap_or_default();
    let detail = finding.detail.unwrap_or_default();
    let subject = detail.subject.unwrap_or_default();
    let by_resync = if change.by_resync { " (by comparison)" } else { "" };
    let severity = match json::severity(detail.severity) {
        "" => "-",
        severity => severity,
    };
    format!(
        "{} {:7} {severity} {} {} {}: {}{by_resync}",
        out.moment(finding.received.as_ref()),
        clean(&change.change),
        clean(&finding.agent),
        clean(&subject.service),
        clean(&detail.reason),
        clean(&detail.summary),
    )
}

fn row(finding: &Finding, out: &Out) -> Vec<String> {
    let detail = finding.detail.clone().unwrap_or_default();
    let subject = detail.subject.unwrap_or_default();
    let about = if finding.observed_estimated { " (estimated)" } else { "" };
    vec![
        json::severity(detail.severity).to_owned(),
        clean(&finding.agent),
        clean(&subject.service),
        clean(&detail.reason),
        clean(&subject.subject),
        format!("{}{about}", out.when(finding.observed.as_ref())),
        clean(&finding.incident),
        clean(&detail.summary),
    ]
}

pub(super) async fn events(
    channel: Channel,
    out: &mut Out,
    limit: u32,
    agent: Option<String>,
    incident: Option<String>,
) -> Result<(), CtlError> {
    let client = FindingServiceClient::new(channel.clone());
    let limit_items = usize::try_from(limit).unwrap_or(usize::MAX);
    let events = all_pages(limit_items, |page_token| {
        let mut client = client.clone();
        let request = ListEventsRequest {
            page_size: i32::try_from(limit).unwrap_or(PAGE_SIZE).min(PAGE_SIZE),
            page_token,
            agent: agent.clone().unwrap_or_default(),
            incident: incident.clone().unwrap_or_default(),
        };
        async move {
            let answer = client.list_events(request).await?.into_inner();
            Ok((answer.events, answer.next_page_token))
        }
    })
    .await?;
    if events.is_empty() {
        note_unknown(channel, &agent).await;
    }
    print(out, &events)
}

pub(super) async fn trace(channel: Channel, out: &mut Out, id: String) -> Result<(), CtlError> {
    let client = FindingServiceClient::new(channel);
    let events = all_pages(usize::MAX, |page_token| {
        let mut client = client.clone();
        let request = GetTraceRequest { trace_id: id.clone(), page_size: PAGE_SIZE, page_token };
        async move {
            let answer = client.get_trace(request).await?.into_inner();
            Ok((answer.events, answer.next_page_token))
        }
    })
    .await?;
    print(out, &events)
}

fn print(out: &mut Out, events: &[JournalEvent]) -> Result<(), CtlError> {
    if out.is_json() {
        let events: Vec<_> = events.iter().map(json::event).collect();
        return Ok(out.json(&serde_json::json!({ "events": events }))?);
    }
    if events.is_empty() {
        return Ok(out.line("no events")?);
    }
    let row = |event: &JournalEvent| {
        vec![
            event.index.to_string(),
            out.when(event.at.as_ref()),
            clean(&event.kind),
            clean(&event.name),
            clean(&event.agent),
            clean(&event.incident),
            clean(&event.trace_id),
            clean(&event.summary),
        ]
    };
    let rows = events.iter().map(row).collect();
    Ok(out.table(&["entry", "at", "kind", "name", "agent", "incident", "trace", "summary"], rows)?)
}

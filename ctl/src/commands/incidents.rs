//! `incidents …`.

use super::{PAGE_SIZE, all_pages, counted, note_doubt, note_unknown};
use crate::connect::Channel;
use crate::error::CtlError;
use crate::json;
use crate::render::{Out, clean};
use muster_common::severity::Severity;
use muster_proto::convert::severity_to_wire;
use muster_proto::v1::incident_service_client::IncidentServiceClient;
use muster_proto::v1::{
    AcknowledgeIncidentRequest, AddNoteRequest, GetIncidentRequest, Incident, IncidentState, ListIncidentsRequest,
    ResolveIncidentRequest, SetCommanderRequest, SetSeverityRequest,
};

/// Incidents below a list of which it is told what they wait for.
const WAITS_MAX: usize = 20;

pub(super) async fn list(
    channel: Channel,
    out: &mut Out,
    all: bool,
    agent: Option<String>,
    service: Option<String>,
) -> Result<(), CtlError> {
    let client = IncidentServiceClient::new(channel.clone());
    let incidents = all_pages(usize::MAX, |page_token| {
        let mut client = client.clone();
        let request = ListIncidentsRequest {
            page_size: PAGE_SIZE,
            page_token,
            state: IncidentState::Unspecified.into(),
            include_resolved: all,
            agent: agent.clone().unwrap_or_default(),
            service: service.clone().unwrap_or_default(),
        };
        async move {
            let answer = client.list_incidents(request).await?.into_inner();
            note_doubt(&answer.note);
            Ok((answer.incidents, answer.next_page_token))
        }
    })
    .await?;
    if incidents.is_empty() {
        note_unknown(channel, &agent).await;
    }
    if out.is_json() {
        let incidents: Vec<_> = incidents.iter().map(json::incident).collect();
        return Ok(out.json(&serde_json::json!({ "total_size": incidents.len(), "incidents": incidents }))?);
    }
    if incidents.is_empty() {
        return Ok(out.line(if all { "no incidents" } else { "no open incidents" })?);
    }
    let row = |incident: &Incident| {
        vec![
            clean(&incident.id),
            json::severity(incident.severity).to_owned(),
            json::incident_state(incident.state).to_owned(),
            owner(incident),
            out.when(incident.opened.as_ref()),
            clean(&incident.reason),
            paged_word(incident),
            clean(&incident.title),
        ]
    };
    let rows = incidents.iter().map(row).collect();
    out.table(&["incident", "sev", "state", "owner", "opened", "reason", "paged", "title"], rows)?;
    waits(out, &incidents)?;
    Ok(out.line(&format!("\n{}", counted(incidents.len(), "incident")))?)
}

/// What those wait for that look as if they should be over.
fn waits(out: &mut Out, incidents: &[Incident]) -> std::io::Result<()> {
    let waiting: Vec<&Incident> = incidents.iter().filter(|incident| !incident.waiting_for.is_empty()).collect();
    let more = waiting.len().saturating_sub(WAITS_MAX);
    if !waiting.is_empty() {
        out.line("")?;
    }
    for incident in waiting.iter().take(WAITS_MAX) {
        out.line(&format!("{}: {}", clean(&incident.id), clean(&incident.waiting_for)))?;
    }
    if more == 0 { Ok(()) } else { out.line(&format!("and {more} more that wait: musterctl incidents show ID")) }
}

/// Whose it is now; whose it was until it got much worse.
pub(super) fn owner(incident: &Incident) -> String {
    match incident.owner.as_str() {
        "" => "nobody".to_owned(),
        owner if incident.acknowledged.is_none() => format!("was {}", clean(owner)),
        owner => clean(owner),
    }
}

/// In one word, for a column.
fn paged_word(incident: &Incident) -> String {
    let why = incident.not_paged_because.as_str();
    let known = [
        ("on hold", "on hold"),
        ("held back by maintenance", "maintenance"),
        ("held back", "silenced"),
        ("sev", "below"),
        ("no receiver", "no receiver"),
    ];
    match json::paged_state(incident.paged_state) {
        "no" => known.iter().find(|(start, _)| why.starts_with(start)).map_or("no", |(_, word)| word).to_owned(),
        word => word.to_owned(),
    }
}

fn paged(incident: &Incident) -> String {
    match (json::paged_state(incident.paged_state), incident.not_paged_because.as_str()) {
        ("no", why) if !why.is_empty() => format!("no: {}", clean(why)),
        (word, _) => word.to_owned(),
    }
}

/// A page that is older than the incident is that of another one, which goes on for it.
fn taken_over(incident: &Incident) -> &'static str {
    let at = |time: &Option<prost_types::Timestamp>| time.as_ref().map(|time| (time.seconds, time.nanos));
    match (at(&incident.paged), at(&incident.opened)) {
        (Some(paged), Some(opened)) if paged < opened => " (the page of an older incident, which goes on for this one)",
        _ => "",
    }
}

pub(super) async fn show(channel: Channel, out: &mut Out, id: String) -> Result<(), CtlError> {
    let incident = IncidentServiceClient::new(channel).get_incident(GetIncidentRequest { id }).await?.into_inner();
    if out.is_json() {
        return Ok(out.json(&json::incident(&incident))?);
    }
    let heading = format!("{} {} {}", clean(&incident.id), json::severity(incident.severity), clean(&incident.title));
    out.line(&heading)?;
    out.line("")?;
    let began = if incident.began == incident.opened { String::new() } else { out.time(incident.began.as_ref()) };
    let paged = match incident.paged.as_ref() {
        Some(at) => {
            let (at, over) = (out.time(Some(at)), taken_over(&incident));
            format!("{at}{over}, {} in all", counted(count(incident.pages_sent), "page"))
        }
        None => paged(&incident),
    };
    let given_up = match incident.pages_failed {
        0 => String::new(),
        n => format!("; {} given up, see the timeline", counted(count(n), "page")),
    };
    let acknowledged = match incident.owner.as_str() {
        "" => "by nobody".to_owned(),
        owner if incident.acknowledged.is_none() => {
            format!("not any more: it got much worse since {} did", clean(owner))
        }
        owner => format!("by {} {}", clean(owner), out.time(incident.acknowledged.as_ref())),
    };
    out.fields(&[
        ("state", json::incident_state(incident.state).to_owned()),
        ("waits", clean(&incident.waiting_for)),
        ("reason", format!("{} ({})", clean(&incident.reason), json::grade(incident.grade))),
        ("why", clean(&incident.why)),
        ("began", began),
        ("opened", out.time(incident.opened.as_ref())),
        ("resolved", out.time(incident.resolved.as_ref())),
        ("resolution", clean(&incident.resolution)),
        ("acknowledged", acknowledged),
        ("paged", format!("{paged}{given_up}")),
        ("folded into", clean(&incident.folded_into)),
        ("agents", clean(&incident.agents.join(", "))),
        ("services", clean(&incident.services.join(", "))),
        ("commander", clean(&incident.commander)),
        ("silenced by", clean(&incident.silenced_by)),
        ("escalates", escalates(&incident, out)),
        ("cause", clean(&incident.cause_key)),
        ("runbook", format!("musterctl runbook {}", clean(&incident.reason))),
        ("more", format!("musterctl why {}", clean(&incident.id))),
    ])?;
    bullets(out, "What changed shortly before", &incident.changes)?;
    bullets(out, "What to do", &incident.next_steps)?;
    let marked = |finding: &String| match incident.findings_over.contains(finding) {
        true => format!("{finding} (over)"),
        false => finding.clone(),
    };
    bullets(out, "Findings", &incident.findings.iter().map(marked).collect::<Vec<_>>())?;
    if !incident.timeline.is_empty() {
        out.line("\nTimeline")?;
        let rows = incident.timeline.iter();
        let rows = rows.map(|item| vec![out.time(item.at.as_ref()), clean(&item.kind), clean(&item.text)]).collect();
        out.table(&["at", "kind", "what"], rows)?;
    }
    Ok(())
}

/// When somebody else is told, and how often that has happened.
fn escalates(incident: &Incident, out: &Out) -> String {
    let before = match incident.escalations {
        0 => String::new(),
        1 => "once already".to_owned(),
        n => format!("{n} times already"),
    };
    match (out.time(incident.escalate_time.as_ref()), before) {
        (at, before) if before.is_empty() => at,
        (at, before) if at.is_empty() => before,
        (at, before) => format!("{at}, {before}"),
    }
}

fn bullets(out: &mut Out, heading: &str, lines: &[String]) -> std::io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    out.line(&format!("\n{heading}"))?;
    lines.iter().try_for_each(|line| out.line(&format!("  - {}", clean(line))))
}

fn count(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

pub(super) async fn acknowledge(channel: Channel, out: &mut Out, id: String, note: String) -> Result<(), CtlError> {
    let request = AcknowledgeIncidentRequest { id, note };
    let incident = IncidentServiceClient::new(channel).acknowledge_incident(request).await?.into_inner();
    done(out, &incident, &format!("acknowledged by {}", clean(&incident.owner)))
}

pub(super) async fn resolve(channel: Channel, out: &mut Out, id: String, summary: String) -> Result<(), CtlError> {
    let request = ResolveIncidentRequest { id, summary };
    let incident = IncidentServiceClient::new(channel).resolve_incident(request).await?.into_inner();
    done(out, &incident, "resolved")
}

pub(super) async fn note(channel: Channel, out: &mut Out, id: String, text: String) -> Result<(), CtlError> {
    let incident = IncidentServiceClient::new(channel).add_note(AddNoteRequest { id, text }).await?.into_inner();
    done(out, &incident, "noted")
}

pub(super) async fn severity(
    channel: Channel,
    out: &mut Out,
    id: String,
    severity: Severity,
    note: String,
) -> Result<(), CtlError> {
    let request = SetSeverityRequest { id, severity: severity_to_wire(severity), note };
    let incident = IncidentServiceClient::new(channel).set_severity(request).await?.into_inner();
    done(out, &incident, &format!("is {} now", json::severity(incident.severity)))
}

pub(super) async fn commander(channel: Channel, out: &mut Out, id: String, commander: String) -> Result<(), CtlError> {
    let request = SetCommanderRequest { id, commander };
    let incident = IncidentServiceClient::new(channel).set_commander(request).await?.into_inner();
    let words = match clean(&incident.commander) {
        name if name.is_empty() => "has no commander any more".to_owned(),
        name => format!("is led by {name}"),
    };
    done(out, &incident, &words)
}

fn done(out: &mut Out, incident: &Incident, what: &str) -> Result<(), CtlError> {
    if out.is_json() {
        return Ok(out.json(&json::incident(incident))?);
    }
    Ok(out.line(&format!("{} {what}: {}", clean(&incident.id), clean(&incident.title)))?)
}

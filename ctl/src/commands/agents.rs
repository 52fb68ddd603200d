//! `agents diagnose` and `agents archive`.

use super::{counted, note};
use crate::connect::Channel;
use crate::error::CtlError;
use crate::json;
use crate::render::{Out, clean, duration};
use muster_proto::v1::fleet_service_client::FleetServiceClient;
use muster_proto::v1::{ArchiveAgentRequest, DiagnoseAgentRequest, Diagnosis, FindingDetail};

pub(super) async fn diagnose(
    channel: Channel,
    out: &mut Out,
    name: String,
    service: Option<String>,
) -> Result<(), CtlError> {
    let asked = service.unwrap_or_default();
    let request = DiagnoseAgentRequest { id: name.clone(), service: asked.clone() };
    let answer = FleetServiceClient::new(channel).diagnose_agent(request).await?.into_inner();
    let watches_none = !asked.is_empty() && answer.diagnosis.as_ref().is_none_or(is_empty);
    let none = || format!("it watches nothing of a service {:?}: is the name misspelt?", clean(&asked));
    if watches_none && out.is_json() {
        note(&format!("{}: {}", clean(&name), none()));
    }
    if out.is_json() {
        return Ok(out.json(&json::diagnosis(&name, &answer))?);
    }
    let diagnosis = answer.diagnosis.unwrap_or_default();
    let took = duration(answer.round_trip.as_ref());
    let told = if watches_none { none() } else { summary(&diagnosis) };
    out.line(&format!("{} answered after {took}: {told}", clean(&name)))?;
    if !diagnosis.stories.is_empty() {
        out.line("\nWhat happened")?;
        diagnosis.stories.iter().try_for_each(|story| out.line(&format!("  - {}", clean(story))))?;
    }
    if !diagnosis.findings.is_empty() {
        out.line("\nOpen")?;
        out.table(&["sev", "service", "reason", "subject", "summary"], diagnosis.findings.iter().map(row).collect())?;
    }
    let mut steps: Vec<&String> = Vec::new();
    for step in diagnosis.findings.iter().flat_map(|finding| &finding.next_steps) {
        if !steps.contains(&step) {
            steps.push(step);
        }
    }
    if !steps.is_empty() {
        out.line("\nWhat to do")?;
        steps.iter().try_for_each(|step| out.line(&format!("  - {}", clean(step))))?;
    }
    if !diagnosis.unknown.is_empty() {
        out.line("\nNot known")?;
        for unknown in &diagnosis.unknown {
            let subject = unknown.subject.clone().unwrap_or_default();
            let about = format!("{} {} {}", subject.service, subject.probe, subject.subject);
            out.line(&format!("  - {}: {}", clean(&about), clean(&unknown.why)))?;
        }
    }
    Ok(())
}

/// Nothing open, nothing well and nothing unknown: it looked at nothing.
fn is_empty(diagnosis: &Diagnosis) -> bool {
    diagnosis.findings.is_empty()
        && diagnosis.findings_left_out == 0
        && diagnosis.subjects_ok == 0
        && diagnosis.unknown.is_empty()
}

fn summary(diagnosis: &Diagnosis) -> String {
    let count = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    let open = match diagnosis.findings.len() + count(diagnosis.findings_left_out) {
        0 => "nothing is open".to_owned(),
        open => format!("{} open", counted(open, "finding")),
    };
    let left_out = match diagnosis.findings_left_out {
        0 => String::new(),
        n => format!(" ({n} of them not shown: they did not fit; ask for one --service)"),
    };
    format!(
        "{open}{left_out}, {} well, {} unknown",
        counted(count(diagnosis.subjects_ok), "subject"),
        diagnosis.unknown.len()
    )
}

fn row(finding: &FindingDetail) -> Vec<String> {
    let subject = finding.subject.clone().unwrap_or_default();
    vec![
        json::severity(finding.severity).to_owned(),
        clean(&subject.service),
        clean(&finding.reason),
        clean(&subject.subject),
        clean(&finding.summary),
    ]
}

pub(super) async fn archive(channel: Channel, out: &mut Out, name: String, reason: String) -> Result<(), CtlError> {
    let request = ArchiveAgentRequest { id: name.clone(), reason };
    let answer = FleetServiceClient::new(channel).archive_agent(request).await?.into_inner();
    if out.is_json() {
        let value = serde_json::json!({ "id": name, "findings_ended": answer.findings_ended });
        return Ok(out.json(&value)?);
    }
    let ended = counted(usize::try_from(answer.findings_ended).unwrap_or(usize::MAX), "open finding");
    Ok(out.line(&format!("{} is archived; {ended} ended with it", clean(&name)))?)
}

//! `why` and `why-not`.

use super::note_doubt;
use crate::connect::Channel;
use crate::error::CtlError;
use crate::json;
use crate::render::{Out, clean};
use crate::times;
use muster_proto::v1::explain_request::About;
use muster_proto::v1::incident_service_client::IncidentServiceClient;
use muster_proto::v1::{ExplainRequest, ExplainResponse, RuleExplanation, WhyNot};

pub(super) async fn why(channel: Channel, out: &mut Out, id: String) -> Result<(), CtlError> {
    ask(channel, out, About::Id(id)).await
}

pub(super) async fn why_not(
    channel: Channel,
    out: &mut Out,
    agent: String,
    at: Option<String>,
    service: Option<String>,
) -> Result<(), CtlError> {
    let now = jiff::Timestamp::now();
    at.as_deref().and_then(|text| times::of_yesterday(text, now)).iter().for_each(|text| note_doubt(text));
    let at = at.as_deref().map(|text| times::past(text, now)).transpose();
    let at = at.map_err(CtlError::Usage)?.map(times::to_wire);
    ask(channel, out, About::WhyNot(WhyNot { agent, at, service: service.unwrap_or_default() })).await
}

async fn ask(channel: Channel, out: &mut Out, about: About) -> Result<(), CtlError> {
    let request = ExplainRequest { about: Some(about) };
    let answer = IncidentServiceClient::new(channel).explain(request).await?.into_inner();
    if out.is_json() {
        return Ok(out.json(&json::explanation(&answer))?);
    }
    print(out, &answer)
}

fn print(out: &mut Out, answer: &ExplainResponse) -> Result<(), CtlError> {
    out.line(&clean(&answer.answer))?;
    for rule in &answer.rules {
        out.line("")?;
        out.line(&heading(rule))?;
        out.line(&format!("  {}", clean(&rule.why)))?;
        for figure in &rule.figures {
            let threshold = match figure.threshold.as_str() {
                "" => String::new(),
                threshold => format!(" (threshold {})", clean(threshold)),
            };
            out.line(&format!("  {}: {}{threshold}", clean(&figure.name), clean(&figure.value)))?;
        }
        let mut from = Vec::new();
        if rule.at.is_some() {
            from.push(out.time(rule.at.as_ref()));
        }
        if rule.journal_index > 0 {
            from.push(format!("journal entry {}", rule.journal_index));
        }
        if !rule.incident.is_empty() {
            from.push(clean(&rule.incident));
        }
        if !from.is_empty() {
            out.line(&format!("  {}", from.join(", ")))?;
        }
    }
    if !answer.unknown.is_empty() {
        out.line("\nNot known")?;
        answer.unknown.iter().try_for_each(|unknown| out.line(&format!("  - {}", clean(unknown))))?;
    }
    Ok(())
}

/// `process_down, host/web-1/service/spl: held back by silence (confirmed)`.
fn heading(rule: &RuleExplanation) -> String {
    let about = if rule.about.is_empty() { String::new() } else { format!(", {}", clean(&rule.about)) };
    let outcome = match (json::rule_outcome(rule.outcome), rule.held_back_by.as_str()) {
        ("held_back", "") => "held back".to_owned(),
        ("held_back", by) => format!("held back by {}", clean(by)),
        ("below_threshold", _) => "below its threshold".to_owned(),
        ("nothing_seen", _) => "saw nothing".to_owned(),
        (word, _) => word.to_owned(),
    };
    let grade = match json::grade(rule.grade) {
        "" => String::new(),
        grade => format!(" ({grade})"),
    };
    format!("{}{about}: {outcome}{grade}", clean(&rule.rule))
}

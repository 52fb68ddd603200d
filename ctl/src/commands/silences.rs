//! `silence …`.

use super::{PAGE_SIZE, all_pages, note_doubt, note_unknown};
use crate::args::NewSilence;
use crate::connect::Channel;
use crate::error::CtlError;
use crate::json;
use crate::render::{Out, clean};
use crate::times;
use muster_proto::v1::silence_service_client::SilenceServiceClient;
use muster_proto::v1::{
    CreateSilenceRequest, ExpireSilenceRequest, ListSilencesRequest, Silence, SilenceKind, SilenceMatchers,
};

pub(super) async fn add(channel: Channel, out: &mut Out, new: NewSilence) -> Result<(), CtlError> {
    let matchers = SilenceMatchers {
        agents: new.agents,
        labels: new.labels.into_iter().collect(),
        services: new.services,
        reasons: new.codes,
        causes: new.causes,
    };
    if matchers == SilenceMatchers::default() {
        let text = "say what is to be silent: give --agent, --label, --service, --code or --cause";
        return Err(CtlError::Usage(text.to_owned()));
    }
    let start = new.start.as_deref().map(|text| times::future(text, jiff::Timestamp::now()));
    let start = start.transpose().map_err(CtlError::Usage)?;
    let request = CreateSilenceRequest {
        matchers: Some(matchers),
        kind: if new.maintenance { SilenceKind::Maintenance } else { SilenceKind::Silence }.into(),
        reason: new.reason,
        start_time: start.map(times::to_wire),
        ttl: prost_types::Duration::try_from(new.ttl).ok(),
    };
    let silence = SilenceServiceClient::new(channel.clone()).create_silence(request).await?.into_inner();
    note_unknown(channel, &silence.matchers.clone().unwrap_or_default().agents).await;
    silence.notes.iter().for_each(|doubt| note_doubt(doubt));
    if out.is_json() {
        return Ok(out.json(&json::silence(&silence))?);
    }
    let until = out.time(silence.end_time.as_ref());
    let from = match json::silence_state(silence.state) {
        "pending" => format!("from {} ", out.time(silence.start_time.as_ref())),
        _ => String::new(),
    };
    Ok(out.line(&format!("{}: {} pages nobody {from}until {until}", clean(&silence.id), about(&silence)))?)
}

pub(super) async fn list(channel: Channel, out: &mut Out, all: bool) -> Result<(), CtlError> {
    let client = SilenceServiceClient::new(channel);
    let silences = all_pages(usize::MAX, |page_token| {
        let mut client = client.clone();
        let request = ListSilencesRequest { include_expired: all, page_size: PAGE_SIZE, page_token };
        async move {
            let answer = client.list_silences(request).await?.into_inner();
            Ok((answer.silences, answer.next_page_token))
        }
    })
    .await?;
    if out.is_json() {
        let silences: Vec<_> = silences.iter().map(json::silence).collect();
        return Ok(out.json(&serde_json::json!({ "total_size": silences.len(), "silences": silences }))?);
    }
    if silences.is_empty() {
        return Ok(out.line(if all { "no silences" } else { "no silences hold or are to come" })?);
    }
    let row = |silence: &Silence| {
        vec![
            clean(&silence.id),
            json::silence_kind(silence.kind).to_owned(),
            match silence.ends_soon {
                true => "ends soon".to_owned(),
                false => json::silence_state(silence.state).to_owned(),
            },
            about(silence),
            out.when(silence.start_time.as_ref()),
            out.when(silence.end_time.as_ref()),
            clean(&silence.created_by),
            clean(&silence.incidents.join(", ")),
            clean(&silence.reason),
        ]
    };
    let rows = silences.iter().map(row).collect();
    Ok(out.table(&["silence", "kind", "state", "about", "from", "until", "by", "holds back", "reason"], rows)?)
}

pub(super) async fn expire(channel: Channel, out: &mut Out, id: String) -> Result<(), CtlError> {
    let request = ExpireSilenceRequest { id };
    let silence = SilenceServiceClient::new(channel).expire_silence(request).await?.into_inner();
    if out.is_json() {
        return Ok(out.json(&json::silence(&silence))?);
    }
    Ok(out.line(&format!("{} is over; what is open pages now", clean(&silence.id)))?)
}

/// `agent web-*, label zone=a`.
fn about(silence: &Silence) -> String {
    let matchers = silence.matchers.clone().unwrap_or_default();
    let mut labels: Vec<String> = matchers.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.sort();
    let kinds = [
        ("agent", matchers.agents, " or "),
        ("label", labels, " and "),
        ("service", matchers.services, " or "),
        ("reason", matchers.reasons, " or "),
        ("cause", matchers.causes, " or "),
    ];
    let parts = kinds.into_iter().filter(|(_, names, _)| !names.is_empty());
    let parts: Vec<String> = parts.map(|(kind, names, word)| format!("{kind} {}", names.join(word))).collect();
    clean(&parts.join(", "))
}

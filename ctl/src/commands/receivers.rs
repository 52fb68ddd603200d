//! `receivers …`.

use super::{PAGE_SIZE, all_pages};
use crate::connect::Channel;
use crate::error::CtlError;
use crate::json;
use crate::render::{Out, clean, duration};
use muster_proto::v1::paging_service_client::PagingServiceClient;
use muster_proto::v1::{
    DeadLetter, ListDeadLettersRequest, ListReceiversRequest, Receiver, ResendPageRequest, TestReceiverRequest,
};
use tonic::Status;

pub(super) async fn list(channel: Channel, out: &mut Out) -> Result<(), CtlError> {
    let answer = PagingServiceClient::new(channel).list_receivers(ListReceiversRequest {}).await?.into_inner();
    if out.is_json() {
        let receivers: Vec<_> = answer.receivers.iter().map(json::receiver).collect();
        return Ok(out.json(&serde_json::json!({ "receivers": receivers }))?);
    }
    if answer.receivers.is_empty() {
        return Ok(out.line("no receivers: nobody is paged; add a [[receiver.…]] to the coordinator's config")?);
    }
    let row = |receiver: &Receiver| {
        let fallback = if receiver.fallback.is_empty() { "none" } else { &receiver.fallback };
        vec![
            clean(&receiver.name),
            clean(&receiver.kind),
            clean(&receiver.target),
            clean(&receiver.routes.join("; ")),
            clean(fallback),
            pages(receiver),
            out.when(receiver.last_delivered.as_ref()),
            trouble(receiver, out),
        ]
    };
    let rows = answer.receivers.iter().map(row).collect();
    Ok(out.table(&["receiver", "kind", "target", "routes", "fallback", "pages", "last sent", "trouble"], rows)?)
}

/// What was given up counts since the receiver was first asked; of those some can be sent again.
fn pages(receiver: &Receiver) -> String {
    let again = match receiver.dead_letters {
        0 => String::new(),
        n => format!(" ({n} can be sent again)"),
    };
    let (sent, pending, failed) = (receiver.pages_delivered, receiver.pages_pending, receiver.pages_failed);
    format!("{sent} sent, {pending} pending, {failed} given up so far{again}")
}

fn trouble(receiver: &Receiver, out: &Out) -> String {
    let again = out.time(receiver.next_try.as_ref());
    match (receiver.last_error.as_str(), again.as_str()) {
        ("", _) => String::new(),
        (error, "") => clean(error),
        (error, again) => format!("{}; tried again {again}", clean(error)),
    }
}

/// Exit status 1 when the receiver did not take it: for scripts that check their receivers.
pub(super) async fn test(channel: Channel, out: &mut Out, name: String) -> Result<u8, CtlError> {
    let request = TestReceiverRequest { name: name.clone() };
    let answer = PagingServiceClient::new(channel).test_receiver(request).await?.into_inner();
    let status = u8::from(!answer.delivered);
    if out.is_json() {
        out.json(&json::receiver_test(&name, &answer))?;
        return Ok(status);
    }
    let (took, said) = (duration(answer.took.as_ref()), clean(&answer.answer));
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    let words = if answer.delivered { "took the test page" } else { "did not take the test page" };
    out.line(&format!("{} {words} after {took}{said}", clean(&name)))?;
    Ok(status)
}

pub(super) async fn dead_letters(
    channel: Channel,
    out: &mut Out,
    receiver: Option<String>,
    all: bool,
) -> Result<(), CtlError> {
    let client = PagingServiceClient::new(channel.clone());
    let letters = all_pages(usize::MAX, |page_token| {
        let mut client = client.clone();
        let receiver = receiver.clone().unwrap_or_default();
        let request = ListDeadLettersRequest { page_size: PAGE_SIZE, page_token, receiver, include_settled: all };
        async move {
            let answer = client.list_dead_letters(request).await?.into_inner();
            Ok((answer.dead_letters, answer.next_page_token))
        }
    })
    .await?;
    if let Some(receiver) = receiver.as_deref().filter(|_| letters.is_empty()) {
        must_be_configured(channel, receiver).await?;
    }
    if out.is_json() {
        let letters: Vec<_> = letters.iter().map(json::dead_letter).collect();
        return Ok(out.json(&serde_json::json!({ "dead_letters": letters }))?);
    }
    if letters.is_empty() {
        return Ok(out.line(if all { "no page was given up" } else { "no page waits to be sent again" })?);
    }
    let row = |letter: &DeadLetter| {
        vec![
            clean(&letter.page_id),
            clean(&letter.receiver),
            clean(&letter.incident),
            clean(&letter.action),
            json::severity(letter.severity).to_owned(),
            out.when(letter.failed.as_ref()),
            clean(&letter.error),
            if letter.settled_because.is_empty() {
                "yes".to_owned()
            } else {
                format!("no: {}", clean(&letter.settled_because))
            },
            clean(&letter.title),
        ]
    };
    let rows = letters.iter().map(row).collect();
    out.table(&["page", "receiver", "incident", "action", "sev", "given up", "error", "again", "title"], rows)?;
    Ok(out.line("\nsend one again: musterctl receivers resend PAGE")?)
}

/// Dead letters of a receiver that does not exist are none, which must not look as if all had arrived.
async fn must_be_configured(channel: Channel, name: &str) -> Result<(), CtlError> {
    let answer = PagingServiceClient::new(channel).list_receivers(ListReceiversRequest {}).await?.into_inner();
    let names: Vec<&str> = answer.receivers.iter().map(|receiver| receiver.name.as_str()).collect();
    if names.contains(&name) {
        return Ok(());
    }
    let known =
        if names.is_empty() { "none is configured".to_owned() } else { format!("there are: {}", names.join(", ")) };
    Err(Status::not_found(format!("no receiver {name:?}; {known}")).into())
}

pub(super) async fn resend(channel: Channel, out: &mut Out, page: String) -> Result<(), CtlError> {
    let request = ResendPageRequest { page_id: page.clone() };
    let answer = PagingServiceClient::new(channel).resend_page(request).await?.into_inner();
    if out.is_json() {
        return Ok(out.json(&serde_json::json!({ "page_id": answer.page_id, "resent": page }))?);
    }
    Ok(out.line(&format!("{} is sent again as {}", clean(&page), clean(&answer.page_id)))?)
}

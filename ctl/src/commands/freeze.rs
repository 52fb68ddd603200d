//! `freeze …`.

use super::{PAGE_SIZE, all_pages, note_unknown};
use crate::connect::Channel;
use crate::error::CtlError;
use crate::json;
use crate::render::{Out, clean};
use muster_proto::v1::set_freeze_request::Change;
use muster_proto::v1::silence_service_client::SilenceServiceClient;
use muster_proto::v1::{Freeze, FreezeScope, ListFreezesRequest, NewFreeze, SetFreezeRequest};
use std::time::Duration;

/// What `freeze on` is asked for.
pub(super) struct Order {
    pub agents: Vec<String>,
    pub labels: Vec<(String, String)>,
    pub ttl: Option<Duration>,
    pub reason: String,
}

pub(super) async fn on(channel: Channel, out: &mut Out, order: Order) -> Result<(), CtlError> {
    let ttl = order.ttl.and_then(|ttl| prost_types::Duration::try_from(ttl).ok());
    let scope = FreezeScope { agents: order.agents, labels: order.labels.into_iter().collect() };
    let agents = scope.agents.clone();
    let freeze = NewFreeze { scope: Some(scope), reason: order.reason, ttl };
    set(channel.clone(), out, Change::Freeze(freeze), "no new work is to be dispatched on").await?;
    note_unknown(channel, &agents).await;
    Ok(())
}

pub(super) async fn off(channel: Channel, out: &mut Out, id: String) -> Result<(), CtlError> {
    set(channel, out, Change::LiftId(id), "lifted on").await
}

async fn set(channel: Channel, out: &mut Out, change: Change, done: &str) -> Result<(), CtlError> {
    let request = SetFreezeRequest { change: Some(change) };
    let answer = SilenceServiceClient::new(channel).set_freeze(request).await?.into_inner();
    let freeze = answer.freeze.unwrap_or_default();
    if out.is_json() {
        return Ok(out.json(&json::freeze(&freeze))?);
    }
    Ok(out.line(&format!("{}: {done} {}", clean(&freeze.id), scope(&freeze)))?)
}

pub(super) async fn list(channel: Channel, out: &mut Out) -> Result<(), CtlError> {
    let client = SilenceServiceClient::new(channel);
    let freezes = all_pages(usize::MAX, |page_token| {
        let mut client = client.clone();
        let request = ListFreezesRequest { page_size: PAGE_SIZE, page_token };
        async move {
            let answer = client.list_freezes(request).await?.into_inner();
            Ok((answer.freezes, answer.next_page_token))
        }
    })
    .await?;
    if out.is_json() {
        let freezes: Vec<_> = freezes.iter().map(json::freeze).collect();
        return Ok(out.json(&serde_json::json!({ "total_size": freezes.len(), "freezes": freezes }))?);
    }
    if freezes.is_empty() {
        return Ok(out.line("no freezes")?);
    }
    let row = |freeze: &Freeze| {
        vec![
            clean(&freeze.id),
            scope(freeze),
            clean(&freeze.reason),
            clean(&freeze.created_by),
            out.when(freeze.create_time.as_ref()),
            if freeze.expire_time.is_some() { out.when(freeze.expire_time.as_ref()) } else { "when lifted".to_owned() },
        ]
    };
    let rows = freezes.iter().map(row).collect();
    Ok(out.table(&["freeze", "scope", "reason", "by", "since", "ends"], rows)?)
}

fn scope(freeze: &Freeze) -> String {
    let scope = freeze.scope.clone().unwrap_or_default();
    let mut labels: Vec<String> = scope.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.sort();
    let parts: Vec<String> = scope.agents.into_iter().chain(labels).collect();
    if parts.is_empty() { "the whole fleet".to_owned() } else { clean(&parts.join(", ")) }
}

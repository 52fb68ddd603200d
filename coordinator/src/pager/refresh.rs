//! Alerts that stand at an Alertmanager are told again before they would end by themselves.
//!
//! Never between the telling of a resolve and its fact: a round and a page exclude each other, and who is to be told
//! that it is over is left out from the moment that was decided.

use super::http_client::Transport;
use super::lane::Lane;
use super::receiver::Judgement;
use super::{Outbox, ReceiverKind, alertmanager};
use muster_coordinator_core::page::{Page, PageId};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Alerts of one call: a few hundred kilobytes.
const ALERTS_MAX: usize = 200;
/// Rounds within the time for which an alert stands: two may be lost.
const ROUNDS: u32 = 3;

/// An incident of which a receiver was told and that is not over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The page that told of it last, where it is still known.
    pub id: Option<PageId>,
    /// What it said.
    pub page: Page,
    /// Who has acknowledged it, in words; empty: nobody.
    pub acknowledged: String,
}

/// Tells again what stands, until `stop` is cancelled. Returns at once for a receiver that needs no such thing.
pub async fn keep_standing<O: Outbox, T: Transport>(outbox: Arc<O>, lane: Arc<Lane<T>>, stop: CancellationToken) {
    let ReceiverKind::Alertmanager { valid_for, .. } = &lane.receiver.config.kind else { return };
    let mut rounds = interval((*valid_for / ROUNDS).max(Duration::from_secs(1)));
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = rounds.tick() => {}
        }
        let receiver = lane.receiver.config.name.as_str();
        match round(&*outbox, &lane).await {
            Ok(_) if failing => {
                failing = false;
                info!(receiver, "alerts that stand are told again");
            }
            Err(error) if !failing => {
                failing = true;
                warn!(receiver, error, "alerts that stand were not told again; they end by themselves if this lasts");
            }
            Ok(_) | Err(_) => {}
        }
    }
}

/// One round; how many alerts were told.
async fn round<O: Outbox, T: Transport>(outbox: &O, lane: &Lane<T>) -> Result<usize, String> {
    let mut after = String::new();
    let mut told = 0;
    loop {
        // From the look at State until the answer no page leaves by this lane.
        let alone = lane.order.write().await;
        if !outbox.may_page() {
            return Ok(told);
        }
        let receiver = &lane.receiver;
        let standing = outbox.standing(&receiver.config.name, &after, ALERTS_MAX).await;
        let standing = standing.map_err(|error| error.to_string())?;
        let Some(last) = standing.last() else { return Ok(told) };
        after = last.page.dedup_key.clone();
        let frame = receiver.frame(jiff::Timestamp::now());
        let alert = |one: &Standing| alertmanager::alert(frame, one.id, &one.page, &one.acknowledged, false);
        let alerts: Vec<_> = standing.iter().map(alert).collect();
        lane.bucket.acquire().await;
        let judgement = lane.make(receiver.alertmanager_calls(&alertmanager::render(&alerts))).await;
        drop(alone);
        match judgement {
            Judgement::Delivered => told += alerts.len(),
            Judgement::Refused(error) | Judgement::Retry { error, .. } => return Err(error),
        }
    }
}

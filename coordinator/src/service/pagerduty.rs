//! `POST /pagerduty/webhook`: what people did on their phones comes back as operator facts.
//!
//! Replay-safe: an event's id is journaled with what follows from it, and one that is known changes nothing.

use crate::pager::inbound::{BODY_BYTES_MAX, Deed, Event, Inbound, Refusal, SIGNATURE_HEADER, SOURCE};
use crate::runtime::{CoordinatorRole, Handle};
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use muster_common::chain::Chain;
use muster_coordinator_core::entry::{Fact, IncidentKey, OperatorAction};
use muster_coordinator_core::state::{Incident, State as Fleet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// Longest wait for a body: whoever sends it slowly holds a place among few.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Where they come in.
#[derive(Debug, Clone)]
pub struct WebhookDoor {
    handle: Handle,
    inbound: Arc<Inbound>,
    /// One after the other: whether an event is known is asked before it is journaled.
    turn: Arc<Mutex<()>>,
}

impl WebhookDoor {
    /// Acts through the loop.
    pub fn new(handle: Handle, inbound: Arc<Inbound>) -> Self {
        Self { handle, inbound, turn: Arc::default() }
    }
}

/// Takes one call. The answer says no more than whoever signs may know.
pub async fn take(State(door): State<WebhookDoor>, request: Request<Body>) -> Response {
    let (head, body) = request.into_parts();
    let signatures = head.headers.get(SIGNATURE_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let signatures = signatures.to_owned();
    let body = match timeout(BODY_TIMEOUT, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return (StatusCode::PAYLOAD_TOO_LARGE, "too large, or broken off\n").into_response(),
        Err(_) => return (StatusCode::REQUEST_TIMEOUT, "too slow\n").into_response(),
    };
    let event = match door.inbound.event(&signatures, &body) {
        Ok(event) => event,
        Err(refusal) => return refused(&refusal),
    };
    if door.handle.role() != CoordinatorRole::Primary {
        return (StatusCode::SERVICE_UNAVAILABLE, "this coordinator is not the primary\n").into_response();
    }
    let _turn = door.turn.lock().await;
    match door.act(event).await {
        Ok(said) => (StatusCode::OK, format!("{said}\n")).into_response(),
        Err(error) => {
            tracing::warn!(error, "an event of PagerDuty could not be journaled; it is told again");
            (StatusCode::SERVICE_UNAVAILABLE, "not journaled, try again\n").into_response()
        }
    }
}

fn refused(refusal: &Refusal) -> Response {
    let status = match refusal {
        Refusal::Unsigned => {
            tracing::warn!("a call to /pagerduty/webhook was refused: {refusal}");
            StatusCode::UNAUTHORIZED
        }
        Refusal::Malformed(_) => StatusCode::BAD_REQUEST,
        Refusal::Ignored(_) => StatusCode::OK,
    };
    (status, format!("{refusal}\n")).into_response()
}

/// What is found about an event.
enum Found {
    Known,
    Nothing,
    Incident { key: IncidentKey, number: String },
}

impl WebhookDoor {
    async fn act(&self, event: Event) -> Result<String, String> {
        let (id, dedup_key, deed) = (event.id.clone(), event.dedup_key.clone(), event.deed);
        let found = self.handle.query(move |view| find(view.state, &id, &dedup_key, deed)).await;
        let (key, number) = match found.map_err(|error| Chain(&error).to_string())? {
            Found::Known => return Ok("known already".to_owned()),
            Found::Nothing => return Ok("it concerns no incident that is open here".to_owned()),
            Found::Incident { key, number } => (key, number),
        };
        let IncidentKey { cause, generation } = key;
        let (action, said) = match event.deed {
            Deed::Acknowledged => (OperatorAction::Acknowledge { note: String::new() }, "acknowledged"),
            Deed::Resolved => (OperatorAction::Resolve { summary: "resolved in PagerDuty".to_owned() }, "resolved"),
        };
        tracing::info!(by = event.by, incident = number, "{said} in PagerDuty");
        let seen = Fact::OutsideEvent { source: SOURCE.to_owned(), id: event.id };
        let done = Fact::Operator { by: event.by, cause, generation, action };
        self.handle.submit_all(vec![seen, done]).await.map_err(|error| Chain(&error).to_string())?;
        Ok(format!("{number}: {said}"))
    }
}

/// The unresolved incident that is paged under this very key now. An event about a key that was replaced (it got worse,
/// and was paged anew) is about what is no longer asked.
fn find(state: &Fleet, id: &str, dedup_key: &str, deed: Deed) -> Found {
    if state.knows_outside_event(SOURCE, id) {
        return Found::Known;
    }
    let is_it = |incident: &&Incident| {
        let newest = incident.page_keys.last().map(|page| page.dedup_key.as_str());
        let is_news = deed == Deed::Resolved || incident.acknowledged.is_none();
        incident.is_unresolved() && newest == Some(dedup_key) && is_news
    };
    match state.incidents().find(is_it) {
        Some(incident) => Found::Incident { key: incident.key.clone(), number: incident.number.clone() },
        None => Found::Nothing,
    }
}

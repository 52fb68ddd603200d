//! `PagingService`: who is told, and what did not get through.

use super::caller::{ACTORS, READERS, allow};
use super::paging::{PageRequest, bad_token};
use super::status_of;
use crate::pager::http_client::{HttpClient, Transport};
use crate::pager::receiver::Judgement;
use crate::pager::{Lane, Status as LaneStatus, TEST_PAGE, routes};
use crate::runtime::{Handle, View};
use muster_common::evidence::Grade;
use muster_common::limits::clip;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use muster_coordinator_core::entry::Fact;
use muster_coordinator_core::page::{Page, PageAction, PageId};
use muster_coordinator_core::state::{DeadLetter, Incident, PageOutcome, PageRecord, State};
use muster_proto::convert::{severity_to_wire, timestamp_to_wire};
use muster_proto::v1;
use muster_proto::v1::paging_service_server::PagingService;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

/// Bytes of a name in an answer.
const NAME_BYTES_MAX: usize = 64;

/// Answers operators about receivers.
#[derive(Debug, Clone)]
pub struct PagingApi<T = HttpClient> {
    handle: Handle,
    lanes: Arc<[Arc<Lane<T>>]>,
    fleet: String,
}

impl<T> PagingApi<T> {
    /// Reads and acts through the loop; tries receivers by their own lanes.
    pub fn new(handle: Handle, lanes: Arc<[Arc<Lane<T>>]>, fleet: String) -> Self {
        Self { handle, lanes, fleet }
    }
}

#[tonic::async_trait]
impl<T: Transport> PagingService for PagingApi<T> {
    async fn list_receivers(
        &self,
        request: Request<v1::ListReceiversRequest>,
    ) -> Result<Response<v1::ListReceiversResponse>, Status> {
        allow(&request, READERS)?;
        let seen: Vec<Seen> = self.lanes.iter().map(|lane| Seen::of(lane)).collect();
        let receivers = self.handle.query(move |view| receivers(view, seen)).await;
        let receivers = receivers.map_err(|error| status_of(&error))?;
        Ok(Response::new(v1::ListReceiversResponse { receivers }))
    }

    async fn test_receiver(
        &self,
        request: Request<v1::TestReceiverRequest>,
    ) -> Result<Response<v1::TestReceiverResponse>, Status> {
        let by = allow(&request, ACTORS)?.name();
        let name = request.into_inner().name;
        let found = self.lanes.iter().find(|lane| lane.receiver.config.name == name);
        let lane = found.ok_or_else(|| self.unknown_receiver(&name))?;
        tracing::info!(receiver = name, by, "a test message is sent");
        let began = Instant::now();
        let judgement = lane.test(test_page(&self.fleet, &name, &by, self.handle.now())).await;
        let took = prost_types::Duration::try_from(began.elapsed()).ok();
        let (delivered, answer) = match judgement {
            Judgement::Delivered => match lane.status().remark {
                remark if remark.is_empty() => (true, "accepted".to_owned()),
                remark => (true, format!("accepted, but {remark}")),
            },
            Judgement::Refused(error) => (false, format!("refused: {error}")),
            Judgement::Retry { error, .. } => {
                (false, format!("not accepted now, a page would be tried again: {error}"))
            }
        };
        Ok(Response::new(v1::TestReceiverResponse { delivered, answer, took }))
    }

    async fn list_dead_letters(
        &self,
        request: Request<v1::ListDeadLettersRequest>,
    ) -> Result<Response<v1::ListDeadLettersResponse>, Status> {
        allow(&request, READERS)?;
        let request = request.into_inner();
        let wanted = PageRequest::new(request.page_size, &request.page_token)?;
        let after = wanted.after().map(|token| token.parse::<u64>().map_err(|_| bad_token())).transpose()?;
        let after = after.map(Reverse);
        let (receiver, settled) = (request.receiver, request.include_settled);
        let read = move |view: &View<'_>| {
            let letters = view.state.dead_letters().filter(|letter| letter.resent.is_none());
            let letters = letters.filter(|letter| settled || is_resendable(view.state, letter));
            let of_receiver = |letter: &&DeadLetter| receiver.is_empty() || letter.record.page.receiver == receiver;
            let keyed = letters.filter(of_receiver).map(|letter| (Reverse(letter.record.id.0), letter));
            wanted.cut(keyed, after.as_ref(), |Reverse(id)| id.to_string(), |letter| letter_to_wire(view.state, letter))
        };
        let page = self.handle.query(read).await.map_err(|error| status_of(&error))?;
        Ok(Response::new(v1::ListDeadLettersResponse { dead_letters: page.items, next_page_token: page.next_token }))
    }

    async fn resend_page(
        &self,
        request: Request<v1::ResendPageRequest>,
    ) -> Result<Response<v1::ResendPageResponse>, Status> {
        let by = allow(&request, ACTORS)?.name();
        let id = request.into_inner().page_id;
        let page = id.parse::<u64>().map(PageId).map_err(|_| {
            Status::invalid_argument(format!(
                "page_id {:?} is no number: see ListDeadLetters (musterctl receivers dead-letters)",
                clip(&id, NAME_BYTES_MAX)
            ))
        })?;
        let checked = self.handle.query(move |view| may_resend(view.state, page)).await;
        checked.map_err(|error| status_of(&error))??;
        let fact = Fact::ResendAsked { by, page };
        self.handle.submit(fact).await.map_err(|error| status_of(&error))?;
        let resent = move |view: &View<'_>| letter(view.state, page).and_then(|letter| letter.resent);
        let resent = self.handle.query(resent).await.map_err(|error| status_of(&error))?;
        // Whatever can come in between (its incident was resolved, the receivers were changed) is a reason not to send.
        let resent = resent.ok_or_else(|| {
            Status::failed_precondition(format!("the page {} was not sent again: its incident has changed", page.0))
        })?;
        Ok(Response::new(v1::ResendPageResponse { page_id: resent.0.to_string() }))
    }
}

impl<T> PagingApi<T> {
    fn unknown_receiver(&self, name: &str) -> Status {
        let names: Vec<&str> = self.lanes.iter().map(|lane| lane.receiver.config.name.as_str()).collect();
        let known =
            if names.is_empty() { "none is configured".to_owned() } else { format!("there are: {}", names.join(", ")) };
        Status::not_found(format!("no receiver {:?}; {known}", clip(name, NAME_BYTES_MAX)))
    }
}

fn letter(state: &State, page: PageId) -> Option<&DeadLetter> {
    state.dead_letters().find(|letter| letter.record.id == page)
}

/// Whether somebody may still want it to arrive. What may not is history: its incident's timeline has it.
pub(super) fn is_resendable(state: &State, letter: &DeadLetter) -> bool {
    may_resend(state, letter.record.id).is_ok()
}

fn may_resend(state: &State, page: PageId) -> Result<(), Status> {
    let Some(letter) = letter(state, page) else {
        return Err(Status::not_found(format!(
            "no page {} was given up: see ListDeadLetters (musterctl receivers dead-letters)",
            page.0
        )));
    };
    let told = &letter.record.page;
    if let Some(resent) = letter.resent {
        return Err(Status::failed_precondition(format!(
            "the page {} was sent again already, as {}",
            page.0, resent.0
        )));
    }
    let is_newer = |record: &&PageRecord| {
        let same = (&told.incident, &told.receiver, told.action);
        record.id > page && (&record.page.incident, &record.page.receiver, record.page.action) == same
    };
    if let Some(newer) = state.pending_pages().find(is_newer) {
        return Err(Status::failed_precondition(format!(
            "the page {}, a newer one about {}, is on its way to {}: nothing has to be sent again",
            newer.id.0, told.incident, told.receiver
        )));
    }
    let was_taken = |record: &&PageRecord| record.outcome == Some(PageOutcome::Delivered);
    if let Some(newer) = state.past_pages().filter(is_newer).find(was_taken) {
        return Err(Status::failed_precondition(format!(
            "{} accepted a newer one about {}, the page {}: nothing has to be sent again",
            told.receiver, told.incident, newer.id.0
        )));
    }
    if !state.incident(&letter.record.incident).is_some_and(Incident::is_unresolved) {
        return Err(Status::failed_precondition(format!(
            "{} is resolved: nobody needs to be told of it",
            told.incident
        )));
    }
    if !state.policy().receivers.contains(&told.receiver) {
        return Err(Status::failed_precondition(format!("the receiver {} is no longer configured", told.receiver)));
    }
    Ok(())
}

/// What a lane knows of itself, taken before the loop is asked.
struct Seen {
    name: String,
    kind: &'static str,
    target: String,
    escalates_itself: bool,
    status: LaneStatus,
}

impl Seen {
    fn of<T: Transport>(lane: &Lane<T>) -> Self {
        let config = &lane.receiver.config;
        Self {
            name: config.name.clone(),
            kind: config.kind.word(),
            target: config.kind.target(),
            escalates_itself: config.escalates_itself,
            status: lane.status(),
        }
    }
}

fn receivers(view: &View<'_>, seen: Vec<Seen>) -> Vec<v1::Receiver> {
    let mut pending: BTreeMap<&str, u32> = BTreeMap::new();
    for record in view.state.pending_pages() {
        let count = pending.entry(&record.page.receiver).or_default();
        *count = count.saturating_add(1);
    }
    let mut dead: BTreeMap<&str, u32> = BTreeMap::new();
    for letter in view.state.dead_letters().filter(|letter| is_resendable(view.state, letter)) {
        let count = dead.entry(&letter.record.page.receiver).or_default();
        *count = count.saturating_add(1);
    }
    let policy = view.state.policy();
    let wire = |seen: Seen| {
        let known = view.state.receiver(&seen.name).cloned().unwrap_or_default();
        let next_try = seen.status.next_try.map(|at| view.now + at.saturating_duration_since(Instant::now()));
        let told = [seen.status.last_error, seen.status.remark, known.last_error];
        let last_error = told.into_iter().find(|text| !text.is_empty()).unwrap_or_default();
        v1::Receiver {
            kind: seen.kind.to_owned(),
            target: seen.target,
            routes: routes::words(policy, &seen.name),
            fallback: policy.fallbacks.get(&seen.name).cloned().unwrap_or_default(),
            pages_pending: pending.get(seen.name.as_str()).copied().unwrap_or_default(),
            pages_delivered: known.delivered,
            pages_failed: known.failed,
            last_delivered: known.last_delivered.map(timestamp_to_wire),
            last_error,
            next_try: next_try.map(timestamp_to_wire),
            escalates_itself: seen.escalates_itself,
            dead_letters: dead.get(seen.name.as_str()).copied().unwrap_or_default(),
            name: seen.name,
        }
    };
    seen.into_iter().map(wire).collect()
}

fn letter_to_wire(state: &State, letter: &DeadLetter) -> v1::DeadLetter {
    let page = &letter.record.page;
    let error = match &letter.record.outcome {
        Some(PageOutcome::Failed { error }) => error.clone(),
        _ => String::new(),
    };
    v1::DeadLetter {
        page_id: letter.record.id.0.to_string(),
        receiver: page.receiver.clone(),
        incident: page.incident.clone(),
        action: page.action.as_str().to_owned(),
        severity: severity_to_wire(page.severity),
        title: page.title.clone(),
        error,
        requested: Some(timestamp_to_wire(page.requested)),
        failed: Some(timestamp_to_wire(letter.failed)),
        settled_because: may_resend(state, letter.record.id)
            .err()
            .map(|why| why.message().to_owned())
            .unwrap_or_default(),
    }
}

/// A message that says it is a test. Its key is its own, so that it joins nothing.
fn test_page(fleet: &str, receiver: &str, by: &str, now: Timestamp) -> Page {
    Page {
        receiver: receiver.to_owned(),
        action: PageAction::Trigger,
        dedup_key: format!("muster-test-{}", uuid::Uuid::new_v4().simple()),
        incident: "TEST".to_owned(),
        cause_key: format!("coordinator/test/{}", TEST_PAGE.0),
        severity: Severity::Sev4,
        reason: Reason::CoordinatorFault,
        grade: Grade::Confirmed,
        title: format!("test of the receiver {receiver}, fleet {fleet}: nothing is wrong, nobody needs to act"),
        why: format!("{by} tries whether pages arrive"),
        details: Vec::new(),
        next_steps: vec!["nothing: this is a test".to_owned()],
        agents: Vec::new(),
        n_agents: 0,
        services: Vec::new(),
        began: now,
        requested: now,
        late_by_ms: None,
    }
}

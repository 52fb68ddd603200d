//! `FindingService`: what is wrong now, and the journal.

use super::caller::{READERS, allow};
use super::events::event;
use super::explain::doubted_service;
use super::paging::{PAGE_BYTES_MAX, PageRequest, bad_token, encode};
use super::status_of;
use super::watch::{Watched, Watchers};
use crate::runtime::{Batch, Handle, View};
use crate::store::{StoreError, StoredEntry};
use muster_common::finding::{Finding, FindingEvent, FindingKey};
use muster_common::ids::AgentName;
use muster_common::reason::{Reason, ReasonKind};
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use muster_coordinator_core::State;
use muster_coordinator_core::entry::{Entry, EntryBody, Fact};
use muster_coordinator_core::explain;
use muster_proto::convert::{finding_to_wire, severity, timestamp_to_wire};
use muster_proto::v1;
use muster_proto::v1::finding_service_server::FindingService;
use prost::Message;
use std::cmp::Reverse;
use tonic::{Request, Response, Status};

/// Journal entries looked at for one page of a filtered list. Overflow rule: the page may be short, its token goes on.
const EVENTS_SCANNED_MAX: u64 = 5_000;
/// Entries read from the store at once.
const EVENTS_READ: u64 = 500;
const TRACE_READ: usize = 500;
const OF_NEWER_AGENTS: &str = "a newer agent's own name is known while what it tells is open or recent; all of these are listed by unknown_condition and unknown_occurrence";

/// Serves operators.
#[derive(Debug, Clone)]
pub struct FindingApi {
    handle: Handle,
    watchers: Watchers,
}

impl FindingApi {
    /// Asks the loop behind `handle`.
    pub fn new(handle: Handle) -> Self {
        Self { handle, watchers: Watchers::default() }
    }
}

/// Which findings are asked for.
#[derive(Debug, Clone)]
struct Filter {
    agent: String,
    service: String,
    reason: String,
    min_severity: Option<Severity>,
}

impl Filter {
    fn new(agent: String, service: String, reason: String, min_severity: i32) -> Result<Self, Status> {
        let min_severity = if min_severity == 0 { None } else { Some(severity(min_severity)?) };
        Ok(Self { agent, service, reason, min_severity })
    }

    /// A reason that is not known here is one that a newer agent tells now, or a slip.
    fn check(&self, state: &State) -> Result<(), Status> {
        let Some(error) = self.reason.parse::<Reason>().err().filter(|_| !self.reason.is_empty()) else {
            return Ok(());
        };
        let open = state.open_findings().map(|(_, open)| &open.finding.key);
        let recent = state.recent_occurrences().map(|occurrence| &occurrence.finding.key);
        if open.chain(recent).any(|key| key.told().2 == self.reason) {
            return Ok(());
        }
        Err(Status::invalid_argument(format!("reason: {error} ({OF_NEWER_AGENTS})")))
    }

    fn matches(&self, agent: &AgentName, finding: &Finding) -> bool {
        let or_any = |wanted: &str, found: &str| wanted.is_empty() || wanted == found;
        or_any(&self.agent, agent.as_str())
            && or_any(&self.service, finding.key.subject.service.as_str())
            && (or_any(&self.reason, finding.key.reason.as_str()) || self.reason == finding.key.told().2)
            && self.min_severity.is_none_or(|least| finding.severity >= least)
    }
}

/// A finding with its circumstances.
struct Row<'a> {
    agent: &'a AgentName,
    finding: &'a Finding,
    observed: Timestamp,
    received: Timestamp,
    estimated: bool,
    index: u64,
}

impl Row<'_> {
    fn id(&self) -> String {
        format!("{}/{}", self.agent, self.finding.key)
    }

    fn wire(&self, view: &View<'_>) -> v1::Finding {
        let id = self.id();
        let incident = explain::incident_of(view.state, self.agent, self.finding, self.received);
        let kind = match self.finding.key.reason.kind() {
            ReasonKind::Occurrence => "occurrence",
            _ => "condition",
        };
        v1::Finding {
            agent: self.agent.to_string(),
            detail: Some(finding_to_wire(self.finding)),
            kind: kind.to_owned(),
            observed: Some(timestamp_to_wire(self.observed)),
            received: Some(timestamp_to_wire(self.received)),
            observed_estimated: self.estimated,
            incident: incident.map(|incident| incident.number.clone()).unwrap_or_default(),
            trace_id: self.index.to_string(),
            id,
        }
    }
}

/// Worst first, then by agent and name; the index tells occurrences of one name apart.
type Order<A, K> = (Reverse<Severity>, A, K, u64);

fn list(
    view: &View<'_>,
    filter: &Filter,
    occurrences: bool,
    wanted: &PageRequest,
    after: Option<&Order<AgentName, FindingKey>>,
) -> v1::ListFindingsResponse {
    let open = view.state.open_findings().map(|(agent, open)| Row {
        agent,
        finding: &open.finding,
        observed: open.opened,
        received: open.received,
        estimated: open.estimated,
        index: open.event_index,
    });
    let recent = view.state.recent_occurrences().filter(|_| occurrences).map(|occurrence| Row {
        agent: &occurrence.agent,
        finding: &occurrence.finding,
        observed: occurrence.observed,
        received: occurrence.received,
        estimated: false,
        index: occurrence.index,
    });
    let rows = open.chain(recent).filter(|row| filter.matches(row.agent, row.finding));
    let keyed = rows.map(|row| ((Reverse(row.finding.severity), row.agent, &row.finding.key, row.index), row));
    let after = after.map(|(severity, agent, key, index)| (*severity, agent, key, *index));
    let token = |(Reverse(severity), agent, key, index): &Order<&AgentName, &FindingKey>| {
        // Plain data: it always encodes, and an empty token would only begin the list anew.
        serde_json::to_string(&(severity, agent, key, index)).unwrap_or_default()
    };
    let page = wanted.cut(keyed, after.as_ref(), token, |row| row.wire(view));
    let note = doubted_service(view.state, &filter.service, page.total);
    v1::ListFindingsResponse { findings: page.items, next_page_token: page.next_token, total_size: page.total, note }
}

/// What followed from one fact, oldest first, from `from` on; none when there is no such entry. An entry within the trace
/// stands for all of it.
fn trace(view: &View<'_>, trace: u64, from: u64, size: usize) -> Result<v1::GetTraceResponse, StoreError> {
    let begins = view.store.entries_from(trace, 1)?.first().filter(|stored| stored.index == trace).map(begins_at);
    let Some(begins) = begins.transpose()? else { return Ok(v1::GetTraceResponse::default()) };
    let (mut events, mut bytes, mut next) = (Vec::new(), 0, from.max(begins));
    loop {
        let batch = view.store.entries_from(next, size.min(TRACE_READ))?;
        for stored in &batch {
            if begins_at(stored)? != begins {
                return Ok(v1::GetTraceResponse { events, next_page_token: String::new() });
            }
            if events.len() == size || bytes >= PAGE_BYTES_MAX {
                return Ok(v1::GetTraceResponse { events, next_page_token: encode(&stored.index.to_string()) });
            }
            next = stored.index + 1;
            let event = event(view.state, stored);
            bytes += event.as_ref().map_or(0, Message::encoded_len);
            events.extend(event);
        }
        if batch.is_empty() {
            return Ok(v1::GetTraceResponse { events, next_page_token: String::new() });
        }
    }
}

fn begins_at(stored: &StoredEntry) -> Result<u64, StoreError> {
    Ok(stored.decode()?.trace)
}

/// Newest first, from below `before`.
fn events(
    view: &View<'_>,
    before: u64,
    size: usize,
    agent: &str,
    incident: &str,
) -> Result<v1::ListEventsResponse, StoreError> {
    let mut events = Vec::new();
    let oldest = view.store.oldest()?;
    let floor = before.saturating_sub(EVENTS_SCANNED_MAX).max(oldest);
    let (mut next, mut bytes, mut full) = (before, 0, false);
    while next > floor && !full {
        let from = next.saturating_sub(EVENTS_READ).max(floor);
        let count = usize::try_from(next - from).unwrap_or(usize::MAX);
        for stored in view.store.entries_from(from, count)?.iter().rev() {
            full = events.len() == size || bytes >= PAGE_BYTES_MAX;
            if full {
                break;
            }
            next = stored.index;
            let found = event(view.state, stored).filter(|event| {
                (agent.is_empty() || event.agent == agent) && (incident.is_empty() || event.incident == incident)
            });
            // The one that goes beyond is still given: no entry is as large as the room above.
            bytes += found.as_ref().map_or(0, Message::encoded_len);
            events.extend(found);
        }
        if !full {
            next = from;
        }
    }
    let next_page_token = if next > oldest { encode(&next.to_string()) } else { String::new() };
    Ok(v1::ListEventsResponse { events, next_page_token })
}

#[tonic::async_trait]
impl FindingService for FindingApi {
    type WatchFindingsStream = Watched<v1::WatchFindingsResponse>;

    async fn list_findings(
        &self,
        request: Request<v1::ListFindingsRequest>,
    ) -> Result<Response<v1::ListFindingsResponse>, Status> {
        allow(&request, READERS)?;
        let request = request.into_inner();
        let wanted = PageRequest::new(request.page_size, &request.page_token)?;
        let filter = Filter::new(request.agent, request.service, request.reason, request.min_severity)?;
        let occurrences = request.include_occurrences;
        let after = wanted.after().map(serde_json::from_str::<(Severity, AgentName, FindingKey, u64)>).transpose();
        let after = after.map_err(|_| bad_token())?;
        let after = after.map(|(severity, agent, key, index)| (Reverse(severity), agent, key, index));
        let read = move |view: &View<'_>| {
            filter.check(view.state)?;
            Ok(list(view, &filter, occurrences, &wanted, after.as_ref()))
        };
        self.handle.query(read).await.map_err(|error| status_of(&error))?.map(Response::new)
    }

    async fn watch_findings(
        &self,
        request: Request<v1::WatchFindingsRequest>,
    ) -> Result<Response<Self::WatchFindingsStream>, Status> {
        allow(&request, READERS)?;
        let request = request.into_inner();
        let filter = Filter::new(request.agent, request.service, request.reason, request.min_severity)?;
        let wanted = filter.clone();
        let checked = self.handle.query(move |view| wanted.check(view.state)).await;
        checked.map_err(|error| status_of(&error))??;
        let handle = self.handle.clone();
        let stream = self.watchers.watch(
            &self.handle,
            || async { Ok(Vec::new()) },
            move |batch: Batch| {
                let (handle, filter) = (handle.clone(), filter.clone());
                async move {
                    let read = move |view: &View<'_>| {
                        let told = batch.entries.iter().flat_map(|entry| match &entry.body {
                            EntryBody::Fact(Fact::OpenSetReceived { .. }) => resynced(view, &filter, &batch, entry),
                            _ => change(view, &filter, entry).into_iter().collect(),
                        });
                        told.collect::<Vec<_>>()
                    };
                    handle.query(read).await.map_err(|error| status_of(&error))
                }
            },
        )?;
        Ok(Response::new(stream))
    }

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<v1::ListEventsResponse>, Status> {
        allow(&request, READERS)?;
        let request = request.into_inner();
        let wanted = PageRequest::new(request.page_size, &request.page_token)?;
        let before = wanted.after().map(str::parse::<u64>).transpose().map_err(|_| bad_token())?;
        let read = move |view: &View<'_>| {
            let end = view.state.head_index() + 1;
            events(view, before.unwrap_or(end).min(end), wanted.size(), &request.agent, &request.incident)
        };
        let found = self.handle.query(read).await.map_err(|error| status_of(&error))?;
        found.map(Response::new).map_err(|error| Status::internal(muster_common::chain::Chain(&error).to_string()))
    }

    async fn get_trace(&self, request: Request<v1::GetTraceRequest>) -> Result<Response<v1::GetTraceResponse>, Status> {
        allow(&request, READERS)?;
        let request = request.into_inner();
        let wanted = PageRequest::new(request.page_size, &request.page_token)?;
        let from = wanted.after().map(str::parse::<u64>).transpose().map_err(|_| bad_token())?.unwrap_or_default();
        let id: u64 = request.trace_id.parse().map_err(|_| {
            Status::invalid_argument(
                "trace_id is the number of a journal entry: see ListEvents (musterctl events list)",
            )
        })?;
        let read = move |view: &View<'_>| trace(view, id, from, wanted.size());
        let found = self.handle.query(read).await.map_err(|error| status_of(&error))?;
        let found = found.map_err(|error| Status::internal(muster_common::chain::Chain(&error).to_string()))?;
        if found.events.is_empty() && from == 0 {
            let text =
                format!("the journal has no entry {id}: see ListEvents (musterctl events list) for those it has");
            return Err(Status::not_found(text));
        }
        Ok(Response::new(found))
    }
}

fn change(view: &View<'_>, filter: &Filter, entry: &Entry) -> Option<v1::WatchFindingsResponse> {
    let EntryBody::Fact(Fact::FindingReceived { agent, observed, estimated, event, .. }) = &entry.body else {
        return None;
    };
    let change = match event {
        FindingEvent::Opened(_) => "opened",
        FindingEvent::Updated(_) => "updated",
        FindingEvent::Cleared { .. } => "cleared",
        FindingEvent::Occurred(_) => "occurred",
    };
    let cleared;
    let finding = match event {
        FindingEvent::Opened(finding) | FindingEvent::Updated(finding) | FindingEvent::Occurred(finding) => finding,
        FindingEvent::Cleared { key, summary, evidence } => {
            cleared = Finding::new(key.clone(), summary).evidence(evidence.clone());
            &cleared
        }
    };
    filter.matches(agent, finding).then(|| {
        let (observed, received) = (*observed, entry.at);
        let row = Row { agent, finding, observed, received, estimated: *estimated, index: entry.index };
        v1::WatchFindingsResponse { change: change.to_owned(), finding: Some(row.wire(view)), by_resync: false }
    })
}

/// What came out when an agent told its whole open set.
fn resynced(view: &View<'_>, filter: &Filter, batch: &Batch, entry: &Entry) -> Vec<v1::WatchFindingsResponse> {
    let Some(found) = batch.resynced.iter().find(|resynced| resynced.index == entry.index) else { return Vec::new() };
    let changes = |change: &'static str, findings: &[Finding]| -> Vec<v1::WatchFindingsResponse> {
        let matching = findings.iter().filter(|finding| filter.matches(&found.agent, finding));
        let told = matching.map(|finding| {
            let (agent, at, index) = (&found.agent, entry.at, entry.index);
            let row = Row { agent, finding, observed: at, received: at, estimated: false, index };
            v1::WatchFindingsResponse { change: change.to_owned(), finding: Some(row.wire(view)), by_resync: true }
        });
        told.collect()
    };
    [changes("opened", &found.opened), changes("cleared", &found.cleared)].concat()
}

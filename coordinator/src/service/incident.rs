//! `IncidentService`: what people are woken for, and what they do about it.

use super::caller::{ACTORS, READERS, allow};
use super::events::{incident_of, maybe};
use super::paging::{PageRequest, bad_token};
use super::watch::{Watched, Watchers};
use super::{explain, export, status_of};
use crate::runtime::{Batch, Handle, View};
use muster_common::limits::{NAME_BYTES_MAX, NOTE_BYTES_MAX, clip};
use muster_coordinator_core::decide;
use muster_coordinator_core::entry::{Fact, IncidentKey, OperatorAction, Resolution};
use muster_coordinator_core::explain::{title, waits_for};
use muster_coordinator_core::state::{Incident, IncidentStatus};
use muster_proto::convert::{bounded, grade_to_wire, severity, severity_to_wire, timestamp_to_wire};
use muster_proto::v1::incident_service_server::IncidentService;
use muster_proto::v1::{self, IncidentState, PagedState};
use std::cmp::Reverse;
use std::collections::BTreeSet;
use tonic::{Request, Response, Status};

/// Serves operators.
#[derive(Debug, Clone)]
pub struct IncidentApi {
    handle: Handle,
    watchers: Watchers,
}

impl IncidentApi {
    /// Asks the loop behind `handle`.
    pub fn new(handle: Handle) -> Self {
        Self { handle, watchers: Watchers::default() }
    }

    async fn get(&self, number: &str) -> Result<v1::Incident, Status> {
        let id = number.to_owned();
        let read = move |view: &View<'_>| view.state.incident_by_number(&id).map(|found| wire(view, found, true));
        let found = self.handle.query(read).await.map_err(|error| status_of(&error))?;
        found.ok_or_else(|| unknown(number))
    }

    /// Journals what a person did about an incident that is `open_only` not resolved yet.
    async fn act(
        &self,
        by: String,
        number: &str,
        open_only: bool,
        action: OperatorAction,
    ) -> Result<Response<v1::Incident>, Status> {
        let id = number.to_owned();
        let read = move |view: &View<'_>| {
            let incident = view.state.incident_by_number(&id)?;
            let goes_on = view.state.goes_on_in(incident).map(|cause| cause.number.clone());
            Some((incident.key.clone(), incident.is_unresolved(), goes_on))
        };
        let found = self.handle.query(read).await.map_err(|error| status_of(&error))?;
        let (IncidentKey { cause, generation }, unresolved, goes_on) = found.ok_or_else(|| unknown(number))?;
        if open_only && !unresolved {
            let text = match goes_on {
                Some(cause) => format!("{number} is a symptom of {cause}, which is not over: say it about {cause}"),
                None => format!("{number} is resolved: nothing is left to do; add a note if there is more to say"),
            };
            return Err(Status::failed_precondition(text));
        }
        let fact = Fact::Operator { by, cause, generation, action };
        self.handle.submit(fact).await.map_err(|error| status_of(&error))?;
        self.get(number).await.map(Response::new)
    }

    async fn changed(&self, keys: BTreeSet<IncidentKey>, resolved: bool) -> Result<Vec<v1::Incident>, Status> {
        let read = move |view: &View<'_>| {
            let found = keys.iter().filter_map(|key| view.state.incident(key));
            // A change to resolved is news to those who watch the open ones, too.
            let wanted = |incident: &&Incident| resolved || incident.is_unresolved() || incident.resolved.is_some();
            found.filter(wanted).map(|incident| wire(view, incident, false)).collect()
        };
        self.handle.query(read).await.map_err(|error| status_of(&error))
    }
}

fn unknown(number: &str) -> Status {
    let number = clip(number, 64);
    Status::not_found(format!(
        "no incident {number:?}: see ListIncidents with include_resolved (musterctl incidents list --all) for those that \
         are kept"
    ))
}

#[tonic::async_trait]
impl IncidentService for IncidentApi {
    type WatchIncidentsStream = Watched<v1::WatchIncidentsResponse>;

    async fn list_incidents(
        &self,
        request: Request<v1::ListIncidentsRequest>,
    ) -> Result<Response<v1::ListIncidentsResponse>, Status> {
        allow(&request, READERS)?;
        let request = request.into_inner();
        let wanted = PageRequest::new(request.page_size, &request.page_token)?;
        let after = wanted.after().map(|token| {
            let (opened_ms, number) = token.split_once('/').ok_or_else(bad_token)?;
            Ok::<_, Status>((opened_ms.parse::<i64>().map_err(|_| bad_token())?, number.to_owned()))
        });
        let after = after.transpose()?;
        let state = IncidentState::try_from(request.state)
            .map_err(|_| Status::invalid_argument(format!("state has the unknown value {}", request.state)))?;
        let read = move |view: &View<'_>| {
            let matching = view.state.incidents().filter(|incident| {
                let by_state = match state {
                    IncidentState::Unspecified => request.include_resolved || incident.is_unresolved(),
                    state => state_of(incident) == state,
                };
                let agent = &request.agent;
                by_state
                    && (agent.is_empty() || incident.agents.iter().any(|name| name.as_str() == agent))
                    && (request.service.is_empty() || incident.concerns_service(&request.service))
            });
            let after = after.as_ref().map(|(opened_ms, number)| (Reverse(*opened_ms), number.as_str()));
            let keyed = matching.map(|incident| (order(incident), incident));
            let token = |(Reverse(opened_ms), number): &Order<'_>| format!("{opened_ms}/{number}");
            let page = wanted.cut(keyed, after.as_ref(), token, |incident| wire(view, incident, false));
            let note = explain::doubted_service(view.state, &request.service, page.total);
            (page, note)
        };
        let (page, note) = self.handle.query(read).await.map_err(|error| status_of(&error))?;
        Ok(Response::new(v1::ListIncidentsResponse {
            incidents: page.items,
            next_page_token: page.next_token,
            total_size: page.total,
            note,
        }))
    }

    async fn get_incident(&self, request: Request<v1::GetIncidentRequest>) -> Result<Response<v1::Incident>, Status> {
        allow(&request, READERS)?;
        self.get(&request.into_inner().id).await.map(Response::new)
    }

    async fn watch_incidents(
        &self,
        request: Request<v1::WatchIncidentsRequest>,
    ) -> Result<Response<Self::WatchIncidentsStream>, Status> {
        allow(&request, READERS)?;
        let resolved = request.into_inner().include_resolved;
        let wrap = |incidents: Vec<v1::Incident>| {
            let response = |incident| v1::WatchIncidentsResponse { incident: Some(incident) };
            incidents.into_iter().map(response).collect::<Vec<_>>()
        };
        let (first, then) = (self.handle.clone(), self.clone());
        let stream = self.watchers.watch(
            &self.handle,
            move || async move {
                let read = move |view: &View<'_>| {
                    let wanted = view.state.incidents().filter(|incident| resolved || incident.is_unresolved());
                    wanted.map(|incident| wire(view, incident, false)).collect()
                };
                first.query(read).await.map(wrap).map_err(|error| status_of(&error))
            },
            move |batch: Batch| {
                let then = then.clone();
                async move {
                    let read = move |view: &View<'_>| {
                        batch.entries.iter().filter_map(|entry| incident_of(view.state, entry)).collect()
                    };
                    let keys: BTreeSet<IncidentKey> =
                        then.handle.query(read).await.map_err(|error| status_of(&error))?;
                    if keys.is_empty() {
                        return Ok(Vec::new());
                    }
                    then.changed(keys, resolved).await.map(wrap)
                }
            },
        )?;
        Ok(Response::new(stream))
    }

    async fn acknowledge_incident(
        &self,
        request: Request<v1::AcknowledgeIncidentRequest>,
    ) -> Result<Response<v1::Incident>, Status> {
        let by = allow(&request, ACTORS)?.name();
        let request = request.into_inner();
        let note = bounded("note", &request.note, NOTE_BYTES_MAX)?;
        self.act(by, &request.id, true, OperatorAction::Acknowledge { note }).await
    }

    async fn resolve_incident(
        &self,
        request: Request<v1::ResolveIncidentRequest>,
    ) -> Result<Response<v1::Incident>, Status> {
        let by = allow(&request, ACTORS)?.name();
        let request = request.into_inner();
        let summary = bounded("summary", &request.summary, NOTE_BYTES_MAX)?;
        if summary.trim().is_empty() {
            return Err(Status::invalid_argument("summary is empty: say why it is over"));
        }
        self.act(by, &request.id, true, OperatorAction::Resolve { summary }).await
    }

    async fn add_note(&self, request: Request<v1::AddNoteRequest>) -> Result<Response<v1::Incident>, Status> {
        let by = allow(&request, ACTORS)?.name();
        let request = request.into_inner();
        let text = bounded("text", &request.text, NOTE_BYTES_MAX)?;
        if text.trim().is_empty() {
            return Err(Status::invalid_argument("text is empty: say something"));
        }
        self.act(by, &request.id, false, OperatorAction::Note { text }).await
    }

    async fn set_severity(&self, request: Request<v1::SetSeverityRequest>) -> Result<Response<v1::Incident>, Status> {
        let by = allow(&request, ACTORS)?.name();
        let request = request.into_inner();
        let severity = severity(request.severity)?;
        let note = bounded("note", &request.note, NOTE_BYTES_MAX)?;
        if note.trim().is_empty() {
            return Err(Status::invalid_argument("note is empty: say why, whoever is paged reads it"));
        }
        self.act(by, &request.id, true, OperatorAction::SetSeverity { severity, note }).await
    }

    async fn set_commander(&self, request: Request<v1::SetCommanderRequest>) -> Result<Response<v1::Incident>, Status> {
        let by = allow(&request, ACTORS)?.name();
        let request = request.into_inner();
        let commander = bounded("commander", request.commander.trim(), NAME_BYTES_MAX)?;
        self.act(by, &request.id, true, OperatorAction::SetCommander { commander }).await
    }

    async fn export_incident(
        &self,
        request: Request<v1::ExportIncidentRequest>,
    ) -> Result<Response<v1::ExportIncidentResponse>, Status> {
        allow(&request, READERS)?;
        export::incident(&self.handle, request.into_inner()).await.map(Response::new)
    }

    type ExportBundleStream = Watched<v1::ExportBundleResponse>;

    async fn export_bundle(
        &self,
        request: Request<v1::ExportBundleRequest>,
    ) -> Result<Response<Self::ExportBundleStream>, Status> {
        allow(&request, READERS)?;
        export::bundle(&self.handle, request.into_inner()).await.map(Response::new)
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        allow(&request, READERS)?;
        explain::explain(&self.handle, request.into_inner()).await.map(Response::new)
    }
}

/// Newest first; the number tells those of one moment apart.
type Order<'a> = (Reverse<i64>, &'a str);

fn order(incident: &Incident) -> Order<'_> {
    (Reverse(incident.opened.unix_ms()), &incident.number)
}

fn state_of(incident: &Incident) -> IncidentState {
    match incident.status {
        IncidentStatus::Resolved => IncidentState::Resolved,
        IncidentStatus::Recovering => IncidentState::Recovering,
        _ if incident.acknowledged.is_some() => IncidentState::Acknowledged,
        _ => IncidentState::Open,
    }
}

/// What it was made of, without the agents that fell silent.
fn findings(incident: &Incident) -> impl Iterator<Item = &String> {
    incident.members.iter().filter(|member| member.contains('/'))
}

/// Findings and symptoms of an unresolved incident of which nothing is open any more.
fn over(view: &View<'_>, incident: &Incident) -> Vec<String> {
    let own = view.state.cause(&incident.key.cause);
    let is_open = |member: &String| {
        own.is_some_and(|cause| cause.members.contains_key(member))
            || view.state.cause(member).is_some_and(|symptom| {
                !symptom.members.is_empty() || symptom.storm.as_ref().is_some_and(|storm| storm.active)
            })
    };
    findings(incident).filter(|member| incident.is_unresolved() && !is_open(member)).cloned().collect()
}

fn wire(view: &View<'_>, incident: &Incident, with_timeline: bool) -> v1::Incident {
    let timeline = incident.timeline.iter().filter(|_| with_timeline).map(|line| v1::TimelineItem {
        at: Some(timestamp_to_wire(line.at)),
        kind: line.kind.as_str().to_owned(),
        text: line.text.clone(),
        journal_index: line.index,
    });
    let (resolution, folded_into) = resolution(view, incident);
    v1::Incident {
        id: incident.number.clone(),
        cause_key: incident.key.cause.clone(),
        generation: incident.key.generation,
        dedup_key: incident.page_keys.last().map(|key| key.dedup_key.clone()).unwrap_or_default(),
        state: state_of(incident).into(),
        severity: severity_to_wire(incident.severity),
        reason: incident.reason.to_string(),
        title: title(view.state, incident, view.now),
        why: incident.why.clone(),
        grade: grade_to_wire(incident.grade),
        opened: Some(timestamp_to_wire(incident.opened)),
        began: Some(timestamp_to_wire(incident.began)),
        resolved: maybe(incident.resolved),
        resolution,
        owner: incident.owner.clone().unwrap_or_default(),
        acknowledged: maybe(incident.acknowledged),
        agents: incident.agents.iter().map(ToString::to_string).collect(),
        services: incident.services_named().map(str::to_owned).collect(),
        findings: findings(incident).cloned().collect(),
        next_steps: incident.next_steps.clone(),
        paged: maybe(incident.first_delivered),
        pages_sent: u32::try_from(incident.pages_delivered).unwrap_or(u32::MAX),
        folded_into,
        timeline: timeline.collect(),
        not_paged_because: not_paged_because(view, incident),
        paged_state: paged_state(incident).into(),
        pages_failed: u32::try_from(incident.triggers_failed).unwrap_or(u32::MAX),
        commander: incident.response.commander.clone().unwrap_or_default(),
        escalate_time: maybe(incident.response.escalate_at),
        escalations: u32::try_from(incident.response.escalations).unwrap_or(u32::MAX),
        silenced_by: silenced_by(view, incident),
        changes: incident.changes.clone(),
        waiting_for: waits_for(view.state, incident, view.now).unwrap_or_default(),
        findings_over: if with_timeline { over(view, incident) } else { Vec::new() },
    }
}

fn paged_state(incident: &Incident) -> PagedState {
    let pending = || incident.page_keys.iter().any(|key| !key.pending.is_empty());
    match incident {
        _ if incident.first_delivered.is_some() => PagedState::Yes,
        _ if pending() => PagedState::Pending,
        _ if incident.triggers_failed > 0 => PagedState::Failed,
        _ => PagedState::No,
    }
}

fn resolution(view: &View<'_>, incident: &Incident) -> (String, String) {
    match &incident.resolution {
        None => Default::default(),
        Some(Resolution::Evidence) => (decide::ended(incident).to_owned(), String::new()),
        Some(Resolution::Operator { by, summary }) => (format!("by {by}: {summary}"), String::new()),
        Some(Resolution::FoldedInto { incident }) => {
            let number = view.state.incident(incident).map(|into| into.number.clone()).unwrap_or_default();
            (format!("a symptom of {number}"), number)
        }
        Some(Resolution::MergedInto { incident }) => {
            let number = view.state.incident(incident).map(|into| into.number.clone()).unwrap_or_default();
            (format!("merged into {number}"), number)
        }
    }
}

/// The silence that holds its pages back now; of what is resolved there is nothing to hold back.
fn silenced_by(view: &View<'_>, incident: &Incident) -> String {
    let silence = view.state.silence_of(incident).filter(|_| incident.is_unresolved());
    silence.map(|(_, silence)| silence.id.clone()).unwrap_or_default()
}

fn not_paged_because(view: &View<'_>, incident: &Incident) -> String {
    if incident.has_paged() {
        return String::new();
    }
    if let Some(until) = incident.hold_until {
        return format!("on hold until {until}, so that its symptoms can gather");
    }
    let policy = view.state.policy();
    if incident.severity < policy.page_from {
        return format!("{} is less bad than {}, from which on incidents page", incident.severity, policy.page_from);
    }
    if policy.receivers.is_empty() {
        return "no receiver is configured".to_owned();
    }
    if let Some((_, silence)) = view.state.silence_of(incident).filter(|_| incident.is_unresolved()) {
        return format!("held back by {} {}", silence.kind.as_str(), silence.words());
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::ids::{CoordinatorId, Epoch, FleetName};
    use muster_common::time::Timestamp;
    use muster_coordinator_core::machine::Machine;
    use muster_coordinator_core::page::PageId;
    use muster_coordinator_core::policy::Policy;
    use muster_coordinator_core::state::State;
    use std::time::Duration;

    fn start() -> Timestamp {
        Timestamp::from_unix_ms(1_795_220_000_000)
    }

    /// A fault that was paged to two receivers.
    fn machine() -> Machine {
        let mut machine = Machine::new(State::genesis());
        let coordinator = CoordinatorId::new("coord-a").unwrap();
        let policy = Policy { receivers: vec!["ops".to_owned(), "chat".to_owned()], ..Policy::default() };
        let epoch = Epoch { number: 1, coordinator: coordinator.clone() };
        let (fleet, version) = (FleetName::new("test").unwrap(), String::new());
        machine.feed(start(), Fact::Started { coordinator, fleet, version, epoch });
        machine.feed(start(), Fact::PolicyLoaded { policy: Box::new(policy) });
        machine.feed(start(), Fact::DecidePanicked { entry: 1, message: "it".to_owned() });
        assert_eq!(told(&machine), (IncidentState::Recovering, PagedState::No), "it happened and is over; on hold");
        machine.run_deadlines(start() + Duration::from_secs(60));
        machine
    }

    fn told(machine: &Machine) -> (IncidentState, PagedState) {
        let incident = machine.state().newest_incident("coordinator/fault").unwrap();
        (state_of(incident), paged_state(incident))
    }

    #[test]
    fn paged_is_told_as_it_went() {
        let mut machine = machine();
        let now = start() + Duration::from_secs(61);
        let pages: Vec<PageId> = machine.state().pending_pages().map(|record| record.id).collect();
        let (&[first, second], error) = (pages.as_slice(), "answered 400".to_owned()) else { panic!("{pages:?}") };
        assert_eq!(told(&machine).1, PagedState::Pending);
        machine.feed(now, Fact::PageFailed { page: first, error: error.clone() });
        assert_eq!(told(&machine).1, PagedState::Pending);
        let mut all_failed = Machine::new(machine.state().clone());
        all_failed.feed(now, Fact::PageFailed { page: second, error });
        assert_eq!(told(&all_failed).1, PagedState::Failed);
        machine.feed(now, Fact::PageDelivered { page: second });
        assert_eq!(told(&machine).1, PagedState::Yes);
    }
}

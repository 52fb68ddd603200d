//! `FleetService`: who is there, and how the coordinator itself stands.

use super::caller::{ACTORS, READERS, allow};
use super::events::maybe;
use super::paging::{PageRequest, bad_token};
use super::receivers::is_resendable;
use super::status_of;
use super::watch::{Watched, Watchers};
use crate::runtime::{Answer, Batch, Handle, Link, NoAnswer, View};
use muster_common::ids::{AgentName, ServiceName};
use muster_common::limits::SUMMARY_BYTES_MAX;
use muster_common::units::human_duration;
use muster_coordinator_core::entry::{Disconnect, Entry, EntryBody, Fact, Silence};
use muster_coordinator_core::silence;
use muster_coordinator_core::state::{AgentRecord, Link as Standing};
use muster_proto::convert::{bounded, duration_to_wire, epoch_to_wire, severity_to_wire, timestamp_to_wire};
use muster_proto::v1::connect_response::Message;
use muster_proto::v1::fleet_service_server::FleetService;
use muster_proto::v1::{self, AgentState};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::{Request, Response, Status};

/// An agent on the other side of the world answers well within this.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// An agent answers between two turns of its loop, which may wait for its disk.
const DIAGNOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Silences that end soon that a status tells of; the list has them all.
const ENDING_TOLD_MAX: usize = 5;

/// Serves operators.
#[derive(Debug, Clone)]
pub struct FleetApi {
    handle: Handle,
    watchers: Watchers,
}

impl FleetApi {
    /// Asks the loop behind `handle`.
    pub fn new(handle: Handle) -> Self {
        Self { handle, watchers: Watchers::default() }
    }

    async fn agents(&self, filter: Filter, only: Option<BTreeSet<AgentName>>) -> Result<Vec<v1::Agent>, Status> {
        // Of a few, only those are looked at: every change of every agent comes this way to every watcher.
        let links: BTreeMap<_, _> = match &only {
            None => self.links(),
            Some(only) => only.iter().filter_map(|name| Some((name.clone(), self.handle.links().get(name)?))).collect(),
        };
        let read = move |view: &View<'_>| {
            let wire = |record: &AgentRecord| agent(view, record, links.get(&record.name).map(Arc::as_ref));
            match &only {
                None => view.state.agents().filter(|record| filter.matches(record)).map(wire).collect(),
                Some(only) => {
                    let known = only.iter().filter_map(|name| view.state.agent(name));
                    known.filter(|record| filter.matches(record)).map(wire).collect()
                }
            }
        };
        self.handle.query(read).await.map_err(|error| status_of(&error))
    }

    /// The stream of an agent that is known and connected.
    async fn connected(&self, id: &str) -> Result<(AgentName, Arc<Link>), Status> {
        let name = agent_name(id)?;
        let known = name.clone();
        let known = self.handle.query(move |view| view.state.agent(&known).is_some()).await;
        if !known.map_err(|error| status_of(&error))? {
            return Err(unknown(&name));
        }
        let link = self.handle.links().get(&name).ok_or_else(|| not_connected(&name))?;
        Ok((name, link))
    }

    fn links(&self) -> BTreeMap<AgentName, Arc<Link>> {
        self.handle.links().all().into_iter().collect()
    }
}

/// Which agents are asked for.
#[derive(Debug, Clone)]
struct Filter {
    state: AgentState,
    labels: HashMap<String, String>,
}

impl Filter {
    fn new(state: i32, labels: HashMap<String, String>) -> Result<Self, Status> {
        let state = AgentState::try_from(state)
            .map_err(|_| Status::invalid_argument(format!("state has the unknown value {state}")))?;
        Ok(Self { state, labels })
    }

    fn matches(&self, record: &AgentRecord) -> bool {
        let state = self.state == AgentState::Unspecified || state_of(&record.link).0 == self.state;
        let label = |key| record.hello.as_ref().and_then(|hello| hello.labels.get(key));
        state && self.labels.iter().all(|(key, value)| label(key) == Some(value))
    }
}

#[tonic::async_trait]
impl FleetService for FleetApi {
    type WatchAgentsStream = Watched<v1::WatchAgentsResponse>;

    async fn get_fleet_status(
        &self,
        request: Request<v1::GetFleetStatusRequest>,
    ) -> Result<Response<v1::GetFleetStatusResponse>, Status> {
        allow(&request, READERS)?;
        let standbys = self.handle.followers().keys().map(ToString::to_string).collect();
        let mut status = self.handle.query(fleet_status).await.map_err(|error| status_of(&error))?;
        status.standbys = standbys;
        Ok(Response::new(status))
    }

    async fn list_agents(
        &self,
        request: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        allow(&request, READERS)?;
        let request = request.into_inner();
        let wanted = PageRequest::new(request.page_size, &request.page_token)?;
        let filter = Filter::new(request.state, request.labels)?;
        let after = wanted.after().map(AgentName::new).transpose().map_err(|_| bad_token())?;
        let links = self.links();
        let read = move |view: &View<'_>| {
            let matching = view.state.agents().filter(|record| filter.matches(record));
            let wire = |record: &AgentRecord| agent(view, record, links.get(&record.name).map(Arc::as_ref));
            let keyed = matching.map(|record| (&record.name, record));
            wanted.cut(keyed, after.as_ref().as_ref(), |name| name.to_string(), wire)
        };
        let page = self.handle.query(read).await.map_err(|error| status_of(&error))?;
        Ok(Response::new(v1::ListAgentsResponse {
            agents: page.items,
            next_page_token: page.next_token,
            total_size: page.total,
        }))
    }

    async fn get_agent(&self, request: Request<v1::GetAgentRequest>) -> Result<Response<v1::Agent>, Status> {
        allow(&request, READERS)?;
        let name = agent_name(&request.into_inner().id)?;
        let filter = Filter { state: AgentState::Unspecified, labels: HashMap::new() };
        let mut found = self.agents(filter, Some(BTreeSet::from([name.clone()]))).await?;
        found.pop().map(Response::new).ok_or_else(|| unknown(&name))
    }

    async fn watch_agents(
        &self,
        request: Request<v1::WatchAgentsRequest>,
    ) -> Result<Response<Self::WatchAgentsStream>, Status> {
        allow(&request, READERS)?;
        let request = request.into_inner();
        let filter = Filter::new(request.state, request.labels)?;
        let wrap = |agents: Vec<v1::Agent>| {
            let told = |agent| v1::WatchAgentsResponse { agent: Some(agent), archived: String::new() };
            agents.into_iter().map(told).collect::<Vec<_>>()
        };
        let (first, first_filter) = (self.clone(), filter.clone());
        let (then, then_filter) = (self.clone(), filter);
        let stream = self.watchers.watch(
            &self.handle,
            move || async move { first.agents(first_filter, None).await.map(wrap) },
            move |batch: Batch| {
                let (then, filter) = (then.clone(), then_filter.clone());
                async move {
                    let changed: BTreeSet<AgentName> = batch.entries.iter().filter_map(agent_of).cloned().collect();
                    if changed.is_empty() {
                        return Ok(Vec::new());
                    }
                    let archived: BTreeSet<AgentName> = batch.entries.iter().filter_map(archived).cloned().collect();
                    let told = then.agents(filter, Some(changed)).await?;
                    // One that came back since is known again.
                    let gone = archived.into_iter().filter(|name| told.iter().all(|agent| agent.id != name.as_str()));
                    let gone = gone.map(|name| v1::WatchAgentsResponse { agent: None, archived: name.into() });
                    Ok(gone.collect::<Vec<_>>().into_iter().chain(wrap(told)).collect())
                }
            },
        )?;
        Ok(Response::new(stream))
    }

    async fn ping_agent(
        &self,
        request: Request<v1::PingAgentRequest>,
    ) -> Result<Response<v1::PingAgentResponse>, Status> {
        allow(&request, READERS)?;
        let (name, link) = self.connected(&request.into_inner().id).await?;
        let Some(round_trip) = link.ping(PING_TIMEOUT).await else {
            return Err(Status::deadline_exceeded(format!("{name} is connected and does not answer")));
        };
        Ok(Response::new(v1::PingAgentResponse { round_trip: Some(duration_to_wire(round_trip)) }))
    }

    async fn diagnose_agent(
        &self,
        request: Request<v1::DiagnoseAgentRequest>,
    ) -> Result<Response<v1::DiagnoseAgentResponse>, Status> {
        allow(&request, READERS)?;
        let v1::DiagnoseAgentRequest { id, service } = request.into_inner();
        let (name, link) = self.connected(&id).await?;
        let service = match service.as_str() {
            "" => service,
            some => {
                ServiceName::new(some).map_err(|error| Status::invalid_argument(format!("service: {error}")))?.into()
            }
        };
        let begun = Instant::now();
        let question = |id| Message::Diagnose(v1::DiagnoseQuestion { id, service });
        match link.ask(question, DIAGNOSE_TIMEOUT).await {
            Ok(Answer::Diagnosis(answer)) => {
                let round_trip = Some(duration_to_wire(begun.elapsed()));
                let diagnosis = Some(answer.diagnosis.unwrap_or_default());
                Ok(Response::new(v1::DiagnoseAgentResponse { diagnosis, round_trip }))
            }
            Ok(Answer::Neighbour(_)) => Err(Status::internal(format!("{name} answered another question"))),
            Err(NoAnswer::Busy) => {
                Err(Status::resource_exhausted(format!("too much is asked of {name} at once: try again in a moment")))
            }
            Err(NoAnswer::Gone) => Err(not_connected(&name)),
            Err(NoAnswer::Late) => Err(Status::deadline_exceeded(format!(
                "{name} is connected and did not answer within {}: an agent older than this coordinator cannot",
                human_duration(DIAGNOSE_TIMEOUT)
            ))),
        }
    }

    async fn archive_agent(
        &self,
        request: Request<v1::ArchiveAgentRequest>,
    ) -> Result<Response<v1::ArchiveAgentResponse>, Status> {
        let by = allow(&request, ACTORS)?.name();
        let v1::ArchiveAgentRequest { id, reason } = request.into_inner();
        let agent = agent_name(&id)?;
        let reason = bounded("reason", &reason, SUMMARY_BYTES_MAX)?;
        if reason.trim().is_empty() {
            return Err(Status::invalid_argument("reason is empty: say why, it ends up in the incidents that end"));
        }
        let name = agent.clone();
        let known = self.handle.query(move |view| {
            view.state.agent(&name).map(|record| (record.link == Standing::Heard, record.open.len()))
        });
        let (heard, open) = known.await.map_err(|error| status_of(&error))?.ok_or_else(|| unknown(&agent))?;
        let refused = || {
            let text = format!("{agent} is heard: stop its agent first, or it would be known again at once");
            Status::failed_precondition(text)
        };
        if heard || self.handle.links().get(&agent).is_some() {
            return Err(refused());
        }
        let fact = Fact::AgentArchived { agent: agent.clone(), by, reason };
        self.handle.submit(fact).await.map_err(|error| status_of(&error))?;
        // It may have come back between the look and the fact.
        let name = agent.clone();
        let stays = self.handle.query(move |view| view.state.agent(&name).is_some()).await;
        if stays.map_err(|error| status_of(&error))? {
            return Err(refused());
        }
        Ok(Response::new(v1::ArchiveAgentResponse { findings_ended: u32::try_from(open).unwrap_or(u32::MAX) }))
    }
}

fn agent_name(id: &str) -> Result<AgentName, Status> {
    AgentName::new(id).map_err(|error| Status::invalid_argument(format!("id: {error}")))
}

fn not_connected(name: &AgentName) -> Status {
    Status::unavailable(format!("{name} is not connected: see when it was last heard (musterctl agents show {name})"))
}

fn unknown(name: &AgentName) -> Status {
    let text = "see ListAgents (musterctl agents list) for those that are known";
    Status::not_found(format!("no agent {:?}: {text}", name.as_str()))
}

fn fleet_status(view: &View<'_>) -> v1::GetFleetStatusResponse {
    let state = view.state;
    let mut by_state: BTreeMap<i32, u32> = BTreeMap::new();
    for record in state.agents() {
        *by_state.entry(state_of(&record.link).0.into()).or_default() += 1;
    }
    let count = |state: AgentState| by_state.get(&i32::from(state)).copied().unwrap_or_default();
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let open: Vec<_> = state.incidents().filter(|incident| incident.is_unresolved()).collect();
    let ending = state.silences_ending(view.now).map(|(index, _)| silence::ends_soon(state, index, view.now));
    // As ListDeadLetters has them.
    let failed = state.dead_letters().filter(|letter| is_resendable(state, letter)).count();
    v1::GetFleetStatusResponse {
        fleet: view.standing.fleet.to_string(),
        coordinator_id: view.standing.id.to_string(),
        role: view.standing.role.as_str().to_owned(),
        epoch: view.standing.epoch().as_ref().map(epoch_to_wire),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: Some(timestamp_to_wire(view.started)),
        now: Some(timestamp_to_wire(view.now)),
        agents_live: count(AgentState::Live),
        agents_stale: count(AgentState::Stale),
        agents_stopped: count(AgentState::Stopped),
        agents_not_yet_reheard: count(AgentState::NotYetReheard),
        open_findings: number(state.open_findings().count()),
        open_incidents: number(open.len()),
        unacknowledged_incidents: number(open.iter().filter(|incident| incident.acknowledged.is_none()).count()),
        pages_pending: number(state.pending_pages().count()),
        journal_index: state.head_index(),
        rehear_until: maybe(state.rehear_until()),
        standbys: Vec::new(),
        pages_failed: number(failed),
        silences_active: number(state.silences().filter(|(_, silence)| silence.active).count()),
        silences_ending: ending.take(ENDING_TOLD_MAX).collect(),
    }
}

fn state_of(link: &Standing) -> (AgentState, String) {
    match link {
        Standing::Heard => (AgentState::Live, "heard within the threshold".to_owned()),
        Standing::NotReheard => {
            (AgentState::NotYetReheard, "not heard since this coordinator began to listen".to_owned())
        }
        Standing::Disconnected { how: how @ (Disconnect::Goodbye | Disconnect::HostShutdown), at } => {
            (AgentState::Stopped, format!("said goodbye ({}) at {at}", words(how)))
        }
        Standing::Disconnected { how, at } => {
            (AgentState::Live, format!("disconnected ({}) at {at}, not silent for long enough yet", words(how)))
        }
        Standing::Silent { silence, last_heard, .. } => {
            let why = match silence {
                Silence::Reset => "its connection was reset and it did not come back",
                Silence::NotReheard => "it was not heard after this coordinator began to listen",
                // Its grace is over: it is told like others that are missing.
                Silence::Goodbye => "it said goodbye and did not come back in time",
                Silence::HostShutdown => "its host went down and it did not come back in time",
                Silence::Nothing => "nothing is heard on its connection",
            };
            (AgentState::Stale, format!("{why}; it was {}", silence.last_heard(*last_heard)))
        }
    }
}

fn words(how: &Disconnect) -> &'static str {
    match how {
        Disconnect::Goodbye => "stopped",
        Disconnect::HostShutdown => "host goes down",
        Disconnect::Reset => "connection reset",
        Disconnect::Timeout => "keepalive without answer",
        Disconnect::Refused => "broke the protocol",
        Disconnect::Replaced => "replaced by a newer stream",
        Disconnect::Draining => "the coordinator stopped",
    }
}

fn agent(view: &View<'_>, record: &AgentRecord, link: Option<&Link>) -> v1::Agent {
    let (state, state_reason) = state_of(&record.link);
    let hello = record.hello.as_deref();
    let text = |get: fn(&muster_coordinator_core::entry::AgentHello) -> &String| hello.map(get).cloned();
    let newest = link.and_then(Link::newest);
    let heard_on_link = link.map(|link| {
        muster_common::time::Timestamp::from_unix_ms(link.last_heard_ms.load(std::sync::atomic::Ordering::Relaxed))
    });
    let worst = record.open.values().map(|open| open.finding.severity).max();
    v1::Agent {
        id: record.name.to_string(),
        state: state.into(),
        state_reason,
        host_name: text(|hello| &hello.host_name).unwrap_or_default(),
        agent_version: text(|hello| &hello.agent_version).unwrap_or_default(),
        os_version: text(|hello| &hello.os_version).unwrap_or_default(),
        kernel_version: text(|hello| &hello.kernel_version).unwrap_or_default(),
        boot_id: hello.and_then(|hello| hello.boot_id).map(|boot| boot.to_string()).unwrap_or_default(),
        labels: hello.map(|hello| hello.labels.clone().into_iter().collect()).unwrap_or_default(),
        last_heard: maybe(heard_on_link.max(view.liveness.last_heard(&record.name))),
        first_seen: Some(timestamp_to_wire(record.first_seen)),
        connected: link.is_some(),
        peer_address: text(|hello| &hello.peer_address).unwrap_or_default(),
        open_findings: u32::try_from(record.open.len()).unwrap_or(u32::MAX),
        worst_severity: worst.map(severity_to_wire).unwrap_or_default(),
        stored_sequence: record.position.map_or(0, |position| position.sequence),
        lost_entries: record.entries_lost,
        memory_available_bytes: newest.map_or(0, |newest| newest.memory_available_bytes),
        clock_skew: newest.map(|newest| signed_duration(newest.skew_ms)),
    }
}

fn signed_duration(ms: i64) -> prost_types::Duration {
    let nanos = i32::try_from(ms % 1000).unwrap_or_default() * 1_000_000;
    prost_types::Duration { seconds: ms / 1000, nanos }
}

/// The agent a fact is about.
fn agent_of(entry: &Entry) -> Option<&AgentName> {
    let EntryBody::Fact(fact) = &entry.body else { return None };
    match fact {
        Fact::AgentConnected { agent, .. }
        | Fact::AgentDisconnected { agent, .. }
        | Fact::AgentFlapping { agent, .. }
        | Fact::AgentSilent { agent, .. }
        | Fact::AgentHeard { agent }
        | Fact::FindingReceived { agent, .. }
        | Fact::FindingsLost { agent, .. }
        | Fact::SpoolReplaced { agent, .. }
        | Fact::DigestDiffers { agent }
        | Fact::OpenSetReceived { agent, .. }
        | Fact::SecondOpinion { agent, .. }
        | Fact::IdentityConflict { agent, .. } => Some(agent),
        _ => archived(entry),
    }
}

/// The agent that a fact archives.
fn archived(entry: &Entry) -> Option<&AgentName> {
    match &entry.body {
        EntryBody::Fact(Fact::AgentArchived { agent, .. }) => Some(agent),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::time::Timestamp;

    #[test]
    fn who_said_goodbye_is_stopped_within_its_grace_and_stale_after_it() {
        let at = Timestamp::from_unix_ms(1_795_220_000_000);
        for (how, silence) in
            [(Disconnect::Goodbye, Silence::Goodbye), (Disconnect::HostShutdown, Silence::HostShutdown)]
        {
            assert_eq!(state_of(&Standing::Disconnected { how, at }).0, AgentState::Stopped);
            let (state, why) = state_of(&Standing::Silent { since: at, last_heard: at, silence, index: 1 });
            assert!(state == AgentState::Stale && why.contains("did not come back in time"), "{why}");
        }
    }
}

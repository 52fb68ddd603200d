//! The command as operators run it, against a coordinator that is played by a tonic server on a Unix socket: output,
//! pages of lists, errors, exit statuses.

#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]

use muster_proto::v1::failover_service_server::{FailoverService, FailoverServiceServer};
use muster_proto::v1::finding_service_server::{FindingService, FindingServiceServer};
use muster_proto::v1::fleet_service_server::{FleetService, FleetServiceServer};
use muster_proto::v1::incident_service_server::{IncidentService, IncidentServiceServer};
use muster_proto::v1::paging_service_server::{PagingService, PagingServiceServer};
use muster_proto::v1::set_freeze_request::Change;
use muster_proto::v1::silence_service_server::{SilenceService, SilenceServiceServer};
use muster_proto::v1::*;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Output, Stdio};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

type Stream<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

#[derive(Clone)]
struct Played {
    role: &'static str,
}

fn agent(number: usize) -> Agent {
    let state = if number == 7 { AgentState::Stale } else { AgentState::Live };
    let state_reason = if number == 7 { "nothing heard\u{1b}[2J for 40 s" } else { "" };
    Agent {
        id: format!("web-{number}"),
        state: state.into(),
        state_reason: state_reason.to_owned(),
        agent_version: "0.1.0".to_owned(),
        connected: true,
        ..Agent::default()
    }
}

/// What is said of a service that no host has told of.
fn doubt(service: &str) -> String {
    if service == "typo" { "no host has told of \u{1b}[2Ja service \"typo\"".to_owned() } else { String::new() }
}

/// Sends these, and then nothing for as long as anybody listens.
fn held<T: Send + 'static>(items: impl IntoIterator<Item = T>) -> Stream<T> {
    use tokio_stream::StreamExt;
    let items: Vec<Result<T, Status>> = items.into_iter().map(Ok).collect();
    Box::pin(tokio_stream::iter(items).chain(tokio_stream::pending()))
}

#[tonic::async_trait]
impl FindingService for Played {
    async fn list_findings(&self, request: Request<ListFindingsRequest>) -> Answer<ListFindingsResponse> {
        let note = doubt(&request.get_ref().service);
        Ok(Response::new(ListFindingsResponse { note, ..ListFindingsResponse::default() }))
    }

    /// One change, and the end.
    type WatchFindingsStream = Stream<WatchFindingsResponse>;
    async fn watch_findings(&self, request: Request<WatchFindingsRequest>) -> Answer<Self::WatchFindingsStream> {
        let WatchFindingsRequest { agent, min_severity, .. } = request.into_inner();
        let detail = FindingDetail {
            reason: "port_closed".to_owned(),
            severity: if min_severity == 0 { Severity::Sev2.into() } else { min_severity },
            summary: "nothing\u{1b}[2J listens".to_owned(),
            ..FindingDetail::default()
        };
        let agent = if agent.is_empty() { "web-1".to_owned() } else { agent };
        let received = Some(prost_types::Timestamp { seconds: 1_795_312_305, nanos: 0 });
        let finding = Some(Finding { agent, detail: Some(detail), received, ..Finding::default() });
        let change = WatchFindingsResponse { change: "opened".to_owned(), finding, by_resync: false };
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(change)]))))
    }

    async fn list_events(&self, _: Request<ListEventsRequest>) -> Answer<ListEventsResponse> {
        Ok(Response::new(ListEventsResponse::default()))
    }

    /// Two pages of one trace.
    async fn get_trace(&self, request: Request<GetTraceRequest>) -> Answer<GetTraceResponse> {
        let GetTraceRequest { trace_id, page_token, .. } = request.into_inner();
        let event = |index: u64, kind: &str, name: &str, summary: &str| JournalEvent {
            index,
            kind: kind.to_owned(),
            name: name.to_owned(),
            agent: "web-1".to_owned(),
            incident: "INC-1".to_owned(),
            trace_id: "41".to_owned(),
            summary: summary.to_owned(),
            ..JournalEvent::default()
        };
        let (events, next) = match (trace_id.as_str(), page_token.as_str()) {
            ("41", "") => (vec![event(41, "fact", "finding_received", "spl\u{1b}[2J is gone")], "more"),
            ("41", "more") => (vec![event(42, "conclusion", "incident_opened", "spl on web-1 is down")], ""),
            _ => return Err(Status::not_found("no entry 7 is kept: see musterctl events list")),
        };
        Ok(Response::new(GetTraceResponse { events, next_page_token: next.to_owned() }))
    }
}

#[tonic::async_trait]
impl PagingService for Played {
    async fn list_receivers(&self, _: Request<ListReceiversRequest>) -> Answer<ListReceiversResponse> {
        let receiver = Receiver {
            name: "oncall".to_owned(),
            kind: "pagerduty".to_owned(),
            target: "events.pagerduty.com".to_owned(),
            routes: vec!["everything".to_owned()],
            pages_delivered: 3,
            pages_failed: 5,
            dead_letters: 1,
            last_error: "429 Too\u{1b}[2J Many Requests".to_owned(),
            ..Receiver::default()
        };
        let receivers = if self.role == "primary" { vec![receiver] } else { vec![] };
        Ok(Response::new(ListReceiversResponse { receivers }))
    }

    async fn test_receiver(&self, request: Request<TestReceiverRequest>) -> Answer<TestReceiverResponse> {
        let took = Some(prost_types::Duration { seconds: 0, nanos: 120_000_000 });
        match request.get_ref().name.as_str() {
            "oncall" => Ok(Response::new(TestReceiverResponse { delivered: true, answer: "202".to_owned(), took })),
            "chat" => Ok(Response::new(TestReceiverResponse { delivered: false, answer: "403 no".to_owned(), took })),
            other => Err(Status::not_found(format!("no receiver is named {other:?}: see musterctl receivers list"))),
        }
    }

    async fn list_dead_letters(&self, request: Request<ListDeadLettersRequest>) -> Answer<ListDeadLettersResponse> {
        let letter = DeadLetter {
            page_id: "41".to_owned(),
            receiver: "chat".to_owned(),
            incident: "INC-1".to_owned(),
            action: "trigger".to_owned(),
            error: "403".to_owned(),
            ..DeadLetter::default()
        };
        let wanted = request.get_ref().receiver.is_empty() || request.get_ref().receiver == letter.receiver;
        let settled = DeadLetter {
            page_id: "40".to_owned(),
            settled_because: "INC-0 is resolved: nobody needs to be told of it".to_owned(),
            ..letter.clone()
        };
        let mut dead_letters = if wanted { vec![letter] } else { vec![] };
        dead_letters.extend(Some(settled).filter(|_| request.get_ref().include_settled));
        Ok(Response::new(ListDeadLettersResponse { dead_letters, ..ListDeadLettersResponse::default() }))
    }

    async fn resend_page(&self, request: Request<ResendPageRequest>) -> Answer<ResendPageResponse> {
        match request.get_ref().page_id.as_str() {
            "41" => Ok(Response::new(ResendPageResponse { page_id: "99".to_owned() })),
            other => Err(Status::failed_precondition(format!("the incident of page {other} is resolved"))),
        }
    }
}

#[tonic::async_trait]
impl FleetService for Played {
    async fn get_fleet_status(&self, _: Request<GetFleetStatusRequest>) -> Answer<GetFleetStatusResponse> {
        Ok(Response::new(GetFleetStatusResponse {
            fleet: "prod".to_owned(),
            coordinator_id: "coord-a".to_owned(),
            role: self.role.to_owned(),
            epoch: Some(Epoch { number: 3, coordinator_id: "coord-a".to_owned() }),
            version: "0.1.0".to_owned(),
            agents_live: 11,
            agents_stale: 1,
            journal_index: 42,
            pages_pending: 1,
            pages_failed: 2,
            silences_active: 2,
            silences_ending: vec!["silence SIL-4 of ada ends\u{1b}[2J soon".to_owned()],
            ..GetFleetStatusResponse::default()
        }))
    }

    /// Twelve agents, five to a page.
    async fn list_agents(&self, request: Request<ListAgentsRequest>) -> Answer<ListAgentsResponse> {
        let from: usize = request.get_ref().page_token.parse().unwrap_or(0);
        let agents: Vec<_> = (from..12).take(5).map(agent).collect();
        let next = from + agents.len();
        let next_page_token = if next < 12 { next.to_string() } else { String::new() };
        Ok(Response::new(ListAgentsResponse { agents, next_page_token, total_size: 12 }))
    }

    async fn get_agent(&self, request: Request<GetAgentRequest>) -> Answer<Agent> {
        match request.get_ref().id.as_str() {
            "web-1" => Ok(Response::new(agent(1))),
            other => Err(Status::not_found(format!("no agent is named {other:?}: see musterctl agents list"))),
        }
    }

    type WatchAgentsStream = Stream<WatchAgentsResponse>;
    async fn watch_agents(&self, _: Request<WatchAgentsRequest>) -> Answer<Self::WatchAgentsStream> {
        Ok(Response::new(held(
            [7, 8].map(|number| WatchAgentsResponse { agent: Some(agent(number)), archived: String::new() }),
        )))
    }

    async fn ping_agent(&self, _: Request<PingAgentRequest>) -> Answer<PingAgentResponse> {
        let round_trip = Some(prost_types::Duration { seconds: 0, nanos: 12_000_000 });
        Ok(Response::new(PingAgentResponse { round_trip }))
    }

    async fn diagnose_agent(&self, request: Request<DiagnoseAgentRequest>) -> Answer<DiagnoseAgentResponse> {
        if request.get_ref().id != "web-1" {
            return Err(Status::unavailable("web-7 is not connected: see musterctl agents show web-7"));
        }
        let subject = |probe: &str| {
            let (service, subject) = ("spl".to_owned(), "/run/spl.pid".to_owned());
            Some(SubjectKey { service, probe: probe.to_owned(), subject })
        };
        let finding = FindingDetail {
            subject: subject("pid_file"),
            reason: "process_down".to_owned(),
            severity: Severity::Sev2.into(),
            grade: Grade::Confirmed.into(),
            summary: "spl is\u{1b}[2J not running".to_owned(),
            next_steps: vec!["systemctl status spl".to_owned()],
            ..FindingDetail::default()
        };
        if request.get_ref().service == "typo" {
            let diagnosis = Some(Diagnosis::default());
            return Ok(Response::new(DiagnoseAgentResponse { diagnosis, round_trip: None }));
        }
        let diagnosis = Diagnosis {
            stories: vec!["spl: the OOM killer took it".to_owned()],
            findings: vec![finding],
            unknown: vec![UnknownSubject { subject: subject("sqlite"), why: "permission denied".to_owned() }],
            subjects_ok: 4,
            ..Diagnosis::default()
        };
        let round_trip = Some(prost_types::Duration { seconds: 0, nanos: 34_000_000 });
        Ok(Response::new(DiagnoseAgentResponse { diagnosis: Some(diagnosis), round_trip }))
    }

    async fn archive_agent(&self, request: Request<ArchiveAgentRequest>) -> Answer<ArchiveAgentResponse> {
        match request.get_ref().id.as_str() {
            "web-7" => Ok(Response::new(ArchiveAgentResponse { findings_ended: 2 })),
            other => Err(Status::failed_precondition(format!("{other} is heard: stop its agent first"))),
        }
    }
}

#[tonic::async_trait]
impl IncidentService for Played {
    async fn list_incidents(&self, request: Request<ListIncidentsRequest>) -> Answer<ListIncidentsResponse> {
        let note = doubt(&request.get_ref().service);
        if !note.is_empty() {
            return Ok(Response::new(ListIncidentsResponse { note, ..Default::default() }));
        }
        let states = [PagedState::No, PagedState::Pending, PagedState::Yes, PagedState::Failed];
        let incident = |paged: PagedState| Incident {
            id: "INC-20261121-0002".to_owned(),
            state: IncidentState::Recovering.into(),
            paged_state: paged.into(),
            not_paged_because: "on hold until 2026-11-22T11:59:08.555Z, so that its symptoms can gather".to_owned(),
            title: "it".to_owned(),
            waiting_for: "its stability window stands still: web-3\u{1b}[2J is not heard".to_owned(),
            ..Incident::default()
        };
        let incidents = states.into_iter().map(incident).collect();
        Ok(Response::new(ListIncidentsResponse { incidents, ..Default::default() }))
    }

    async fn get_incident(&self, request: Request<GetIncidentRequest>) -> Answer<Incident> {
        Ok(Response::new(Incident {
            id: request.into_inner().id,
            severity: Severity::Sev2.into(),
            state: IncidentState::Open.into(),
            reason: "process_down".to_owned(),
            title: "spl on web-1 is down".to_owned(),
            next_steps: vec!["systemctl status spl".to_owned()],
            findings: vec!["web-1/spl/port/x/port_closed".to_owned(), "web-1/spl/pid_file/y/process_down".to_owned()],
            findings_over: vec!["web-1/spl/port/x/port_closed".to_owned()],
            waiting_for: "it flaps".to_owned(),
            opened: Some(prost_types::Timestamp { seconds: 1_795_312_305, nanos: 0 }),
            paged: Some(prost_types::Timestamp { seconds: 1_795_312_205, nanos: 0 }),
            timeline: vec![TimelineItem {
                kind: "page".to_owned(),
                text: "paged oncall".to_owned(),
                ..Default::default()
            }],
            ..Incident::default()
        }))
    }

    type WatchIncidentsStream = Stream<WatchIncidentsResponse>;
    async fn watch_incidents(&self, _: Request<WatchIncidentsRequest>) -> Answer<Self::WatchIncidentsStream> {
        let incident = Incident {
            id: "INC-20261121-0001".to_owned(),
            severity: Severity::Sev2.into(),
            state: IncidentState::Open.into(),
            title: "spl on web-1\u{1b}[2J is down".to_owned(),
            ..Incident::default()
        };
        Ok(Response::new(held([WatchIncidentsResponse { incident: Some(incident) }])))
    }

    async fn acknowledge_incident(&self, request: Request<AcknowledgeIncidentRequest>) -> Answer<Incident> {
        let said = request.metadata().get("muster-as").map(|said| format!(" ({})", said.to_str().unwrap()));
        let AcknowledgeIncidentRequest { id, note } = request.into_inner();
        assert_eq!(note, "on it");
        Ok(Response::new(Incident {
            id,
            owner: format!("ada{}", said.unwrap_or_default()),
            title: "spl is down".to_owned(),
            ..Default::default()
        }))
    }

    async fn resolve_incident(&self, _: Request<ResolveIncidentRequest>) -> Answer<Incident> {
        Err(Status::permission_denied("a viewer cannot resolve incidents"))
    }

    async fn add_note(&self, _: Request<AddNoteRequest>) -> Answer<Incident> {
        Err(Status::failed_precondition("this coordinator is standby, not the primary: ask the primary (coord-a)"))
    }

    async fn set_severity(&self, request: Request<SetSeverityRequest>) -> Answer<Incident> {
        let SetSeverityRequest { id, severity, note } = request.into_inner();
        assert_eq!(note, "customers notice");
        Ok(Response::new(Incident { id, severity, title: "spl is down".to_owned(), ..Incident::default() }))
    }

    async fn set_commander(&self, request: Request<SetCommanderRequest>) -> Answer<Incident> {
        let SetCommanderRequest { id, commander } = request.into_inner();
        Ok(Response::new(Incident { id, commander, title: "spl is down".to_owned(), ..Incident::default() }))
    }

    async fn export_incident(&self, request: Request<ExportIncidentRequest>) -> Answer<ExportIncidentResponse> {
        let text = match request.get_ref().format() {
            ExportFormat::Json => "{\"id\": \"INC-1\"}\n",
            _ => "# INC-1\n",
        };
        Ok(Response::new(ExportIncidentResponse { text: text.to_owned() }))
    }

    type ExportBundleStream = Stream<ExportBundleResponse>;
    async fn export_bundle(&self, request: Request<ExportBundleRequest>) -> Answer<Self::ExportBundleStream> {
        let broken = request.get_ref().id == "INC-BROKEN";
        let mut chunks: Vec<Result<_, Status>> =
            [&b"one "[..], b"two"].map(|chunk| Ok(ExportBundleResponse { chunk: chunk.to_vec().into() })).into();
        if broken {
            chunks.push(Err(Status::unavailable("the coordinator is stopping")));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Answer<ExplainResponse> {
        use explain_request::About;
        let answer = match request.into_inner().about {
            Some(About::Id(id)) => format!("{id} paged because spl was down for 15 s"),
            Some(About::WhyNot(WhyNot { agent, at, service })) => {
                let at = at.map(|at| at.seconds);
                format!("nobody was paged about {agent} ({service:?}, {at:?}): it was silenced")
            }
            None => return Err(Status::invalid_argument("nothing is asked")),
        };
        let rule = RuleExplanation {
            rule: "process_down".to_owned(),
            about: "host/web-1/service/spl".to_owned(),
            outcome: RuleOutcome::HeldBack.into(),
            held_back_by: "silence".to_owned(),
            why: "SIL-3 holds until 12:00".to_owned(),
            figures: vec![Figure {
                name: "down for".to_owned(),
                value: "15 s".to_owned(),
                threshold: "10 s".to_owned(),
            }],
            incident: "INC-1".to_owned(),
            journal_index: 41,
            ..RuleExplanation::default()
        };
        let unknown = vec!["what changed before the journal's first entry".to_owned()];
        Ok(Response::new(ExplainResponse { answer, rules: vec![rule], unknown }))
    }
}

#[tonic::async_trait]
impl FailoverService for Played {
    async fn get_failover_status(&self, _: Request<GetFailoverStatusRequest>) -> Answer<GetFailoverStatusResponse> {
        Ok(Response::new(GetFailoverStatusResponse {
            role: CoordinatorRole::Primary.into(),
            coordinator_id: "coord-b".to_owned(),
            epoch: Some(Epoch { number: 4, coordinator_id: "coord-b".to_owned() }),
            standbys: vec![Standby { coordinator_id: "attached".to_owned(), journal_index: 40, last_heard: None }],
            journal_index: 42,
            ..GetFailoverStatusResponse::default()
        }))
    }

    async fn promote(&self, request: Request<PromoteRequest>) -> Answer<PromoteResponse> {
        if request.get_ref().old_primary == "wrong" {
            return Err(Status::failed_precondition("this standby followed \"coord-a\", not \"wrong\""));
        }
        let epoch = Some(Epoch { number: 4, coordinator_id: "coord-b".to_owned() });
        Ok(Response::new(PromoteResponse { epoch, journal_index: 42, agents_known: 12, ..Default::default() }))
    }
}

fn freeze(id: &str, reason: &str) -> Freeze {
    Freeze {
        id: id.to_owned(),
        reason: reason.to_owned(),
        created_by: "ada".to_owned(),
        create_time: Some(prost_types::Timestamp { seconds: 1_795_312_305, nanos: 0 }),
        ..Freeze::default()
    }
}

#[tonic::async_trait]
impl SilenceService for Played {
    /// Says what it was asked for.
    async fn set_freeze(&self, request: Request<SetFreezeRequest>) -> Answer<SetFreezeResponse> {
        let set = match request.into_inner().change {
            Some(Change::Freeze(new)) => {
                let seconds = |ttl: prost_types::Duration| 1_795_312_305 + ttl.seconds;
                let expire_time = new.ttl.map(|ttl| prost_types::Timestamp { seconds: seconds(ttl), nanos: 0 });
                Freeze { scope: new.scope, expire_time, ..freeze("FRZ-7", &new.reason) }
            }
            Some(Change::LiftId(id)) if id == "FRZ-7" => freeze(&id, "upgrade"),
            other => return Err(Status::not_found(format!("no freeze holds: {other:?}"))),
        };
        Ok(Response::new(SetFreezeResponse { freeze: Some(set) }))
    }

    async fn list_freezes(&self, _: Request<ListFreezesRequest>) -> Answer<ListFreezesResponse> {
        let all = freeze("FRZ-7", "up\u{1b}[2Jgrade");
        let expire_time = Some(prost_types::Timestamp { seconds: 1_795_315_905, nanos: 0 });
        let freezes = if self.role == "primary" { vec![all.clone(), Freeze { expire_time, ..all }] } else { vec![] };
        Ok(Response::new(ListFreezesResponse { freezes, ..Default::default() }))
    }

    async fn create_silence(&self, request: Request<CreateSilenceRequest>) -> Answer<Silence> {
        let CreateSilenceRequest { matchers, kind, reason, start_time, ttl } = request.into_inner();
        let start = start_time.map_or(1_795_312_305, |start| start.seconds);
        let end = start + ttl.map_or(0, |ttl| ttl.seconds);
        let services = matchers.iter().flat_map(|matchers| &matchers.services).filter(|service| *service == "slp");
        let notes = services.map(|service| format!("no host has told of a service {service:?}")).collect();
        let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        Ok(Response::new(Silence {
            id: "SIL-3".to_owned(),
            kind: if kind == 0 { SilenceKind::Silence.into() } else { kind },
            state: SilenceState::Active.into(),
            matchers,
            reason,
            created_by: "ada".to_owned(),
            start_time: time(start),
            end_time: time(end),
            notes,
            ..Silence::default()
        }))
    }

    async fn list_silences(&self, request: Request<ListSilencesRequest>) -> Answer<ListSilencesResponse> {
        let silence = |id: &str, state: SilenceState| Silence {
            id: id.to_owned(),
            state: state.into(),
            kind: SilenceKind::Maintenance.into(),
            matchers: Some(SilenceMatchers { agents: vec!["web-*".to_owned()], ..SilenceMatchers::default() }),
            reason: "new kernel".to_owned(),
            created_by: "ada".to_owned(),
            incidents: vec!["INC-1".to_owned()],
            ..Silence::default()
        };
        let soon = Silence { ends_soon: true, ..silence("SIL-4", SilenceState::Active) };
        let mut silences = vec![silence("SIL-3", SilenceState::Active), soon];
        if request.get_ref().include_expired {
            silences.push(silence("SIL-2", SilenceState::Expired));
        }
        Ok(Response::new(ListSilencesResponse { silences, ..Default::default() }))
    }

    async fn expire_silence(&self, request: Request<ExpireSilenceRequest>) -> Answer<Silence> {
        match request.into_inner().id {
            id if id == "SIL-3" => {
                Ok(Response::new(Silence { id, expired_by: "ada".to_owned(), ..Silence::default() }))
            }
            id => Err(Status::not_found(format!("no silence is named {id:?}: see musterctl silence list"))),
        }
    }
}

/// Serves on a socket in a fresh directory, on its own thread, until the test ends.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn start() -> Self {
        Self::start_as("primary")
    }

    fn start_as(role: &'static str) -> Self {
        let played = Played { role };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("coordinator.sock");
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = UnixListener::bind(path).unwrap();
                ready.send(()).unwrap();
                let server = tonic::transport::Server::builder()
                    .add_service(FleetServiceServer::new(played.clone()))
                    .add_service(IncidentServiceServer::new(played.clone()))
                    .add_service(SilenceServiceServer::new(played.clone()))
                    .add_service(FindingServiceServer::new(played.clone()))
                    .add_service(PagingServiceServer::new(played.clone()))
                    .add_service(FailoverServiceServer::new(played));
                server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
            });
        });
        is_ready.recv().unwrap();
        Self { dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("coordinator.sock")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        musterctl(&self.socket(), arguments)
    }
}

fn musterctl(socket: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_musterctl"))
        .env_clear()
        .arg("--socket")
        .arg(socket)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn refused(output: &Output, status: i32) -> String {
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn lists_follow_their_pages_and_strangers_are_escaped() {
    let bench = Bench::start();
    let text = stdout(&bench.run(&["agents", "list"]));
    assert!(text.contains("\n12 agents\n"), "{text}");
    let second = text.lines().nth(1).unwrap();
    assert!(second.starts_with("web-7  ") && second.contains("stale"), "trouble comes first: {text}");
    assert!(text.contains("nothing heard\\u{1b}[2J for 40 s") && !text.contains('\u{1b}'), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&bench.run(&["--format", "json", "agents", "list"]))).unwrap();
    assert_eq!(json["agents"].as_array().unwrap().len(), 12);
    assert_eq!(json["agents"][7]["state"], "stale");
}

#[test]
fn status_show_and_ping_are_readable() {
    let bench = Bench::start();
    let text = stdout(&bench.run(&["status"]));
    for expected in ["fleet        prod", "coord-a (primary, version 0.1.0)", "3@coord-a", "11 live, 1 stale"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let status: serde_json::Value = serde_json::from_str(&stdout(&bench.run(&["status", "--format=json"]))).unwrap();
    assert_eq!((status["epoch"]["number"].as_u64(), status["journal_index"].as_u64()), (Some(3), Some(42)));
    assert_eq!(stdout(&bench.run(&["agents", "ping", "web-1"])), "web-1 answered after 12 ms\n");
    assert!(text.contains("2 hold; silence SIL-4 of ada ends\\u{1b}[2J soon"), "{text}");
    assert!(text.contains("1 pending, 2 given up") && !text.contains("not the primary"), "{text}");
    let fenced = stdout(&Bench::start_as("fenced").run(&["status"]));
    assert!(fenced.starts_with("coord-a is fenced, not the primary: what follows is what it knew"), "{fenced}");
    let incidents = stdout(&bench.run(&["incidents", "list"]));
    assert!(
        incidents.contains("INC-20261121-0002: its stability window stands still: web-3\\u{1b}[2J is not heard"),
        "{incidents}"
    );
    let paged = ["on hold", "pending", "yes", "failed"];
    for (line, paged) in incidents.lines().skip(1).zip(paged) {
        assert!(line.contains("recovering") && line.contains(&format!("  {paged}  ")), "{paged}: {line}");
        assert!(line.len() < 80, "a column holds a word, not a sentence: {line}");
    }
    let incident = stdout(&bench.run(&["incidents", "show", "INC-20261121-0001"]));
    assert!(incident.lines().any(|line| line.starts_with("waits") && line.ends_with("it flaps")), "{incident}");
    for expected in [
        "INC-20261121-0001 sev2 spl on web-1 is down",
        "  - systemctl status spl",
        "paged oncall",
        "  - web-1/spl/port/x/port_closed (over)\n",
        "  - web-1/spl/pid_file/y/process_down\n",
        "(the page of an older incident, which goes on for this one), 0 pages in all",
    ] {
        assert!(incident.contains(expected), "{expected}: {incident}");
    }
    let acknowledged = stdout(&bench.run(&["incidents", "ack", "INC-20261121-0001", "--note", "on it"]));
    assert_eq!(acknowledged, "INC-20261121-0001 acknowledged by ada: spl is down\n");
    let said = stdout(&bench.run(&["--as", "ann", "incidents", "ack", "INC-20261121-0001", "--note", "on it"]));
    assert_eq!(said, "INC-20261121-0001 acknowledged by ada (ann): spl is down\n");
    assert!(refused(&bench.run(&["--as", "\u{e4}\n", "status"]), 2).contains("is no name"));
    for wrong in ["", "ann b", &"a".repeat(65)] {
        let told = refused(&bench.run(&["--as", wrong, "status"]), 2);
        assert!(told.contains("is no name") && told.contains("--as"), "{told}");
    }
    refused(&musterctl(&bench.socket(), &["--as", "ann", "--endpoint", "https://a:7420", "status"]), 2);
}

#[test]
fn freezes_are_set_lifted_and_listed() {
    let bench = Bench::start();
    let for_a_while = |option| stdout(&bench.run(&["freeze", "on", "--reason", "x", option, "2h"]));
    assert_eq!(for_a_while("--for"), for_a_while("--ttl"), "as of a silence");
    let on = ["freeze", "on", "--reason", "upgrade"];
    assert_eq!(stdout(&bench.run(&on)), "FRZ-7: no new work is to be dispatched on the whole fleet\n");
    let some = ["--agent", "web-1", "--label", "zone=a", "--ttl", "2h"];
    let text = stdout(&bench.run(&[&on[..], &some].concat()));
    assert!(text.contains("web-1") && text.contains("zone=a"), "{text}");
    let json = stdout(&bench.run(&[&["--format", "json"], &on[..], &some].concat()));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["id"], &json["reason"], &json["agents"][0]),
        (&"FRZ-7".into(), &"upgrade".into(), &"web-1".into())
    );
    assert!(json["expire_time"].as_str().is_some_and(|time| time.starts_with("2026-11-22T03:51:45")), "{json}");
    assert_eq!(stdout(&bench.run(&["freeze", "off", "FRZ-7"])), "FRZ-7: lifted on the whole fleet\n");
    let list = stdout(&bench.run(&["freeze", "list"]));
    for expected in ["FRZ-7", "the whole fleet", "up\\u{1b}[2Jgrade", "ada", "when lifted"] {
        assert!(list.contains(expected), "{expected}: {list}");
    }
    assert!(!list.contains('\u{1b}'), "{list}");
    assert_eq!(stdout(&Bench::start_as("standby").run(&["freeze", "list"])), "no freezes\n");
    let text = refused(&bench.run(&["freeze", "off", "FRZ-8"]), 1);
    assert!(text.contains("no freeze holds") && text.contains("NOT_FOUND"), "{text}");
    for wrong in [&["freeze", "on"][..], &["freeze", "on", "--reason", "x", "--ttl", "soon"], &["freeze", "off"]] {
        refused(&bench.run(wrong), 2);
    }
}

#[test]
fn errors_say_what_to_try() {
    let bench = Bench::start();
    let text = refused(&bench.run(&["agents", "show", "web-99"]), 1);
    assert_eq!(text, "musterctl: no agent is named \"web-99\": see musterctl agents list (NOT_FOUND)\n");
    let text = refused(&bench.run(&["incidents", "resolve", "INC-1", "--summary", "x"]), 1);
    assert_eq!(text, "musterctl: a viewer cannot resolve incidents (PERMISSION_DENIED)\n");
    let text = refused(&bench.run(&["incidents", "note", "INC-1", "x"]), 1);
    assert!(text.contains("try: musterctl failover status"), "{text}");
    let text = refused(&musterctl(&bench.dir.path().join("none.sock"), &["status"]), 1);
    assert!(text.contains("none.sock: No such file") && text.contains("try: is the coordinator running"), "{text}");
    let text = refused(&bench.run(&["agents", "lst"]), 2);
    assert!(text.contains("list"), "{text}");
    let endpoint = Command::new(env!("CARGO_BIN_EXE_musterctl"))
        .env_clear()
        .args(["--endpoint", "https://127.0.0.1:1", "status"])
        .output();
    let text = refused(&endpoint.unwrap(), 2);
    assert!(text.contains("give --ca"), "{text}");
    let set_for_good = Command::new(env!("CARGO_BIN_EXE_musterctl"))
        .env_clear()
        .env("MUSTER_ENDPOINT", "https://127.0.0.1:1")
        .arg("--socket")
        .arg(bench.socket())
        .args(["agents", "ping", "web-1"])
        .output();
    assert_eq!(stdout(&set_for_good.unwrap()), "web-1 answered after 12 ms\n", "a flag wins over a variable");
}

#[test]
fn a_name_that_nobody_has_does_not_look_like_all_is_well() {
    let bench = Bench::start();
    for list in [&["findings", "list"][..], &["events", "list"]] {
        let none = bench.run(&[list, &["--agent", "web-1"]].concat());
        assert!(stdout(&none).starts_with("no ") && none.stderr.is_empty(), "{none:?}");
        let unknown = bench.run(&[list, &["--agent", "wbe-1"]].concat());
        assert!(stdout(&unknown).starts_with("no "), "{unknown:?}");
        let told = String::from_utf8(unknown.stderr).unwrap();
        assert!(told.contains("no agent \"wbe-1\" is known now"), "{told}");
    }
    for list in ["findings", "incidents"] {
        let known = bench.run(&[list, "list", "--service", "spl"]);
        assert!(known.status.success() && known.stderr.is_empty(), "{known:?}");
        let typo = bench.run(&[list, "list", "--service", "typo"]);
        assert!(stdout(&typo).starts_with("no open "), "{typo:?}");
        let told = String::from_utf8(typo.stderr).unwrap();
        assert_eq!(told, "musterctl: note: no host has told of \\u{1b}[2Ja service \"typo\"\n");
    }
    let diagnose = ["agents", "diagnose", "web-1", "--service", "typo"];
    let text = stdout(&bench.run(&diagnose));
    assert!(text.contains("it watches nothing of a service \"typo\"") && !text.contains("nothing is open"), "{text}");
    let told = bench.run(&[&["--format", "json"], &diagnose[..]].concat()).stderr;
    assert!(String::from_utf8(told).unwrap().contains("web-1: it watches nothing of a service \"typo\""));
    let silence =
        ["silence", "add", "--reason", "x", "--ttl", "1h", "--agent", "web-1", "--agent", "wbe-1", "--agent", "w*"];
    let freeze = ["freeze", "on", "--reason", "x", "--agent", "web-1", "--agent", "wbe-1"];
    for call in [&silence[..], &freeze] {
        let output = bench.run(&[&["--format", "json"], call].concat());
        serde_json::from_str::<serde_json::Value>(&stdout(&output)).unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        let expected =
            "musterctl: note: no agent \"wbe-1\" is known now; if that is misspelt, see musterctl agents list\n";
        assert_eq!(told, expected);
    }
}

#[test]
fn a_promotion_tells_how_it_went_by_its_exit_status() {
    let bench = Bench::start();
    let promote = |old: &str, wait: &str| bench.run(&["failover", "promote", "--old-primary", old, "--wait", wait]);
    let text = stdout(&promote("attached", "10s"));
    assert!(
        text.contains("promoted: epoch 4@coord-b") && text.contains("attached has attached as a standby"),
        "{text}"
    );
    let text = refused(&promote("wrong", "0s"), 18);
    assert!(text.contains("nothing was changed: this standby followed \"coord-a\", not \"wrong\""), "{text}");
    let gone = promote("gone", "1ms");
    assert_eq!(gone.status.code(), Some(22), "{gone:?}");
    let text = String::from_utf8(gone.stdout).unwrap();
    assert!(text.contains("the promotion succeeded. gone has not attached as a standby"), "{text}");
    assert!(text.contains("exit status 22"), "{text}");
    assert!(stdout(&promote("gone", "0s")).contains("promoted"), "nobody was looked for");
    let unreachable = musterctl(&bench.dir.path().join("none.sock"), &["failover", "promote", "--old-primary", "a"]);
    assert!(refused(&unreachable, 18).contains("nothing was changed"));
    let text = stdout(&bench.run(&["failover", "status"]));
    assert!(text.contains("attached: 2 entries behind"), "{text}");
}

#[test]
fn an_agent_is_diagnosed_and_archived() {
    let bench = Bench::start();
    let text = stdout(&bench.run(&["agents", "diagnose", "web-1"]));
    for expected in [
        "web-1 answered after 34 ms: 1 finding open, 4 subjects well, 1 unknown",
        "spl: the OOM killer took it",
        "process_down",
        "spl is\\u{1b}[2J not running",
        "  - systemctl status spl",
        "spl sqlite /run/spl.pid: permission denied",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(!text.contains('\u{1b}'), "{text}");
    let json = stdout(&bench.run(&["--format", "json", "agents", "diagnose", "web-1", "--service", "spl"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["findings"][0]["reason"], "process_down");
    assert_eq!((&json["unknown"][0]["why"], &json["subjects_ok"]), (&"permission denied".into(), &4.into()));
    assert!(refused(&bench.run(&["agents", "diagnose", "web-7"]), 1).contains("not connected"));
    let archive = |name: &str| bench.run(&["agents", "archive", name, "--reason", "sold"]);
    assert_eq!(stdout(&archive("web-7")), "web-7 is archived; 2 open findings ended with it\n");
    assert!(refused(&archive("web-1"), 1).contains("is heard: stop its agent first"));
    refused(&bench.run(&["agents", "archive", "web-7"]), 2);
}

#[test]
fn silences_are_added_listed_and_expired() {
    let bench = Bench::start();
    let add = ["silence", "add", "--reason", "new kernel", "--ttl", "2h"];
    let text =
        stdout(&bench.run(&[&add[..], &["--agent", "web-*", "--label", "zone=a", "--code", "port_closed"]].concat()));
    assert!(text.starts_with("SIL-3: agent web-*, label zone=a, reason port_closed pages nobody until"), "{text}");
    let doubted = bench.run(&[&add[..], &["--service", "slp"]].concat());
    let doubt = String::from_utf8(doubted.stderr).unwrap();
    assert!(doubt.contains("note: no host has told of a service \"slp\""), "{doubt}");
    let window = ["--service", "spl", "--maintenance", "--start", "2026-11-30 01:00", "--format", "json"];
    let json: serde_json::Value = serde_json::from_str(&stdout(&bench.run(&[&add[..], &window].concat()))).unwrap();
    assert_eq!((&json["kind"], &json["start_time"]), (&"maintenance".into(), &"2026-11-30T01:00:00Z".into()));
    assert_eq!((&json["end_time"], &json["matchers"]["services"][0]), (&"2026-11-30T03:00:00Z".into(), &"spl".into()));
    let text = refused(&bench.run(&add), 2);
    assert!(text.contains("say what is to be silent"), "{text}");
    let text = refused(&bench.run(&[&add[..], &["--agent", "x", "--start", "soon"]].concat()), 2);
    assert!(text.contains("in 30m"), "{text}");
    let list = stdout(&bench.run(&["silence", "list"]));
    for expected in ["SIL-3", "maintenance", "active", "ends soon", "agent web-*", "INC-1", "new kernel"] {
        assert!(list.contains(expected), "{expected}: {list}");
    }
    assert!(!list.contains("SIL-2") && stdout(&bench.run(&["silence", "list", "--all"])).contains("SIL-2"));
    assert!(stdout(&bench.run(&["silence", "expire", "SIL-3"])).starts_with("SIL-3 is over"));
    assert!(refused(&bench.run(&["silence", "expire", "SIL-9"]), 1).contains("see musterctl silence list"));
}

#[test]
fn receivers_are_listed_tested_and_what_they_did_not_take_is_sent_again() {
    let bench = Bench::start();
    let list = stdout(&bench.run(&["receivers", "list"]));
    for expected in [
        "oncall",
        "pagerduty",
        "everything",
        "3 sent, 0 pending, 5 given up so far (1 can be sent again)",
        "429 Too\\u{1b}[2J Many",
    ] {
        assert!(list.contains(expected), "{expected}: {list}");
    }
    assert!(stdout(&Bench::start_as("standby").run(&["receivers", "list"])).contains("nobody is paged"));
    assert_eq!(stdout(&bench.run(&["receivers", "test", "oncall"])), "oncall took the test page after 120 ms: 202\n");
    let failed = bench.run(&["receivers", "test", "chat"]);
    assert_eq!(failed.status.code(), Some(1), "for scripts");
    assert!(String::from_utf8(failed.stdout).unwrap().contains("chat did not take the test page after 120 ms: 403 no"));
    assert!(refused(&bench.run(&["receivers", "test", "nobody"]), 1).contains("NOT_FOUND"));
    let letters = stdout(&bench.run(&["receivers", "dead-letters"]));
    assert!(letters.contains("41") && letters.contains("musterctl receivers resend"), "{letters}");
    let all = stdout(&bench.run(&["receivers", "dead-letters", "--all"]));
    assert!(!letters.contains("resolved") && all.contains("no: INC-0 is resolved: nobody needs"), "{all}");
    let none = stdout(&bench.run(&["receivers", "dead-letters", "--receiver", "oncall"]));
    assert_eq!(none, "no page waits to be sent again\n");
    let text = refused(&bench.run(&["receivers", "dead-letters", "--receiver", "oncal"]), 1);
    assert!(text.contains("no receiver \"oncal\"; there are: oncall"), "{text}");
    assert_eq!(stdout(&bench.run(&["receivers", "resend", "41"])), "41 is sent again as 99\n");
    assert!(refused(&bench.run(&["receivers", "resend", "42"]), 1).contains("is resolved"));
}

#[test]
fn why_and_why_not_are_answered() {
    let bench = Bench::start();
    let text = stdout(&bench.run(&["why", "INC-1"]));
    for expected in [
        "INC-1 paged because spl was down for 15 s",
        "process_down, host/web-1/service/spl: held back by silence",
        "  SIL-3 holds until 12:00",
        "  down for: 15 s (threshold 10 s)",
        "journal entry 41, INC-1",
        "Not known\n  - what changed before",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let text = stdout(&bench.run(&["why-not", "web-1", "--at", "2026-11-21 03:04", "--service", "spl"]));
    assert!(text.contains("nobody was paged about web-1 (\"spl\", Some(1795230240))"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&bench.run(&["--format", "json", "why-not", "web-1"]))).unwrap();
    assert_eq!(
        (&json["rules"][0]["outcome"], &json["rules"][0]["figures"][0]["threshold"]),
        (&"held_back".into(), &"10 s".into())
    );
    let text = refused(&bench.run(&["why-not", "web-1", "--at", "yesterday"]), 2);
    assert!(text.contains("15m ago"), "{text}");
}

#[test]
fn incidents_are_led_weighed_and_exported() {
    let bench = Bench::start();
    let severity = ["incidents", "severity", "INC-1", "sev1", "--note", "customers notice"];
    assert_eq!(stdout(&bench.run(&severity)), "INC-1 is sev1 now: spl is down\n");
    assert!(refused(&bench.run(&["incidents", "severity", "INC-1", "bad", "--note", "x"]), 2).contains("bad"));
    assert_eq!(stdout(&bench.run(&["incidents", "commander", "INC-1", "ada"])), "INC-1 is led by ada: spl is down\n");
    let nobody = stdout(&bench.run(&["incidents", "commander", "INC-1", "--none"]));
    assert_eq!(nobody, "INC-1 has no commander any more: spl is down\n");
    refused(&bench.run(&["incidents", "commander", "INC-1"]), 2);
    assert_eq!(stdout(&bench.run(&["incidents", "export", "INC-1"])), "# INC-1\n");
    assert_eq!(stdout(&bench.run(&["incidents", "export", "INC-1", "--format", "markdown"])), "# INC-1\n");
    let json = stdout(&bench.run(&["incidents", "export", "INC-1", "--format", "json"]));
    assert_eq!(json, "{\"id\": \"INC-1\"}\n");
    let text = refused(&bench.run(&["agents", "list", "--format", "markdown"]), 2);
    assert!(text.contains("incidents export"), "{text}");
    let note = bench.dir.path().join("it.md").display().to_string();
    let json = stdout(&bench.run(&["incidents", "export", "inc-1", "-o", &note, "--format", "json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["id"], &json["file"], &json["bytes"]), (&"INC-1".into(), &note.as_str().into(), &16.into()));
    let file = bench.dir.path().join("it.bundle");
    let path = file.display().to_string();
    let text = stdout(&bench.run(&["incidents", "export", "INC-1", "--bundle", "-o", &path]));
    assert!(text.contains("7 B") && text.contains("muster-coordinator replay"), "{text}");
    assert_eq!(std::fs::read(&file).unwrap(), b"one two");
    // What breaks off leaves what was there, and nothing beside it.
    let text = refused(&bench.run(&["incidents", "export", "INC-BROKEN", "--bundle", "-o", &path]), 1);
    assert!(text.contains("the coordinator is stopping"), "{text}");
    assert_eq!(std::fs::read(&file).unwrap(), b"one two");
    assert!(!bench.dir.path().join("it.bundle.part").exists());
    let text = refused(&bench.run(&["incidents", "export", "INC-1", "-o", "/nonexistent/it.md"]), 1);
    assert!(text.contains("cannot write /nonexistent/it.md.part"), "{text}");
    refused(&bench.run(&["incidents", "export", "INC-1", "--bundle"]), 2);
}

#[test]
fn a_trace_is_told_from_its_fact_on_over_all_its_pages() {
    let bench = Bench::start();
    let text = stdout(&bench.run(&["trace", "41"]));
    let row =
        |index: &str| text.lines().find(|line| line.starts_with(index)).unwrap_or_else(|| panic!("{index}: {text}"));
    for (index, words) in [
        ("41", ["fact", "finding_received", "web-1", "INC-1", "spl\\u{1b}[2J is gone"]),
        ("42", ["conclusion", "incident_opened", "web-1", "INC-1", "spl on web-1 is down"]),
    ] {
        assert!(words.iter().all(|word| row(index).contains(word)), "{text}");
    }
    assert!(text.find("finding_received") < text.find("incident_opened") && !text.contains('\u{1b}'), "{text}");
    let json = stdout(&bench.run(&["--format", "json", "trace", "41"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let indices: Vec<_> = json["events"].as_array().unwrap().iter().map(|event| &event["trace_id"]).collect();
    assert_eq!(indices, ["41", "41"], "{json:#}");
    assert!(refused(&bench.run(&["trace", "7"]), 1).contains("no entry 7 is kept"));
    refused(&bench.run(&["trace"]), 2);
}

#[test]
fn runbooks_are_there_without_a_coordinator() {
    let nowhere = Path::new("/nonexistent/coordinator.sock");
    let text = stdout(&musterctl(nowhere, &["runbook", "oom_kill"]));
    assert!(text.starts_with("# oom_kill\n") && text.contains("## First three steps"), "{text}");
    let text = refused(&musterctl(nowhere, &["runbook", "oom_kil"]), 2);
    assert!(text.contains("did you mean \"oom_kill\"?"), "{text}");
    let list = stdout(&musterctl(nowhere, &["runbook"]));
    assert!(list.contains("agent_stale") && list.contains("oom_kill"), "{list}");
    let json = stdout(&musterctl(nowhere, &["runbook", "oom_kill", "--format", "json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["reason"], "oom_kill");
}

#[test]
fn what_is_watched_comes_line_by_line_and_its_end_is_told() {
    let bench = Bench::start();
    let watched = bench.run(&["findings", "watch", "--min-severity", "sev1"]);
    let text = String::from_utf8(watched.stdout.clone()).unwrap();
    assert_eq!(text, "2026-11-22 01:51:45Z opened  sev1 web-1  port_closed: nothing\\u{1b}[2J listens\n");
    assert!(refused(&watched, 1).contains("the coordinator ended the stream"));
    let watched = bench.run(&["--format", "json", "findings", "watch", "--agent", "web-9"]);
    let line: serde_json::Value = serde_json::from_slice(&watched.stdout).unwrap();
    assert_eq!((&line["change"], &line["finding"]["agent"]), (&"opened".into(), &"web-9".into()));
}

#[test]
fn without_a_terminal_the_screen_comes_line_by_line_and_again_when_the_coordinator_is_back() {
    let bench = Bench::start();
    // The first watch of this coordinator ends at once; the next connection is answered again.
    let text = lines_until(&bench, &["status", "--live"], |text| text.matches("agents 11 live, 1 stale").count() > 1);
    assert!(text.starts_with("prod  coord-a (primary, epoch 3)") && !text.contains('\u{1b}'), "{text}");
    assert!(text.contains("\ninterrupted: the coordinator ended the stream; tried again every 2 s\n"), "{text}");
    // Neither an empty table nor that somebody is well, whom nobody asked about.
    for noise in ["no open incidents", "q quits", "agent web-8"] {
        assert!(!text.contains(noise), "{noise}: {text}");
    }
    let is_back = |text: &str| text.matches("fleet_status").count() > 1;
    let json = lines_until(&bench, &["--format", "json", "status", "--live"], is_back);
    let interrupted = json.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let told: Vec<_> = interrupted.filter_map(|line| line.get("interrupted").cloned()).collect();
    assert_eq!(told, ["the coordinator ended the stream"]);
    // Who cannot be asked at all is told so, and does not wait.
    let nobody = musterctl(&bench.dir.path().join("nobody.sock"), &["status", "--live"]);
    assert!(refused(&nobody, 1).contains("is the coordinator running"));
}

/// What a command that does not end by itself has printed by the time that `enough` holds.
fn lines_until(bench: &Bench, arguments: &[&str], enough: impl Fn(&str) -> bool) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_musterctl"))
        .env_clear()
        .arg("--socket")
        .arg(bench.socket())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (told, lines) = std::sync::mpsc::channel();
    let stdout = child.stdout.take().unwrap();
    std::thread::spawn(move || {
        BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| told.send(line)).ok()
    });
    let mut text = String::new();
    while !enough(&text) {
        match lines.recv_timeout(std::time::Duration::from_secs(60)) {
            Ok(line) => text.extend([line.as_str(), "\n"]),
            Err(error) => panic!("{error}: {text}"),
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    text
}

//! The command as operators run it, against a coordinator that is played by a tonic server on a Unix socket: output,
//! pages of lists, errors, exit statuses.

#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]

use muster_proto::v1::failover_service_server::{FailoverService, FailoverServiceServer};
use muster_proto::v1::fleet_service_server::{FleetService, FleetServiceServer};
use muster_proto::v1::incident_service_server::{IncidentService, IncidentServiceServer};
use muster_proto::v1::set_freeze_request::Change;
use muster_proto::v1::silence_service_server::{SilenceService, SilenceServiceServer};
use muster_proto::v1::*;
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
        ..Agent::default()
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
        Err(Status::unimplemented("not played"))
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
    async fn list_incidents(&self, _: Request<ListIncidentsRequest>) -> Answer<ListIncidentsResponse> {
        let states = [PagedState::No, PagedState::Pending, PagedState::Yes, PagedState::Failed];
        let incident = |paged: PagedState| Incident {
            id: "INC-20261121-0002".to_owned(),
            state: IncidentState::Recovering.into(),
            paged_state: paged.into(),
            title: "it".to_owned(),
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
        Err(Status::unimplemented("not played"))
    }

    async fn acknowledge_incident(&self, request: Request<AcknowledgeIncidentRequest>) -> Answer<Incident> {
        let AcknowledgeIncidentRequest { id, note } = request.into_inner();
        assert_eq!(note, "on it");
        Ok(Response::new(Incident {
            id,
            owner: "ada".to_owned(),
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
        Ok(Response::new(ListFreezesResponse { freezes }))
    }

    async fn create_silence(&self, request: Request<CreateSilenceRequest>) -> Answer<Silence> {
        let CreateSilenceRequest { matchers, kind, reason, start_time, ttl } = request.into_inner();
        let start = start_time.map_or(1_795_312_305, |start| start.seconds);
        let end = start + ttl.map_or(0, |ttl| ttl.seconds);
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
        let mut silences = vec![silence("SIL-3", SilenceState::Active)];
        if request.get_ref().include_expired {
            silences.push(silence("SIL-2", SilenceState::Expired));
        }
        Ok(Response::new(ListSilencesResponse { silences }))
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
    assert!(text.contains("1 pending, 2 given up") && !text.contains("not the primary"), "{text}");
    let fenced = stdout(&Bench::start_as("fenced").run(&["status"]));
    assert!(fenced.starts_with("coord-a is fenced, not the primary: what follows is what it knew"), "{fenced}");
    let incidents = stdout(&bench.run(&["incidents", "list"]));
    let paged = ["no", "pending", "yes", "failed"];
    for (line, paged) in incidents.lines().skip(1).zip(paged) {
        assert!(line.contains("recovering") && line.split_whitespace().any(|word| word == paged), "{paged}: {line}");
    }
    let incident = stdout(&bench.run(&["incidents", "show", "INC-20261121-0001"]));
    for expected in ["INC-20261121-0001 sev2 spl on web-1 is down", "  - systemctl status spl", "paged oncall"] {
        assert!(incident.contains(expected), "{expected}: {incident}");
    }
    let acknowledged = stdout(&bench.run(&["incidents", "ack", "INC-20261121-0001", "--note", "on it"]));
    assert_eq!(acknowledged, "INC-20261121-0001 acknowledged by ada: spl is down\n");
}

#[test]
fn freezes_are_set_lifted_and_listed() {
    let bench = Bench::start();
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

//! The served whole, from outside: raw agents, well-behaved and hostile, and operators, over mTLS and the Unix socket.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

mod explain;
mod foreign;
mod freezes;
mod hostile;
mod incidents;
mod questions;
mod refused;
mod resync;
mod services;
mod silences;

use muster_common::finding::{Finding, FindingEvent, FindingKey, ProbeKind, SubjectKey};
use muster_common::identity::Role;
use muster_common::ids::{AgentName, ServiceName, SpoolId};
use muster_common::limits::{BATCH_ENTRIES_MAX, LINK_MESSAGE_BYTES_MAX};
use muster_common::reason::Reason;
use muster_common::spool::{EntryHash, Position};
use muster_common::tls::Credentials;
use muster_coordinator::ca::{self, IssueRequest};
use muster_coordinator::config;
use muster_coordinator::failover::client::connect;
use muster_coordinator::serve::Coordinator;
use muster_coordinator::store::check::check_store;
use muster_coordinator::store::sqlite::SqliteStore;
use muster_proto::convert::encode_finding_event;
use muster_proto::v1::agent_link_service_client::AgentLinkServiceClient;
use muster_proto::v1::connect_request::Message as ToCoordinator;
use muster_proto::v1::connect_response::Message as ToAgent;
use muster_proto::v1::finding_service_client::FindingServiceClient;
use muster_proto::v1::fleet_service_client::FleetServiceClient;
use muster_proto::v1::incident_service_client::IncidentServiceClient;
use muster_proto::v1::{self, ConnectRequest, ConnectResponse};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// Long enough for the slowest machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    dir: TempDir,
    coordinator: Coordinator,
}

impl World {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        ca::init(&dir.path().join("ca"), "prod").unwrap();
        let credentials = issue(dir.path(), Role::Coordinator, "coord-a");
        let coordinator = start(dir.path(), credentials).await;
        Self { dir, coordinator }
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("journal.db")
    }

    async fn channel(&self, role: Role, name: &str) -> Channel {
        let credentials = issue(self.dir.path(), role, name);
        connect(&format!("https://{}", self.coordinator.grpc_address()), &credentials).await.unwrap()
    }

    async fn agent(&self, name: &str) -> Agent {
        let channel = self.channel(Role::Agent, name).await;
        Agent::greet(channel, Position::start(spool())).await.unwrap()
    }
}

async fn start(dir: &Path, credentials: Credentials) -> Coordinator {
    let at = |file: &str| dir.join(file).display().to_string();
    let text = format!(
        "[listen]\ngrpc = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\nunix = \"{}\"\n\
         [tls]\nca = \"/unused\"\ncert = \"/unused\"\nkey = \"/unused\"\n[store]\nurl = \"sqlite:{}\"\n\
         [incidents]\nhold = {{ sev2 = \"0s\" }}\n",
        at("operator.sock"),
        at("journal.db")
    );
    let config = config::parse("coordinator.toml", &text).unwrap_or_else(|errors| panic!("{errors}"));
    Coordinator::start(config, credentials).await.unwrap()
}

fn issue(dir: &Path, role: Role, name: &str) -> Credentials {
    let (out, sans) = (dir.join(name), ["127.0.0.1".to_owned()]);
    ca::issue(&dir.join("ca"), &IssueRequest { role, name, sans: &sans, days: 1 }, &out).unwrap();
    Credentials::load(&out.join("ca.pem"), &out.join("cert.pem"), &out.join("key.pem")).unwrap()
}

fn spool() -> SpoolId {
    SpoolId(uuid::Uuid::from_u128(7))
}

fn hello() -> v1::Hello {
    v1::Hello {
        protocol_version: 1,
        agent_version: "test".into(),
        host_name: "host".into(),
        spool_id: spool().0.as_bytes().to_vec().into(),
        // A clock in 1970 harms nothing.
        wall_unix_ms: 0,
        ..v1::Hello::default()
    }
}

/// An agent that does exactly what the test says.
struct Agent {
    to: mpsc::Sender<ConnectRequest>,
    from: Streaming<ConnectResponse>,
    at: Position,
}

impl Agent {
    async fn open(channel: Channel, first: ToCoordinator) -> Result<Self, Status> {
        let (to, requests) = mpsc::channel(64);
        to.send(ConnectRequest { message: Some(first) }).await.unwrap();
        let mut client = AgentLinkServiceClient::new(channel).max_encoding_message_size(usize::MAX);
        let from = client.connect(ReceiverStream::new(requests)).await?.into_inner();
        Ok(Self { to, from, at: Position::start(spool()) })
    }

    /// Says hello and takes the welcome.
    async fn greet(channel: Channel, at: Position) -> Result<Self, Status> {
        let hello = v1::Hello { spool_id: at.spool.0.as_bytes().to_vec().into(), ..hello() };
        let mut agent = Self::open(channel, ToCoordinator::Hello(hello)).await?;
        match agent.next().await? {
            ToAgent::Welcome(welcome) => assert_eq!(welcome.resume.map(|resume| resume.sequence), Some(at.sequence)),
            other => panic!("expected a welcome, got {other:?}"),
        }
        agent.at = at;
        Ok(agent)
    }

    async fn next(&mut self) -> Result<ToAgent, Status> {
        let message = tokio::time::timeout(PATIENCE, self.from.message()).await.expect("no answer")?;
        Ok(message.and_then(|message| message.message).expect("the stream ended without a status"))
    }

    async fn send(&self, message: ToCoordinator) {
        self.to.send(ConnectRequest { message: Some(message) }).await.unwrap();
    }

    /// A closed port, another one with each entry.
    fn entry(&mut self) -> v1::SpoolEntry {
        self.entry_of(encode_finding_event(&FindingEvent::Opened(closed(self.at.sequence))))
    }

    fn entry_of(&mut self, body: Vec<u8>) -> v1::SpoolEntry {
        let (spool, sequence, previous) = (self.at.spool, self.at.sequence + 1, self.at.hash);
        let hash = EntryHash::of(spool, sequence, previous, &body);
        self.at = Position { spool, sequence, hash };
        v1::SpoolEntry {
            sequence,
            previous_hash: previous.0.to_vec().into(),
            hash: hash.0.to_vec().into(),
            age_ms: u64::MAX,
            age_estimated: true,
            body: body.into(),
        }
    }

    async fn acked(&mut self, sequence: u64) {
        loop {
            match self.next().await.unwrap() {
                ToAgent::Ack(ack) if ack.stored_sequence >= sequence => return,
                _ => {}
            }
        }
    }

    /// What ends the stream.
    async fn refused(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }

    /// Sends one new entry and waits until it is acknowledged.
    async fn reports(&mut self) {
        let entry = self.entry();
        let spool_id = self.at.spool.0.as_bytes().to_vec().into();
        self.send(ToCoordinator::Entries(v1::EntryBatch { spool_id, entries: vec![entry] })).await;
        self.acked(self.at.sequence).await;
    }
}

/// Port `n` of the host is closed.
fn closed(n: u64) -> Finding {
    let subject = SubjectKey::new(ServiceName::host(), ProbeKind::Port, &format!("127.0.0.1:{n}"));
    Finding::new(FindingKey { subject, reason: Reason::PortClosed }, "closed")
}

/// Waits until the coordinator has noticed that the agent's stream is over.
async fn gone(world: &World, name: &str) {
    let name = AgentName::new(name).unwrap();
    let gone = async {
        while world.coordinator.handle().links().get(&name).is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the stream does not end");
}

/// Every entry of the journal on disk, by the name of its fact or conclusion.
fn journaled(world: &World, name: &str) -> usize {
    let store = SqliteStore::open_read_only(&world.store()).unwrap();
    let stored = muster_coordinator::store::JournalStore::entries_from(&store, 1, 100_000).unwrap();
    let needle = format!("{{\"{name}\":");
    stored.iter().filter(|stored| String::from_utf8_lossy(&stored.body).contains(&needle)).count()
}

fn entries(entries: Vec<v1::SpoolEntry>) -> ToCoordinator {
    ToCoordinator::Entries(v1::EntryBatch { spool_id: spool().0.as_bytes().to_vec().into(), entries })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bad_input_ends_its_own_stream_with_its_code_and_nobody_elses() {
    let world = World::new().await;
    let mut good = world.agent("good").await;
    let channel = world.channel(Role::Agent, "bad").await;
    type Make = fn(&mut Agent) -> ToCoordinator;
    let cases: Vec<(&str, Code, &str, Make)> = vec![
        ("sequence gap", Code::OutOfRange, "does not follow 0", |agent| {
            agent.entry();
            let second = agent.entry();
            entries(vec![second])
        }),
        ("sequence zero", Code::InvalidArgument, "begin with 1", |agent| {
            let mut entry = agent.entry();
            entry.sequence = 0;
            entries(vec![entry])
        }),
        ("a body that does not decode", Code::InvalidArgument, "does not decode", |_| {
            let body = vec![0xff; 8];
            let hash = EntryHash::of(spool(), 1, EntryHash::ZERO, &body);
            let (hash, body) = (hash.0.to_vec().into(), body.into());
            entries(vec![v1::SpoolEntry { sequence: 1, hash, body, ..v1::SpoolEntry::default() }])
        }),
        ("a forged hash", Code::InvalidArgument, "hash of entry 1", |agent| {
            let mut entry = agent.entry();
            entry.hash = vec![1; 16].into();
            entries(vec![entry])
        }),
        ("another history", Code::Aborted, "new spool", |agent| {
            let mut entry = agent.entry();
            entry.previous_hash = vec![1; 16].into();
            entries(vec![entry])
        }),
        ("too many entries", Code::InvalidArgument, "at most", |agent| {
            entries((0..=BATCH_ENTRIES_MAX).map(|_| agent.entry()).collect())
        }),
        ("an oversized message", Code::OutOfRange, "too large", |agent| {
            let mut entry = agent.entry();
            entry.body = vec![0; LINK_MESSAGE_BYTES_MAX + 1].into();
            entries(vec![entry])
        }),
        ("an unknown enum value", Code::InvalidArgument, "unknown value 99", |_| {
            ToCoordinator::Goodbye(v1::Goodbye { reason: 99 })
        }),
        ("a second hello", Code::InvalidArgument, "second hello", |_| ToCoordinator::Hello(hello())),
        ("another spool", Code::Aborted, "another spool", |agent| {
            let entry = agent.entry();
            ToCoordinator::Entries(v1::EntryBatch { spool_id: vec![9; 16].into(), entries: vec![entry] })
        }),
        ("a backward gap", Code::InvalidArgument, "first to its last", |_| {
            let spool_id = spool().0.as_bytes().to_vec().into();
            ToCoordinator::Gap(v1::SpoolGap { spool_id, first_sequence: 5, last_sequence: 2 })
        }),
    ];
    for (name, code, text, make) in cases {
        let mut bad = Agent::greet(channel.clone(), Position::start(spool())).await.unwrap();
        let message = make(&mut bad);
        bad.send(message).await;
        let status = bad.refused().await;
        assert_eq!(status.code(), code, "{name}: {status}");
        assert!(status.message().contains(text), "{name}: {status}");
        good.reports().await;
    }
    let mut silent = Agent::open(channel.clone(), ToCoordinator::Heartbeat(v1::Heartbeat::default())).await.unwrap();
    assert_eq!(silent.refused().await.code(), Code::InvalidArgument);
    let old = v1::Hello { protocol_version: 99, ..hello() };
    let mut old = Agent::open(channel, ToCoordinator::Hello(old)).await.unwrap();
    assert_eq!(old.refused().await.code(), Code::FailedPrecondition);
    good.reports().await;
    let metrics = world.coordinator.handle().metrics().encode();
    assert!(metrics.contains("streams_refused_total{code=\"InvalidArgument\"}"), "{metrics}");
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_is_committed_and_sent_twice_is_stored_once() {
    let world = World::new().await;
    let channel = world.channel(Role::Agent, "web-1").await;
    let mut agent = Agent::greet(channel.clone(), Position::start(spool())).await.unwrap();
    let sent = [agent.entry(), agent.entry()];
    agent.send(entries(sent.to_vec())).await;
    agent.acked(2).await;
    // Read through another connection at the moment of the acknowledgement: it is on disk already.
    let count = |store: &SqliteStore| {
        let stored = muster_coordinator::store::JournalStore::entries_from(store, 1, 1000).unwrap();
        stored.iter().filter(|stored| String::from_utf8_lossy(&stored.body).contains("finding_received")).count()
    };
    let store = SqliteStore::open_read_only(&world.store()).unwrap();
    assert_eq!(count(&store), 2);
    agent.send(entries(sent.to_vec())).await;
    agent.acked(2).await;
    let at = agent.at;
    drop(agent);
    gone(&world, "web-1").await;
    let mut again = Agent::greet(channel, at).await.unwrap();
    again.send(entries(sent.to_vec())).await;
    again.acked(2).await;
    again.reports().await;
    let store = SqliteStore::open_read_only(&world.store()).unwrap();
    assert_eq!(count(&store), 3);
    assert_eq!(check_store(&store).unwrap().problems, Vec::<String>::new());
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_living_first_stream_keeps_the_name_and_a_dead_one_is_replaced() {
    let world = World::new().await;
    let (first_channel, second_channel) =
        (world.channel(Role::Agent, "web-1").await, world.channel(Role::Agent, "web-1").await);
    let mut first = Agent::greet(first_channel, Position::start(spool())).await.unwrap();
    let contender = tokio::spawn(Agent::greet(second_channel.clone(), Position::start(spool())));
    let id = loop {
        if let ToAgent::Ping(ping) = first.next().await.unwrap() {
            break ping.id;
        }
    };
    first.send(ToCoordinator::Pong(v1::Pong { id })).await;
    let refused = contender.await.unwrap().err().unwrap();
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    // It tries again at once; one fact is enough for both.
    let contender = tokio::spawn(Agent::greet(second_channel.clone(), Position::start(spool())));
    let id = loop {
        if let ToAgent::Ping(ping) = first.next().await.unwrap() {
            break ping.id;
        }
    };
    first.send(ToCoordinator::Pong(v1::Pong { id })).await;
    assert_eq!(contender.await.unwrap().err().unwrap().code(), Code::AlreadyExists);
    assert_eq!(journaled(&world, "identity_conflict"), 1);
    first.reports().await;
    // The first does not answer this time.
    let mut second = Agent::greet(second_channel, first.at).await.unwrap();
    assert_eq!(first.refused().await.code(), Code::Aborted);
    second.at = first.at;
    second.reports().await;
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_are_held_and_draining_streams_are_told() {
    let world = World::new().await;
    let mut agent = world.agent("web-1").await;
    agent.reports().await;
    let as_agent = FleetServiceClient::new(world.channel(Role::Agent, "web-2").await)
        .get_fleet_status(v1::GetFleetStatusRequest {})
        .await;
    assert_eq!(as_agent.unwrap_err().code(), Code::PermissionDenied);
    let viewer = world.channel(Role::Viewer, "eve").await;
    let status = FleetServiceClient::new(viewer.clone()).get_fleet_status(v1::GetFleetStatusRequest {}).await;
    let status = status.unwrap().into_inner();
    assert_eq!((status.agents_live, status.open_findings, status.role.as_str()), (1, 1, "primary"));
    let mut incidents = IncidentServiceClient::new(viewer.clone());
    let refused =
        incidents.resolve_incident(v1::ResolveIncidentRequest { id: "x".into(), summary: String::new() }).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    let unknown = incidents.get_incident(v1::GetIncidentRequest { id: "INC-1".into() }).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
    let as_operator = Agent::open(world.channel(Role::Operator, "ann").await, ToCoordinator::Hello(hello())).await;
    assert_eq!(as_operator.err().map(|status| status.code()), Some(Code::PermissionDenied));
    let findings = FindingServiceClient::new(viewer.clone())
        .list_findings(v1::ListFindingsRequest { agent: "web-1".into(), ..Default::default() })
        .await;
    let finding = findings.unwrap().into_inner().findings.pop().unwrap();
    assert_eq!(finding.id, "web-1/host/port/127.0.0.1:0/port_closed");
    let mut journal = FindingServiceClient::new(viewer);
    let mut traced = async |trace_id: String, page_size, page_token| {
        let request = v1::GetTraceRequest { trace_id, page_size, page_token };
        journal.get_trace(request).await.map(tonic::Response::into_inner)
    };
    let trace = traced(finding.trace_id.clone(), 0, String::new()).await.unwrap();
    assert_eq!(trace.events[0].name, "finding_received");
    assert!(trace.events.len() > 1 && trace.next_page_token.is_empty(), "{trace:?}");
    let last = trace.events.last().unwrap().index.to_string();
    assert_eq!(traced(last, 0, String::new()).await.unwrap(), trace, "each of its entries names it");
    let first = traced(finding.trace_id.clone(), 1, String::new()).await.unwrap();
    let rest = traced(finding.trace_id, 1000, first.next_page_token).await.unwrap();
    assert_eq!([first.events, rest.events].concat(), trace.events);
    assert_eq!(traced("999999".into(), 0, String::new()).await.unwrap_err().code(), Code::NotFound);
    let all = journal.list_events(v1::ListEventsRequest { page_size: 1000, ..Default::default() }).await.unwrap();
    let (mut paged, mut token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListEventsRequest { page_size: 2, page_token: token, ..Default::default() };
        let page = journal.list_events(request).await.unwrap().into_inner();
        paged.extend(page.events);
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(paged, all.into_inner().events);
    let stopping = tokio::spawn(world.coordinator.stop());
    let status = agent.refused().await;
    assert_eq!((status.code(), status.message().starts_with("draining")), (Code::Unavailable, true), "{status}");
    stopping.await.unwrap().unwrap();
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET /{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// After a mass disconnect nothing is kept of the streams, and after the hosts were archived nothing of the hosts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_many_agents_took_is_given_back() {
    const AGENTS: usize = 40;
    let world = World::new().await;
    let operator = world.channel(Role::Operator, "ada").await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let mut agents = Vec::new();
    for n in 0..AGENTS {
        let mut agent = world.agent(&format!("web-{n}")).await;
        agent.reports().await;
        agents.push(agent);
    }
    let links = world.coordinator.handle().links().all();
    let links: Vec<_> = links.into_iter().map(|(_, link)| std::sync::Arc::downgrade(&link)).collect();
    assert_eq!((links.len(), tasks() >= before + AGENTS), (AGENTS, true));
    drop(agents);
    let given_back = async {
        let handle = world.coordinator.handle();
        let kept = || links.iter().filter(|link| link.upgrade().is_some()).count();
        let heard = |view: &muster_coordinator::runtime::View<'_>| {
            view.state.agents().filter(|agent| agent.link == muster_coordinator_core::state::Link::Heard).count()
        };
        // One task of each stream would be more than what comes and goes by itself.
        while kept() > 0 || !handle.links().is_empty() || tasks() >= before + AGENTS {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        while handle.query(heard).await.unwrap() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, given_back).await.expect("something of the streams is kept");
    for n in 0..AGENTS {
        let archive = v1::ArchiveAgentRequest { id: format!("web-{n}"), reason: "sold".into() };
        FleetServiceClient::new(operator.clone()).archive_agent(archive).await.unwrap();
    }
    let kept = |view: &muster_coordinator::runtime::View<'_>| {
        (view.state.agents().count(), view.state.open_findings().count())
    };
    assert_eq!(world.coordinator.handle().query(kept).await.unwrap(), (0, 0));
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_health_and_the_unix_socket_answer() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::{v1 as reflection, v1alpha as old};
    let world = World::new().await;
    let channel = world.channel(Role::Viewer, "eve").await;
    for service in ["", "muster.v1.AgentLinkService"] {
        let request = HealthCheckRequest { service: service.into() };
        let health = HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner();
        assert_eq!(health.status, 1, "{service:?} is serving");
    }
    let list = reflection::server_reflection_request::MessageRequest::ListServices(String::new());
    let request = reflection::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut client = reflection::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let answers = client.server_reflection_info(tokio_stream::once(request));
    let answer = answers.await.unwrap().into_inner().message().await.unwrap().unwrap();
    let listed = |answer: Option<reflection::server_reflection_response::MessageResponse>| match answer {
        Some(reflection::server_reflection_response::MessageResponse::ListServicesResponse(list)) => {
            let names = list.service.into_iter().map(|service| service.name);
            names.collect::<std::collections::BTreeSet<_>>()
        }
        other => panic!("{other:?}"),
    };
    // What is listed is served: each of its calls is known, whatever it answers.
    let names = listed(answer.message_response);
    let own = ["AgentLink", "Fleet", "Finding", "Incident", "Silence", "Paging", "Failover", "Replication"];
    let own = own.iter().map(|service| format!("muster.v1.{service}Service"));
    let foreign = ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"].map(str::to_owned);
    assert_eq!(names, own.chain(foreign).collect());
    for service in names {
        let health = HealthCheckRequest { service: service.clone() };
        let known = HealthClient::new(channel.clone()).check(health).await;
        assert!(!service.starts_with("muster.") || known.is_ok(), "{service}: {known:?}");
    }
    let list = old::server_reflection_request::MessageRequest::ListServices(String::new());
    let request = old::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut client = old::server_reflection_client::ServerReflectionClient::new(channel);
    let answers = client.server_reflection_info(tokio_stream::once(request));
    assert!(answers.await.unwrap().into_inner().message().await.unwrap().is_some());

    let http = world.coordinator.http_address().unwrap();
    for (path, text) in [("healthz", "ok"), ("readyz", "ready"), ("metrics", "muster_coordinator_role")] {
        let answer = get(http, path).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(text), "{path}: {answer}");
    }

    let socket = world.dir.path().join("operator.sock");
    let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    let local =
        tonic::transport::Endpoint::from_static("http://local").connect_with_connector(connector).await.unwrap();
    let note = v1::AddNoteRequest { id: "INC-1".into(), text: "seen".into() };
    let refused = IncidentServiceClient::new(local).add_note(note).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "an operator may act, there is just no such incident: {refused}");
    world.coordinator.stop().await.unwrap();
}

//! Peers that mean harm or are broken: strangers at the port, floods, bytes that are no messages, and certificates that
//! are used for what they are not for.

use super::*;
use muster_proto::v1::failover_service_client::FailoverServiceClient;
use muster_proto::v1::replication_service_client::ReplicationServiceClient;
use prost::Message as _;
use prost::bytes::{Buf, BufMut};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;

/// Sends bytes as they are.
#[derive(Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_message_are_an_invalid_argument() {
    let world = World::new().await;
    let mut good = world.agent("good").await;
    let mut client = tonic::client::Grpc::new(world.channel(Role::Agent, "bad").await);
    for (method, garbage) in [("AgentLinkService/Connect", vec![0xff; 40]), ("AgentLinkService/Connect", Vec::new())] {
        client.ready().await.unwrap();
        let path = PathAndQuery::from_maybe_shared(format!("/muster.v1.{method}")).unwrap();
        let answer = client.streaming(tonic::Request::new(tokio_stream::once(garbage)), path, Raw).await;
        let mut answers = answer.unwrap().into_inner();
        let status = tokio::time::timeout(PATIENCE, answers.message()).await.expect("no answer").unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        good.reports().await;
    }
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_nobody_knows_are_named_in_the_refusal() {
    let world = World::new().await;
    let mut good = world.agent("good").await;
    let channel = world.channel(Role::Agent, "bad").await;
    let detail = |change: fn(&mut v1::FindingDetail)| {
        let mut detail = muster_proto::convert::finding_to_wire(&closed(1));
        change(&mut detail);
        let event = v1::FindingEvent { event: Some(v1::finding_event::Event::Opened(detail)) };
        prost::Message::encode_to_vec(&event)
    };
    let bodies = [
        ("severity", detail(|detail| detail.severity = 77)),
        ("reason", detail(|detail| detail.reason = "Made up\u{202e}".into())),
        (
            "probe",
            detail(|detail| {
                if let Some(subject) = &mut detail.subject {
                    subject.probe = "Made up\u{202e}".into();
                }
            }),
        ),
        ("summary", detail(|detail| detail.summary = "x".repeat(20_000))),
    ];
    for (field, body) in bodies {
        let mut bad = Agent::greet(channel.clone(), Position::start(spool())).await.unwrap();
        let entry = bad.entry_of(body);
        bad.send(entries(vec![entry])).await;
        let status = bad.refused().await;
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        assert!(status.message().contains("entry 1") && status.message().contains(field), "{field}: {status}");
        gone(&world, "bad").await;
        good.reports().await;
    }
    world.coordinator.stop().await.unwrap();
}

/// Agents may be upgraded before coordinators: its reason and its probe are kept under their names, its digest agrees, and
/// it ends what it began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_agent_is_understood_as_far_as_it_can_be() {
    use muster_common::finding::{FindingKey, open_digest};
    use muster_common::reason::ReasonKind;
    let world = World::new().await;
    let viewer = world.channel(Role::Viewer, "eve").await;
    let mut agent = world.agent("web-1").await;
    let mut detail =
        muster_proto::convert::finding_to_wire(&closed(1).severity(muster_common::severity::Severity::Sev2));
    let subject = v1::SubjectKey { service: "spl".into(), probe: "seance".into(), subject: "/var/a".into() };
    (detail.reason, detail.subject) = ("attic_haunted".into(), Some(subject.clone()));
    let event = |event| prost::Message::encode_to_vec(&v1::FindingEvent { event: Some(event) });
    for body in [
        event(v1::finding_event::Event::Opened(detail.clone())),
        event(v1::finding_event::Event::Occurred(v1::FindingDetail { reason: "ghost_seen".into(), ..detail.clone() })),
    ] {
        let entry = agent.entry_of(body);
        agent.send(entries(vec![entry])).await;
        agent.acked(agent.at.sequence).await;
    }
    let list = || async {
        let wanted = v1::ListFindingsRequest { include_occurrences: true, ..Default::default() };
        FindingServiceClient::new(viewer.clone()).list_findings(wanted).await.unwrap().into_inner().findings
    };
    let mut told: Vec<_> = list().await.into_iter().map(|finding| (finding.kind, finding.detail.unwrap())).collect();
    told.sort_by(|a, b| a.0.cmp(&b.0));
    let happened = v1::FindingDetail { reason: "ghost_seen".into(), ..detail.clone() };
    assert_eq!(told, [("condition".to_owned(), detail.clone()), ("occurrence".to_owned(), happened)]);
    let by_reason = async |reason: &str| {
        let wanted = v1::ListFindingsRequest { reason: reason.to_owned(), ..Default::default() };
        let found = FindingServiceClient::new(viewer.clone()).list_findings(wanted).await;
        found.map(|found| found.into_inner().findings.len()).map_err(|status| status.message().to_owned())
    };
    assert_eq!(by_reason("unknown_condition").await, Ok(1));
    assert_eq!(by_reason("attic_haunted").await, Ok(1), "by the name that is shown, while it is open");
    let error = by_reason("attic_hunted").await.unwrap_err();
    assert!(error.contains("listed by unknown_condition and unknown_occurrence"), "{error}");
    // What it counts as open is what is known here: no resync follows, which this heartbeat would ask for otherwise.
    let service = ServiceName::new("spl").unwrap();
    let key = FindingKey::foreign(service, "seance", "/var/a", "attic_haunted", ReasonKind::Condition);
    let head_sequence = agent.at.sequence;
    let beat = v1::Heartbeat { sequence: 1, open_digest: open_digest([&key]), head_sequence, ..Default::default() };
    agent.send(ToCoordinator::Heartbeat(beat)).await;
    let cleared = v1::FindingCleared { subject: Some(subject), reason: "attic_haunted".into(), ..Default::default() };
    let entry = agent.entry_of(event(v1::finding_event::Event::Cleared(cleared)));
    agent.send(entries(vec![entry])).await;
    agent.acked(agent.at.sequence).await;
    let left: Vec<_> = list().await.into_iter().map(|finding| finding.kind).collect();
    assert_eq!(left, ["occurrence"]);
    assert_eq!(journaled(&world, "digest_differs"), 0);
    let titles = |view: &muster_coordinator::runtime::View<'_>| {
        view.state.incidents().map(|incident| (incident.title.clone(), incident.severity)).collect::<Vec<_>>()
    };
    let titles = world.coordinator.handle().query(titles).await.unwrap();
    assert!(titles.iter().all(|(_, severity)| severity.as_str() == "sev2") && titles.len() == 2, "{titles:?}");
    for name in ["(seance/attic_haunted)", "(seance/ghost_seen)"] {
        assert!(titles.iter().any(|(title, _)| title.contains(name)), "{name}: {titles:?}");
    }
    let http = world.coordinator.http_address().unwrap();
    let metrics = get(http, "metrics").await;
    assert!(metrics.contains("muster_coordinator_unknown_findings_total 3"), "{metrics}");
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_strangers_who_never_finish_their_handshake_harm_nobody() {
    let world = World::new().await;
    let mut good = world.agent("good").await;
    let mut strangers = Vec::new();
    for _ in 0..1_000 {
        strangers.push(tokio::net::TcpStream::connect(world.coordinator.grpc_address()).await.unwrap());
    }
    world.agent("new").await.reports().await;
    good.reports().await;
    // Each is closed when its time is up.
    let mut first = strangers.swap_remove(0);
    let mut byte = [0; 1];
    let read = tokio::io::AsyncReadExt::read(&mut first, &mut byte);
    let closed = tokio::time::timeout(PATIENCE, read).await.expect("a stranger may stay for ever");
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    good.reports().await;
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_headers_and_floods_of_cancelled_calls_end_their_own_connection_at_most() {
    let world = World::new().await;
    let mut good = world.agent("good").await;
    let viewer = world.channel(Role::Viewer, "eve").await;
    let mut request = tonic::Request::new(v1::GetFleetStatusRequest {});
    request.metadata_mut().insert("x-large", "x".repeat(64 * 1024).parse().unwrap());
    let refused = FleetServiceClient::new(viewer).get_fleet_status(request).await.unwrap_err();
    assert_ne!(refused.code(), Code::Ok, "{refused}");
    good.reports().await;

    let viewer = world.channel(Role::Viewer, "vic").await;
    let mut flood = tokio::task::JoinSet::new();
    for n in 0..2_000 {
        let mut client = FleetServiceClient::new(viewer.clone());
        let call = flood.spawn(async move { client.get_fleet_status(v1::GetFleetStatusRequest {}).await.map(drop) });
        if n % 2 == 0 {
            call.abort();
        }
    }
    while flood.join_next().await.is_some() {}
    good.reports().await;
    let fresh = world.channel(Role::Viewer, "val").await;
    FleetServiceClient::new(fresh).get_fleet_status(v1::GetFleetStatusRequest {}).await.unwrap();
    world.coordinator.stop().await.unwrap();
}

/// What came of a call with an empty message, whatever kind of call it is.
async fn called(channel: &Channel, path: &str) -> Code {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let empty = tonic::Request::new(tokio_stream::once(Vec::new()));
    // A refusal comes before everything else.
    let answer = grpc.streaming(empty, path.parse::<PathAndQuery>().unwrap(), Raw).await;
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

/// Taken from the description of the API itself, so that no call can be forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_there_is_asks_for_a_role() {
    let world = World::new().await;
    let described = prost_types::FileDescriptorSet::decode(muster_proto::FILE_DESCRIPTOR_SET).unwrap();
    // All but the one that agents serve to programs on their own host.
    let services = described.file.iter().flat_map(|file| &file.service);
    let services = services.filter(|service| service.name() != "LocalAgentService");
    let calls = services.flat_map(|service| service.method.iter().map(|method| (service.name(), method.name())));
    let calls: Vec<(&str, &str)> = calls.collect();
    assert!(calls.len() > 30, "{calls:?}");
    let reads = ["Get", "List", "Watch", "Ping", "Diagnose", "Explain", "Export"];
    let mut wrong = Vec::new();
    for (role, name) in [(Role::Agent, "web-1"), (Role::Viewer, "eve"), (Role::Operator, "ada")] {
        let channel = world.channel(role, name).await;
        for (service, method) in &calls {
            let may = match (role, *service) {
                (_, "AgentLinkService") => role == Role::Agent,
                (Role::Agent, _) | (_, "ReplicationService") => false,
                (Role::Operator, _) => true,
                _ => reads.iter().any(|word| method.starts_with(word)),
            };
            let code = called(&channel, &format!("/muster.v1.{service}/{method}")).await;
            if (code == Code::PermissionDenied) == may {
                wrong.push(format!("{role:?} {service}/{method}: {code:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_good_for_their_own_role_only() {
    let world = World::new().await;
    let denied = |what: &str, answer: Result<(), Status>| {
        let status = answer.expect_err(what);
        assert_eq!(status.code(), Code::PermissionDenied, "{what}: {status}");
    };
    let id = || "INC-1".to_owned();
    for (role, name) in [(Role::Agent, "web-1"), (Role::Viewer, "eve")] {
        let channel = world.channel(role, name).await;
        let mut incidents = IncidentServiceClient::new(channel.clone());
        let ack = v1::AcknowledgeIncidentRequest { id: id(), ..Default::default() };
        denied("acknowledge", incidents.acknowledge_incident(ack).await.map(drop));
        let resolve = v1::ResolveIncidentRequest { id: id(), summary: "x".into() };
        denied("resolve", incidents.resolve_incident(resolve).await.map(drop));
        let note = v1::AddNoteRequest { id: id(), text: "x".into() };
        denied("note", incidents.add_note(note).await.map(drop));
        let promote = v1::PromoteRequest { force: true, ..Default::default() };
        denied("promote", FailoverServiceClient::new(channel.clone()).promote(promote).await.map(drop));
        let follow = tokio_stream::once(v1::ReplicateRequest::default());
        denied("replicate", ReplicationServiceClient::new(channel.clone()).replicate(follow).await.map(drop));
        if role == Role::Agent {
            let mut findings = FindingServiceClient::new(channel.clone());
            denied("list findings", findings.list_findings(v1::ListFindingsRequest::default()).await.map(drop));
            denied("watch findings", findings.watch_findings(v1::WatchFindingsRequest::default()).await.map(drop));
            denied("list events", findings.list_events(v1::ListEventsRequest::default()).await.map(drop));
            denied("trace", findings.get_trace(v1::GetTraceRequest::default()).await.map(drop));
            denied("incidents", incidents.list_incidents(v1::ListIncidentsRequest::default()).await.map(drop));
            let mut fleet = FleetServiceClient::new(channel.clone());
            denied("agents", fleet.list_agents(v1::ListAgentsRequest::default()).await.map(drop));
        }
    }
    world.coordinator.stop().await.unwrap();
}

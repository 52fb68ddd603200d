//! What people on call see and do around a page: a receiver that fails, a letter that nobody needs any more, who took
//! it, and what became of what was held back.

use crate::service::{World, until};
use axum::http::StatusCode;
use hyper_util::rt::TokioIo;
use muster_common::identity::Role;
use muster_common::ids::{AgentName, SpoolId};
use muster_coordinator_core::entry::{AgentHello, Fact};
use muster_proto::v1::explain_request::About;
use muster_proto::v1::incident_service_client::IncidentServiceClient;
use muster_proto::v1::paging_service_client::PagingServiceClient;
use muster_proto::v1::silence_service_client::SilenceServiceClient;
use muster_proto::v1::{self, SilenceMatchers};
use serde_json::Value;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

impl World {
    /// An operator on the coordinator's own host.
    async fn local(&self) -> Channel {
        let socket = self.dir.path().join("operator.sock");
        let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://local").connect_with_connector(connector).await.unwrap()
    }

    /// The newest call about the incident with this action, once there is one.
    async fn told(&self, action: &str, incident: &str) -> Value {
        let fits = |page: &Value| page["action"] == action && (incident.is_empty() || page["incident"] == incident);
        until("a page", async || self.hook.heard("/hook").into_iter().rfind(fits)).await
    }

    /// Lines of `/metrics` about the gauge.
    fn failing(&self) -> Vec<String> {
        let text = self.coordinator.handle().metrics().encode();
        text.lines().filter(|line| line.starts_with("muster_coordinator_receiver_failing")).map(str::to_owned).collect()
    }
}

fn operator(channel: &Channel) -> IncidentServiceClient<Channel> {
    IncidentServiceClient::new(channel.clone())
}

#[tokio::test]
async fn a_receiver_that_fails_is_a_gauge_that_is_there_from_the_beginning() {
    let world = World::new(StatusCode::SERVICE_UNAVAILABLE).await;
    let gauge = |value: u8| [format!("muster_coordinator_receiver_failing{{receiver=\"ops\"}} {value}")];
    until("the gauge of a receiver that was never called", async || (world.failing() == gauge(0)).then_some(())).await;
    world.trouble().await;
    until("it fails for now", async || (world.failing() == gauge(1)).then_some(())).await;
    *world.hook.status.lock().unwrap() = StatusCode::OK;
    until("it is well again", async || (world.failing() == gauge(0)).then_some(())).await;
    *world.hook.status.lock().unwrap() = StatusCode::BAD_REQUEST;
    world.trouble_of("web-2").await;
    until("it refused for good", async || (world.failing() == gauge(1)).then_some(())).await;
    world.coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn a_letter_about_which_something_newer_is_told_is_not_sent_again() {
    let world = World::new(StatusCode::BAD_REQUEST).await;
    let channel = world.channel(Role::Operator, "ann").await;
    let mut paging = PagingServiceClient::new(channel.clone());
    world.trouble().await;
    let letter = until("a dead letter", async || {
        let letters = paging.list_dead_letters(v1::ListDeadLettersRequest::default()).await.unwrap().into_inner();
        letters.dead_letters.into_iter().next()
    })
    .await;
    let mut resend = async || {
        let request = v1::ResendPageRequest { page_id: letter.page_id.clone() };
        paging.resend_page(request).await.unwrap_err()
    };
    *world.hook.status.lock().unwrap() = StatusCode::SERVICE_UNAVAILABLE;
    let calls = world.hook.heard("/hook").len();
    let (id, note) = (letter.incident.clone(), "it is worse".to_owned());
    let worse = v1::SetSeverityRequest { id, severity: v1::Severity::Sev1.into(), note };
    operator(&channel).set_severity(worse).await.unwrap();
    until("the newer page is tried", async || (world.hook.heard("/hook").len() > calls).then_some(())).await;
    let refused = resend().await;
    let expected = format!("a newer one about {}, is on its way to ops", letter.incident);
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains(&expected), "{}", refused.message());
    *world.hook.status.lock().unwrap() = StatusCode::OK;
    let delivered = async || world.coordinator.handle().query(|view| view.state.pending_pages().count()).await.unwrap();
    until("the newer page is taken", async || (delivered().await == 0).then_some(())).await;
    let calls = world.hook.heard("/hook").len();
    let refused = resend().await;
    let expected = format!("ops accepted a newer one about {}, ", letter.incident);
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains(&expected), "{}", refused.message());
    assert_eq!(world.hook.heard("/hook").len(), calls);
    world.coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn a_page_names_who_took_it_also_from_the_socket() {
    let world = World::new(StatusCode::OK).await;
    let mut client = operator(&world.local().await);
    let login = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
    for (host, said, expected) in
        [("web-1", None, format!("local:{login}")), ("web-2", Some("ann"), format!("local:{login} (ann)"))]
    {
        world.trouble_of(host).await;
        let page = until("a page about it", async || {
            let about_it = |page: &Value| page["agents"][0] == host && page["action"] == "trigger";
            world.hook.heard("/hook").into_iter().find(about_it)
        })
        .await;
        let id = page["incident"].as_str().unwrap().to_owned();
        let mut request = Request::new(v1::AcknowledgeIncidentRequest { id: id.clone(), note: String::new() });
        if let Some(said) = said {
            request.metadata_mut().insert("muster-as", said.parse().unwrap());
        }
        let incident = client.acknowledge_incident(request).await.unwrap().into_inner();
        assert_eq!(incident.owner, expected);
        let told = world.told("acknowledge", &id).await;
        assert_eq!(told["why"], format!("{expected} acknowledged it"));
    }
    world.coordinator.stop().await.unwrap();
}

/// Of a moment in the past, why nobody was paged then, and what became of it since.
#[tokio::test]
async fn what_was_held_back_then_and_was_told_since_is_told_so() {
    let world = World::new(StatusCode::OK).await;
    let channel = world.channel(Role::Operator, "ann").await;
    let handle = world.coordinator.handle();
    let agent = AgentName::new("web-1").unwrap();
    let hello = AgentHello {
        host_name: "web-1".to_owned(),
        agent_version: "0.1.0".to_owned(),
        os_version: "test".to_owned(),
        kernel_version: "6.0".to_owned(),
        boot_id: None,
        labels: Default::default(),
        peer_address: "10.0.0.1:1".to_owned(),
        spool: SpoolId(uuid::Uuid::from_u128(7)),
        listening_ports: Vec::new(),
    };
    handle.submit(Fact::AgentConnected { agent, hello: hello.into() }).await.unwrap();
    let mut silences = SilenceServiceClient::new(channel.clone());
    let silence = v1::CreateSilenceRequest {
        matchers: Some(SilenceMatchers { agents: vec!["web-1".to_owned()], ..SilenceMatchers::default() }),
        reason: "switches".to_owned(),
        ttl: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        ..v1::CreateSilenceRequest::default()
    };
    let silence = silences.create_silence(silence).await.unwrap().into_inner();
    world.trouble().await;
    let then = handle.now();
    let then = prost_types::Timestamp { seconds: then.unix_ms() / 1000 + 1, nanos: 0 };
    until("that second is over", async || (handle.now().unix_ms() / 1000 > then.seconds).then_some(())).await;
    let why_not = async || {
        let about = v1::WhyNot { agent: "web-1".to_owned(), at: Some(then), service: String::new() };
        let request = v1::ExplainRequest { about: Some(About::WhyNot(about)) };
        let answer = operator(&channel).explain(request).await.unwrap().into_inner();
        let held = answer.rules.iter().find(|rule| rule.held_back_by == "silence" && !rule.incident.is_empty());
        held.unwrap_or_else(|| panic!("{answer:#?}")).why.clone()
    };
    let still = why_not().await;
    assert!(still.contains(&silence.id) && still.ends_with("; it has paged nobody to this day"), "{still}");
    silences.expire_silence(v1::ExpireSilenceRequest { id: silence.id.clone() }).await.unwrap();
    world.told("trigger", "").await;
    let since = why_not().await;
    assert!(since.contains(&silence.id) && since.ends_with("; it has paged since"), "{since}");
    world.coordinator.stop().await.unwrap();
}

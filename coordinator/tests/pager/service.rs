//! The served whole: what operators ask about receivers, a page sent again, PagerDuty's answers, the sign of life.

use crate::http::PATIENCE;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use hmac::{Hmac, Mac};
use muster_common::identity::Role;
use muster_common::ids::AgentName;
use muster_common::tls::Credentials;
use muster_coordinator::ca::{self, IssueRequest};
use muster_coordinator::config;
use muster_coordinator::failover::client::connect;
use muster_coordinator::serve::Coordinator;
use muster_coordinator_core::entry::Fact;
use muster_proto::v1;
use muster_proto::v1::finding_service_client::FindingServiceClient;
use muster_proto::v1::fleet_service_client::FleetServiceClient;
use muster_proto::v1::incident_service_client::IncidentServiceClient;
use muster_proto::v1::paging_service_client::PagingServiceClient;
use serde_json::Value;
use sha2::Sha256;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};
use tonic::Code;
use tonic::transport::Channel;

const SECRET: &str = "the-secret-of-the-subscription";

/// Whoever is called: answers as told, keeps what it heard.
#[derive(Clone)]
pub(crate) struct Hook {
    pub(crate) address: SocketAddr,
    pub(crate) status: Arc<Mutex<StatusCode>>,
    heard: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Hook {
    async fn start(status: StatusCode) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hook = Self { address, status: Arc::new(Mutex::new(status)), heard: Arc::default() };
        let take = async |State(hook): State<Self>, uri: Uri, body: Bytes| {
            let body = serde_json::from_slice(&body).unwrap_or_default();
            hook.heard.lock().unwrap().push((uri.path().to_owned(), body));
            *hook.status.lock().unwrap()
        };
        let routes = Router::new().fallback(take).with_state(hook.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        hook
    }

    pub(crate) fn heard(&self, path: &str) -> Vec<Value> {
        let heard = self.heard.lock().unwrap();
        heard.iter().filter(|(of, _)| of == path).map(|(_, body)| body.clone()).collect()
    }
}

pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) hook: Hook,
    pub(crate) coordinator: Coordinator,
}

impl World {
    pub(crate) async fn new(status: StatusCode) -> Self {
        let (dir, hook) = (TempDir::new().unwrap(), Hook::start(status).await);
        ca::init(&dir.path().join("ca"), "prod").unwrap();
        std::fs::write(dir.path().join("secret"), SECRET).unwrap();
        let at = |file: &str| dir.path().join(file).display().to_string();
        let text = format!(
            "[listen]\ngrpc = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\nunix = \"{}\"\n\
             [tls]\nca = \"/unused\"\ncert = \"/unused\"\nkey = \"/unused\"\n[store]\nurl = \"sqlite:{}\"\n\
             [incidents]\nhold = {{ sev2 = \"0s\" }}\n\
             [[receiver.webhook]]\nname = \"ops\"\nurl = \"http://{}/hook\"\n\
             [heartbeat_out]\nurl = \"http://{}/beat\"\ninterval = \"1s\"\n\
             [pagerduty_webhook]\nsecret_files = [\"{}\"]\n",
            at("operator.sock"),
            at("journal.db"),
            hook.address,
            hook.address,
            at("secret")
        );
        let config = config::parse("coordinator.toml", &text).unwrap_or_else(|errors| panic!("{errors}"));
        let credentials = issue(dir.path(), Role::Coordinator, "coord-a");
        let coordinator = Coordinator::start(config, credentials).await.unwrap();
        Self { dir, hook, coordinator }
    }

    pub(crate) async fn channel(&self, role: Role, name: &str) -> Channel {
        let credentials = issue(self.dir.path(), role, name);
        connect(&format!("https://{}", self.coordinator.grpc_address()), &credentials).await.unwrap()
    }

    /// Something worth a page.
    pub(crate) async fn trouble(&self) {
        self.trouble_of("web-1").await;
    }

    /// The same of another host.
    pub(crate) async fn trouble_of(&self, name: &str) {
        let agent = AgentName::new(name).unwrap();
        let fact = Fact::IdentityConflict { agent, holder: "10.0.0.1:1".to_owned(), refused: "10.0.0.2:1".to_owned() };
        self.coordinator.handle().submit(fact).await.unwrap();
    }

    /// Status and body of a call to the HTTP port.
    async fn post(&self, path: &str, header: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.coordinator.http_address().unwrap()).await.unwrap();
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n");
        stream.write_all(format!("{head}{header}\r\n{body}").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// What PagerDuty would send.
    async fn pagerduty(&self, id: &str, event: &str, key: &str) -> (u16, String) {
        let body = serde_json::json!({ "event": {
            "id": id, "event_type": event, "resource_type": "incident",
            "agent": { "id": "P1", "type": "user_reference", "summary": "Ann" },
            "data": { "id": "P2", "type": "incident", "incident_key": key },
        }})
        .to_string();
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(SECRET.as_bytes()).unwrap();
        mac.update(body.as_bytes());
        let signed: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let header = format!("x-pagerduty-signature: v1={},v1={signed}\r\n", "00".repeat(32));
        self.post("/pagerduty/webhook", &header, &body).await
    }
}

fn issue(dir: &Path, role: Role, name: &str) -> Credentials {
    let (out, sans) = (dir.join(name), ["127.0.0.1".to_owned()]);
    ca::issue(&dir.join("ca"), &IssueRequest { role, name, sans: &sans, days: 1 }, &out).unwrap();
    Credentials::load(&out.join("ca.pem"), &out.join("cert.pem"), &out.join("key.pem")).unwrap()
}

/// Looks until `found` finds something.
pub(crate) async fn until<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = found().await {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "{what}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn only_receiver(paging: &mut PagingServiceClient<Channel>) -> v1::Receiver {
    let mut receivers = paging.list_receivers(v1::ListReceiversRequest {}).await.unwrap().into_inner().receivers;
    assert_eq!(receivers.len(), 1);
    receivers.remove(0)
}

#[tokio::test]
async fn a_dead_letter_is_listed_and_sent_again() {
    let world = World::new(StatusCode::BAD_REQUEST).await;
    let mut paging = PagingServiceClient::new(world.channel(Role::Operator, "ann").await);
    world.trouble().await;
    let letter = until("a dead letter", async || {
        let request = v1::ListDeadLettersRequest { receiver: "ops".to_owned(), ..Default::default() };
        paging.list_dead_letters(request).await.unwrap().into_inner().dead_letters.pop()
    })
    .await;
    assert_eq!((letter.receiver.as_str(), letter.action.as_str()), ("ops", "trigger"));
    assert!(letter.error.contains("answered 400") && letter.failed.is_some(), "{letter:?}");
    let ops = only_receiver(&mut paging).await;
    assert_eq!((ops.kind.as_str(), ops.pages_failed, ops.pages_delivered), ("webhook", 1, 0));
    assert!(ops.last_error.contains("answered 400") && ops.target == format!("http://{}", world.hook.address));
    assert_eq!(ops.routes, ["everything"]);

    let fleet = FleetServiceClient::new(world.channel(Role::Viewer, "eve").await);
    let given_up = async || {
        let status = { fleet.clone() }.get_fleet_status(v1::GetFleetStatusRequest {}).await.unwrap();
        status.into_inner().pages_failed
    };
    assert_eq!(given_up().await, 1);

    *world.hook.status.lock().unwrap() = StatusCode::OK;
    let resend = |page_id: &str| v1::ResendPageRequest { page_id: page_id.to_owned() };
    let again = paging.resend_page(resend(&letter.page_id)).await.unwrap().into_inner().page_id;
    until("the page sent again", async || (only_receiver(&mut paging).await.pages_delivered == 1).then_some(())).await;
    let told = world.hook.heard("/hook");
    assert_eq!(told[1]["page_id"].to_string(), again);
    assert_eq!((&told[0]["dedup_key"], &told[0]["page_id"].to_string()), (&told[1]["dedup_key"], &letter.page_id));
    let ops = only_receiver(&mut paging).await;
    assert!(ops.last_error.is_empty() && ops.last_delivered.is_some() && ops.next_try.is_none(), "{ops:?}");
    assert_eq!(given_up().await, 0, "as the list of dead letters has it");
    let mut journal = FindingServiceClient::new(world.channel(Role::Viewer, "eve").await);
    let events = journal.list_events(v1::ListEventsRequest::default()).await.unwrap().into_inner().events;
    let first = format!("page {} (trigger) to ops given up: answered 400", letter.page_id);
    let mut incidents = IncidentServiceClient::new(world.channel(Role::Viewer, "eve").await);
    let asked = v1::ExplainRequest { about: Some(v1::explain_request::About::Id(letter.incident.clone())) };
    let why = incidents.explain(asked).await.unwrap().into_inner().answer;
    assert!(why.contains(" paged ops ") && !why.contains("given up"), "it took it in the end: {why}");
    for words in
        [first, format!("page {again} (trigger) is sent to ops"), format!("page {again} (trigger) accepted by ops")]
    {
        let found = events.iter().any(|event| event.summary == words && event.incident == letter.incident);
        assert!(found, "{words}: {events:#?}");
    }
    for (id, code) in
        [(letter.page_id.as_str(), Code::FailedPrecondition), ("999999", Code::NotFound), ("x", Code::InvalidArgument)]
    {
        let refused = paging.resend_page(resend(id)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{}", refused.message());
    }
    assert!(
        paging
            .list_dead_letters(v1::ListDeadLettersRequest::default())
            .await
            .unwrap()
            .into_inner()
            .dead_letters
            .is_empty()
    );
    world.coordinator.stop().await.unwrap();
}

/// What nobody can send again is not offered, and not counted.
#[tokio::test]
async fn a_dead_letter_of_what_is_resolved_is_history() {
    let world = World::new(StatusCode::BAD_REQUEST).await;
    let operator = world.channel(Role::Operator, "ann").await;
    let mut paging = PagingServiceClient::new(operator.clone());
    let list = async |include_settled: bool| {
        let request = v1::ListDeadLettersRequest { include_settled, ..Default::default() };
        { paging.clone() }.list_dead_letters(request).await.unwrap().into_inner().dead_letters
    };
    world.trouble().await;
    let letter = until("a dead letter", async || list(false).await.pop()).await;
    assert_eq!((letter.settled_because.as_str(), only_receiver(&mut paging.clone()).await.dead_letters), ("", 1));
    let request = v1::ResolveIncidentRequest { id: letter.incident.clone(), summary: "done".to_owned() };
    IncidentServiceClient::new(operator.clone()).resolve_incident(request).await.unwrap();
    let fleet = FleetServiceClient::new(operator);
    until("nothing to send again", async || {
        let status = { fleet.clone() }.get_fleet_status(v1::GetFleetStatusRequest {}).await.unwrap().into_inner();
        let none = list(false).await.is_empty() && only_receiver(&mut paging.clone()).await.dead_letters == 0;
        (none && status.pages_failed == 0).then_some(())
    })
    .await;
    let settled = list(true).await.into_iter().find(|known| known.page_id == letter.page_id).unwrap();
    let because = format!("{} is resolved: nobody needs to be told of it", letter.incident);
    assert_eq!(settled.settled_because, because);
    let resend = v1::ResendPageRequest { page_id: letter.page_id };
    assert_eq!(paging.resend_page(resend).await.unwrap_err().message(), because, "the list says what a try would");
    world.coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn a_test_says_that_it_is_one_and_what_came_back() {
    let world = World::new(StatusCode::OK).await;
    let mut paging = PagingServiceClient::new(world.channel(Role::Operator, "ann").await);
    let request = |name: &str| v1::TestReceiverRequest { name: name.to_owned() };
    let answer = paging.test_receiver(request("ops")).await.unwrap().into_inner();
    assert!(answer.delivered && answer.answer == "accepted" && answer.took.is_some(), "{answer:?}");
    let told = world.hook.heard("/hook");
    assert_eq!((told.len(), &told[0]["test"], &told[0]["page_id"]), (1, &true.into(), &0.into()));
    assert!(told[0]["title"].as_str().unwrap().contains("nobody needs to act"), "{told:?}");
    *world.hook.status.lock().unwrap() = StatusCode::SERVICE_UNAVAILABLE;
    let answer = paging.test_receiver(request("ops")).await.unwrap().into_inner();
    assert!(!answer.delivered && answer.answer.contains("answered 503"), "{answer:?}");
    let unknown = paging.test_receiver(request("opps")).await.unwrap_err();
    assert!(unknown.code() == Code::NotFound && unknown.message().contains("there are: ops"), "{}", unknown.message());
    let mut viewer = PagingServiceClient::new(world.channel(Role::Viewer, "vic").await);
    assert_eq!(viewer.test_receiver(request("ops")).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(viewer.list_receivers(v1::ListReceiversRequest {}).await.unwrap().into_inner().receivers.len(), 1);
    let heads = world.coordinator.handle().query(|view| view.state.pending_pages().count()).await.unwrap();
    assert_eq!(heads, 0, "nothing of it is in State");
    world.coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn what_a_person_did_in_pagerduty_comes_back_once() {
    let world = World::new(StatusCode::OK).await;
    let mut incidents = IncidentServiceClient::new(world.channel(Role::Operator, "ann").await);
    world.trouble().await;
    let told = until("a page", async || world.hook.heard("/hook").pop()).await;
    let (key, number) = (told["dedup_key"].as_str().unwrap(), told["incident"].as_str().unwrap().to_owned());
    assert_eq!(world.post("/pagerduty/webhook", "", "{}").await.0, 401);
    assert_eq!(world.post("/pagerduty/webhook", "x-pagerduty-signature: v1=00\r\n", "{}").await.0, 401);
    let (status, said) = world.pagerduty("E1", "incident.acknowledged", "another-key").await;
    assert!(status == 200 && said.contains("no incident that is open"), "{said}");
    let (status, said) = world.pagerduty("E2", "incident.acknowledged", key).await;
    assert_eq!((status, said.as_str()), (200, format!("{number}: acknowledged\n").as_str()));
    let get = v1::GetIncidentRequest { id: number.clone() };
    let incident = incidents.get_incident(get.clone()).await.unwrap().into_inner();
    assert!(format!("{incident:?}").contains("pagerduty:Ann"), "{incident:?}");
    let head = world.coordinator.handle().query(|view| view.state.head_index()).await.unwrap();
    let (status, said) = world.pagerduty("E2", "incident.acknowledged", key).await;
    assert!(status == 200 && said.contains("known already"), "{said}");
    let (_, said) = world.pagerduty("E3", "pagey.ping", key).await;
    assert!(said.contains("nothing follows"), "{said}");
    until("the acknowledgement is told on", async || {
        world.hook.heard("/hook").iter().any(|page| page["action"] == "acknowledge").then_some(())
    })
    .await;
    let (_, said) = world.pagerduty("E4", "incident.resolved", key).await;
    assert!(said.contains("resolved"), "{said}");
    let incident = incidents.get_incident(get).await.unwrap().into_inner();
    assert_eq!(incident.state(), v1::IncidentState::Resolved, "{incident:?}");
    let events = world.coordinator.handle().query(move |view| {
        let entries = view.store.entries_from(head + 1, 1000).unwrap_or_default();
        let bodies = entries.iter().filter_map(|entry| entry.decode().ok()).map(|entry| format!("{:?}", entry.body));
        bodies.filter(|body| body.contains("OutsideEvent")).count()
    });
    assert_eq!(events.await.unwrap(), 1, "the event that was told twice is journaled once");
    world.coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn the_outside_hears_that_the_primary_lives() {
    let world = World::new(StatusCode::OK).await;
    let beat = until("a sign of life", async || world.hook.heard("/beat").pop()).await;
    assert_eq!(beat, serde_json::json!({ "fleet": "prod", "coordinator": "coord-a" }));
    *world.hook.status.lock().unwrap() = StatusCode::NOT_FOUND;
    let failed = || world.coordinator.handle().metrics().pager.heartbeats_out_failed.get();
    until("a beat that fails is counted", async || (failed() > 0).then_some(())).await;
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_independent_client_asks_the_same() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/tools/grpcq.py");
    let knows = Command::new("python3").args(["-c", "import grpc, grpc_reflection"]).output();
    if !script.exists() || !knows.is_ok_and(|output| output.status.success()) {
        println!("skipped: python3 with grpcio, or {}, is not there", script.display());
        return;
    }
    let world = World::new(StatusCode::OK).await;
    issue(world.dir.path(), Role::Operator, "ann");
    let at = |file: &str| world.dir.path().join("ann").join(file).display().to_string();
    let address = world.coordinator.grpc_address().to_string();
    let ask = async |data: &str, method: &str| {
        let mut command = Command::new("python3");
        command.arg(&script).args(["-cacert", &at("ca.pem"), "-cert", &at("cert.pem"), "-key", &at("key.pem")]);
        command.args(["-d", data, &address, &format!("muster.v1.PagingService/{method}")]);
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (well, text) = ask("{}", "ListReceivers").await;
    assert!(well && text.contains("\"ops\"") && text.contains("\"webhook\""), "{text}");
    let (well, text) = ask("{\"name\": \"ops\"}", "TestReceiver").await;
    assert!(well && text.contains("accepted"), "{text}");
    let (well, text) = ask("{\"name\": \"opps\"}", "TestReceiver").await;
    assert!(!well && text.contains("there are: ops"), "{text}");
    let (well, text) = ask("{\"pageId\": \"1\"}", "ResendPage").await;
    assert!(!well && text.contains("ListDeadLetters"), "{text}");
    assert!(ask("{}", "ListDeadLetters").await.0);
    world.coordinator.stop().await.unwrap();
}

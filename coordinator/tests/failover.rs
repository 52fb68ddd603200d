//! Two coordinators in one process, with their own folders, stores and ports: following, promotion, fencing.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use muster_common::finding::{Finding, FindingEvent, FindingKey, ProbeKind, SubjectKey};
use muster_common::identity::Role;
use muster_common::ids::{AgentName, ServiceName, SpoolId};
use muster_common::reason::Reason;
use muster_common::spool::{EntryHash, Position};
use muster_common::time::Timestamp;
use muster_common::tls::Credentials;
use muster_coordinator::ca::{self, IssueRequest};
use muster_coordinator::config;
use muster_coordinator::failover::client::connect;
use muster_coordinator::runtime::{CoordinatorRole, Handle, RuntimeError};
use muster_coordinator::serve::Coordinator;
use muster_coordinator::store::check::check_store;
use muster_coordinator::store::sqlite::SqliteStore;
use muster_coordinator::store::{Head, JournalStore as _, META_HIGHEST_EPOCH};
use muster_coordinator_core::entry::{AgentHello, Conclusion, Entry, EntryBody, Fact};
use muster_proto::v1::failover_service_client::FailoverServiceClient;
use muster_proto::v1::replicate_request::Message;
use muster_proto::v1::replication_service_client::ReplicationServiceClient;
use muster_proto::v1::{self, FollowerHello, GetFailoverStatusRequest, PromoteRequest, ReplicateRequest};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tonic::Code;

/// Long enough for the slowest machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A fleet with coordinators `coord-a` and `coord-b`.
struct Fleet {
    dir: TempDir,
    operator: Credentials,
    ports: [SocketAddr; 2],
}

impl Fleet {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        ca::init(&dir.path().join("ca"), "prod").unwrap();
        issue(dir.path(), Role::Coordinator, "coord-a");
        issue(dir.path(), Role::Coordinator, "coord-b");
        issue(dir.path(), Role::Operator, "ann");
        let operator = load(&dir.path().join("ann"));
        // Held together, so that they differ; free again when this returns.
        let free = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = free.map(|listener| listener.local_addr().unwrap());
        Self { dir, operator, ports }
    }

    fn endpoint(&self, which: usize) -> String {
        format!("https://{}", self.ports[which])
    }

    fn folder(&self, which: usize) -> PathBuf {
        self.dir.path().join(["coord-a", "coord-b"][which])
    }

    /// Starts coordinator 0 (a) or 1 (b) with this `[failover]` section, and whatever sections come after it.
    async fn start(&self, which: usize, failover: &str) -> Coordinator {
        let folder = self.folder(which);
        let at = |file: &str| folder.join(file).display().to_string();
        let text = format!(
            "[listen]\ngrpc = \"{}\"\n[tls]\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n[store]\nurl = \"sqlite:{}\"\n\
             [failover]\n{failover}\n",
            self.ports[which],
            at("ca.pem"),
            at("cert.pem"),
            at("key.pem"),
            at("journal.db"),
        );
        let config = config::parse("coordinator.toml", &text).unwrap_or_else(|errors| panic!("{errors}"));
        Coordinator::start(config, load(&folder)).await.unwrap()
    }

    async fn start_primary(&self) -> Coordinator {
        self.start(0, "").await
    }

    async fn start_standby(&self) -> Coordinator {
        self.start(1, &format!("follow = \"{}\"", self.endpoint(0))).await
    }

    async fn status(&self, which: usize) -> v1::GetFailoverStatusResponse {
        let channel = connect(&self.endpoint(which), &self.operator).await.unwrap();
        let answer = FailoverServiceClient::new(channel).get_failover_status(GetFailoverStatusRequest {}).await;
        answer.unwrap().into_inner()
    }

    /// Asks b to take over from `old_primary`.
    async fn promote(&self, old_primary: &str, force: bool) -> Result<v1::PromoteResponse, tonic::Status> {
        let channel = connect(&self.endpoint(1), &self.operator).await.unwrap();
        let request = PromoteRequest { old_primary: old_primary.into(), force, reason: "test".into() };
        FailoverServiceClient::new(channel).promote(request).await.map(tonic::Response::into_inner)
    }
}

fn issue(dir: &Path, role: Role, name: &str) {
    let sans = ["127.0.0.1".to_owned()];
    ca::issue(&dir.join("ca"), &IssueRequest { role, name, sans: &sans, days: 1 }, &dir.join(name)).unwrap();
}

fn load(dir: &Path) -> Credentials {
    Credentials::load(&dir.join("ca.pem"), &dir.join("cert.pem"), &dir.join("key.pem")).unwrap()
}

/// A fact that changes State.
fn connected(agent: &str) -> Fact {
    let hello = AgentHello {
        host_name: agent.to_owned(),
        agent_version: "1".to_owned(),
        os_version: String::new(),
        kernel_version: String::new(),
        boot_id: None,
        labels: Default::default(),
        peer_address: "127.0.0.1".to_owned(),
        spool: SpoolId(uuid::Uuid::nil()),
        listening_ports: Vec::new(),
    };
    Fact::AgentConnected { agent: AgentName::new(agent).unwrap(), hello: hello.into() }
}

async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

/// Waits until `standby` holds exactly the journal of `primary`, and the primary knows it.
async fn in_step(primary: &Handle, standby: &Handle) -> Head {
    let (mut theirs, mut replicated) = (standby.head(), primary.replicated());
    patiently("the standby catching up", async {
        loop {
            let goal = *primary.head().borrow();
            theirs.wait_for(|head| head.index >= goal.index).await.unwrap();
            replicated.wait_for(|index| index.is_some_and(|index| index >= goal.index)).await.unwrap();
            let (ours, reached) = (*primary.head().borrow(), *theirs.borrow());
            // A deadline may have added an entry meanwhile.
            if ours == reached {
                return reached;
            }
        }
    })
    .await
}

async fn role(handle: &Handle, role: CoordinatorRole) {
    let mut standing = handle.standing();
    patiently(role.as_str(), standing.wait_for(|standing| standing.role == role)).await.unwrap();
}

async fn state(handle: &Handle) -> String {
    handle.query(|view| serde_json::to_string(view.state).unwrap()).await.unwrap()
}

/// Promotes b; the primary's last word may still be on its way into b's memory, never onto its disk.
async fn promoted(fleet: &Fleet, force: bool) -> v1::PromoteResponse {
    fleet.promote("coord-a", force).await.unwrap_or_else(|status| panic!("{}", status.message()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_follows_and_takes_over_from_a_dead_primary() {
    let fleet = Fleet::new();
    let a = fleet.start_primary().await;
    a.handle().submit(connected("web-1")).await.unwrap();
    let b = fleet.start_standby().await;
    in_step(a.handle(), b.handle()).await;
    for name in ["web-2", "web-3"] {
        a.handle().submit(connected(name)).await.unwrap();
    }
    in_step(a.handle(), b.handle()).await;
    assert_eq!(state(a.handle()).await, state(b.handle()).await);

    let status = fleet.status(0).await;
    assert_eq!(status.standbys.len(), 1);
    assert_eq!(status.standbys.first().map(|standby| standby.coordinator_id.as_str()), Some("coord-b"));
    let status = fleet.status(1).await;
    assert!(status.following && status.problems.is_empty(), "{status:?}");
    assert!(matches!(b.handle().submit(connected("web-4")).await, Err(RuntimeError::NotPrimary { .. })));

    // The primary lives: refused, with every check told.
    let refused = fleet.promote("coord-a", false).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("\n  met: this coordinator is a standby"), "{}", refused.message());
    assert!(refused.message().contains("not met: the old primary does not reign"), "{}", refused.message());
    assert_eq!(b.handle().role(), CoordinatorRole::Standby);

    let last = in_step(a.handle(), b.handle()).await;
    a.stop().await.unwrap();
    let refused = fleet.promote("coord-z", true).await.unwrap_err();
    assert!(refused.message().contains("\"coord-z\" was named"), "{}", refused.message());
    let answer = promoted(&fleet, false).await;
    assert_eq!(answer.epoch, Some(v1::Epoch { number: 2, coordinator_id: "coord-b".into() }));
    assert_eq!((answer.agents_known, answer.overridden), (3, vec![]));
    assert!(answer.journal_index > last.index && answer.rehear_until.is_some());
    b.handle().submit(connected("web-4")).await.unwrap();

    // The old primary comes back without having heard: it asks first, and is fenced.
    let a = fleet.start(0, &format!("peers = [\"{}\"]", fleet.endpoint(1))).await;
    assert_eq!(a.handle().role(), CoordinatorRole::Fenced);
    let status = fleet.status(0).await;
    assert!(status.problems.iter().any(|problem| problem.contains("2@coord-b reigns")), "{status:?}");
    assert!(matches!(a.handle().submit(connected("web-5")).await, Err(RuntimeError::NotPrimary { .. })));
    a.stop().await.unwrap();

    // Told to follow, it becomes the standby of its successor.
    let a = fleet.start(0, &format!("follow = \"{}\"", fleet.endpoint(1))).await;
    assert_eq!(a.handle().role(), CoordinatorRole::Standby);
    in_step(b.handle(), a.handle()).await;
    assert_eq!(state(a.handle()).await, state(b.handle()).await);
    a.stop().await.unwrap();
    b.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_standby_stays_primary_after_a_restart() {
    let fleet = Fleet::new();
    let a = fleet.start_primary().await;
    let b = fleet.start_standby().await;
    in_step(a.handle(), b.handle()).await;
    a.stop().await.unwrap();
    promoted(&fleet, false).await;
    b.stop().await.unwrap();
    let b = fleet.start_standby().await;
    assert_eq!(b.handle().role(), CoordinatorRole::Primary);
    let epoch = b.handle().standing().borrow().epoch().map(|epoch| epoch.to_string());
    assert_eq!(epoch.as_deref(), Some("2@coord-b"));
    b.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_primary_waits_for_the_standby_it_had() {
    let fleet = Fleet::new();
    let a = fleet.start_primary().await;
    assert_eq!(*a.handle().replicated().borrow(), None, "nobody to wait for");
    let b = fleet.start_standby().await;
    let held = in_step(a.handle(), b.handle()).await;
    b.stop().await.unwrap();
    // What b lacks is not replicated, however long the journal grows.
    a.handle().submit(connected("web-1")).await.unwrap();
    let replicated = *a.handle().replicated().borrow();
    assert!(replicated.is_some_and(|index| index < a.handle().head().borrow().index), "{replicated:?} {held:?}");
    a.stop().await.unwrap();
    let a = fleet.start_primary().await;
    assert_eq!(*a.handle().replicated().borrow(), Some(0), "b may have nothing, until it says what it has");
    let status = fleet.status(0).await;
    assert_eq!(status.standbys.first().map(|standby| standby.coordinator_id.as_str()), Some("coord-b"));
    let b = fleet.start_standby().await;
    in_step(a.handle(), b.handle()).await;
    a.stop().await.unwrap();
    b.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_cut_off_anywhere_takes_over_with_whole_thoughts() {
    let fleet = Fleet::new();
    let a = fleet.start_primary().await;
    let b = fleet.start_standby().await;
    in_step(a.handle(), b.handle()).await;
    // Each of these makes several entries; the cut comes while they flow.
    let mut head = b.handle().head();
    let handle = a.handle().clone();
    let flood = tokio::spawn(async move {
        for n in 0..200 {
            let name = format!("web-{n}");
            if handle.submit_all(vec![connected(&name), corrupt(&name)]).await.is_err() {
                return;
            }
        }
    });
    let begun = head.borrow().index;
    patiently("entries on the standby", head.wait_for(|head| head.index > begun + 20)).await.unwrap();
    promoted(&fleet, true).await;
    flood.await.unwrap();
    b.stop().await.unwrap();
    a.stop().await.unwrap();
    let store = SqliteStore::open_read_only(&fleet.folder(1).join("journal.db")).unwrap();
    let report = check_store(&store).unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
    assert_eq!(report.replayed, report.entries);
    // Whatever is not a conclusion begins a thought; the takeover comes between two of them.
    let entries: Vec<_> =
        store.entries_from(1, 100_000).unwrap().iter().map(|stored| stored.decode().unwrap()).collect();
    let takeover =
        entries.iter().position(|entry| matches!(entry.body, EntryBody::Fact(Fact::TookOver { .. }))).unwrap();
    let (before, _) = entries.split_at(takeover);
    let received = |entry: &&Entry| matches!(entry.body, EntryBody::Fact(Fact::FindingReceived { .. }));
    // Each of them opens an incident or joins that of the fleet.
    let raised = |entry: &&Entry| {
        use Conclusion::{IncidentJoined, IncidentOpened};
        matches!(entry.body, EntryBody::Conclusion(IncidentOpened { .. } | IncidentJoined { .. }))
    };
    let thoughts: BTreeSet<u64> = before.iter().filter(raised).map(|entry| entry.trace).collect();
    assert!(before.iter().filter(received).count() > 0);
    let cut = before.iter().filter(received).find(|entry| !thoughts.contains(&entry.index));
    assert!(cut.is_none(), "{cut:?} has no conclusion");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_living_primary_is_replaced_by_force_and_fenced_when_it_hears() {
    let fleet = Fleet::new();
    let a = fleet.start_primary().await;
    let b = fleet.start_standby().await;
    in_step(a.handle(), b.handle()).await;
    let answer = promoted(&fleet, true).await;
    assert!(answer.overridden.iter().any(|check| check.contains("does not reign")), "{:?}", answer.overridden);
    // Nobody tells a but b itself.
    role(a.handle(), CoordinatorRole::Fenced).await;
    assert!(matches!(a.handle().submit(connected("web-1")).await, Err(RuntimeError::NotPrimary { .. })));
    let highest = a.handle().query(|view| view.store.meta(META_HIGHEST_EPOCH).unwrap()).await.unwrap();
    assert!(highest.is_some());
    a.stop().await.unwrap();
    // Also after a restart, with nobody to ask.
    b.stop().await.unwrap();
    let a = fleet.start(0, "").await;
    assert_eq!(a.handle().role(), CoordinatorRole::Fenced);
    a.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lag_refuses_and_a_diverged_journal_is_replaced_and_kept_aside() {
    let fleet = Fleet::new();
    let a = fleet.start_primary().await;
    let b = fleet.start_standby().await;
    in_step(a.handle(), b.handle()).await;
    b.stop().await.unwrap();
    // What b never saw.
    a.handle().submit(connected("web-9")).await.unwrap();
    a.stop().await.unwrap();
    let b = fleet.start_standby().await;
    let refused = fleet.promote("coord-a", false).await.unwrap_err();
    assert!(refused.message().contains("not met: it has everything"), "{}", refused.message());
    promoted(&fleet, true).await;
    for name in ["web-1", "web-2", "web-3"] {
        b.handle().submit(connected(name)).await.unwrap();
    }
    let a = fleet.start(0, &format!("follow = \"{}\"", fleet.endpoint(1))).await;
    in_step(b.handle(), a.handle()).await;
    assert_eq!(state(a.handle()).await, state(b.handle()).await);
    assert!(!state(a.handle()).await.contains("web-9"));
    let files = std::fs::read_dir(fleet.folder(0)).unwrap();
    let kept = files.filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().contains("replaced-")).count();
    assert_eq!(kept, 1);
    // It goes on from the snapshot, also over a restart.
    a.stop().await.unwrap();
    b.handle().submit(connected("web-4")).await.unwrap();
    let a = fleet.start(0, &format!("follow = \"{}\"", fleet.endpoint(1))).await;
    in_step(b.handle(), a.handle()).await;
    a.stop().await.unwrap();
    b.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_follow_or_promote_is_told_so() {
    let fleet = Fleet::new();
    let a = fleet.start_primary().await;
    issue(fleet.dir.path(), Role::Agent, "web-1");
    issue(fleet.dir.path(), Role::Viewer, "vic");
    let replicate = async |who: &str, hello: FollowerHello| {
        let channel = connect(&fleet.endpoint(0), &load(&fleet.dir.path().join(who))).await.unwrap();
        let request = ReplicateRequest { message: Some(Message::Hello(hello)) };
        ReplicationServiceClient::new(channel).replicate(tokio_stream::once(request)).await.map(drop)
    };
    for who in ["web-1", "vic", "ann"] {
        assert_eq!(replicate(who, FollowerHello::default()).await.unwrap_err().code(), Code::PermissionDenied, "{who}");
    }
    let own = replicate("coord-a", FollowerHello::default()).await.unwrap_err();
    assert!(own.message().contains("cannot follow itself"), "{}", own.message());
    // An epoch without a proof fences nobody, whoever brings it.
    let invented = v1::EpochProof {
        epoch: Some(v1::Epoch { number: 99, coordinator_id: "coord-b".into() }),
        ..Default::default()
    };
    let hello = FollowerHello { highest_epoch: Some(invented), ..Default::default() };
    assert_eq!(replicate("coord-b", hello).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(a.handle().role(), CoordinatorRole::Primary);

    let channel = connect(&fleet.endpoint(0), &load(&fleet.dir.path().join("vic"))).await.unwrap();
    let mut viewer = FailoverServiceClient::new(channel);
    assert!(viewer.get_failover_status(GetFailoverStatusRequest {}).await.is_ok());
    let refused = viewer.promote(PromoteRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let channel = connect(&fleet.endpoint(0), &fleet.operator).await.unwrap();
    let request = PromoteRequest { old_primary: "coord-a".into(), force: true, reason: String::new() };
    let refused = FailoverServiceClient::new(channel).promote(request).await.unwrap_err();
    assert!(refused.message().contains("it is the primary already"), "{}", refused.message());
    a.stop().await.unwrap();
}

/// A webhook's other end: what is posted to it.
async fn collector() -> (SocketAddr, tokio::sync::mpsc::Receiver<serde_json::Value>) {
    use axum::routing::post;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = tokio::sync::mpsc::channel(16);
    let take = move |body: String| {
        let tell = tell.clone();
        async move { tell.send(serde_json::from_str(&body).unwrap()).await.unwrap() }
    };
    let routes = axum::Router::new().route("/", post(take));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (address, told)
}

fn corrupt(agent: &str) -> Fact {
    let subject = SubjectKey::new(ServiceName::new("spl").unwrap(), ProbeKind::Sqlite, "/var/lib/spl/hub.db");
    let finding =
        Finding::new(FindingKey { subject, reason: Reason::SqliteCorrupt }, "row 3 is missing from the index");
    Fact::FindingReceived {
        agent: AgentName::new(agent).unwrap(),
        position: Position { spool: SpoolId(uuid::Uuid::nil()), sequence: 1, hash: EntryHash([1; 16]) },
        observed: Timestamp::from_unix_ms(jiff::Timestamp::now().as_millisecond()),
        estimated: false,
        event: FindingEvent::Opened(finding),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn incidents_and_undelivered_pages_carry_over_under_the_same_keys() {
    let fleet = Fleet::new();
    let (living, mut pages) = collector().await;
    let receiver = |address: SocketAddr| format!("[[receiver.webhook]]\nname = \"ops\"\nurl = \"http://{address}/\"\n");
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let a = fleet.start(0, &receiver(dead)).await;
    let b = fleet.start(1, &format!("follow = \"{}\"\n{}", fleet.endpoint(0), receiver(living))).await;
    a.handle().submit_all(vec![connected("web-1"), corrupt("web-1")]).await.unwrap();
    in_step(a.handle(), b.handle()).await;
    let pending = b.handle().query(|view| {
        let keys = view.state.pending_pages().map(|record| record.page.dedup_key.clone()).collect::<Vec<_>>();
        (keys, view.state.incidents().filter(|incident| incident.is_unresolved()).count())
    });
    let (expected, open) = pending.await.unwrap();
    assert_eq!((expected.len(), open), (1, 1));
    a.stop().await.unwrap();
    assert!(pages.try_recv().is_err(), "a standby pages nobody");

    let answer = promoted(&fleet, true).await;
    assert_eq!((answer.open_incidents, answer.pages_pending), (1, 1));
    let page = patiently("the page", pages.recv()).await.unwrap();
    assert_eq!(page.get("dedup_key").and_then(|key| key.as_str()), expected.first().map(String::as_str));
    assert_eq!(page.get("action").and_then(|action| action.as_str()), Some("trigger"));
    patiently("the delivery in the metrics", async {
        while !b.handle().metrics().encode().contains("pages_delivered_total{receiver=\"ops\"} 1") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(b.handle().metrics().encode().contains("page_calls_total{receiver=\"ops\"} 1"));
    b.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_over_knows_the_freezes() {
    let fleet = Fleet::new();
    let a = fleet.start_primary().await;
    let b = fleet.start_standby().await;
    let freeze = |reason: &str| Fact::FreezeSet {
        by: "ann".to_owned(),
        scope: Default::default(),
        reason: reason.to_owned(),
        expires: None,
    };
    let reasons = |handle: &Handle| -> Vec<String> {
        handle.freezes().borrow().iter().map(|freeze| freeze.reason.clone()).collect()
    };
    let lifted = a.handle().submit(freeze("lifted")).await.unwrap().trace;
    a.handle().submit(freeze("upgrade")).await.unwrap();
    a.handle().submit(Fact::FreezeLifted { by: "ann".to_owned(), index: lifted }).await.unwrap();
    in_step(a.handle(), b.handle()).await;
    assert_eq!(state(a.handle()).await, state(b.handle()).await);
    a.stop().await.unwrap();
    promoted(&fleet, false).await;
    role(b.handle(), CoordinatorRole::Primary).await;
    assert_eq!(reasons(b.handle()), ["upgrade"]);
    b.stop().await.unwrap();
    // And after a restart, from the store alone.
    let b = fleet.start(1, "").await;
    assert_eq!(reasons(b.handle()), ["upgrade"]);
    b.stop().await.unwrap();
}

//! One coordinator's life: a standstill, a renewed certificate, a full disk, a store that is not for it, and a journal
//! that says the same when it is read again.

use super::*;
use muster_common::finding::{Finding, FindingEvent, FindingKey, ProbeKind, SubjectKey};
use muster_common::ids::{ServiceName, SpoolId};
use muster_common::reason::Reason;
use muster_common::spool::{EntryHash, Position};
use muster_coordinator::store::JournalStore;
use muster_coordinator::store::sqlite::SqliteStore;
use muster_coordinator_core::entry::{Conclusion, Entry, EntryBody, Fact, TimerKey};
use muster_proto::convert::encode_finding_event;
use muster_proto::v1::agent_link_service_client::AgentLinkServiceClient;
use muster_proto::v1::connect_request::Message as ToCoordinator;
use muster_proto::v1::connect_response::Message as ToAgent;
use muster_proto::v1::incident_service_client::IncidentServiceClient;
use muster_proto::v1::{self, ConnectRequest, ConnectResponse};
use std::process::Output;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// An agent that does as it is told.
struct Agent {
    to: tokio::sync::mpsc::Sender<ConnectRequest>,
    from: Streaming<ConnectResponse>,
    at: Position,
}

impl Agent {
    async fn connect(fleet: &Fleet, at: Position) -> Self {
        Self::connect_as(fleet, "web-1", at).await
    }

    async fn connect_as(fleet: &Fleet, name: &str, at: Position) -> Self {
        let connecting = async {
            loop {
                if let Some(agent) = Self::try_connect(fleet, name, at).await {
                    return agent;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(PATIENCE, connecting).await.unwrap_or_else(|_| panic!("no welcome\n{}", fleet.log(0)))
    }

    async fn try_connect(fleet: &Fleet, name: &str, at: Position) -> Option<Self> {
        let channel = connect(&fleet.endpoint(0), &load(&fleet.dir.path().join(name))).await.ok()?;
        let (to, requests) = tokio::sync::mpsc::channel(64);
        let spool_id = at.spool.0.as_bytes().to_vec().into();
        let hello = v1::Hello { protocol_version: 1, host_name: name.into(), spool_id, ..Default::default() };
        to.send(ConnectRequest { message: Some(ToCoordinator::Hello(hello)) }).await.ok()?;
        let mut client = AgentLinkServiceClient::new(channel);
        let mut from = client.connect(ReceiverStream::new(requests)).await.ok()?.into_inner();
        match from.message().await.ok()??.message? {
            ToAgent::Welcome(welcome) => assert_eq!(welcome.resume.map_or(0, |resume| resume.sequence), at.sequence),
            _ => return None,
        }
        Some(Self { to, from, at })
    }

    async fn send(&self, message: ToCoordinator) -> Option<()> {
        self.to.send(ConnectRequest { message: Some(message) }).await.ok()
    }

    /// Sends events in one batch and waits until they are stored; `None` when the stream ended first.
    async fn reports(&mut self, events: &[FindingEvent]) -> Option<()> {
        let mut entries = Vec::new();
        for event in events {
            let (spool, sequence, previous) = (self.at.spool, self.at.sequence + 1, self.at.hash);
            let body = encode_finding_event(event);
            let hash = EntryHash::of(spool, sequence, previous, &body);
            self.at = Position { spool, sequence, hash };
            let (previous_hash, hash) = (previous.0.to_vec().into(), hash.0.to_vec().into());
            entries.push(v1::SpoolEntry { sequence, previous_hash, hash, body: body.into(), ..Default::default() });
        }
        let spool_id = self.at.spool.0.as_bytes().to_vec().into();
        self.send(ToCoordinator::Entries(v1::EntryBatch { spool_id, entries })).await?;
        loop {
            match self.from.message().await.ok()??.message? {
                ToAgent::Ack(ack) if ack.stored_sequence >= self.at.sequence => return Some(()),
                _ => {}
            }
        }
    }
}

fn start() -> Position {
    Position::start(SpoolId(uuid::Uuid::from_u128(7)))
}

fn key(database: u64) -> FindingKey {
    let subject = SubjectKey::new(ServiceName::new("spl").unwrap(), ProbeKind::Sqlite, &format!("/srv/{database}.db"));
    FindingKey { subject, reason: Reason::SqliteCorrupt }
}

fn corrupt(database: u64, summary: &str) -> FindingEvent {
    FindingEvent::Opened(Finding::new(key(database), summary))
}

impl Fleet {
    fn folder(&self) -> PathBuf {
        self.dir.path().join(NAMES[0])
    }

    fn journal(&self) -> Vec<Entry> {
        let store = SqliteStore::open_read_only(&self.folder().join("journal.db")).unwrap();
        store.entries_from(1, 1_000_000).unwrap().iter().map(|stored| stored.decode().unwrap()).collect()
    }

    /// Runs a command of the coordinator on its config.
    fn command(&self, name: &str) -> Output {
        let config = self.folder().join("coordinator.toml");
        Command::new(BINARY).arg(name).arg("--config").arg(config).env_remove("NOTIFY_SOCKET").output().unwrap()
    }

    /// What `GET path` answers.
    async fn get(&self, which: usize, path: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listening = async {
            loop {
                let log = self.log(which);
                let address = log.rsplit_once(" http=").map(|(_, rest)| rest.trim_start_matches('"'));
                if let Some(address) = address.and_then(|rest| rest.split(['"', '\n']).next()) {
                    return address.to_owned();
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let address = tokio::time::timeout(PATIENCE, listening).await.unwrap_or_else(|_| panic!("{}", self.log(which)));
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

/// Beats on every stream, for ever.
async fn beat(agents: &[Agent]) {
    for sequence in 1.. {
        for agent in agents {
            let beat = v1::Heartbeat { sequence, head_sequence: u64::MAX, ..Default::default() };
            agent.send(ToCoordinator::Heartbeat(beat)).await.expect("the stream ended");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_standstill_longer_than_the_threshold_makes_nobody_stale() {
    let fleet = Fleet::new();
    let names = ["web-1", "web-2", "web-3"];
    for name in &names[1..] {
        issue(fleet.dir.path(), "agent", name, name);
    }
    let liveness = "[liveness]\nheartbeat = \"1s\"\nstale_after = 5\nreconnect_max = \"2s\"";
    let a = fleet.run(0, liveness);
    let mut agents = Vec::new();
    for name in names {
        let mut agent = Agent::connect_as(&fleet, name, start()).await;
        agent.reports(&[corrupt(1, "before")]).await.unwrap();
        agents.push(agent);
    }
    let at = agents[0].at;
    a.signal(Signal::SIGSTOP);
    tokio::time::sleep(Duration::from_secs(7)).await;
    a.signal(Signal::SIGCONT);
    let is_paused = |entry: &Entry| matches!(entry.body, EntryBody::Fact(Fact::Paused { gap_ms }) if gap_ms >= 6_000);
    let woken = async {
        while !fleet.journal().iter().any(is_paused) {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, woken).await.unwrap_or_else(|_| panic!("{}", fleet.log(0)));
    // The streams of before end only now, as keepalives end them, and the agents come again.
    agents.clear();
    for name in names {
        agents.push(Agent::connect_as(&fleet, name, at).await);
    }
    let reheard = async {
        loop {
            let journal = fleet.journal();
            let mut since = journal.iter().skip_while(|entry| !is_paused(entry));
            if since.any(|entry| entry.body == EntryBody::Deadline(TimerKey::RehearOver)) {
                return journal;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let journal = tokio::select! {
        () = beat(&agents) => unreachable!("it beats for ever"),
        journal = tokio::time::timeout(PATIENCE, reheard) => journal.unwrap_or_else(|_| panic!("{}", fleet.log(0))),
    };
    for entry in &journal {
        let stale = match &entry.body {
            EntryBody::Fact(Fact::AgentSilent { .. }) => true,
            EntryBody::Conclusion(Conclusion::IncidentOpened { reason, .. }) => {
                matches!(reason, Reason::AgentStale | Reason::MassStale)
            }
            _ => false,
        };
        assert!(!stale, "{entry:?}");
    }
    // Each of them is known to live again.
    let since: Vec<&Entry> = journal.iter().skip_while(|entry| !is_paused(entry)).collect();
    for name in names {
        let back = |entry: &&Entry| match &entry.body {
            EntryBody::Fact(Fact::AgentConnected { agent, .. } | Fact::AgentHeard { agent }) => agent.as_str() == name,
            _ => false,
        };
        assert!(since.iter().any(back), "{name}: {since:?}");
    }
}

/// The certificate that a new connection is shown.
async fn shown(fleet: &Fleet) -> Vec<u8> {
    let config = muster_common::tls::client_config(&fleet.operator).unwrap();
    let stream = tokio::net::TcpStream::connect(fleet.ports[0]).await.unwrap();
    let name = "localhost".try_into().unwrap();
    let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap().first().unwrap().to_vec()
}

#[tokio::test]
async fn sighup_serves_a_renewed_certificate_and_a_bad_one_changes_nothing() {
    let fleet = Fleet::new();
    let a = fleet.run(0, "");
    fleet.until(0, "reigns", is(CoordinatorRole::Primary)).await;
    let mut agent = Agent::connect(&fleet, start()).await;
    let old = shown(&fleet).await;
    std::fs::write(fleet.folder().join("cert.pem"), "not a certificate").unwrap();
    a.signal(Signal::SIGHUP);
    let refused = async {
        while !fleet.log(0).contains("the old one serves on") {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.unwrap_or_else(|_| panic!("{}", fleet.log(0)));
    assert!(shown(&fleet).await == old);
    issue(fleet.dir.path(), "coordinator", NAMES[0], "renewed");
    for file in ["cert.pem", "key.pem"] {
        std::fs::copy(fleet.dir.path().join("renewed").join(file), fleet.folder().join(file)).unwrap();
    }
    a.signal(Signal::SIGHUP);
    let renewed = async {
        while shown(&fleet).await == old {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, renewed).await.unwrap_or_else(|_| panic!("{}", fleet.log(0)));
    // Streams that were open stay open.
    agent.reports(&[corrupt(1, "still here")]).await.unwrap();
}

#[tokio::test]
async fn a_store_in_use_or_of_the_future_is_refused_in_words() {
    let fleet = Fleet::new();
    let a = fleet.run(0, "");
    fleet.until(0, "reigns", is(CoordinatorRole::Primary)).await;
    // The same store behind other ports.
    let config = fleet.folder().join("coordinator.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let other = text.replace(&fleet.ports[0].to_string(), "127.0.0.1:0").replace("/sock\"", "/sock2\"");
    std::fs::write(&config, other).unwrap();
    let second = fleet.command("run");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("in use by another coordinator"), "{said}");
    a.kill_9();
    let store = rusqlite::Connection::open(fleet.folder().join("journal.db")).unwrap();
    store.pragma_update(None, "user_version", 99).unwrap();
    drop(store);
    for name in ["run", "check-store"] {
        let output = fleet.command(name);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("schema version 99"), "{name}: {said}");
    }
}

#[tokio::test]
async fn only_a_primary_is_ready() {
    let fleet = Fleet::new();
    let _a = fleet.run(0, "");
    fleet.until(0, "reigns", is(CoordinatorRole::Primary)).await;
    let _b = fleet.run(1, &format!("follow = \"{}\"", fleet.endpoint(0)));
    fleet.in_step(0, 1).await;
    assert!(fleet.get(0, "/readyz").await.starts_with("HTTP/1.1 200"));
    let standby = fleet.get(1, "/readyz").await;
    assert!(standby.starts_with("HTTP/1.1 503") && standby.contains("this coordinator is standby"), "{standby}");
    fleet.promote(true).await.unwrap_or_else(|status| panic!("{}", status.message()));
    fleet.until(0, "is fenced", is(CoordinatorRole::Fenced)).await;
    let fenced = fleet.get(0, "/readyz").await;
    assert!(fenced.starts_with("HTTP/1.1 503") && fenced.contains("this coordinator is fenced"), "{fenced}");
    assert!(fleet.get(1, "/readyz").await.starts_with("HTTP/1.1 200"));
    for which in [0, 1] {
        assert!(fleet.get(which, "/healthz").await.starts_with("HTTP/1.1 200"));
    }
}

/// A file system of its own, unmounted when the test is over.
struct Tiny(PathBuf);

impl Tiny {
    fn mount(at: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=768k", "tiny"]).arg(&at).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(at))
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

/// As when journald was killed: each line that is logged is an error then.
#[tokio::test]
async fn a_log_that_nobody_reads_any_more_stops_nothing() {
    let fleet = Fleet::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let config = write_config(&fleet.folder(), fleet.ports[0], "");
    let mut run = Command::new(BINARY);
    run.args(["run", "--config"]).arg(&config).env_remove("NOTIFY_SOCKET").stdout(Stdio::null()).stderr(writer);
    let a = Process(run.spawn().unwrap());
    let mut agent = Agent::connect(&fleet, start()).await;
    a.signal(Signal::SIGHUP);
    agent.reports(&[corrupt(1, "nobody reads of it in a log")]).await.unwrap();
    fleet.until(0, "reigns", is(CoordinatorRole::Primary)).await;
}

#[tokio::test]
async fn a_full_disk_ends_the_process_loudly_and_loses_nothing_acknowledged() {
    let fleet = Fleet::new();
    let Some(tiny) = Tiny::mount(fleet.dir.path().join("tiny")) else {
        let words = b"skipped: may not mount a tmpfs here\n";
        std::io::Write::write_all(&mut std::io::stderr(), words).unwrap();
        return;
    };
    let url = |path: PathBuf| format!("sqlite:{}", path.display());
    write_config(&fleet.folder(), fleet.ports[0], "");
    let config = fleet.folder().join("coordinator.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let store = tiny.0.join("journal.db");
    let text = text.replace(&url(fleet.folder().join("journal.db")), &url(store.clone()));
    std::fs::write(&config, text).unwrap();
    let log = std::fs::File::create(fleet.folder().join("log")).unwrap();
    let mut run = Command::new(BINARY);
    run.args(["run", "--config"]).arg(&config).env_remove("NOTIFY_SOCKET").stdout(Stdio::null()).stderr(log);
    let mut a = Process(run.spawn().unwrap());
    let mut agent = Agent::connect(&fleet, start()).await;
    let mut acknowledged = 0;
    for n in 0.. {
        let events: Vec<FindingEvent> = (0..20).map(|m| corrupt(n * 20 + m, &"x".repeat(400))).collect();
        if agent.reports(&events).await.is_none() {
            break;
        }
        acknowledged = agent.at.sequence;
    }
    let ended = async {
        loop {
            if let Some(status) = a.0.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let status = tokio::time::timeout(PATIENCE, ended).await.unwrap_or_else(|_| panic!("{}", fleet.log(0)));
    let said = fleet.log(0);
    assert!(!status.success() && said.contains("the journal") && said.contains("full"), "{status}: {said}");
    // With room again, what was acknowledged is there.
    let room = Command::new("mount").args(["-o", "remount,size=16m"]).arg(&tiny.0).status().unwrap();
    assert!(room.success());
    let store = SqliteStore::open(&store).unwrap();
    let entries = store.entries_from(1, 1_000_000).unwrap();
    let stored = entries.iter().filter_map(|stored| match stored.decode().unwrap().body {
        EntryBody::Fact(Fact::FindingReceived { position, .. }) => Some(position.sequence),
        _ => None,
    });
    assert!(acknowledged > 0 && stored.max() >= Some(acknowledged));
}

#[tokio::test]
async fn a_recorded_journal_gives_the_same_conclusions_byte_for_byte() {
    let fleet = Fleet::new();
    let policy = "[incidents]\nhold = { sev2 = \"0s\" }\nstability = { sev2 = \"1s\" }\n\
                  [[receiver.webhook]]\nname = \"ops\"\nurl = \"http://127.0.0.1:9/\"\n";
    let a = fleet.run(0, policy);
    let mut agent = Agent::connect(&fleet, start()).await;
    agent.reports(&[corrupt(1, "row 3 is missing"), corrupt(2, "torn page")]).await.unwrap();
    let channel = connect(&fleet.endpoint(0), &fleet.operator).await.unwrap();
    let mut incidents = IncidentServiceClient::new(channel);
    let open = incidents.list_incidents(v1::ListIncidentsRequest::default()).await.unwrap().into_inner().incidents;
    let id = open.first().unwrap().id.clone();
    let note = v1::AddNoteRequest { id: id.clone(), text: "looking".into() };
    incidents.add_note(note).await.unwrap();
    let acknowledge = v1::AcknowledgeIncidentRequest { id: id.clone(), ..Default::default() };
    incidents.acknowledge_incident(acknowledge).await.unwrap();
    let at = agent.at;
    // In the middle of it all.
    a.kill_9();
    let a = fleet.run(0, policy);
    let mut agent = Agent::connect(&fleet, at).await;
    let cleared = |n| FindingEvent::Cleared { key: key(n), summary: "restored".into(), evidence: Default::default() };
    agent.reports(&[cleared(1)]).await.unwrap();
    agent.reports(&[cleared(2), corrupt(3, "again")]).await.unwrap();
    let channel = connect(&fleet.endpoint(0), &fleet.operator).await.unwrap();
    let mut incidents = IncidentServiceClient::new(channel);
    let shown = incidents.get_incident(v1::GetIncidentRequest { id: id.clone() }).await.unwrap().into_inner();
    let timeline = shown.timeline;
    for kind in ["decision", "page", "operator"] {
        assert!(timeline.iter().any(|item| item.kind == kind), "{kind}: {timeline:?}");
    }
    let resolve = v1::ResolveIncidentRequest { id, summary: "restored from the backup".into() };
    incidents.resolve_incident(resolve).await.unwrap();
    agent.reports(&[corrupt(4, "and another")]).await.unwrap();
    a.signal(Signal::SIGTERM);
    drop(agent);
    let mut a = a;
    assert!(a.0.wait().unwrap().success(), "{}", fleet.log(0));

    let recorded = fleet.journal();
    let conclusions = recorded.iter().filter(|entry| matches!(entry.body, EntryBody::Conclusion(_))).count();
    let output = fleet.command("check-store");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected = format!("{} replayed, {conclusions} conclusions reproduced: sound", recorded.len());
    assert!(output.status.success() && said.contains(&expected), "{said}");
    assert!(conclusions >= 6, "{said}");
}

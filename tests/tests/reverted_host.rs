//! A host whose disk was set back, with the real spool and uplink, against the real coordinator: what it writes from
//! then on is another history under the same numbers, and none of it may be taken for what is stored already.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use muster_agent::spool::{Append, Spool, SpoolHandle, SpoolLimits};
use muster_agent::uplink::{
    HostFacts, OpenSnapshot, SecondOpinion, Security, SnapshotProvider, Stop, UplinkConfig, UplinkHandle, spawn,
};
use muster_common::finding::{Finding, FindingEvent, FindingKey, ProbeKind, SubjectKey};
use muster_common::identity::Role;
use muster_common::ids::{BootId, ServiceName};
use muster_common::reason::Reason;
use muster_common::tls::Credentials;
use muster_coordinator::ca::{self, IssueRequest};
use muster_coordinator::config;
use muster_coordinator::serve::Coordinator;
use muster_coordinator_core::entry::{EntryBody, Fact};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Nothing here takes this long; it only ends a test that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

fn issue(dir: &Path, role: Role, name: &str) -> Credentials {
    let (out, sans) = (dir.join(name), ["127.0.0.1".to_owned()]);
    ca::issue(&dir.join("ca"), &IssueRequest { role, name, sans: &sans, days: 1 }, &out).unwrap();
    Credentials::load(&out.join("ca.pem"), &out.join("cert.pem"), &out.join("key.pem")).unwrap()
}

async fn coordinator(dir: &Path) -> Coordinator {
    let credentials = issue(dir, Role::Coordinator, "coord-a");
    let store = dir.join("journal.db").display().to_string();
    let text = format!(
        "[listen]\ngrpc = \"127.0.0.1:0\"\n[tls]\nca = \"/unused\"\ncert = \"/unused\"\nkey = \"/unused\"\n\
         [store]\nurl = \"sqlite:{store}\"\n"
    );
    let config = config::parse("coordinator.toml", &text).unwrap_or_else(|errors| panic!("{errors}"));
    Coordinator::start(config, credentials).await.unwrap()
}

struct Agent {
    spool: SpoolHandle,
    uplink: UplinkHandle,
}

impl Agent {
    /// An agent with this spool, which got these ports to report before it could reach anyone.
    async fn start(spool_file: &Path, endpoint: &str, credentials: &Credentials, ports: &[u16]) -> Self {
        let (boot, now) = (BootId(uuid::Uuid::from_u128(1)), muster_agent::clock::now());
        let spool = Spool::open(spool_file, SpoolLimits::default(), boot, now).unwrap();
        let spool = muster_agent::spool::spawn(spool).unwrap();
        let event = |port: &u16| {
            let subject = SubjectKey::new(ServiceName::host(), ProbeKind::Port, &port.to_string());
            let finding = Finding::new(FindingKey { subject, reason: Reason::PortClosed }, "nothing listens");
            Append { event: FindingEvent::Opened(finding), observed_boottime_ms: now.boottime_ms }
        };
        spool.append(ports.iter().map(event).collect(), Vec::new(), now).await.unwrap();
        let config = UplinkConfig {
            endpoints: vec![endpoint.to_owned()],
            security: Security::Mutual(credentials.clone()),
            host: HostFacts { host_name: "web-1".into(), ..HostFacts::default() },
            boot,
            clock: muster_agent::clock::now,
            freezes: None,
            asks: None,
            second_opinion: SecondOpinion::default(),
        };
        let heads = spool.clone();
        let provider = SnapshotProvider(Arc::new(move || OpenSnapshot::new(heads.view().head, [])));
        let uplink = spawn(config, spool.clone(), provider);
        Self { spool, uplink }
    }

    /// Waits until everything is stored at the coordinator, then stops.
    async fn delivers_and_stops(self) {
        let mut views = self.spool.watch();
        let delivered = views.wait_for(|view| view.head > 0 && view.stored == view.head);
        tokio::time::timeout(PATIENCE, delivered).await.expect("not delivered").unwrap();
        self.uplink.shutdown(Stop::Agent).await;
    }
}

/// Ports told of, in the order of the journal, and how many spools were replaced.
async fn told(coordinator: &Coordinator) -> (Vec<String>, usize) {
    let entries = coordinator.handle().query(|view| view.store.entries_from(1, 100_000).unwrap()).await.unwrap();
    let (mut ports, mut replaced) = (Vec::new(), 0);
    for stored in entries {
        match stored.decode().unwrap().body {
            EntryBody::Fact(Fact::FindingReceived { event: FindingEvent::Opened(finding), .. }) => {
                ports.push(finding.key.subject.subject);
            }
            EntryBody::Fact(Fact::SpoolReplaced { .. }) => replaced += 1,
            _ => {}
        }
    }
    (ports, replaced)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_was_set_back_starts_a_new_spool_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    ca::init(&dir.path().join("ca"), "prod").unwrap();
    let coordinator = coordinator(dir.path()).await;
    let endpoint = format!("https://{}", coordinator.grpc_address());
    let credentials = issue(dir.path(), Role::Agent, "web-1");
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    for folder in [&first, &second] {
        std::fs::create_dir(folder).unwrap();
    }

    Agent::start(&first.join("spool.db"), &endpoint, &credentials, &[1, 2, 3]).await.delivers_and_stops().await;
    // The backup of the host.
    for file in std::fs::read_dir(&first).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), second.join(file.file_name())).unwrap();
    }
    Agent::start(&first.join("spool.db"), &endpoint, &credentials, &[4, 5]).await.delivers_and_stops().await;
    assert_eq!(told(&coordinator).await, (["1", "2", "3", "4", "5"].map(str::to_owned).to_vec(), 0));

    // Restored: 6, 7 and 8 get the numbers that 4 and 5 had, and one more.
    Agent::start(&second.join("spool.db"), &endpoint, &credentials, &[6, 7, 8]).await.delivers_and_stops().await;
    let (ports, replaced) = told(&coordinator).await;
    assert_eq!(replaced, 1);
    assert_eq!(ports.last_chunk::<3>(), Some(&["6", "7", "8"].map(str::to_owned)), "{ports:?}");
    coordinator.stop().await.unwrap();
}

//! The uplink, and the whole daemon, against a coordinator that lives in this process and misbehaves by script.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

mod certificates;
mod daemon;
mod fake;
mod neighbour;

use fake::{AHEAD_MS, Behaviour, Fake, Proxy, State};
use muster_agent::spool::{Append, Spool, SpoolHandle, SpoolLimits};
use muster_agent::uplink::{
    HostFacts, OpenSnapshot, SecondOpinion, Security, SnapshotProvider, Stop, UplinkConfig, UplinkFacts, UplinkHandle,
};
use muster_agent_core::session::Phase;
use muster_common::finding::{Finding, FindingEvent, FindingKey, ProbeKind, SubjectKey};
use muster_common::ids::{BootId, FleetName, ServiceName};
use muster_common::reason::Reason;
use muster_proto::v1;
use std::sync::Arc;
use std::time::Duration;

/// Nothing here takes this long; it only ends a test that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

struct Agent {
    spool: SpoolHandle,
    uplink: UplinkHandle,
    _folder: tempfile::TempDir,
}

impl Agent {
    fn start(endpoints: Vec<String>) -> Self {
        Self::start_with(endpoints, Security::Plain(FleetName::new("prod").unwrap()))
    }

    fn start_with(endpoints: Vec<String>, security: Security) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (boot, now) = (BootId(uuid::Uuid::from_u128(1)), muster_agent::clock::now());
        let spool = Spool::open(&folder.path().join("spool.db"), SpoolLimits::default(), boot, now).unwrap();
        let spool = muster_agent::spool::spawn(spool).unwrap();
        let config = UplinkConfig {
            endpoints,
            security,
            host: HostFacts { host_name: "web-1".into(), ..HostFacts::default() },
            boot,
            clock: muster_agent::clock::now,
            freezes: None,
            asks: None,
            second_opinion: SecondOpinion { enabled: true, root: None },
        };
        let heads = spool.clone();
        let provider = SnapshotProvider(Arc::new(move || OpenSnapshot::new(heads.view().head, [])));
        let uplink = muster_agent::uplink::spawn(config, spool.clone(), provider);
        Self { spool, uplink, _folder: folder }
    }

    async fn append(&self, count: usize) {
        let now = muster_agent::clock::now();
        let event = |n: usize| {
            let subject = SubjectKey::new(ServiceName::host(), ProbeKind::Port, &n.to_string());
            let finding = Finding::new(FindingKey { subject, reason: Reason::PortClosed }, "nothing listens");
            Append { event: FindingEvent::Opened(finding), observed_boottime_ms: now.boottime_ms }
        };
        self.spool.append((0..count).map(event).collect(), Vec::new(), now).await.unwrap();
    }

    async fn until_phase(&self, wanted: impl Fn(Phase) -> bool) {
        let mut status = self.uplink.status();
        tokio::time::timeout(PATIENCE, status.wait_for(|status| wanted(status.phase))).await.unwrap().unwrap();
    }
}

async fn until(fake: &Fake, wanted: impl Fn(&State) -> bool) -> State {
    let mut state = fake.state();
    let found = tokio::time::timeout(PATIENCE, state.wait_for(|state| wanted(state))).await;
    found.expect("the coordinator hears what it should").unwrap().clone()
}

#[tokio::test]
async fn everything_appended_arrives_once_and_in_order_whatever_happens_to_streams() {
    let fake = Fake::start([
        Behaviour::DropAfter(3),
        Behaviour::Busy,
        Behaviour::DropAfter(70),
        Behaviour::CloseAfter(100),
        Behaviour::Good,
    ])
    .await;
    let agent = Agent::start(vec![fake.endpoint()]);
    for _ in 0..10 {
        agent.append(33).await;
    }
    let state = until(&fake, |state| state.entries.len() >= 330).await;
    let sequences: Vec<u64> = state.entries.iter().map(|entry| entry.sequence).collect();
    assert_eq!(sequences, (1..=330).collect::<Vec<_>>());
    assert!(state.entries.iter().all(|entry| !entry.age_estimated));
    assert_eq!(state.broken, None);
    // Acknowledged for good: the spool knows.
    let mut views = agent.spool.watch();
    tokio::time::timeout(PATIENCE, views.wait_for(|view| view.stored == 330)).await.unwrap().unwrap();
    agent.uplink.shutdown(Stop::Agent).await;
    let state = until(&fake, |state| !state.goodbyes.is_empty()).await;
    assert_eq!(state.goodbyes, [v1::goodbye::Reason::Shutdown as i32]);
}

#[tokio::test]
async fn heartbeats_keep_coming_while_entries_are_stuck() {
    let fake = Fake::start([Behaviour::NeverAck]).await;
    let agent = Agent::start(vec![fake.endpoint()]);
    agent.uplink.facts().set(UplinkFacts { open_digest: 7, head_sequence: 1000, memory_available_bytes: 1 });
    agent.append(1000).await;
    let stuck = until(&fake, |state| state.entries.len() >= 256).await;
    let state = until(&fake, |state| state.heartbeats.len() >= stuck.heartbeats.len() + 5).await;
    assert_eq!(state.entries.len(), 256, "a window of entries and no more");
    let beats: Vec<u64> = state.heartbeats.iter().map(|beat| beat.sequence).collect();
    assert!(beats.windows(2).all(|pair| pair[0] < pair[1]), "{beats:?}");
    assert_eq!(state.heartbeats.last().unwrap().open_digest, 7);
    assert_eq!(state.streams, 1);
}

#[tokio::test]
async fn the_coordinators_clock_is_heard() {
    let fake = Fake::start([Behaviour::Good]).await;
    let agent = Agent::start(vec![fake.endpoint()]);
    let mut status = agent.uplink.status();
    let heard = status.wait_for(|status| status.coordinator_less_boottime_ms.is_some());
    let theirs_ms = tokio::time::timeout(PATIENCE, heard).await.unwrap().unwrap().coordinator_less_boottime_ms.unwrap();
    let now = muster_agent::clock::now();
    let ours_ms = now.wall.unix_ms() - i64::try_from(now.boottime_ms).unwrap();
    // The message was on its way for at most as long as it was waited for.
    let patience_ms = i64::try_from(PATIENCE.as_millis()).unwrap();
    let ahead_ms = theirs_ms - ours_ms;
    assert!((AHEAD_MS - patience_ms..=AHEAD_MS + 100).contains(&ahead_ms), "{ahead_ms}");
}

#[tokio::test]
async fn a_black_hole_is_noticed_by_keepalive_and_left() {
    let fake = Fake::start([]).await;
    let proxy = Proxy::start(fake.address()).await;
    let agent = Agent::start(vec![proxy.endpoint()]);
    agent.append(1).await;
    until(&fake, |state| state.entries.len() == 1).await;
    agent.until_phase(|phase| phase == Phase::Streaming).await;
    proxy.freeze(true);
    agent.append(1).await;
    // Nobody resets anything: only a missing answer can tell.
    agent.until_phase(|phase| phase != Phase::Streaming).await;
    proxy.freeze(false);
    let state = until(&fake, |state| state.entries.len() == 2).await;
    assert!(state.streams >= 2);
    assert_eq!(state.broken, None);
}

#[tokio::test]
async fn a_standby_is_left_at_once_and_a_lower_epoch_is_refused() {
    let standby = Fake::start([Behaviour::NotPrimary; 50]).await;
    let fake =
        Fake::start([Behaviour::Epoch(5, 1), Behaviour::Epoch(4, 0), Behaviour::Epoch(3, 0), Behaviour::Epoch(6, 0)])
            .await;
    let agent = Agent::start(vec![standby.endpoint(), fake.endpoint()]);
    agent.append(1).await;
    until(&fake, |state| state.entries.len() == 1).await;
    agent.append(1).await;
    let state = until(&fake, |state| state.entries.len() == 2).await;
    assert_eq!(state.goodbyes, [v1::goodbye::Reason::EpochRefused as i32; 2]);
    assert_eq!(state.talked_under, [5, 6], "no heartbeat and no entry under 4 or 3");
    assert_eq!(state.hellos.last().and_then(|hello| hello.highest_epoch.clone()?.epoch).map(|e| e.number), Some(5));
    let highest = agent.spool.call(|spool| spool.highest_epoch()).await.unwrap().unwrap();
    assert_eq!(highest.0.number, 6);
}

#[tokio::test]
async fn a_resync_is_answered_as_of_the_last_entry_sent() {
    let fake = Fake::start([Behaviour::Resync(77)]).await;
    let agent = Agent::start(vec![fake.endpoint()]);
    agent.append(150).await;
    let state = until(&fake, |state| !state.open_sets.is_empty()).await;
    let (set, after) = &state.open_sets[0];
    assert_eq!((set.request_id, set.last), (77, true));
    assert_eq!(set.head_sequence, *after, "as of the last entry before it");
    until(&fake, |state| state.entries.len() == 150).await;
}

#[tokio::test]
async fn a_coordinator_that_knows_more_than_the_spool_meets_a_new_spool_id() {
    let fake = Fake::start([Behaviour::Ahead, Behaviour::Good]).await;
    let agent = Agent::start(vec![fake.endpoint()]);
    let before = agent.spool.view().spool;
    agent.append(2).await;
    let state = until(&fake, |state| state.entries.len() == 2).await;
    assert_ne!(agent.spool.view().spool, before);
    assert_eq!(state.hellos.last().unwrap().spool_id.as_ref(), agent.spool.view().spool.0.as_bytes());
    assert_eq!(state.broken, None);
}

#[tokio::test]
async fn mutual_tls_carries_it_and_a_forged_epoch_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let ca = certificates::Ca::new("prod");
    let coordinator = ca.issue(folder.path(), "muster://prod/coordinator/coord-a");
    let agent = ca.issue(folder.path(), "muster://prod/agent/web-1");
    let fake = Fake::start_tls([Behaviour::Forged, Behaviour::Good], coordinator).await;
    let agent = Agent::start_with(vec![fake.endpoint()], Security::Mutual(agent));
    agent.append(3).await;
    let state = until(&fake, |state| state.entries.len() == 3).await;
    assert_eq!((state.streams, state.broken), (2, None));
    let highest = agent.spool.call(|spool| spool.highest_epoch()).await.unwrap().unwrap();
    assert_eq!(highest.0.to_string(), "1@coord-a");
}

#[tokio::test]
async fn a_coordinator_of_another_ca_hears_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let stranger = certificates::Ca::new("prod").issue(folder.path(), "muster://prod/coordinator/coord-a");
    let ours = certificates::Ca::new("prod").issue(folder.path(), "muster://prod/agent/web-1");
    let fake = Fake::start_tls([], stranger).await;
    let agent = Agent::start_with(vec![fake.endpoint()], Security::Mutual(ours));
    let mut status = agent.uplink.status();
    let tried = tokio::time::timeout(PATIENCE, status.wait_for(|status| status.failed_tries >= 2));
    let tried = tried.await.unwrap().unwrap().clone();
    assert!(tried.last_message.contains("certificate"), "{}", tried.last_message);
    assert_eq!(fake.state().borrow().streams, 0);
}

#[tokio::test]
async fn a_refusal_is_reported_and_not_tried_hot() {
    let fake = Fake::start([Behaviour::Invalid; 50]).await;
    let agent = Agent::start(vec![fake.endpoint()]);
    agent.append(1).await;
    let mut status = agent.uplink.status();
    let refused = status.wait_for(|status| status.last_end.is_some());
    let refused = tokio::time::timeout(PATIENCE, refused).await.unwrap().unwrap().clone();
    assert!(refused.last_message.contains("not understood"), "{}", refused.last_message);
    assert_eq!((refused.phase, refused.unacked_entries), (Phase::Idle, 1));
    assert_eq!(fake.state().borrow().streams, 1);
}

//! Agent and coordinator disagree: about what is open, about the spool, about what is safe.

use super::*;
use muster_common::finding::open_digest;
use muster_common::ids::CoordinatorId;
use muster_proto::convert::{finding_to_wire, subject_to_wire};

fn verdict(n: u64, verdict: v1::Verdict, open: &[Finding]) -> v1::SubjectState {
    let subject = Some(subject_to_wire(&closed(n).key.subject));
    v1::SubjectState { subject, verdict: verdict.into(), open: open.iter().map(finding_to_wire).collect() }
}

async fn open_ports(viewer: &Channel) -> Vec<String> {
    let list = v1::ListFindingsRequest { agent: "web-1".into(), ..Default::default() };
    let found = FindingServiceClient::new(viewer.clone()).list_findings(list).await.unwrap().into_inner();
    found.findings.into_iter().map(|finding| finding.id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_digest_that_differs_is_resynced_and_watchers_are_told_the_difference() {
    let world = World::new().await;
    let viewer = world.channel(Role::Viewer, "eve").await;
    let mut watch = FindingServiceClient::new(viewer.clone())
        .watch_findings(v1::WatchFindingsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut agent = world.agent("web-1").await;
    for _ in 0..3 {
        agent.reports().await;
    }
    // Open here: 0, 1, 2. Open there: 0 and 9; 1 is well; 2 cannot be seen.
    let (zero, nine) = (closed(0), closed(9));
    let open_digest = open_digest([&zero.key, &nine.key]);
    let beat = v1::Heartbeat { sequence: 1, open_digest, head_sequence: 3, ..Default::default() };
    agent.send(ToCoordinator::Heartbeat(beat)).await;
    let request_id = loop {
        if let ToAgent::Resync(resync) = agent.next().await.unwrap() {
            break resync.id;
        }
    };
    let chunk = |subjects, last| ToCoordinator::OpenSet(v1::OpenSet { request_id, head_sequence: 3, subjects, last });
    // Of another entry than the newest: dropped.
    let stale = v1::OpenSet { request_id, head_sequence: 2, subjects: Vec::new(), last: true };
    agent.send(ToCoordinator::OpenSet(stale)).await;
    agent.send(chunk(vec![verdict(0, v1::Verdict::Problem, &[zero]), verdict(1, v1::Verdict::Ok, &[])], false)).await;
    agent
        .send(chunk(vec![verdict(2, v1::Verdict::Unknown, &[]), verdict(9, v1::Verdict::Problem, &[nine])], true))
        .await;
    let mut told = Vec::new();
    while told.len() < 5 {
        let change = tokio::time::timeout(PATIENCE, watch.message()).await.expect("no change").unwrap().unwrap();
        let id = change.finding.unwrap().id;
        told.push((change.change, id.split('/').nth(3).unwrap().to_owned(), change.by_resync));
    }
    let change = |change: &str, n: u64, by_resync| (change.to_owned(), format!("127.0.0.1:{n}"), by_resync);
    let expected = [
        change("opened", 0, false),
        change("opened", 1, false),
        change("opened", 2, false),
        change("opened", 9, true),
        change("cleared", 1, true),
    ];
    assert_eq!(told, expected);
    let expected = [0, 2, 9].map(|n| format!("web-1/host/port/127.0.0.1:{n}/port_closed"));
    assert_eq!(open_ports(&viewer).await, expected);
    assert_eq!((journaled(&world, "digest_differs"), journaled(&world, "open_set_received")), (1, 1));
    agent.reports().await;
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_is_counted_once_and_the_spool_goes_on_behind_it() {
    let world = World::new().await;
    let channel = world.channel(Role::Agent, "web-1").await;
    let mut agent = Agent::greet(channel.clone(), Position::start(spool())).await.unwrap();
    agent.reports().await;
    for _ in 0..3 {
        agent.entry();
    }
    let spool_id: prost::bytes::Bytes = spool().0.as_bytes().to_vec().into();
    let gap = v1::SpoolGap { spool_id, first_sequence: 2, last_sequence: 4 };
    agent.send(ToCoordinator::Gap(gap.clone())).await;
    agent.send(ToCoordinator::Gap(gap)).await;
    agent.reports().await;
    let at = agent.at;
    drop(agent);
    gone(&world, "web-1").await;
    assert_eq!((at.sequence, journaled(&world, "findings_lost")), (5, 1));
    let mut again = Agent::greet(channel, at).await.unwrap();
    again.reports().await;
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_diverged_spool_is_sent_back_to_the_hello_and_a_new_one_begins_at_one() {
    let world = World::new().await;
    let channel = world.channel(Role::Agent, "web-1").await;
    let mut agent = Agent::greet(channel.clone(), Position::start(spool())).await.unwrap();
    agent.reports().await;
    agent.reports().await;
    // The disk was set back: what comes third stands on another second.
    agent.at.hash = EntryHash([9; 16]);
    let third = agent.entry();
    agent.send(entries(vec![third])).await;
    let status = agent.refused().await;
    assert_eq!(status.code(), Code::Aborted, "{status}");
    gone(&world, "web-1").await;
    let new = SpoolId(uuid::Uuid::from_u128(8));
    let mut agent = Agent::greet(channel, Position::start(new)).await.unwrap();
    agent.reports().await;
    assert_eq!((journaled(&world, "spool_replaced"), journaled(&world, "finding_received")), (1, 3));
    // What was open is still open: another spool is no evidence of health.
    assert_eq!(open_ports(&world.channel(Role::Viewer, "eve").await).await.len(), 2);
    world.coordinator.stop().await.unwrap();
}

async fn ack(agent: &mut Agent, wanted: impl Fn(&v1::Ack) -> bool) -> v1::Ack {
    loop {
        match agent.next().await.unwrap() {
            ToAgent::Ack(ack) if wanted(&ack) => return ack,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_agents_may_delete_waits_for_the_standby_also_over_a_restart() {
    let world = World::new().await;
    let standby = CoordinatorId::new("coord-b").unwrap();
    world.coordinator.handle().follower_joined(standby.clone(), 1).await.unwrap();
    let mut agent = world.agent("web-1").await;
    let entry = agent.entry();
    agent.send(entries(vec![entry])).await;
    let held = ack(&mut agent, |ack| ack.stored_sequence == 1).await;
    assert_eq!(held.replicated_sequence, 0, "the standby lags");
    let head = world.coordinator.handle().head().borrow().index;
    world.coordinator.handle().follower_progress(standby.clone(), head);
    ack(&mut agent, |ack| ack.replicated_sequence == 1).await;
    let at = agent.at;
    world.coordinator.stop().await.unwrap();

    // The restarted primary has not heard of the standby yet, and does not take it for absent.
    let dir = world.dir;
    let credentials = Credentials::load(
        &dir.path().join("coord-a/ca.pem"),
        &dir.path().join("coord-a/cert.pem"),
        &dir.path().join("coord-a/key.pem"),
    );
    let coordinator = start(dir.path(), credentials.unwrap()).await;
    let world = World { dir, coordinator };
    let channel = world.channel(Role::Agent, "web-1").await;
    let mut agent = Agent::greet(channel, at).await.unwrap();
    let entry = agent.entry();
    agent.send(entries(vec![entry])).await;
    let held = ack(&mut agent, |ack| ack.stored_sequence == 2).await;
    assert_eq!(held.replicated_sequence, 0);
    // Away for too long: given up, durably.
    world.coordinator.handle().forget_follower(&standby).await.unwrap();
    ack(&mut agent, |ack| ack.replicated_sequence == 2).await;
    let followers = world.coordinator.handle().query(|view| view.store.meta("followers").unwrap()).await.unwrap();
    assert_eq!(followers.as_deref(), Some(b"[]".as_slice()));
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quick_reconnects_are_counted_and_many_of_them_make_one_fact() {
    let world = World::new().await;
    let mut at = Position::start(spool());
    for _ in 0..15 {
        // A connection of its own, so from another port.
        let channel = world.channel(Role::Agent, "web-1").await;
        let mut agent = Agent::greet(channel, at).await.unwrap();
        agent.reports().await;
        at = agent.at;
        drop(agent);
        gone(&world, "web-1").await;
    }
    let flapping = async {
        while journaled(&world, "agent_flapping") == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, flapping).await.expect("no fact about many reconnects");
    assert_eq!((journaled(&world, "agent_connected"), journaled(&world, "agent_flapping")), (1, 1));
    world.coordinator.stop().await.unwrap();
}

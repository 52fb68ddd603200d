//! What agents hear of freezes: those that concern them, after the welcome and at every change.

use super::*;
use muster_proto::v1::set_freeze_request::Change;
use muster_proto::v1::silence_service_client::SilenceServiceClient;
use muster_proto::v1::{FreezeScope, ListEventsRequest, ListFreezesRequest, NewFreeze, SetFreezeRequest};

/// The reasons in the next message about freezes.
async fn heard(agent: &mut Agent) -> Vec<String> {
    loop {
        if let ToAgent::Freezes(freezes) = agent.next().await.unwrap() {
            return freezes.freezes.into_iter().map(|freeze| freeze.reason).collect();
        }
    }
}

async fn labelled(world: &World, name: &str, zone: &str) -> Agent {
    let channel = world.channel(Role::Agent, name).await;
    let labels = [("zone".to_owned(), zone.to_owned())].into();
    let mut agent = Agent::open(channel, ToCoordinator::Hello(v1::Hello { labels, ..hello() })).await.unwrap();
    assert!(matches!(agent.next().await.unwrap(), ToAgent::Welcome(_)), "the welcome is first");
    agent
}

fn on(reason: &str, agents: &[&str], zone: Option<&str>) -> Change {
    let labels = zone.map(|zone| ("zone".to_owned(), zone.to_owned())).into_iter().collect();
    let scope = FreezeScope { agents: agents.iter().map(|name| (*name).to_owned()).collect(), labels };
    Change::Freeze(NewFreeze { scope: Some(scope), reason: reason.to_owned(), ttl: None })
}

async fn set(channel: &Channel, change: Change) -> Result<v1::Freeze, Status> {
    let request = SetFreezeRequest { change: Some(change) };
    let answer = SilenceServiceClient::new(channel.clone()).set_freeze(request).await?;
    Ok(answer.into_inner().freeze.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_hear_of_the_freezes_that_concern_them() {
    let world = World::new().await;
    let operator = world.channel(Role::Operator, "ada").await;
    let mut a = labelled(&world, "web-a", "a").await;
    let mut b = labelled(&world, "web-b", "b").await;
    // Also that there is none: one may have been lifted while the agent was away.
    assert_eq!((heard(&mut a).await, heard(&mut b).await), (vec![], vec![]));
    let zone = set(&operator, on("zone a", &[], Some("a"))).await.unwrap();
    assert!(zone.id.starts_with("FRZ-"), "{zone:?}");
    assert!(zone.created_by.contains("ada"), "{zone:?}");
    assert_eq!(heard(&mut a).await, ["zone a"]);
    set(&operator, on("by name", &["web-b"], None)).await.unwrap();
    while heard(&mut b).await != ["by name"] {}
    let fleet = set(&operator, on("all", &[], None)).await.unwrap();
    while heard(&mut a).await != ["zone a", "all"] {}
    while heard(&mut b).await != ["by name", "all"] {}
    let zone_id = zone.id.clone();
    set(&operator, Change::LiftId(zone.id)).await.unwrap();
    while heard(&mut a).await != ["all"] {}
    // One that connects later hears of them after its welcome.
    let mut late = labelled(&world, "web-c", "a").await;
    assert_eq!(heard(&mut late).await, ["all"]);
    let end = NewFreeze {
        scope: None,
        reason: "a moment".to_owned(),
        ttl: Some(prost_types::Duration { seconds: 0, nanos: 200_000_000 }),
    };
    let moment = set(&operator, Change::Freeze(end)).await.unwrap();
    assert!(moment.expire_time.is_some());
    while heard(&mut late).await != ["all", "a moment"] {}
    while heard(&mut late).await != ["all"] {}
    set(&operator, Change::LiftId(fleet.id)).await.unwrap();
    while !heard(&mut late).await.is_empty() {}
    let events = FindingServiceClient::new(operator).list_events(ListEventsRequest::default()).await.unwrap();
    let told: Vec<String> = events.into_inner().events.into_iter().map(|event| event.summary).collect();
    let zone_id = &zone_id;
    for expected in
        [format!("{zone_id} by ada: zone a"), format!("{zone_id} lifted by ada"), format!("{} is over", moment.id)]
    {
        assert!(told.contains(&expected), "{expected:?} is not in {told:#?}");
    }
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_freezes_and_wrong_people_are_refused() {
    let world = World::new().await;
    let operator = world.channel(Role::Operator, "ada").await;
    let refused = async |change: Option<Change>| {
        let request = SetFreezeRequest { change };
        SilenceServiceClient::new(operator.clone()).set_freeze(request).await.unwrap_err()
    };
    let ttl = |seconds| {
        let ttl = Some(prost_types::Duration { seconds, nanos: 0 });
        Some(Change::Freeze(NewFreeze { scope: None, reason: "x".to_owned(), ttl }))
    };
    let long = "x".repeat(100_000);
    for (change, code, text) in [
        (None, Code::InvalidArgument, "nothing is asked for"),
        (Some(on(" ", &[], None)), Code::InvalidArgument, "say why"),
        (Some(on(&long, &[], None)), Code::InvalidArgument, "reason"),
        (Some(on("x", &["no name"], None)), Code::InvalidArgument, "name"),
        (ttl(0), Code::InvalidArgument, "ttl"),
        (ttl(-1), Code::InvalidArgument, "ttl"),
        (ttl(400 * 86_400), Code::InvalidArgument, "ttl"),
        (Some(Change::LiftId("FRZ-7".to_owned())), Code::NotFound, "musterctl freeze list"),
        (Some(Change::LiftId(long.clone())), Code::NotFound, "no freeze"),
    ] {
        let status = refused(change).await;
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(text), "{text}: {status}");
    }
    for number in 0..64 {
        set(&operator, on(&number.to_string(), &[], None)).await.unwrap();
    }
    assert_eq!(refused(Some(on("one more", &[], None))).await.code(), Code::ResourceExhausted);
    let viewer = world.channel(Role::Viewer, "val").await;
    assert_eq!(set(&viewer, on("x", &[], None)).await.unwrap_err().code(), Code::PermissionDenied);
    let list = SilenceServiceClient::new(viewer).list_freezes(ListFreezesRequest::default()).await.unwrap();
    assert_eq!(list.into_inner().freezes.len(), 64);
    let agent = world.channel(Role::Agent, "web-1").await;
    assert_eq!(set(&agent, on("x", &[], None)).await.unwrap_err().code(), Code::PermissionDenied);
    world.coordinator.stop().await.unwrap();
}

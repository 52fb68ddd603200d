//! What is told of one incident: which of its findings are over.

use super::*;
use muster_proto::v1::{GetIncidentRequest, ListIncidentsRequest};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finding_that_is_over_is_marked_while_another_keeps_the_incident_open() {
    let world = World::new().await;
    let mut client = IncidentServiceClient::new(world.channel(Role::Viewer, "val").await);
    let mut agent = world.agent("web-1").await;
    let mut tell = async |event: FindingEvent| {
        let entry = agent.entry_of(encode_finding_event(&event));
        agent.send(entries(vec![entry])).await;
        agent.acked(agent.at.sequence).await;
    };
    let (first, second) = (closed(1), closed(2));
    tell(FindingEvent::Opened(first.clone())).await;
    tell(FindingEvent::Opened(second.clone())).await;
    let listed = client.list_incidents(ListIncidentsRequest::default()).await.unwrap().into_inner().incidents;
    let [listed] = listed.as_slice() else { panic!("one cause: {listed:#?}") };
    let mut shown =
        async || client.get_incident(GetIncidentRequest { id: listed.id.clone() }).await.unwrap().into_inner();
    let ids = ["web-1/host/port/127.0.0.1:1/port_closed", "web-1/host/port/127.0.0.1:2/port_closed"];
    let both = shown().await;
    assert_eq!((both.findings.as_slice(), both.findings_over.len()), (ids.map(str::to_owned).as_slice(), 0));
    let over = |finding: Finding| FindingEvent::Cleared {
        key: finding.key,
        summary: "well".to_owned(),
        evidence: Default::default(),
    };
    tell(over(first)).await;
    let one = shown().await;
    assert_eq!((one.state(), one.findings_over.as_slice()), (v1::IncidentState::Open, [ids[0].to_owned()].as_slice()));
    assert_eq!(one.findings, both.findings, "what it was made of stays");
    tell(over(second)).await;
    let none = shown().await;
    assert_eq!((none.state(), none.findings_over), (v1::IncidentState::Recovering, ids.map(str::to_owned).to_vec()));
    world.coordinator.stop().await.unwrap();
}

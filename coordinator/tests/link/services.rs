//! Questions about one service: what concerns the fleet is found by its name, and a name that nobody told of is doubted.

use super::explain::about_host;
use super::*;
use muster_proto::v1::{ListFindingsRequest, ListFindingsResponse, ListIncidentsRequest, ListIncidentsResponse};

async fn incidents(channel: &Channel, service: &str) -> ListIncidentsResponse {
    let request = ListIncidentsRequest { service: service.to_owned(), ..ListIncidentsRequest::default() };
    IncidentServiceClient::new(channel.clone()).list_incidents(request).await.unwrap().into_inner()
}

async fn findings(channel: &Channel, service: &str) -> ListFindingsResponse {
    let request = ListFindingsRequest { service: service.to_owned(), ..ListFindingsRequest::default() };
    FindingServiceClient::new(channel.clone()).list_findings(request).await.unwrap().into_inner()
}

/// `spl` restarts on three hosts.
async fn storm(world: &World) -> Vec<Agent> {
    let mut agents = Vec::new();
    for host in ["web-1", "web-2", "web-3"] {
        let mut agent = world.agent(host).await;
        let subject = SubjectKey::new(ServiceName::new("spl").unwrap(), ProbeKind::PidFile, "/run/spl.pid");
        let finding = Finding::new(FindingKey { subject, reason: Reason::ProcessRestarted }, "again");
        let body = encode_finding_event(&FindingEvent::Occurred(finding));
        let entry = v1::SpoolEntry { age_ms: 0, age_estimated: false, ..agent.entry_of(body) };
        agent.send(entries(vec![entry])).await;
        agent.acked(agent.at.sequence).await;
        agents.push(agent);
    }
    agents
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_is_found_by_its_service_and_a_misspelt_one_is_doubted() {
    let world = World::new().await;
    let viewer = world.channel(Role::Viewer, "val").await;
    let agents = storm(&world).await;
    let found = incidents(&viewer, "spl").await;
    let causes: Vec<(&str, &[String])> =
        found.incidents.iter().map(|incident| (incident.cause_key.as_str(), incident.services.as_slice())).collect();
    assert_eq!(causes, [("fleet/restart_storm/spl", ["spl".to_owned()].as_slice())], "{found:?}");
    assert_eq!(found.note, "");
    // A host's name is no service's.
    for wrong in ["web-1", "slp"] {
        let none = incidents(&viewer, wrong).await;
        assert!(none.incidents.is_empty(), "{none:?}");
        let expected = format!("no host has told of a service {wrong:?}");
        assert!(none.note.starts_with(&expected) && none.note.contains("(told of lately: spl)"), "{none:?}");
        assert!(findings(&viewer, wrong).await.note.starts_with(&expected));
    }
    assert_eq!(findings(&viewer, "spl").await, ListFindingsResponse::default(), "known, and nothing of it is open");
    let doubted = about_host(&viewer, "web-1", "slp", None).await.unwrap();
    assert!(doubted.answer.contains("web-1 has not told of a service \"slp\""), "{doubted:?}");
    let known = about_host(&viewer, "web-1", "spl", None).await.unwrap();
    assert!(!known.answer.contains("misspelt"), "{known:?}");
    drop(agents);
    world.coordinator.stop().await.unwrap();
}

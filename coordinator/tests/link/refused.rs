//! Callers that are refused, or that call in a loop, over the wire: from real calls to the incident that names them.

use super::*;
use muster_coordinator::refused::tell;

/// What is open, once everything that was counted has been told.
async fn told(world: &World, client: &mut IncidentServiceClient<Channel>) -> Vec<v1::Incident> {
    tell(world.coordinator.handle()).await;
    let listed = client.list_incidents(v1::ListIncidentsRequest::default()).await.unwrap();
    listed.into_inner().incidents
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_again_and_again_is_an_incident_with_name_and_route() {
    let world = World::new().await;
    let mut eve = IncidentServiceClient::new(world.channel(Role::Viewer, "eve").await);
    let refused = async |times: usize| {
        for _ in 0..times {
            let request = v1::ResolveIncidentRequest { id: "INC-20261122-0001".into(), summary: "over".into() };
            let status = eve.clone().resolve_incident(request).await.unwrap_err();
            assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        }
    };
    refused(55).await;
    let listed = told(&world, &mut eve.clone()).await;
    assert!(listed.is_empty(), "55 within ten minutes are below 60: {listed:?}");
    refused(5).await;
    let listed = told(&world, &mut eve).await;
    let [incident] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!(incident.reason, "auth_abuse");
    for words in ["IncidentService.ResolveIncident", "muster://prod/viewer/eve", "60 times"] {
        assert!(incident.title.contains(words), "{words}: {}", incident.title);
    }
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_calls_in_a_loop_is_an_incident_and_was_not_refused() {
    let world = World::new().await;
    let mut eve = IncidentServiceClient::new(world.channel(Role::Viewer, "eve").await);
    let mut fleet = FleetServiceClient::new(world.channel(Role::Viewer, "dashboard").await);
    // One more than a minute may have; the listing after it is somebody else's.
    for _ in 0..=600 {
        fleet.list_agents(v1::ListAgentsRequest::default()).await.unwrap();
    }
    let listed = told(&world, &mut eve).await;
    let [incident] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!(incident.reason, "auth_abuse");
    for words in ["FleetService.ListAgents", "muster://prod/viewer/dashboard", "601 times"] {
        assert!(incident.title.contains(words), "{words}: {}", incident.title);
    }
    assert!(!incident.title.contains("refused"), "{}", incident.title);
    world.coordinator.stop().await.unwrap();
}

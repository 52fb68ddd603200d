//! What operators do about incidents over gRPC: silences, severity, commander.

use super::*;
use muster_proto::v1::silence_service_client::SilenceServiceClient;
use muster_proto::v1::{
    CreateSilenceRequest, ExpireSilenceRequest, GetIncidentRequest, ListIncidentsRequest, ListSilencesRequest,
    SetCommanderRequest, SetSeverityRequest, Severity, Silence, SilenceKind, SilenceMatchers, SilenceState,
};

fn matchers(agents: &[&str]) -> SilenceMatchers {
    SilenceMatchers { agents: agents.iter().map(|name| (*name).to_owned()).collect(), ..SilenceMatchers::default() }
}

fn wanted(matchers: SilenceMatchers, reason: &str, seconds: i64) -> CreateSilenceRequest {
    CreateSilenceRequest {
        matchers: Some(matchers),
        kind: SilenceKind::Unspecified.into(),
        reason: reason.to_owned(),
        start_time: None,
        ttl: Some(prost_types::Duration { seconds, nanos: 0 }),
    }
}

async fn create(channel: &Channel, request: CreateSilenceRequest) -> Result<Silence, Status> {
    Ok(SilenceServiceClient::new(channel.clone()).create_silence(request).await?.into_inner())
}

async fn list(channel: &Channel, include_expired: bool) -> Vec<Silence> {
    // Page by page, one to each: as whole and in the same order as at once.
    let mut client = SilenceServiceClient::new(channel.clone());
    let (mut silences, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListSilencesRequest { include_expired, page_size: 1, page_token };
        let page = client.list_silences(request).await.unwrap().into_inner();
        assert!(page.silences.len() <= 1, "{page:?}");
        silences.extend(page.silences);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let all = ListSilencesRequest { include_expired, ..Default::default() };
    assert_eq!(client.list_silences(all).await.unwrap().into_inner().silences, silences);
    silences
}

/// The only incident there is, once there is one that `fits`.
async fn incident(channel: &Channel, fits: impl Fn(&v1::Incident) -> bool) -> v1::Incident {
    let mut client = IncidentServiceClient::new(channel.clone());
    let begun = tokio::time::Instant::now();
    loop {
        let all = client.list_incidents(ListIncidentsRequest::default()).await.unwrap().into_inner().incidents;
        if let Some(found) = all.into_iter().find(&fits) {
            return client.get_incident(GetIncidentRequest { id: found.id }).await.unwrap().into_inner();
        }
        assert!(begun.elapsed() < PATIENCE, "no such incident");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silence_is_made_listed_ended_and_explains_itself() {
    let world = World::new().await;
    let operator = world.channel(Role::Operator, "ada").await;
    let silence = create(&operator, wanted(matchers(&["web-*"]), "switches", 3600)).await.unwrap();
    assert!(silence.id.starts_with("SIL-"), "{silence:?}");
    assert_eq!((silence.state(), silence.kind()), (SilenceState::Active, SilenceKind::Silence));
    assert!(silence.created_by.contains("ada") && silence.reason == "switches", "{silence:?}");
    // Nobody is connected yet.
    assert!(silence.notes.len() == 1 && silence.notes[0].contains("fits \"web-*\""), "{silence:?}");
    let misspelt = SilenceMatchers { services: vec!["slp".to_owned()], ..matchers(&["db-9"]) };
    let doubted = create(&operator, wanted(misspelt, "a try", 60)).await.unwrap();
    assert!(doubted.notes.len() == 1 && doubted.notes[0].contains("\"slp\""), "{doubted:?}");
    SilenceServiceClient::new(operator.clone())
        .expire_silence(ExpireSilenceRequest { id: doubted.id.clone() })
        .await
        .unwrap();
    let mut agent = world.agent("web-1").await;
    agent.reports().await;
    let held = incident(&operator, |incident| !incident.silenced_by.is_empty()).await;
    assert_eq!(held.silenced_by, silence.id);
    let later = CreateSilenceRequest {
        kind: SilenceKind::Maintenance.into(),
        start_time: Some(prost_types::Timestamp { seconds: 4_000_000_000, nanos: 0 }),
        ..wanted(matchers(&["db-1"]), "later", 60)
    };
    let far = create(&operator, later.clone()).await.unwrap_err();
    assert_eq!(far.code(), Code::InvalidArgument, "{far}");
    let start = silence.start_time.unwrap().seconds + 86_400;
    let soon = Some(prost_types::Timestamp { seconds: start, nanos: 0 });
    let planned = create(&operator, CreateSilenceRequest { start_time: soon, ..later }).await.unwrap();
    assert_eq!((planned.state(), planned.kind()), (SilenceState::Pending, SilenceKind::Maintenance));
    assert_eq!(planned.end_time.unwrap().seconds, start + 60);
    let viewer = world.channel(Role::Viewer, "val").await;
    let ids: Vec<String> = list(&viewer, false).await.into_iter().map(|silence| silence.id).collect();
    assert_eq!(ids, [silence.id.clone(), planned.id.clone()]);
    let mut client = SilenceServiceClient::new(operator.clone());
    let expire = |id: &str| ExpireSilenceRequest { id: id.to_owned() };
    let ended = client.expire_silence(expire(&silence.id)).await.unwrap().into_inner();
    assert_eq!(ended.state(), SilenceState::Expired);
    assert!(ended.expired_by.contains("ada"), "{ended:?}");
    assert_eq!(client.expire_silence(expire(&silence.id)).await.unwrap_err().code(), Code::FailedPrecondition);
    for unknown in ["SIL-999999", "SIL-x", ""] {
        assert_eq!(client.expire_silence(expire(unknown)).await.unwrap_err().code(), Code::NotFound, "{unknown:?}");
    }
    assert_eq!((list(&viewer, false).await.len(), list(&viewer, true).await.len()), (1, 3));
    incident(&operator, |incident| incident.silenced_by.is_empty()).await;
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_silences_and_wrong_people_are_refused() {
    let world = World::new().await;
    let operator = world.channel(Role::Operator, "ada").await;
    let long = "x".repeat(100_000);
    let many = vec!["web-1".to_owned(); 65];
    let reasons = |reason: &str| SilenceMatchers { reasons: vec![reason.to_owned()], ..SilenceMatchers::default() };
    let mut labels = SilenceMatchers::default();
    labels.labels.insert(long.clone(), "x".to_owned());
    for (request, text) in [
        (wanted(SilenceMatchers::default(), "x", 60), "hold everything back"),
        (wanted(matchers(&["web-1"]), " ", 60), "say why"),
        (wanted(matchers(&["web-1"]), &long, 60), "reason"),
        (wanted(matchers(&[&long]), "x", 60), "agents"),
        (wanted(matchers(&[""]), "x", 60), "empty entry"),
        (wanted(SilenceMatchers { agents: many, ..SilenceMatchers::default() }, "x", 60), "more than 64"),
        (wanted(labels, "x", 60), "label"),
        (wanted(reasons("process_dawn"), "x", 60), "process_down"),
        (wanted(matchers(&["web-1"]), "x", 0), "ttl"),
        (wanted(matchers(&["web-1"]), "x", -5), "ttl"),
        (wanted(matchers(&["web-1"]), "x", i64::MAX), "ttl"),
        (CreateSilenceRequest { ttl: None, ..wanted(matchers(&["web-1"]), "x", 60) }, "ttl"),
        (CreateSilenceRequest { kind: 77, ..wanted(matchers(&["web-1"]), "x", 60) }, "kind"),
    ] {
        let status = create(&operator, request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(text), "{text}: {status}");
    }
    for (role, name) in [(Role::Viewer, "val"), (Role::Agent, "web-1")] {
        let channel = world.channel(role, name).await;
        let refused = create(&channel, wanted(matchers(&["web-1"]), "x", 60)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{name}");
        let expire = ExpireSilenceRequest { id: "SIL-1".to_owned() };
        let refused = SilenceServiceClient::new(channel).expire_silence(expire).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{name}");
    }
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn severity_and_commander_are_set_by_operators() {
    let world = World::new().await;
    let operator = world.channel(Role::Operator, "ada").await;
    let mut agent = world.agent("web-1").await;
    agent.reports().await;
    let id = incident(&operator, |_| true).await.id;
    let mut client = IncidentServiceClient::new(operator.clone());
    let severity = |severity: i32, note: &str| SetSeverityRequest { id: id.clone(), severity, note: note.to_owned() };
    let sev1 = Severity::Sev1.into();
    let raised = client.set_severity(severity(sev1, "customers notice")).await.unwrap().into_inner();
    assert_eq!(raised.severity(), Severity::Sev1);
    let told = raised.timeline.iter().any(|line| line.text.contains("ada") && line.text.contains("customers notice"));
    assert!(told, "{:#?}", raised.timeline);
    for (request, text) in [(severity(0, "x"), "severity"), (severity(9, "x"), "severity"), (severity(2, " "), "note")]
    {
        let status = client.set_severity(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(text), "{status}");
    }
    let commander = |name: &str| SetCommanderRequest { id: id.clone(), commander: name.to_owned() };
    let named = client.set_commander(commander("eve")).await.unwrap().into_inner();
    assert_eq!(named.commander, "eve");
    assert_eq!(client.set_commander(commander("")).await.unwrap().into_inner().commander, "");
    let long = client.set_commander(commander(&"x".repeat(1000))).await.unwrap_err();
    assert_eq!(long.code(), Code::InvalidArgument);
    let mut viewer = IncidentServiceClient::new(world.channel(Role::Viewer, "val").await);
    assert_eq!(viewer.set_commander(commander("val")).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(viewer.set_severity(severity(sev1, "x")).await.unwrap_err().code(), Code::PermissionDenied);
    let unknown = SetCommanderRequest { id: "INC-1".to_owned(), commander: "eve".to_owned() };
    assert_eq!(client.set_commander(unknown).await.unwrap_err().code(), Code::NotFound);
    world.coordinator.stop().await.unwrap();
}

//! Why, why not, notes and bundles over gRPC; and what `muster-coordinator replay` makes of the bundle.

use super::*;
use muster_coordinator::bundle::Reader;
use muster_coordinator_core::State;
use muster_coordinator_core::replay::Verifier;
use muster_proto::v1::explain_request::About;
use muster_proto::v1::{
    ExplainRequest, ExplainResponse, ExportBundleRequest, ExportFormat, ExportIncidentRequest, ListIncidentsRequest,
    RuleOutcome, WhyNot,
};
use std::process::Command;

async fn ask(channel: &Channel, about: About) -> Result<ExplainResponse, Status> {
    let request = ExplainRequest { about: Some(about) };
    Ok(IncidentServiceClient::new(channel.clone()).explain(request).await?.into_inner())
}

/// Why nobody was paged about a host; about all of it where `service` is empty.
pub(crate) async fn about_host(
    channel: &Channel,
    agent: &str,
    service: &str,
    at: Option<prost_types::Timestamp>,
) -> Result<ExplainResponse, Status> {
    ask(channel, About::WhyNot(WhyNot { agent: agent.to_owned(), at, service: service.to_owned() })).await
}

/// The only incident there is.
async fn incident(channel: &Channel) -> v1::Incident {
    let mut client = IncidentServiceClient::new(channel.clone());
    let begun = tokio::time::Instant::now();
    loop {
        let mut all = client.list_incidents(ListIncidentsRequest::default()).await.unwrap().into_inner().incidents;
        if let Some(found) = all.pop() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "no incident");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn bundle(channel: &Channel, id: &str) -> Result<Vec<u8>, Status> {
    let request = ExportBundleRequest { id: id.to_owned() };
    let mut stream = IncidentServiceClient::new(channel.clone()).export_bundle(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(message) = stream.message().await? {
        bytes.extend_from_slice(&message.chunk);
    }
    Ok(bytes)
}

/// A world with one incident of web-1.
async fn ill() -> (World, Channel, v1::Incident) {
    let world = World::new().await;
    let viewer = world.channel(Role::Viewer, "val").await;
    let mut agent = world.agent("web-1").await;
    agent.reports().await;
    let incident = incident(&viewer).await;
    (world, viewer, incident)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_and_why_not_are_answered_for_now_and_for_then() {
    let (world, viewer, incident) = ill().await;
    let why = ask(&viewer, About::Id(incident.id.clone())).await.unwrap();
    assert!(why.answer.contains(&incident.id), "{why:?}");
    assert!(why.rules.iter().any(|rule| rule.rule == "hold") && why.rules.iter().any(|rule| rule.rule == "routing"));
    assert!(why.rules.iter().any(|rule| rule.journal_index > 0 && rule.rule == incident.reason), "{why:?}");
    let finding = incident.findings.first().unwrap();
    let of_finding = ask(&viewer, About::Id(finding.clone())).await.unwrap();
    assert!(of_finding.answer.contains(&incident.id), "{of_finding:?}");
    // What the host told names the incident that tells of it, in lists of the journal and in its trace.
    let mut journal = FindingServiceClient::new(viewer.clone());
    let events = journal.list_events(v1::ListEventsRequest::default()).await.unwrap().into_inner().events;
    let fact = events.iter().find(|event| event.name == "finding_received").unwrap();
    let request = v1::GetTraceRequest { trace_id: fact.index.to_string(), ..Default::default() };
    let trace = journal.get_trace(request).await.unwrap().into_inner().events;
    assert_eq!((&fact.incident, &trace[0].incident), (&incident.id, &incident.id), "{fact:?}");
    // No receiver is configured, so nobody was paged, and that is said.
    let now = about_host(&viewer, "web-1", "", None).await.unwrap();
    assert!(now.answer.starts_with("nobody was paged about web-1"), "{now:?}");
    let held: Vec<&str> = now
        .rules
        .iter()
        .filter(|rule| rule.outcome() == RuleOutcome::HeldBack)
        .map(|rule| rule.held_back_by.as_str())
        .collect();
    assert!(held.contains(&"routing"), "{now:?}");
    // The same a moment later, of the moment at which it was opened: rebuilt from the journal.
    let then = about_host(&viewer, "web-1", "", incident.opened).await.unwrap();
    assert!(then.rules.iter().any(|rule| rule.incident == incident.id), "{then:?}");
    assert!(then.unknown.iter().any(|words| words.contains("heartbeats are not in the journal")), "{then:?}");
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_questions_are_refused() {
    let (world, viewer, incident) = ill().await;
    let code = async |about: About| ask(&viewer, about).await.unwrap_err().code();
    for unknown in ["INC-20010101-0001", "999999", "web-1/spl/port/x/nothing", "x"] {
        assert_eq!(code(About::Id(unknown.to_owned())).await, Code::NotFound, "{unknown}");
    }
    for wrong in [String::new(), "x".repeat(5_000)] {
        assert_eq!(code(About::Id(wrong)).await, Code::InvalidArgument);
    }
    let opened = incident.opened.unwrap();
    let at = |seconds: i64| Some(prost_types::Timestamp { seconds, nanos: 0 });
    for (agent, at, expected, words) in [
        ("nobody", None, Code::NotFound, "nobody"),
        ("", None, Code::InvalidArgument, "name"),
        ("web-1", at(opened.seconds + 86_400), Code::InvalidArgument, "in the future"),
        ("web-1", at(i64::MAX), Code::InvalidArgument, "in the future"),
        ("web-1", at(opened.seconds - 86_400), Code::OutOfRange, "the oldest that can be told is"),
        ("web-1", at(i64::MIN), Code::OutOfRange, "the oldest that can be told is"),
    ] {
        let status = about_host(&viewer, agent, "", at).await.unwrap_err();
        assert_eq!(status.code(), expected, "{status}");
        assert!(status.message().contains(words), "{status}");
    }
    let mut client = IncidentServiceClient::new(viewer.clone());
    let nothing = client.explain(ExplainRequest { about: None }).await.unwrap_err();
    assert_eq!(nothing.code(), Code::InvalidArgument);
    let export = |id: &str, format: i32| ExportIncidentRequest { id: id.to_owned(), format };
    assert_eq!(client.export_incident(export("INC-1", 0)).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.export_incident(export(&incident.id, 77)).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(bundle(&viewer, "INC-1").await.unwrap_err().code(), Code::NotFound);
    let agent = world.channel(Role::Agent, "web-2").await;
    assert_eq!(about_host(&agent, "web-1", "", None).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(bundle(&agent, &incident.id).await.unwrap_err().code(), Code::PermissionDenied);
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_note_is_exported_in_both_forms() {
    let (world, viewer, incident) = ill().await;
    let mut client = IncidentServiceClient::new(viewer);
    let mut export = async |format: ExportFormat| {
        let request = ExportIncidentRequest { id: incident.id.clone(), format: format.into() };
        client.export_incident(request).await.unwrap().into_inner().text
    };
    let text = export(ExportFormat::Markdown).await;
    for heading in ["## Impact", "## Timeline", "## Follow-ups", "## What is not known", "## Configuration"] {
        assert!(text.contains(heading), "{heading}:\n{text}");
    }
    assert!(text.contains("in force when it was opened"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&export(ExportFormat::Json).await).unwrap();
    assert_eq!(json["incident"], incident.id.as_str());
    assert_eq!(json["impact"]["hosts"], serde_json::json!(["web-1"]));
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_replays_to_the_same_conclusions_and_to_others_under_another_policy() {
    let (world, viewer, incident) = ill().await;
    let bytes = bundle(&viewer, &incident.id).await.unwrap();
    let mut reader = Reader::open(bytes.as_slice()).unwrap();
    assert_eq!(reader.manifest().incident.as_deref(), Some(incident.id.as_str()));
    assert_eq!((reader.manifest().fleet.as_str(), reader.manifest().state_index), ("prod", 0));
    let mut verifier = Verifier::new(reader.take_state().unwrap_or_else(State::genesis));
    while let Some(entry) = reader.next_entry().unwrap() {
        verifier.next(&entry).unwrap();
    }
    assert!(verifier.finish().unwrap().incident_by_number(&incident.id).is_some());
    let file = world.dir.path().join("bundle.tar.gz");
    std::fs::write(&file, &bytes).unwrap();
    let policy = world.dir.path().join("policy.toml");
    std::fs::write(&policy, "[incidents]\nhold = { sev2 = \"0s\" }\npage_from = \"sev3\"\n[[receiver.webhook]]\nname = \"ops\"\nurl = \"http://127.0.0.1:9/\"\n").unwrap();
    let replay = |more: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_muster-coordinator"))
            .arg("replay")
            .arg(&file)
            .args(more)
            .output()
            .unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let (code, out, err) = replay(&[]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("identical:") && out.contains("byte for byte"), "{out}");
    let policy_path = policy.display().to_string();
    let (code, out, err) = replay(&["--policy", &policy_path, "--format", "json"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["what_if"]["added"].as_array().map(Vec::len), Some(1), "a receiver is told now: {out}");
    let (_, out, _) = replay(&["--policy", &policy_path]);
    assert!(out.contains("pages added (1)") && out.contains("not claimed"), "{out}");
    std::fs::write(&policy, "[liveness]\nstale_after = 2\n").unwrap();
    let (code, _, err) = replay(&["--policy", &policy_path]);
    assert!(code == Some(1) && err.contains("loosen the thresholds"), "{err}");
    std::fs::write(&policy, "[liveness]\nstale_afte = 2\n").unwrap();
    let (code, _, err) = replay(&["--policy", &policy_path]);
    assert!(code == Some(2) && err.contains("did you mean"), "{err}");
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let (code, _, err) = replay(&[]);
    assert!(code == Some(1) && err.contains("cut short or damaged"), "{err}");
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_independent_client_asks_the_same() {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/tools/grpcq.py");
    let knows = Command::new("python3").args(["-c", "import grpc, grpc_reflection"]).output();
    if !tool.exists() || !knows.is_ok_and(|output| output.status.success()) {
        println!("skipped: python3 with grpcio, or {}, is not there", tool.display());
        return;
    }
    let (world, _, incident) = ill().await;
    let dir = world.dir.path().join("val");
    let address = world.coordinator.grpc_address().to_string();
    let call = |method: &str, body: String| {
        let (dir, address, tool, method) =
            (dir.clone(), address.clone(), tool.clone(), format!("muster.v1.IncidentService/{method}"));
        tokio::task::spawn_blocking(move || {
            let at = |name: &str| dir.join(name);
            let mut command = Command::new("python3");
            command
                .arg(&tool)
                .arg("-cacert")
                .arg(at("ca.pem"))
                .arg("-cert")
                .arg(at("cert.pem"))
                .arg("-key")
                .arg(at("key.pem"));
            command.args(["-d", &body, &address, &method]).output().unwrap()
        })
    };
    let out = call("Explain", format!("{{\"id\":\"{}\"}}", incident.id)).await.unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(String::from_utf8_lossy(&out.stdout).contains("\"answer\""));
    for (method, body, expected) in [
        ("Explain", "{\"whyNot\":{\"agent\":\"web-1\"}}".to_owned(), "nobody was paged about web-1"),
        ("ExportIncident", format!("{{\"id\":\"{}\"}}", incident.id), "## Follow-ups"),
        ("ExportBundle", format!("{{\"id\":\"{}\"}}", incident.id), "\"chunk\""),
    ] {
        let out = call(method, body).await.unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(
            out.status.success() && text.contains(expected),
            "{method}: {text}{}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
    world.coordinator.stop().await.unwrap();
}

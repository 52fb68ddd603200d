//! Every RPC of operators, called by an independent client (Python's, on the C core) with nothing but the endpoint and a
//! certificate: what it sends and reads it knows by reflection. Skipped where that client is not there.

use super::*;
use std::process::Command;

/// What grpcurl-like clients add to a status code for their exit status.
const EXIT_BASE: i32 = 64;
/// A watch is cut off after this; everything else answers long before.
const WATCH_SECONDS: &str = "2";

/// Method, request, and how it may end; `Ok` is an answer, and for a watch that it was still open when it was cut off.
const CALLS: &[(&str, &str, &[Code])] = &[
    ("FleetService/GetFleetStatus", "{}", &[Code::Ok]),
    ("FleetService/ListAgents", "{}", &[Code::Ok]),
    ("FleetService/GetAgent", r#"{"id": "web-1"}"#, &[Code::Ok]),
    ("FleetService/WatchAgents", "{}", &[Code::DeadlineExceeded]),
    ("FleetService/PingAgent", r#"{"id": "web-9"}"#, &[Code::NotFound]),
    ("FleetService/DiagnoseAgent", r#"{"id": "web-9"}"#, &[Code::NotFound]),
    ("FleetService/ArchiveAgent", r#"{"id": "web-1", "reason": "sold"}"#, &[Code::FailedPrecondition]),
    ("FindingService/ListFindings", r#"{"include_occurrences": true}"#, &[Code::Ok]),
    ("FindingService/WatchFindings", r#"{"min_severity": "SEVERITY_SEV2"}"#, &[Code::DeadlineExceeded]),
    ("FindingService/ListEvents", r#"{"page_size": 5}"#, &[Code::Ok]),
    ("FindingService/GetTrace", r#"{"trace_id": "1"}"#, &[Code::Ok]),
    ("IncidentService/ListIncidents", r#"{"include_resolved": true}"#, &[Code::Ok]),
    ("IncidentService/GetIncident", r#"{"id": "INC"}"#, &[Code::Ok]),
    ("IncidentService/WatchIncidents", "{}", &[Code::DeadlineExceeded]),
    ("IncidentService/AcknowledgeIncident", r#"{"id": "INC", "note": "looking"}"#, &[Code::Ok]),
    ("IncidentService/AddNote", r#"{"id": "INC", "text": "seen"}"#, &[Code::Ok]),
    ("IncidentService/SetSeverity", r#"{"id": "INC", "severity": "SEVERITY_SEV1", "note": "bad"}"#, &[Code::Ok]),
    ("IncidentService/SetCommander", r#"{"id": "INC", "commander": "ada"}"#, &[Code::Ok]),
    ("IncidentService/Explain", r#"{"id": "INC"}"#, &[Code::Ok]),
    ("IncidentService/Explain", r#"{"why_not": {"agent": "web-1"}}"#, &[Code::Ok]),
    ("IncidentService/ExportIncident", r#"{"id": "INC", "format": "EXPORT_FORMAT_JSON"}"#, &[Code::Ok]),
    ("IncidentService/ExportBundle", r#"{"id": "INC"}"#, &[Code::Ok]),
    ("IncidentService/ResolveIncident", r#"{"id": "INC", "summary": "over"}"#, &[Code::Ok]),
    ("SilenceService/SetFreeze", r#"{"freeze": {"reason": "upgrade", "ttl": "60s"}}"#, &[Code::Ok]),
    ("SilenceService/ListFreezes", "{}", &[Code::Ok]),
    (
        "SilenceService/CreateSilence",
        r#"{"matchers": {"agents": ["web-2"]}, "reason": "disk", "ttl": "60s"}"#,
        &[Code::Ok],
    ),
    ("SilenceService/ListSilences", r#"{"include_expired": true}"#, &[Code::Ok]),
    ("SilenceService/ExpireSilence", r#"{"id": "SIL-999999"}"#, &[Code::NotFound]),
    ("PagingService/ListReceivers", "{}", &[Code::Ok]),
    ("PagingService/TestReceiver", r#"{"name": "nobody"}"#, &[Code::NotFound]),
    ("PagingService/ListDeadLetters", "{}", &[Code::Ok]),
    ("PagingService/ResendPage", r#"{"page_id": "999999"}"#, &[Code::NotFound, Code::InvalidArgument]),
    ("FailoverService/GetFailoverStatus", "{}", &[Code::Ok]),
];

fn client() -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/tools/grpcq.py");
    let importable = Command::new("python3").args(["-c", "import grpc, grpc_reflection"]).output();
    let there = script.exists() && importable.is_ok_and(|output| output.status.success());
    there.then_some(script)
}

/// Calls as `name`; exit status less the base, and what was printed.
fn call(script: &Path, world: &World, name: &str, words: &[&str], data: &str) -> (i32, String) {
    let file = |file: &str| world.dir.path().join(name).join(file);
    let output = Command::new("python3")
        .arg(script)
        .arg("-cacert")
        .arg(file("ca.pem"))
        .arg("-cert")
        .arg(file("cert.pem"))
        .arg("-key")
        .arg(file("key.pem"))
        .args(["-d", data])
        .args(if words.iter().any(|word| word.contains("/Watch")) { vec!["-max-time", WATCH_SECONDS] } else { vec![] })
        .arg(world.coordinator.grpc_address().to_string())
        .args(words)
        .output()
        .unwrap();
    let status = output.status.code().unwrap_or(-1);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (if status == 0 { 0 } else { status - EXIT_BASE }, text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_of_operators_works_through_reflection() {
    let Some(script) = client() else {
        return println!("skipped: no independent gRPC client (python3 with grpcio and grpcio-reflection, grpcq.py)");
    };
    let world = World::new().await;
    let mut agent = world.agent("web-1").await;
    agent.reports().await;
    let incident = incident(&world).await;
    issue(world.dir.path(), Role::Operator, "ada");
    issue(world.dir.path(), Role::Viewer, "eve");
    let world = std::sync::Arc::new(world);
    let shared = std::sync::Arc::clone(&world);
    let told = tokio::task::spawn_blocking(move || {
        let mut wrong = Vec::new();
        for (method, data, expected) in CALLS {
            let (status, text) = call(
                &script,
                &shared,
                "ada",
                &[&format!("muster.v1.{method}")],
                &data.replace("INC\"", &format!("{incident}\"")),
            );
            if !expected.iter().any(|code| i32::from(*code) == status) {
                wrong.push(format!("{method} {data}: {status}: {text}"));
            }
        }
        // Who only reads is told so, by each call that acts.
        for method in [
            "FleetService/ArchiveAgent",
            "SilenceService/CreateSilence",
            "PagingService/TestReceiver",
            "IncidentService/SetSeverity",
        ] {
            let (status, text) = call(&script, &shared, "eve", &[&format!("muster.v1.{method}")], "{}");
            if status != i32::from(Code::PermissionDenied) {
                wrong.push(format!("a viewer's {method}: {status}: {text}"));
            }
        }
        wrong
    });
    let wrong = told.await.unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    drop(agent);
    let world = std::sync::Arc::into_inner(world).unwrap();
    world.coordinator.stop().await.unwrap();
}

/// The number of the incident about what the agent reported.
async fn incident(world: &World) -> String {
    let found = async {
        loop {
            let read = |view: &muster_coordinator::runtime::View<'_>| {
                view.state.incidents().next().map(|incident| incident.number.clone())
            };
            if let Some(number) = world.coordinator.handle().query(read).await.unwrap() {
                return number;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("an incident opens")
}

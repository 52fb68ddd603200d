//! An independent gRPC client (Python's, on the C core) against a real coordinator: everything must work with nothing but
//! the endpoint and a certificate, through reflection. Skipped, saying so, where the client is not there.

use crate::lab::{Lab, REFUSING_PATH};
use crate::say;
use crate::suite::workspace;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// gRPC's status code PERMISSION_DENIED as grpcurl-like clients exit with it: 64 + 7.
const EXIT_PERMISSION_DENIED: i32 = 71;
/// The same for NOT_FOUND: 64 + 5.
const EXIT_NOT_FOUND: i32 = 69;

/// Runs the check; `Some(why)` when it was skipped.
pub(crate) fn check() -> Result<Option<String>> {
    let script = workspace().join("../shared/tools/grpcq.py");
    if !script.exists() {
        return Ok(Some("an independent gRPC client: ../shared/tools/grpcq.py is not there".to_owned()));
    }
    let importable = Command::new("python3").args(["-c", "import grpc, grpc_reflection"]).output();
    if !importable.is_ok_and(|output| output.status.success()) {
        return Ok(Some("an independent gRPC client: python3 has no grpcio and grpcio-reflection".to_owned()));
    }
    let mut lab = Lab::new("foreign", false)?;
    lab.prepare_coordinators(&["coord-a"])?;
    // One receiver takes nothing, so that there is a page to send again.
    let refusing = format!("http://{}{REFUSING_PATH}", lab.receiver.address);
    let extra = format!(
        "[incidents]\nhold = {{ sev3 = \"1s\" }}\n\n[[receiver.webhook]]\nname = \"refusing\"\nurl = {refusing:?}\n"
    );
    lab.write_coordinator_config("coord-a", None, &extra)?;
    lab.issue("viewer", "victor")?;
    lab.start_coordinator("coord-a")?;
    lab.start_agent("web-1", "[service.gone]\npid_file = \"/nonexistent/gone.pid\"\n")?;
    lab.start_agent("web-2", "")?;
    lab.wait("the agent's finding is listed", Duration::from_secs(30), || {
        let listed = lab.ctl("coord-a", &["findings", "list"])?;
        Ok(listed["findings"].as_array().is_some_and(|findings| !findings.is_empty()).then_some(()))
    })?;
    let client = Client { lab: &lab, script };
    for version in ["v1", "v1alpha"] {
        let services = client.ok("alice", &["-reflect", version], &["list"])?;
        for service in [
            "FleetService",
            "FindingService",
            "IncidentService",
            "SilenceService",
            "PagingService",
            "FailoverService",
            "AgentLinkService",
        ] {
            ensure!(
                services.contains(&format!("muster.v1.{service}")),
                "{version} does not list {service}: {services}"
            );
        }
        ensure!(services.contains("grpc.health.v1.Health"), "{version} does not list health: {services}");
    }
    let health = client.ok("alice", &["-d", "{}"], &["grpc.health.v1.Health/Check"])?;
    ensure!(health.contains("SERVING"), "{health}");
    for method in [
        "FleetService/GetFleetStatus",
        "FleetService/ListAgents",
        "FindingService/ListFindings",
        "FindingService/ListEvents",
        "IncidentService/ListIncidents",
        "FailoverService/GetFailoverStatus",
        "SilenceService/ListFreezes",
        "SilenceService/ListSilences",
        "PagingService/ListReceivers",
        "PagingService/ListDeadLetters",
    ] {
        client.ok("victor", &["-d", "{}"], &[&format!("muster.v1.{method}")])?;
    }
    let agent = client.ok("alice", &["-d", r#"{"id": "web-1"}"#], &["muster.v1.FleetService/GetAgent"])?;
    ensure!(agent.contains("AGENT_STATE_LIVE"), "{agent}");
    let diagnosis = client.ok("victor", &["-d", r#"{"id": "web-1"}"#], &["muster.v1.FleetService/DiagnoseAgent"])?;
    ensure!(diagnosis.contains("pid_file_missing"), "{diagnosis}");
    let denied = client.run("victor", &["-d", r#"{"id": "x"}"#], &["muster.v1.IncidentService/ResolveIncident"])?;
    ensure!(denied.0 == Some(EXIT_PERMISSION_DENIED), "a viewer could act: {denied:?}");
    acts(&client)?;
    say!("an independent gRPC client lists, describes and calls everything");
    Ok(None)
}

/// Calls that do something, each to its success: that it is there and refuses proves less.
fn acts(client: &Client<'_>) -> Result<()> {
    let lab = client.lab;
    let ping = client.call("FleetService/PingAgent", &json!({ "id": "web-1" }))?;
    ensure!(text(&ping, "roundTrip").ends_with('s'), "no round trip: {ping}");
    let silence = json!({ "matchers": { "agents": ["web-9"] }, "reason": "a try", "ttl": "600s" });
    let made = client.call("SilenceService/CreateSilence", &silence)?;
    let ended = client.call("SilenceService/ExpireSilence", &json!({ "id": text(&made, "id") }))?;
    ensure!(text(&ended, "state") == "SILENCE_STATE_EXPIRED", "it holds on: {ended}");
    let tested = client.call("PagingService/TestReceiver", &json!({ "name": "hook" }))?;
    ensure!(tested["delivered"] == true, "the test was not taken: {tested}");
    let (page, _) = lab.wait("a page that was given up", Duration::from_secs(60), || {
        let letters = client.call("PagingService/ListDeadLetters", &json!({}))?;
        let letters = letters["deadLetters"].as_array().cloned().unwrap_or_default();
        Ok(letters.first().map(|letter| text(letter, "pageId").to_owned()))
    })?;
    let again = client.call("PagingService/ResendPage", &json!({ "pageId": page }))?;
    let number = |id: &str| id.parse::<u64>().with_context(|| format!("{id:?} is no page"));
    ensure!(number(text(&again, "pageId"))? > number(&page)?, "it is the same page: {again}");
    // An agent that says goodbye can be archived, once its goodbye is known.
    lab.kill("web-2", Signal::SIGTERM)?;
    let archive = json!({ "id": "web-2", "reason": "sold" });
    lab.wait("the agent is archived", Duration::from_secs(30), || {
        client.call("FleetService/ArchiveAgent", &archive).map(Some)
    })?;
    let gone = client.run("alice", &["-d", r#"{"id": "web-2"}"#], &["muster.v1.FleetService/GetAgent"])?;
    ensure!(gone.0 == Some(EXIT_NOT_FOUND), "it is still there: {gone:?}");
    Ok(())
}

fn text<'a>(answer: &'a Value, field: &str) -> &'a str {
    answer[field].as_str().unwrap_or_default()
}

struct Client<'a> {
    lab: &'a Lab,
    script: PathBuf,
}

impl Client<'_> {
    fn run(&self, who: &str, options: &[&str], words: &[&str]) -> Result<(Option<i32>, String)> {
        let file = |file: &str| self.lab.path(&format!("tls/{who}/{file}"));
        let endpoint = self.lab.endpoint("coord-a")?;
        let output = Command::new("python3")
            .arg(&self.script)
            .args(["-cacert", &file("ca.pem"), "-cert", &file("cert.pem"), "-key", &file("key.pem")])
            .args(options)
            .arg(endpoint.trim_start_matches("https://"))
            .args(words)
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        Ok((output.status.code(), text))
    }

    /// A call by an operator, to its success; what it answers.
    fn call(&self, method: &str, request: &Value) -> Result<Value> {
        let answer = self.ok("alice", &["-d", &request.to_string()], &[&format!("muster.v1.{method}")])?;
        serde_json::from_str(&answer).with_context(|| format!("{method} answered no JSON: {answer}"))
    }

    fn ok(&self, who: &str, options: &[&str], words: &[&str]) -> Result<String> {
        let (status, text) = self.run(who, options, words)?;
        ensure!(status == Some(0), "{} {}: exit {status:?}: {text}", options.join(" "), words.join(" "));
        Ok(text)
    }
}

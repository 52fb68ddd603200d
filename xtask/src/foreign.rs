//! An independent gRPC client (Python's, on the C core) against a real coordinator: everything must work with nothing but
//! the endpoint and a certificate, through reflection. Skipped, saying so, where the client is not there.

use crate::lab::Lab;
use crate::say;
use crate::suite::workspace;
use anyhow::{Result, ensure};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// gRPC's status code PERMISSION_DENIED as grpcurl-like clients exit with it: 64 + 7.
const EXIT_PERMISSION_DENIED: i32 = 71;

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
    lab.write_coordinator_config("coord-a", None, "")?;
    lab.issue("viewer", "victor")?;
    lab.start_coordinator("coord-a")?;
    lab.start_agent("web-1", "[service.gone]\npid_file = \"/nonexistent/gone.pid\"\n")?;
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
    say!("an independent gRPC client lists, describes and calls everything");
    Ok(None)
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

    fn ok(&self, who: &str, options: &[&str], words: &[&str]) -> Result<String> {
        let (status, text) = self.run(who, options, words)?;
        ensure!(status == Some(0), "{} {}: exit {status:?}: {text}", options.join(" "), words.join(" "));
        Ok(text)
    }
}

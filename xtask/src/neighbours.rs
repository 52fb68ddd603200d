//! Second opinions with real agents, each on a host of its own as far as the network goes: four network namespaces joined
//! by a router, one coordinator. One agent is killed, and its neighbours reach its host; one host is cut off, and they do
//! not. Skipped, saying so, where the kernel gives nobody namespaces.

use crate::lab::{self, Lab, WEBHOOK_PATH};
use crate::say;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Listens on every host: what its agent tells of, and its neighbours look at.
const PORT: &str = "2222";
const COORDINATOR: &str = "coord-a";
/// Agents, on hosts of the same number.
const AGENTS: [&str; 4] = ["web-1", "web-2", "web-3", "web-4"];
/// A page comes within the hold; the rest is for a machine that does other things as well, and for the time after a start
/// in which silences wait.
const PATIENCE: Duration = Duration::from_secs(180);

/// Runs the check; `Some(why)` when it was skipped.
pub(crate) fn check() -> Result<Option<String>> {
    let pair = ["-Urn", "ip", "link", "add", "one", "type", "veth", "peer", "name", "two"];
    let version = ["--version"];
    let tries = [("unshare", pair.as_slice()), ("nsenter", version.as_slice())];
    for (program, arguments) in tries {
        let output = Command::new(program).args(arguments).output();
        if !output.is_ok_and(|output| output.status.success()) {
            let command = format!("{program} {}", arguments.join(" "));
            return Ok(Some(format!("second opinions of real agents: `{command}` does not work here")));
        }
    }
    lab::build()?;
    let own = std::env::current_exe()?;
    let status = Command::new("unshare").arg("-Urn").arg(own).arg("neighbours").stdin(Stdio::null()).status()?;
    ensure!(status.success(), "the agents in namespaces: {status}");
    Ok(None)
}

/// The check itself, in a network of its own.
pub(crate) fn run() -> Result<()> {
    let links = fs::read_to_string("/proc/self/net/dev")?;
    let others = links.lines().filter(|line| line.contains(':') && !line.trim_start().starts_with("lo:")).count();
    ensure!(others == 0, "this is a network that others use; it is started by `cargo xtask test`, in one of its own");
    ip(&["link", "set", "lo", "up"])?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot forward between the hosts")?;
    lab::built_by_tests();
    let mut lab = Lab::new("neighbours", false)?;
    let routers: Vec<String> = (1..=AGENTS.len()).map(router).collect();
    for (n, name) in (1..).zip(AGENTS) {
        add_host(&lab, name, n)?;
    }
    lab.prepare_coordinator_at(COORDINATOR, &routers.iter().map(String::as_str).collect::<Vec<_>>())?;
    lab.write_coordinator_config(COORDINATOR, None, "[incidents]\nhold = { sev3 = \"8s\" }\n")?;
    listen_everywhere(Path::new(&lab.path(&format!("coordinator/{COORDINATOR}/coordinator.toml"))))?;
    lab.start_coordinator(COORDINATOR)?;
    let (port, _) = lab.ports(COORDINATOR)?;
    for (name, router) in AGENTS.into_iter().zip(&routers) {
        let config = lab.write_agent_config(name, &[format!("https://{router}:{port}")], "")?;
        let (host, agent) = (lab.pid(&host(name))?.to_string(), lab.binary("muster-agent"));
        let agent = agent.to_string_lossy();
        lab.spawn(name, Path::new("nsenter"), &["-t", &host, "-n", &agent, "run", "--config", &config])?;
    }
    lab.wait("all agents are heard", PATIENCE, || {
        let listed = lab.ctl(COORDINATOR, &["agents", "list"])?;
        let agents = listed["agents"].as_array().context("no list")?;
        let heard = agents.iter().filter(|agent| agent["state"] == "live").count();
        Ok((heard == AGENTS.len()).then_some(()))
    })?;
    // The process is gone, the host is not.
    lab.kill("web-1", Signal::SIGKILL)?;
    let title = paged(&lab, "web-1")?;
    let expected = format!("the host answers on {PORT} from 3 peers: it lives, its agent is down");
    ensure!(title.contains(&expected), "expected {expected:?}: {title}");
    // The host is gone as far as anybody can see. The agent that was killed cannot be asked.
    ip(&["link", "set", "to-2", "down"])?;
    let title = paged(&lab, "web-2")?;
    let expected = "nobody reaches 10.99.2.2 (2 peers asked): the host or its network is down";
    ensure!(title.contains(expected), "expected {expected:?}: {title}");
    say!("agents on four hosts told a dead agent from a host that is gone");
    Ok(())
}

/// Name of the process that keeps a host.
fn host(agent: &str) -> String {
    format!("host-of-{agent}")
}

/// Where the router is on the network of host `n`.
fn router(n: usize) -> String {
    format!("10.99.{n}.1")
}

/// A host with an address, a way to the others, and a port on which somebody listens.
fn add_host(lab: &Lab, agent: &str, n: usize) -> Result<()> {
    let own = std::env::current_exe()?;
    let own = own.to_string_lossy();
    let service = ["-n", &*own, "demo-service", "--address", "0.0.0.0", "--port", PORT];
    lab.spawn(&host(agent), Path::new("unshare"), &service)?;
    let pid = lab.pid(&host(agent))?;
    let ours = fs::read_link("/proc/self/ns/net")?;
    lab.wait("the host has a network of its own", Duration::from_secs(10), || {
        Ok((fs::read_link(format!("/proc/{pid}/ns/net"))? != ours).then_some(()))
    })?;
    let (inner, outer, pid) = (format!("eth-{n}"), format!("to-{n}"), pid.to_string());
    ip(&["link", "add", &outer, "type", "veth", "peer", "name", &inner])?;
    ip(&["address", "add", &format!("{}/24", router(n)), "dev", &outer])?;
    ip(&["link", "set", &outer, "up"])?;
    ip(&["link", "set", &inner, "netns", &pid])?;
    let enter = ["-t", &pid, "-n", "ip"];
    let inside = |arguments: &[&str]| run_to_end("nsenter", &[enter.as_slice(), arguments].concat());
    inside(&["link", "set", "lo", "up"])?;
    inside(&["address", "add", &format!("10.99.{n}.2/24"), "dev", &inner])?;
    inside(&["link", "set", &inner, "up"])?;
    inside(&["route", "add", "default", "via", &router(n)])
}

/// The coordinator of a lab listens on loopback, and names itself so.
fn listen_everywhere(config: &Path) -> Result<()> {
    let text = fs::read_to_string(config)?.replace("grpc = \"127.0.0.1:", "grpc = \"0.0.0.0:");
    let lines = text.lines().map(|line| if line.starts_with("endpoints = ") { "endpoints = []" } else { line });
    Ok(fs::write(config, lines.collect::<Vec<_>>().join("\n"))?)
}

/// The title of the page about an agent's silence, once it is there.
fn paged(lab: &Lab, agent: &str) -> Result<String> {
    let cause = format!("host/{agent}/agent");
    let (title, _) = lab.wait(&format!("a page about {agent}"), PATIENCE, || {
        let calls = lab.receiver.calls(WEBHOOK_PATH);
        let page = calls.iter().find(|call| call.text("/cause_key") == cause && call.text("/action") == "trigger");
        Ok(page.map(|page| page.text("/title").to_owned()))
    })?;
    Ok(title)
}

fn ip(arguments: &[&str]) -> Result<()> {
    run_to_end("ip", arguments)
}

fn run_to_end(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}: {told}", arguments.join(" "), output.status);
    Ok(())
}

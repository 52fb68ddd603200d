//! The coordinator under measurement: a release build, alone in its process, with a config for a large fleet.

use super::http2::Operator;
use super::pages::HOLDS;
use super::papers::{Papers, credentials};
use super::swarm::{Manner, Swarm, allow_descriptors};
use crate::lab::{Lab, WEBHOOK_PATH};
use anyhow::{Context, Result};
use muster_common::tls::client_config;
use nix::sys::signal::Signal;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The coordinator's name.
const COORDINATOR: &str = "coord";
/// Any certificate of the fleet, as a pattern for all others.
const PATTERN: &str = "pattern";

/// What is set.
pub(crate) struct Stage {
    pub(crate) lab: Lab,
    pub(crate) swarm: Swarm,
    /// From the last welcome to a figure: first heartbeats, queues that empty, memory that is given back.
    pub(crate) settle: Duration,
    /// Waits little and measures few.
    pub(crate) brisk: bool,
    target: SocketAddr,
}

/// Of [`Stage::settle`].
const SETTLE: Duration = Duration::from_secs(12);
const SETTLE_BRISK: Duration = Duration::from_secs(3);
/// Longest back-off that the coordinator counts with where figures say nothing: a short re-hear window.
const RECONNECT_MAX_BRISK: &str = "reconnect_max = \"3s\"\n";

/// One look at the coordinator's process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    /// In memory.
    pub(crate) rss_kib: u64,
    /// User and system time of all threads.
    pub(crate) cpu: Duration,
}

impl Stage {
    /// Starts a coordinator and makes a fleet that sleeps.
    pub(crate) fn set(programs: PathBuf, manner: Manner, brisk: bool, keep: bool) -> Result<Self> {
        allow_descriptors(manner.agents)?;
        let mut lab = Lab::with(programs, "fleet-sim", keep)?;
        lab.prepare_coordinators(&[COORDINATOR])?;
        lab.issue("agent", PATTERN)?;
        let (grpc, http) = lab.ports(COORDINATOR)?;
        let dir = lab.path(&format!("coordinator/{COORDINATOR}"));
        fs::create_dir_all(&dir)?;
        let config = format!(
            "[listen]\ngrpc = \"127.0.0.1:{grpc}\"\nhttp = \"127.0.0.1:{http}\"\n\n{tls}\n\
             [store]\nurl = \"sqlite:{dir}/journal.db\"\n\n\
             [liveness]\nheartbeat = \"{heartbeat}ms\"\n{reconnect_max}\n\
             [[receiver.webhook]]\nname = \"hook\"\nurl = \"http://{receiver}{WEBHOOK_PATH}\"\n\n{HOLDS}",
            tls = lab.tls_table(COORDINATOR),
            heartbeat = manner.heartbeat.as_millis(),
            reconnect_max = if brisk { RECONNECT_MAX_BRISK } else { "" },
            receiver = lab.receiver.address,
        );
        let path = format!("{dir}/coordinator.toml");
        fs::write(&path, config)?;
        lab.run("muster-coordinator", &["check-config", "--config", &path])?;
        lab.start_coordinator(COORDINATOR)?;
        let target = SocketAddr::from(([127, 0, 0, 1], grpc));
        let papers = Papers::new(&lab.root.join("ca"), &lab.root.join(format!("tls/{PATTERN}")))?;
        let swarm = Swarm::new(&papers, target, manner)?;
        let settle = if brisk { SETTLE_BRISK } else { SETTLE };
        Ok(Self { lab, swarm, settle, brisk, target })
    }

    /// Looks at the coordinator.
    pub(crate) fn look(&self) -> Result<Look> {
        let pid = self.lab.pid(COORDINATOR)?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let rss_kib = rss.split_whitespace().next().context("no VmRSS")?.parse()?;
        // In nanoseconds, where stat(5) counts hundredths of a second.
        let mut cpu = Duration::ZERO;
        for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let nanos = text.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0);
            cpu += Duration::from_nanos(nanos);
        }
        Ok(Look { rss_kib, cpu })
    }

    /// Ends the coordinator without a word and starts it again; everything that was connected is cut off. Agents wait at
    /// the gate until it is opened.
    pub(crate) fn restart(&self) -> Result<()> {
        self.swarm.common.gate.send_replace(false);
        self.lab.kill(COORDINATOR, Signal::SIGKILL)?;
        self.swarm.until_connected(0, Duration::from_secs(60))?;
        self.lab.start_coordinator(COORDINATOR)
    }

    /// Lets all who wait connect.
    pub(crate) fn open_gate(&self) {
        self.swarm.common.gate.send_replace(true);
    }

    /// An operator's connection, on the current runtime.
    pub(crate) async fn operator(&self) -> Result<Operator> {
        let credentials = credentials(&self.lab.root.join("tls/alice"))?;
        Operator::connect(self.target, client_config(&credentials)?).await
    }

    /// Pid of the coordinator, for whoever wants to profile it.
    pub(crate) fn pid(&self) -> Result<i32> {
        self.lab.pid(COORDINATOR)
    }
}

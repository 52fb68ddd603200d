//! The ground: ten services with what there is to watch about them, a coordinator, and configs for agents.

use super::child::Logged;
use crate::lab::{self, Lab, free_port};
use crate::suite::build;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Services, each with a pid file and two ports.
pub(crate) const SERVICES: usize = 10;
/// Services that have a database as well, and those that write a log.
const WITH_DATABASE: usize = 5;
/// Services that are units of systemd, where units are asked for.
const WITH_UNIT: usize = 5;
/// The coordinator's name.
const COORDINATOR: &str = "coord";
/// Nothing takes this long; it ends a bench that hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Everything.
pub(crate) struct Stage {
    pub(crate) lab: Lab,
    pub(crate) coordinator: Logged,
    ports: Vec<[u16; 2]>,
    agent: PathBuf,
    with_units: bool,
}

/// What is measured, and what is only needed for it.
pub(crate) struct Programs {
    /// The agent as it is shipped.
    pub(crate) agent: PathBuf,
    /// The folder of the others.
    pub(crate) others: PathBuf,
}

impl Programs {
    /// Those of one folder, or built: the agent as it is shipped and the rest as it comes.
    pub(crate) fn get(folder: Option<&Path>) -> Result<Self> {
        Ok(match folder {
            Some(folder) => Self { agent: folder.join("muster-agent"), others: folder.to_owned() },
            None => Self { agent: build_agent()?, others: lab::build()? },
        })
    }
}

/// What the agent of one measurement is like.
pub(crate) struct AgentPlan<'a> {
    pub(crate) name: &'a str,
    /// Of every probe.
    pub(crate) interval: &'a str,
    /// More services, as TOML.
    pub(crate) more: &'a str,
    /// What it logs.
    pub(crate) filter: Option<&'a str>,
}

impl Stage {
    /// Starts all but an agent; with units it needs systemd, and root.
    pub(crate) fn set_with(programs: &Programs, heartbeat: &str, keep: bool, with_units: bool) -> Result<Self> {
        let mut lab = Lab::with(programs.others.clone(), "bench", keep)?;
        let agent = programs.agent.clone();
        for folder in ["run", "data", "log", "services"] {
            fs::create_dir_all(lab.root.join(folder))?;
        }
        let ports = (0..SERVICES).map(|_| Ok([free_port()?, free_port()?])).collect::<Result<Vec<_>>>()?;
        lab.prepare_coordinators(&[COORDINATOR])?;
        lab.write_coordinator_config(COORDINATOR, None, "")?;
        let config = lab.path(&format!("coordinator/{COORDINATOR}/coordinator.toml"));
        let text = fs::read_to_string(&config)?;
        let quick = "heartbeat = \"1s\"";
        ensure!(text.contains(quick), "the lab's heartbeat is not where it was");
        fs::write(&config, text.replace(quick, &format!("heartbeat = {heartbeat:?}")))?;
        let filter = Some("warn,muster_coordinator::service::agent_link=trace");
        let program = lab.binary("muster-coordinator");
        let coordinator = Logged::start(&lab, COORDINATOR, &program, &["run", "--config", &config], filter)?;
        let stage = Self { lab, coordinator, ports, agent, with_units };
        for index in 0..SERVICES {
            stage.start_service(index)?;
        }
        for index in 0..SERVICES {
            stage.lab.wait("a service is ready", PATIENCE, || {
                Ok(Path::new(&stage.pid_file(index)).exists().then_some(()))
            })?;
        }
        Ok(stage)
    }

    /// Name of a service in the config.
    pub(crate) fn service(index: usize) -> String {
        format!("bench-{index}")
    }

    fn pid_file(&self, index: usize) -> String {
        self.lab.path(&format!("run/{}.pid", Self::service(index)))
    }

    /// Starts one of the ten services.
    pub(crate) fn start_service(&self, index: usize) -> Result<()> {
        let pid_file = self.pid_file(index);
        let ports = self.ports.get(index).context("no such service")?.map(|port| port.to_string());
        let database = self.database(index);
        let mut arguments = vec!["bench-service", "--pid-file", &pid_file];
        ports.iter().for_each(|port| arguments.extend(["--port", port.as_str()]));
        if index < WITH_DATABASE {
            arguments.extend(["--database", &database]);
        }
        let program = std::env::current_exe()?;
        if let Some(unit) = self.unit(index) {
            let own = std::process::id().to_string();
            let mut command = Command::new("systemd-run");
            command.args(["--quiet", "--collect", "--service-type=exec", "--unit", &unit]);
            let status = command.arg(program).args(arguments).args(["--lives-for", &own]).status()?;
            ensure!(status.success(), "{unit} cannot be started: {status}");
            return Ok(());
        }
        let child = Command::new(program).args(arguments).stdin(std::process::Stdio::null()).spawn()?;
        self.lab.adopt(&Self::service(index), child)
    }

    /// The unit that one of the services is.
    fn unit(&self, index: usize) -> Option<String> {
        let is_unit = self.with_units && index < WITH_UNIT;
        is_unit.then(|| format!("muster-{}-{}.service", std::process::id(), Self::service(index)))
    }

    /// All units.
    pub(crate) fn units(&self) -> Vec<String> {
        (0..SERVICES).filter_map(|index| self.unit(index)).collect()
    }

    /// `kill -9`.
    pub(crate) fn kill_service(&self, index: usize) -> Result<()> {
        let Some(unit) = self.unit(index) else { return self.lab.kill(&Self::service(index), Signal::SIGKILL) };
        systemctl(&["kill", "--signal=KILL", &unit])?;
        // Its name is free again when systemd has forgotten it.
        self.lab.wait("a unit is gone", PATIENCE, || {
            Ok((systemctl(&["show", "--property=LoadState", &unit])?.trim() != "LoadState=loaded").then_some(()))
        })?;
        Ok(())
    }

    fn database(&self, index: usize) -> String {
        self.lab.path(&format!("data/{}.db", Self::service(index)))
    }

    /// Log files of the services.
    pub(crate) fn logs(&self) -> Vec<String> {
        (WITH_DATABASE..SERVICES)
            .map(|index| self.lab.path(&format!("services/{}.log", Self::service(index))))
            .collect()
    }

    /// Ports, for peers that watch them, too.
    pub(crate) fn all_ports(&self) -> impl Iterator<Item = u16> + '_ {
        self.ports.iter().flatten().copied()
    }

    /// Pid files, for peers.
    pub(crate) fn all_pid_files(&self) -> impl Iterator<Item = String> + '_ {
        (0..SERVICES).map(|index| self.pid_file(index))
    }

    /// Databases, for peers.
    pub(crate) fn all_databases(&self) -> impl Iterator<Item = String> + '_ {
        (0..WITH_DATABASE).map(|index| self.database(index))
    }

    /// Writes one ordinary line to each log, a second apart, until the sender is dropped.
    pub(crate) fn write_logs(&self) -> Result<std::sync::mpsc::Sender<()>> {
        let open = |path: &String| fs::File::options().create(true).append(true).open(path);
        let mut files = self.logs().iter().map(open).collect::<std::io::Result<Vec<_>>>()?;
        let (guard, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut line = 0u64;
            while ended.recv_timeout(Duration::from_secs(1)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                line += 1;
                for file in &mut files {
                    drop(writeln!(file, "2026-01-01T00:00:00Z INFO request {line} served in 12 ms"));
                }
            }
        });
        Ok(guard)
    }

    /// Starts an agent and waits until the coordinator hears it.
    pub(crate) fn start_agent(&self, plan: &AgentPlan<'_>) -> Result<Logged> {
        let dir = self.lab.path(&format!("agent/{}", plan.name));
        fs::create_dir_all(&dir)?;
        if !self.lab.root.join(format!("tls/{}/cert.pem", plan.name)).exists() {
            self.lab.issue("agent", plan.name)?;
        }
        let path = format!("{dir}/agent.toml");
        fs::write(&path, self.agent_config(plan, &dir)?)?;
        self.lab.run("muster-agent", &["check-config", "--config", &path])?;
        self.coordinator.skip();
        let agent = Logged::start(&self.lab, plan.name, &self.agent, &["run", "--config", &path], plan.filter)?;
        self.coordinator.until(&[&format!("agent={}", plan.name), "heartbeat"], PATIENCE)?;
        Ok(agent)
    }

    fn agent_config(&self, plan: &AgentPlan<'_>, dir: &str) -> Result<String> {
        let interval = plan.interval;
        let mut config = format!(
            "[agent]\nstate_dir = \"{dir}/state\"\nsocket = \"{dir}/agent.sock\"\n\n{tls}\n\
             [coordinator]\nendpoints = [{endpoint:?}]\n\n\
             [memory]\napproaching = \"64MiB\"\ncritical = \"32MiB\"\n\n[probes]\n",
            tls = self.lab.tls_table(plan.name),
            endpoint = self.lab.endpoint(COORDINATOR)?,
        );
        let probes =
            ["pid_file", "port", "memory", "oom", "sqlite", "unit", "process", "lock", "log", "disk", "pressure"];
        probes.iter().for_each(|probe| config.push_str(&format!("{probe} = {interval:?}\n")));
        for (index, ports) in self.ports.iter().enumerate() {
            let service = Self::service(index);
            let [first, second] = ports.map(|port| format!("127.0.0.1:{port}"));
            config.push_str(&format!(
                "\n[service.{service}]\npid_file = {:?}\nports = [{first:?}, {second:?}]\n",
                self.pid_file(index)
            ));
            if let Some(unit) = self.unit(index) {
                config.push_str(&format!("unit = {unit:?}\n"));
            }
            if index < WITH_DATABASE {
                config.push_str(&format!("sqlite = [{:?}]\n", self.database(index)));
            } else {
                config.push_str(&format!("logs = [{:?}]\n", self.lab.path(&format!("services/{service}.log"))));
            }
        }
        Ok(config + "\n" + plan.more)
    }
}

fn systemctl(arguments: &[&str]) -> Result<String> {
    let output = Command::new("systemctl").args(arguments).output()?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "systemctl {}: {errors}", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether there is a systemd whose units can be watched.
pub(crate) fn has_systemd() -> bool {
    Path::new("/run/systemd/system").exists()
}

/// The agent with the profile it is shipped with.
fn build_agent() -> Result<PathBuf> {
    crate::say!("building muster-agent with the profile it is shipped with …");
    Ok(build(&["--profile", "agent", "--package", "muster-agent"], "agent")?.join("muster-agent"))
}

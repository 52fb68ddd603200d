//! A fleet on one machine, for the demo and the drills: certificates, coordinators, agents and services as real
//! processes with their own state, under one temporary folder.
//!
//! Everything started here is ended here, also on Ctrl-C: each child is in its own process group, so that the terminal's
//! signal reaches only us, and we end what we started, by pid.

pub(crate) mod receiver;
pub(crate) mod service;

use crate::{say, suite};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use receiver::Receiver;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Name of the fleet in all certificates.
const FLEET: &str = "lab";
/// A routing key of the right form; it opens nothing.
const ROUTING_KEY: &str = "0123456789abcdef0123456789abcdef";
/// Names under which a coordinator is reached on this machine.
const LOCAL: [&str; 2] = ["localhost", "127.0.0.1"];
/// Path of the webhook on the receiver.
pub(crate) const WEBHOOK_PATH: &str = "/hook";
/// Path at which the receiver refuses whatever it is told, for good.
pub(crate) const REFUSING_PATH: &str = "/refusing";
/// Path of the PagerDuty stand-in on the receiver.
pub(crate) const PAGERDUTY_PATH: &str = "/v2/enqueue";

/// Children by name; shared with the thread that waits for Ctrl-C.
type Children = Arc<Mutex<BTreeMap<String, Child>>>;

/// The fleet.
pub(crate) struct Lab {
    /// Everything is below.
    pub(crate) root: PathBuf,
    /// Where pages arrive.
    pub(crate) receiver: Receiver,
    /// Ports of coordinators by name: (gRPC, HTTP).
    ports: BTreeMap<String, (u16, u16)>,
    binaries: PathBuf,
    children: Children,
    keep: bool,
}

/// Timing of a lab's fleet: quick, so that a demo takes minutes and not hours.
const HEARTBEAT: &str = "1s";

impl Lab {
    /// Builds the binaries and makes an empty fleet with a certificate authority. `keep` leaves the folder behind.
    pub(crate) fn new(name: &str, keep: bool) -> Result<Self> {
        Self::with(build()?, name, keep)
    }

    /// The same with programs that are there already.
    pub(crate) fn with(binaries: PathBuf, name: &str, keep: bool) -> Result<Self> {
        let root = tempfile::Builder::new().prefix(&format!("muster-{name}-")).tempdir()?.keep();
        let children = Children::default();
        end_on_signal(&children, &root, keep)?;
        let receiver = Receiver::start()?;
        let lab = Self { root, receiver, ports: BTreeMap::new(), binaries, children, keep };
        let ca = lab.path("ca");
        lab.run("muster-coordinator", &["ca", "init", "--dir", &ca, "--fleet", FLEET])?;
        lab.issue("operator", "alice")?;
        Ok(lab)
    }

    /// An absolute path below the lab's folder, as text.
    pub(crate) fn path(&self, relative: &str) -> String {
        self.root.join(relative).to_string_lossy().into_owned()
    }

    /// Path of one of our binaries.
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    /// Issues a certificate into `tls/NAME`.
    pub(crate) fn issue(&self, role: &str, name: &str) -> Result<()> {
        let names: &[&str] = if role == "coordinator" { &LOCAL } else { &[] };
        self.issue_at(role, name, names)
    }

    fn issue_at(&self, role: &str, name: &str, addresses: &[&str]) -> Result<()> {
        let (ca, out) = (self.path("ca"), self.path(&format!("tls/{name}")));
        let mut arguments = vec!["ca", "issue", "--dir", &ca, "--role", role, "--name", name, "--out", &out];
        arguments.extend(addresses.iter().flat_map(|address| ["--san", *address]));
        self.run("muster-coordinator", &arguments)?;
        Ok(())
    }

    /// The `[tls]` table of a config, for the certificate that was issued to `name`.
    pub(crate) fn tls_table(&self, name: &str) -> String {
        let file = |file: &str| self.path(&format!("tls/{name}/{file}"));
        format!("[tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n", file("ca.pem"), file("cert.pem"), file("key.pem"))
    }

    /// Chooses ports and issues certificates for coordinators, so that each can name the others.
    pub(crate) fn prepare_coordinators(&mut self, names: &[&str]) -> Result<()> {
        for name in names {
            self.ports.insert((*name).to_owned(), (free_port()?, free_port()?));
            self.issue("coordinator", name)?;
        }
        Ok(())
    }

    /// The same for one that is reached under these addresses, too.
    pub(crate) fn prepare_coordinator_at(&mut self, name: &str, addresses: &[&str]) -> Result<()> {
        self.ports.insert(name.to_owned(), (free_port()?, free_port()?));
        self.issue_at("coordinator", name, &[LOCAL.as_slice(), addresses].concat())
    }

    /// Ports of a coordinator: (gRPC, HTTP).
    pub(crate) fn ports(&self, name: &str) -> Result<(u16, u16)> {
        self.ports.get(name).copied().with_context(|| format!("no coordinator {name}"))
    }

    /// `https://localhost:PORT` of a coordinator.
    pub(crate) fn endpoint(&self, name: &str) -> Result<String> {
        let (grpc, _) = self.ports.get(name).with_context(|| format!("no coordinator {name}"))?;
        Ok(format!("https://localhost:{grpc}"))
    }

    /// Writes the config of a coordinator; `follows` makes it a standby.
    pub(crate) fn write_coordinator_config(&self, name: &str, follows: Option<&str>, extra: &str) -> Result<()> {
        let (grpc, http) = self.ports.get(name).with_context(|| format!("no coordinator {name}"))?;
        let dir = self.path(&format!("coordinator/{name}"));
        fs::create_dir_all(&dir)?;
        let key_file = format!("{dir}/pagerduty.key");
        fs::write(&key_file, ROUTING_KEY)?;
        let peers: Vec<String> =
            self.ports.keys().filter(|peer| *peer != name).map(|peer| self.endpoint(peer)).collect::<Result<_>>()?;
        let endpoints: Vec<String> = self.ports.keys().map(|name| self.endpoint(name)).collect::<Result<_>>()?;
        let follow = match follows {
            Some(primary) => format!("follow = {:?}\n", self.endpoint(primary)?),
            None => String::new(),
        };
        let address = self.receiver.address;
        let config = format!(
            "[listen]\ngrpc = \"127.0.0.1:{grpc}\"\nhttp = \"127.0.0.1:{http}\"\nunix = \"{dir}/operator.sock\"\n\n\
             {tls}\n[store]\nurl = \"sqlite:{dir}/journal.db\"\n\n\
             [advertise]\nendpoints = {endpoints:?}\n\n\
             [failover]\n{follow}peers = {peers:?}\n\n\
             [liveness]\nheartbeat = {HEARTBEAT:?}\nstale_after = 3\nreconnect_max = \"4s\"\n\n\
             [[receiver.webhook]]\nname = \"hook\"\nurl = \"http://{address}{WEBHOOK_PATH}\"\n\n\
             [[receiver.pagerduty]]\nname = \"pagerduty\"\nurl = \"http://{address}{PAGERDUTY_PATH}\"\n\
             routing_key_file = {key_file:?}\n\n{extra}",
            tls = self.tls_table(name),
        );
        let path = format!("{dir}/coordinator.toml");
        fs::write(&path, config)?;
        self.run("muster-coordinator", &["check-config", "--config", &path])?;
        Ok(())
    }

    /// Starts a coordinator whose config was written, and waits until its HTTP side answers.
    pub(crate) fn start_coordinator(&self, name: &str) -> Result<()> {
        let config = self.path(&format!("coordinator/{name}/coordinator.toml"));
        self.spawn(name, &self.binary("muster-coordinator"), &["run", "--config", &config])?;
        let (_, http) = self.ports.get(name).with_context(|| format!("no coordinator {name}"))?;
        self.wait(&format!("{name} listens"), Duration::from_secs(20), || {
            Ok(std::net::TcpStream::connect(("127.0.0.1", *http)).is_ok().then_some(()))
        })?;
        Ok(())
    }

    /// Writes the config of an agent whose services are `services` (TOML), issues its certificate, and starts it.
    pub(crate) fn start_agent(&self, name: &str, services: &str) -> Result<()> {
        let endpoints: Vec<String> = self.ports.keys().map(|name| self.endpoint(name)).collect::<Result<_>>()?;
        let config = self.write_agent_config(name, &endpoints, services)?;
        self.spawn(name, &self.binary("muster-agent"), &["run", "--config", &config])
    }

    /// Writes the config of an agent that asks for its coordinator at `endpoints`, and issues its certificate.
    pub(crate) fn write_agent_config(&self, name: &str, endpoints: &[String], services: &str) -> Result<String> {
        let dir = self.path(&format!("agent/{name}"));
        fs::create_dir_all(&dir)?;
        let certificate = self.root.join(format!("tls/{name}/cert.pem"));
        if !certificate.exists() {
            self.issue("agent", name)?;
        }
        let config = format!(
            "[agent]\nstate_dir = \"{dir}/state\"\nsocket = \"{dir}/agent.sock\"\nlabels = {{ zone = \"lab\" }}\n\n\
             {tls}\n[coordinator]\nendpoints = {endpoints:?}\n\n\
             [memory]\napproaching = \"64MiB\"\ncritical = \"32MiB\"\n\n\
             [probes]\npid_file = \"1s\"\nport = \"1s\"\nmemory = \"1s\"\noom = \"1s\"\nsqlite = \"1s\"\n\
             sqlite_quick = \"2s\"\n\
             backup = \"1s\"\nlog = \"1s\"\nquery = \"1s\"\n\n{services}",
            tls = self.tls_table(name),
        );
        let path = format!("{dir}/agent.toml");
        fs::create_dir_all(format!("{dir}/state"))?;
        fs::write(&path, config)?;
        self.run("muster-agent", &["check-config", "--config", &path])?;
        Ok(path)
    }

    /// Starts one of the small services under `name` (`HOST.SERVICE` or `SERVICE`). It is this very program under the
    /// service's name, so that agents see a process of that name.
    pub(crate) fn start_service(&self, name: &str, arguments: &[&str]) -> Result<()> {
        let folder = self.root.join("bin");
        fs::create_dir_all(&folder)?;
        let program = folder.join(name.rsplit('.').next().unwrap_or(name));
        if !program.exists() {
            std::os::unix::fs::symlink(std::env::current_exe()?, &program)?;
        }
        let mut all = vec!["demo-service"];
        all.extend(arguments);
        self.spawn(name, &program, &all)
    }

    /// Starts a program under `name`; what it says goes into its log.
    pub(crate) fn spawn(&self, name: &str, program: &Path, arguments: &[&str]) -> Result<()> {
        fs::create_dir_all(self.root.join("log"))?;
        let log = fs::OpenOptions::new().create(true).append(true).open(self.root.join(format!("log/{name}.log")))?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .env_remove("NOTIFY_SOCKET")
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        self.adopt(name, child)
    }

    /// Takes over a child that was started elsewhere, to end it with the others.
    pub(crate) fn adopt(&self, name: &str, child: Child) -> Result<()> {
        let old = lock(&self.children).insert(name.to_owned(), child);
        ensure!(old.is_none(), "{name} was started twice");
        Ok(())
    }

    /// Pid of a running child.
    pub(crate) fn pid(&self, name: &str) -> Result<i32> {
        let children = lock(&self.children);
        Ok(i32::try_from(children.get(name).with_context(|| format!("{name} does not run"))?.id())?)
    }

    /// Sends `signal` to a child and, if it should end by it, reaps it.
    pub(crate) fn kill(&self, name: &str, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid(name)?), signal)?;
        if matches!(signal, Signal::SIGKILL | Signal::SIGTERM) {
            let child = lock(&self.children).remove(name);
            if let Some(mut child) = child {
                reap(&mut child)?;
            }
        }
        Ok(())
    }

    /// Fails if a child that should run has ended.
    pub(crate) fn check_running(&self, names: &[&str]) -> Result<()> {
        for name in names {
            let mut children = lock(&self.children);
            let child = children.get_mut(*name).with_context(|| format!("{name} does not run"))?;
            if let Some(status) = child.try_wait()? {
                bail!("{name} ended by itself ({status}); see {}", self.root.join("log").join(name).display());
            }
        }
        Ok(())
    }

    /// Runs one of our binaries to its end; its output is in the error when it fails.
    pub(crate) fn run(&self, binary: &str, arguments: &[&str]) -> Result<String> {
        let output = Command::new(self.binary(binary)).args(arguments).stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("{binary} {} failed ({}):\n{text}{errors}", arguments.join(" "), output.status);
        }
        Ok(text)
    }

    /// Arguments that let `musterctl` talk to a coordinator as operator.
    pub(crate) fn ctl_arguments(&self, coordinator: &str) -> Result<Vec<String>> {
        let file = |file: &str| self.path(&format!("tls/alice/{file}"));
        let pairs = [
            ("--endpoint", self.endpoint(coordinator)?),
            ("--ca", file("ca.pem")),
            ("--cert", file("cert.pem")),
            ("--key", file("key.pem")),
        ];
        Ok(pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect())
    }

    /// Runs `musterctl …` against a coordinator; what it prints.
    pub(crate) fn ctl_text(&self, coordinator: &str, arguments: &[&str]) -> Result<String> {
        let mut all = self.ctl_arguments(coordinator)?;
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        self.run("musterctl", &all)
    }

    /// Runs `musterctl … --format json` against a coordinator.
    pub(crate) fn ctl(&self, coordinator: &str, arguments: &[&str]) -> Result<Value> {
        let text = self.ctl_text(coordinator, &[&["--format", "json"], arguments].concat())?;
        serde_json::from_str(&text).with_context(|| format!("musterctl printed no JSON: {text}"))
    }

    /// Asks `question` until it answers or `limit` is over; returns the answer and how long it took.
    pub(crate) fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut question: impl FnMut() -> Result<Option<T>>,
    ) -> Result<(T, Duration)> {
        let start = Instant::now();
        let mut last_error = None;
        while start.elapsed() < limit {
            match question() {
                Ok(Some(answer)) => return Ok((answer, start.elapsed())),
                Ok(None) => last_error = None,
                Err(error) => last_error = Some(error),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        match last_error {
            Some(error) => Err(error.context(format!("after {limit:?} still not: {what}"))),
            None => bail!("after {limit:?} still not: {what}"),
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        end_all(&self.children);
        clean(&self.root, self.keep);
    }
}

fn clean(root: &Path, keep: bool) {
    if keep {
        say!("kept: {}", root.display());
    } else if let Err(error) = fs::remove_dir_all(root) {
        say!("cannot remove {}: {error}", root.display());
    }
}

fn lock(children: &Children) -> std::sync::MutexGuard<'_, BTreeMap<String, Child>> {
    children.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn reap(child: &mut Child) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        if child.try_wait()?.is_some() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill()?;
    child.wait()?;
    bail!("process {} had to be killed", child.id())
}

fn end_all(children: &Children) {
    let mut children = lock(children);
    for child in children.values_mut() {
        // Already ended is fine.
        drop(child.kill());
        drop(child.wait());
    }
    children.clear();
}

/// Ends all children and the process on Ctrl-C or SIGTERM. A handler, not a blocked signal: children would inherit the
/// mask and never hear us.
fn end_on_signal(children: &Children, root: &Path, keep: bool) -> Result<()> {
    let (children, root) = (Arc::clone(children), root.to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        let number = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => SignalKind::interrupt(),
                _ = terminate.recv() => SignalKind::terminate(),
            }
        });
        say!("\ninterrupted: ending what was started");
        end_all(&children);
        clean(&root, keep);
        std::process::exit(128 + number.as_raw_value());
    });
    Ok(())
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// That the three binaries are up to date: set by the first to build them.
static BUILT: OnceLock<()> = OnceLock::new();

/// Builds the three binaries, unless this process did so or [`built_by_tests`], and returns their folder.
pub(crate) fn build() -> Result<PathBuf> {
    if BUILT.get().is_none() {
        say!("building muster-agent, muster-coordinator and musterctl …");
        suite::build(
            &["--package", "muster-agent", "--package", "muster-coordinator", "--package", "musterctl"],
            "debug",
        )?;
        built_by_tests();
    }
    let xtask = std::env::current_exe()?;
    Ok(xtask.parent().context("the running program has no folder")?.to_owned())
}

/// `cargo test` of the workspace has just built the same binaries, for its integration tests. To build them without its
/// packages would choose fewer features of some libraries, and so compile much again.
pub(crate) fn built_by_tests() {
    BUILT.get_or_init(|| ());
}

//! The real `muster-agent run` against the coordinator of these tests: what hangs on the host hangs alone, a spool that
//! cannot write is told, and a goodbye says why.

use crate::certificates::Ca;
use crate::fake::{Behaviour, Fake, State};
use crate::{PATIENCE, until};
use muster_common::finding::FindingEvent;
use muster_proto::{convert, v1};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

mod answers;
mod certificate;
mod hung;
mod skew;
mod spool;

/// Far longer than any test: what counts is that the agent keeps telling the service manager that it lives.
const WATCHDOG_USEC: &str = "1000000";

/// A coordinator, a folder and what an agent needs to find them.
struct Stage {
    fake: Fake,
    folder: tempfile::TempDir,
    ca: Ca,
    tls: [PathBuf; 3],
}

impl Stage {
    async fn set() -> Self {
        Self::set_with([]).await
    }

    /// The coordinator's n-th stream does the n-th of `script`.
    async fn set_with(script: impl IntoIterator<Item = Behaviour>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::new("prod");
        let fake = Fake::start_tls(script, ca.issue(folder.path(), "muster://prod/coordinator/coord-a")).await;
        let tls = ca.issue_files(folder.path(), "muster://prod/agent/web-1");
        Self { fake, folder, ca, tls }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a config with `services` in it; what the host's memory does is no part of these tests.
    fn config(&self, state: &Path, services: &str) {
        let [ca, cert, key] = self.tls.each_ref().map(|file| file.display());
        let mut text = format!(
            "[agent]\nstate_dir = \"{}\"\n[coordinator]\nendpoints = [\"{}\"]\n\
             [tls]\nca = \"{ca}\"\ncert = \"{cert}\"\nkey = \"{key}\"\n\
             [probes]\npid_file = \"1s\"\nport = \"1s\"\nsqlite = \"1s\"\ndeadline = \"1s\"\nsqlite_deadline = \"1s\"\n\
             blind_after = \"1s\"\n[memory]\napproaching = \"2B\"\ncritical = \"1B\"\n",
            state.display(),
            self.fake.endpoint(),
        );
        text.write_str(services).unwrap();
        std::fs::write(self.path("agent.toml"), text).unwrap();
    }

    /// Waits for a finding of `service` with `reason`.
    async fn hears(&self, service: &str, reason: &str) -> State {
        until(&self.fake, |state| {
            events(state).any(|event| {
                let key = event.key();
                key.subject.service.as_str() == service && key.reason.as_str() == reason
            })
        })
        .await
    }

    /// Waits until more heartbeats came than have come now.
    async fn more_heartbeats(&self) -> State {
        let now = self.fake.state().borrow().heartbeats.len();
        until(&self.fake, |state| state.heartbeats.len() > now + 3).await
    }
}

fn events(state: &State) -> impl Iterator<Item = FindingEvent> + '_ {
    state.entries.iter().map(|entry| convert::finding_event(&entry.body).unwrap())
}

/// The daemon as its service manager has it.
struct Daemon {
    child: Child,
    lines: UnboundedReceiver<String>,
    pings: Arc<AtomicUsize>,
}

impl Daemon {
    fn start(stage: &Stage) -> Self {
        Self::start_with(stage, Stdio::piped())
    }

    fn start_with(stage: &Stage, stderr: Stdio) -> Self {
        // The widest umask there is: nothing that is private may depend on it.
        let mut command = Command::new("sh");
        command.args(["-c", "umask 000; exec \"$0\" run --config \"$1\"", env!("CARGO_BIN_EXE_muster-agent")]);
        let socket = stage.path("notify.sock");
        std::fs::remove_file(&socket).ok();
        let manager = UnixDatagram::bind(&socket).unwrap();
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut child = command
            .arg(stage.path("agent.toml"))
            .env("NOTIFY_SOCKET", &socket)
            .env("WATCHDOG_USEC", WATCHDOG_USEC)
            .env("RUNTIME_DIRECTORY", stage.folder.path())
            .env_remove("WATCHDOG_PID")
            .stderr(stderr)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pings = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&pings);
        std::thread::spawn(move || {
            let mut buffer = [0; 256];
            while let Ok(count) = manager.recv(&mut buffer) {
                counted.fetch_add(usize::from(buffer.get(..count) == Some(b"WATCHDOG=1\n")), Ordering::Relaxed);
            }
        });
        let (sender, lines) = unbounded_channel();
        if let Some(stderr) = child.stderr.take().map(BufReader::new) {
            std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        }
        Self { child, lines, pings }
    }

    /// Reads its log until a line has all of `parts`.
    async fn says(&mut self, parts: &[&str]) {
        let mut before = Vec::new();
        // Whatever other lines come.
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let line = tokio::time::timeout_at(deadline, self.lines.recv()).await.ok().flatten();
            let line = line.unwrap_or_else(|| panic!("no {parts:?} in {before:#?}"));
            if parts.iter().all(|part| line.contains(part)) {
                return;
            }
            before.push(line);
        }
    }

    fn pings(&self) -> usize {
        self.pings.load(Ordering::Relaxed)
    }

    /// Waits until the watchdog heard more than it had at `pings`.
    async fn more_pings(&self, pings: usize) {
        let heard = async {
            while self.pings() <= pings {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.expect("the watchdog hears of it");
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// By SIGTERM; gives the exit status.
    async fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        let ended = async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status.code();
                }
                // The coordinator lives on this thread, and must hear the goodbye meanwhile.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.expect("the agent ends")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[tokio::test]
async fn a_goodbye_tells_a_host_that_goes_down_from_an_agent_that_stops() {
    let stage = Stage::set().await;
    stage.config(&stage.path("state"), "");
    for (sign, reason) in [(false, v1::goodbye::Reason::Shutdown), (true, v1::goodbye::Reason::HostShutdown)] {
        let mut daemon = Daemon::start(&stage);
        stage.more_heartbeats().await;
        if sign {
            std::fs::write(stage.path("host-stopping"), "").unwrap();
        }
        assert_eq!(daemon.stop().await, Some(0));
        until(&stage.fake, |state| state.goodbyes.last() == Some(&(reason as i32))).await;
    }
}

#[tokio::test]
async fn what_it_keeps_is_private_whatever_the_umask() {
    let stage = Stage::set().await;
    let state = stage.path("state");
    stage.config(&state, "[service.gone]\npid_file = \"/nonexistent/gone.pid\"\n");
    let mode = |name: &str| std::fs::metadata(state.join(name)).unwrap().mode() & 0o777;
    // The second time over files that were left open to all.
    for _ in 0..2 {
        let mut daemon = Daemon::start(&stage);
        stage.hears("gone", "pid_file_missing").await;
        stage.more_heartbeats().await;
        let modes = ["", "scratch", "lock", "spool.db", "spool.db-wal"].map(mode);
        assert_eq!(modes, [0o700, 0o700, 0o600, 0o600, 0o600], "{modes:?}");
        assert_eq!(daemon.stop().await, Some(0));
        std::fs::set_permissions(state.join("spool.db"), PermissionsExt::from_mode(0o666)).unwrap();
    }
}

/// As when journald was killed: each line that is logged is an error then.
#[tokio::test]
async fn a_log_that_nobody_reads_any_more_stops_nothing() {
    let stage = Stage::set().await;
    stage.config(&stage.path("state"), "[service.spl]\npid_file = \"/nonexistent/spl.pid\"\n");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut daemon = Daemon::start_with(&stage, writer.into());
    stage.hears("spl", "pid_file_missing").await;
    stage.more_heartbeats().await;
    assert_eq!(daemon.stop().await, Some(0));
}

//! Coordinators as they live: real processes, `kill -9`, SIGSTOP and SIGHUP, and the commands a person would type.
//! Failover here, a single one's life in [`life`].

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod credential;
mod life;

use muster_common::tls::Credentials;
use muster_coordinator::failover::client::connect;
use muster_proto::v1::failover_service_client::FailoverServiceClient;
use muster_proto::v1::fleet_service_client::FleetServiceClient;
use muster_proto::v1::{
    CoordinatorRole, GetFailoverStatusRequest, GetFailoverStatusResponse, GetFleetStatusRequest, PromoteRequest,
    PromoteResponse,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_muster-coordinator");
/// Long enough for the slowest machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// A coordinator process, killed when the test is over however it ends.
struct Process(Child);

impl Process {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        kill(pid, signal).unwrap();
    }

    fn kill_9(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone in the good case.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

struct Fleet {
    dir: TempDir,
    operator: Credentials,
    ports: [SocketAddr; 2],
}

const NAMES: [&str; 2] = ["coord-a", "coord-b"];

impl Fleet {
    /// Made by the command line alone.
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        command(&["ca", "init", "--dir", &at("ca"), "--fleet", "prod"]);
        for (role, name) in
            [("coordinator", NAMES[0]), ("coordinator", NAMES[1]), ("operator", "ann"), ("agent", "web-1")]
        {
            issue(dir.path(), role, name, name);
        }
        let operator = load(&dir.path().join("ann"));
        let free = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = free.map(|listener| listener.local_addr().unwrap());
        Self { dir, operator, ports }
    }

    fn endpoint(&self, which: usize) -> String {
        format!("https://localhost:{}", self.ports[which].port())
    }

    fn run(&self, which: usize, failover: &str) -> Process {
        let folder = self.dir.path().join(NAMES[which]);
        let config = write_config(&folder, self.ports[which], failover);
        let log = std::fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
        let child = Command::new(BINARY)
            .args(["run", "--config"])
            .arg(config)
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Process(child)
    }

    fn log(&self, which: usize) -> String {
        std::fs::read_to_string(self.dir.path().join(NAMES[which]).join("log")).unwrap_or_default()
    }

    async fn status(&self, which: usize) -> Result<GetFailoverStatusResponse, String> {
        let channel = connect(&self.endpoint(which), &self.operator).await.map_err(|error| error.to_string())?;
        let answer = FailoverServiceClient::new(channel).get_failover_status(GetFailoverStatusRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(|status| status.to_string())
    }

    /// Looks until the coordinator's status is as wanted.
    async fn until(
        &self,
        which: usize,
        what: &str,
        wanted: impl Fn(&GetFailoverStatusResponse) -> bool,
    ) -> GetFailoverStatusResponse {
        let mut last = String::new();
        let looking = async {
            loop {
                match self.status(which).await {
                    Ok(status) if wanted(&status) => return status,
                    Ok(status) => last = format!("{status:?}"),
                    Err(error) => last = error,
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, looking).await;
        found.unwrap_or_else(|_| panic!("{} {what}? {last}\n{}", NAMES[which], self.log(which)))
    }

    async fn in_step(&self, primary: usize, standby: usize) {
        self.until(standby, "in step", |status| {
            status.following && status.journal_index > 0 && status.journal_index == status.primary_journal_index
        })
        .await;
        self.until(primary, "sees its standby", |status| !status.standbys.is_empty()).await;
    }

    async fn promote(&self, force: bool) -> Result<PromoteResponse, tonic::Status> {
        let channel = connect(&self.endpoint(1), &self.operator).await.unwrap();
        let request = PromoteRequest { old_primary: NAMES[0].into(), force, reason: "drill".into() };
        FailoverServiceClient::new(channel).promote(request).await.map(tonic::Response::into_inner)
    }
}

fn issue(dir: &Path, role: &str, name: &str, folder: &str) {
    let at = |name: &str| dir.join(name).display().to_string();
    let san = ["--san", "127.0.0.1", "--san", "localhost"];
    let issue = ["ca", "issue", "--dir", &at("ca"), "--role", role, "--name", name, "--out", &at(folder)];
    command(&[issue.as_slice(), san.as_slice()].concat());
}

fn command(args: &[&str]) {
    let output = Command::new(BINARY).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn load(dir: &Path) -> Credentials {
    Credentials::load(&dir.join("ca.pem"), &dir.join("cert.pem"), &dir.join("key.pem")).unwrap()
}

fn write_config(folder: &Path, grpc: SocketAddr, failover: &str) -> PathBuf {
    let at = |file: &str| folder.join(file).display().to_string();
    let text = format!(
        "[listen]\ngrpc = \"{grpc}\"\nhttp = \"127.0.0.1:0\"\nunix = \"{}\"\n[tls]\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n\
         [store]\nurl = \"sqlite:{}\"\n[failover]\n{failover}\n",
        at("sock"),
        at("ca.pem"),
        at("cert.pem"),
        at("key.pem"),
        at("journal.db"),
    );
    let path = folder.join("coordinator.toml");
    std::fs::write(&path, text).unwrap();
    path
}

fn is(role: CoordinatorRole) -> impl Fn(&GetFailoverStatusResponse) -> bool {
    move |status| status.role() == role
}

#[tokio::test]
async fn kill_9_promote_and_come_back() {
    let fleet = Fleet::new();
    let follow_a = format!("follow = \"{}\"", fleet.endpoint(0));
    let peers_b = format!("peers = [\"{}\"]", fleet.endpoint(1));
    let a = fleet.run(0, &peers_b);
    fleet.until(0, "reigns", is(CoordinatorRole::Primary)).await;
    let b = fleet.run(1, &follow_a);
    fleet.in_step(0, 1).await;

    let refused = fleet.promote(false).await.unwrap_err();
    assert!(refused.message().contains("not met: the old primary does not reign"), "{}", refused.message());
    a.kill_9();
    let promoted = fleet.promote(false).await.unwrap_or_else(|status| panic!("{}", status.message()));
    assert_eq!(promoted.epoch.map(|epoch| epoch.number), Some(2));
    fleet.until(1, "reigns", is(CoordinatorRole::Primary)).await;

    // Back with its old config: fenced by asking, and still readable.
    let a = fleet.run(0, &peers_b);
    fleet.until(0, "is fenced", is(CoordinatorRole::Fenced)).await;
    let channel = connect(&fleet.endpoint(0), &fleet.operator).await.unwrap();
    let read = FleetServiceClient::new(channel).get_fleet_status(GetFleetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(read.role, "fenced");
    a.kill_9();
    // Told to follow, it becomes the standby; and the new primary survives its own kill -9.
    let _a = fleet.run(0, &format!("follow = \"{}\"", fleet.endpoint(1)));
    fleet.in_step(1, 0).await;
    b.kill_9();
    let _b = fleet.run(1, &follow_a);
    let status = fleet.until(1, "reigns again", is(CoordinatorRole::Primary)).await;
    assert_eq!(status.epoch.map(|epoch| epoch.number), Some(2));
    fleet.in_step(1, 0).await;
}

#[tokio::test]
async fn a_stopped_primary_that_wakes_up_is_fenced() {
    let fleet = Fleet::new();
    let a = fleet.run(0, "");
    fleet.until(0, "reigns", is(CoordinatorRole::Primary)).await;
    let _b = fleet.run(1, &format!("follow = \"{}\"", fleet.endpoint(0)));
    fleet.in_step(0, 1).await;
    a.signal(Signal::SIGSTOP);
    // It does not answer, so it does not stand in the way.
    let promoted = fleet.promote(false).await.unwrap_or_else(|status| panic!("{}", status.message()));
    assert_eq!(promoted.overridden, Vec::<String>::new());
    a.signal(Signal::SIGCONT);
    let status = fleet.until(0, "is fenced", is(CoordinatorRole::Fenced)).await;
    let highest = status.highest_epoch.and_then(|proof| proof.epoch).map(|epoch| epoch.coordinator_id);
    assert_eq!(highest.as_deref(), Some(NAMES[1]));
}

//! How soon a kill is told, and whether what hangs delays a heartbeat.

use super::child::{Line, Logged};
use super::measure::spread;
use super::stage::{AgentPlan, PATIENCE, SERVICES, Stage};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What an agent says while it is measured how quick it is: the findings, and when the spool has them.
pub(crate) const FILTER: &str = "warn,muster_agent::run::judge=info,muster_agent::spool=debug";
/// Bytes that a victim of the OOM killer may have.
const VICTIM_BYTES: u64 = 24 << 20;
/// Connections until the queue of a server with the smallest backlog is full.
const BACKLOG_FULL: usize = 3;

/// Median, 99th percentile and maximum, of so many rounds.
pub(crate) struct Spread {
    pub(crate) rounds: usize,
    pub(crate) times: [Duration; 3],
}

/// From `kill -9` of a watched process to its finding durable in the spool, as the agent's own log tells it: that is
/// later than the commit by the writing and reading of two lines.
pub(crate) fn exits(stage: &Stage, agent: &Logged, rounds: usize) -> Result<Spread> {
    let mut times = Vec::new();
    while times.len() < rounds {
        for index in 0..SERVICES.min(rounds - times.len()) {
            let service = Stage::service(index);
            agent.skip();
            let start = Instant::now();
            stage.kill_service(index)?;
            times.push(told(agent, &[&format!("{service}/"), "process_down", "opened"])?.1.at.duration_since(start));
        }
        let down = times.len();
        for index in 0..SERVICES.min(down) {
            if stage.lab.pid(&Stage::service(index)).is_err() {
                stage.start_service(index)?;
            }
        }
        let mut cleared = std::collections::BTreeSet::new();
        let restarted = if down % SERVICES == 0 { SERVICES } else { down % SERVICES };
        agent.until_any(PATIENCE, |line| {
            if line.has(&["cleared", "process_down"]) {
                let service = (0..SERVICES).find(|index| line.text.contains(&format!("{}/", Stage::service(*index))));
                cleared.extend(service);
            }
            cleared.len() == restarted
        })?;
    }
    Ok(Spread { rounds: times.len(), times: spread(times).context("no rounds")? })
}

/// The line that tells, and the one that says that it is durable.
fn told(agent: &Logged, parts: &[&str]) -> Result<(Line, Line)> {
    Ok((agent.until(parts, PATIENCE)?, agent.until(&["durable"], PATIENCE)?))
}

/// From a real OOM kill in a memory cgroup, by the kernel's own clock, to the commit at the coordinator. `Err` inside:
/// why that cannot be made here.
pub(crate) fn kills(stage: &Stage, agent: &Logged, name: &str, rounds: usize) -> Result<Result<Spread, String>> {
    let Some(group) = MemoryGroup::make() else {
        return Ok(Err("no memory cgroup can be made here (needs root and a memory controller)".to_owned()));
    };
    let clock = match KernelClock::read() {
        Ok(clock) => clock,
        Err(error) => return Ok(Err(format!("the kernel log's clock: {error:#}"))),
    };
    let mut times = Vec::new();
    for _ in 0..rounds {
        agent.skip();
        stage.coordinator.skip();
        let pid = group.kill_one()?;
        let (_, durable) = told(agent, &["oom_kill", "occurred"])?;
        let head = durable.number("head").context("the agent's log tells no head")?;
        let stored = stage.coordinator.until_any(PATIENCE, |line| {
            line.has(&[&format!("agent={name}"), "stored"]) && line.number("sequence").is_some_and(|at| at >= head)
        })?;
        times.push(stored.at.duration_since(clock.killed(pid)?));
    }
    Ok(Ok(Spread { rounds: times.len(), times: spread(times).context("no rounds")? }))
}

/// A cgroup of its own with little memory.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn make() -> Option<Self> {
        let name = format!("muster-bench-{}", std::process::id());
        for (root, limit) in [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")] {
            let group = Path::new(root).join(&name);
            // Beside version 1 the first is a plain folder in memory, in which every file can be made and limits nothing.
            if !Path::new(root).join("cgroup.procs").exists() || fs::create_dir(&group).is_err() {
                continue;
            }
            let group = Self(group);
            let limit = fs::OpenOptions::new().write(true).open(group.0.join(limit));
            let limited = limit.and_then(|mut limit| limit.write_all(VICTIM_BYTES.to_string().as_bytes()));
            if limited.is_ok() && group.0.join("cgroup.procs").exists() {
                return Some(group);
            }
        }
        None
    }

    /// Starts a process in it that eats until it is killed.
    fn kill_one(&self) -> Result<u32> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.args(["bench-service", "--eat-memory"]).stdin(Stdio::piped()).spawn()?;
        // Before it may eat: without a limit round it, it would eat the host.
        let entered = fs::write(self.0.join("cgroup.procs"), child.id().to_string());
        if let Err(error) = entered {
            drop(child.stdin.take());
            child.kill().and_then(|()| child.wait())?;
            return Err(error).context("the victim cannot be put into its cgroup");
        }
        child.stdin.take().context("no stdin")?.write_all(b"eat\n")?;
        let status = child.wait()?;
        ensure!(!status.success(), "the kernel killed nobody: {status}");
        Ok(child.id())
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.0));
    }
}

/// The kernel log's clock beside ours.
struct KernelClock {
    /// A moment on both.
    mark: Instant,
    mark_usec: u64,
}

impl KernelClock {
    fn read() -> Result<Self> {
        let word = format!("muster-bench clock mark {}", std::process::id());
        // A line without its end is not readable until another follows.
        let line = format!("{word}\n");
        let mut log = fs::OpenOptions::new().write(true).open("/dev/kmsg")?;
        let before = Instant::now();
        log.write_all(line.as_bytes())?;
        let mark = before + before.elapsed() / 2;
        Ok(Self { mark, mark_usec: stamp(&[&word])? })
    }

    /// When the kernel killed `pid`.
    fn killed(&self, pid: u32) -> Result<Instant> {
        let usec = stamp(&[&format!("Killed process {pid} ")])?;
        Ok(self.mark + Duration::from_micros(usec.saturating_sub(self.mark_usec)))
    }
}

/// Time of the newest record with all of `parts`.
fn stamp(parts: &[&str]) -> Result<u64> {
    let mut log = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open("/dev/kmsg")?;
    let (mut record, mut newest) = (vec![0; 16 << 10], None);
    loop {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(count) => {
                let text = String::from_utf8_lossy(record.get(..count).unwrap_or_default()).into_owned();
                if parts.iter().all(|part| text.contains(part)) {
                    newest = text.split(',').nth(2).and_then(|usec| usec.parse().ok());
                }
            }
            Err(error) if error.raw_os_error() == Some(nix::libc::EPIPE) => {}
            Err(_) => break,
        }
    }
    newest.with_context(|| format!("no {parts:?} in the kernel log"))
}

/// Gaps between heartbeats as the coordinator hears them.
pub(crate) struct Beats {
    pub(crate) count: usize,
    /// How much later than due the latest one came.
    pub(crate) delay: Duration,
}

/// Listens to the heartbeats of the agent `name` for `length`.
pub(crate) fn beats(stage: &Stage, name: &str, heartbeat: Duration, length: Duration) -> Result<Beats> {
    stage.coordinator.skip();
    let lines = stage.coordinator.for_a_while(length);
    let heard: Vec<Instant> =
        lines.iter().filter(|line| line.has(&[&format!("agent={name}"), "heartbeat"])).map(|line| line.at).collect();
    let gaps = heard.windows(2).filter_map(|pair| Some(pair.get(1)?.duration_since(*pair.first()?)));
    let longest = gaps.max().context("no two heartbeats were heard")?;
    Ok(Beats { count: heard.len(), delay: longest.saturating_sub(heartbeat) })
}

/// What hangs, as long as this lives.
pub(crate) struct Hung {
    /// Services to watch, as TOML.
    pub(crate) services: String,
    /// What there is, for the table.
    pub(crate) what: String,
    mounted: Option<PathBuf>,
    _held: (TcpListener, Vec<TcpStream>, Option<fs::File>),
}

/// Makes all that can hang here.
pub(crate) fn hang(stage: &Stage) -> Result<Hung> {
    let fifo = stage.lab.path("run/fifo.pid");
    nix::unistd::mkfifo(Path::new(&fifo), nix::sys::stat::Mode::S_IRWXU)?;
    let (listener, waiting) = full_queue()?;
    let address = listener.local_addr()?;
    let mut services = format!("[service.fifo]\npid_file = {fifo:?}\n[service.full]\nports = [\"{address}\"]\n");
    let mut what = "a FIFO as pid file, a server with a full queue".to_owned();
    let folder = stage.lab.path("hung");
    let (mounted, server) = match mount_hung(&folder) {
        Ok(server) => {
            (0..4).for_each(|n| services += &format!("[service.hung-{n}]\npid_file = \"{folder}/{n}.pid\"\n"));
            services += &format!("[service.hung]\nsqlite = [\"{folder}/hub.db\"]\n");
            what += ", 4 pid files and a database on a file system whose server never answers (FUSE)";
            (Some(PathBuf::from(folder)), Some(server))
        }
        Err(why) => {
            what += &format!("; not measured: a hung file system ({why:#})");
            (None, None)
        }
    };
    Ok(Hung { services, what, mounted, _held: (listener, waiting, server) })
}

impl Drop for Hung {
    fn drop(&mut self) {
        if let Some(folder) = &self.mounted {
            // Lazily: the agent's threads are still in there.
            drop(Command::new("umount").arg("--lazy").arg(folder).status());
        }
    }
}

fn full_queue() -> Result<(TcpListener, Vec<TcpStream>)> {
    use nix::sys::socket::{Backlog, listen};
    let listener = TcpListener::bind("127.0.0.1:0")?;
    // Again, with the smallest queue there is.
    listen(&listener, Backlog::new(1)?)?;
    let address = listener.local_addr()?;
    let connect = |_| TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
    Ok((listener, (0..BACKLOG_FULL).filter_map(connect).collect()))
}

fn mount_hung(folder: &str) -> Result<fs::File> {
    use std::os::fd::AsRawFd;
    fs::create_dir_all(folder)?;
    let server = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").context("/dev/fuse")?;
    // The program that mounts must have the descriptor, too.
    nix::fcntl::fcntl(&server, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", server.as_raw_fd());
    let status = Command::new("mount").args(["-i", "-t", "fuse", "-o", &options, "muster-bench", folder]).status();
    nix::fcntl::fcntl(&server, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    ensure!(status.context("mount")?.success(), "mount says no");
    Ok(server)
}

/// The agent whose quickness is measured.
pub(crate) const fn plan<'a>(name: &'a str, more: &'a str) -> AgentPlan<'a> {
    AgentPlan { name, interval: "5s", more, filter: Some(FILTER) }
}

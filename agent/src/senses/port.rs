//! Looks at who listens on a port, and now and then connects to it.

use super::sockets::SocketTable;
use super::{pid_file::what_stands_there, process, sockets};
use crate::probe::{Context, Probe};
use muster_agent_core::judgement::Judgement;
pub use muster_agent_core::port::Target;
use muster_agent_core::port::{Address, Connect, Listener, PortJudge, Reading, SocketFile, TcpHost, matching};
use muster_agent_core::services::Instance;
use muster_common::evidence::Value;
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::{ProcessId, ServiceName};
use muster_common::reason::Reason;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;

/// Every so many runs a connection is tried: a queue tells most, and each connection is a line in somebody's log.
const CONNECT_EVERY_RUNS: u32 = 12;
/// How long a connection may take before it counts as not answered.
const CONNECT_MAX_MS: u64 = 1_000;
/// How long a run waits for it: one on the same host is there at once, and other probes wait behind this one. What is
/// not there by then is looked at in the next run.
const CONNECT_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
/// The same where there is no next run.
const CONNECT_WAIT_ONE_SHOT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// Listeners of one target whose holders are looked up: `SO_REUSEPORT` servers have one per worker.
const LISTENERS_LOOKED_UP_MAX: usize = 16;

/// Where the answer came from `/proc/net`, which names no backlog on any kernel.
const BACKLOG_UNKNOWN: &str = "not told: the kernel's socket diagnosis (netlink, Linux 3.3 with CONFIG_INET_DIAG and \
                               CONFIG_UNIX_DIAG) is closed to the agent";

/// Watches one port of one service.
#[derive(Debug)]
pub struct PortProbe {
    subject: SubjectKey,
    target: Target,
    table: Arc<SocketTable>,
    judge: PortJudge,
    runs: u32,
    /// A connection that was not there yet, and since when it is tried.
    connecting: Option<(Trying, u64)>,
    /// Whether the service's process has this network, asked once per process.
    shares_network: Option<(ProcessId, bool)>,
}

impl PortProbe {
    /// Watches `target`; probes of one host share one `table`.
    pub fn new(service: ServiceName, target: Target, table: Arc<SocketTable>) -> Self {
        let subject = SubjectKey::new(service, ProbeKind::Port, &target.to_string());
        if !matches!(target, Target::Tcp { .. }) {
            table.want_unix();
        }
        Self { subject, target, table, judge: PortJudge::default(), runs: 0, connecting: None, shares_network: None }
    }

    fn reading(&mut self, context: &Context, instance: Option<&Instance>) -> Reading {
        self.runs = self.runs.wrapping_add(1);
        let root = self.table.root();
        let path = match &self.target {
            Target::Unix(path) => Some(root.path(path)),
            _ => None,
        };
        let file = path.as_deref().map(socket_file);
        let living = instance.filter(|instance| instance.ended_boottime_ms.is_none()).map(|instance| instance.process);
        let known = self.shares_network.filter(|(process, _)| Some(*process) == living);
        let asked = || living.map(|living| (living, process::shares_network(root, living.pid)));
        self.shares_network = known.or_else(asked);
        let foreign = self.shares_network.is_some_and(|(_, shares)| !shares);
        let mut reading = Reading {
            listeners: Err(String::new()),
            owners: Vec::new(),
            file,
            connect: None,
            foreign_namespace: foreign,
        };
        let all = match self.table.listeners(context.now.boottime_ms) {
            Ok(all) => all,
            Err(why) => return Reading { listeners: Err(why), ..reading },
        };
        let mut listeners = matching(&self.target, reading.file.as_ref(), &all);
        for listener in listeners.iter_mut().filter(|listener| listener.uid.is_none()) {
            listener.uid = path.as_deref().and_then(sockets::file_uid);
        }
        for listener in listeners.iter().take(LISTENERS_LOOKED_UP_MAX) {
            reading.owners.extend(self.table.owners(listener.inode, living, context.now.boottime_ms));
        }
        reading.owners.dedup_by_key(|owner| owner.process);
        let queued = listeners.iter().any(|listener| listener.queue > 0);
        let due = if context.one_shot { queued } else { self.runs.is_multiple_of(CONNECT_EVERY_RUNS) };
        let trying = self.connecting.take().or_else(|| {
            let first = listeners.first().filter(|_| due && root.is_real())?;
            Some((start_connect(&self.target, first)?, context.now.boottime_ms))
        });
        if let Some((trying, since_ms)) = trying {
            let wait = if context.one_shot { CONNECT_WAIT_ONE_SHOT } else { CONNECT_WAIT };
            let waited_ms = context.now.boottime_ms.saturating_sub(since_ms);
            match trying.outcome(&wait) {
                Ok(outcome) => reading.connect = Some(outcome),
                Err(_) if context.one_shot || waited_ms >= CONNECT_MAX_MS => reading.connect = Some(Connect::NoAnswer),
                Err(trying) => self.connecting = Some((trying, since_ms)),
            }
        }
        Reading { listeners: Ok(listeners), ..reading }
    }
}

impl Probe for PortProbe {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn run(&mut self, context: &Context) -> Judgement {
        let instance = {
            let services = context.services.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            services.newest(&self.subject.service).cloned()
        };
        let reading = self.reading(context, instance.as_ref());
        let mut judgement = self.judge.judge(&self.target, &reading, instance.as_ref(), context.now);
        if judgement.problems.iter().any(|problem| problem.reason == Reason::PortUnresponsive) {
            let mut services = context.services.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            services.note_silent(&self.subject.service, context.now.boottime_ms);
        }
        let untold =
            |found: &Vec<Listener>| !found.is_empty() && found.iter().all(|listener| listener.backlog.is_none());
        if context.one_shot && reading.listeners.is_ok_and(|found| untold(&found)) {
            judgement.seen.insert("backlog_unknown", Value::Text(BACKLOG_UNKNOWN.to_owned()));
        }
        judgement
    }
}

fn socket_file(path: &std::path::Path) -> SocketFile {
    // Followed: a link to a socket is as good as the socket.
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => {
            return match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::NOTDIR) => SocketFile::Missing,
                _ => SocketFile::Unreadable(error.to_string()),
            };
        }
    };
    if metadata.file_type().is_socket() {
        // The kernel reports the low 32 bits of an inode over sock_diag.
        return SocketFile::Socket(u32::try_from(metadata.ino() & u64::from(u32::MAX)).unwrap_or(0));
    }
    SocketFile::NotASocket(what_stands_there(FileType::from_raw_mode(metadata.mode())))
}

/// A connection that was begun, and closed as soon as it is there.
#[derive(Debug)]
struct Trying {
    socket: OwnedFd,
    /// What the kernel said at once.
    result: Result<(), Errno>,
}

impl Trying {
    /// How it went; itself when that is not known within `wait`.
    fn outcome(self, wait: &Timespec) -> Result<Connect, Self> {
        let result = match self.result {
            Err(Errno::INPROGRESS) => match poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], Some(wait)) {
                Ok(0) | Err(Errno::INTR) => return Err(self),
                Ok(_) => sockopt::socket_error(&self.socket).unwrap_or_else(Err),
                Err(errno) => Err(errno),
            },
            other => other,
        };
        Ok(match result {
            Ok(()) => Connect::Accepted,
            // A Unix socket with a full queue says so at once.
            Err(Errno::AGAIN | Errno::TIMEDOUT) => Connect::NoAnswer,
            Err(Errno::CONNREFUSED) => Connect::Refused,
            // A datagram or packet socket behind the path, a firewall, no permission: says nothing about the service.
            Err(_) => Connect::Failed,
        })
    }
}

/// `None` when the target cannot be connected to from here.
fn start_connect(target: &Target, listener: &Listener) -> Option<Trying> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket_of = |family| socket_with(family, SocketType::STREAM, flags, None).ok();
    let (socket, result) = match (target, &listener.address) {
        (Target::Tcp { host, .. }, Address::Tcp { ip, port, .. }) => {
            let address = SocketAddr::new(reachable(*host, *ip), *port);
            let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let socket = socket_of(family)?;
            let result = connect(&socket, &address);
            (socket, result)
        }
        (Target::Unix(path), _) => {
            let address = SocketAddrUnix::new(path.as_str()).ok()?;
            let socket = socket_of(AddressFamily::UNIX)?;
            let result = connect(&socket, &address);
            (socket, result)
        }
        (Target::Abstract(name), _) => {
            let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).ok()?;
            let socket = socket_of(AddressFamily::UNIX)?;
            let result = connect(&socket, &address);
            (socket, result)
        }
        _ => return None,
    };
    Some(Trying { socket, result })
}

/// The address under which a listener is reached from its own host.
fn reachable(host: TcpHost, bound: IpAddr) -> IpAddr {
    match (host, bound) {
        (TcpHost::Ip(ip), _) => ip,
        (_, IpAddr::V4(ip)) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        (_, IpAddr::V6(ip)) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        (_, bound) => bound,
    }
}

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
use muster_common::ids::ServiceName;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;

/// Every so many runs a connection is tried: a queue tells most, and each connection is a line in somebody's log.
const CONNECT_EVERY_RUNS: u32 = 12;
/// How long a connection may take.
const CONNECT_MAX: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
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
}

impl PortProbe {
    /// Watches `target`; probes of one host share one `table`.
    pub fn new(service: ServiceName, target: Target, table: Arc<SocketTable>) -> Self {
        let subject = SubjectKey::new(service, ProbeKind::Port, &target.to_string());
        Self { subject, target, table, judge: PortJudge::default(), runs: 0 }
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
        let mut reading = Reading {
            listeners: Err(String::new()),
            owners: Vec::new(),
            file,
            connect: None,
            foreign_namespace: living.is_some_and(|living| !process::shares_network(root, living.pid)),
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
        if due && root.is_real() {
            reading.connect = listeners.first().and_then(|listener| try_connect(&self.target, listener));
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

/// One connection, closed at once. `None` when the target cannot be connected to from here.
fn try_connect(target: &Target, listener: &Listener) -> Option<Connect> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (socket, result) = match (target, &listener.address) {
        (Target::Tcp { host, .. }, Address::Tcp { ip, port, .. }) => {
            let address = SocketAddr::new(reachable(*host, *ip), *port);
            let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let socket = socket_with(family, SocketType::STREAM, flags, None).ok()?;
            let result = connect(&socket, &address);
            (socket, result)
        }
        (Target::Unix(path), _) => {
            let address = SocketAddrUnix::new(path.as_str()).ok()?;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
            let result = connect(&socket, &address);
            (socket, result)
        }
        (Target::Abstract(name), _) => {
            let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).ok()?;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
            let result = connect(&socket, &address);
            (socket, result)
        }
        _ => return None,
    };
    let outcome = match result {
        Err(Errno::INPROGRESS) => {
            let mut fds = [PollFd::new(&socket, PollFlags::OUT)];
            match poll(&mut fds, Some(&CONNECT_MAX)) {
                Ok(0) => return Some(Connect::NoAnswer),
                Ok(_) => sockopt::socket_error(&socket).unwrap_or_else(Err),
                Err(errno) => Err(errno),
            }
        }
        other => other,
    };
    match outcome {
        Ok(()) => Some(Connect::Accepted),
        // A Unix socket with a full queue says so at once.
        Err(Errno::AGAIN | Errno::TIMEDOUT) => Some(Connect::NoAnswer),
        Err(Errno::CONNREFUSED) => Some(Connect::Refused),
        // A datagram or packet socket behind the path, a firewall, no permission: says nothing about the service.
        Err(_) => Some(Connect::Failed),
    }
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

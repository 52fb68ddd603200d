//! The listening sockets of this network namespace and who holds them: sock_diag first, `/proc/net` where netlink is
//! closed to the agent, `/proc/PID/fd` for the holders.

use super::{HostRoot, process};
use muster_agent_core::port::{Address, Listener, Owner, proc_net};
use muster_common::ids::ProcessId;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla as _};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, nlas as inet_nlas};
use netlink_packet_sock_diag::unix::{ShowFlags, UnixRequest, UnixResponse, nlas as unix_nlas};
use netlink_packet_sock_diag::{SockDiagMessage, inet, unix};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Listeners kept of one dump; a host with more watches the first ones.
const LISTENERS_MAX: usize = 65_536;
/// Datagrams read of one dump: a kernel that never says "done" must not hold the probe.
const DATAGRAMS_MAX: usize = 65_536;
/// Bytes of one datagram: the kernel fills at most 32 KiB.
const DATAGRAM_BYTES: usize = 64 * 1024;
/// A walk over all descriptors of the host is given up after this; the holder is then unknown until the next run.
const WALK_MAX: Duration = Duration::from_millis(300);
/// One dump serves all port probes of a cycle.
const FRESH_MS: u64 = 300;
/// Holders remembered; beyond it all are looked up anew.
const HOLDERS_MAX: usize = 4096;
/// Who holds a socket is believed for so long while that process lives: to hand a listening socket to another process
/// and go on living is rare (and who listens anew has another socket), to list the descriptors of a busy server is dear.
const OWNER_KEPT_MS: u64 = 300_000;
/// A holder that a walk did not find (of another user, in another pid namespace) is not looked for again before this.
const MISS_KEPT_MS: u64 = 60_000;

/// What several port probes share: the last dump, and the holders found so far.
#[derive(Debug)]
pub struct SocketTable {
    root: HostRoot,
    /// Somebody asks for Unix sockets: a host has hundreds, and most are nobody's question.
    unix: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    taken_boottime_ms: Option<u64>,
    listeners: Result<Arc<Vec<Listener>>, String>,
    holders: BTreeMap<u64, Holders>,
    /// Of the sockets that a service's own process holds.
    own: BTreeMap<u64, (Owner, u64)>,
    walks: u64,
    kernel: Kernel,
}

/// Who answers about sockets.
#[derive(Debug, Default)]
struct Kernel {
    /// Kept while it answers: what a dump that broke off left in it would be taken for the next answer.
    socket: Option<Socket>,
    /// Room for an answer.
    buffer: Vec<u8>,
}

impl State {
    /// Forgets whose the sockets were that are closed by now: a service that restarts for ever has new ones each time.
    fn forget_closed(&mut self) {
        let Ok(listeners) = &self.listeners else { return };
        if self.own.len().max(self.holders.len()) <= listeners.len() {
            return;
        }
        let open: BTreeSet<u64> = listeners.iter().map(|listener| listener.inode).collect();
        self.own.retain(|inode, _| open.contains(inode));
        self.holders.retain(|inode, _| open.contains(inode));
    }
}

/// What the last walk for a socket found.
#[derive(Debug, Clone)]
struct Holders {
    processes: Vec<ProcessId>,
    walked_boottime_ms: u64,
}

impl SocketTable {
    /// An empty table of the host under `root`.
    pub fn new(root: HostRoot) -> Arc<Self> {
        let listeners = Err("not read yet".into());
        let (holders, own, kernel) = (BTreeMap::new(), BTreeMap::new(), Kernel::default());
        let state = State { taken_boottime_ms: None, listeners, holders, own, walks: 0, kernel };
        Arc::new(Self { root, unix: AtomicBool::new(false), state: Mutex::new(state) })
    }

    /// Has Unix sockets be among the listeners from the next reading on.
    pub fn want_unix(&self) {
        self.unix.store(true, Ordering::Relaxed);
    }

    /// The root it reads under.
    pub fn root(&self) -> &HostRoot {
        &self.root
    }

    /// The listeners as of `now_boottime_ms`, at most a moment old.
    pub fn listeners(&self, now_boottime_ms: u64) -> Result<Arc<Vec<Listener>>, String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = state.taken_boottime_ms.is_some_and(|taken| now_boottime_ms.abs_diff(taken) < FRESH_MS);
        if !fresh {
            let unix = self.unix.load(Ordering::Relaxed);
            state.listeners = dump(&self.root, unix, &mut state.kernel).map(Arc::new);
            state.taken_boottime_ms = Some(now_boottime_ms);
            state.forget_closed();
        }
        state.listeners.clone()
    }

    /// Who holds the socket `inode`: `first` is asked before all others, because usually it is the service itself.
    pub fn owners(&self, inode: u64, first: Option<ProcessId>, now_boottime_ms: u64) -> Vec<Owner> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let still = |process: &ProcessId| {
            process::id(&self.root, process.pid) == Some(*process)
                && holds(&self.root, process.pid, inode) == Some(true)
        };
        let kept = |(owner, at_ms): &&(Owner, u64)| {
            Some(owner.process) == first && now_boottime_ms.saturating_sub(*at_ms) < OWNER_KEPT_MS
        };
        // That `first` lives is known: somebody watches it by its pidfd.
        if let Some((owner, _)) = state.own.get(&inode).filter(kept) {
            return vec![owner.clone()];
        }
        state.own.remove(&inode);
        if let Some(owner) = first.filter(still).and_then(|first| process::owner(&self.root, first.pid)) {
            if state.own.len() >= HOLDERS_MAX {
                state.own.clear();
            }
            state.own.insert(inode, (owner.clone(), now_boottime_ms));
            return vec![owner];
        }
        let known = state.holders.get(&inode);
        let missed = known.is_some_and(|known| {
            known.processes.is_empty() && now_boottime_ms.saturating_sub(known.walked_boottime_ms) < MISS_KEPT_MS
        });
        if missed {
            return Vec::new();
        }
        let known = known.map(|known| known.processes.clone()).unwrap_or_default();
        let mut holders: Vec<ProcessId> = known.into_iter().filter(still).collect();
        if holders.is_empty() {
            holders = walk(&self.root, inode);
            state.walks += 1;
            if state.holders.len() >= HOLDERS_MAX {
                state.holders.clear();
            }
            let found = Holders { processes: holders.clone(), walked_boottime_ms: now_boottime_ms };
            state.holders.insert(inode, found);
        }
        holders.iter().filter_map(|process| process::owner(&self.root, process.pid)).collect()
    }

    /// How often all processes of the host were walked through.
    pub fn walks(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).walks
    }
}

/// The listening sockets of the agent's network namespace; none where they cannot be read.
pub fn listening(root: &HostRoot) -> Vec<Listener> {
    dump(root, true, &mut Kernel::default()).unwrap_or_default()
}

/// Netlink on the real host, else the text files.
fn dump(root: &HostRoot, unix: bool, kernel: &mut Kernel) -> Result<Vec<Listener>, String> {
    if root.is_real()
        && let Ok(listeners) = dump_netlink(unix, kernel)
    {
        return Ok(listeners);
    }
    // The name of one socket may be any bytes, and must not hide all others.
    let read = |name: &str| {
        let bytes = std::fs::read(root.path(format!("/proc/net/{name}")))?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let mut listeners = proc_net::parse_tcp(&read("tcp").map_err(|error| format!("/proc/net/tcp: {error}"))?);
    // A host without IPv6 has no tcp6.
    listeners.extend(proc_net::parse_tcp(&read("tcp6").unwrap_or_default()));
    if unix {
        listeners.extend(proc_net::parse_unix(&read("unix").unwrap_or_default()));
    }
    listeners.truncate(LISTENERS_MAX);
    Ok(listeners)
}

fn dump_netlink(unix: bool, kernel: &mut Kernel) -> std::io::Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let request = SockDiagMessage::InetRequest(InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: inet::StateFlags::LISTEN,
            socket_id,
        });
        let answered = kernel.ask(request, |message| {
            if let SockDiagMessage::InetResponse(response) = message {
                listeners.extend(inet_listener(&response));
            }
        });
        // A kernel without IPv6 refuses the second question.
        if family == AF_INET {
            answered?;
        }
    }
    if !unix {
        listeners.truncate(LISTENERS_MAX);
        return Ok(listeners);
    }
    let request = SockDiagMessage::UnixRequest(UnixRequest {
        state_flags: unix::StateFlags::LISTEN,
        inode: 0,
        show_flags: ShowFlags::NAME | ShowFlags::VFS | ShowFlags::RQLEN,
        cookie: [0xff; 8],
    });
    kernel.ask(request, |message| {
        if let SockDiagMessage::UnixResponse(response) = message {
            listeners.extend(unix_listener(&response));
        }
    })?;
    listeners.truncate(LISTENERS_MAX);
    Ok(listeners)
}

impl Kernel {
    /// One dump: `on_message` gets every answer.
    fn ask(&mut self, request: SockDiagMessage, on_message: impl FnMut(SockDiagMessage)) -> std::io::Result<()> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => {
                let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
                socket.bind_auto()?;
                // A dump is answered in the system calls that ask for it: nothing to wait for means nothing more comes.
                socket.set_non_blocking(true)?;
                socket
            }
        };
        ask(&socket, request, &mut self.buffer, on_message)?;
        self.socket = Some(socket);
        Ok(())
    }
}

fn ask(
    socket: &Socket,
    request: SockDiagMessage,
    buffer: &mut Vec<u8>,
    mut on_message: impl FnMut(SockDiagMessage),
) -> std::io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(request));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    buffer.clear();
    buffer.reserve(DATAGRAM_BYTES);
    for _ in 0..DATAGRAMS_MAX {
        buffer.clear();
        socket.recv(buffer, 0)?;
        let mut rest = buffer.as_slice();
        // A message starts with its own length; the next one is aligned to four bytes.
        while let Some(length) = rest.first_chunk::<4>().map(|word| u32::from_ne_bytes(*word)) {
            match NetlinkMessage::<SockDiagMessage>::deserialize(rest).map(|message| message.payload) {
                Ok(NetlinkPayload::InnerMessage(inner)) => on_message(inner),
                Ok(NetlinkPayload::Done(_)) => return Ok(()),
                Ok(NetlinkPayload::Error(error)) => return Err(error.to_io()),
                // One socket that cannot be decoded must not hide all others.
                Ok(_) | Err(_) => {}
            }
            let length = usize::try_from(length).unwrap_or(usize::MAX).max(16);
            rest = rest.get(length.saturating_add(3) / 4 * 4..).unwrap_or_default();
        }
    }
    Err(std::io::Error::other("the dump did not end"))
}

fn inet_listener(response: &InetResponse) -> Option<Listener> {
    let header = &response.header;
    let v6only = response.nlas.iter().any(|nla| matches!(nla, inet_nlas::Nla::SkV6Only(true)));
    Some(Listener {
        address: Address::Tcp { ip: header.socket_id.source_address, port: header.socket_id.source_port, v6only },
        inode: header.inode.into(),
        uid: Some(header.uid),
        // Of a listener, the queues are the accept queue and its bound.
        queue: header.recv_queue,
        backlog: Some(header.send_queue),
    })
}

fn unix_listener(response: &UnixResponse) -> Option<Listener> {
    let mut name = None;
    let mut file_inode = None;
    let mut queue = (0, None);
    for nla in &response.nlas {
        match nla {
            unix_nlas::Nla::Name(found) => name = Some(found),
            unix_nlas::Nla::Vfs(_) => file_inode = vfs_inode(nla),
            unix_nlas::Nla::ReceiveQueueLength(length, backlog) => queue = (*length, Some(*backlog)),
            _ => {}
        }
    }
    let address = match name? {
        unix_nlas::UnixDiagName::Abstract(name) => Address::Abstract(String::from_utf8_lossy(name).into_owned()),
        unix_nlas::UnixDiagName::Pathname(path) => {
            Address::Unix { path: path.to_string_lossy().into_owned(), file_inode }
        }
    };
    Some(Listener { address, inode: response.header.inode.into(), uid: None, queue: queue.0, backlog: queue.1 })
}

/// The crate keeps the attribute's fields private: the inode is its first word.
fn vfs_inode(nla: &unix_nlas::Nla) -> Option<u32> {
    let mut bytes = vec![0; nla.value_len()];
    nla.emit_value(&mut bytes);
    bytes.first_chunk::<4>().map(|word| u32::from_ne_bytes(*word))
}

/// Whether `pid` holds the socket `inode`; `None` when its descriptors cannot be listed.
fn holds(root: &HostRoot, pid: u32, inode: u64) -> Option<bool> {
    let wanted = format!("socket:[{inode}]");
    let entries = std::fs::read_dir(root.path(format!("/proc/{pid}/fd"))).ok()?;
    let is_it =
        |entry: std::fs::DirEntry| std::fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == &*wanted);
    Some(entries.flatten().any(is_it))
}

/// All processes that hold the socket `inode`, as far as the agent may look and the time allows.
fn walk(root: &HostRoot, inode: u64) -> Vec<ProcessId> {
    let until = Instant::now() + WALK_MAX;
    let Ok(entries) = std::fs::read_dir(root.path("/proc")) else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut holders = Vec::new();
    for pid in pids {
        if Instant::now() > until {
            break;
        }
        if holds(root, pid, inode) == Some(true) {
            holders.extend(process::id(root, pid));
        }
    }
    holders
}

/// The owner of a socket file, for listeners of which the kernel tells no user.
pub(super) fn file_uid(path: &std::path::Path) -> Option<u32> {
    std::fs::symlink_metadata(path).ok().map(|metadata| metadata.uid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_any_bytes_hides_no_other_socket() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("proc/net")).unwrap();
        std::fs::write(folder.path().join("proc/net/tcp"), "").unwrap();
        let text =
            b"0: 00000002 00000000 00010000 0001 01 11 @\xff\xfe\n0: 00000002 00000000 00010000 0001 01 12 /run/a\n";
        std::fs::write(folder.path().join("proc/net/unix"), text).unwrap();
        let listeners = listening(&HostRoot(folder.path().to_owned()));
        assert_eq!(listeners.iter().map(|listener| listener.inode).collect::<Vec<_>>(), [11, 12]);
    }

    #[test]
    fn whose_a_closed_socket_was_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("proc/net")).unwrap();
        std::fs::write(folder.path().join("proc/net/tcp"), "").unwrap();
        let open = |inode: u64| {
            let line = format!("0: 00000002 00000000 00010000 0001 01 {inode} /run/a\n");
            std::fs::write(folder.path().join("proc/net/unix"), line).unwrap();
        };
        let table = SocketTable::new(HostRoot(folder.path().to_owned()));
        table.want_unix();
        for life in 1..50 {
            open(life);
            assert_eq!(table.listeners(life * 5_000).unwrap().len(), 1);
            assert!(table.owners(life, None, life * 5_000).is_empty());
            assert!(table.state.lock().unwrap().holders.len() <= 2, "life {life}");
        }
    }

    #[test]
    fn a_holder_that_is_not_found_is_looked_for_once_a_minute() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("proc/70/fd")).unwrap();
        let table = SocketTable::new(HostRoot(folder.path().to_owned()));
        for cycle in 0..12 {
            assert!(table.owners(41, None, 1_000 + cycle * 5_000).is_empty());
        }
        assert_eq!(table.walks(), 1);
        assert!(table.owners(41, None, 61_000).is_empty());
        assert!(table.owners(42, None, 61_000).is_empty());
        assert_eq!(table.walks(), 3);
    }
}

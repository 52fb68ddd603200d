//! Law 2: no single point blinds. Subjects that hang, of every kind that can be made without a broken disk.

use super::{Daemon, Stage};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::net::{AddressFamily, SocketType, bind, listen, socket};
use std::fmt::Write;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Several of one kind, with room left to ask about others of that kind.
const HUNG_PID_FILES: usize = 6;

/// A file system whose server never says a word: who opens a file in it waits until it is gone.
struct HungFileSystem {
    path: PathBuf,
    _server: File,
}

impl HungFileSystem {
    /// `None`, with a word on why, where this process may not mount.
    fn mount(path: &Path) -> Option<Self> {
        std::fs::create_dir(path).unwrap();
        let server = File::options().read(true).write(true).open("/dev/fuse");
        let server = server.inspect_err(|error| println!("skipped: a hung file system: /dev/fuse: {error}")).ok()?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other\0", server.as_raw_fd());
        let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes()).unwrap();
        mount("muster-test", path, "fuse.muster-test", MountFlags::NOSUID | MountFlags::NODEV, options)
            .inspect_err(|error| println!("skipped: a hung file system: mount: {error}"))
            .ok()?;
        Some(Self { path: path.to_owned(), _server: server })
    }
}

impl Drop for HungFileSystem {
    fn drop(&mut self) {
        unmount(&self.path, UnmountFlags::DETACH).ok();
    }
}

/// A server that stopped accepting, its queue full.
fn stuck_server() -> (SocketAddr, impl Sized) {
    let server = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&server, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    listen(&server, 1).unwrap();
    let address = SocketAddr::try_from(rustix::net::getsockname(&server).unwrap()).unwrap();
    // A backlog of one takes two.
    let waiting = [TcpStream::connect(address).unwrap(), TcpStream::connect(address).unwrap()];
    (address, (server, waiting))
}

/// A database that nobody else can read: locked exclusively, and in the old journal mode.
fn locked_database(path: &Path) -> rusqlite::Connection {
    let database = rusqlite::Connection::open(path).unwrap();
    database.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1); BEGIN EXCLUSIVE").unwrap();
    database
}

#[tokio::test]
async fn hung_subjects_delay_neither_heartbeats_nor_the_findings_of_others() {
    let stage = Stage::set().await;
    let (fifo, locked, hung) = (stage.path("fifo.pid"), stage.path("locked.db"), stage.path("hung"));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (stuck, _server) = stuck_server();
    let _writer = locked_database(&locked);
    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut services = format!(
        "[service.fifo]\npid_file = \"{}\"\n[service.stuck]\nports = [\"{stuck}\"]\n\
         [service.locked]\nsqlite = [\"{}\"]\n[service.web]\nports = [\"{}\"]\n",
        fifo.display(),
        locked.display(),
        web.local_addr().unwrap(),
    );
    let hung_file_system = HungFileSystem::mount(&hung);
    if hung_file_system.is_some() {
        let hung = hung.display();
        write!(services, "[service.hung]\nsqlite = [\"{hung}/hub.db\"]\n").unwrap();
        for n in 0..HUNG_PID_FILES {
            write!(services, "[service.hung-{n}]\npid_file = \"{hung}/{n}.pid\"\n").unwrap();
        }
    }
    stage.config(&stage.path("state"), &services);
    let mut daemon = Daemon::start(&stage);
    stage.hears("fifo", "pid_file_malformed").await;
    stage.hears("stuck", "port_unresponsive").await;
    if hung_file_system.is_some() {
        stage.hears("hung", "probe_blind").await;
        for n in 0..HUNG_PID_FILES {
            stage.hears(&format!("hung-{n}"), "probe_blind").await;
        }
    }

    // Now that all hangs that can hang: others are seen, and the agent is heard by both who listen.
    let pings = daemon.pings();
    drop(web);
    stage.hears("web", "port_closed").await;
    let state = stage.more_heartbeats().await;
    daemon.more_pings(pings).await;
    assert_eq!((state.streams, state.broken), (1, None), "one stream all the time");
    assert_eq!(daemon.stop().await, Some(0), "a hung thread keeps nobody from stopping");
}

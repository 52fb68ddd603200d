//! The port sense against real listeners.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, in its helpers too")]

use muster_agent::clock;
use muster_agent::probe::{Context, Probe};
use muster_agent::senses::HostRoot;
use muster_agent::senses::port::{PortProbe, Target};
use muster_agent::senses::process;
use muster_agent::senses::sockets::{self, SocketTable};
use muster_agent_core::judgement::{Judgement, Verdict};
use muster_agent_core::services::{Instance, Services};
use muster_common::evidence::Value;
use muster_common::ids::ServiceName;
use muster_common::reason::Reason;
use rustix::net::{AddressFamily, SocketType, bind, listen, socket};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

fn service() -> ServiceName {
    ServiceName::new("svc").unwrap()
}

/// One run of a fresh probe.
fn look(target: &str, services: &Arc<Mutex<Services>>, one_shot: bool) -> Judgement {
    let target: Target = target.parse().unwrap();
    let mut probe = PortProbe::new(service(), target, SocketTable::new(HostRoot::default()));
    probe.run(&Context { now: clock::now(), services: Arc::clone(services), one_shot })
}

fn reasons(judgement: &Judgement) -> Vec<Reason> {
    judgement.problems.iter().map(|problem| problem.reason).collect()
}

fn note(services: &Arc<Mutex<Services>>, pid: u32) {
    let facts = process::alive(&HostRoot::default(), pid).unwrap();
    let instance = Instance {
        process: facts.process,
        comm: facts.comm,
        exe: facts.exe,
        // Tests share one cgroup with everything else.
        cgroup: None,
        first_seen_boottime_ms: clock::now().boottime_ms,
        ended_boottime_ms: None,
    };
    services.lock().unwrap().note(&service(), instance);
}

struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        Self(Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        if self.0.kill().is_ok() {
            self.0.wait().unwrap();
        }
    }
}

#[test]
fn a_listener_is_found_with_its_holder() {
    let services = Arc::default();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let judgement = look(&target, &services, true);
    assert_eq!(judgement.verdict(), Verdict::Ok, "{judgement:?}");
    assert_eq!(judgement.seen.get("pid"), Some(&Value::Count(std::process::id().into())));
    assert!(matches!(judgement.seen.get("exe"), Some(Value::Text(_))));
    assert!(matches!(judgement.seen.get("backlog"), Some(Value::Count(1..))));
    drop(listener);
    assert_eq!(reasons(&look(&target, &services, true)), [Reason::PortClosed]);
}

#[test]
fn a_dual_stack_wildcard_serves_both_families() {
    let services = Arc::default();
    let Ok(listener) = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)) else {
        println!("skipped: no IPv6 here");
        return;
    };
    let port = listener.local_addr().unwrap().port();
    for host in ["127.0.0.1", "[::1]", "*", "0.0.0.0", "[::]", "localhost"] {
        let judgement = look(&format!("{host}:{port}"), &services, true);
        assert_eq!(judgement.verdict(), Verdict::Ok, "{host}: {judgement:?}");
    }
}

#[test]
fn a_listener_that_never_accepts_is_unresponsive_once_its_queue_is_full() {
    let services = Arc::default();
    let server = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&server, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    listen(&server, 1).unwrap();
    let address = SocketAddr::try_from(rustix::net::getsockname(&server).unwrap()).unwrap();
    assert_eq!(look(&address.to_string(), &services, false).verdict(), Verdict::Ok);
    // A backlog of one takes two.
    let _waiting = [TcpStream::connect(address).unwrap(), TcpStream::connect(address).unwrap()];
    let judgement = look(&address.to_string(), &services, false);
    assert_eq!(reasons(&judgement), [Reason::PortUnresponsive], "{judgement:?}");
    let judgement = look(&address.to_string(), &services, true);
    assert_eq!(reasons(&judgement), [Reason::PortUnresponsive], "{judgement:?}");
}

#[test]
fn a_stranger_on_the_port_is_a_conflict() {
    let services = Arc::default();
    let sleeper = Sleeper::start();
    note(&services, sleeper.0.id());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let judgement = look(&target, &services, true);
    assert_eq!(reasons(&judgement), [Reason::PortConflict], "{judgement:?}");
    let evidence = &judgement.problems[0].evidence;
    assert_eq!(evidence.get("pid"), Some(&Value::Count(std::process::id().into())));
    assert_eq!(evidence.get("service_pid"), Some(&Value::Count(sleeper.0.id().into())));
    // The same listener of the service's own process is none.
    note(&services, std::process::id());
    assert_eq!(look(&target, &services, true).verdict(), Verdict::Ok);
}

#[test]
fn unix_sockets_live_left_over_missing_and_mistaken() {
    let services = Arc::default();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("svc.sock");
    let target = format!("unix:{}", path.display());
    let why = |judgement: &Judgement| judgement.problems[0].summary.clone();
    let missing = look(&target, &services, true);
    assert_eq!(reasons(&missing), [Reason::PortClosed]);
    assert!(why(&missing).contains("does not exist"));
    let listener = UnixListener::bind(&path).unwrap();
    let judgement = look(&target, &services, true);
    assert_eq!(judgement.verdict(), Verdict::Ok, "{judgement:?}");
    assert_eq!(judgement.seen.get("pid"), Some(&Value::Count(std::process::id().into())));
    let _waiting = UnixStream::connect(&path).unwrap();
    assert_eq!(look(&target, &services, true).verdict(), Verdict::Ok);
    drop(listener);
    let left_over = look(&target, &services, true);
    assert_eq!(reasons(&left_over), [Reason::PortClosed]);
    assert!(why(&left_over).contains("left over"));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(why(&look(&target, &services, true)).contains("directory"));
}

#[test]
fn an_abstract_socket_is_found() {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("muster-test-{}", std::process::id());
    let target = format!("unix:@{name}");
    assert_eq!(reasons(&look(&target, &Arc::default(), true)), [Reason::PortClosed]);
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    assert_eq!(look(&target, &Arc::default(), true).verdict(), Verdict::Ok);
}

#[test]
fn discovery_lists_what_listens() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let found = sockets::listening(&HostRoot::default());
    assert!(found.iter().any(|listener| listener.address.to_string() == address), "{found:?}");
}

#[test]
fn without_procfs_it_is_unknown() {
    let root = tempfile::tempdir().unwrap();
    let table = SocketTable::new(HostRoot(root.path().to_owned()));
    let mut probe = PortProbe::new(service(), "127.0.0.1:80".parse().unwrap(), table);
    let context = Context { now: clock::now(), services: Arc::default(), one_shot: true };
    assert_eq!(probe.run(&context).verdict(), Verdict::Unknown);
}

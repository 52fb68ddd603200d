//! The socket's server, as tasks of the net thread.
//!
//! Must never block, and must never believe a caller about who it is.

use super::door::Door;
use crate::config::Config;
use crate::net::NetHandle;
use crate::run::asks::{Ask, Asks, Picture, Refused};
use crate::senses::HostRoot;
use crate::senses::process::id;
use crate::uplink::UplinkStatus;
use muster_agent_core::judgement::Problem;
use muster_agent_core::log::{names_secret, redact};
use muster_agent_core::services::Services;
use muster_common::config::{did_you_mean, nearest};
use muster_common::evidence::{Evidence, Grade};
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::ServiceName;
use muster_common::limits::{
    EVIDENCE_KEY_BYTES_MAX, EVIDENCE_TEXT_BYTES_MAX, NAME_BYTES_MAX, SUBJECT_BYTES_MAX, SUMMARY_BYTES_MAX, clip,
};
use muster_common::reason::{Reason, ReasonKind};
use muster_proto::convert::{bounded, finding_to_wire, severity_to_wire};
use muster_proto::v1;
use muster_proto::v1::local_agent_service_server::{LocalAgentService, LocalAgentServiceServer};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::sync::{oneshot, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

/// Everybody may connect: what a caller may do is decided by its credentials.
const SOCKET_MODE: u32 = 0o666;
/// Calls of one connection at once.
const CALLS_MAX: usize = 4;
/// Bytes of a request: a report with all its evidence.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Keys of evidence a report may bring, beside those that the agent adds.
const REPORT_KEYS_MAX: usize = 16;
/// Reports about one service in one window, of all reasons together. Who reports more is told to come back later.
const REPORTS_PER_WINDOW_MAX: u32 = 300;
/// The window of that bound.
const REPORTS_WINDOW: Duration = Duration::from_secs(60);
/// A caller is not kept waiting for a disk that hangs longer than this.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of an answer: every subject and condition that one agent may have.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// What stands in place of a value whose key says that it is a secret.
const SECRET: &str = "***";

/// Where the link to the coordinator stands, once there is one.
pub type LinkStatus = Arc<OnceLock<watch::Receiver<UplinkStatus>>>;

/// Who may report for which service; changes with the config, and with the users that services run as.
#[derive(Debug)]
pub struct Reporters {
    named: Mutex<BTreeMap<ServiceName, BTreeSet<u32>>>,
    services: Arc<Mutex<Services>>,
}

impl Reporters {
    /// Nobody yet; `services` tells whose processes are whose.
    pub fn new(services: Arc<Mutex<Services>>) -> Self {
        Self { named: Mutex::default(), services }
    }

    /// Takes the services of a config.
    pub fn set(&self, config: &Config) {
        let named =
            |service: &crate::config::Service| (service.name.clone(), service.reporters.iter().copied().collect());
        let services = config.services.iter().map(named);
        *self.named.lock().unwrap_or_else(PoisonError::into_inner) = services.collect();
    }

    /// Whether `uid` may report for `service`; the known services where this is none of them.
    fn may(&self, service: &ServiceName, uid: u32) -> Result<bool, Vec<String>> {
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = match named.get(service) {
            Some(users) => users.contains(&uid),
            None if service.is_host() => false,
            None => return Err(named.keys().map(ToString::to_string).collect()),
        };
        let own = nix::unistd::Uid::effective().as_raw();
        Ok(listed || uid == 0 || uid == own || self.runs_as(service, uid))
    }

    /// Whether the service's main process runs as this user.
    fn runs_as(&self, service: &ServiceName, uid: u32) -> bool {
        let services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let living = services.newest(service).filter(|instance| instance.ended_boottime_ms.is_none());
        let Some(process) = living.map(|instance| instance.process) else { return false };
        let folder = std::fs::metadata(format!("/proc/{}", process.pid));
        // Asked last: its pid may be another process's by now, of another user.
        folder.is_ok_and(|folder| folder.uid() == uid) && id(&HostRoot::default(), process.pid) == Some(process)
    }
}

/// The running server. The socket's file goes with it.
#[derive(Debug)]
pub struct LocalServer {
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl LocalServer {
    /// Binds the socket and serves it.
    pub fn start(
        path: &Path,
        net: &NetHandle,
        asks: Asks,
        reporters: Arc<Reporters>,
        link: LinkStatus,
    ) -> io::Result<Self> {
        let listener = bind(path)?;
        listener.set_nonblocking(true)?;
        let service = LocalAgentServiceServer::new(Local { asks, reporters, link, told: Mutex::default() })
            .max_decoding_message_size(REQUEST_BYTES_MAX)
            .max_encoding_message_size(ANSWER_BYTES_MAX);
        let shown = path.display().to_string();
        let task = net.spawn(async move {
            let listener = match UnixListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => return tracing::error!(%error, socket = shown, "cannot serve the local socket"),
            };
            let server = Server::builder().concurrency_limit_per_connection(CALLS_MAX).timeout(ANSWER_TIMEOUT * 2);
            let door = Door::default();
            let guests = UnixListenerStream::new(listener).filter_map(move |stream| match stream {
                Ok(stream) => door.admit(stream).map(Ok),
                Err(error) => Some(Err(error)),
            });
            let served = { server }.add_service(service).serve_with_incoming(guests).await;
            if let Err(error) = served {
                tracing::error!(error = &error as &dyn std::error::Error, socket = shown, "the local socket is closed");
            }
        });
        Ok(Self { path: path.to_owned(), task })
    }
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        self.task.abort();
        std::fs::remove_file(&self.path).ok();
    }
}

/// Replaces what a dead agent left behind; one that answers stays.
fn bind(path: &Path) -> io::Result<StdListener> {
    let stale = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if stale {
        if answers(path) {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another agent answers on this socket"));
        }
        std::fs::remove_file(path)?;
    }
    let listener = StdListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok(listener)
}

/// Whether anybody listens there, also one who is stopped and takes nobody in: a blocking call would wait for it.
fn answers(path: &Path) -> bool {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let Ok(socket) = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None) else { return false };
    let Ok(address) = SocketAddrUnix::new(path) else { return false };
    match connect(&socket, &address) {
        Ok(()) => true,
        Err(errno) => errno == Errno::AGAIN,
    }
}

struct Local {
    asks: Asks,
    reporters: Arc<Reporters>,
    link: LinkStatus,
    told: Mutex<BTreeMap<ServiceName, Told>>,
}

/// How many reports of one service were taken in this window, of all reasons together.
struct Told {
    since: Instant,
    count: u32,
}

/// Who calls, by the kernel's word.
#[derive(Debug, Clone, Copy)]
struct Peer {
    uid: u32,
    pid: Option<u32>,
}

fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    let credentials = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    let credentials = credentials.ok_or_else(|| Status::unauthenticated("the kernel does not tell who calls"))?;
    Ok(Peer { uid: credentials.uid(), pid: credentials.pid().and_then(|pid| u32::try_from(pid).ok()) })
}

#[tonic::async_trait]
impl LocalAgentService for Local {
    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<Response<v1::ReportResponse>, Status> {
        let peer = peer(&request)?;
        let request = request.into_inner();
        let service = ServiceName::new(bounded("service", &request.service, NAME_BYTES_MAX).map_err(invalid)?);
        let service = service.map_err(invalid)?;
        self.check_reporter(&service, peer)?;
        self.check_budget(&service)?;
        let problem = problem(&request, peer)?;
        let subject = SubjectKey::new(service, ProbeKind::Report, "application");
        let (answer, answered) = oneshot::channel();
        self.put(Ask::Report { subject, problem, answer })?;
        match wait(answered).await? {
            Ok(spool_sequence) => Ok(Response::new(v1::ReportResponse { spool_sequence })),
            Err(why) if why.starts_with("too many") => Err(Status::resource_exhausted(why)),
            Err(why) => Err(Status::unavailable(why)),
        }
    }

    async fn get_local_status(
        &self,
        request: Request<v1::GetLocalStatusRequest>,
    ) -> Result<Response<v1::LocalStatus>, Status> {
        peer(&request)?;
        let (answer, answered) = oneshot::channel();
        self.put(Ask::Picture(answer))?;
        let picture = wait(answered).await?;
        let link = self.link.get().map(|link| link.borrow().clone());
        Ok(Response::new(status(&picture, link.as_ref())))
    }
}

impl Local {
    fn put(&self, ask: Ask) -> Result<(), Status> {
        self.asks.put(ask).map_err(|refused| match refused {
            Refused::Full => Status::resource_exhausted(refused.to_string()),
            Refused::Stopped => Status::unavailable(refused.to_string()),
        })
    }

    /// What one application tells must not push out of the spool what the agent saw.
    fn check_budget(&self, service: &ServiceName) -> Result<(), Status> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let of_service = told.entry(service.clone()).or_insert(Told { since: now, count: 0 });
        if now.duration_since(of_service.since) >= REPORTS_WINDOW {
            *of_service = Told { since: now, count: 0 };
        }
        if of_service.count >= REPORTS_PER_WINDOW_MAX {
            return Err(Status::resource_exhausted(format!("too many reports about {service} in the last minute")));
        }
        of_service.count += 1;
        Ok(())
    }

    /// Root, the agent's own user, who the config names, and who the service runs as.
    fn check_reporter(&self, service: &ServiceName, peer: Peer) -> Result<(), Status> {
        let may = self.reporters.may(service, peer.uid).map_err(|known| {
            let meant = nearest(service.as_str(), known.iter().map(String::as_str));
            let meant = did_you_mean(meant.as_deref());
            Status::not_found(format!("no service {:?} is in the agent's config{meant}", service.as_str()))
        })?;
        if may {
            return Ok(());
        }
        Err(Status::permission_denied(format!(
            "user {} may not report for {service}; name it in the agent's config: [service.{service}] reporters = [{}]",
            peer.uid, peer.uid
        )))
    }
}

async fn wait<T>(answered: oneshot::Receiver<T>) -> Result<T, Status> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answered).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(Status::unavailable("the agent stops")),
        Err(_) => Err(Status::deadline_exceeded("the agent is busy with its disk; the report is kept")),
    }
}

fn invalid(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}

/// A text of an application as it may leave the host: what it reports is often a line that it would have logged.
fn plain(field: &'static str, text: &str, bytes_max: usize) -> Result<String, Status> {
    bounded(field, text, bytes_max).map(|text| clip(&redact(&text), bytes_max)).map_err(invalid)
}

/// What only the agent itself may tell: as an application's word it would be taken for the kernel's.
const SEEN_BY_THE_AGENT: [Reason; 2] = [Reason::OomKill, Reason::ProcessRestarted];

/// The reason of a report; else what was probably meant, of those that may be reported.
fn reportable(code: &str) -> Result<Reason, Status> {
    let occurs = |reason: &Reason| reason.kind() == ReasonKind::Occurrence && !reason.is_stand_in();
    let may_be = |reason: &&Reason| occurs(reason) && !SEEN_BY_THE_AGENT.contains(reason);
    let codes = || Reason::ALL.iter().filter(may_be).map(|reason| reason.as_str());
    let refused = match code.parse::<Reason>() {
        Ok(reason) if may_be(&&reason) => return Ok(reason),
        Ok(reason) if occurs(&reason) => format!("{reason} is what the agent itself sees and tells"),
        Ok(reason) => format!("{reason} is no occurrence: only the agent itself tells when it opens and clears"),
        Err(error) => {
            let spelt = error.found.to_lowercase().replace([' ', '-'], "_");
            let meant = did_you_mean(nearest(&spelt, codes()).as_deref());
            format!("unknown reason code {:?}{meant}", error.found)
        }
    };
    Err(invalid(format!("{refused}; report one of: {}", codes().collect::<Vec<_>>().join(", "))))
}

/// What was reported, as an occurrence.
fn problem(request: &v1::ReportRequest, peer: Peer) -> Result<Problem, Status> {
    let reason = reportable(&request.reason)?;
    let subject = plain("subject", &request.subject, SUBJECT_BYTES_MAX)?;
    let message = plain("message", &request.message, SUMMARY_BYTES_MAX)?;
    if request.evidence.len() > REPORT_KEYS_MAX {
        return Err(invalid(format!("more than {REPORT_KEYS_MAX} keys of evidence")));
    }
    let mut evidence = Evidence::new().count("reported_by_uid", peer.uid);
    if let Some(pid) = peer.pid {
        evidence = evidence.count("reported_by_pid", pid);
    }
    for (key, value) in &request.evidence {
        let key = bounded("evidence key", key, EVIDENCE_KEY_BYTES_MAX).map_err(invalid)?;
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if key.is_empty() || !key.chars().all(is_plain) || key.starts_with("reported_by_") {
            return Err(invalid(format!("{key:?} is no key of evidence: use lower case, digits and _")));
        }
        let value = plain("evidence", value, EVIDENCE_TEXT_BYTES_MAX)?;
        evidence = evidence.text(&key, if names_secret(&key) { SECRET.to_owned() } else { value });
    }
    let summary = match message.is_empty() {
        true => format!("{} (reported by user {}, who said no more)", reason.meaning().trim_end_matches('.'), peer.uid),
        false => message,
    };
    // What an application says is its own word, not what the agent saw.
    let mut problem = Problem::new(reason, summary).evidence(evidence).grade(Grade::Likely);
    problem.subject = (!subject.is_empty()).then_some(subject);
    Ok(problem)
}

fn status(picture: &Picture, link: Option<&UplinkStatus>) -> v1::LocalStatus {
    let now = crate::clock::now();
    let at = |boottime_ms: u64| (now.wall - now.since(boottime_ms)).unix_ms();
    let diagnosis = |story: &muster_agent_core::diagnose::Story| {
        let key = &picture.findings.get(story.cause)?.key;
        Some(v1::LocalDiagnosis {
            service: key.subject.service.to_string(),
            severity: severity_to_wire(story.severity),
            reason: key.reason.to_string(),
            summary: story.sentence.clone(),
            unknown: story.unknown.clone(),
            next_steps: story.next_steps.clone(),
            probe: key.subject.probe.to_string(),
            subject: key.subject.subject.clone(),
            happened_unix_ms: story.happened_boottime_ms.map_or(0, at),
        })
    };
    v1::LocalStatus {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        link: link.map(|link| format!("{:?}", link.phase).to_lowercase()).unwrap_or_default(),
        coordinator: link.map(|link| link.endpoint.clone()).unwrap_or_default(),
        unacked_entries: link.map_or(0, |link| link.unacked_entries),
        findings: picture.findings.iter().take(picture.open_count).map(finding_to_wire).collect(),
        subjects: picture.subjects.clone(),
        diagnoses: picture.stories.iter().filter_map(diagnosis).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_agent_core::services::Instance;
    use muster_common::ids::ProcessId;
    use std::os::unix::process::CommandExt;

    #[test]
    fn whoever_runs_under_a_pid_of_before_is_not_the_service() {
        /// Everybody's "nobody".
        const NOBODY: u32 = 65_534;
        if !nix::unistd::Uid::effective().is_root() {
            println!("skipped: only root starts a process of another user");
            return;
        }
        let mut child = std::process::Command::new("sleep").arg("600").uid(NOBODY).spawn().unwrap();
        let process = id(&HostRoot::default(), child.id()).unwrap();
        let service = ServiceName::new("web").unwrap();
        for (start_ticks, expected) in [(process.start_ticks, true), (process.start_ticks - 1, false)] {
            let mut services = Services::default();
            let process = ProcessId { start_ticks, ..process };
            let instance = Instance {
                process,
                comm: "web".to_owned(),
                exe: None,
                cgroup: None,
                first_seen_boottime_ms: 1,
                ended_boottime_ms: None,
            };
            services.note(&service, instance);
            let reporters = Reporters::new(Arc::new(Mutex::new(services)));
            reporters.named.lock().unwrap().insert(service.clone(), BTreeSet::new());
            assert_eq!(reporters.may(&service, NOBODY), Ok(expected));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

//! Asks health endpoints, as a task on the net thread; what it learned is judged on the quick lane.
//!
//! One request of a probe is under way at a time, and ends by its time-out. Nothing here may block the net thread:
//! names are resolved and files are read on its blocking pool.

mod http;
mod tls;

use crate::config::health::Health;
use crate::net::{Mailbox, NetHandle};
use crate::probe::{Context, Probe, Remembered};
use http::{HttpError, Response};
use muster_agent_core::clock::Now;
use muster_agent_core::health::certificate::Certificate;
use muster_agent_core::health::{Answer, FieldFound, HealthJudge, Outcome, Phase, Reading, Rules};
use muster_agent_core::judgement::Judgement;
use muster_agent_core::log::redact;
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::ServiceName;
use muster_common::units::human_duration;
use rustls::pki_types::ServerName;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tls::{Trust, Witness};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;

/// `doctor` waits no longer for an endpoint: below the deadline of its lane.
const ONE_SHOT_WAIT: Duration = Duration::from_millis(900);
/// Addresses of one name that are tried, one after the other.
const ADDRESSES_MAX: usize = 4;
/// How a body begins that is compressed.
const GZIP: &[u8] = &[0x1f, 0x8b];
/// What some programs write before a text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Threads of the net thread's pool that health endpoints may have at once: one stays for the uplink.
static TURNS: Semaphore = Semaphore::const_new(2);
/// Beyond its interval and time-out a request ends by itself long before this.
const DEAF_SLACK: Duration = Duration::from_secs(30);
/// Room for the judgement after a request that ran into its time-out in `doctor`.
const ONE_SHOT_SLACK: Duration = Duration::from_millis(300);

/// Between the end of a drain and the time-out of its request.
const DRAIN_SLACK: Duration = Duration::from_millis(50);

/// Watches one endpoint.
#[derive(Debug)]
pub struct HealthProbe {
    subject: SubjectKey,
    rules: Rules,
    interval: Duration,
    endpoint: Arc<Endpoint>,
    net: NetHandle,
    mailbox: Option<Arc<Mailbox<Reading>>>,
    /// A request is under way.
    asking: Arc<AtomicBool>,
    asked_boottime_ms: Option<u64>,
    /// When the last answer was taken in.
    heard_boottime_ms: Option<u64>,
    /// When `doctor` asked, beside others.
    begun: Option<Instant>,
    judge: HealthJudge,
    /// What was judged last; it stands until the next answer.
    last: Option<Judgement>,
}

/// Where to connect to.
#[derive(Debug)]
enum Place {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// All that a request needs.
#[derive(Debug)]
struct Endpoint {
    place: Place,
    /// The name in the handshake; `None`: no TLS.
    server_name: Option<Result<ServerName<'static>, String>>,
    ca: Option<PathBuf>,
    trust: Mutex<Option<Trust>>,
    request: Vec<u8>,
    pointer: Option<String>,
    timeout: Duration,
}

impl HealthProbe {
    /// Watches the endpoint of `health` for `service`.
    pub fn new(service: ServiceName, health: &Health, interval: Duration, net: NetHandle) -> Self {
        let endpoint = Endpoint::new(health);
        let socket = match &endpoint.place {
            Place::Unix(path) => Some(path.display().to_string()),
            Place::Tcp { .. } => None,
        };
        let rules = Rules {
            url: health.url.clone(),
            socket,
            status: health.status.clone(),
            field: health.field.as_ref().map(|field| (field.pointer.clone(), field.equals.clone())),
            max_latency: health.max_latency,
            expiry_warning: health.expiry_warning,
            failures: health.failures,
        };
        Self {
            // An address may carry a token.
            subject: SubjectKey::new(service, ProbeKind::Health, &redact(&health.url)),
            rules,
            interval,
            endpoint: Arc::new(endpoint),
            net,
            mailbox: Mailbox::new().ok(),
            asking: Arc::default(),
            asked_boottime_ms: None,
            heard_boottime_ms: None,
            begun: None,
            judge: HealthJudge::default(),
            last: None,
        }
    }

    /// A bell that rings runs the probe too; only a run by the clock asks again.
    fn is_due(&self, now_boottime_ms: u64) -> bool {
        let due_ms = u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX).saturating_mul(9) / 10;
        self.asked_boottime_ms.is_none_or(|asked| asked > now_boottime_ms || now_boottime_ms - asked >= due_ms)
    }

    /// For how long nothing has been heard, where every request should have ended: an answer that old tells nothing of
    /// now.
    fn deaf_for(&self, now: Now) -> Option<Duration> {
        let silent = now.since(self.heard_boottime_ms?);
        (silent > self.interval.saturating_mul(2) + self.endpoint.timeout + DEAF_SLACK).then_some(silent)
    }

    fn one_shot_wait(&self) -> Duration {
        self.endpoint.timeout.min(ONE_SHOT_WAIT)
    }

    fn ask(&self, mailbox: &Arc<Mailbox<Reading>>, time_max: Duration, alone: bool) {
        if self.asking.swap(true, Ordering::AcqRel) {
            return;
        }
        let (endpoint, mailbox) = (Arc::clone(&self.endpoint), Arc::clone(mailbox));
        let asking = Asking(Arc::clone(&self.asking));
        self.net.spawn(async move {
            let reading = endpoint.ask(time_max, alone).await;
            drop(asking);
            mailbox.put(reading);
        });
    }
}

/// Until it is dropped, also with the runtime.
struct Asking(Arc<AtomicBool>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Probe for HealthProbe {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn begin(&mut self) {
        if let Some(mailbox) = &self.mailbox {
            self.ask(mailbox, self.one_shot_wait(), false);
            self.begun = Some(Instant::now());
        }
    }

    fn run(&mut self, context: &Context) -> Judgement {
        let Some(mailbox) = self.mailbox.clone() else {
            return Judgement::unknown("the agent has no descriptor left for this probe", Some("raise LimitNOFILE="));
        };
        if context.one_shot {
            let time_max = self.one_shot_wait();
            let begun = self.begun.take();
            if begun.is_none() {
                self.ask(&mailbox, time_max, true);
            }
            let over = begun.map_or(Duration::ZERO, |begun| begun.elapsed());
            let Some(reading) = mailbox.wait((time_max + ONE_SHOT_SLACK).saturating_sub(over)) else {
                return Judgement::unknown("the agent's net thread did not answer in time", None);
            };
            // Slower than a diagnosis waits is not slower than the service may be.
            if let Outcome::Failed { timed_out: true, why, .. } = &reading.outcome
                && time_max < self.endpoint.timeout
            {
                let (waited, allowed) = (human_duration(time_max), human_duration(self.endpoint.timeout));
                let why = format!("{why} within {waited}; the daemon allows {allowed}");
                return Judgement::unknown(why, Some("ask it yourself with curl, or see what the running agent says"));
            }
            return self.judge.judge(&self.rules, &reading, context.now, true);
        }
        if let Some(reading) = mailbox.take() {
            if matches!(reading.outcome, Outcome::Failed { timed_out: true, .. }) {
                let mut services = context.services.lock().unwrap_or_else(PoisonError::into_inner);
                services.note_silent(&self.subject.service, context.now.boottime_ms);
            }
            self.last = Some(self.judge.judge(&self.rules, &reading, context.now, false));
            self.heard_boottime_ms = Some(context.now.boottime_ms);
        }
        if self.is_due(context.now.boottime_ms) {
            self.asked_boottime_ms = Some(context.now.boottime_ms);
            self.ask(&mailbox, self.endpoint.timeout, false);
        }
        if let Some(silent) = self.deaf_for(context.now) {
            let why = format!("no request has ended for {}: the agent's net thread hangs", human_duration(silent));
            return Judgement::unknown(why, Some("restart the agent, after keeping a stack of it: gdb -p or gcore"));
        }
        self.last.clone().unwrap_or_else(|| Judgement::unknown("the first answer is awaited", None))
    }

    fn wake(&self) -> Option<Arc<OwnedFd>> {
        self.mailbox.as_ref().map(|mailbox| mailbox.bell())
    }

    fn save(&self) -> Option<Remembered> {
        Remembered::of(&self.judge)
    }

    fn restore(&mut self, saved: Remembered) {
        if let Ok(judge) = saved.read() {
            self.judge = judge;
        }
    }
}

/// How far a request came, for whoever ends it.
#[derive(Debug, Default)]
struct Progress {
    phase: AtomicU8,
    /// It waits for a thread that others have: that says nothing about the endpoint.
    waits: AtomicBool,
    /// Nobody else needs the threads.
    alone: bool,
}

const PHASES: [Phase; 4] = [Phase::Resolve, Phase::Connect, Phase::Tls, Phase::Response];

impl Progress {
    fn at(&self, phase: Phase) {
        let index = PHASES.iter().position(|known| *known == phase).unwrap_or(0);
        self.phase.store(u8::try_from(index).unwrap_or(0), Ordering::Release);
    }

    fn phase(&self) -> Phase {
        PHASES.get(usize::from(self.phase.load(Ordering::Acquire))).copied().unwrap_or(Phase::Resolve)
    }
}

/// Why a request has no answer.
enum Trouble {
    Failed(String),
    /// With what would help.
    NotTried(String, Option<&'static str>),
}

/// A socket that the agent may not enter says nothing about the service behind it.
const SOCKET_WAY_OUT: &str = "let the agent in: SupplementaryGroups= with the socket's group in a drop-in of \
    muster-agent.service, or a socket of mode 0666";

impl Endpoint {
    fn new(health: &Health) -> Self {
        let (place, server_name, host, target) =
            match health.url.strip_prefix("unix:").and_then(|rest| rest.split_once(":/")) {
                Some((socket, path)) => {
                    (Place::Unix(PathBuf::from(socket)), None, "localhost".to_owned(), format!("/{path}"))
                }
                None => of_url(health),
            };
        let host = health.host.clone().unwrap_or(host);
        let mut request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAccept: */*\r\n");
        // A service that logs its callers should say who this is.
        if !health.headers.keys().any(|name| name.eq_ignore_ascii_case("user-agent")) {
            request.push_str(concat!("User-Agent: muster-agent/", env!("CARGO_PKG_VERSION"), "\r\n"));
        }
        for (name, value) in &health.headers {
            let _never_fails = write!(request, "{name}: {value}\r\n");
        }
        request.push_str("\r\n");
        Self {
            place,
            server_name,
            ca: health.ca.clone(),
            trust: Mutex::new(None),
            request: request.into_bytes(),
            pointer: health.field.as_ref().map(|field| field.pointer.clone()),
            timeout: health.timeout,
        }
    }

    /// One request, from the name to the last byte, within `time_max`.
    async fn ask(&self, time_max: Duration, alone: bool) -> Reading {
        let progress = Progress { alone, ..Progress::default() };
        let witness: Mutex<Option<Arc<Witness>>> = Mutex::new(None);
        let start = Instant::now();
        let ended = tokio::time::timeout(time_max, self.exchange(&progress, &witness, start + time_max)).await;
        let took = start.elapsed();
        let presented = witness.lock().unwrap_or_else(PoisonError::into_inner).take().and_then(|it| it.presented());
        let certificate = presented.and_then(|der| Certificate::parse(&der));
        let failed = |why: String, timed_out| Outcome::Failed { phase: progress.phase(), why, timed_out, took };
        let outcome = match ended {
            Ok(Ok((response, at))) => Outcome::Answer(self.answer(response, at.duration_since(start))),
            Ok(Err(Trouble::Failed(why))) => failed(why, false),
            Ok(Err(Trouble::NotTried(why, way_out))) => Outcome::NotTried { why, way_out: way_out.map(str::to_owned) },
            Err(_) if progress.waits.load(Ordering::Acquire) => Outcome::NotTried {
                why: "names or CA files of other endpoints hang, and it waits for them".to_owned(),
                way_out: Some("name hosts by address, and keep `ca` on a local disk".to_owned()),
            },
            Err(_) => failed(what_was_missing(progress.phase()).to_owned(), true),
        };
        Reading { outcome, certificate }
    }

    /// The answer, and when it was there.
    async fn exchange(
        &self,
        progress: &Progress,
        witness: &Mutex<Option<Arc<Witness>>>,
        deadline: Instant,
    ) -> Result<(Response, Instant), Trouble> {
        let name = match &self.server_name {
            None => None,
            Some(Ok(name)) => Some(name.clone()),
            Some(Err(why)) => return Err(Trouble::NotTried(why.clone(), None)),
        };
        // Before the connection: a CA that cannot be read says nothing about the service.
        let config = match name {
            Some(name) => {
                let (config, seen) = self
                    .trusted(progress)
                    .await?
                    .config()
                    .map_err(|error| Trouble::NotTried(error.to_string(), None))?;
                *witness.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
                Some((name, config))
            }
            None => None,
        };
        let tcp = match &self.place {
            Place::Unix(path) => {
                progress.at(Phase::Connect);
                let mut stream = UnixStream::connect(path).await.map_err(|error| refused(&error))?;
                progress.at(Phase::Response);
                return self.talk(&mut stream, deadline).await;
            }
            Place::Tcp { host, port } => connect(host, *port, progress).await?,
        };
        let Some((name, config)) = config else {
            progress.at(Phase::Response);
            let mut tcp = tcp;
            return self.talk(&mut tcp, deadline).await;
        };
        progress.at(Phase::Tls);
        let connector = tokio_rustls::TlsConnector::from(config);
        let mut stream = connector.connect(name, tcp).await.map_err(|error| Trouble::Failed(handshake(&error)))?;
        progress.at(Phase::Response);
        self.talk(&mut stream, deadline).await
    }

    async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        deadline: Instant,
    ) -> Result<(Response, Instant), Trouble> {
        let failed = |error: HttpError| Trouble::Failed(error.to_string());
        let response = http::ask(stream, &self.request).await.map_err(failed)?;
        let at = Instant::now();
        if response.cut {
            // There is an answer: it must not be late because of what nobody keeps.
            http::drain(stream, deadline.checked_sub(DRAIN_SLACK).unwrap_or(at)).await;
        }
        Ok((response, at))
    }

    async fn trusted(&self, progress: &Progress) -> Result<Trust, Trouble> {
        let (ca, known) = (self.ca.clone(), self.trust.lock().unwrap_or_else(PoisonError::into_inner).clone());
        let loaded = beside(progress, move || Trust::load(ca.as_deref(), known)).await?;
        let trust = loaded.map_err(|error| Trouble::NotTried(error.to_string(), None))?;
        *self.trust.lock().unwrap_or_else(PoisonError::into_inner) = Some(trust.clone());
        Ok(trust)
    }

    fn answer(&self, response: Response, latency: Duration) -> Answer {
        let field = self.pointer.as_deref().map(|pointer| find(pointer, &response));
        Answer { status: response.status, location: response.location, body: response.body, field, latency }
    }
}

/// Host, port, name in the handshake, `Host` header and path of a URL that the config has checked.
fn of_url(health: &Health) -> (Place, Option<Result<ServerName<'static>, String>>, String, String) {
    let uri: tonic::codegen::http::Uri = health.url.parse().unwrap_or_default();
    let secure = uri.scheme_str() == Some("https");
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let target = uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
    let header = uri.authority().map_or_else(|| host.clone(), ToString::to_string);
    let name = health.server_name.clone().unwrap_or_else(|| host.clone());
    let name =
        ServerName::try_from(name.clone()).map_err(|_| format!("{name:?} is no name that a certificate can have"));
    (Place::Tcp { host, port }, secure.then_some(name), header, target)
}

/// Runs what may hang on the pool. Its few threads are the uplink's too, so health endpoints have to wait for a turn,
/// which is given back when the work is over, not when somebody stops to wait for it. `doctor` has no uplink.
async fn beside<T: Send + 'static>(
    progress: &Progress,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Trouble> {
    let not_tried = |error: &dyn std::fmt::Display| Trouble::NotTried(error.to_string(), None);
    progress.waits.store(true, Ordering::Release);
    let turn = if progress.alone { None } else { Some(TURNS.acquire().await.map_err(|error| not_tried(&error))?) };
    progress.waits.store(false, Ordering::Release);
    let work = move || {
        let _turn = turn;
        work()
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| not_tried(&error))
}

async fn connect(host: &str, port: u16, progress: &Progress) -> Result<TcpStream, Trouble> {
    let addresses: Vec<SocketAddr> = match host.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        Err(_) => {
            progress.at(Phase::Resolve);
            let name = host.to_owned();
            let look = move || Ok((name.as_str(), port).to_socket_addrs()?.take(ADDRESSES_MAX).collect());
            let found: std::io::Result<Vec<SocketAddr>> = beside(progress, look).await?;
            found.map_err(|error| Trouble::Failed(format!("the name {host} does not resolve: {error}")))?
        }
    };
    progress.at(Phase::Connect);
    let mut last = Trouble::Failed(format!("the name {host} has no address"));
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = refused(&error),
        }
    }
    Err(last)
}

fn refused(error: &std::io::Error) -> Trouble {
    if error.kind() == std::io::ErrorKind::PermissionDenied {
        return Trouble::NotTried("the agent may not connect to the socket".to_owned(), Some(SOCKET_WAY_OUT));
    }
    Trouble::Failed(match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "the connection is refused: nobody listens there".to_owned(),
        std::io::ErrorKind::NotFound => "the socket does not exist".to_owned(),
        _ => format!("no connection: {error}"),
    })
}

fn handshake(error: &std::io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(why)) => format!("its certificate is refused: {}", refusal(why)),
        Some(rustls::Error::InvalidMessage(_)) => "it does not speak TLS (is it http instead of https?)".to_owned(),
        _ => format!("the TLS handshake failed: {error}"),
    }
}

/// The library's words, but where they are none that people know.
fn refusal(why: &rustls::CertificateError) -> String {
    let text = why.to_string();
    match why {
        rustls::CertificateError::UnknownIssuer => {
            "nobody who is trusted has signed it; name the service's own CA with `ca`".to_owned()
        }
        _ if text.contains("CaUsedAsEndEntity") => {
            "it is a CA's own (self-signed), which no server may show; sign the server's with it and name it with `ca`"
                .to_owned()
        }
        _ => text,
    }
}

const fn what_was_missing(phase: Phase) -> &'static str {
    match phase {
        Phase::Resolve => "its name was not resolved",
        Phase::Connect => "no connection came about",
        Phase::Tls => "the TLS handshake did not end",
        Phase::Response => "no whole answer came",
    }
}

fn find(pointer: &str, response: &Response) -> FieldFound {
    if response.cut {
        return FieldFound::TooLong;
    }
    let text = response.body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&response.body);
    let body: serde_json::Value = match serde_json::from_slice(text) {
        Ok(body) => body,
        Err(_) if response.body.is_empty() => return FieldFound::NotJson("it is empty".to_owned()),
        Err(_) if response.body.starts_with(GZIP) => {
            return FieldFound::NotJson("it is compressed with gzip, which nobody asked for".to_owned());
        }
        Err(error) => return FieldFound::NotJson(error.to_string()),
    };
    match body.pointer(pointer) {
        Some(serde_json::Value::String(text)) => FieldFound::Value(text.clone()),
        Some(other) => FieldFound::Value(other.to_string()),
        None => FieldFound::Missing,
    }
}

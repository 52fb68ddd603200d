//! Ears: the mTLS port and the Unix socket, in front of the gRPC servers for agents and for everybody else.
//!
//! Each connection proves its identity before the first request; a slow or failing handshake harms nobody else.

use crate::keepalive::Keepalive;
use crate::metrics::Metrics;
use crate::service::caller::{Caller, Who};
use arc_swap::ArcSwap;
use muster_common::chain::Chain;
use muster_common::tls::{Credentials, TlsError, peer_identity, server_config};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

/// A handshake takes milliseconds; who needs longer than this is broken or hostile.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once: 10 000 agents, operators, and room for the old connections of a reconnect storm. Overflow
/// rule: a connection beyond it is closed before its handshake.
const CONNECTIONS_MAX: usize = 20_000;
/// Handshakes at once, so that strangers who never finish theirs take no room from those who did. Overflow rule: a
/// connection beyond it is closed before its handshake.
const HANDSHAKES_MAX: usize = 4_096;
/// Handshakes at once that have just begun. More are not accepted before one of these is over or [`FRESH`]: when a whole
/// fleet comes back, thousands that advance side by side would all be late, and tried again. They wait in the kernel.
const FRESH_MAX: usize = 256;
/// After so long a handshake counts as a stranger's, whom nobody waits for.
const FRESH: Duration = Duration::from_secs(1);
/// Connections that the kernel keeps for us until they are accepted; those beyond knock again a second later.
const BACKLOG: u32 = 4_096;
/// Connections on the Unix socket; people, not fleets.
const LOCAL_CONNECTIONS_MAX: usize = 64;
/// Accepted connections on their way to the server.
const ACCEPTED_MAX: usize = 256;
/// Wait after a failed accept (EMFILE): trying again at once would spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// Between two warnings about refused connections.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);
/// Mode of the Unix socket: the coordinator's user and group.
const SOCKET_MODE: u32 = 0o660;

/// A connection with its proven caller.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    caller: Caller,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Stream {
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// The certificate that new connections are served with. It may be renewed while old connections go on.
pub struct Certificate {
    serving: ArcSwap<Serving>,
}

struct Serving {
    acceptor: TlsAcceptor,
    credentials: Credentials,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").field("credentials", &self.serving.load().credentials).finish()
    }
}

impl Certificate {
    /// Refused when it is not a coordinator's.
    pub fn new(credentials: Credentials) -> Result<Self, TlsError> {
        Ok(Self { serving: ArcSwap::from_pointee(Serving::new(credentials)?) })
    }

    /// New connections get these from now on.
    pub fn renew(&self, credentials: Credentials) -> Result<(), TlsError> {
        let ours = self.serving.load().credentials.identity().clone();
        if &ours != credentials.identity() {
            return Err(TlsError::Setup(format!(
                "the new certificate is of {}, not of {ours}",
                credentials.identity()
            )));
        }
        self.serving.store(Arc::new(Serving::new(credentials)?));
        Ok(())
    }
}

impl Serving {
    fn new(credentials: Credentials) -> Result<Self, TlsError> {
        Ok(Self { acceptor: TlsAcceptor::from(server_config(&credentials)?), credentials })
    }
}

/// Where accepted connections go.
pub type Accepted = mpsc::Receiver<io::Result<Connection>>;

/// The door: listeners put connections in, the servers take them out.
#[derive(Debug, Clone)]
pub struct Door {
    agents: mpsc::Sender<io::Result<Connection>>,
    others: mpsc::Sender<io::Result<Connection>>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    complaints: Arc<Mutex<Complaints>>,
}

/// What was said about refused connections.
#[derive(Debug, Default)]
struct Complaints {
    told: Option<Instant>,
    untold: u64,
}

impl Door {
    /// A door and where agents come in, and everybody else.
    pub fn new(metrics: Arc<Metrics>, stop: CancellationToken) -> (Self, Accepted, Accepted) {
        let (agents, agents_inside) = mpsc::channel(ACCEPTED_MAX);
        let (others, others_inside) = mpsc::channel(ACCEPTED_MAX);
        (Self { agents, others, metrics, stop, complaints: Arc::default() }, agents_inside, others_inside)
    }

    /// Accepts mTLS connections until the coordinator stops.
    pub async fn accept_tls(self, listener: TcpListener, certificate: Arc<Certificate>) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let fresh = Arc::new(Semaphore::new(FRESH_MAX));
        let free = Arc::clone(&slots);
        tokio::spawn(crate::heap::watch(move || CONNECTIONS_MAX - free.available_permits(), self.stop.clone()));
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = accept(&listener, &fresh) => accepted,
            };
            let (stream, address, fresh) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection; trying again");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let room = (Arc::clone(&slots).try_acquire_owned(), Arc::clone(&handshakes).try_acquire_owned());
            let (Ok(permit), Ok(handshaking)) = room else {
                self.metrics.handshakes_failed.inc();
                continue;
            };
            let (door, serving) = (self.clone(), certificate.serving.load_full());
            tokio::spawn(async move {
                let outcome = handshake(&serving, stream, fresh).await;
                drop(handshaking);
                match outcome {
                    Ok((stream, who)) => {
                        let caller = Caller { who, address: address.to_string() };
                        let stream = Stream::Tls(Box::new(stream));
                        door.enter(Connection { stream, caller, _permit: permit }).await;
                    }
                    Err(Failed { why, presented }) => {
                        door.metrics.handshakes_failed.inc();
                        if presented {
                            door.metrics.refused.handshake(&address.to_string(), &why);
                        }
                        door.complain(&address.to_string(), &why);
                    }
                }
            });
        }
    }

    /// Accepts connections of root and of the coordinator's own user until the coordinator stops.
    pub async fn accept_unix(self, listener: UnixListener) {
        let own_uid = nix::unistd::Uid::effective().as_raw();
        let slots = Arc::new(Semaphore::new(LOCAL_CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            };
            let Ok(uid) = stream.peer_cred().map(|credentials| credentials.uid()) else { continue };
            if uid != 0 && uid != own_uid {
                tracing::warn!(uid, "refused on the unix socket: only root and the coordinator's user may use it");
                continue;
            }
            let Ok(permit) = Arc::clone(&slots).try_acquire_owned() else { continue };
            let caller = Caller { who: Who::Local { uid }, address: "unix".to_owned() };
            self.enter(Connection { stream: Stream::Unix(stream), caller, _permit: permit }).await;
        }
    }

    /// Says why a connection was refused: an agent with a wrong certificate is looked for here. Strangers must not fill
    /// the log, so that of the refusals within an interval one is told, and the number of the others with the next.
    fn complain(&self, address: &str, why: &str) {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if complaints.told.is_some_and(|told| told.elapsed() < COMPLAINT_INTERVAL) {
            complaints.untold = complaints.untold.saturating_add(1);
            tracing::debug!(address, why, "connection refused");
            return;
        }
        let others_before = std::mem::take(&mut complaints.untold);
        complaints.told = Some(Instant::now());
        tracing::warn!(address, why, others_before, "connection refused; further ones are told once a minute");
    }

    async fn enter(&self, connection: Connection) {
        let inside = if connection.caller.agent().is_some() { &self.agents } else { &self.others };
        // Closed only when the server has stopped; the connection then ends with it.
        if inside.send(Ok(connection)).await.is_err() {
            tracing::debug!("a connection came after the server had stopped");
        }
    }
}

/// A handshake that did not succeed.
struct Failed {
    why: String,
    /// Over what the peer presented, not because it was slow or gone.
    presented: bool,
}

/// A socket for agents that come all at once, and may be gone without a word.
pub(crate) fn bind_tls(address: SocketAddr, keepalive: Keepalive) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    keepalive.guard(&socket)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The next connection, once there is room for another fresh handshake.
async fn accept(
    listener: &TcpListener,
    fresh: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(fresh).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    Ok((stream, address, permit))
}

async fn handshake(
    serving: &Serving,
    stream: TcpStream,
    fresh: OwnedSemaphorePermit,
) -> Result<(TlsStream<TcpStream>, Who), Failed> {
    let gone = |why: String| Failed { why, presented: false };
    let presented = |why: String| Failed { why, presented: true };
    stream.set_nodelay(true).map_err(|error| gone(error.to_string()))?;
    let mut accepting = serving.acceptor.accept(stream);
    let begun = tokio::time::timeout(FRESH, &mut accepting).await;
    drop(fresh);
    let accepted = match begun {
        Ok(accepted) => Ok(accepted),
        Err(_) => tokio::time::timeout(HANDSHAKE_TIMEOUT - FRESH, accepting).await,
    };
    let stream = accepted.map_err(|_| gone("the handshake took too long".to_owned()))?.map_err(|error| Failed {
        why: Chain(&error).to_string(),
        presented: error.kind() == io::ErrorKind::InvalidData,
    })?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let identity = peer_identity(chain).map_err(|error| presented(Chain(&error).to_string()))?;
    if &identity.fleet != serving.credentials.fleet() {
        return Err(presented(format!("{identity} is of another fleet")));
    }
    Ok((stream, Who::Certificate(identity)))
}

/// Binds the Unix socket, replacing what a dead coordinator left behind.
pub async fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another coordinator answers on this socket"));
    }
    let stale = std::fs::symlink_metadata(path).is_ok_and(|found| {
        use std::os::unix::fs::FileTypeExt;
        found.file_type().is_socket()
    });
    if stale {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok(listener)
}

//! One connection to one coordinator, as a task: connects, opens the stream, passes on what arrives.

use super::Security;
use super::answers::listening_ports;
use super::outbox::OutboxStream;
use super::wire;
use crate::senses::HostRoot;
use hyper_util::rt::TokioIo;
use muster_agent_core::session::{CONNECT_TIMEOUT_MS, End};
use muster_common::limits::LINK_MESSAGE_BYTES_MAX;
use muster_common::tls::client_config;
use muster_proto::v1;
use muster_proto::v1::agent_link_service_client::AgentLinkServiceClient;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::transport::{Channel, Endpoint, Uri};

/// A ping on the connection after so long without a word from the coordinator. To a coordinator the ping of an agent costs
/// as much as its heartbeat, so they are rare: a network that is cut is noticed by [`TCP_USER_TIMEOUT_MS`], and pings are
/// for a coordinator that hangs while its kernel still answers. Another one takes its place by a person's command, which
/// takes minutes: an agent that leaves the old one after 24 s is in time for it …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// … and this long for the answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// Bytes on the way that nobody acknowledges for this long end the connection, by the kernel. With heartbeats every 5 s a
/// cut is noticed within 9 s, which leaves time for a new connection before the 15 s are over after which an agent is
/// stale (`tests/src/loss.rs` tells how sure that is).
const TCP_USER_TIMEOUT_MS: u32 = 4_000;
/// Port of an endpoint that names none.
const PORT_DEFAULT: u16 = 7420;

/// What happens on a link.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// The transport stands; the host listens on these ports.
    Connected(Vec<u16>),
    /// A message.
    Received(Box<v1::ConnectResponse>),
    /// It is over, with the reason in words.
    Ended(End, String),
}

/// Runs one link until its end. When nobody listens to its events any more it reads on in silence, so that what was
/// sent last still gets out.
pub(super) async fn run(
    endpoint: String,
    security: Security,
    root: Option<HostRoot>,
    outbox: OutboxStream,
    events: mpsc::Sender<LinkEvent>,
) {
    let (connected, ports) = tokio::join!(connect(&endpoint, &security), listening_ports(root));
    let (end, words) = match connected {
        Ok(channel) => {
            events.send(LinkEvent::Connected(ports)).await.ok();
            match talk(channel, outbox, &events).await {
                Ok(()) => (End::Unavailable, "the coordinator closed the stream".to_owned()),
                Err(status) => (wire::end(&status), wire::words(&status)),
            }
        }
        Err(error) => (End::Unavailable, wire::error_words(error.as_ref())),
    };
    events.send(LinkEvent::Ended(end, words)).await.ok();
}

async fn talk(channel: Channel, outbox: OutboxStream, events: &mpsc::Sender<LinkEvent>) -> Result<(), tonic::Status> {
    let mut client = AgentLinkServiceClient::new(channel).max_decoding_message_size(LINK_MESSAGE_BYTES_MAX);
    let mut responses = client.connect(outbox).await?.into_inner();
    while let Some(response) = responses.message().await? {
        events.send(LinkEvent::Received(Box::new(response))).await.ok();
    }
    Ok(())
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn connect(endpoint: &str, security: &Security) -> Result<Channel, BoxError> {
    let uri: Uri = endpoint.parse()?;
    let host = uri.host().ok_or("the endpoint names no host; write https://HOST:PORT")?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().unwrap_or(PORT_DEFAULT);
    let tls = match security {
        Security::Mutual(credentials) => {
            Some((TlsConnector::from(client_config(credentials)?), ServerName::try_from(host.clone())?))
        }
        Security::Plain(_) => None,
    };
    let connector = tower::service_fn(move |_: Uri| {
        let (host, tls) = (host.clone(), tls.clone());
        async move { open(&host, port, tls).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from(uri)
        .connect_timeout(Duration::from_millis(CONNECT_TIMEOUT_MS))
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await?;
    Ok(channel)
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

async fn open(host: &str, port: u16, tls: Option<(TlsConnector, ServerName<'static>)>) -> io::Result<Box<dyn Io>> {
    let tcp = TcpStream::connect((host, port)).await?;
    tcp.set_nodelay(true)?;
    rustix::net::sockopt::set_tcp_user_timeout(&tcp, TCP_USER_TIMEOUT_MS)?;
    Ok(match tls {
        Some((connector, name)) => Box::new(connector.connect(name, tcp).await?),
        None => Box::new(tcp),
    })
}

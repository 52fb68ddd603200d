//! Channels to other coordinators: mTLS, bounded waits, a keepalive that notices a silent cut.

use hyper_util::rt::TokioIo;
use muster_common::chain::Chain;
use muster_common::tls::{Credentials, TlsError, client_config};
use rustls::pki_types::ServerName;
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

/// To a coordinator in the same or the next room, TCP and TLS take milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two pings, and for the answer.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// gRPC port of a coordinator.
const DEFAULT_PORT: u16 = 7420;

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not `https://HOST:PORT`.
    #[error("{0:?} is no endpoint; expected https://HOST:PORT")]
    Endpoint(String),
    /// Our own TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Nobody there, or not who we want.
    #[error("cannot connect to {endpoint}: {why}")]
    Connect {
        /// Where.
        endpoint: String,
        /// Why.
        why: String,
    },
}

/// Connects to a coordinator of our fleet.
pub async fn connect(endpoint: &str, credentials: &Credentials) -> Result<Channel, ConnectError> {
    let no_endpoint = || ConnectError::Endpoint(muster_common::limits::clip(endpoint, 200));
    let uri: Uri = endpoint.parse().map_err(|_| no_endpoint())?;
    let host = uri.host().ok_or_else(no_endpoint)?.trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host.clone()).map_err(|_| no_endpoint())?;
    let port = uri.port_u16().unwrap_or(DEFAULT_PORT);
    let tls = TlsConnector::from(client_config(credentials)?);
    let connector = tower::service_fn(move |_: Uri| {
        let (host, name, tls) = (host.clone(), name.clone(), tls.clone());
        async move {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            tls.connect(name, stream).await.map(TokioIo::new)
        }
    });
    let target = Endpoint::from(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true);
    let channel = target.connect_with_connector(connector);
    let failed = |why: String| ConnectError::Connect { endpoint: endpoint.to_owned(), why };
    match tokio::time::timeout(CONNECT_TIMEOUT, channel).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(failed(root_cause(&error))),
        Err(_) => Err(failed(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))),
    }
}

/// The transport's errors are wrapped in "transport error"s that help nobody.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        if let Some(io) = next.downcast_ref::<io::Error>() {
            return Chain(io).to_string();
        }
        cause = next;
    }
    Chain(cause).to_string()
}

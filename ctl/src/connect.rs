//! One connection to one coordinator.
//!
//! The socket and the handshake are done here and not by the channel, so that their errors keep their type and can be
//! answered with what to try.

use crate::commands::note;
use crate::error::CtlError;
use crate::settings::Settings;
use hyper_util::rt::TokioIo;
use muster_common::limits::{NAME_BYTES_MAX, clip};
use muster_common::tls::{Credentials, client_config};
use rustls::pki_types::ServerName;
use std::io::{Error, ErrorKind};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Endpoint, Uri};
use tonic::{Request, Status};

/// Longest wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Longest wait for one answer.
const CALL_MAX: Duration = Duration::from_secs(30);
/// gRPC port when the endpoint names none.
const PORT_DEFAULT: u16 = 7420;

/// Header by which the coordinator hears who uses the account that has its socket.
const SAID: &str = "muster-as";

/// A connection, and who we say to be.
pub(crate) type Channel = InterceptedService<tonic::transport::Channel, Said>;

/// Puts the word that somebody on the socket gives for itself beside each call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Said(Option<MetadataValue<Ascii>>);

impl Interceptor for Said {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(said) = &self.0 {
            request.metadata_mut().insert(SAID, said.clone());
        }
        Ok(request)
    }
}

/// Connects.
pub(crate) async fn connect(settings: &Settings) -> Result<Channel, CtlError> {
    match settings {
        Settings::Socket { path, said } => {
            let word = said.as_ref().map(|said| match is_name(said) {
                true => said.parse().map_err(|_| not_a_name(said)),
                false => Err(not_a_name(said)),
            });
            let channel = connect_socket(path).await?;
            Ok(InterceptedService::new(channel, Said(word.transpose()?)))
        }
        Settings::Endpoint { url, ca, cert, key } => {
            let channel = connect_tls(url, &Credentials::load(ca, cert, key)?).await?;
            Ok(InterceptedService::new(channel, Said::default()))
        }
    }
}

/// As the coordinator takes one.
fn is_name(said: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-@+".contains(c);
    !said.is_empty() && said.len() <= NAME_BYTES_MAX && said.chars().all(plain)
}

fn not_a_name(said: &str) -> CtlError {
    let said = clip(said, NAME_BYTES_MAX);
    CtlError::Usage(format!("--as {said:?} is no name: give at most {NAME_BYTES_MAX} letters, digits and . _ - @ +"))
}

async fn connect_socket(path: &Path) -> Result<tonic::transport::Channel, CtlError> {
    let target = format!("unix:{}", path.display());
    let stream = within(UnixStream::connect(path)).await;
    let stream = stream.map_err(|source| CtlError::Connect { target: target.clone(), source })?;
    channel(target, stream).await
}

async fn connect_tls(url: &str, credentials: &Credentials) -> Result<tonic::transport::Channel, CtlError> {
    let usage = || CtlError::Usage(format!("{url:?} is not an endpoint: expected https://HOST:{PORT_DEFAULT}"));
    let uri: Uri = url.parse().map_err(|_| usage())?;
    if uri.scheme_str() != Some("https") || !matches!(uri.path(), "" | "/") {
        return Err(usage());
    }
    let host = uri.host().ok_or_else(usage)?.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host.clone()).map_err(|_| usage())?;
    let port = uri.port_u16().unwrap_or(PORT_DEFAULT);
    let failed = |source| CtlError::Connect { target: url.to_owned(), source };
    // Or the clock of this host is wrong: the coordinator decides.
    if let Some(word) = credentials.check_own(credentials.identity().role)? {
        note(&format!("your certificate is outside its time ({word}); issue a new one"));
    }
    let tls = TlsConnector::from(client_config(credentials)?);
    let stream = within(async {
        let tcp = TcpStream::connect((host.as_str(), port)).await?;
        tcp.set_nodelay(true)?;
        tls.connect(name, tcp).await
    });
    channel(url.to_owned(), stream.await.map_err(legible).map_err(failed)?).await
}

/// What our own check of the coordinator's certificate said is buried in a wrapper that only shows it for debugging.
fn legible(error: Error) -> Error {
    use rustls::{CertificateError, Error as TlsError};
    match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        Some(TlsError::InvalidCertificate(CertificateError::Other(said))) => {
            Error::new(ErrorKind::InvalidData, format!("its certificate is not accepted: {}", said.0))
        }
        _ => error,
    }
}

async fn within<T>(connecting: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = || Error::new(ErrorKind::TimedOut, format!("no answer within {} s", CONNECT_MAX.as_secs()));
    timeout(CONNECT_MAX, connecting).await.unwrap_or_else(|_| Err(late()))
}

/// A channel over this one stream: when it breaks, the command fails rather than asks somebody else.
async fn channel<S>(target: String, stream: S) -> Result<tonic::transport::Channel, CtlError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut stream = Some(TokioIo::new(stream));
    let once = tower::service_fn(move |_: Uri| {
        let taken = stream.take().ok_or_else(|| Error::new(ErrorKind::NotConnected, "the connection was closed"));
        async move { taken }
    });
    // The name is only the `:authority` of the calls; the peer was proven by its certificate above.
    let endpoint = Endpoint::from_static("http://muster")
        .timeout(CALL_MAX)
        .user_agent(concat!("musterctl/", env!("CARGO_PKG_VERSION")));
    let endpoint = endpoint.map_err(|source| CtlError::Transport { target: target.clone(), source })?;
    endpoint.connect_with_connector(once).await.map_err(|source| CtlError::Transport { target, source })
}

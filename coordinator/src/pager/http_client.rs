//! Plain HTTP/1.1 calls over hyper, with TLS by rustls; mails go by [`super::smtp`] with the same trust.
//!
//! Never follows a redirect, never reads more than a few kilobytes of an answer, never tries twice by itself.

use super::config::origin;
use super::rate::PAUSE_MAX;
use super::receiver::ReceiverError;
use super::secret::Secret;
use super::smtp::{self, Mail};
use arc_swap::ArcSwap;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Uri, header};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use muster_common::chain::Chain;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// An answer's text is only read to explain a refusal.
const ANSWER_BYTES_MAX: usize = 4096;
/// Kept connections are closed after this: receivers and the firewalls before them close idle ones without a word.
const IDLE_MAX: Duration = Duration::from_secs(20);

/// One call.
#[derive(Clone)]
pub struct Request {
    /// Where; shown by its origin only.
    pub url: Uri,
    /// `Authorization: Bearer`.
    pub bearer: Option<Secret>,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
    /// JSON; with none the call is a GET.
    pub body: Option<Bytes>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("url", &origin(&self.url)).finish_non_exhaustive()
    }
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// `Retry-After`, bounded.
    pub retry_after: Option<Duration>,
    /// The beginning of the body.
    pub text: String,
}

/// No answer came back. It may have arrived all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no answer from {origin}: {why}")]
pub struct TransportError {
    /// Scheme, host, port.
    pub origin: String,
    /// The chain of causes.
    pub why: String,
}

/// Makes calls. A test puts its own in place of the network.
pub trait Transport: Send + Sync + 'static {
    /// Makes the call. Cancel-safe: dropping the future ends it.
    fn call(&self, request: Request) -> impl Future<Output = Result<Response, TransportError>> + Send;

    /// Hands a mail to its server; the status is SMTP's.
    fn mail(&self, mail: Mail) -> impl Future<Output = Result<Response, TransportError>> + Send {
        let why = "this transport takes no mail".to_owned();
        async move { Err(TransportError { origin: mail.config.host, why }) }
    }
}

/// The real one; one per receiver, as each has its own trust. Its clones share it.
#[derive(Debug, Clone)]
pub struct HttpClient {
    name: String,
    ca: Option<PathBuf>,
    timeout: Duration,
    wire: Arc<ArcSwap<Wire>>,
}

/// What is made anew when the trust changes.
#[derive(Debug)]
struct Wire {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    tls: Arc<rustls::ClientConfig>,
    /// Of `ca`; empty where the public ones are trusted.
    own: Vec<CertificateDer<'static>>,
}

impl HttpClient {
    /// A client for `name` that trusts `ca`, or the public roots when there is none.
    pub fn new(name: &str, ca: Option<&Path>, timeout: Duration) -> Result<Self, ReceiverError> {
        let (name, ca) = (name.to_owned(), ca.map(Path::to_owned));
        let wire = Wire::new(read_ca(&name, ca.as_deref())?, timeout).map_err(|why| no_trust(&name, &ca, why))?;
        Ok(Self { name, ca, timeout, wire: Arc::new(ArcSwap::from_pointee(wire)) })
    }

    /// Reads its authorities again, for every connection from now on; `true` when they have changed. What cannot be read
    /// leaves the old ones in force.
    pub fn reload(&self) -> Result<bool, ReceiverError> {
        let own = read_ca(&self.name, self.ca.as_deref())?;
        if own == self.wire.load().own {
            return Ok(false);
        }
        let wire = Wire::new(own, self.timeout).map_err(|why| no_trust(&self.name, &self.ca, why))?;
        // Connections that are kept open under the old trust go with the old client.
        self.wire.store(Arc::new(wire));
        Ok(true)
    }
}

impl Wire {
    fn new(own: Vec<CertificateDer<'static>>, timeout: Duration) -> Result<Self, String> {
        let tls = client_config(&own)?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(timeout));
        let connector = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls.clone());
        let connector = connector.https_or_http().enable_http1().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_timer(TokioTimer::new())
            .retry_canceled_requests(false)
            .build(connector);
        Ok(Self { client, tls: Arc::new(tls), own })
    }
}

fn no_trust(name: &str, ca: &Option<PathBuf>, why: String) -> ReceiverError {
    let path = ca.clone().unwrap_or_else(|| PathBuf::from("the public roots"));
    ReceiverError::Ca { name: name.to_owned(), path, why }
}

impl Transport for HttpClient {
    async fn call(&self, request: Request) -> Result<Response, TransportError> {
        let origin = origin(&request.url);
        let failed = |why: String| TransportError { origin: origin.clone(), why };
        let method = if request.body.is_some() { Method::POST } else { Method::GET };
        let mut call = hyper::Request::builder()
            .method(method)
            .uri(request.url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("muster/", env!("CARGO_PKG_VERSION")));
        for (name, value) in request.headers {
            call = call.header(name, value);
        }
        if let Some(token) = &request.bearer {
            let value = header::HeaderValue::from_str(&format!("Bearer {}", token.expose()));
            let mut value = value.map_err(|_| failed("the token cannot be sent in a header".to_owned()))?;
            value.set_sensitive(true);
            call = call.header(header::AUTHORIZATION, value);
        }
        let body = Full::new(request.body.unwrap_or_default());
        let call = call.body(body).map_err(|error| failed(error.to_string()))?;
        let client = self.wire.load().client.clone();
        let answer = client.request(call).await.map_err(|error| failed(Chain(&error).to_string()))?;
        let status = answer.status().as_u16();
        let retry_after = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|text| parse_retry_after(text, jiff::Timestamp::now()));
        Ok(Response { status, retry_after, text: beginning(answer.into_body()).await })
    }

    async fn mail(&self, mail: Mail) -> Result<Response, TransportError> {
        let tls = Arc::clone(&self.wire.load().tls);
        smtp::send(&mail, tls).await
    }
}

/// The body's first bytes as text. A body that breaks off explains less; the status has been said already.
async fn beginning(mut body: hyper::body::Incoming) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < ANSWER_BYTES_MAX {
        let Some(Ok(frame)) = body.frame().await else { break };
        if let Some(data) = frame.data_ref() {
            let room = ANSWER_BYTES_MAX.saturating_sub(bytes.len());
            bytes.extend(data.iter().take(room));
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Seconds, or a date in the form of mail headers.
fn parse_retry_after(text: &str, now: jiff::Timestamp) -> Option<Duration> {
    let text = text.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
            Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
        }
    };
    Some(wait.min(PAUSE_MAX))
}

/// The certificates that `ca` has, if there is one.
fn read_ca(name: &str, ca: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, ReceiverError> {
    let Some(path) = ca else { return Ok(Vec::new()) };
    let unread = |why: String| ReceiverError::Ca { name: name.to_owned(), path: path.to_owned(), why };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unread(error.to_string()))?;
    let certificates: Result<Vec<_>, _> = certificates.collect();
    let certificates = certificates.map_err(|error| unread(error.to_string()))?;
    if certificates.is_empty() {
        return Err(unread("no certificate in it".to_owned()));
    }
    Ok(certificates)
}

/// Trusts `own`, or the public roots where there is none.
fn client_config(own: &[CertificateDer<'static>]) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    if own.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    for certificate in own {
        roots.add(certificate.clone()).map_err(|error| error.to_string())?;
    }
    let builder = rustls::ClientConfig::builder_with_provider(muster_common::tls::provider());
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn retry_after_is_read_and_bounded() {
        let now: jiff::Timestamp = "2026-11-21T01:00:00Z".parse().unwrap();
        let parse = |text| parse_retry_after(text, now);
        assert_eq!(parse(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(parse("99999999"), Some(PAUSE_MAX));
        assert_eq!(parse("Sat, 21 Nov 2026 01:00:30 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(parse("Sat, 21 Nov 2026 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(parse("soon"), None);
        assert_eq!(parse("-1"), None);
        assert_eq!(parse("Fri, 31 Dec 2100 23:59:59 GMT"), Some(PAUSE_MAX));
    }

    proptest! {
        #[test]
        fn any_retry_after_is_bounded(text in "\\PC*|[0-9]{0,40}|Sat, [0-9]{1,9} Nov [0-9]{1,9} 01:00:30 GMT") {
            let wait = parse_retry_after(&text, jiff::Timestamp::UNIX_EPOCH);
            prop_assert!(wait.is_none_or(|wait| wait <= PAUSE_MAX));
        }
    }
}

//! The caller's side of the agent's Unix socket, for the command line.

use hyper_util::rt::TokioIo;
use muster_proto::v1;
use muster_proto::v1::local_agent_service_client::LocalAgentServiceClient;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// A call is given up after this; the server's own bound is shorter.
const CALL_TIMEOUT: Duration = Duration::from_secs(12);
/// Bytes of an answer.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Nobody listens, or the socket cannot be used.
    #[error("no agent answers on {path}; is it running? (systemctl status muster-agent)")]
    Connect {
        /// The socket.
        path: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// It listens and says nothing.
    #[error("the agent on {path} gives no answer within {} ms", within.as_millis())]
    Silent {
        /// The socket.
        path: String,
        /// How long it was waited for.
        within: Duration,
    },
    /// The agent said no.
    #[error("{}", .0.message())]
    Refused(tonic::Status),
    /// No runtime.
    #[error("cannot start")]
    Start(#[from] std::io::Error),
}

/// Tells the agent of something that happened.
pub fn report(socket: &Path, request: v1::ReportRequest) -> Result<v1::ReportResponse, LocalError> {
    call(socket, None, async |mut client| client.report(request).await)
}

/// Asks the agent how things stand.
pub fn status(socket: &Path) -> Result<v1::LocalStatus, LocalError> {
    call(socket, None, async |mut client| client.get_local_status(v1::GetLocalStatusRequest {}).await)
}

/// The same for somebody who cannot wait and tells it on: only an agent of root, of this user, or of whom the socket's
/// folder belongs to is believed.
pub fn status_at_once(socket: &Path, within: Duration) -> Result<v1::LocalStatus, LocalError> {
    call(socket, Some(within), async |mut client| client.get_local_status(v1::GetLocalStatusRequest {}).await)
}

/// By the kernel's word; whoever may write to the folder may put a socket of his own there.
fn is_known(stream: &UnixStream, socket: &Path) -> std::io::Result<bool> {
    let uid = stream.peer_cred()?.uid();
    let folder = socket.parent().map(std::fs::metadata).transpose()?;
    let owner = folder.filter(|folder| folder.mode() & 0o002 == 0).map(|folder| folder.uid());
    Ok(uid == 0 || uid == nix::unistd::Uid::effective().as_raw() || owner == Some(uid))
}

/// With a bound on all of it, the peer is looked at as well.
fn call<T>(
    socket: &Path,
    at_once: Option<Duration>,
    work: impl AsyncFnOnce(LocalAgentServiceClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
) -> Result<T, LocalError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let talk = async {
        let path: PathBuf = socket.to_owned();
        let connect = service_fn(move |_: Uri| {
            let path = path.clone();
            async move {
                let stream = UnixStream::connect(&path).await?;
                if at_once.is_some() && !is_known(&stream, &path)? {
                    return Err(std::io::Error::other("another user's program answers there"));
                }
                Ok(TokioIo::new(stream))
            }
        });
        // The address is only the name of the server in the request; the connector goes to the socket.
        let endpoint = Endpoint::from_static("http://localhost").timeout(CALL_TIMEOUT);
        let channel = endpoint.connect_with_connector(connect).await;
        let channel = channel.map_err(|source| LocalError::Connect { path: socket.display().to_string(), source })?;
        let client = LocalAgentServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        Ok(work(client).await.map_err(LocalError::Refused)?.into_inner())
    };
    runtime.block_on(async {
        let Some(within) = at_once else { return talk.await };
        let silent = |_| LocalError::Silent { path: socket.display().to_string(), within };
        tokio::time::timeout(within, talk).await.map_err(silent)?
    })
}

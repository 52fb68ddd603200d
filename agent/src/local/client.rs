//! The caller's side of the agent's Unix socket, for the command line.

use hyper_util::rt::TokioIo;
use muster_proto::v1;
use muster_proto::v1::local_agent_service_client::LocalAgentServiceClient;
use std::path::{Path, PathBuf};
use std::time::Duration;
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
    /// The agent said no.
    #[error("{}", .0.message())]
    Refused(tonic::Status),
    /// No runtime.
    #[error("cannot start")]
    Start(#[from] std::io::Error),
}

/// Tells the agent of something that happened.
pub fn report(socket: &Path, request: v1::ReportRequest) -> Result<v1::ReportResponse, LocalError> {
    call(socket, async |mut client| client.report(request).await)
}

/// Asks the agent how things stand.
pub fn status(socket: &Path) -> Result<v1::LocalStatus, LocalError> {
    call(socket, async |mut client| client.get_local_status(v1::GetLocalStatusRequest {}).await)
}

fn call<T>(
    socket: &Path,
    work: impl AsyncFnOnce(LocalAgentServiceClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
) -> Result<T, LocalError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let path: PathBuf = socket.to_owned();
        let connect = service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
        });
        // The address is only the name of the server in the request; the connector goes to the socket.
        let endpoint = Endpoint::from_static("http://localhost").timeout(CALL_TIMEOUT);
        let channel = endpoint.connect_with_connector(connect).await;
        let channel = channel.map_err(|source| LocalError::Connect { path: socket.display().to_string(), source })?;
        let client = LocalAgentServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        Ok(work(client).await.map_err(LocalError::Refused)?.into_inner())
    })
}

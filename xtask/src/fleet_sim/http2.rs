//! gRPC over one HTTP/2 connection with mutual TLS, as little of it as a simulated agent needs: no channel, no tasks of
//! its own, small windows. Ten thousand of them must not eat the machine they share with what is measured.

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{Connection, SendRequest};
use h2::{RecvStream, SendStream};
use prost::Message;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Bytes that may be on their way to us, on a stream and a connection.
const WINDOW_BYTES: u32 = 64 * 1024;
/// A listing of ten thousand agents fits.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes before each message: a flag and its length.
const PREFIX_BYTES: usize = 5;

/// The transport below.
pub(crate) type Wire = Connection<TlsStream<TcpStream>, Bytes>;

/// Connects from `source`, within `limit`.
pub(crate) async fn connect(
    source: IpAddr,
    target: SocketAddr,
    tls: Arc<ClientConfig>,
    limit: Duration,
) -> Result<(SendRequest<Bytes>, Wire)> {
    let connecting = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(source, 0))?;
        let tcp = socket.connect(target).await?;
        tcp.set_nodelay(true)?;
        // A process that ends or resets leaves nothing behind that would block its port.
        tcp.set_zero_linger()?;
        let tls = TlsConnector::from(tls).connect(ServerName::try_from("localhost")?, tcp).await?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES).enable_push(false);
        Ok(builder.handshake(tls).await?)
    };
    tokio::time::timeout(limit, connecting).await.context("no connection in time")?
}

/// Opens a call. The caller drives the connection until the answer is there.
pub(crate) fn open(
    requests: &mut SendRequest<Bytes>,
    path: &str,
) -> Result<(h2::client::ResponseFuture, SendStream<Bytes>)> {
    let request = http::Request::post(format!("https://localhost/muster.v1.{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    Ok(requests.send_request(request, false)?)
}

/// A message with its prefix.
pub(crate) fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    bytes.put_slice(&message.encode_to_vec());
    bytes.freeze()
}

/// Cuts a stream of bytes into messages.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    bytes: BytesMut,
}

impl Messages {
    /// Takes what arrived.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message.
    pub(crate) fn next<M: Message + Default>(&mut self) -> Result<Option<M>> {
        let Some(&[_, a, b, c, d]) = self.bytes.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d]))?;
        ensure!(length <= ANSWER_BYTES_MAX, "a message of {length} bytes");
        if self.bytes.len() < PREFIX_BYTES + length {
            return Ok(None);
        }
        let mut whole = self.bytes.split_to(PREFIX_BYTES + length);
        let message = M::decode(whole.split_off(PREFIX_BYTES).freeze())?;
        // An idle stream holds no buffer.
        if self.bytes.is_empty() {
            self.bytes = BytesMut::new();
        }
        Ok(Some(message))
    }
}

/// The next piece of an answer; `None` at its end.
pub(crate) async fn piece(body: &mut RecvStream) -> Result<Option<Bytes>> {
    match body.data().await {
        None => Ok(None),
        Some(data) => {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            Ok(Some(data))
        }
    }
}

/// The gRPC code of a call that ended; 0 is well.
pub(crate) fn code(headers: &http::HeaderMap) -> Option<(i32, String)> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    Some((text("grpc-status")?.parse().ok()?, text("grpc-message").unwrap_or_default().to_owned()))
}

/// An operator who asks.
pub(crate) struct Operator {
    requests: SendRequest<Bytes>,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Operator {
    /// Connects; runs on the current runtime.
    pub(crate) async fn connect(target: SocketAddr, tls: Arc<ClientConfig>) -> Result<Self> {
        let (requests, wire) = connect([127, 0, 0, 1].into(), target, tls, Duration::from_secs(20)).await?;
        // How it ended is told to whoever calls.
        let driver = tokio::spawn(async move { drop(wire.await) });
        Ok(Self { requests, driver })
    }

    /// One question, one answer.
    pub(crate) async fn ask<A: Message + Default>(&mut self, path: &str, question: &impl Message) -> Result<A> {
        let mut body = self.call(path, question).await?;
        let mut messages = Messages::default();
        while let Some(data) = piece(&mut body).await? {
            messages.push(&data);
        }
        if let Some(answer) = messages.next()? {
            return Ok(answer);
        }
        let trailers = body.trailers().await?.unwrap_or_default();
        bail!("{path} was answered with {:?}", code(&trailers))
    }

    /// One question, and what is told from then on.
    pub(crate) async fn call(&mut self, path: &str, question: &impl Message) -> Result<RecvStream> {
        let mut requests = self.requests.clone().ready().await?;
        let (answer, mut stream) = open(&mut requests, path)?;
        stream.send_data(frame(question), true)?;
        let answer = answer.await?;
        if let Some((code, why)) = code(answer.headers()) {
            bail!("{path} was refused with code {code}: {why}");
        }
        Ok(answer.into_body())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_proto::v1::Ping;

    #[test]
    fn messages_are_cut_wherever_the_pieces_end() {
        let all: Vec<u8> = [1, 300, 70_000].map(|id| frame(&Ping { id })).concat();
        for size in [1, 3, all.len()] {
            let (mut messages, mut ids) = (Messages::default(), Vec::new());
            for piece in all.chunks(size) {
                messages.push(piece);
                while let Some(Ping { id }) = messages.next().unwrap() {
                    ids.push(id);
                }
            }
            assert_eq!(ids, [1, 300, 70_000], "in pieces of {size}");
        }
    }
}

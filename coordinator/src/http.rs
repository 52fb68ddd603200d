//! Plain HTTP for machines: `/healthz` (the loop turns), `/readyz` (this is the primary, and it stores), `/metrics`; and
//! where it is configured, `POST /pagerduty/webhook`, which believes nobody without a signature.

use crate::pager::inbound::Inbound;
use crate::runtime::{CoordinatorRole, Handle};
use crate::service::pagerduty::{self, WebhookDoor};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// A loop that does not answer a read within this time hangs or is drowned.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections at once: a few scrapers and probes. Nobody proves who they are here, so they must not take the file
/// descriptors that agents need. Overflow rule: one more waits in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
/// A connection on which nothing comes for this long is closed, so that idle ones do not hold the others out.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves until the coordinator stops.
pub async fn serve(listener: TcpListener, handle: Handle, inbound: Option<Arc<Inbound>>) -> std::io::Result<()> {
    let stop = handle.stopping();
    let routes = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(handle.clone());
    let routes = match inbound {
        Some(inbound) => {
            let door = WebhookDoor::new(handle, inbound);
            routes.merge(Router::new().route("/pagerduty/webhook", post(pagerduty::take)).with_state(door))
        }
        None => routes,
    };
    let listener = Bounded { listener, slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)) };
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// True when the loop turns and answers, and what it was told is stored: a failed commit ends the process.
pub(crate) async fn answers(handle: &Handle) -> bool {
    matches!(tokio::time::timeout(ANSWER_TIMEOUT, handle.query(|_| ())).await, Ok(Ok(())))
}

async fn healthz(State(handle): State<Handle>) -> Response {
    if answers(&handle).await {
        return (StatusCode::OK, "ok\n").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the loop does not answer\n").into_response()
}

async fn readyz(State(handle): State<Handle>) -> Response {
    let role = handle.role();
    if role != CoordinatorRole::Primary {
        let text = format!("not the primary: this coordinator is {}\n", role.as_str());
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    if !answers(&handle).await {
        return (StatusCode::SERVICE_UNAVAILABLE, "the loop does not answer\n").into_response();
    }
    (StatusCode::OK, "ready\n").into_response()
}

async fn metrics(State(handle): State<Handle>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], handle.metrics().encode()).into_response()
}

/// A listener with a bounded number of connections.
struct Bounded {
    listener: TcpListener,
    slots: Arc<Semaphore>,
}

impl axum::serve::Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let permit = match Arc::clone(&self.slots).acquire_owned().await {
            Ok(permit) => permit,
            // Nobody closes the semaphore; if somebody did, nobody would be served.
            Err(_) => std::future::pending().await,
        };
        let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
        (Connection { stream, idle: Box::pin(sleep(IDLE_TIMEOUT)), _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when nothing comes for too long.
struct Connection {
    stream: TcpStream,
    idle: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if read.is_ready() {
            this.idle.as_mut().reset(Instant::now() + IDLE_TIMEOUT);
            return read;
        }
        this.idle.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_gives_its_place_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut bounded = Bounded { listener, slots: Arc::new(Semaphore::new(1)) };
        let _first = TcpStream::connect(address).await.unwrap();
        let _second = TcpStream::connect(address).await.unwrap();
        let (mut connection, _) = axum::serve::Listener::accept(&mut bounded).await;
        assert_eq!(bounded.slots.available_permits(), 0);
        let ended = connection.read_u8().await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        drop(connection);
        axum::serve::Listener::accept(&mut bounded).await;
    }
}

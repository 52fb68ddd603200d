//! Plain HTTP for machines: `/healthz` (the loop turns), `/readyz` (this is the primary, and it stores), `/metrics`.

use crate::runtime::{CoordinatorRole, Handle};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::time::Duration;
use tokio::net::TcpListener;

/// A loop that does not answer a read within this time hangs or is drowned.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until the coordinator stops.
pub async fn serve(listener: TcpListener, handle: Handle) -> std::io::Result<()> {
    let stop = handle.stopping();
    let routes = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(handle);
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn answers(handle: &Handle) -> bool {
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

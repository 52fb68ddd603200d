//! PagerDuty's documented rules in a server of our own that fails in every way a service can: 429 with both forms of
//! `Retry-After`, 5xx, slowness, a reset in mid-answer, answers that are none.

use crate::http::{KEY, deliver_all, pagerduty};
use crate::{page, primary};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Response, StatusCode};
use axum::routing::post;
use muster_coordinator::pager::Outcome;
use muster_coordinator_core::page::{Page, PageAction};
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// What the next calls get in place of an answer.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Seconds,
    Date,
    Unavailable,
    Slow,
}

#[derive(Default)]
struct Strict {
    faults: VecDeque<Fault>,
    /// Open alerts by their key, and how often each was triggered.
    open: BTreeMap<String, u64>,
    resolved: Vec<String>,
    violations: Vec<String>,
    calls: u64,
}

type Shared = Arc<Mutex<Strict>>;

/// Everything that the documentation forbids.
fn violations(body: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let mut unless = |holds: bool, rule: &str| {
        if !holds {
            found.push(rule.to_owned());
        }
    };
    unless(body.len() <= 512 * 1024, "the body is at most 512 KB");
    let event: Value = match serde_json::from_slice(body) {
        Ok(event) => event,
        Err(_) => return vec!["the body is JSON".to_owned()],
    };
    let chars = |value: &Value| value.as_str().map(|text| text.chars().count());
    unless(event["routing_key"] == KEY, "the routing key has 32 characters and is known");
    let action = event["event_action"].as_str().unwrap_or_default();
    unless(["trigger", "acknowledge", "resolve"].contains(&action), "the action is one of three");
    unless(chars(&event["dedup_key"]).is_some_and(|n| (1..=255).contains(&n)), "the key has 1 to 255 characters");
    if action == "trigger" {
        let payload = &event["payload"];
        unless(
            chars(&payload["summary"]).is_some_and(|n| (1..=1024).contains(&n)),
            "a summary of 1 to 1024 characters",
        );
        unless(chars(&payload["source"]).is_some_and(|n| n > 0), "a source");
        let severity = payload["severity"].as_str().unwrap_or_default();
        unless(["critical", "error", "warning", "info"].contains(&severity), "one of four severities");
        let timestamp = payload["timestamp"].as_str().unwrap_or_default();
        unless(timestamp.parse::<jiff::Timestamp>().is_ok(), "a timestamp of ISO 8601");
        unless(payload["custom_details"].is_object(), "details are an object");
    }
    found
}

async fn enqueue(State(strict): State<Shared>, body: Bytes) -> Response<Body> {
    let answer = |status: u16, header: Option<String>, text: &str| {
        let builder = Response::builder().status(status);
        let builder = header.into_iter().fold(builder, |builder, value| builder.header("retry-after", value));
        builder.body(Body::from(text.to_owned())).unwrap()
    };
    let fault = {
        let mut strict = strict.lock().unwrap();
        strict.calls += 1;
        strict.faults.pop_front()
    };
    match fault {
        Some(Fault::Seconds) => return answer(429, Some("1".to_owned()), "slow down"),
        Some(Fault::Date) => {
            let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(1);
            let date = jiff::fmt::rfc2822::to_string(&soon.to_zoned(jiff::tz::TimeZone::UTC)).unwrap();
            return answer(429, Some(date.replace("+0000", "GMT")), "slow down");
        }
        Some(Fault::Unavailable) => return answer(503, None, "<html>not today</html>"),
        Some(Fault::Slow) => std::future::pending().await,
        None => {}
    }
    let found = violations(&body);
    let mut strict = strict.lock().unwrap();
    if !found.is_empty() {
        strict.violations.extend(found);
        return answer(400, None, r#"{"status":"invalid event"}"#);
    }
    let event: Value = serde_json::from_slice(&body).unwrap();
    let key = event["dedup_key"].as_str().unwrap().to_owned();
    match event["event_action"].as_str().unwrap() {
        "trigger" => *strict.open.entry(key).or_default() += 1,
        "resolve" if strict.open.remove(&key).is_some() => strict.resolved.push(key),
        _ => {}
    }
    answer(StatusCode::ACCEPTED.as_u16(), None, r#"{"status":"success"}"#)
}

async fn start(faults: &[Fault]) -> (u16, Shared) {
    let shared: Shared = Arc::default();
    shared.lock().unwrap().faults.extend(faults);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let routes = Router::new().route("/v2/enqueue", post(enqueue)).with_state(Arc::clone(&shared));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (port, shared)
}

#[tokio::test]
async fn no_failure_breaks_a_rule_or_loses_a_page() {
    let (port, strict) = start(&[Fault::Seconds, Fault::Unavailable, Fault::Slow, Fault::Date]).await;
    let dir = tempfile::tempdir().unwrap();
    let journal = primary();
    for number in 0..5 {
        let key = format!("key-{number}");
        journal.request(10 + number, page("oncall", &key, PageAction::Trigger));
        journal.request(20 + number, page("oncall", &key, PageAction::Acknowledge));
        journal.request(30 + number, page("oncall", &key, PageAction::Resolve));
    }
    deliver_all(&journal, pagerduty(dir.path(), port)).await;
    let outcomes: Vec<_> = journal.pages.lock().unwrap().values().map(|(_, outcome)| outcome.clone()).collect();
    assert!(outcomes.iter().all(|outcome| *outcome == Some(Outcome::Delivered)), "{outcomes:?}");
    let strict = strict.lock().unwrap();
    assert_eq!((strict.violations.as_slice(), strict.open.len(), strict.resolved.len()), ([].as_slice(), 0, 5));
    assert_eq!(strict.calls, 15 + 4, "each failure costs one call");
}

#[tokio::test]
async fn the_worst_page_keeps_the_rules() {
    let (port, strict) = start(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    let journal = primary();
    let worst = Page {
        title: "\u{1}ü<&\"".repeat(2000),
        why: "w".repeat(100_000),
        details: vec!["\u{0}".repeat(5_000); 500],
        next_steps: vec!["\u{7f}".repeat(5_000); 500],
        agents: vec!["h".repeat(64); 5_000],
        services: vec!["s".repeat(64); 500],
        n_agents: u64::MAX,
        late_by_ms: Some(u64::MAX),
        ..page("oncall", &"ü".repeat(300), PageAction::Trigger)
    };
    journal.request(1, worst);
    deliver_all(&journal, pagerduty(dir.path(), port)).await;
    assert_eq!(journal.outcome(1), Some(Outcome::Delivered), "{:?}", strict.lock().unwrap().violations);
}

/// A server that is none: it gives `answers` one after the other, then closes; after them it is PagerDuty.
#[tokio::test]
async fn garbage_and_resets_are_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answers: [&[u8]; 6] = [
        b"",
        b"\x00\xff\x15\x03\x01garbage\r\n\r\n",
        b"HTTP/1.1 202 Accepted\r\ncontent-le",
        b"HTTP/1.1 999 huh\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 503 no\r\nretry-after: soon\r\ncontent-length: 9999\r\n\r\nbroken off",
        b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\n{}",
    ];
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0u8; 16 * 1024];
            stream.read(&mut buffer).await.map(drop).ok();
            stream.write_all(answer).await.ok();
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let journal = primary();
    journal.request(1, page("oncall", "a", PageAction::Trigger));
    deliver_all(&journal, pagerduty(dir.path(), port)).await;
    assert_eq!(journal.outcome(1), Some(Outcome::Delivered));
}

//! Over real HTTP: what Slack answers, and the sign of life, to a URL under another authority and to an Alertmanager.

use crate::http::{PATIENCE, TlsStandIn, call, config, deliver_all, lane};
use crate::{page, primary};
use muster_coordinator::pager::config::WebhookUrl;
use muster_coordinator::pager::heartbeat::{HeartbeatConfig, HeartbeatTarget, TIMEOUT, Watchdog, beat};
use muster_coordinator::pager::http_client::{HttpClient, Transport};
use muster_coordinator::pager::receiver::Judgement;
use muster_coordinator::pager::{Outcome, ReceiverConfig, ReceiverKind, Stats};
use muster_coordinator::paging::Paging;
use muster_coordinator_core::page::PageAction;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// As long as Slack's own, and as secret.
const SECRET_PATH: &str = "/services/T00000000/B00000000/0123456789abcdef01234567";
/// So often that a test sees many, and no oftener than it polls.
const BEAT: Duration = Duration::from_millis(20);

fn slack(dir: &Path, origin: &str) -> ReceiverConfig {
    let url_file = dir.join("slack");
    std::fs::write(&url_file, format!("{origin}{SECRET_PATH}\n")).unwrap();
    config("chat", ReceiverKind::Slack { url_file: url_file.into() })
}

/// Polls until it holds.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        sleep(BEAT).await;
    }
}

#[tokio::test]
async fn each_answer_of_slack_is_taken_as_it_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    let answered = async |answer: &str| {
        let of = |url: &str| slack(dir.path(), url.trim_end_matches("/hook"));
        let (judged, request) = call(of, answer.as_bytes().to_vec()).await;
        assert!(request.starts_with(&format!("POST {SECRET_PATH} HTTP/1.1\r\n")), "{request}");
        assert!(request.contains("content-type: application/json\r\n"), "{request}");
        let body: serde_json::Value = serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert!(body["blocks"].as_array().is_some_and(|blocks| blocks.len() >= 3), "{body}");
        judged
    };
    assert_eq!(answered("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await, Judgement::Delivered);
    for (answer, patience) in [
        ("HTTP/1.1 429 x\r\nretry-after: 7\r\ncontent-length: 12\r\n\r\nrate_limited", Some(7)),
        ("HTTP/1.1 500 x\r\ncontent-length: 14\r\n\r\nrollback_error", None),
        ("HTTP/1.1 503 x\r\nretry-after: 3\r\ncontent-length: 0\r\n\r\n", Some(3)),
    ] {
        let Judgement::Retry { error, after } = answered(answer).await else { panic!("{answer}") };
        assert_eq!(after, patience.map(Duration::from_secs), "{answer}");
        assert!(!error.contains(SECRET_PATH), "{error}");
    }
    for (answer, word) in [
        ("HTTP/1.1 403 x\r\ncontent-length: 12\r\n\r\ninvalid_auth", "invalid_auth"),
        ("HTTP/1.1 404 x\r\ncontent-length: 10\r\n\r\nno_service", "no_service"),
        ("HTTP/1.1 410 x\r\ncontent-length: 19\r\n\r\nchannel_is_archived", "channel_is_archived"),
    ] {
        let Judgement::Refused(error) = answered(answer).await else { panic!("{answer}") };
        assert!(error.contains(word) && !error.contains(SECRET_PATH), "{error}");
    }
}

#[tokio::test]
async fn slack_gets_the_same_message_again_until_it_says_ok() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&requests);
    tokio::spawn(async move {
        let again = "content-length: 0\r\nconnection: close\r\n\r\n";
        for head in ["HTTP/1.1 502 x\r\n", "HTTP/1.1 429 x\r\nretry-after: 1\r\n", "HTTP/1.1 200 OK\r\n"] {
            let stream = listener.accept().await.unwrap().0;
            let request = crate::http::serve_one(stream, format!("{head}{again}").as_bytes()).await;
            seen.lock().unwrap().push(request.split_once("\r\n\r\n").unwrap().1.to_owned());
        }
    });
    let (dir, journal) = (tempfile::tempdir().unwrap(), primary());
    journal.request(3, page("chat", "a", PageAction::Trigger));
    deliver_all(&journal, slack(dir.path(), &origin)).await;
    assert_eq!(journal.outcome(3), Some(Outcome::Delivered));
    let requests = requests.lock().unwrap();
    assert_eq!(requests.len(), 3);
    assert!(requests.iter().all(|body| *body == requests[0]), "{requests:?}");
}

/// A sign of life that beats until it is stopped.
pub(crate) struct Life {
    alive: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    stats: Arc<Stats>,
    stop: CancellationToken,
    beating: tokio::task::JoinHandle<()>,
}

impl Life {
    pub(crate) fn start<T: Transport>(watchdog: Watchdog<T>) -> Self {
        let (alive, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let (stats, stop) = (Arc::new(Stats::default()), CancellationToken::new());
        let (is_alive, count) = (Arc::clone(&alive), Arc::clone(&asked));
        let answers = move || {
            count.fetch_add(1, Ordering::SeqCst);
            std::future::ready(is_alive.load(Ordering::SeqCst))
        };
        let names = ("prod".to_owned(), "coord-a".to_owned());
        let beating = tokio::spawn(beat(watchdog, names, answers, Arc::clone(&stats), stop.clone()));
        Self { alive, asked, stats, stop, beating }
    }

    pub(crate) fn arrived(&self) -> u64 {
        self.stats.heartbeats_out.get()
    }

    fn failed(&self) -> u64 {
        self.stats.heartbeats_out_failed.get()
    }

    /// It is not to tell of itself any more, and was asked since then whether it lives.
    pub(crate) async fn falls_silent(&self) {
        self.alive.store(false, Ordering::SeqCst);
        let asked = self.asked.load(Ordering::SeqCst);
        until("nobody asks", || self.asked.load(Ordering::SeqCst) > asked + 2).await;
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.beating.await.unwrap();
    }
}

#[tokio::test]
async fn the_sign_of_life_trusts_whom_its_ca_names_since_the_last_reload() {
    let stand_in = TlsStandIn::start().await;
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &stand_in.pem).unwrap();
    let client = HttpClient::new("heartbeat_out", Some(&ca), TIMEOUT).unwrap();
    let paging = Paging { lanes: [].into(), inbound: None, heartbeat: Some(client.clone()), fleet: "prod".to_owned() };
    let url = WebhookUrl::Plain(format!("https://localhost:{}/ping", stand_in.port).parse().unwrap());
    let target = HeartbeatTarget::Url { url, post: true };
    let config = HeartbeatConfig { target, interval: BEAT, ca: Some(ca.clone()) };
    let life = Life::start(Watchdog::Url { transport: client, config });
    until("the first", || life.arrived() > 0).await;
    assert_eq!(life.failed(), 0);

    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&ca, other.cert.pem()).unwrap();
    let arrived = life.arrived();
    until("what was not read yet counts", || life.arrived() > arrived + 1).await;
    assert_eq!(life.failed(), 0);
    paging.reload();
    until("a stranger is trusted", || life.failed() > 0).await;
    let arrived = life.arrived();
    until("a stranger is trusted", || life.failed() > 2).await;
    assert_eq!(life.arrived(), arrived);

    // What does not read changes nothing; what was trusted first is trusted again.
    std::fs::write(&ca, &stand_in.pem).unwrap();
    paging.reload();
    until("it does not arrive again", || life.arrived() > arrived).await;
    std::fs::write(&ca, "no certificate").unwrap();
    paging.reload();
    let (arrived, failed) = (life.arrived(), life.failed());
    until("the old authority counts on", || life.arrived() > arrived + 1).await;
    assert_eq!(life.failed(), failed);
    life.stop().await;
}

#[tokio::test]
async fn a_watchdog_is_one_alert_told_again_and_again_until_nobody_lives() {
    use crate::alertmanager::{QUARTER_HOUR, alertmanager, member};
    let (url, told) = member(axum::http::StatusCode::OK).await;
    let (second, told_second) = member(axum::http::StatusCode::OK).await;
    let lane = lane(alertmanager(&[url, second], QUARTER_HOUR));
    let life = Life::start(Watchdog::Alertmanager { lane, interval: BEAT });
    until("it is not told again", || told.lock().unwrap().len() > 3 && told_second.lock().unwrap().len() > 3).await;
    life.falls_silent().await;
    let calls = told.lock().unwrap().clone();
    let asked = life.asked.load(Ordering::SeqCst);
    until("nobody asks", || life.asked.load(Ordering::SeqCst) > asked + 3).await;
    assert_eq!(told.lock().unwrap().len(), calls.len(), "who does not live tells nothing");
    life.stop().await;
    let time = |alert: &serde_json::Value, key: &str| -> jiff::Timestamp {
        alert[key].as_str().unwrap().parse().unwrap_or_else(|error| panic!("{error}: {alert}"))
    };
    let mut ends_before = None;
    for alerts in &calls {
        let [alert] = alerts.as_slice() else { panic!("{alerts:?}") };
        let expected = serde_json::json!({ "alertname": "Watchdog", "severity": "none", "fleet": "prod" });
        assert_eq!(alert["labels"], expected, "the same alert each time");
        let (starts, ends) = (time(alert, "startsAt"), time(alert, "endsAt"));
        // It outlives two beats that are lost, and no more.
        assert_eq!(ends.as_millisecond() - starts.as_millisecond(), 3 * i64::try_from(BEAT.as_millis()).unwrap() + 1);
        assert!(ends_before.is_none_or(|before| ends > before), "it is refreshed: {alerts:?}");
        ends_before = Some(ends);
    }
}

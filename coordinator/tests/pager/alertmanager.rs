//! Alertmanager: a cluster of which one member is away, alerts told again, and the real one where Debian's package is.

use crate::http::{PATIENCE, config, deliver_all, lane};
use crate::{page, primary};
use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_coordinator::pager::heartbeat::Watchdog;
use muster_coordinator::pager::receiver::Judgement;
use muster_coordinator::pager::{Outcome, Pending, ReceiverConfig, ReceiverKind, Standing, keep_standing};
use muster_coordinator_core::page::{Page, PageAction, PageId};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

pub(crate) type Calls = Arc<Mutex<Vec<Vec<Value>>>>;

/// A member of the cluster that keeps what it is told.
pub(crate) async fn member(status: StatusCode) -> (String, Calls) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let calls = Calls::default();
    let told = Arc::clone(&calls);
    let take = move |body: Bytes| async move {
        told.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
        status
    };
    let routes = Router::new().route("/api/v2/alerts", post(take));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (url, calls)
}

pub(crate) fn alertmanager(urls: &[String], valid_for: Duration) -> ReceiverConfig {
    let urls = urls.iter().map(|url| url.parse().unwrap()).collect();
    config("am", ReceiverKind::Alertmanager { urls, labels: BTreeMap::new(), valid_for, token_file: None })
}

pub(crate) const QUARTER_HOUR: Duration = Duration::from_secs(900);

#[tokio::test]
async fn every_member_is_told_and_one_is_enough() {
    let (first, told_first) = member(StatusCode::OK).await;
    let (ill, told_ill) = member(StatusCode::SERVICE_UNAVAILABLE).await;
    let away = "http://127.0.0.1:1".to_owned();
    let journal = primary();
    journal.request(1, page("am", "a", PageAction::Trigger));
    deliver_all(&journal, alertmanager(&[first, ill.clone(), away.clone()], QUARTER_HOUR)).await;
    assert_eq!(journal.outcome(1), Some(Outcome::Delivered));
    assert_eq!((told_first.lock().unwrap().len(), told_ill.lock().unwrap().len()), (1, 1));
    let nobody = lane(alertmanager(&[ill, away], QUARTER_HOUR));
    let judged = nobody.tell(&Pending::new(PageId(2), page("am", "b", PageAction::Trigger))).await;
    assert!(matches!(judged, Judgement::Retry { .. }), "{judged:?}");
}

#[tokio::test]
async fn what_stands_is_told_again_in_few_calls() {
    let (url, told) = member(StatusCode::OK).await;
    let journal = primary();
    for number in 0..1000u64 {
        let page = page("am", &format!("key-{number:04}"), PageAction::Trigger);
        journal.standing.lock().unwrap().push(Standing {
            id: Some(PageId(number + 1)),
            page,
            acknowledged: String::new(),
        });
    }
    let stop = CancellationToken::new();
    let lane = lane(alertmanager(&[url], QUARTER_HOUR));
    let keeping = tokio::spawn(keep_standing(Arc::clone(&journal), lane, stop.clone()));
    let began = Instant::now();
    let count = || told.lock().unwrap().iter().map(Vec::len).sum::<usize>();
    while count() < 1000 {
        assert!(began.elapsed() < PATIENCE, "{}", count());
        sleep(Duration::from_millis(20)).await;
    }
    stop.cancel();
    keeping.await.unwrap();
    let calls = told.lock().unwrap().len();
    assert_eq!((calls, count()), (5, 1000), "1,000 alerts are five calls");
}

/// The binary of Debian's package, installed, or unpacked by hand where `MUSTER_ALERTMANAGER` says.
fn binary() -> Option<PathBuf> {
    let named = std::env::var_os("MUSTER_ALERTMANAGER").map(PathBuf::from);
    let usual = ["/usr/bin/prometheus-alertmanager", "/usr/bin/alertmanager"].map(PathBuf::from);
    named.into_iter().chain(usual).find(|path| path.exists())
}

/// A real Alertmanager; ends with the test.
struct Real {
    process: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for Real {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

async fn real(binary: &Path) -> Real {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("am.yml");
    std::fs::write(&config, "route:\n  receiver: none\nreceivers:\n  - name: none\n").unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let process = Command::new(binary)
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.path={}", dir.path().join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--cluster.listen-address=")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let real = Real { process, port, _dir: dir };
    let began = Instant::now();
    while !real.get("/api/v2/status").await.is_some_and(|text| text.contains("versionInfo")) {
        assert!(
            began.elapsed() < PATIENCE,
            "alertmanager is not ready; unpacked by hand it lacks its default template"
        );
        sleep(Duration::from_millis(50)).await;
    }
    real
}

impl Real {
    async fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer.split_once("\r\n\r\n")?.1.to_owned())
    }

    /// `alertname severity` of every alert that stands now.
    async fn standing(&self) -> Vec<String> {
        let text = self.get("/api/v2/alerts").await.unwrap_or_default();
        let alerts: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let name = |alert: &Value| {
            let label = |name: &str| alert["labels"][name].as_str().unwrap_or_default().to_owned();
            format!("{} {} {}", label("alertname"), label("muster_severity"), label("dedup_key"))
        };
        let mut names: Vec<String> = alerts.iter().map(name).collect();
        names.sort();
        names
    }

    async fn until(&self, expected: &[&str]) {
        let began = Instant::now();
        loop {
            let found = self.standing().await;
            if found == expected {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{found:?} in place of {expected:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The dead man's alert stands as long as it is told again, and ends by itself.
#[tokio::test]
async fn a_real_alertmanager_ends_the_watchdog_of_a_dead_coordinator() {
    let Some(binary) = binary() else {
        println!("skipped: no prometheus-alertmanager (Debian's package of that name, or MUSTER_ALERTMANAGER=PATH)");
        return;
    };
    let real = real(&binary).await;
    let lane = lane(alertmanager(&[format!("http://127.0.0.1:{}", real.port)], QUARTER_HOUR));
    let life = crate::wire::Life::start(Watchdog::Alertmanager { lane, interval: Duration::from_secs(1) });
    real.until(&["Watchdog  "]).await;
    let arrived = life.arrived();
    crate::wire::until("it is not told again", || life.arrived() > arrived + 3).await;
    real.until(&["Watchdog  "]).await;
    life.falls_silent().await;
    real.until(&[]).await;
    life.stop().await;
}

#[tokio::test]
async fn a_real_alertmanager_agrees() {
    let Some(binary) = binary() else {
        println!("skipped: no prometheus-alertmanager (Debian's package of that name, or MUSTER_ALERTMANAGER=PATH)");
        return;
    };
    let real = real(&binary).await;
    let lane = lane(alertmanager(&[format!("http://127.0.0.1:{}", real.port)], QUARTER_HOUR));
    let tell = async |id: u64, page: Page, before: &[(Severity, Reason)]| {
        let pending = Pending { told_before: before.to_vec(), ..Pending::new(PageId(id), page) };
        assert_eq!(lane.tell(&pending).await, Judgement::Delivered);
    };
    let first = (Severity::Sev3, Reason::PortClosed);
    let port_closed = Page { severity: first.0, reason: first.1, ..page("am", "a", PageAction::Trigger) };
    tell(1, port_closed, &[]).await;
    real.until(&["port_closed sev3 a"]).await;
    tell(2, page("am", "b", PageAction::Trigger), &[]).await;
    // It got worse and is better explained: the alert that it replaces ends in the same call.
    tell(3, page("am", "a", PageAction::Trigger), &[first]).await;
    real.until(&["process_down sev2 a", "process_down sev2 b"]).await;
    tell(4, page("am", "b", PageAction::Acknowledge), &[(Severity::Sev2, Reason::ProcessDown)]).await;
    real.until(&["process_down sev2 a", "process_down sev2 b"]).await;
    tell(5, page("am", "a", PageAction::Resolve), &[first, (Severity::Sev2, Reason::ProcessDown)]).await;
    real.until(&["process_down sev2 b"]).await;
    // What is not told again ends by itself; a hostile page is an alert like others.
    let hostile = Page {
        title: "\u{0}\u{1b}[31m\"}]".repeat(100),
        cause_key: "host//../\n/service/\u{202e}".to_owned(),
        ..page("am", "c", PageAction::Trigger)
    };
    tell(6, hostile, &[]).await;
    real.until(&["process_down sev2 b", "process_down sev2 c"]).await;
    assert_eq!(lane.test(page("am", "test", PageAction::Trigger)).await, Judgement::Delivered);
    real.until(&["process_down sev2 b", "process_down sev2 c"]).await;
}

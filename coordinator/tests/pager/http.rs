//! Over real HTTP: what the client refuses to do, TLS with a private CA, and the two stand-ins of the bench where
//! they are there.

use crate::{Journal, page, primary};
use muster_coordinator::pager::config::WebhookUrl;
use muster_coordinator::pager::http_client::{HttpClient, Request, Transport};
use muster_coordinator::pager::receiver::{Call, Judgement};
use muster_coordinator::pager::{
    Lane, Outcome, Pending, Receiver, ReceiverConfig, ReceiverError, ReceiverKind, Stats, run,
};
use muster_coordinator::paging::Paging;
use muster_coordinator_core::page::{Page, PageAction, PageId};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub(crate) const KEY: &str = "0123456789abcdef0123456789ABCDEF";
/// Everything here answers within milliseconds; beyond this the test has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn config(name: &str, kind: ReceiverKind) -> ReceiverConfig {
    let (timeout, retry_for) = (Duration::from_secs(2), Duration::from_secs(600));
    ReceiverConfig { timeout, retry_for, ..ReceiverConfig::new(name, kind) }
}

pub(crate) fn webhook(url: &str) -> ReceiverConfig {
    let url = WebhookUrl::Plain(url.parse().unwrap());
    config("ops", ReceiverKind::Webhook { url, token_file: None, signing_key_files: Vec::new() })
}

/// A lane over the real network.
pub(crate) fn lane(config: ReceiverConfig) -> Arc<Lane<HttpClient>> {
    let transport = client(&config).unwrap();
    Arc::new(Lane::new(Receiver::open(config, "prod").unwrap(), transport))
}

pub(crate) fn client(config: &ReceiverConfig) -> Result<HttpClient, ReceiverError> {
    HttpClient::new(&config.name, config.ca.as_deref(), config.timeout)
}

/// The one call that tells the receiver of a page.
fn request(receiver: &Receiver, page: Page) -> Request {
    let now = "2026-11-21T02:00:00Z".parse().unwrap();
    match receiver.calls(&Pending::new(PageId(1), page), now).remove(0) {
        Call::Http(request) => request,
        Call::Mail(_) => panic!("no mail"),
    }
}

/// Reads one request and gives `answer`; returns the request's text.
pub(crate) async fn serve_one(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8]) -> String {
    let mut request = Vec::new();
    let mut buffer = [0u8; 4096];
    loop {
        let n = stream.read(&mut buffer).await.unwrap();
        request.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if n == 0 || body.len() >= length.parse::<usize>().unwrap() {
            break;
        }
    }
    // The client may have read enough before all of a long answer is written.
    stream.write_all(answer).await.ok();
    stream.flush().await.ok();
    String::from_utf8_lossy(&request).into_owned()
}

/// One call against a server that gives `answer`: the judgement and the request as it was sent.
pub(crate) async fn call(config: impl FnOnce(&str) -> ReceiverConfig, answer: Vec<u8>) -> (Judgement, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = config(&format!("http://{}/hook", listener.local_addr().unwrap()));
    let server = tokio::spawn(async move { serve_one(listener.accept().await.unwrap().0, &answer).await });
    let client = client(&config).unwrap();
    let receiver = Receiver::open(config, "prod").unwrap();
    let response = client.call(request(&receiver, page("ops", "a", PageAction::Trigger))).await.unwrap();
    (receiver.judge(&response), server.await.unwrap())
}

#[tokio::test]
async fn a_token_is_sent_and_a_redirect_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let token_file = dir.path().join("token");
    std::fs::write(&token_file, "s3cret\n").unwrap();
    let with_token = |url: &str| {
        let (url, token_file) = (WebhookUrl::Plain(url.parse().unwrap()), Some(token_file.clone().into()));
        config("ops", ReceiverKind::Webhook { url, token_file, signing_key_files: Vec::new() })
    };
    let answer = b"HTTP/1.1 307 x\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 6\r\n\r\ns3cret".to_vec();
    let (judged, request) = call(with_token, answer).await;
    assert!(request.starts_with("POST /hook HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("authorization: Bearer s3cret\r\n"), "{request}");
    assert!(request.contains("content-type: application/json\r\n"), "{request}");
    let Judgement::Refused(error) = judged else { panic!("{judged:?}") };
    assert!(error.contains("redirects are not followed") && !error.contains("s3cret"), "{error}");
}

#[tokio::test]
async fn an_endless_answer_is_not_read() {
    let mut answer = b"HTTP/1.1 400 x\r\ncontent-length: 1073741824\r\n\r\n".to_vec();
    answer.resize(1 << 20, b'x');
    let (judged, _) = call(webhook, answer).await;
    let Judgement::Refused(error) = judged else { panic!("{judged:?}") };
    assert!(error.len() < 1000, "{error}");
}

#[tokio::test]
async fn nobody_there_is_an_error_that_names_the_host_alone() {
    let config = webhook("http://127.0.0.1:1/very-secret");
    let client = client(&config).unwrap();
    let receiver = Receiver::open(config, "prod").unwrap();
    let request = request(&receiver, page("ops", "a", PageAction::Trigger));
    let error = client.call(request).await.unwrap_err().to_string();
    assert!(error.starts_with("no answer from http://127.0.0.1:1:") && !error.contains("very-secret"), "{error}");
}

/// TLS as `localhost` under an authority of its own, and that authority.
pub(crate) fn tls_acceptor() -> (TlsAcceptor, String) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(muster_common::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(tls)), certified.cert.pem())
}

/// Takes everything, as `localhost`, under an authority of its own.
pub(crate) struct TlsStandIn {
    pub(crate) port: u16,
    pub(crate) pem: String,
}

impl TlsStandIn {
    pub(crate) async fn start() -> Self {
        let (acceptor, pem) = tls_acceptor();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve_one(stream, b"HTTP/1.1 200 ok\r\ncontent-length: 0\r\n\r\n").await;
                }
            }
        });
        Self { port, pem }
    }
}

#[tokio::test]
async fn a_private_ca_is_trusted_only_where_it_is_named() {
    let TlsStandIn { port, pem } = TlsStandIn::start().await;
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    let mut config = webhook(&format!("https://localhost:{port}/"));
    let receiver = Receiver::open(config.clone(), "prod").unwrap();
    let request = request(&receiver, page("ops", "a", PageAction::Trigger));
    let stranger = client(&config).unwrap().call(request.clone()).await.unwrap_err().to_string();
    assert!(stranger.contains("certificate"), "{stranger}");
    config.ca = Some(dir.path().join("none.pem"));
    assert!(client(&config).unwrap_err().to_string().contains("none.pem"));
    config.ca = Some(ca.clone());
    let response = client(&config).unwrap().call(request).await.unwrap();
    assert_eq!(receiver.judge(&response), Judgement::Delivered);
    // Another authority in the file is trusted from the next reload on; what does not read changes nothing.
    let lane = lane(config);
    let paging = Paging { lanes: [Arc::clone(&lane)].into(), inbound: None, heartbeat: None, fleet: "prod".to_owned() };
    let told = || lane.test(page("ops", "test", PageAction::Trigger));
    assert_eq!(told().await, Judgement::Delivered);
    let good = std::fs::read(&ca).unwrap();
    std::fs::write(&ca, rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap().cert.pem()).unwrap();
    paging.reload();
    let Judgement::Retry { error, .. } = told().await else { panic!("a stranger was trusted") };
    assert!(error.contains("certificate"), "{error}");
    std::fs::write(&ca, good).unwrap();
    paging.reload();
    assert_eq!(told().await, Judgement::Delivered);
    std::fs::write(&ca, "no certificate").unwrap();
    assert!(lane.transport.reload().unwrap_err().to_string().contains("ca.pem"));
    paging.reload();
    assert_eq!(told().await, Judgement::Delivered);
}

/// A stand-in of the bench as a process of its own; ends with the test.
pub(crate) struct StandIn {
    process: Child,
    pub(crate) port: u16,
    records: PathBuf,
    _dir: tempfile::TempDir,
}

impl StandIn {
    /// `None`, with a word on why, where Python or the script is missing.
    pub(crate) async fn start(script: &str, arguments: &[&str]) -> Option<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/tools").join(script);
        let python = Command::new("python3").arg("--version").output();
        if !path.exists() || !python.is_ok_and(|output| output.status.success()) {
            println!("skipped: python3 or {} is not there", path.display());
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let records = dir.path().join("records");
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("python3");
        command.arg(path).arg(port.to_string()).arg(&records).args(arguments);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let stand_in = Self { process, port, records, _dir: dir };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(began.elapsed() < PATIENCE, "{script} does not listen");
            sleep(Duration::from_millis(20)).await;
        }
        Some(stand_in)
    }

    /// A bare HTTP/1.0 call; the body of the answer.
    pub(crate) async fn ask(&self, method: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let request = format!("{method} {path} HTTP/1.0\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    pub(crate) fn records(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&self.records).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Runs the pager until every page of the journal has an outcome.
pub(crate) async fn deliver_all(journal: &Arc<Journal>, config: ReceiverConfig) {
    let lanes = vec![lane(config)];
    let (_wake, woken) = watch::channel(0u64);
    let stop = CancellationToken::new();
    let running = tokio::spawn(run(Arc::clone(journal), lanes, woken, Arc::new(Stats::default()), stop.clone()));
    let began = Instant::now();
    while journal.pages.lock().unwrap().values().any(|(_, outcome)| outcome.is_none()) {
        assert!(began.elapsed() < PATIENCE, "pages without an outcome");
        sleep(Duration::from_millis(20)).await;
    }
    stop.cancel();
    running.await.unwrap();
}

pub(crate) fn pagerduty(dir: &Path, port: u16) -> ReceiverConfig {
    let routing_key_file = dir.join("key");
    std::fs::write(&routing_key_file, format!("{KEY}\n")).unwrap();
    let url = format!("http://127.0.0.1:{port}/v2/enqueue").parse().unwrap();
    config("oncall", ReceiverKind::PagerDuty { url, routing_key_file: routing_key_file.into() })
}

#[tokio::test]
async fn pagerduty_rules_are_kept_through_every_failure() {
    let Some(stand_in) = StandIn::start("pagerduty.py", &["--keys", KEY]).await else { return };
    let dir = tempfile::tempdir().unwrap();
    let journal = primary();
    for number in 0..3 {
        let actions = [PageAction::Trigger, PageAction::Acknowledge, PageAction::Resolve];
        for (step, action) in actions.into_iter().enumerate() {
            let id = 10 * (u64::try_from(step).unwrap() + 1) + number;
            journal.request(id, page("oncall", &format!("key-{number}"), action));
        }
    }
    for how in ["500", "429", "drop", "hang"] {
        stand_in.ask("POST", &format!("/bench/fail?n=1&how={how}")).await;
    }
    deliver_all(&journal, pagerduty(dir.path(), stand_in.port)).await;
    let outcomes = journal.pages.lock().unwrap().values().map(|(_, outcome)| outcome.clone()).collect::<Vec<_>>();
    assert!(outcomes.iter().all(|outcome| *outcome == Some(Outcome::Delivered)), "{outcomes:?}");
    let state: serde_json::Value = serde_json::from_str(&stand_in.ask("GET", "/bench/state").await).unwrap();
    let alerts = state["alerts"].as_array().unwrap();
    assert_eq!(alerts.len(), 3, "{state}");
    for alert in alerts {
        assert_eq!((&alert["state"], &alert["times_opened"]), (&"resolved".into(), &1.into()), "{state}");
    }
    assert_eq!(state["stats"]["202"], 9, "{state}");
    assert!(state["stats"].get("400").is_none(), "{state}");
    let warned = stand_in.records().iter().filter(|record| record["warn"] != serde_json::json!([])).count();
    let failed_on_purpose = 4;
    assert!(warned <= failed_on_purpose, "{:?}", stand_in.records());
}

#[tokio::test]
async fn a_key_that_pagerduty_does_not_know_is_a_final_refusal_without_the_key() {
    let Some(stand_in) = StandIn::start("pagerduty.py", &["--keys", "another"]).await else { return };
    let dir = tempfile::tempdir().unwrap();
    let journal = primary();
    journal.request(1, page("oncall", "a", PageAction::Trigger));
    deliver_all(&journal, pagerduty(dir.path(), stand_in.port)).await;
    let Some(Outcome::Failed(error)) = journal.outcome(1) else { panic!("{:?}", journal.outcome(1)) };
    assert!(error.contains("answered 400") && error.contains("invalid") && !error.contains(KEY), "{error}");
}

#[tokio::test]
async fn a_webhook_that_recovers_gets_the_same_page_again() {
    let Some(stand_in) = StandIn::start("hook.py", &["--status", "500,429,200", "--retry-after", "1"]).await else {
        return;
    };
    let journal = primary();
    journal.request(7, page("ops", "a", PageAction::Trigger));
    deliver_all(&journal, webhook(&format!("http://127.0.0.1:{}/hook", stand_in.port))).await;
    assert_eq!(journal.outcome(7), Some(Outcome::Delivered));
    let records = stand_in.records();
    let statuses: Vec<_> = records.iter().map(|record| record["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [500, 429, 200]);
    assert!(records.iter().all(|record| record["body"] == records[0]["body"]));
    assert_eq!((&records[0]["body"]["page_id"], &records[0]["body"]["dedup_key"]), (&7.into(), &"a".into()));
}

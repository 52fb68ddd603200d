//! A secret is a marker here: every receiver fails in every way with it, and nothing that anybody can read holds it.

use crate::http::{PATIENCE, client};
use crate::{page, primary};
use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use muster_coordinator::config::parse;
use muster_coordinator::metrics::Metrics;
use muster_coordinator::pager::secret::SecretFile;
use muster_coordinator::pager::{Lane, Outcome, Receiver, ReceiverConfig, run};
use muster_coordinator_core::page::PageAction;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::fmt::MakeWriter;

/// 32 letters and digits, so that it is a routing key as well.
const MARKER: &str = "SECRETsecretSECRETsecretSECRET42";

/// Whatever is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// One receiver of each kind, each with all its secrets, each at `port`.
fn receivers(dir: &Path, port: u16) -> Vec<ReceiverConfig> {
    let file = |name: &str, text: String| {
        std::fs::write(dir.join(name), text).unwrap();
        dir.join(name).display().to_string()
    };
    let key = file("key", MARKER.to_owned());
    let url = file("url", format!("http://127.0.0.1:{port}/{MARKER}"));
    let text = format!(
        "[tls]\nca = \"/c\"\ncert = \"/d\"\nkey = \"/k\"\n[store]\nurl = \"sqlite:/var/lib/j.db\"\n\
         [[receiver.pagerduty]]\nname = \"oncall\"\nurl = \"http://127.0.0.1:{port}/\"\nrouting_key_file = \"{key}\"\n\
         [[receiver.alertmanager]]\nname = \"am\"\nurls = [\"http://127.0.0.1:{port}\"]\ntoken_file = \"{key}\"\n\
         [[receiver.slack]]\nname = \"chat\"\nurl_file = \"{url}\"\n\
         [[receiver.smtp]]\nname = \"mail\"\nhost = \"127.0.0.1\"\nport = {port}\ntls = \"none\"\nfrom = \"a@b.c\"\n\
         to = [\"a@b.c\"]\nuser = \"me\"\npassword_file = \"{key}\"\n\
         [[receiver.webhook]]\nname = \"ops\"\nurl_file = \"{url}\"\ntoken_file = \"{key}\"\nsigning_key_files = [\"{key}\"]\n"
    );
    let config = parse("c.toml", &text).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.receivers.len(), 5);
    // Mail waits for a greeting that an HTTP server never sends.
    let impatient = |config| ReceiverConfig { timeout: Duration::from_secs(1), ..config };
    config.receivers.into_iter().map(impatient).collect()
}

/// A server that tells everybody what it was told, headers included.
async fn parrot(status: StatusCode) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let echo = move |request: axum::extract::Request| async move {
        let (head, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap_or_default();
        let told = format!("{} {:?} {}", head.uri, head.headers, String::from_utf8_lossy(&body));
        (status, Bytes::from(told))
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(echo)).await });
    port
}

#[tokio::test]
async fn no_log_error_metric_or_debug_holds_a_secret() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(log.clone()).finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let metrics = Metrics::default();
    let mut shown = String::new();
    for status in [StatusCode::BAD_REQUEST, StatusCode::SERVICE_UNAVAILABLE] {
        let port = parrot(status).await;
        let dir = tempfile::tempdir().unwrap();
        let journal = primary();
        let mut lanes = Vec::new();
        for (id, config) in (1..).zip(receivers(dir.path(), port)) {
            journal.request(id, page(&config.name, "a", PageAction::Trigger));
            let (transport, receiver) = (client(&config).unwrap(), Receiver::open(config, "prod").unwrap());
            lanes.push(Arc::new(Lane::new(receiver, transport)));
        }
        let stop = CancellationToken::new();
        let (_wake, woken) = watch::channel(0u64);
        let running =
            tokio::spawn(run(Arc::clone(&journal), lanes.clone(), woken, Arc::clone(&metrics.pager), stop.clone()));
        let began = Instant::now();
        let failed = |lane: &Arc<Lane<_>>| !lane.status().last_error.is_empty();
        while !lanes.iter().all(failed) {
            assert!(began.elapsed() < PATIENCE, "{lanes:?}");
            sleep(Duration::from_millis(20)).await;
        }
        stop.cancel();
        running.await.unwrap();
        let outcomes: Vec<Option<Outcome>> = (1..=5).map(|id| journal.outcome(id)).collect();
        shown += &format!("{outcomes:?} {lanes:?}");
        for lane in &lanes {
            shown += &format!("{:?}", lane.test(page("x", "test", PageAction::Trigger)).await);
        }
    }
    drop(guard);
    shown += &metrics.encode();
    shown += &String::from_utf8_lossy(&log.0.lock().unwrap());
    assert!(shown.contains("answered 400") && shown.contains("answered 503"), "{shown}");
    assert!(!shown.contains(MARKER), "{shown}");
    assert!(!shown.contains("SECRETsecret"), "{shown}");
}

#[test]
fn a_report_about_a_config_covers_what_does_not_belong_there() {
    for line in [
        format!("[[receiver.pagerduty]]\nname = \"a\"\nrouting_key = \"{MARKER}\""),
        format!("[[receiver.pagerduty]]\nname = \"a\"\nrouting_key_file = \"{MARKER}\""),
        format!("[[receiver.pagerduty]]\nname = \"a\"\nroutin_key = \"{MARKER}\""),
        format!("[[receiver.slack]]\nname = \"a\"\nurl = \"https://hooks.slack.com/services/{MARKER}\""),
        format!("[[receiver.webhook]]\nname = \"a\"\nurl = \"https://me:{MARKER}@host/\""),
        format!("[[receiver.webhook]]\nname = \"a\"\nurl = \"http://h/\"\nsigning_key_files = [\"{MARKER}\"]"),
        format!("[[receiver.smtp]]\nname = \"a\"\npassword = '{MARKER}'"),
        format!("[pagerduty_webhook]\nsecret = \"{MARKER}\""),
        format!("[pagerduty_webhook]\nsecret_files = [\"{MARKER}\"]"),
        format!("receiver = {{ webhook = [{{ name = \"a\", token = \"{MARKER}\" }}] }}"),
    ] {
        let errors = parse("c.toml", &line).unwrap_err();
        let shown = format!("{errors} {errors:?} {}", errors.render(true));
        assert!(!shown.contains(MARKER), "{shown}");
        assert!(shown.contains("****"), "it is covered where it stands: {shown}");
    }
}

#[test]
fn without_credentials_a_credential_says_what_to_do() {
    // The test runner is no unit of systemd.
    if std::env::var_os("CREDENTIALS_DIRECTORY").is_some() {
        return;
    }
    let error = SecretFile::parse("credential:slack").unwrap().read().unwrap_err().to_string();
    assert!(error.contains("LoadCredential"), "{error}");
}

/// Before it is started: what a start would stop at, all of it, and nothing of what is in the files.
#[test]
fn check_config_tells_of_secrets_that_cannot_be_used() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let write = |name: &str, text: &str, mode: u32| {
        std::fs::write(at(name), text).unwrap();
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let check = |more: &str| {
        let text = format!(
            "[tls]\nca = \"/c\"\ncert = \"/d\"\nkey = \"/k\"\n[store]\nurl = \"sqlite:/var/lib/j.db\"\n\
             [[receiver.pagerduty]]\nname = \"oncall\"\nrouting_key_file = \"{}\"\n\
             [[receiver.slack]]\nname = \"chat\"\nurl_file = \"{}\"\n{more}",
            at("key"),
            at("url"),
        );
        std::fs::write(at("c.toml"), text).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_muster-coordinator"));
        command.args(["check-config", "--config", &at("c.toml")]).env_remove("CREDENTIALS_DIRECTORY");
        let output = command.output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!text.contains(MARKER), "{text}");
        (output.status.code(), text)
    };
    let (code, text) = check("");
    assert_eq!(code, Some(2), "{text}");
    for expected in [format!("\"oncall\": cannot read {}", at("key")), format!("\"chat\": cannot read {}", at("url"))] {
        assert!(text.contains(&expected), "{expected}: {text}");
    }
    // Something else is in it, and a directory is no file.
    write("key", &format!("{MARKER}{MARKER}"), 0o600);
    std::fs::create_dir(at("url")).unwrap();
    let (code, text) = check("");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("does not hold a PagerDuty routing key") && text.contains("not a regular file"), "{text}");
    std::fs::remove_dir(at("url")).unwrap();
    write("key", MARKER, 0o600);
    write("url", &format!("https://hooks.example/{MARKER}"), 0o644);
    let (code, text) = check("[pagerduty_webhook]\nsecret_files = [\"credential:pd\"]\n");
    assert_eq!(code, Some(0), "{text}");
    for expected in
        [format!("may read the secret in {}: chmod o-r", at("url")), "not checked: credential:pd".to_owned()]
    {
        assert!(text.contains(&expected), "{expected}: {text}");
    }
    assert!(!text.contains(&at("key")) && !text.contains("reconnect_max"), "{text}");
    // What agents do not keep to is said, too.
    for (length, is_short) in [("34s", true), ("35s", false)] {
        let (code, text) = check(&format!("[liveness]\nreconnect_max = \"{length}\"\n"));
        assert_eq!(code, Some(0), "{text}");
        assert_eq!(text.contains("warning: liveness.reconnect_max"), is_short, "{text}");
    }
}

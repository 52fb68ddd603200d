//! The dead man's switch: a sign of life to somebody outside, who pages when it stays away.
//!
//! Sent only while this coordinator is the primary, its loop turns and answers, and pages may leave. A failed commit
//! ends the process, so that a loop that answers is one that stores.

use super::ReceiverConfig;
use super::ReceiverKind;
use super::config::{WebhookUrl, is_loopback, parse_url, unknown_receiver};
use super::http_client::{Request, Response, Transport, TransportError};
use super::lane::Lane;
use super::receiver::{Judgement, ReceiverError, read};
use super::secret::SecretFile;
use super::{Stats, alertmanager};
use hyper::Uri;
use hyper::body::Bytes;
use muster_common::config::Reader;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often when the config does not say.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(60);
/// Longest wait for one call.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// Beats that may be lost before a Watchdog alert ends.
const BEATS: u32 = 3;

/// `[heartbeat_out]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatConfig {
    /// To whom.
    pub target: HeartbeatTarget,
    /// How often.
    pub interval: Duration,
    /// Certificates to trust instead of the public ones.
    pub ca: Option<PathBuf>,
}

/// Who expects it.
#[derive(Clone, PartialEq, Eq)]
pub enum HeartbeatTarget {
    /// A URL of its own.
    Url {
        /// Which; often a secret.
        url: WebhookUrl,
        /// By POST, not by GET.
        post: bool,
    },
    /// An alert that always stands at this receiver.
    Alertmanager(String),
}

impl std::fmt::Debug for HeartbeatTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Url { .. } => f.write_str("Url(…)"),
            Self::Alertmanager(name) => f.debug_tuple("Alertmanager").field(name).finish(),
        }
    }
}

/// Reads `[heartbeat_out]`; mistakes are noted in the reader.
///
/// `names`: of all receivers, also of those with a mistake.
pub fn read_heartbeat(root: &Reader<'_>, receivers: &[ReceiverConfig], names: &[String]) -> Option<HeartbeatConfig> {
    let table = root.table("heartbeat_out")?;
    let second = Duration::from_secs(1);
    let every = table.duration("interval", second..=3600 * second).unwrap_or(INTERVAL_DEFAULT);
    let ca = table.parsed("ca", |text| {
        let path = PathBuf::from(text);
        if path.is_absolute() { Ok(path) } else { Err("expected an absolute path".to_owned()) }
    });
    let post = table.parsed("method", |text| match text {
        "GET" => Ok(false),
        "POST" => Ok(true),
        _ => Err("expected \"GET\" or \"POST\"".to_owned()),
    });
    let url = table.parsed("url", parse_url).map(WebhookUrl::Plain);
    let file = table.parsed("url_file", SecretFile::parse).map(WebhookUrl::File);
    let alertmanager = table.value("alertmanager").and_then(|value| {
        let name = value.string()?.to_owned();
        let is_one = |config: &&ReceiverConfig| matches!(config.kind, ReceiverKind::Alertmanager { .. });
        let able: Vec<_> = receivers.iter().filter(is_one).map(|config| config.name.clone()).collect();
        match receivers.iter().find(|config| config.name == name) {
            Some(config) if !is_one(&config) => {
                let expected = match able.as_slice() {
                    [] => "expected a [[receiver.alertmanager]], or url in its place".to_owned(),
                    able => format!("expected one of: {}", able.join(", ")),
                };
                value.mistake(&format!("{name:?} is a {}, which takes no sign of life", config.kind.word()), &expected);
            }
            // One with a mistake is there: that it is told once is enough.
            None if !names.contains(&name) => unknown_receiver(&value, &name, &able),
            _ => {}
        }
        Some(name)
    });
    let told = ["url", "url_file", "alertmanager"].into_iter().filter(|key| table.value(key).is_some()).count();
    if told != 1 {
        table.mistake("where the sign of life goes", "expected one of url, url_file and alertmanager");
    }
    let target = match (url.or(file), alertmanager) {
        (_, Some(name)) => HeartbeatTarget::Alertmanager(name),
        (Some(url), None) => HeartbeatTarget::Url { url, post: post.unwrap_or(true) },
        (None, None) => return None,
    };
    Some(HeartbeatConfig { target, interval: every, ca })
}

/// The URL, read from its file where it is a secret.
pub fn url_of(config: &HeartbeatConfig) -> Result<Option<Uri>, ReceiverError> {
    match &config.target {
        HeartbeatTarget::Alertmanager(_) => Ok(None),
        HeartbeatTarget::Url { url: WebhookUrl::Plain(url), .. } => Ok(Some(url.clone())),
        HeartbeatTarget::Url { url: WebhookUrl::File(file), .. } => {
            let sound = |text: &str| parse_url(text).is_ok();
            let secret = read("heartbeat_out", file, sound, "a URL such as https://host/path, alone in the file")?;
            Ok(parse_url(secret.expose()).ok())
        }
    }
}

/// Where a sign of life goes.
#[derive(Debug)]
pub enum Watchdog<T> {
    /// To a URL.
    Url {
        /// How.
        transport: T,
        /// Where, asked for each time: the file may have been changed.
        config: HeartbeatConfig,
    },
    /// To every member of an Alertmanager's cluster.
    Alertmanager {
        /// The receiver.
        lane: Arc<Lane<T>>,
        /// How often.
        interval: Duration,
    },
}

impl<T: Transport> Watchdog<T> {
    fn interval(&self) -> Duration {
        match self {
            Self::Url { config, .. } => config.interval,
            Self::Alertmanager { interval, .. } => *interval,
        }
    }

    async fn beat(&self, fleet: &str, from: &str) -> Result<(), String> {
        match self {
            Self::Url { transport, config } => {
                let url = url_of(config).map_err(|error| error.to_string())?;
                let post = matches!(config.target, HeartbeatTarget::Url { post: true, .. });
                let body = serde_json::json!({ "fleet": fleet, "coordinator": from });
                let body = post.then(|| Bytes::from(body.to_string()));
                let request = Request { url: url.unwrap_or_default(), bearer: None, headers: Vec::new(), body };
                let answer: Result<Response, TransportError> = timeout(TIMEOUT, transport.call(request))
                    .await
                    .map_err(|_| format!("no answer within {}", muster_common::units::human_duration(TIMEOUT)))?;
                match answer.map_err(|error| error.to_string())?.status {
                    200..=299 => Ok(()),
                    // The text of the answer may hold the URL.
                    status => Err(format!("answered {status}")),
                }
            }
            Self::Alertmanager { lane, interval } => {
                let valid_for = *interval * BEATS;
                let body = alertmanager::watchdog(lane.receiver.frame(jiff::Timestamp::now()), valid_for, from);
                match lane.make(lane.receiver.alertmanager_calls(&body)).await {
                    Judgement::Delivered => Ok(()),
                    Judgement::Refused(error) | Judgement::Retry { error, .. } => Err(error),
                }
            }
        }
    }
}

/// Beats until `stop` is cancelled, whenever `alive` says so.
pub async fn beat<T: Transport, F: Future<Output = bool> + Send>(
    watchdog: Watchdog<T>,
    (fleet, from): (String, String),
    alive: impl Fn() -> F + Send,
    stats: Arc<Stats>,
    stop: CancellationToken,
) {
    let mut beats = interval(watchdog.interval());
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = beats.tick() => {}
        }
        if !alive().await {
            continue;
        }
        match watchdog.beat(&fleet, &from).await {
            Ok(()) => {
                stats.heartbeats_out.inc();
                if std::mem::take(&mut failing) {
                    info!("the sign of life to the outside arrives again");
                }
            }
            Err(error) => {
                stats.heartbeats_out_failed.inc();
                if !std::mem::replace(&mut failing, true) {
                    warn!(error, "the sign of life to the outside does not arrive; whoever waits for it will page");
                }
            }
        }
    }
}

/// A plain `http://` beat to elsewhere is told at start: whoever reads it can keep a dead coordinator looking alive.
pub fn is_in_the_clear(url: &Uri) -> bool {
    url.scheme_str() == Some("http") && !url.host().is_some_and(is_loopback)
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::config::read;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

    #[test]
    fn each_rule_has_its_mistake() {
        for (keys, told) in [
            ("interval = \"60s\"", "expected one of url"),
            ("url = \"https://h/a\"\nurl_file = \"/u\"", "expected one of url"),
            ("url = \"nowhere\"", "expected a URL"),
            ("url = \"https://h/\"\nmethod = \"PUT\"", "expected \"GET\" or \"POST\""),
            ("url = \"https://h/\"\ninterval = \"0s\"", "expected a duration"),
            ("alertmanager = \"am\"", "no receiver is named \"am\""),
        ] {
            let text = format!("[heartbeat_out]\n{keys}\n");
            let error = read("c.toml", &text, |root| read_heartbeat(root, &[], &[])).unwrap_err().to_string();
            assert!(error.contains(told), "{told}: {error}");
        }
        let read_all = |root: &Reader<'_>| {
            let (receivers, names) = super::super::config::read_receivers(root);
            read_heartbeat(root, &receivers, &names)
        };
        for (receiver, told, silent) in [
            ("webhook]]\nname = \"am\"\nurl = \"http://127.0.0.1:1/\"", "\"am\" is a webhook, which takes", "named"),
            ("alertmanager]]\nname = \"am\"\nurls = [\"nowhere\"]", "expected a URL", "no receiver is named"),
        ] {
            let text = format!("[heartbeat_out]\nalertmanager = \"am\"\n[[receiver.{receiver}\n");
            let error = read("c.toml", &text, read_all).unwrap_err().to_string();
            assert!(error.contains(told) && !error.contains(silent), "{told}: {error}");
        }
    }

    #[derive(Clone, Default)]
    struct Wire {
        bodies: Arc<Mutex<Vec<Option<Bytes>>>>,
        status: Arc<AtomicU16>,
    }

    impl Transport for Wire {
        async fn call(&self, request: Request) -> Result<Response, TransportError> {
            self.bodies.lock().unwrap().push(request.body);
            Ok(Response { status: self.status.load(Ordering::SeqCst), retry_after: None, text: "no".to_owned() })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_beats_only_while_alive_and_counts_what_fails() {
        let wire = Wire::default();
        wire.status.store(200, Ordering::SeqCst);
        let url = WebhookUrl::Plain(Uri::from_static("http://127.0.0.1:1/ping"));
        let target = HeartbeatTarget::Url { url, post: true };
        let config = HeartbeatConfig { target, interval: Duration::from_secs(60), ca: None };
        let (alive, stats, stop) =
            (Arc::new(AtomicBool::new(false)), Arc::new(Stats::default()), CancellationToken::new());
        let watchdog = Watchdog::Url { transport: wire.clone(), config };
        let asked = Arc::clone(&alive);
        let is_alive = move || std::future::ready(asked.load(Ordering::SeqCst));
        let names = ("prod".to_owned(), "coord-a".to_owned());
        let beating = tokio::spawn(beat(watchdog, names, is_alive, Arc::clone(&stats), stop.clone()));
        tokio::time::sleep(Duration::from_secs(590)).await;
        assert_eq!(wire.bodies.lock().unwrap().len(), 0, "a standby is silent");
        alive.store(true, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(600)).await;
        let beats = wire.bodies.lock().unwrap().len();
        assert_eq!(beats, 10);
        assert_eq!(
            wire.bodies.lock().unwrap()[0].as_deref(),
            Some(br#"{"coordinator":"coord-a","fleet":"prod"}"#.as_slice())
        );
        wire.status.store(500, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(180)).await;
        assert_eq!((stats.heartbeats_out.get(), stats.heartbeats_out_failed.get()), (10, 3));
        stop.cancel();
        beating.await.unwrap();
    }
}

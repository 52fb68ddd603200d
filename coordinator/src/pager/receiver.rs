//! A receiver with its secret: turns a page into a request, and an answer into what to do next.

use super::config::{ReceiverConfig, ReceiverKind};
use super::http_client::{Request, Response};
use super::{pagerduty, webhook};
use muster_common::limits::clip;
use muster_coordinator_core::page::{Page, PageId};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of an answer's text that are kept in an error.
const ANSWER_BYTES_MAX: usize = 300;
/// No secret file is larger.
const SECRET_BYTES_MAX: u64 = 4096;

/// Why a receiver cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReceiverError {
    /// A secret's file cannot be read.
    #[error("receiver {name:?}: cannot read {path}; it must be readable by the coordinator's user", path = .path.display())]
    Secret {
        /// Which receiver.
        name: String,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A secret's file holds something else.
    #[error("receiver {name:?}: {path} does not hold {expected}", path = .path.display())]
    Form {
        /// Which receiver.
        name: String,
        /// Which file.
        path: PathBuf,
        /// What was expected; never what was found.
        expected: &'static str,
    },
    /// Its `ca` file is no certificate bundle.
    #[error("receiver {name:?}: cannot use the certificates of {path}: {why}", path = .path.display())]
    Ca {
        /// Which receiver.
        name: String,
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// Text that must never be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// For the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What an answer means for the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// Accepted.
    Delivered,
    /// Refused for good: the same call would be refused again.
    Refused(String),
    /// Try again, not before `after` if the receiver said so.
    Retry {
        /// Why.
        error: String,
        /// What it asked for.
        after: Option<Duration>,
    },
}

/// A receiver, ready to be used.
#[derive(Debug, Clone)]
pub struct Receiver {
    /// Its config.
    pub config: ReceiverConfig,
    fleet: String,
    secret: Option<Secret>,
}

impl Receiver {
    /// Reads the receiver's secret from its file.
    pub fn open(config: ReceiverConfig, fleet: &str) -> Result<Self, ReceiverError> {
        let (path, is_routing_key) = match &config.kind {
            ReceiverKind::PagerDuty { routing_key_file, .. } => (Some(routing_key_file), true),
            ReceiverKind::Webhook { token_file, .. } => (token_file.as_ref(), false),
        };
        let secret = path.map(|path| read_secret(&config.name, path, is_routing_key)).transpose()?;
        Ok(Self { config, fleet: fleet.to_owned(), secret })
    }

    /// The call that delivers `page`.
    pub fn request(&self, id: PageId, page: &Page) -> Request {
        let (body, bearer) = match &self.config.kind {
            ReceiverKind::PagerDuty { .. } => {
                let key = self.secret.as_ref().map(Secret::expose).unwrap_or_default();
                (pagerduty::body(key, &self.fleet, id, page), None)
            }
            ReceiverKind::Webhook { .. } => (webhook::body(&self.fleet, id, page), self.secret.clone()),
        };
        Request { url: self.config.kind.url().clone(), bearer, body }
    }

    /// What the answer means. Nothing in the result holds the secret, even if the receiver echoed it.
    pub fn judge(&self, response: &Response) -> Judgement {
        let status = response.status;
        let accepted = match self.config.kind {
            ReceiverKind::PagerDuty { .. } => status == 202,
            ReceiverKind::Webhook { .. } => (200..300).contains(&status),
        };
        if accepted {
            return Judgement::Delivered;
        }
        let error = self.redact(&match response.text.trim() {
            "" => format!("answered {status}"),
            text => format!("answered {status}: {}", clip(text, ANSWER_BYTES_MAX).escape_debug()),
        });
        match status {
            408 | 429 => Judgement::Retry { error, after: response.retry_after },
            300..=399 => Judgement::Refused(format!("{error}; redirects are not followed, configure the final URL")),
            // What a proxy, a rotated token or a deployment in progress answers, and takes back when it is mended.
            401 | 403 | 404 | 409 | 425 if matches!(self.config.kind, ReceiverKind::Webhook { .. }) => {
                Judgement::Retry { error, after: response.retry_after }
            }
            400..=499 => Judgement::Refused(error),
            // 2xx other than PagerDuty's 202, 1xx and 5xx: not accepted, but it may be later.
            _ => Judgement::Retry { error, after: response.retry_after },
        }
    }

    fn redact(&self, text: &str) -> String {
        match &self.secret {
            Some(secret) => text.replace(secret.expose(), "…"),
            None => text.to_owned(),
        }
    }
}

fn read_secret(name: &str, path: &Path, is_routing_key: bool) -> Result<Secret, ReceiverError> {
    use std::io::Read;
    let cannot = |source| ReceiverError::Secret { name: name.to_owned(), path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(cannot)?;
    file.take(SECRET_BYTES_MAX).read_to_string(&mut text).map_err(cannot)?;
    let text = text.trim();
    let form = |expected| ReceiverError::Form { name: name.to_owned(), path: path.to_owned(), expected };
    if is_routing_key && (text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_alphanumeric())) {
        return Err(form("a PagerDuty routing key (32 letters and digits, alone in the file)"));
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(form("a token of printable characters without spaces, alone in the file"));
    }
    Ok(Secret::new(text))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use hyper::Uri;
    use muster_common::evidence::Grade;
    use muster_common::reason::Reason;
    use muster_common::severity::Severity;
    use muster_common::time::Timestamp;
    use muster_coordinator_core::page::PageAction;

    /// A page with every field filled.
    pub(crate) fn page(action: PageAction, key: &str) -> Page {
        Page {
            receiver: "ops".to_owned(),
            action,
            dedup_key: key.to_owned(),
            incident: "INC-20261121-0001".to_owned(),
            cause_key: "host/web-1/service/spl".to_owned(),
            severity: Severity::Sev2,
            reason: Reason::ProcessDown,
            grade: Grade::Confirmed,
            title: "spl on web-1 is down".to_owned(),
            why: "process_down for 10 s (hold of sev2: 10 s)".to_owned(),
            details: vec!["pid 42 ended at 03:04:05".to_owned()],
            next_steps: vec!["systemctl status spl".to_owned()],
            agents: vec!["web-1".to_owned()],
            n_agents: 1,
            services: vec!["spl".to_owned()],
            began: Timestamp::from_unix_ms(1_795_225_445_678),
            requested: Timestamp::from_unix_ms(1_795_225_455_678),
            late_by_ms: None,
        }
    }

    pub(crate) fn webhook(name: &str, url: &str) -> Receiver {
        let kind = ReceiverKind::Webhook { url: url.parse::<Uri>().unwrap(), token_file: None };
        let config = ReceiverConfig {
            name: name.to_owned(),
            timeout: Duration::from_secs(10),
            retry_for: Duration::from_secs(3600),
            ca: None,
            kind,
        };
        Receiver::open(config, "prod").unwrap()
    }

    fn answer(status: u16, text: &str) -> Response {
        Response { status, retry_after: Some(Duration::from_secs(7)), text: text.to_owned() }
    }

    #[test]
    fn answers_are_judged() {
        let receiver = webhook("ops", "http://127.0.0.1:1/");
        for status in [200, 201, 202, 204] {
            assert_eq!(receiver.judge(&answer(status, "")), Judgement::Delivered);
        }
        for status in [301, 400, 405, 410, 413, 422] {
            assert!(matches!(receiver.judge(&answer(status, "no")), Judgement::Refused(_)), "{status}");
        }
        for status in [401, 403, 404, 408, 409, 425, 429, 500, 502, 503, 504] {
            let judged = receiver.judge(&answer(status, ""));
            assert!(
                matches!(judged, Judgement::Retry { after: Some(after), .. } if after == Duration::from_secs(7)),
                "{status}"
            );
        }
    }

    #[test]
    fn a_key_is_checked_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let config = ReceiverConfig {
            name: "oncall".to_owned(),
            timeout: Duration::from_secs(10),
            retry_for: Duration::from_secs(3600),
            ca: None,
            kind: ReceiverKind::PagerDuty {
                url: Uri::from_static(super::super::config::PAGERDUTY_URL),
                routing_key_file: file.clone(),
            },
        };
        let missing = Receiver::open(config.clone(), "prod").unwrap_err();
        assert!(missing.to_string().contains("cannot read"), "{missing}");
        std::fs::write(&file, "tooshort-and-secret\n").unwrap();
        let malformed = Receiver::open(config.clone(), "prod").unwrap_err();
        assert!(!format!("{malformed:?}{malformed}").contains("tooshort"), "{malformed}");
        let key = "0123456789abcdefghijABCDEFGHIJ01";
        std::fs::write(&file, format!("{key}\n")).unwrap();
        let receiver = Receiver::open(config, "prod").unwrap();
        assert!(!format!("{receiver:?}").contains(key));
        let judged = receiver.judge(&answer(400, &format!("key {key} is invalid\u{1b}[31m")));
        let Judgement::Refused(error) = judged else { panic!("{judged:?}") };
        assert!(!error.contains(key) && !error.contains('\u{1b}'), "{error}");
    }
}

//! A receiver with its secrets: turns a page into calls, and an answer into what to do next.

use super::config::{ReceiverConfig, ReceiverKind, WebhookUrl, parse_url};
use super::http_client::{Request, Response};
use super::secret::{Secret, SecretFile};
use super::smtp::Mail;
use super::{Pending, alertmanager, mail, pagerduty, signature, slack, webhook};
use arc_swap::ArcSwap;
use hyper::Uri;
use hyper::body::Bytes;
use jiff::Timestamp;
use muster_common::limits::clip;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of an answer's text that are kept in an error.
const ANSWER_BYTES_MAX: usize = 300;
/// A path of a secret URL shorter than this is none worth hiding, and hiding it would garble answers.
const PATH_BYTES_MIN: usize = 4;

/// Why a receiver cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReceiverError {
    /// A secret's file cannot be read.
    #[error("receiver {name:?}: cannot read {file}; it must be readable by the coordinator's user")]
    Secret {
        /// Which receiver.
        name: String,
        /// Which file.
        file: SecretFile,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A secret's file holds something else.
    #[error("receiver {name:?}: {file} does not hold {expected}")]
    Form {
        /// Which receiver.
        name: String,
        /// Which file.
        file: SecretFile,
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

/// One call that tells a receiver of a page.
#[derive(Debug, Clone)]
pub enum Call {
    /// Over HTTP.
    Http(Request),
    /// By mail.
    Mail(Box<Mail>),
}

/// What the files of a receiver hold.
#[derive(Default, PartialEq, Eq)]
struct Secrets {
    /// Routing key, token or password.
    main: Option<Secret>,
    /// Keys that sign, the newest first.
    signing: Vec<Secret>,
    /// A URL that is a secret.
    url: Option<(Secret, Uri)>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(…)")
    }
}

/// A receiver, ready to be used.
#[derive(Debug)]
pub struct Receiver {
    /// Its config.
    pub config: ReceiverConfig,
    fleet: String,
    secrets: ArcSwap<Secrets>,
}

impl Receiver {
    /// Reads the receiver's secrets from their files.
    pub fn open(config: ReceiverConfig, fleet: &str) -> Result<Self, ReceiverError> {
        let secrets = ArcSwap::from_pointee(read_secrets(&config)?);
        Ok(Self { config, fleet: fleet.to_owned(), secrets })
    }

    /// Reads them again, for every call from now on; `true` when something changed. What cannot be read leaves the old
    /// ones in place.
    pub fn reload(&self) -> Result<bool, ReceiverError> {
        let read = read_secrets(&self.config)?;
        let changed = read != **self.secrets.load();
        self.secrets.store(Arc::new(read));
        Ok(changed)
    }

    /// The calls that deliver a page: one, or one for each member of a cluster.
    pub fn calls(&self, pending: &Pending, now: Timestamp) -> Vec<Call> {
        let secrets = self.secrets.load();
        let Pending { id, page, .. } = pending;
        let link = self.config.runbooks.as_ref().map(|url| url.of(page.reason));
        let link = link.as_deref();
        let one = |url: Uri, bearer: Option<Secret>, headers, body: Bytes| {
            Call::Http(Request { url, bearer, headers, body: Some(body) })
        };
        match &self.config.kind {
            ReceiverKind::PagerDuty { url, .. } => {
                let key = secrets.main.as_ref().map(Secret::expose).unwrap_or_default();
                vec![one(url.clone(), None, Vec::new(), pagerduty::body(key, &self.fleet, *id, page, link))]
            }
            ReceiverKind::Alertmanager { .. } => self.alertmanager_calls(&alertmanager::body(self.frame(now), pending)),
            ReceiverKind::Slack { .. } => {
                let url = secrets.url.as_ref().map(|(_, url)| url.clone()).unwrap_or_default();
                vec![one(url, None, Vec::new(), slack::body(&self.fleet, *id, page, link))]
            }
            ReceiverKind::Mail(config) => {
                let message = mail::message(&self.fleet, (&config.from, &config.to), *id, page, link, now);
                vec![Call::Mail(Box::new(Mail { config: config.clone(), password: secrets.main.clone(), message }))]
            }
            ReceiverKind::Webhook { url, .. } => {
                let url = match (url, &secrets.url) {
                    (WebhookUrl::Plain(url), _) => url.clone(),
                    (WebhookUrl::File(_), secret) => secret.as_ref().map(|(_, url)| url.clone()).unwrap_or_default(),
                };
                let body = webhook::body(&self.fleet, *id, page, link);
                let headers = match secrets.signing.as_slice() {
                    [] => Vec::new(),
                    keys => signature::headers(keys, now.as_second(), &body),
                };
                vec![one(url, secrets.main.clone(), headers, body)]
            }
        }
    }

    /// How its alerts are made; for other kinds it does not matter.
    pub(super) fn frame(&self, now: Timestamp) -> alertmanager::Frame<'_> {
        static NONE: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
        let (labels, valid_for) = match &self.config.kind {
            ReceiverKind::Alertmanager { labels, valid_for, .. } => (labels, *valid_for),
            _ => (&NONE, super::config::VALID_FOR_DEFAULT),
        };
        alertmanager::Frame { fleet: &self.fleet, labels, valid_for, now, runbooks: self.config.runbooks.as_ref() }
    }

    /// The same body to every member of the cluster.
    pub(super) fn alertmanager_calls(&self, body: &Bytes) -> Vec<Call> {
        let ReceiverKind::Alertmanager { urls, .. } = &self.config.kind else { return Vec::new() };
        let bearer = &self.secrets.load().main;
        let call = |url: &Uri| {
            let (url, body) = (alertmanager::alerts_url(url), Some(body.clone()));
            Call::Http(Request { url, bearer: bearer.clone(), headers: Vec::new(), body })
        };
        urls.iter().map(call).collect()
    }

    /// What the answer means. Nothing in the result holds a secret, even if the receiver echoed it.
    pub fn judge(&self, response: &Response) -> Judgement {
        let status = response.status;
        let kind = &self.config.kind;
        let accepted = match kind {
            ReceiverKind::PagerDuty { .. } => status == 202,
            _ => (200..300).contains(&status),
        };
        if accepted {
            return Judgement::Delivered;
        }
        // Secrets go first: one that is escaped or cut in its middle is not recognized any more.
        let error = match self.redact(response.text.trim()).as_str() {
            "" => format!("answered {status}"),
            text => format!("answered {status}: {}", shown(&clip(text, ANSWER_BYTES_MAX))),
        };
        let retry = Judgement::Retry { error: error.clone(), after: response.retry_after };
        match (kind, status) {
            // A mail server's "not now" and its "never".
            (ReceiverKind::Mail(_), 500..) => Judgement::Refused(error),
            (ReceiverKind::Mail(_), _) | (_, 408 | 429) => retry,
            (_, 300..=399) => {
                Judgement::Refused(format!("{error}; redirects are not followed, configure the final URL"))
            }
            // What a proxy, a rotated token or a deployment in progress answers, and takes back when it is mended.
            (ReceiverKind::Webhook { .. } | ReceiverKind::Alertmanager { .. }, 401 | 403 | 404 | 409 | 425) => retry,
            (_, 400..=499) => Judgement::Refused(error),
            // 2xx other than PagerDuty's 202, 1xx and 5xx: not accepted, but it may be later.
            _ => retry,
        }
    }

    /// `text` without anything secret.
    pub(super) fn redact(&self, text: &str) -> String {
        let secrets = self.secrets.load();
        let urls = secrets.url.iter().flat_map(|(secret, url)| [secret.expose(), url.path()]);
        let secret = secrets.main.iter().chain(&secrets.signing).map(Secret::expose);
        let long = urls.chain(secret).filter(|secret| secret.len() >= PATH_BYTES_MIN);
        long.fold(text.to_owned(), |text, secret| text.replace(secret, "…"))
    }
}

/// A stranger's text on one line, where it moves no cursor. Quotes stay as they are: many answers are JSON.
fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\'' => shown.push(c),
            other => shown.extend(other.escape_debug()),
        }
    }
    shown
}

/// Reads everything that the config names.
fn read_secrets(config: &ReceiverConfig) -> Result<Secrets, ReceiverError> {
    let name = &config.name;
    let token = |file: &SecretFile| {
        read(name, file, is_token, "a token of printable characters without spaces, alone in the file")
    };
    let url = |file: &SecretFile| {
        let secret =
            read(name, file, |text| parse_url(text).is_ok(), "a URL such as https://host/path, alone in the file")?;
        let parsed = parse_url(secret.expose()).unwrap_or_default();
        Ok::<_, ReceiverError>((secret, parsed))
    };
    Ok(match &config.kind {
        ReceiverKind::PagerDuty { routing_key_file, .. } => {
            let expected = "a PagerDuty routing key (32 letters and digits, alone in the file)";
            let is_key = |text: &str| text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
            Secrets { main: Some(read(name, routing_key_file, is_key, expected)?), ..Secrets::default() }
        }
        ReceiverKind::Alertmanager { token_file, .. } => {
            Secrets { main: token_file.as_ref().map(token).transpose()?, ..Secrets::default() }
        }
        ReceiverKind::Slack { url_file } => Secrets { url: Some(url(url_file)?), ..Secrets::default() },
        ReceiverKind::Mail(mail) => {
            let password = |file: &SecretFile| {
                let sound = |text: &str| !text.is_empty() && !text.contains(char::is_control);
                read(name, file, sound, "a password in one line, alone in the file")
            };
            let main = mail.login.as_ref().map(|(_, file)| password(file)).transpose()?;
            Secrets { main, ..Secrets::default() }
        }
        ReceiverKind::Webhook { url: target, token_file, signing_key_files } => Secrets {
            main: token_file.as_ref().map(token).transpose()?,
            signing: signing_key_files.iter().map(token).collect::<Result<_, _>>()?,
            url: match target {
                WebhookUrl::Plain(_) => None,
                WebhookUrl::File(file) => Some(url(file)?),
            },
        },
    })
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A file's text, if it is what is expected.
pub(super) fn read(
    name: &str,
    file: &SecretFile,
    is_sound: impl Fn(&str) -> bool,
    expected: &'static str,
) -> Result<Secret, ReceiverError> {
    let cannot = |source| ReceiverError::Secret { name: name.to_owned(), file: file.clone(), source };
    let secret = file.read().map_err(cannot)?;
    if is_sound(secret.expose()) {
        return Ok(secret);
    }
    Err(ReceiverError::Form { name: name.to_owned(), file: file.clone(), expected })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use muster_common::evidence::Grade;
    use muster_common::reason::Reason;
    use muster_common::severity::Severity;
    use muster_common::time::Timestamp;
    use muster_coordinator_core::page::{Page, PageAction};

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
        let url = WebhookUrl::Plain(url.parse().unwrap());
        let kind = ReceiverKind::Webhook { url, token_file: None, signing_key_files: Vec::new() };
        Receiver::open(ReceiverConfig::new(name, kind), "prod").unwrap()
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
    fn an_answer_is_shown_as_it_reads_and_moves_no_cursor() {
        let said = webhook("ops", "http://127.0.0.1:1/").judge(&answer(400, "{\"status\": \"can't\"}\n\u{1b}[2J"));
        let shown = r#"answered 400: {"status": "can't"}\n\u{1b}[2J"#;
        assert_eq!(said, Judgement::Refused(shown.to_owned()));
    }

    #[test]
    fn a_key_is_checked_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let kind = ReceiverKind::PagerDuty {
            url: Uri::from_static(super::super::config::PAGERDUTY_URL),
            routing_key_file: file.clone().into(),
        };
        let config = ReceiverConfig::new("oncall", kind);
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

    #[test]
    fn a_secret_that_is_escaped_or_cut_in_its_middle_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let token = r#"half-and\"other"half"#;
        std::fs::write(&file, token).unwrap();
        let url = WebhookUrl::Plain("http://127.0.0.1:1/".parse().unwrap());
        let kind = ReceiverKind::Webhook { url, token_file: Some(file.into()), signing_key_files: Vec::new() };
        let receiver = Receiver::open(ReceiverConfig::new("ops", kind), "prod").unwrap();
        for before in (0..ANSWER_BYTES_MAX + 4).step_by(3) {
            let judged = receiver.judge(&answer(400, &format!("{}{token} is no token", "x".repeat(before))));
            let Judgement::Refused(error) = judged else { panic!("{judged:?}") };
            assert!(!error.contains("half") && !error.contains("other"), "{before}: {error}");
        }
    }

    #[test]
    fn keys_in_rotation_both_sign_and_new_ones_are_read_without_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).unwrap();
            SecretFile::Path(dir.path().join(name))
        };
        let kind = ReceiverKind::Webhook {
            url: WebhookUrl::File(file("url", "https://host/very-secret\n")),
            token_file: None,
            signing_key_files: vec![file("new", "new-key"), file("old", "old-key")],
        };
        let receiver = Receiver::open(ReceiverConfig::new("ops", kind), "prod").unwrap();
        let pending = Pending::new(muster_coordinator_core::page::PageId(17), page(PageAction::Trigger, "abc"));
        let now = "2026-11-21T02:00:00Z".parse().unwrap();
        let headers = || match receiver.calls(&pending, now).remove(0) {
            Call::Http(request) => request.headers,
            Call::Mail(_) => Vec::new(),
        };
        let before = headers();
        assert_eq!(before[1].1.matches("sha256=").count(), 2);
        assert!(!receiver.reload().unwrap(), "nothing changed");
        file("new", "newer-key");
        assert!(receiver.reload().unwrap());
        assert_ne!(headers()[1], before[1]);
        file("new", "not one word");
        assert!(receiver.reload().is_err());
        assert_eq!(headers()[1].1.matches("sha256=").count(), 2, "the old ones stay");
        let judged = receiver.judge(&answer(500, "no /very-secret at https://host/very-secret for newer-key"));
        let shown = format!("{judged:?} {receiver:?} {:?}", receiver.calls(&pending, now));
        assert!(!shown.contains("very-secret") && !shown.contains("-key"), "{shown}");
    }
}

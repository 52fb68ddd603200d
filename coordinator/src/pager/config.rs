//! `[[receiver.KIND]]` of the coordinator's config, for the five kinds.
//!
//! Only names of files with secrets are here, never the secrets; and as a webhook's URL is often a secret by itself,
//! `Debug` shows scheme and host alone.

use super::runbook::{RunbookUrl, read_runbooks};
use super::secret::SecretFile;
use hyper::Uri;
use muster_common::config::Reader;
use muster_common::ids::AgentName;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where PagerDuty takes events.
pub const PAGERDUTY_URL: &str = "https://events.pagerduty.com/v2/enqueue";
/// Longest wait for one call when the config does not say.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// How long a page is retried when the config does not say: a night and a day, so that a receiver that is down until
/// people come to work still gets it.
pub const RETRY_FOR_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// After how long without success its fallback stands in, when the config does not say: the first response to sev0.
pub const FALLBACK_AFTER_DEFAULT: Duration = Duration::from_secs(5 * 60);
/// How long an Alertmanager keeps an alert that is not told again; told again is it three times as often.
pub const VALID_FOR_DEFAULT: Duration = Duration::from_secs(15 * 60);
/// Each receiver is a worker with its own connections; more than these are a mistake.
pub const RECEIVERS_MAX: usize = 16;
/// Alertmanagers of one cluster, addresses of one mail, keys in a rotation.
const ALERTMANAGERS_MAX: usize = 8;
const ADDRESSES_MAX: usize = 32;
const KEYS_MAX: usize = 2;
const LABELS_MAX: usize = 16;

/// One receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiverConfig {
    /// Unique; pages name it.
    pub name: String,
    /// Longest wait for one call.
    pub timeout: Duration,
    /// How long a page is retried before it is given up.
    pub retry_for: Duration,
    /// Certificates to trust *instead of* the public ones.
    pub ca: Option<PathBuf>,
    /// Calls a minute.
    pub rate_per_minute: u32,
    /// Who is told in its place when it fails.
    pub fallback: Option<String>,
    /// After how long without success that one stands in.
    pub fallback_after: Duration,
    /// Muster leaves escalation to it.
    pub escalates_itself: bool,
    /// Where its pages send people; the same for all receivers.
    pub runbooks: Option<RunbookUrl>,
    /// What it is.
    pub kind: ReceiverKind,
}

/// The five kinds.
#[derive(Clone, PartialEq, Eq)]
pub enum ReceiverKind {
    /// Events API v2.
    PagerDuty {
        /// Where.
        url: Uri,
        /// File with the 32-character integration key.
        routing_key_file: SecretFile,
    },
    /// Prometheus Alertmanager, API v2.
    Alertmanager {
        /// Every member of the cluster: each is told.
        urls: Vec<Uri>,
        /// Labels that every alert carries.
        labels: BTreeMap<String, String>,
        /// How long an alert stands that is not told again.
        valid_for: Duration,
        /// File with a bearer token.
        token_file: Option<SecretFile>,
    },
    /// Slack's incoming webhook; its URL is the secret.
    Slack {
        /// File with the URL.
        url_file: SecretFile,
    },
    /// Mail.
    Mail(MailConfig),
    /// Our documented JSON object, by POST.
    Webhook {
        /// Where.
        url: WebhookUrl,
        /// File with a bearer token.
        token_file: Option<SecretFile>,
        /// Files with the keys that sign, the newest first.
        signing_key_files: Vec<SecretFile>,
    },
}

impl ReceiverKind {
    /// Every file with a secret of it.
    pub fn secret_files(&self) -> Vec<&SecretFile> {
        match self {
            Self::PagerDuty { routing_key_file, .. } => vec![routing_key_file],
            Self::Alertmanager { token_file, .. } => token_file.iter().collect(),
            Self::Slack { url_file } => vec![url_file],
            Self::Mail(mail) => mail.login.iter().map(|(_, file)| file).collect(),
            Self::Webhook { url, token_file, signing_key_files } => {
                url.secret_file().into_iter().chain(token_file).chain(signing_key_files).collect()
            }
        }
    }
}

/// Where a webhook is.
#[derive(Clone, PartialEq, Eq)]
pub enum WebhookUrl {
    /// In the config.
    Plain(Uri),
    /// It is a secret.
    File(SecretFile),
}

impl WebhookUrl {
    /// The file that it is in, where it is a secret.
    pub fn secret_file(&self) -> Option<&SecretFile> {
        match self {
            Self::Plain(_) => None,
            Self::File(file) => Some(file),
        }
    }
}

/// How the connection to a mail server is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailTls {
    /// Asked for on the plain connection, and insisted upon.
    StartTls,
    /// From the first byte.
    Implicit,
    /// Not at all: a server on this very host.
    None,
}

/// `[[receiver.smtp]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailConfig {
    /// Name or address of the server, as its certificate has it.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Protection.
    pub tls: MailTls,
    /// Sender.
    pub from: String,
    /// Recipients.
    pub to: Vec<String>,
    /// User and the file with the password.
    pub login: Option<(String, SecretFile)>,
}

impl ReceiverConfig {
    /// With every option at its default.
    pub fn new(name: &str, kind: ReceiverKind) -> Self {
        Self {
            name: name.to_owned(),
            timeout: TIMEOUT_DEFAULT,
            retry_for: RETRY_FOR_DEFAULT,
            ca: None,
            rate_per_minute: kind.rate_default(),
            fallback: None,
            fallback_after: FALLBACK_AFTER_DEFAULT,
            escalates_itself: kind.escalates_itself(),
            runbooks: None,
            kind,
        }
    }
}

impl ReceiverKind {
    /// The word for it, as in the config.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::PagerDuty { .. } => "pagerduty",
            Self::Alertmanager { .. } => "alertmanager",
            Self::Slack { .. } => "slack",
            Self::Mail(_) => "smtp",
            Self::Webhook { .. } => "webhook",
        }
    }

    /// Where to, without secrets.
    pub fn target(&self) -> String {
        match self {
            Self::PagerDuty { url, .. } | Self::Webhook { url: WebhookUrl::Plain(url), .. } => origin(url),
            Self::Alertmanager { urls, .. } => urls.iter().map(origin).collect::<Vec<_>>().join(", "),
            Self::Slack { url_file } | Self::Webhook { url: WebhookUrl::File(url_file), .. } => {
                format!("the URL in {url_file}")
            }
            Self::Mail(mail) => format!("{} by {}:{}", mail.to.join(", "), mail.host, mail.port),
        }
    }

    /// Calls a minute. PagerDuty takes about 120 in any 60 seconds per key and refuses the rest; Slack about one a
    /// second.
    const fn rate_default(&self) -> u32 {
        match self {
            Self::PagerDuty { .. } => 100,
            Self::Slack { .. } => 50,
            Self::Mail(_) => 30,
            Self::Alertmanager { .. } | Self::Webhook { .. } => 6_000,
        }
    }

    /// True when it keeps what it is told until it is told that it is over.
    pub const fn keeps_alerts(&self) -> bool {
        matches!(self, Self::PagerDuty { .. } | Self::Alertmanager { .. })
    }

    /// True when what it was told ends by itself unless it is told again.
    pub const fn must_be_told_again(&self) -> bool {
        matches!(self, Self::Alertmanager { .. })
    }

    const fn escalates_itself(&self) -> bool {
        matches!(self, Self::PagerDuty { .. })
    }
}

impl fmt::Debug for ReceiverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(self.word()).field("target", &self.target()).finish_non_exhaustive()
    }
}

/// `scheme://host:port`: all of a URL that may be logged.
pub fn origin(url: &Uri) -> String {
    let host = url.host().unwrap_or("?");
    let port = url.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{host}{port}", url.scheme_str().unwrap_or("?"))
}

/// Reads the options of one kind of receiver.
type ReadKind = fn(&Reader<'_>) -> Option<ReceiverConfig>;

/// Reads all receivers, and the names of all of them, also of those with a mistake; mistakes are noted in the reader.
pub fn read_receivers(root: &Reader<'_>) -> (Vec<ReceiverConfig>, Vec<String>) {
    // Before the receivers: a table that is not asked for would be a mistake where there are none.
    let runbooks = read_runbooks(root);
    let Some(receivers) = root.table("receiver") else { return (Vec::new(), Vec::new()) };
    let kinds: [(&str, ReadKind); 5] = [
        ("pagerduty", read_pagerduty),
        ("alertmanager", read_alertmanager),
        ("slack", read_slack),
        ("smtp", read_mail),
        ("webhook", read_webhook),
    ];
    let mut found: Vec<ReceiverConfig> = Vec::new();
    let (mut tables, mut names): (Vec<Reader<'_>>, Vec<String>) = (Vec::new(), Vec::new());
    for (kind, read) in kinds {
        for table in receivers.tables(kind) {
            let config = read(&table);
            if tables.len() == RECEIVERS_MAX {
                table.mistake("too many receivers", &format!("expected at most {RECEIVERS_MAX}"));
                return (found, names);
            }
            found.extend(config);
            // Also of one with a mistake, so that what names it is no other mistake.
            if let Some(name) = name_in(&table, "name") {
                if names.contains(&name) {
                    table.mistake(&format!("two receivers are named {name:?}"), "expected another name");
                }
                names.push(name);
            }
            tables.push(table);
        }
    }
    found.iter_mut().for_each(|config| config.runbooks.clone_from(&runbooks));
    for table in &tables {
        if let Some(value) = table.value("fallback")
            && let Some(fallback) = name_in(table, "fallback")
        {
            if name_in(table, "name").as_ref() == Some(&fallback) {
                value.mistake("a receiver cannot stand in for itself", "expected the name of another receiver");
            } else if !names.contains(&fallback) {
                unknown_receiver(&value, &fallback, &names);
            }
        }
    }
    (found, names)
}

/// A name that can be one; what is wrong about another is noted where it is read.
fn name_in(table: &Reader<'_>, key: &str) -> Option<String> {
    parse_name(table.value(key)?.if_string()?).ok()
}

/// Notes that nobody has this name.
pub(super) fn unknown_receiver(value: &muster_common::config::Value<'_>, name: &str, names: &[String]) {
    let expected = match names {
        [] => "no receiver is configured".to_owned(),
        names => format!("expected one of: {}", names.join(", ")),
    };
    value.mistake(&format!("no receiver is named {name:?}"), &expected);
}

fn read_pagerduty(table: &Reader<'_>) -> Option<ReceiverConfig> {
    refuse_secret(table, "routing_key", "routing_key_file");
    let url = table.parsed("url", |text| parse_url(text).and_then(protected));
    let routing_key_file = required_secret(table, "routing_key_file");
    let url = url.unwrap_or_else(|| Uri::from_static(PAGERDUTY_URL));
    read_common(table, routing_key_file.map(|routing_key_file| ReceiverKind::PagerDuty { url, routing_key_file }))
}

fn read_alertmanager(table: &Reader<'_>) -> Option<ReceiverConfig> {
    refuse_secret(table, "token", "token_file");
    let urls = table.required("urls").map(|value| (value.clone(), table.list("urls", parse_url)));
    if let Some((value, urls)) = &urls
        && (urls.is_empty() || urls.len() > ALERTMANAGERS_MAX)
    {
        let expected = format!("expected 1 to {ALERTMANAGERS_MAX} addresses such as \"http://am-1:9093\"");
        value.mistake("the Alertmanagers of the cluster, each of them", &expected);
    }
    let labels = table.string_map("labels");
    if let Some(value) = table.value("labels") {
        let wrong = labels.keys().find(|name| !super::alertmanager::is_label_name(name));
        if let Some(name) = wrong {
            value.mistake(&format!("{name:?} is no label of an alert"), "expected letters, digits and _");
        }
        if let Some(name) = labels.keys().find(|name| super::alertmanager::OWN_LABELS.contains(&name.as_str())) {
            value.mistake(&format!("the label {name:?} is set by Muster"), "expected another name");
        }
        if labels.len() > LABELS_MAX {
            value.mistake("too many labels", &format!("expected at most {LABELS_MAX}"));
        }
    }
    let minute = Duration::from_secs(60);
    let valid_for = table.duration("valid_for", minute..=24 * 60 * minute).unwrap_or(VALID_FOR_DEFAULT);
    let token_file = table.parsed("token_file", SecretFile::parse);
    let kind = urls.map(|(_, urls)| ReceiverKind::Alertmanager { urls, labels, valid_for, token_file });
    read_common(table, kind)
}

fn read_slack(table: &Reader<'_>) -> Option<ReceiverConfig> {
    refuse_secret(table, "url", "url_file");
    let kind = required_secret(table, "url_file").map(|url_file| ReceiverKind::Slack { url_file });
    read_common(table, kind)
}

fn read_mail(table: &Reader<'_>) -> Option<ReceiverConfig> {
    refuse_secret(table, "password", "password_file");
    let host = table.required("host").and_then(|value| value.parsed(super::mail::parse_host));
    let tls = table.parsed("tls", |text| match text {
        "starttls" => Ok(MailTls::StartTls),
        "implicit" => Ok(MailTls::Implicit),
        "none" => Ok(MailTls::None),
        _ => Err("expected \"starttls\", \"implicit\" or \"none\"".to_owned()),
    });
    let tls = tls.unwrap_or(MailTls::StartTls);
    let port = table.integer("port", 1..=65_535).and_then(|port| u16::try_from(port).ok());
    let port = port.unwrap_or(if tls == MailTls::Implicit { 465 } else { 587 });
    let from = table.required("from").and_then(|value| value.parsed(super::mail::parse_address));
    let to = table.required("to").map(|value| {
        let to = table.list("to", super::mail::parse_address);
        if value.is_array() && (to.is_empty() || to.len() > ADDRESSES_MAX) {
            value.mistake("who gets the mail", &format!("expected 1 to {ADDRESSES_MAX} addresses"));
        }
        to
    });
    let user = table.parsed("user", |text| match text.is_empty() || text.contains(char::is_control) {
        true => Err("expected the name to log in with".to_owned()),
        false => Ok(text.to_owned()),
    });
    let password_file = table.parsed("password_file", SecretFile::parse);
    let login = match (user, password_file) {
        (Some(user), Some(file)) => Some((user, file)),
        (None, None) => None,
        _ => {
            table.mistake("user and password_file go together", "expected both or none");
            None
        }
    };
    let is_here = host.as_deref().is_none_or(is_loopback);
    if tls == MailTls::None && !is_here {
        table.mistake("mail would go out in the clear", "expected tls = \"starttls\" or \"implicit\"");
    }
    let kind = || Some(ReceiverKind::Mail(MailConfig { host: host?, port, tls, from: from?, to: to?, login }));
    read_common(table, kind())
}

fn read_webhook(table: &Reader<'_>) -> Option<ReceiverConfig> {
    refuse_secret(table, "token", "token_file");
    refuse_secret(table, "signing_key", "signing_key_files");
    let file = table.parsed("url_file", SecretFile::parse).map(WebhookUrl::File);
    let url = match file {
        Some(file) => {
            if let Some(value) = table.value("url") {
                value.mistake("the URL is told twice", "expected url or url_file");
            }
            Some(file)
        }
        None if table.value("url_file").is_some() => {
            table.value("url");
            None
        }
        None => table.required("url").and_then(|value| value.parsed(parse_url)).map(WebhookUrl::Plain),
    };
    let token_file = table.parsed("token_file", SecretFile::parse);
    let signing_key_files = table.list("signing_key_files", SecretFile::parse);
    if signing_key_files.len() > KEYS_MAX
        && let Some(value) = table.value("signing_key_files")
    {
        value.mistake("too many keys", &format!("expected at most {KEYS_MAX}: the new one and the old one"));
    }
    read_common(table, url.map(|url| ReceiverKind::Webhook { url, token_file, signing_key_files }))
}

/// The keys that all kinds share. Asks for every key even when `kind` is missing, so that all mistakes come at once.
fn read_common(table: &Reader<'_>, kind: Option<ReceiverKind>) -> Option<ReceiverConfig> {
    let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
    let name = table.required("name").and_then(|value| value.parsed(parse_name));
    let timeout = table.duration("timeout", second..=60 * second).unwrap_or(TIMEOUT_DEFAULT);
    let retry_for = table.duration("retry_for", 60 * second..=7 * 24 * hour).unwrap_or(RETRY_FOR_DEFAULT);
    let ca = table.parsed("ca", |text| {
        let path = PathBuf::from(text);
        if path.is_absolute() { Ok(path) } else { Err("expected an absolute path".to_owned()) }
    });
    let rate = table.integer("rate_per_minute", 1..=60_000).and_then(|rate| u32::try_from(rate).ok());
    let fallback = table.parsed("fallback", parse_name);
    let fallback_after = table.duration("fallback_after", 10 * second..=24 * hour);
    if fallback_after.is_some() && table.value("fallback").is_none() {
        table.mistake("fallback_after says when nobody stands in", "expected fallback = \"NAME\" beside it");
    }
    let escalates_itself = table.boolean("escalates_itself");
    let (name, kind) = (name?, kind?);
    let defaults = ReceiverConfig::new(&name, kind);
    Some(ReceiverConfig {
        timeout,
        retry_for,
        ca,
        rate_per_minute: rate.unwrap_or(defaults.rate_per_minute),
        fallback,
        fallback_after: fallback_after.unwrap_or(FALLBACK_AFTER_DEFAULT),
        escalates_itself: escalates_itself.unwrap_or(defaults.escalates_itself),
        ..defaults
    })
}

fn parse_name(text: &str) -> Result<String, String> {
    AgentName::new(text).map(String::from).map_err(|error| error.to_string())
}

/// A secret in the config's text is refused, and told where to go.
pub(crate) fn refuse_secret(table: &Reader<'_>, key: &str, instead: &str) {
    if let Some(value) = table.value(key) {
        let expected = format!("put it alone into a file and name that: {instead}, a path or \"credential:NAME\"");
        value.mistake(&format!("{key:?} would be a secret in the config's text"), &expected);
    }
}

fn required_secret(table: &Reader<'_>, key: &str) -> Option<SecretFile> {
    table.required(key).and_then(|value| value.parsed(SecretFile::parse))
}

pub(crate) fn parse_url(text: &str) -> Result<Uri, String> {
    let expected = "expected a URL such as \"https://host/path\"";
    let url: Uri = text.parse().map_err(|_| expected.to_owned())?;
    if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none_or(str::is_empty) {
        return Err(expected.to_owned());
    }
    if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("expected no user or password in the URL; put a bearer token into token_file".to_owned());
    }
    Ok(url)
}

fn protected(url: Uri) -> Result<Uri, String> {
    if url.scheme_str() == Some("http") && !url.host().is_some_and(is_loopback) {
        return Err("expected https://, or http:// to this very host: the routing key is a secret".to_owned());
    }
    Ok(url)
}

pub(crate) fn is_loopback(host: &str) -> bool {
    matches!(host, "127.0.0.1" | "[::1]" | "::1" | "localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::config::read;

    #[test]
    fn all_kinds_are_read_with_their_defaults() {
        let text = r#"
[[receiver.pagerduty]]
name = "oncall"
routing_key_file = "/etc/muster/pagerduty.key"
fallback = "ops"

[[receiver.alertmanager]]
name = "am"
urls = ["http://am-1:9093", "http://am-2:9093/prefix/"]
labels = { team = "db" }

[[receiver.slack]]
name = "chat"
url_file = "credential:slack"

[[receiver.smtp]]
name = "mail"
host = "mail.example"
from = "muster@example.com"
to = ["ops@example.com"]
user = "muster"
password_file = "/etc/muster/mail.password"

[[receiver.webhook]]
name = "ops"
url = "http://127.0.0.1:9000/hook/very-secret"
timeout = "2s"
signing_key_files = ["/etc/muster/new.key", "/etc/muster/old.key"]
"#;
        let (found, _) = read("c.toml", text, read_receivers).unwrap_or_else(|errors| panic!("{errors}"));
        let words: Vec<_> = found.iter().map(|config| config.kind.word()).collect();
        assert_eq!(words, ["pagerduty", "alertmanager", "slack", "smtp", "webhook"]);
        assert_eq!(found[0].kind.target(), "https://events.pagerduty.com");
        assert!(found[0].escalates_itself && !found[1].escalates_itself);
        assert_eq!(found[0].fallback.as_deref(), Some("ops"));
        let ReceiverKind::Mail(mail) = &found[3].kind else { panic!("{found:?}") };
        assert_eq!((mail.port, mail.tls), (587, MailTls::StartTls));
        assert_eq!(found[4].timeout, Duration::from_secs(2));
        assert!(!format!("{found:?}").contains("very-secret"), "{found:?}");
    }

    /// One bad file per rule: what stands in the table, what is told.
    #[test]
    fn each_rule_has_its_mistake() {
        let name = "name = \"a\"\n";
        let mail = "name = \"a\"\nhost = \"mx\"\nfrom = \"a@b.c\"\nto = [\"a@b.c\"]\n";
        let hook = "name = \"a\"\nurl = \"http://h/\"\n";
        for (kind, keys, told) in [
            ("pagerduty", format!("{name}routing_key = \"x\""), "would be a secret in the config"),
            ("pagerduty", name.to_owned(), "lacks the key \"routing_key_file\""),
            ("pagerduty", format!("{name}routing_key_file = \"0123\""), "absolute path of a file with the secret"),
            ("pagerduty", format!("{name}routing_key_file = \"/k\"\nurl = \"http://h/\""), "is a secret"),
            ("alertmanager", format!("{name}urls = []"), "1 to 8 addresses"),
            ("alertmanager", format!("{name}urls = [\"am:9093\"]"), "expected a URL"),
            (
                "alertmanager",
                format!("{name}urls = [\"http://a\"]\nlabels = {{ a-b = \"x\" }}"),
                "no label of an alert",
            ),
            ("alertmanager", format!("{name}urls = [\"http://a\"]\nlabels = {{ fleet = \"x\" }}"), "set by Muster"),
            ("alertmanager", format!("{name}urls = [\"http://a\"]\nvalid_for = \"5s\""), "from 60 s"),
            ("slack", format!("{name}url = \"https://hooks.slack.com/x\""), "would be a secret"),
            ("smtp", format!("{mail}password = \"x\""), "would be a secret"),
            ("smtp", format!("{mail}user = \"x\""), "go together"),
            ("smtp", format!("{mail}tls = \"none\""), "in the clear"),
            ("smtp", format!("{mail}tls = \"ssl\""), "expected \"starttls\""),
            ("smtp", "name = \"a\"\nhost = \"mx\"\nfrom = \"a b\"\nto = [\"a@b.c\"]\n".to_owned(), "mail address"),
            ("smtp", "name = \"a\"\nhost = \"mx\"\nfrom = \"a@b\"\nto = []\n".to_owned(), "1 to 32 addresses"),
            ("webhook", format!("{hook}token = \"x\""), "would be a secret"),
            ("webhook", format!("{hook}url_file = \"/u\""), "told twice"),
            ("webhook", format!("{hook}signing_key_files = [\"/a\", \"/b\", \"/c\"]"), "too many keys"),
            ("webhook", "name = \"a\"\nurl = \"https://u:p@h/\"".to_owned(), "no user or password"),
            ("webhook", format!("{hook}fallback = \"a\""), "stand in for itself"),
            ("webhook", format!("{hook}fallback = \"b\""), "no receiver is named \"b\""),
            ("webhook", format!("{hook}fallback_after = \"5m\""), "nobody stands in"),
            ("webhook", format!("{hook}rate_per_minute = 0"), "whole number from 1"),
            ("webhook", format!("{hook}timeout = \"0s\""), "expected a duration"),
            ("webhook", "name = \"a b\"\nurl = \"http://h/\"".to_owned(), "bad value for"),
            ("webhook", "url = \"ftp://x\"".to_owned(), "lacks the key \"name\""),
        ] {
            let text = format!("[[receiver.{kind}]]\n{keys}\n");
            let error = match read("c.toml", &text, read_receivers) {
                Ok(found) => panic!("{text} was taken: {found:?}"),
                Err(error) => error.to_string(),
            };
            assert!(error.contains(told), "{told}: {error}");
        }
    }

    #[test]
    fn a_mistake_of_a_receiver_hides_none_of_the_others() {
        let bad =
            |name: &str| format!("[[receiver.webhook]]\nname=\"{name}\"\nurl=\"ftp://h/\"\nfallback=\"nobody\"\n");
        let text = format!("{}{}", bad("a"), bad("a"));
        let error = read("c.toml", &text, read_receivers).unwrap_err();
        let told = error.to_string();
        assert_eq!(error.mistakes.len(), 5, "{told}");
        for part in ["expected a URL", "two receivers are named \"a\"", "no receiver is named \"nobody\"", "one of: a"]
        {
            assert!(told.contains(part), "{part}: {told}");
        }
    }

    #[test]
    fn names_are_unique() {
        let text = "[[receiver.webhook]]\nname=\"a\"\nurl=\"http://h/\"\n[[receiver.webhook]]\nname=\"a\"\nurl=\"http://h/\"\n";
        let error = read("c.toml", text, read_receivers).unwrap_err();
        assert!(error.to_string().contains("two receivers are named \"a\""), "{error}");
    }
}

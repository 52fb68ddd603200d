//! `[[receiver.pagerduty]]` and `[[receiver.webhook]]` of the coordinator's config.
//!
//! Only names of files with secrets are here, never the secrets; and as a webhook's URL is often a secret by itself,
//! `Debug` shows scheme and host alone.

use hyper::Uri;
use muster_common::config::Reader;
use muster_common::ids::AgentName;
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
/// Each receiver is a worker with its own connections; more than these are a mistake.
pub const RECEIVERS_MAX: usize = 16;

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
    /// What it is.
    pub kind: ReceiverKind,
}

/// The two kinds.
#[derive(Clone, PartialEq, Eq)]
pub enum ReceiverKind {
    /// Events API v2.
    PagerDuty {
        /// Where.
        url: Uri,
        /// File with the 32-character integration key.
        routing_key_file: PathBuf,
    },
    /// Our documented JSON object, by POST.
    Webhook {
        /// Where.
        url: Uri,
        /// File with a bearer token.
        token_file: Option<PathBuf>,
    },
}

impl ReceiverKind {
    /// Where it takes calls.
    pub fn url(&self) -> &Uri {
        match self {
            Self::PagerDuty { url, .. } | Self::Webhook { url, .. } => url,
        }
    }
}

impl fmt::Debug for ReceiverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::PagerDuty { .. } => "PagerDuty",
            Self::Webhook { .. } => "Webhook",
        };
        f.debug_struct(name).field("url", &origin(self.url())).finish_non_exhaustive()
    }
}

/// `scheme://host:port`: all of a URL that may be logged.
pub fn origin(url: &Uri) -> String {
    let host = url.host().unwrap_or("?");
    let port = url.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{host}{port}", url.scheme_str().unwrap_or("?"))
}

/// Reads all receivers; mistakes are noted in the reader.
pub fn read_receivers(root: &Reader<'_>) -> Vec<ReceiverConfig> {
    let Some(receivers) = root.table("receiver") else { return Vec::new() };
    let mut found: Vec<ReceiverConfig> = Vec::new();
    let pagerduty = receivers.tables("pagerduty").into_iter().map(|table| (read_pagerduty(&table), table));
    let pagerduty: Vec<_> = pagerduty.collect();
    let webhook = receivers.tables("webhook").into_iter().map(|table| (read_webhook(&table), table));
    for (config, table) in pagerduty.into_iter().chain(webhook) {
        let Some(config) = config else { continue };
        if found.iter().any(|other| other.name == config.name) {
            table.mistake(&format!("two receivers are named {:?}", config.name), "expected another name");
        }
        if found.len() == RECEIVERS_MAX {
            table.mistake("too many receivers", &format!("expected at most {RECEIVERS_MAX}"));
            break;
        }
        found.push(config);
    }
    found
}

fn read_pagerduty(table: &Reader<'_>) -> Option<ReceiverConfig> {
    let url = table.parsed("url", |text| {
        let url = parse_url(text)?;
        let loopback = matches!(url.host(), Some("127.0.0.1" | "[::1]" | "localhost"));
        if url.scheme_str() == Some("http") && !loopback {
            return Err("expected https://, or http:// to this very host: the routing key is a secret".to_owned());
        }
        Ok(url)
    });
    let routing_key_file = table.required("routing_key_file").and_then(|value| value.parsed(parse_path));
    let url = url.unwrap_or_else(|| Uri::from_static(PAGERDUTY_URL));
    read_common(table, routing_key_file.map(|routing_key_file| ReceiverKind::PagerDuty { url, routing_key_file }))
}

fn read_webhook(table: &Reader<'_>) -> Option<ReceiverConfig> {
    let url = table.required("url").and_then(|value| value.parsed(parse_url));
    let token_file = table.parsed("token_file", parse_path);
    read_common(table, url.map(|url| ReceiverKind::Webhook { url, token_file }))
}

/// The keys that all kinds share. Asks for every key even when `kind` is missing, so that all mistakes come at once.
fn read_common(table: &Reader<'_>, kind: Option<ReceiverKind>) -> Option<ReceiverConfig> {
    let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
    let name = table.required("name").and_then(|value| {
        value.parsed(|text| AgentName::new(text).map(String::from).map_err(|error| error.to_string()))
    });
    let timeout = table.duration("timeout", second..=60 * second).unwrap_or(TIMEOUT_DEFAULT);
    let retry_for = table.duration("retry_for", 60 * second..=7 * 24 * hour).unwrap_or(RETRY_FOR_DEFAULT);
    let ca = table.parsed("ca", parse_path);
    Some(ReceiverConfig { name: name?, timeout, retry_for, ca, kind: kind? })
}

fn parse_url(text: &str) -> Result<Uri, String> {
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

fn parse_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("expected an absolute path".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::config::read;

    #[test]
    fn both_kinds_are_read_with_their_defaults() {
        let text = r#"
[[receiver.pagerduty]]
name = "oncall"
routing_key_file = "/etc/muster/pagerduty.key"

[[receiver.webhook]]
name = "ops"
url = "http://127.0.0.1:9000/hook/very-secret"
timeout = "2s"
"#;
        let found = read("c.toml", text, read_receivers).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].kind.url().to_string(), PAGERDUTY_URL);
        assert_eq!(found[1].timeout, Duration::from_secs(2));
        assert!(!format!("{found:?}").contains("very-secret"), "{found:?}");
    }

    #[test]
    fn all_mistakes_are_told() {
        let text = r#"
[[receiver.pagerduty]]
name = "a"
url = "http://example.com/v2/enqueue"
routing_key_fil = "/x"

[[receiver.webhook]]
name = "a b"
url = "ftp://x"
token_file = "relative"

[[receiver.webhook]]
url = "https://user:pw@host/"
"#;
        let error = read("c.toml", text, read_receivers).unwrap_err();
        let messages: Vec<_> = error.mistakes.iter().map(|m| m.message.as_str()).collect();
        assert!(messages.iter().any(|m| m.contains("routing_key_fil")), "{error}");
        assert!(error.mistakes.len() >= 7, "{error}");
    }

    #[test]
    fn names_are_unique() {
        let text = "[[receiver.webhook]]\nname=\"a\"\nurl=\"http://h/\"\n[[receiver.webhook]]\nname=\"a\"\nurl=\"http://h/\"\n";
        let error = read("c.toml", text, read_receivers).unwrap_err();
        assert!(error.to_string().contains("two receivers are named \"a\""), "{error}");
    }
}

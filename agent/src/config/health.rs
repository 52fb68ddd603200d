//! `health` of a service: endpoints that say themselves whether all is well.

use super::walk::{DEADLINES, INTERVALS, absolute, names_a_host, table_or_string};
use muster_common::config::{Reader, Value};
use muster_common::limits::SUBJECT_BYTES_MAX;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// An endpoint that takes longer is of no use to anybody who waits for it.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// Two weeks: time to renew by hand, and later than automatic renewal should have happened.
const EXPIRY_WARNING_DEFAULT: Duration = Duration::from_secs(14 * 86_400);
/// Headers of a request, beside its own.
const HEADERS_MAX: usize = 8;
/// Bytes of a header's value.
const HEADER_BYTES_MAX: usize = 1024;
/// Failures in a row before it is told: one lost packet is no outage.
const FAILURES_DEFAULT: u32 = 2;

/// A health endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// `http://…`, `https://…` or `unix:/run/x.sock:/path`.
    pub url: String,
    /// How often.
    pub interval: Option<Duration>,
    /// How long one request may take, from the name to the last byte.
    pub timeout: Duration,
    /// Failures in a row before it is told.
    pub failures: u32,
    /// Which statuses are well.
    pub status: Vec<RangeInclusive<u16>>,
    /// What the body must say.
    pub field: Option<Field>,
    /// A slower answer is a problem of its own.
    pub max_latency: Option<Duration>,
    /// Certificates that sign the endpoint's; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// The name its certificate must have, where that is not the host of the URL.
    pub server_name: Option<String>,
    /// The `Host` header, where that is not the host of the URL.
    pub host: Option<String>,
    /// More headers.
    pub headers: BTreeMap<String, String>,
    /// A certificate that runs out within this is told.
    pub expiry_warning: Duration,
}

/// One field of a JSON body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// JSON pointer (RFC 6901).
    pub pointer: String,
    /// Its value, as JSON prints it without quotes.
    pub equals: String,
}

impl Health {
    /// With the defaults.
    pub fn new(url: String) -> Self {
        Self {
            url,
            interval: None,
            timeout: TIMEOUT_DEFAULT,
            failures: FAILURES_DEFAULT,
            status: vec![200..=299],
            field: None,
            max_latency: None,
            ca: None,
            server_name: None,
            host: None,
            headers: BTreeMap::new(),
            expiry_warning: EXPIRY_WARNING_DEFAULT,
        }
    }
}

/// `"URL"`, or a table with every option.
pub(super) fn walk(value: &Value<'_>) -> Option<Health> {
    if value.if_string().is_some() {
        return Some(Health::new(value.parsed(endpoint)?));
    }
    let table = table_or_string(value)?;
    let url = table.required("url").and_then(|inner| inner.parsed(endpoint));
    let options = options(&table);
    Some(Health { url: url?, ..options })
}

fn options(table: &Reader<'_>) -> Health {
    let mut health = Health::new(String::new());
    health.interval = table.duration("interval", INTERVALS);
    health.timeout = table.duration("timeout", DEADLINES).unwrap_or(health.timeout);
    health.failures = table.integer("failures", 1..=10).and_then(|n| u32::try_from(n).ok()).unwrap_or(health.failures);
    if let Some(value) = table.value("status") {
        let ranges: Vec<_> = statuses(&value);
        if !ranges.is_empty() {
            health.status = ranges;
        }
    }
    health.field = table.table("field").and_then(|reader| field(&reader));
    health.max_latency = table.duration("max_latency", DEADLINES);
    health.ca = table.parsed("ca", absolute);
    health.server_name = table.parsed("server_name", host_name);
    health.host = table.parsed("host", host_name);
    health.headers = table.string_map("headers");
    let wrong = health.headers.iter().find(|(name, value)| !is_header(name, value));
    let wrong = wrong.map(|(name, _)| name.clone());
    if let (Some(value), true) = (table.value("headers"), wrong.is_some() || health.headers.len() > HEADERS_MAX) {
        let message = wrong.map_or("too many headers".to_owned(), |name| format!("{name:?} is no usable header"));
        let expected = format!(
            "expected at most {HEADERS_MAX} headers of printable characters, none of Host, Connection, Content-Length, \
             Transfer-Encoding"
        );
        value.mistake(&message, &expected);
    }
    let warnings = Duration::ZERO..=Duration::from_secs(365 * 86_400);
    health.expiry_warning = table.duration("expiry_warning", warnings).unwrap_or(health.expiry_warning);
    health
}

fn field(reader: &Reader<'_>) -> Option<Field> {
    let pointer = reader.required("pointer").and_then(|value| {
        value.parsed(|text| match text {
            _ if text.starts_with('/') && text.len() <= SUBJECT_BYTES_MAX => Ok(text.to_owned()),
            _ => Err(format!("expected a JSON pointer such as \"/status\", found {text:?}")),
        })
    });
    let equals = reader.required("equals").and_then(|value| value.string().map(str::to_owned));
    Some(Field { pointer: pointer?, equals: equals? })
}

/// `204`, `"200-299"`, or a list of such.
fn statuses(value: &Value<'_>) -> Vec<RangeInclusive<u16>> {
    let one = |value: &Value<'_>| match value.if_string() {
        Some(_) => value.parsed(status_range),
        None => value.integer(100..=599).and_then(|status| u16::try_from(status).ok()).map(|status| status..=status),
    };
    if value.is_array() {
        return value.items().iter().filter_map(one).collect();
    }
    one(value).into_iter().collect()
}

fn status_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let status = |text: &str| text.parse::<u16>().ok().filter(|status| (100..=599).contains(status));
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (status(first), status(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => Err(format!("expected a status such as 204 or a range such as \"200-299\", found {text:?}")),
    }
}

fn endpoint(text: &str) -> Result<String, String> {
    let expected = || {
        format!(
            "expected an address such as \"http://127.0.0.1:9100/health\" or \"unix:/run/spl.sock:/health\", found {text:?}"
        )
    };
    let printable = text.chars().all(|c| c.is_ascii_graphic()) && text.len() <= SUBJECT_BYTES_MAX;
    if let Some((socket, path)) = text.strip_prefix("unix:").and_then(|rest| rest.split_once(":/")) {
        let well = printable && socket.starts_with('/') && !socket.ends_with('/') && !path.contains('#');
        return well.then(|| text.to_owned()).ok_or_else(expected);
    }
    let uri: Result<tonic::codegen::http::Uri, _> = text.parse();
    if uri.as_ref().is_ok_and(|uri| uri.authority().is_some_and(|authority| authority.as_str().contains('@'))) {
        let way =
            "expected an address without user and password: give them as headers = { Authorization = \"Basic …\" }";
        return Err(way.to_owned());
    }
    match uri {
        Ok(uri) if matches!(uri.scheme_str(), Some("http" | "https")) && names_a_host(&uri) && printable => {
            Ok(text.to_owned())
        }
        _ => Err(expected()),
    }
}

fn host_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    if !text.is_empty() && text.len() <= 255 && text.chars().all(plain) {
        Ok(text.to_owned())
    } else {
        Err(format!("expected the name of a host, found {text:?}"))
    }
}

fn is_header(name: &str, value: &str) -> bool {
    let own = ["host", "connection", "content-length", "transfer-encoding"];
    let token = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let text = value.len() <= HEADER_BYTES_MAX && value.chars().all(|c| c == ' ' || c.is_ascii_graphic());
    token && text && !own.contains(&name.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn health(line: &str) -> Result<Vec<Health>, String> {
        let text = format!("[service.hub]\nhealth = {line}\n");
        Config::parse("agent.toml", &text).map(|config| config.services[0].health.clone()).map_err(|e| e.render(false))
    }

    #[test]
    fn short_and_long_forms() {
        let short = health("[\"http://127.0.0.1:1/readyz\", \"unix:/run/a.sock:/health\"]").unwrap();
        assert_eq!((short.len(), short[0].timeout, &short[0].status), (2, TIMEOUT_DEFAULT, &vec![200..=299]));
        let long = health(
            r#"{ url = "https://localhost/h", status = [204, "300-399"], field = { pointer = "/status", equals = "ok" },
                 headers = { Authorization = "Bearer x" }, ca = "/etc/ca.pem", failures = 3, expiry_warning = "30d" }"#,
        );
        let [long] = long.unwrap().try_into().unwrap();
        assert_eq!(long.status, [204..=204, 300..=399]);
        assert_eq!((long.failures, long.headers.len()), (3, 1));
        assert_eq!(health("{ url = \"http://h/\", status = 503 }").unwrap()[0].status, [503..=503]);
    }

    #[test]
    fn mistakes_are_told() {
        for (line, expected) in [
            ("\"ftp://x/\"", "expected an address"),
            ("\"unix:relative.sock:/h\"", "expected an address"),
            ("\"http://bob:hunter2@h/\"", "give them as headers = { Authorization"),
            ("{ url = \"http://h/\", status = \"299-200\" }", "expected a status"),
            ("{ url = \"http://h/\", status = 42 }", "from 100 to 599"),
            ("{ url = \"http://h/\", feild = 1 }", "did you mean \"field\"?"),
            ("{ url = \"http://h/\", field = { pointer = \"status\", equals = \"ok\" } }", "JSON pointer"),
            ("{ url = \"http://h/\", headers = { Host = \"x\" } }", "no usable header"),
            ("{ url = \"http://h/\", verify = false }", "unknown key"),
        ] {
            let told = health(line).unwrap_err();
            assert!(told.contains(expected), "{line}\n{told}");
        }
    }
}

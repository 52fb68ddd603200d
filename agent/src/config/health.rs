//! `health` of a service: endpoints that say themselves whether all is well.

use super::walk::{DEADLINES, INTERVALS, names_a_host, table_or_string};
use muster_common::config::Value;
use std::time::Duration;

/// A health endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// `http://` or `https://`.
    pub url: String,
    /// How often.
    pub interval: Option<Duration>,
    /// How long at most.
    pub timeout: Option<Duration>,
}

/// `"URL"`, or a table with every option.
pub(super) fn walk(value: &Value<'_>) -> Option<Health> {
    if value.if_string().is_some() {
        return Some(Health { url: value.parsed(http_url)?, interval: None, timeout: None });
    }
    let table = table_or_string(value)?;
    let url = table.required("url").and_then(|inner| inner.parsed(http_url));
    let interval = table.duration("interval", INTERVALS);
    let timeout = table.duration("timeout", DEADLINES);
    Some(Health { url: url?, interval, timeout })
}

fn http_url(text: &str) -> Result<String, String> {
    let uri: Result<tonic::codegen::http::Uri, _> = text.parse();
    match uri {
        Ok(uri) if matches!(uri.scheme_str(), Some("http" | "https")) && names_a_host(&uri) => Ok(text.to_owned()),
        _ => Err(format!("expected an address such as \"http://127.0.0.1:9100/health\", found {text:?}")),
    }
}

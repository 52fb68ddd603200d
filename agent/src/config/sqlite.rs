//! `sqlite` of a service: its databases, and what must be true of their content.

use super::walk::{INTERVALS, absolute, table_or_string};
use muster_common::config::Value;
use std::path::PathBuf;
use std::time::Duration;

/// A database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sqlite {
    /// Its path.
    pub path: PathBuf,
    /// How often it is looked at.
    pub interval: Option<Duration>,
    /// How often it is checked quickly.
    pub quick_interval: Option<Duration>,
    /// How often it is checked deeply.
    pub deep_interval: Option<Duration>,
}

impl Sqlite {
    /// With the intervals of `[probes]`.
    pub const fn new(path: PathBuf) -> Self {
        Self { path, interval: None, quick_interval: None, deep_interval: None }
    }
}

/// `"PATH"`, or a table with every option.
pub(super) fn walk(value: &Value<'_>) -> Option<Sqlite> {
    if value.if_string().is_some() {
        return Some(Sqlite::new(value.parsed(absolute)?));
    }
    let table = table_or_string(value)?;
    let path = table.required("path").and_then(|inner| inner.parsed(absolute));
    let interval = table.duration("interval", INTERVALS);
    let quick_interval = table.duration("quick_interval", INTERVALS);
    let deep_interval = table.duration("deep_interval", INTERVALS);
    Some(Sqlite { path: path?, interval, quick_interval, deep_interval })
}

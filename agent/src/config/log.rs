//! `logs` of a service and `[[log_rule]]`: which lines are worth telling.

use super::walk::{INTERVALS, absolute, table_or_string, unit_name};
use muster_common::config::{Reader, Value};
use muster_common::reason::Reason;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Before the name of a unit whose journal is followed.
const JOURNAL_PREFIX: &str = "journal:";

/// A log that is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Where its lines come from.
    pub source: LogSource,
    /// How often it is read.
    pub interval: Option<Duration>,
}

/// Where lines come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogSource {
    /// A file.
    File(PathBuf),
    /// The journal of a unit.
    Journal(String),
}

impl fmt::Display for LogSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Journal(unit) => write!(f, "{JOURNAL_PREFIX}{unit}"),
        }
    }
}

/// `[[log_rule]]`: what a line means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRule {
    /// Its name, unique.
    pub name: String,
    /// What a matching line means.
    pub reason: Reason,
    /// A regular expression that is matched in linear time.
    pub pattern: String,
}

/// `"/path"`, `"journal:UNIT"`, or a table with every option.
pub(super) fn walk(value: &Value<'_>) -> Option<Log> {
    if value.if_string().is_some() {
        return Some(Log { source: value.parsed(source)?, interval: None });
    }
    let table = table_or_string(value)?;
    let source = table.required("source").and_then(|inner| inner.parsed(source));
    let interval = table.duration("interval", INTERVALS);
    Some(Log { source: source?, interval })
}

/// One rule.
pub(super) fn walk_rule(reader: &Reader<'_>) -> Option<LogRule> {
    let name = reader.required("name").and_then(|value| value.string().map(str::to_owned));
    let reason = reader
        .required("reason")
        .and_then(|value| value.parsed(|text| text.parse::<Reason>().map_err(|e| e.to_string())));
    let pattern = reader.required("pattern").and_then(|value| value.string().map(str::to_owned));
    Some(LogRule { name: name?, reason: reason?, pattern: pattern? })
}

fn source(text: &str) -> Result<LogSource, String> {
    match text.strip_prefix(JOURNAL_PREFIX) {
        Some(unit) => Ok(LogSource::Journal(unit_name(unit)?)),
        None => Ok(LogSource::File(absolute(text)?)),
    }
}

//! `backups` of a service: where copies are, and what must be true of them.

use super::walk::absolute;
use muster_common::config::Reader;
use std::path::PathBuf;
use std::time::Duration;

/// A set of backups of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Pattern of the copies.
    pub path: String,
    /// What they are copies of.
    pub of: Option<PathBuf>,
    /// How old the newest may be.
    pub max_age: Option<Duration>,
}

/// `{ path = "…", of = "…", max_age = "…" }`.
pub(super) fn walk(reader: &Reader<'_>) -> Option<Backup> {
    let path = reader.required("path").and_then(|value| value.parsed(absolute));
    let of = reader.parsed("of", absolute);
    let ages = Duration::from_secs(60)..=Duration::from_secs(400 * 86_400);
    let max_age = reader.duration("max_age", ages);
    Some(Backup { path: path?.display().to_string(), of, max_age })
}

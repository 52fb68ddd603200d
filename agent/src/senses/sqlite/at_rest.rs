//! A look into a database that nobody should be using: a backup copy.
//!
//! The same law as for live databases: on a restricted thread, one owner per inode, by the recipe of the state. A copy
//! that is not at rest (a lock, a -wal, a hot journal) is not looked into, and that is said.

use super::check::{self, Access, Rotation, Task};
use super::files::{self, Claim};
use super::{Ground, NO_LANDLOCK};
use crate::sandbox::{SandboxError, SandboxState};
use muster_agent_core::backup::{Content, TABLES_MAX};
use muster_agent_core::sqlite::state::{Snapshot, State};
use muster_common::units::human_bytes;
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Tables whose rows are counted; a database with more says no number of rows.
const TABLES_COUNTED_MAX: usize = 256;
/// What a copy of a database is called.
const KIND: &str = "SQLite database";

/// A thread that may look into copies.
pub(in crate::senses) struct Restricted(Ground);

/// What was found.
pub(in crate::senses) enum AtRest {
    /// It is a SQLite database, whole or not.
    Database(Content),
    /// It does not begin like one.
    Other,
}

impl Restricted {
    /// With what the thread was restricted to.
    pub(in crate::senses) fn new(sandbox: Result<SandboxState, SandboxError>) -> Self {
        Self(Ground::new(sandbox, None))
    }

    /// Looks into the copy at `path`: its header, and if `deep` its `quick_check` and its rows, within `bound`.
    pub(in crate::senses) fn look(&self, path: &Path, deep: bool, bound: Duration) -> Result<AtRest, String> {
        let start = Instant::now();
        let path = path.canonicalize().map_err(|error| error.to_string())?;
        let claim = Claim::take(&path).map_err(|error| error.to_string())?;
        let look = files::look(&path, &claim).map_err(|error| error.to_string())?;
        let snapshot = &look.snapshot;
        let mut content =
            Content { kind: KIND.to_owned(), deep, checked: "its header".to_owned(), ..Content::default() };
        match snapshot.state() {
            State::NotADatabase | State::Empty => return Ok(AtRest::Other),
            State::AtRest => {}
            other => {
                let why =
                    format!("its content, because it is no copy at rest ({}): is it a live database?", other.as_str());
                // Perhaps somebody only reads it just now: the next run asks again.
                (content.not_checked, content.deep, content.unread) = (Some(why), false, true);
                return Ok(AtRest::Database(content));
            }
        }
        content.page_count = snapshot.header.and_then(|header| header.page_count).map(u64::from);
        if let Some(bytes) = snapshot.missing_bytes() {
            content.damage = Some(format!("it is cut off: {} are missing by its own header", human_bytes(bytes)));
            return Ok(AtRest::Database(content));
        }
        if !deep {
            content.not_checked = Some("its pages: only the newest copy is checked".to_owned());
        } else if !self.0.allows(&path) {
            content.not_checked =
                Some(format!("its pages, because the kernel would not keep SQLite from writing: {NO_LANDLOCK}"));
            return Ok(AtRest::Database(content));
        }
        if deep {
            let task = Task { size_bytes: snapshot.database.size_bytes, integrity: false, bound };
            match check::check(&path, Access::Immutable, task, &mut Rotation::default()) {
                Ok(pass) if !pass.damage.is_empty() => {
                    let names = pass.damage.names();
                    let message = pass.damage.messages.first().cloned().unwrap_or_default();
                    content.damage = Some(if names.is_empty() { message } else { format!("{names}: {message}") });
                }
                Ok(pass) if pass.whole => "quick_check of every page".clone_into(&mut content.checked),
                Ok(pass) => content.not_checked = Some(format!("all of its pages: {}", pass.not_covered)),
                Err(trouble) => content.not_checked = Some(format!("its pages: {trouble}")),
            }
        }
        let left = bound.saturating_sub(start.elapsed());
        if content.damage.is_none() && self.0.allows(&path) {
            count(&path, left, &mut content);
        }
        unchanged(&path, &claim, snapshot)?;
        Ok(AtRest::Database(content))
    }
}

/// An answer counts only for the file that was there before.
fn unchanged(path: &Path, claim: &Claim, before: &Snapshot) -> Result<(), String> {
    let same = files::undisturbed(path, claim, before);
    same.then_some(()).ok_or_else(|| "it was changed while it was looked into".to_owned())
}

/// Tables and rows, where there is time for it.
fn count(path: &Path, bound: Duration, content: &mut Content) {
    if bound.is_zero() {
        return;
    }
    let Ok(connection) = check::open(path, Access::Immutable) else { return };
    let counted = check::bounded(&connection, bound, |connection| {
        check::harden(connection)?;
        rows(connection)
    });
    let Ok((table_count, tables)) = counted else { return };
    content.table_count = Some(table_count);
    content.schema = Some(fingerprint(tables.keys()));
    if tables.len() as u64 == table_count {
        content.row_count = Some(tables.values().fold(0, |sum: u64, rows| sum.saturating_add(*rows)));
        let mut largest: Vec<(String, u64)> = tables.into_iter().collect();
        largest.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        content.tables = largest.into_iter().take(TABLES_MAX).collect();
    }
}

/// The number of tables, and the rows of those that can be counted. Virtual tables are left alone: their rows are what
/// their module says.
fn rows(connection: &Connection) -> rusqlite::Result<(u64, BTreeMap<String, u64>)> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
               AND rootpage > 0 ORDER BY name LIMIT ?1";
    let mut statement = connection.prepare(sql)?;
    let limit = i64::try_from(TABLES_COUNTED_MAX + 1).unwrap_or(i64::MAX);
    let names = statement.query_map([limit], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    let mut tables = BTreeMap::new();
    for name in names.iter().take(TABLES_COUNTED_MAX) {
        let sql = format!("SELECT count(*) FROM \"{}\"", name.replace('"', "\"\""));
        let rows = connection.query_row(&sql, [], |row| row.get::<_, i64>(0))?;
        tables.insert(name.clone(), u64::try_from(rows).unwrap_or(0));
    }
    Ok((names.len() as u64, tables))
}

/// FNV-1a over the names: equal for equal sets of tables.
fn fingerprint<'a>(names: impl Iterator<Item = &'a String>) -> u64 {
    let bytes = names.flat_map(|name| name.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

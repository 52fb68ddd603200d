//! What SQL tells of a database that is whole: its versions, its size in pages, rows of named tables, rows that refer to
//! nothing.
//!
//! Every statement here is this file's own; what people configure is a name of a table and is quoted by SQLite itself.

use super::check::Trouble;
use super::recipe::{Reader, trouble};
use muster_agent_core::sqlite::rows::Version;
use rusqlite::{Connection, OptionalExtension};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Rows of one table that refer to nothing are counted up to here.
const DANGLING_MAX: u64 = 10_000;
/// Pairs of tables that are told apart.
const PAIRS_MAX: usize = 64;
/// Tables that are looked at for foreign keys.
const TABLES_MAX: usize = 10_000;
/// Opcodes of SQLite's machine between two looks at the clock.
const OPCODES_PER_LOOK: i32 = 2_000;

/// A table whose rows are counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountedTable {
    /// Its name.
    pub table: String,
    /// So many percent of its rows must outlive an upgrade or a replacement of the file.
    pub min_percent: u32,
}

/// What the database says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Facts {
    pub(super) user_version: i64,
    pub(super) application_id: i64,
    pub(super) schema_version: i64,
    pub(super) page_bytes: i64,
    pub(super) pages: i64,
    pub(super) free_pages: i64,
}

/// Where the rounds over tables stand.
#[derive(Debug, Clone, Default)]
pub(super) struct Round {
    /// Tables whose foreign keys were checked in this round.
    keys_done: BTreeSet<String>,
    /// Rows that refer to nothing, found in this round: (table, table referred to).
    dangling: BTreeMap<(String, String), u64>,
    /// Tables that were counted in this round.
    counted: BTreeSet<String>,
    /// What did not fit in a run of its own, or cannot be looked at, with the reason.
    left_out: BTreeMap<String, String>,
}

/// What one pass found.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    pub(super) facts: Facts,
    /// By table: its rows and the hash of its CREATE statement; both zero where there is no such table.
    pub(super) counts: BTreeMap<String, (u64, u64)>,
    /// Of the whole round; `None` while some tables wait for the next runs.
    pub(super) dangling: Option<BTreeMap<(String, String), u64>>,
    /// Something waits for the next run.
    pub(super) more: bool,
    /// What was left out of this round and why.
    pub(super) left_out: BTreeMap<String, String>,
}

impl Found {
    /// What a count belongs to.
    pub(super) const fn version(&self, inode: u64, change_counter: u32, table_sql_hash: u64) -> Version {
        Version { inode, user_version: self.facts.user_version, change_counter, table_sql_hash }
    }
}

/// One pass over a database.
pub(super) struct ContentReader<'a> {
    pub(super) tables: &'a [CountedTable],
    pub(super) foreign_keys: bool,
    pub(super) round: &'a mut Round,
    pub(super) bound: Duration,
}

impl Reader for ContentReader<'_> {
    type Answer = Found;

    fn prepare(&self, connection: &mut Connection) -> rusqlite::Result<()> {
        stop_at(connection, Instant::now() + self.bound)
    }

    fn read(&mut self, connection: &Connection) -> Result<Found, Trouble> {
        let mut found = Found { facts: facts(connection).map_err(|error| trouble(&error))?, ..Found::default() };
        let mut first = true;
        for counted in self.tables {
            let name = &counted.table;
            if self.round.counted.contains(name) || self.round.left_out.contains_key(name) {
                continue;
            }
            match rows(connection, name) {
                Ok(count) => {
                    found.counts.insert(name.clone(), count);
                    self.round.counted.insert(name.clone());
                }
                Err(error) if !self.goes_on(name, &error, first)? => {
                    found.more = true;
                    return Ok(found);
                }
                Err(_left_out) => {}
            }
            first = false;
        }
        if self.foreign_keys && !self.keys(connection, first)? {
            found.more = true;
            return Ok(found);
        }
        let round = std::mem::take(self.round);
        found.dangling = Some(round.dangling);
        found.left_out = round.left_out;
        Ok(found)
    }
}

impl ContentReader<'_> {
    /// False when the bound is reached: the rest waits. What had the whole bound for itself is left out.
    fn goes_on(&mut self, table: &str, error: &rusqlite::Error, first: bool) -> Result<bool, Trouble> {
        match trouble(error) {
            Trouble::OutOfTime if first => {
                self.round.left_out.insert(table.to_owned(), "it does not fit in one run's bound".to_owned());
                Ok(false)
            }
            Trouble::OutOfTime => Ok(false),
            Trouble::Cannot(why) => {
                self.round.left_out.insert(table.to_owned(), why);
                Ok(true)
            }
            other => Err(other),
        }
    }

    /// False when some tables wait for the next run.
    fn keys(&mut self, connection: &Connection, mut first: bool) -> Result<bool, Trouble> {
        for table in tables_with_keys(connection).map_err(|error| trouble(&error))? {
            let key = format!("foreign keys of {table}");
            if self.round.keys_done.contains(&table) || self.round.left_out.contains_key(&key) {
                continue;
            }
            match dangling(connection, &table) {
                Ok(parents) => {
                    for (parent, count) in parents {
                        if self.round.dangling.len() < PAIRS_MAX {
                            self.round.dangling.insert((table.clone(), parent), count);
                        }
                    }
                    self.round.keys_done.insert(table);
                }
                Err(error) if !self.goes_on(&key, &error, first)? => return Ok(false),
                Err(_left_out) => {}
            }
            first = false;
        }
        Ok(true)
    }
}

/// The second net beside the interrupt of [`super::check::bounded`]: looks at the clock from within SQLite.
pub(super) fn stop_at(connection: &mut Connection, deadline: Instant) -> rusqlite::Result<()> {
    connection.progress_handler(OPCODES_PER_LOOK, Some(move || Instant::now() >= deadline))
}

fn facts(connection: &Connection) -> rusqlite::Result<Facts> {
    let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    Ok(Facts {
        user_version: number("user_version")?,
        application_id: number("application_id")?,
        schema_version: number("schema_version")?,
        page_bytes: number("page_size")?,
        pages: number("page_count")?,
        free_pages: number("freelist_count")?,
    })
}

/// Rows of a table and the hash of its CREATE statement.
fn rows(connection: &Connection, table: &str) -> rusqlite::Result<(u64, u64)> {
    let sql = "SELECT coalesce(sql, '') FROM sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE";
    let made = connection.query_row(sql, [table], |row| row.get::<_, String>(0)).optional()?;
    let Some(made) = made else { return Ok((0, 0)) };
    let count = format!("SELECT count(*) FROM {}", quoted(table));
    let rows = connection.query_row(&count, [], |row| row.get::<_, i64>(0))?;
    Ok((u64::try_from(rows).unwrap_or(0), hash(made.as_bytes())))
}

/// As an identifier of SQL.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// FNV-1a: the same for ever, as it is saved. Never zero.
fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step).max(1)
}

/// Tables whose definition names another one.
fn tables_with_keys(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND sql LIKE '%references%' ORDER BY name LIMIT ?1";
    let mut statement = connection.prepare(sql)?;
    let limit = i64::try_from(TABLES_MAX).unwrap_or(i64::MAX);
    statement.query_map([limit], |row| row.get(0))?.collect()
}

/// By table referred to: how many rows of `table` refer to a row that does not exist.
fn dangling(connection: &Connection, table: &str) -> rusqlite::Result<BTreeMap<String, u64>> {
    let mut parents: BTreeMap<String, u64> = BTreeMap::new();
    let mut statement = connection.prepare(&format!("PRAGMA foreign_key_check({})", quoted(table)))?;
    let mut rows = statement.query([])?;
    let mut counted = 0;
    while let Some(row) = rows.next()? {
        let parent: String = row.get(2)?;
        *parents.entry(parent).or_default() += 1;
        counted += 1;
        if counted >= DANGLING_MAX {
            break;
        }
    }
    Ok(parents)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(
                "PRAGMA foreign_keys=0; PRAGMA user_version=7;
                 CREATE TABLE parent(id INTEGER PRIMARY KEY); INSERT INTO parent VALUES (1);
                 CREATE TABLE \"a \"\"child\"(id, parent REFERENCES parent(id));
                 INSERT INTO \"a \"\"child\" VALUES (1, 1), (2, 5), (3, 6), (4, NULL)",
            )
            .unwrap();
        connection
    }

    #[test]
    fn counts_and_keys_of_tables_with_odd_names() {
        let connection = database();
        let tables = ["parent", "PARENT", "a \"child", "none"];
        let tables = tables.map(|table| CountedTable { table: table.to_owned(), min_percent: 90 });
        let mut round = Round::default();
        let bound = Duration::from_secs(60);
        let found = ContentReader { tables: &tables, foreign_keys: true, round: &mut round, bound }.read(&connection);
        let found = found.unwrap();
        assert_eq!((found.facts.user_version, found.more), (7, false));
        let rows: Vec<_> = tables.iter().map(|counted| found.counts[&counted.table]).collect();
        assert_eq!((rows[0].0, rows[1], rows[2].0, rows[3]), (1, rows[0], 4, (0, 0)));
        let pair = ("a \"child".to_owned(), "parent".to_owned());
        assert_eq!(found.dangling.unwrap(), BTreeMap::from([(pair, 2)]));
    }

    #[test]
    fn what_does_not_fit_waits_and_what_never_fits_is_left_out() {
        let mut connection = database();
        connection.execute_batch("INSERT INTO parent WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n LIMIT 90000) SELECT i FROM n").unwrap();
        // A view of many rows stands for a table that takes long; the clock has run out before it begins.
        stop_at(&mut connection, Instant::now()).unwrap();
        let tables = [CountedTable { table: "a \"child".to_owned(), min_percent: 90 }];
        let mut round = Round::default();
        let mut reader =
            ContentReader { tables: &tables, foreign_keys: true, round: &mut round, bound: Duration::ZERO };
        let mut runs = 0;
        // Runs that are interrupted between two of its steps only go on with the next one.
        let ended = loop {
            runs += 1;
            let found = reader.read(&connection).unwrap();
            if !found.more || runs > 10 {
                break found;
            }
        };
        assert!(!ended.more && ended.dangling.is_some(), "{ended:?}");
    }
}

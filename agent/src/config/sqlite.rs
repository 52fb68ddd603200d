//! `sqlite` of a service: its databases, and what must be true of their content.

use super::walk::{INTERVALS, absolute, table_or_string};
use crate::senses::sqlite::{CountedTable, mistake_in, subject_name};
use muster_agent_core::sqlite::query::{Bounds, Number};
use muster_common::config::{Reader, Value};
use muster_common::limits::SUBJECT_BYTES_MAX;
use muster_common::severity::Severity;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Tables whose rows are counted, per database: each costs a walk through it.
const ROWS_MAX: usize = 16;
/// Assertions per database.
const QUERIES_MAX: usize = 32;
/// Bytes of the name of a table or of an assertion.
const NAME_BYTES_MAX: usize = 64;
/// Bytes of an assertion's own words.
const SUMMARY_BYTES_MAX: usize = 200;
/// An assertion holds a database open: no longer than a reader may pin its log.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(5);
const TIMEOUT_DEFAULT: Duration = Duration::from_millis(250);
/// So many percent of the rows must outlive an upgrade.
const MIN_PERCENT_DEFAULT: u32 = 90;
/// Least bound of a write-ahead log: SQLite's own checkpoints begin at 4 MiB.
const WAL_BYTES_LEAST: u64 = 1 << 20;
/// Bounds beyond which a floating number holds no whole ones any more.
const NUMBERS: RangeInclusive<f64> = -9.0e15..=9.0e15;

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
    /// How much its write-ahead log may hold.
    pub wal_max_bytes: Option<u64>,
    /// Tables whose rows are counted.
    pub rows: Vec<CountedTable>,
    /// Rows that refer to nothing are looked for.
    pub foreign_keys: bool,
    /// Assertions about its content.
    pub queries: Vec<Query>,
}

/// A read-only SQL assertion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Its name.
    pub name: String,
    /// One SELECT; the first column of its first row is a number.
    pub sql: String,
    /// What that number may be.
    pub bounds: Bounds,
    /// How often it is asked.
    pub interval: Option<Duration>,
    /// How long it may take.
    pub timeout: Duration,
    /// How bad it is.
    pub severity: Option<Severity>,
    /// What it means.
    pub summary: Option<String>,
}

impl Sqlite {
    /// With the intervals of `[probes]`.
    pub const fn new(path: PathBuf) -> Self {
        Self {
            path,
            interval: None,
            quick_interval: None,
            deep_interval: None,
            wal_max_bytes: None,
            rows: Vec::new(),
            foreign_keys: false,
            queries: Vec::new(),
        }
    }
}

/// `"PATH"`, or a table with every option.
pub(super) fn walk(value: &Value<'_>) -> Option<Sqlite> {
    if value.if_string().is_some() {
        return Some(Sqlite::new(value.parsed(absolute)?));
    }
    let table = table_or_string(value)?;
    let path = table.required("path").and_then(|inner| inner.parsed(absolute));
    let sqlite = Sqlite {
        interval: table.duration("interval", INTERVALS),
        quick_interval: table.duration("quick_interval", INTERVALS),
        deep_interval: table.duration("deep_interval", INTERVALS),
        wal_max_bytes: table.parsed("wal_max", wal_max),
        rows: rows(&table),
        foreign_keys: table.boolean("foreign_keys").unwrap_or(false),
        queries: queries(&table, path.as_deref().unwrap_or(Path::new("/"))),
        path: PathBuf::new(),
    };
    Some(Sqlite { path: path?, ..sqlite })
}

fn wal_max(text: &str) -> Result<u64, String> {
    let bytes = muster_common::units::parse_bytes(text)?;
    if bytes >= WAL_BYTES_LEAST { Ok(bytes) } else { Err("expected a size of at least \"1MiB\"".to_owned()) }
}

/// `"TABLE"` or `{ table = "TABLE", min_percent = 90 }`, each table once.
fn rows(reader: &Reader<'_>) -> Vec<CountedTable> {
    let mut unique = BTreeSet::new();
    let mut counted = Vec::new();
    for value in reader.items("rows") {
        let Some(one) = counted_table(&value) else { continue };
        if !unique.insert(one.table.to_ascii_lowercase()) {
            value.mistake(&format!("table {:?} is counted twice", one.table), "expected each table once");
        } else if counted.len() == ROWS_MAX {
            value.mistake("too many tables", &format!("expected at most {ROWS_MAX} tables of one database"));
        }
        counted.push(one);
    }
    counted
}

fn counted_table(value: &Value<'_>) -> Option<CountedTable> {
    if value.if_string().is_some() {
        return Some(CountedTable { table: value.parsed(name_of_table)?, min_percent: MIN_PERCENT_DEFAULT });
    }
    let reader = table_or_string(value)?;
    let table = reader.required("table").and_then(|inner| inner.parsed(name_of_table));
    let min_percent = reader.integer("min_percent", 1..=100).and_then(|percent| u32::try_from(percent).ok());
    Some(CountedTable { table: table?, min_percent: min_percent.unwrap_or(MIN_PERCENT_DEFAULT) })
}

fn name_of_table(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX || text.contains('\0') {
        return Err(format!("expected the name of a table, at most {NAME_BYTES_MAX} bytes"));
    }
    Ok(text.to_owned())
}

fn queries(reader: &Reader<'_>, path: &Path) -> Vec<Query> {
    let mut names = BTreeSet::new();
    let mut queries = Vec::new();
    for value in reader.items("queries") {
        let Some(query) = value.table().and_then(|table| query(&table)) else { continue };
        if !names.insert(query.name.clone()) {
            value.mistake(&format!("two queries are named {:?}", query.name), "expected another name for each");
        } else if queries.len() == QUERIES_MAX {
            value.mistake("too many queries", &format!("expected at most {QUERIES_MAX} queries of one database"));
        } else if subject_name(path, &query.name).len() > SUBJECT_BYTES_MAX {
            value.mistake("the name of this query is too long for this path", "expected a shorter name");
        }
        queries.push(query);
    }
    queries
}

fn query(reader: &Reader<'_>) -> Option<Query> {
    let name = reader.required("name").and_then(|value| value.parsed(name_of_query));
    let sql = reader.required("sql").and_then(|value| {
        value.parsed(|text| match mistake_in(text) {
            None => Ok(text.to_owned()),
            Some(mistake) => Err(mistake),
        })
    });
    let bound = |key| reader.number(key, NUMBERS).and_then(Number::real);
    let bounds = Bounds { min: bound("min"), max: bound("max") };
    if reader.value("min").is_none() && reader.value("max").is_none() {
        reader.mistake("this query has no bound", "expected min or max, or both");
    }
    if let (Some(min), Some(value)) = (bounds.min, reader.value("max"))
        && (Bounds { min: None, max: bounds.max }).broken_by(min).is_some()
    {
        value.mistake("max is below min", "expected at least min");
    }
    let query = Query {
        bounds,
        interval: reader.duration("interval", INTERVALS),
        timeout: reader.duration("timeout", TIMEOUTS).unwrap_or(TIMEOUT_DEFAULT),
        severity: reader.parsed("severity", str::parse),
        summary: reader.parsed("summary", summary),
        name: String::new(),
        sql: String::new(),
    };
    Some(Query { name: name?, sql: sql?, ..query })
}

fn name_of_query(text: &str) -> Result<String, String> {
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.');
    if plain && !text.is_empty() && text.len() <= NAME_BYTES_MAX {
        Ok(text.to_owned())
    } else {
        Err(format!("expected a name such as \"stuck-jobs\", of at most {NAME_BYTES_MAX} letters, digits, - _ ."))
    }
}

fn summary(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > SUMMARY_BYTES_MAX || text.contains(char::is_control) {
        return Err(format!("expected one line of at most {SUMMARY_BYTES_MAX} bytes"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn first(options: &str) -> Sqlite {
        let text = format!("[service.spl]\nsqlite = [{{ path = \"/a.db\", {options} }}]\n");
        Config::parse("agent.toml", &text).unwrap().services.remove(0).sqlite.remove(0)
    }

    #[test]
    fn every_option_arrives() {
        let sqlite = first(
            r#"wal_max = "2GiB", foreign_keys = true, rows = ["jobs", { table = "Odd \"one", min_percent = 50 }],
               queries = [{ name = "stuck-jobs", sql = "select count(*) from jobs where updated_at < unixepoch() - 10800",
                            max = 0, min = -1.5, interval = "1m", timeout = "100ms", severity = "sev2", summary = "jobs are stuck" },
                          { name = "b", sql = "select 1", min = 1 }]"#,
        );
        assert_eq!((sqlite.wal_max_bytes, sqlite.foreign_keys), (Some(2 << 30), true));
        let rows: Vec<_> = sqlite.rows.iter().map(|row| (row.table.as_str(), row.min_percent)).collect();
        assert_eq!(rows, [("jobs", 90), ("Odd \"one", 50)]);
        let query = &sqlite.queries[0];
        assert_eq!(query.bounds, Bounds { min: Some(Number::Real(-1.5)), max: Some(Number::Integer(0)) });
        assert_eq!((query.timeout, query.interval), (Duration::from_millis(100), Some(Duration::from_secs(60))));
        assert_eq!((query.severity, query.summary.as_deref()), (Some(Severity::Sev2), Some("jobs are stuck")));
        assert_eq!((sqlite.queries[1].timeout, sqlite.queries[1].severity), (TIMEOUT_DEFAULT, None));
    }

    fn check(options: &str, told: &str) {
        let text = format!("[service.spl]\nsqlite = [{{ path = \"/a.db\", {options} }}]\n");
        let error = Config::parse("agent.toml", &text).unwrap_err();
        assert!(error.to_string().contains(told), "{options}: {error}");
    }

    #[test]
    fn mistakes_are_told() {
        check("wal_maxx = \"1GiB\"", "did you mean \"wal_max\"?");
        check("wal_max = \"1KiB\"", "at least \"1MiB\"");
        check("rows = [\"jobs\", \"JOBS\"]", "counted twice");
        check("rows = [\"\"]", "the name of a table");
        check("rows = [{ tabel = \"jobs\" }]", "did you mean \"table\"?");
        check("rows = [{ table = \"jobs\", min_percent = 101 }]", "from 1 to 100");
        check("foreign_keys = \"yes\"", "expected true or false");
        check("queries = [{ name = \"a\", sql = \"select 1\" }]", "expected min or max");
        check("queries = [{ name = \"a\", sql = \"select 1\", min = 2, max = 1 }]", "max is below min");
        check("queries = [{ name = \"a\", sql = \"select count(* from t\", max = 1 }]", "syntax error");
        check("queries = [{ name = \"a\", sql = \"drop table t\", max = 1 }]", "expected a SELECT, found \"drop\"");
        check("queries = [{ name = \"a b\", sql = \"select 1\", max = 1 }]", "\"stuck-jobs\"");
        check("queries = [{ name = \"a\", sqll = \"select 1\", max = 1 }]", "did you mean \"sql\"?");
        check("queries = [{ name = \"a\", sql = \"select 1\", max = 1, timeout = \"1m\" }]", "expected a duration");
        check("queries = [{ name = \"a\", sql = \"select 1\", max = 1, severity = \"high\" }]", "sev0 to sev4");
        let twice = "{ name = \"a\", sql = \"select 1\", max = 1 }";
        check(&format!("queries = [{twice}, {twice}]"), "two queries are named \"a\"");
    }
}

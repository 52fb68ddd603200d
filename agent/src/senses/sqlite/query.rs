//! Is a number that a SQL statement computes within its bounds?
//!
//! Invariant: the statement comes from this host's config and from nowhere else, and it changes nothing: SQLite itself
//! says that it only reads, an authorizer lets nothing but reading through, and beneath both lies the kernel, as for
//! every database that is opened here. It has a deadline, and no temporary files.

use super::check::Trouble;
use super::content::stop_at;
use super::copy::{CopyError, Limits, Scratch};
use super::files::{self, Claim, Obstacle};
use super::recipe::{self, Reader, trouble};
use super::{Ground, NO_LANDLOCK, NO_SCRATCH, RUN_COPY_BYTES_MAX, on_restricted_thread, report};
use crate::probe::{Context, Lane, Probe, Remembered};
use muster_agent_core::judgement::{Judgement, Problem};
use muster_agent_core::log::{names_secret, redact};
use muster_agent_core::shell::quoted;
use muster_agent_core::sqlite::query::{Bounds, Broken, Number, Since};
use muster_agent_core::sqlite::state::State;
use muster_common::evidence::{Evidence, Value};
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::ServiceName;
use muster_common::limits::clip;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use rusqlite::Connection;
use rusqlite::hooks::{AuthAction, Authorization};
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How an answer that is none is told, in the agent's own words.
const NO_NUMBER: &str = "its first column";
/// Longest statement.
pub const SQL_BYTES_MAX: usize = 8 << 10;
/// Longest text or blob that it may make or meet: it runs beside an agent of a few megabytes.
const VALUE_BYTES_MAX: i32 = 1 << 20;
/// LIKE costs pattern times text, and cannot be interrupted within one comparison.
const LIKE_BYTES_MAX: i32 = 256;
/// Columns of the answer that are kept as evidence, beside the number itself.
const DETAILS_MAX: usize = 8;
/// Bytes of each.
const DETAIL_BYTES_MAX: usize = 200;
/// How long a question waits for another probe of the same database: in the daemon they share a thread, and only a
/// copy for the deep check can be in the way; in `doctor` every one runs once.
const CLAIM_WAIT: Duration = Duration::from_millis(250);
const ONE_SHOT_CLAIM_WAIT: Duration = Duration::from_secs(5);
/// After this a file that was just written has another time than one that is written again.
const SETTLE_WAIT: Duration = Duration::from_millis(60);
/// Functions that do more than compute.
const FUNCTIONS_REFUSED: [&str; 2] = ["load_extension", "fts3_tokenizer"];

/// What stands in place of a value whose column says that it is a secret.
const SECRET: &str = "***";

const NO_SQL_FILES: &str = "give the statement an index to read in order, or let it sort and group less";

/// One assertion about a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryOptions {
    /// Its name, unique for the database.
    pub name: String,
    /// One SELECT.
    pub sql: String,
    /// What the first column of its first row may be.
    pub bounds: Bounds,
    /// How long it may take.
    pub timeout: Duration,
    /// How bad it is, where the reason's default does not fit.
    pub severity: Option<Severity>,
    /// What it means, in the words of whoever wrote it.
    pub summary: Option<String>,
    /// The agent's own folder for copies.
    pub scratch_dir: Option<PathBuf>,
}

/// The probe of one assertion.
#[derive(Debug)]
pub struct QueryProbe {
    subject: SubjectKey,
    path: PathBuf,
    options: QueryOptions,
    since: Since,
}

/// The name of an assertion as a subject.
pub fn subject_name(path: &Path, name: &str) -> String {
    format!("{}: {name}", path.display())
}

impl QueryProbe {
    /// Asks `options` of the database at `path` for `service`.
    pub fn new(service: ServiceName, path: PathBuf, options: QueryOptions) -> Self {
        let subject = SubjectKey::new(service, ProbeKind::Query, &subject_name(&path, &options.name));
        Self { subject, path, options, since: Since::default() }
    }

    fn examine(&mut self, context: &Context, ground: &Ground) -> Judgement {
        match self.ask(context, ground) {
            Ok(answer) => self.judge(&answer, context),
            Err((why, way_out)) => {
                let name = &self.options.name;
                let what = if why.starts_with(NO_NUMBER) { "gave no number" } else { "could not be asked" };
                Judgement::unknown(format!("{name} {what}: {why}"), way_out.as_deref())
            }
        }
    }

    /// The answer, or why there is none and the way out.
    fn ask(&self, context: &Context, ground: &Ground) -> Result<Answer, (String, Option<String>)> {
        let obstructed = |obstacle: Obstacle| match obstacle {
            Obstacle::Missing => ("the database does not exist".to_owned(), None),
            other => report::blind(&other),
        };
        let path = self.path.canonicalize().map_err(|error| obstructed(files::obstacle(&self.path, error)))?;
        let wait = if context.one_shot { ONE_SHOT_CLAIM_WAIT } else { CLAIM_WAIT };
        let claim = Claim::take_within(&path, wait).map_err(obstructed)?;
        let mut look = recipe::look_between_commits(&path, &claim).map_err(obstructed)?;
        if look.snapshot.state() == State::AtRest && !look.remote && !look.proves() {
            std::thread::sleep(SETTLE_WAIT);
            look = recipe::look_between_commits(&path, &claim).map_err(obstructed)?;
        }
        match look.snapshot.state() {
            State::Empty => return Err(("the database is empty, it has no tables".to_owned(), None)),
            State::NotADatabase => return Err(("the file is not a database".to_owned(), None)),
            State::Exclusive | State::Changing => return Err(("another process holds a lock".to_owned(), None)),
            _ if !ground.allows(&path) => {
                let why = "SQLite could write here and the kernel would not hold it back, so it was not opened";
                return Err((why.to_owned(), Some(NO_LANDLOCK.to_owned())));
            }
            _ => {}
        }
        let limits = Limits { bytes_max: RUN_COPY_BYTES_MAX, time_max: self.options.timeout, integrity: false };
        let mut assertion = Assertion::new(&self.options);
        let answer = recipe::read(&path, &look, &claim, ground.scratch.as_deref(), limits, &mut assertion);
        answer.map_err(|error| {
            let way_out = match &error {
                CopyError::Scratch(_) => Some(NO_SCRATCH),
                CopyError::Trouble(Trouble::WouldWrite(_)) => Some(NO_SQL_FILES),
                _ => None,
            };
            (self.why(&error), way_out.map(str::to_owned))
        })
    }

    fn why(&self, error: &CopyError) -> String {
        match error {
            CopyError::Trouble(Trouble::OutOfTime) => {
                format!("it took longer than {}", muster_common::units::human_duration(self.options.timeout))
            }
            // The database could be opened, or it would have been said before: what is missing is a temporary file.
            CopyError::Trouble(Trouble::WouldWrite(message)) => format!("it needs a temporary file ({message})"),
            CopyError::Trouble(Trouble::Cannot(message)) if message.starts_with(NO_NUMBER) => message.clone(),
            // It repeats the statement, and that names values.
            CopyError::Trouble(Trouble::Cannot(message)) => format!("SQLite says: {}", redact(message)),
            other => other.to_string(),
        }
    }

    fn judge(&mut self, answer: &Answer, context: &Context) -> Judgement {
        let value = match answer.value {
            Number::Integer(value) => Value::Integer(value),
            Number::Real(value) => Value::Text(value.to_string()),
        };
        let broken = self.options.bounds.broken_by(answer.value);
        let since = self.since.note(broken.is_some(), &context.now);
        let mut evidence = Evidence::new().with("value", value);
        for (name, detail) in &answer.details {
            evidence = evidence.text(&format!("row_{name}"), detail);
        }
        let Some((broken, (since, broken_for))) = broken.zip(since) else { return Judgement::ok(evidence) };
        let (key, bound) = match broken {
            Broken::TooLow(min) => ("min", min),
            Broken::TooHigh(max) => ("max", max),
        };
        let QueryOptions { name, sql, summary, severity, .. } = &self.options;
        let shown = self.path.display();
        let seen = evidence.clone();
        let evidence = evidence
            .text("path", shown.to_string())
            .text("query", name)
            .text("sql", redact(sql))
            .text(key, bound.to_string())
            .with("broken_since", Value::Time(since))
            .duration("broken_for_ms", broken_for);
        let meaning = summary.clone().unwrap_or_else(|| format!("{name} of {shown}"));
        let problem = Problem::new(Reason::QueryThreshold, format!("{meaning}: {}, and {broken}", answer.value))
            .evidence(evidence)
            .next_steps([
                format!(
                    "look at the rows themselves, on a copy or as the service's own user: sqlite3 -readonly {}",
                    quoted(&shown.to_string())
                ),
                "the statement is in the evidence: ask for the rows it counts".to_owned(),
                "look in the service's log for why they do not move on".to_owned(),
            ]);
        let problem = Problem { severity: *severity, ..problem };
        Judgement { seen, ..Judgement::problem(problem) }
    }
}

impl Probe for QueryProbe {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn lane(&self) -> Lane {
        Lane::Database
    }

    /// Runs on a thread that is restricted before it opens anything.
    fn run(&mut self, context: &Context) -> Judgement {
        let private = if self.options.scratch_dir.is_none() && context.one_shot {
            Scratch::new(&std::env::temp_dir()).ok()
        } else {
            None
        };
        let scratch = self.options.scratch_dir.clone().or_else(|| private.as_ref().map(|own| own.path().to_owned()));
        let answer = on_restricted_thread(scratch, |ground| self.examine(context, ground));
        answer.unwrap_or_else(|why| Judgement::unknown(why, None))
    }

    fn save(&self) -> Option<Remembered> {
        Remembered::of(self.since)
    }

    fn restore(&mut self, saved: Remembered) {
        if let Ok(since) = saved.read() {
            self.since = since;
        }
    }
}

/// The first row.
#[derive(Debug)]
struct Answer {
    value: Number,
    details: Vec<(String, String)>,
}

/// The statement, let loose on a connection.
struct Assertion<'a> {
    sql: &'a str,
    bound: Duration,
    /// From now on nothing but reading is let through; before, the connection is made ready.
    armed: Arc<AtomicBool>,
}

impl<'a> Assertion<'a> {
    fn new(options: &'a QueryOptions) -> Self {
        Self { sql: &options.sql, bound: options.timeout, armed: Arc::default() }
    }
}

impl Reader for Assertion<'_> {
    type Answer = Answer;

    fn prepare(&self, connection: &mut Connection) -> rusqlite::Result<()> {
        self.armed.store(false, Ordering::Release);
        let armed = Arc::clone(&self.armed);
        connection.authorizer(Some(move |asked: rusqlite::hooks::AuthContext<'_>| {
            if !armed.load(Ordering::Acquire) || only_reads(&asked.action) {
                Authorization::Allow
            } else {
                Authorization::Deny
            }
        }))?;
        stop_at(connection, Instant::now() + self.bound)
    }

    fn harden(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX)?;
        connection.set_limit(Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, LIKE_BYTES_MAX)?;
        connection.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, i32::try_from(SQL_BYTES_MAX).unwrap_or(i32::MAX))?;
        // What does not fit in the cache would go to a file, which the kernel refuses: memory stays bounded.
        connection.execute_batch("PRAGMA temp_store=FILE")
    }

    fn read(&mut self, connection: &Connection) -> Result<Answer, Trouble> {
        self.armed.store(true, Ordering::Release);
        first_row(connection, self.sql)
    }
}

fn first_row(connection: &Connection, sql: &str) -> Result<Answer, Trouble> {
    let cannot = |why: &str| Trouble::Cannot(why.to_owned());
    let mut statement = connection.prepare(sql).map_err(|error| trouble(&error))?;
    if !statement.readonly() || statement.is_explain() != 0 || statement.column_count() == 0 {
        return Err(cannot("only one SELECT is allowed"));
    }
    if statement.parameter_count() > 0 {
        return Err(cannot("the statement has parameters, and nobody to fill them"));
    }
    let names: Vec<String> = statement.column_names().map(|name| clip(name, 40)).collect();
    let mut rows = statement.query([]).map_err(|error| trouble(&error))?;
    let Some(row) = rows.next().map_err(|error| trouble(&error))? else {
        return Err(cannot("it gave no row; count(*) always gives one"));
    };
    let mut details = Vec::new();
    for (column, name) in names.iter().enumerate().skip(1).take(DETAILS_MAX) {
        let text = row.get_ref(column).map_or_else(|error| error.to_string(), told);
        // Rows of a stranger's database leave the host with the finding.
        let text = if names_secret(name) { SECRET.to_owned() } else { clip(&redact(&text), DETAIL_BYTES_MAX) };
        details.push((name.clone(), text));
    }
    let value = match row.get_ref(0).map_err(|error| trouble(&error))? {
        ValueRef::Integer(value) => Some(Number::Integer(value)),
        ValueRef::Real(value) => Number::real(value),
        ValueRef::Null => {
            return Err(cannot(&format!(
                "{NO_NUMBER} is NULL; coalesce(…, 0) in the statement would say what that means"
            )));
        }
        _ => None,
    };
    Ok(Answer { value: value.ok_or_else(|| cannot(&format!("{NO_NUMBER} is not a number")))?, details })
}

fn told(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(value) => value.to_string(),
        ValueRef::Real(value) => value.to_string(),
        ValueRef::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        ValueRef::Blob(bytes) => format!("{} bytes", bytes.len()),
    }
}

fn only_reads(action: &AuthAction<'_>) -> bool {
    match action {
        AuthAction::Select | AuthAction::Read { .. } | AuthAction::Recursive => true,
        AuthAction::Function { function_name } => {
            !FUNCTIONS_REFUSED.iter().any(|refused| refused.eq_ignore_ascii_case(function_name))
        }
        // FTS5 asks it of the connection before it reads its index.
        AuthAction::Pragma { pragma_name: "data_version", pragma_value: None } => true,
        _ => false,
    }
}

/// What is wrong with a statement as far as it can be told without its database: its grammar, and whether it reads.
pub fn mistake_in(sql: &str) -> Option<String> {
    if sql.len() > SQL_BYTES_MAX {
        return Some(format!("expected at most {SQL_BYTES_MAX} bytes of SQL"));
    }
    let connection = Connection::open_in_memory().ok()?;
    // Whatever it names does not exist here; a statement that is well but for that fails in the search for it.
    match connection.prepare(sql) {
        Ok(statement) if statement.column_count() == 0 || !statement.readonly() || statement.is_explain() != 0 => {
            Some("expected one SELECT".to_owned())
        }
        Ok(statement) if statement.parameter_count() > 0 => Some("expected a SELECT without parameters".to_owned()),
        Ok(_) => begins_otherwise(sql),
        Err(rusqlite::Error::MultipleStatement) => Some("expected one statement".to_owned()),
        Err(error) => {
            let message = error.to_string();
            let grammar = ["syntax error", "incomplete input", "unrecognized token", "statements provided"];
            if grammar.iter().any(|part| message.contains(part)) {
                Some(format!("expected one SELECT that SQLite understands: {message}"))
            } else {
                begins_otherwise(sql)
            }
        }
    }
}

/// A statement of another kind on a table that is not there fails in the search for it, too.
fn begins_otherwise(sql: &str) -> Option<String> {
    const WRITES: [&str; 16] = [
        "insert",
        "update",
        "delete",
        "replace",
        "create",
        "drop",
        "alter",
        "attach",
        "detach",
        "pragma",
        "vacuum",
        "reindex",
        "analyze",
        "begin",
        "commit",
        "savepoint",
    ];
    let first = sql.trim_start().split(|c: char| !c.is_ascii_alphabetic()).next()?.to_ascii_lowercase();
    WRITES.contains(&first.as_str()).then(|| format!("expected a SELECT, found {first:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(
                "CREATE TABLE jobs(id INTEGER PRIMARY KEY, state TEXT, at REAL); INSERT INTO jobs VALUES (1, 'running', 0.5), (2, 'done', 1.5);
                 CREATE VIEW running AS SELECT * FROM jobs WHERE state = 'running';
                 CREATE VIRTUAL TABLE notes USING fts5(body); INSERT INTO notes VALUES ('a note about locks')",
            )
            .unwrap();
        connection
    }

    fn ask_within(mut connection: Connection, sql: &str, bound: Duration) -> Result<(Number, usize), String> {
        let mut assertion = Assertion { sql, bound, armed: Arc::default() };
        assertion.prepare(&mut connection).unwrap();
        assertion.harden(&connection).unwrap();
        let answer = assertion.read(&connection);
        answer.map(|answer| (answer.value, answer.details.len())).map_err(|trouble| trouble.to_string())
    }

    fn ask(sql: &str) -> Result<(Number, usize), String> {
        ask_within(database(), sql, Duration::from_secs(60))
    }

    #[test]
    fn what_sqlite_says_of_a_statement_shows_none_of_its_secrets() {
        let sql = "select count(*) from nope where password='hunter2'".to_owned();
        let bounds = Bounds { min: Some(Number::Integer(0)), max: None };
        let options = QueryOptions {
            name: "n".to_owned(),
            sql: sql.clone(),
            bounds,
            timeout: Duration::from_secs(1),
            severity: None,
            summary: None,
            scratch_dir: None,
        };
        let probe = QueryProbe::new(ServiceName::host(), PathBuf::from("/x.db"), options);
        for message in [format!("no such column: x in {sql} at offset 7"), format!("near \"x\": syntax error in {sql}")]
        {
            let why = probe.why(&CopyError::Trouble(Trouble::Cannot(message)));
            assert!(why.starts_with("SQLite says: ") && !why.contains("hunter2"), "{why}");
        }
    }

    #[test]
    fn what_reads_is_answered() {
        for (sql, expected, details) in [
            ("select count(*) from jobs where state = 'running'", Number::Integer(1), 0),
            ("SELECT max(at), state FROM jobs;  -- the last one", Number::Real(1.5), 1),
            (
                "with recursive n(i) as (select 1 union all select i + 1 from n limit 9) select sum(i) from n",
                Number::Integer(45),
                0,
            ),
            ("select count(*) from running", Number::Integer(1), 0),
            ("select count(*) from notes where notes match 'locks'", Number::Integer(1), 0),
            ("select unixepoch() > 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10", Number::Integer(1), DETAILS_MAX),
        ] {
            assert_eq!(ask(sql), Ok((expected, details)), "{sql}");
            assert_eq!(mistake_in(sql), None, "{sql}");
        }
    }

    #[test]
    fn what_does_anything_else_is_refused() {
        for sql in [
            "insert into jobs values (9, 'x', 1)",
            "update jobs set state = 'x' returning id",
            "delete from jobs returning 1",
            "with gone as (select 1) delete from jobs returning 1",
            "create table x(y)",
            "drop table jobs",
            "attach '/tmp/x.db' as x",
            "pragma journal_mode = delete",
            "pragma user_version",
            "select * from pragma_table_info('jobs')",
            "begin",
            "vacuum",
            "reindex",
            "savepoint a",
            "explain select 1",
            "explain query plan select 1",
            "select load_extension('/tmp/x.so')",
            "insert into notes(notes) values ('optimize')",
            "select 1; select 2",
            "select 1; drop table jobs",
            "",
            "-- nothing",
            "select ?1",
            "select null",
            "select 'text'",
            "select id from jobs where 0",
            "select nothing from jobs",
            "select count(*) form jobs",
            "select x'00'",
            "select length(zeroblob(2000000))",
        ] {
            assert!(ask(sql).is_err(), "{sql}: {:?}", ask(sql));
        }
        assert_eq!(ask("select count(*) from jobs"), Ok((Number::Integer(2), 0)));
    }

    #[test]
    fn what_never_ends_is_ended() {
        let endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n";
        let told = ask_within(database(), endless, Duration::from_millis(20)).unwrap_err();
        assert_eq!(told, Trouble::OutOfTime.to_string());
    }

    #[test]
    fn grammar_and_kind_are_told_before_it_is_ever_asked() {
        for (sql, told) in [
            ("select count(* from jobs", "syntax error"),
            ("select count(*) form jobs where", "syntax error"),
            ("select 'x", "unrecognized token"),
            ("delete from jobs", "expected a SELECT, found \"delete\""),
            ("PRAGMA user_version", "found \"pragma\""),
            ("vacuum", "expected one SELECT"),
            ("select 1; select 2", "expected one statement"),
            ("select ?", "without parameters"),
            ("", "expected one SELECT"),
        ] {
            let mistake = mistake_in(sql).unwrap_or_default();
            assert!(mistake.contains(told), "{sql}: {mistake:?}");
        }
        assert_eq!(mistake_in("select count(*) from jobs join more using (id)"), None);
        assert!(mistake_in(&format!("select 1 {}", " ".repeat(SQL_BYTES_MAX))).is_some());
    }
}

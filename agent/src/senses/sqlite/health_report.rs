//! The sentences, evidence and next steps about a database that is whole and yet not well.

use super::content::Found;
use crate::senses::{HostRoot, process};
use muster_agent_core::diagnose::{PID_KEY, START_TICKS_KEY};
use muster_agent_core::judgement::Problem;
use muster_agent_core::sqlite::growth::{Cause, Growth};
use muster_agent_core::sqlite::rows::{Lost, Rows};
use muster_agent_core::sqlite::wal::Loss;
use muster_common::evidence::{Evidence, Grade, Value};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::units::{human_bytes, human_duration};
use std::collections::BTreeMap;
use std::path::Path;

/// Tables, pairs and processes that are named; the rest is counted.
const NAMED_MAX: usize = 8;

const COPY_FIRST: &str =
    "copy the database with its -wal and -shm (all of them, before anything else opens or checkpoints it)";
const NO_RESTART: &str =
    "do not restart the service before the copy is made: the next opening forgets what the log has lost";

/// Committed frames, or rows across an event, are gone.
pub(super) fn rows_lost(path: &Path, loss: Option<&Loss>, rows: &[(&str, &Lost)]) -> Problem {
    let shown = path.display();
    let mut evidence = Evidence::new().text("path", shown.to_string());
    let mut parts = Vec::new();
    if let Some(loss) = loss {
        let lost = loss.frames_lost();
        parts.push(format!(
            "{lost} pages of committed transactions are missing from its write-ahead log ({} were committed, {} are \
             left), and integrity_check does not see it",
            loss.frames_committed, loss.frames_kept
        ));
        evidence = evidence
            .count("frames_committed", loss.frames_committed)
            .count("frames_kept", loss.frames_kept)
            .count("frames_lost", lost)
            .bytes("lost_bytes", u64::from(lost) * u64::from(loss.page_bytes));
    }
    for (index, (table, lost)) in rows.iter().take(NAMED_MAX).enumerate() {
        let Lost { before, after, enough, event, .. } = lost;
        parts.push(format!("table {table:?} had {before} rows and has {after} {}", event.as_str()));
        let key = |what: &str| format!("table_{}_{what}", index + 1);
        evidence = evidence
            .text(&key("name"), *table)
            .count(&key("rows_before"), *before)
            .count(&key("rows_now"), *after)
            .count(&key("rows_expected_min"), *enough)
            .text(&key("event"), event.as_str());
    }
    if let Some(more @ 1..) = rows.len().checked_sub(NAMED_MAX) {
        parts.push(format!("{more} more tables lost rows"));
    }
    let problem = Problem::new(Reason::SqliteRowsLost, format!("{shown} lost rows: {}", parts.join("; ")));
    let problem = match loss {
        Some(loss) if !loss.proven && rows.is_empty() => problem.grade(Grade::Possible).severity(Severity::Sev3),
        Some(loss) if loss.proven => problem,
        // Somebody may have meant it.
        _ => problem.grade(Grade::Likely),
    };
    let compare = "compare with the newest good backup, and pin it so that rotation does not take it";
    let problem = problem.evidence(evidence);
    if loss.is_some() {
        problem.next_steps([
            COPY_FIRST,
            NO_RESTART,
            compare,
            "find out what cut or exchanged the -wal: a copy or restore of the database alone, a clean-up script, a full disk",
        ])
    } else {
        problem.next_steps([
            COPY_FIRST,
            "stop the upgrade on other hosts until it is clear where the rows went",
            compare,
            "if the rows were meant to go, nothing: this clears by itself after a day",
        ])
    }
}

/// The log does not come back.
pub(super) fn growth(path: &Path, growth: &Growth) -> Problem {
    let shown = path.display();
    let Growth { cause, over_for, live_bytes, waiting_bytes } = growth;
    let (live, waiting) = (human_bytes(*live_bytes), human_bytes(*waiting_bytes));
    let named = |pid: u32| format!("{} (pid {pid})", comm(pid));
    let why = match cause {
        Cause::OpenTransaction(Some(pid)) => {
            format!("one transaction of {} writes it and is not committed", named(*pid))
        }
        Cause::OpenTransaction(None) => "one transaction of a hidden process writes it and is not committed".to_owned(),
        Cause::Reader(pids) if pids.is_empty() => {
            "a reader that is hidden from the agent keeps an old state and no checkpoint can pass it".to_owned()
        }
        Cause::Reader(pids) => {
            let readers: Vec<_> = pids.iter().take(NAMED_MAX).map(|pid| named(*pid)).collect();
            format!("{} reads an old state all the time and no checkpoint can pass it", readers.join(", "))
        }
        Cause::ReadersInTurn => {
            "readers follow one another without a gap, so the log never begins again at its start".to_owned()
        }
        Cause::NoCheckpoint => "nobody checkpoints it, although nothing is in the way".to_owned(),
        Cause::Behind => "checkpoints run but more is written than they copy back".to_owned(),
    };
    let large = match cause {
        Cause::OpenTransaction(_) => "grows".to_owned(),
        _ => format!("holds {live}, {waiting} of them not in the database yet"),
    };
    let since = if over_for.is_zero() { String::new() } else { format!(" for {}", human_duration(*over_for)) };
    let summary = format!("the write-ahead log of {shown} {large} and does not come back{since}: {why}");
    let mut evidence = Evidence::new()
        .text("path", shown.to_string())
        .bytes("wal_live_bytes", *live_bytes)
        .bytes("wal_not_checkpointed_bytes", *waiting_bytes)
        .text("wal_cause", cause.as_str())
        .duration("over_for_ms", *over_for);
    let holder = match cause {
        Cause::OpenTransaction(pid) => *pid,
        Cause::Reader(pids) => pids.first().copied(),
        _ => None,
    };
    if let Some(pid) = holder {
        evidence = evidence.count(PID_KEY, pid).text("comm", comm(pid));
        if let Some(id) = process::id(&HostRoot::default(), pid) {
            evidence = evidence.count(START_TICKS_KEY, id.start_ticks);
        }
    }
    let problem = Problem::new(Reason::SqliteWalGrowth, summary).evidence(evidence);
    let problem = if over_for.is_zero() { problem.grade(Grade::Likely) } else { problem };
    let never = "never delete the -wal: it holds what was committed";
    match cause {
        Cause::OpenTransaction(_) | Cause::Reader(_) => problem.next_steps([
            "look what the holder does: ps -o pid,etime,stat,wchan:32,cmd -p PID, and its log",
            "end the transaction in the application (a cursor that was never closed is the usual cause), or restart the holder",
            never,
        ]),
        Cause::ReadersInTurn => problem.next_steps([
            "let the readers pause, or let the application call PRAGMA wal_checkpoint(RESTART) with a busy time-out",
            "watch the space on its file system: df",
            never,
        ]),
        Cause::NoCheckpoint | Cause::Behind => problem.next_steps([
            "look for wal_autocheckpoint=0 or a checkpoint that fails in the application's settings and log",
            "let the application call PRAGMA wal_checkpoint(TRUNCATE); from outside only as its own user",
            never,
        ]),
    }
}

/// The name of a process, or `?` when it is gone or hidden.
fn comm(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).map_or_else(|_| "?".to_owned(), |comm| comm.trim().to_owned())
}

/// Rows refer to rows that do not exist.
pub(super) fn foreign_keys(path: &Path, dangling: &BTreeMap<(String, String), u64>) -> Problem {
    let shown = path.display();
    let total = dangling.values().fold(0u64, |sum, count| sum.saturating_add(*count));
    let mut evidence = Evidence::new().text("path", shown.to_string()).count("rows_count", total);
    let mut named = Vec::new();
    for (index, ((table, parent), count)) in dangling.iter().take(NAMED_MAX).enumerate() {
        named.push(format!("{count} of {table:?} to {parent:?}"));
        evidence = evidence
            .text(&format!("pair_{}", index + 1), format!("{table} -> {parent}"))
            .count(&format!("pair_{}_rows_count", index + 1), *count);
    }
    let more = if dangling.len() > NAMED_MAX { " and others" } else { "" };
    let rows = if total == 1 { "row" } else { "rows" };
    let summary = format!("{total} {rows} of {shown} without the row referred to: {}{more}", named.join(", "));
    Problem::new(Reason::SqliteForeignKeys, summary).evidence(evidence).next_steps([
        "list them on a copy: PRAGMA foreign_key_check",
        "find out who writes without PRAGMA foreign_keys=ON, or which rows went away: an upgrade, a clean-up script",
        "compare with the newest good backup before rows are deleted or made anew",
    ])
}

/// `user_version` is another than before.
pub(super) fn upgraded(path: &Path, before: i64, now: i64) -> Problem {
    let verb = if now > before { "was upgraded" } else { "was taken back" };
    let summary = format!("the database {} {verb}: user_version {before} before, {now} now", path.display());
    let evidence = Evidence::new()
        .text("path", path.display().to_string())
        .text("what", "user_version")
        .with("before", Value::Integer(before))
        .with("after", Value::Integer(now));
    Problem::new(Reason::Change, summary).evidence(evidence)
}

/// What the content says, beside what the checks saw.
pub(super) fn seen(
    mut seen: Evidence,
    found: Option<&Found>,
    rows: &Rows,
    left_out: &BTreeMap<String, String>,
) -> Evidence {
    let Some(found) = found else { return seen };
    let facts = found.facts;
    let count = |number: i64| u64::try_from(number).unwrap_or(0);
    seen.insert("user_version", Value::Integer(facts.user_version));
    seen.insert("schema_version", Value::Integer(facts.schema_version));
    if facts.application_id != 0 {
        seen.insert("application_id", Value::Text(format!("{:#010x}", facts.application_id & 0xffff_ffff)));
    }
    seen.insert("pages_count", Value::Count(count(facts.pages)));
    seen.insert("free_pages_count", Value::Count(count(facts.free_pages)));
    seen.insert("free_bytes", Value::Bytes(count(facts.free_pages.saturating_mul(facts.page_bytes))));
    if let Some(percent) = facts.free_pages.saturating_mul(100).checked_div(facts.pages) {
        seen.insert("free_percent", Value::Count(count(percent)));
    }
    for (table, rows) in rows.counts().take(NAMED_MAX) {
        seen.insert(&format!("rows_of_{table}"), Value::Count(rows));
    }
    if !left_out.is_empty() {
        let told: Vec<String> = left_out.iter().take(3).map(|(what, why)| format!("{what}: {why}")).collect();
        seen.insert("content_not_covered", Value::Text(told.join("; ")));
    }
    seen
}

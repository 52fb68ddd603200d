//! The sentences, evidence and next steps of the SQLite probe.

use super::content::CountedTable;
use super::files::{Look, Obstacle};
use super::gone::Left;
use muster_agent_core::clock::Now;
use muster_agent_core::diagnose::CHECKED_AT_KEY;
use muster_agent_core::judgement::{Problem, Unknown};
use muster_agent_core::locks::party::{Party, names};
use muster_agent_core::shell::quoted;
use muster_agent_core::sqlite::damage::Damage;
use muster_agent_core::sqlite::shrink::Extent;
use muster_common::evidence::{Evidence, Grade};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::units::human_bytes;
use std::path::Path;
use std::time::Duration;

const COPY_FIRST: &str =
    "copy the database with its -wal, -shm and -journal (all of them, before anything else touches it)";
const KEEP_BACKUPS: &str = "pin the newest good backups so that rotation does not overwrite them with the damaged file";
const NO_RESTART: &str = "do not restart the service yet: what it still holds in memory may be all there is";

/// The path names nothing. What saves data comes first: whoever has the deleted file open is all that keeps it.
pub(super) fn missing(path: &Path, left: &Left) -> Problem {
    let (shown, place) = (path.display(), left.place.display());
    let mut summary = match left.is_link {
        true => format!("the database {shown} is a link to {place}, which does not exist"),
        false => format!("the database {shown} does not exist"),
    };
    let siblings: Vec<String> =
        left.siblings.iter().map(|(suffix, bytes)| format!("{suffix} ({})", human_bytes(*bytes))).collect();
    let siblings = siblings.join(" and ");
    if !siblings.is_empty() {
        let verb = if left.siblings.len() == 1 { "is" } else { "are" };
        summary.push_str(&format!("; its {siblings} {verb} still there"));
    }
    let parties: Vec<&Party> = left.holders.iter().map(|(party, _)| party).collect();
    if !parties.is_empty() {
        let verb = if parties.len() == 1 { "has" } else { "have" };
        let who = names(parties.iter().copied(), 2);
        summary.push_str(&format!("; {who} still {verb} it open: it was deleted or moved meanwhile"));
    }
    let mut evidence = Evidence::new().text("path", shown.to_string());
    if !siblings.is_empty() {
        evidence = evidence.text("left", siblings);
    }
    if let [holder, ..] = parties.as_slice() {
        evidence = evidence.count("holder_pid", holder.process.pid).text("holder_comm", &holder.comm);
    }
    Problem::new(Reason::SqliteMissing, summary).evidence(evidence).next_steps(save_what_is_left(path, left))
}

fn save_what_is_left(path: &Path, left: &Left) -> Vec<String> {
    let place = left.place.display().to_string();
    let holder = left.holders.first();
    let mut steps = Vec::new();
    if let Some((party, _)) = holder {
        let pid = party.process.pid;
        let log = left.siblings.iter().any(|(suffix, _)| *suffix == "-wal");
        steps.push(match log {
            true => format!("keep pid {pid} running: its end may delete the -wal, which holds the newest rows"),
            false => format!("keep pid {pid} running: the deleted file goes with it"),
        });
    }
    if !left.siblings.is_empty() {
        let before = if holder.is_some() { "that" } else { "anything opens it" };
        let files = left.siblings.iter().map(|(suffix, _)| quoted(&format!("{place}{suffix}")));
        let files = files.collect::<Vec<_>>().join(" ");
        steps.push(format!("copy what is left, all of it, before {before}: cp -a {files} SAFE_PLACE/"));
    }
    let name = quoted(&left.place.file_name().unwrap_or_default().to_string_lossy());
    match holder {
        Some((party, Some(descriptor))) => steps.push(format!(
            "copy the deleted file beside it: cp /proc/{}/fd/{descriptor} SAFE_PLACE/{name}",
            party.process.pid
        )),
        Some((party, None)) => {
            steps.push(format!("find the file under its new name: ls -l /proc/{}/fd", party.process.pid));
        }
        None if left.all_asked => steps.push("nobody has it open any more: look for where it was moved to".to_owned()),
        None => {
            steps.push(
                "find out, as root, whether the service still has the deleted file open: ls -l /proc/PID/fd | grep deleted"
                    .to_owned(),
            );
            steps.push("if it has, copy /proc/PID/fd/N away before the process ends".to_owned());
        }
    }
    steps.push(match holder.is_some() || !left.siblings.is_empty() {
        true => format!("check the copy (PRAGMA integrity_check); put it, or the newest good backup, back to {place}"),
        false => format!("else restore {} from the newest good backup", path.display()),
    });
    steps
}

/// The path names a directory, a FIFO, a socket or a device.
pub(super) fn not_a_file(path: &Path, kind: &str) -> Problem {
    Problem::new(Reason::SqliteNotADatabase, format!("{} is a {kind}, not a database", path.display()))
        .evidence(Evidence::new().text("path", path.display().to_string()).text("kind", kind))
        .next_steps(["check the path in the agent's and in the service's configuration"])
}

/// The file does not begin like a database.
pub(super) fn not_a_database(path: &Path, look: &Look) -> Problem {
    let first: String = look.snapshot.header_bytes.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let evidence = Evidence::new()
        .text("path", path.display().to_string())
        .bytes("size_bytes", look.snapshot.database.size_bytes)
        .text("first_bytes_hex", first);
    let summary = format!("{} does not begin like a SQLite database", path.display());
    Problem::new(Reason::SqliteNotADatabase, summary).evidence(evidence).next_steps([
        COPY_FIRST,
        "if the database is encrypted (SQLCipher, SEE), take it out of the agent's configuration: it cannot be checked",
        KEEP_BACKUPS,
        NO_RESTART,
        "else restore the newest good backup",
    ])
}

/// SQLite says that it is damaged.
pub(super) fn corrupt(path: &Path, damage: &Damage, missing_bytes: Option<u64>) -> Problem {
    let names = damage.names();
    let first = damage.messages.first().map_or("", String::as_str);
    let shown = path.display();
    let summary = match (names.is_empty(), missing_bytes) {
        (_, Some(bytes)) => format!("the database {shown} is truncated by {} and damaged: {first}", human_bytes(bytes)),
        (true, None) => format!("the database {shown} is damaged: {first}"),
        (false, None) => format!("the database {shown} is damaged in {names}: {first}"),
    };
    let mut evidence = Evidence::new()
        .text("path", shown.to_string())
        .text("damaged", if names.is_empty() { "could not be told" } else { &names })
        .count("messages_count", damage.messages.len() as u64)
        .flag("only_indexes", damage.only_indexes());
    for (index, message) in damage.messages.iter().take(8).enumerate() {
        evidence = evidence.text(&format!("message_{}", index + 1), message);
    }
    if let Some(bytes) = missing_bytes {
        evidence = evidence.bytes("missing_bytes", bytes);
    }
    let mend = if damage.only_indexes() {
        "only indexes are damaged: stop the writers, run REINDEX on the copy, check it, then on the database"
    } else {
        "recover the copy: sqlite3 COPY \".recover\" | sqlite3 NEW, then compare with the newest good backup"
    };
    let problem = Problem::new(Reason::SqliteCorrupt, summary).evidence(evidence);
    let problem = if damage.content_only {
        // A row that a constraint forbids is not a broken page: somebody may have switched the constraint off.
        problem.grade(Grade::Likely).severity(Severity::Sev3)
    } else if first.starts_with("malformed database schema") {
        // A schema written by a newer SQLite looks the same to an older one.
        problem.grade(Grade::Likely)
    } else {
        problem
    };
    problem.next_steps([
        COPY_FIRST,
        KEEP_BACKUPS,
        NO_RESTART,
        mend,
        "look for its cause: dmesg for I/O errors, full disks, a second writer",
    ])
}

/// The file is shorter than its header says, or lost all its content.
pub(super) fn shrunk(path: &Path, size_bytes: u64, missing_bytes: Option<u64>) -> Problem {
    let shown = path.display();
    let summary = match missing_bytes {
        Some(bytes) => {
            format!("the database {shown} is truncated: {} are missing by its own header", human_bytes(bytes))
        }
        None => format!("the database {shown} is empty and was not before"),
    };
    let mut evidence = Evidence::new().text("path", shown.to_string()).bytes("size_bytes", size_bytes);
    if let Some(bytes) = missing_bytes {
        evidence = evidence.bytes("missing_bytes", bytes).bytes("expected_bytes", size_bytes.saturating_add(bytes));
    }
    Problem::new(Reason::SqliteShrunk, summary).evidence(evidence).next_steps([
        COPY_FIRST,
        KEEP_BACKUPS,
        NO_RESTART,
        "find out who truncated or recreated it: deploy scripts, a restore, a full disk",
        "compare with the newest good backup",
    ])
}

/// It has no content, and nobody knows whether it had any.
pub(super) fn empty() -> Unknown {
    let why = "it has 0 bytes: new and without tables, or all of its content is lost";
    Unknown::new(why, Some("compare it with its newest backup; the running agent remembers what was in it"))
}

/// Nothing is in it, and the config names what should be: `counted`. `None` where it names nothing.
pub(super) fn lacks_tables(path: &Path, counted: &[CountedTable]) -> Option<Problem> {
    let shown = path.display();
    let tables = counted.iter().map(|counted| counted.table.as_str()).collect::<Vec<_>>().join(", ");
    let summary = format!("the database {shown} has 0 bytes, and the config names tables in it ({tables})");
    let evidence = Evidence::new().text("path", shown.to_string()).bytes("size_bytes", 0).text("tables", tables);
    let problem = Problem::new(Reason::SqliteShrunk, summary).evidence(evidence).grade(Grade::Likely).next_steps([
        COPY_FIRST,
        KEEP_BACKUPS,
        NO_RESTART,
        "compare with the newest good backup; a new installation that has made no table yet is well",
    ]);
    (!counted.is_empty()).then_some(problem)
}

/// The file lost most of its content since it was last seen.
pub(super) fn much_smaller(path: &Path, size_bytes: u64, before: &Extent, grade: Grade) -> Problem {
    let shown = path.display();
    let (was, is) = (human_bytes(before.size_bytes), human_bytes(size_bytes));
    let summary = match grade {
        Grade::Possible => format!("{shown} is another file and much smaller: {was} before, {is} now"),
        _ => format!("{shown} shrank from {was} to {is}, and no transaction did it: another database lies there now"),
    };
    let evidence = Evidence::new()
        .text("path", shown.to_string())
        .bytes("size_bytes", size_bytes)
        .bytes("size_before_bytes", before.size_bytes)
        .count("change_counter_before", before.change_counter);
    Problem::new(Reason::SqliteShrunk, summary).grade(grade).evidence(evidence).next_steps([
        COPY_FIRST,
        KEEP_BACKUPS,
        "find out who wrote another database over it: deploy scripts, a restore from an old or empty backup",
        "if it was meant, nothing: this clears by itself some time after the file has passed a check",
    ])
}

/// The path names another file than before.
pub(super) fn replaced(path: &Path, old_inode: u64, new_inode: u64) -> Problem {
    let summary = format!("{} is another file (inode {new_inode}) than before (inode {old_inode})", path.display());
    let evidence = Evidence::new()
        .text("path", path.display().to_string())
        .count("old_inode", old_inode)
        .count("new_inode", new_inode);
    Problem::new(Reason::SqliteReplaced, summary).evidence(evidence).next_steps([
        "if nobody restored or deployed it on purpose: find out who moved a file over it",
        "a process that opened the old file still writes there: ls -l /proc/PID/fd | grep deleted, then restart it",
        "this clears by itself some time after the new file has passed a check",
    ])
}

/// A journal that nobody is writing.
pub(super) fn journal_hot(path: &Path, journal_bytes: u64) -> Problem {
    let shown = path.display();
    let summary = format!("{shown} has a rollback journal that nobody is writing: a writer died in mid-transaction");
    let evidence = Evidence::new()
        .text("path", shown.to_string())
        .text("journal", format!("{shown}-journal"))
        .bytes("journal_bytes", journal_bytes);
    Problem::new(Reason::SqliteJournalHot, summary).evidence(evidence).next_steps([
        "never delete or move the -journal: without it the database is damaged",
        "copy the database and its -journal together before anything opens it",
        "start the service: the next writer rolls the transaction back by itself",
    ])
}

/// Why nothing could be seen, and the way out.
pub(super) fn blind(obstacle: &Obstacle) -> (String, Option<String>) {
    let way_out = match obstacle {
        Obstacle::Denied(path) => Some(format!(
            "let the agent read {path}: add its user to the file's group, or give the unit CAP_DAC_READ_SEARCH; \
             with PrivateTmp= or ProtectHome= in the unit, a drop-in with BindReadOnlyPaths="
        )),
        _ => None,
    };
    (format!("the database could not be looked at: {obstacle}"), way_out)
}

/// Who lets nobody read, and what that means.
pub(super) fn exclusive(look: &Look) -> (String, String) {
    let holder = look.snapshot.locks.strongest().and_then(|(_, pid)| pid);
    let by = holder.map(|pid| format!(" by pid {pid}")).unwrap_or_default();
    let who = holder.map_or_else(|| "cat /proc/locks".to_owned(), |pid| format!("ps -fp {pid}"));
    let way_out = format!(
        "see who it is: {who}; a long transaction ends, a program with PRAGMA locking_mode=EXCLUSIVE has to check the \
         database itself"
    );
    (format!("the database is locked exclusively{by}"), way_out)
}

/// Somebody has it open, and the log that belongs to it is not there: for a moment, or because it was moved.
pub(super) fn changing(look: &Look) -> (String, String) {
    let locks = &look.snapshot.locks;
    let holder = locks.strongest().and_then(|(_, pid)| pid).or(locks.shared.flatten());
    let by = holder.map(|pid| format!(" by pid {pid}")).unwrap_or_default();
    let pid = holder.map_or_else(|| "PID".to_owned(), |pid| pid.to_string());
    let way_out = format!(
        "if it stays so it was renamed under its writer, whose -wal has the old name still: ls -l /proc/{pid}/fd; keep that \
         process running, and copy that -wal and -shm with this file"
    );
    (format!("the database is just being opened or closed{by}"), way_out)
}

/// What `ok` and the clears rest on.
pub(super) fn seen(look: &Look) -> Evidence {
    let snapshot = &look.snapshot;
    let mut seen = Evidence::new()
        .text("state", snapshot.state().as_str())
        .bytes("size_bytes", snapshot.database.size_bytes)
        .count("inode", snapshot.database.inode);
    if let Some(header) = &snapshot.header {
        seen = seen.text("journal_mode", if header.is_wal() { "wal" } else { "rollback" });
    }
    if let Some(wal) = &snapshot.wal {
        seen = seen.bytes("wal_bytes", wal.size_bytes);
    }
    if snapshot.locks.exclusive.is_some() && snapshot.shm.is_none() && snapshot.header.is_some_and(|h| h.is_wal()) {
        seen = seen.text("locking_mode", "EXCLUSIVE");
    }
    if let Some((name, pid)) = snapshot.locks.strongest() {
        seen = seen.text("lock", name.as_str());
        if let Some(pid) = pid {
            seen = seen.count("lock_holder_pid", pid);
        }
    }
    seen
}

/// The last check that passed: what it said, how old it is and when it was.
pub(super) fn checked(seen: Evidence, pass: &Evidence, boottime_ms: u64, now: Now) -> Evidence {
    let seen = pass.iter().fold(seen, |seen, (key, value)| seen.with(key, value.clone()));
    seen.duration("check_age_ms", now.since(boottime_ms)).duration(CHECKED_AT_KEY, Duration::from_millis(boottime_ms))
}

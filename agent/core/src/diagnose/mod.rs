//! Joins what is wrong with one service into a cause and its symptoms.
//!
//! [`rules`] is the table of what explains what and how sure that is; [`Recent`] remembers what was seen lately, so that
//! a cause is found whichever was seen first, and adds it to a finding before it is told; [`stories`] makes one sentence
//! per service for people, with the proof, what is not known, and what to do next.
//!
//! A process is (pid, start time): the same pid of another life never joins. What is unknown is said to be unknown.

mod recent;
mod rules;
mod story;

pub use recent::{Recent, Trace};
pub use story::{Link, Relation, Story, stories};

use muster_common::evidence::{Evidence, Value};
use muster_common::finding::Finding;
use muster_common::reason::Reason;

/// Evidence key of a process id, in the findings of every probe that names a process.
pub const PID_KEY: &str = "pid";
/// Evidence key of its start time in clock ticks after boot.
pub const START_TICKS_KEY: &str = "start_ticks";
/// The process that a restart ended.
pub const OLD_PID_KEY: &str = "old_pid";
/// Its start time.
pub const OLD_START_TICKS_KEY: &str = "old_start_ticks";
/// The file or database that copies are of.
pub const SOURCE_PATH_KEY: &str = "source_path";
/// When something happened, by the kernel's own clock.
pub const SINCE_BOOT_KEY: &str = "since_boot_ms";
/// How a process ended, in words: `"SIGKILL"`, `"exit code 3"`, `"unknown"`.
pub const EXIT_STATUS_KEY: &str = "exit_status";
/// Services that a finding about the host concerns, separated by `", "`.
pub const SERVICES_KEY: &str = "services";
/// Who ran out of memory: `"memcg"` for a cgroup at its own limit.
pub const SCOPE_KEY: &str = "scope";
/// How long a lock has been held: it was there before it was told.
pub const HELD_KEY: &str = "held_ms";
/// The service that the holder of a lock belongs to.
pub const HOLDER_SERVICE_KEY: &str = "holder_service";
/// The services of those that wait or may wait for a lock, separated by `", "`.
pub const WAITER_SERVICES_KEY: &str = "waiter_services";
/// The rule that took a line of a log.
pub const RULE_KEY: &str = "rule";
/// What that rule's `group_by` caught: each value is told apart.
pub const GROUP_KEY: &str = "group";
/// Who told how a process ended, with what systemd made of it.
pub const TOLD_BY_KEY: &str = "exit_told_by";
/// Why a unit failed, in systemd's word.
pub const RESULT_KEY: &str = "result";
/// When the last check of a database that passed was, `CLOCK_BOOTTIME`, in what is seen of one that is well. Not its age:
/// that is as of a moment that whoever notes it does not know.
pub const CHECKED_AT_KEY: &str = "checked_since_boot_ms";

/// Whether both belong to one story, `effect` as a symptom of `cause`, as two lookers at the same moment found them. Two
/// processes that are known to be different never do.
pub fn is_symptom(cause: &Finding, effect: &Finding) -> bool {
    let pids = number(&cause.evidence, PID_KEY).zip(number(&effect.evidence, PID_KEY));
    let explained = || rules::explains(&Trace::new(cause, 0), &Trace::new(effect, 0));
    // A loop is of many processes.
    let of_many = cause.key.reason == Reason::RestartLoop;
    (of_many || pids.is_none_or(|(pid, other)| pid == other))
        && explained().is_some_and(|explained| !explained.background)
}

pub(crate) fn number(evidence: &Evidence, key: &str) -> Option<u64> {
    match evidence.get(key)? {
        Value::Count(number) => Some(*number),
        Value::Integer(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

pub(crate) fn text<'a>(evidence: &'a Evidence, key: &str) -> Option<&'a str> {
    match evidence.get(key)? {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

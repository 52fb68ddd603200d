//! What explains what: one table, read from top to bottom; of several causes the surest counts, then the nearest in time.
//!
//! A rule never joins by time alone: something must be shared (the process, the file, the service).

use super::recent::Trace;
use super::{
    HOLDER_SERVICE_KEY, OLD_PID_KEY, OLD_START_TICKS_KEY, PID_KEY, SCOPE_KEY, SERVICES_KEY, SOURCE_PATH_KEY,
    START_TICKS_KEY, WAITER_SERVICES_KEY, number, text,
};
use muster_common::evidence::Grade;
use muster_common::reason::Reason;
use std::time::Duration;

/// What cause and effect must share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Join {
    /// The same (pid, start time). Where the cause does not know the start time, the same service besides.
    Process,
    /// The same service, and the cause names no process: a counter of its cgroup, a log line.
    Unnamed,
    /// The same service.
    Service,
    /// The same service, and who holds the cause's lock or waits for it is a process of that service.
    Party,
    /// The same file: the cause's subject is the effect's, or what the effect is about.
    File,
    /// The cause is about the host, and either it names the effect's service, or the effect's file lies below it.
    Host,
    /// The cause is about the host as a whole.
    AnyService,
}

/// One line of the table.
struct Rule {
    causes: &'static [Reason],
    effects: &'static [Reason],
    join: Join,
    grade: Grade,
    /// How long before the effect the cause may be over.
    within: Duration,
    /// A background makes the effect more likely but is a finding of its own: it is told, not folded.
    background: bool,
}

/// How a cause explains an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Explained {
    /// How sure.
    pub(super) grade: Grade,
    /// See [`Rule::background`].
    pub(super) background: bool,
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
/// Two probes look at different moments: a cause may be seen this much after its effect.
const SLACK_MS: u64 = 5_000;

use Reason as R;

const ENDS: &[Reason] = &[R::ProcessDown, R::ProcessZombie, R::ProcessRestarted];
const SILENT: &[Reason] = &[R::PidFileStale, R::PidFileMissing, R::PortClosed, R::HealthCheckFailed];

const fn rule(causes: &'static [Reason], effects: &'static [Reason], join: Join, grade: Grade) -> Rule {
    Rule { causes, effects, join, grade, within: MINUTE, background: false }
}

const fn background(rule: Rule) -> Rule {
    Rule { background: true, ..rule }
}

const fn within(rule: Rule, within: Duration) -> Rule {
    Rule { within, ..rule }
}

/// The table.
const RULES: &[Rule] = &[
    // A killed process ends; systemd says so too.
    rule(&[R::OomKill], ENDS, Join::Process, Grade::Confirmed),
    // What it left is seen for as long as nobody starts it again, also by a command that looks for the first time.
    within(rule(&[R::OomKill], &[R::UnitFailed, R::UnitInactive], Join::Process, Grade::Confirmed), HOUR),
    within(rule(&[R::OomKill], &[R::PidFileStale], Join::Process, Grade::Likely), HOUR),
    rule(&[R::OomKill], ENDS, Join::Unnamed, Grade::Likely),
    rule(&[R::OomKill], &[R::UnitFailed, R::UnitInactive, R::RestartLoop], Join::Service, Grade::Likely),
    rule(&[R::OomKill], &[R::PortClosed, R::HealthCheckFailed, R::SqliteJournalHot], Join::Service, Grade::Possible),
    // What grew or had no room led to the kill.
    background(within(rule(&[R::MemoryGrowth, R::MemoryPressure], &[R::OomKill], Join::Service, Grade::Likely), HOUR)),
    background(rule(&[R::MemoryCritical, R::MemoryApproaching], &[R::OomKill], Join::AnyService, Grade::Likely)),
    background(rule(&[R::MemoryGrowth], &[R::MemoryPressure], Join::Service, Grade::Likely)),
    // A loop is its restarts; a unit gives up because of them.
    rule(
        &[R::RestartLoop],
        &[R::UnitFailed, R::UnitInactive, R::UnitStuck, R::ProcessDown, R::ProcessRestarted],
        Join::Service,
        Grade::Likely,
    ),
    // Between two lives its service is silent.
    rule(&[R::RestartLoop], SILENT, Join::Service, Grade::Likely),
    // Without its process a service is silent.
    rule(&[R::ProcessDown, R::ProcessZombie], &[R::UnitFailed, R::UnitInactive], Join::Process, Grade::Confirmed),
    rule(&[R::ProcessDown, R::ProcessZombie], SILENT, Join::Service, Grade::Likely),
    rule(&[R::ProcessDown, R::ProcessZombie], &[R::UnitFailed], Join::Service, Grade::Likely),
    // What has ended and is not reaped is one thing seen twice.
    rule(&[R::ProcessDown], &[R::ProcessZombie], Join::Process, Grade::Confirmed),
    rule(
        &[R::ProcessDown, R::ProcessZombie],
        &[R::PortUnresponsive, R::SqliteJournalHot],
        Join::Service,
        Grade::Possible,
    ),
    // Who is stopped answers nobody, also not systemd, and keeps its locks.
    rule(
        &[R::ProcessStopped],
        &[R::HealthCheckFailed, R::PortUnresponsive, R::UnitStuck, R::Timeout],
        Join::Service,
        Grade::Likely,
    ),
    rule(&[R::ProcessStopped], &[R::UnitFailed], Join::Service, Grade::Possible),
    rule(&[R::ProcessStopped], &[R::SqliteLockHeld, R::LockContention], Join::Process, Grade::Likely),
    rule(&[R::UnitFailed, R::UnitInactive, R::UnitMissing, R::UnitStuck], SILENT, Join::Service, Grade::Likely),
    rule(&[R::PidFileStale], &[R::PortClosed, R::HealthCheckFailed], Join::Service, Grade::Likely),
    rule(&[R::ProcessRestarted], &[R::PidFileStale, R::PidFileMissing], Join::Service, Grade::Possible),
    rule(&[R::PortClosed, R::PortConflict, R::PortUnresponsive], &[R::HealthCheckFailed], Join::Service, Grade::Likely),
    rule(&[R::PortConflict], &[R::ProcessDown, R::UnitFailed, R::RestartLoop], Join::Service, Grade::Likely),
    rule(&[R::FdExhaustion], &[R::PortUnresponsive, R::HealthCheckFailed], Join::Service, Grade::Likely),
    rule(&[R::CertificateExpiring], &[R::HealthCheckFailed], Join::Service, Grade::Possible),
    // A file that is gone or another one.
    rule(
        &[R::SqliteReplaced, R::SqliteShrunk, R::SqliteMissing, R::SqliteCorrupt, R::SqliteNotADatabase],
        &[R::BackupShrunk, R::BackupCorrupt, R::QueryThreshold, R::SqliteRowsLost],
        Join::File,
        Grade::Likely,
    ),
    // What was cut off is what the check misses.
    rule(&[R::SqliteShrunk], &[R::SqliteCorrupt], Join::File, Grade::Likely),
    rule(
        &[R::SqliteCorrupt, R::SqliteNotADatabase, R::SqliteMissing],
        &[R::HealthCheckFailed, R::RestartLoop, R::UnitFailed],
        Join::Service,
        Grade::Possible,
    ),
    // Who holds a lock holds up others.
    rule(&[R::SqliteLockHeld], &[R::SqliteWalGrowth], Join::File, Grade::Likely),
    rule(
        &[R::SqliteLockHeld, R::LockContention],
        &[
            R::HealthCheckFailed,
            R::PortUnresponsive,
            R::QueryThreshold,
            // Not what found a repository locked: that is a file of git, no lock of SQLite or of the kernel.
            R::Timeout,
        ],
        Join::Service,
        Grade::Possible,
    ),
    // "database is locked" at its start. A lock between strangers ends nobody else.
    rule(
        &[R::SqliteLockHeld, R::LockContention],
        &[R::RestartLoop, R::UnitFailed, R::ProcessDown],
        Join::Party,
        Grade::Possible,
    ),
    // A host without room.
    background(rule(
        &[R::DiskSpaceLow, R::DiskInodesLow, R::DiskReadOnly],
        &[
            R::BackupMissing,
            R::BackupStale,
            R::BackupShrunk,
            R::BackupCorrupt,
            R::SqliteWalGrowth,
            R::SqliteJournalHot,
            R::UnitFailed,
            R::ProcessDown,
            R::HealthCheckFailed,
            R::RestartLoop,
        ],
        Join::Host,
        Grade::Likely,
    )),
    background(rule(&[R::ClockSkew], &[R::CertificateExpiring, R::BackupStale], Join::AnyService, Grade::Possible)),
    background(rule(
        &[R::MemoryCritical],
        &[R::PortUnresponsive, R::HealthCheckFailed],
        Join::AnyService,
        Grade::Possible,
    )),
    // What changed lately.
    background(within(
        rule(
            &[R::Change, R::UpdateFailed, R::UpdateRollback, R::InstallFailed],
            &[
                R::RestartLoop,
                R::UnitFailed,
                R::ProcessDown,
                R::HealthCheckFailed,
                R::SqliteRowsLost,
                R::SqliteReplaced,
                R::MemoryGrowth,
            ],
            Join::Service,
            Grade::Possible,
        ),
        HOUR,
    )),
    background(rule(
        &[R::BaselineDrift],
        &[R::OomKill, R::FdExhaustion, R::UnitFailed],
        Join::Service,
        Grade::Possible,
    )),
    background(rule(
        &[R::NetworkError, R::Timeout, R::ProviderRateLimited, R::RetryBudgetExceeded, R::PermanentError],
        &[R::HealthCheckFailed, R::QueryThreshold],
        Join::Service,
        Grade::Possible,
    )),
];

/// Whether `reason` explains anything at all: the others are not worth remembering as causes.
pub(super) fn is_cause(reason: Reason) -> bool {
    RULES.iter().any(|rule| rule.causes.contains(&reason))
}

/// Whether anything explains `reason`.
pub(super) fn is_effect(reason: Reason) -> bool {
    RULES.iter().any(|rule| rule.effects.contains(&reason))
}

/// Whether `cause` explains `effect`, and how.
pub(super) fn explains(cause: &Trace, effect: &Trace) -> Option<Explained> {
    if cause.key == effect.key || cause.from_ms > effect.from_ms.saturating_add(SLACK_MS) {
        return None;
    }
    // Two looks may see them in the wrong order, but what was over before its cause began was no effect of it.
    let over = effect.until_ms.filter(|until_ms| *until_ms > effect.from_ms);
    if over.is_some_and(|until_ms| until_ms < cause.from_ms) {
        return None;
    }
    let fits = |rule: &&Rule| {
        let over = u64::try_from(rule.within.as_millis()).unwrap_or(u64::MAX);
        let recent = cause.until_ms.is_none_or(|until| until.saturating_add(over) >= effect.from_ms);
        rule.causes.contains(&cause.key.reason) && rule.effects.contains(&effect.key.reason) && recent
    };
    let explained = RULES.iter().filter(fits).filter_map(|rule| {
        let grade = joined(rule.join, cause, effect)?.min(rule.grade);
        Some(Explained { grade, background: rule.background })
    });
    explained.max_by_key(|explained| explained.grade)
}

fn joined(join: Join, cause: &Trace, effect: &Trace) -> Option<Grade> {
    let same_service = cause.key.subject.service == effect.key.subject.service;
    match join {
        Join::Process => same_process(cause, effect, same_service),
        Join::Unnamed => (same_service && process(cause).is_none()).then_some(Grade::Confirmed),
        // Two processes of one service that are known to be different lives never join.
        Join::Service => (same_service && !other_life(cause, effect)).then_some(Grade::Confirmed),
        Join::Party => (same_service && is_party(cause, effect)).then_some(Grade::Confirmed),
        Join::File => (same_service && same_file(cause, effect)).then_some(Grade::Confirmed),
        Join::Host => (cause.key.subject.service.is_host() && concerns(cause, effect)).then_some(Grade::Confirmed),
        // A cgroup at its own limit is killed in however much the host has.
        Join::AnyService if text(&effect.facts, SCOPE_KEY) == Some("memcg") => {
            cause.key.subject.service.is_host().then_some(Grade::Possible)
        }
        Join::AnyService => cause.key.subject.service.is_host().then_some(Grade::Confirmed),
    }
}

/// (pid, start time) as evidence names it: of a restart, the process that ended.
fn process(trace: &Trace) -> Option<(u64, Option<u64>)> {
    let facts = &trace.facts;
    match number(facts, OLD_PID_KEY) {
        Some(pid) => Some((pid, number(facts, OLD_START_TICKS_KEY))),
        None => Some((number(facts, PID_KEY)?, number(facts, START_TICKS_KEY))),
    }
}

fn same_process(cause: &Trace, effect: &Trace, same_service: bool) -> Option<Grade> {
    let (cause, effect) = (process(cause)?, process(effect)?);
    match (cause.0 == effect.0, cause.1, effect.1) {
        (false, ..) => None,
        (true, Some(cause), Some(effect)) => (cause == effect).then_some(Grade::Confirmed),
        _ => same_service.then_some(Grade::Likely),
    }
}

fn other_life(cause: &Trace, effect: &Trace) -> bool {
    let (Some((pid, Some(start))), Some((other_pid, Some(other_start)))) = (process(cause), process(effect)) else {
        return false;
    };
    pid == other_pid && start != other_start
}

fn is_party(cause: &Trace, effect: &Trace) -> bool {
    let service = effect.key.subject.service.as_str();
    let waits = || text(&cause.facts, WAITER_SERVICES_KEY).is_some_and(|all| all.split(", ").any(|one| one == service));
    text(&cause.facts, HOLDER_SERVICE_KEY) == Some(service) || waits() || same_process(cause, effect, true).is_some()
}

fn same_file(cause: &Trace, effect: &Trace) -> bool {
    let file = cause.key.subject.subject.as_str();
    let subject = effect.key.subject.subject.as_str();
    // A query's subject is "FILE: NAME".
    subject == file
        || subject.strip_prefix(file).is_some_and(|rest| rest.starts_with(": "))
        || text(&effect.facts, SOURCE_PATH_KEY) == Some(file)
}

fn concerns(cause: &Trace, effect: &Trace) -> bool {
    let service = effect.key.subject.service.as_str();
    let named = text(&cause.facts, SERVICES_KEY).is_some_and(|services| services.split(", ").any(|one| one == service));
    let folder = cause.key.subject.subject.as_str();
    let below = |path: &str| folder == "/" || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
    named || (effect.key.subject.subject.starts_with('/') && below(&effect.key.subject.subject))
}

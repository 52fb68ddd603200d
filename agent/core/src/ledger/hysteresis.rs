//! How often a condition must be seen before it opens or clears, and what hides what.

use crate::judgement::Problem;
use muster_common::evidence::Value;
use muster_common::reason::Reason;

/// Consecutive sightings before a condition opens: one for hard evidence, more for what a restart or a moment of load
/// brings about by itself.
pub(super) const fn sightings_to_open(reason: Reason) -> u32 {
    match reason {
        Reason::PortClosed
        | Reason::PortUnresponsive
        // A service that was just restarted holds its port before its new pid is known.
        | Reason::PortConflict
        | Reason::PidFileMissing
        | Reason::PidFileMalformed
        | Reason::ProcessZombie
        | Reason::MemoryApproaching
        | Reason::MemoryCritical => 2,
        _ => 1,
    }
}

/// Consecutive runs with evidence of health before a condition clears.
pub(super) const fn runs_to_clear(reason: Reason) -> u32 {
    match reason {
        // A check that passed is proof; its interval is long.
        Reason::SqliteCorrupt
        | Reason::SqliteNotADatabase
        | Reason::SqliteMissing
        | Reason::SqliteReplaced
        | Reason::SqliteShrunk
        | Reason::UnitFailed
        | Reason::UnitInactive
        | Reason::UnitMissing
        | Reason::UnitStuck
        | Reason::ProbeBlind => 1,
        Reason::MemoryApproaching | Reason::MemoryCritical => 3,
        _ => 2,
    }
}

/// True when a sighting of `seen` leaves open whether `other` is still true: not seeing it is then no health.
pub(super) fn hides(seen: &Problem, other: Reason) -> bool {
    match seen.reason {
        Reason::SqliteMissing | Reason::SqliteNotADatabase | Reason::SqliteJournalHot => matches!(
            other,
            Reason::SqliteCorrupt | Reason::SqliteNotADatabase | Reason::SqliteShrunk | Reason::SqliteWalGrowth
        ),
        Reason::PidFileMissing | Reason::PidFileMalformed => matches!(
            other,
            Reason::ProcessDown | Reason::ProcessZombie | Reason::PidFileStale | Reason::PidFileMalformed
        ),
        // A stale file beside a service that is seen to run is no doubt about the service.
        Reason::PidFileStale => {
            let runs = seen.evidence.get("service_running") == Some(&Value::Flag(true));
            matches!(other, Reason::ProcessDown) && !runs
        }
        // It says that too.
        Reason::ProcessDown => matches!(other, Reason::PidFileStale),
        Reason::PortClosed => matches!(other, Reason::PortUnresponsive),
        Reason::MemoryCritical => matches!(other, Reason::MemoryApproaching),
        _ => false,
    }
}

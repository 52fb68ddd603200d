//! The raising rules of the severity matrix, as data: which circumstances make a reason worse than by default, and in
//! which words that is told. Assessments ask here, so that a page can quote the rule that made it what it is.
//!
//! Never lowers: a policy that names a severity for a reason is obeyed, and no rule is asked then.

use crate::policy::Policy;
use muster_common::reason::Reason;
use muster_common::severity::Severity;

/// A circumstance that an assessment found to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The victim belongs to a watched service.
    WatchedService,
    /// A watched service of the host was OOM-killed a short while ago.
    WatchedOom,
    /// The same service restarts in a storm.
    WithRestartStorm,
    /// As many subjects of the same service on one host at once as the detector's policy asks for.
    ManySubjects,
    /// It has gone on beyond the time that the detector's policy gives it.
    Sustained,
    /// It has gone on beyond the time after which the detector's policy calls it prolonged.
    Prolonged,
    /// On as many hosts, or from as many sources, as the detector's policy asks for.
    Widespread,
    /// On that share of all agents that the detector's policy calls the whole fleet.
    FleetWide,
    /// On twice as many hosts as the detector's policy asks for.
    TwiceTheHosts,
    /// The same instances fall again and again, for longer than a window.
    NoRecovery,
    /// For more than two windows without a pause of one.
    TwoWindows,
    /// The rollback did not succeed either.
    RollbackFailed,
    /// The service is not well after it.
    UnhealthyAfter,
}

/// One line of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raise {
    /// Which reason.
    pub reason: Reason,
    /// All of these must hold.
    pub when: &'static [When],
    /// What it is then, at least.
    pub severity: Severity,
    /// As told in `why`.
    pub words: &'static str,
}

const fn raise(reason: Reason, when: &'static [When], severity: Severity, words: &'static str) -> Raise {
    Raise { reason, when, severity, words }
}

const MANY_LOCKS: &str = "many locks of the service are contended there at once";

/// The matrix. Of several lines that hold the worst counts, of equally bad ones the first.
pub const RAISES: &[Raise] = &[
    raise(Reason::MemoryCritical, &[When::WatchedOom], Severity::Sev2, "a watched service was OOM-killed meanwhile"),
    raise(Reason::OomKill, &[When::WatchedService], Severity::Sev2, "the victim belongs to a watched service"),
    raise(Reason::LockContention, &[When::Sustained], Severity::Sev2, "the lock has not moved for long"),
    raise(Reason::SqliteLockHeld, &[When::Sustained], Severity::Sev2, "the lock has been held for long"),
    raise(
        Reason::LockContention,
        &[When::WithRestartStorm],
        Severity::Sev2,
        "the service restarts again and again meanwhile",
    ),
    raise(
        Reason::SqliteLockHeld,
        &[When::WithRestartStorm],
        Severity::Sev2,
        "the service restarts again and again meanwhile",
    ),
    raise(
        Reason::LockContentionFleet,
        &[When::TwiceTheHosts],
        Severity::Sev2,
        "it is contended on twice as many hosts as make it the fleet's matter",
    ),
    raise(
        Reason::LockContentionFleet,
        &[When::WithRestartStorm],
        Severity::Sev2,
        "the service restarts again and again meanwhile",
    ),
    raise(Reason::LockContentionFleet, &[When::Sustained], Severity::Sev2, "the lock has been contended for long"),
    raise(
        Reason::RestartStorm,
        &[When::NoRecovery],
        Severity::Sev1,
        "it has crashed again and again for longer than a window and does not recover",
    ),
    raise(
        Reason::RestartStorm,
        &[When::TwoWindows],
        Severity::Sev1,
        "it has gone on for more than two windows without a pause",
    ),
    raise(Reason::LockContention, &[When::ManySubjects], Severity::Sev2, MANY_LOCKS),
    raise(Reason::SqliteLockHeld, &[When::ManySubjects], Severity::Sev2, MANY_LOCKS),
    raise(
        Reason::RepoLocked,
        &[When::ManySubjects],
        Severity::Sev2,
        "many repositories of the service are locked there",
    ),
    raise(Reason::RepoLocked, &[When::Widespread], Severity::Sev2, "it is widespread"),
    raise(
        Reason::RepoLocked,
        &[When::WithRestartStorm],
        Severity::Sev2,
        "the service restarts again and again meanwhile",
    ),
    raise(Reason::ProviderRateLimited, &[When::Widespread], Severity::Sev2, "it is widespread"),
    raise(Reason::NetworkError, &[When::Widespread], Severity::Sev2, "it is widespread"),
    raise(Reason::Timeout, &[When::Widespread], Severity::Sev2, "it is widespread"),
    raise(Reason::InstallFailed, &[When::FleetWide], Severity::Sev2, "it fails fleet-wide"),
    raise(Reason::ProbeBlind, &[When::Widespread], Severity::Sev3, "the same probe is blind on many hosts"),
    raise(
        Reason::PermanentError,
        &[When::FleetWide, When::Prolonged],
        Severity::Sev1,
        "it is global and has gone on for long",
    ),
    raise(
        Reason::RetryBudgetExceeded,
        &[When::FleetWide, When::Prolonged],
        Severity::Sev1,
        "it is global and has gone on for long",
    ),
    raise(Reason::UpdateFailed, &[When::RollbackFailed], Severity::Sev1, "its rollback failed as well"),
    raise(Reason::UpdateFailed, &[When::UnhealthyAfter], Severity::Sev1, "the service is not well after it"),
    raise(Reason::UpdateRollback, &[When::RollbackFailed], Severity::Sev1, "the rollback failed"),
    raise(Reason::UpdateRollback, &[When::UnhealthyAfter], Severity::Sev1, "the service is not well after it"),
];

/// What `reason`, told with `told`, is under these circumstances, and the line that made it so, if one did.
pub fn raised(policy: &Policy, reason: Reason, told: Severity, holds: &[When]) -> (Severity, Option<&'static Raise>) {
    if let Some(severity) = policy.severities.get(&reason) {
        return (*severity, None);
    }
    let met = RAISES.iter().filter(|line| line.reason == reason && line.when.iter().all(|when| holds.contains(when)));
    match met.reduce(|worst, line| if line.severity > worst.severity { line } else { worst }) {
        Some(line) if line.severity > told => (line.severity, Some(line)),
        _ => (told, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_circumstances_of_a_line_must_hold() {
        let policy = Policy::default();
        let of = |holds: &[When]| raised(&policy, Reason::PermanentError, Severity::Sev2, holds).0;
        assert_eq!(of(&[When::FleetWide]), Severity::Sev2);
        assert_eq!(of(&[When::Prolonged]), Severity::Sev2);
        assert_eq!(of(&[When::Prolonged, When::FleetWide]), Severity::Sev1);
    }

    #[test]
    fn a_line_never_lowers_and_a_policy_is_obeyed() {
        let mut policy = Policy::default();
        let (severity, line) = raised(&policy, Reason::OomKill, Severity::Sev1, &[When::WatchedService]);
        assert_eq!((severity, line), (Severity::Sev1, None));
        policy.severities.insert(Reason::OomKill, Severity::Sev4);
        let (severity, line) = raised(&policy, Reason::OomKill, Severity::Sev3, &[When::WatchedService]);
        assert_eq!((severity, line), (Severity::Sev4, None));
    }

    #[test]
    fn each_line_raises_above_the_default() {
        for line in RAISES {
            assert!(line.severity > line.reason.default_severity(), "{line:?}");
            assert!(!line.words.is_empty() && !line.when.is_empty());
        }
    }
}

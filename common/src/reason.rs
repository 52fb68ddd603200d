//! Reason codes: the closed list of what can be wrong, with kind and default severity.
//!
//! A code is a contract: dashboards, silences and runbooks refer to it. Add freely, never rename.

use crate::severity::Severity;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How a reason behaves over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasonKind {
    /// Opens and clears. Only evidence of health clears it.
    Condition,
    /// A point in time.
    Occurrence,
    /// Concluded by the coordinator about the fleet; never sent by an agent.
    Conclusion,
}

macro_rules! reasons {
    ($($name:ident $code:literal $kind:ident $severity:ident $doc:literal),* $(,)?) => {
        /// What is wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Reason {
            $(#[doc = $doc] $name,)*
        }

        impl Reason {
            /// Every reason, in the order of the table below.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The snake_case code.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// Condition, occurrence or conclusion.
            pub const fn kind(self) -> ReasonKind {
                match self { $(Self::$name => ReasonKind::$kind,)* }
            }

            /// Severity before policy and raising rules.
            pub const fn default_severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity,)* }
            }

            /// One sentence for people.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $doc,)* }
            }
        }
    };
}

reasons! {
    ProcessDown "process_down" Condition Sev2 "The watched process has ended and no successor is known.",
    ProcessZombie "process_zombie" Condition Sev2 "The process has ended but its parent has not reaped it.",
    ProcessStopped "process_stopped" Condition Sev2 "The process lives and does not run: a signal or a debugger stopped it.",
    ZombieChildren "zombie_children" Condition Sev4 "The service does not reap its children.",
    ProcessRestarted "process_restarted" Occurrence Sev4 "Another instance (pid, start time) of the process runs now.",
    PidFileMissing "pid_file_missing" Condition Sev3 "The pid file does not exist.",
    PidFileStale "pid_file_stale" Condition Sev3 "The pid file names a process that does not exist or is another one.",
    PidFileMalformed "pid_file_malformed" Condition Sev3 "The pid file's content is not one pid.",
    PidFileOrphaned "pid_file_orphaned" Condition Sev3 "The service runs, but its pid file does not say so.",
    PortClosed "port_closed" Condition Sev2 "Nobody listens on the port.",
    PortUnresponsive "port_unresponsive" Condition Sev2 "The port is listened on but connections are not accepted.",
    PortConflict "port_conflict" Condition Sev2 "The port is held by a process of another service.",
    HealthCheckFailed "health_check_failed" Condition Sev2 "The service's own health endpoint says it is not well.",
    CertificateExpiring "certificate_expiring" Condition Sev3 "The TLS certificate that the service presents runs out soon.",
    MemoryApproaching "memory_approaching" Condition Sev4 "MemAvailable is below the approaching threshold.",
    MemoryCritical "memory_critical" Condition Sev3 "MemAvailable is below the critical threshold.",
    MemoryPressure "memory_pressure" Condition Sev3 "Processes stall for memory, or the service is at the limit of its own cgroup.",
    OomKill "oom_kill" Occurrence Sev3 "The kernel's OOM killer killed a process.",
    SqliteCorrupt "sqlite_corrupt" Condition Sev1 "The database is damaged.",
    SqliteNotADatabase "sqlite_not_a_database" Condition Sev1 "The file is not a SQLite database.",
    SqliteMissing "sqlite_missing" Condition Sev2 "The database file does not exist.",
    SqliteReplaced "sqlite_replaced" Condition Sev2 "The path names another file (inode) than before.",
    SqliteShrunk "sqlite_shrunk" Condition Sev2 "The database became much smaller or was truncated.",
    SqliteLockHeld "sqlite_lock_held" Condition Sev3 "A lock on the database is held without progress.",
    SqliteWalGrowth "sqlite_wal_growth" Condition Sev3 "The write-ahead log grows without being checkpointed.",
    SqliteJournalHot "sqlite_journal_hot" Condition Sev3 "A rollback journal waits to be rolled back and nobody does it.",
    SqliteRowsLost "sqlite_rows_lost" Condition Sev1 "Committed rows are no longer in the database.",
    SqliteForeignKeys "sqlite_foreign_keys" Condition Sev3 "Rows refer to rows that do not exist.",
    BackupMissing "backup_missing" Condition Sev3 "No backup matches the pattern.",
    BackupStale "backup_stale" Condition Sev3 "The newest backup is older than allowed.",
    BackupShrunk "backup_shrunk" Condition Sev2 "A good backup was overwritten by an empty or much smaller one.",
    BackupCorrupt "backup_corrupt" Condition Sev2 "The newest backup is damaged.",
    UnitFailed "unit_failed" Condition Sev2 "The systemd unit is in the failed state.",
    UnitInactive "unit_inactive" Condition Sev2 "The systemd unit is not active although it is watched.",
    UnitMissing "unit_missing" Condition Sev3 "The systemd unit does not exist, or its file cannot be loaded.",
    UnitStuck "unit_stuck" Condition Sev3 "The systemd unit has been starting or stopping for too long.",
    RestartLoop "restart_loop" Condition Sev2 "The service keeps restarting.",
    LockContention "lock_contention" Condition Sev3 "Processes wait for a lock that does not move.",
    RepoLocked "repo_locked" Occurrence Sev3 "A repository operation found the lock taken.",
    DiskSpaceLow "disk_space_low" Condition Sev3 "The file system has little space left.",
    DiskInodesLow "disk_inodes_low" Condition Sev3 "The file system has few inodes left.",
    DiskReadOnly "disk_read_only" Condition Sev2 "The file system was remounted read-only.",
    FdExhaustion "fd_exhaustion" Condition Sev3 "The process is close to its limit of open files.",
    MemoryGrowth "memory_growth" Condition Sev4 "The process's memory grows without bound.",
    BaselineDrift "baseline_drift" Condition Sev4 "A declared setting differs from the applied one.",
    ClockSkew "clock_skew" Condition Sev4 "The host's clock differs from the coordinator's, or nothing keeps it right any more.",
    ClockJumped "clock_jumped" Occurrence Sev4 "The host's wall clock was set.",
    PermissionInsecure "permission_insecure" Condition Sev4 "A file is more open than it should be.",
    ProbeBlind "probe_blind" Condition Sev4 "A probe has not been able to answer for long.",
    QueryThreshold "query_threshold" Condition Sev3 "A read-only SQL assertion is violated.",
    ProviderRateLimited "provider_rate_limited" Occurrence Sev3 "A provider answered that the caller is too fast.",
    NetworkError "network_error" Occurrence Sev3 "A network operation failed.",
    Timeout "timeout" Occurrence Sev3 "An operation took longer than allowed.",
    RetryBudgetExceeded "retry_budget_exceeded" Occurrence Sev2 "Retries were used up without success.",
    PermanentError "permanent_error" Occurrence Sev2 "An operation failed in a way that retrying cannot mend.",
    PermissionDenied "permission_denied" Occurrence Sev3 "An operation was refused for lack of permission.",
    ResourceExhausted "resource_exhausted" Occurrence Sev3 "An operation found a resource of the host used up.",
    DatabaseBusy "database_busy" Occurrence Sev3 "A database operation gave up on a lock.",
    DatabaseError "database_error" Occurrence Sev2 "A program was told by its database that it is damaged or cannot be written.",
    PreflightWarning "preflight_warning" Occurrence Sev4 "A check before new work warned.",
    LogError "log_error" Occurrence Sev4 "A log has a line that a rule was waiting for.",
    UpdateFailed "update_failed" Occurrence Sev2 "An update did not complete.",
    UpdateRollback "update_rollback" Occurrence Sev2 "An update was rolled back.",
    InstallFailed "install_failed" Occurrence Sev3 "An installation did not complete.",
    RepoConflicts "repo_conflicts" Occurrence Sev4 "A repository has conflicts.",
    RepoStagedChanges "repo_staged_changes" Occurrence Sev4 "A repository has staged changes.",
    RepoUnstagedChanges "repo_unstaged_changes" Occurrence Sev4 "A repository has unstaged changes.",
    RepoUntrackedFiles "repo_untracked_files" Occurrence Sev4 "A repository has untracked files.",
    NonFastForward "non_fast_forward" Occurrence Sev4 "A repository update is not a fast-forward.",
    Change "change" Occurrence Sev4 "Something was deployed, upgraded, edited or rebooted.",
    AgentStale "agent_stale" Conclusion Sev3 "An agent has not been heard for too long.",
    MassStale "mass_stale" Conclusion Sev1 "Many agents fell silent together.",
    RestartStorm "restart_storm" Conclusion Sev2 "Services restart again and again, on one host or on many.",
    LockContentionFleet "lock_contention_fleet" Conclusion Sev3 "The same lock is contended on several hosts.",
    OomStorm "oom_storm" Conclusion Sev2 "Many OOM kills in a short time.",
    DuplicateInstance "duplicate_instance" Condition Sev2 "A singleton runs more than once.",
    AgentIdentityConflict "agent_identity_conflict" Conclusion Sev2 "Two living agents present the same certificate.",
    AgentFlood "agent_flood" Conclusion Sev2 "One agent tells of more causes than incidents are opened for it.",
    IncidentBurst "incident_burst" Conclusion Sev2 "Many incidents began within a short time, and nothing explains them together.",
    ReasonWidespread "reason_widespread" Conclusion Sev2 "The same reason appears on many hosts.",
    CorruptionSpread "corruption_spread" Conclusion Sev1 "The same database is corrupt on several hosts.",
    AuthAbuse "auth_abuse" Conclusion Sev3 "Repeated refused credentials.",
    VersionSkew "version_skew" Conclusion Sev4 "Agents of too many versions are connected.",
    CoordinatorUnreachable "coordinator_unreachable" Conclusion Sev1 "The standby does not hear the primary.",
    CoordinatorIsolated "coordinator_isolated" Conclusion Sev1 "The primary lost its standby and most agents together.",
    CoordinatorFault "coordinator_fault" Conclusion Sev2 "The coordinator could not do its own work: a rule panicked, or a receiver took no page.",
    UnknownCondition "unknown_condition" Condition Sev3 "A newer agent tells of a state that this coordinator has no reason code for.",
    UnknownOccurrence "unknown_occurrence" Occurrence Sev3 "A newer agent tells of an event that this coordinator has no reason code for.",
}

impl Reason {
    /// What stands for a code that this program does not know, where one of `kind` is told.
    pub const fn stand_in(kind: ReasonKind) -> Self {
        match kind {
            ReasonKind::Occurrence => Self::UnknownOccurrence,
            ReasonKind::Condition | ReasonKind::Conclusion => Self::UnknownCondition,
        }
    }

    /// Whether it stands for another code: never told by an agent as its own.
    pub const fn is_stand_in(self) -> bool {
        matches!(self, Self::UnknownCondition | Self::UnknownOccurrence)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An unknown reason code, with the nearest known one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown reason code {found:?}{}", crate::config::did_you_mean(.nearest.as_deref()))]
pub struct UnknownReason {
    /// What was given.
    pub found: String,
    /// What was probably meant.
    pub nearest: Option<String>,
}

impl FromStr for Reason {
    type Err = UnknownReason;
    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == text).ok_or_else(|| UnknownReason {
            found: crate::limits::clip(text, 64),
            nearest: crate::config::nearest(text, Self::ALL.iter().map(|reason| reason.as_str())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_round_trip() {
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(*reason));
            assert_eq!(serde_json::to_string(reason).unwrap(), format!("\"{reason}\""));
        }
    }

    #[test]
    fn a_misspelt_code_names_the_nearest() {
        let error = "sqlite_corupt".parse::<Reason>().unwrap_err();
        assert_eq!(error.to_string(), "unknown reason code \"sqlite_corupt\", did you mean \"sqlite_corrupt\"?");
    }
}

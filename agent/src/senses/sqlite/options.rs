//! What can be chosen about one database.

use super::CountedTable;
use std::path::PathBuf;
use std::time::Duration;

/// Longest pass over one database in `doctor`.
const ONE_SHOT_BOUND: Duration = Duration::from_secs(1);
/// The pass in place before a deep check of `doctor`.
const DEEP_GLANCE: Duration = Duration::from_millis(250);
/// What the reading of a glance says.
pub const NOT_DEEP: &str = "not made: checked quickly; doctor --deep checks all of it";

/// How one database is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteOptions {
    /// Least time between two full quick checks of a database that changes.
    pub quick_interval: Duration,
    /// Time between two deep checks (on a copy).
    pub deep_interval: Duration,
    /// The agent's own folder for copies. Without it there are no deep checks, except in `doctor`, which takes the
    /// system's folder for temporary files.
    pub scratch_dir: Option<PathBuf>,
    /// Larger databases are not copied.
    pub deep_bytes_max: u64,
    /// A deep check ends after this.
    pub deep_time_max: Duration,
    /// A quick check ends after this.
    pub quick_bound: Duration,
    /// A lock held this long without progress is a problem.
    pub lock_held_after: Duration,
    /// A write-ahead log may hold this much; without it half of the database, within bounds.
    pub wal_max_bytes: Option<u64>,
    /// Tables whose rows are counted.
    pub rows: Vec<CountedTable>,
    /// Rows that refer to nothing are looked for.
    pub foreign_keys: bool,
    /// How much `doctor` reads.
    pub one_shot: OneShot,
}

/// How much of a database `doctor` reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum OneShot {
    /// All of it where that takes no longer than a moment, and `integrity_check` of a small one.
    #[default]
    Moment,
    /// What fits in this; the rest is no question, and the reading says that it was left.
    Glance(Duration),
    /// All of it, on a copy below this folder of its own, within this.
    Deep(PathBuf, Duration),
}

impl OneShot {
    /// How long one pass in place may take.
    pub(super) const fn bound(&self) -> Duration {
        match self {
            Self::Moment => ONE_SHOT_BOUND,
            Self::Glance(bound) => *bound,
            // The copy is what tells; in place it is looked at as ever.
            Self::Deep(..) => DEEP_GLANCE,
        }
    }
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self {
            quick_interval: Duration::from_secs(300),
            deep_interval: Duration::from_secs(24 * 3600),
            scratch_dir: None,
            deep_bytes_max: 4 << 30,
            deep_time_max: Duration::from_secs(300),
            quick_bound: Duration::from_millis(250),
            lock_held_after: Duration::from_secs(10),
            wal_max_bytes: None,
            rows: Vec::new(),
            foreign_keys: false,
            one_shot: OneShot::default(),
        }
    }
}

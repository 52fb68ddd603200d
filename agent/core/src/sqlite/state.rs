//! The state of a database on disk, and the one way in which each state may be looked at.
//!
//! Invariant: a state never leads to an access that could report damage that is not there. What does not fit a recipe
//! is `Changing`, and the probe answers unknown.

use super::header::{Header, JournalHeader, WalIndex};
use serde::{Deserialize, Serialize};

/// Identity and size of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileFacts {
    /// Device.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Size.
    pub size_bytes: u64,
    /// Last change of the content, nanoseconds since the Unix epoch.
    pub modified_ns: i128,
    /// Last change of the inode; unlike the time above nobody can set it back.
    pub changed_ns: i128,
}

/// The kernel stamps files by a clock that ticks up to every 10 ms: two writes within a tick look like one.
const TICK_NS: i128 = 40_000_000;
/// A time without digits below a millisecond comes from a file system that keeps whole seconds, or two.
const COARSE_TICK_NS: i128 = 3_000_000_000;
const MILLISECOND_NS: i128 = 1_000_000;

impl FileFacts {
    /// True when a write after `wall_ns` (the time of the look) cannot have left the same time of modification.
    pub const fn settled(&self, wall_ns: i128) -> bool {
        let tick_ns = if self.modified_ns % MILLISECOND_NS == 0 { COARSE_TICK_NS } else { TICK_NS };
        (wall_ns - self.modified_ns).abs() >= tick_ns
    }
}

/// Which locks *other* processes hold; `None` is free, `Some(None)` held by someone whose pid is hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LockFacts {
    /// Any lock on the shared range: a reader, or an idle connection in WAL mode.
    pub shared: Option<Option<u32>>,
    /// A write transaction has begun.
    pub reserved: Option<Option<u32>>,
    /// A writer waits for readers to leave, or is about to write.
    pub pending: Option<Option<u32>>,
    /// The database itself is being written, or is held in exclusive mode.
    pub exclusive: Option<Option<u32>>,
    /// The write lock of WAL mode (byte 120 of the -shm).
    pub wal_write: Option<Option<u32>>,
    /// The checkpointer's (byte 121).
    pub wal_checkpoint: Option<Option<u32>>,
    /// Held while the wal-index is rebuilt (byte 122).
    pub wal_recover: Option<Option<u32>>,
}

impl LockFacts {
    /// True when a writer is, or may be, between two states of the file.
    pub const fn writing(&self) -> bool {
        self.reserved.is_some() || self.pending.is_some() || self.exclusive.is_some()
    }

    /// True when nobody holds anything.
    pub fn none(&self) -> bool {
        *self == Self::default()
    }

    /// The strongest lock that keeps others from writing or the log from being moved back, with its holder.
    pub const fn strongest(&self) -> Option<(LockName, Option<u32>)> {
        match self {
            Self { exclusive: Some(pid), .. } => Some((LockName::Exclusive, *pid)),
            Self { pending: Some(pid), .. } => Some((LockName::Pending, *pid)),
            Self { reserved: Some(pid), .. } => Some((LockName::Reserved, *pid)),
            Self { wal_recover: Some(pid), .. } => Some((LockName::WalRecover, *pid)),
            Self { wal_write: Some(pid), .. } => Some((LockName::WalWrite, *pid)),
            Self { wal_checkpoint: Some(pid), .. } => Some((LockName::WalCheckpoint, *pid)),
            _ => None,
        }
    }
}

/// The locks that keep others from writing, or the log from being moved back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockName {
    /// RESERVED.
    Reserved,
    /// PENDING.
    Pending,
    /// EXCLUSIVE.
    Exclusive,
    /// The write lock of WAL mode.
    WalWrite,
    /// The checkpointer's lock of WAL mode.
    WalCheckpoint,
    /// The lock under which the wal-index is rebuilt.
    WalRecover,
}

impl LockName {
    /// As SQLite's documentation calls it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reserved => "RESERVED",
            Self::Pending => "PENDING",
            Self::Exclusive => "EXCLUSIVE",
            Self::WalWrite => "WAL write lock",
            Self::WalCheckpoint => "WAL checkpoint lock",
            Self::WalRecover => "WAL recovery lock",
        }
    }

    /// In a sentence: `RESERVED lock`.
    pub const fn as_phrase(self) -> &'static str {
        match self {
            Self::Reserved => "RESERVED lock",
            Self::Pending => "PENDING lock",
            Self::Exclusive => "EXCLUSIVE lock",
            other => other.as_str(),
        }
    }
}

/// Everything that was read of a database and its siblings before (or after) a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The database file.
    pub database: FileFacts,
    /// Its first bytes, as they are.
    pub header_bytes: Vec<u8>,
    /// The same, understood.
    pub header: Option<Header>,
    /// The rollback journal.
    pub journal: Option<FileFacts>,
    /// Its header, when it is one that would be rolled back.
    pub journal_header: Option<JournalHeader>,
    /// The write-ahead log.
    pub wal: Option<FileFacts>,
    /// The wal-index.
    pub shm: Option<FileFacts>,
    /// Its header, when it was at rest.
    pub wal_index: Option<WalIndex>,
    /// Who locks it.
    pub locks: LockFacts,
}

/// How the database may be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Zero bytes: a valid database without tables.
    Empty,
    /// It does not begin like a database.
    NotADatabase,
    /// WAL mode with -wal and -shm: `mode=ro`.
    LiveWal,
    /// WAL mode with a -wal that has content, but no -shm: a private copy of both.
    WalWithoutIndex,
    /// Nobody writes and nothing is pending: `immutable=1`, believed only if nothing changed meanwhile.
    AtRest,
    /// Rollback mode and a writer is at it: `mode=ro`, for at most 20 ms.
    RollbackLive,
    /// A journal with content that nobody is writing: never opened.
    HotJournal,
    /// Held exclusively: nobody else may read.
    Exclusive,
    /// Between two states; look again later.
    Changing,
}

impl State {
    /// What a person calls it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NotADatabase => "not a database",
            Self::LiveWal => "write-ahead log in use",
            Self::WalWithoutIndex => "write-ahead log without its index",
            Self::AtRest => "at rest",
            Self::RollbackLive => "being written (rollback journal)",
            Self::HotJournal => "hot journal",
            Self::Exclusive => "locked exclusively",
            Self::Changing => "changing",
        }
    }
}

impl Snapshot {
    /// The state.
    pub fn state(&self) -> State {
        let Some(header) = &self.header else {
            // A new database is written through the journal or the log first: empty is its true state on disk.
            return match self.database.size_bytes {
                0 => State::Empty,
                _ if self.locks.writing() => State::Changing,
                _ => State::NotADatabase,
            };
        };
        if self.locks.exclusive.is_some() {
            return State::Exclusive;
        }
        if self.journal_header.is_some() {
            return if self.locks.writing() { State::RollbackLive } else { State::HotJournal };
        }
        let wal_bytes = self.wal.map_or(0, |wal| wal.size_bytes);
        let shm_bytes = self.shm.map_or(0, |shm| shm.size_bytes);
        // SQLite replays a -wal that lies beside the database whatever the header's version says.
        if wal_bytes > 0 {
            return if shm_bytes > 0 { State::LiveWal } else { State::WalWithoutIndex };
        }
        if header.is_wal() {
            return match self.locks.shared {
                None if !self.locks.writing() => State::AtRest,
                _ if self.wal.is_some() && shm_bytes > 0 => State::LiveWal,
                _ => State::Changing,
            };
        }
        if self.locks.writing() { State::RollbackLive } else { State::AtRest }
    }

    /// True when `later` shows that nothing was written in between: the answer of a lock-free check may be believed,
    /// with certainty only where the times were [`settled`](Self::settled) before.
    pub fn undisturbed(&self, later: &Self) -> bool {
        let same_content = self.database == later.database && self.header_bytes == later.header_bytes;
        let same_log =
            self.wal == later.wal && self.journal == later.journal && self.journal_header == later.journal_header;
        let same_state = self.state() == later.state();
        same_content && same_log && same_state && !self.locks.writing() && !later.locks.writing()
    }

    /// True when a transaction that is written and rolled back after `wall_ns` would show in the times of the files.
    pub fn settled(&self, wall_ns: i128) -> bool {
        self.database.settled(wall_ns) && self.wal.is_none_or(|wal| wal.settled(wall_ns))
    }

    /// Equal tokens mean that no transaction was committed in between, so that a check can be skipped.
    pub fn token(&self) -> Token {
        Token {
            database: self.database,
            header_bytes: self.header_bytes.clone(),
            wal: self.wal.map(|wal| (wal.inode, wal.size_bytes, wal.modified_ns)),
            index_change_counter: self.wal_index.map(|index| index.change_counter),
        }
    }

    /// What moves when the holder of a lock gets on with its work.
    pub fn progress(&self) -> Progress {
        Progress {
            token: self.token(),
            frame_max: self.wal_index.map(|index| index.frame_max),
            journal: self.journal.map(|journal| (journal.inode, journal.size_bytes, journal.modified_ns)),
        }
    }

    /// Bytes that are missing at the end of the file, by its own header. `None` while a log may still hold them, or
    /// where the header does not say.
    pub fn missing_bytes(&self) -> Option<u64> {
        if self.wal.is_some_and(|wal| wal.size_bytes > 0) || self.locks.writing() || self.journal_header.is_some() {
            return None;
        }
        let missing = self.header.as_ref()?.expected_bytes()?.checked_sub(self.database.size_bytes)?;
        (missing > 0).then_some(missing)
    }
}

/// See [`Snapshot::token`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Token {
    database: FileFacts,
    header_bytes: Vec<u8>,
    wal: Option<(u64, u64, i128)>,
    index_change_counter: Option<u32>,
}

/// See [`Snapshot::progress`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Progress {
    token: Token,
    frame_max: Option<u32>,
    journal: Option<(u64, u64, i128)>,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn snapshot(wal_mode: bool) -> Snapshot {
        let version = if wal_mode { 2 } else { 1 };
        let file = FileFacts { device: 1, inode: 2, size_bytes: 8192, modified_ns: 5, changed_ns: 5 };
        let header = Header {
            page_bytes: Some(4096),
            write_version: version,
            read_version: version,
            change_counter: 1,
            page_count: Some(2),
            schema_cookie: 1,
            auto_vacuum: false,
        };
        Snapshot {
            database: file,
            header_bytes: vec![version],
            header: Some(header),
            journal: None,
            journal_header: None,
            wal: None,
            shm: None,
            wal_index: None,
            locks: LockFacts::default(),
        }
    }

    fn sized(size_bytes: u64) -> Option<FileFacts> {
        Some(FileFacts { device: 1, inode: 3, size_bytes, modified_ns: 5, changed_ns: 5 })
    }

    #[test]
    fn each_state_has_its_recipe() {
        let closed = snapshot(true);
        assert_eq!(closed.state(), State::AtRest);
        let empty_log = Snapshot { wal: sized(0), ..closed.clone() };
        assert_eq!(empty_log.state(), State::AtRest);
        let alone = Snapshot { wal: sized(4152), ..closed.clone() };
        assert_eq!(alone.state(), State::WalWithoutIndex);
        let live = Snapshot { shm: sized(32768), ..alone };
        assert_eq!(live.state(), State::LiveWal);
        let idle = LockFacts { shared: Some(Some(9)), ..LockFacts::default() };
        assert_eq!(Snapshot { locks: idle, ..closed.clone() }.state(), State::Changing);
        let fresh = Snapshot { locks: idle, shm: sized(32768), wal: sized(0), ..closed };
        assert_eq!(fresh.state(), State::LiveWal);
    }

    #[test]
    fn a_journal_is_hot_only_without_a_writer() {
        let mut rollback = snapshot(false);
        assert_eq!(rollback.state(), State::AtRest);
        rollback.journal = sized(512);
        assert_eq!(rollback.state(), State::AtRest, "a zeroed header is a finished transaction");
        rollback.journal_header = Some(JournalHeader { nonce: 1 });
        assert_eq!(rollback.state(), State::HotJournal);
        rollback.locks.reserved = Some(None);
        assert_eq!(rollback.state(), State::RollbackLive);
        rollback.locks.exclusive = Some(None);
        assert_eq!(rollback.state(), State::Exclusive);
    }

    #[test]
    fn truncation_is_judged_only_at_rest() {
        let mut cut = snapshot(true);
        cut.database.size_bytes = 4096;
        assert_eq!(cut.missing_bytes(), Some(4096));
        cut.wal = sized(4152);
        assert_eq!(cut.missing_bytes(), None);
    }

    #[test]
    fn a_file_that_was_written_within_a_tick_proves_nothing() {
        const SECOND_NS: i128 = 1_000_000_000;
        let at = |modified_ns| FileFacts { modified_ns, ..snapshot(false).database };
        assert!(!at(10 * SECOND_NS + 1).settled(10 * SECOND_NS + 4_000_000));
        assert!(at(10 * SECOND_NS + 1).settled(10 * SECOND_NS + 50_000_000));
        assert!(!at(10 * SECOND_NS).settled(12 * SECOND_NS), "a file system that keeps whole seconds");
        assert!(at(10 * SECOND_NS).settled(14 * SECOND_NS));
        assert!(at(99 * SECOND_NS + 1).settled(14 * SECOND_NS), "a write now would not be stamped in the future");
        let mut log = snapshot(true);
        log.wal = Some(at(10 * SECOND_NS + 1));
        assert!(!log.settled(10 * SECOND_NS + 4_000_000), "the log counts too");
    }

    #[test]
    fn a_writer_before_or_after_disturbs() {
        let quiet = snapshot(false);
        assert!(quiet.undisturbed(&quiet));
        let mut later = quiet.clone();
        later.locks.pending = Some(Some(4));
        assert!(!quiet.undisturbed(&later));
        later.locks = LockFacts { shared: Some(Some(4)), ..LockFacts::default() };
        assert!(quiet.undisturbed(&later));
        later.database.modified_ns += 1;
        assert!(!quiet.undisturbed(&later));
    }
}

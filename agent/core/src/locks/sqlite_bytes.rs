//! What SQLite's lock bytes mean: in the database file for the rollback journal, in the `-shm` for write-ahead logging.

use super::table::{Lock, Mode};
use std::fmt;

/// PENDING; the other bytes of the database file follow it.
pub const PENDING_BYTE: u64 = 0x4000_0000;
/// RESERVED.
pub const RESERVED_BYTE: u64 = PENDING_BYTE + 1;
/// First byte of the shared range.
pub const SHARED_FIRST: u64 = PENDING_BYTE + 2;
/// Bytes of the shared range.
pub const SHARED_BYTES: u64 = 510;
/// The writer's slot of the `-shm`.
pub const WAL_WRITE_BYTE: u64 = 120;
/// The checkpointer's.
pub const WAL_CHECKPOINT_BYTE: u64 = 121;
/// Who rebuilds the wal-index after a crash.
pub const WAL_RECOVER_BYTE: u64 = 122;
/// The first of five readers' marks.
pub const WAL_READ_BYTE_FIRST: u64 = 123;
/// The last one.
pub const WAL_READ_BYTE_LAST: u64 = 127;
/// The dead man's switch: whoever has the `-shm` open.
pub const WAL_OPEN_BYTE: u64 = 128;

/// Which of a database's files a lock is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The database.
    Database,
    /// Its `-shm`.
    WalIndex,
}

/// What a lock is for. In the order of how much it keeps others from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Has a wal-index open.
    Open,
    /// Reads, or in WAL mode has the database open.
    Shared,
    /// Reads what the log held at one moment: mark 0 to 4.
    Reader(u8),
    /// Moves frames from the log to the database.
    Checkpointer,
    /// Writes to the log.
    Writer,
    /// Rebuilds the wal-index.
    Recoverer,
    /// Has begun a write transaction.
    Reserved,
    /// Waits for readers to leave, and lets no new ones in.
    Pending,
    /// Writes the database, or keeps it to itself (`locking_mode=EXCLUSIVE`).
    Exclusive,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("has it open"),
            Self::Shared => f.write_str("SHARED"),
            Self::Reader(mark) => write!(f, "WAL reader at mark {mark}"),
            Self::Checkpointer => f.write_str("WAL checkpointer"),
            Self::Writer => f.write_str("WAL writer"),
            Self::Recoverer => f.write_str("WAL recovery"),
            Self::Reserved => f.write_str("RESERVED"),
            Self::Pending => f.write_str("PENDING"),
            Self::Exclusive => f.write_str("EXCLUSIVE"),
        }
    }
}

/// Everything one lock is for, weakest first.
pub fn roles(lock: &Lock, part: Part) -> Vec<Role> {
    let write = lock.mode == Mode::Write;
    let covers = |byte: u64| lock.covers(byte, byte);
    let mut roles = Vec::new();
    match part {
        Part::Database => {
            let shared = lock.covers(SHARED_FIRST, SHARED_FIRST + SHARED_BYTES - 1);
            roles.extend((shared && !write).then_some(Role::Shared));
            roles.extend((write && covers(RESERVED_BYTE)).then_some(Role::Reserved));
            // A reader takes a read lock on this byte for a moment: only a writer's counts.
            roles.extend((write && covers(PENDING_BYTE)).then_some(Role::Pending));
            roles.extend((shared && write).then_some(Role::Exclusive));
        }
        Part::WalIndex => {
            roles.extend(covers(WAL_OPEN_BYTE).then_some(Role::Open));
            let marks = (0u8..).zip(WAL_READ_BYTE_FIRST..=WAL_READ_BYTE_LAST);
            roles.extend(marks.filter(|(_, byte)| !write && covers(*byte)).map(|(mark, _)| Role::Reader(mark)));
            let slots = [
                (WAL_CHECKPOINT_BYTE, Role::Checkpointer),
                (WAL_WRITE_BYTE, Role::Writer),
                (WAL_RECOVER_BYTE, Role::Recoverer),
            ];
            roles.extend(slots.into_iter().filter(|(byte, _)| write && covers(*byte)).map(|(_, role)| role));
        }
    }
    roles
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locks::table::parse_line;

    fn check(part: Part, mode: &str, range: &str, expected: &[Role]) {
        let lock = parse_line(&format!("1: POSIX  ADVISORY  {mode} 7 fe:00:9 {range}")).unwrap();
        assert_eq!(roles(&lock, part), expected, "{part:?} {mode} {range}");
    }

    #[test]
    fn every_byte_has_its_meaning() {
        use Part::{Database, WalIndex};
        check(Database, "READ", "1073741826 1073742335", &[Role::Shared]);
        check(Database, "WRITE", "1073741825 1073741825", &[Role::Reserved]);
        check(Database, "WRITE", "1073741824 1073741825", &[Role::Reserved, Role::Pending]);
        check(Database, "READ", "1073741824 1073741824", &[]);
        check(Database, "WRITE", "1073741824 1073742335", &[Role::Reserved, Role::Pending, Role::Exclusive]);
        check(Database, "WRITE", "0 EOF", &[Role::Reserved, Role::Pending, Role::Exclusive]);
        check(Database, "WRITE", "0 99", &[]);
        check(WalIndex, "READ", "128 128", &[Role::Open]);
        check(WalIndex, "WRITE", "120 120", &[Role::Writer]);
        check(WalIndex, "WRITE", "121 121", &[Role::Checkpointer]);
        check(WalIndex, "WRITE", "120 122", &[Role::Checkpointer, Role::Writer, Role::Recoverer]);
        check(WalIndex, "READ", "124 124", &[Role::Reader(1)]);
        check(WalIndex, "READ", "127 128", &[Role::Open, Role::Reader(4)]);
        check(WalIndex, "WRITE", "124 127", &[]);
    }
}

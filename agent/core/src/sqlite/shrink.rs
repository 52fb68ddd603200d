//! Did a database lose its content, or was it only packed? A file much smaller than before is damage done by somebody,
//! or a VACUUM that somebody wanted: the header's counters tell them apart.

use super::header::Header;
use muster_common::evidence::Grade;
use serde::{Deserialize, Serialize};

/// A smaller loss is a few pages more or less.
const LOST_BYTES_MIN: u64 = 64 << 10;

/// How large a database was, and how far its counters stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Size of the file.
    pub size_bytes: u64,
    /// Of the header; never counts back, though in WAL mode it may stand still.
    pub change_counter: u32,
    /// Of the header; every VACUUM counts it on.
    pub schema_cookie: u32,
    /// The file may also become smaller without a VACUUM.
    pub auto_vacuum: bool,
}

impl Extent {
    /// Of a file of this size with this header.
    pub const fn new(size_bytes: u64, header: &Header) -> Self {
        let Header { change_counter, schema_cookie, auto_vacuum, .. } = *header;
        Self { size_bytes, change_counter, schema_cookie, auto_vacuum }
    }

    /// True when `now` has lost more than half.
    pub const fn halved(&self, now_bytes: u64) -> bool {
        now_bytes < self.size_bytes / 2 && self.size_bytes - now_bytes >= LOST_BYTES_MIN
    }

    /// How sure it is that content was lost between this and `now`. `None` when it is not much smaller, or when the
    /// database itself says that a transaction made it so: whoever deletes rows and runs VACUUM meant it.
    pub const fn lost(&self, now: &Self, same_file: bool) -> Option<Grade> {
        // The counters wrap around, as all of SQLite's do.
        let changes = now.change_counter.wrapping_sub(self.change_counter).cast_signed();
        let schemas = now.schema_cookie.wrapping_sub(self.schema_cookie).cast_signed();
        let packed = schemas > 0 || (schemas == 0 && (self.auto_vacuum || now.auto_vacuum));
        if !self.halved(now.size_bytes) {
            None
        } else if changes < 0 || !packed {
            // No VACUUM of this database: another one was written over it.
            Some(Grade::Likely)
        } else if same_file {
            None
        } else {
            Some(Grade::Possible)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vacuum_loses_nothing_and_an_older_database_does() {
        let before = Extent { size_bytes: 1 << 20, change_counter: 50, schema_cookie: 7, auto_vacuum: false };
        let small = Extent { size_bytes: 8192, ..before };
        let vacuumed = Extent { change_counter: 52, schema_cookie: 8, ..small };
        assert_eq!(before.lost(&vacuumed, true), None);
        assert_eq!(before.lost(&vacuumed, false), Some(Grade::Possible), "VACUUM INTO and a rename look the same");
        assert_eq!(before.lost(&Extent { change_counter: 2, schema_cookie: 1, ..small }, true), Some(Grade::Likely));
        assert_eq!(before.lost(&small, true), Some(Grade::Likely), "a VACUUM would have counted on");
        let automatic = Extent { auto_vacuum: true, ..small };
        assert_eq!(before.lost(&automatic, true), None, "it packs itself, and in WAL mode nothing need count on");
        assert_eq!(before.lost(&Extent { size_bytes: 600 << 10, ..small }, true), None, "not half of it");
        let tiny = Extent { size_bytes: 12_288, ..before };
        assert_eq!(tiny.lost(&Extent { size_bytes: 4096, ..small }, true), None, "a few pages");
        let wrapped = Extent { change_counter: u32::MAX, ..before };
        assert_eq!(wrapped.lost(&Extent { change_counter: 3, schema_cookie: 8, ..small }, true), None);
    }
}

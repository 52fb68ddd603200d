//! File locks: the kernel's table, what SQLite's lock bytes mean, who waits for whom and since when.
//!
//! The table has no timestamps, so every length of time here is "at least": since the first look that saw the same
//! thing. A short wait is what locks are for; only one that does not end is told.

pub mod contention;
pub mod cycle;
pub mod party;
pub mod sqlite_bytes;
pub mod table;

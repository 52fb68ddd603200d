//! systemd's journal files, read as they lie on disk: no program is started and no library of systemd is needed.
//!
//! A unit's entries are found by the file's own index, so a busy journal costs no more than the unit's own lines.

mod decompress;
mod hash;
mod layout;
mod reader;
#[cfg(test)]
mod tests;

pub use reader::{Chain, FIELD_BYTES_MAX, Header, JournalEntry, JournalError, JournalFile, Source};

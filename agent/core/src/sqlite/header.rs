//! The first bytes of a database, its journal, its write-ahead log and its wal-index. Everything is optional: hostile
//! bytes give `None`, never a panic.

/// Bytes of the database header.
pub const HEADER_BYTES: usize = 100;
/// Bytes of the journal header that are looked at.
pub const JOURNAL_HEADER_BYTES: usize = 28;
/// Bytes of the wal-index that are looked at: two copies of its header.
pub const WAL_INDEX_HEADER_BYTES: usize = 96;

const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const JOURNAL_MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];

/// The database header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// 512 to 65536; `None` when the bytes name no valid size.
    pub page_bytes: Option<u32>,
    /// 1 = rollback journal, 2 = write-ahead log, more = a newer SQLite or damage.
    pub write_version: u8,
    /// As above, for readers.
    pub read_version: u8,
    /// Counts transactions in rollback mode.
    pub change_counter: u32,
    /// Pages of the database, where the header's own stamp says that the number is valid.
    pub page_count: Option<u32>,
    /// Changes with the schema.
    pub schema_cookie: u32,
    /// Free pages are given back to the file system without a VACUUM.
    pub auto_vacuum: bool,
}

impl Header {
    /// Reads it; `None` when the file does not begin like a SQLite database.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.get(..16)? != MAGIC {
            return None;
        }
        let page_bytes = match u16::from_be_bytes([*bytes.get(16)?, *bytes.get(17)?]) {
            1 => Some(65_536),
            size if size >= 512 && size.is_power_of_two() => Some(u32::from(size)),
            _ => None,
        };
        let change_counter = be32(bytes, 24)?;
        let count = be32(bytes, 28)?;
        let valid = be32(bytes, 92)? == change_counter && count > 0;
        Some(Self {
            page_bytes,
            write_version: *bytes.get(18)?,
            read_version: *bytes.get(19)?,
            change_counter,
            page_count: valid.then_some(count),
            schema_cookie: be32(bytes, 40)?,
            auto_vacuum: be32(bytes, 52)? != 0,
        })
    }

    /// True for a database in WAL mode.
    pub const fn is_wal(&self) -> bool {
        self.write_version == 2 && self.read_version == 2
    }

    /// Bytes the file should have by its own header.
    pub fn expected_bytes(&self) -> Option<u64> {
        Some(u64::from(self.page_bytes?) * u64::from(self.page_count?))
    }
}

/// The start of a rollback journal that would be rolled back if nobody is writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalHeader {
    /// Random for each transaction: two samples with the same one saw the same transaction.
    pub nonce: u32,
}

impl JournalHeader {
    /// Reads it; `None` for an empty, a zeroed (finished) or a foreign file.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        (bytes.get(..8)? == JOURNAL_MAGIC).then_some(())?;
        Some(Self { nonce: be32(bytes, 12)? })
    }
}

/// What a wal-index (`-shm`) says about the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalIndex {
    /// Counts transactions.
    pub change_counter: u32,
    /// Last valid frame of the log.
    pub frame_max: u32,
}

impl WalIndex {
    /// Reads it; `None` when the two copies differ (a writer is at it), or it was never filled.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let first = bytes.get(..48)?;
        if first != bytes.get(48..96)? || first.get(12) != Some(&1) {
            return None;
        }
        // The wal-index is in the byte order of the host.
        let word = |at: usize| Some(u32::from_ne_bytes(first.get(at..at + 4)?.try_into().ok()?));
        Some(Self { change_counter: word(8)?, frame_max: word(16)? })
    }
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_a_header() {
        let mut bytes = vec![0u8; HEADER_BYTES];
        bytes[..16].copy_from_slice(MAGIC);
        bytes[16..20].copy_from_slice(&[0x10, 0, 2, 2]);
        bytes[27] = 7;
        bytes[31] = 3;
        bytes[95] = 7;
        let header = Header::parse(&bytes).unwrap();
        assert!(header.is_wal());
        assert_eq!(header.expected_bytes(), Some(3 * 4096));
        bytes[95] = 6;
        assert_eq!(Header::parse(&bytes).unwrap().expected_bytes(), None);
        bytes[0] = b's';
        assert_eq!(Header::parse(&bytes), None);
    }

    #[test]
    fn a_zeroed_journal_is_finished() {
        assert_eq!(JournalHeader::parse(&[0; 28]), None);
        let mut bytes = JOURNAL_MAGIC.to_vec();
        bytes.extend([0; 20]);
        assert_eq!(JournalHeader::parse(&bytes), Some(JournalHeader { nonce: 0 }));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), with_magic in any::<bool>()) {
            let mut bytes = bytes;
            if with_magic {
                bytes.splice(0..0, *MAGIC);
            }
            if let Some(header) = Header::parse(&bytes) {
                let _ = header.expected_bytes();
            }
            let _ = (JournalHeader::parse(&bytes), WalIndex::parse(&bytes));
        }
    }
}

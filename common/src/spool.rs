//! Position of what an agent sends: (spool id, sequence, hash of the entry).
//!
//! Hashes are chained: an entry's hash covers the one before it. A reverted VM that writes other entries under known
//! sequence numbers is thus found at its first new entry, with one hash remembered per agent.

use crate::ids::SpoolId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;

/// First 16 bytes of SHA-256 over spool id, sequence (big-endian), previous hash and encoded body.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EntryHash(pub [u8; 16]);

impl EntryHash {
    /// Before the first entry.
    pub const ZERO: Self = Self([0; 16]);

    /// Hash of the entry `sequence` with encoded `body`, following an entry with hash `previous`.
    pub fn of(spool: SpoolId, sequence: u64, previous: Self, body: &[u8]) -> Self {
        let digest = Sha256::new()
            .chain_update(spool.0.as_bytes())
            .chain_update(sequence.to_be_bytes())
            .chain_update(previous.0)
            .chain_update(body)
            .finalize();
        let mut first = [0u8; 16];
        first.copy_from_slice(&digest[..16]);
        Self(first)
    }
}

impl fmt::Display for EntryHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for EntryHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryHash({self})")
    }
}

impl From<EntryHash> for String {
    fn from(hash: EntryHash) -> String {
        hash.to_string()
    }
}

impl TryFrom<String> for EntryHash {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let mut bytes = [0u8; 16];
        if text.len() != 32 || !text.is_ascii() {
            return Err(format!("expected 32 hexadecimal digits, found {text:?}"));
        }
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).map_err(|error| error.to_string())?;
        }
        Ok(Self(bytes))
    }
}

/// How far a spool has been read. Sequence 0 with [`EntryHash::ZERO`] is before the first entry (sequence 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Which spool.
    pub spool: SpoolId,
    /// Sequence number of the last entry read.
    pub sequence: u64,
    /// Its hash.
    pub hash: EntryHash,
}

impl Position {
    /// Before the first entry of `spool`.
    pub const fn start(spool: SpoolId) -> Self {
        Self { spool, sequence: 0, hash: EntryHash::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_covers_every_part() {
        let spool = SpoolId(uuid::Uuid::from_u128(7));
        let base = EntryHash::of(spool, 1, EntryHash::ZERO, b"body");
        assert_ne!(base, EntryHash::of(SpoolId(uuid::Uuid::from_u128(8)), 1, EntryHash::ZERO, b"body"));
        assert_ne!(base, EntryHash::of(spool, 2, EntryHash::ZERO, b"body"));
        assert_ne!(base, EntryHash::of(spool, 1, base, b"body"));
        assert_ne!(base, EntryHash::of(spool, 1, EntryHash::ZERO, b"bodY"));
        assert_eq!(EntryHash::try_from(base.to_string()), Ok(base));
        assert!(EntryHash::try_from("zz".repeat(16)).is_err());
    }
}

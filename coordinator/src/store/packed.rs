//! Snapshots as they lie on disk: compressed, since State of a large fleet is tens of megabytes of the same words, and what
//! the loop writes at once nobody else can commit beside.
//!
//! Packing takes longer than writing what comes of it, so it is the caller's, on a thread that nobody waits for.

use super::StoreError;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use std::io::{self, Read, Write};

/// What each gzip stream begins with (RFC 1952), and no JSON does.
const MAGIC: [u8; 2] = [0x1f, 0x8b];
/// State of the largest fleet many times over. Overflow rule: the snapshot counts as damaged.
const PLAIN_BYTES_MAX: u64 = crate::service::replication::SNAPSHOT_BYTES_MAX as u64;

/// A State's JSON, compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed(Vec<u8>);

impl Packed {
    /// Packs what [`super::Snapshot`] calls its body.
    pub fn of(json: &[u8]) -> io::Result<Self> {
        let mut encoder = GzEncoder::new(Vec::with_capacity(json.len() / 8), Compression::fast());
        encoder.write_all(json)?;
        Ok(Self(encoder.finish()?))
    }

    /// What is written.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

/// The JSON of the snapshot of entry `index`; snapshots of earlier versions are not compressed.
pub(super) fn unpack(index: u64, stored: Vec<u8>) -> Result<Vec<u8>, StoreError> {
    if !stored.starts_with(&MAGIC) {
        return Ok(stored);
    }
    let damaged = |what: String| StoreError::Damaged { index, what };
    let mut json = Vec::with_capacity(stored.len().saturating_mul(8));
    let read = GzDecoder::new(stored.as_slice()).take(PLAIN_BYTES_MAX + 1).read_to_end(&mut json);
    let bytes = read.map_err(|error| damaged(format!("its snapshot does not unpack ({error})")))?;
    if u64::try_from(bytes).is_ok_and(|bytes| bytes > PLAIN_BYTES_MAX) {
        return Err(damaged("its snapshot is larger than any State".to_owned()));
    }
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_is_unpacked() {
        let json = br#"{"agents":{}}"#.repeat(1_000);
        let packed = Packed::of(&json).unwrap();
        assert!(packed.as_slice().len() < json.len() / 20);
        assert_eq!(unpack(1, packed.as_slice().to_vec()).unwrap(), json);
    }

    #[test]
    fn a_snapshot_of_an_earlier_version_is_read_as_it_lies() {
        assert_eq!(unpack(1, b"{}".to_vec()).unwrap(), b"{}");
    }

    #[test]
    fn a_damaged_one_is_told() {
        let packed = Packed::of(&[b'x'; 1_000]).unwrap();
        let cut = packed.as_slice()[..packed.as_slice().len() - 9].to_vec();
        let error = unpack(7, cut).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { index: 7, .. }), "{error}");
    }
}

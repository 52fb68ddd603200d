//! Writes a bundle as a stream.

use super::{
    END, ENTRIES_MAX, ENTRY_BYTES_MAX, ENTRY_BYTES_SUM_MAX, End, MANIFEST, Manifest, SEGMENT, SEGMENT_BYTES,
    SEGMENT_SUFFIX, STATE, hex,
};
use crate::store::{JournalHash, StoredEntry};
use flate2::Compression;
use flate2::write::GzEncoder;
use muster_common::archive::{BLOCK_BYTES, header};
use muster_coordinator_core::replay::Counts;
use sha2::{Digest, Sha256};
use std::io::Write;

/// Why a bundle is not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Nobody takes it.
    #[error("cannot write the bundle")]
    Io(#[from] std::io::Error),
    /// It does not print.
    #[error("cannot encode the bundle")]
    Encode(#[from] serde_json::Error),
    /// More than a reader would take.
    #[error(
        "the journal has more than a bundle holds ({ENTRIES_MAX} entries, {ENTRY_BYTES_SUM_MAX} bytes): take one of a younger incident"
    )]
    TooLarge,
    /// The journal is not what it should be.
    #[error("entry {0} does not continue the journal: run muster-coordinator check-store")]
    NotNext(u64),
}

/// A bundle in the making. What is not finished is no bundle.
pub struct Writer<W: Write> {
    out: GzEncoder<W>,
    unix_s: u64,
    segment: Vec<u8>,
    n_segments: u64,
    counts: Counts,
    bytes: u64,
    index: u64,
    hash: JournalHash,
    expected: (u64, String),
}

impl<W: Write> std::fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("index", &self.index).finish_non_exhaustive()
    }
}

impl<W: Write> Writer<W> {
    /// Begins with the manifest and with State, as JSON; without one the journal is there from its first entry. The
    /// manifest's words about State are set here.
    pub fn begin(
        out: W,
        mut manifest: Manifest,
        state: Option<&[u8]>,
        before: JournalHash,
    ) -> Result<Self, WriteError> {
        let bytes = state.unwrap_or_default();
        manifest.state_bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        manifest.state_sha256 = hex(&Sha256::digest(bytes));
        manifest.chain_before = before.to_string();
        let mut writer = Self {
            // Journals are full of the same words: the quickest level packs them to a tenth as it is.
            out: GzEncoder::new(out, Compression::fast()),
            unix_s: u64::try_from(manifest.made.unix_ms() / 1000).unwrap_or(0),
            segment: Vec::with_capacity(SEGMENT_BYTES),
            n_segments: 0,
            counts: Counts::default(),
            bytes: 0,
            index: manifest.state_index,
            hash: before,
            expected: (manifest.last_index, manifest.chain_after.clone()),
        };
        let text = serde_json::to_vec_pretty(&manifest)?;
        writer.file(MANIFEST, &text)?;
        if let Some(state) = state {
            writer.file(STATE, state)?;
        }
        Ok(writer)
    }

    /// The next entry, as stored.
    pub fn push(&mut self, stored: &StoredEntry) -> Result<(), WriteError> {
        let StoredEntry { index, hash, body } = stored;
        let next = self.hash.then(body);
        // One entry a line: JSON as the store writes it has no line break in it.
        if *index != self.index.saturating_add(1) || next != *hash || body.contains(&b'\n') {
            return Err(WriteError::NotNext(*index));
        }
        let entry = stored.decode().map_err(|_| WriteError::NotNext(*index))?;
        self.counts.add(&entry.body);
        self.bytes = self.bytes.saturating_add(u64::try_from(body.len()).unwrap_or(u64::MAX));
        if self.counts.entries() > ENTRIES_MAX || self.bytes > ENTRY_BYTES_SUM_MAX || body.len() > ENTRY_BYTES_MAX {
            return Err(WriteError::TooLarge);
        }
        (self.index, self.hash) = (*index, next);
        self.segment.extend_from_slice(body);
        self.segment.push(b'\n');
        if self.segment.len() >= SEGMENT_BYTES { self.end_segment() } else { Ok(()) }
    }

    /// Ends it, and gives back what it was written to, and what is in it.
    pub fn finish(mut self) -> Result<(W, Counts), WriteError> {
        if (self.index, self.hash.to_string()) != self.expected {
            return Err(WriteError::NotNext(self.index.saturating_add(1)));
        }
        self.end_segment()?;
        let end = serde_json::to_vec_pretty(&End::from(self.counts))?;
        self.file(END, &end)?;
        self.out.write_all(&[0; 2 * BLOCK_BYTES])?;
        Ok((self.out.finish()?, self.counts))
    }

    fn end_segment(&mut self) -> Result<(), WriteError> {
        if self.segment.is_empty() {
            return Ok(());
        }
        self.n_segments += 1;
        let name = format!("{SEGMENT}{:06}{SEGMENT_SUFFIX}", self.n_segments);
        let segment = std::mem::take(&mut self.segment);
        self.file(&name, &segment)?;
        self.segment = segment;
        self.segment.clear();
        Ok(())
    }

    fn file(&mut self, name: &str, content: &[u8]) -> Result<(), WriteError> {
        let size = u64::try_from(content.len()).map_err(|_| WriteError::TooLarge)?;
        self.out.write_all(&header(name, size, self.unix_s))?;
        self.out.write_all(content)?;
        let padding = content.len().next_multiple_of(BLOCK_BYTES) - content.len();
        self.out.write_all(&[0; BLOCK_BYTES][..padding])?;
        Ok(())
    }
}

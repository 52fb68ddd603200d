//! Reads a bundle as a stream, and believes nothing of it before it is proven: order, sizes, hashes, counts.

use super::{
    END, ENTRIES_MAX, ENTRY_BYTES_SUM_MAX, End, FORMAT_VERSION, KIND, MANIFEST, Manifest, NOTE_BYTES_MAX, SEGMENT,
    SEGMENT_BYTES_MAX, SEGMENT_SUFFIX, STATE, STATE_BYTES_MAX, hex,
};
use crate::store::JournalHash;
use flate2::read::GzDecoder;
use muster_common::archive::{ArchiveError, BLOCK_BYTES, read_header};
use muster_common::limits::clip;
use muster_coordinator_core::entry::Entry;
use muster_coordinator_core::replay::Counts;
use muster_coordinator_core::state::State;
use sha2::{Digest, Sha256};
use std::io::{BufReader, Read};

/// Why a bundle is not read.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Other bytes, or too few of them.
    #[error(
        "the file is no bundle, or it is cut short or damaged: export it again with musterctl incidents export --bundle"
    )]
    Compressed(#[source] std::io::Error),
    /// The archive.
    #[error("the bundle cannot be used")]
    Archive(#[from] ArchiveError),
    /// Another file than the next one.
    #[error("the bundle has {found:?} where {expected} should be, so Muster did not write it")]
    Order {
        /// What is there.
        found: String,
        /// What should be.
        expected: &'static str,
    },
    /// A file of a size that no writer makes.
    #[error("{0} in the bundle is larger than Muster writes it")]
    TooLarge(&'static str),
    /// A file that does not read.
    #[error("{name} in the bundle is not what this version writes; it may be of a newer one")]
    Form {
        /// Which.
        name: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A later form, or another kind of bundle.
    #[error("the bundle is {0}")]
    Kind(String),
    /// State is not the one that was packed.
    #[error("state.json in the bundle is not what its manifest says: {0}; it is damaged or was changed")]
    State(&'static str),
    /// An entry that does not read.
    #[error("entry {index} in the bundle does not read; it may be of a newer version")]
    Entry {
        /// Which.
        index: u64,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// An entry out of its place.
    #[error("entry {expected} should follow in the bundle and there is {found}; it is damaged or was changed")]
    NotNext {
        /// What should come.
        expected: u64,
        /// What came.
        found: String,
    },
    /// Time went back.
    #[error("entry {0} in the bundle is older than the one before it; it is damaged or was changed")]
    TimeWentBack(u64),
    /// The chain.
    #[error(
        "the entries of the bundle are not those that were packed: their hash is {found}, the manifest has {expected}"
    )]
    Hash {
        /// Of the manifest.
        expected: String,
        /// Of what is there.
        found: String,
    },
    /// The counts.
    #[error("the bundle ends with other counts than it has entries; it is damaged or was changed")]
    Counts,
}

/// A bundle that is being read.
pub struct Reader<R: Read> {
    source: Archive<R>,
    /// What it says of itself. True once it was read to its end.
    manifest: Manifest,
    /// State before the first entry, until it is taken.
    state: Option<State>,
    segment: Vec<u8>,
    /// Where in the segment the next entry begins.
    at: usize,
    /// The header of the file that follows was read: its name and size.
    ahead: Option<(String, usize)>,
    n_segments: u64,
    index: u64,
    hash: JournalHash,
    last_at: muster_common::time::Timestamp,
    bytes: u64,
    counts: Counts,
    over: bool,
}

impl<R: Read> std::fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("manifest", &self.manifest).field("index", &self.index).finish_non_exhaustive()
    }
}

impl<R: Read> Reader<R> {
    /// Reads the manifest and State.
    pub fn open(source: R) -> Result<Self, BundleError> {
        let mut source = Archive { source: BufReader::with_capacity(64 << 10, GzDecoder::new(source)), at: 0 };
        let (name, size) = source.header()?.ok_or(BundleError::Archive(ArchiveError::CutShort))?;
        let text = source.content(&name, size, MANIFEST, NOTE_BYTES_MAX)?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|source| BundleError::Form { name: MANIFEST, source })?;
        check_kind(&manifest)?;
        let mut ahead = source.header()?;
        let mut bytes = Vec::new();
        if let Some((name, size)) = ahead.take_if(|(name, _)| name == STATE) {
            bytes = source.content(&name, size, STATE, STATE_BYTES_MAX)?;
            ahead = source.header()?;
        }
        let state = read_state(&manifest, &bytes)?;
        let hash = parse_hash(&manifest.chain_before).ok_or(BundleError::State("the chain before it is no hash"))?;
        Ok(Self {
            last_at: state.last_at(),
            index: state.head_index(),
            source,
            manifest,
            state: Some(state),
            segment: Vec::new(),
            at: 0,
            ahead,
            n_segments: 0,
            hash,
            bytes: 0,
            counts: Counts::default(),
            over: false,
        })
    }

    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// State before the first entry; the first time only.
    pub fn take_state(&mut self) -> Option<State> {
        self.state.take()
    }

    /// What was read so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The next entry; `None` once everything was read and is proven.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, BundleError> {
        while self.at >= self.segment.len() {
            if self.over || !self.next_segment()? {
                return Ok(None);
            }
        }
        let rest = self.segment.get(self.at..).unwrap_or_default();
        let expected = self.index.saturating_add(1);
        let not_next = |found: String| BundleError::NotNext { expected, found };
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or_else(|| not_next("half a line".to_owned()))?;
        let body = rest.get(..end).unwrap_or_default();
        let entry: Entry =
            serde_json::from_slice(body).map_err(|source| BundleError::Entry { index: expected, source })?;
        if entry.index != expected {
            return Err(not_next(format!("entry {}", entry.index)));
        }
        if entry.at < self.last_at {
            return Err(BundleError::TimeWentBack(entry.index));
        }
        self.hash = self.hash.then(body);
        (self.index, self.last_at) = (expected, entry.at);
        self.at += end + 1;
        self.counts.add(&entry.body);
        if self.counts.entries() > ENTRIES_MAX {
            return Err(BundleError::TooLarge("the journal"));
        }
        Ok(Some(entry))
    }

    /// Reads the next segment; false at the end, after everything was compared with what the manifest says.
    fn next_segment(&mut self) -> Result<bool, BundleError> {
        let (name, size) = self.ahead.take().ok_or(BundleError::Archive(ArchiveError::CutShort))?;
        if name == END {
            self.end(&name, size)?;
            return Ok(false);
        }
        self.n_segments += 1;
        if name != format!("{SEGMENT}{:06}{SEGMENT_SUFFIX}", self.n_segments) {
            return Err(BundleError::Order { found: clip(&name, 100), expected: "the next segment of the journal" });
        }
        self.bytes = self.bytes.saturating_add(u64::try_from(size).unwrap_or(u64::MAX));
        if size > SEGMENT_BYTES_MAX || self.bytes > ENTRY_BYTES_SUM_MAX.saturating_add(ENTRIES_MAX) {
            return Err(BundleError::TooLarge("the journal"));
        }
        self.source.read_into(&mut self.segment, size)?;
        self.at = 0;
        self.ahead = self.source.header()?;
        Ok(true)
    }

    fn end(&mut self, name: &str, size: usize) -> Result<(), BundleError> {
        let text = self.source.content(name, size, END, NOTE_BYTES_MAX)?;
        let end: End = serde_json::from_slice(&text).map_err(|source| BundleError::Form { name: END, source })?;
        if let Some((name, _)) = self.source.header()? {
            return Err(BundleError::Order { found: clip(&name, 100), expected: "the end" });
        }
        if end != End::from(self.counts) || self.index != self.manifest.last_index {
            return Err(BundleError::Counts);
        }
        let found = self.hash.to_string();
        if found != self.manifest.chain_after {
            return Err(BundleError::Hash { expected: clip(&self.manifest.chain_after, 64), found });
        }
        self.over = true;
        Ok(())
    }
}

fn check_kind(manifest: &Manifest) -> Result<(), BundleError> {
    if manifest.kind != KIND {
        let kind = clip(&manifest.kind, 80);
        return Err(BundleError::Kind(format!("of the kind {kind:?}, this command reads {KIND:?}")));
    }
    if manifest.format_version > FORMAT_VERSION {
        let version = manifest.format_version;
        return Err(BundleError::Kind(format!(
            "of format {version}, this version knows {FORMAT_VERSION}: use a newer muster-coordinator"
        )));
    }
    Ok(())
}

fn read_state(manifest: &Manifest, bytes: &[u8]) -> Result<State, BundleError> {
    if u64::try_from(bytes.len()) != Ok(manifest.state_bytes) {
        return Err(BundleError::State("it has another size"));
    }
    if hex(&Sha256::digest(bytes)) != manifest.state_sha256 {
        return Err(BundleError::State("it has another hash"));
    }
    let state = if bytes.is_empty() {
        State::genesis()
    } else {
        serde_json::from_slice(bytes).map_err(|source| BundleError::Form { name: STATE, source })?
    };
    if state.head_index() != manifest.state_index {
        return Err(BundleError::State("it stands for another entry"));
    }
    Ok(state)
}

fn parse_hash(text: &str) -> Option<JournalHash> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let pairs = text.as_bytes().chunks(2);
    let bytes: Option<Vec<u8>> =
        pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
    JournalHash::from_slice(&bytes?)
}

/// The archive under the compression.
struct Archive<R: Read> {
    source: BufReader<GzDecoder<R>>,
    at: usize,
}

impl<R: Read> Archive<R> {
    /// Name and size of the next file; `None` at the end.
    fn header(&mut self) -> Result<Option<(String, usize)>, BundleError> {
        let mut block = [0; BLOCK_BYTES];
        self.read(&mut block)?;
        let Some((name, size)) = read_header(&block, self.at)? else { return Ok(None) };
        self.at = self.at.saturating_add(BLOCK_BYTES);
        Ok(Some((name.to_owned(), usize::try_from(size).unwrap_or(usize::MAX))))
    }

    fn content(&mut self, name: &str, size: usize, expected: &'static str, max: usize) -> Result<Vec<u8>, BundleError> {
        if name != expected {
            return Err(BundleError::Order { found: clip(name, 100), expected });
        }
        if size > max {
            return Err(BundleError::TooLarge(expected));
        }
        let mut content = Vec::new();
        self.read_into(&mut content, size)?;
        Ok(content)
    }

    /// Memory grows with what is there, never with what a header says.
    fn read_into(&mut self, content: &mut Vec<u8>, size: usize) -> Result<(), BundleError> {
        content.clear();
        let wanted = u64::try_from(size).unwrap_or(u64::MAX);
        let read = (&mut self.source).take(wanted).read_to_end(content).map_err(BundleError::Compressed)?;
        if read != size {
            return Err(ArchiveError::CutShort.into());
        }
        let padding = size.next_multiple_of(BLOCK_BYTES) - size;
        let mut rest = [0; BLOCK_BYTES];
        self.read(rest.get_mut(..padding).unwrap_or_default())?;
        self.at = self.at.saturating_add(size).saturating_add(padding);
        Ok(())
    }

    fn read(&mut self, into: &mut [u8]) -> Result<(), BundleError> {
        self.source.read_exact(into).map_err(BundleError::Compressed)
    }
}

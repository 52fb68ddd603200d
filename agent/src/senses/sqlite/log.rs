//! Reads a write-ahead log beside its index, without SQLite: the header, the last committed frame, and now and then
//! the chain of checksums.
//!
//! Needs the claim of the database: opening and closing the -shm drops this process's locks on it.

use super::files::{self, Claim};
use crate::senses::HostRoot;
use crate::senses::locks::{Located, read_table};
use muster_agent_core::locks::sqlite_bytes::WAL_READ_BYTE_FIRST;
use muster_agent_core::sqlite::wal::{
    Chain, FRAME_HEADER_BYTES, INDEX_BYTES, Index, LOG_HEADER_BYTES, LogHeader, Reading, SLOTS, is_last_frame,
};
use nix::libc;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// Looks at an index that a writer is changing, before it is left for the next run.
const TRIES: u32 = 5;
/// Bytes of a log that are read at once.
const PART_BYTES: u64 = 256 << 10;

/// What one look found.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogLook {
    /// The index; nothing in it was copied back unseen while the log was read.
    pub(super) index: Index,
    /// What the log holds of it.
    pub(super) reading: Reading,
    /// Size of the log.
    pub(super) wal_bytes: u64,
    /// Every frame of the index was walked.
    pub(super) walked: bool,
}

/// Looks at log and index; walks at most `walk_bytes_max` of frames, going on after `chain`. `None` while there is
/// nothing to compare, or a writer begins the log again.
pub(super) fn look(path: &Path, _claim: &Claim, chain: &mut Option<Chain>, walk_bytes_max: u64) -> Option<LogLook> {
    (0..TRIES).find_map(|_| look_once(path, chain, walk_bytes_max))
}

fn look_once(path: &Path, chain: &mut Option<Chain>, walk_bytes_max: u64) -> Option<LogLook> {
    let (wal_path, shm_path) = (files::sibling(path, "-wal"), files::sibling(path, "-shm"));
    let shm = files::open_regular(&shm_path).ok()?;
    let read_index = || Index::parse(&files::first_bytes(&shm_path, &shm, INDEX_BYTES).ok()?);
    let before = read_index()?;
    let wal = match files::open_regular(&wal_path) {
        Ok(wal) => Some(wal),
        Err(files::Obstacle::Missing) => None,
        Err(_) => return None,
    };
    let (reading, walked, wal_bytes) = match &wal {
        Some(wal) => {
            let wal_bytes = files::facts(&wal_path, wal).ok()?.size_bytes;
            let (reading, walked) = read(&wal_path, wal, wal_bytes, &before, chain, walk_bytes_max)?;
            (reading, walked, wal_bytes)
        }
        None => (Reading::Another, false, 0),
    };
    // A log is begun again in the index first: the same salts afterwards mean that nothing was overwritten meanwhile.
    // Whoever closes the database deletes the index first: still in its place it belongs to the log that was read.
    let after = read_index()?;
    let in_place = is_at(&shm_path, Some(&shm)) && is_at(&wal_path, wal.as_ref());
    if after.salts != before.salts || after.frame_max < before.frame_max || !in_place {
        return None;
    }
    let index = Index { backfill: before.backfill.max(after.backfill), ..before };
    Some(LogLook { index, reading, wal_bytes, walked })
}

/// True when the path still names this file, or nothing where there was none.
fn is_at(path: &Path, file: Option<&File>) -> bool {
    let there = std::fs::symlink_metadata(path);
    match file {
        Some(file) => there
            .ok()
            .zip(file.metadata().ok())
            .is_some_and(|(there, opened)| (there.dev(), there.ino()) == (opened.dev(), opened.ino())),
        None => there.is_err_and(|error| error.kind() == ErrorKind::NotFound),
    }
}

fn read(
    path: &Path,
    wal: &File,
    wal_bytes: u64,
    index: &Index,
    chain: &mut Option<Chain>,
    walk_bytes_max: u64,
) -> Option<(Reading, bool)> {
    let header = LogHeader::parse(&files::first_bytes(path, wal, LOG_HEADER_BYTES).ok()?);
    let of_index = |header: &LogHeader| (header.salts, header.page_bytes) == (index.salts, index.page_bytes);
    let Some(header) = header.filter(of_index) else { return Some((Reading::Another, false)) };
    if index.frame_max == 0 {
        return Some((Reading::Whole, true));
    }
    let fitting = wal_bytes.saturating_sub(LOG_HEADER_BYTES as u64) / index.frame_bytes();
    let fitting = u32::try_from(fitting).unwrap_or(u32::MAX);
    let mut last = [0; FRAME_HEADER_BYTES];
    let at_end = fitting >= index.frame_max
        && wal.read_exact_at(&mut last, index.frame_at(index.frame_max)).is_ok()
        && is_last_frame(&last, index);
    let mut walking = chain.filter(|chain| chain.is_of(&header) && chain.frames() <= index.frame_max);
    let walking = walking.get_or_insert(Chain::new(header));
    let unbroken = walk(wal, index, fitting.min(index.frame_max), walking, walk_bytes_max)?;
    *chain = Some(*walking);
    let walked = walking.frames() >= index.frame_max;
    if !unbroken {
        Some((Reading::Ends(walking.frames()), walked))
    } else if at_end {
        Some((Reading::Whole, walked))
    } else {
        Some((Reading::Ends(fitting.min(index.frame_max.saturating_sub(1))), walked))
    }
}

/// Goes on with the chain up to frame `last`; false when a frame is not valid. `None` when the log cannot be read.
fn walk(wal: &File, index: &Index, last: u32, chain: &mut Chain, bytes_max: u64) -> Option<bool> {
    let frame_bytes = index.frame_bytes();
    let per_part = (PART_BYTES / frame_bytes).max(1);
    let mut left = bytes_max / frame_bytes;
    let mut part = Vec::new();
    while left > 0 && chain.frames() < last {
        let frames = per_part.min(left).min(u64::from(last - chain.frames()));
        part.resize(usize::try_from(frames * frame_bytes).ok()?, 0);
        match wal.read_exact_at(&mut part, index.frame_at(chain.frames().saturating_add(1))) {
            Ok(()) => {}
            // Cut while it was read: the next look sees its new size.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return None,
            Err(_) => return None,
        }
        if !part.chunks(usize::try_from(frame_bytes).ok()?).all(|frame| chain.take(frame)) {
            return Some(false);
        }
        left -= frames;
    }
    Some(true)
}

/// Who holds which reader's slot; an empty set stands for processes that are hidden.
pub(super) fn readers(path: &Path, _claim: &Claim) -> [Option<BTreeSet<u32>>; SLOTS] {
    let mut slots: [Option<BTreeSet<u32>>; SLOTS] = Default::default();
    let shm_path = files::sibling(path, "-shm");
    let Ok(shm) = files::open_regular(&shm_path) else { return slots };
    let located = Located::find(&shm_path, None).unwrap_or_default();
    let table = read_table(&HostRoot::default(), &BTreeSet::from([located.inode()])).unwrap_or_default();
    for (slot, byte) in slots.iter_mut().zip(WAL_READ_BYTE_FIRST..) {
        // Whoever looks for a slot takes it for writing for a moment: only readers' locks stay.
        let held = files::conflict(&shm, libc::F_WRLCK, byte, 1);
        if matches!(held, Ok(Some((false, _)))) {
            let holders = table.on(|file| located.is(file)).filter(|lock| lock.covers(byte, byte));
            *slot = Some(holders.filter_map(|lock| lock.pid).filter(|pid| *pid != std::process::id()).collect());
        }
    }
    slots
}

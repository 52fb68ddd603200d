//! A write-ahead log against its index (`-shm`): does the log still hold every frame that was committed and is nowhere
//! else?
//!
//! SQLite writes frames first, then the index; it counts on (new salts, no frames) in the index first, then overwrites
//! the log. So whatever a sound index claims is in the log at that moment, beside any writer, checkpoint or restart.
//! Only frames beyond what was copied back count: the others are in the database.
//!
//! Invariant: a loss is believed when two samples show it. Where the log as a whole is another one (empty, other
//! salts), an index that nobody used any more would look the same: that is believed only if an earlier sample saw the
//! same claim fulfilled and the database was not written since.

use super::state::FileFacts;
use crate::clock::Now;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Bytes of the index that are looked at: two copies of its header, and how far it was copied back.
pub const INDEX_BYTES: usize = 136;
/// Bytes before the first frame.
pub const LOG_HEADER_BYTES: usize = 32;
/// Bytes before the page of each frame.
pub const FRAME_HEADER_BYTES: usize = 24;
/// Read marks, each with a lock byte of its own.
pub const SLOTS: usize = 5;
/// A read mark that means nothing.
pub const MARK_UNUSED: u32 = u32::MAX;

const VERSION: u32 = 3_007_000;
const MAGIC: u32 = 0x377f_0682;
/// A loss is told at least this long after it was last seen: the next recovery makes the log and its index agree again,
/// and the rows stay lost.
const TOLD_FOR: Duration = Duration::from_secs(3600);

/// The index, understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Index {
    /// Its own checksum fits. SQLite throws an index away whose checksum does not.
    pub sound: bool,
    /// Page size of the log.
    pub page_bytes: u32,
    /// Frames that were committed.
    pub frame_max: u32,
    /// Checksum of the last of them.
    pub frame_checksum: [u32; 2],
    /// Of the log that it belongs to.
    pub salts: [u8; 8],
    /// Frames that were copied back into the database.
    pub backfill: u32,
    /// How far readers look, by slot.
    pub read_marks: [u32; SLOTS],
}

impl Index {
    /// Reads it; `None` when the two copies differ (a writer is at it), or it was never filled.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let first = bytes.get(..48)?;
        if first != bytes.get(48..96)? || first.get(12) != Some(&1) {
            return None;
        }
        // The index is in the byte order of the host.
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
        let size = u32::from(u16::from_ne_bytes(first.get(14..16)?.try_into().ok()?));
        let page_bytes = (size & 0xfe00) | ((size & 1) << 16);
        if word(0)? != VERSION || !page_is_well(page_bytes) {
            return None;
        }
        let own = sum([0, 0], first.get(..40)?, cfg!(target_endian = "big"));
        let mut read_marks = [MARK_UNUSED; SLOTS];
        for (slot, mark) in read_marks.iter_mut().enumerate() {
            *mark = word(100 + 4 * slot)?;
        }
        Some(Self {
            sound: own == [word(40)?, word(44)?],
            page_bytes,
            frame_max: word(16)?,
            frame_checksum: [word(24)?, word(28)?],
            salts: first.get(32..40)?.try_into().ok()?,
            backfill: word(96)?,
            read_marks,
        })
    }

    /// Committed frames that are in the log and nowhere else.
    pub const fn only_in_log(&self) -> u32 {
        self.frame_max.saturating_sub(self.backfill)
    }

    /// Bytes of one frame.
    pub const fn frame_bytes(&self) -> u64 {
        FRAME_HEADER_BYTES as u64 + self.page_bytes as u64
    }

    /// Where frame `number` (from 1) begins.
    pub const fn frame_at(&self, number: u32) -> u64 {
        LOG_HEADER_BYTES as u64 + self.frame_bytes() * (number.saturating_sub(1) as u64)
    }

    /// Bytes of the log up to its last committed frame; what is behind them is left over, or not committed.
    pub const fn live_bytes(&self) -> u64 {
        if self.frame_max == 0 { 0 } else { self.frame_at(self.frame_max) + self.frame_bytes() }
    }
}

/// The first bytes of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogHeader {
    /// Words of its checksums are big-endian.
    pub big_endian: bool,
    /// Page size.
    pub page_bytes: u32,
    /// Every frame of this log has them.
    pub salts: [u8; 8],
    checksum: [u32; 2],
}

impl LogHeader {
    /// Reads it; `None` when it is no header, or its checksum does not fit.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let magic = be32(bytes, 0)?;
        let page_bytes = be32(bytes, 8)?;
        if magic & !1 != MAGIC || be32(bytes, 4)? != VERSION || !page_is_well(page_bytes) {
            return None;
        }
        let big_endian = magic & 1 == 1;
        let checksum = sum([0, 0], bytes.get(..24)?, big_endian);
        if checksum != [be32(bytes, 24)?, be32(bytes, 28)?] {
            return None;
        }
        Some(Self { big_endian, page_bytes, salts: bytes.get(16..24)?.try_into().ok()?, checksum })
    }
}

/// True when the header of a frame says that it is the last one of `index`.
pub fn is_last_frame(header: &[u8], index: &Index) -> bool {
    let sums = be32(header, 16).zip(be32(header, 20));
    header.get(8..16) == Some(index.salts.as_slice())
        && be32(header, 4).is_some_and(|pages| pages > 0)
        && (!index.sound || sums == Some((index.frame_checksum[0], index.frame_checksum[1])))
}

/// The frames that are known to be valid, one after the other from the first: each one's checksum goes on from the one
/// before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    header: LogHeader,
    frames: u32,
    checksum: [u32; 2],
}

impl Chain {
    /// No frame yet.
    pub const fn new(header: LogHeader) -> Self {
        Self { header, frames: 0, checksum: header.checksum }
    }

    /// True when it goes on in the log that begins like this.
    pub fn is_of(&self, header: &LogHeader) -> bool {
        self.header == *header
    }

    /// Valid frames so far.
    pub const fn frames(&self) -> u32 {
        self.frames
    }

    /// Takes the next frame (its header and its page) if it is valid.
    pub fn take(&mut self, frame: &[u8]) -> bool {
        let (Some(start), Some(salts), Some(page)) = (frame.get(..8), frame.get(8..16), frame.get(24..)) else {
            return false;
        };
        let before_page = sum(self.checksum, start, self.header.big_endian);
        let checksum = sum(before_page, page, self.header.big_endian);
        let valid = salts == self.header.salts
            && page.len() == self.header.page_bytes as usize
            && be32(frame, 0).is_some_and(|page| page > 0)
            && be32(frame, 16).zip(be32(frame, 20)) == Some((checksum[0], checksum[1]));
        if valid {
            self.frames = self.frames.saturating_add(1);
            self.checksum = checksum;
        }
        valid
    }
}

/// What a sample found in the log for the claim of its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// What was looked at is there.
    Whole,
    /// After so many frames it ends, or breaks.
    Ends(u32),
    /// Empty, or with other salts: not the log of this index.
    Another,
}

/// Committed frames that are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// So many the index says were committed.
    pub frames_committed: u32,
    /// So many are in the database already, or valid in the log.
    pub frames_kept: u32,
    /// Bytes of a page.
    pub page_bytes: u32,
    /// It was proven; else it may be an index that nobody used any more, or one that SQLite would not trust.
    pub proven: bool,
    /// When it was last seen.
    pub seen_boottime_ms: u64,
}

impl Loss {
    /// Frames lost.
    pub const fn frames_lost(&self) -> u32 {
        self.frames_committed.saturating_sub(self.frames_kept)
    }
}

/// Remembers the last samples of one database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LossWatch {
    /// The last claim that was fulfilled, and the database at that time.
    fulfilled: Option<(Index, FileFacts)>,
    /// Seen once: the salts of the log.
    pending: Option<[u8; 8]>,
    /// Seen twice.
    pub loss: Option<Loss>,
}

impl LossWatch {
    /// Notes a sample. `one_shot`: there was no earlier one, so a log that is another one counts, not proven.
    pub fn sample(&mut self, index: &Index, reading: Reading, database: FileFacts, one_shot: bool, now: &Now) {
        let kept = match reading {
            Reading::Whole => {
                self.pending = None;
                self.fulfilled = Some((*index, database));
                return;
            }
            Reading::Ends(frames) => frames.max(index.backfill),
            Reading::Another if self.was_fulfilled(index, database) || one_shot => index.backfill,
            Reading::Another => {
                self.pending = None;
                return;
            }
        };
        if kept >= index.frame_max {
            self.pending = None;
            return;
        }
        if self.pending.replace(index.salts) != Some(index.salts) {
            return;
        }
        let proven = index.sound && (reading != Reading::Another || self.was_fulfilled(index, database));
        self.loss = Some(Loss {
            frames_committed: index.frame_max,
            frames_kept: kept,
            page_bytes: index.page_bytes,
            proven,
            seen_boottime_ms: now.boottime_ms,
        });
    }

    /// Forgets a loss that was told for long enough. To be called once per run.
    pub fn age(&mut self, now: &Now) {
        if let Some(loss) = &mut self.loss {
            // After a reboot the clock starts again.
            loss.seen_boottime_ms = loss.seen_boottime_ms.min(now.boottime_ms);
            if now.since(loss.seen_boottime_ms) > TOLD_FOR {
                self.loss = None;
            }
        }
    }

    /// Seen once and waiting for a second sample.
    pub const fn is_pending(&self) -> bool {
        self.pending.is_some() && self.loss.is_none()
    }

    fn was_fulfilled(&self, index: &Index, database: FileFacts) -> bool {
        let same =
            |old: &Index| (old.salts, old.frame_max, old.backfill) == (index.salts, index.frame_max, index.backfill);
        self.fulfilled.as_ref().is_some_and(|(old, facts)| same(old) && *facts == database)
    }
}

fn page_is_well(bytes: u32) -> bool {
    (512..=65_536).contains(&bytes) && bytes.is_power_of_two()
}

/// SQLite's checksum over pairs of words. Bytes that fill no pair are left out: there are none in a well-formed log.
fn sum(start: [u32; 2], bytes: &[u8], big_endian: bool) -> [u32; 2] {
    let [mut first, mut second] = start;
    for pair in bytes.as_chunks::<8>().0 {
        let [a, b, c, d, e, f, g, h] = *pair;
        let word = if big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
        first = first.wrapping_add(word([a, b, c, d])).wrapping_add(second);
        second = second.wrapping_add(word([e, f, g, h])).wrapping_add(first);
    }
    [first, second]
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::time::Timestamp;
    use proptest::prelude::*;

    const PAGE: usize = 512;
    const PAGE_BYTES: u16 = 512;

    /// A log of `frames` frames and the index of it, made by the rules of the format.
    fn log(frames: u32, backfill: u32, big_endian: bool) -> (Vec<u8>, Vec<u8>) {
        let mut log = Vec::new();
        for word in [MAGIC | u32::from(big_endian), VERSION, PAGE_BYTES.into(), 1, 0xaaaa_0001, 0xbbbb_0002] {
            log.extend(word.to_be_bytes());
        }
        let mut checksum = sum([0, 0], &log, big_endian);
        log.extend(checksum.iter().flat_map(|word| word.to_be_bytes()));
        for number in 1..=frames {
            let mut frame = Vec::new();
            frame.extend(number.to_be_bytes());
            frame.extend(number.to_be_bytes());
            checksum = sum(checksum, &frame, big_endian);
            let page = vec![number.to_le_bytes()[0]; PAGE];
            checksum = sum(checksum, &page, big_endian);
            frame.extend(&log[16..24]);
            frame.extend(checksum.iter().flat_map(|word| word.to_be_bytes()));
            frame.extend(page);
            log.extend(frame);
        }
        let mut index = Vec::new();
        index.extend(VERSION.to_ne_bytes());
        index.extend(0u32.to_ne_bytes());
        index.extend(9u32.to_ne_bytes());
        index.extend([1, u8::from(big_endian)]);
        index.extend(PAGE_BYTES.to_ne_bytes());
        for word in [frames, frames, checksum[0], checksum[1]] {
            index.extend(word.to_ne_bytes());
        }
        index.extend(&log[16..24]);
        let own = sum([0, 0], &index, cfg!(target_endian = "big"));
        index.extend(own.iter().flat_map(|word| word.to_ne_bytes()));
        index.extend(index.clone());
        index.extend(backfill.to_ne_bytes());
        index.extend([0u32, 3, MARK_UNUSED, MARK_UNUSED, MARK_UNUSED].iter().flat_map(|mark| mark.to_ne_bytes()));
        index.extend([0; 16]);
        (log, index)
    }

    /// How far the chain of a log goes.
    fn walk(log: &[u8]) -> u32 {
        let Some(header) = LogHeader::parse(log) else { return 0 };
        let mut chain = Chain::new(header);
        let frames = log[LOG_HEADER_BYTES..].chunks(PAGE + FRAME_HEADER_BYTES);
        let _first_broken = frames.map(|frame| chain.take(frame)).find(|valid| !valid);
        chain.frames()
    }

    #[test]
    fn a_chain_ends_where_the_log_is_cut_or_changed_in_either_byte_order() {
        for big_endian in [false, true] {
            let (mut log, index) = log(5, 1, big_endian);
            let index = Index::parse(&index).unwrap();
            assert!(index.sound);
            assert_eq!((index.frame_max, index.only_in_log(), index.page_bytes), (5, 4, 512));
            assert_eq!(index.live_bytes(), log.len() as u64);
            assert_eq!(walk(&log), 5);
            let last = usize::try_from(index.frame_at(5)).unwrap();
            assert!(is_last_frame(&log[last..], &index));
            assert!(!is_last_frame(&log[last - PAGE - 24..], &index));
            log[LOG_HEADER_BYTES + 3 * (PAGE + 24) + 100] ^= 1;
            assert_eq!(walk(&log), 3);
            log.truncate(LOG_HEADER_BYTES + PAGE + 24 + 10);
            assert_eq!(walk(&log), 1);
        }
    }

    #[test]
    fn an_index_with_two_minds_or_a_wrong_checksum_is_told_apart() {
        let (_, mut index) = log(2, 0, false);
        index[16] = 9;
        assert_eq!(Index::parse(&index), None, "a writer is at it");
        index[64] = 9;
        assert!(!Index::parse(&index).unwrap().sound);
    }

    fn at(boottime_ms: u64) -> Now {
        Now { boottime_ms, wall: Timestamp::UNIX_EPOCH }
    }

    fn database(modified_ns: i128) -> FileFacts {
        FileFacts { device: 1, inode: 2, size_bytes: 4096, modified_ns, changed_ns: modified_ns }
    }

    /// (reading, backfill, database's time) one after the other, and the frames lost that are told after each.
    fn check(one_shot: bool, samples: &[(Reading, u32, i128, Option<u32>)]) {
        let mut watch = LossWatch::default();
        for (number, (reading, backfill, modified_ns, told)) in samples.iter().enumerate() {
            let index = Index::parse(&log(10, *backfill, false).1).unwrap();
            watch.age(&at(number as u64));
            watch.sample(&index, *reading, database(*modified_ns), one_shot, &at(number as u64));
            assert_eq!(watch.loss.map(|loss| loss.frames_lost()), *told, "sample {number} of {samples:?}");
        }
    }

    #[test]
    fn a_loss_must_be_seen_twice_and_stays_told() {
        use Reading::{Another, Ends, Whole};
        check(false, &[(Ends(4), 0, 1, None), (Ends(4), 0, 1, Some(6)), (Whole, 10, 1, Some(6))]);
        check(false, &[(Ends(4), 0, 1, None), (Whole, 0, 1, None), (Ends(4), 0, 1, None)]);
        // What was copied back is in the database.
        check(false, &[(Ends(4), 10, 1, None), (Ends(4), 10, 1, None)]);
        check(false, &[(Ends(4), 7, 1, None), (Ends(4), 7, 1, Some(3))]);
        // A log that is another one is a loss only if its index was right before and the database is the same.
        check(false, &[(Another, 0, 1, None), (Another, 0, 1, None), (Another, 0, 1, None)]);
        check(false, &[(Whole, 0, 1, None), (Another, 0, 1, None), (Another, 0, 1, Some(10))]);
        check(false, &[(Whole, 0, 1, None), (Another, 0, 2, None), (Another, 0, 2, None)]);
        check(true, &[(Another, 0, 1, None), (Another, 0, 1, Some(10))]);
    }

    #[test]
    fn a_loss_is_forgotten_after_an_hour_without_it() {
        let index = Index::parse(&log(10, 0, false).1).unwrap();
        let mut watch = LossWatch::default();
        for ms in [1, 2] {
            watch.sample(&index, Reading::Ends(1), database(1), false, &at(ms));
        }
        assert!(watch.loss.unwrap().proven);
        watch.age(&at(3_600_000));
        assert!(watch.loss.is_some());
        watch.age(&at(3_600_003));
        assert_eq!(watch.loss, None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..900), take in any::<bool>()) {
            let mut bytes = bytes;
            if take {
                let (log, _) = log(1, 0, true);
                bytes.splice(0..0, log.into_iter().take(40));
            }
            if let Some(index) = Index::parse(&bytes) {
                let _ = (index.live_bytes(), index.only_in_log(), is_last_frame(&bytes, &index));
            }
            if let Some(header) = LogHeader::parse(&bytes) {
                let mut chain = Chain::new(header);
                let _ = chain.take(&bytes);
            }
        }
    }
}

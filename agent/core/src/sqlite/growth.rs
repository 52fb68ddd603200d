//! Does a write-ahead log grow, and why does it not come back? The size of the file says little: SQLite leaves it large
//! and begins again at its start. What counts are the frames that the index calls live, over time.

use super::wal::{Index, MARK_UNUSED, SLOTS};
use crate::clock::Now;
use std::collections::BTreeSet;
use std::time::Duration;

/// A log beyond its bound for this long does not come back by itself: a checkpoint after a large transaction takes
/// seconds.
const STAYS_AFTER: Duration = Duration::from_secs(60);
/// Without a bound in the config: half of the database, and within these.
const MAX_BYTES_LEAST: u64 = 64 << 20;
const MAX_BYTES_MOST: u64 = 1 << 30;

/// The bound where the config sets none.
pub const fn default_max_bytes(database_bytes: u64) -> u64 {
    let half = database_bytes / 2;
    if half < MAX_BYTES_LEAST {
        MAX_BYTES_LEAST
    } else if half > MAX_BYTES_MOST {
        MAX_BYTES_MOST
    } else {
        half
    }
}

/// True when it is worth asking who holds what: anything else is well.
pub const fn may_be_too_large(wal_bytes: u64, max_bytes: u64) -> bool {
    wal_bytes > max_bytes
}

/// One look at a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Size of the file.
    pub wal_bytes: u64,
    /// Its bound.
    pub max_bytes: u64,
    /// The index.
    pub index: Index,
    /// Who holds each slot; `None` is free, an empty set held by processes that are hidden.
    pub readers: [Option<BTreeSet<u32>>; SLOTS],
    /// The writer, as [`super::state::LockFacts::wal_write`].
    pub writer: Option<Option<u32>>,
    /// Somebody has the database open.
    pub in_use: bool,
}

/// Why it does not come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// One transaction has been writing all the time, and has not been committed.
    OpenTransaction(Option<u32>),
    /// Readers that have been there all the time.
    Reader(BTreeSet<u32>),
    /// There was a reader at every moment, though not always the same.
    ReadersInTurn,
    /// Nothing is in the way and nothing was copied back.
    NoCheckpoint,
    /// Something is copied back, but more is written.
    Behind,
}

impl Cause {
    /// For programs.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::OpenTransaction(_) => "open_transaction",
            Self::Reader(_) => "reader",
            Self::ReadersInTurn => "readers_in_turn",
            Self::NoCheckpoint => "no_checkpoint",
            Self::Behind => "behind",
        }
    }
}

/// A log that does not come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Growth {
    /// Why.
    pub cause: Cause,
    /// Beyond its bound at least this long; zero where there was only one look.
    pub over_for: Duration,
    /// Bytes of committed frames.
    pub live_bytes: u64,
    /// Of them, those that are not in the database yet.
    pub waiting_bytes: u64,
}

/// What was seen since the log went beyond its bound.
#[derive(Debug, Clone)]
struct Window {
    since_ms: u64,
    first: Sample,
    /// Committed frames at the last look and at the one before.
    frames: (u32, u32),
    /// The oldest mark that is in the way of a checkpoint, as long as it stays the same.
    pin: Option<(usize, u32)>,
    pinned_by: BTreeSet<u32>,
    always_read: bool,
    writer: Option<Option<u32>>,
}

/// Remembers the samples of one log.
#[derive(Debug, Clone, Default)]
pub struct GrowthWatch {
    window: Option<Window>,
}

impl GrowthWatch {
    /// Notes a sample. With `one_shot` the log is judged by this sample alone.
    pub fn sample(&mut self, sample: Sample, one_shot: bool, now: &Now) -> Option<Growth> {
        if !may_be_too_large(sample.wal_bytes, sample.max_bytes) || !sample.in_use {
            self.window = None;
            return None;
        }
        // A log that began again came back.
        let window = match self.window.take() {
            Some(window) if window.first.index.salts == sample.index.salts => window.seen(&sample),
            _ => Window::new(&sample, now),
        };
        let over_for = now.since(window.since_ms);
        let growth = (one_shot || over_for >= STAYS_AFTER).then(|| window.judge(&sample, one_shot, over_for)).flatten();
        self.window = Some(window);
        growth
    }

    /// True while it is not known yet whether a log beyond its bound comes back.
    pub fn is_watching(&self, now: &Now) -> bool {
        self.window.as_ref().is_some_and(|window| now.since(window.since_ms) < STAYS_AFTER)
    }

    /// There is no log to look at.
    pub fn forget(&mut self) {
        self.window = None;
    }
}

impl Window {
    fn new(sample: &Sample, now: &Now) -> Self {
        let pin = pin(sample);
        Self {
            since_ms: now.boottime_ms,
            pin,
            pinned_by: pids(sample, pin),
            always_read: pin.is_some(),
            writer: sample.writer,
            frames: (sample.index.frame_max, sample.index.frame_max),
            first: sample.clone(),
        }
    }

    fn seen(mut self, sample: &Sample) -> Self {
        self.frames = (sample.index.frame_max, self.frames.0);
        let now = pin(sample);
        self.always_read &= now.is_some();
        if now == self.pin {
            let pids = pids(sample, now);
            self.pinned_by.retain(|pid| pids.contains(pid));
        } else {
            self.pin = None;
            self.pinned_by.clear();
        }
        if self.writer != sample.writer {
            self.writer = None;
        }
        self
    }

    fn judge(&self, sample: &Sample, one_shot: bool, over_for: Duration) -> Option<Growth> {
        let index = &sample.index;
        let live_bytes = index.live_bytes();
        let moved = index.frame_max != self.first.index.frame_max;
        let written = sample.wal_bytes > self.first.wal_bytes;
        let waiting_bytes = u64::from(index.only_in_log()) * index.frame_bytes();
        let growth = |cause| Some(Growth { cause, over_for, live_bytes, waiting_bytes });
        if let (Some(pid), true, false) = (self.writer, written, moved) {
            return growth(Cause::OpenTransaction(pid));
        }
        // Left large by an earlier transaction, and used again from its start.
        let left_over = live_bytes <= sample.max_bytes;
        // Copied back whole, and at rest: the next writer begins again at the start.
        let copied_back = index.only_in_log() == 0 && self.frames.0 == self.frames.1;
        if left_over || copied_back {
            return None;
        }
        if self.pin.is_some() && !self.pinned_by.is_empty() {
            return growth(Cause::Reader(self.pinned_by.clone()));
        }
        if self.pin.is_some() && self.always_read && pids(sample, self.pin).is_empty() {
            return growth(Cause::Reader(BTreeSet::new()));
        }
        if self.always_read && !one_shot {
            return growth(Cause::ReadersInTurn);
        }
        let stands = index.backfill == self.first.index.backfill;
        growth(if stands { Cause::NoCheckpoint } else { Cause::Behind })
    }
}

/// The reader that a checkpoint cannot pass: the one that looks at the oldest state.
fn pin(sample: &Sample) -> Option<(usize, u32)> {
    let index = &sample.index;
    let held = sample.readers.iter().zip(index.read_marks).enumerate().filter(|(_, (pids, _))| pids.is_some());
    let marks = held.filter_map(|(slot, (_, mark))| match slot {
        // This one reads the database itself: nothing is copied into it meanwhile.
        0 => (index.only_in_log() > 0).then_some((0, 0)),
        _ => (mark != MARK_UNUSED && mark < index.frame_max).then_some((slot, mark)),
    });
    marks.min_by_key(|(_, mark)| *mark)
}

fn pids(sample: &Sample, pin: Option<(usize, u32)>) -> BTreeSet<u32> {
    pin.and_then(|(slot, _)| sample.readers.get(slot)?.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::time::Timestamp;

    const MAX: u64 = 64 << 20;
    /// More frames of 4 KiB than fit below the bound.
    const MANY: u32 = 20_000;

    fn sample(frames: u32, backfill: u32) -> Sample {
        let index = Index {
            sound: true,
            page_bytes: 4096,
            frame_max: frames,
            frame_checksum: [1, 2],
            salts: [7; 8],
            backfill,
            read_marks: [0, MARK_UNUSED, MARK_UNUSED, MARK_UNUSED, MARK_UNUSED],
        };
        Sample { wal_bytes: 100 << 20, max_bytes: MAX, index, readers: Default::default(), writer: None, in_use: true }
    }

    fn read_by(mut sample: Sample, slot: usize, mark: u32, pids: &[u32]) -> Sample {
        sample.index.read_marks[slot] = mark;
        sample.readers[slot] = Some(pids.iter().copied().collect());
        sample
    }

    fn grown(mut sample: Sample, bytes: u64) -> Sample {
        sample.wal_bytes += bytes;
        sample
    }

    /// The samples come every 30 s; the cause that is told with the last one.
    fn check(samples: Vec<Sample>, expected: Option<Cause>) {
        let mut watch = GrowthWatch::default();
        let mut told = None;
        for (number, sample) in samples.into_iter().enumerate() {
            let now = Now { boottime_ms: 30_000 * number as u64, wall: Timestamp::UNIX_EPOCH };
            told = watch.sample(sample, false, &now);
        }
        assert_eq!(told.map(|growth| growth.cause), expected);
    }

    #[test]
    fn large_and_empty_is_no_problem() {
        check(vec![sample(10, 10), sample(50, 50), sample(60, 60)], None);
        check(vec![sample(10, 0), sample(50, 0), sample(60, 0)], None);
        check(vec![sample(MANY, 5), sample(MANY + 5, MANY + 5), sample(MANY + 5, MANY + 5)], None);
        let mut unused = sample(MANY, 0);
        unused.in_use = false;
        check(vec![unused.clone(), unused.clone(), unused], None);
    }

    #[test]
    fn what_keeps_it_is_named() {
        check(vec![sample(MANY, 5), sample(MANY, 5), sample(MANY + 9, 5)], Some(Cause::NoCheckpoint));
        check(vec![sample(MANY, 5), sample(MANY + 5, 90), sample(MANY + 9, 900)], Some(Cause::Behind));
        let pinned = |frames, pids: &[u32]| read_by(sample(frames, 5), 1, 5, pids);
        check(
            vec![pinned(MANY, &[7, 8]), pinned(MANY + 1, &[7]), pinned(MANY + 2, &[7, 9])],
            Some(Cause::Reader(BTreeSet::from([7]))),
        );
        check(
            vec![pinned(MANY, &[]), pinned(MANY + 1, &[]), pinned(MANY + 2, &[])],
            Some(Cause::Reader(BTreeSet::new())),
        );
        check(vec![pinned(MANY, &[7]), pinned(MANY + 1, &[8]), pinned(MANY + 2, &[9])], Some(Cause::ReadersInTurn));
        let database_reader = |frames| read_by(sample(frames, 0), 0, 0, &[3]);
        check(
            vec![database_reader(MANY), database_reader(MANY), database_reader(MANY)],
            Some(Cause::Reader(BTreeSet::from([3]))),
        );
        let written = |bytes| Sample { writer: Some(Some(4)), ..grown(sample(10, 10), bytes) };
        check(vec![written(0), written(1 << 20), written(2 << 20)], Some(Cause::OpenTransaction(Some(4))));
        check(vec![written(0), written(0), written(0)], None);
    }

    #[test]
    fn a_reader_of_the_newest_state_is_in_nobodys_way_and_a_new_log_came_back() {
        let newest = read_by(sample(MANY, 5), 1, MANY, &[7]);
        check(vec![newest.clone(), newest.clone(), newest.clone()], Some(Cause::NoCheckpoint));
        let mut anew = sample(MANY, 5);
        anew.index.salts = [8; 8];
        check(vec![sample(MANY, 5), sample(MANY, 5), anew], None);
    }

    #[test]
    fn one_look_is_enough_for_doctor() {
        let now = Now { boottime_ms: 5, wall: Timestamp::UNIX_EPOCH };
        let mut watch = GrowthWatch::default();
        let growth = watch.sample(read_by(sample(MANY, 5), 1, 5, &[7]), true, &now).unwrap();
        assert_eq!((growth.cause, growth.over_for), (Cause::Reader(BTreeSet::from([7])), Duration::ZERO));
        assert_eq!(default_max_bytes(0), 64 << 20);
        assert_eq!(default_max_bytes(400 << 20), 200 << 20);
        assert_eq!(default_max_bytes(u64::MAX), 1 << 30);
    }
}

//! Follows log files through every way of rotation: renamed, copied and truncated, deleted, retargeted.
//!
//! A file is (device, inode) and how it begins, never its name. Must never read a line twice, never lose one that is
//! still on disk uncompressed, never hold a place in memory that the file itself holds, and never block.

use super::super::regular::{Found, open_regular};
use super::siblings::{Sibling, is_compressed, matches_pattern, siblings};
use muster_agent_core::log::{LINE_BYTES_MAX, Splitter};
use rustix::fs::{AtFlags, FileType, OFlags, Stat, StatxFlags, fstat, stat, statx};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Files of one pattern: beyond it the rest is counted and told.
const FILES_MAX: usize = 32;
/// Files kept at once, those that were rotated away included.
const TAILS_MAX: usize = 64;
/// Bytes read in one run, so that one busy log does not hold the lane.
const RUN_BYTES_MAX: u64 = 4 << 20;
/// Bytes read of one file before the next has its turn; a line always fits.
const TURN_BYTES: usize = 64 * 1024;
/// A file this far ahead is not caught up with: old news is none. What is skipped is counted.
const BACKLOG_BYTES_MAX: u64 = 64 << 20;
/// What is still read of such a backlog, and of a log that a one-shot diagnosis looks into.
const LOOK_BACK_BYTES: u64 = 256 * 1024;
/// Bytes at the begin of a file that make it known again.
const PRINT_BYTES: usize = 256;
/// A writer has this long to notice that its file was renamed.
const DRAIN_MS: u64 = 60_000;
/// And to end a line that it has begun: the last words of one that crashed have no end.
const UNENDED_MS: u64 = 60_000;
/// The way out of a permission problem.
const WAY_OUT: &str =
    "let the agent's user read it (group adm has most logs of Debian), or give it CAP_DAC_READ_SEARCH";

const _: () = assert!(TURN_BYTES > LINE_BYTES_MAX);

/// What survives a restart.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct FileState {
    /// False until the first run has found the ends of what was there.
    started: bool,
    /// When there was nothing at all for the first time, in seconds since 1970: what is made later is new from its begin.
    #[serde(default)]
    absent_unix_s: Option<i64>,
    tails: Vec<Tail>,
}

/// One file and how far it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Tail {
    /// Where it was found first.
    path: PathBuf,
    device: u64,
    inode: u64,
    offset: u64,
    splitter: Splitter,
    print: Print,
    /// No longer at its path; since when it has not grown, `CLOCK_BOOTTIME`.
    rotated_ms: Option<u64>,
    /// At its end is a line without an end: the size of the file, and since when it has not grown, `CLOCK_BOOTTIME`.
    #[serde(default)]
    unended: Option<(u64, u64)>,
}

/// How a file begins, as far as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Print {
    bytes: usize,
    hash: u64,
}

/// What is known of a line beside its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct About {
    /// It was too long, and this is its begin.
    pub(super) cut: bool,
    /// When its file was written last: no line of it is younger.
    pub(super) until_unix_ms: i64,
}

/// What one run brought beside its lines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct FilePass {
    pub(super) bytes: u64,
    pub(super) files: u64,
    pub(super) backlog_bytes: u64,
    pub(super) skipped_bytes: u64,
    pub(super) rotations: u64,
    /// Files that went away with an end that nobody read.
    pub(super) lost_files: u64,
    pub(super) too_many_files: u64,
    /// Why something could not be read, and the way out.
    pub(super) unreadable: Option<(String, Option<&'static str>)>,
}

/// Follows one path or pattern.
#[derive(Debug)]
pub(super) struct Follower {
    path: PathBuf,
    state: FileState,
    open: BTreeMap<(u64, u64), Opened>,
    turn: usize,
}

#[derive(Debug)]
struct Opened {
    file: File,
    /// Size and time of change when it was last looked at: the same means that nothing happened.
    looked_at: Option<(u64, i64, u64)>,
}

impl Follower {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, state: FileState::default(), open: BTreeMap::new(), turn: 0 }
    }

    pub(super) const fn state(&self) -> &FileState {
        &self.state
    }

    pub(super) fn restore(&mut self, state: FileState) {
        self.state = state;
        self.open.clear();
    }

    /// The host was rebooted since the state was saved: the boot-time clock starts anew.
    pub(super) fn rebooted(&mut self) {
        for tail in &mut self.state.tails {
            tail.rotated_ms = tail.rotated_ms.map(|_| 0);
            tail.unended = tail.unended.map(|(size, _)| (size, 0));
        }
    }

    /// Reads what is new, line by line. With `look_back` (seconds since 1970) the end of files that
    /// were written since then is new as well, and a last line without an end is not waited for.
    pub(super) fn pass(&mut self, now_ms: u64, look_back: Option<i64>, line: &mut dyn FnMut(&[u8], About)) -> FilePass {
        let mut pass = FilePass::default();
        let targets = self.targets(&mut pass);
        let mut live = Vec::new();
        for path in &targets {
            match self.find(path, now_ms, look_back, &mut pass) {
                Ok(key) => live.push(key),
                Err(reason) => pass.unreadable = Some(reason),
            }
        }
        if live.is_empty() && !self.state.started && self.state.absent_unix_s.is_none() && self.is_absent(&targets) {
            self.state.absent_unix_s = Some(crate::clock::now().wall.unix_ms() / 1000);
        }
        self.note_rotated(&live, now_ms, &mut pass);
        if !live.is_empty() {
            self.state.started = true;
        }
        self.read(now_ms, look_back.is_some(), line, &mut pass);
        self.forget(now_ms, line);
        pass.files = u64::try_from(live.len()).unwrap_or(u64::MAX);
        pass
    }

    /// The files that the path names now.
    fn targets(&self, pass: &mut FilePass) -> Vec<PathBuf> {
        let pattern = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !pattern.contains(['*', '?']) {
            return vec![self.path.clone()];
        }
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let names = match siblings(folder) {
            Ok(siblings) => siblings.into_iter().map(|sibling| sibling.name),
            Err(error) => {
                let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
                let why = format!("{} cannot be listed: {error}", folder.display());
                pass.unreadable = Some((why, denied.then_some(WAY_OUT)));
                return Vec::new();
            }
        };
        let mut names: Vec<String> =
            names.filter(|name| matches_pattern(&pattern, name) && !is_compressed(name)).collect();
        // What was rotated away is found from its log, also where the pattern fits it.
        let all = names.clone();
        let is_rotation = |name: &str| {
            let sibling = Sibling { name: name.to_owned(), inode: 0 };
            all.iter().any(|other| sibling.is_rotation_of(Path::new(other)))
        };
        names.retain(|name| !is_rotation(name));
        names.sort();
        if names.is_empty() {
            pass.unreadable = Some((format!("no file fits {}", self.path.display()), None));
        }
        pass.too_many_files = u64::try_from(names.len().saturating_sub(FILES_MAX)).unwrap_or(u64::MAX);
        names.truncate(FILES_MAX);
        names.into_iter().map(|name| folder.join(name)).collect()
    }

    /// Whether nothing is there, as far as that can be seen.
    fn is_absent(&self, targets: &[PathBuf]) -> bool {
        let gone = |path: &Path| matches!(stat(path), Err(Errno::NOENT | Errno::NOTDIR));
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        targets.iter().all(|path| gone(path))
            && (!targets.is_empty() || gone(folder) || std::fs::read_dir(folder).is_ok())
    }

    /// Finds out which file is at `path`, opens it if it is another one, and notices a truncation.
    fn find(
        &mut self,
        path: &Path,
        now_ms: u64,
        look_back: Option<i64>,
        pass: &mut FilePass,
    ) -> Result<(u64, u64), (String, Option<&'static str>)> {
        let unreadable = |errno: Errno| {
            let why = match errno {
                Errno::NOENT | Errno::NOTDIR => format!("{} does not exist", path.display()),
                other => format!("{} cannot be read: {}", path.display(), std::io::Error::from(other)),
            };
            (why, matches!(errno, Errno::ACCESS | Errno::PERM).then_some(WAY_OUT))
        };
        let status = stat(path).map_err(unreadable)?;
        let key = (status.st_dev, status.st_ino);
        let change = change_of(&status);
        if self.open.get(&key).is_some_and(|opened| opened.looked_at == Some(change)) {
            return Ok(key);
        }
        if let Entry::Vacant(place) = self.open.entry(key) {
            match open_regular(path, OFlags::empty()).map_err(unreadable)? {
                Found::File(file, status) if (status.st_dev, status.st_ino) == key => {
                    place.insert(Opened { file, looked_at: None });
                }
                // Rotated between the two looks: the next run sees it.
                Found::File(..) => return Err((format!("{} is being rotated", path.display()), None)),
                Found::Other(kind) => {
                    return Err((format!("{} is a {}, not a file", path.display(), what_it_is(kind)), None));
                }
            }
        }
        let look_back = look_back.is_some_and(|since| status.st_mtime >= since);
        self.meet(path, key, change.0, now_ms, look_back, pass);
        if let Some(opened) = self.open.get_mut(&key) {
            opened.looked_at = Some(change);
        }
        Ok(key)
    }

    /// Makes sure that the open file at `path` has its tail, at the right place.
    fn meet(&mut self, path: &Path, key: (u64, u64), size: u64, now_ms: u64, look_back: bool, pass: &mut FilePass) {
        let started = self.state.started;
        let known = self.state.tails.iter().position(|tail| (tail.device, tail.inode) == key);
        let known = known.or_else(|| self.moved_device(path, key, size));
        let Some(opened) = self.open.get(&key) else { return };
        let Some(index) = known else {
            let new = self.state.absent_unix_s.is_some_and(|since| opened.made_unix_s() >= since);
            let offset = match (started || new, look_back) {
                (true, _) => 0,
                (false, true) => size.saturating_sub(LOOK_BACK_BYTES),
                (false, false) => size,
            };
            // A part of a line at the end has no begin for us.
            let inside = offset > 0 && opened.byte_before(offset) != Some(b'\n');
            let splitter = if inside { Splitter::inside_a_line() } else { Splitter::default() };
            let (device, inode) = key;
            let print = opened.print(offset);
            self.state.tails.push(Tail {
                path: path.to_owned(),
                device,
                inode,
                offset,
                splitter,
                print,
                rotated_ms: None,
                unended: None,
            });
            return;
        };
        let Some(tail) = self.state.tails.get_mut(index) else { return };
        tail.rotated_ms = None;
        if size >= tail.offset && opened.has_print(tail.print) {
            return;
        }
        // The same file, and what was read of it is gone: copied and truncated, or the inode is another file's now.
        let old = tail.clone();
        (tail.offset, tail.splitter, tail.print) = (0, Splitter::default(), Print::default());
        tail.path = path.to_owned();
        pass.rotations += 1;
        if old.print.bytes > 0 {
            self.take_over_rotated(&old, None, now_ms, pass);
        }
    }

    /// The tail of the same file on a file system whose device has another number since the agent last ran: a reboot or
    /// a new mount may give it one (btrfs, overlayfs, NFS).
    fn moved_device(&mut self, path: &Path, (device, inode): (u64, u64), size: u64) -> Option<usize> {
        let opened = self.open.get(&(device, inode))?;
        let is_it = |tail: &Tail| {
            tail.inode == inode
                && tail.path == path
                && tail.print.bytes > 0
                && size >= tail.offset
                && !self.open.contains_key(&(tail.device, tail.inode))
                && opened.has_print(tail.print)
        };
        let index = self.state.tails.iter().position(is_it)?;
        self.state.tails.get_mut(index)?.device = device;
        Some(index)
    }

    /// Looks at what is no longer where it was.
    fn note_rotated(&mut self, live: &[(u64, u64)], now_ms: u64, pass: &mut FilePass) {
        let gone: Vec<Tail> =
            self.state.tails.iter().filter(|tail| !live.contains(&(tail.device, tail.inode))).cloned().collect();
        for tail in gone {
            let key = (tail.device, tail.inode);
            let first_time = tail.rotated_ms.is_none();
            if self.open.contains_key(&key) {
                for known in self.state.tails.iter_mut().filter(|known| (known.device, known.inode) == key) {
                    known.rotated_ms.get_or_insert(now_ms);
                }
                if first_time {
                    pass.rotations += 1;
                    let mtime = self.open.get(&key).and_then(|opened| fstat(&opened.file).ok()).map(|s| mtime_of(&s));
                    self.take_unseen(&tail, mtime, now_ms);
                }
            } else {
                // Known from an earlier life of the agent alone.
                self.state.tails.retain(|known| (known.device, known.inode) != key);
                pass.rotations += u64::from(first_time);
                self.take_over_rotated(&tail, Some(key), now_ms, pass);
            }
        }
    }

    /// Finds the file that has the rest of `old`: the same inode under another name, or a copy of it.
    fn take_over_rotated(&mut self, old: &Tail, key: Option<(u64, u64)>, now_ms: u64, pass: &mut FilePass) {
        let mut candidates = Vec::new();
        for folder in folders_of(&old.path) {
            let listed = siblings(&folder).unwrap_or_default();
            let fits = |sibling: &Sibling| {
                let same = key.is_some_and(|(_, inode)| sibling.inode == inode);
                (same || sibling.is_rotation_of(&old.path)) && !is_compressed(&sibling.name)
            };
            candidates.extend(listed.into_iter().filter(fits).map(|sibling| (folder.join(&sibling.name), sibling)));
        }
        // The same inode is better than a copy, and of copies the newest.
        let mut found: Option<(bool, i64, PathBuf, Opened, Stat)> = None;
        for (path, _) in candidates {
            let Ok(Found::File(file, status)) = open_regular(&path, OFlags::NOFOLLOW) else { continue };
            let opened = Opened { file, looked_at: None };
            let same = key == Some((status.st_dev, status.st_ino));
            let tracked = self.is_tracked((status.st_dev, status.st_ino));
            let size = u64::try_from(status.st_size).unwrap_or(0);
            let whole = size >= old.offset && opened.has_print(old.print) && (same || old.print.bytes > 0);
            if tracked || !whole {
                continue;
            }
            let rank = (same, mtime_of(&status));
            if found.as_ref().is_none_or(|(best_same, best_time, ..)| rank > (*best_same, *best_time)) {
                found = Some((same, rank.1, path, opened, status));
            }
        }
        match found {
            Some((_, mtime, _, opened, status)) => {
                let (device, inode) = (status.st_dev, status.st_ino);
                self.open.insert((device, inode), opened);
                self.push_rotated(Tail { device, inode, rotated_ms: Some(now_ms), ..old.clone() });
                self.take_unseen(old, Some(mtime), now_ms);
            }
            None => pass.lost_files += 1,
        }
    }

    /// Files that came and were rotated away while nobody looked: newer than the last known, and not the live one.
    fn take_unseen(&mut self, old: &Tail, newer_than: Option<i64>, now_ms: u64) {
        let Some(newer_than) = newer_than else { return };
        for folder in folders_of(&old.path) {
            let rotated = siblings(&folder).unwrap_or_default();
            for sibling in rotated.iter().filter(|s| s.is_rotation_of(&old.path) && !is_compressed(&s.name)) {
                let path = folder.join(&sibling.name);
                let Ok(status) = stat(&path) else { continue };
                let key = (status.st_dev, status.st_ino);
                if mtime_of(&status) <= newer_than || self.is_tracked(key) {
                    continue;
                }
                let Ok(Found::File(file, status)) = open_regular(&path, OFlags::NOFOLLOW) else { continue };
                let (device, inode) = (status.st_dev, status.st_ino);
                let opened = Opened { file, looked_at: None };
                // A copy of what was read already is no news.
                if old.print.bytes > 0 && opened.has_print(old.print) {
                    continue;
                }
                self.open.insert((device, inode), opened);
                self.push_rotated(Tail {
                    path: old.path.clone(),
                    device,
                    inode,
                    offset: 0,
                    splitter: Splitter::default(),
                    print: Print::default(),
                    rotated_ms: Some(now_ms),
                    unended: None,
                });
            }
        }
    }

    /// Open, or known from an earlier life and still to be found.
    fn is_tracked(&self, key: (u64, u64)) -> bool {
        self.open.contains_key(&key) || self.state.tails.iter().any(|tail| (tail.device, tail.inode) == key)
    }

    fn push_rotated(&mut self, tail: Tail) {
        if self.state.tails.len() < TAILS_MAX {
            self.state.tails.push(tail);
        }
    }

    /// Reads in turns, what was rotated away before what replaced it.
    fn read(&mut self, now_ms: u64, once: bool, line: &mut dyn FnMut(&[u8], About), pass: &mut FilePass) {
        let mut buffer = Vec::new();
        let count = self.state.tails.len();
        if count == 0 {
            return;
        }
        self.turn = (self.turn + 1) % count;
        let (first, second): (Vec<usize>, Vec<usize>) = (0..count)
            .map(|index| (index + self.turn) % count)
            .partition(|index| self.state.tails.get(*index).is_some_and(|tail| tail.rotated_ms.is_some()));
        for round in [first, second] {
            let mut hungry = round;
            while !hungry.is_empty() && pass.bytes < RUN_BYTES_MAX {
                hungry.retain(|index| self.read_turn(*index, (now_ms, once), &mut buffer, line, pass));
            }
        }
        for tail in &self.state.tails {
            let size = self.open.get(&(tail.device, tail.inode)).map_or(0, Opened::size);
            pass.backlog_bytes = pass.backlog_bytes.saturating_add(size.saturating_sub(tail.offset));
        }
    }

    /// One turn of one file; true when there may be more.
    fn read_turn(
        &mut self,
        index: usize,
        (now_ms, once): (u64, bool),
        buffer: &mut Vec<u8>,
        line: &mut dyn FnMut(&[u8], About),
        pass: &mut FilePass,
    ) -> bool {
        let Some(tail) = self.state.tails.get_mut(index) else { return false };
        let Some(opened) = self.open.get(&(tail.device, tail.inode)) else { return false };
        let size = opened.size();
        let behind = size.saturating_sub(tail.offset);
        if behind == 0 {
            return false;
        }
        if behind > BACKLOG_BYTES_MAX {
            pass.skipped_bytes += behind - LOOK_BACK_BYTES;
            tail.offset = size - LOOK_BACK_BYTES;
            tail.splitter = Splitter::inside_a_line();
        }
        buffer.resize(usize::try_from(behind).unwrap_or(TURN_BYTES).min(TURN_BYTES), 0);
        let Ok(read) = opened.file.read_at(buffer, tail.offset) else { return false };
        let chunk = buffer.get(..read).unwrap_or_default();
        let until_unix_ms = opened.written_unix_ms();
        let mut line = |text: &[u8], cut| line(text, About { cut, until_unix_ms });
        let mut done = tail.splitter.split(chunk, false, &mut line);
        if done == 0 && tail.stays_unended(size, now_ms, once) {
            // What follows after all is taken as a line: mostly it is the first of the next start.
            done = tail.splitter.split(chunk, true, &mut line);
        }
        let done = u64::try_from(done).unwrap_or(0);
        tail.offset = tail.offset.saturating_add(done);
        pass.bytes = pass.bytes.saturating_add(done);
        if tail.print.bytes < PRINT_BYTES {
            tail.print = opened.print(tail.offset);
        }
        if let Some(rotated_ms) = tail.rotated_ms.as_mut().filter(|_| done > 0) {
            *rotated_ms = now_ms;
        }
        done > 0
    }

    /// Lets go of files that were rotated away and have not grown for long; what is left of them is their last line.
    fn forget(&mut self, now_ms: u64, line: &mut dyn FnMut(&[u8], About)) {
        let is_over = |tail: &Tail| tail.rotated_ms.is_some_and(|since| now_ms.saturating_sub(since) >= DRAIN_MS);
        let over: Vec<Tail> = self.state.tails.iter().filter(|tail| is_over(tail)).cloned().collect();
        for mut tail in over {
            let key = (tail.device, tail.inode);
            let Some(opened) = self.open.get(&key) else { continue };
            if opened.size().saturating_sub(tail.offset) > TURN_BYTES as u64 {
                continue;
            }
            let mut rest = vec![0; TURN_BYTES];
            let read = opened.file.read_at(&mut rest, tail.offset).unwrap_or(0);
            let until_unix_ms = opened.written_unix_ms();
            let rest = rest.get(..read).unwrap_or_default();
            tail.splitter.split(rest, true, |text, cut| line(text, About { cut, until_unix_ms }));
            self.open.remove(&key);
            self.state.tails.retain(|known| (known.device, known.inode) != key);
        }
        let tails = &self.state.tails;
        self.open.retain(|key, _| tails.iter().any(|tail| (tail.device, tail.inode) == *key));
    }
}

impl Tail {
    /// Whether nothing ends its last line any more, in a file of this size.
    fn stays_unended(&mut self, size: u64, now_ms: u64, once: bool) -> bool {
        let (known, since_ms) = *self.unended.get_or_insert((size, now_ms));
        if known != size {
            self.unended = Some((size, now_ms));
        }
        let stays = once || (known == size && now_ms.saturating_sub(since_ms) >= UNENDED_MS);
        let stays = stays && self.rotated_ms.is_none();
        if stays {
            self.unended = None;
        }
        stays
    }
}

impl Opened {
    fn written_unix_ms(&self) -> i64 {
        fstat(&self.file).map_or(i64::MAX, |status| mtime_of(&status) / 1_000_000)
    }

    fn size(&self) -> u64 {
        fstat(&self.file).map_or(0, |status| u64::try_from(status.st_size).unwrap_or(0))
    }

    /// When it was made; where the file system does not tell, when it was last changed.
    fn made_unix_s(&self) -> i64 {
        let wanted = StatxFlags::BTIME | StatxFlags::CTIME;
        let Ok(told) = statx(&self.file, "", AtFlags::EMPTY_PATH, wanted) else { return i64::MIN };
        let has_birth = StatxFlags::from_bits_retain(told.stx_mask).contains(StatxFlags::BTIME);
        if has_birth { told.stx_btime.tv_sec } else { told.stx_ctime.tv_sec }
    }

    fn byte_before(&self, offset: u64) -> Option<u8> {
        let mut byte = [0];
        let read = self.file.read_at(&mut byte, offset.checked_sub(1)?).ok()?;
        (read == 1).then_some(byte[0])
    }

    /// The print of what is read of it up to `offset`.
    fn print(&self, offset: u64) -> Print {
        let bytes = usize::try_from(offset).unwrap_or(PRINT_BYTES).min(PRINT_BYTES);
        self.hash(bytes).map_or_else(Print::default, |hash| Print { bytes, hash })
    }

    fn has_print(&self, print: Print) -> bool {
        self.hash(print.bytes) == Some(print.hash) || print.bytes == 0
    }

    /// FNV-1a of the first bytes; `None` when there are fewer.
    fn hash(&self, bytes: usize) -> Option<u64> {
        let mut head = [0; PRINT_BYTES];
        let head = head.get_mut(..bytes)?;
        self.file.read_exact_at(head, 0).ok()?;
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        Some(head.iter().fold(0xcbf2_9ce4_8422_2325, step))
    }
}

/// The folder of a path, and that of the file a symbolic link leads to.
fn folders_of(path: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = path.parent().map(Path::to_owned).into_iter().collect();
    if let Ok(target) = std::fs::canonicalize(path)
        && let Some(folder) = target.parent().filter(|folder| !folders.iter().any(|known| known == folder))
    {
        folders.push(folder.to_owned());
    }
    folders
}

fn change_of(status: &Stat) -> (u64, i64, u64) {
    (u64::try_from(status.st_size).unwrap_or(0), status.st_mtime, status.st_mtime_nsec)
}

fn mtime_of(status: &Stat) -> i64 {
    let nanos = i64::try_from(status.st_mtime_nsec).unwrap_or(0);
    status.st_mtime.saturating_mul(1_000_000_000).saturating_add(nanos)
}

fn what_it_is(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "folder",
        FileType::Fifo => "named pipe",
        FileType::Socket => "socket",
        FileType::CharacterDevice | FileType::BlockDevice => "device",
        _ => "special file",
    }
}

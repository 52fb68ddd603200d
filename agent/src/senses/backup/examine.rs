//! The look into copies, on a thread that can change nothing.
//!
//! Invariant: an answer is about the file that was listed. Whether it was changed meanwhile is asked before and after;
//! the judge drops what is about a file that is not there any more.

use crate::sandbox::{SandboxError, SandboxState};
use crate::senses::HostRoot;
use crate::senses::regular::{Found, open_regular};
use crate::senses::sqlite::at_rest::{AtRest, Restricted};
use muster_agent_core::backup::archive::{self, Archive, Broken, HEAD_BYTES};
use muster_agent_core::backup::{Content, CopyFile};
use rustix::fs::OFlags;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A look at one copy ends itself after this.
pub(super) const LOOK_MAX: Duration = Duration::from_secs(300);
/// A thread that has not ended by then hangs in the kernel and loses its turn.
const HUNG_AFTER: Duration = Duration::from_secs(1200);
/// Threads that hang beside which another one still starts.
const HUNG_MAX: u32 = 2;
/// Rows of older copies are counted up to this size: they are what the first new copy is compared with.
const COUNT_BYTES_MAX: u64 = 64 << 20;

/// What was found in one copy.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) file: CopyFile,
    pub(super) content: Content,
}

/// The right to look: one thread at a time, since they share a disk.
#[derive(Debug)]
pub(super) struct Turn {
    ticket: u64,
}

struct Turns {
    ticket: u64,
    since: Option<Instant>,
    hung: u32,
}

static TURNS: Mutex<Turns> = Mutex::new(Turns { ticket: 0, since: None, hung: 0 });

impl Turn {
    /// `None` while another thread has it.
    pub(super) fn take() -> Option<Self> {
        let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = turns.since {
            if since.elapsed() < HUNG_AFTER || turns.hung >= HUNG_MAX {
                return None;
            }
            turns.hung += 1;
        }
        turns.ticket += 1;
        turns.since = Some(Instant::now());
        Some(Self { ticket: turns.ticket })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.ticket == self.ticket {
            turns.since = None;
        } else {
            turns.hung = turns.hung.saturating_sub(1);
        }
    }
}

/// Looks into one after the other, and tells each answer at once.
pub(super) fn all(
    root: &HostRoot,
    wanted: Vec<(CopyFile, bool)>,
    sandbox: Result<SandboxState, SandboxError>,
    bound: Duration,
    answers: &Sender<Answer>,
) {
    let restricted = Restricted::new(sandbox);
    let start = Instant::now();
    for (file, deep) in wanted {
        let left = bound.saturating_sub(start.elapsed());
        if left.is_zero() {
            return;
        }
        let content = one(&restricted, root, &file, deep, left);
        // Without an answer (it moved, it cannot be read) the next run asks again.
        if let Some(content) = content
            && answers.send(Answer { file, content }).is_err()
        {
            return;
        }
    }
}

/// All that is known without a look inside.
pub(super) fn from_outside() -> Content {
    Content {
        kind: "file".to_owned(),
        checked: "its size".to_owned(),
        not_checked: Some("its content: check = \"none\"".to_owned()),
        deep: true,
        ..Content::default()
    }
}

fn one(restricted: &Restricted, root: &HostRoot, file: &CopyFile, deep: bool, bound: Duration) -> Option<Content> {
    let path = root.path(&file.path);
    if file.size_bytes == 0 {
        return Some(Content { kind: "file".to_owned(), checked: "its size".to_owned(), deep, ..Content::default() });
    }
    let deep = deep || file.size_bytes <= COUNT_BYTES_MAX;
    let found = match restricted.look(&path, deep, bound) {
        Ok(AtRest::Database(content)) => content,
        Ok(AtRest::Other) => packed(&path, file, deep)?,
        Err(why) => unread(&why),
    };
    is_still(&path, file).then_some(found)
}

/// The copy cannot be read now: nobody may take that for a good or for a bad one.
fn unread(why: &str) -> Content {
    Content {
        kind: "file".to_owned(),
        checked: "its size".to_owned(),
        not_checked: Some(format!("its content: {why}")),
        unread: true,
        ..Content::default()
    }
}

/// What is no database: an archive, or some other file.
fn packed(path: &Path, file: &CopyFile, deep: bool) -> Option<Content> {
    let opened = match open_regular(path, OFlags::empty()) {
        Ok(Found::File(opened, _)) => opened,
        Ok(Found::Other(_)) => return None,
        Err(error) => return Some(unread(&error.to_string())),
    };
    let mut head = vec![0; HEAD_BYTES.min(usize::try_from(file.size_bytes).unwrap_or(HEAD_BYTES))];
    if let Err(error) = opened.read_exact_at(&mut head, 0) {
        return Some(unread(&error.to_string()));
    }
    let content = Content { deep, ..Content::default() };
    let kind = Archive::of(&head);
    let promised = Archive::promised_by(&file.path);
    let Some(kind) = kind else { return Some(not_an_archive(content, promised, &file.path, &head)) };
    let (checked, not_checked) = kind.coverage();
    let content = Content {
        kind: kind.as_str().to_owned(),
        checked: checked.to_owned(),
        not_checked: Some(not_checked.to_owned()),
        ..content
    };
    let mut unread = false;
    let mut read = |at: u64, room: &mut [u8]| {
        let read = opened.read_exact_at(room, at);
        unread |= read.is_err();
        read.map_err(|error| error.to_string())
    };
    let checked = archive::check(kind, size_of(&opened, file), &mut read);
    Some(match checked {
        Ok(()) => content,
        // One with more parts than are followed was read, as far as it ever is.
        Err(Broken::Unread(why)) => Content { not_checked: Some(format!("all of it: {why}")), unread, ..content },
        Err(broken) => {
            let holds_nothing = matches!(broken, Broken::Nothing(_));
            Content { damage: Some(broken.to_string()), holds_nothing, ..content }
        }
    })
}

fn not_an_archive(content: Content, promised: Option<Archive>, path: &str, head: &[u8]) -> Content {
    let named_database = [".db", ".sqlite", ".sqlite3"].iter().any(|ending| path.ends_with(ending));
    let damage = match promised {
        Some(promised) => Some(format!("it does not begin like the {} file that its name promises", promised.as_str())),
        None if head.iter().all(|byte| *byte == 0) => Some("it begins with nothing but zero bytes".to_owned()),
        None if named_database => Some("it does not begin like a SQLite database".to_owned()),
        None => None,
    };
    let (checked, not_checked) = ("its size and first bytes", "its content: of no kind that is known here");
    Content {
        kind: "file".to_owned(),
        damage,
        checked: checked.to_owned(),
        not_checked: Some(not_checked.to_owned()),
        ..content
    }
}

fn size_of(opened: &File, file: &CopyFile) -> u64 {
    opened.metadata().map_or(file.size_bytes, |metadata| metadata.len())
}

/// The file that was listed, to the last write.
fn is_still(path: &Path, file: &CopyFile) -> bool {
    let modified_ms = |metadata: &std::fs::Metadata| {
        metadata.mtime().saturating_mul(1000).saturating_add(metadata.mtime_nsec() / 1_000_000)
    };
    std::fs::metadata(path).is_ok_and(|metadata| {
        metadata.ino() == file.inode
            && metadata.len() == file.size_bytes
            && modified_ms(&metadata) == file.modified.unix_ms()
    })
}

//! Follows entries of systemd's journal: of the files that are written now, and of those that were rotated away
//! before they were read.
//!
//! Must never start a program, never map a file (a file that shrinks would be a signal), and never read what its index
//! does not name.

use super::super::HostRoot;
use super::super::regular::{Found, open_regular};
use muster_agent_core::journal_file::{Chain, JournalEntry, JournalError, JournalFile, Source};
use rustix::fs::{OFlags, stat};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::{DirEntryExt, FileExt};
use std::path::PathBuf;

/// Files that are open at once: the system's, those of users, and what was just rotated.
const FILES_MAX: usize = 64;
/// Names looked at in a folder.
const NAMES_MAX: usize = 4096;
/// Entries of one match read in one run.
const ENTRIES_MAX: usize = 2_000;
/// Entries of one match that a one-shot diagnosis looks back on.
const LOOK_BACK_ENTRIES: u64 = 500;
/// What is asked of every entry.
const FIELDS: [&str; 5] = ["MESSAGE", "_SYSTEMD_UNIT", "_PID", "_COMM", "PRIORITY"];
const MESSAGE: usize = 0;
const UNIT: usize = 1;
const PID: usize = 2;
const PRIORITY: usize = 4;
/// The way out of a permission problem.
const WAY_OUT: &str = "add the agent's user to the group systemd-journal, or give it CAP_DAC_READ_SEARCH";

/// What survives a restart.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct JournalState {
    started: bool,
    /// When the last run looked, microseconds since 1970.
    looked_usec: u64,
    files: Vec<Cursor>,
}

/// How far one file is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Cursor {
    file_id: [u8; 16],
    inode: u64,
    /// Entries done, by match.
    done: Vec<u64>,
}

/// One line of the journal.
pub(super) struct JournalLine<'a> {
    pub(super) message: &'a [u8],
    pub(super) unix_ms: i64,
    pub(super) unit: Option<String>,
    /// As syslog counts: 0 is the gravest, 7 is debug.
    pub(super) priority: Option<u8>,
}

/// What one run brought beside its lines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct JournalPass {
    pub(super) files: u64,
    pub(super) entries: u64,
    pub(super) backlog_entries: u64,
    pub(super) unreadable_fields: u64,
    pub(super) unreadable: Option<(String, Option<&'static str>)>,
}

/// Entries that are followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Match {
    payload: Vec<u8>,
    /// The field can be set by anybody: only PID 1's word counts.
    only_from_init: bool,
}

impl Match {
    /// What the processes of a unit write.
    pub(super) fn written_by(unit: &str) -> Self {
        Self { payload: format!("_SYSTEMD_UNIT={unit}").into_bytes(), only_from_init: false }
    }

    /// What systemd writes about a unit.
    pub(super) fn about(unit: &str) -> Self {
        Self { payload: format!("UNIT={unit}").into_bytes(), only_from_init: true }
    }

    fn fits(&self, entry: &JournalEntry) -> bool {
        !self.only_from_init || entry.field(PID) == Some(b"1")
    }
}

/// Follows some entries of the host's journal.
#[derive(Debug)]
pub(super) struct JournalFollower {
    root: HostRoot,
    matches: Vec<Match>,
    state: JournalState,
    open: Vec<OpenFile>,
    /// Where the host's journal is, once its id is known: that is for as long as the host runs.
    folders: Vec<PathBuf>,
    /// Times of change of the folders when they were last listed.
    listed: Vec<(i64, u64)>,
}

#[derive(Debug)]
struct OpenFile {
    inode: u64,
    journal: JournalFile<Readable>,
    /// By match; `None` where the file has no such entry yet.
    chains: Vec<Option<Chain>>,
    done: Vec<u64>,
    /// Objects in the file when its matches were last looked for.
    objects: u64,
    /// No longer at its path: read once more, then closed.
    is_gone: bool,
}

/// An open journal file, read at any place.
#[derive(Debug)]
pub(crate) struct Readable(pub(crate) File);

impl Source for Readable {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> usize {
        let mut read = 0;
        while let Some(rest) = buffer.get_mut(read..).filter(|rest| !rest.is_empty()) {
            match self.0.read_at(rest, offset.saturating_add(u64::try_from(read).unwrap_or(u64::MAX))) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        read
    }
}

/// A name in a folder of the journal.
struct Listed {
    path: PathBuf,
    inode: u64,
    /// When its first entry was written, for files that were rotated away.
    archived_usec: Option<u64>,
}

impl JournalFollower {
    pub(super) fn new(root: HostRoot, matches: Vec<Match>) -> Self {
        let state = JournalState::default();
        Self { root, matches, state, open: Vec::new(), folders: Vec::new(), listed: Vec::new() }
    }

    pub(super) const fn state(&self) -> &JournalState {
        &self.state
    }

    pub(super) fn restore(&mut self, state: JournalState) {
        self.state = state;
        self.open.clear();
        self.listed.clear();
    }

    /// Reads what is new; `look_back` also some of what was there before.
    pub(super) fn pass(
        &mut self,
        now_unix_ms: i64,
        look_back: bool,
        line: &mut dyn FnMut(&JournalLine<'_>),
    ) -> JournalPass {
        let mut pass = JournalPass::default();
        if self.folders_changed() {
            self.list(look_back, &mut pass);
        } else {
            // A folder that is there and empty, or closed to us, stays so until it changes.
            pass.unreadable = self.open.is_empty().then(|| self.nothing_to_read());
        }
        for index in 0..self.open.len() {
            self.read(index, line, &mut pass);
        }
        // What is gone was read to its end, unless there was more than one run reads.
        if pass.backlog_entries == 0 {
            self.open.retain(|file| !file.is_gone);
        }
        self.state.files = self
            .open
            .iter()
            .map(|file| Cursor { file_id: file.journal.header().file_id, inode: file.inode, done: file.done.clone() })
            .collect();
        if !self.open.is_empty() {
            self.state.started = true;
            pass.unreadable = None;
        }
        self.state.looked_usec = u64::try_from(now_unix_ms.saturating_mul(1000)).unwrap_or(0);
        pass.files = u64::try_from(self.open.len()).unwrap_or(u64::MAX);
        pass
    }

    fn folders(&mut self) -> &[PathBuf] {
        if self.folders.is_empty() {
            let id = std::fs::read_to_string(self.root.path("/etc/machine-id")).unwrap_or_default();
            let id = id.trim();
            if id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                self.folders =
                    ["/var/log/journal", "/run/log/journal"].map(|base| self.root.path(base).join(id)).into();
            }
        }
        &self.folders
    }

    fn nothing_to_read(&mut self) -> (String, Option<&'static str>) {
        if self.folders().iter().any(|folder| folder.exists()) {
            let why = "the folders of the journal have no file that this agent can read".to_owned();
            return (why, Some(WAY_OUT));
        }
        let why = "there is no journal in /var/log/journal or /run/log/journal".to_owned();
        (why, Some("start systemd-journald with Storage=persistent or auto, or follow a log file instead"))
    }

    fn folders_changed(&mut self) -> bool {
        let time = |folder: &PathBuf| stat(folder).map_or((0, 0), |status| (status.st_mtime, status.st_mtime_nsec));
        let now: Vec<(i64, u64)> = self.folders().iter().map(time).collect();
        let changed = now.is_empty() || now != self.listed;
        self.listed = now;
        changed
    }

    /// Opens what is new, and notes what is gone.
    fn list(&mut self, look_back: bool, pass: &mut JournalPass) {
        let mut names = Vec::new();
        for folder in self.folders() {
            match std::fs::read_dir(folder) {
                Ok(entries) => {
                    let entries = entries.take(NAMES_MAX).filter_map(Result::ok);
                    names.extend(entries.filter_map(|entry| {
                        let name = entry.file_name().into_string().ok()?;
                        let archived_usec = archived_usec(&name)?;
                        Some(Listed { path: entry.path(), inode: entry.ino(), archived_usec })
                    }));
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => pass.unreadable = Some(unreadable(folder, &error)),
            }
        }
        let live: BTreeSet<u64> =
            names.iter().filter(|name| name.archived_usec.is_none()).map(|name| name.inode).collect();
        for file in &mut self.open {
            file.is_gone = !live.contains(&file.inode);
        }
        let known: BTreeSet<u64> = self.open.iter().map(|file| file.inode).collect();
        let remembered: BTreeSet<u64> = self.state.files.iter().map(|cursor| cursor.inode).collect();
        for name in names.iter().filter(|name| !known.contains(&name.inode)) {
            let wanted = match name.archived_usec {
                None => true,
                // Half read in an earlier life, or made and rotated away while nobody looked.
                Some(first_usec) => {
                    self.state.started && (remembered.contains(&name.inode) || first_usec > self.state.looked_usec)
                }
            };
            if wanted && self.open.len() < FILES_MAX {
                self.open_one(name, look_back, pass);
            }
        }
        if self.open.is_empty() && pass.unreadable.is_none() {
            pass.unreadable = Some(self.nothing_to_read());
        }
    }

    fn open_one(&mut self, name: &Listed, look_back: bool, pass: &mut JournalPass) {
        let (file, status) = match open_regular(&name.path, OFlags::NOFOLLOW) {
            Ok(Found::File(file, status)) => (file, status),
            Ok(Found::Other(_)) => return,
            Err(errno) => {
                pass.unreadable = Some(unreadable(&name.path, &errno.into()));
                return;
            }
        };
        let mut journal = match JournalFile::open(Readable(file)) {
            Ok(journal) => journal,
            Err(JournalError::NotAJournal) => return,
            Err(error) => {
                let why = format!("{}: {error}", name.path.display());
                pass.unreadable = Some((why, Some("update the agent, or follow a log file instead")));
                return;
            }
        };
        let mut chains = Vec::new();
        for one in &self.matches {
            chains.push(journal.find(&one.payload));
        }
        let file_id = journal.header().file_id;
        let cursor = self.state.files.iter().find(|cursor| cursor.file_id == file_id);
        let fits = |cursor: &&Cursor| cursor.done.len() == self.matches.len();
        let done = match cursor.filter(fits) {
            Some(cursor) => cursor.done.clone(),
            None if self.state.started => vec![0; self.matches.len()],
            None => {
                let back = if look_back { LOOK_BACK_ENTRIES } else { 0 };
                chains.iter().map(|chain| chain.map_or(0, |chain| chain.entries.saturating_sub(back))).collect()
            }
        };
        self.open.push(OpenFile {
            inode: status.st_ino,
            objects: journal.header().objects,
            journal,
            chains,
            done,
            is_gone: name.archived_usec.is_some(),
        });
    }

    /// Reads what is new in one file, in its own order.
    fn read(&mut self, index: usize, line: &mut dyn FnMut(&JournalLine<'_>), pass: &mut JournalPass) {
        let Some(file) = self.open.get_mut(index) else { return };
        if file.journal.refresh().is_err() {
            file.is_gone = true;
            return;
        }
        let objects = file.journal.header().objects;
        let mut found: Vec<(u64, usize)> = Vec::new();
        for (at, one) in self.matches.iter().enumerate() {
            let (Some(chain), Some(done)) = (file.chains.get_mut(at), file.done.get_mut(at)) else { continue };
            *chain = match *chain {
                Some(known) => file.journal.again(known),
                None if file.objects != objects || file.is_gone => file.journal.find(&one.payload),
                None => None,
            };
            let Some(chain) = *chain else { continue };
            if chain.entries <= *done {
                continue;
            }
            let offsets = file.journal.offsets(chain, *done, ENTRIES_MAX);
            *done = done.saturating_add(u64::try_from(offsets.len()).unwrap_or(0));
            pass.backlog_entries = pass.backlog_entries.saturating_add(chain.entries.saturating_sub(*done));
            if offsets.is_empty() {
                // Promised and not there: a broken file, which journald will rotate away. It is not waited for.
                pass.backlog_entries = 0;
            }
            found.extend(offsets.into_iter().map(|offset| (offset, at)));
        }
        file.objects = objects;
        found.sort_unstable();
        found.dedup_by_key(|(offset, _)| *offset);
        for (offset, at) in found {
            let Some(entry) = file.journal.entry(offset, &FIELDS) else { continue };
            pass.entries += 1;
            pass.unreadable_fields += entry.unreadable_fields;
            let Some(message) = entry.field(MESSAGE) else { continue };
            if !self.matches.get(at).is_some_and(|one| one.fits(&entry)) {
                continue;
            }
            let unit = entry.field(UNIT).map(|unit| String::from_utf8_lossy(unit).into_owned());
            let unix_ms = i64::try_from(entry.realtime_usec / 1000).unwrap_or(i64::MAX);
            let priority = entry.field(PRIORITY).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
            line(&JournalLine { message, unix_ms, unit, priority });
        }
    }
}

/// `None`: no journal file. `Some(None)`: one that is written now. `system@SEQNUM_ID-HEAD_SEQNUM-HEAD_USEC.journal`
/// was rotated away, with the time of its first entry in its name.
fn archived_usec(name: &str) -> Option<Option<u64>> {
    let stem = name.strip_suffix(".journal").or_else(|| name.strip_suffix(".journal~"))?;
    let Some((_, mark)) = stem.split_once('@') else {
        return (!name.ends_with('~')).then_some(None);
    };
    let usec = mark.rsplit('-').next().and_then(|hex| u64::from_str_radix(hex, 16).ok());
    Some(Some(usec.unwrap_or(0)))
}

fn unreadable(path: &std::path::Path, error: &std::io::Error) -> (String, Option<&'static str>) {
    let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
    (format!("{} cannot be read: {error}", path.display()), denied.then_some(WAY_OUT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_is_written_now() {
        assert_eq!(archived_usec("system.journal"), Some(None));
        assert_eq!(archived_usec("user-1000.journal"), Some(None));
        assert_eq!(archived_usec("system@e78d-0000000000000001-000660d3c9f0f268.journal"), Some(Some(0x660d3c9f0f268)));
        assert_eq!(archived_usec("system@000660d3c9f0f268-0123456789abcdef.journal~"), Some(Some(0x0123456789abcdef)));
        assert_eq!(archived_usec("fss"), None);
        assert_eq!(archived_usec("system.journal~"), None);
    }
}

//! Which files fit a pattern: names and `stat`, nothing is opened.

use crate::senses::HostRoot;
use muster_agent_core::backup::pattern::{Pattern, fits, is_unfinished};
use muster_agent_core::backup::{COPIES_MAX, CopyFile, Listing, Source};
use muster_common::time::Timestamp;
use std::collections::BTreeSet;
use std::fs::Metadata;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Names read in one listing. Beyond it the pattern is too wide to be judged.
const NAMES_MAX: usize = 20_000;

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
enum ListError {
    #[error("{0} cannot be read: {1}")]
    Read(String, io::Error),
    #[error("more than {NAMES_MAX} names lie where {0} looks")]
    TooMany(String),
}

/// One look at the folders.
struct Found {
    files: Vec<CopyFile>,
    inodes: BTreeSet<(u64, u64)>,
    unfinished: u64,
    names: usize,
}

/// Lists what fits `pattern`, and looks at the size of the source.
pub(super) fn list(root: &HostRoot, pattern: &Pattern, source: Option<&Path>) -> Listing {
    let mut found = Found { files: Vec::new(), inodes: BTreeSet::new(), unfinished: 0, names: 0 };
    let walked = walk(root, pattern, Path::new(pattern.folder()), pattern.components(), &mut found);
    let mut files = found.files;
    files.sort_by(|a, b| b.modified.cmp(&a.modified).then_with(|| a.path.cmp(&b.path)));
    let beyond = files.len().saturating_sub(COPIES_MAX);
    files.truncate(COPIES_MAX);
    let files = walked.map(|()| files).map_err(|error| {
        let way_out = match &error {
            ListError::Read(_, error) if error.kind() == ErrorKind::PermissionDenied => {
                Some("let the agent's user read and enter the folder, or start it with CAP_DAC_READ_SEARCH")
            }
            ListError::Read(..) => None,
            ListError::TooMany(_) => Some("name the folder of the copies more exactly in `path`"),
        };
        (error.to_string(), way_out)
    });
    Listing {
        files,
        beyond: beyond as u64,
        unfinished: found.unfinished,
        missing_folder: missing_folder(root, Path::new(pattern.folder())),
        source: source.map(|path| look_at(root, path)),
    }
}

fn walk(
    root: &HostRoot,
    pattern: &Pattern,
    folder: &Path,
    components: &[String],
    found: &mut Found,
) -> Result<(), ListError> {
    let Some((component, below)) = components.split_first() else { return Ok(()) };
    // A folder that is not there holds no copies.
    let entries = match std::fs::read_dir(root.path(folder)) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(ListError::Read(folder.display().to_string(), error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| ListError::Read(folder.display().to_string(), error))?;
        found.names += 1;
        if found.names > NAMES_MAX {
            return Err(ListError::TooMany(pattern.as_str().to_owned()));
        }
        let name = entry.file_name();
        // A name that is no text fits nothing a config can say.
        let Some(name) = name.to_str().filter(|name| fits(component, name)) else { continue };
        let path = folder.join(name);
        if !below.is_empty() {
            walk(root, pattern, &path, below, found)?;
        } else if is_unfinished(component, name) {
            found.unfinished += u64::from(!["-wal", "-shm", "-journal", ".lock"].iter().any(|end| name.ends_with(end)));
        } else {
            note(&root.path(&path), &path, found);
        }
    }
    Ok(())
}

/// The outermost folder on the way to `folder` that is not there: what is not mounted, or misspelt.
fn missing_folder(root: &HostRoot, folder: &Path) -> Option<String> {
    let missing = |folder: &&Path| match std::fs::metadata(root.path(folder)) {
        Ok(metadata) => !metadata.is_dir(),
        Err(error) => matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
    };
    folder.ancestors().take_while(missing).last().map(|folder| folder.display().to_string())
}

/// A link to a copy, hard or symbolic, is no second copy.
fn note(place: &Path, path: &Path, found: &mut Found) {
    // Gone between the listing and the look: it is not there.
    let Ok(metadata) = std::fs::metadata(place) else { return };
    if !metadata.is_file() || !found.inodes.insert((metadata.dev(), metadata.ino())) {
        return;
    }
    found.files.push(CopyFile {
        path: path.display().to_string(),
        inode: metadata.ino(),
        size_bytes: metadata.len(),
        modified: time(metadata.mtime(), metadata.mtime_nsec()),
        changed: time(metadata.ctime(), metadata.ctime_nsec()),
    });
}

/// The size of the source with its write-ahead log: what is in the log will be in the copy.
fn look_at(root: &HostRoot, path: &Path) -> Source {
    let size = |path: PathBuf| std::fs::metadata(path).map(|metadata: Metadata| metadata.len());
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    match size(root.path(path)) {
        Ok(bytes) => Source::Bytes(bytes.saturating_add(size(root.path(PathBuf::from(log))).unwrap_or(0))),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Source::Missing,
        Err(error) => Source::Hidden(error.to_string()),
    }
}

fn time(seconds: i64, nanoseconds: i64) -> Timestamp {
    Timestamp::from_unix_ms(seconds.saturating_mul(1000).saturating_add(nanoseconds / 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_links_and_unfinished_names() {
        let folder = tempfile::tempdir().unwrap();
        let root = HostRoot(folder.path().to_owned());
        for (path, content) in [("b/mon/hub.db", "1"), ("b/tue/hub.db", "22"), ("b/tue/hub.db.tmp", ""), ("b/x", "3")] {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        std::os::unix::fs::symlink("tue/hub.db", folder.path().join("b/latest")).unwrap();
        std::fs::create_dir(folder.path().join("b/wed")).unwrap();
        std::os::unix::fs::symlink("../tue/hub.db", folder.path().join("b/wed/hub.db")).unwrap();
        std::fs::create_dir(folder.path().join("b/thu")).unwrap();
        std::fs::hard_link(folder.path().join("b/mon/hub.db"), folder.path().join("b/thu/hub.db")).unwrap();
        let listed = list(&root, &Pattern::parse("/b/*/hub.db*").unwrap(), Some(Path::new("/b/x")));
        let files = listed.files.unwrap();
        let mut sizes: Vec<u64> = files.iter().map(|file| file.size_bytes).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [1, 2], "{files:?}");
        assert!(files.iter().all(|file| file.path.starts_with("/b/")));
        assert_eq!((listed.unfinished, listed.source), (1, Some(Source::Bytes(1))));
        let nothing = list(&root, &Pattern::parse("/none/hub.db").unwrap(), Some(Path::new("/none")));
        assert_eq!((nothing.files.unwrap().len(), nothing.source), (0, Some(Source::Missing)));
    }
}

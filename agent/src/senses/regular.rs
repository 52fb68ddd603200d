//! One careful open for every file that others own.
//!
//! Must never open what is no regular file: the open of a FIFO releases a blocked writer, the open of a device acts on
//! it. So the path is only looked at first (`O_PATH`), then the same inode is opened, without blocking.

use muster_agent_core::sqlite::state::FileFacts;
use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, open};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

/// What is at a path.
pub(crate) enum Found {
    /// A regular file, open for reading.
    File(File, Stat),
    /// Something else, which was not opened.
    Other(FileType),
}

/// Opens the regular file at `path`. A symbolic link is followed, or with `OFlags::NOFOLLOW` in `flags` found itself.
pub(crate) fn open_regular(path: &Path, flags: OFlags) -> Result<Found, Errno> {
    let handle = open(path, OFlags::PATH | OFlags::CLOEXEC | flags, Mode::empty())?;
    let stat = fstat(&handle)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::RegularFile {
        return Ok(Found::Other(kind));
    }
    let again = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match open(again, flags, Mode::empty()) {
        Ok(file) => Ok(Found::File(File::from(file), stat)),
        // The file is there, /proc is not: nobody may take that for a missing file.
        Err(Errno::NOENT | Errno::NOTDIR) => Err(Errno::NOSYS),
        Err(errno) => Err(errno),
    }
}

/// Identity, size and times of a file.
pub(crate) fn facts(stat: &Stat) -> FileFacts {
    FileFacts {
        device: stat.st_dev,
        inode: stat.st_ino,
        size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        modified_ns: i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec),
        changed_ns: i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec),
    }
}

/// File systems whose times and locks another host may change behind our back; one that cannot be told is one of them.
pub(crate) fn is_remote(file: &File) -> bool {
    const NFS: u32 = 0x6969;
    const SMB: [u32; 3] = [0x517b, 0xff53_4d42, 0xfe53_4d42];
    const FUSE: u32 = 0x6573_5546;
    const V9FS: u32 = 0x0102_1997;
    const CEPH: u32 = 0x00c3_6400;
    let Ok(found) = rustix::fs::fstatfs(file) else { return true };
    // The magic number has another width on each architecture; its lower half is the number.
    let Ok(magic) = u32::try_from(i128::from(found.f_type) & i128::from(u32::MAX)) else { return true };
    SMB.contains(&magic) || [NFS, FUSE, V9FS, CEPH].contains(&magic)
}

/// A file that was read to its end: while it is the same its content is, too.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unchanged(FileFacts);

impl Unchanged {
    /// Of an open file that was found to be like `stat` when the wall clock said `wall_ns`, before it was read. `None` where
    /// a later write need not show: its last one was just now, or another host writes it.
    pub(crate) fn since(file: &File, stat: &Stat, wall_ns: i128) -> Option<Self> {
        let facts = facts(stat);
        (facts.settled(wall_ns) && !is_remote(file)).then_some(Self(facts))
    }

    /// True while the path (a symbolic link is followed) names that file and nobody wrote to it, nor set its times.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        rustix::fs::stat(path).is_ok_and(|stat| facts(&stat) == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn only_a_regular_file_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("file"), "here").unwrap();
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
        let kind = |name: &str, flags| match open_regular(&path(name), flags) {
            Ok(Found::File(mut file, stat)) => {
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                assert_eq!((text.as_str(), stat.st_size), ("here", 4));
                Ok(FileType::RegularFile)
            }
            Ok(Found::Other(kind)) => Ok(kind),
            Err(errno) => Err(errno),
        };
        assert_eq!(kind("file", OFlags::empty()), Ok(FileType::RegularFile));
        assert_eq!(kind("link", OFlags::empty()), Ok(FileType::RegularFile));
        assert_eq!(kind("link", OFlags::NOFOLLOW), Ok(FileType::Symlink));
        assert_eq!(kind("fifo", OFlags::empty()), Ok(FileType::Fifo));
        assert_eq!(kind("none", OFlags::empty()), Err(Errno::NOENT));
    }

    #[test]
    fn a_file_is_read_again_when_it_was_written_replaced_or_is_too_young_to_tell() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("x"), folder.path().join("y"));
        std::fs::write(&path, "12").unwrap();
        let opened = || match open_regular(&path, OFlags::empty()) {
            Ok(Found::File(file, stat)) => (file, stat),
            _ => panic!("it is a file"),
        };
        let (file, stat) = opened();
        let written_ns = facts(&stat).modified_ns;
        let later_ns = written_ns + 60_000_000_000;
        assert!(
            Unchanged::since(&file, &stat, written_ns + 1_000_000).is_none(),
            "a write in the same tick is not seen"
        );
        let unchanged = || {
            let (file, stat) = opened();
            Unchanged::since(&file, &stat, later_ns)
        };
        let Some(known) = unchanged() else {
            println!("skipped: the folder for temporary files is on a file system of another host");
            return;
        };
        assert!(known.is_at(&path));
        std::fs::write(&other, "12").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert!(!known.is_at(&path), "another file of the same content");
        let known = unchanged().unwrap();
        // The same size and the same time of content: the time of the inode tells.
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        while known.is_at(&path) {
            std::io::Write::write_all(&mut (&file), b"").unwrap();
            file.set_len(2).unwrap();
            file.set_modified(modified).unwrap();
        }
        std::fs::remove_file(&path).unwrap();
        assert!(!known.is_at(&path));
    }
}

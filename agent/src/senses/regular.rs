//! One careful open for every file that others own.
//!
//! Must never open what is no regular file: the open of a FIFO releases a blocked writer, the open of a device acts on
//! it. So the path is only looked at first (`O_PATH`), then the same inode is opened, without blocking.

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
}

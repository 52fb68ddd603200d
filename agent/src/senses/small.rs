//! Reads the small files that the kernel makes up when they are read.
//!
//! Their size is told as zero, so a reader that knows nothing better begins with a few bytes and asks again and again.

use std::fs::File;
use std::io::{ErrorKind, Read, Result};
use std::path::Path;

/// Nearly all of them fit, and the kernel fills a page at a time. On the stack: a piece of the heap of this size costs
/// more than the read.
const ROOM_BYTES: usize = 4096;

/// The first `bytes_max` bytes of the file.
pub(crate) fn read_small(path: impl AsRef<Path>, bytes_max: u64) -> Result<Vec<u8>> {
    read_small_file(&File::open(path)?, bytes_max)
}

/// The same of an open file, from where it is read next.
pub(crate) fn read_small_file(file: &File, bytes_max: u64) -> Result<Vec<u8>> {
    read_until(file, bytes_max, |_| false)
}

/// The same of a file that the kernel writes in one piece, as those about one process, one cgroup or the host's memory:
/// what does not fill the room is the whole, and its end need not be asked for. Lists come in several pieces: not for them.
pub(crate) fn read_piece(file: &File, bytes_max: u64) -> Result<Vec<u8>> {
    read_until(file, bytes_max, |read| read.len() < ROOM_BYTES)
}

/// Reads no further once what was read so far is `enough`.
pub(crate) fn read_until(file: &File, bytes_max: u64, enough: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
    let mut file = file.take(bytes_max);
    let (mut room, mut filled) = ([0; ROOM_BYTES], 0);
    while let Some(free) = room.get_mut(filled..).filter(|free| !free.is_empty()) {
        let read = match file.read(free) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        filled += read;
        let all = room.get(..filled).unwrap_or_default();
        if read == 0 || enough(all) {
            return Ok(all.to_vec());
        }
    }
    let mut bytes = room.to_vec();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The same as text, whatever bytes are in it: names of processes and mount points may be any.
pub(crate) fn read_small_text(path: impl AsRef<Path>, bytes_max: u64) -> Result<String> {
    Ok(text(read_small(path, bytes_max)?))
}

/// The text of a file that the kernel writes in one piece (see [`read_piece`]).
pub(crate) fn read_piece_text(path: impl AsRef<Path>, bytes_max: u64) -> Result<String> {
    Ok(text(read_piece(&File::open(path)?, bytes_max)?))
}

/// Bytes as text, whatever they are.
pub(crate) fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_is_read_up_to_the_bound_and_as_text_whatever_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let content = [b"a\xff".repeat(ROOM_BYTES), b"b".to_vec()].concat();
        std::fs::write(&path, &content).unwrap();
        assert_eq!(read_small(&path, u64::MAX).unwrap(), content);
        assert_eq!(read_small(&path, 3).unwrap(), b"a\xffa");
        assert_eq!(read_small_text(&path, 3).unwrap(), "a\u{fffd}a");
        assert!(read_small(folder.path().join("none"), 1).is_err());
        assert!(!read_small_text("/proc/self/status", 1 << 16).unwrap().is_empty());
    }

    #[test]
    fn a_piece_is_read_whole_whether_it_fills_the_room_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        for length in [0, 1, ROOM_BYTES - 1, ROOM_BYTES, 3 * ROOM_BYTES] {
            std::fs::write(&path, "a".repeat(length)).unwrap();
            assert_eq!(read_piece_text(&path, u64::MAX).unwrap().len(), length);
        }
        // The kernel's own, which may be longer than the room: asked for to the end they say the same.
        let stays =
            ["/proc/self/limits", "/proc/self/cgroup", "/proc/sys/kernel/pid_max", "/proc/sys/kernel/osrelease"];
        for path in stays {
            assert_eq!(read_piece_text(path, u64::MAX).unwrap(), read_small_text(path, u64::MAX).unwrap(), "{path}");
        }
    }

    #[test]
    fn a_list_is_read_until_it_has_what_is_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "a".repeat(2 * ROOM_BYTES)).unwrap();
        let read = |enough: usize| read_until(&File::open(&path).unwrap(), u64::MAX, |read| read.len() >= enough);
        assert_eq!(read(1).unwrap().len(), ROOM_BYTES);
        assert_eq!(read(usize::MAX).unwrap().len(), 2 * ROOM_BYTES);
    }
}

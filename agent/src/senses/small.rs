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
    let mut file = file.take(bytes_max);
    let (mut room, mut filled) = ([0; ROOM_BYTES], 0);
    while let Some(free) = room.get_mut(filled..).filter(|free| !free.is_empty()) {
        match file.read(free) {
            Ok(0) => return Ok(room.get(..filled).unwrap_or_default().to_vec()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
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
}

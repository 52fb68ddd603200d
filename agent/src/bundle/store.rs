//! The file of a bundle: compressed, for its owner alone, whole or not there.

use super::gather::TOTAL_BYTES_MAX;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What unpacked bytes may be at most: the items, the manifest and the archive's own blocks.
pub(super) const UNPACKED_BYTES_MAX: usize = TOTAL_BYTES_MAX + (8 << 20);

/// Why a bundle is not written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Never overwritten: it may be the last one of a host that is gone.
    #[error("{0} exists already; name another file")]
    Exists(String),
    /// The folder refuses.
    #[error("cannot write {path}; name a file in a folder that you may write to")]
    Write {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Refuses a name that is taken, by whatever it is: also by a link that leads nowhere.
pub fn is_free(path: &Path) -> Result<(), StoreError> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Err(StoreError::Exists(path.display().to_string())),
        Err(_) => Ok(()),
    }
}

pub(super) fn compress(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// Unpacks at most [`UNPACKED_BYTES_MAX`]; `None` when there is more.
pub(super) fn decompress(bytes: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut unpacked = Vec::new();
    let bound = u64::try_from(UNPACKED_BYTES_MAX).unwrap_or(u64::MAX);
    GzDecoder::new(bytes).take(bound + 1).read_to_end(&mut unpacked)?;
    Ok((unpacked.len() <= UNPACKED_BYTES_MAX).then_some(unpacked))
}

pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => StoreError::Exists(path.display().to_string()),
        _ => StoreError::Write { path: path.display().to_string(), source },
    };
    let new = beside(path).ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
    let written = write_new(&new, bytes).and_then(|()| put_in_place(&new, path));
    if written.is_err() {
        // What is half written is nobody's.
        std::fs::remove_file(&new).ok();
    }
    written.map_err(failed)
}

/// A name in the same folder that nobody has.
fn beside(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_string_lossy();
    Some(path.with_file_name(format!(".{name}.{}.new", uuid::Uuid::new_v4().simple())))
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // create_new: neither follows a link nor takes somebody's file.
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn put_in_place(new: &Path, path: &Path) -> io::Result<()> {
    match renameat_with(CWD, new, CWD, path, RenameFlags::NOREPLACE) {
        // A file system that does not know the flag: a link does not replace either.
        Err(Errno::INVAL | Errno::NOSYS) => {
            std::fs::hard_link(new, path)?;
            std::fs::remove_file(new)
        }
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_bundle_is_its_owners_and_replaces_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.tar.gz");
        is_free(&path).unwrap();
        write(&path, b"first").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(is_free(&path), Err(StoreError::Exists(_))));
        assert!(matches!(write(&path, b"second"), Err(StoreError::Exists(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("nowhere"), &link).unwrap();
        assert!(matches!(write(&link, b"x"), Err(StoreError::Exists(_))));
        assert!(!folder.path().join("nowhere").exists());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing half written stays");
        assert!(matches!(write(Path::new("/nonexistent/b"), b"x"), Err(StoreError::Write { .. })));
        assert!(matches!(write(Path::new("/"), b"x"), Err(StoreError::Write { .. })));
    }

    #[test]
    fn what_unpacks_without_end_is_refused() {
        let bomb = compress(&vec![0; UNPACKED_BYTES_MAX + 1]).unwrap();
        assert!(bomb.len() < 1 << 20);
        assert_eq!(decompress(&bomb).unwrap(), None);
        assert_eq!(decompress(&compress(b"x").unwrap()).unwrap().as_deref(), Some(&b"x"[..]));
    }
}

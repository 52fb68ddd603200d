//! The freezes that concern this host, in a file beside the agent's socket: written by the daemon when the coordinator
//! tells of them, read by `preflight`, which must answer within milliseconds and also while the daemon does not.

use muster_agent_core::freeze::Freeze;
use muster_common::time::Timestamp;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The file's name.
const FILE: &str = "freezes.json";
/// Bytes of the file that are read: room for every freeze the coordinator keeps.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// Where the freezes of an agent with this socket are.
pub fn path(socket: &Path) -> PathBuf {
    socket.with_file_name(FILE)
}

/// Those that hold at `now`; none where there is no file.
pub fn read(path: &Path, now: Timestamp) -> io::Result<Vec<Freeze>> {
    let file = match std::fs::File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    let freezes: Vec<Freeze> = serde_json::from_str(&text)?;
    Ok(freezes.into_iter().filter(|freeze| freeze.expires.is_none_or(|until| until > now)).collect())
}

/// Replaces all of them at once, so that a reader sees the old ones or the new ones.
pub fn write(path: &Path, freezes: &[Freeze]) -> io::Result<()> {
    let new = path.with_extension("json.new");
    let mut file = std::fs::File::options().create(true).truncate(true).write(true).mode(0o644).open(&new)?;
    file.write_all(&serde_json::to_vec(freezes)?)?;
    drop(file);
    // Everybody on the host may ask whether work may start.
    std::fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    std::fs::rename(&new, path)
}

/// The daemon's end: what the uplink was told last is what the file says, in the end, whatever the disk does meanwhile.
#[derive(Debug, Clone)]
pub struct Keeper {
    path: PathBuf,
    newest: Arc<Mutex<Option<Vec<Freeze>>>>,
}

impl Keeper {
    /// Writes to `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path, newest: Arc::default() }
    }

    /// Keeps these from now on. On the net thread; the file is written beside it.
    pub fn keep(&self, freezes: Vec<Freeze>) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(freezes);
        let keeper = self.clone();
        tokio::task::spawn_blocking(move || keeper.write_newest());
    }

    fn write_newest(&self) {
        // Held while writing: of two writers the second has nothing left to do, or the newer.
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(freezes) = newest.take() else { return };
        match write(&self.path, &freezes) {
            Ok(()) => tracing::info!(freezes = freezes.len(), "freezes of this host"),
            Err(error) => {
                let path = self.path.display();
                tracing::error!(%path, %error, "preflight cannot be told of the freezes of this host");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(&folder.path().join("agent.sock"));
        let now = Timestamp::from_unix_ms(1_000);
        assert_eq!(read(&path, now).unwrap(), []);
        let freeze = |id: &str, expires: Option<i64>| Freeze {
            id: id.to_owned(),
            reason: "upgrade".to_owned(),
            created_by: "ana".to_owned(),
            expires: expires.map(Timestamp::from_unix_ms),
        };
        write(&path, &[freeze("a", None), freeze("b", Some(1_000)), freeze("c", Some(1_001))]).unwrap();
        let ids: Vec<String> = read(&path, now).unwrap().into_iter().map(|freeze| freeze.id).collect();
        assert_eq!(ids, ["a", "c"]);
        std::fs::write(&path, "[{").unwrap();
        assert!(read(&path, now).is_err());
    }
}

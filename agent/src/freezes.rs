//! The freezes that concern this host, in a file beside the agent's socket: written by the daemon when the coordinator
//! tells of them, read by `preflight`, which must answer within milliseconds and also while the daemon does not.

use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The file's name.
const FILE: &str = "freezes.json";
/// Bytes of the file that are read: room for every freeze the coordinator keeps.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// "Do not dispatch new work", until it ends or is lifted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// The coordinator's name for it.
    pub id: String,
    /// Why.
    pub reason: String,
    /// Who.
    pub created_by: String,
    /// When it ends by itself, by the coordinator's clock; `None`: when it is lifted.
    pub expires: Option<Timestamp>,
}

impl Freeze {
    /// For people.
    pub fn words(&self) -> String {
        let until = self.expires.map(|until| format!(" until {}", until.to_utc_minute())).unwrap_or_default();
        format!("{} (by {}{until}, {})", self.reason, self.created_by, self.id)
    }
}

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

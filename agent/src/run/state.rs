//! What the agent keeps on disk: the state folder, its lock, the spool in it and the folder for copies of databases.
//!
//! A disk that cannot be used is one more thing that is wrong with the host, and no reason to stop: the agent goes on in
//! memory, and tries again.

use crate::config::Config;
use crate::spool::{Spool, SpoolHandle, SpoolLimits, SpoolOwner};
use anyhow::{Context as _, bail};
use muster_common::ids::BootId;
use rustix::fs::{Mode, OFlags, fchmod, fstat, lstat, open};
use rustix::process::geteuid;
use sd_notify::NotifyState;
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The spool's file below the state folder.
pub const SPOOL_FILE: &str = "spool.db";
/// Folder below the state folder in which databases are copied for their deep check.
const SCRATCH: &str = "scratch";

/// What the agent keeps on disk, or in memory where it cannot.
pub(super) struct State {
    /// Why nothing is kept on disk, where that is so.
    disk: Result<OnDisk, String>,
}

/// The state folder, in use.
struct OnDisk {
    scratch: Scratch,
    /// That it cannot be made again was told.
    told: bool,
    /// Held as long as the agent lives.
    _lock: File,
}

/// The folder for copies of databases, as threads are allowed to write to it: the folder itself, not its name.
struct Scratch {
    path: PathBuf,
    device_inode: (u64, u64),
}

impl Scratch {
    /// Makes it, or takes one of an earlier run: a folder of the agent's own, closed to everybody else. A link is not
    /// followed.
    fn make(path: PathBuf) -> anyhow::Result<Self> {
        let shown = path.display();
        // Copies of databases are as private as the databases.
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("cannot make {shown}, the folder for copies of databases"));
            }
            _ => {}
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = open(&path, flags, Mode::empty()).map_err(std::io::Error::from);
        let folder = folder.with_context(|| {
            format!("{shown} is no folder that can be used for copies of databases: remove it, and it is made again")
        })?;
        let stat = fstat(&folder)?;
        if stat.st_uid != geteuid().as_raw() {
            let uid = stat.st_uid;
            bail!("{shown} belongs to uid {uid}, not to the agent: remove it, and it is made again");
        }
        if Mode::from_raw_mode(stat.st_mode).intersects(Mode::RWXG | Mode::RWXO) {
            fchmod(&folder, Mode::RWXU)?;
        }
        Ok(Self { path, device_inode: (stat.st_dev, stat.st_ino) })
    }

    fn is_there(&self) -> bool {
        lstat(&self.path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.device_inode)
    }
}

impl State {
    /// A state folder that is read-only or full is one more thing that is wrong with the host: the agent goes on and
    /// reports from memory.
    pub(super) fn open(config: &Config, boot: BootId) -> anyhow::Result<(Self, SpoolOwner, SpoolHandle)> {
        let (spool, disk) = match Self::on_disk(config, boot)? {
            Ok((spool, disk)) => (spool, Ok(disk)),
            Err(why) => {
                tracing::error!(
                    "{why:#}; findings are told and kept in memory only until the folder can be written, which is \
                     tried once a minute and on SIGHUP"
                );
                let path = config.state_dir.join(SPOOL_FILE);
                (Spool::open_in_memory(&path, limits(config), boot)?, Err(format!("{why:#}")))
            }
        };
        let (owner, handle) = crate::spool::own(spool).context("cannot serve the spool")?;
        Ok((Self { disk }, owner, handle))
    }

    pub(super) fn scratch(&self) -> Option<&Path> {
        self.disk.as_ref().ok().map(|disk| disk.scratch.path.as_path())
    }

    /// Why nothing is kept on disk, where that is so.
    pub(super) fn disk(&self) -> Result<(), &str> {
        self.disk.as_ref().map(drop).map_err(String::as_str)
    }

    /// Makes the folder for copies again where somebody removed it; true when there is another one now, to which threads
    /// that were restricted before may not write.
    pub(super) fn mend_scratch(&mut self) -> bool {
        let Some(disk) = self.disk.as_mut().ok().filter(|disk| !disk.scratch.is_there()) else { return false };
        match Scratch::make(disk.scratch.path.clone()) {
            Ok(scratch) => {
                let folder = scratch.path.display();
                tracing::warn!(%folder, "the folder for copies of databases was removed: it is made again");
                (disk.scratch, disk.told) = (scratch, false);
                true
            }
            Err(why) => {
                if !std::mem::replace(&mut disk.told, true) {
                    tracing::error!("databases that need a copy are not checked: {why:#}; tried again once a minute");
                }
                false
            }
        }
    }

    /// From memory to the disk, if that is now possible; true when it was done.
    pub(super) fn try_disk(&mut self, config: &Config, boot: BootId, spool: &mut SpoolOwner) -> bool {
        if self.disk.is_ok() {
            return false;
        }
        let moved = Self::on_disk(config, boot).and_then(|inner| inner).and_then(|(on_disk, disk)| {
            spool.with(|memory| memory.move_to(on_disk))?;
            Ok(disk)
        });
        match moved {
            Ok(disk) => {
                self.disk = Ok(disk);
                tracing::info!(state = %config.state_dir.display(), "the state folder can be used again");
                sd_notify::notify(&[NotifyState::Status("")]).ok();
                true
            }
            Err(why) => {
                tracing::debug!("findings are still kept in memory only: {why:#}");
                false
            }
        }
    }

    /// Outer error: the agent must not run. Inner one: it can, in memory.
    fn on_disk(config: &Config, boot: BootId) -> anyhow::Result<anyhow::Result<(Spool, OnDisk)>> {
        let path = config.state_dir.join(SPOOL_FILE);
        let lock = match lock_state(&config.state_dir)? {
            Ok(lock) => lock,
            Err(why) => return Ok(Err(why)),
        };
        let opened = || {
            let scratch = Scratch::make(config.state_dir.join(SCRATCH))?;
            let spool = Spool::open(&path, limits(config), boot, crate::clock::now())?;
            anyhow::Ok((spool, OnDisk { scratch, told: false, _lock: lock }))
        };
        let opened = opened();
        if let Some(loss) = opened.as_ref().ok().and_then(|(spool, ..)| spool.loss()) {
            let moved_to = loss.moved_to.display();
            tracing::error!(%moved_to, "the spool was damaged ({}); a new one was begun", loss.why);
        }
        Ok(opened)
    }
}

fn limits(config: &Config) -> SpoolLimits {
    SpoolLimits { max_bytes: config.spool_bytes_max, ..SpoolLimits::default() }
}

/// One agent per state folder: two would answer for each other's findings. The inner error is a folder that cannot be
/// used, where there is no other agent to fear.
fn lock_state(folder: &Path) -> anyhow::Result<anyhow::Result<File>> {
    let shown = folder.display();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    let made = made.with_context(|| {
        format!("cannot make the state folder {shown}; create it for the agent's user or set [agent] state_dir")
    });
    if let Err(error) = made {
        return Ok(Err(error));
    }
    let path: PathBuf = folder.join("lock");
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = match file.with_context(|| format!("cannot open {}; is the folder the agent's own?", path.display())) {
        Ok(file) => file,
        Err(error) => return Ok(Err(error)),
    };
    let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    if rustix::fs::flock(&file, operation).is_err() {
        bail!("another muster-agent uses {shown}; stop it first, or set another [agent] state_dir");
    }
    Ok(Ok(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn the_folder_for_copies_is_made_again_and_is_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scratch");
        let scratch = Scratch::make(path.clone()).unwrap();
        assert!(scratch.is_there() && mode(&path) == 0o700);
        let disk = OnDisk { scratch, told: false, _lock: tempfile::tempfile().unwrap() };
        let mut state = State { disk: Ok(disk) };
        assert!(!state.mend_scratch(), "nothing is wrong with it");
        std::fs::remove_dir(&path).unwrap();
        assert!(state.mend_scratch() && mode(&path) == 0o700);
        assert_eq!(state.scratch(), Some(path.as_path()));
        // Somebody made another one: what threads may write to is the old one.
        std::fs::rename(&path, folder.path().join("old")).unwrap();
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(state.mend_scratch() && mode(&path) == 0o700);
        assert!(!state.mend_scratch());
    }

    #[test]
    fn what_is_no_folder_of_the_agents_is_left_alone_and_told() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::set_permissions(elsewhere.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = folder.path().join("scratch");
        symlink(elsewhere.path(), &path).unwrap();
        let refused = |path: &Path| format!("{:#}", Scratch::make(path.to_owned()).map(drop).unwrap_err());
        assert!(refused(&path).contains("remove it, and it is made again"), "{}", refused(&path));
        assert_eq!(mode(elsewhere.path()), 0o755);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(refused(&path).contains("is no folder that can be used"), "{}", refused(&path));
        assert!(refused(&folder.path().join("gone/scratch")).contains("cannot make"));
    }
}

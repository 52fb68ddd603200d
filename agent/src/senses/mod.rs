//! One file per kind of probe: reads the host, thin, and leaves the judging to `muster-agent-core`.

pub mod backup;
pub mod baseline;
pub mod cgroup;
pub mod disk;
pub mod executable;
pub mod exit;
pub mod health;
pub mod host_clock;
pub mod locks;
pub mod log;
pub mod memory;
pub mod oom;
pub mod permission;
pub mod pid_file;
pub mod port;
pub mod pressure;
pub mod process;
pub mod process_watch;
pub(crate) mod regular;
pub mod restarts;
pub mod saved_log;
pub mod singleton;
pub(crate) mod small;
pub mod sockets;
mod soon;
pub mod sqlite;
pub mod unit;
pub mod watched_files;

use std::path::{Path, PathBuf};

/// The root under which `/proc`, `/run` and the files of services are read: `/` in production, a folder in tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoot(pub PathBuf);

impl HostRoot {
    /// The file that `path` (absolute, as the host knows it) names under this root.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// True for the real host: only then do kernel interfaces beside `/proc` (sockets, pidfds, signals) belong to it.
    pub fn is_real(&self) -> bool {
        self.0 == Path::new("/")
    }
}

impl Default for HostRoot {
    fn default() -> Self {
        Self(PathBuf::from("/"))
    }
}

//! Debian's packages for the hosts that the tool beside this checkout boots: fetched once, and kept where it keeps its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The folder `name` with the files of `packages` and of all they need that the host has not; `None` where they cannot be
/// had within `seconds`.
pub(crate) fn fetched(name: &str, packages: &[&str], seconds: &str) -> Option<PathBuf> {
    let cache = std::env::var("REALHOST_CACHE").unwrap_or_else(|_| "/tmp/realhost".to_owned());
    let (folder, base) = (Path::new(&cache).join(name), Path::new(&cache).join("base"));
    if !folder.join("complete").exists() {
        std::fs::create_dir_all(folder.join("partial")).ok()?;
        let mut apt = Command::new("timeout");
        apt.args(["-k", "5", seconds, "apt-get", "-y", "-q", "--no-install-recommends"]);
        apt.arg("-o").arg(format!("Dir::State::status={}", base.join("var/lib/dpkg/status").display()));
        apt.arg("-o").arg(format!("Dir::Cache::archives={}", folder.display()));
        apt.args(["-o", "Debug::NoLocking=1", "--download-only", "install"]).args(packages);
        let fetched = apt.stdin(Stdio::null()).output().ok()?;
        if !fetched.status.success() {
            return None;
        }
        std::fs::write(folder.join("complete"), "").ok()?;
    }
    Some(folder)
}

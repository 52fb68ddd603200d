//! `[disk]`: when space or inodes are low, for all file systems and for one.

use super::walk::absolute;
use muster_agent_core::disk::{Least, Thresholds};
use muster_common::config::Reader;
use muster_common::units::parse_bytes;
use std::path::PathBuf;

/// File systems with thresholds of their own: more is a mistake in the making.
const MOUNTS_MAX: usize = 64;

/// Thresholds of every file system that a service's files live on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Disk {
    /// For all that have none of their own.
    pub all: Thresholds,
    /// By mount point.
    pub mounts: Vec<(PathBuf, Thresholds)>,
}

impl Disk {
    /// What applies to the file system mounted at `mount_point`.
    pub fn of(&self, mount_point: &str) -> Thresholds {
        let own = self.mounts.iter().find(|(path, _)| path.as_os_str() == mount_point);
        own.map_or(self.all, |(_, thresholds)| *thresholds)
    }
}

/// The whole table.
pub(super) fn walk(reader: &Reader<'_>) -> Disk {
    let all = thresholds(reader, Thresholds::default());
    let mut mounts: Vec<(PathBuf, Thresholds)> = Vec::new();
    for mount in reader.tables("mounts") {
        let own = thresholds(&mount, all);
        let Some(path) = mount.required("path").and_then(|value| value.parsed(absolute)) else { continue };
        if mounts.iter().any(|(known, _)| *known == path) || mounts.len() == MOUNTS_MAX {
            let expected = format!("expected each path once, and at most {MOUNTS_MAX}");
            mount.mistake(&format!("one {:?} too many", path.display().to_string()), &expected);
            continue;
        }
        mounts.push((path, own));
    }
    Disk { all, mounts }
}

fn thresholds(reader: &Reader<'_>, otherwise: Thresholds) -> Thresholds {
    Thresholds {
        free: reader.parsed("min_free", least_bytes).unwrap_or(otherwise.free),
        inodes: reader.parsed("min_inodes", least_count).unwrap_or(otherwise.inodes),
    }
}

fn least_bytes(text: &str) -> Result<Least, String> {
    match text.strip_suffix('%') {
        Some(number) => percent(number),
        None => parse_bytes(text).map(Least::Amount).map_err(|_| expected("\"1GiB\"", text)),
    }
}

fn least_count(text: &str) -> Result<Least, String> {
    match text.strip_suffix('%') {
        Some(number) => percent(number),
        None => text.parse().map(Least::Amount).map_err(|_| expected("\"10000\"", text)),
    }
}

fn expected(amount: &str, found: &str) -> String {
    format!("expected a share such as \"5%\" or an amount such as {amount}, found {found:?}")
}

/// `0` switches the check off.
fn percent(number: &str) -> Result<Least, String> {
    let number: u8 = number.trim_end().parse().map_err(|_| expected_percent())?;
    if number <= 90 { Ok(Least::Percent(number)) } else { Err(expected_percent()) }
}

fn expected_percent() -> String {
    "expected a whole share from \"0%\" to \"90%\"".to_owned()
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use muster_agent_core::disk::Least;

    #[test]
    fn one_file_system_may_differ() {
        let text = "[disk]\nmin_free = \"10%\"\nmounts = [{ path = \"/backup\", min_free = \"1GiB\" }]\n";
        let disk = Config::parse("agent.toml", text).unwrap().disk;
        assert_eq!(disk.of("/").free, Least::Percent(10));
        assert_eq!(disk.of("/backup").free, Least::Amount(1 << 30));
        assert_eq!(disk.of("/backup").inodes, disk.all.inodes);
    }

    #[test]
    fn mistakes_are_told() {
        for (line, part) in [
            ("min_free = \"5\"", "\"5%\""),
            ("min_free = \"99%\"", "\"90%\""),
            ("min_inodes = \"-1%\"", "\"90%\""),
            ("min_fre = \"5%\"", "did you mean \"min_free\"?"),
            ("mounts = [{ min_free = \"5%\" }]", "lacks the key \"path\""),
            ("mounts = [{ path = \"/a\" }, { path = \"/a\" }]", "each path once"),
        ] {
            let told = Config::parse("agent.toml", &format!("[disk]\n{line}\n")).unwrap_err().to_string();
            assert!(told.contains(part), "{line}: {told}");
        }
    }
}

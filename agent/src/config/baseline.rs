//! `[baseline]` and `[service.NAME.baseline]`: settings that are declared, to be compared with those that are applied.

use super::walk::absolute;
use muster_agent_core::baseline::{limits, sysctl, unit_property};
use muster_common::config::Reader;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Settings of one kind in one baseline: a page of them is read by nobody.
const SETTINGS_MAX: usize = 64;

/// What is declared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Baseline {
    /// Sysctls by name; of the host alone.
    pub sysctl: BTreeMap<String, String>,
    /// Limits of the main process by name; of a service alone.
    pub limits: BTreeMap<String, String>,
    /// Properties of the systemd unit by name; of a service alone.
    pub unit: BTreeMap<String, String>,
    /// Files.
    pub files: Vec<DeclaredFile>,
}

/// What is declared of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredFile {
    /// Where.
    pub path: PathBuf,
    /// Permission bits, as four octal digits.
    pub mode: Option<String>,
    /// Name or number of its owner.
    pub owner: Option<String>,
    /// Name or number of its group.
    pub group: Option<String>,
    /// Hash of its content, in lower-case hex.
    pub sha256: Option<String>,
}

impl Baseline {
    /// Nothing.
    pub const fn new() -> Self {
        Self { sysctl: BTreeMap::new(), limits: BTreeMap::new(), unit: BTreeMap::new(), files: Vec::new() }
    }

    /// True when nothing is declared.
    pub fn is_empty(&self) -> bool {
        self.sysctl.is_empty() && self.limits.is_empty() && self.unit.is_empty() && self.files.is_empty()
    }
}

/// `[baseline]`.
pub(super) fn walk_host(reader: &Reader<'_>) -> Baseline {
    let sysctl = settings(reader, "sysctl", |name, value| {
        sysctl::path(name)?;
        let plain = sysctl::plain(value);
        if plain.is_empty() { Err("expected the value that /proc/sys shows".to_owned()) } else { Ok(plain) }
    });
    Baseline { sysctl, files: files(reader), ..Baseline::new() }
}

/// `[service.NAME.baseline]`.
pub(super) fn walk_service(reader: &Reader<'_>) -> Baseline {
    let limits = settings(reader, "limits", |name, value| {
        if limits::names().any(|known| known == name) {
            return limits::requested(value);
        }
        let known: Vec<&str> = limits::names().collect();
        Err(format!("{name:?} is no limit, expected one of: {}", known.join(", ")))
    });
    let unit = settings(reader, "unit", unit_property::requested);
    Baseline { limits, unit, files: files(reader), ..Baseline::new() }
}

fn settings(
    reader: &Reader<'_>,
    key: &str,
    check: impl Fn(&str, &str) -> Result<String, String>,
) -> BTreeMap<String, String> {
    let declared = reader.string_map(key);
    let Some(value) = reader.value(key) else { return BTreeMap::new() };
    if declared.len() > SETTINGS_MAX {
        value.mistake("too many settings", &format!("expected at most {SETTINGS_MAX}"));
    }
    let mut settings = BTreeMap::new();
    for (name, text) in declared {
        match check(&name, &text) {
            Ok(text) => drop(settings.insert(name, text)),
            Err(expected) => value.mistake(&format!("{name:?} cannot be declared so"), &expected),
        }
    }
    settings
}

fn files(reader: &Reader<'_>) -> Vec<DeclaredFile> {
    let tables = reader.tables("files");
    if let Some(beyond) = tables.get(SETTINGS_MAX) {
        beyond.mistake("too many files", &format!("expected at most {SETTINGS_MAX}"));
    }
    tables.iter().take(SETTINGS_MAX).filter_map(file).collect()
}

fn file(reader: &Reader<'_>) -> Option<DeclaredFile> {
    let path = reader.required("path").and_then(|value| value.parsed(absolute));
    let mode = reader.parsed("mode", mode);
    let owner = reader.parsed("owner", account);
    let group = reader.parsed("group", account);
    let sha256 = reader.parsed("sha256", sha256);
    // A key that is there but wrong has its own mistake already.
    if ["mode", "owner", "group", "sha256"].iter().all(|key| reader.value(key).is_none()) {
        reader.mistake("nothing is declared of the file", "expected one or more of: mode, owner, group, sha256");
    }
    Some(DeclaredFile { path: path?, mode, owner, group, sha256 })
}

fn mode(text: &str) -> Result<String, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 && (3..=4).contains(&text.len()) => Ok(format!("{mode:04o}")),
        _ => Err(format!("expected octal digits such as \"0640\", found {text:?}")),
    }
}

fn account(text: &str) -> Result<String, String> {
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.$@\\".contains(c));
    let is_well = plain && !text.is_empty() && text.len() <= 64;
    if is_well { Ok(text.to_owned()) } else { Err(format!("expected a name or a number, found {text:?}")) }
}

fn sha256(text: &str) -> Result<String, String> {
    let is_well = text.len() == 64 && text.chars().all(|c| c.is_ascii_hexdigit());
    if is_well { Ok(text.to_ascii_lowercase()) } else { Err("expected 64 hex digits, as sha256sum prints them".into()) }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn declared_settings_are_read() {
        let text = r#"
[baseline]
sysctl = { "vm.swappiness" = "10", "net.ipv4.tcp_rmem" = "4096 131072  6291456" }
files = [{ path = "/etc/hosts", mode = "644", owner = "root" }]
[service.spl]
pid_file = "/run/spl.pid"
[service.spl.baseline]
limits = { nofile = "65536", core = "0:unlimited" }
unit = { MemoryMax = "3GiB", Restart = "on-failure" }
"#;
        let config = Config::parse("agent.toml", text).unwrap();
        assert_eq!(config.baseline.sysctl["net.ipv4.tcp_rmem"], "4096 131072 6291456");
        assert_eq!(config.baseline.files[0].mode.as_deref(), Some("0644"));
        assert_eq!(config.services[0].baseline.limits["core"], "0:unlimited");
        assert_eq!(config.services[0].baseline.unit["MemoryMax"], "3221225472 (3 GiB)");
    }

    #[test]
    fn mistakes_are_told() {
        for (text, part) in [
            ("[baseline]\nsysctl = { \"../x\" = \"1\" }", "vm.swappiness"),
            ("[baseline]\nlimits = { nofile = \"1\" }", "limits"),
            ("[baseline]\nfiles = [{ path = \"/x\" }]", "nothing is declared"),
            ("[baseline]\nfiles = [{ path = \"/x\", mode = \"9\" }]", "\"0640\""),
            ("[baseline]\nfiles = [{ path = \"/x\", sha256 = \"ab\" }]", "64 hex digits"),
            ("[service.a]\npid_file = \"/a\"\nbaseline = { limits = { nofiles = \"1\" } }", "expected one of"),
            ("[service.a]\npid_file = \"/a\"\nbaseline = { unit = { \"a/b\" = \"x\" } }", "MemoryMax"),
            ("[service.a]\npid_file = \"/a\"\nbaseline = { limits = { nofile = \"x\" } }", "\"1024:65536\""),
        ] {
            let told = Config::parse("agent.toml", text).unwrap_err().to_string();
            assert!(told.contains(part), "{text}: {told}");
        }
    }
}

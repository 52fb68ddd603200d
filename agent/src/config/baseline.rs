//! `[baseline]` and `[service.NAME.baseline]`: settings that are declared, to be compared with those that are applied.

use super::walk::absolute;
use muster_agent_core::baseline::{limits, sysctl, unit_property};
use muster_common::config::{Reader, Value, nearest};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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

/// Notes a mistake where a path leads to the agent's own files: what is declared of a file is read, and edits of it are told.
type Foreign<'f> = &'f dyn Fn(&Path, &Value<'_>);

/// `[baseline]`.
pub(super) fn walk_host(reader: &Reader<'_>, foreign: Foreign<'_>) -> Baseline {
    let sysctl = settings(
        reader,
        "sysctl",
        |name| sysctl::path(name).map(drop),
        |_, value| {
            let plain = sysctl::plain(value);
            if plain.is_empty() { Err("expected the value that /proc/sys shows".to_owned()) } else { Ok(plain) }
        },
    );
    Baseline { sysctl, files: files(reader, foreign), ..Baseline::new() }
}

/// `[service.NAME.baseline]`.
pub(super) fn walk_service(reader: &Reader<'_>, foreign: Foreign<'_>) -> Baseline {
    let limits = settings(reader, "limits", limit_name, |_, value| limits::requested(value));
    let unit = settings(reader, "unit", unit_property::check_name, unit_property::requested);
    Baseline { limits, unit, files: files(reader, foreign), ..Baseline::new() }
}

fn limit_name(name: &str) -> Result<(), String> {
    if limits::names().any(|known| known == name) {
        return Ok(());
    }
    if let Some(near) = nearest(name, limits::names()) {
        return Err(format!("did you mean {near:?}?"));
    }
    let known: Vec<&str> = limits::names().collect();
    Err(format!("expected one of: {}", known.join(", ")))
}

fn settings(
    reader: &Reader<'_>,
    key: &str,
    check_name: impl Fn(&str) -> Result<(), String>,
    check: impl Fn(&str, &str) -> Result<String, String>,
) -> BTreeMap<String, String> {
    let declared = reader.entries(key);
    if let Some(beyond) = declared.get(SETTINGS_MAX) {
        beyond.mistake("too many settings", &format!("expected at most {SETTINGS_MAX}"));
    }
    let mut settings = BTreeMap::new();
    for entry in declared.iter().take(SETTINGS_MAX) {
        if let Err(expected) = check_name(&entry.name) {
            entry.mistake(&format!("{:?} cannot be declared in {key}", entry.name), &expected);
            continue;
        }
        let value = entry.value.parsed_as("a value in quotes", |text| check(&entry.name, text));
        settings.extend(value.map(|value| (entry.name.clone(), value)));
    }
    settings
}

fn files(reader: &Reader<'_>, foreign: Foreign<'_>) -> Vec<DeclaredFile> {
    let tables = reader.tables("files");
    if let Some(beyond) = tables.get(SETTINGS_MAX) {
        beyond.mistake("too many files", &format!("expected at most {SETTINGS_MAX}"));
    }
    tables.iter().take(SETTINGS_MAX).filter_map(|table| file(table, foreign)).collect()
}

fn file(reader: &Reader<'_>, foreign: Foreign<'_>) -> Option<DeclaredFile> {
    let path = reader.required("path").and_then(|value| {
        let path = value.parsed(absolute)?;
        foreign(&path, &value);
        Some(path)
    });
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
    fn the_caret_is_at_what_is_wrong() {
        let service = |rest: &str| format!("[service.a]\npid_file = \"/a\"\nbaseline = {{ {rest} }}\n");
        let state = "/var/lib/muster-agent/spool.db";
        for (text, at, expected) in [
            (service("limits = { core = \"0\", nofiles = \"1\" }"), "nofiles", "did you mean \"nofile\"?"),
            (service("limits = { core = \"0\", nofile = \"x\" }"), "\"x\"", "\"1024:65536\""),
            (service("limits = { nofile = 1024 }"), "1024", "expected a value in quotes, found integer"),
            (service("unit = { \"a/b\" = \"x\", Type = \"y\" }"), "\"a/b\"", "MemoryMax"),
            (service("unit = { Type = \"\" }"), "\"\"", "as systemctl show prints it"),
            ("[baseline.sysctl]\n\"../x\" = \"1\"\n".to_owned(), "\"../x\"", "vm.swappiness"),
            (format!("[baseline]\nfiles = [{{ path = \"{state}\", mode = \"600\" }}]\n"), state, "outside of"),
            (service("files = [{ path = \"/var/lib/x/../muster-agent/k\", owner = \"x\" }]"), "/k", "its state_dir"),
        ] {
            let told = Config::parse("agent.toml", &text).unwrap_err();
            let [mistake] = told.mistakes.as_slice() else { panic!("{told}") };
            let marked = &text[mistake.span.clone()];
            assert!(marked.len() <= at.len() + 40 && marked.contains(at), "{told}");
            assert!(mistake.expected.contains(expected), "{told}");
        }
    }

    #[test]
    fn mistakes_are_told() {
        for (text, part) in [
            ("[baseline]\nsysctl = { \"../x\" = \"1\" }", "vm.swappiness"),
            ("[baseline]\nlimits = { nofile = \"1\" }", "limits"),
            ("[baseline]\nfiles = [{ path = \"/x\" }]", "nothing is declared"),
            ("[baseline]\nfiles = [{ path = \"/x\", mode = \"9\" }]", "\"0640\""),
            ("[baseline]\nfiles = [{ path = \"/x\", sha256 = \"ab\" }]", "64 hex digits"),
            ("[service.a]\npid_file = \"/a\"\nbaseline = { limits = { xy = \"1\" } }", "expected one of"),
            ("[service.a]\npid_file = \"/a\"\nbaseline = { unit = { \"a/b\" = \"x\" } }", "MemoryMax"),
            ("[service.a]\npid_file = \"/a\"\nbaseline = { limits = { nofile = \"x\" } }", "\"1024:65536\""),
        ] {
            let told = Config::parse("agent.toml", text).unwrap_err().to_string();
            assert!(told.contains(part), "{text}: {told}");
        }
    }
}

//! `muster-agent bundle`: one file with what a person elsewhere needs to see of this host, for `doctor --bundle`.
//!
//! It leaves the host: must never hold a secret as far as one can be known, never a database's content, and must be
//! bounded. Whatever hangs (the daemon, a file system) is left out with the reason, and delays the rest by its deadline.
//!
//! A gzipped tar archive: `tar tzf FILE` lists it on any host.

mod config_text;
mod gather;
mod journal;
mod open;
mod sources;
mod store;

pub use open::{OpenError, Opened};
pub use store::{StoreError, is_free};

use crate::config::Config;
use crate::doctor::report::{AgentSays, Ran, Report, Unanswered};
use crate::doctor::text::plain;
use crate::senses::HostRoot;
use gather::Gathering;
use muster_agent_core::bundle::archive::pack;
use muster_agent_core::bundle::clean_json;
use muster_agent_core::diagnose::Story;
use muster_common::finding::Finding;
use muster_common::limits::clip;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Of the manifest; a reader refuses what is newer.
const FORMAT_VERSION: u32 = 1;
/// The first file: what there is, and what is not there and why.
const MANIFEST: &str = "manifest.json";
/// The report as `doctor --format json` prints it, for people and programs.
const REPORT: &str = "report.json";
/// The report with all that `doctor --bundle` needs to print it.
const REPORT_EXACT: &str = "report-exact.json";

/// Bytes of the line that tells where a bundle is from.
const ORIGIN_BYTES_MAX: usize = 400;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// What is watched.
    pub config: Config,
    /// The config's file, where there is one.
    pub config_path: Option<PathBuf>,
    /// How far back logs are taken.
    pub since: Duration,
}

/// The first file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of this form.
    pub format_version: u32,
    /// Host name, as the kernel has it.
    pub host: String,
    /// When, by the host's clock.
    pub time: String,
    /// Of the program that made it.
    pub agent_version: String,
    /// As `/proc/version` has it.
    pub kernel: String,
    /// From `/etc/os-release`.
    pub os: String,
    /// Which boot.
    pub boot_id: String,
    /// How long it ran.
    pub uptime_s: u64,
    /// How far back logs were taken.
    pub since_s: u64,
    /// Who made it.
    pub uid: u32,
    /// What is in it.
    pub items: Vec<ItemNote>,
    /// What is not in it, and why.
    pub missing: Vec<Missing>,
}

/// One file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemNote {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Only a part is there: which, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<String>,
}

/// Something that is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// What.
    pub name: String,
    /// Why.
    pub why: String,
}

/// A report as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedReport {
    host: String,
    findings: Vec<Finding>,
    stories: Vec<Story>,
    #[serde(default)]
    agent_says: Vec<AgentSays>,
    unknown: Vec<Unanswered>,
    probes: Vec<Ran>,
    notes: Vec<String>,
}

impl SavedReport {
    fn of(report: &Report) -> Self {
        let told = report.not_watched.iter();
        let told = told.map(|what| format!("{what}: configured, but this version has no probe for it"));
        Self {
            host: report.host.clone(),
            findings: report.findings.clone(),
            stories: report.stories.clone(),
            agent_says: report.agent_says.clone(),
            unknown: report.unknown.clone(),
            probes: report.probes.clone(),
            notes: report.notes.iter().cloned().chain(told).collect(),
        }
    }

    fn into_report(self) -> Report {
        let Self { host, findings, stories, agent_says, unknown, probes, notes } = self;
        Report { host, findings, stories, agent_says, unknown, probes, not_watched: Vec::new(), notes }
    }
}

/// What was made.
#[derive(Debug, Clone)]
pub struct Made {
    /// What is in it.
    pub manifest: Manifest,
    /// The compressed file.
    pub bytes: Vec<u8>,
}

/// Gathers everything; `report` is of the same moment.
pub fn make(wish: &Wish, report: &Report, host: &HostRoot) -> std::io::Result<Made> {
    let mut gathering = Gathering::default();
    let mut saved = serde_json::to_value(SavedReport::of(report))?;
    clean_json(&mut saved);
    let mut plain: serde_json::Value = serde_json::from_str(&report.to_json())?;
    clean_json(&mut plain);
    gathering.put_whole(REPORT_EXACT, serde_json::to_vec(&saved)?);
    gathering.put_whole(REPORT, serde_json::to_vec_pretty(&plain)?);
    sources::gather(&mut gathering, wish, report, host);
    let manifest = manifest(wish, report, host, &gathering);
    let text = serde_json::to_vec_pretty(&manifest)?;
    let items = gathering.items.iter().map(|item| (item.name.as_str(), item.content.as_slice()));
    let unix_s = u64::try_from(crate::clock::now().wall.unix_ms() / 1000).unwrap_or(0);
    let archive = pack(std::iter::once((MANIFEST, text.as_slice())).chain(items), unix_s);
    Ok(Made { manifest, bytes: store::compress(&archive)? })
}

fn manifest(wish: &Wish, report: &Report, host: &HostRoot, gathering: &Gathering) -> Manifest {
    let now = crate::clock::now();
    let small = |path: &str| std::fs::read_to_string(host.path(path)).unwrap_or_default();
    let kernel = small("/proc/version");
    let os = small("/etc/os-release");
    let os = os.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("unknown");
    Manifest {
        format_version: FORMAT_VERSION,
        host: report.host.clone(),
        time: now.wall.to_string(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: kernel.trim().to_owned(),
        os: os.trim_matches('"').to_owned(),
        boot_id: crate::clock::boot_id(host).0.to_string(),
        uptime_s: now.boottime_ms / 1000,
        since_s: wish.since.as_secs(),
        uid: nix::unistd::Uid::effective().as_raw(),
        items: gathering.items.iter().map(gather::Item::note).collect(),
        missing: gathering.missing.clone(),
    }
}

/// Where and when it was made, for people.
pub fn origin(manifest: &Manifest) -> String {
    let Manifest { host, time, agent_version, kernel, os, .. } = manifest;
    let line = format!("from {host} at {time} by muster-agent {agent_version} ({os}; {kernel})");
    plain(&clip(&line, ORIGIN_BYTES_MAX))
}

/// For programs.
pub fn origin_json(manifest: &Manifest) -> serde_json::Value {
    json!({
        "host": manifest.host, "time": manifest.time, "agent_version": manifest.agent_version, "os": manifest.os,
        "kernel": manifest.kernel, "boot_id": manifest.boot_id, "uptime_s": manifest.uptime_s,
    })
}

/// What is in it and what is not.
pub fn list(manifest: &Manifest) -> String {
    let mut text = format!("{}\n", origin(manifest));
    for item in &manifest.items {
        let cut = item.cut.as_ref().map(|cut| format!("  ({})", plain(cut))).unwrap_or_default();
        text.push_str(&format!("{:>9}  {}{cut}\n", item.bytes, plain(&item.name)));
    }
    for missing in &manifest.missing {
        text.push_str(&format!("  missing  {}: {}\n", plain(&missing.name), plain(&missing.why)));
    }
    text
}

/// A file of it, escaped for a terminal.
pub fn printable(content: &[u8]) -> String {
    let text = String::from_utf8_lossy(content);
    let lines: Vec<String> = text.split('\n').map(plain).collect();
    lines.join("\n")
}

/// Writes a bundle to `path`, for its owner alone.
pub fn write(path: &Path, made: &Made) -> Result<(), StoreError> {
    store::write(path, &made.bytes)
}

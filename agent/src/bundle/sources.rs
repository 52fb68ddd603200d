//! Where a bundle's texts come from. Everything is read once, bounded, by the kernel's or the agent's own files; a
//! database is never opened (closing it would drop a lock), only looked at.

use super::gather::{Gathering, ITEM_BYTES_MAX, Text};
use super::{Wish, config_text, journal};
use crate::config::Service;
use crate::config::log::LogSource;
use crate::doctor::report::{Ran, Report};
use crate::senses::HostRoot;
use crate::senses::regular::{Found, open_regular};
use crate::senses::saved_log;
use muster_agent_core::backup::pattern::fits;
use muster_agent_core::diagnose::{PID_KEY, START_TICKS_KEY};
use muster_common::evidence::Value;
use muster_proto::v1;
use rustix::fs::OFlags;
use serde_json::json;
use std::collections::BTreeSet;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What the kernel tells of the whole host.
const HOST_FILES: [&str; 14] = [
    "/proc/meminfo",
    "/proc/vmstat",
    "/proc/loadavg",
    "/proc/uptime",
    "/proc/stat",
    "/proc/swaps",
    "/proc/locks",
    "/proc/self/mountinfo",
    "/proc/net/sockstat",
    "/proc/sys/fs/file-nr",
    "/proc/pressure/memory",
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/etc/os-release",
];
/// Bytes of one such file.
const HOST_FILE_BYTES_MAX: u64 = 256 << 10;
/// What the kernel tells of the main process of a service.
const PROCESS_FILES: [&str; 6] = ["status", "stat", "limits", "cgroup", "oom_score_adj", "wchan"];
/// What the memory controller tells, under either version.
const CGROUP_FILES: [&str; 10] = [
    "memory.current",
    "memory.max",
    "memory.high",
    "memory.peak",
    "memory.events",
    "memory.stat",
    "memory.pressure",
    "memory.usage_in_bytes",
    "memory.limit_in_bytes",
    "memory.failcnt",
];
/// Newest bytes of the kernel's log, and of one log file.
const KERNEL_LOG_BYTES_MAX: usize = 512 << 10;
const LOG_BYTES_MAX: usize = 256 << 10;
/// Services with items of their own.
const SERVICES_MAX: usize = 256;
/// Logs of one service.
const LOGS_MAX: usize = 16;
/// Bytes of the name of a service or unit within the name of an item.
const NAME_BYTES_MAX: usize = 28;
/// Entries of a folder of logs.
const FOLDER_ENTRIES_MAX: usize = 4096;

/// Everything beside the report.
pub(super) fn gather(gathering: &mut Gathering, wish: &Wish, report: &Report, host: &HostRoot) {
    let config = &wish.config;
    if let Some(path) = wish.config_path.clone() {
        gathering.source(move || vec![("config.toml".to_owned(), config_file(&path))], "config.toml");
    } else {
        gathering.miss("config.toml".to_owned(), "there is none, services were discovered".to_owned());
    }
    let socket = config.socket.clone();
    gathering.source(move || vec![("daemon.json".to_owned(), daemon(&socket))], "daemon.json");
    let freezes = crate::freezes::path(&config.socket);
    let told = move || match freezes.exists() {
        true => whole(&freezes, HOST_FILE_BYTES_MAX),
        false => Err("no coordinator has told of a freeze".to_owned()),
    };
    gathering.source(move || vec![("freezes.json".to_owned(), told())], "freezes.json");
    let root = host.clone();
    let host_files = move || {
        let text = |path: &&str| (item_name(path), whole(&root.path(path), HOST_FILE_BYTES_MAX));
        HOST_FILES.iter().map(text).collect()
    };
    gathering.source(host_files, "files of the kernel");
    let kmsg = host.path("/dev/kmsg");
    gathering.source(move || vec![("kernel.log".to_owned(), kernel_log(&kmsg))], "kernel.log");
    let since = crate::clock::now().wall - wish.since;
    for (index, service) in config.services.iter().enumerate().take(SERVICES_MAX) {
        let folder = format!("services/{:03}-{}", index + 1, plain_name(service.name.as_str()));
        if let Some(process) = main_process(&report.probes, service) {
            let (root, of, what) = (host.clone(), folder.clone(), format!("{folder}/status"));
            gathering.source(move || process_files(&root, &of, process), &what);
        }
        let databases: Vec<PathBuf> = service.sqlite.iter().map(|database| database.path.clone()).collect();
        if !databases.is_empty() {
            let name = format!("{folder}/databases.json");
            let (root, what) = (host.clone(), name.clone());
            gathering.source(move || vec![(name, files_of(&root, &databases))], &what);
        }
        for unit in units(service) {
            let name = format!("{folder}/journal-{}.log", plain_name(&unit));
            let (root, what) = (host.clone(), name.clone());
            gathering.source(move || vec![(name, journal::slice(&root, &unit, since))], &what);
        }
        let files = service.logs.iter().filter_map(|log| match &log.source {
            LogSource::File(path) => Some(path.clone()),
            LogSource::Journal(_) => None,
        });
        for (index, path) in files.enumerate().take(LOGS_MAX) {
            let name = format!("{folder}/log-{:02}.log", index + 1);
            let (path, what) = (host.path(path), name.clone());
            gathering.source(move || vec![(name, log_file(&path))], &what);
        }
    }
}

/// The kernel's files keep their path.
fn item_name(path: &str) -> String {
    path.trim_start_matches('/').to_owned()
}

fn plain_name(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-@".contains(c) { c } else { '_' };
    text.chars().map(plain).take(NAME_BYTES_MAX).collect()
}

/// Of a unit that is watched, or whose journal is.
fn units(service: &Service) -> BTreeSet<String> {
    let journals = service.logs.iter().filter_map(|log| match &log.source {
        LogSource::Journal(unit) => Some(unit.clone()),
        LogSource::File(_) => None,
    });
    service.unit.iter().map(|unit| unit.name.clone()).chain(journals).collect()
}

fn config_file(path: &Path) -> Text {
    let text = muster_common::config::read_file(path).map_err(|error| error.to_string())?;
    Ok((config_text::clean(&text)?, Some("comments and secrets are left out".to_owned())))
}

/// A file of the kernel or of the agent, from its begin.
fn whole(path: &Path, bytes_max: u64) -> Text {
    let text = |error: io::Error| error.to_string();
    let file = match open_regular(path, OFlags::empty()).map_err(io::Error::from).map_err(text)? {
        Found::File(file, _) => file,
        Found::Other(_) => return Err("it is no file".to_owned()),
    };
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(text)?;
    let bound = usize::try_from(bytes_max).unwrap_or(usize::MAX);
    let cut = (bytes.len() > bound).then(|| format!("only the first {bytes_max} bytes"));
    bytes.truncate(bound);
    Ok((String::from_utf8_lossy(&bytes).into_owned(), cut))
}

fn kernel_log(path: &Path) -> Text {
    let (bytes, cut) = saved_log::tail(path, KERNEL_LOG_BYTES_MAX).map_err(|error| error.to_string())?;
    let cut = cut.then(|| format!("only the last {KERNEL_LOG_BYTES_MAX} bytes"));
    Ok((String::from_utf8_lossy(&bytes).into_owned(), cut))
}

/// The pid and start time that a probe of the service saw.
fn main_process(probes: &[Ran], service: &Service) -> Option<(u32, u64)> {
    let number = |ran: &Ran, key: &str| match ran.judgement.seen.get(key) {
        Some(Value::Count(number)) => Some(*number),
        _ => None,
    };
    let own = probes.iter().filter(|ran| ran.subject.service == service.name);
    let process = |ran: &Ran| Some((u32::try_from(number(ran, PID_KEY)?).ok()?, number(ran, START_TICKS_KEY)?));
    own.filter_map(process).find(|(pid, _)| *pid > 0)
}

fn process_files(host: &HostRoot, folder: &str, (pid, start_ticks): (u32, u64)) -> Vec<(String, Text)> {
    let base = host.path(format!("/proc/{pid}"));
    let read = |name: &str| whole(&base.join(name), HOST_FILE_BYTES_MAX);
    let started =
        |stat: &str| stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok());
    let texts: Vec<(String, Text)> =
        PROCESS_FILES.iter().map(|name| (format!("{folder}/{name}"), read(name))).collect();
    // Looked at last: what was read before is of the process that has this pid now.
    if read("stat").ok().and_then(|(stat, _)| started(&stat)) != Some(start_ticks) {
        return vec![(format!("{folder}/status"), Err(format!("process {pid} is gone, or its pid has another now")))];
    }
    let mut texts = texts;
    let cgroup = read("cgroup").map(|(text, _)| text).unwrap_or_default();
    for name in CGROUP_FILES {
        if let Some(text) = cgroup_file(host, &cgroup, name) {
            texts.push((format!("{folder}/{name}"), Ok(text)));
        }
    }
    texts
}

/// `None` where this version of cgroups has no such file.
fn cgroup_file(host: &HostRoot, cgroup: &str, name: &str) -> Option<(String, Option<String>)> {
    let paths = cgroup.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let mount = match controllers {
            "" => "/sys/fs/cgroup",
            list if list.split(',').any(|controller| controller == "memory") => "/sys/fs/cgroup/memory",
            _ => return None,
        };
        let outside = path.split('/').any(|part| part == "..");
        (!outside).then(|| host.path(mount).join(path.trim_start_matches('/')).join(name))
    });
    paths.into_iter().find_map(|path| whole(&path, HOST_FILE_BYTES_MAX).ok())
}

/// What can be known of databases and what stands beside them without opening any.
fn files_of(host: &HostRoot, databases: &[PathBuf]) -> Text {
    let mut told = Vec::new();
    for database in databases {
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let mut path = database.clone().into_os_string();
            path.push(suffix);
            let shown = path.to_string_lossy().into_owned();
            let fact = match std::fs::symlink_metadata(host.path(&path)) {
                Ok(facts) => json!({
                    "path": shown, "bytes": facts.len(), "modified_unix_s": facts.mtime(), "inode": facts.ino(),
                    "device": facts.dev(), "mode": format!("{:o}", facts.mode()), "uid": facts.uid(),
                    "gid": facts.gid(),
                }),
                Err(error) => json!({ "path": shown, "error": error.to_string() }),
            };
            told.push(fact);
        }
    }
    Ok((format!("{:#}\n", json!(told)), None))
}

/// The newest lines of a log, of the newest file where its path is a pattern.
fn log_file(path: &Path) -> Text {
    let text = |error: io::Error| error.to_string();
    let path = newest(path).map_err(text)?;
    let mut file = match open_regular(&path, OFlags::empty()).map_err(io::Error::from).map_err(text)? {
        Found::File(file, _) => file,
        Found::Other(_) => return Err(format!("{} is no file", path.display())),
    };
    let length = file.metadata().map_err(text)?.len();
    let bound = u64::try_from(LOG_BYTES_MAX).unwrap_or(u64::MAX);
    let from = length.saturating_sub(bound);
    file.seek(SeekFrom::Start(from)).map_err(text)?;
    let mut bytes = Vec::new();
    file.take(bound).read_to_end(&mut bytes).map_err(text)?;
    // A part of a line could hide the name of a secret.
    let line =
        if from == 0 { 0 } else { bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1) };
    let tail = String::from_utf8_lossy(bytes.get(line..).unwrap_or_default()).into_owned();
    const { assert!(LOG_BYTES_MAX <= ITEM_BYTES_MAX) }
    let cut = (from > 0).then(|| format!("only the last {LOG_BYTES_MAX} bytes of {}", path.display()));
    Ok((tail, cut))
}

fn newest(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let (Some(folder), true) = (path.parent(), name.contains(['*', '?'])) else { return Ok(path.to_owned()) };
    let entries = std::fs::read_dir(folder)?.take(FOLDER_ENTRIES_MAX).filter_map(Result::ok);
    let fitting = entries.filter(|entry| entry.file_name().to_str().is_some_and(|found| fits(&name, found)));
    let dated = fitting.filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())));
    let newest = dated.max().map(|(_, path)| path);
    newest.ok_or_else(|| io::Error::other(format!("no file fits {}", path.display())))
}

/// What the daemon knows, if there is one that answers.
fn daemon(socket: &Path) -> Text {
    let status =
        crate::local::client::status(socket).map_err(|error| muster_common::chain::Chain(&error).to_string())?;
    let finding = |finding: &v1::FindingDetail| {
        let subject = finding.subject.clone().unwrap_or_default();
        json!({
            "service": subject.service, "probe": subject.probe, "subject": subject.subject, "reason": finding.reason,
            "severity": finding.severity().as_str_name(), "summary": finding.summary, "next_steps": finding.next_steps,
        })
    };
    let subject = |state: &v1::SubjectState| {
        let subject = state.subject.clone().unwrap_or_default();
        json!({
            "service": subject.service, "probe": subject.probe, "subject": subject.subject,
            "verdict": state.verdict().as_str_name(),
        })
    };
    let diagnosis = |diagnosis: &v1::LocalDiagnosis| {
        json!({
            "service": diagnosis.service, "severity": diagnosis.severity().as_str_name(), "reason": diagnosis.reason,
            "probe": diagnosis.probe, "subject": diagnosis.subject, "summary": diagnosis.summary,
            "unknown": diagnosis.unknown, "next_steps": diagnosis.next_steps,
            "happened_unix_ms": diagnosis.happened_unix_ms,
        })
    };
    let told = json!({
        "agent_version": status.agent_version, "link": status.link, "coordinator": status.coordinator,
        "unacked_entries": status.unacked_entries,
        "findings": status.findings.iter().map(finding).collect::<Vec<_>>(),
        "subjects": status.subjects.iter().map(subject).collect::<Vec<_>>(),
        "diagnoses": status.diagnoses.iter().map(diagnosis).collect::<Vec<_>>(),
    });
    Ok((format!("{told:#}\n"), None))
}

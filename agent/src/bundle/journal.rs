//! The newest entries of a unit in systemd's journal, read as the files lie on disk.

use super::gather::{ITEM_BYTES_MAX, Text};
use crate::senses::HostRoot;
use crate::senses::log::journal::Readable;
use crate::senses::regular::{Found, open_regular};
use muster_agent_core::journal_file::JournalFile;
use muster_common::time::Timestamp;
use rustix::fs::OFlags;
use std::path::PathBuf;

/// Entries of one unit from one file, and in all.
const ENTRIES_MAX: usize = 2_000;
/// Files looked into, the newest of them.
const FILES_MAX: usize = 128;
/// Names looked at in a folder.
const NAMES_MAX: usize = 4096;
/// Bytes of one message.
const MESSAGE_BYTES_MAX: usize = 4096;
const FIELDS: [&str; 4] = ["MESSAGE", "_PID", "_COMM", "SYSLOG_IDENTIFIER"];

/// What the unit wrote and what systemd wrote about it since then, oldest first.
pub(super) fn slice(host: &HostRoot, unit: &str, since: Timestamp) -> Text {
    let files = files(host)?;
    let since_usec = u64::try_from(since.unix_ms()).unwrap_or(0).saturating_mul(1000);
    let mut lines: Vec<(u64, String)> = Vec::new();
    let mut more = false;
    let (mut closed, mut opened) = (0u32, 0u32);
    for path in files {
        let Ok(Found::File(file, _)) = open_regular(&path, OFlags::NOFOLLOW) else {
            closed += 1;
            continue;
        };
        let Ok(mut journal) = JournalFile::open(Readable(file)) else { continue };
        opened += 1;
        more |= read(&mut journal, unit, since_usec, &mut lines);
    }
    if opened == 0 && closed > 0 {
        return Err("the journal may not be read: run as root or as a member of systemd-journal".to_owned());
    }
    lines.sort();
    lines.dedup();
    more |= lines.len() > ENTRIES_MAX;
    let from = lines.len().saturating_sub(ENTRIES_MAX);
    let mut text = String::new();
    for (_, line) in lines.iter().skip(from) {
        text.push_str(line);
        text.push('\n');
    }
    // Cut again by whoever keeps it, where lines are long.
    const { assert!(ENTRIES_MAX * MESSAGE_BYTES_MAX >= ITEM_BYTES_MAX) }
    Ok((text, more.then(|| format!("only the newest {ENTRIES_MAX} entries"))))
}

/// Newest first, as their names tell; the ones that are written now have no time in theirs.
fn files(host: &HostRoot) -> Result<Vec<PathBuf>, String> {
    let id = std::fs::read_to_string(host.path("/etc/machine-id")).unwrap_or_default();
    let id = id.trim();
    if id.len() != 32 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err("/etc/machine-id does not name a journal".to_owned());
    }
    let mut found = Vec::new();
    for base in ["/var/log/journal", "/run/log/journal"] {
        let Ok(entries) = std::fs::read_dir(host.path(base).join(id)) else { continue };
        let names = entries.take(NAMES_MAX).filter_map(Result::ok);
        let journals = names.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let is_journal = name.ends_with(".journal") || name.ends_with(".journal~");
            is_journal.then(|| (began_usec(&name), entry.path()))
        });
        found.extend(journals);
    }
    if found.is_empty() {
        return Err("there is no journal that can be read in /var/log/journal or /run/log/journal".to_owned());
    }
    found.sort_by(|a, b| b.cmp(a));
    found.truncate(FILES_MAX);
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// `system@SEQNUM_ID-HEAD_SEQNUM-HEAD_USEC.journal` was rotated away; others are written now.
fn began_usec(name: &str) -> u64 {
    let stem = name.split('.').next().unwrap_or_default();
    let usec = stem.split_once('@').and_then(|(_, mark)| mark.rsplit('-').next());
    usec.and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(u64::MAX)
}

/// Whether there was more than was read.
fn read(journal: &mut JournalFile<Readable>, unit: &str, since_usec: u64, lines: &mut Vec<(u64, String)>) -> bool {
    let mut more = false;
    for (payload, only_from_init) in [(format!("_SYSTEMD_UNIT={unit}"), false), (format!("UNIT={unit}"), true)] {
        let Some(chain) = journal.find(payload.as_bytes()) else { continue };
        let from = chain.entries.saturating_sub(u64::try_from(ENTRIES_MAX).unwrap_or(u64::MAX));
        let mut reached = false;
        for offset in journal.offsets(chain, from, ENTRIES_MAX).into_iter().rev() {
            let Some(entry) = journal.entry(offset, &FIELDS) else { continue };
            if entry.realtime_usec < since_usec {
                reached = true;
                break;
            }
            let field = |index| entry.field(index).map(|bytes| String::from_utf8_lossy(bytes)).unwrap_or_default();
            if only_from_init && field(1) != "1" {
                continue;
            }
            let unix_ms = i64::try_from(entry.realtime_usec / 1000).unwrap_or(i64::MAX);
            let (message, time) = (field(0), Timestamp::from_unix_ms(unix_ms));
            let message = muster_common::limits::clip(&message, MESSAGE_BYTES_MAX);
            let name = if field(3).is_empty() { field(2) } else { field(3) };
            lines.push((entry.realtime_usec, format!("{time} {name}[{}]: {message}", field(1))));
        }
        more |= from > 0 && !reached;
    }
    more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_newest_first() {
        assert_eq!(began_usec("system.journal"), u64::MAX);
        assert_eq!(began_usec("system@e78d-0000000000000001-000660d3c9f0f268.journal"), 0x660d3c9f0f268);
        assert_eq!(began_usec("user-1000@000660d3c9f0f268-0123456789abcdef.journal~"), 0x0123456789abcdef);
    }

    #[test]
    fn what_is_no_journal_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let host = HostRoot(folder.path().to_owned());
        let slice = || slice(&host, "spl.service", Timestamp::UNIX_EPOCH);
        assert!(slice().unwrap_err().contains("machine-id"));
        std::fs::create_dir_all(host.path("/etc")).unwrap();
        let id = "0123456789abcdef0123456789abcdef";
        std::fs::write(host.path("/etc/machine-id"), id).unwrap();
        assert!(slice().unwrap_err().contains("no journal"));
        std::fs::create_dir_all(host.path("/var/log/journal").join(id)).unwrap();
        std::fs::write(host.path("/var/log/journal").join(id).join("system.journal"), "no journal").unwrap();
        assert_eq!(slice().unwrap(), (String::new(), None));
    }
}

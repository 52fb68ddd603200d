//! One function for each parser of bytes from outside: it takes anything, and says by a panic when what comes out breaks
//! a bound or contradicts itself.
//!
//! Shared by the bounded run of every `cargo test` (`main.rs` beside this file) and by the fuzz targets (`fuzz/`).

use muster_agent_core::accounts::Accounts;
use muster_agent_core::backup::archive::{self, Archive, HEAD_BYTES};
use muster_agent_core::backup::pattern::{Pattern, WILDCARDS_MAX, fits, is_unfinished};
use muster_agent_core::baseline::{limits, sysctl, unit_property};
use muster_agent_core::health::certificate::Certificate;
use muster_agent_core::journal_file::{FIELD_BYTES_MAX, JournalFile, Source};
use muster_agent_core::kmsg::{Joiner, bears_kernel_mark, parse_record, parse_saved};
use muster_agent_core::locks::sqlite_bytes::{Part, roles};
use muster_agent_core::locks::table;
use muster_agent_core::log::{
    Entry, LINE_BYTES_MAX, Rule, RuleSet, Splitter, check_examples, check_pattern, group_names, placeholders, redact,
};
use muster_agent_core::port::{Address, Target, proc_net};
use muster_agent_core::pressure::cgroup::{self, Version};
use muster_agent_core::process::proc_text;
use muster_agent_core::sqlite::damage::{Damage, Roots};
use muster_agent_core::sqlite::header::{Header, JournalHeader, WalIndex};
use muster_agent_core::sqlite::wal::{self, Chain, LogHeader};
use muster_agent_core::{memory, mounts, pid_file, pressure};
use muster_common::reason::Reason;
use std::borrow::Cow;
use std::collections::BTreeSet;

/// A parser, and the folder of its seeds.
pub type Parser = (&'static str, fn(&[u8]));

/// All of them. Each has a folder of seeds and a fuzz target of its name.
pub const PARSERS: [Parser; 23] = [
    ("accounts", accounts),
    ("archive", archive),
    ("backup_pattern", backup_pattern),
    ("certificate", certificate),
    ("cgroup_memory", cgroup_memory),
    ("journal_file", journal_file),
    ("kmsg", kmsg),
    ("limits", proc_limits),
    ("log_line", log_line),
    ("log_rule", log_rule),
    ("meminfo", meminfo),
    ("mountinfo", mountinfo),
    ("pid_file", pid_files),
    ("port_target", port_target),
    ("proc_locks", locks),
    ("proc_net", sockets),
    ("proc_stat", proc_stat),
    ("proc_status", proc_status),
    ("psi", psi),
    ("redact", redaction),
    ("saved_kernel_log", saved_kernel_log),
    ("sqlite_header", sqlite_header),
    ("sqlite_wal", sqlite_wal),
];

/// Keeps the optimiser of a fuzz target from leaving out what nobody uses.
fn ran<T>(outcome: T) {
    drop(std::hint::black_box(outcome));
}

fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// The input in two parts, at its first NUL.
fn halves(bytes: &[u8]) -> (&[u8], &[u8]) {
    let at = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (first, rest) = bytes.split_at(at);
    (first, rest.get(1..).unwrap_or_default())
}

/// `/etc/passwd`, a NUL, `/etc/group`.
pub fn accounts(bytes: &[u8]) {
    let (passwd, group) = halves(bytes);
    let accounts = Accounts::parse(&text(passwd), &text(group));
    for id in [0, 1, 1000, u32::MAX] {
        assert!(!accounts.user(id).is_empty() && !accounts.group(id).is_empty());
        ran(accounts.is_private_group(id, id));
    }
}

/// A compressed or packed copy: what it is, and whether its end is there.
pub fn archive(bytes: &[u8]) {
    const READS_MAX: u64 = 1 << 12;
    let head = bytes.get(..bytes.len().min(HEAD_BYTES)).unwrap_or_default();
    let (name, _) = halves(bytes);
    ran(Archive::promised_by(&text(name)));
    let Some(kind) = Archive::of(head) else { return };
    let size = bytes.len() as u64;
    let mut reads = 0u64;
    let mut read = |at: u64, buffer: &mut [u8]| {
        reads += 1;
        let start = usize::try_from(at).map_err(|error| error.to_string())?;
        let end = start.checked_add(buffer.len()).ok_or("too far")?;
        buffer.copy_from_slice(bytes.get(start..end).ok_or("beyond its end")?);
        Ok(())
    };
    ran(archive::check(kind, size, &mut read));
    // Every step moves on by a byte at least, whatever the file says of itself.
    assert!(reads <= size * 2 + READS_MAX, "{reads} reads of {size} bytes");
}

/// A pattern, a NUL, a name.
pub fn backup_pattern(bytes: &[u8]) {
    let (pattern, name) = halves(bytes);
    let (pattern, name) = (text(pattern), text(name));
    let Ok(pattern) = Pattern::parse(&pattern) else { return };
    assert!(pattern.as_str().matches(['*', '?']).count() <= WILDCARDS_MAX);
    for component in pattern.components() {
        ran((fits(component, &name), is_unfinished(component, &name)));
        assert!(component.contains(['*', '?']) || component.starts_with('.') || fits(component, component));
    }
}

/// A certificate as a server shows it.
pub fn certificate(bytes: &[u8]) {
    if let Some(certificate) = Certificate::parse(bytes) {
        assert!(format!("{certificate:?}").len() <= bytes.len() * 16 + 1024);
    }
}

/// `memory.events` (or `memory.failcnt`), `memory.stat` and limits of a cgroup.
pub fn cgroup_memory(bytes: &[u8]) {
    let (events, failcnt) = halves(bytes);
    let (events, failcnt) = (text(events), text(failcnt));
    ran(cgroup::counters(&events, None));
    ran(cgroup::counters(&events, Some(&failcnt)));
    ran(cgroup::limit_bytes(&events));
    for version in [Version::V1, Version::V2] {
        ran(cgroup::reclaimable_bytes(&events, version));
    }
}

/// Counts what a parser reads.
struct Counted<'a> {
    bytes: &'a [u8],
    reads: u64,
}

impl Source for Counted<'_> {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> usize {
        self.reads += 1;
        let mut bytes = self.bytes;
        bytes.read_at(offset, buffer)
    }
}

/// A file of systemd's journal.
pub fn journal_file(bytes: &[u8]) {
    const ENTRIES: usize = 64;
    const NAMES: [&str; 3] = ["MESSAGE", "PRIORITY", "_PID"];
    let Ok(mut file) = JournalFile::open(Counted { bytes, reads: 0 }) else { return };
    for payload in [&b"_SYSTEMD_UNIT=a.service"[..], b"_TRANSPORT=kernel"] {
        let Some(chain) = file.find(payload) else { continue };
        let offsets = file.offsets(chain, chain.entries.saturating_sub(1), ENTRIES);
        assert!(offsets.len() <= ENTRIES);
        for offset in file.offsets(chain, 0, ENTRIES) {
            let Some(entry) = file.entry(offset, &NAMES) else { continue };
            for (of, value) in &entry.fields {
                assert!(*of < NAMES.len() && value.len() <= FIELD_BYTES_MAX);
            }
        }
        ran(file.again(chain));
    }
    ran(file.refresh());
    // Two searches and their entries: bounded however the file leads in circles.
    assert!(file.source().reads < 1 << 20, "{} reads", file.source().reads);
}

/// One record of `/dev/kmsg`.
pub fn kmsg(bytes: &[u8]) {
    let Some(line) = parse_record(bytes) else { return };
    let mut joiner = Joiner::default();
    joiner.feed(&line);
    let outcome = joiner.take(true);
    assert!(outcome.victims.len() <= 1);
}

/// A saved kernel log of many lines.
pub fn saved_kernel_log(bytes: &[u8]) {
    let mut joiner = Joiner::default();
    let mut lines = 0;
    for raw in text(bytes).lines() {
        let line = parse_saved(raw);
        ran(bears_kernel_mark(raw, &line));
        joiner.feed(&line);
        lines += 1;
    }
    let outcome = joiner.take(true);
    assert!(outcome.victims.len() <= lines, "no more victims than lines");
}

/// `/proc/PID/limits`.
pub fn proc_limits(bytes: &[u8]) {
    let text = text(bytes);
    ran(proc_text::limits(&text));
    for name in limits::names() {
        ran(limits::find(&text, name));
        ran(limits::applied(&text, name, "1024"));
    }
    ran((limits::requested(&text), sysctl::path(&text), unit_property::requested("MemoryMax", &text)));
    ran(sysctl::plain(&text));
}

/// Bytes of a followed log.
pub fn log_line(bytes: &[u8]) {
    for last in [false, true] {
        let mut splitter = Splitter::default();
        let done = splitter.split(bytes, last, |line, _cut| {
            assert!(line.len() <= LINE_BYTES_MAX && !line.contains(&b'\n'));
            let line = String::from_utf8_lossy(line);
            for entry in [Entry::parse(&line), Entry::text(&line), Entry::message(&line, Some(1))] {
                // The parts of a message are put together with a little between them.
                assert!(entry.text.len() <= line.len() + 16, "{} bytes of {}", entry.text.len(), line.len());
                ran((entry.program(), entry.field("level"), entry.field("error.message")));
            }
        });
        assert!(done <= bytes.len() && (!last || done == bytes.len()));
    }
}

/// A rule's pattern, a NUL, a line that it is tried on.
pub fn log_rule(bytes: &[u8]) {
    let (pattern, line) = halves(bytes);
    let (pattern, line) = (text(pattern), text(line));
    ran(placeholders(&pattern));
    if check_pattern(&pattern).is_err() {
        return;
    }
    ran(group_names(&pattern));
    let mut rule = Rule::new("any", Reason::PermanentError, &pattern);
    rule.matches = vec![line.clone().into_owned()];
    ran(check_examples(&rule));
    // A set of patterns may be larger than is allowed, though each is not.
    let Ok(set) = RuleSet::new(vec![rule]) else { return };
    let entry = Entry::parse(&line);
    if let Some(hit) = set.hit(&entry, "spl", None) {
        let sample = hit.sample(&entry, 1);
        assert!(sample.text.len() <= LINE_BYTES_MAX && hit.group(&sample).len() <= LINE_BYTES_MAX);
    }
}

/// What is shown of any line.
pub fn redaction(bytes: &[u8]) {
    let line = text(bytes);
    let shown = redact(&line);
    assert!(!shown.chars().any(char::is_control), "{shown:?}");
    // The longest escape of a character is `\u{10ffff}`.
    assert!(shown.len() <= line.len() * 10 + 16, "{} of {}", shown.len(), line.len());
}

/// `/proc/meminfo`.
pub fn meminfo(bytes: &[u8]) {
    ran(memory::parse(&text(bytes)));
}

/// `/proc/self/mountinfo`, and an fstab.
pub fn mountinfo(bytes: &[u8]) {
    let text = text(bytes);
    let found = mounts::parse(&text);
    assert!(found.len() <= text.lines().count());
    for mount in found.iter().take(4) {
        ran((mount.may_hang(), mount.is_automount(), mount.is_read_only_by_type()));
        assert!(mounts::of_path(&found, "/srv/hub.db").is_none_or(|mount| found.contains(mount)));
    }
    ran(mounts::fstab_writable(&text, "/srv"));
    ran(table::mount_device(&text, 36));
}

/// A pid file.
pub fn pid_files(bytes: &[u8]) {
    for pid_max in [1, 32_768, 1 << 22, u32::MAX] {
        if let Ok(pid) = pid_file::parse(bytes, pid_max) {
            assert!(pid > 0 && pid <= pid_max, "{pid} of {pid_max}");
        }
    }
}

/// A port as people write it.
pub fn port_target(bytes: &[u8]) {
    if let Ok(target) = text(bytes).parse::<Target>() {
        let shown = target.to_string();
        assert_eq!(shown.parse::<Target>().as_ref().ok(), Some(&target), "{shown}");
    }
}

/// `/proc/locks`, and the locks in an `fdinfo`.
pub fn locks(bytes: &[u8]) {
    let text = text(bytes);
    let lines = text.lines().count();
    let named = text.lines().filter_map(table::parse_line).filter_map(|lock| lock.file);
    let interest: BTreeSet<u64> = (0..512).chain(named.map(|file| file.inode)).collect();
    let table = table::parse(&text, &interest);
    for lock in table.on(|_| true) {
        ran((lock.covers(0, u64::MAX), lock.is_same(lock)));
        for part in [Part::Database, Part::WalIndex] {
            assert!(roles(lock, part).len() <= 16);
        }
    }
    let waiters: usize = table.contended.iter().map(|contended| contended.waiters.len()).sum();
    assert!(waiters <= lines);
    assert!(table::of_descriptor(&text).count() <= lines);
    ran((table::mount_id(&text), table::inode(&text)));
}

/// `/proc/net/{tcp,tcp6,unix}`.
pub fn sockets(bytes: &[u8]) {
    let text = text(bytes);
    for listener in proc_net::parse_tcp(&text).iter().chain(&proc_net::parse_unix(&text)) {
        assert!(!listener.address.to_string().is_empty());
        if let Address::Unix { path, .. } = &listener.address {
            assert!(path.len() <= text.len());
        }
        ran(listener.is_full());
    }
}

/// `/proc/PID/stat`, and a list of children.
pub fn proc_stat(bytes: &[u8]) {
    let text = text(bytes);
    if let Some(stat) = proc_text::stat(&text) {
        assert!(stat.comm.len() <= text.len());
    }
    assert!(proc_text::children(&text).count() <= text.len());
}

/// `/proc/PID/status`.
pub fn proc_status(bytes: &[u8]) {
    let status = proc_text::status(&text(bytes));
    assert!(status.own_bytes().is_none_or(|own| own >= status.anon_bytes.or(status.rss_bytes).unwrap_or(0)));
}

/// `/proc/pressure/memory`.
pub fn psi(bytes: &[u8]) {
    let rules = pressure::psi::StallRules { some_percent: 10, full_percent: 5 };
    if let Some(psi) = pressure::psi::parse(&text(bytes)) {
        ran((psi.is_high(rules, false), psi.is_high(rules, true)));
        assert!(psi.words().len() < 512);
    }
}

/// The start of a database, of its rollback journal or of its wal-index, and rows of `integrity_check`.
pub fn sqlite_header(bytes: &[u8]) {
    if let Some(header) = Header::parse(bytes) {
        ran((header.is_wal(), header.expected_bytes()));
    }
    ran((JournalHeader::parse(bytes).is_some(), WalIndex::parse(bytes).is_some()));
    let rows = text(bytes);
    let damage = Damage::read(rows.lines(), &Roots::default());
    ran((damage.is_empty(), damage.only_indexes(), damage.names()));
    assert!(damage.is_empty() || damage.overlaps(&damage));
}

/// A wal-index, and a write-ahead log with its frames.
pub fn sqlite_wal(bytes: &[u8]) {
    let index = wal::Index::parse(bytes);
    if let Some(index) = &index {
        ran((index.only_in_log(), index.frame_bytes(), index.live_bytes()));
        for number in [0, 1, u32::MAX] {
            ran(index.frame_at(number));
        }
        ran(wal::is_last_frame(bytes, index));
    }
    if let Some(header) = LogHeader::parse(bytes) {
        let mut chain = Chain::new(header);
        for frame in bytes.get(32..).unwrap_or_default().chunks(24 + 512) {
            if !chain.take(frame) {
                break;
            }
        }
        assert!(u64::from(chain.frames()) <= bytes.len() as u64);
    }
}

//! How far `doctor --deep` is: a bar on a terminal, else one line a check. On stderr alone: stdout is the report's.

use muster_common::limits::clip;
use muster_common::units::{human_bytes, human_duration};
use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Cells of the bar.
const CELLS: usize = 24;
/// Bytes of a name beside it: a line must fit on a terminal of 80 columns.
const NAME_BYTES: usize = 24;
/// A file is read to be copied, its copy by `quick_check`, and by `integrity_check`, which looks up each row's entries in
/// indexes: about five times.
const READS: u64 = 5;
/// A check that reads more than was thought is not shown as ended.
const NEAR_THE_END: f64 = 0.97;

/// What is told of the checks that are under way.
#[derive(Debug)]
pub(super) struct Progress {
    terminal: bool,
    began: Instant,
    checks: usize,
    /// Bytes of all files, and of those that are done.
    all_bytes: u64,
    done_bytes: u64,
    current: Option<Current>,
    index: usize,
}

#[derive(Debug)]
struct Current {
    name: String,
    bytes: u64,
    read_before: u64,
}

impl Progress {
    /// Of so many checks of files with so many bytes.
    pub(super) fn new(checks: usize, all_bytes: u64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { terminal, began: Instant::now(), checks, all_bytes, done_bytes: 0, current: None, index: 0 }
    }

    /// One begins.
    pub(super) fn begin(&mut self, name: &str, bytes: u64) {
        self.index += 1;
        // What has no size is a small file on the bar, and none in words.
        let size = if bytes > 0 { format!(" ({})", human_bytes(bytes)) } else { String::new() };
        let bytes = bytes.max(1);
        self.current = Some(Current { name: super::text::plain(name), bytes, read_before: bytes_read() });
        if self.terminal {
            self.tick();
        } else {
            let line = format!("deep check {} of {}: {}{size}\n", self.index, self.checks, super::text::plain(name));
            tell(&line);
        }
    }

    /// It is still under way.
    pub(super) fn tick(&self) {
        if self.terminal {
            tell(&format!("\r\u{1b}[K{}", self.line(bytes_read())));
        }
    }

    /// It has ended.
    pub(super) fn end(&mut self) {
        if let Some(current) = self.current.take() {
            self.done_bytes = self.done_bytes.saturating_add(current.bytes);
        }
    }

    /// All have.
    pub(super) fn clear(&self) {
        if self.terminal {
            tell("\r\u{1b}[K");
        }
    }

    fn line(&self, read: u64) -> String {
        let Some(current) = &self.current else { return String::new() };
        let name = current.name.rsplit('/').next().unwrap_or_default();
        let share = self.share(current, read);
        let full = cells(share);
        format!(
            "[{}{}] {:3.0} %  {}/{} {}, {}",
            "#".repeat(full),
            "-".repeat(CELLS - full),
            share * 100.0,
            self.index,
            self.checks,
            clip(name, NAME_BYTES),
            human_duration(self.began.elapsed())
        )
    }

    /// By what this process has read since: nobody else can say how far SQLite is.
    #[expect(clippy::cast_precision_loss, reason = "a bar has two dozen cells")]
    fn share(&self, current: &Current, read: u64) -> f64 {
        let expected = current.bytes.saturating_mul(READS).max(1);
        let of_this = (read.saturating_sub(current.read_before) as f64 / expected as f64).min(NEAR_THE_END);
        let done = (current.bytes as f64).mul_add(of_this, self.done_bytes as f64);
        (done / self.all_bytes.max(1) as f64).clamp(0.0, 1.0)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share between 0 and 1")]
fn cells(share: f64) -> usize {
    ((share * 24.0) as usize).min(CELLS)
}

/// By this process, from files and the page cache alike.
fn bytes_read() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("rchar: ")?.trim().parse().ok()).unwrap_or(0)
}

fn tell(text: &str) {
    // Nobody is there to be told: the check goes on.
    let mut err = std::io::stderr().lock();
    let _untold = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_goes_on_and_never_beyond_its_end() {
        let mut progress = Progress {
            terminal: false,
            began: Instant::now(),
            checks: 2,
            all_bytes: 400,
            done_bytes: 0,
            current: None,
            index: 1,
        };
        progress.current = Some(Current { name: "/var/lib/spl/hub.db".into(), bytes: 100, read_before: 50 });
        assert!(progress.line(50).starts_with("[------------------------]   0 %  1/2 hub.db"), "{}", progress.line(50));
        assert!(progress.line(300).starts_with("[###---------------------]  12 %"), "{}", progress.line(300));
        assert!(progress.line(u64::MAX).contains(" 24 %"), "{}", progress.line(u64::MAX));
        progress.end();
        progress.current = Some(Current { name: "x".repeat(500), bytes: 300, read_before: 0 });
        let line = progress.line(u64::MAX);
        assert!(line.contains(" 98 %") && line.len() < 80, "{line}");
    }
}

//! A program of ours under measurement, and its log with the moment at which each line arrived.

use crate::lab::Lab;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// One line of a log.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// When it arrived.
    pub(crate) at: Instant,
    /// What it says.
    pub(crate) text: String,
}

impl Line {
    /// Whether it has all of `parts`.
    pub(crate) fn has(&self, parts: &[&str]) -> bool {
        parts.iter().all(|part| self.text.contains(part))
    }

    /// The number behind `name=`.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        let (_, rest) = self.text.split_once(&format!("{name}="))?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    }
}

/// The program. The lab ends it.
#[derive(Debug)]
pub(crate) struct Logged {
    /// Its process.
    pub(crate) pid: u32,
    name: String,
    lines: Receiver<Line>,
}

impl Logged {
    /// Starts `program`; `filter` is what it logs, `None` for what it logs by itself.
    pub(crate) fn start(
        lab: &Lab,
        name: &str,
        program: &Path,
        arguments: &[&str],
        filter: Option<&str>,
    ) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // As the shipped unit has it: the kernel log comes as descriptor 0, where it can be opened.
        let ours = program.ends_with("muster-agent");
        if let Some(kmsg) = std::fs::File::open("/dev/kmsg").ok().filter(|_| ours) {
            command.stdin(kmsg);
        }
        command.env_remove("NOTIFY_SOCKET").env_remove("MUSTER_LOG").env("MALLOC_ARENA_MAX", "1");
        command.envs(filter.map(|filter| ("MUSTER_LOG", filter)));
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let stderr = BufReader::new(child.stderr.take().context("no stderr")?);
        let pid = child.id();
        lab.adopt(name, child)?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let read = stderr.lines().map_while(Result::ok);
            read.map(|text| Line { at: Instant::now(), text }).try_for_each(|line| sender.send(line))
        });
        Ok(Self { pid, name: name.to_owned(), lines })
    }

    /// The next line with all of `parts`.
    pub(crate) fn until(&self, parts: &[&str], limit: Duration) -> Result<Line> {
        self.until_any(limit, |line| line.has(parts)).with_context(|| format!("{} never said {parts:?}", self.name))
    }

    /// The next line that is `wanted`.
    pub(crate) fn until_any(&self, limit: Duration, mut wanted: impl FnMut(&Line) -> bool) -> Result<Line> {
        let end = Instant::now() + limit;
        let mut last = String::new();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if wanted(&line) => return Ok(line),
                Ok(line) => last = line.text,
                Err(RecvTimeoutError::Timeout) => bail!("nothing within {limit:?}; its last line: {last}"),
                Err(RecvTimeoutError::Disconnected) => bail!("it ended; its last line: {last}"),
            }
        }
    }

    /// All lines that arrive until `length` is over.
    pub(crate) fn for_a_while(&self, length: Duration) -> Vec<Line> {
        let end = Instant::now() + length;
        let mut lines = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            lines.push(line);
        }
        lines
    }

    /// Forgets what was said up to now.
    pub(crate) fn skip(&self) {
        while self.lines.try_recv().is_ok() {}
    }
}

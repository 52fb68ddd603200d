//! Reads a saved kernel log, of this host or of another, for OOM kills.
//!
//! Must never take a file that is no kernel log for one without kills, and never wait for ever on what is at the path.

use super::oom::{group_unnamed, is_kmsg};
use muster_agent_core::judgement::Problem;
use muster_agent_core::kmsg::report::oom_kill;
use muster_agent_core::kmsg::{Joiner, bears_kernel_mark, parse_saved};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::{Errno, read};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

/// Bytes read of a saved log, and of one of its lines.
const FILE_BYTES_MAX: u64 = 1 << 30;
const LINE_BYTES_MAX: u64 = 64 * 1024;
/// `/dev/kmsg` refuses a buffer smaller than the record; the kernel's records are at most 8 KiB.
const BUFFER_BYTES: usize = 16 * 1024;
/// How long a pipe may be silent (`journalctl -k | …` of a large journal thinks for a while).
const SILENCE_MAX: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// What a log told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SavedLog {
    /// One per victim, as far as the text names them.
    pub kills: Vec<Problem>,
    /// Lines read.
    pub lines: u64,
    /// Lines that only a kernel log has; none means that nothing is known.
    pub kernel_lines: u64,
    /// True when the log is larger than what is read of one.
    pub cut_short: bool,
}

/// Reads a kernel log in any usual form: a file, a pipe, or `/dev/kmsg` itself up to its newest record.
pub fn read_log(path: &Path) -> io::Result<SavedLog> {
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, Bounded::open(path)?.take(FILE_BYTES_MAX));
    let mut log = SavedLog::default();
    let mut joiner = Joiner::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&line);
        let parsed = parse_saved(&text);
        log.lines += 1;
        log.kernel_lines += u64::from(bears_kernel_mark(&text, &parsed));
        joiner.feed(&parsed);
    }
    log.cut_short = reader.get_ref().limit() == 0;
    let outcome = joiner.take(true);
    log.kills = outcome.victims.iter().map(|victim| oom_kill(victim, None, None)).collect();
    log.kills.extend(group_unnamed(&outcome.unnamed));
    Ok(log)
}

/// The newest bytes of such a log, from the begin of a line; and whether there was more.
pub fn tail(path: &Path, bytes_max: usize) -> io::Result<(Vec<u8>, bool)> {
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, Bounded::open(path)?.take(FILE_BYTES_MAX));
    let (mut kept, mut cut) = (Vec::new(), false);
    while reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut kept)? > 0 {
        if kept.len() > bytes_max * 2 {
            kept.drain(..kept.len() - bytes_max);
            cut = true;
        }
    }
    if kept.len() > bytes_max {
        kept.drain(..kept.len() - bytes_max);
        cut = true;
    }
    if cut {
        let first = kept.iter().position(|byte| *byte == b'\n').map_or(kept.len(), |at| at + 1);
        kept.drain(..first);
    }
    Ok((kept, cut))
}

/// A descriptor whose reads end: none of them blocks.
struct Bounded {
    fd: OwnedFd,
    is_pipe: bool,
}

impl Bounded {
    fn open(path: &Path) -> io::Result<Self> {
        let fd = open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        let kind = FileType::from_raw_mode(fstat(&fd)?.st_mode);
        let is_pipe = kind == FileType::Fifo;
        if !is_pipe && kind != FileType::RegularFile && !is_kmsg(&fd) {
            return Err(io::Error::other("it is neither a file nor a pipe nor /dev/kmsg"));
        }
        Ok(Self { fd, is_pipe })
    }
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match read(&self.fd, &mut *buffer) {
                Ok(length) => return Ok(length),
                // The newest record of /dev/kmsg was read.
                Err(Errno::AGAIN) if !self.is_pipe => return Ok(0),
                Err(Errno::AGAIN) => {
                    let ready = poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&SILENCE_MAX));
                    if matches!(ready, Ok(0)) {
                        return Err(io::Error::other(format!("nothing came for {} s", SILENCE_MAX.tv_sec)));
                    }
                }
                // EPIPE: the kernel overwrote the record; the next read has the oldest one.
                Err(Errno::INTR | Errno::PIPE) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const KILL: &str = "[   10.5] Out of memory: Killed process 100 (spl) total-vm:1kB, anon-rss:1kB\n";

    #[test]
    fn a_pipe_is_read_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Both ends at once: nobody waits for the other.
        let mut writer = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        writer.write_all(KILL.as_bytes()).unwrap();
        let reader = std::thread::spawn({
            let mut log = Bounded::open(&path).unwrap();
            move || {
                let mut text = String::new();
                log.read_to_string(&mut text).map(|_| text)
            }
        });
        writer.write_all(KILL.as_bytes()).unwrap();
        drop(writer);
        assert_eq!(reader.join().unwrap().unwrap(), KILL.repeat(2));
    }

    #[test]
    fn lines_of_a_kernel_log_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, format!("Jan  1 sshd[1]: hello\n{KILL}")).unwrap();
        let log = read_log(&path).unwrap();
        assert_eq!((log.kills.len(), log.lines, log.kernel_lines, log.cut_short), (1, 2, 1, false));
    }
}

//! Reads a pid file and watches the process it names.
//!
//! Must never block on what is at the path and never disturb it.

use super::executable;
use super::exit::ExitWatch;
use super::regular::{Found, Unchanged, open_regular};
use super::small::read_piece_text;
use super::soon::Soon;
use super::unit::Units;
use super::{HostRoot, process};
use crate::clock::boot_id;
use crate::probe::{Context, Lane, Probe, Remembered};
use muster_agent_core::clock::Now;
use muster_agent_core::judgement::{Judgement, Verdict};
use muster_agent_core::pid_file::{
    Facts, FileReading, Malformed, PID_MAX_DEFAULT, PidFileJudge, ProcessReading, Reading, parse,
};
use muster_agent_core::process::exit::Exit;
use muster_agent_core::services::ToldLife;
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::{BootId, ProcessId, ServiceName};
use muster_common::reason::Reason;
use muster_common::time::Timestamp;
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes read: one pid is ten, PostgreSQL's file is a few hundred with a long data directory.
const CONTENT_BYTES_MAX: u64 = 512;
/// What `/proc` tells of a process that is known to live is read again after this: its program and cgroup may change. So
/// is the file.
const FACTS_KEPT_MS: u64 = 60_000;
/// The way out of a permission problem.
const WAY_OUT: &str = "give the agent CAP_DAC_READ_SEARCH, or make the file readable for its group";

/// Watches one pid file of one service.
#[derive(Debug)]
pub struct PidFileProbe {
    subject: SubjectKey,
    root: HostRoot,
    path: String,
    host_path: PathBuf,
    /// What the file said when it was read, and which file that was.
    read: Option<(FileReading, Unchanged)>,
    /// Asked how a process ended, where the kernel does not tell.
    unit: Option<(String, Units)>,
    judge: PidFileJudge,
    soon: Soon,
    watched: Option<ExitWatch>,
    facts: Option<(Facts, u64)>,
    pid_max: u32,
}

impl PidFileProbe {
    /// Watches `path` (absolute, as the host knows it); `unit` is asked how a process ended.
    pub fn new(service: ServiceName, path: &str, root: HostRoot, unit: Option<(String, Units)>) -> Self {
        let subject = SubjectKey::new(service, ProbeKind::PidFile, path);
        let judge = PidFileJudge::default().of(subject.service.as_str());
        let (path, host_path) = (path.to_owned(), root.path(path));
        let (watched, facts, pid_max, soon) = (None, None, PID_MAX_DEFAULT, Soon::default());
        Self { subject, root, path, host_path, read: None, unit, judge, soon, watched, facts, pid_max }
    }

    fn reading(&mut self, now_ms: u64) -> Reading {
        let kept = self.facts.take().filter(|(_, at_ms)| now_ms.saturating_sub(*at_ms) < FACTS_KEPT_MS);
        if kept.is_none() {
            let pid_max = read_piece_text(self.root.path("/proc/sys/kernel/pid_max"), CONTENT_BYTES_MAX);
            self.pid_max = pid_max.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(PID_MAX_DEFAULT);
            self.read = None;
        }
        let (file, symlink_to) = self.file();
        // While its pidfd says that it lives, the pid is no other process's.
        let mut known_alive = self.watched.as_ref().map(|watched| !watched.has_ended());
        let watched = self.watched.as_ref().filter(|_| known_alive == Some(true)).map(ExitWatch::process);
        let process = match (&file, kept) {
            (FileReading::Pid { pid, .. }, Some((facts, at_ms)))
                if facts.process.pid == *pid && watched == Some(facts.process) =>
            {
                self.facts = Some((facts.clone(), at_ms));
                Some(ProcessReading::Alive(facts))
            }
            (FileReading::Pid { pid, .. }, _) => {
                let process = process::read(&self.root, *pid);
                // Asked again: one that ended during the reading has then ended for sure.
                known_alive = self.watched.as_ref().map(|watched| !watched.has_ended());
                if let ProcessReading::Alive(facts) = &process {
                    self.facts = Some((facts.clone(), now_ms));
                }
                Some(process)
            }
            _ => None,
        };
        let exit = self.watched.as_mut().filter(|_| known_alive == Some(false));
        let exit = exit.map(|watched| (watched.process(), watched.exit().clone()));
        let exit = match exit {
            Some((_, Exit::Known { .. } | Exit::Pending)) => exit,
            // systemd reaped it and remembers how it ended, on kernels that do not, and where nobody watched.
            untold => self.told_by_unit().or(untold),
        };
        Reading { file, process, symlink_to, known_alive, exit }
    }

    fn told_by_unit(&self) -> Option<(ProcessId, Exit)> {
        let (unit, units) = self.unit.as_ref()?;
        let (process, start_boottime_ms) = self.judge.unexplained()?;
        Some((process, units.told(unit, process, start_boottime_ms)?))
    }

    /// What the file says, and where it leads if it is a link: read again when it is another one, or was written to.
    fn file(&mut self) -> (FileReading, Option<String>) {
        if let Some((reading, _)) = self.read.as_ref().filter(|(_, unchanged)| unchanged.is_at(&self.host_path)) {
            return (reading.clone(), None);
        }
        let (reading, unchanged) = read_file(&self.host_path, self.pid_max);
        let symlink_to = std::fs::read_link(&self.host_path).ok().map(|target| target.to_string_lossy().into_owned());
        // A link is followed each time, as it may lead elsewhere.
        self.read = unchanged.filter(|_| symlink_to.is_none()).map(|unchanged| (reading.clone(), unchanged));
        (reading, symlink_to)
    }

    /// Keeps a pidfd of the instance that lives now, or of one that ended until it is told how.
    fn rewatch(&mut self) {
        let living = self.judge.living();
        let watched = self.watched.as_ref().map(ExitWatch::process);
        if watched != living && !self.judge.awaits_exit() {
            self.watched = living.and_then(|process| ExitWatch::open(&self.root, process));
        }
    }
}

impl Probe for PidFileProbe {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn lane(&self) -> Lane {
        Lane::Files
    }

    fn run(&mut self, context: &Context) -> Judgement {
        let mut reading = self.reading(context.now.boottime_ms);
        // Between the look at /proc and the look at the pidfd it may have ended: look again, so that both agree.
        if reading.known_alive == Some(false)
            && let Some(ProcessReading::Alive(facts)) = &reading.process
            && self.watched.as_ref().is_some_and(|watched| watched.process() == facts.process)
        {
            reading.process = Some(process::read(&self.root, facts.process.pid));
            self.facts = None;
        }
        let left = left_by(&reading, context.now);
        let exit = reading.exit.as_ref().and_then(|(process, exit)| Some((*process, exit.status()?)));
        let (before, was) = (self.judge.instance(), self.judge.living());
        let judgement = self.judge.judge(&self.path, reading, context.now, context.one_shot);
        self.rewatch();
        // A zombie that stays is looked at as usual.
        let stays = judgement.problems.iter().any(|problem| problem.reason == Reason::ProcessZombie);
        let ended = was.is_some() && self.judge.living().is_none();
        self.soon.looked(context.now.boottime_ms, ended, judgement.verdict() == Verdict::Ok);
        if stays {
            self.soon = Soon::default();
        }
        let brief = self.judge.take_brief();
        let after = self.judge.instance();
        let fresh = after.as_ref().filter(|new| before.as_ref().is_none_or(|old| old.process != new.process));
        if let Some(new) = fresh {
            executable::glance(&self.root, &context.services, &self.subject.service, new.process);
        }
        let mut services = context.services.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((process, exit)) = exit {
            services.note_exit(&self.subject.service, process, exit);
        }
        if let Some(left) = left {
            services.note_told(&self.subject.service, left);
        }
        if let Some(brief) = brief {
            services.note_brief(&self.subject.service, brief);
        }
        // The old instance's end is noted too, for the victims of a kill that is read later.
        if let Some(mut old) = before.filter(|old| after.as_ref().is_none_or(|new| new.process != old.process)) {
            old.ended_boottime_ms.get_or_insert(context.now.boottime_ms);
            services.note(&self.subject.service, old);
        }
        if let Some(instance) = after {
            services.note(&self.subject.service, instance);
        }
        judgement
    }

    fn again_in(&self) -> Option<Duration> {
        self.soon.again_in()
    }

    fn wake(&self) -> Option<Arc<OwnedFd>> {
        self.watched.as_ref().and_then(ExitWatch::wake)
    }

    fn save(&self) -> Option<Remembered> {
        Remembered::of((boot_id(&self.root), &self.judge))
    }

    fn restore(&mut self, saved: Remembered) {
        let Ok((boot, judge)) = saved.read::<(BootId, PidFileJudge)>() else { return };
        // After a reboot every pid is another process, and no restart happened.
        if !boot.0.is_nil() && boot == boot_id(&self.root) {
            self.judge = judge.of(self.subject.service.as_str());
            self.judge.lose_exit();
            self.rewatch();
        }
    }
}

fn read_file(path: &Path, pid_max: u32) -> (FileReading, Option<Unchanged>) {
    let unreadable = |errno: Errno| {
        let way_out = matches!(errno, Errno::ACCESS | Errno::PERM).then_some(WAY_OUT);
        FileReading::Unreadable { why: std::io::Error::from(errno).to_string(), way_out }
    };
    let wall_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let (file, stat) = match open_regular(path, OFlags::empty()) {
        Ok(Found::File(file, stat)) => (file, stat),
        Ok(Found::Other(kind)) => return (FileReading::Malformed(Malformed::NotAFile(what_stands_there(kind))), None),
        Err(Errno::NOENT | Errno::NOTDIR) => return (FileReading::Missing, None),
        Err(errno) => return (unreadable(errno), None),
    };
    let mut content = Vec::new();
    if let Err(error) = (&file).take(CONTENT_BYTES_MAX).read_to_end(&mut content) {
        return (FileReading::Unreadable { why: error.to_string(), way_out: None }, None);
    }
    match parse(&content, pid_max) {
        Ok(pid) => {
            let nanos_ms = i64::try_from(stat.st_mtime_nsec / 1_000_000).unwrap_or(0);
            let unix_ms = stat.st_mtime.saturating_mul(1000).saturating_add(nanos_ms);
            let unchanged = Unchanged::since(&file, &stat, i128::try_from(wall_ns).unwrap_or(0));
            (FileReading::Pid { pid, modified: Timestamp::from_unix_ms(unix_ms) }, unchanged)
        }
        Err(why) => (FileReading::Malformed(why), None),
    }
}

/// The life that a file tells of whose process is gone: it was written while that lived.
fn left_by(reading: &Reading, now: Now) -> Option<ToldLife> {
    let (FileReading::Pid { pid, modified }, Some(ProcessReading::Gone)) = (&reading.file, &reading.process) else {
        return None;
    };
    let age_ms = u64::try_from(now.wall.since(*modified).as_millis()).unwrap_or(u64::MAX);
    let from_boottime_ms = now.boottime_ms.saturating_sub(age_ms);
    Some(ToldLife { pid: *pid, from_boottime_ms, until_boottime_ms: None })
}

/// What stands in a file's place.
pub(super) fn what_stands_there(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Fifo => "FIFO",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        _ => "special file",
    }
}

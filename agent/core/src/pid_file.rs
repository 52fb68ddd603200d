//! A pid file and the process it names: what the file says, whether that process lives, whether it is still the same.
//!
//! A pid alone names nothing: everything here is (pid, start time), and "down" is said only of an instance that was
//! seen alive before, or of which the kernel says that it is gone.

use crate::absence::{self, SERVICE_RUNNING_KEY};
use crate::clock::Now;
use crate::judgement::{Judgement, Problem};
use crate::process::exit::{self, Exit, NO_SUCCESSOR, START_IT};
use crate::services::{BriefLife, Instance};
use muster_common::evidence::{Evidence, Grade, Value};
use muster_common::ids::ProcessId;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;
use muster_common::units::human_duration;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

/// A process that started this much after its pid file was written is not the one that wrote it. Covers clock steps of
/// a slewing NTP daemon and files with coarse times.
const REUSE_MARGIN: Duration = Duration::from_secs(10);
/// A file that is gone or empty for less after its process ended is no news: a restart is on its way.
const RESTART_GRACE: Duration = Duration::from_secs(5);
/// `PID_MAX_LIMIT` of 64-bit kernels.
pub const PID_MAX_DEFAULT: u32 = 4_194_304;

/// Why a content is not one pid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Nothing, or only white space.
    #[error("it is empty")]
    Empty,
    /// A minus sign.
    #[error("the number is negative")]
    Negative,
    /// Zero.
    #[error("the number is zero")]
    Zero,
    /// Beyond the host's `pid_max`.
    #[error("the number is larger than any pid of this host ({0})")]
    TooLarge(u32),
    /// A pid, and more.
    #[error("more than a pid is in it")]
    TrailingGarbage,
    /// Something else.
    #[error("it is not a number")]
    NotANumber,
    /// Not a regular file.
    #[error("it is a {0}, not a file")]
    NotAFile(&'static str),
}

/// Reads one pid. White space around it and NULs behind it are fine, and so is PostgreSQL's `postmaster.pid`, which
/// has the pid in its first line.
///
/// ```
/// use muster_agent_core::pid_file::{Malformed, parse};
/// assert_eq!(parse(b"1234\n", 4194304), Ok(1234));
/// assert_eq!(parse(b"12ab", 4194304), Err(Malformed::TrailingGarbage));
/// ```
pub fn parse(content: &[u8], pid_max: u32) -> Result<u32, Malformed> {
    let is_filler = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0;
    let start = content.iter().position(|byte| !is_filler(byte)).ok_or(Malformed::Empty)?;
    let end = content.iter().rposition(|byte| !is_filler(byte)).ok_or(Malformed::Empty)?;
    let text = content.get(start..=end).unwrap_or_default();
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = text.split_at_checked(digits).unwrap_or_default();
    if number.is_empty() {
        let negative = matches!(text, [b'-', digit, ..] if digit.is_ascii_digit());
        return Err(if negative { Malformed::Negative } else { Malformed::NotANumber });
    }
    if !rest.is_empty() && !is_postmaster(rest) {
        return Err(Malformed::TrailingGarbage);
    }
    let number = std::str::from_utf8(number).ok().and_then(|number| number.parse::<u32>().ok());
    match number {
        Some(0) => Err(Malformed::Zero),
        Some(pid) if pid <= pid_max => Ok(pid),
        _ => Err(Malformed::TooLarge(pid_max)),
    }
}

/// `\n/data/directory\nSTART_SECONDS\nPORT\n…` behind the pid.
fn is_postmaster(rest: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(rest) else { return false };
    let mut lines = text.lines();
    let number = |line: Option<&str>| line.is_some_and(|line| line.parse::<u64>().is_ok());
    lines.next() == Some("")
        && lines.next().is_some_and(|line| line.starts_with('/'))
        && number(lines.next())
        && number(lines.next())
}

/// What was found at the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileReading {
    /// Nothing.
    Missing,
    /// It is there, but cannot be read: the reason, and the way out.
    Unreadable {
        /// The error.
        why: String,
        /// What would help.
        way_out: Option<&'static str>,
    },
    /// It is there and is not a file with one pid in it.
    Malformed(Malformed),
    /// One pid.
    Pid {
        /// The pid.
        pid: u32,
        /// When the file was written.
        modified: Timestamp,
    },
}

/// What is known of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// (pid, start time).
    pub process: ProcessId,
    /// Start time on `CLOCK_BOOTTIME`.
    pub start_boottime_ms: u64,
    /// Name.
    pub comm: String,
    /// Executable, where it could be read.
    pub exe: Option<String>,
    /// Cgroup, where it could be read.
    pub cgroup: Option<String>,
}

/// What is known of the process a pid names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessReading {
    /// There is none.
    Gone,
    /// It lives.
    Alive(Facts),
    /// It has ended and waits to be reaped.
    Zombie(Facts),
    /// It lives, and is a thread of the kernel: no service, and it wrote no file.
    Kernel(Facts),
    /// It exists, but this agent may not see it: why, and the way out.
    Hidden(String),
}

/// The instance that was last seen alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    facts: Facts,
    /// Modification time of the pid file that named it.
    named_at: Timestamp,
    first_seen_boottime_ms: u64,
    ended_boottime_ms: Option<u64>,
    /// The same by the wall clock, for people: taken once, so that a clock that is set later changes no sentence.
    #[serde(default)]
    ended_at: Option<Timestamp>,
    /// How it ended, once somebody told.
    #[serde(default)]
    exit: Option<Exit>,
}

impl Known {
    fn exit(&self) -> Exit {
        let unseen = "it ended while the agent did not watch it: a restart of the agent loses the codes of that time";
        self.exit.clone().unwrap_or_else(|| Exit::Unknown(unseen.to_owned()))
    }
}

/// One run's input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The file.
    pub file: FileReading,
    /// The process it names, when it names one.
    pub process: Option<ProcessReading>,
    /// What the path is a symbolic link to.
    pub symlink_to: Option<String>,
    /// Whether the known instance is still alive (by its pidfd); `None` when there is no pidfd.
    pub known_alive: Option<bool>,
    /// How the watched instance ended, as far as it is told.
    pub exit: Option<(ProcessId, Exit)>,
}

/// Judges a pid file over time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PidFileJudge {
    /// Whose file it is: people know the service, not the interpreter that runs it.
    #[serde(skip)]
    service: String,
    known: Option<Known>,
    /// The zombie seen in the last run: a parent needs a moment to reap, so it is a problem when seen twice.
    zombie: Option<ProcessId>,
    /// What the file named in the last run, and when it was written.
    #[serde(default)]
    named: Option<(u32, Timestamp)>,
    /// A life that began and ended between the last two runs.
    #[serde(skip)]
    brief: Option<BriefLife>,
}

impl PidFileJudge {
    /// Of this service.
    #[must_use]
    pub fn of(self, service: &str) -> Self {
        Self { service: service.to_owned(), ..self }
    }

    /// The instance last seen alive and not yet known to have ended.
    pub fn living(&self) -> Option<ProcessId> {
        self.known.as_ref().filter(|known| known.ended_boottime_ms.is_none()).map(|known| known.facts.process)
    }

    /// The instance last seen alive and its start, as long as nobody told how it ended.
    pub fn unexplained(&self) -> Option<(ProcessId, u64)> {
        let known = self.known.as_ref().filter(|known| !matches!(known.exit, Some(Exit::Known { .. })))?;
        Some((known.facts.process, known.facts.start_boottime_ms))
    }

    /// The instance last seen alive, for the other probes.
    pub fn instance(&self) -> Option<Instance> {
        self.known.as_ref().map(|known| Instance {
            process: known.facts.process,
            comm: known.facts.comm.clone(),
            exe: known.facts.exe.clone(),
            cgroup: known.facts.cgroup.clone(),
            first_seen_boottime_ms: known.first_seen_boottime_ms,
            ended_boottime_ms: known.ended_boottime_ms,
        })
    }

    /// A life that began and ended between the last two runs, told once.
    pub const fn take_brief(&mut self) -> Option<BriefLife> {
        self.brief.take()
    }

    /// A file that was written anew for a process that is gone already: in a fast crash loop most lives are seen so.
    fn note_brief(&mut self, pid: u32, modified: Timestamp, gone: bool, now: Now) {
        let before = self.named.replace((pid, modified));
        if !gone
            || self.is_known(pid)
            || self.living().is_some()
            || before.is_none_or(|before| before == (pid, modified))
        {
            return;
        }
        let age_ms = u64::try_from(now.wall.unix_ms().saturating_sub(modified.unix_ms())).unwrap_or(0);
        let written_boottime_ms = now.boottime_ms.saturating_sub(age_ms);
        self.brief = Some(BriefLife { pid, written_boottime_ms, gone_boottime_ms: now.boottime_ms });
    }

    fn is_known(&self, pid: u32) -> bool {
        self.known.as_ref().is_some_and(|known| known.facts.process.pid == pid)
    }

    /// True while the instance has ended and how is still to be told.
    pub fn awaits_exit(&self) -> bool {
        let ended = self.known.as_ref().filter(|known| known.ended_boottime_ms.is_some());
        ended.is_some_and(|known| known.exit == Some(Exit::Pending))
    }

    /// Nobody watches any more who could tell how it ended.
    pub fn lose_exit(&mut self) {
        if self.awaits_exit()
            && let Some(known) = &mut self.known
        {
            known.exit = Some(Exit::Unknown("the agent was restarted before its parent reaped it".to_owned()));
        }
    }

    /// One reading of `path`.
    pub fn judge(&mut self, path: &str, reading: Reading, now: Now, one_shot: bool) -> Judgement {
        self.note_end(&reading, now);
        self.note_exit(&reading);
        let mut judgement = match (reading.file, reading.process) {
            (FileReading::Missing | FileReading::Malformed(Malformed::Empty), _) if self.may_restart(now, one_shot) => {
                Judgement::unknown(format!("{path} names nobody yet: its process has just ended"), None)
            }
            (FileReading::Missing, _) => self.missing(path, reading.symlink_to.as_deref()),
            (FileReading::Unreadable { why, way_out }, _) => {
                Judgement::unknown(format!("{path} cannot be read: {why}"), way_out)
            }
            (FileReading::Malformed(why), _) => {
                let summary = format!("{path} is not a usable pid file: {why}");
                // Who reads a FIFO waits for a writer.
                let look = match why {
                    Malformed::NotAFile(_) => format!("look at it: ls -ld {path}"),
                    _ => format!("look at it: stat {path}; od -c {path} | head"),
                };
                let problem = Problem::new(Reason::PidFileMalformed, summary)
                    .evidence(Evidence::new().text("path", path).text("why", why.to_string()))
                    .next_steps([
                        look,
                        "find the service's real pid and restart it through its init system".to_owned(),
                    ]);
                Judgement::problem(problem)
            }
            (FileReading::Pid { pid, modified }, process) => self.named(path, pid, modified, process, now, one_shot),
        };
        if let Some(down) = self.down(path, now) {
            judgement.problems.insert(0, down);
        }
        if let Some(target) = reading.symlink_to {
            judgement.seen.insert("symlink_to", Value::Text(target));
        }
        judgement
    }

    /// In a restart the file is taken away and written anew.
    fn may_restart(&self, now: Now, one_shot: bool) -> bool {
        let ended = self.known.as_ref().and_then(|known| known.ended_boottime_ms);
        !one_shot && ended.is_some_and(|ended| now.since(ended) < RESTART_GRACE)
    }

    /// Whether the known instance has ended since the last run.
    fn note_end(&mut self, reading: &Reading, now: Now) {
        let Some(known) = self.known.as_mut().filter(|known| known.ended_boottime_ms.is_none()) else { return };
        let ended = match (reading.known_alive, &reading.file, &reading.process) {
            (Some(alive), _, _) => !alive,
            (None, FileReading::Pid { pid, .. }, Some(process)) if *pid == known.facts.process.pid => match process {
                ProcessReading::Gone => true,
                ProcessReading::Zombie(_) => true,
                ProcessReading::Alive(facts) | ProcessReading::Kernel(facts) => facts.process != known.facts.process,
                ProcessReading::Hidden(_) => false,
            },
            _ => false,
        };
        if ended {
            (known.ended_boottime_ms, known.ended_at) = (Some(now.boottime_ms), Some(now.wall));
        }
    }

    /// What is told comes once, and may come late.
    fn note_exit(&mut self, reading: &Reading) {
        let Some(known) = self.known.as_mut().filter(|known| known.ended_boottime_ms.is_some()) else { return };
        if let Some((process, exit)) = &reading.exit
            && *process == known.facts.process
            && !matches!(known.exit, Some(Exit::Known { .. }))
        {
            known.exit = Some(exit.clone());
        }
    }

    fn down(&self, path: &str, now: Now) -> Option<Problem> {
        let known = self.known.as_ref()?;
        let ended = known.ended_boottime_ms?;
        let lived = Duration::from_millis(ended.saturating_sub(known.facts.start_boottime_ms));
        let exit = known.exit();
        let how = exit.status().map(|status| format!(" {}", status.words())).unwrap_or_default();
        let summary = format!(
            "{} ended at {}{how}; it had run for {}{NO_SUCCESSOR}",
            exit::who(&self.service, &known.facts.comm, known.facts.process.pid),
            known.ended_at.unwrap_or_else(|| now.wall - now.since(ended)).to_utc_clock(),
            human_duration(lived)
        );
        let evidence = facts_evidence(&known.facts)
            .text("path", path)
            .duration("lifetime_ms", lived)
            .duration("down_for_ms", now.since(ended));
        let evidence = exit.evidence(evidence);
        Some(Problem::new(Reason::ProcessDown, summary).evidence(evidence).next_steps([
            "see why it ended: journalctl -b -e and the service's own log".to_owned(),
            format!("{START_IT}; its new pid clears this"),
        ]))
    }

    fn missing(&self, path: &str, symlink_to: Option<&str>) -> Judgement {
        let mut evidence = Evidence::new().text("path", path);
        let mut summary = match symlink_to {
            Some(target) => format!("{path} is a symbolic link to {target}, which does not exist"),
            None => format!("{path} does not exist"),
        };
        if let Some(known) = self.known.as_ref().filter(|known| known.ended_boottime_ms.is_none()) {
            let pid = known.facts.process.pid;
            summary = format!("{summary}, though {} still runs", exit::who(&self.service, &known.facts.comm, pid));
            evidence = evidence.flag("instance_running", true).count("running_pid", pid);
        }
        Judgement::problem(Problem::new(Reason::PidFileMissing, summary).evidence(evidence).next_steps([
            "check whether the service runs, and where its configuration puts the pid file",
            "restart it through its init system if it does not run",
        ]))
    }

    fn named(
        &mut self,
        path: &str,
        pid: u32,
        modified: Timestamp,
        process: Option<ProcessReading>,
        now: Now,
        one_shot: bool,
    ) -> Judgement {
        let last_zombie = self.zombie.take();
        self.note_brief(pid, modified, matches!(process, None | Some(ProcessReading::Gone)), now);
        match process {
            // One exit, one finding: that it is down says all of it.
            None | Some(ProcessReading::Gone) if self.living().is_none() && self.is_known(pid) => Judgement::default(),
            None | Some(ProcessReading::Gone) => Judgement::problem(self.stale(path, pid, modified, now)),
            Some(ProcessReading::Hidden(why)) => Judgement::unknown(
                format!("{path} names pid {pid}, which exists but cannot be seen: {why}"),
                Some("give the agent CAP_SYS_PTRACE, or mount /proc without hidepid for its group"),
            ),
            Some(ProcessReading::Zombie(facts)) => {
                self.zombie = Some(facts.process);
                let known = self.known.as_ref().is_some_and(|known| known.facts.process == facts.process);
                if known && !one_shot && last_zombie != Some(facts.process) {
                    return Judgement::default();
                }
                Judgement::problem(zombie(&self.service, path, &facts, now))
            }
            Some(ProcessReading::Kernel(facts)) => {
                let why = "a thread of the kernel, which writes no pid file";
                Judgement::problem(reuse(path, &facts, modified, why, Grade::Confirmed))
            }
            Some(ProcessReading::Alive(facts)) => match self.reused(path, &facts, modified, now) {
                Some((why, grade)) => Judgement::problem(reuse(path, &facts, modified, why, grade)),
                None => self.running(path, facts, modified, now),
            },
        }
    }

    fn stale(&self, path: &str, pid: u32, modified: Timestamp, now: Now) -> Problem {
        let evidence = Evidence::new().text("path", path).count("pid", pid);
        let (summary, evidence) = if self.living().is_some() {
            let summary = format!("{path} names pid {pid}, which does not exist, while another instance still runs");
            (summary, evidence.flag(SERVICE_RUNNING_KEY, true))
        } else {
            let before_boot = modified + REUSE_MARGIN < booted(now);
            let key = if before_boot { "file_modified" } else { "ended_after" };
            let evidence = evidence.flag(SERVICE_RUNNING_KEY, false).with(key, Value::Time(modified));
            (absence::words(&self.service, path, pid, modified, before_boot), evidence)
        };
        Problem::new(Reason::PidFileStale, summary).evidence(evidence).next_steps([
            "see why the process ended: journalctl -b -e and the service's own log",
            "start the service through its init system; it should replace the file",
        ])
    }

    /// Whether the process is another one than the file meant, why, and how sure that is.
    ///
    /// Without a memory of this pid only clocks speak, and the wall clock may have been set since the file was written
    /// (a host that boots in 1970 until NTP answers): then the names decide whether it is worth telling at all.
    fn reused(&self, path: &str, facts: &Facts, modified: Timestamp, now: Now) -> Option<(&'static str, Grade)> {
        if let Some(known) = &self.known
            && known.facts.process.pid == facts.process.pid
        {
            if known.facts.process == facts.process {
                return None;
            }
            if known.named_at == modified {
                return Some(("the file was written for an earlier process with this pid", Grade::Confirmed));
            }
        }
        let started = now.wall - now.since(facts.start_boottime_ms);
        if started <= modified + REUSE_MARGIN {
            return None;
        }
        match (modified + REUSE_MARGIN < booted(now), is_named_after(path, facts)) {
            (true, true) => None,
            (true, false) => Some((
                "by the clock the file is older than this boot: it is a leftover, or the clock was set since",
                Grade::Possible,
            )),
            (false, true) => {
                Some(("the process started after the file was written, or the clock was set between", Grade::Possible))
            }
            (false, false) => Some(("the process started after the file was written", Grade::Likely)),
        }
    }

    fn running(&mut self, path: &str, facts: Facts, modified: Timestamp, now: Now) -> Judgement {
        let seen = facts_evidence(&facts).text("path", path).duration("uptime_ms", now.since(facts.start_boottime_ms));
        let mut judgement = Judgement::ok(seen);
        let same = self.known.as_ref().filter(|known| known.facts.process == facts.process);
        let first_seen_boottime_ms = same.map_or(now.boottime_ms, |known| known.first_seen_boottime_ms);
        if let Some(old) = self.known.as_ref().filter(|known| known.facts.process != facts.process) {
            judgement = judgement.occurred(restarted(&self.service, path, old, &facts));
        }
        self.known = Some(Known {
            facts,
            named_at: modified,
            first_seen_boottime_ms,
            ended_boottime_ms: None,
            ended_at: None,
            exit: None,
        });
        judgement
    }
}

/// By the wall clock as it is now.
fn booted(now: Now) -> Timestamp {
    now.wall - Duration::from_millis(now.boottime_ms)
}

/// Whether the first word of the file's or its folder's name is that of the program: `/run/spl/main.pid` and `spl`,
/// `crond.pid` and `cron`.
fn is_named_after(path: &str, facts: &Facts) -> bool {
    let path = Path::new(path);
    let name = |name: Option<&OsStr>| first_word(&name.unwrap_or_default().to_string_lossy()).to_owned();
    let folder = name(path.parent().and_then(Path::file_name));
    // Folders of all services.
    let folder = if matches!(folder.as_str(), "run" | "tmp" | "log" | "lib") { String::new() } else { folder };
    let exe = name(facts.exe.as_deref().and_then(|exe| Path::new(exe).file_name()));
    let programs = [first_word(&facts.comm), &exe];
    let names = [&name(path.file_stem()), &folder];
    names.iter().any(|name| programs.iter().any(|program| is_alike(name, program)))
}

fn first_word(text: &str) -> &str {
    text.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default()
}

fn is_alike(a: &str, b: &str) -> bool {
    // Shorter ones are the beginning of too many words.
    const PREFIX_BYTES_MIN: usize = 3;
    let prefix = a.starts_with(b) || b.starts_with(a);
    !a.is_empty() && (a == b || (prefix && a.len().min(b.len()) >= PREFIX_BYTES_MIN))
}

fn facts_evidence(facts: &Facts) -> Evidence {
    let mut evidence = Evidence::new()
        .count("pid", facts.process.pid)
        .count("start_ticks", facts.process.start_ticks)
        .text("comm", &facts.comm);
    if let Some(exe) = &facts.exe {
        evidence = evidence.text("exe", exe);
    }
    if let Some(cgroup) = &facts.cgroup {
        evidence = evidence.text("cgroup", cgroup);
    }
    evidence
}

fn zombie(service: &str, path: &str, facts: &Facts, now: Now) -> Problem {
    let pid = facts.process.pid;
    let summary = format!("{} has ended, but its parent has not reaped it", exit::who(service, &facts.comm, pid));
    let evidence = facts_evidence(facts).text("path", path).duration("uptime_ms", now.since(facts.start_boottime_ms));
    Problem::new(Reason::ProcessZombie, summary).evidence(evidence).next_steps([
        format!("find the parent: ps -o ppid= -p {pid}"),
        "restart the service, or the parent if it reaps nothing".to_owned(),
    ])
}

fn reuse(path: &str, facts: &Facts, modified: Timestamp, why: &str, grade: Grade) -> Problem {
    let summary = format!("{path} names pid {}, which is now {}: {why}", facts.process.pid, facts.comm);
    let evidence =
        facts_evidence(facts).text("path", path).text("why", why).with("file_modified", Value::Time(modified));
    let problem = Problem::new(Reason::PidFileStale, summary).evidence(evidence).grade(grade);
    let pid = facts.process.pid;
    if grade == Grade::Possible {
        return problem.next_steps([
            format!("see whether this is the service: ps -o pid,lstart,args -p {pid}"),
            "if it is not, start the service through its init system; it should replace the file".to_owned(),
        ]);
    }
    problem.next_steps([
        format!("do not signal pid {pid}: it belongs to another process"),
        "start the service through its init system; it should replace the file".to_owned(),
    ])
}

fn restarted(service: &str, path: &str, old: &Known, new: &Facts) -> Problem {
    let ended = old.ended_boottime_ms;
    let exit = old.exit();
    let how = exit.status().map(|status| format!("; the old one ended {}", status.words())).unwrap_or_default();
    let name = if service.is_empty() || service == new.comm { &new.comm } else { &format!("{service} ({})", new.comm) };
    let summary = format!("{name} restarted: pid {} became pid {}{how}", old.facts.process.pid, new.process.pid);
    let mut evidence = Evidence::new()
        .text("path", path)
        .text("comm", &new.comm)
        .count("old_pid", old.facts.process.pid)
        .count("old_start_ticks", old.facts.process.start_ticks)
        .count("new_pid", new.process.pid)
        .count("new_start_ticks", new.process.start_ticks)
        .flag("exe_changed", old.facts.exe.is_some() && new.exe.is_some() && old.facts.exe != new.exe);
    // Without a noticed end the new start bounds the old life.
    evidence = exit.evidence(evidence);
    let until = ended.unwrap_or(new.start_boottime_ms);
    let lifetime = Duration::from_millis(until.saturating_sub(old.facts.start_boottime_ms));
    evidence = evidence.duration("old_lifetime_ms", lifetime);
    evidence = match ended {
        Some(ended) => evidence.duration("gap_ms", Duration::from_millis(new.start_boottime_ms.saturating_sub(ended))),
        None => evidence.text("gap", "unknown: the end of the old instance was not seen"),
    };
    let mut problem = Problem::new(Reason::ProcessRestarted, summary).evidence(evidence);
    problem.observed_boottime_ms = Some(new.start_boottime_ms);
    problem
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judgement::Verdict;
    use proptest::prelude::*;

    const PATH: &str = "/run/a.pid";

    fn at(boottime_ms: u64) -> Now {
        Now { boottime_ms, wall: Timestamp::from_unix_ms(1_000_000_000 + boottime_ms as i64) }
    }

    fn facts(pid: u32, start_ms: u64) -> Facts {
        Facts {
            process: ProcessId { pid, start_ticks: start_ms / 10 },
            start_boottime_ms: start_ms,
            comm: "a".into(),
            exe: Some("/bin/a".into()),
            cgroup: None,
        }
    }

    /// A file written 10 ms after the process of `start_ms` started.
    fn file(pid: u32, start_ms: u64) -> FileReading {
        FileReading::Pid { pid, modified: at(start_ms + 10).wall }
    }

    fn reading(file: FileReading, process: Option<ProcessReading>) -> Reading {
        Reading { file, process, symlink_to: None, known_alive: None, exit: None }
    }

    fn reasons(judgement: &Judgement) -> Vec<Reason> {
        judgement.problems.iter().map(|problem| problem.reason).collect()
    }

    #[test]
    fn a_life_between_two_looks_is_counted_once() {
        let mut judge = PidFileJudge::default();
        let written = |ms: u64| Timestamp::from_unix_ms(1_000_000_000 + ms as i64);
        // pid, written at, what became of the process, whether that is a life nobody saw
        let runs = [
            (7, 1_000, ProcessReading::Gone, false),
            (7, 1_000, ProcessReading::Gone, false),
            (8, 11_000, ProcessReading::Gone, true),
            (8, 11_000, ProcessReading::Gone, false),
            (9, 21_000, ProcessReading::Alive(facts(9, 21_000)), false),
            (9, 21_000, ProcessReading::Gone, false),
            (9, 32_000, ProcessReading::Gone, false),
            (8, 36_000, ProcessReading::Gone, true),
        ];
        for (at_ms, (pid, modified, process, expected)) in (5_000u64..).step_by(5_000).zip(runs) {
            let file = FileReading::Pid { pid, modified: written(modified) };
            judge.judge("/run/a.pid", reading(file, Some(process)), at(at_ms), false);
            let brief = judge.take_brief();
            assert_eq!(brief.is_some(), expected, "{pid} at {at_ms}");
            if let Some(brief) = brief {
                let life = (brief.pid, brief.written_boottime_ms, brief.gone_boottime_ms);
                assert_eq!(life, (pid, modified.min(at_ms), at_ms));
            }
        }
    }

    #[test]
    fn contents() {
        let max = 32_768;
        for (content, expected) in [
            (&b"12\n"[..], Ok(12)),
            (b"   12\n", Ok(12)),
            (b"12\0", Ok(12)),
            (b"00012", Ok(12)),
            (b"12\n/var/lib/pg\n1700000000\n5432\n/run\n", Ok(12)),
            (b"", Err(Malformed::Empty)),
            (b" \n", Err(Malformed::Empty)),
            (b"-5\n", Err(Malformed::Negative)),
            (b"0\n", Err(Malformed::Zero)),
            (b"+5", Err(Malformed::NotANumber)),
            (b"sshd", Err(Malformed::NotANumber)),
            (b"12 x", Err(Malformed::TrailingGarbage)),
            (b"12\n13\n", Err(Malformed::TrailingGarbage)),
            (b"12.5", Err(Malformed::TrailingGarbage)),
            (b"32769", Err(Malformed::TooLarge(32_768))),
            (b"99999999999999999999999", Err(Malformed::TooLarge(32_768))),
            (b"\xff\xfe", Err(Malformed::NotANumber)),
        ] {
            assert_eq!(parse(content, max), expected, "{:?}", String::from_utf8_lossy(content));
        }
    }

    #[test]
    fn an_instance_that_ends_is_down_until_a_successor_is_seen() {
        let mut judge = PidFileJudge::default();
        let alive = |pid, start| Some(ProcessReading::Alive(facts(pid, start)));
        let ok = judge.judge(PATH, reading(file(5, 1_000), alive(5, 1_000)), at(2_000), false);
        assert_eq!((ok.verdict(), ok.occurrences.len()), (Verdict::Ok, 0));
        let gone = || reading(file(5, 1_000), Some(ProcessReading::Gone));
        let down = judge.judge(PATH, gone(), at(3_000), false);
        assert_eq!(reasons(&down), [Reason::ProcessDown], "one exit, one finding");
        assert_eq!(judge.instance().unwrap().ended_boottime_ms, Some(3_000));
        let still = judge.judge(PATH, gone(), at(9_000), false);
        assert_eq!(still.problems[0].evidence.get("down_for_ms"), Some(&Value::Millis(6_000)));
        let back = judge.judge(PATH, reading(file(6, 9_500), alive(6, 9_500)), at(10_000), false);
        assert_eq!(back.verdict(), Verdict::Ok);
        let [restart] = back.occurrences.as_slice() else { panic!() };
        assert_eq!(restart.reason, Reason::ProcessRestarted);
        assert_eq!(restart.evidence.get("gap_ms"), Some(&Value::Millis(6_500)));
        assert_eq!(restart.evidence.get("old_lifetime_ms"), Some(&Value::Millis(2_000)));
    }

    #[test]
    fn the_pidfd_speaks_even_when_the_file_is_gone_or_unreadable() {
        let mut judge = PidFileJudge::default();
        let process = Some(ProcessReading::Alive(facts(5, 1_000)));
        judge.judge(PATH, reading(file(5, 1_000), process), at(2_000), false);
        let mut clone = judge.clone();
        let missing = Reading { known_alive: Some(true), ..reading(FileReading::Missing, None) };
        let judgement = clone.judge(PATH, missing, at(3_000), false);
        assert_eq!(reasons(&judgement), [Reason::PidFileMissing]);
        assert_eq!(judgement.problems[0].evidence.get("instance_running"), Some(&Value::Flag(true)));
        let unreadable = FileReading::Unreadable { why: "denied".into(), way_out: None };
        let unreadable = Reading { known_alive: Some(false), ..reading(unreadable, None) };
        let judgement = judge.judge(PATH, unreadable, at(3_000), false);
        assert_eq!(reasons(&judgement), [Reason::ProcessDown]);
        assert!(judgement.unknown.is_some());
    }

    #[test]
    fn how_it_ended_follows_and_only_for_that_instance() {
        use crate::process::exit::ExitStatus;
        let known = |status| Exit::Known { status, source: "kernel".into() };
        let mut judge = PidFileJudge::default();
        judge.judge(PATH, reading(file(5, 1_000), Some(ProcessReading::Alive(facts(5, 1_000)))), at(2_000), false);
        let gone = |exit| Reading {
            known_alive: Some(false),
            exit: Some((facts(5, 1_000).process, exit)),
            ..reading(file(5, 1_000), Some(ProcessReading::Gone))
        };
        let text = |judgement: &Judgement| judgement.problems[0].evidence.get("exit_status").cloned();
        let first = judge.judge(PATH, gone(Exit::Pending), at(3_000), false);
        assert_eq!(text(&first), Some(Value::Text("unknown".into())));
        assert!(judge.awaits_exit());
        // A restart of the agent in between loses it, and says so.
        let mut restarted = judge.clone();
        restarted.lose_exit();
        let lost = restarted.judge(PATH, reading(file(5, 1_000), Some(ProcessReading::Gone)), at(4_000), false);
        let why = lost.problems[0].evidence.get("exit_unknown_why").unwrap().to_string();
        assert!(why.contains("restarted"), "{why}");
        // Of another life with the same pid nothing is taken.
        let stranger = ProcessId { pid: 5, start_ticks: 77 };
        let foreign = Reading { exit: Some((stranger, known(ExitStatus::Code(1)))), ..gone(Exit::Pending) };
        assert_eq!(text(&judge.judge(PATH, foreign, at(4_000), false)), Some(Value::Text("unknown".into())));
        let killed = known(ExitStatus::Signal { signal: 9, core_dumped: false });
        let told = judge.judge(PATH, gone(killed), at(4_000), false);
        assert_eq!(text(&told), Some(Value::Text("SIGKILL".into())));
        assert!(told.problems[0].summary.contains("by SIGKILL (the kernel's OOM killer, or"), "{told:?}");
        assert!(!judge.awaits_exit());
        let successor = Some(ProcessReading::Alive(facts(6, 5_000)));
        let back = judge.judge(PATH, reading(file(6, 5_000), successor), at(6_000), false);
        let restart = &back.occurrences[0];
        assert_eq!(restart.evidence.get("exit_status"), Some(&Value::Text("SIGKILL".into())));
        assert!(restart.summary.ends_with("kill -9)"), "{}", restart.summary);
    }

    #[test]
    fn an_end_and_a_restart_name_the_service() {
        let mut judge = PidFileJudge::default().of("spl");
        let alive = |pid, start| Some(ProcessReading::Alive(Facts { comm: "python3".into(), ..facts(pid, start) }));
        judge.judge(PATH, reading(file(5, 1_000), alive(5, 1_000)), at(2_000), false);
        let down = judge.judge(PATH, reading(file(5, 1_000), Some(ProcessReading::Gone)), at(3_000), false);
        assert!(down.problems[0].summary.starts_with("spl (python3, pid 5) ended at 13:46:43Z; "), "{down:?}");
        let back = judge.judge(PATH, reading(file(6, 4_000), alive(6, 4_000)), at(5_000), false);
        assert_eq!(back.occurrences[0].summary, "spl (python3) restarted: pid 5 became pid 6");
    }

    #[test]
    fn a_stale_file_without_a_known_instance_is_not_an_exit() {
        let mut judge = PidFileJudge::default();
        let judgement = judge.judge(PATH, reading(file(5, 0), Some(ProcessReading::Gone)), at(3_000), true);
        assert_eq!(reasons(&judgement), [Reason::PidFileStale]);
        assert!(judgement.problems[0].summary.contains("not running"));
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let other = Facts { comm: "cat".into(), exe: Some("/bin/cat".into()), ..facts(5, 100_000) };
        let late = Some(ProcessReading::Alive(other));
        let mut fresh = PidFileJudge::default();
        let judgement = fresh.judge(PATH, reading(file(5, 1_000), late.clone()), at(200_000), true);
        assert_eq!(reasons(&judgement), [Reason::PidFileStale]);
        assert_eq!(judgement.problems[0].grade, Grade::Likely);
        let mut judge = PidFileJudge::default();
        let process = Some(ProcessReading::Alive(facts(5, 1_000)));
        judge.judge(PATH, reading(file(5, 1_000), process), at(2_000), false);
        let soon = Some(ProcessReading::Alive(facts(5, 2_500)));
        let judgement = judge.judge(PATH, reading(file(5, 1_000), soon), at(3_000), false);
        assert_eq!(reasons(&judgement), [Reason::ProcessDown, Reason::PidFileStale]);
        assert_eq!(judgement.problems[1].grade, Grade::Confirmed);
    }

    #[test]
    fn a_thread_of_the_kernel_is_no_service() {
        let worker = Some(ProcessReading::Kernel(Facts { comm: "kworker/0:1".into(), exe: None, ..facts(5, 100_000) }));
        // Older than the file, and the clocks find no fault with it.
        let fresh = PidFileJudge::default().judge(PATH, reading(file(5, 150_000), worker.clone()), at(200_000), true);
        assert_eq!(reasons(&fresh), [Reason::PidFileStale]);
        assert_eq!(fresh.problems[0].grade, Grade::Confirmed);
        assert!(fresh.problems[0].next_steps[0].starts_with("do not signal pid 5"), "{fresh:?}");
        // It has the pid of the instance that was seen to run.
        let mut judge = PidFileJudge::default();
        let process = Some(ProcessReading::Alive(facts(5, 1_000)));
        judge.judge(PATH, reading(file(5, 1_000), process), at(2_000), false);
        let judgement = judge.judge(PATH, reading(file(5, 1_000), worker), at(200_000), false);
        assert_eq!(reasons(&judgement), [Reason::ProcessDown, Reason::PidFileStale]);
    }

    /// A file with `modified` and a process of `comm` that runs since 10 min after the boot, looked at after an hour.
    fn first_sight(path: &str, comm: &str, modified: Timestamp) -> Judgement {
        let process = Facts { comm: comm.into(), exe: Some(format!("/usr/bin/{comm}")), ..facts(5, 600_000) };
        let file = FileReading::Pid { pid: 5, modified };
        let reading = reading(file, Some(ProcessReading::Alive(process)));
        PidFileJudge::default().judge(path, reading, at(3_600_000), true)
    }

    #[test]
    fn a_clock_that_was_set_since_makes_no_process_a_stranger() {
        let in_1970 = Timestamp::from_unix_ms(610_000);
        for (path, comm) in [("/run/spl.pid", "spl"), ("/run/spl/main.pid", "spl"), ("/run/crond.pid", "cron")] {
            assert_eq!(first_sight(path, comm, in_1970).verdict(), Verdict::Ok, "{path} {comm}");
        }
        // Set by a minute, after the file was written.
        let judgement = first_sight("/run/spl.pid", "spl", at(540_000).wall);
        assert_eq!(judgement.problems[0].grade, Grade::Possible);
        // A leftover of an earlier boot, or a service under another name: nobody can tell from here.
        let judgement = first_sight("/run/spl.pid", "sshd", in_1970);
        assert_eq!(reasons(&judgement), [Reason::PidFileStale]);
        assert_eq!(judgement.problems[0].grade, Grade::Possible);
        assert!(judgement.problems[0].summary.contains("the clock was set"), "{judgement:?}");
        assert!(!judgement.problems[0].next_steps.concat().contains("do not signal"), "{judgement:?}");
        // Within one boot, and of another name.
        let judgement = first_sight("/run/spl.pid", "sshd", at(300_000).wall);
        assert_eq!(judgement.problems[0].grade, Grade::Likely);
        assert!(judgement.problems[0].next_steps.concat().contains("do not signal"));
    }

    #[test]
    fn a_zombie_counts_when_it_stays() {
        let mut judge = PidFileJudge::default();
        let process = Some(ProcessReading::Alive(facts(5, 1_000)));
        judge.judge(PATH, reading(file(5, 1_000), process), at(2_000), false);
        let zombie = || reading(file(5, 1_000), Some(ProcessReading::Zombie(facts(5, 1_000))));
        assert_eq!(reasons(&judge.judge(PATH, zombie(), at(3_000), false)), [Reason::ProcessDown]);
        let judgement = judge.judge(PATH, zombie(), at(4_000), false);
        assert_eq!(reasons(&judgement), [Reason::ProcessDown, Reason::ProcessZombie]);
        let judgement = PidFileJudge::default().judge(PATH, zombie(), at(4_000), true);
        assert_eq!(reasons(&judgement), [Reason::ProcessZombie]);
    }

    #[test]
    fn what_cannot_be_seen_is_unknown() {
        let hidden = Some(ProcessReading::Hidden("hidepid".into()));
        let judgement = PidFileJudge::default().judge(PATH, reading(file(5, 0), hidden), at(1), false);
        assert_eq!(judgement.verdict(), Verdict::Unknown);
    }

    proptest! {
        #[test]
        fn never_panics(content in proptest::collection::vec(any::<u8>(), 0..80), max in 0u32..) {
            if let Ok(pid) = parse(&content, max) {
                prop_assert!(pid > 0 && pid <= max);
            }
        }
    }
}

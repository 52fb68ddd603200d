//! Looks whether a service that may run once runs here, and for a second one beside its main process.
//!
//! One pass over the names of all processes; only those of the same name are looked at closer.

use super::{HostRoot, process};
use crate::clock::boot_id;
use crate::probe::{Context, Lane, Probe, Remembered};
use muster_agent_core::judgement::{Judgement, Problem};
use muster_agent_core::pid_file::{Facts, ProcessReading};
use muster_agent_core::port::Owner;
use muster_agent_core::services::{Instance, Services, is_of_one_service};
use muster_agent_core::singleton::{Copy, Reading, SingletonJudge};
use muster_common::evidence::Grade;
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::{BootId, ServiceName};
use rustix::fs::stat;
use std::io::Read;
use std::sync::PoisonError;

/// Subject of the probe.
pub const SUBJECT: &str = "singleton";
/// Processes whose names are read; a host with more is told of as not wholly seen.
const PROCESSES_MAX: usize = 32_768;
/// Processes of the same name that are looked at closer.
const NAMESAKES_MAX: usize = 256;
/// Arguments compared: what is longer differs, if at all, at its end.
const ARGUMENTS_BYTES_MAX: u64 = 4096;
/// The longest name of a process.
const NAME_BYTES_MAX: u64 = 64;

/// Watches one service that may run once.
#[derive(Debug)]
pub struct SingletonProbe {
    subject: SubjectKey,
    root: HostRoot,
    judge: SingletonJudge,
}

impl SingletonProbe {
    /// Of a service with a pid file, a unit, or both.
    pub fn new(service: ServiceName, root: HostRoot) -> Self {
        let subject = SubjectKey::new(service, ProbeKind::Process, SUBJECT);
        Self { subject, root, judge: SingletonJudge::default() }
    }

    fn reading(&self, services: &Services) -> Reading {
        let Some(newest) = services.newest(&self.subject.service) else { return Reading::default() };
        let main = match process::read(&self.root, newest.process.pid) {
            ProcessReading::Alive(facts) if facts.process == newest.process => facts,
            _ => return Reading { ended_boottime_ms: newest.ended_boottime_ms, ..Reading::default() },
        };
        let mut reading = Reading { main: Some((main.process, main.start_boottime_ms)), ..Reading::default() };
        let (namesakes, mut unseen) = self.namesakes(&main);
        let earlier: Vec<&Instance> = services.instances(&self.subject.service).into_iter().flatten().collect();
        let main = Main::new(&self.root, main);
        for pid in namesakes {
            match self.look(pid, &main, &earlier, services) {
                Ok(copy) => reading.copies.extend(copy),
                Err(why) => unseen = Some(why),
            }
        }
        reading.unseen = unseen;
        reading
    }

    /// Other processes of the main one's name.
    fn namesakes(&self, main: &Facts) -> (Vec<u32>, Option<String>) {
        let entries = match std::fs::read_dir(self.root.path("/proc")) {
            Ok(entries) => entries,
            Err(error) => return (Vec::new(), Some(format!("/proc cannot be listed: {error}"))),
        };
        let mut pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let mut namesakes = Vec::new();
        for pid in pids.by_ref().take(PROCESSES_MAX).filter(|pid| *pid != main.process.pid) {
            if self.text(pid, "comm", NAME_BYTES_MAX).is_some_and(|comm| comm.trim_end_matches('\n') == main.comm) {
                namesakes.push(pid);
            }
            if namesakes.len() > NAMESAKES_MAX {
                return (namesakes, Some(format!("more than {NAMESAKES_MAX} processes are called {}", main.comm)));
            }
        }
        let more = pids.next().is_some();
        (namesakes, more.then(|| format!("there are more than {PROCESSES_MAX} processes")))
    }

    fn look(&self, pid: u32, main: &Main, earlier: &[&Instance], services: &Services) -> Result<Option<Copy>, String> {
        let ProcessReading::Alive(facts) = process::read(&self.root, pid) else { return Ok(None) };
        let Some(owner) = process::owner(&self.root, pid) else { return Ok(None) };
        let own = &main.facts;
        let related = owner.ancestors.contains(&own.process) || main.ancestors.contains(&owner.process);
        let together = own.cgroup.as_deref().is_some_and(|cgroup| is_of_one_service(cgroup) && inside(&facts, cgroup));
        let of_another = services.owner(facts.process).is_some_and(|service| *service != self.subject.service);
        // A family under a process that was the main one: it is told by its head.
        let under = |known: &&Instance| known.process != facts.process && owner.ancestors.contains(&known.process);
        if related || of_another || earlier.iter().any(under) {
            return Ok(None);
        }
        let (grade, why) = if earlier.iter().any(|known| known.process == facts.process) {
            (Grade::Confirmed, "both were named as its main process, and the older one lives on".to_owned())
        } else if together {
            return Ok(None);
        } else {
            match self.compare(pid, main)? {
                Some(found) => found,
                None => return Ok(None),
            }
        };
        let (process, start_boottime_ms, cgroup) = (facts.process, facts.start_boottime_ms, facts.cgroup);
        Ok(Some(Copy { process, start_boottime_ms, grade, why, cgroup }))
    }

    /// By program and arguments; none when it is another program.
    fn compare(&self, pid: u32, main: &Main) -> Result<Option<(Grade, String)>, String> {
        let hidden = || format!("which program pid {pid} ({}) is cannot be seen", main.facts.comm);
        let program = stat(self.root.path(format!("/proc/{pid}/exe"))).map_err(|_| hidden())?;
        let own =
            main.program.ok_or_else(|| format!("which program pid {} is cannot be seen", main.facts.process.pid))?;
        if (program.st_dev, program.st_ino) != own {
            return Ok(None);
        }
        let arguments = self.text(pid, "cmdline", ARGUMENTS_BYTES_MAX);
        Ok(Some(match arguments == main.arguments {
            true => (Grade::Likely, "it is the same program with the same arguments, outside of its cgroup".to_owned()),
            false => (Grade::Possible, "it is the same program with other arguments".to_owned()),
        }))
    }

    fn text(&self, pid: u32, name: &str, bytes_max: u64) -> Option<String> {
        text(&self.root, pid, name, bytes_max)
    }
}

/// The main process, and what others are compared with.
struct Main {
    facts: Facts,
    ancestors: Vec<muster_common::ids::ProcessId>,
    program: Option<(u64, u64)>,
    arguments: Option<String>,
}

impl Main {
    fn new(root: &HostRoot, facts: Facts) -> Self {
        let pid = facts.process.pid;
        let ancestors = process::owner(root, pid).map(|Owner { ancestors, .. }| ancestors).unwrap_or_default();
        let program = stat(root.path(format!("/proc/{pid}/exe"))).ok().map(|found| (found.st_dev, found.st_ino));
        Self { ancestors, program, arguments: text(root, pid, "cmdline", ARGUMENTS_BYTES_MAX), facts }
    }
}

fn inside(facts: &Facts, cgroup: &str) -> bool {
    let of = facts.cgroup.as_deref().unwrap_or_default();
    of == cgroup || of.strip_prefix(cgroup).is_some_and(|rest| rest.starts_with('/'))
}

fn text(root: &HostRoot, pid: u32, name: &str, bytes_max: u64) -> Option<String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(root.path(format!("/proc/{pid}/{name}"))).ok()?;
    file.take(bytes_max).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// What the fleet is told when a subject, with what its probe had saved, is no longer watched.
pub fn unwatched(subject: &SubjectKey, saved: &Remembered) -> Option<Problem> {
    if subject.probe != ProbeKind::Process || subject.subject != SUBJECT {
        return None;
    }
    let (_, judge) = saved.read::<(BootId, SingletonJudge)>().ok()?;
    judge.unwatched(&subject.service)
}

impl Probe for SingletonProbe {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn lane(&self) -> Lane {
        // The arguments of a process are in its memory, which a stuck one may hold.
        Lane::Files
    }

    fn run(&mut self, context: &Context) -> Judgement {
        let services = context.services.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let reading = self.reading(&services);
        self.judge.judge(&self.subject.service, &reading, context.now, context.one_shot)
    }

    fn save(&self) -> Option<Remembered> {
        Remembered::of((boot_id(&self.root), &self.judge))
    }

    fn restore(&mut self, saved: Remembered) {
        let Ok((boot, mut judge)) = saved.read::<(BootId, SingletonJudge)>() else { return };
        if boot.0.is_nil() || boot != boot_id(&self.root) {
            judge.rebooted();
        }
        self.judge = judge;
    }
}

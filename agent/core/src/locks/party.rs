//! A process that holds or waits for a lock, and what it is doing.

use crate::port::Owner;
use crate::services::{Instance, is_of_one_service};
use muster_common::ids::{ProcessId, ServiceName};
use std::collections::BTreeSet;

/// What a process is doing, as `/proc/PID/stat` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Running, or ready to.
    Running,
    /// Asleep, until something happens.
    Sleeping,
    /// In an uninterruptible wait, nearly always for a disk or a network file system.
    DiskWait,
    /// Stopped by a signal, or by a debugger.
    Stopped,
    /// Ended, and not reaped.
    Zombie,
    /// Something else.
    Other,
}

impl Activity {
    /// From the state letter.
    pub const fn of(letter: char) -> Self {
        match letter {
            'R' => Self::Running,
            'S' | 'I' => Self::Sleeping,
            'D' => Self::DiskWait,
            'T' | 't' => Self::Stopped,
            'Z' | 'X' | 'x' => Self::Zombie,
            _ => Self::Other,
        }
    }

    /// One or two words, for evidence.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Sleeping => "sleeping",
            Self::DiskWait => "disk wait",
            Self::Stopped => "stopped",
            Self::Zombie => "zombie",
            Self::Other => "other",
        }
    }

    /// What explains that a holder does not get on; nothing for one that may just be at work.
    pub const fn explains(self) -> Option<&'static str> {
        match self {
            Self::DiskWait => Some("waits for a disk or a network file system and cannot go on"),
            Self::Stopped => {
                Some("is stopped (by a signal or a debugger) and lets go of nothing until it is continued")
            }
            Self::Zombie => Some("has ended and is not reaped"),
            Self::Running | Self::Sleeping | Self::Other => None,
        }
    }
}

/// A process at a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    /// (pid, start time).
    pub process: ProcessId,
    /// Its name as the kernel has it.
    pub comm: String,
    /// What it is doing.
    pub activity: Activity,
    /// The service it is of, where one is known.
    pub service: Option<ServiceName>,
    /// How often it went to sleep, where one thread is all it has: the same number twice means that it slept all the
    /// time between.
    pub switches: Option<u64>,
}

impl Party {
    /// `worker (pid 12, service spl)`.
    pub fn name(&self) -> String {
        match &self.service {
            Some(service) => format!("{} (pid {}, service {service})", self.comm, self.process.pid),
            None => format!("{} (pid {})", self.comm, self.process.pid),
        }
    }
}

/// The services that any of them belongs to, each once, separated by `", "`; `None` where none is known.
pub fn services<'a>(parties: impl IntoIterator<Item = &'a Party>, shown_max: usize) -> Option<String> {
    let services: BTreeSet<&str> =
        parties.into_iter().filter_map(|party| party.service.as_ref()).map(ServiceName::as_str).collect();
    let services: Vec<&str> = services.into_iter().take(shown_max).collect();
    (!services.is_empty()).then(|| services.join(", "))
}

/// Several of them in a sentence or in evidence: the first ones by name, the rest as a number.
pub fn names<'a>(parties: impl IntoIterator<Item = &'a Party>, shown_max: usize) -> String {
    let mut names: Vec<String> = Vec::new();
    let mut more = 0usize;
    for party in parties {
        if names.len() < shown_max {
            names.push(party.name());
        } else {
            more += 1;
        }
    }
    let names = names.join(", ");
    if more == 0 { names } else { format!("{names} and {more} more") }
}

/// The service that a process is of: its main process, a descendant of it, or another process of the cgroup that the
/// service has to itself.
pub fn service_of<'a>(owner: &Owner, living: &'a [(ServiceName, Instance)]) -> Option<&'a ServiceName> {
    let is_of = |instance: &Instance| {
        let cgroup = instance.cgroup.as_deref().filter(|cgroup| is_of_one_service(cgroup));
        owner.process == instance.process
            || owner.ancestors.contains(&instance.process)
            || (cgroup.is_some() && owner.cgroup.as_deref() == cgroup)
    };
    living.iter().find(|(_, instance)| is_of(instance)).map(|(service, _)| service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_of_the_service_by_itself_its_parents_or_its_cgroup() {
        let instance = Instance {
            process: ProcessId { pid: 5, start_ticks: 1 },
            comm: "spl".into(),
            exe: None,
            cgroup: Some("/system.slice/spl.service".into()),
            first_seen_boottime_ms: 0,
            ended_boottime_ms: None,
        };
        let spl = ServiceName::new("spl").unwrap();
        let living = [(spl.clone(), instance)];
        let check = |pid, start_ticks, parent: Option<(u32, u64)>, cgroup: &str, expected: bool| {
            let ancestors = parent.map(|(pid, start_ticks)| ProcessId { pid, start_ticks }).into_iter().collect();
            let process = ProcessId { pid, start_ticks };
            let owner =
                Owner { process, comm: "x".into(), exe: None, uid: None, cgroup: Some(cgroup.into()), ancestors };
            assert_eq!(service_of(&owner, &living), expected.then_some(&spl), "{owner:?}");
        };
        check(5, 1, None, "/", true);
        check(5, 2, None, "/", false);
        check(6, 2, Some((5, 1)), "/", true);
        check(6, 2, Some((5, 9)), "/", false);
        check(6, 2, None, "/system.slice/spl.service", true);
    }

    #[test]
    fn many_are_named_by_the_first_ones() {
        let party = |pid| Party {
            process: ProcessId { pid, start_ticks: 1 },
            comm: "w".into(),
            activity: Activity::of('S'),
            service: ServiceName::new("spl").ok(),
            switches: None,
        };
        let parties = [party(1), party(2), party(3)];
        assert_eq!(names(&parties, 1), "w (pid 1, service spl) and 2 more");
        assert_eq!(names(&parties[..1], 1), "w (pid 1, service spl)");
    }
}

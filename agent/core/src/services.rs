//! Which processes are, and lately were, the instances of a service. The pid-file probe notes them; the port probe asks
//! whose listener it sees; the OOM probe asks whose victim it was, when the process is long gone.

use crate::clock::Now;
use crate::executable::{Executable, FileVersion};
use crate::process::exit::ExitStatus;
use muster_common::evidence::Grade;
use muster_common::ids::{ProcessId, ServiceName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Instances remembered per service: enough to name the victim of a restart loop's last rounds.
const INSTANCES_MAX: usize = 16;
/// Programs remembered per service: of the process that runs and of those that ended before it.
const EXECUTABLES_MAX: usize = 4;
/// After an end of its service a database is checked again, but not sooner after its last check: a crash loop asks for
/// one with every round.
const CHECKS_APART: Duration = Duration::from_secs(60);

/// What was silent before and is again after this is another silence.
const SILENCES_APART_MS: u64 = 120_000;

/// Milliseconds of a tick, the unit of start times, on every architecture since Linux 2.6.
const TICK_MS: u64 = 10;

/// One life of a service's main process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// (pid, start time).
    pub process: ProcessId,
    /// Name as the kernel has it, at most 15 bytes.
    pub comm: String,
    /// Path of the executable, where it could be read.
    pub exe: Option<String>,
    /// Path in the unified cgroup hierarchy (or the memory controller's), where it could be read.
    pub cgroup: Option<String>,
    /// When it was first seen, `CLOCK_BOOTTIME`.
    pub first_seen_boottime_ms: u64,
    /// When it was seen to have ended, `CLOCK_BOOTTIME`.
    pub ended_boottime_ms: Option<u64>,
}

/// A life that nobody saw: its pid was written, and it was gone at the next look. Times are `CLOCK_BOOTTIME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BriefLife {
    /// Its pid. Its start time is not known, so it joins to nothing.
    pub pid: u32,
    /// When its pid was written.
    pub written_boottime_ms: u64,
    /// When it was seen to be gone.
    pub gone_boottime_ms: u64,
}

/// The last life of a service as somebody else tells of it: systemd, or a pid file that was left. Its start time in ticks
/// is not known, so that it joins to a kill by its pid and the time of the kill alone. Times are `CLOCK_BOOTTIME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToldLife {
    /// Its pid.
    pub pid: u32,
    /// It lived from then on.
    pub from_boottime_ms: u64,
    /// When it ended, where that is known.
    pub until_boottime_ms: Option<u64>,
}

/// The instances of all services of this host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Services {
    instances: BTreeMap<ServiceName, VecDeque<Instance>>,
    /// Of which more is known than at the last [`Services::take_changed`].
    #[serde(skip)]
    changed: BTreeSet<ServiceName>,
    /// Lives that nobody saw, oldest first; whoever counts lives remembers them himself.
    #[serde(skip)]
    brief: BTreeMap<ServiceName, VecDeque<BriefLife>>,
    /// The last life that somebody else tells of.
    #[serde(skip)]
    told: BTreeMap<ServiceName, ToldLife>,
    /// The systemd unit of each service that has one.
    #[serde(skip)]
    units: BTreeMap<ServiceName, String>,
    /// The programs behind the newest processes, oldest first; not saved, since each is soon looked at again.
    #[serde(skip)]
    executables: BTreeMap<ServiceName, VecDeque<(ProcessId, Executable)>>,
    /// When the kernel last killed a process of it: of its main process, or of another one.
    #[serde(skip)]
    killed: BTreeMap<ServiceName, u64>,
    /// Services that did not answer in time: from when on, and when last.
    #[serde(skip)]
    silent: BTreeMap<ServiceName, (u64, u64)>,
    /// How the last instances ended, oldest first, where the kernel or systemd told; whoever counts lives remembers it.
    #[serde(skip)]
    exits: BTreeMap<ServiceName, VecDeque<(ProcessId, ExitStatus)>>,
    /// With a process that nobody knew at the last [`Services::take_fresh`].
    #[serde(skip)]
    fresh: BTreeSet<ServiceName>,
}

impl Services {
    /// Notes that `instance` is (or was) the service's main process. The same (pid, start time) replaces what was
    /// known; beyond the bound the oldest instance is forgotten.
    pub fn note(&mut self, service: &ServiceName, instance: Instance) {
        let list = self.instances.entry(service.clone()).or_default();
        if list.contains(&instance) {
            return;
        }
        self.changed.insert(service.clone());
        match list.iter_mut().find(|known| known.process == instance.process) {
            Some(known) => *known = instance,
            None => {
                if list.len() == INSTANCES_MAX {
                    list.pop_front();
                }
                list.push_back(instance);
                self.fresh.insert(service.clone());
            }
        }
    }

    /// Notes how a process ended.
    pub fn note_exit(&mut self, service: &ServiceName, process: ProcessId, exit: ExitStatus) {
        let list = self.exits.entry(service.clone()).or_default();
        if list.iter().any(|(known, _)| *known == process) {
            return;
        }
        if list.len() == INSTANCES_MAX {
            list.pop_front();
        }
        list.push_back((process, exit));
    }

    /// How a process of a service ended, where that was told.
    pub fn exit_of(&self, service: &ServiceName, process: ProcessId) -> Option<ExitStatus> {
        self.exits.get(service)?.iter().find(|(known, _)| *known == process).map(|(_, exit)| *exit)
    }

    /// Notes the program behind a process; the same process replaces what was known.
    pub fn note_executable(&mut self, service: &ServiceName, process: ProcessId, executable: Executable) {
        let list = self.executables.entry(service.clone()).or_default();
        list.retain(|(known, _)| *known != process);
        if list.len() == EXECUTABLES_MAX {
            list.pop_front();
        }
        list.push_back((process, executable));
    }

    /// The program behind one process of a service.
    pub fn executable(&self, service: &ServiceName, process: ProcessId) -> Option<&Executable> {
        self.executables.get(service)?.iter().find(|(known, _)| *known == process).map(|(_, executable)| executable)
    }

    /// The hash of a file that one of the service's processes ran lately.
    pub fn sha256_of(&self, service: &ServiceName, version: &FileVersion) -> Option<&str> {
        let mut known =
            self.executables.get(service)?.iter().filter(|(_, known)| known.version.as_ref() == Some(version));
        known.find_map(|(_, known)| known.sha256.as_deref().ok())
    }

    /// The services with a process that was not known the last time this was asked.
    pub fn take_fresh(&mut self) -> BTreeSet<ServiceName> {
        std::mem::take(&mut self.fresh)
    }

    /// Notes a life that nobody saw.
    pub fn note_brief(&mut self, service: &ServiceName, life: BriefLife) {
        let list = self.brief.entry(service.clone()).or_default();
        if list.len() == INSTANCES_MAX {
            list.pop_front();
        }
        list.push_back(life);
    }

    /// The systemd unit of a service, where it has one.
    pub fn unit_of(&self, service: &ServiceName) -> Option<&str> {
        self.units.get(service).map(String::as_str)
    }

    /// Notes the last life of a service that somebody else tells of.
    pub fn note_told(&mut self, service: &ServiceName, life: ToldLife) {
        let known = self.told.entry(service.clone()).or_insert(life);
        // Who tells the end knows more than who only left a file.
        if known.pid != life.pid || known.until_boottime_ms.is_none() || life.until_boottime_ms.is_some() {
            *known = life;
        }
    }

    /// Notes that the kernel killed a process of a service.
    pub fn note_kill(&mut self, service: &ServiceName, at_boottime_ms: u64) {
        let known = self.killed.entry(service.clone()).or_default();
        *known = at_boottime_ms.max(*known);
    }

    /// Notes that a service did not answer in time: whoever knows its process looks whether that runs at all.
    pub fn note_silent(&mut self, service: &ServiceName, at_boottime_ms: u64) {
        let known = self.silent.entry(service.clone()).or_insert((at_boottime_ms, at_boottime_ms));
        let goes_on = at_boottime_ms.saturating_sub(known.1) <= SILENCES_APART_MS;
        *known = (if goes_on { known.0 } else { at_boottime_ms }, at_boottime_ms);
    }

    /// From when on a service did not answer, and when that was seen last.
    pub fn silent(&self, service: &ServiceName) -> Option<(u64, u64)> {
        self.silent.get(service).copied()
    }

    /// Whether a database of the service, last checked at `checked_boottime_ms`, is to be checked although nothing was
    /// written to it since: its service ended or was killed, and whoever reads of that asks how its data are. As often as
    /// changes would have it checked, and once a minute at most.
    pub fn ask_for_check(&self, service: &ServiceName, checked_boottime_ms: u64, interval: Duration, now: Now) -> bool {
        let ended = self.instances.get(service).into_iter().flatten().filter_map(|instance| instance.ended_boottime_ms);
        let brief = self.brief(service).map(|life| life.gone_boottime_ms);
        let last = ended.chain(brief).chain(self.killed.get(service).copied()).max();
        let rested = now.since(checked_boottime_ms) >= interval.min(CHECKS_APART);
        rested && last.is_some_and(|last| last > checked_boottime_ms)
    }

    /// Notes which systemd unit a service is.
    pub fn note_unit(&mut self, service: &ServiceName, unit: &str) {
        if self.units.get(service).is_none_or(|known| known != unit) {
            self.units.insert(service.clone(), unit.to_owned());
        }
    }

    /// The lives of one service that nobody saw, oldest first.
    pub fn brief(&self, service: &ServiceName) -> impl Iterator<Item = &BriefLife> {
        self.brief.get(service).into_iter().flatten()
    }

    /// All instances of one service, oldest first.
    pub fn instances(&self, service: &ServiceName) -> Option<&VecDeque<Instance>> {
        self.instances.get(service)
    }

    /// The services of which something was known.
    pub fn names(&self) -> impl Iterator<Item = &ServiceName> {
        self.instances.keys()
    }

    /// Replaces what is known of one service; that is no change to be told.
    pub fn set(&mut self, service: ServiceName, instances: VecDeque<Instance>) {
        self.instances.insert(service, instances);
    }

    /// The services of which more is known than the last time this was asked.
    pub fn take_changed(&mut self) -> BTreeSet<ServiceName> {
        std::mem::take(&mut self.changed)
    }

    /// The newest instance, living or not.
    pub fn newest(&self, service: &ServiceName) -> Option<&Instance> {
        self.instances.get(service)?.back()
    }

    /// Whether a process of the service is known that has not ended.
    pub fn runs(&self, service: &ServiceName) -> bool {
        self.newest(service).is_some_and(|newest| newest.ended_boottime_ms.is_none())
    }

    /// The service whose main process is `process`.
    pub fn owner(&self, process: ProcessId) -> Option<&ServiceName> {
        self.instances
            .iter()
            .find(|(_, list)| list.iter().any(|instance| instance.process == process))
            .map(|(service, _)| service)
    }

    /// Whose process the victim of a kill was. A pid alone is not enough: the instance must have lived at
    /// `at_boottime_ms`. What systemd or a left pid file tells of a life that was over before anybody looked is as good
    /// as what is told of its times. A matching cgroup (exact, or a child; or that of the service's unit) makes it likely
    /// where the pid is unknown (a worker process of the service).
    pub fn of_victim(
        &self,
        pid: u32,
        cgroup: Option<&str>,
        at_boottime_ms: u64,
    ) -> Option<(&ServiceName, Option<&Instance>, Grade)> {
        // The kernel stamps its record before the exit is noticed; an instance that ended this much earlier is not it.
        const SLACK_MS: u64 = 2_000;
        let at_latest = at_boottime_ms.saturating_add(SLACK_MS);
        let lived = |instance: &&Instance| {
            instance.process.pid == pid
                // It may have run for long before it was first seen, as all do for a command that looks once.
                && instance.process.start_ticks.saturating_mul(TICK_MS) <= at_latest
                && instance.ended_boottime_ms.is_none_or(|ended| at_boottime_ms <= ended.saturating_add(SLACK_MS))
        };
        for (service, list) in &self.instances {
            if let Some(instance) = list.iter().rev().find(lived) {
                return Some((service, Some(instance), Grade::Confirmed));
            }
        }
        let told = self.told.iter().filter(|(_, life)| pid != 0 && life.pid == pid);
        let mut told = told.filter(|(_, life)| {
            let ended = |until: u64| at_boottime_ms <= until.saturating_add(SLACK_MS);
            life.from_boottime_ms <= at_latest && life.until_boottime_ms.is_none_or(ended)
        });
        if let Some((service, life)) = told.next() {
            let grade = if life.until_boottime_ms.is_some() { Grade::Confirmed } else { Grade::Likely };
            return Some((service, None, grade));
        }
        let cgroup = cgroup?;
        // systemd puts `_` before a name that could be a file of the kernel's: `_memory.service`.
        let is_folder = |part: &str, unit: &str| part == unit || part.strip_prefix('_') == Some(unit);
        let of_unit = |unit: &str| unit.ends_with(".service") && cgroup.split('/').any(|part| is_folder(part, unit));
        let by_cgroup = self.instances.iter().find_map(|(service, list)| {
            let own = list.back()?.cgroup.as_deref().filter(|own| is_of_one_service(own))?;
            let inside = cgroup == own || cgroup.strip_prefix(own).is_some_and(|rest| rest.starts_with('/'));
            inside.then_some((service, None, Grade::Likely))
        });
        by_cgroup.or_else(|| {
            let (service, _) = self.units.iter().find(|(_, unit)| of_unit(unit))?;
            Some((service, None, Grade::Likely))
        })
    }
}

/// Whether all processes in a cgroup belong together: a unit's or a container's own one. A login session's, a user's or
/// a slice's cgroup, or one that somebody made by hand, holds whatever was started there.
pub fn is_of_one_service(cgroup: &str) -> bool {
    let leaf = cgroup.rsplit('/').next().unwrap_or_default();
    let is_unit = leaf.ends_with(".service") && !leaf.starts_with("user@");
    let is_container_scope = leaf.ends_with(".scope") && !leaf.starts_with("session-") && leaf != "init.scope";
    let in_container = ["/docker/", "/kubepods", "/lxc/", "/lxc.payload", "/machine.slice/"];
    is_unit || is_container_scope || in_container.iter().any(|part| cgroup.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::time::Timestamp;

    fn instance(pid: u32, start_ticks: u64, first: u64, ended: Option<u64>) -> Instance {
        Instance {
            process: ProcessId { pid, start_ticks },
            comm: "spl".into(),
            exe: None,
            cgroup: Some("/system.slice/spl.service".into()),
            first_seen_boottime_ms: first,
            ended_boottime_ms: ended,
        }
    }

    #[test]
    fn the_same_pid_of_another_life_never_joins() {
        let spl = ServiceName::new("spl").unwrap();
        let mut services = Services::default();
        services.note(&spl, instance(100, 1, 1_000, Some(5_000)));
        assert!(services.of_victim(100, None, 60_000).is_none());
        assert_eq!(services.of_victim(100, None, 5_100).unwrap().2, Grade::Confirmed);
        services.note(&spl, instance(100, 9, 50_000, None));
        let (_, found, _) = services.of_victim(100, None, 60_000).unwrap();
        assert_eq!(found.unwrap().process.start_ticks, 9);
    }

    #[test]
    fn a_database_is_checked_once_after_an_end_of_its_service_and_not_with_every_round_of_a_loop() {
        let (spl, other) = (ServiceName::new("spl").unwrap(), ServiceName::new("other").unwrap());
        let mut services = Services::default();
        let at = |boottime_ms| Now { boottime_ms, wall: Timestamp::UNIX_EPOCH };
        let usual = Duration::from_secs(300);
        let asks = |services: &Services, checked, now_ms| services.ask_for_check(&spl, checked, usual, at(now_ms));
        services.note(&spl, instance(100, 1, 1_000, None));
        assert!(!asks(&services, 5_000, 500_000), "nothing has ended");
        services.note_kill(&spl, 100_000);
        assert!(asks(&services, 5_000, 100_000) && !asks(&services, 100_500, 500_000), "once, by its time");
        assert!(!services.ask_for_check(&other, 5_000, usual, at(500_000)));
        services.note(&spl, instance(100, 1, 1_000, Some(200_000)));
        assert!(asks(&services, 100_500, 200_100) && !asks(&services, 200_100, 500_000));
        // Every second another end: a check a minute, or as often as the config has it.
        let (mut checked, mut checks) = (200_100, 0);
        for second in 201..=500 {
            let (pid, now_ms) = (second, u64::from(second) * 1_000);
            services.note(&spl, instance(pid, u64::from(pid), now_ms - 900, Some(now_ms)));
            if asks(&services, checked, now_ms) {
                (checked, checks) = (now_ms, checks + 1);
            }
        }
        assert_eq!(checks, 4);
        assert!(services.ask_for_check(&spl, 499_000, Duration::from_secs(1), at(500_000)), "its interval is shorter");
    }

    #[test]
    fn a_life_that_nobody_saw_joins_by_what_is_told_of_its_times() {
        let (spl, web) = (ServiceName::new("spl").unwrap(), ServiceName::new("web").unwrap());
        let mut services = Services::default();
        let life = |pid, until_boottime_ms| ToldLife { pid, from_boottime_ms: 10_000, until_boottime_ms };
        services.note_told(&spl, life(7, Some(20_000)));
        services.note_told(&spl, life(7, None));
        services.note_told(&web, life(8, None));
        let grade =
            |pid, at_ms| services.of_victim(pid, None, at_ms).map(|(service, _, grade)| (service.as_str(), grade));
        assert_eq!(grade(7, 19_990), Some(("spl", Grade::Confirmed)));
        assert_eq!(grade(8, 90_000), Some(("web", Grade::Likely)));
        // The same pid of before, or of after.
        for (pid, at_ms) in [(7, 5_000), (7, 30_000), (8, 5_000), (0, 15_000)] {
            assert_eq!(grade(pid, at_ms), None, "{pid} {at_ms}");
        }
        services.note_unit(&spl, "spl.service");
        let in_cgroup =
            |cgroup| services.of_victim(99, Some(cgroup), 1_000).map(|(service, _, grade)| (service.as_str(), grade));
        assert_eq!(in_cgroup("/system.slice/spl.service/worker"), Some(("spl", Grade::Likely)));
        assert_eq!(in_cgroup("/system.slice/spl.service2"), None);
    }

    #[test]
    fn who_ran_before_it_was_first_seen_is_joined() {
        let spl = ServiceName::new("spl").unwrap();
        let mut services = Services::default();
        services.note(&spl, instance(100, 500, 60_000, None));
        assert_eq!(services.of_victim(100, None, 57_000).unwrap().2, Grade::Confirmed);
        assert!(services.of_victim(100, None, 2_000).is_none());
    }

    #[test]
    fn a_worker_in_the_cgroup_is_likely() {
        let spl = ServiceName::new("spl").unwrap();
        let mut services = Services::default();
        services.note(&spl, instance(100, 1, 1_000, None));
        let (_, found, grade) = services.of_victim(7, Some("/system.slice/spl.service/w"), 2_000).unwrap();
        assert!(found.is_none());
        assert_eq!(grade, Grade::Likely);
        assert!(services.of_victim(7, Some("/system.slice/spl.service2"), 2_000).is_none());
    }

    #[test]
    fn only_a_cgroup_of_its_own_tells_the_service() {
        for own in
            ["/system.slice/spl.service", "/system.slice/docker-ab12.scope", "/docker/ab12", "/kubepods/burstable/x"]
        {
            assert!(is_of_one_service(own), "{own}");
        }
        for shared in
            ["", "/", "/user.slice/user-0.slice/session-3.scope", "/user.slice/user@0.service", "/made/by/hand"]
        {
            assert!(!is_of_one_service(shared), "{shared}");
        }
    }
}

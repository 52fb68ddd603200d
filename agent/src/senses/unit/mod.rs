//! systemd units over the system bus: by signals, for the configured units only, on one connection of the whole agent.
//!
//! The conversation ([`bus`]) leaves each unit's state for its probe ([`UnitProbe`]), which judges it and notes the main
//! process for the other probes of the service. Must never change a unit, and never poll what a signal tells.

mod bus;
mod decode;
mod failed;
mod units;

pub use failed::failed_services;
pub use units::{Told, Units, UnitsError};

use super::{HostRoot, executable, process};
use crate::clock::{boot_id, suspended_ms};
use crate::net::Mailbox;
use crate::probe::{Context, Probe, Remembered};
use muster_agent_core::judgement::Judgement;
use muster_agent_core::pid_file::Facts;
use muster_agent_core::services::{Instance, Services, ToldLife};
use muster_agent_core::unit::{MainProcess, Options, UnitJudge, UnitState};
use muster_common::evidence::Evidence;
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::{BootId, ProcessId, ServiceName};
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// systemd's own sign that it is PID 1: made at boot, never removed.
const BOOTED_WITH_SYSTEMD: &str = "/run/systemd/system";
/// The way out where the bus is not there.
const BUS_WAY_OUT: &str = "start the bus (systemctl start dbus.socket), and let the agent's user connect to \
                           /run/dbus/system_bus_socket";

/// What is known of a main process stands for so long, if its unit did not change.
const STANDS_MS: u64 = 60_000;

/// Whether systemd runs this host.
pub fn is_systemd(root: &HostRoot) -> bool {
    root.path(BOOTED_WITH_SYSTEMD).is_dir()
}

/// Watches one unit of one service.
#[derive(Debug)]
pub struct UnitProbe {
    subject: SubjectKey,
    root: HostRoot,
    unit: String,
    mailbox: Arc<Mailbox<Told>>,
    options: Options,
    /// How long `doctor` waits for systemd.
    patience: Duration,
    told: Option<Told>,
    judge: UnitJudge,
    /// The main process that was noted last.
    noted: Option<ProcessId>,
    /// What was read of the main process, and when.
    main: Option<(Facts, u64)>,
}

impl UnitProbe {
    /// Watches `unit`; `None` when `units` does not follow it.
    pub fn new(
        service: ServiceName,
        unit: &str,
        units: &Units,
        root: HostRoot,
        options: Options,
        patience: Duration,
    ) -> Option<Self> {
        let mailbox = units.mailbox(unit)?;
        let subject = SubjectKey::new(service, ProbeKind::Unit, unit);
        let unit = unit.to_owned();
        Some(Self {
            subject,
            root,
            unit,
            mailbox,
            options,
            patience,
            told: None,
            judge: UnitJudge::default(),
            noted: None,
            main: None,
        })
    }

    /// The main process. What it executes and its cgroup are read each time while it is young, when a script becomes the
    /// program that it starts, and once in a while afterwards; whether it runs each time.
    fn main_process(&mut self, pid: u32, now_ms: u64) -> Option<Facts> {
        let stands = |(facts, read_ms): &(Facts, u64)| {
            let old = read_ms.saturating_sub(facts.start_boottime_ms) >= STANDS_MS;
            old && facts.process.pid == pid && now_ms.saturating_sub(*read_ms) < STANDS_MS
        };
        let known = self.main.take().filter(stands).filter(|(facts, _)| process::runs(&self.root, facts.process));
        self.main = known.or_else(|| Some((process::alive(&self.root, pid)?, now_ms)));
        self.main.as_ref().map(|(facts, _)| facts.clone())
    }

    fn judge(&mut self, context: &Context, state: &UnitState) -> Judgement {
        let facts = match state.main_pid {
            0 => None,
            pid => self.main_process(pid, context.now.boottime_ms),
        };
        let fresh = facts.as_ref().filter(|facts| self.noted != Some(facts.process));
        if let Some(new) = fresh {
            executable::glance(&self.root, &context.services, &self.subject.service, new.process);
        }
        self.note(context, state, facts.as_ref());
        let main = facts.map(|Facts { process, comm, .. }| MainProcess { process, comm });
        let clocks = (context.now, suspended_ms());
        self.judge.judge(&self.unit, state, main.as_ref(), clocks, (context.one_shot, self.options))
    }

    /// Tells the other probes of the service whose process the main process is.
    fn note(&mut self, context: &Context, state: &UnitState, facts: Option<&Facts>) {
        let mut services = context.services.lock().unwrap_or_else(PoisonError::into_inner);
        services.note_unit(&self.subject.service, &self.unit);
        if let Some(life) = state.newest().filter(|life| life.exit_usec > 0 && life.start_usec > 0) {
            // A kill that is read later may be of it, though nobody here saw it.
            let boottime_ms = |usec: u64| (usec / 1000).saturating_add(suspended_ms());
            let (from_boottime_ms, until) = (boottime_ms(life.start_usec), boottime_ms(life.exit_usec));
            let told = ToldLife { pid: life.pid, from_boottime_ms, until_boottime_ms: Some(until) };
            services.note_told(&self.subject.service, told);
        }
        let living = facts.map(|facts| facts.process);
        // It may live on where systemd does not know its pid for a moment (a reload); then it is noted again.
        if let Some(old) = self.noted.filter(|old| Some(*old) != living && !self.still_runs(*old)) {
            let ended = state.lives().iter().rev().find(|life| life.pid == old.pid && life.exit_usec > 0);
            let ended = ended.map(|life| (life.exit_usec / 1000).saturating_add(suspended_ms()));
            end(&mut services, &self.subject.service, old, ended.unwrap_or(context.now.boottime_ms));
            self.noted = None;
        }
        let Some(facts) = facts else { return };
        let known = known(&services, &self.subject.service, facts.process);
        let first_seen_boottime_ms = known.map_or(context.now.boottime_ms, |known| known.first_seen_boottime_ms);
        let instance = Instance {
            process: facts.process,
            comm: facts.comm.clone(),
            exe: facts.exe.clone(),
            cgroup: facts.cgroup.clone(),
            first_seen_boottime_ms,
            ended_boottime_ms: None,
        };
        self.noted = Some(facts.process);
        services.note(&self.subject.service, instance);
    }

    fn still_runs(&self, old: ProcessId) -> bool {
        process::runs(&self.root, old)
    }
}

fn known(services: &Services, service: &ServiceName, process: ProcessId) -> Option<Instance> {
    services.instances(service)?.iter().find(|known| known.process == process).cloned()
}

fn end(services: &mut Services, service: &ServiceName, process: ProcessId, ended_boottime_ms: u64) {
    // Who noticed it first was closest to it.
    if let Some(instance) = known(services, service, process).filter(|known| known.ended_boottime_ms.is_none()) {
        services.note(service, Instance { ended_boottime_ms: Some(ended_boottime_ms), ..instance });
    }
}

impl Probe for UnitProbe {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn run(&mut self, context: &Context) -> Judgement {
        let new = if context.one_shot { self.mailbox.wait(self.patience) } else { self.mailbox.take() };
        if new.is_some() {
            (self.told, self.main) = (new, None);
        }
        match self.told.take() {
            Some(Told::State(state)) => {
                let judgement = self.judge(context, &state);
                self.told = Some(Told::State(state));
                judgement
            }
            // Said with the way out once for the host.
            Some(Told::Unreachable(why)) => {
                let judgement = Judgement::unknown(format!("not asked: {why}"), None);
                self.told = Some(Told::Unreachable(why));
                judgement
            }
            Some(Told::Unreadable(why)) => {
                let judgement = Judgement::unknown(format!("{} cannot be read: {why}", self.unit), None);
                self.told = Some(Told::Unreadable(why));
                judgement
            }
            None => Judgement::unknown("systemd has not answered yet", None),
        }
    }

    fn wake(&self) -> Option<Arc<OwnedFd>> {
        Some(self.mailbox.bell())
    }

    fn save(&self) -> Option<Remembered> {
        Remembered::of((boot_id(&self.root), &self.judge, self.noted))
    }

    fn restore(&mut self, saved: Remembered) {
        let Ok((boot, judge, noted)) = saved.read::<(BootId, UnitJudge, _)>() else { return };
        // After a reboot every pid is another process, and no restart happened.
        if !boot.0.is_nil() && boot == boot_id(&self.root) {
            (self.judge, self.noted) = (judge, noted);
        }
    }
}

/// Says once for the host whether systemd can be asked at all.
#[derive(Debug)]
pub struct SystemdProbe {
    subject: SubjectKey,
    root: HostRoot,
    units: Units,
    patience: Duration,
    told: Option<Result<(), String>>,
}

impl SystemdProbe {
    /// About the host's systemd.
    pub fn new(units: Units, root: HostRoot, patience: Duration) -> Self {
        let subject = SubjectKey::new(ServiceName::host(), ProbeKind::Unit, "systemd");
        Self { subject, root, units, patience, told: None }
    }
}

impl Probe for SystemdProbe {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn run(&mut self, context: &Context) -> Judgement {
        if !is_systemd(&self.root) {
            let why = format!("this host does not run systemd (no {BOOTED_WITH_SYSTEMD}): no `unit` can be watched");
            return Judgement::unknown(why, Some("watch the services by `pid_file`, and remove `unit` here"));
        }
        let link = self.units.link();
        let new = if context.one_shot { link.wait(self.patience) } else { link.take() };
        if new.is_some() {
            self.told = new;
        }
        match &self.told {
            Some(Ok(())) => {
                let count = u64::try_from(self.units.count()).unwrap_or(u64::MAX);
                Judgement::ok(Evidence::new().count("units_followed", count))
            }
            Some(Err(why)) => Judgement::unknown(why.as_str(), Some(BUS_WAY_OUT)),
            None => Judgement::unknown("the system bus has not answered yet", Some(BUS_WAY_OUT)),
        }
    }

    fn wake(&self) -> Option<Arc<OwnedFd>> {
        Some(self.units.link().bell())
    }
}

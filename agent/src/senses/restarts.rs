//! Gathers the lives of a service's main process, from whoever saw them, for the judge of restart loops.

use super::HostRoot;
use super::unit::Units;
use crate::clock::{boot_id, suspended_ms};
use crate::probe::{Context, Probe, Remembered};
use muster_agent_core::judgement::Judgement;
use muster_agent_core::restarts::{Life, Reading, RestartJudge, of_unit, why_gave_up};
use muster_agent_core::services::{BriefLife, Instance};
use muster_common::evidence::Evidence;
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::{BootId, ServiceName};
use std::sync::PoisonError;

/// Watches the restarts of one service.
#[derive(Debug)]
pub struct RestartProbe {
    subject: SubjectKey,
    root: HostRoot,
    unit: Option<(String, Units)>,
    judge: RestartJudge,
}

impl RestartProbe {
    /// Of a service with a pid file, a unit, or both.
    pub fn new(service: ServiceName, unit: Option<(String, Units)>, root: HostRoot) -> Self {
        let subject = SubjectKey::new(service, ProbeKind::Process, "restarts");
        Self { subject, root, unit, judge: RestartJudge::default() }
    }
}

impl Probe for RestartProbe {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn run(&mut self, context: &Context) -> Judgement {
        let unit = self.unit.as_ref().map(|(unit, _)| unit.clone());
        let mut reading = Reading { unit, ..Reading::default() };
        if let Some(state) = self.unit.as_ref().and_then(|(unit, units)| units.state(unit)) {
            if state.is_oneshot() {
                return Judgement::ok(Evidence::new().text("unit_type", "oneshot: each run is a process of its own"));
            }
            reading.lives = of_unit(&state, suspended_ms());
            reading.n_restarts = state.n_restarts;
            reading.awaits_restart = state.sub_state == "auto-restart";
            reading.gave_up = why_gave_up(&state);
        }
        let services = context.services.lock().unwrap_or_else(PoisonError::into_inner);
        let hz = procfs::ticks_per_second().max(1);
        let life = |instance: &Instance| Life {
            pid: instance.process.pid,
            start_boottime_ms: instance.process.start_ticks.saturating_mul(1000) / hz,
            ended_boottime_ms: instance.ended_boottime_ms,
            ended: None,
            exit: services.exit_of(&self.subject.service, instance.process),
        };
        reading.lives.extend(services.instances(&self.subject.service).into_iter().flatten().map(life));
        let brief = |life: &BriefLife| Life {
            pid: life.pid,
            start_boottime_ms: life.written_boottime_ms,
            ended_boottime_ms: Some(life.gone_boottime_ms),
            ended: None,
            exit: None,
        };
        reading.lives.extend(services.brief(&self.subject.service).map(brief));
        drop(services);
        self.judge.judge(self.subject.service.as_str(), &reading, context.now, context.one_shot)
    }

    fn save(&self) -> Option<Remembered> {
        Remembered::of((boot_id(&self.root), &self.judge))
    }

    fn restore(&mut self, saved: Remembered) {
        let Ok((boot, mut judge)) = saved.read::<(BootId, RestartJudge)>() else { return };
        if boot.0.is_nil() || boot != boot_id(&self.root) {
            judge.rebooted();
        }
        self.judge = judge;
    }
}

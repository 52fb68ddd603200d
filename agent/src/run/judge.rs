//! The one loop that judges: starts what is due, takes in what is over, keeps the ledger, writes events to the spool,
//! and between two turns does what the uplink asks of the spool. It sleeps in the [`Watcher`], nowhere else.
//!
//! Must never wait for a probe: a run that is late is judged unknown, and the loop turns on. It waits for the spool's
//! disk alone, since what is told must be durable first; nobody waits for the loop before a heartbeat.

use super::asks::{Ask, Asked as Questions, Picture};
use super::lanes::{BATCH_JOBS_MAX, Delivery, Done, Job, Lane};
use super::memory::{Memory, StateOutlet};
use super::plan::{Planned, lane_index};
use super::watcher::{Watcher, Wish, Woken};
use crate::bell::Bell;
use crate::probe::{Context, Lane as Kind, Probe};
use crate::sandbox::Work;
use crate::spool::{Append, SpoolError};
use muster_agent_core::absence;
use muster_agent_core::clock::Now;
use muster_agent_core::executable;
use muster_agent_core::judgement::Judgement;
use muster_agent_core::ledger::Change;
use muster_agent_core::schedule::{Late, Schedule};
use muster_agent_core::services::Services;
use muster_common::chain::Chain;
use muster_common::evidence::Value;
use muster_common::finding::{Finding, FindingEvent, ProbeKind, SubjectKey};
use muster_common::severity::Severity;
use muster_common::units::human_duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Events that wait for a spool that cannot write (disk full). Beyond it the oldest go; the digest then differs and a
/// resync mends what is open.
const PENDING_EVENTS_MAX: usize = 4096;
/// A spool that failed is tried again after this.
const RETRY_SPOOL_MS: u64 = 1_000;
/// Cursors and verdicts are saved at least this often; with every event anyway.
const SAVE_INTERVAL_MS: u64 = 60_000;
/// After a start or a reload sooner: then most is learned, and most of the memory that it took is free again.
const SAVE_FIRST_MS: u64 = 10_000;
/// Between two times at which the program's text is unmapped, of which what is used comes back: some hundred page faults.
const FORGET_INTERVAL_MS: u64 = 600_000;
/// The state folder is looked at, or tried, again after this.
const LOOK_AT_DISK_MS: u64 = 60_000;
/// The loop turns at least this often, whatever is due.
const TURN_MAX: Duration = Duration::from_secs(60);

/// Why the loop gave control back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// To stop.
    Stop,
    /// To read the config again.
    Reload,
    /// To look at the state folder again: [`Judge::look_at_disk_later`] asked for it.
    LookAtDisk,
    /// To plan anew with the same config: files are on other file systems than they were, see [`Judge::plan_anew_on`].
    PlanAnew,
}

/// A probe as the loop keeps it.
#[derive(Default)]
struct Slot {
    /// `None` while it runs.
    probe: Option<Box<dyn Probe>>,
    /// It may have more to remember than memory has.
    unsaved: bool,
    /// What takes its place when it comes back: another probe, or nothing.
    successor: Option<Option<Box<dyn Probe>>>,
}

/// The loop and all it keeps.
pub struct Judge<O> {
    schedule: Schedule,
    slots: BTreeMap<SubjectKey, Slot>,
    lanes: Vec<Lane>,
    /// Runs that are over.
    inbox: Receiver<Done>,
    /// What restricted threads may not do themselves.
    helps: Receiver<Work>,
    bell: Bell,
    watcher: Watcher,
    services: Arc<Mutex<Services>>,
    memory: Memory,
    outlet: O,
    pending: VecDeque<Append>,
    dropped_events: u64,
    retry_ms: u64,
    /// The last write failed.
    spool_fails: bool,
    saved_ms: u64,
    /// When the program's text is unmapped next.
    forget_ms: u64,
    look_at_disk_ms: Option<u64>,
    /// How often the service manager wants to hear that the loop turns, and when next.
    watchdog: Option<Duration>,
    watchdog_ms: u64,
    /// What others ask, and reports that are not durable yet.
    questions: Option<Questions>,
    unanswered: Vec<oneshot::Sender<Result<u64, String>>>,
    /// Set by a run after which the plan fits no more.
    moved: Arc<AtomicBool>,
}

impl<O: StateOutlet> Judge<O> {
    /// Takes over what was remembered.
    pub fn new(mut memory: Memory, outlet: O, mut watcher: Watcher) -> std::io::Result<Self> {
        let services = Arc::new(Mutex::new(std::mem::take(&mut memory.services)));
        let (results, inbox) = channel();
        let (helper, helps) = channel();
        let bell = Bell::new()?;
        watcher.listen(bell.clone())?;
        let delivery = || Delivery::with_bell(results.clone(), bell.clone(), helper.clone());
        let lane = |kind| Lane::new(lane_index(kind), kind, delivery());
        Ok(Self {
            schedule: Schedule::default(),
            slots: BTreeMap::new(),
            lanes: vec![lane(Kind::Quick), lane(Kind::Files), lane(Kind::Database)],
            inbox,
            helps,
            bell,
            watcher,
            services,
            memory,
            outlet,
            pending: VecDeque::new(),
            dropped_events: 0,
            retry_ms: 0,
            spool_fails: false,
            saved_ms: 0,
            forget_ms: 0,
            look_at_disk_ms: None,
            watchdog: sd_notify::watchdog_enabled().map(|limit| limit / 3),
            watchdog_ms: 0,
            questions: None,
            unanswered: Vec::new(),
            moved: Arc::default(),
        })
    }

    /// The services' instances, as probes note them.
    pub fn services(&self) -> Arc<Mutex<Services>> {
        Arc::clone(&self.services)
    }

    /// Answers what is asked there from now on.
    pub fn answer(&mut self, questions: Questions) -> std::io::Result<()> {
        self.watcher.listen(questions.bell.clone())?;
        self.questions = Some(questions);
        Ok(())
    }

    /// Gives control back when a run of a probe has set this.
    pub fn plan_anew_on(&mut self, moved: Arc<AtomicBool>) {
        self.moved = moved;
    }

    /// Where events and memory go.
    pub const fn outlet(&mut self) -> &mut O {
        &mut self.outlet
    }

    /// Watches exactly `planned` from now on: what is new starts, what changed is replaced, what is gone is told as no
    /// longer watched.
    pub fn watch(&mut self, planned: Vec<Planned>, blind_after: Duration) {
        let now = crate::clock::now();
        self.memory.ledger.set_blind_after(blind_after);
        // The folder that restricted threads may write to may be another one now.
        self.renew_threads();
        let wanted: BTreeSet<SubjectKey> = planned.iter().map(|planned| planned.probe.subject().clone()).collect();
        let gone: Vec<SubjectKey> = self.slots.keys().filter(|subject| !wanted.contains(subject)).cloned().collect();
        for subject in gone {
            self.watcher.forget(&subject);
            match self.slots.get_mut(&subject) {
                // Its run stays in the schedule until it is over: if it hangs, its lane must hear of it.
                Some(slot) if slot.probe.is_none() => slot.successor = Some(None),
                _ => {
                    self.slots.remove(&subject);
                    self.schedule.remove(&subject);
                }
            }
        }
        for Planned { mut probe, plan } in planned {
            let subject = probe.subject().clone();
            let away = self.slots.get(&subject).is_some_and(|slot| slot.probe.is_none());
            let slot = self.slots.entry(subject.clone()).or_default();
            // What the old instance knows is newer than what was saved.
            let saved = slot.probe.as_ref().and_then(|old| old.save());
            if let Some(saved) = saved.or_else(|| self.memory.probe(&subject)) {
                probe.restore(saved);
            }
            if away {
                slot.successor = Some(Some(probe));
                self.schedule.replan(&subject, plan);
            } else {
                slot.probe = Some(probe);
                self.schedule.add(now.boottime_ms, subject, plan);
            }
        }
        let believed = self.memory.unwatched(now, &wanted);
        self.tell(believed);
        let events = self.memory.retain(&wanted);
        let observed_boottime_ms = now.boottime_ms;
        self.tell(events.into_iter().map(|event| Change { event, observed_boottime_ms }).collect());
        self.save_all(now);
        self.saved_ms = now.boottime_ms.saturating_sub(SAVE_INTERVAL_MS - SAVE_FIRST_MS);
        self.forget_ms = now.boottime_ms;
    }

    /// Gives control back in a minute, once, to look at the state folder again.
    pub fn look_at_disk_later(&mut self) {
        self.look_at_disk_ms = Some(crate::clock::now().boottime_ms.saturating_add(LOOK_AT_DISK_MS));
    }

    /// Has threads that are restricted be replaced by others at the next run: what the present ones may do is settled.
    pub fn renew_threads(&mut self) {
        self.lanes.iter_mut().for_each(Lane::renew);
    }

    /// Turns until asked to stop or to reload, or until the state folder is to be looked at.
    pub fn run(&mut self) -> Asked {
        loop {
            let now = crate::clock::now();
            if self.look_at_disk_ms.take_if(|at_ms| *at_ms <= now.boottime_ms).is_some() {
                return Asked::LookAtDisk;
            }
            self.start_due(now);
            self.judge_late(now);
            self.answer_questions(now);
            if !self.pending.is_empty() && now.boottime_ms >= self.retry_ms {
                self.save(now);
            } else if now.boottime_ms >= self.saved_ms.saturating_add(SAVE_INTERVAL_MS) {
                self.save_all(now);
            }
            self.outlet.serve();
            self.tell_watchdog(now);
            let woken = self.watcher.wait(self.pause(crate::clock::now()));
            if let Some(asked) = self.take_in(woken) {
                return asked;
            }
            if self.moved.swap(false, Ordering::Relaxed) {
                return Asked::PlanAnew;
            }
        }
    }

    /// All that is there in one turn, so that the events of one moment are one transaction; also when asked to stop or
    /// to reload, since each run that is over brings its probe back.
    fn take_in(&mut self, woken: Woken) -> Option<Asked> {
        self.bell.silence();
        while let Ok(work) = self.helps.try_recv() {
            help(work);
        }
        while let Ok(done) = self.inbox.try_recv() {
            self.finish(done);
        }
        let now_ms = crate::clock::now().boottime_ms;
        for subject in woken.probes {
            self.schedule.wake(now_ms, &subject);
        }
        woken.wish.map(|wish| match wish {
            Wish::Stop => Asked::Stop,
            Wish::Reload => Asked::Reload,
        })
    }

    fn answer_questions(&mut self, now: Now) {
        let Some(questions) = self.questions.take() else { return };
        questions.bell.silence();
        while let Ok(ask) = questions.queue.try_recv() {
            match ask {
                Ask::Report { subject, problem, answer } => {
                    let told = self.observe(now, &subject, Judgement::default().occurred(problem));
                    if told {
                        self.unanswered.push(answer);
                    } else {
                        answer.send(Err("too many of this kind were reported in the last minute".to_owned())).ok();
                    }
                }
                Ask::Picture(answer) => {
                    let services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
                    answer.send(Picture::new(&self.memory.ledger, &self.memory.recent, &services)).ok();
                }
            }
        }
        self.questions = Some(questions);
    }

    /// Tells who reported whether it is durable now.
    fn answer_reports(&mut self, outcome: &Result<u64, String>) {
        for answer in self.unanswered.drain(..) {
            answer.send(outcome.clone()).ok();
        }
    }

    /// Saves what is remembered and what still waits, once.
    pub fn stop(&mut self) {
        self.save_all(crate::clock::now());
    }

    fn tell_watchdog(&mut self, now: Now) {
        let Some(interval) = self.watchdog else { return };
        if now.boottime_ms >= self.watchdog_ms {
            sd_notify::notify(&[sd_notify::NotifyState::Watchdog]).ok();
            self.watchdog_ms = now.boottime_ms.saturating_add(u64::try_from(interval.as_millis()).unwrap_or(u64::MAX));
        }
    }

    fn pause(&self, now: Now) -> Duration {
        let free = |lane: usize| self.lanes.get(lane).is_some_and(Lane::is_free);
        let next = self.schedule.next_ms(free).unwrap_or(u64::MAX);
        let next = if self.pending.is_empty() { next } else { next.min(self.retry_ms) };
        let next = if self.watchdog.is_some() { next.min(self.watchdog_ms) } else { next };
        let next = next.min(self.look_at_disk_ms.unwrap_or(u64::MAX));
        Duration::from_millis(next.saturating_sub(now.boottime_ms)).min(TURN_MAX)
    }

    /// Hands over to each free lane what is due there, all at once.
    fn start_due(&mut self, now: Now) {
        for index in 0..self.lanes.len() {
            if !self.lanes.get(index).is_some_and(Lane::is_free) {
                continue;
            }
            let mut jobs = Vec::new();
            for subject in self.schedule.start_due(now.boottime_ms, index, BATCH_JOBS_MAX) {
                match self.slots.get_mut(&subject).and_then(|slot| slot.probe.take()) {
                    Some(probe) => {
                        let context = Context { now, services: Arc::clone(&self.services), one_shot: false };
                        jobs.push(Job { probe, context });
                    }
                    None => self.schedule.finished(now.boottime_ms, &subject),
                }
            }
            if jobs.is_empty() {
                continue;
            }
            if let Some(Err(jobs)) = self.lanes.get_mut(index).map(|lane| lane.start_all(jobs)) {
                for Job { probe, .. } in jobs {
                    self.schedule.finished(now.boottime_ms, probe.subject());
                    self.come_back(probe);
                }
            }
        }
    }

    fn judge_late(&mut self, now: Now) {
        let late = self.schedule.late(now.boottime_ms);
        let mut waited = BTreeSet::new();
        for late in late.iter().filter(|late| late.first && late.hung) {
            let plan = self.schedule.plan(&late.subject);
            let Some(lane) = plan.and_then(|plan| self.lanes.get_mut(plan.lane)) else { continue };
            let left = lane.replace();
            waited.extend(left.iter().map(|job| job.probe.subject().clone()));
            self.put_back(now, left);
        }
        // Those behind the one that hangs are not late by themselves.
        for late in late.iter().filter(|late| !waited.contains(&late.subject)) {
            if late.first && late.hung {
                let hung_threads: usize = self.lanes.iter().map(Lane::hung).sum();
                tracing::warn!(subject = %late.subject, hung_threads, "a probe gives no answer");
            }
            let gone = |slot: &Slot| matches!(slot.successor, Some(None));
            if !self.slots.get(&late.subject).is_some_and(gone) {
                self.observe(now, &late.subject, late_judgement(late));
            }
        }
    }

    fn finish(&mut self, done: Done) {
        let now = crate::clock::now();
        let subject = done.subject();
        if let Some(lane) = self.lanes.get_mut(done.lane) {
            let left = lane.finished(&done);
            self.put_back(now, left);
        }
        self.schedule.finished(now.boottime_ms, &subject);
        if !self.come_back(done.probe) {
            return;
        }
        tracing::debug!(%subject, verdict = done.judgement.verdict().as_str(), took = ?done.took, "probed");
        if self.observe(now, &subject, done.judgement) {
            self.note_probe(&subject);
        }
    }

    /// Runs that were handed over and have not begun: they are due still.
    fn put_back(&mut self, now: Now, jobs: Vec<Job>) {
        for Job { probe, .. } in jobs {
            self.schedule.put_back(now.boottime_ms, probe.subject());
            self.come_back(probe);
        }
    }

    /// A probe is back, or what takes its place; false when nothing does.
    fn come_back(&mut self, probe: Box<dyn Probe>) -> bool {
        let subject = probe.subject().clone();
        let Some(slot) = self.slots.get_mut(&subject) else { return false };
        let probe = match slot.successor.take() {
            None => probe,
            Some(Some(mut successor)) => {
                if let Some(saved) = probe.save() {
                    successor.restore(saved);
                }
                successor
            }
            Some(None) => {
                self.slots.remove(&subject);
                self.schedule.remove(&subject);
                return false;
            }
        };
        self.watcher.arm(&subject, probe.wake());
        if let Some(soon) = probe.again_in() {
            self.schedule.again_in(crate::clock::now().boottime_ms, &subject, soon);
        }
        slot.probe = Some(probe);
        slot.unsaved = true;
        true
    }

    /// A cursor goes into the transaction of the events that it led to, and else into the next of all.
    fn note_probe(&mut self, subject: &SubjectKey) {
        if let Some(slot) = self.slots.get_mut(subject)
            && let Some(probe) = &slot.probe
        {
            self.memory.note_probe(subject, probe.save());
            slot.unsaved = false;
        }
    }

    fn save_all(&mut self, now: Now) {
        for (subject, slot) in self.slots.iter_mut().filter(|(_, slot)| slot.unsaved) {
            // One that runs has its turn when it is back.
            if let Some(probe) = &slot.probe {
                self.memory.note_probe(subject, probe.save());
                slot.unsaved = false;
            }
        }
        self.saved_ms = now.boottime_ms;
        self.save(now);
        // Once a minute, and after a start or a reload, which need most.
        crate::heap::give_back();
        if now.boottime_ms >= self.forget_ms {
            self.forget_ms = now.boottime_ms.saturating_add(FORGET_INTERVAL_MS);
            crate::heap::forget_the_start();
        }
    }

    /// True when there is something to tell.
    fn observe(&mut self, now: Now, subject: &SubjectKey, mut judgement: Judgement) -> bool {
        // The cause may come after what it explains: look at the service's process again.
        for service in self.memory.recent.note(now, subject, &judgement) {
            self.services.lock().unwrap_or_else(PoisonError::into_inner).note_kill(&service, now.boottime_ms);
            let processes = self.slots.keys().filter(|other| other.service == service);
            let tells_end =
                |other: &&SubjectKey| matches!(other.probe, ProbeKind::PidFile | ProbeKind::Process | ProbeKind::Unit);
            let processes: Vec<_> = processes.filter(tells_end).cloned().collect();
            for process in processes {
                self.schedule.wake(now.boottime_ms, &process);
            }
        }
        if absence::matters(&judgement) {
            let has_process = self.services.lock().unwrap_or_else(PoisonError::into_inner).runs(&subject.service);
            // What this very look found is not in the ledger yet.
            let own = judgement.problems.iter().map(|problem| problem.reason);
            let own =
                absence::sign(subject.probe, judgement.verdict(), own, has_process, None).map(|sign| (subject, sign));
            let seen = self.memory.ledger.of_service(&subject.service).filter_map(|seen| {
                let reasons = seen.open.iter().map(|finding| finding.key.reason);
                Some((seen.subject, absence::sign(seen.subject.probe, seen.verdict, reasons, has_process, None)?))
            });
            let seen: Vec<_> = seen.chain(own).collect();
            absence::tell(&mut judgement, seen.into_iter());
        }
        if subject.probe == ProbeKind::Memory {
            self.outlet.memory_probed(muster_agent_core::memory::available_bytes(&judgement.seen));
        }
        self.memory.recent.explain(now, subject, &mut judgement);
        {
            let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
            self.memory.recent.tell(&services, subject, &mut judgement);
            executable::tell(&services, subject, &mut judgement);
            for service in services.take_fresh() {
                let program = SubjectKey::new(service, ProbeKind::Process, executable::SUBJECT);
                self.schedule.wake(now.boottime_ms, &program);
            }
        }
        let changes = self.memory.observe(now, subject, &judgement);
        let news = !changes.is_empty();
        self.tell(changes);
        news
    }

    fn tell(&mut self, changes: Vec<Change>) {
        for Change { event, observed_boottime_ms } in changes {
            log(&event);
            if self.pending.len() == PENDING_EVENTS_MAX {
                self.pending.pop_front();
                self.dropped_events += 1;
                tracing::error!(dropped = self.dropped_events, "the spool cannot write and the queue is full");
            }
            self.pending.push_back(Append { event, observed_boottime_ms });
            if !self.spool_fails {
                self.retry_ms = 0;
            }
        }
    }

    /// Events and memory in one transaction: a crash between them would tell twice or never.
    fn save(&mut self, now: Now) {
        self.memory.note_services(&mut self.services.lock().unwrap_or_else(PoisonError::into_inner));
        match self.outlet.append(self.pending.make_contiguous(), &mut self.memory, now) {
            Ok(head_sequence) => {
                self.pending.clear();
                self.answer_reports(&Ok(head_sequence));
                if std::mem::take(&mut self.spool_fails) {
                    tracing::info!("the spool can be written again");
                    sd_notify::notify(&[sd_notify::NotifyState::Status("")]).ok();
                }
            }
            Err(SpoolError::TooLarge(bytes)) => {
                let before = self.pending.len();
                self.pending.retain(|append| crate::spool::fits(&append.event));
                self.dropped_events += u64::try_from(before - self.pending.len()).unwrap_or(u64::MAX);
                tracing::error!(bytes, dropped = self.dropped_events, "a finding too large to be told was dropped");
                self.retry_ms = now.boottime_ms;
            }
            Err(error) => {
                self.answer_reports(&Err(format!("kept in memory until the spool can be written: {}", Chain(&error))));
                // Once a second would bury the rest of the log, and fill the disk that is full.
                if !std::mem::replace(&mut self.spool_fails, true) {
                    tracing::error!(waiting = self.pending.len(), "cannot write the spool: {}", Chain(&error));
                    sd_notify::notify(&[sd_notify::NotifyState::Status("cannot write the spool; findings wait")]).ok();
                }
                self.retry_ms = now.boottime_ms.saturating_add(RETRY_SPOOL_MS);
            }
        }
    }
}

/// Does it on a thread of a moment, which nothing restricts: who needs it waits, and this loop does not.
fn help(work: Work) {
    let started = std::thread::Builder::new().name("probe-help".to_owned()).spawn(work);
    if let Err(error) = started {
        tracing::error!(%error, "cannot start a thread that helps a probe; it answers without");
    }
}

fn late_judgement(late: &Late) -> Judgement {
    let length = human_duration(late.late_for);
    if late.hung {
        let way_out = "see whether the host is overloaded (uptime; cat /proc/pressure/*), or a file system or device under \
                       the subject hangs: ps -eo pid,stat,wchan:32,comm | grep ' D'";
        Judgement::unknown(format!("no answer within {length}"), Some(way_out))
    } else {
        Judgement::unknown(format!("not asked for {length}: other probes hang"), None)
    }
}

fn log(event: &FindingEvent) {
    let key = event.key();
    match event {
        FindingEvent::Opened(finding) => {
            tracing::warn!(%key, severity = %finding.severity, "opened: {}", finding.summary)
        }
        FindingEvent::Updated(finding) => {
            tracing::info!(%key, severity = %finding.severity, "updated: {}", whole_story(finding));
        }
        FindingEvent::Cleared { summary, .. } => tracing::info!(%key, "cleared: {summary}"),
        // A first start, a new build: to be known, no reason to warn.
        FindingEvent::Occurred(finding) if finding.severity == Severity::Sev4 => {
            tracing::info!(%key, severity = %finding.severity, "occurred: {}", finding.summary);
        }
        FindingEvent::Occurred(finding) => {
            tracing::warn!(%key, severity = %finding.severity, "occurred: {}", finding.summary);
        }
    }
}

/// The diagnosis, where it says more than the summary: what is news of a finding is often in there alone.
fn whole_story(finding: &Finding) -> String {
    match finding.evidence.get("diagnosis") {
        Some(Value::Text(diagnosis)) if diagnosis.starts_with(&finding.summary) => diagnosis.clone(),
        Some(Value::Text(diagnosis)) => format!("{} ({diagnosis})", finding.summary),
        _ => finding.summary.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::lanes::tests::fake;
    use super::*;
    use muster_agent_core::judgement::Problem;
    use muster_agent_core::schedule::Plan;
    use muster_common::evidence::Evidence;
    use muster_common::finding::FindingKey;
    use muster_common::ids::BootId;
    use muster_common::limits::ENTRY_BODY_BYTES_MAX;
    use muster_common::reason::Reason;
    use std::sync::mpsc::channel;

    /// Keeps what it is given.
    #[derive(Default)]
    struct Kept(Vec<FindingEvent>);

    impl StateOutlet for Kept {
        fn append(&mut self, events: &[Append], _memory: &mut Memory, _now: Now) -> Result<u64, SpoolError> {
            if events.iter().any(|append| !crate::spool::fits(&append.event)) {
                return Err(SpoolError::TooLarge(0));
            }
            self.0.extend(events.iter().map(|append| append.event.clone()));
            Ok(0)
        }
    }

    fn judge() -> Judge<Kept> {
        let memory = Memory::new(BootId(uuid::Uuid::nil()));
        Judge::new(memory, Kept::default(), Watcher::new().unwrap()).unwrap()
    }

    fn planned(name: &str, answer: impl FnMut() -> Judgement + Send + 'static) -> Planned {
        let length = Duration::from_secs(3600);
        Planned { probe: fake(name, answer), plan: Plan { lane: 0, interval: length, deadline: length, place: None } }
    }

    #[test]
    fn a_run_that_ends_while_a_reload_or_stop_is_asked_for_brings_its_probe_back() {
        for (wish, expected) in [(Wish::Reload, Asked::Reload), (Wish::Stop, Asked::Stop)] {
            let mut judge = judge();
            judge.watch(vec![planned("a", Judgement::default)], Duration::MAX);
            judge.start_due(crate::clock::now());
            // Rings once the run is over.
            assert_eq!(judge.watcher.wait(Duration::from_secs(60)), Woken::default());
            assert_eq!(judge.take_in(Woken { wish: Some(wish), ..Woken::default() }), Some(expected));
            assert!(judge.slots.values().all(|slot| slot.probe.is_some()), "the probe is back");
            assert!(judge.lanes.iter().all(Lane::is_free));
        }
    }

    #[test]
    fn an_update_says_what_is_new() {
        let key = FindingKey {
            subject: planned("a", Judgement::default).probe.subject().clone(),
            reason: Reason::ProcessDown,
        };
        let down = Finding::new(key, "spl ended");
        assert_eq!(whole_story(&down), "spl ended");
        let told = |diagnosis: &str| whole_story(&down.clone().evidence(Evidence::new().text("diagnosis", diagnosis)));
        assert_eq!(
            told("spl ended; hub.db passed its check since then"),
            "spl ended; hub.db passed its check since then"
        );
        assert_eq!(told("the kernel killed spl"), "spl ended (the kernel killed spl)");
    }

    #[test]
    fn a_finding_too_large_for_the_spool_is_dropped_and_the_others_are_told() {
        let mut judge = judge();
        for name in ["a", "b"] {
            let subject = planned(name, Judgement::default).probe.subject().clone();
            let down = Judgement::problem(Problem::new(Reason::ProcessDown, "x"));
            judge.observe(crate::clock::now(), &subject, down);
        }
        let large = judge.pending.front_mut().map(|append| &mut append.event);
        let Some(FindingEvent::Opened(finding)) = large else { panic!("a condition opens") };
        finding.summary = "x".repeat(ENTRY_BODY_BYTES_MAX);
        judge.save(crate::clock::now());
        judge.save(crate::clock::now());
        assert_eq!((judge.outlet.0.len(), judge.dropped_events), (1, 1));
        assert!(judge.pending.is_empty());
    }

    #[test]
    fn a_run_that_hangs_after_its_subject_is_gone_frees_its_lane_and_tells_nothing() {
        let mut judge = judge();
        let (release, released) = channel::<()>();
        let hang = move || {
            let _gone = released.recv().is_err();
            Judgement::default()
        };
        judge.watch(vec![planned("a", hang)], Duration::ZERO);
        let now = crate::clock::now();
        judge.start_due(now);
        judge.watch(Vec::new(), Duration::ZERO);
        judge.judge_late(Now { boottime_ms: now.boottime_ms + 7_200_000, ..now });
        assert!(judge.lanes.iter().all(Lane::is_free), "another thread took its place");
        assert!(judge.pending.is_empty() && judge.outlet.0.is_empty());
        drop(release);
        let done = judge.inbox.recv().expect("the run ends");
        judge.finish(done);
        assert!(judge.slots.is_empty() && judge.lanes.iter().all(|lane| lane.hung() == 0));
        assert_eq!(judge.schedule.next_ms(|_| true), None);
    }
}

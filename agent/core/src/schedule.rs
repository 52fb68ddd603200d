//! When is which probe due, and what hangs. Sans I/O: the runtime asks what to start and tells what finished.
//!
//! A probe that hangs is never started a second time; each interval it counts as one run without an answer. A probe
//! that waits behind hung ones for longer than its interval is told as well: silence is no verdict. Of a file system
//! whose server may be gone one probe hangs, not all: the others wait until that one is back.

use muster_common::finding::{FindingKey, SubjectKey};
use muster_common::reason::Reason;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How often, for how long at most, and on which lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Index of the lane (thread) it runs on.
    pub lane: usize,
    /// From one run to the next.
    pub interval: Duration,
    /// After this a run counts as hung.
    pub deadline: Duration,
    /// What it may hang together with others on, as a number: a file system of another machine or program.
    pub place: Option<u64>,
}

/// A run that gave no answer when one was due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Late {
    /// Which probe.
    pub subject: SubjectKey,
    /// For how long it has been running, or waiting for its lane.
    pub late_for: Duration,
    /// True when the run itself hangs, false when it waits for a lane that does not move.
    pub hung: bool,
    /// Told for the first time in this run.
    pub first: bool,
}

/// All probes of this host.
#[derive(Debug, Clone, Default)]
pub struct Schedule {
    slots: BTreeMap<SubjectKey, Slot>,
}

#[derive(Debug, Clone)]
struct Slot {
    plan: Plan,
    due_ms: u64,
    started_ms: Option<u64>,
    tell_late_ms: u64,
    late_told: bool,
    again: bool,
    /// Due because something happened, not because its time came.
    woken: bool,
}

/// Probes of the same interval run together, so that they share wake-ups and what they read; those of a longer interval
/// than this are the dear ones, and are spread.
const TOGETHER_UP_TO_MS: u64 = 60_000;
/// The moments to which the others are spread: those at which the common ones run anyway.
const PHASE_STEP_MS: u64 = 5_000;

impl Schedule {
    /// Adds a probe, due at once; replaces one of the same subject that does not run (see [`Schedule::replan`]).
    pub fn add(&mut self, now_ms: u64, subject: SubjectKey, plan: Plan) {
        let slot = Slot {
            plan,
            due_ms: now_ms,
            started_ms: None,
            tell_late_ms: late_waiting(now_ms, plan),
            late_told: false,
            again: false,
            woken: false,
        };
        self.slots.insert(subject, slot);
    }

    /// Forgets a probe.
    pub fn remove(&mut self, subject: &SubjectKey) {
        self.slots.remove(subject);
    }

    /// The probe of a free lane that goes next, now counted as running: what happened goes before what is merely due,
    /// then the most overdue.
    pub fn start_next(&mut self, now_ms: u64, lane: usize) -> Option<SubjectKey> {
        self.start_due(now_ms, lane, 1).pop()
    }

    /// As [`Schedule::start_next`], up to `at_most` of them at once, in their order.
    pub fn start_due(&mut self, now_ms: u64, lane: usize, at_most: usize) -> Vec<SubjectKey> {
        let hanging = self.hanging_places();
        let due = |slot: &&mut Slot| {
            let is_due = slot.plan.lane == lane && slot.started_ms.is_none() && slot.due_ms <= now_ms;
            is_due && slot.plan.place.is_none_or(|place| !hanging.contains(&place))
        };
        let mut waiting: Vec<_> = self.slots.iter_mut().filter(|(_, slot)| due(slot)).collect();
        waiting.sort_by_key(|(_, slot)| (!slot.woken, slot.due_ms));
        let start = |(subject, slot): (&SubjectKey, &mut Slot)| {
            slot.started_ms = Some(now_ms);
            slot.woken = false;
            slot.tell_late_ms = now_ms.saturating_add(ms(slot.plan.deadline));
            slot.late_told = false;
            subject.clone()
        };
        waiting.into_iter().take(at_most).map(start).collect()
    }

    /// A run is over, in time or not; the next is due at the subject's place in its interval.
    pub fn finished(&mut self, now_ms: u64, subject: &SubjectKey) {
        let Some(slot) = self.slots.get_mut(subject) else { return };
        slot.started_ms = None;
        slot.late_told = false;
        slot.woken = std::mem::take(&mut slot.again);
        slot.due_ms = if slot.woken { now_ms } else { next_place(now_ms, subject, slot.plan) };
        slot.tell_late_ms = late_waiting(slot.due_ms, slot.plan);
    }

    /// A run that was started has not begun and will not: it is due still.
    pub fn put_back(&mut self, now_ms: u64, subject: &SubjectKey) {
        let Some(slot) = self.slots.get_mut(subject) else { return };
        slot.started_ms = None;
        slot.late_told = false;
        slot.woken |= std::mem::take(&mut slot.again);
        slot.due_ms = slot.due_ms.min(now_ms);
        slot.tell_late_ms = late_waiting(slot.due_ms, slot.plan);
    }

    /// Something happened that makes a run worth it now; if one is under way, another follows.
    pub fn wake(&mut self, now_ms: u64, subject: &SubjectKey) {
        let Some(slot) = self.slots.get_mut(subject) else { return };
        if slot.started_ms.is_some() {
            slot.again = true;
            return;
        }
        slot.woken = true;
        if slot.due_ms > now_ms {
            slot.due_ms = now_ms;
            slot.tell_late_ms = late_waiting(now_ms, slot.plan);
        }
    }

    /// The next run is due in `soon`, if it was to be later.
    pub fn again_in(&mut self, now_ms: u64, subject: &SubjectKey, soon: Duration) {
        let at_ms = now_ms.saturating_add(ms(soon));
        if let Some(slot) = self.slots.get_mut(subject).filter(|slot| slot.started_ms.is_none() && slot.due_ms > at_ms)
        {
            slot.due_ms = at_ms;
            slot.tell_late_ms = late_waiting(at_ms, slot.plan);
        }
    }

    /// The probes that owe an answer, each told once past its deadline and then once per interval.
    pub fn late(&mut self, now_ms: u64) -> Vec<Late> {
        let mut late = Vec::new();
        for (subject, slot) in self.slots.iter_mut().filter(|(_, slot)| slot.tell_late_ms <= now_ms) {
            let since_ms = slot.started_ms.unwrap_or(slot.due_ms);
            late.push(Late {
                subject: subject.clone(),
                late_for: Duration::from_millis(now_ms.saturating_sub(since_ms)),
                hung: slot.started_ms.is_some(),
                first: !std::mem::replace(&mut slot.late_told, true),
            });
            slot.tell_late_ms = now_ms.saturating_add(ms(slot.plan.interval).max(1));
        }
        late
    }

    /// When something is due next; probes of lanes for which `lane_free` says no are waited for, not looked at again.
    pub fn next_ms(&self, lane_free: impl Fn(usize) -> bool) -> Option<u64> {
        let hanging = self.hanging_places();
        self.slots
            .values()
            .map(|slot| {
                let waits_for_place = slot.plan.place.is_some_and(|place| hanging.contains(&place));
                let starts = slot.started_ms.is_none() && lane_free(slot.plan.lane) && !waits_for_place;
                if starts { slot.due_ms.min(slot.tell_late_ms) } else { slot.tell_late_ms }
            })
            .min()
    }

    /// Where a run was told to hang and has not come back.
    fn hanging_places(&self) -> BTreeSet<u64> {
        let hangs = |slot: &&Slot| slot.started_ms.is_some() && slot.late_told;
        self.slots.values().filter(hangs).filter_map(|slot| slot.plan.place).collect()
    }

    /// True while a run is under way.
    pub fn is_running(&self, subject: &SubjectKey) -> bool {
        self.slots.get(subject).is_some_and(|slot| slot.started_ms.is_some())
    }

    /// Changes the plan of a probe, from its next run on.
    pub fn replan(&mut self, subject: &SubjectKey, plan: Plan) {
        if let Some(slot) = self.slots.get_mut(subject) {
            slot.plan = plan;
        }
    }

    /// The plan of a probe.
    pub fn plan(&self, subject: &SubjectKey) -> Option<Plan> {
        self.slots.get(subject).map(|slot| slot.plan)
    }
}

/// Waiting is worth a word after a whole interval and deadline.
fn late_waiting(due_ms: u64, plan: Plan) -> u64 {
    due_ms.saturating_add(ms(plan.interval)).saturating_add(ms(plan.deadline)).saturating_add(1)
}

/// The next moment of the interval, or of the subject's own phase of it.
fn next_place(now_ms: u64, subject: &SubjectKey, plan: Plan) -> u64 {
    let interval_ms = ms(plan.interval).max(1);
    let phase_ms = if interval_ms <= TOGETHER_UP_TO_MS {
        0
    } else {
        // Any hash will do that is the same in every build; the reason plays no part.
        let draw = FindingKey { subject: subject.clone(), reason: Reason::Change }.digest_term();
        draw % interval_ms / PHASE_STEP_MS * PHASE_STEP_MS
    };
    let rounds = now_ms.saturating_sub(phase_ms) / interval_ms;
    let next = phase_ms.saturating_add(rounds.saturating_add(1).saturating_mul(interval_ms));
    if next.saturating_sub(interval_ms) > now_ms { next.saturating_sub(interval_ms) } else { next }
}

fn ms(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::finding::ProbeKind;
    use muster_common::ids::ServiceName;

    fn subject(name: &str) -> SubjectKey {
        SubjectKey::new(ServiceName::host(), ProbeKind::Port, name)
    }

    fn plan(lane: usize) -> Plan {
        Plan { lane, interval: Duration::from_secs(5), deadline: Duration::from_secs(1), place: None }
    }

    #[test]
    fn a_run_that_is_wanted_soon_comes_before_its_interval_and_the_interval_goes_on() {
        let mut schedule = Schedule::default();
        schedule.add(0, subject("a"), plan(0));
        assert!(schedule.start_next(0, 0).is_some());
        schedule.finished(10, &subject("a"));
        schedule.again_in(10, &subject("a"), Duration::from_secs(60));
        assert_eq!(schedule.next_ms(|_| true), Some(5_000), "later than its interval is not sooner");
        schedule.again_in(10, &subject("a"), Duration::from_millis(200));
        assert_eq!(schedule.next_ms(|_| true), Some(210));
        assert!(schedule.start_next(209, 0).is_none() && schedule.start_next(210, 0).is_some());
        schedule.finished(220, &subject("a"));
        assert_eq!(schedule.next_ms(|_| true), Some(5_000));
    }

    #[test]
    fn runs_at_once_and_then_in_its_own_phase() {
        let mut schedule = Schedule::default();
        let a = subject("a");
        schedule.add(100_300, a.clone(), plan(0));
        assert_eq!(schedule.start_next(100_300, 1), None);
        assert_eq!(schedule.start_next(100_300, 0), Some(a.clone()));
        assert_eq!(schedule.start_next(100_300, 0), None);
        schedule.finished(100_301, &a);
        let first = schedule.next_ms(|_| true).unwrap();
        assert!((100_302..=105_301).contains(&first), "{first}");
        assert_eq!(schedule.start_next(first - 1, 0), None);
        assert_eq!(schedule.start_next(first, 0), Some(a.clone()));
        schedule.finished(first + 2, &a);
        assert_eq!(schedule.next_ms(|_| true), Some(first + 5_000));
    }

    #[test]
    fn a_hung_probe_is_told_each_interval_and_never_started_twice() {
        let mut schedule = Schedule::default();
        let (a, b) = (subject("a"), subject("b"));
        schedule.add(0, a.clone(), plan(0));
        assert_eq!(schedule.start_next(0, 0), Some(a.clone()));
        assert!(schedule.late(999).is_empty());
        let late = schedule.late(1_000);
        assert!(late[0].hung && late[0].first, "{late:?}");
        assert!(schedule.late(1_001).is_empty());
        let late = schedule.late(6_000);
        assert!(late[0].hung && !late[0].first);
        assert_eq!(late[0].late_for, Duration::from_secs(6));
        assert_eq!(schedule.start_next(60_000, 0), None);
        // Another probe of the lane that is not served is told as waiting.
        schedule.add(60_000, b.clone(), plan(0));
        let late = schedule.late(66_001);
        assert!(late.iter().any(|late| late.subject == b && !late.hung), "{late:?}");
        schedule.finished(70_000, &a);
        assert!(schedule.next_ms(|_| true).unwrap() <= 75_000);
    }

    #[test]
    fn a_wake_runs_now_or_right_after() {
        let mut schedule = Schedule::default();
        let a = subject("a");
        schedule.add(0, a.clone(), plan(0));
        schedule.start_next(0, 0);
        schedule.wake(1, &a);
        schedule.finished(2, &a);
        assert_eq!(schedule.start_next(2, 0), Some(a.clone()));
        schedule.finished(3, &a);
        assert_eq!(schedule.start_next(3, 0), None);
        schedule.wake(4, &a);
        assert_eq!(schedule.start_next(4, 0), Some(a));
    }

    #[test]
    fn a_run_that_was_put_back_is_due_still() {
        let mut schedule = Schedule::default();
        let a = subject("a");
        schedule.add(0, a.clone(), plan(0));
        schedule.start_next(0, 0);
        schedule.wake(1, &a);
        schedule.put_back(2, &a);
        assert!(!schedule.is_running(&a));
        assert!(schedule.late(1_500).is_empty(), "it does not hang");
        assert_eq!(schedule.start_next(1_500, 0), Some(a.clone()));
        schedule.finished(1_501, &a);
        assert_eq!(schedule.start_next(1_501, 0), None, "once is enough");
    }

    #[test]
    fn the_most_overdue_goes_first() {
        let mut schedule = Schedule::default();
        schedule.add(10, subject("late"), plan(0));
        schedule.add(5, subject("later"), plan(0));
        assert_eq!(schedule.start_next(20, 0), Some(subject("later")));
        assert_eq!(schedule.start_next(20, 0), Some(subject("late")));
    }

    #[test]
    fn what_happened_goes_before_what_is_due() {
        let mut schedule = Schedule::default();
        schedule.add(5, subject("due"), plan(0));
        schedule.add(10, subject("woken"), plan(0));
        schedule.wake(20, &subject("woken"));
        assert_eq!(schedule.start_next(20, 0), Some(subject("woken")));
        assert_eq!(schedule.start_next(20, 0), Some(subject("due")));
    }

    #[test]
    fn probes_of_one_short_interval_run_together() {
        let place = |name| next_place(12_345, &subject(name), plan(0));
        assert_eq!((place("a"), place("b")), (15_000, 15_000));
    }

    proptest::proptest! {
        #[test]
        fn the_next_place_is_within_one_interval(now_ms in 0u64..1 << 50, name: String, interval_s in 1u64..100_000) {
            let plan = Plan { interval: Duration::from_secs(interval_s), ..plan(0) };
            let next = next_place(now_ms, &subject(&name), plan);
            proptest::prop_assert!(next > now_ms && next <= now_ms + interval_s * 1000);
        }
    }

    #[test]
    fn of_a_place_that_hangs_one_probe_is_asked_and_the_others_go_on() {
        let mut schedule = Schedule::default();
        let remote = |lane| Plan { place: Some(7), ..plan(lane) };
        for (name, plan) in [("a", remote(0)), ("b", remote(0)), ("c", remote(1)), ("near", plan(0))] {
            schedule.add(0, subject(name), plan);
        }
        assert_eq!(schedule.start_next(0, 0), Some(subject("a")));
        assert!(schedule.late(2_000).iter().any(|late| late.hung && late.subject == subject("a")));
        // Its lane has another thread by now.
        assert_eq!(schedule.start_next(2_000, 0), Some(subject("near")));
        schedule.finished(2_000, &subject("near"));
        assert_eq!(schedule.start_next(2_000, 0), None);
        assert_eq!(schedule.start_next(2_000, 1), None, "on no lane");
        assert!(schedule.next_ms(|_| true) > Some(2_000), "nothing is waited for that cannot start");
        let late: Vec<_> = schedule.late(7_000).into_iter().filter(|late| !late.hung).collect();
        assert_eq!(late.len(), 2, "b and c are told as not asked: {late:?}");
        schedule.finished(8_000, &subject("a"));
        assert_eq!(schedule.start_next(8_000, 0), Some(subject("b")));
    }
}

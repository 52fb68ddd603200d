//! Looks in, verdicts out.

use super::*;
use crate::judgement::Verdict;
use muster_common::time::Timestamp;

const FILE: FileId = FileId { major: 254, minor: 0, inode: 9 };
const LIMITS: Limits = Limits { max_wait: Duration::from_secs(10), max_hold: None };

fn party(pid: u32, switches: Option<u64>) -> Party {
    let process = ProcessId { pid, start_ticks: 1 };
    Party { process, comm: format!("p{pid}"), activity: Activity::Sleeping, service: None, switches }
}

/// Held by the process 1; each waiter is (pid, switches).
fn queue(waiters: &[(u32, Option<u64>)]) -> Queue {
    Queue {
        file: FILE,
        path: Some("/run/spl.lock".into()),
        class: Class::Flock,
        mode: Mode::Write,
        holder: Holder::Process(party(1, None)),
        waiters: waiters.iter().map(|(pid, switches)| party(*pid, *switches)).collect(),
        unnamed_waiters: 0,
        ring: Vec::new(),
    }
}

fn at(seconds: u64) -> Now {
    Now { boottime_ms: seconds * 1000, wall: Timestamp::UNIX_EPOCH }
}

fn look(judge: &mut LockJudge, seconds: u64, queue: Queue) -> Judgement {
    judge.judge(&Reading { queues: vec![queue], cut: false }, &LIMITS, &at(seconds), false)
}

/// When, who waits and since when, and whether it is told.
type Look<'a> = (u64, &'a [(u32, Option<u64>)], bool);

/// (second, waiters, is it a problem).
fn check(looks: &[Look<'_>]) {
    let mut judge = LockJudge::default();
    for (seconds, waiters, expected) in looks {
        let judgement = look(&mut judge, *seconds, queue(waiters));
        assert_eq!(!judgement.problems.is_empty(), *expected, "at {seconds} s of {looks:?}");
        let saved = serde_json::to_string(&judge).unwrap();
        judge = serde_json::from_str(&saved).unwrap();
    }
}

#[test]
fn a_short_wait_is_normal_and_a_long_one_is_not() {
    let same: &[(u32, Option<u64>)] = &[(2, Some(7))];
    check(&[(0, same, false), (5, same, false), (10, same, true), (15, same, true), (20, &[], false)]);
    check(&[(0, same, false), (3600, same, true)]);
}

#[test]
fn a_waiter_that_slept_anew_waits_anew() {
    check(&[(0, &[(2, Some(7))], false), (10, &[(2, Some(8))], false), (20, &[(2, Some(8))], true)]);
    // The first of two moves on, the second does not.
    let both: &[(u32, Option<u64>)] = &[(2, Some(7)), (3, Some(1))];
    check(&[(0, both, false), (10, &[(2, Some(8)), (3, Some(1))], true)]);
}

#[test]
fn what_was_told_clears_only_well_below_the_threshold() {
    let first: &[(u32, Option<u64>)] = &[(2, Some(7))];
    let later: &[(u32, Option<u64>)] = &[(2, Some(7)), (3, Some(1))];
    let rest: &[(u32, Option<u64>)] = &[(3, Some(1))];
    check(&[(0, first, false), (10, later, true), (15, rest, true), (20, rest, true)]);
    check(&[(0, first, false), (10, first, true), (12, rest, false), (17, rest, false), (22, rest, true)]);
}

#[test]
fn without_a_count_of_sleeps_another_holder_means_that_it_moves() {
    let mut judge = LockJudge::default();
    let waiting = || queue(&[(2, None)]);
    assert!(look(&mut judge, 0, waiting()).problems.is_empty());
    let moved = Queue { holder: Holder::Process(party(5, None)), ..waiting() };
    assert!(look(&mut judge, 10, moved.clone()).problems.is_empty());
    let judgement = look(&mut judge, 20, moved);
    assert_eq!(judgement.problems[0].grade, Grade::Likely);
    assert_eq!(judge.waited(FILE, ProcessId { pid: 2, start_ticks: 1 }, &at(20)), Duration::from_secs(10));
}

#[test]
fn the_sentence_names_holder_waiters_and_why() {
    let mut judge = LockJudge::default();
    let mut stopped = queue(&[(2, Some(7)), (3, Some(7)), (4, Some(7))]);
    if let Holder::Process(party) = &mut stopped.holder {
        party.activity = Activity::Stopped;
    }
    look(&mut judge, 0, stopped.clone());
    let problem = look(&mut judge, 45, stopped.clone()).problems.remove(0);
    assert_eq!(
        problem.summary,
        "p2 (pid 2), p3 (pid 3) and 1 more have been waiting for at least 45 s for the flock on /run/spl.lock: p1 (pid \
         1) holds it, and is stopped (by a signal or a debugger) and lets go of nothing until it is continued"
    );
    let evidence = &problem.evidence;
    for (key, value) in [("pid", "1"), ("start_ticks", "1"), ("waiter_pid", "2"), ("waited_ms", "45 s"), ("inode", "9")]
    {
        assert_eq!(evidence.get(key).unwrap().to_string(), value, "{key}");
    }
    assert!(problem.next_steps.iter().any(|step| step.contains("kill -CONT 1")));
    // One look suffices for a stopped holder, and for nothing else.
    let once = |queue| LockJudge::default().judge(&Reading { queues: vec![queue], cut: false }, &LIMITS, &at(1), true);
    assert_eq!(once(stopped).problems.len(), 1);
    let unsure = once(queue(&[(2, Some(7))]));
    assert_eq!(unsure.verdict(), Verdict::Ok);
    assert!(unsure.seen.get("how_long").is_some() && unsure.seen.get("held_ms").is_none());
}

#[test]
fn a_ring_is_told_at_once_when_no_thread_is_left_to_end_it() {
    let ring = |switches| Queue { ring: vec![party(2, switches), party(1, switches)], ..queue(&[(2, switches)]) };
    let mut judge = LockJudge::default();
    assert!(look(&mut judge, 0, ring(Some(3))).problems.is_empty());
    let problem = look(&mut judge, 1, ring(Some(3))).problems.remove(0);
    assert_eq!(
        problem.summary,
        "deadlock at /run/spl.lock: p2 (pid 2) waits for p1 (pid 1) waits for p2 (pid 2) again; none of them can go on \
         by itself"
    );
    assert_eq!(problem.grade, Grade::Confirmed);
    let mut judge = LockJudge::default();
    look(&mut judge, 0, ring(None));
    assert!(look(&mut judge, 1, ring(None)).problems.is_empty(), "another thread may let go");
    assert!(look(&mut judge, 10, ring(None)).problems[0].summary.contains("been waiting"));
}

#[test]
fn a_hold_is_too_long_only_where_a_bound_is_set() {
    let limits = Limits { max_hold: Some(Duration::from_secs(60)), ..LIMITS };
    let hold = |judge: &mut LockJudge, seconds, limits: &Limits| {
        judge.judge(&Reading { queues: vec![queue(&[])], cut: false }, limits, &at(seconds), false)
    };
    let mut judge = LockJudge::default();
    assert!(hold(&mut judge, 0, &limits).problems.is_empty());
    assert!(hold(&mut judge, 60, &limits).problems.is_empty());
    assert!(hold(&mut judge, 3600, &LIMITS).problems.is_empty());
    let problem = hold(&mut judge, 3600, &limits).problems.remove(0);
    assert_eq!(
        problem.summary,
        "p1 (pid 1) has held the flock on /run/spl.lock for at least 60 min; 60 s is the most it should be held"
    );
}

#[test]
fn who_cannot_be_named_is_said_to_be_unknown() {
    let unnamed = Queue {
        class: Class::Ofd,
        holder: Holder::Unknown("OFD locks have no pid"),
        waiters: Vec::new(),
        unnamed_waiters: 2,
        ..queue(&[])
    };
    let mut judge = LockJudge::default();
    look(&mut judge, 0, unnamed.clone());
    let problem = look(&mut judge, 10, unnamed).problems.remove(0);
    assert_eq!(
        problem.summary,
        "2 processes that the kernel does not name have been waiting for at least 10 s for the OFD lock on \
         /run/spl.lock: an unknown process (OFD locks have no pid) holds it"
    );
    assert_eq!((problem.grade, problem.evidence.get("pid")), (Grade::Likely, None));
}

#[test]
fn a_table_that_was_cut_is_no_evidence_of_health() {
    let judgement = LockJudge::default().judge(&Reading { queues: vec![], cut: true }, &LIMITS, &at(1), false);
    assert_eq!(judgement.verdict(), Verdict::Unknown);
}

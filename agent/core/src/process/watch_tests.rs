//! Scenarios of a main process: its end, its descriptors, its children.

use super::*;
use crate::judgement::Verdict;
use crate::process::exit::ExitStatus;
use muster_common::time::Timestamp;

const MINUTE_MS: u64 = 60_000;
const RULES: ProcessRules = ProcessRules {
    open_files_percent: 90,
    memory_growth: GrowthRules { window: Duration::from_secs(6 * 3600), by_at_least: 64 << 20, by_percent: 10 },
    zombie_children: 3,
    tells_end: true,
};

fn at(boottime_ms: u64) -> Now {
    Now { boottime_ms, wall: Timestamp::UNIX_EPOCH }
}

fn instance(pid: u32) -> Instance {
    Instance {
        process: ProcessId { pid, start_ticks: 100 },
        comm: "spl".into(),
        exe: None,
        cgroup: None,
        first_seen_boottime_ms: 1_000,
        ended_boottime_ms: None,
    }
}

fn usage(open: u64, own_bytes: u64) -> Usage {
    Usage {
        status: Status { rss_bytes: Some(own_bytes), anon_bytes: Some(own_bytes), ..Status::default() },
        limits: Limits { open_files: Some(1000), ..Limits::default() },
        open_files: Ok(open),
        children: None,
        oom_score_adj: Some(0),
        room: Some(Room {
            name: "memory.max of /system.slice/spl.service".into(),
            limit_bytes: 3 << 30,
            left_bytes: 2 << 30,
        }),
    }
}

fn with_zombies(pids: &[u32]) -> Life {
    let zombies: Vec<_> =
        pids.iter().map(|pid| (ProcessId { pid: *pid, start_ticks: 5 }, "worker".to_owned())).collect();
    let zombie_count = zombies.len() as u64;
    let children =
        Children { count: 9, zombies: zombies.into_iter().take(ZOMBIES_MAX).collect(), zombie_count, cut: false };
    Life::Alive(Box::new(Usage { children: Some(Ok(children)), ..usage(1, 1) }))
}

/// What is told of one process, run after run.
fn told(rules: &ProcessRules, step_ms: u64, lives: impl IntoIterator<Item = Life>) -> Vec<Vec<Reason>> {
    let mut judge = ProcessJudge::default();
    let mut now_ms = 10_000;
    let mut all = Vec::new();
    for life in lives {
        now_ms += step_ms;
        let judgement = judge.judge(rules, &instance(7), 1_000, &life, at(now_ms), false);
        all.push(judgement.problems.iter().map(|problem| problem.reason).collect());
        // Every step survives a restart of the agent.
        let files = judge.files.clone();
        judge = serde_json::from_str(&serde_json::to_string(&judge).unwrap()).unwrap();
        judge.files = files;
    }
    all
}

fn reasons(judgement: &Judgement) -> Vec<Reason> {
    judgement.problems.iter().map(|problem| problem.reason).collect()
}

#[test]
fn open_files_are_told_at_the_threshold_and_cleared_below_it() {
    let lives = [899, 900, 870, 851, 849, 899].map(|open| Life::Alive(Box::new(usage(open, 1))));
    let fd = vec![Reason::FdExhaustion];
    assert_eq!(told(&RULES, 5_000, lives), [vec![], fd.clone(), fd.clone(), fd, vec![], vec![]]);
    // No limit, nothing to run out of; no count, nothing to say.
    let mut unlimited = usage(1_000_000, 1);
    unlimited.limits.open_files = None;
    let mut judge = ProcessJudge::default();
    let judgement = judge.judge(&RULES, &instance(7), 0, &Life::Alive(Box::new(unlimited)), at(9), false);
    assert_eq!(judgement.verdict(), Verdict::Ok);
    let blind = Usage { open_files: Err(Blind { why: "denied".into(), way_out: "a capability" }), ..usage(1, 1) };
    let blind = Life::Alive(Box::new(blind));
    assert_eq!(judge.judge(&RULES, &instance(7), 0, &blind, at(9), false).verdict(), Verdict::Ok);
    let doctor = judge.judge(&RULES, &instance(7), 0, &blind, at(9), true);
    assert_eq!(doctor.unknown.unwrap().way_out.as_deref(), Some("a capability"));
}

#[test]
fn a_leak_of_files_is_told_an_hour_before_none_is_left() {
    // 200 an hour from 250 on, of 1000.
    let lives = (0..200u64).map(|minute| Life::Alive(Box::new(usage(250 + minute * 200 / 60, 1))));
    let all = told(&RULES, MINUTE_MS, lives);
    let first = all.iter().position(|reasons| !reasons.is_empty()).unwrap();
    assert!((160..=175).contains(&first), "{first}");
    assert!(all.iter().skip(first).all(|reasons| *reasons == [Reason::FdExhaustion]));
    let mut judge = ProcessJudge::default();
    let mut last = Judgement::default();
    for minute in 0..180u64 {
        let life = Life::Alive(Box::new(usage(250 + minute * 200 / 60, 1)));
        last = judge.judge(&RULES, &instance(7), 1_000, &life, at(10_000 + minute * MINUTE_MS), false);
    }
    let summary = &last.problems[0].summary;
    assert!(summary.contains("846 of 1000 files open (84 %), 2") && summary.contains("none is left in 4"), "{summary}");
}

#[test]
fn memory_growth_names_slope_limit_and_time() {
    let mut judge = ProcessJudge::default();
    let mut last = Judgement::default();
    for minute in 0..450u64 {
        let life = Life::Alive(Box::new(usage(1, (300 + minute) << 20)));
        last = judge.judge(&RULES, &instance(7), 1_000, &life, at(minute * MINUTE_MS), false);
    }
    assert_eq!(reasons(&last), [Reason::MemoryGrowth]);
    let summary = &last.problems[0].summary;
    let words = "holds 749 MiB, 60 MiB more every hour for ";
    assert!(summary.contains(words), "{summary}");
    assert!(summary.contains("reaches memory.max of /system.slice/spl.service (3 GiB) in 34 h"), "{summary}");
    // Another instance starts anew.
    let other = Life::Alive(Box::new(usage(1, 900 << 20)));
    assert!(reasons(&judge.judge(&RULES, &instance(8), 1_000, &other, at(451 * MINUTE_MS), false)).is_empty());
}

#[test]
fn only_zombies_that_stay_are_told() {
    let zombies = vec![Reason::ZombieChildren];
    for (name, looks, expected) in [
        // Reaped between two looks, however many.
        ("churn", vec![vec![1, 2, 3, 4], vec![5, 6, 7, 8], vec![9, 10, 11]], vec![vec![], vec![], vec![]]),
        ("few", vec![vec![1, 2], vec![1, 2], vec![1, 2]], vec![vec![], vec![], vec![]]),
        (
            "stay, then half, then none",
            vec![vec![1, 2, 3], vec![1, 2, 3, 4], vec![1, 2], vec![2], vec![]],
            vec![vec![], zombies.clone(), zombies.clone(), vec![], vec![]],
        ),
    ] {
        assert_eq!(told(&RULES, MINUTE_MS, looks.iter().map(|pids| with_zombies(pids))), expected, "{name}");
    }
    // Between two looks what was found stands; doctor looks once and says that it is likely.
    let between = [with_zombies(&[1, 2, 3]), with_zombies(&[1, 2, 3]), Life::Alive(Box::new(usage(1, 1)))];
    assert_eq!(told(&RULES, MINUTE_MS, between)[2], zombies);
    let many: Vec<u32> = (1..=200).collect();
    let doctor = ProcessJudge::default().judge(&RULES, &instance(7), 0, &with_zombies(&many), at(9), true);
    let problem = &doctor.problems[0];
    assert_eq!((problem.grade, problem.evidence.get("zombie_children")), (Grade::Likely, Some(&Value::Count(200))));
    assert!(problem.summary.contains("worker"), "{}", problem.summary);
}

#[test]
fn the_end_is_told_once_by_who_owns_it() {
    let known = |status| Exit::Known { status, source: "kernel".into() };
    let killed = known(ExitStatus::Signal { signal: 9, core_dumped: false });
    let done = known(ExitStatus::Code(0));
    let asked = known(ExitStatus::Signal { signal: 15, core_dumped: false });
    let failed = known(ExitStatus::Code(1));
    let down = vec![Reason::ProcessDown];
    let both = vec![Reason::ProcessDown, Reason::ProcessZombie];
    let not_ours = ProcessRules { tells_end: false, ..RULES };
    for (name, rules, lives, expected) in [
        (
            "zombie, then reaped",
            RULES,
            vec![Life::Zombie(Exit::Pending), Life::Gone(killed.clone())],
            vec![down.clone(); 2],
        ),
        ("zombie that stays", RULES, vec![Life::Zombie(Exit::Pending); 2], vec![down.clone(), both]),
        ("success is for the unit to judge", RULES, vec![Life::Gone(done)], vec![vec![]]),
        ("so is a polite stop", RULES, vec![Life::Gone(asked)], vec![vec![]]),
        ("an error code", RULES, vec![Life::Gone(failed)], vec![down.clone()]),
        (
            "the pid file tells",
            not_ours,
            vec![Life::Zombie(Exit::Pending), Life::Gone(killed.clone())],
            vec![vec![]; 2],
        ),
        // What was told is not forgotten by a later run that knows less.
        ("told stays told", RULES, vec![Life::Gone(killed), Life::Gone(Exit::Unknown("x".into()))], vec![down; 2]),
    ] {
        assert_eq!(told(&rules, 5_000, lives), expected, "{name}");
    }
    let mut judge = ProcessJudge::default();
    let gone = Life::Gone(known(ExitStatus::Signal { signal: 11, core_dumped: true }));
    judge.judge(&RULES, &instance(7), 1_000, &gone, at(61_000), false);
    let later = judge.judge(&RULES, &instance(7), 1_000, &Life::Gone(Exit::Unknown("x".into())), at(71_000), false);
    let problem = &later.problems[0];
    let start =
        "spl (pid 7) ended at 00:00:00Z by SIGSEGV (it crashed on memory that is not its own, a core was dumped); it";
    assert!(problem.summary.starts_with(start), "{}", problem.summary);
    assert_eq!(problem.evidence.get("lifetime_ms"), Some(&Value::Millis(60_000)));
    // A successor clears it.
    let alive = Life::Alive(Box::new(usage(1, 1)));
    assert!(reasons(&judge.judge(&RULES, &instance(8), 70_000, &alive, at(72_000), false)).is_empty());
}

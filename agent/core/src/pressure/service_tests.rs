//! Scenarios of a service and the memory limits of its cgroup.

use super::*;
use crate::judgement::Verdict;
use crate::pressure::psi::Stall;
use muster_common::evidence::Value;
use muster_common::time::Timestamp;

const GIB: u64 = 1 << 30;
const OWN: &str = "/system.slice/spl.service";
const RULES: PressureRules =
    PressureRules { stalls: StallRules { some_percent: 20, full_percent: 5 }, limit_percent: 90 };

fn at(boottime_ms: u64) -> Now {
    Now { boottime_ms, wall: Timestamp::UNIX_EPOCH }
}

fn level(path: &str, limit: u64, usage_bytes: u64, cache: u64) -> Level {
    Level {
        path: path.to_owned(),
        limits: vec![Limit { name: "memory.max", bytes: limit }],
        usage_bytes,
        reclaimable_bytes: Some(cache),
        counters: Counters { oom: Some(0), high: Some(0), max: Some(0), oom_kill: Some(0), stopped: false },
    }
}

fn reading(levels: Vec<Level>) -> Reading {
    let counters = levels.first().map(|level| level.counters).unwrap_or_default();
    Reading { cgroup: OWN.to_owned(), of_one_service: true, counters, levels, psi: None, log_is_open: true }
}

#[test]
fn what_cannot_be_given_back_counts_and_the_margin_holds() {
    let mut judge = ServiceJudge::default();
    let mut told = String::new();
    for (used, cache) in [
        (3 * GIB, 2 * GIB),      // full of page cache: well
        (3 * GIB, GIB / 2),      // 83 %
        (3 * GIB, GIB / 10),     // 96 %
        (3 * GIB, GIB * 4 / 10), // 86 %: within the margin
        (3 * GIB, GIB / 2),      // 83 %
    ] {
        let judgement = judge.judge(&RULES, "spl", &reading(vec![level(OWN, 3 * GIB, used, cache)]), at(9), false);
        told.push(if judgement.verdict() == Verdict::Ok { '.' } else { '!' });
        judge = serde_json::from_str(&serde_json::to_string(&judge).unwrap()).unwrap();
    }
    assert_eq!(told, "..!!.");
}

#[test]
fn the_sentence_names_limit_and_hits() {
    let mut judge = ServiceJudge::default();
    let mut at_high = level(OWN, 4 * GIB, 2970 * (GIB / 1024), 60 * (GIB / 1024));
    at_high.limits.push(Limit { name: "memory.high", bytes: 3 * GIB });
    judge.judge(&RULES, "spl", &reading(vec![at_high.clone()]), at(1_000), false);
    at_high.counters.high = Some(812);
    let judgement = judge.judge(&RULES, "spl", &reading(vec![at_high.clone()]), at(56_000), false);
    assert_eq!(
        judgement.problems[0].summary,
        "spl uses 2.9 GiB of its limit 3 GiB (memory.high of /system.slice/spl.service), 2.8 GiB of it cannot be given \
         back, hit memory.high 812 times in the last minute"
    );
    assert_eq!(judgement.problems[0].evidence.get("hit_high_last_minute"), Some(&Value::Count(812)));
    // A minute later none of it is new.
    let later = judge.judge(&RULES, "spl", &reading(vec![at_high]), at(118_000), false);
    assert_eq!(later.problems[0].evidence.get("hit_high_last_minute"), Some(&Value::Count(0)));
}

#[test]
fn the_limit_of_a_slice_above_counts() {
    let levels = vec![level(OWN, 8 * GIB, GIB, 0), level("/system.slice", 4 * GIB, 3994 * (GIB / 1024), 0)];
    let judgement = ServiceJudge::default().judge(&RULES, "spl", &reading(levels), at(1), true);
    let summary = &judgement.problems[0].summary;
    assert!(summary.starts_with("spl is in /system.slice, which uses 3.9 GiB of its limit 4 GiB"), "{summary}");
    assert_eq!(judgement.seen.get("limit_cgroup"), Some(&Value::Text("/system.slice".into())));
    // No limit at all is well, and said.
    let free = ServiceJudge::default().judge(&RULES, "spl", &reading(Vec::new()), at(1), true);
    assert_eq!((free.verdict(), free.seen.get("limit").is_some()), (Verdict::Ok, true));
}

#[test]
fn stalls_inside_the_cgroup_and_running_out_are_told() {
    let mut judge = ServiceJudge::default();
    let stalls = Psi { some: Stall { avg10: 3000, avg60: 3400, total_us: 0 }, full: Stall::default() };
    let stalling = Reading { psi: Some(stalls), ..reading(Vec::new()) };
    let judgement = judge.judge(&RULES, "spl", &stalling, at(1), false);
    assert_eq!(
        judgement.problems[0].summary,
        "spl: some process waited for memory 34 % of the last minute, all at once 0 %"
    );
    let mut out = level(OWN, 3 * GIB, GIB, 0);
    judge.judge(&RULES, "spl", &reading(vec![out.clone()]), at(2), false);
    out.counters.oom = Some(1);
    let judgement = judge.judge(&RULES, "spl", &reading(vec![out.clone()]), at(3), false);
    assert!(judgement.problems[0].summary.ends_with("; it ran out of memory"));
    assert_eq!(judge.judge(&RULES, "spl", &reading(vec![out.clone()]), at(70_000), false).verdict(), Verdict::Ok);
    out.counters.stopped = true;
    let judgement = judge.judge(&RULES, "spl", &reading(vec![out]), at(70_001), false);
    assert_eq!(judgement.problems[0].severity, Some(Severity::Sev2));
}

#[test]
fn a_kill_is_told_once_and_only_where_the_kernels_log_is_closed() {
    let with = |kills, log_is_open, of_one_service| {
        let mut level = level(OWN, 3 * GIB, GIB, 0);
        level.counters.oom_kill = Some(kills);
        Reading { log_is_open, of_one_service, ..reading(vec![level]) }
    };
    for (name, one_shot, readings, expected) in [
        ("what was before is history", false, vec![with(5, false, true), with(5, false, true)], vec![0, 0]),
        ("once", false, vec![with(5, false, true), with(7, false, true), with(7, false, true)], vec![0, 2, 0]),
        ("the log tells", false, vec![with(5, true, true), with(7, true, true)], vec![0, 0]),
        ("a shared cgroup is nobody's", false, vec![with(5, false, false), with(7, false, false)], vec![0, 0]),
        ("made anew", false, vec![with(5, false, true), with(1, false, true)], vec![0, 1]),
        ("doctor", true, vec![with(2, false, true)], vec![2]),
    ] {
        let mut judge = ServiceJudge::default();
        let mut told = Vec::new();
        for reading in readings {
            let judgement = judge.judge(&RULES, "spl", &reading, at(1), one_shot);
            told.push(judgement.occurrences.first().map_or(0, |kill| {
                assert_eq!((kill.reason, kill.grade), (Reason::OomKill, Grade::Likely));
                match kill.evidence.get("kills") {
                    Some(Value::Count(kills)) => *kills,
                    _ => 99,
                }
            }));
            judge = serde_json::from_str(&serde_json::to_string(&judge).unwrap()).unwrap();
        }
        assert_eq!(told, expected, "{name}");
    }
}

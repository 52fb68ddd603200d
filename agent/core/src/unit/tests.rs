//! Readings in, verdicts out.

use super::*;
use muster_common::time::Timestamp;

const UNIT: &str = "spl.service";

fn at(boottime_ms: u64) -> Now {
    Now { boottime_ms, wall: Timestamp::from_unix_ms(1_700_000_000_000 + i64::try_from(boottime_ms).unwrap()) }
}

/// A state from `name=value` words; numbers and yes/no are typed, the rest is text.
fn set(state: &mut UnitState, words: &str) {
    for word in words.split_whitespace() {
        let (name, value) = word.split_once('=').unwrap();
        let property = match (value, value.parse()) {
            ("yes", _) => Property::Flag(true),
            ("no", _) if name != "Restart" => Property::Flag(false),
            (_, Ok(number)) => Property::Number(number),
            _ if name == "TriggeredBy" => Property::List(vec![Property::Text(value.to_owned())]),
            _ => Property::Text(value.to_owned()),
        };
        assert!(state.set(name, &property), "{word}");
    }
    state.settle();
}

fn state(words: &str) -> UnitState {
    let mut state = UnitState::default();
    set(&mut state, "LoadState=loaded Type=simple Restart=on-failure StartLimitBurst=5");
    set(&mut state, words);
    state
}

fn life(pid: u64, start_s: u64, exit_s: u64, code: u64, status: u64) -> String {
    format!(
        "ExecMainPID={pid} ExecMainStartTimestampMonotonic={} ExecMainExitTimestampMonotonic={} ExecMainCode={code} \
         ExecMainStatus={status}",
        start_s * 1_000_000,
        exit_s * 1_000_000
    )
}

fn shown(judgement: &Judgement) -> String {
    if let Some(unknown) = &judgement.unknown {
        return format!("unknown: {}", unknown.why);
    }
    match judgement.problems.as_slice() {
        [] => "ok".to_owned(),
        [problem] => {
            let severity = problem.severity.unwrap_or(problem.reason.default_severity());
            format!("{severity} {}: {}", problem.reason, problem.summary)
        }
        _ => panic!("{judgement:?}"),
    }
}

fn judge(judge: &mut UnitJudge, unit: &str, state: &UnitState, now_s: u64, options: Options) -> Judgement {
    judge.judge(unit, state, None, (at(now_s * 1000), 0), (false, options))
}

/// One look at a unit that was never seen before.
#[track_caller]
fn check(unit: &str, words: &str, expected: &str) {
    let judgement = judge(&mut UnitJudge::default(), unit, &state(words), 1_000, Options::default());
    assert_eq!(shown(&judgement), expected, "{words}");
}

#[test]
fn services() {
    let since = "StateChangeTimestampMonotonic=880000000 ActiveEnterTimestampMonotonic=1000000";
    let with = |words: &str| format!("{since} {words}");
    check(UNIT, &with("ActiveState=active SubState=running Result=success MainPID=7"), "ok");
    let failed = with("ActiveState=failed SubState=failed Result=exit-code");
    check(
        UNIT,
        &format!("{failed} {}", life(7, 100, 880, 1, 3)),
        "sev2 unit_failed: spl.service has failed (2023-11-14 22:28 UTC): its main process exited with status 3",
    );
    check(
        UNIT,
        &failed,
        "sev2 unit_failed: spl.service has failed (2023-11-14 22:28 UTC): a command that runs before its main process failed \
         (ExecStartPre=, or ExecStart= of Type=forking)",
    );
    check(
        UNIT,
        &format!("{failed} Result=oom-kill {}", life(7, 100, 880, 2, 9)),
        "sev2 unit_failed: spl.service has failed (2023-11-14 22:28 UTC): the OOM killer killed a process of it",
    );
    check(
        UNIT,
        &format!("{failed} Result=watchdog"),
        "sev2 unit_failed: spl.service has failed (2023-11-14 22:28 UTC): it did not report to its watchdog in time",
    );
    check(
        UNIT,
        &format!("{failed} NRestarts=4 {}", life(7, 100, 880, 1, 1)),
        "sev2 unit_failed: spl.service has failed (2023-11-14 22:28 UTC): its main process exited with status 1; systemd gave up \
         after 4 automatic restarts (start limit)",
    );
    check(
        UNIT,
        &format!("{failed} Result=start-limit-hit"),
        "sev2 unit_failed: spl.service has failed (2023-11-14 22:28 UTC): it was started too often; systemd gave up: it was started \
         too often (start limit)",
    );
    check(
        UNIT,
        &with("ActiveState=inactive SubState=dead Result=success"),
        "sev2 unit_inactive: spl.service is not running (since 2023-11-14 22:28 UTC); it was stopped",
    );
    check(
        UNIT,
        &with("ActiveState=inactive SubState=dead LoadState=masked UnitFileState=masked"),
        "sev3 unit_inactive: spl.service is not running (since 2023-11-14 22:28 UTC); it is masked, so that nothing can start it",
    );
    check(
        UNIT,
        "ActiveState=inactive SubState=dead UnitFileState=disabled",
        "sev2 unit_inactive: spl.service is not running; systemd remembers no start: there was none since this host booted, or \
         it was stopped and forgotten; it is disabled: the \
         next boot will not start it either",
    );
    check(
        UNIT,
        &with("ActiveState=activating SubState=auto-restart Result=signal NRestarts=2").replace("880", "980"),
        "sev2 unit_inactive: spl.service is down and waits for its automatic restart (since 2023-11-14 22:29 UTC): systemd tells the result \
         \"signal\"",
    );
    check(UNIT, &with("ActiveState=activating SubState=start").replace("880", "980"), "ok");
    check(
        UNIT,
        &with("ActiveState=inactive SubState=dead ConditionResult=no ConditionTimestampMonotonic=880000000"),
        "sev2 unit_inactive: spl.service is not running (since 2023-11-14 22:28 UTC); a condition of its file was not met when it was \
         last to be started",
    );
    check(
        UNIT,
        &with("ActiveState=activating SubState=start").replace("880", "600"),
        "sev3 unit_stuck: spl.service has been starting for 6 min (state start), longer than 5 min",
    );
    check(
        UNIT,
        "ActiveState=inactive SubState=dead LoadState=not-found",
        "sev3 unit_missing: spl.service does not exist on this host",
    );
    check(UNIT, "ActiveState=dreaming", "unknown: spl.service is in a state that is not known here: \"dreaming\"");
}

#[test]
fn what_is_not_meant_to_run_all_the_time() {
    check("job.service", "Type=oneshot ActiveState=inactive SubState=dead Result=success", "ok");
    check("job.service", "Type=oneshot ActiveState=activating SubState=start StateChangeTimestampMonotonic=1", "ok");
    check("ssh.service", "ActiveState=inactive SubState=dead TriggeredBy=ssh.socket", "ok");
    check("ssh.socket", "ActiveState=active SubState=listening", "ok");
    check(
        "job.timer",
        "ActiveState=inactive SubState=dead",
        "sev2 unit_inactive: job.timer is stopped: it will start nothing; systemd remembers no start: there was none since this host booted, or it was stopped and forgotten",
    );
    let options = Options { may_be_inactive: true, ..Options::default() };
    let off = state("ActiveState=inactive SubState=dead");
    assert_eq!(shown(&judge(&mut UnitJudge::default(), UNIT, &off, 1_000, options)), "ok");
    check(
        "job.service",
        "Type=oneshot ActiveState=failed SubState=failed Result=timeout",
        "sev2 unit_failed: job.service has failed: it did not start or stop in time",
    );
}

fn failed_at(second: u64) -> UnitState {
    state(&format!("ActiveState=failed Result=signal StateChangeTimestampMonotonic={}", second * 1_000_000))
}

#[test]
fn a_restart_by_hand_passes_without_a_problem() {
    let mut unit_judge = UnitJudge::default();
    let mut look = |words: &str, now_s: u64| {
        let change = format!(" StateChangeTimestampMonotonic={}", now_s * 1_000_000);
        shown(&judge(&mut unit_judge, UNIT, &state(&(words.to_owned() + &change)), now_s + 1, Options::default()))
    };
    for words in [
        "ActiveState=active SubState=running",
        "ActiveState=deactivating SubState=stop-sigterm",
        "ActiveState=inactive SubState=dead",
        "ActiveState=activating SubState=start",
        "ActiveState=active SubState=running",
    ] {
        assert_eq!(look(words, 500), "ok", "{words}");
    }
    // On its way to an automatic restart it has failed for a moment.
    assert_eq!(judge(&mut UnitJudge::default(), UNIT, &failed_at(600), 600, Options::default()).problems, []);
    assert_eq!(judge(&mut UnitJudge::default(), UNIT, &failed_at(600), 601, Options::default()).problems.len(), 1);
    // What failed is not well again because somebody tries.
    for words in ["ActiveState=failed Result=timeout", "ActiveState=activating SubState=start"] {
        assert!(look(words, 600).starts_with("sev2 unit_failed"), "{words}");
    }
    assert_eq!(look("ActiveState=active SubState=running", 700), "ok");
    assert_eq!(look("ActiveState=activating SubState=start", 800), "ok");
}

#[test]
fn each_restart_is_told_once_with_how_the_old_process_ended() {
    let mut unit_judge = UnitJudge::default();
    let mut unit = state("ActiveState=active SubState=running NRestarts=0");
    set(&mut unit, &life(7, 100, 0, 0, 0));
    let mut look = |unit: &UnitState, pid: u32, start_ticks: u64| {
        let process = MainProcess { process: ProcessId { pid, start_ticks }, comm: "spl".to_owned() };
        let now = (at(1_000_000), 0);
        unit_judge.judge(UNIT, unit, Some(&process), now, (false, Options::default())).occurrences
    };
    assert_eq!(look(&unit, 7, 10_000), []);
    set(&mut unit, &life(7, 100, 400, 2, 9));
    set(&mut unit, "NRestarts=1");
    set(&mut unit, &life(8, 401, 0, 0, 0));
    let told = look(&unit, 8, 40_100);
    let [restart] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(
        restart.summary,
        "spl.service was restarted by systemd: pid 8 follows pid 7, which was killed by SIGKILL (9)"
    );
    for (key, value) in [
        ("old_start_ticks", Value::Count(10_000)),
        ("new_start_ticks", Value::Count(40_100)),
        ("old_lifetime_ms", Value::Millis(300_000)),
        ("gap_ms", Value::Millis(1_000)),
        ("exit_signal", Value::Text("SIGKILL".into())),
        ("automatic", Value::Flag(true)),
    ] {
        assert_eq!(restart.evidence.get(key), Some(&value), "{key}");
    }
    assert_eq!(look(&unit, 8, 40_100), []);
    // Two more between two looks, the second one by hand.
    set(&mut unit, &life(8, 401, 402, 1, 1));
    set(&mut unit, &format!("NRestarts=2 {}", life(9, 403, 404, 1, 0)));
    set(&mut unit, &format!("NRestarts=0 {}", life(10, 405, 0, 0, 0)));
    let told: Vec<String> = look(&unit, 10, 40_500).into_iter().map(|restart| restart.summary).collect();
    assert_eq!(
        told,
        [
            "spl.service was restarted by systemd: pid 9 follows pid 8, which exited with status 1",
            "spl.service was restarted on request: pid 10 follows pid 9, which exited with status 0",
        ]
    );
}

#[test]
fn a_restart_of_the_agent_forgets_no_life_and_tells_none_twice() {
    let mut unit_judge = UnitJudge::default();
    let unit = state(&format!("ActiveState=active {}", life(7, 100, 0, 0, 0)));
    judge(&mut unit_judge, UNIT, &unit, 500, Options::default());
    let saved = serde_json::to_value(&unit_judge).unwrap();
    let mut restored: UnitJudge = serde_json::from_value(saved).unwrap();
    assert_eq!(judge(&mut restored, UNIT, &unit, 600, Options::default()).occurrences, []);
    let next = state(&format!("ActiveState=active {}", life(9, 700, 0, 0, 0)));
    let told = judge(&mut restored, UNIT, &next, 800, Options::default()).occurrences;
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].evidence.get("gap").is_some());
    restored.rebooted();
    assert_eq!(judge(&mut restored, UNIT, &unit, 900, Options::default()).occurrences, []);
}

#[test]
fn a_oneshots_runs_are_no_restarts() {
    let mut unit_judge = UnitJudge::default();
    for pid in 1..5 {
        let unit = state(&format!("Type=oneshot ActiveState=inactive {}", life(pid, pid * 10, pid * 10 + 1, 1, 0)));
        assert_eq!(judge(&mut unit_judge, "job.service", &unit, 100, Options::default()).occurrences, []);
    }
}

/// systemd unloads a unit that nobody needs, and an agent that was restarted is told of it as of one that never ran.
#[test]
fn what_was_told_of_a_unit_survives_a_restart_of_the_agent() {
    let running = "ActiveState=active SubState=running ActiveEnterTimestampMonotonic=100000000";
    let stopped = "ActiveState=inactive SubState=dead Result=success ActiveEnterTimestampMonotonic=100000000 \
                   StateChangeTimestampMonotonic=880000000";
    let forgotten = state("ActiveState=inactive SubState=dead");
    let restarted =
        |known: &UnitJudge| -> UnitJudge { serde_json::from_str(&serde_json::to_string(known).unwrap()).unwrap() };
    let look = |judge: &mut UnitJudge, state: &UnitState, now_s| {
        let judgement = self::judge(judge, UNIT, state, now_s, Options::default());
        judgement.problems.into_iter().next()
    };
    let mut before = UnitJudge::default();
    assert_eq!(look(&mut before, &state(&format!("{running} {}", life(7, 100, 0, 0, 0))), 500), None);
    let only_seen_running = restarted(&before);
    let told = look(&mut before, &state(&format!("{stopped} {}", life(7, 100, 880, 2, 15))), 1_000).unwrap();
    assert!(told.summary.ends_with("; it was stopped (SIGTERM)"), "{}", told.summary);
    // Word for word, so that there is nothing to tell.
    let mut after = restarted(&before);
    assert_eq!(look(&mut after, &forgotten, 1_010), Some(told.clone()));
    assert_eq!(look(&mut after, &forgotten, 1_015), Some(told));
    // Started again: that was it.
    assert_eq!(look(&mut after, &state(&format!("{running} {}", life(9, 1_020, 0, 0, 0))), 1_030), None);
    let mut after = only_seen_running;
    let told = look(&mut after, &forgotten, 1_010).unwrap();
    assert!(told.summary.contains("; it ran as pid 7 when it was last seen, and systemd has forgotten"), "{told:?}");
    let told = look(&mut UnitJudge::default(), &forgotten, 1_010).unwrap();
    assert!(told.summary.contains("systemd remembers no start"), "{told:?}");
}

//! Judges a systemd unit by what systemd says about it: failed and why, not there, not running, on its way for too long.
//!
//! A unit passes through `inactive` and `activating` on every restart by hand: what passes is neither a problem nor
//! evidence of health, so what was wrong before stays wrong until the unit has arrived.

mod state;

pub use state::{DOWN_GRACE, Exit, FAILED_GRACE, Life, Property, UnitState, signal_name, signal_words};

use crate::clock::Now;
use crate::diagnose::{PID_KEY, RESULT_KEY, START_TICKS_KEY};
use crate::judgement::{Judgement, Problem};
use muster_common::evidence::{Evidence, Grade, Value};
use muster_common::ids::ProcessId;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use muster_common::units::human_duration;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A unit that starts or stops for longer hangs. systemd's own limit is 90 s, where a unit has not switched it off.
pub const ACTIVATING_MAX_DEFAULT: Duration = Duration::from_secs(300);

/// What is expected of the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Starting or stopping for longer is a problem; `None`: [`ACTIVATING_MAX_DEFAULT`], and no bound for a oneshot,
    /// which is active only after its work.
    pub activating_max: Option<Duration>,
    /// The unit may be inactive: somebody or something starts it when it is needed.
    pub may_be_inactive: bool,
    /// Tell of restarts; false where another probe of the same service does.
    pub tell_restarts: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { activating_max: None, may_be_inactive: false, tell_restarts: true }
    }
}

/// The main process as `/proc` knows it, if it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MainProcess {
    /// (pid, start time).
    pub process: ProcessId,
    /// Its name.
    pub comm: String,
}

/// Judges a unit over time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UnitJudge {
    /// The newest life of which was told.
    known: Option<Life>,
    /// The start times of lives that were seen in `/proc`: (the life, its start in ticks).
    seen: Option<(Life, u64)>,
    /// The same of the life before.
    seen_before: Option<(Life, u64)>,
    /// What was wrong when the unit was last in a state to stay in.
    held: Option<Problem>,
    /// When its state changed last, by systemd's clock and by the wall clock, for people: taken once, so that a clock
    /// that is set later changes no sentence.
    #[serde(default)]
    state_from: Option<(u64, Timestamp)>,
}

/// One run's view.
struct View<'a> {
    unit: &'a str,
    state: &'a UnitState,
    /// Since when it is in its state, by the wall clock.
    in_state_from: Option<Timestamp>,
    now: Now,
    suspended_ms: u64,
    one_shot: bool,
    options: Options,
}

impl View<'_> {
    /// systemd's times do not run while the host is suspended. What happened before a suspension is told as later than
    /// it was, by the length of that suspension.
    fn boottime_ms(&self, monotonic_usec: u64) -> u64 {
        (monotonic_usec / 1000).saturating_add(self.suspended_ms).min(self.now.boottime_ms)
    }

    fn since(&self, monotonic_usec: u64) -> Duration {
        self.now.since(self.boottime_ms(monotonic_usec))
    }

    fn in_state(&self) -> Duration {
        self.since(self.state.state_change_usec)
    }

    /// ` (3 min ago)` for who looks now, ` (2026-11-21 01:44 UTC)` in what is kept and read later; nothing where systemd
    /// does not tell.
    fn ago_words(&self) -> String {
        self.in_state_words(|lasted| format!("{lasted} ago"), "")
    }

    /// ` (for 3 min)`, ` (since 2026-11-21 01:44 UTC)`; nothing where systemd does not tell.
    fn for_words(&self) -> String {
        self.in_state_words(|lasted| format!("for {lasted}"), "since ")
    }

    fn in_state_words(&self, lasted: fn(String) -> String, at: &str) -> String {
        match self.in_state_from {
            _ if self.state.state_change_usec == 0 => String::new(),
            Some(from) if !self.one_shot => format!(" ({at}{})", from.to_utc_minute()),
            _ => format!(" ({})", lasted(human_duration(self.in_state()))),
        }
    }
}

impl UnitJudge {
    /// One look at `unit`. `suspended_ms` is how long the host was suspended since it booted.
    pub fn judge(
        &mut self,
        unit: &str,
        state: &UnitState,
        process: Option<&MainProcess>,
        (now, suspended_ms): (Now, u64),
        (one_shot, options): (bool, Options),
    ) -> Judgement {
        let mut view = View { unit, state, in_state_from: None, now, suspended_ms, one_shot, options };
        let known = self.state_from.filter(|(usec, _)| *usec == state.state_change_usec);
        let (_, from) = *self.state_from.insert(known.unwrap_or((state.state_change_usec, now.wall - view.in_state())));
        view.in_state_from = Some(from);
        self.note_process(state, process);
        let evidence = self.evidence(&view, process);
        let mut judgement = self.condition(&view, &evidence);
        judgement.occurrences = self.restarts(&view);
        judgement
    }

    /// The host was rebooted: pids and times of before are another life's.
    pub fn rebooted(&mut self) {
        *self = Self::default();
    }

    fn note_process(&mut self, state: &UnitState, process: Option<&MainProcess>) {
        let (Some(life), Some(process)) = (state.newest(), process) else { return };
        let is_its = process.process.pid == life.pid && life.exit_usec == 0;
        if is_its && self.start_ticks(life).is_none() {
            self.seen_before = self.seen.take();
            self.seen = Some((*life, process.process.start_ticks));
        }
    }

    fn start_ticks(&self, life: &Life) -> Option<u64> {
        let seen = [self.seen.as_ref(), self.seen_before.as_ref()];
        seen.into_iter().flatten().find(|(known, _)| known.is_same(life)).map(|(_, ticks)| *ticks)
    }

    fn condition(&mut self, view: &View<'_>, evidence: &Evidence) -> Judgement {
        let problem = match self.verdict(view) {
            Found::Well => None,
            Found::Passing => self.held.clone(),
            Found::Wrong(problem) => Some(problem.evidence(evidence.clone())),
            Found::Unclear(why) => return Judgement { seen: evidence.clone(), ..Judgement::unknown(why, None) },
        };
        self.held.clone_from(&problem);
        Judgement { problems: problem.into_iter().collect(), seen: evidence.clone(), ..Judgement::default() }
    }

    fn verdict(&self, view: &View<'_>) -> Found {
        let View { unit, state, .. } = view;
        match state.load_state.as_str() {
            "not-found" => {
                let problem = Problem::new(Reason::UnitMissing, format!("{unit} does not exist on this host"));
                return Found::Wrong(problem.next_steps([
                    "look for its real name: systemctl list-units --all, systemctl list-unit-files".to_owned(),
                    "install the package it belongs to, or correct `unit` in the agent's config".to_owned(),
                ]));
            }
            "bad-setting" | "error" => {
                let why = if state.load_error.is_empty() { "its file is wrong" } else { state.load_error.as_str() };
                let problem = Problem::new(Reason::UnitMissing, format!("{unit} cannot be loaded by systemd: {why}"));
                let file = if state.fragment_path.is_empty() { unit } else { state.fragment_path.as_str() };
                return Found::Wrong(problem.next_steps([
                    format!("see what is wrong: systemd-analyze verify {file}"),
                    "correct the file, then: systemctl daemon-reload".to_owned(),
                ]));
            }
            _ => {}
        }
        match state.active_state.as_str() {
            "active" => Found::Well,
            "failed" if !view.one_shot && state.wants_restart() && view.in_state() < FAILED_GRACE => Found::Passing,
            "failed" => Found::Wrong(self.failed(view)),
            // Unloaded by systemd while nobody looked (a restart of the agent): what was told of it is all there is.
            "inactive" if self.holds_more(view) => Found::Passing,
            "inactive" => inactive(view, self.known.as_ref()),
            "reloading" | "refreshing" | "activating" | "deactivating" => passing(view),
            "maintenance" => Found::Passing,
            other => Found::Unclear(format!("{unit} is in a state that is not known here: {other:?}")),
        }
    }

    /// Whether systemd has forgotten what it had told of a unit that is not running, and still is not.
    fn holds_more(&self, view: &View<'_>) -> bool {
        let held = self.held.as_ref().is_some_and(|held| held.reason == Reason::UnitInactive);
        held && is_forgotten(view.state) && view.state.load_state != "masked"
    }

    fn failed(&self, view: &View<'_>) -> Problem {
        let View { unit, state, .. } = view;
        let gave_up = match gave_up(state) {
            Some(Grade::Confirmed) => "; systemd gave up: it was started too often (start limit)".to_owned(),
            Some(_) => format!(
                "; systemd gave up after {} automatic restarts (start limit)",
                state.n_restarts.unwrap_or_default()
            ),
            None => String::new(),
        };
        let why = result_words(state);
        let summary = format!("{unit} has failed{}: {why}{gave_up}", view.ago_words());
        let mut steps = vec![format!("see why: systemctl status {unit}; journalctl -u {unit} -b -e")];
        match state.result.as_str() {
            "oom-kill" => steps.push(format!(
                "compare its limit with what it needs: systemctl show {unit} -p MemoryMax -p MemoryHigh -p MemoryPeak"
            )),
            "watchdog" | "timeout" => {
                steps.push(format!("see its limits: systemctl show {unit} -p WatchdogUSec -p TimeoutStartUSec"));
            }
            "core-dump" => steps.push(format!("see where it crashed: coredumpctl info {unit}")),
            _ => {}
        }
        if state.need_daemon_reload {
            steps.push("its file was changed since systemd read it: systemctl daemon-reload".to_owned());
        }
        steps.push(format!(
            "once the cause is gone: systemctl reset-failed {unit} && systemctl start {unit}; its start clears this"
        ));
        let problem = Problem::new(Reason::UnitFailed, summary).next_steps(steps);
        let masked = state.load_state == "masked";
        if masked { problem.severity(Severity::Sev3) } else { problem }
    }

    fn evidence(&self, view: &View<'_>, process: Option<&MainProcess>) -> Evidence {
        let state = view.state;
        let mut evidence = Evidence::new().text("unit", view.unit);
        if state.load_state == "not-found" {
            return evidence.text("load_state", &state.load_state);
        }
        for (key, text) in [
            ("load_state", &state.load_state),
            ("active_state", &state.active_state),
            ("sub_state", &state.sub_state),
            (RESULT_KEY, &state.result),
            ("unit_file_state", &state.unit_file_state),
            ("unit_type", &state.kind),
            ("restart_policy", &state.restart),
            ("cgroup", &state.control_group),
            ("invocation_id", &state.invocation_id),
            ("fragment_path", &state.fragment_path),
        ] {
            if !text.is_empty() {
                evidence = evidence.text(key, text.as_str());
            }
        }
        if state.state_change_usec > 0 {
            evidence = evidence.duration("in_state_ms", view.in_state());
        }
        if let Some(n_restarts) = state.n_restarts {
            evidence = evidence.count("n_restarts", n_restarts);
        }
        if state.need_daemon_reload {
            evidence = evidence.flag("need_daemon_reload", true);
        }
        if !state.triggered_by.is_empty() {
            evidence = evidence.text("triggered_by", state.triggered_by.join(" "));
        }
        if state.was_skipped() {
            evidence = evidence.flag("condition_met", false);
        }
        if let Some(grade) = gave_up(state).filter(|_| state.active_state == "failed") {
            evidence = evidence.text("start_limit_hit", grade.as_str());
        }
        self.life_evidence(evidence, view, process)
    }

    fn life_evidence(&self, evidence: Evidence, view: &View<'_>, process: Option<&MainProcess>) -> Evidence {
        let mut evidence = evidence;
        if let Some(process) = process {
            evidence = evidence
                .count(PID_KEY, process.process.pid)
                .count(START_TICKS_KEY, process.process.start_ticks)
                .text("comm", &process.comm);
        }
        let Some(life) = view.state.newest() else { return evidence };
        if process.is_none() {
            evidence = evidence.count(PID_KEY, life.pid);
            if let Some(start_ticks) = self.start_ticks(life) {
                evidence = evidence.count(START_TICKS_KEY, start_ticks);
            }
        }
        match life.lifetime_ms() {
            Some(lifetime_ms) => {
                evidence = evidence
                    .duration("lifetime_ms", Duration::from_millis(lifetime_ms))
                    .duration("ended_ms_ago", view.since(life.exit_usec));
                exit_evidence(evidence, "exit_", life.exit)
            }
            None => evidence.duration("uptime_ms", view.since(life.start_usec)),
        }
    }

    /// What happened since the last run: each life that another one followed.
    fn restarts(&mut self, view: &View<'_>) -> Vec<Problem> {
        let state = view.state;
        let Some(newest) = state.newest().copied() else { return Vec::new() };
        let known = self.known.replace(newest);
        // A oneshot's runs are its work, not restarts.
        let (Some(known), false, true) = (known, state.is_oneshot(), view.options.tell_restarts) else {
            return Vec::new();
        };
        if known.is_same(&newest) || view.one_shot {
            return Vec::new();
        }
        let lives: Vec<Life> = state.lives().iter().copied().collect();
        let after = lives.iter().position(|life| life.is_same(&known)).map_or(0, |index| index + 1);
        // Its end came after it was last told of.
        let known = lives.iter().find(|life| life.is_same(&known)).copied().unwrap_or(known);
        let olds = std::iter::once(&known).chain(lives.get(after..).unwrap_or_default());
        let news = lives.get(after..).unwrap_or_default();
        olds.zip(news).map(|(old, new)| self.restarted(view, old, new)).collect()
    }

    fn restarted(&self, view: &View<'_>, old: &Life, new: &Life) -> Problem {
        let automatic = new.n_restarts > old.n_restarts;
        let by = if automatic { "by systemd" } else { "on request" };
        let ended = old.exit.map_or_else(String::new, |exit| format!(", which {}", exit.words()));
        let unit = view.unit;
        let summary = format!("{unit} was restarted {by}: pid {} follows pid {}{ended}", new.pid, old.pid);
        let mut evidence = Evidence::new()
            .text("unit", unit)
            .count("old_pid", old.pid)
            .count("new_pid", new.pid)
            .flag("automatic", automatic)
            .count("n_restarts", new.n_restarts);
        for (key, life) in [("old_start_ticks", old), ("new_start_ticks", new)] {
            if let Some(start_ticks) = self.start_ticks(life) {
                evidence = evidence.count(key, start_ticks);
            }
        }
        evidence = match old.lifetime_ms() {
            Some(lifetime_ms) => {
                let gap_ms = new.start_usec.saturating_sub(old.exit_usec) / 1000;
                evidence
                    .duration("old_lifetime_ms", Duration::from_millis(lifetime_ms))
                    .duration("gap_ms", Duration::from_millis(gap_ms))
            }
            None => evidence.text("gap", "unknown: the end of the old instance was not seen"),
        };
        let evidence = exit_evidence(evidence, "exit_", old.exit);
        let mut problem = Problem::new(Reason::ProcessRestarted, summary).evidence(evidence);
        problem.observed_boottime_ms = Some(view.boottime_ms(new.start_usec));
        problem
    }
}

enum Found {
    Well,
    /// Neither well nor wrong: it is on its way.
    Passing,
    Wrong(Problem),
    Unclear(String),
}

/// Whether systemd remembers no start: a unit that is not running is unloaded, with all that was known of it.
fn is_forgotten(state: &UnitState) -> bool {
    state.active_enter_usec == 0 && state.newest().is_none() && !state.was_skipped()
}

/// `known` is the newest life that an earlier look told of.
fn inactive(view: &View<'_>, known: Option<&Life>) -> Found {
    let View { unit, state, .. } = view;
    let triggered = !state.triggered_by.is_empty();
    if view.options.may_be_inactive || triggered || (state.is_oneshot() && !state.remain_after_exit) {
        return Found::Well;
    }
    if !view.one_shot && view.in_state() < DOWN_GRACE {
        return Found::Passing;
    }
    let masked = state.load_state == "masked";
    let what = match unit.rsplit('.').next().unwrap_or_default() {
        "socket" => "does not listen",
        "timer" => "is stopped: it will start nothing",
        "path" => "is stopped: it waits for no file",
        "mount" => "is not mounted",
        _ => "is not running",
    };
    let why = if masked {
        "; it is masked, so that nothing can start it".to_owned()
    } else if state.was_skipped() {
        "; a condition of its file was not met when it was last to be started".to_owned()
    } else if let Some(exit) = state.newest().or(known.filter(|_| is_forgotten(state))).and_then(|life| life.exit) {
        match exit {
            Exit::Signal(signal @ (1 | 2 | 15)) => {
                format!("; it was stopped ({})", signal_name(signal))
            }
            other => format!("; its main process {} and systemd counts that as a regular stop", other.words()),
        }
    } else if let Some(known) = known.filter(|_| is_forgotten(state)) {
        format!("; it ran as pid {} when it was last seen, and systemd has forgotten how that ended", known.pid)
    } else if state.active_enter_usec == 0 {
        "; systemd remembers no start: there was none since this host booted, or it was stopped and forgotten"
            .to_owned()
    } else {
        "; it was stopped".to_owned()
    };
    let disabled = state.unit_file_state == "disabled";
    let disabled = if disabled { "; it is disabled: the next boot will not start it either" } else { "" };
    let since = if state.active_enter_usec == 0 { String::new() } else { view.for_words() };
    let problem = Problem::new(Reason::UnitInactive, format!("{unit} {what}{since}{why}{disabled}"));
    let problem = if masked {
        problem.severity(Severity::Sev3).next_steps([
            format!("find out who masked it and why: ls -l /etc/systemd/system/{unit} /run/systemd/system/{unit}"),
            format!("if that was no intent: systemctl unmask {unit} && systemctl start {unit}"),
        ])
    } else {
        problem.next_steps([
            format!("see who stopped it: journalctl -u {unit} -b -e"),
            format!("if that was no intent: systemctl start {unit}"),
            "if it is started only when needed, set `may_be_inactive = true` in its `unit` table".to_owned(),
        ])
    };
    Found::Wrong(problem)
}

fn passing(view: &View<'_>) -> Found {
    let View { unit, state, .. } = view;
    let lasted = view.in_state();
    if state.sub_state == "auto-restart" {
        if lasted < DOWN_GRACE && !view.one_shot {
            return Found::Passing;
        }
        let summary =
            format!("{unit} is down and waits for its automatic restart{}: {}", view.for_words(), result_words(state));
        return Found::Wrong(Problem::new(Reason::UnitInactive, summary).next_steps([
            format!("see why it ended: journalctl -u {unit} -b -e"),
            format!("see how long systemd waits: systemctl show {unit} -p RestartUSec -p NRestarts"),
        ]));
    }
    let allowed = match view.options.activating_max {
        Some(allowed) => allowed,
        None if state.is_oneshot() => return Found::Passing,
        None => ACTIVATING_MAX_DEFAULT,
    };
    if lasted <= allowed {
        return Found::Passing;
    }
    let (doing, limit) = match state.active_state.as_str() {
        "activating" => ("starting", "TimeoutStartUSec"),
        "deactivating" => ("stopping", "TimeoutStopUSec"),
        _ => ("reloading", "TimeoutStartUSec"),
    };
    let allowed = human_duration(allowed);
    let summary = format!(
        "{unit} has been {doing} for {} (state {}), longer than {allowed}",
        human_duration(lasted),
        state.sub_state
    );
    Found::Wrong(Problem::new(Reason::UnitStuck, summary).next_steps([
        format!("see what it waits for: systemctl status {unit}; systemctl list-jobs"),
        format!("see what its processes wait for: ps -o pid,stat,wchan:32,args --ppid {} -p {0}", state.main_pid),
        format!("see systemd's own limit: systemctl show {unit} -p {limit}"),
    ]))
}

/// Whether systemd will not start it again because it was started too often, and how sure that is: most versions keep
/// the result of the last exit where the limit was hit.
fn gave_up(state: &UnitState) -> Option<Grade> {
    if state.result == "start-limit-hit" {
        return Some(Grade::Confirmed);
    }
    let starts = state.n_restarts.unwrap_or_default();
    let at_limit = state.start_limit_burst > 0 && starts > 0 && starts.saturating_add(1) >= state.start_limit_burst;
    (state.wants_restart() && at_limit).then_some(Grade::Likely)
}

/// Why it ended, in words.
pub(crate) fn result_words(state: &UnitState) -> String {
    let exit = state.newest().and_then(|life| life.exit);
    let main = exit.map(|exit| format!("its main process {}", exit.words()));
    match state.result.as_str() {
        "oom-kill" => "the OOM killer killed a process of it".to_owned(),
        "watchdog" => "it did not report to its watchdog in time".to_owned(),
        "timeout" => "it did not start or stop in time".to_owned(),
        "protocol" => "it did not say that it is ready as its type demands (no READY=1, or no pid file)".to_owned(),
        "resources" => "systemd lacked something to start it (resources)".to_owned(),
        "start-limit-hit" => main.unwrap_or_else(|| "it was started too often".to_owned()),
        "success" => main.unwrap_or_else(|| "it ended without an error".to_owned()),
        // Of a start that fails before the main process there is none, or one of an earlier life.
        "exit-code" if state.newest().is_none() => {
            "a command that runs before its main process failed (ExecStartPre=, or ExecStart= of Type=forking)"
                .to_owned()
        }
        other => main.unwrap_or_else(|| format!("systemd tells the result {other:?}")),
    }
}

fn exit_evidence(evidence: Evidence, prefix: &str, exit: Option<Exit>) -> Evidence {
    let key = |name: &str| format!("{prefix}{name}");
    match exit {
        None => evidence,
        Some(Exit::Status(status)) => evidence.with(&key("status"), Value::Integer(status)),
        Some(Exit::Signal(signal) | Exit::Core(signal)) => {
            let evidence = evidence.text(&key("signal"), signal_name(signal));
            if matches!(exit, Some(Exit::Core(_))) { evidence.flag(&key("core"), true) } else { evidence }
        }
    }
}

#[cfg(test)]
mod tests;

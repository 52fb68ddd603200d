//! Tells a restart loop from restarts: by how long each life lasted against what is usual for the service, and by how
//! many there were in a window.
//!
//! A supervisor that backs off defeats any fixed window, its own counter misses restarts by hand and by scripts, and a
//! deploy is no loop. So the lives themselves are looked at, (pid, start time) each, wherever they were seen: in a pid
//! file, by systemd, or both.

use crate::clock::Now;
use crate::judgement::{Judgement, Problem};
use crate::process::exit::{ExitStatus, START_IT};
use crate::unit::{self, UnitState};
use muster_common::evidence::{Evidence, Grade};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::units::human_duration;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::Duration;

/// Evidence key of how most lives of a loop ended: `exit code 3`, `SIGKILL`. Not that of one process's end.
const MOSTLY_ENDED_KEY: &str = "mostly_ended";
/// How a loop that nobody goes on with is told.
pub(crate) const LEFT_DOWN: &str = "and nothing has started it";
/// Lives remembered, the living one included.
const LIVES_MAX: usize = 32;
/// Lifetimes that say what is usual.
const USUAL_MAX: usize = 32;
/// Fewer say nothing.
const USUAL_MIN: usize = 3;
/// So many short lives in a row are a loop. Two happen when a deploy goes wrong and is repeated.
const SHORT_LIVES_MIN: usize = 3;
/// So many ends in the window are a loop, however long each life was.
const ENDS_IN_WINDOW_MIN: usize = 5;
/// The window.
const WINDOW_MS: u64 = 600_000;
/// A service whose lives are all shorter than this ends so often within the window.
const LOOP_LIFE_MAX_MS: u64 = WINDOW_MS / 5;
/// A life below this is short where nothing is known of the service.
const SHORT_DEFAULT_MS: u64 = 60_000;
/// A life of less than this part of the usual one is short, between the two bounds below.
const SHORT_PART: u64 = 10;
const SHORT_MIN_MS: u64 = 10_000;
const SHORT_MAX_MS: u64 = 3_600_000;
/// To be over, the living instance must be this many times as old as the oldest of the loop.
const OUTLIVE_FACTOR: u64 = 2;
/// The pid file's and systemd's start of one process differ by clock ticks and by the time the host was suspended.
const SAME_START_MS: u64 = 2_000;

/// One life of a service's main process. Times are `CLOCK_BOOTTIME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// Its pid.
    pub pid: u32,
    /// When it started.
    pub start_boottime_ms: u64,
    /// When it ended, if it did.
    pub ended_boottime_ms: Option<u64>,
    /// How it ended; `None` where nobody saw it.
    pub ended: Option<Ended>,
    /// With what, where the kernel or systemd told.
    #[serde(default)]
    pub exit: Option<ExitStatus>,
}

/// How a life ended, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// Of its own accord, without an error.
    Clean,
    /// With an error, or by a signal that nobody asked systemd to send.
    Badly,
    /// Somebody asked for a stop or a restart.
    Asked,
}

impl Life {
    fn lifetime_ms(&self) -> Option<u64> {
        self.ended_boottime_ms.map(|ended| ended.saturating_sub(self.start_boottime_ms))
    }

    fn is_same(&self, other: &Self) -> bool {
        self.pid == other.pid && self.start_boottime_ms.abs_diff(other.start_boottime_ms) <= SAME_START_MS
    }
}

/// The lives that systemd saw. A restart that it did not count itself was asked for, if the process ended as one does
/// that was asked to.
pub fn of_unit(state: &UnitState, suspended_ms: u64) -> Vec<Life> {
    let boottime_ms = |usec: u64| (usec / 1000).saturating_add(suspended_ms);
    let lives = state.lives();
    let next = lives.iter().skip(1).map(Some).chain(std::iter::once(None));
    let life = |(life, next): (&unit::Life, Option<&unit::Life>)| {
        let automatic = match next {
            Some(next) => next.n_restarts > life.n_restarts,
            None => state.n_restarts.unwrap_or(0) > life.n_restarts || state.sub_state == "auto-restart",
        };
        let ended = life.exit.map(|exit| match (automatic, exit) {
            (false, exit) if exit.is_orderly() => Ended::Asked,
            (true, exit) if exit.is_clean() => Ended::Clean,
            _ => Ended::Badly,
        });
        let ended_boottime_ms = (life.exit_usec > 0).then(|| boottime_ms(life.exit_usec));
        Life {
            pid: life.pid,
            start_boottime_ms: boottime_ms(life.start_usec),
            ended_boottime_ms,
            ended,
            exit: life.exit.and_then(unit::Exit::status),
        }
    };
    lives.iter().zip(next).map(life).collect()
}

/// What is known of the lives of one service now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reading {
    /// Lives from wherever they were seen, in any order; the same one may come twice.
    pub lives: Vec<Life>,
    /// systemd's count of automatic restarts, where it has one.
    pub n_restarts: Option<u64>,
    /// systemd waits to start it again.
    pub awaits_restart: bool,
    /// Why systemd has given up on it, where it has.
    pub gave_up: Option<String>,
    /// The unit, for the commands that a person is told.
    pub unit: Option<String>,
}

/// Why the unit is down for good, in systemd's words.
pub fn why_gave_up(state: &UnitState) -> Option<String> {
    (state.active_state == "failed").then(|| unit::result_words(state))
}

/// Judges the restarts of one service over time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RestartJudge {
    /// Oldest first.
    lives: VecDeque<Life>,
    /// How long it usually runs, in the order in which the lives ended. Short lives of a loop are not usual.
    usual_ms: VecDeque<u64>,
    /// The start of the newest life whose end was taken into account.
    counted_until_ms: u64,
    in_loop: bool,
    /// The start of the life that outlived the last loop: what was before it is told and over, and counts no more.
    #[serde(default)]
    counts_from_ms: u64,
    /// Ends of the loop so far, and the start of the newest life that is among them.
    #[serde(default)]
    loop_ends: (u64, u64),
}

/// How most lives of a loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ends {
    exit: ExitStatus,
    count: usize,
    of: usize,
}

impl Ends {
    /// The newest first; `None` where nobody told of any.
    fn of<'a>(lives: impl Iterator<Item = &'a Life>) -> Option<Self> {
        let exits: Vec<Option<ExitStatus>> = lives.map(|life| life.exit).collect();
        let count = |exit: ExitStatus| exits.iter().filter(|other| **other == Some(exit)).count();
        // Of as many the newest.
        let exit = exits.iter().rev().flatten().copied().max_by_key(|exit| count(*exit))?;
        Some(Self { exit, count: count(exit), of: exits.len() })
    }

    fn words(self) -> String {
        let who = if self.count == self.of { "each".to_owned() } else { format!("{} of {}", self.count, self.of) };
        format!("; {who} ended {}", self.exit.words())
    }
}

/// Why it is a loop.
struct Why {
    words: String,
    /// Its ends that are remembered.
    count: usize,
    /// How its lives ended.
    ends: Option<Ends>,
    /// The longest life of it.
    longest_ms: u64,
    asked_only: bool,
    sure: Grade,
}

impl RestartJudge {
    /// One look.
    pub fn judge(&mut self, service: &str, reading: &Reading, now: Now, one_shot: bool) -> Judgement {
        for life in &reading.lives {
            self.note(*life);
        }
        self.lives.make_contiguous().sort_by_key(|life| life.start_boottime_ms);
        while self.lives.len() > LIVES_MAX {
            self.lives.pop_front();
        }
        let why = self.by_lifetimes().or_else(|| self.by_count(now));
        self.learn(why.is_some());
        let why = why.or_else(|| by_counter(reading, self.lives.back(), now).filter(|_| one_shot));
        let over = self.outlived(&why, now);
        self.count_ends(why.as_ref().filter(|_| !over));
        self.in_loop = why.is_some() && !over;
        if let (Some(_), true, Some(newest)) = (&why, over, self.lives.back()) {
            self.counts_from_ms = newest.start_boottime_ms;
        }
        let seen = self.evidence(reading, now, one_shot);
        match why.filter(|_| !over) {
            None => Judgement::ok(seen),
            Some(why) => {
                let left_down = self.left_down_for(reading, now).filter(|_| reading.gave_up.is_none());
                let state = match (&reading.gave_up, left_down) {
                    (Some(last), _) => format!("ended again and again, and systemd gave up ({last})"),
                    (None, None) => "keeps restarting".to_owned(),
                    (None, Some(down)) => {
                        format!("ended again and again, {LEFT_DOWN} for {}", human_duration(down))
                    }
                };
                let seen = match why.ends {
                    Some(ends) => seen.text(MOSTLY_ENDED_KEY, ends.exit.name()),
                    None => seen,
                };
                let problem = problem(service, &state, reading, &why, one_shot).evidence(seen);
                Judgement::problem(if left_down.is_some() { start_again(problem, reading) } else { problem })
            }
        }
    }

    /// The host was rebooted: what is usual stays, the lives are gone.
    pub fn rebooted(&mut self) {
        *self = Self { usual_ms: std::mem::take(&mut self.usual_ms), ..Self::default() };
    }

    fn note(&mut self, life: Life) {
        match self.lives.iter_mut().find(|known| known.is_same(&life)) {
            Some(known) => {
                // The first to notice the end is the closest to it.
                known.ended_boottime_ms = match (known.ended_boottime_ms, life.ended_boottime_ms) {
                    (Some(known), Some(new)) => Some(known.min(new)),
                    (known, new) => known.or(new),
                };
                known.ended = life.ended.or(known.ended);
                known.exit = life.exit.or(known.exit);
            }
            None => self.lives.push_back(life),
        }
    }

    fn ended(&self) -> impl DoubleEndedIterator<Item = (&Life, u64)> {
        self.lives.iter().filter_map(|life| Some((life, life.lifetime_ms()?)))
    }

    /// Those that no loop that is over has counted.
    fn ended_anew(&self) -> impl DoubleEndedIterator<Item = (&Life, u64)> {
        self.ended().filter(|(life, _)| life.start_boottime_ms >= self.counts_from_ms)
    }

    /// Below this a life is short.
    fn short_ms(&self) -> u64 {
        match self.usual() {
            Some(usual) => (usual / SHORT_PART).clamp(SHORT_MIN_MS, SHORT_MAX_MS),
            None => SHORT_DEFAULT_MS,
        }
    }

    /// The median of how long it usually runs.
    fn usual(&self) -> Option<u64> {
        let mut sorted: Vec<u64> = self.usual_ms.iter().copied().collect();
        sorted.sort_unstable();
        if sorted.len() < USUAL_MIN { None } else { sorted.get(sorted.len() / 2).copied() }
    }

    /// Short lives in a row, however far apart.
    fn by_lifetimes(&self) -> Option<Why> {
        let short_ms = self.short_ms();
        // What somebody asked for, or what ended as it should, neither counts nor breaks the row.
        let counted =
            self.ended_anew().rev().filter(|(life, _)| !matches!(life.ended, Some(Ended::Asked | Ended::Clean)));
        let row: Vec<(&Life, u64)> = counted.take_while(|(_, lifetime)| *lifetime < short_ms).collect();
        let longest_ms = row.iter().map(|(_, lifetime)| *lifetime).max()?;
        if row.len() < SHORT_LIVES_MIN {
            return None;
        }
        let usual = self.usual().map(|usual| format!(", while it usually runs for {}", human(usual)));
        let words =
            format!("its last {} lives lasted at most {}{}", row.len(), human(longest_ms), usual.unwrap_or_default());
        let ends = Ends::of(row.iter().map(|(life, _)| *life));
        Some(Why { words, count: row.len(), ends, longest_ms, asked_only: false, sure: Grade::Confirmed })
    }

    /// Many ends in a short time, whoever asked for them; unless that is how this service works.
    fn by_count(&self, now: Now) -> Option<Why> {
        let since_ms = now.boottime_ms.saturating_sub(WINDOW_MS);
        // As a worker that ends after its share of work: half of the usual life is nothing special. Crashes are, however
        // regular they are.
        let usual = self.usual().filter(|_| self.usual_ms.len() >= 2 * USUAL_MIN).unwrap_or(u64::MAX);
        let is_work = |life: &Life, lifetime| life.ended == Some(Ended::Clean) && lifetime >= usual / 2;
        let ends: Vec<(&Life, u64)> = self
            .ended_anew()
            .filter(|(life, _)| life.ended_boottime_ms >= Some(since_ms))
            .filter(|(life, lifetime)| !is_work(life, *lifetime))
            .collect();
        if ends.len() < ENDS_IN_WINDOW_MIN {
            return None;
        }
        let longest_ms = ends.iter().map(|(_, lifetime)| *lifetime).max()?;
        let asked_only = ends.iter().all(|(life, _)| life.ended == Some(Ended::Asked));
        let asked = if asked_only { ", each time because somebody asked for it" } else { "" };
        let words = format!("it ended {} times within {}{asked}", ends.len(), human(WINDOW_MS));
        // What somebody asked for needs no cause.
        let ended = Ends::of(ends.iter().rev().map(|(life, _)| *life)).filter(|_| !asked_only);
        Some(Why { words, count: ends.len(), ends: ended, longest_ms, asked_only, sure: Grade::Confirmed })
    }

    /// Each end once: of those that are remembered when the loop is seen, and of every one since. Of a long loop few are
    /// remembered.
    fn count_ends(&mut self, why: Option<&Why>) {
        let Some(why) = why else {
            self.loop_ends = (0, 0);
            return;
        };
        let counted = self.loop_ends.1;
        let new = self.ended().filter(|(life, _)| life.start_boottime_ms > counted).count();
        let ends = if self.in_loop { self.loop_ends.0.saturating_add(as_u64(new)) } else { as_u64(why.count) };
        let newest = self.ended().last().map_or(counted, |(life, _)| life.start_boottime_ms.max(counted));
        self.loop_ends = (ends, newest);
    }

    /// How long it has been down, when that is longer than it ever waited for the next start: nobody restarts it now.
    fn left_down_for(&self, reading: &Reading, now: Now) -> Option<Duration> {
        let ended_ms = self.lives.back()?.ended_boottime_ms.filter(|_| !reading.awaits_restart)?;
        let gaps = self.lives.iter().zip(self.lives.iter().skip(1));
        let gap_ms =
            |(life, next): (&Life, &Life)| Some(next.start_boottime_ms.saturating_sub(life.ended_boottime_ms?));
        let longest_ms = gaps.filter_map(gap_ms).max().unwrap_or(0);
        let down = now.since(ended_ms);
        (down > Duration::from_millis(longest_ms.saturating_mul(2).max(SHORT_DEFAULT_MS))).then_some(down)
    }

    /// Whether the living instance has proved itself.
    fn outlived(&self, why: &Option<Why>, now: Now) -> bool {
        let (Some(why), Some(newest)) = (why, self.lives.back()) else { return why.is_none() };
        let needed = self.short_ms().max(why.longest_ms.saturating_mul(OUTLIVE_FACTOR).min(SHORT_MAX_MS));
        newest.ended_boottime_ms.is_none() && now.boottime_ms.saturating_sub(newest.start_boottime_ms) > needed
    }

    /// Each end is taken into account once, and those that are or may be of a loop not at all: else the loop would become
    /// usual, and be told as over while it goes on.
    fn learn(&mut self, in_loop: bool) {
        let short_ms = self.short_ms();
        let teaches = |life: &Life, lifetime| match life.ended {
            Some(Ended::Clean) => true,
            Some(Ended::Asked) => lifetime >= short_ms,
            Some(Ended::Badly) | None => !in_loop && lifetime >= short_ms.max(LOOP_LIFE_MAX_MS),
        };
        let new: Vec<(u64, u64)> = self
            .ended()
            .filter(|(life, _)| life.start_boottime_ms > self.counted_until_ms)
            .filter(|(life, lifetime)| teaches(life, *lifetime))
            .map(|(life, lifetime)| (life.start_boottime_ms, lifetime))
            .collect();
        // What ended within the loop is not to be learned from when the loop is over.
        if in_loop && let Some((newest, _)) = self.ended().last() {
            self.counted_until_ms = self.counted_until_ms.max(newest.start_boottime_ms);
        }
        for (start_ms, lifetime) in new {
            self.counted_until_ms = self.counted_until_ms.max(start_ms);
            if self.usual_ms.len() == USUAL_MAX {
                self.usual_ms.pop_front();
            }
            self.usual_ms.push_back(lifetime);
        }
    }

    fn evidence(&self, reading: &Reading, now: Now, one_shot: bool) -> Evidence {
        let since_ms = now.boottime_ms.saturating_sub(WINDOW_MS);
        let in_window = self.lives.iter().filter(|life| life.ended_boottime_ms >= Some(since_ms)).count();
        let mut evidence = Evidence::new().count("lives_seen", as_u64(self.lives.len()));
        if self.loop_ends.0 > 0 && !one_shot {
            evidence = evidence.count("ends_in_loop", self.loop_ends.0);
        }
        // A first look has counted nothing.
        if !one_shot {
            evidence = evidence
                .count("ends_in_10_min", as_u64(in_window))
                .duration("short_below_ms", Duration::from_millis(self.short_ms()));
        }
        if let Some(usual) = self.usual() {
            evidence = evidence.duration("usual_lifetime_ms", Duration::from_millis(usual));
        }
        let last: Vec<String> = self.ended().rev().take(5).map(|(_, lifetime)| human(lifetime)).collect();
        if !last.is_empty() {
            evidence = evidence.text("last_lifetimes", last.join(", "));
        }
        if let Some(n_restarts) = reading.n_restarts {
            evidence = evidence.count("n_restarts", n_restarts);
        }
        match self.lives.back() {
            Some(newest) if newest.ended_boottime_ms.is_none() => evidence
                .count(crate::diagnose::PID_KEY, newest.pid)
                .duration("uptime_ms", now.since(newest.start_boottime_ms)),
            Some(_) => evidence.flag("running", false),
            None => evidence,
        }
    }
}

/// systemd's own counter, for a first look without a memory: so many automatic restarts, and again none that lasts.
fn by_counter(reading: &Reading, newest: Option<&Life>, now: Now) -> Option<Why> {
    let restarts = reading.n_restarts.filter(|restarts| *restarts >= u64::try_from(SHORT_LIVES_MIN).unwrap_or(3))?;
    let age_ms = newest.map_or(0, |life| now.boottime_ms.saturating_sub(life.start_boottime_ms));
    let ended = newest.is_some_and(|life| life.ended_boottime_ms.is_some());
    // One that is down for good does not keep restarting: the unit tells why, and that systemd gave up.
    let young = reading.awaits_restart || (!ended && age_ms < SHORT_DEFAULT_MS);
    let state = if reading.awaits_restart {
        "waits for the next one".to_owned()
    } else {
        format!("has been running for {}", human(age_ms))
    };
    let words = format!("systemd restarted it {restarts} times since it was last started by hand, and it {state}");
    // So many in a year and a start a minute ago look the same.
    let sure = if reading.awaits_restart { Grade::Likely } else { Grade::Possible };
    young.then_some(Why { words, count: 0, ends: None, longest_ms: 0, asked_only: false, sure })
}

fn problem(service: &str, state: &str, reading: &Reading, why: &Why, one_shot: bool) -> Problem {
    let ends = why.ends.map(Ends::words).unwrap_or_default();
    let problem = Problem::new(Reason::RestartLoop, format!("{service} {state}: {}{ends}", why.words));
    // Somebody's script, not a crash: it is to be told, but nobody must get up for it.
    let problem = if why.asked_only { problem.severity(Severity::Sev3) } else { problem };
    let problem = match why.sure {
        Grade::Possible => problem.severity(Severity::Sev3).grade(Grade::Possible),
        _ if one_shot => problem.grade(Grade::Likely),
        _ => problem,
    };
    if why.asked_only {
        return problem.next_steps([
            "find out who restarts it (a timer, a deploy, a monitor): journalctl -b | grep -i 'systemctl\\|Stopping'",
            "look into that script's own log for why it does",
        ]);
    }
    let last_words = "see its own last words before each end; the first of them tells most".to_owned();
    match reading.unit.as_deref() {
        Some(unit) if reading.gave_up.is_some() => problem.next_steps([
            format!("see how each life ended: journalctl -u {unit} -b | grep -iE 'exited|killed|result'"),
            last_words,
            format!("once the cause is gone: systemctl reset-failed {unit} && systemctl start {unit}"),
        ]),
        Some(unit) => problem.next_steps([
            format!("see how each life ended: journalctl -u {unit} -b | grep -iE 'exited|killed|result'"),
            last_words,
            format!("if it damages something with each start, stop it: systemctl stop {unit}"),
        ]),
        None => problem.next_steps([
            format!("{last_words}; what it left to the host: journalctl -b --since=-15min | grep -i '{service}'"),
            "find out who starts it again, and stop it there if it damages something with each start".to_owned(),
        ]),
    }
}

/// Of a loop that nobody goes on with, the way back in place of the way to stop it.
fn start_again(mut problem: Problem, reading: &Reading) -> Problem {
    let start = match reading.unit.as_deref() {
        Some(unit) => format!("nothing starts it any more: once the cause is gone, systemctl start {unit}"),
        None => format!("{START_IT} once the cause is gone: nothing does it any more"),
    };
    if let Some(last) = problem.next_steps.last_mut() {
        *last = start;
    }
    problem
}

fn as_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn human(ms: u64) -> String {
    human_duration(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::time::Timestamp;

    const S: u64 = 1_000;
    const MIN: u64 = 60 * S;
    const H: u64 = 60 * MIN;

    fn at(boottime_ms: u64) -> Now {
        Now { boottime_ms, wall: Timestamp::UNIX_EPOCH }
    }

    /// Plays a history of (gap before, lifetime, how it ended) and looks after each start and each end.
    #[derive(Default)]
    struct World {
        judge: RestartJudge,
        now_ms: u64,
        pid: u32,
        told: Vec<String>,
    }

    impl World {
        fn look(&mut self, life: Life) {
            let reading = Reading { lives: vec![life], ..Reading::default() };
            let judgement = self.judge.judge("spl", &reading, at(self.now_ms), false);
            let shown = match judgement.problems.as_slice() {
                [] => String::new(),
                [problem] => format!("{} {}", problem.severity.unwrap_or(Severity::Sev2), problem.summary),
                _ => panic!("{judgement:?}"),
            };
            if self.told.last() != Some(&shown) {
                self.told.push(shown);
            }
        }

        fn live(&mut self, gap_ms: u64, lifetime_ms: u64, ended: Option<Ended>) -> &mut Self {
            self.now_ms += gap_ms;
            self.pid += 1;
            let start_boottime_ms = self.now_ms;
            let life = Life { pid: self.pid, start_boottime_ms, ended_boottime_ms: None, ended: None, exit: None };
            self.look(life);
            self.now_ms += lifetime_ms;
            self.look(life);
            self.look(Life { ended_boottime_ms: Some(self.now_ms), ended, ..life });
            self
        }

        fn lives(&mut self, count: usize, gap_ms: u64, lifetime_ms: u64, ended: Option<Ended>) -> &mut Self {
            for _ in 0..count {
                self.live(gap_ms, lifetime_ms, ended);
            }
            self
        }

        #[track_caller]
        fn check(&self, expected: &[&str]) {
            let told: Vec<&str> = self.told.iter().map(String::as_str).filter(|told| !told.is_empty()).collect();
            assert_eq!(told.len(), expected.len(), "{told:#?}");
            for (told, part) in told.iter().zip(expected) {
                assert!(told.contains(part), "{told:?} lacks {part:?}");
            }
        }

        fn is_in_loop(&self) -> bool {
            self.judge.in_loop
        }
    }

    #[test]
    fn a_loop_that_nobody_starts_again_is_not_told_as_one_that_goes_on() {
        let mut world = World::default();
        world.lives(4, 2 * S, S, Some(Ended::Badly));
        let last = Life {
            pid: world.pid,
            start_boottime_ms: world.now_ms - S,
            ended_boottime_ms: Some(world.now_ms),
            ended: Some(Ended::Badly),
            exit: None,
        };
        world.now_ms += 3 * MIN;
        world.look(last);
        world.check(&[
            "spl keeps restarting: its last 3",
            "spl keeps restarting: its last 4",
            "nothing has started it for 3 min: its last 4",
        ]);
        // The way back, not the way to stop what nobody goes on with.
        let steps = |judge: &RestartJudge, unit: Option<&str>| {
            let reading = Reading { lives: vec![last], unit: unit.map(str::to_owned), ..Reading::default() };
            let judgement = judge.clone().judge("spl", &reading, at(world.now_ms), false);
            judgement.problems[0].next_steps.last().cloned().unwrap()
        };
        assert!(steps(&world.judge, None).starts_with("start it through its init system once the cause is gone"));
        assert!(steps(&world.judge, Some("spl.service")).ends_with("systemctl start spl.service"));
        let ended = Life { ended_boottime_ms: Some(world.now_ms), ..last };
        let reading = Reading { n_restarts: Some(4), ..Reading::default() };
        assert!(by_counter(&reading, Some(&ended), at(world.now_ms)).is_none());
        let waits = Reading { awaits_restart: true, ..reading.clone() };
        let why = by_counter(&waits, Some(&ended), at(world.now_ms)).unwrap();
        assert!(why.words.ends_with("and it waits for the next one"), "{}", why.words);
        let fresh =
            Life { pid: 99, start_boottime_ms: world.now_ms - 2 * S, ended_boottime_ms: None, ended: None, exit: None };
        let why = by_counter(&reading, Some(&fresh), at(world.now_ms)).unwrap();
        assert!(why.words.ends_with("and it has been running for 2 s"), "{}", why.words);
    }

    #[test]
    fn where_systemd_gave_up_the_cause_and_the_way_back_are_told() {
        let mut world = World::default();
        world.lives(5, S, S, Some(Ended::Badly));
        let mut state = UnitState::default();
        assert_eq!(why_gave_up(&state), None);
        for (name, text) in [("ActiveState", "failed"), ("Result", "watchdog")] {
            state.set(name, &unit::Property::Text(text.to_owned()));
        }
        let unit = Some("spl.service".to_owned());
        let reading = Reading { gave_up: why_gave_up(&state), unit, ..Reading::default() };
        let judgement = world.judge.judge("spl", &reading, at(world.now_ms), false);
        let [problem] = judgement.problems.as_slice() else { panic!("{judgement:?}") };
        assert_eq!(
            problem.summary,
            "spl ended again and again, and systemd gave up (it did not report to its watchdog in time): its last 5 \
             lives lasted at most 1 s"
        );
        let steps = problem.next_steps.join("\n");
        assert!(steps.contains("reset-failed spl.service") && !steps.contains("systemctl stop"), "{steps}");
    }

    #[test]
    fn a_crash_loop_is_told_at_its_third_short_life() {
        let mut world = World::default();
        world.live(H, 30 * 24 * H, Some(Ended::Badly)).lives(2, S, 5 * S, Some(Ended::Badly));
        world.check(&[]);
        world.live(S, 5 * S, Some(Ended::Badly));
        world.check(&["sev2 spl keeps restarting: its last 3 lives lasted at most 5 s"]);
    }

    /// The ledger folds the ends of a loop into it: then it must tell how many there were.
    #[test]
    fn each_end_of_a_loop_is_counted_once_and_the_next_loop_counts_anew() {
        let mut world = World::default();
        let ends = |world: &mut World| {
            let judgement = world.judge.judge("spl", &Reading::default(), at(world.now_ms), false);
            judgement.seen.get("ends_in_loop").map(ToString::to_string)
        };
        world.lives(2, S, 4 * S, Some(Ended::Badly));
        assert_eq!(ends(&mut world), None);
        // More than are remembered.
        world.lives(3 * LIVES_MAX - 2, S, 4 * S, Some(Ended::Badly));
        let told = world.judge.judge("spl", &Reading::default(), at(world.now_ms), false).problems.remove(0);
        assert_eq!(told.evidence.get("ends_in_loop").map(ToString::to_string), Some((3 * LIVES_MAX).to_string()));
        world.live(S, 3 * H, Some(Ended::Badly));
        assert_eq!(ends(&mut world), None, "it was outlived");
        world.lives(3, S, 4 * S, Some(Ended::Badly));
        let told = world.judge.judge("spl", &Reading::default(), at(world.now_ms), false).problems.remove(0);
        assert_eq!(told.evidence.get("ends_in_loop").map(ToString::to_string), Some("3".to_owned()));
    }

    #[test]
    fn how_most_lives_of_a_loop_ended_is_told_with_it() {
        let code = |code| Some(ExitStatus::Code(code));
        for (exits, words, status) in [
            (
                vec![code(3); 3],
                "at most 1 s; each ended with exit code 3 (it gave up because of an error)",
                "exit code 3",
            ),
            (
                vec![code(1), code(3), None, code(3)],
                "at most 1 s; 2 of 4 ended with exit code 3 (it gave up",
                "exit code 3",
            ),
            (
                vec![Some(ExitStatus::Signal { signal: 11, core_dumped: false }); 3],
                "each ended by SIGSEGV (",
                "SIGSEGV",
            ),
            (vec![None; 3], "its last 3 lives lasted at most 1 s", ""),
        ] {
            let mut judge = RestartJudge::default();
            let mut lives: Vec<Life> = Vec::new();
            for (n, exit) in exits.iter().enumerate() {
                let (pid, start_boottime_ms) = (u32::try_from(n).unwrap() + 7, u64::try_from(n).unwrap() * 10 * S);
                let ended_boottime_ms = Some(start_boottime_ms + S);
                lives.push(Life { pid, start_boottime_ms, ended_boottime_ms, ended: None, exit: *exit });
            }
            // Told a moment after the end was seen.
            for late in [true, false] {
                let seen = lives.iter().map(|life| Life { exit: life.exit.filter(|_| !late), ..*life }).collect();
                let reading = Reading { lives: seen, ..Reading::default() };
                let judgement = judge.judge("spl", &reading, at(40 * S), false);
                let [problem] = judgement.problems.as_slice() else { panic!("{judgement:?}") };
                let told = if late { "its last" } else { words };
                assert!(problem.summary.contains(told), "{} lacks {told}", problem.summary);
                let exit = problem.evidence.get(MOSTLY_ENDED_KEY).map(|value| format!("{value:?}")).unwrap_or_default();
                assert!(late || exit.contains(status), "{exit}");
                assert!(
                    problem.next_steps.iter().any(|step| step.contains("journalctl -b ")),
                    "{:?}",
                    problem.next_steps
                );
            }
        }
    }

    #[test]
    fn back_off_does_not_hide_a_loop() {
        let mut world = World::default();
        for gap in [S, 10 * S, 5 * MIN, 40 * MIN, 6 * H] {
            world.live(gap, 20 * S, Some(Ended::Badly));
        }
        world.check(&["3 lives", "4 lives", "5 lives"]);
        assert!(world.is_in_loop());
    }

    #[test]
    fn restarts_by_hand_are_no_loop() {
        let mut world = World::default();
        world.live(H, 3 * 24 * H, Some(Ended::Asked)).lives(3, S, 30 * S, Some(Ended::Asked));
        world.live(S, 24 * H, Some(Ended::Asked)).live(S, 2 * H, Some(Ended::Asked));
        world.check(&[]);
    }

    #[test]
    fn a_script_that_restarts_it_again_and_again_is_told_as_such() {
        let mut world = World::default();
        world.lives(5, S, 60 * S, Some(Ended::Asked));
        world.check(&["sev3 spl keeps restarting: it ended 5 times within 10 min, each time because somebody asked"]);
    }

    #[test]
    fn what_is_short_depends_on_what_is_usual() {
        // Usually a day; dies after half an hour, again and again, with hours between.
        let mut world = World::default();
        world.lives(4, MIN, 24 * H, None).lives(3, 3 * H, 30 * MIN, None);
        world.check(&["its last 3 lives lasted at most 30 min, while it usually runs for 24 h"]);
        // Usually 30 s and ends as it should, as a worker after its share of work.
        let mut worker = World::default();
        worker.lives(40, S, 30 * S, Some(Ended::Clean));
        assert!(!worker.is_in_loop(), "{:#?}", worker.told);
    }

    #[test]
    fn a_loop_is_over_when_an_instance_outlives_it() {
        let mut world = World::default();
        world.lives(4, S, 50 * S, Some(Ended::Badly));
        assert!(world.is_in_loop());
        world.live(S, 90 * S, Some(Ended::Badly));
        assert!(world.is_in_loop(), "not yet twice as old as the others");
        world.live(S, 20 * MIN, Some(Ended::Badly));
        world.live(S, H, None);
        assert!(!world.is_in_loop());
    }

    #[test]
    fn one_end_does_not_open_a_loop_again_that_was_over() {
        for ended in [Ended::Badly, Ended::Asked, Ended::Clean] {
            let mut world = World::default();
            world.lives(7, S, 3 * S, Some(Ended::Badly));
            assert!(world.is_in_loop());
            let told = world.told.len();
            // Over after its first minute.
            world.live(S, 5 * MIN, Some(ended));
            assert_eq!(world.told[told..], [""], "{ended:?}: over once, and nothing again");
            world.lives(2, S, 3 * S, Some(Ended::Badly));
            assert!(!world.is_in_loop());
            // It counts anew.
            world.live(S, 3 * S, Some(Ended::Badly));
            assert!(world.told.last().unwrap().contains("its last 3 lives"), "{:#?}", world.told);
        }
    }

    #[test]
    fn a_loop_of_lives_that_are_not_short_goes_on() {
        for (lifetime_ms, ended) in [(75 * S, Some(Ended::Badly)), (62 * S, None), (110 * S, Some(Ended::Badly))] {
            let mut world = World::default();
            world.lives(5, S, lifetime_ms, ended);
            assert!(world.is_in_loop(), "{:#?}", world.told);
            for life in 6..60 {
                world.live(S, lifetime_ms, ended);
                assert!(world.is_in_loop(), "over at life {life}, while it goes on: {:#?}", world.told);
            }
            // Over when an instance has outlived it twice; told again when it begins again.
            world.live(S, 12 * MIN, ended);
            world.live(S, H, None);
            assert!(!world.is_in_loop());
            world.lives(5, S, lifetime_ms, ended);
            assert!(world.is_in_loop(), "{:#?}", world.told);
        }
    }

    #[test]
    fn a_long_loop_does_not_become_usual() {
        let mut world = World::default();
        world.lives(4, MIN, 24 * H, None).lives(300, 30 * S, 20 * S, Some(Ended::Badly));
        assert!(world.is_in_loop());
        assert_eq!(world.judge.usual(), Some(24 * H));
        assert!(world.judge.lives.len() <= LIVES_MAX && world.judge.usual_ms.len() <= USUAL_MAX);
    }

    #[test]
    fn systemd_tells_a_crash_from_a_restart_by_hand() {
        use crate::unit::Property::{Number, Text};
        let mut state = UnitState::default();
        // (pid, code, status, automatic restarts when it was started)
        for (pid, code, status, restarts) in
            [(1, 2, 15, 0), (2, 1, 143, 0), (3, 1, 1, 0), (4, 1, 0, 1), (5, 2, 15, 2), (6, 2, 9, 3), (7, 0, 0, 0)]
        {
            let exit_usec = if code == 0 { 0 } else { pid * 10_000_000 + 5_000_000 };
            state.set("NRestarts", &Number(restarts));
            state.set("ExecMainPID", &Number(pid));
            state.set("ExecMainStartTimestampMonotonic", &Number(pid * 10_000_000));
            state.set("ExecMainExitTimestampMonotonic", &Number(exit_usec));
            state.set("ExecMainCode", &Number(code));
            state.set("ExecMainStatus", &Number(status));
            state.settle();
        }
        let ended = |state: &UnitState| of_unit(state, 0).into_iter().map(|life| life.ended).collect::<Vec<_>>();
        use Ended::{Asked, Badly, Clean};
        let all = [Some(Asked), Some(Asked), Some(Badly), Some(Clean), Some(Badly), Some(Badly), None];
        assert_eq!(ended(&state), all);
        assert_eq!(of_unit(&state, 500)[0].start_boottime_ms, 10_500);
        assert_eq!(of_unit(&state, 500)[0].lifetime_ms(), Some(5_000));
        // The last one is over, and systemd starts the next by itself.
        state.set("ExecMainExitTimestampMonotonic", &Number(99_000_000));
        state.set("ExecMainCode", &Number(2));
        state.set("ExecMainStatus", &Number(15));
        state.settle();
        assert_eq!(ended(&state).last(), Some(&Some(Asked)));
        state.set("SubState", &Text("auto-restart".to_owned()));
        assert_eq!(ended(&state).last(), Some(&Some(Badly)));
    }

    #[test]
    fn one_life_from_two_sources_is_one_life() {
        let life = Life { pid: 7, start_boottime_ms: 10_000, ended_boottime_ms: None, ended: None, exit: None };
        let mut judge = RestartJudge::default();
        for n in 0..10 {
            let pid_file = Life { pid: n, start_boottime_ms: u64::from(n) * H, ..life };
            let unit = Life { start_boottime_ms: pid_file.start_boottime_ms + 900, ..pid_file };
            let reading = Reading { lives: vec![pid_file, unit, pid_file], ..Reading::default() };
            judge.judge("spl", &reading, at(u64::from(n) * H + MIN), false);
        }
        assert_eq!(judge.lives.len(), 10);
    }

    #[test]
    fn a_first_look_believes_systemds_counter() {
        let life = Life { pid: 7, start_boottime_ms: 95 * S, ended_boottime_ms: None, ended: None, exit: None };
        let look = |n_restarts, now_ms, one_shot| {
            let reading = Reading { lives: vec![life], n_restarts, awaits_restart: false, ..Reading::default() };
            let judgement = RestartJudge::default().judge("spl", &reading, at(now_ms), one_shot);
            judgement.problems.first().map(|problem| (problem.grade, problem.severity, problem.summary.clone()))
        };
        let told = look(Some(12), 100 * S, true).unwrap();
        assert_eq!((told.0, told.1), (Grade::Possible, Some(Severity::Sev3)), "it may have been started by hand");
        assert!(told.2.contains("restarted it 12 times") && told.2.contains("has been running for 5 s"), "{told:?}");
        assert_eq!(look(Some(12), H, true), None, "it runs well since");
        assert_eq!(look(Some(2), 100 * S, true), None);
        assert_eq!(look(Some(12), 100 * S, false), None, "the daemon sees the lives themselves");
    }

    #[test]
    fn a_restart_of_the_agent_remembers_and_a_reboot_keeps_what_is_usual() {
        let mut world = World::default();
        world.lives(3, MIN, 24 * H, None).lives(2, S, 5 * S, None);
        let saved = serde_json::to_value(&world.judge).unwrap();
        world.judge = serde_json::from_value(saved).unwrap();
        world.live(S, 5 * S, None);
        assert!(world.is_in_loop());
        world.judge.rebooted();
        assert_eq!((world.judge.usual(), world.judge.lives.len()), (Some(24 * H), 0));
    }
}

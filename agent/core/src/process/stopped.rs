//! A process that lives and does not run: a signal stopped it, or a debugger holds it. Its port still takes connections,
//! since the kernel does that, and nobody answers.
//!
//! Must never be said of a moment: a shell stops and continues its jobs, and who takes a stack stops a process for that
//! long. It is said of what has not run once between two looks.

use super::exit;
use super::proc_text::Status;
use crate::clock::Now;
use crate::judgement::Problem;
use crate::services::Instance;
use muster_common::evidence::Evidence;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// So long at least: longer than a stack takes, and `fg` after Ctrl-Z.
pub const STOPPED_MIN: Duration = Duration::from_secs(5);

/// A stop that was seen, and may be over at the next look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    traced: bool,
    /// How often the process had given up the processor: it has not run since.
    switches: u64,
    since_boottime_ms: u64,
    /// The same by the wall clock, for people.
    since: Timestamp,
    looks: u32,
}

impl Stop {
    /// What `status` tells, where it is a stop: the one that was `known` goes on, or a new one begins.
    pub fn seen(known: Option<Self>, status: &Status, now: Now) -> Option<Self> {
        let traced = status.halted()? == 't';
        let switches = status.switches();
        let same = known.filter(|known| known.traced == traced && known.switches == switches);
        let new = Self { traced, switches, since_boottime_ms: now.boottime_ms, since: now.wall, looks: 0 };
        let stop = same.unwrap_or(new);
        Some(Self { looks: stop.looks.saturating_add(1), ..stop })
    }

    /// Whether it has lasted; who looks once has looked twice for it.
    pub fn lasts(&self, now: Now, one_shot: bool) -> bool {
        one_shot || (self.looks >= 2 && now.since(self.since_boottime_ms) >= STOPPED_MIN)
    }

    /// The condition.
    pub fn problem(&self, service: &str, instance: &Instance, evidence: Evidence, status: &Status) -> Problem {
        let pid = instance.process.pid;
        let who = exit::who(service, &instance.comm, pid);
        let since = self.since.to_utc_minute();
        if self.traced {
            let tracer = status.tracer_pid.map(|tracer| format!(" (pid {tracer})")).unwrap_or_default();
            let evidence = evidence.text("process_state", "held by a debugger (t)");
            let evidence = status.tracer_pid.iter().fold(evidence, |evidence, pid| evidence.count("tracer_pid", *pid));
            let summary = format!(
                "{who} is held by a debugger{tracer}, seen since {since}: it does nothing until that lets it go"
            );
            let look = match status.tracer_pid {
                Some(tracer) => format!("see who debugs it: ps -fp {tracer}"),
                None => format!("see who debugs it: grep TracerPid /proc/{pid}/status"),
            };
            let leave = "if nobody works with it: end the debugger, and the process runs on".to_owned();
            return Problem::new(Reason::ProcessStopped, summary)
                .severity(Severity::Sev3)
                .evidence(evidence)
                .next_steps([look, leave]);
        }
        let summary = format!(
            "{who} is stopped by a signal (SIGSTOP, or Ctrl-Z on its terminal), seen since {since}: it does nothing until \
             SIGCONT"
        );
        let evidence = evidence.text("process_state", "stopped (T)");
        Problem::new(Reason::ProcessStopped, summary).evidence(evidence).next_steps([
            format!(
                "see whose it is, and whether somebody stopped it on purpose: ps -o pid,ppid,tty,stat,args -p {pid}"
            ),
            format!("if that was no intent: kill -CONT {pid}; it runs on where it stood"),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(boottime_ms: u64) -> Now {
        Now { boottime_ms, wall: Timestamp::UNIX_EPOCH }
    }

    fn status(state: char, switches: u64) -> Status {
        Status { state: Some(state), voluntary_switches: Some(switches), ..Status::default() }
    }

    #[test]
    fn what_has_not_run_between_two_looks_is_stopped_and_nothing_else() {
        // (state and switches at each look, five seconds apart; whether the last one tells).
        let cases: &[(&[(char, u64)], bool)] = &[
            (&[('T', 9)], false),
            (&[('T', 9), ('T', 9)], true),
            (&[('t', 9), ('t', 9)], true),
            // It ran in between: Ctrl-Z and fg, a tracer that stops it at each call.
            (&[('T', 9), ('T', 12)], false),
            (&[('t', 9), ('t', 12), ('t', 15)], false),
            (&[('T', 9), ('S', 10), ('T', 11)], false),
            (&[('T', 9), ('t', 9)], false),
            (&[('S', 9), ('S', 9)], false),
            (&[('D', 9), ('D', 9)], false),
        ];
        for (looks, expected) in cases {
            let (mut stop, mut now) = (None, at(1_000));
            for (state, switches) in *looks {
                now = at(now.boottime_ms + 5_000);
                stop = Stop::seen(stop, &status(*state, *switches), now);
            }
            assert_eq!(stop.is_some_and(|stop| stop.lasts(now, false)), *expected, "{looks:?}");
        }
        let soon = Stop::seen(Stop::seen(None, &status('T', 9), at(1_000)), &status('T', 9), at(2_000));
        assert!(!soon.unwrap().lasts(at(2_000), false), "a second look a moment later");
    }
}

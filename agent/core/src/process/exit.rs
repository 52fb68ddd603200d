//! How a process ended, in words: a code, or a signal and what it usually means.
//!
//! Must never guess: where nobody told, the answer is unknown, with the reason.

use crate::diagnose::TOLD_BY_KEY;
use muster_common::evidence::{Evidence, Value};
use serde::{Deserialize, Serialize};

/// Evidence key of how a process ended: `exit code 3`, `SIGKILL` or `unknown`.
pub const EXIT_STATUS_KEY: &str = "exit_status";
/// What SIGKILL alone tells of who sent it.
pub(crate) const KILLED_BY_WHOM: &str = "the kernel's OOM killer, or somebody's kill -9";
/// How a finding about the end of a process ends; untrue as soon as another one runs.
pub(crate) const NO_SUCCESSOR: &str = " and no successor is known";
/// How the step begins that has no sense once another one runs.
pub(crate) const START_IT: &str = "start it through its init system";
/// Codes that systemd, and by custom others, use for "could not even start it".
const SYSTEMD_CODES: &[(u8, &str)] = &[
    (126, "the program was found but could not be executed"),
    (127, "a shell did not find the program"),
    (200, "systemd could not change to its working directory"),
    (203, "systemd could not execute the program"),
    (217, "systemd did not find its user"),
    (226, "systemd could not set up its mount namespace"),
    (233, "systemd could not set up its runtime folder"),
    (238, "systemd could not set up its state folder"),
];

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It called `exit`.
    Code(u8),
    /// A signal ended it.
    Signal {
        /// Which.
        signal: u8,
        /// Whether a core was dumped.
        core_dumped: bool,
    },
}

/// What is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// How it ended, and who said so (`kernel` or `systemd`).
    Known {
        /// How.
        status: ExitStatus,
        /// Who said so.
        source: String,
    },
    /// The code comes when its parent has reaped it.
    Pending,
    /// Nobody tells: why.
    Unknown(String),
}

impl ExitStatus {
    /// From the kernel's wait status (`code << 8`, or a signal with 0x80 for a core).
    ///
    /// ```
    /// use muster_agent_core::process::exit::ExitStatus;
    /// assert_eq!(ExitStatus::from_wait_status(3 << 8), Some(ExitStatus::Code(3)));
    /// assert_eq!(ExitStatus::from_wait_status(0x8b), Some(ExitStatus::Signal { signal: 11, core_dumped: true }));
    /// assert_eq!(ExitStatus::from_wait_status(0x7f), None);
    /// ```
    pub fn from_wait_status(status: i32) -> Option<Self> {
        let low = u8::try_from(status & 0xff).ok()?;
        match low & 0x7f {
            0 if low == 0 => Some(Self::Code(u8::try_from((status >> 8) & 0xff).ok()?)),
            0 | 0x7f => None,
            signal => Some(Self::Signal { signal, core_dumped: low & 0x80 != 0 }),
        }
    }

    /// Whether it looks like work done, or like the answer to a polite stop: SIGHUP, SIGINT, SIGPIPE and SIGTERM, as
    /// systemd sees it, and the codes by which programs pass them on.
    pub const fn is_orderly(self) -> bool {
        matches!(self, Self::Code(0 | 130 | 143) | Self::Signal { signal: 1 | 2 | 13 | 15, .. })
    }

    /// `exit code 3`, `SIGKILL`.
    pub fn name(self) -> String {
        match self {
            Self::Code(code) => format!("exit code {code}"),
            Self::Signal { signal, .. } => signal_name(signal),
        }
    }

    /// What happened, after the word "ended": `by SIGKILL (…)`, `with exit code 3 (…)`.
    pub fn words(self) -> String {
        match self {
            Self::Code(0) => "with exit code 0 (in order: its work was done, or it was asked to stop)".to_owned(),
            Self::Code(code) => {
                let known = SYSTEMD_CODES.iter().find(|(known, _)| *known == code);
                let meaning = known.map_or("it gave up because of an error", |(_, meaning)| *meaning);
                format!("with exit code {code} ({meaning})")
            }
            Self::Signal { signal, core_dumped } => {
                let core = if core_dumped { ", a core was dumped" } else { "" };
                format!("by {} ({}{core})", signal_name(signal), signal_meaning(signal))
            }
        }
    }
}

impl Exit {
    /// How it ended, where that is known.
    pub const fn status(&self) -> Option<ExitStatus> {
        match self {
            Self::Known { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Adds it to the evidence of a finding about the process.
    #[must_use]
    pub fn evidence(&self, evidence: Evidence) -> Evidence {
        match self {
            Self::Known { status, source } => {
                let evidence = evidence.text(EXIT_STATUS_KEY, status.name()).text(TOLD_BY_KEY, source);
                match status {
                    // An integer, not a count: another code is news.
                    ExitStatus::Code(code) => evidence.with("exit_code", Value::Integer((*code).into())),
                    ExitStatus::Signal { signal, core_dumped } => evidence
                        .with("exit_signal", Value::Integer((*signal).into()))
                        .text("exit_signal_name", signal_name(*signal))
                        .flag("core_dumped", *core_dumped),
                }
            }
            Self::Pending => {
                evidence.text(EXIT_STATUS_KEY, "unknown").text("exit_unknown_why", "its parent has not reaped it yet")
            }
            Self::Unknown(why) => evidence.text(EXIT_STATUS_KEY, "unknown").text("exit_unknown_why", why),
        }
    }
}

/// `spl (python3, pid 7)`; `spl (pid 7)` where the process has its service's name.
pub(crate) fn who(service: &str, comm: &str, pid: u32) -> String {
    if service.is_empty() || service == comm {
        format!("{comm} (pid {pid})")
    } else {
        format!("{service} ({comm}, pid {pid})")
    }
}

/// `SIGKILL`, or `signal 42` for those without a name of their own.
pub fn signal_name(signal: u8) -> String {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    let name = usize::from(signal).checked_sub(1).and_then(|index| NAMES.get(index));
    name.map_or_else(|| format!("signal {signal}"), |name| format!("SIG{name}"))
}

/// What usually sends it.
const fn signal_meaning(signal: u8) -> &'static str {
    match signal {
        1 => "its terminal went away, or somebody asked it to reload and it did not know how",
        2 => "somebody pressed Ctrl-C, or a supervisor asked it to stop",
        3 => "somebody asked it to stop and to dump a core",
        4 => "it crashed on an instruction that this processor does not know",
        6 => "it crashed by its own check (abort, assertion, watchdog of systemd)",
        7 => "it crashed on memory whose file was cut short or whose device failed",
        8 => "it crashed in its arithmetic",
        9 => KILLED_BY_WHOM,
        11 => "it crashed on memory that is not its own",
        13 => "whoever it wrote to had gone",
        14 => "a timer of its own that it did not handle",
        15 => "somebody or a supervisor asked for an orderly shutdown",
        24 => "it used up its CPU time limit",
        25 => "it wrote a file beyond its size limit",
        31 => "it crashed on a system call that its sandbox forbids",
        _ => "an unusual end; see who sends this signal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_tell_kill_term_crash_and_codes_apart() {
        let signal = |signal| ExitStatus::Signal { signal, core_dumped: signal == 11 };
        for (status, name, part) in [
            (signal(9), "SIGKILL", "OOM killer"),
            (signal(15), "SIGTERM", "orderly shutdown"),
            (signal(11), "SIGSEGV", "a core was dumped"),
            (signal(6), "SIGABRT", "abort"),
            (signal(40), "signal 40", "unusual"),
            (ExitStatus::Code(0), "exit code 0", "or it was asked to stop"),
            (ExitStatus::Code(3), "exit code 3", "an error"),
            (ExitStatus::Code(203), "exit code 203", "could not execute"),
        ] {
            assert_eq!(status.name(), name);
            assert!(status.words().contains(part), "{}", status.words());
        }
    }

    #[test]
    fn evidence_has_the_code_the_teller_or_the_reason_why_not() {
        let known = Exit::Known { status: ExitStatus::Code(3), source: "kernel".into() }.evidence(Evidence::new());
        assert_eq!(known.get("exit_code"), Some(&Value::Integer(3)));
        assert_eq!(known.get(EXIT_STATUS_KEY), Some(&Value::Text("exit code 3".into())));
        let unknown = Exit::Unknown("because".into()).evidence(Evidence::new());
        assert_eq!(unknown.get(EXIT_STATUS_KEY), Some(&Value::Text("unknown".into())));
        assert_eq!(unknown.get("exit_unknown_why"), Some(&Value::Text("because".into())));
    }

    proptest::proptest! {
        #[test]
        fn any_status_has_words(status in proptest::num::i32::ANY) {
            if let Some(status) = ExitStatus::from_wait_status(status) {
                proptest::prop_assert!(!status.words().is_empty() && !status.name().is_empty());
            }
        }
    }
}

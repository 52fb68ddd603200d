//! What systemd says about one unit: the properties that are read, as typed, bounded values.
//!
//! Must take whatever a bus sends: a property of another type or size than expected is ignored, never trusted.

use crate::process::exit::{self, ExitStatus};
use muster_common::limits::clip;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Duration;

/// Lives remembered between two runs of the probe: a restart loop at systemd's own default limit makes five in ten
/// seconds, and the probe runs within milliseconds of each.
const LIVES_MAX: usize = 16;
/// Bytes kept of one text property; the longest of use are paths.
const TEXT_BYTES_MAX: usize = 512;
/// Units named as triggers of one unit.
const TRIGGERS_MAX: usize = 8;

/// A unit that is down for less may be in the middle of a restart by hand.
pub const DOWN_GRACE: Duration = Duration::from_secs(5);
/// On the way to an automatic restart a unit is `failed` for milliseconds.
pub const FAILED_GRACE: Duration = Duration::from_secs(1);

/// A value as it came over the bus, bounded by who read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Property {
    /// A string or an object path.
    Text(String),
    /// An unsigned number.
    Number(u64),
    /// A signed number.
    Signed(i64),
    /// A boolean.
    Flag(bool),
    /// An array of bytes.
    Bytes(Vec<u8>),
    /// An array or a structure, flattened one level.
    List(Vec<Property>),
    /// Something that nobody here reads (a dictionary, a descriptor).
    Other,
}

impl std::fmt::Display for Property {
    /// As `systemctl show` prints it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(u64::MAX) => f.write_str("infinity"),
            Self::Number(number) => number.fmt(f),
            Self::Signed(number) => number.fmt(f),
            Self::Flag(flag) => f.write_str(if *flag { "yes" } else { "no" }),
            Self::Bytes(bytes) => f.write_str(&hex(bytes)),
            Self::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    let gap = if index == 0 { "" } else { " " };
                    write!(f, "{gap}{item}")?;
                }
                Ok(())
            }
            Self::Other => f.write_str("?"),
        }
    }
}

impl Property {
    fn text(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(clip(text, TEXT_BYTES_MAX)),
            _ => None,
        }
    }

    fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    fn signed(&self) -> Option<i64> {
        match self {
            Self::Signed(number) => Some(*number),
            Self::Number(number) => i64::try_from(*number).ok(),
            _ => None,
        }
    }

    fn flag(&self) -> Option<bool> {
        match self {
            Self::Flag(flag) => Some(*flag),
            _ => None,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(TEXT_BYTES_MAX / 2).fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

/// How a process ended, in the words of `waitid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It returned this status.
    Status(i64),
    /// A signal ended it.
    Signal(i64),
    /// A signal ended it, and it left a core.
    Core(i64),
}

impl Exit {
    /// From `si_code` and `si_status`, as systemd has them.
    fn new(code: u64, status: i64) -> Option<Self> {
        match code {
            1 => Some(Self::Status(status)),
            2 => Some(Self::Signal(status)),
            3 => Some(Self::Core(status)),
            _ => None,
        }
    }

    /// `"exited with status 1"`, `"was killed by SIGKILL (9)"`.
    pub fn words(self) -> String {
        match self {
            Self::Status(status) => match status_name(status) {
                Some(name) => format!("exited with status {status} ({name})"),
                None => format!("exited with status {status}"),
            },
            Self::Signal(signal) => format!("was killed by {}", signal_words(signal)),
            Self::Core(signal) => format!("crashed with {} and dumped core", signal_words(signal)),
        }
    }

    /// Whether it ended of its own accord, without an error.
    pub const fn is_clean(self) -> bool {
        matches!(self, Self::Status(0))
    }

    /// Whether it looks like the answer to a polite stop.
    pub fn is_orderly(self) -> bool {
        self.status().is_some_and(ExitStatus::is_orderly)
    }

    /// As the process's own probe tells it; `None` for what no kernel tells.
    pub fn status(self) -> Option<ExitStatus> {
        let signal = |signal, core_dumped| Some(ExitStatus::Signal { signal: u8::try_from(signal).ok()?, core_dumped });
        match self {
            Self::Status(status) => Some(ExitStatus::Code(u8::try_from(status).ok()?)),
            Self::Signal(number) => signal(number, false),
            Self::Core(number) => signal(number, true),
        }
    }
}

/// systemd's own exit statuses: the process never ran the program.
const fn status_name(status: i64) -> Option<&'static str> {
    Some(match status {
        200 => "its working directory cannot be entered",
        203 => "its program cannot be executed",
        209 | 208 | 222 => "its input or output cannot be set up",
        216 => "its group does not exist",
        217 => "its user does not exist",
        218 => "its capabilities cannot be set",
        226 => "its namespaces cannot be set up",
        228 => "its seccomp filter cannot be loaded",
        233 => "its runtime folder cannot be made",
        238 => "its state folder cannot be made",
        239 => "its cache folder cannot be made",
        240 => "its log folder cannot be made",
        241 => "its configuration folder cannot be made",
        243 => "its credentials cannot be loaded",
        _ => return None,
    })
}

/// `"SIGKILL (9)"`.
pub fn signal_words(signal: i64) -> String {
    let name = signal_name(signal);
    if name.starts_with("SIG") { format!("{name} ({signal})") } else { name }
}

/// `"SIGKILL"`, or `"signal 42"`.
pub fn signal_name(signal: i64) -> String {
    u8::try_from(signal).map_or_else(|_| format!("signal {signal}"), exit::signal_name)
}

/// One life of the unit's main process, as systemd saw it. Times are `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Life {
    /// Its pid, never reused while systemd has not reaped it.
    pub pid: u32,
    /// When it was started.
    pub start_usec: u64,
    /// When it ended; 0 while it lives.
    pub exit_usec: u64,
    /// How it ended.
    pub exit: Option<Exit>,
    /// systemd's count of automatic restarts when this life was first seen: 0 after a start by hand.
    pub n_restarts: u64,
}

impl Life {
    /// The same process, whatever else is known of it by now.
    pub const fn is_same(&self, other: &Self) -> bool {
        self.pid == other.pid && self.start_usec == other.start_usec
    }

    /// How long it ran, once it is over.
    pub const fn lifetime_ms(&self) -> Option<u64> {
        if self.exit_usec == 0 { None } else { Some(self.exit_usec.saturating_sub(self.start_usec) / 1000) }
    }
}

/// The unit, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnitState {
    /// `loaded`, `not-found`, `masked`, `bad-setting`, `error`.
    pub load_state: String,
    /// Why it could not be loaded.
    pub load_error: String,
    /// `active`, `inactive`, `failed`, `activating`, `deactivating`, `reloading`.
    pub active_state: String,
    /// `running`, `exited`, `dead`, `auto-restart`, …
    pub sub_state: String,
    /// `success`, or why it failed.
    pub result: String,
    /// `enabled`, `disabled`, `masked`, `static`, …
    pub unit_file_state: String,
    /// Where its file is.
    pub fragment_path: String,
    /// `simple`, `forking`, `oneshot`, … of a service.
    pub kind: String,
    /// `no`, `on-failure`, `always`, …
    pub restart: String,
    /// Its cgroup, or the last it had: systemd takes it away with the last process.
    pub control_group: String,
    /// One id per start.
    pub invocation_id: String,
    /// Sockets, timers and paths that start it.
    pub triggered_by: Vec<String>,
    /// Its file was changed and systemd has not read it since.
    pub need_daemon_reload: bool,
    /// Stays active after its process ended.
    pub remain_after_exit: bool,
    /// What its `Condition…=` said; false also where they were never asked.
    pub condition_result: bool,
    /// When they were last asked, `CLOCK_MONOTONIC`; 0: never.
    pub condition_usec: u64,
    /// Its main process; 0 while there is none.
    pub main_pid: u32,
    /// Automatic restarts since the last start by hand.
    pub n_restarts: Option<u64>,
    /// Starts allowed in systemd's window.
    pub start_limit_burst: u64,
    /// When it last became active, `CLOCK_MONOTONIC`.
    pub active_enter_usec: u64,
    /// When its state last changed, `CLOCK_MONOTONIC`.
    pub state_change_usec: u64,
    exec: Exec,
    lives: VecDeque<Life>,
}

/// `ExecMain…` as they arrive, one property at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Exec {
    pid: u32,
    start_usec: u64,
    exit_usec: u64,
    code: u64,
    status: i64,
}

impl UnitState {
    /// The properties of `org.freedesktop.systemd1.Unit` that are read.
    pub const UNIT_PROPERTIES: &'static [&'static str] = &[
        "LoadState",
        "LoadError",
        "ActiveState",
        "SubState",
        "UnitFileState",
        "FragmentPath",
        "InvocationID",
        "TriggeredBy",
        "NeedDaemonReload",
        "ConditionResult",
        "ConditionTimestampMonotonic",
        "StartLimitBurst",
        "ActiveEnterTimestampMonotonic",
        "StateChangeTimestampMonotonic",
    ];
    /// The properties of the unit's own type that are read; which of them there are depends on the type.
    pub const TYPE_PROPERTIES: &'static [&'static str] = &[
        "Result",
        "Type",
        "Restart",
        "ControlGroup",
        "RemainAfterExit",
        "MainPID",
        "NRestarts",
        "ExecMainPID",
        "ExecMainStartTimestampMonotonic",
        "ExecMainExitTimestampMonotonic",
        "ExecMainCode",
        "ExecMainStatus",
    ];

    /// Whether a property is one of those.
    pub fn reads(name: &str) -> bool {
        Self::UNIT_PROPERTIES.contains(&name) || Self::TYPE_PROPERTIES.contains(&name)
    }

    /// Takes one property; false when it is none of those above, or not of their type.
    pub fn set(&mut self, name: &str, value: &Property) -> bool {
        let place = match name {
            "LoadState" => &mut self.load_state,
            "ActiveState" => &mut self.active_state,
            "SubState" => &mut self.sub_state,
            "UnitFileState" => &mut self.unit_file_state,
            "FragmentPath" => &mut self.fragment_path,
            "Result" => &mut self.result,
            "Type" => &mut self.kind,
            "Restart" => &mut self.restart,
            "ControlGroup" => &mut self.control_group,
            _ => return self.set_other(name, value).is_some(),
        };
        let Some(text) = value.text() else { return false };
        if !(text.is_empty() && name == "ControlGroup") {
            *place = text;
        }
        true
    }

    fn set_other(&mut self, name: &str, value: &Property) -> Option<()> {
        match name {
            "LoadError" => {
                // (name, sentence).
                let Property::List(parts) = value else { return None };
                self.load_error = parts.get(1).and_then(Property::text).unwrap_or_default();
            }
            "InvocationID" => {
                let Property::Bytes(bytes) = value else { return None };
                self.invocation_id = hex(bytes);
            }
            "TriggeredBy" => {
                let Property::List(names) = value else { return None };
                self.triggered_by = names.iter().filter_map(Property::text).take(TRIGGERS_MAX).collect();
            }
            "NeedDaemonReload" => self.need_daemon_reload = value.flag()?,
            "RemainAfterExit" => self.remain_after_exit = value.flag()?,
            "ConditionResult" => self.condition_result = value.flag()?,
            "ConditionTimestampMonotonic" => self.condition_usec = value.number()?,
            "StartLimitBurst" => self.start_limit_burst = value.number()?,
            "ActiveEnterTimestampMonotonic" => self.active_enter_usec = value.number()?,
            "StateChangeTimestampMonotonic" => self.state_change_usec = value.number()?,
            "MainPID" => self.main_pid = u32::try_from(value.number()?).ok()?,
            "NRestarts" => self.n_restarts = Some(value.number()?),
            "ExecMainPID" => self.exec.pid = u32::try_from(value.number()?).ok()?,
            "ExecMainStartTimestampMonotonic" => self.exec.start_usec = value.number()?,
            "ExecMainExitTimestampMonotonic" => self.exec.exit_usec = value.number()?,
            "ExecMainCode" => self.exec.code = value.number()?,
            "ExecMainStatus" => self.exec.status = value.signed()?,
            _ => return None,
        }
        Some(())
    }

    /// After all properties of one message are set: notes the life that they tell of.
    pub fn settle(&mut self) {
        let Exec { pid, start_usec, exit_usec, code, status } = self.exec;
        if pid == 0 || start_usec == 0 {
            return;
        }
        let exit = if exit_usec == 0 { None } else { Exit::new(code, status) };
        // Of a life that is first seen when it is over and followed, the counter may already be that of the next one.
        let is_followed = exit_usec != 0 && self.active_state == "activating";
        let n_restarts = self.n_restarts.unwrap_or(0).saturating_sub(u64::from(is_followed));
        let life = Life { pid, start_usec, exit_usec, exit, n_restarts };
        match self.lives.iter_mut().find(|known| known.is_same(&life)) {
            // The counter of the next life may already stand beside the end of this one.
            Some(known) => (known.exit_usec, known.exit) = (life.exit_usec, life.exit),
            None => {
                if self.lives.len() == LIVES_MAX {
                    self.lives.pop_front();
                }
                self.lives.push_back(life);
            }
        }
    }

    /// Takes over the lives and the cgroup that an earlier reading of this unit knew: a new connection starts with the newest alone.
    pub fn inherit(&mut self, earlier: &Self) {
        if self.control_group.is_empty() {
            self.control_group.clone_from(&earlier.control_group);
        }
        let newest = std::mem::take(&mut self.lives);
        self.lives = earlier.lives.clone();
        for life in newest {
            match self.lives.iter_mut().find(|known| known.is_same(&life)) {
                Some(known) => (known.exit_usec, known.exit) = (life.exit_usec, life.exit),
                None => {
                    if self.lives.len() == LIVES_MAX {
                        self.lives.pop_front();
                    }
                    self.lives.push_back(life);
                }
            }
        }
    }

    /// The main processes seen since this unit is watched, oldest first.
    pub fn lives(&self) -> &VecDeque<Life> {
        &self.lives
    }

    /// The newest main process, living or not.
    pub fn newest(&self) -> Option<&Life> {
        self.lives.back()
    }

    /// Whether enough is known to judge it.
    pub fn is_complete(&self) -> bool {
        !self.load_state.is_empty() && !self.active_state.is_empty()
    }

    /// How long this state may last without a meaning of its own; `None`: it is one to stay in.
    pub fn passes_within(&self) -> Option<Duration> {
        match self.active_state.as_str() {
            "active" => None,
            "failed" if self.wants_restart() => Some(FAILED_GRACE),
            "failed" => None,
            _ => Some(DOWN_GRACE),
        }
    }

    /// Whether systemd may start it again by itself.
    pub fn wants_restart(&self) -> bool {
        !matches!(self.restart.as_str(), "" | "no")
    }

    /// Whether its last start was skipped because of a `Condition…=`.
    pub fn was_skipped(&self) -> bool {
        !self.condition_result && self.condition_usec > 0
    }

    /// Whether it is a service that starts, does its work and ends.
    pub fn is_oneshot(&self) -> bool {
        self.kind == "oneshot"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(text: &str) -> Property {
        Property::Text(text.to_owned())
    }

    #[test]
    fn properties_of_another_type_are_ignored() {
        let mut state = UnitState::default();
        assert!(state.set("ActiveState", &text("active")));
        assert!(!state.set("ActiveState", &Property::Number(1)));
        assert!(!state.set("MainPID", &text("7")));
        assert!(!state.set("MainPID", &Property::Number(u64::MAX)));
        assert!(!state.set("NoSuchProperty", &text("x")));
        assert_eq!((state.active_state.as_str(), state.main_pid), ("active", 0));
        assert!(state.set("FragmentPath", &text(&"x".repeat(9_999))));
        assert!(state.fragment_path.len() <= TEXT_BYTES_MAX);
        assert!(state.set("InvocationID", &Property::Bytes(vec![0, 0xab])));
        assert_eq!(state.invocation_id, "00ab");
    }

    fn run(state: &mut UnitState, pid: u64, start: u64, exit: u64, code: u64, status: i64, restarts: u64) {
        for (name, value) in [
            ("NRestarts", Property::Number(restarts)),
            ("ExecMainPID", Property::Number(pid)),
            ("ExecMainStartTimestampMonotonic", Property::Number(start)),
            ("ExecMainExitTimestampMonotonic", Property::Number(exit)),
            ("ExecMainCode", Property::Signed(code.try_into().unwrap())),
            ("ExecMainStatus", Property::Signed(status)),
        ] {
            assert!(state.set(name, &value), "{name}");
        }
        state.settle();
    }

    #[test]
    fn lives_are_noted_once_each_and_bounded() {
        let mut state = UnitState::default();
        state.settle();
        assert!(state.lives().is_empty());
        run(&mut state, 7, 1_000, 0, 0, 0, 0);
        run(&mut state, 7, 1_000, 5_000_000, 2, 9, 1);
        let [life] = state.lives().iter().copied().collect::<Vec<_>>()[..] else { panic!() };
        assert_eq!((life.exit, life.n_restarts), (Some(Exit::Signal(9)), 0));
        assert_eq!(life.lifetime_ms(), Some(4_999));
        let earlier = state.clone();
        for n in 0..100 {
            run(&mut state, 8 + n, 6_000_000 + n, 0, 0, 0, n);
        }
        assert_eq!(state.lives().len(), LIVES_MAX);
        // First seen when it is over and systemd has counted its successor.
        let mut late = UnitState { active_state: "activating".to_owned(), ..UnitState::default() };
        run(&mut late, 7, 1_000, 2_000, 1, 7, 1);
        run(&mut late, 8, 3_000, 0, 0, 0, 1);
        assert_eq!(late.lives().iter().map(|life| life.n_restarts).collect::<Vec<_>>(), [0, 1]);
        let mut fresh = UnitState::default();
        run(&mut fresh, 9, 7_000_000, 0, 0, 0, 1);
        fresh.inherit(&earlier);
        assert_eq!(fresh.lives().iter().map(|life| life.pid).collect::<Vec<_>>(), [7, 9]);
    }

    #[test]
    fn exits_in_words() {
        for (code, status, words) in [
            (1, 3, "exited with status 3"),
            (1, 203, "exited with status 203 (its program cannot be executed)"),
            (2, 9, "was killed by SIGKILL (9)"),
            (2, 64, "was killed by signal 64"),
            (3, 11, "crashed with SIGSEGV (11) and dumped core"),
        ] {
            assert_eq!(Exit::new(code, status).unwrap().words(), words);
        }
        assert_eq!(Exit::new(0, 0), None);
        assert_eq!(Exit::Status(203).status(), Some(ExitStatus::Code(203)));
        assert_eq!(Exit::Core(11).status(), Some(ExitStatus::Signal { signal: 11, core_dumped: true }));
        assert_eq!(Exit::Signal(-9).status(), None);
        assert_eq!((signal_words(9), signal_words(40)), ("SIGKILL (9)".to_owned(), "signal 40".to_owned()));
        assert!(Exit::Signal(13).is_orderly() && !Exit::Signal(9).is_orderly() && !Exit::Status(1).is_orderly());
    }

    fn any_property() -> impl Strategy<Value = Property> {
        let leaf = prop_oneof![
            ".{0,40}".prop_map(Property::Text),
            any::<u64>().prop_map(Property::Number),
            any::<i64>().prop_map(Property::Signed),
            any::<bool>().prop_map(Property::Flag),
            proptest::collection::vec(any::<u8>(), 0..40).prop_map(Property::Bytes),
            Just(Property::Other),
        ];
        leaf.prop_recursive(2, 8, 4, |inner| proptest::collection::vec(inner, 0..4).prop_map(Property::List))
    }

    proptest! {
        #[test]
        fn takes_whatever_a_bus_sends(index in 0usize..25, value in any_property()) {
            let names: Vec<&str> =
                UnitState::UNIT_PROPERTIES.iter().chain(UnitState::TYPE_PROPERTIES).copied().collect();
            let mut state = UnitState::default();
            state.set(names[index % names.len()], &value);
            state.settle();
            prop_assert!(value.to_string().len() < 100_000);
        }
    }
}

//! Who was heard when. Outside State: heartbeats are not journaled; what comes of them ([`Swept`]) is.
//!
//! Judged by the coordinator's own clock; what a host says about time has no place here.

use crate::entry::{Disconnect, Silence};
use crate::policy::LivenessPolicy;
use crate::state::{AgentRecord, Link, State};
use muster_common::ids::AgentName;
use muster_common::time::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// Reconnects of one agent within [`FLAP_WINDOW`] that are not those of a healthy one.
pub const FLAP_RECONNECTS: u64 = 10;
/// Reconnects are counted over this long.
pub const FLAP_WINDOW: Duration = Duration::from_secs(600);

/// How one agent is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contact {
    /// A stream is open.
    Open,
    /// Known from State; not heard by this process yet.
    Awaited,
    /// The stream ended.
    Ended { how: Disconnect, at: Timestamp, reported: bool },
    /// Reported silent.
    Silent,
}

#[derive(Debug, Clone)]
struct Row {
    last_heard: Timestamp,
    contact: Contact,
    reconnects: u64,
    reconnects_since: Timestamp,
    /// Many reconnects were reported; the next report comes no sooner than this.
    flapping_until: Option<Timestamp>,
}

/// What a sweep found; each becomes a fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swept {
    /// The agent is silent.
    Silent {
        /// Who.
        agent: AgentName,
        /// Last heard, log time.
        last_heard: Timestamp,
        /// Why it counts as silent.
        silence: Silence,
    },
    /// The stream ended and the agent did not come back within the confirmation interval.
    Disconnected {
        /// Who.
        agent: AgentName,
        /// How.
        how: Disconnect,
    },
    /// More reconnects than a healthy agent makes.
    Flapping {
        /// Who.
        agent: AgentName,
        /// How many.
        reconnects: u64,
    },
}

/// What a sign of life means for the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Nothing new.
    AsExpected,
    /// It was silent, or not known to be alive: journal it (`AgentHeard`, or `AgentConnected` for a new stream).
    Back,
}

/// The table.
#[derive(Debug, Clone)]
pub struct Liveness {
    rows: BTreeMap<AgentName, Row>,
    /// Since when this process listens: what was heard before says nothing about an agent that is awaited.
    listening_since: Timestamp,
    listening_until_sure: Timestamp,
}

impl Liveness {
    /// Every agent of State is awaited; those that are silent or said goodbye stay what they are.
    pub fn from_state(state: &State, now: Timestamp) -> Self {
        let listening_until_sure = state.rehear_until().unwrap_or(now);
        let mut table = Self { rows: BTreeMap::new(), listening_since: now, listening_until_sure };
        for agent in state.agents() {
            let (contact, last_heard) = match &agent.link {
                Link::Silent { last_heard, .. } => (Contact::Silent, *last_heard),
                Link::Disconnected { how, at } if planned(*how) => {
                    (Contact::Ended { how: *how, at: *at, reported: true }, *at)
                }
                Link::Disconnected { at, .. } => (Contact::Awaited, *at),
                Link::Heard | Link::NotReheard => (Contact::Awaited, heard_at_least(state, agent)),
            };
            table.rows.insert(agent.name.clone(), Row::new(last_heard, contact));
        }
        table
    }

    /// Adds an agent that is known and awaited.
    pub fn register(&mut self, agent: &AgentName, last_heard: Timestamp) {
        self.rows.entry(agent.clone()).or_insert_with(|| Row::new(last_heard, Contact::Awaited));
    }

    /// Forgets an agent that was archived: nobody waits for it.
    pub fn forget(&mut self, agent: &AgentName) {
        self.rows.remove(agent);
    }

    /// A stream began. `Back` means that the connect is to be journaled; a reconnect inside the confirmation interval is
    /// counted only.
    pub fn connected(&mut self, agent: &AgentName, now: Timestamp) -> Heard {
        let row = self.rows.entry(agent.clone()).or_insert_with(|| Row::new(now, Contact::Awaited));
        let answer = match row.contact {
            Contact::Open | Contact::Ended { reported: false, .. } => {
                if now.since(row.reconnects_since) > FLAP_WINDOW {
                    row.reconnects = 0;
                    row.reconnects_since = now;
                }
                row.reconnects += 1;
                Heard::AsExpected
            }
            Contact::Awaited | Contact::Silent | Contact::Ended { .. } => Heard::Back,
        };
        row.contact = Contact::Open;
        row.last_heard = now;
        answer
    }

    /// A message came on an open stream at `at`. Told again, or late, it is no sign of life after a standstill.
    pub fn heard(&mut self, agent: &AgentName, at: Timestamp) -> Heard {
        let since = self.listening_since;
        self.rows.get_mut(agent).map_or(Heard::AsExpected, |row| row.heard(at, since))
    }

    /// As [`Liveness::heard`] for many, told in order of names: one walk over the table instead of a search for each.
    /// Gives those that are back.
    pub fn heard_all<'a>(&mut self, told: impl IntoIterator<Item = (&'a AgentName, Timestamp)>) -> Vec<AgentName> {
        let since = self.listening_since;
        let (mut rows, mut back) = (self.rows.iter_mut().peekable(), Vec::new());
        for (agent, at) in told {
            while rows.next_if(|(name, _)| *name < agent).is_some() {}
            if let Some((_, row)) = rows.next_if(|(name, _)| *name == agent)
                && row.heard(at, since) == Heard::Back
            {
                back.push(agent.clone());
            }
        }
        back
    }

    /// A stream ended. True when that is to be journaled at once (a goodbye); the rest waits for confirmation.
    pub fn disconnected(&mut self, agent: &AgentName, how: Disconnect, now: Timestamp) -> bool {
        let Some(row) = self.rows.get_mut(agent) else { return false };
        if how == Disconnect::Replaced || row.contact == Contact::Silent {
            return false;
        }
        // The stream of before a standstill ends when its keepalives were missed: the agent is awaited all the same.
        if row.contact == Contact::Awaited && !planned(how) {
            return false;
        }
        row.contact = Contact::Ended { how, at: now, reported: planned(how) };
        planned(how)
    }

    /// Last time heard.
    pub fn last_heard(&self, agent: &AgentName) -> Option<Timestamp> {
        self.rows.get(agent).map(|row| row.last_heard)
    }

    /// True while a stream is open, as far as is known.
    pub fn is_connected(&self, agent: &AgentName) -> bool {
        self.rows.get(agent).is_some_and(|row| row.contact == Contact::Open)
    }

    /// This process stood still: what it did not hear meanwhile proves nothing. Every open stream is awaited again
    /// until `rehear_until`, whatever was heard before `now`.
    pub fn paused(&mut self, now: Timestamp, rehear_until: Timestamp) {
        self.listening_since = now;
        self.listening_until_sure = rehear_until;
        for row in self.rows.values_mut() {
            match row.contact {
                Contact::Open => row.contact = Contact::Awaited,
                Contact::Ended { how, .. } if !planned(how) => row.contact = Contact::Awaited,
                _ => {}
            }
        }
    }

    /// One pass over the table: who is silent now. In order of names.
    ///
    /// `excused` tells of an agent that said goodbye whether that was planned for still: a maintenance goes on.
    pub fn sweep(
        &mut self,
        now: Timestamp,
        policy: &LivenessPolicy,
        excused: impl Fn(&AgentName) -> bool,
    ) -> Vec<Swept> {
        let stale = policy.heartbeat * policy.stale_after;
        let mut swept = Vec::new();
        for (agent, row) in &mut self.rows {
            row.sweep(agent, (now, stale, self.listening_until_sure), policy, &excused, &mut swept);
        }
        swept
    }
}

impl Row {
    fn new(last_heard: Timestamp, contact: Contact) -> Self {
        Self { last_heard, contact, reconnects: 0, reconnects_since: last_heard, flapping_until: None }
    }

    fn heard(&mut self, at: Timestamp, listening_since: Timestamp) -> Heard {
        self.last_heard = self.last_heard.max(at);
        match self.contact {
            Contact::Awaited if at < listening_since => Heard::AsExpected,
            Contact::Silent | Contact::Awaited => {
                self.contact = Contact::Open;
                Heard::Back
            }
            Contact::Open | Contact::Ended { .. } => Heard::AsExpected,
        }
    }

    fn sweep(
        &mut self,
        agent: &AgentName,
        (now, stale, sure_from): (Timestamp, Duration, Timestamp),
        policy: &LivenessPolicy,
        excused: &impl Fn(&AgentName) -> bool,
        swept: &mut Vec<Swept>,
    ) {
        // Once in a window, however fast it goes on: the journal is not to grow with the reconnects.
        if self.reconnects >= FLAP_RECONNECTS && self.flapping_until.is_none_or(|until| now >= until) {
            swept.push(Swept::Flapping { agent: agent.clone(), reconnects: self.reconnects });
            self.reconnects = 0;
            self.reconnects_since = now;
            self.flapping_until = Some(now + FLAP_WINDOW);
        }
        if let Contact::Ended { how, at, reported: false } = self.contact
            && now.since(at) >= policy.heartbeat
        {
            swept.push(Swept::Disconnected { agent: agent.clone(), how });
            self.contact = Contact::Ended { how, at, reported: true };
        }
        let silence = match self.contact {
            Contact::Open if now.since(self.last_heard) >= stale => Silence::Nothing,
            Contact::Awaited if now >= sure_from => Silence::NotReheard,
            Contact::Ended { how: Disconnect::Goodbye, at, .. } if now.since(at) >= policy.goodbye_grace => {
                Silence::Goodbye
            }
            Contact::Ended { how: Disconnect::HostShutdown, at, .. } if now.since(at) >= policy.reboot_grace => {
                Silence::HostShutdown
            }
            Contact::Ended { how, .. } if !planned(how) && now >= sure_from && now.since(self.last_heard) >= stale => {
                Silence::Reset
            }
            _ => return,
        };
        let is_planned = matches!(silence, Silence::Goodbye | Silence::HostShutdown);
        if is_planned && excused(agent) {
            return;
        }
        self.contact = Contact::Silent;
        swept.push(Swept::Silent { agent: agent.clone(), last_heard: self.last_heard, silence });
    }
}

/// Until when an agent was heard as far as the journal knows: it has no heartbeats, but it would have its silence.
fn heard_at_least(state: &State, agent: &AgentRecord) -> Timestamp {
    let Some(connected) = agent.connected_at else { return agent.first_seen };
    state.listening.map_or(connected, |listening| connected.max(listening.heard_until))
}

fn planned(how: Disconnect) -> bool {
    matches!(how, Disconnect::Goodbye | Disconnect::HostShutdown)
}

/// Tells whether the process stood still between two ticks of its loop.
#[derive(Debug, Clone, Copy)]
pub struct PauseWatch {
    last_tick: Timestamp,
    tick: Duration,
}

impl PauseWatch {
    /// Ticks come every `tick`.
    pub fn new(now: Timestamp, tick: Duration) -> Self {
        Self { last_tick: now, tick }
    }

    /// A tick came: the length of the gap when it is longer than `bound` beyond the expected one.
    pub fn tick(&mut self, now: Timestamp, bound: Duration) -> Option<Duration> {
        let passed = now.since(self.last_tick);
        self.last_tick = now;
        (passed > self.tick + bound).then_some(passed)
    }
}

/// Length of the re-hear window: the longest reconnect back-off and connect, two heartbeats, and the time it takes to
/// admit `n_agents`.
pub fn rehear_window(policy: &LivenessPolicy, n_agents: u64) -> Duration {
    let admission = Duration::from_secs(n_agents / u64::from(policy.admission_per_s.max(1)));
    policy.reconnect_max + policy.heartbeat * 2 + admission
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix_ms(1_795_220_000_000) + Duration::from_secs(seconds)
    }

    fn agent() -> AgentName {
        AgentName::new("web-1").unwrap()
    }

    /// What happens to one agent at which second, and what the sweeps of each second tell.
    fn check(script: &[(u64, &str)], end: u64, expected: &[(u64, &str)]) {
        let policy = Policy::default().liveness;
        let mut table = Liveness::from_state(&State::genesis(), at(0));
        let mut told = Vec::new();
        for second in 0..=end {
            for (_, what) in script.iter().filter(|(when, _)| *when == second) {
                match *what {
                    "known" => table.register(&agent(), at(0)),
                    "connect" => {
                        if table.connected(&agent(), at(second)) == Heard::Back {
                            told.push((second, "back".to_owned()));
                        }
                    }
                    "beat" => {
                        if table.heard(&agent(), at(second)) == Heard::Back {
                            told.push((second, "back".to_owned()));
                        }
                    }
                    "reset" => assert!(!table.disconnected(&agent(), Disconnect::Reset, at(second))),
                    "shutdown" => assert!(table.disconnected(&agent(), Disconnect::HostShutdown, at(second))),
                    "maintenance" => {}
                    "goodbye" => assert!(table.disconnected(&agent(), Disconnect::Goodbye, at(second))),
                    "late beat" => assert_eq!(table.heard(&agent(), at(second - 2)), Heard::AsExpected),
                    "pause" => table.paused(at(second), at(second + 50)),
                    _ => panic!("unknown step {what}"),
                }
            }
            let excused = |_: &AgentName| script.iter().any(|(until, what)| *what == "maintenance" && second < *until);
            for swept in table.sweep(at(second), &policy, excused) {
                told.push((
                    second,
                    match swept {
                        Swept::Silent { silence, .. } => format!("{silence:?}"),
                        Swept::Disconnected { .. } => "disconnected".to_owned(),
                        Swept::Flapping { reconnects, .. } => format!("flapping {reconnects}"),
                    },
                ));
            }
        }
        let told: Vec<(u64, &str)> = told.iter().map(|(second, what)| (*second, what.as_str())).collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn silence_has_a_reason() {
        check(&[(0, "connect"), (5, "beat")], 40, &[(0, "back"), (20, "Nothing")]);
        check(&[(0, "connect"), (5, "reset")], 40, &[(0, "back"), (10, "disconnected"), (15, "Reset")]);
        check(&[(0, "connect"), (5, "goodbye")], 700, &[(0, "back"), (605, "Goodbye")]);
        check(&[(0, "connect"), (5, "shutdown")], 1000, &[(0, "back"), (905, "HostShutdown")]);
        check(&[(0, "known")], 5, &[(0, "NotReheard")]);
    }

    #[test]
    fn a_goodbye_within_a_maintenance_is_planned_until_that_is_over() {
        let script = [(0, "connect"), (5, "goodbye"), (2000, "maintenance")];
        check(&script, 2100, &[(0, "back"), (2000, "Goodbye")]);
        let script = [(0, "connect"), (5, "goodbye"), (300, "maintenance")];
        check(&script, 700, &[(0, "back"), (605, "Goodbye")]);
        // What falls silent without a word is found out all the same; the maintenance holds its page back.
        let script = [(0, "connect"), (5, "beat"), (2000, "maintenance")];
        check(&script, 40, &[(0, "back"), (20, "Nothing")]);
    }

    #[test]
    fn a_quick_reconnect_is_counted_only() {
        check(&[(0, "connect"), (3, "reset"), (6, "connect"), (12, "beat")], 20, &[(0, "back")]);
    }

    #[test]
    fn a_healthy_agent_comes_back_after_a_confirmed_reset() {
        let script = [(0, "connect"), (3, "reset"), (12, "connect"), (16, "beat")];
        check(&script, 20, &[(0, "back"), (8, "disconnected"), (12, "back")]);
    }

    #[test]
    fn a_pause_proves_nothing() {
        let script = [(0, "connect"), (10, "beat"), (11, "pause"), (30, "beat")];
        check(&script, 40, &[(0, "back"), (30, "back")]);
        check(&[(0, "connect"), (10, "beat"), (11, "pause")], 70, &[(0, "back"), (61, "NotReheard")]);
    }

    #[test]
    fn the_old_streams_end_after_a_pause_proves_nothing() {
        let script = [(0, "connect"), (10, "beat"), (14, "pause"), (15, "reset"), (35, "connect"), (40, "beat")];
        check(&script, 50, &[(0, "back"), (35, "back")]);
        // The new stream may come before the end of the old one is noticed; only then the fleet is at rest again.
        let script = [(0, "connect"), (10, "pause"), (11, "reset"), (20, "connect"), (22, "reset")];
        check(&script, 59, &[(0, "back"), (20, "back"), (27, "disconnected")]);
        check(&[(0, "connect"), (10, "pause"), (11, "reset")], 90, &[(0, "back"), (60, "NotReheard")]);
        check(&[(0, "connect"), (10, "pause"), (11, "goodbye")], 60, &[(0, "back")]);
    }

    #[test]
    fn what_was_heard_before_a_pause_does_not_count_after_it() {
        let script = [(0, "connect"), (10, "pause"), (11, "late beat"), (48, "beat")];
        check(&script, 55, &[(0, "back"), (48, "back")]);
    }

    #[test]
    fn many_are_heard_as_each_would_be() {
        let names: Vec<AgentName> = (0..40).map(|n| AgentName::new(format!("web-{n:02}")).unwrap()).collect();
        let mut table = Liveness::from_state(&State::genesis(), at(0));
        for name in names.iter().step_by(2) {
            table.register(name, at(0));
        }
        let mut one_by_one = table.clone();
        // Some that are not known, some that are not told of, some that were heard too long ago.
        let times = [at(5), at(0) - Duration::from_secs(9), at(6)];
        let told: Vec<_> = names.iter().skip(3).step_by(3).zip(times.into_iter().cycle()).collect();
        let back = table.heard_all(told.iter().copied());
        let expected: Vec<_> = told.iter().filter(|(name, at)| one_by_one.heard(name, *at) == Heard::Back).collect();
        assert!(!back.is_empty() && back.len() < told.len());
        assert!(back.iter().eq(expected.iter().map(|(name, _)| *name)));
        assert!(names.iter().all(|name| table.last_heard(name) == one_by_one.last_heard(name)));
    }

    #[test]
    fn flapping_is_one_fact() {
        let mut script = vec![(0, "connect")];
        for second in 1..=40 {
            script.push((second, "reset"));
            script.push((second, "connect"));
        }
        check(&script, 42, &[(0, "back"), (10, "flapping 10")]);
    }

    #[test]
    fn standing_still_is_noticed() {
        let mut watch = PauseWatch::new(at(0), Duration::from_secs(1));
        assert_eq!(watch.tick(at(1), Duration::from_secs(5)), None);
        assert_eq!(watch.tick(at(60), Duration::from_secs(5)), Some(Duration::from_secs(59)));
        assert_eq!(watch.tick(at(61), Duration::from_secs(5)), None);
    }

    #[test]
    fn a_large_fleet_is_reheard_for_longer() {
        let policy = Policy::default().liveness;
        assert_eq!(rehear_window(&policy, 10), Duration::from_secs(50));
        assert_eq!(rehear_window(&policy, 10_000), Duration::from_secs(55));
    }
}

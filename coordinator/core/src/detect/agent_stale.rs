//! An agent is not heard: which way it went, in words. Whether it counts as silent is the liveness table's to say.

use super::{Detector, Look};
use crate::cause::{self, CauseKind};
use crate::decide::assess::{Assessment, of_fleet};
use crate::decide::human;
use crate::entry::{Disconnect, Silence};
use crate::liveness::rehear_window;
use crate::state::{Cause, Link, State};
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;

/// See the head of the file.
#[derive(Debug)]
pub(super) struct AgentStale;

impl Detector for AgentStale {
    fn name(&self) -> &'static str {
        "agent_stale"
    }

    fn owns(&self, key: &str) -> bool {
        cause::kind_of(key) == CauseKind::AgentStale
    }

    fn assess(&self, state: &State, _now: Timestamp, _key: &str, cause: &Cause) -> Option<Assessment> {
        let agent = cause.agents.keys().next()?;
        let Silent { words, began, index, .. } = silent(state, agent)?;
        if index <= cause.dismissed_index {
            return None;
        }
        let mut next_steps = vec![
            format!("see whether the host answers: ping {agent}"),
            "on the host: systemctl status muster-agent; journalctl -u muster-agent -n 50".to_owned(),
        ];
        let mut summary = words;
        if let Some(question) = state.second_opinion(agent)
            && let Some(opinion) = &question.opinion
        {
            summary = format!("{summary}; {}", opinion.words(question.address));
            next_steps = opinion.next_steps(agent, question.address);
        }
        Some(of_fleet(state, Reason::AgentStale, began, true, summary, next_steps))
    }

    fn why(&self, state: &State, key: &str, found: &Assessment) -> String {
        let policy = &state.policy().liveness;
        let record = cause::agent_of(key).and_then(|agent| state.agent(&agent));
        let silence = record.and_then(|record| match &record.link {
            Link::Silent { silence, .. } => Some(*silence),
            _ => None,
        });
        let rule = match silence {
            Some(Silence::Goodbye) => format!("not back within {} after its goodbye", human(policy.goodbye_grace)),
            Some(Silence::HostShutdown) => {
                format!("not back within {} after its host went down", human(policy.reboot_grace))
            }
            Some(Silence::NotReheard) => {
                let window = rehear_window(policy, state.agents.len() as u64);
                format!("not back within {} after this coordinator began to listen", human(window))
            }
            Some(Silence::Reset | Silence::Nothing) | None => {
                format!("not heard for {} or more", human(policy.heartbeat * policy.stale_after))
            }
        };
        format!("{rule}: {}", found.severity)
    }

    fn recovered(&self, state: &State, key: &str) -> String {
        let agent = cause::agent_of(key);
        let record = agent.and_then(|agent| state.agent(&agent));
        match record.is_some_and(|record| record.watch.rebooted_while_silent) {
            true => "the agent is heard again; its host was rebooted meanwhile (its boot id changed)".to_owned(),
            false => "the agent is heard again".to_owned(),
        }
    }

    fn looks(&self, state: &State, now: Timestamp, agent: &AgentName) -> Vec<Look> {
        let Some(record) = state.agent(agent) else { return Vec::new() };
        let policy = &state.policy().liveness;
        let seen = match &record.link {
            Link::Heard => "it is heard".to_owned(),
            Link::NotReheard => "not heard yet since this coordinator began to listen".to_owned(),
            Link::Disconnected { how, at } => {
                format!("{} {} ago", disconnect_words(*how), human(now.since(*at)))
            }
            Link::Silent { .. } => silent(state, agent).map(|silent| silent.words).unwrap_or_default(),
        };
        let held_back_by = match &record.link {
            Link::Heard => "it is heard".to_owned(),
            Link::NotReheard => match state.rehear_until() {
                Some(until) => format!("agents are being re-heard until {until}"),
                None => String::new(),
            },
            Link::Disconnected { how: Disconnect::Goodbye, .. } => {
                format!("it said goodbye and has {} to come back", human(policy.goodbye_grace))
            }
            Link::Disconnected { how: Disconnect::HostShutdown, .. } => {
                format!("its host went down and has {} to come back", human(policy.reboot_grace))
            }
            Link::Disconnected { .. } => "it has one heartbeat to come back".to_owned(),
            Link::Silent { .. } => String::new(),
        };
        vec![Look {
            rule: self.name(),
            about: cause::agent_stale(agent),
            seen,
            threshold: format!("not heard for {}", human(policy.heartbeat * policy.stale_after)),
            reached: matches!(record.link, Link::Silent { .. }),
            held_back_by,
        }]
    }
}

fn disconnect_words(how: Disconnect) -> &'static str {
    match how {
        Disconnect::Goodbye => "it said goodbye",
        Disconnect::HostShutdown => "it said that its host goes down",
        Disconnect::Reset => "its connection was reset",
        Disconnect::Timeout => "its connection timed out",
        Disconnect::Refused => "its stream was refused",
        Disconnect::Replaced => "its stream was replaced",
        Disconnect::Draining => "this coordinator stopped",
    }
}

/// An agent's silence.
pub(super) struct Silent {
    /// Why it is silent, as a sentence.
    pub(super) words: String,
    /// When it was last heard, in words.
    pub(super) last_heard: String,
    /// When it began, as far as is known.
    pub(super) began: Timestamp,
    /// Index of the fact.
    pub(super) index: u64,
}

/// See [`Silent`].
pub(super) fn silent(state: &State, agent: &AgentName) -> Option<Silent> {
    let record = state.agent(agent)?;
    let Link::Silent { since, last_heard, silence, index } = &record.link else { return None };
    let how = match (silence, record.watch.left) {
        (Silence::HostShutdown, _) => {
            let grace = human(state.policy().liveness.reboot_grace);
            format!("said that its host goes down and did not come back within {grace}")
        }
        (Silence::Goodbye, _) => {
            let grace = human(state.policy().liveness.goodbye_grace);
            format!("said goodbye and did not come back within {grace}")
        }
        (Silence::Reset, Some(Disconnect::Timeout)) => {
            "answered no keepalive and did not come back: its connection timed out".to_owned()
        }
        (Silence::Reset, Some(Disconnect::Refused)) => {
            "broke the protocol, was cut off and did not come back".to_owned()
        }
        (Silence::Reset, _) => "had its connection reset and did not come back".to_owned(),
        (Silence::Nothing, _) => "says nothing on an open connection".to_owned(),
        (Silence::NotReheard, _) => "did not come back after this coordinator began to listen".to_owned(),
    };
    // While nobody listened it may have been well.
    let listening = state.listening.filter(|listening| *silence == Silence::NotReheard && listening.since <= *since);
    let began = listening.map_or(*last_heard, |listening| listening.since.max(*last_heard));
    let last_heard = silence.last_heard(*last_heard);
    Some(Silent { words: format!("agent {agent} {how}; {last_heard}"), last_heard, began, index: *index })
}

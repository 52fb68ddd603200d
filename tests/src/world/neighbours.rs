//! Neighbours of a silent agent: they answer what they like, late, to questions nobody asked, or not at all. And
//! operators who archive an agent that may come back.

use super::{AGENTS, World};
use muster_common::ids::AgentName;
use muster_coordinator_core::entry::{Conclusion, EntryBody, Fact};
use muster_coordinator_core::second_opinion::{ASKERS_MAX, PeerAnswer, PortAnswer, PortOutcome};
use muster_coordinator_core::state::Link;
use std::time::Duration;

/// An answer may come this late, long after the hold.
const LATE: Duration = Duration::from_secs(90);

impl World {
    /// Answers what was asked since the last turn, at once or later.
    pub(super) fn answer_questions(&mut self, index: usize) {
        let committed = &self.coordinators[index].committed;
        let from = self.asked.get(&index).copied().unwrap_or_default().min(committed.len());
        let questions: Vec<(u64, AgentName, Vec<u16>, Vec<AgentName>)> = committed[from..]
            .iter()
            .filter_map(|entry| match &entry.body {
                EntryBody::Conclusion(Conclusion::SecondOpinionWanted { agent, ports, askers, .. }) => {
                    Some((entry.index, agent.clone(), ports.clone(), askers.clone()))
                }
                _ => None,
            })
            .collect();
        self.asked.insert(index, committed.len());
        for (question, agent, ports, askers) in questions {
            self.count("second opinion");
            assert!(
                !askers.is_empty() && askers.len() <= ASKERS_MAX && !askers.contains(&agent),
                "{agent}: {askers:?}"
            );
            if self.rng.chance(15) {
                continue;
            }
            let answers = askers.into_iter().filter_map(|peer| self.opinion_of(peer, &ports)).collect();
            let question = if self.rng.chance(10) { question + 1 } else { question };
            let late = if self.rng.chance(30) { LATE } else { Duration::ZERO };
            self.opinions.push((self.now + late, index, Fact::SecondOpinion { agent, question, answers }));
        }
        let now = self.now;
        let due = self.opinions.extract_if(.., |(at, of, _)| *of == index && *at <= now).collect::<Vec<_>>();
        for (.., fact) in due {
            self.coordinators[index].hear_fact(now, fact);
        }
    }

    fn opinion_of(&mut self, peer: AgentName, ports: &[u16]) -> Option<PeerAnswer> {
        let outcomes = [PortOutcome::Open, PortOutcome::Refused, PortOutcome::Timeout, PortOutcome::Unreachable];
        let outcome = self.rng.pick(&outcomes).copied().unwrap_or(PortOutcome::Open);
        let ports = ports.iter().map(|port| PortAnswer { port: *port, outcome }).collect();
        match self.rng.below(10) {
            0 => None,
            1 => Some(PeerAnswer { peer, ports: Vec::new(), refused: Some("switched off".to_owned()) }),
            _ => Some(PeerAnswer { peer, ports, refused: None }),
        }
    }

    /// Forgets an agent that is not heard, although it comes back.
    pub(super) fn archive(&mut self, who: usize) {
        let (index, now) = (self.primary(), self.now);
        let agent = self.agents[who].name.clone();
        let coordinator = &self.coordinators[index];
        let heard = coordinator.machine.state().agent(&agent).is_none_or(|record| record.link == Link::Heard);
        if heard || !coordinator.reigns() || coordinator.frozen_until.is_some() {
            return;
        }
        self.coordinators[index].archive(now, &agent);
        // What it told is not remembered, so that it may be told again.
        let told: Vec<u64> = self.agents[who].written.values().copied().collect();
        self.agents[who].repeated.extend(told);
        self.count("archived");
        self.note(format!("{} is archived", AGENTS[who]));
    }
}

//! What must hold: after every event, and when all is well again.

use super::{AGENTS, World};
use crate::scenario::{check_what_if, json};
use muster_agent_core::session::Message;
use muster_common::finding::FindingKey;
use muster_common::ids::{AgentName, SpoolId};
use muster_common::severity::Severity;
use muster_coordinator_core::entry::{Entry, EntryBody, Fact};
use muster_coordinator_core::page::PageAction;
use muster_coordinator_core::policy::Policy;
use muster_coordinator_core::replay::WhatIfRun;
use muster_coordinator_core::state::PageRecord;
use muster_coordinator_core::{State, apply, invariants, replay};
use std::collections::BTreeMap;
use std::time::Duration;

impl World {
    /// Nothing but a goodbye goes to a coordinator of a lower epoch than the durable one.
    pub(super) fn check_epoch(&self, who: usize, stream: usize) {
        let coordinator = &self.coordinators[self.streams[stream].coordinator];
        let durable = self.agents[who].disk.spool.epoch.as_ref();
        let spoken_to = coordinator.own_epoch();
        assert!(durable <= Some(&spoken_to), "{} knows of {durable:?} and talks to {spoken_to}", AGENTS[who]);
    }

    /// Nothing is acknowledged before it is committed, nor called replicated before the other one has it.
    pub(super) fn check_ack(&self, index: usize, agent: &AgentName, ack: &Message) {
        let Message::Ack { spool, stored, replicated } = ack else { return };
        let safe = |index: usize| {
            let at = self.coordinators[index].stored.get(agent).filter(|(known, _)| known == spool);
            at.map_or(0, |(_, sequence)| *sequence)
        };
        let (committed, held) = (safe(index), safe(1 - index));
        assert!(*stored <= committed, "{agent} is told that {stored} is stored, {committed} is");
        // While two reign the other one has its own journal, which holds at least what this one had of it.
        let alone = self.coordinators.iter().filter(|coordinator| coordinator.primary).count() == 1;
        assert!(!alone || *replicated <= held, "{agent} is told that {replicated} is replicated, {held} is");
    }

    /// Remembers what an agent believes to be safe for ever.
    pub(super) fn note_safe(&mut self, who: usize, spool: SpoolId, replicated: u64) {
        let agent = &self.agents[who];
        let own = spool == agent.disk.spool.id;
        let kept = agent.disk.spool.entries.iter().filter(|entry| own && entry.sequence <= replicated);
        self.safe.extend(kept.filter_map(|entry| Some((who, *agent.written.get(&entry.hash)?))));
    }

    /// A page that leaves: not about a silence nobody listened to, and under no second key.
    pub(super) fn check_page(&mut self, index: usize, page: &PageRecord) {
        let state = self.coordinators[index].machine.state();
        let dedup = page.page.dedup_key.clone();
        match page.page.action {
            PageAction::Trigger => {
                // A page that was tried before is tried again: its receiver may know of it already.
                let silence = page.page.cause_key.ends_with("/agent") && !page.attempted;
                assert!(!(silence && state.rehear_until().is_some()), "paged about a silence while re-hearing");
                let keys_of = |incident: &muster_coordinator_core::state::Incident| {
                    incident.repages + incident.response.adoptions
                };
                let repages = state.incident(&page.incident).map_or(0, keys_of);
                let key = (page.incident.cause.clone(), page.incident.generation);
                let of_two = self.coordinators.iter().filter(|coordinator| coordinator.primary).count() > 1;
                let told = self.told.entry(key.clone()).or_default();
                told.repages = repages.max(told.repages);
                told.of_two |= of_two;
                told.keys.insert(dedup.clone());
                let fits = told.keys.len() as u64 <= told.repages + 1;
                assert!(fits || told.of_two, "{key:?} was paged under {told:?}");
                self.ringing.insert(dedup);
            }
            PageAction::Resolve => {
                self.ringing.remove(&dedup);
            }
            PageAction::Acknowledge => {}
        }
    }

    pub(super) fn check_journal(&self) {
        for coordinator in &self.coordinators {
            let mut fresh = State::genesis();
            let all = coordinator.committed.iter().chain(&coordinator.pending);
            for entry in all.clone() {
                let broken = invariants::check_entry(&fresh, entry);
                assert!(broken.is_empty(), "{}: {broken:#?} {entry:#?}", coordinator.name);
                apply(&mut fresh, entry);
            }
            let live = json(coordinator.machine.state());
            assert_eq!(json(&fresh), live, "{}: the journal gives another state", coordinator.name);
            let all: Vec<_> = all.cloned().collect();
            if let Err(divergence) = replay::verify(State::genesis(), &all) {
                panic!("{}: the replay diverges: {divergence:#?}", coordinator.name);
            }
        }
    }

    /// What another policy makes of the journal is no surprise: nothing under the same one, and under others nothing
    /// breaks and every page is told once.
    pub(super) fn check_what_if(&self) {
        let journal = &self.coordinators[self.primary()].committed;
        check_what_if(journal);
        let own = self.coordinators[self.primary()].machine.state().policy();
        let mut patient = own.clone();
        patient.liveness.stale_after += 3;
        patient.liveness.goodbye_grace *= 2;
        patient.hold.sev2 = Duration::from_secs(120);
        patient.hold.sev3 = Duration::ZERO;
        patient.restart_storm.host_restarts = 2;
        patient.page_from = Severity::Sev2;
        let strict = Policy { page_from: Severity::Sev4, ..own.clone() };
        for other in [patient, strict] {
            let mut run = WhatIfRun::new(State::genesis(), other).unwrap_or_else(|error| panic!("{error}"));
            for entry in journal {
                run.next(entry.clone()).unwrap_or_else(|error| panic!("{error}"));
            }
            let found = invariants::check(run.state());
            assert!(found.is_empty(), "under another policy: {found:#?}");
            let what_if = run.finish();
            let told = what_if.added.iter().chain(&what_if.removed).chain(what_if.moved.iter().map(|(told, _)| told));
            let mut names: Vec<_> = told.map(|told| (&told.receiver, &told.dedup_key)).collect();
            let all = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), all, "a page is told twice: {what_if:#?}");
            assert!(what_if.moved.iter().all(|(told, at)| told.at != *at), "it did not move: {what_if:#?}");
        }
    }

    /// Agents, the primary and the standby agree about what is open, and hosts about what is wrong with them.
    pub(super) fn check_open_sets(&self) {
        let state = self.coordinators[self.primary()].machine.state();
        for agent in &self.agents {
            let known = state.agent(&agent.name).unwrap_or_else(|| panic!("{} is not known", agent.name));
            let theirs: Vec<_> = known.open.keys().cloned().collect();
            let mut ours: Vec<_> = agent.disk.ledger.open().map(|finding| finding.key.clone()).collect();
            ours.sort();
            assert_eq!(theirs, ours, "open conditions of {} differ", agent.name);
            let untold = agent.sick.iter().find(|key| !ours.contains(key));
            assert!(untold.is_none(), "{} does not tell of {untold:?}", agent.name);
            // What is hidden by something worse on the same subject is not known to be over.
            let hidden = |told: &FindingKey| agent.sick.iter().any(|sick| sick.subject == told.subject);
            let made_up = ours.iter().find(|told| !agent.sick.contains(told) && !hidden(told));
            assert!(made_up.is_none(), "{} tells of {made_up:?}", agent.name);
            assert!(known.digest_matches, "the digest of {} is in doubt", agent.name);
            let position = known.position.map(|position| (position.spool, position.sequence));
            let spool = &agent.disk.spool;
            assert_eq!(position, Some((spool.id, spool.head)), "entries of {} are missing", agent.name);
        }
    }

    pub(super) fn check_everything_is_over(&self) {
        let state = self.coordinators[self.primary()].machine.state();
        assert_eq!(state.n_silent(), 0, "someone still counts as silent");
        assert_eq!(state.pending_pages().count(), 0, "pages are pending");
        let unresolved: Vec<_> = state.incidents().filter(|incident| incident.is_unresolved()).collect();
        assert!(unresolved.is_empty(), "unresolved: {unresolved:#?}");
        // A standby that took over before it had everything cannot know what the old primary had paged about.
        if self.takeovers == 0 {
            assert!(self.ringing.is_empty(), "still ringing although all is well: {:?}", self.ringing);
        }
    }

    /// What an agent wrote is in the journal once: no less unless its disk lost it, no more unless its spool had to
    /// start anew.
    pub(super) fn check_every_event_once(&self) {
        let journal = &self.coordinators[self.primary()].committed;
        for (who, agent) in self.agents.iter().enumerate() {
            let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
            for entry in journal {
                if let Some(event) = received(entry, &agent.name).and_then(|hash| agent.written.get(hash)) {
                    *counts.entry(*event).or_default() += 1;
                }
            }
            for event in agent.written.values() {
                let count = counts.get(event).copied().unwrap_or(0);
                let safe = self.safe.contains(&(who, *event));
                let may_miss = agent.gone.contains(event) && !safe;
                assert!(count > 0 || may_miss, "event {event} of {} is lost (told to be safe: {safe})", agent.name);
                let may_repeat = agent.repeated.contains(event);
                assert!(count <= 1 || may_repeat, "event {event} of {} counts {count} times", agent.name);
            }
        }
    }
}

fn received<'a>(entry: &'a Entry, name: &AgentName) -> Option<&'a muster_common::spool::EntryHash> {
    match &entry.body {
        EntryBody::Fact(Fact::FindingReceived { agent, position, .. }) if agent == name => Some(&position.hash),
        _ => None,
    }
}

//! What goes wrong, at random, and how it all heals.

use super::{AGENTS, Event, World, agent};
use muster_agent_core::session::{End, Input};
use muster_coordinator_core::entry::{Fact, IncidentKey};
use std::time::Duration;

/// How long a coordinator may stand still.
const PAUSE: Duration = Duration::from_secs(60);

impl World {
    /// One random thing.
    pub(super) fn act(&mut self) {
        let who = usize::try_from(self.rng.below(self.agents.len() as u64)).unwrap_or_default();
        match self.rng.below(100) {
            0..=24 => self.change_condition(who),
            25..=34 => self.occur(who),
            35..=39 => self.cut(who),
            40..=42 => self.partition(who),
            43 => self.stop_agent(who),
            44 => self.crash_agent(who),
            45 => self.reboot(who),
            46 => self.lose_disk(who),
            47 => self.put_aside_or_revert(who),
            48 => {
                let lost = self.agents[who].evict();
                self.note(format!("{} evicted {lost} entries", AGENTS[who]));
                self.spool_changed(who);
            }
            49 => self.crash(),
            50 if self.rng.chance(50) => self.take_over(),
            51..=53 => self.operate(),
            54 => self.pause(),
            55 => self.peers_meet(),
            56 => self.archive(who),
            57 => self.receiver_fails(),
            58 => self.resend(),
            59..=61 => self.people(),
            _ => {}
        }
    }

    /// A receiver takes nothing for a while, until it takes a page.
    fn receiver_fails(&mut self) {
        let receiver = if self.rng.chance(50) { "ops" } else { "chat" }.to_owned();
        self.note(format!("the receiver {receiver} fails"));
        let (now, index, error) = (self.now, self.primary(), "answered 503".to_owned());
        if !self.works(index) {
            return;
        }
        self.coordinators[index].hear_fact(now, Fact::ReceiverFailing { receiver, for_ms: 300_000, error });
    }

    /// Somebody sends a page again, whether that makes sense or not.
    fn resend(&mut self) {
        let (now, index) = (self.now, self.primary());
        let letters = self.coordinators[index].machine.state().dead_letters();
        let letters: Vec<_> = letters.map(|letter| letter.record.id).collect();
        let Some(page) = self.rng.pick(&letters).copied().filter(|_| self.works(index)) else { return };
        self.note(format!("the page {} is to be sent again", page.0));
        self.coordinators[index].hear_fact(now, Fact::ResendAsked { by: "ann".to_owned(), page });
    }

    pub(super) fn works(&self, index: usize) -> bool {
        self.coordinators[index].up && self.coordinators[index].frozen_until.is_none()
    }

    fn change_condition(&mut self, who: usize) {
        let conditions = agent::conditions();
        let Some(key) = self.rng.pick(&conditions).cloned() else { return };
        // What loops mostly goes on to, instead of staying down.
        if key == agent::end() && self.agents[who].sick.contains(&agent::restart_loop()) && self.rng.chance(70) {
            return;
        }
        let well = self.agents[who].sick.remove(&key);
        let words = format!("{} has {} {key}", AGENTS[who], if well { "no more" } else { "now" });
        if !well {
            self.agents[who].sick.insert(key);
        }
        self.note(words);
    }

    fn occur(&mut self, who: usize) {
        let occurrences = agent::occurrences();
        let Some(key) = self.rng.pick(&occurrences).cloned() else { return };
        self.note(format!("{} has {key}", AGENTS[who]));
        let now = self.now;
        self.agents[who].happened.push((key, now));
    }

    /// Breaks a stream; each side notices in its own time.
    fn break_stream(&mut self, stream: usize, agent_notices: bool) {
        self.streams[stream].open = false;
        let (there, here) = (self.rng.below(6_000), self.rng.below(6_000));
        let at = self.now + Duration::from_millis(there);
        self.schedule(at, Event::CoordinatorSees { stream });
        if agent_notices {
            let at = self.now + Duration::from_millis(here);
            self.schedule(at, Event::AgentSees { stream, end: End::Unavailable });
        }
    }

    fn cut(&mut self, who: usize) {
        let Some(stream) = self.agents[who].stream() else { return };
        self.break_stream(stream, true);
        self.note(format!("the stream of {} is cut", AGENTS[who]));
    }

    fn partition(&mut self, who: usize) {
        let until = self.now + Duration::from_secs(self.rng.below(90));
        self.agents[who].unreachable_until = until;
        self.note(format!("{} is unreachable until {until}", AGENTS[who]));
        self.cut(who);
    }

    fn starts_after(&mut self, who: usize, seconds_max: u64) {
        let at = self.now + Duration::from_secs(self.rng.below(seconds_max));
        let life = self.agents[who].life;
        self.schedule(at, Event::Starts { agent: who, life });
    }

    fn stop_agent(&mut self, who: usize) {
        self.note(format!("{} is stopped", AGENTS[who]));
        self.input(who, Input::Shutdown(false));
        self.agents[who].process = None;
        self.starts_after(who, 60);
    }

    /// kill -9: the disk stays, what was asked of it and not done is not done.
    fn crash_agent(&mut self, who: usize) {
        self.note(format!("{} crashes", AGENTS[who]));
        if let Some(stream) = self.agents[who].crash() {
            self.break_stream(stream, false);
        }
        self.starts_after(who, 30);
    }

    fn reboot(&mut self, who: usize) {
        self.crash_agent(who);
        let now = self.now;
        self.agents[who].reboot(now);
        self.note(format!("{} reboots", AGENTS[who]));
    }

    fn lose_disk(&mut self, who: usize) {
        self.crash_agent(who);
        self.agents[who].replace_disk();
        self.note(format!("{} lost its disk", AGENTS[who]));
    }

    fn put_aside_or_revert(&mut self, who: usize) {
        let now = self.now;
        match self.agents[who].snapshot.take() {
            None => {
                self.agents[who].take_snapshot(now);
                self.note(format!("{} is put aside", AGENTS[who]));
            }
            Some(snapshot) => {
                self.crash_agent(who);
                self.agents[who].revert(snapshot, now);
                self.note(format!("{} is reverted", AGENTS[who]));
                self.count("a machine is reverted");
            }
        }
    }

    fn crash(&mut self) {
        let index = self.primary();
        if !self.coordinators[index].up {
            return;
        }
        let lost = self.coordinators[index].crash();
        let back = self.now + Duration::from_secs(1 + self.rng.below(60));
        self.coordinators[index].back_at = Some(back);
        self.cut_all(index, End::Unavailable);
        // Also those that their agents had given up: what still waits in them is read by nobody.
        self.streams.iter_mut().filter(|stream| stream.coordinator == index).for_each(|stream| stream.open = false);
        self.note(format!("the primary crashes, loses {lost} entries, is back at {back}"));
    }

    fn cut_all(&mut self, coordinator: usize, end: End) {
        let streams: Vec<usize> = self.agents.iter().filter_map(agent::Agent::stream).collect();
        for stream in streams {
            if self.streams[stream].coordinator == coordinator {
                self.end_from_there(stream, end);
            }
        }
    }

    /// The standby becomes the primary. Sometimes the old one is out of reach and reigns on until it hears of it.
    fn take_over(&mut self) {
        let old = self.primary();
        let new = 1 - old;
        if self.coordinators[new].primary || !self.coordinators[new].up {
            return;
        }
        let epoch = self.coordinators.iter().map(|coordinator| coordinator.epoch).max().unwrap_or(0) + 1;
        let unheard = self.rng.chance(60);
        if !unheard {
            self.depose(old, "the operator");
        }
        let now = self.now;
        self.coordinators[new].take_over(now, epoch);
        self.takeovers += 1;
        self.note(format!("{} takes over with epoch {epoch}", self.coordinators[new].name));
        if unheard {
            self.count("two reign at once");
            self.note(format!("{} has not heard of it", self.coordinators[old].name));
        }
    }

    /// Its reign is over, as it has just learned.
    pub(super) fn depose(&mut self, index: usize, by: &str) {
        self.coordinators[index].step_down();
        self.cut_all(index, End::NotPrimary);
        self.note(format!("{} learns from {by} that it is not the primary", self.coordinators[index].name));
    }

    /// The coordinators hear each other again.
    fn peers_meet(&mut self) {
        let primary = self.primary();
        let epoch = self.coordinators[primary].own_epoch();
        let now = self.now;
        if self.coordinators[1 - primary].hear_epoch(now, epoch, "its peer") {
            self.depose(1 - primary, "its peer");
        }
    }

    fn operate(&mut self) {
        let index = self.primary();
        let open: Vec<IncidentKey> = {
            let state = self.coordinators[index].machine.state();
            state.incidents().filter(|incident| incident.is_unresolved()).map(|incident| incident.key.clone()).collect()
        };
        let resolve = self.rng.chance(40);
        let Some(key) = self.rng.pick(&open).cloned() else { return };
        let now = self.now;
        if self.coordinators[index].up && self.coordinators[index].frozen_until.is_none() {
            self.coordinators[index].operate(now, &key, resolve);
            self.note(format!("{} of {}", if resolve { "resolve" } else { "acknowledge" }, key.cause));
        }
    }

    fn pause(&mut self) {
        let index = self.primary();
        if !self.coordinators[index].up {
            return;
        }
        self.coordinators[index].frozen_until = Some(self.now + PAUSE);
        self.note("the primary stands still for 60 s".to_owned());
    }

    /// No more faults; what is wrong with the hosts stays.
    pub(super) fn heal(&mut self) {
        self.faults = false;
        let now = self.now;
        for who in 0..self.agents.len() {
            self.agents[who].unreachable_until = now;
            if !self.agents[who].is_up() {
                self.agents[who].start();
            }
        }
        for coordinator in &mut self.coordinators {
            if !coordinator.up {
                coordinator.restart(now);
            }
        }
        self.peers_meet();
        let state = self.coordinators[self.primary()].machine.state();
        let (entries, incidents) = (state.head_index(), state.incidents().count());
        let keys = self.told.values().map(|told| told.keys.len()).sum::<usize>();
        self.note(format!("healed after {entries} entries, {incidents} incidents, {keys} deduplication keys"));
    }
}

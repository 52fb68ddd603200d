//! The shell around the agents' sessions: does what they put out, tells them what happened. What the agent's uplink and
//! spool thread do with sockets and files, this does with the world's network and disks.

use super::spool::Spool;
use super::{AGENTS, COORDINATORS, DELAY_MS_MAX, Event, Stream, Up, World, endpoint};
use muster_agent_core::session::{End, Entry, Goodbye, Input, Message, Output, SpoolAnswer};
use muster_common::ids::{Epoch, SpoolId};
use muster_common::spool::Position;
use muster_common::time::Timestamp;
use muster_coordinator_core::entry::Disconnect;
use std::time::Duration;

/// Entries in one batch: few, so that windows fill.
const BATCH_ENTRIES: usize = 6;

/// What a session asks its spool for.
#[derive(Debug, Clone)]
pub(super) enum Work {
    StoreEpoch(Epoch),
    Compare(Position),
    Restart,
    Read { after: u64, up_to: u64 },
    Ack { spool: SpoolId, stored: u64, replicated: u64 },
    Snapshot,
}

impl World {
    /// A deadline of the session, or the probes.
    pub(super) fn agent_due(&mut self, who: usize) {
        let now = self.now;
        if self.agents[who].is_up() && self.agents[who].next_probe <= now {
            let (faults, rng) = (self.faults, &mut self.rng);
            if self.agents[who].probe(now, faults, || faults && rng.chance(10)) {
                self.spool_changed(who);
            }
        }
        if self.agents[who].deadline().is_some_and(|deadline| deadline <= now) {
            self.input(who, Input::Tick);
        }
    }

    pub(super) fn input(&mut self, who: usize, input: Input) {
        let random = self.rng.draw();
        for output in self.agents[who].handle(self.now, random, input) {
            self.output(who, output);
        }
    }

    pub(super) fn spool_changed(&mut self, who: usize) {
        let view = self.agents[who].disk.spool.view();
        self.input(who, Input::SpoolChanged(view));
    }

    fn output(&mut self, who: usize, output: Output) {
        match output {
            Output::Connect { stream, endpoint } => self.connect(who, stream, &endpoint),
            Output::StoreEpoch { epoch, .. } => self.ask(who, Work::StoreEpoch(epoch)),
            Output::CompareResume(position) => self.ask(who, Work::Compare(position)),
            Output::RestartSpool => self.ask(who, Work::Restart),
            Output::ReadEntries { after, up_to } => self.ask(who, Work::Read { after, up_to }),
            Output::StoreAck { spool, stored, replicated } => self.ask(who, Work::Ack { spool, stored, replicated }),
            Output::TakeSnapshot => self.ask(who, Work::Snapshot),
            // Nobody asks for preflight there.
            Output::StoreFreezes(_) | Output::Stopped | Output::Diagnose { .. } | Output::LookAtNeighbour { .. } => {}
            Output::Close(_) => {
                self.say(who, Up::Closed);
                if let Some(process) = self.agents[who].process.as_mut() {
                    (process.stream, process.open_set) = (None, None);
                }
            }
            Output::SendHello => {
                let spool = &self.agents[who].disk.spool;
                let hello = Up::Hello { spool: spool.id, highest: spool.epoch.clone() };
                self.say(who, hello);
            }
            Output::SendHeartbeat { .. } => {
                let disk = &self.agents[who].disk;
                let beat = Up::Beat { head: disk.spool.head, digest: disk.ledger.open_digest() };
                self.say(who, beat);
            }
            Output::SendEntries { spool, entries } => {
                let (now, boot) = (self.agents[who].clocks(self.now), self.agents[who].boot);
                let aged = |entry: Entry| {
                    let age = entry.written.age(now, boot);
                    (entry, age)
                };
                self.say(who, Up::Entries { spool, entries: entries.into_iter().map(aged).collect() });
            }
            Output::SendGap { spool, first, last } => {
                self.count("gap");
                self.say(who, Up::Gap { spool, first, last });
            }
            Output::SendSnapshot { request } => {
                let taken = self.agents[who].process.as_mut().and_then(|process| process.open_set.take());
                let (head, subjects) = taken.unwrap_or_else(|| panic!("{}: no snapshot was taken", AGENTS[who]));
                self.say(who, Up::OpenSet { request, head, subjects });
            }
            Output::SendPong { .. } => {}
            Output::SendGoodbye(goodbye) => {
                let how = match goodbye {
                    Goodbye::Shutdown => Disconnect::Goodbye,
                    Goodbye::HostShutdown => Disconnect::HostShutdown,
                    Goodbye::EpochRefused => Disconnect::Reset,
                };
                if goodbye == Goodbye::EpochRefused {
                    self.count("a lower epoch is refused");
                }
                self.say(who, Up::Goodbye { how });
            }
        }
    }

    fn connect(&mut self, who: usize, number: u64, to: &str) {
        let coordinator = COORDINATORS.iter().position(|name| endpoint(name) == to);
        let coordinator = coordinator.unwrap_or_else(|| panic!("{} connects to {to:?}", AGENTS[who]));
        let (stream, now, life) = (self.streams.len(), self.now, self.agents[who].life);
        let route = Stream { agent: who, coordinator, number, life, open: true, last_up: now, last_down: now };
        self.streams.push(route);
        if let Some(process) = self.agents[who].process.as_mut() {
            process.stream = Some((number, stream));
        }
        // A host that cannot be reached answers nothing; the session's own time-out notices.
        if now >= self.agents[who].unreachable_until {
            let at = now + self.delay();
            self.schedule(at, Event::Knock { stream });
        }
    }

    fn delay(&mut self) -> Duration {
        Duration::from_millis(if self.faults { self.rng.below(DELAY_MS_MAX) } else { 10 })
    }

    /// Sends on the agent's present stream.
    fn say(&mut self, who: usize, message: Up) {
        let Some(stream) = self.agents[who].stream() else { return };
        if !matches!(message, Up::Hello { .. } | Up::Goodbye { .. } | Up::Closed) {
            self.check_epoch(who, stream);
        }
        let delay = self.delay();
        let route = &mut self.streams[stream];
        route.last_up = (self.now + delay).max(route.last_up);
        let at = route.last_up;
        self.schedule(at, Event::Up { stream, message });
    }

    pub(super) fn send_down(&mut self, stream: usize, message: Message) {
        let delay = self.delay();
        let route = &mut self.streams[stream];
        route.last_down = (self.now + delay).max(route.last_down);
        let at = route.last_down;
        self.schedule(at, Event::Down { stream, message });
    }

    /// The spool works in order and in its own time.
    fn ask(&mut self, who: usize, work: Work) {
        // An epoch that becomes durable late, when another stream is open, has been believed too late before.
        let slow_percent = if matches!(work, Work::StoreEpoch(_)) { 40 } else { 4 };
        let slow = self.faults && self.rng.chance(slow_percent);
        let delay_ms = match (self.faults, slow) {
            (true, true) => self.rng.below(20_000),
            (true, false) => self.rng.below(200),
            (false, _) => 1,
        };
        let at = (self.now + Duration::from_millis(delay_ms)).max(self.agents[who].spool_busy_until);
        let agent = &mut self.agents[who];
        agent.spool_busy_until = at;
        let session_stream = agent.process.as_ref().and_then(|process| process.stream).map_or(0, |(number, _)| number);
        let life = agent.life;
        self.schedule(at, Event::Spool { agent: who, life, session_stream, work: Box::new(work) });
    }

    fn spool_works(&mut self, who: usize, life: u64, stream: u64, work: Work) {
        // A process that is gone asks for nothing any more.
        if self.agents[who].life != life || !self.agents[who].is_up() {
            return;
        }
        let spool: &mut Spool = &mut self.agents[who].disk.spool;
        let answer = match work {
            Work::StoreEpoch(epoch) => SpoolAnswer::EpochIs(spool.store_epoch(epoch)),
            Work::Compare(position) if spool.agrees(position) => SpoolAnswer::ResumeAgrees,
            Work::Compare(_) => SpoolAnswer::ResumeDiffers,
            Work::Restart => {
                self.agents[who].restart_spool();
                self.count("a spool starts anew");
                SpoolAnswer::Restarted(self.agents[who].disk.spool.view())
            }
            Work::Read { after, up_to } => SpoolAnswer::Entries(spool.read(after, up_to, BATCH_ENTRIES)),
            Work::Ack { spool: id, stored, replicated } => {
                self.note_safe(who, id, replicated);
                self.agents[who].disk.spool.ack(id, stored, replicated);
                return self.spool_changed(who);
            }
            Work::Snapshot => {
                let head = spool.head;
                let subjects = self.agents[who].subjects();
                self.spool_changed(who);
                if let Some(process) = self.agents[who].process.as_mut() {
                    process.open_set = Some((head, subjects));
                }
                return self.input(who, Input::SnapshotTaken(stream, head));
            }
        };
        self.input(who, Input::Spool(stream, answer));
    }

    pub(super) fn happen(&mut self, order: u64, event: Event) {
        match event {
            Event::Knock { stream } => self.knock(stream),
            Event::Connected { stream, refused } => self.tell_agent(stream, |number| match refused {
                None => Input::Connected(number),
                Some(end) => Input::Ended(number, end),
            }),
            Event::Up { stream, message } => self.deliver_up(order, stream, message),
            Event::Down { stream, message } => {
                if self.streams[stream].open {
                    self.tell_agent(stream, |number| Input::Received(number, message));
                }
            }
            Event::AgentSees { stream, end } => self.tell_agent(stream, |number| Input::Ended(number, end)),
            Event::CoordinatorSees { stream } => {
                let Stream { agent, coordinator, .. } = self.streams[stream];
                let (name, now) = (self.agents[agent].name.clone(), self.now);
                self.coordinators[coordinator].stream_ended(&name, stream, now, Disconnect::Reset);
            }
            Event::Spool { agent, life, session_stream, work } => self.spool_works(agent, life, session_stream, *work),
            Event::Starts { agent, life } => {
                if self.agents[agent].life == life && !self.agents[agent].is_up() {
                    self.agents[agent].start();
                    self.note(format!("{} is started", AGENTS[agent]));
                }
            }
        }
    }

    /// Tells the process that holds this stream, if it still does.
    fn tell_agent(&mut self, stream: usize, input: impl FnOnce(u64) -> Input) {
        let Stream { agent, number, life, .. } = self.streams[stream];
        if self.agents[agent].life != life || self.agents[agent].stream() != Some(stream) {
            return;
        }
        let input = input(number);
        if matches!(input, Input::Ended(..))
            && let Some(process) = self.agents[agent].process.as_mut()
        {
            process.stream = None;
        }
        self.input(agent, input);
    }

    fn knock(&mut self, stream: usize) {
        let coordinator = &self.coordinators[self.streams[stream].coordinator];
        let refused = match (coordinator.up, coordinator.primary) {
            (false, _) => Some(End::Unavailable),
            (true, false) => Some(End::NotPrimary),
            (true, true) => None,
        };
        let at = self.now + self.delay();
        self.streams[stream].last_down = at;
        self.schedule(at, Event::Connected { stream, refused });
    }

    fn deliver_up(&mut self, order: u64, stream: usize, message: Up) {
        let Stream { agent, coordinator, open, .. } = self.streams[stream];
        if !open || !self.coordinators[coordinator].up {
            return;
        }
        let now = self.now;
        if let Some(until) = self.coordinators[coordinator].frozen_until {
            if until > now {
                // In the order in which it came.
                self.events.insert((until, order), Event::Up { stream, message });
                return;
            }
            self.coordinators[coordinator].paused(now);
        }
        let name = self.agents[agent].name.clone();
        match message {
            Up::Hello { spool, highest } => self.hello(stream, spool, highest),
            Up::Goodbye { how } => {
                self.coordinators[coordinator].stream_ended(&name, stream, now, how);
                self.streams[stream].open = false;
            }
            Up::Closed => {
                self.coordinators[coordinator].stream_ended(&name, stream, now, Disconnect::Reset);
                self.streams[stream].open = false;
            }
            said => {
                let repeated = self.faults && !matches!(said, Up::OpenSet { .. }) && self.rng.chance(3);
                for _ in 0..=u8::from(repeated) {
                    if let Err(end) = self.coordinators[coordinator].hear(now, &name, stream, said.clone()) {
                        self.count("a stream is refused");
                        self.end_from_there(stream, end);
                        break;
                    }
                }
            }
        }
    }

    fn hello(&mut self, stream: usize, spool: SpoolId, highest: Option<Epoch>) {
        let Stream { agent, coordinator, .. } = self.streams[stream];
        let (now, name) = (self.now, self.agents[agent].name.clone());
        // News without a proof that can be checked are not believed: then the agent itself is the fence.
        let provable = !self.faults || self.rng.chance(50);
        if let Some(epoch) = highest.filter(|_| provable)
            && self.coordinators[coordinator].hear_epoch(now, epoch, name.as_str())
        {
            self.count("an agent brings a higher epoch");
            self.depose(coordinator, name.as_str());
        }
        if !self.coordinators[coordinator].primary {
            return self.end_from_there(stream, End::NotPrimary);
        }
        let welcome = self.coordinators[coordinator].welcome(now, &name, stream, spool);
        self.send_down(stream, welcome);
    }

    /// The coordinator ends a stream and says why.
    pub(super) fn end_from_there(&mut self, stream: usize, end: End) {
        self.streams[stream].open = false;
        let at: Timestamp = (self.now + self.delay()).max(self.streams[stream].last_down);
        self.schedule(at, Event::AgentSees { stream, end });
    }
}

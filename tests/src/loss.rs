//! Agents that live, on networks and under coordinators that do not always: packets are lost and sent again as TCP does,
//! the network is cut for seconds, the coordinator stands still for a minute. Whoever is then called silent is a false
//! alarm. The coordinator's judgement is the real one ([`Liveness`]); the agent's timing is that of its uplink.
//!
//! Between two troubles an agent beats in time and nothing can be concluded of it, so that time is stepped over: ten
//! million agent-hours take a minute. Must never step over a moment at which a sweep could find something.

use crate::rng::Rng;
use muster_agent_core::session::{BACKOFF, CONNECT_TIMEOUT_MS, GREETING_TIMEOUT_MS};
use muster_common::ids::{AgentName, NameError};
use muster_common::time::Timestamp;
use muster_coordinator_core::entry::Disconnect;
use muster_coordinator_core::liveness::{Liveness, Swept, rehear_window};
use muster_coordinator_core::policy::{LivenessPolicy, Policy};
use muster_coordinator_core::state::State;
use std::time::Duration;

/// From one end to the other.
const HALF_RTT_MS: u64 = 20;
/// Linux: the first retransmission of an established connection, twice as long each time, ...
const RTO_MS: u64 = 200 + 2 * HALF_RTT_MS;
const RTO_MAX_MS: u64 = 120_000;
/// ... and of a connect: five a second apart (`tcp_syn_linear_timeouts`, since 6.5), then twice as long each time.
const SYN_MS: u64 = 1_000;
const SYN_LINEAR: u32 = 4;
/// As the agent's uplink has it: without a word for so long it pings, ...
const KEEPALIVE_MS: u64 = 20_000;
/// ... and without an answer for so long it leaves.
const KEEPALIVE_TIMEOUT_MS: u64 = 4_000;
/// What the kernel does when nothing is acknowledged for so long.
const USER_TIMEOUT_MS: u64 = 4_000;
/// How often the coordinator sweeps.
const SWEEP_MS: u64 = 1_000;
/// Before a trouble nothing is stepped over: the longest that a beat and what it causes can take.
const CARE_MS: u64 = 60_000;
const HOUR_MS: u64 = 3_600_000;

/// What is wrong with the world.
#[derive(Debug, Clone)]
pub struct Conditions {
    /// Of a thousand packets.
    pub lost_permille: u64,
    /// Length of a cut, and the mean time between two of one agent.
    pub partition_ms: u64,
    /// As above.
    pub partition_every_hours: u64,
    /// Length of a standstill of the coordinator, and the mean time between two.
    pub pause_ms: u64,
    /// As above.
    pub pause_every_hours: u64,
    /// Thresholds.
    pub policy: LivenessPolicy,
    /// Agents of the fleet, for the re-hear window.
    pub fleet: u64,
}

impl Default for Conditions {
    /// The ones that the coordinator is built for.
    fn default() -> Self {
        Self {
            lost_permille: 10,
            partition_ms: 5_000,
            partition_every_hours: 4,
            pause_ms: 60_000,
            pause_every_hours: 24,
            policy: Policy::default().liveness,
            fleet: 10_000,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Hours lived, over all agents.
    pub agent_hours: u64,
    /// Heartbeats sent.
    pub beats: u64,
    /// Packets lost by chance.
    pub lost: u64,
    /// Cuts.
    pub partitions: u64,
    /// Standstills.
    pub pauses: u64,
    /// New connections.
    pub reconnects: u64,
    /// Agents called silent that lived.
    pub false_stale: u64,
    /// Longest time between two signs of life in ms, standstills of the coordinator left out.
    pub longest_gap_ms: u64,
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.agent_hours += other.agent_hours;
        self.beats += other.beats;
        self.lost += other.lost;
        self.partitions += other.partitions;
        self.pauses += other.pauses;
        self.reconnects += other.reconnects;
        self.false_stale += other.false_stale;
        self.longest_gap_ms = self.longest_gap_ms.max(other.longest_gap_ms);
    }
}

/// `agents` live for `hours` each.
pub fn run(seed: u64, agents: u64, hours: u64, conditions: &Conditions) -> Result<Outcome, NameError> {
    let mut outcome = Outcome::default();
    for agent in 0..agents {
        let rng = Rng::new(seed ^ agent.wrapping_mul(0x2545_f491_4f6c_dd1d));
        outcome.add(Life::new(AgentName::new("agent")?, rng, conditions).live(hours));
    }
    Ok(outcome)
}

/// One agent, its network, and the coordinator's table with it alone: rows do not know each other.
struct Life<'a> {
    name: AgentName,
    rng: Rng,
    conditions: &'a Conditions,
    table: Liveness,
    /// Start of the next or current cut.
    partition: u64,
    /// Start of the next or current standstill.
    pause: u64,
    /// When the coordinator was told something last.
    told: u64,
    /// The coordinator's last sign of life of it.
    heard: u64,
    heartbeat: u64,
    outcome: Outcome,
}

/// What the coordinator notices.
enum Sign {
    Beat,
    Connect,
    End(Disconnect),
}

impl<'a> Life<'a> {
    fn new(name: AgentName, mut rng: Rng, conditions: &'a Conditions) -> Self {
        let partition = gap(&mut rng, conditions.partition_every_hours);
        let pause = gap(&mut rng, conditions.pause_every_hours);
        let heartbeat = u64::try_from(conditions.policy.heartbeat.as_millis()).unwrap_or(u64::MAX);
        let table = Liveness::from_state(&State::genesis(), at(0));
        Self {
            name,
            rng,
            conditions,
            table,
            partition,
            pause,
            told: 0,
            heard: 0,
            heartbeat,
            outcome: Outcome::default(),
        }
    }

    fn live(mut self, hours: u64) -> Outcome {
        let end = hours.saturating_mul(HOUR_MS);
        let (mut closed, mut reset) = (0, None);
        loop {
            let (connected, welcomed) = self.connect(closed);
            if connected >= end {
                break;
            }
            if let Some(reset) = reset.filter(|reset| *reset < connected) {
                self.tell(reset, &Sign::End(Disconnect::Reset));
            }
            self.tell(connected, &Sign::Connect);
            let Some(close) = self.stream(connected, welcomed, end) else { break };
            self.outcome.reconnects += 1;
            closed = close;
            // The agent's kernel says goodbye for it, as soon as that gets through; not to a coordinator that stands still.
            let arrival = self.transmit(closed);
            reset = (arrival == self.resume(arrival)).then_some(arrival);
        }
        self.outcome.agent_hours = hours;
        self.outcome
    }

    /// Beats until the connection is given up; none when life is over.
    fn stream(&mut self, connected: u64, welcomed: u64, end: u64) -> Option<u64> {
        let (mut beat, mut read, mut delivered) = (welcomed, welcomed, connected);
        loop {
            if beat >= end {
                return None;
            }
            if let Some(last) = self.step_over(beat, delivered) {
                (delivered, read) = (last + HALF_RTT_MS, last + 2 * HALF_RTT_MS);
                self.table.heard(&self.name, at(delivered));
                (self.told, self.heard) = (delivered, delivered);
                beat = last + self.heartbeat;
                continue;
            }
            self.outcome.beats += 1;
            let arrival = self.transmit(beat).max(delivered);
            let taken = self.resume(arrival);
            // The coordinator has no answer to a heartbeat; what the agent reads is the pong of its transport.
            let ping = read + KEEPALIVE_MS;
            let pinged = if ping < beat + self.heartbeat { Some(ping) } else { None };
            let pong = pinged.map(|ping| {
                let at = self.transmit(ping.max(read)).max(delivered);
                let at = self.resume(at);
                self.transmit(at)
            });
            let mut close = pinged.map_or(u64::MAX, |ping| ping + KEEPALIVE_TIMEOUT_MS);
            if arrival > beat + USER_TIMEOUT_MS {
                close = close.min(beat + USER_TIMEOUT_MS);
            }
            if taken == arrival && arrival <= close {
                self.tell(arrival, &Sign::Beat);
            }
            delivered = arrival;
            if pong.is_some_and(|pong| pong > close) || arrival > close {
                return Some(close);
            }
            read = pong.unwrap_or(read);
            beat += self.heartbeat;
        }
    }

    /// The last beat before anything can go wrong, if there is one worth stepping to.
    fn step_over(&mut self, beat: u64, delivered: u64) -> Option<u64> {
        if delivered > beat {
            return None;
        }
        let trouble = self.partition.min(self.pause).checked_sub(CARE_MS)?.checked_sub(beat)?;
        // Beat, ping and pong: how often they get through before one does not.
        let mut calm = 0;
        let most = trouble / self.heartbeat;
        while calm < most && !(0..3).any(|_| self.is_lost()) {
            calm += 1;
        }
        self.outcome.beats += calm;
        (calm > 0).then(|| beat + (calm - 1) * self.heartbeat)
    }

    /// Tries until the coordinator has its hello: when that is, and when the agent has the welcome.
    fn connect(&mut self, closed: u64) -> (u64, u64) {
        let mut now = closed;
        for attempt in 0u32.. {
            let wait = BACKOFF.delay(attempt, self.rng.draw());
            now += u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            let deadline = now + CONNECT_TIMEOUT_MS;
            if let Some(shaken) = self.shake_hands(now).filter(|shaken| *shaken <= deadline) {
                let hello = self.transmit(shaken);
                let taken = self.resume(hello);
                let welcome = self.transmit(taken);
                if welcome <= shaken + GREETING_TIMEOUT_MS {
                    return (taken, welcome);
                }
                now = shaken + GREETING_TIMEOUT_MS;
            } else {
                now = deadline;
            }
        }
        (u64::MAX, u64::MAX)
    }

    /// TCP's and TLS's handshakes, begun at `now`.
    fn shake_hands(&mut self, now: u64) -> Option<u64> {
        let (mut syn, mut wait, mut tries) = (now, SYN_MS, 0);
        while self.is_cut(syn) || self.is_lost() || self.is_lost() {
            syn += wait;
            tries += 1;
            if tries > SYN_LINEAR {
                wait *= 2;
            }
            if syn > now + CONNECT_TIMEOUT_MS {
                return None;
            }
        }
        let client_hello = self.transmit(syn + 2 * HALF_RTT_MS);
        let answered = self.resume(client_hello);
        Some(self.transmit(answered))
    }

    /// When what is sent at `now` arrives.
    fn transmit(&mut self, now: u64) -> u64 {
        let (mut now, mut rto) = (now, RTO_MS);
        while self.is_cut(now) || self.is_lost() {
            now += rto;
            rto = (rto * 2).min(RTO_MAX_MS);
        }
        now + HALF_RTT_MS
    }

    fn is_lost(&mut self) -> bool {
        let lost = self.rng.below(1000) < self.conditions.lost_permille;
        self.outcome.lost += u64::from(lost);
        lost
    }

    fn is_cut(&self, now: u64) -> bool {
        (self.partition..self.partition + self.conditions.partition_ms).contains(&now)
    }

    /// When the coordinator does what there is to do at `now`.
    fn resume(&self, now: u64) -> u64 {
        let end = self.pause + self.conditions.pause_ms;
        if (self.pause..end).contains(&now) { end } else { now }
    }

    /// The coordinator notices something, after it has swept as often as was due.
    fn tell(&mut self, now: u64, sign: &Sign) {
        self.sweep_until(now);
        let first = self.heard == 0;
        match sign {
            Sign::Beat => {
                self.table.heard(&self.name, at(now));
            }
            Sign::Connect => {
                self.table.connected(&self.name, at(now));
            }
            Sign::End(how) => {
                self.table.disconnected(&self.name, *how, at(now));
            }
        }
        self.told = self.told.max(now);
        if !matches!(sign, Sign::End(_)) {
            if !first {
                self.outcome.longest_gap_ms = self.outcome.longest_gap_ms.max(now.saturating_sub(self.heard));
            }
            self.heard = now;
        }
        // What is over is drawn anew, once nothing that is under way can meet it any more.
        if now > self.partition + self.conditions.partition_ms + CARE_MS {
            self.outcome.partitions += 1;
            self.partition = now + gap(&mut self.rng, self.conditions.partition_every_hours);
        }
    }

    fn sweep_until(&mut self, now: u64) {
        let mut sweep = (self.told / SWEEP_MS + 1) * SWEEP_MS;
        while sweep <= now {
            let resumed = self.resume(sweep);
            if resumed > sweep || sweep == self.pause {
                let window = rehear_window(&self.conditions.policy, self.conditions.fleet);
                let end = self.pause + self.conditions.pause_ms;
                if end > now {
                    return;
                }
                self.table.paused(at(end), at(end) + window);
                self.outcome.pauses += 1;
                // Gaps over a standstill say nothing of the network.
                self.heard = end;
                self.pause = end + gap(&mut self.rng, self.conditions.pause_every_hours);
                sweep = end;
            }
            let silent = self.table.sweep(at(sweep), &self.conditions.policy, |_| false);
            let is_silent = |swept: &&Swept| matches!(swept, Swept::Silent { .. });
            self.outcome.false_stale += u64::try_from(silent.iter().filter(is_silent).count()).unwrap_or(u64::MAX);
            sweep += SWEEP_MS;
        }
    }
}

/// Drawn from all up to twice the mean, and never at once.
fn gap(rng: &mut Rng, every_hours: u64) -> u64 {
    2 * CARE_MS + rng.below(2 * every_hours.saturating_mul(HOUR_MS))
}

fn at(now: u64) -> Timestamp {
    Timestamp::from_unix_ms(1_795_220_000_000) + Duration::from_millis(now)
}

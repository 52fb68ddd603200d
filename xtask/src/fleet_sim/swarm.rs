//! All simulated agents: a thread or two that run their tasks, and one wheel that rings their bells.

use super::agent::{Agent, BEAT, Common, PING};
use super::papers::Papers;
use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Source addresses in use: one has too few ports for a fleet that comes back at once.
const SOURCES: u64 = 8;
/// Notches of the wheel: bells ring spread over the interval.
const NOTCH: Duration = Duration::from_millis(10);
/// Descriptors beyond the agents' sockets.
const SPARE_DESCRIPTORS: u64 = 256;

/// What a swarm is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// Agents.
    pub(crate) agents: usize,
    /// Between two heartbeats of one.
    pub(crate) heartbeat: Duration,
    /// Between two pings of its transport.
    pub(crate) ping: Duration,
    /// Threads that run them.
    pub(crate) threads: usize,
}

/// The fleet.
pub(crate) struct Swarm {
    pub(crate) agents: Vec<Arc<Agent>>,
    pub(crate) common: Arc<Common>,
    /// Ends the threads when dropped.
    _stop: watch::Sender<bool>,
}

impl Swarm {
    /// Makes the agents; none of them connects yet.
    pub(crate) fn new(papers: &Papers, target: SocketAddr, manner: Manner) -> Result<Self> {
        let common = Arc::new(Common {
            target,
            begun: Instant::now(),
            gate: watch::channel(true).0,
            connected: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            beats: AtomicU64::new(0),
            pings: AtomicU64::new(0),
            resyncs: AtomicU64::new(0),
            last_failure: Mutex::default(),
        });
        let agents = (0..manner.agents)
            .map(|index| {
                let number = u64::try_from(index)?;
                let name = format!("sim-{number:05}");
                let last = u8::try_from(2 + number % SOURCES)?;
                let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
                let tls = papers.agent(&name)?;
                Ok(Arc::new(Agent::new(name, number, source, tls, Arc::clone(&common))))
            })
            .collect::<Result<Vec<_>>>()?;
        let (stop, stopping) = watch::channel(false);
        for thread in 0..manner.threads.max(1) {
            let ours = agents.iter().skip(thread).step_by(manner.threads.max(1)).map(Arc::clone).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let mut stopping = stopping.clone();
            std::thread::Builder::new().name(format!("agents-{thread}")).spawn(move || {
                runtime.block_on(async move {
                    let turn = turn_wheel(ours, manner);
                    tokio::select! { () = turn => {}, _ = stopping.changed() => {} }
                });
            })?;
        }
        Ok(Self { agents, common, _stop: stop })
    }

    /// Lets the first `count` agents connect and stay, and the others not.
    pub(crate) fn wake(&self, count: usize) {
        self.agents.iter().enumerate().for_each(|(index, agent)| agent.wake(index < count));
    }

    /// Agents that have their welcome.
    pub(crate) fn connected(&self) -> usize {
        usize::try_from(self.common.connected.load(Ordering::Acquire)).unwrap_or(usize::MAX)
    }

    /// Waits until exactly `count` agents are connected; how long that took.
    pub(crate) fn until_connected(&self, count: usize, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        while self.connected() != count {
            let why = || self.common.last_failure.lock().map(|text| text.clone()).unwrap_or_default();
            ensure!(
                start.elapsed() < limit,
                "{} of {count} agents are connected after {limit:?}; {} tries failed, the last one: {}",
                self.connected(),
                self.common.failed.load(Ordering::Relaxed),
                why()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(start.elapsed())
    }

    /// Heartbeats sent so far.
    pub(crate) fn beats(&self) -> u64 {
        self.common.beats.load(Ordering::Relaxed)
    }
}

/// Runs the agents' tasks and rings: each agent at its own notch of the interval, so that load is even.
async fn turn_wheel(agents: Vec<Arc<Agent>>, manner: Manner) {
    for agent in &agents {
        tokio::spawn(Arc::clone(agent).live());
    }
    let mut wheels = [Wheel::new(BEAT, manner.heartbeat), Wheel::new(PING, manner.ping)];
    let begun = tokio::time::Instant::now();
    let mut ticks = tokio::time::interval(NOTCH);
    loop {
        ticks.tick().await;
        for wheel in &mut wheels {
            wheel.turn(begun.elapsed(), &agents);
        }
    }
}

struct Wheel {
    what: u32,
    every: Duration,
    /// Bells rung since the beginning.
    rung: u64,
}

impl Wheel {
    fn new(what: u32, every: Duration) -> Self {
        Self { what, every, rung: 0 }
    }

    fn turn(&mut self, elapsed: Duration, agents: &[Arc<Agent>]) {
        let Ok(count) = u128::try_from(agents.len()) else { return };
        if self.every.is_zero() || count == 0 {
            return;
        }
        let due = u64::try_from(elapsed.as_micros() * count / self.every.as_micros()).unwrap_or(u64::MAX);
        // After a standstill of this machine nobody is rung twice.
        self.rung = self.rung.max(due.saturating_sub(u64::try_from(agents.len()).unwrap_or(u64::MAX)));
        while self.rung < due {
            let index = usize::try_from(self.rung).unwrap_or_default() % agents.len();
            if let Some(agent) = agents.get(index).filter(|agent| agent.is_connected()) {
                agent.want(self.what);
            }
            self.rung += 1;
        }
    }
}

/// Each agent is a socket, here and, by inheritance, at the coordinator.
pub(crate) fn allow_descriptors(agents: usize) -> Result<()> {
    let wanted = u64::try_from(agents)? + SPARE_DESCRIPTORS;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= wanted {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted))
        .with_context(|| format!("{agents} agents need {wanted} open files, {hard} are allowed: raise ulimit -n"))
}

//! `muster-agent run`: the daemon. At most five threads: the first one judges, watches descriptors and owns the spool;
//! one for each kind of probes that there are; one for everything that waits for other programs, the uplink among them.
//! Others live for a moment only, for what may hang.
//!
//! Works without `[coordinator]` too: findings are then judged, logged and spooled.

pub mod asks;
mod host_files;
pub mod judge;
pub mod lanes;
mod link;
mod logs;
pub mod memory;
pub mod plan;
mod service_process;
mod service_units;
mod state;
mod veil;
pub mod watcher;

use crate::config::{Config, ConfigError};
use crate::local::{LinkStatus, LocalServer, Reporters};
use crate::net::{Net, NetHandle};
use crate::senses::HostRoot;
use crate::senses::disk::MountTable;
use crate::senses::sqlite::OneShot;
use crate::spool::SpoolOwner;
use crate::uplink::{FactsSetter, Stop, UplinkFacts};
use anyhow::Context as _;
use asks::Asks;
use judge::{Asked, Judge};
use link::Uplink;
use memory::{Memory, StateOutlet};
use muster_agent_core::clock::Now;
use plan::Means;
use sd_notify::NotifyState;
pub use state::SPOOL_FILE;
use state::State;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use watcher::Watcher;

/// `/proc/meminfo` has some sixty short lines.
const MEMINFO_BYTES_MAX: u64 = 16 * 1024;

/// Made in the runtime folder when the host goes down; see `systemd/muster-agent.service`.
const HOST_STOPPING_FILE: &str = "host-stopping";

/// Runs until asked to stop.
pub fn run(config_path: &Path) -> anyhow::Result<()> {
    let config = Config::load(config_path)?;
    let host = HostRoot::default();
    let boot = crate::clock::boot_id(&host);
    watcher::block_signals().context("cannot block signals")?;
    let (mut state, mut spool, handle) = State::open(&config, boot)?;
    let memory = Memory::load(&mut spool, boot)?;
    // Before the uplink's first heartbeat: a digest of nothing would ask the coordinator to forget what is open.
    let published = Published { ledger: memory.ledger.clone(), head_sequence: spool.view().head };
    let published = Arc::new(Mutex::new(published));
    let net_thread = Net::start().context("cannot start the net thread")?;
    let net = net_thread.handle();
    let (asks, questions) = asks::asks().context("cannot wait for questions")?;
    let uplink = Uplink::start(&config, &host, boot, &handle, &published, &net, &asks);
    drop(handle);
    let mut watcher = Watcher::new().context("cannot wait for events")?;
    watcher.listen(spool.bell()).context("cannot wait for events")?;
    let outlet = Outlet { spool, published, facts: uplink.as_ref().map(Uplink::facts) };
    let mut judge = Judge::new(memory, outlet, watcher).context("cannot wait for events")?;
    let link = uplink.as_ref().map(Uplink::status).unwrap_or_default();
    let reporters = Arc::new(Reporters::new(judge.services()));
    reporters.set(&config);
    judge.answer(questions).context("cannot wait for questions")?;
    let _local = serve_local(&config, &net, asks, &reporters, link.clone());
    let mounts = MountTable::new(host.clone());
    judge.plan_anew_on(mounts.moved());
    judge.watch(plan::probes_by(&config, &means(&host, &state, &net, &link), &mounts), config.probes.blind_after);
    tell_start(&config, &state);
    judge.look_at_disk_later();
    let mut current = config;
    loop {
        match judge.run() {
            Asked::Stop => break,
            Asked::LookAtDisk => {
                if state.try_disk(&current, boot, &mut judge.outlet().spool) {
                    let planned = plan::probes_by(&current, &means(&host, &state, &net, &link), &mounts);
                    judge.watch(planned, current.probes.blind_after);
                } else if state.mend_scratch() {
                    judge.renew_threads();
                }
                judge.look_at_disk_later();
            }
            Asked::PlanAnew => {
                let planned = plan::probes_by(&current, &means(&host, &state, &net, &link), &mounts);
                judge.watch(planned, current.probes.blind_after);
                tracing::info!("watched files are on other file systems than before: planned anew");
            }
            Asked::Reload => {
                state.try_disk(&current, boot, &mut judge.outlet().spool);
                // The reload renews the threads itself.
                state.mend_scratch();
                current = reload(config_path, current, (&means(&host, &state, &net, &link), &mounts), &mut judge);
                reporters.set(&current);
                if let Some(uplink) = &uplink {
                    uplink.renew(&current.tls);
                }
            }
        }
    }
    stop(judge, uplink);
    Ok(())
}

fn tell_start(config: &Config, state: &State) {
    tracing::info!(
        services = config.services.len(),
        coordinators = config.endpoints.len(),
        state = %config.state_dir.display(),
        "watching"
    );
    for not_watched in plan::not_watched(config) {
        tracing::warn!("{not_watched}: not watched yet, this version has no probe for it");
    }
    sd_notify::notify(&[NotifyState::Ready]).ok();
    if let Err(why) = state.disk() {
        sd_notify::notify(&[NotifyState::Status(&format!("findings are kept in memory only: {why}"))]).ok();
    }
}

/// First what is known is made durable, then the goodbye: the coordinator hears of both in this order.
fn stop(mut judge: Judge<Outlet>, uplink: Option<Uplink>) {
    sd_notify::notify(&[NotifyState::Stopping]).ok();
    tracing::info!("stopping");
    judge.stop();
    if let Some(uplink) = uplink {
        let stop = if host_stops() { Stop::Host } else { Stop::Agent };
        tracing::info!(?stop, "saying goodbye");
        uplink.stop(stop, &mut judge.outlet().spool);
    }
}

/// The agent's own socket. Where it cannot be made, everything else goes on.
fn serve_local(
    config: &Config,
    net: &NetHandle,
    asks: Asks,
    reporters: &Arc<Reporters>,
    link: LinkStatus,
) -> Option<LocalServer> {
    let started = LocalServer::start(&config.socket, net, asks, Arc::clone(reporters), link);
    started
        .inspect_err(|error| {
            let socket = config.socket.display();
            tracing::warn!(%socket, %error, "applications cannot report: set [agent] socket to a folder of the agent's");
        })
        .ok()
}

fn means<'a>(host: &'a HostRoot, state: &'a State, net: &'a NetHandle, link: &LinkStatus) -> Means<'a> {
    Means { host, scratch: state.scratch(), net, link: link.clone(), one_shot: OneShot::default() }
}

/// Whether the whole host goes down, and not only this agent. The unit's `ExecStop=` leaves the sign, before the agent
/// hears of the stop: this process starts no program to ask, and no file of systemd's own tells it in time.
fn host_stops() -> bool {
    // More than one folder only where a drop-in adds some.
    let folders = std::env::var("RUNTIME_DIRECTORY").unwrap_or_default();
    folders.split(':').any(|folder| !folder.is_empty() && Path::new(folder).join(HOST_STOPPING_FILE).exists())
}

fn reload<O: StateOutlet>(
    path: &Path,
    old: Config,
    (means, mounts): (&Means<'_>, &Arc<MountTable>),
    judge: &mut Judge<O>,
) -> Config {
    let reloading = NotifyState::monotonic_usec_now();
    if let Ok(usec) = reloading {
        sd_notify::notify(&[NotifyState::Reloading, usec]).ok();
    }
    let kept = match Config::load(path) {
        Ok(new) => {
            let fixed = |config: &Config| {
                let Config { labels, state_dir, socket, endpoints, spool_bytes_max, second_opinion, .. } = config;
                let sizes = (*spool_bytes_max, *second_opinion);
                (labels.clone(), state_dir.clone(), socket.clone(), endpoints.clone(), sizes)
            };
            if fixed(&old) != fixed(&new) {
                tracing::warn!("changes of [agent], [coordinator] and [spool] take effect at the next restart");
            }
            let new = Config { state_dir: old.state_dir.clone(), ..new };
            mounts.start_anew();
            judge.watch(plan::probes_by(&new, means, mounts), new.probes.blind_after);
            tracing::info!(services = new.services.len(), "config read again");
            new
        }
        Err(error) => {
            let error: ConfigError = error;
            tracing::error!("the config is kept as it was, the new one is wrong:\n{error}");
            old
        }
    };
    sd_notify::notify(&[NotifyState::Ready]).ok();
    kept
}

/// What the uplink may tell of the ledger: as of one entry of the spool.
struct Published {
    ledger: muster_agent_core::ledger::Ledger,
    head_sequence: u64,
}

impl Published {
    fn facts(&self) -> UplinkFacts {
        UplinkFacts {
            open_digest: self.ledger.open_digest(),
            head_sequence: self.head_sequence,
            memory_available_bytes: memory_available(),
        }
    }
}

/// Writes to the spool, then publishes what was written to the uplink.
struct Outlet {
    spool: SpoolOwner,
    published: Arc<Mutex<Published>>,
    facts: Option<FactsSetter>,
}

impl StateOutlet for Outlet {
    fn append(
        &mut self,
        events: &[crate::spool::Append],
        memory: &mut Memory,
        now: Now,
    ) -> Result<u64, crate::spool::SpoolError> {
        let written = memory.append_to(&mut self.spool, events, now)?;
        let facts = {
            let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
            published.ledger.copy_from(&memory.ledger, &written.subjects);
            published.head_sequence = written.head_sequence;
            published.facts()
        };
        if let Some(setter) = &self.facts {
            setter.set(facts);
        }
        Ok(written.head_sequence)
    }

    fn serve(&mut self) {
        self.spool.serve();
    }

    fn memory_probed(&mut self, memory_available_bytes: u64) {
        if let Some(setter) = &self.facts {
            setter.update(|facts| facts.memory_available_bytes = memory_available_bytes);
        }
    }
}

/// For heartbeats; 0 where it cannot be read.
fn memory_available() -> u64 {
    let text = crate::senses::small::read_piece_text("/proc/meminfo", MEMINFO_BYTES_MAX).unwrap_or_default();
    muster_agent_core::memory::parse(&text).map_or(0, |reading| reading.available_bytes)
}

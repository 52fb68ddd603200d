//! The uplink as a task of the net thread, on which nothing blocks: heartbeats wait for nothing of ours.
//!
//! Must never end the agent: while the certificate cannot be used, findings are judged, logged and spooled, and its
//! files are tried again. A renewed certificate is taken up when the config is read again.

use super::Published;
use super::asks::Asks;
use crate::config::{Config, TlsFiles};
use crate::freezes::{self, Keeper};
use crate::local::LinkStatus;
use crate::net::NetHandle;
use crate::senses::HostRoot;
use crate::spool::{SpoolHandle, SpoolOwner};
use crate::uplink::{
    FactsSetter, HostFacts, OpenSnapshot, SecondOpinion, Security, SnapshotProvider, Stop, UplinkConfig, UplinkHandle,
};
use anyhow::Context as _;
use muster_common::identity::{Identity, Role};
use muster_common::ids::BootId;
use muster_common::tls::{Credentials, TlsError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Certificate files that cannot be used are read again after this: somebody may be writing them.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// How often the end of the task is looked for, when it was told to stop.
const STOP_TURN: Duration = Duration::from_millis(10);

/// The task's handle.
pub(super) struct Uplink {
    facts: FactsSetter,
    status: LinkStatus,
    orders: watch::Sender<Orders>,
    task: JoinHandle<()>,
}

/// What the task is to do; the latest counts.
#[derive(Debug, Clone)]
struct Orders {
    /// The certificate's files, to be read at every change of the orders.
    tls: TlsFiles,
    stop: Option<Stop>,
}

/// What a new uplink is made of, beside its credentials.
struct Parts {
    endpoints: Vec<String>,
    host: HostFacts,
    boot: BootId,
    spool: SpoolHandle,
    snapshot: SnapshotProvider,
    facts: FactsSetter,
    status: LinkStatus,
    freezes: Keeper,
    asks: Asks,
    second_opinion: SecondOpinion,
}

impl Uplink {
    /// Starts the task; `None` where no coordinator is configured.
    pub(super) fn start(
        config: &Config,
        host: &HostRoot,
        boot: BootId,
        spool: &SpoolHandle,
        published: &Arc<Mutex<Published>>,
        net: &NetHandle,
        asks: &Asks,
    ) -> Option<Self> {
        if config.endpoints.is_empty() {
            return None;
        }
        let facts = FactsSetter::default();
        facts.set(published.lock().unwrap_or_else(PoisonError::into_inner).facts());
        let published = Arc::clone(published);
        let snapshot = SnapshotProvider(Arc::new(move || {
            let published = published.lock().unwrap_or_else(PoisonError::into_inner);
            OpenSnapshot::new(published.head_sequence, published.ledger.subjects())
        }));
        let parts = Parts {
            endpoints: config.endpoints.clone(),
            host: host_facts(config, host),
            boot,
            spool: spool.clone(),
            snapshot,
            facts: facts.clone(),
            status: LinkStatus::default(),
            freezes: Keeper::new(freezes::path(&config.socket)),
            asks: asks.clone(),
            second_opinion: SecondOpinion {
                enabled: config.second_opinion,
                root: config.second_opinion.then(|| host.clone()),
            },
        };
        let status = Arc::clone(&parts.status);
        let (orders, ordered) = watch::channel(Orders { tls: config.tls.clone(), stop: None });
        let task = net.spawn(async move { serve(&parts, ordered).await });
        Some(Self { facts, status, orders, task })
    }

    /// For the thread that judges.
    pub(super) fn facts(&self) -> FactsSetter {
        self.facts.clone()
    }

    /// For who asks on the host.
    pub(super) fn status(&self) -> LinkStatus {
        Arc::clone(&self.status)
    }

    /// Reads the certificate again; the next connection uses it. Waits for nothing.
    pub(super) fn renew(&self, tls: &TlsFiles) {
        self.orders.send_modify(|orders| orders.tls = tls.clone());
    }

    /// Says goodbye and ends. Its last questions to the spool are answered meanwhile.
    pub(super) fn stop(self, stop: Stop, spool: &mut SpoolOwner) {
        self.orders.send_modify(|orders| orders.stop = Some(stop));
        spool.serve_until(STOP_TURN, || self.task.is_finished());
    }
}

async fn serve(parts: &Parts, mut ordered: watch::Receiver<Orders>) {
    let mut uplink: Option<(UplinkHandle, Identity)> = None;
    let mut told = None;
    loop {
        let orders = ordered.borrow_and_update().clone();
        if let Some(stop) = orders.stop {
            if let Some((uplink, _)) = uplink {
                uplink.shutdown(stop).await;
            }
            return;
        }
        let loaded = tokio::select! {
            loaded = load(orders.tls) => loaded,
            // A stop does not wait for files that hang.
            changed = ordered.changed() => if changed.is_ok() { continue } else { return },
        };
        let failed = loaded.and_then(|credentials| take_up(parts, &mut uplink, credentials)).err();
        let words = failed.map(|error| format!("{error:#}"));
        if let Some(words) = words.as_ref().filter(|words| told.as_ref() != Some(*words)) {
            let meanwhile = if uplink.is_some() { "the one before stays in use" } else { "no coordinator is told" };
            tracing::error!("cannot use the certificate of this agent, {meanwhile}: {words}");
        }
        told = words;
        tokio::select! {
            changed = ordered.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY_INTERVAL), if told.is_some() => {}
        }
    }
}

/// On a thread of its own, since files may hang.
async fn load(tls: TlsFiles) -> anyhow::Result<Credentials> {
    let load = move || {
        let credentials = Credentials::load(&tls.ca, &tls.cert, &tls.key)?;
        if let Some(problem) = credentials.check_own(Role::Agent)? {
            tracing::warn!(
                "the certificate of this agent is outside its time, or the host's clock is wrong: {problem}"
            );
        }
        Ok::<_, TlsError>(credentials)
    };
    let loaded = tokio::task::spawn_blocking(load).await.context("the thread that reads certificates failed")?;
    loaded.context(
        "get one with `muster-coordinator ca issue --role agent` and name its files under [tls]; they are read again \
         on SIGHUP and every half minute",
    )
}

fn take_up(
    parts: &Parts,
    uplink: &mut Option<(UplinkHandle, Identity)>,
    credentials: Credentials,
) -> anyhow::Result<()> {
    let identity = credentials.identity().clone();
    match uplink {
        Some((_, old)) if *old != identity => {
            anyhow::bail!("it names {identity}, this agent is {old}; restart the agent to make it another one");
        }
        Some((uplink, _)) => {
            uplink.renew(Security::Mutual(credentials));
            tracing::info!(%identity, "certificate read again; the next connection uses it");
        }
        None => {
            let config = UplinkConfig {
                endpoints: parts.endpoints.clone(),
                security: Security::Mutual(credentials),
                host: parts.host.clone(),
                boot: parts.boot,
                clock: crate::clock::now,
                freezes: Some(parts.freezes.clone()),
                asks: Some(parts.asks.clone()),
                second_opinion: parts.second_opinion.clone(),
            };
            let (spool, snapshot) = (parts.spool.clone(), parts.snapshot.clone());
            let handle = crate::uplink::spawn_with_facts(config, spool, snapshot, parts.facts.clone());
            // The first uplink is the only one: a renewed certificate is given to it.
            parts.status.set(handle.status()).ok();
            *uplink = Some((handle, identity));
        }
    }
    Ok(())
}

fn host_facts(config: &Config, host: &HostRoot) -> HostFacts {
    let read = |path: &str| std::fs::read_to_string(host.path(path)).unwrap_or_default();
    let release = read("/etc/os-release");
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    HostFacts {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        host_name: read("/proc/sys/kernel/hostname").trim().to_owned(),
        labels: config.labels.clone(),
        os_version: pretty.unwrap_or_default().trim_matches('"').to_owned(),
        kernel_version: read("/proc/sys/kernel/osrelease").trim().to_owned(),
    }
}

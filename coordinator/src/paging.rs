//! Puts the paging together: a lane for each receiver, their workers, what keeps alerts standing, the sign of life, and
//! what PagerDuty tells back. All secrets are read here, and whom receivers are trusted by, at start and at SIGHUP.

use crate::config::Config;
use crate::http::answers;
use crate::outbox::JournalOutbox;
use crate::pager::heartbeat::{self, HeartbeatConfig, HeartbeatTarget, Watchdog};
use crate::pager::http_client::HttpClient;
use crate::pager::inbound::Inbound;
use crate::pager::secret::SecretFile;
use crate::pager::{self, Lane, Receiver, ReceiverConfig, ReceiverError};
use crate::runtime::Handle;
use muster_common::chain::Chain;
use muster_common::tls::Credentials;
use std::sync::Arc;
use tokio::task::JoinSet;

/// Everything by which pages leave and answers come in.
#[derive(Debug, Clone)]
pub struct Paging {
    /// The receivers.
    pub lanes: Arc<[Arc<Lane<HttpClient>>]>,
    /// What PagerDuty tells back, where it is configured.
    pub inbound: Option<Arc<Inbound>>,
    /// By which the sign of life leaves, where it goes to a URL.
    pub heartbeat: Option<HttpClient>,
    /// The fleet that pages name.
    pub fleet: String,
}

impl Paging {
    /// Reads every secret; the first that cannot be used is the error.
    pub fn open(config: &Config, credentials: &Credentials) -> Result<Self, ReceiverError> {
        let fleet = credentials.fleet().as_str().to_owned();
        let open = |config: &ReceiverConfig| {
            let transport = HttpClient::new(&config.name, config.ca.as_deref(), config.timeout)?;
            Ok(Arc::new(Lane::new(Receiver::open(config.clone(), &fleet)?, transport)))
        };
        let lanes = config.receivers.iter().map(open).collect::<Result<Vec<_>, ReceiverError>>()?.into();
        let inbound = match config.pagerduty_webhook.as_slice() {
            [] => None,
            files => Some(Arc::new(Inbound::open(files.to_vec())?)),
        };
        let heartbeat = heartbeat_client(config)?;
        if let Some(target) = &config.heartbeat_out
            && heartbeat::url_of(target)?.is_some_and(|url| heartbeat::is_in_the_clear(&url))
        {
            tracing::warn!("heartbeat_out goes over http:// to another host: whoever reads it can imitate it");
        }
        for file in Self::open_to_all(config) {
            tracing::warn!(%file, "every user of this host may read this secret: chmod o-r");
        }
        Ok(Self { lanes, inbound, heartbeat, fleet })
    }

    /// Everything that [`Paging::open`] would stop at, a receiver's first each.
    pub fn mistakes(config: &Config) -> Vec<ReceiverError> {
        let receiver = |config: &ReceiverConfig| {
            HttpClient::new(&config.name, config.ca.as_deref(), config.timeout)?;
            Receiver::open(config.clone(), "").map(drop)
        };
        let webhook = (!config.pagerduty_webhook.is_empty()).then(|| Inbound::open(config.pagerduty_webhook.clone()));
        let sign_of_life = |target| heartbeat_client(config).and_then(|_| heartbeat::url_of(target).map(drop));
        let heartbeat = config.heartbeat_out.as_ref().map(sign_of_life);
        let all = config.receivers.iter().map(receiver).chain(webhook.map(|opened| opened.map(drop))).chain(heartbeat);
        all.filter_map(Result::err).collect()
    }

    /// Files with a secret that everybody on this host may read.
    pub fn open_to_all(config: &Config) -> Vec<&SecretFile> {
        let heartbeat = config.heartbeat_out.as_ref().and_then(|heartbeat| match &heartbeat.target {
            HeartbeatTarget::Url { url, .. } => url.secret_file(),
            HeartbeatTarget::Alertmanager(_) => None,
        });
        let receivers = config.receivers.iter().flat_map(|receiver| receiver.kind.secret_files());
        let all = receivers.chain(&config.pagerduty_webhook).chain(heartbeat);
        all.filter(|file| file.is_open_to_all()).collect()
    }

    /// Begins to page. Each of the tasks ends when the coordinator stops.
    pub fn spawn(&self, handle: &Handle, config: &Config, tasks: &mut JoinSet<anyhow::Result<()>>) {
        let outbox = Arc::new(JournalOutbox::new(handle.clone()));
        let stats = Arc::clone(&handle.metrics().pager);
        for lane in self.lanes.iter().filter(|lane| lane.receiver.config.kind.must_be_told_again()) {
            let keeping = pager::keep_standing(Arc::clone(&outbox), Arc::clone(lane), handle.stopping());
            tasks.spawn(async move {
                keeping.await;
                Ok(())
            });
        }
        let paging = pager::run(outbox, self.lanes.to_vec(), handle.head(), Arc::clone(&stats), handle.stopping());
        tasks.spawn(async move {
            paging.await;
            Ok(())
        });
        let Some(watchdog) = self.watchdog(config) else { return };
        let names = (self.fleet.clone(), handle.standing().borrow().id.to_string());
        let (asked, stop) = (handle.clone(), handle.stopping());
        let is_alive = move || {
            let handle = asked.clone();
            async move { handle.may_page() && answers(&handle).await }
        };
        tasks.spawn(async move {
            heartbeat::beat(watchdog, names, is_alive, stats, stop).await;
            Ok(())
        });
    }

    fn watchdog(&self, config: &Config) -> Option<Watchdog<HttpClient>> {
        let config = config.heartbeat_out.as_ref()?;
        match &config.target {
            HeartbeatTarget::Url { .. } => {
                let transport = self.heartbeat.clone()?;
                Some(Watchdog::Url { transport, config: config.clone() })
            }
            HeartbeatTarget::Alertmanager(name) => {
                let lane = self.lanes.iter().find(|lane| lane.receiver.config.name == *name)?;
                Some(Watchdog::Alertmanager { lane: Arc::clone(lane), interval: config.interval })
            }
        }
    }

    /// Reads the secrets again, and the authorities that are trusted in place of the public ones. What cannot be used leaves
    /// its receiver with the old ones.
    pub fn reload(&self) {
        for lane in self.lanes.iter() {
            let receiver = &lane.receiver.config.name;
            match lane.receiver.reload() {
                Ok(true) => tracing::info!(receiver, "its secrets have changed"),
                Ok(false) => {}
                Err(error) => tracing::error!(error = %Chain(&error), "its old secrets are used on"),
            }
            trust_anew(&lane.transport, receiver);
        }
        if let Some(heartbeat) = &self.heartbeat {
            trust_anew(heartbeat, "heartbeat_out");
        }
        if let Some(Err(error)) = self.inbound.as_ref().map(|inbound| inbound.reload()) {
            tracing::error!(error = %Chain(&error), "the old secrets of PagerDuty's webhook are used on");
        }
    }
}

fn trust_anew(client: &HttpClient, receiver: &str) {
    match client.reload() {
        Ok(true) => tracing::info!(receiver, "the authorities that it is trusted by have changed"),
        Ok(false) => {}
        Err(error) => tracing::error!(error = %Chain(&error), "the old authorities are trusted on"),
    }
}

fn heartbeat_client(config: &Config) -> Result<Option<HttpClient>, ReceiverError> {
    let Some(HeartbeatConfig { target: HeartbeatTarget::Url { .. }, ca, .. }) = &config.heartbeat_out else {
        return Ok(None);
    };
    HttpClient::new("heartbeat_out", ca.as_deref(), heartbeat::TIMEOUT).map(Some)
}

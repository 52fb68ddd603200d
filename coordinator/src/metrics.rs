//! Counters and gauges, in the OpenMetrics text form.

use crate::pager::Stats;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::Arc;

/// One label: why.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CodeLabel {
    /// A canonical gRPC code.
    pub code: String,
}

/// One label: which state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabel {
    /// Such as `live`.
    pub state: String,
}

/// One label: how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    /// Such as `delivered`.
    pub outcome: String,
}

/// One label: which role.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RoleLabel {
    /// Such as `primary`.
    pub role: String,
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Journal entries committed.
    pub entries: Counter,
    /// Transactions committed.
    pub commits: Counter,
    /// Seconds per commit.
    pub commit_seconds: Histogram,
    /// Inputs waiting for the loop.
    pub inbox_depth: Gauge,
    /// Heartbeats heard.
    pub heartbeats: Counter,
    /// Spool entries that were already stored and dropped.
    pub duplicates: Counter,
    /// Findings whose reason or probe this version does not know.
    pub foreign: Counter,
    /// Agent streams ended with an error, by code.
    pub streams_refused: Family<CodeLabel, Counter>,
    /// Who was refused lately: journaled, not scraped.
    pub refused: crate::refused::Refused,
    /// Connections whose TLS handshake failed or was too slow.
    pub handshakes_failed: Counter,
    /// Watchers ended because they were too slow.
    pub watchers_ended: Counter,
    /// Resyncs asked for.
    pub resyncs: Counter,
    /// Agents by state.
    pub agents: Family<StateLabel, Gauge>,
    /// What the pagers did.
    pub pager: Arc<Stats>,
    /// Pages by outcome.
    pub pages: Family<OutcomeLabel, Counter>,
    /// 1 for the role held.
    pub role: Family<RoleLabel, Gauge>,
    /// Number of the own epoch.
    pub epoch: Gauge,
    /// Index of the last entry.
    pub journal_index: Gauge,
    /// Incidents that are not resolved.
    pub incidents_open: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            refused: crate::refused::Refused::default(),
            registry: Registry::with_prefix("muster_coordinator"),
            entries: Counter::default(),
            commits: Counter::default(),
            commit_seconds: Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0]),
            inbox_depth: Gauge::default(),
            heartbeats: Counter::default(),
            duplicates: Counter::default(),
            foreign: Counter::default(),
            streams_refused: Family::default(),
            handshakes_failed: Counter::default(),
            watchers_ended: Counter::default(),
            resyncs: Counter::default(),
            agents: Family::default(),
            pager: Arc::default(),
            pages: Family::default(),
            role: Family::default(),
            epoch: Gauge::default(),
            journal_index: Gauge::default(),
            incidents_open: Gauge::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("journal_entries", "Journal entries committed", self.entries.clone());
        registry.register("commits", "Transactions committed", self.commits.clone());
        registry.register("commit_seconds", "Seconds per commit", self.commit_seconds.clone());
        registry.register("inbox_depth", "Inputs waiting for the loop", self.inbox_depth.clone());
        registry.register("heartbeats", "Heartbeats heard", self.heartbeats.clone());
        registry.register("duplicate_entries", "Spool entries already stored and dropped", self.duplicates.clone());
        let foreign = self.foreign.clone();
        registry.register("unknown_findings", "Findings with a reason or probe that only newer agents know", foreign);
        registry.register("streams_refused", "Agent streams ended with an error", self.streams_refused.clone());
        registry.register("handshakes_failed", "TLS handshakes failed or too slow", self.handshakes_failed.clone());
        registry.register("watchers_ended", "Watchers ended for being slow", self.watchers_ended.clone());
        registry.register("resyncs", "Resyncs asked for", self.resyncs.clone());
        registry.register("agents", "Agents by state", self.agents.clone());
        let pager = &self.pager;
        registry.register("page_calls", "Calls made to receivers", pager.calls.clone());
        registry.register("page_retries", "Calls that failed and will be repeated", pager.retries.clone());
        registry.register("pages_delivered", "Pages that a receiver accepted", pager.delivered.clone());
        registry.register("pages_failed", "Pages given up", pager.failed.clone());
        let failing = pager.failing.clone();
        registry.register("receiver_failing", "1 while the last call to a receiver was not accepted", failing);
        registry.register("heartbeats_out", "Signs of life that arrived outside", pager.heartbeats_out.clone());
        let failed = pager.heartbeats_out_failed.clone();
        registry.register("heartbeats_out_failed", "Signs of life that did not arrive outside", failed);
        registry.register("pages", "Pages by outcome", self.pages.clone());
        registry.register("role", "1 for the role held", self.role.clone());
        registry.register("epoch", "Number of the own epoch", self.epoch.clone());
        registry.register("journal_index", "Index of the last journal entry", self.journal_index.clone());
        registry.register("incidents_open", "Incidents not resolved", self.incidents_open.clone());
    }

    /// Counts a page's outcome: `delivered`, `failed`, `retried`.
    pub fn page(&self, outcome: &str) {
        self.pages.get_or_create(&OutcomeLabel { outcome: outcome.to_owned() }).inc();
    }

    /// Counts an agent stream that was ended with an error.
    pub fn stream_refused(&self, code: tonic::Code) {
        self.streams_refused.get_or_create(&CodeLabel { code: format!("{code:?}") }).inc();
    }

    /// The text that `/metrics` serves.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(error) => format!("# cannot encode: {error}\n"),
        }
    }
}

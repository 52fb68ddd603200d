//! Pages leave the house here: an outbox worker per receiver.
//!
//! The outbox is no second truth: it is every `PageRequested` of the journal without an outcome, and the workers pull
//! from it ([`Outbox::pending`]). A page is tried only after its attempt is committed, and forgotten only after its
//! outcome is: delivery is at least once, always under the same deduplication key.
//!
//! Invariants:
//! - one (receiver, deduplication key) is delivered in order, one page at a time;
//! - a receiver that hangs, refuses or throttles delays no other receiver, and no other key beyond its share of calls;
//! - a coordinator that is not the primary sends nothing: the role is asked again right before every single try;
//! - secrets (routing keys, tokens, passwords, paths of URLs) appear in no log, no error and no `Debug`.

pub mod alertmanager;
pub mod config;
pub mod heartbeat;
pub mod http_client;
pub mod inbound;
mod lane;
pub mod mail;
pub mod pagerduty;
mod rate;
pub mod receiver;
mod refresh;
pub mod routes;
pub mod runbook;
pub mod secret;
pub mod signature;
pub mod slack;
pub mod smtp;
pub mod webhook;
mod worker;

pub use config::{ReceiverConfig, ReceiverKind, read_receivers};
pub use lane::{Lane, Status};
pub use receiver::{Receiver, ReceiverError};
pub use refresh::{Standing, keep_standing};
pub use routes::read_routes;
pub use worker::run;

use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_coordinator_core::page::{Page, PageId};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use std::future::Future;
use std::time::Duration;

/// The number of every message by which a person tries a receiver. The journal's entries, and thus its pages, begin at 1.
pub const TEST_PAGE: PageId = PageId(0);

/// True for a message by which a person tries a receiver.
pub fn is_test(id: PageId) -> bool {
    id == TEST_PAGE
}

/// True for what would steer a terminal, or hide or turn the text around it.
fn steers(letter: char) -> bool {
    let turns = matches!(letter, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}')
        || matches!(letter, '\u{061c}' | '\u{feff}');
    turns || letter.is_control()
}

/// A requested page without an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Which.
    pub id: PageId,
    /// What.
    pub page: Page,
    /// It was tried before (by this process or an earlier one), so it may have reached the receiver already.
    pub attempted: bool,
    /// For how long it has been tried by now, by whichever process.
    pub tried_for: Duration,
    /// How bad and what it was said to be under the same key before: for receivers that know an alert by that.
    pub told_before: Vec<(Severity, Reason)>,
    /// The page that called somebody last under the same key: an acknowledgement says less, and some receivers forget
    /// what they are not told again.
    pub calls: Option<Box<Page>>,
    /// Who has acknowledged it, in words; empty: nobody.
    pub acknowledged: String,
}

impl Pending {
    /// A page that was never tried.
    pub fn new(id: PageId, page: Page) -> Self {
        let (tried_for, calls, acknowledged) = (Duration::ZERO, None, String::new());
        Self { id, page, attempted: false, tried_for, told_before: Vec::new(), calls, acknowledged }
    }
}

/// Which pending pages are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of<'a> {
    /// Those of one receiver.
    Receiver(&'a str),
    /// Those of receivers that are not among these: nobody will ever deliver them.
    NoneOf(&'a [String]),
}

impl Of<'_> {
    /// True when a page to `receiver` is asked for.
    pub fn matches(&self, receiver: &str) -> bool {
        match self {
            Self::Receiver(name) => *name == receiver,
            Self::NoneOf(names) => !names.iter().any(|name| name == receiver),
        }
    }
}

/// How a page ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver accepted it.
    Delivered,
    /// Given up, and why.
    Failed(String),
}

/// The journal did not take a fact: this coordinator stops, is fenced or is overloaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the journal did not take the page's fact: {0}")]
pub struct OutboxError(pub String);

/// What the pager asks of the journal.
pub trait Outbox: Send + Sync + 'static {
    /// True while this coordinator is the primary: nobody else may page.
    fn may_page(&self) -> bool;

    /// Committed pages without an outcome, of each key the oldest, the worst ones first, at most `limit`.
    fn pending(&self, of: Of<'_>, limit: usize) -> impl Future<Output = Result<Vec<Pending>, OutboxError>> + Send;

    /// Commits that the page is about to be tried. `false`: it was cancelled or concluded meanwhile, drop it.
    fn attempted(&self, page: PageId) -> impl Future<Output = Result<bool, OutboxError>> + Send;

    /// Commits how it ended.
    fn concluded(&self, page: PageId, outcome: Outcome) -> impl Future<Output = Result<(), OutboxError>> + Send;

    /// Commits that a receiver has taken nothing for a while, so that its fallback stands in.
    fn failing(
        &self,
        receiver: &str,
        length: Duration,
        error: String,
    ) -> impl Future<Output = Result<(), OutboxError>> + Send;

    /// Incidents of which a receiver was told and that are not over, by deduplication key, those after `after`.
    fn standing(
        &self,
        receiver: &str,
        after: &str,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Standing>, OutboxError>> + Send;
}

/// One label: to whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReceiverLabel {
    /// A receiver of the config.
    pub receiver: String,
}

/// Counters for `/metrics`, by receiver.
#[derive(Debug, Default)]
pub struct Stats {
    /// Calls made to receivers.
    pub calls: Family<ReceiverLabel, Counter>,
    /// Calls that failed and will be repeated.
    pub retries: Family<ReceiverLabel, Counter>,
    /// Pages accepted.
    pub delivered: Family<ReceiverLabel, Counter>,
    /// Pages given up.
    pub failed: Family<ReceiverLabel, Counter>,
    /// 1 while the last call to a receiver was not accepted.
    pub failing: Family<ReceiverLabel, Gauge>,
    /// Signs of life to the outside that arrived.
    pub heartbeats_out: Counter,
    /// Those that did not.
    pub heartbeats_out_failed: Counter,
}

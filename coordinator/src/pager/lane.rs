//! A receiver, its way out, and how it does at the moment: what an operator is shown and what makes its fallback stand
//! in. Lives as long as the process; what must last is in State.

use super::http_client::{Response, Transport, TransportError};
use super::rate::Bucket;
use super::receiver::{Call, Judgement, Receiver};
use super::{Pending, TEST_PAGE};
use futures_util::future::join_all;
use muster_common::units::human_duration;
use muster_coordinator_core::page::{Page, PageAction};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::RwLock;
use tokio::time::{Instant, timeout};
use tracing::warn;

/// A receiver and its way out.
#[derive(Debug)]
pub struct Lane<T> {
    /// Who.
    pub receiver: Receiver,
    /// How.
    pub transport: T,
    pub(super) bucket: Bucket,
    /// Whoever looks at what stands and tells it again does so alone.
    pub(super) order: RwLock<()>,
    status: Mutex<Status>,
}

/// How a receiver does at the moment.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Why the last try failed; empty when it did not.
    pub last_error: String,
    /// What it left out of what it accepted last: recipients that its mail server refused.
    pub remark: String,
    /// When a page is tried again next.
    pub next_try: Option<Instant>,
    /// First failure since it last accepted something.
    failing_since: Option<Instant>,
    told: bool,
}

impl<T: Transport> Lane<T> {
    /// Joins them.
    pub fn new(receiver: Receiver, transport: T) -> Self {
        let bucket = Bucket::new(receiver.config.rate_per_minute);
        Self { receiver, transport, bucket, order: RwLock::new(()), status: Mutex::default() }
    }

    /// How it does.
    pub fn status(&self) -> Status {
        let mut status = self.locked().clone();
        status.next_try = status.next_try.filter(|at| *at > Instant::now());
        status
    }

    /// Tells the receiver once; of a cluster each member at the same time.
    pub async fn tell(&self, pending: &Pending) -> Judgement {
        let _shared = self.order.read().await;
        self.make(self.receiver.calls(pending, jiff::Timestamp::now())).await
    }

    /// Makes the calls; one accepted is enough: the members of a cluster that miss it hear of it at the next refresh.
    pub(super) async fn make(&self, calls: Vec<Call>) -> Judgement {
        let judgements = join_all(calls.into_iter().map(|call| self.one(call))).await;
        let mut worst = Judgement::Refused("there is nobody to tell".to_owned());
        let mut delivered = false;
        for judgement in judgements {
            match judgement {
                Judgement::Delivered => delivered = true,
                // What may be taken later is worth another try of all.
                retry @ Judgement::Retry { .. } => worst = retry,
                refused if !matches!(worst, Judgement::Retry { .. }) => worst = refused,
                _ => {}
            }
        }
        if !delivered {
            return worst;
        }
        if let Judgement::Retry { error, .. } = &worst {
            warn!(receiver = self.receiver.config.name, error, "one member of the cluster was not told");
        }
        Judgement::Delivered
    }

    async fn one(&self, call: Call) -> Judgement {
        let longest = self.receiver.config.timeout;
        let is_mail = matches!(call, Call::Mail(_));
        let answer: Result<Result<Response, TransportError>, _> = match call {
            Call::Http(request) => timeout(longest, self.transport.call(request)).await,
            Call::Mail(mail) => timeout(longest, self.transport.mail(*mail)).await,
        };
        match answer {
            Ok(Ok(response)) => {
                let judgement = self.receiver.judge(&response);
                if is_mail && judgement == Judgement::Delivered {
                    self.locked().remark = self.receiver.redact(&response.text);
                }
                judgement
            }
            Ok(Err(error)) => Judgement::Retry { error: self.receiver.redact(&error.to_string()), after: None },
            Err(_) => Judgement::Retry { error: format!("no answer within {}", human_duration(longest)), after: None },
        }
    }

    /// Sends a message that says it is a test, and at once that it is over, so that nothing stays open. `page` says so.
    pub async fn test(&self, page: Page) -> Judgement {
        let over = Page { action: PageAction::Resolve, ..page.clone() };
        self.bucket.token().await;
        let judgement = self.tell(&Pending::new(TEST_PAGE, page)).await;
        if judgement == Judgement::Delivered && self.receiver.config.kind.keeps_alerts() {
            self.bucket.token().await;
            return self.tell(&Pending::new(TEST_PAGE, over)).await;
        }
        judgement
    }

    /// It accepted a page.
    pub(super) fn succeeded(&self) {
        let mut status = self.locked();
        let remark = std::mem::take(&mut status.remark);
        *status = Status { remark, ..Status::default() };
    }

    /// It refused a page for good. That is no sign that it would refuse others.
    pub(super) fn refused(&self, error: &str) {
        self.locked().last_error = error.to_owned();
    }

    /// A try failed and the next one comes after `wait`: for how long it has been failing, once, when that is too long.
    pub(super) fn failed(&self, error: &str, wait: Duration) -> Option<Duration> {
        let now = Instant::now();
        let mut status = self.locked();
        status.last_error = error.to_owned();
        status.next_try = now.checked_add(wait);
        let length = now.duration_since(*status.failing_since.get_or_insert(now));
        let patience = self.receiver.config.fallback_after;
        let tell = !status.told && length >= patience;
        status.told |= tell;
        tell.then_some(length)
    }

    /// That it fails could not be told.
    pub(super) fn not_told(&self) {
        self.locked().told = false;
    }

    fn locked(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

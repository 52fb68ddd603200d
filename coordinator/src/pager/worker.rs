//! The workers: one per receiver, pulling from the outbox whenever the journal grew.
//!
//! A key that waits for its next try holds no right to call; only the call itself does. So a page that the receiver
//! refuses for now delays its own key and nobody else, unless it says for how long it wants to be left alone.

use super::http_client::Transport;
use super::lane::Lane;
use super::rate::PAUSE_MAX;
use super::receiver::Judgement;
use super::{Of, Outbox, Outcome, Pending, ReceiverLabel, Stats};
use backon::{BackoffBuilder, ExponentialBuilder};
use muster_common::limits::clip;
use muster_common::units::human_duration;
use muster_coordinator_core::page::PageId;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Keys of one receiver that are in work or waiting for their next try. The rest waits in the journal.
const KEYS_MAX: usize = 256;
/// Calls to one receiver at the same time: one that hangs leaves room for the other keys.
const CALLS_MAX: usize = 4;
/// Pages looked at in one pull. Above [`KEYS_MAX`], so that a few keys with many pages do not hide the others.
const PULL_MAX: usize = 4 * KEYS_MAX;
/// Ceiling of the first wait between two tries, and of every later one.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_CAP: Duration = Duration::from_secs(60);
/// A journal that does not take our facts is asked again after this.
const OUTBOX_RETRY: Duration = Duration::from_secs(1);
/// The outbox is looked at this often even if nobody says that it grew: the most that a lost wake-up can cost.
const PULL_INTERVAL: Duration = Duration::from_secs(30);
/// Bytes of an error in a `PageFailed` fact.
const ERROR_BYTES_MAX: usize = 512;

/// Delivers pages until `stop` is cancelled. `wake` changes whenever entries were committed; its value does not matter.
pub async fn run<O: Outbox, T: Transport, W: Send + Sync + 'static>(
    outbox: Arc<O>,
    lanes: Vec<Arc<Lane<T>>>,
    wake: watch::Receiver<W>,
    stats: Arc<Stats>,
    stop: CancellationToken,
) {
    let names: Vec<String> = lanes.iter().map(|lane| lane.receiver.config.name.clone()).collect();
    let mut workers = JoinSet::new();
    for lane in lanes {
        let worker = Worker::new(Arc::clone(&outbox), lane, Arc::clone(&stats));
        workers.spawn(Arc::new(worker).work(wake.clone(), stop.clone()));
    }
    workers.spawn(fail_unknown_receivers(outbox, names, wake, stats, stop));
    while let Some(ended) = workers.join_next().await {
        if let Err(error) = ended {
            // A panic in one worker must not end the others; the page it held is still pending in the journal.
            warn!(%error, "a pager worker ended; restart the coordinator to page that receiver again");
        }
    }
}

/// What one receiver's tasks share.
struct Worker<O, T> {
    outbox: Arc<O>,
    lane: Arc<Lane<T>>,
    calls: Semaphore,
    stats: Arc<Stats>,
}

impl<O: Outbox, T: Transport> Worker<O, T> {
    fn new(outbox: Arc<O>, lane: Arc<Lane<T>>, stats: Arc<Stats>) -> Self {
        let worker = Self { outbox, lane, calls: Semaphore::new(CALLS_MAX), stats };
        // There from the beginning: an alert on what is missing is one that nobody writes.
        worker.failing_now(false);
        worker
    }

    async fn work<W>(self: Arc<Self>, mut wake: watch::Receiver<W>, stop: CancellationToken) {
        let mut tasks = JoinSet::new();
        // The keys in work, by the task that works on them.
        let mut keys: BTreeMap<String, Id> = BTreeMap::new();
        loop {
            for pending in self.pull().await {
                let key = &pending.page.dedup_key;
                // Older pages come first: whatever follows on a key in work waits for it.
                if keys.len() < KEYS_MAX && !keys.contains_key(key) {
                    let key = key.clone();
                    let task = tasks.spawn(Arc::clone(&self).deliver(pending));
                    keys.insert(key, task.id());
                }
            }
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                Some(ended) = tasks.join_next_with_id() => Some(ended),
                changed = wake.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    None
                }
                () = sleep(PULL_INTERVAL) => None,
            };
            if let Some(ended) = ended {
                let id = match &ended {
                    Ok((id, ())) => *id,
                    Err(error) => {
                        warn!(receiver = self.name(), %error, "delivery of a page panicked");
                        error.id()
                    }
                };
                keys.retain(|_, task| *task != id);
            }
        }
    }

    async fn pull(&self) -> Vec<Pending> {
        if !self.outbox.may_page() {
            return Vec::new();
        }
        match self.outbox.pending(Of::Receiver(self.name()), PULL_MAX).await {
            Ok(pending) => pending,
            Err(error) => {
                warn!(receiver = self.name(), %error, "cannot read the page outbox");
                Vec::new()
            }
        }
    }

    /// One page from its first try to its outcome.
    async fn deliver(self: Arc<Self>, pending: Pending) {
        let id = pending.id;
        if !pending.attempted {
            match self.outbox.attempted(id).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    warn!(receiver = self.name(), page = id.0, %error, "cannot journal the attempt");
                    sleep(OUTBOX_RETRY).await;
                    return;
                }
            }
        }
        if let Some(outcome) = self.try_until_outcome(&pending).await {
            match &outcome {
                Outcome::Delivered => {
                    count(&self.stats.delivered, self.name());
                    info!(receiver = self.name(), page = id.0, incident = pending.page.incident, "page delivered");
                }
                Outcome::Failed(error) => {
                    count(&self.stats.failed, self.name());
                    warn!(
                        receiver = self.name(),
                        page = id.0,
                        incident = pending.page.incident,
                        error,
                        "page given up"
                    );
                }
            }
            conclude(&*self.outbox, id, outcome).await;
        }
    }

    /// `None`: this coordinator is no longer the one that pages.
    async fn try_until_outcome(&self, pending: &Pending) -> Option<Outcome> {
        let started = Instant::now();
        let mut ceilings = ceilings();
        loop {
            let Some(judgement) = self.try_once(pending).await else {
                // Its successor knows how the receiver does from here on.
                self.failing_now(false);
                return None;
            };
            let (error, after) = match judgement {
                Judgement::Delivered => {
                    self.lane.succeeded();
                    self.failing_now(false);
                    return Some(Outcome::Delivered);
                }
                Judgement::Refused(error) => {
                    let error = clip(&error, ERROR_BYTES_MAX);
                    self.lane.refused(&error);
                    self.failing_now(true);
                    return Some(Outcome::Failed(error));
                }
                Judgement::Retry { error, after } => {
                    (clip(&error, ERROR_BYTES_MAX), after.map(|after| after.min(PAUSE_MAX)))
                }
            };
            // Who is throttled is throttled as a whole: other pages would only be refused as well.
            if let Some(after) = after {
                self.lane.bucket.pause(after);
            }
            // Full jitter above what the receiver asked for, so that its waiters do not come back together.
            let wait = after.unwrap_or_default() + jitter(ceilings.next().unwrap_or(RETRY_CAP));
            let (budget, elapsed) = (self.lane.receiver.config.retry_for, pending.tried_for + started.elapsed());
            let left = budget.saturating_sub(elapsed);
            // One last try when the budget is over, except where the receiver would refuse that one too.
            let wait = wait.min(left);
            if left.is_zero() || after.is_some_and(|after| after > left) {
                return Some(Outcome::Failed(clip(&used_up(elapsed, budget, &error), ERROR_BYTES_MAX)));
            }
            count(&self.stats.retries, self.name());
            let page = pending.id.0;
            warn!(receiver = self.name(), page, error, wait_ms = wait.as_millis(), "page will be retried");
            self.failing_now(true);
            let failing = self.lane.failed(&error, wait);
            self.tell_failing(failing, &error).await;
            sleep(wait).await;
        }
    }

    /// Its fallback stands in for a receiver that has taken nothing for too long.
    async fn tell_failing(&self, length: Option<Duration>, error: &str) {
        let Some(length) = length else { return };
        if let Err(refused) = self.outbox.failing(self.name(), length, error.to_owned()).await {
            warn!(receiver = self.name(), error = %refused, "cannot journal that it fails");
            // Told again at the next failure.
            self.lane.not_told();
        }
    }

    /// `None`: not the primary any more.
    async fn try_once(&self, pending: &Pending) -> Option<Judgement> {
        let right_to_call = self.calls.acquire().await.ok()?;
        self.lane.bucket.acquire().await;
        // The last moment: whatever was true when we began to wait may not be true now.
        if !self.outbox.may_page() {
            return None;
        }
        count(&self.stats.calls, self.name());
        let judgement = self.lane.tell(pending).await;
        drop(right_to_call);
        Some(judgement)
    }

    fn failing_now(&self, is_failing: bool) {
        let label = ReceiverLabel { receiver: self.name().to_owned() };
        self.stats.failing.get_or_create(&label).set(i64::from(is_failing));
    }

    fn name(&self) -> &str {
        &self.lane.receiver.config.name
    }
}

/// Pages to a receiver that the config no longer has would stay pending for ever: they fail, and say why.
async fn fail_unknown_receivers<O: Outbox, W>(
    outbox: Arc<O>,
    names: Vec<String>,
    mut wake: watch::Receiver<W>,
    stats: Arc<Stats>,
    stop: CancellationToken,
) {
    loop {
        let unknown = match outbox.may_page() {
            true => outbox.pending(Of::NoneOf(&names), PULL_MAX).await.unwrap_or_default(),
            false => Vec::new(),
        };
        for pending in unknown {
            let error = format!("no receiver named {:?} is configured", clip(&pending.page.receiver, 64));
            warn!(page = pending.id.0, error, "page given up");
            // By one name for all of them: a receiver that is no longer configured must not live on as a label.
            count(&stats.failed, "unknown");
            conclude(&*outbox, pending.id, Outcome::Failed(error)).await;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = wake.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = sleep(PULL_INTERVAL) => {}
        }
    }
}

/// Journals the outcome. Repeats only the fact, not the call, while the journal is busy; a coordinator that lost its
/// role stops trying, and its successor sends the page again under the same key.
async fn conclude<O: Outbox>(outbox: &O, page: PageId, outcome: Outcome) {
    while let Err(error) = outbox.concluded(page, outcome.clone()).await {
        warn!(page = page.0, %error, "cannot journal the outcome of a page");
        if !outbox.may_page() {
            return;
        }
        sleep(OUTBOX_RETRY).await;
    }
}

/// The next try would come too late. What was tried for is told, and not only what was allowed.
fn used_up(elapsed: Duration, budget: Duration, error: &str) -> String {
    // Of a try that took long some of the budget may be left over, or none.
    let tried = human_duration(Duration::from_secs(elapsed.as_secs()));
    format!(
        "not accepted in {tried}, and the next try would be later than retry_for ({}): {error}",
        human_duration(budget)
    )
}

/// Uniform in `0..=ceiling`.
fn jitter(ceiling: Duration) -> Duration {
    // The first half of such an id has bits that never change; the second half has them at its upper end.
    let (_, random) = uuid::Uuid::new_v4().as_u64_pair();
    spread(random, ceiling)
}

/// Maps `random` to `0..=ceiling`, in milliseconds.
fn spread(random: u64, ceiling: Duration) -> Duration {
    let ceiling_ms = u64::try_from(ceiling.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(random.checked_rem(ceiling_ms.saturating_add(1)).unwrap_or(random))
}

/// The longest waits before the first try after the first one, the second, and so on.
fn ceilings() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default().with_min_delay(RETRY_FIRST).with_max_delay(RETRY_CAP).without_max_times().build()
}

fn count(counter: &Family<ReceiverLabel, Counter>, receiver: &str) {
    counter.get_or_create(&ReceiverLabel { receiver: receiver.to_owned() }).inc();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_their_cap_and_go_on_for_ever() {
        let waits: Vec<u64> = ceilings().take(9).map(|wait| wait.as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(ceilings().nth(10_000), Some(RETRY_CAP));
    }

    #[test]
    fn what_is_given_up_tells_for_how_long_it_was_tried() {
        let told = used_up(Duration::from_millis(34_567), Duration::from_secs(60), "answered 503");
        assert_eq!(told, "not accepted in 34 s, and the next try would be later than retry_for (60 s): answered 503");
    }

    #[test]
    fn a_wait_is_spread_over_all_of_its_ceiling_and_never_beyond() {
        let ceiling = Duration::from_millis(4);
        let waits: Vec<u128> = (0..10).map(|random| spread(random, ceiling).as_millis()).collect();
        assert_eq!(waits, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4], "each as often as any other");
        assert_eq!(spread(u64::MAX, Duration::ZERO), Duration::ZERO);
        assert!(spread(u64::MAX, RETRY_CAP) <= RETRY_CAP);
        assert_eq!(spread(7, Duration::MAX), Duration::from_millis(7), "no overflow");
        // Real randomness: that a thousand waits of a minute fall into one half of it does not happen.
        let early = (0..1000).filter(|_| jitter(RETRY_CAP) < RETRY_CAP / 2).count();
        assert!((300..700).contains(&early), "{early}");
    }
}

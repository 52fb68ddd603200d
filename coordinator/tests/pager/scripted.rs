//! Against a scripted receiver, on a clock that the test drives: order, retries, hangs, loss of the
//! role, restarts.

use crate::{Journal, page, primary};
use hyper::Uri;
use muster_coordinator::pager::config::WebhookUrl;
use muster_coordinator::pager::http_client::{Request, Response, Transport, TransportError};
use muster_coordinator::pager::{
    Lane, Of, Outbox, OutboxError, Outcome, Pending, Receiver, ReceiverConfig, ReceiverKind, ReceiverLabel, Standing,
    Stats, run,
};
use muster_coordinator_core::page::{PageAction, PageId};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// What the scripted receiver does with the n-th call of a key.
#[derive(Clone)]
enum Answer {
    Status(u16),
    Throttle(Duration),
    Hang,
    Drop,
}

type Script = Arc<dyn Fn(&str, usize) -> Answer + Send + Sync>;

/// Records every call; answers by the script.
#[derive(Clone)]
struct Wire {
    script: Script,
    calls: Arc<Mutex<Vec<Call>>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Call {
    at: Duration,
    page: u64,
    key: String,
    action: String,
}

impl Transport for Wire {
    async fn call(&self, request: Request) -> Result<Response, TransportError> {
        let body: serde_json::Value = serde_json::from_slice(&request.body.unwrap()).unwrap();
        let key = body["dedup_key"].as_str().unwrap().to_owned();
        let answer = {
            let mut calls = self.calls.lock().unwrap();
            let nth = calls.iter().filter(|call| call.key == key).count();
            calls.push(Call {
                at: START.with(|start| start.elapsed()),
                page: body["page_id"].as_u64().unwrap(),
                key: key.clone(),
                action: body["action"].as_str().unwrap().to_owned(),
            });
            (self.script)(&key, nth)
        };
        let answered = |status, retry_after| Ok(Response { status, retry_after, text: "scripted".to_owned() });
        match answer {
            Answer::Status(status) => answered(status, None),
            Answer::Throttle(after) => answered(429, Some(after)),
            Answer::Hang => std::future::pending().await,
            Answer::Drop => Err(TransportError { origin: "http://x".to_owned(), why: "reset".to_owned() }),
        }
    }
}

thread_local! {
    // Each test runs on its own thread with its own paused clock.
    static START: Instant = Instant::now();
}

fn lane(name: &str, wire: Wire) -> Arc<Lane<Wire>> {
    let url = WebhookUrl::Plain(Uri::from_static("http://127.0.0.1:1/"));
    let kind = ReceiverKind::Webhook { url, token_file: None, signing_key_files: Vec::new() };
    let config = ReceiverConfig { retry_for: Duration::from_secs(3600), ..ReceiverConfig::new(name, kind) };
    Arc::new(Lane::new(Receiver::open(config, "prod").unwrap(), wire))
}

struct Bench {
    journal: Arc<Journal>,
    wake: watch::Sender<u64>,
    stop: CancellationToken,
    running: JoinHandle<()>,
    wire: Wire,
    stats: Arc<Stats>,
}

impl Bench {
    fn start(
        journal: Arc<Journal>,
        receivers: &[&str],
        script: impl Fn(&str, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        START.with(|start| start.elapsed());
        let wire = Wire { script: Arc::new(script), calls: Arc::default() };
        let lanes = receivers.iter().map(|name| lane(name, wire.clone())).collect();
        Self::with(journal, wire, lanes)
    }

    fn with(journal: Arc<Journal>, wire: Wire, lanes: Vec<Arc<Lane<Wire>>>) -> Self {
        let (wake, woken) = watch::channel(0);
        let stop = CancellationToken::new();
        let stats = Arc::new(Stats::default());
        let running = tokio::spawn(run(Arc::clone(&journal), lanes, woken, Arc::clone(&stats), stop.clone()));
        Self { journal, wake, stop, running, wire, stats }
    }

    /// Time passes (at once: the clock is paused) until every page has an outcome.
    async fn settle(&self) {
        self.wake.send_modify(|n| *n += 1);
        for _ in 0..1_000_000 {
            if self.journal.pages.lock().unwrap().values().all(|(_, outcome)| outcome.is_some()) {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("pages without an outcome: {:?}", self.calls());
    }

    fn calls(&self) -> Vec<Call> {
        self.wire.calls.lock().unwrap().clone()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_is_delivered_in_order_whatever_the_receiver_does() {
    let journal = primary();
    for id in 0..4u64 {
        for (offset, action) in
            [PageAction::Trigger, PageAction::Acknowledge, PageAction::Resolve].into_iter().enumerate()
        {
            journal.request(10 * (offset as u64 + 1) + id, page("ops", &format!("key-{id}"), action));
        }
    }
    let bench = Bench::start(Arc::clone(&journal), &["ops"], |_, nth| match nth {
        0 => Answer::Status(500),
        1 => Answer::Drop,
        2 => Answer::Hang,
        3 => Answer::Throttle(Duration::from_secs(30)),
        _ => Answer::Status(200),
    });
    bench.settle().await;
    for id in 0..4 {
        let of_key: Vec<_> = bench.calls().into_iter().filter(|call| call.key == format!("key-{id}")).collect();
        let actions: Vec<_> = of_key.iter().map(|call| call.action.as_str()).collect();
        assert_eq!(actions, ["trigger", "trigger", "trigger", "trigger", "trigger", "acknowledge", "resolve"]);
        assert!(of_key[4].at >= of_key[3].at + Duration::from_secs(30), "Retry-After is honoured: {of_key:?}");
        assert!(of_key[3].at >= of_key[2].at + Duration::from_secs(10), "the hanging call had its deadline");
    }
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_hanging_receiver_delays_no_other_and_a_stuck_key_no_other_key() {
    let journal = primary();
    journal.request(1, page("hangs", "a", PageAction::Trigger));
    journal.request(2, page("ops", "stuck", PageAction::Trigger));
    for id in 3..200 {
        journal.request(id, page("ops", &format!("key-{id}"), PageAction::Trigger));
    }
    let bench = Bench::start(Arc::clone(&journal), &["hangs", "ops"], |key, nth| match key {
        "a" if nth < 50 => Answer::Hang,
        "stuck" if nth < 50 => Answer::Status(503),
        _ => Answer::Status(200),
    });
    bench.settle().await;
    let last_other = bench.calls().into_iter().filter(|call| call.page >= 3).map(|call| call.at).max().unwrap();
    assert!(last_other < Duration::from_secs(1), "{last_other:?}");
    bench.stop().await;
}

/// The page that met the request is not to be the last one to arrive.
#[tokio::test(start_paused = true)]
async fn a_page_that_was_asked_for_patience_waits_no_longer_than_the_others() {
    let journal = primary();
    journal.request(1, page("ops", "first", PageAction::Trigger));
    journal.request(2, page("ops", "first", PageAction::Resolve));
    let bench = Bench::start(Arc::clone(&journal), &["ops"], |_, nth| match nth {
        0 => Answer::Throttle(Duration::from_secs(600)),
        _ => Answer::Status(200),
    });
    bench.settle().await;
    let calls = bench.calls();
    assert_eq!(calls.len(), 3, "{calls:?}");
    let second = Duration::from_secs(1);
    assert!(calls[1].at >= 60 * second && calls[1].at < 63 * second, "{calls:?}");
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_asks_for_patience_is_left_alone_by_all_of_its_pages() {
    let journal = primary();
    for id in 1..60 {
        journal.request(id, page("ops", &format!("key-{id}"), PageAction::Trigger));
        journal.request(100 + id, page("chat", &format!("other-{id}"), PageAction::Trigger));
    }
    let bench = Bench::start(Arc::clone(&journal), &["ops", "chat"], |key, nth| match (key, nth) {
        ("key-1", 0) => Answer::Throttle(Duration::from_secs(30)),
        _ => Answer::Status(200),
    });
    bench.settle().await;
    let second = Duration::from_secs(1);
    let (others, ours): (Vec<_>, Vec<_>) = bench.calls().into_iter().partition(|call| call.page > 100);
    assert!(others.len() == 59 && others.iter().all(|call| call.at < second), "nobody else waits: {others:?}");
    let (early, late): (Vec<_>, Vec<_>) = ours.into_iter().partition(|call| call.at < second);
    assert!(early.len() < 10, "those under way at that moment, and no more: {early:?}");
    assert!(late.iter().all(|call| call.at >= 30 * second), "{late:?}");
    bench.stop().await;
}

/// From the text of the config to the calls that are made: so many in any minute, and all in the end.
#[tokio::test(start_paused = true)]
async fn a_receivers_rate_is_that_of_the_config() {
    const PAGES: u64 = 60;
    let longest = async |keys: &str| {
        let text = format!(
            "[tls]\nca = \"/c\"\ncert = \"/d\"\nkey = \"/k\"\n[store]\nurl = \"sqlite:/j.db\"\n\
             [[receiver.webhook]]\nname = \"ops\"\nurl = \"http://127.0.0.1:1/\"\n{keys}"
        );
        let config = muster_coordinator::config::parse("c.toml", &text).unwrap_or_else(|errors| panic!("{errors}"));
        let journal = primary();
        for id in 1..=PAGES {
            journal.request(id, page("ops", &format!("key-{id}"), PageAction::Trigger));
        }
        let wire = Wire { script: Arc::new(|_, _| Answer::Status(200)), calls: Arc::default() };
        let open = |config: ReceiverConfig| Arc::new(Lane::new(Receiver::open(config, "prod").unwrap(), wire.clone()));
        let lanes = config.receivers.into_iter().map(open).collect();
        let bench = Bench::with(journal, wire.clone(), lanes);
        bench.settle().await;
        let calls: Vec<Duration> = bench.calls().into_iter().map(|call| call.at).collect();
        assert_eq!(calls.len() as u64, PAGES);
        bench.stop().await;
        let in_a_minute = |first: &Duration| {
            calls.iter().filter(|at| *at >= first && **at < *first + Duration::from_secs(60)).count()
        };
        calls.iter().map(in_a_minute).max().unwrap()
    };
    assert_eq!(longest("").await, 60, "a webhook takes all at once");
    // The rate and a tenth of it at once.
    let bounded = longest("rate_per_minute = 20").await;
    assert!((20..=22).contains(&bounded), "{bounded}");
    let bounded = longest("rate_per_minute = 5").await;
    assert!((5..=6).contains(&bounded), "{bounded}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_final_and_a_used_up_budget_too() {
    let journal = primary();
    journal.request(1, page("ops", "refused", PageAction::Trigger));
    journal.request(2, page("ops", "down", PageAction::Trigger));
    journal.request(3, page("gone", "x", PageAction::Trigger));
    let bench = Bench::start(Arc::clone(&journal), &["ops"], |key, _| match key {
        "refused" => Answer::Status(400),
        _ => Answer::Status(503),
    });
    bench.settle().await;
    let Some(Outcome::Failed(error)) = journal.outcome(1) else { panic!("delivered?") };
    assert!(error.contains("400"), "{error}");
    let Some(Outcome::Failed(error)) = journal.outcome(2) else { panic!("delivered?") };
    assert!(error.contains("than retry_for (60 min)") && error.contains("503"), "{error}");
    let Some(Outcome::Failed(error)) = journal.outcome(3) else { panic!("delivered?") };
    assert_eq!(error, "no receiver named \"gone\" is configured");
    assert_eq!(bench.calls().iter().filter(|call| call.page == 1).count(), 1);
    let last = bench.calls().iter().filter(|call| call.page == 2).map(|call| call.at).max().unwrap();
    assert!(last >= Duration::from_secs(3600), "the last try comes when the budget is over, and came at {last:?}");
    bench.stop().await;
}

/// A try within what it asked to be left alone for would only be refused again.
#[tokio::test(start_paused = true)]
async fn a_receiver_that_asks_for_more_patience_than_is_left_gets_no_last_try() {
    let journal = primary();
    journal.request(1, page("ops", "down", PageAction::Trigger));
    if let Some((pending, _)) = journal.pages.lock().unwrap().get_mut(&PageId(1)) {
        (pending.attempted, pending.tried_for) = (true, Duration::from_secs(3590));
    }
    let bench = Bench::start(Arc::clone(&journal), &["ops"], |_, _| Answer::Throttle(Duration::from_secs(30)));
    bench.settle().await;
    let Some(Outcome::Failed(error)) = journal.outcome(1) else { panic!("delivered?") };
    assert!(error.contains("than retry_for (60 min)"), "{error}");
    assert_eq!(bench.calls().len(), 1);
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_does_not_begin_a_pages_budget_anew() {
    let journal = primary();
    journal.request(1, page("ops", "down", PageAction::Trigger));
    if let Some((pending, _)) = journal.pages.lock().unwrap().get_mut(&PageId(1)) {
        // The process before this one tried it for most of its hour.
        (pending.attempted, pending.tried_for) = (true, Duration::from_secs(3000));
    }
    let bench = Bench::start(Arc::clone(&journal), &["ops"], |_, _| Answer::Status(503));
    bench.settle().await;
    let Some(Outcome::Failed(error)) = journal.outcome(1) else { panic!("delivered?") };
    assert!(error.contains("than retry_for (60 min)"), "{error}");
    let last = bench.calls().last().unwrap().at;
    let (budget, second) = (Duration::from_secs(600), Duration::from_secs(1));
    assert!(last >= budget && last < budget + second, "tried after that for {last:?} more");
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_is_not_the_primary_pages_nothing_and_stops_between_tries() {
    let journal = Arc::new(Journal::default());
    journal.request(1, page("ops", "a", PageAction::Trigger));
    let fence = Arc::clone(&journal);
    let bench = Bench::start(Arc::clone(&journal), &["ops"], move |_, _| {
        // A higher epoch is heard while the first call is under way.
        fence.primary.store(false, Ordering::SeqCst);
        Answer::Status(503)
    });
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(bench.calls(), [], "a standby pages nothing");
    journal.primary.store(true, Ordering::SeqCst);
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(bench.calls().len(), 1, "a fenced coordinator does not try again");
    assert_eq!(journal.outcome(1), None, "the page is left to the successor");
    let failing = bench.stats.failing.get_or_create(&ReceiverLabel { receiver: "ops".to_owned() }).get();
    assert_eq!(failing, 0, "how the receiver does is the successor's to say");
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_call_and_outcome_sends_again_under_the_same_key() {
    let journal = primary();
    journal.request(1, page("ops", "a", PageAction::Trigger));
    journal.dead.store(true, Ordering::SeqCst);
    let first = Bench::start(Arc::clone(&journal), &["ops"], |_, _| Answer::Status(200));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(first.calls().len(), 1, "the fact is repeated, not the call");
    first.stop().await;

    // The next process, or the standby that took over, finds it attempted and without an outcome.
    journal.dead.store(false, Ordering::SeqCst);
    let second = Bench::start(Arc::clone(&journal), &["ops"], |_, _| Answer::Status(200));
    second.settle().await;
    let calls = second.calls();
    assert_eq!((calls.len(), calls[0].page, calls[0].key.as_str()), (1, 1, "a"));
    assert_eq!(journal.outcome(1), Some(Outcome::Delivered));
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_page_cancelled_before_its_first_try_is_dropped() {
    /// Cancels every page at the moment its attempt is journaled.
    struct Cancels(Arc<Journal>);
    impl Outbox for Cancels {
        fn may_page(&self) -> bool {
            self.0.may_page()
        }
        async fn pending(&self, of: Of<'_>, limit: usize) -> Result<Vec<Pending>, OutboxError> {
            self.0.pending(of, limit).await
        }
        async fn attempted(&self, page: PageId) -> Result<bool, OutboxError> {
            self.0.pages.lock().unwrap().remove(&page);
            Ok(false)
        }
        async fn concluded(&self, _: PageId, _: Outcome) -> Result<(), OutboxError> {
            panic!("a cancelled page has no outcome")
        }
        async fn failing(&self, _: &str, _: Duration, _: String) -> Result<(), OutboxError> {
            panic!("nothing was tried")
        }
        async fn standing(&self, _: &str, _: &str, _: usize) -> Result<Vec<Standing>, OutboxError> {
            Ok(Vec::new())
        }
    }
    let journal = primary();
    journal.request(1, page("ops", "a", PageAction::Trigger));
    let wire = Wire { script: Arc::new(|_, _| Answer::Status(200)), calls: Arc::default() };
    let lanes = vec![lane("ops", wire.clone())];
    let (_wake, woken) = watch::channel(0u64);
    let stop = CancellationToken::new();
    let outbox = Arc::new(Cancels(Arc::clone(&journal)));
    let running = tokio::spawn(run(outbox, lanes, woken, Arc::new(Stats::default()), stop.clone()));
    sleep(Duration::from_secs(120)).await;
    assert!(wire.calls.lock().unwrap().is_empty());
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_takes_nothing_for_minutes_is_told_to_fail_once() {
    let journal = primary();
    for id in 1..4 {
        journal.request(id, page("ops", &format!("key-{id}"), PageAction::Trigger));
    }
    let bench = Bench::start(Arc::clone(&journal), &["ops"], |_, nth| match nth {
        0..30 => Answer::Status(503),
        _ => Answer::Status(200),
    });
    bench.settle().await;
    let told = journal.failing.lock().unwrap().clone();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].0 == "ops" && told[0].1 >= Duration::from_secs(300), "{told:?}");
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_short_failure_is_told_to_nobody() {
    let journal = primary();
    journal.request(1, page("ops", "a", PageAction::Trigger));
    let bench = Bench::start(Arc::clone(&journal), &["ops"], |_, nth| match nth {
        0..3 => Answer::Drop,
        _ => Answer::Status(200),
    });
    bench.settle().await;
    assert!(journal.failing.lock().unwrap().is_empty());
    bench.stop().await;
}

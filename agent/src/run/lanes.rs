//! Threads that run probes, one run at a time each, so that a probe that hangs costs its own thread and no other.
//!
//! What is due at one moment is handed over together: each hand-over wakes two threads, and most probes are done sooner
//! than that. A thread takes no further run of a batch once [`BATCH_MAX`] has passed, so that a deadline, which counts
//! from the hand-over, is about the run that hangs and not about those behind it; those come back and are due still.
//!
//! The sandbox is not made here: who opens strangers' databases restricts the thread it runs on. In the daemon the threads
//! of that lane are lent to it for good; what it may not do from then on a helper does, a thread of a moment.
//!
//! A lane has no thread before its first run. A thread that hangs is left behind and replaced, up to a bound; when it
//! comes back it delivers its probe and ends.

use crate::bell::Bell;
use crate::probe::{Context, Lane as Kind, Probe};
use crate::sandbox::{self, Work};
use muster_agent_core::judgement::Judgement;
use muster_common::finding::SubjectKey;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Hung threads of one lane that are replaced. Beyond it the lane waits: a file system that hangs does not take the
/// host's threads with it. The unit's `TasksMax=` has room for this many on every lane.
pub const HUNG_THREADS_MAX: usize = 8;
/// Probes have shallow stacks; SQLite is measured to need less than a quarter of this.
const STACK_BYTES: usize = 1 << 20;

/// Runs of one hand-over.
pub const BATCH_JOBS_MAX: usize = 64;
/// No further run of a batch begins after this. Whom something woke waits for it at most.
const BATCH_MAX: Duration = Duration::from_millis(5);

/// One run to do.
pub struct Job {
    /// Who asks.
    pub probe: Box<dyn Probe>,
    /// With what.
    pub context: Context,
}

/// One run that is over.
pub struct Done {
    /// The lane it ran on.
    pub lane: usize,
    /// The thread that ran it.
    worker: u64,
    /// Nothing more of its batch runs.
    last: bool,
    /// The probe, handed back.
    pub probe: Box<dyn Probe>,
    /// What it said.
    pub judgement: Judgement,
    /// How long it took.
    pub took: Duration,
}

impl Done {
    /// The probe's subject.
    pub fn subject(&self) -> SubjectKey {
        self.probe.subject().clone()
    }
}

/// Where runs that are over are delivered.
#[derive(Debug, Clone)]
pub struct Delivery {
    to: Sender<Done>,
    bell: Option<Bell>,
    helper: Option<Sender<Work>>,
}

impl Delivery {
    /// To one who waits for the channel alone.
    pub const fn new(to: Sender<Done>) -> Self {
        Self { to, bell: None, helper: None }
    }

    /// To one who waits for other things, too, is rung for, and helps where a thread must not do something itself.
    pub const fn with_bell(to: Sender<Done>, bell: Bell, helper: Sender<Work>) -> Self {
        Self { to, bell: Some(bell), helper: Some(helper) }
    }

    /// Lends the calling thread to the sandbox, where there is a helper for what it may not do then.
    fn lend_thread(&self) {
        let Some((helper, bell)) = self.helper.clone().zip(self.bell.clone()) else { return };
        sandbox::lend(Box::new(move |work| {
            // Nobody helps any more when the daemon ends.
            helper.send(work).ok();
            bell.ring();
        }));
    }

    /// False when nobody takes it.
    fn deliver(&self, done: Done) -> bool {
        // Good news wait until the batch is over.
        let at_once = done.last || !done.judgement.problems.is_empty() || !done.judgement.occurrences.is_empty();
        let delivered = self.to.send(done).is_ok();
        if let Some(bell) = self.bell.as_ref().filter(|_| at_once) {
            bell.ring();
        }
        delivered
    }
}

/// What a thread has still to do, and what is taken back from one that hangs.
#[derive(Clone, Default)]
struct Batch(Arc<Mutex<VecDeque<Job>>>);

impl Batch {
    fn jobs(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thread for probes of one kind, and those left behind.
pub struct Lane {
    index: usize,
    kind: Kind,
    results: Delivery,
    worker: u64,
    /// `None` before the first run, and after the thread hung.
    batches: Option<Sender<(Job, Batch)>>,
    /// What the thread works on.
    batch: Option<Batch>,
    hung: usize,
}

impl Lane {
    /// Lane `index`; results go to `results`.
    pub const fn new(index: usize, kind: Kind, results: Delivery) -> Self {
        Self { index, kind, results, worker: 0, batches: None, batch: None, hung: 0 }
    }

    /// The kind of probes it runs.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// True when a job would start at once.
    pub const fn is_free(&self) -> bool {
        self.batch.is_none() && (self.batches.is_some() || self.hung < HUNG_THREADS_MAX)
    }

    /// Threads that hang now.
    pub const fn hung(&self) -> usize {
        self.hung
    }

    /// Starts a run; gives the job back when there is no thread to run it.
    pub fn start(&mut self, job: Job) -> Result<(), Job> {
        self.start_all(vec![job]).map_err(|jobs| jobs.into_iter().next()).or_else(|job| job.map_or(Ok(()), Err))
    }

    /// Starts runs, one after the other; gives the jobs back when there is no thread to run them.
    pub fn start_all(&mut self, jobs: Vec<Job>) -> Result<(), Vec<Job>> {
        if !self.is_free() {
            return Err(jobs);
        }
        if self.batches.is_none() {
            self.spawn();
        }
        let Some(batches) = &self.batches else { return Err(jobs) };
        // The first is the thread's from now on, begun or not: a batch always ends with a run that is told.
        let mut jobs = VecDeque::from(jobs);
        let Some(first) = jobs.pop_front() else { return Ok(()) };
        let batch = Batch(Arc::new(Mutex::new(jobs)));
        if let Err(refused) = batches.send((first, batch.clone())) {
            self.batches = None;
            return Err(std::iter::once(refused.0.0).chain(batch.jobs().drain(..)).collect());
        }
        self.batch = Some(batch);
        Ok(())
    }

    /// Notes that a run is over, and gives back what its batch had no more time for; a thread that was left behind is
    /// gone with its last run.
    pub fn finished(&mut self, done: &Done) -> Vec<Job> {
        if !done.last {
            return Vec::new();
        }
        if done.worker != self.worker {
            self.hung = self.hung.saturating_sub(1);
            return Vec::new();
        }
        self.batch.take().map(|batch| batch.jobs().drain(..).collect()).unwrap_or_default()
    }

    /// Has the next run start another thread where threads are restricted, and lets the present one end with its batch: what
    /// it may do is settled.
    pub fn renew(&mut self) {
        // Not where there could be no other.
        if self.kind == Kind::Database && self.hung < HUNG_THREADS_MAX {
            self.batches = None;
        }
    }

    /// Leaves the thread that hangs behind, and gives back what it has not begun; the next run starts another, if the
    /// bound allows one.
    pub fn replace(&mut self) -> Vec<Job> {
        let Some(batch) = self.batch.take() else { return Vec::new() };
        self.batches = None;
        self.hung += 1;
        // No thread has this number: a run that comes back late is known as such.
        self.worker += 1;
        batch.jobs().drain(..).collect()
    }

    fn spawn(&mut self) {
        self.worker += 1;
        let (sender, batches) = channel();
        let (lane, kind, worker, results) = (self.index, self.kind, self.worker, self.results.clone());
        let name = match kind {
            Kind::Quick => "probe",
            Kind::Files => "probe-files",
            Kind::Database => "probe-db",
        };
        let builder = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES);
        let spawned = builder.spawn(move || {
            if kind == Kind::Database {
                results.lend_thread();
            }
            work(lane, worker, &batches, &results);
        });
        match spawned {
            Ok(_) => self.batches = Some(sender),
            Err(error) => tracing::error!(%error, lane = name, "cannot start a probe thread"),
        }
    }
}

fn work(lane: usize, worker: u64, batches: &Receiver<(Job, Batch)>, results: &Delivery) {
    while let Ok((first, batch)) = batches.recv() {
        let until = Instant::now() + BATCH_MAX;
        let mut next = Some(first);
        while let Some(Job { mut probe, context }) = next {
            let start = Instant::now();
            // A probe that panics is a bug of that probe and of nothing else.
            let judgement = catch_unwind(AssertUnwindSafe(|| probe.run(&context))).unwrap_or_else(|_| {
                Judgement::unknown("the probe failed by a programming error (see the agent's log)", None)
            });
            let end = Instant::now();
            // Taken before the run is told: who leaves this thread behind gets the others back, or knows of one more.
            next = if end < until { batch.jobs().pop_front() } else { None };
            let done = Done { lane, worker, last: next.is_none(), probe, judgement, took: end.duration_since(start) };
            if !results.deliver(done) {
                return;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use muster_agent_core::services::Services;
    use muster_common::finding::ProbeKind;
    use muster_common::ids::ServiceName;
    use std::sync::{Arc, Mutex};

    /// Says what a function says.
    pub(crate) struct Fake<F> {
        pub(crate) subject: SubjectKey,
        pub(crate) answer: F,
    }

    impl<F: FnMut() -> Judgement + Send> Probe for Fake<F> {
        fn subject(&self) -> &SubjectKey {
            &self.subject
        }

        fn run(&mut self, _context: &Context) -> Judgement {
            (self.answer)()
        }
    }

    pub(crate) fn fake(name: &str, answer: impl FnMut() -> Judgement + Send + 'static) -> Box<dyn Probe> {
        Box::new(Fake { subject: SubjectKey::new(ServiceName::host(), ProbeKind::Port, name), answer })
    }

    fn job(probe: Box<dyn Probe>) -> Job {
        let services = Arc::new(Mutex::new(Services::default()));
        Job { probe, context: Context { now: crate::clock::now(), services, one_shot: true } }
    }

    #[test]
    fn a_panicking_probe_is_unknown_and_its_thread_lives_on() {
        let (results, inbox) = channel::<Done>();
        let mut lane = Lane::new(0, Kind::Quick, Delivery::new(results));
        for answer in [None, Some(Judgement::default())] {
            let expected = answer.is_none();
            let probe = fake("x", move || answer.clone().expect("no answer in this test"));
            assert!(lane.start(job(probe)).is_ok());
            let done = inbox.recv().unwrap();
            assert_eq!(done.judgement.unknown.is_some(), expected);
            lane.finished(&done);
        }
    }

    #[test]
    fn a_hung_thread_is_replaced_up_to_the_bound_and_comes_back() {
        let (results, inbox) = channel::<Done>();
        let mut lane = Lane::new(0, Kind::Quick, Delivery::new(results));
        let mut releases = Vec::new();
        for index in 0..HUNG_THREADS_MAX {
            let (release, released) = channel::<()>();
            let probe = fake("hung", move || {
                let _gone = released.recv().is_err();
                Judgement::default()
            });
            assert!(lane.start(job(probe)).is_ok(), "{index}");
            lane.replace();
            releases.push(release);
        }
        assert_eq!(lane.hung(), HUNG_THREADS_MAX);
        assert!(!lane.is_free());
        assert!(lane.start(job(fake("y", Judgement::default))).is_err());
        drop(releases.pop());
        lane.finished(&inbox.recv().unwrap());
        assert_eq!(lane.hung(), HUNG_THREADS_MAX - 1);
        assert!(lane.start(job(fake("y", Judgement::default))).is_ok());
        let done = inbox.recv().unwrap();
        lane.finished(&done);
        assert_eq!(done.subject().subject, "y");
    }

    #[test]
    fn what_waits_behind_a_run_that_hangs_is_given_back_and_the_others_of_its_batch_are_told() {
        let (results, inbox) = channel::<Done>();
        let mut lane = Lane::new(0, Kind::Quick, Delivery::new(results));
        let (release, released) = channel::<()>();
        let hang = move || {
            let _gone = released.recv().is_err();
            Judgement::default()
        };
        let batch = [fake("a", Judgement::default), fake("b", hang), fake("c", Judgement::default)];
        assert!(lane.start_all(batch.into_iter().map(job).collect()).is_ok());
        let first = inbox.recv().unwrap();
        assert_eq!(first.subject().subject, "a");
        assert!(lane.finished(&first).is_empty());
        // A first thread may take longer to start than a batch may last; then it is the end of the batch that gives
        // back, and nothing hangs.
        let left = if first.last { Vec::new() } else { lane.replace() };
        drop(release);
        if !first.last {
            assert_eq!(left.iter().map(|job| job.probe.subject().subject.clone()).collect::<Vec<_>>(), ["c"]);
            assert_eq!(lane.hung(), 1);
            let late = inbox.recv().unwrap();
            assert_eq!(late.subject().subject, "b");
            assert!(lane.finished(&late).is_empty());
        }
        assert_eq!(lane.hung(), 0);
        assert!(lane.is_free());
    }

    #[test]
    fn a_batch_that_has_lasted_long_enough_gives_the_rest_back() {
        let (results, inbox) = channel::<Done>();
        let mut lane = Lane::new(0, Kind::Quick, Delivery::new(results));
        let slow = || {
            std::thread::sleep(BATCH_MAX);
            Judgement::default()
        };
        assert!(lane.start_all([fake("a", slow), fake("b", slow)].into_iter().map(job).collect()).is_ok());
        let done = inbox.recv().unwrap();
        let left = lane.finished(&done);
        assert_eq!(left.iter().map(|job| job.probe.subject().subject.clone()).collect::<Vec<_>>(), ["b"]);
        assert!(lane.is_free());
    }
}

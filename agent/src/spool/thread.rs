//! The one thread that owns the spool. Everyone else sends it work and waits, or does not: a heartbeat never does.

use super::{Append, Spool, SpoolError};
use muster_agent_core::clock::Now;
use muster_agent_core::session::SpoolView;
use muster_common::spool::Position;
use tokio::sync::{mpsc, oneshot, watch};

/// Work waiting for the thread. Each caller waits for its own, so this is a bound on callers, and generous.
const QUEUE_MAX: usize = 64;

type Work = Box<dyn FnOnce(&mut Spool, &watch::Sender<SpoolView>) + Send>;

/// A way to the spool; cheap to clone. The thread ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct SpoolHandle {
    work: mpsc::Sender<Work>,
    view: watch::Receiver<SpoolView>,
}

/// Starts the thread.
pub fn spawn(mut spool: Spool) -> std::io::Result<SpoolHandle> {
    let (work, mut queue) = mpsc::channel::<Work>(QUEUE_MAX);
    let (publish, view) = watch::channel(spool.view());
    std::thread::Builder::new().name("spool".to_owned()).spawn(move || {
        while let Some(work) = queue.blocking_recv() {
            work(&mut spool, &publish);
        }
    })?;
    Ok(SpoolHandle { work, view })
}

impl SpoolHandle {
    /// Where the spool stands, without asking the thread.
    pub fn view(&self) -> SpoolView {
        *self.view.borrow()
    }

    /// Tells of every change.
    pub fn watch(&self) -> watch::Receiver<SpoolView> {
        self.view.clone()
    }

    /// Appends events and states in one transaction and waits until they are durable. For threads; never call it from
    /// an async task.
    pub fn append_blocking(
        &self,
        events: Vec<Append>,
        states: Vec<(String, Vec<u8>)>,
        now: Now,
    ) -> Result<Position, SpoolError> {
        self.call_blocking(move |spool| append(spool, &events, &states, now))
    }

    /// As [`SpoolHandle::append_blocking`], for async tasks.
    pub async fn append(
        &self,
        events: Vec<Append>,
        states: Vec<(String, Vec<u8>)>,
        now: Now,
    ) -> Result<Position, SpoolError> {
        self.call(move |spool| append(spool, &events, &states, now)).await
    }

    /// What was kept under `key`. For threads.
    pub fn get_state_blocking(&self, key: &str) -> Result<Option<Vec<u8>>, SpoolError> {
        let key = key.to_owned();
        self.call_blocking(move |spool| spool.get_state(&key))
    }

    /// All that is kept under keys that begin with `prefix`. For threads.
    pub fn get_states_blocking(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, SpoolError> {
        let prefix = prefix.to_owned();
        self.call_blocking(move |spool| spool.get_states(&prefix))
    }

    /// Runs `work` on the spool's thread and waits for it. For async tasks.
    pub async fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Spool) -> Result<R, SpoolError> + Send + 'static,
    ) -> Result<R, SpoolError> {
        let (work, answer) = boxed(work);
        self.work.send(work).await.map_err(|_| SpoolError::Closed)?;
        answer.await.map_err(|_| SpoolError::Closed)?
    }

    /// Runs `work` on the spool's thread and waits for it. For threads.
    pub fn call_blocking<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Spool) -> Result<R, SpoolError> + Send + 'static,
    ) -> Result<R, SpoolError> {
        let (work, answer) = boxed(work);
        self.work.blocking_send(work).map_err(|_| SpoolError::Closed)?;
        answer.blocking_recv().map_err(|_| SpoolError::Closed)?
    }
}

fn append(
    spool: &mut Spool,
    events: &[Append],
    states: &[(String, Vec<u8>)],
    now: Now,
) -> Result<Position, SpoolError> {
    let states: Vec<(&str, &[u8])> = states.iter().map(|(key, bytes)| (key.as_str(), bytes.as_slice())).collect();
    spool.append(events, &states, now)
}

fn heal(spool: &mut Spool) {
    match spool.heal(crate::clock::now()) {
        Ok(false) => {}
        Ok(true) => tracing::error!(loss = ?spool.loss(), "the spool was damaged while at work; a new one was begun"),
        Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "the spool is damaged and stays so"),
    }
}

fn boxed<R: Send + 'static>(work: impl FnOnce(&mut Spool) -> R + Send + 'static) -> (Work, oneshot::Receiver<R>) {
    let (answer, receiver) = oneshot::channel();
    let work: Work = Box::new(move |spool, publish| {
        let result = work(spool);
        heal(spool);
        // Before the answer, so that whoever got it finds the view up to date.
        let view = spool.view();
        publish.send_if_modified(|known| std::mem::replace(known, view) != view);
        // The caller may have gone; the work is done all the same.
        answer.send(result).ok();
    });
    (work, receiver)
}

//! One owner of the spool. Everyone else sends it work and waits, or does not: a heartbeat never does.
//!
//! The daemon's owner is the loop that judges: it writes what it found without asking anybody, and does what others ask
//! between two turns, woken by a bell. A program without such a loop starts a thread that owns it.

use super::{Append, Spool, SpoolError};
use crate::bell::Bell;
use muster_agent_core::clock::Now;
use muster_agent_core::session::SpoolView;
use muster_common::spool::Position;
use std::io;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Work waiting for the owner. Each caller waits for its own, so this is a bound on callers, and generous.
const QUEUE_MAX: usize = 64;

type Work = Box<dyn FnOnce(&mut SpoolOwner) + Send>;

/// The spool and what is asked of it.
#[derive(Debug)]
pub struct SpoolOwner {
    spool: Spool,
    publish: watch::Sender<SpoolView>,
    asked: Asked,
}

/// What others ask for.
struct Asked {
    queue: mpsc::Receiver<Work>,
    bell: Bell,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Asked")
    }
}

/// A way to the spool; cheap to clone. What is asked of it fails once the owner is gone.
#[derive(Debug, Clone)]
pub struct SpoolHandle {
    work: mpsc::Sender<Work>,
    bell: Bell,
    view: watch::Receiver<SpoolView>,
}

/// Makes the caller the owner, and gives the handle for everyone else.
pub fn own(spool: Spool) -> io::Result<(SpoolOwner, SpoolHandle)> {
    let (work, queue) = mpsc::channel::<Work>(QUEUE_MAX);
    let (publish, view) = watch::channel(spool.view());
    let bell = Bell::new()?;
    let asked = Asked { queue, bell: bell.clone() };
    Ok((SpoolOwner { spool, publish, asked }, SpoolHandle { work, bell, view }))
}

/// Starts a thread that owns the spool, until the last handle is dropped.
pub fn spawn(spool: Spool) -> io::Result<SpoolHandle> {
    let (mut owner, handle) = own(spool)?;
    std::thread::Builder::new().name("spool".to_owned()).spawn(move || {
        while let Some(work) = owner.asked.queue.blocking_recv() {
            work(&mut owner);
        }
    })?;
    Ok(handle)
}

impl SpoolOwner {
    /// Rings while somebody asks for something.
    pub fn bell(&self) -> Bell {
        self.asked.bell.clone()
    }

    /// Does all that was asked for up to now; waits for nothing but the disk.
    pub fn serve(&mut self) {
        self.asked.bell.silence();
        // A bound, so that who asks without end does not keep the owner from its own work.
        for _ in 0..QUEUE_MAX {
            let Ok(work) = self.asked.queue.try_recv() else { return };
            work(self);
        }
        self.asked.bell.ring();
    }

    /// Does what is asked for until `is_over`, looked at after each piece of work and at least every `turn`.
    pub fn serve_until(&mut self, turn: Duration, is_over: impl Fn() -> bool) {
        let turn = rustix::event::Timespec::try_from(turn).ok();
        while !is_over() {
            let bell = self.bell();
            let mut fds = [rustix::event::PollFd::new(&bell, rustix::event::PollFlags::IN)];
            // An interrupted wait is a short one.
            rustix::event::poll(&mut fds, turn.as_ref()).ok();
            self.serve();
        }
    }

    /// Where the spool stands.
    pub fn view(&self) -> SpoolView {
        self.spool.view()
    }

    /// Works on the spool, mends it if it turns out to be damaged, and tells everyone where it stands then.
    pub fn with<R>(&mut self, work: impl FnOnce(&mut Spool) -> R) -> R {
        let result = work(&mut self.spool);
        heal(&mut self.spool);
        let view = self.spool.view();
        self.publish.send_if_modified(|known| std::mem::replace(known, view) != view);
        result
    }

    /// Appends events and states in one transaction: durable when this returns.
    pub fn append(
        &mut self,
        events: &[Append],
        states: &[(String, Vec<u8>)],
        now: Now,
    ) -> Result<Position, SpoolError> {
        let states: Vec<(&str, &[u8])> = states.iter().map(|(key, bytes)| (key.as_str(), bytes.as_slice())).collect();
        let position = self.with(|spool| spool.append(events, &states, now))?;
        tracing::debug!(events = events.len(), states = states.len(), head = position.sequence, "durable");
        Ok(position)
    }
}

impl SpoolHandle {
    /// Where the spool stands, without asking its owner.
    pub fn view(&self) -> SpoolView {
        *self.view.borrow()
    }

    /// Tells of every change.
    pub fn watch(&self) -> watch::Receiver<SpoolView> {
        self.view.clone()
    }

    /// As [`SpoolOwner::append`], for everyone else.
    pub async fn append(
        &self,
        events: Vec<Append>,
        states: Vec<(String, Vec<u8>)>,
        now: Now,
    ) -> Result<Position, SpoolError> {
        self.ask(move |owner| owner.append(&events, &states, now)).await
    }

    /// Has the owner run `work`, and waits for it.
    pub async fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Spool) -> Result<R, SpoolError> + Send + 'static,
    ) -> Result<R, SpoolError> {
        self.ask(move |owner| owner.with(work)).await
    }

    async fn ask<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut SpoolOwner) -> Result<R, SpoolError> + Send + 'static,
    ) -> Result<R, SpoolError> {
        let (answer, receiver) = oneshot::channel();
        let work: Work = Box::new(move |owner| {
            // The caller may have gone; the work is done all the same.
            answer.send(work(owner)).ok();
        });
        self.work.send(work).await.map_err(|_| SpoolError::Closed)?;
        self.bell.ring();
        receiver.await.map_err(|_| SpoolError::Closed)?
    }
}

fn heal(spool: &mut Spool) {
    match spool.heal(crate::clock::now()) {
        Ok(false) => {}
        Ok(true) => tracing::error!(loss = ?spool.loss(), "the spool was damaged while at work; a new one was begun"),
        Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "the spool is damaged and stays so"),
    }
}

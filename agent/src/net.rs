//! The one thread for everything that waits for other programs: a runtime on which the uplink, the system bus, health
//! endpoints and the local socket have their tasks.
//!
//! Nothing on it may block: a task that does delays heartbeats. Probes do not wait for it either: a task leaves what it
//! learned in a [`Mailbox`], whose descriptor wakes the probe that judges it.

use crate::bell::Bell;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Extra threads for names to resolve, snapshots, and files on a file system that may hang.
const BLOCKING_THREADS_MAX: usize = 3;
/// How long such a thread waits for more to do before it ends: they are needed when a link is made, not while it lasts.
const BLOCKING_KEEP_ALIVE: Duration = Duration::from_millis(200);
/// Futures live on the heap; a resolver of names needs the most of it.
const STACK_BYTES: usize = 1 << 20;

/// The thread. Its tasks end when it is dropped.
#[derive(Debug)]
pub struct Net {
    handle: NetHandle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// A way to start tasks on it; cheap to clone.
#[derive(Debug, Clone)]
pub struct NetHandle(Handle);

impl Net {
    /// Starts the thread.
    pub fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_keep_alive(BLOCKING_KEEP_ALIVE)
            .thread_stack_size(STACK_BYTES)
            .build()?;
        let handle = NetHandle(runtime.handle().clone());
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("net".to_owned()).stack_size(STACK_BYTES).spawn(move || {
            // Dropping the sender stops it as well.
            let _stopped = runtime.block_on(stopped);
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// For who starts tasks.
    pub fn handle(&self) -> NetHandle {
        self.handle.clone()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl NetHandle {
    /// Starts a task.
    pub fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.0.spawn(task)
    }
}

/// Where a task leaves the latest it learned, for one probe. A newer value replaces one that nobody took.
#[derive(Debug)]
pub struct Mailbox<T> {
    value: Mutex<Option<T>>,
    arrived: Condvar,
    bell: Bell,
}

impl<T> Mailbox<T> {
    /// An empty one.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { value: Mutex::new(None), arrived: Condvar::new(), bell: Bell::new()? }))
    }

    /// Leaves a value and rings.
    pub fn put(&self, value: T) {
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        self.arrived.notify_all();
        self.bell.ring();
    }

    /// Takes the value, if there is one.
    pub fn take(&self) -> Option<T> {
        self.bell.silence();
        self.value.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Waits for a value: for `doctor`, where there is no later run.
    pub fn wait(&self, at_most: Duration) -> Option<T> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.arrived.wait_timeout_while(value, at_most, |value| value.is_none());
        let (mut value, _) = waited.unwrap_or_else(PoisonError::into_inner);
        self.bell.silence();
        value.take()
    }

    /// Readable while a value waits: for [`crate::probe::Probe::wake`].
    pub fn bell(&self) -> Arc<OwnedFd> {
        self.bell.fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn rings(bell: &OwnedFd) -> bool {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(bell, PollFlags::IN)], Some(&at_once)).unwrap() == 1
    }

    #[test]
    fn a_task_leaves_a_value_and_rings_until_it_is_taken() {
        let net = Net::start().unwrap();
        let mailbox = Mailbox::new().unwrap();
        let theirs = Arc::clone(&mailbox);
        net.handle().spawn(async move {
            theirs.put(1);
            theirs.put(2);
        });
        while !rings(&mailbox.bell()) {
            std::thread::yield_now();
        }
        assert!(matches!(mailbox.wait(Duration::from_secs(60)), Some(1 | 2)));
        drop(net);
        mailbox.take();
        assert!(!rings(&mailbox.bell()));
        assert_eq!(mailbox.take(), None);
    }
}

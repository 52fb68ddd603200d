//! Watch streams: what is there, then every change as it is committed. A watcher that is too slow is ended.

use crate::runtime::{Batch, Handle};
use std::future::Future;
use std::sync::Arc;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Messages waiting for one watcher. Overflow rule: the loop's broadcast runs ahead, and the watcher is ended.
const WATCHER_MESSAGES_MAX: usize = 256;
/// Watchers of one kind at once: operators, dashboards. Overflow rule: one more is refused.
const WATCHERS_MAX: usize = 256;

/// What a watcher reads.
pub(super) type Watched<T> = ReceiverStream<Result<T, Status>>;

/// Room for watchers of one kind.
#[derive(Debug, Clone)]
pub(super) struct Watchers {
    slots: Arc<Semaphore>,
}

impl Default for Watchers {
    fn default() -> Self {
        Self { slots: Arc::new(Semaphore::new(WATCHERS_MAX)) }
    }
}

impl Watchers {
    fn enter(&self) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.slots).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{WATCHERS_MAX} watchers are here already: come back later"))
        })
    }

    /// Sends `first()`, then `then(batch)` for every batch committed after `first` was asked for (or during it).
    pub(super) fn watch<T, F, G, FirstFuture, ThenFuture>(
        &self,
        handle: &Handle,
        first: F,
        then: G,
    ) -> Result<Watched<T>, Status>
    where
        T: Send + 'static,
        F: FnOnce() -> FirstFuture + Send + 'static,
        G: Fn(Batch) -> ThenFuture + Send + Sync + 'static,
        FirstFuture: Future<Output = Result<Vec<T>, Status>> + Send,
        ThenFuture: Future<Output = Result<Vec<T>, Status>> + Send,
    {
        let permit = self.enter()?;
        let mut batches = handle.subscribe();
        let (stop, metrics) = (handle.stopping(), Arc::clone(handle.metrics()));
        let (sender, receiver) = mpsc::channel(WATCHER_MESSAGES_MAX);
        tokio::spawn(async move {
            let _permit = permit;
            let ended = async {
                send_all(&sender, first().await).await?;
                loop {
                    match batches.recv().await {
                        Ok(batch) => send_all(&sender, then(batch).await).await?,
                        Err(RecvError::Lagged(_)) => {
                            metrics.watchers_ended.inc();
                            return Err(Some(Status::resource_exhausted("too slow a watcher: list, then watch again")));
                        }
                        Err(RecvError::Closed) => return Err(Some(draining())),
                    }
                }
            };
            let ended: Result<(), Option<Status>> = tokio::select! {
                ended = ended => ended,
                () = stop.cancelled() => Err(Some(draining())),
                () = sender.closed() => Err(None),
            };
            if let Err(Some(status)) = ended {
                // A watcher that does not read its last message sees the end of the stream.
                drop(sender.try_send(Err(status)));
            }
        });
        Ok(ReceiverStream::new(receiver))
    }
}

fn draining() -> Status {
    Status::unavailable("draining: this coordinator stops, watch again soon")
}

async fn send_all<T>(
    sender: &mpsc::Sender<Result<T, Status>>,
    messages: Result<Vec<T>, Status>,
) -> Result<(), Option<Status>> {
    for message in messages.map_err(Some)? {
        sender.send(Ok(message)).await.map_err(|_| None)?;
    }
    Ok(())
}

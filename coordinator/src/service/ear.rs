//! What reaches an agent's stream from everywhere but the agent.
//!
//! A stream waits for it all the time, and not anew with each message: ten thousand streams that come and go in the queues
//! of those who wait cost more than what their heartbeats say.

use crate::runtime::{CoordinatorRole, Handle, Link, Standing};
use muster_coordinator_core::freeze::Freeze;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What reaches all streams, or ends one, whatever its agent says.
pub(super) enum News {
    /// Another stream has taken over, or the coordinator stops.
    Replaced,
    /// This is no primary any more.
    Role(CoordinatorRole),
    /// These are in force now.
    Freezes(Arc<[Freeze]>),
    /// The loop is gone.
    Ending,
}

/// Waits for [`News`].
pub(super) struct Ear {
    replaced: CancellationToken,
    standing: watch::Receiver<Standing>,
    freezes: watch::Receiver<Arc<[Freeze]>>,
}

impl Ear {
    /// For the stream of `link`.
    pub(super) fn new(handle: &Handle, link: &Link) -> Self {
        Self { replaced: link.replaced.clone(), standing: handle.standing(), freezes: handle.freezes() }
    }

    /// The next of them, and itself for what comes after.
    pub(super) async fn listen(mut self) -> (News, Self) {
        loop {
            let news = tokio::select! {
                () = self.replaced.cancelled() => News::Replaced,
                changed = self.standing.changed() => match (changed, self.standing.borrow_and_update().role) {
                    (Ok(()), CoordinatorRole::Primary) => continue,
                    (_, role) => News::Role(role),
                },
                changed = self.freezes.changed() => match changed {
                    Ok(()) => News::Freezes(Arc::clone(&self.freezes.borrow_and_update())),
                    Err(_) => News::Ending,
                },
            };
            return (news, self);
        }
    }
}

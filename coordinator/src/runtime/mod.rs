//! The one loop that owns State: inputs become facts, facts and conclusions are committed, and only then published.
//!
//! Invariant: nobody outside sees State that is not durable; a commit that fails ends the process.

mod clock;
mod gauges;
mod handle;
mod links;
mod load;
mod questions;
mod resync;
mod snapshot;
mod standing;
mod to_agent;
mod turn;

pub use clock::LogClock;
pub(crate) use clock::wall_clock;
pub use handle::{
    Batch, Committed, CoordinatorRole, Follower, Handle, Resume, RuntimeError, Standing, SubmitError, View, Waiting,
};
pub use links::{Link, Links, Newest};
pub use questions::{Answer, NoAnswer};
pub use resync::Resynced;
pub use to_agent::{LINK_OUTBOX_MESSAGES_MAX, Messages, NotTaken, Outbox, Room, ToAgent};
pub use turn::{Runtime, Start, start};

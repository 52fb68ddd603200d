//! The one loop that owns State: inputs become facts, facts and conclusions are committed, and only then published.
//!
//! Invariant: nobody outside sees State that is not durable; a commit that fails ends the process.

mod clock;
mod handle;
mod links;


pub use clock::LogClock;
pub use handle::{
    Batch, Committed, CoordinatorRole, Follower, Handle, RuntimeError, Standing, SubmitError, View, Waiting,
};
pub use links::{Link, LinkKeeper, Links};


//! The kernel log: raw `/dev/kmsg` records and saved logs in any usual form, read for OOM kills.
//!
//! Three steps, each in its file: [`mod@line`] tells who wrote a line and what it says without its prefix, [`forms`]
//! recognises one message, [`events`] joins the messages of one kill into one [`events::Victim`].
//!
//! Must never believe a line that user space wrote, never count a victim twice and never panic on any bytes.

pub mod balance;
pub mod clock;
pub mod cursor;
pub mod events;
pub mod forms;
pub mod line;
pub mod report;

pub use balance::Balance;
pub use clock::LogClock;
pub use cursor::{Cursor, Seen};
pub use events::{Joiner, Outcome, Proof, Scope, Trigger, Unnamed, Victim};
pub use line::{Line, Source, bears_kernel_mark, parse_record, parse_saved};

//! What can be said about a SQLite database without opening it: headers, the state that decides how it may be looked
//! at, who locks it without progress, and what SQLite's own words about damage mean.

pub mod damage;
pub mod deep_clock;
pub mod growth;
pub mod header;
pub mod lock_watch;
pub mod query;
pub mod rows;
pub mod shrink;
pub mod state;
pub mod wal;

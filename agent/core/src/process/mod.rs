//! The main process of a service while it lives and when it ends: how it ended, its open files against their limit,
//! the trend of its memory, children it does not reap, a stop that lasts.

pub mod exit;
pub mod growth;
pub mod proc_text;
pub mod stopped;
pub mod watch;

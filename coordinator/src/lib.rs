//! The fleet's one decider: journals what agents say, decides, pages, explains, hands over.
//!
//! Invariant: one loop ([`runtime`]) changes State; everything else asks it through [`runtime::Handle`].

pub mod bundle;
pub mod ca;
pub mod cli;
pub mod config;
pub mod failover;
mod heap;
pub mod http;
mod keepalive;
pub mod listen;
pub mod metrics;
pub mod outbox;
pub mod pager;
pub mod paging;
pub mod refused;
pub mod replay;
pub mod runtime;
pub mod second_opinion;
pub mod serve;
pub mod service;
pub mod store;

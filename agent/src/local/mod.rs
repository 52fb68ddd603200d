//! The agent's Unix socket: applications report what happened to them, people and programs ask how things stand
//! (`muster.v1.LocalAgentService`).
//!
//! Who calls is known by the kernel's word (`SO_PEERCRED`), never by a message. A report is an occurrence of a service
//! that the config names; it commands nothing.

pub mod client;
mod door;
mod server;

pub use server::{LinkStatus, LocalServer, Reporters};

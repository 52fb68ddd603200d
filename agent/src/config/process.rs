//! `[process]`: what is normal for the main process of a service.

use muster_common::config::Reader;

/// Thresholds of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Process {}

/// The whole table.
pub(super) fn walk(_reader: &Reader<'_>) -> Process {
    Process::default()
}

//! `[pressure]`: when processes stall for memory too much.

use muster_common::config::Reader;

/// Thresholds of stalls and of cgroup limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pressure {}

/// The whole table.
pub(super) fn walk(_reader: &Reader<'_>) -> Pressure {
    Pressure::default()
}

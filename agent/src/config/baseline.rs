//! `[baseline]` and `[service.NAME.baseline]`: settings that are declared, to be compared with those that are applied.

use muster_common::config::Reader;

/// What is declared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Baseline {}

impl Baseline {
    /// Nothing.
    pub const fn new() -> Self {
        Self {}
    }
}

/// The whole table.
pub(super) fn walk(_reader: &Reader<'_>) -> Baseline {
    Baseline::new()
}

//! `unit` of a service: the systemd unit that runs it.

use super::walk::{INTERVALS, table_or_string, unit_name};
use muster_agent_core::unit::Options;
use muster_common::config::Value;
use std::ops::RangeInclusive;
use std::time::Duration;

/// A day covers the longest recovery of a database; below a second every start would be told.
const ACTIVATING: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

/// A unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its name, with its suffix.
    pub name: String,
    /// How often its probe looks without a signal.
    pub interval: Option<Duration>,
    /// Starting or stopping for longer is a problem.
    pub max_activating: Option<Duration>,
    /// It may be inactive.
    pub may_be_inactive: bool,
}

impl Unit {
    /// With the defaults.
    pub const fn new(name: String) -> Self {
        Self { name, interval: None, max_activating: None, may_be_inactive: false }
    }

    /// What is expected of it.
    pub fn options(&self, tell_restarts: bool) -> Options {
        Options { activating_max: self.max_activating, may_be_inactive: self.may_be_inactive, tell_restarts }
    }
}

/// `"NAME.service"`, or a table with every option.
pub(super) fn walk(value: &Value<'_>) -> Option<Unit> {
    if value.if_string().is_some() {
        return Some(Unit::new(value.parsed(unit_name)?));
    }
    let table = table_or_string(value)?;
    let name = table.required("name").and_then(|inner| inner.parsed(unit_name));
    let interval = table.duration("interval", INTERVALS);
    let max_activating = table.duration("max_activating", ACTIVATING);
    let may_be_inactive = table.boolean("may_be_inactive").unwrap_or(false);
    Some(Unit { name: name?, interval, max_activating, may_be_inactive })
}

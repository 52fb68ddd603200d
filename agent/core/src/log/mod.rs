//! Logs: from bytes to lines, from lines to what they mean, from that to occurrences that do not flood.

mod entry;
mod lines;
mod matcher;
mod redact;
mod report;
mod rules;
mod window;

pub use entry::Entry;
pub use lines::{LINE_BYTES_MAX, Splitter};
pub use redact::{names_secret, redact};
pub use report::{may_come_from_a_log, observed_boottime_ms, occurrence, placeholders, user_space_kill};
pub use rules::{Hit, Rule, RuleSet, check_examples, check_pattern, group_names};
pub use window::{Sample, Told, WINDOW, Windows};

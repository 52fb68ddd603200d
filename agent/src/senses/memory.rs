//! Reads `/proc/meminfo`.

use super::HostRoot;
use super::small::read_piece_text;
use crate::probe::{Context, Probe};
use muster_agent_core::judgement::Judgement;
use muster_agent_core::memory::{Absent, Bands, MemoryJudge, parse};
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::ServiceName;

/// `/proc/meminfo` has some sixty short lines.
const MEMINFO_BYTES_MAX: u64 = 16 * 1024;

/// Watches the host's available memory.
#[derive(Debug)]
pub struct MemoryProbe {
    subject: SubjectKey,
    root: HostRoot,
    judge: MemoryJudge,
}

impl MemoryProbe {
    /// With the configured thresholds, or the defaults for the host's size.
    pub fn new(root: HostRoot, bands: Option<Bands>) -> Self {
        let subject = SubjectKey::new(ServiceName::host(), ProbeKind::Memory, "MemAvailable");
        Self { subject, root, judge: MemoryJudge::new(bands) }
    }
}

impl Probe for MemoryProbe {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn run(&mut self, context: &Context) -> Judgement {
        let text = read_piece_text(self.root.path("/proc/meminfo"), MEMINFO_BYTES_MAX);
        let reading = text.map_err(|error| Absent::NoFile(error.to_string())).and_then(|text| parse(&text));
        self.judge.judge(reading, context.now)
    }
}

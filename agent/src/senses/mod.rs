//! One file per kind of probe: reads the host, thin, and leaves the judging to `muster-agent-core`.

//! Fuzzes `probe_state` of the agent's `any_bytes/parsers.rs`.

#![no_main]

muster_fuzz::target!(agent_parsers::probe_state);

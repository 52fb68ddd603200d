//! Fuzzes `saved_log_file` of the agent's `any_bytes/parsers.rs`.

#![no_main]

muster_fuzz::target!(agent_parsers::saved_log_file);

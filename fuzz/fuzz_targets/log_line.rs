//! Fuzzes `log_line` of `any_bytes/parsers.rs`.

#![no_main]

muster_fuzz::target!(parsers::log_line);

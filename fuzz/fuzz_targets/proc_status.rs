//! Fuzzes `proc_status` of `any_bytes/parsers.rs`.

#![no_main]

muster_fuzz::target!(parsers::proc_status);

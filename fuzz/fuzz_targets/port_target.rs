//! Fuzzes `port_target` of `any_bytes/parsers.rs`.

#![no_main]

muster_fuzz::target!(parsers::port_target);

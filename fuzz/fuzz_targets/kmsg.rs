//! Fuzzes `kmsg` of `any_bytes/parsers.rs`.

#![no_main]

muster_fuzz::target!(parsers::kmsg);

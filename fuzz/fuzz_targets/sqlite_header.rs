//! Fuzzes `sqlite_header` of `any_bytes/parsers.rs`.

#![no_main]

muster_fuzz::target!(parsers::sqlite_header);

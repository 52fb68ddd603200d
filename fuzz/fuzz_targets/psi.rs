//! Fuzzes `psi` of `any_bytes/parsers.rs`.

#![no_main]

muster_fuzz::target!(parsers::psi);

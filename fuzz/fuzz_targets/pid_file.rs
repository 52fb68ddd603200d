//! Fuzzes `pid_files` of `any_bytes/parsers.rs`.

#![no_main]

muster_fuzz::target!(parsers::pid_files);

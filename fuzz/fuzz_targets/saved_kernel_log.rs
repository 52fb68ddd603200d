//! Fuzzes `saved_kernel_log` of `any_bytes/parsers.rs`.

#![no_main]

muster_fuzz::target!(parsers::saved_kernel_log);

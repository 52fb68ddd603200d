//! Fuzzes `backup_pattern` of `any_bytes/parsers.rs`.

#![no_main]

muster_fuzz::target!(parsers::backup_pattern);

//! Fuzzes `journal_file` of `any_bytes/parsers.rs`.

#![no_main]

muster_fuzz::target!(parsers::journal_file);

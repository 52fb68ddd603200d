//! Fuzzes `cgroup_memory` of `any_bytes/parsers.rs`.

#![no_main]

muster_fuzz::target!(parsers::cgroup_memory);

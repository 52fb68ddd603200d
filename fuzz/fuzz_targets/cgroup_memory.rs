#![no_main]

muster_fuzz::target!(parsers::cgroup_memory);

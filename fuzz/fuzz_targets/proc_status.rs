#![no_main]

muster_fuzz::target!(parsers::proc_status);

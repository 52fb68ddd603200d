#![no_main]

muster_fuzz::target!(parsers::log_line);

#![no_main]

muster_fuzz::target!(parsers::port_target);

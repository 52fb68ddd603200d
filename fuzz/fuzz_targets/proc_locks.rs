#![no_main]

muster_fuzz::target!(parsers::locks);

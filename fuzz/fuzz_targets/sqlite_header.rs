#![no_main]

muster_fuzz::target!(parsers::sqlite_header);

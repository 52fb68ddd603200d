#![no_main]

muster_fuzz::target!(parsers::pid_files);

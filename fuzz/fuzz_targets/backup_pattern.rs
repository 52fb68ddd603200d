#![no_main]

muster_fuzz::target!(parsers::backup_pattern);

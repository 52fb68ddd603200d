#![no_main]

muster_fuzz::target!(parsers::journal_file);

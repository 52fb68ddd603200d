#![no_main]

muster_fuzz::target!(parsers::saved_kernel_log);

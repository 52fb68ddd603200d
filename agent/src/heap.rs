//! Holds the C library's allocator to one small heap: left to itself it keeps an arena for each thread, and what they
//! freed. SQLite takes from it what it needs, and nothing in advance.

/// Free memory at the end of the heap beyond this goes back to the kernel.
const TRIM_ABOVE_BYTES: nix::libc::c_int = 64 << 10;
/// A block of this size or more has a mapping of its own, which goes back to the kernel when it is freed. A number that
/// is set is not raised by the allocator itself any more.
const MAP_FROM_BYTES: nix::libc::c_int = 64 << 10;
/// What is taken from the kernel beyond what is asked for.
const TOP_PAD_BYTES: nix::libc::c_int = 16 << 10;

/// Sets it up: call it first in the daemon, before there is another thread.
#[expect(unsafe_code, reason = "no safe wrapper of mallopt exists in std, nix or rustix")]
#[cfg(target_env = "gnu")]
pub fn keep_small() {
    let settings = [
        (nix::libc::M_ARENA_MAX, 1),
        (nix::libc::M_TRIM_THRESHOLD, TRIM_ABOVE_BYTES),
        (nix::libc::M_MMAP_THRESHOLD, MAP_FROM_BYTES),
        (nix::libc::M_TOP_PAD, TOP_PAD_BYTES),
    ];
    for (parameter, value) in settings {
        // SAFETY: two integers by value; the call changes numbers of the allocator and no memory that is in use.
        // One that it does not know it refuses, and all works as without it.
        let _set = unsafe { nix::libc::mallopt(parameter, value) };
    }
}

/// Other C libraries have other allocators.
#[cfg(not(target_env = "gnu"))]
pub fn keep_small() {}

/// Has SQLite take memory when it needs it: by itself it sets aside room for twenty pages and for a hundred small blocks
/// with every connection, and keeps statistics behind a lock. Call it before the first connection is opened.
#[expect(unsafe_code, reason = "no safe wrapper of sqlite3_config exists in rusqlite")]
pub fn keep_sqlite_small() {
    use rusqlite::ffi::{
        SQLITE_CONFIG_LOOKASIDE, SQLITE_CONFIG_MEMSTATUS, SQLITE_CONFIG_PAGECACHE, SQLITE_OK, sqlite3_config,
    };
    const NONE: nix::libc::c_int = 0;
    let no_memory = std::ptr::null_mut::<nix::libc::c_void>();
    // SAFETY: each call has the arguments that its option documents: an integer; a pointer, which may be null, and two
    // integers; two integers. SQLite refuses all of them once it is in use, and works as without them.
    let outcomes = unsafe {
        [
            sqlite3_config(SQLITE_CONFIG_MEMSTATUS, NONE),
            sqlite3_config(SQLITE_CONFIG_PAGECACHE, no_memory, NONE, NONE),
            sqlite3_config(SQLITE_CONFIG_LOOKASIDE, NONE, NONE),
        ]
    };
    if outcomes.iter().any(|outcome| *outcome != SQLITE_OK) {
        tracing::debug!(?outcomes, "SQLite keeps its own ways with memory");
    }
}

/// Gives what is free back to the kernel: for a moment in which nothing else is to be done.
#[expect(unsafe_code, reason = "no safe wrapper of malloc_trim exists in std, nix or rustix")]
#[cfg(target_env = "gnu")]
pub fn give_back() {
    // SAFETY: takes the allocator's own locks, touches no block that is in use.
    let _released = unsafe { nix::libc::malloc_trim(0) };
}

/// Other C libraries have other allocators.
#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}

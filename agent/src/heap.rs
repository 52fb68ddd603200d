//! Holds the C library's allocator to one small heap: left to itself it keeps an arena for each thread, and what they
//! freed.

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

//! Holds the C library's allocator to one small heap: left to itself it keeps an arena for each thread, and what they
//! freed. SQLite takes from it what it needs, and nothing in advance. What only a start needs of the program itself is not
//! mapped for ever either.

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

/// Has the kernel unmap the program's own text and constants, of which it maps again what is used: a start needs a quarter
/// of them, and next to nothing of that later. They stay in the page cache, so that nothing is read from the disk for it.
/// Does nothing while a debugger looks on, whose breakpoints lie in those pages.
#[expect(unsafe_code, reason = "no safe wrapper of dl_iterate_phdr or of madvise on the program's own segments exists")]
#[cfg(target_os = "linux")]
pub fn forget_the_start() {
    if is_traced() {
        return;
    }
    // SAFETY: the callback has the form that is asked for, keeps nothing it is given, and is called before this returns.
    let _found = unsafe { nix::libc::dl_iterate_phdr(Some(unmap), std::ptr::null_mut()) };
}

/// Of the first object, which is the program itself.
#[expect(unsafe_code, reason = "reads what the loader gives, and tells the kernel what is not needed")]
#[cfg(target_os = "linux")]
unsafe extern "C" fn unmap(
    object: *mut nix::libc::dl_phdr_info,
    _size: nix::libc::size_t,
    _data: *mut nix::libc::c_void,
) -> nix::libc::c_int {
    use nix::libc::{MADV_DONTNEED, PF_W, PT_LOAD, madvise};
    const PAGE_BYTES: usize = 4096;
    const DONE: nix::libc::c_int = 1;
    // SAFETY: the loader's own record of the object, with as many headers as it says, all of them valid during the call.
    let headers = unsafe {
        let Some(object) = object.as_ref().filter(|object| !object.dlpi_phdr.is_null()) else { return DONE };
        let headers = std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum));
        headers.iter().map(|header| (header, object.dlpi_addr)).collect::<Vec<_>>()
    };
    for (header, base) in headers {
        // What may be written holds what was written; the rest is as it is in the file.
        if header.p_type != PT_LOAD || header.p_flags & PF_W != 0 {
            continue;
        }
        let (Ok(begin), Ok(end)) =
            (usize::try_from(base + header.p_vaddr), usize::try_from(base + header.p_vaddr + header.p_memsz))
        else {
            continue;
        };
        // Whole pages of this segment only.
        let (begin, end) = (begin.next_multiple_of(PAGE_BYTES), end - end % PAGE_BYTES);
        if begin < end {
            // SAFETY: pages of a private mapping of a file that were never written: their next use brings them back.
            let _unmapped = unsafe { madvise(begin as *mut nix::libc::c_void, end - begin, MADV_DONTNEED) };
        }
    }
    DONE
}

/// Whether somebody traces this process; where that cannot be told, it counts as so.
#[cfg(target_os = "linux")]
fn is_traced() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_none_or(|pid| pid.trim() != "0")
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// What is run and what is read of the program is there again whenever it is used.
    #[test]
    fn a_program_that_forgot_its_start_goes_on() {
        let text = || format!("{:?}", include_str!("heap.rs").lines().next());
        let before = text();
        for _ in 0..3 {
            forget_the_start();
            assert_eq!(text(), before);
        }
        assert!(!is_traced(), "nobody looks on in a test");
    }
}

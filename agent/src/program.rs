//! Lets go of the pages of the program's own file that nothing has used for a while: what only a start needs (options,
//! the config, the first handshake) is more than half of it, and the kernel keeps a page mapped until memory is short.
//!
//! Nothing is lost and nothing is written: the pages stay in the page cache, and one that is used again is mapped again
//! by a fault of a microsecond. Only segments that nobody ever writes to are let go.

use nix::libc;
use std::ffi::{c_int, c_void};

/// A part of the address space.
#[derive(Debug, Clone, Copy)]
struct Segment {
    start: usize,
    bytes: usize,
}

/// Lets go: for a moment in which nothing else is to be done.
#[expect(unsafe_code, reason = "no safe wrapper of madvise exists in std or nix")]
pub fn give_back() {
    for Segment { start, bytes } in read_only_segments() {
        // SAFETY: a segment of the program's file that is mapped private and never writable has no content of its own,
        // so a page that is dropped comes back from the file with the same bytes, also under the code that runs here.
        let _let_go = unsafe { libc::madvise(start as *mut c_void, bytes, libc::MADV_DONTNEED) };
    }
}

/// Those of the program itself; the C library is shared with the whole host and costs next to nothing.
#[expect(unsafe_code, reason = "no safe wrapper of dl_iterate_phdr exists in std, nix or rustix")]
fn read_only_segments() -> Vec<Segment> {
    let mut segments = Vec::new();
    // SAFETY: the callback gets the vector that lives until the call returns, and is called from this thread only.
    let _end = unsafe { libc::dl_iterate_phdr(Some(collect), (&raw mut segments).cast()) };
    segments
}

/// Takes the first object, which is the program, and asks for no other.
#[expect(unsafe_code, reason = "the callback of dl_iterate_phdr")]
unsafe extern "C" fn collect(info: *mut libc::dl_phdr_info, _size: usize, segments: *mut c_void) -> c_int {
    // SAFETY: the loader gives a valid description for the time of the call; `segments` is what was handed over above.
    let (info, segments) = unsafe { (&*info, &mut *segments.cast::<Vec<Segment>>()) };
    let page = usize::try_from(procfs::page_size()).unwrap_or(1 << 16).max(1);
    // SAFETY: so many headers are there, as the loader itself read them.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    // What may be written to, or was while the program was loaded, is a segment of its own.
    let read_only = |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
    for header in headers.iter().filter(read_only) {
        let numbers = [info.dlpi_addr, header.p_vaddr, header.p_memsz].map(usize::try_from);
        let [Ok(base), Ok(offset), Ok(bytes)] = numbers else { continue };
        let first = base.wrapping_add(offset);
        // Whole pages only; the kernel refuses others.
        let (start, end) = (first.div_ceil(page).saturating_mul(page), first.saturating_add(bytes) / page * page);
        if end > start {
            segments.push(Segment { start, bytes: end - start });
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_let_go_is_there_again() {
        let segments = read_only_segments();
        assert!(!segments.is_empty());
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        for Segment { start, bytes } in &segments {
            let writable = maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|flags| flags.contains('w')));
            for line in writable {
                let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
                let (from, to) = (usize::from_str_radix(from, 16).unwrap(), usize::from_str_radix(to, 16).unwrap());
                assert!(to <= *start || from >= start + bytes, "{line}");
            }
        }
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(2).unwrap().parse::<u64>().unwrap()
        };
        let before = resident();
        give_back();
        assert!(resident() < before, "fewer pages of files are mapped");
        assert_eq!(read_only_segments().len(), segments.len(), "the code is there");
    }
}

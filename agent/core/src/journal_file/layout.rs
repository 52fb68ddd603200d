//! Numbers of systemd's journal file format: offsets, flags, kinds of objects.
//!
//! Everything in a file is little-endian and aligned to eight bytes, and nothing in it is believed before it is checked:
//! the file is written while it is read.

/// The first bytes of every journal file.
pub(super) const SIGNATURE: &[u8; 8] = b"LPKSHHRH";
/// Bytes of the header that every version has.
pub(super) const HEADER_BYTES_MIN: usize = 208;
/// Where in the header a field stands.
pub(super) mod header {
    pub(crate) const INCOMPATIBLE_FLAGS: usize = 12;
    pub(crate) const STATE: usize = 16;
    pub(crate) const FILE_ID: usize = 24;
    pub(crate) const SEQNUM_ID: usize = 72;
    pub(crate) const HEADER_SIZE: usize = 88;
    pub(crate) const ARENA_SIZE: usize = 96;
    pub(crate) const DATA_HASH_TABLE_OFFSET: usize = 104;
    pub(crate) const DATA_HASH_TABLE_SIZE: usize = 112;
    pub(crate) const N_OBJECTS: usize = 144;
    pub(crate) const N_ENTRIES: usize = 152;
    pub(crate) const TAIL_ENTRY_SEQNUM: usize = 160;
    pub(crate) const HEAD_ENTRY_REALTIME: usize = 184;
}

/// Features without which a file cannot be understood.
pub(super) mod feature {
    pub(crate) const KEYED_HASH: u32 = 1 << 2;
    pub(crate) const COMPACT: u32 = 1 << 4;
    /// Compression by xz, lz4 and zstd, keyed hash, compact.
    pub(crate) const KNOWN: u32 = 0b1_1111;
}

/// Flags of a data object.
pub(super) mod compression {
    pub(crate) const LZ4: u8 = 1 << 1;
    pub(crate) const ZSTD: u8 = 1 << 2;
}

/// Kinds of objects that are read here.
pub(super) mod kind {
    pub(crate) const DATA: u8 = 1;
    pub(crate) const ENTRY: u8 = 3;
    pub(crate) const ENTRY_ARRAY: u8 = 6;
}

/// Type, flags and size of an object.
pub(super) const OBJECT_HEADER_BYTES: usize = 16;
/// Where in a data object a field stands, and where its payload begins.
pub(super) mod data {
    pub(crate) const HASH: usize = 16;
    pub(crate) const NEXT_HASH_OFFSET: usize = 24;
    pub(crate) const ENTRY_OFFSET: usize = 40;
    pub(crate) const ENTRY_ARRAY_OFFSET: usize = 48;
    pub(crate) const N_ENTRIES: usize = 56;
    pub(crate) const PAYLOAD: usize = 64;
    pub(crate) const PAYLOAD_COMPACT: usize = 72;
}

/// Where in an entry a field stands.
pub(super) mod entry {
    pub(crate) const SEQNUM: usize = 16;
    pub(crate) const REALTIME: usize = 24;
    pub(crate) const ITEMS: usize = 64;
}

/// Where in an array of entries a field stands.
pub(super) mod array {
    pub(crate) const NEXT: usize = 16;
    pub(crate) const ITEMS: usize = 24;
}

/// The number of eight bytes at `at`.
pub(super) fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    let slice = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(slice.try_into().ok()?))
}

/// The number of four bytes at `at`.
pub(super) fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    let slice = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(slice.try_into().ok()?))
}

/// The id of sixteen bytes at `at`.
pub(super) fn id128(bytes: &[u8], at: usize) -> Option<[u8; 16]> {
    bytes.get(at..at.checked_add(16)?)?.try_into().ok()
}

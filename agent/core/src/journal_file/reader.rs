//! Reads entries out of one journal file, also while it is written.
//!
//! Must never believe an offset, a size or a count before it is checked, never go round a loop that a broken file makes,
//! and never hold more of a file than a page.

use super::decompress;
use super::hash::{jenkins, siphash24};
use super::layout::{
    HEADER_BYTES_MIN, OBJECT_HEADER_BYTES, SIGNATURE, array, compression, data, entry, feature, header, id128, kind,
    le32, le64,
};
use std::collections::BTreeSet;

/// Bytes of one field that are read.
pub const FIELD_BYTES_MAX: usize = 16 * 1024;
/// Bytes read at once: an entry and its own data stand together.
const WINDOW_BYTES: usize = 4096;
/// Links of a hash chain or of a chain of arrays that are followed. Arrays double, so a chain of them is short.
const LINKS_MAX: usize = 4096;
/// Fields of one entry.
const ITEMS_MAX: u64 = 1024;
/// Data objects remembered as not wanted.
const UNWANTED_MAX: usize = 2048;
/// Bytes of a field's name; journald refuses longer ones.
const NAME_BYTES_MAX: usize = 64;
/// The state of a file that is no longer written.
const STATE_ARCHIVED: u8 = 2;

/// Where the bytes come from.
pub trait Source {
    /// Reads at `offset`; how many bytes were there, 0 beyond the end and on any error.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> usize;
}

impl Source for &[u8] {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> usize {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        buffer.iter_mut().zip(rest).map(|(to, from)| *to = *from).count()
    }
}

/// Why a file is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// Another file, or one that was just made.
    #[error("it is no journal file")]
    NotAJournal,
    /// A feature of a systemd that is newer than this program.
    #[error("it uses features that this version does not know ({0:#x})")]
    TooNew(u32),
}

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The file, wherever it is moved to.
    pub file_id: [u8; 16],
    /// Files with the same one count their entries together.
    pub seqnum_id: [u8; 16],
    /// No longer written.
    pub is_archived: bool,
    /// Objects in it: grows with everything that is written.
    pub objects: u64,
    /// Entries in it.
    pub entries: u64,
    /// The number of its newest entry.
    pub tail_seqnum: u64,
    /// When its first entry was written.
    pub head_realtime_usec: u64,
    flags: u32,
    end: u64,
    table_offset: u64,
    table_bytes: u64,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let header_size = le64(bytes, header::HEADER_SIZE)?;
        Some(Self {
            file_id: id128(bytes, header::FILE_ID)?,
            seqnum_id: id128(bytes, header::SEQNUM_ID)?,
            is_archived: *bytes.get(header::STATE)? == STATE_ARCHIVED,
            objects: le64(bytes, header::N_OBJECTS)?,
            entries: le64(bytes, header::N_ENTRIES)?,
            tail_seqnum: le64(bytes, header::TAIL_ENTRY_SEQNUM)?,
            head_realtime_usec: le64(bytes, header::HEAD_ENTRY_REALTIME)?,
            flags: le32(bytes, header::INCOMPATIBLE_FLAGS)?,
            end: header_size.checked_add(le64(bytes, header::ARENA_SIZE)?)?,
            table_offset: le64(bytes, header::DATA_HASH_TABLE_OFFSET)?,
            table_bytes: le64(bytes, header::DATA_HASH_TABLE_SIZE)?,
        })
    }

    const fn is_compact(&self) -> bool {
        self.flags & feature::COMPACT != 0
    }

    fn hash(&self, payload: &[u8]) -> u64 {
        if self.flags & feature::KEYED_HASH == 0 { jenkins(payload) } else { siphash24(self.file_id, payload) }
    }
}

/// Entries that have one value of one field in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    /// Where its data object is.
    offset: u64,
    /// How many entries there are.
    pub entries: u64,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JournalEntry {
    /// Its number.
    pub seqnum: u64,
    /// When it was written, microseconds since 1970.
    pub realtime_usec: u64,
    /// The fields that were asked for, without their names, by their place in the question.
    pub fields: Vec<(usize, Vec<u8>)>,
    /// Fields that could not be unpacked.
    pub unreadable_fields: u64,
}

impl JournalEntry {
    /// The first value of the field that was asked for at `index`.
    pub fn field(&self, index: usize) -> Option<&[u8]> {
        self.fields.iter().find(|(of, _)| *of == index).map(|(_, value)| value.as_slice())
    }
}

/// One journal file.
#[derive(Debug)]
pub struct JournalFile<S> {
    source: S,
    header: Header,
    window: Vec<u8>,
    window_offset: u64,
    unwanted: BTreeSet<u64>,
}

struct Object {
    kind: u8,
    flags: u8,
    size: u64,
}

impl<S: Source> JournalFile<S> {
    /// Reads the header.
    pub fn open(mut source: S) -> Result<Self, JournalError> {
        let header = read_header(&mut source)?;
        Ok(Self { source, header, window: Vec::new(), window_offset: 0, unwanted: BTreeSet::new() })
    }

    /// The header as it was last read.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The source.
    pub const fn source(&self) -> &S {
        &self.source
    }

    /// Reads the header again; true when something was written since.
    pub fn refresh(&mut self) -> Result<bool, JournalError> {
        let header = read_header(&mut self.source)?;
        let changed = header != self.header;
        // A header may be read a moment before the object that it counts.
        self.window.clear();
        self.header = header;
        Ok(changed)
    }

    /// Finds the entries whose field has this value, given as `NAME=value`.
    pub fn find(&mut self, payload: &[u8]) -> Option<Chain> {
        let buckets = self.header.table_bytes / 16;
        let hash = self.header.hash(payload);
        let bucket = hash.checked_rem(buckets)?;
        let mut offset = le64(&self.bytes(self.header.table_offset.checked_add(bucket * 16)?, 16)?, 0)?;
        for _ in 0..LINKS_MAX {
            if offset == 0 {
                return None;
            }
            let object = self.object(offset, kind::DATA)?;
            let head = self.bytes(offset, data::PAYLOAD)?;
            if le64(&head, data::HASH)? == hash && self.payload_is(offset, &object, payload) {
                return Some(Chain { offset, entries: le64(&head, data::N_ENTRIES)? });
            }
            offset = le64(&head, data::NEXT_HASH_OFFSET)?;
        }
        None
    }

    /// How many entries a chain has now.
    pub fn again(&mut self, chain: Chain) -> Option<Chain> {
        let head = self.bytes(chain.offset, data::PAYLOAD)?;
        Some(Chain { entries: le64(&head, data::N_ENTRIES)?, ..chain })
    }

    /// Where the entries `from..` of a chain are, at most `max` of them, oldest first.
    pub fn offsets(&mut self, chain: Chain, from: u64, max: usize) -> Vec<u64> {
        let mut found = Vec::new();
        // What is not whole yet is there in the next run.
        let _whole = self.walk(chain, from, max, &mut found);
        found
    }

    fn walk(&mut self, chain: Chain, from: u64, max: usize, found: &mut Vec<u64>) -> Option<()> {
        let until = chain.entries.min(from.saturating_add(u64::try_from(max).ok()?));
        let head = self.bytes(chain.offset, data::PAYLOAD)?;
        if from == 0 && until > 0 {
            found.push(le64(&head, data::ENTRY_OFFSET)?);
        }
        let item_bytes: u64 = if self.header.is_compact() { 4 } else { 8 };
        let mut array = le64(&head, data::ENTRY_ARRAY_OFFSET)?;
        // The first entry is in the data object itself.
        let mut first_index = 1u64;
        for _ in 0..LINKS_MAX {
            if array == 0 || first_index >= until {
                return Some(());
            }
            let object = self.object(array, kind::ENTRY_ARRAY)?;
            let items = object.size.checked_sub(array::ITEMS as u64)? / item_bytes;
            let next = le64(&self.bytes(array, array::ITEMS)?, array::NEXT)?;
            let end = first_index.saturating_add(items).min(until);
            for index in from.max(first_index)..end {
                let at = array.checked_add(array::ITEMS as u64)?.checked_add((index - first_index) * item_bytes)?;
                let offset = self.number(at, item_bytes)?;
                if offset == 0 {
                    return Some(());
                }
                found.push(offset);
            }
            first_index = first_index.saturating_add(items);
            // Arrays are appended: a link back is a broken file.
            if next != 0 && next <= array {
                return None;
            }
            array = next;
        }
        None
    }

    /// One entry with the fields of these names; `None` when it is broken or not whole yet.
    pub fn entry(&mut self, offset: u64, names: &[&str]) -> Option<JournalEntry> {
        let object = self.object(offset, kind::ENTRY)?;
        let head = self.bytes(offset, entry::ITEMS)?;
        let mut read = JournalEntry {
            seqnum: le64(&head, entry::SEQNUM)?,
            realtime_usec: le64(&head, entry::REALTIME)?,
            ..JournalEntry::default()
        };
        // A number of an offset alone, or with a hash behind it.
        let (item_bytes, number_bytes) = if self.header.is_compact() { (4, 4) } else { (16, 8) };
        let items = (object.size.checked_sub(entry::ITEMS as u64)? / item_bytes).min(ITEMS_MAX);
        for item in 0..items {
            let at = offset.checked_add(entry::ITEMS as u64)?.checked_add(item * item_bytes)?;
            let data = self.number(at, number_bytes)?;
            if data == 0 || self.unwanted.contains(&data) {
                continue;
            }
            match self.field(data, names) {
                Field::Wanted(index, value) => read.fields.push((index, value)),
                Field::Unwanted => {
                    if self.unwanted.len() >= UNWANTED_MAX {
                        self.unwanted.clear();
                    }
                    self.unwanted.insert(data);
                }
                Field::Unreadable => read.unreadable_fields += 1,
                Field::Broken => {}
            }
        }
        Some(read)
    }

    fn field(&mut self, offset: u64, names: &[&str]) -> Field {
        let Some(object) = self.object(offset, kind::DATA) else { return Field::Broken };
        let payload_at = if self.header.is_compact() { data::PAYLOAD_COMPACT } else { data::PAYLOAD } as u64;
        let Some(length) = object.size.checked_sub(payload_at) else { return Field::Broken };
        let Some(start) = offset.checked_add(payload_at) else { return Field::Broken };
        let bound = |bytes_max: usize| usize::try_from(length).unwrap_or(usize::MAX).min(bytes_max);
        let wanted = |head: &[u8]| {
            names
                .iter()
                .position(|name| head.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'=')))
        };
        let value = |payload: &[u8], index: usize| {
            let name_bytes = names.get(index).map_or(0, |name| name.len() + 1);
            payload.get(name_bytes..).unwrap_or_default().to_vec()
        };
        if object.flags == 0 {
            let Some(head) = self.bytes(start, bound(NAME_BYTES_MAX + 1)) else { return Field::Broken };
            let Some(index) = wanted(&head) else { return Field::Unwanted };
            let bytes_max = FIELD_BYTES_MAX + NAME_BYTES_MAX;
            return self
                .bytes(start, bound(bytes_max))
                .map_or(Field::Broken, |payload| Field::Wanted(index, value(&payload, index)));
        }
        // Packed: the name is inside. Packed bytes are never many more than unpacked ones.
        let Some(packed) = self.bytes(start, bound(4 * FIELD_BYTES_MAX)) else { return Field::Broken };
        let unpack = |bytes_max| match object.flags {
            compression::ZSTD => decompress::zstd(&packed, bytes_max),
            compression::LZ4 => decompress::lz4(&packed, bytes_max),
            // xz, of old and hand-made configurations alone.
            _ => None,
        };
        match unpack(NAME_BYTES_MAX + 1) {
            None => Field::Unreadable,
            Some(head) => match wanted(&head) {
                None => Field::Unwanted,
                Some(index) => match unpack(FIELD_BYTES_MAX + NAME_BYTES_MAX) {
                    Some(payload) => Field::Wanted(index, value(&payload, index)),
                    None => Field::Unreadable,
                },
            },
        }
    }

    fn payload_is(&mut self, offset: u64, object: &Object, payload: &[u8]) -> bool {
        let payload_at = if self.header.is_compact() { data::PAYLOAD_COMPACT } else { data::PAYLOAD } as u64;
        let length = u64::try_from(payload.len()).unwrap_or(u64::MAX);
        if object.flags != 0 || object.size.checked_sub(payload_at) != Some(length) {
            return false;
        }
        let start = offset.checked_add(payload_at);
        start.and_then(|start| self.bytes(start, payload.len())).is_some_and(|bytes| bytes == payload)
    }

    /// The header of the object at `offset`, if one of this kind can stand there.
    fn object(&mut self, offset: u64, expected: u8) -> Option<Object> {
        if !offset.is_multiple_of(8) || offset < HEADER_BYTES_MIN as u64 || offset >= self.header.end {
            return None;
        }
        let bytes = self.bytes(offset, OBJECT_HEADER_BYTES)?;
        let object = Object { kind: *bytes.first()?, flags: *bytes.get(1)?, size: le64(&bytes, 8)? };
        let ends_inside = offset.checked_add(object.size).is_some_and(|end| end <= self.header.end);
        (object.kind == expected && object.size >= OBJECT_HEADER_BYTES as u64 && ends_inside).then_some(object)
    }

    fn number(&mut self, offset: u64, bytes: u64) -> Option<u64> {
        match bytes {
            4 => le32(&self.bytes(offset, 4)?, 0).map(u64::from),
            _ => le64(&self.bytes(offset, 8)?, 0),
        }
    }

    /// Exactly `length` bytes at `offset`.
    fn bytes(&mut self, offset: u64, length: usize) -> Option<Vec<u8>> {
        let inside = |window: &[u8], window_offset: u64| {
            let start = usize::try_from(offset.checked_sub(window_offset)?).ok()?;
            window.get(start..start.checked_add(length)?).map(<[u8]>::to_vec)
        };
        if let Some(bytes) = inside(&self.window, self.window_offset) {
            return Some(bytes);
        }
        if length > WINDOW_BYTES / 2 {
            let mut bytes = vec![0; length];
            return (self.source.read_at(offset, &mut bytes) == length).then_some(bytes);
        }
        // A little of what stands before it as well: data come before the entry that has them.
        self.window_offset = offset.saturating_sub(WINDOW_BYTES as u64 / 4);
        self.window.resize(WINDOW_BYTES, 0);
        let read = self.source.read_at(self.window_offset, &mut self.window);
        self.window.truncate(read);
        inside(&self.window, self.window_offset)
    }
}

enum Field {
    Wanted(usize, Vec<u8>),
    Unwanted,
    Unreadable,
    Broken,
}

fn read_header(source: &mut impl Source) -> Result<Header, JournalError> {
    let mut bytes = [0u8; HEADER_BYTES_MIN];
    if source.read_at(0, &mut bytes) != bytes.len() || !bytes.starts_with(SIGNATURE) {
        return Err(JournalError::NotAJournal);
    }
    let header = Header::parse(&bytes).ok_or(JournalError::NotAJournal)?;
    match header.flags & !feature::KNOWN {
        0 => Ok(header),
        unknown => Err(JournalError::TooNew(unknown)),
    }
}

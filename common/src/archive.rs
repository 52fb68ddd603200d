//! A tar archive (ustar) of plain files, so that ordinary tools can list and unpack a bundle too: whole in memory with
//! [`pack`] and [`unpack`], or block by block with [`header`] and [`read_header`] where it is too large for that.
//!
//! The reader takes what the writer writes and nothing else: plain files with plain names under one folder. It must
//! never panic on any bytes, and it never names a path that could lead out of a folder.

/// The folder that everything is in, for people who unpack it.
pub const FOLDER: &str = "muster-bundle/";
/// Files of one archive.
pub const FILES_MAX: usize = 4096;
/// Bytes of a name with its folder: what a header has room for.
pub const NAME_BYTES_MAX: usize = 100;

/// What an archive is made of: headers and contents begin at multiples of it, and two empty ones are its end.
pub const BLOCK_BYTES: usize = 512;
const MODE: u64 = 0o600;
const PLAIN_FILE: u8 = b'0';

/// A field of a header: where it begins and its bytes.
type Field = (usize, usize);
const NAME: Field = (0, NAME_BYTES_MAX);
const FIELD_MODE: Field = (100, 8);
const UID: Field = (108, 8);
const GID: Field = (116, 8);
const SIZE: Field = (124, 12);
const MTIME: Field = (136, 12);
const CHECKSUM: Field = (148, 8);
const KIND: Field = (156, 1);
const MAGIC: Field = (257, 8);
const MAGIC_BYTES: &[u8] = b"ustar\x0000";

/// Why an archive is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// Other bytes, or damage.
    #[error("it is no bundle, or it is damaged at byte {0}")]
    Damaged(usize),
    /// It ends too early.
    #[error("it is cut short")]
    CutShort,
    /// A link, a folder, a device: this program writes none.
    #[error("it has something else than plain files in it, so Muster did not write it")]
    NotPlain,
    /// A name that this program does not write.
    #[error("it has a file of a strange name in it, so Muster did not write it")]
    Name,
    /// More than a bundle has.
    #[error("it has more than {FILES_MAX} files")]
    TooMany,
}

/// Whether a file may have this name: lower and upper case, digits, `.`, `_`, `-`, `@` and `/`, no part that is hidden
/// or leads upwards.
pub fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    name.len() + FOLDER.len() <= NAME_BYTES_MAX
        && name.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && part.chars().all(plain))
}

/// Writes files in their order. Those whose name is not plain are left out: check with [`is_name`].
pub fn pack<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>, unix_s: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, content) in files.into_iter().filter(|(name, _)| is_name(name)).take(FILES_MAX) {
        let size = u64::try_from(content.len()).unwrap_or(u64::MAX);
        out.extend_from_slice(&header(name, size, unix_s));
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(BLOCK_BYTES), 0);
    }
    out.resize(out.len() + 2 * BLOCK_BYTES, 0);
    out
}

/// The block before the content of a file. A name that is not plain ([`is_name`]) is refused by every reader.
pub fn header(name: &str, size: u64, unix_s: u64) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    let mut put = |(at, length): Field, bytes: &[u8]| {
        let room = block.iter_mut().skip(at).take(length);
        room.zip(bytes).for_each(|(to, from)| *to = *from);
    };
    put(NAME, format!("{FOLDER}{name}").as_bytes());
    for (field, number) in [(FIELD_MODE, MODE), (UID, 0), (GID, 0), (SIZE, size), (MTIME, unix_s)] {
        put(field, format!("{number:0width$o}", width = field.1 - 1).as_bytes());
    }
    put(KIND, &[PLAIN_FILE]);
    put(MAGIC, MAGIC_BYTES);
    let sum = checksum(&block);
    let mut put = |bytes: &[u8]| block.iter_mut().skip(CHECKSUM.0).zip(bytes).for_each(|(to, from)| *to = *from);
    put(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Of all bytes, those of the sum itself taken as spaces.
fn checksum(block: &[u8]) -> u64 {
    let own = CHECKSUM.0..CHECKSUM.0 + CHECKSUM.1;
    block.iter().enumerate().map(|(at, byte)| u64::from(if own.contains(&at) { b' ' } else { *byte })).sum()
}

/// Reads all files, in their order.
pub fn unpack(bytes: &[u8]) -> Result<Vec<(&str, &[u8])>, ArchiveError> {
    let mut files: Vec<(&str, &[u8])> = Vec::new();
    let mut at = 0;
    loop {
        let block = bytes.get(at..).and_then(|rest| rest.get(..BLOCK_BYTES)).ok_or(ArchiveError::CutShort)?;
        let Some((name, size)) = read_header(block, at)? else { return Ok(files) };
        if files.iter().any(|(known, _)| *known == name) {
            return Err(ArchiveError::Name);
        }
        let size = usize::try_from(size).map_err(|_| ArchiveError::CutShort)?;
        let start = at + BLOCK_BYTES;
        let content = bytes.get(start..).and_then(|rest| rest.get(..size)).ok_or(ArchiveError::CutShort)?;
        if files.len() >= FILES_MAX {
            return Err(ArchiveError::TooMany);
        }
        files.push((name, content));
        at = start + size.next_multiple_of(BLOCK_BYTES);
    }
}

/// Name and size of the file that a header at byte `at` is about; `None` at the end of the archive.
pub fn read_header(block: &[u8], at: usize) -> Result<Option<(&str, u64)>, ArchiveError> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let damaged = ArchiveError::Damaged(at);
    let field = |(at, length): Field| block.get(at..at + length).unwrap_or_default();
    if field(MAGIC) != MAGIC_BYTES || octal(field(CHECKSUM)) != Some(checksum(block)) {
        return Err(damaged);
    }
    if field(KIND) != [PLAIN_FILE] {
        return Err(ArchiveError::NotPlain);
    }
    let name = std::str::from_utf8(until_nul(field(NAME))).ok().and_then(|name| name.strip_prefix(FOLDER));
    let name = name.filter(|name| is_name(name)).ok_or(ArchiveError::Name)?;
    Ok(Some((name, octal(field(SIZE)).ok_or(damaged)?)))
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn octal(field: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(until_nul(field)).ok()?.trim();
    let plain = !digits.is_empty() && digits.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    plain.then(|| u64::from_str_radix(digits, 8).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        pack([("manifest.json", &b"{}"[..]), ("services/01-spl/status", &[7; 1000])], 1_795_312_305)
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let bytes = sample();
        assert_eq!(bytes.len() % BLOCK_BYTES, 0);
        let files = unpack(&bytes).unwrap();
        assert_eq!(files[0], ("manifest.json", &b"{}"[..]));
        assert_eq!((files[1].0, files[1].1.len()), ("services/01-spl/status", 1000));
        assert_eq!(unpack(&pack([("../up", &b""[..])], 0)).unwrap(), []);
    }

    #[test]
    fn what_this_program_does_not_write_is_refused() {
        let change = |edit: fn(&mut Vec<u8>)| {
            let mut bytes = sample();
            edit(&mut bytes);
            // A right sum: only the change itself is at fault.
            let sum = format!("{:06o}\0 ", checksum(&bytes[..BLOCK_BYTES]));
            bytes[148..156].copy_from_slice(sum.as_bytes());
            unpack(&bytes).map(|files| files.len())
        };
        assert_eq!(change(|_| {}), Ok(2));
        assert_eq!(change(|bytes| bytes[156] = b'2'), Err(ArchiveError::NotPlain));
        assert_eq!(change(|bytes| bytes[..4].copy_from_slice(b"/etc")), Err(ArchiveError::Name));
        assert_eq!(change(|bytes| bytes[14..17].copy_from_slice(b"../")), Err(ArchiveError::Name));
        assert_eq!(change(|bytes| bytes[124] = b'x'), Err(ArchiveError::Damaged(0)));
        assert_eq!(change(|bytes| bytes[124] = b'7'), Err(ArchiveError::CutShort));
        assert_eq!(change(|bytes| bytes.truncate(600)), Err(ArchiveError::CutShort));
        let mut twice = sample();
        let first: Vec<u8> = twice[..1024].to_vec();
        twice.splice(0..0, first);
        assert_eq!(unpack(&twice), Err(ArchiveError::Name));
        assert_eq!(unpack(b"PK"), Err(ArchiveError::CutShort));
        assert_eq!(unpack(&[b'x'; 1024]), Err(ArchiveError::Damaged(0)));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            drop(unpack(&bytes));
        }

        #[test]
        fn no_damage_panics(at in 0usize..2560, byte in any::<u8>(), end in 0usize..4096) {
            let mut bytes = sample();
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            bytes.truncate(end);
            if let Ok(files) = unpack(&bytes) {
                prop_assert!(files.iter().all(|(name, _)| is_name(name)));
            }
        }
    }
}

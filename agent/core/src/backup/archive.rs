//! Compressed and packed copies: what they are by their first bytes, and whether their end is there. Nothing is
//! unpacked; what that leaves unseen is said. An archive of nothing, as a failed dump piped into `gzip` leaves it, is
//! whole by its form and told by its length and end.

/// Bytes at the start of a file that tell its kind.
pub const HEAD_BYTES: usize = 512;
/// Blocks or members walked in one file: 16 GiB of zstd blocks, a million files of a tar.
const STEPS_MAX: u32 = 1 << 20;
/// A longer gzip holds something: the header with a long name, and 64 KiB of zeros packed, are shorter.
const GZIP_OF_NOTHING_BYTES_MAX: u64 = 1024;
/// A tar without a member is zero bytes in blocks of [`TAR_BLOCK_BYTES`], 10 KiB of them or what `tar -b` says.
const ZEROS_MAX: u32 = 64 << 10;
const TAR_BLOCK_BYTES: u32 = 512;
/// The zip directory ends within this many bytes of the end.
const ZIP_TAIL_BYTES: u64 = 65_557;

/// What a file is by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archive {
    /// `.gz`
    Gzip,
    /// `.zst`
    Zstd,
    /// `.xz`
    Xz,
    /// `.bz2`
    Bzip2,
    /// `.zip`
    Zip,
    /// `.tar`
    Tar,
    /// PostgreSQL's custom format.
    PgDump,
}

impl Archive {
    /// By its first bytes.
    pub fn of(head: &[u8]) -> Option<Self> {
        let starts = |magic: &[u8]| head.starts_with(magic);
        match head {
            _ if starts(&[0x1f, 0x8b]) => Some(Self::Gzip),
            _ if starts(&[0x28, 0xb5, 0x2f, 0xfd]) => Some(Self::Zstd),
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            _ if starts(&[0xfd, b'7', b'z', b'X', b'Z', 0]) => Some(Self::Xz),
            _ if starts(b"BZh") => Some(Self::Bzip2),
            _ if starts(b"PK\x03\x04") || starts(b"PK\x05\x06") => Some(Self::Zip),
            _ if starts(b"PGDMP") => Some(Self::PgDump),
            _ if head.get(257..262) == Some(b"ustar") => Some(Self::Tar),
            _ => None,
        }
    }

    /// What the name promises.
    pub fn promised_by(name: &str) -> Option<Self> {
        let endings = [
            (Self::Gzip, [".gz", ".tgz"]),
            (Self::Zstd, [".zst", ".zstd"]),
            (Self::Xz, [".xz", ".txz"]),
            (Self::Bzip2, [".bz2", ".tbz2"]),
            (Self::Zip, [".zip", ".zip"]),
            (Self::Tar, [".tar", ".tar"]),
        ];
        endings
            .into_iter()
            .find(|(_, endings)| endings.iter().any(|ending| name.ends_with(ending)))
            .map(|(kind, _)| kind)
    }

    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
            Self::Zip => "zip",
            Self::Tar => "tar",
            Self::PgDump => "pg_dump",
        }
    }

    /// What was looked at, and what was not.
    pub const fn coverage(self) -> (&'static str, &'static str) {
        match self {
            Self::Gzip | Self::Bzip2 | Self::PgDump => {
                ("first bytes and size", "its content and its end: it was not unpacked")
            }
            Self::Zstd => ("every block is there to the last", "its content: it was not unpacked"),
            Self::Tar => ("every member is there to the last", "the content of its members"),
            Self::Xz | Self::Zip => ("first bytes and the end", "its content: it was not unpacked"),
        }
    }
}

/// Why an archive is no whole one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It ends too early.
    #[error("it is cut off: {0}")]
    CutOff(&'static str),
    /// It is not what it began as.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// It is whole, and nothing was packed.
    #[error("it holds nothing{0}")]
    Nothing(&'static str),
    /// It could not be read, or not to its end within the bound.
    #[error("{0}")]
    Unread(String),
}

/// Reads exactly as many bytes as asked for at a place, or says why not.
pub type ReadAt<'a> = dyn FnMut(u64, &mut [u8]) -> Result<(), String> + 'a;

/// Looks whether the end of an archive of `size_bytes` is there.
pub fn check(kind: Archive, size_bytes: u64, read: &mut ReadAt<'_>) -> Result<(), Broken> {
    match kind {
        Archive::PgDump => Ok(()),
        Archive::Gzip => gzip(size_bytes, read),
        Archive::Bzip2 => bzip2(size_bytes, read),
        Archive::Zstd => zstd(size_bytes, read),
        Archive::Tar => tar(size_bytes, read),
        Archive::Xz => xz(size_bytes, read),
        Archive::Zip => zip(size_bytes, read),
    }
}

/// A reader that knows where the file ends.
struct Walk<'a, 'b> {
    read: &'a mut ReadAt<'b>,
    at: u64,
    end: u64,
}

impl Walk<'_, '_> {
    fn take<const N: usize>(&mut self, missing: &'static str) -> Result<[u8; N], Broken> {
        let mut bytes = [0; N];
        self.peek(&mut bytes, missing)?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn peek(&mut self, bytes: &mut [u8], missing: &'static str) -> Result<(), Broken> {
        let wanted = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.at.checked_add(wanted).is_none_or(|after| after > self.end) {
            return Err(Broken::CutOff(missing));
        }
        (self.read)(self.at, bytes).map_err(Broken::Unread)
    }

    fn skip(&mut self, bytes: u64, missing: &'static str) -> Result<(), Broken> {
        match self.at.checked_add(bytes) {
            Some(after) if after <= self.end => {
                self.at = after;
                Ok(())
            }
            _ => Err(Broken::CutOff(missing)),
        }
    }
}

/// A short one is read as a whole: what is packed in it has the sum and length that its end says.
fn gzip(size_bytes: u64, read: &mut ReadAt<'_>) -> Result<(), Broken> {
    const HEADER: &str = "its header is not whole";
    if size_bytes < 18 {
        return Err(Broken::CutOff("shorter than any gzip file"));
    }
    if size_bytes > GZIP_OF_NOTHING_BYTES_MAX {
        return Ok(());
    }
    let mut walk = Walk { read, at: 0, end: size_bytes };
    let [_, _, _, flags, ..] = walk.take::<10>(HEADER)?;
    if flags & 4 != 0 {
        let length = walk.take::<2>(HEADER)?;
        walk.skip(u16::from_le_bytes(length).into(), HEADER)?;
    }
    // The name of the file, and a comment.
    for flag in [8, 16] {
        while flags & flag != 0 && walk.take::<1>(HEADER)? != [0] {}
    }
    walk.skip(if flags & 2 == 0 { 0 } else { 2 }, HEADER)?;
    let Some(packed_bytes) = (size_bytes - 8).checked_sub(walk.at) else { return Err(Broken::CutOff(HEADER)) };
    let mut packed = vec![0; usize::try_from(packed_bytes).unwrap_or(0)];
    walk.peek(&mut packed, HEADER)?;
    // The end of one member says nothing about those before it.
    if packed.windows(3).any(|window| window == [0x1f, 0x8b, 8]) {
        return Ok(());
    }
    walk.at = size_bytes - 8;
    let sum = u32::from_le_bytes(walk.take("its end is missing")?);
    let length = u32::from_le_bytes(walk.take("its end is missing")?);
    let is_zeros = length <= ZEROS_MAX && length.is_multiple_of(TAR_BLOCK_BYTES) && sum == sum_of_zeros(length);
    match length {
        _ if !is_zeros => Ok(()),
        0 => Err(Broken::Nothing("")),
        _ => Err(Broken::Nothing(" but zero bytes, as a tar without a member does")),
    }
}

/// The CRC-32 of so many zero bytes.
fn sum_of_zeros(bytes: u32) -> u32 {
    let step = |sum: u32| if sum & 1 == 0 { sum >> 1 } else { (sum >> 1) ^ 0xedb8_8320 };
    !(0..bytes.saturating_mul(8)).fold(u32::MAX, |sum, _| step(sum))
}

/// Of nothing it is its first bytes and the mark of its end.
fn bzip2(size_bytes: u64, read: &mut ReadAt<'_>) -> Result<(), Broken> {
    match size_bytes {
        0..14 => Err(Broken::CutOff("shorter than any bzip2 file")),
        14 => {
            let [_, _, _, _, mark @ .., _, _, _, _] = Walk { read, at: 0, end: size_bytes }.take::<14>("its end")?;
            if mark == *b"\x17rE8P\x90" { Err(Broken::Nothing("")) } else { Err(Broken::CutOff("its first block")) }
        }
        _ => Ok(()),
    }
}

fn zstd(size_bytes: u64, read: &mut ReadAt<'_>) -> Result<(), Broken> {
    let mut walk = Walk { read, at: 0, end: size_bytes };
    let mut steps = 0;
    let mut holds_something = false;
    while walk.at < walk.end {
        let magic: [u8; 4] = walk.take("the header of a frame is not whole")?;
        if matches!(magic, [0x50..=0x5f, 0x2a, 0x4d, 0x18]) {
            let length: [u8; 4] = walk.take("a skippable frame is not whole")?;
            walk.skip(u32::from_le_bytes(length).into(), "a skippable frame is not whole")?;
        } else if magic == [0x28, 0xb5, 0x2f, 0xfd] {
            holds_something |= zstd_frame(&mut walk, &mut steps)?;
        } else {
            return Err(Broken::Damaged("behind its last frame is something that is no zstd"));
        }
        step(&mut steps)?;
    }
    if holds_something { Ok(()) } else { Err(Broken::Nothing("")) }
}

/// Whether one of its blocks holds something.
fn zstd_frame(walk: &mut Walk<'_, '_>, steps: &mut u32) -> Result<bool, Broken> {
    const HEADER: &str = "the header of a frame is not whole";
    let [descriptor] = walk.take::<1>(HEADER)?;
    let single_segment = descriptor & 0x20 != 0;
    let content_size = match descriptor >> 6 {
        0 => u64::from(single_segment),
        1 => 2,
        2 => 4,
        _ => 8,
    };
    let dictionary = [0, 1, 2, 4].get(usize::from(descriptor & 3)).copied().unwrap_or(0);
    walk.skip(u64::from(!single_segment) + dictionary + content_size, HEADER)?;
    let mut holds_something = false;
    loop {
        let [low, middle, high] = walk.take::<3>("blocks are missing at the end")?;
        let header = u32::from_le_bytes([low, middle, high, 0]);
        let bytes = match (header >> 1) & 3 {
            0 | 2 => header >> 3,
            1 => 1,
            _ => return Err(Broken::Damaged("a block is of no known kind")),
        };
        walk.skip(bytes.into(), "its last block is not whole")?;
        holds_something |= header >> 3 > 0;
        step(steps)?;
        if header & 1 == 1 {
            let checksum = if descriptor & 4 != 0 { 4 } else { 0 };
            walk.skip(checksum, "the checksum at its end is missing")?;
            return Ok(holds_something);
        }
    }
}

fn tar(size_bytes: u64, read: &mut ReadAt<'_>) -> Result<(), Broken> {
    let mut walk = Walk { read, at: 0, end: size_bytes };
    let mut steps = 0;
    loop {
        let header: [u8; 512] = walk.take("the empty block that ends a tar is missing")?;
        if header.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        if !tar_sum_is_right(&header) {
            return Err(Broken::Damaged("the header of a member is damaged"));
        }
        let Some(bytes) = tar_number(header.get(124..136).unwrap_or_default()) else {
            return Err(Broken::Damaged("the size of a member is no number"));
        };
        // Links, devices and folders have no content, whatever their size field says.
        let has_content = !matches!(header.get(156), Some(b'1'..=b'6'));
        if has_content {
            let blocks = bytes.div_ceil(512).saturating_mul(512);
            walk.skip(blocks, "its last member is not whole")?;
        }
        step(&mut steps)?;
    }
}

fn tar_sum_is_right(header: &[u8; 512]) -> bool {
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { u64::from(b' ') } else { u64::from(*byte) })
        .sum();
    header.get(148..156).and_then(tar_number) == Some(sum)
}

/// Octal digits, or GNU's binary form of large numbers.
fn tar_number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let start = u64::from(first & 0x7f);
        return rest.iter().try_fold(start, |number, byte| number.checked_mul(256)?.checked_add(u64::from(*byte)));
    }
    let digits = field.iter().skip_while(|byte| **byte == b' ').take_while(|byte| byte.is_ascii_digit());
    digits.map(|byte| u64::from(byte - b'0')).try_fold(0u64, |number, digit| {
        (digit < 8).then_some(())?;
        number.checked_mul(8)?.checked_add(digit)
    })
}

fn xz(size_bytes: u64, read: &mut ReadAt<'_>) -> Result<(), Broken> {
    let mut walk = Walk { read, at: 0, end: size_bytes };
    if size_bytes < 32 {
        return Err(Broken::CutOff("shorter than any xz file"));
    }
    walk.at = size_bytes - 4;
    match walk.take::<4>("its end is missing")? {
        // Its first bytes, an index of no block, its end.
        [_, _, b'Y', b'Z'] if size_bytes == 32 => Err(Broken::Nothing("")),
        [_, _, b'Y', b'Z'] => Ok(()),
        // Padding to a multiple of four bytes is allowed.
        [0, 0, 0, 0] if size_bytes.is_multiple_of(4) => Ok(()),
        _ => Err(Broken::CutOff("it does not end like an xz file")),
    }
}

fn zip(size_bytes: u64, read: &mut ReadAt<'_>) -> Result<(), Broken> {
    let start = size_bytes.saturating_sub(ZIP_TAIL_BYTES);
    let mut tail = vec![0; usize::try_from(size_bytes - start).unwrap_or(0)];
    Walk { read, at: start, end: size_bytes }.peek(&mut tail, "its end is missing")?;
    let found = tail.windows(4).any(|window| window == b"PK\x05\x06");
    if !found {
        return Err(Broken::CutOff("the directory at its end is missing"));
    }
    // One that begins with the end of its directory has no entry.
    let first: [u8; 4] = Walk { read, at: 0, end: size_bytes }.take("its first bytes are missing")?;
    if first == *b"PK\x05\x06" { Err(Broken::Nothing("")) } else { Ok(()) }
}

fn step(steps: &mut u32) -> Result<(), Broken> {
    *steps += 1;
    if *steps > STEPS_MAX {
        return Err(Broken::Unread(format!("it has more than {STEPS_MAX} parts; its end was not reached")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn look(bytes: &[u8]) -> Option<Result<(), Broken>> {
        let kind = Archive::of(bytes)?;
        let mut read = |at: u64, room: &mut [u8]| {
            let at = usize::try_from(at).map_err(|_| "far".to_owned())?;
            room.copy_from_slice(bytes.get(at..at + room.len()).ok_or("end")?);
            Ok(())
        };
        Some(check(kind, bytes.len() as u64, &mut read))
    }

    /// `printf hello | zstd`, and a raw block of the same by hand.
    fn zst() -> Vec<u8> {
        let mut bytes = vec![0x28, 0xb5, 0x2f, 0xfd, 0x24, 0x05];
        bytes.extend([(5 << 3) | 1, 0, 0]);
        bytes.extend(b"hello");
        bytes.extend([1, 2, 3, 4]);
        bytes
    }

    fn tar_of(content: &[u8]) -> Vec<u8> {
        let mut header = [0u8; 512];
        header[..6].copy_from_slice(b"hub.db");
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[156] = b'0';
        header[257..262].copy_from_slice(b"ustar");
        header[148..156].fill(b' ');
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let mut bytes = header.to_vec();
        bytes.extend(content);
        bytes.resize(bytes.len().div_ceil(512) * 512 + 1024, 0);
        bytes
    }

    #[test]
    fn whole_ones_pass_and_every_cut_is_seen() {
        let whole = zst();
        assert_eq!(look(&whole), Some(Ok(())));
        for cut in 5..whole.len() {
            assert!(matches!(look(&whole[..cut]), Some(Err(Broken::CutOff(_)))), "{cut}");
        }
        let two = [whole.clone(), whole.clone()].concat();
        assert_eq!(look(&two), Some(Ok(())));
        let packed = tar_of(&[7; 700]);
        assert_eq!(look(&packed), Some(Ok(())));
        for cut in [512, 900, 1536] {
            assert!(matches!(look(&packed[..cut]), Some(Err(Broken::CutOff(_)))), "{cut}");
        }
        let mut garbled = packed;
        garbled[0] ^= 1;
        assert!(matches!(look(&garbled), Some(Err(Broken::Damaged(_)))));
    }

    #[test]
    fn ends_of_xz_and_zip() {
        let mut xz = vec![0xfd, b'7', b'z', b'X', b'Z', 0];
        xz.resize(62, 1);
        assert!(matches!(look(&xz), Some(Err(Broken::CutOff(_)))));
        xz.extend(b"YZ");
        assert_eq!(look(&xz), Some(Ok(())));
        let mut zip = b"PK\x03\x04".to_vec();
        zip.resize(100, 1);
        assert!(matches!(look(&zip), Some(Err(Broken::CutOff(_)))));
        zip.extend(b"PK\x05\x06");
        assert_eq!(look(&zip), Some(Ok(())));
    }

    /// As `gzip` writes them: of nothing, with a name, of a tar without a member, as `bgzip` ends its files.
    const GZIPS_OF_NOTHING: [&[u8]; 4] = [
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x03\0\0\0\0\0\0\0\0\0",
        b"\x1f\x8b\x08\x08\0\0\0\0\0\x03d.sql\0\x03\0\0\0\0\0\0\0\0\0",
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xed\xc1\x01\x0d\0\0\0\xc2\xa0\xf7Om\x0e7\xa0\0\0\0\0\0\0\0\0\0\x807\x03\x9a\xde\x1d\x27\0\x28\0\0",
        b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0\x1b\0\x03\0\0\0\0\0\0\0\0\0",
    ];

    #[test]
    fn archives_of_nothing() {
        let xz = b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4F\0\0\0\0\x1c\xdfD!\x1f\xb6\xf3}\x01\0\0\0\0\x04YZ".as_slice();
        let zip = [b"PK\x05\x06".as_slice(), &[0; 18]].concat();
        let commented = [b"PK\x05\x06".as_slice(), &[0; 16], b"\x02\0hi"].concat();
        let zstd = b"\x28\xb5\x2f\xfd\x24\0\x01\0\0\x99\xe9\xd8Q".as_slice();
        let rest: [&[u8]; 6] =
            [xz, &zip, &commented, zstd, b"BZh9\x17rE8P\x90\0\0\0\0", b"\x50\x2a\x4d\x18\x01\0\0\0h"];
        for bytes in GZIPS_OF_NOTHING.into_iter().chain(rest) {
            let told = look(bytes).map(|looked| looked.map_err(|broken| broken.to_string()));
            assert!(matches!(&told, Some(Err(told)) if told.contains("it holds nothing")), "{told:?} of {bytes:x?}");
        }
    }

    #[test]
    fn short_archives_of_something() {
        let hi = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xcb\xc8\x04\0\xac*\x93\xd8\x02\0\0\0".as_slice();
        let zstd = b"\x28\xb5\x2f\xfd\x04X\x11\0\0hi\xfa8&\xea".as_slice();
        assert_eq!(look(hi), Some(Ok(())));
        assert_eq!(look(zstd), Some(Ok(())));
        // A last member of nothing ends what `bgzip` makes, and may follow in any gzip.
        for nothing in GZIPS_OF_NOTHING {
            assert_eq!(look(&[hi, nothing].concat()), Some(Ok(())));
        }
        // A long name, and one that does not end.
        let named = [&hi[..3], &[8], &hi[4..10], &[b'a'; 255], b"\0", &hi[10..]].concat();
        assert_eq!(look(&named), Some(Ok(())));
        assert!(matches!(look(&named[..200]), Some(Err(Broken::CutOff(_)))));
    }

    #[test]
    fn names_promise() {
        assert_eq!(Archive::promised_by("hub.db.gz"), Some(Archive::Gzip));
        assert_eq!(Archive::promised_by("hub.tar"), Some(Archive::Tar));
        assert_eq!(Archive::promised_by("hub.db"), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..700), kind in 0usize..7) {
            let magics: [&[u8]; 7] = [b"", &[0x28, 0xb5, 0x2f, 0xfd], b"PK\x03\x04", &[0xfd, b'7', b'z', b'X', b'Z', 0],
                &[0x1f, 0x8b], b"BZh", &[0x51, 0x2a, 0x4d, 0x18]];
            let _ = look(&[magics[kind], &bytes].concat());
            let mut read = |_: u64, room: &mut [u8]| { room.fill(bytes.first().copied().unwrap_or(0)); Ok(()) };
            prop_assert!(check(Archive::Tar, u64::MAX, &mut read).is_ok() == bytes.first().is_none_or(|byte| *byte == 0));
        }
    }
}

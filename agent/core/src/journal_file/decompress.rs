//! Unpacks the long fields of a journal: zstd (systemd since 246) and lz4 (before it).
//!
//! Must never make more bytes than were asked for, whatever a frame promises.

use std::io::Read;

/// Bytes of the window a frame may ask for: journald's own frames have one of the size of their content.
const WINDOW_BYTES_MAX: u64 = 4 << 20;

/// The first `bytes_max` bytes of a zstd frame.
pub(super) fn zstd(packed: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
    let mut decoder = ruzstd::decoding::FrameDecoder::new();
    decoder.set_max_window_size(WINDOW_BYTES_MAX);
    let reader = ruzstd::decoding::StreamingDecoder::new_with_decoder(packed, decoder).ok()?;
    let mut out = Vec::new();
    // What comes before a broken block is still what was written.
    let whole = reader.take(u64::try_from(bytes_max).ok()?).read_to_end(&mut out);
    (whole.is_ok() || !out.is_empty()).then_some(out)
}

/// The first `bytes_max` bytes of an lz4 block with its length before it, as journald writes it.
pub(super) fn lz4(packed: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
    let promised = super::layout::le64(packed, 0)?;
    let wanted = usize::try_from(promised).unwrap_or(usize::MAX).min(bytes_max);
    let mut input = packed.get(8..)?;
    let mut out = Vec::new();
    while out.len() < wanted {
        let (token, rest) = input.split_first()?;
        input = rest;
        let literals = length(*token >> 4, &mut input)?;
        let (copied, rest) = input.split_at_checked(literals)?;
        out.extend(copied.iter().take(wanted.saturating_sub(out.len())));
        input = rest;
        if input.is_empty() {
            break;
        }
        let (offset, rest) = input.split_at_checked(2)?;
        input = rest;
        let offset = usize::from(u16::from_le_bytes(offset.try_into().ok()?));
        let matched = length(*token & 15, &mut input)?.checked_add(4)?;
        if offset == 0 || offset > out.len() {
            return None;
        }
        // Byte by byte: a match may reach into what it makes.
        for _ in 0..matched.min(wanted.saturating_sub(out.len())) {
            let byte = out.get(out.len() - offset).copied()?;
            out.push(byte);
        }
    }
    Some(out)
}

/// A length that begins with four bits and goes on in bytes while they are full.
fn length(nibble: u8, input: &mut &[u8]) -> Option<usize> {
    let mut length = usize::from(nibble);
    if nibble == 15 {
        loop {
            let (byte, rest) = input.split_first()?;
            *input = rest;
            length = length.checked_add(usize::from(*byte))?;
            if *byte != 255 {
                break;
            }
        }
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `hello ` twice and an end: four literals would not do, a match copies the second.
    fn lz4_sample() -> Vec<u8> {
        let mut packed = 15u64.to_le_bytes().to_vec();
        packed.push(6 << 4 | 2);
        packed.extend(b"hello ");
        packed.extend(6u16.to_le_bytes());
        packed.push(3 << 4);
        packed.extend(b"end");
        packed
    }

    #[test]
    fn both_are_unpacked_up_to_what_is_asked() {
        assert_eq!(lz4(&lz4_sample(), 100).unwrap(), b"hello hello end");
        assert_eq!(lz4(&lz4_sample(), 8).unwrap(), b"hello he");
        // A frame of one raw block, as a packer of nothing makes it.
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x20, 5, 5 << 3 | 1, 0, 0];
        frame.extend(b"hello");
        assert_eq!(zstd(&frame, 100).unwrap(), b"hello");
        assert_eq!(zstd(&frame, 2).unwrap(), b"he");
    }

    #[test]
    fn one_repeated_byte_does_not_fill_the_memory() {
        // One block that promises 128 KiB of one byte.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 2, 0, (3 & 1) | 1 << 1, 0, 0x10, b'x'];
        assert!(zstd(&frame, 10).is_none_or(|out| out.len() <= 10));
        let mut packed = u64::MAX.to_le_bytes().to_vec();
        packed.extend([1 << 4 | 15, b'x', 1, 0]);
        packed.extend([255; 64]);
        assert!(lz4(&packed, 1000).is_none_or(|out| out.len() <= 1000));
    }

    proptest! {
        #[test]
        fn any_bytes_are_unpacked_or_not(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd];
            frame.extend(&noise);
            for packed in [&noise, &frame] {
                prop_assert!(zstd(packed, 100).is_none_or(|out| out.len() <= 100));
                prop_assert!(lz4(packed, 100).is_none_or(|out| out.len() <= 100));
            }
        }
    }
}

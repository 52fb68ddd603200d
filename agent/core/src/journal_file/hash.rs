//! The two hashes by which a journal file finds its data: SipHash-2-4 keyed with the file's id, and for files of systemd
//! before 246 Bob Jenkins' lookup3.

/// SipHash-2-4 (Aumasson, Bernstein).
pub(super) fn siphash24(key: [u8; 16], data: &[u8]) -> u64 {
    let (low, high) = key.split_at(8);
    let half = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    let (k0, k1) = (half(low), half(high));
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let mut chunks = data.chunks_exact(8);
    for chunk in &mut chunks {
        let word = half(chunk);
        v[3] ^= word;
        sip_round(&mut v);
        sip_round(&mut v);
        v[0] ^= word;
    }
    let mut last = [0u8; 8];
    last.iter_mut().zip(chunks.remainder()).for_each(|(to, from)| *to = *from);
    // The length modulo 256 is the last byte.
    last[7] = data.len().to_le_bytes()[0];
    let word = u64::from_le_bytes(last);
    v[3] ^= word;
    sip_round(&mut v);
    sip_round(&mut v);
    v[0] ^= word;
    v[2] ^= 0xff;
    for _ in 0..4 {
        sip_round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn sip_round(v: &mut [u64; 4]) {
    let [a, b, c, d] = v;
    *a = a.wrapping_add(*b);
    *b = b.rotate_left(13) ^ *a;
    *a = a.rotate_left(32);
    *c = c.wrapping_add(*d);
    *d = d.rotate_left(16) ^ *c;
    *a = a.wrapping_add(*d);
    *d = d.rotate_left(21) ^ *a;
    *c = c.wrapping_add(*b);
    *b = b.rotate_left(17) ^ *c;
    *c = c.rotate_left(32);
}

/// Lookup3's `hashlittle2` with zero seeds; the first of its two numbers is the higher half.
pub(super) fn jenkins(data: &[u8]) -> u64 {
    let seed = 0xdead_beef_u32.wrapping_add(u32::try_from(data.len()).unwrap_or(u32::MAX));
    let (mut a, mut b, mut c) = (seed, seed, seed);
    let joined = |b: u32, c: u32| (u64::from(c) << 32) | u64::from(b);
    if data.is_empty() {
        return joined(b, c);
    }
    // The last one to twelve bytes are mixed in another way.
    let whole = (data.len() - 1) / 12 * 12;
    let (blocks, tail) = data.split_at_checked(whole).unwrap_or((&[], data));
    let word = |bytes: &[u8], at: usize| {
        let mut word = [0u8; 4];
        word.iter_mut().zip(bytes.get(at..).unwrap_or_default()).for_each(|(to, from)| *to = *from);
        u32::from_le_bytes(word)
    };
    for block in blocks.chunks_exact(12) {
        a = a.wrapping_add(word(block, 0));
        b = b.wrapping_add(word(block, 4));
        c = c.wrapping_add(word(block, 8));
        for (shift, turn) in [(4, 0), (6, 1), (8, 2), (16, 0), (19, 1), (4, 2)] {
            // Subtract, xor with the rotated, add: the three take turns.
            match turn {
                0 => {
                    a = a.wrapping_sub(c) ^ c.rotate_left(shift);
                    c = c.wrapping_add(b);
                }
                1 => {
                    b = b.wrapping_sub(a) ^ a.rotate_left(shift);
                    a = a.wrapping_add(c);
                }
                _ => {
                    c = c.wrapping_sub(b) ^ b.rotate_left(shift);
                    b = b.wrapping_add(a);
                }
            }
        }
    }
    a = a.wrapping_add(word(tail, 0));
    b = b.wrapping_add(word(tail, 4));
    c = c.wrapping_add(word(tail, 8));
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    c = (c ^ b).wrapping_sub(b.rotate_left(24));
    joined(b, c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siphash_gives_the_authors_vectors() {
        let key: [u8; 16] = std::array::from_fn(|n| u8::try_from(n).unwrap());
        let input: Vec<u8> = (0..15).collect();
        assert_eq!(siphash24(key, &input), 0xa129_ca61_49be_45e5);
        assert_eq!(siphash24(key, &[]), 0x726f_db47_dd0e_0e31);
    }

    #[test]
    fn jenkins_gives_the_authors_vectors() {
        // From the author's own driver: hashlittle2 of nothing and of a known sentence, with zero seeds.
        assert_eq!(jenkins(b""), 0xdead_beef_dead_beef);
        assert_eq!(jenkins(b"Four score and seven years ago"), 0x1777_0551_ce72_26e6);
    }
}

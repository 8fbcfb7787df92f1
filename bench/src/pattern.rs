//! The byte pattern that echoed streams are checked against.
//!
//! Every byte is a function of a connection's key and of its position in the stream, so that a
//! lost, repeated, reordered or misdirected piece shows up as a mismatch, whatever its size.

const WORD: usize = size_of::<u64>();

/// The key of what `echo-server --mode source` sends and `load down --verify` expects.
pub(crate) const SOURCE_KEY: u64 = 0;

/// Fills `buf` with the bytes from stream position `pos` on.
pub(crate) fn fill(key: u64, pos: u64, buf: &mut [u8]) {
    let head = head_len(pos, buf.len());
    let (head, rest) = buf.split_at_mut(head);
    for (i, byte) in head.iter_mut().enumerate() {
        *byte = byte_at(key, pos + i as u64);
    }
    let pos = pos + head.len() as u64;
    let mut index = pos / WORD as u64;
    let mut words = rest.chunks_exact_mut(WORD);
    for chunk in &mut words {
        chunk.copy_from_slice(&word(key, index).to_le_bytes());
        index += 1;
    }
    let tail = words.into_remainder();
    let last = word(key, index).to_le_bytes();
    tail.copy_from_slice(&last[..tail.len()]);
}

/// The offset in `buf` of the first byte that is not what [`fill`] would have put there.
pub(crate) fn first_mismatch(key: u64, pos: u64, buf: &[u8]) -> Option<usize> {
    let head = head_len(pos, buf.len());
    let slow =
        |from: usize, to: usize| (from..to).find(|&i| buf[i] != byte_at(key, pos + i as u64));
    if let Some(i) = slow(0, head) {
        return Some(i);
    }
    let first = (pos + head as u64) / WORD as u64;
    let words = buf[head..].chunks_exact(WORD);
    let tail = buf.len() - words.remainder().len();
    for (i, chunk) in words.enumerate() {
        if chunk != word(key, first + i as u64).to_le_bytes() {
            let at = head + i * WORD;
            return slow(at, at + WORD);
        }
    }
    slow(tail, buf.len())
}

/// Bytes from `pos` to the next word boundary, at most `len`.
fn head_len(pos: u64, len: usize) -> usize {
    (((WORD as u64 - pos % WORD as u64) % WORD as u64) as usize).min(len)
}

fn byte_at(key: u64, pos: u64) -> u8 {
    word(key, pos / WORD as u64).to_le_bytes()[(pos % WORD as u64) as usize]
}

/// The output function of SplitMix64 over a counter.
fn word(key: u64, index: u64) -> u64 {
    let mut z = key
        .rotate_left(32)
        .wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_make_one_stream_and_any_fault_is_found() {
        let mut whole = vec![0; 4096];
        fill(7, 0, &mut whole);
        let mut pieces = Vec::new();
        for size in (1..).take_while(|n| n * (n + 1) / 2 <= 4096) {
            let mut piece = vec![0; size];
            fill(7, pieces.len() as u64, &mut piece);
            assert_eq!(first_mismatch(7, pieces.len() as u64, &piece), None);
            pieces.extend(piece);
        }
        assert_eq!(pieces[..], whole[..pieces.len()]);

        for at in 3..200 {
            let mut bad = whole.clone();
            bad[at] ^= 0x10;
            assert_eq!(first_mismatch(7, 3, &bad[3..]), Some(at - 3));
        }
        // A piece that was sent twice, one from elsewhere in the stream, and another stream's.
        assert!(first_mismatch(7, 64, &whole[..64]).is_some());
        assert!(first_mismatch(7, 0, &whole[1..]).is_some());
        assert!(first_mismatch(8, 0, &whole).is_some());
    }
}

//! The Internet checksum (RFC 1071) and the DSS checksum made from it (RFC 8684 §3.3.1).
//!
//! A *sum* here is the ones' complement sum of big-endian 16-bit words, folded and not inverted.
//! It is 0 only where every octet was 0. Sums of parts combine to the sum of the whole, so that a
//! payload is summed once, whatever checksums it takes part in.

/// The sum of `bytes`, the first of which stands at an even offset; an odd last octet counts as
/// the high half of a word.
pub fn sum(bytes: &[u8]) -> u16 {
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    let mut acc = Accumulator::default();
    for block in blocks {
        acc.add(block);
    }
    acc.finish(rest)
}

/// Copies `src` to `dst` and sums it on the way.
///
/// # Panics
/// If the two differ in length.
pub fn copy_and_sum(dst: &mut [u8], src: &[u8]) -> u16 {
    assert_eq!(
        dst.len(),
        src.len(),
        "copy_and_sum needs slices of one length"
    );
    dst.copy_from_slice(src);
    sum(src)
}

/// The sum of two parts, the second of which starts at an even offset of the whole.
#[inline]
pub const fn combine(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u16
}

/// Adds to `acc` the sum of a part that starts `offset` octets into the whole. At an odd offset
/// its octets trade places within their words (RFC 1071 §2(B)).
#[inline]
pub const fn combine_at(acc: u16, part: u16, offset: usize) -> u16 {
    combine(
        acc,
        if offset % 2 == 1 {
            part.swap_bytes()
        } else {
            part
        },
    )
}

/// The checksum field of a DSS option or of an MP_CAPABLE with data, from the sum of the octets
/// that the mapping covers.
// RFC 8684 §3.3.1: the pseudo-header holds the data sequence number in 8 octets even where the
// option carries 4, the relative subflow sequence number, the data-level length and a zero field.
#[inline]
pub const fn dss(dsn: u64, subflow_seq: u32, len: u16, payload_sum: u16) -> u16 {
    !dss_sum(dsn, subflow_seq, len, payload_sum)
}

/// Whether `checksum`, as received, fits the mapping and the sum of the octets it covers.
#[inline]
pub const fn dss_valid(
    dsn: u64,
    subflow_seq: u32,
    len: u16,
    payload_sum: u16,
    checksum: u16,
) -> bool {
    combine(dss_sum(dsn, subflow_seq, len, payload_sum), checksum) == 0xffff
}

const fn dss_sum(dsn: u64, subflow_seq: u32, len: u16, payload_sum: u16) -> u16 {
    let dsn = (dsn >> 32) + (dsn & 0xffff_ffff);
    fold(dsn + subflow_seq as u64 + len as u64 + payload_sum as u64)
}

/// The sum of a pseudo-header: addresses, protocol, length of the protocol's header and payload in
/// octets (RFC 9293 §3.1, RFC 8200 §8.1; both forms sum alike).
#[inline]
pub(crate) fn pseudo_header<const N: usize>(
    src: &[u8; N],
    dst: &[u8; N],
    protocol: u8,
    len: usize,
) -> u16 {
    let mut total = u64::from(protocol) + len as u64;
    for address in [src, dst] {
        for word in address.as_chunks::<4>().0 {
            total += u64::from(u32::from_be_bytes(*word));
        }
    }
    fold(total)
}

/// Octets taken at once. Two halves of 64-bit lanes, each with 32 bits of room for carries, are
/// what the compiler turns into vector code.
const BLOCK: usize = 32;
const LANES: usize = BLOCK / 8;

/// Sums little-endian words, whose ones' complement sum is the big-endian one with its octets
/// swapped (RFC 1071 §2(B)).
#[derive(Default)]
struct Accumulator {
    low: [u64; LANES],
    high: [u64; LANES],
}

impl Accumulator {
    #[inline(always)]
    fn add(&mut self, block: &[u8; BLOCK]) {
        let (words, _) = block.as_chunks::<8>();
        for (lane, word) in words.iter().enumerate() {
            let word = u64::from_le_bytes(*word);
            self.low[lane] += word & 0xffff_ffff;
            self.high[lane] += word >> 32;
        }
    }

    /// Adds the last octets, less than a block, and folds.
    #[inline(always)]
    fn finish(self, rest: &[u8]) -> u16 {
        let mut total = 0u64;
        for lane in 0..LANES {
            total += self.low[lane] + self.high[lane];
        }
        let (words, tail) = rest.as_chunks::<4>();
        for word in words {
            total += u64::from(u32::from_le_bytes(*word));
        }
        let last = match *tail {
            [a, b, c] => [a, b, c, 0],
            [a, b] => [a, b, 0, 0],
            [a] => [a, 0, 0, 0],
            _ => [0; 4],
        };
        fold(total + u64::from(u32::from_le_bytes(last))).swap_bytes()
    }
}

#[inline]
const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + ((sum >> 16) & 0xffff) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

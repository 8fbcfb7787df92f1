//! What names a flow of its own: the key of the FLOWS map, and the worker that an initial subflow
//! belongs to.

use core::net::SocketAddr;

use crate::{address_octets, owner_of};

/// Remote address, local address (as in [`crate::ServiceKey`]), remote port, local port, in network
/// order.
pub type FlowKey = [u8; 36];

/// The key of a flow as its frames arrive: the source is the remote side.
#[inline(always)]
pub const fn flow_key(
    remote: [u8; 16],
    remote_port: u16,
    local: [u8; 16],
    local_port: u16,
) -> FlowKey {
    let mut key = [0; 36];
    let mut at = 0;
    while at < 16 {
        key[at] = remote[at];
        key[16 + at] = local[at];
        at += 1;
    }
    let [remote_port, local_port] = [remote_port.to_be_bytes(), local_port.to_be_bytes()];
    key[32] = remote_port[0];
    key[33] = remote_port[1];
    key[34] = local_port[0];
    key[35] = local_port[1];
    key
}

/// Who has a flow, as the FLOWS map says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowOwner {
    pub worker: u32,
    /// Where its client has proved nothing yet: only so much is of this flow. Who forges a join takes
    /// nothing else from the flow that has these addresses.
    pub pending: Option<Claim>,
}

/// All that is taken of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What acknowledges this number: of a handshake, the one after our SYN.
    pub acknowledges: u32,
    /// And a RST without ACK of this number: the one after the client's SYN, as a host has it that did
    /// not send that (RFC 9293 §3.5.2).
    pub resets: u32,
}

/// A [`FlowOwner`] as the map holds it.
pub type FlowWords = [u32; 3];

/// Bit of the first word, above the worker: the others are [`FlowOwner::pending`].
const FLOW_PENDING: u32 = 1 << 31;

impl FlowOwner {
    /// The owner of a flow whose client has proved itself, or need not.
    pub const fn proven(worker: u32) -> Self {
        Self {
            worker,
            pending: None,
        }
    }

    pub const fn to_words(self) -> FlowWords {
        match self.pending {
            None => [self.worker, 0, 0],
            Some(claim) => [self.worker | FLOW_PENDING, claim.acknowledges, claim.resets],
        }
    }

    #[inline(always)]
    pub const fn from_words(words: FlowWords) -> Self {
        let pending = words[0] & FLOW_PENDING != 0;
        Self {
            worker: words[0] & !FLOW_PENDING,
            pending: if pending {
                Some(Claim {
                    acknowledges: words[1],
                    resets: words[2],
                })
            } else {
                None
            },
        }
    }

    /// Whose a segment of these addresses is, if it is of this flow: by the number that it acknowledges,
    /// or, of a RST without ACK, by its own.
    #[inline(always)]
    pub const fn of_segment(&self, numbers: Numbers) -> Option<u32> {
        let claimed = match (self.pending, numbers) {
            (None, _) => true,
            (Some(claim), Numbers::Ack(number)) => number == claim.acknowledges,
            (Some(claim), Numbers::Reset(number)) => number == claim.resets,
            (Some(_), Numbers::Neither) => false,
        };
        if claimed { Some(self.worker) } else { None }
    }
}

/// What a segment says of the flow that it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// It acknowledges this.
    Ack(u32),
    /// It is a RST of this number, without ACK.
    Reset(u32),
    Neither,
}

/// [`flow_key`] of socket addresses.
pub fn flow_key_of(remote: SocketAddr, local: SocketAddr) -> FlowKey {
    flow_key(
        address_octets(remote.ip()),
        remote.port(),
        address_octets(local.ip()),
        local.port(),
    )
}

/// The worker, of `workers`, that an initial subflow belongs to where the program hashes (see
/// [`crate::FLAG_FLOW_HASH_NIC`]). Nobody who does not know the key can aim at one worker.
#[inline(always)]
pub const fn home(key: &FlowKey, hash_key: &[u64; 2], workers: u32) -> u32 {
    owner_of((siphash_1_3(key, hash_key) >> 32) as u32, workers)
}

/// The worker whose home `queue` is. It alone transmits, refills and drains there.
#[inline(always)]
pub const fn queue_home(queue: u32, workers: u32) -> u32 {
    // BPF defines division by 0, Rust does not.
    if workers == 0 { 0 } else { queue % workers }
}

/// SipHash-1-3 of the 36 octets, without a loop whose bound the verifier would have to find.
#[inline(always)]
const fn siphash_1_3(key: &FlowKey, hash_key: &[u64; 2]) -> u64 {
    let [k0, k1] = *hash_key;
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    v = absorb(v, word(key, 0));
    v = absorb(v, word(key, 8));
    v = absorb(v, word(key, 16));
    v = absorb(v, word(key, 24));
    let tail = u32::from_le_bytes([key[32], key[33], key[34], key[35]]);
    v = absorb(v, (36 << 56) | tail as u64);
    v[2] ^= 0xff;
    v = round(round(round(v)));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
const fn absorb(mut v: [u64; 4], word: u64) -> [u64; 4] {
    v[3] ^= word;
    v = round(v);
    v[0] ^= word;
    v
}

#[inline(always)]
const fn round([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

#[inline(always)]
const fn word(key: &FlowKey, at: usize) -> u64 {
    u64::from_le_bytes([
        key[at],
        key[at + 1],
        key[at + 2],
        key[at + 3],
        key[at + 4],
        key[at + 5],
        key[at + 6],
        key[at + 7],
    ])
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher;

    use proptest::prelude::*;
    use siphasher::sip::SipHasher13;

    use super::*;

    #[test]
    fn a_key_holds_each_part_in_its_place() {
        let key = flow_key_of(
            "192.0.2.7:513".parse().unwrap(),
            "[2001:db8::2]:80".parse().unwrap(),
        );
        assert_eq!(key[10..16], [0xff, 0xff, 192, 0, 2, 7]);
        assert_eq!(key[16..20], [0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(key[31..], [2, 2, 1, 0, 80]);
    }

    #[test]
    fn a_flow_that_is_pending_is_the_segment_that_completes_its_handshake() {
        let pending = FlowOwner {
            worker: 3,
            pending: Some(Claim {
                acknowledges: 7,
                resets: 5,
            }),
        };
        for owner in [pending, FlowOwner::proven(3)] {
            assert_eq!(FlowOwner::from_words(owner.to_words()), owner);
        }
        for (numbers, claimed) in [
            (Numbers::Ack(7), true),
            (Numbers::Reset(5), true),
            (Numbers::Ack(6), false),
            (Numbers::Ack(8), false),
            (Numbers::Ack(5), false),
            (Numbers::Reset(7), false),
            (Numbers::Neither, false),
        ] {
            assert_eq!(pending.of_segment(numbers), claimed.then_some(3));
            assert_eq!(FlowOwner::proven(3).of_segment(numbers), Some(3));
        }
    }

    proptest! {
        #[test]
        fn the_hash_is_that_of_a_crate(
            key in proptest::array::uniform32(any::<u8>()),
            ports in any::<[u8; 4]>(),
            hash_key in any::<[u64; 2]>(),
        ) {
            let mut whole = [0; 36];
            whole[..32].copy_from_slice(&key);
            whole[32..].copy_from_slice(&ports);
            let mut oracle = SipHasher13::new_with_keys(hash_key[0], hash_key[1]);
            oracle.write(&whole);
            prop_assert_eq!(siphash_1_3(&whole, &hash_key), oracle.finish());
        }
    }

    #[test]
    fn homes_are_shared_out_evenly_and_differently_under_another_key() {
        let [local, remote] = [[1; 16], [2; 16]];
        for workers in [1, 2, 3, 16] {
            let mut hits = [0u32; 16];
            let mut moved = 0;
            for port in 0..16_000 {
                let key = flow_key(remote, port, local, 80);
                let worker = home(&key, &[7, 8], workers);
                hits[worker as usize] += 1;
                moved += u32::from(home(&key, &[7, 9], workers) != worker);
            }
            let share = 16_000 / workers;
            for &count in &hits[..workers as usize] {
                // Six standard deviations of a binomial distribution are less than this.
                assert!(count.abs_diff(share) < 400, "{count} of {share}");
            }
            assert!(hits[workers as usize..].iter().all(|&count| count == 0));
            assert!(moved.abs_diff(16_000 - share) < 400, "{moved}");
        }
    }

    #[test]
    fn every_queue_has_one_home() {
        let homes = |workers| [0, 1, 2, 3].map(|queue| queue_home(queue, workers));
        assert_eq!(homes(1), [0, 0, 0, 0]);
        assert_eq!(homes(3), [0, 1, 2, 0]);
        assert_eq!(homes(8), [0, 1, 2, 3]);
    }
}

//! A small client of its own making, a network between it and the engine, and virtual time.
//!
//! The client shares nothing with the stack under test but the wire formats, and it is strict: what
//! a server may not do makes it panic with a message that says so. Numbers in it never wrap: each is
//! an offset from where its stream began, in 64 bits.

pub mod apps;
pub mod client;
pub mod icmp;
pub mod middlebox;
pub mod net;
pub mod server;
pub mod sim;
pub mod subflow;
pub mod trace;

use hmac::{Hmac, Mac};
use mpx_datapath::wire::mptcp::AddAddr;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::net::IpAddr;

/// SplitMix64: one number repeats a whole run.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn permille(&mut self, p: u32) -> bool {
        self.below(1000) < p as usize
    }
}

/// Seeds of a sweep: so many, or that many times more as `MPX_TEST_EFFORT` in the environment says.
pub fn seeds(count: u64) -> std::ops::Range<u64> {
    0..count * effort()
}

pub fn effort() -> u64 {
    std::env::var("MPX_TEST_EFFORT")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1)
}

/// Octet `i` of the stream named by `seed`: no two stretches of a stream are alike.
pub fn stream_octet(seed: u64, i: usize) -> u8 {
    let word = Rng(seed ^ (i as u64 / 8)).next();
    word.to_be_bytes()[i % 8]
}

pub fn stream(seed: u64, len: usize) -> Vec<u8> {
    (0..len).map(|i| stream_octet(seed, i)).collect()
}

/// Says where two streams part instead of printing both.
pub fn assert_same(got: &[u8], expected: &[u8]) {
    let same = got.iter().zip(expected).take_while(|(a, b)| a == b).count();
    assert!(
        got.len() == expected.len() && same == got.len(),
        "{} octets of {}, alike up to {same}",
        got.len(),
        expected.len()
    );
}

/// Token and initial data sequence number of a key of version 0 of Multipath TCP.
// RFC 6824 §3.1: the first 32 bits of SHA-1 of the key, and the last 64.
pub fn token_and_idsn_v0(key: u64) -> (u32, u64) {
    let hash: [u8; 20] = Sha1::digest(key.to_be_bytes()).into();
    let token = hash[..4].iter().fold(0, |n, b| n << 8 | u32::from(*b));
    let idsn = hash[12..].iter().fold(0, |n, b| n << 8 | u64::from(*b));
    (token, idsn)
}

/// HMAC-SHA1 over two nonces, keyed with two keys (RFC 6824 §3.2).
pub fn join_hmac_v0(key_a: u64, key_b: u64, nonce_a: u32, nonce_b: u32) -> [u8; 20] {
    let key = [key_a.to_be_bytes(), key_b.to_be_bytes()].concat();
    let mut mac = Hmac::<Sha1>::new_from_slice(&key).expect("HMAC takes keys of any length");
    mac.update(&nonce_a.to_be_bytes());
    mac.update(&nonce_b.to_be_bytes());
    mac.finalize().into_bytes().into()
}

/// Token and initial data sequence number of a key of version 1.
// RFC 8684 §3.2, §3.3: the first 32 bits of SHA-256 of the key, and the last 64.
pub fn token_and_idsn(key: u64) -> (u32, u64) {
    let hash: [u8; 32] = Sha256::digest(key.to_be_bytes()).into();
    let token = hash[..4].iter().fold(0, |n, b| n << 8 | u32::from(*b));
    let idsn = hash[24..].iter().fold(0, |n, b| n << 8 | u64::from(*b));
    (token, idsn)
}

/// HMAC-SHA256 over two nonces, keyed with two keys (RFC 8684 §3.2).
pub fn join_hmac(key_a: u64, key_b: u64, nonce_a: u32, nonce_b: u32) -> [u8; 32] {
    let key = [key_a.to_be_bytes(), key_b.to_be_bytes()].concat();
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("HMAC takes keys of any length");
    mac.update(&nonce_a.to_be_bytes());
    mac.update(&nonce_b.to_be_bytes());
    mac.finalize().into_bytes().into()
}

/// What ADD_ADDR proves itself with: the last 64 bits of an HMAC keyed like those of MP_JOIN
/// (RFC 8684 §3.4.1), over the option's address and port.
pub fn add_addr_hmac(key_a: u64, key_b: u64, option: &AddAddr) -> u64 {
    let key = [key_a.to_be_bytes(), key_b.to_be_bytes()].concat();
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("HMAC takes keys of any length");
    mac.update(&[option.address_id]);
    match option.address {
        IpAddr::V4(v4) => mac.update(&v4.octets()),
        IpAddr::V6(v6) => mac.update(&v6.octets()),
    }
    mac.update(&option.port.map_or([0, 0], u16::to_be_bytes));
    let hmac: [u8; 32] = mac.finalize().into_bytes().into();
    hmac[24..].iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// The DSS checksum, word by word as RFC 8684 §3.3.1 describes it.
pub fn dss_checksum(dsn: u64, subflow_seq: u32, len: u16, data: &[u8]) -> u16 {
    let mut octets = dsn.to_be_bytes().to_vec();
    octets.extend(subflow_seq.to_be_bytes());
    octets.extend(len.to_be_bytes());
    octets.extend([0, 0]);
    octets.extend(data);
    !ones_complement(&octets)
}

/// RFC 1071, the slow way.
pub fn ones_complement(octets: &[u8]) -> u16 {
    let mut sum = 0u32;
    for word in octets.chunks(2) {
        sum += u32::from(word[0]) << 8 | word.get(1).map_or(0, |b| u32::from(*b));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

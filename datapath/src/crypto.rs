//! Everything with a key in it: tokens and initial data sequence numbers, the HMACs of MP_JOIN and
//! ADD_ADDR, and the keyed functions behind initial sequence numbers and timestamp offsets.

use crate::rand::Entropy;
use crate::seq::TcpSeq;
use crate::time::Instant;
use crate::wire::tcp::FastOpenCookie;
use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use siphasher::sip::SipHasher24;
use std::fmt;
use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};
use subtle::ConstantTimeEq;

/// One side's key of a connection (RFC 8684 §3.1). It never shows in `Debug`.
#[derive(Clone, Copy)]
pub struct Key(pub u64);

impl Key {
    // RFC 8684 §3.1: hard to guess. That no other connection has it is for the caller to check,
    // by the token.
    pub fn generate(entropy: &mut dyn Entropy) -> Key {
        Key(entropy.next_u64())
    }

    /// Whether a key that the peer sent is this one, in constant time.
    pub fn matches(self, received: u64) -> bool {
        self.0.ct_eq(&received).into()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// Token and initial data sequence number of the side whose key this is.
// RFC 8684 §3.1: the most significant 32 bits and the least significant 64 bits of the SHA-256 of
// the key in network byte order.
pub fn token_and_idsn(key: u64) -> (u32, u64) {
    ends(&Sha256::digest(key.to_be_bytes()))
}

/// The same in version 0.
// RFC 6824 §3.1: the same ends of the SHA-1.
pub fn token_and_idsn_v0(key: u64) -> (u32, u64) {
    ends(&Sha1::digest(key.to_be_bytes()))
}

/// The HMAC that the side called local sends, as far as it goes into the third packet; of that,
/// [`leftmost_64`] goes into the SYN/ACK. What the peer must have sent is found by swapping local and
/// remote.
// RFC 8684 §3.2: the sender's own key and own nonce come first.
pub fn join_hmac(local_key: u64, remote_key: u64, local_nonce: u32, remote_nonce: u32) -> [u8; 20] {
    let mut mac = keyed(local_key, remote_key);
    mac.update(&local_nonce.to_be_bytes());
    mac.update(&remote_nonce.to_be_bytes());
    leftmost_160(&mac.finalize().into_bytes())
}

/// The same in version 0.
// RFC 6824 §3.2: HMAC-SHA1, of which the third packet carries all.
pub fn join_hmac_v0(
    local_key: u64,
    remote_key: u64,
    local_nonce: u32,
    remote_nonce: u32,
) -> [u8; 20] {
    let mut mac = Hmac::<Sha1>::new(&key_block(local_key, remote_key).into());
    mac.update(&local_nonce.to_be_bytes());
    mac.update(&remote_nonce.to_be_bytes());
    leftmost_160(&mac.finalize().into_bytes())
}

/// What an ADD_ADDR sent by the side called local carries; swap the keys for one received.
// RFC 8684 §3.4.1: the rightmost 64 bits of the HMAC over address ID, address and port; two zero
// octets stand for a port that is not in the option.
pub fn add_addr_hmac(
    local_key: u64,
    remote_key: u64,
    address_id: u8,
    address: IpAddr,
    port: Option<u16>,
) -> u64 {
    let mut mac = keyed(local_key, remote_key);
    mac.update(&[address_id]);
    match address {
        IpAddr::V4(address) => mac.update(&address.octets()),
        IpAddr::V6(address) => mac.update(&address.octets()),
    }
    mac.update(&port.unwrap_or(0).to_be_bytes());
    rightmost_64(&mac.finalize().into_bytes())
}

/// The part of an HMAC that an MP_JOIN SYN/ACK carries.
pub fn leftmost_64(hmac: &[u8; 20]) -> u64 {
    let [h0, h1, h2, h3, h4, h5, h6, h7, ..] = *hmac;
    u64::from_be_bytes([h0, h1, h2, h3, h4, h5, h6, h7])
}

/// Whether the third packet of an MP_JOIN carries the HMAC expected, in constant time.
pub fn join_ack_valid(expected: &[u8; 20], received: &[u8; 20]) -> bool {
    expected.ct_eq(received).into()
}

/// Whether a truncated HMAC of a SYN/ACK or an ADD_ADDR is the one expected, in constant time.
pub fn hmac_64_valid(expected: u64, received: u64) -> bool {
    expected.ct_eq(&received).into()
}

/// Octets of a Fast Open cookie of ours: beside MP_CAPABLE and all other options a SYN/ACK has room
/// for no more.
const FAST_OPEN_COOKIE_LEN: usize = 6;

/// The key under which Fast Open cookies are made in one period of time.
pub fn fast_open_key(secret: &[u8; 16], period: u64) -> [u8; 16] {
    let mut block = [0; 64];
    block[..16].copy_from_slice(secret);
    let mut mac = Hmac::<Sha256>::new(&block.into());
    mac.update(b"fast open");
    mac.update(&period.to_be_bytes());
    let digest: [u8; 32] = mac.finalize().into_bytes().into();
    let mut key = [0; 16];
    key.copy_from_slice(&digest[..16]);
    key
}

/// A MAC of the client's address (RFC 7413 §4.1.2): the front of SipHash-2-4.
pub fn fast_open_cookie(key: &[u8; 16], client: IpAddr) -> FastOpenCookie {
    let mut hasher = SipHasher24::new_with_key(key);
    match client {
        IpAddr::V4(address) => hasher.write(&address.octets()),
        IpAddr::V6(address) => hasher.write(&address.octets()),
    }
    let mac = hasher.finish().to_be_bytes();
    FastOpenCookie::new(&mac[..FAST_OPEN_COOKIE_LEN]).unwrap_or_default()
}

/// What only this server knows. Every worker of a server must hold the same, so that a 4-tuple has
/// one timestamp offset whoever owns it.
#[derive(Clone)]
pub struct Secrets {
    isn: [u8; 16],
    timestamp: [u8; 16],
    cookie: [u8; 16],
    cookie_key: [u8; 16],
}

/// What a SYN cookie is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynFacts {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// The sequence number of the client's SYN.
    pub irs: TcpSeq,
    /// It has the timestamps option.
    pub timestamps: bool,
    /// When it came, by a coarse clock.
    pub tick: u32,
}

impl Secrets {
    pub fn generate(entropy: &mut dyn Entropy) -> Secrets {
        let mut secrets = Secrets {
            isn: [0; 16],
            timestamp: [0; 16],
            cookie: [0; 16],
            cookie_key: [0; 16],
        };
        entropy.fill(&mut secrets.isn);
        entropy.fill(&mut secrets.timestamp);
        entropy.fill(&mut secrets.cookie);
        entropy.fill(&mut secrets.cookie_key);
        secrets
    }

    /// The initial sequence number of a segment from `src` to `dst`.
    // RFC 6528 §3: ISN = M + F(4-tuple, secret), M a clock that ticks every 4 µs. SipHash-2-4 is
    // the keyed pseudorandom function.
    pub fn isn(&self, now: Instant, src: SocketAddr, dst: SocketAddr) -> TcpSeq {
        let clock = (now.as_micros() / 4) as u32;
        TcpSeq(clock.wrapping_add(prf(&self.isn, src, dst)))
    }

    /// Added to the millisecond clock of TSval on segments from `src` to `dst`. It needs no state,
    /// and TSval goes on rising from one connection of a 4-tuple to the next.
    pub fn timestamp_offset(&self, src: SocketAddr, dst: SocketAddr) -> u32 {
        prf(&self.timestamp, src, dst)
    }

    /// MAC of the 4-tuple and the tick of a SYN cookie.
    // RFC 4987 §3.6.
    pub fn cookie_tuple_mac(&self, facts: &SynFacts) -> u32 {
        let mut hasher = keyed_by_tuple(&self.cookie, facts.local, facts.remote);
        hasher.write_u32(facts.tick);
        hasher.finish() as u32
    }

    /// MAC of everything, and of what the cookie says beside.
    pub fn cookie_mac(&self, facts: &SynFacts, content: u32) -> u32 {
        let mut hasher = keyed_by_tuple(&self.cookie, facts.local, facts.remote);
        hasher.write_u32(facts.tick);
        hasher.write_u32(facts.irs.0);
        hasher.write_u8(facts.timestamps.into());
        hasher.write_u32(content);
        hasher.finish() as u32
    }

    /// The key that a stateless SYN/ACK offers; `number` tells those for one SYN apart and can be read
    /// from the key: it is its last octet.
    // RFC 8684 §3.1: a hash of the 4-tuple, the sequence number and a local secret.
    pub fn cookie_key(&self, facts: &SynFacts, number: u8) -> u64 {
        let mut hasher = keyed_by_tuple(&self.cookie_key, facts.local, facts.remote);
        hasher.write_u32(facts.tick);
        hasher.write_u32(facts.irs.0);
        hasher.write_u8(number);
        hasher.finish() & !0xff | u64::from(number)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(..)")
    }
}

// RFC 8684 §3.2: HMAC-SHA256 under both keys, the sender's first.
fn keyed(local_key: u64, remote_key: u64) -> Hmac<Sha256> {
    Hmac::<Sha256>::new(&key_block(local_key, remote_key).into())
}

// RFC 2104 §2: a key shorter than the block of its hash, which is 64 octets for SHA-1 and SHA-256, is
// padded with zeros.
fn key_block(local_key: u64, remote_key: u64) -> [u8; 64] {
    let mut block = [0; 64];
    block[..8].copy_from_slice(&local_key.to_be_bytes());
    block[8..16].copy_from_slice(&remote_key.to_be_bytes());
    block
}

/// The leftmost 32 bits and the rightmost 64.
fn ends(digest: &[u8]) -> (u32, u64) {
    let mut left = [0; 4];
    left.copy_from_slice(&digest[..4]);
    (u32::from_be_bytes(left), rightmost_64(digest))
}

fn rightmost_64(digest: &[u8]) -> u64 {
    let mut right = [0; 8];
    right.copy_from_slice(&digest[digest.len() - 8..]);
    u64::from_be_bytes(right)
}

fn leftmost_160(digest: &[u8]) -> [u8; 20] {
    let mut left = [0; 20];
    left.copy_from_slice(&digest[..20]);
    left
}

fn prf(key: &[u8; 16], src: SocketAddr, dst: SocketAddr) -> u32 {
    keyed_by_tuple(key, src, dst).finish() as u32
}

/// A keyed hash that has taken in both ends of a flow.
fn keyed_by_tuple(key: &[u8; 16], src: SocketAddr, dst: SocketAddr) -> SipHasher24 {
    let mut hasher = SipHasher24::new_with_key(key);
    for end in [src, dst] {
        match end.ip() {
            IpAddr::V4(address) => hasher.write(&address.octets()),
            IpAddr::V6(address) => hasher.write(&address.octets()),
        }
        hasher.write(&end.port().to_be_bytes());
    }
    hasher
}

#[cfg(test)]
#[path = "crypto_tests.rs"]
mod tests;

//! Known answers, made with Python's `hashlib` and `hmac`, and with `sha1sum` and `openssl dgst`.

use super::*;
use crate::rand::ChaChaEntropy;

const KEY_A: u64 = 0x0102_0304_0506_0708;
const KEY_B: u64 = 0xfedc_ba98_7654_3210;
const NONCE_A: u32 = 0x1122_3344;
const NONCE_B: u32 = 0xaabb_ccdd;

// RFC 8684 §3.1.
#[test]
fn token_and_idsn_are_cut_from_the_right_ends_of_the_digest() {
    assert_eq!(token_and_idsn(KEY_A), (0x6684_0dda, 0xf5a1_01d3_d29d_6f72));
    assert_eq!(token_and_idsn(0), (0xaf55_70f5, 0xe5b2_328d_e0e8_3dfc));
    assert_eq!(token_and_idsn(KEY_B), (0x18f9_781b, 0x2808_18bf_0fa7_e28e));
}

// RFC 6824 §3.1. What `sha1sum` says of the octets of the key, for one.
#[test]
fn token_and_idsn_of_version_0_are_cut_from_the_sha_1() {
    assert_eq!(
        token_and_idsn_v0(KEY_A),
        (0xdd57_83bc, 0x3a95_ed6e_4ebb_4ad5)
    );
    assert_eq!(token_and_idsn_v0(0), (0x05fe_4057, 0xac55_8654_f107_c7e9));
    assert_eq!(
        token_and_idsn_v0(KEY_B),
        (0xa5be_6871, 0x334f_c234_bee4_95ca)
    );
}

// RFC 8684 §3.2: HMAC-A = HMAC(Key-A + Key-B, R-A + R-B), and HMAC-B the other way round; the left
// 160 bits of them.
#[test]
fn join_hmacs_of_both_sides() {
    let a = join_hmac(KEY_A, KEY_B, NONCE_A, NONCE_B);
    let b = join_hmac(KEY_B, KEY_A, NONCE_B, NONCE_A);
    assert_eq!(hex(&a), "d9176d34c58aef526aa49d8d6d869a819519968e");
    assert_eq!(hex(&b), "6129c669ea48a58108795bb4f59689ba974a4e0a");
    assert_eq!(leftmost_64(&b), 0x6129_c669_ea48_a581);
}

// RFC 6824 §3.2: the same of HMAC-SHA1.
#[test]
fn join_hmacs_of_version_0() {
    let a = join_hmac_v0(KEY_A, KEY_B, NONCE_A, NONCE_B);
    let b = join_hmac_v0(KEY_B, KEY_A, NONCE_B, NONCE_A);
    assert_eq!(hex(&a), "692da15a00c47e06eca5032c0f9990603fb22880");
    assert_eq!(hex(&b), "9ee827ad53733eac7e634e4129b29e95716cc227");
    assert_eq!(leftmost_64(&b), 0x9ee8_27ad_5373_3eac);
}

#[test]
fn an_hmac_with_any_bit_wrong_is_refused() {
    let expected = join_hmac(KEY_A, KEY_B, NONCE_A, NONCE_B);
    assert!(join_ack_valid(&expected, &expected));
    for bit in 0..160 {
        let mut wrong = expected;
        wrong[bit / 8] ^= 1 << (bit % 8);
        assert!(!join_ack_valid(&expected, &wrong), "bit {bit}");
    }
    for bit in 0..64 {
        assert!(!hmac_64_valid(KEY_A, KEY_A ^ 1 << bit), "bit {bit}");
        assert!(!Key(KEY_A).matches(KEY_A ^ 1 << bit), "bit {bit}");
    }
    assert!(hmac_64_valid(KEY_A, KEY_A) && Key(KEY_A).matches(KEY_A));
}

// RFC 8684 §3.4.1: rightmost 64 bits; no port counts as two zero octets.
#[test]
fn add_addr_hmacs() {
    let of = |address: &str, port| {
        add_addr_hmac(KEY_A, KEY_B, 7, address.parse().expect("an address"), port)
    };
    assert_eq!(of("192.0.2.1", None), 0xfac4_9336_a8c4_18c7);
    assert_eq!(of("192.0.2.1", Some(8080)), 0x929d_7128_1e4d_3b9e);
    assert_eq!(of("2001:db8::1", None), 0x9392_de43_1267_31fc);
    assert_eq!(of("2001:db8::1", Some(443)), 0x0a9f_42cc_5d3e_d0ca);
}

// RFC 6528 §3: the same 4-tuple climbs with the 4 µs clock; any other is somewhere else, and so is
// the same one under another secret.
#[test]
fn isn_follows_its_clock_and_depends_on_the_whole_tuple() {
    let secrets = Secrets::generate(&mut ChaChaEntropy::deterministic(1));
    let others = Secrets::generate(&mut ChaChaEntropy::deterministic(2));
    let end = |text: &str| -> SocketAddr { text.parse().expect("an address and port") };
    let (src, dst) = (end("192.0.2.1:80"), end("198.51.100.9:40000"));
    let now = Instant::from_millis(1_234);
    let isn = secrets.isn(now, src, dst);
    let a_second_later = secrets.isn(Instant::from_millis(2_234), src, dst);
    assert_eq!(a_second_later.distance(isn), 250_000);
    let mut seen = vec![
        isn.0,
        others.isn(now, src, dst).0,
        secrets.isn(now, dst, src).0,
    ];
    seen.push(secrets.isn(now, end("192.0.2.1:81"), dst).0);
    seen.push(secrets.isn(now, end("192.0.2.2:80"), dst).0);
    seen.push(secrets.isn(now, src, end("198.51.100.9:40001")).0);
    seen.push(secrets.isn(now, src, end("198.51.100.8:40000")).0);
    // The timestamp offset must not give the ISN's secret part away.
    let clock = (now.as_micros() / 4) as u32;
    seen.push(secrets.timestamp_offset(src, dst).wrapping_add(clock));
    let count = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), count);
    assert_eq!(
        secrets.timestamp_offset(src, dst),
        secrets.timestamp_offset(src, dst)
    );
    assert_ne!(
        secrets.timestamp_offset(src, dst),
        secrets.timestamp_offset(dst, src)
    );
}

#[test]
fn secrets_stay_out_of_debug_output() {
    let secrets = Secrets::generate(&mut ChaChaEntropy::deterministic(1));
    assert_eq!(
        format!("{:?} {secrets:?}", Key(KEY_A)),
        "Key(..) Secrets(..)"
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// Known answers, computed with another implementation of both functions: HMAC-SHA-256 under a zero
// secret over "fast open" and period 0, and SipHash-2-4 under its first half. The packetdrill runner
// has them as well.
#[test]
fn fast_open_cookies_are_the_front_of_siphash_under_the_key_of_a_period() {
    let key = fast_open_key(&[0; 16], 0);
    for (client, expected) in [
        ("192.0.2.1", [0x1d, 0xbf, 0x4f, 0x06, 0xee, 0x75]),
        ("fd3d:fa7b:d17d::1", [0xa5, 0xe3, 0xbe, 0x5c, 0xae, 0x8d]),
    ] {
        let client = client.parse().expect("an address");
        assert_eq!(fast_open_cookie(&key, client).as_slice(), expected);
    }
}

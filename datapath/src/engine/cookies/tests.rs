//! Cookies by themselves. What becomes of segments is in `tests/cases/cookies.rs`.

use super::*;
use crate::rand::ChaChaEntropy;

const TICK_MICROS: u64 = 4 << TICK_BITS;

fn secrets() -> Secrets {
    Secrets::generate(&mut ChaChaEntropy::deterministic(1))
}

fn syn_at(micros: u64) -> SynFacts {
    SynFacts {
        local: "192.0.2.1:80".parse().expect("an address"),
        remote: "198.51.100.9:40000".parse().expect("an address"),
        irs: TcpSeq(0x8765_4321),
        timestamps: true,
        tick: tick(Instant(micros * 1_000)),
    }
}

/// What it is for a segment that comes then.
fn decoded_at(secrets: &Secrets, micros: u64, iss: TcpSeq) -> Cookie {
    decode(secrets, syn_at(micros), iss)
}

// RFC 4987 §3.6: time is part of it, so that one that was seen cannot be used for ever.
#[test]
fn a_cookie_is_valid_to_the_last_moment_of_the_next_tick() {
    let secrets = secrets();
    // The clock's 32 bits wrap in between.
    for tick_now in [0, 1, 7, 254, 255, 256, 511] {
        let begins = tick_now * TICK_MICROS;
        for made in [begins, begins + TICK_MICROS / 2, begins + TICK_MICROS - 1] {
            let facts = syn_at(made);
            let iss = encode(&secrets, &facts, 1460);
            let valid = Cookie::Valid { facts, mss: 1460 };
            let last = begins + 2 * TICK_MICROS - 1;
            for now in [made, made + 1, begins + TICK_MICROS, last] {
                assert_eq!(decoded_at(&secrets, now, iss), valid);
            }
            assert_eq!(decoded_at(&secrets, last + 1, iss), Cookie::Wrong);
            // Nor before it was made, but for the wrap of its eight bits.
            if let Some(before) = begins.checked_sub(1) {
                assert_eq!(decoded_at(&secrets, before, iss), Cookie::Wrong);
            }
        }
    }
}

#[test]
fn one_in_so_many_numbers_is_a_cookie() {
    let secrets = secrets();
    let now = 1_000 * TICK_MICROS;
    let iss = encode(&secrets, &syn_at(now), 1460);
    let base = secrets.isn(Instant::ZERO, syn_at(now).local, syn_at(now).remote);
    let number = iss.0.wrapping_sub(base.0);
    let other = |change: u32| {
        let iss = TcpSeq(base.0.wrapping_add(number ^ change));
        decoded_at(&secrets, now, iss)
    };
    let mut kinds = [0; 3];
    for low in 0..1 << TUPLE_BITS {
        kinds[match other(low) {
            Cookie::Valid { .. } => 0,
            Cookie::OfLaterSegment => 1,
            Cookie::Wrong => 2,
        }] += 1;
    }
    // Another MSS is not what was said.
    assert_eq!(kinds, [1, 7, (1 << TUPLE_BITS) - 8]);
    for high in 1..=ALL_MASK {
        assert_eq!(other(high << TUPLE_BITS), Cookie::OfLaterSegment);
    }
    let of_other_ticks = (1..=255).filter(|age| other(age << TICK_BITS) != Cookie::Wrong);
    assert_eq!(of_other_ticks.count(), 0);
}

// A segment of a flow that is over may come late; it acknowledges more than a SYN/ACK.
#[test]
fn acknowledgments_of_text_are_no_cookies() {
    let secrets = secrets();
    let now = 5 * TICK_MICROS;
    let iss = encode(&secrets, &syn_at(now), 1460);
    let mut later = 0;
    for octets in 8..100_000 {
        let mut facts = syn_at(now);
        facts.irs += octets;
        match decode(&secrets, facts, iss + octets) {
            Cookie::Wrong => {}
            Cookie::OfLaterSegment => later += 1,
            Cookie::Valid { .. } => panic!("after {octets} octets"),
        }
    }
    // Eight of every 64.
    assert!(later < 14_000, "{later}");
}

#[test]
fn a_cookie_is_for_one_syn_of_one_flow() {
    let secrets = secrets();
    let now = 5 * TICK_MICROS;
    let facts = syn_at(now);
    let iss = encode(&secrets, &facts, 1460);
    let of = |change: &dyn Fn(&mut SynFacts)| {
        let mut other = facts;
        change(&mut other);
        decode(&secrets, other, iss)
    };
    assert!(matches!(of(&|_| {}), Cookie::Valid { .. }));
    assert_eq!(of(&|f| f.irs += 1), Cookie::OfLaterSegment);
    assert_eq!(of(&|f| f.timestamps = false), Cookie::OfLaterSegment);
    let is_none = |cookie| !matches!(cookie, Cookie::Valid { .. });
    assert!(is_none(of(&|f| f.remote.set_port(40_001))));
    assert!(is_none(of(&|f| f.local.set_port(81))));
    assert!(is_none(of(&|f| f.remote.set_ip([198, 51, 100, 8].into()))));
    let others = Secrets::generate(&mut ChaChaEntropy::deterministic(2));
    assert!(is_none(decode(&others, facts, iss)));
}

// A client whose first text is lost is not to be heard from the next on: nobody would miss the first.
#[test]
fn of_segments_that_come_later_hardly_one_is_taken_for_the_first() {
    let secrets = secrets();
    let facts = syn_at(5 * TICK_MICROS);
    let iss = encode(&secrets, &facts, 1460);
    let taken = (1..1_000_000).filter(|&octets| {
        let mut later = facts;
        later.irs += octets;
        matches!(decode(&secrets, later, iss), Cookie::Valid { .. })
    });
    // One in 2^18; with 12 bits it would be 244.
    assert!(taken.count() < 20);
}

// RFC 9293 §3.7.1: never more than the peer takes.
#[test]
fn the_mss_comes_back_rounded_down() {
    let secrets = secrets();
    for (address, table) in [("192.0.2.1:80", MSS_V4), ("[2001:db8::1]:80", MSS_V6)] {
        let mut facts = syn_at(0);
        facts.local = address.parse().expect("an address");
        for mss in (0..2_000).chain([8_939, 8_940, 8_959, 8_960, 65_535]) {
            let iss = encode(&secrets, &facts, mss);
            let expected = table.into_iter().filter(|&entry| entry <= mss).max();
            let expected = expected.unwrap_or(MSS_MIN);
            let valid = Cookie::Valid {
                facts,
                mss: expected,
            };
            assert_eq!(decode(&secrets, facts, iss), valid, "{mss}");
        }
    }
}

// RFC 6528 §3: numbers of one flow rise with its clock, cookies among them by less than a tick.
#[test]
fn cookies_keep_the_pace_of_other_initial_sequence_numbers() {
    let secrets = secrets();
    for micros in (0..3 * TICK_MICROS).step_by(7_777_777) {
        let facts = syn_at(micros);
        let plain = secrets.isn(Instant(micros * 1_000), facts.local, facts.remote);
        let ahead = encode(&secrets, &facts, 536).offset_from(plain);
        assert!(ahead.unsigned_abs() < 1 << TICK_BITS, "{ahead}");
    }
}

// RFC 8684 §3.1: verifiable, hard to guess, another one for every SYN.
#[test]
fn keys_name_the_number_they_were_drawn_with() {
    let secrets = secrets();
    let facts = syn_at(0);
    let mut keys = Vec::new();
    for number in 0..=u8::MAX {
        let key = secrets.cookie_key(&facts, number);
        assert_eq!(key as u8, number);
        keys.push(key);
    }
    let later = syn_at(TICK_MICROS);
    let mut other = facts;
    other.irs += 1;
    keys.extend([secrets.cookie_key(&later, 0), secrets.cookie_key(&other, 0)]);
    for key in &mut keys {
        *key >>= 8;
    }
    let drawn = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), drawn);
}

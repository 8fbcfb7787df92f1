use super::*;

fn mptcp(mptcp: MptcpOptions) -> TcpOptions {
    TcpOptions {
        mptcp,
        ..TcpOptions::default()
    }
}

fn octets(hex: &str) -> Vec<u8> {
    let digits: String = hex.split_whitespace().collect();
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex digits"))
        .collect()
}

/// Every option with its octets, written down from the figures of RFC 8684 §3, RFC 6824 §3 (where
/// version 0 has forms of its own), RFC 9293 §3.1, RFC 7323 §2.2 and §3.2 and RFC 2018 §2 and §3. Reserved bits are 0.
fn known() -> Vec<(&'static str, TcpOptions)> {
    let none = MptcpOptions::default();
    let capable_of = |version, flags, content| {
        mptcp(MptcpOptions {
            capable: Some(MpCapable {
                version,
                flags,
                content,
            }),
            ..none
        })
    };
    let capable = |flags, content| capable_of(1, flags, content);
    let join = |join| {
        mptcp(MptcpOptions {
            join: Some(join),
            ..none
        })
    };
    let dss = |data_ack, mapping, data_fin| {
        mptcp(MptcpOptions {
            dss: Some(Dss {
                data_ack,
                mapping,
                data_fin,
            }),
            ..none
        })
    };
    let add_addr = |address: &str, port, form| {
        let address = address.parse().expect("an address");
        mptcp(MptcpOptions {
            add_addr: Some(AddAddr {
                address_id: 7,
                address,
                port,
                form,
            }),
            ..none
        })
    };
    let mapping = |dsn, checksum| {
        Some(DssMapping {
            dsn,
            subflow_seq: 0x0101_0202,
            len: 0x0578,
            checksum,
        })
    };
    let (sender_key, receiver_key) = (0x0102_0304_0506_0708, 0x1112_1314_1516_1718);
    let four = DsnWidth::Four(0xd1d2_d3d4);
    let eight = DsnWidth::Eight(0xe1e2_e3e4_e5e6_e7e8);
    let hmac = AddAddrForm::Signed(0x8182_8384_8586_8788);
    let (echo, bare) = (AddAddrForm::Echo, AddAddrForm::Bare);
    let prio = |backup, address_id| {
        mptcp(MptcpOptions {
            prio: Some(MpPrio { backup, address_id }),
            ..none
        })
    };
    let sack = |edges: &[(u32, u32)]| {
        let mut sack = SackBlocks::default();
        for (left, right) in edges {
            assert!(sack.push(TcpSeq(*left), TcpSeq(*right)));
        }
        TcpOptions {
            sack,
            ..Default::default()
        }
    };
    vec![
        ("02 04 05b4", TcpOptions { mss: Some(1460), ..Default::default() }),
        ("03 03 07", TcpOptions { window_scale: Some(7), ..Default::default() }),
        ("04 02", TcpOptions { sack_permitted: true, ..Default::default() }),
        ("05 0a 00001000 00002000", sack(&[(0x1000, 0x2000)])),
        (
            "05 22 00000001 00000002 00000003 00000004 00000005 00000006 00000007 00000008",
            sack(&[(1, 2), (3, 4), (5, 6), (7, 8)]),
        ),
        ("1e 04 01 81", capable(0x81, CapableContent::Syn)),
        ("1e 0c 01 01 0102030405060708", capable(0x01, CapableContent::SynAck { sender_key })),
        (
            "1e 14 01 01 0102030405060708 1112131415161718",
            capable(0x01, CapableContent::Ack { sender_key, receiver_key }),
        ),
        (
            "1e 16 01 01 0102030405060708 1112131415161718 0200",
            capable(
                0x01,
                CapableContent::Data { sender_key, receiver_key, data_len: 512, checksum: None },
            ),
        ),
        (
            "1e 18 01 81 0102030405060708 1112131415161718 0200 abcd",
            capable(
                0x81,
                CapableContent::Data {
                    sender_key,
                    receiver_key,
                    data_len: 512,
                    checksum: Some(0xabcd),
                },
            ),
        ),
        ("1e 0c 00 81 0102030405060708", capable_of(0, 0x81, CapableContent::SynAck { sender_key })),
        (
            "1e 14 00 01 0102030405060708 1112131415161718",
            capable_of(0, 0x01, CapableContent::Ack { sender_key, receiver_key }),
        ),
        (
            "1e 0c 11 07 a1a2a3a4 b1b2b3b4",
            join(MpJoin::Syn { backup: true, address_id: 7, token: 0xa1a2_a3a4, nonce: 0xb1b2_b3b4 }),
        ),
        (
            "1e 10 10 07 8182838485868788 b1b2b3b4",
            join(MpJoin::SynAck {
                backup: false,
                address_id: 7,
                hmac: 0x8182_8384_8586_8788,
                nonce: 0xb1b2_b3b4,
            }),
        ),
        (
            "1e 18 10 00 0101010101010101010101010101010101010102",
            join(MpJoin::Ack { hmac: *b"\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x02" }),
        ),
        ("1e 08 20 01 d1d2d3d4", dss(Some(four), None, false)),
        ("1e 0c 20 03 e1e2e3e4e5e6e7e8", dss(Some(eight), None, false)),
        ("1e 0e 20 04 d1d2d3d4 01010202 0578", dss(None, mapping(four, None), false)),
        (
            "1e 10 20 04 d1d2d3d4 01010202 0578 abcd",
            dss(None, mapping(four, Some(0xabcd)), false),
        ),
        ("1e 12 20 0c e1e2e3e4e5e6e7e8 01010202 0578", dss(None, mapping(eight, None), false)),
        (
            "1e 12 20 15 d1d2d3d4 d1d2d3d4 01010202 0578",
            dss(Some(four), mapping(four, None), true),
        ),
        (
            "1e 1c 20 1f e1e2e3e4e5e6e7e8 e1e2e3e4e5e6e7e8 01010202 0578 abcd",
            dss(Some(eight), mapping(eight, Some(0xabcd)), true),
        ),
        ("1e 10 30 07 c0000201 8182838485868788", add_addr("192.0.2.1", None, hmac)),
        ("1e 12 30 07 c0000201 1f90 8182838485868788", add_addr("192.0.2.1", Some(8080), hmac)),
        (
            "1e 1c 30 07 20010db8000000000000000000000001 8182838485868788",
            add_addr("2001:db8::1", None, hmac),
        ),
        (
            "1e 1e 30 07 20010db8000000000000000000000001 1f90 8182838485868788",
            add_addr("2001:db8::1", Some(8080), hmac),
        ),
        ("1e 08 31 07 c0000201", add_addr("192.0.2.1", None, echo)),
        ("1e 0a 31 07 c0000201 1f90", add_addr("192.0.2.1", Some(8080), echo)),
        ("1e 14 31 07 20010db8000000000000000000000001", add_addr("2001:db8::1", None, echo)),
        (
            "1e 16 31 07 20010db8000000000000000000000001 1f90",
            add_addr("2001:db8::1", Some(8080), echo),
        ),
        ("1e 08 34 07 c0000201", add_addr("192.0.2.1", None, bare)),
        ("1e 0a 34 07 c0000201 1f90", add_addr("192.0.2.1", Some(8080), bare)),
        ("1e 14 36 07 20010db8000000000000000000000001", add_addr("2001:db8::1", None, bare)),
        (
            "1e 16 36 07 20010db8000000000000000000000001 1f90",
            add_addr("2001:db8::1", Some(8080), bare),
        ),
        (
            "1e 04 40 05",
            mptcp(MptcpOptions { remove_addr: RemoveAddr::new(&[5]), ..none }),
        ),
        (
            "1e 06 40 05 06 09",
            mptcp(MptcpOptions { remove_addr: RemoveAddr::new(&[5, 6, 9]), ..none }),
        ),
        ("1e 03 51", prio(true, None)),
        ("1e 04 50 07", prio(false, Some(7))),
        (
            "1e 0c 60 00 e1e2e3e4e5e6e7e8",
            mptcp(MptcpOptions { fail: Some(MpFail { dsn: 0xe1e2_e3e4_e5e6_e7e8 }), ..none }),
        ),
        (
            "1e 0c 70 00 1112131415161718",
            mptcp(MptcpOptions { fastclose: Some(MpFastclose { receiver_key }), ..none }),
        ),
        (
            "1e 04 81 02",
            mptcp(MptcpOptions {
                tcprst: Some(MpTcprst { transient: true, reason: 2 }),
                ..none
            }),
        ),
    ]
}

#[test]
fn known_octets_are_read_and_written() {
    for (hex, options) in known() {
        let octets = octets(hex);
        assert_eq!(TcpOptions::parse(&octets), options, "{hex}");
        assert_eq!(usize::from(octets[1]), octets.len(), "{hex}");
        let mut field = [0xff; TcpOptions::MAX_LEN];
        let len = options.emit(&mut field);
        assert_eq!(len, octets.len().next_multiple_of(4), "{hex}");
        assert_eq!(len, options.len(), "{hex}");
        let written: Vec<_> = field[..len].to_vec();
        let padding = len - octets.len();
        let before: Vec<_> = [vec![1; padding], octets.clone()].concat();
        let after: Vec<_> = [octets, vec![1; padding]].concat();
        assert!(
            written == before || written == after,
            "{hex}: {written:02x?}"
        );
    }
}

// RFC 8684 §3 gives each option its exact lengths; one with another is ignored, and what follows
// it is read all the same.
#[test]
fn an_option_one_octet_longer_or_shorter_is_ignored_and_the_next_one_read() {
    let follower = octets("08 0a 01020304 05060708");
    let follower_mptcp = octets("1e 04 81 02");
    for (hex, options) in known() {
        let octets = octets(hex);
        // REMOVE_ADDR has any length from 4 on.
        let lengths: &[usize] = match octets[..] {
            [30, _, 0x40, ..] => &[3],
            // MP_PRIO has two.
            [30, 3 | 4, 0x50 | 0x51, ..] => &[2, 5],
            _ => &[octets.len() - 1, octets.len() + 1],
        };
        for &len in lengths {
            let mut wrong = octets.clone();
            wrong.resize(len.max(2), 0);
            wrong[1] = len as u8;
            let next = if options.mptcp.is_empty() {
                &follower_mptcp
            } else {
                &follower
            };
            let field = [&wrong[..], next].concat();
            // A bare kind and a length of 1 end the reading instead.
            let expected = if len < 2 {
                TcpOptions::default()
            } else {
                TcpOptions::parse(next)
            };
            assert_eq!(
                TcpOptions::parse(&field),
                expected,
                "{hex} with length {len}"
            );
        }
    }
}

// RFC 8684 §3.3: A, a, M, m tell what is there; "a" and "m" mean nothing without "A" and "M", F
// takes no room, reserved bits are ignored, and a checksum is told by the length alone.
#[test]
fn dss_has_exactly_the_lengths_that_its_flags_say() {
    for flags in 0..=255u8 {
        let ack = match flags & 0b11 {
            0b00 | 0b10 => 0,
            0b01 => 4,
            _ => 8,
        };
        let mapping = match flags >> 2 & 0b11 {
            0b00 | 0b10 => 0,
            0b01 => 10,
            _ => 14,
        };
        for len in 3..=40usize {
            let mut field = vec![0x5a; len];
            field[..4.min(len)].copy_from_slice(&[30, len as u8, 0x20, flags][..4.min(len)]);
            let dss = TcpOptions::parse(&field).mptcp.dss;
            let plain = len == 4 + ack + mapping;
            let with_checksum = mapping != 0 && len == 4 + ack + mapping + 2;
            assert_eq!(
                dss.is_some(),
                plain || with_checksum,
                "flags {flags:#x}, length {len}"
            );
            if let Some(dss) = dss {
                assert_eq!(dss.data_fin, flags & 0x10 != 0);
                assert_eq!(dss.data_ack.is_some(), ack != 0);
                assert_eq!(dss.mapping.is_some(), mapping != 0);
                let checksum = dss.mapping.and_then(|mapping| mapping.checksum);
                assert_eq!(checksum, with_checksum.then_some(0x5a5a));
            }
        }
    }
}

// RFC 6824 §3.1: MP_CAPABLE of version 0 has one key or two, and never any data.
#[test]
fn mp_capable_of_version_0_has_two_lengths() {
    for hex in [
        "1e 04 00 81",
        "1e 16 00 01 0102030405060708 1112131415161718 0200",
        "1e 18 00 81 0102030405060708 1112131415161718 0200 abcd",
    ] {
        let field = [octets(hex), octets("02 04 05b4")].concat();
        let options = TcpOptions {
            mss: Some(1460),
            ..Default::default()
        };
        assert_eq!(TcpOptions::parse(&field), options, "{hex}");
    }
}

#[test]
fn the_first_of_two_counts() {
    let field = octets("1e 03 50  1e 03 51  02 04 0200  02 04 0300");
    let options = TcpOptions::parse(&field);
    assert_eq!(
        options.mptcp.prio,
        Some(MpPrio {
            backup: false,
            address_id: None
        })
    );
    assert_eq!(options.mss, Some(0x200));
    // One of a wrong size is no option at all.
    let field = octets("1e 05 50 00 00  1e 03 51");
    assert_eq!(
        TcpOptions::parse(&field).mptcp.prio,
        Some(MpPrio {
            backup: true,
            address_id: None
        })
    );
}

// RFC 9293 §3.1: option 0 ends the list; a length that can't be right (MUST-7) does so too.
#[test]
fn the_list_ends_where_it_must() {
    let mss = TcpOptions {
        mss: Some(1460),
        ..Default::default()
    };
    for end in [
        "00",
        "63 00",
        "63 01",
        "63",
        "63 05 00 00",
        "1e",
        "1e 00",
        "1e ff",
    ] {
        let field = octets(&format!("02 04 05b4 {end} 04 02"));
        assert_eq!(TcpOptions::parse(&field), mss, "after {end}");
    }
    // Unknown kinds and subtypes are skipped by their length.
    let field = octets("63 05 000000 01 1e 04 f0 00 1e 02 02 04 05b4");
    assert_eq!(TcpOptions::parse(&field), mss);
}

// Linux's order; values on 4-octet boundaries (RFC 7323 Appendix A).
#[test]
fn options_of_a_syn_ack_are_aligned() {
    let options = TcpOptions {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps: Some(Timestamps { tsval: 1, tsecr: 2 }),
        mptcp: MptcpOptions {
            capable: Some(MpCapable {
                version: 1,
                flags: MpCapable::FLAG_SHA256,
                content: CapableContent::SynAck { sender_key: 3 },
            }),
            ..MptcpOptions::default()
        },
        ..TcpOptions::default()
    };
    let mut field = [0; TcpOptions::MAX_LEN];
    let len = options.emit(&mut field);
    let expected = octets(
        "02 04 05b4  04 02 08 0a 00000001 00000002  01 03 03 07  1e 0c 01 01 0000000000000003",
    );
    assert_eq!(field[..len], expected);
}

// An ADD_ADDR of 30 octets and timestamps of 10 leave no room for padding.
#[test]
fn padding_gives_way_where_options_would_not_fit_with_it() {
    let options = TcpOptions {
        timestamps: Some(Timestamps { tsval: 1, tsecr: 2 }),
        mptcp: MptcpOptions {
            add_addr: Some(AddAddr {
                address_id: 1,
                address: "2001:db8::1".parse().expect("an address"),
                port: Some(443),
                form: AddAddrForm::Signed(9),
            }),
            ..MptcpOptions::default()
        },
        ..TcpOptions::default()
    };
    assert!(options.fits());
    assert_eq!(options.len(), TcpOptions::MAX_LEN);
    let mut field = [0; TcpOptions::MAX_LEN];
    assert_eq!(options.emit(&mut field), TcpOptions::MAX_LEN);
    assert_eq!(TcpOptions::parse(&field), options);
    assert!(
        !TcpOptions {
            sack_permitted: true,
            ..options
        }
        .fits()
    );
}

// Without padding 30 + 7 + 3 octets are 40 to the octet.
#[test]
fn padding_gives_way_down_to_the_last_octet() {
    let options = mptcp(MptcpOptions {
        add_addr: Some(AddAddr {
            address_id: 1,
            address: "2001:db8::1".parse().expect("an address"),
            port: Some(443),
            form: AddAddrForm::Signed(9),
        }),
        remove_addr: RemoveAddr::new(&[1, 2, 3, 4]),
        prio: Some(MpPrio {
            backup: true,
            address_id: None,
        }),
        ..MptcpOptions::default()
    });
    assert!(options.fits());
    let mut field = [0; TcpOptions::MAX_LEN];
    assert_eq!(options.emit(&mut field), TcpOptions::MAX_LEN);
    assert_eq!(TcpOptions::parse(&field), options);
}

proptest! {
    #[test]
    fn what_fits_is_read_back(options in fitting_options()) {
        let mut field = [0xff; TcpOptions::MAX_LEN];
        let len = options.emit(&mut field);
        prop_assert_eq!(len, options.len());
        prop_assert_eq!(len % 4, 0);
        prop_assert_eq!(TcpOptions::parse(&field[..len]), options);
        prop_assert!(field[len..].iter().all(|octet| *octet == 0xff));
    }

    #[test]
    fn length_never_exceeds_a_header(options in any_options()) {
        prop_assert!(options.len() <= TcpOptions::MAX_LEN);
    }

    /// A caller that did not budget stops a debug build; elsewhere it loses whole options and
    /// never sends half of one.
    #[cfg(not(debug_assertions))]
    #[test]
    fn what_does_not_fit_is_left_out_whole(options in any_options()) {
        let mut field = [0; TcpOptions::MAX_LEN];
        let len = options.emit(&mut field);
        prop_assert_eq!(len, options.len());
        let sent = TcpOptions::parse(&field[..len]);
        prop_assert_eq!(sent == options, options.fits());
        prop_assert!(sent.mss.is_none() || sent.mss == options.mss);
        prop_assert!(sent.sack.is_empty() || sent.sack == options.sack);
        prop_assert!(sent.mptcp.dss.is_none() || sent.mptcp.dss == options.mptcp.dss);
    }

    /// Any octets at all, biased towards the kinds and lengths that exist: no panic, and what was
    /// understood fits in a header and survives being sent on.
    #[test]
    fn hostile_octets_are_understood_or_ignored(
        parts in proptest::collection::vec(
            (
                prop_oneof![
                    4 => Just(30u8),
                    4 => prop_oneof![Just(0u8), Just(1), Just(2), Just(3), Just(4), Just(5), Just(8)],
                    1 => any::<u8>(),
                ],
                prop_oneof![3 => 0u8..=30, 1 => any::<u8>()],
                proptest::collection::vec(any::<u8>(), 0..=30),
            ),
            0..6,
        ),
    ) {
        let mut field: Vec<u8> = Vec::new();
        for (kind, len, body) in parts {
            field.extend([kind, len]);
            let mut body = body.into_iter().cycle();
            field.extend((2..len.min(40)).map(|_| body.next().unwrap_or(0)));
        }
        field.truncate(TcpOptions::MAX_LEN);
        let options = TcpOptions::parse(&field);
        prop_assert!(options.fits());
        let mut sent = [0; TcpOptions::MAX_LEN];
        let len = options.emit(&mut sent);
        prop_assert_eq!(TcpOptions::parse(&sent[..len]), options);
    }
}

use super::*;
use crate::wire::frame::{Segment, emit, header_len};
use crate::wire::{ParseError, checksum};
use etherparse::{
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6Header,
    Ipv6RawExtHeader, NetSlice, PacketBuilder, SlicedPacket, TransportSlice,
};
use mpx_ebpf::decode::{Join, Walk, echoed_timestamp, join, walk};
use std::net::{Ipv4Addr, Ipv6Addr};

/// All that goes into a frame.
#[derive(Clone, Debug)]
struct Parts {
    link: Link,
    src: IpAddr,
    dst: IpAddr,
    traffic_class: u8,
    tcp: TcpHeader,
    payload: Vec<u8>,
}

impl Parts {
    fn frame(&self) -> Vec<u8> {
        let start = header_len(&self.link, &self.src, &self.tcp.options);
        let mut frame = vec![0xee; start + self.payload.len()];
        let sum = checksum::copy_and_sum(&mut frame[start..], &self.payload);
        let len = emit(
            &mut frame,
            &self.link,
            self.src,
            self.dst,
            self.traffic_class,
            &self.tcp,
            self.payload.len(),
            sum,
        );
        assert_eq!(len, frame.len());
        frame
    }
}

fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    prop_oneof![
        any::<(Ipv4Addr, Ipv4Addr)>().prop_map(|(src, dst)| (src.into(), dst.into())),
        (ipv6_address(), ipv6_address()).prop_map(|(src, dst)| (src.into(), dst.into())),
    ]
}

/// Uniform: the built-in strategy makes every other address an IPv4-mapped one, which no packet has.
fn ipv6_address() -> impl Strategy<Value = Ipv6Addr> {
    any::<u128>().prop_map(Ipv6Addr::from)
}

fn parts() -> impl Strategy<Value = Parts> {
    let payload = proptest::collection::vec(any::<u8>(), 0..200);
    (link(), addresses(), any::<u8>(), header(), payload).prop_map(
        |(link, (src, dst), traffic_class, tcp, payload)| Parts {
            link,
            src,
            dst,
            traffic_class,
            tcp,
            payload,
        },
    )
}

fn example(src: &str, dst: &str) -> Parts {
    Parts {
        link: Link {
            src: [2, 0, 0, 0, 0, 1],
            dst: [2, 0, 0, 0, 0, 2],
            vlans: [None; 2],
        },
        src: src.parse().expect("an address"),
        dst: dst.parse().expect("an address"),
        traffic_class: 0,
        tcp: TcpHeader {
            src_port: 80,
            dst_port: 40_000,
            seq: TcpSeq(1000),
            ack: TcpSeq(2000),
            flags: TcpFlags::ACK | TcpFlags::PSH,
            window: 500,
            urgent: 0,
            options: TcpOptions {
                timestamps: Some(Timestamps { tsval: 5, tsecr: 6 }),
                mptcp: MptcpOptions {
                    dss: Some(Dss {
                        data_ack: Some(DsnWidth::Eight(1)),
                        mapping: Some(DssMapping {
                            dsn: DsnWidth::Eight(2),
                            subflow_seq: 3,
                            len: 13,
                            checksum: Some(4),
                        }),
                        data_fin: false,
                    }),
                    ..MptcpOptions::default()
                },
                ..TcpOptions::default()
            },
        },
        payload: b"thirteen oct.".to_vec(),
    }
}

fn example_v4() -> Parts {
    example("192.0.2.1", "198.51.100.2")
}

fn example_v6() -> Parts {
    example("2001:db8::1", "2001:db8::2")
}

/// Octets of Ethernet header and tags of `frame`.
fn ip_at(frame: &[u8]) -> usize {
    let mut at = 14;
    while matches!(frame[at - 2..at], [0x81, 0x00] | [0x88, 0xa8]) {
        at += 4;
    }
    at
}

/// Sets the checksums right again, where the headers still say where they are.
fn mend(frame: &mut [u8]) {
    let ip_at = ip_at(frame);
    let (tcp_at, end, mut pseudo) = match frame[ip_at] >> 4 {
        4 => {
            let tcp_at = ip_at + 4 * usize::from(frame[ip_at] & 15);
            let end = ip_at + usize::from(u16::from_be_bytes([frame[ip_at + 2], frame[ip_at + 3]]));
            let Some(header) = frame
                .get_mut(ip_at..tcp_at)
                .filter(|header| header.len() >= 20)
            else {
                return;
            };
            header[10..12].copy_from_slice(&[0, 0]);
            let sum = !naive_sum(header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            (tcp_at, end, header[12..20].to_vec())
        }
        _ => {
            let end =
                ip_at + 40 + usize::from(u16::from_be_bytes([frame[ip_at + 4], frame[ip_at + 5]]));
            let Walk::Segment(segment) = walk(frame) else {
                return;
            };
            (
                segment.tcp_offset,
                end,
                [segment.source, segment.destination].concat(),
            )
        }
    };
    let Some(tcp) = frame.get_mut(tcp_at..end).filter(|tcp| tcp.len() >= 20) else {
        return;
    };
    pseudo.extend((tcp.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, 6]);
    tcp[16..18].copy_from_slice(&[0, 0]);
    pseudo.extend_from_slice(tcp);
    let sum = !naive_sum(&pseudo);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
}

/// What the header walk of the XDP program must say of a frame in which we found a segment.
fn assert_walk_agrees(frame: &[u8], segment: &Segment<'_>) {
    match walk(frame) {
        Walk::Segment(found) => {
            assert_eq!(found.source, mpx_ebpf::address_octets(segment.src));
            assert_eq!(found.destination, mpx_ebpf::address_octets(segment.dst));
            assert_eq!(found.source_port, segment.tcp.src_port);
            assert_eq!(found.destination_port, segment.tcp.dst_port);
            assert_eq!(found.flags, segment.tcp.flags.0);
            let data_offset = 4 * usize::from(frame[found.tcp_offset + 12] >> 4);
            let payload_at = segment.payload.as_ptr() as usize - frame.as_ptr() as usize;
            assert_eq!(found.tcp_offset + data_offset, payload_at);
            assert_eq!(found.options_len, data_offset - 20);
            let options = &segment.tcp.options;
            let echoed = options.timestamps.map(|t| t.tsecr);
            assert_eq!(echoed_timestamp(frame, &found), echoed);
            match (join(frame, &found), options.mptcp.join) {
                (Join::Token(found), Some(MpJoin::Syn { token, .. })) => assert_eq!(found, token),
                (Join::Malformed, Some(MpJoin::SynAck { .. } | MpJoin::Ack { .. })) => {}
                // One of another length is as good as absent.
                (Join::None | Join::Malformed, None) => {}
                disagree => panic!("{disagree:?} in {segment:?}"),
            }
        }
        // It follows extension headers less far.
        Walk::TooDeep { .. } => {}
        other => panic!("{other:?} where there is {segment:?}"),
    }
}

#[test]
fn every_flipped_bit_of_an_ipv4_packet_is_noticed() {
    let frame = example_v4().frame();
    for bit in 14 * 8..frame.len() * 8 {
        let mut flipped = frame.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(
            Segment::parse(&flipped).is_err(),
            "octet {} bit {}",
            bit / 8,
            bit % 8
        );
    }
}

// IPv6 has no checksum of its own: traffic class, flow label and hop limit go unchecked.
#[test]
fn every_flipped_bit_of_an_ipv6_packet_is_noticed_but_where_nothing_covers_it() {
    let frame = example_v6().frame();
    for bit in 14 * 8..frame.len() * 8 {
        let mut flipped = frame.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let unchecked = match bit / 8 - 14 {
            0 => bit % 8 < 4,
            1..=3 | 7 => true,
            _ => false,
        };
        assert_eq!(
            Segment::parse(&flipped).is_ok(),
            unchecked,
            "octet {}",
            bit / 8
        );
    }
}

#[test]
fn a_frame_cut_anywhere_is_truncated() {
    for parts in [example_v4(), example_v6()] {
        let frame = parts.frame();
        for len in 0..frame.len() {
            assert_eq!(
                Segment::parse(&frame[..len]),
                Err(ParseError::Truncated),
                "{len} octets"
            );
        }
    }
}

#[test]
fn each_refusal_has_its_reason() {
    let with = |parts: Parts, changes: &[(usize, u8)]| {
        let mut frame = parts.frame();
        for (at, octet) in changes {
            frame[*at] = *octet;
        }
        mend(&mut frame);
        Segment::parse(&frame).map(|_| ())
    };
    let v4 = |changes: &[(usize, u8)]| with(example_v4(), changes);
    let v6 = |changes: &[(usize, u8)]| with(example_v6(), changes);
    assert_eq!(v4(&[]), Ok(()));
    assert_eq!(v6(&[]), Ok(()));
    assert_eq!(v4(&[(13, 0x06)]), Err(ParseError::NotTcp), "ARP");
    assert_eq!(v4(&[(23, 17)]), Err(ParseError::NotTcp), "UDP");
    assert_eq!(v6(&[(20, 17)]), Err(ParseError::NotTcp), "UDP");
    assert_eq!(
        v4(&[(20, 0x60)]),
        Err(ParseError::Fragment),
        "more fragments"
    );
    assert_eq!(v4(&[(21, 0x01)]), Err(ParseError::Fragment), "offset");
    assert_eq!(v4(&[(14, 0x65)]), Err(ParseError::BadHeader), "version 6");
    assert_eq!(v6(&[(14, 0x40)]), Err(ParseError::BadHeader), "version 4");
    assert_eq!(v4(&[(14, 0x44)]), Err(ParseError::BadHeader), "IHL 4");
    assert_eq!(
        v4(&[(16, 0), (17, 19)]),
        Err(ParseError::BadHeader),
        "total length 19"
    );
    assert_eq!(
        v4(&[(16, 0), (17, 39)]),
        Err(ParseError::Truncated),
        "half a TCP header"
    );
    assert_eq!(
        v4(&[(16, 0xff)]),
        Err(ParseError::Truncated),
        "total length beyond the frame"
    );
    assert_eq!(
        v6(&[(18, 0xff)]),
        Err(ParseError::Truncated),
        "payload beyond the frame"
    );
    assert_eq!(
        v4(&[(46, 0x40)]),
        Err(ParseError::BadHeader),
        "data offset 4"
    );
    assert_eq!(
        v4(&[(16, 0), (17, 70)]),
        Err(ParseError::Truncated),
        "options beyond the packet"
    );

    let mut frame = example_v4().frame();
    frame[24] ^= 1;
    assert_eq!(Segment::parse(&frame), Err(ParseError::BadIpChecksum));
    let mut frame = example_v6().frame();
    let last = frame.len() - 1;
    frame[last] ^= 1;
    assert_eq!(Segment::parse(&frame), Err(ParseError::BadTcpChecksum));
    // RFC 4291 §2.5.5.2: not an address of a packet.
    let mapped = example("2001:db8::1", "::ffff:192.0.2.1").frame();
    assert_eq!(Segment::parse(&mapped), Err(ParseError::BadHeader));
}

#[test]
fn a_third_vlan_tag_is_too_deep() {
    let parts = example_v4();
    let frame = parts.frame();
    let tagged = |tags: usize| {
        let tag = [0x81, 0x00, 0x00, 0x07];
        [&frame[..12], &tag.repeat(tags), &frame[12..]].concat()
    };
    for tags in 0..=2 {
        let frame = tagged(tags);
        let segment = Segment::parse(&frame).expect("a segment");
        assert_eq!(segment.link.vlans.iter().flatten().count(), tags);
        assert_walk_agrees(&frame, &segment);
    }
    assert_eq!(Segment::parse(&tagged(3)), Err(ParseError::TooDeep));
}

/// `example_v6` with extension headers of 8 octets before TCP.
fn with_extensions(headers: &[(u8, [u8; 2])]) -> Vec<u8> {
    let mut frame = example_v6().frame();
    let mut chain = Vec::new();
    for (at, (_, data)) in headers.iter().enumerate() {
        let next = headers.get(at + 1).map_or(6, |(kind, _)| *kind);
        chain.extend([next, 0, data[0], data[1], 0, 0, 0, 0]);
    }
    if let Some((kind, _)) = headers.first() {
        frame[20] = *kind;
    }
    let len = u16::from_be_bytes([frame[18], frame[19]]) + chain.len() as u16;
    frame[18..20].copy_from_slice(&len.to_be_bytes());
    frame.splice(54..54, chain);
    frame
}

// RFC 8200 §4.
#[test]
fn extension_headers_are_skipped_up_to_the_limit_of_the_xdp_program() {
    const PADN: [u8; 2] = [1, 4];
    let chain = [
        (0, PADN),
        (60, PADN),
        (43, [4, 0]),
        (60, PADN),
        (60, PADN),
        (60, PADN),
    ];
    for count in 0..=chain.len() {
        let frame = with_extensions(&chain[..count]);
        let segment = Segment::parse(&frame).expect("a segment behind its extension headers");
        assert_eq!(segment.payload, example_v6().payload);
        assert_walk_agrees(&frame, &segment);
    }
    let one_more = [&chain[..], &[(60, PADN)]].concat();
    assert_eq!(
        Segment::parse(&with_extensions(&one_more)),
        Err(ParseError::TooDeep)
    );
    assert!(matches!(
        walk(&with_extensions(&one_more)[..]),
        Walk::TooDeep { .. }
    ));
    // Even the only fragment of a packet (RFC 6946) is one.
    let fragment = with_extensions(&[(0, PADN), (44, [0, 0])]);
    assert_eq!(Segment::parse(&fragment), Err(ParseError::Fragment));
    assert!(matches!(walk(&fragment[..]), Walk::FirstFragment { .. }));
    // A route that does not end here.
    let on_the_way = with_extensions(&[(43, [4, 1])]);
    assert_eq!(Segment::parse(&on_the_way), Err(ParseError::NotTcp));
}

#[test]
fn an_extension_header_can_not_reach_beyond_the_packet() {
    let mut frame = with_extensions(&[(60, [1, 4])]);
    for units in 1..=255 {
        frame[55] = units;
        assert!(Segment::parse(&frame).is_err(), "{units} units of 8 octets");
    }
}

#[test]
fn segment_length_counts_syn_and_fin() {
    let mut parts = example_v4();
    for (flags, extra) in [
        (TcpFlags::ACK, 0),
        (TcpFlags::SYN, 1),
        (TcpFlags::FIN | TcpFlags::SYN | TcpFlags::ACK, 2),
    ] {
        parts.tcp.flags = flags;
        let frame = parts.frame();
        let segment = Segment::parse(&frame).expect("a segment");
        assert_eq!(segment.segment_len(), parts.payload.len() + extra);
    }
    assert_eq!(
        format!("{:?} {:?}", TcpFlags(0x12), TcpFlags(0)),
        "SYN|ACK -"
    );
}

proptest! {
    #[test]
    fn segments_are_read_back_whatever_padding_follows(
        parts in parts(),
        padding in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let frame = [parts.frame(), padding].concat();
        let segment = Segment::parse(&frame).expect("what we sent is a segment");
        let expected = Segment {
            link: parts.link,
            src: parts.src,
            dst: parts.dst,
            traffic_class: parts.traffic_class,
            tcp: parts.tcp,
            payload: &parts.payload,
            payload_sum: naive_sum(&parts.payload),
        };
        prop_assert_eq!(&segment, &expected);
        assert_walk_agrees(&frame, &segment);
        let back = segment.link.reversed();
        prop_assert_eq!((back.src, back.dst), (parts.link.dst, parts.link.src));
        prop_assert_eq!(back.vlans, parts.link.vlans);
    }

    #[test]
    fn etherparse_reads_what_we_write(parts in parts()) {
        let frame = parts.frame();
        let packet = SlicedPacket::from_ethernet(&frame).expect("a well-formed frame");
        let vlans: Vec<u16> = packet.vlan_ids().iter().map(|id| id.value()).collect();
        let sent = parts.link.vlans.iter().flatten().map(|(_, tci)| tci & 0xfff);
        prop_assert_eq!(vlans, sent.collect::<Vec<_>>());
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("not TCP") };
        match packet.net {
            Some(NetSlice::Ipv4(ip)) => {
                let ip = ip.header();
                prop_assert_eq!(IpAddr::from(ip.source_addr()), parts.src);
                prop_assert_eq!(IpAddr::from(ip.destination_addr()), parts.dst);
                prop_assert_eq!(ip.dcp().value() << 2 | ip.ecn().value(), parts.traffic_class);
                prop_assert!(ip.dont_fragment());
                prop_assert_eq!((ip.ttl(), ip.identification()), (64, 0));
                prop_assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
                let expected = tcp.calc_checksum_ipv4(ip.source(), ip.destination());
                prop_assert_eq!(Ok(tcp.checksum()), expected);
            }
            Some(NetSlice::Ipv6(ip)) => {
                let ip = ip.header();
                prop_assert_eq!(IpAddr::from(ip.source_addr()), parts.src);
                prop_assert_eq!(IpAddr::from(ip.destination_addr()), parts.dst);
                prop_assert_eq!(ip.traffic_class(), parts.traffic_class);
                prop_assert_eq!(ip.hop_limit(), 64);
                let expected = tcp.calc_checksum_ipv6(ip.source(), ip.destination());
                prop_assert_eq!(Ok(tcp.checksum()), expected);
            }
            other => panic!("{other:?}"),
        }
        let flags = [tcp.fin(), tcp.syn(), tcp.rst(), tcp.psh(), tcp.ack(), tcp.urg(), tcp.ece(), tcp.cwr()];
        let flags = flags.iter().rev().fold(0, |bits, flag| bits << 1 | u8::from(*flag));
        prop_assert_eq!(flags, parts.tcp.flags.0);
        prop_assert_eq!(tcp.source_port(), parts.tcp.src_port);
        prop_assert_eq!(tcp.destination_port(), parts.tcp.dst_port);
        prop_assert_eq!(tcp.sequence_number(), parts.tcp.seq.0);
        prop_assert_eq!(tcp.acknowledgment_number(), parts.tcp.ack.0);
        prop_assert_eq!(tcp.window_size(), parts.tcp.window);
        prop_assert_eq!(tcp.urgent_pointer(), parts.tcp.urgent);
        prop_assert_eq!(tcp.payload(), &parts.payload[..]);
    }

    #[test]
    fn we_read_what_etherparse_writes(
        parts in parts(),
        ip_options in proptest::collection::vec(any::<u8>(), 0..10),
        extension in proptest::collection::vec(any::<u8>(), 0..5),
    ) {
        let ip = match (parts.src, parts.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut ip = Ipv4Header::new(0, 9, IpNumber::TCP, src.octets(), dst.octets())
                    .expect("a short packet");
                let words = ip_options.repeat(4);
                ip.options = Ipv4Options::try_from(&words[..]).expect("at most 40 octets");
                IpHeaders::Ipv4(ip, Ipv4Extensions::default())
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let ip = Ipv6Header {
                    traffic_class: parts.traffic_class,
                    hop_limit: 9,
                    source: src.octets(),
                    destination: dst.octets(),
                    ..Ipv6Header::default()
                };
                let data = [vec![0; 6], extension.repeat(8)].concat();
                let options = Ipv6RawExtHeader::new_raw(IpNumber::TCP, &data)
                    .expect("8n - 2 octets");
                let extensions = Ipv6Extensions {
                    destination_options: Some(options),
                    ..Ipv6Extensions::default()
                };
                IpHeaders::Ipv6(ip, extensions)
            }
            mixed => panic!("{mixed:?}"),
        };
        let mut tcp_options = [0; TcpOptions::MAX_LEN];
        let len = parts.tcp.options.emit(&mut tcp_options);
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(parts.link.src, parts.link.dst)
            .ip(ip)
            .tcp(parts.tcp.src_port, parts.tcp.dst_port, parts.tcp.seq.0, parts.tcp.window)
            .ack(parts.tcp.ack.0)
            .options_raw(&tcp_options[..len])
            .expect("at most 40 octets")
            .write(&mut frame, &parts.payload)
            .expect("room in a vector");
        let segment = Segment::parse(&frame).expect("a well-formed frame");
        let expected = TcpHeader { flags: TcpFlags::ACK, urgent: 0, ..parts.tcp };
        prop_assert_eq!(segment.tcp, expected);
        prop_assert_eq!((segment.src, segment.dst), (parts.src, parts.dst));
        prop_assert_eq!(segment.payload, &parts.payload[..]);
        assert_walk_agrees(&frame, &segment);
    }

    #[test]
    fn noise_is_refused_or_read(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(segment) = Segment::parse(&frame) {
            assert_walk_agrees(&frame, &segment);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Frames with a few octets changed, mostly with checksums that fit again, so that the change
    /// gets as far as it can: no panic, and both readers find the same or refuse.
    #[test]
    fn mangled_frames_are_refused_or_read(
        parts in parts(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        keep in any::<prop::sample::Index>(),
        cut in proptest::bool::weighted(0.2),
        mended in proptest::bool::weighted(0.8),
    ) {
        let mut frame = parts.frame();
        let headers = frame.len() - parts.payload.len();
        for (at, octet) in changes {
            frame[at.index(headers)] = octet;
        }
        if mended && ip_at(&frame) + 40 < frame.len() {
            mend(&mut frame);
        }
        if cut {
            frame.truncate(keep.index(frame.len()));
        }
        match Segment::parse(&frame) {
            Ok(segment) => {
                assert_walk_agrees(&frame, &segment);
                prop_assert!(segment.tcp.options.fits());
                prop_assert_eq!(segment.payload_sum, naive_sum(segment.payload));
            }
            Err(ParseError::Fragment) => prop_assert!(
                !matches!(walk(&frame[..]), Walk::Segment(_)),
                "the XDP program would hand on a fragment"
            ),
            Err(_) => {}
        }
    }
}

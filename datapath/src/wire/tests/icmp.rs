use super::*;
use crate::wire::ParseError;
use crate::wire::icmp::{PacketTooBig, Quoted};
use etherparse::{IcmpEchoHeader, Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4, icmpv6};
use mpx_ebpf::decode::{Walk, walk};
use std::net::SocketAddr;

const V4: [[u8; 4]; 3] = [[198, 51, 100, 9], [192, 0, 2, 1], [203, 0, 113, 7]];
const V6: [[u8; 16]; 3] = [[0x20; 16], [0x21; 16], [0x22; 16]];

/// A segment of 1,400 octets of text from host 1 to host 2, from its IP header on.
fn too_big_segment(v6: bool) -> Vec<u8> {
    let builder = if v6 {
        PacketBuilder::ipv6(V6[1], V6[2], 60)
    } else {
        PacketBuilder::ipv4(V4[1], V4[2], 60)
    };
    let mut packet = Vec::new();
    builder
        .tcp(443, 50_000, 0xdead_beef, 1000)
        .write(&mut packet, &[7; 1400])
        .expect("room in a vector");
    packet
}

/// The error of a router, host 0, that quotes so many octets.
fn error(v6: bool, mtu: u32, quoted: &[u8]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let mut frame = Vec::new();
    if v6 {
        ethernet
            .ipv6(V6[0], V6[1], 64)
            .icmpv6(Icmpv6Type::PacketTooBig { mtu })
            .write(&mut frame, quoted)
    } else {
        let header = icmpv4::DestUnreachableHeader::FragmentationNeeded {
            next_hop_mtu: mtu as u16,
        };
        ethernet
            .ipv4(V4[0], V4[1], 64)
            .icmpv4(Icmpv4Type::DestinationUnreachable(header))
            .write(&mut frame, quoted)
    }
    .expect("room in a vector");
    frame
}

/// Sets the checksums right again after a change, as far as there are any.
fn mend(frame: &mut [u8], v6: bool) {
    let (icmp_at, addresses) = if v6 {
        (54, frame[22..54].to_vec())
    } else {
        frame[24..26].copy_from_slice(&[0, 0]);
        let sum = !naive_sum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        (34, Vec::new())
    };
    let mut summed = addresses;
    if v6 {
        summed.extend(((frame.len() - icmp_at) as u32).to_be_bytes());
        summed.extend([0, 0, 0, 58]);
    }
    frame[icmp_at + 2..icmp_at + 4].copy_from_slice(&[0, 0]);
    summed.extend_from_slice(&frame[icmp_at..]);
    let sum = !naive_sum(&summed);
    frame[icmp_at + 2..icmp_at + 4].copy_from_slice(&sum.to_be_bytes());
}

fn ip_header_len(v6: bool) -> usize {
    if v6 { 40 } else { 20 }
}

fn expected(v6: bool, mtu: usize) -> PacketTooBig {
    let (src, dst): (IpAddr, IpAddr) = if v6 {
        (V6[1].into(), V6[2].into())
    } else {
        (V4[1].into(), V4[2].into())
    };
    PacketTooBig {
        next_hop_mtu: Some(mtu),
        quoted: Quoted {
            src: SocketAddr::new(src, 443),
            dst: SocketAddr::new(dst, 50_000),
            seq: TcpSeq(0xdead_beef),
            packet_len: ip_header_len(v6) + 20 + 1400,
        },
    }
}

// RFC 792: "the first 64 bits" of TCP are enough; RFC 1812 §4.3.2.3 and RFC 4443 §3.2 let routers
// quote more.
#[test]
fn errors_of_routers_are_read_whatever_they_quote_beyond_the_least() {
    for v6 in [false, true] {
        let packet = too_big_segment(v6);
        let least = ip_header_len(v6) + 8;
        for len in [least, least + 1, 600, packet.len()] {
            let frame = error(v6, 1300, &packet[..len]);
            assert_eq!(PacketTooBig::parse(&frame), Ok(expected(v6, 1300)));
        }
        let less = error(v6, 1300, &packet[..least - 1]);
        assert_eq!(PacketTooBig::parse(&less), Err(ParseError::NotTooBig));
    }
    // RFC 1191 §5: the field is zero in messages of old routers.
    let old = error(false, 0, &too_big_segment(false));
    let old = PacketTooBig::parse(&old).expect("an error");
    assert_eq!(old.next_hop_mtu, None);
}

#[test]
fn what_does_not_speak_of_a_segment_of_the_host_it_goes_to_is_refused() {
    let refused = |v6: bool, changes: &[(usize, u8)]| {
        let mut frame = error(v6, 1300, &too_big_segment(v6)[..60]);
        for (at, octet) in changes {
            frame[*at] = *octet;
        }
        mend(&mut frame, v6);
        PacketTooBig::parse(&frame).map(|_| ())
    };
    let not_too_big = Err(ParseError::NotTooBig);
    assert_eq!(refused(false, &[]), Ok(()));
    assert_eq!(refused(true, &[]), Ok(()));
    for (at, octet, why) in [
        (34, 11, "time exceeded"),
        (35, 3, "port unreachable"),
        (42, 0x65, "quotes version 6"),
        (42, 0x44, "quotes half a header"),
        (42, 0x46, "quotes options"),
        (51, 17, "quotes UDP"),
        (49, 1, "quotes a later fragment"),
        (57, 9, "quotes another host's"),
    ] {
        assert_eq!(refused(false, &[(at, octet)]), not_too_big, "{why}");
    }
    for (at, octet, why) in [
        (54, 1, "unreachable"),
        (62, 0x40, "quotes version 4"),
        (68, 17, "quotes UDP"),
        (68, 0, "quotes extension headers"),
        (85, 9, "quotes another host's"),
    ] {
        assert_eq!(refused(true, &[(at, octet)]), not_too_big, "{why}");
    }
    // RFC 4443 §3.2: the code is ignored by the receiver.
    assert_eq!(refused(true, &[(55, 3)]), Ok(()));
    let mut echo = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv6(V6[0], V6[1], 64)
        .icmpv6(Icmpv6Type::EchoRequest(IcmpEchoHeader { id: 1, seq: 1 }))
        .write(&mut echo, &[0; 60])
        .expect("room in a vector");
    assert_eq!(echo[54], icmpv6::TYPE_ECHO_REQUEST);
    assert_eq!(PacketTooBig::parse(&echo), Err(ParseError::NotTooBig));
    let tcp = [&[0; 12][..], &[0x08, 0x00], &too_big_segment(false)].concat();
    assert_eq!(PacketTooBig::parse(&tcp), Err(ParseError::NotTcp));
}

#[test]
fn every_flipped_bit_of_an_error_is_noticed_but_where_nothing_covers_it() {
    for v6 in [false, true] {
        let frame = error(v6, 1300, &too_big_segment(v6)[..60]);
        for bit in 14 * 8..frame.len() * 8 {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let unchecked = match bit / 8 - 14 {
                0 => v6 && bit % 8 < 4,
                1..=3 | 7 => v6,
                _ => false,
            };
            let read = PacketTooBig::parse(&flipped);
            assert_eq!(read.is_ok(), unchecked, "octet {}", bit / 8);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Errors with a few octets changed, most of them with checksums that fit again: no panic, and
    /// the XDP program finds the same or nothing.
    #[test]
    fn mangled_errors_are_refused_or_read(
        v6: bool,
        mtu: u16,
        quoted_len in 0usize..100,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        keep in any::<prop::sample::Index>(),
        cut in proptest::bool::weighted(0.2),
        mended in proptest::bool::weighted(0.8),
    ) {
        let mut frame = error(v6, mtu.into(), &too_big_segment(v6)[..quoted_len]);
        for (at, octet) in changes {
            let at = at.index(frame.len());
            frame[at] = octet;
        }
        if mended {
            mend(&mut frame, v6);
        }
        if cut {
            frame.truncate(keep.index(frame.len()));
        }
        if let Ok(read) = PacketTooBig::parse(&frame) {
            let expected = Walk::PacketTooBig {
                source: mpx_ebpf::address_octets(read.quoted.src.ip()),
                destination: mpx_ebpf::address_octets(read.quoted.dst.ip()),
                source_port: read.quoted.src.port(),
                destination_port: read.quoted.dst.port(),
            };
            prop_assert_eq!(walk(&frame[..]), expected);
        }
    }
}

//! Frames built by hand against the walk, and arbitrary ones for its bounds.

extern crate std;

use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::*;

const V4_SOURCE: [u8; 4] = [10, 9, 1, 1];
const V4_DESTINATION: [u8; 4] = [10, 9, 1, 2];
const V6_SOURCE: [u8; 16] = [0xfd, 0, 0, 9, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const V6_DESTINATION: [u8; 16] = [0xfd, 0, 0, 9, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const FLAGS: u8 = 0x12;
const SEQ_NUMBER: u32 = 0x0506_0708;
const ACK_NUMBER: u32 = 0x0102_0304;

fn ethernet(tags: &[u16], ethertype: u16) -> Vec<u8> {
    let mut frame = vec![2; 12];
    for tag in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend([0, 7]);
    }
    frame.extend(ethertype.to_be_bytes());
    frame
}

fn tcp(source_port: u16, destination_port: u16) -> Vec<u8> {
    let mut header = vec![0; 20];
    header[0..2].copy_from_slice(&source_port.to_be_bytes());
    header[2..4].copy_from_slice(&destination_port.to_be_bytes());
    header[4..8].copy_from_slice(&SEQ_NUMBER.to_be_bytes());
    header[8..12].copy_from_slice(&ACK_NUMBER.to_be_bytes());
    header[12] = 5 << 4;
    header[13] = FLAGS;
    header
}

fn ipv4(options_words: usize, protocol: u8, fragment: u16) -> Vec<u8> {
    let mut header = vec![0; 20 + options_words * 4];
    header[0] = 0x40 | (5 + options_words) as u8;
    header[6..8].copy_from_slice(&fragment.to_be_bytes());
    header[8] = 64;
    header[9] = protocol;
    header[12..16].copy_from_slice(&V4_SOURCE);
    header[16..20].copy_from_slice(&V4_DESTINATION);
    header
}

fn ipv6(next: u8, destination: [u8; 16]) -> Vec<u8> {
    let mut header = vec![0; 8];
    header[0] = 0x60;
    header[6] = next;
    header[7] = 64;
    header.extend(V6_SOURCE);
    header.extend(destination);
    header
}

/// Extension header of `kind` with `units` beyond its shortest form, leading to `next`.
fn extension(kind: u8, next: u8, units: u8) -> Vec<u8> {
    let len = match kind {
        EXTENSION_FRAGMENT => 8,
        EXTENSION_AUTHENTICATION => 8 + units as usize * 4,
        _ => 8 + units as usize * 8,
    };
    let mut header = vec![0; len];
    header[0] = next;
    header[1] = units;
    header
}

fn walk_of(parts: &[Vec<u8>]) -> (Walk, Vec<u8>) {
    let frame = parts.concat();
    (walk(frame.as_slice()), frame)
}

/// A chain of extension headers `kinds` before a TCP header, as one part per header.
fn chain(kinds: &[(u8, u8)]) -> Vec<Vec<u8>> {
    let next_of = |index: usize| kinds.get(index).map_or(PROTOCOL_TCP, |&(kind, _)| kind);
    let mut parts = vec![
        ethernet(&[], ETHERTYPE_IPV6),
        ipv6(next_of(0), V6_DESTINATION),
    ];
    for (index, &(kind, units)) in kinds.iter().enumerate() {
        parts.push(extension(kind, next_of(index + 1), units));
    }
    parts.push(tcp(4000, 80));
    parts
}

#[test]
fn a_third_vlan_tag_is_not_followed() {
    let tags = [ETHERTYPE_QINQ, ETHERTYPE_VLAN, ETHERTYPE_VLAN];
    for count in 0..=3 {
        let (found, frame) = walk_of(&[
            ethernet(&tags[..count], ETHERTYPE_IPV4),
            ipv4(0, PROTOCOL_TCP, 0),
            tcp(4000, 80),
        ]);
        match found {
            Walk::Segment(segment) if count <= VLAN_TAGS_MAX => {
                assert_eq!(segment.tcp_offset, frame.len() - 20)
            }
            other => assert_eq!((other, count), (Walk::NotIp, 3)),
        }
    }
}

#[test]
fn a_frame_cut_anywhere_before_the_flags_is_truncated() {
    for parts in [
        vec![
            ethernet(&[ETHERTYPE_VLAN], ETHERTYPE_IPV4),
            ipv4(10, PROTOCOL_TCP, 0),
            tcp(1, 2),
        ],
        chain(&[(EXTENSION_HOP_BY_HOP, 1), (EXTENSION_AUTHENTICATION, 4)]),
    ] {
        let (whole, frame) = walk_of(&parts);
        assert!(matches!(whole, Walk::Segment(_)));
        for len in 0..frame.len() - 6 {
            assert_eq!(walk(&frame[..len]), Walk::Truncated, "cut at {len}");
        }
        assert!(matches!(walk(&frame[..frame.len() - 6]), Walk::Segment(_)));
    }
}

#[test]
fn ipv4_fragments_are_told_apart() {
    let destination = mapped(V4_DESTINATION);
    let fragment = |bits| {
        walk_of(&[
            ethernet(&[], ETHERTYPE_IPV4),
            ipv4(1, PROTOCOL_TCP, bits),
            tcp(4000, 80),
        ])
        .0
    };
    // "Don't fragment" is no fragment.
    assert!(matches!(fragment(0x4000), Walk::Segment(_)));
    let source = mapped(V4_SOURCE);
    let first = Walk::FirstFragment {
        source,
        destination,
        ports: Some((4000, 80)),
    };
    assert_eq!(fragment(0x2000), first);
    assert_eq!(fragment(0x2001), Walk::LaterFragment { destination });
    assert_eq!(fragment(0x0001), Walk::LaterFragment { destination });
    let (runt, _) = walk_of(&[
        ethernet(&[], ETHERTYPE_IPV4),
        ipv4(0, PROTOCOL_TCP, 0x2000),
        vec![1, 2],
    ]);
    let no_port = Walk::FirstFragment {
        source,
        destination,
        ports: None,
    };
    assert_eq!(runt, no_port);
}

#[test]
fn ipv6_fragments_are_told_apart() {
    let destination = V6_DESTINATION;
    let fragment = |bits: u16, kinds: &[(u8, u8)]| {
        let mut parts = chain(kinds);
        parts[2][2..4].copy_from_slice(&bits.to_be_bytes());
        walk_of(&parts).0
    };
    let plain = &[(EXTENSION_FRAGMENT, 0)][..];
    let longer = &[(EXTENSION_FRAGMENT, 0), (EXTENSION_DESTINATION, 0)][..];
    let first = Walk::FirstFragment {
        source: V6_SOURCE,
        destination,
        ports: Some((4000, 80)),
    };
    for kinds in [plain, longer] {
        assert_eq!(fragment(1, kinds), first);
        // RFC 6946: the only fragment of its packet.
        assert_eq!(fragment(0, kinds), first);
        assert_eq!(fragment(8, kinds), Walk::LaterFragment { destination });
    }
}

#[test]
fn the_limit_on_extension_headers_is_exact() {
    let most = [(EXTENSION_DESTINATION, 0); EXTENSION_HEADERS_MAX];
    assert!(matches!(walk_of(&chain(&most)).0, Walk::Segment(_)));
    let destination = V6_DESTINATION;
    let one_more = [(EXTENSION_DESTINATION, 0); EXTENSION_HEADERS_MAX + 1];
    assert_eq!(walk_of(&chain(&one_more)).0, Walk::TooDeep { destination });
    // 54 octets of Ethernet and IPv6, then 968 that end below the limit, or 976 that do not.
    let long = |units| walk_of(&chain(&[(EXTENSION_DESTINATION, units)])).0;
    assert!(matches!(long(120), Walk::Segment(segment) if segment.tcp_offset == 1022));
    assert_eq!(long(121), Walk::TooDeep { destination });
}

#[test]
fn what_is_not_tcp_over_ip_is_named() {
    let arp = walk_of(&[ethernet(&[], 0x0806), vec![0; 28]]).0;
    assert_eq!(arp, Walk::NotIp);
    let udp = walk_of(&[ethernet(&[], ETHERTYPE_IPV4), ipv4(0, 17, 0), tcp(4000, 80)]).0;
    assert_eq!(udp, Walk::NotTcp);
    let icmp = walk_of(&[
        ethernet(&[], ETHERTYPE_IPV6),
        ipv6(58, V6_DESTINATION),
        vec![0; 8],
    ])
    .0;
    assert_eq!(icmp, Walk::NotTcp);
    // The version must agree with the EtherType.
    let crossed = walk_of(&[
        ethernet(&[], ETHERTYPE_IPV4),
        ipv6(PROTOCOL_TCP, V6_DESTINATION),
        tcp(4000, 80),
    ])
    .0;
    assert_eq!(crossed, Walk::Truncated);
}

/// An ICMP error from a router, which quotes the head of a segment from `SOURCE` port 80: the parts
/// are Ethernet, IP, ICMP, the quoted IP header and the quoted octets of TCP.
fn too_big_v4() -> Vec<Vec<u8>> {
    vec![
        ethernet(&[ETHERTYPE_VLAN], ETHERTYPE_IPV4),
        ipv4(2, PROTOCOL_ICMP, 0x4000),
        vec![3, 4, 0, 0, 0, 0, 5, 0],
        ipv4(0, PROTOCOL_TCP, 0x4000),
        tcp(80, 4000)[..8].to_vec(),
    ]
}

fn too_big_v6(kinds: &[(u8, u8)]) -> Vec<Vec<u8>> {
    let mut parts = chain(kinds);
    let icmp_next = kinds.len() + 1;
    parts.truncate(icmp_next + 1);
    // The last header leads to ICMPv6 instead.
    match kinds {
        [] => parts[icmp_next][6] = PROTOCOL_ICMPV6,
        _ => parts[icmp_next][0] = PROTOCOL_ICMPV6,
    }
    parts.push(vec![2, 0, 0, 0, 0, 0, 5, 0]);
    parts.push(ipv6(PROTOCOL_TCP, V6_DESTINATION));
    parts.push(tcp(80, 4000)[..8].to_vec());
    parts
}

#[test]
fn an_error_about_a_segment_that_was_too_big_names_who_sent_it() {
    let [source_port, destination_port] = [80, 4000];
    let expected = Walk::PacketTooBig {
        source: mapped(V4_SOURCE),
        destination: mapped(V4_DESTINATION),
        source_port,
        destination_port,
    };
    assert_eq!(walk_of(&too_big_v4()).0, expected);
    for kinds in [
        &[][..],
        &[(EXTENSION_DESTINATION, 1); EXTENSION_HEADERS_MAX],
    ] {
        let expected = Walk::PacketTooBig {
            source: V6_SOURCE,
            destination: V6_DESTINATION,
            source_port,
            destination_port,
        };
        assert_eq!(walk_of(&too_big_v6(kinds)).0, expected);
    }
}

/// Any other ICMP is the kernel's: ping, neighbour discovery, errors of other kinds and about other
/// protocols, fragments, and what is cut off before the quoted port.
#[test]
fn other_icmp_is_not_ours() {
    const OTHERS: &[(usize, usize, u8)] = &[
        (1, 6, 0x20), // more fragments of the message follow
        (1, 7, 1),    // it is a later one
        (2, 0, 0),    // echo reply
        (2, 0, 8),    // echo
        (2, 1, 3),    // port unreachable
        (3, 0, 0x65), // quotes another version
        (3, 0, 0x44), // half a header
        (3, 0, 0x46), // options, which we never send
        (3, 9, 17),   // UDP
        (3, 9, 1),    // ICMP
        (3, 7, 1),    // a later fragment
    ];
    const OTHERS_V6: &[(usize, usize, u8)] = &[
        (2, 0, 1),    // unreachable
        (2, 0, 128),  // echo
        (2, 0, 136),  // neighbour advertisement
        (3, 0, 0x40), // quotes another version
        (3, 6, 17),   // UDP
        (3, 6, 0),    // extension headers, which we never send
    ];
    for (whole, others) in [(too_big_v4(), OTHERS), (too_big_v6(&[]), OTHERS_V6)] {
        for &(part, at, octet) in others {
            let mut parts = whole.clone();
            parts[part][at] = octet;
            assert_eq!(walk_of(&parts).0, Walk::NotTcp, "{part}:{at} = {octet}");
        }
        let (_, frame) = walk_of(&whole);
        let icmp_at = frame.len() - 8 - whole[3].len() - 8;
        for len in icmp_at..frame.len() - 4 {
            assert_eq!(walk(&frame[..len]), Walk::NotTcp, "cut at {len}");
        }
        let with_port = walk(&frame[..frame.len() - 4]);
        assert!(matches!(with_port, Walk::PacketTooBig { .. }));
    }
    // As an IPv4 host's address in a quoted IPv6 packet.
    let mut parts = too_big_v6(&[]);
    parts[3][8..24].copy_from_slice(&mapped(V4_SOURCE));
    assert_eq!(walk_of(&parts).0, Walk::NotTcp);
}

fn arp_request(operation: u8) -> Vec<u8> {
    let mut packet = ARP_REQUEST.to_vec();
    packet[7] = operation;
    packet.extend([2; 6]);
    packet.extend(V4_SOURCE);
    packet.extend([0; 6]);
    packet.extend(V4_DESTINATION);
    packet
}

fn neighbor_solicitation(kind: u8, target: [u8; 16]) -> Vec<Vec<u8>> {
    let mut icmp = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    icmp.extend(target);
    vec![
        ethernet(&[], ETHERTYPE_IPV6),
        ipv6(PROTOCOL_ICMPV6, V6_DESTINATION),
        icmp,
    ]
}

#[test]
fn who_asks_for_a_neighbor_is_understood_and_who_answers_is_not() {
    let arp = |operation| {
        let parts = [ethernet(&[ETHERTYPE_VLAN], 0x0806), arp_request(operation)];
        walk_of(&parts)
    };
    let target = mapped(V4_DESTINATION);
    let (found, frame) = arp(1);
    assert_eq!(found, Walk::NeighborRequest { target });
    assert_eq!(walk(&frame[..frame.len() - 1]), Walk::NotIp);
    assert_eq!(arp(2).0, Walk::NotIp);

    let target = V6_SOURCE;
    let (found, frame) = walk_of(&neighbor_solicitation(135, target));
    assert_eq!(found, Walk::NeighborRequest { target });
    assert_eq!(walk(&frame[..frame.len() - 1]), Walk::NotTcp);
    let answer = walk_of(&neighbor_solicitation(136, target)).0;
    assert_eq!(answer, Walk::NotTcp);
    let mapped = walk_of(&neighbor_solicitation(135, mapped(V4_DESTINATION))).0;
    assert_eq!(mapped, Walk::NotTcp);
}

/// A segment with these options, and what the walk finds of it.
fn with_options(flags: u8, options: &[u8]) -> (Segment, Vec<u8>) {
    let mut header = tcp(4000, 80);
    header[12] = ((20 + options.len()).div_ceil(4) << 4) as u8;
    header[13] = flags;
    let mut padded = options.to_vec();
    padded.resize(options.len().next_multiple_of(4), 0);
    let parts = [
        ethernet(&[], ETHERTYPE_IPV4),
        ipv4(0, PROTOCOL_TCP, 0),
        header,
        padded,
    ];
    match walk_of(&parts) {
        (Walk::Segment(segment), frame) => (segment, frame),
        (other, _) => panic!("{other:?}"),
    }
}

fn join_of(options: &[u8]) -> Join {
    let (segment, frame) = with_options(2, options);
    join(frame.as_slice(), &segment)
}

fn echoed(options: &[u8]) -> Option<u32> {
    let (segment, frame) = with_options(0x10, options);
    echoed_timestamp(frame.as_slice(), &segment)
}

const TIMESTAMPS: [u8; 10] = [8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
const MP_JOIN: [u8; 12] = [30, 12, 0x11, 3, 0xde, 0xad, 0xbe, 0xef, 9, 9, 9, 9];
const TOKEN: Join = Join::Token(0xdead_beef);

// RFC 8684 §3.2, Figure 5.
#[test]
fn the_token_of_a_join_is_found_wherever_it_stands() {
    // As Linux sends it.
    let linux = [
        &[2, 4, 5, 0xb4, 4, 2][..],
        &TIMESTAMPS,
        &[1, 3, 3, 7],
        &MP_JOIN,
    ]
    .concat();
    assert_eq!(join_of(&linux), TOKEN);
    // As far back as it can stand.
    assert_eq!(join_of(&[&[1; 28][..], &MP_JOIN].concat()), TOKEN);
    // After another MPTCP option, and after an unknown kind without content.
    let other = [30, 4, 0x50, 0];
    assert_eq!(join_of(&[&other[..], &[254, 2], &MP_JOIN].concat()), TOKEN);
    assert_eq!(join_of(&[&[0][..], &MP_JOIN].concat()), Join::None);
    assert_eq!(
        join_of(&[30, 12, 0x01, 3, 1, 2, 3, 4, 0, 0, 0, 0]),
        Join::None
    );
    assert_eq!(join_of(&[]), Join::None);
}

#[test]
fn a_join_of_a_wrong_length_has_no_token() {
    for len in 3..=28u8 {
        let mut option = vec![0; usize::from(len)];
        option[..3].copy_from_slice(&[30, len, 0x10]);
        let found = join_of(&option);
        match len {
            12 => assert_eq!(found, Join::Token(0)),
            _ => assert_eq!(found, Join::Malformed, "{len}"),
        }
        // One of no known length is passed over, one of another segment's is not.
        let followed = join_of(&[&option[..], &MP_JOIN].concat());
        match len {
            12 => assert_eq!(followed, Join::Token(0)),
            16 | 24 => assert_eq!(followed, Join::Malformed),
            _ => assert_eq!(followed, TOKEN, "{len}"),
        }
    }
    // Longer than the header, and of an impossible length.
    assert_eq!(
        join_of(&[30, 13, 0x10, 3, 1, 2, 3, 4, 0, 0, 0, 0]),
        Join::None
    );
    assert_eq!(join_of(&[&[254, 1][..], &MP_JOIN].concat()), Join::None);
}

// RFC 7323 §3.2 and Appendix A.
#[test]
fn the_echoed_timestamp_is_found_in_its_usual_place_and_elsewhere() {
    let tsecr = Some(0x0506_0708);
    assert_eq!(echoed(&[&[1, 1][..], &TIMESTAMPS].concat()), tsecr);
    assert_eq!(echoed(&TIMESTAMPS), tsecr);
    assert_eq!(echoed(&[&[1; 30][..], &TIMESTAMPS].concat()), tsecr);
    let dss = [30, 8, 0x20, 1, 0, 0, 0, 1];
    assert_eq!(echoed(&[&dss[..], &[1, 1], &TIMESTAMPS].concat()), tsecr);
    assert_eq!(echoed(&[&[0][..], &TIMESTAMPS].concat()), None);
    assert_eq!(echoed(&[8, 9, 1, 2, 3, 4, 5, 6, 7]), None);
    assert_eq!(echoed(&[]), None);
}

#[test]
fn flags_say_what_a_segment_may_be() {
    let read = |flags| {
        let (segment, _) = with_options(flags, &[]);
        (segment.is_syn(), segment.is_ack())
    };
    for (flags, expected) in [
        (0x02, (true, false)),
        (0xc2, (true, false)), // with ECN
        (0x0a, (true, false)), // with PSH
        (0x12, (false, false)),
        (0x06, (false, false)),
        (0x03, (false, false)),
        (0x10, (false, true)),
        (0x11, (false, true)),
        (0x14, (false, false)),
        (0x00, (false, false)),
    ] {
        assert_eq!(read(flags), expected, "{flags:#04x}");
    }
}

#[test]
fn an_ipv6_packet_cannot_pose_as_ipv4() {
    let (found, _) = walk_of(&[
        ethernet(&[], ETHERTYPE_IPV6),
        ipv6(PROTOCOL_TCP, mapped(V4_DESTINATION)),
        tcp(4000, 80),
    ]);
    assert_eq!(found, Walk::NotTcp);
}

/// Reads like a frame and remembers how far in the walk asked.
struct Probe<'a>(&'a [u8], std::cell::Cell<usize>);

impl Bytes for Probe<'_> {
    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.1.set(self.1.get().max(at));
        self.0.read(at)
    }
}

proptest! {
    #[test]
    fn a_chain_of_any_headers_leads_to_its_ports(
        tags in 0..=VLAN_TAGS_MAX,
        kinds in prop::collection::vec(
            (
                prop::sample::select(vec![
                    EXTENSION_HOP_BY_HOP,
                    EXTENSION_ROUTING,
                    EXTENSION_AUTHENTICATION,
                    EXTENSION_DESTINATION,
                ]),
                0u8..16,
            ),
            0..=EXTENSION_HEADERS_MAX,
        ),
    ) {
        let mut parts = chain(&kinds);
        parts[0] = ethernet(&[ETHERTYPE_VLAN; VLAN_TAGS_MAX][..tags], ETHERTYPE_IPV6);
        let (found, frame) = walk_of(&parts);
        let expected = Segment {
            source: V6_SOURCE,
            destination: V6_DESTINATION,
            source_port: 4000,
            destination_port: 80,
            seq: SEQ_NUMBER,
            ack: ACK_NUMBER,
            flags: FLAGS,
            tcp_offset: frame.len() - 20,
            options_len: 0,
        };
        prop_assert_eq!(found, Walk::Segment(expected));
    }

    #[test]
    fn no_frame_leads_the_walk_beyond_its_bounds(
        version in prop::sample::select(vec![ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN]),
        next in prop::sample::select(vec![0u8, 1, 6, 43, 44, 51, 58, 60, 255]),
        noise in prop::collection::vec(any::<u8>(), 0..2048),
    ) {
        let mut frame = ethernet(&[], version);
        frame.extend(noise);
        // Without this, hardly any noise would get past the version and the protocol.
        if version != ETHERTYPE_VLAN && frame.len() > 24 {
            frame[14] = if version == ETHERTYPE_IPV4 { 0x40 } else { 0x60 } | (frame[14] & 0x0f);
            frame[if version == ETHERTYPE_IPV4 { 23 } else { 20 }] = next;
        }
        let probe = Probe(&frame, std::cell::Cell::new(0));
        let found = walk(&probe);
        prop_assert!(probe.1.get() <= OFFSET_MAX);
        if let Walk::Segment(segment) = found {
            prop_assert!(segment.tcp_offset + 14 <= frame.len());
            join(&probe, &segment);
            echoed_timestamp(&probe, &segment);
            prop_assert!(probe.1.get() < OFFSET_MAX + 20 + 40);
        }
    }
}

use crate::wire::frame::Link;
use crate::wire::neighbor::{ANSWER_LEN_MAX, NeighborAnswer, NeighborRequest};
use crate::wire::{ParseError, checksum};
use etherparse::{Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
use mpx_ebpf::decode::{Walk, walk};
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ASKER: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OURS: [u8; 6] = [2, 0, 0, 0, 0, 2];
const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const V4_ASKER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
const V6_ASKER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const NONE: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

fn arp(operation: u8, sender: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(ASKER);
    frame.extend([0x81, 0, 0, 5, 8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(ASKER);
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend(V4.octets());
    // Ethernet's shortest frame is longer.
    frame.resize(64, 0);
    frame
}

fn solicitation(sender: Ipv6Addr, hop_limit: u8, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 7);
    let mut icmp = vec![135, 0, 0, 0, 0, 0, 0, 0];
    icmp.extend(target.octets());
    icmp.extend(options);
    let pseudo = checksum::pseudo_header(&sender.octets(), &to.octets(), 58, icmp.len());
    let sum = !checksum::combine(checksum::sum(&icmp), pseudo);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![0x33, 0x33, 0xff, 0, 0, 7];
    frame.extend(ASKER);
    frame.extend([
        0x86,
        0xdd,
        0x60,
        0,
        0,
        0,
        0,
        icmp.len() as u8,
        58,
        hop_limit,
    ]);
    frame.extend(sender.octets());
    frame.extend(to.octets());
    frame.extend(icmp);
    frame
}

/// The answer to a request that is valid, for which the XDP program has to agree.
fn answer(frame: &[u8], target: IpAddr, sender: IpAddr) -> Vec<u8> {
    let request = NeighborRequest::parse(frame).unwrap();
    assert_eq!((request.target, request.sender), (target, sender));
    let found = Walk::NeighborRequest {
        target: mpx_ebpf::address_octets(target),
    };
    assert_eq!(walk(frame), found);
    emitted(&NeighborAnswer::to(&request, OURS))
}

fn emitted(answer: &NeighborAnswer) -> Vec<u8> {
    let mut frame = vec![0xee; ANSWER_LEN_MAX];
    let len = answer.emit(&mut frame);
    frame.truncate(len);
    frame
}

// RFC 826, RFC 5227 §2.1.1 and §2.3.
#[test]
fn arp_is_answered_and_announced() {
    for sender in [V4_ASKER, Ipv4Addr::UNSPECIFIED] {
        let frame = answer(&arp(1, sender), V4.into(), sender.into());
        let mut expected = [ASKER, OURS].concat();
        expected.extend([0x81, 0, 0, 5, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
        expected.extend([&OURS[..], &V4.octets(), &ASKER, &sender.octets()].concat());
        assert_eq!(frame, expected);
    }
    let announced = emitted(&NeighborAnswer::unsolicited(V4.into(), OURS));
    let mut expected = [[0xff; 6], OURS].concat();
    expected.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    expected.extend([&OURS[..], &V4.octets(), &[0; 6], &V4.octets()].concat());
    assert_eq!(announced, expected);
}

#[test]
fn an_arp_reply_is_no_question() {
    let reply = NeighborRequest::parse(&arp(2, V4_ASKER));
    assert_eq!(reply, Err(ParseError::NotTcp));
    let frame = arp(1, V4_ASKER);
    let cut = NeighborRequest::parse(&frame[..18 + 27]);
    assert_eq!(cut, Err(ParseError::Truncated));
}

/// Destination, flags and link-layer address of a neighbour advertisement for [`V6`].
fn advertisement(frame: &[u8]) -> ([u8; 6], Ipv6Addr, u8) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv6(ip)) = packet.net else {
        panic!("no IPv6");
    };
    let header = ip.header();
    assert_eq!((header.hop_limit(), header.source_addr()), (255, V6));
    let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else {
        panic!("no ICMPv6");
    };
    assert!(icmp.is_checksum_valid(header.source(), header.destination()));
    assert!(matches!(
        icmp.icmp_type(),
        Icmpv6Type::NeighborAdvertisement(_)
    ));
    let message = icmp.slice();
    assert_eq!(message[8..24], V6.octets());
    assert_eq!(message[24..], [&[2, 1][..], &OURS].concat());
    let to = header.destination_addr();
    (frame[..6].try_into().unwrap(), to, message[4])
}

// RFC 4861 §7.2.4 and §7.2.6.
#[test]
fn a_solicitation_is_answered_and_an_address_announced() {
    let option = [&[1, 1][..], &ASKER].concat();
    for options in [&option[..], &[]] {
        let asked = solicitation(V6_ASKER, 255, V6, options);
        let frame = answer(&asked, V6.into(), V6_ASKER.into());
        assert_eq!(advertisement(&frame), (ASKER, V6_ASKER, 0x60));
    }
    let to_all = ([0x33, 0x33, 0, 0, 0, 1], "ff02::1".parse().unwrap(), 0x20);
    let asked = solicitation(NONE, 255, V6, &[]);
    let frame = answer(&asked, V6.into(), NONE.into());
    assert_eq!(advertisement(&frame), to_all);
    let announced = emitted(&NeighborAnswer::unsolicited(V6.into(), OURS));
    assert_eq!(advertisement(&announced), to_all);
}

// RFC 4861 §7.1.1.
#[test]
fn an_invalid_solicitation_is_not_answered() {
    let option = [&[1, 1][..], &ASKER].concat();
    let refused = |frame: &[u8]| NeighborRequest::parse(frame).unwrap_err();
    let all_nodes = "ff02::1".parse().unwrap();
    for frame in [
        solicitation(V6_ASKER, 254, V6, &[]),
        solicitation(V6_ASKER, 255, all_nodes, &[]),
        solicitation(NONE, 255, V6, &option),
        solicitation(V6_ASKER, 255, V6, &[1, 0, 0, 0, 0, 0, 0, 0]),
        solicitation(V6_ASKER, 255, V6, &[1, 2, 0, 0, 0, 0, 0, 0]),
        solicitation(V6_ASKER, 255, V6, &[1]),
    ] {
        assert_eq!(refused(&frame), ParseError::BadHeader);
    }
    let mut broken = solicitation(V6_ASKER, 255, V6, &[]);
    broken[60] ^= 1;
    assert_eq!(refused(&broken), ParseError::BadIcmpChecksum);
}

proptest! {
    #[test]
    fn mangled_requests_are_refused_or_read(
        v6: bool,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        keep in any::<prop::sample::Index>(),
    ) {
        let mut frame = if v6 { solicitation(V6_ASKER, 255, V6, &[]) } else { arp(1, V4_ASKER) };
        for (at, octet) in changes {
            let at = at.index(frame.len());
            frame[at] = octet;
        }
        frame.truncate(keep.index(frame.len() + 1));
        if let Ok(request) = NeighborRequest::parse(&frame) {
            emitted(&NeighborAnswer::to(&request, OURS));
        }
    }
}

#[test]
fn the_longest_answer_fits() {
    let mut request = NeighborRequest::parse(&solicitation(V6_ASKER, 255, V6, &[])).unwrap();
    request.link = Link {
        vlans: [Some((0x88a8, 1)), Some((0x8100, 2))],
        ..request.link
    };
    let frame = emitted(&NeighborAnswer::to(&request, OURS));
    assert_eq!(frame.len(), ANSWER_LEN_MAX);
}

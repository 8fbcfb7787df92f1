//! Who has an address: ARP (RFC 826) and the part of neighbour discovery (RFC 4861) that answers for
//! addresses which only this program has.

use super::bytes::{Reader, Writer};
use super::frame::Link;
use super::{PROTOCOL_ICMPV6, ParseError, checksum, ethernet, ipv6};
use mpx_ebpf::decode::{ARP_REQUEST, ICMPV6_NEIGHBOR_SOLICITATION};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Octets of the longest frame that [`NeighborAnswer::emit`] writes.
pub const ANSWER_LEN_MAX: usize = 22 + ipv6::HEADER_LEN + ADVERTISEMENT_LEN;

const ETHERTYPE_ARP: u16 = 0x0806;
const BROADCAST: [u8; 6] = [0xff; 6];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// RFC 2464 §7.
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

const ICMPV6_NEIGHBOR_ADVERTISEMENT: u8 = 136;
/// With one option: the link-layer address.
const ADVERTISEMENT_LEN: usize = 32;
/// No router has passed it on.
const HOP_LIMIT: u8 = 255;

/// Somebody asks who has `target`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighborRequest {
    pub link: Link,
    pub target: IpAddr,
    /// Unspecified where somebody asks before he takes the address himself (RFC 5227 §2.1.1, RFC
    /// 4862 §5.4.2).
    pub sender: IpAddr,
}

impl NeighborRequest {
    /// Reads an ARP request or a neighbour solicitation.
    ///
    /// # Errors
    /// [`ParseError::NotTcp`] for what is neither, and else the first thing found wrong. Nothing in
    /// `frame` makes it panic.
    pub fn parse(frame: &[u8]) -> Result<NeighborRequest, ParseError> {
        let (link, ethertype, packet) = ethernet::parse(frame)?;
        let (target, sender) = match ethertype {
            ETHERTYPE_ARP => parse_arp(packet)?,
            ethernet::ETHERTYPE_IPV6 => parse_solicitation(packet)?,
            _ => return Err(ParseError::NotTcp),
        };
        Ok(NeighborRequest {
            link,
            target,
            sender,
        })
    }
}

fn parse_arp(packet: &[u8]) -> Result<(IpAddr, IpAddr), ParseError> {
    let mut reader = Reader::new(packet);
    let mut read = || {
        let head: [u8; 8] = reader.array()?;
        let _sender_mac: [u8; 6] = reader.array()?;
        let sender = Ipv4Addr::from(reader.array::<4>()?);
        let _target_mac: [u8; 6] = reader.array()?;
        Some((head, sender, Ipv4Addr::from(reader.array::<4>()?)))
    };
    let (head, sender, target) = read().ok_or(ParseError::Truncated)?;
    if head != ARP_REQUEST {
        return Err(ParseError::NotTcp);
    }
    Ok((target.into(), sender.into()))
}

// RFC 4861 §7.1.1: what makes a solicitation valid.
fn parse_solicitation(packet: &[u8]) -> Result<(IpAddr, IpAddr), ParseError> {
    let ip = ipv6::parse(packet, PROTOCOL_ICMPV6)?;
    let mut reader = Reader::new(ip.payload);
    let mut read = || {
        let [kind, code, _, _] = reader.array()?;
        let _reserved = reader.u32()?;
        Some((kind, code, Ipv6Addr::from(reader.array::<16>()?)))
    };
    let Some((ICMPV6_NEIGHBOR_SOLICITATION, code, target)) = read() else {
        return Err(ParseError::NotTcp);
    };
    if checksum::combine(ip.pseudo_header_sum, checksum::sum(ip.payload)) != 0xffff {
        return Err(ParseError::BadIcmpChecksum);
    }
    let hop_limit = packet.get(7).copied();
    let valid = code == 0 && hop_limit == Some(HOP_LIMIT) && !target.is_multicast();
    if !valid || !has_sound_options(reader, ip.src.is_unspecified()) {
        return Err(ParseError::BadHeader);
    }
    Ok((target.into(), ip.src))
}

/// Each option has a length, in units of 8 octets; who has no address yet gives no link-layer
/// address for it.
fn has_sound_options(mut reader: Reader<'_>, without_source: bool) -> bool {
    const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
    while reader.left() > 0 {
        let Some([kind, units]) = reader.array() else {
            return false;
        };
        let rest = reader.rest();
        let Some(next) = (usize::from(units) * 8)
            .checked_sub(2)
            .and_then(|len| rest.get(len..))
        else {
            return false;
        };
        if without_source && kind == SOURCE_LINK_LAYER_ADDRESS {
            return false;
        }
        reader = Reader::new(next);
    }
    true
}

/// We have `target`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighborAnswer {
    link: Link,
    target: IpAddr,
    /// Who asked; `None`: for everybody to know.
    asked_by: Option<IpAddr>,
}

impl NeighborAnswer {
    /// To whom asked, from a station with this link-layer address.
    pub fn to(request: &NeighborRequest, mac: [u8; 6]) -> NeighborAnswer {
        // RFC 4861 §7.2.4: who has no address yet hears it with everybody.
        let to_all = request.target.is_ipv6() && request.sender.is_unspecified();
        NeighborAnswer {
            link: Link {
                src: mac,
                dst: if to_all {
                    ALL_NODES_MAC
                } else {
                    request.link.src
                },
                vlans: request.link.vlans,
            },
            target: request.target,
            asked_by: (!to_all).then_some(request.sender),
        }
    }

    /// To everybody, unasked.
    pub fn unsolicited(target: IpAddr, mac: [u8; 6]) -> NeighborAnswer {
        let dst = match target {
            IpAddr::V4(_) => BROADCAST,
            IpAddr::V6(_) => ALL_NODES_MAC,
        };
        NeighborAnswer {
            link: Link {
                src: mac,
                dst,
                ..Link::default()
            },
            target,
            asked_by: None,
        }
    }

    /// Writes the frame and returns its length in octets.
    ///
    /// # Panics
    /// If `frame` does not hold [`ANSWER_LEN_MAX`] octets.
    pub fn emit(&self, frame: &mut [u8]) -> usize {
        match (self.target, self.asked_by) {
            (IpAddr::V4(target), asked_by) => self.emit_arp(frame, target, asked_by),
            (IpAddr::V6(target), asked_by) => self.emit_advertisement(frame, target, asked_by),
        }
    }

    fn emit_arp(&self, frame: &mut [u8], target: Ipv4Addr, asked_by: Option<IpAddr>) -> usize {
        const REPLY: u8 = 2;
        let link_len = ethernet::emit(frame, &self.link, ETHERTYPE_ARP);
        let mut head = ARP_REQUEST;
        // RFC 5227 §2.3: an announcement is a request for one's own address.
        let (asked_by_mac, asked_by) = match asked_by {
            Some(IpAddr::V4(asked_by)) => {
                head[7] = REPLY;
                (self.link.dst, asked_by)
            }
            _ => ([0; 6], target),
        };
        let packet = &mut frame[link_len..link_len + 28];
        let mut writer = Writer::new(packet);
        writer.bytes(&head);
        writer.bytes(&self.link.src);
        writer.bytes(&target.octets());
        writer.bytes(&asked_by_mac);
        writer.bytes(&asked_by.octets());
        link_len + 28
    }

    // RFC 4861 §4.4.
    fn emit_advertisement(
        &self,
        frame: &mut [u8],
        target: Ipv6Addr,
        asked_by: Option<IpAddr>,
    ) -> usize {
        const SOLICITED: u32 = 1 << 30;
        const OVERRIDE: u32 = 1 << 29;
        /// Target link-layer address, 8 octets.
        const OPTION: [u8; 2] = [2, 1];
        let (to, flags) = match asked_by {
            Some(IpAddr::V6(asked_by)) => (asked_by, SOLICITED | OVERRIDE),
            _ => (ALL_NODES, OVERRIDE),
        };
        let link_len = ethernet::emit(frame, &self.link, ethernet::ETHERTYPE_IPV6);
        let len = link_len + ipv6::HEADER_LEN + ADVERTISEMENT_LEN;
        let (ip, icmp) = frame[link_len..len].split_at_mut(ipv6::HEADER_LEN);
        let mut writer = Writer::new(ip);
        writer.u32(6 << 28);
        writer.u16(ADVERTISEMENT_LEN as u16);
        writer.u8(PROTOCOL_ICMPV6);
        writer.u8(HOP_LIMIT);
        writer.bytes(&target.octets());
        writer.bytes(&to.octets());
        let mut writer = Writer::new(icmp);
        writer.u8(ICMPV6_NEIGHBOR_ADVERTISEMENT);
        writer.u8(0);
        writer.u16(0);
        writer.u32(flags);
        writer.bytes(&target.octets());
        writer.bytes(&OPTION);
        writer.bytes(&self.link.src);
        let pseudo_header = checksum::pseudo_header(
            &target.octets(),
            &to.octets(),
            PROTOCOL_ICMPV6,
            ADVERTISEMENT_LEN,
        );
        let checksum = !checksum::combine(checksum::sum(icmp), pseudo_header);
        icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
        len
    }
}

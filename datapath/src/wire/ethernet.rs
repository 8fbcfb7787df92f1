//! Ethernet II with up to two VLAN tags (IEEE 802.1Q, 802.1ad).

use super::ParseError;
use super::bytes::{Reader, Writer};
use super::frame::Link;
use mpx_ebpf::decode::VLAN_TAGS_MAX;

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
pub const TPID_VLAN: u16 = 0x8100;
pub const TPID_SERVICE_VLAN: u16 = 0x88a8;

impl Link {
    /// The addressing of an answer: the stations change places, the tags stay.
    pub fn reversed(&self) -> Link {
        Link {
            src: self.dst,
            dst: self.src,
            vlans: self.vlans,
        }
    }

    /// Octets of the Ethernet header and its tags.
    #[inline]
    pub fn header_len(&self) -> usize {
        14 + 4 * self.vlans.iter().flatten().count()
    }
}

/// The addressing, the EtherType behind all tags, and what follows it.
#[inline]
pub(crate) fn parse(frame: &[u8]) -> Result<(Link, u16, &[u8]), ParseError> {
    let mut reader = Reader::new(frame);
    let mut read = || {
        let dst = reader.array()?;
        let src = reader.array()?;
        let mut link = Link {
            src,
            dst,
            vlans: [None; VLAN_TAGS_MAX],
        };
        let mut ethertype = reader.u16()?;
        for slot in &mut link.vlans {
            if !is_tag(ethertype) {
                break;
            }
            *slot = Some((ethertype, reader.u16()?));
            ethertype = reader.u16()?;
        }
        Some((link, ethertype))
    };
    let (link, ethertype) = read().ok_or(ParseError::Truncated)?;
    if is_tag(ethertype) {
        return Err(ParseError::TooDeep);
    }
    Ok((link, ethertype, reader.rest()))
}

/// Writes the header and returns its length in octets.
#[inline]
pub(crate) fn emit(frame: &mut [u8], link: &Link, ethertype: u16) -> usize {
    let mut writer = Writer::new(frame);
    writer.bytes(&link.dst);
    writer.bytes(&link.src);
    for (tpid, tci) in link.vlans.iter().flatten() {
        writer.u16(*tpid);
        writer.u16(*tci);
    }
    writer.u16(ethertype);
    link.header_len()
}

fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, TPID_VLAN | TPID_SERVICE_VLAN)
}

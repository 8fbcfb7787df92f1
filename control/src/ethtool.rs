//! What a driver does to frames before anybody sees them, asked over the kernel's netlink interface for
//! ethtool(8).

use crate::netlink::{self, Plain};
use netlink_packet_core::{NLA_F_NESTED, NlasIterator};
use netlink_sys::protocols::NETLINK_GENERIC;
use std::io;

// linux/genetlink.h
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// `struct genlmsghdr`: command, version, two octets.
const GENERIC_HEADER_LEN: usize = 4;
// linux/ethtool_netlink.h
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;

/// Whether VLAN tags are taken off received frames: XDP never sees them then.
pub(crate) fn takes_off_vlan_tags(index: u32) -> io::Result<bool> {
    let header = attribute(ETHTOOL_A_HEADER_DEV_INDEX, &index.to_ne_bytes());
    let request = Plain {
        kind: family()?,
        content: message(
            ETHTOOL_MSG_FEATURES_GET,
            &attribute(ETHTOOL_A_FEATURES_HEADER | NLA_F_NESTED, &header),
        ),
    };
    let answer = netlink::get(NETLINK_GENERIC, request)?;
    let active = attributes(body(&answer), ETHTOOL_A_FEATURES_ACTIVE);
    // A set without a mask lists those of its bits that are set.
    Ok(active
        .flat_map(|set| attributes(set, ETHTOOL_A_BITSET_BITS))
        .flat_map(|bits| attributes(bits, ETHTOOL_A_BITSET_BITS_BIT))
        .flat_map(|bit| attributes(bit, ETHTOOL_A_BITSET_BIT_NAME))
        .any(|name| name == b"rx-vlan-hw-parse\0"))
}

/// The number that the kernel has given to ethtool's messages.
fn family() -> io::Result<u16> {
    let request = Plain {
        kind: GENL_ID_CTRL,
        content: message(
            CTRL_CMD_GETFAMILY,
            &attribute(CTRL_ATTR_FAMILY_NAME, b"ethtool\0"),
        ),
    };
    let answer = netlink::get(NETLINK_GENERIC, request)?;
    attributes(body(&answer), CTRL_ATTR_FAMILY_ID)
        .find_map(|value| Some(u16::from_ne_bytes(*value.first_chunk()?)))
        .ok_or(io::ErrorKind::InvalidData.into())
}

fn message(command: u8, attributes: &[u8]) -> Vec<u8> {
    let mut message = vec![command, 1, 0, 0];
    message.extend(attributes);
    message
}

fn body(answer: &Plain) -> &[u8] {
    answer.content.get(GENERIC_HEADER_LEN..).unwrap_or_default()
}

/// Length, kind and value, padded to a multiple of 4 octets.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut attribute = Vec::new();
    attribute.extend((4 + value.len() as u16).to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

/// The values of the attributes of this kind.
fn attributes(within: &[u8], kind: u16) -> impl Iterator<Item = &[u8]> {
    let all = NlasIterator::new(within).filter_map(Result::ok);
    all.filter(move |nla| nla.kind() == kind).filter_map(|nla| {
        let len = usize::from(nla.length());
        nla.into_inner().get(4..len)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_leaves_tags_where_they_are() {
        assert!(!takes_off_vlan_tags(1).unwrap());
    }

    #[test]
    fn an_interface_that_is_not_there_is_an_error() {
        let error = takes_off_vlan_tags(u32::MAX >> 1).unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(rustix::io::Errno::NODEV.raw_os_error())
        );
    }

    #[test]
    fn attributes_are_found_in_attributes() {
        let bit = |name: &[u8]| {
            let name = attribute(ETHTOOL_A_BITSET_BIT_NAME, name);
            attribute(ETHTOOL_A_BITSET_BITS_BIT | NLA_F_NESTED, &name)
        };
        let bits = [bit(b"a\0"), bit(b"rx\0")].concat();
        let names: Vec<_> = attributes(&bits, ETHTOOL_A_BITSET_BITS_BIT)
            .flat_map(|bit| attributes(bit, ETHTOOL_A_BITSET_BIT_NAME))
            .collect();
        assert_eq!(names, [&b"a\0"[..], b"rx\0"]);
    }
}

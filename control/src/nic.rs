//! Facts about network interfaces, asked of the kernel over rtnetlink: they are those of this
//! network namespace, whatever is mounted on /sys.

use crate::netlink::{dump, parse};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

/// One interface as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nic {
    pub(crate) name: String,
    pub(crate) index: u32,
    /// All zero where the link has none (loopback).
    pub(crate) mac: [u8; 6],
    pub(crate) mtu_bytes: u32,
    /// Receive queues in use, at least 1.
    pub(crate) queues: u32,
    /// Administratively up.
    pub(crate) up: bool,
    /// The id of an XDP program that is attached in any mode.
    pub(crate) xdp_program: Option<u32>,
    pub(crate) addresses: Vec<IpAddr>,
    /// VLAN devices on top of it.
    pub(crate) vlans: Vec<String>,
}

/// All interfaces of this network namespace.
pub(crate) fn all() -> io::Result<Vec<Nic>> {
    let links = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let addresses = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let mut nics = Vec::new();
    let mut vlans = Vec::new();
    for message in dump(NETLINK_ROUTE, links)? {
        if let RouteNetlinkMessage::NewLink(link) = message {
            let nic = from_link(&link);
            vlans.extend(vlan_parent(&link).map(|parent| (parent, nic.name.clone())));
            nics.push(nic);
        }
    }
    for message in dump(NETLINK_ROUTE, addresses)? {
        let RouteNetlinkMessage::NewAddress(message) = message else {
            continue;
        };
        let Some(nic) = nics
            .iter_mut()
            .find(|nic| nic.index == message.header.index)
        else {
            continue;
        };
        nic.addresses.extend(own_address(&message));
    }
    for (parent, name) in vlans {
        if let Some(nic) = nics.iter_mut().find(|nic| nic.index == parent) {
            nic.vlans.push(name);
        }
    }
    Ok(nics)
}

/// Follows what happens to some interfaces.
pub(crate) struct Watch {
    socket: Socket,
    /// As they were last seen.
    nics: Vec<Nic>,
}

impl Watch {
    /// Starts from `nics` as they are known.
    pub(crate) fn new(nics: &[Nic]) -> io::Result<Watch> {
        /// `RTMGRP_LINK` of rtnetlink(7).
        const LINKS: u32 = 1;
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, LINKS))?;
        Ok(Watch {
            socket,
            nics: nics.to_vec(),
        })
    }

    /// Waits for news; each change is one line for the user.
    pub(crate) fn wait(&mut self) -> Vec<String> {
        let news = self
            .socket
            .recv_from_full()
            .and_then(|(datagram, _)| parse::<RouteNetlinkMessage>(&datagram));
        let Ok(news) = news else {
            // ENOBUFS: there was more news than room. Do not spin if it is something else.
            std::thread::sleep(Duration::from_millis(100));
            return Vec::new();
        };
        let messages = news.into_iter().filter_map(|message| match message {
            NetlinkPayload::InnerMessage(inner) => Some(inner),
            _ => None,
        });
        messages
            .filter_map(|message| self.on_message(&message))
            .collect()
    }

    fn on_message(&mut self, message: &RouteNetlinkMessage) -> Option<String> {
        let (link, gone) = match message {
            RouteNetlinkMessage::NewLink(link) => (link, false),
            RouteNetlinkMessage::DelLink(link) => (link, true),
            _ => return None,
        };
        // Bridges tell of their ports in the same messages, with a family of their own.
        if link.header.interface_family != AddressFamily::Unspec {
            return None;
        }
        let index = link.header.index;
        let at = self.nics.iter().position(|nic| nic.index == index)?;
        if gone {
            let name = self.nics.remove(at).name;
            return Some(format!(
                "{name} is gone, and nothing comes or goes by it any more; restart mpxd when there \
                 is a new one"
            ));
        }
        let before = &mut self.nics[at];
        let now = from_link(link);
        let (name, mtu_bytes) = (&before.name, before.mtu_bytes);
        let change = if before.up != now.up {
            let state = if now.up { "up again" } else { "down" };
            Some(format!("{name} is {state}"))
        } else if mtu_bytes != now.mtu_bytes {
            Some(format!(
                "{name} has MTU {} now, but frames are still made for the MTU at the start; \
                 restart mpxd",
                now.mtu_bytes
            ))
        } else {
            None
        };
        before.up = now.up;
        before.mtu_bytes = now.mtu_bytes;
        change
    }
}

fn from_link(link: &LinkMessage) -> Nic {
    let mut nic = Nic {
        name: String::new(),
        index: link.header.index,
        mac: [0; 6],
        mtu_bytes: 0,
        queues: 1,
        up: link.header.flags.contains(LinkFlags::Up),
        xdp_program: None,
        addresses: Vec::new(),
        vlans: Vec::new(),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => nic.name = name.clone(),
            LinkAttribute::Mtu(mtu) => nic.mtu_bytes = *mtu,
            LinkAttribute::NumRxQueues(queues) => nic.queues = (*queues).max(1),
            LinkAttribute::Address(octets) => {
                if let Ok(mac) = octets.as_slice().try_into() {
                    nic.mac = mac;
                }
            }
            LinkAttribute::Xdp(facts) => {
                nic.xdp_program = facts.iter().find_map(|fact| match fact {
                    LinkXdp::ProgId(id)
                    | LinkXdp::DrvProgId(id)
                    | LinkXdp::SkbProgId(id)
                    | LinkXdp::HwProgId(id)
                        if *id != 0 =>
                    {
                        Some(*id)
                    }
                    _ => None,
                });
            }
            _ => {}
        }
    }
    // IFLA_NUM_RX_QUEUES counts what was allocated; only sysfs shows what is in use, and only a
    // sysfs of this namespace is believed.
    let sysfs = Path::new("/sys/class/net").join(&nic.name);
    let same = std::fs::read_to_string(sysfs.join("ifindex"))
        .is_ok_and(|index| index.trim().parse() == Ok(nic.index));
    if same && let Ok(entries) = std::fs::read_dir(sysfs.join("queues")) {
        let queues = entries
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("rx-"))
            .count() as u32;
        nic.queues = queues.clamp(1, nic.queues);
    }
    nic
}

/// The index of the interface that a VLAN device is on.
fn vlan_parent(link: &LinkMessage) -> Option<u32> {
    let is_vlan = link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(facts) => facts.contains(&LinkInfo::Kind(InfoKind::Vlan)),
        _ => false,
    });
    let parent = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Link(parent) => Some(*parent),
            _ => None,
        });
    parent.filter(|_| is_vlan)
}

/// On point-to-point links IFA_ADDRESS is the peer's; IFA_LOCAL, where there is one, is ours.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
    local.or_else(|| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_seen_with_its_address() {
        let nics = all().unwrap();
        let lo = nics.iter().find(|nic| nic.name == "lo").unwrap();
        assert_eq!(lo.index, 1);
        assert!(lo.mtu_bytes >= 1280, "{lo:?}");
        assert_eq!(lo.queues, 1);
        assert_eq!(lo.xdp_program, None);
        if lo.up {
            assert!(
                lo.addresses.contains(&"127.0.0.1".parse().unwrap()),
                "{lo:?}"
            );
        }
    }
}

//! Served addresses that the kernel does not have: on which interfaces they are answered for, and the
//! multicast groups by which questions for them arrive.

use crate::config::Config;
use crate::preflight::Plan;
use mpx_datapath::engine::Announced;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};

/// What the engine answers for, in the order of the interfaces.
pub(crate) fn announced(config: &Config, plan: &Plan) -> Vec<Announced> {
    let on = config.interfaces.iter().zip(&plan.nics);
    on.map(|(interface, nic)| Announced {
        mac: nic.mac,
        addresses: match interface.announce {
            true => plan.announced.clone(),
            false => Vec::new(),
        },
    })
    .collect()
}

/// Has the interfaces take in neighbour solicitations for what is announced on them, as long as the
/// sockets live.
///
/// # Errors
/// One line for the user.
pub(crate) fn join_groups(config: &Config, plan: &Plan) -> Result<Vec<UdpSocket>, String> {
    let mut sockets = Vec::new();
    for (announced, nic) in announced(config, plan).iter().zip(&plan.nics) {
        for address in &announced.addresses {
            let IpAddr::V6(address) = address else {
                continue;
            };
            // One each: the kernel limits the groups of a socket.
            let join = || {
                let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
                socket.join_multicast_v6(&solicited_node(*address), nic.index)?;
                Ok::<_, std::io::Error>(socket)
            };
            sockets.push(join().map_err(|error| {
                format!(
                    "{} cannot take in questions for {address} ({error}); enable IPv6 on it or \
                     serve no IPv6 address of our own there",
                    nic.name
                )
            })?);
        }
    }
    Ok(sockets)
}

/// RFC 4291 §2.7.1: the last 24 bits of the address under ff02::1:ff00:0/104.
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    let low = u16::from_be_bytes([b, c]);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_end_in_what_the_address_ends_in() {
        // The example of RFC 4291.
        let group = solicited_node("4037::01:800:200e:8c6c".parse().unwrap());
        assert_eq!(group, "ff02::1:ff0e:8c6c".parse::<Ipv6Addr>().unwrap());
    }
}

//! Where the kernel's own MPTCP sockets listen: joins to such ports stay the kernel's.
//!
//! Asked over sock_diag(7). Its request is written here: the protocol number of MPTCP does not fit
//! the octet that crates for sock_diag have for it, and goes into an attribute.

use crate::netlink::{self, Plain};
use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A kernel socket that accepts MPTCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    pub(crate) local: SocketAddr,
    /// `[::]` does not stand for IPv4 addresses, too.
    v6_only: bool,
}

impl Listener {
    /// Whether a join to its port of `address` finds it.
    pub(crate) fn covers(&self, address: IpAddr) -> bool {
        match self.local.ip().to_canonical() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.is_ipv4(),
            IpAddr::V6(ip) if ip.is_unspecified() => address.is_ipv6() || !self.v6_only,
            ip => ip == address,
        }
    }
}

// linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_REQ_PROTOCOL: u16 = 3;
const INET_DIAG_SKV6ONLY: u16 = 11;
const STATE_LISTEN: u32 = 10;
const FAMILY_INET: u8 = 2;
const FAMILY_INET6: u8 = 10;
const PROTOCOL_MPTCP: u32 = 262;
/// `struct inet_diag_req_v2`
const REQUEST_LEN: usize = 56;
/// `struct inet_diag_msg`
const ANSWER_LEN: usize = 72;

/// All of this network namespace.
pub(crate) fn listeners() -> io::Result<Vec<Listener>> {
    let mut found = Vec::new();
    for family in [FAMILY_INET, FAMILY_INET6] {
        let request = Plain {
            kind: SOCK_DIAG_BY_FAMILY,
            content: request(family),
        };
        for answer in netlink::dump(NETLINK_SOCK_DIAG, request)? {
            found.extend(parse(&answer.content));
        }
    }
    Ok(found)
}

fn request(family: u8) -> Vec<u8> {
    let mut request = vec![0; REQUEST_LEN];
    // Family, then the low octet of the protocol.
    request[0] = family;
    request[1] = PROTOCOL_MPTCP as u8;
    request[4..8].copy_from_slice(&(1u32 << STATE_LISTEN).to_ne_bytes());
    request.extend(8u16.to_ne_bytes());
    request.extend(INET_DIAG_REQ_PROTOCOL.to_ne_bytes());
    request.extend(PROTOCOL_MPTCP.to_ne_bytes());
    request
}

/// Family, state and two octets of timers, then port and address in network order.
fn parse(answer: &[u8]) -> Option<Listener> {
    let (fixed, attributes) = answer.split_at_checked(ANSWER_LEN)?;
    let ip: IpAddr = match fixed[0] {
        FAMILY_INET => Ipv4Addr::from(*fixed[8..].first_chunk::<4>()?).into(),
        FAMILY_INET6 => Ipv6Addr::from(*fixed[8..].first_chunk::<16>()?).into(),
        _ => return None,
    };
    let port = u16::from_be_bytes([fixed[4], fixed[5]]);
    let v6_only = NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .any(|nla| nla.kind() == INET_DIAG_SKV6ONLY && nla.value().first() == Some(&1));
    (u32::from(fixed[1]) == STATE_LISTEN).then_some(Listener {
        local: SocketAddr::new(ip, port),
        v6_only,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Protocol, Socket, Type};

    fn listener(local: &str, v6_only: bool) -> Listener {
        let local = local.parse().unwrap();
        Listener { local, v6_only }
    }

    #[test]
    fn wildcards_stand_for_what_they_accept() {
        let v4: IpAddr = "10.9.1.2".parse().unwrap();
        let v6: IpAddr = "fd00::2".parse().unwrap();
        let covers = |local: &str, v6_only| {
            let listener = listener(local, v6_only);
            [listener.covers(v4), listener.covers(v6)]
        };
        assert_eq!(covers("0.0.0.0:80", false), [true, false]);
        assert_eq!(covers("[::]:80", false), [true, true]);
        assert_eq!(covers("[::]:80", true), [false, true]);
        assert_eq!(covers("10.9.1.2:80", false), [true, false]);
        assert_eq!(covers("[::ffff:10.9.1.2]:80", false), [true, false]);
        assert_eq!(covers("10.9.1.3:80", false), [false, false]);
    }

    #[test]
    fn sockets_of_this_process_are_found() {
        let open = |domain, address: &str, v6_only| {
            let protocol = Protocol::from(PROTOCOL_MPTCP as i32);
            let socket = Socket::new(domain, Type::STREAM, Some(protocol)).unwrap();
            if domain == Domain::IPV6 {
                socket.set_only_v6(v6_only).unwrap();
            }
            let address: SocketAddr = address.parse().unwrap();
            socket.bind(&address.into()).unwrap();
            socket.listen(1).unwrap();
            let local = socket.local_addr().unwrap().as_socket().unwrap();
            (socket, listener(&local.to_string(), v6_only))
        };
        let sockets = [
            open(Domain::IPV4, "127.0.0.1:0", false),
            open(Domain::IPV6, "[::]:0", true),
            open(Domain::IPV6, "[::]:0", false),
        ];
        let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = listeners().unwrap();
        for (_, wanted) in &sockets {
            assert!(found.contains(wanted), "{wanted:?} in {found:?}");
        }
        let port = plain.local_addr().unwrap().port();
        assert!(found.iter().all(|listener| listener.local.port() != port));
    }
}

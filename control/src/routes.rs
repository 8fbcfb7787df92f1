//! The way to addresses that clients name: the kernel's routes and neighbours, asked over rtnetlink by a
//! thread of its own. Whom the kernel does not know yet, it is had to look for.

use crate::netlink::{get, tell};
use crate::nic::Nic;
use mpx_datapath::engine::{FirstHop, Route};
use mpx_datapath::port::IfaceId;
use mpx_datapath::wire::frame::Link;
use mpx_datapath::worker::{Command, Handle};
use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use std::io;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Questions that may wait for this thread, and neighbours that it may wait for.
const QUESTIONS_MAX: usize = 256;
const AWAITED_MAX: usize = 256;
/// Between two looks at neighbours that are being looked for, and for how long: the kernel asks three
/// times, a second apart, and the engine waits for three seconds.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_millis(2500);

/// Asks for the way to an address, on behalf of a worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub(crate) worker: usize,
    pub(crate) to: IpAddr,
}

/// A next hop whose link-layer address is not known yet.
struct Awaited {
    question: Question,
    next_hop: NextHop,
    until: Instant,
}

/// What a route says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NextHop {
    /// Of the kernel.
    interface: u32,
    /// The destination itself, or a gateway.
    address: IpAddr,
    source: Option<IpAddr>,
}

/// A queue of questions, whoever answers them.
pub(crate) fn questions() -> (SyncSender<Question>, Receiver<Question>) {
    sync_channel(QUESTIONS_MAX)
}

/// Answers questions for as long as somebody may ask them. `nics` in the order of the interfaces.
pub(crate) fn serve(questions: &Receiver<Question>, workers: &[Handle], nics: &[Nic]) {
    let answer = |question: Question, route: Option<Route>| {
        let to = question.to;
        // A worker whose inbox is full goes by the way that the address came.
        workers[question.worker].send(Command::Route { to, route });
    };
    let mut awaited: Vec<Awaited> = Vec::new();
    loop {
        let question = match awaited.is_empty() {
            true => questions.recv().map_err(RecvTimeoutError::from),
            false => questions.recv_timeout(LOOK_AGAIN),
        };
        match question {
            Ok(question) => match next_hop(question.to, nics) {
                Some(next_hop) if awaited.len() < AWAITED_MAX => {
                    look_for(&next_hop);
                    awaited.push(Awaited {
                        question,
                        next_hop,
                        until: Instant::now() + PATIENCE,
                    });
                }
                _ => answer(question, None),
            },
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        awaited.retain(|waiting| {
            let route = route(&waiting.next_hop, nics);
            let over = route.is_some() || Instant::now() >= waiting.until;
            if over {
                answer(waiting.question, route);
            }
            !over
        });
    }
}

/// By which of `nics` and over which neighbour an address is reached. What goes elsewhere, for instance
/// over a VLAN device, has no frames of ours.
fn next_hop(to: IpAddr, nics: &[Nic]) -> Option<NextHop> {
    let mut request = RouteMessage::default();
    request.header.address_family = family(to);
    request.header.destination_prefix_length = if to.is_ipv4() { 32 } else { 128 };
    let destination = RouteAttribute::Destination(RouteAddress::from(to));
    request.attributes.push(destination);
    let answer = get(NETLINK_ROUTE, RouteNetlinkMessage::GetRoute(request));
    let next_hop = match answer {
        Ok(RouteNetlinkMessage::NewRoute(route)) => read_route(to, &route)?,
        Ok(_) => return None,
        Err(error) => {
            tracing::debug!("no route to {to}: {error}");
            return None;
        }
    };
    let ours = nics.iter().any(|nic| nic.index == next_hop.interface);
    ours.then_some(next_hop)
}

fn read_route(to: IpAddr, route: &RouteMessage) -> Option<NextHop> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    };
    let (mut interface, mut address, mut source) = (None, to, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(gateway) => address = ip(gateway)?,
            RouteAttribute::Via(RouteVia::Inet6(gateway)) => address = IpAddr::V6(*gateway),
            RouteAttribute::PrefSource(preferred) => source = ip(preferred),
            _ => {}
        }
    }
    Some(NextHop {
        interface: interface?,
        address,
        source,
    })
}

/// Has the kernel ask who the neighbour is, unless it knows.
fn look_for(next_hop: &NextHop) {
    let mut request = neighbour(next_hop);
    request.header.flags = NeighbourFlags::Use;
    let request = RouteNetlinkMessage::NewNeighbour(request);
    if let Err(error) = tell(NETLINK_ROUTE, request, NLM_F_CREATE) {
        tracing::debug!("{} cannot be looked for: {error}", next_hop.address);
    }
}

fn route(next_hop: &NextHop, nics: &[Nic]) -> Option<Route> {
    let iface = nics.iter().position(|n| n.index == next_hop.interface)?;
    let dst = link_layer_address(next_hop).ok()??;
    let link = Link {
        src: nics[iface].mac,
        dst,
        ..Link::default()
    };
    Some(Route {
        hop: FirstHop {
            iface: IfaceId(iface as u8),
            link,
        },
        source: next_hop.source,
    })
}

/// `None` until the neighbour has answered.
fn link_layer_address(next_hop: &NextHop) -> io::Result<Option<[u8; 6]>> {
    let request = RouteNetlinkMessage::GetNeighbour(neighbour(next_hop));
    let RouteNetlinkMessage::NewNeighbour(answer) = get(NETLINK_ROUTE, request)? else {
        return Ok(None);
    };
    let known = matches!(
        answer.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Noarp
            | NeighbourState::Permanent
    );
    let mut attributes = answer.attributes.iter();
    let address = attributes.find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(octets) => octets.as_slice().try_into().ok(),
        _ => None,
    });
    Ok(address.filter(|_| known))
}

fn neighbour(next_hop: &NextHop) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(next_hop.address);
    message.header.ifindex = next_hop.interface;
    let address = match next_hop.address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    };
    message
        .attributes
        .push(NeighbourAttribute::Destination(address));
    message
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_route_names_interface_gateway_and_source() {
        let mut route = RouteMessage::default();
        route.header.kind = RouteType::Unicast;
        route.attributes = vec![
            RouteAttribute::Oif(7),
            RouteAttribute::PrefSource(RouteAddress::from(ip("10.0.0.2"))),
        ];
        let to = ip("10.0.1.1");
        let mut expected = NextHop {
            interface: 7,
            address: to,
            source: Some(ip("10.0.0.2")),
        };
        assert_eq!(read_route(to, &route), Some(expected));
        let gateway = ip("10.0.0.1");
        let attribute = RouteAttribute::Gateway(RouteAddress::from(gateway));
        route.attributes.push(attribute);
        expected.address = gateway;
        assert_eq!(read_route(to, &route), Some(expected));
        route.header.kind = RouteType::Local;
        assert_eq!(read_route(to, &route), None, "it is our own");
    }

    #[test]
    fn loopback_leads_nowhere() {
        assert_eq!(next_hop(ip("127.0.0.1"), &[]), None);
        assert_eq!(next_hop(ip("::1"), &[]), None);
    }
}

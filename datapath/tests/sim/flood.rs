//! A flood beside the clients: frames of nobody who is there, and some in a client's name.

use crate::model::Rng;
use crate::model::client::link;
use crate::model::sim::{Family, Sim};
use mpx_datapath::port::IfaceId;
use mpx_datapath::seq::TcpSeq;
use mpx_datapath::wire::frame;
use mpx_datapath::wire::mptcp::{CapableContent, MpCapable, MpJoin};
use mpx_datapath::wire::tcp::{TcpFlags, TcpHeader, TcpOptions, Timestamps};
use std::net::{IpAddr, SocketAddr};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Syn,
    SynCapable,
    /// With a token that is nobody's, by all odds.
    SynJoin,
    /// With the token of a client, as whoever saw its joins knows it.
    SynJoinOfClient,
    StrayAck,
    StrayReset,
    /// With a client's addresses and ports, and a number at random.
    AckOfClient,
    ResetOfClient,
}

impl Kind {
    pub const ALL: [Kind; 8] = [
        Kind::Syn,
        Kind::SynCapable,
        Kind::SynJoin,
        Kind::SynJoinOfClient,
        Kind::StrayAck,
        Kind::StrayReset,
        Kind::AckOfClient,
        Kind::ResetOfClient,
    ];
}

#[derive(Clone, Debug)]
pub struct Flood {
    pub kinds: Vec<Kind>,
    pub frames_per_tick: usize,
    pub seed: u64,
}

/// The frames of one tick arrive.
pub fn strike(sim: &mut Sim, flood: &Flood, tick: u64) {
    let mut rng = Rng(flood.seed ^ tick << 32);
    for _ in 0..flood.frames_per_tick {
        let kind = flood.kinds[rng.below(flood.kinds.len())];
        if let Some((iface, frame)) = frame_of(sim, kind, &mut rng) {
            sim.strike(iface, &frame);
        }
    }
}

fn frame_of(sim: &Sim, kind: Kind, rng: &mut Rng) -> Option<(IfaceId, Vec<u8>)> {
    let mut iface = IfaceId(rng.below(sim.config.paths.len()) as u8);
    let family = sim.config.family;
    let mut remote = stranger(family, rng);
    let mut local = family.server(usize::from(iface.0));
    let mut options = TcpOptions::default();
    if rng.below(2) == 0 {
        options.timestamps = Some(Timestamps {
            tsval: rng.next() as u32,
            tsecr: 0,
        });
    }
    let flags = match kind {
        Kind::Syn | Kind::SynCapable | Kind::SynJoin | Kind::SynJoinOfClient => TcpFlags::SYN,
        Kind::StrayAck | Kind::AckOfClient => TcpFlags::ACK,
        Kind::StrayReset | Kind::ResetOfClient => TcpFlags::RST,
    };
    let client = (!sim.clients.is_empty()).then(|| &sim.clients[rng.below(sim.clients.len())]);
    let token = match kind {
        Kind::SynJoin => Some(rng.next() as u32),
        Kind::SynJoinOfClient => Some(client?.token()),
        _ => None,
    };
    options.mptcp.join = token.map(|token| MpJoin::Syn {
        backup: false,
        address_id: rng.next() as u8,
        token,
        nonce: rng.next() as u32,
    });
    if kind == Kind::SynCapable {
        options.mptcp.capable = Some(MpCapable {
            version: 1,
            flags: MpCapable::FLAG_SHA256,
            content: CapableContent::Syn,
        });
    }
    if matches!(kind, Kind::AckOfClient | Kind::ResetOfClient) {
        let subflows = &client?.subflows;
        let subflow = &subflows[rng.below(subflows.len())];
        (local, remote, iface) = (subflow.remote, subflow.local, subflow.iface);
    } else if flags == TcpFlags::ACK {
        // As if it brought a cookie back.
        options.timestamps = Some(Timestamps {
            tsval: rng.next() as u32,
            tsecr: rng.next() as u32,
        });
    }
    let header = TcpHeader {
        src_port: remote.port(),
        dst_port: local.port(),
        seq: TcpSeq(rng.next() as u32),
        ack: TcpSeq(rng.next() as u32),
        flags,
        window: rng.next() as u16,
        urgent: 0,
        options,
    };
    let mut frame = vec![0; 256];
    let (link, remote, local) = (link(iface), remote.ip(), local.ip());
    let len = frame::emit(&mut frame, &link, remote, local, 0, &header, 0, 0);
    frame.truncate(len);
    Some((iface, frame))
}

/// Where no client is.
fn stranger(family: Family, rng: &mut Rng) -> SocketAddr {
    let host = rng.next();
    let address: IpAddr = match family {
        Family::V4 => [172, 16, (host >> 8) as u8, host as u8].into(),
        Family::V6 => IpAddr::V6((0xfd99_u128 << 112 | u128::from(host)).into()),
    };
    SocketAddr::new(address, 1 + rng.below(65_535) as u16)
}

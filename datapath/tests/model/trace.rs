//! A listing of frames for people: a line each, with numbers that count from where a stream began.

use super::net::{Fate, Side};
use super::{token_and_idsn, token_and_idsn_v0};
use mpx_datapath::port::IfaceId;
use mpx_datapath::time::Instant;
use mpx_datapath::wire::frame::Segment;
use mpx_datapath::wire::mptcp::{CapableContent, DsnWidth, Dss, MpJoin, MptcpOptions};
use mpx_datapath::wire::tcp::{TcpFlags, TcpHeader};
use std::collections::HashMap;
use std::fmt::Write;
use std::net::SocketAddr;

/// What one side of a flow or a connection began with: the client's, the server's.
type Pair<T> = [T; 2];

pub struct Tracer {
    start: Instant,
    /// Initial sequence numbers and connection by the addresses of client and server.
    flows: HashMap<(SocketAddr, SocketAddr), (Pair<u32>, usize)>,
    /// Initial data sequence numbers.
    connections: Vec<Pair<u64>>,
    tokens: HashMap<u32, usize>,
}

impl Tracer {
    pub fn new(start: Instant) -> Tracer {
        Tracer {
            start,
            flows: HashMap::new(),
            connections: Vec::new(),
            tokens: HashMap::new(),
        }
    }

    /// The line of a frame that is sent now.
    pub fn line(&mut self, now: Instant, to: Side, iface: IfaceId, frame: &[u8]) -> String {
        let time = now.since(self.start).as_secs_f64();
        let (arrow, sender) = match to {
            Side::Server => ("C>S", 0),
            Side::Client => ("C<S", 1),
        };
        let segment = match Segment::parse(frame) {
            Ok(segment) => segment,
            Err(e) => return format!("{time:11.6} {arrow} path {} {e:?}", iface.0),
        };
        let header = &segment.tcp;
        let from = SocketAddr::new(segment.src, header.src_port);
        let other = SocketAddr::new(segment.dst, header.dst_port);
        let key = if sender == 0 {
            (from, other)
        } else {
            (other, from)
        };
        let (initial, connection) = self.learn(key, sender, header);
        let idsn = self.connections[connection];
        let mut line = format!(
            "{time:11.6} {arrow} path {} {}#{connection} {:?} seq {} ack {} len {} win {}",
            iface.0,
            key.0,
            header.flags,
            header.seq.0.wrapping_sub(initial[sender]),
            header.ack.0.wrapping_sub(initial[1 - sender]),
            segment.payload.len(),
            header.window,
        );
        for (left, right) in header.options.sack.as_slice() {
            let base = initial[1 - sender];
            let (left, right) = (left.0.wrapping_sub(base), right.0.wrapping_sub(base));
            _ = write!(line, " sack {left}-{right}");
        }
        describe_options(&mut line, &header.options.mptcp, idsn, sender);
        line
    }

    fn learn(
        &mut self,
        key: (SocketAddr, SocketAddr),
        sender: usize,
        header: &TcpHeader,
    ) -> (Pair<u32>, usize) {
        let options = &header.options.mptcp;
        let syn = header.flags.contains(TcpFlags::SYN);
        let known = self.flows.get(&key).copied();
        let (mut initial, connection) = known.unwrap_or_else(|| {
            let joined = match options.join {
                Some(MpJoin::Syn { token, .. }) => self.tokens.get(&token).copied(),
                _ => None,
            };
            let connection = joined.unwrap_or_else(|| {
                self.connections.push([0; 2]);
                self.connections.len() - 1
            });
            ([0; 2], connection)
        });
        if syn {
            initial[sender] = header.seq.0;
        }
        if let Some(capable) = options.capable
            && let Some(key) = capable.sender_key()
        {
            let (token, idsn) = match capable.version {
                0 => token_and_idsn_v0(key),
                _ => token_and_idsn(key),
            };
            self.connections[connection][sender] = idsn;
            if matches!(capable.content, CapableContent::SynAck { .. }) {
                self.tokens.insert(token, connection);
            }
        }
        self.flows.insert(key, (initial, connection));
        (initial, connection)
    }
}

/// What a line ends with.
pub fn describe(fate: Fate) -> String {
    match fate {
        Fate::Arrives => String::new(),
        other => format!("   *** {other:?}"),
    }
}

fn describe_options(line: &mut String, options: &MptcpOptions, idsn: Pair<u64>, sender: usize) {
    if let Some(dss) = &options.dss {
        describe_dss(line, dss, idsn[sender], idsn[1 - sender]);
    }
    if let Some(capable) = options.capable {
        let (name, len) = match capable.content {
            CapableContent::Data { data_len, .. } => ("data", data_len),
            CapableContent::Ack { .. } => ("keys", 0),
            CapableContent::SynAck { .. } => ("key", 0),
            _ => ("", 0),
        };
        _ = write!(line, " MP_CAPABLE {name} len {len}");
    }
    match options.join {
        Some(MpJoin::Syn { address_id, .. } | MpJoin::SynAck { address_id, .. }) => {
            _ = write!(line, " MP_JOIN id {address_id}");
        }
        Some(MpJoin::Ack { .. }) => line.push_str(" MP_JOIN hmac"),
        None => {}
    }
    if options.fastclose.is_some() {
        line.push_str(" MP_FASTCLOSE");
    }
    if let Some(reset) = options.tcprst {
        _ = write!(line, " MP_TCPRST reason {}", reset.reason);
    }
    if let Some(fail) = options.fail {
        _ = write!(line, " MP_FAIL {}", fail.dsn.wrapping_sub(idsn[1 - sender]));
    }
}

fn describe_dss(line: &mut String, dss: &Dss, own_idsn: u64, peer_idsn: u64) {
    let relative = |value: DsnWidth, idsn: u64| match value {
        DsnWidth::Eight(v) => v.wrapping_sub(idsn),
        DsnWidth::Four(v) => u64::from(v.wrapping_sub(idsn as u32)),
    };
    line.push_str(" DSS");
    if let Some(ack) = dss.data_ack {
        _ = write!(line, " ack {}", relative(ack, peer_idsn));
    }
    if let Some(mapping) = dss.mapping {
        _ = write!(
            line,
            " dsn {} ssn {} len {}",
            relative(mapping.dsn, own_idsn),
            mapping.subflow_seq,
            mapping.len
        );
    }
    if dss.data_fin {
        line.push_str(" DATA_FIN");
    }
}

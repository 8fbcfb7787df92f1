//! What the server may not do, seen in the order in which it sends: take back the edge of a window
//! that it offered (RFC 9293 §3.8.6, RFC 8684 §3.3.5), or go on with MPTCP options after a fallback.

use super::super::subflow::unwrap;
use super::receive::offset;
use super::*;

/// The highest edges offered so far, as offsets in our streams.
#[derive(Debug, Default)]
pub struct Edges {
    /// Of the subflow that is the stream, in plain TCP.
    plain: u64,
    /// Of the connection.
    data: u64,
}

impl Client {
    /// The server sends this now. Whether it arrives is another matter.
    pub fn on_departure(&mut self, segment: &Segment<'_>) {
        let header = &segment.tcp;
        if header.flags.contains(TcpFlags::SYN) || header.flags.contains(TcpFlags::RST) {
            return;
        }
        let to = SocketAddr::new(segment.dst, header.dst_port);
        let from = SocketAddr::new(segment.src, header.src_port);
        let find = |s: &&Subflow| s.local == to && s.remote == from;
        let Some(s) = self.subflows.iter().find(find).filter(|s| s.alive()) else {
            return;
        };
        let window = u64::from(header.window) << s.peer_scale;
        let ack = unwrap(s.iss, s.snd_una, header.ack.0);
        if self.mode == Mode::Tcp {
            let options = &header.options.mptcp;
            let infinite = options
                .dss
                .is_some_and(|dss| dss.mapping.is_some_and(|m| m.len == 0));
            // RFC 8684 §3.7: what it sent before it could know is not held against it.
            let knows = ack > 1 || self.config.quirks.no_options_after_syn;
            assert!(
                options.is_empty() || infinite || (options.dss.is_some() && !knows),
                "MPTCP options in plain TCP: {header:?}"
            );
            if options.is_empty() && (!s.fin_sent || ack < s.snd_nxt) {
                advance(&mut self.edges.plain, ack + window, header);
            }
        } else if let Some(data_ack) = header.options.mptcp.dss.and_then(|dss| dss.data_ack) {
            let ack = offset(data_ack, token_and_idsn(self.key).1, self.data_una);
            if ack <= self.tx.len() as u64 || !self.tx_closed {
                advance(&mut self.edges.data, ack + window, header);
            }
        }
    }
}

fn advance(edge: &mut u64, to: u64, header: &TcpHeader) {
    assert!(
        to + 31 >= *edge,
        "the window's edge goes back from {edge} to {to}: {header:?}"
    );
    *edge = to;
}

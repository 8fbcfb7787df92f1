//! The state of an engine for people and tests: `mpxd status`.

use super::Engine;
use crate::mptcp::Mode;
use crate::mptcp::subflow::Subflow;
use crate::time::Instant;
use serde::Serialize;
use std::net::SocketAddr;

#[derive(Clone, Debug, Serialize)]
pub struct EngineReport {
    pub draining: bool,
    /// Open ones and half-open ones.
    pub connections: usize,
    pub half_open: usize,
    /// Flow table entries, TIME-WAIT left out.
    pub flows: usize,
    pub tokens: usize,
    pub time_wait: usize,
    pub memory: MemoryReport,
    pub conns: Vec<ConnectionReport>,
}

/// See [`crate::memory`].
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MemoryReport {
    pub used_bytes: usize,
    pub limit_bytes: usize,
    pub pressure: bool,
    /// What a connection may hold each way while there is pressure.
    pub share_bytes: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct ConnectionReport {
    pub service: String,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    /// `tcp`, `pending` or `mptcp`.
    pub mode: &'static str,
    pub token: u32,
    pub checksum: bool,
    pub age_ms: u64,
    pub unread_bytes: usize,
    /// What the receive window grew to.
    pub receive_limit_bytes: usize,
    pub send_buffered_bytes: usize,
    pub send_limit_bytes: usize,
    /// Memory charged for: buffers at their capacity, or the reserve.
    pub memory_bytes: usize,
    pub subflows: Vec<SubflowReport>,
}

#[derive(Clone, Debug, Serialize)]
pub struct SubflowReport {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub iface: u8,
    pub state: &'static str,
    pub backup: bool,
    pub srtt_us: Option<u64>,
    pub rttvar_us: u64,
    pub rto_ms: u64,
    /// Timeouts in a row.
    pub backoff: u32,
    /// Name of its congestion control.
    pub congestion: &'static str,
    /// `open`, `disorder`, `cwr`, `recovery` or `loss`.
    pub congestion_state: &'static str,
    /// In recovery what RFC 6937 makes of it.
    pub cwnd_bytes: usize,
    /// `None` before the first loss.
    pub ssthresh_bytes: Option<usize>,
    pub mss_bytes: usize,
    /// Of IP packets.
    pub path_mtu_bytes: usize,
    pub in_flight_bytes: usize,
    pub unacked_segments: usize,
    /// Of those, how many arrived, are to be sent again, and were.
    pub sacked_segments: usize,
    pub lost_segments: usize,
    pub retransmitted_segments: usize,
    pub retransmits: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Octets in order that wait for their mapping.
    pub staged_bytes: usize,
    pub out_of_order_bytes: usize,
}

impl ConnectionReport {
    /// Octets that are kept, for comparison with the memory that is charged for.
    pub fn kept_bytes(&self) -> usize {
        let subflows = self.subflows.iter();
        let received: usize = subflows
            .map(|s| s.staged_bytes + s.out_of_order_bytes)
            .sum();
        self.unread_bytes + self.send_buffered_bytes + received
    }
}

impl Engine {
    /// Everything now, with at most `conns_max` connections listed.
    pub fn report(&self, now: Instant, conns_max: usize) -> EngineReport {
        let list = self.connections.iter().take(conns_max);
        EngineReport {
            draining: self.draining,
            connections: self.connections.len(),
            half_open: self.half_open,
            flows: self.flows.len() - self.time_wait.len(),
            tokens: self.tokens.len(),
            time_wait: self.time_wait.len(),
            memory: MemoryReport {
                used_bytes: self.memory.used_bytes(),
                limit_bytes: self.memory.limit_bytes(),
                pressure: self.memory.is_pressed(),
                share_bytes: self.memory.share_bytes(),
            },
            conns: list
                .map(|(_, c)| ConnectionReport {
                    service: self.services[c.service].config.name.clone(),
                    peer: c.peer_addr,
                    local: c.local_addr,
                    mode: match c.mode {
                        Mode::Tcp => "tcp",
                        Mode::Pending => "pending",
                        Mode::Mptcp => "mptcp",
                    },
                    token: c.token,
                    checksum: c.checksum,
                    age_ms: now.since(c.created_at).as_millis() as u64,
                    unread_bytes: c.rcv.unread_bytes(),
                    receive_limit_bytes: c.rcv.limit_bytes(),
                    send_buffered_bytes: c.snd.buffered(),
                    send_limit_bytes: c.snd.limit(),
                    memory_bytes: c.memory_bytes(),
                    subflows: c.subflows.iter().map(|(_, s)| s.into()).collect(),
                })
                .collect(),
        }
    }
}

impl From<&Subflow> for SubflowReport {
    fn from(s: &Subflow) -> SubflowReport {
        let flight = s.tx.flight_segments();
        SubflowReport {
            local: s.local,
            remote: s.remote,
            iface: s.iface.0,
            state: s.state.name(),
            backup: s.is_backup(),
            srtt_us: s.tx.rtt.srtt().map(|d| d.as_micros() as u64),
            rttvar_us: s.tx.rtt.rttvar().as_micros() as u64,
            rto_ms: s.tx.rtt.rto().as_millis() as u64,
            backoff: s.tx.rtt.backoff(),
            congestion: s.tx.cc.name(),
            congestion_state: s.tx.congestion_state().name(),
            cwnd_bytes: s.tx.window(),
            ssthresh_bytes: Some(s.tx.cc.ssthresh()).filter(|&b| b != usize::MAX),
            mss_bytes: s.tx.mss,
            path_mtu_bytes: s.path_mtu.current(),
            in_flight_bytes: s.tx.in_flight(),
            unacked_segments: flight.unacked,
            sacked_segments: flight.sacked,
            lost_segments: flight.lost,
            retransmitted_segments: flight.retransmitted,
            retransmits: s.tx.retransmits,
            bytes_sent: s.bytes_sent,
            bytes_received: s.bytes_received,
            staged_bytes: s.staged.len(),
            out_of_order_bytes: s.rx.out_of_order_bytes(),
        }
    }
}

//! The state of an engine for people and tests: `mpxd status`, and `mpxd conns` page by page.

use super::Engine;
use crate::mptcp::fallback::Fallback;
use crate::mptcp::subflow::{Handshake, Subflow};
use crate::mptcp::{Connection, Mode};
use crate::tcp::State;
use crate::time::Instant;
use serde::{Serialize, Serializer};
use std::fmt::LowerHex;
use std::net::SocketAddr;

#[derive(Clone, Debug, Serialize)]
pub struct EngineReport {
    pub draining: bool,
    /// Open ones and half-open ones.
    pub connections: usize,
    pub half_open: usize,
    /// Those that have no subflow and wait for one.
    pub stranded: usize,
    /// Flow table entries, TIME-WAIT left out.
    pub flows: usize,
    pub tokens: usize,
    pub time_wait: usize,
    /// Entries of the map of flows, which all workers share.
    pub flow_map: usize,
    pub memory: MemoryReport,
    pub fallbacks: Vec<FallbackReport>,
    /// As many as were asked for. Nobody but tests asks here: see [`Engine::connections_page`].
    #[serde(skip)]
    pub conns: Vec<ConnectionReport>,
}

impl EngineReport {
    /// What another worker reports beside.
    pub fn add(&mut self, other: &EngineReport) {
        self.draining |= other.draining;
        self.connections += other.connections;
        self.half_open += other.half_open;
        self.stranded += other.stranded;
        self.flows += other.flows;
        self.tokens += other.tokens;
        self.time_wait += other.time_wait;
        self.flow_map += other.flow_map;
        let (memory, more) = (&mut self.memory, &other.memory);
        memory.used_bytes += more.used_bytes;
        memory.limit_bytes += more.limit_bytes;
        memory.pressure |= more.pressure;
        memory.share_bytes = memory.share_bytes.min(more.share_bytes);
        for more in &other.fallbacks {
            let of = |f: &FallbackReport| (f.port, f.cause, f.direction);
            match self.fallbacks.iter_mut().find(|f| of(f) == of(more)) {
                Some(known) => known.count += more.count,
                None => self.fallbacks.push(more.clone()),
            }
        }
        self.conns.extend(other.conns.iter().cloned());
    }
}

/// Connections that began as Multipath TCP and went on as plain TCP (RFC 8684 §3.7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FallbackReport {
    /// Of ours, where the initial subflow came in.
    pub port: u16,
    pub cause: &'static str,
    /// `in`: what comes to us was changed on its way; `out`: what we send.
    pub direction: &'static str,
    pub count: u64,
}

/// A part of the list of connections.
#[derive(Clone, Debug)]
pub struct ConnectionPage {
    pub conns: Vec<ConnectionReport>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<usize>,
}

/// See [`crate::memory`].
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MemoryReport {
    pub used_bytes: usize,
    pub limit_bytes: usize,
    pub pressure: bool,
    /// What a connection may hold each way while there is pressure. Of several workers the least.
    pub share_bytes: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct ConnectionReport {
    pub service: String,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    /// Of the data level, in the names of TCP (RFC 8684 §3.3.3).
    pub state: &'static str,
    /// `tcp`, `pending` or `mptcp`.
    pub mode: &'static str,
    /// Of Multipath TCP, unless `mode` is `tcp`.
    pub version: Option<u8>,
    /// Why it is `tcp`, if it began otherwise.
    pub fallback: Option<&'static str>,
    /// 0 for TCP. Here and below, what `ss` prints in hexadecimal is so in JSON, too.
    #[serde(serialize_with = "hex")]
    pub token: u32,
    /// The client's own, which its `ss -M` shows; 0 while its key is not known.
    #[serde(serialize_with = "hex")]
    pub remote_token: u32,
    /// Data sequence numbers: of what the application writes next, of the first octet that is not
    /// acknowledged, of the next to leave, and of the next expected.
    #[serde(serialize_with = "hex")]
    pub write_seq: u64,
    #[serde(serialize_with = "hex")]
    pub snd_una: u64,
    #[serde(serialize_with = "hex")]
    pub snd_nxt: u64,
    #[serde(serialize_with = "hex")]
    pub rcv_nxt: u64,
    pub checksum: bool,
    pub age_ms: u64,
    pub unread_bytes: usize,
    /// At data level, behind a hole.
    pub out_of_order_bytes: usize,
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
    /// By MP_CAPABLE or by MP_JOIN; neither for TCP.
    pub capable: bool,
    pub joined: bool,
    /// By us, not by the peer.
    pub opened_here: bool,
    /// To be used when nothing else works, as the peer asked or as we did (RFC 8684 §3.3.8).
    pub backup: bool,
    pub local_backup: bool,
    /// Its handshake is over and proven: by a DSS of the peer, or by the HMAC of a join.
    pub fully_established: bool,
    pub local_id: u8,
    pub remote_id: u8,
    pub timestamps: bool,
    pub sack: bool,
    /// Agreed, not: marks seen.
    pub ecn: bool,
    /// Shifts of the peer's window and of ours; `None` without the option.
    pub window_scales: Option<(u8, u8)>,
    pub srtt_us: Option<u64>,
    pub min_rtt_us: Option<u64>,
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
    /// Of text, retransmissions included.
    pub bytes_sent: u64,
    /// Of text, in order and each once.
    pub bytes_received: u64,
    /// Since anything valid came.
    pub last_received_ms: u64,
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
            stranded: self.stranded.count(),
            flows: self.flows.len(),
            tokens: self.tokens.len(),
            time_wait: self.time_wait.len(),
            flow_map: self.mesh.mapped(),
            memory: MemoryReport {
                used_bytes: self.memory.used_bytes(),
                limit_bytes: self.memory.limit_bytes(),
                pressure: self.memory.is_pressed(),
                share_bytes: self.memory.share_bytes(),
            },
            fallbacks: self.fallbacks.report(),
            conns: list.map(|(_, c)| self.connection(now, c)).collect(),
        }
    }

    /// The connections in `places` places of their table from the `from`-th on, some of which are
    /// empty. A connection stays where it is, so pages one after the other show each that is open all
    /// the while once.
    pub fn connections_page(&self, now: Instant, from: usize, places: usize) -> ConnectionPage {
        let end = from.saturating_add(places).min(self.connections.capacity());
        let here = (from..end).filter_map(|index| self.connections.get(index));
        ConnectionPage {
            conns: here.map(|c| self.connection(now, c)).collect(),
            next: Some(end).filter(|&end| end < self.connections.capacity()),
        }
    }

    fn connection(&self, now: Instant, c: &Connection) -> ConnectionReport {
        let fin = usize::from(c.snd.fin_queued);
        ConnectionReport {
            service: self.services[c.service].config.name.clone(),
            peer: c.peer_addr,
            local: c.local_addr,
            state: state(c),
            mode: match c.mode {
                Mode::Tcp => "tcp",
                Mode::Pending => "pending",
                Mode::Mptcp => "mptcp",
            },
            version: (c.mode != Mode::Tcp).then(|| c.version.number()),
            fallback: c.fallback.map(Fallback::name),
            token: c.token,
            remote_token: if c.mode == Mode::Mptcp {
                c.version.token_and_idsn(c.remote_key).0
            } else {
                0
            },
            write_seq: (c.snd.end() + fin).0,
            snd_una: c.snd.snd_una.0,
            snd_nxt: c.snd.snd_nxt.0,
            rcv_nxt: c.rcv.rcv_nxt.0,
            checksum: c.checksum && c.mode != Mode::Tcp,
            age_ms: now.since(c.created_at).as_millis() as u64,
            unread_bytes: c.rcv.unread_bytes(),
            out_of_order_bytes: c.rcv.out_of_order_bytes(),
            receive_limit_bytes: c.rcv.limit_bytes(),
            send_buffered_bytes: c.snd.buffered(),
            send_limit_bytes: c.snd.limit(),
            memory_bytes: c.memory_bytes(),
            subflows: c.subflows.iter().map(|(_, s)| subflow(now, s)).collect(),
        }
    }
}

/// What the two streams and the handshake of the connection have come to.
fn state(c: &Connection) -> &'static str {
    let state = match (c.snd.fin_sent(), c.snd.fin_acked(), c.rcv.fin_taken()) {
        _ if c.is_half_open() => State::SynReceived,
        (false, _, false) => State::Established,
        (false, _, true) => State::CloseWait,
        (true, false, false) => State::FinWait1,
        (true, true, false) => State::FinWait2,
        (true, false, true) => State::LastAck,
        // Only the subflows are to end yet.
        (true, true, true) => return "CLOSED",
    };
    state.name()
}

fn subflow(now: Instant, s: &Subflow) -> SubflowReport {
    let flight = s.tx.flight_segments();
    let open = !s.state.is_opening();
    let (capable, joined) = match s.handshake {
        Handshake::Tcp => (false, false),
        Handshake::Capable => (true, false),
        Handshake::Join { .. } => (false, true),
    };
    SubflowReport {
        local: s.local,
        remote: s.remote,
        iface: s.iface.0,
        state: s.state.name(),
        capable,
        joined,
        opened_here: s.opened_here,
        backup: s.backup,
        local_backup: s.local_backup,
        fully_established: open && (joined || (capable && s.spoken)),
        local_id: s.local_id,
        remote_id: s.remote_id,
        timestamps: s.ts.is_some(),
        sack: s.sack_permitted,
        ecn: s.ecn.is_agreed(),
        window_scales: s.window_scaling.then_some((s.snd_wscale, s.rcv_wscale)),
        srtt_us: s.tx.rtt.srtt().map(|d| d.as_micros() as u64),
        min_rtt_us: s.tx.rtt.min_rtt().map(|d| d.as_micros() as u64),
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
        last_received_ms: now.since(s.last_received_at).as_millis() as u64,
        staged_bytes: s.staged.len(),
        out_of_order_bytes: s.rx.out_of_order_bytes(),
    }
}

// serde asks for a reference.
fn hex<S: Serializer>(number: &impl LowerHex, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{number:x}"))
}

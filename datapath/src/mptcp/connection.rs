//! One connection: its keys, its two directions, its subflows and its timers.

use super::address::Addresses;
use super::close::{ClosedFirst, FastcloseWait, Fins, RST_PERFORMANCE};
use super::data::{DataReceiver, DataSender};
use super::fallback::Fallback;
use super::signal::SignalRow;
use super::subflow::Subflow;
use super::version::Version;
use crate::engine::{Closing, ConnId, Patience};
use crate::memory::{Allowance, RECEIVE_RESERVE_BYTES, SEND_RESERVE_BYTES};
use crate::seq::{DataSeq, TcpSeq};
use crate::tcp::State;
use crate::tcp::timestamp::TsState;
use crate::time::Instant;
use slab::Slab;
use std::net::SocketAddr;

/// Doublings of the time between window probes; what comes out has a ceiling of its own.
const PERSIST_BACKOFF_MAX: u32 = 16;

/// Retransmissions on a subflow of a connection whose streams have ended both.
const OVER_RETRIES: u32 = 3;

/// What is spoken on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Plain TCP, from the SYN on or by fallback (RFC 8684 §3.7).
    Tcp,
    /// MP_CAPABLE went out in our SYN/ACK; the third ACK decides.
    Pending,
    Mptcp,
}

/// Limits and times of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub buffers: Buffers,
    pub subflows_max: usize,
    /// Of those, how many we may open at a time.
    pub subflows_opened_max: usize,
    /// C of our MP_CAPABLE: no joins to the address and port of the initial subflow (RFC 8684 §3.1).
    pub deny_join_initial: bool,
    /// Retransmissions of one segment before the subflow is given up.
    pub retries_max: u32,
    /// The same of what opens it.
    pub handshake_retries_max: u32,
    pub patience: Patience,
    pub closing: Closing,
}

/// Between which sizes the buffers of a connection are kept, in octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// The receive window, shared by all subflows.
    pub receive_initial_bytes: usize,
    pub receive_max_bytes: usize,
    /// What the application may have written without an acknowledgment.
    pub send_initial_bytes: usize,
    pub send_max_bytes: usize,
}

impl Buffers {
    /// The same, none larger than `max_bytes`.
    pub fn within(self, max_bytes: usize) -> Buffers {
        let receive_max_bytes = self.receive_max_bytes.min(max_bytes);
        let send_max_bytes = self.send_max_bytes.min(max_bytes);
        Buffers {
            receive_initial_bytes: self.receive_initial_bytes.min(receive_max_bytes),
            receive_max_bytes,
            send_initial_bytes: self.send_initial_bytes.min(send_max_bytes),
            send_max_bytes,
        }
    }
}

/// What has happened and is to be told to the app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    pub opened: bool,
    pub fell_back: bool,
    pub readable: bool,
    /// It has no subflow left, or has one again; not for the app.
    pub stranded: bool,
    pub rejoined: bool,
}

/// A subflow that is gone from the connection.
#[derive(Clone, Copy, Debug)]
pub struct Retired {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// It was open and neither side had ended it.
    pub failed: bool,
    /// It goes on in TIME-WAIT.
    pub time_wait: Option<TimeWaitState>,
}

/// All that TIME-WAIT needs of a subflow to answer a late FIN or DATA_FIN.
#[derive(Clone, Copy, Debug)]
pub struct TimeWaitState {
    pub snd_nxt: TcpSeq,
    pub rcv_nxt: TcpSeq,
    pub ts: Option<TsState>,
    /// None in plain TCP.
    pub data_ack: Option<DataSeq>,
}

/// How it ended, once it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Finished,
    PeerAborted,
    Aborted,
    TimedOut,
}

#[derive(Debug)]
pub struct Connection {
    pub id: ConnId,
    /// Index of the service it belongs to.
    pub service: usize,
    pub settings: Settings,
    pub mode: Mode,
    /// Of what is spoken unless it is plain TCP.
    pub version: Version,
    pub local_key: u64,
    pub remote_key: u64,
    pub token: u32,
    pub local_idsn: DataSeq,
    pub remote_idsn: DataSeq,
    /// DSS checksums both ways (RFC 8684 §3.1, A).
    pub checksum: bool,
    /// The peer has used a data sequence number of 8 octets: its DATA_ACKs have to have as many
    /// (RFC 8684 §3.3.2).
    pub eight_octets: bool,
    /// Why it is plain TCP, if it began otherwise.
    pub fallback: Option<Fallback>,
    /// The next text or FIN is to tell of the fallback, from this data sequence number on
    /// (RFC 8684 §3.7).
    pub infinite_map_due: Option<DataSeq>,
    /// Text before this left under a mapping, which its retransmissions repeat.
    pub mapped_to: Option<TcpSeq>,
    /// After a fallback: what the peer's data sequence numbers are ahead of relative ones, low half.
    pub rcv_base: Option<u32>,
    pub subflows: Slab<Subflow>,
    /// A subflow beside the initial one was ever taken in, or its peer found.
    pub joined: bool,
    /// C of the peer's MP_CAPABLE: no subflow of ours to its initial address and port (RFC 8684 §3.1).
    pub remote_denies_join: bool,
    pub addresses: Addresses,
    pub rcv: DataReceiver,
    pub snd: DataSender,
    /// The subflow that data came in on last: it carries window updates.
    pub last_received_on: usize,
    pub peer_addr: SocketAddr,
    pub local_addr: SocketAddr,
    pub created_at: Instant,

    /// Data-level retransmission (RFC 8684 §3.3.6).
    pub data_rto_at: Option<Instant>,
    pub data_rto_backoff: u32,
    /// Since when something is outstanding at data level and nothing of it was acknowledged.
    pub data_heard_at: Instant,
    /// Whose stream ended first, once the peer's has.
    pub closed_first: Option<ClosedFirst>,
    /// What our subflow FINs wait for, once both streams have ended.
    pub fins: Fins,
    /// The app aborted it, and the peer has not answered yet.
    pub fastclose: Option<FastcloseWait>,
    /// Then whatever is left is reset.
    pub give_up_at: Option<Instant>,
    /// Since when no subflow is open, and one may join.
    pub stranded_since: Option<Instant>,

    /// The app was told before the handshake was over, and it counts as pending (RFC 7413 §4.2).
    pub fast_open_pending: bool,
    pub events: Events,
    /// The app was told that it is open.
    pub app_opened: bool,
    /// The app wants to know when there is room to write.
    pub write_blocked: bool,
    pub end: Option<End>,
    /// The app was told of the end.
    pub app_closed: bool,
    pub retired: Vec<Retired>,
    /// When its entries in the timer wheel fire, the first one last.
    wheel_entries: Vec<Instant>,
    /// By how much its buffers may grow now, and what it was charged for last.
    pub allowance: Allowance,
    pub charged_bytes: usize,
}

impl Connection {
    pub fn new(
        id: ConnId,
        service: usize,
        settings: Settings,
        local: SocketAddr,
        remote: SocketAddr,
        now: Instant,
    ) -> Connection {
        Connection {
            id,
            service,
            settings,
            mode: Mode::Tcp,
            version: Version::V1,
            local_key: 0,
            remote_key: 0,
            token: 0,
            local_idsn: DataSeq(0),
            remote_idsn: DataSeq(0),
            checksum: false,
            eight_octets: false,
            fallback: None,
            infinite_map_due: None,
            mapped_to: None,
            rcv_base: None,
            subflows: Slab::with_capacity(1),
            joined: false,
            remote_denies_join: false,
            addresses: Addresses::default(),
            rcv: DataReceiver::new(
                settings.buffers.receive_initial_bytes,
                settings.buffers.receive_max_bytes,
            ),
            snd: DataSender::new(
                settings.buffers.send_initial_bytes,
                settings.buffers.send_max_bytes,
            ),
            last_received_on: 0,
            peer_addr: remote,
            local_addr: local,
            created_at: now,
            data_rto_at: None,
            data_rto_backoff: 0,
            data_heard_at: now,
            closed_first: None,
            fins: Fins::NotDue,
            fastclose: None,
            give_up_at: None,
            stranded_since: None,
            fast_open_pending: false,
            events: Events::default(),
            app_opened: false,
            write_blocked: false,
            end: None,
            app_closed: false,
            retired: Vec::new(),
            wheel_entries: Vec::new(),
            allowance: Allowance::UNLIMITED,
            charged_bytes: 0,
        }
    }

    /// The handshake of the initial subflow is not over.
    pub fn is_half_open(&self) -> bool {
        !self.app_opened && !self.events.opened && self.end.is_none()
    }

    /// The handshake of a subflow is over: the client is where it says.
    pub fn is_acknowledged(&self) -> bool {
        self.subflows.iter().any(|(_, s)| !s.state.is_opening())
    }

    /// Nothing is left of it.
    pub fn is_gone(&self) -> bool {
        self.subflows.is_empty() && self.end.is_some()
    }

    /// Both streams have ended and both ends know it.
    pub fn streams_closed(&self) -> bool {
        self.snd.fin_acked() && self.rcv.fin_taken()
    }

    /// The window to advertise on subflow `index`: the field and what it means in octets. One shared
    /// window, relative to DATA_ACK (RFC 8684 §3.3.1).
    pub fn advertised_window(&self, index: usize) -> (u16, usize) {
        let subflow = &self.subflows[index];
        let field = self.rcv.window_field(subflow.rcv_wscale, subflow.tx.mss);
        (field, usize::from(field) << subflow.rcv_wscale)
    }

    /// The subflow to send a window update on, if that is worth a segment
    /// (RFC 9293 §3.8.6.2.2): the one that filled the window, or else any.
    pub fn window_update_due(&self) -> Option<usize> {
        let index = match self.subflows.get(self.last_received_on) {
            Some(subflow) if subflow.is_open() => self.last_received_on,
            _ => self.signal_subflow()?,
        };
        // What a window field can say: without scaling it falls short of a large buffer.
        let (_, window_bytes) = self.advertised_window(index);
        let worth_bytes = (self.rcv.limit_bytes() / 2).min(2 * self.subflows[index].tx.mss);
        let due = self.rcv.window_gain_bytes(window_bytes) >= worth_bytes && !self.rcv.fin_taken();
        due.then_some(index)
    }

    /// Tells both directions what the worker's memory leaves them.
    pub fn set_allowance(&mut self, allowance: Allowance) {
        self.allowance = allowance;
        self.rcv.set_share(allowance.share_bytes);
        self.snd.set_memory(&allowance);
    }

    /// Octets of memory to be charged for: what is held, or the reserve where that is more.
    pub fn memory_bytes(&self) -> usize {
        let subflows: usize = self.subflows.iter().map(|(_, s)| s.memory_bytes()).sum();
        let receive = self.receive_held_bytes().max(RECEIVE_RESERVE_BYTES);
        let send = self.snd.held_bytes().max(SEND_RESERVE_BYTES);
        size_of::<Connection>() + subflows + receive + send
    }

    /// Octets of memory that hold text received.
    pub fn receive_held_bytes(&self) -> usize {
        let subflows = self.subflows.iter().map(|(_, s)| s.held_bytes());
        self.rcv.held_bytes() + subflows.sum::<usize>()
    }

    /// Sizes both buffers, after the application had its turn.
    pub fn tune_buffers(&mut self, now: Instant) {
        if self.allowance.is_pressed() {
            self.rcv.shrink();
            self.snd.shrink();
            for (_, subflow) in &mut self.subflows {
                subflow.tx.shrink();
            }
            return;
        }
        if !self.app_opened {
            return;
        }
        let subflows = &self.subflows;
        let mss = subflows.iter().next().map_or(0, |(_, s)| s.tx.mss);
        let slowest = || subflows.iter().filter_map(|(_, s)| s.tx.rtt.srtt()).max();
        self.rcv.tune(now, mss, slowest);
        let usable = subflows.iter().filter(|(_, s)| s.is_usable());
        self.snd.tune(|| usable.map(|(_, s)| s.tx.cc.cwnd()).sum());
    }

    /// The earliest timer of all.
    pub fn next_deadline(&self) -> Option<Instant> {
        if let Some(wait) = &self.fastclose {
            return wait.retry_at;
        }
        let own = Instant::earliest([
            self.data_rto_at,
            self.fins.held_until(),
            self.give_up_at,
            self.addresses.next_deadline(),
        ]);
        self.subflows.iter().fold(own, |first, (index, subflow)| {
            Instant::earliest([
                first,
                subflow.next_deadline(),
                self.keepalive_at(index),
                self.user_timeout_at(index),
            ])
        })
    }

    /// When the timer wheel is to be told of this connection, unless an entry is there that fires by
    /// then. An entry that has become needless stays: it is the one to go by when those before it have
    /// fired.
    pub fn wheel_entry(&mut self) -> Option<Instant> {
        let at = self.next_deadline()?;
        if self.wheel_entries.last().is_some_and(|first| *first <= at) {
            return None;
        }
        self.wheel_entries.push(at);
        Some(at)
    }

    /// An entry in the wheel fired. `false`: another one of the same moment has done for it.
    pub fn on_wheel(&mut self, now: Instant) -> bool {
        let pending = self.wheel_entries.partition_point(|at| *at > now);
        let fired = pending < self.wheel_entries.len();
        self.wheel_entries.truncate(pending);
        fired
    }

    /// Does whatever is due at `now`.
    pub fn on_timeout(&mut self, now: Instant, metrics: &mut crate::metrics::Metrics) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if let Some(wait) = &self.fastclose {
            if due(wait.retry_at) {
                self.on_fastclose_timeout();
            }
            return;
        }
        for index in 0..self.subflows.capacity() {
            if due(self.user_timeout_at(index)) {
                metrics.user_timeouts += 1;
                self.give_up_subflow(index, metrics);
                if self.all_being_reset() {
                    // It is the connection's (RFC 8684 §4): nothing else is waited for.
                    self.end.get_or_insert(End::TimedOut);
                }
                continue;
            }
            let Some(subflow) = self.subflows.get_mut(index) else {
                continue;
            };
            if due(subflow.rx.delayed_ack_at) {
                subflow.rx.delayed_ack_at = None;
                subflow.rx.ack_now = true;
            }
            if due(subflow.persist_at) {
                self.on_persist_timeout(index, now, metrics);
            }
            let Some(subflow) = self.subflows.get_mut(index) else {
                continue;
            };
            if subflow.tx.timeout_due(now) {
                self.on_retransmission_timeout(index, now, metrics);
            } else if due(subflow.tx.next_deadline()) {
                let outcome = subflow.tx.on_timers(now);
                metrics.tcp_fast_recoveries += u64::from(outcome.loss_found);
                metrics.tcp_loss_probes += u64::from(outcome.tail_probe);
                if outcome.loss_found {
                    subflow.ecn.on_window_fell();
                }
                self.settle_mtu_probe(index, now, metrics);
            }
            if due(self.keepalive_at(index)) {
                self.on_keepalive(index, now, metrics);
            }
            let Some(subflow) = self.subflows.get_mut(index) else {
                continue;
            };
            if due(subflow.signals.next_deadline()) {
                subflow.signals = SignalRow::default();
            }
            if due(subflow.removal.map(|removal| removal.next_at)) {
                self.on_removal_timeout(index, now, metrics);
            }
        }
        let given_up = self
            .addresses
            .on_timeout(now, self.version.announcements_max());
        if self.version.echoes_add_addr() {
            metrics.add_addr_unechoed += given_up;
        }
        if due(self.data_rto_at) {
            self.on_data_timeout(now, metrics);
        }
        if due(self.fins.held_until()) {
            metrics.fin_hold_timeouts += 1;
            self.release_fins(now);
        }
        if due(self.give_up_at) {
            self.give_up_at = None;
            metrics.give_up_timeouts += 1;
            self.end.get_or_insert(End::TimedOut);
            if self.streams_closed() {
                self.reset_all(super::subflow::Reset::default());
            } else {
                self.abort_at_once(End::TimedOut);
            }
        }
    }

    /// When an idle subflow is probed next. One that has something in flight, or probes a window,
    /// has timers of its own.
    fn keepalive_at(&self, index: usize) -> Option<Instant> {
        let idle = self.settings.patience.keepalive?;
        let subflow = self.subflows.get(index)?;
        let quiet =
            subflow.is_open() && subflow.tx.flight_is_empty() && subflow.persist_at.is_none();
        quiet.then(|| match subflow.keepalive_probes {
            0 => subflow.last_received_at + idle,
            _ => subflow.keepalive_probe_at + self.settings.patience.keepalive_interval,
        })
    }

    /// When a subflow is given up on which nothing that is outstanding gets on (RFC 9293 §3.8.3,
    /// RFC 5482). It does where anything new is acknowledged, or a probe answered: what waits behind a
    /// window that is closed waits for as long as the peer says so (RFC 9293 §3.8.6.1, MUST-37).
    fn user_timeout_at(&self, index: usize) -> Option<Instant> {
        let timeout = self.settings.patience.user_timeout?;
        let subflow = self.subflows.get(index)?;
        let probed = subflow.persist_at.is_some() && subflow.probes_unanswered > 0;
        let outstanding = !subflow.tx.flight_is_empty() || probed;
        (outstanding && subflow.reset.is_none()).then(|| subflow.heard_at + timeout)
    }

    fn on_keepalive(&mut self, index: usize, now: Instant, metrics: &mut crate::metrics::Metrics) {
        let subflow = &mut self.subflows[index];
        if subflow.keepalive_probes >= self.settings.patience.keepalive_probes {
            self.give_up_subflow(index, metrics);
            return;
        }
        subflow.keepalive_probes += 1;
        subflow.keepalive_probe_at = now;
        subflow.probe_due = true;
        metrics.keepalive_probes += 1;
    }

    fn on_retransmission_timeout(
        &mut self,
        index: usize,
        now: Instant,
        metrics: &mut crate::metrics::Metrics,
    ) {
        let subflow = &mut self.subflows[index];
        if subflow.state.is_opening() {
            self.on_handshake_timeout(index, metrics);
            return;
        }
        if subflow.tx.flight_is_empty() {
            subflow.tx.rto_at = None;
            return;
        }
        metrics.tcp_timeouts += 1;
        subflow.tx.on_timeout(now);
        subflow.ecn.on_window_fell();
        let backoff = subflow.tx.rtt.backoff();
        self.settle_mtu_probe(index, now, metrics);
        self.look_for_black_hole(index, now, metrics);
        let others = self
            .subflows
            .iter()
            .any(|(i, s)| i != index && s.is_usable());
        // RFC 8684 §3.3.3: with both streams ended and acknowledged, a subflow has nothing left to
        // bring: one that does not answer is not waited for.
        let over = self.mode == Mode::Mptcp && self.streams_closed() && backoff > OVER_RETRIES;
        // A user timeout stands in the place of the count; another way does not wait for either.
        let retries_max = self.settings.retries_max;
        let counts = self.settings.patience.user_timeout.is_none();
        if over || (counts && backoff > retries_max) || (others && backoff > retries_max / 2) {
            self.give_up_subflow(index, metrics);
        } else if others {
            // RFC 8684 §3.3.6: what is stuck here may go elsewhere.
            self.reinject_flight(index);
        }
    }

    /// What opens a subflow was not answered (RFC 6298 §5, RFC 8684 §3.2 for the third ACK of a join).
    fn on_handshake_timeout(&mut self, index: usize, metrics: &mut crate::metrics::Metrics) {
        let retries_max = self.settings.handshake_retries_max;
        let subflow = &mut self.subflows[index];
        subflow.tx.rtt.on_timeout();
        if subflow.tx.rtt.backoff() <= retries_max {
            subflow.tx.rto_at = None;
            subflow.handshake_due = true;
            return;
        }
        match subflow.state {
            State::SynReceived => metrics.syn_ack_timeouts += 1,
            _ => metrics.join_timeouts += 1,
        }
        if subflow.state == State::PreEstablished {
            // The peer may have it open.
            self.reset_subflow(index, RST_PERFORMANCE);
        } else {
            self.drop_subflow(index, End::TimedOut);
        }
    }

    /// RFC 9293 §3.8.6.1: a closed window is probed for as long as the probes are answered.
    fn on_persist_timeout(
        &mut self,
        index: usize,
        now: Instant,
        metrics: &mut crate::metrics::Metrics,
    ) {
        let patience = &self.settings.patience;
        let subflow = &mut self.subflows[index];
        subflow.persist_at = None;
        let counts = patience.user_timeout.is_none();
        if counts && subflow.probes_unanswered >= patience.persist_probes {
            self.give_up_subflow(index, metrics);
            return;
        }
        if subflow.probes_unanswered == 0 {
            subflow.heard_at = now;
        }
        subflow.persist_backoff = (subflow.persist_backoff + 1).min(PERSIST_BACKOFF_MAX);
        subflow.probes_unanswered += 1;
        subflow.probe_due = true;
        metrics.zero_window_probes += 1;
    }

    pub(super) fn give_up_subflow(&mut self, index: usize, metrics: &mut crate::metrics::Metrics) {
        metrics.subflow_timeouts += 1;
        self.reset_subflow(index, RST_PERFORMANCE);
        if self.all_being_reset() && !self.outlives_subflows() {
            self.end.get_or_insert(End::TimedOut);
        }
    }

    fn all_being_reset(&self) -> bool {
        self.subflows.iter().all(|(_, s)| s.reset.is_some())
    }

    /// Adds a subflow whose handshake begins and returns its index.
    pub fn add_subflow(&mut self, subflow: Subflow) -> usize {
        self.subflows.insert(subflow)
    }

    /// Whether the handshake of subflow `index` is not over.
    pub fn is_opening(&self, index: usize) -> bool {
        let subflow = self.subflows.get(index);
        subflow.is_some_and(|s| s.state.is_opening())
    }

    /// Whether subflow `index` is the one that opened the connection.
    pub fn is_initial(&self, index: usize) -> bool {
        self.subflows.get(index).is_some_and(|s| s.initial)
    }

    /// Whether we sent the first SYN of subflow `index`.
    pub fn is_opened_here(&self, index: usize) -> bool {
        self.subflows.get(index).is_some_and(|s| s.opened_here)
    }

    /// Whether the handshake of subflow `index` is over.
    pub fn is_open(&self, index: usize) -> bool {
        self.subflows.get(index).is_some_and(Subflow::is_open)
    }

    /// No subflow but the initial one was ever taken in.
    pub fn never_joined(&self) -> bool {
        !self.joined
    }

    /// Joins would be too early: nothing has shown that options get through on the first path.
    pub fn awaits_dss(&self) -> bool {
        let silent = |s: &Subflow| s.initial && !s.spoken;
        self.version.joins_wait_for_dss() && self.subflows.iter().any(|(_, s)| silent(s))
    }

    /// Whether one more may join.
    pub fn has_room_for_subflow(&self) -> bool {
        self.subflows.len() < self.settings.subflows_max
    }
}

//! The model client: one connection, Multipath TCP or plain, over any number of subflows.
//!
//! Offsets in a stream count from its first octet; the data sequence number of octet `n` is
//! IDSN + 1 + n, because MP_CAPABLE takes the first number (RFC 8684 §3.1).

pub mod ecn;
mod receive;
mod transmit;
pub mod watch;

use super::subflow::{Mapping, Role, Sent, State, Subflow};
use super::{
    Rng, add_addr_hmac, dss_checksum, join_hmac, join_hmac_v0, ones_complement, token_and_idsn,
    token_and_idsn_v0,
};
use mpx_datapath::port::IfaceId;
use mpx_datapath::seq::TcpSeq;
use mpx_datapath::time::{Duration, Instant};
use mpx_datapath::wire::frame::{self, Link, Segment};
use mpx_datapath::wire::mptcp::{
    AddAddr, AddAddrForm, CapableContent, DsnWidth, Dss, DssMapping, MpCapable, MpFail,
    MpFastclose, MpJoin, MpPrio, MpTcprst, MptcpOptions, RemoveAddr,
};
use mpx_datapath::wire::tcp::{FastOpenCookie, TcpFlags, TcpHeader, TcpOptions, Timestamps};
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use watch::Edges;

const JOIN_ACK_RTO: Duration = Duration::from_millis(300);
const DATA_RTO: Duration = Duration::from_secs(3);
/// After so many the paths that took the data are given up.
const STALLS_MAX: u32 = 4;
const PERSIST: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
pub struct ClientConfig {
    pub server: SocketAddr,
    pub multipath: bool,
    /// Of Multipath TCP: 1 is RFC 8684, 0 is RFC 6824.
    pub version: u8,
    /// Flag A of our MP_CAPABLE.
    pub checksum: bool,
    /// Width of our data sequence numbers and, as long as the server's have 4 octets, DATA_ACKs.
    pub eight_octets: bool,
    pub timestamps: bool,
    pub sack: bool,
    /// Asks for ECN.
    pub ecn: bool,
    pub window_scale: Option<u8>,
    pub mss: u16,
    pub receive_buffer_bytes: usize,
    pub segment_bytes: usize,
    /// Each segment has a length of its own, up to `segment_bytes`, and in plain TCP another one
    /// after a timeout.
    pub random_segments: bool,
    pub flight_segments: usize,
    /// The DATA_FIN rides on the last octets where there are any.
    pub data_fin_with_data: bool,
    pub ack: AckPolicy,
    /// Reports what it gets twice (RFC 2883), if SACK is agreed.
    pub dsack: bool,
    /// Sent with the SYN (RFC 7413); without octets it asks for a cookie. With one, what there is to be
    /// sent goes along, up to `syn_text_bytes`.
    pub fast_open: Option<FastOpenCookie>,
    pub syn_text_bytes: usize,
    pub quirks: Quirks,
    /// Answers ADD_ADDR (RFC 8684 §3.4.1).
    pub echoes: bool,
    /// The server is short of memory: after a timeout what it SACKed is sent again (RFC 2018 §5, §8).
    pub server_may_renege: bool,
    /// The server forgets the SYNs that it answers: a later answer may differ (RFC 4987 §3.6).
    pub server_may_forget: bool,
    /// Somebody else sends in its name, and the server answers that, too.
    pub impersonated: bool,
    pub seed: u64,
}

/// When segments that come in order are acknowledged: one in `every` at once, and the others after
/// `delay` at most (RFC 9293 §3.8.6.3 has 2 and 500 ms; a receiver that gathers segments has more).
#[derive(Clone, Copy, Debug)]
pub struct AckPolicy {
    pub every: u32,
    pub delay: Duration,
}

impl Default for AckPolicy {
    fn default() -> AckPolicy {
        AckPolicy {
            every: 1,
            delay: Duration::ZERO,
        }
    }
}

impl ClientConfig {
    pub fn new(server: SocketAddr) -> ClientConfig {
        ClientConfig {
            server,
            multipath: true,
            version: 1,
            checksum: false,
            eight_octets: true,
            timestamps: true,
            sack: true,
            ecn: false,
            window_scale: Some(7),
            mss: 1460,
            receive_buffer_bytes: 256 * 1024,
            segment_bytes: 1400,
            random_segments: false,
            flight_segments: 32,
            data_fin_with_data: false,
            ack: AckPolicy::default(),
            dsack: true,
            fast_open: None,
            syn_text_bytes: 1000,
            quirks: Quirks::default(),
            echoes: true,
            server_may_renege: false,
            server_may_forget: false,
            impersonated: false,
            seed: 1,
        }
    }

    pub fn plain(server: SocketAddr) -> ClientConfig {
        ClientConfig {
            multipath: false,
            ..ClientConfig::new(server)
        }
    }
}

/// What goes wrong on purpose, here or in a middlebox on the way to the server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quirks {
    /// The third ACK and all after it come without MPTCP options.
    pub no_options_after_syn: bool,
    /// MPTCP options vanish behind the third ACK.
    pub no_options_after_third_ack: bool,
    /// The pure third ACK is lost; MP_CAPABLE comes with the first data.
    pub no_pure_third_ack: bool,
    /// In the third ACK of a join, or in the SYN/ACK of one of the server's.
    pub wrong_join_hmac: bool,
    /// Joins of the server are answered as if they were plain TCP.
    pub no_join_option: bool,
    /// Keys in the third ACK that nobody exchanged.
    pub wrong_capable_key: bool,
    /// Its subflows end, its stream does not.
    pub no_data_fin: bool,
    /// Middleboxes may have been at what it gets: it ends a subflow that makes no sense (RFC 8684
    /// §3.7), and one that swallows what it is given.
    pub distrusts_paths: bool,
    /// All its window updates are lost: the window opens with the answer to a probe.
    pub no_window_updates: bool,
    /// Whenever so many segments have come out of order it forgets what it has reported by SACK and
    /// not acknowledged (RFC 2018 §8 allows it); 0 is never.
    pub reneges_after: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Handshake,
    Tcp,
    Multipath,
}

#[derive(Debug)]
pub struct Client {
    pub config: ClientConfig,
    pub mode: Mode,
    pub subflows: Vec<Subflow>,
    rng: Rng,
    key: u64,
    server_key: u64,
    /// The server's.
    pub cookie: Option<FastOpenCookie>,
    checksum: bool,
    /// The server has shown that it takes this for Multipath TCP.
    confirmed: bool,
    server_uses_eight_octets: bool,
    owner: Option<u32>,
    next_subflow: usize,

    tx: Vec<u8>,
    tx_closed: bool,
    data_una: u64,
    data_nxt: u64,
    peer_edge: u64,
    again: VecDeque<(u64, u64)>,
    data_timer: Option<Instant>,
    data_fin_timer: Option<Instant>,
    persist_timer: Option<Instant>,
    data_fin_sent: bool,
    /// Timeouts of data or DATA_FIN in a row without an acknowledgment of either.
    stalls: u32,

    rx: Vec<u8>,
    rx_ahead: BTreeMap<u64, Vec<u8>>,
    rx_fin: Option<u64>,
    read: usize,
    reading: bool,
    our_edge: u64,
    /// Octets that came from beyond the window we offered.
    pub beyond_window: u64,
    pub infinite_mappings: u64,
    pub fastclosed: bool,
    /// C of its MP_CAPABLE (RFC 8684 §3.1).
    pub server_denies_joins: bool,
    /// ADD_ADDR of the server and its echoes of ours, each as often as it came.
    pub announced: Vec<AddAddr>,
    pub echoed: Vec<AddAddr>,
    /// Address IDs that it took back.
    pub removed: Vec<u8>,
    /// Where it may join, and under which IDs that was announced.
    listening: Vec<(SocketAddr, u8)>,
    edges: Edges,
}

/// Frames go out with these link addresses; the server's answers must turn them round.
pub fn link(iface: IfaceId) -> Link {
    Link {
        src: [2, 0, 0, 0, 1, iface.0],
        dst: [2, 0, 0, 0, 2, iface.0],
        ..Link::default()
    }
}

impl Client {
    pub fn new(config: ClientConfig) -> Client {
        let mut rng = Rng(config.seed);
        let key = rng.next();
        Client {
            config,
            mode: Mode::Handshake,
            subflows: Vec::new(),
            rng,
            key,
            server_key: 0,
            cookie: None,
            checksum: false,
            confirmed: false,
            server_uses_eight_octets: false,
            owner: None,
            next_subflow: 0,
            tx: Vec::new(),
            tx_closed: false,
            data_una: 0,
            data_nxt: 0,
            peer_edge: 0,
            again: VecDeque::new(),
            data_timer: None,
            data_fin_timer: None,
            persist_timer: None,
            data_fin_sent: false,
            stalls: 0,
            rx: Vec::new(),
            rx_ahead: BTreeMap::new(),
            rx_fin: None,
            read: 0,
            reading: true,
            our_edge: 0,
            beyond_window: 0,
            infinite_mappings: 0,
            fastclosed: false,
            server_denies_joins: false,
            announced: Vec::new(),
            echoed: Vec::new(),
            removed: Vec::new(),
            listening: Vec::new(),
            edges: Edges::default(),
        }
    }

    pub fn connect(&mut self, local: SocketAddr, iface: IfaceId) {
        assert!(self.subflows.is_empty());
        let iss = self.rng.next() as u32;
        self.subflows.push(Subflow::new(
            local,
            self.config.server,
            iface,
            Role::Initial,
            iss,
        ));
    }

    /// Starts another subflow to `remote`; returns its index.
    pub fn join(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        iface: IfaceId,
        backup: bool,
    ) -> usize {
        assert!(self.may_join(), "no join before a DSS has come");
        let nonce = self.rng.next() as u32;
        let iss = self.rng.next() as u32;
        let address_id = self.subflows.len() as u8;
        let role = Role::Join {
            address_id,
            backup,
            nonce,
            hmac: [0; 20],
        };
        self.subflows
            .push(Subflow::new(local, remote, iface, role, iss));
        self.subflows.len() - 1
    }

    pub fn send(&mut self, octets: &[u8]) {
        assert!(!self.tx_closed);
        self.tx.extend_from_slice(octets);
    }

    pub fn close_write(&mut self) {
        self.tx_closed = true;
    }

    /// While `false` the application reads nothing and the window closes.
    pub fn set_reading(&mut self, reading: bool) {
        self.reading = reading;
        if reading && self.read < self.rx.len() {
            self.read = self.rx.len();
            for s in &mut self.subflows {
                s.needs_ack |= !self.config.quirks.no_window_updates;
            }
        }
    }

    /// Resets one subflow without a word to the others.
    pub fn reset(&mut self, i: usize) {
        self.subflows[i].reset_due = Some(false);
    }

    /// MP_FASTCLOSE on a RST of the first living subflow, plain RST on the others
    /// (RFC 8684 §3.5). Version 0 has it on an ACK only (RFC 6824 §3.5).
    pub fn fastclose(&mut self) {
        self.stop_listening();
        if self.config.version == 0 && self.mode == Mode::Multipath {
            self.fastclose_by_ack();
            return;
        }
        let mut first = true;
        for s in self.subflows.iter_mut().filter(|s| s.alive()) {
            let opening = s.state == State::SynReceived;
            s.reset_due = Some(!opening && std::mem::take(&mut first));
        }
    }

    /// MP_FASTCLOSE with another's key on a RST of one subflow.
    pub fn fastclose_in_vain(&mut self, i: usize) {
        self.server_key ^= 1;
        self.subflows[i].reset_due = Some(true);
    }

    /// MP_FASTCLOSE on an ACK of the first living subflow, sent until it is answered, and RST on the
    /// others (RFC 8684 §3.5).
    pub fn fastclose_by_ack(&mut self) {
        self.stop_listening();
        let mut first = true;
        for s in self.subflows.iter_mut().filter(|s| s.alive()) {
            if s.state != State::SynReceived && std::mem::take(&mut first) {
                (s.fastclosing, s.needs_ack) = (true, true);
                s.stop_timers();
            } else {
                s.reset_due = Some(false);
            }
        }
    }

    /// The server's joins find nobody any more.
    pub fn stop_listening(&mut self) {
        self.listening.clear();
    }

    /// The host is gone without a word.
    pub fn vanish(&mut self) {
        self.stop_listening();
        self.subflows.iter_mut().for_each(Subflow::vanish);
        (self.data_timer, self.data_fin_timer, self.persist_timer) = (None, None, None);
    }

    /// Loses all its subflows, with a word to the server or without, and keeps the connection.
    pub fn lose_subflows(&mut self, silently: bool) {
        for i in 0..self.subflows.len() {
            if !self.subflows[i].alive() {
                continue;
            }
            match silently {
                true => {
                    self.subflows[i].vanish();
                    self.carry_again(i);
                }
                false => self.reset(i),
            }
        }
    }

    /// The server has shown that it takes this for Multipath TCP.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// Ends one subflow with a FIN; the connection goes on over the others.
    pub fn leave(&mut self, i: usize) {
        self.subflows[i].leaving = true;
        self.carry_again(i);
    }

    /// From now on the buffer has this size. A smaller one takes back what was offered (RFC 9293
    /// §3.8.6: it should not, and the other side must bear it).
    pub fn resize_buffer(&mut self, bytes: usize) {
        self.config.receive_buffer_bytes = bytes;
        for s in self.subflows.iter_mut().filter(|s| s.alive()) {
            (s.needs_ack, s.withdraws) = (true, true);
        }
    }

    /// Asks for a subflow to be used only where nothing else works, or for the contrary
    /// (RFC 8684 §3.3.8).
    pub fn prioritise(&mut self, i: usize, backup: bool) {
        let s = &mut self.subflows[i];
        s.signals.prio = Some(MpPrio {
            backup,
            address_id: None,
        });
        s.needs_ack = true;
    }

    /// The same of all subflows from an address of ours, said on subflow `i` (RFC 6824 §3.3.8).
    pub fn prioritise_address(&mut self, i: usize, address_id: u8, backup: bool) {
        let s = &mut self.subflows[i];
        s.signals.prio = Some(MpPrio {
            backup,
            address_id: Some(address_id),
        });
        s.needs_ack = true;
    }

    /// Names another address of ours, on subflow `i` (RFC 8684 §3.4.1).
    pub fn advertise(&mut self, i: usize, address_id: u8, address: IpAddr) {
        let option = AddAddr {
            address_id,
            address,
            port: None,
            form: AddAddrForm::Bare,
        };
        self.advertise_option(i, option, 0);
    }

    /// The same with the option as it is, in the form of our version, and `forged` laid over the HMAC
    /// of version 1.
    pub fn advertise_option(&mut self, i: usize, option: AddAddr, forged: u64) {
        let hmac = add_addr_hmac(self.key, self.server_key, &option) ^ forged;
        let form = match self.config.version {
            0 => AddAddrForm::Bare,
            _ => AddAddrForm::Signed(hmac),
        };
        let s = &mut self.subflows[i];
        s.signals.add_addr = Some(AddAddr { form, ..option });
        s.needs_ack = true;
    }

    /// Names an address where the server may join, on subflow `i` (RFC 8684 §3.4.1), with its port or
    /// without: then it is that of the subflow.
    pub fn listen(&mut self, i: usize, address_id: u8, address: SocketAddr, with_port: bool) {
        self.listening.retain(|(known, _)| *known != address);
        self.listening.push((address, address_id));
        let option = AddAddr {
            address_id,
            address: address.ip(),
            port: with_port.then_some(address.port()),
            form: AddAddrForm::Bare,
        };
        self.advertise_option(i, option, 0);
    }

    /// Takes an address back, on subflow `i` (RFC 8684 §3.4.2).
    pub fn withdraw(&mut self, i: usize, address_id: u8) {
        let s = &mut self.subflows[i];
        s.signals.remove_addr = RemoveAddr::new(&[address_id]);
        s.needs_ack = true;
    }

    /// Reads up to `n` octets where reading is stopped.
    pub fn read_some(&mut self, n: usize) {
        let before = self.read;
        self.read = self.read.saturating_add(n).min(self.rx.len());
        if self.read > before
            && let Some(s) = self.subflows.iter_mut().find(|s| s.alive())
        {
            s.needs_ack |= !self.config.quirks.no_window_updates;
        }
    }

    /// Octets of our stream so far.
    pub fn written(&self) -> u64 {
        self.tx.len() as u64
    }

    pub fn received(&self) -> &[u8] {
        &self.rx
    }

    /// Octets of our stream that the SYN brought.
    pub fn syn_text(&self) -> u64 {
        self.subflows[0].syn_text
    }

    pub fn established(&self) -> bool {
        self.mode != Mode::Handshake
    }

    /// The server's stream ended and all of it is here.
    pub fn peer_finished(&self) -> bool {
        self.rx_fin.is_some_and(|at| self.rx.len() as u64 >= at)
    }

    /// Octets of our stream that the server has acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.data_una
    }

    /// All octets written are acknowledged, and so is the end of the stream.
    pub fn all_acknowledged(&self) -> bool {
        self.tx_closed && self.data_una > self.tx.len() as u64
    }

    /// Nothing is left to do on any subflow.
    pub fn closed(&self) -> bool {
        self.subflows
            .iter()
            .all(|s| !s.alive() && s.reset_due.is_none() || s.finished())
    }

    /// Whether it uses this address.
    pub fn owns(&self, address: SocketAddr) -> bool {
        let listens = self.listening.iter().any(|(known, _)| *known == address);
        listens || self.subflows.iter().any(|s| s.local == address)
    }

    /// The latest subflow on `iface` that is over and whose address and port are free.
    pub fn last_over(&mut self, iface: IfaceId) -> Option<&mut Subflow> {
        let over = |s: &Subflow| s.iface == iface && (!s.alive() || s.finished());
        let used = |s: &Subflow, later: &[Subflow]| later.iter().any(|l| l.local == s.local);
        let i = (0..self.subflows.len()).rfind(|&i| {
            over(&self.subflows[i]) && !used(&self.subflows[i], &self.subflows[i + 1..])
        })?;
        Some(&mut self.subflows[i])
    }

    /// Its streams or subflows were cut off by timeouts of its own.
    pub fn gave_up(&self) -> bool {
        self.subflows.iter().any(|s| s.gave_up)
    }

    /// Where it stands, for a message.
    pub fn describe(&self) -> String {
        let subflows: Vec<String> = self
            .subflows
            .iter()
            .map(|s| {
                format!(
                    "  {} {:?} una {} nxt {} flight {} rcv {} tries {} fin {}/{:?} timer {:?}",
                    s.local,
                    s.state,
                    s.snd_una,
                    s.snd_nxt,
                    s.in_flight(),
                    s.rcv_nxt,
                    s.tries,
                    s.fin_sent,
                    s.peer_fin,
                    s.timer
                )
            })
            .collect();
        format!(
            "client {:?} sent {} of {} (closed {}) acknowledged {} edge {} received {} of {:?}\n{}",
            self.mode,
            self.data_nxt,
            self.tx.len(),
            self.tx_closed,
            self.data_una,
            self.peer_edge,
            self.rx.len(),
            self.rx_fin,
            subflows.join("\n")
        )
    }

    /// Nothing was acknowledged at data level for a while. Where the paths are not trusted, those
    /// that took what is missing and brought no DATA_ACK for it are not used any more.
    fn on_stall(&mut self) {
        self.stalls += 1;
        if !self.config.quirks.distrusts_paths || self.stalls < STALLS_MAX {
            return;
        }
        self.stalls = 0;
        let una = self.data_una;
        let all = una >= self.tx.len() as u64;
        for i in 0..self.subflows.len() {
            let s = &self.subflows[i];
            let took = s.carried.iter().any(|r| r.0 <= una && una < r.1);
            let opening = matches!(s.state, State::SynSent | State::SynReceived);
            if s.alive() && !opening && (took && s.in_flight() == 0 || all) {
                self.break_off(i, None);
            }
        }
    }

    /// Resets subflow `i`: a middlebox spoils it (RFC 8684 §3.7). With MP_FAIL where the text from
    /// this offset on was changed.
    fn break_off(&mut self, i: usize, failed_at: Option<u64>) {
        let idsn = self.token_and_idsn(self.server_key).1;
        let s = &mut self.subflows[i];
        s.fail_dsn = failed_at.map(|at| idsn.wrapping_add(1 + at));
        s.reset_due = Some(false);
        s.gave_up = true;
    }

    /// Whether the time for joins has come: RFC 6824 §3.1 wants a DSS to have come on the first path.
    pub fn may_join(&self) -> bool {
        self.config.version > 0 || self.confirmed
    }

    fn token_and_idsn(&self, key: u64) -> (u32, u64) {
        match self.config.version {
            0 => token_and_idsn_v0(key),
            _ => token_and_idsn(key),
        }
    }

    /// As far as the third packet of a join carries it.
    fn join_hmac(&self, key_a: u64, key_b: u64, nonce_a: u32, nonce_b: u32) -> [u8; 20] {
        match self.config.version {
            0 => join_hmac_v0(key_a, key_b, nonce_a, nonce_b),
            _ => {
                let hmac = join_hmac(key_a, key_b, nonce_a, nonce_b);
                hmac[..20].try_into().expect("20 of 32 octets")
            }
        }
    }

    /// The data sequence number before that of our octet 0, if it had one.
    // RFC 8684 Appendix B.2: what the SYN brought has none.
    fn before_first(&self) -> u64 {
        let syn_text = self.subflows[0].syn_text;
        self.token_and_idsn(self.key).1.wrapping_sub(syn_text)
    }

    /// The server's, by which joins name the connection.
    pub fn token(&self) -> u32 {
        self.token_and_idsn(self.server_key).0
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        let subflows = self.subflows.iter();
        subflows
            .flat_map(|s| [s.timer, s.ack_at])
            .flatten()
            .chain(self.data_timer)
            .chain(self.data_fin_timer)
            .chain(self.persist_timer)
            .min()
    }

    pub fn on_timeout(&mut self, now: Instant) {
        for i in 0..self.subflows.len() {
            let s = &mut self.subflows[i];
            if s.ack_at.is_some_and(|t| t <= now) {
                (s.ack_at, s.needs_ack) = (None, true);
            }
            if s.timer.is_none_or(|t| t > now) {
                continue;
            }
            if self.config.server_may_renege {
                s.forget_sacks();
            }
            let alive = s.on_timeout(now);
            if self.config.random_segments && self.mode == Mode::Tcp {
                let (rng, longest) = (&mut self.rng, self.config.segment_bytes);
                s.cut_anew(|| 1 + rng.below(longest));
            }
            // RFC 8684 §3.7: on a path that swallows options it would be new to a server that fell back;
            // and what one subflow is about to repeat is repeated on another only.
            let elsewhere = !alive || (s.stale() && self.open_subflows() > 1);
            if self.mode == Mode::Multipath && self.confirmed && elsewhere {
                self.carry_again(i);
            }
        }
        if self.data_timer.is_some_and(|t| t <= now) {
            self.data_timer = None;
            self.on_stall();
            let end = self
                .data_nxt
                .min(self.data_una + self.config.segment_bytes as u64);
            // RFC 8684 §3.7: before that it would be new to a server that fell back.
            let repeats = self.open_subflows() == 1
                && self
                    .subflows
                    .iter()
                    .any(|s| s.open() && s.snd_una < s.snd_nxt);
            match self.confirmed && !repeats {
                true => self.again.push_front((self.data_una, end)),
                false => self.data_timer = Some(now + DATA_RTO),
            }
        }
        if self.persist_timer.is_some_and(|t| t <= now) {
            self.persist_timer = None;
            self.peer_edge = self.peer_edge.max(self.data_nxt + 1);
        }
        if self.data_fin_timer.is_some_and(|t| t <= now) {
            self.data_fin_timer = None;
            self.on_stall();
        }
    }

    fn open_subflows(&self) -> usize {
        self.subflows.iter().filter(|s| s.open()).count()
    }
}

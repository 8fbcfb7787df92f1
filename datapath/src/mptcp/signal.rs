//! Signals that are not about data: addresses (RFC 8684 §3.4) and priorities (§3.3.8), as they come
//! in, and when ours are due. [`super::address`] keeps what they say.

use super::address::{FirstHop, Learned, LocalAddress, RemoteAddress};
use super::connection::{Connection, Mode};
use super::subflow::{Reset, Subflow};
use crate::crypto;
use crate::metrics::Metrics;
use crate::time::{Duration, Instant};
use crate::wire::frame::Segment;
use crate::wire::mptcp::{AddAddr, AddAddrForm, MpPrio, RemoveAddr};
use std::net::{IpAddr, SocketAddr};

/// Duplicate ACKs that carry signals, in a row.
pub const SIGNALS_IN_A_ROW: u8 = 2;
/// After so long without anything else the row is over.
pub const SIGNAL_PAUSE: Duration = Duration::from_secs(1);
/// Keepalives on a subflow whose address the peer removed, before it is taken to be gone.
pub const REMOVAL_PROBES: u32 = 3;

/// The peer removed the address of a subflow, and nothing was heard there since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removal {
    pub probes: u32,
    /// Then the next probe leaves, or the RST.
    pub next_at: Instant,
}

/// Duplicate ACKs with signals that left on a subflow with nothing else between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalRow {
    sent: u8,
    ends_at: Option<Instant>,
}

impl SignalRow {
    pub fn is_full(&self) -> bool {
        self.sent >= SIGNALS_IN_A_ROW
    }

    pub fn on_sent(&mut self, now: Instant) {
        self.sent += 1;
        if self.is_full() {
            self.ends_at = Some(now + SIGNAL_PAUSE);
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.ends_at
    }
}

impl Connection {
    /// Signals on a segment of a running connection that passed the checks of TCP
    /// (RFC 8684 §3.4.1).
    pub(super) fn on_signals(
        &mut self,
        index: usize,
        now: Instant,
        segment: &Segment<'_>,
        metrics: &mut Metrics,
    ) {
        let options = &segment.tcp.options.mptcp;
        let Some(subflow) = self.subflows.get_mut(index) else {
            return;
        };
        subflow.settled |= options.join.is_none();
        if let Some(prio) = options.prio {
            self.on_prio(index, &prio, metrics);
        }
        if let Some(add_addr) = options.add_addr {
            // RFC 8684 §3.7: options get through; an IPv6 address only leaves no room for the DATA_ACK.
            let believed = self.on_add_addr(index, add_addr, metrics);
            self.subflows[index].confirmed |= believed;
        }
        if let Some(remove_addr) = options.remove_addr {
            self.on_remove_addr(now, &remove_addr, metrics);
        }
    }

    /// RFC 8684 §3.3.8: it is about the subflow that carries it. RFC 6824 §3.3.8: or about all from an
    /// address of the peer's.
    fn on_prio(&mut self, index: usize, prio: &MpPrio, metrics: &mut Metrics) {
        if !self.version.has_prio(prio) {
            return;
        }
        metrics.mp_prio_rx += 1;
        for (i, subflow) in &mut self.subflows {
            if prio
                .address_id
                .map_or(i == index, |id| id == subflow.remote_id)
            {
                subflow.backup = prio.backup;
            }
        }
    }

    /// Returns whether it is the peer's.
    fn on_add_addr(&mut self, index: usize, add_addr: AddAddr, metrics: &mut Metrics) -> bool {
        let AddAddr {
            address_id,
            address,
            ..
        } = add_addr;
        if !self.version.has_add_addr(&add_addr) {
            return false;
        }
        match add_addr.form {
            AddAddrForm::Bare => {}
            AddAddrForm::Echo => {
                metrics.echo_add += 1;
                metrics.port_add += u64::from(add_addr.port.is_some());
                self.addresses.on_echo(&add_addr);
                return true;
            }
            AddAddrForm::Signed(hmac) => {
                let expected = crypto::add_addr_hmac(
                    self.remote_key,
                    self.local_key,
                    address_id,
                    address,
                    add_addr.port,
                );
                if !crypto::hmac_64_valid(expected, hmac) {
                    // RFC 8684 §3.4.1: silently ignored.
                    metrics.add_addr_hmac_failure += 1;
                    return false;
                }
            }
        }
        metrics.add_addr += 1;
        metrics.port_add += u64::from(add_addr.port.is_some());
        let subflow = &self.subflows[index];
        // RFC 8684 §3.4.1: without a port it is that of the subflow that it came on.
        let port = add_addr.port.unwrap_or(subflow.remote.port());
        let learned = self.addresses.learn(RemoteAddress {
            id: address_id,
            address: SocketAddr::new(address, port),
            names_port: add_addr.port.is_some(),
            told_by: FirstHop {
                iface: subflow.iface,
                link: subflow.link,
            },
        });
        metrics.add_addr_drop += u64::from(learned == Learned::Refused);
        if self.version.echoes_add_addr() {
            // Also if it is of no use: or it would come again and again.
            let echoes = self.addresses.owe_echo(add_addr);
            metrics.echo_add_tx_drop += u64::from(!echoes);
        }
        true
    }

    /// RFC 8684 §3.4.2: only what no longer answers is closed. IDs that nobody knows are ignored.
    fn on_remove_addr(&mut self, now: Instant, remove_addr: &RemoveAddr, metrics: &mut Metrics) {
        for &id in remove_addr.ids() {
            metrics.rm_addr += 1;
            self.addresses.forget(id);
            for (_, subflow) in &mut self.subflows {
                if subflow.remote_id != id {
                    continue;
                }
                if subflow.is_being_opened() {
                    subflow.reset.get_or_insert(Reset::default());
                } else if subflow.removal.is_none() && subflow.is_open() {
                    subflow.probe_removal(now, 0);
                }
            }
        }
    }

    /// A keepalive was not answered in time on a subflow whose address the peer removed.
    pub(super) fn on_removal_timeout(&mut self, index: usize, now: Instant, metrics: &mut Metrics) {
        let subflow = &mut self.subflows[index];
        let Some(removal) = subflow.removal else {
            return;
        };
        if removal.probes < REMOVAL_PROBES {
            subflow.probe_removal(now, removal.probes);
        } else {
            // RFC 8684 §3.4.2: a RST, as a courtesy to middleboxes.
            subflow.removal = None;
            metrics.rm_subflow += 1;
            self.reinject_flight(index);
            self.give_up_subflow(index, metrics);
        }
    }

    /// Something other than data, DATA_FIN and their acknowledgments is to leave on this subflow.
    pub fn signal_due(&self, index: usize) -> bool {
        let Some(subflow) = self.subflows.get(index) else {
            return false;
        };
        // RFC 8684 §3.2: on a new subflow the fourth ACK is first, and an address has no DATA_ACK to stand
        // in for one that is lost.
        if self.mode != Mode::Mptcp
            || self.end.is_some()
            || !subflow.is_open()
            || subflow.fourth_ack_due
            || !subflow.settled
            || subflow.signals.is_full()
        {
            return false;
        }
        subflow.prio_due || self.addresses.has_signal() && self.address_subflow() == Some(index)
    }

    /// The subflow that tells of addresses: the fastest one that is not stuck.
    fn address_subflow(&self) -> Option<usize> {
        self.subflows
            .iter()
            .filter(|(_, s)| s.is_open() && s.settled)
            .min_by_key(|(_, s)| (s.tx.rtt.backoff(), s.tx.rtt.srtt().unwrap_or(Duration::MAX)))
            .map(|(index, _)| index)
    }

    /// Tells the peer of an address (RFC 8684 §3.4.1), once the connection is established.
    pub fn announce_address(&mut self, address: LocalAddress) {
        self.addresses.announce(address);
    }

    /// Takes an announced address back (RFC 8684 §3.4.2). Subflows to it end with a FIN, if the
    /// connection has others: what still works is not to be cut off. Returns whether there was one.
    pub fn withdraw_address(&mut self, announced: IpAddr) -> bool {
        let ids = self.addresses.withdraw(announced);
        let concerned = |s: &Subflow| !s.initial && ids.contains(&s.local_id);
        if self
            .subflows
            .iter()
            .any(|(_, s)| s.is_usable() && !concerned(s))
        {
            for (_, subflow) in self.subflows.iter_mut().filter(|(_, s)| concerned(s)) {
                subflow.fin_wanted = true;
            }
        }
        !ids.is_empty()
    }

    /// Uses a subflow only where nothing else works, or like any other, and asks the peer to do the
    /// same (RFC 8684 §3.3.8).
    pub fn set_backup(&mut self, index: usize, backup: bool) {
        let Some(subflow) = self.subflows.get_mut(index) else {
            return;
        };
        if subflow.local_backup != backup {
            subflow.local_backup = backup;
            subflow.prio_due = true;
        }
    }
}

impl Subflow {
    /// Something was heard here: it is alive, and what we say now is no duplicate.
    pub(super) fn on_heard(&mut self) {
        self.removal = None;
        self.signals = SignalRow::default();
    }

    fn probe_removal(&mut self, now: Instant, before: u32) {
        self.probe_due = true;
        self.removal = Some(Removal {
            probes: before + 1,
            next_at: now + self.tx.rtt.rto() * (1 << before),
        });
    }
}

//! The addresses of both ends beside those of the initial subflow (RFC 8684 §3.4): what we announce
//! until it is echoed, what the peer announced, and which IDs ours have.

use crate::port::IfaceId;
use crate::tcp::rtt::RTO_MAX;
use crate::time::{Duration, Instant};
use crate::wire::frame::Link;
use crate::wire::mptcp::{AddAddr, AddAddrForm, RemoveAddr};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

/// Address ID of the initial subflow, at either end (RFC 8684 §3.2).
pub const INITIAL_ID: u8 = 0;
/// Transmissions of one ADD_ADDR of version 1 that is not echoed: the next one leaves after the timeout of
/// the subflow that carried it, as text would, and each later one after twice the time. With the
/// shortest timeout that is half a minute.
pub const ANNOUNCEMENTS_MAX: u32 = 8;
/// From the failure of a subflow to one of our addresses until that is announced anew, and from then
/// on until the next time if nobody joins it; doubled each time.
pub const AGAIN_WAIT: Duration = Duration::from_secs(2);
/// How often, until there was none of it for `AGAIN_FORGOTTEN`.
pub const AGAIN_MAX: u32 = 6;
pub const AGAIN_FORGOTTEN: Duration = Duration::from_secs(600);
/// Addresses of the peer that are kept.
pub const REMOTE_MAX: usize = 8;
/// Attempts of ours that came to nothing, after which a connection is not tried any more: whoever names
/// addresses may name those of others (RFC 8684 §5).
pub const FAILURES_MAX: u8 = 8;
/// Echoes that may wait to be sent. The peer repeats what finds no room.
const ECHOES_MAX: usize = 8;

/// An address of ours that a peer is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAddress {
    pub id: u8,
    /// What the peer is to connect to.
    pub announced: SocketAddr,
    /// The destination with which that arrives here: another one behind a translator.
    pub local: SocketAddr,
}

/// What is to be told to the peer, on an ACK of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Echo(AddAddr),
    Remove(RemoveAddr),
    Add(LocalAddress),
}

/// What became of an address that the peer announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    Kept,
    /// It is of no use, there is no room, or its ID is that of another address.
    Refused,
}

/// How a frame leaves: by which interface, from which station to which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstHop {
    pub iface: IfaceId,
    pub link: Link,
}

/// An address of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteAddress {
    pub id: u8,
    pub address: SocketAddr,
    /// Its announcement had a port, which need not be that of a subflow.
    pub names_port: bool,
    /// Back to where that came from.
    pub told_by: FirstHop,
}

#[derive(Debug)]
struct Announcement {
    address: LocalAddress,
    due: bool,
    transmissions: u32,
    /// No echo has come: it is due again then.
    repeat_at: Option<Instant>,
    /// A subflow to it failed: it is announced anew then, for the time after so many.
    again_at: Option<Instant>,
    again: u32,
    told_at: Instant,
}

impl Announcement {
    fn new(address: LocalAddress) -> Announcement {
        Announcement {
            address,
            due: false,
            transmissions: 0,
            repeat_at: None,
            again_at: None,
            again: 0,
            told_at: Instant::default(),
        }
    }
}

#[derive(Debug, Default)]
pub struct Addresses {
    announced: Vec<Announcement>,
    /// IDs of addresses that peers joined without having been told of them.
    found: Vec<(IpAddr, u8)>,
    /// RFC 8684 §3.4.1: what the peer announced, soft state, and whether it has not been tried since.
    remote: Vec<(RemoteAddress, bool)>,
    failures: u8,
    echoes: VecDeque<AddAddr>,
    removals: Vec<u8>,
}

impl Addresses {
    /// Tells the peer of this address, from now on until it is echoed. A known one is told again
    /// (RFC 8684 §3.4.1: that may trigger another attempt to join it).
    pub fn announce(&mut self, address: LocalAddress) {
        self.announced.retain(|a| a.address.id != address.id);
        self.announced.push(Announcement {
            due: true,
            ..Announcement::new(address)
        });
    }

    /// Takes addresses back; the peer is told if it may have heard of them. Returns their IDs.
    pub fn withdraw(&mut self, announced: IpAddr) -> Vec<u8> {
        // The initial address was never announced, only told anew; its subflows are not to go.
        let gone =
            |a: &Announcement| a.address.id != INITIAL_ID && a.address.announced.ip() == announced;
        let told = self.announced.iter().filter(|a| gone(a));
        self.removals
            .extend(told.filter(|a| a.transmissions > 0).map(|a| a.address.id));
        let ids = self.announced.iter().filter(|a| gone(a));
        let ids = ids.map(|a| a.address.id).collect();
        self.announced.retain(|a| !gone(a));
        ids
    }

    /// Whether what arrives at `local` came by an announcement.
    pub fn is_announced(&self, local: SocketAddr) -> bool {
        self.announced.iter().any(|a| a.address.local == local)
    }

    /// The ID under which a join to `local` is accepted (RFC 8684 §3.2): that of the announcement, or
    /// 0 for the initial address, or one of its own. `None`: they are used up.
    pub fn local_id(&mut self, local: SocketAddr, initial: IpAddr) -> Option<u8> {
        let announced = self.announced.iter().map(|a| a.address);
        let mut by_port = announced.clone().filter(|a| a.local == local);
        let mut by_address = announced.filter(|a| a.local.ip() == local.ip());
        if let Some(address) = by_port.next() {
            return Some(address.id);
        }
        if local.ip() == initial {
            return Some(INITIAL_ID);
        }
        if let Some(address) = by_address.next() {
            return Some(address.id);
        }
        if let Some((_, id)) = self.found.iter().find(|(ip, _)| *ip == local.ip()) {
            return Some(*id);
        }
        let used = |id: u8| {
            self.announced.iter().any(|a| a.address.id == id)
                || self.found.iter().any(|(_, found)| *found == id)
        };
        // From above: those announced later count from below.
        let id = (INITIAL_ID + 1..=u8::MAX).rev().find(|id| !used(*id))?;
        self.found.push((local.ip(), id));
        Some(id)
    }

    /// Takes in an address that the peer announced with a valid HMAC.
    pub fn learn(&mut self, remote: RemoteAddress) -> Learned {
        let RemoteAddress { id, address, .. } = remote;
        if id == INITIAL_ID || !is_usable(address.ip()) || address.port() == 0 {
            return Learned::Refused;
        }
        let room = self.remote.len() < REMOTE_MAX;
        match self.remote.iter_mut().find(|(known, _)| known.id == id) {
            // RFC 8684 §3.4.1: refreshed, maybe with another port; either asks for another attempt. To
            // get another address an ID has to be removed first.
            Some(known) if known.0.address.ip() == address.ip() => *known = (remote, true),
            None if room => self.remote.push((remote, true)),
            _ => return Learned::Refused,
        }
        Learned::Kept
    }

    /// Whether the peer still has this address under this ID.
    pub fn is_known(&self, remote: &RemoteAddress) -> bool {
        let same = |known: &RemoteAddress| known.id == remote.id && known.address == remote.address;
        self.remote.iter().any(|(known, _)| same(known))
    }

    pub fn has_untried(&self) -> bool {
        self.remote.iter().any(|(_, untried)| *untried)
    }

    /// The first address that no subflow was tried to since it was announced; it counts as tried.
    pub fn take_untried(&mut self) -> Option<RemoteAddress> {
        let (remote, untried) = self.remote.iter_mut().find(|(_, untried)| *untried)?;
        *untried = false;
        Some(*remote)
    }

    /// Those of which this is true count as tried.
    pub fn count_as_tried(&mut self, is_tried: impl Fn(&RemoteAddress) -> bool) {
        for (remote, untried) in &mut self.remote {
            *untried = *untried && !is_tried(remote);
        }
    }

    /// An attempt of ours came to nothing.
    pub fn on_unreachable(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// So often that no more are tried.
    pub fn are_unreachable(&self) -> bool {
        self.failures >= FAILURES_MAX
    }

    /// The peer removed an address. Returns whether it had announced it.
    pub fn forget(&mut self, id: u8) -> bool {
        let before = self.remote.len();
        self.remote.retain(|(known, _)| known.id != id);
        self.remote.len() < before
    }

    /// An ADD_ADDR is to be sent back (RFC 8684 §3.4.1, E = 1). `false`: there is no room.
    pub fn owe_echo(&mut self, add_addr: AddAddr) -> bool {
        let echo = AddAddr {
            form: AddAddrForm::Echo,
            ..add_addr
        };
        if self.echoes.contains(&echo) {
            return true;
        }
        let room = self.echoes.len() < ECHOES_MAX;
        if room {
            self.echoes.push_back(echo);
        }
        room
    }

    /// One of ours came back: it is not repeated any more.
    pub fn on_echo(&mut self, echo: &AddAddr) {
        for announced in &mut self.announced {
            let address = announced.address;
            // Without a port in it, it may be of any.
            if address.id == echo.address_id
                && address.announced.ip() == echo.address
                && echo
                    .port
                    .is_none_or(|port| port == address.announced.port())
                && announced.transmissions > 0
            {
                announced.due = false;
                announced.repeat_at = None;
            }
        }
    }

    pub fn has_signal(&self) -> bool {
        let due = self.announced.iter().any(|a| a.due);
        due || !self.echoes.is_empty() || !self.removals.is_empty()
    }

    /// The next thing to be told, which counts as told. `rto` is that of the subflow that carries it.
    pub fn take_signal(&mut self, now: Instant, rto: Duration) -> Option<Signal> {
        if let Some(echo) = self.echoes.pop_front() {
            return Some(Signal::Echo(echo));
        }
        // Before anything new: an ID is removed before it may name another address.
        let several = self.removals.len().min(RemoveAddr::MAX_BESIDE_DSS);
        if let Some(remove) = RemoveAddr::new(&self.removals[..several]) {
            self.removals.drain(..several);
            return Some(Signal::Remove(remove));
        }
        // What was never told goes before what may only have been lost.
        let due = self.announced.iter_mut().filter(|a| a.due);
        let next = due.min_by_key(|a| a.transmissions)?;
        next.due = false;
        let wait = rto.saturating_mul(1 << next.transmissions).min(RTO_MAX);
        if next.transmissions == 0 && (1..AGAIN_MAX).contains(&next.again) {
            next.again_at = Some(now + AGAIN_WAIT * (1 << next.again));
        }
        next.transmissions += 1;
        next.repeat_at = Some(now + wait);
        next.told_at = now;
        Some(Signal::Add(next.address))
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        let deadlines = self
            .announced
            .iter()
            .flat_map(|a| [a.repeat_at, a.again_at]);
        deadlines.flatten().min()
    }

    /// A subflow to an announced address, or to the `initial` one, failed: it is announced anew after a
    /// while, so that the peer may join it again (RFC 8684 §3.4.1). Returns whether it is.
    pub fn on_subflow_failed(
        &mut self,
        local: SocketAddr,
        initial: Option<SocketAddr>,
        now: Instant,
    ) -> bool {
        let known = self.announced.iter().any(|a| a.address.local == local);
        if !known && initial == Some(local) {
            // RFC 8684 §3.2: the peer knows it as ID 0, and under that ID it may be sent again.
            self.announced.push(Announcement::new(LocalAddress {
                id: INITIAL_ID,
                announced: local,
                local,
            }));
        }
        let told =
            |a: &&mut Announcement| a.address.local == local && (a.transmissions > 0 || !known);
        let Some(failed) = self.announced.iter_mut().find(told) else {
            return false;
        };
        if now.since(failed.told_at) >= AGAIN_FORGOTTEN {
            failed.again = 0;
        }
        if failed.again_at.is_some() || failed.again >= AGAIN_MAX {
            return false;
        }
        failed.again_at = Some(now + AGAIN_WAIT * (1 << failed.again));
        true
    }

    /// There is a subflow to this address again.
    pub fn on_rejoined(&mut self, local: SocketAddr) {
        for announced in &mut self.announced {
            if announced.address.local == local {
                announced.again_at = None;
            }
        }
    }

    /// A join came by an announcement: it has arrived, whether or not an echo of it does.
    pub fn on_joined(&mut self, local: SocketAddr) {
        for announced in &mut self.announced {
            if announced.address.local == local {
                announced.due = false;
                announced.repeat_at = None;
            }
        }
    }

    /// Has everything repeated that was not echoed in time, unless it left `announcements_max` times.
    /// Returns how many announcements were given up.
    pub fn on_timeout(&mut self, now: Instant, announcements_max: u32) -> u64 {
        let mut given_up = 0;
        for announced in &mut self.announced {
            if announced.again_at.is_some_and(|at| at <= now) {
                announced.again_at = None;
                announced.again += 1;
                announced.repeat_at = None;
                (announced.due, announced.transmissions) = (true, 0);
            }
            if announced.repeat_at.is_some_and(|at| at <= now) {
                announced.repeat_at = None;
                announced.due = announced.transmissions < announcements_max;
                given_up += u64::from(!announced.due);
            }
        }
        given_up
    }
}

/// Whether a subflow could be opened to this address from another host. Link-local addresses
/// mean nothing without their link, mapped ones are IPv4's.
fn is_usable(address: IpAddr) -> bool {
    let of_family = match address {
        // RFC 6890 §2.2.2: nor may these be a destination: "this network" and what is reserved.
        IpAddr::V4(v4) => !v4.is_link_local() && (1..240).contains(&v4.octets()[0]),
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && v6.to_ipv4_mapped().is_none(),
    };
    of_family && !address.is_unspecified() && !address.is_loopback() && !address.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTO: Duration = Duration::from_millis(200);

    fn local(id: u8, announced: &str, local: &str) -> LocalAddress {
        LocalAddress {
            id,
            announced: announced.parse().expect("an address"),
            local: local.parse().expect("an address"),
        }
    }

    fn remote(id: u8, address: &str) -> RemoteAddress {
        RemoteAddress {
            id,
            address: address.parse().expect("an address"),
            names_port: true,
            told_by: FirstHop {
                iface: IfaceId(0),
                link: Link::default(),
            },
        }
    }

    fn add(address_id: u8, address: &str) -> AddAddr {
        AddAddr {
            address_id,
            address: address.parse().expect("an address"),
            port: None,
            form: AddAddrForm::Signed(7),
        }
    }

    // RFC 8684 §3.2: an ID names an address, whoever joined it and however it was learnt of.
    #[test]
    fn ids_name_addresses() {
        let mut addresses = Addresses::default();
        addresses.announce(local(5, "203.0.113.1:80", "10.0.0.2:80"));
        addresses.announce(local(6, "192.0.2.1:81", "192.0.2.1:81"));
        let initial: IpAddr = "192.0.2.1".parse().expect("an address");
        let mut id = |local: &str| addresses.local_id(local.parse().expect("an address"), initial);
        assert_eq!(id("10.0.0.2:80"), Some(5), "where the translator leads");
        assert_eq!(id("10.0.0.2:8080"), Some(5), "the address is the same");
        assert_eq!(id("192.0.2.1:80"), Some(INITIAL_ID));
        assert_eq!(id("192.0.2.1:81"), Some(6), "announced for its port");
        let other = id("10.0.0.3:80").expect("an ID of its own");
        assert!(![0, 5, 6].contains(&other));
        assert_eq!(id("10.0.0.3:80"), Some(other));
        let mut ids: Vec<_> = (0..=255).map(|n| id(&format!("10.1.0.{n}:80"))).collect();
        // All but 0, the two announced and the one before.
        assert_eq!(ids.iter().flatten().count(), 252);
        ids.retain(Option::is_some);
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 252);
    }

    // RFC 8684 §3.4.1: repeated until echoed, not for ever, and an echo of something else is none.
    #[test]
    fn announcements_are_repeated_until_echoed_or_given_up() {
        let mut addresses = Addresses::default();
        let address = local(1, "203.0.113.1:80", "203.0.113.1:80");
        addresses.announce(address);
        let mut now = Instant::from_millis(1000);
        let mut wait = RTO;
        for _ in 0..ANNOUNCEMENTS_MAX {
            assert_eq!(addresses.take_signal(now, RTO), Some(Signal::Add(address)));
            assert!(!addresses.has_signal());
            addresses.on_echo(&add(1, "203.0.113.2"));
            assert_eq!(addresses.next_deadline(), Some(now + wait));
            addresses.on_timeout(now + (wait - Duration::from_nanos(1)), ANNOUNCEMENTS_MAX);
            assert!(!addresses.has_signal(), "just before its time");
            now = now + wait;
            wait *= 2;
            assert!(addresses.on_timeout(now, ANNOUNCEMENTS_MAX) <= 1);
        }
        assert!(!addresses.has_signal(), "given up");
        assert_eq!(addresses.next_deadline(), None);
        addresses.announce(address);
        assert!(addresses.take_signal(now, RTO).is_some());
        addresses.on_echo(&add(1, "203.0.113.1"));
        assert_eq!(addresses.next_deadline(), None);
    }

    // Each time later than the one before, so often and no more; a join ends it.
    #[test]
    fn the_address_of_a_failed_subflow_is_announced_anew() {
        let mut addresses = Addresses::default();
        let address = local(1, "203.0.113.1:80", "203.0.113.1:80");
        addresses.announce(address);
        let mut now = Instant::from_millis(1000);
        let echoed = |addresses: &mut Addresses, now| {
            assert_eq!(addresses.take_signal(now, RTO), Some(Signal::Add(address)));
            addresses.on_echo(&add(1, "203.0.113.1"));
        };
        echoed(&mut addresses, now);
        let failed =
            |addresses: &mut Addresses, now| addresses.on_subflow_failed(address.local, None, now);
        let other = "203.0.113.1:81".parse().unwrap();
        assert!(!addresses.on_subflow_failed(other, None, now));
        assert!(failed(&mut addresses, now));
        assert!(!failed(&mut addresses, now));
        for round in 0..AGAIN_MAX {
            let at = now + AGAIN_WAIT * (1 << round);
            assert_eq!(addresses.next_deadline(), Some(at));
            let before = now + (AGAIN_WAIT * (1 << round) - Duration::from_nanos(1));
            addresses.on_timeout(before, ANNOUNCEMENTS_MAX);
            assert!(!addresses.has_signal(), "just before its time");
            addresses.on_timeout(at, ANNOUNCEMENTS_MAX);
            now = at;
            echoed(&mut addresses, now);
        }
        assert_eq!(addresses.next_deadline(), None);
        let forgotten = now + AGAIN_FORGOTTEN;
        let before = now + (AGAIN_FORGOTTEN - Duration::from_nanos(1));
        assert!(!failed(&mut addresses, before));
        assert!(failed(&mut addresses, forgotten));
        addresses.on_rejoined(address.local);
        assert_eq!(addresses.next_deadline(), None);
    }

    // RFC 8684 §3.2, §3.4.1: the initial address has the ID 0, under which it may be told anew; nobody
    // takes it back.
    #[test]
    fn the_initial_address_is_announced_anew_under_its_id() {
        let mut addresses = Addresses::default();
        let initial = local(INITIAL_ID, "192.0.2.1:80", "192.0.2.1:80");
        let now = Instant::from_millis(1000);
        let other = "192.0.2.2:80".parse().expect("an address");
        assert!(!addresses.on_subflow_failed(other, Some(initial.local), now));
        let mut failed = |now| {
            let failed = addresses.on_subflow_failed(initial.local, Some(initial.local), now);
            (failed, addresses.next_deadline())
        };
        assert_eq!(failed(now), (true, Some(now + AGAIN_WAIT)));
        assert_eq!(failed(now + RTO), (false, Some(now + AGAIN_WAIT)));
        let now = now + AGAIN_WAIT;
        addresses.on_timeout(now, ANNOUNCEMENTS_MAX);
        assert_eq!(addresses.take_signal(now, RTO), Some(Signal::Add(initial)));
        assert_eq!(addresses.withdraw(initial.announced.ip()), []);
        addresses.on_echo(&add(INITIAL_ID, "192.0.2.1"));
        addresses.on_rejoined(initial.local);
        assert_eq!(addresses.next_deadline(), None);
        assert!(addresses.on_subflow_failed(initial.local, Some(initial.local), now));
    }

    // RFC 8684 §3.4.1: an ID keeps its address until it is removed; what is of no use is not kept.
    #[test]
    fn what_the_peer_announces_is_kept_within_limits() {
        let mut addresses = Addresses::default();
        let mut learn = |id, address: &str| addresses.learn(remote(id, address));
        assert_eq!(learn(1, "10.0.0.1:5000"), Learned::Kept);
        assert_eq!(learn(1, "10.0.0.1:5001"), Learned::Kept);
        assert_eq!(learn(1, "10.0.0.2:5000"), Learned::Refused);
        for useless in [
            "0.0.0.0:1",
            "0.255.255.255:1",
            "169.254.0.1:1",
            "240.0.0.1:1",
            "127.0.0.1:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "[ff02::1]:1",
            "[::]:1",
            "[fe80::1]:1",
            "[::ffff:10.0.0.9]:1",
            "10.0.0.9:0",
        ] {
            assert_eq!(learn(2, useless), Learned::Refused, "{useless}");
        }
        assert_eq!(learn(INITIAL_ID, "10.0.0.3:1"), Learned::Refused);
        for id in 2..=REMOTE_MAX as u8 {
            assert_eq!(learn(id, "10.0.0.3:1"), Learned::Kept);
        }
        assert_eq!(learn(100, "10.0.0.4:1"), Learned::Refused, "one too many");
        assert!(!addresses.forget(100));
        assert!(addresses.forget(1));
        assert_eq!(addresses.learn(remote(1, "10.0.0.2:5000")), Learned::Kept);
        assert_eq!(addresses.remote.len(), REMOTE_MAX);
    }

    // RFC 8684 §3.4.1: an address is tried once, and again when it is announced again or has another
    // port.
    #[test]
    fn every_announcement_asks_for_one_attempt() {
        let mut addresses = Addresses::default();
        for address in ["10.0.0.1:1", "10.0.0.1:1", "10.0.0.1:2"] {
            addresses.learn(remote(1, address));
            assert_eq!(addresses.take_untried(), Some(remote(1, address)));
            assert_eq!(addresses.take_untried(), None);
        }
        addresses.learn(remote(1, "10.0.0.2:1"));
        assert!(!addresses.has_untried(), "its ID is that of another one");
        assert!(addresses.is_known(&remote(1, "10.0.0.1:2")));
        assert!(!addresses.is_known(&remote(1, "10.0.0.1:1")));
        addresses.forget(1);
        assert!(!addresses.is_known(&remote(1, "10.0.0.1:2")));
    }

    #[test]
    fn only_what_was_told_is_taken_back() {
        let mut addresses = Addresses::default();
        addresses.announce(local(1, "203.0.113.1:80", "203.0.113.1:80"));
        let ip = "203.0.113.1".parse().expect("an address");
        assert_eq!(addresses.withdraw(ip), [1]);
        assert!(!addresses.has_signal());
        let now = Instant::from_millis(1000);
        addresses.announce(local(1, "203.0.113.1:80", "203.0.113.1:80"));
        addresses.take_signal(now, RTO);
        assert_eq!(addresses.withdraw(ip), [1]);
        let remove = RemoveAddr::new(&[1]).expect("one ID");
        assert_eq!(
            addresses.take_signal(now, RTO),
            Some(Signal::Remove(remove))
        );
        assert_eq!(addresses.next_deadline(), None);
    }

    #[test]
    fn echoes_wait_once_each_and_not_without_limit() {
        let mut addresses = Addresses::default();
        for _ in 0..2 {
            assert!(addresses.owe_echo(add(1, "10.0.0.1")));
        }
        for id in 2..=ECHOES_MAX as u8 {
            assert!(addresses.owe_echo(add(id, "10.0.0.1")));
        }
        assert!(!addresses.owe_echo(add(200, "10.0.0.1")));
        let now = Instant::from_millis(1000);
        let sent = std::iter::from_fn(|| addresses.take_signal(now, RTO));
        assert_eq!(sent.count(), ECHOES_MAX);
    }
}

//! Which addresses a service announces to whom, and which joins it takes (RFC 8684 §3.4, §3.2).

use super::Engine;
use crate::mptcp::address::LocalAddress;
use crate::time::Instant;
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};

/// What a service does about addresses. By default it announces none and takes every join.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressPolicy {
    pub announce: Vec<Announce>,
    /// The first one that fits a join decides.
    pub join_rules: Vec<JoinRule>,
    /// C of MP_CAPABLE (RFC 8684 §3.1): no joins to the address and port of the initial subflow, as
    /// behind a balancer that knows nothing of tokens.
    pub deny_join_initial: bool,
    /// In place of the engine's [`super::EngineConfig::subflows_per_connection_max`].
    pub subflows_max: Option<usize>,
}

/// An address to announce to clients, bound here or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announce {
    /// Not 0, and of no other address of the service (RFC 8684 §3.4.1).
    pub id: u8,
    pub address: IpAddr,
    /// `None`: that of the initial subflow.
    pub port: Option<u16>,
    /// The destination with which that arrives here, if a translator changes it.
    pub local: Option<SocketAddr>,
    /// Only clients whose initial subflow comes from there are told.
    pub clients: Option<IpNet>,
}

/// What becomes of joins between these addresses; `None` is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinRule {
    pub from: Option<IpNet>,
    pub to: Option<IpNet>,
    pub accept: bool,
    /// Used only where nothing else works, by either side (RFC 8684 §3.3.8).
    pub backup: bool,
}

impl JoinRule {
    /// Where no other rule fits.
    const OTHERWISE: JoinRule = JoinRule {
        from: None,
        to: None,
        accept: true,
        backup: false,
    };

    fn fits(&self, from: IpAddr, to: IpAddr) -> bool {
        self.from.is_none_or(|net| net.contains(&from))
            && self.to.is_none_or(|net| net.contains(&to))
    }
}

impl AddressPolicy {
    /// The rule for a join from a client's address to one of ours.
    pub fn join_rule(&self, from: IpAddr, to: IpAddr) -> JoinRule {
        let fits = self.join_rules.iter().find(|rule| rule.fits(from, to));
        *fits.unwrap_or(&JoinRule::OTHERWISE)
    }

    /// What a client is told whose initial subflow goes to `initial`; that address is no news to it.
    pub fn announced_to(
        &self,
        client: IpAddr,
        initial: SocketAddr,
    ) -> impl Iterator<Item = LocalAddress> {
        let told = move |a: &&Announce| a.clients.is_none_or(|net| net.contains(&client));
        let address = move |a: &Announce| {
            let announced = SocketAddr::new(a.address, a.port.unwrap_or(initial.port()));
            LocalAddress {
                id: a.id,
                announced,
                local: a.local.unwrap_or(announced),
            }
        };
        self.announce
            .iter()
            .filter(told)
            .map(address)
            .filter(move |a| a.local != initial)
    }
}

impl Engine {
    /// Announces an address of service `service`, to its connections and to those that come. One with
    /// the same ID is replaced; to give an ID to another address, withdraw the old one first
    /// (RFC 8684 §3.4.1). An address that is announced already is announced again: that asks clients
    /// to try it once more. Returns how many connections are told.
    pub fn announce_address(&mut self, now: Instant, service: usize, announce: Announce) -> usize {
        let policy = &mut self.services[service].config.addresses;
        policy.announce.retain(|a| a.id != announce.id);
        policy.announce.push(announce);
        let only = AddressPolicy {
            announce: vec![announce],
            ..AddressPolicy::default()
        };
        self.for_connections(now, |connection| {
            let mut told = false;
            if connection.service == service && connection.token != 0 {
                let client = connection.peer_addr.ip();
                for address in only.announced_to(client, connection.local_addr) {
                    connection.announce_address(address);
                    told = true;
                }
            }
            told
        })
    }

    /// Takes an announced address back, from all connections and those that come (RFC 8684 §3.4.2).
    /// Returns how many connections knew it.
    pub fn withdraw_address(&mut self, now: Instant, address: IpAddr) -> usize {
        for service in &mut self.services {
            let announced = &mut service.config.addresses.announce;
            announced.retain(|a| a.address != address);
        }
        self.for_connections(now, |connection| connection.withdraw_address(address))
    }

    /// Makes every subflow to one of our addresses within `local` a backup, or takes that back, and
    /// tells the clients (RFC 8684 §3.3.8). Returns how many connections have one.
    pub fn set_backup(&mut self, now: Instant, local: IpNet, backup: bool) -> usize {
        self.for_connections(now, |connection| {
            let subflows = connection.subflows.iter();
            let concerned: Vec<usize> = subflows
                .filter(|(_, s)| local.contains(&s.local.ip()))
                .map(|(index, _)| index)
                .collect();
            for &index in &concerned {
                connection.set_backup(index, backup);
            }
            !concerned.is_empty()
        })
    }

    /// Returns how many `change` had something to do with.
    fn for_connections(
        &mut self,
        now: Instant,
        mut change: impl FnMut(&mut crate::mptcp::Connection) -> bool,
    ) -> usize {
        let indexes: Vec<usize> = self.connections.iter().map(|(index, _)| index).collect();
        let mut changed = 0;
        for index in indexes {
            if change(&mut self.connections[index]) {
                changed += 1;
                self.settle(index, now, &[]);
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(from: &str, to: &str, accept: bool) -> JoinRule {
        JoinRule {
            from: Some(from.parse().expect("a prefix")),
            to: Some(to.parse().expect("a prefix")),
            accept,
            backup: false,
        }
    }

    // Same subnets in pairs, and nothing across.
    #[test]
    fn the_first_rule_that_fits_decides() {
        let mut policy = AddressPolicy::default();
        let join = |policy: &AddressPolicy, from: &str, to: &str| {
            let address = |text: &str| text.parse::<IpAddr>().expect("an address");
            policy.join_rule(address(from), address(to)).accept
        };
        assert!(join(&policy, "10.0.1.1", "10.0.2.2"));
        policy.join_rules = vec![
            rule("10.0.1.0/24", "10.0.1.0/24", true),
            rule("10.0.2.0/24", "10.0.2.0/24", true),
            rule("0.0.0.0/0", "0.0.0.0/0", false),
        ];
        assert!(join(&policy, "10.0.1.1", "10.0.1.2"));
        assert!(join(&policy, "10.0.2.1", "10.0.2.2"));
        assert!(!join(&policy, "10.0.1.1", "10.0.2.2"));
        assert!(
            join(&policy, "2001:db8::1", "2001:db8::2"),
            "another family"
        );
    }

    #[test]
    fn clients_are_told_what_is_for_them_and_new_to_them() {
        let announce = |id, address: &str, clients: Option<&str>| Announce {
            id,
            address: address.parse().expect("an address"),
            port: None,
            local: None,
            clients: clients.map(|net| net.parse().expect("a prefix")),
        };
        let policy = AddressPolicy {
            announce: vec![
                announce(1, "192.0.2.1", None),
                announce(2, "192.0.2.2", Some("10.0.0.0/8")),
                announce(3, "2001:db8::1", Some("2001:db8::/32")),
            ],
            ..AddressPolicy::default()
        };
        let told = |client: &str, initial: &str| {
            let client = client.parse().expect("an address");
            let initial = initial.parse().expect("an address");
            let told = policy.announced_to(client, initial);
            told.map(|a| (a.id, a.announced.port())).collect::<Vec<_>>()
        };
        assert_eq!(told("10.1.1.1", "192.0.2.1:80"), [(2, 80)]);
        assert_eq!(told("10.1.1.1", "192.0.2.9:81"), [(1, 81), (2, 81)]);
        assert_eq!(told("198.51.100.1", "192.0.2.9:80"), [(1, 80)]);
    }
}

//! Which addresses a service announces to whom, and which joins it takes (RFC 8684 §3.4, §3.2).

use super::Engine;
use crate::mptcp::Connection;
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
    /// Subflows of a connection that we open ourselves, to addresses that the client announces; 0 is
    /// none, ever.
    pub open_subflows: usize,
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

    /// Whether clients know our addresses as others, as far as the operator has said so.
    pub fn are_translated(&self) -> bool {
        self.announce.iter().any(|a| a.local.is_some())
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

/// What an operator changes while connections are open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressChange {
    /// Announces an address of a service to its connections and to those that come. The ID is that under
    /// which it is announced already, or the lowest that is free, if none is given. What is announced
    /// already is announced again: that asks clients to try it once more.
    Announce {
        service: usize,
        id: Option<u8>,
        announce: Announce,
    },
    /// Takes an announced address back, from all connections and from those that come
    /// (RFC 8684 §3.4.2).
    Withdraw { address: IpAddr },
    /// Makes every subflow to one of our addresses within `local` a backup, or a regular one, tells the
    /// clients (RFC 8684 §3.3.8), and does so with those that join later, whatever the rules say.
    SetBackup { local: IpNet, backup: bool },
}

/// A part of the connections has been told of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressStep {
    /// How many of them it concerned.
    pub changed: usize,
    /// Where the next part begins; `None` after the last.
    pub next: Option<usize>,
}

impl Engine {
    /// Makes a change for all that comes, and then for the connections in `places` places of their table
    /// from the `from`-th on: to be called again, with what the step before returned, until all are
    /// through.
    ///
    /// # Errors
    /// Why it cannot be made, with the remedy, on one line.
    pub fn change_addresses(
        &mut self,
        now: Instant,
        change: &AddressChange,
        from: usize,
        places: usize,
    ) -> Result<AddressStep, String> {
        let mut announced = AddressPolicy::default();
        match change {
            AddressChange::Announce {
                service,
                id,
                announce,
            } => {
                let announce = self.take_announcement(*service, *id, *announce)?;
                announced.announce.push(announce);
            }
            AddressChange::Withdraw { address } if from == 0 => {
                self.forget_announcement(*address)?;
            }
            AddressChange::SetBackup { local, backup } if from == 0 => {
                self.backups.set(*local, *backup)?;
            }
            _ => {}
        }
        let step = self.for_connections(now, from, places, |connection| match change {
            AddressChange::Announce { service, .. } => {
                let mut told = false;
                if connection.service == *service && connection.token != 0 {
                    let client = connection.peer_addr.ip();
                    for address in announced.announced_to(client, connection.local_addr) {
                        connection.announce_address(address);
                        told = true;
                    }
                }
                told
            }
            AddressChange::Withdraw { address } => connection.withdraw_address(*address),
            AddressChange::SetBackup { local, backup } => {
                let subflows = connection.subflows.iter();
                let concerned: Vec<usize> = subflows
                    .filter(|(_, s)| local.contains(&s.local.ip()))
                    .map(|(index, _)| index)
                    .collect();
                for &index in &concerned {
                    connection.set_backup(index, *backup);
                }
                !concerned.is_empty()
            }
        });
        Ok(step)
    }

    /// Enters an address into the list of a service, under its ID.
    fn take_announcement(
        &mut self,
        service: usize,
        id: Option<u8>,
        announce: Announce,
    ) -> Result<Announce, String> {
        let arrives_at = announce.local.map_or(announce.address, |local| local.ip());
        let mut listens = self.services.iter().flat_map(|s| &s.config.listen);
        if !listens.any(|l| l.ip() == arrives_at) {
            return Err(format!(
                "no service listens on {arrives_at}; announce an address of ours, or say with local \
                 where it arrives"
            ));
        }
        let service = &mut self.services[service].config;
        if !service.versions.any() {
            return Err(format!(
                "{} does plain TCP only, where nothing can be announced",
                service.name
            ));
        }
        let known = &mut service.addresses.announce;
        let same = |a: &Announce| a.address == announce.address && a.port == announce.port;
        let free = || (1..=u8::MAX).find(|id| known.iter().all(|a| a.id != *id));
        let id = id
            .or_else(|| known.iter().find(|a| same(a)).map(|a| a.id))
            .or_else(free)
            .ok_or("all 255 IDs are in use; withdraw an address")?;
        // RFC 8684 §3.4.1: to get another address an ID has to be removed first.
        if let Some(other) = known
            .iter()
            .find(|a| a.id == id && a.address != announce.address)
        {
            return Err(format!(
                "ID {id} is that of {}; choose another one, or withdraw that first",
                other.address
            ));
        }
        known.retain(|a| a.id != id && !same(a));
        let announce = Announce { id, ..announce };
        known.push(announce);
        Ok(announce)
    }

    fn forget_announcement(&mut self, address: IpAddr) -> Result<(), String> {
        let mut found = false;
        for service in &mut self.services {
            let announced = &mut service.config.addresses.announce;
            found |= announced.iter().any(|a| a.address == address);
            announced.retain(|a| a.address != address);
        }
        match found {
            true => Ok(()),
            false => Err(format!(
                "{address} is not announced; nothing is to be taken back"
            )),
        }
    }

    /// Counts those that `change` had something to do with.
    fn for_connections(
        &mut self,
        now: Instant,
        from: usize,
        places: usize,
        mut change: impl FnMut(&mut Connection) -> bool,
    ) -> AddressStep {
        let table_end = self.connections.capacity();
        let end = from.saturating_add(places).min(table_end);
        let mut changed = 0;
        for index in from..end {
            let connection = self.connections.get_mut(index);
            if connection.is_some_and(|connection| change(connection)) {
                changed += 1;
                self.settle(index, now, &[]);
            }
        }
        AddressStep {
            changed,
            next: Some(end).filter(|&end| end < table_end),
        }
    }
}

/// Prefixes of our addresses that an operator has made backups or regular ones, the latest last.
#[derive(Debug, Default)]
pub(super) struct Backups(Vec<(IpNet, bool)>);

impl Backups {
    const MAX: usize = 64;

    fn set(&mut self, local: IpNet, backup: bool) -> Result<(), String> {
        self.0.retain(|(known, _)| !local.contains(known));
        if self.0.len() >= Backups::MAX {
            return Err(format!(
                "{} prefixes are set already; set one that covers several",
                Backups::MAX
            ));
        }
        self.0.push((local, backup));
        Ok(())
    }

    /// What was said of this address last, if anything.
    pub(super) fn of(&self, local: IpAddr) -> Option<bool> {
        let mut latest = self.0.iter().rev();
        latest.find(|(net, _)| net.contains(&local)).map(|b| b.1)
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

//! What the XDP program is told about addresses and ports.

use crate::config::Config;
use crate::preflight::Plan;
use mpx_datapath::engine::{Announce, JoinPolicy};
use mpx_ebpf::{
    ENTRY_ADDRESS, ENTRY_ANNOUNCE, ENTRY_JOINS, ENTRY_SERVICE, ServiceKey, address_key,
    address_octets, service_key_of,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// Entries of the services map: `ENTRY_…` bits of addresses, and of addresses with ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entries {
    pub(crate) bits: BTreeMap<ServiceKey, u32>,
    /// The addresses among them.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Where each service listens.
    services: Vec<Vec<SocketAddr>>,
}

impl Entries {
    pub(crate) fn new(config: &Config, plan: &Plan) -> Entries {
        let mut entries = Entries {
            services: plan.addresses.clone(),
            ..Entries::default()
        };
        let all = || config.services.iter().zip(&plan.addresses);
        // Connections over plain TCP are not joined, nor do they say where others may be.
        let joined = all().filter(|(service, _)| service.versions.any());
        let served: BTreeSet<IpAddr> = joined
            .flat_map(|(_, addresses)| addresses.iter().map(SocketAddr::ip))
            .collect();
        for (service, addresses) in all() {
            let joins = if service.versions.any() {
                ENTRY_JOINS
            } else {
                0
            };
            for &address in addresses {
                entries.add(address, ENTRY_SERVICE | joins);
            }
            if !service.versions.any() {
                continue;
            }
            match &service.joins {
                JoinPolicy::AnyPort => {
                    for &ip in &served {
                        entries.add_address(ip, ENTRY_JOINS);
                    }
                }
                JoinPolicy::Ports(ports) => {
                    for (&ip, &port) in served
                        .iter()
                        .flat_map(|ip| ports.iter().map(move |p| (ip, p)))
                    {
                        entries.add(SocketAddr::new(ip, port), ENTRY_JOINS);
                    }
                }
                JoinPolicy::ServicePorts => {}
            }
        }
        for (index, service) in config.services.iter().enumerate() {
            if !service.versions.any() {
                continue;
            }
            for announce in &service.addresses.announce {
                entries.announce(index, announce);
            }
        }
        for &ip in &plan.announced {
            entries.add_address(ip, ENTRY_ANNOUNCE);
        }
        entries
    }

    /// What is announced of a service is to be joined, whatever its policy says of the rest.
    pub(crate) fn announce(&mut self, service: usize, announce: &Announce) {
        let listen = self.services.get(service).into_iter().flatten();
        let at: Vec<_> = listen
            .map(|initial| {
                let port = announce.port.unwrap_or(initial.port());
                let announced = SocketAddr::new(announce.address, port);
                announce.local.unwrap_or(announced)
            })
            .collect();
        for &address in &at {
            self.add(address, ENTRY_JOINS);
        }
    }

    /// Where these and others are not the same.
    pub(crate) fn difference(&self, other: &Entries) -> Vec<ServiceKey> {
        let keys: BTreeSet<_> = self.bits.keys().chain(other.bits.keys()).collect();
        let changed = |key: &&ServiceKey| self.bits.get(*key) != other.bits.get(*key);
        keys.into_iter().filter(changed).copied().collect()
    }

    fn add(&mut self, address: SocketAddr, bits: u32) {
        *self.bits.entry(service_key_of(address)).or_default() |= bits;
        self.add_address(address.ip(), 0);
    }

    fn add_address(&mut self, ip: IpAddr, bits: u32) {
        let key = address_key(address_octets(ip));
        *self.bits.entry(key).or_default() |= bits | ENTRY_ADDRESS;
        self.addresses.insert(ip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// The bits of `at`: an address, or an address and port.
    fn bits(entries: &Entries, at: &str) -> u32 {
        let key = match at.parse() {
            Ok(address) => service_key_of(address),
            Err(_) => address_key(address_octets(at.parse().unwrap())),
        };
        entries.bits.get(&key).copied().unwrap_or(0)
    }

    fn entries(keys: &str) -> Entries {
        let text = format!(
            "[[interface]]\nname = \"s1\"\n\
             [[service]]\nname = \"a\"\nlisten = [\"10.9.1.2:80\"]\napp = {{ kind = \"echo\" }}\n\
             joins = \"service-ports\"\n\
             [[service]]\nname = \"b\"\nlisten = [\"[fd00::2]:443\"]\napp = {{ kind = \"echo\" }}\n\
             {keys}"
        );
        let config = Config::parse(Path::new("m.toml"), &text).unwrap();
        let listen = |service: &crate::config::Service| {
            service.listen.iter().map(|listen| listen.address).collect()
        };
        let plan = Plan {
            addresses: config.services.iter().map(listen).collect(),
            announced: vec!["fd00::2".parse().unwrap()],
            ..Plan::default()
        };
        Entries::new(&config, &plan)
    }

    #[test]
    fn joins_go_where_some_service_takes_them() {
        let any = entries("");
        assert_eq!(bits(&any, "10.9.1.2:80"), ENTRY_SERVICE | ENTRY_JOINS);
        assert_eq!(bits(&any, "10.9.1.2"), ENTRY_ADDRESS | ENTRY_JOINS);
        assert_eq!(
            bits(&any, "fd00::2"),
            ENTRY_ADDRESS | ENTRY_JOINS | ENTRY_ANNOUNCE
        );

        let ports = entries("joins = [8080, 80]\n");
        assert_eq!(bits(&ports, "10.9.1.2"), ENTRY_ADDRESS);
        assert_eq!(bits(&ports, "10.9.1.2:8080"), ENTRY_JOINS);
        assert_eq!(bits(&ports, "10.9.1.2:80"), ENTRY_SERVICE | ENTRY_JOINS);
        assert_eq!(bits(&ports, "[fd00::2]:8080"), ENTRY_JOINS);
        assert_eq!(bits(&ports, "10.9.1.2:8081"), 0);
    }

    // Neither its port nor its address, nor what its policy says of others'.
    #[test]
    fn a_service_of_plain_tcp_takes_no_joins_anywhere() {
        for policy in [
            "",
            "joins = [8080]\n",
            "[[service.announce]]\naddress = \"10.9.1.2\"\n",
        ] {
            let plain = entries(&format!("mptcp = {{ versions = [] }}\n{policy}"));
            assert_eq!(bits(&plain, "[fd00::2]:443"), ENTRY_SERVICE, "{policy}");
            assert_eq!(bits(&plain, "fd00::2"), ENTRY_ADDRESS | ENTRY_ANNOUNCE);
            assert_eq!(bits(&plain, "10.9.1.2"), ENTRY_ADDRESS);
            assert_eq!(bits(&plain, "10.9.1.2:80"), ENTRY_SERVICE | ENTRY_JOINS);
            assert_eq!(bits(&plain, "10.9.1.2:8080"), 0);
        }
        let other = entries(
            "[[service]]\nname = \"c\"\nlisten = [\"10.9.1.9:81\"]\n\
             mptcp = { versions = [] }\napp = { kind = \"echo\" }\n",
        );
        assert_eq!(bits(&other, "10.9.1.2"), ENTRY_ADDRESS | ENTRY_JOINS);
        assert_eq!(bits(&other, "10.9.1.9"), ENTRY_ADDRESS);
        assert_eq!(bits(&other, "10.9.1.9:81"), ENTRY_SERVICE);
    }

    #[test]
    fn what_an_announcement_changes_is_what_its_refusal_changes_back() {
        let before = entries("joins = \"service-ports\"\n");
        let mut after = before.clone();
        let announce = |address: &str, port| Announce {
            id: 0,
            address: address.parse().unwrap(),
            port,
            local: None,
            clients: None,
        };
        after.announce(1, &announce("10.9.1.2", Some(80)));
        assert!(
            before.difference(&after).is_empty(),
            "it takes joins already"
        );
        after.announce(1, &announce("10.9.1.2", Some(8080)));
        let at = |at: &str| service_key_of(at.parse().unwrap());
        assert_eq!(before.difference(&after), [at("10.9.1.2:8080")]);
        after.announce(1, &announce("10.9.1.4", None));
        let difference = before.difference(&after);
        assert_eq!(difference.len(), 3, "a port and an address more");
        assert_eq!(difference, after.difference(&before));
    }

    #[test]
    fn what_is_announced_is_joined_where_it_arrives() {
        let announced = entries(
            "joins = \"service-ports\"\n\
             [[service.announce]]\naddress = \"198.51.100.7\"\nlocal = \"10.9.1.3:8443\"\n\
             [[service.announce]]\naddress = \"10.9.1.2\"\nport = 8080\n\
             [[service.announce]]\naddress = \"10.9.1.4\"\n",
        );
        assert_eq!(bits(&announced, "10.9.1.3:8443"), ENTRY_JOINS);
        assert_eq!(bits(&announced, "10.9.1.3"), ENTRY_ADDRESS);
        assert_eq!(bits(&announced, "198.51.100.7"), 0);
        assert_eq!(bits(&announced, "10.9.1.2:8080"), ENTRY_JOINS);
        // Without a port it is that of the initial subflow.
        assert_eq!(bits(&announced, "10.9.1.4:443"), ENTRY_JOINS);
        assert_eq!(bits(&announced, "10.9.1.4:80"), 0);
    }
}

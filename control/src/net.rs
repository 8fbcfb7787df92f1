//! The kernel's own TCP sockets: what an XDP program in front of them would cut off.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A kernel TCP socket of this network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KernelSocket {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) listening: bool,
    inode: u64,
}

/// The TCP sockets that a process holds, from `/proc/thread-self/net/tcp{,6}`. Orphans and
/// TIME-WAIT are left out: nobody misses their segments. MPTCP subflows are listed among them.
pub(crate) fn kernel_sockets() -> io::Result<Vec<KernelSocket>> {
    let mut sockets = parse(&std::fs::read_to_string("/proc/thread-self/net/tcp")?);
    // Without IPv6 in the kernel there is no such file.
    match std::fs::read_to_string("/proc/thread-self/net/tcp6") {
        Ok(text) => sockets.extend(parse(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(sockets)
}

/// The first socket that lives on `address`, itself or through a wildcard.
pub(crate) fn conflict(sockets: &[KernelSocket], address: SocketAddr) -> Option<&KernelSocket> {
    sockets.iter().find(|socket| socket.covers(address))
}

impl KernelSocket {
    fn covers(&self, address: SocketAddr) -> bool {
        if self.local.port() != address.port() {
            return false;
        }
        match self.local.ip().to_canonical() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.is_ipv4(),
            // procfs does not tell IPV6_V6ONLY, without which `::` takes IPv4 too.
            IpAddr::V6(ip) if ip.is_unspecified() => true,
            ip => ip == address.ip().to_canonical(),
        }
    }

    /// The process that holds this socket, as `name (pid)`, if /proc shows it.
    pub(crate) fn process(&self) -> Option<String> {
        let wanted = format!("socket:[{}]", self.inode);
        std::fs::read_dir("/proc")
            .ok()?
            .filter_map(Result::ok)
            .find_map(|process| {
                let pid: u32 = process.file_name().to_str()?.parse().ok()?;
                let holds = std::fs::read_dir(process.path().join("fd"))
                    .ok()?
                    .filter_map(Result::ok)
                    .filter_map(|fd| std::fs::read_link(fd.path()).ok())
                    .any(|target| target.as_os_str() == wanted.as_str());
                let name = std::fs::read_to_string(process.path().join("comm")).ok()?;
                holds.then(|| format!("{} ({pid})", name.trim()))
            })
    }
}

impl fmt::Display for KernelSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.listening {
            write!(f, "listens on {}", self.local)
        } else {
            write!(f, "is connected from {} to {}", self.local, self.remote)
        }
    }
}

/// Lines that do not parse (the heading) are skipped.
fn parse(text: &str) -> Vec<KernelSocket> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<KernelSocket> {
    // include/net/tcp_states.h
    const TIME_WAIT: u8 = 6;
    const CLOSE: u8 = 7;
    const LISTEN: u8 = 10;
    let mut words = line.split_whitespace().skip(1);
    let local = parse_address(words.next()?)?;
    let remote = parse_address(words.next()?)?;
    let state = u8::from_str_radix(words.next()?, 16).ok()?;
    // Queues, timer, retransmissions, uid and probes stand between.
    let inode = words.nth(5)?.parse().ok()?;
    let held = inode != 0 && state != TIME_WAIT && state != CLOSE;
    held.then_some(KernelSocket {
        local,
        remote,
        listening: state == LISTEN,
        inode,
    })
}

/// `0100007F:1F90`: words of 32 bits as the machine holds them, the port as a number.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let digits = ip.get(index * 8..index * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (index, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn procfs_lines() {
        let tcp = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
   1: 0201090A:0050 0101090A:C350 01 00000000:00000000 00:00000000 00000000    33        0 4712 1 0 20 4 30 10 -1
   2: 0201090A:0050 0101090A:C351 06 00000000:00000000 03:00000F0F 00000000     0        0 0 3 0
   3: 0201090A:0050 0101090A:C352 04 00000000:00000000 01:00000F0F 00000000     0        0 0 1 0
";
        let sockets = parse(tcp);
        assert_eq!(
            sockets,
            [
                KernelSocket {
                    local: at("127.0.0.1:8080"),
                    remote: at("0.0.0.0:0"),
                    listening: true,
                    inode: 4711
                },
                KernelSocket {
                    local: at("10.9.1.2:80"),
                    remote: at("10.9.1.1:50000"),
                    listening: false,
                    inode: 4712
                },
            ],
            "TIME-WAIT and the orphan in FIN-WAIT-1 do not count"
        );
        assert_eq!(conflict(&sockets, at("10.9.1.2:80")), Some(&sockets[1]));
        assert_eq!(conflict(&sockets, at("10.9.2.2:80")), None);
        assert_eq!(conflict(&sockets, at("10.9.1.2:8080")), None);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn wildcards_and_mapped_addresses() {
        let tcp6 = "\
   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0000000000000000FFFF00000201090A:0051 0000000000000000FFFF00000101090A:C350 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 000000FD000001000000000002000000:0052 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0
";
        let sockets = parse(tcp6);
        assert_eq!(sockets.len(), 3);
        assert_eq!(conflict(&sockets, at("10.9.1.2:80")), Some(&sockets[0]));
        assert_eq!(conflict(&sockets, at("[fd00::7]:80")), Some(&sockets[0]));
        assert_eq!(conflict(&sockets, at("10.9.1.2:81")), Some(&sockets[1]));
        assert_eq!(
            conflict(&sockets, at("[fd00:0:1::2]:82")),
            Some(&sockets[2])
        );
        assert_eq!(conflict(&sockets, at("[fd00:0:1::3]:82")), None);

        let any4 = "   0: 00000000:0050 00000000:0000 0A 0:0 00:0 0 0 0 5 1";
        let sockets = parse(any4);
        assert_eq!(conflict(&sockets, at("10.9.1.2:80")), Some(&sockets[0]));
        assert_eq!(conflict(&sockets, at("[fd00::7]:80")), None);
    }

    #[test]
    fn a_listener_of_this_process_is_found_and_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sockets = kernel_sockets().unwrap();
        let found = conflict(&sockets, address).unwrap();
        assert_eq!(found.to_string(), format!("listens on {address}"));
        let process = found.process().unwrap();
        assert!(
            process.ends_with(&format!("({})", std::process::id())),
            "{process}"
        );
    }
}

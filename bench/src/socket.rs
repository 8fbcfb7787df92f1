//! Kernel sockets as the generator and the echo server use them: MPTCP or TCP, non-blocking.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::{GetSockOpt, SetSockOpt};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

/// The transport protocol of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Proto {
    Mptcp,
    Tcp,
}

impl Proto {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mptcp => "MPTCP",
            Self::Tcp => "TCP",
        }
    }

    fn number(self) -> Protocol {
        match self {
            Self::Mptcp => Protocol::MPTCP,
            Self::Tcp => Protocol::TCP,
        }
    }

    /// Opens a socket. A kernel without MPTCP, or with `net.mptcp.enabled=0`, refuses it here.
    fn open(self, addr: SocketAddr) -> io::Result<Socket> {
        let kind = Type::STREAM.nonblocking().cloexec();
        Socket::new(Domain::for_address(addr), kind, Some(self.number()))
    }

    /// Says why no socket of this protocol can be opened, if none can.
    pub(crate) fn check(self, addr: SocketAddr) -> Result<(), String> {
        self.open(addr).map(drop).map_err(|e| match self {
            Self::Mptcp => format!(
                "cannot open an MPTCP socket: {e}; set net.mptcp.enabled=1 or use --proto tcp"
            ),
            Self::Tcp => format!("cannot open a TCP socket: {e}"),
        })
    }
}

/// Starts a connection; it is established or refused when the socket becomes writable.
pub(crate) fn connect(
    proto: Proto,
    target: SocketAddr,
    source: Option<IpAddr>,
    reset_on_close: bool,
) -> io::Result<mio::net::TcpStream> {
    let socket = proto.open(target)?;
    socket.set_tcp_nodelay(true)?;
    if reset_on_close {
        socket.set_linger(Some(Duration::ZERO))?;
    }
    if let Some(source) = source {
        // Leaves the choice of the port to connect(), which may share it between targets. Kernels
        // that do not know it for MPTCP have fewer ports, and that is all.
        let _ = BindAddressNoPort.set(&socket, &true);
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    match socket.connect(&target.into()) {
        Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => Err(e),
        _ => Ok(mio::net::TcpStream::from_std(socket.into())),
    }
}

pub(crate) fn listen(
    proto: Proto,
    addr: SocketAddr,
    shared: bool,
) -> io::Result<mio::net::TcpListener> {
    const BACKLOG: i32 = 65_535; // cut to net.core.somaxconn by the kernel
    let socket = proto.open(addr)?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_tcp_nodelay(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(mio::net::TcpListener::from_std(socket.into()))
}

/// How many subflows carry the connection, or `None` when it is plain TCP: asked for as such, or
/// MPTCP that fell back.
pub(crate) fn subflows(socket: &impl AsFd) -> Option<u32> {
    // The kernel answers SOL_MPTCP options with an error once a connection has fallen back, and
    // cuts `struct mptcp_info` to the length asked for.
    let info = MptcpInfo.get(socket).ok()?;
    const FLAG_FALLBACK: u32 = 1;
    let additional = info[0];
    let flags = u32::from_ne_bytes([info[8], info[9], info[10], info[11]]);
    (flags & FLAG_FALLBACK == 0).then_some(1 + u32::from(additional))
}

const SOL_MPTCP: libc::c_int = 284;
const MPTCP_INFO: libc::c_int = 1;
/// The head of `struct mptcp_info`, as old as the option itself: six counts of one byte, two bytes
/// of padding, the flags and the token.
type MptcpInfoHead = [u8; 16];

sockopt_impl!(MptcpInfo, GetOnly, SOL_MPTCP, MPTCP_INFO, MptcpInfoHead);
sockopt_impl!(
    BindAddressNoPort,
    SetOnly,
    libc::IPPROTO_IP,
    libc::IP_BIND_ADDRESS_NO_PORT,
    bool
);

/// Raises the limit of open files to the hard limit; an error when `sockets` do not fit in it.
pub(crate) fn raise_file_limit(sockets: usize) -> Result<(), String> {
    const OTHER_FILES: u64 = 64;
    let needed = sockets as u64 + OTHER_FILES;
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let usable = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    match usable {
        Some(max) if max < needed => Err(format!(
            "{sockets} sockets need {needed} open files, but the hard limit (RLIMIT_NOFILE) is \
             {max}: use fewer --connections or raise it with `ulimit -Hn`"
        )),
        _ => Ok(()),
    }
}

/// Which cores the threads of a program are pinned to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pinning {
    /// One after another, from those the process may use.
    Allowed,
    List(Vec<usize>),
}

impl std::str::FromStr for Pinning {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s == "auto" {
            return Ok(Self::Allowed);
        }
        let core = |s: &str| {
            s.trim()
                .parse::<usize>()
                .map_err(|_| format!("\"{s}\" is no core number; write --pin=0 or --pin=0,2-3"))
        };
        let mut cores = Vec::new();
        for part in s.split(',') {
            match part.split_once('-') {
                Some((a, b)) => cores.extend(core(a)?..=core(b)?),
                None => cores.push(core(part)?),
            }
        }
        if cores.is_empty() {
            return Err(format!("\"{s}\" names no core"));
        }
        Ok(Self::List(cores))
    }
}

impl Pinning {
    /// One core for each of `threads`, in turn.
    pub(crate) fn cores(&self, threads: usize) -> Result<Vec<core_affinity::CoreId>, String> {
        let allowed = core_affinity::get_core_ids().unwrap_or_default();
        let cores = match self {
            Self::Allowed => allowed,
            Self::List(list) => list
                .iter()
                .map(|&id| {
                    allowed.iter().find(|c| c.id == id).copied().ok_or_else(|| {
                        format!("--pin: core {id} is not among those this process may use")
                    })
                })
                .collect::<Result<_, _>>()?,
        };
        if cores.is_empty() {
            return Err("--pin: the cores of this process cannot be read".into());
        }
        Ok(cores.iter().copied().cycle().take(threads).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinning_lists() {
        let list = |s: &str| s.parse::<Pinning>();
        assert_eq!(list("0,2-4"), Ok(Pinning::List(vec![0, 2, 3, 4])));
        assert_eq!(list("auto"), Ok(Pinning::Allowed));
        assert!(list("0,x").unwrap_err().contains("\"x\""));
        assert!(list("3-1").is_err());
        assert!(
            Pinning::List(vec![1 << 20])
                .cores(1)
                .unwrap_err()
                .contains("1048576")
        );
    }

    #[test]
    fn too_many_sockets_for_the_hard_limit_are_refused_by_number() {
        let e = raise_file_limit(usize::MAX >> 1).unwrap_err();
        assert!(e.contains("ulimit -Hn"), "{e}");
        assert_eq!(raise_file_limit(8), Ok(()));
    }
}

//! `xtask link-relay`: moves frames between two interfaces through the models of both directions.
//!
//! Frames are read with the time at which the kernel got them from their sender, so what the relay
//! takes to notice one is part of its lateness and not of the link. Between frames it sleeps to the
//! nanosecond that `ppoll` allows: it is to run under a real-time policy.
//!
//! VLAN tags are not carried: the kernel takes them off before a packet socket sees the frame.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, GetSockOpt, LinkAddr, MsgFlags, SockFlag, SockProtocol,
    SockType, bind, recvmsg, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeSpec;
use nix::{cmsg_space, getsockopt_impl, sockopt_impl};
use serde_json::{Value, json};

use super::model::Model;
use super::spec::Spec;
use super::{LATE, READY};

/// Frames that are read or sent for one direction before the other gets its turn.
const BATCH: usize = 64;
/// How long a frame may be kept for those that follow it closely.
const COALESCE: Duration = Duration::from_micros(50);
/// What a packet socket hands over at most, for frames that a careless end left whole.
const MAX_FRAME_OCTETS: usize = 128 * 1024;
/// 1500-octet frames for over 100 ms at 1 Gbit/s, as the kernel counts them.
const RECEIVE_BUFFER_OCTETS: usize = 32 << 20;
const SEND_BUFFER_OCTETS: usize = 4 << 20;
/// A stamp that is older than this tells of a clock that was set.
const MAX_AGE_NS: u64 = 10_000_000_000;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The interface towards the client.
    #[arg(long)]
    client: String,
    /// The interface towards the server.
    #[arg(long)]
    server: String,
    #[arg(long)]
    link: Spec,
    /// Where reports go, each over the one before; one line each to the standard output without it.
    #[arg(long)]
    report: Option<PathBuf>,
}

/// Runs until SIGTERM or SIGINT; SIGUSR1 asks for a report, and the end brings one.
pub(crate) fn run(arguments: Arguments) -> Result<(), String> {
    let Spec { up, down, seed } = arguments.link;
    let mut signals = Signals::take()?;
    let client = Interface::open(&arguments.client)?;
    let server = Interface::open(&arguments.server)?;
    let mut relay = Relay {
        up: Way::new(Model::new(up, seed, 0)),
        down: Way::new(Model::new(down, seed, 1)),
        client,
        server,
    };
    println!("{READY}");
    loop {
        let more = relay.turn()?;
        relay.sleep(more, &signals)?;
        let signal = signals.next()?;
        if signal.is_some() {
            relay.report(arguments.report.as_deref())?;
        }
        if matches!(signal, Some(Signal::SIGTERM | Signal::SIGINT)) {
            return Ok(());
        }
    }
}

struct Relay {
    up: Way,
    down: Way,
    client: Interface,
    server: Interface,
}

impl Relay {
    /// Reads what has come and sends what is due; `true` where there may be more of either.
    fn turn(&mut self) -> Result<bool, String> {
        let mut more = self.up.take_in(&mut self.client)?;
        more |= self.down.take_in(&mut self.server)?;
        more |= self.up.let_out(&self.server)?;
        more |= self.down.let_out(&self.client)?;
        Ok(more)
    }

    /// Until a frame comes, one is due or a signal is there. To wake for each of many frames costs more
    /// than to move it, so where the next is due at once, a few are waited for.
    fn sleep(&self, more: bool, signals: &Signals) -> Result<(), String> {
        let due = [&self.up, &self.down].map(|way| way.model.next_due_ns());
        let left = due
            .into_iter()
            .flatten()
            .min()
            .map(|due_ns| Duration::from_nanos(due_ns.saturating_sub(now_ns())));
        let (timeout, events) = match left {
            _ if more => (Some(Duration::ZERO), PollFlags::POLLIN),
            Some(left) if left < COALESCE => (Some(COALESCE), PollFlags::empty()),
            left => (left, PollFlags::POLLIN),
        };
        let mut fds = [
            PollFd::new(self.client.socket.as_fd(), events),
            PollFd::new(self.server.socket.as_fd(), events),
            PollFd::new(signals.0.as_fd(), PollFlags::POLLIN),
        ];
        match ppoll(&mut fds, timeout.map(TimeSpec::from), None) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(format!("cannot wait for frames: {error}")),
        }
    }

    fn report(&mut self, file: Option<&Path>) -> Result<(), String> {
        let usage =
            getrusage(UsageWho::RUSAGE_SELF).map_err(|error| format!("getrusage: {error}"))?;
        let seconds =
            |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        self.client.count_drops()?;
        self.server.count_drops()?;
        let text = json!({
            "up": self.up.report(&self.client),
            "down": self.down.report(&self.server),
            "cpu_s": seconds(usage.user_time()) + seconds(usage.system_time()),
        })
        .to_string();
        match file {
            Some(path) => std::fs::write(path, text + "\n")
                .map_err(|error| format!("cannot write {}: {error}", path.display())),
            // println! would end the program where the reader is gone.
            None => writeln!(std::io::stdout(), "{text}")
                .map_err(|error| format!("cannot report: {error}")),
        }
    }
}

/// One direction, with what went wrong on it.
struct Way {
    model: Model,
    /// Frames that the kernel would not send.
    refused: u64,
    /// Frames that left more than `LATE` after they were due.
    late: u64,
    latest_ns: u64,
}

impl Way {
    fn new(model: Model) -> Self {
        Self {
            model,
            refused: 0,
            late: 0,
            latest_ns: 0,
        }
    }

    fn take_in(&mut self, from: &mut Interface) -> Result<bool, String> {
        for _ in 0..BATCH {
            let Some((came_ns, frame)) = from.receive()? else {
                return Ok(false);
            };
            self.model.offer(came_ns, frame);
        }
        Ok(true)
    }

    fn let_out(&mut self, to: &Interface) -> Result<bool, String> {
        for _ in 0..BATCH {
            let now_ns = now_ns();
            let Some((due_ns, frame)) = self.model.pop_due(now_ns) else {
                return Ok(false);
            };
            let late_ns = now_ns - due_ns;
            self.latest_ns = self.latest_ns.max(late_ns);
            self.late += u64::from(u128::from(late_ns) > LATE.as_nanos());
            self.refused += u64::from(!to.send(&frame)?);
        }
        Ok(true)
    }

    fn report(&self, from: &Interface) -> Value {
        let counts = self.model.counts;
        json!({
            "frames_in": counts.frames_in,
            "octets_in": counts.octets_in,
            "queue_full": counts.queue_full,
            "marked": counts.marked,
            "lost": counts.lost,
            "lost_in_bursts": counts.lost_in_bursts,
            "reordered": counts.reordered,
            "duplicated": counts.duplicated,
            "frames_out": counts.frames_out,
            "octets_out": counts.octets_out,
            "over_limit": counts.over_limit,
            "not_received": from.not_received,
            "refused": self.refused,
            "late": self.late,
            "latest_us": self.latest_ns / 1000,
        })
    }
}

/// A packet socket on an interface that gets every frame.
struct Interface {
    name: String,
    socket: OwnedFd,
    buffer: Vec<u8>,
    control: Vec<u8>,
    /// Time must not run back from one frame to the next.
    last_ns: u64,
    /// Frames for which the socket had no room.
    not_received: u64,
}

// `struct tpacket_stats`: frames and drops since it was read last.
sockopt_impl!(
    PacketStatistics,
    GetOnly,
    libc::SOL_PACKET,
    libc::PACKET_STATISTICS,
    [u32; 2]
);

impl Interface {
    fn open(name: &str) -> Result<Self, String> {
        let fail = |error: Errno| format!("cannot open a packet socket on {name}: {error}");
        let address = link_address(name)?;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let kind = SockType::Raw;
        let socket =
            socket(AddressFamily::Packet, kind, flags, SockProtocol::EthAll).map_err(fail)?;
        bind(socket.as_raw_fd(), &address).map_err(fail)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true).map_err(fail)?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_OCTETS).map_err(fail)?;
        setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER_OCTETS).map_err(fail)?;
        let mut interface = Self {
            name: name.to_owned(),
            socket,
            buffer: vec![0; MAX_FRAME_OCTETS],
            control: cmsg_space!(TimeSpec),
            last_ns: 0,
            not_received: 0,
        };
        // Before it was bound, the socket got what came on every interface.
        while interface.receive()?.is_some() {}
        Ok(interface)
    }

    /// A frame, and when its sender's side handed it over.
    fn receive(&mut self) -> Result<Option<(u64, Vec<u8>)>, String> {
        let mut slices = [std::io::IoSliceMut::new(&mut self.buffer)];
        let message = match recvmsg::<()>(
            self.socket.as_raw_fd(),
            &mut slices,
            Some(&mut self.control),
            MsgFlags::MSG_DONTWAIT,
        ) {
            Ok(message) => message,
            // An interface that is taken down says so once.
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => return Ok(None),
            Err(error) => return Err(format!("cannot receive from {}: {error}", self.name)),
        };
        let stamp_ns = message
            .cmsgs()
            .map_err(|error| format!("cannot read the time of a frame: {error}"))?
            .find_map(|part| match part {
                ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
                _ => None,
            })
            .map(nanoseconds);
        let octets = message.bytes;
        let now_ns = now_ns();
        let came_ns = stamp_ns
            .filter(|stamp| *stamp <= now_ns && now_ns - *stamp < MAX_AGE_NS)
            .unwrap_or(now_ns);
        self.last_ns = self.last_ns.max(came_ns);
        Ok(Some((self.last_ns, self.buffer[..octets].to_vec())))
    }

    /// `false` where the kernel would not have it.
    fn send(&self, frame: &[u8]) -> Result<bool, String> {
        match send(self.socket.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT) {
            Ok(_) => Ok(true),
            Err(
                Errno::EAGAIN | Errno::ENOBUFS | Errno::EMSGSIZE | Errno::ENETDOWN | Errno::EINTR,
            ) => Ok(false),
            Err(error) => Err(format!("cannot send to {}: {error}", self.name)),
        }
    }

    fn count_drops(&mut self) -> Result<(), String> {
        let [_, drops] = PacketStatistics
            .get(&self.socket)
            .map_err(|error| format!("cannot read the drops of {}: {error}", self.name))?;
        self.not_received += u64::from(drops);
        Ok(())
    }
}

/// The signals that the relay answers, kept from what they do otherwise.
struct Signals(SignalFd);

impl Signals {
    fn take() -> Result<Self, String> {
        let fail = |error| format!("cannot take signals: {error}");
        let mut set = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1] {
            set.add(signal);
        }
        set.thread_block().map_err(fail)?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        SignalFd::with_flags(&set, flags).map(Self).map_err(fail)
    }

    fn next(&mut self) -> Result<Option<Signal>, String> {
        let fail = |error| format!("cannot read signals: {error}");
        match self.0.read_signal().map_err(fail)? {
            Some(info) => Signal::try_from(info.ssi_signo as i32)
                .map(Some)
                .map_err(fail),
            None => Ok(None),
        }
    }
}

/// Its protocol is 0, with which `bind` leaves the socket's own.
fn link_address(name: &str) -> Result<LinkAddr, String> {
    getifaddrs()
        .map_err(|error| format!("cannot list the interfaces: {error}"))?
        .filter(|interface| interface.interface_name == name)
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .ok_or_else(|| format!("there is no interface {name} here"))
}

/// On the clock of the kernel's stamps.
fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    nanoseconds(since.unwrap_or_default())
}

/// Good for 584 years.
fn nanoseconds(time: Duration) -> u64 {
    time.as_nanos() as u64
}

//! `mpx-bench flood`: frames of nobody's, as fast as a virtual interface takes them or at a rate, for a
//! time. They are made beforehand: nothing but sending is done meanwhile.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use mpx_datapath::rand::{ChaChaEntropy, Entropy};
use mpx_datapath::seq::TcpSeq;
use mpx_datapath::wire::frame::{self, Link};
use mpx_datapath::wire::mptcp::{CapableContent, MpCapable, MpJoin};
use mpx_datapath::wire::tcp::{TcpFlags, TcpHeader, TcpOptions, Timestamps};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, bind,
    sendmmsg, socket,
};

use crate::report::parse_duration;

/// Different frames, sent round and round.
const FRAMES: usize = 1 << 16;
/// With one system call.
const BATCH: usize = 64;
/// Bounded, whatever is asked for.
const LONGEST: Duration = Duration::from_secs(120);
/// IEEE 802, for experiments on a local network: nobody takes such frames.
const ETHERTYPE_UNUSED: [u8; 2] = [0x88, 0xb5];

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A SYN with the options of plain TCP
    Syn,
    /// A SYN with MP_CAPABLE
    Capable,
    /// A SYN with MP_JOIN and a token at random
    Join,
    Ack,
    Rst,
}

#[derive(Debug, Args)]
pub(crate) struct FloodArgs {
    /// A virtual interface of this network namespace
    #[arg(long, value_name = "NAME")]
    interface: String,
    /// The link address of the other end
    #[arg(long, value_name = "MAC", value_parser = parse_mac)]
    target_mac: [u8; 6],
    /// The service; the sources are addresses of 172.16.0.0/12 at random
    #[arg(long, value_name = "ADDR:PORT")]
    target: SocketAddr,
    kind: Kind,
    /// Frames of the same size that no protocol takes, to compare with
    #[arg(long)]
    unused_ethertype: bool,
    #[arg(long, default_value = "10s", value_parser = parse_duration, value_name = "TIME")]
    duration: Duration,
    /// Frames per second, if not as many as there can be
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
}

pub(crate) fn run(args: &FloodArgs) -> Result<ExitCode, String> {
    if args.duration > LONGEST {
        return Err(format!("--duration: at most {} s", LONGEST.as_secs()));
    }
    // What has a device behind it is no veth end, and leads out of this machine.
    if Path::new("/sys/class/net")
        .join(&args.interface)
        .join("device")
        .exists()
    {
        return Err(format!("{}: not a virtual interface", args.interface));
    }
    let (socket, address) = open(&args.interface)?;
    let link = Link {
        src: address,
        dst: args.target_mac,
        ..Link::default()
    };
    let frames = frames(args, &link);
    let octets = frames[0].len();
    let began = Instant::now();
    let sent = send_for(&socket, &frames, args.duration, args.rate)?;
    let took = began.elapsed().as_secs_f64();
    println!(
        "{}",
        serde_json::json!({
            "frames": sent,
            "frames_per_s": sent as f64 / took,
            "frame_octets": octets,
        })
    );
    Ok(ExitCode::SUCCESS)
}

fn open(interface: &str) -> Result<(OwnedFd, [u8; 6]), String> {
    let fail = |error: Errno| format!("cannot open a packet socket on {interface}: {error}");
    let address: LinkAddr = getifaddrs()
        .map_err(fail)?
        .filter(|found| found.interface_name == interface)
        .find_map(|found| found.address?.as_link_addr().copied())
        .ok_or_else(|| format!("there is no interface {interface} here"))?;
    let mac = address.addr().ok_or("the interface has no link address")?;
    // Protocol 0: nothing is received.
    let protocol: Option<SockProtocol> = None;
    let (family, flags) = (AddressFamily::Packet, SockFlag::SOCK_CLOEXEC);
    let socket = socket(family, SockType::Raw, flags, protocol).map_err(fail)?;
    bind(socket.as_raw_fd(), &address).map_err(fail)?;
    Ok((socket, mac))
}

/// Returns how many frames the interface took.
fn send_for(
    socket: &OwnedFd,
    frames: &[Vec<u8>],
    duration: Duration,
    rate: Option<f64>,
) -> Result<u64, String> {
    let slices: Vec<[IoSlice<'_>; 1]> = frames.iter().map(|f| [IoSlice::new(f)]).collect();
    let addresses = [None; BATCH];
    let mut headers = MultiHeaders::<LinkAddr>::preallocate(BATCH, None);
    let began = Instant::now();
    let (mut at, mut sent) = (0, 0u64);
    loop {
        let passed = began.elapsed();
        if passed >= duration {
            return Ok(sent);
        }
        if let Some(rate) = rate {
            let due = (passed.as_secs_f64() * rate) as u64;
            if due < sent + BATCH as u64 {
                std::thread::sleep(Duration::from_micros(50));
                continue;
            }
        }
        let batch = &slices[at..at + BATCH];
        let result = sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            batch,
            addresses,
            [],
            MsgFlags::empty(),
        );
        match result {
            Ok(results) => sent += results.count() as u64,
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(format!("cannot send: {error}")),
        }
        at = (at + BATCH) % FRAMES;
    }
}

fn frames(args: &FloodArgs, link: &Link) -> Vec<Vec<u8>> {
    let mut entropy = ChaChaEntropy::deterministic(1);
    (0..FRAMES)
        .map(|_| {
            let mut frame = one(args, link, &mut entropy);
            if args.unused_ethertype {
                frame[12..14].copy_from_slice(&ETHERTYPE_UNUSED);
            }
            frame
        })
        .collect()
}

fn one(args: &FloodArgs, link: &Link, entropy: &mut dyn Entropy) -> Vec<u8> {
    let host = entropy.next_u32();
    let source = Ipv4Addr::from_bits(0xac10_0000 | host & 0x000f_ffff);
    let mut options = TcpOptions {
        timestamps: Some(Timestamps {
            tsval: entropy.next_u32(),
            tsecr: 0,
        }),
        ..TcpOptions::default()
    };
    let flags = match args.kind {
        Kind::Ack => TcpFlags::ACK,
        Kind::Rst => TcpFlags::RST,
        Kind::Syn | Kind::Capable | Kind::Join => {
            options.mss = Some(1460);
            options.sack_permitted = true;
            options.window_scale = Some(7);
            TcpFlags::SYN
        }
    };
    if args.kind == Kind::Ack
        && let Some(timestamps) = &mut options.timestamps
    {
        timestamps.tsecr = entropy.next_u32();
    }
    if args.kind == Kind::Capable {
        options.mptcp.capable = Some(MpCapable {
            version: 1,
            flags: MpCapable::FLAG_SHA256,
            content: CapableContent::Syn,
        });
    }
    if args.kind == Kind::Join {
        options.mptcp.join = Some(MpJoin::Syn {
            backup: false,
            address_id: 1,
            token: entropy.next_u32(),
            nonce: entropy.next_u32(),
        });
    }
    let header = TcpHeader {
        src_port: 1024 | entropy.next_u32() as u16,
        dst_port: args.target.port(),
        seq: TcpSeq(entropy.next_u32()),
        ack: TcpSeq(entropy.next_u32()),
        flags,
        window: 64_240,
        urgent: 0,
        options,
    };
    let mut frame = vec![0; 256];
    let (source, target): (IpAddr, IpAddr) = (source.into(), args.target.ip());
    let len = frame::emit(&mut frame, link, source, target, 0, &header, 0, 0);
    frame.truncate(len);
    frame
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let octets: Vec<u8> = text
        .split(':')
        .map(|octet| u8::from_str_radix(octet, 16))
        .collect::<Result<_, _>>()
        .map_err(|_| format!("{text:?} is no link address; write it like 02:00:00:00:00:01"))?;
    octets
        .try_into()
        .map_err(|_| format!("{text:?} is no link address; write it like 02:00:00:00:00:01"))
}

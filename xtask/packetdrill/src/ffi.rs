//! The C interface of the tool (`packetdrill_interface` of its `packetdrill.h`).
//!
//! The tool passes what it would pass to the system calls of the same names; that its pointers are
//! good for the lengths beside them is what all `unsafe` here relies on. `userdata` is not used:
//! a process of the tool runs one script against one stack.

#![expect(unsafe_code)]

use crate::sockets::{Errno, Shim};
use libc::{c_int, c_long, c_longlong, c_uint, c_ulong, c_void, size_t, socklen_t, ssize_t};
use mpx_datapath::engine::SubflowReport;
use mpx_datapath::time::Duration;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::OnceLock;

/// `tcpi_snd_ssthresh` before the first loss.
const SSTHRESH_INFINITE: u32 = 0x7fff_ffff;

/// `tcpi_reordering`, which the engine does not adapt: RACK bears with reordering by time.
const DUP_THRESH: u32 = 3;

static SHIM: OnceLock<Shim> = OnceLock::new();

/// Calls that the stack has nothing for share one entry: their arguments are never looked at.
type Unsupported = extern "C" fn() -> c_long;

/// In the tool's order. `fcntl` and `ioctl` are variadic there; on the Linux ABIs an `int` or
/// pointer passed so arrives where a named one would.
#[repr(C)]
pub(crate) struct Interface {
    userdata: *mut c_void,
    free: extern "C" fn(*mut c_void),
    socket: extern "C" fn(*mut c_void, c_int, c_int, c_int) -> c_int,
    bind: extern "C" fn(*mut c_void, c_int, *const libc::sockaddr, socklen_t) -> c_int,
    listen: extern "C" fn(*mut c_void, c_int, c_int) -> c_int,
    accept: extern "C" fn(*mut c_void, c_int, *mut libc::sockaddr, *mut socklen_t) -> c_int,
    connect: extern "C" fn(*mut c_void, c_int, *const libc::sockaddr, socklen_t) -> c_int,
    read: extern "C" fn(*mut c_void, c_int, *mut c_void, size_t) -> ssize_t,
    readv: extern "C" fn(*mut c_void, c_int, *const libc::iovec, c_int) -> ssize_t,
    recv: extern "C" fn(*mut c_void, c_int, *mut c_void, size_t, c_int) -> ssize_t,
    recvfrom: extern "C" fn(
        *mut c_void,
        c_int,
        *mut c_void,
        size_t,
        c_int,
        *mut libc::sockaddr,
        *mut socklen_t,
    ) -> ssize_t,
    recvmsg: extern "C" fn(*mut c_void, c_int, *mut libc::msghdr, c_int) -> ssize_t,
    write: extern "C" fn(*mut c_void, c_int, *const c_void, size_t) -> ssize_t,
    writev: extern "C" fn(*mut c_void, c_int, *const libc::iovec, c_int) -> ssize_t,
    send: extern "C" fn(*mut c_void, c_int, *const c_void, size_t, c_int) -> ssize_t,
    sendto: extern "C" fn(
        *mut c_void,
        c_int,
        *const c_void,
        size_t,
        c_int,
        *const libc::sockaddr,
        socklen_t,
    ) -> ssize_t,
    sendmsg: extern "C" fn(*mut c_void, c_int, *const libc::msghdr, c_int) -> ssize_t,
    fcntl: extern "C" fn(*mut c_void, c_int, c_int, c_long) -> c_int,
    ioctl: extern "C" fn(*mut c_void, c_int, c_ulong, *mut c_int) -> c_int,
    close: extern "C" fn(*mut c_void, c_int) -> c_int,
    shutdown: extern "C" fn(*mut c_void, c_int, c_int) -> c_int,
    getsockopt:
        extern "C" fn(*mut c_void, c_int, c_int, c_int, *mut c_void, *mut socklen_t) -> c_int,
    setsockopt: extern "C" fn(*mut c_void, c_int, c_int, c_int, *const c_void, socklen_t) -> c_int,
    poll: extern "C" fn(*mut c_void, *mut libc::pollfd, c_ulong, c_int) -> c_int,
    netdev_send: extern "C" fn(*mut c_void, *const c_void, size_t) -> c_int,
    netdev_receive: extern "C" fn(*mut c_void, *mut c_void, *mut size_t, *mut c_longlong) -> c_int,
    usleep: extern "C" fn(*mut c_void, c_uint) -> c_int,
    gettimeofday: extern "C" fn(*mut c_void, *mut libc::timeval, *mut c_void) -> c_int,
    epoll_create: Unsupported,
    epoll_ctl: Unsupported,
    epoll_wait: Unsupported,
    pipe: Unsupported,
    splice: Unsupported,
}

// SAFETY: the one symbol that the tool looks up under this name, with the tool's own signature.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn packetdrill_interface_init(
    _flags: *const libc::c_char,
    to: *mut Interface,
) {
    SHIM.get_or_init(Shim::new);
    let interface = Interface {
        userdata: std::ptr::null_mut(),
        free,
        socket,
        bind,
        listen,
        accept,
        connect,
        read,
        readv,
        recv,
        recvfrom,
        recvmsg,
        write,
        writev,
        send,
        sendto,
        sendmsg,
        fcntl,
        ioctl,
        close,
        shutdown,
        getsockopt: interface_getsockopt,
        setsockopt,
        poll,
        netdev_send,
        netdev_receive,
        usleep,
        gettimeofday,
        epoll_create: unsupported,
        epoll_ctl: unsupported,
        epoll_wait: unsupported,
        pipe: unsupported,
        splice: unsupported,
    };
    // SAFETY: the tool gives a whole interface to be filled in.
    unsafe { to.write(interface) }
}

/// The tool's checks of `TCP_INFO` call the C library directly: preloaded, this comes first.
// SAFETY: takes the C library's place with its signature, and hands on what is not ours.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    match SHIM.get() {
        Some(shim) if shim.exists(fd) => {
            status(get_option(shim, fd, level, name, value, len).map(|()| 0))
        }
        // SAFETY: the caller's own arguments, to the system call that they were meant for.
        _ => unsafe { libc::syscall(libc::SYS_getsockopt, fd, level, name, value, len) as c_int },
    }
}

extern "C" fn interface_getsockopt(
    _: *mut c_void,
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    getsockopt(fd, level, name, value, len)
}

extern "C" fn unsupported() -> c_long {
    fail(libc::EOPNOTSUPP);
    -1
}

extern "C" fn free(_: *mut c_void) {}

extern "C" fn socket(_: *mut c_void, _domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    status(shim().socket(kind, protocol))
}

extern "C" fn bind(
    _: *mut c_void,
    fd: c_int,
    addr: *const libc::sockaddr,
    len: socklen_t,
) -> c_int {
    let bound = address(addr, len).ok_or(libc::EINVAL);
    status(bound.and_then(|addr| shim().bind(fd, addr)).map(|()| 0))
}

extern "C" fn listen(_: *mut c_void, fd: c_int, _backlog: c_int) -> c_int {
    status(shim().listen(fd).map(|()| 0))
}

extern "C" fn accept(
    _: *mut c_void,
    fd: c_int,
    addr: *mut libc::sockaddr,
    len: *mut socklen_t,
) -> c_int {
    status(shim().accept(fd).map(|(accepted, peer)| {
        put_address(peer, addr, len);
        accepted
    }))
}

/// The engine only answers: there is nowhere to connect to, but a connection may be left so.
extern "C" fn connect(
    _: *mut c_void,
    fd: c_int,
    addr: *const libc::sockaddr,
    len: socklen_t,
) -> c_int {
    status(match family(addr, len) {
        Some(libc::AF_UNSPEC) => shim().disconnect(fd).map(|()| 0),
        _ => Err(libc::EOPNOTSUPP),
    })
}

extern "C" fn read(_: *mut c_void, fd: c_int, into: *mut c_void, count: size_t) -> ssize_t {
    size(shim().read(fd, bytes_mut(into, count)))
}

extern "C" fn readv(_: *mut c_void, fd: c_int, parts: *const libc::iovec, count: c_int) -> ssize_t {
    size(read_parts(fd, slice(parts, count as usize)))
}

extern "C" fn recv(
    _: *mut c_void,
    fd: c_int,
    into: *mut c_void,
    count: size_t,
    flags: c_int,
) -> ssize_t {
    if flags & !libc::MSG_NOSIGNAL != 0 {
        return size(Err(libc::EOPNOTSUPP));
    }
    size(shim().read(fd, bytes_mut(into, count)))
}

extern "C" fn recvfrom(
    userdata: *mut c_void,
    fd: c_int,
    into: *mut c_void,
    count: size_t,
    flags: c_int,
    _: *mut libc::sockaddr,
    _: *mut socklen_t,
) -> ssize_t {
    recv(userdata, fd, into, count, flags)
}

extern "C" fn recvmsg(
    _: *mut c_void,
    fd: c_int,
    message: *mut libc::msghdr,
    flags: c_int,
) -> ssize_t {
    if flags != 0 {
        return size(Err(libc::EOPNOTSUPP));
    }
    // SAFETY: a message header for the length of this call, which no one else reads.
    let message = unsafe { &mut *message };
    message.msg_namelen = 0;
    message.msg_controllen = 0;
    message.msg_flags = 0;
    size(read_parts(fd, slice(message.msg_iov, message.msg_iovlen)))
}

extern "C" fn write(_: *mut c_void, fd: c_int, from: *const c_void, count: size_t) -> ssize_t {
    size(shim().write(fd, slice(from.cast(), count)))
}

extern "C" fn writev(
    _: *mut c_void,
    fd: c_int,
    parts: *const libc::iovec,
    count: c_int,
) -> ssize_t {
    size(write_parts(fd, slice(parts, count as usize)))
}

extern "C" fn send(
    _: *mut c_void,
    fd: c_int,
    from: *const c_void,
    count: size_t,
    flags: c_int,
) -> ssize_t {
    if flags & !(libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) != 0 {
        return size(Err(libc::EOPNOTSUPP));
    }
    size(shim().write(fd, slice(from.cast(), count)))
}

extern "C" fn sendto(
    userdata: *mut c_void,
    fd: c_int,
    from: *const c_void,
    count: size_t,
    flags: c_int,
    _: *const libc::sockaddr,
    _: socklen_t,
) -> ssize_t {
    send(userdata, fd, from, count, flags)
}

extern "C" fn sendmsg(
    _: *mut c_void,
    fd: c_int,
    message: *const libc::msghdr,
    flags: c_int,
) -> ssize_t {
    // SAFETY: a message header for the length of this call.
    let message = unsafe { &*message };
    if flags & !libc::MSG_NOSIGNAL != 0 || message.msg_controllen != 0 {
        return size(Err(libc::EOPNOTSUPP));
    }
    size(write_parts(fd, slice(message.msg_iov, message.msg_iovlen)))
}

extern "C" fn fcntl(_: *mut c_void, fd: c_int, command: c_int, value: c_long) -> c_int {
    status(match command {
        libc::F_GETFL => shim()
            .is_nonblocking(fd)
            .map(|nonblocking| libc::O_RDWR | if nonblocking { libc::O_NONBLOCK } else { 0 }),
        libc::F_SETFL => shim()
            .set_nonblocking(fd, value as c_int & libc::O_NONBLOCK != 0)
            .map(|()| 0),
        _ => Err(libc::EINVAL),
    })
}

extern "C" fn ioctl(_: *mut c_void, fd: c_int, request: c_ulong, value: *mut c_int) -> c_int {
    if request != libc::FIONREAD {
        return status(Err(libc::EOPNOTSUPP));
    }
    status(shim().unread_bytes(fd).map(|n| {
        // SAFETY: FIONREAD (SIOCINQ) takes an `int` to be filled in.
        unsafe { value.write(n as c_int) };
        0
    }))
}

extern "C" fn close(_: *mut c_void, fd: c_int) -> c_int {
    let closed = shim().close(fd);
    if closed.is_ok() {
        // SAFETY: a descriptor that `socket` or `accept` opened, and that is forgotten now.
        unsafe { libc::close(fd) };
    }
    status(closed.map(|()| 0))
}

extern "C" fn shutdown(_: *mut c_void, fd: c_int, how: c_int) -> c_int {
    status(shim().shutdown(fd, how).map(|()| 0))
}

/// Takes what changes nothing that a peer sees; what the stack can't do is refused, so that a
/// script that needs it ends there.
extern "C" fn setsockopt(
    _: *mut c_void,
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    let linger = || match slice::<libc::linger>(value.cast(), 1) {
        [linger] if len as usize == size_of::<libc::linger>() => {
            shim().set_reset_on_close(fd, linger.l_onoff != 0 && linger.l_linger == 0)
        }
        _ => Err(libc::EINVAL),
    };
    // As Linux has it, a name without its terminating zero will do.
    let congestion = || {
        let name = slice::<u8>(value.cast(), len as usize);
        let name = name.split(|&octet| octet == 0).next().unwrap_or_default();
        let algorithm = std::str::from_utf8(name).ok().and_then(|n| n.parse().ok());
        shim().set_congestion(algorithm.ok_or(libc::ENOENT)?)
    };
    let set = match (level, name) {
        _ if !shim().exists(fd) => Err(libc::EBADF),
        (libc::SOL_SOCKET, libc::SO_LINGER) => linger(),
        (
            libc::SOL_SOCKET,
            libc::SO_REUSEADDR | libc::SO_REUSEPORT | libc::SO_RCVBUF | libc::SO_SNDBUF,
        ) => Ok(()),
        // The stack never holds back a small segment (RFC 9293 §3.7.4 leaves that to the app).
        (libc::IPPROTO_TCP, libc::TCP_NODELAY) => Ok(()),
        (libc::IPPROTO_TCP, libc::TCP_CONGESTION) => congestion(),
        (libc::IPPROTO_TCP, libc::TCP_FASTOPEN) => match slice::<c_int>(value.cast(), 1) {
            [pending_max] if len as usize == size_of::<c_int>() => {
                shim().set_fast_open(*pending_max)
            }
            _ => Err(libc::EINVAL),
        },
        _ => Err(libc::ENOPROTOOPT),
    };
    status(set.map(|()| 0))
}

extern "C" fn poll(
    _: *mut c_void,
    fds: *mut libc::pollfd,
    count: c_ulong,
    timeout_ms: c_int,
) -> c_int {
    // SAFETY: an array for the length of this call, which no one else uses.
    let fds = unsafe { std::slice::from_raw_parts_mut(fds, count as usize) };
    status(shim().poll(fds, timeout_ms).map(|ready| ready as c_int))
}

extern "C" fn netdev_send(_: *mut c_void, packet: *const c_void, count: size_t) -> c_int {
    shim().netdev_send(slice(packet.cast(), count));
    0
}

extern "C" fn netdev_receive(
    _: *mut c_void,
    into: *mut c_void,
    count: *mut size_t,
    time_usecs: *mut c_longlong,
) -> c_int {
    // SAFETY: where the length and the time of the packet go, for this call alone.
    let (count, time_usecs) = unsafe { (&mut *count, &mut *time_usecs) };
    let into = bytes_mut(into, *count);
    let Some((at, packet)) = shim().netdev_receive() else {
        // An error would make the tool ask again for ever; an IPv4 header that is cut short ends
        // the script at its line.
        eprintln!("the stack sends nothing any more");
        into[0] = 0x45;
        *count = 1;
        *time_usecs = shim().now().as_micros() as c_longlong;
        return 0;
    };
    let len = packet.len().min(into.len());
    into[..len].copy_from_slice(&packet[..len]);
    *count = len;
    *time_usecs = at.as_micros() as c_longlong;
    0
}

extern "C" fn usleep(_: *mut c_void, usec: c_uint) -> c_int {
    shim().usleep(Duration::from_micros(u64::from(usec)));
    0
}

extern "C" fn gettimeofday(_: *mut c_void, to: *mut libc::timeval, _: *mut c_void) -> c_int {
    let us = shim().now().as_micros();
    let time = libc::timeval {
        tv_sec: (us / 1_000_000) as libc::time_t,
        tv_usec: (us % 1_000_000) as libc::suseconds_t,
    };
    // SAFETY: where the time goes.
    unsafe { to.write(time) };
    0
}

fn shim() -> &'static Shim {
    SHIM.get_or_init(Shim::new)
}

fn status(result: Result<c_int, Errno>) -> c_int {
    result.unwrap_or_else(|errno| {
        fail(errno);
        -1
    })
}

fn size(result: Result<usize, Errno>) -> ssize_t {
    match result {
        Ok(n) => n as ssize_t,
        Err(errno) => {
            fail(errno);
            -1
        }
    }
}

fn fail(errno: Errno) {
    // SAFETY: the C library's own cell for this thread.
    unsafe { *libc::__errno_location() = errno }
}

fn read_parts(fd: c_int, parts: &[libc::iovec]) -> Result<usize, Errno> {
    let mut all = vec![0; parts.iter().map(|part| part.iov_len).sum()];
    let read = shim().read(fd, &mut all)?;
    let mut rest = &all[..read];
    for part in parts {
        let (now, later) = rest.split_at(part.iov_len.min(rest.len()));
        bytes_mut(part.iov_base, now.len()).copy_from_slice(now);
        rest = later;
    }
    Ok(read)
}

fn write_parts(fd: c_int, parts: &[libc::iovec]) -> Result<usize, Errno> {
    let all: Vec<u8> = parts
        .iter()
        .flat_map(|part| slice::<u8>(part.iov_base.cast(), part.iov_len))
        .copied()
        .collect();
    shim().write(fd, &all)
}

fn get_option(
    shim: &Shim,
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> Result<(), Errno> {
    match (level, name) {
        (libc::IPPROTO_TCP, libc::TCP_INFO) => {}
        (libc::IPPROTO_TCP, libc::TCP_CC_INFO) => {
            // As from a congestion control that has nothing to tell.
            // SAFETY: the caller's length.
            unsafe { *len = 0 };
            return Ok(());
        }
        (libc::SOL_SOCKET, libc::SO_MEMINFO) => {
            bytes_mut(value, slice(len, 1)[0] as usize).fill(0);
            return Ok(());
        }
        _ => return Err(libc::ENOPROTOOPT),
    }
    let info = tcp_info(&shim.subflow(fd)?);
    // SAFETY: the caller's buffer and its length, which bounds the copy.
    unsafe {
        let n = size_of_val(&info).min(*len as usize);
        std::ptr::copy_nonoverlapping((&raw const info).cast::<u8>(), value.cast(), n);
        *len = n as socklen_t;
    }
    Ok(())
}

/// As far as the engine has what Linux tells.
fn tcp_info(subflow: &SubflowReport) -> libc::tcp_info {
    // SAFETY: all zeros is a value of this structure of integers.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mss = subflow.mss_bytes.max(1);
    let state = match subflow.congestion_state {
        "disorder" => 1,
        "cwr" => 2,
        "recovery" => 3,
        "loss" => 4,
        _ => 0,
    };
    // Linux counts as lost what it has sent again, too, until it is acknowledged.
    let repaired = if state >= 3 {
        subflow.retransmitted_segments
    } else {
        0
    };
    info.tcpi_ca_state = state;
    info.tcpi_retransmits = subflow.backoff as u8;
    info.tcpi_backoff = subflow.backoff as u8;
    info.tcpi_snd_mss = mss as u32;
    info.tcpi_snd_cwnd = (subflow.cwnd_bytes / mss) as u32;
    info.tcpi_snd_ssthresh = subflow
        .ssthresh_bytes
        .map_or(SSTHRESH_INFINITE, |ssthresh| (ssthresh / mss) as u32);
    info.tcpi_pmtu = subflow.path_mtu_bytes as u32;
    info.tcpi_unacked = subflow.unacked_segments as u32;
    info.tcpi_sacked = subflow.sacked_segments as u32;
    info.tcpi_lost = (subflow.lost_segments + repaired) as u32;
    info.tcpi_retrans = subflow.retransmitted_segments as u32;
    info.tcpi_reordering = DUP_THRESH;
    info.tcpi_total_retrans = subflow.retransmits as u32;
    info.tcpi_rtt = subflow.srtt_us.unwrap_or(0) as u32;
    info.tcpi_rttvar = subflow.rttvar_us as u32;
    info.tcpi_rto = (subflow.rto_ms * 1000) as u32;
    info
}

fn slice<'a, T>(from: *const T, count: usize) -> &'a [T] {
    if from.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: the tool's array of that many, which lasts for the call.
    unsafe { std::slice::from_raw_parts(from, count) }
}

fn bytes_mut<'a>(into: *mut c_void, count: usize) -> &'a mut [u8] {
    if into.is_null() || count == 0 {
        return &mut [];
    }
    // SAFETY: the tool's buffer of that size, which lasts for the call and is ours meanwhile.
    unsafe { std::slice::from_raw_parts_mut(into.cast(), count) }
}

fn family(addr: *const libc::sockaddr, len: socklen_t) -> Option<c_int> {
    let raw = slice::<u8>(addr.cast(), len as usize);
    let family = u16::from_ne_bytes(raw.get(..2)?.try_into().ok()?);
    Some(family.into())
}

fn address(addr: *const libc::sockaddr, len: socklen_t) -> Option<SocketAddr> {
    let raw = slice::<u8>(addr.cast(), len as usize);
    let port = u16::from_be_bytes(raw.get(2..4)?.try_into().ok()?);
    let ip: IpAddr = match family(addr, len)? {
        libc::AF_INET => Ipv4Addr::from(<[u8; 4]>::try_from(raw.get(4..8)?).ok()?).into(),
        libc::AF_INET6 => {
            Ipv6Addr::from(<[u8; 16]>::try_from(raw.get(8..24)?).ok()?).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn put_address(addr: SocketAddr, to: *mut libc::sockaddr, len: *mut socklen_t) {
    if to.is_null() || len.is_null() {
        return;
    }
    let (family, ip): (c_int, Vec<u8>) = match addr.ip() {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, [&[0; 4], &ip.octets()[..]].concat()),
    };
    let mut raw = (family as libc::sa_family_t).to_ne_bytes().to_vec();
    raw.extend(addr.port().to_be_bytes());
    raw.extend(ip);
    raw.resize(if addr.is_ipv4() { 16 } else { 28 }, 0);
    // SAFETY: where the address goes, and the room that there is for it.
    unsafe {
        let n = raw.len().min(*len as usize);
        std::ptr::copy_nonoverlapping(raw.as_ptr(), to.cast(), n);
        *len = raw.len() as socklen_t;
    }
}

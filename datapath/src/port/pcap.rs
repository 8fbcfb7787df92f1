//! Captures what passes through a port, in both directions, as pcapng
//! (draft-ietf-opsawg-pcapng): what Wireshark, tshark and tcpdump read.

use super::{IfaceId, Port};
use crate::steering::{Arrival, Verdict};
use std::io::{self, Write};
use std::time::Duration;

/// A port that writes down every frame of the port inside it.
///
/// Trouble with the capture never disturbs the traffic: after the first failed write the file is
/// torn, so nothing more is written and [`PcapPort::frames_lost`] counts.
#[derive(Debug)]
pub struct PcapPort<P, W, C> {
    inner: P,
    capture: Capture<W>,
    clock: C,
}

impl<P: Port, W: Write, C: FnMut() -> Duration> PcapPort<P, W, C> {
    /// Writes to `out`, once per turn; it needs no buffer of its own. `clock` tells the time since
    /// the UNIX epoch. `names` are those of the interfaces in the order of their ids; one that is
    /// missing stays unnamed.
    pub fn new(inner: P, out: W, names: &[&str], clock: C) -> PcapPort<P, W, C> {
        let capture = Capture::new(out, inner.interfaces(), names);
        PcapPort {
            inner,
            capture,
            clock,
        }
    }

    /// Frames that passed but are not in the capture, because writing it failed.
    pub fn frames_lost(&self) -> u64 {
        self.capture.frames_lost
    }

    /// Why writing failed, if it did.
    pub fn error(&self) -> Option<&io::Error> {
        self.capture.error.as_ref()
    }

    pub fn inner(&self) -> &P {
        &self.inner
    }

    pub fn inner_mut(&mut self) -> &mut P {
        &mut self.inner
    }

    /// Writes what is pending and gives back the port and the file.
    pub fn into_parts(mut self) -> (P, W) {
        self.capture.flush();
        (self.inner, self.capture.out)
    }
}

impl<P: Port, W: Write, C: FnMut() -> Duration> Port for PcapPort<P, W, C> {
    fn receive(&mut self, each: &mut dyn FnMut(Arrival, &[u8]) -> Verdict) -> usize {
        let PcapPort {
            inner,
            capture,
            clock,
        } = self;
        inner.receive(&mut |arrival, frame| {
            capture.frame(arrival.iface, Direction::Inbound, clock(), frame);
            each(arrival, frame)
        })
    }

    fn transmit(&mut self, iface: IfaceId, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> bool {
        let PcapPort {
            inner,
            capture,
            clock,
        } = self;
        inner.transmit(iface, &mut |memory| {
            let len = fill(memory);
            if let Some(frame) = memory.get(..len).filter(|f| !f.is_empty()) {
                capture.frame(iface, Direction::Outbound, clock(), frame);
            }
            len
        })
    }

    fn flush(&mut self) {
        self.inner.flush();
        self.capture.flush();
    }

    fn interfaces(&self) -> usize {
        self.inner.interfaces()
    }

    fn fds(&self) -> Vec<std::os::fd::BorrowedFd<'_>> {
        self.inner.fds()
    }

    fn has_unsent(&self) -> bool {
        self.inner.has_unsent()
    }

    fn has_mail(&self) -> bool {
        self.inner.has_mail()
    }

    fn mesh_drops(&self) -> u64 {
        self.inner.mesh_drops()
    }

    fn accounts(&mut self) -> super::FrameAccounts {
        self.inner.accounts()
    }
}

/// As in `epb_flags`, bits 0 and 1.
#[derive(Clone, Copy, Debug)]
enum Direction {
    Inbound = 1,
    Outbound = 2,
}

/// One section of a pcapng file, little-endian.
#[derive(Debug)]
struct Capture<W> {
    out: W,
    /// Blocks of this turn.
    pending: Vec<u8>,
    pending_frames: u64,
    frames_lost: u64,
    error: Option<io::Error>,
}

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const LINKTYPE_ETHERNET: u32 = 1;
const OPT_END: u16 = 0;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;

impl<W: Write> Capture<W> {
    fn new(out: W, interfaces: usize, names: &[&str]) -> Capture<W> {
        let mut pending = Vec::new();
        block(&mut pending, SECTION_HEADER, |b| {
            put_u32(b, BYTE_ORDER_MAGIC);
            // Version 1.0, then a section length of -1: not known in advance.
            put_u32(b, 1);
            b.extend_from_slice(&(-1i64).to_le_bytes());
            option(b, SHB_USERAPPL, b"mpxd");
            option(b, OPT_END, &[]);
        });
        for i in 0..interfaces {
            block(&mut pending, INTERFACE_DESCRIPTION, |b| {
                put_u32(b, LINKTYPE_ETHERNET);
                // No limit on the length of a captured frame.
                put_u32(b, 0);
                if let Some(name) = names.get(i) {
                    option(b, IF_NAME, name.as_bytes());
                }
                // Timestamps in units of 10^-9 seconds.
                option(b, IF_TSRESOL, &[9]);
                option(b, OPT_END, &[]);
            });
        }
        Capture {
            out,
            pending,
            pending_frames: 0,
            frames_lost: 0,
            error: None,
        }
    }

    fn frame(&mut self, iface: IfaceId, direction: Direction, time: Duration, frame: &[u8]) {
        if self.error.is_some() {
            self.frames_lost += 1;
            return;
        }
        let nanos = time.as_nanos() as u64;
        block(&mut self.pending, ENHANCED_PACKET, |b| {
            put_u32(b, u32::from(iface.0));
            put_u32(b, (nanos >> 32) as u32);
            put_u32(b, nanos as u32);
            put_u32(b, frame.len() as u32);
            put_u32(b, frame.len() as u32);
            b.extend_from_slice(frame);
            pad(b);
            option(b, EPB_FLAGS, &(direction as u32).to_le_bytes());
            option(b, OPT_END, &[]);
        });
        self.pending_frames += 1;
    }

    fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        if let Err(error) = self
            .out
            .write_all(&self.pending)
            .and_then(|()| self.out.flush())
        {
            self.frames_lost += self.pending_frames;
            self.error = Some(error);
        }
        self.pending.clear();
        self.pending_frames = 0;
    }
}

/// A block with its length before and after the body.
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    put_u32(out, kind);
    put_u32(out, 0);
    body(out);
    let len = (out.len() - start + 4) as u32;
    put_u32(out, len);
    out[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
}

/// An option's value is cut at the 65,535 octets that its length can say.
fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&code.to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&value[..usize::from(len)]);
    pad(out);
}

/// Up to the next 32-bit boundary. Every block begins at one, so the file's do.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::memory::{MemoryConfig, MemoryPort};
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Packet {
        iface: u32,
        nanos: u64,
        flags: u32,
        data: Vec<u8>,
    }

    fn u16_at(b: &[u8], at: usize) -> u16 {
        u16::from_le_bytes(b[at..at + 2].try_into().unwrap())
    }

    fn u32_at(b: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
    }

    fn options(mut b: &[u8]) -> Vec<(u16, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            let (code, len) = (u16_at(b, 0), usize::from(u16_at(b, 2)));
            if code == 0 {
                assert_eq!((len, b.len()), (0, 4), "the end is last");
                return found;
            }
            found.push((code, b[4..4 + len].to_vec()));
            b = &b[4 + len.next_multiple_of(4)..];
        }
    }

    /// Interface names and packets of a file.
    fn parse(mut file: &[u8]) -> (Vec<String>, Vec<Packet>) {
        assert_eq!(u32_at(file, 0), 0x0a0d_0d0a);
        assert_eq!(u32_at(file, 8), 0x1a2b_3c4d);
        let (mut names, mut packets) = (Vec::new(), Vec::new());
        while !file.is_empty() {
            let len = u32_at(file, 4) as usize;
            assert_eq!(len % 4, 0);
            assert_eq!(u32_at(file, len - 4) as usize, len);
            let body = &file[8..len - 4];
            match u32_at(file, 0) {
                0x0a0d_0d0a => assert_eq!((u16_at(body, 4), u16_at(body, 6)), (1, 0)),
                1 => {
                    assert_eq!(u16_at(body, 0), 1);
                    let options = options(&body[8..]);
                    assert!(options.contains(&(9, vec![9])));
                    let name = options.iter().find(|o| o.0 == 2).map(|o| o.1.clone());
                    names.push(String::from_utf8(name.unwrap_or_default()).unwrap());
                }
                6 => {
                    let captured = u32_at(body, 12) as usize;
                    assert_eq!(u32_at(body, 16) as usize, captured);
                    let flags = options(&body[20 + captured.next_multiple_of(4)..]);
                    assert_eq!(flags.len(), 1);
                    assert_eq!(flags[0].0, 2);
                    packets.push(Packet {
                        iface: u32_at(body, 0),
                        nanos: u64::from(u32_at(body, 4)) << 32 | u64::from(u32_at(body, 8)),
                        flags: u32_at(&flags[0].1, 0),
                        data: body[20..20 + captured].to_vec(),
                    });
                }
                other => panic!("block type {other:#x}"),
            }
            file = &file[len..];
        }
        (names, packets)
    }

    fn send(port: &mut impl Port, iface: u8, bytes: &[u8]) {
        let sent = port.transmit(IfaceId(iface), &mut |frame| {
            frame[..bytes.len()].copy_from_slice(bytes);
            bytes.len()
        });
        assert!(sent);
    }

    fn memory() -> MemoryPort {
        MemoryPort::new(MemoryConfig {
            interfaces: 2,
            frames: 8,
            ..MemoryConfig::default()
        })
    }

    #[test]
    fn both_directions_are_in_the_file_as_they_passed() {
        const START: u64 = 1_700_000_000_123_456_789;
        let mut ticks = 0..;
        let clock = || Duration::from_nanos(START + ticks.next().unwrap_or(0));
        let mut port = PcapPort::new(memory(), Vec::new(), &["s1"], clock);
        port.inner_mut().inject(IfaceId(1), &[1; 61]);
        assert_eq!(
            port.receive(&mut |arrival, f| {
                assert_eq!((arrival.iface.0, f.len()), (1, 61));
                Verdict::Taken
            }),
            1
        );
        send(&mut port, 0, &[2; 64]);
        assert!(port.transmit(IfaceId(0), &mut |_| 0));
        port.flush();
        assert_eq!(port.inner_mut().take(IfaceId(0)), Some(vec![2; 64]));
        send(&mut port, 1, &[3; 3]);
        let (_, file) = port.into_parts();

        let (names, packets) = parse(&file);
        assert_eq!(names, ["s1", ""]);
        let packet = |iface, nanos, flags, data| Packet {
            iface,
            nanos: START + nanos,
            flags,
            data,
        };
        assert_eq!(
            packets,
            [
                packet(1, 0, 1, vec![1; 61]),
                packet(0, 1, 2, vec![2; 64]),
                packet(1, 2, 2, vec![3; 3])
            ]
        );
    }

    /// Takes so many octets, fails once as a full disk does, and then has room again.
    struct Disk(usize, Vec<u8>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(self.0);
            if n == 0 {
                self.0 = usize::MAX;
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0 -= n;
            self.1.extend_from_slice(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_counted_and_the_traffic_goes_on() {
        let mut port = PcapPort::new(memory(), Disk(300, Vec::new()), &[], || Duration::ZERO);
        for i in 0..4 {
            send(&mut port, 0, &[i; 100]);
            port.flush();
            assert_eq!(port.inner_mut().take(IfaceId(0)), Some(vec![i; 100]));
        }
        assert_eq!(
            port.error().map(io::Error::kind),
            Some(io::ErrorKind::StorageFull)
        );
        // The first frame fits. The second is torn, so room that appears later is not used.
        assert_eq!(port.frames_lost(), 3);
        assert_eq!(port.into_parts().1.1.len(), 300);
    }
}

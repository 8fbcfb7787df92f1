//! Frames that no honest client sends: they are counted, they never bring the engine down, and
//! nothing they leave behind stays for ever.

use super::pen::Pen;
use crate::model::apps::{Behaviour, ECHO, TestApp};
use crate::model::client::ClientConfig;
use crate::model::net::Path;
use crate::model::server::Server;
use crate::model::sim::{Family, Sim, SimConfig};
use crate::model::{Rng, effort, ones_complement, stream};
use mpx_datapath::engine::Versions;
use mpx_datapath::port::IfaceId;
use mpx_datapath::time::{Duration, Instant};
use mpx_datapath::wire::mptcp::MpPrio;
use mpx_datapath::wire::tcp::TcpFlags;

/// Mutated frames in all.
const FRAMES: usize = 1_000_000;
/// In one go at one engine.
const FRAMES_PER_RUN: usize = 2_000;

type Recording = Vec<(Instant, IfaceId, Vec<u8>)>;

/// What honest clients send to the server in exchanges of several kinds. The engine's entropy comes
/// from a number, so that the same frames fit the same engine again.
fn recordings() -> Vec<(SimConfig, Recording)> {
    let both = Behaviour {
        send_bytes: 40_000,
        ..Behaviour::default()
    };
    let mut recordings = Vec::new();
    for n in 0..12 {
        let rough = Path {
            loss_permille: 30,
            reorder_permille: 50,
            ..Path::default()
        };
        let path = if n & 1 != 0 { rough } else { Path::default() };
        let family = if n & 2 != 0 { Family::V6 } else { Family::V4 };
        let checksum = n & 4 != 0;
        let config = SimConfig {
            paths: vec![path; 2],
            family,
            checksum,
            versions: Versions { v0: true, v1: true },
            ..SimConfig::with(both)
        };
        let mut sim = Sim::new(config.clone());
        sim.net.record = Some(Vec::new());
        let mut client = ClientConfig::new(family.server(0));
        client.eight_octets = n % 3 != 0;
        client.version = u8::from(n < 8);
        let c = sim.connect(client);
        let plain = sim.connect(ClientConfig::plain(family.server(1)));
        for c in [c, plain] {
            sim.clients[c].send(&stream(n, 40_000));
        }
        sim.run(|sim| sim.clients[c].established() && sim.clients[c].may_join());
        let at = sim.join(c, 1);
        sim.run(|sim| sim.clients[c].subflows[at].open());
        sim.run(|sim| sim.clients[c].received().len() == 40_000);
        if n % 4 == 3 {
            sim.clients[c].fastclose();
        } else {
            sim.clients[c].close_write();
        }
        sim.clients[plain].close_write();
        sim.run(|sim| sim.clients[c].closed() && sim.clients[plain].closed());
        recordings.push((config, sim.net.record.take().expect("it was recorded")));
    }
    recordings
}

/// Names the run that failed.
struct OnPanic(u64);

impl Drop for OnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was MPX_TEST_FIRST_RUN={}", self.0);
        }
    }
}

#[test]
fn a_million_mutated_frames() {
    let recordings = recordings();
    let mut frames = 0;
    let first = std::env::var("MPX_TEST_FIRST_RUN")
        .ok()
        .and_then(|n| n.parse().ok());
    for run in first.unwrap_or(0u64).. {
        let _name = OnPanic(run);
        let mut rng = Rng(run);
        let (config, recording) = &recordings[run as usize % recordings.len()];
        frames += replay(config, recording, &mut rng);
        if frames >= FRAMES * effort() as usize {
            return;
        }
    }
}

/// Plays a recording to a new engine, from somewhere on with mutated frames among those recorded;
/// returns how many. In the end nothing is left in the engine.
fn replay(config: &SimConfig, recording: &Recording, rng: &mut Rng) -> usize {
    let mut now = recording[0].0;
    let mut server = Server::new(
        config,
        Instant::from_millis(1_000_000),
        TestApp::new(config.app),
    );
    let start = rng.below(recording.len());
    let each = FRAMES_PER_RUN.div_ceil(recording.len() - start);
    let mut mutated = 0;
    for (i, (at, iface, frame)) in recording.iter().enumerate() {
        now = *at;
        while server.next_timeout().is_some_and(|t| t <= now) {
            server.on_timeout(now);
            drain(&mut server, now, config.paths.len());
        }
        server.on_frame(now, *iface, frame);
        drain(&mut server, now, config.paths.len());
        if i < start {
            continue;
        }
        for _ in 0..each.min(FRAMES_PER_RUN - mutated) {
            // Mostly what is going on now, sometimes what was or will be.
            let base = if rng.permille(700) {
                i
            } else {
                rng.below(recording.len())
            };
            let other = rng.below(recording.len());
            let frame = mutate(&recording[base].2, &recording[other].2, rng);
            let iface = IfaceId(rng.below(config.paths.len()) as u8);
            server.on_frame(now, iface, &frame);
            if rng.permille(100) {
                drain(&mut server, now, config.paths.len());
            }
            mutated += 1;
        }
        drain(&mut server, now, config.paths.len());
    }
    let deadline = now + Duration::from_secs(24 * 3600);
    // A connection with nothing to do has no timer and may stay; all others end by themselves.
    while let Some(next) = server.next_timeout() {
        now = now.max(next);
        assert!(now < deadline, "busy after a day: {}", server.describe());
        server.on_timeout(now);
        drain(&mut server, now, config.paths.len());
    }
    server.engine.abort_all(now);
    drain(&mut server, now, config.paths.len());
    while let Some(next) = server.next_timeout() {
        now = now.max(next);
        server.on_timeout(now);
    }
    assert!(server.is_empty(), "left for ever: {}", server.describe());
    mutated
}

/// Takes out everything that the engine sends.
fn drain(server: &mut Server, now: Instant, interfaces: usize) {
    let mut frame = [0; 2048];
    for iface in (0..interfaces).map(|i| IfaceId(i as u8)) {
        let mut sent = 0;
        while server.poll_transmit(now, iface, &mut frame) > 0 {
            sent += 1;
            assert!(
                sent < 100_000,
                "it sends without end: {}",
                server.describe()
            );
        }
    }
}

/// One frame made from two others.
fn mutate(frame: &[u8], other: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut f = frame.to_vec();
    for _ in 0..1 + rng.below(3) {
        if f.is_empty() {
            break;
        }
        let tcp = tcp_offset(&f);
        match rng.below(14) {
            0 => {
                let bit = rng.below(f.len() * 8);
                f[bit / 8] ^= 1 << (bit % 8);
            }
            1 => {
                let at = rng.below(f.len().min(120));
                f[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff][rng.below(6)];
            }
            2 => f.truncate(rng.below(f.len() + 1)),
            3 => {
                let more = rng.below(64);
                f.extend((0..more).map(|_| rng.next() as u8));
            }
            // Lengths of the headers and of the packet.
            4 => set(&mut f, 14, rng.next() as u8),
            5 => set(&mut f, 17 + rng.below(4), rng.next() as u8),
            6 => set(&mut f, tcp + 12, (rng.next() as u8) & 0xf0),
            // Control bits.
            7 | 8 => set(&mut f, tcp + 13, rng.next() as u8 & 0x3f),
            // A sequence or acknowledgment number a little off, or far.
            9 | 10 => {
                let at = tcp + 4 + 4 * rng.below(2);
                if let Some(number) = f.get_mut(at..).and_then(|f| f.first_chunk_mut::<4>()) {
                    let delta = match rng.below(3) {
                        0 => rng.below(4) as u32,
                        1 => rng.below(100_000) as u32,
                        _ => rng.next() as u32,
                    };
                    let value = u32::from_be_bytes(*number);
                    let value = if rng.permille(500) {
                        value.wrapping_add(delta)
                    } else {
                        value.wrapping_sub(delta)
                    };
                    *number = value.to_be_bytes();
                }
            }
            // Windows of nothing and of everything.
            11 => {
                let window = if rng.permille(500) { 0 } else { 0xff };
                set(&mut f, tcp + 14, window);
                set(&mut f, tcp + 15, window);
            }
            // Something in the options, where kinds, lengths and subtypes are.
            12 => set(&mut f, tcp + 20 + rng.below(40), rng.next() as u8),
            // The options of another frame.
            _ => {
                let (from, to) = (tcp_offset(other) + 20, tcp + 20);
                let n = rng.below(40);
                for i in 0..n {
                    if let Some(octet) = other.get(from + i) {
                        set(&mut f, to + i, *octet);
                    }
                }
            }
        }
    }
    // With right checksums it gets further.
    if rng.permille(850) {
        fix_checksums(&mut f);
    }
    f
}

fn set(f: &mut [u8], at: usize, value: u8) {
    if let Some(octet) = f.get_mut(at) {
        *octet = value;
    }
}

/// Where TCP begins in a frame as the model client builds them.
fn tcp_offset(f: &[u8]) -> usize {
    if f.get(12) == Some(&0x86) { 54 } else { 34 }
}

/// Makes the checksums right, as far as the lengths in the headers allow.
fn fix_checksums(f: &mut [u8]) {
    let Some((_, packet)) = f.split_at_mut_checked(14) else {
        return;
    };
    let (addresses, ip_len, end) = match packet.first().map(|v| v >> 4) {
        Some(4) if packet.len() >= 20 => {
            let ip_len = 4 * usize::from(packet[0] & 0xf);
            let end = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            (12..20, ip_len, end)
        }
        Some(6) if packet.len() >= 40 => {
            let end = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            (8..40, 40, end)
        }
        _ => return,
    };
    if packet[0] >> 4 == 4
        && let Some(header) = packet.get_mut(..ip_len).filter(|h| h.len() >= 20)
    {
        header[10..12].fill(0);
        let sum = !ones_complement(header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let addresses = packet[addresses].to_vec();
    let Some(segment) = packet.get_mut(ip_len..end).filter(|s| s.len() >= 20) else {
        return;
    };
    segment[16..18].fill(0);
    let mut octets = addresses;
    octets.extend((segment.len() as u32).to_be_bytes());
    octets.extend([0, 0, 0, 6]);
    octets.extend_from_slice(segment);
    let sum = !ones_complement(&octets);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
}

// RFC 8684 §3.3.1: a mapping never changes. One that says otherwise of octets that are not there yet
// ends its subflow, and neither of the two is delivered; the same one again changes nothing.
#[test]
fn a_mapping_that_contradicts_another_resets_its_subflow() {
    for shift in [0, 1] {
        let mut pen = Pen::half_open(false, Behaviour::default());
        pen.third_ack();
        let mapping = |pen: &Pen, shift: usize| {
            let mut options = pen.mapping(0, shift, b"hello world");
            let dss = options.mptcp.dss.as_mut();
            if let Some(mapping) = dss.and_then(|dss| dss.mapping.as_mut()) {
                mapping.checksum = None;
            }
            options
        };
        // Its second half first.
        pen.send(6, mapping(&pen, 0), b"world");
        pen.script.answers();
        pen.send(0, mapping(&pen, shift), b"hello ");
        let reset = pen.script.answers().into_iter().find_map(|(tcp, _)| {
            let rst = tcp.flags.contains(TcpFlags::RST);
            rst.then_some(tcp.options.mptcp.tcprst.map(|r| r.reason))
        });
        let received = pen.app.record().received;
        let conflicts = pen.script.engine.metrics.dss_not_matching;
        if shift == 0 {
            assert_eq!((reset, conflicts), (None, 0));
            assert_eq!(received, b"hello world");
        } else {
            assert_eq!((reset, conflicts), (Some(Some(1)), 1));
            assert_eq!(received, b"");
        }
    }
}

// RFC 8684 §3.3.1: what the peer calls urgent is mapped like everything else and stays where it is in
// the stream; nothing of ours is urgent.
#[test]
fn urgent_data_is_inline() {
    let mut pen = Pen::half_open(false, ECHO);
    pen.third_ack();
    let mut options = pen.mapping(0, 0, b"hello");
    let dss = options.mptcp.dss.as_mut();
    if let Some(mapping) = dss.and_then(|dss| dss.mapping.as_mut()) {
        mapping.checksum = None;
    }
    pen.script.urgent = Some(3);
    pen.send(0, options, b"hello");
    assert_eq!(pen.app.record().received, b"hello");
    let (echoed, len) = pen.answer();
    assert_eq!(len, 5);
    assert!(!echoed.flags.contains(TcpFlags::URG));
    assert_eq!(echoed.urgent, 0);
}

// RFC 8684 §3.4.1: a duplicate ACK that carries a signal tells nothing of congestion. Without one the
// third repeats what seems lost (RFC 5681 §3.2).
#[test]
fn duplicate_acknowledgments_with_signals_mean_no_loss() {
    for signals in [true, false] {
        let mut pen = Pen::half_open(
            false,
            Behaviour {
                send_bytes: 100_000,
                ..Behaviour::default()
            },
        );
        pen.third_ack();
        let first = pen.script.answers();
        let mut repeated = 0;
        for _ in 0..4 {
            let mut options = pen.data_ack();
            options.mptcp.prio = signals.then_some(MpPrio {
                backup: false,
                address_id: None,
            });
            pen.send(0, options, &[]);
            let answers = pen.script.answers();
            repeated += answers.iter().filter(|a| a.0.seq == first[0].0.seq).count();
        }
        assert_eq!(repeated, usize::from(!signals));
        let found = pen.script.engine.metrics.tcp_fast_recoveries;
        assert_eq!(found, u64::from(!signals));
    }
}

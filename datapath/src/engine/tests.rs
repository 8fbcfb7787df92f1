//! What no test from outside can bring about.

use super::*;
use crate::app::builtin::Discard;
use crate::rand::ChaChaEntropy;
use crate::tcp::congestion::{Ack, Algorithm, CongestionControl};
use crate::time::Duration;
use crate::wire::checksum;
use crate::wire::frame::Link;
use std::net::SocketAddr;

const SERVER: &str = "10.0.0.2:7";

/// An algorithm that couples subflows, and does nothing else. The services have none to choose yet.
#[derive(Debug)]
struct Coupled;

impl CongestionControl for Coupled {
    fn name(&self) -> &'static str {
        "coupled"
    }
    fn cwnd(&self) -> usize {
        7000
    }
    fn ssthresh(&self) -> usize {
        5000
    }
    fn is_coupled(&self) -> bool {
        true
    }
    fn on_ack(&mut self, _: &Ack<'_>) {}
    fn on_congestion(&mut self, _: Instant, _: usize) {}
    fn on_timeout(&mut self, _: Instant, _: usize, _: bool) {}
    fn undo(&mut self) {}
    fn on_idle(&mut self) {}
    fn set_mss(&mut self, _: usize) {}
}

/// A segment without text from a port of the client.
fn send(engine: &mut Engine, now: Instant, port: u16, seq: u32, ack: TcpSeq, flags: TcpFlags) {
    send_text(engine, now, port, seq, ack, flags, &[]);
}

fn send_text(
    engine: &mut Engine,
    now: Instant,
    port: u16,
    seq: u32,
    ack: TcpSeq,
    flags: TcpFlags,
    text: &[u8],
) {
    let server: SocketAddr = SERVER.parse().expect("an address");
    let header = TcpHeader {
        src_port: port,
        dst_port: server.port(),
        seq: TcpSeq(seq),
        ack,
        flags,
        window: 60_000,
        urgent: 0,
        options: TcpOptions::default(),
    };
    let mut bytes = [0; 128];
    let (link, client) = (Link::default(), [10, 0, 0, 1].into());
    let at = frame::header_len(&link, &client, &header.options);
    let sum = checksum::copy_and_sum(&mut bytes[at..at + text.len()], text);
    let (server, len) = (server.ip(), text.len());
    let len = frame::emit(&mut bytes, &link, client, server, 0, &header, len, sum);
    engine.on_frame(now, IfaceId(0), &bytes[..len]);
}

/// The number that the SYN/ACK acknowledges with.
fn syn_ack(engine: &mut Engine, now: Instant) -> TcpSeq {
    let mut bytes = [0; 128];
    let len = engine.poll_transmit(now, IfaceId(0), &mut bytes);
    let segment = Segment::parse(&bytes[..len]).expect("a SYN/ACK");
    segment.tcp.seq + 1
}

fn discarding(now: Instant) -> Engine {
    let service = ServiceConfig {
        name: "discard".into(),
        listen: vec![SERVER.parse().expect("an address")],
        checksum: false,
        joins: JoinPolicy::AnyPort,
        addresses: AddressPolicy::default(),
        congestion: Algorithm::Reno,
        ecn: false,
        patience: Patience::default(),
    };
    let config = EngineConfig::new(vec![InterfaceConfig { mtu: 1500 }], vec![service]);
    let entropy = Box::new(ChaChaEntropy::deterministic(1));
    Engine::new(config, vec![Box::new(Discard)], now, entropy)
}

#[test]
fn a_coupled_algorithm_sees_every_subflow_and_others_cost_nothing() {
    let mut now = Instant::from_millis(1000);
    let mut engine = discarding(now);
    let mut first = TcpSeq(0);
    for (port, rtt_ms) in [(5000, 10), (5001, 30)] {
        send(&mut engine, now, port, 1, TcpSeq(0), TcpFlags::SYN);
        let ack = syn_ack(&mut engine, now);
        now = now + Duration::from_millis(rtt_ms);
        send(&mut engine, now, port, 2, ack, TcpFlags::ACK);
        if port == 5000 {
            first = ack;
        }
    }
    send(&mut engine, now, 5000, 2, first, TcpFlags::ACK);
    assert_eq!(engine.connections[0].subflows[0].tx.siblings.capacity(), 0);

    // As if the second had joined the first.
    let second = engine.connections[1].subflows.remove(0);
    let connection = &mut engine.connections[0];
    connection.add_subflow(second);
    connection.subflows[0].tx.cc = Box::new(Coupled);
    let mut buffer = None;
    for _ in 0..3 {
        send(&mut engine, now, 5000, 2, first, TcpFlags::ACK);
        let siblings = &engine.connections[0].subflows[0].tx.siblings;
        let seen: Vec<_> = siblings
            .iter()
            .map(|s| (s.cwnd, s.ssthresh, s.srtt.as_millis(), s.recovering))
            .collect();
        let reno = 10 * 536;
        assert_eq!(
            seen,
            [(7000, 5000, 10, false), (reno, usize::MAX, 30, false)]
        );
        // One buffer for all acknowledgments.
        assert_eq!(*buffer.get_or_insert(siblings.as_ptr()), siblings.as_ptr());
    }
}

/// A few octets every 50 ms, each acknowledged late: timers near and far in turn.
#[test]
fn the_timer_wheel_holds_a_few_entries_of_a_connection_and_no_more() {
    let mut now = Instant::from_millis(1000);
    let mut engine = discarding(now);
    send(&mut engine, now, 5000, 1, TcpSeq(0), TcpFlags::SYN);
    let ack = syn_ack(&mut engine, now);
    send(&mut engine, now, 5000, 2, ack, TcpFlags::ACK);
    for n in 0..1000 {
        send_text(
            &mut engine,
            now,
            5000,
            2 + 10 * n,
            ack,
            TcpFlags::ACK,
            &[7; 10],
        );
        for _ in 0..50 {
            now = now + Duration::from_millis(1);
            engine.on_timeout(now);
            let mut frame = [0; 2048];
            while engine.poll_transmit(now, IfaceId(0), &mut frame) > 0 {}
        }
        assert!(engine.wheel.len() <= 4, "{} after {n}", engine.wheel.len());
    }
    assert_eq!(engine.connections[0].subflows[0].bytes_received, 10_000);
}

//! What no test from outside can bring about.

use super::*;
use crate::app::builtin::Discard;
use crate::crypto::token_and_idsn;
use crate::mptcp::connection::TimeWaitState;
use crate::mptcp::subflow::Reset;
use crate::rand::ChaChaEntropy;
use crate::steering::{FlowMap, MemoryFlowMap, gives_way};
use crate::tcp::State;
use crate::tcp::congestion::Algorithm;
use crate::tcp::fast_open::FastOpen;
use crate::time::Duration;
use crate::wire::checksum;
use crate::wire::frame::Link;
use crate::wire::mptcp::{CapableContent, MpCapable};
use mpx_ebpf::{FlowOwner, Numbers};
use std::net::SocketAddr;

const SERVER: &str = "10.0.0.2:7";

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
    let options = TcpOptions::default();
    send_with(engine, now, port, seq, ack, flags, options, text);
}

#[expect(clippy::too_many_arguments, reason = "all of it is one segment")]
fn send_with(
    engine: &mut Engine,
    now: Instant,
    port: u16,
    seq: u32,
    ack: TcpSeq,
    flags: TcpFlags,
    options: TcpOptions,
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
        options,
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

const BUFFERS: Buffers = Buffers {
    receive_initial_bytes: 100_000,
    receive_max_bytes: 8_000_000,
    send_initial_bytes: 100_000,
    send_max_bytes: 8_000_000,
};

fn discarding(now: Instant, buffers: Buffers) -> Engine {
    let service = ServiceConfig {
        name: "discard".into(),
        listen: vec![SERVER.parse().expect("an address")],
        versions: Versions::default(),
        checksum: false,
        joins: JoinPolicy::AnyPort,
        addresses: AddressPolicy::default(),
        congestion: Algorithm::Reno,
        ecn: false,
        fast_open: FastOpen::Off,
        patience: Patience::default(),
        closing: Closing::default(),
    };
    let mut config = EngineConfig::new(vec![InterfaceConfig { mtu: 1500 }], vec![service]);
    config.buffers = buffers;
    let entropy = Box::new(ChaChaEntropy::deterministic(1));
    Engine::new(config, vec![Box::new(Discard)], now, entropy)
}

/// A plain TCP connection, to which a second one's subflow was added as if it had joined. Round trips
/// of 10 and 30 ms; then it is `now`, and the first expects `ack`.
struct Rig {
    engine: Engine,
    now: Instant,
    ack: TcpSeq,
}

fn two_subflows(buffers: Buffers) -> Rig {
    let mut now = Instant::from_millis(1000);
    let mut engine = discarding(now, buffers);
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
    let second = engine.connections[1].subflows.remove(0);
    engine.connections[0].add_subflow(second);
    Rig {
        engine,
        now,
        ack: first,
    }
}

#[test]
fn a_coupled_algorithm_sees_every_subflow_and_others_cost_nothing() {
    let Rig {
        mut engine,
        now,
        ack,
    } = two_subflows(BUFFERS);
    let connection = &mut engine.connections[0];
    connection.subflows[0].tx.cc = Algorithm::Lia.start(536);
    connection.subflows[0].tx.cc.on_congestion(now, 10 * 536);
    let mut buffer = None;
    for _ in 0..3 {
        send(&mut engine, now, 5000, 2, ack, TcpFlags::ACK);
        let siblings = &engine.connections[0].subflows[0].tx.siblings;
        let seen: Vec<_> = siblings
            .iter()
            .map(|s| (s.cwnd, s.ssthresh, s.srtt.as_millis()))
            .collect();
        let (half, whole) = (5 * 536, 10 * 536);
        assert_eq!(seen, [(half, half, 10), (whole, usize::MAX, 30)]);
        // One buffer for all acknowledgments.
        assert_eq!(*buffer.get_or_insert(siblings.as_ptr()), siblings.as_ptr());
    }
}

/// A few octets every 50 ms, each acknowledged late: timers near and far in turn.
#[test]
fn the_timer_wheel_holds_a_few_entries_of_a_connection_and_no_more() {
    let mut now = Instant::from_millis(1000);
    let mut engine = discarding(now, BUFFERS);
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

// RFC 8684 §3.3.1: one window, that of the data level, in the units of each subflow.
#[test]
fn the_window_is_advertised_in_the_units_of_the_subflow() {
    let mut rig = two_subflows(BUFFERS);
    let connection = &mut rig.engine.connections[0];
    connection.subflows[1].rcv_wscale = 7;
    assert_eq!(connection.advertised_window(0), (65_535, 65_535));
    assert_eq!(connection.advertised_window(1), (781, 781 << 7));
}

/// A connection with all but 5 octets of its window full, which were advertised.
fn full(buffers: Buffers) -> Rig {
    let mut rig = two_subflows(buffers);
    let rcv = &mut rig.engine.connections[0].rcv;
    rcv.on_advertised(buffers.receive_initial_bytes);
    let text = vec![0; buffers.receive_initial_bytes - 5];
    rcv.accept(rcv.rcv_nxt, &text, false);
    assert_eq!(rcv.window_bytes(), 5);
    rig
}

// RFC 9293 §3.8.6.2.2: an update is worth two segments or half the buffer, and nothing once the peer
// has said all.
#[test]
fn a_window_update_is_due_from_two_segments_or_half_the_buffer_on() {
    let mss = two_subflows(BUFFERS).engine.connections[0].subflows[0]
        .tx
        .mss;
    let small = Buffers {
        receive_initial_bytes: 1500,
        receive_max_bytes: 1500,
        ..BUFFERS
    };
    for (buffers, worth) in [(BUFFERS, 2 * mss), (small, 750)] {
        let mut rig = full(buffers);
        let connection = &mut rig.engine.connections[0];
        connection.rcv.consume(worth - 1);
        assert_eq!(connection.window_update_due(), None);
        connection.rcv.consume(1);
        assert_eq!(connection.window_update_due(), Some(0));
        connection.rcv.announce_fin(connection.rcv.rcv_nxt);
        assert!(connection.rcv.take_fin());
        assert_eq!(connection.window_update_due(), None);
    }
}

#[test]
fn a_window_update_leaves_where_the_window_was_filled_or_where_it_can() {
    let mut rig = full(BUFFERS);
    let connection = &mut rig.engine.connections[0];
    connection.rcv.consume(50_000);
    connection.last_received_on = 1;
    assert_eq!(connection.window_update_due(), Some(1));
    connection.subflows[1].state = State::SynReceived;
    assert_eq!(connection.window_update_due(), Some(0));
    connection.subflows[1].state = State::Established;
    connection.subflows[1].reset = Some(Reset::default());
    assert_eq!(connection.window_update_due(), Some(0));
    connection.subflows.remove(1);
    assert_eq!(connection.window_update_due(), Some(0));
}

// The window follows what the application takes in the longest round trip of all paths, once it is
// there to take anything.
#[test]
fn buffers_are_sized_by_the_slowest_path_and_for_an_open_application() {
    for (wait_ms, is_open, grows) in [(30, true, true), (29, true, false), (30, false, false)] {
        let mut rig = two_subflows(BUFFERS);
        let connection = &mut rig.engine.connections[0];
        connection.app_opened = is_open;
        connection.tune_buffers(rig.now);
        connection.rcv.rcv_nxt += 90_000;
        connection.tune_buffers(rig.now + Duration::from_millis(wait_ms));
        assert_eq!(connection.rcv.limit_bytes() > 100_000, grows);
    }
}

// RFC 8684 §3.1: the token is looked for again when the key comes back, for nothing was kept of it
// meanwhile. With no key to be had there is no MP_CAPABLE in the SYN/ACK.
#[test]
fn a_token_that_was_taken_behind_a_cookie_makes_it_plain_tcp() {
    let now = Instant::from_millis(1000);
    let capable = |content| {
        let mut options = TcpOptions::default();
        options.mptcp.capable = Some(MpCapable {
            version: 1,
            flags: MpCapable::FLAG_SHA256,
            content,
        });
        options
    };
    for taken in [false, true] {
        let mut engine = discarding(now, BUFFERS);
        engine.config.syn_cookies_from = 0;
        let syn = capable(CapableContent::Syn);
        send_with(
            &mut engine,
            now,
            5000,
            1,
            TcpSeq(0),
            TcpFlags::SYN,
            syn,
            &[],
        );
        let mut bytes = [0; 128];
        let len = engine.poll_transmit(now, IfaceId(0), &mut bytes);
        let answer = Segment::parse(&bytes[..len]).expect("a SYN/ACK").tcp;
        let Some(CapableContent::SynAck { sender_key }) =
            answer.options.mptcp.capable.map(|c| c.content)
        else {
            panic!("no key in {answer:?}");
        };
        if taken {
            engine.tokens.insert(token_and_idsn(sender_key).0, 7);
        }
        let keys = capable(CapableContent::Ack {
            sender_key: 1,
            receiver_key: sender_key,
        });
        send_with(
            &mut engine,
            now,
            5000,
            2,
            answer.seq + 1,
            TcpFlags::ACK,
            keys,
            &[],
        );
        let mode = if taken { Mode::Tcp } else { Mode::Mptcp };
        assert_eq!(engine.connections[0].mode, mode);
        assert_eq!(engine.metrics.mp_fallback_token_init, u64::from(taken));
        assert_eq!(engine.open_connections(), 1);
    }
    let mut engine = discarding(now, BUFFERS);
    engine.config.syn_cookies_from = 0;
    engine.keys = KeyPool::new(0, 1, 0, |_| (7, 7));
    engine.tokens.insert(7, 7);
    let syn = capable(CapableContent::Syn);
    send_with(
        &mut engine,
        now,
        5000,
        1,
        TcpSeq(0),
        TcpFlags::SYN,
        syn,
        &[],
    );
    let mut bytes = [0; 128];
    let len = engine.poll_transmit(now, IfaceId(0), &mut bytes);
    let answer = Segment::parse(&bytes[..len]).expect("a SYN/ACK").tcp;
    assert_eq!(answer.options.mptcp.capable, None);
    assert_eq!(engine.metrics.mp_fallback_token_init, 1);
}

/// Joins need room in the map of flows, which every worker of the server fills; what is over gives way.
#[test]
fn a_full_map_of_flows_takes_the_place_of_the_oldest_time_wait_and_then_refuses() {
    let now = Instant::from_millis(1000);
    let mut engine = discarding(now, BUFFERS);
    let flows = MemoryFlowMap::new(3);
    engine.set_flow_map(Box::new(flows.clone()));
    // Of no service's port, so that all of them need an entry.
    let key = |port: u16| {
        let local: SocketAddr = "10.0.0.2:8080".parse().expect("an address");
        FlowKey::new(local, ([10, 0, 0, 1], port).into())
    };
    let state = TimeWaitState {
        snd_nxt: TcpSeq(1),
        rcv_nxt: TcpSeq(1),
        ts: None,
        data_ack: None,
    };
    let in_map = |port: u16| {
        let mut found = false;
        flows.retain(|octets| {
            found |= *octets == key(port).octets();
            true
        });
        found
    };
    for port in 1..=3 {
        assert!(engine.steer_flow(key(port), None));
    }
    assert!(!engine.steer_flow(key(4), None) && engine.metrics.flow_map_full == 1);
    for port in [2, 1] {
        engine.enter_time_wait(now, &key(port), &state);
    }
    // Its addresses are free for another flow; what is late of it acknowledges our FIN.
    let entry = flows.clone().lookup(&key(2).octets()).expect("it is there");
    let of = |numbers| entry.of_segment(numbers);
    assert_eq!([Numbers::Ack(1), Numbers::Ack(2)].map(of), [Some(0), None]);
    assert!(gives_way(entry, FlowOwner::proven(1)));
    assert!(engine.steer_flow(key(4), None));
    assert_eq!([1, 2, 3, 4].map(in_map), [true, false, true, true]);
    assert_eq!(engine.time_wait.len(), 2, "it is still answered for");
    // One that is in TIME-WAIT no more, or mapped no more, is none to be given up.
    engine.forget_steered(engine.flows.fingerprint(&key(1)));
    assert!(engine.steer_flow(key(5), None));
    assert!(!engine.steer_flow(key(6), None));
    assert_eq!(engine.metrics.flow_map_evicted, 1);
    assert_eq!(engine.metrics.flow_map_full, 2);
    assert_eq!(engine.report(now, 0).flow_map, 3);

    // A flow at home on a service's port needs none.
    let local = SERVER.parse().expect("an address");
    assert!(engine.steer_flow(FlowKey::new(local, ([10, 0, 0, 1], 7).into()), None));
}

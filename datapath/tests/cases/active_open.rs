//! Subflows that the server opens (RFC 8684 §3.2, as host A) to what the client announced (§3.4.1).

use super::pen::{ISS, KEY, Pen};
use super::script::{ACK, CLIENT, FIN, SERVER, SYN};
use crate::model::apps::ECHO;
use crate::model::client::{ClientConfig, Quirks};
use crate::model::net::Side;
use crate::model::sim::{Family, Sim, SimConfig};
use crate::model::subflow::{State, Subflow};
use crate::model::{add_addr_hmac, assert_same, join_hmac, stream, token_and_idsn};
use ipnet::IpNet;
use mpx_datapath::engine::{EngineConfig, FirstHop, JoinRule, Route};
use mpx_datapath::mptcp::address::{AGAIN_WAIT, FAILURES_MAX};
use mpx_datapath::mptcp::close::{RST_MPTCP_SPECIFIC, RST_PERFORMANCE};
use mpx_datapath::port::IfaceId;
use mpx_datapath::seq::TcpSeq;
use mpx_datapath::time::Duration;
use mpx_datapath::wire::frame::Link;
use mpx_datapath::wire::mptcp::{AddAddr, AddAddrForm, MpCapable, MpJoin, MpTcprst, RemoveAddr};
use mpx_datapath::wire::tcp::{TcpFlags, TcpHeader, TcpOptions, Timestamps};
use std::net::{IpAddr, SocketAddr};

const RST: TcpFlags = TcpFlags::RST;
const NONCE: u32 = 0x5566_7788;
/// The first of the SYN's retransmission timer (RFC 6298 §2.1).
const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Where [`Pen::join`] comes from.
const JOINED: SocketAddr = SocketAddr::new(CLIENT.ip(), 5001);

fn ip_of(text: &str) -> IpAddr {
    address(text).ip()
}

/// The client's other address, where it listens.
fn other() -> SocketAddr {
    address("10.0.1.1:7000")
}

/// A connection to a service that opens so many subflows; the client has sent an octet and has had it
/// back.
fn opened(subflows: usize, change: impl FnOnce(&mut EngineConfig)) -> Pen {
    let mut pen = Pen::configured(ECHO, |config| {
        config.services[0].addresses.open_subflows = subflows;
        change(config);
    });
    // The subflow that is to be opened will be faster.
    pen.script.wait(10 * MS);
    pen.third_ack();
    settle(&mut pen, 0);
    pen
}

/// The first octet on this subflow is that one of the stream, and comes back.
fn settle(pen: &mut Pen, offset: usize) {
    let options = mapping(pen, 0, offset, b"x");
    pen.send(0, options, b"x");
    let sent: usize = pen.script.answers().iter().map(|(_, len)| len).sum();
    assert_eq!(sent, 1);
    (pen.ack, pen.data_ack) = (pen.ack + 1, pen.data_ack + 1);
    let options = pen.data_ack();
    pen.send(1, options, &[]);
    assert_eq!(pen.script.answers(), []);
}

/// Without checksums.
fn mapping(pen: &Pen, at: usize, offset: usize, text: &[u8]) -> TcpOptions {
    let mut options = pen.mapping(at, offset, text);
    let dss = options.mptcp.dss.as_mut();
    if let Some(mapping) = dss.and_then(|dss| dss.mapping.as_mut()) {
        mapping.checksum = None;
    }
    options
}

/// Announces an address on the initial subflow and takes the echo; returns what else is sent.
fn announce(pen: &mut Pen, id: u8, address: SocketAddr, with_port: bool) -> Vec<TcpHeader> {
    let mut option = AddAddr {
        address_id: id,
        address: address.ip(),
        port: with_port.then_some(address.port()),
        form: AddAddrForm::Bare,
    };
    option.form = AddAddrForm::Signed(add_addr_hmac(KEY, pen.server_key, &option));
    let mut options = pen.data_ack();
    if address.is_ipv6() {
        options = TcpOptions::default();
    }
    options.mptcp.add_addr = Some(option);
    pen.send(1, options, &[]);
    let mut sent = headers(pen);
    let echo = |h: &TcpHeader| h.options.mptcp.add_addr.is_some();
    let echoes = sent.extract_if(.., |h| echo(h)).count();
    assert_eq!(echoes, 1);
    if let Some(syn) = sent.first() {
        pen.joins_from.set_port(syn.src_port);
    }
    sent
}

fn headers(pen: &mut Pen) -> Vec<TcpHeader> {
    let answers = pen.script.answers();
    answers.into_iter().map(|(header, _)| header).collect()
}

/// The one segment that is sent now.
fn one(pen: &mut Pen) -> TcpHeader {
    pen.answer().0
}

fn begun(pen: &mut Pen) -> TcpHeader {
    let sent = announce(pen, 1, other(), true);
    let [syn] = sent[..] else {
        panic!("one SYN, not {sent:?}")
    };
    assert_eq!((syn.flags, syn.dst_port), (SYN, other().port()));
    syn
}

fn nonce_of(syn: &TcpHeader) -> u32 {
    match syn.options.mptcp.join {
        Some(MpJoin::Syn { nonce, .. }) => nonce,
        join => panic!("MP_JOIN of a SYN: {join:?}"),
    }
}

/// A segment from the other address.
fn reply(pen: &mut Pen, seq: u32, ack: TcpSeq, flags: TcpFlags, options: TcpOptions, text: &[u8]) {
    (pen.script.client, pen.script.server) = (other(), pen.joins_from);
    pen.script.send(seq, ack, flags, options, text);
    (pen.script.client, pen.script.server) = (CLIENT, SERVER);
}

/// MP_JOIN of the answer to `syn`, with a bit of its HMAC turned over or not.
fn syn_ack_options(pen: &Pen, syn: &TcpHeader, wrong: bool) -> TcpOptions {
    let hmac = join_hmac(KEY, pen.server_key, NONCE, nonce_of(syn));
    let hmac = u64::from_be_bytes(std::array::from_fn(|i| hmac[i]));
    let mut options = TcpOptions {
        mss: Some(1460),
        sack_permitted: true,
        ..TcpOptions::default()
    };
    options.mptcp.join = Some(MpJoin::SynAck {
        backup: false,
        address_id: 9,
        hmac: hmac ^ u64::from(wrong),
        nonce: NONCE,
    });
    options
}

fn syn_ack(pen: &mut Pen, syn: &TcpHeader) {
    let options = syn_ack_options(pen, syn, false);
    reply(pen, ISS, syn.seq + 1, SYN | ACK, options, &[]);
}

/// The subflow is open.
fn joined(pen: &mut Pen) -> TcpHeader {
    let syn = begun(pen);
    syn_ack(pen, &syn);
    let third = one(pen);
    let options = pen.data_ack();
    reply(pen, ISS + 1, syn.seq + 1, ACK, options, &[]);
    assert_eq!(pen.script.answers(), []);
    third
}

fn assert_hmac(pen: &Pen, syn: &TcpHeader, third: &TcpHeader) {
    let hmac = join_hmac(pen.server_key, KEY, nonce_of(syn), NONCE);
    let hmac = std::array::from_fn(|i| hmac[i]);
    assert_eq!(third.options.mptcp.join, Some(MpJoin::Ack { hmac }));
    assert_eq!(third.flags, ACK);
    assert_eq!((third.seq, third.ack), (syn.seq + 1, TcpSeq(ISS + 1)));
}

fn states(pen: &Pen) -> Vec<(&'static str, bool)> {
    let report = pen.script.engine.report(pen.script.now, 1);
    let subflows = report.conns[0].subflows.iter();
    subflows.map(|s| (s.state, s.fully_established)).collect()
}

#[test]
fn nothing_is_opened_by_default() {
    let mut pen = opened(0, |_| {});
    assert_eq!(announce(&mut pen, 1, other(), true), []);
    pen.script.wait(Duration::from_secs(100));
    assert_eq!(pen.script.answers(), []);
    assert_eq!(pen.script.engine.metrics.mp_join_syn_tx, 0);
}

// RFC 8684 §3.2: the token is made from the client's key, the third ACK has the HMAC, and no data
// leaves before the fourth. Then it carries text both ways.
#[test]
fn a_subflow_is_opened_and_carries_text_both_ways() {
    let mut pen = opened(1, |_| {});
    let syn = begun(&mut pen);
    let Some(MpJoin::Syn {
        backup: false,
        address_id: 0,
        token,
        nonce: _,
    }) = syn.options.mptcp.join
    else {
        panic!("MP_JOIN: {syn:?}")
    };
    assert_eq!(token, token_and_idsn(KEY).0);
    assert!(syn.src_port >= 61_000, "{syn:?}");
    let options = &syn.options;
    assert_eq!((options.mss, options.sack_permitted), (Some(1460), true));
    assert!(options.window_scale.is_some());
    assert_eq!(options.timestamps.map(|ts| ts.tsecr), Some(0));
    assert_eq!(states(&pen)[1], ("SYN-SENT", false));

    syn_ack(&mut pen, &syn);
    let third = one(&mut pen);
    assert_hmac(&pen, &syn, &third);
    assert_eq!(third.options.timestamps, None, "nobody agreed to them");
    assert_eq!(states(&pen)[1], ("ESTAB", false));
    let options = mapping(&pen, 1, 1, b"abc");
    pen.send(1, options, b"abc");
    // It goes where it may, and not where it would get on best.
    let answers = pen.script.answers();
    assert!(
        answers
            .iter()
            .any(|(h, len)| h.dst_port == CLIENT.port() && *len == 3)
    );
    assert!(answers.iter().all(|(h, _)| h.dst_port == CLIENT.port()));
    (pen.ack, pen.data_ack) = (pen.ack + 3, pen.data_ack + 3);
    let options = pen.data_ack();
    pen.send(4, options, &[]);

    // Text is as good a fourth ACK as any.
    let options = mapping(&pen, 0, 4, b"defg");
    reply(&mut pen, ISS + 1, syn.seq + 1, ACK, options, b"defg");
    assert_eq!(states(&pen)[1], ("ESTAB", true));
    let answers = pen.script.answers();
    let [(echo, 4)] = answers[..] else {
        panic!("the echo, not {answers:?}")
    };
    assert_eq!(echo.dst_port, other().port());
    let mapping = echo.options.mptcp.dss.and_then(|d| d.mapping).expect("DSS");
    assert_eq!(mapping.subflow_seq, 1);
    let metrics = &pen.script.engine.metrics;
    assert_eq!((metrics.active_opens, metrics.mp_join_syn_tx), (1, 1));
    assert_eq!(metrics.mp_join_syn_ack_rx, 1);
    assert_eq!(metrics.mp_join_port_syn_ack_rx, 1);
}

// RFC 6298 §5: a SYN that is not answered comes again, alike, after 1, 2, 4, 8 and 16 s, and is given up
// 32 s after that.
#[test]
fn a_syn_is_repeated_and_given_up() {
    let mut pen = opened(1, |_| {});
    let first = begun(&mut pen);
    for wait in [1, 2, 4, 8, 16] {
        pen.script.wait(SECOND * wait - MS);
        assert_eq!(pen.script.answers(), [], "just before {wait} s");
        pen.script.wait(MS);
        let again = one(&mut pen);
        assert_eq!(again.seq, first.seq);
        assert_eq!(again.options.mptcp, first.options.mptcp, "same nonce");
    }
    pen.script.wait(SECOND * 32 - MS);
    assert_eq!(states(&pen).len(), 2);
    pen.script.wait(MS);
    assert_eq!(states(&pen).len(), 1);
    assert_eq!(pen.script.answers(), [], "nobody is there to be told");
    assert_eq!(pen.script.engine.metrics.join_timeouts, 1);
    // Its answer comes too late.
    syn_ack(&mut pen, &first);
    let reset = one(&mut pen);
    assert_eq!((reset.flags, reset.seq), (RST, first.seq + 1));
    // RFC 8684 §3.4.1: nothing is tried again, unless the client says it again.
    pen.script.wait(SECOND * 100);
    assert_eq!(pen.script.answers(), []);
    begun(&mut pen);
}

// RFC 8684 §3.2: the third ACK is repeated until something shows that it arrived: a SYN/ACK does not.
#[test]
fn a_third_ack_is_repeated_and_given_up() {
    for answered in [false, true] {
        let mut pen = opened(1, |_| {});
        let syn = begun(&mut pen);
        pen.script.wait(SECOND);
        one(&mut pen);
        // No round trip is measured of a SYN that was sent twice.
        syn_ack(&mut pen, &syn);
        let third = one(&mut pen);
        assert_hmac(&pen, &syn, &third);
        pen.script.wait(MS);
        syn_ack(&mut pen, &syn);
        assert_eq!(one(&mut pen).options.mptcp, third.options.mptcp);
        pen.script.wait(2 * SECOND - 2 * MS);
        assert_eq!(pen.script.answers(), []);
        pen.script.wait(MS);
        assert_eq!(one(&mut pen).options.mptcp, third.options.mptcp);
        if answered {
            reply(
                &mut pen,
                ISS + 1,
                syn.seq + 1,
                ACK,
                TcpOptions::default(),
                &[],
            );
            pen.script.wait(SECOND * 100);
            assert_eq!(pen.script.answers(), []);
            assert_eq!(states(&pen)[1], ("ESTAB", true));
            continue;
        }
        for wait in [4, 8, 16, 32] {
            pen.script.wait(SECOND * wait - MS);
            assert_eq!(pen.script.answers(), [], "just before {wait} s");
            pen.script.wait(MS);
            assert_eq!(one(&mut pen).options.mptcp, third.options.mptcp);
        }
        pen.script.wait(SECOND * 60 - MS);
        assert_eq!((states(&pen).len(), pen.script.answers()), (2, vec![]));
        pen.script.wait(MS);
        let reset = one(&mut pen);
        assert_eq!(reset.flags, RST | ACK);
        let reason = reset.options.mptcp.tcprst.map(|r| r.reason);
        assert_eq!(reason, Some(RST_PERFORMANCE));
        assert_eq!(states(&pen).len(), 1);
        assert_eq!(pen.script.engine.metrics.join_timeouts, 1);
    }
}

// RFC 8684 §3.2: a SYN/ACK with a wrong HMAC or without MP_JOIN is answered with a RST, reason 1 of
// MP_TCPRST, and the connection goes on.
#[test]
fn a_syn_ack_that_proves_nothing_is_reset() {
    for stripped in [false, true] {
        let mut pen = opened(1, |_| {});
        let syn = begun(&mut pen);
        let mut options = syn_ack_options(&pen, &syn, true);
        if stripped {
            options.mptcp.join = None;
        }
        reply(&mut pen, ISS, syn.seq + 1, SYN | ACK, options, &[]);
        let reset = one(&mut pen);
        assert_eq!(reset.flags, RST | ACK);
        assert_eq!((reset.seq, reset.ack), (syn.seq + 1, TcpSeq(ISS + 1)));
        let reason = MpTcprst {
            transient: false,
            reason: RST_MPTCP_SPECIFIC,
        };
        assert_eq!(reset.options.mptcp.tcprst, Some(reason));
        assert_eq!((states(&pen).len(), pen.mode()), (1, "mptcp"));
        let metrics = &pen.script.engine.metrics;
        let counted = [
            metrics.mp_join_syn_ack_hmac_failure,
            metrics.mp_join_syn_ack_missing,
        ];
        assert_eq!(counted, [u64::from(!stripped), u64::from(stripped)]);
        assert_eq!(metrics.mp_join_syn_ack_rx, 0);
    }
}

// RFC 9293 §3.10.7.3: what acknowledges something else is reset, a RST is believed only if it
// acknowledges our SYN, and the rest says nothing.
#[test]
fn odd_segments_in_syn_sent() {
    let mut pen = opened(1, |_| {});
    let syn = begun(&mut pen);
    let none = TcpOptions::default();
    for (ack, flags) in [
        (syn.seq, SYN | ACK),
        (syn.seq + 2, ACK),
        (syn.seq + 2, ACK | FIN),
    ] {
        reply(&mut pen, ISS, ack, flags, none, &[]);
        let reset = one(&mut pen);
        assert_eq!((reset.flags, reset.seq), (RST, ack));
        assert!(reset.options.mptcp.is_empty());
    }
    for (ack, flags) in [
        (syn.seq + 2, RST | ACK),
        (TcpSeq(0), RST),
        (syn.seq + 1, ACK),
        (syn.seq + 1, ACK | FIN),
        (TcpSeq(0), FIN),
    ] {
        reply(&mut pen, ISS, ack, flags, none, b"text");
        assert_eq!(pen.script.answers(), [], "{flags:?}");
    }
    // A SYN that is no join of this connection opens nothing here.
    reply(&mut pen, ISS, TcpSeq(0), SYN, none, &[]);
    let refused = one(&mut pen);
    assert_eq!((refused.flags, refused.ack), (RST | ACK, TcpSeq(ISS + 1)));
    assert_eq!(states(&pen)[1], ("SYN-SENT", false));
    syn_ack(&mut pen, &syn);
    let third = one(&mut pen);
    assert_hmac(&pen, &syn, &third);
}

// A client that has the same addresses and ports in TIME-WAIT may take our SYN for an old one (RFC 9293
// §3.6.1) and acknowledge what it knows. Our RST ends that, and the SYN comes again soon, once.
#[test]
fn what_a_client_has_in_time_wait_holds_up_a_join_for_a_moment_only() {
    let mut pen = opened(1, |_| {});
    let syn = begun(&mut pen);
    let none = TcpOptions::default();
    reply(&mut pen, ISS, syn.seq + 30_000_000, ACK, none, &[]);
    assert_eq!(one(&mut pen).flags, RST);
    pen.script.wait(10 * MS - Duration::from_nanos(1));
    assert_eq!(pen.script.answers(), []);
    pen.script.wait(Duration::from_nanos(1));
    let again = one(&mut pen);
    assert_eq!((again.flags, again.seq), (SYN, syn.seq));
    reply(&mut pen, ISS, syn.seq + 30_000_000, ACK, none, &[]);
    assert_eq!(one(&mut pen).flags, RST);
    pen.script.wait(2 * SECOND - MS);
    assert_eq!(pen.script.answers(), [], "twice would be a storm");
    pen.script.wait(MS);
    assert_eq!(one(&mut pen).flags, SYN);
}

// RFC 8684 §3.4.1: whoever refuses is not asked again, until he announces that address again.
#[test]
fn a_refusal_ends_it() {
    let mut pen = opened(1, |_| {});
    let syn = begun(&mut pen);
    reply(
        &mut pen,
        0,
        syn.seq + 1,
        RST | ACK,
        TcpOptions::default(),
        &[],
    );
    assert_eq!(states(&pen).len(), 1);
    pen.script.wait(SECOND * 100);
    assert_eq!(pen.script.answers(), []);
    let again = begun(&mut pen);
    assert_ne!(nonce_of(&again), nonce_of(&syn));
}

// RFC 8684 §5: a client that names addresses where nobody joins it has so many of them tried.
#[test]
fn attempts_in_vain_have_a_limit() {
    let mut pen = opened(1, |_| {});
    for _ in 0..FAILURES_MAX {
        let syn = begun(&mut pen);
        reply(
            &mut pen,
            0,
            syn.seq + 1,
            RST | ACK,
            TcpOptions::default(),
            &[],
        );
    }
    assert_eq!(announce(&mut pen, 1, other(), true), []);
}

// RFC 8684 §3.4.1: another port of an address is another way, also while the first one is in use; its
// ID with another address is nothing to be tried. A copy of an announcement opens nothing beside.
#[test]
fn another_port_gets_a_subflow_and_another_address_none() {
    let mut pen = opened(3, |_| {});
    let third = joined(&mut pen);
    assert_eq!(announce(&mut pen, 1, other(), true), []);
    assert_eq!(announce(&mut pen, 1, address("10.0.1.2:7000"), true), []);
    // Or the next echo would be the third signal in a row.
    let options = pen.data_ack();
    reply(&mut pen, ISS + 1, third.seq, ACK, options, &[]);
    let sent = announce(&mut pen, 1, address("10.0.1.1:7001"), true);
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0].flags, sent[0].dst_port), (SYN, 7001));
}

// A client listens in one place for all its connections: each is joined from a port of its own.
#[test]
fn two_connections_are_joined_at_the_same_address() {
    let mut pen = opened(1, |_| {});
    let first = begun(&mut pen);
    pen.script.client = address("10.0.0.1:5555");
    let mut pen = pen.connected(SYN, 0);
    pen.third_ack();
    settle(&mut pen, 0);
    let second = begun(&mut pen);
    assert!(first.src_port >= 61_000 && second.src_port >= 61_000);
    assert_ne!(first.src_port, second.src_port);
}

// Where the NIC chooses the worker of a flow, nobody else can tell whether another one has a flow to the
// service's port; one that is alone can.
#[test]
fn a_port_that_another_worker_may_have_is_left_to_it() {
    for (workers, free) in [(1, true), (2, false)] {
        let mut pen = opened(1, |config| {
            (config.steering.workers, config.steering.flow_hash_nic) = (workers, true);
        });
        let sent = announce(&mut pen, 1, address("10.0.1.1:1"), false);
        let port = sent[0].src_port;
        assert_eq!(port == SERVER.port(), free, "{port}");
        assert_eq!(port >= 61_000, !free, "{port}");
    }
}

// RFC 8684 §3.4.1: without a port it is that of the subflow which the address came on; §3.9.1: and so is
// ours.
#[test]
fn an_address_without_a_port_is_joined_at_that_of_the_subflow() {
    let mut pen = opened(3, |_| {});
    let sent = announce(&mut pen, 1, address("10.0.1.1:1"), false);
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0].flags, sent[0].dst_port), (SYN, CLIENT.port()));
    assert_eq!(sent[0].src_port, SERVER.port());
}

// RFC 8684 §3.2: the ID tells that a client has joined from there already.
#[test]
fn an_address_that_has_joined_is_not_joined() {
    let mut pen = opened(3, |_| {});
    pen.join();
    let syn_ack = one(&mut pen);
    pen.join_ack(&syn_ack, true);
    one(&mut pen);
    assert_eq!(announce(&mut pen, 1, address("10.0.1.1:1"), false), []);
    assert_eq!(announce(&mut pen, 2, address("10.0.1.2:1"), false).len(), 1);
}

// So many at a time: the next address is tried when there is room. All subflows together have a limit
// of their own.
#[test]
fn so_many_are_opened_at_a_time() {
    let mut pen = opened(1, |_| {});
    let syn = begun(&mut pen);
    assert_eq!(announce(&mut pen, 2, address("10.0.1.2:7000"), true), []);
    reply(
        &mut pen,
        0,
        syn.seq + 1,
        RST | ACK,
        TcpOptions::default(),
        &[],
    );
    assert_eq!(one(&mut pen).flags, SYN);

    let mut pen = opened(3, |config| config.subflows_per_connection_max = 2);
    begun(&mut pen);
    assert_eq!(announce(&mut pen, 2, address("10.0.1.2:7000"), true), []);
}

// What comes again while its subflow is there, and there may be no more, is done with: the subflow is not
// opened again by itself.
#[test]
fn an_announcement_at_the_limit_brings_nothing_back() {
    let mut pen = opened(1, |_| {});
    let third = joined(&mut pen);
    assert_eq!(announce(&mut pen, 1, other(), true), []);
    let none = TcpOptions::default();
    reply(&mut pen, ISS + 1, third.seq, RST | ACK, none, &[]);
    assert_eq!(states(&pen).len(), 1);
    assert_eq!(pen.script.answers(), []);
    begun(&mut pen);
}

// RFC 8684 §3.4.1: the initial address, whose subflow failed, is not told anew once it has another of
// ours.
#[test]
fn a_subflow_of_ours_is_one_to_its_address() {
    let mut pen = opened(1, |config| config.asks_routes = true);
    assert_eq!(announce(&mut pen, 1, other(), true), []);
    let (none, seq) = (TcpOptions::default(), ISS.wrapping_add(2));
    pen.script.send(seq, TcpSeq(0), RST, none, &[]);
    let metrics = &pen.script.engine.metrics;
    assert_eq!((metrics.stranded, metrics.add_addr_again), (1, 1));
    let now = pen.script.now;
    pen.script.engine.on_route(now, other().ip(), None);
    let syn = one(&mut pen);
    pen.joins_from.set_port(syn.src_port);
    syn_ack(&mut pen, &syn);
    one(&mut pen);
    let options = pen.data_ack();
    reply(&mut pen, ISS + 1, syn.seq + 1, ACK, options, &[]);
    assert_eq!(pen.script.engine.metrics.rejoined, 1);
    pen.script.wait(AGAIN_WAIT);
    assert_eq!(pen.script.answers(), []);
}

// RFC 8684 §3.1: C of the client's MP_CAPABLE bars its initial address and port, also once the subflow
// from there is gone, and nothing else.
#[test]
fn the_clients_initial_address_can_be_barred() {
    for bars in [false, true] {
        let flag = if bars {
            MpCapable::FLAG_NO_MORE_SUBFLOWS
        } else {
            0
        };
        let mut pen = Pen::asking(ECHO, SYN, flag, |config| {
            config.services[0].addresses.open_subflows = 2;
        });
        pen.third_ack();
        settle(&mut pen, 0);
        pen.join();
        let syn_ack = one(&mut pen);
        pen.join_ack(&syn_ack, true);
        one(&mut pen);
        let (none, seq) = (TcpOptions::default(), ISS.wrapping_add(2));
        pen.script.send(seq, TcpSeq(0), RST, none, &[]);
        (pen.script.client, pen.ack) = (JOINED, syn_ack.seq + 1);
        settle(&mut pen, 1);
        let sent = announce(&mut pen, 2, CLIENT, true);
        assert_eq!(sent.len(), usize::from(!bars));
        let sent = announce(&mut pen, 3, address("10.0.0.1:5002"), true);
        assert_eq!(sent.len(), 1);
    }
}

// Nobody waits for an address that the client took back.
#[test]
fn a_removed_address_is_not_tried_any_more() {
    let mut pen = opened(1, |_| {});
    begun(&mut pen);
    remove(&mut pen, 1);
    assert_eq!(states(&pen).len(), 1);
    pen.script.wait(SECOND * 100);
    assert_eq!(pen.script.answers(), []);
}

// What the join rules say of the pair of addresses goes for our joins, too; our own addresses and those
// of another family than ours lead nowhere.
#[test]
fn only_what_fits_is_tried() {
    let rule = |from: &str, accept, backup| JoinRule {
        from: Some(from.parse::<IpNet>().expect("a prefix")),
        to: None,
        accept,
        backup,
    };
    let rules = vec![
        rule("10.0.1.0/24", true, true),
        rule("10.0.2.0/24", false, false),
    ];
    let mut pen = opened(9, |config| {
        config.services[0].addresses.join_rules = rules.clone();
    });
    let backup = |pen: &mut Pen, id, text: &str| {
        let sent = announce(pen, id, address(text), true);
        sent.first().map(|syn| match syn.options.mptcp.join {
            Some(MpJoin::Syn { backup, .. }) => backup,
            join => panic!("MP_JOIN: {join:?}"),
        })
    };
    assert_eq!(backup(&mut pen, 1, "10.0.1.1:7000"), Some(true));
    assert_eq!(backup(&mut pen, 2, "10.0.2.1:7000"), None);
    assert_eq!(backup(&mut pen, 3, "10.0.3.1:7000"), Some(false));
    assert_eq!(backup(&mut pen, 4, "10.0.0.2:7000"), None, "our own");
    assert_eq!(backup(&mut pen, 5, "[fd00::1]:7000"), None);
    assert_eq!(pen.script.engine.metrics.join_attempts_refused, 3);

    // Nor is the way to them asked for: that alone has somebody look for a neighbour.
    let mut pen = opened(9, |config| {
        config.services[0].addresses.join_rules = rules;
        config.asks_routes = true;
    });
    for (id, text) in [(1, "10.0.2.1:7000"), (2, "10.0.0.2:7000")] {
        announce(&mut pen, id, address(text), true);
        assert_eq!(pen.script.engine.poll_route_question(), None, "{text}");
    }
    announce(&mut pen, 3, other(), true);
    let question = pen.script.engine.poll_route_question();
    assert_eq!(question, Some(other().ip()));
}

// RFC 8684 §5: nor may all connections together have more than so many SYNs sent to one address that
// nobody answers from.
#[test]
fn attempts_at_one_address_have_a_limit() {
    let mut pen = opened(1, |config| config.pending_joins_per_source_max = 1);
    let refuse = |pen: &mut Pen, seq, ack| {
        let none = TcpOptions::default();
        reply(pen, seq, ack, RST | ACK, none, &[]);
        assert_eq!(states(pen).len(), 1);
    };
    // What was opened counts no more; what was not does for 64 s.
    let third = joined(&mut pen);
    refuse(&mut pen, ISS + 1, third.seq);
    let syn = begun(&mut pen);
    refuse(&mut pen, 0, syn.seq + 1);
    assert_eq!(announce(&mut pen, 1, other(), true), []);
    assert_eq!(pen.script.engine.metrics.join_attempts_limited, 1);
    assert_eq!(announce(&mut pen, 2, address("10.0.1.2:1"), true).len(), 1);
    remove(&mut pen, 2);
    pen.script.wait(SECOND * 64);
    begun(&mut pen);
}

// A connection that waits for a subflow gets one of ours, as it would a join, while memory is short; one
// that has one gets no more.
#[test]
fn what_waits_gets_a_subflow_although_memory_is_short() {
    let used_bytes = |pen: &Pen| {
        pen.script
            .engine
            .report(pen.script.now, 0)
            .memory
            .used_bytes
    };
    let before_open = |memory_max_bytes: Option<usize>, waits| {
        let mut pen = opened(1, |config| {
            config.asks_routes = true;
            if let Some(bytes) = memory_max_bytes {
                config.memory_max_bytes = bytes;
            }
        });
        assert_eq!(announce(&mut pen, 1, other(), true), []);
        if waits {
            let (none, seq) = (TcpOptions::default(), ISS.wrapping_add(2));
            pen.script.send(seq, TcpSeq(0), RST, none, &[]);
        }
        pen
    };
    for waits in [true, false] {
        // Pressure begins above three quarters.
        let memory_max_bytes = used_bytes(&before_open(None, waits)) * 5 / 4;
        let mut pen = before_open(Some(memory_max_bytes), waits);
        let now = pen.script.now;
        assert!(pen.script.engine.report(now, 0).memory.pressure);
        pen.script.engine.on_route(now, other().ip(), None);
        let sent = headers(&mut pen);
        assert_eq!(sent.len(), usize::from(waits));
        let metrics = &pen.script.engine.metrics;
        assert_eq!(metrics.memory_refused, u64::from(!waits));
    }
}

/// The client takes an address back.
fn remove(pen: &mut Pen, id: u8) {
    let mut options = pen.data_ack();
    options.mptcp.remove_addr = RemoveAddr::new(&[id]);
    pen.send(1, options, &[]);
    assert_eq!(pen.script.answers(), []);
}

// RFC 8684 §5: nor is one that has the way asked for and takes the address back before it is known.
#[test]
fn questions_in_vain_have_a_limit() {
    let mut pen = opened(1, |config| config.asks_routes = true);
    for n in 0..=FAILURES_MAX {
        announce(&mut pen, 1, other(), true);
        let question = pen.script.engine.poll_route_question();
        let asked = (n < FAILURES_MAX).then_some(other().ip());
        assert_eq!(question, asked, "{n}");
        remove(&mut pen, 1);
        let now = pen.script.now;
        pen.script.engine.on_route(now, other().ip(), None);
        assert_eq!(pen.script.answers(), []);
    }
}

// RFC 8684 §3.9.2, RFC 9293 §3.5: of two SYNs that cross one subflow comes. Whether the client's answer
// crosses ours as well, or its third ACK comes, both sides have proved themselves.
#[test]
fn two_joins_that_cross_are_one() {
    // RFC 3168 §6.1.1: ECN is agreed to by both answers, if by both.
    let cases = [(false, true), (true, true), (true, false)];
    for (both_answer, ecn) in cases {
        let setup = SYN | TcpFlags::ECE | TcpFlags::CWR;
        let mut pen = Pen::asking(ECHO, setup, 0, |config| {
            config.services[0].addresses.open_subflows = 1;
        });
        pen.third_ack();
        settle(&mut pen, 0);
        let [syn] = announce(&mut pen, 1, other(), true)[..] else {
            panic!("one SYN")
        };
        assert_eq!(syn.flags, setup);
        let mut options = TcpOptions::default();
        options.mptcp.join = Some(MpJoin::Syn {
            backup: false,
            address_id: 1,
            token: token_and_idsn(pen.server_key).0,
            nonce: NONCE,
        });
        reply(&mut pen, ISS, TcpSeq(0), setup, options, &[]);
        let answer = one(&mut pen);
        let agrees = SYN | ACK | TcpFlags::ECE;
        assert_eq!((answer.flags, answer.seq), (agrees, syn.seq));
        let hmac = join_hmac(pen.server_key, KEY, nonce_of(&syn), NONCE);
        let Some(MpJoin::SynAck {
            hmac: proof, nonce, ..
        }) = answer.options.mptcp.join
        else {
            panic!("MP_JOIN: {answer:?}")
        };
        assert_eq!(nonce, nonce_of(&syn));
        assert_eq!(proof.to_be_bytes(), hmac[..8]);
        if both_answer {
            let options = syn_ack_options(&pen, &syn, false);
            let flags = if ecn { agrees } else { SYN | ACK };
            reply(&mut pen, ISS, syn.seq + 1, flags, options, &[]);
            let third = one(&mut pen);
            assert_hmac(&pen, &syn, &third);
        }
        let hmac = join_hmac(KEY, pen.server_key, NONCE, nonce);
        let mut options = TcpOptions::default();
        options.mptcp.join = Some(MpJoin::Ack {
            hmac: std::array::from_fn(|i| hmac[i]),
        });
        reply(&mut pen, ISS + 1, syn.seq + 1, ACK, options, &[]);
        let fourth = one(&mut pen);
        assert!(fourth.options.mptcp.dss.is_some());
        assert_eq!(states(&pen)[1], ("ESTAB", true));
        let report = pen.script.engine.report(pen.script.now, 1);
        assert_eq!(report.conns[0].subflows[1].ecn, ecn, "{both_answer}");
    }
}

// RFC 3168 §6.1.1: ECN where the client has agreed to it before; §6.1.1.1: not in the SYN's copies.
#[test]
fn ecn_is_asked_for_where_the_client_has_it() {
    for agrees in [false, true] {
        let setup = SYN | TcpFlags::ECE | TcpFlags::CWR;
        let mut pen = Pen::asking(ECHO, setup, 0, |config| {
            config.services[0].addresses.open_subflows = 1;
        });
        pen.third_ack();
        settle(&mut pen, 0);
        let sent = announce(&mut pen, 1, other(), true);
        let syn = sent[0];
        assert_eq!(syn.flags, setup);
        if !agrees {
            pen.script.wait(SECOND);
            assert_eq!(one(&mut pen).flags, SYN);
        }
        let options = syn_ack_options(&pen, &syn, false);
        reply(
            &mut pen,
            ISS,
            syn.seq + 1,
            SYN | ACK | TcpFlags::ECE,
            options,
            &[],
        );
        one(&mut pen);
        let report = pen.script.engine.report(pen.script.now, 1);
        assert_eq!(report.conns[0].subflows[1].ecn, agrees);
    }
}

// RFC 7323 §3.2, §5.3: timestamps where both SYNs have them, and old duplicates are known by them.
#[test]
fn what_the_syn_ack_agrees_to_is_used() {
    let mut pen = opened(1, |_| {});
    let syn = begun(&mut pen);
    let stamp = |tsval| {
        Some(Timestamps {
            tsval,
            tsecr: syn.options.timestamps.map_or(0, |ts| ts.tsval),
        })
    };
    let mut options = syn_ack_options(&pen, &syn, false);
    (options.timestamps, options.window_scale) = (stamp(1000), Some(7));
    (options.mss, options.sack_permitted) = (Some(900), false);
    reply(&mut pen, ISS, syn.seq + 1, SYN | ACK, options, &[]);
    let third = one(&mut pen);
    assert_eq!(third.options.timestamps.map(|ts| ts.tsecr), Some(1000));
    let mut options = pen.data_ack();
    options.timestamps = stamp(999);
    reply(&mut pen, ISS + 1, syn.seq + 1, ACK, options, &[]);
    assert_eq!(pen.script.engine.metrics.paws_rejected, 1);
    assert_eq!(states(&pen)[1], ("ESTAB", false));
    options.timestamps = stamp(1001);
    reply(&mut pen, ISS + 1, syn.seq + 1, ACK, options, &[]);
    assert_eq!(states(&pen)[1], ("ESTAB", true));
    let report = pen.script.engine.report(pen.script.now, 1);
    let subflow = &report.conns[0].subflows[1];
    assert_eq!((subflow.mss_bytes, subflow.sack), (900, false));
    assert_eq!(subflow.window_scales.map(|scales| scales.0), Some(7));
    assert!(subflow.opened_here && subflow.joined);
    assert_eq!((subflow.local_id, subflow.remote_id), (0, 9));
}

fn hop(station: u8) -> FirstHop {
    FirstHop {
        iface: IfaceId(0),
        link: Link {
            src: [4; 6],
            dst: [station; 6],
            ..Link::default()
        },
    }
}

// The first frame goes where whoever knows the ways says, from the address that he prefers.
#[test]
fn the_way_is_asked_for() {
    let asking = |config: &mut EngineConfig| {
        config.asks_routes = true;
        config.services[0].listen.push(address("10.0.1.9:80"));
    };
    let to: IpAddr = other().ip();
    let mut pen = opened(1, asking);
    assert_eq!(announce(&mut pen, 1, other(), true), []);
    assert_eq!(pen.script.engine.poll_route_question(), Some(to));
    assert_eq!(pen.script.engine.poll_route_question(), None);
    let route = Route {
        hop: hop(9),
        source: Some(ip_of("10.0.1.9:80")),
    };
    pen.script.engine.on_route(pen.script.now, to, Some(route));
    assert_eq!(pen.script.answer_link(), hop(9).link);
    let report = pen.script.engine.report(pen.script.now, 1);
    assert_eq!(report.conns[0].subflows[1].local.ip(), ip_of("10.0.1.9:80"));

    // Without an answer in time, or with one that knows nothing, it is the way that the address came.
    for said in [false, true] {
        let mut pen = opened(1, asking);
        assert_eq!(announce(&mut pen, 1, other(), true), []);
        pen.script.wait(3 * SECOND - MS);
        assert_eq!(pen.script.answers(), []);
        if said {
            pen.script.engine.on_route(pen.script.now, to, None);
        } else {
            pen.script.wait(MS);
        }
        assert_eq!(pen.script.answer_link(), pen.script.link.reversed());
        pen.script.engine.on_route(pen.script.now, to, Some(route));
        assert_eq!(pen.script.answers(), [], "it is too late now");
    }

    // What the client took back meanwhile, or an interface that there is none of.
    let mut pen = opened(1, asking);
    announce(&mut pen, 1, other(), true);
    remove(&mut pen, 1);
    pen.script.engine.on_route(pen.script.now, to, Some(route));
    assert_eq!(pen.script.answers(), []);
    announce(&mut pen, 1, other(), true);
    let mut nowhere = route;
    nowhere.hop.iface = IfaceId(1);
    pen.script
        .engine
        .on_route(pen.script.now, to, Some(nowhere));
    assert_eq!(pen.script.answer_link(), pen.script.link.reversed());
}

/// A connection to a service that opens a subflow, whose client has got five octets back.
fn connected(client: ClientConfig, change: impl FnOnce(&mut SimConfig)) -> Sim {
    let mut config = SimConfig::with(ECHO);
    config.addresses.open_subflows = 1;
    change(&mut config);
    let mut sim = Sim::new(config);
    connect(&mut sim, client);
    sim
}

fn connect(sim: &mut Sim, client: ClientConfig) -> usize {
    let c = sim.connect(client);
    sim.clients[c].send(b"hello");
    sim.run(|sim| sim.clients[c].received() == b"hello");
    c
}

/// The client says where it listens on the second path.
fn listen(sim: &mut Sim, c: usize) {
    let at = Family::of(sim.clients[c].config.server).client_at(1, c, 7000);
    sim.clients[c].listen(0, 7, at, true);
}

/// Sends so much, gets it back, and closes.
fn echo_all(sim: &mut Sim, c: usize, len: usize) {
    let sent = stream(c as u64, len);
    sim.clients[c].send(&sent);
    sim.clients[c].close_write();
    sim.run(|sim| sim.clients[c].closed());
    assert_same(&sim.clients[c].received()[5..], &sent);
}

fn client() -> ClientConfig {
    ClientConfig::new(Family::V4.server(0))
}

// RFC 8684 §3.2: text goes over it in both directions, as over any.
#[test]
fn a_subflow_of_the_server_carries_data_both_ways() {
    for (family, checksum) in [(Family::V4, false), (Family::V6, true)] {
        let client = ClientConfig {
            checksum,
            ecn: true,
            ..ClientConfig::new(family.server(0))
        };
        let mut sim = connected(client, |config| config.family = family);
        listen(&mut sim, 0);
        sim.run(|sim| sim.clients[0].subflows.get(1).is_some_and(Subflow::open));
        let subflow = &sim.clients[0].subflows[1];
        assert_eq!(
            subflow.remote.ip(),
            family.server(1).ip(),
            "as the route prefers"
        );
        assert_eq!(subflow.server_id, 255, "another address has another ID");
        echo_all(&mut sim, 0, 1_000_000);
        let carried = sim.net.arrived_bytes[1];
        assert!(
            carried.iter().all(|octets| *octets > 200_000),
            "{carried:?}"
        );
        sim.finish();
    }
}

// RFC 8684 §3.2, §3.4.1: SYN, SYN/ACK, third and fourth ACK may be lost, and so may the announcement
// and its echo; nothing is lost but time.
#[test]
fn every_frame_of_a_join_of_the_servers_may_be_lost() {
    for lost in 0..8 {
        let mut sim = connected(client(), |_| {});
        let (side, path, before) = match lost {
            0..3 => (Side::Client, 1, lost),
            3..6 => (Side::Server, 1, lost - 3),
            6 => (Side::Server, 0, 0),
            _ => (Side::Client, 0, 0),
        };
        sim.net.lose_nth = Some((side, IfaceId(path), before));
        listen(&mut sim, 0);
        sim.run_for(Duration::from_millis(100));
        if lost == 6 {
            // Nobody repeats it here.
            listen(&mut sim, 0);
        }
        sim.run(|sim| sim.clients[0].subflows.get(1).is_some_and(Subflow::open));
        echo_all(&mut sim, 0, 300_000);
        assert_eq!(sim.net.lose_nth, None, "{lost}");
        assert_eq!(sim.server.count(|m| m.mp_join_syn_tx), 1, "{lost}");
        sim.finish();
    }
}

// RFC 8684 §3.2: a client that proves nothing is reset there, with reason 1, and loses nothing.
#[test]
fn a_client_that_proves_nothing_goes_on_with_what_it_has() {
    for no_join_option in [false, true] {
        let quirks = Quirks {
            wrong_join_hmac: true,
            no_join_option,
            ..Quirks::default()
        };
        let mut sim = connected(ClientConfig { quirks, ..client() }, |_| {});
        listen(&mut sim, 0);
        sim.run(|sim| sim.clients[0].subflows.get(1).is_some_and(|s| !s.alive()));
        assert_eq!(sim.clients[0].subflows[1].state, State::Reset(Some(1)));
        echo_all(&mut sim, 0, 100_000);
        sim.finish();
    }
}

// The only subflow left may be one of ours, and it may come when there is none.
#[test]
fn a_subflow_of_the_server_carries_on_alone() {
    let mut sim = connected(client(), |_| {});
    listen(&mut sim, 0);
    sim.run(|sim| sim.clients[0].subflows.get(1).is_some_and(Subflow::open));
    sim.clients[0].reset(0);
    echo_all(&mut sim, 0, 300_000);
    sim.finish();
}

// Whatever worker is at home where the answers come in: each finds the one that opened the subflow, with
// timestamps or by the map of flows.
#[test]
fn answers_find_the_worker_that_opened_it() {
    let mut sim = connected(client(), |config| config.more_engines = 3);
    for timestamps in [true, false] {
        for _ in 0..8 {
            let c = connect(
                &mut sim,
                ClientConfig {
                    timestamps,
                    ..client()
                },
            );
            listen(&mut sim, c);
            sim.run(|sim| sim.clients[c].subflows.get(1).is_some_and(Subflow::open));
            echo_all(&mut sim, c, 20_000);
        }
    }
    assert_eq!(sim.server.misled(), 0);
    sim.clients[0].close_write();
    sim.run(|sim| sim.clients[0].closed());
    sim.finish();
}

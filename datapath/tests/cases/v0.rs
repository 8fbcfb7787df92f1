//! Version 0 of Multipath TCP (RFC 6824): what differs from version 1. The model client checks the
//! forms of what comes, tokens, numbers and HMACs by its own reckoning. What is said of addresses is in
//! `signals`.

mod signals;

use super::script::{ACK, CLIENT, SYN, Script, sack_permitted};
use super::transfer::echo;
use crate::model::apps::{Behaviour, ECHO};
use crate::model::client::{ClientConfig, Mode, Quirks};
use crate::model::net::Side;
use crate::model::sim::{Family, Sim, SimConfig};
use crate::model::subflow::State;
use crate::model::{assert_same, dss_checksum, stream, token_and_idsn_v0};
use mpx_datapath::app::CloseCause;
use mpx_datapath::app::builtin::{Discard, Source};
use mpx_datapath::engine::{Fallback, Patience, ServiceConfig, Versions};
use mpx_datapath::port::IfaceId;
use mpx_datapath::rand::Entropy;
use mpx_datapath::seq::TcpSeq;
use mpx_datapath::time::Duration;
use mpx_datapath::wire::mptcp::{
    CapableContent, DsnWidth, Dss, DssMapping, MpCapable, MpFail, MpJoin,
};
use mpx_datapath::wire::tcp::{TcpFlags, TcpHeader, TcpOptions};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;

const KEY: u64 = 0x0102_0304_0506_0708;
/// Where a second subflow comes from.
const JOINING: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 5001);
const ISS: u32 = 0xffff_ff00;
const BOTH: Versions = Versions { v0: true, v1: true };

fn client() -> ClientConfig {
    ClientConfig {
        version: 0,
        ..ClientConfig::new(Family::V4.server(0))
    }
}

fn config(app: Behaviour) -> SimConfig {
    SimConfig {
        versions: BOTH,
        ..SimConfig::with(app)
    }
}

/// A connection whose client has sent five octets that came back.
fn connected(config: SimConfig, client: ClientConfig) -> Sim {
    let mut sim = Sim::new(config);
    let c = sim.connect(client);
    sim.clients[c].send(b"hello");
    sim.run(|sim| sim.clients[c].received() == b"hello");
    sim
}

/// The client ends its stream and everything goes away.
fn end(mut sim: Sim) {
    sim.clients[0].close_write();
    sim.run(|sim| sim.clients[0].closed());
    sim.finish();
}

fn capable(version: u8, flags: u8, content: CapableContent) -> TcpOptions {
    let mut options = sack_permitted();
    options.mptcp.capable = Some(MpCapable {
        version,
        flags,
        content,
    });
    options
}

fn offer(flags: u8) -> TcpOptions {
    capable(0, flags, CapableContent::SynAck { sender_key: KEY })
}

/// A service that sends without end, and a client by hand.
struct Pen {
    script: Script,
    server_key: u64,
    ack: TcpSeq,
}

impl Pen {
    /// The SYN/ACK to a SYN with these options has come, of a service that is `change`d.
    fn half_open(
        syn: TcpOptions,
        change: impl FnOnce(&mut ServiceConfig),
    ) -> (Pen, Option<MpCapable>) {
        let app = Box::new(Source::default());
        let mut script = Script::configured(app, Patience::default(), |config| {
            config.services[0].versions = BOTH;
            change(&mut config.services[0]);
        });
        script.send(ISS, TcpSeq(0), SYN, syn, &[]);
        let answers = script.answers();
        assert_eq!(answers.len(), 1);
        let answer = answers[0].0;
        assert_eq!(answer.flags, SYN | ACK);
        let capable = answer.options.mptcp.capable;
        let pen = Pen {
            script,
            server_key: capable.and_then(|c| c.sender_key()).unwrap_or(0),
            ack: answer.seq + 1,
        };
        (pen, capable)
    }

    /// The third ACK, with its keys.
    fn opened(checksum: bool) -> Pen {
        let flags = MpCapable::FLAG_SHA1;
        let (mut pen, _) = Pen::half_open(offer(flags), |service| service.checksum = checksum);
        let content = CapableContent::Ack {
            sender_key: KEY,
            receiver_key: pen.server_key,
        };
        let mut options = capable(0, flags, content);
        (options.mss, options.sack_permitted) = (None, false);
        pen.send(0, options, &[]);
        pen
    }

    /// `text` at octet `at` of the subflow.
    fn send(&mut self, at: usize, options: TcpOptions, text: &[u8]) {
        let seq = ISS.wrapping_add(1 + at as u32);
        self.script.send(seq, self.ack, ACK, options, text);
    }

    fn data_ack(&self) -> TcpOptions {
        let number = token_and_idsn_v0(self.server_key).1.wrapping_add(1);
        let mut options = TcpOptions::default();
        options.mptcp.dss = Some(Dss {
            data_ack: Some(DsnWidth::Eight(number)),
            ..Dss::default()
        });
        options
    }

    /// DSS of `text` at octet `at` of subflow and stream.
    fn mapping(&self, at: usize, text: &[u8], checksum: bool) -> TcpOptions {
        let dsn = token_and_idsn_v0(KEY).1.wrapping_add(1 + at as u64);
        let (subflow_seq, len) = (1 + at as u32, text.len() as u16);
        let mut options = self.data_ack();
        if let Some(dss) = &mut options.mptcp.dss {
            dss.mapping = Some(DssMapping {
                dsn: DsnWidth::Eight(dsn),
                subflow_seq,
                len,
                checksum: checksum.then(|| dss_checksum(dsn, subflow_seq, len, text)),
            });
        }
        options
    }

    fn mode(&self) -> &'static str {
        self.script.engine.report(self.script.now, 1).conns[0].mode
    }

    fn taken(&self) -> u64 {
        self.script.report().bytes_received
    }
}

// RFC 6824 §3.1, RFC 8684 §3.1: a SYN is answered in its own version if the service speaks it, and with
// plain TCP if not.
#[test]
fn a_syn_is_answered_in_its_version_or_with_plain_tcp() {
    let v1 = || capable(1, MpCapable::FLAG_SHA256, CapableContent::Syn);
    let v0 = || offer(MpCapable::FLAG_SHA1);
    for bits in 0..4 {
        let versions = Versions {
            v0: bits & 1 != 0,
            v1: bits & 2 != 0,
        };
        for (syn, version, spoken) in [(v0(), 0, versions.v0), (v1(), 1, versions.v1)] {
            let (pen, answer) = Pen::half_open(syn, |service| service.versions = versions);
            let answered = answer.map(|c| c.version);
            assert_eq!(answered, spoken.then_some(version), "{versions:?}");
            let metrics = &pen.script.engine.metrics;
            assert_eq!(metrics.mp_capable_refused, u64::from(!spoken));
            assert_eq!(metrics.mp_capable_syn_rx, u64::from(spoken));
            let v0 = spoken && version == 0;
            assert_eq!(metrics.mp_capable_syn_rx_v0, u64::from(v0));
        }
    }
}

// RFC 6824 §3.1: H alone is named by the answer, A if either side asks, and C to G, which are other
// algorithms here, never, although joins to the initial address are barred.
#[test]
fn the_answer_has_one_key_and_one_algorithm() {
    let (a, h) = (MpCapable::FLAG_CHECKSUM, MpCapable::FLAG_SHA1);
    for (asked, ours, answered) in [
        (h, false, h),
        (h | 0x3e, false, h),
        (h | a, false, h | a),
        (h, true, h | a),
    ] {
        let (_, answer) = Pen::half_open(offer(asked), |service| {
            service.checksum = ours;
            service.addresses.deny_join_initial = true;
        });
        let answer = answer.expect("an answer in kind");
        assert_eq!((answer.version, answer.flags), (0, answered));
        assert!(matches!(answer.content, CapableContent::SynAck { sender_key } if sender_key != 0));
    }
    // Without any algorithm, without one that is known, with B.
    for refused in [0, a, 0x3e, h | MpCapable::FLAG_EXTENSIBILITY] {
        let (_, answer) = Pen::half_open(offer(refused), |_| {});
        assert_eq!(answer, None, "{refused:#04x}");
    }
}

// RFC 6824 §3.1: both keys as they were exchanged, or it is plain TCP; the token is the one that the
// SHA-1 of our key begins with, and the first octet of ours has the number behind its end.
#[test]
fn the_third_ack_repeats_both_keys() {
    for (ours, theirs, mode) in [(0, 0, "mptcp"), (1, 0, "tcp"), (0, 1, "tcp")] {
        let flags = MpCapable::FLAG_SHA1;
        let (mut pen, _) = Pen::half_open(offer(flags), |_| {});
        let content = CapableContent::Ack {
            sender_key: KEY ^ ours,
            receiver_key: pen.server_key ^ theirs,
        };
        pen.send(0, capable(0, flags, content), &[]);
        assert_eq!(pen.mode(), mode);
        let first = pen.script.answers()[0].0;
        let (token, idsn) = token_and_idsn_v0(pen.server_key);
        if mode == "mptcp" {
            let conn = &pen.script.engine.report(pen.script.now, 1).conns[0];
            assert_eq!((conn.version, conn.token), (Some(0), token));
            assert_eq!(conn.remote_token, token_and_idsn_v0(KEY).0);
            let mapping = first.options.mptcp.dss.and_then(|dss| dss.mapping);
            let dsn = mapping.map(|m| m.dsn);
            assert_eq!(dsn, Some(DsnWidth::Eight(idsn.wrapping_add(1))));
        } else {
            assert!(first.options.mptcp.is_empty());
        }
    }
}

/// Gives the keys that it was told to give, and then all that follow in order.
struct Keys(Rc<RefCell<VecDeque<u64>>>);

impl Entropy for Keys {
    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.fill(0x5a);
    }

    fn next_u64(&mut self) -> u64 {
        self.0.borrow_mut().pop_front().unwrap_or(4)
    }
}

// RFC 6824 §3.1, RFC 8684 §3.1: no two connections have one token, whatever their versions. SHA-256 of
// the first of these keys and SHA-1 of the second begin alike: with 3e6fd735.
#[test]
fn tokens_are_unique_over_both_versions() {
    const SAME_TOKEN: (u64, u64) = (69_944, 75_221);
    for v0_first in [false, true] {
        let keys = Rc::new(RefCell::new(VecDeque::new()));
        let entropy = Box::new(Keys(Rc::clone(&keys)));
        let (app, patience) = (Box::new(Discard), Patience::default());
        let mut script = Script::drawing(app, patience, entropy, |config| {
            config.services[0].versions = BOTH;
        });
        let v1 = capable(1, MpCapable::FLAG_SHA256, CapableContent::Syn);
        let v0 = offer(MpCapable::FLAG_SHA1);
        let (first, second) = match v0_first {
            true => ((v0, SAME_TOKEN.1), (v1, SAME_TOKEN.0)),
            false => ((v1, SAME_TOKEN.0), (v0, SAME_TOKEN.1)),
        };
        let mut open = |port: u16, (syn, key): (TcpOptions, u64)| {
            *keys.borrow_mut() = VecDeque::from([key]);
            script.client.set_port(port);
            script.send(ISS, TcpSeq(0), SYN, syn, &[]);
            let answer = script.answers()[0].0.options.mptcp.capable;
            answer.and_then(|c| c.sender_key())
        };
        assert_eq!(open(5000, first), Some(first.1));
        assert_eq!(open(5001, second), Some(4), "the next key has a free token");
        assert_eq!(script.engine.report(script.now, 0).tokens, 2);
    }
}

// RFC 6824 §3.3: all forms of DSS, over one to four subflows, beside a client of version 1.
#[test]
fn every_form_of_dss_on_one_to_four_subflows() {
    for bits in 0..8u64 {
        for subflows in [1, 2, 4] {
            let mut client = client();
            client.checksum = bits & 1 != 0;
            client.eight_octets = bits & 2 != 0;
            client.data_fin_with_data = bits & 4 != 0;
            client.seed = bits * 10 + subflows as u64;
            let sim = echo(Sim::new(config(ECHO)), client, subflows, 300_000);
            assert_eq!(sim.server.count(|m| m.mp_capable_syn_rx_v0), 1);
            for i in 0..subflows {
                let bytes = sim.net.arrived_bytes[i];
                assert!(
                    bytes.iter().all(|b| *b > 10_000),
                    "path {i} of {subflows}: {bytes:?}"
                );
            }
        }
    }
}

#[test]
fn ipv6_and_streams_of_nothing() {
    let v6 = SimConfig {
        family: Family::V6,
        ..config(ECHO)
    };
    let of_v6 = ClientConfig {
        server: Family::V6.server(0),
        ..client()
    };
    echo(Sim::new(v6), of_v6, 2, 100_000);
    for len in [0, 1] {
        echo(Sim::new(config(ECHO)), client(), 1, len);
    }
}

// RFC 6824 §3.1: nobody repeats the keys of a third ACK that was lost. A DSS shows that the client got
// ours, and options through.
#[test]
fn data_completes_a_handshake_whose_third_ack_was_lost() {
    let quirks = Quirks {
        no_pure_third_ack: true,
        ..Quirks::default()
    };
    let client = ClientConfig { quirks, ..client() };
    let sim = echo(Sim::new(config(ECHO)), client, 2, 100_000);
    assert_eq!(sim.clients[0].mode, Mode::Multipath);
    assert_eq!(sim.server.count(|m| m.mp_capable_ack_awaited), 0);
}

// RFC 6824 §3.1, §3.6: options that vanish behind the SYN or behind the third ACK leave plain TCP,
// whoever sends first.
#[test]
fn options_that_vanish_leave_plain_tcp() {
    const LEN: usize = 100_000;
    for (after_third_ack, server_first) in
        [(false, false), (false, true), (true, false), (true, true)]
    {
        let app = Behaviour {
            send_bytes: LEN,
            seed: 2,
            ..Behaviour::default()
        };
        let mut sim = Sim::new(config(app));
        let mut client = client();
        client.quirks.no_options_after_syn = !after_third_ack;
        client.quirks.no_options_after_third_ack = after_third_ack;
        let sent = stream(1, LEN);
        let c = sim.connect(client);
        if !server_first {
            sim.clients[c].send(&sent);
        }
        sim.run(|sim| sim.clients[c].received().len() > LEN / 2);
        if server_first {
            sim.clients[c].send(&sent);
        }
        sim.clients[c].close_write();
        sim.run(|sim| sim.clients[c].closed());
        assert_same(sim.clients[c].received(), &stream(2, LEN));
        assert_same(&sim.app.record().received, &sent);
        sim.finish();
        assert_eq!(sim.server.report(0).fallbacks.len(), 1);
    }
}

// RFC 6824 §3.3: a checksum that was not agreed upon is ignored, be it right or wrong; where one was
// agreed upon, text without one is the end of its subflow.
#[test]
fn a_checksum_that_nobody_asked_for_is_ignored() {
    let text = [7; 100];
    let mut pen = Pen::opened(false);
    let right = pen.mapping(0, &text, true);
    pen.send(0, right, &text);
    let mut wrong = pen.mapping(100, &text, true);
    if let Some(mapping) = wrong.mptcp.dss.as_mut().and_then(|d| d.mapping.as_mut()) {
        mapping.checksum = mapping.checksum.map(|sum| sum ^ 1);
    }
    pen.send(100, wrong, &text);
    let acked = token_and_idsn_v0(KEY).1.wrapping_add(1 + 200);
    let answers = pen.script.answers();
    let last = answers.last().and_then(|(tcp, _)| tcp.options.mptcp.dss);
    let data_ack = last.and_then(|dss| dss.data_ack);
    assert_eq!(data_ack, Some(DsnWidth::Eight(acked)));
    assert_eq!(pen.taken(), 200);

    let mut pen = Pen::opened(true);
    pen.script.answers();
    let missing = pen.mapping(0, &text, false);
    pen.send(0, missing, &text);
    let reset = pen.script.answers()[0].0;
    assert!(reset.flags.contains(TcpFlags::RST));
    // RFC 6824 has no MP_TCPRST.
    assert_eq!(reset.options.mptcp.tcprst, None);
}

// RFC 6824 §3.1: no join before a DSS has come on the first path; it is left to be sent again.
#[test]
fn joins_wait_for_the_first_dss() {
    let mut pen = Pen::opened(false);
    pen.script.answers();
    let mut join = TcpOptions::default();
    join.mptcp.join = Some(MpJoin::Syn {
        backup: false,
        address_id: 1,
        token: token_and_idsn_v0(pen.server_key).0,
        nonce: 7,
    });
    let syn = |pen: &mut Pen| {
        pen.script.client = JOINING;
        pen.script.send(1, TcpSeq(0), SYN, join, &[]);
        pen.script.client = CLIENT;
        let answers = pen.script.answers().into_iter();
        answers
            .map(|(tcp, _)| tcp)
            .find(|tcp| tcp.dst_port == JOINING.port())
    };
    assert_eq!(syn(&mut pen), None);
    assert_eq!(pen.script.engine.metrics.mp_join_rejected, 1);
    let dss = pen.data_ack();
    pen.send(0, dss, &[]);
    let answer: Option<TcpHeader> = syn(&mut pen);
    let joined = answer.and_then(|tcp| tcp.options.mptcp.join);
    assert!(matches!(joined, Some(MpJoin::SynAck { .. })), "{answer:?}");
}

// RFC 6824 §3.2: HMAC-SHA1, and a RST without a reason where it is wrong.
#[test]
fn a_wrong_hmac_is_reset_without_a_reason() {
    let quirks = Quirks {
        wrong_join_hmac: true,
        ..Quirks::default()
    };
    let client = ClientConfig { quirks, ..client() };
    let mut sim = connected(config(ECHO), client);
    let at = sim.join(0, 1);
    sim.run(|sim| !sim.clients[0].subflows[at].alive());
    assert_eq!(sim.clients[0].subflows[at].state, State::Reset(None));
    assert_eq!(sim.server.count(|m| m.mp_join_ack_hmac_failure), 1);
    assert_eq!(sim.server.count(|m| m.mp_rst_tx), 0);
    end(sim);
}

// RFC 6824 §3.2: refused by a limit, also without a reason.
#[test]
fn one_subflow_too_many_is_reset_without_a_reason() {
    let limited = SimConfig {
        subflows_max: 2,
        ..config(ECHO)
    };
    let mut sim = connected(limited, client());
    let taken = sim.join(0, 1);
    sim.run(|sim| sim.clients[0].subflows[taken].open());
    let refused = sim.join(0, 2);
    sim.settle();
    assert_eq!(sim.clients[0].subflows[refused].state, State::Reset(None));
    end(sim);
}

// RFC 6824 §3.6: MP_FAIL is answered by an infinite mapping alone.
#[test]
fn mp_fail_is_not_answered_in_kind() {
    let mut pen = Pen::opened(true);
    pen.script.answers();
    let mut options = pen.data_ack();
    let dsn = token_and_idsn_v0(pen.server_key).1.wrapping_add(1);
    options.mptcp.fail = Some(MpFail { dsn });
    pen.send(0, options, &[]);
    assert_eq!(pen.mode(), "tcp");
    let mut answers = pen.script.answers();
    // The first segment goes again, and what follows it for the first time says so.
    pen.script.wait(Duration::from_secs(2));
    answers.extend(pen.script.answers());
    assert!(
        answers
            .iter()
            .all(|(tcp, _)| tcp.options.mptcp.fail.is_none())
    );
    let metrics = &pen.script.engine.metrics;
    assert_eq!((metrics.mp_fail_rx, metrics.mp_fail_tx), (1, 0));
    let report = pen.script.engine.report(pen.script.now, 1);
    assert_eq!(
        report.conns[0].fallback,
        Some(Fallback::PeerChecksum.name())
    );
}

// RFC 6824 §3.6: a checksum that fails here on the only subflow is told by MP_FAIL; the infinite mapping
// of the client ends it.
#[test]
fn a_failed_checksum_is_ended_by_an_infinite_mapping() {
    let text = [7; 100];
    let mut pen = Pen::opened(true);
    pen.script.answers();
    let options = pen.mapping(0, &text, true);
    pen.send(0, options, &[9; 100]);
    let answers = pen.script.answers();
    let failed = answers.iter().find_map(|(tcp, _)| tcp.options.mptcp.fail);
    let dsn = token_and_idsn_v0(KEY).1.wrapping_add(1);
    assert_eq!(failed, Some(MpFail { dsn }));
    let mut infinite = TcpOptions::default();
    infinite.mptcp.dss = Some(Dss {
        mapping: Some(DssMapping {
            dsn: DsnWidth::Eight(dsn),
            subflow_seq: 1,
            len: 0,
            checksum: Some(0),
        }),
        ..Dss::default()
    });
    pen.send(100, infinite, &text);
    assert_eq!(pen.mode(), "tcp");
    assert_eq!(pen.taken(), 200);
}

// RFC 6824 §3.5: the client's, on an ACK, is answered with a RST on every subflow.
#[test]
fn a_fastclose_of_the_client_ends_all_subflows() {
    let mut sim = connected(config(ECHO), client());
    let at = sim.join(0, 1);
    sim.run(|sim| sim.clients[0].subflows[at].open());
    sim.net.lose_next.push((Side::Server, IfaceId(0)));
    sim.clients[0].fastclose();
    sim.run(|sim| sim.clients[0].closed());
    sim.finish();
    assert_eq!(sim.server.count(|m| m.mp_fastclose_rx), 1);
    assert_eq!(sim.server.count(|m| m.mp_rst_tx), 0);
}

// RFC 6824 §3.5: ours leaves on an ACK of one subflow, until a RST answers it; the other subflow has a
// plain RST, as the model client sees.
#[test]
fn an_abort_of_the_application_is_told_on_an_ack_until_it_is_answered() {
    for lost in [0, 2] {
        let app = Behaviour {
            abort_after_bytes: Some(1000),
            ..Behaviour::default()
        };
        let mut sim = Sim::new(config(app));
        let c = sim.connect(client());
        sim.clients[c].send(b"hello");
        sim.run(|sim| sim.clients[c].may_join());
        let at = sim.join(c, 1);
        sim.run(|sim| sim.clients[c].subflows[at].open());
        sim.settle();
        let cut = (lost > 0).then_some(Side::Client);
        for path in &mut sim.net.paths {
            path.cut_towards = cut;
        }
        sim.clients[c].send(&[7; 2000]);
        sim.run(|sim| sim.server.count(|m| m.mp_fastclose_tx) == lost.max(1));
        for path in &mut sim.net.paths {
            path.cut_towards = None;
        }
        sim.run(|sim| sim.clients[c].fastclosed);
        sim.run(|sim| sim.clients[c].closed());
        sim.finish();
        assert_eq!(sim.server.count(|m| m.mp_fastclose_tx), 1 + lost);
        assert_eq!(sim.app.record().closed, Some(CloseCause::Aborted));
    }
}

// A download of version 0 survives the loss of either path, and one subflow's reset.
#[test]
fn streams_go_on_where_subflows_end() {
    const LEN: usize = 1_000_000;
    for (gone, cut) in [(0, false), (1, false), (0, true), (1, true)] {
        let mut sim = connected(config(ECHO), client());
        let sent = stream(1, LEN);
        let at = sim.join(0, 1);
        sim.run(|sim| sim.clients[0].subflows[at].open());
        sim.clients[0].send(&sent);
        sim.clients[0].close_write();
        sim.run(|sim| sim.clients[0].received().len() > LEN / 3);
        match cut {
            true => sim.net.paths[gone].cut = true,
            false => sim.clients[0].reset(gone),
        }
        sim.run(|sim| sim.clients[0].received().len() == LEN + 5);
        assert_same(&sim.clients[0].received()[5..], &sent);
        sim.net.paths[gone].cut = false;
        sim.run(|sim| sim.clients[0].closed());
        sim.finish();
    }
}

// RFC 6824 §3.1, §3.2: nobody repeats a third ACK but where a SYN/ACK comes again or, in a join, no
// fourth came. Whatever is lost, both streams get on and it stays Multipath TCP.
#[test]
fn every_frame_of_a_short_exchange_may_be_lost() {
    for (path, frames) in [(0, 12), (1, 4)] {
        for side in [Side::Client, Side::Server] {
            for nth in 0..frames {
                let mut sim = Sim::new(config(ECHO));
                sim.net.lose_nth = Some((side, IfaceId(path), nth));
                let sent = stream(1, 4000);
                let c = sim.connect(client());
                sim.clients[c].send(&sent[..2000]);
                sim.run(|sim| sim.clients[c].may_join());
                let at = sim.join(c, 1);
                sim.run(|sim| sim.clients[c].subflows[at].open());
                sim.clients[c].send(&sent[2000..]);
                sim.clients[c].close_write();
                sim.run(|sim| sim.clients[c].closed());
                assert_same(sim.clients[c].received(), &sent);
                sim.finish();
                assert_eq!(sim.server.report(0).fallbacks, [], "{side:?} {nth}");
            }
        }
    }
}

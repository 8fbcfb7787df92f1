//! Multipath TCP that turns into plain TCP (RFC 8684 §3.1, §3.7).

use super::pen::{ISS, KEY, Pen, capable};
use super::script::{FIN, SERVER};
use crate::model::apps::{Behaviour, ECHO};
use crate::model::client::{ClientConfig, Mode, Quirks};
use crate::model::middlebox::Meddling;
use crate::model::net::{Path, Side};
use crate::model::sim::{Family, Sim, SimConfig};
use crate::model::subflow::State;
use crate::model::{assert_same, stream};
use mpx_datapath::engine::{Fallback, FallbackReport};
use mpx_datapath::seq::TcpSeq;
use mpx_datapath::time::Duration;
use mpx_datapath::wire::mptcp::{CapableContent, DsnWidth, MpFail};
use mpx_datapath::wire::tcp::{TcpFlags, TcpHeader, TcpOptions};

/// Both sides send 100,000 octets; `first` says who begins.
fn exchange(quirks: Quirks, server_first: bool) -> Sim {
    const LEN: usize = 100_000;
    let app = Behaviour {
        send_bytes: LEN,
        seed: 2,
        ..Behaviour::default()
    };
    let mut sim = Sim::new(SimConfig::with(app));
    let sent = stream(1, LEN);
    let c = sim.connect(ClientConfig {
        quirks,
        ..ClientConfig::new(Family::V4.server(0))
    });
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
    sim
}

// RFC 8684 §3.1: without MP_CAPABLE in the third ACK the connection is plain TCP.
#[test]
fn no_options_after_the_syn() {
    let quirks = Quirks {
        no_options_after_syn: true,
        ..Quirks::default()
    };
    for server_first in [false, true] {
        let sim = exchange(quirks, server_first);
        assert_eq!(sim.clients[0].mode, Mode::Tcp);
    }
}

// RFC 8684 §3.7: the first data comes without DSS.
#[test]
fn no_options_after_the_third_ack() {
    let quirks = Quirks {
        no_options_after_third_ack: true,
        ..Quirks::default()
    };
    let sim = exchange(quirks, false);
    assert!(sim.clients[0].infinite_mappings <= 1);
}

// RFC 8684 §3.7: our first window is acknowledged without a DATA_ACK.
#[test]
fn acknowledgments_without_data_ack() {
    let quirks = Quirks {
        no_options_after_third_ack: true,
        ..Quirks::default()
    };
    exchange(quirks, true);
}

// RFC 8684 §3.1: the first data carries the keys once more, so that the pure third ACK may be lost.
#[test]
fn keys_come_with_the_first_data_only() {
    let quirks = Quirks {
        no_pure_third_ack: true,
        ..Quirks::default()
    };
    let sim = exchange(quirks, false);
    assert_eq!(sim.clients[0].mode, Mode::Multipath);
}

// RFC 8684 §3.1: the keys of the third ACK must be those exchanged.
#[test]
fn keys_that_nobody_exchanged_make_no_multipath_connection() {
    let quirks = Quirks {
        wrong_capable_key: true,
        ..Quirks::default()
    };
    let mut sim = Sim::new(SimConfig::with(Behaviour::default()));
    let c = sim.connect(ClientConfig {
        quirks,
        ..ClientConfig::new(Family::V4.server(0))
    });
    sim.run(|sim| sim.clients[c].established());
    sim.settle();
    // Whatever the server made of it, a join finds nothing to join.
    let at = sim.join(c, 1);
    sim.run(|sim| sim.clients[c].subflows[at].state != State::SynSent);
    assert!(matches!(sim.clients[c].subflows[at].state, State::Reset(_)));
    sim.clients[c].reset(0);
    sim.finish();
}

// RFC 8684 §3.7: after a fallback nothing can join.
#[test]
fn no_join_after_a_fallback() {
    let quirks = Quirks {
        no_options_after_third_ack: true,
        ..Quirks::default()
    };
    let mut sim = Sim::new(SimConfig::with(Behaviour {
        echo: true,
        ..Behaviour::default()
    }));
    let c = sim.connect(ClientConfig {
        quirks,
        ..ClientConfig::new(Family::V4.server(0))
    });
    sim.clients[c].send(&stream(1, 10_000));
    sim.run(|sim| sim.clients[c].received().len() == 10_000);
    let at = sim.join(c, 1);
    sim.run(|sim| sim.clients[c].subflows[at].state != State::SynSent);
    assert!(matches!(sim.clients[c].subflows[at].state, State::Reset(_)));
    sim.clients[c].close_write();
    sim.run(|sim| sim.clients[c].closed());
    sim.finish();
}

/// The client trusts no path; MPTCP options vanish on the last one on the way to the server, from the
/// frame of this number on.
fn losing_options(paths: usize, from_frame: u32, app: Behaviour) -> (Sim, usize) {
    let mut config = SimConfig {
        paths: vec![Path::default(); paths],
        ..SimConfig::with(app)
    };
    config.paths[paths - 1].meddling = Meddling {
        strips: Some((Side::Server, from_frame)),
        ..Meddling::default()
    };
    let mut sim = Sim::new(config);
    let c = sim.connect(ClientConfig {
        quirks: Quirks {
            distrusts_paths: true,
            ..Quirks::default()
        },
        ..ClientConfig::new(Family::V4.server(0))
    });
    (sim, c)
}

// RFC 8684 §3.7: options vanish in mid-connection, and the only subflow acknowledges what no DATA_ACK
// ever will: it is closed with a RST that blames a middlebox.
#[test]
fn a_path_that_begins_to_swallow_options_is_given_up() {
    let app = Behaviour {
        send_bytes: 10_000_000,
        ..Behaviour::default()
    };
    let (mut sim, c) = losing_options(1, 100, app);
    let began = sim.now;
    sim.run(|sim| !sim.clients[c].subflows[0].alive());
    assert_eq!(sim.clients[c].subflows[0].state, State::Reset(Some(6)));
    assert!(sim.now.since(began) < Duration::from_secs(30));
    let sent = stream(0, 10_000_000);
    let got = sim.clients[c].received();
    assert!(got.len() > 100_000 && got == &sent[..got.len()]);
    sim.finish();
}

// RFC 8684 §3.7: where another path is left, the connection goes on there, and nothing is missing.
#[test]
fn another_path_brings_what_one_without_options_took() {
    let (mut sim, c) = losing_options(2, 60, ECHO);
    sim.run(|sim| sim.clients[c].established());
    let sent = stream(1, 1_000_000);
    sim.clients[c].send(&sent);
    let joined = sim.join(c, 1);
    sim.clients[c].close_write();
    sim.run(|sim| sim.clients[c].closed());
    assert!(!sim.clients[c].subflows[joined].alive());
    assert_same(sim.clients[c].received(), &sent);
    assert_same(&sim.app.record().received, &sent);
    sim.finish();
}

fn counted(cause: &'static str, direction: &'static str) -> Vec<FallbackReport> {
    vec![FallbackReport {
        port: SERVER.port(),
        cause,
        direction,
        count: 1,
    }]
}

const GOOD: &[u8] = b"an octet is an octet";
const BEFORE: &[u8] = b"PORT 10,0,0,1,19,136";
/// As a gateway for applications rewrites it, four octets longer.
const AFTER: &[u8] = b"PORT 192,0,2,77,201,1,02";
/// The same in as many octets as before.
const LIKE: &[u8] = b"PORT 192,0,2,7,9,136";
const MORE: &[u8] = b"and so on";

/// The gateway has changed the second segment; the server knows by its checksum.
fn altered(after: &[u8]) -> Pen {
    let mut pen = Pen::opened(true, Behaviour::default());
    pen.send(0, pen.mapping(0, 0, GOOD), GOOD);
    pen.script.wait(Duration::from_secs(1));
    pen.script.answers();
    let at = GOOD.len();
    pen.send(at, pen.mapping(at, at, BEFORE), after);
    pen
}

// RFC 8684 §3.7: one subflow, contiguous data: MP_FAIL on an ACK, an infinite mapping, and from where
// the checksum failed the stream is what comes, as in TCP. Whether the answer in kind comes first or
// the infinite mapping makes no difference.
#[test]
fn a_failed_checksum_on_the_only_subflow_is_answered_by_an_infinite_mapping() {
    for (answered_in_kind, after) in [(true, AFTER), (false, AFTER), (true, LIKE), (false, LIKE)] {
        let mut pen = altered(after);
        let at = GOOD.len();
        let (ack, len) = pen.answer();
        assert_eq!((ack.ack, len), (TcpSeq(ISS) + 1 + at + after.len(), 0));
        assert_eq!(ack.options.mptcp.fail, Some(MpFail { dsn: Pen::dsn(at) }));
        let dss = ack.options.mptcp.dss.expect("it is not over yet");
        assert_eq!(dss.data_ack, Some(DsnWidth::Eight(Pen::dsn(at))));
        assert_eq!(pen.app.record().received, GOOD);
        assert_eq!((pen.mode(), pen.app.record().fallback), ("mptcp", None));

        if answered_in_kind {
            pen.send(at + after.len(), pen.fail(pen.data_ack), &[]);
            assert_eq!(pen.mode(), "tcp");
        }
        let next = at + BEFORE.len();
        pen.send(at + after.len(), pen.infinite(next, next), MORE);
        assert_eq!(pen.mode(), "tcp");
        assert_eq!(pen.app.record().received, [GOOD, after, MORE].concat());
        assert_eq!(pen.app.record().fallback, Some(Fallback::Checksum));
        assert_eq!(pen.fallbacks(), counted("checksum", "in"));
        // RFC 8684 §3.7: no DATA_ACK any more, and the FIN is the end of the stream.
        pen.fin(at + after.len() + MORE.len());
        let answers = pen.script.answers();
        let ours: Vec<_> = answers
            .iter()
            .filter(|a| !a.0.options.mptcp.is_empty())
            .collect();
        let [(fin, 0)] = ours[..] else {
            panic!("the infinite mapping, on what comes first: {answers:?}")
        };
        assert!(fin.flags.contains(FIN));
        let mapping = fin.options.mptcp.dss.and_then(|dss| dss.mapping);
        assert_eq!(mapping.map(|m| (m.len, m.checksum)), Some((0, Some(0))));
        assert!(pen.app.record().peer_finished);
        let metrics = &pen.script.engine.metrics;
        assert_eq!(
            (metrics.data_csum_err, metrics.dss_corruption_fallback),
            (1, 1)
        );
        assert_eq!((metrics.mp_fail_tx, metrics.infinite_map_tx), (1, 1));
        assert_eq!(metrics.mp_fail_rx, u64::from(answered_in_kind));
        assert_eq!(metrics.infinite_map_rx, u64::from(!answered_in_kind));
    }
}

// RFC 8684 §3.7: what follows is not contiguous: RST with MP_FAIL, and nothing of it is delivered.
#[test]
fn a_failed_checksum_in_a_stream_that_is_not_contiguous_resets_the_subflow() {
    let at = GOOD.len();
    let reset = |pen: &mut Pen, dsn: u64| {
        let answers = pen.script.answers();
        let rst = answers.iter().find(|a| a.0.flags.contains(TcpFlags::RST));
        let rst = rst.unwrap_or_else(|| panic!("a RST: {answers:?}")).0;
        assert_eq!(rst.options.mptcp.fail, Some(MpFail { dsn }));
        let reason = rst.options.mptcp.tcprst.map(|r| r.reason);
        assert_eq!(reason, Some(6), "middlebox interference");
        assert_eq!(pen.app.record().received, GOOD);
        assert_eq!(pen.app.record().fallback, None);
        assert_eq!(pen.script.engine.metrics.dss_corruption_reset, 1);
    };
    // Octets are missing between what came and what failed.
    let mut pen = Pen::opened(true, Behaviour::default());
    pen.send(0, pen.mapping(0, 0, GOOD), GOOD);
    pen.send(at, pen.mapping(at, at + 1, BEFORE), AFTER);
    reset(&mut pen, Pen::dsn(at + 1));
    // The peer has not heard of the failure and repeats the octets further on.
    let mut pen = altered(AFTER);
    pen.answer();
    let next = at + AFTER.len();
    pen.send(next, pen.mapping(next, at, BEFORE), BEFORE);
    reset(&mut pen, Pen::dsn(at));
    // An infinite mapping that begins elsewhere.
    let mut pen = altered(AFTER);
    pen.answer();
    pen.send(next, pen.infinite(next, next + 1), MORE);
    reset(&mut pen, Pen::dsn(at));
}

/// A download of three segments, of which the first is acknowledged on both levels.
fn downloading() -> (Pen, Vec<(TcpHeader, usize)>) {
    const SEGMENT: usize = 1000;
    let mut pen = Pen::opened(
        true,
        Behaviour {
            send_bytes: 100_000,
            seed: 3,
            ..Behaviour::default()
        },
    );
    pen.script.window = 3 * SEGMENT as u16;
    let sent = pen.script.answers();
    assert!(sent.len() > 2);
    let (first, len) = sent[0];
    pen.ack = first.seq + len;
    pen.data_ack = pen.server_dsn(len);
    (pen, sent)
}

// RFC 8684 §3.7: the peer's MP_FAIL is answered in kind; then one infinite mapping, which begins where
// the last DATA_ACK stood, and nothing after it; only the subflow's acknowledgments count.
#[test]
fn mp_fail_is_answered_in_kind_and_by_an_infinite_mapping() {
    let (mut pen, sent) = downloading();
    let failed = pen.data_ack;
    pen.send(0, pen.fail(failed), &[]);
    assert_eq!(pen.mode(), "tcp");
    assert_eq!(pen.app.record().fallback, Some(Fallback::PeerChecksum));
    assert_eq!(pen.fallbacks(), counted("MP_FAIL", "out"));
    let answers = pen.script.answers();
    let (answer, 0) = answers[0] else {
        panic!("an ACK first: {answers:?}")
    };
    assert_eq!(answer.options.mptcp.fail, Some(MpFail { dsn: Pen::dsn(0) }));
    // Everything else that was in flight arrives; what comes now is new.
    let end_of = |s: &(TcpHeader, usize)| s.0.seq + s.1;
    let before = sent.iter().map(end_of).fold(pen.ack, TcpSeq::max);
    let mut all: Vec<_> = answers[1..].to_vec();
    let first = pen.ack;
    for round in 0..20 {
        pen.ack = all.iter().map(end_of).fold(before, TcpSeq::max);
        // A DATA_ACK means nothing any more.
        let options = if round % 2 == 0 {
            pen.data_ack()
        } else {
            TcpOptions::default()
        };
        pen.send(0, options, &[]);
        all.extend(pen.script.answers());
    }
    let new: Vec<_> = all
        .iter()
        .filter(|a| a.1 > 0 && a.0.seq.at_or_after(before))
        .collect();
    let (infinite, _) = new[0];
    let mapping = infinite.options.mptcp.dss.and_then(|dss| dss.mapping);
    let mapping = mapping.expect("the first new segment tells of it");
    assert_eq!((mapping.len, mapping.checksum), (0, Some(0)));
    assert_eq!(mapping.dsn, DsnWidth::Eight(failed));
    assert_eq!(
        mapping.subflow_seq,
        1 + first.distance(sent[0].0.seq) as u32
    );
    assert!(new.len() > 10);
    assert!(new[1..].iter().all(|a| a.0.options.mptcp.is_empty()));
    assert_eq!(pen.script.engine.metrics.infinite_map_tx, 1);
    // Our answer was lost: it is repeated, and nothing else happens.
    pen.send(0, pen.fail(failed), &[]);
    let answers = pen.script.answers();
    assert!(answers.iter().any(|a| a.0.options.mptcp.fail.is_some()));
    assert_eq!(pen.script.engine.metrics.mp_fail_tx, 2);
}

// RFC 8684 §3.7: what left under a mapping leaves under it again, checksum and all, after the fallback;
// and there is room for it in the frame.
#[test]
fn after_a_fallback_old_segments_are_repeated_under_their_mapping() {
    let (mut pen, sent) = downloading();
    pen.send(0, pen.fail(pen.data_ack), &[]);
    pen.script.answers();
    pen.script.wait(Duration::from_secs(2));
    let again = pen.script.answers();
    let (again, _) = again[0];
    assert_eq!(again.seq, sent[1].0.seq);
    let mapping = |header: &TcpHeader| header.options.mptcp.dss.and_then(|dss| dss.mapping);
    assert_eq!(mapping(&again), mapping(&sent[1].0));
    assert!(mapping(&again).is_some_and(|m| m.len > 0));
    assert_eq!(again.options.mptcp.dss.and_then(|dss| dss.data_ack), None);
}

// RFC 8684 §3.7: a mapping that the infinite one has no place for: the peer was out of step before it
// knew. Octets in the wrong place are worse than a reset.
#[test]
fn a_mapping_out_of_step_after_a_fallback_ends_the_connection() {
    for out_of_step in [0, 1] {
        let (mut pen, _) = downloading();
        pen.send(0, pen.fail(pen.data_ack), &[]);
        pen.script.answers();
        pen.send(0, pen.mapping(0, out_of_step, GOOD), GOOD);
        let ended = pen.app.record().closed.is_some()
            || !pen
                .script
                .answers()
                .iter()
                .all(|a| !a.0.flags.contains(TcpFlags::RST));
        assert_eq!(ended, out_of_step > 0);
        assert_eq!(pen.app.record().received.is_empty(), out_of_step > 0);
    }
}

// RFC 8684 §3.7, S47: options vanish towards us alone. Until text of ours was acknowledged with a
// DATA_ACK that is a fallback, after it the loss of the path; both sides of that line.
#[test]
fn options_that_vanish_fall_back_before_a_data_ack_and_not_after() {
    let echo = Behaviour {
        echo: true,
        ..Behaviour::default()
    };
    for (data_acked, with_text) in [(false, true), (false, false), (true, true), (true, false)] {
        let mut pen = Pen::opened(true, echo);
        pen.send(0, pen.mapping(0, 0, GOOD), GOOD);
        let (echoed, len) = pen.answer();
        assert_eq!(len, GOOD.len());
        pen.ack = echoed.seq + len;
        if data_acked {
            pen.data_ack = pen.server_dsn(len);
            pen.send(len, pen.data_ack(), &[]);
        }
        let text = if with_text { MORE } else { &[] };
        pen.send(len, TcpOptions::default(), text);
        let fallback = (!data_acked).then_some(Fallback::NoDataAck);
        assert_eq!(
            pen.app.record().fallback,
            fallback,
            "{data_acked} {with_text}"
        );
        let metrics = &pen.script.engine.metrics;
        assert_eq!(metrics.dss_fallback, u64::from(!data_acked));
        let received = pen.app.record().received.len();
        let delivered = if with_text && !data_acked {
            MORE.len()
        } else {
            0
        };
        assert_eq!(received, GOOD.len() + delivered);
    }
}

// RFC 8684 §3.7: the first text comes without a mapping: TCP. Later text, where the peer has spoken
// and may have been answered, waits for a mapping: what the peer repeats must not come in twice.
#[test]
fn text_without_a_mapping_falls_back_at_first_only() {
    for spoken in [false, true] {
        let mut pen = Pen::opened(true, Behaviour::default());
        let at = if spoken { GOOD.len() } else { 0 };
        if spoken {
            pen.send(0, pen.mapping(0, 0, GOOD), GOOD);
        }
        pen.send(at, TcpOptions::default(), MORE);
        let cause = (!spoken).then_some(Fallback::NoMapping);
        assert_eq!(pen.app.record().fallback, cause);
        let expected = if spoken { GOOD } else { MORE };
        assert_eq!(pen.app.record().received, expected);
        let metrics = &pen.script.engine.metrics;
        assert_eq!(metrics.mp_capable_data_fallback, u64::from(!spoken));
    }
}

// RFC 8684 §3.1: what comes before the segment that repeats the keys says nothing of them, options or
// not: somebody cut it off, say. In order it does.
#[test]
fn text_without_options_falls_back_in_order_only() {
    for in_order in [false, true] {
        let mut pen = Pen::half_open(false, Behaviour::default());
        let at = usize::from(!in_order);
        pen.send(at, TcpOptions::default(), MORE);
        assert_eq!(pen.mode(), if in_order { "tcp" } else { "pending" });
        let metrics = &pen.script.engine.metrics;
        assert_eq!(metrics.mp_capable_fallback_ack, u64::from(in_order));
        assert_eq!(metrics.mp_capable_ack_awaited, u64::from(!in_order));
    }
}

// RFC 8684 §3.3.1: text that no mapping covers, a window of it: the subflow is reset; one octet less
// still waits.
#[test]
fn a_window_of_text_without_a_mapping_resets_the_subflow() {
    let mut pen = Pen::opened(
        false,
        Behaviour {
            echo: true,
            ..Behaviour::default()
        },
    );
    let text = [7; 1024];
    let mut options = pen.mapping(0, 0, GOOD);
    if let Some(mapping) = options
        .mptcp
        .dss
        .as_mut()
        .and_then(|dss| dss.mapping.as_mut())
    {
        mapping.checksum = None;
    }
    pen.send(0, options, GOOD);
    let (echoed, len) = pen.answer();
    pen.ack = echoed.seq + len;
    pen.data_ack = pen.server_dsn(len);
    let mut at = len;
    for _ in 0..63 {
        pen.send(at, pen.data_ack(), &text);
        at += text.len();
    }
    pen.send(at, pen.data_ack(), &text[1..]);
    at += text.len() - 1;
    let reset = |pen: &mut Pen| {
        let answers = pen.script.answers();
        let rst = answers
            .into_iter()
            .find(|a| a.0.flags.contains(TcpFlags::RST));
        rst.map(|a| a.0.options.mptcp.tcprst.map(|r| r.reason))
    };
    assert_eq!(reset(&mut pen), None);
    pen.send(at, pen.data_ack(), &text[..1]);
    assert_eq!(reset(&mut pen), Some(Some(6)), "middlebox interference");
    assert_eq!(pen.script.engine.metrics.dss_missing, 1);
}

// RFC 8684 §3.3.1: a checksum that nobody agreed on, and none where there should be one; in DSS and
// in the MP_CAPABLE that carries data.
#[test]
fn a_checksum_is_there_exactly_where_it_was_agreed() {
    for agreed in [false, true] {
        for first in [false, true] {
            let mut pen = Pen::opened(agreed, Behaviour::default());
            let mut options = pen.mapping(0, 0, GOOD);
            let mapping = options
                .mptcp
                .dss
                .as_mut()
                .and_then(|dss| dss.mapping.as_mut());
            let mapping = mapping.expect("there is one");
            if agreed {
                mapping.checksum = None;
            }
            if first {
                let content = CapableContent::Data {
                    sender_key: KEY,
                    receiver_key: pen.server_key,
                    data_len: mapping.len,
                    checksum: mapping.checksum,
                };
                options.mptcp.dss = None;
                options.mptcp.capable = Some(capable(content));
            }
            pen.send(0, options, GOOD);
            let (rst, _) = pen.answer();
            assert!(rst.flags.contains(TcpFlags::RST));
            assert_eq!(rst.options.mptcp.tcprst.map(|r| r.reason), Some(1));
            assert_eq!(pen.script.engine.metrics.dss_checksum_mismatch, 1);
            assert_eq!(pen.app.record().received, b"");
        }
    }
}

// RFC 8684 §3.3.2: data with a number of 8 octets is acknowledged with as many; until then 4 will do.
// Ours have 8 always (§3.3.1).
#[test]
fn a_data_ack_has_as_many_octets_as_the_numbers_it_answers() {
    for wide in [false, true] {
        let mut pen = Pen::opened(
            true,
            Behaviour {
                echo: true,
                ..Behaviour::default()
            },
        );
        let mut options = pen.mapping(0, 0, GOOD);
        if let Some(mapping) = options
            .mptcp
            .dss
            .as_mut()
            .and_then(|dss| dss.mapping.as_mut())
            && !wide
        {
            mapping.dsn = DsnWidth::Four(Pen::dsn(0) as u32);
        }
        pen.send(0, options, GOOD);
        let (echoed, _) = pen.answer();
        let dss = echoed.options.mptcp.dss.expect("it has a DSS");
        let next = Pen::dsn(GOOD.len());
        let expected = if wide {
            DsnWidth::Eight(next)
        } else {
            DsnWidth::Four(next as u32)
        };
        assert_eq!(dss.data_ack, Some(expected));
        let dsn = dss.mapping.map(|m| m.dsn);
        assert_eq!(dsn, Some(DsnWidth::Eight(pen.server_dsn(0))));
    }
}

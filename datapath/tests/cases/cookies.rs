//! SYN cookies (RFC 4987 §3.6, RFC 8684 §3.1): nothing is kept of a SYN, and everything comes back.

use super::script::{ACK, FIN, SYN, Script};
use crate::model::apps::ECHO;
use crate::model::client::ClientConfig;
use crate::model::net::{Path, Side};
use crate::model::sim::{Family, Sim, SimConfig};
use crate::model::{assert_same, seeds, stream};
use mpx_datapath::app::builtin::Echo;
use mpx_datapath::engine::{EngineConfig, Patience};
use mpx_datapath::port::IfaceId;
use mpx_datapath::seq::TcpSeq;
use mpx_datapath::time::{Duration, Instant};
use mpx_datapath::wire::mptcp::{CapableContent, Dss, MpCapable};
use mpx_datapath::wire::tcp::{TcpFlags, TcpHeader, TcpOptions, Timestamps};

/// Of the cookies' clock: 2^24 times 4 µs.
const TICK: Duration = Duration::from_micros(4 << 24);
const CLIENT_KEY: u64 = 0x0102_0304_0506_0708;
const ISS: u32 = 1_000;

/// An engine that echoes, and answers every SYN with a cookie if nothing else is said.
fn script(change: impl FnOnce(&mut EngineConfig)) -> Script {
    Script::configured(Box::new(Echo), Patience::default(), |config| {
        config.syn_cookies_from = 0;
        change(config);
    })
}

fn all_options() -> TcpOptions {
    let mut options = TcpOptions {
        mss: Some(1450),
        window_scale: Some(9),
        sack_permitted: true,
        timestamps: Some(Timestamps { tsval: 1, tsecr: 0 }),
        ..TcpOptions::default()
    };
    options.mptcp.capable = Some(capable(CapableContent::Syn));
    options
}

fn capable(content: CapableContent) -> MpCapable {
    MpCapable {
        version: 1,
        flags: MpCapable::FLAG_SHA256,
        content,
    }
}

/// The answer to a SYN with these options.
fn syn_ack(script: &mut Script, options: TcpOptions) -> TcpHeader {
    script.send(ISS, TcpSeq(0), SYN, options, b"");
    let answers = script.answers();
    assert_eq!(answers.len(), 1);
    let (answer, len) = answers[0];
    assert!(answer.flags.contains(SYN | ACK) && len == 0);
    assert_eq!(answer.ack, TcpSeq(ISS + 1));
    answer
}

/// What the third ACK to `syn_ack` has beside its numbers.
fn third_ack(syn_ack: &TcpHeader) -> TcpOptions {
    let mut options = TcpOptions {
        timestamps: syn_ack.options.timestamps.map(|ts| Timestamps {
            tsval: 2,
            tsecr: ts.tsval,
        }),
        ..TcpOptions::default()
    };
    let offered = syn_ack.options.mptcp.capable.map(|c| c.content);
    if let Some(CapableContent::SynAck { sender_key }) = offered {
        options.mptcp.capable = Some(capable(CapableContent::Ack {
            sender_key: CLIENT_KEY,
            receiver_key: sender_key,
        }));
    }
    options
}

fn with_text(mut options: TcpOptions, len: u16) -> TcpOptions {
    let keys = options.mptcp.capable.map(|c| c.content);
    let Some(CapableContent::Ack {
        sender_key,
        receiver_key,
    }) = keys
    else {
        panic!("no keys: {options:?}");
    };
    options.mptcp.capable = Some(capable(CapableContent::Data {
        sender_key,
        receiver_key,
        data_len: len,
        checksum: None,
    }));
    options
}

fn assert_reset(script: &mut Script) {
    let answers = script.answers();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert!(answers[0].0.flags.contains(TcpFlags::RST));
    assert_eq!(script.engine.connections(), 0);
}

#[test]
fn cookies_begin_with_the_number_of_half_open_connections_that_they_are_for() {
    let mut script = script(|config| config.syn_cookies_from = 3);
    for (port, kept, cookies) in [(1, 1, 0), (2, 2, 0), (3, 3, 0), (4, 3, 1), (5, 3, 2)] {
        script.client.set_port(port);
        syn_ack(&mut script, all_options());
        assert_eq!(script.engine.connections(), kept);
        assert_eq!(script.engine.metrics.syncookies_sent, cookies);
    }
    assert_eq!(script.engine.open_connections(), 0);
}

#[test]
fn a_hundred_thousand_syns_leave_nothing_behind() {
    let mut script = script(|_| {});
    let before = script.engine.report(script.now, 0);
    for n in 0..100_000u32 {
        let [_, high, low, _] = n.to_be_bytes();
        script.client.set_ip([172, 16, high, low].into());
        script.client.set_port(n as u16);
        script.send(n, TcpSeq(0), SYN, all_options(), b"");
        if n % 256 == 255 {
            assert_eq!(script.answers().len(), 256);
        }
    }
    script.answers();
    let after = script.engine.report(script.now, 0);
    assert_eq!(script.engine.metrics.syncookies_sent, 100_000);
    let entries = [
        after.connections,
        after.half_open,
        after.flows,
        after.tokens,
    ];
    assert_eq!(entries, [0; 4]);
    assert_eq!(after.memory.used_bytes, before.memory.used_bytes);
    assert_eq!(script.engine.next_timeout(), None);
}

#[test]
fn with_timestamps_every_option_comes_back() {
    for ecn in [false, true] {
        for options in [
            all_options(),
            TcpOptions {
                window_scale: None,
                ..all_options()
            },
            TcpOptions {
                window_scale: Some(0),
                sack_permitted: false,
                ..all_options()
            },
        ] {
            let mut script = script(|_| {});
            let asks = match ecn {
                true => SYN | TcpFlags::ECE | TcpFlags::CWR,
                false => SYN,
            };
            script.send(ISS, TcpSeq(0), asks, options, b"");
            let (answer, _) = script.answers()[0];
            assert_eq!(answer.flags.contains(TcpFlags::ECE), ecn);
            let scaled = options.window_scale.is_some();
            assert_eq!(answer.options.window_scale.is_some(), scaled);
            assert_eq!(answer.options.sack_permitted, options.sack_permitted);
            script.send(ISS + 1, answer.seq + 1, ACK, third_ack(&answer), b"");
            let report = script.report();
            assert!(report.timestamps && report.capable);
            assert_eq!((report.sack, report.ecn), (options.sack_permitted, ecn));
            let ours = answer.options.window_scale.unwrap_or(0);
            let scales = options.window_scale.map(|theirs| (theirs, ours));
            assert_eq!(report.window_scales, scales);
            assert_eq!(report.mss_bytes, 1440, "the next below 1450");
        }
    }
}

// RFC 4987 §3.6: there is no place for them.
#[test]
fn without_timestamps_there_are_neither_scaled_windows_nor_sack_nor_ecn() {
    let mut script = script(|_| {});
    let options = TcpOptions {
        timestamps: None,
        ..all_options()
    };
    let asks = SYN | TcpFlags::ECE | TcpFlags::CWR;
    script.send(ISS, TcpSeq(0), asks, options, b"");
    let (answer, _) = script.answers()[0];
    assert!(!answer.flags.contains(TcpFlags::ECE));
    assert!(answer.options.window_scale.is_none() && !answer.options.sack_permitted);
    script.send(ISS + 1, answer.seq + 1, ACK, third_ack(&answer), b"");
    let report = script.report();
    assert!(report.capable && !report.timestamps && !report.sack && !report.ecn);
    assert_eq!(report.window_scales, None);
}

// RFC 4987 §3.6: what is not a cookie of lately opens nothing.
#[test]
fn a_cookie_is_taken_to_the_end_of_the_tick_after_its_own() {
    for (late, valid) in [(Duration::from_micros(1), true), (Duration::ZERO, false)] {
        for options in [all_options(), TcpOptions::default()] {
            let mut script = script(|_| {});
            script.now = Instant::ZERO + TICK * 7 + Duration::from_secs(1);
            let answer = syn_ack(&mut script, options);
            script.now = Instant::ZERO + (TICK * 9 - late);
            // Others still come, or none would be looked for.
            script.client.set_port(9);
            syn_ack(&mut script, options);
            script.client.set_port(super::script::CLIENT.port());
            script.send(ISS + 1, answer.seq + 1, ACK, third_ack(&answer), b"");
            let metrics = &script.engine.metrics;
            let counts = (metrics.syncookies_recv, metrics.syncookies_failed);
            assert_eq!(counts, (u64::from(valid), u64::from(!valid)));
            if valid {
                assert_eq!(script.engine.open_connections(), 1);
            } else {
                assert_reset(&mut script);
            }
        }
    }
}

#[test]
fn what_is_no_cookie_is_reset() {
    for bit in [3, 4, 5, 25, 28, 31] {
        let mut script = script(|_| {});
        let answer = syn_ack(&mut script, all_options());
        let wrong = TcpSeq((answer.seq + 1).0 ^ 1 << bit);
        script.send(ISS + 1, wrong, ACK, third_ack(&answer), b"");
        assert_eq!(script.engine.metrics.syncookies_failed, 1);
        assert_reset(&mut script);
    }
    // Nor is it where it may be that of a segment that came too early.
    for bit in [6, 11, 18] {
        let mut early = script(|_| {});
        let answer = syn_ack(&mut early, all_options());
        let wrong = TcpSeq((answer.seq + 1).0 ^ 1 << bit);
        early.send(ISS + 1, wrong, ACK, third_ack(&answer), b"");
        assert_eq!(early.engine.metrics.syncookies_awaited, 1, "{bit}");
        assert_eq!(early.engine.connections(), 0);
    }
    // Not our TSval, or none although the SYN had one.
    for tsecr in [Some(0x8000_0000), None] {
        let mut script = script(|_| {});
        let answer = syn_ack(&mut script, all_options());
        let mut options = third_ack(&answer);
        options.timestamps = options.timestamps.and_then(|ts| {
            Some(Timestamps {
                tsecr: ts.tsecr ^ tsecr?,
                ..ts
            })
        });
        script.send(ISS + 1, answer.seq + 1, ACK, options, b"");
        let metrics = &script.engine.metrics;
        assert_eq!(metrics.syncookies_failed + metrics.syncookies_awaited, 1);
        assert_eq!(script.engine.connections(), 0);
    }
}

// RFC 8684 §3.1: both keys come in the first data segment, too, should the third ACK be lost.
#[test]
fn the_first_text_does_for_a_third_ack_that_was_lost() {
    let mut script = script(|_| {});
    let answer = syn_ack(&mut script, all_options());
    let options = with_text(third_ack(&answer), 5);
    let ack = answer.seq + 1;
    // What overtakes it is left alone: with keys or without, it is not the one after the SYN.
    let mut later = third_ack(&answer);
    later.mptcp.capable = None;
    later.mptcp.dss = Some(Dss::default());
    script.send(ISS + 6, ack, ACK, later, b"world");
    script.send(ISS + 6, ack, ACK | FIN, later, b"");
    assert_eq!(script.engine.metrics.syncookies_awaited, 2);
    // In order, but without the keys that went with it.
    script.send(ISS + 1, ack, ACK, later, b"hello");
    assert_eq!(script.engine.metrics.mp_capable_ack_awaited, 1);
    assert!(script.answers().is_empty() && script.engine.connections() == 0);

    script.send(ISS + 1, ack, ACK, options, b"hello");
    let conns = script.engine.report(script.now, 1).conns;
    assert_eq!((conns[0].mode, conns[0].fallback), ("mptcp", None));
    let echoed: usize = script.answers().iter().map(|(_, len)| len).sum();
    assert_eq!(echoed, 5);
    // And once more: it is known.
    script.send(ISS + 1, ack, ACK, options, b"hello");
    assert_eq!(script.engine.open_connections(), 1);
    assert_eq!(script.engine.metrics.syncookies_recv, 1);
}

#[test]
fn a_late_copy_opens_no_second_connection() {
    let mut script = script(|_| {});
    let answer = syn_ack(&mut script, TcpOptions::default());
    let ack = answer.seq + 1;
    for opened in [true, false] {
        script.send(ISS + 1, ack, ACK, TcpOptions::default(), b"hello");
        assert_eq!(script.engine.open_connections(), usize::from(opened));
        script.send(ISS + 6, ack, TcpFlags::RST, TcpOptions::default(), b"");
    }
    let metrics = &script.engine.metrics;
    let counts = (metrics.syncookies_recv, metrics.syncookies_failed);
    assert_eq!(counts, (1, 1));
}

// RFC 8684 §3.1: keys that nobody exchanged are no reason to refuse the connection.
#[test]
fn a_key_of_somebody_else_makes_it_plain_tcp() {
    for wrong in [1, 0x100, 1 << 63] {
        let mut script = script(|_| {});
        let answer = syn_ack(&mut script, all_options());
        let mut options = third_ack(&answer);
        let Some(CapableContent::SynAck { sender_key }) =
            answer.options.mptcp.capable.map(|c| c.content)
        else {
            panic!("no key: {answer:?}");
        };
        options.mptcp.capable = Some(capable(CapableContent::Ack {
            sender_key: CLIENT_KEY,
            receiver_key: sender_key ^ wrong,
        }));
        script.send(ISS + 1, answer.seq + 1, ACK, options, b"");
        let report = script.engine.report(script.now, 1);
        assert_eq!((report.conns[0].mode, report.tokens), ("tcp", 0));
        assert_eq!(script.engine.metrics.mp_capable_fallback_ack, 1);
    }
}

// RFC 8684 §3.1: the token names us, and the same SYN gets the same key.
#[test]
fn keys_are_ours_among_many_owners() {
    for owner in [0, 7, 15] {
        let mut script = script(|config| (config.owner, config.owners) = (owner, 16));
        for port in 1..200 {
            script.client.set_port(port);
            let answer = syn_ack(&mut script, all_options());
            assert_eq!(syn_ack(&mut script, all_options()), answer);
            script.send(ISS + 1, answer.seq + 1, ACK, third_ack(&answer), b"");
        }
        let report = script.engine.report(script.now, usize::MAX);
        assert_eq!(report.tokens, 199);
        let mut tokens = report.conns.iter().map(|c| c.token);
        assert!(tokens.all(|token| mpx_ebpf::owner_of(token, 16) == owner));
    }
}

// RFC 8684 §3.1: A of the third packet confirms what either side asked for.
#[test]
fn checksums_that_the_client_asked_for_are_used() {
    let checksum = MpCapable::FLAG_CHECKSUM;
    for asked in [false, true] {
        let mut script = script(|_| {});
        let flags = MpCapable::FLAG_SHA256 | if asked { checksum } else { 0 };
        let mut options = all_options();
        options.mptcp.capable = options.mptcp.capable.map(|c| MpCapable { flags, ..c });
        let answer = syn_ack(&mut script, options);
        let answered = answer.options.mptcp.capable.map(|c| c.flags);
        assert_eq!(answered, Some(flags));
        let mut options = third_ack(&answer);
        options.mptcp.capable = options.mptcp.capable.map(|c| MpCapable { flags, ..c });
        script.send(ISS + 1, answer.seq + 1, ACK, options, b"");
        assert_eq!(script.engine.report(script.now, 1).conns[0].checksum, asked);
    }
}

#[test]
fn a_syn_that_comes_again_after_the_rush_gets_the_same_answer() {
    let mut script = script(|config| config.syn_cookies_from = 1);
    script.client.set_port(1);
    syn_ack(&mut script, all_options());
    script.client.set_port(2);
    let cookie = syn_ack(&mut script, all_options());
    assert_eq!(script.engine.metrics.syncookies_sent, 1);
    // The first one goes away, so that the second SYN is kept when it comes again.
    script.client.set_port(1);
    script.send(
        ISS + 1,
        TcpSeq(0),
        TcpFlags::RST,
        TcpOptions::default(),
        b"",
    );
    assert_eq!(script.engine.connections(), 0);
    script.client.set_port(2);
    let kept = syn_ack(&mut script, all_options());
    assert_eq!(script.engine.connections(), 1);
    assert_eq!(kept.seq, cookie.seq);
    assert_eq!(kept.options.mptcp, cookie.options.mptcp);
    // Whichever of the two it was that the client took.
    script.send(ISS + 1, cookie.seq + 1, ACK, third_ack(&cookie), b"");
    let report = script.engine.report(script.now, 1);
    assert_eq!(report.conns[0].mode, "mptcp");
}

#[test]
fn limits_hold_when_a_cookie_comes_back() {
    let mut script = script(|config| config.connections_max = 1);
    let mut answers = Vec::new();
    // The first one is over with its subflow.
    let plain = TcpOptions::default();
    for (port, options) in [(1, plain), (2, all_options())] {
        script.client.set_port(port);
        answers.push(syn_ack(&mut script, options));
    }
    for (port, answer) in [1, 2].into_iter().zip(&answers) {
        script.client.set_port(port);
        script.send(ISS + 1, answer.seq + 1, ACK, third_ack(answer), b"");
    }
    assert_eq!(script.engine.open_connections(), 1);
    assert_eq!(script.engine.metrics.listen_overflows, 1);
    script.answers();
    // What is not taken is not reset: there may be room when it comes again.
    script.client.set_port(1);
    script.send(
        ISS + 1,
        answers[0].seq + 1,
        TcpFlags::RST,
        TcpOptions::default(),
        b"",
    );
    assert_eq!(script.engine.connections(), 0);
    script.client.set_port(2);
    let options = with_text(third_ack(&answers[1]), 5);
    script.send(ISS + 1, answers[1].seq + 1, ACK, options, b"hello");
    assert_eq!(script.engine.open_connections(), 1);
}

#[test]
fn connections_of_every_kind_work_as_ever() {
    for seed in seeds(24) {
        let path = Path {
            loss_permille: [0, 20][seed as usize % 2],
            reorder_permille: [0, 30][seed as usize % 2],
            ..Path::default()
        };
        let family = [Family::V4, Family::V6][seed as usize / 2 % 2];
        let client = ClientConfig {
            multipath: seed % 3 != 0,
            checksum: seed % 5 == 0,
            timestamps: seed % 4 != 0,
            ecn: seed % 2 == 0,
            seed,
            ..ClientConfig::new(family.server(0))
        };
        let mut sim = Sim::new(SimConfig {
            paths: vec![path; 3],
            family,
            seed,
            syn_cookies_from: 0,
            ..SimConfig::with(ECHO)
        });
        let sent = stream(seed, 100_000);
        let multipath = client.multipath;
        let c = sim.connect(client);
        sim.clients[c].send(&sent);
        sim.run(|sim| sim.clients[c].established());
        for path in 1..3 {
            if multipath {
                sim.join(c, path);
            }
        }
        sim.clients[c].close_write();
        sim.run(|sim| sim.clients[c].peer_finished() && sim.clients[c].all_acknowledged());
        assert_same(sim.clients[c].received(), &sent);
        assert_eq!(sim.server.count(|m| m.syncookies_recv), 1);
        assert_eq!(sim.server.count(|m| m.syncookies_failed), 0);
        sim.finish();
    }
}

// RFC 8684 §3.1: whichever frame of the handshake is lost, also the third ACK.
#[test]
fn every_frame_of_the_handshake_may_be_lost() {
    for multipath in [false, true] {
        for side in [Side::Client, Side::Server] {
            for nth in 0..5 {
                let mut sim = Sim::new(SimConfig {
                    syn_cookies_from: 0,
                    ..SimConfig::with(ECHO)
                });
                sim.net.lose_nth = Some((side, IfaceId(0), nth));
                let c = sim.connect(ClientConfig {
                    multipath,
                    ..ClientConfig::new(Family::V4.server(0))
                });
                let sent = stream(1, 10_000);
                sim.clients[c].send(&sent);
                sim.clients[c].close_write();
                sim.run(|sim| sim.clients[c].peer_finished());
                assert_same(sim.clients[c].received(), &sent);
                assert_eq!(sim.server.count(|m| m.mp_capable_ack_rx), multipath.into());
                sim.finish();
            }
        }
    }
}

//! Every timer just before its time, when nothing happens, and at its time, when it does: to the
//! millisecond, which is the tick of the timer wheel.

use super::script::{ACK, FIN, SYN, Script, sack_permitted};
use crate::model::apps::{Behaviour, TestApp};
use crate::model::client::ClientConfig;
use crate::model::net::{Path, Side};
use crate::model::sim::{Family, Sim, SimConfig};
use mpx_datapath::app::builtin::{Discard, Echo, Source};
use mpx_datapath::app::{App, CloseCause};
use mpx_datapath::engine::Patience;
use mpx_datapath::metrics::Metrics;
use mpx_datapath::seq::TcpSeq;
use mpx_datapath::time::Duration;
use mpx_datapath::wire::tcp::{TcpFlags, TcpHeader, TcpOptions};

const MS: Duration = Duration::from_millis(1);
const RTT: Duration = Duration::from_millis(100);
/// RFC 6298 §2.2, after one measurement of [`RTT`]: RTT + 4 * RTT / 2.
const RTO: Duration = Duration::from_millis(300);

/// A connection whose round trip was measured once. The client's next octet is 101; returns what
/// acknowledges the server's SYN.
fn open(script: &mut Script) -> TcpSeq {
    open_with(script, sack_permitted())
}

fn open_with(script: &mut Script, syn: TcpOptions) -> TcpSeq {
    script.send(100, TcpSeq(0), SYN, syn, &[]);
    let ack = script.answers()[0].0.seq + 1;
    script.wait(RTT);
    script.send(101, ack, ACK, TcpOptions::default(), &[]);
    ack
}

fn with(app: impl App + 'static, patience: Patience) -> Script {
    Script::with_patience(Box::new(app), patience)
}

/// What the server sends when `time` has passed, and not before.
fn after(script: &mut Script, time: Duration) -> Vec<(TcpHeader, usize)> {
    script.wait(time - MS);
    assert_eq!(script.answers(), [], "before its time");
    script.wait(MS);
    script.answers()
}

/// The one segment that leaves when `time` has passed.
fn one_after(script: &mut Script, time: Duration) -> TcpHeader {
    let answers = after(script, time);
    let [(header, 0)] = answers[..] else {
        panic!("one segment without text, not {answers:?}")
    };
    header
}

/// `count` of the engine goes up when `time` has passed, and not before.
fn counts_after(script: &mut Script, time: Duration, count: fn(&Metrics) -> u64) {
    let before = count(&script.engine.metrics);
    script.wait(time - MS);
    assert_eq!(count(&script.engine.metrics), before, "before its time");
    script.wait(MS);
    assert_eq!(count(&script.engine.metrics), before + 1);
    assert!(!script.answers().is_empty());
}

// RFC 6298 §5.1, §5.5: the first timeout comes an RTO after the segment left, the next after twice
// that. Without SACK nothing is probed before.
#[test]
fn retransmission_timeout() {
    let mut script = Script::new();
    open_with(&mut script, TcpOptions::default());
    assert!(!script.answers().is_empty());
    for wait in [RTO, RTO * 2, RTO * 4] {
        counts_after(&mut script, wait, |m| m.tcp_timeouts);
    }
}

// RFC 8985 §7.2, §7.3: the tail is probed after two round trips and a little, once, and that puts the
// retransmission timeout off.
#[test]
fn tail_loss_probe() {
    let mut script = Script::new();
    open(&mut script);
    assert!(!script.answers().is_empty());
    counts_after(&mut script, RTT * 2 + MS * 2, |m| m.tcp_loss_probes);
    counts_after(&mut script, RTO, |m| m.tcp_timeouts);
    assert_eq!(script.engine.metrics.tcp_loss_probes, 1);
}

// RFC 8985 §7.2: with a single segment the probe would come after the timeout, and takes its time.
#[test]
fn tail_loss_probe_in_the_place_of_a_timeout() {
    let mut script = with(Echo, Patience::default());
    let ack = open(&mut script);
    script.send(101, ack, ACK, TcpOptions::default(), &[7; 100]);
    assert!(!script.answers().is_empty());
    counts_after(&mut script, RTO, |m| m.tcp_loss_probes);
    assert_eq!(script.engine.metrics.tcp_timeouts, 0);
    counts_after(&mut script, RTO, |m| m.tcp_timeouts);
}

// RFC 9293 §3.8.6.3.
#[test]
fn delayed_acknowledgment() {
    const DELAY: Duration = Duration::from_millis(40);
    let mut script = with(Discard, Patience::default());
    let ack = open(&mut script);
    script.send(101, ack, ACK, TcpOptions::default(), &[7; 100]);
    // It is the first octet that waits, not the latest.
    script.wait(DELAY / 2);
    script.send(201, ack, ACK, TcpOptions::default(), &[7; 100]);
    assert_eq!(one_after(&mut script, DELAY / 2).ack, TcpSeq(301));
}

/// A window of nothing from the start, before a server with much to say.
fn blocked(patience: Patience) -> (Script, TcpSeq) {
    let mut script = with(Source::default(), patience);
    script.window = 0;
    let ack = open(&mut script);
    assert_eq!(script.answers(), []);
    (script, ack)
}

// RFC 9293 §3.8.6.1: the first probe comes an RTO after the window closed, each later one after twice
// the time up to the ceiling, for ever if they are answered, and else as many as the service allows.
#[test]
fn persist() {
    const CEILING: Duration = Duration::from_secs(1);
    let patience = Patience {
        persist_interval_max: CEILING,
        persist_probes: 5,
        ..Patience::default()
    };
    let (mut script, ack) = blocked(patience);
    for wait in [RTO, RTO * 2].into_iter().chain([CEILING; 50]) {
        assert_eq!(one_after(&mut script, wait).seq, ack - 1);
        script.send(101, ack, ACK, TcpOptions::default(), &[]);
    }
    for _ in 0..5 {
        assert_eq!(one_after(&mut script, CEILING).seq, ack - 1);
    }
    let end = one_after(&mut script, CEILING);
    assert!(end.flags.contains(TcpFlags::RST));
    assert_eq!(script.engine.connections(), 0);
}

// RFC 8684 §3.3.1: the window is that of all subflows, and whichever brings it ends the probing.
#[test]
fn no_probe_when_another_subflow_has_opened_the_window() {
    let app = Behaviour {
        send_bytes: 1_000_000,
        ..Behaviour::default()
    };
    let path = |delay_ms| Path {
        delay: Duration::from_millis(delay_ms),
        ..Path::default()
    };
    let mut sim = Sim::new(SimConfig {
        paths: vec![path(50), path(10)],
        ..SimConfig::with(app)
    });
    let mut client = ClientConfig::new(Family::V4.server(0));
    client.receive_buffer_bytes = 60_000;
    let c = sim.connect(client);
    sim.run(|sim| sim.clients[c].established());
    let fast = sim.join(c, 1);
    sim.run(|sim| sim.clients[c].subflows[fast].received > 0);
    sim.clients[c].set_reading(false);
    let probes = |sim: &Sim| sim.server.engine.metrics.zero_window_probes;
    sim.run(|sim| probes(sim) == 2);
    // The slow one alone tells that the client reads again.
    sim.net.paths[1].cut_towards = Some(Side::Server);
    sim.clients[c].set_reading(true);
    sim.run(|sim| sim.clients[c].received().len() == 1_000_000);
    assert_eq!(probes(&sim), 2);
}

// RFC 9293 §3.8.4: a client that is silent for as long as the service allows is probed with a segment
// that it must answer, and then as often as the service says; any answer starts it all anew.
#[test]
fn keepalive() {
    let patience = Patience {
        keepalive: Some(Duration::from_secs(600)),
        keepalive_interval: Duration::from_secs(10),
        keepalive_probes: 3,
        ..Patience::default()
    };
    for patience in [patience, Patience::default()] {
        let idle = patience.keepalive.expect("it is on by default");
        let mut script = with(Discard, patience);
        let ack = open(&mut script);
        for _ in 0..2 {
            assert_eq!(one_after(&mut script, idle).seq, ack - 1);
            script.send(101, ack, ACK, TcpOptions::default(), &[]);
        }
        assert_eq!(one_after(&mut script, idle).flags, ACK);
        for _ in 1..patience.keepalive_probes {
            assert_eq!(
                one_after(&mut script, patience.keepalive_interval).flags,
                ACK
            );
        }
        let end = one_after(&mut script, patience.keepalive_interval);
        assert!(end.flags.contains(TcpFlags::RST));
        assert_eq!(script.engine.connections(), 0);
        let probes = u64::from(2 + patience.keepalive_probes);
        assert_eq!(script.engine.metrics.keepalive_probes, probes);
    }
}

// RFC 9293 §3.8.4 beside RFC 8684 §1.3: a subflow runs like a connection of TCP, and each that is idle is
// probed, whatever the others do. One that does not answer goes alone; the connection goes with the last.
#[test]
fn keepalive_of_one_subflow_and_of_the_last() {
    const IDLE: Duration = Duration::from_secs(60);
    const INTERVAL: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);
    let mut sim = Sim::new(SimConfig {
        patience: Patience {
            keepalive: Some(IDLE),
            keepalive_interval: INTERVAL,
            keepalive_probes: 3,
            without_subflow: INTERVAL,
            ..Patience::default()
        },
        ..SimConfig::with(Behaviour::default())
    });
    let c = sim.connect(ClientConfig::new(Family::V4.server(0)));
    sim.run(|sim| sim.clients[c].established());
    let at = sim.join(c, 1);
    sim.run(|sim| sim.clients[c].subflows[at].open());
    let silent = IDLE + INTERVAL * 3;
    let subflows = |sim: &Sim| sim.server.report(1).conns[0].subflows.len();
    let cut_at = sim.now;
    sim.net.paths[0].cut = true;
    while subflows(&sim) == 2 {
        // The other one is in use.
        sim.clients[c].send(b"hello");
        sim.run_for(SECOND);
    }
    let passed = sim.now.since(cut_at);
    assert!(
        (silent - SECOND..=silent + SECOND).contains(&passed),
        "{passed:?}"
    );
    assert_eq!(sim.app.record().closed, None);

    let cut_at = sim.now;
    sim.net.paths[1].cut = true;
    while sim.app.record().closed.is_none() {
        sim.run_for(SECOND);
    }
    let passed = sim.now.since(cut_at);
    let silent = silent + INTERVAL;
    assert!(
        (silent - SECOND * 2..=silent + SECOND).contains(&passed),
        "{passed:?}"
    );
    assert_eq!(sim.server.count(|m| m.subflow_timeouts), 2);
    assert_eq!(sim.app.record().closed, Some(CloseCause::TimedOut));
}

fn user_timeout(timeout: Duration) -> Patience {
    Patience {
        user_timeout: Some(timeout),
        ..Patience::default()
    }
}

/// Lets the server repeat itself until `time` has passed.
fn repeat(script: &mut Script, time: Duration) {
    for _ in 0..time.as_millis() {
        script.wait(MS);
        let reset = |(header, _): &(TcpHeader, usize)| header.flags.contains(TcpFlags::RST);
        assert!(!script.answers().iter().any(reset), "before its time");
    }
}

fn given_up(script: &mut Script) {
    assert_eq!(script.engine.connections(), 1);
    script.wait(MS);
    let answers = script.answers();
    assert!(answers.iter().any(|(h, _)| h.flags.contains(TcpFlags::RST)));
    assert_eq!(script.engine.connections(), 0);
    assert_eq!(script.engine.metrics.user_timeouts, 1);
}

// RFC 9293 §3.8.3, RFC 5482: the time in which nothing that is outstanding gets on, whatever the number
// of retransmissions.
#[test]
fn user_timeout_of_what_is_not_acknowledged() {
    for seconds in [2, 300] {
        let timeout = Duration::from_secs(seconds);
        let mut script = with(Source::default(), user_timeout(timeout));
        let ack = open(&mut script);
        let sent: usize = script.answers().iter().map(|(_, len)| len).sum();
        // What was heard of a part of it a little before the end counts.
        repeat(&mut script, timeout - MS);
        script.send(101, ack + sent / 2, ACK, TcpOptions::default(), &[]);
        repeat(&mut script, timeout - MS);
        given_up(&mut script);
    }
}

// RFC 9293 §3.8.6.1, MUST-37: a window may be closed for as long as the peer answers, and no longer
// than the user timeout from the first probe without an answer.
#[test]
fn user_timeout_of_a_closed_window() {
    let timeout = Duration::from_secs(20);
    let (mut script, ack) = blocked(user_timeout(timeout));
    let mut answered = 0;
    while answered < 40 {
        script.wait(MS);
        if !script.answers().is_empty() {
            answered += 1;
            script.send(101, ack, ACK, TcpOptions::default(), &[]);
        }
    }
    while script.answers().is_empty() {
        script.wait(MS);
    }
    repeat(&mut script, timeout - MS);
    given_up(&mut script);
}

// RFC 9293 §3.8.6.1: so may one that the peer took back after there was something in flight.
#[test]
fn a_window_taken_back_is_waited_for() {
    for patience in [Patience::default(), user_timeout(Duration::from_secs(100))] {
        let mut script = with(Source::default(), patience);
        let ack = open(&mut script);
        assert!(!script.answers().is_empty());
        script.window = 0;
        script.send(101, ack, ACK, TcpOptions::default(), &[]);
        for _ in 0..3_000 {
            script.wait(Duration::from_secs(1));
            if !script.answers().is_empty() {
                script.send(101, ack, ACK, TcpOptions::default(), &[]);
            }
        }
        assert_eq!(script.engine.connections(), 1);
        script.window = 60_000;
        script.send(101, ack, ACK, TcpOptions::default(), &[]);
        script.wait(Duration::from_secs(60));
        assert!(script.answers().iter().any(|(_, len)| *len > 0));
    }
}

// RFC 8684 §3.3.6 beside RFC 5482: of two subflows the one that hears nothing is given up, and the
// connection goes on; with the last one it ends.
#[test]
fn user_timeout_of_one_subflow_and_of_the_last() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let app = Behaviour {
        send_bytes: 20_000_000,
        ..Behaviour::default()
    };
    let path = Path {
        delay: Duration::from_millis(50),
        ..Path::default()
    };
    let mut sim = Sim::new(SimConfig {
        paths: vec![path; 2],
        // So large that no subflow is reset for holding it.
        send_buffer_bytes: 32 << 20,
        patience: user_timeout(TIMEOUT),
        ..SimConfig::with(app)
    });
    let c = sim.connect(ClientConfig::new(Family::V4.server(0)));
    sim.run(|sim| sim.clients[c].established());
    let at = sim.join(c, 1);
    sim.run(|sim| sim.clients[c].subflows[at].received > 100_000);
    let given_up = |sim: &Sim| sim.server.engine.metrics.user_timeouts;
    for path in [0, 1] {
        sim.net.paths[path].cut = true;
        sim.run_for(TIMEOUT - Duration::from_millis(200));
        assert_eq!(given_up(&sim), path as u64);
        assert_eq!(sim.app.record().closed, None);
        sim.run_for(Duration::from_millis(300));
        assert_eq!(given_up(&sim), path as u64 + 1);
    }
    assert_eq!(sim.app.record().closed, Some(CloseCause::TimedOut));
}

// RFC 9293 §3.6.1: twice the MSL; a FIN that comes again is answered and has it all wait once more.
#[test]
fn time_wait() {
    const TIME_WAIT: Duration = Duration::from_secs(60);
    for fin_again in [false, true] {
        let app = TestApp::new(Behaviour {
            close_first: true,
            ..Behaviour::default()
        });
        let mut script = with(app, Patience::default());
        let ack = open(&mut script);
        assert!(script.answers()[0].0.flags.contains(FIN));
        script.send(101, ack + 1, ACK | FIN, TcpOptions::default(), &[]);
        assert_eq!(script.answers()[0].0.ack, TcpSeq(102));
        let left = |script: &Script| script.engine.report(script.now, 0).time_wait;
        script.wait(TIME_WAIT - MS);
        assert_eq!(left(&script), 1);
        if fin_again {
            script.send(101, ack + 1, ACK | FIN, TcpOptions::default(), &[]);
            assert_eq!(script.answers()[0].0.ack, TcpSeq(102));
            script.wait(TIME_WAIT - MS);
            assert_eq!(left(&script), 1);
        }
        script.wait(MS);
        assert_eq!(left(&script), 0);
    }
}

// RFC 9293 §3.8.1 for a SYN/ACK: it is repeated five times, after 1, 2, 4 ... s, and then the half-open
// connection is gone. A SYN that comes again is answered, but does not hold its place.
#[test]
fn syn_received() {
    let mut script = Script::new();
    script.send(100, TcpSeq(0), SYN, sack_permitted(), &[]);
    assert_eq!(script.answers().len(), 1);
    for seconds in [1, 2, 4, 8, 16] {
        let again = one_after(&mut script, Duration::from_secs(seconds));
        assert_eq!(again.flags, SYN | ACK);
        script.send(100, TcpSeq(0), SYN, sack_permitted(), &[]);
        assert_eq!(script.answers()[0].0, again);
    }
    assert_eq!(after(&mut script, Duration::from_secs(32) - MS), []);
    assert_eq!(script.engine.connections(), 1);
    script.wait(MS);
    assert_eq!(script.engine.connections(), 0);
    assert_eq!(script.engine.metrics.syn_ack_timeouts, 1);
}

// RFC 5961 §7: of segments that are not acceptable each kind is answered, but not again within half a
// second; text is, for its sender waits.
#[test]
fn answers_to_what_is_not_acceptable() {
    const INTERVAL: Duration = Duration::from_millis(500);
    let reset = |script: &mut Script, ack| {
        script.send(150, ack, TcpFlags::RST, TcpOptions::default(), &[]);
    };
    let syn = |script: &mut Script, ack| script.send(150, ack, SYN, sack_permitted(), &[]);
    let future = |script: &mut Script, ack: TcpSeq| {
        script.send(101, ack + 99_999, ACK, TcpOptions::default(), &[]);
    };
    let old = |script: &mut Script, ack| {
        script.send(100, ack, ACK, TcpOptions::default(), &[]);
    };
    type Send = fn(&mut Script, TcpSeq);
    let kinds: [Send; 4] = [reset, syn, future, old];
    for kind in kinds {
        let mut script = with(Discard, Patience::default());
        let ack = open(&mut script);
        let answered = |script: &mut Script| {
            kind(script, ack);
            let answers = script.answers();
            assert!(
                answers
                    .iter()
                    .all(|(h, _)| (h.seq, h.ack) == (ack, TcpSeq(101)))
            );
            answers.len()
        };
        assert_eq!(answered(&mut script), 1);
        script.wait(INTERVAL - MS);
        assert_eq!(answered(&mut script), 0);
        script.wait(MS);
        assert_eq!(answered(&mut script), 1);
        let metrics = &script.engine.metrics;
        assert_eq!(metrics.ack_skipped_challenge + metrics.ack_skipped_seq, 1);
        for _ in 0..2 {
            script.send(100, ack, ACK, TcpOptions::default(), &[7]);
            assert_eq!(script.answers().len(), 1);
        }
    }
}

// RFC 5961 §7: beside that the worker answers only so often in a second, whoever asks; and so it does
// where it knows of no connection.
#[test]
fn answers_of_one_worker() {
    let mut script = Script::configured(Box::new(Discard), Patience::default(), |config| {
        config.challenge_acks_per_second_max = 1;
        config.resets_per_second_max = 1;
    });
    let stray = |script: &mut Script| {
        script.send(7, TcpSeq(7), ACK, TcpOptions::default(), &[]);
        script.answers().len()
    };
    assert_eq!((stray(&mut script), stray(&mut script)), (1, 0));
    script.wait(Duration::from_secs(1) - MS);
    assert_eq!(stray(&mut script), 0);
    script.wait(MS);
    assert_eq!(stray(&mut script), 1);
    assert_eq!(script.engine.metrics.resets_skipped, 2);

    let ack = open(&mut script);
    let mut challenged = |wait: Duration| {
        script.wait(wait);
        script.send(150, ack, TcpFlags::RST, TcpOptions::default(), &[]);
        script.answers().len()
    };
    assert_eq!(challenged(Duration::ZERO), 1);
    // The subflow's own time is over, the worker's is not.
    assert_eq!(challenged(Duration::from_secs(1) - MS), 0);
    assert_eq!(challenged(Duration::from_millis(500)), 1);
    assert_eq!(script.engine.metrics.ack_skipped_challenge, 1);
}

//! TCP Fast Open (RFC 7413), and with Multipath TCP (RFC 8684 Appendix B).

use super::pen::{ISS, KEY, Pen, capable};
use super::script::{ACK, CLIENT, FIN, SYN, Script};
use crate::model::apps::{Behaviour, ECHO, TestApp};
use crate::model::client::{ClientConfig, Mode};
use crate::model::net::Side;
use crate::model::sim::{Family, Sim, SimConfig};
use crate::model::{assert_same, stream};
use mpx_datapath::app::CloseCause;
use mpx_datapath::engine::Patience;
use mpx_datapath::seq::TcpSeq;
use mpx_datapath::tcp::fast_open::{FastOpen, KEY_PERIOD, RESET_COUNTS_FOR};
use mpx_datapath::time::Duration;
use mpx_datapath::wire::mptcp::CapableContent;
use mpx_datapath::wire::tcp::{FastOpenCookie, TcpFlags, TcpHeader, TcpOptions};

fn config(app: Behaviour) -> SimConfig {
    SimConfig {
        fast_open: FastOpen::On,
        ..SimConfig::with(app)
    }
}

fn client(multipath: bool, cookie: FastOpenCookie) -> ClientConfig {
    ClientConfig {
        multipath,
        fast_open: Some(cookie),
        ..ClientConfig::new(Family::V4.server(0))
    }
}

/// A client's address for which `sim` has issued a cookie, which it takes from there again.
fn cookie(sim: &mut Sim, multipath: bool) -> FastOpenCookie {
    let c = sim.connect(client(multipath, FastOpenCookie::default()));
    sim.run(|sim| sim.clients[c].established());
    sim.clients[c].close_write();
    sim.run(|sim| sim.clients[c].closed());
    sim.clients[c].cookie.expect("the SYN/ACK brings one")
}

/// Opens with `cookie`, from the address that it is for, and sends 20,000 octets.
fn open_with(sim: &mut Sim, multipath: bool, cookie: FastOpenCookie) -> usize {
    let mut local = sim.clients[0].subflows[0].local;
    local.set_port(local.port() + sim.clients.len() as u16);
    let c = sim.connect_from(client(multipath, cookie), local);
    sim.clients[c].send(&stream(7, 20_000));
    c
}

fn end(mut sim: Sim, c: usize) {
    sim.clients[c].close_write();
    sim.run(|sim| sim.clients[c].closed());
    assert_same(sim.clients[c].received(), &stream(7, 20_000));
    sim.finish();
}

// RFC 7413 §4.2: the first connection asks for a cookie, the second one brings it with text, which is
// in the echo before the third ACK where it is plain TCP. RFC 8684 Appendix B: that text has no data
// sequence number, and the rest adds up, checksums included.
#[test]
fn the_second_connection_brings_text_in_its_syn() {
    for multipath in [false, true] {
        let mut sim = Sim::new(SimConfig {
            checksum: multipath,
            ..config(ECHO)
        });
        let cookie = cookie(&mut sim, multipath);
        assert_eq!(cookie.as_slice().len(), 6);
        let c = open_with(&mut sim, multipath, cookie);
        sim.run(|sim| sim.clients[c].established());
        assert_eq!(sim.clients[c].syn_text(), 1000);
        let mode = if multipath {
            Mode::Multipath
        } else {
            Mode::Tcp
        };
        assert_eq!(sim.clients[c].mode, mode);
        assert_eq!(sim.server.count(|m| m.fast_open_cookie_requests), 1);
        assert_eq!(sim.server.count(|m| m.fast_open_passive), 1);
        assert_eq!(sim.server.count(|m| m.fast_open_passive_fail), 0);
        end(sim, c);
    }
}

// A connection that began so is joined like any other.
#[test]
fn subflows_join_after_a_fast_open() {
    let mut sim = Sim::new(config(ECHO));
    let cookie = cookie(&mut sim, true);
    let c = open_with(&mut sim, true, cookie);
    sim.run(|sim| sim.clients[c].received().len() > 2000);
    let at = sim.join(c, 1);
    sim.run(|sim| sim.clients[c].subflows[at].open());
    sim.clients[c].reset(0);
    end(sim, c);
}

// RFC 7413 §4.2.2: a cookie of somebody else's opens nothing early: the text comes again after a
// handshake as ever, which brings the right cookie.
#[test]
fn a_cookie_that_is_not_good_is_answered_with_one_that_is() {
    for multipath in [false, true] {
        let mut sim = Sim::new(config(ECHO));
        let good = cookie(&mut sim, multipath);
        let forged = FastOpenCookie::new(&[9; 6]).expect("the length of one");
        let c = open_with(&mut sim, multipath, forged);
        sim.run(|sim| sim.clients[c].established());
        assert_eq!(sim.clients[c].syn_text(), 0);
        assert_eq!(sim.clients[c].cookie, Some(good));
        assert_eq!(sim.server.count(|m| m.fast_open_passive_fail), 1);
        assert_eq!(sim.server.count(|m| m.fast_open_passive), 0);
        end(sim, c);
    }
}

// RFC 7413 §4.1.2: cookies expire. One of the period before is taken and replaced, one of the period
// before that is not taken any more.
#[test]
fn a_cookie_is_replaced_before_it_expires() {
    for (age, taken, replaced) in [
        (Duration::ZERO, true, false),
        (KEY_PERIOD, true, true),
        (2 * KEY_PERIOD, false, true),
    ] {
        let mut pen = open_service(ECHO, FastOpen::On, 10);
        let cookie = pen.request();
        pen.script.wait(age);
        let syn_ack = pen.syn(5001, Some(cookie), b"hello");
        assert_eq!(syn_ack.ack == TcpSeq(ISS) + 6, taken, "{age:?}");
        assert_eq!(syn_ack.options.fast_open.is_some(), replaced, "{age:?}");
    }
}

/// A client of plain TCP by hand.
struct Hand {
    script: Script,
    app: TestApp,
}

fn open_service(behaviour: Behaviour, fast_open: FastOpen, pending_max: usize) -> Hand {
    let app = TestApp::new(behaviour);
    let script = Script::configured(Box::new(app.clone()), Patience::default(), |config| {
        config.services[0].fast_open = fast_open;
        config.fast_open_pending_max = pending_max;
    });
    Hand { script, app }
}

impl Hand {
    /// A SYN from this port; returns its SYN/ACK.
    fn syn(&mut self, port: u16, cookie: Option<FastOpenCookie>, text: &[u8]) -> TcpHeader {
        let options = TcpOptions {
            mss: Some(1460),
            fast_open: cookie,
            ..TcpOptions::default()
        };
        self.script.answers();
        self.script.client.set_port(port);
        self.script.send(ISS, TcpSeq(0), SYN, options, text);
        let mut frame = vec![0; 2048];
        let script = &mut self.script;
        let iface = mpx_datapath::port::IfaceId(0);
        let len = script.engine.poll_transmit(script.now, iface, &mut frame);
        let segment = mpx_datapath::wire::frame::Segment::parse(&frame[..len]);
        let syn_ack = segment.expect("a SYN/ACK").tcp;
        assert_eq!(syn_ack.flags, SYN | ACK);
        syn_ack
    }

    fn request(&mut self) -> FastOpenCookie {
        let syn_ack = self.syn(CLIENT.port(), Some(FastOpenCookie::default()), b"");
        assert_eq!(syn_ack.ack, TcpSeq(ISS) + 1);
        syn_ack.options.fast_open.expect("the cookie asked for")
    }

    fn send(&mut self, at: u32, ack: TcpSeq, flags: TcpFlags, text: &[u8]) {
        let seq = ISS.wrapping_add(at);
        self.script
            .send(seq, ack, flags, TcpOptions::default(), text);
    }
}

// RFC 7413 §4.2.2, steps 4 and 6: the app has the text at once, and its answer leaves in the initial
// window behind the SYN/ACK. The third ACK may acknowledge all of that or nothing, and what it does not
// acknowledge comes again.
#[test]
fn the_answer_leaves_before_the_third_ack() {
    for acked in [0, 1460, 4000] {
        let mut hand = open_service(
            Behaviour {
                send_bytes: 4000,
                ..Behaviour::default()
            },
            FastOpen::WithoutCookies,
            10,
        );
        let syn_ack = hand.syn(5001, None, b"hello");
        assert_eq!(syn_ack.ack, TcpSeq(ISS) + 6);
        assert_eq!(hand.app.record().received, b"hello");
        let sent: usize = hand.script.answers().iter().map(|(_, len)| len).sum();
        assert_eq!(sent, 4000);
        // Nothing but the SYN/ACK is repeated before the handshake is over: the client takes no more.
        hand.script.wait(Duration::from_millis(999));
        assert_eq!(hand.script.answers(), []);
        hand.script.wait(Duration::from_millis(1));
        let again = hand.script.answers();
        assert_eq!(again.len(), 1);
        assert_eq!(again[0].0.flags, SYN | ACK);
        assert_eq!(again[0].0.ack, syn_ack.ack);
        let first = syn_ack.seq + 1;
        hand.send(6, first + acked, ACK, b"");
        assert_eq!(hand.script.report().state, "ESTAB", "{acked}");
        hand.script.wait(Duration::from_secs(3));
        let repeated = hand.script.answers();
        let expected = (acked < 4000).then_some(first + acked);
        assert_eq!(repeated.first().map(|(tcp, _)| tcp.seq), expected);
    }
}

// RFC 9293 §3.10.4: the app closes before the handshake is over: its FIN waits for that, and then it
// leaves at once.
#[test]
fn a_fin_waits_for_the_third_ack() {
    let answer = Behaviour {
        send_bytes: 100,
        close_first: true,
        ..Behaviour::default()
    };
    let mut hand = open_service(answer, FastOpen::WithoutCookies, 10);
    let syn_ack = hand.syn(5001, None, b"hello");
    let early = hand.script.answers();
    assert_eq!(early.len(), 1);
    assert_eq!(early[0].1, 100);
    assert!(!early[0].0.flags.contains(FIN));
    hand.send(6, syn_ack.seq + 101, ACK, b"");
    let (fin, _) = hand.script.answers()[0];
    assert!(fin.flags.contains(FIN));
    assert_eq!(fin.seq, syn_ack.seq + 101);
}

// RFC 7413 §4.2.2: a good cookie opens the connection to the app even without text, and an ACK of what
// was never sent ends nothing and opens nothing.
#[test]
fn a_cookie_alone_opens_and_no_stray_acknowledgment_does() {
    let mut hand = open_service(ECHO, FastOpen::On, 10);
    let cookie = hand.request();
    let syn_ack = hand.syn(5001, Some(cookie), b"");
    assert_eq!(syn_ack.ack, TcpSeq(ISS) + 1);
    assert_eq!(hand.script.engine.metrics.passive_opens, 1);
    hand.send(1, syn_ack.seq + 2, ACK, b"");
    let (reset, _) = hand.script.answers()[0];
    assert!(reset.flags.contains(TcpFlags::RST));
    assert_eq!(hand.script.engine.metrics.passive_opens, 1);
    hand.send(1, syn_ack.seq + 1, ACK, b"hello");
    assert_eq!(hand.app.record().received, b"hello");
}

// RFC 7413 §4.2.2: a SYN that comes again with its text draws the same SYN/ACK, and the text counts
// once.
#[test]
fn a_syn_with_text_that_comes_again_counts_once() {
    let mut hand = open_service(ECHO, FastOpen::On, 10);
    let cookie = hand.request();
    let first = hand.syn(5001, Some(cookie), b"hello");
    assert_eq!(hand.script.answers().len(), 1, "the echo");
    hand.script.wait(Duration::from_millis(600));
    let again = hand.syn(5001, Some(cookie), b"hello");
    assert_eq!((again.seq, again.ack), (first.seq, first.ack));
    assert_eq!(hand.script.engine.metrics.fast_open_passive, 1);
    assert_eq!(hand.app.record().received, b"hello");
}

// RFC 7413 §4.2: up to the limit; above it a SYN is answered as if there were no Fast Open. What is
// reset counts for a minute (§5.1), what is acknowledged no more.
#[test]
fn so_many_may_be_open_early_and_no_more() {
    let mut hand = open_service(ECHO, FastOpen::On, 2);
    let cookie = hand.request();
    let opens = |hand: &mut Hand, port: u16| {
        let syn_ack = hand.syn(port, Some(cookie), b"hello");
        hand.script.answers();
        (syn_ack.ack == TcpSeq(ISS) + 6, syn_ack.seq + 1)
    };
    let (first, ack) = opens(&mut hand, 5001);
    let (second, second_ack) = opens(&mut hand, 5002);
    assert!(first && second);
    assert!(!opens(&mut hand, 5003).0);
    assert_eq!(hand.script.engine.metrics.fast_open_overflow, 1);
    hand.script.client.set_port(5001);
    hand.send(6, ack, ACK, b"");
    let (third, _) = opens(&mut hand, 5004);
    assert!(third, "the first one's handshake is over");
    hand.send(6, TcpSeq(0), TcpFlags::RST, b"");
    let records = hand.app.log.borrow().records.clone();
    let ends: Vec<_> = records
        .values()
        .filter_map(|record| record.closed)
        .collect();
    assert_eq!(ends, [CloseCause::PeerAborted]);
    assert!(!opens(&mut hand, 5005).0, "it was reset just now");
    hand.script
        .wait(RESET_COUNTS_FOR - Duration::from_millis(1));
    hand.script.client.set_port(5002);
    hand.send(6, second_ack, ACK, b"");
    assert!(opens(&mut hand, 5006).0);
    assert!(!opens(&mut hand, 5007).0, "one that was reset and one more");
    hand.script.wait(Duration::from_millis(1));
    assert!(opens(&mut hand, 5008).0);
}

// RFC 7413 §4.2: off unless it is turned on: neither cookies nor text are looked at.
#[test]
fn without_fast_open_a_cookie_is_ignored() {
    let mut hand = open_service(ECHO, FastOpen::Off, 10);
    let syn_ack = hand.syn(5001, Some(FastOpenCookie::default()), b"");
    assert_eq!(syn_ack.options.fast_open, None);
    let cookie = FastOpenCookie::new(&[1; 6]);
    let syn_ack = hand.syn(5002, cookie, b"hello");
    assert_eq!(syn_ack.ack, TcpSeq(ISS) + 1);
    assert_eq!(syn_ack.options.fast_open, None);
    assert_eq!(hand.script.engine.metrics.passive_opens, 0);
}

// RFC 7413 §7.3: where cookies are not asked for, text alone does it.
#[test]
fn without_cookies_text_is_enough() {
    for (fast_open, taken) in [(FastOpen::WithoutCookies, true), (FastOpen::On, false)] {
        let mut hand = open_service(ECHO, fast_open, 10);
        let syn_ack = hand.syn(5001, None, b"hello");
        assert_eq!(syn_ack.ack == TcpSeq(ISS) + 6, taken);
        assert_eq!(syn_ack.options.fast_open, None);
        let without_text = hand.syn(5002, None, b"");
        assert_eq!(without_text.ack, TcpSeq(ISS) + 1);
        assert_eq!(
            hand.script.engine.metrics.fast_open_passive,
            u64::from(taken)
        );
    }
}

// RFC 8684 Appendix B.3: with Multipath TCP the cookie fits into a SYN/ACK beside all other options;
// the SYN's text is the app's at once, the answer waits for the client's key; then the first octet
// behind the SYN's has the first data sequence number and relative number 1.
#[test]
fn text_of_a_multipath_syn_has_no_data_sequence_number() {
    for checksum in [false, true] {
        let mut pen = Pen::configured(ECHO, |config| {
            config.services[0].fast_open = FastOpen::WithoutCookies;
            config.services[0].checksum = checksum;
        });
        let mut options = TcpOptions {
            mss: Some(1460),
            ..TcpOptions::default()
        };
        options.mptcp.capable = Some(capable(CapableContent::Syn));
        pen.script.client.set_port(5001);
        pen.script.send(ISS, TcpSeq(0), SYN, options, b"hello");
        let (syn_ack, _) = pen.answer();
        assert_eq!(syn_ack.ack, TcpSeq(ISS) + 6);
        assert_eq!(pen.app.record().received, b"hello");
        let Some(CapableContent::SynAck { sender_key }) =
            syn_ack.options.mptcp.capable.map(|c| c.content)
        else {
            panic!("MP_CAPABLE is answered: {syn_ack:?}")
        };
        (pen.server_key, pen.ack) = (sender_key, syn_ack.seq + 1);
        pen.data_ack = pen.server_dsn(0);
        let mut options = TcpOptions::default();
        options.mptcp.capable = Some(capable(CapableContent::Ack {
            sender_key: KEY,
            receiver_key: sender_key,
        }));
        let behind = ISS.wrapping_add(6);
        pen.script.send(behind, pen.ack, ACK, options, b"");
        let (echo, len) = pen.answer();
        assert_eq!(len, 5);
        let dss = echo.options.mptcp.dss.expect("it has a DSS");
        let mapping = dss.mapping.expect("and a mapping");
        assert_eq!(mapping.dsn.low(), pen.server_dsn(0) as u32);
        assert_eq!(dss.data_ack.map(|a| a.low()), Some(Pen::dsn(0) as u32));
        pen.ack = echo.seq + len;
        pen.data_ack = pen.server_dsn(len);
        let mut options = pen.mapping(0, 0, b" world");
        let dss = options.mptcp.dss.as_mut();
        if let Some(mapping) = dss.and_then(|dss| dss.mapping.as_mut())
            && !checksum
        {
            mapping.checksum = None;
        }
        pen.script.send(behind, pen.ack, ACK, options, b" world");
        assert_eq!(pen.app.record().received, b"hello world");
    }
}

// A cookie, MP_CAPABLE and all that a client of today offers fill the options to the last octet.
#[test]
fn a_cookie_fits_beside_every_other_option() {
    let mut sim = Sim::new(config(ECHO));
    let cookie = cookie(&mut sim, true);
    assert!(!cookie.is_request());
    assert!(sim.clients[0].subflows[0].timestamps && sim.clients[0].subflows[0].sack);
    assert_eq!(sim.clients[0].mode, Mode::Multipath);
    sim.finish();
}

// RFC 7413 §4.2.1, §4.2.2: SYN, SYN/ACK and third ACK may be lost each: both ends repeat without text
// and cookies, and the stream is whole.
#[test]
fn every_frame_of_an_early_handshake_may_be_lost() {
    for multipath in [false, true] {
        // How long it goes well, which side then gets nothing, for how long, and whether the text of
        // the SYN has come.
        for (well_ms, side, cut_ms, taken) in [
            (0, Side::Server, 8, false),
            (6, Side::Client, 8, true),
            (6, Side::Client, 1500, true),
            (11, Side::Server, 20, true),
        ] {
            let mut sim = Sim::new(config(ECHO));
            let cookie = cookie(&mut sim, multipath);
            let c = open_with(&mut sim, multipath, cookie);
            sim.run_for(Duration::from_millis(well_ms));
            sim.net.paths[0].cut_towards = Some(side);
            sim.run_for(Duration::from_millis(cut_ms));
            sim.net.paths[0].cut_towards = None;
            sim.run(|sim| sim.clients[c].established());
            let octets = if taken { 1000 } else { 0 };
            assert_eq!(sim.clients[c].syn_text(), octets, "{side:?} {well_ms}");
            end(sim, c);
        }
    }
}

// RFC 7413 §4.2.1: the cookie comes with the first SYN/ACK; copies go without.
#[test]
fn copies_of_a_syn_ack_bring_no_cookie() {
    let mut hand = open_service(ECHO, FastOpen::On, 10);
    hand.request();
    hand.script.wait(Duration::from_secs(1));
    let (again, _) = hand.script.answers()[0];
    assert_eq!(again.flags, SYN | ACK);
    assert_eq!(again.options.fast_open, None);
}

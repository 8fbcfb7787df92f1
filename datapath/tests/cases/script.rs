//! Packet scripts: frames made by hand, answers looked at one by one.

use mpx_datapath::app::App;
use mpx_datapath::app::builtin::{Discard, Source};
use mpx_datapath::engine::{
    AddressPolicy, Closing, Engine, EngineConfig, InterfaceConfig, JoinPolicy, Patience,
    ServiceConfig, SubflowReport, Versions,
};
use mpx_datapath::port::IfaceId;
use mpx_datapath::rand::{ChaChaEntropy, Entropy};
use mpx_datapath::seq::TcpSeq;
use mpx_datapath::steering::{Arrival, Verdict};
use mpx_datapath::tcp::congestion::Algorithm;
use mpx_datapath::tcp::fast_open::FastOpen;
use mpx_datapath::time::{Duration, Instant};
use mpx_datapath::wire::frame::{self, Link, Segment};
use mpx_datapath::wire::tcp::{TcpFlags, TcpHeader, TcpOptions, Timestamps};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

const IFACE: IfaceId = IfaceId(0);
pub const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 80);
pub const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 5000);

/// An engine with one service, which sends without end if nothing else is said, and a peer that is
/// a pen.
pub struct Script {
    pub engine: Engine,
    pub now: Instant,
    /// Who sends, and to where.
    pub client: SocketAddr,
    pub server: SocketAddr,
    /// The urgent pointer of the client's segments.
    pub urgent: Option<u16>,
    /// In the client's segments.
    pub window: u16,
    /// Where they come from.
    pub link: Link,
    /// Another worker passes them on.
    pub forwarded: bool,
}

impl Script {
    pub fn new() -> Script {
        Script::with(Box::new(Source::default()))
    }

    pub fn with(app: Box<dyn App>) -> Script {
        Script::with_patience(app, Patience::default())
    }

    pub fn with_patience(app: Box<dyn App>, patience: Patience) -> Script {
        Script::configured(app, patience, |_| {})
    }

    pub fn configured(
        app: Box<dyn App>,
        patience: Patience,
        change: impl FnOnce(&mut EngineConfig),
    ) -> Script {
        let entropy = Box::new(ChaChaEntropy::deterministic(1));
        Script::drawing(app, patience, entropy, change)
    }

    /// With numbers of the caller's.
    pub fn drawing(
        app: Box<dyn App>,
        patience: Patience,
        entropy: Box<dyn Entropy>,
        change: impl FnOnce(&mut EngineConfig),
    ) -> Script {
        let service = ServiceConfig {
            name: "script".into(),
            listen: vec![SERVER],
            versions: Versions::default(),
            checksum: false,
            joins: JoinPolicy::AnyPort,
            addresses: AddressPolicy::default(),
            congestion: Algorithm::default(),
            ecn: true,
            fast_open: FastOpen::Off,
            patience,
            closing: Closing::default(),
        };
        let mut config = EngineConfig::new(vec![InterfaceConfig { mtu: 1500 }], vec![service]);
        change(&mut config);
        let now = Instant::from_millis(1000);
        Script {
            engine: Engine::new(config, vec![app], now, entropy),
            client: CLIENT,
            server: SERVER,
            urgent: None,
            now,
            window: 60_000,
            forwarded: false,
            link: Link {
                src: [2; 6],
                dst: [4; 6],
                ..Link::default()
            },
        }
    }

    pub fn send(
        &mut self,
        seq: u32,
        ack: TcpSeq,
        flags: TcpFlags,
        options: TcpOptions,
        text: &[u8],
    ) {
        self.judge(seq, ack, flags, options, text);
    }

    /// The same, and what the engine says of it.
    pub fn judge(
        &mut self,
        seq: u32,
        ack: TcpSeq,
        flags: TcpFlags,
        options: TcpOptions,
        text: &[u8],
    ) -> Verdict {
        let header = TcpHeader {
            src_port: self.client.port(),
            dst_port: self.server.port(),
            seq: TcpSeq(seq),
            ack,
            flags: match self.urgent {
                Some(_) => flags | TcpFlags::URG,
                None => flags,
            },
            window: self.window,
            urgent: self.urgent.unwrap_or(0),
            options,
        };
        let link = self.link;
        let mut frame = vec![0; 2048];
        let at = frame::header_len(&link, &self.client.ip(), &options);
        let sum = mpx_datapath::wire::checksum::copy_and_sum(&mut frame[at..at + text.len()], text);
        let len = frame::emit(
            &mut frame,
            &link,
            self.client.ip(),
            self.server.ip(),
            0,
            &header,
            text.len(),
            sum,
        );
        let arrival = Arrival {
            forwarded: self.forwarded,
            ..IFACE.into()
        };
        self.engine.on_frame(self.now, arrival, &frame[..len])
    }

    pub fn receive(&mut self, frame: &[u8]) {
        self.engine.on_frame(self.now, IFACE, frame);
    }

    /// The only subflow.
    pub fn report(&self) -> SubflowReport {
        self.engine.report(self.now, 1).conns[0].subflows[0].clone()
    }

    pub fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        self.engine.on_timeout(self.now);
    }

    /// Where the next frame of the server goes.
    pub fn answer_link(&mut self) -> Link {
        let mut frame = vec![0; 2048];
        let len = self.engine.poll_transmit(self.now, IFACE, &mut frame);
        let segment = Segment::parse(&frame[..len]);
        segment.expect("the server sends something").link
    }

    /// What the server sends now: headers, and lengths of text.
    pub fn answers(&mut self) -> Vec<(TcpHeader, usize)> {
        let mut answers = Vec::new();
        let mut frame = vec![0; 2048];
        loop {
            let len = self.engine.poll_transmit(self.now, IFACE, &mut frame);
            if len == 0 {
                return answers;
            }
            let segment = Segment::parse(&frame[..len]).expect("a valid segment");
            answers.push((segment.tcp, segment.payload.len()));
        }
    }
}

pub const SYN: TcpFlags = TcpFlags::SYN;
pub const ACK: TcpFlags = TcpFlags::ACK;
pub const FIN: TcpFlags = TcpFlags::FIN;

pub fn sack_permitted() -> TcpOptions {
    TcpOptions {
        mss: Some(1460),
        sack_permitted: true,
        ..TcpOptions::default()
    }
}

// RFC 5681 §4.2, RFC 2018 §4: a hole in what the client sends is told at once by an ACK without
// text, although there is text to send.
#[test]
fn a_hole_is_told_before_text_goes_on() {
    let mut script = Script::new();
    script.send(100, TcpSeq(0), SYN, sack_permitted(), &[]);
    let (syn_ack, _) = script.answers()[0];
    let ack = syn_ack.seq + 1;
    script.send(101, ack, ACK, TcpOptions::default(), &[]);
    let sent: usize = script.answers().iter().map(|(_, len)| len).sum();
    assert_eq!(sent, 10 * 1460, "RFC 6928: ten segments");
    // The client has got it all and sends its third segment first.
    script.send(101 + 200, ack + sent, ACK, TcpOptions::default(), &[7; 100]);
    let answers = script.answers();
    let (first, len) = answers[0];
    assert_eq!((first.ack, len), (TcpSeq(101), 0));
    assert_eq!(first.options.sack.as_slice(), [(TcpSeq(301), TcpSeq(401))]);
    assert!(answers[1..].iter().all(|(_, len)| *len > 0) && answers.len() > 10);
}

// A receive buffer beyond what the unscaled window of the SYN/ACK can tell (RFC 7323 §2.2) is no news
// for a segment of its own: the client would get one more per connection.
#[test]
fn no_window_update_follows_the_handshake() {
    let mut script = Script::with(Box::new(Discard));
    let scaled = TcpOptions {
        window_scale: Some(7),
        ..sack_permitted()
    };
    script.send(100, TcpSeq(0), SYN, scaled, &[]);
    let (syn_ack, _) = script.answers()[0];
    assert_eq!(syn_ack.window, u16::MAX);
    script.send(101, syn_ack.seq + 1, ACK, TcpOptions::default(), &[]);
    assert_eq!(script.answers(), []);
    // The first acknowledgment tells it.
    for segment in 0..2u32 {
        let seq = 101 + 1000 * segment;
        script.send(seq, syn_ack.seq + 1, ACK, TcpOptions::default(), &[7; 1000]);
    }
    let answers = script.answers();
    let [(ack, 0)] = answers[..] else {
        panic!("one acknowledgment, not {answers:?}")
    };
    let shift = syn_ack.options.window_scale.expect("scaling was agreed");
    assert!(usize::from(ack.window) << shift > usize::from(u16::MAX));
}

// RFC 5961 §5 with RFC 7323 §5.3: a forged segment in the window, whose acknowledgment is for nothing
// that was sent, is answered (RFC 9293 §3.10.7.4) and brings no TSval that PAWS would go by.
#[test]
fn an_acknowledgment_of_the_future_brings_no_timestamp() {
    let mut script = Script::with(Box::new(Discard));
    let stamped = |tsval: u32| TcpOptions {
        timestamps: Some(Timestamps { tsval, tsecr: 0 }),
        ..TcpOptions::default()
    };
    script.send(100, TcpSeq(0), SYN, stamped(1000), &[]);
    let ack = script.answers()[0].0.seq + 1;
    script.send(101, ack, ACK, stamped(1001), &[]);
    script.send(101, ack + 9999, ACK, stamped(200_000), &[7]);
    let answers = script.answers();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].0.ack, TcpSeq(101));
    script.send(101, ack, ACK | TcpFlags::FIN, stamped(1002), &[7; 10]);
    let answers = script.answers();
    assert_eq!(answers[0].0.ack, TcpSeq(112));
    assert_eq!(script.engine.metrics.paws_rejected, 0);
}

// RFC 5681 §3.2: the first two duplicate ACKs let a new segment go each (RFC 3042), the third sends the
// first one again at once, although what else is in flight more than fills half of the window.
#[test]
fn the_third_duplicate_acknowledgment_sends_again_at_once() {
    let mut script = Script::new();
    let plain = TcpOptions {
        mss: Some(1460),
        ..TcpOptions::default()
    };
    script.send(100, TcpSeq(0), SYN, plain, &[]);
    let ack = script.answers()[0].0.seq + 1;
    script.send(101, ack, ACK, TcpOptions::default(), &[]);
    let first = script.answers();
    assert_eq!(first.len(), 10);
    let new = |n: usize| ack + (10 + n) * first[0].1;
    for expected in [new(0), new(1), ack] {
        script.wait(Duration::from_millis(1));
        script.send(101, ack, ACK, TcpOptions::default(), &[]);
        let answers = script.answers();
        let sent: Vec<_> = answers.iter().map(|(header, _)| header.seq).collect();
        assert_eq!(sent, [expected]);
    }
}

// RFC 7323 §2.2, §2.3: a shift beyond 14 counts as 14, and none at all for the windows of SYNs.
#[test]
fn a_shift_beyond_fourteen_counts_as_fourteen() {
    let mut script = Script::new();
    let options = TcpOptions {
        window_scale: Some(15),
        ..sack_permitted()
    };
    // Scaled, this alone would be a gigabyte; as it stands it is what a SYN may offer.
    script.send(100, TcpSeq(0), SYN, options, &[]);
    let mut ack = script.answers()[0].0.seq + 1;
    script.window = 1;
    let mut sent = 0;
    // The first flight is the congestion window's, the second the peer's.
    for _ in 0..2 {
        script.wait(Duration::from_millis(100));
        script.send(101, ack, ACK, TcpOptions::default(), &[]);
        sent = 0;
        for _ in 0..90 {
            sent += script.answers().iter().map(|(_, len)| len).sum::<usize>();
            script.wait(Duration::from_millis(1));
        }
        ack += sent;
    }
    assert!((16_384 - 1460..=16_384).contains(&sent), "{sent}");
}

//! The state machine (RFC 9293 §3.10.7.4 with RFC 5961): every event in every state, over plain TCP
//! and over Multipath TCP with a single subflow.

use super::script::{ACK, FIN, SYN, Script};
use crate::model::apps::{Behaviour, TestApp};
use crate::model::token_and_idsn;
use mpx_datapath::app::App;
use mpx_datapath::engine::{Closing, Conn, Patience};
use mpx_datapath::seq::TcpSeq;
use mpx_datapath::time::Duration;
use mpx_datapath::wire::mptcp::{CapableContent, DsnWidth, Dss, DssMapping, MpCapable};
use mpx_datapath::wire::tcp::{TcpFlags, TcpOptions, Timestamps};

const RST: TcpFlags = TcpFlags::RST;
const NO_FLAGS: TcpFlags = TcpFlags(0);
/// The client's SYN.
const ISS: u32 = u32::MAX - 5;
const KEY: u64 = 7;
const TEXT: &[u8] = &[7; 10];
/// Beyond every window.
const FAR: i64 = 10_000_000;

/// As the table's columns; the names are those of `ss`.
const STATES: [&str; 8] = [
    "SYN-RECV",
    "ESTAB",
    "FIN-WAIT-1",
    "FIN-WAIT-2",
    "CLOSE-WAIT",
    "CLOSING",
    "LAST-ACK",
    "TIME-WAIT",
];

/// Reads all that comes, and ends its own stream when it is told to.
struct Closes {
    first: bool,
    after_client: bool,
}

impl App for Closes {
    fn on_open(&mut self, conn: &mut Conn<'_>) {
        if self.first {
            conn.close_write();
        }
    }

    fn on_readable(&mut self, conn: &mut Conn<'_>) {
        conn.consume(conn.peek().len());
        if self.after_client && conn.peer_finished() {
            conn.close_write();
        }
    }
}

/// A client that is a pen and knows where both sides are.
struct Peer {
    script: Script,
    multipath: bool,
    /// The client's next sequence number.
    seq: TcpSeq,
    /// The server's next, its FIN not counted.
    ack: TcpSeq,
    /// The server's FIN has left.
    fin: bool,
    tsval: u32,
    server_key: u64,
    /// Of the server's stream, and of ours, acknowledged and sent: none, or the DATA_FIN.
    data_fins: (bool, bool),
}

impl Peer {
    /// Brings a connection into a state.
    fn in_state(state: &str, multipath: bool) -> Peer {
        let app = Closes {
            first: !["SYN-RECV", "ESTAB", "CLOSE-WAIT", "LAST-ACK"].contains(&state),
            after_client: state == "LAST-ACK",
        };
        let mut peer = Peer {
            script: Script::with_patience(Box::new(app), Patience::default()),
            multipath,
            seq: TcpSeq(ISS),
            ack: TcpSeq(0),
            fin: false,
            tsval: 1000,
            server_key: 0,
            data_fins: (false, false),
        };
        peer.handshake(state == "SYN-RECV");
        match state {
            "SYN-RECV" | "ESTAB" => {}
            "CLOSE-WAIT" => peer.finish(false),
            "LAST-ACK" => {
                peer.end_data();
                peer.finish(false);
                if !peer.fin {
                    peer.take_answers();
                }
            }
            _ => {
                peer.end_data();
                peer.script.wait(Closing::default().hold_we_first);
                peer.take_answers();
                assert!(peer.fin, "its FIN left");
                if state != "FIN-WAIT-1" && state != "CLOSING" {
                    peer.send(0, ACK, true, &[]);
                }
                if state == "CLOSING" || state == "TIME-WAIT" {
                    peer.finish(state == "TIME-WAIT");
                }
            }
        }
        peer.take_answers();
        assert_eq!(peer.state(), state, "multipath: {multipath}");
        let report = peer.script.engine.report(peer.script.now, 1);
        if let Some(connection) = report.conns.first() {
            let mode = match (multipath, state) {
                (false, _) => "tcp",
                (true, "SYN-RECV") => "pending",
                (true, _) => "mptcp",
            };
            assert_eq!(connection.mode, mode);
        }
        peer
    }

    fn handshake(&mut self, half: bool) {
        let capable = |content| MpCapable {
            version: 1,
            flags: MpCapable::FLAG_SHA256,
            content,
        };
        let mut options = self.options();
        if self.multipath {
            options.mptcp.capable = Some(capable(CapableContent::Syn));
        }
        options.sack_permitted = true;
        self.script.send(ISS, TcpSeq(0), SYN, options, &[]);
        let (syn_ack, _) = self.script.answers()[0];
        (self.seq, self.ack) = (self.seq + 1, syn_ack.seq + 1);
        if let Some(CapableContent::SynAck { sender_key }) =
            syn_ack.options.mptcp.capable.map(|c| c.content)
        {
            self.server_key = sender_key;
        }
        if half {
            // What comes next has no options: a fallback, and the same as in plain TCP.
            self.multipath = false;
            return;
        }
        let mut options = self.options();
        options.mptcp = Default::default();
        if self.multipath {
            options.mptcp.capable = Some(capable(CapableContent::Ack {
                sender_key: KEY,
                receiver_key: self.server_key,
            }));
        }
        self.script.send(self.seq.0, self.ack, ACK, options, &[]);
        self.take_answers();
        self.send(0, ACK, false, &[]);
    }

    /// Both streams end at data level, where there is one; the subflow's FINs are still to come.
    fn end_data(&mut self) {
        if !self.multipath {
            return;
        }
        self.take_answers();
        self.data_fins.1 = true;
        let mut options = self.options();
        if let Some(dss) = &mut options.mptcp.dss {
            dss.data_fin = true;
            dss.mapping = Some(DssMapping {
                dsn: DsnWidth::Eight(token_and_idsn(KEY).1.wrapping_add(1)),
                subflow_seq: 0,
                len: 1,
                checksum: None,
            });
        }
        self.script.send(self.seq.0, self.ack, ACK, options, &[]);
        self.take_answers();
        self.send(0, ACK, false, &[]);
    }

    /// The client's FIN; `acks_fin`: it acknowledges the server's.
    fn finish(&mut self, acks_fin: bool) {
        self.send(0, ACK | FIN, acks_fin, &[]);
        self.seq += 1;
        self.take_answers();
    }

    /// Looks for FINs in what the server sends.
    fn take_answers(&mut self) {
        for (header, _) in self.script.answers() {
            self.fin |= header.flags.contains(FIN);
            let dss = header.options.mptcp.dss;
            self.data_fins.0 |= dss.is_some_and(|dss| dss.data_fin);
        }
    }

    /// Timestamps, and where it goes on a DSS with the DATA_ACK.
    fn options(&self) -> TcpOptions {
        let mut options = TcpOptions {
            timestamps: Some(Timestamps {
                tsval: self.tsval,
                tsecr: 0,
            }),
            ..TcpOptions::default()
        };
        if self.multipath && self.server_key != 0 {
            let idsn = token_and_idsn(self.server_key).1;
            let data_ack = idsn.wrapping_add(1 + u64::from(self.data_fins.0));
            options.mptcp.dss = Some(Dss {
                data_ack: Some(DsnWidth::Eight(data_ack)),
                ..Dss::default()
            });
        }
        options
    }

    /// A segment `at` octets after the client's next one.
    fn send(&mut self, at: i64, flags: TcpFlags, acks_fin: bool, text: &[u8]) {
        let seq = self.seq.0.wrapping_add(at as u32);
        let ack = self.ack + usize::from(acks_fin && self.fin);
        let options = self.options();
        self.script.send(seq, ack, flags, options, text);
    }

    fn state(&self) -> &'static str {
        let report = self.script.engine.report(self.script.now, 1);
        match report.conns.first().and_then(|c| c.subflows.first()) {
            Some(subflow) => subflow.state,
            None if report.time_wait == 1 => "TIME-WAIT",
            None => "-",
        }
    }

    /// What came back: nothing, an ACK that is so many octets further than before, a SYN/ACK, a RST.
    fn reply(&mut self) -> String {
        let mut answers = self.script.answers();
        // TIME-WAIT answers two segments of a burst alike.
        answers.dedup();
        let [(header, 0)] = answers[..] else {
            assert_eq!(answers, [], "one answer at most");
            return "-".into();
        };
        let nxt = self.ack + usize::from(self.fin);
        if header.flags == RST {
            return "R".into();
        }
        if header.flags == SYN | ACK {
            return "S".into();
        }
        assert_eq!((header.flags, header.seq), (ACK, nxt), "{header:?}");
        format!("A{}", header.ack.distance(self.seq))
    }
}

struct Event {
    name: &'static str,
    happen: fn(&mut Peer),
    /// In each of [`STATES`] the reply and, where it is another, the new state.
    expected: [&'static str; 8],
}

/// The same in each state but SYN-RECEIVED and TIME-WAIT.
const fn synchronized(
    half_open: &'static str,
    all: &'static str,
    time_wait: &'static str,
) -> [&'static str; 8] {
    [half_open, all, all, all, all, all, all, time_wait]
}

const EVENTS: &[Event] = &[
    // RFC 5961 §3.2; in TIME-WAIT it is ignored (RFC 1337).
    Event {
        name: "RST at the next number",
        happen: |p| p.send(0, RST, false, &[]),
        expected: synchronized("- -", "- -", "-"),
    },
    Event {
        name: "RST in the window",
        happen: |p| p.send(1, RST, false, &[]),
        expected: synchronized("S", "A0", "-"),
    },
    Event {
        name: "RST before the window",
        happen: |p| p.send(-1, RST | ACK, false, &[]),
        expected: synchronized("-", "-", "-"),
    },
    Event {
        name: "RST beyond the window",
        happen: |p| p.send(FAR, RST | ACK, false, &[]),
        expected: synchronized("-", "-", "-"),
    },
    // RFC 5961 §4.2: whatever its number, and its timestamp.
    Event {
        name: "the SYN again",
        happen: |p| {
            let options = TcpOptions {
                timestamps: Some(Timestamps {
                    tsval: 1000,
                    tsecr: 0,
                }),
                ..TcpOptions::default()
            };
            p.script.send(ISS, TcpSeq(0), SYN, options, &[]);
        },
        expected: synchronized("S", "A0", "A0"),
    },
    Event {
        name: "a SYN in the window, of old time",
        happen: |p| {
            p.tsval -= 1;
            p.send(5, SYN, false, &[]);
        },
        expected: synchronized("S", "A0", "A0"),
    },
    Event {
        name: "a SYN beyond the window, without timestamps",
        happen: |p| {
            let seq = p.seq + FAR as usize;
            let options = TcpOptions::default();
            p.script.send(seq.0, TcpSeq(0), SYN, options, &[]);
        },
        expected: synchronized("S", "A0", "S SYN-RECV"),
    },
    Event {
        name: "SYN and ACK",
        happen: |p| p.send(0, SYN | ACK, false, &[]),
        expected: synchronized("S", "A0", "A0"),
    },
    // RFC 9293 §3.10.7.4, fifth check; RFC 5961 §5.2.
    Event {
        name: "text without ACK",
        happen: |p| p.send(0, NO_FLAGS, false, TEXT),
        expected: synchronized("-", "-", "-"),
    },
    Event {
        name: "ACK of what was never sent",
        happen: |p| {
            p.ack += 2;
            p.send(0, ACK, false, &[]);
            p.ack = p.ack - 2;
        },
        expected: synchronized("R", "A0", "-"),
    },
    Event {
        name: "text with an ACK of what was never sent",
        happen: |p| {
            p.ack += 2;
            p.send(0, ACK, false, TEXT);
            p.ack = p.ack - 2;
        },
        expected: synchronized("R", "A0", "A0"),
    },
    Event {
        name: "text with an ACK older than any window",
        happen: |p| {
            p.ack = p.ack - 200_000;
            p.send(0, ACK, false, TEXT);
            p.ack += 200_000;
        },
        expected: synchronized("R", "A0", "A0"),
    },
    Event {
        name: "ACK of all but the FIN",
        happen: |p| p.send(0, ACK, false, &[]),
        expected: synchronized("- ESTAB", "-", "-"),
    },
    Event {
        name: "ACK of the FIN",
        happen: |p| p.send(0, ACK, true, &[]),
        expected: [
            "- ESTAB",
            "-",
            "- FIN-WAIT-2",
            "-",
            "-",
            "- TIME-WAIT",
            "- -",
            "-",
        ],
    },
    // Seventh check. In order it waits for the delayed ACK; behind a FIN nothing is taken in.
    Event {
        name: "text in order",
        happen: |p| p.send(0, ACK, false, TEXT),
        expected: ["- ESTAB", "-", "-", "-", "A0", "A0", "A0", "A0"],
    },
    Event {
        name: "text out of order",
        happen: |p| p.send(5, ACK, false, TEXT),
        expected: ["A0 ESTAB", "A0", "A0", "A0", "A0", "A0", "A0", "A0"],
    },
    Event {
        name: "text that came before",
        happen: |p| p.send(-10, ACK, false, TEXT),
        expected: synchronized("S", "A0", "A0"),
    },
    Event {
        name: "text beyond the window",
        happen: |p| p.send(FAR, ACK, false, TEXT),
        expected: synchronized("S", "A0", "A0"),
    },
    // RFC 7323 §5.3 R1, §3.2.
    Event {
        name: "text of old time",
        happen: |p| {
            p.tsval -= 1;
            p.send(0, ACK, false, TEXT);
        },
        expected: synchronized("S", "A0", "A0"),
    },
    Event {
        name: "text without a timestamp",
        happen: |p| {
            let (seq, ack) = (p.seq.0, p.ack);
            p.script.send(seq, ack, ACK, TcpOptions::default(), TEXT);
        },
        expected: synchronized("-", "-", "-"),
    },
    // Eighth check.
    Event {
        name: "FIN",
        happen: |p| p.send(0, ACK | FIN, false, &[]),
        expected: [
            "A1 CLOSE-WAIT",
            "A1 CLOSE-WAIT",
            "A1 CLOSING",
            "A1 TIME-WAIT",
            "-",
            "-",
            "-",
            "A0",
        ],
    },
    Event {
        name: "FIN that acknowledges the FIN",
        happen: |p| p.send(0, ACK | FIN, true, &[]),
        expected: [
            "A1 CLOSE-WAIT",
            "A1 CLOSE-WAIT",
            "A1 TIME-WAIT",
            "A1 TIME-WAIT",
            "-",
            "- TIME-WAIT",
            "- -",
            "A0",
        ],
    },
    Event {
        name: "FIN, and in the same burst the ACK of the FIN",
        happen: |p| {
            p.send(0, ACK | FIN, false, &[]);
            p.seq += 1;
            p.send(0, ACK, true, &[]);
            p.seq = p.seq - 1;
        },
        expected: [
            "A1 CLOSE-WAIT",
            "A1 CLOSE-WAIT",
            "A1 TIME-WAIT",
            "A1 TIME-WAIT",
            "-",
            "- TIME-WAIT",
            "- -",
            "A0",
        ],
    },
    Event {
        name: "FIN with text",
        happen: |p| p.send(0, ACK | FIN, false, TEXT),
        expected: [
            "A11 CLOSE-WAIT",
            "A11 CLOSE-WAIT",
            "A11 CLOSING",
            "A11 TIME-WAIT",
            "A0",
            "A0",
            "A0",
            "A0",
        ],
    },
    Event {
        name: "FIN out of order, and then the text before it",
        happen: |p| {
            p.send(10, ACK | FIN, false, &[]);
            p.send(0, ACK, false, TEXT);
        },
        expected: [
            "A11 CLOSE-WAIT",
            "A11 CLOSE-WAIT",
            "A11 CLOSING",
            "A11 TIME-WAIT",
            "A0",
            "A0",
            "A0",
            "A0",
        ],
    },
    Event {
        name: "FIN out of order",
        happen: |p| p.send(10, ACK | FIN, false, &[]),
        expected: ["A0 ESTAB", "A0", "A0", "A0", "-", "-", "-", "A0"],
    },
    Event {
        name: "what comes before the next number, FIN and all",
        happen: |p| p.send(-1, ACK | FIN, false, &[]),
        expected: synchronized("S", "A0", "A0"),
    },
    Event {
        name: "a probe of the window or of whether we are here",
        happen: |p| p.send(-1, ACK, false, &[]),
        expected: synchronized("S", "A0", "A0"),
    },
];

/// What a connection that waits for the keys (RFC 8684 §3.1) does otherwise than TCP in SYN-RECV: a
/// segment out of order says nothing of them and has to come again.
const WITHOUT_KEYS: [(&str, &str); 3] = [
    ("text out of order", "-"),
    ("FIN out of order", "-"),
    ("FIN out of order, and then the text before it", "- ESTAB"),
];

#[test]
fn every_event_in_every_state() {
    let mut wrong = Vec::new();
    for multipath in [false, true] {
        for (at, state) in STATES.into_iter().enumerate() {
            for event in EVENTS {
                let mut peer = Peer::in_state(state, multipath);
                (event.happen)(&mut peer);
                let (reply, after) = (peer.reply(), peer.state());
                let without_keys = WITHOUT_KEYS
                    .into_iter()
                    .find(|(name, _)| multipath && state == "SYN-RECV" && *name == event.name);
                let expected = without_keys.map_or(event.expected[at], |(_, expected)| expected);
                let (expected_reply, expected_after) =
                    expected.split_once(' ').unwrap_or((expected, state));
                if (reply.as_str(), after) != (expected_reply, expected_after) {
                    wrong.push(format!(
                        "{} in {state}, multipath {multipath}: {reply} {after}, not {expected}",
                        event.name
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

// RFC 9293 §3.10.4: the FIN goes with the last octets, again as well, unless the window ends before it.
#[test]
fn a_fin_of_plain_tcp_is_no_segment_of_its_own() {
    const LEN: usize = 1000;
    let alone = [(LEN, false), (0, true)];
    for (window, expected) in [(LEN + 1, &[(LEN, true)][..]), (LEN, &alone)] {
        let app = TestApp::new(Behaviour {
            send_bytes: LEN,
            close_first: true,
            ..Behaviour::default()
        });
        let mut script = Script::with(Box::new(app));
        script.window = window as u16;
        let segments = |script: &mut Script| -> Vec<_> {
            let answers = script.answers();
            let parts = answers.iter().map(|(h, len)| (*len, h.flags.contains(FIN)));
            parts.collect()
        };
        let none = TcpOptions::default();
        script.send(ISS, TcpSeq(0), SYN, stamped(false, 0), &[]);
        let (seq, ack) = (ISS.wrapping_add(1), script.answers()[0].0.seq + 1);
        script.send(seq, ack, ACK, none, &[]);
        assert_eq!(segments(&mut script), expected);
        script.wait(Duration::from_secs(1));
        assert_eq!(segments(&mut script)[0], expected[0]);
        // Only the FIN is missing.
        script.send(seq, ack + LEN, ACK, none, &[]);
        segments(&mut script);
        script.wait(Duration::from_secs(10));
        assert_eq!(segments(&mut script)[0], (0, true));
        script.send(seq, ack + LEN + 1, ACK, none, &[]);
        assert_eq!(script.report().state, "FIN-WAIT-2");
    }
}

/// A connection in TIME-WAIT after the server has sent so many octets, faster than its clock of
/// sequence numbers goes; returns the next number of the client and of the server.
fn time_wait(timestamps: bool, send_bytes: usize) -> (Script, TcpSeq, TcpSeq) {
    let app = TestApp::new(Behaviour {
        send_bytes,
        close_first: true,
        ..Behaviour::default()
    });
    let mut script = Script::with_patience(Box::new(app), Patience::default());
    let options = stamped(timestamps, TSVAL);
    script.send(ISS, TcpSeq(0), SYN, options, &[]);
    let mut ack = script.answers()[0].0.seq + 1;
    let seq = TcpSeq(ISS) + 1;
    script.send(seq.0, ack, ACK, options, &[]);
    let mut fin = false;
    while !fin {
        for (header, len) in script.answers() {
            fin |= header.flags.contains(FIN);
            ack = header.seq + len + usize::from(header.flags.contains(FIN));
        }
        script.send(seq.0, ack, ACK, options, &[]);
        script.wait(Duration::from_millis(1));
    }
    script.send(seq.0, ack, ACK | FIN, options, &[]);
    assert_eq!(script.answers()[0].0.ack, seq + 1);
    assert_eq!(script.engine.report(script.now, 0).time_wait, 1);
    (script, seq + 1, ack)
}

const TSVAL: u32 = 1000;

fn stamped(timestamps: bool, tsval: u32) -> TcpOptions {
    TcpOptions {
        mss: Some(1460),
        timestamps: timestamps.then_some(Timestamps { tsval, tsecr: 0 }),
        ..TcpOptions::default()
    }
}

// RFC 6191 §2, case by case; RFC 9293 §3.6.1, MAY-2: the new connection's numbers are above all that the
// one before has used.
#[test]
fn time_wait_yields_to_a_newer_syn() {
    const OLDER: i64 = -1;
    // Timestamps before; in the SYN, this much later; its number, from the one after the FIN on.
    let cases = [
        (true, Some(1), -1000, true),
        (true, Some(0), 0, true),
        (true, Some(0), OLDER, false),
        (true, Some(-1), 1000, false),
        (true, None, 0, true),
        (true, None, OLDER, false),
        (false, Some(0), -1000, true),
        (false, None, 0, true),
        (false, None, OLDER, false),
    ];
    for (before, later, number, yields) in cases {
        let (mut script, nxt, used) = time_wait(before, 400_000);
        let tsval = TSVAL.wrapping_add_signed(later.unwrap_or(0));
        let seq = nxt.0.wrapping_add(number as u32);
        script.send(seq, TcpSeq(0), SYN, stamped(later.is_some(), tsval), &[]);
        let answers = script.answers();
        let (answer, case) = (answers[0].0, (before, later, number));
        if yields {
            assert_eq!(
                (answer.flags, answer.ack),
                (SYN | ACK, TcpSeq(seq) + 1),
                "{case:?}"
            );
            assert!(answer.seq.at_or_after(used), "{case:?}");
        } else {
            let expected = (ACK, used, nxt);
            assert_eq!((answer.flags, answer.seq, answer.ack), expected, "{case:?}");
        }
        let recycled = script.engine.metrics.time_wait_recycled;
        assert_eq!(recycled, u64::from(yields), "{case:?}");
    }
}

// RFC 5961 §7: TIME-WAIT is no end to talk to for ever, either.
#[test]
fn time_wait_answers_what_takes_no_sequence_space_now_and_then() {
    let (mut script, nxt, used) = time_wait(false, 0);
    let mut answered = |wait_ms, flags, text: &[u8]| {
        script.wait(Duration::from_millis(wait_ms));
        script.send((nxt - 5).0, used, flags, stamped(false, 0), text);
        script.answers().len()
    };
    assert_eq!(answered(0, ACK, &[]), 1);
    assert_eq!(answered(499, ACK, &[]), 0);
    assert_eq!(answered(0, SYN, &[]), 0);
    assert_eq!(answered(0, ACK, TEXT), 1);
    assert_eq!(answered(0, ACK | FIN, &[]), 1);
    assert_eq!(answered(1, ACK, &[]), 1);
    assert_eq!(script.engine.metrics.ack_skipped_time_wait, 2);
}

// RFC 2883 §4: a duplicate is the first block of an ACK that leaves at once and by itself, before what
// lies beyond a hole; where the DATA_ACK leaves room for one block, that is it.
#[test]
fn a_duplicate_takes_the_first_place() {
    for multipath in [false, true] {
        let mut peer = Peer::in_state("ESTAB", multipath);
        let mut options = peer.options();
        if let Some(dss) = &mut options.mptcp.dss {
            // RFC 8684 §3.3.2: answered with as many octets, which take the room.
            dss.mapping = Some(DssMapping {
                dsn: DsnWidth::Eight(token_and_idsn(KEY).1.wrapping_add(1)),
                subflow_seq: 1,
                len: TEXT.len() as u16,
                checksum: None,
            });
        }
        peer.script.send(peer.seq.0, peer.ack, ACK, options, TEXT);
        peer.send(20, ACK, false, TEXT);
        let at = |n: usize| peer.seq + n;
        let hole = (at(20), at(30));
        let blocks = |script: &mut Script| -> Vec<_> {
            let answers = script.answers();
            let [(header, 0)] = answers[..] else {
                panic!("one acknowledgment, not {answers:?}")
            };
            header.options.sack.as_slice().to_vec()
        };
        let (old, new) = ((at(0), at(10)), (at(22), at(28)));
        assert_eq!(blocks(&mut peer.script), [hole]);
        let room = if multipath { 1 } else { 2 };
        peer.send(0, ACK, false, TEXT);
        assert_eq!(blocks(&mut peer.script), [old, hole][..room]);
        peer.send(22, ACK, false, &TEXT[..6]);
        assert_eq!(blocks(&mut peer.script), [new, hole][..room]);
        let metrics = &peer.script.engine.metrics;
        assert_eq!((metrics.dsack_old_sent, metrics.dsack_ofo_sent), (1, 1));
        peer.send(30, ACK, false, TEXT);
        let told = (hole.0, hole.1 + TEXT.len());
        assert_eq!(blocks(&mut peer.script), [told], "each is told once");
    }
}

//! Answers go to where the last valid segment of a flow came from: no neighbour table is needed, and a
//! router may change its address or the VLAN.

use super::script::{ACK, SYN, Script};
use mpx_datapath::app::builtin::Echo;
use mpx_datapath::seq::TcpSeq;
use mpx_datapath::time::Duration;
use mpx_datapath::wire::frame::Link;
use mpx_datapath::wire::tcp::{TcpFlags, TcpOptions, Timestamps};

/// A router's, under these tags.
fn link(station: u8, vlans: [Option<(u16, u16)>; 2]) -> Link {
    Link {
        src: [station; 6],
        dst: [4; 6],
        vlans,
    }
}

fn stamped(tsval: u32) -> TcpOptions {
    TcpOptions {
        timestamps: Some(Timestamps { tsval, tsecr: 0 }),
        ..TcpOptions::default()
    }
}

#[test]
fn a_flow_follows_its_router_and_nobody_else() {
    let mut script = Script::with(Box::new(Echo));
    script.link = link(2, [Some((0x8100, 7)), None]);
    script.send(100, TcpSeq(0), SYN, stamped(1000), &[]);
    let ack = script.answers()[0].0.seq + 1;
    script.send(101, ack, ACK, stamped(1001), &[]);
    let first = script.link;
    let mut seq = 101;
    let mut echoed = ack;
    for (n, tags) in [
        [Some((0x8100, 7)), None],
        [Some((0x88a8, 0x2003)), Some((0x8100, 8))],
        [None, None],
    ]
    .into_iter()
    .enumerate()
    {
        script.link = link(10 + n as u8, tags);
        script.send(seq, echoed, ACK, stamped(1002), &[7; 100]);
        let valid = script.link;
        assert_ne!(valid, first);
        assert_eq!(script.answer_link(), valid.reversed());
        assert_eq!(script.answers(), [], "the echo was the answer");
        seq += 100;

        // From elsewhere, and nothing that RFC 9293 §3.10.7.4, RFC 7323 §5.3 or RFC 5961 §3 to §5
        // would take for the client's. Each is answered, but to where the client is known to be.
        let outside = seq.wrapping_sub(100_000);
        let foreign: [(&str, u32, TcpSeq, TcpFlags, u32); 5] = [
            ("outside of the window", outside, echoed, ACK, 1003),
            ("acknowledges the future", seq, echoed + 99_999, ACK, 1003),
            ("an old timestamp", seq, echoed, ACK, 1),
            (
                "a reset, but not the next octet",
                seq + 1,
                echoed,
                TcpFlags::RST,
                1003,
            ),
            ("a SYN", seq, echoed, SYN, 1003),
        ];
        for (what, seq, ack, flags, tsval) in foreign {
            // Challenges have their limits by time.
            script.wait(Duration::from_millis(1100));
            script.answers();
            script.link = link(66, [Some((0x8100, 66)), None]);
            script.send(seq, ack, flags, stamped(tsval), &[9]);
            assert_eq!(script.answer_link(), valid.reversed(), "{what}");
            script.answers();
        }
        echoed += 100;
    }
}

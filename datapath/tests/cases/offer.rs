//! MP_CAPABLE of a SYN and what it is answered with (RFC 8684 §3.1).

use super::script::{SYN, Script};
use mpx_datapath::seq::TcpSeq;
use mpx_datapath::time::Duration;
use mpx_datapath::wire::mptcp::{CapableContent, MpCapable};
use mpx_datapath::wire::tcp::TcpOptions;

const CHECKSUM: u8 = MpCapable::FLAG_CHECKSUM;
const EXTENSIBILITY: u8 = MpCapable::FLAG_EXTENSIBILITY;
const NO_MORE_SUBFLOWS: u8 = MpCapable::FLAG_NO_MORE_SUBFLOWS;
const SHA256: u8 = MpCapable::FLAG_SHA256;

fn offer(flags: u8) -> TcpOptions {
    let mut options = TcpOptions::default();
    options.mptcp.capable = Some(MpCapable {
        version: 1,
        flags,
        content: CapableContent::Syn,
    });
    options
}

/// MP_CAPABLE of the SYN/ACK to an offer.
fn answer(flags: u8) -> Option<MpCapable> {
    let mut script = Script::new();
    script.send(1, TcpSeq(0), SYN, offer(flags), b"");
    let answers = script.answers();
    assert_eq!(answers.len(), 1);
    assert!(answers[0].0.flags.contains(SYN));
    answers[0].0.options.mptcp.capable
}

// RFC 8684 §3.1: an offer without H, or with B, which means what nobody has defined, is ignored: the
// SYN/ACK is that of plain TCP.
#[test]
fn an_offer_that_is_not_understood_gets_plain_tcp() {
    for flags in [
        0,
        CHECKSUM,
        CHECKSUM | NO_MORE_SUBFLOWS,
        EXTENSIBILITY | SHA256,
        EXTENSIBILITY | CHECKSUM | SHA256,
    ] {
        assert_eq!(answer(flags), None, "flags {flags:#04x}");
    }
}

// RFC 8684 §3.1: of the ways to secure joins the answer names the one that both know, H. A is for
// either side to ask for.
#[test]
fn the_answer_has_version_1_one_algorithm_and_the_checksums_asked_for() {
    for flags in [
        SHA256,
        SHA256 | 0x1e,
        SHA256 | NO_MORE_SUBFLOWS,
        SHA256 | CHECKSUM,
    ] {
        let capable = answer(flags).expect("an answer in kind");
        assert_eq!(capable.version, 1);
        assert_eq!(capable.flags, SHA256 | flags & CHECKSUM, "to {flags:#04x}");
        assert!(
            matches!(capable.content, CapableContent::SynAck { sender_key } if sender_key != 0)
        );
    }
}

// RFC 8684 §3.1: the key of a connection does not change between copies of its SYN/ACK, whether the
// SYN came again or a timer expired.
#[test]
fn every_copy_of_a_syn_ack_has_the_same_key() {
    let mut script = Script::new();
    let mut keys = Vec::new();
    for wait_ms in [0, 600, 0] {
        script.wait(Duration::from_millis(wait_ms));
        script.send(1, TcpSeq(0), SYN, offer(SHA256), b"");
        keys.extend(script.answers());
    }
    script.wait(Duration::from_secs(1));
    keys.extend(script.answers());
    let keys: Vec<_> = keys
        .iter()
        .map(|(tcp, _)| tcp.options.mptcp.capable)
        .collect();
    assert_eq!(
        keys.len(),
        3,
        "the copy 600 ms later, the one of the timer: {keys:?}"
    );
    assert!(keys[0].is_some() && keys.iter().all(|key| *key == keys[0]));
}

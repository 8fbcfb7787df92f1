//! MP_CAPABLE of a SYN and what it is answered with (RFC 8684 §3.1).

use super::script::{ACK, SYN, Script};
use mpx_datapath::app::builtin::Discard;
use mpx_datapath::engine::Patience;
use mpx_datapath::rand::{ChaChaEntropy, Entropy};
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

/// Numbers each key `times` times in a row; the rest is as ever.
struct Repeating {
    inner: ChaChaEntropy,
    key: [u8; 8],
    times: u32,
    left: u32,
}

impl Entropy for Repeating {
    fn fill(&mut self, bytes: &mut [u8]) {
        if bytes.len() != self.key.len() {
            return self.inner.fill(bytes);
        }
        if self.left == 0 {
            self.inner.fill(&mut self.key);
            self.left = self.times;
        }
        self.left -= 1;
        bytes.copy_from_slice(&self.key);
    }
}

// RFC 8684 §3.1: a key whose token is taken is drawn again; if no other one turns up, the connection
// is plain TCP.
#[test]
fn a_key_whose_token_is_taken_is_drawn_again() {
    for times in [3, u32::MAX] {
        let entropy = Box::new(Repeating {
            inner: ChaChaEntropy::deterministic(1),
            key: [0; 8],
            times,
            left: 0,
        });
        let app = Box::new(Discard);
        let mut script = Script::drawing(app, Patience::default(), entropy, |_| {});
        let mut answers = Vec::new();
        for port in [5000, 5001] {
            script.client.set_port(port);
            script.send(1, TcpSeq(0), SYN, offer(SHA256), b"");
            let (syn_ack, _) = script.answers()[0];
            assert!(syn_ack.flags.contains(SYN | ACK));
            answers.push(syn_ack.options.mptcp.capable);
        }
        assert!(answers[0].is_some() && answers[0] != answers[1]);
        assert_eq!(answers[1].is_some(), times == 3);
        let none_left = script.engine.metrics.mp_fallback_token_init;
        assert_eq!(none_left, u64::from(times != 3));
    }
}

//! What middleboxes on a path do to segments (RFC 8684 §3.7, §6; RFC 6182 §4.1 has a list).

use super::net::Side;
use super::ones_complement;
use mpx_datapath::seq::TcpSeq;
use mpx_datapath::wire::frame::{self, Segment};
use mpx_datapath::wire::mptcp::{CapableContent, MptcpOptions};
use mpx_datapath::wire::tcp::{TcpFlags, TcpHeader};
use std::collections::HashMap;
use std::net::SocketAddr;

/// How one path meddles.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meddling {
    /// MPTCP options vanish on the way to this side, from each flow's frame of this number on; its
    /// first one is 0.
    pub strips: Option<(Side, u32)>,
    /// SYNs lose their timestamps, or what offers SACK or window scaling.
    pub syn_loses: Option<SynOption>,
    /// Of each flow every so many-th frame with text gets another octet, where a DSS checksum covers
    /// it; 0 is none.
    pub alters_every: u32,
    /// Sequence numbers are others on each side.
    pub shifts: bool,
    /// Text is cut into segments of this length at most; 0 is not at all.
    pub cuts_at: usize,
    /// All of them get the options of the whole. Else only the first one has those of MPTCP.
    pub repeats_options: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SynOption {
    Timestamps,
    Sack,
    WindowScale,
}

impl Meddling {
    /// Whether Multipath TCP can go on over it. Text without a mapping that overtakes the text with
    /// the mapping looks like a path that takes no options.
    pub fn is_harmless(&self) -> bool {
        self.strips.is_none()
            && self.alters_every == 0
            && (self.cuts_at == 0 || self.repeats_options)
    }

    fn does_nothing(&self) -> bool {
        self.is_harmless() && self.syn_loses.is_none() && !self.shifts && self.cuts_at == 0
    }
}

/// What a box remembers of a flow, towards one side.
#[derive(Debug, Default)]
struct Flow {
    frames: u32,
    with_text: u32,
}

/// The boxes of all paths.
#[derive(Debug, Default)]
pub struct Middleboxes {
    flows: HashMap<(SocketAddr, SocketAddr), Flow>,
}

impl Middleboxes {
    /// What comes out towards `to` of a frame that goes in.
    pub fn pass(&mut self, meddling: &Meddling, to: Side, frame: &[u8]) -> Vec<Vec<u8>> {
        if meddling.does_nothing() {
            return vec![frame.to_vec()];
        }
        let Ok(segment) = Segment::parse(frame) else {
            return vec![frame.to_vec()];
        };
        let from = SocketAddr::new(segment.src, segment.tcp.src_port);
        let other = SocketAddr::new(segment.dst, segment.tcp.dst_port);
        let flow = self.flows.entry((from, other)).or_default();
        let syn = segment.tcp.flags.contains(TcpFlags::SYN);
        if syn {
            *flow = Flow::default();
        }
        let mut tcp = segment.tcp;
        let mut text = segment.payload.to_vec();
        let frames = flow.frames;
        flow.frames += 1;
        if !text.is_empty() && meddling.alters_every > 0 && is_checked(&tcp.options.mptcp) {
            flow.with_text += 1;
            if flow.with_text.is_multiple_of(meddling.alters_every) {
                let at = text.len() / 2;
                text[at] ^= 0x20;
            }
        }
        if meddling
            .strips
            .is_some_and(|(side, n)| side == to && frames >= n)
        {
            tcp.options.mptcp = MptcpOptions::default();
        }
        if syn {
            match meddling.syn_loses {
                Some(SynOption::Timestamps) => tcp.options.timestamps = None,
                Some(SynOption::Sack) => tcp.options.sack_permitted = false,
                Some(SynOption::WindowScale) => tcp.options.window_scale = None,
                None => {}
            }
        }
        if meddling.shifts {
            shift(&mut tcp, to);
        }
        cut(meddling, &tcp, &text)
            .map(|(tcp, text)| emit(&segment, &tcp, text))
            .collect()
    }
}

/// A DSS checksum covers the text.
fn is_checked(options: &MptcpOptions) -> bool {
    let mapped = options.dss.and_then(|dss| dss.mapping?.checksum);
    let first = match options.capable.map(|c| c.content) {
        Some(CapableContent::Data { checksum, .. }) => checksum,
        _ => None,
    };
    mapped.or(first).is_some()
}

/// The client's sequence numbers are that much higher at the server, and the server's at the client.
const CLIENT_SHIFT: u32 = 0x6789_abcd;
const SERVER_SHIFT: u32 = 0x9876_5432;

fn shift(tcp: &mut TcpHeader, to: Side) {
    let (ours, theirs) = match to {
        Side::Server => (CLIENT_SHIFT, SERVER_SHIFT),
        Side::Client => (SERVER_SHIFT, CLIENT_SHIFT),
    };
    tcp.seq.0 = tcp.seq.0.wrapping_add(ours);
    if tcp.flags.contains(TcpFlags::ACK) {
        tcp.ack.0 = tcp.ack.0.wrapping_sub(theirs);
        let blocks = std::mem::take(&mut tcp.options.sack);
        let back = |seq: TcpSeq| TcpSeq(seq.0.wrapping_sub(theirs));
        for (left, right) in blocks.as_slice() {
            tcp.options.sack.push(back(*left), back(*right));
        }
    }
}

/// The parts of a segment.
fn cut<'a>(
    meddling: &'a Meddling,
    tcp: &'a TcpHeader,
    text: &'a [u8],
) -> impl Iterator<Item = (TcpHeader, &'a [u8])> {
    // Each part of a SYN would be a SYN.
    let most = match meddling.cuts_at {
        n if n > 0 && !tcp.flags.contains(TcpFlags::SYN) => n,
        _ => text.len().max(1),
    };
    let last = text.len().saturating_sub(1) / most;
    (0..=last).map(move |n| {
        let part = &text[n * most..text.len().min((n + 1) * most)];
        let mut tcp = *tcp;
        tcp.seq += n * most;
        if n < last {
            tcp.flags = without(without(tcp.flags, TcpFlags::FIN), TcpFlags::PSH);
        }
        if n > 0 && !meddling.repeats_options {
            tcp.options.mptcp = MptcpOptions::default();
        }
        (tcp, part)
    })
}

fn without(flags: TcpFlags, one: TcpFlags) -> TcpFlags {
    TcpFlags(flags.0 & !one.0)
}

fn emit(whole: &Segment<'_>, tcp: &TcpHeader, text: &[u8]) -> Vec<u8> {
    let start = frame::header_len(&whole.link, &whole.src, &tcp.options);
    let mut octets = vec![0; start + text.len()];
    octets[start..].copy_from_slice(text);
    let len = frame::emit(
        &mut octets,
        &whole.link,
        whole.src,
        whole.dst,
        whole.traffic_class,
        tcp,
        text.len(),
        ones_complement(text),
    );
    assert_eq!(len, octets.len());
    octets
}

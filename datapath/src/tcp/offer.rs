//! What a SYN says of the side that sends it (RFC 9293 §3.7.1, RFC 7323 §2.2, RFC 2018 §2).

use super::ecn::Ecn;
use crate::seq::TcpSeq;
use crate::wire::frame::Segment;
use std::net::IpAddr;

/// RFC 9293 §3.7.1: a peer that sends no MSS option takes this much.
const MSS_DEFAULT_V4: u16 = 536;
const MSS_DEFAULT_V6: u16 = 1220;

/// As it came, or as a cookie has kept it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    pub irs: TcpSeq,
    pub mss: u16,
    pub window_scale: Option<u8>,
    pub sack_permitted: bool,
    pub tsval: Option<u32>,
    /// What comes of it together with our own side.
    pub ecn: Ecn,
}

impl Offer {
    /// Of a SYN to a service that agrees to ECN or does not.
    pub fn of_syn(syn: &Segment<'_>, ecn_allowed: bool) -> Offer {
        Offer::read(syn, Ecn::new(syn.tcp.flags, ecn_allowed))
    }

    /// Of the answer to a SYN of ours.
    pub fn of_syn_ack(syn_ack: &Segment<'_>, asked: &Ecn) -> Offer {
        Offer::read(syn_ack, asked.on_syn_ack(syn_ack.tcp.flags))
    }

    /// As if the peer took all that we offer, before it has said anything.
    pub fn unanswered(local_mss: u16, ecn: Ecn) -> Offer {
        Offer {
            irs: TcpSeq(0),
            mss: local_mss,
            window_scale: Some(0),
            sack_permitted: true,
            tsval: Some(0),
            ecn,
        }
    }

    fn read(syn: &Segment<'_>, ecn: Ecn) -> Offer {
        let options = &syn.tcp.options;
        let mss_default = match syn.dst {
            IpAddr::V4(_) => MSS_DEFAULT_V4,
            IpAddr::V6(_) => MSS_DEFAULT_V6,
        };
        Offer {
            irs: syn.tcp.seq,
            mss: options.mss.unwrap_or(mss_default),
            window_scale: options.window_scale,
            sack_permitted: options.sack_permitted,
            tsval: options.timestamps.map(|ts| ts.tsval),
            ecn,
        }
    }
}

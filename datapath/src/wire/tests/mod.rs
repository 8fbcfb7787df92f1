//! Known octets from the figures of the RFCs, round trips, hostile input, and two other readers of
//! the same frames: `etherparse`, and the header walk of the XDP program.

mod checksums;
mod frames;
mod icmp;
mod neighbor;
mod options;

use super::frame::Link;
use super::mptcp::*;
use super::tcp::{FastOpenCookie, SackBlocks, TcpFlags, TcpHeader, TcpOptions, Timestamps};
use crate::seq::TcpSeq;
use proptest::prelude::*;
use std::net::IpAddr;

/// The checksum's definition, word by word.
fn naive_sum(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0u16, |sum, word| {
        let word = u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]);
        let wide = u32::from(sum) + u32::from(word);
        (wide as u16) + (wide >> 16) as u16
    })
}

fn capable() -> impl Strategy<Value = MpCapable> {
    let content = prop_oneof![
        Just(CapableContent::Syn),
        any::<u64>().prop_map(|sender_key| CapableContent::SynAck { sender_key }),
        any::<(u64, u64)>().prop_map(|(sender_key, receiver_key)| CapableContent::Ack {
            sender_key,
            receiver_key,
        }),
        any::<(u64, u64, u16, Option<u16>)>().prop_map(
            |(sender_key, receiver_key, data_len, checksum)| CapableContent::Data {
                sender_key,
                receiver_key,
                data_len,
                checksum,
            }
        ),
    ];
    (1u8..16, any::<u8>(), content).prop_map(|(version, flags, content)| MpCapable {
        version,
        flags,
        content,
    })
}

fn join() -> impl Strategy<Value = MpJoin> {
    prop_oneof![
        any::<(bool, u8, u32, u32)>().prop_map(|(backup, address_id, token, nonce)| MpJoin::Syn {
            backup,
            address_id,
            token,
            nonce,
        }),
        any::<(bool, u8, u64, u32)>().prop_map(|(backup, address_id, hmac, nonce)| {
            MpJoin::SynAck {
                backup,
                address_id,
                hmac,
                nonce,
            }
        }),
        any::<[u8; 20]>().prop_map(|hmac| MpJoin::Ack { hmac }),
    ]
}

fn width() -> impl Strategy<Value = DsnWidth> {
    prop_oneof![
        any::<u32>().prop_map(DsnWidth::Four),
        any::<u64>().prop_map(DsnWidth::Eight),
    ]
}

fn dss() -> impl Strategy<Value = Dss> {
    let mapping = (width(), any::<u32>(), any::<u16>(), any::<Option<u16>>()).prop_map(
        |(dsn, subflow_seq, len, checksum)| DssMapping {
            dsn,
            subflow_seq,
            len,
            checksum,
        },
    );
    (
        proptest::option::of(width()),
        proptest::option::of(mapping),
        any::<bool>(),
    )
        .prop_map(|(data_ack, mapping, data_fin)| Dss {
            data_ack,
            mapping,
            data_fin,
        })
}

fn add_addr() -> impl Strategy<Value = AddAddr> {
    let form = prop_oneof![
        any::<u64>().prop_map(AddAddrForm::Signed),
        Just(AddAddrForm::Echo),
        Just(AddAddrForm::Bare),
    ];
    (any::<(u8, IpAddr, Option<u16>)>(), form).prop_map(|((address_id, address, port), form)| {
        AddAddr {
            address_id,
            address,
            port,
            form,
        }
    })
}

fn remove_addr() -> impl Strategy<Value = RemoveAddr> {
    proptest::collection::vec(any::<u8>(), 1..=RemoveAddr::MAX)
        .prop_map(|ids| RemoveAddr::new(&ids).expect("1 to 37 ids"))
}

/// Each option is absent most of the time, as on the wire.
fn mptcp_options() -> impl Strategy<Value = MptcpOptions> {
    fn seldom<S: Strategy>(option: S) -> impl Strategy<Value = Option<S::Value>> {
        proptest::option::weighted(0.2, option)
    }
    let first = (
        seldom(capable()),
        seldom(join()),
        seldom(dss()),
        seldom(add_addr()),
    );
    let second = (
        seldom(remove_addr()),
        seldom(any::<(bool, Option<u8>)>()),
        seldom(any::<u64>()),
        seldom(any::<u64>()),
        seldom(any::<(bool, u8)>()),
    );
    (first, second).prop_map(
        |((capable, join, dss, add_addr), (remove_addr, prio, fail, fastclose, tcprst))| {
            MptcpOptions {
                capable,
                join,
                dss,
                add_addr,
                remove_addr,
                prio: prio.map(|(backup, address_id)| MpPrio { backup, address_id }),
                fail: fail.map(|dsn| MpFail { dsn }),
                fastclose: fastclose.map(|receiver_key| MpFastclose { receiver_key }),
                tcprst: tcprst.map(|(transient, reason)| MpTcprst { transient, reason }),
            }
        },
    )
}

/// Any options, also more than fit in a header.
fn any_options() -> impl Strategy<Value = TcpOptions> {
    let sack = proptest::collection::vec(any::<(u32, u32)>(), 0..=SackBlocks::MAX);
    let classic = (
        any::<Option<u16>>(),
        any::<Option<u8>>(),
        any::<bool>(),
        any::<Option<(u32, u32)>>(),
        prop_oneof![3 => Just(Vec::new()), 1 => sack],
    );
    let cookie = proptest::collection::vec(any::<u8>(), 0..=16);
    let cookie = prop_oneof![
        3 => Just(None),
        1 => cookie.prop_map(|octets| FastOpenCookie::new(&octets)),
    ];
    (classic, cookie, mptcp_options()).prop_map(
        |((mss, window_scale, sack_permitted, timestamps, edges), fast_open, mptcp)| {
            let mut sack = SackBlocks::default();
            for (left, right) in edges {
                assert!(sack.push(TcpSeq(left), TcpSeq(right)));
            }
            let timestamps = timestamps.map(|(tsval, tsecr)| Timestamps { tsval, tsecr });
            TcpOptions {
                mss,
                window_scale,
                sack_permitted,
                timestamps,
                sack,
                fast_open,
                mptcp,
            }
        },
    )
}

/// Options that fit in a header, by leaving out the classic ones or all of MPTCP's.
fn fitting_options() -> impl Strategy<Value = TcpOptions> {
    any_options().prop_map(|mut options| {
        if !options.fits() {
            options = TcpOptions {
                mptcp: options.mptcp,
                ..TcpOptions::default()
            };
        }
        if !options.fits() {
            options.mptcp = MptcpOptions {
                dss: options.mptcp.dss,
                ..MptcpOptions::default()
            };
        }
        options
    })
}

fn header() -> impl Strategy<Value = TcpHeader> {
    let numbers = any::<(u16, u16, u32, u32, u8, u16, u16)>();
    (numbers, fitting_options()).prop_map(
        |((src_port, dst_port, seq, ack, flags, window, urgent), options)| TcpHeader {
            src_port,
            dst_port,
            seq: TcpSeq(seq),
            ack: TcpSeq(ack),
            flags: TcpFlags(flags),
            window,
            urgent,
            options,
        },
    )
}

fn link() -> impl Strategy<Value = Link> {
    let vlans = prop_oneof![
        Just([None, None]),
        any::<u16>().prop_map(|tci| [Some((0x8100, tci)), None]),
        any::<(u16, u16)>()
            .prop_map(|(outer, inner)| [Some((0x88a8, outer)), Some((0x8100, inner))]),
    ];
    (any::<[u8; 6]>(), any::<[u8; 6]>(), vlans).prop_map(|(src, dst, vlans)| Link {
        src,
        dst,
        vlans,
    })
}

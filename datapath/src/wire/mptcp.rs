//! Multipath TCP options (RFC 8684 §3), TCP option kind 30. Version 0 (RFC 6824 §3) has the same
//! ones, but for MP_TCPRST, and other forms of three: MP_CAPABLE, ADD_ADDR and MP_PRIO. All are read
//! here; which of them mean anything is for the connection to say, which has a version.

mod address;

use super::bytes::{Reader, Writer};
use super::tcp::{Sink, pad};
pub use address::{AddAddr, AddAddrForm, MpPrio, RemoveAddr};

/// The TCP option kind of all of them.
pub const KIND: u8 = 30;

/// Every MPTCP option that one segment may carry; a second one of the same subtype is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MptcpOptions {
    pub capable: Option<MpCapable>,
    pub join: Option<MpJoin>,
    pub dss: Option<Dss>,
    pub add_addr: Option<AddAddr>,
    pub remove_addr: Option<RemoveAddr>,
    pub prio: Option<MpPrio>,
    pub fail: Option<MpFail>,
    pub fastclose: Option<MpFastclose>,
    pub tcprst: Option<MpTcprst>,
}

impl MptcpOptions {
    pub fn is_empty(&self) -> bool {
        *self == MptcpOptions::default()
    }

    /// Takes in one option, given what follows its length octet. An option of an unknown subtype
    /// or a wrong size is as good as absent, and so is the second one of a subtype.
    #[inline]
    pub(crate) fn read(&mut self, body: &[u8]) {
        let Some(first) = body.first() else { return };
        let reader = Reader::new(body);
        match first >> 4 {
            SUBTYPE_DSS => keep_first(&mut self.dss, || Dss::parse(reader)),
            SUBTYPE_CAPABLE => keep_first(&mut self.capable, || MpCapable::parse(reader)),
            SUBTYPE_JOIN => keep_first(&mut self.join, || MpJoin::parse(reader)),
            SUBTYPE_ADD_ADDR => keep_first(&mut self.add_addr, || AddAddr::parse(reader)),
            SUBTYPE_REMOVE_ADDR => keep_first(&mut self.remove_addr, || RemoveAddr::parse(reader)),
            SUBTYPE_PRIO => keep_first(&mut self.prio, || MpPrio::parse(reader)),
            SUBTYPE_FAIL => keep_first(&mut self.fail, || MpFail::parse(reader)),
            SUBTYPE_FASTCLOSE => keep_first(&mut self.fastclose, || MpFastclose::parse(reader)),
            SUBTYPE_TCPRST => keep_first(&mut self.tcprst, || MpTcprst::parse(reader)),
            _ => {}
        }
    }

    /// Sends every option that is there to `sink`, padded behind to a multiple of `align` octets.
    #[inline]
    pub(crate) fn lay_out(&self, align: usize, sink: &mut impl Sink) {
        lay_out(&self.capable, align, sink);
        lay_out(&self.join, align, sink);
        lay_out(&self.dss, align, sink);
        lay_out(&self.add_addr, align, sink);
        lay_out(&self.remove_addr, align, sink);
        lay_out(&self.prio, align, sink);
        lay_out(&self.fail, align, sink);
        lay_out(&self.fastclose, align, sink);
        lay_out(&self.tcprst, align, sink);
    }
}

#[inline]
fn lay_out(option: &Option<impl MptcpOption>, align: usize, sink: &mut impl Sink) {
    if let Some(option) = option {
        let len = option.len();
        sink.option(len, 0, pad(len, align), |w| {
            w.bytes(&[KIND, len as u8]);
            option.write_body(w);
        });
    }
}

/// One option on its way out.
trait MptcpOption {
    /// Octets on the wire, kind and length included.
    fn len(&self) -> usize;

    /// Writes what follows kind and length: `len() - 2` octets.
    fn write_body(&self, w: &mut Writer<'_>);
}

/// RFC 8684 §3.1, RFC 6824 §3.1. Flag bits A to H.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MpCapable {
    pub version: u8,
    /// A, "checksum required", is 0x80; H, the HMAC of the version, is 0x01.
    pub flags: u8,
    pub content: CapableContent,
}

impl MpCapable {
    pub const FLAG_CHECKSUM: u8 = 0x80;
    pub const FLAG_EXTENSIBILITY: u8 = 0x40;
    pub const FLAG_NO_MORE_SUBFLOWS: u8 = 0x20;
    /// H in version 1, and in version 0.
    pub const FLAG_SHA256: u8 = 0x01;
    pub const FLAG_SHA1: u8 = 0x01;
    /// D to H. In version 0, C is one of them, too.
    pub const FLAGS_CRYPTO: u8 = 0x1f;

    /// The key of the side that sends it. The SYN of version 1 has none.
    pub fn sender_key(&self) -> Option<u64> {
        match self.content {
            CapableContent::Syn => None,
            CapableContent::SynAck { sender_key }
            | CapableContent::Ack { sender_key, .. }
            | CapableContent::Data { sender_key, .. } => Some(sender_key),
        }
    }
}

/// Told apart by the option's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapableContent {
    /// 4 octets, in version 1.
    Syn,
    /// 12 octets. In version 0 it is on the SYN as well.
    SynAck { sender_key: u64 },
    /// 20 octets.
    Ack { sender_key: u64, receiver_key: u64 },
    /// 22 or 24 octets, in version 1.
    Data {
        sender_key: u64,
        receiver_key: u64,
        data_len: u16,
        checksum: Option<u16>,
    },
}

impl MpCapable {
    fn parse(mut r: Reader<'_>) -> Option<MpCapable> {
        let version = r.u8()? & 0x0f;
        let flags = r.u8()?;
        let content = match r.left() {
            0 if version > 0 => CapableContent::Syn,
            8 => CapableContent::SynAck {
                sender_key: r.u64()?,
            },
            16 => CapableContent::Ack {
                sender_key: r.u64()?,
                receiver_key: r.u64()?,
            },
            _ if version > 0 => CapableContent::Data {
                sender_key: r.u64()?,
                receiver_key: r.u64()?,
                data_len: r.u16()?,
                checksum: r.u16(),
            },
            _ => return None,
        };
        r.end(MpCapable {
            version,
            flags,
            content,
        })
    }
}

impl MptcpOption for MpCapable {
    fn len(&self) -> usize {
        match self.content {
            CapableContent::Syn => 4,
            CapableContent::SynAck { .. } => 12,
            CapableContent::Ack { .. } => 20,
            CapableContent::Data { checksum: None, .. } => 22,
            CapableContent::Data {
                checksum: Some(_), ..
            } => 24,
        }
    }

    fn write_body(&self, w: &mut Writer<'_>) {
        w.u8(SUBTYPE_CAPABLE << 4 | (self.version & 0x0f));
        w.u8(self.flags);
        match self.content {
            CapableContent::Syn => {}
            CapableContent::SynAck { sender_key } => w.u64(sender_key),
            CapableContent::Ack {
                sender_key,
                receiver_key,
            } => {
                w.u64(sender_key);
                w.u64(receiver_key);
            }
            CapableContent::Data {
                sender_key,
                receiver_key,
                data_len,
                checksum,
            } => {
                w.u64(sender_key);
                w.u64(receiver_key);
                w.u16(data_len);
                if let Some(checksum) = checksum {
                    w.u16(checksum);
                }
            }
        }
    }
}

/// RFC 8684 §3.2, told apart by the option's length: 12, 16, 24.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MpJoin {
    Syn {
        backup: bool,
        address_id: u8,
        token: u32,
        nonce: u32,
    },
    SynAck {
        backup: bool,
        address_id: u8,
        hmac: u64,
        nonce: u32,
    },
    Ack {
        hmac: [u8; 20],
    },
}

impl MpJoin {
    const FLAG_BACKUP: u8 = 0x01;

    fn parse(mut r: Reader<'_>) -> Option<MpJoin> {
        let backup = r.u8()? & Self::FLAG_BACKUP != 0;
        let address_id = r.u8()?;
        let join = match r.left() {
            8 => MpJoin::Syn {
                backup,
                address_id,
                token: r.u32()?,
                nonce: r.u32()?,
            },
            12 => MpJoin::SynAck {
                backup,
                address_id,
                hmac: r.u64()?,
                nonce: r.u32()?,
            },
            // What is flags and address ID in the other forms is reserved here.
            _ => MpJoin::Ack { hmac: r.array()? },
        };
        r.end(join)
    }
}

impl MptcpOption for MpJoin {
    fn len(&self) -> usize {
        match self {
            MpJoin::Syn { .. } => 12,
            MpJoin::SynAck { .. } => 16,
            MpJoin::Ack { .. } => 24,
        }
    }

    fn write_body(&self, w: &mut Writer<'_>) {
        match *self {
            MpJoin::Syn {
                backup,
                address_id,
                token,
                nonce,
            } => {
                w.u8(SUBTYPE_JOIN << 4 | u8::from(backup));
                w.u8(address_id);
                w.u32(token);
                w.u32(nonce);
            }
            MpJoin::SynAck {
                backup,
                address_id,
                hmac,
                nonce,
            } => {
                w.u8(SUBTYPE_JOIN << 4 | u8::from(backup));
                w.u8(address_id);
                w.u64(hmac);
                w.u32(nonce);
            }
            MpJoin::Ack { hmac } => {
                w.u8(SUBTYPE_JOIN << 4);
                w.u8(0);
                w.bytes(&hmac);
            }
        }
    }
}

/// A value that travels in 4 or 8 octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DsnWidth {
    Four(u32),
    Eight(u64),
}

impl DsnWidth {
    /// The low 32 bits.
    pub fn low(self) -> u32 {
        match self {
            DsnWidth::Four(low) => low,
            DsnWidth::Eight(full) => full as u32,
        }
    }

    #[inline]
    fn parse(r: &mut Reader<'_>, eight: bool) -> Option<DsnWidth> {
        if eight {
            r.u64().map(DsnWidth::Eight)
        } else {
            r.u32().map(DsnWidth::Four)
        }
    }

    fn len(self) -> usize {
        match self {
            DsnWidth::Four(_) => 4,
            DsnWidth::Eight(_) => 8,
        }
    }

    fn is_eight(self) -> bool {
        matches!(self, DsnWidth::Eight(_))
    }

    #[inline]
    fn write(self, w: &mut Writer<'_>) {
        match self {
            DsnWidth::Four(low) => w.u32(low),
            DsnWidth::Eight(value) => w.u64(value),
        }
    }
}

/// RFC 8684 §3.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Dss {
    pub data_ack: Option<DsnWidth>,
    pub mapping: Option<DssMapping>,
    /// F. May stand without a mapping on the wire; then it means nothing and is ignored.
    pub data_fin: bool,
}

/// RFC 8684 §3.3.1. `len` 0 is the infinite mapping (§3.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DssMapping {
    pub dsn: DsnWidth,
    /// Relative to the subflow's ISN; its SYN is 0.
    pub subflow_seq: u32,
    /// Octets, the DATA_FIN's included.
    pub len: u16,
    pub checksum: Option<u16>,
}

impl Dss {
    const FLAG_ACK: u8 = 0x01;
    const FLAG_ACK_EIGHT: u8 = 0x02;
    const FLAG_MAPPING: u8 = 0x04;
    const FLAG_DSN_EIGHT: u8 = 0x08;
    const FLAG_DATA_FIN: u8 = 0x10;

    // RFC 8684 §3.3: "a" and "m" mean something only beside "A" and "M"; the option's length
    // alone tells whether a mapping ends with a checksum.
    #[inline]
    fn parse(mut r: Reader<'_>) -> Option<Dss> {
        let [_subtype, flags] = r.array()?;
        let mut dss = Dss {
            data_fin: flags & Self::FLAG_DATA_FIN != 0,
            ..Dss::default()
        };
        if flags & Self::FLAG_ACK != 0 {
            dss.data_ack = Some(DsnWidth::parse(&mut r, flags & Self::FLAG_ACK_EIGHT != 0)?);
        }
        if flags & Self::FLAG_MAPPING != 0 {
            dss.mapping = Some(DssMapping {
                dsn: DsnWidth::parse(&mut r, flags & Self::FLAG_DSN_EIGHT != 0)?,
                subflow_seq: r.u32()?,
                len: r.u16()?,
                checksum: r.u16(),
            });
        }
        r.end(dss)
    }
}

impl MptcpOption for Dss {
    #[inline]
    fn len(&self) -> usize {
        let data_ack = self.data_ack.map_or(0, DsnWidth::len);
        let mapping = self.mapping.map_or(0, |mapping| {
            mapping.dsn.len() + 6 + if mapping.checksum.is_some() { 2 } else { 0 }
        });
        4 + data_ack + mapping
    }

    #[inline]
    fn write_body(&self, w: &mut Writer<'_>) {
        let mut flags = if self.data_fin {
            Self::FLAG_DATA_FIN
        } else {
            0
        };
        if let Some(data_ack) = self.data_ack {
            flags |= Self::FLAG_ACK;
            flags |= if data_ack.is_eight() {
                Self::FLAG_ACK_EIGHT
            } else {
                0
            };
        }
        if let Some(mapping) = self.mapping {
            flags |= Self::FLAG_MAPPING;
            flags |= if mapping.dsn.is_eight() {
                Self::FLAG_DSN_EIGHT
            } else {
                0
            };
        }
        w.u8(SUBTYPE_DSS << 4);
        w.u8(flags);
        if let Some(data_ack) = self.data_ack {
            data_ack.write(w);
        }
        if let Some(mapping) = self.mapping {
            mapping.dsn.write(w);
            w.u32(mapping.subflow_seq);
            w.u16(mapping.len);
            if let Some(checksum) = mapping.checksum {
                w.u16(checksum);
            }
        }
    }
}

/// RFC 8684 §3.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MpFail {
    pub dsn: u64,
}

impl MpFail {
    fn parse(mut r: Reader<'_>) -> Option<MpFail> {
        let _subtype_reserved = r.u16()?;
        let dsn = r.u64()?;
        r.end(MpFail { dsn })
    }
}

impl MptcpOption for MpFail {
    fn len(&self) -> usize {
        12
    }

    fn write_body(&self, w: &mut Writer<'_>) {
        w.u8(SUBTYPE_FAIL << 4);
        w.u8(0);
        w.u64(self.dsn);
    }
}

/// RFC 8684 §3.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MpFastclose {
    pub receiver_key: u64,
}

impl MpFastclose {
    fn parse(mut r: Reader<'_>) -> Option<MpFastclose> {
        let _subtype_reserved = r.u16()?;
        let receiver_key = r.u64()?;
        r.end(MpFastclose { receiver_key })
    }
}

impl MptcpOption for MpFastclose {
    fn len(&self) -> usize {
        12
    }

    fn write_body(&self, w: &mut Writer<'_>) {
        w.u8(SUBTYPE_FASTCLOSE << 4);
        w.u8(0);
        w.u64(self.receiver_key);
    }
}

/// RFC 8684 §3.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MpTcprst {
    /// T: the condition may pass.
    pub transient: bool,
    pub reason: u8,
}

impl MpTcprst {
    const FLAG_TRANSIENT: u8 = 0x01;

    fn parse(mut r: Reader<'_>) -> Option<MpTcprst> {
        let transient = r.u8()? & Self::FLAG_TRANSIENT != 0;
        let reason = r.u8()?;
        r.end(MpTcprst { transient, reason })
    }
}

impl MptcpOption for MpTcprst {
    fn len(&self) -> usize {
        4
    }

    fn write_body(&self, w: &mut Writer<'_>) {
        w.u8(SUBTYPE_TCPRST << 4 | u8::from(self.transient));
        w.u8(self.reason);
    }
}

// RFC 8684 §7.2.
const SUBTYPE_CAPABLE: u8 = 0x0;
const SUBTYPE_JOIN: u8 = 0x1;
const SUBTYPE_DSS: u8 = 0x2;
const SUBTYPE_ADD_ADDR: u8 = 0x3;
const SUBTYPE_REMOVE_ADDR: u8 = 0x4;
const SUBTYPE_PRIO: u8 = 0x5;
const SUBTYPE_FAIL: u8 = 0x6;
const SUBTYPE_FASTCLOSE: u8 = 0x7;
const SUBTYPE_TCPRST: u8 = 0x8;

#[inline]
fn keep_first<T>(slot: &mut Option<T>, parse: impl FnOnce() -> Option<T>) {
    if slot.is_none() {
        *slot = parse();
    }
}

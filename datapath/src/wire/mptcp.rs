//! Multipath TCP options (RFC 8684 §3), TCP option kind 30.

use std::net::IpAddr;

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

/// RFC 8684 §3.1. Flag bits A to H.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MpCapable {
    pub version: u8,
    /// A, "checksum required", is 0x80; H, HMAC-SHA256, is 0x01.
    pub flags: u8,
    pub content: CapableContent,
}

impl MpCapable {
    pub const FLAG_CHECKSUM: u8 = 0x80;
    pub const FLAG_EXTENSIBILITY: u8 = 0x40;
    pub const FLAG_NO_MORE_SUBFLOWS: u8 = 0x20;
    pub const FLAG_SHA256: u8 = 0x01;
    /// D to H.
    pub const FLAGS_CRYPTO: u8 = 0x1f;
}

/// Told apart by the option's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapableContent {
    /// 4 octets.
    Syn,
    /// 12 octets.
    SynAck { sender_key: u64 },
    /// 20 octets.
    Ack { sender_key: u64, receiver_key: u64 },
    /// 22 or 24 octets.
    Data { sender_key: u64, receiver_key: u64, data_len: u16, checksum: Option<u16> },
}

/// RFC 8684 §3.2, told apart by the option's length: 12, 16, 24.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MpJoin {
    Syn { backup: bool, address_id: u8, token: u32, nonce: u32 },
    SynAck { backup: bool, address_id: u8, hmac: u64, nonce: u32 },
    Ack { hmac: [u8; 20] },
}

/// A value that travels in 4 or 8 octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DsnWidth {
    Four(u32),
    Eight(u64),
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

/// RFC 8684 §3.4.1. An echo carries no HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddAddr {
    pub address_id: u8,
    pub address: IpAddr,
    pub port: Option<u16>,
    /// `None` is an echo (E = 1).
    pub hmac: Option<u64>,
}

/// RFC 8684 §3.4.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoveAddr {
    pub(crate) ids: [u8; RemoveAddr::MAX],
    pub(crate) len: u8,
}

impl RemoveAddr {
    /// 37 octets after kind, length and subtype: what 40 octets of options can hold.
    pub const MAX: usize = 37;

    /// At least one id and at most [`RemoveAddr::MAX`], else `None`.
    pub fn new(ids: &[u8]) -> Option<RemoveAddr> {
        let mut option = RemoveAddr { ids: [0; RemoveAddr::MAX], len: u8::try_from(ids.len()).ok()? };
        if ids.is_empty() {
            return None;
        }
        option.ids.get_mut(..ids.len())?.copy_from_slice(ids);
        Some(option)
    }

    pub fn ids(&self) -> &[u8] {
        &self.ids[..usize::from(self.len)]
    }
}

/// RFC 8684 §3.3.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MpPrio {
    pub backup: bool,
}

/// RFC 8684 §3.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MpFail {
    pub dsn: u64,
}

/// RFC 8684 §3.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MpFastclose {
    pub receiver_key: u64,
}

/// RFC 8684 §3.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MpTcprst {
    /// T: the condition may pass.
    pub transient: bool,
    pub reason: u8,
}

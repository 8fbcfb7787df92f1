//! The versions of Multipath TCP, and all in which they differ: 1 is that of RFC 8684, 0 that of
//! RFC 6824. A client offers one of them in its SYN, and the connection keeps it.

use super::address::{ANNOUNCEMENTS_MAX, LocalAddress};
use crate::crypto;
use crate::wire::mptcp::{AddAddr, AddAddrForm, CapableContent, MpCapable, MpPrio};

/// Transmissions of an ADD_ADDR that nobody acknowledges.
const ANNOUNCEMENTS_MAX_V0: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V0,
    V1,
}

impl Version {
    pub fn number(self) -> u8 {
        match self {
            Version::V0 => 0,
            Version::V1 => 1,
        }
    }

    /// Whether this is for MP_CAPABLE as it came to be read. What is not understood is ignored.
    // RFC 8684 §3.1: a version of 1 or later is answered with 1; B clear, and the HMAC of the version
    // among the offers. RFC 6824 §3.1 has the same bits.
    pub fn understands(self, capable: &MpCapable) -> bool {
        let spoken = match self {
            Version::V0 => capable.version == 0,
            Version::V1 => capable.version >= 1,
        };
        spoken
            && capable.flags & MpCapable::FLAG_EXTENSIBILITY == 0
            && capable.flags & self.algorithm() != 0
    }

    /// The flag that stands for its HMAC.
    fn algorithm(self) -> u8 {
        match self {
            Version::V0 => MpCapable::FLAG_SHA1,
            Version::V1 => MpCapable::FLAG_SHA256,
        }
    }

    /// Whether the peer's key comes in its SYN, and not only once the handshake is over.
    // RFC 6824 §3.1.
    pub fn has_key_in_syn(self) -> bool {
        self == Version::V0
    }

    /// Flags of our MP_CAPABLE.
    // RFC 6824 §3.1: C has another meaning, and has to be 0.
    pub fn capable_flags(self, checksum: bool, no_more_subflows: bool) -> u8 {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        self.algorithm()
            | flag(checksum, MpCapable::FLAG_CHECKSUM)
            | flag(
                no_more_subflows && self == Version::V1,
                MpCapable::FLAG_NO_MORE_SUBFLOWS,
            )
    }

    /// Token and initial data sequence number of the side whose key this is.
    pub fn token_and_idsn(self, key: u64) -> (u32, u64) {
        match self {
            Version::V0 => crypto::token_and_idsn_v0(key),
            Version::V1 => crypto::token_and_idsn(key),
        }
    }

    /// See [`crypto::join_hmac`].
    pub fn join_hmac(
        self,
        local_key: u64,
        remote_key: u64,
        local_nonce: u32,
        remote_nonce: u32,
    ) -> [u8; 20] {
        let hmac = match self {
            Version::V0 => crypto::join_hmac_v0,
            Version::V1 => crypto::join_hmac,
        };
        hmac(local_key, remote_key, local_nonce, remote_nonce)
    }

    /// Whether joins wait for a DSS on the first path, which shows that options get through there.
    // RFC 6824 §3.1: MUST. In version 1 the keys of the third ACK are enough (RFC 8684 §3.1).
    pub fn joins_wait_for_dss(self) -> bool {
        self == Version::V0
    }

    /// Whether a checksum that was not agreed upon makes a subflow a broken one.
    // RFC 8684 §3.3: RST. RFC 6824 §3.3: it is ignored.
    pub fn refuses_stray_checksum(self) -> bool {
        self == Version::V1
    }

    /// The option that tells a peer of an address of ours.
    pub fn add_addr(
        self,
        local_key: u64,
        remote_key: u64,
        local: &LocalAddress,
        port: Option<u16>,
    ) -> AddAddr {
        let (address_id, address) = (local.id, local.announced.ip());
        let form = match self {
            Version::V0 => AddAddrForm::Bare,
            Version::V1 => AddAddrForm::Signed(crypto::add_addr_hmac(
                local_key, remote_key, address_id, address, port,
            )),
        };
        AddAddr {
            address_id,
            address,
            port,
            form,
        }
    }

    /// Whether an ADD_ADDR has a form of this version.
    pub fn has_add_addr(self, option: &AddAddr) -> bool {
        (option.form == AddAddrForm::Bare) == (self == Version::V0)
    }

    /// Whether an ADD_ADDR is sent back to who sent it.
    // RFC 6824 §3.4.1 has no such thing: it may get lost, and may be sent again.
    pub fn echoes_add_addr(self) -> bool {
        self == Version::V1
    }

    /// Transmissions of one ADD_ADDR, if it is not echoed.
    pub fn announcements_max(self) -> u32 {
        match self {
            Version::V0 => ANNOUNCEMENTS_MAX_V0,
            Version::V1 => ANNOUNCEMENTS_MAX,
        }
    }

    /// Whether an MP_PRIO has a form of this version.
    // RFC 6824 §3.3.8: it may be about all subflows of an address. RFC 8684 §3.3.8: only about its own.
    pub fn has_prio(self, option: &MpPrio) -> bool {
        option.address_id.is_none() || self == Version::V0
    }

    /// Whether MP_FAIL is answered with MP_FAIL.
    // RFC 8684 §3.7. In RFC 6824 §3.6 the infinite mapping alone is the answer.
    pub fn answers_fail(self) -> bool {
        self == Version::V1
    }

    /// Whether MP_FASTCLOSE may be on a RST.
    // RFC 8684 §3.5, option R. In RFC 6824 §3.5 it is on an ACK of one subflow, and RSTs are plain.
    pub fn has_fastclose_on_reset(self) -> bool {
        self == Version::V1
    }

    /// Whether a RST says why, by MP_TCPRST.
    // RFC 8684 §3.6. RFC 6824 has no such option.
    pub fn gives_reasons(self) -> bool {
        self == Version::V1
    }
}

/// The versions that a service speaks. Without any it is plain TCP for everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    pub v0: bool,
    pub v1: bool,
}

impl Default for Versions {
    fn default() -> Versions {
        Versions {
            v0: false,
            v1: true,
        }
    }
}

impl Versions {
    pub const NONE: Versions = Versions {
        v0: false,
        v1: false,
    };

    /// Whether there are connections that could be joined.
    pub fn any(self) -> bool {
        self != Versions::NONE
    }

    pub fn speaks(self, version: Version) -> bool {
        match version {
            Version::V0 => self.v0,
            Version::V1 => self.v1,
        }
    }

    /// The version that the MP_CAPABLE of a SYN asks for, if it is spoken and the offer makes sense.
    /// `None`: plain TCP.
    // RFC 8684 §3.1: the SYN of version 1 has no key in it, so there is no answering it with version
    // 0, and the other way round.
    pub fn agreed(self, offer: &MpCapable) -> Option<Version> {
        let version = match offer.content {
            CapableContent::Syn => Version::V1,
            CapableContent::SynAck { .. } => Version::V0,
            CapableContent::Ack { .. } | CapableContent::Data { .. } => return None,
        };
        (self.speaks(version) && version.understands(offer)).then_some(version)
    }
}

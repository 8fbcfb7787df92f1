//! Options about addresses and the subflows between them.

use super::super::bytes::{Reader, Writer};
use super::{MptcpOption, SUBTYPE_ADD_ADDR, SUBTYPE_PRIO, SUBTYPE_REMOVE_ADDR};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

// RFC 6824 §3.4.1: IPVer.
const IP_VERSION_4: u8 = 4;
const IP_VERSION_6: u8 = 6;

/// RFC 8684 §3.4.1, RFC 6824 §3.4.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddAddr {
    pub address_id: u8,
    pub address: IpAddr,
    pub port: Option<u16>,
    pub form: AddAddrForm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddAddrForm {
    /// Version 1, E = 0: with the right end of an HMAC over the rest.
    Signed(u64),
    /// Version 1, E = 1: sent back to who announced it.
    Echo,
    /// Version 0: the version of IP in place of flags, and nothing behind the address.
    Bare,
}

impl AddAddr {
    const FLAG_ECHO: u8 = 0x01;

    // RFC 8684 §3.4.1: the family and the presence of a port are to be inferred from the length. So is
    // the version: without an HMAC it is an echo, unless it begins as RFC 6824 §3.4.1 has it.
    pub(super) fn parse(mut r: Reader<'_>) -> Option<AddAddr> {
        let flags = r.u8()? & 0x0f;
        let address_id = r.u8()?;
        let echo = flags & Self::FLAG_ECHO != 0;
        let bare = matches!(
            (flags, r.left()),
            (IP_VERSION_4, 4 | 6) | (IP_VERSION_6, 16 | 18)
        );
        let hmac_len = if echo || bare { 0 } else { 8 };
        let (address, with_port) = match r.left().checked_sub(hmac_len)? {
            len @ (4 | 6) => (Ipv4Addr::from(r.array::<4>()?).into(), len == 6),
            len @ (16 | 18) => (Ipv6Addr::from(r.array::<16>()?).into(), len == 18),
            _ => return None,
        };
        let port = if with_port { Some(r.u16()?) } else { None };
        let form = match (bare, echo) {
            (true, _) => AddAddrForm::Bare,
            (_, true) => AddAddrForm::Echo,
            _ => AddAddrForm::Signed(r.u64()?),
        };
        r.end(AddAddr {
            address_id,
            address,
            port,
            form,
        })
    }

    fn flags(&self) -> u8 {
        match (self.form, self.address) {
            (AddAddrForm::Signed(_), _) => 0,
            (AddAddrForm::Echo, _) => Self::FLAG_ECHO,
            (AddAddrForm::Bare, IpAddr::V4(_)) => IP_VERSION_4,
            (AddAddrForm::Bare, IpAddr::V6(_)) => IP_VERSION_6,
        }
    }
}

impl MptcpOption for AddAddr {
    fn len(&self) -> usize {
        let address = if self.address.is_ipv4() { 4 } else { 16 };
        let port = if self.port.is_some() { 2 } else { 0 };
        let hmac = match self.form {
            AddAddrForm::Signed(_) => 8,
            AddAddrForm::Echo | AddAddrForm::Bare => 0,
        };
        4 + address + port + hmac
    }

    fn write_body(&self, w: &mut Writer<'_>) {
        w.u8(SUBTYPE_ADD_ADDR << 4 | self.flags());
        w.u8(self.address_id);
        match self.address {
            IpAddr::V4(address) => w.bytes(&address.octets()),
            IpAddr::V6(address) => w.bytes(&address.octets()),
        }
        if let Some(port) = self.port {
            w.u16(port);
        }
        if let AddAddrForm::Signed(hmac) = self.form {
            w.u64(hmac);
        }
    }
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

    /// What is left of them beside timestamps and a DATA_ACK of 8 octets.
    pub const MAX_BESIDE_DSS: usize = 12;

    /// At least one id and at most [`RemoveAddr::MAX`], else `None`.
    pub fn new(ids: &[u8]) -> Option<RemoveAddr> {
        let mut option = RemoveAddr {
            ids: [0; RemoveAddr::MAX],
            len: u8::try_from(ids.len()).ok()?,
        };
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

impl RemoveAddr {
    pub(super) fn parse(mut r: Reader<'_>) -> Option<RemoveAddr> {
        let _subtype = r.u8()?;
        RemoveAddr::new(r.rest())
    }
}

impl MptcpOption for RemoveAddr {
    fn len(&self) -> usize {
        3 + self.ids().len()
    }

    fn write_body(&self, w: &mut Writer<'_>) {
        w.u8(SUBTYPE_REMOVE_ADDR << 4);
        w.bytes(self.ids());
    }
}

/// RFC 8684 §3.3.8, RFC 6824 §3.3.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MpPrio {
    pub backup: bool,
    /// Version 0 may name an address of the sender's: it is then about all subflows from there.
    pub address_id: Option<u8>,
}

impl MpPrio {
    const FLAG_BACKUP: u8 = 0x01;

    pub(super) fn parse(mut r: Reader<'_>) -> Option<MpPrio> {
        let backup = r.u8()? & Self::FLAG_BACKUP != 0;
        let address_id = r.u8();
        r.end(MpPrio { backup, address_id })
    }
}

impl MptcpOption for MpPrio {
    fn len(&self) -> usize {
        3 + usize::from(self.address_id.is_some())
    }

    fn write_body(&self, w: &mut Writer<'_>) {
        w.u8(SUBTYPE_PRIO << 4 | u8::from(self.backup));
        if let Some(id) = self.address_id {
            w.u8(id);
        }
    }
}

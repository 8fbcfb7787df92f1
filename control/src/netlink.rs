//! Questions to the kernel over netlink.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use std::io;

/// A message whose content the caller reads and writes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plain {
    pub(crate) kind: u16,
    pub(crate) content: Vec<u8>,
}

impl NetlinkSerializable for Plain {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.content.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.content);
    }
}

impl NetlinkDeserializable for Plain {
    type Error = std::convert::Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        Ok(Plain {
            kind: header.message_type,
            content: payload.to_vec(),
        })
    }
}

/// All that the kernel has to say to `request`, a message of `protocol` (of netlink(7)).
pub(crate) fn dump<T>(protocol: isize, request: T) -> io::Result<Vec<T>>
where
    T: NetlinkSerializable + NetlinkDeserializable,
{
    ask(protocol, request, NLM_F_DUMP)
}

/// The one answer of the kernel to `request`, a message of `protocol` (of netlink(7)).
pub(crate) fn get<T>(protocol: isize, request: T) -> io::Result<T>
where
    T: NetlinkSerializable + NetlinkDeserializable,
{
    let mut messages = ask(protocol, request, 0)?;
    messages.pop().ok_or(io::ErrorKind::UnexpectedEof.into())
}

/// Has the kernel do what `request` says, with more flags of the message.
pub(crate) fn tell<T>(protocol: isize, request: T, flags: u16) -> io::Result<()>
where
    T: NetlinkSerializable + NetlinkDeserializable,
{
    ask(protocol, request, flags | NLM_F_ACK).map(drop)
}

fn ask<T>(protocol: isize, request: T, flags: u16) -> io::Result<Vec<T>>
where
    T: NetlinkSerializable + NetlinkDeserializable,
{
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let payload = NetlinkPayload::InnerMessage(request);
    let mut packet = NetlinkMessage::new(NetlinkHeader::default(), payload);
    packet.header.flags = flags | NLM_F_REQUEST;
    packet.header.sequence_number = 1;
    packet.finalize();
    let mut octets = vec![0; packet.buffer_len()];
    packet.serialize(&mut octets);
    socket.send(&octets, 0)?;

    let mut messages = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for payload in parse(&datagram)? {
            match payload {
                // A dump that fails, for want of a module for instance, says so at its end.
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-done.code));
                }
                NetlinkPayload::Done(_) => return Ok(messages),
                // An error of number 0 says that it is done.
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(messages),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(inner) => messages.push(inner),
                _ => {}
            }
        }
        if flags & NLM_F_DUMP == 0 {
            return Ok(messages);
        }
    }
}

/// The messages of one datagram.
pub(crate) fn parse<T: NetlinkDeserializable>(
    datagram: &[u8],
) -> io::Result<Vec<NetlinkPayload<T>>> {
    let mut payloads = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkMessage::<T>::deserialize(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        // They start at multiples of 4.
        let length = (message.header.length as usize).next_multiple_of(4).max(16);
        rest = rest.get(length..).unwrap_or_default();
        payloads.push(message.payload);
    }
    Ok(payloads)
}

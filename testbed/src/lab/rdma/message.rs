//! The messages of NETLINK_RDMA: a command, which is part of the message's type, and attributes.
//!
//! Source: Linux `include/uapi/rdma/rdma_netlink.h` (`enum rdma_nldev_command`, `enum rdma_nldev_attr`).

use std::convert::Infallible;

use netlink_packet_core::{
    DefaultNla, Emitable as _, NLA_TYPE_MASK, NetlinkDeserializable, NetlinkHeader, NetlinkPayload,
    NetlinkSerializable, Nla, NlaBuffer, NlasIterator, Parseable as _, parse_string, parse_u32,
};

/// `RDMA_NL_NLDEV`, in a message's type above the ten bits of the command.
const CLIENT: u16 = 5 << 10;
const COMMAND_MASK: u16 = (1 << 10) - 1;

/// What is asked, or what is answered: an answer may have another command than its question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command(u16);

impl Command {
    /// Say what device there is, or, as a dump, which there are.
    pub(super) const GET: Self = Self(1);
    /// Make a device on an interface.
    pub(super) const NEW_LINK: Self = Self(3);
    /// Delete a device that was made so.
    pub(super) const DELETE_LINK: Self = Self(4);
    /// Say how the whole subsystem is set.
    pub(super) const SYSTEM_GET: Self = Self(6);
    /// Set it.
    pub(super) const SYSTEM_SET: Self = Self(7);
}

const DEVICE_INDEX: u16 = 1;
const DEVICE_NAME: u16 = 2;
const NETDEV_NAME: u16 = 51;
const LINK_TYPE: u16 = 65;
const NETNS_MODE: u16 = 66;

/// A device's number, which no other has until it is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeviceIndex(pub(super) u32);

/// Who sees a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NetnsMode {
    /// The network namespace that it is in.
    Exclusive,
    /// Every network namespace: how kernels start.
    Shared,
}

/// An attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attribute {
    DeviceIndex(DeviceIndex),
    DeviceName(String),
    NetdevName(String),
    LinkType(String),
    NetnsMode(NetnsMode),
    Other(DefaultNla),
}

impl Attribute {
    fn string(&self) -> Option<&str> {
        match self {
            Self::DeviceName(text) | Self::NetdevName(text) | Self::LinkType(text) => Some(text),
            Self::DeviceIndex(_) | Self::NetnsMode(_) | Self::Other(_) => None,
        }
    }

    /// An attribute whose value is not of its kind's shape is kept as it is.
    fn parse(buffer: &NlaBuffer<&[u8]>) -> Option<Self> {
        let value = buffer.value();
        let known = match buffer.kind() & NLA_TYPE_MASK {
            DEVICE_INDEX => parse_u32(value).ok().map(|index| Self::DeviceIndex(DeviceIndex(index))),
            DEVICE_NAME => parse_string(value).ok().map(Self::DeviceName),
            NETDEV_NAME => parse_string(value).ok().map(Self::NetdevName),
            LINK_TYPE => parse_string(value).ok().map(Self::LinkType),
            NETNS_MODE => match value {
                [0] => Some(Self::NetnsMode(NetnsMode::Exclusive)),
                [1] => Some(Self::NetnsMode(NetnsMode::Shared)),
                _ => None,
            },
            _ => None,
        };
        known.or_else(|| DefaultNla::parse(buffer).ok().map(Self::Other))
    }
}

impl Nla for Attribute {
    fn value_len(&self) -> usize {
        match self {
            Self::DeviceIndex(_) => 4,
            Self::NetnsMode(_) => 1,
            Self::Other(other) => other.value_len(),
            // With the zero at its end.
            text => text.string().map_or(0, |text| text.len() + 1),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::DeviceIndex(_) => DEVICE_INDEX,
            Self::DeviceName(_) => DEVICE_NAME,
            Self::NetdevName(_) => NETDEV_NAME,
            Self::LinkType(_) => LINK_TYPE,
            Self::NetnsMode(_) => NETNS_MODE,
            Self::Other(other) => other.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::DeviceIndex(DeviceIndex(index)) => buffer.copy_from_slice(&index.to_ne_bytes()),
            Self::NetnsMode(mode) => buffer[0] = u8::from(*mode == NetnsMode::Shared),
            Self::Other(other) => other.emit_value(buffer),
            text => {
                let text = text.string().unwrap_or_default();
                buffer[..text.len()].copy_from_slice(text.as_bytes());
                buffer[text.len()..].fill(0);
            }
        }
    }
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) command: Command,
    pub(super) attributes: Vec<Attribute>,
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        CLIENT | self.command.0
    }

    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl NetlinkDeserializable for Message {
    /// A message that could not be parsed would be dropped below us and its question never answered, so everything is
    /// taken: attributes up to the first that is cut off.
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        let attributes = NlasIterator::new(payload).map_while(Result::ok);
        Ok(Self {
            command: Command(header.message_type & COMMAND_MASK),
            attributes: attributes.filter_map(|buffer| Attribute::parse(&buffer)).collect(),
        })
    }
}

impl From<Message> for NetlinkPayload<Message> {
    fn from(message: Message) -> Self {
        Self::InnerMessage(message)
    }
}

// The fixtures are of a little-endian machine.
#[cfg(all(test, target_endian = "little"))]
mod tests {
    use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage};
    use proptest::prelude::*;

    use super::*;

    // What iproute2 6.1's `rdma` sends, from `strace -xx -e trace=sendto,sendmsg,recvmsg` in a guest of Linux 7.3: of the
    // header the type and the flags, then the payload. Sequence numbers and the port are each connection's own.

    /// `rdma link add siw-server-eth0 type siw netdev veth0`
    const ADD_SIW: (u16, u16, &[u8]) = (
        0x1403,
        NLM_F_REQUEST | NLM_F_ACK,
        b"\x14\x00\x02\x00\x73\x69\x77\x2d\x73\x65\x72\x76\x65\x72\x2d\x65\x74\x68\x30\x00\x08\x00\x41\x00\x73\x69\x77\
          \x00\x0a\x00\x33\x00\x76\x65\x74\x68\x30\x00\x00\x00",
    );
    /// `rdma link add rxe0 type rxe netdev veth0`
    const ADD_RXE: (u16, u16, &[u8]) = (
        0x1403,
        NLM_F_REQUEST | NLM_F_ACK,
        b"\x09\x00\x02\x00\x72\x78\x65\x30\x00\x00\x00\x00\x08\x00\x41\x00\x72\x78\x65\x00\x0a\x00\x33\x00\x76\x65\x74\
          \x68\x30\x00\x00\x00",
    );
    /// `rdma link delete siw-server-eth0`, when it was number 0
    const DELETE: (u16, u16, &[u8]) =
        (0x1404, NLM_F_REQUEST | NLM_F_ACK, b"\x08\x00\x01\x00\x00\x00\x00\x00");
    /// `rdma dev show`: first of all
    const LIST: (u16, u16, &[u8]) = (0x1401, NLM_F_REQUEST | NLM_F_ACK | NLM_F_DUMP, b"");
    /// `rdma system show`
    const SYSTEM_GET: (u16, u16, &[u8]) = (0x1406, NLM_F_REQUEST | NLM_F_ACK, b"");
    /// `rdma system set netns exclusive`
    const SET_EXCLUSIVE: (u16, u16, &[u8]) =
        (0x1407, NLM_F_REQUEST | NLM_F_ACK, b"\x05\x00\x42\x00\x00\x00\x00\x00");
    /// `rdma system set netns shared`
    const SET_SHARED: (u16, u16, &[u8]) =
        (0x1407, NLM_F_REQUEST | NLM_F_ACK, b"\x05\x00\x42\x00\x01\x00\x00\x00");

    // And what it was answered.

    /// `rdma dev show`: one device of the dump
    const DEVICE: (u16, &[u8]) = (
        0x1401,
        b"\x08\x00\x01\x00\x01\x00\x00\x00\x0b\x00\x02\x00\x73\x69\x77\x2d\x68\x31\x00\x00\x08\x00\x03\x00\x01\x00\x00\
          \x00\x0c\x00\x04\x00\x00\x00\x20\x00\x00\x00\x00\x00\x0c\x00\x06\x00\xae\xe2\x60\xfe\xff\xac\x40\x58\x0c\x00\
          \x07\x00\xae\xe2\x60\xfe\xff\xac\x40\x58\x05\x00\x0e\x00\x04\x00\x00\x00\x05\x00\x54\x00\x00\x00\x00\x00\x05\
          \x00\x65\x00\x01\x00\x00\x00\x07\x00\x43\x00\x69\x77\x00\x00",
    );
    /// `rdma system show`
    const SYSTEM: (u16, &[u8]) = (
        0x1406,
        b"\x05\x00\x42\x00\x01\x00\x00\x00\x05\x00\x60\x00\x00\x00\x00\x00\x05\x00\x67\x00\x01\x00\x00\x00\x05\x00\x5d\
          \x00\x01\x00\x00\x00",
    );

    /// Type, flags and payload as they go out.
    fn sent(message: NetlinkMessage<Message>) -> (u16, u16, Vec<u8>) {
        let mut message = message;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        assert_eq!(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize, bytes.len());
        (word(4), word(6), bytes[16..].to_vec())
    }

    fn received((kind, payload): (u16, &[u8])) -> Message {
        let mut header = NetlinkHeader::default();
        header.message_type = kind;
        let Ok(message) = Message::deserialize(&header, payload);
        message
    }

    #[test]
    fn requests_are_what_iproute2_sends() {
        use super::super::socket::{add, delete, list, set_netns_mode, system};
        let siw = super::super::Kind::Siw;
        let rxe = super::super::Kind::Rxe;
        for (message, (kind, flags, payload)) in [
            (add(siw, "siw-server-eth0", "veth0"), ADD_SIW),
            (add(rxe, "rxe0", "veth0"), ADD_RXE),
            (delete(DeviceIndex(0)), DELETE),
            (list(), LIST),
            (system(), SYSTEM_GET),
            (set_netns_mode(NetnsMode::Exclusive), SET_EXCLUSIVE),
            (set_netns_mode(NetnsMode::Shared), SET_SHARED),
        ] {
            assert_eq!(sent(message), (kind, flags, payload.to_vec()));
        }
    }

    #[test]
    fn answers_are_read() {
        let device = received(DEVICE);
        assert_eq!(device.command, Command::GET);
        assert_eq!(device.attributes[0], Attribute::DeviceIndex(DeviceIndex(1)));
        assert_eq!(device.attributes[1], Attribute::DeviceName("siw-h1".to_owned()));
        // The node's type, among those that nobody here asks for.
        assert!(device.attributes.contains(&Attribute::Other(DefaultNla::new(14, vec![4]))));
        let system = received(SYSTEM);
        assert_eq!(system.command, Command::SYSTEM_GET);
        assert_eq!(system.attributes[0], Attribute::NetnsMode(NetnsMode::Shared));
    }

    #[test]
    fn what_is_read_is_written_again_as_it_was() {
        for (kind, payload) in [DEVICE, SYSTEM] {
            let message = received((kind, payload));
            assert_eq!(message.message_type(), kind);
            let mut bytes = vec![0xff; NetlinkSerializable::buffer_len(&message)];
            NetlinkSerializable::serialize(&message, &mut bytes);
            assert_eq!(bytes, payload);
        }
    }

    proptest! {
        #[test]
        fn no_message_is_too_strange(
            kind in any::<u16>(),
            payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let message = received((kind, &payload));
            let mut bytes = vec![0; NetlinkSerializable::buffer_len(&message)];
            NetlinkSerializable::serialize(&message, &mut bytes);
        }

        #[test]
        fn a_cut_off_attribute_ends_the_message(cut in 0..DEVICE.1.len()) {
            let whole = received(DEVICE).attributes;
            let part = received((DEVICE.0, &DEVICE.1[..cut])).attributes;
            prop_assert_eq!(&whole[..part.len()], &part[..]);
        }
    }
}

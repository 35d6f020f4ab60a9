//! A NETLINK_RDMA socket. It belongs to the network namespace in which it was made, and a device that is made on it is
//! on that namespace's interface.

use std::io;

use futures_util::StreamExt as _;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_proto::ConnectionHandle;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_RDMA;
use tokio::task::JoinHandle;

use super::message::{Attribute, Command, DeviceIndex, Message, NetnsMode};
use super::{Kind, RdmaError};

/// A socket and the task that serves it.
#[derive(Debug)]
pub(crate) struct Socket {
    handle: ConnectionHandle<Message>,
    task: JoinHandle<()>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Socket {
    /// Opens a socket in the calling thread's namespace.
    pub(crate) fn open() -> Result<Self, RdmaError> {
        let (connection, handle, _) = netlink_proto::new_connection(NETLINK_RDMA)
            .map_err(|cause| RdmaError::asking("open a netlink socket to it", cause))?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    /// Closes it, which is otherwise done when the runtime gets to it.
    pub(crate) async fn close(mut self) {
        self.task.abort();
        // It was aborted, and says so.
        let _ = (&mut self.task).await;
    }

    /// Makes a device of this name on an interface.
    pub(super) async fn add(&self, kind: Kind, name: &str, interface: &str) -> Result<(), RdmaError> {
        let made = self.ask(add(kind, name, interface)).await;
        made.map(drop).map_err(|cause| RdmaError::adding(kind, name, interface, cause))
    }

    /// Deletes a device.
    pub(super) async fn delete(&self, device: DeviceIndex) -> Result<(), RdmaError> {
        let deleted = self.ask(delete(device)).await;
        deleted.map(drop).map_err(|cause| RdmaError::asking("delete it", cause))
    }

    /// Every device that this namespace sees, with its name.
    pub(super) async fn list(&self) -> Result<Vec<(DeviceIndex, String)>, RdmaError> {
        let answers = self.ask(list()).await.map_err(|cause| RdmaError::asking("list devices", cause))?;
        let devices = answers.into_iter().filter_map(|message| {
            let mut device = (None, None);
            for attribute in message.attributes {
                match attribute {
                    Attribute::DeviceIndex(index) => device.0 = Some(index),
                    Attribute::DeviceName(name) => device.1 = Some(name),
                    _ => {}
                }
            }
            device.0.zip(device.1)
        });
        Ok(devices.collect())
    }

    /// Sees to it that devices are seen in every namespace. Kernels start that way, and let nobody change it while there
    /// is a second network namespace.
    pub(crate) async fn share(&self) -> Result<(), RdmaError> {
        if self.netns_mode().await? == Some(NetnsMode::Shared) {
            return Ok(());
        }
        match self.ask(set_netns_mode(NetnsMode::Shared)).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Err(RdmaError::Exclusive),
            Err(cause) => Err(RdmaError::asking("share devices between namespaces", cause)),
        }
    }

    /// Who sees devices; unknown on kernels that do not say.
    async fn netns_mode(&self) -> Result<Option<NetnsMode>, RdmaError> {
        let answers =
            self.ask(system()).await.map_err(|cause| RdmaError::asking("ask who sees devices", cause))?;
        Ok(answers.iter().flat_map(|message| &message.attributes).find_map(|attribute| match attribute {
            Attribute::NetnsMode(mode) => Some(*mode),
            _ => None,
        }))
    }

    async fn ask(&self, message: NetlinkMessage<Message>) -> io::Result<Vec<Message>> {
        let kernel = SocketAddr::new(0, 0);
        let mut answers = self.handle.request(message, kernel).map_err(io::Error::other)?;
        let mut messages = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => messages.push(message),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
        Ok(messages)
    }
}

fn request(command: Command, attributes: Vec<Attribute>) -> NetlinkMessage<Message> {
    let mut message = NetlinkMessage::from(Message { command, attributes });
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    message
}

/// `rdma link add NAME type TYPE netdev INTERFACE`
pub(super) fn add(kind: Kind, name: &str, interface: &str) -> NetlinkMessage<Message> {
    let attributes = vec![
        Attribute::DeviceName(name.to_owned()),
        Attribute::LinkType(kind.link_type().to_owned()),
        Attribute::NetdevName(interface.to_owned()),
    ];
    request(Command::NEW_LINK, attributes)
}

/// `rdma link delete NAME`
pub(super) fn delete(device: DeviceIndex) -> NetlinkMessage<Message> {
    request(Command::DELETE_LINK, vec![Attribute::DeviceIndex(device)])
}

/// `rdma dev show`
pub(super) fn list() -> NetlinkMessage<Message> {
    let mut message = request(Command::GET, Vec::new());
    message.header.flags |= NLM_F_DUMP;
    message
}

/// `rdma system show`
pub(super) fn system() -> NetlinkMessage<Message> {
    request(Command::SYSTEM_GET, Vec::new())
}

/// `rdma system set netns shared`
pub(super) fn set_netns_mode(mode: NetnsMode) -> NetlinkMessage<Message> {
    request(Command::SYSTEM_SET, vec![Attribute::NetnsMode(mode)])
}

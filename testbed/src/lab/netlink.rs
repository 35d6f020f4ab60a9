//! rtnetlink in a given namespace: the socket belongs to the namespace in which it was made, whoever uses it.

use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link::LinkMessage;
use rtnetlink::{Handle, LinkUnspec};
use tokio::task::JoinHandle;

use crate::topology::{InterfacePlan, Mac};

/// A netlink socket and the task that serves it.
#[derive(Debug)]
pub(super) struct Netlink {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    pub(super) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    /// The index of an interface.
    pub(super) async fn index(&self, interface: &str) -> io::Result<u32> {
        let mut links = self.handle.link().get().match_name(interface.to_owned()).execute();
        let link = links.try_next().await.map_err(to_io)?;
        link.map(|l| l.header.index).ok_or_else(|| nix::errno::Errno::ENODEV.into())
    }

    /// Changes an interface.
    pub(super) async fn set(&self, message: LinkMessage) -> io::Result<()> {
        self.handle.link().set(message).execute().await.map_err(to_io)
    }

    /// Brings up an interface that needs nothing else, such as `lo`.
    pub(super) async fn up(&self, interface: &str) -> io::Result<()> {
        self.set(LinkUnspec::new_with_name(interface).up().build()).await
    }

    /// Gives an interface its MAC address, MTU and queue, and brings it up.
    pub(super) async fn configure(&self, index: u32, plan: &InterfacePlan, queue: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index)
            .address(plan.mac.0.to_vec())
            .mtu(plan.mtu)
            .txqueuelen(queue)
            .up()
            .build();
        self.set(message).await
    }

    /// Adds an address, usable at once.
    pub(super) async fn add_address(&self, index: u32, address: IpNet) -> io::Result<()> {
        let mut request = self.handle.address().add(index, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            // Otherwise it is tentative for a second, until duplicate address detection (RFC 4862) is over.
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request.execute().await.map_err(to_io)
    }

    /// Adds a permanent neighbour.
    pub(super) async fn add_neighbor(&self, index: u32, address: IpAddr, mac: Mac) -> io::Result<()> {
        self.handle.neighbours().add(index, address).link_layer_address(&mac.0).execute().await.map_err(to_io)
    }
}

/// The kernel's error number, where it is one.
pub(super) fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

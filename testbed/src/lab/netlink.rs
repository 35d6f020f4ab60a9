//! rtnetlink in a given namespace: the socket belongs to the namespace in which it was made, whoever uses it.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage, State};
use netlink_packet_route::tc::TcMessage;
use rtnetlink::{Handle, LinkUnspec};
use tokio::task::JoinHandle;

use crate::topology::{InterfacePlan, Mac};

/// How long a veth pair may take to have a carrier.
const CARRIER: Duration = Duration::from_secs(10);

/// A netlink socket and the task that serves it.
#[derive(Debug)]
pub(super) struct Netlink {
    handle: Handle,
    /// Nobody's where another one has it.
    task: Option<JoinHandle<()>>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.iter().for_each(JoinHandle::abort);
    }
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    pub(super) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self { handle, task: Some(tokio::spawn(connection)) })
    }

    /// Closes the socket, which is otherwise closed when the runtime gets to it.
    pub(super) async fn close(mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            // It was aborted, and says so.
            let _ = task.await;
        }
    }

    /// The same socket, for who may outlive it and then gets errors.
    pub(super) fn share(&self) -> Self {
        Self { handle: self.handle.clone(), task: None }
    }

    /// The index of an interface.
    pub(super) async fn index(&self, interface: &str) -> io::Result<u32> {
        let mut links = self.handle.link().get().match_name(interface.to_owned()).execute();
        let link = links.try_next().await.map_err(to_io)?;
        link.map(|l| l.header.index).ok_or_else(|| nix::errno::Errno::ENODEV.into())
    }

    /// Waits until an interface carries frames. One end of a veth pair has a carrier once both ends are up, and the kernel
    /// sees to that in its own time; until then it drops what is sent.
    pub(super) async fn wait_until_up(&self, interface: &str) -> io::Result<()> {
        let wait = async {
            loop {
                let mut links = self.handle.link().get().match_name(interface.to_owned()).execute();
                let link = links.try_next().await.map_err(to_io)?.ok_or(nix::errno::Errno::ENODEV)?;
                if link.attributes.contains(&LinkAttribute::OperState(State::Up)) {
                    return Ok(());
                }
                // Cheaper than a socket that listens for changes, and over within a few turns.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(CARRIER, wait).await.map_err(|_| nix::errno::Errno::ENETDOWN)?
    }

    /// Changes an interface.
    pub(super) async fn set(&self, message: LinkMessage) -> io::Result<()> {
        self.handle.link().set(message).execute().await.map_err(to_io)
    }

    /// Makes a veth pair: `name` in this namespace, `peer` in that of `peer_namespace`.
    pub(super) async fn add_veth(
        &self,
        name: &str,
        peer: &str,
        peer_namespace: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let peer = LinkUnspec::new_with_name(peer).setns_by_fd(peer_namespace.as_raw_fd()).build();
        let mut message = LinkUnspec::new_with_name(name).build();
        let data = InfoData::Veth(InfoVeth::Peer(peer));
        message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(data)]));
        self.handle.link().add(message).execute().await.map_err(to_io)
    }

    /// Sends super-frames from an interface, or none.
    pub(super) async fn offload(&self, index: u32, offload: bool) -> io::Result<()> {
        /// `GSO_MAX_SEGS`, as every interface begins.
        const ALL: u32 = 65_535;
        let segments = if offload { ALL } else { 1 };
        let link =
            LinkUnspec::new_with_index(index).append_extra_attribute(LinkAttribute::GsoMaxSegs(segments));
        self.set(link.build()).await
    }

    /// Makes `qdisc` the queueing discipline that it says, or changes the one that is there to that.
    pub(super) async fn set_qdisc(&self, qdisc: TcMessage, is_there: bool) -> io::Result<()> {
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(qdisc));
        let make = if is_there { 0 } else { NLM_F_EXCL | NLM_F_CREATE };
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | make;
        let mut answers = self.handle.clone().request(request).map_err(to_io)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload {
                return Err(error.to_io());
            }
        }
        Ok(())
    }

    /// Brings up an interface that needs nothing else, such as `lo`.
    pub(super) async fn up(&self, interface: &str) -> io::Result<()> {
        self.set(LinkUnspec::new_with_name(interface).up().build()).await
    }

    /// Brings up an interface of this MTU that has no address.
    pub(super) async fn up_with_mtu(&self, interface: &str, mtu: u32) -> io::Result<()> {
        self.set(LinkUnspec::new_with_name(interface).mtu(mtu).up().build()).await
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

//! Where the relay's ends of veth pairs are, when it may not have TAP devices: one more namespace, as if a patch panel
//! joined the hosts' cables. It goes when the last packet socket in it is closed.

use std::collections::HashMap;

use futures_util::future::try_join_all;

use super::error::LabError;
use super::host::Host;
use super::netlink::Netlink;
use super::netns::Namespace;
use crate::link::packet;
use crate::link::port::Port;
use crate::topology::Endpoint;

/// Ethernet's header and a VLAN tag, which the MTU does not count.
const FRAME_HEADER: usize = 18;

/// An end of a link.
pub(super) struct End<'a> {
    pub(super) endpoint: Endpoint,
    pub(super) host: &'a Host,
    pub(super) mtu: u32,
    pub(super) offload: bool,
}

/// Makes a veth pair for each end, one side in its host, and opens a socket on the other.
pub(super) async fn connect(ends: Vec<End<'_>>) -> Result<HashMap<Endpoint, Port>, LabError> {
    let place = "the relay's namespace";
    let (namespace, netlink) = Namespace::create(|| {
        super::host::quieten(false)?;
        Netlink::open()
    })
    .await
    .and_then(|(namespace, netlink)| Ok((namespace, netlink?)))
    .map_err(|e| LabError::step(place, "make it", e))?;

    try_join_all(ends.iter().enumerate().map(async |(n, end)| {
        let name = name(n);
        let made = async {
            netlink.add_veth(&name, &end.endpoint.interface, end.host.namespace()).await?;
            netlink.up_with_mtu(&name, end.mtu).await
        };
        made.await.map_err(|e| LabError::step(&end.endpoint, "make a veth pair to the relay", e))
    }))
    .await?;

    // A socket's ring takes a while to be made: all of them at once.
    let opened = try_join_all(ends.iter().enumerate().map(async |(n, end)| {
        let (largest, offload) = (end.mtu as usize + FRAME_HEADER, end.offload);
        let port = namespace.enter(move || packet::open(&name(n), largest, offload)).await;
        match port.flatten() {
            Ok(port) => Ok((end.endpoint.clone(), port)),
            Err(e) => Err(LabError::step(&end.endpoint, "open a packet socket to it", e)),
        }
    }));
    Ok(opened.await?.into_iter().collect())
}

fn name(n: usize) -> String {
    format!("port{n}")
}

//! One RDMA device of a host, from its making to its deletion.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use rdma_http::fabric::FabricKind;
use sha2::{Digest as _, Sha256};

use super::events::Events;
use super::message::DeviceIndex;
use super::{Kind, RdmaError, Socket, sysfs};
use crate::agent::protocol::{DeviceStatus, PortState};
use crate::lab::netns::Namespace;

/// How long a port and its GIDs may take.
const SETTLE: Duration = Duration::from_secs(10);

/// `IB_DEVICE_NAME_MAX`, without the zero at its end.
const LONGEST_NAME: usize = 63;

/// The port of RoCEv2 (Annex A17 of the InfiniBand Architecture, section A17.3.1.1).
const ROCE_PORT: u16 = 4791;

/// A device that exists.
#[derive(Debug)]
pub(crate) struct Device {
    kind: Kind,
    name: String,
    index: DeviceIndex,
    interface: String,
}

impl Device {
    /// Makes a device on `interface` of `host`, which must be up with its `address`, and waits until it can be used.
    pub(crate) async fn create(
        socket: &Socket,
        namespace: &Namespace,
        kind: Kind,
        host: &str,
        interface: &str,
        address: IpAddr,
    ) -> Result<Self, RdmaError> {
        let there = socket.list().await?;
        let name = name(kind, host, interface, |name| there.iter().any(|(_, other)| other == name));
        socket.add(kind, &name, interface).await?;
        let made = socket.list().await?.into_iter().find(|(_, other)| *other == name);
        let Some((index, name)) = made else {
            let cause = io::ErrorKind::NotFound.into();
            return Err(RdmaError::Other { step: "find it after it was made", cause });
        };
        let device = Self { kind, name, index, interface: interface.to_owned() };
        let ready = async {
            if kind == Kind::Rxe {
                listens(namespace).await?;
            }
            device.settle(address).await
        };
        if let Err(error) = ready.await {
            if let Err(error) = device.delete(socket).await {
                tracing::warn!(%error, "an RDMA device is left");
            }
            return Err(error);
        }
        Ok(device)
    }

    /// Deletes it.
    pub(crate) async fn delete(self, socket: &Socket) -> Result<(), RdmaError> {
        socket.delete(self.index).await
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// How it is now.
    pub(crate) fn status(&self) -> DeviceStatus {
        DeviceStatus {
            name: self.name.clone(),
            interface: self.interface.clone(),
            fabric: match self.kind {
                Kind::Siw => FabricKind::Siw,
                Kind::Rxe => FabricKind::Rxe,
            },
            state: sysfs::state(&self.name).unwrap_or(PortState::Unknown),
            gids: sysfs::gids(&self.name).unwrap_or_default(),
        }
    }

    /// Waits until the port is active and has the GID of the interface's address.
    async fn settle(&self, address: IpAddr) -> Result<(), RdmaError> {
        let cannot = |step| move |cause| RdmaError::Other { step, cause };
        let missing = || self.missing(address).map_err(cannot("read its state under /sys/class/infiniband"));
        if missing()?.is_none() {
            return Ok(());
        }
        let events = Events::open(&self.name).map_err(cannot("wait for its events"))?;
        let wait = async {
            // Looked at again: what happened before the events began is not told.
            while missing()?.is_some() {
                events.next().await.map_err(cannot("wait for its events"))?;
            }
            Ok(())
        };
        match tokio::time::timeout(SETTLE, wait).await {
            Ok(settled) => settled,
            Err(_) => match missing()? {
                None => Ok(()),
                Some(missing) => Err(RdmaError::NotSettled { seconds: SETTLE.as_secs(), missing }),
            },
        }
    }

    /// What it still lacks.
    fn missing(&self, address: IpAddr) -> io::Result<Option<String>> {
        let state = sysfs::state(&self.name)?;
        if state != PortState::Active {
            return Ok(Some(format!("its port is {state}")));
        }
        // An iWARP device has one GID, made of its MAC address (RFC 5040 has no GIDs): connections go by IP address.
        if self.kind == Kind::Siw {
            return Ok(None);
        }
        let gid = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let there = sysfs::gids(&self.name)?.iter().any(|entry| entry.gid == gid);
        Ok((!there).then(|| format!("it has no GID {gid}")))
    }
}

/// Whether an rxe device takes packets in this namespace: before rxe had a socket for each, all that came to a device in a
/// namespace was lost without a word.
async fn listens(namespace: &Namespace) -> Result<(), RdmaError> {
    let read = namespace.enter(|| {
        let sockets =
            ["udp", "udp6"].map(|kind| std::fs::read_to_string(format!("/proc/thread-self/net/{kind}")));
        sockets.into_iter().flatten().any(|text| is_bound(&text, ROCE_PORT))
    });
    let bound = read.await.map_err(|cause| RdmaError::Other { step: "look for its UDP socket", cause })?;
    if bound {
        return Ok(());
    }
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    Err(RdmaError::NoNamespaces { release: release.unwrap_or_else(|_| "unknown".to_owned()) })
}

/// proc_pid_net(5): a line of headings; then a number, the local address as `HEX:PORT` in hexadecimal, and more.
fn is_bound(text: &str, port: u16) -> bool {
    let ports = text.lines().skip(1).filter_map(|line| {
        let local = line.split_whitespace().nth(1)?;
        u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()
    });
    ports.into_iter().any(|bound| bound == port)
}

/// `siw-server-eth0`, or, where another lab has that, `siw-server-eth0-2`.
fn name(kind: Kind, host: &str, interface: &str, taken: impl Fn(&str) -> bool) -> String {
    let mut name = format!("{}-{host}-{interface}", kind.link_type());
    /// For `-` and a number.
    const ROOM: usize = 4;
    if name.len() > LONGEST_NAME - ROOM {
        let digest = Sha256::digest(&name);
        let short: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        name = format!("{}-{short}-{interface}", kind.link_type());
    }
    let candidates = (2..).map(|n| format!("{name}-{n}"));
    std::iter::once(name.clone()).chain(candidates).find(|name| !taken(name)).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_kind_host_and_interface_and_is_free() {
        let of = |host: &str, taken: &[&str]| name(Kind::Siw, host, "eth0", |name| taken.contains(&name));
        assert_eq!(of("server", &[]), "siw-server-eth0");
        assert_eq!(of("server", &["siw-server-eth0", "siw-server-eth0-2"]), "siw-server-eth0-3");
        let (long, other) = (of(&"h".repeat(63), &[]), of(&"i".repeat(63), &[]));
        assert!(long.len() <= LONGEST_NAME && long != other, "{long} {other}");
    }

    #[test]
    fn a_bound_port_is_found() {
        let text = "\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  104: 00000000:12B7 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 0 2 0000000060d5b400 0
";
        assert!(is_bound(text, 4791));
        assert!(!is_bound(text, 4790));
        assert!(!is_bound("", 4791));
    }
}

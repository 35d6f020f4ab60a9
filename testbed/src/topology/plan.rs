//! What a lab will be made of, as pure data: every name, address and number decided, nothing left to look up. It is what
//! `--dry-run` prints and what the agent is given.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use rdma_http::fabric::FabricKind;
use serde::{Deserialize, Serialize};

/// A whole lab.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The topology's name; also the lab's, unless the user gave it another.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// On a fabric of the kernel's, every interface of every host has an RDMA device of that kind.
    #[serde(default)]
    pub fabric: FabricKind,
    /// In the order of the file.
    pub hosts: Vec<HostPlan>,
    /// In the order of the file.
    pub links: Vec<LinkPlan>,
}

impl Plan {
    /// The MTU of an interface; that of Ethernet if there is no such interface.
    pub fn mtu(&self, end: &Endpoint) -> u32 {
        let host = self.hosts.iter().find(|host| host.name == end.host);
        let interface = host.and_then(|host| host.interfaces.iter().find(|i| i.name == end.interface));
        interface.map_or(1_500, |interface| interface.mtu)
    }
}

/// One network namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPlan {
    /// Also its name in the lab's `/etc/hosts`.
    pub name: String,
    /// Its interfaces besides `lo`.
    pub interfaces: Vec<InterfacePlan>,
    /// Settings under `/proc/sys` of its namespace: `net.ipv4.tcp_rmem` -> `4096 131072 134217728`.
    pub sysctls: BTreeMap<String, String>,
}

impl HostPlan {
    /// Its first address, by which the others know it.
    pub fn address(&self) -> Option<IpAddr> {
        self.interfaces.first().map(|i| i.address.addr())
    }
}

/// One interface of a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterfacePlan {
    /// `eth0`; at most 15 bytes.
    pub name: String,
    /// Its MAC address, the same in every run.
    pub mac: Mac,
    /// Its address and prefix length.
    pub address: IpNet,
    /// Bytes of the largest IP packet.
    pub mtu: u32,
    /// Permanent neighbour entries, so that no run differs by an ARP exchange.
    pub neighbors: Vec<(IpAddr, Mac)>,
}

/// A MAC address, `02:00:00:00:00:01`, as which it is also serialised.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mac(pub [u8; 6]);

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let octets: Option<Vec<u8>> =
            text.split(':').map(|octet| u8::from_str_radix(octet, 16).ok()).collect();
        octets
            .and_then(|octets| octets.try_into().ok())
            .map(Self)
            .ok_or_else(|| format!("\"{text}\" is no MAC address"))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A link between two interfaces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkPlan {
    /// `server:eth0--client:eth0`, or the name that the file gives it.
    pub name: String,
    /// One end.
    pub a: Endpoint,
    /// The other end.
    pub b: Endpoint,
    /// What happens to frames from `a` to `b`.
    pub a_to_b: Impairment,
    /// What happens to frames from `b` to `a`.
    pub b_to_a: Impairment,
    /// Who does it.
    pub driver: Driver,
}

/// An interface of a host: `server:eth0`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// The host's name.
    pub host: String,
    /// The interface's name.
    pub interface: String,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.interface)
    }
}

/// Who emulates a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// The relay: it does whatever may be asked, alike on every machine, and can be captured.
    #[default]
    Auto,
    /// The agent forwards frames between two TAP devices (or two AF_PACKET sockets).
    Relay,
    /// A veth pair with netem on each end's egress.
    Netem,
    /// A bare veth pair: nothing is emulated, nothing can be captured. What the others are measured against.
    Veth,
}

/// What one direction of a link does to frames. The default is a wire that does nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Impairment {
    /// Added to every frame.
    pub delay: Duration,
    /// Standard deviation of the delay; zero is none.
    pub jitter: Duration,
    /// Bits per second on the wire, counting Ethernet frames without preamble and FCS; `None` is unlimited.
    pub rate: Option<u64>,
    /// Bytes that may wait for the rate (not those under way in the delay); `None` is unlimited.
    pub queue: Option<u64>,
    /// Probability of a frame being lost, 0 to 1.
    pub loss: f64,
    /// Probability of a frame overtaking those before it, 0 to 1.
    pub reorder: f64,
    /// Probability of a frame being sent twice, 0 to 1.
    pub duplicate: f64,
    /// Probability of a frame having a bit flipped, 0 to 1.
    pub corrupt: f64,
}

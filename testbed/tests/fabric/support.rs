//! The fabric under test, and two ends of a connection on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rdma_http::fabric::soft::SoftFabric;
use rdma_http::fabric::verbs::VerbsFabric;
use rdma_http::fabric::{
    Access, ConnectOptions, Connection, Fabric, FabricError, FabricKind, Listener, Pd, Region, RemoteAddress,
};

/// Long enough for a loaded machine; only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Says which fabric to try; soft without it.
pub(crate) const FABRIC: &str = "FABRIC_UNDER_TEST";

/// An address of this host that the fabric is reached by; loopback without it.
pub(crate) const ADDRESS: &str = "FABRIC_ADDRESS";

/// Another, of IP version 6; loopback without it.
pub(crate) const ADDRESS_V6: &str = "FABRIC_ADDRESS_V6";

/// The fabric under test.
pub(crate) fn kind() -> FabricKind {
    match std::env::var(FABRIC).as_deref() {
        Err(_) | Ok("soft") => FabricKind::Soft,
        Ok("siw") => FabricKind::Siw,
        Ok("rxe") => FabricKind::Rxe,
        Ok(other) => panic!("{FABRIC}={other}"),
    }
}

pub(crate) fn fabric() -> Arc<dyn Fabric> {
    match kind() {
        FabricKind::Soft => Arc::new(SoftFabric::default()),
        kind => Arc::new(VerbsFabric::open(kind).unwrap()),
    }
}

/// Where to listen.
pub(crate) fn any_port() -> SocketAddr {
    let ip = std::env::var(ADDRESS).map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |ip| ip.parse().unwrap());
    (ip, 0).into()
}

/// Where to listen on IP version 6.
pub(crate) fn any_port_v6() -> SocketAddr {
    let ip = std::env::var(ADDRESS_V6).map_or(IpAddr::V6(Ipv6Addr::LOCALHOST), |ip| ip.parse().unwrap());
    (ip, 0).into()
}

#[track_caller]
pub(crate) fn soon<T>(future: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let result = tokio::time::timeout(PATIENCE, future).await;
        result.unwrap_or_else(|_| panic!("what {caller} waits for does not come"))
    }
}

/// One end of a connection.
pub(crate) struct End {
    pub(crate) pd: Pd,
    pub(crate) connection: Arc<dyn Connection>,
}

impl End {
    pub(crate) fn region(&self, memory: Vec<u8>, access: Access) -> Region {
        self.pd.register(memory, access).unwrap()
    }
}

/// Two ends in this process, each in a domain of its own; the first is the one that connected.
pub(crate) async fn pair_of(fabric: &dyn Fabric, ours: ConnectOptions, theirs: ConnectOptions) -> (End, End) {
    let listener = fabric.listen(any_port()).await.unwrap();
    pair_on(fabric, &*listener, ours, theirs).await
}

pub(crate) async fn pair_on(
    fabric: &dyn Fabric,
    listener: &dyn Listener,
    ours: ConnectOptions,
    theirs: ConnectOptions,
) -> (End, End) {
    pair_between(fabric, ours, fabric, listener, theirs).await
}

/// Two ends on two fabrics that talk to each other.
pub(crate) async fn pair_between(
    connecting: &dyn Fabric,
    ours: ConnectOptions,
    listening: &dyn Fabric,
    listener: &dyn Listener,
    theirs: ConnectOptions,
) -> (End, End) {
    let to = listener.local_addr();
    pair_at(connecting, to, ours, listening, listener, theirs).await
}

/// The same, where the listener is reached by another address than it has itself.
pub(crate) async fn pair_at(
    connecting: &dyn Fabric,
    to: SocketAddr,
    ours: ConnectOptions,
    listening: &dyn Fabric,
    listener: &dyn Listener,
    theirs: ConnectOptions,
) -> (End, End) {
    let (a, b) = (connecting.allocate_pd().unwrap(), listening.allocate_pd().unwrap());
    let connect = connecting.connect(&a, to, ours);
    let accept = async { listener.accept().await?.accept(&b, theirs).await };
    let (connected, accepted) = soon(async { tokio::join!(connect, accept) }).await;
    match (connected, accepted) {
        (Ok(connected), Ok(accepted)) => {
            (End { pd: a, connection: connected }, End { pd: b, connection: accepted })
        }
        (connected, accepted) => panic!("{:?} {:?}", connected.map(drop), accepted.map(drop)),
    }
}

pub(crate) async fn pair() -> (End, End) {
    pair_of(&*fabric(), ConnectOptions::default(), ConnectOptions::default()).await
}

pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 + i / 251) as u8).collect()
}

pub(crate) fn at(region: &Region, to: u64) -> RemoteAddress {
    RemoteAddress { stag: region.stag(), to: region.base() + to }
}

/// Private data as it arrives: RoCE pads it with zeros.
#[track_caller]
pub(crate) fn assert_private_data(arrived: &[u8], sent: &[u8]) {
    let (head, tail) = arrived.split_at(sent.len().min(arrived.len()));
    assert_eq!(head, sent);
    assert!(tail.iter().all(|byte| *byte == 0), "{arrived:?}");
    assert!(tail.is_empty() || kind() == FabricKind::Rxe, "{arrived:?}");
}

/// The ways in which a connection may end that a peer's or our own fault broke off.
#[track_caller]
pub(crate) fn assert_broken(error: &FabricError) {
    match error {
        FabricError::Closed
        | FabricError::TerminatedByPeer(_)
        | FabricError::Protocol(_)
        | FabricError::WorkCompletion { .. }
        | FabricError::Io { .. } => {}
        other => panic!("{other:?}"),
    }
}

/// Says that a test cannot run here, or fails where everything has to.
pub(crate) fn skip(test: &str, reason: &str) {
    assert!(std::env::var_os("TESTBED_REQUIRE_ALL").is_none(), "{test}: {reason}");
    eprintln!("SKIP {test}: {reason}");
}

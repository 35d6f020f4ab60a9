//! Many clients at once, some of which vanish: nobody gets a wrong byte, and nothing is left of anybody. The same with a
//! thousand, measured: `cargo bench --bench http -- crowd`.

#[path = "../../benches/http/clients.rs"]
mod clients;

use std::sync::Arc;
use std::time::Duration;

use rdma_http::fabric::soft::{SoftFabric, SoftOptions};
use rdma_http::server::{Files, Metrics, RdmaConfig, RdmaLayer, ServeOptions, serve};
use tokio::sync::Notify;
use tower::Layer;

use crate::support::Told;

fn figure(metrics: &Metrics, name: &str) -> u64 {
    let text = metrics.text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_gets_its_bodies_and_leaves_nothing() {
    let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bodies = clients::Bodies::make(root.path(), outside.path(), 1).unwrap();
    let fabric = Arc::new(SoftFabric::new(SoftOptions::default()));
    let (told, config) = (Arc::new(Notify::new()), RdmaConfig::default());
    let files = Files::new(root.path(), config.chunk, true);
    let layer = RdmaLayer::new(fabric, config, Told::of(&told));
    layer.accept_clients("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let metrics = layer.metrics();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let serving = tokio::spawn(serve(listener, layer.layer(files), ServeOptions::default(), stopped));

    let (tally, why) = clients::run(address, Arc::new(bodies), (100, 5), 1).await.unwrap();
    assert_eq!((tally.wrong, tally.failed), (0, 0), "{tally:?}: {why:?}");
    assert!(tally.by_tcp > 0 && tally.by_rdma > 0 && tally.vanished > 0, "{tally:?}");
    assert_eq!(tally.served() + tally.vanished, 500, "{tally:?}");

    // While it goes on serving.
    let gone = async {
        while figure(&metrics, "rdma_http_regions") + figure(&metrics, "rdma_http_rdma_connections") > 0 {
            told.notified().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone)
        .await
        .unwrap_or_else(|_| panic!("{}", metrics.text()));
    stop.send(()).unwrap();
    serving.await.unwrap();
    for name in ["rdma_http_registered_bytes", "rdma_http_transfers_under_way"] {
        assert_eq!(figure(&metrics, name), 0, "{name}");
    }
    let left = root.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name());
    let begun: Vec<_> = left.filter(|name| name.as_encoded_bytes().starts_with(b".")).collect();
    assert!(begun.is_empty(), "begun and left: {begun:?}");
}

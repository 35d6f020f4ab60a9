//! An axum application that gets RDMA by one layer around it. Its routes know nothing of that: they answer JSON, stream,
//! and serve files, to any client.
//!
//! ```sh
//! cargo run --example axum -- 127.0.0.1:8080 .
//! rdma-fetch --require-rdma http://127.0.0.1:8080/files/README.md -o -
//! curl http://127.0.0.1:8080/stream/3000000 | wc -c
//! curl --json '{"values": [1, 2, 3]}' http://127.0.0.1:8080/sum
//! ```

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::Path as Segment;
use axum::http::header::CONTENT_LENGTH;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream;
use rdma_http::events::Recorder;
use rdma_http::fabric::soft::SoftFabric;
use rdma_http::server::{RdmaConfig, RdmaLayer, ServeOptions, serve};
use serde::{Deserialize, Serialize};
use tower::Layer;
use tower_http::services::ServeDir;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [listen, directory] = args.as_slice() else { return Err("usage: axum ADDR:PORT DIRECTORY".into()) };
    let listener = tokio::net::TcpListener::bind(listen).await?;
    println!("listening on http://{}/", listener.local_addr()?);
    // All that is needed: a layer around the application, and an accept loop that tells it of each connection.
    let layer = RdmaLayer::new(Arc::new(SoftFabric::default()), RdmaConfig::default(), Recorder::default());
    let service = layer.layer(app(Path::new(directory)));
    serve(listener, service, ServeOptions::default(), tokio::signal::ctrl_c()).await;
    Ok(())
}

/// The application, as it would be without RDMA.
pub(crate) fn app(directory: &Path) -> Router {
    Router::new()
        .route("/numbers/{count}", get(numbers))
        .route("/sum", post(sum))
        .route("/stream/{bytes}", get(streamed))
        .route("/ticks/{count}", get(ticks))
        .nest_service("/files", ServeDir::new(directory))
}

#[derive(Serialize, Deserialize)]
struct Numbers {
    values: Vec<u64>,
}

/// JSON out.
async fn numbers(Segment(count): Segment<u64>) -> Json<Numbers> {
    Json(Numbers { values: (0..count.min(1_000_000)).collect() })
}

/// JSON in and out.
async fn sum(Json(numbers): Json<Numbers>) -> Json<u64> {
    Json(numbers.values.iter().fold(0, |sum, value| sum.wrapping_add(*value)))
}

/// A stream that tells how long it will be.
async fn streamed(Segment(length): Segment<usize>) -> Response {
    let pieces = stream::unfold(0, move |at| async move {
        let piece: Vec<u8> = (at..length.min(at + 10_000)).map(|n| (n % 251) as u8).collect();
        (!piece.is_empty()).then(|| (Ok::<_, std::io::Error>(Bytes::from(piece)), at + 10_000))
    });
    ([(CONTENT_LENGTH, length)], Body::from_stream(pieces)).into_response()
}

/// A stream of which nobody knows how long it will be: it goes over TCP, as ever.
async fn ticks(Segment(count): Segment<u32>) -> Body {
    let lines = stream::iter((0..count).map(|n| Ok::<_, std::io::Error>(format!("tick {n}\n"))));
    Body::from_stream(lines)
}

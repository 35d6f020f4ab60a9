//! A tower layer that adds RDMA to any HTTP service without changing it, and what it takes to serve with it.
//!
//! [`RdmaLayer`] wraps a service whose responses have an `http_body` body; [`serve`] is an accept loop that gives the layer
//! what it needs to know of the HTTP connection, as an extension of each request ([`HttpConnection`]).
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use rdma_http::{events::Recorder, fabric::Fabric, server::{RdmaConfig, RdmaLayer, ServeOptions, serve}};
//! # async fn run(fabric: Arc<dyn Fabric>) -> std::io::Result<()> {
//! use tower::Layer;
//!
//! let layer = RdmaLayer::new(fabric, RdmaConfig::default(), Recorder::default());
//! let service = layer.layer(tower_http::services::ServeDir::new("/srv"));
//! let listener = tokio::net::TcpListener::bind("10.0.0.1:8080").await?;
//! serve(listener, service, ServeOptions::default(), std::future::pending::<()>()).await;
//! # Ok(())
//! # }
//! ```

mod accept;
mod body;
mod config;
mod connection;
mod download;
mod files;
mod in_place;
mod introduce;
mod layer;
mod linger;
mod lookup;
mod metrics;
mod respond;
mod rooms;
mod store;
mod upload;
mod watched;

pub(crate) use accept::prepare;
pub use accept::{ServeOptions, serve};
pub use body::{BoxError, LayerBody, Plain, RequestBody, ResponseBody};
pub use config::RdmaConfig;
pub use connection::HttpConnection;
pub use files::Files;
pub use layer::{RdmaLayer, RdmaService, ResponseFuture};
pub(crate) use metrics::Limit;
pub use metrics::{CONTENT_TYPE_TEXT, Metrics};

//! Figures of a layer, for Prometheus: counted as things happen, told when asked.

use std::convert::Infallible;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;
use tower::service_fn;

use super::accept::{ServeOptions, serve};
use super::config::RdmaConfig;
use crate::events::{Event, Recorder};
use crate::fabric::{Fabric, Met};
use crate::header::{Mode, Reason};
use crate::memory::Budget;

/// A layer's figures. Clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

struct Inner {
    registry: Registry,
    figures: Figures,
    /// Those of [`Figures::responses`] by status from 100 on: they are counted for every request.
    by_status: Vec<OnceLock<Counter>>,
    budget: Budget,
    fabric: Arc<dyn Fabric>,
    /// HTTP connections at once.
    most: AtomicI64,
}

#[derive(Clone, Default)]
struct Figures {
    responses: Family<Status, Counter>,
    transfers: Family<Ended, Counter>,
    bytes: Family<ByMode, Counter>,
    fallbacks: Family<Why, Counter>,
    under_way: Gauge,
    connections: Gauge,
    connected: Counter,
    regions: Gauge,
    reserved: Gauge,
    http: Gauge,
    accepted: Counter,
    limits: Family<Setting, Gauge<f64, AtomicU64>>,
    limited: Family<Setting, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Status {
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    mode: Mode,
    result: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByMode {
    mode: Mode,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: String,
}

/// A limit, by the name of its flag.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Setting {
    setting: &'static str,
}

/// A limit's value, as it is told.
pub(crate) enum Limit {
    /// Of whatever there are so many.
    Number(usize),
    /// Bytes, or bytes a second.
    Bytes(u64),
    /// A time.
    Time(Duration),
}

impl EncodeLabelValue for Mode {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.token(), encoder)
    }
}

impl Metrics {
    pub(super) fn new(config: &RdmaConfig, budget: Budget, fabric: Arc<dyn Fabric>) -> Self {
        let figures = Figures::default();
        let mut registry = Registry::with_prefix("rdma_http");
        registry.register("responses", "HTTP responses by status", figures.responses.clone());
        registry.register("transfers", "Bodies that were begun by RDMA", figures.transfers.clone());
        let bytes = figures.bytes.clone();
        registry.register_with_unit("transferred", "Bytes of bodies moved by RDMA", Unit::Bytes, bytes);
        registry.register("transfers_under_way", "Transfers now", figures.under_way.clone());
        let fallbacks = figures.fallbacks.clone();
        registry.register("fallbacks", "Bodies that went over TCP although RDMA was asked for", fallbacks);
        registry.register("rdma_connections", "RDMA connections now", figures.connections.clone());
        registry.register(
            "rdma_connections_made",
            "RDMA connections since the start",
            figures.connected.clone(),
        );
        registry.register("regions", "Registered regions now", figures.regions.clone());
        let reserved = figures.reserved.clone();
        let help = "Memory that transfers and connections may have registered now";
        registry.register_with_unit("registered", help, Unit::Bytes, reserved);
        registry.register("http_connections", "HTTP connections now", figures.http.clone());
        let help = "HTTP connections since the start";
        registry.register("http_connections_accepted", help, figures.accepted.clone());
        let help = "The limits, by the names of their settings, in bytes, seconds or numbers";
        registry.register("limit", help, figures.limits.clone());
        let help = "How often a limit was met, and something refused or given up for it";
        registry.register("limited", help, figures.limited.clone());
        for (name, help, limit) in [
            ("registered_limit", "The limit of registered memory", config.max_registered),
            ("registered_peer_limit", "The same for one client's address", config.max_registered_per_peer),
        ] {
            let gauge: Gauge = Gauge::default();
            gauge.set(clamp(limit));
            registry.register_with_unit(name, help, Unit::Bytes, gauge);
        }
        let by_status = (100..1000).map(|_| OnceLock::new()).collect();
        let metrics =
            Self(Arc::new(Inner { registry, figures, by_status, budget, fabric, most: AtomicI64::new(0) }));
        for (setting, limit) in [
            ("chunk-size", Limit::Bytes(config.chunk as u64)),
            ("window", Limit::Number(config.window)),
            ("max-registered", Limit::Bytes(config.max_registered)),
            ("max-registered-per-peer", Limit::Bytes(config.max_registered_per_peer)),
            ("max-introductions", Limit::Number(config.max_introductions)),
            ("connect-timeout", Limit::Time(config.connect_timeout)),
            ("stall-timeout", Limit::Time(config.stall_timeout)),
            ("min-rate", Limit::Bytes(config.min_rate)),
        ] {
            metrics.limit(setting, limit);
        }
        metrics
    }

    /// Tells of a limit; that it was never met is a figure, too.
    pub(crate) fn limit(&self, setting: &'static str, limit: Limit) {
        let value = match limit {
            Limit::Number(number) => number as f64,
            Limit::Bytes(bytes) => bytes as f64,
            Limit::Time(time) => time.as_secs_f64(),
        };
        let setting = Setting { setting };
        self.0.figures.limits.get_or_create_owned(&setting).set(value);
        drop(self.0.figures.limited.get_or_create_owned(&setting));
    }

    /// A limit was met.
    pub(crate) fn limited(&self, setting: &'static str) {
        self.0.figures.limited.get_or_create_owned(&Setting { setting }).inc();
    }

    /// An HTTP connection was accepted.
    pub(super) fn arrived(&self) {
        self.0.figures.accepted.inc();
        let before = self.0.figures.http.inc();
        self.0.most.fetch_max(before + 1, Ordering::Relaxed);
    }

    /// It has ended.
    pub(super) fn left(&self) {
        self.0.figures.http.dec();
    }

    /// HTTP connections that there are, and the most that there were at once.
    pub(crate) fn http_connections(&self) -> (u64, u64) {
        let (now, most) = (self.0.figures.http.get(), self.0.most.load(Ordering::Relaxed));
        (now.unsigned_abs(), most.unsigned_abs())
    }

    /// The most is counted anew.
    pub(crate) fn forget_most(&self) {
        self.0.most.store(self.0.figures.http.get(), Ordering::Relaxed);
    }

    /// All figures as text, in the format that [`CONTENT_TYPE_TEXT`] names.
    pub fn text(&self) -> String {
        self.0.figures.reserved.set(clamp(self.0.budget.used()));
        let Met { regions, half_open } = self.0.fabric.met();
        for (setting, met) in [("max-regions", regions), ("max-half-open", half_open)] {
            self.0
                .figures
                .limited
                .get_or_create_owned(&Setting { setting })
                .inner()
                .store(met, Ordering::Relaxed);
        }
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.0.registry);
        text
    }

    /// A recorder that counts what it is told, and passes it on to `recorder`.
    pub(super) fn listen(&self, recorder: Recorder) -> Recorder {
        let figures = self.0.figures.clone();
        recorder.with_listener(Arc::new(move |event| match event {
            Event::RdmaConnected { .. } => {
                figures.connections.inc();
                figures.connected.inc();
            }
            Event::RdmaClosed { .. } => {
                figures.connections.dec();
            }
            Event::RegionRegistered { .. } => {
                figures.regions.inc();
            }
            Event::RegionReleased { .. } => {
                figures.regions.dec();
            }
            Event::HeaderIgnored { .. } => {
                let reason = Reason::MALFORMED.to_string();
                figures.fallbacks.get_or_create_owned(&Why { reason }).inc();
            }
            Event::Fallback { reason } => {
                figures.fallbacks.get_or_create_owned(&Why { reason: reason.clone() }).inc();
            }
            _ => {}
        }))
    }

    pub(super) fn responded(&self, status: StatusCode) {
        let status = status.as_u16();
        // A status has three digits.
        if let Some(counter) = self.0.by_status.get(usize::from(status).wrapping_sub(100)) {
            counter.get_or_init(|| self.0.figures.responses.get_or_create_owned(&Status { status })).inc();
        }
    }

    pub(super) fn begun(&self) {
        self.0.figures.under_way.inc();
    }

    pub(super) fn ended(&self, mode: Mode, result: &str, moved: u64) {
        let figures = &self.0.figures;
        figures.under_way.dec();
        figures.transfers.get_or_create_owned(&Ended { mode, result: result.to_owned() }).inc();
        if result == Reason::TIMED_OUT.as_str() {
            self.limited("stall-timeout");
        }
        figures.bytes.get_or_create_owned(&ByMode { mode }).inc_by(moved);
    }

    /// Serves them at `/metrics` until `stop` resolves.
    pub async fn serve(self, listener: TcpListener, stop: impl Future) {
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            std::future::ready(Ok::<_, Infallible>(self.answer(request.method(), request.uri().path())))
        });
        let options = ServeOptions { max_connections: 16, ..ServeOptions::default() };
        serve(listener, service, options, stop).await;
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let (status, text) = match path {
            "/metrics" if matches!(*method, Method::GET | Method::HEAD) => (StatusCode::OK, self.text()),
            "/metrics" => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
            _ => (StatusCode::NOT_FOUND, "the figures are at /metrics\n".to_owned()),
        };
        let kind = if status == StatusCode::OK { CONTENT_TYPE_TEXT } else { "text/plain; charset=utf-8" };
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET,HEAD"));
        }
        response
    }
}

/// What [`Metrics::text`] is.
pub const CONTENT_TYPE_TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How a transfer that broke is called, after the reason that the response has, if it has one.
pub(super) fn broken(reason: Option<Reason>) -> String {
    reason.map_or_else(|| "body".to_owned(), |reason| reason.to_string())
}

fn clamp(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::Access;
    use crate::fabric::soft::{SoftFabric, SoftOptions};

    #[test]
    fn figures_are_counted_and_told() {
        let soft = SoftFabric::new(SoftOptions { max_regions: 0, ..SoftOptions::default() });
        let pd = soft.allocate_pd().unwrap();
        assert!(pd.register(Vec::new(), Access::LOCAL_READ).is_err());
        let config = RdmaConfig::default();
        let budget = Budget::new(config.max_registered, config.max_registered_per_peer);
        let metrics = Metrics::new(&config, budget.clone(), Arc::new(soft));
        let recorder = metrics.listen(Recorder::default());
        recorder.record(Event::Fallback { reason: "too-large".into() });
        recorder.record(Event::RegionRegistered { stag: 1, length: 2, access: "write".into(), base: 0 });
        metrics.begun();
        metrics.ended(Mode::ServerWrites, "done", 77);
        metrics.responded(StatusCode::NOT_FOUND);
        let share = budget.reserve([10, 0, 0, 1].into(), 4096).unwrap();
        let text = metrics.text();
        for line in [
            "rdma_http_fallbacks_total{reason=\"too-large\"} 1",
            "rdma_http_transfers_total{mode=\"server-writes\",result=\"done\"} 1",
            "rdma_http_transferred_bytes_total{mode=\"server-writes\"} 77",
            "rdma_http_transfers_under_way 0",
            "rdma_http_responses_total{status=\"404\"} 1",
            "rdma_http_regions 1",
            "rdma_http_registered_bytes 4096",
            "rdma_http_registered_limit_bytes 1073741824",
            "# TYPE rdma_http_rdma_connections gauge",
            "rdma_http_limited_total{setting=\"max-regions\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
        }
        drop(share);
        assert!(metrics.text().contains("rdma_http_registered_bytes 0\n"));
        assert_eq!(metrics.answer(&Method::GET, "/").status(), StatusCode::NOT_FOUND);
        assert_eq!(metrics.answer(&Method::POST, "/metrics").status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(metrics.answer(&Method::GET, "/metrics").headers()[CONTENT_TYPE], CONTENT_TYPE_TEXT);
    }
}

//! What the system did, told as it happens: one JSON object a line, for whoever watches (`--events`).
//!
//! These are facts, not log lines: the testbed builds its observations from them, so their names and fields are an
//! interface. Volatile values (ports, STags, addresses) are given as they are; the reader normalises.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// An event and when it happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Microseconds on the monotonic clock, which all processes of a machine have in common.
    pub at_us: u64,
    /// What happened.
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Event {
    /// The server accepts requests.
    Listening {
        /// Where, with the port that was taken.
        address: std::net::SocketAddr,
    },
    /// An HTTP request head was sent (client) or received (server).
    HttpRequest {
        /// Numbers the exchanges of this process from 1.
        exchange: u64,
        /// `GET`.
        method: String,
        /// The request target.
        target: String,
        /// Field names in lower case with their values, in order.
        headers: Vec<(String, String)>,
    },
    /// An HTTP response head was sent (server) or received (client).
    HttpResponse {
        /// The exchange it ends.
        exchange: u64,
        /// The status code.
        status: u16,
        /// Field names in lower case with their values, in order.
        headers: Vec<(String, String)>,
    },
    /// A region was registered.
    RegionRegistered {
        /// Its STag.
        stag: u32,
        /// Its length in bytes.
        length: u64,
        /// What the peer may do to it.
        access: String,
        /// The tagged offset of its first byte.
        #[serde(default)]
        base: u64,
    },
    /// A region was deregistered.
    RegionReleased {
        /// Its STag.
        stag: u32,
    },
    /// An RDMA connection's memory is all released: what it took.
    Memory {
        /// `static`, `dynamic`, `cache` or `sendfile`.
        strategy: String,
        /// How often memory was registered.
        registrations: u64,
        /// Bytes that were copied into or out of registered memory.
        copied: u64,
        /// Bytes that were registered at one time, at most.
        pinned: u64,
    },
    /// An RDMA connection was established.
    RdmaConnected {
        /// Our address.
        local: std::net::SocketAddr,
        /// The peer's address.
        peer: std::net::SocketAddr,
        /// Whether we connected (else we accepted).
        initiator: bool,
    },
    /// An RDMA connection ended.
    RdmaClosed {
        /// Our address.
        local: std::net::SocketAddr,
        /// The peer's address.
        peer: std::net::SocketAddr,
    },
    /// An RDMA operation completed here: `write`, `read`, `send` or `receive`.
    Operation {
        /// Which.
        op: String,
        /// Bytes.
        length: u64,
        /// The remote region, for `write` and `read`.
        stag: Option<u32>,
        /// The remote offset, for `write` and `read`.
        to: Option<u64>,
    },
    /// The body goes over TCP although RDMA was asked for.
    Fallback {
        /// The reason's token, as in the response's `RDMA:` field.
        reason: String,
    },
    /// An `RDMA:` field that could not be understood; the request is served plainly.
    HeaderIgnored {
        /// What was wrong with it.
        error: String,
    },
    /// The client has the whole body.
    BodyReceived {
        /// `rdma` or `tcp`.
        via: String,
        /// Bytes.
        length: u64,
    },
    /// Something failed, in the words that the user sees.
    Failed {
        /// The message.
        error: String,
    },
}

/// A head's fields as the events hold them: names in lower case with their values, in order; secrets only as `(redacted)`.
pub fn head(headers: &http::HeaderMap) -> Vec<(String, String)> {
    use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION, SET_COOKIE};
    let text = |name: &http::HeaderName, value: &http::HeaderValue| {
        if [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION, SET_COOKIE].contains(name) {
            "(redacted)".to_owned()
        } else {
            String::from_utf8_lossy(value.as_bytes()).into_owned()
        }
    };
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(name, value))).collect()
}

/// Takes events. Cheap to clone; the default one takes them nowhere.
#[derive(Clone, Default)]
pub struct Recorder {
    sink: Option<Arc<Sink>>,
    listener: Option<Listener>,
}

/// Is told each event as it is recorded.
pub type Listener = Arc<dyn Fn(&Event) + Send + Sync>;

struct Sink {
    out: Mutex<Box<dyn Write + Send>>,
}

/// The monotonic clock, as [`Record::at_us`] has it.
pub fn now_us() -> u64 {
    // It is there on every Linux.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_on() { "Recorder(on)" } else { "Recorder(off)" })
    }
}

impl Recorder {
    /// Writes events to `path` (created, truncated), or to standard output for `-`.
    pub fn to_path(path: &Path) -> io::Result<Self> {
        if path.as_os_str() == "-" {
            Ok(Self::to_writer(io::stdout()))
        } else {
            Ok(Self::to_writer(File::create(path)?))
        }
    }

    /// Writes events to `out`, each flushed as a line of its own.
    pub fn to_writer(out: impl Write + Send + 'static) -> Self {
        let sink = Sink { out: Mutex::new(Box::new(out)) };
        Self { sink: Some(Arc::new(sink)), listener: None }
    }

    /// The same, and `listener` is told too; in place of one that there was.
    pub fn with_listener(self, listener: Listener) -> Self {
        Self { listener: Some(listener), ..self }
    }

    /// Whether events are written, for those that cost something to make.
    pub fn is_on(&self) -> bool {
        self.sink.is_some()
    }

    /// Records an event. A reader that went away is no reason to stop serving: write errors are dropped.
    pub fn record(&self, event: Event) {
        if let Some(listener) = &self.listener {
            listener(&event);
        }
        let Some(sink) = &self.sink else { return };
        let Ok(mut line) = serde_json::to_vec(&Record { at_us: now_us(), event }) else { return };
        line.push(b'\n');
        let mut out = sink.out.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = out.write_all(&line).and_then(|()| out.flush());
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn secrets_are_not_told() {
        let mut headers = http::HeaderMap::new();
        headers.insert("authorization", http::HeaderValue::from_static("Basic eDp5"));
        headers.insert("etag", http::HeaderValue::from_static("\"1\""));
        let told = super::head(&headers);
        assert!(told.contains(&("authorization".into(), "(redacted)".into())), "{told:?}");
        assert!(told.contains(&("etag".into(), "\"1\"".into())), "{told:?}");
    }
}

//! `-v`: heads and remarks on standard error, as curl prints them.

use http::header::HeaderMap;
use http::{Request, response::Parts};

use crate::client::Observer;

/// Prints to standard error.
pub(super) struct Verbose;

impl Observer for Verbose {
    fn request(&self, request: &Request<()>) {
        eprintln!("> {} {} {:?}", request.method(), request.uri(), request.version());
        fields('>', request.headers());
    }

    fn response(&self, response: &Parts) {
        let reason = response.status.canonical_reason().unwrap_or_default();
        eprintln!("< {:?} {} {reason}", response.version, response.status.as_u16());
        fields('<', &response.headers);
    }

    fn note(&self, text: &str) {
        eprintln!("* {text}");
    }
}

fn fields(mark: char, headers: &HeaderMap) {
    for (name, value) in headers {
        // A server's bytes must not steer the terminal.
        let text = String::from_utf8_lossy(value.as_bytes()).replace(char::is_control, "\u{fffd}");
        eprintln!("{mark} {name}: {text}");
    }
    eprintln!("{mark}");
}

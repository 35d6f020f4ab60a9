//! The request that asked for the connection in place. It went over TCP before there was one, and is answered on it: at
//! the server it is the first that is read from the new stream, at the client the first that is written to it and not sent.

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use http::{Request, Version};

/// What ends a head.
const END: &[u8; 4] = b"\r\n\r\n";

/// Makes a request one that asks.
pub(crate) fn ask(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(super::UPGRADE));
}

/// Whether a request may be answered on another protocol, and asks for this one.
pub(crate) fn asks<B: http_body::Body>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_11
        // After the head nothing may follow in the old protocol.
        && request.body().is_end_stream()
        && names(request.headers())
}

/// Whether a head names this protocol to go on in.
pub(crate) fn names(headers: &HeaderMap) -> bool {
    lists(headers, &CONNECTION, "upgrade") && lists(headers, &UPGRADE, super::UPGRADE)
}

/// Whether a list names `token`.
pub(crate) fn lists(headers: &HeaderMap, name: &http::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
}

/// The request's head as it is read again, without what was between the two of that hop only.
pub(crate) fn head<B>(request: &Request<B>) -> Bytes {
    let mut out = BytesMut::new();
    let target = request.uri().to_string();
    for part in [request.method().as_str(), " ", &target, " HTTP/1.1\r\n"] {
        out.put_slice(part.as_bytes());
    }
    for (name, value) in request.headers() {
        if *name != CONNECTION && *name != UPGRADE {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                out.put_slice(part);
            }
        }
    }
    out.put_slice(b"\r\n");
    out.freeze()
}

/// How much of the end of a head was seen.
#[derive(Debug, Default)]
pub(super) struct Unsent(usize);

impl Unsent {
    /// Takes what belongs to the head; returns how many bytes that is.
    pub(super) fn take(&mut self, bytes: &[u8]) -> usize {
        for (at, byte) in bytes.iter().enumerate() {
            self.0 = match (*byte == END[self.0], *byte) {
                (true, _) => self.0 + 1,
                // A CR that is not where it should be may be where the end begins.
                (false, b'\r') => 1,
                (false, _) => 0,
            };
            if self.is_over() {
                return at + 1;
            }
        }
        bytes.len()
    }

    /// Whether that was all of it.
    pub(super) fn is_over(&self) -> bool {
        self.0 == END.len()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{Empty, Full};
    use proptest::prelude::*;

    use super::*;

    fn request(text: &[(&str, &str)]) -> Request<Empty<Bytes>> {
        let mut request = Request::builder().uri("/a?b=c");
        for (name, value) in text {
            request = request.header(*name, *value);
        }
        request.body(Empty::new()).unwrap()
    }

    #[test]
    fn who_asks_says_so_twice() {
        assert!(asks(&request(&[("connection", "keep-alive, Upgrade"), ("upgrade", "h2c, RDMA")])));
        assert!(!asks(&request(&[("upgrade", "rdma")])));
        assert!(!asks(&request(&[("connection", "upgrade"), ("upgrade", "websocket")])));
        let mut asking = request(&[]);
        ask(asking.headers_mut());
        assert!(asks(&asking));
        assert!(!asks(&asking.clone().map(|_| Full::new(Bytes::from_static(b"x")))));
        *asking.version_mut() = Version::HTTP_10;
        assert!(!asks(&asking));
    }

    #[test]
    fn the_request_is_read_again_without_the_hop() {
        let mut asking = request(&[("host", "h"), ("rdma", "x"), ("x", "1"), ("x", "2")]);
        ask(asking.headers_mut());
        let expected = "GET /a?b=c HTTP/1.1\r\nhost: h\r\nrdma: x\r\nx: 1\r\nx: 2\r\n\r\n";
        assert_eq!(head(&asking), expected);
        *asking.uri_mut() = "*".parse().unwrap();
        assert!(head(&asking).starts_with(b"GET * HTTP/1.1\r\n"));
    }

    proptest! {
        #[test]
        fn nothing_but_the_head_is_held_back(
            lines in prop::collection::vec("[a\r ]{0,5}", 0..5), after in "[a\r\n]*", cuts in prop::collection::vec(1..9usize, 0..20)
        ) {
            let mut text: String = lines.iter().map(|line| format!("x{line}x\r\n")).collect();
            // A head ends where it first can.
            text.push_str("x\r\n\r\n");
            let length = text.find("\r\n\r\n").unwrap() + 4;
            text.push_str(&after);
            let (mut unsent, mut at) = (Unsent::default(), 0);
            for cut in cuts.into_iter().chain([text.len()]) {
                let piece = &text.as_bytes()[at..text.len().min(at + cut)];
                if !unsent.is_over() {
                    at += unsent.take(piece);
                }
            }
            prop_assert_eq!((unsent.is_over(), at), (true, length));
        }
    }
}

//! HTTP/1.1 as it went over the wire, one direction of a connection: heads and what followed them.

use sha2::{Digest, Sha256};

use super::{HttpHead, Item};
use crate::scenario::body::hex;

/// The longest head that is read; the system's own limit is lower.
const MAX_HEAD: usize = 64 << 10;
const MAX_FIELDS: usize = 128;

/// Which side speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaker {
    /// Requests go this way.
    Client,
    /// Responses go this way.
    Server,
}

/// Follows one direction. Holds at most one head; bodies are hashed as they pass.
#[derive(Debug)]
pub(crate) struct HttpStream {
    speaker: Speaker,
    buffer: Vec<u8>,
    state: State,
    items: Vec<Item>,
}

#[derive(Debug)]
enum State {
    Head,
    Body {
        left: Option<u64>,
        seen: u64,
        hash: Sha256,
    },
    ChunkSize {
        seen: u64,
        hash: Sha256,
    },
    ChunkData {
        left: u64,
        seen: u64,
        hash: Sha256,
    },
    ChunkEnd {
        seen: u64,
        hash: Sha256,
    },
    Trailer {
        seen: u64,
        hash: Sha256,
    },
    /// Another protocol follows, and is left in the buffer.
    Switched,
    Lost,
}

impl HttpStream {
    pub(crate) fn new(speaker: Speaker) -> Self {
        Self { speaker, buffer: Vec::new(), state: State::Head, items: Vec::new() }
    }

    /// Takes the next bytes of the direction.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = match &mut self.state {
                State::Body { left, seen, hash } => {
                    let rest = take(left, seen, hash, bytes);
                    if *left == Some(0) {
                        self.end_body();
                    }
                    rest
                }
                State::ChunkData { left, seen, hash } => {
                    let mut remaining = Some(*left);
                    let rest = take(&mut remaining, seen, hash, bytes);
                    *left = remaining.unwrap_or(0);
                    if *left == 0 {
                        let (seen, hash) = (*seen, std::mem::take(hash));
                        self.state = State::ChunkEnd { seen, hash };
                    }
                    rest
                }
                State::Lost => return,
                State::Switched => {
                    self.buffer.extend_from_slice(bytes);
                    return;
                }
                State::Head | State::ChunkSize { .. } | State::ChunkEnd { .. } | State::Trailer { .. } => {
                    self.buffer.extend_from_slice(bytes);
                    match self.line_based() {
                        Step::More => &[],
                        Step::Again => {
                            // The rest of the buffer belongs to the next state.
                            let rest = std::mem::take(&mut self.buffer);
                            self.push(&rest);
                            &[]
                        }
                    }
                }
            };
        }
    }

    /// Once an RDMA connection follows on the same stream (`Upgrade: rdma`): what has come of it.
    pub(crate) fn switched(&mut self) -> Option<Vec<u8>> {
        matches!(self.state, State::Switched).then(|| std::mem::take(&mut self.buffer))
    }

    /// What was said since this was asked last.
    pub(crate) fn take_items(&mut self) -> Vec<Item> {
        std::mem::take(&mut self.items)
    }

    /// The direction has ended: returns what it held.
    pub(crate) fn finish(mut self) -> Vec<Item> {
        match self.state {
            State::Head if self.buffer.is_empty() => {}
            State::Head => self.lost("ends inside a head"),
            State::Body { left: None, .. } => self.end_body(),
            State::Body { left: Some(left), seen, .. } => {
                self.lost(&format!("a body ends after {seen} bytes, {left} before its end"));
            }
            State::Lost | State::Switched => {}
            _ => self.lost("ends inside a chunked body"),
        }
        self.items
    }

    fn lost(&mut self, why: &str) {
        self.items.push(Item::Malformed(format!("HTTP: {why}")));
        self.state = State::Lost;
        self.buffer = Vec::new();
    }

    fn end_body(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Head);
        let (State::Body { seen, hash, .. } | State::Trailer { seen, hash }) = state else { return };
        self.items.push(Item::Body { length: seen, sha256: hex(&hash.finalize()) });
    }

    fn line_based(&mut self) -> Step {
        match std::mem::replace(&mut self.state, State::Lost) {
            State::Head => self.head(),
            State::ChunkSize { seen, hash } => match httparse::parse_chunk_size(&self.buffer) {
                Ok(httparse::Status::Complete((used, size))) => {
                    self.buffer.drain(..used);
                    self.state = if size == 0 {
                        State::Trailer { seen, hash }
                    } else {
                        State::ChunkData { left: size, seen, hash }
                    };
                    Step::Again
                }
                Ok(httparse::Status::Partial) if self.buffer.len() < 64 => {
                    self.state = State::ChunkSize { seen, hash };
                    Step::More
                }
                _ => {
                    self.lost("a chunk size that is none");
                    Step::More
                }
            },
            State::ChunkEnd { seen, hash } => {
                if self.buffer.len() < 2 {
                    self.state = State::ChunkEnd { seen, hash };
                    return Step::More;
                }
                self.buffer.drain(..2);
                self.state = State::ChunkSize { seen, hash };
                Step::Again
            }
            State::Trailer { seen, hash } => {
                let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
                let parsed = httparse::parse_headers(&self.buffer, &mut fields).map(|status| match status {
                    httparse::Status::Complete((used, _)) => Some(used),
                    httparse::Status::Partial => None,
                });
                match parsed {
                    Ok(Some(used)) => {
                        self.buffer.drain(..used);
                        self.state = State::Trailer { seen, hash };
                        self.end_body();
                        Step::Again
                    }
                    Ok(None) if self.buffer.len() < MAX_HEAD => {
                        self.state = State::Trailer { seen, hash };
                        Step::More
                    }
                    _ => {
                        self.lost("a trailer that is none");
                        Step::More
                    }
                }
            }
            other => {
                self.state = other;
                Step::More
            }
        }
    }

    fn head(&mut self) -> Step {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let parsed = match self.speaker {
            Speaker::Client => request(&self.buffer, &mut fields),
            Speaker::Server => response(&self.buffer, &mut fields),
        };
        match parsed {
            Ok(Some(Parsed { used, head, until_close })) => {
                self.buffer.drain(..used);
                self.state = body_of(&head, until_close);
                self.items.push(Item::Head(head));
                if matches!(self.state, State::Body { left: Some(0), .. }) {
                    self.end_body();
                }
                Step::Again
            }
            Ok(None) if self.buffer.len() < MAX_HEAD => {
                self.state = State::Head;
                Step::More
            }
            Ok(None) => {
                self.lost(&format!("a head of more than {MAX_HEAD} bytes"));
                Step::More
            }
            Err(error) => {
                self.lost(&format!("no head: {error}"));
                Step::More
            }
        }
    }
}

/// The response heads at the beginning of `bytes`, where no bodies stand between them.
pub(crate) fn response_heads(mut bytes: &[u8]) -> Vec<HttpHead> {
    let mut heads = Vec::new();
    loop {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let Ok(Some(Parsed { used, head, .. })) = response(bytes, &mut fields) else { return heads };
        bytes = &bytes[used..];
        heads.push(head);
    }
}

/// A head that is there whole.
struct Parsed {
    /// Bytes that it took.
    used: usize,
    head: HttpHead,
    /// Whether a body follows to the end of the connection if no field says otherwise.
    until_close: bool,
}

type Fields<'a> = [httparse::Header<'a>; MAX_FIELDS];

fn request<'a>(bytes: &'a [u8], fields: &mut Fields<'a>) -> Result<Option<Parsed>, httparse::Error> {
    let mut request = httparse::Request::new(fields);
    let httparse::Status::Complete(used) = request.parse(bytes)? else { return Ok(None) };
    let method = request.method.unwrap_or_default();
    let target = request.path.unwrap_or_default();
    let start = format!("{method} {target} HTTP/1.{}", request.version.unwrap_or_default());
    Ok(Some(Parsed { used, head: head_of(start, request.headers), until_close: false }))
}

fn response<'a>(bytes: &'a [u8], fields: &mut Fields<'a>) -> Result<Option<Parsed>, httparse::Error> {
    let mut response = httparse::Response::new(fields);
    let httparse::Status::Complete(used) = response.parse(bytes)? else { return Ok(None) };
    let code = response.code.unwrap_or_default();
    let reason = response.reason.unwrap_or_default();
    let start = format!("HTTP/1.{} {code} {reason}", response.version.unwrap_or_default());
    let bodiless = code < 200 || code == 204 || code == 304;
    Ok(Some(Parsed { used, head: head_of(start, response.headers), until_close: !bodiless }))
}

enum Step {
    /// Needs more bytes.
    More,
    /// The state changed and the buffer is the next state's.
    Again,
}

/// How a message's body is delimited (RFC 9112, section 6.3).
fn body_of(head: &HttpHead, until_close: bool) -> State {
    let field = |name: &str| {
        let mut fields = head.headers.iter();
        fields.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    };
    let hash = Sha256::new();
    let switches = head.start.starts_with("HTTP/1.1 101 ");
    if switches && field("upgrade").is_some_and(|to| to.eq_ignore_ascii_case(rdma_http::in_place::UPGRADE)) {
        State::Switched
    } else if field("transfer-encoding")
        .is_some_and(|coding| coding.to_ascii_lowercase().ends_with("chunked"))
    {
        State::ChunkSize { seen: 0, hash }
    } else if let Some(length) = field("content-length").and_then(|length| length.parse().ok()) {
        State::Body { left: Some(length), seen: 0, hash }
    } else if until_close {
        State::Body { left: None, seen: 0, hash }
    } else {
        State::Head
    }
}

fn take<'a>(left: &mut Option<u64>, seen: &mut u64, hash: &mut Sha256, bytes: &'a [u8]) -> &'a [u8] {
    let most = left.map_or(bytes.len(), |left| usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()));
    let (body, rest) = bytes.split_at(most);
    hash.update(body);
    *seen += body.len() as u64;
    if let Some(left) = left {
        *left -= body.len() as u64;
    }
    rest
}

fn head_of(start: String, fields: &[httparse::Header<'_>]) -> HttpHead {
    let headers = fields
        .iter()
        .map(|field| (field.name.to_owned(), String::from_utf8_lossy(field.value).into_owned()))
        .collect();
    HttpHead { start, headers }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn items(speaker: Speaker, stream: &[u8], cuts: &[usize]) -> Vec<Item> {
        let mut http = HttpStream::new(speaker);
        let mut edges: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
        edges.extend([0, stream.len()]);
        edges.sort_unstable();
        for edge in edges.windows(2) {
            http.push(&stream[edge[0]..edge[1]]);
        }
        http.finish()
    }

    fn body(bytes: &[u8]) -> Item {
        Item::Body { length: bytes.len() as u64, sha256: hex(&Sha256::digest(bytes)) }
    }

    fn head(start: &str, headers: &[(&str, &str)]) -> Item {
        let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Item::Head(HttpHead { start: start.to_owned(), headers })
    }

    const TWO: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello\
        HTTP/1.1 404 Not Found\r\nX: y\r\ncontent-length: 0\r\n\r\n\
        HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n\
        HTTP/1.1 304 Not Modified\r\n\r\n";

    fn expected() -> Vec<Item> {
        vec![
            head("HTTP/1.1 200 OK", &[("Content-Length", "5")]),
            body(b"hello"),
            head("HTTP/1.1 404 Not Found", &[("X", "y"), ("content-length", "0")]),
            body(b""),
            head("HTTP/1.1 200 OK", &[("Transfer-Encoding", "chunked")]),
            body(b"abc0123456789"),
            head("HTTP/1.1 304 Not Modified", &[]),
        ]
    }

    #[test]
    fn requests_have_no_body_unless_they_say_so() {
        let stream = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\n\r\n";
        let expected = [head("GET /a HTTP/1.1", &[("Host", "h")]), head("GET /b HTTP/1.1", &[])];
        assert_eq!(items(Speaker::Client, stream, &[]), expected);
    }

    #[test]
    fn a_body_without_a_length_ends_with_the_connection() {
        let stream = b"HTTP/1.0 200 OK\r\n\r\nto the end";
        assert_eq!(items(Speaker::Server, stream, &[]), [head("HTTP/1.0 200 OK", &[]), body(b"to the end")]);
    }

    #[test]
    fn what_ends_too_early_is_said() {
        let cut = items(Speaker::Server, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", &[]);
        let expected = "HTTP: a body ends after 3 bytes, 2 before its end";
        assert_eq!(cut.last(), Some(&Item::Malformed(expected.to_owned())));
        let cut = items(Speaker::Server, b"HTTP/1.1 200 OK\r\nConte", &[]);
        assert_eq!(cut, [Item::Malformed("HTTP: ends inside a head".to_owned())]);
    }

    #[test]
    fn what_is_no_http_is_said_once() {
        let items = items(Speaker::Server, b"\x00\x01\x02 nonsense that goes on\r\n\r\n", &[3, 9]);
        assert!(matches!(&items[..], [Item::Malformed(_)]), "{items:?}");
    }

    #[test]
    fn heads_without_bodies_are_read_one_after_the_other() {
        let heads =
            response_heads(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
        let starts: Vec<&str> = heads.iter().map(|head| head.start.as_str()).collect();
        assert_eq!(starts, ["HTTP/1.1 100 Continue", "HTTP/1.1 200 OK"]);
        assert!(response_heads(b"nonsense").is_empty());
    }

    proptest! {
        #[test]
        fn cuts_do_not_show(cuts in prop::collection::vec(any::<usize>(), 0..30)) {
            prop_assert_eq!(items(Speaker::Server, TWO, &cuts), expected());
        }

        #[test]
        fn nothing_makes_it_panic(stream in prop::collection::vec(any::<u8>(), 0..300), server: bool) {
            items(if server { Speaker::Server } else { Speaker::Client }, &stream, &[1, 50]);
        }

        #[test]
        fn no_edit_of_a_good_stream_makes_it_panic(at in 0..TWO.len(), with: u8) {
            let mut stream = TWO.to_vec();
            stream[at] = with;
            items(Speaker::Server, &stream, &[17, 40]);
        }
    }
}

//! A connection that began as HTTP and became RDMA, with HTTP in its Sends (`docs/protocol.md`, sections 3 and 4).

use bytes::Bytes;
use rdma_http::in_place::Frame;

use super::http::{HttpStream, Speaker};
use super::mpa::MpaConnection;
use super::{Direction, Item};

/// Follows one such connection from the change on.
pub(super) struct InPlace {
    /// What was said before, by the client and by the server.
    before: [Vec<Item>; 2],
    mpa: MpaConnection,
}

impl InPlace {
    /// After these streams; the server has sent `begun` since.
    pub(super) fn after(streams: &mut [HttpStream; 2], begun: &[u8]) -> Self {
        let mut changed =
            Self { before: streams.each_mut().map(HttpStream::take_items), mpa: MpaConnection::default() };
        changed.push(false, begun);
        changed
    }

    /// Takes the next bytes of a direction. The server is MPA's initiator.
    pub(super) fn push(&mut self, from_client: bool, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.mpa.push(!from_client, bytes);
        }
    }

    /// The capture has ended: what each direction said, the client's first.
    pub(super) fn finish(self) -> [Direction; 2] {
        let [(server, server_crc), (client, client_crc)] = self.mpa.finish();
        let [asked, answered] = self.before;
        let direction = |mut items: Vec<Item>, then, crc, speaker| {
            items.extend(unpacked(then, speaker));
            Direction { items, crc, ..Direction::default() }
        };
        [
            direction(asked, client, client_crc, Speaker::Client),
            direction(answered, server, server_crc, Speaker::Server),
        ]
    }
}

/// HTTP in place of the Sends that carry it.
fn unpacked(items: Vec<Item>, speaker: Speaker) -> Vec<Item> {
    let mut http = HttpStream::new(speaker);
    let mut unpacked = Vec::new();
    for item in items {
        match piece(&item) {
            Some(bytes) => {
                http.push(&bytes);
                unpacked.append(&mut http.take_items());
            }
            None => unpacked.push(item),
        }
    }
    unpacked.append(&mut http.finish());
    unpacked
}

/// A piece of HTTP; what ends it is told as it is.
fn piece(item: &Item) -> Option<Bytes> {
    let Item::Send { message, .. } = item else { return None };
    match Frame::decode(message.clone().into()) {
        Some(Frame::Http(bytes)) if !bytes.is_empty() => Some(bytes),
        _ => None,
    }
}

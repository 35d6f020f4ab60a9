//! The HTTP connection itself as the RDMA connection (`docs/protocol.md`, sections 3 and 4): HTTP's bytes travel as Sends
//! between the messages and the bodies, and so in one order with them.
//!
//! `split` makes two of one connection: a [`Stream`], on which HTTP goes on as if nothing had happened, and what the
//! transfers use as any other RDMA connection. `first` has what belongs to the request that asked for it, which is
//! answered on the new connection and not sent again.

mod carrier;
pub(crate) mod first;
mod frame;
mod messages;
mod stream;

use std::sync::Arc;

pub use frame::Frame;
pub use stream::Stream;

use crate::fabric::{ConnectOptions, Connection};
use crate::flow::RECEIVE_DEPTH;

/// The protocol's name in the `Upgrade` field (RFC 9110, section 7.8).
pub const UPGRADE: &str = "rdma";

/// Frames of HTTP that may be under way and not yet taken, each way.
const WINDOW: u64 = 64;

/// Credit for them is given by so many.
const STEP: u64 = 16;

/// What a connection needs that carries HTTP too: receives for its frames, and for the credit that is given for our own.
pub(crate) fn receives(options: ConnectOptions) -> ConnectOptions {
    // Both are far below what a usize holds.
    let extra = usize::try_from(WINDOW + 2 * WINDOW / STEP).unwrap_or(0);
    ConnectOptions { receive_depth: RECEIVE_DEPTH + extra, receive_size: frame::LONGEST, ..options }
}

/// HTTP's part of a connection that was made with [`receives`], and the transfers' part. When the transfers' part is
/// dropped both end: whoever may not reach our memory any more may not speak to us either.
pub(crate) fn split(connection: Arc<dyn Connection>) -> (Arc<dyn Connection>, Stream) {
    let carrier = carrier::Carrier::start(connection);
    (Arc::new(messages::Messages::new(carrier.clone())), Stream::new(carrier))
}

#[cfg(test)]
mod tests;

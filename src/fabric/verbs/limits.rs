//! What a fabric can carry, checked before anything is sent.

use crate::fabric::soft::{MAX_RECEIVE_DEPTH, MAX_RECEIVE_SIZE};
use crate::fabric::{ConnectOptions, FabricError, FabricKind};

/// Which message private data travels in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Message {
    Request,
    Reply,
    Rejection,
}

/// The most private data that a message takes. siw computes the length of its MPA frame in eight bits, of which four bytes
/// are its own (as on soft, then); RoCE has the fields of InfiniBand's REQ (less the 36 bytes that carry the IP
/// addresses), REP and REJ (IBA, section 12.6).
pub(super) fn private_data(kind: FabricKind, message: Message) -> usize {
    match (kind, message) {
        (FabricKind::Rxe, Message::Request) => 92 - 36,
        (FabricKind::Rxe, Message::Reply) => 196,
        (FabricKind::Rxe, Message::Rejection) => 148,
        (FabricKind::Siw | FabricKind::Soft, _) => crate::fabric::soft::MAX_PRIVATE_DATA,
    }
}

/// Refuses what cannot work.
pub(super) fn check(kind: FabricKind, message: Message, options: &ConnectOptions) -> Result<(), FabricError> {
    let limits = [
        ("private data", options.private_data.len(), private_data(kind, message)),
        ("receive depth", options.receive_depth, MAX_RECEIVE_DEPTH),
        ("receive size", options.receive_size, MAX_RECEIVE_SIZE),
    ];
    for (what, value, limit) in limits {
        if value > limit {
            return Err(FabricError::Invalid(format!("{what} of {value}; the limit on {kind} is {limit}")));
        }
    }
    Ok(())
}

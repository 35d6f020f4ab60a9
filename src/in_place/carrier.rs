//! One connection for two: takes what arrives apart, in order, and holds it within limits until it is wanted.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::frame::Frame;
use super::{STEP, WINDOW};
use crate::fabric::inbox::{Inbox, Owner};
use crate::fabric::{Connection, FabricError, Received};
use crate::flow::{RECEIVE_DEPTH, RECEIVE_SIZE};

/// A connection, and what arrived on it.
pub(super) struct Carrier {
    pub(super) connection: Arc<dyn Connection>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Frames of HTTP that nobody has taken. They count towards the window until they are taken and the peer is told.
    http: VecDeque<Bytes>,
    received: u64,
    taken: u64,
    told: u64,
    /// Whether the peer's stream has ended.
    http_ended: bool,
    reader: Option<Waker>,
    /// Frames of ours that were sent, and those that the peer has taken.
    sent: u64,
    credited: u64,
    writer: Option<Waker>,
    messages: Inbox,
    /// Why nothing comes or goes any more.
    over: Option<FabricError>,
}

impl Carrier {
    /// Takes a connection over, and begins to receive.
    pub(super) fn start(connection: Arc<dyn Connection>) -> Arc<Self> {
        let carrier = Arc::new(Self { connection, state: Mutex::default() });
        tokio::spawn(receive(Arc::downgrade(&carrier)));
        carrier
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrived(&self, received: Received) -> Result<(), String> {
        let frame = Frame::decode(received.message.clone()).ok_or("a credit of another length")?;
        let mut state = self.lock();
        match frame {
            Frame::Http(_) if state.http_ended => return Err("HTTP goes on after its end".into()),
            Frame::Http(piece) => {
                state.received += 1;
                if state.received - state.told > WINDOW {
                    return Err(format!("more than {WINDOW} frames of HTTP without credit"));
                }
                state.http_ended = piece.is_empty();
                if !state.http_ended {
                    state.http.push_back(piece);
                }
                wake(state, |state| state.reader.take());
            }
            Frame::Credit(taken) if taken > state.credited && taken <= state.sent => {
                state.credited = taken;
                wake(state, |state| state.writer.take());
            }
            Frame::Credit(taken) => {
                let State { credited, sent, .. } = *state;
                return Err(format!("credit for {taken} frames where {credited} to {sent} were due"));
            }
            // As where each has a receive of its own: what is held of a peer's is no more than that.
            Frame::Message(message) if message.len() > RECEIVE_SIZE => {
                return Err(format!("a message of {} bytes", message.len()));
            }
            Frame::Message(_) if state.messages.messages() >= RECEIVE_DEPTH => {
                return Err(format!("more than {RECEIVE_DEPTH} messages that nobody waits for"));
            }
            Frame::Message(_) => state.messages.deliver(received),
        }
        Ok(())
    }

    /// Nothing comes or goes any more. Only the first reason counts.
    pub(super) fn end(&self, why: &FabricError) {
        let mut state = self.lock();
        state.over.get_or_insert_with(|| why.clone());
        state.messages.end(why);
        let wakers = [state.reader.take(), state.writer.take()];
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// The next piece of HTTP; an empty one at its end. Taking it makes room for another.
    pub(super) fn poll_http(&self, context: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let mut state = self.lock();
        if let Some(piece) = state.http.pop_front() {
            state.taken += 1;
            if state.taken - state.told >= STEP {
                state.told = state.taken;
                let credit = Frame::credit(state.told);
                drop(state);
                // Posted already; that the connection is gone shows when it is read from.
                drop(self.connection.send(credit));
            }
            return Poll::Ready(Ok(piece));
        }
        if state.http_ended {
            return Poll::Ready(Ok(Bytes::new()));
        }
        if let Some(why) = &state.over {
            return Poll::Ready(Err(gone(why)));
        }
        state.reader = Some(context.waker().clone());
        Poll::Pending
    }

    /// Whether the peer's HTTP has ended.
    pub(super) fn has_peer_ended(&self) -> bool {
        self.lock().http_ended
    }

    /// Sends the first bytes of `piece` once there is room, and says how many; none at all ends the stream.
    pub(super) fn poll_send_http(&self, context: &mut Context<'_>, piece: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.lock();
        if let Some(why) = &state.over {
            return Poll::Ready(Err(gone(why)));
        }
        if state.sent - state.credited >= WINDOW {
            state.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        state.sent += 1;
        drop(state);
        let (frame, length) = Frame::http(piece);
        drop(self.connection.send(frame));
        Poll::Ready(Ok(length))
    }
}

impl Owner for Carrier {
    fn with_inbox(&self, change: &mut dyn FnMut(&mut Inbox)) {
        change(&mut self.lock().messages);
    }
}

/// Wakes outside the lock whom `who` finds.
fn wake(mut state: MutexGuard<'_, State>, who: impl FnOnce(&mut State) -> Option<Waker>) {
    let waker = who(&mut state);
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

fn gone(why: &FabricError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, why.clone())
}

/// Receives as long as somebody holds the connection.
async fn receive(carrier: Weak<Carrier>) {
    loop {
        let Some(receiving) = carrier.upgrade().map(|carrier| carrier.connection.receive()) else { return };
        let received = receiving.await;
        let Some(carrier) = carrier.upgrade() else { return };
        let taken = match received {
            Ok(received) => carrier.arrived(received).map_err(FabricError::Protocol),
            Err(error) => Err(error),
        };
        if let Err(why) = taken {
            tracing::debug!(peer = %carrier.connection.peer_addr(), %why, "the connection in place has ended");
            return carrier.end(&why);
        }
    }
}

//! One end of an iWARP connection as a state machine. Its driver owns the socket, the clock and the memory.
//!
//! The driver feeds it: [`handle_bytes`](Connection::handle_bytes) with what has arrived,
//! [`handle_transmitted`](Connection::handle_transmitted) with how much the transport has taken,
//! [`handle_eof`](Connection::handle_eof), [`post`](Connection::post), [`close`](Connection::close); and after each
//! asks it: [`poll_event`](Connection::poll_event) for what happened, [`poll_transmit`](Connection::poll_transmit) for
//! bytes to send. Every wait is the driver's to bound; the state machine has no time.
//!
//! An error of the peer's is answered with one Terminate, after which nothing is sent, placed or delivered; the first
//! error is the one that counts (RFC 5040, section 7.1).

use std::collections::VecDeque;

use bytes::Bytes;

use super::Stag;
use super::fpdu;
use super::memory::{Denied, Memory};
use super::mpa::{FrameKind, StartFrame};
use super::negotiate::{self, Config, Negotiated, NegotiationError, Rtr};
use super::terminate::{Code, Quote, Terminate};

mod direct;
mod output;
mod receive;
mod transmit;

pub use output::{Front, Output};

#[cfg(test)]
mod tests;

/// Work to be done. Messages go in the order of posting, and complete in it.
#[derive(Clone, Debug)]
pub enum Work {
    /// RDMA Write.
    Write {
        /// Our region.
        source: Stag,
        /// The tagged offset there.
        source_to: u64,
        /// Bytes.
        length: u64,
        /// The peer's region.
        sink: Stag,
        /// The tagged offset there.
        sink_to: u64,
    },
    /// RDMA Read.
    Read {
        /// Our region.
        sink: Stag,
        /// The tagged offset there.
        sink_to: u64,
        /// Bytes.
        length: u32,
        /// The peer's region.
        source: Stag,
        /// The tagged offset there.
        source_to: u64,
    },
    /// Send, with Invalidate if a region is named. At most 2^32 - 1 bytes.
    Send {
        /// The message.
        message: Bytes,
        /// The peer's region to invalidate.
        invalidate: Option<Stag>,
        /// Whether the peer is asked to raise an event.
        solicited: bool,
    },
}

/// Why posted work failed although the connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkError {
    /// Our own region is not there, or not for this.
    #[error("our region: {0}")]
    Region(#[from] Denied),
    /// A Read where none may be outstanding.
    #[error("this connection was set up for no outbound Reads")]
    NoReads,
}

/// A message that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its bytes.
    pub bytes: Bytes,
    /// The region of ours that it invalidated.
    pub invalidated: Option<Stag>,
    /// Whether the peer asked for an event.
    pub solicited: bool,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The connection is established.
    Connected(Negotiated),
    /// The responder's program refused, with this private data. Nothing follows.
    Rejected(Bytes),
    /// The oldest work that had not completed has.
    Completed(Result<(), WorkError>),
    /// A Send is delivered; it took one posted receive.
    Received(Message),
    /// It is over. What had not completed will not. What [`Connection::poll_transmit`] still gives is to be sent.
    Closed(CloseReason),
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// The peer closed in good order.
    #[error("the peer closed the connection")]
    PeerClosed,
    /// The stream ended inside an FPDU or before the connection was established: 2/0/01, which nobody can be told.
    #[error("the TCP connection was lost in the middle of a message")]
    Lost,
    /// The peer sent a Terminate.
    #[error("the peer sent a Terminate: {0}")]
    Terminated(Terminate),
    /// The peer broke the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The start-up came to nothing.
    #[error(transparent)]
    Start(#[from] NegotiationError),
    /// Our own region went away in the middle of a message from it.
    #[error("our region went away while it was being sent: {0}")]
    Local(Denied),
}

/// What a peer did wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}{}", detail.map(|d| format!(" ({d})")).unwrap_or_default())]
pub struct Violation {
    /// The code of the Terminate that tells it.
    pub code: Code,
    /// More about it.
    pub detail: Option<&'static str>,
    /// The segment to blame, quoted in the Terminate.
    pub quote: Option<Quote>,
}

/// Where the connection is.
#[derive(Debug)]
enum Phase {
    /// The Request is or goes out; the Reply is due.
    AwaitReply(Box<(StartFrame, Config)>),
    /// Responder: the initiator will say that it is ready.
    AwaitRtr(Negotiated),
    /// FPDUs flow.
    Open,
    /// It is over.
    Closed,
}

/// What may still be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    /// Everything.
    Open,
    /// The peer's program has gone, but it asked for these bytes before (RFC 5041, section 6.2.1).
    ResponsesOnly,
    /// Only what is waiting in `control`.
    Ended,
}

/// One end of a connection.
#[derive(Debug)]
pub struct Connection {
    phase: Phase,
    output: Sending,
    /// The responder sends no FPDU before it has received one (RFC 5044, section 7.1.2).
    held: bool,
    closing: bool,
    crc: bool,
    /// Start-up frames and the Terminate: bytes that go before and after all else.
    control: Vec<u8>,
    receiver: receive::Receiver,
    transmitter: transmit::Transmitter,
    events: VecDeque<Event>,
}

impl Connection {
    /// The initiator: sends the Request.
    pub fn initiate(config: Config) -> Result<Self, NegotiationError> {
        let request = config.request();
        let mut control = Vec::new();
        request.encode(&mut control)?;
        let receive_size = config.receive_size;
        Ok(Self::new(Phase::AwaitReply(Box::new((request, config))), control, receive_size))
    }

    /// The responder: answers `request`, which its driver has read with [`StartFrame::decode`], by accepting it. (To
    /// refuse it, see [`negotiate::reject`].)
    pub fn respond(request: &StartFrame, config: &Config) -> Result<Self, NegotiationError> {
        let (reply, settled, rtr) = negotiate::respond(request, config)?;
        let mut control = Vec::new();
        reply.encode(&mut control)?;
        let mut connection = Self::new(Phase::Open, control, config.receive_size);
        connection.held = true;
        connection.apply(&settled);
        if rtr {
            connection.phase = Phase::AwaitRtr(settled);
        } else {
            connection.events.push_back(Event::Connected(settled));
        }
        Ok(connection)
    }

    fn new(phase: Phase, control: Vec<u8>, receive_size: usize) -> Self {
        Self {
            phase,
            output: Sending::Open,
            held: false,
            closing: false,
            crc: false,
            control,
            receiver: receive::Receiver::new(receive_size),
            transmitter: transmit::Transmitter::default(),
            events: VecDeque::new(),
        }
    }

    fn apply(&mut self, settled: &Negotiated) {
        self.crc = settled.crc;
        self.receiver.ird = usize::from(settled.ird);
        self.transmitter.ord = usize::from(settled.ord);
    }

    /// What happened next, if anything.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Takes bytes that have arrived and returns how many it is done with; the rest must be presented again, with more
    /// behind it. It stops after an event, so that the driver can act on it (post a receive, say) before the next
    /// message: call it until it takes nothing and there is no event. A rest is never as long as
    /// [`fpdu::MAX_FPDU_RECEIVED`] bytes.
    pub fn handle_bytes(&mut self, bytes: &[u8], memory: &mut impl Memory) -> usize {
        let mut used = 0;
        if let Phase::AwaitReply(_) = self.phase {
            match self.handle_reply(bytes) {
                Some(reply) => used = reply,
                None => return 0,
            }
        }
        while self.events.is_empty() {
            if let Phase::Closed | Phase::AwaitReply(_) = self.phase {
                break;
            }
            let handled = match self.receiver.direct {
                Some(_) => self.continue_direct(&bytes[used..], memory),
                None => self.handle_fpdu(&bytes[used..], memory),
            };
            match handled {
                Ok(0) => return used,
                Ok(fpdu) => used += fpdu,
                Err(violation) => self.fail(violation),
            }
        }
        // After the end whatever comes is dropped.
        if let Phase::Closed = self.phase { bytes.len() } else { used }
    }

    /// The initiator's side of the start-up. `None`: the Reply is not whole yet.
    fn handle_reply(&mut self, bytes: &[u8]) -> Option<usize> {
        let Phase::AwaitReply(ours) = &self.phase else { return Some(0) };
        let (request, config) = &**ours;
        let (reply, used) = match StartFrame::decode(FrameKind::Reply, bytes) {
            Ok(frame) => frame?,
            Err(error) => {
                self.end(CloseReason::Start(error.into()));
                return Some(bytes.len());
            }
        };
        if reply.reject {
            self.phase = Phase::Closed;
            self.output = Sending::Ended;
            self.events.push_back(Event::Rejected(reply.private_data));
            return Some(bytes.len());
        }
        match negotiate::conclude(request, &reply, config) {
            Ok((settled, rtr)) => {
                self.apply(&settled);
                if let Some(rtr) = rtr {
                    self.transmitter.post_rtr(rtr);
                }
                self.phase = Phase::Open;
                self.events.push_back(Event::Connected(settled));
            }
            Err(error) => {
                self.crc = request.crc || reply.crc;
                if let Some(code) = error.code() {
                    self.queue_terminate(Terminate::new(code, None));
                }
                self.end(CloseReason::Start(error));
            }
        }
        Some(used)
    }

    /// Takes note that the peer's direction has ended, with `rest` bytes that [`handle_bytes`](Self::handle_bytes) was
    /// not done with.
    pub fn handle_eof(&mut self, rest: usize) {
        match self.phase {
            Phase::Closed => {}
            Phase::Open if rest == 0 && self.receiver.direct.is_none() => {
                // A message of ours that is half out would have to be finished before a response; its receiver has
                // said that it wants no more.
                let serve = !self.held && !self.transmitter.is_inside_work();
                self.end(CloseReason::PeerClosed);
                if serve && !self.receiver.reads.is_empty() {
                    self.output = Sending::ResponsesOnly;
                }
            }
            _ => self.end(CloseReason::Lost),
        }
    }

    /// Posts work. After [`close`](Self::close) or the end it is not done, and does not complete.
    pub fn post(&mut self, work: Work) {
        if !self.closing && !matches!(self.phase, Phase::Closed) {
            self.transmitter.post(work);
        }
    }

    /// How many more messages may arrive before a further one is the peer's error.
    pub fn set_posted_receives(&mut self, count: usize) {
        self.receiver.posted = count;
    }

    /// The longest TCP segment that the path now takes; FPDUs that are yet to be made are cut to it.
    pub fn set_emss(&mut self, emss: usize) {
        self.transmitter.mulpdu = fpdu::mulpdu(emss);
    }

    /// Ends it in good order: what is posted is finished first. When [`is_drained`](Self::is_drained) the driver ends
    /// its direction of the stream, and goes on reading to the end of the other.
    pub fn close(&mut self) {
        self.closing = true;
    }

    /// Whether it is closing or closed and has nothing more to send.
    pub fn is_drained(&self) -> bool {
        if !self.control.is_empty() {
            return false;
        }
        match self.output {
            Sending::Ended => true,
            Sending::ResponsesOnly => self.receiver.reads.is_empty(),
            Sending::Open => self.closing && self.transmitter.is_empty() && self.receiver.reads.is_empty(),
        }
    }

    /// Ends the connection for an error of the peer's, with a Terminate.
    fn fail(&mut self, violation: Violation) {
        let quote = violation.quote.clone();
        self.queue_terminate(Terminate::new(violation.code, quote));
        self.end(CloseReason::Violation(violation));
        // Also when the peer had closed already, and only its last Reads were being answered.
        self.output = Sending::Ended;
    }

    fn queue_terminate(&mut self, terminate: Terminate) {
        if let Phase::Closed = self.phase {
            return;
        }
        transmit::append_terminate(&mut self.control, &terminate, self.crc);
    }

    fn end(&mut self, reason: CloseReason) {
        if let Phase::Closed = self.phase {
            return;
        }
        self.phase = Phase::Closed;
        self.output = Sending::Ended;
        self.events.push_back(Event::Closed(reason));
    }
}

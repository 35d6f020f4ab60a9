//! A state machine on its socket: bytes in, bytes out, nothing waited for but readiness.
//!
//! Reading. All connections of a thread share one large buffer, since what is read is handled at once: an idle
//! connection owns none. A tagged payload that is under way is read straight into its region; only what follows it goes
//! to the buffer. Writing. Payloads are sent from their regions, by one system call for many FPDUs; what the socket
//! does not take at once is copied, so that no region stays locked while anything waits.

use std::cell::RefCell;
use std::io::{self, IoSliceMut};
use std::ops::ControlFlow;
use std::task::{Context, Poll};
use std::time::Duration;

use super::region::{DomainMemory, Lease};
use super::{SegmentSize, Socket};
use crate::fabric::FabricError;
use crate::iwarp::connection::{CloseReason, Connection, Event, Front, Output};
use crate::iwarp::fpdu::{self, Fpdu};

/// Bytes that are made before they are written: many FPDUs for one system call.
const WRITE: usize = 256 << 10;

/// Bytes that are written before reading has its turn, so that two peers that send to each other both receive.
const WRITE_IN_A_ROW: usize = 4 * WRITE;

/// Pieces of one system call (UIO_MAXIOV).
const PIECES: usize = 1024;

/// Bytes of a read at most: many FPDUs for one system call, and still in the processor's cache when they are checked
/// and copied.
const READ: usize = 256 << 10;

/// Less of a payload is not worth a system call of its own.
const DIRECT: usize = 2048;

/// While payloads of this size and more come in, what follows one is read only as far as the next one's header goes, so
/// that all of that one goes straight to its place too; behind a message's last, as far as a short message goes.
const LARGE: usize = 16 << 10;
const SHORT_MESSAGE: usize = 256;

/// The path's segment size is asked for once in as many writes.
const WRITES_PER_EMSS: u32 = 16;

/// How long the last bytes may take to leave, and the peer to close, once a connection is over.
const LINGER: Duration = Duration::from_secs(2);

/// A buffer larger than this is freed when there is nothing in it.
const KEPT: usize = 1024;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// A connection's state machine with its socket and memory.
pub(super) struct Wire<S> {
    pub(super) socket: S,
    pub(super) connection: Connection,
    memory: DomainMemory,
    segment_size: SegmentSize,
    /// Bytes that have arrived and are not handled.
    rest: Vec<u8>,
    /// Whether `rest` may have something that can be handled.
    fresh: bool,
    output: Output<Lease>,
    /// Writes until the path's segment size is asked for again.
    writes_to_emss: u32,
    /// Bytes that went out or came in; the driver counts from when it last looked.
    pub(super) moved: usize,
    ended: bool,
}

/// Whether anything moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Yes: ask again.
    Some,
    /// No: the task is woken when there is more to do.
    None,
}

/// Who is told what happened.
pub(super) trait Handler {
    /// How many messages may arrive.
    fn receives(&self) -> usize;

    /// Takes an event. `Break`: no further one for now; bytes that are not handled are kept.
    fn handle(&mut self, event: Event) -> ControlFlow<()>;
}

/// Tells nobody.
struct Nobody;

impl Handler for Nobody {
    fn receives(&self) -> usize {
        0
    }

    fn handle(&mut self, _: Event) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// What a read brought.
enum Arrival {
    /// This many bytes in the buffer, beyond those that went to their place.
    Bytes(usize),
    End,
    Nothing,
}

impl<S: Socket> Wire<S> {
    pub(super) fn new(
        socket: S,
        connection: Connection,
        memory: DomainMemory,
        segment_size: SegmentSize,
        first: &[u8],
    ) -> Self {
        Self {
            socket,
            connection,
            memory,
            segment_size,
            rest: first.to_vec(),
            fresh: true,
            output: Output::default(),
            writes_to_emss: 0,
            moved: 0,
            ended: false,
        }
    }

    /// Writes what there is to send, as far as the socket takes it.
    pub(super) fn poll_write(&mut self, context: &mut Context<'_>) -> Result<Progress, FabricError> {
        let mut left = WRITE_IN_A_ROW;
        let mut progress = Progress::None;
        while left > 0 {
            if self.output.is_empty() {
                self.make();
            }
            let sent = match self.output.front(PIECES) {
                Front::Empty => break,
                Front::Memory(pieces, more) => self.socket.poll_write(context, &pieces, more),
                Front::File(range) => match self.socket.poll_send_file(context, range) {
                    // An FPDU cannot be taken back: the stream ends here, in the middle of it.
                    Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                    sent => sent,
                },
            };
            match sent {
                Poll::Ready(Ok(count)) => {
                    self.moved += count;
                    self.output.advance(count);
                    self.connection.handle_transmitted(count);
                    progress = Progress::Some;
                    left = left.saturating_sub(count);
                }
                Poll::Pending => break,
                Poll::Ready(Err(error)) => {
                    self.output.release();
                    return Err(FabricError::io("send", error));
                }
            }
        }
        self.output.release();
        Ok(progress)
    }

    /// Asks the state machine for more to send.
    fn make(&mut self) {
        if self.writes_to_emss == 0 {
            self.writes_to_emss = WRITES_PER_EMSS;
            let emss = match self.segment_size {
                SegmentSize::Emss => self.socket.emss(),
                SegmentSize::Large => Some(fpdu::MAX_ULPDU_SENT + 64),
            };
            if let Some(emss) = emss {
                self.connection.set_emss(emss);
            }
        }
        self.connection.poll_transmit(&mut self.output, WRITE, &mut self.memory);
        self.writes_to_emss -= u32::from(!self.output.is_empty());
    }

    /// Reads once, and handles what is there.
    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        handler: &mut impl Handler,
    ) -> Result<Progress, FabricError> {
        let mut progress = Progress::None;
        // What happened while writing comes first, and what was left when the handler had enough.
        let stopped = if std::mem::take(&mut self.fresh) {
            self.handle_rest(handler, &mut progress)
        } else {
            self.handle(&[], handler, &mut progress).1
        };
        if stopped.is_continue() && !self.ended {
            self.read(context, handler, &mut progress)?;
        }
        if self.ended && !self.fresh {
            self.connection.handle_eof(self.rest.len());
            let (_, stopped) = self.handle(&[], handler, &mut progress);
            self.fresh = stopped.is_break();
        }
        if self.rest.is_empty() && self.rest.capacity() > KEPT {
            self.rest = Vec::new();
        }
        Ok(progress)
    }

    fn read(
        &mut self,
        context: &mut Context<'_>,
        handler: &mut impl Handler,
        progress: &mut Progress,
    ) -> Result<(), FabricError> {
        BUFFER.with_borrow_mut(|buffer| {
            let arrival = match self.read_direct(context, buffer) {
                Some(arrival) => arrival,
                None => self.read_buffered(context, buffer),
            };
            let count = match arrival.map_err(|error| FabricError::io("receive", error))? {
                Arrival::Nothing => return Ok(()),
                Arrival::End => {
                    self.ended = true;
                    0
                }
                Arrival::Bytes(count) => count,
            };
            self.moved += count;
            *progress = Progress::Some;
            let arrived = &buffer[..count];
            let mut stopped = self.handle_rest(handler, progress);
            if !self.rest.is_empty() || stopped.is_break() {
                self.rest.extend_from_slice(arrived);
                if stopped.is_continue() && count > 0 {
                    stopped = self.handle_rest(handler, progress);
                }
            } else {
                let (used, now) = self.handle(arrived, handler, progress);
                self.rest.extend_from_slice(&arrived[used..]);
                stopped = now;
            }
            self.fresh = stopped.is_break();
            Ok(())
        })
    }

    /// Reads into the region that the next bytes belong into. `None`: there is none.
    fn read_direct(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Option<io::Result<Arrival>> {
        let Self { connection, memory, socket, .. } = self;
        if !self.rest.is_empty() || connection.direct_room() < DIRECT {
            return None;
        }
        let follow = match connection.direct_gap() {
            _ if connection.direct_length() < LARGE => READ,
            gap => gap.unwrap_or(SHORT_MESSAGE),
        };
        let mut arrival = Arrival::Nothing;
        let result = connection.fill_direct(memory, |sink| {
            let room = sink.len();
            let buffers = &mut [IoSliceMut::new(sink), IoSliceMut::new(&mut buffer[..follow])];
            let (count, brought) = match socket.poll_read(context, buffers)? {
                Poll::Pending => (0, Arrival::Nothing),
                Poll::Ready(0) => (0, Arrival::End),
                Poll::Ready(count) => (count.min(room), Arrival::Bytes(count.saturating_sub(room))),
            };
            arrival = brought;
            Ok(count)
        })?;
        self.moved += *result.as_ref().unwrap_or(&0);
        Some(result.map(|_| arrival))
    }

    /// Reads into the buffer, but first what the FPDU lacks that has come in part.
    fn read_buffered(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> io::Result<Arrival> {
        let have = self.rest.len();
        let lacking = match Fpdu::peek_length(&self.rest) {
            _ if have == 0 => 0,
            Some(ulpdu) => fpdu::size(ulpdu).saturating_sub(have),
            None => fpdu::LENGTH - have,
        };
        self.rest.resize(have + lacking, 0);
        let buffers = &mut [IoSliceMut::new(&mut self.rest[have..]), IoSliceMut::new(buffer)];
        let read = self.socket.poll_read(context, buffers);
        let kept = match &read {
            Poll::Ready(Ok(count)) => *count.min(&lacking),
            _ => 0,
        };
        self.rest.truncate(have + kept);
        match read {
            Poll::Pending => Ok(Arrival::Nothing),
            Poll::Ready(Ok(0)) => Ok(Arrival::End),
            Poll::Ready(Ok(count)) => Ok(Arrival::Bytes(count - kept)),
            Poll::Ready(Err(error)) => Err(error),
        }
    }

    fn handle_rest(&mut self, handler: &mut impl Handler, progress: &mut Progress) -> ControlFlow<()> {
        let mut rest = std::mem::take(&mut self.rest);
        let (used, stopped) = self.handle(&rest, handler, progress);
        rest.drain(..used);
        self.rest = rest;
        self.fresh = stopped.is_break();
        stopped
    }

    /// Handles bytes and passes on what happens; how many bytes that took, and whether the handler has enough.
    fn handle(
        &mut self,
        bytes: &[u8],
        handler: &mut impl Handler,
        progress: &mut Progress,
    ) -> (usize, ControlFlow<()>) {
        let mut used = 0;
        loop {
            while let Some(event) = self.connection.poll_event() {
                *progress = Progress::Some;
                if handler.handle(event).is_break() {
                    return (used, ControlFlow::Break(()));
                }
            }
            if used == bytes.len() {
                return (used, ControlFlow::Continue(()));
            }
            self.connection.set_posted_receives(handler.receives());
            let count = self.connection.handle_bytes(&bytes[used..], &mut self.memory);
            used += count;
            match self.connection.poll_event() {
                Some(event) => {
                    *progress = Progress::Some;
                    if handler.handle(event).is_break() {
                        return (used, ControlFlow::Break(()));
                    }
                }
                None if count == 0 => return (used, ControlFlow::Continue(())),
                // What was handled may have to be answered.
                None => *progress = Progress::Some,
            }
        }
    }

    /// Nothing is going on for now: frees what an idle connection has no use for.
    pub(super) fn rest(&mut self) {
        self.output.shrink(KEPT);
        self.memory.forget();
    }

    /// Whether everything that will ever be sent is in the socket.
    pub(super) fn is_drained(&self) -> bool {
        self.output.is_empty() && self.connection.is_drained()
    }

    /// The last act: what is still to be sent (a Terminate, answers to Reads) leaves, our direction ends, and the
    /// peer's is read to its end. Closing with unread input would make TCP reset the connection, which can overtake a
    /// Terminate.
    pub(super) async fn linger(mut self) {
        let mut shut = false;
        let last = std::future::poll_fn(|context| {
            loop {
                let (Ok(wrote), Ok(read)) = (self.poll_write(context), self.poll_read(context, &mut Nobody))
                else {
                    return Poll::Ready(());
                };
                if !shut && self.is_drained() {
                    self.socket.shut_down();
                    shut = true;
                }
                if shut && self.ended {
                    return Poll::Ready(());
                }
                if wrote == Progress::None && read == Progress::None {
                    return Poll::Pending;
                }
            }
        });
        // After this time it is the peer's loss.
        let _ = tokio::time::timeout(LINGER, last).await;
    }
}

/// A connection's end in the words of the fabric.
pub(super) fn closed(reason: CloseReason) -> FabricError {
    match reason {
        CloseReason::PeerClosed => FabricError::Closed,
        CloseReason::Lost => {
            FabricError::io("receive", io::Error::new(io::ErrorKind::UnexpectedEof, reason.to_string()))
        }
        CloseReason::Terminated(terminate) => FabricError::TerminatedByPeer(terminate.to_string()),
        CloseReason::Local(_) => FabricError::Invalid(reason.to_string()),
        CloseReason::Violation(_) | CloseReason::Start(_) => FabricError::Protocol(reason.to_string()),
    }
}

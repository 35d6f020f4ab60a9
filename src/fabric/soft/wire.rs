//! A state machine on its socket: bytes in, bytes out, nothing waited for but readiness.

use std::io;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::input::{Arrival, Input};
use super::region::DomainMemory;
use super::{SegmentSize, socket};
use crate::fabric::FabricError;
use crate::iwarp::connection::{CloseReason, Connection, Event};
use crate::iwarp::fpdu;

/// Bytes that are made before they are written: many FPDUs for one system call.
const WRITE: usize = 256 << 10;

/// Writes in a row before reading has its turn, so that two peers that send to each other both receive.
const WRITES_IN_A_ROW: usize = 4;

/// How long the last bytes may take to leave, and the peer to close, once a connection is over.
const LINGER: Duration = Duration::from_secs(2);

/// A connection's state machine with its socket, memory and buffers.
pub(super) struct Wire {
    pub(super) stream: TcpStream,
    pub(super) connection: Connection,
    memory: DomainMemory,
    segment_size: SegmentSize,
    input: Input,
    output: Vec<u8>,
    written: usize,
    ended: bool,
}

/// Whether anything moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Yes: ask again.
    Some,
    /// No: wait.
    None,
}

impl Wire {
    pub(super) fn new(
        stream: TcpStream,
        connection: Connection,
        memory: DomainMemory,
        segment_size: SegmentSize,
        first: &[u8],
    ) -> Self {
        let input = Input::new(first);
        Self { stream, connection, memory, segment_size, input, output: Vec::new(), written: 0, ended: false }
    }

    /// Writes what there is to send, as far as the socket takes it.
    pub(super) fn write(&mut self) -> Result<Progress, FabricError> {
        let mut progress = Progress::None;
        for _ in 0..WRITES_IN_A_ROW {
            if self.written == self.output.len() {
                self.output.clear();
                self.written = 0;
                let emss = match self.segment_size {
                    SegmentSize::Emss => socket::emss(&self.stream),
                    SegmentSize::Large => Some(fpdu::MAX_ULPDU_SENT + 64),
                };
                if let Some(emss) = emss {
                    self.connection.set_emss(emss);
                }
                self.connection.poll_transmit(&mut self.output, WRITE, &mut self.memory);
                if self.output.is_empty() {
                    return Ok(progress);
                }
            }
            match self.stream.try_write(&self.output[self.written..]) {
                Ok(count) => {
                    self.written += count;
                    self.connection.handle_transmitted(count);
                    progress = Progress::Some;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(progress),
                Err(error) => return Err(FabricError::io("send", error)),
            }
        }
        Ok(progress)
    }

    /// Reads once.
    pub(super) fn read(&mut self) -> Result<Progress, FabricError> {
        if self.ended {
            return Ok(Progress::None);
        }
        match self.input.read(&self.stream).map_err(|error| FabricError::io("receive", error))? {
            Arrival::Bytes => Ok(Progress::Some),
            Arrival::Nothing => Ok(Progress::None),
            Arrival::End => {
                self.ended = true;
                Ok(Progress::Some)
            }
        }
    }

    /// What happened next, taking bytes that were read into account, while `receives` messages may arrive.
    pub(super) fn next_event(&mut self, receives: usize) -> Option<Event> {
        self.connection.set_posted_receives(receives);
        let event = self.connection.poll_event();
        if event.is_some() {
            return event;
        }
        let used = self.connection.handle_bytes(self.input.pending(), &mut self.memory);
        self.input.consume(used);
        let event = self.connection.poll_event();
        if event.is_none() && self.ended {
            self.connection.handle_eof(self.input.pending().len());
            return self.connection.poll_event();
        }
        event
    }

    /// Bytes that were read and not handled.
    pub(super) fn unhandled(&self) -> usize {
        self.input.pending().len()
    }

    /// Whether everything that will ever be sent is in the socket.
    pub(super) fn is_drained(&self) -> bool {
        self.written == self.output.len() && self.connection.is_drained()
    }

    /// Ends our direction of the stream.
    pub(super) fn shut_down(&self) {
        // The socket may be dead already; the reading side tells.
        let _ = socket2::SockRef::from(&self.stream).shutdown(std::net::Shutdown::Write);
    }

    /// Waits until reading, or writing what is left over, may go on.
    pub(super) async fn ready(&self) -> Result<(), FabricError> {
        let mut interest = if self.ended { None } else { Some(Interest::READABLE) };
        if self.written < self.output.len() {
            interest = Some(interest.map_or(Interest::WRITABLE, |i| i | Interest::WRITABLE));
        }
        match interest {
            Some(interest) => match self.stream.ready(interest).await {
                Ok(_) => Ok(()),
                Err(error) => Err(FabricError::io("poll", error)),
            },
            // Neither: only work, or the clock, moves it on.
            None => std::future::pending().await,
        }
    }

    /// The last act: what is still to be sent (a Terminate, answers to Reads) leaves, our direction ends, and the
    /// peer's is read to its end. Closing with unread input would make TCP reset the connection, which can overtake a
    /// Terminate.
    pub(super) async fn linger(mut self) {
        let deadline = Instant::now() + LINGER;
        let last = async {
            let mut shut = false;
            loop {
                let wrote = self.write()?;
                if !shut && self.is_drained() {
                    self.shut_down();
                    shut = true;
                }
                let read = self.read()?;
                while self.next_event(0).is_some() {}
                if shut && self.ended {
                    return Ok(());
                }
                if wrote == Progress::None && read == Progress::None {
                    self.ready().await?;
                }
                tokio::task::coop::consume_budget().await;
            }
        };
        let _: Result<Result<(), FabricError>, _> = tokio::time::timeout_at(deadline, last).await;
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

//! The state of a line: which streams there are, what each may send, and what waits to be sent.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf as _, Bytes, BytesMut};

use super::frame::{BadFrame, Frame, GREETING, MAX_DATA};
use super::{MAX_STREAMS, Service, StreamId, WINDOW};

/// Above this no data is taken for sending; what controls streams still is.
const FULL: usize = 4 * MAX_DATA;

/// Above this the peer makes us answer more than it takes.
const FLOODED: usize = 1 << 20;

/// A credit is granted once so much of the window was handed on: a frame for every few bytes would cost more than them.
const GRANT: usize = WINDOW / 4;

/// The guest says how much of the line has arrived once it is so much: less than any line bears.
const TELL: usize = 512;

/// Which side of the line this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Opens streams; waits for the greeting.
    Host,
    /// Greets; takes streams.
    Guest,
}

/// What came from the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It greeted: the line works.
    Greeted,
    /// It opened a stream.
    Opened(StreamId, Service),
    /// Bytes. Say [`Mux::consumed`] once they are handed on.
    Data(StreamId, Bytes),
    /// It sends no more on this stream.
    Finished(StreamId),
    /// The stream may have room again.
    Writable(StreamId),
    /// It gave the stream up.
    Reset(StreamId),
}

/// Why the line is of no further use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MuxError {
    /// Not the greeting: another program is there, another version, or the line isn't raw.
    #[error("the other side of the line does not speak this protocol: it began with {0:?}")]
    NoGreeting(String),
    /// No frame.
    #[error("the line is out of step: {0}")]
    BadFrame(#[from] BadFrame),
    /// More than it was allowed.
    #[error("{0}: more data than there was credit for")]
    NoCredit(StreamId),
    /// More than the window, or nothing.
    #[error("{0}: a credit of {1} bytes")]
    BadCredit(StreamId, u32),
    /// More was taken from the line than was put on it, or by the wrong side.
    #[error("{0} bytes were taken from the line that were not on it")]
    BadTaken(u32),
    /// Only the host opens streams, each number once and in order.
    #[error("{0} was opened out of order")]
    BadOpen(StreamId),
    /// Data after its end.
    #[error("{0}: more after its end")]
    AfterFinish(StreamId),
    /// It asks and does not listen.
    #[error("the other side of the line asks for more than it takes answers to")]
    Flooded,
    /// There are [`MAX_STREAMS`].
    #[error("{MAX_STREAMS} connections to the guest are open; close one first")]
    TooManyStreams,
}

#[derive(Debug)]
struct Stream {
    /// Bytes that we may send.
    credit: usize,
    /// Bytes that the peer may send.
    granted: usize,
    /// Bytes that were handed on since we last granted.
    consumed: usize,
    /// We send no more.
    finished: bool,
    /// The peer sends no more.
    peer_finished: bool,
    /// Somebody was told that there is no room.
    blocked: bool,
}

impl Stream {
    fn new() -> Self {
        let (credit, granted) = (WINDOW, WINDOW);
        Self { credit, granted, consumed: 0, finished: false, peer_finished: false, blocked: false }
    }
}

/// One side of a line.
#[derive(Debug)]
pub struct Mux {
    role: Role,
    greeted: bool,
    streams: BTreeMap<StreamId, Stream>,
    /// The number of the stream that was opened last.
    last: u32,
    /// Bytes that the line bears.
    bears: usize,
    /// The host: bytes that are on the line; below 0 while the guest has taken some that were just put there, before
    /// [`Mux::transmitted`] was told. The guest: bytes that arrived since it last said so.
    on_line: i64,
    received: BytesMut,
    to_send: BytesMut,
    events: VecDeque<Event>,
    /// Streams that found the queue full, first come first served.
    waiting: VecDeque<StreamId>,
}

impl Mux {
    /// A line on which nothing was said yet, and that bears any number of bytes.
    pub fn new(role: Role) -> Self {
        Self::bearing(role, usize::MAX)
    }

    /// A line that bears so many bytes under way to the guest, at least 1 KiB.
    pub fn bearing(role: Role, bears: usize) -> Self {
        let mut to_send = BytesMut::new();
        if role == Role::Guest {
            to_send.extend_from_slice(&GREETING);
        }
        Self {
            role,
            greeted: role == Role::Guest,
            streams: BTreeMap::new(),
            last: 0,
            bears: bears.max(2 * TELL),
            on_line: 0,
            received: BytesMut::new(),
            to_send,
            events: VecDeque::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Opens a stream. Only the host may; what it sends before the guest has greeted waits.
    pub fn open(&mut self, service: Service) -> Result<StreamId, MuxError> {
        let id = StreamId(self.last.wrapping_add(1));
        if self.role != Role::Host || id.0 == 0 {
            return Err(MuxError::BadOpen(id));
        }
        if self.streams.len() >= MAX_STREAMS {
            return Err(MuxError::TooManyStreams);
        }
        self.last = id.0;
        self.streams.insert(id, Stream::new());
        Frame::Open(id, service).encode(&mut self.to_send);
        Ok(id)
    }

    /// Bytes that [`send`](Self::send) would take now. If none, [`Event::Writable`] will tell when it is worth asking
    /// again; a stream that is gone takes none.
    pub fn capacity(&mut self, id: StreamId) -> usize {
        let full = self.to_send.len() >= FULL;
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.finished) else { return 0 };
        if full && !self.waiting.contains(&id) {
            self.waiting.push_back(id);
        }
        let capacity = if full { 0 } else { stream.credit.min(MAX_DATA) };
        stream.blocked = capacity == 0;
        capacity
    }

    /// Sends data; returns how many bytes were taken.
    pub fn send(&mut self, id: StreamId, data: &[u8]) -> usize {
        let length = self.capacity(id).min(data.len());
        if length == 0 {
            return 0;
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.credit -= length;
        }
        Frame::Data(id, Bytes::copy_from_slice(&data[..length])).encode(&mut self.to_send);
        length
    }

    /// Sends no more on this stream; what was sent before still arrives.
    pub fn finish(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.finished) else { return };
        stream.finished = true;
        let over = stream.peer_finished;
        Frame::Finish(id).encode(&mut self.to_send);
        if over {
            self.streams.remove(&id);
        }
    }

    /// Gives the stream up. Nothing more of it is received.
    pub fn reset(&mut self, id: StreamId) {
        if self.streams.remove(&id).is_some() {
            Frame::Reset(id).encode(&mut self.to_send);
        }
    }

    /// So many of the bytes that arrived were handed on, and the peer may send as many more.
    pub fn consumed(&mut self, id: StreamId, bytes: usize) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.peer_finished) else { return };
        stream.consumed += bytes;
        if stream.consumed >= GRANT {
            let bytes = std::mem::take(&mut stream.consumed);
            stream.granted += bytes;
            // At most the window, which fits.
            Frame::Credit(id, u32::try_from(bytes).unwrap_or(u32::MAX)).encode(&mut self.to_send);
        }
    }

    /// Takes in what came over the line. After an error the line is of no further use.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), MuxError> {
        self.received.extend_from_slice(bytes);
        if self.role == Role::Guest {
            self.on_line = self.on_line.saturating_add_unsigned(bytes.len() as u64);
            if self.on_line >= TELL as i64 {
                let bytes = std::mem::take(&mut self.on_line);
                // What is read at once is far less.
                Frame::Taken(u32::try_from(bytes).unwrap_or(u32::MAX)).encode(&mut self.to_send);
            }
        }
        if !self.greeted {
            let expected = &GREETING[..self.received.len().min(GREETING.len())];
            if !self.received.starts_with(expected) {
                let began = &self.received[..self.received.len().min(80)];
                return Err(MuxError::NoGreeting(String::from_utf8_lossy(began).into_owned()));
            }
            if expected.len() < GREETING.len() {
                return Ok(());
            }
            self.received.advance(GREETING.len());
            self.greeted = true;
            self.events.push_back(Event::Greeted);
        }
        while let Some(frame) = Frame::decode(&mut self.received)? {
            self.take(frame)?;
        }
        if self.to_send.len() > FLOODED { Err(MuxError::Flooded) } else { Ok(()) }
    }

    fn take(&mut self, frame: Frame) -> Result<(), MuxError> {
        if let Frame::Open(id, service) = frame {
            return self.opened(id, service);
        }
        if let Frame::Taken(bytes) = frame {
            self.on_line -= i64::from(bytes);
            let possible = self.role == Role::Host && self.on_line + self.to_send.len() as i64 >= 0;
            return possible.then_some(()).ok_or(MuxError::BadTaken(bytes));
        }
        let (Frame::Data(id, _) | Frame::Credit(id, _) | Frame::Finish(id) | Frame::Reset(id)) = frame else {
            return Ok(());
        };
        // What was under way when we gave the stream up comes late, and is nobody's.
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        match frame {
            Frame::Data(_, data) => {
                if stream.peer_finished {
                    return Err(MuxError::AfterFinish(id));
                }
                stream.granted = stream.granted.checked_sub(data.len()).ok_or(MuxError::NoCredit(id))?;
                self.events.push_back(Event::Data(id, data));
            }
            Frame::Credit(_, bytes) => {
                let credit = stream.credit + bytes as usize;
                if bytes == 0 || credit > WINDOW {
                    return Err(MuxError::BadCredit(id, bytes));
                }
                stream.credit = credit;
                if std::mem::take(&mut stream.blocked) {
                    self.events.push_back(Event::Writable(id));
                }
            }
            Frame::Finish(_) => {
                if stream.peer_finished {
                    return Err(MuxError::AfterFinish(id));
                }
                stream.peer_finished = true;
                if stream.finished {
                    self.streams.remove(&id);
                }
                self.events.push_back(Event::Finished(id));
            }
            Frame::Reset(_) => {
                self.streams.remove(&id);
                self.events.push_back(Event::Reset(id));
            }
            Frame::Open(..) | Frame::Taken(_) => {}
        }
        Ok(())
    }

    fn opened(&mut self, id: StreamId, service: Service) -> Result<(), MuxError> {
        if self.role != Role::Guest || id.0 != self.last.wrapping_add(1) || id.0 == 0 {
            return Err(MuxError::BadOpen(id));
        }
        self.last = id.0;
        // The host counts streams as we do, but may have seen the end of one that we have not.
        if self.streams.len() >= 2 * MAX_STREAMS {
            Frame::Reset(id).encode(&mut self.to_send);
            return Ok(());
        }
        self.streams.insert(id, Stream::new());
        self.events.push_back(Event::Opened(id, service));
        Ok(())
    }

    /// What came of what was received, in order.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Bytes for the line, at the front of what waits; none before the guest has greeted, and no more than the line bears.
    pub fn transmit(&self) -> &[u8] {
        let room = match self.role {
            Role::Host if !self.greeted => 0,
            Role::Host => self.bears.saturating_sub(usize::try_from(self.on_line).unwrap_or(0)),
            Role::Guest => usize::MAX,
        };
        &self.to_send[..self.to_send.len().min(room)]
    }

    /// So many of them are on the line.
    pub fn transmitted(&mut self, bytes: usize) {
        self.to_send.advance(bytes);
        if self.role == Role::Host {
            self.on_line = self.on_line.saturating_add_unsigned(bytes as u64);
        }
        while self.to_send.len() < FULL
            && let Some(id) = self.waiting.pop_front()
        {
            if let Some(stream) = self.streams.get_mut(&id)
                && std::mem::take(&mut stream.blocked)
            {
                self.events.push_back(Event::Writable(id));
            }
        }
    }

    /// Whether all that this side ever has to say is on the line: every stream is finished from here.
    pub fn is_flushed(&self) -> bool {
        self.to_send.is_empty() && self.streams.values().all(|stream| stream.finished)
    }

    /// Streams that are not over.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }
}

//! Every frame that enters a link, in a pcapng file.
//!
//! The relay copies a frame into a bounded queue and goes on; a thread writes the file. The queue takes the frames of both
//! directions under one lock, which also gives each its time: what is earlier in the file entered earlier. A frame that
//! finds the queue full is counted and not written.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, PcapError};

use super::vnet::{self, MAX_RECORD};

/// Bytes of a piece of the queue: large enough that handing it over is rare.
const CHUNK: usize = 1 << 20;
/// Pieces that the queue may have: 256 MiB.
const CHUNKS: usize = 256;
/// How long a frame may wait before it is in the file although its piece is not full.
const FLUSH_AFTER: Duration = Duration::from_millis(200);
/// Bytes before each record in a piece: its direction, its length, its time.
const PREFIX: usize = 1 + 4 + 8;
/// pcapng's code for nanoseconds: 10^-9 (draft-ietf-opsawg-pcapng, `if_tsresol`).
const NANOSECONDS: u8 = 9;

/// An interface as the file describes it.
#[derive(Clone, Debug)]
pub struct Source {
    /// `server:eth0`.
    pub name: String,
    /// For people.
    pub description: String,
    /// Bits per second, if limited.
    pub speed: Option<u64>,
}

/// A capture that runs. It ends when it is dropped, but only [`stop`](Self::stop) says how.
#[derive(Debug)]
pub struct Capture {
    queue: Arc<Queue>,
    writer: Option<JoinHandle<Result<u64, PcapError>>>,
}

/// What the relay of one direction gives its frames to.
#[derive(Clone, Debug)]
pub struct Sink {
    queue: Arc<Queue>,
    interface: u8,
}

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    ready: Condvar,
    began: (Instant, Duration),
}

#[derive(Debug, Default)]
struct State {
    /// Full, in order.
    full: VecDeque<Vec<u8>>,
    /// Being filled; its capacity is [`CHUNK`] or nothing.
    filling: Vec<u8>,
    spare: Vec<Vec<u8>>,
    chunks: usize,
    dropped: u64,
    stop: bool,
    /// The file cannot be written any more: nothing is worth keeping.
    broken: bool,
}

impl Capture {
    /// Creates or truncates `file`, and waits for frames of the two directions.
    pub fn start(file: &Path, sources: [Source; 2]) -> io::Result<Self> {
        let writer = open(File::create(file)?, sources).map_err(to_io)?;
        let began = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        let queue = Arc::new(Queue { state: Mutex::default(), ready: Condvar::new(), began });
        let thread = {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new().name("capture".into()).spawn(move || {
                let result = queue.write_all(writer);
                queue.lock().broken = result.is_err();
                result
            })?
        };
        Ok(Self { queue, writer: Some(thread) })
    }

    /// Where the frames of the first and of the second source go.
    pub fn sinks(&self) -> [Sink; 2] {
        [0, 1].map(|interface| Sink { queue: Arc::clone(&self.queue), interface })
    }

    /// Waits until all that was given is in the file. Returns frames written and frames lost.
    pub fn stop(mut self) -> io::Result<(u64, u64)> {
        let written = self.end()?;
        Ok((written, self.queue.lock().dropped))
    }

    fn end(&mut self) -> io::Result<u64> {
        self.queue.lock().stop = true;
        self.queue.ready.notify_one();
        let Some(writer) = self.writer.take() else { return Ok(0) };
        writer.join().map_err(|_| io::Error::other("the writing thread panicked"))?.map_err(to_io)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "a capture ended badly");
        }
    }
}

impl Sink {
    /// Keeps a copy of a record that has just entered.
    pub fn keep(&self, record: &[u8]) {
        let mut state = self.queue.lock();
        let full = state.full.len();
        if !state.make_room(PREFIX + record.len()) {
            state.dropped += 1;
            return;
        }
        let time = (self.queue.began.1 + self.queue.began.0.elapsed()).as_nanos() as u64;
        state.filling.push(self.interface);
        state.filling.extend_from_slice(&(record.len() as u32).to_ne_bytes());
        state.filling.extend_from_slice(&time.to_ne_bytes());
        state.filling.extend_from_slice(record);
        let wake = state.full.len() > full;
        drop(state);
        if wake {
            self.queue.ready.notify_one();
        }
    }
}

impl State {
    /// Whether the piece being filled has room for `len` bytes, after a new one was begun if need be.
    fn make_room(&mut self, len: usize) -> bool {
        if self.broken || len > CHUNK {
            return false;
        }
        if self.filling.capacity() - self.filling.len() >= len {
            return true;
        }
        let next = match self.spare.pop() {
            Some(spare) => spare,
            None if self.chunks < CHUNKS => {
                self.chunks += 1;
                Vec::with_capacity(CHUNK)
            }
            None => return false,
        };
        let full = std::mem::replace(&mut self.filling, next);
        if full.capacity() > 0 {
            self.full.push_back(full);
        }
        true
    }
}

impl Queue {
    /// A thread that panicked with the lock held left the state whole: every change to it is one push.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all(&self, mut writer: PcapNgWriter<BufWriter<File>>) -> Result<u64, PcapError> {
        let mut written = 0;
        while let Some(mut chunk) = self.next_chunk() {
            written += write_chunk(&mut writer, &mut chunk)?;
            writer.get_mut().flush().map_err(PcapError::IoError)?;
            chunk.clear();
            self.lock().spare.push(chunk);
        }
        Ok(written)
    }

    /// The next piece to write; `None` at the end.
    fn next_chunk(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        loop {
            if let Some(chunk) = state.full.pop_front() {
                return Some(chunk);
            }
            let (woken, timeout) = self
                .ready
                .wait_timeout_while(state, FLUSH_AFTER, |s| s.full.is_empty() && !s.stop)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if (timeout.timed_out() || state.stop) && state.full.is_empty() {
                let rest = std::mem::take(&mut state.filling);
                match (rest.is_empty(), state.stop) {
                    (false, _) => return Some(rest),
                    (true, true) => return None,
                    (true, false) => state.filling = rest,
                }
            }
        }
    }
}

fn open(file: File, sources: [Source; 2]) -> Result<PcapNgWriter<BufWriter<File>>, PcapError> {
    let program = format!("testbed {}", env!("CARGO_PKG_VERSION"));
    let section = SectionHeaderBlock {
        options: vec![SectionHeaderOption::UserApplication(program.into())],
        ..Default::default()
    };
    let mut writer = PcapNgWriter::with_section_header(BufWriter::with_capacity(1 << 18, file), section)?;
    for source in sources {
        let mut options = vec![
            InterfaceDescriptionOption::IfName(source.name.into()),
            InterfaceDescriptionOption::IfDescription(source.description.into()),
            InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
        ];
        options.extend(source.speed.map(InterfaceDescriptionOption::IfSpeed));
        let snaplen = MAX_RECORD as u32;
        writer.write_pcapng_block(InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen,
            options,
        })?;
    }
    writer.get_mut().flush().map_err(PcapError::IoError)?;
    Ok(writer)
}

/// Writes the records of one piece, with their checksums completed and without their virtio-net headers.
fn write_chunk(writer: &mut PcapNgWriter<BufWriter<File>>, chunk: &mut [u8]) -> Result<u64, PcapError> {
    let (mut rest, mut written) = (chunk, 0);
    while let Some((prefix, after)) = rest.split_first_chunk_mut::<PREFIX>() {
        let [interface, l0, l1, l2, l3, time @ ..] = *prefix;
        let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let Some((record, after)) = after.split_at_mut_checked(len) else { break };
        rest = after;
        vnet::complete_record(record);
        let frame = record.get(vnet::HEADER_LEN..).unwrap_or_default();
        writer.write_pcapng_block(EnhancedPacketBlock {
            interface_id: u32::from(interface),
            timestamp: Duration::from_nanos(u64::from_ne_bytes(time)),
            original_len: frame.len() as u32,
            data: Cow::Borrowed(frame),
            options: Vec::new(),
        })?;
        written += 1;
    }
    Ok(written)
}

fn to_io(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

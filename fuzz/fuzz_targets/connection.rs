//! A whole connection against a peer that sends anything, in any pieces: no panic, the same outcome however the bytes
//! are split, nothing written outside of a region or after the end.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

#[expect(dead_code, unreachable_pub, reason = "a library's module, used in part")]
#[path = "../../src/iwarp/mod.rs"]
mod iwarp;

use iwarp::Stag;
use iwarp::connection::{Connection, Event, Output, Work};
use iwarp::fpdu;
use iwarp::memory::{Denied, Lent, Memory, Reach, locate};
use iwarp::mpa::{FrameKind, Revision, StartFrame};
use iwarp::negotiate::Config;

const SIZE: usize = 8192;
const MARGIN: usize = 64;
const REGION: Stag = Stag(0x100);

/// One region, with margins that nobody may touch.
struct Region {
    bytes: Vec<u8>,
    valid: bool,
}

impl Region {
    fn range(&self, stag: Stag, to: u64, length: usize) -> Result<std::ops::Range<usize>, Denied> {
        if stag != REGION || !self.valid {
            return Err(Denied::InvalidStag);
        }
        let range = locate(0, SIZE, to, length)?;
        Ok(range.start + MARGIN..range.end + MARGIN)
    }
}

impl Memory for Region {
    type Lease = Vec<u8>;

    fn sink(
        &mut self,
        _: Reach,
        stag: Stag,
        to: u64,
        length: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), Denied> {
        let range = self.range(stag, to, length)?;
        fill(&mut self.bytes[range]);
        Ok(())
    }

    fn check_source(&mut self, stag: Stag, to: u64, length: u32) -> Result<(), Denied> {
        self.range(stag, to, length as usize).map(drop)
    }

    fn fetch(
        &mut self,
        _: Reach,
        stag: Stag,
        to: u64,
        length: usize,
        _: bool,
    ) -> Result<Option<Lent<Vec<u8>>>, Denied> {
        Ok(Some(Lent::Bytes(self.bytes[self.range(stag, to, length)?].to_vec())))
    }

    fn invalidate(&mut self, stag: Stag) -> Result<(), Denied> {
        self.range(stag, 0, 0)?;
        self.valid = false;
        Ok(())
    }
}

/// What the first bytes of the input choose.
#[derive(Clone, Copy)]
struct Setting {
    responder: bool,
    crc: bool,
    peer_to_peer: bool,
    reads: bool,
    /// FPDUs are framed around the input, so that it gets further than the CRC.
    frame: bool,
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while let Some((length, after)) = rest.split_first() {
        // Some segments are long, so that they are taken in parts.
        let length = if *length > 250 { 4000 } else { usize::from(*length) };
        let start = fpdu::begin(&mut out);
        let (ulpdu, after) = after.split_at(after.len().min(length));
        out.extend_from_slice(ulpdu);
        if length == 4000 {
            out.resize(out.len() + 4000 - ulpdu.len(), 7);
        }
        fpdu::seal(&mut out, start, true);
        rest = after;
    }
    out
}

fn run(
    setting: Setting,
    input: &[u8],
    piece: usize,
    straight: bool,
) -> (Vec<Event>, Vec<u8>, Option<Vec<u8>>) {
    let config = Config {
        revision: Revision::V2,
        crc: setting.crc,
        ird: 2,
        ord: 2,
        peer_to_peer: setting.peer_to_peer,
        receive_size: 4096,
        private_data: Bytes::new(),
    };
    let mut memory = Region { bytes: vec![0; SIZE + 2 * MARGIN], valid: true };
    let mut stream = Vec::new();
    let mut connection = if setting.responder {
        let ours = Connection::initiate(config.clone()).expect("a Request");
        let mut ours = ours;
        let mut request = Output::default();
        ours.poll_transmit(&mut request, 1, &mut memory);
        let request = request.to_vec().expect("no file");
        let (request, _) = StartFrame::decode(FrameKind::Request, &request).expect("sound").expect("whole");
        Connection::respond(&request, &config).expect("no markers")
    } else {
        if setting.frame {
            let flags = if setting.crc { 0x50 } else { 0x10 };
            stream.extend_from_slice(b"MPA ID Rep Frame");
            stream.extend_from_slice(&[flags, 2, 0, 4, if setting.peer_to_peer { 0x80 } else { 0 }, 2]);
            stream.extend_from_slice(&[if setting.peer_to_peer { 0x80 } else { 0 }, 2]);
        }
        Connection::initiate(config).expect("a Request")
    };
    stream.extend(if setting.frame { frame(input) } else { input.to_vec() });
    connection.post(Work::Send { message: Bytes::from_static(b"hello"), invalidate: None, solicited: false });
    if setting.reads {
        for to in [0, 4096] {
            connection.post(Work::Read {
                sink: REGION,
                sink_to: to,
                length: 4000,
                source: Stag(1),
                source_to: 0,
            });
        }
    }
    let (mut events, mut sent) = (Vec::new(), Vec::new());
    let transmit = |connection: &mut Connection, memory: &mut Region| {
        let mut output = Output::default();
        connection.poll_transmit(&mut output, 1 << 20, memory);
        connection.handle_transmitted(output.len());
        output.to_vec().expect("no file")
    };
    // All that we ask for is on its way before anything comes, so that it does not depend on the pieces.
    sent.extend(transmit(&mut connection, &mut memory));
    let mut posted = 3;
    let (mut pending, mut rest) = (Vec::new(), stream.as_slice());
    while !rest.is_empty() {
        let (now, later) = rest.split_at(piece.min(rest.len()));
        let mut now = now;
        if straight && pending.is_empty() {
            let filled = connection.fill_direct(&mut memory, |sink| {
                let count = now.len().min(sink.len());
                sink[..count].copy_from_slice(&now[..count]);
                Ok::<usize, ()>(count)
            });
            if let Some(Ok(count)) = filled {
                now = &now[count..];
            }
        }
        pending.extend_from_slice(now);
        rest = later;
        loop {
            connection.set_posted_receives(posted);
            let used = connection.handle_bytes(&pending, &mut memory);
            assert!(used <= pending.len());
            pending.drain(..used);
            let before = events.len();
            while let Some(event) = connection.poll_event() {
                posted -= usize::from(matches!(event, Event::Received(_)));
                events.push(event);
            }
            if used == 0 && events.len() == before {
                break;
            }
        }
        assert!(pending.len() < fpdu::MAX_FPDU_RECEIVED, "what is kept has a limit");
    }
    connection.handle_eof(pending.len());
    while let Some(event) = connection.poll_event() {
        events.push(event);
    }
    sent.extend(transmit(&mut connection, &mut memory));
    assert!(matches!(events.last(), Some(Event::Closed(_) | Event::Rejected(_))), "{events:?}");
    let (before, after) = (&memory.bytes[..MARGIN], &memory.bytes[SIZE + MARGIN..]);
    assert!(before.iter().chain(after).all(|byte| *byte == 0), "outside of the region");
    // What lies in the region after a bad CRC or a lost stream depends on how much of it had come.
    let orderly = matches!(events.last(), Some(Event::Closed(iwarp::connection::CloseReason::PeerClosed)));
    (events, sent, orderly.then_some(memory.bytes))
}

fuzz_target!(|input: &[u8]| {
    let Some((&[flags, piece], bytes)) = input.split_first_chunk() else { return };
    let setting = Setting {
        responder: flags & 1 != 0,
        crc: flags & 2 != 0,
        peer_to_peer: flags & 4 != 0,
        reads: flags & 8 != 0,
        frame: flags & 16 != 0,
    };
    let whole = run(setting, bytes, usize::MAX, false);
    let split = run(setting, bytes, usize::from(piece) + 1, flags & 32 != 0);
    assert_eq!(whole, split, "the same, however it is split");
});

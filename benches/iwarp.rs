//! The state machine alone, without sockets: bytes a second through one core. `cargo bench --bench iwarp`.

use bytes::Bytes;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use rdma_http::iwarp::Stag;
use rdma_http::iwarp::connection::{Connection, Output, Work};
use rdma_http::iwarp::memory::{Denied, Lent, Memory, Reach, locate};
use rdma_http::iwarp::mpa::{FrameKind, Revision, StartFrame};
use rdma_http::iwarp::negotiate::Config;

const SIZE: usize = 1 << 20;
const REGION: Stag = Stag(0x100);
/// The TCP segments of an Ethernet and of loopback.
const EMSS: [usize; 2] = [1448, 65483];

fn main() {
    divan::main();
}

/// What is written.
struct Region(Vec<u8>);

/// Bytes that are lent without a copy, as a real fabric does.
struct Shared(Bytes);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

struct Both {
    sink: Region,
    source: Bytes,
}

impl Memory for Both {
    type Lease = Shared;

    fn sink(
        &mut self,
        _: Reach,
        _: Stag,
        to: u64,
        length: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), Denied> {
        let range = locate(0, SIZE, to, length)?;
        fill(&mut self.sink.0[range]);
        Ok(())
    }

    fn check_source(&mut self, _: Stag, to: u64, length: u32) -> Result<(), Denied> {
        locate(0, SIZE, to, length as usize).map(drop)
    }

    fn fetch(
        &mut self,
        _: Reach,
        _: Stag,
        to: u64,
        length: usize,
        _: bool,
    ) -> Result<Option<Lent<Shared>>, Denied> {
        Ok(Some(Lent::Bytes(Shared(self.source.slice(locate(0, SIZE, to, length)?)))))
    }

    fn invalidate(&mut self, _: Stag) -> Result<(), Denied> {
        Ok(())
    }
}

fn memory() -> Both {
    Both { sink: Region(vec![0; SIZE]), source: Bytes::from(vec![7; SIZE]) }
}

fn pair(crc: bool, emss: usize, memory: &mut Both) -> [Connection; 2] {
    let config = Config {
        revision: Revision::V2,
        crc,
        ird: 4,
        ord: 4,
        peer_to_peer: false,
        receive_size: 4096,
        private_data: Bytes::new(),
    };
    let mut initiator = Connection::initiate(config.clone()).expect("a Request");
    let mut out = Output::default();
    initiator.poll_transmit(&mut out, 1, memory);
    let request = out.to_vec().expect("no file");
    let (request, _) = StartFrame::decode(FrameKind::Request, &request).expect("sound").expect("whole");
    let mut responder = Connection::respond(&request, &config).expect("no markers");
    let mut out = Output::default();
    responder.poll_transmit(&mut out, 1, memory);
    initiator.handle_bytes(&out.to_vec().expect("no file"), memory);
    for connection in [&mut initiator, &mut responder] {
        connection.set_emss(emss);
        while connection.poll_event().is_some() {}
    }
    [initiator, responder]
}

/// Cutting a Write of 1 MiB into FPDUs, with their CRCs; nothing is copied.
#[divan::bench(args = EMSS, consts = [true as usize, false as usize])]
fn send<const CRC: usize>(bencher: Bencher, emss: usize) {
    let mut memory = memory();
    let [mut initiator, _] = pair(CRC == 1, emss, &mut memory);
    bencher.counter(BytesCount::new(SIZE)).bench_local(|| {
        initiator.post(Work::Write {
            source: REGION,
            source_to: 0,
            length: SIZE as u64,
            sink: REGION,
            sink_to: 0,
        });
        let mut out = Output::default();
        initiator.poll_transmit(&mut out, usize::MAX, &mut memory);
        initiator.handle_transmitted(out.len());
        while initiator.poll_event().is_some() {}
        black_box(out.len())
    });
}

/// Checking and placing the FPDUs of a Write of 1 MiB.
#[divan::bench(args = EMSS, consts = [true as usize, false as usize])]
fn receive<const CRC: usize>(bencher: Bencher, emss: usize) {
    let mut memory = memory();
    let [mut initiator, mut responder] = pair(CRC == 1, emss, &mut memory);
    initiator.post(Work::Write {
        source: REGION,
        source_to: 0,
        length: SIZE as u64,
        sink: REGION,
        sink_to: 0,
    });
    let mut out = Output::default();
    initiator.poll_transmit(&mut out, usize::MAX, &mut memory);
    let bytes = out.to_vec().expect("no file");
    bencher.counter(BytesCount::new(SIZE)).bench_local(|| {
        let used = responder.handle_bytes(black_box(&bytes), &mut memory);
        assert_eq!(used, bytes.len());
    });
}

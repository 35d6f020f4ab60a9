//! Somebody between the two ends of an RDMA connection, who reads what goes by, and meddles.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What is done to the first run of Writes, or the first answer to a Read, in either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    /// Nothing.
    Nothing,
    /// A bit of the second segment is turned over.
    Flip,
    /// Two segments change places.
    Swap,
    /// What the first segment brought, the second one brings again.
    Repeat,
    /// The second segment is lost, and TCP does not notice.
    LeaveOut,
    /// What the connection before brought comes again.
    Replay,
    /// The last segment is lost, and the one before it ends the message.
    Cut,
    /// The same, and what is said of the Writes is what is left of them.
    CutAndTell,
    /// The first answer to a Read ends with its first segment.
    CutRead,
}

impl Doing {
    /// What makes a record not open that is written.
    pub(crate) const ALL: [Self; 7] =
        [Self::Nothing, Self::Flip, Self::Swap, Self::Repeat, Self::LeaveOut, Self::Replay, Self::Cut];
}

/// What is known of what went by.
#[derive(Default)]
struct Seen {
    bytes: Vec<u8>,
    /// The segments' payloads of the first connection.
    first: Vec<Vec<u8>>,
    connections: usize,
    done: bool,
}

/// Accepts connections, and makes each on to the same port of 127.0.0.1.
pub(crate) struct Between {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

impl Between {
    pub(crate) fn start(doing: Doing) -> Self {
        // The client listens at the same port of another address, where another test may be.
        let (listener, address) = loop {
            let listener = TcpListener::bind("127.0.0.2:0").unwrap();
            let address = listener.local_addr().unwrap();
            if TcpListener::bind(("127.0.0.1", address.port())).is_ok() {
                break (listener, address);
            }
        };
        let seen = Arc::new(Mutex::new(Seen::default()));
        let known = seen.clone();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.unwrap();
                let far = TcpStream::connect(("127.0.0.1", address.port())).unwrap();
                known.lock().unwrap().connections += 1;
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let known = known.clone();
                    std::thread::spawn(move || {
                        // An end of either kind is the other side's too.
                        let _ = carry(&from, &to, doing, &known);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { address, seen }
    }

    /// All that went by.
    pub(crate) fn seen(&self) -> Vec<u8> {
        self.seen.lock().unwrap().bytes.clone()
    }

    /// Whether anything was done.
    pub(crate) fn did(&self) -> bool {
        self.seen.lock().unwrap().done
    }
}

/// Where a tagged segment's payload begins: after the length (RFC 5044, section 4) and the header (RFC 5041, section 4.1).
const PAYLOAD: usize = 2 + 14;
/// Where a message's count of bytes stands: after the length and the header of an untagged segment (RFC 5041, section 4.2).
const COUNT: usize = 2 + 18 + 24;
/// That a segment is the last of its message (RFC 5041, section 4).
const LAST: u8 = 0x40;
/// A Read Response (RFC 5040, section 4.1).
const READ_RESPONSE: u8 = 2;

fn payload(fpdu: &[u8]) -> &[u8] {
    &fpdu[PAYLOAD..2 + usize::from(u16::from_be_bytes([fpdu[0], fpdu[1]]))]
}

fn carry(mut from: &TcpStream, mut to: &TcpStream, doing: Doing, seen: &Mutex<Seen>) -> io::Result<()> {
    // The start-up frame: 20 bytes, of which the last two tell of private data (RFC 5044, section 7.1.1).
    let mut frame = [0; 20];
    from.read_exact(&mut frame)?;
    to.write_all(&frame)?;
    let mut private = vec![0; usize::from(u16::from_be_bytes([frame[18], frame[19]]))];
    from.read_exact(&mut private)?;
    to.write_all(&private)?;
    let mut writes = Vec::new();
    // Whether the rest of a Read Response is lost.
    let mut losing = false;
    loop {
        let mut fpdu = fpdu(from)?;
        seen.lock().unwrap().bytes.extend_from_slice(&fpdu);
        let tagged = fpdu[2] & 0x80 != 0;
        if tagged && fpdu[3] & 0xf == READ_RESPONSE {
            let (last, lost) = (fpdu[2] & LAST != 0, losing);
            let mut seen = seen.lock().unwrap();
            if doing == Doing::CutRead && !last && !seen.done {
                fpdu[2] |= LAST;
                (seen.done, losing) = (true, true);
            }
            losing &= !last;
            if !lost {
                to.write_all(&fpdu)?;
            }
            continue;
        }
        if tagged {
            writes.push(fpdu);
            continue;
        }
        // What follows Writes tells of them: until then nobody looks.
        if writes.len() > 1 {
            let lost = meddle(&mut writes, doing, &mut seen.lock().unwrap());
            if doing == Doing::CutAndTell {
                let told: [u8; 8] = fpdu[COUNT..COUNT + 8].try_into().unwrap();
                let told = u64::from_be_bytes(told) - lost;
                fpdu[COUNT..COUNT + 8].copy_from_slice(&told.to_be_bytes());
            }
        }
        for fpdu in writes.drain(..).chain([fpdu]) {
            to.write_all(&fpdu)?;
        }
    }
}

/// Returns how many bytes it has cut off.
fn meddle(writes: &mut Vec<Vec<u8>>, doing: Doing, seen: &mut Seen) -> u64 {
    if seen.connections == 1 {
        seen.first.extend(writes.iter().map(|fpdu| payload(fpdu).to_vec()));
    }
    let put = |fpdu: &mut Vec<u8>, bytes: &[u8]| fpdu[PAYLOAD..PAYLOAD + bytes.len()].copy_from_slice(bytes);
    let alike = writes[0].len() == writes[1].len();
    let mut lost = 0;
    match doing {
        _ if seen.done => return 0,
        Doing::Nothing | Doing::CutRead => return 0,
        Doing::Flip => writes[1][PAYLOAD + 77] ^= 1,
        Doing::Swap if alike => {
            let (first, second) = (payload(&writes[0]).to_vec(), payload(&writes[1]).to_vec());
            put(&mut writes[0], &second);
            put(&mut writes[1], &first);
        }
        Doing::Repeat if alike => {
            let first = payload(&writes[0]).to_vec();
            put(&mut writes[1], &first);
        }
        Doing::LeaveOut if writes.len() > 2 => drop(writes.remove(1)),
        Doing::Replay if seen.connections == 2 => {
            for (fpdu, old) in writes.iter_mut().zip(&seen.first) {
                put(fpdu, &old[..old.len().min(payload(fpdu).len())]);
            }
        }
        Doing::Cut | Doing::CutAndTell => {
            lost = writes.pop().map_or(0, |fpdu| payload(&fpdu).len() as u64);
            if let Some(end) = writes.last_mut() {
                end[2] |= LAST;
            }
        }
        Doing::Swap | Doing::Repeat | Doing::LeaveOut | Doing::Replay => return 0,
    }
    seen.done = true;
    lost
}

/// One FPDU: a length, as many bytes, zeros up to a multiple of four, a checksum.
fn fpdu(mut from: &TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    from.read_exact(&mut length)?;
    let whole = (2 + usize::from(u16::from_be_bytes(length))).next_multiple_of(4) + 4;
    let mut fpdu = vec![0; whole];
    fpdu[..2].copy_from_slice(&length);
    from.read_exact(&mut fpdu[2..])?;
    Ok(fpdu)
}

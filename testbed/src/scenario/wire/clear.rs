//! Whether a body went over the wire as it is: its blocks, looked for at every place of every frame that was captured.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::WireError;
use super::frame::{self, Frame};
use crate::scenario::body::BLOCK;

/// Bytes of a block that are looked for: no others are the same by chance, and a frame that holds 47 bytes of a body in a
/// row holds these of one block.
const LOOKED_FOR: usize = 16;

/// The beginnings of a body's blocks.
#[derive(Debug)]
pub(crate) struct Blocks(HashSet<[u8; LOOKED_FOR]>);

impl Blocks {
    /// Those of a file that [`body::write`](crate::scenario::body::write) made.
    pub(crate) fn of(file: &Path) -> io::Result<Self> {
        let mut file = File::open(file)?;
        let mut body = Vec::new();
        file.read_to_end(&mut body)?;
        Ok(Self(body.chunks(BLOCK).filter_map(|block| block.first_chunk().copied()).collect()))
    }

    /// How many of them stand in these bytes.
    fn within(&self, bytes: &[u8]) -> u64 {
        let places = bytes.windows(LOOKED_FOR).filter_map(|window| window.first_chunk());
        places.filter(|place| self.0.contains(*place)).count() as u64
    }
}

/// How many blocks of a body a capture shows.
pub(crate) fn exposed(capture: &Path, blocks: &Blocks) -> Result<u64, WireError> {
    let mut found = 0;
    frame::read(capture, |_, frame| {
        found += match frame {
            Frame::Tcp(segment) => blocks.within(segment.payload),
            Frame::Roce { datagram, .. } => blocks.within(datagram),
            Frame::ArpRequest { .. } | Frame::ArpReply { .. } | Frame::Other => 0,
        };
        Ok(())
    })?;
    Ok(found)
}

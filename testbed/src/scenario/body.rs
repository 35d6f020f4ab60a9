//! Bodies: bytes made from a seed, so that a scenario need only say how many.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Bytes of a body's blocks, no two of which are alike.
pub const BLOCK: usize = 32;
/// Modification time of every body, so that `Last-Modified` is the same in every run: the first day of NCA 2007.
const MODIFIED: Duration = Duration::from_secs(1_184_198_400);

/// How long a file is and what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Bytes.
    pub length: u64,
    /// SHA-256, in hexadecimal.
    pub sha256: String,
}

/// Writes `size` bytes made from `seed`: the SHA-256 of seed and counter, block after block. Two seeds have nothing in
/// common, and no two blocks of a body are alike, so bytes that land in the wrong place show.
pub fn write(path: &Path, size: u64, seed: u64) -> io::Result<Content> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut out = BufWriter::with_capacity(1 << 16, File::create(path)?);
    let mut whole = Sha256::new();
    let mut left = size;
    let mut counter = 0u64;
    while left > 0 {
        let mut block = Sha256::new();
        block.update(seed.to_be_bytes());
        block.update(counter.to_be_bytes());
        let block = block.finalize();
        let piece = usize::try_from(left).map_or(block.len(), |left| left.min(block.len()));
        out.write_all(&block[..piece])?;
        whole.update(&block[..piece]);
        left -= piece as u64;
        counter += 1;
    }
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.set_modified(SystemTime::UNIX_EPOCH + MODIFIED)?;
    Ok(Content { length: size, sha256: hex(&whole.finalize()) })
}

/// Reads a file to its end and hashes it.
pub fn read(path: &Path) -> io::Result<Content> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 16];
    let mut whole = Sha256::new();
    let mut length = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(Content { length, sha256: hex(&whole.finalize()) });
        }
        whole.update(&buffer[..n]);
        length += n as u64;
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_what_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b.bin");
        for size in [0, 1, 31, 32, 33, 100_000] {
            let written = write(&path, size, 1).unwrap();
            assert_eq!(read(&path).unwrap(), written);
            assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
        }
    }

    #[test]
    fn a_body_depends_on_its_seed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| folder.path().join(name));
        assert_eq!(write(&a, 100, 1).unwrap(), write(&b, 100, 1).unwrap());
        assert_ne!(write(&a, 100, 1).unwrap(), write(&c, 100, 2).unwrap());
        // A golden file holds this number; if it changes, all of them do.
        let one = write(&a, 1, 1).unwrap();
        assert_eq!(one.sha256, "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881");
        assert_eq!(std::fs::read(&a).unwrap(), b"x");
    }
}

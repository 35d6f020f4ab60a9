//! A file's part as a body: read piece by piece, or sent unread; broken off where the file changes.

use std::fs::{File, Metadata};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use rustix::io::{ReadWriteFlags, preadv2};
use tokio::task::JoinHandle;

use super::BoxError;

/// A part of a file that is a body, as a response's extension: so that it can be sent without being read.
#[derive(Clone, Debug)]
pub struct FilePart {
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
    length: u64,
    stamp: Stamp,
}

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl FilePart {
    /// `length` bytes from `offset`. A change of the file since it was what `metadata` says breaks the body.
    pub fn new(file: File, metadata: &Metadata, offset: u64, length: u64) -> io::Result<Self> {
        let (file, stamp) = (Arc::new(file), Stamp::of(metadata));
        if offset.checked_add(length).is_none_or(|end| end > stamp.length) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than that"));
        }
        Ok(Self { file, offset, length, stamp })
    }

    /// Bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Its bytes as a body, read in pieces of `piece` bytes, one at least.
    pub fn into_body(self, piece: usize) -> FileBody {
        FileBody { part: self, at: 0, piece: piece.max(1), reading: None }
    }

    /// Whether the file is what it was.
    pub fn check(&self) -> Result<(), BoxError> {
        match Stamp::of(&self.file.metadata()?) == self.stamp {
            true => Ok(()),
            false => Err("the file was changed meanwhile".into()),
        }
    }

    /// `size` bytes from `at`, or as many of them as lie in the page cache: waits for no disk.
    fn read_cached(&self, at: u64, size: usize) -> (Vec<u8>, usize) {
        let mut bytes = vec![0; size];
        let slices = &mut [IoSliceMut::new(&mut bytes)];
        // Whatever else there is to say of the file, the read that waits says it; some file systems know no other.
        let read = preadv2(&self.file, slices, self.offset + at, ReadWriteFlags::NOWAIT).unwrap_or(0);
        (bytes, read)
    }
}

/// A body that is read from a file, as long as that is what it was.
#[derive(Debug)]
pub struct FileBody {
    part: FilePart,
    at: u64,
    piece: usize,
    /// By a thread that may wait for a disk.
    reading: Option<JoinHandle<io::Result<Vec<u8>>>>,
}

impl FileBody {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<u8>, BoxError>> {
        if self.reading.is_none() {
            let left = self.part.length - self.at;
            let size = usize::try_from(left).map_or(self.piece, |left| left.min(self.piece));
            let (mut bytes, read) = self.part.read_cached(self.at, size);
            if read == size {
                return Poll::Ready(Ok(bytes));
            }
            let (file, from) = (self.part.file.clone(), self.part.offset + self.at + read as u64);
            self.reading = Some(tokio::task::spawn_blocking(move || {
                file.read_exact_at(&mut bytes[read..], from)?;
                Ok(bytes)
            }));
        }
        let Some(reading) = &mut self.reading else { unreachable!("it was begun above") };
        let read = ready!(Pin::new(reading).poll(cx));
        self.reading = None;
        Poll::Ready(read?.map_err(|error| self.part.check().err().unwrap_or_else(|| error.into())))
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        let bytes = ready!(self.poll_piece(cx))?;
        // What has been read is of before the change, if there was none by now.
        self.part.check()?;
        self.at += bytes.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.at == self.part.length
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.part.length - self.at)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::num::NonZeroU64;

    use http_body_util::BodyExt;
    use rustix::fs::{Advice, fadvise};

    use super::*;

    fn part(text: &[u8], offset: u64, length: u64) -> (File, FilePart) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        let metadata = file.metadata().unwrap();
        let part = FilePart::new(file.try_clone().unwrap(), &metadata, offset, length).unwrap();
        (file, part)
    }

    #[tokio::test]
    async fn a_part_is_read_in_pieces() {
        let (file, part) = part(b"0123456789", 2, 7);
        let mut body = part.into_body(3);
        for piece in ["234", "567", "8"] {
            assert!(!body.is_end_stream());
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), piece);
        }
        assert!(body.is_end_stream() && body.frame().await.is_none());
        let metadata = file.metadata().unwrap();
        assert!(FilePart::new(file, &metadata, 3, 8).is_err());
    }

    #[tokio::test]
    async fn what_is_not_in_the_page_cache_is_waited_for() {
        let text: Vec<u8> = (0..300_000_u32).map(|at| at as u8).collect();
        let (file, part) = part(&text, 1, 299_999);
        file.sync_all().unwrap();
        // All but the last 100,000 bytes are forgotten, where the file system forgets anything.
        fadvise(&file, 0, NonZeroU64::new(200_000), Advice::DontNeed).unwrap();
        assert_eq!(part.into_body(70_000).collect().await.unwrap().to_bytes(), text[1..]);
    }

    #[tokio::test]
    async fn a_change_breaks_it_off() {
        let (file, part) = part(b"0123456789", 2, 8);
        let [whole, mut cut] = [(), ()].map(|()| part.clone().into_body(4));
        assert_eq!(whole.collect().await.unwrap().to_bytes().len(), 8);
        assert!(cut.frame().await.unwrap().is_ok());
        file.set_len(9).unwrap();
        for _ in 0..2 {
            // Where it is shorter, and where it has its length again.
            let error = cut.frame().await.unwrap().unwrap_err();
            assert!(error.to_string().contains("changed meanwhile"), "{error}");
            file.set_len(10).unwrap();
        }
    }
}

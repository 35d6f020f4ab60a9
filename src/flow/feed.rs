//! Bodies on their way out: cut into chunks of one size, or parts of a file that are sent unread.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};

use super::file::FilePart;
use super::gather::{Gather, Sealing};
use super::{BoxError, FlowError};
use crate::memory::Load;
use crate::seal::{Keys, Sealer, sealed_length};

/// A body of known length, to be taken chunk by chunk.
pub struct Feed<B> {
    from: From<B>,
    left: u64,
    length: u64,
    // Read before it was wanted.
    first: Option<Load>,
}

enum From<B> {
    Body(Gather<B>),
    Sealed(Box<Sealing<B>>),
    File(FilePart),
}

impl<B> Feed<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    /// `length` bytes of `body`.
    pub fn body(body: B, length: u64) -> Self {
        Self { from: From::Body(Gather::new(body)), left: length, length, first: None }
    }

    /// `length` bytes of `body` as they are when they are sealed, which are more; `None` if 64 bits do not hold their number.
    pub fn sealed(body: B, length: u64, keys: Keys) -> Option<Self> {
        let sealed = sealed_length(length)?;
        let sealing = Sealing { gather: Gather::new(body), sealer: Sealer::new(keys, length) };
        Some(Self { from: From::Sealed(Box::new(sealing)), left: sealed, length: sealed, first: None })
    }

    /// All of a file's part.
    pub fn file(part: FilePart) -> Self {
        Self { left: part.length(), length: part.length(), from: From::File(part), first: None }
    }

    /// Bytes of the whole.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether its bytes are read when they are sent, not when they are taken.
    pub(super) fn leaves_unread(&self) -> bool {
        matches!(self.from, From::File(_))
    }

    /// Reads the first chunk, which may take its time.
    pub async fn begin(&mut self, size: usize) -> Result<(), BoxError> {
        if self.first.is_none() && self.left > 0 {
            self.first = Some(self.next(size).await?);
        }
        Ok(())
    }

    /// The next chunk: `size` bytes, or all that is left, or what was begun with. Of what is sealed as many whole records as
    /// that is, but one at least. Not to be called when nothing is left.
    pub async fn next(&mut self, size: usize) -> Result<Load, BoxError> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        let size = usize::try_from(self.left).map_or(size, |left| left.min(size));
        let load = match &mut self.from {
            From::Body(gather) => Load::Bytes(gather.next(size, self.left).await?),
            From::Sealed(sealing) => Load::Bytes(sealing.next(size).await?),
            From::File(part) => {
                part.check()?;
                let offset = part.offset + (self.length - self.left);
                Load::File { file: part.file.clone(), offset, length: size }
            }
        };
        self.left -= load.length() as u64;
        Ok(load)
    }

    /// Makes sure that the body ends where its length says, and is what it was.
    pub async fn end(&mut self) -> Result<(), BoxError> {
        match &mut self.from {
            From::Body(gather) => gather.end().await,
            From::Sealed(sealing) => sealing.gather.end().await,
            From::File(part) => part.check(),
        }
    }

    /// Why a transfer of it broke: a file that is not what it was is to blame, whatever came of it.
    pub(super) fn blame(&self, error: FlowError) -> FlowError {
        match (&self.from, error) {
            (From::File(part), error @ (FlowError::Lost(_) | FlowError::Register(_))) => {
                part.check().err().map_or(error, FlowError::Body)
            }
            (_, error) => error,
        }
    }

    /// The whole body again, for whoever sends it another way; nothing of it may have been taken but by
    /// [`begin`](Self::begin). `None` where it is a file's part: its owner still has the body; or where it is sealed.
    pub fn into_body(self) -> Option<Unread<B>> {
        let From::Body(gather) = self.from else { return None };
        let (body, rest) = gather.into_parts();
        let first = match self.first {
            Some(Load::Bytes(first)) => Some(first.into()),
            _ => None,
        };
        Some(Unread { read: [first, rest].into_iter().flatten().collect(), body })
    }
}

/// A body put together again from what was read of it and the rest.
pub struct Unread<B> {
    read: VecDeque<Bytes>,
    body: Pin<Box<B>>,
}

/// All of a buffer as [`Bytes`]; no copy where it is that already.
pub(super) fn to_bytes(mut data: impl Buf) -> Bytes {
    data.copy_to_bytes(data.remaining())
}

/// What a body of any make gives, with its data as [`Bytes`].
pub(crate) fn in_bytes<D: Buf, E: Into<BoxError>>(
    frame: Poll<Option<Result<Frame<D>, E>>>,
) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
    frame.map(|next| next.map(|frame| frame.map(|f| f.map_data(to_bytes)).map_err(Into::into)))
}

impl<B> Body for Unread<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(bytes) = self.read.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        in_bytes(self.body.as_mut().poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let read = self.read.iter().map(|bytes| bytes.len() as u64).sum();
        let mut hint = self.body.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(read));
        }
        hint.set_lower(hint.lower().saturating_add(read));
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::StreamBody;
    use proptest::prelude::*;
    use std::convert::Infallible;
    use std::fs::File;
    use std::io::Write;

    /// A body of the given frames.
    fn body(frames: Vec<Vec<u8>>) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        let frames = frames.into_iter().map(|frame| Ok(http_body::Frame::data(Bytes::from(frame))));
        StreamBody::new(Iter(frames))
    }

    struct Iter<I>(I);
    impl<I: Iterator + Unpin> futures_core::Stream for Iter<I> {
        type Item = I::Item;
        fn poll_next(
            mut self: Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Self::Item>> {
            std::task::Poll::Ready(self.0.next())
        }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    proptest! {
        #[test]
        fn chunks_are_of_one_size_however_the_frames_fall(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20),
            size in 1..50_usize,
            lie in -1..=1_i64,
            begin in any::<bool>(),
        ) {
            let whole = frames.concat();
            let Some(length) = (whole.len() as u64).checked_add_signed(lie) else { return Ok(()) };
            let mut feed = Feed::body(body(frames), length);
            let result: Result<Vec<Vec<u8>>, BoxError> = block_on(async {
                let mut chunks = Vec::new();
                let mut taken = 0;
                if begin {
                    feed.begin(size).await?;
                }
                while taken < length {
                    let Load::Bytes(chunk) = feed.next(size).await? else { unreachable!() };
                    taken += chunk.len() as u64;
                    chunks.push(chunk);
                }
                feed.end().await?;
                Ok(chunks)
            });
            prop_assert_eq!(result.is_ok(), lie == 0);
            if let Ok(chunks) = result {
                prop_assert!(chunks.iter().rev().skip(1).all(|chunk| chunk.len() == size));
                prop_assert_eq!(chunks.concat(), whole);
            }
        }
    }

    #[test]
    fn a_file_that_changes_breaks_its_body() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let part = |file: &File| FilePart::new(file.try_clone().unwrap(), &file.metadata().unwrap(), 2, 8);
        let mut feed = Feed::<http_body_util::Empty<Bytes>>::file(part(&file).unwrap());
        let offsets = |load: Load| match load {
            Load::File { offset, length, .. } => (offset, length),
            Load::Bytes(_) => unreachable!(),
        };
        assert_eq!(offsets(block_on(feed.next(5)).unwrap()), (2, 5));
        assert_eq!(offsets(block_on(feed.next(5)).unwrap()), (7, 3));
        block_on(feed.end()).unwrap();
        let lost = || FlowError::Lost(crate::fabric::FabricError::Closed);
        assert!(matches!(feed.blame(lost()), FlowError::Lost(_)));
        file.set_len(9).unwrap();
        assert!(block_on(feed.end()).is_err());
        assert!(matches!(feed.blame(lost()), FlowError::Body(_)));
        assert!(part(&file).is_err());
    }
}

//! One body by RDMA: gather a chunk, register it, Write it, a few of them at a time; then the Send that completes it.

use std::collections::VecDeque;
use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::RdmaConfig;
use super::connection::Kept;
use super::layer::{BoxError, to_bytes};
use crate::events::{Event, Recorder};
use crate::fabric::{BoxFuture, FabricError, RemoteAddress};
use crate::header::{Offer, Reason, TransferId};
use crate::memory::{Registration, Source};
use crate::message::Message;

/// Why a transfer broke off after it had begun.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    /// The inner service's fault.
    #[error("the body broke off: {0}")]
    Body(BoxError),
    /// The connection's, or the peer's.
    #[error("the RDMA connection was lost: {0}")]
    Lost(FabricError),
    /// The peer takes nothing.
    #[error("the client took nothing for {0:?}")]
    Stalled(Duration),
    /// No memory could be registered.
    #[error("a buffer could not be registered: {0}")]
    Register(FabricError),
}

impl TransferError {
    /// What the response calls it; `None` where the body itself is broken and so must be the response.
    pub(super) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Body(_) => None,
            Self::Lost(_) => Some(Reason::CONNECTION_LOST),
            Self::Stalled(_) => Some(Reason::TIMED_OUT),
            Self::Register(_) => Some(Reason::EXHAUSTED),
        }
    }
}

/// A body of a known length on its way into a client's region.
pub(super) struct Transfer<'a> {
    pub(super) offer: Offer,
    pub(super) length: u64,
    pub(super) config: &'a RdmaConfig,
    pub(super) registration: &'a dyn Registration,
    pub(super) recorder: &'a Recorder,
}

/// A Write under way. The completion comes first, so that it is dropped before the memory is let go.
type InFlight = (BoxFuture<'static, Result<(), FabricError>>, Box<dyn Source>);

impl Transfer<'_> {
    /// Reads the first chunk, which may take its time, so before there is a connection that could close meanwhile.
    pub(super) async fn begin<B>(&self, body: B) -> Result<Begun<B>, TransferError>
    where
        B: Body,
        B::Error: Into<BoxError>,
    {
        let mut gather = Gather { body: Box::pin(body), rest: None, left: self.length };
        match gather.next(self.config.chunk).await {
            Ok(first) => Ok(Begun { first, gather }),
            Err(error) => {
                let error = TransferError::Body(error);
                Progress { transfer: self, written: 0, over: true }.report(&error);
                Err(error)
            }
        }
    }

    /// Moves the whole body. On an error the caller must drop the connection. The first Write is posted before anything
    /// is waited for.
    pub(super) async fn run<B>(&self, kept: &Kept, begun: Begun<B>) -> Result<(), TransferError>
    where
        B: Body,
        B::Error: Into<BoxError>,
    {
        let mut progress = Progress { transfer: self, written: 0, over: false };
        let result = self.writes(kept, begun, &mut progress.written).await;
        progress.over = true;
        if let Err(error) = &result {
            progress.report(error);
        }
        result
    }

    async fn writes<B>(&self, kept: &Kept, begun: Begun<B>, written: &mut u64) -> Result<(), TransferError>
    where
        B: Body,
        B::Error: Into<BoxError>,
    {
        let Begun { first, mut gather } = begun;
        let mut first = Some(first);
        let mut window: VecDeque<InFlight> = VecDeque::with_capacity(self.config.window);
        let mut posted = 0;
        while posted < self.length {
            if window.len() >= self.config.window {
                self.complete_oldest(&mut window, written).await?;
            }
            let chunk = match first.take() {
                Some(first) => first,
                None => tokio::select! {
                    biased;
                    chunk = gather.next(self.config.chunk) => chunk.map_err(TransferError::Body)?,
                    error = kept.channel.closed() => return Err(TransferError::Lost(error)),
                },
            };
            let source =
                self.registration.source(&kept.pd, chunk, self.recorder).map_err(TransferError::Register)?;
            let to = RemoteAddress { stag: self.offer.stag, to: self.offer.to + posted };
            posted += source.length() as u64;
            window.push_back((kept.channel.write(&*source, to), source));
        }
        tokio::select! {
            biased;
            end = timeout(self.config.stall_timeout, gather.end()) => end
                .unwrap_or_else(|_| Err("it does not end where its length says".into()))
                .map_err(TransferError::Body)?,
            error = kept.channel.closed() => return Err(TransferError::Lost(error)),
        }
        while !window.is_empty() {
            self.complete_oldest(&mut window, written).await?;
        }
        let id = self.offer.id.unwrap_or(TransferId::NONE);
        self.within(kept.channel.send(Message::Done { id, bytes: self.length })).await
    }

    async fn complete_oldest(
        &self,
        window: &mut VecDeque<InFlight>,
        written: &mut u64,
    ) -> Result<(), TransferError> {
        if let Some((completion, source)) = window.pop_front() {
            self.within(completion).await?;
            *written += source.length() as u64;
        }
        Ok(())
    }

    async fn within(
        &self,
        completion: impl Future<Output = Result<(), FabricError>>,
    ) -> Result<(), TransferError> {
        let limit = self.config.stall_timeout;
        match timeout(limit, completion).await {
            Ok(result) => result.map_err(TransferError::Lost),
            Err(_) => Err(TransferError::Stalled(limit)),
        }
    }
}

/// Tells how a transfer ended that did not end well, also when it is dropped because the HTTP connection is gone.
struct Progress<'a> {
    transfer: &'a Transfer<'a>,
    written: u64,
    over: bool,
}

impl Progress<'_> {
    fn report(&self, why: &dyn Error) {
        let Transfer { offer, length, recorder, .. } = self.transfer;
        let (address, written) = (offer.address, self.written);
        let error = format!("transfer to {address} ended after {written} of {length} bytes: {why}");
        tracing::warn!("{error}");
        recorder.record(Event::Failed { error });
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the HTTP connection ended")]
struct Abandoned;

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.report(&Abandoned);
        }
    }
}

/// A body whose first chunk is read, and nothing of it written.
pub(super) struct Begun<B> {
    first: Vec<u8>,
    gather: Gather<B>,
}

impl<B: Body> Begun<B> {
    /// The whole body again, for whoever sends it another way.
    pub(super) fn into_body(self) -> Unread<B> {
        let Gather { body, rest, .. } = self.gather;
        Unread { read: [Some(self.first.into()), rest].into_iter().flatten().collect(), body }
    }
}

/// A body put together again from what was read of it and the rest.
pub(super) struct Unread<B> {
    read: VecDeque<Bytes>,
    body: Pin<Box<B>>,
}

impl<B> Unread<B> {
    /// A body of which nothing was read.
    pub(super) fn whole(body: B) -> Self {
        Self { read: VecDeque::new(), body: Box::pin(body) }
    }
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
        let frame = self.body.as_mut().poll_frame(cx);
        frame.map(|next| next.map(|frame| frame.map(|f| f.map_data(to_bytes)).map_err(Into::into)))
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

/// Cuts a body into chunks of one size, however its frames fall.
struct Gather<B> {
    body: Pin<Box<B>>,
    rest: Option<Bytes>,
    left: u64,
}

impl<B> Gather<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    /// The next chunk: `size` bytes, or all that is left of the body. Not to be called when nothing is.
    async fn next(&mut self, size: usize) -> Result<Vec<u8>, BoxError> {
        let size = usize::try_from(self.left).map_or(size, |left| left.min(size));
        let mut chunk = Vec::new();
        while chunk.len() < size {
            let mut data = match self.data().await? {
                Some(data) => data,
                None => return Err(format!("it ended {} bytes early", self.left - chunk.len() as u64).into()),
            };
            let taken = data.split_to(data.len().min(size - chunk.len()));
            if !data.is_empty() {
                self.rest = Some(data);
            }
            if chunk.is_empty() && taken.len() == size {
                // The very buffer, where nobody else holds it.
                chunk = Vec::from(taken);
            } else {
                chunk.reserve_exact(size - chunk.len());
                chunk.extend_from_slice(&taken);
            }
        }
        self.left -= size as u64;
        Ok(chunk)
    }

    /// Makes sure that the body ends where its length says.
    async fn end(&mut self) -> Result<(), BoxError> {
        match self.data().await? {
            Some(_) => Err("it is longer than its length says".into()),
            None => Ok(()),
        }
    }

    /// The next bytes, at least one. Trailers have no place in a response of known length and are dropped.
    async fn data(&mut self) -> Result<Option<Bytes>, BoxError> {
        if let Some(rest) = self.rest.take() {
            return Ok(Some(rest));
        }
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(Into::into)?;
            if let Ok(mut data) = frame.into_data()
                && data.has_remaining()
            {
                return Ok(Some(data.copy_to_bytes(data.remaining())));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::StreamBody;
    use proptest::prelude::*;
    use std::convert::Infallible;

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

    proptest! {
        #[test]
        fn chunks_are_of_one_size_however_the_frames_fall(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20),
            size in 1..50_usize,
            lie in -1..=1_i64,
        ) {
            let whole = frames.concat();
            let Some(length) = (whole.len() as u64).checked_add_signed(lie) else { return Ok(()) };
            let mut gather = Gather { body: Box::pin(body(frames)), rest: None, left: length };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let result: Result<Vec<Vec<u8>>, BoxError> = runtime.block_on(async {
                let mut chunks = Vec::new();
                while gather.left > 0 {
                    chunks.push(gather.next(size).await?);
                }
                gather.end().await?;
                Ok(chunks)
            });
            prop_assert_eq!(result.is_ok(), lie == 0);
            if let Ok(chunks) = result {
                prop_assert!(chunks.iter().rev().skip(1).all(|chunk| chunk.len() == size));
                prop_assert_eq!(chunks.concat(), whole);
            }
        }
    }
}

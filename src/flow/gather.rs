//! A body's frames, however they fall, as chunks of one size; or as records where it is to be sealed.

use std::pin::Pin;

use bytes::{Buf, Bytes};
use http_body::Body;
use http_body_util::BodyExt;

use super::BoxError;
use super::feed::to_bytes;
use crate::seal::{RECORD, Sealer, TAG};

/// Cuts a body into chunks of one size, however its frames fall.
pub(super) struct Gather<B> {
    body: Pin<Box<B>>,
    rest: Option<Bytes>,
}

impl<B> Gather<B> {
    pub(super) fn new(body: B) -> Self {
        Self { body: Box::pin(body), rest: None }
    }

    /// The body, and what was read of it and not taken.
    pub(super) fn into_parts(self) -> (Pin<Box<B>>, Option<Bytes>) {
        (self.body, self.rest)
    }
}

impl<B> Gather<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    /// The next `size` bytes of the `left` that are to come.
    pub(super) async fn next(&mut self, size: usize, left: u64) -> Result<Vec<u8>, BoxError> {
        let mut chunk = Vec::new();
        if let Some(data) = self.data().await? {
            if data.len() == size {
                // The very buffer, where nobody else holds it.
                return Ok(Vec::from(data));
            }
            self.rest = Some(data);
        }
        chunk.reserve_exact(size);
        self.fill(&mut chunk, size, left).await?;
        Ok(chunk)
    }

    /// Appends the next `size` bytes of the `left` that are to come.
    async fn fill(&mut self, chunk: &mut Vec<u8>, size: usize, left: u64) -> Result<(), BoxError> {
        let mut missing = size;
        while missing > 0 {
            let mut data = match self.data().await? {
                Some(data) => data,
                None => return Err(format!("it ended {} bytes early", left - (size - missing) as u64).into()),
            };
            let taken = data.len().min(missing);
            chunk.extend_from_slice(&data[..taken]);
            data.advance(taken);
            missing -= taken;
            if !data.is_empty() {
                self.rest = Some(data);
            }
        }
        Ok(())
    }

    /// Makes sure that nothing follows.
    pub(super) async fn end(&mut self) -> Result<(), BoxError> {
        match self.data().await? {
            Some(_) => Err("it is longer than its length says".into()),
            None => Ok(()),
        }
    }

    /// The next bytes, at least one. Trailers have no place in a body of known length and are dropped.
    async fn data(&mut self) -> Result<Option<Bytes>, BoxError> {
        if let Some(rest) = self.rest.take() {
            return Ok(Some(rest));
        }
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(Into::into)?;
            if let Ok(data) = frame.into_data()
                && data.has_remaining()
            {
                return Ok(Some(to_bytes(data)));
            }
        }
        Ok(None)
    }
}

/// Seals a body's bytes in the very buffer that they are gathered in.
pub(super) struct Sealing<B> {
    pub(super) gather: Gather<B>,
    pub(super) sealer: Sealer,
}

impl<B> Sealing<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    /// As many whole records as `size` bytes are, but one at least, and no more than there are.
    pub(super) async fn next(&mut self, size: usize) -> Result<Vec<u8>, BoxError> {
        let most = (size / (RECORD + TAG)).max(1);
        let mut chunk = Vec::new();
        for _ in 0..most {
            let due = self.sealer.due();
            if due == 0 {
                break;
            }
            if chunk.is_empty() {
                let left = usize::try_from(self.sealer.left()).unwrap_or(usize::MAX);
                chunk.reserve_exact(most.min(left.div_ceil(RECORD)) * (RECORD + TAG));
            }
            let start = chunk.len();
            self.gather.fill(&mut chunk, due, self.sealer.left()).await?;
            self.sealer.seal(&mut chunk, start);
        }
        Ok(chunk)
    }
}

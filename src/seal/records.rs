//! The owner's side: a body becomes records.

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;

use super::{Keys, RECORD, TAG, place};
use crate::fabric::BoxFuture;
use crate::flow::{BoxError, Feed, Unfold};
use crate::memory::Load;

/// Records that are sealed at once.
const AT_ONCE: usize = 16;

/// `body`, which has `length` bytes, as records. It breaks off where the body does, or has another length.
pub fn sealed<B>(body: B, length: u64, keys: Keys) -> UnsyncBoxBody<Bytes, BoxError>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let state = Box::new(Sealing { feed: Feed::body(body, length), keys, length, record: 0 });
    let step = |state: Box<Sealing<B>>| Box::pin(state.next()) as BoxFuture<'static, _>;
    Unfold::new(state, super::sealed_length(length), step).boxed_unsync()
}

struct Sealing<B> {
    feed: Feed<B>,
    keys: Keys,
    length: u64,
    /// The next one's number.
    record: u64,
}

impl<B> Sealing<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    async fn next(mut self: Box<Self>) -> Result<Option<(Box<Self>, Bytes)>, BoxError> {
        if self.record * RECORD as u64 >= self.length {
            self.feed.end().await?;
            return Ok(None);
        }
        let Load::Bytes(plain) = self.feed.next(AT_ONCE * RECORD).await? else {
            return Err("a file's part cannot be sealed without being read".into());
        };
        let sealed = self.seal(&plain)?;
        Ok(Some((self, sealed)))
    }

    fn seal(&mut self, plain: &[u8]) -> Result<Bytes, BoxError> {
        let mut sealed = Vec::with_capacity(plain.len() + plain.len().div_ceil(RECORD) * TAG);
        for record in plain.chunks(RECORD) {
            let (nonce, place) = (self.keys.nonce(self.record), place(self.record, self.length));
            let start = sealed.len();
            sealed.extend_from_slice(record);
            let tag = self.keys.key.seal_in_place_separate_tag(nonce, place, &mut sealed[start..]);
            sealed.extend_from_slice(tag.map_err(|_| "a record is too long to be sealed")?.as_ref());
            self.record += 1;
        }
        Ok(sealed.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Opener, Secret, sealed_length};
    use super::*;
    use crate::header::{Mode, TransferId};
    use http_body_util::Full;
    use proptest::prelude::*;

    fn keys() -> Keys {
        Secret::new(&[1; 32]).transfer(Mode::ServerWrites, TransferId([2; 16]), 3)
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_however_it_is_cut(
            body in prop::collection::vec(any::<u8>(), 0..3 * RECORD),
            cuts in prop::collection::vec(1..2 * RECORD, 1..9),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let whole = Full::new(Bytes::from(body.clone()));
            let sealing = sealed(whole, body.len() as u64, keys()).collect();
            let mut sealed = runtime.block_on(sealing).unwrap().to_bytes();
            prop_assert_eq!(Some(sealed.len() as u64), sealed_length(body.len() as u64));
            let mut opener = Opener::new(keys(), sealed.len() as u64).unwrap();
            let mut opened = Vec::new();
            for cut in cuts.iter().cycle() {
                if sealed.is_empty() {
                    break;
                }
                opened.extend_from_slice(&opener.push(sealed.split_to(sealed.len().min(*cut))).unwrap());
            }
            prop_assert_eq!(opener.end(), Ok(()));
            prop_assert_eq!(opened, body);
        }
    }

    #[tokio::test]
    async fn a_body_of_another_length_breaks_off() {
        for length in [2, 4] {
            let body = Full::new(Bytes::from_static(b"abc"));
            assert!(sealed(body, length, keys()).collect().await.is_err(), "{length}");
        }
    }
}

//! The body of a GET's response on its way by RDMA.

use std::fmt::Display;
use std::sync::Arc;

use http_body::Body;
use http_body_util::BodyExt;
use tokio::sync::OwnedMutexGuard;
use tracing::{Instrument, Span, field};

use super::body::{BoxError, ResponseBody};
use super::connection::{Kept, Slot};
use super::layer::Shared;
use super::metrics::broken;
use crate::events::Event;
use crate::flow::{Feed, FlowError, Target, Unfold, Unread, expose, write};
use crate::header::{Advert, Mode, Offer, TransferId};
use crate::memory::Share;
use crate::seal::Keys;

/// A body of a known length, and where it is to go.
pub(super) struct Download<B> {
    shared: Arc<Shared>,
    offer: Offer,
    feed: Feed<B>,
    // What it takes of the budget, as long as it lasts.
    _share: Option<Share>,
}

impl<B> Download<B>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    pub(super) fn new(shared: Arc<Shared>, offer: Offer, feed: Feed<B>, share: Option<Share>) -> Self {
        Self { shared, offer, feed, _share: share }
    }

    /// Reads the first chunk.
    pub(super) async fn begin(&mut self) -> Result<(), FlowError> {
        let begun = self.feed.begin(self.shared.config.chunk).await.map_err(FlowError::Body);
        if let Err(error) = &begun {
            Progress::new(&self.shared, "the client", self.feed.length(), &self.offer).end(Some(error));
        }
        begun
    }

    /// The body as it was, for whoever sends it another way.
    pub(super) fn into_body(self) -> Option<Unread<B>> {
        self.feed.into_body()
    }

    /// Bytes that go by RDMA.
    pub(super) fn length(&self) -> u64 {
        self.feed.length()
    }

    /// The same download of what the body is when it is sealed.
    pub(super) fn sealed(self, keys: Keys) -> Result<Download<Unread<B>>, FlowError> {
        let Self { shared, offer, feed, _share } = self;
        let length = feed.length();
        // Nobody makes a file's part of a body that is to be sealed.
        let whole =
            feed.into_body().ok_or_else(|| FlowError::Body("it is not read, and so not sealed".into()))?;
        let feed = Feed::sealed(whole, length, keys);
        let feed = feed.ok_or_else(|| FlowError::Body("it is too long to be sealed".into()))?;
        Ok(Download { shared, offer, feed, _share })
    }

    /// The client's region, if the body fits into it: then it is written before the head is sent.
    pub(super) fn fits(&self) -> Option<Target> {
        let Advert { at, maxlen } = self.offer.region.filter(|_| self.offer.mode == Mode::ServerWrites)?;
        let id = self.offer.id.unwrap_or(TransferId::NONE);
        (self.feed.length() <= maxlen).then_some(Target { id, at, room: maxlen })
    }

    /// Writes the whole body.
    pub(super) async fn run(
        mut self,
        target: Target,
        kept: Kept,
        mut slot: OwnedMutexGuard<Slot>,
    ) -> Result<(), FlowError> {
        let peer = kept.link.channel.peer_addr().to_string();
        let mut progress = Progress::new(&self.shared, &peer, self.feed.length(), &self.offer);
        let limits = self.shared.config.limits();
        let span = progress.span();
        let written = write(&kept.link, limits, target, &mut self.feed, &mut progress.moved);
        let result = written.instrument(span).await;
        progress.end(result.as_ref().err());
        match result {
            Ok(()) => slot.keep(kept),
            Err(_) => slot.give_up(kept, ()),
        }
        result
    }

    /// An empty body that ends when the transfer has.
    pub(super) fn into_stream(self, id: TransferId, kept: Kept, slot: OwnedMutexGuard<Slot>) -> ResponseBody {
        let state = Box::new((self, kept, slot));
        let step = move |state: Box<(Self, Kept, OwnedMutexGuard<Slot>)>| {
            let (download, kept, slot) = *state;
            let stepped = async move {
                download.stream(id, kept, slot).await?;
                Ok(None)
            };
            Box::pin(stepped) as crate::fabric::BoxFuture<'static, _>
        };
        Unfold::new(state, None, step).boxed_unsync()
    }

    async fn stream(
        mut self,
        id: TransferId,
        kept: Kept,
        mut slot: OwnedMutexGuard<Slot>,
    ) -> Result<(), FlowError> {
        let peer = kept.link.channel.peer_addr().to_string();
        let mut progress = Progress::new(&self.shared, &peer, self.feed.length(), &self.offer);
        let span = progress.span();
        let (limits, moved) = (self.shared.config.limits(), &mut progress.moved);
        let result = match self.offer.region {
            Some(Advert { at, maxlen }) => {
                let target = Target { id, at, room: maxlen };
                write(&kept.link, limits, target, &mut self.feed, moved).instrument(span).await
            }
            None => expose(&kept.link, limits, id, None, &mut self.feed, moved).instrument(span).await,
        };
        progress.end(result.as_ref().err());
        if result.is_ok() {
            slot.keep(kept);
        }
        result
    }
}

/// A transfer from its beginning to its end: a span in the log, a figure, and an event where it did not end well; also when it
/// is dropped because the HTTP connection is gone.
pub(super) struct Progress {
    shared: Arc<Shared>,
    peer: String,
    length: u64,
    mode: Mode,
    span: Span,
    pub(super) moved: u64,
    /// What it means if nobody asks for the rest.
    pub(super) given_up: &'static str,
    over: bool,
}

impl Progress {
    pub(super) fn new(shared: &Arc<Shared>, peer: &str, length: u64, offer: &Offer) -> Self {
        let mode = offer.mode;
        let span = tracing::info_span!(
            "transfer",
            id = offer.id.map(field::display),
            %mode,
            bytes = length,
            peer,
            connect = offer.route.token(),
            moved = field::Empty,
            result = field::Empty
        );
        shared.metrics.begun();
        let given_up = "the HTTP connection ended";
        Self {
            shared: shared.clone(),
            peer: peer.to_owned(),
            length,
            mode,
            span,
            moved: 0,
            given_up,
            over: false,
        }
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// What it is done in.
    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    pub(super) fn end(&mut self, error: Option<&FlowError>) {
        self.over = true;
        match error {
            None => {
                self.account("done");
                tracing::info!(parent: &self.span, "transfer ended");
            }
            Some(error) => {
                self.account(&broken(error.reason()));
                self.report(error);
            }
        }
    }

    fn account(&self, result: &str) {
        self.span.record("moved", self.moved).record("result", result);
        self.shared.metrics.ended(self.mode, result, self.moved);
    }

    fn report(&self, why: &dyn Display) {
        let Self { peer, length, moved, .. } = self;
        let error = format!("transfer to {peer} ended after {moved} of {length} bytes: {why}");
        tracing::warn!(parent: &self.span, "{error}");
        self.shared.recorder.record(Event::Failed { error });
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if !self.over {
            self.account("abandoned");
            self.report(&self.given_up);
        }
    }
}

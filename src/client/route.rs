//! What a request offers: a region or none, over an RDMA connection that the server makes or that we make first.

use std::net::SocketAddr;

use http::{HeaderMap, Method};
use tokio::sync::OwnedMutexGuard;

use super::connection::{HttpConnection, empty};
use super::endpoint::{Endpoint, connect_options, new_id, sink};
use super::{ClientError, Connect};
use crate::channel::Channel;
use crate::fabric::{Fabric, FabricError};
use crate::header::{Asked, Mode, Offer, Outcome, RDMA, Reason, Route, TransferId};
use crate::memory::Sink;
use crate::message::Message;
use crate::seal::{Keys, Secret};

/// What a GET offers, and what it takes to keep the word.
pub(super) struct Offered {
    pub(super) offer: Offer,
    pub(super) id: TransferId,
    pub(super) sink: Option<Sink>,
    /// What opens the body, if it is to be sealed.
    pub(super) keys: Option<Keys>,
    pub(super) endpoint: OwnedMutexGuard<Endpoint>,
}

/// What seals the bodies of a connection with TLS.
pub(super) struct Sealing {
    /// TLS before 1.3 has none.
    secret: Option<Secret>,
    /// Offers that were made.
    offers: u64,
}

impl Sealing {
    pub(super) fn new(secret: Option<Secret>) -> Self {
        Self { secret, offers: 0 }
    }

    /// The next offer's number and keys; `None` if there can be no offer.
    pub(super) fn next(&mut self, mode: Mode, id: TransferId) -> Option<(u64, Keys)> {
        let number = self.offers;
        let keys = self.secret.as_ref()?.transfer(mode, id, number);
        self.offers += 1;
        Some((number, keys))
    }

    pub(super) fn can_seal(&self) -> bool {
        self.secret.is_some()
    }
}

/// Why nothing is offered.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoOffer {
    #[error(transparent)]
    Fabric(#[from] FabricError),
    #[error(transparent)]
    Http(#[from] ClientError),
    #[error("the server takes no RDMA connections ({0})")]
    NotLetIn(Reason),
    #[error(
        "the server tells us to connect to {0}, which is neither its own address nor allowed (--allow-rdma-to), \
         or a port below 1024"
    )]
    NotAllowed(SocketAddr),
}

impl HttpConnection {
    /// An offer for a response's body, or `None` if that is not wanted or not possible; then the exchange is plain.
    pub(super) async fn offer_sink(&mut self) -> Option<Offered> {
        let mode = match self.client.options.mode {
            None => Mode::ServerWrites,
            Some(mode @ (Mode::ServerWrites | Mode::ClientReads)) => mode,
            Some(_) => return None,
        };
        let (mut endpoint, route) = self.routed(false).await?;
        let made = || {
            let Some(fabric) = self.client.fabric.as_deref() else { return Ok(None) };
            let memory = endpoint.memory(fabric, &self.client.options, &self.client.recorder)?;
            let id = new_id()?;
            let (sink, region) = match mode {
                Mode::ServerWrites => {
                    let (sink, region) = sink(&memory, self.client.options.maxlen)?;
                    (Some(sink), Some(region))
                }
                _ => (None, None),
            };
            Ok::<_, FabricError>(Some((
                id,
                sink,
                Offer { mode, route, region, bytes: None, id: Some(id), seal: None },
            )))
        };
        match { made }() {
            Ok(made) => made.map(|(id, sink, mut offer)| {
                let keys = self.seal(&mut offer);
                Offered { offer, id, sink, keys, endpoint }
            }),
            Err(error) => {
                self.give_up(&error);
                None
            }
        }
    }

    /// Our end of RDMA, and the way by which its connection comes or came about. `sends`: the request has a body.
    pub(super) async fn routed(&mut self, sends: bool) -> Option<(OwnedMutexGuard<Endpoint>, Route)> {
        let fabric = self.client.fabric.clone()?;
        if self.sealing.as_ref().is_some_and(|sealing| !sealing.can_seal()) {
            self.client.observer.note("No RDMA beside TLS before 1.3, which gives no keys to seal with");
            return None;
        }
        // One in place that was lost was HTTP's too.
        self.endpoint.lock().await.discard_closed().await;
        if let Err(error) = self.renew().await {
            self.give_up(&error);
            return None;
        }
        if self.client.options.connect == Connect::InPlace {
            let mut endpoint = self.endpoint.clone().lock_owned().await;
            return match self.in_place_route(&*fabric, &mut endpoint, sends).await {
                Ok(route) => Some((endpoint, route?)),
                Err(error) => {
                    self.give_up(&error);
                    None
                }
            };
        }
        let mut endpoint = self.endpoint.clone().lock_owned().await;
        let by_client = match self.client.options.connect {
            Connect::Client => true,
            Connect::Server | Connect::InPlace => false,
            Connect::Auto => self.out_of_reach,
        };
        let route = if by_client {
            self.connected(&*fabric, &mut endpoint).await
        } else {
            let address = endpoint.listen(&*fabric, self.local, &self.client.options).await;
            address.map(Route::Server).map_err(NoOffer::from)
        };
        match route {
            Ok(route) => Some((endpoint, route)),
            Err(error) => {
                self.give_up(&error);
                None
            }
        }
    }

    /// Numbers an offer that is to be sealed; gives the keys.
    pub(super) fn seal(&mut self, offer: &mut Offer) -> Option<Keys> {
        let (number, keys) = self.sealing.as_mut()?.next(offer.mode, offer.id?)?;
        offer.seal = Some(number);
        Some(keys)
    }

    fn give_up(&self, error: &dyn std::error::Error) {
        tracing::warn!(%error, "no RDMA on our side; going by TCP");
        self.fall_back(&Reason::FABRIC);
    }

    /// Makes the connection of this HTTP connection, if it is not there.
    async fn connected(&mut self, fabric: &dyn Fabric, endpoint: &mut Endpoint) -> Result<Route, NoOffer> {
        if endpoint.is_connected(Route::Client) {
            return Ok(Route::Client);
        }
        let id = new_id()?;
        let to = self.introduced(id).await?;
        let options = &self.client.options;
        let memory = endpoint.memory(fabric, options, &self.client.recorder)?;
        let connection = fabric.connect(memory.pd(), to, connect_options(options, Some(id))).await?;
        endpoint.keep(Route::Client, Channel::established(connection, true, &self.client.recorder));
        // iWARP makes the connecting side speak first.
        if let Some(link) = endpoint.link() {
            link.channel.send(Message::Hello { id }).await?;
        }
        Ok(Route::Client)
    }

    /// Asks where to connect to.
    async fn introduced(&mut self, id: TransferId) -> Result<SocketAddr, NoOffer> {
        self.ready().await?;
        let mut request = self.head(Method::OPTIONS, "*", HeaderMap::new())?;
        request.headers_mut().insert(RDMA, Asked::introduction(id));
        let exchange = self.tell_request(&request);
        let limit = self.client.options.timeout;
        let (head, incoming) = self.send(request.map(|()| empty()), limit).await?;
        self.tell_response(exchange, &head);
        let outcome = Outcome::of(&head.headers).map_err(ClientError::from)?;
        self.by_tcp(head, incoming, None).body.skip(64 << 10).await?;
        match outcome {
            Some(Outcome::Accept { port, ip, id: theirs }) if theirs == id => {
                let to = SocketAddr::new(ip.unwrap_or(self.peer.ip()), port);
                match crate::reach::allowed(self.peer.ip(), to, &self.client.options.allow) {
                    true => Ok(to),
                    false => Err(NoOffer::NotAllowed(to)),
                }
            }
            Some(Outcome::Fallback { reason }) => Err(NoOffer::NotLetIn(reason)),
            _ => Err(NoOffer::NotLetIn(Reason::NOT_ANSWERED)),
        }
    }

    /// A server that cannot reach us is left to be reached by us, where the way is ours to choose.
    pub(super) fn learn(&mut self, offer: &Offer, reason: &Reason) {
        let cannot = [Reason::UNREACHABLE, Reason::TIMED_OUT, Reason::ADDRESS_NOT_ALLOWED];
        if matches!(offer.route, Route::Server(_)) && cannot.contains(reason) {
            self.out_of_reach = true;
        }
        self.fall_back(reason);
    }
}

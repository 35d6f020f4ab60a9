//! The HTTP connection as the RDMA connection: asking for it with a request, and going on upon it.

use http::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::connection::{Answer, HttpConnection, empty};
use super::endpoint::{Endpoint, connect_options, new_id};
use super::route::NoOffer;
use super::{Client, ClientError};
use crate::channel::Channel;
use crate::fabric::{Fabric, FabricError};
use crate::header::{Asked, Outcome, RDMA, Reason, Route, TransferId};
use crate::in_place::{self, Stream, first};
use crate::message::Message;

/// What became of the HTTP connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum InPlace {
    /// Nobody has asked.
    #[default]
    Unasked,
    /// It is the RDMA connection.
    Made,
    /// The server would not, or cannot.
    Refused,
}

impl HttpConnection {
    /// The way by which transfers go in place. Where something is to be sent first, it is made now; what a GET asks for can
    /// ask for the connection too. `None` where the server has refused.
    pub(super) async fn in_place_route(
        &mut self,
        fabric: &dyn Fabric,
        endpoint: &mut Endpoint,
        sends: bool,
    ) -> Result<Option<Route>, NoOffer> {
        if fabric.over_tcp().is_none() {
            let why = "this fabric makes its connections by itself, so none can be made in place";
            return Err(FabricError::Unsupported(why).into());
        }
        if self.sealing.is_some() {
            return Err(FabricError::Unsupported("no connection with TLS can become one for RDMA").into());
        }
        match self.in_place {
            InPlace::Refused => return Ok(None),
            InPlace::Unasked if sends => self.ask_in_place(endpoint).await?,
            InPlace::Unasked | InPlace::Made => {}
        }
        Ok(Some(Route::InPlace))
    }

    /// Asks for the connection and for nothing else.
    async fn ask_in_place(&mut self, endpoint: &mut Endpoint) -> Result<(), NoOffer> {
        self.ready().await?;
        let id = new_id()?;
        let mut request = self.head(Method::OPTIONS, "*", http::HeaderMap::new())?;
        request.headers_mut().insert(RDMA, Asked::in_place(id));
        first::ask(request.headers_mut());
        let exchange = self.tell_request(&request);
        let (head, incoming) = self.send_asking(request, id, endpoint, exchange).await?;
        self.tell_response(exchange, &head);
        let outcome = Outcome::of(&head.headers).map_err(ClientError::from)?;
        self.by_tcp(head, incoming, None).body.skip(64 << 10).await?;
        match (self.in_place, outcome) {
            (InPlace::Made, Some(Outcome::InPlace { id: theirs })) if theirs == id => Ok(()),
            (_, Some(Outcome::Fallback { reason })) => Err(NoOffer::NotLetIn(reason)),
            _ => Err(NoOffer::NotLetIn(Reason::NOT_ANSWERED)),
        }
    }

    /// Sends a request that asks for the connection in place, on behalf of `id`; resolves with the head of its response, on
    /// whichever protocol that comes.
    pub(super) async fn send_asking(
        &mut self,
        request: Request<()>,
        id: TransferId,
        endpoint: &mut Endpoint,
        exchange: u64,
    ) -> Result<Answer, ClientError> {
        let limit = self.client.options.timeout;
        let (head, incoming) = self.send(request.clone().map(|()| empty()), limit).await?;
        if head.status != StatusCode::SWITCHING_PROTOCOLS {
            self.in_place = InPlace::Refused;
            return Ok((head, incoming));
        }
        self.tell_response(exchange, &head);
        if !first::lists(&head.headers, &http::header::UPGRADE, in_place::UPGRADE) {
            return Err(ClientError::Protocol("it switches to a protocol that nobody asked for".into()));
        }
        let stream = self.turn(Response::from_parts(head, ()), id, endpoint).await?;
        let (sender, driver) = super::connection::handshake(stream.without_first_head(), self.peer).await?;
        (self.sender, self.driver, self.in_place) = (sender, driver, InPlace::Made);
        self.ready().await?;
        // This one is not sent: it is what was.
        self.send(request.map(|()| empty()), limit).await
    }

    /// Makes the RDMA connection of the HTTP connection, which HTTP has let go of with this response.
    async fn turn(
        &self,
        response: Response<()>,
        id: TransferId,
        endpoint: &mut Endpoint,
    ) -> Result<Stream, ClientError> {
        let Client { fabric, options, recorder, .. } = &self.client;
        let (peer, limit) = (self.peer, options.connect_timeout);
        let upgraded = match timeout(limit, hyper::upgrade::on(response)).await {
            Err(_) => return Err(ClientError::TimedOut { peer, what: "change of protocol", limit }),
            Ok(Err(source)) => {
                return Err(ClientError::Broken { peer, during: "at the change of protocol", source });
            }
            Ok(Ok(upgraded)) => upgraded,
        };
        let lost = || ClientError::Protocol("it switches to a protocol that nobody asked for".into());
        let parts = upgraded.downcast::<TokioIo<TcpStream>>().map_err(|_| lost())?;
        let fabric = fabric.as_deref().ok_or_else(lost)?;
        let over_tcp = fabric.over_tcp().ok_or_else(lost)?;
        let memory = endpoint.memory(fabric, options, recorder)?;
        let accept = in_place::receives(connect_options(options, None));
        let stream = parts.io.into_inner();
        let connection = over_tcp.accept_over(stream, parts.read_buf, memory.pd(), accept).await;
        let connection = connection.map_err(|error| match error {
            FabricError::Closed | FabricError::TimedOut { .. } | FabricError::Io { .. } => {
                ClientError::NotInPlace(error)
            }
            error => error.into(),
        })?;
        // Nobody else can have made it; but who asked for one thing and got another should know.
        if !matches!(Message::decode(connection.private_data()), Ok(Message::Hello { id: theirs }) if theirs == id)
        {
            return Err(ClientError::Protocol("its connection in place is for another request".into()));
        }
        let (messages, stream) = in_place::split(connection);
        endpoint.keep(Route::InPlace, Channel::established(messages, false, recorder));
        Ok(stream)
    }
}

//! A response in the types that the rest of the ecosystem speaks: `http::Response` with an `http_body` body.

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;

use super::{Body, Response, Via};
use crate::fabric::BoxFuture;
use crate::flow::{BoxError, Unfold};

/// The body of a response as a stream of its pieces. They are fetched as they are asked for, whether they come by RDMA or
/// not, and an error of it is a [`ClientError`](super::ClientError).
pub type BodyStream = UnsyncBoxBody<Bytes, BoxError>;

impl Response {
    /// The response with its body as a stream. How it comes ([`Via`]) is among the extensions. An HTTP connection that is no
    /// pool's must be kept until the body has ended.
    ///
    /// ```no_run
    /// # use rdma_http::client::{Client, Via};
    /// # async fn run(client: Client) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    /// use http_body_util::BodyExt;
    ///
    /// let mut connection = client.connect("10.0.0.1", 8080).await?;
    /// let mut response = connection.get("/film.mkv", http::HeaderMap::new()).await?.into_http();
    /// println!("{} {:?}", response.status(), response.extensions().get::<Via>());
    /// while let Some(frame) = response.body_mut().frame().await {
    ///     if let Ok(piece) = frame?.into_data() {
    ///         println!("{} bytes", piece.len());
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_http(self) -> http::Response<BodyStream> {
        let Self { mut head, via, body } = self;
        head.extensions.insert::<Via>(via);
        http::Response::from_parts(head, body.into_stream())
    }
}

impl Body {
    /// The body as a stream; `http_body_util::BodyDataStream` makes a `futures` stream of it.
    pub fn into_stream(self) -> BodyStream {
        let length = self.length();
        let step = |mut body: Box<Self>| {
            let next = async move { Ok(body.next().await?.map(|piece| (body, piece))) };
            Box::pin(next) as BoxFuture<'static, Result<_, BoxError>>
        };
        Unfold::new(Box::new(self), length, step).boxed_unsync()
    }
}

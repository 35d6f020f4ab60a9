//! Connections made of TCP streams that are there already.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{SoftFabric, establish, listener};
use crate::fabric::{BoxFuture, ConnectOptions, ConnectRequest, Connection, FabricError, OverTcp, Pd};

impl OverTcp for SoftFabric {
    fn connect_over(
        &self,
        stream: TcpStream,
        first: Bytes,
        pd: &Pd,
        options: ConnectOptions,
    ) -> BoxFuture<'_, Result<Arc<dyn Connection>, FabricError>> {
        let domain = self.domain(pd);
        Box::pin(
            async move { establish::connect_over(&self.0.options, domain?, stream, &first, options).await },
        )
    }

    fn accept_over(
        &self,
        stream: TcpStream,
        first: Bytes,
        pd: &Pd,
        options: ConnectOptions,
    ) -> BoxFuture<'_, Result<Arc<dyn Connection>, FabricError>> {
        let pd = pd.clone();
        Box::pin(async move {
            let peer = stream.peer_addr().map_err(|error| FabricError::io("getpeername", error))?;
            let limit = options.timeout;
            let request = timeout(limit, listener::read_request(self.clone(), stream, peer, &first));
            match request.await {
                Ok(Ok(Some(request))) => Box::new(request).accept(&pd, options).await,
                Ok(Ok(None)) => Err(FabricError::Protocol("it asks for MPA markers".into())),
                Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                    Err(FabricError::Protocol(error.to_string()))
                }
                Ok(Err(error)) => Err(FabricError::io("accept", error)),
                Err(_) => Err(FabricError::TimedOut { verb: "accept", limit }),
            }
        })
    }
}

//! Exchanges that a server misses: it may end a connection at any time between two, also at the very moment that the next
//! request goes out (RFC 9112, section 9.5). What is safe to repeat is asked for once more, on a new connection.

use http::Method;

use super::ClientError;
use super::connection::HttpConnection;
use super::in_place::InPlace;
use crate::header::Reason;

/// What a connection is like when a request goes out on it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Before {
    /// The server has answered on it.
    pub(super) used: bool,
    /// The request asks that it become the RDMA connection.
    pub(super) asks: bool,
}

impl Before {
    /// Whether the exchange may have failed because the server had ended the connection, or made none in place; and may be
    /// repeated (RFC 9110, section 9.2.2).
    pub(super) fn is_missed(self, method: &Method, error: &ClientError) -> bool {
        let missed = match error {
            ClientError::Broken { source, .. } => (self.used || self.asks) && !source.is_parse(),
            ClientError::NotInPlace(_) => self.asks,
            _ => false,
        };
        missed && method.is_idempotent()
    }
}

impl HttpConnection {
    /// Connects anew after an exchange that was missed.
    pub(super) async fn again(&mut self, error: &ClientError) -> Result<(), ClientError> {
        let before = self.before;
        self.client.observer.note(&format!("Asking again on a new connection: {error}"));
        self.reopen().await?;
        // A kept one may just have been closed; else what was asked for in vain is not asked for again.
        if matches!(error, ClientError::NotInPlace(_)) || before.asks && !before.used {
            self.in_place = InPlace::Refused;
            self.fall_back(&Reason::NOT_CONNECTED);
        }
        Ok(())
    }
}

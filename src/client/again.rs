//! Exchanges that a server misses: it may end a connection at any time between two, also at the very moment that the next
//! request goes out (RFC 9112, section 9.5). What is safe to repeat is asked for once more, on a new connection.

use http::Method;

use super::connection::HttpConnection;
use super::in_place::InPlace;
use super::{ClientError, Connect};
use crate::header::Reason;

/// What a connection is like before an exchange.
#[derive(Clone, Copy)]
pub(super) struct Before {
    /// The server has answered on it.
    used: bool,
    /// The exchange asks that it become the RDMA connection.
    asks: bool,
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
    /// What it is like now.
    pub(super) fn before(&self) -> Before {
        let in_place = self.client.options.connect == Connect::InPlace;
        Before { used: self.used, asks: in_place && self.in_place == InPlace::Unasked }
    }

    /// Connects anew after an exchange that was missed.
    pub(super) async fn again(&mut self, before: Before, error: &ClientError) -> Result<(), ClientError> {
        self.client.observer.note(&format!("Asking again on a new connection: {error}"));
        self.reopen().await?;
        if before.asks {
            // What was asked for in vain is not asked for again.
            self.in_place = InPlace::Refused;
            self.fall_back(&Reason::NOT_CONNECTED);
        }
        Ok(())
    }
}

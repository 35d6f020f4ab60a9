//! The signals that end a run in good order.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::{Code, Failure};

/// The signals that end a run in good order.
pub(super) struct Interrupts([(u8, Signal); 3]);

impl Interrupts {
    pub(super) fn new() -> Result<Self, Failure> {
        let listen = |kind: SignalKind| {
            let number = u8::try_from(kind.as_raw_value()).unwrap_or(0);
            signal(kind)
                .map(|signal| (number, signal))
                .map_err(|error| Failure::new(Code::Machine, format!("cannot listen for signals: {error}")))
        };
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    /// The next one's number.
    pub(super) async fn next(&mut self) -> u8 {
        let Self([(a, interrupt), (b, terminate), (c, hangup)]) = self;
        tokio::select! {
            _ = interrupt.recv() => *a,
            _ = terminate.recv() => *b,
            _ = hangup.recv() => *c,
        }
    }
}

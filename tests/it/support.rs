//! What the areas share.

use std::io::{self, Write};
use std::sync::Arc;

use rdma_http::events::Recorder;
use tokio::sync::Notify;

/// Is told of each event, after it was counted: for who waits for what it changes.
pub(crate) struct Told(Arc<Notify>);

impl Told {
    pub(crate) fn of(told: &Arc<Notify>) -> Recorder {
        Recorder::to_writer(Self(told.clone()))
    }
}

impl Write for Told {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.notify_one();
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Says that a test cannot run here, and why; where everything is required to run that is a failure.
pub(crate) fn skip(name: &str, reason: &str) {
    assert!(std::env::var_os("TESTBED_REQUIRE_ALL").is_none(), "{name} cannot run here: {reason}");
    println!("SKIP {name}: {reason}");
}

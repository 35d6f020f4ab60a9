//! A lab is one run's at a time: two would capture the same link and see each other's frames.
//!
//! The claim is a lock on `run.lock` in the lab's directory. The file holds the link that the run captures, so that whoever
//! claims the lab after a run that was killed can end the capture that it left.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Mutex;
use std::time::Duration;

use crate::agent::client::Client;

/// Between two attempts to claim a lab that another run has.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest name of a link that is read.
const MAX_LINK: u64 = 4096;

/// The right to run scenarios in a lab. It ends when it is dropped.
#[derive(Debug)]
pub struct Claim(Mutex<File>);

impl Claim {
    /// Waits until no other run has the lab; `waiting` is called once if one has. Ends the capture of a run that was killed.
    pub async fn take(client: &Client, waiting: impl FnOnce()) -> io::Result<Self> {
        let path = client.lab().path().join("run.lock");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let mut waiting = Some(waiting);
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    if let Some(waiting) = waiting.take() {
                        waiting();
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        let mut left = String::new();
        (&file).take(MAX_LINK).read_to_string(&mut left)?;
        let claim = Self(Mutex::new(file));
        if !left.is_empty() {
            // It may have been killed before the capture began.
            if let Err(error) = client.capture_stop(&left).await {
                tracing::debug!(%error, "no capture was left");
            }
            claim.captures("")?;
        }
        Ok(claim)
    }

    /// Notes the link that is about to be captured; none by an empty name.
    pub(super) fn captures(&self, link: &str) -> io::Result<()> {
        let mut file = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(link.as_bytes())
    }
}

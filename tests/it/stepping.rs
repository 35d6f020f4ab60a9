//! A program that stands still at each event that it tells, until it is let go on.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};
use rdma_http::events::{Event, Record};

/// Only a test that fails waits for so long, in milliseconds.
const LIMIT: u16 = 60_000;

/// A program whose events go through a pipe with room for one. The next one is told only when that has been taken, so the
/// program is between the event that lies in the pipe and the one after.
pub(crate) struct Stepping {
    child: Child,
    told: File,
    seen: Vec<Event>,
}

impl Stepping {
    pub(crate) fn start(mut command: Command) -> Self {
        // Each write is a packet (pipe(2), O_DIRECT), each packet takes a page, and there is one.
        let (told, telling) = pipe2(OFlag::O_DIRECT | OFlag::O_CLOEXEC).unwrap();
        fcntl(&telling, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        let child = command.stdout(telling).spawn().unwrap();
        Self { child, told: told.into(), seen: Vec::new() }
    }

    pub(crate) fn id(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Takes the next event; `None` if it has ended.
    pub(crate) fn go_on(&mut self) -> Option<Event> {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            let mut packet = [0; 4096];
            if !self.stands() {
                assert!(line.is_empty(), "half an event");
                return None;
            }
            match self.told.read(&mut packet).unwrap() {
                0 => return None,
                length => line.extend_from_slice(&packet[..length]),
            }
        }
        let Record { event, .. } = serde_json::from_slice(&line).unwrap();
        self.seen.push(event.clone());
        Some(event)
    }

    /// Waits until it stands at an event, or has ended.
    fn stands(&self) -> bool {
        let mut ready = [PollFd::new(self.told.as_fd(), PollFlags::POLLIN)];
        assert_eq!(
            poll(&mut ready, PollTimeout::from(LIMIT)),
            Ok(1),
            "nothing more is told: {:#?}",
            self.seen
        );
        ready[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN))
    }

    /// Lets it go on to its event of this number, counted from 0 and from now on. Whether there is one.
    pub(crate) fn stands_at(&mut self, step: usize) -> bool {
        (0..step).all(|_| self.go_on().is_some()) && self.stands()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.id()), signal).unwrap();
    }

    /// Waits for its end; how it ended.
    pub(crate) fn end(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Stepping {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! The user's terminal: raw while a remote one is shown in it, as it was afterwards, however that ends.

use std::io;
use std::os::fd::AsFd;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::agent::protocol::WindowSize;

/// What is assumed where there is no terminal to ask.
const USUAL_SIZE: WindowSize = WindowSize { rows: 24, columns: 80 };

/// The size of the terminal that standard input, output or error is.
pub(super) fn size() -> WindowSize {
    let ask = |fd: &dyn AsFd| {
        let size = rustix::termios::tcgetwinsize(fd.as_fd()).ok()?;
        (size.ws_row > 0 && size.ws_col > 0).then_some(WindowSize { rows: size.ws_row, columns: size.ws_col })
    };
    ask(&io::stdin()).or_else(|| ask(&io::stdout())).or_else(|| ask(&io::stderr())).unwrap_or(USUAL_SIZE)
}

/// Standard input passes every key on, until this is dropped.
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    /// `None` if standard input is no terminal.
    pub(super) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        let Ok(before) = tcgetattr(&stdin) else { return Ok(None) };
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSADRAIN, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // If the terminal is gone there is nothing to restore.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.before);
    }
}

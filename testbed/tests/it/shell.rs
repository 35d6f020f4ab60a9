//! `testbed shell` in a real terminal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd;
use std::process::{Child, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};
use rustix::termios::{Winsize, tcsetwinsize};

use super::support::{LONG, Labs};

/// A program in a terminal of ours.
struct Terminal {
    control: File,
    user: File,
    seen: String,
    child: Child,
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Terminal {
    fn start(labs: &Labs, args: &[&str]) -> Self {
        let pair = openpty(None, None).unwrap();
        let (control, user) = (File::from(pair.master), File::from(pair.slave));
        tcsetwinsize(control.as_fd(), size(30, 90)).unwrap();
        // The terminal has to be the session's, or no change of size is heard of.
        let mut command = labs.command(&["setsid", "--ctty", "--wait"]);
        command.args(args).env("TERM", "dumb").env("SHELL", "/bin/sh");
        let stdio = || Stdio::from(user.try_clone().unwrap());
        let child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        Self { control, user, seen: String::new(), child }
    }

    fn write(&mut self, text: &str) {
        self.control.write_all(text.as_bytes()).unwrap();
    }

    /// Reads until `text` is seen.
    fn until(&mut self, text: &str) {
        let mut buffer = [0; 4096];
        while !self.seen.contains(text) {
            let mut poll = [PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
            let ready = nix::poll::poll(&mut poll, PollTimeout::try_from(LONG).unwrap()).unwrap();
            assert!(ready > 0, "waited in vain for {text:?}; seen: {:?}", self.seen);
            let n = self.control.read(&mut buffer).unwrap();
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
        let end = self.seen.find(text).unwrap() + text.len();
        self.seen.drain(..end);
    }

    fn is_cooked(&self) -> bool {
        let flags = tcgetattr(&self.user).unwrap().local_flags;
        flags.contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }
}

#[test]
fn a_shell_has_a_prompt_a_size_and_an_exit_code() {
    let Some(labs) = Labs::new("a_shell_has_a_prompt_a_size_and_an_exit_code") else { return };
    labs.expect(0, ["up", "direct"]);
    let mut terminal = Terminal::start(&labs, &["shell", "client"]);
    // The words that are typed are echoed too: look for what only the shell can make of them.
    terminal.until("# ");
    assert!(!terminal.is_cooked(), "our terminal must pass every key on");
    terminal.write("echo size $(stty size) on $(hostname)\r");
    terminal.until("size 30 90 on client");
    terminal.until("# ");

    tcsetwinsize(terminal.control.as_fd(), size(50, 132)).unwrap();
    terminal.write("until [ \"$(stty size)\" = '50 132' ]; do :; done; echo resi''zed\r");
    terminal.until("resized");
    terminal.until("# ");

    // Ctrl-C is the remote command's.
    let script = "trap \"echo inter''rupted; exit\" INT; echo wait''ing; while :; do read x; done";
    terminal.write(&format!("sh -c '{}'\r", script.replace('\'', "'\\''")));
    terminal.until("waiting");
    terminal.write("\x03");
    terminal.until("interrupted");
    terminal.until("# ");
    terminal.write("exit 5\r");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(5));
    assert!(terminal.is_cooked(), "the terminal was not restored");
}

#[test]
fn the_terminal_is_restored_when_the_agent_dies() {
    let Some(labs) = Labs::new("the_terminal_is_restored_when_the_agent_dies") else { return };
    labs.expect(0, ["up", "direct"]);
    let agent = i32::try_from(labs.status()["agent_pid"].as_i64().unwrap()).unwrap();
    assert!(agent > 1);
    let mut terminal = Terminal::start(&labs, &["exec", "-t", "client", "sh"]);
    terminal.until("# ");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent), nix::sys::signal::Signal::SIGKILL).unwrap();
    terminal.until("the agent of lab");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(1));
    assert!(terminal.is_cooked(), "the terminal was not restored");
}

#[test]
fn without_a_terminal_a_shell_reads_a_script() {
    let Some(labs) = Labs::new("without_a_terminal_a_shell_reads_a_script") else { return };
    labs.expect(0, ["up", "direct"]);
    let mut shell = labs.testbed();
    let shell = shell.args(["shell", "server", "--shell", "sh"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    shell.stdin.take().unwrap().write_all(b"hostname; exit 9\n").unwrap();
    let output = shell.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(9), &b"server\n"[..]));
}

//! User-Mode Linux: the kernel is a program, and its second terminal is the line.

use std::path::Path;

use tokio::process::Command;

use super::choice::Clock;
use super::machine::{Config, GuestError, word};

/// The command of a guest. The line is its standard input, the console its standard output.
pub(super) fn command(config: &Config, kernel: &Path, clock: Clock) -> Result<Command, GuestError> {
    let sockets = config.directory.join("uml");
    std::fs::create_dir_all(&sockets)
        .map_err(|source| GuestError::Start { kernel: kernel.to_owned(), source })?;
    let mut command = Command::new(kernel);
    command.arg(format!("mem={}M", config.memory));
    // seccomp is the faster way to catch system calls; where it doesn't work UML finds out and traces instead.
    command.args(["seccomp=auto", "umid=guest"]);
    command.arg(format!("uml_dir={}", word(&sockets)?));
    command.args(["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"]);
    // The console goes to standard output; the line is standard input.
    command.args([
        "con=null",
        "con0=null,fd:1",
        "con1=fd:0",
        "console=tty0",
        "quiet",
        "panic=-1",
        "noreboot",
    ]);
    if clock == Clock::Virtual {
        command.arg("time-travel=inf-cpu");
    }
    command.arg(format!("init={}", word(&config.program)?)).args(["--", "init"]);
    // UML takes the last variable's address for the end of its address space: too low, and the guest's processes crash
    // where they meet what lies there. So there is a short one at the end (std sorts them). PATH doesn't do, because
    // UML sets it anew, elsewhere.
    command.env_clear().env("PATH", "/usr/bin:/bin").env("TERM", "linux");
    Ok(command)
}

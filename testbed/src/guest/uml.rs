//! User-Mode Linux: the kernel is a program, and its second terminal is the line.

use std::path::Path;

use nix::sys::statvfs::statvfs;
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
    if let Some(directory) = memory_directory(config.memory, free) {
        command.env("TEMP", directory);
    }
    Ok(command)
}

/// Where UML makes the file that is the guest's memory, unless in /dev/shm as it does by itself: in a container that is
/// often too small, and a guest that meets its end dies of a SIGBUS.
fn memory_directory(mebibytes: u32, free: impl Fn(&str) -> u64) -> Option<&'static str> {
    let wanted = u64::from(mebibytes) << 20;
    let enough = |directory: &&str| free(directory) >= wanted;
    match enough(&"/dev/shm") {
        true => None,
        false => ["/tmp", "/var/tmp"].into_iter().find(enough),
    }
}

/// Bytes that an ordinary user may still write there.
fn free(directory: &str) -> u64 {
    statvfs(directory).map_or(0, |there| there.blocks_available() * there.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_lies_where_there_is_room() {
        let where_there_is = |room: [u64; 3]| {
            memory_directory(1, |directory| match directory {
                "/dev/shm" => room[0],
                "/tmp" => room[1],
                _ => room[2],
            })
        };
        assert_eq!(where_there_is([1 << 20, 1 << 20, 1 << 20]), None);
        assert_eq!(where_there_is([64 << 10, 1 << 20, 1 << 20]), Some("/tmp"));
        assert_eq!(where_there_is([64 << 10, 0, 1 << 20]), Some("/var/tmp"));
        assert_eq!(where_there_is([0, 0, 0]), None);
    }
}

//! Runs a test once more as root of a user namespace, where an ordinary user may make labs in the test's own process.
//!
//! The child makes the namespaces itself, before it runs anything: where AppArmor restricts them, this program has a
//! profile and `unshare` has none.
#![expect(unsafe_code, reason = "namespaces are entered between fork and exec")]

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{getegid, geteuid, write};

use super::support::skip;

/// An ordinary user's number, and their group's.
const NOBODY: u32 = 65534;

/// Set for the tests that [`again`] runs.
const INSIDE: &str = "TESTS_IN_USER_NAMESPACE";

/// Whether [`again`] runs this.
pub(crate) fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs the test of this name, which is this very one, in a user and a network namespace; as nobody if root runs it. It
/// must pass there.
pub(crate) fn again(test: &str) {
    let is_root = geteuid().is_root();
    // Nobody may not reach the program where it lies, which may be somebody's home.
    let directory = tempfile::tempdir().unwrap();
    let mut program = std::env::current_exe().unwrap();
    let (uid, gid) = if is_root { (NOBODY, NOBODY) } else { (geteuid().as_raw(), getegid().as_raw()) };
    if is_root {
        let copy = directory.path().join("it");
        fs::copy(&program, &copy).unwrap();
        for path in [directory.path(), &copy] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        program = copy;
    }
    let mut command = Command::new(program);
    command.args([test, "--exact", "--nocapture"]).current_dir("/").env(INSIDE, "1");
    if is_root {
        // The standard library drops the supplementary groups as well.
        command.uid(NOBODY).gid(NOBODY);
    }
    let (uid_map, gid_map) = (format!("0 {uid} 1").into_bytes(), format!("0 {gid} 1").into_bytes());
    // SAFETY: between fork and exec only system calls are made, on memory that was prepared before.
    unsafe { command.pre_exec(move || enter(&uid_map, &gid_map).map_err(io::Error::from)) };
    match command.output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && text.contains("1 passed"), "{text}{errors}");
        }
        Err(error) => skip(test, &format!("this machine denies user namespaces to ordinary users: {error}")),
    }
}

fn enter(uid_map: &[u8], gid_map: &[u8]) -> nix::Result<()> {
    // A process that changed its user may not write its own maps before this.
    // SAFETY: this option takes one number and touches no memory of ours.
    nix::errno::Errno::result(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) })?;
    unshare(CloneFlags::CLONE_NEWUSER)?;
    put(c"/proc/self/setgroups", b"deny")?;
    put(c"/proc/self/uid_map", uid_map)?;
    put(c"/proc/self/gid_map", gid_map)?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
}

fn put(path: &CStr, text: &[u8]) -> nix::Result<()> {
    write(open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?, text).map(drop)
}

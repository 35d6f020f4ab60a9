//! Where labs leave what they need while they are up: the runtime directory.
//!
//! A lab is `<runtime>/<lab>/`. Two locks keep its life in order. `launch` is held for as long as an `up` or a `down` is
//! at work, so that they queue. `lock` is held by the agent and its PID 1 for as long as they live, so that a directory
//! whose `lock` is free is what a dead agent left, and may be cleared by whoever holds `launch`.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nix::unistd::geteuid;

use crate::guest::console::end_of;

/// The longest name of a lab, in bytes; it is also the host name inside.
const MAX_NAME: usize = 63;

/// The longest path that fits a socket's address.
const MAX_SOCKET_PATH: usize = 107;

/// The name of a lab: letters, digits, `-`, `_` and `.`, not starting with `.` or `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct LabName(String);

impl FromStr for LabName {
    type Err = RuntimeError;

    fn from_str(name: &str) -> Result<Self, RuntimeError> {
        let first = name.bytes().next().unwrap_or(b'-');
        let fits = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if name.len() > MAX_NAME || matches!(first, b'.' | b'-') || !fits {
            return Err(RuntimeError::BadName { name: name.to_owned() });
        }
        Ok(Self(name.to_owned()))
    }
}

impl std::fmt::Display for LabName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl LabName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is wrong with the runtime directory.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No lab can have this name.
    #[error(
        "`{name}` cannot be a lab's name: use up to {MAX_NAME} letters, digits, `-`, `_` or `.`, \
         beginning with a letter, a digit or `_`"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// Somebody else owns it or could get at it.
    #[error(
        "the runtime directory {path} is not a directory that is ours alone ({why}); \
         remove it or set TESTBED_RUNTIME_DIR to another"
    )]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A file operation failed.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// How it failed.
        source: io::Error,
    },
    /// Somebody holds a lock for too long.
    #[error("lab `{lab}` is still being brought up or taken down by another process after {waited:?}")]
    Busy {
        /// The lab.
        lab: LabName,
        /// How long this waited.
        waited: Duration,
    },
}

impl RuntimeError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }
}

/// The directory that holds this user's labs.
#[derive(Clone, Debug)]
pub struct Runtime {
    path: PathBuf,
}

impl Runtime {
    /// `$TESTBED_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/testbed`, else `/run/user/UID/testbed`, else `/tmp/testbed-UID`.
    /// Nothing is created yet.
    pub fn locate() -> Self {
        let uid = geteuid();
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(path) = set("TESTBED_RUNTIME_DIR") {
            return Self::at(path);
        }
        let ours = |dir: &PathBuf| fs::metadata(dir).is_ok_and(|m| m.is_dir() && m.uid() == uid.as_raw());
        // A variable that is left over from another user (sudo, su) points to where we must not write.
        let session = set("XDG_RUNTIME_DIR").filter(ours);
        let session = session.or_else(|| Some(PathBuf::from(format!("/run/user/{uid}"))).filter(ours));
        Self::at(match session {
            Some(session) => session.join("testbed"),
            None => PathBuf::from(format!("/tmp/testbed-{uid}")),
        })
    }

    /// This directory. It is made absolute, since the agent has another idea of the current one.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { path: std::path::absolute(&path).unwrap_or(path) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A lab's directory, which need not exist.
    pub fn lab(&self, name: &LabName) -> LabDir {
        LabDir { path: self.path.join(name.as_str()), name: name.clone() }
    }

    /// The labs that have a directory here, by name.
    pub fn labs(&self) -> Result<Vec<LabDir>, RuntimeError> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(RuntimeError::io("read", &self.path)(error)),
        };
        let mut labs = Vec::new();
        for entry in entries {
            let entry = entry.map_err(RuntimeError::io("read", &self.path))?;
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let name = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let (true, Some(name)) = (is_dir, name) {
                labs.push(self.lab(&name));
            }
        }
        labs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(labs)
    }

    /// Makes the directory, private, and checks that it is ours alone.
    pub fn create(&self) -> Result<(), RuntimeError> {
        make_private(&self.path, true)?;
        let not_ours = |why: String| RuntimeError::NotOurs { path: self.path.clone(), why };
        // The final component must be no symbolic link: in /tmp anybody could have put one there.
        let metadata = fs::symlink_metadata(&self.path).map_err(RuntimeError::io("look at", &self.path))?;
        if !metadata.is_dir() {
            return Err(not_ours("it is something else".to_owned()));
        }
        if metadata.uid() != geteuid().as_raw() {
            return Err(not_ours(format!("user {} owns it", metadata.uid())));
        }
        if metadata.permissions().mode() & 0o022 != 0 {
            return Err(not_ours(format!("its mode is {:o}", metadata.permissions().mode() & 0o7777)));
        }
        Ok(())
    }
}

fn make_private(path: &Path, recursive: bool) -> Result<(), RuntimeError> {
    match DirBuilder::new().recursive(recursive).mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(RuntimeError::io("make the directory", path)(error))
        }
        _ => Ok(()),
    }
}

/// One lab's directory.
#[derive(Clone, Debug)]
pub struct LabDir {
    path: PathBuf,
    name: LabName,
}

/// The right to bring a lab up or take it down.
#[derive(Debug)]
pub struct Launch {
    _lock: File,
}

impl LabDir {
    /// The lab at this path; the last component is its name.
    pub fn at(path: &Path) -> Result<Self, RuntimeError> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().parse()?;
        Ok(Self { path: path.to_owned(), name })
    }

    /// The lab's name.
    pub fn name(&self) -> &LabName {
        &self.name
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The agent's log.
    pub fn log(&self) -> PathBuf {
        self.path.join("agent.log")
    }

    /// The plan that the agent is given, as JSON.
    pub fn plan(&self) -> PathBuf {
        self.path.join("plan.json")
    }

    /// What the keeper of a lab in a guest is given, as JSON.
    pub fn charge(&self) -> PathBuf {
        self.path.join("guest.json")
    }

    /// First in the lab's `PATH`: `testbed`, `rdma-httpd` and `rdma-fetch`.
    pub fn bin(&self) -> PathBuf {
        self.path.join("bin")
    }

    /// What is bound over `/etc/hosts`.
    pub fn hosts(&self) -> PathBuf {
        self.path.join("hosts")
    }

    /// Whether there is such a directory, of a living lab or a dead one.
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Whether an agent holds its lock.
    pub fn is_alive(&self) -> bool {
        let lock = File::open(self.path.join("lock"));
        lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Calls `f` with a path to the agent's socket that is short enough for a socket's address: a deep directory is
    /// reached through a descriptor.
    pub fn with_socket<T>(&self, f: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
        let socket = self.path.join("agent.sock");
        if socket.as_os_str().len() <= MAX_SOCKET_PATH {
            return f(&socket);
        }
        let directory = File::open(&self.path)?;
        f(&PathBuf::from(format!("/proc/self/fd/{}/agent.sock", directory.as_raw_fd())))
    }

    /// Waits for the right to bring the lab up or take it down, up to `wait`. Makes the directory.
    pub async fn launch(&self, wait: Duration) -> Result<Launch, RuntimeError> {
        let path = self.path.join("launch");
        let attempts = async {
            loop {
                make_private(&self.path, false)?;
                let file = match open_lock(&path) {
                    // Whoever took the lab down removed the directory between our two calls.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    result => result.map_err(RuntimeError::io("open", &path))?,
                };
                let file = lock(file).await.map_err(RuntimeError::io("lock", &path))?;
                // The lock counts only if the file is still the one that others would open.
                let held = file.metadata().map_err(RuntimeError::io("look at", &path))?;
                if fs::metadata(&path)
                    .is_ok_and(|there| there.ino() == held.ino() && there.dev() == held.dev())
                {
                    return Ok(Launch { _lock: file });
                }
            }
        };
        match tokio::time::timeout(wait, attempts).await {
            Ok(result) => result,
            Err(_) => Err(RuntimeError::Busy { lab: self.name.clone(), waited: wait }),
        }
    }

    /// The right to clear the directory, if nobody is at work on it.
    pub(crate) fn try_launch(&self) -> Option<Launch> {
        let path = self.path.join("launch");
        let file = open_lock(&path).ok()?;
        file.try_lock().ok()?;
        let (held, there) = (file.metadata().ok()?, fs::metadata(&path).ok()?);
        (there.ino() == held.ino() && there.dev() == held.dev()).then_some(Launch { _lock: file })
    }

    /// The agent's lock, or `None` if an agent holds it.
    pub fn try_lock(&self, _launch: &Launch) -> Result<Option<File>, RuntimeError> {
        let path = self.path.join("lock");
        let file = open_lock(&path).map_err(RuntimeError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(RuntimeError::io("lock", &path)(error)),
        }
    }

    /// The agent's lock, once the agent that holds it is gone; `None` if that takes longer than `wait`.
    pub async fn await_lock(&self, _launch: &Launch, wait: Duration) -> Result<Option<File>, RuntimeError> {
        let path = self.path.join("lock");
        let file = open_lock(&path).map_err(RuntimeError::io("open", &path))?;
        match tokio::time::timeout(wait, lock(file)).await {
            Ok(result) => result.map(Some).map_err(RuntimeError::io("lock", &path)),
            Err(_) => Ok(None),
        }
    }

    /// The process, as the machine counts, whose end is the end of all of the lab: written by PID 1 into its lock.
    pub fn pid1(&self) -> Option<i32> {
        fs::read_to_string(self.path.join("lock")).ok()?.trim().parse().ok().filter(|pid| *pid > 1)
    }

    /// Removes all that an earlier agent left but the locks.
    pub fn clear(&self, _launch: &Launch) -> Result<(), RuntimeError> {
        self.remove_entries(|name| name != "launch" && name != "lock")
    }

    /// Removes the directory; whoever waits for its lock makes a new one.
    pub fn remove(&self, launch: Launch) -> Result<(), RuntimeError> {
        // `launch` last, so that the directory is never without it while it has something else.
        self.remove_entries(|name| name != "launch")?;
        self.remove_entries(|_| true)?;
        drop(launch);
        match fs::remove_dir(&self.path) {
            // Somebody waits to bring the lab up and has made the lock again.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            result => result.map_err(RuntimeError::io("remove", &self.path)),
        }
    }

    fn remove_entries(&self, which: impl Fn(&str) -> bool) -> Result<(), RuntimeError> {
        let entries = fs::read_dir(&self.path).map_err(RuntimeError::io("read", &self.path))?;
        for entry in entries {
            let entry = entry.map_err(RuntimeError::io("read", &self.path))?;
            if !entry.file_name().to_str().is_none_or(&which) {
                continue;
            }
            let path = entry.path();
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
                .map_err(RuntimeError::io("remove", &path))?;
        }
        Ok(())
    }

    /// The last lines of the agent's log, for an error message.
    pub fn log_tail(&self) -> String {
        let text = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = end_of(&lines);
        if tail.is_empty() { "(the agent's log is empty)".to_owned() } else { tail.join("\n") }
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Waits for a lock in a thread of its own, which is left behind if the caller gives up: a pooled thread would be waited
/// for at the end of the runtime.
async fn lock(file: File) -> io::Result<File> {
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let (give, take) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("lock".to_owned()).spawn(move || {
        // If nobody waits any more the file is dropped here, and with it the lock.
        let _ = give.send(file.lock().map(|()| file));
    })?;
    take.await.unwrap_or_else(|_| Err(io::Error::other("the waiting thread ended")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab(name: &str) -> (tempfile::TempDir, LabDir) {
        let directory = tempfile::tempdir().unwrap();
        let runtime = Runtime::at(directory.path());
        runtime.create().unwrap();
        let lab = runtime.lab(&name.parse().unwrap());
        (directory, lab)
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        for bad in ["", ".", "..", "a/b", "-a", "a b", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<LabName>().is_err(), "{bad:?} was accepted");
        }
        for good in ["wan-10g", "a", "_x.1", &"a".repeat(63)] {
            assert!(good.parse::<LabName>().is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("runtime");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let error = Runtime::at(&path).create().unwrap_err().to_string();
        assert!(error.contains("777") && error.contains("TESTBED_RUNTIME_DIR"), "{error}");
    }

    #[test]
    fn a_link_in_place_of_the_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("runtime");
        std::os::unix::fs::symlink("/", &path).unwrap();
        assert!(matches!(Runtime::at(&path).create(), Err(RuntimeError::NotOurs { .. })));
    }

    #[tokio::test]
    async fn the_second_waits_and_gets_a_fresh_directory() {
        let (_guard, lab) = lab("x");
        let wait = Duration::from_secs(60);
        let first = lab.launch(wait).await.unwrap();
        fs::write(lab.plan(), "{}").unwrap();
        let second = tokio::spawn({
            let lab = lab.clone();
            async move { lab.launch(wait).await }
        });
        tokio::task::yield_now().await;
        lab.remove(first).unwrap();
        let _second = second.await.unwrap().unwrap();
        assert!(lab.exists() && !lab.plan().exists());
    }

    #[tokio::test]
    async fn the_lock_tells_the_living_from_the_dead() {
        let (_guard, lab) = lab("x");
        let launch = lab.launch(Duration::from_secs(60)).await.unwrap();
        let held = lab.try_lock(&launch).unwrap().unwrap();
        assert!(lab.try_lock(&launch).unwrap().is_none());
        assert!(lab.await_lock(&launch, Duration::ZERO).await.unwrap().is_none());
        drop(held);
        assert!(lab.try_lock(&launch).unwrap().is_some());
    }

    #[tokio::test]
    async fn waiting_has_an_end() {
        let (_guard, lab) = lab("x");
        let _held = lab.launch(Duration::from_secs(60)).await.unwrap();
        assert!(matches!(lab.launch(Duration::ZERO).await, Err(RuntimeError::Busy { .. })));
    }

    #[test]
    fn a_socket_in_a_deep_directory_can_be_bound_and_reached() {
        let (_guard, mut lab) = lab("x");
        lab.path = lab.path.join("d".repeat(120));
        fs::create_dir_all(&lab.path).unwrap();
        let _listener = lab.with_socket(|path| std::os::unix::net::UnixListener::bind(path)).unwrap();
        lab.with_socket(|path| std::os::unix::net::UnixStream::connect(path)).unwrap();
    }
}

//! What the tests that bring labs up share: a runtime directory of their own, and the proof that nothing remains.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::agent::runtime::Runtime;
use testbed::guest::host::Options;

/// After this long an event that was waited for will not come.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Waits until `event` has something.
pub(crate) fn wait_for<T>(what: &str, mut event: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = event() {
            return seen;
        }
        assert!(start.elapsed() < LONG, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Says that a test cannot run here, or fails where everything has to.
pub(crate) fn skip(test: &str, reason: &str) {
    assert!(std::env::var_os("TESTBED_REQUIRE_ALL").is_none(), "{test}: {reason}");
    eprintln!("SKIP {test}: {reason}");
}

/// The labs of one test. At its end they are taken down, and nothing of them may remain.
pub(crate) struct Labs {
    directory: tempfile::TempDir,
    program: PathBuf,
    /// Put before the program: who runs it.
    prefix: Vec<String>,
    interfaces: Vec<String>,
}

impl Labs {
    /// As the user who runs the tests; `None` (said why) if no lab can be had here.
    pub(crate) fn new(test: &str) -> Option<Self> {
        Self::with(test, Vec::new())
    }

    /// As an ordinary user, also when root runs the tests.
    pub(crate) fn as_user(test: &str) -> Option<Self> {
        let prefix: &[&str] = if nix::unistd::geteuid().is_root() {
            &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]
        } else {
            &[]
        };
        Self::with(test, prefix.iter().map(|&word| word.to_owned()).collect())
    }

    fn with(test: &str, prefix: Vec<String>) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        // Whoever runs it must get here and reach the program, which may lie in somebody's home.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let mut program = PathBuf::from(env!("CARGO_BIN_EXE_testbed"));
        if !prefix.is_empty() {
            let copy = directory.path().join("testbed");
            fs::copy(&program, &copy).unwrap();
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
            program = copy;
        }
        let labs = Self { directory, program, prefix, interfaces: interfaces() };
        let doctor = labs.run(["doctor", "--json"]);
        let report: Value = serde_json::from_slice(&doctor.stdout).unwrap_or_default();
        if doctor.status.code() != Some(0) {
            skip(test, &format!("no lab can be brought up here: {}", report["abilities"]));
            return None;
        }
        Some(labs)
    }

    pub(crate) fn runtime(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// A place for the test's files.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn lab(&self, name: &str) -> PathBuf {
        self.runtime().join(name)
    }

    /// The same for the library.
    pub(crate) fn options(&self) -> Options {
        Options::at(Runtime::at(self.runtime()), self.program.clone(), LONG)
    }

    /// `testbed`, to be given its arguments.
    pub(crate) fn testbed(&self) -> Command {
        self.command(&[])
    }

    /// `testbed`, started by `before`.
    pub(crate) fn command(&self, before: &[&str]) -> Command {
        let words = self.prefix.iter().map(OsStr::new).chain(before.iter().map(OsStr::new));
        let mut words = words.chain([self.program.as_os_str()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).current_dir("/").stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TESTBED_") {
                command.env_remove(name);
            }
        }
        command.env("TESTBED_RUNTIME_DIR", self.runtime()).env("TESTBED_COLOR", "never");
        command
    }

    pub(crate) fn run<T: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = T>) -> Output {
        self.testbed().args(args).output().unwrap()
    }

    /// Runs it and demands an exit code; returns what was printed on both.
    #[track_caller]
    pub(crate) fn expect<T: AsRef<OsStr>>(&self, code: i32, args: impl IntoIterator<Item = T>) -> String {
        let output = self.run(args);
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{text}");
        text
    }

    /// Brings a lab up in a UML guest. Its commands have the environment of its `up`, so that is a small one here: what
    /// they do shall not depend on whose it is.
    #[track_caller]
    pub(crate) fn up_in_guest(&self, args: &[&str]) {
        let mut up = self.testbed();
        let kept = ["PATH", "HOME", "TESTBED_CACHE_DIR"].map(|name| (name, std::env::var_os(name)));
        up.args(["up", "--kernel", "uml"]).args(args).env_clear();
        up.envs(kept.into_iter().filter_map(|(name, value)| Some((name, value?))));
        let output = up.env("TESTBED_RUNTIME_DIR", self.runtime()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// The status of the only lab.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        let labs: Value = serde_json::from_str(&self.expect(0, ["status", "--json"])).unwrap();
        assert_eq!(labs.as_array().unwrap().len(), 1, "{labs}");
        labs[0]["status"].clone()
    }

    /// Processes that were started for these labs: agents by their arguments, commands by the `PATH` of their lab.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let mark = self.runtime();
        let mark = mark.as_os_str().as_encoded_bytes();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            ["environ", "cmdline"].iter().any(|file| {
                let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                text.windows(mark.len()).any(|window| window == mark)
            })
        })
        .collect()
    }

    /// Whether an agent or a PID 1 holds its lock: to its very end, when /proc shows no arguments any more.
    fn locked(&self) -> bool {
        self.remains().iter().any(|lab| {
            let lock = fs::File::open(self.lab(lab).join("lock"));
            lock.is_ok_and(|lock| lock.try_lock_shared().is_err())
        })
    }

    /// Waits until no process of these labs is left, then looks for everything else.
    #[track_caller]
    pub(crate) fn assert_nothing_lives(&self) {
        wait_for("the end of all processes", || {
            (self.processes().is_empty() && !self.locked()).then_some(())
        });
        let mark = self.directory.path().to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(mark), "a mount is left: {mounts}");
        let new: Vec<_> = interfaces().into_iter().filter(|name| !self.interfaces.contains(name)).collect();
        assert!(new.is_empty(), "interfaces are left on the machine: {new:?}");
    }

    /// Names in the runtime directory.
    pub(crate) fn remains(&self) -> Vec<String> {
        let entries = fs::read_dir(self.runtime()).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for Labs {
    fn drop(&mut self) {
        let output = self.run(["down", "--all"]);
        if std::thread::panicking() {
            return;
        }
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.assert_nothing_lives();
        assert!(self.remains().is_empty(), "left in the runtime directory: {:?}", self.remains());
    }
}

fn interfaces() -> Vec<String> {
    let entries = fs::read_dir(Path::new("/sys/class/net")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

//! A kernel that `testbed kernel build` has built, booted for real.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use testbed::agent::client::{self, Client};
use testbed::agent::frame::FrameReader;
use testbed::agent::protocol::{MAX_ANSWER, Response};
use testbed::agent::runtime::{LabDir, Runtime};
use testbed::guest::choice::Clock;
use testbed::guest::machine::{Config, Guest, GuestError, Machine};
use testbed::guest::order::Order;
use testbed::kernel::{Cache, Image, Platform};
use testbed::topology;
use tokio::net::{UnixListener, UnixStream};

use crate::support::{LONG, skip, wait_for};

/// The newest UML kernel of the user's cache; `None` (said why) if there is none.
fn uml_image(test: &str) -> Option<Image> {
    let image = Cache::of_user().and_then(|cache| cache.newest(Platform::Uml)).unwrap();
    if image.is_none() {
        skip(test, "no UML kernel is built; `testbed kernel build` builds one");
    }
    image
}

/// A guest to be, with a directory of its own.
struct Bed {
    directory: tempfile::TempDir,
    config: Config,
}

impl Bed {
    fn new(test: &str) -> Option<Self> {
        let image = uml_image(test)?;
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            machine: Machine::Uml { kernel: image.path(), clock: Clock::Wall },
            program: env!("CARGO_BIN_EXE_testbed").into(),
            directory: directory.path().into(),
            memory: 512,
            timeout: LONG,
            cpu: None,
            log: None,
            lock: None,
        };
        Some(Self { directory, config })
    }

    /// A script, as a guest's first process.
    fn script(&self, text: &str) -> PathBuf {
        let path = self.directory.path().join("script");
        fs::write(&path, format!("#!/bin/sh\n{text}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn order(&self) -> Order {
        Order {
            lab: "direct".into(),
            plan: topology::load("direct").unwrap(),
            program: self.config.program.clone(),
            shared: Vec::new(),
            env: BTreeMap::new(),
            cwd: None,
        }
    }

    fn lab(&self) -> LabDir {
        Runtime::at(self.directory.path()).lab(&"direct".parse().unwrap())
    }

    /// Boots, has the lab made, and connects a client to its agent as on the machine itself.
    async fn up(&self) -> (Guest, UnixListener, UnixStream) {
        fs::create_dir_all(self.lab().path()).unwrap();
        let start = Instant::now();
        let mut guest = Guest::boot(&self.config).await.unwrap();
        let greeted = start.elapsed();
        let mut caller = guest.order(&self.order()).await.unwrap();
        let answer = FrameReader::new(&mut caller, MAX_ANSWER).message::<Response>().await;
        match answer {
            Ok(Some(Response::Status(_))) => {}
            other => panic!("{other:?}; the console: {}", guest.console().tail()),
        }
        eprintln!("the line after {greeted:?}, the agent's first answer after {:?}", start.elapsed());
        let listener = UnixListener::bind(self.lab().path().join("agent.sock")).unwrap();
        (guest, listener, caller)
    }
}

#[test]
fn a_shell_script_is_the_first_process_of_a_guest() {
    let Some(guest) = Bed::new("a_shell_script_is_the_first_process_of_a_guest") else { return };
    let script = guest
        .script("mount -t proc proc /proc\necho \"this is Linux $(uname -r)\"\nexec /sbin/poweroff -f\n");
    let output = Command::new(uml_image("").unwrap().path())
        .args([
            "mem=128M",
            "seccomp=auto",
            "umid=script",
            "root=/dev/root",
            "rootfstype=hostfs",
            "rootflags=/",
            "ro",
        ])
        .arg(format!("uml_dir={}", guest.directory.path().display()))
        .arg(format!("init={}", script.display()))
        .args(["con=null", "con0=null,fd:1", "quiet", "panic=-1", "noreboot"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = uml_image("").unwrap().manifest.version;
    assert!(text.contains(&format!("this is Linux {version}")), "{text}");
    assert!(output.status.success(), "{:?}: {text}", output.status);
}

#[tokio::test]
async fn on_the_virtual_clock_an_hour_takes_no_time() {
    let Some(mut guest) = Bed::new("on_the_virtual_clock_an_hour_takes_no_time") else { return };
    guest.config.machine = Machine::Uml { kernel: uml_image("").unwrap().path(), clock: Clock::Virtual };
    let (uml, listener, _caller) = guest.up().await;
    let client = Client::new(guest.lab());
    let talk = async {
        // On the machine's clock this would end in the limit below.
        let script = "read -r before _ < /proc/uptime; sleep 3600; read -r after _ < /proc/uptime; echo $before $after";
        let command = client::Command::new("server", "sh").args(["-c", script]);
        let output = client.exec(command).await.unwrap().output(1 << 10).await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let times: Vec<f64> = text.split_whitespace().map(|time| time.parse().unwrap()).collect();
        let slept = times[1] - times[0];
        // In hundredths of a second, each rounded.
        assert!((slept - 3600.0).abs() < 0.1, "{text}");
        client.down().await.unwrap();
    };
    let both = async { tokio::join!(talk, async { uml.serve(listener).await }) };
    tokio::time::timeout(LONG, both).await.unwrap();
    let status = tokio::time::timeout(LONG, uml.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}: {}", uml.console().tail());
}

#[tokio::test]
async fn a_guest_that_panics_shows_the_end_of_its_console() {
    let Some(mut guest) = Bed::new("a_guest_that_panics_shows_the_end_of_its_console") else { return };
    guest.config.program = "/no/such/program".into();
    let error = Guest::boot(&guest.config).await.unwrap_err();
    let GuestError::Ended { console, .. } = &error else { panic!("{error:?}") };
    assert!(console.contains("Kernel panic") && console.contains("/no/such/program"), "{error}");
    assert!(!Path::new("core").exists(), "no core file");
}

#[tokio::test]
async fn a_guest_that_hangs_is_given_up_with_the_end_of_its_console() {
    let Some(mut guest) = Bed::new("a_guest_that_hangs_is_given_up_with_the_end_of_its_console") else {
        return;
    };
    guest.config.program = guest.script("echo I hang\nexec sleep 1000\n");
    guest.config.timeout = Duration::from_secs(3);
    let error = Guest::boot(&guest.config).await.unwrap_err();
    let expected = "the guest did not answer within 3 s; its console ends with:\nI hang";
    assert_eq!(error.to_string(), expected);
    nothing_is_left_of(&guest);
}

/// Waits until no process has the guest's directory on its command line.
fn nothing_is_left_of(guest: &Bed) {
    let mark = guest.directory.path().to_str().unwrap().to_owned();
    wait_for("the end of the guest's processes", || {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let mut lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        (!lines.any(|line| String::from_utf8_lossy(&line).contains(&mark))).then_some(())
    });
}

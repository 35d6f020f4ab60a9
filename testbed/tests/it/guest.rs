//! Labs in guests, from the command line: every verb as on the machine, and a clear end whatever ends them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testbed::agent::client;
use testbed::agent::protocol::WindowSize;
use testbed::guest::choice::Place;
use testbed::guest::host::{self, Options};
use testbed::kernel::{Cache, Image, Platform};

use super::support::{Labs, skip, wait_for};

/// Labs in guests on the newest kernel of the user's cache.
struct Guests {
    labs: Labs,
    image: Image,
    /// The cache, as whoever runs `testbed` can read it.
    cache: Option<PathBuf>,
}

impl Guests {
    fn new(test: &str, platform: Platform) -> Option<Self> {
        Self::with(test, platform, Labs::new(test)?)
    }

    /// As an ordinary user, who may not be able to read the cache.
    fn as_user(test: &str, platform: Platform) -> Option<Self> {
        let mut guests = Self::with(test, platform, Labs::as_user(test)?)?;
        let cache = guests.labs.path("cache");
        let copy = cache.join("kernel/images").join(guests.image.name());
        fs::create_dir_all(&copy).unwrap();
        for file in [&guests.image.manifest.image[..], "manifest.json"] {
            fs::copy(guests.image.directory.join(file), copy.join(file)).unwrap();
        }
        guests.cache = Some(cache);
        Some(guests)
    }

    fn with(test: &str, platform: Platform, labs: Labs) -> Option<Self> {
        let Some(image) = Cache::of_user().and_then(|cache| cache.newest(platform)).unwrap() else {
            skip(
                test,
                &format!("no {platform} kernel is built; `testbed kernel build {platform}` builds one"),
            );
            return None;
        };
        Some(Self { labs, image, cache: None })
    }

    fn testbed(&self) -> Command {
        let mut command = self.labs.testbed();
        if let Some(cache) = &self.cache {
            command.env("TESTBED_CACHE_DIR", cache);
        }
        command
    }

    /// Brings `direct` up; returns what `up --json` says.
    #[track_caller]
    fn up(&self, args: &[&str]) -> Value {
        let output = self.testbed().args(["up", "direct", "--json"]).args(args).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The guest's kernel, as a process of the machine's.
    fn kernel(&self) -> Pid {
        let keeper = self.keeper();
        let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap();
        Pid::from_raw(children.split_whitespace().next().unwrap().parse().unwrap())
    }

    fn keeper(&self) -> Pid {
        let lock = fs::read_to_string(self.labs.lab("direct").join("lock")).unwrap();
        Pid::from_raw(lock.trim().parse().unwrap())
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What all guests do alike.
fn every_verb(guests: &Guests, kernel: &str) {
    let labs = &guests.labs;
    let up = guests.up(&["--kernel", kernel]);
    assert_eq!((&up["already_up"], &up["status"]["kernel"]), (&false.into(), &kernel.into()));
    assert_eq!(up["status"]["release"], guests.image.manifest.version);
    assert_eq!(guests.up(&["--kernel", kernel])["already_up"], true);
    assert_eq!(guests.up(&[])["already_up"], true, "any kernel will do");
    let other = guests.testbed().args(["up", "direct", "--kernel", "host"]).output().unwrap();
    assert_eq!(other.status.code(), Some(2), "{}", text(&other));
    assert!(text(&other).contains(&format!("kernel {kernel}")), "{}", text(&other));
    let status = labs.expect(0, ["status"]);
    assert!(
        status.contains(&format!("kernel {kernel} (Linux {})", guests.image.manifest.version)),
        "{status}"
    );

    // Codes, streams, the environment of whoever brought it up, and root in the guest whoever that was.
    let sh = |code, script: &str| labs.expect(code, ["exec", "client", "--", "sh", "-c", script]);
    assert_eq!(
        sh(0, "uname -r; id -u; ulimit -l"),
        format!("{}\n0\nunlimited\n", guests.image.manifest.version)
    );
    sh(7, "exit 7");
    sh(128 + 9, "kill -KILL $$");
    labs.expect(127, ["exec", "client", "--", "no-such-program"]);
    assert!(sh(0, "echo $TESTBED_RUNTIME_DIR").contains(labs.runtime().to_str().unwrap()));
    let mut tr = labs.testbed();
    let tr =
        tr.args(["exec", "server", "--", "tr", "a-z", "A-Z"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut tr = tr.spawn().unwrap();
    let mut stdin = tr.stdin.take().unwrap();
    // Far more than the line bears at once.
    let writer = std::thread::spawn(move || stdin.write_all(&b"through and back ".repeat(10_000)).unwrap());
    assert_eq!(tr.wait_with_output().unwrap().stdout, b"THROUGH AND BACK ".repeat(10_000));
    writer.join().unwrap();
    // Megabytes, whole and in order.
    let counted = labs.run(["exec", "client", "--", "seq", "1000000"]).stdout;
    let expected: String = (1..=1_000_000).map(|n| format!("{n}\n")).collect();
    assert!(counted == expected.as_bytes(), "{} bytes of {}", counted.len(), expected.len());
    let mut shell = labs.testbed();
    let shell = shell.args(["shell", "client"]).env("SHELL", "/bin/sh").stdin(Stdio::piped()).spawn();
    let mut shell = shell.unwrap();
    shell.stdin.take().unwrap().write_all(b"exit 3\n").unwrap();
    assert_eq!(shell.wait().unwrap().code(), Some(3));

    // Ctrl-C.
    let mut command = labs.testbed();
    let command = command.args(["exec", "client", "--", "sh", "-c", "echo on; exec sleep 1000"]);
    let mut command = command.stdout(Stdio::piped()).spawn().unwrap();
    command.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    kill(Pid::from_raw(i32::try_from(command.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(command.wait().unwrap().code(), Some(128 + 2));

    // What is written where a command runs is the machine's, and what is written elsewhere is not.
    let here = labs.path("here");
    fs::create_dir(&here).unwrap();
    fs::set_permissions(&here, fs::Permissions::from_mode(0o777)).unwrap();
    let elsewhere = format!("/usr/testbed-{}", std::process::id());
    let script = format!("cat given; echo kept > made; echo lost > {elsewhere} && cat {elsewhere}");
    fs::write(here.join("given"), "given\n").unwrap();
    let mut command = labs.testbed();
    command.args(["exec", "client", "--", "sh", "-c", &script]).current_dir(&here);
    let output = command.output().unwrap();
    assert_eq!(text(&output), "given\nlost\n");
    assert_eq!(fs::read_to_string(here.join("made")).unwrap(), "kept\n");
    assert!(!fs::exists(elsewhere).unwrap());
    // What changes on the machine is seen there.
    fs::write(here.join("given"), "another\n").unwrap();
    let mut command = labs.testbed();
    let output = command.args(["exec", "server", "--", "cat", "given"]).current_dir(&here).output().unwrap();
    assert_eq!(text(&output), "another\n");

    // A capture is a file of the machine's, named from where the user is.
    let mut capture = labs.testbed();
    capture.args(["capture", "start", "cable", "-w", "wire.pcapng"]).current_dir(&here);
    assert!(capture.status().unwrap().success());
    labs.expect(0, ["exec", "client", "--", "ping", "-c1", "server"]);
    assert!(labs.expect(0, ["capture", "stop", "cable"]).contains("captured 2 frames"));
    let captured = fs::read(here.join("wire.pcapng")).unwrap();
    // A section header block (pcapng, section 4.1).
    assert_eq!(captured[..4], [0x0a, 0x0d, 0x0d, 0x0a]);

    assert!(labs.expect(0, ["down", "direct"]).contains("is down"));
    assert!(labs.expect(0, ["down", "direct"]).contains("was not up"));
    labs.assert_nothing_lives();
}

#[test]
fn every_verb_works_in_a_uml_guest_of_an_ordinary_user() {
    let test = "every_verb_works_in_a_uml_guest_of_an_ordinary_user";
    let Some(guests) = Guests::as_user(test, Platform::Uml) else { return };
    every_verb(&guests, "uml");
}

#[test]
fn every_verb_works_in_a_qemu_guest_of_an_ordinary_user() {
    let test = "every_verb_works_in_a_qemu_guest_of_an_ordinary_user";
    let Some(guests) = Guests::as_user(test, Platform::Qemu) else { return };
    if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
        return skip(test, "there is no qemu-system-x86_64 (Debian: qemu-system-x86)");
    }
    every_verb(&guests, "qemu");
}

/// Scenarios in guests, with a copy of the goldens that whoever runs `testbed` can read.
fn runs(guests: &Guests, kernel: &str) {
    let golden = crate::run::golden(&guests.labs);
    let mut run = guests.testbed();
    run.args(["run", "direct", "get-empty", "get-missing", "--kernel", kernel, "--up-timeout", "60"]);
    let output = run.arg("--golden").arg(golden).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let said = text(&output);
    assert!(said.contains(&format!("each in a {kernel} guest")), "{said}");
    assert!(said.contains("2 scenarios run: 2 passed"), "{said}");
    guests.labs.assert_nothing_lives();
}

#[test]
fn an_ordinary_user_runs_scenarios_in_uml_guests() {
    let test = "an_ordinary_user_runs_scenarios_in_uml_guests";
    if let Some(guests) = Guests::as_user(test, Platform::Uml) {
        runs(&guests, "uml");
    }
}

#[test]
fn an_ordinary_user_runs_scenarios_in_qemu_guests() {
    let test = "an_ordinary_user_runs_scenarios_in_qemu_guests";
    let Some(guests) = Guests::as_user(test, Platform::Qemu) else { return };
    if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
        return skip(test, "there is no qemu-system-x86_64 (Debian: qemu-system-x86)");
    }
    runs(&guests, "qemu");
}

#[test]
fn where_this_machine_can_have_no_lab_a_guest_has_it() {
    let test = "where_this_machine_can_have_no_lab_a_guest_has_it";
    let Some(guests) = Guests::new(test, Platform::Uml) else { return };
    // The limit is of the new user namespace alone, and without capabilities there is no way around it.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all \"$@\"";
    let without = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"];
    if !Command::new(without[0])
        .args(&without[1..3])
        .arg("true")
        .status()
        .is_ok_and(|status| status.success())
    {
        return skip(test, "unshare(1) can make no user namespace here");
    }
    let output = guests.labs.command(&without).args(["up", "direct"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let said = text(&output);
    assert!(said.contains("this machine's kernel can have no lab (a user namespace: "), "{said}");
    assert!(said.contains("it lives in a User-Mode Linux guest"), "{said}");
    assert_eq!(guests.labs.status()["kernel"], "uml");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_in_a_guest_has_a_terminal_of_the_users_size() {
    let test = "a_command_in_a_guest_has_a_terminal_of_the_users_size";
    let Some(guests) = Guests::new(test, Platform::Uml) else { return };
    let plan = testbed::topology::load("direct").unwrap();
    let options = Options { place: Place::Uml(guests.image.clone()), ..guests.labs.options() };
    let up = host::up(&"direct".parse().unwrap(), &plan, &options).await.unwrap();
    let size = WindowSize { rows: 50, columns: 132 };
    let command = client::Command::new("client", "sh").args(["-c", "stty size; read x; stty size"]);
    let mut running = up.client.exec(command.terminal(size)).await.unwrap();
    let mut stdout = running.stdout.take().unwrap();
    let mut seen = String::new();
    while !seen.contains("50 132") {
        seen += &String::from_utf8_lossy(&stdout.next().await.expect("the size"));
    }
    running.control().resize(WindowSize { rows: 20, columns: 40 }).await;
    let mut stdin = running.stdin.take().unwrap();
    stdin.write("\n".into()).await.unwrap();
    while !seen.contains("20 40") {
        seen += &String::from_utf8_lossy(&stdout.next().await.expect("the new size"));
    }
    assert_eq!(running.wait().await.unwrap(), testbed::agent::protocol::Exit::Code(0));
}

#[test]
fn a_guest_that_panics_is_told_of_by_every_verb() {
    let test = "a_guest_that_panics_is_told_of_by_every_verb";
    let Some(guests) = Guests::new(test, Platform::Uml) else { return };
    let labs = &guests.labs;
    guests.up(&["--kernel", "uml", "--memory", "256"]);
    let script = "echo 1 > /proc/sys/vm/panic_on_oom; exec tail /dev/zero";
    let said = labs.expect(1, ["exec", "client", "--", "sh", "-c", script]);
    assert!(said.contains("in the middle of this") && said.contains("Kernel panic"), "{said}");
    // Its keeper still has to tidy up.
    labs.assert_nothing_lives();
    for args in [&["exec", "client", "--", "true"][..], &["capture", "stop", "cable"], &["shell", "client"]] {
        let said = labs.expect(1, args);
        assert!(said.contains("is dead") && said.contains("Kernel panic"), "{args:?}: {said}");
    }
    let said = labs.expect(0, ["status"]);
    assert!(said.contains("is dead") && said.contains("Kernel panic"), "{said}");
    assert_eq!(guests.up(&["--kernel", "uml"])["already_up"], false, "it is made anew");
}

#[test]
fn a_guest_that_hangs_is_killed_and_told_of() {
    let test = "a_guest_that_hangs_is_killed_and_told_of";
    let Some(guests) = Guests::new(test, Platform::Uml) else { return };
    guests.up(&["--kernel", "uml", "--patience", "1"]);
    kill(guests.kernel(), Signal::SIGSTOP).unwrap();
    let said = guests.labs.expect(1, ["exec", "client", "--", "true"]);
    assert!(said.contains("has not answered for 1s"), "{said}");
    guests.labs.assert_nothing_lives();
    assert!(guests.labs.expect(0, ["down"]).contains("what it left is cleared"));
}

#[test]
fn whoever_is_killed_nothing_is_left() {
    let Some(guests) = Guests::new("whoever_is_killed_nothing_is_left", Platform::Uml) else { return };
    let labs = &guests.labs;
    for (who, whom) in [("the kernel", Guests::kernel as fn(&Guests) -> Pid), ("the keeper", Guests::keeper)]
    {
        guests.up(&["--kernel", "uml"]);
        let mut command = labs.testbed();
        let command = command.args(["exec", "client", "--", "sh", "-c", "echo on; sleep 1000 & sleep 1000"]);
        let mut command = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        command.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
        kill(whom(&guests), Signal::SIGKILL).unwrap();
        let output = command.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{who}: {}", text(&output));
        assert!(text(&output).contains("in the middle of this"), "{who}: {}", text(&output));
        labs.assert_nothing_lives();
        labs.expect(1, ["exec", "client", "--", "true"]);
    }
    // One that does not even hear.
    guests.up(&["--kernel", "uml"]);
    kill(guests.kernel(), Signal::SIGSTOP).unwrap();
    assert!(labs.expect(0, ["down", "--timeout", "0.2"]).contains("was killed"));
    labs.assert_nothing_lives();
}

#[test]
fn a_keeper_that_is_asked_to_end_takes_the_lab_down() {
    let test = "a_keeper_that_is_asked_to_end_takes_the_lab_down";
    let Some(guests) = Guests::new(test, Platform::Uml) else { return };
    guests.up(&["--kernel", "uml"]);
    kill(guests.keeper(), Signal::SIGTERM).unwrap();
    guests.labs.assert_nothing_lives();
    wait_for("the lab's directory to go", || guests.labs.remains().is_empty().then_some(()));
}

#[test]
fn an_up_that_is_killed_while_the_guest_boots_leaves_nothing() {
    let test = "an_up_that_is_killed_while_the_guest_boots_leaves_nothing";
    let Some(guests) = Guests::new(test, Platform::Uml) else { return };
    let mut up = guests.testbed().args(["up", "direct", "--kernel", "uml"]).spawn().unwrap();
    wait_for("the keeper to begin", || {
        let lock = fs::read_to_string(guests.labs.lab("direct").join("lock")).ok()?;
        lock.ends_with('\n').then_some(())
    });
    up.kill().unwrap();
    up.wait().unwrap();
    guests.labs.assert_nothing_lives();
}

#[test]
fn a_kernel_that_is_not_built_is_named_with_the_command_that_builds_it() {
    let test = "a_kernel_that_is_not_built_is_named_with_the_command_that_builds_it";
    let Some(labs) = Labs::new(test) else { return };
    for kernel in ["uml", "qemu"] {
        let mut command = labs.testbed();
        command.args(["up", "direct", "--kernel", kernel]).env("TESTBED_CACHE_DIR", labs.path("empty"));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", text(&output));
        assert!(text(&output).contains(&format!("testbed kernel build {kernel}")), "{}", text(&output));
    }
    let text = labs.expect(2, ["up", "direct", "--clock", "virtual"]);
    assert!(text.contains("testbed run --clock virtual"), "{text}");
}

//! `testbed run`, the whole of it: labs, programs, captures, goldens, verdicts.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::SystemTime;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testbed::kernel::{Cache, Platform};

use crate::support::{Labs, wait_for};

/// A copy of `golden/`, which a test may change.
pub(crate) fn golden(labs: &Labs) -> PathBuf {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden");
    let copy = labs.path("golden");
    for (from, to) in [(ours.clone(), copy.clone()), (ours.join("snapshots"), copy.join("snapshots"))] {
        fs::create_dir(&to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o777)).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if name.ends_with(".toml") || name.ends_with(".snap") {
                fs::copy(entry.path(), to.join(name)).unwrap();
            }
        }
    }
    copy
}

/// A test's labs and its copy of the goldens.
pub(crate) struct Bench {
    labs: Labs,
    golden: PathBuf,
}

impl Bench {
    pub(crate) fn new(labs: Option<Labs>) -> Option<Self> {
        let labs = labs?;
        Some(Self { golden: golden(&labs), labs })
    }

    fn args<'a>(&'a self, args: &'a [&'a str]) -> Vec<&'a OsStr> {
        let fixed = [OsStr::new("run"), OsStr::new("--golden"), self.golden.as_os_str()];
        fixed.into_iter().chain(args.iter().map(OsStr::new)).collect()
    }

    /// Runs to its end; nothing of a lab may be left by it.
    fn run(&self, args: &[&str]) -> Output {
        let output = self.labs.run(self.args(args));
        assert_eq!(self.labs.remains(), [""; 0], "the run left a lab behind");
        self.labs.assert_nothing_lives();
        output
    }

    #[track_caller]
    pub(crate) fn expect(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args);
        let text = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{text}");
        text
    }

    /// The objects that `--json` prints, of the event `scenario`.
    #[track_caller]
    pub(crate) fn findings(&self, code: i32, args: &[&str]) -> Vec<Value> {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let output = self.run(&args);
        let text = text(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{text}");
        findings(&text)
    }

    /// Starts a run and returns once its server is there: the run, and the server's process.
    fn start(&self, args: &[&str]) -> (Child, Pid) {
        let mut command = self.labs.testbed();
        command.args(self.args(args)).stdout(Stdio::piped());
        let child = command.spawn().unwrap();
        let server = wait_for("the server", || {
            let is_server = |pid: &i32| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                line.starts_with(b"rdma-httpd\0")
            };
            self.labs.processes().into_iter().find(is_server)
        });
        (child, Pid::from_raw(server))
    }

    pub(crate) fn edit(&self, file: &str, edit: impl FnOnce(String) -> String) {
        let path = self.golden.join(file);
        let before = fs::read_to_string(&path).unwrap();
        let after = edit(before.clone());
        assert_ne!(before, after, "nothing was changed");
        fs::write(path, after).unwrap();
    }

    /// Every file of the goldens, with its content and the time of its last change.
    fn files(&self) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
        let folders = [self.golden.clone(), self.golden.join("snapshots")];
        let entries = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap().flatten());
        let files = entries.map(|entry| entry.path()).filter(|path| path.is_file());
        files
            .map(|path| {
                let modified = fs::metadata(&path).unwrap().modified().unwrap();
                let content = fs::read(&path).unwrap();
                (path, (content, modified))
            })
            .collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn findings(lines: &str) -> Vec<Value> {
    let values = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    values.filter(|value| value["event"] == "scenario").collect()
}

fn verdicts(findings: &[Value]) -> Vec<(&str, &str)> {
    findings.iter().map(|f| (f["name"].as_str().unwrap(), f["verdict"].as_str().unwrap())).collect()
}

pub(crate) fn seen(findings: &[Value]) -> Vec<&str> {
    let goldens = findings.iter().flat_map(|finding| finding["goldens"].as_array().unwrap());
    goldens.map(|golden| golden["seen"].as_str().unwrap()).collect()
}

#[test]
fn everything_passes_and_what_runs_twice_shows_the_same() {
    let test = "everything_passes_and_what_runs_twice_shows_the_same";
    // Each in a lab of its own, all at once: most of a scenario is waiting for what comes over the link.
    let parts = ["slice:1/4", "slice:2/4", "slice:3/4", "slice:4/4", "slice:1/4"];
    let ran: Option<Vec<Vec<Value>>> = std::thread::scope(|scope| {
        let run = |part| {
            scope.spawn(move || {
                Some(Bench::new(Labs::new(test))?.findings(0, &["wan-10g", "--partition", part]))
            })
        };
        let running = parts.map(run);
        running.into_iter().map(|part| part.join().unwrap()).collect()
    });
    let Some(ran) = ran else { return };
    let [parts @ .., again] = &ran[..] else { panic!("{} parts", ran.len()) };
    assert_eq!(seen(&parts[0]), seen(again));
    let all = parts.concat();
    assert!(all.iter().all(|finding| finding["verdict"] == "pass"), "{:?}", verdicts(&all));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden");
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let scenarios = names.filter(|name| name.ends_with(".toml") && !name.starts_with("interop-"));
    assert_eq!(all.len(), scenarios.count(), "{:?}", verdicts(&all));
}

#[test]
fn an_ordinary_user_sees_the_same() {
    let Some(bench) = Bench::new(Labs::as_user("an_ordinary_user_sees_the_same")) else { return };
    let findings = bench.findings(0, &["wan-10g", "get-server-writes-1*", "get-plain", "get-missing"]);
    let names: Vec<&str> = verdicts(&findings).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["get-missing", "get-plain", "get-server-writes-1b", "get-server-writes-1mib"]);
    assert!(findings.iter().all(|finding| finding["verdict"] == "pass"));
}

#[test]
fn the_users_environment_changes_nothing() {
    let Some(bench) = Bench::new(Labs::new("the_users_environment_changes_nothing")) else { return };
    let mut command = bench.labs.testbed();
    command.args(bench.args(&["direct", "get-server-writes-1mib", "get-plain"]));
    // The client's offer, the server's chunks, a proxy that is not there, and noise.
    let output = command
        .env("RDMA_FETCH_MAXLEN", "1000")
        .env("RDMA_HTTPD_CHUNK_SIZE", "512KiB")
        .env("http_proxy", "http://192.0.2.1:9")
        .env("RUST_LOG", "trace")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn a_judge_that_is_not_installed_skips_and_says_how_to_install_it() {
    let test = "a_judge_that_is_not_installed_skips_and_says_how_to_install_it";
    let Some(bench) = Bench::new(Labs::new(test)) else { return };
    bench.edit("get-plain.toml", |file| file + "env = { PATH = \"/nowhere\" }\n");
    let junit = bench.labs.path("junit.xml");
    let said = bench.expect(0, &["direct", "get-plain", "get-empty", "--junit", junit.to_str().unwrap()]);
    let why = "`curl` was not found in PATH (/nowhere); to have it: ";
    assert!(said.contains("SKIP") && said.contains(&format!("soft get-plain: {why}")), "{said}");
    assert!(said.contains("1 scenario run: 1 passed, 1 skipped"), "{said}");
    let report = fs::read_to_string(junit).unwrap();
    assert!(report.contains("<skipped message=\"`curl` was not found"), "{report}");
    assert!(bench.expect(4, &["direct", "get-plain"]).contains("every scenario was skipped"));
    let mut command = bench.labs.testbed();
    command.args(bench.args(&["direct", "get-plain"])).env("TESTBED_REQUIRE_ALL", "1");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains(why), "{}", text(&output.stdout));
}

#[test]
fn a_changed_byte_of_a_golden_fails_with_a_diff_that_names_its_line() {
    let test = "a_changed_byte_of_a_golden_fails_with_a_diff_that_names_its_line";
    let Some(bench) = Bench::new(Labs::new(test)) else { return };
    bench.edit("snapshots/get-missing.snap", |golden| golden.replacen("< 404", "< 405", 1));
    let line = fs::read_to_string(bench.golden.join("snapshots/get-missing.snap")).unwrap();
    let line = line.lines().position(|line| line.contains("< 405")).unwrap() + 1;
    let said = bench.expect(1, &["wan-10g", "get-missing", "get-empty"]);
    for expected in [
        "FAIL soft get-missing: differs from its golden",
        &format!("snapshots/get-missing.snap:{line}"),
        "-    < 405\n+    < 404\n",
        "2 scenarios run: 1 passed, 1 failed",
    ] {
        assert!(said.contains(expected), "{expected:?} is not in:\n{said}");
    }
    let pending = fs::read_to_string(bench.golden.join("snapshots/get-missing.snap.new")).unwrap();
    assert!(pending.contains("    < 404\n"), "what was seen is there for cargo insta review");
}

#[test]
fn a_server_that_behaves_otherwise_fails() {
    let Some(bench) = Bench::new(Labs::new("a_server_that_behaves_otherwise_fails")) else { return };
    // Smaller Writes: both ends' operations and the wire show it.
    bench.edit("get-server-writes-1mib.toml", |file| {
        file.replacen(
            "[[server.file]]",
            "[server]\nargs = [\"--chunk-size\", \"512KiB\"]\n\n[[server.file]]",
            1,
        )
    });
    // Another file.
    bench.edit("get-plain.toml", |file| file.replacen("size = ", "seed = 99\nsize = ", 1));
    // A client that offers less than it did.
    bench.edit("get-over-maxlen.toml", |file| file.replacen("\"1024\"", "\"1025\"", 1));
    // A server that refuses to connect there.
    bench.edit("get-unreachable.toml", |file| file.replacen("{nobody}/32", "192.0.2.0/24", 1));
    let chosen = ["wan-10g", "get-server-writes-1mib", "get-plain", "get-over-maxlen", "get-unreachable"];
    let findings = bench.findings(1, &chosen);
    assert!(findings.iter().all(|finding| finding["verdict"] == "fail"), "{:?}", verdicts(&findings));
    let diff = |name: &str, golden: usize| {
        let finding = findings.iter().find(|finding| finding["name"] == name).unwrap();
        finding["goldens"][golden]["diff"].as_str().unwrap_or_default().to_owned()
    };
    let writes = diff("get-server-writes-1mib", 0);
    assert!(writes.contains("+    2 x write: 1048576 bytes, contiguous, from stag#1 + 0"), "{writes}");
    let wire = diff("get-server-writes-1mib", 1);
    assert!(wire.contains("+  > 2 x Write: 1048576 bytes, contiguous, from stag#1 + 0"), "{wire}");
    assert!(diff("get-plain", 0).contains("+  served: 1048576 bytes, sha256 "));
    assert!(
        diff("get-over-maxlen", 0).contains("+  receives\n+    1025 bytes by rdma") || {
            let diff = diff("get-over-maxlen", 0);
            diff.contains("1025 bytes by rdma")
        }
    );
    assert!(diff("get-unreachable", 0).contains("+    address-not-allowed"));
}

#[test]
fn bless_writes_exactly_what_changed() {
    let Some(bench) = Bench::new(Labs::new("bless_writes_exactly_what_changed")) else { return };
    bench.edit("snapshots/get-missing.snap", |golden| golden.replacen("< 404", "< 405", 1));
    bench.edit("snapshots/get-empty@soft.snap", |golden| golden.replacen("> FIN", "> RST", 1));
    fs::remove_file(bench.golden.join("snapshots/get-malformed.snap")).unwrap();
    // What an earlier run left to be reviewed.
    fs::write(bench.golden.join("snapshots/get-missing.snap.new"), "---\n---\nold\n").unwrap();
    let before = bench.files();
    let args = ["wan-10g", "get-missing", "get-empty", "get-malformed", "get-over-maxlen", "--bless"];
    let said = bench.expect(0, &args);
    let after = bench.files();
    let changed: Vec<&str> = after
        .iter()
        .filter(|(path, state)| before.get(*path) != Some(*state))
        .map(|(path, _)| path.file_name().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(changed, ["get-empty@soft.snap", "get-malformed.snap", "get-missing.snap"]);
    let gone: Vec<&PathBuf> = before.keys().filter(|path| !after.contains_key(*path)).collect();
    assert_eq!(gone, [&bench.golden.join("snapshots/get-missing.snap.new")]);
    for name in &changed {
        assert!(said.contains(&format!("snapshots/{name}")), "{name} is not named in:\n{said}");
        let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/snapshots").join(name);
        assert_eq!(
            fs::read_to_string(bench.golden.join("snapshots").join(name)).unwrap(),
            fs::read_to_string(ours).unwrap(),
            "blessing gives the golden that is in the repository"
        );
    }
    assert!(said.contains("1 passed, 3 blessed"), "{said}");
}

#[test]
fn a_missing_golden_fails_and_says_how_to_bless() {
    let Some(bench) = Bench::new(Labs::new("a_missing_golden_fails_and_says_how_to_bless")) else { return };
    fs::remove_file(bench.golden.join("snapshots/get-empty.snap")).unwrap();
    let said = bench.expect(1, &["wan-10g", "get-empty"]);
    assert!(said.contains("then run it again with --bless"), "{said}");
}

#[test]
fn the_reports_for_machines_are_well_formed() {
    let Some(bench) = Bench::new(Labs::new("the_reports_for_machines_are_well_formed")) else { return };
    bench.edit("snapshots/get-missing.snap", |golden| golden.replacen("< 404", "< 405", 1));
    let junit = bench.labs.path("junit.xml");
    let mut command = bench.labs.testbed();
    let args = ["wan-10g", "get-missing", "get-empty", "--junit", junit.to_str().unwrap()];
    let output = command.args(bench.args(&args)).env("GITHUB_ACTIONS", "true").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report = quick_junit::Report::deserialize_from_str(&fs::read_to_string(junit).unwrap()).unwrap();
    assert_eq!((report.tests, report.failures, report.errors), (2, 1, 0));
    let cases = &report.test_suites[0].test_cases;
    let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names, ["get-empty", "get-missing"]);
    let said = text(&output.stdout);
    let annotations: Vec<&str> = said.lines().filter(|line| line.starts_with("::error ")).collect();
    let [annotation] = annotations[..] else { panic!("{said}") };
    assert!(annotation.contains("get-missing.snap,line="), "{annotation}");
    assert!(annotation.contains("title=scenario get-missing on soft::"), "{annotation}");
}

#[test]
fn a_report_that_cannot_be_written_is_an_error_but_a_closed_pipe_is_none() {
    let test = "a_report_that_cannot_be_written_is_an_error_but_a_closed_pipe_is_none";
    let Some(bench) = Bench::new(Labs::new(test)) else { return };
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let run = |args: &[&str], stdout: Stdio| {
        let mut command = bench.labs.testbed();
        let output = command.args(bench.args(args)).stdout(stdout).output().unwrap();
        assert_eq!(bench.labs.remains(), [""; 0], "the run left a lab behind");
        output
    };
    let chosen = ["direct", "get-empty"];
    for more in [&[][..], &["--json"], &["--junit", "/dev/full"]] {
        let stdout = if more.len() == 2 { Stdio::null() } else { full().into() };
        let output = run(&[&chosen[..], more].concat(), stdout);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{more:?}: {said}");
        assert!(said.contains("cannot write the report: No space left"), "{more:?}: {said}");
    }
    for more in [&[][..], &["--json"]] {
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        let output = run(&[&chosen[..], more].concat(), write.into());
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{more:?}");
    }
    // Nobody can be told why, but it is an error all the same.
    let mut command = bench.labs.testbed();
    let status = command.args(bench.args(&chosen)).stdout(full()).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn parts_cover_everything_exactly_once() {
    let Some(bench) = Bench::new(Labs::new("parts_cover_everything_exactly_once")) else { return };
    let list = |part: &str| -> Vec<String> {
        let args = ["--list", "--json", "--partition", part];
        let scenarios: Value = serde_json::from_str(&bench.expect(0, &args)).unwrap();
        let names = scenarios.as_array().unwrap().iter();
        names.map(|scenario| scenario["name"].as_str().unwrap().to_owned()).collect()
    };
    let all = list("slice:1/1");
    for by in ["hash", "slice"] {
        let mut parts: Vec<String> = (1..=3).flat_map(|part| list(&format!("{by}:{part}/3"))).collect();
        parts.sort();
        assert_eq!(parts, all, "{by}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_before_a_lab_is_made() {
    let test = "what_makes_no_sense_is_refused_before_a_lab_is_made";
    let Some(bench) = Bench::new(Labs::new(test)) else { return };
    let said = bench.expect(2, &["wan-10g", "get-emty"]);
    assert!(
        said.contains("did you mean \"get-empty\"?") && said.contains("get-server-writes-64mib"),
        "{said}"
    );
    assert!(bench.expect(2, &["wan10g"]).contains("wan-10g"));
    assert!(bench.expect(2, &["wan-10g", "--partition", "hash:5/4"]).contains("hash:1/4"));
    assert!(bench.expect(2, &["wan-10g", "--kernel", "host", "--clock", "virtual"]).contains("--kernel uml"));
    if Cache::of_user().and_then(|cache| cache.newest(Platform::Uml)).unwrap().is_some() {
        let said = bench.expect(2, &["wan-10g", "get-empty", "--kernel", "uml", "--keep"]);
        assert!(
            said.contains("--keep leaves a lab up") && said.contains("testbed up --kernel uml"),
            "{said}"
        );
    }
    if !cfg!(feature = "verbs") {
        for fabric in ["siw", "soft,rxe", "all"] {
            assert!(bench.expect(3, &["wan-10g", "--fabric", fabric]).contains("--features verbs"));
        }
    }
    assert!(bench.expect(4, &["wan-10g", "nothing-*"]).contains("no scenario was chosen"));
    bench.edit("get-empty.toml", |file| file.replacen("target", "tagret", 1));
    let said = bench.expect(2, &["wan-10g"]);
    assert!(said.contains("get-empty.toml:8:1: unknown field `tagret`"), "{said}");
    assert!(said.contains("did you mean `target`?"), "{said}");
}

#[test]
fn a_server_that_does_not_start_is_an_error_with_its_words() {
    let test = "a_server_that_does_not_start_is_an_error_with_its_words";
    let Some(bench) = Bench::new(Labs::new(test)) else { return };
    bench.edit("get-unreachable.toml", |file| file.replacen("--allow-rdma-to", "--no-such-flag", 1));
    let said = bench.expect(1, &["wan-10g", "get-unreachable"]);
    assert!(said.contains("rdma-httpd ended with exit code 2 before it listened"), "{said}");
    assert!(said.contains("--no-such-flag"), "{said}");
}

#[test]
fn a_server_that_dies_is_an_error_and_the_lab_is_gone() {
    let test = "a_server_that_dies_is_an_error_and_the_lab_is_gone";
    let Some(bench) = Bench::new(Labs::new(test)) else { return };
    let (child, server) = bench.start(&["wan-10g", "get-unreachable", "--json"]);
    kill(server, Signal::SIGKILL).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let findings = findings(&text(&output.stdout));
    assert_eq!(verdicts(&findings), [("get-unreachable", "error")]);
    let message = findings[0]["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("rdma-httpd was killed by signal 9"), "{message}");
    assert_eq!(bench.labs.remains(), [""; 0]);
    bench.labs.assert_nothing_lives();
}

#[test]
fn a_scenario_that_takes_too_long_is_an_error() {
    let test = "a_scenario_that_takes_too_long_is_an_error";
    let Some(bench) = Bench::new(Labs::new(test)) else { return };
    bench.edit("get-unreachable.toml", |file| file.replacen("30 s", "500 ms", 1));
    let said = bench.expect(1, &["wan-10g", "get-unreachable"]);
    assert!(said.contains("it was not over after 0.5 s"), "{said}");
}

#[test]
fn a_run_that_is_interrupted_takes_its_lab_down() {
    let test = "a_run_that_is_interrupted_takes_its_lab_down";
    let Some(bench) = Bench::new(Labs::new(test)) else { return };
    for (signal, code) in [(Signal::SIGINT, Some(130)), (Signal::SIGTERM, Some(143)), (Signal::SIGKILL, None)]
    {
        let (mut child, _) = bench.start(&["wan-10g", "get-unreachable"]);
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        let lines: Vec<String> =
            BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
        assert_eq!(child.wait().unwrap().code(), code, "{lines:?}");
        bench.labs.assert_nothing_lives();
        if code.is_some() {
            assert!(lines.iter().any(|line| line.contains("interrupted")), "{lines:?}");
            assert_eq!(bench.labs.remains(), [""; 0]);
        }
    }
}

#[test]
fn a_lab_that_is_up_is_used_and_left_and_one_can_be_kept() {
    let test = "a_lab_that_is_up_is_used_and_left_and_one_can_be_kept";
    let Some(bench) = Bench::new(Labs::new(test)) else { return };
    let said = bench.labs.run(bench.args(&["wan-10g", "get-empty", "--keep"]));
    assert_eq!(said.status.code(), Some(0), "{}", text(&said.stdout));
    assert!(text(&said.stdout).contains("in lab wan-10g"));
    let agent = bench.labs.status()["agent_pid"].clone();
    let said = bench.labs.run(bench.args(&["wan-10g", "get-missing"]));
    assert_eq!(said.status.code(), Some(0), "{}", text(&said.stdout));
    assert!(text(&said.stdout).contains("in lab wan-10g"));
    let (child, _) = bench.start(&["wan-10g", "get-unreachable"]);
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    let said = bench.labs.run(bench.args(&["wan-10g", "get-missing"]));
    assert_eq!(said.status.code(), Some(0), "an interrupted run left something: {}", text(&said.stdout));
    // Killed, it leaves its capture to the next one.
    let (mut child, _) = bench.start(&["wan-10g", "get-unreachable"]);
    child.kill().unwrap();
    child.wait().unwrap();
    let said = bench.labs.run(bench.args(&["wan-10g", "get-missing"]));
    assert_eq!(said.status.code(), Some(0), "a killed run left something: {}", text(&said.stdout));
    // Two at once take turns.
    let (child, _) = bench.start(&["wan-10g", "get-unreachable"]);
    let said = bench.labs.run(bench.args(&["wan-10g", "get-missing"]));
    assert_eq!(said.status.code(), Some(0), "{}", text(&said.stdout));
    assert!(
        text(&said.stderr).contains("waiting: another run is using lab wan-10g"),
        "{}",
        text(&said.stderr)
    );
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));
    assert_eq!(bench.labs.status()["agent_pid"], agent, "it is the same lab");
    let kept: Vec<PathBuf> = fs::read_dir(bench.labs.lab("wan-10g"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("run-"))
        .collect();
    let [run] = &kept[..] else { panic!("{kept:?}") };
    assert!(run.join("wire.pcapng").is_file(), "the capture was kept, and the second run's files were not");
}

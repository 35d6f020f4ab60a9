//! Labs from the outside: up, status, exec, down, and what happens when something is killed in between.

use std::fs;
use std::io::Read as _;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testbed::agent::client::{Client, ClientError};
use testbed::agent::protocol::Exit;
use testbed::guest::host;

use super::support::{Labs, skip, wait_for};

fn pid(value: &Value) -> i32 {
    value.as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap()
}

fn pid1(labs: &Labs, lab: &str) -> i32 {
    fs::read_to_string(labs.lab(lab).join("lock")).unwrap().trim().parse().unwrap()
}

fn send(pid: i32, signal: Signal) {
    assert!(pid > 1);
    kill(Pid::from_raw(pid), signal).unwrap();
}

fn goes_up_works_and_goes_down(labs: &Labs) {
    let text = labs.expect(0, ["up", "wan-10g"]);
    assert!(text.contains("lab wan-10g is up") && text.contains("10 Gbit/s, 25ms"), "{text}");
    assert!(text.contains("relay over") || text.contains("netem"), "the driver is missing: {text}");

    let status = labs.status();
    assert_eq!(status["lab"], "wan-10g");
    assert_eq!(status["hosts"][0]["name"], "server");
    assert!(labs.processes().contains(&pid(&status["agent_pid"])), "{status}");

    labs.expect(0, ["exec", "client", "--", "ping", "-c1", "-W10", "server"]);
    let frames = &labs.status()["links"][0]["a_to_b"]["frames"];
    assert!(frames.as_u64().unwrap() >= 1, "{frames}");

    let seen = labs
        .expect(0, ["exec", "server", "--", "sh", "-c", "hostname; ls /sys/class/net; pwd; cat /etc/hosts"]);
    assert!(seen.starts_with("server\neth0\nlo\n/\n"), "{seen}");
    assert!(seen.contains(" client\n"), "{seen}");
    let own =
        labs.expect(0, ["exec", "server", "--", "sh", "-c", "command -v testbed rdma-httpd rdma-fetch"]);
    assert!(own.lines().all(|line| line.starts_with(labs.lab("wan-10g").to_str().unwrap())), "{own}");

    let text = labs.expect(0, ["down"]);
    assert_eq!(text, "lab wan-10g is down\n");
    labs.assert_nothing_lives();
    assert!(labs.remains().is_empty());
    labs.expect(0, ["down", "wan-10g"]);
    assert_eq!(labs.expect(0, ["status"]), "no lab is up\n");
}

#[test]
fn a_lab_goes_up_works_and_goes_down() {
    let Some(labs) = Labs::new("a_lab_goes_up_works_and_goes_down") else { return };
    goes_up_works_and_goes_down(&labs);
}

#[test]
fn an_ordinary_user_has_the_same() {
    let Some(labs) = Labs::as_user("an_ordinary_user_has_the_same") else { return };
    goes_up_works_and_goes_down(&labs);
}

/// Runs a script as root of a user namespace, after `before` made it as poor as a container; `$0` is testbed.
fn in_a_container(test: &str, before: &str, script: &str) -> Option<std::process::Output> {
    let labs = Labs::new(test)?;
    // This is done with util-linux's `unshare`, which AppArmor has no profile for: what stops it says nothing of testbed. As
    // root the same cases run.
    let probe =
        std::process::Command::new("unshare").args(["--user", "--map-root-user", "--mount", "true"]).output();
    if !probe.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIP {test}: this machine denies `unshare --user --mount` to this user: {probe:?}");
        return None;
    }
    let script = format!("{before} || exit 99; {script}");
    let output =
        labs.command(&["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &script]).output();
    match output {
        Ok(output) if output.status.code() != Some(99) => Some(output),
        other => {
            skip(test, &format!("`{before}` does not work here: {other:?}"));
            None
        }
    }
}

const NO_USER_NAMESPACES: &str = "echo 0 > /proc/sys/user/max_user_namespaces";

#[test]
fn root_needs_no_user_namespaces() {
    let script = "\"$0\" up direct && \"$0\" exec client -- ping -c1 server && \"$0\" down";
    let test = "root_needs_no_user_namespaces";
    let Some(output) = in_a_container(test, NO_USER_NAMESPACES, script) else { return };
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn where_user_namespaces_are_off_the_remedy_is_named() {
    let script = "exec setpriv --bounding-set=-all \"$0\" up direct --kernel host";
    let test = "where_user_namespaces_are_off_the_remedy_is_named";
    let Some(output) = in_a_container(test, NO_USER_NAMESPACES, script) else { return };
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("sysctl -w user.max_user_namespaces="), "{text}");
}

#[test]
fn where_proc_is_partly_hidden_the_remedy_is_named() {
    let test = "where_proc_is_partly_hidden_the_remedy_is_named";
    let hide = "mount -t tmpfs none /proc/sys";
    // Without capabilities it needs a user namespace of its own, which may not uncover what was covered outside.
    let script = "exec setpriv --bounding-set=-all,+setfcap \"$0\" up direct --kernel host";
    let Some(output) = in_a_container(test, hide, script) else { return };
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("cannot mount /proc") && text.contains("systempaths=unconfined"), "{text}");
}

#[test]
fn a_lab_that_cannot_be_built_leaves_nothing() {
    let Some(labs) = Labs::new("a_lab_that_cannot_be_built_leaves_nothing") else { return };
    let file = labs.path("bad.toml");
    let text = "hosts.a.sysctls = { \"net.ipv4.no_such_setting\" = \"1\" }\nhosts.b = {}\n\
                links = [{ endpoints = [\"a:eth0\", \"b:eth0\"] }]\n";
    fs::write(&file, text).unwrap();
    let output = labs.run(["up", file.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(1..=3)), "{text}");
    assert!(text.contains("no_such_setting"), "{text}");
    labs.assert_nothing_lives();
    assert!(labs.remains().is_empty());
}

#[test]
fn up_twice_is_the_same_lab_unless_the_plan_differs() {
    let Some(labs) = Labs::new("up_twice_is_the_same_lab_unless_the_plan_differs") else { return };
    labs.expect(0, ["up", "direct"]);
    let agent = labs.status()["agent_pid"].clone();
    let again: Value = serde_json::from_str(&labs.expect(0, ["up", "direct", "--json"])).unwrap();
    assert_eq!(again["already_up"], true);
    assert_eq!(again["status"]["agent_pid"], agent);
    let text = labs.expect(2, ["up", "wan-1g", "--name", "direct"]);
    assert!(text.contains("another plan") && text.contains("testbed down direct"), "{text}");
    assert_eq!(labs.status()["agent_pid"], agent);
}

#[test]
fn two_labs_have_nothing_in_common() {
    let Some(labs) = Labs::new("two_labs_have_nothing_in_common") else { return };
    labs.expect(0, ["up", "direct", "--name", "left"]);
    labs.expect(0, ["up", "direct", "--name", "right"]);
    let text = labs.expect(2, ["exec", "client", "--", "true"]);
    assert!(text.contains("left, right"), "{text}");
    labs.expect(0, ["exec", "--lab", "left", "client", "--", "ping", "-c1", "server"]);
    labs.expect(0, ["down", "left"]);
    labs.expect(0, ["exec", "--lab", "right", "client", "--", "ping", "-c1", "server"]);
    let text = labs.expect(2, ["exec", "--lab", "left", "client", "--", "true"]);
    assert!(text.contains("lab `left` is not up"), "{text}");
}

#[test]
fn concurrent_ups_make_one_lab() {
    let Some(labs) = Labs::new("concurrent_ups_make_one_lab") else { return };
    let ups: Vec<Child> = (0..4)
        .map(|_| labs.testbed().args(["up", "direct", "--json"]).stdout(Stdio::piped()).spawn().unwrap())
        .collect();
    let answers: Vec<Value> = ups
        .into_iter()
        .map(|up| {
            let output = up.wait_with_output().unwrap();
            assert!(output.status.success());
            serde_json::from_slice(&output.stdout).unwrap()
        })
        .collect();
    let first = answers.iter().filter(|answer| answer["already_up"] == false).count();
    assert_eq!(first, 1, "{answers:?}");
    let agent = &answers[0]["status"]["agent_pid"];
    assert!(answers.iter().all(|answer| &answer["status"]["agent_pid"] == agent));
}

fn a_dead_lab_leaves_nothing(labs: &Labs, victim: impl Fn(&Labs) -> i32) {
    labs.expect(0, ["up", "wan-10g"]);
    let mut command = labs.testbed();
    let command =
        command.args(["exec", "client", "--", "sh", "-c", "trap '' TERM; echo on; exec sleep 1000"]);
    let mut sleeper = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    sleeper.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();

    send(victim(labs), Signal::SIGKILL);

    // The client of a running command ends, and says why.
    let output = sleeper.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("the agent of lab `wan-10g` ended"), "{text}");
    labs.assert_nothing_lives();
    assert_eq!(labs.remains(), ["wan-10g"]);
    assert!(labs.expect(0, ["status"]).contains("is dead"));
    assert!(labs.expect(1, ["exec", "client", "--", "true"]).contains("is dead"));

    labs.expect(0, ["up", "wan-10g"]);
    labs.expect(0, ["exec", "client", "--", "true"]);
    send(victim(labs), Signal::SIGKILL);
    labs.assert_nothing_lives();
    let text = labs.expect(0, ["down"]);
    assert!(text.contains("cleared"), "{text}");
    assert!(labs.remains().is_empty());
}

#[test]
fn the_agents_death_is_the_end_of_everything() {
    let Some(labs) = Labs::new("the_agents_death_is_the_end_of_everything") else { return };
    a_dead_lab_leaves_nothing(&labs, |labs| pid(&labs.status()["agent_pid"]));
}

#[test]
fn a_dead_lab_is_in_nobodys_way() {
    let Some(labs) = Labs::new("a_dead_lab_is_in_nobodys_way") else { return };
    let kill_it = |lab: &str| {
        send(pid1(&labs, lab), Signal::SIGKILL);
        labs.assert_nothing_lives();
    };
    labs.expect(0, ["up", "direct", "--name", "first"]);
    kill_it("first");
    // The next one to go up clears it.
    labs.expect(0, ["up", "direct", "--name", "second"]);
    assert_eq!(labs.remains(), ["second"]);
    kill_it("second");
    labs.expect(0, ["up", "direct", "--name", "third"]);
    labs.expect(0, ["up", "direct", "--name", "fourth"]);
    send(pid1(&labs, "third"), Signal::SIGKILL);
    wait_for("the end of the third lab", || {
        let lock = fs::File::open(labs.lab("third").join("lock")).unwrap();
        lock.try_lock_shared().is_ok().then_some(())
    });
    labs.expect(0, ["exec", "client", "--", "true"]);
    let text = labs.expect(0, ["down"]);
    assert!(text.contains("lab third was dead") && text.contains("lab fourth is down"), "{text}");
    assert!(labs.remains().is_empty());
}

#[test]
fn the_death_of_pid_1_is_the_end_of_everything() {
    let Some(labs) = Labs::as_user("the_death_of_pid_1_is_the_end_of_everything") else { return };
    a_dead_lab_leaves_nothing(&labs, |labs| pid1(labs, "wan-10g"));
}

#[test]
fn whoever_is_killed_while_the_lab_goes_up_leaves_nothing() {
    let Some(labs) = Labs::new("whoever_is_killed_while_the_lab_goes_up_leaves_nothing") else { return };
    // Killed as soon as each of these can be seen.
    for stage in ["launch", "lock", "plan.json", "agent.log", "hosts", "agent.sock"] {
        for kill_all in [false, true] {
            let mut up = labs.testbed().args(["up", "wan-10g"]).stdout(Stdio::null()).spawn().unwrap();
            let file = labs.lab("wan-10g").join(stage);
            wait_for(stage, || (file.exists() || up.try_wait().unwrap().is_some()).then_some(()));
            let _ = up.kill();
            if kill_all {
                for pid in labs.processes() {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
            let status = up.wait().unwrap();
            if !status.success() && labs.expect(0, ["status"]).contains("agent ") {
                // It had let the lab go a moment before its end, or the lab is dead as well.
                labs.expect(0, ["down"]);
            }
            if !status.success() {
                labs.assert_nothing_lives();
            }
            labs.expect(0, ["up", "wan-10g", "-q"]);
            labs.expect(0, ["exec", "client", "--", "true"]);
            labs.expect(0, ["down"]);
            labs.assert_nothing_lives();
            assert!(labs.remains().is_empty());
        }
    }
}

#[test]
fn signals_to_the_agent_take_the_lab_down() {
    let Some(labs) = Labs::new("signals_to_the_agent_take_the_lab_down") else { return };
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        for to_pid1 in [false, true] {
            labs.expect(0, ["up", "direct"]);
            send(if to_pid1 { pid1(&labs, "direct") } else { pid(&labs.status()["agent_pid"]) }, signal);
            labs.assert_nothing_lives();
            assert!(labs.remains().is_empty(), "{signal} to_pid1={to_pid1}");
        }
    }
}

#[test]
fn an_agent_that_hangs_is_killed() {
    let Some(labs) = Labs::new("an_agent_that_hangs_is_killed") else { return };
    labs.expect(0, ["up", "direct"]);
    send(pid(&labs.status()["agent_pid"]), Signal::SIGSTOP);
    let text = labs.expect(1, ["up", "direct", "--timeout", "0.2"]);
    assert!(text.contains("was not ready within"), "{text}");
    let text = labs.expect(0, ["down", "--timeout", "0.2"]);
    assert!(text.contains("was killed"), "{text}");
    labs.assert_nothing_lives();
}

#[test]
fn down_asks_commands_to_end_before_it_insists() {
    let Some(labs) = Labs::new("down_asks_commands_to_end_before_it_insists") else { return };
    labs.expect(0, ["up", "direct"]);
    let start = |script: &str| {
        let mut command = labs.testbed();
        let command = command.args(["exec", "client", "--", "sh", "-c", script]);
        let mut command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        command.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
        command
    };
    let mut polite = start("trap 'echo goodbye; exit 0' TERM; echo on; while :; do read line; done");
    let mut stubborn = start("trap '' TERM; echo on; while :; do read line; done");
    labs.expect(0, ["down"]);
    let mut said = String::new();
    polite.stdout.as_mut().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "goodbye\n");
    assert_eq!(polite.wait().unwrap().code(), Some(0));
    assert_eq!(stubborn.wait().unwrap().code(), Some(128 + 9));
}

#[test]
fn a_capture_holds_the_frames_of_a_link() {
    let Some(labs) = Labs::new("a_capture_holds_the_frames_of_a_link") else { return };
    labs.expect(0, ["up", "wan-10g"]);
    let file = labs.path("ping.pcapng");
    labs.expect(0, ["capture", "start", "wan", "-w", file.to_str().unwrap()]);
    labs.expect(0, ["exec", "client", "--", "ping", "-c2", "-i0.1", "server"]);
    let stopped: Value = serde_json::from_str(&labs.expect(0, ["capture", "stop", "wan", "--json"])).unwrap();
    assert!(stopped["frames"].as_u64().unwrap() >= 4 && stopped["dropped"] == 0, "{stopped}");
    assert!(fs::read(&file).unwrap().starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]));
    labs.expect(2, ["capture", "start", "no-such-link", "-w", file.to_str().unwrap()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lab_ends_with_whoever_holds_it() {
    let Some(labs) = Labs::new("a_lab_ends_with_whoever_holds_it") else { return };
    let plan = testbed::topology::load("direct").unwrap();
    let up = host::up(&"direct".parse().unwrap(), &plan, &labs.options()).await.unwrap();
    let lab = up.client.lab().clone();
    up.client.status().await.unwrap();
    drop(up);
    labs.assert_nothing_lives();
    assert!(!lab.exists());
    assert!(matches!(Client::new(lab).status().await, Err(ClientError::NotUp { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_handle_is_all_that_a_test_needs() {
    if Labs::new("the_handle_is_all_that_a_test_needs").is_none() {
        return;
    }
    let lab = testbed::LabHandle::up("direct").await.unwrap();
    let outputs = lab.exec("client", ["sh", "-c", "hostname; exit 3"]).await.unwrap();
    assert_eq!((outputs.exit, &outputs.stdout[..]), (Exit::Code(3), &b"client\n"[..]));
    let directory = lab.client().lab().clone();
    lab.down().await.unwrap();
    assert!(!directory.exists());
}

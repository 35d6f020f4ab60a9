//! Commands in hosts: exit codes, streams, signals, and what they do not inherit.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::Stdio;

use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testbed::agent::client::Command;
use testbed::agent::protocol::{Exit, INPUT_WINDOW};
use testbed::guest::host;
use tokio::io::AsyncReadExt as _;

use super::support::{Labs, wait_for};

#[test]
fn commands_inherit_nothing_from_whoever_brought_the_lab_up() {
    let Some(labs) = Labs::new("commands_inherit_nothing_from_whoever_brought_the_lab_up") else { return };
    let script = "exec 9>\"$TESTBED_RUNTIME_DIR.open\"; trap '' HUP INT; exec \"$0\" \"$@\"";
    let up = labs.command(&["sh", "-c", script]).args(["up", "direct"]).output().unwrap();
    assert!(up.status.success(), "{up:?}");
    let agent = labs.status()["agent_pid"].as_i64().unwrap();
    let files = fs::read_dir(format!("/proc/{agent}/fd")).unwrap().flatten();
    let files: Vec<_> = files.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    assert!(!files.iter().any(|file| file.to_string_lossy().ends_with(".open")), "{files:?}");
    // 3 is the directory that ls reads.
    assert_eq!(labs.expect(0, ["exec", "client", "--", "ls", "/proc/self/fd"]), "0\n1\n2\n3\n");
    let signals =
        labs.expect(0, ["exec", "client", "--", "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]);
    for line in signals.lines() {
        let mask = u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap();
        // Signals from 32 on are the C library's own, which it lets nobody set.
        assert_eq!(mask & 0x7fff_ffff, 0, "{signals}");
    }
}

#[test]
fn exit_codes_are_passed_on() {
    let Some(labs) = Labs::new("exit_codes_are_passed_on") else { return };
    labs.expect(0, ["up", "direct"]);
    let sh = |code, script: &str| labs.expect(code, ["exec", "client", "--", "sh", "-c", script]);
    sh(0, "exit 0");
    sh(7, "exit 7");
    sh(255, "exit 255");
    sh(128 + 9, "kill -KILL $$");
    sh(128 + 15, "kill -TERM $$");
    let text = labs.expect(127, ["exec", "client", "--", "no-such-program"]);
    assert!(text.contains("`no-such-program` was not found in PATH"), "{text}");
    labs.expect(126, ["exec", "client", "--", "/etc/hosts"]);
    labs.expect(126, ["exec", "client", "--", "/etc"]);
    let text = labs.expect(2, ["exec", "nobody", "--", "true"]);
    assert!(text.contains("no host `nobody`") && text.contains("server, client"), "{text}");
    let text = labs.expect(0, ["exec", "-e", "GREETING=hello", "client", "sh", "-c", "echo $GREETING"]);
    assert_eq!(text, "hello\n");
}

#[test]
fn streams_are_carried_as_they_are() {
    let Some(labs) = Labs::new("streams_are_carried_as_they_are") else { return };
    labs.expect(0, ["up", "direct"]);
    let data: Vec<u8> = (0..8u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut cat = labs.testbed();
    let cat = cat.args(["exec", "client", "--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut cat = cat.spawn().unwrap();
    let mut stdin = cat.stdin.take().unwrap();
    let written = data.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&written).unwrap());
    let output = cat.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    assert!(output.stdout == data, "{} bytes came back, or others", output.stdout.len());

    let output = labs.run(["exec", "client", "--", "sh", "-c", "echo to out; echo to err >&2"]);
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"to out\n"[..], &b"to err\n"[..]));

    // What is left behind with the streams open does not hold the command up.
    let text = labs.expect(0, ["exec", "client", "--", "sh", "-c", "sleep 1000 & echo done"]);
    assert_eq!(text, "done\n");
}

#[test]
fn signals_are_passed_on_to_the_command() {
    let Some(labs) = Labs::new("signals_are_passed_on_to_the_command") else { return };
    labs.expect(0, ["up", "direct"]);
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        let script = "trap 'exit 42' INT TERM HUP QUIT; echo on; while :; do read line; done";
        let mut command = labs.testbed();
        let command = command.args(["exec", "client", "--", "sh", "-c", script]);
        let mut command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        command.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
        kill(Pid::from_raw(i32::try_from(command.id()).unwrap()), signal).unwrap();
        assert_eq!(command.wait().unwrap().code(), Some(42), "{signal}");
    }
}

#[test]
fn a_client_that_is_killed_takes_its_command_along() {
    let Some(labs) = Labs::new("a_client_that_is_killed_takes_its_command_along") else { return };
    labs.expect(0, ["up", "direct"]);
    let mut command = labs.testbed();
    let command =
        command.args(["exec", "client", "--", "sh", "-c", "sleep 1000 & trap '' TERM; echo on; wait; wait"]);
    let mut client = command.stdout(Stdio::piped()).spawn().unwrap();
    client.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    assert_eq!(labs.status()["hosts"][1]["commands"], 1);
    client.kill().unwrap();
    client.wait().unwrap();
    wait_for("the command's end", || (labs.status()["hosts"][1]["commands"] == 0).then_some(()));
    wait_for("the end of what it left in the background", || {
        let comm = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        (!labs.processes().into_iter().any(|pid| comm(pid) == "sleep\n")).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_reader_stalls_the_command_and_nothing_grows() {
    const BYTES: u64 = 256 << 20;
    let Some(labs) = Labs::new("a_stalled_reader_stalls_the_command_and_nothing_grows") else { return };
    let plan = testbed::topology::load("direct").unwrap();
    let up = host::up(&"direct".parse().unwrap(), &plan, &labs.options()).await.unwrap();
    let memory = || {
        let status = fs::read_to_string(format!("/proc/{}/status", up.status.agent_pid)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    };
    let before = memory();
    let command = Command::new("client", "head").args(["-c", &BYTES.to_string(), "/dev/zero"]);
    let mut running = up.client.exec(command).await.unwrap();
    let mut stdout = running.stdout.take().unwrap();
    running.stderr = None;
    // Once the command waits for its pipe to be read, everything between it and us is full.
    let head = wait_for("the command to stall", || {
        labs.processes().into_iter().find(|pid| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let waits = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
            // write(1, …)
            comm == "head\n" && waits.starts_with("1 0x1 ")
        })
    });
    assert!(head > 0);
    assert!(memory() < before + (64 << 20), "{} -> {}", before, memory());
    // Nothing was lost meanwhile.
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match stdout.read(&mut buffer).await.unwrap() {
            0 => break,
            n => total += n as u64,
        }
    }
    assert_eq!(total, BYTES);
    assert_eq!(running.wait().await.unwrap(), Exit::Code(0));
    assert!(memory() < before + (64 << 20), "{} -> {}", before, memory());
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_nobody_reads_does_not_hold_signals_up() {
    let Some(labs) = Labs::new("input_that_nobody_reads_does_not_hold_signals_up") else { return };
    let plan = testbed::topology::load("direct").unwrap();
    let up = host::up(&"direct".parse().unwrap(), &plan, &labs.options()).await.unwrap();
    let mut running = up.client.exec(Command::new("client", "sleep").arg("1000")).await.unwrap();
    let mut stdin = running.stdin.take().unwrap();
    // As much as may be under way, and then more than any pipe takes.
    stdin.write(Bytes::from(vec![0; INPUT_WINDOW])).await.unwrap();
    let writer = tokio::spawn(async move { stdin.write(Bytes::from(vec![0; INPUT_WINDOW])).await });
    running.signal(Signal::SIGINT as i32).await;
    assert_eq!(running.wait().await.unwrap(), Exit::Signal(Signal::SIGINT as i32));
    // Whether the rest went nowhere or was refused depends on when the command's end was seen; it ends either way.
    let _ = writer.await.unwrap();
}

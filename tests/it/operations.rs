//! rdma-httpd as something that is operated: its settings, its log, its figures, its documents.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::program::{command, fetch, have, run, text};

const HTTPD: &str = env!("CARGO_BIN_EXE_rdma-httpd");

#[test]
fn settings_come_from_flag_variable_file_default_in_that_order() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("httpd.toml");
    std::fs::write(
        &file,
        "root = \"/srv\"\nwindow = 3\nchunk-size = \"64K\"\ncrc = \"off\"\nallow-upload = true\n\
         allow-rdma-to = [\"10.0.0.0/8\", \"fd00::1\"]\n",
    )
    .unwrap();
    let mut httpd = command(HTTPD);
    httpd.arg("--config").arg(&file).args(["--chunk-size", "32K", "--print-config"]);
    // Both programs have RDMA_MEMORY; rdma-httpd's own goes before it.
    httpd.env("RDMA_HTTPD_WINDOW", "5").env("RDMA_MEMORY", "cache").env("RDMA_HTTPD_MEMORY", "static");
    let output = run(&mut httpd);
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{printed}");
    let file = file.display();
    for line in [
        &format!("root = \"/srv\" # {file}:1"),
        "window = \"5\" # RDMA_HTTPD_WINDOW",
        "chunk-size = \"32K\" # --chunk-size",
        &format!("crc = \"off\" # {file}:4"),
        &format!("allow-upload = \"true\" # {file}:5"),
        &format!("allow-rdma-to = [\"10.0.0.0/8\", \"fd00::1\"] # {file}:6"),
        "memory = \"static\" # RDMA_HTTPD_MEMORY",
        "listen = \"127.0.0.1:8080\" # default",
        "# metrics is not set",
    ] {
        assert!(printed.lines().any(|have| have == line), "{line} is not in\n{printed}");
    }

    // What was printed is a file that says the same.
    let again = directory.path().join("again.toml");
    std::fs::write(&again, &printed).unwrap();
    let output = run(command(HTTPD).arg("--config").arg(&again).arg("--print-config"));
    let values = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split(" # ").next().unwrap().to_owned()).collect()
    };
    assert_eq!(values(&String::from_utf8(output.stdout).unwrap()), values(&printed));
    // And a flag can take back what the file says.
    let output =
        run(command(HTTPD).arg("--config").arg(&again).args(["--allow-upload=false", "--print-config"]));
    assert!(
        String::from_utf8(output.stdout).unwrap().contains("allow-upload = \"false\" # --allow-upload\n")
    );
}

#[test]
fn a_mistake_in_the_file_is_shown_where_it_is() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for (text, message) in [
        (
            "root = \"/\"\n\nmax_registered = \"1G\"\n",
            ":3: there is no setting `max_registered`; did you mean `max-registered`?",
        ),
        ("root = \"/\"\nwindow = 0\n", ":2: invalid value '0' for '--window <N>'"),
        ("root = \"/\"\nmemory = \"dynamc\"\n", ":2: invalid value 'dynamc' for '--memory <MEMORY>'"),
        ("root = [1\n", ":"),
    ] {
        std::fs::write(file.path(), text).unwrap();
        let output = run(command(HTTPD).arg("--config").arg(file.path()));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}: {stderr}");
        let place = format!("rdma-httpd: {}{message}", file.path().display());
        assert!(stderr.starts_with(&place), "{text}: {stderr}");
    }
}

#[test]
fn figures_and_log_tell_of_each_transfer() {
    if !have("curl", "figures_and_log_tell_of_each_transfer") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("body.bin"), vec![7; 300_000]).unwrap();
    let mut httpd = command(HTTPD);
    httpd.arg("--root").arg(directory.path()).args(["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
    httpd.args(["--log", "rdma_http::server=info", "--log-format", "json"]);
    let mut child = httpd.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line = || lines.next().unwrap().unwrap();
    let url = line().strip_prefix("listening on ").unwrap().to_owned();
    let figures = line().strip_prefix("figures at ").unwrap().to_owned();

    let fetched = fetch(&format!("{url}body.bin"), &["--require-rdma", "--mode", "server-writes"]);
    assert_eq!(fetched.code, Some(0), "{}", fetched.stderr);
    let fetched = fetch(&format!("{url}missing"), &["--mode", "server-writes"]);
    assert_eq!(fetched.code, Some(0), "{}", fetched.stderr);

    let answer = run(command("curl").args(["--silent", "--include", "--max-time", "60", &figures]));
    let answer = String::from_utf8(answer.stdout).unwrap();
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(answer.contains(kind), "{answer}");
    for line in [
        "rdma_http_transfers_total{mode=\"server-writes\",result=\"done\"} 1",
        "rdma_http_transferred_bytes_total{mode=\"server-writes\"} 300000",
        "rdma_http_fallbacks_total{reason=\"status\"} 1",
        "rdma_http_responses_total{status=\"200\"} 1",
        "rdma_http_responses_total{status=\"404\"} 1",
        "rdma_http_http_connections_accepted_total 2",
        "rdma_http_transfers_under_way 0",
        "rdma_http_rdma_connections_made_total 1",
        "rdma_http_registered_bytes 0",
        "rdma_http_regions 0",
        "rdma_http_registered_limit_bytes 1073741824",
        "rdma_http_registered_peer_limit_bytes 268435456",
    ] {
        assert!(answer.lines().any(|have| have == line), "{line} is not in\n{answer}");
    }

    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    let log = text(child.stderr.take().unwrap());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let log: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ended: Vec<&Value> = log.iter().filter(|line| line["message"] == "transfer ended").collect();
    let [ended] = ended[..] else { panic!("{log:#?}") };
    let span = &ended["span"];
    assert_eq!(span["name"], "transfer");
    assert_eq!(
        (&span["mode"], &span["result"], &span["connect"]),
        (&"server-writes".into(), &"done".into(), &"server".into())
    );
    assert_eq!((&span["bytes"], &span["moved"]), (&300_000.into(), &300_000.into()));
    assert!(span["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{span}");
    assert_eq!(span["id"].as_str().unwrap().len(), 32, "{span}");
    let by_tcp: Vec<&Value> = log.iter().filter_map(|line| line.get("reason")).collect();
    assert_eq!(by_tcp, ["status"]);
}

/// A certificate and its key may each come from a flag, a variable or the file, but not one of them alone.
#[test]
fn a_certificate_wants_a_key_wherever_each_comes_from() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let printed = |text: &str, flags: &[&str], variables: &[(&str, &str)]| {
        std::fs::write(file.path(), format!("root = \"/\"\n{text}")).unwrap();
        let mut httpd = command(HTTPD);
        httpd.arg("--config").arg(file.path()).args(flags).arg("--print-config");
        let output = run(httpd.envs(variables.iter().copied()));
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (cert, key) = ("tls-cert = \"cert.pem\"\n", "tls-key = \"key.pem\"\n");
    let cert_variable = ("RDMA_HTTPD_TLS_CERT", "cert.pem");
    let key_variable = ("RDMA_HTTPD_TLS_KEY", "key.pem");
    for (text, flags, variables) in [
        (key, &["--tls-cert", "cert.pem"][..], &[][..]),
        (cert, &["--tls-key", "key.pem"], &[]),
        (key, &[], &[cert_variable]),
        ("", &["--tls-cert", "cert.pem"], &[key_variable]),
        ("", &[], &[cert_variable, key_variable]),
        (&[cert, key].concat(), &[], &[]),
    ] {
        assert_eq!(
            printed(text, flags, variables),
            (Some(0), String::new()),
            "{text} {flags:?} {variables:?}"
        );
    }
    let no_key = "rdma-httpd: --tls-cert without --tls-key: https takes both\n";
    let no_cert = "rdma-httpd: --tls-key without --tls-cert: https takes both\n";
    for (text, flags, variables, message) in [
        (cert, &[][..], &[][..], no_key),
        ("", &["--tls-cert", "cert.pem"], &[], no_key),
        ("", &["--tls-key", "key.pem"], &[], no_cert),
        (key, &[], &[], no_cert),
        ("", &[], &[key_variable], no_cert),
    ] {
        assert_eq!(printed(text, flags, variables), (Some(2), message.to_owned()), "{text} {flags:?}");
    }
}

#[test]
fn documents_need_nothing_else() {
    for (program, flag) in [(HTTPD, "--max-registered"), (env!("CARGO_BIN_EXE_rdma-fetch"), "--require-rdma")]
    {
        let man = run(command(program).arg("--man"));
        assert!(man.status.success(), "{man:?}");
        let man = String::from_utf8(man.stdout).unwrap();
        assert!(man.contains(".TH rdma-") && man.contains(&flag.replace('-', "\\-")), "{man}");
        for shell in ["bash", "zsh", "fish"] {
            let script = run(command(program).args(["--completions", shell]));
            assert!(script.status.success(), "{script:?}");
            let name = flag.trim_start_matches('-');
            assert!(String::from_utf8(script.stdout).unwrap().contains(name), "{program} {shell}");
        }
        assert_eq!(run(command(program).args(["--completions", "none"])).status.code(), Some(2));
    }
}

#[test]
fn it_may_have_as_many_descriptors_as_it_can_and_says_if_those_are_too_few() {
    let directory = tempfile::tempdir().unwrap();
    let start = |hard: u32, connections: &str| {
        let mut shell = command("sh");
        let limits = format!("ulimit -Sn 200 && ulimit -Hn {hard} && exec \"$0\" \"$@\"");
        shell.args([
            "-c",
            &limits,
            HTTPD,
            "--listen",
            "127.0.0.1:0",
            "--max-connections",
            connections,
            "--root",
        ]);
        let mut server =
            shell.arg(directory.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("http://"), "{line}");
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.id())).unwrap();
        let open = limits.lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned();
        kill(Pid::from_raw(server.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        let output = server.wait_with_output().unwrap();
        (open.split_whitespace().nth(3).unwrap().to_owned(), text(&output.stderr[..]))
    };
    let (open, log) = start(900, "100");
    assert_eq!((open.as_str(), log.contains("descriptors")), ("900", false), "{log}");
    let (open, log) = start(300, "100");
    assert_eq!(open, "300");
    assert!(log.contains("only 300 descriptors may be open") && log.contains("--max-connections"), "{log}");
}

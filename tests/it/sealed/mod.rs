//! https: the body that goes by RDMA beside it is sealed, and whoever stands on the way can neither read nor change it.

mod between;

use std::path::Path;

use crate::program::{
    Fetched, Httpd, assert_no_leak, command, failures, fallbacks, fetch, have, pattern, read_events,
    received, run,
};
use between::{Between, Doing};

const MIB: usize = 1 << 20;

/// A certificate for 127.0.0.1 that vouches for itself, and its key.
struct Identity {
    directory: tempfile::TempDir,
}

impl Identity {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let made =
            rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        std::fs::write(directory.path().join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(directory.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn serve(&self, args: &[&str]) -> Httpd {
        let (cert, key) = (self.path("cert.pem"), self.path("key.pem"));
        Httpd::start(&[&["--tls-cert", &cert, "--tls-key", &key], args].concat())
    }

    fn fetch(&self, httpd: &Httpd, path: &str, args: &[&str]) -> Fetched {
        fetch(&url(httpd, path), &[&["--cacert", &self.path("cert.pem")], args].concat())
    }

    /// Sends `file`; the exit code and standard error.
    fn send(&self, httpd: &Httpd, file: &Path, args: &[&str]) -> (Option<i32>, String) {
        let events = tempfile::NamedTempFile::new().unwrap();
        let output = run(command(env!("CARGO_BIN_EXE_rdma-fetch"))
            .arg(url(httpd, "/up.bin"))
            .args(["--cacert", &self.path("cert.pem"), "-o", "/dev/null", "--fail", "--upload-file"])
            .arg(file)
            .arg("--events")
            .arg(events.path())
            .args(args));
        assert_no_leak(&read_events(events.path()));
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

fn url(httpd: &Httpd, path: &str) -> String {
    format!("https://{}{path}", httpd.address)
}

#[test]
fn bodies_go_sealed_in_every_mode_and_way_and_memory() {
    let identity = Identity::new();
    let source = tempfile::NamedTempFile::new().unwrap();
    for memory in ["dynamic", "static", "sendfile"] {
        let httpd = identity.serve(&["--allow-upload", "--rdma-listen", "127.0.0.1:0", "--memory", memory]);
        for connect in ["server", "client"] {
            for length in [1, 16_384, 3 * MIB + 5] {
                let body = httpd.file("body.bin", length);
                for (mode, maxlen) in
                    [("server-writes", "64MiB"), ("server-writes", "1000001"), ("client-reads", "1")]
                {
                    let what =
                        format!("{memory}, {connect} connects, {length} bytes, {mode} within {maxlen}");
                    let args = ["--mode", mode, "--maxlen", maxlen, "--connect", connect, "--require-rdma"];
                    let got = identity.fetch(&httpd, "/body.bin", &args);
                    assert_eq!(got.code, Some(0), "{what}: {}", got.stderr);
                    assert!(got.body.as_deref() == Some(&body[..]), "{what}: another body");
                    assert_eq!(received(&got.events), [("rdma", length as u64)], "{what}");
                    assert_eq!(assert_no_leak(&got.events).1, 1, "{what}");
                }
                let body = pattern(length + 1);
                std::fs::write(source.path(), &body).unwrap();
                for mode in ["client-writes", "server-reads"] {
                    let what = format!("{memory}, {connect} connects, {length} bytes, {mode}");
                    let args = ["--mode", mode, "--connect", connect, "--memory", memory, "--require-rdma"];
                    let (code, stderr) = identity.send(&httpd, source.path(), &args);
                    assert_eq!(code, Some(0), "{what}: {stderr}");
                    let there = std::fs::read(httpd.directory.path().join("up.bin")).unwrap();
                    assert!(there == body, "{what}: another body");
                }
            }
        }
        let events = httpd.stop();
        assert_eq!(fallbacks(&events), Vec::<&str>::new(), "{memory}");
        assert_no_leak(&events);
    }
}

#[test]
fn a_part_of_a_file_goes_sealed() {
    let identity = Identity::new();
    let httpd = identity.serve(&[]);
    let body = httpd.file("body.bin", 100_000);
    let got = identity.fetch(&httpd, "/body.bin", &["--range", "20000-69999", "--require-rdma"]);
    assert_eq!(got.code, Some(0), "{}", got.stderr);
    assert!(got.body.as_deref() == Some(&body[20_000..70_000]));
}

/// The arguments that lead the RDMA connection past somebody.
fn past(between: &Between) -> Vec<String> {
    let args = [
        "--connect",
        "server",
        "--crc",
        "off",
        "--rdma-listen",
        &format!("127.0.0.1:{}", between.address.port()),
        "--advertise",
        &between.address.to_string(),
        "--timeout",
        "20",
    ];
    args.map(str::to_owned).to_vec()
}

const SERVER: [&str; 5] = ["--crc", "off", "--allow-rdma-to", "127.0.0.2", "--allow-upload"];

#[test]
fn whoever_changes_a_download_on_its_way_is_noticed() {
    let identity = Identity::new();
    let httpd = identity.serve(&SERVER);
    // Long enough for a few segments, and for the next attempt's to be as long.
    let body = httpd.file("body.bin", 1_500_000);
    for doing in Doing::ALL {
        // With a smaller region what is sent round and round comes in runs of one or two segments.
        for maxlen in ["64MiB", "1MiB"] {
            let between = Between::start(doing);
            let path = past(&between);
            let args: Vec<&str> = path.iter().map(String::as_str).chain(["--maxlen", maxlen]).collect();
            // What is replayed must have come before.
            let honest = [Doing::Nothing, Doing::Replay].contains(&doing);
            let got = identity.fetch(&httpd, "/body.bin", &args);
            if honest {
                assert_eq!(got.code, Some(0), "{doing:?}: {}", got.stderr);
                assert!(got.body.as_deref() == Some(&body[..]));
                let seen = between.seen();
                assert!(seen.len() >= body.len(), "only {} bytes went that way", seen.len());
                // Plain, this would be there as it is.
                assert!(!seen.windows(64).any(|window| window == &body[5000..5064]), "it went in the clear");
            }
            if doing == Doing::Nothing {
                continue;
            }
            let got = if honest { identity.fetch(&httpd, "/body.bin", &args) } else { got };
            assert!(between.did(), "{doing:?}: nothing was done");
            // What never came is missed before anything is opened.
            let (code, words) = match doing {
                Doing::LeaveOut | Doing::Cut => (8, "and not all of them are"),
                _ => (18, "does not open at byte"),
            };
            assert_eq!(got.code, Some(code), "{doing:?} within {maxlen}: {}", got.stderr);
            assert!(got.stderr.contains(words), "{doing:?} within {maxlen}: {}", got.stderr);
            assert!(got.files().is_empty(), "{doing:?} within {maxlen}");
            assert_no_leak(&got.events);
        }
    }
    assert_no_leak(&httpd.stop());
}

#[test]
fn whoever_changes_an_upload_on_its_way_is_noticed() {
    let identity = Identity::new();
    let httpd = identity.serve(&SERVER);
    let source = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(source.path(), pattern(400_000)).unwrap();
    for doing in [Doing::Flip, Doing::Swap, Doing::Repeat, Doing::LeaveOut] {
        let between = Between::start(doing);
        let path = past(&between);
        let post = ["-X", "POST", "--mode", "client-writes"];
        let args: Vec<&str> = path.iter().map(String::as_str).chain(post).collect();
        let (code, stderr) = identity.send(&httpd, source.path(), &args);
        assert!(between.did(), "{doing:?}: nothing was done");
        assert_eq!(code, Some(18), "{doing:?}: {stderr}");
        let reason = if doing == Doing::LeaveOut { "connection-lost" } else { "seal-broken" };
        assert!(stderr.contains(reason), "{doing:?}: {stderr}");
    }
    let (events, directory) = httpd.stop_and_keep();
    assert_eq!(directory.path().read_dir().unwrap().count(), 0);
    assert_eq!(failures(&events).len(), 4);
    assert_no_leak(&events);
}

#[test]
fn a_body_that_is_cut_short_on_its_way_is_noticed() {
    let identity = Identity::new();
    let httpd = identity.serve(&SERVER);
    httpd.file("body.bin", 1_500_000);
    let source = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(source.path(), pattern(400_000)).unwrap();
    let mut broken = 0;
    for (mode, doing, wanted, why) in [
        ("server-writes", Doing::Cut, 8, "and not all of them are"),
        // It would be a shorter body, if its length were not in the head.
        ("server-writes", Doing::CutAndTell, 8, "the server broke the protocol: it sent Done"),
        ("client-reads", Doing::CutRead, 18, "RDMA connection was lost"),
        ("client-writes", Doing::Cut, 18, "connection-lost"),
        ("client-writes", Doing::CutAndTell, 18, "connection-lost"),
        ("server-reads", Doing::CutRead, 18, "connection-lost"),
    ] {
        let between = Between::start(doing);
        let path = past(&between);
        let args: Vec<&str> = path.iter().map(String::as_str).chain(["--mode", mode]).collect();
        let (code, stderr) = if ["client-writes", "server-reads"].contains(&mode) {
            broken += 1;
            identity.send(&httpd, source.path(), &[&args[..], &["-X", "POST"]].concat())
        } else {
            let got = identity.fetch(&httpd, "/body.bin", &args);
            assert!(got.files().is_empty(), "{mode}, {doing:?}");
            assert_no_leak(&got.events);
            (got.code, got.stderr)
        };
        assert!(between.did(), "{mode}, {doing:?}: nothing was done");
        assert_eq!(code, Some(wanted), "{mode}, {doing:?}: {stderr}");
        assert!(stderr.contains(why), "{mode}, {doing:?}: {stderr}");
    }
    let (events, directory) = httpd.stop_and_keep();
    let there: Vec<_> =
        directory.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(there, ["body.bin"]);
    assert!(failures(&events).len() >= broken, "{events:#?}");
    assert_no_leak(&events);
}

#[test]
fn https_is_what_others_take_it_for() {
    let name = "https_is_what_others_take_it_for";
    let identity = Identity::new();
    let httpd = identity.serve(&[]);
    let body = httpd.file("body.bin", 300_000);
    if have("curl", name) {
        let curl = |args: &[&str]| {
            run(command("curl")
                .args(["--silent", "--show-error", "--max-time", "60", "--cacert"])
                .arg(identity.path("cert.pem"))
                .args(args))
        };
        let whole = curl(&[&url(&httpd, "/body.bin")]);
        assert!(whole.stdout == body, "{:?}", String::from_utf8_lossy(&whole.stderr));
        // TLS before 1.3 has no exporter that is bound to all of the handshake, an offer in the clear is none, and what has
        // TLS stays HTTP's connection.
        let plain = Httpd::start(&[]);
        plain.file("body.bin", 300_000);
        let to_port = "ip=127.0.0.1, port=9999";
        for (at, way, seal, tls, reason) in [
            (url(&httpd, "/body.bin"), to_port, ", seal=0", "1.2", "unsealed"),
            (url(&httpd, "/body.bin"), to_port, "", "1.3", "unsealed"),
            (plain.url("/body.bin"), to_port, ", seal=0", "1.3", "unsealed"),
            (url(&httpd, "/body.bin"), "connect=in-place", ", seal=0", "1.3", "not-connected"),
        ] {
            let field =
                format!("RDMA: server-writes, {way}, stag=1, to=0, maxlen=1000000, id={:032x}{seal}", 7);
            let answer = curl(&["-i", "--tls-max", tls, "-H", &field, &at]);
            let text = String::from_utf8_lossy(&answer.stdout).into_owned();
            assert!(text.contains(&format!("rdma: fallback, reason={reason}\r\n")), "{field}: {text:.300}");
            assert!(answer.stdout.ends_with(&body), "{field}: another body");
        }
    }
    let got = identity.fetch(&httpd, "/body.bin", &["--connect", "in-place"]);
    assert_eq!(got.code, Some(0), "{}", got.stderr);
    assert_eq!(received(&got.events), [("tcp", 300_000)]);
    assert!(got.body.as_deref() == Some(&body[..]));
    // Whoever does not trust the server gets nothing from it, and says why.
    let got = fetch(&url(&httpd, "/body.bin"), &[]);
    assert_eq!(got.code, Some(35), "{}", got.stderr);
    assert!(got.stderr.contains("certificate"), "{}", got.stderr);
    // Nor is TLS spoken to who has none.
    let plain = Httpd::start(&[]);
    let got = identity.fetch(&plain, "/body.bin", &[]);
    assert_eq!(got.code, Some(35), "{}", got.stderr);
    drop(plain);
    assert_no_leak(&httpd.stop());
}

#[test]
fn files_that_make_no_sense_are_named() {
    let identity = Identity::new();
    let missing = identity.path("none.pem");
    std::fs::write(identity.path("empty.pem"), "nothing here\n").unwrap();
    let (cert, key, empty) =
        (identity.path("cert.pem"), identity.path("key.pem"), identity.path("empty.pem"));
    for (cert, key, named) in [(&missing, &key, &missing), (&empty, &key, &empty), (&cert, &empty, &empty)] {
        let output = run(command(env!("CARGO_BIN_EXE_rdma-httpd")).args([
            "--root",
            "/",
            "--listen",
            "127.0.0.1:0",
            "--tls-cert",
            cert,
            "--tls-key",
            key,
        ]));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(named.as_str()), "{stderr}");
    }
    let got = fetch("https://127.0.0.1:1/", &["--cacert", &empty]);
    assert_eq!(got.code, Some(77), "{}", got.stderr);
    assert!(got.stderr.contains(&empty), "{}", got.stderr);
}

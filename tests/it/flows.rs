//! The four flows, with every way of connecting and of registering memory.

use std::os::unix::fs::FileExt as _;

use rdma_http::events::Event;

use crate::program::{
    Httpd, assert_no_leak, command, fallbacks, fetch, operations, pattern, read_events, received, run, sha256,
};

const MIB: usize = 1 << 20;

/// How a cell of the table is asked for: what the server and the client are told.
fn ways() -> Vec<(&'static str, Vec<&'static str>, Vec<&'static str>)> {
    vec![
        ("server connects", vec![], vec!["--connect", "server"]),
        ("client connects", vec!["--rdma-listen", "127.0.0.1:0"], vec!["--connect", "client"]),
        ("in place", vec![], vec!["--connect", "in-place"]),
    ]
}

const MEMORY: [&str; 4] = ["dynamic", "static", "cache", "sendfile"];

#[test]
fn every_download_arrives() {
    for (way, server, client) in ways() {
        for memory in MEMORY {
            let memory_args = ["--memory", memory];
            let httpd = Httpd::start(&[&server[..], &memory_args].concat());
            for length in [1, MIB, 5 * MIB + 3] {
                let body = httpd.file("body.bin", length);
                for mode in ["server-writes", "client-reads"] {
                    for maxlen in ["64MiB", "1MiB", "1000001"] {
                        let what = format!("{way}, {memory}, {length} bytes, {mode} within {maxlen}");
                        let args = ["--mode", mode, "--maxlen", maxlen, "--require-rdma"];
                        let got =
                            fetch(&httpd.url("/body.bin"), &[&client[..], &memory_args, &args].concat());
                        assert_eq!(got.code, Some(0), "{what}: {}", got.stderr);
                        assert!(got.body.as_deref() == Some(&body[..]), "{what}: another body");
                        assert_eq!(received(&got.events), [("rdma", length as u64)], "{what}");
                        assert_eq!(assert_no_leak(&got.events).1, 1, "{what}");
                    }
                }
            }
            let events = httpd.stop();
            assert_eq!(fallbacks(&events), Vec::<&str>::new(), "{way}, {memory}");
            assert_no_leak(&events);
        }
    }
}

/// Sends `file` with these arguments; the exit code, standard error and events.
fn send(url: &str, file: &std::path::Path, args: &[&str]) -> (Option<i32>, String, Vec<Event>) {
    let events = tempfile::NamedTempFile::new().unwrap();
    let output = run(command(env!("CARGO_BIN_EXE_rdma-fetch"))
        .arg(url)
        .arg("--upload-file")
        .arg(file)
        .args(["-o", "/dev/null", "--fail", "--events"])
        .arg(events.path())
        .args(args));
    (output.status.code(), String::from_utf8(output.stderr).unwrap(), read_events(events.path()))
}

fn names(directory: &std::path::Path) -> Vec<String> {
    let entries = directory.read_dir().unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_upload_arrives() {
    let source = tempfile::NamedTempFile::new().unwrap();
    for (way, server, client) in ways() {
        for memory in MEMORY {
            let memory_args = ["--memory", memory];
            let limits = ["--allow-upload", "--chunk-size", "256K", "--window", "4"];
            let httpd = Httpd::start(&[&server[..], &memory_args, &limits].concat());
            for length in [1, MIB, 5 * MIB + 3] {
                let body = pattern(length);
                std::fs::write(source.path(), &body).unwrap();
                for mode in ["client-writes", "server-reads", "auto"] {
                    let what = format!("{way}, {memory}, {length} bytes, {mode}");
                    let args = ["--mode", mode, "--require-rdma"];
                    let (code, stderr, events) = send(
                        &httpd.url("/up.bin"),
                        source.path(),
                        &[&client[..], &memory_args, &args].concat(),
                    );
                    assert_eq!(code, Some(0), "{what}: {stderr}");
                    let arrived = std::fs::read(httpd.directory.path().join("up.bin")).unwrap();
                    assert_eq!(sha256(&arrived), sha256(&body), "{what}");
                    assert_eq!(names(httpd.directory.path()), ["up.bin"], "{what}");
                    assert_eq!(assert_no_leak(&events).1, 1, "{what}");
                }
            }
            let events = httpd.stop();
            assert_eq!(fallbacks(&events), Vec::<&str>::new(), "{way}, {memory}");
            assert_no_leak(&events);
        }
    }
}

#[test]
fn an_upload_goes_by_tcp_where_it_must() {
    let source = tempfile::NamedTempFile::new().unwrap();
    let body = pattern(3 * MIB + 1);
    std::fs::write(source.path(), &body).unwrap();
    let httpd = Httpd::start(&["--allow-upload"]);
    for (args, reasons) in [
        (&["--mode", "plain"][..], &[][..]),
        (&["--mode", "client-reads"], &[]),
        (&["--advertise", "192.0.2.1"], &["address-not-allowed"]),
        (&["--connect", "client"], &["fabric"]),
    ] {
        let (code, stderr, events) = send(&httpd.url("/up.bin"), source.path(), args);
        assert_eq!(code, Some(0), "{args:?}: {stderr}");
        assert_eq!(fallbacks(&events), reasons, "{args:?}");
        let arrived = httpd.directory.path().join("up.bin");
        assert_eq!(sha256(&std::fs::read(&arrived).unwrap()), sha256(&body), "{args:?}");
        std::fs::remove_file(arrived).unwrap();
        assert_no_leak(&events);
    }
    // An empty body needs no RDMA.
    std::fs::write(source.path(), b"").unwrap();
    let (code, stderr, _) = send(&httpd.url("/empty.bin"), source.path(), &[]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(std::fs::read(httpd.directory.path().join("empty.bin")).unwrap(), b"");
    assert_no_leak(&httpd.stop());
}

#[test]
fn what_may_not_be_uploaded_is_not() {
    let source = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(source.path(), pattern(3 * MIB)).unwrap();
    let httpd = Httpd::start(&["--allow-upload"]);
    httpd.file("there.bin", 10);
    std::fs::create_dir(httpd.directory.path().join("dir")).unwrap();
    for (path, args, status) in [
        ("/there.bin", &["-X", "POST"][..], "409"),
        ("/there.bin", &["-H", "If-None-Match: *"], "412"),
        ("/dir", &[], "409"),
        ("/dir/", &[], "409"),
        ("/no/such", &[], "409"),
        ("/a%2fb", &[], "404"),
        ("/.rdma-httpd-x.part", &[], "404"),
    ] {
        let (code, stderr, events) = send(&httpd.url(path), source.path(), args);
        assert_eq!(code, Some(22), "{path}: {stderr}");
        assert!(stderr.contains(status), "{path}: {stderr}");
        assert_no_leak(&events);
    }
    assert_eq!(names(httpd.directory.path()), ["dir", "there.bin"]);
    assert_eq!(std::fs::read(httpd.directory.path().join("there.bin")).unwrap().len(), 10);
    assert_no_leak(&httpd.stop());

    let closed = Httpd::start(&[]);
    let (code, stderr, _) = send(&closed.url("/up.bin"), source.path(), &[]);
    assert_eq!(code, Some(22), "{stderr}");
    assert!(stderr.contains("405"), "{stderr}");
    assert_eq!(names(closed.directory.path()), Vec::<String>::new());
}

#[test]
fn a_part_of_a_file_goes_by_rdma_too() {
    for memory in MEMORY {
        let httpd = Httpd::start(&["--memory", memory]);
        let body = httpd.file("body.bin", 3 * MIB);
        for (mode, range, expected) in [
            ("server-writes", "5-1000004", &body[5..1_000_005]),
            ("client-reads", "1000000-", &body[1_000_000..]),
            ("server-writes", "-7", &body[body.len() - 7..]),
        ] {
            let args = ["--mode", mode, "--range", range, "--require-rdma", "-v"];
            let got = fetch(&httpd.url("/body.bin"), &args);
            assert_eq!(got.code, Some(0), "{range}: {}", got.stderr);
            assert!(got.stderr.contains("< HTTP/1.1 206 Partial Content"), "{}", got.stderr);
            assert!(got.body.as_deref() == Some(expected), "{memory} {range}: another body");
        }
        assert_no_leak(&httpd.stop());
    }
}

#[test]
fn what_has_no_body_needs_no_rdma() {
    let httpd = Httpd::start(&[]);
    httpd.file("body.bin", 1000);
    let head = fetch(&httpd.url("/body.bin"), &["--head", "-v"]);
    assert_eq!((head.code, head.body.as_deref()), (Some(0), Some(&b""[..])), "{}", head.stderr);
    assert!(head.stderr.contains("< content-length: 1000\n"), "{}", head.stderr);
    let beyond = fetch(&httpd.url("/body.bin"), &["--range", "1000-", "-v", "-f"]);
    assert_eq!(beyond.code, Some(22), "{}", beyond.stderr);
    assert!(beyond.stderr.contains("416"), "{}", beyond.stderr);
}

#[test]
fn what_the_client_has_already_is_not_sent_again() {
    let httpd = Httpd::start(&[]);
    let body = httpd.file("body.bin", 1000);
    let head = fetch(&httpd.url("/body.bin"), &["--head", "-v"]);
    let field = |name: &str| {
        let found = head.stderr.lines().find_map(|line| line.strip_prefix(&format!("< {name}: ")));
        found.unwrap_or_else(|| panic!("no {name} in {}", head.stderr)).to_owned()
    };
    let (etag, modified) = (field("etag"), field("last-modified"));
    let ask = |condition: &str| fetch(&httpd.url("/body.bin"), &["-v", "-H", condition]);
    // Each by itself, so that neither hides behind the other.
    let same = [format!("If-None-Match: {etag}"), format!("If-Modified-Since: {modified}")];
    for condition in &same {
        let got = ask(condition);
        assert!(got.stderr.contains("< HTTP/1.1 304 Not Modified\n"), "{condition}: {}", got.stderr);
        assert_eq!((got.code, got.body.as_deref()), (Some(0), Some(&b""[..])), "{condition}");
        assert_eq!((fallbacks(&got.events), received(&got.events)), (vec!["status"], vec![("tcp", 0)]));
        assert_eq!(assert_no_leak(&got.events).1, 0, "{condition}");
    }
    for condition in ["If-None-Match: \"another\"", "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT"] {
        let got = ask(condition);
        assert!(got.stderr.contains("< HTTP/1.1 200 OK\n"), "{condition}: {}", got.stderr);
        assert!(got.body.as_deref() == Some(&body[..]), "{condition}: another body");
        assert_eq!(received(&got.events), [("rdma", 1000)], "{condition}");
    }
    // Another file has another tag.
    httpd.file("body.bin", 1001);
    assert_eq!(received(&ask(&same[0]).events), [("rdma", 1001)]);
}

#[test]
fn registrations_and_copies_are_told() {
    let told = |events: &[Event]| {
        let memory = events.iter().find_map(|event| match event {
            Event::Memory { strategy, registrations, copied, pinned } => {
                Some((strategy.clone(), *registrations, *copied, *pinned))
            }
            _ => None,
        });
        memory.expect("an account of the memory")
    };
    const LENGTH: u64 = 10 << 20;
    for (memory, registrations, copied) in [("dynamic", 10, 0), ("static", 9, LENGTH), ("sendfile", 10, 0)] {
        let httpd = Httpd::start(&["--memory", memory]);
        httpd.sparse_file("body.bin", LENGTH);
        let got = fetch(&httpd.url("/body.bin"), &["--require-rdma"]);
        assert_eq!(got.code, Some(0), "{}", got.stderr);
        let (strategy, registered, bytes, pinned) = told(&httpd.stop());
        assert_eq!((strategy.as_str(), registered, bytes), (memory, registrations, copied));
        // `static` has what may be written to it too.
        assert!(pinned <= if memory == "static" { 16 << 20 } else { 8 << 20 }, "{memory}: {pinned}");
        assert_eq!(operations(&got.events, "receive"), [32]);
    }
    // The client's are there before the first transfer, for all that may be in flight, and copied from and to.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pattern(5000)).unwrap();
    let httpd = Httpd::start(&["--allow-upload"]);
    httpd.sparse_file("body.bin", 5000);
    for (mode, registrations) in
        [("server-writes", 1), ("client-reads", 8), ("client-writes", 8), ("server-reads", 8)]
    {
        let args = ["--memory", "static", "--mode", mode];
        let events = match mode {
            "server-writes" | "client-reads" => fetch(&httpd.url("/body.bin"), &args).events,
            _ => send(&httpd.url("/new.bin"), file.path(), &args).2,
        };
        let (strategy, registered, bytes, _) = told(&events);
        assert_eq!((strategy.as_str(), registered, bytes), ("static", registrations, 5000), "{mode}");
    }
    // As many as were in flight at once.
    let httpd = Httpd::start(&["--memory", "cache"]);
    httpd.sparse_file("body.bin", LENGTH);
    fetch(&httpd.url("/body.bin"), &["--require-rdma"]);
    let (_, registered, bytes, _) = told(&httpd.stop());
    assert!((1..=8).contains(&registered) && bytes == LENGTH, "{registered} {bytes}");
}

#[test]
fn static_memory_is_registered_with_the_connection_and_never_again() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pattern(3 * MIB)).unwrap();
    for (way, server, client) in ways() {
        let limits = ["--allow-upload", "--memory", "static", "--chunk-size", "256K", "--window", "4"];
        for (mode, flight) in
            [("server-writes", 1), ("client-reads", 8), ("client-writes", 8), ("server-reads", 8)]
        {
            let what = format!("{way}, {mode}");
            let httpd = Httpd::start(&[&server[..], &limits].concat());
            httpd.file("body", 3 * MIB);
            let args = ["--memory", "static", "--mode", mode, "--require-rdma", "-o", "/dev/null"];
            let args = [&client[..], &args].concat();
            let ends = match mode {
                "client-writes" | "server-reads" => {
                    let next = httpd.url("/next");
                    send(&httpd.url("/new"), file.path(), &[&args[..], &[&next]].concat()).2
                }
                _ => fetch(&httpd.url("/body"), &[&args[..], &[&httpd.url("/body")]].concat()).events,
            };
            for (end, events, expected) in [("client", ends, flight), ("server", httpd.stop(), 4 + 1)] {
                let moved = events.iter().position(|event| matches!(event, Event::Operation { .. }));
                let (before, after) =
                    events.split_at(moved.unwrap_or_else(|| panic!("{what}: nothing moved")));
                let registered = |events: &[Event]| {
                    events.iter().filter(|event| matches!(event, Event::RegionRegistered { .. })).count()
                };
                assert_eq!(
                    (registered(before), registered(after)),
                    (expected, 0),
                    "{what}, {end}: {events:#?}"
                );
                assert_no_leak(&events);
            }
        }
    }
}

#[test]
fn a_part_beyond_four_gibibytes_is_the_right_one() {
    const FIRST: u64 = (4 << 30) - 500_000;
    let body = pattern(MIB);
    for memory in ["dynamic", "sendfile"] {
        let httpd = Httpd::start(&["--memory", memory]);
        httpd.sparse_file("body.bin", 5 << 30);
        let file =
            std::fs::OpenOptions::new().write(true).open(httpd.directory.path().join("body.bin")).unwrap();
        file.write_all_at(&body, FIRST).unwrap();
        let range = format!("{FIRST}-{}", FIRST + MIB as u64 - 1);
        for mode in ["server-writes", "client-reads"] {
            for (way, _, client) in ways().into_iter().filter(|(_, server, _)| server.is_empty()) {
                let args = [&client[..], &["--mode", mode, "--range", &range, "--require-rdma"]].concat();
                let got = fetch(&httpd.url("/body.bin"), &args);
                assert_eq!(got.code, Some(0), "{way}, {mode}: {}", got.stderr);
                assert!(got.body.as_deref() == Some(&body[..]), "{way}, {mode}, {memory}: another body");
            }
        }
        assert_no_leak(&httpd.stop());
    }
}

#[test]
fn more_than_four_gibibytes_go_in_one_transfer() {
    const LENGTH: u64 = (4 << 30) + 70_001;
    let httpd = Httpd::in_memory(&["--memory", "sendfile", "--crc", "off"]);
    httpd.sparse_file("body.bin", LENGTH);
    let events = tempfile::NamedTempFile::new().unwrap();
    let output = run(command(env!("CARGO_BIN_EXE_rdma-fetch"))
        .arg(httpd.url("/body.bin"))
        .args(["--crc", "off", "--require-rdma", "-o", "/dev/null", "--events"])
        .arg(events.path()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let events = read_events(events.path());
    assert_eq!(received(&events), [("rdma", LENGTH)]);
    // It takes as much memory as any.
    assert_eq!(assert_no_leak(&events), (1, 1));
    assert_no_leak(&httpd.stop());
}

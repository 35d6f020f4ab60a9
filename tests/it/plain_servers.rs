//! rdma-fetch against servers that know nothing of RDMA.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use crate::program::{command, fallbacks, fetch, have, pattern, received, sha256, text};

/// A program that is killed at the end.
struct Killed(Child);

impl Killed {
    /// Killed with all that it started.
    fn group(command: &mut Command) -> Self {
        use std::os::unix::process::CommandExt;
        Self(command.process_group(0).spawn().unwrap())
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

fn check(base: &str, body: &[u8]) {
    for connect in ["auto", "in-place"] {
        let got = fetch(&format!("{base}/body.bin"), &["--json", "--connect", connect]);
        assert_eq!(got.code, Some(0), "{connect}: {}", got.stderr);
        assert_eq!(sha256(&got.body.unwrap()), sha256(body), "{connect}");
        assert_eq!(received(&got.events), [("tcp", body.len() as u64)], "{connect}");
        assert_eq!(fallbacks(&got.events), ["not-answered"], "{connect}");
        crate::program::assert_no_leak(&got.events);
    }

    let missing = fetch(&format!("{base}/missing"), &["--fail"]);
    assert_eq!(missing.code, Some(22), "{}", missing.stderr);
    assert!(missing.stderr.contains("404"), "{}", missing.stderr);
    assert!(missing.files().is_empty());
}

#[test]
fn python_just_works() {
    if !have("python3", "python_just_works") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let body = pattern(3_000_000);
    std::fs::write(directory.path().join("body.bin"), &body).unwrap();
    let mut python = Killed::group(
        command("python3")
            .args(["-u", "-m", "http.server", "--bind", "127.0.0.1", "0"])
            .current_dir(directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null()),
    );
    let mut line = String::new();
    BufReader::new(python.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let port = line.split_whitespace().skip_while(|word| *word != "port").nth(1).expect("a port");
    check(&format!("http://127.0.0.1:{port}"), &body);
}

#[test]
fn nginx_just_works() {
    if !have("nginx", "nginx_just_works") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().display();
    let body = pattern(3_000_000);
    std::fs::create_dir(directory.path().join("html")).unwrap();
    std::fs::write(directory.path().join("html/body.bin"), &body).unwrap();
    if nix::unistd::geteuid().is_root() {
        // As root nginx would serve as another user, who cannot enter this directory.
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    // nginx takes no port 0 and cannot be handed a socket: take a free port, and another if somebody was faster.
    for _ in 0..10 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "daemon off;\nworker_processes 1;\npid {root}/pid;\nerror_log stderr notice;\nevents {{}}\nhttp {{\n\
             access_log off;\nclient_body_temp_path {root}/b;\nproxy_temp_path {root}/p;\n\
             fastcgi_temp_path {root}/f;\nuwsgi_temp_path {root}/u;\nscgi_temp_path {root}/s;\n\
             server {{ listen 127.0.0.1:{port}; root {root}/html; }}\n}}\n"
        );
        let file = directory.path().join("nginx.conf");
        std::fs::write(&file, config).unwrap();
        let mut start = command("nginx");
        start.arg("-p").arg(directory.path()).arg("-e").arg("stderr").arg("-c").arg(&file);
        let path = std::env::var("PATH").unwrap_or_default();
        start.env("PATH", format!("{path}:/usr/sbin:/sbin")).stderr(Stdio::piped());
        let mut nginx = Killed::group(&mut start);
        let mut lines = BufReader::new(nginx.0.stderr.take().unwrap()).lines();
        let mut log = Vec::new();
        let up = lines.by_ref().map(Result::unwrap).any(|line| {
            log.push(line);
            log.last().is_some_and(|line| line.contains("start worker process"))
        });
        if up {
            // Reads on, so that nginx can always write.
            std::thread::spawn(move || lines.for_each(drop));
            check(&format!("http://127.0.0.1:{port}"), &body);
            return;
        }
        assert!(
            log.iter().any(|line| line.contains("Address already in use")),
            "nginx did not start: {log:?}"
        );
    }
    panic!("no port for nginx");
}

#[test]
fn no_server_at_all_is_an_error() {
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let got = fetch(&format!("http://{address}/x"), &[]);
    assert_eq!(got.code, Some(7), "{}", got.stderr);
    assert!(got.stderr.contains(&format!("cannot connect to {address}")), "{}", got.stderr);
    assert!(got.files().is_empty());
    let got = fetch("http://no-such-host.invalid/x", &[]);
    assert_eq!(got.code, Some(6), "{}", got.stderr);
}

#[test]
fn a_server_that_stops_early_leaves_no_file() {
    use std::io::Write;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        while !lines.next().unwrap().unwrap().is_empty() {}
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        text(stream)
    });
    let got = fetch(&format!("http://{address}/x"), &[]);
    assert_eq!(got.code, Some(18), "{}", got.stderr);
    assert!(got.files().is_empty());
    assert_eq!(server.join().unwrap(), "");
}

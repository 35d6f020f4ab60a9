//! What a scenario's programs are called with, where their files are, and what curl leaves of its exchanges.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rdma_http::fabric::FabricKind;

use super::run::{HTTPD, Surroundings, Trouble, io_trouble};
use super::wire::{self, HttpHead};
use super::{Exchange, Program, Scenario};
use crate::agent::client::Command;

/// The largest head that curl's copy of it may have.
const MAX_HEAD: u64 = 1 << 20;

/// The files of one run.
pub(super) struct Work {
    pub(super) folder: PathBuf,
}

impl Work {
    pub(super) fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    pub(super) fn capture(&self) -> PathBuf {
        self.folder.join("wire.pcapng")
    }

    /// What the client gets for its first, or another, request.
    pub(super) fn output(&self, request: u8) -> PathBuf {
        match request {
            0 => self.folder.join("output.bin"),
            other => self.folder.join(format!("output-{other}.bin")),
        }
    }

    /// What is sent, or asked for.
    pub(super) fn body(&self, scenario: &Scenario) -> PathBuf {
        match &scenario.client.upload {
            Some(file) => self.folder.join(&file.path),
            None => self.root().join(scenario.client.target.trim_start_matches('/')),
        }
    }

    /// The server's certificate, where it has TLS, and the key to it.
    pub(super) fn identity(&self) -> (PathBuf, PathBuf) {
        (self.folder.join("certificate.pem"), self.folder.join("key.pem"))
    }

    pub(super) fn heads(&self) -> PathBuf {
        self.folder.join("heads.txt")
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

pub(super) fn server_command(
    scenario: &Scenario,
    fabric: FabricKind,
    work: &Work,
    place: &Surroundings,
) -> Command {
    let listen = SocketAddr::new(place.server, 0);
    let own = ["--events".to_owned(), "-".to_owned(), "--root".to_owned(), text(&work.root())];
    let (certificate, key) = work.identity();
    let tls = ["--tls-cert".to_owned(), text(&certificate), "--tls-key".to_owned(), text(&key)];
    let mut command = Command::new(&scenario.server.host, HTTPD)
        .args(own)
        .args(tls.into_iter().filter(|_| scenario.server.tls))
        .args(["--listen".to_owned(), listen.to_string()])
        .args(["--fabric".to_owned(), fabric.to_string()])
        .args(scenario.server.args.iter().map(|argument| place.placeholders.fill(argument)))
        // Every flag has a variable, too: the user's must not change what is observed.
        .clean_env()
        .cwd(&work.folder);
    for (name, value) in &scenario.server.env {
        command = command.env(name, value);
    }
    command
}

pub(super) fn client_command(
    scenario: &Scenario,
    fabric: FabricKind,
    work: &Work,
    place: &Surroundings,
    server: SocketAddr,
) -> Command {
    let client = &scenario.client;
    let command = Command::new(&client.host, client.program.name()).clean_env().cwd(&work.folder);
    let command = match client.program {
        Program::RdmaFetch => command.args(["--events", "-", "--fabric"]).arg(fabric.to_string()),
        // Nothing of the user's own settings may matter.
        Program::Curl => command
            .args(["--disable", "--silent", "--show-error", "--noproxy", "*"])
            .arg("--dump-header")
            .arg(text(&work.heads())),
    };
    let command = match &client.upload {
        Some(file) => command.arg("--upload-file").arg(text(&work.folder.join(&file.path))),
        None => command,
    };
    let (scheme, trusted) = match scenario.server.tls {
        true => ("https", vec!["--cacert".to_owned(), text(&work.identity().0)]),
        false => ("http", Vec::new()),
    };
    let mut command = command
        .args(trusted)
        .args((0..client.requests).flat_map(|request| ["--output".to_owned(), text(&work.output(request))]))
        .args(client.args.iter().map(|argument| place.placeholders.fill(argument)))
        .args((0..client.requests).map(|_| format!("{scheme}://{server}{}", client.target)));
    for (name, value) in &client.env {
        command = command.env(name, value);
    }
    command
}

/// What curl saw, from the heads that it wrote down.
pub(super) fn curl_exchanges(heads: &Path) -> Result<Vec<Exchange>, Trouble> {
    let what = "read the heads that curl wrote";
    match fs::metadata(heads) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Ok(metadata) if metadata.len() > MAX_HEAD => {
            return Err(Trouble::Said(format!("curl wrote heads of more than {MAX_HEAD} bytes")));
        }
        _ => {}
    }
    let bytes = fs::read(heads).map_err(io_trouble(what))?;
    let heads = wire::response_heads(&bytes);
    Ok(heads.into_iter().enumerate().map(|(index, head)| exchange(index as u64 + 1, head)).collect())
}

fn exchange(number: u64, head: HttpHead) -> Exchange {
    let status = head.start.split(' ').nth(1).and_then(|status| status.parse().ok());
    let headers = head.headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value));
    Exchange { number, status, response_headers: headers.collect(), ..Exchange::default() }
}

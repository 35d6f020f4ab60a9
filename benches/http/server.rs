//! The servers that are measured, each a process of its own, and what it takes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;

use crate::Result;

/// How long whatever is waited for may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What serves, and with which arguments.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Program {
    Nginx,
    Httpd(&'static [&'static str]),
}

/// A server that is killed when it is dropped.
pub(crate) struct Server {
    process: Child,
    pub(crate) address: SocketAddr,
    figures: Option<SocketAddr>,
    _configuration: Option<tempfile::TempDir>,
}

impl Server {
    pub(crate) fn start(root: &Path, program: Program) -> Result<Self> {
        match program {
            Program::Httpd(args) => Self::httpd(root, args.iter().copied()),
            Program::Nginx => Self::nginx(root),
        }
    }

    /// `rdma-httpd` with these arguments.
    pub(crate) fn httpd<'a>(root: &Path, args: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rdma-httpd"));
        command
            .arg("--root")
            .arg(root)
            .args(["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"])
            .args(args);
        let mut process = command.stdout(Stdio::piped()).spawn()?;
        let stdout = process.stdout.take().ok_or("no output")?;
        let mut lines = BufReader::new(stdout).lines();
        let mut address = || -> Result<SocketAddr> {
            let line = lines.next().ok_or("the server ended")??;
            let url = line.split_once("://").ok_or("it does not say where it listens")?.1;
            Ok(url.split('/').next().unwrap_or_default().parse()?)
        };
        let (address, figures) = (address()?, Some(address()?));
        Ok(Self { process, address, figures, _configuration: None })
    }

    fn nginx(root: &Path) -> Result<Self> {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let folder = tempfile::tempdir()?;
        let text = format!(
            "daemon off; worker_processes auto; pid {0}/pid; error_log stderr crit; user root;\n\
             events {{}}\nhttp {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;\n\
             client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;\n\
             uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\n\
             server {{ listen {address}; root {1}; }} }}\n",
            folder.path().display(),
            root.display()
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, text)?;
        let process = Command::new("nginx").arg("-c").arg(&file).spawn()?;
        let server = Self { process, address, figures: None, _configuration: Some(folder) };
        wait("nginx listens", || Ok(TcpStream::connect(address).is_ok()))?;
        Ok(server)
    }

    /// Asks it to stop, and waits for its end.
    pub(crate) fn stop(&mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.process.id())?), Signal::SIGTERM)?;
        self.process.wait()?;
        Ok(())
    }

    /// What it takes now.
    pub(crate) fn taken(&self) -> Result<Taken> {
        let process = format!("/proc/{}", self.process.id());
        let status = std::fs::read_to_string(format!("{process}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        let kib: u64 = resident.trim().trim_end_matches(" kB").parse()?;
        let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")).ok_or("no Threads")?;
        let descriptors = std::fs::read_dir(format!("{process}/fd"))?.count();
        let figures = self.figures()?;
        let figure = |name: &str| -> Result<u64> {
            let value = figures.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            Ok(value.ok_or_else(|| format!("no {name} in its figures"))?.parse()?)
        };
        Ok(Taken {
            resident: kib << 10,
            descriptors,
            regions: figure("rdma_http_regions")?,
            registered: figure("rdma_http_registered_bytes")?,
            connections: figure("rdma_http_rdma_connections")?,
            threads: threads.trim().parse()?,
        })
    }

    /// The page of its figures.
    fn figures(&self) -> Result<String> {
        let mut stream = TcpStream::connect(self.figures.ok_or("it has no figures")?)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a server takes at one time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    /// Bytes in memory.
    pub(crate) resident: u64,
    /// Descriptors that are open.
    pub(crate) descriptors: usize,
    /// Regions that are registered, and bytes that may be.
    pub(crate) regions: u64,
    pub(crate) registered: u64,
    /// RDMA connections.
    pub(crate) connections: u64,
    pub(crate) threads: u64,
}

/// Waits until something is so.
pub(crate) fn wait(what: &str, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !so()? {
        if Instant::now() > end {
            return Err(format!("not within {PATIENCE:?}: {what}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Seconds of CPU of this process, or of all that it started and that have ended.
pub(crate) fn cpu(whose: UsageWho) -> Result<f64> {
    let usage = getrusage(whose)?;
    Ok((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6)
}

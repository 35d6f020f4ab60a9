//! What plain TCP does, for the other side of every ratio, and to tell what bounds ours: iperf3, `sendfile(2)` and
//! `read(2)`, the same cut into FPDUs as iWARP cuts it, and the same with the CRCs that iWARP computes.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::sys::sendfile::sendfile64;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{Result, loopback, runtime, thread_cpu};

/// How bytes are sent and received.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Plain {
    /// From a file by `sendfile`, as many as it takes.
    SendFile,
    /// From a file, each [`PAYLOAD`] with bytes of its own behind it, and taken apart again.
    SendFileFramed,
    /// From memory, a large piece at a time.
    Memory,
    /// From memory, each piece's CRC computed before it is sent and after it is received.
    MemoryCrc,
}

/// The payload of an FPDU on loopback, and what is around it.
const PAYLOAD: usize = 15 * 4096;
const AROUND: usize = 20;
/// As much as the fabric sends and receives with one system call.
const PIECE: usize = 256 << 10;

/// iperf3 over loopback, with further arguments: gigabits per second.
pub(crate) fn iperf(bytes: usize, further: &[&str]) -> Result<f64> {
    let (port, mut server) = iperf_server()?;
    let output = Command::new("iperf3")
        .args(["-c", "127.0.0.1", "-p", &port, "-J", "-n", &bytes.to_string()])
        .args(further)
        .output()?;
    server.wait()?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    report["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .map(|b| b / 1e9)
        .ok_or("iperf3 gave no rate".into())
}

/// iperf3 as a server for one client, and its port.
fn iperf_server() -> Result<(String, Child)> {
    const ATTEMPTS: usize = 5;
    for _ in 0..ATTEMPTS {
        let port = TcpListener::bind(loopback())?.local_addr()?.port().to_string();
        let mut server = Command::new("iperf3")
            .args(["-s", "-1", "-p", &port, "--forceflush"])
            .stdout(Stdio::piped())
            .spawn()?;
        // It says that it listens before it accepts.
        if server.stdout.as_mut().ok_or("no output")?.read_exact(&mut [0; 64]).is_ok() {
            return Ok((port, server));
        }
        // Somebody else has got the port meanwhile.
        server.wait()?;
    }
    Err("iperf3 does not listen".into())
}

/// Moves a region of `region` bytes `count` times: wall seconds and CPU seconds of both sides.
pub(crate) fn once(how: Plain, region: usize, count: usize) -> Result<[f64; 3]> {
    let listener = TcpListener::bind(loopback())?;
    let address = listener.local_addr()?;
    let receiver = std::thread::spawn(move || -> Result<f64> {
        let (mut stream, _) = listener.accept()?;
        let mut sink = vec![1; region];
        let start = thread_cpu()?;
        for _ in 0..count {
            receive(how, &mut stream, &mut sink)?;
        }
        let used = thread_cpu()? - start;
        stream.write_all(b"x")?;
        Ok(used)
    });
    let source: Vec<u8> = (0..region).map(|i| i as u8).collect();
    let mut file: File = tempfile::tempfile()?;
    file.write_all(&source)?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let (start, cpu) = (Instant::now(), thread_cpu()?);
    for _ in 0..count {
        transmit(how, &stream, &source, &file)?;
    }
    stream.read_exact(&mut [0])?;
    Ok([start.elapsed().as_secs_f64(), thread_cpu()? - cpu, receiver.join().map_err(|_| "it panicked")??])
}

fn transmit(how: Plain, mut stream: &TcpStream, source: &[u8], file: &File) -> Result<()> {
    let send_file = |from: usize, to: usize| -> Result<()> {
        let mut at = i64::try_from(from)?;
        while (at as usize) < to {
            let left = to - at as usize;
            sendfile64(stream, file, Some(&mut at), left)?;
        }
        Ok(())
    };
    match how {
        Plain::SendFile => send_file(0, source.len())?,
        Plain::SendFileFramed => {
            for from in (0..source.len()).step_by(PAYLOAD) {
                let to = source.len().min(from + PAYLOAD);
                send_file(from, to)?;
                let more = if to < source.len() { nix::libc::MSG_MORE } else { 0 };
                socket2::SockRef::from(stream).send_with_flags(&[0; AROUND], more)?;
            }
        }
        Plain::Memory => source.chunks(PIECE).try_for_each(|piece| stream.write_all(piece))?,
        Plain::MemoryCrc => {
            for piece in source.chunks(PIECE) {
                std::hint::black_box(crc32c::crc32c(piece));
                stream.write_all(piece)?;
            }
        }
    }
    Ok(())
}

fn receive(how: Plain, stream: &mut TcpStream, sink: &mut [u8]) -> Result<()> {
    let some = |count: usize| if count == 0 { Err("the sender is gone") } else { Ok(count) };
    if how == Plain::SendFileFramed {
        for payload in sink.chunks_mut(PAYLOAD) {
            let (mut around, mut done, size) = ([0; AROUND], 0, payload.len());
            while done < size + AROUND {
                let (payload, around) =
                    (&mut payload[done.min(size)..], &mut around[done.saturating_sub(size)..]);
                let buffers = &mut [IoSliceMut::new(payload), IoSliceMut::new(around)];
                done += some(stream.read_vectored(buffers)?)?;
            }
        }
        return Ok(());
    }
    let mut at = 0;
    while at < sink.len() {
        let to = sink.len().min(at + PIECE);
        let count = some(stream.read(&mut sink[at..to])?)?;
        if how == Plain::MemoryCrc {
            std::hint::black_box(crc32c::crc32c(&sink[at..at + count]));
        }
        at += count;
    }
    Ok(())
}

/// Eight bytes over TCP, there and back, in the same kind of runtime: seconds.
pub(crate) fn ping_pong(turns: u32) -> Result<f64> {
    runtime(1)?.block_on(async {
        let listener = tokio::net::TcpListener::bind(loopback()).await?;
        let mut a = tokio::net::TcpStream::connect(listener.local_addr()?).await?;
        let (mut b, _) = listener.accept().await?;
        a.set_nodelay(true)?;
        b.set_nodelay(true)?;
        let echo = tokio::spawn(async move {
            let mut bytes = [0; 8];
            for _ in 0..turns {
                b.read_exact(&mut bytes).await?;
                b.write_all(&bytes).await?;
            }
            Ok::<(), std::io::Error>(())
        });
        let start = Instant::now();
        let mut bytes = [1; 8];
        for _ in 0..turns {
            a.write_all(&bytes).await?;
            a.read_exact(&mut bytes).await?;
        }
        let taken = start.elapsed().as_secs_f64() / f64::from(turns);
        echo.await??;
        Ok(taken)
    })
}

/// `connections` TCP connections at once, each moving `each` bytes from a buffer of `region` bytes to another: gigabits a
/// second.
pub(crate) fn many(connections: usize, region: usize, count: usize) -> Result<f64> {
    runtime(2)?.block_on(async {
        let listener = tokio::net::TcpListener::bind(loopback()).await?;
        let address = listener.local_addr()?;
        let mut pairs = Vec::new();
        for _ in 0..connections {
            let (a, b) = tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
            pairs.push((a?, b?.0, vec![7_u8; region], vec![0_u8; region]));
        }
        let start = Instant::now();
        let mut tasks = Vec::new();
        for (mut a, mut b, source, mut sink) in pairs {
            tasks.push(tokio::spawn(async move {
                for _ in 0..count {
                    for piece in source.chunks(PIECE) {
                        a.write_all(piece).await?;
                    }
                }
                a.read_exact(&mut [0]).await.map(drop)
            }));
            tasks.push(tokio::spawn(async move {
                for _ in 0..count {
                    for piece in sink.chunks_mut(PIECE) {
                        b.read_exact(piece).await?;
                    }
                }
                b.write_all(b"x").await
            }));
        }
        for task in tasks {
            task.await??;
        }
        Ok((connections * region * count) as f64 * 8e-9 / start.elapsed().as_secs_f64())
    })
}

//! Two ends of a connection on loopback, HTTP's stream and messages between them.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::frame::{Frame, HEAD, LONGEST};
use super::*;
use crate::fabric::soft::{SoftFabric, SoftOptions};
use crate::fabric::{Fabric, FabricError};
use crate::flow::RECEIVE_SIZE;
use crate::header::TransferId;
use crate::message::Message;

type Ends = [Arc<dyn Connection>; 2];

async fn ends() -> Ends {
    let fabric = SoftFabric::new(SoftOptions::default());
    let over_tcp = fabric.over_tcp().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (one, other) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (pd, options) = (fabric.allocate_pd().unwrap(), receives(ConnectOptions::default()));
    let (first, second) = tokio::join!(
        over_tcp.connect_over(one.unwrap(), Bytes::new(), &pd, options.clone()),
        over_tcp.accept_over(other.unwrap().0, Bytes::new(), &pd, options),
    );
    [first.unwrap(), second.unwrap()]
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

#[tokio::test]
async fn bytes_and_messages_go_beside_each_other() {
    let [one, other] = ends().await;
    let ((sender, mut writer), (receiver, mut reader)) = (split(one), split(other));
    // Many windows of it.
    let sent = pattern(5 << 20);
    let expected = sent.clone();
    let writing = tokio::spawn(async move {
        for (piece, count) in sent.chunks(1 << 20).zip(1..) {
            writer.write_all(piece).await.unwrap();
            let message = Message::Progress { id: TransferId::NONE, bytes: count };
            sender.send(message.encode()).await.unwrap();
        }
        writer.shutdown().await.unwrap();
        (sender, writer)
    });
    let mut arrived = Vec::new();
    for count in 1..=5 {
        let mut piece = vec![0; 1 << 20];
        reader.read_exact(&mut piece).await.unwrap();
        arrived.extend(piece);
        let message = Message::decode(&receiver.receive().await.unwrap().message).unwrap();
        assert_eq!(message, Message::Progress { id: TransferId::NONE, bytes: count });
    }
    assert!(arrived == expected);
    assert_eq!(reader.read(&mut [0; 9]).await.unwrap(), 0);
    let (sender, mut writer) = writing.await.unwrap();
    // The stream has ended one way only.
    reader.write_all(b"still here").await.unwrap();
    let mut answer = [0; 10];
    writer.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"still here");
    assert!(writer.write_all(b"x").await.is_err());
    sender.disconnect().await.unwrap();
    assert!(matches!(receiver.receive().await, Err(FabricError::Closed)));
}

#[tokio::test]
async fn what_was_said_before_is_read_and_written_once() {
    let [one, other] = ends().await;
    let ((_messages, client), (_kept, server)) = (split(one), split(other));
    let mut client = client.without_first_head();
    let mut server = server.beginning_with(Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n"));
    client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\nsecond").await.unwrap();
    let mut read = [0; 24];
    server.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"GET / HTTP/1.1\r\n\r\nsecond");
}

#[tokio::test]
async fn an_answer_waits_for_its_request() {
    // Who connects speaks first: the server.
    let [one, other] = ends().await;
    let ((_kept, mut server), (_messages, client)) = (split(one), split(other));
    let (mut reader, mut writer) = tokio::io::split(client.without_first_head());
    server.write_all(b"answer").await.unwrap();
    let (wrote, wakes) = tokio::sync::oneshot::channel();
    let reading = tokio::spawn(async move {
        let mut read = [0; 6];
        tokio::select! {
            biased;
            _ = reader.read(&mut read) => panic!("an answer without a request"),
            () = std::future::ready(()) => {}
        }
        wrote.send(()).unwrap();
        reader.read_exact(&mut read).await.unwrap();
        read
    });
    wakes.await.unwrap();
    writer.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(&reading.await.unwrap(), b"answer");
}

#[tokio::test]
async fn without_the_transfers_part_there_is_no_stream() {
    let [one, other] = ends().await;
    let ((messages, mut mine), (_kept, mut theirs)) = (split(one), split(other));
    drop(messages);
    assert!(mine.read(&mut [0; 9]).await.is_err());
    assert!(mine.write(b"x").await.is_err());
    drop(mine);
    assert!(theirs.read(&mut [0; 9]).await.is_err(), "a stream that breaks off does not end");
}

#[tokio::test]
async fn a_peer_that_does_not_keep_to_the_window_is_cut_off() {
    let credit = |taken| vec![Frame::credit(taken)];
    let http = |count| vec![Frame::http(b"x").0; count];
    let end = Frame::http(b"").0;
    let hello = Message::Hello { id: TransferId::NONE }.encode();
    for (what, frames) in [
        ("too much HTTP", http(65)),
        ("HTTP after its end", vec![end.clone(), end]),
        ("credit for nothing", credit(1)),
        ("credit of no length", vec![Frame::credit(1).slice(..HEAD + 7)]),
        ("too long a message", vec![Bytes::from(vec![0; RECEIVE_SIZE + 1])]),
        ("too many messages", vec![hello; RECEIVE_DEPTH + 1]),
    ] {
        let [rude, other] = ends().await;
        let (messages, mut stream) = split(other);
        for frame in frames {
            // The last may find the connection gone.
            let _ = rude.send(frame).await;
        }
        // Nothing of what would make room is taken.
        let error = match what {
            "too many messages" => stream.read(&mut [0]).await.expect_err(what).to_string(),
            _ => messages.receive().await.unwrap_err().to_string(),
        };
        assert!(error.contains("broke the protocol"), "{what}: {error}");
        drop(messages);
    }
}

#[tokio::test]
async fn a_frame_is_no_longer_than_a_receive() {
    let [one, other] = ends().await;
    let ((_messages, mut writer), (_kept, mut reader)) = (split(one), split(other));
    let most = LONGEST - HEAD;
    assert_eq!(writer.write(&pattern(most + 1)).await.unwrap(), most);
    let mut read = vec![0; most];
    reader.read_exact(&mut read).await.unwrap();
    assert!(read == pattern(most));
}

//! The promises of `rdma_http::fabric`, tried with both ends in one process: what moves, and what memory it may touch.

use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use rdma_http::fabric::{Access, ConnectOptions, FabricError, FabricKind, RemoteAddress, Stag};

use crate::support::{assert_broken, at, fabric, kind, pair, pair_of, pattern, soon};

#[tokio::test]
async fn a_write_is_placed_before_the_send_that_follows_it() {
    let (a, b) = pair().await;
    let body = pattern(3_000_001);
    let source = a.region(body.clone(), Access::LOCAL_READ);
    let sink = b.region(vec![0; body.len() + 10], Access::REMOTE_WRITE);
    let written = a.connection.write(&source, 0, body.len(), at(&sink, 7));
    let sent = a.connection.send(Bytes::from_static(b"done"));
    assert_eq!(soon(b.connection.receive()).await.unwrap().message, "done");
    let memory = sink.deregister().unwrap();
    assert!(memory[7..].starts_with(&body));
    assert_eq!((&memory[..7], &memory[body.len() + 7..]), (&[0; 7][..], &[0; 3][..]));
    soon(written).await.unwrap();
    soon(sent).await.unwrap();
    assert_eq!(source.deregister().unwrap(), body);
}

#[tokio::test]
async fn sixty_four_mebibytes_arrive_whole() {
    let (a, b) = pair().await;
    let body = pattern(64 << 20);
    let source = a.region(body.clone(), Access::LOCAL_READ);
    let sink = b.region(vec![0; body.len()], Access::REMOTE_WRITE);
    let written = a.connection.write(&source, 0, body.len(), at(&sink, 0));
    let sent = a.connection.send(Bytes::from_static(b"done"));
    assert_eq!(soon(b.connection.receive()).await.unwrap().message, "done");
    assert!(sink.deregister().unwrap() == body);
    soon(written).await.unwrap();
    soon(sent).await.unwrap();
}

#[tokio::test]
async fn reads_both_ways_at_once() {
    let (a, b) = pair().await;
    let length = 2_000_000;
    let (body_a, body_b) = (pattern(length), pattern(length + 1));
    let source_a = a.region(body_a.clone(), Access::REMOTE_READ);
    let source_b = b.region(body_b.clone(), Access::REMOTE_READ);
    let sink_a = a.region(vec![0; length + 1], Access::LOCAL_WRITE);
    let sink_b = b.region(vec![0; length], Access::LOCAL_WRITE);
    // More than may be outstanding on the wire.
    let reads: Vec<_> = (0..40)
        .map(|_| a.connection.read(&sink_a, 0, length / 10, at(&source_b, 0)))
        .chain([a.connection.read(&sink_a, 0, length + 1, at(&source_b, 0))])
        .collect();
    // The accepting side may send when it has heard from the other.
    soon(a.connection.send(Bytes::from_static(b"go"))).await.unwrap();
    assert_eq!(soon(b.connection.receive()).await.unwrap().message, "go");
    let read_b = b.connection.read(&sink_b, 0, length, at(&source_a, 0));
    for read in reads {
        soon(read).await.unwrap();
    }
    soon(read_b).await.unwrap();
    assert!(sink_a.deregister().unwrap() == body_b);
    assert!(sink_b.deregister().unwrap() == body_a);
}

#[tokio::test]
async fn the_accepting_side_may_post_before_it_heard_anything() {
    for _ in 0..5 {
        let (a, b) = pair().await;
        let sink = a.region(vec![0; 5], Access::REMOTE_WRITE);
        let source = b.region(b"early".to_vec(), Access::LOCAL_READ);
        let written = b.connection.write(&source, 0, 5, at(&sink, 0));
        let early = b.connection.send(Bytes::from_static(b"held"));
        soon(a.connection.send(Bytes::from_static(b"first"))).await.unwrap();
        assert_eq!(soon(b.connection.receive()).await.unwrap().message, "first");
        soon(written).await.unwrap();
        soon(early).await.unwrap();
        assert_eq!(soon(a.connection.receive()).await.unwrap().message, "held");
        assert_eq!(sink.deregister().unwrap(), b"early");
    }
}

#[tokio::test]
async fn messages_of_every_size_go_both_ways() {
    let options = ConnectOptions { receive_size: 100_000, receive_depth: 4, ..ConnectOptions::default() };
    let (a, b) = pair_of(&*fabric(), options.clone(), options).await;
    for length in [0, 1, 63, 64, 65, 4096, 99_999, 100_000] {
        let message = Bytes::from(pattern(length));
        let sent = a.connection.send(message.clone());
        assert_eq!(soon(b.connection.receive()).await.unwrap().message, message, "{length} bytes");
        soon(sent).await.unwrap();
        let sent = b.connection.send(message.clone());
        assert_eq!(soon(a.connection.receive()).await.unwrap().message, message, "{length} bytes back");
        soon(sent).await.unwrap();
    }
}

#[tokio::test]
async fn a_thousand_messages_keep_their_order() {
    let (a, b) = pair().await;
    let sender = async {
        for number in 0..1000_u32 {
            a.connection.send(Bytes::copy_from_slice(&number.to_be_bytes())).await.unwrap();
            // The receives that are posted are few: one for each answer.
            assert_eq!(a.connection.receive().await.unwrap().message[..], number.to_be_bytes());
        }
    };
    let echo = async {
        for _ in 0..1000 {
            let message = b.connection.receive().await.unwrap().message;
            b.connection.send(message).await.unwrap();
        }
    };
    soon(async { tokio::join!(sender, echo) }).await;
}

#[tokio::test]
async fn nothing_can_be_written_read_and_registered() {
    let (a, b) = pair().await;
    let source = a.region(Vec::new(), Access::LOCAL_READ);
    let sink = b.region(Vec::new(), Access::REMOTE_WRITE);
    assert_eq!((source.len(), sink.len()), (0, 0));
    soon(a.connection.write(&source, 0, 0, at(&sink, 0))).await.unwrap();
    let readable = b.region(vec![1; 8], Access::REMOTE_READ);
    let target = a.region(vec![0; 8], Access::LOCAL_WRITE);
    soon(a.connection.read(&target, 0, 0, at(&readable, 0))).await.unwrap();
    soon(a.connection.send(Bytes::new())).await.unwrap();
    assert_eq!(soon(b.connection.receive()).await.unwrap().message, "");
    assert_eq!(target.deregister().unwrap(), [0; 8]);
    assert!(source.deregister().unwrap().is_empty());
}

#[tokio::test]
async fn a_send_invalidates_a_region_of_the_peers() {
    let (a, b) = pair().await;
    let sink = b.region(vec![0; 10], Access::REMOTE_WRITE);
    let source = a.region(vec![1; 10], Access::LOCAL_READ);
    let sent = soon(a.connection.send_invalidate(Bytes::from_static(b"bye"), sink.stag())).await;
    if kind() != FabricKind::Soft {
        assert!(matches!(sent, Err(FabricError::Unsupported(_))), "{sent:?}");
        return;
    }
    sent.unwrap();
    let received = soon(b.connection.receive()).await.unwrap();
    assert_eq!((received.message.as_ref(), received.invalidated), (&b"bye"[..], Some(sink.stag())));
    drop(a.connection.write(&source, 0, 10, at(&sink, 0)));
    assert_broken(&soon(a.connection.closed()).await);
    assert_eq!(sink.deregister().unwrap(), [0; 10]);
}

#[tokio::test]
async fn a_wrong_stag_ends_the_connection_and_touches_nothing() {
    let (a, b) = pair().await;
    let sink = b.region(vec![0; 10], Access::REMOTE_WRITE);
    let source = a.region(vec![1; 10], Access::LOCAL_READ);
    let wrong = RemoteAddress { stag: Stag(sink.stag().0 ^ 0x5500), to: sink.base() };
    let written = a.connection.write(&source, 0, 10, wrong);
    assert_broken(&soon(a.connection.closed()).await);
    assert_broken(&soon(b.connection.closed()).await);
    // On rxe a Write completes when the peer has acknowledged it; on iWARP when it is TCP's.
    if kind() == FabricKind::Rxe {
        match soon(written).await {
            Err(FabricError::WorkCompletion { verb: "write", status: "IBV_WC_REM_ACCESS_ERR", .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(sink.deregister().unwrap(), [0; 10]);
}

#[tokio::test]
async fn a_region_can_be_used_only_as_it_was_registered() {
    for (access, write) in [
        (Access::REMOTE_READ, true),
        (Access::LOCAL_WRITE, true),
        (Access::REMOTE_WRITE, false),
        (Access::LOCAL_READ, false),
    ] {
        // siw answers Reads of whatever is registered (the kernel checks no right to be read).
        if kind() == FabricKind::Siw && !write {
            continue;
        }
        let (a, b) = pair().await;
        let theirs = b.region(vec![7; 10], access);
        let ours = a.region(vec![1; 10], Access::REMOTE_WRITE);
        let work = if write {
            a.connection.write(&ours, 0, 10, at(&theirs, 0))
        } else {
            a.connection.read(&ours, 0, 10, at(&theirs, 0))
        };
        assert_broken(&soon(a.connection.closed()).await);
        let result = soon(work).await;
        assert!(write || result.is_err(), "{access:?}");
        assert_eq!(theirs.deregister().unwrap(), [7; 10], "{access:?}");
        assert_eq!(ours.deregister().unwrap(), [1; 10], "{access:?}");
    }
}

#[tokio::test]
async fn a_write_beyond_a_region_touches_nothing_after_it() {
    let (a, b) = pair().await;
    let sink = b.region(vec![0; 100], Access::REMOTE_WRITE);
    let source = a.region(vec![1; 100], Access::LOCAL_READ);
    drop(a.connection.write(&source, 0, 100, at(&sink, 1)));
    assert_broken(&soon(a.connection.closed()).await);
    let memory = sink.deregister().unwrap();
    assert_eq!((memory.len(), memory[0]), (100, 0));
}

#[tokio::test]
async fn a_connection_sees_the_regions_of_its_own_domain_only() {
    let (a, b) = pair().await;
    let source = a.region(vec![1; 10], Access::LOCAL_READ);
    // Of the connecting side's own domain, which is not the accepting side's.
    let sink = a.region(vec![0; 10], Access::REMOTE_WRITE);
    drop(a.connection.write(&source, 0, 10, at(&sink, 0)));
    assert_broken(&soon(b.connection.closed()).await);
    assert_eq!(sink.deregister().unwrap(), [0; 10]);
}

#[tokio::test]
async fn a_region_that_is_deregistered_while_it_is_written_to_is_touched_no_more() {
    let (a, b) = pair().await;
    let length = 16 << 20;
    let source = a.region(vec![1; length], Access::LOCAL_READ);
    let sink = b.region(vec![0; length], Access::REMOTE_WRITE);
    let signal = b.region(vec![0; 1], Access::REMOTE_WRITE);
    let to = at(&sink, 0);
    soon(a.connection.write(&source, 0, 1, at(&signal, 0))).await.unwrap();
    let written: Vec<_> = (0..8).map(|_| a.connection.write(&source, 0, length, to)).collect();
    let sent = a.connection.send(Bytes::from_static(b"never"));
    let memory = sink.deregister().unwrap();
    let before: Vec<u8> = memory.clone();
    assert!(soon(b.connection.receive()).await.is_err());
    assert!(memory == before, "it was written to after it was handed back");
    assert_broken(&soon(a.connection.closed()).await);
    for work in written {
        // Bounded, whatever they end with.
        let _ = soon(work).await;
    }
    let _ = soon(sent).await;
    drop(signal);
}

#[tokio::test]
async fn memory_whose_work_is_still_posted_is_handed_back_at_once() {
    let (a, b) = pair().await;
    let length = 8 << 20;
    let source = a.region(pattern(length), Access::LOCAL_READ);
    let sink = b.region(vec![0; length], Access::REMOTE_WRITE);
    let written: Vec<_> = (0..8).map(|_| a.connection.write(&source, 0, length, at(&sink, 0))).collect();
    assert!(source.deregister().unwrap() == pattern(length));
    let mut failed = false;
    for work in written {
        failed |= soon(work).await.is_err();
    }
    // Whether any was left to fail is up to the scheduler; if none was, all of it was sent while it was registered.
    if !failed {
        soon(a.connection.send(Bytes::from_static(b"done"))).await.unwrap();
        assert_eq!(soon(b.connection.receive()).await.unwrap().message, "done");
        assert!(sink.deregister().unwrap() == pattern(length));
    }
}

#[tokio::test]
async fn a_file_is_a_source_of_writes_and_reads() {
    let (a, b) = pair().await;
    let body = pattern(1_000_000);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&body).unwrap();
    let file = Arc::new(file);
    // Not at a page's beginning.
    let source = a.pd.register_file(file.clone(), 5_000, 900_000).unwrap();
    assert_eq!(source.len(), 900_000);
    let sink = b.region(vec![0; 900_000], Access::REMOTE_WRITE);
    let written = a.connection.write(&source, 0, 900_000, at(&sink, 0));
    soon(a.connection.send(Bytes::from_static(b"done"))).await.unwrap();
    assert_eq!(soon(b.connection.receive()).await.unwrap().message, "done");
    soon(written).await.unwrap();
    assert!(sink.deregister().unwrap() == body[5_000..905_000]);
    let target = b.region(vec![0; 100], Access::LOCAL_WRITE);
    soon(b.connection.read(&target, 0, 100, at(&source, 17))).await.unwrap();
    assert_eq!(target.deregister().unwrap(), body[5_017..5_117]);
    assert!(matches!(a.pd.register_file(file.clone(), 999_999, 2), Err(FabricError::Invalid(_))));
    assert_eq!(a.pd.register_file(file, 7, 0).unwrap().len(), 0);
    assert!(source.deregister().unwrap().is_empty());
}

#[tokio::test]
async fn bytes_are_copied_in_and_out_of_a_region() {
    let (a, b) = pair().await;
    let region = a.region(vec![0; 8], Access::REMOTE_WRITE);
    region.copy_in(2, &[1, 2, 3]).unwrap();
    let mut out = [9; 4];
    region.copy_out(1, &mut out).unwrap();
    assert_eq!(out, [0, 1, 2, 3]);
    assert!(region.copy_in(6, &[0; 3]).is_err());
    assert!(region.copy_out(usize::MAX, &mut out).is_err());
    let sink = b.region(vec![0; 3], Access::REMOTE_WRITE);
    soon(a.connection.write(&region, 2, 3, at(&sink, 0))).await.unwrap();
    soon(a.connection.send(Bytes::new())).await.unwrap();
    soon(b.connection.receive()).await.unwrap();
    assert_eq!(sink.deregister().unwrap(), [1, 2, 3]);
}

#[tokio::test]
async fn what_cannot_work_is_found_before_it_is_sent() {
    let (a, b) = pair().await;
    let region = a.region(vec![0; 10], Access::LOCAL_READ);
    let to = RemoteAddress { stag: Stag(1), to: 0 };
    for (offset, length) in [(0, 11), (10, 1), (usize::MAX, 1)] {
        let error = a.connection.write(&region, offset, length, to).await.unwrap_err();
        assert!(matches!(error, FabricError::Invalid(_)), "{error}");
    }
    assert!(matches!(a.connection.read(&region, 0, 1, to).await, Err(FabricError::Invalid(_))), "no right");
    let foreign = b.region(vec![0; 10], Access::LOCAL_READ);
    assert!(matches!(a.connection.write(&foreign, 0, 1, to).await, Err(FabricError::Invalid(_))));
    // And the connection is as good as ever.
    soon(a.connection.send(Bytes::from_static(b"well"))).await.unwrap();
    assert_eq!(soon(b.connection.receive()).await.unwrap().message, "well");
}

#[tokio::test]
async fn a_message_longer_than_a_receive_ends_the_connection() {
    let small = ConnectOptions { receive_size: 10, ..ConnectOptions::default() };
    let (a, b) = pair_of(&*fabric(), ConnectOptions::default(), small).await;
    let sent = a.connection.send(Bytes::from(vec![0; 11]));
    assert!(soon(b.connection.receive()).await.is_err());
    assert_broken(&soon(b.connection.closed()).await);
    assert_broken(&soon(a.connection.closed()).await);
    let _ = soon(sent).await;
}

#[tokio::test]
async fn messages_that_nobody_takes_end_in_an_error() {
    let few = ConnectOptions { receive_depth: 2, ..ConnectOptions::default() };
    let (a, b) = pair_of(&*fabric(), ConnectOptions::default(), few).await;
    let sent: Vec<_> = (0..5).map(|_| a.connection.send(Bytes::from_static(b"x"))).collect();
    let reason = soon(a.connection.closed()).await;
    assert_broken(&reason);
    for work in sent {
        let _ = soon(work).await;
    }
    // Those for which there was a receive have arrived.
    for _ in 0..2 {
        assert_eq!(soon(b.connection.receive()).await.unwrap().message, "x");
    }
    assert!(soon(b.connection.receive()).await.is_err());
}

#[tokio::test]
async fn a_receive_that_is_dropped_loses_no_message() {
    let (a, b) = pair().await;
    let (first, second) = (b.connection.receive(), b.connection.receive());
    soon(a.connection.send(Bytes::from_static(b"1"))).await.unwrap();
    soon(a.connection.send(Bytes::from_static(b"2"))).await.unwrap();
    assert_eq!(soon(second).await.unwrap().message, "2");
    drop(first);
    assert_eq!(soon(b.connection.receive()).await.unwrap().message, "1");
}

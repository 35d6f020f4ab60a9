//! What holds for any work, any bytes and any pieces.

use proptest::prelude::*;

use super::*;

/// Work in numbers, for proptest: kind and size.
fn work(kind: u8, size: u32) -> Work {
    match kind {
        0 => write(size.into()),
        1 => read(size),
        _ => send(&vec![kind; size as usize]),
    }
}

proptest! {
    #[test]
    fn any_work_in_any_pieces_completes_in_order(
        ours in proptest::collection::vec((0u8..4, 0u32..5000), 0..20),
        theirs in proptest::collection::vec((0u8..4, 0u32..5000), 0..20),
        piece in 1usize..3000,
        emss in 128usize..9000,
        crc in any::<bool>(),
        peer_to_peer in any::<bool>(),
    ) {
        let ours_config = Config { crc, peer_to_peer, ..config() };
        let mut pair = Pair::new(ours_config, Config { crc, ..config() });
        (pair.piece, pair.emss) = (piece, emss);
        pair.initiator.connection.post(send(b"first"));
        for (kind, size) in &ours {
            pair.initiator.connection.post(work(*kind, *size));
        }
        for (kind, size) in &theirs {
            pair.responder.connection.post(work(*kind, *size));
        }
        pair.run();
        prop_assert_eq!(pair.initiator.completed(), vec![Ok(()); ours.len() + 1]);
        prop_assert_eq!(pair.responder.completed(), vec![Ok(()); theirs.len()]);
        let sizes = |works: &[(u8, u32)]| {
            works.iter().filter(|w| w.0 > 1).map(|w| w.1 as usize).collect::<Vec<_>>()
        };
        let lengths = |end: &End| end.received().iter().map(|m| m.bytes.len()).collect::<Vec<_>>();
        prop_assert_eq!(&lengths(&pair.responder)[1..], sizes(&ours));
        prop_assert_eq!(lengths(&pair.initiator), sizes(&theirs));
        prop_assert!(pair.initiator.closed().is_none() && pair.responder.closed().is_none());
    }

    #[test]
    fn any_bytes_in_any_pieces_give_the_same_events(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        flips in proptest::collection::vec(any::<proptest::sample::Index>(), 0..3),
        piece in 1usize..60,
        crc in any::<bool>(),
    ) {
        // A conversation of the golden kind with some bits of it wrong, and then anything.
        let mut stream = Vec::new();
        for text in [golden::SEND, golden::WRITE, golden::READ_REQUEST, golden::SEND_SE_INVALIDATE] {
            stream.extend(hex(text));
        }
        for flip in flips {
            let at = flip.index(stream.len());
            stream[at] ^= 0x11;
        }
        stream.extend(bytes);
        let outcome = |piece: usize| {
            let initiator = Config { crc, ..config() };
            let mut pair = Pair::new(initiator, Config { crc, ..config() });
            pair.responder.memory.0.insert(Stag(0x0011_2233), vec![0; 0x2000]);
            pair.responder.memory.0.insert(Stag(0x0077_8899), vec![0; 0x4000]);
            pair.responder.inbound = stream.clone();
            pair.responder.take(piece);
            let rest = pair.responder.inbound.len();
            pair.responder.connection.handle_eof(rest);
            pair.responder.take(1);
            let out = pair.responder.transmit(1 << 20);
            (pair.responder.events, out)
        };
        prop_assert_eq!(outcome(1 << 20), outcome(piece));
    }

    #[test]
    fn any_reply_is_answered(bytes in proptest::collection::vec(any::<u8>(), 0..100), piece in 1usize..40) {
        let mut initiator = End::new(Connection::initiate(config()).unwrap());
        initiator.inbound = b"MPA ID Rep Frame".to_vec();
        initiator.inbound.extend(bytes);
        initiator.take(piece);
        initiator.connection.handle_eof(initiator.inbound.len());
        initiator.take(1);
        prop_assert!(!initiator.events.is_empty());
    }
}

//! Payload that goes to its place before its FPDU is whole.

use proptest::prelude::*;

use super::by_hand::{Quotes, framed, responder, terminate, ulpdu};
use super::*;

const WRITE: &str = "c140 00000100 0000000000000000";

/// A responder that has got the first `begun` bytes of a Write of 4000 bytes, and the rest of them.
fn begun(begun: usize) -> (End, Vec<u8>, Vec<u8>) {
    let payload: Vec<u8> = (0..4000).map(|i| (i % 251) as u8).collect();
    let segment = ulpdu(WRITE, &payload);
    let mut bytes = framed(&segment);
    let rest = bytes.split_off(begun);
    let mut end = responder();
    end.inbound = bytes;
    end.take(1 << 20);
    (end, rest, segment)
}

#[test]
fn bytes_are_placed_as_they_come_and_nothing_waits() {
    let (mut end, rest, segment) = begun(1000);
    assert_eq!((end.inbound.len(), end.connection.direct_room()), (0, 4000 - (1000 - 16)));
    assert_eq!(end.memory.0[&REGION][..984], segment[14..998]);
    // The driver reads straight into the region, and what follows comes as usual.
    let room = end.connection.direct_room();
    let filled = end.connection.fill_direct(&mut end.memory, |sink| {
        sink.copy_from_slice(&rest[..room]);
        Ok::<usize, ()>(room)
    });
    assert_eq!((filled, end.connection.direct_room()), (Some(Ok(room)), 0));
    end.inbound = rest[room..].to_vec();
    end.take(1);
    assert_eq!((end.transmit(1000).len(), end.events.len()), (0, 0));
    assert_eq!(end.memory.0[&REGION][..4000], segment[14..]);
}

#[test]
fn a_bad_crc_is_found_at_the_end() {
    let (mut end, mut rest, _) = begun(1000);
    rest[5] ^= 1;
    end.inbound = rest;
    end.take(100);
    assert_eq!(end.transmit(1000), terminate([2, 0, 0x02], Quotes::Nothing, &[]));
}

#[test]
fn a_region_that_goes_away_takes_no_more() {
    let (mut end, rest, segment) = begun(1000);
    end.memory.0.insert(REGION, vec![9; 5000]);
    let memory = std::mem::take(&mut end.memory.0);
    assert_eq!(end.connection.fill_direct(&mut end.memory, |_| Ok::<usize, ()>(1)), None);
    end.memory.0 = memory;
    end.inbound = rest;
    end.take(100);
    assert_eq!(end.transmit(1000), terminate([1, 1, 0x00], Quotes::Header, &segment));
    assert_eq!(end.memory.0[&REGION], [9; 5000], "not even after it is back");
}

#[test]
fn the_end_of_the_stream_inside_is_no_orderly_one() {
    for at in [16, 1000, 4015, 4016, 4019] {
        let (mut end, ..) = begun(at);
        end.connection.handle_eof(end.inbound.len());
        end.take(1);
        assert_eq!(end.closed(), Some(&CloseReason::Lost), "after {at} bytes");
    }
}

#[test]
fn what_is_wrong_with_the_header_waits_for_the_crc() {
    for (header, expected) in
        [("c140 00000200 0000000000000000", [1, 1, 0x00]), ("c142 00000100 0000000000000000", [1, 1, 0x00])]
    {
        let segment = ulpdu(header, &[7; 4000]);
        let bytes = framed(&segment);
        let mut end = responder();
        end.inbound = bytes[..3000].to_vec();
        end.take(1 << 20);
        assert_eq!(end.inbound.len(), 3000, "it may be the CRC that is wrong");
        end.inbound = bytes;
        end.take(1 << 20);
        assert_eq!(end.transmit(1000), terminate(expected, Quotes::Header, &segment));
    }
}

proptest! {
    #[test]
    fn straight_or_not_is_the_same(
        works in proptest::collection::vec((0u8..3, 0u32..5000), 1..10),
        pieces in proptest::collection::vec((1usize..3000, any::<bool>()), 1..40),
        emss in 1000usize..9000,
        flip in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        // What an initiator sends and its peer answers, as one string for the peer.
        let mut pair = Pair::default();
        pair.run();
        pair.sent = [Vec::new(), Vec::new()];
        pair.emss = emss;
        pair.initiator.memory.0.insert(REGION, (0..5000).map(|i| (i * 7) as u8).collect());
        for (kind, size) in works {
            pair.initiator.connection.post(match kind {
                0 => write(size.into()),
                1 => read(size),
                _ => send(&vec![kind; size as usize]),
            });
        }
        pair.run();
        let mut bytes = pair.sent[0].clone();
        if let Some(flip) = flip {
            let at = flip.index(bytes.len());
            bytes[at] ^= 0x11;
        }
        let outcome = |pieces: &[(usize, bool)]| {
            let mut end = responder();
            let mut rest = bytes.as_slice();
            for (piece, straight) in pieces.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let piece = (*piece).min(rest.len());
                let mut used = None;
                if *straight && end.inbound.is_empty() {
                    used = end.connection.fill_direct(&mut end.memory, |sink| {
                        let count = piece.min(sink.len());
                        sink[..count].copy_from_slice(&rest[..count]);
                        Ok::<usize, ()>(count)
                    });
                }
                let used = match used {
                    Some(Ok(used)) => used,
                    _ => {
                        end.inbound.extend_from_slice(&rest[..piece]);
                        piece
                    }
                };
                rest = &rest[used..];
                end.take(1 << 20);
            }
            end.connection.handle_eof(end.inbound.len());
            end.take(1);
            let out = end.transmit(1 << 20);
            let placed = end.closed() == Some(&CloseReason::PeerClosed);
            (end.events, out, placed.then_some(end.memory.0.remove(&REGION)))
        };
        prop_assert_eq!(outcome(&pieces), outcome(&[(1 << 20, false)]));
    }
}

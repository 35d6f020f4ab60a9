//! Rules of the checklist that concern a connection as a whole; those about one layer's frames are beside that layer,
//! and those about errors in [`errors`](super::errors).

use super::by_hand::{feed, framed, responder, ulpdu};
use super::*;
use crate::iwarp::ddp::Header;

/// What one side of a pair has sent as FPDUs: the header and the payload of each.
fn headers(bytes: &[u8]) -> Vec<(Header, Vec<u8>)> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while let Some(fpdu) = fpdu::Fpdu::split(rest) {
        let (header, payload) = Header::decode(fpdu.ulpdu()).unwrap();
        out.push((header, payload.to_vec()));
        rest = &rest[fpdu.bytes().len()..];
    }
    assert_eq!(rest, b"", "whole FPDUs");
    out
}

/// An established pair, with nothing sent yet.
fn established() -> Pair {
    let mut pair = Pair::default();
    pair.run();
    pair.sent = [Vec::new(), Vec::new()];
    pair
}

#[test]
fn check_02_mpa_req_parsed_from_any_fragmentation() {
    let bytes = hex(golden::REQUEST_V2);
    for end in 0..bytes.len() {
        assert_eq!(StartFrame::decode(FrameKind::Request, &bytes[..end]), Ok(None), "{end} bytes");
    }
    let mut initiator = End::new(Connection::initiate(config()).unwrap());
    initiator.transmit(1000);
    initiator.inbound = hex(golden::REPLY_V2);
    initiator.inbound[23] = 4;
    initiator.take(1);
    assert!(matches!(initiator.events[0], Event::Connected(_)), "{:?}", initiator.events);
}

#[test]
fn check_07_mpa_crc_default_is_on() {
    let options = crate::fabric::ConnectOptions::default();
    assert!(options.crc);
    let pair = Pair::default();
    assert_eq!(pair.sent[0][16] & 0x40, 0x40, "the Request asks for it");
}

#[test]
fn check_08_mpa_marker_bit_in_request_governs_responder_tx() {
    // Markers in what the responder sends are what it cannot do, so it refuses.
    let request = StartFrame { markers: true, ..config().request() };
    assert_eq!(Connection::respond(&request, &config()).unwrap_err(), NegotiationError::Markers);
}

#[test]
fn check_08_mpa_marker_bit_in_reply_governs_initiator_tx() {
    let mut initiator = End::new(Connection::initiate(config()).unwrap());
    initiator.transmit(1000);
    initiator.inbound = hex("4d504120494420526570204672616d65 d0020004 00040004");
    initiator.take(1000);
    assert_eq!(initiator.closed(), Some(&CloseReason::Start(NegotiationError::Markers)));
    assert_eq!(initiator.transmit(1000), b"");
}

#[test]
fn check_09_mpa_no_markers_when_peer_m_is_zero() {
    let mut pair = established();
    pair.initiator.connection.post(write(5000));
    pair.emss = 65535;
    pair.run();
    // A marker would be at every 512th byte; there is nothing but one FPDU.
    assert_eq!(pair.sent[0].len(), fpdu::size(5014));
    assert_eq!(headers(&pair.sent[0])[0].1.len(), 5000);
    assert_eq!(Pair::default().sent[0][16] & 0x80, 0, "and none are asked for");
}

#[test]
fn check_18_mpa_responder_ord_not_above_initiator_ird() {
    for ird in [0, 1, 2, 8] {
        let pair = Pair::new(Config { ird, ..config() }, Config { ord: 16, ..config() });
        assert_eq!(pair.responder.connection.transmitter.ord, usize::from(ird));
    }
}

#[test]
fn check_19_mpa_initiator_ord_not_above_responder_ird() {
    for ird in [0, 1, 2, 8] {
        let mut pair = Pair::new(Config { ord: 16, ..config() }, Config { ird, ..config() });
        pair.run();
        assert_eq!(pair.initiator.connection.transmitter.ord, usize::from(ird));
    }
}

#[test]
fn check_23_mpa_rtr_write_and_read_produce_no_user_completion() {
    for (flags, rtr) in [("80048004", Opcode::Write), ("80044004", Opcode::ReadRequest)] {
        let mut initiator =
            End::new(Connection::initiate(Config { peer_to_peer: true, ..config() }).unwrap());
        initiator.transmit(1000);
        initiator.inbound = hex(&format!("4d504120494420526570204672616d65 50020004 {flags}"));
        initiator.take(1000);
        let rtr_bytes = initiator.transmit(1000);
        assert_eq!(headers(&rtr_bytes)[0].0.control().ulp & 0x0f, rtr.number());
        assert_eq!(initiator.completed(), []);
        // The responder's program sees that it is connected, and no more.
        let request =
            StartFrame::decode(FrameKind::Request, &hex(golden::REQUEST_V2_P2P)).unwrap().unwrap().0;
        let mut responder = End::new(Connection::respond(&request, &config()).unwrap());
        responder.connection.apply(&Negotiated { crc: true, ird: 4, ord: 4, private_data: Bytes::new() });
        responder.inbound = rtr_bytes;
        responder.take(1000);
        assert!(matches!(responder.events.as_slice(), [Event::Connected(_)]), "{:?}", responder.events);
    }
}

#[test]
fn an_rtr_send_takes_a_receive() {
    let mut initiator = End::new(Connection::initiate(Config { peer_to_peer: true, ..config() }).unwrap());
    initiator.transmit(1000);
    initiator.inbound = hex("4d504120494420526570204672616d65 50020004 c0040004");
    initiator.take(1000);
    let rtr = initiator.transmit(1000);
    assert_eq!((headers(&rtr).len(), rtr[3]), (1, 0x43), "a Send, and alone");
    assert_eq!(initiator.completed(), []);
    let bytes = hex("4d504120494420526571204672616d65 50020004 c0040004");
    let request = StartFrame::decode(FrameKind::Request, &bytes).unwrap().unwrap().0;
    let mut responder = End::new(Connection::respond(&request, &config()).unwrap());
    assert_eq!(responder.transmit(1000)[20..24], hex("c0040004"), "nothing else was offered");
    responder.inbound = rtr;
    responder.take(1000);
    assert!(matches!(responder.events.as_slice(), [Event::Connected(_), Event::Received(_)]));
    assert_eq!(responder.posted, 999);
}

#[test]
fn check_30_fpdu_length_excludes_header_pad_crc() {
    let mut pair = established();
    pair.initiator.connection.post(write(5));
    pair.run();
    assert_eq!(pair.sent[0][..2], 19u16.to_be_bytes(), "14 of header and 5 of payload");
    assert_eq!(pair.sent[0].len(), 2 + 19 + 3 + 4);
}

#[test]
fn check_37_fpdu_ulpdu_sent_at_most_64768() {
    let mut pair = established();
    pair.emss = 1 << 20;
    for end in [&mut pair.initiator, &mut pair.responder] {
        end.memory.0.insert(REGION, vec![7; 200_000]);
    }
    pair.initiator.connection.post(write(200_000));
    pair.initiator.connection.post(send(&vec![1; 200_000]));
    pair.run();
    let lengths: Vec<_> = headers(&pair.sent[0])
        .iter()
        .map(|(header, payload)| payload.len() + if header.is_tagged() { 14 } else { 18 })
        .collect();
    assert_eq!(lengths.iter().max(), Some(&64768));
    assert_eq!(lengths.len(), 8);
    assert_eq!(pair.responder.received()[0].bytes.len(), 200_000);
}

#[test]
fn check_44_ddp_mo_zero_first_then_cumulative() {
    let mut pair = established();
    pair.initiator.connection.post(send(&[7; 3000]));
    pair.run();
    let mut expected = 0;
    for (header, payload) in headers(&pair.sent[0]) {
        let Header::Untagged { offset, .. } = header else { panic!("a Send is untagged") };
        assert_eq!(offset as usize, expected);
        expected += payload.len();
    }
    assert_eq!(expected, 3000);
}

#[test]
fn check_45_ddp_last_flag_only_on_final_segment() {
    let mut pair = established();
    pair.initiator.connection.post(write(3000));
    pair.initiator.connection.post(send(&[7; 3000]));
    pair.run();
    for bytes in [true, false] {
        let last: Vec<bool> = headers(&pair.sent[0])
            .iter()
            .filter(|(header, _)| header.is_tagged() == bytes)
            .map(|(header, _)| header.control().last)
            .collect();
        assert_eq!(last, [vec![false; last.len() - 1], vec![true]].concat());
        assert!(last.len() > 3);
    }
}

#[test]
fn check_46_ddp_zero_length_message_is_one_segment() {
    let mut pair = established();
    pair.initiator.connection.post(write(0));
    pair.initiator.connection.post(send(b""));
    pair.initiator.connection.post(read(0));
    pair.run();
    let sent = headers(&pair.sent[0]);
    assert_eq!(sent.len(), 3);
    assert!(sent[..2].iter().all(|(header, payload)| header.control().last && payload.is_empty()));
    let answered = headers(&pair.sent[1]);
    assert!(
        matches!(answered.as_slice(), [(header, payload)] if header.control().last && payload.is_empty())
    );
}

#[test]
fn check_47_ddp_stag_qn_msn_constant_across_message() {
    let mut pair = established();
    pair.initiator.connection.post(write(3000));
    pair.initiator.connection.post(send(&[7; 3000]));
    pair.run();
    let mut to_expected = 0;
    for (header, payload) in headers(&pair.sent[0]) {
        match header {
            Header::Tagged { stag, to, .. } => {
                assert_eq!((stag, to), (REGION, to_expected));
                to_expected += payload.len() as u64;
            }
            Header::Untagged { queue, msn, .. } => assert_eq!((queue.0, msn.0), (0, 1)),
        }
    }
}

#[test]
fn check_48_ddp_tagged_and_untagged_may_interleave() {
    let mut end = responder();
    let segments = [
        ulpdu("8140 00000100 0000000000000000", b"ab"),
        ulpdu("0143 00000000 00000000 00000001 00000000", b"mess"),
        ulpdu("8140 00000100 0000000000000002", b"cd"),
        ulpdu("4143 00000000 00000000 00000001 00000004", b"age"),
        ulpdu("c140 00000100 0000000000000004", b"ef"),
    ];
    assert_eq!(feed(&mut end, &segments), b"");
    assert_eq!(end.received()[0].bytes, "message");
    assert_eq!(end.memory.0[&REGION][..6], *b"abcdef");
}

#[test]
fn check_55_ddp_delivery_in_order_and_at_most_once() {
    let mut pair = established();
    for n in 0..50u8 {
        pair.initiator.connection.post(send(&vec![n; usize::from(n) * 40]));
    }
    pair.piece = 7;
    pair.run();
    let received: Vec<(usize, Option<u8>)> =
        pair.responder.received().iter().map(|m| (m.bytes.len(), m.bytes.first().copied())).collect();
    let expected: Vec<_> = (0..50u8).map(|n| (usize::from(n) * 40, (n > 0).then_some(n))).collect();
    assert_eq!(received, expected);
}

#[test]
fn check_59_rdmap_invalidate_field_zero_on_other_opcodes_and_ignored() {
    let mut end = responder();
    // A Send and a Send with SE, with an STag where only the invalidating ones have one.
    let segments = [
        ulpdu("4143 00000100 00000000 00000001 00000000", b"x"),
        ulpdu("4145 00000100 00000000 00000002 00000000", b"y"),
    ];
    assert_eq!(feed(&mut end, &segments), b"");
    assert!(end.received().iter().all(|message| message.invalidated.is_none()));
    assert!(end.memory.0.contains_key(&REGION));
    let mut pair = established();
    pair.initiator.connection.post(send(b"x"));
    pair.initiator.connection.post(read(1));
    pair.run();
    for (header, _) in headers(&pair.sent[0]) {
        assert!(matches!(header, Header::Untagged { invalidate: Stag(0), .. }));
    }
}

#[test]
fn check_61_rdmap_write_zero_length_skips_stag_check() {
    let mut end = responder();
    for to in ["0000000000000000", "ffffffffffffffff"] {
        assert_eq!(feed(&mut end, &[ulpdu(&format!("c140 deadbeef {to}"), b"")]), b"");
    }
    assert_eq!(end.events, []);
}

#[test]
fn check_62_rdmap_read_request_is_46_bytes_qn1_mo0() {
    let mut pair = established();
    for _ in 0..2 {
        pair.initiator.connection.post(Work::Read {
            sink: REGION,
            sink_to: 0x20,
            length: 8,
            source: REGION,
            source_to: 0x30,
        });
    }
    pair.run();
    let mut expected = Vec::new();
    for msn in ["00000001", "00000002"] {
        expected.extend(framed(&hex(&format!(
            "4141 00000000 00000001 {msn} 00000000 00000100 0000000000000020 00000008 00000100 0000000000000030"
        ))));
    }
    assert_eq!(pair.sent[0], expected);
    assert_eq!(expected.len(), 2 * 52);
}

#[test]
fn check_63_rdmap_read_zero_length_answered_without_source_check() {
    let mut end = responder();
    let request = hex(
        "4141 00000000 00000001 00000001 00000000 00445566 0000000000002000 00000000 deadbeef ffffffffffffffff",
    );
    assert_eq!(feed(&mut end, &[request]), framed(&hex("c142 00445566 0000000000002000")));
}

#[test]
fn check_64_rdmap_read_response_copies_sink_stag_and_to() {
    let mut end = responder();
    end.memory.0.insert(REGION, (0..100).collect());
    // The sink is any value that the requester likes, and its offset may even wrap.
    let request = hex(
        "4141 00000000 00000001 00000001 00000000 cafe0001 fffffffffffffffe 00000004 00000100 0000000000000010",
    );
    assert_eq!(feed(&mut end, &[request]), framed(&hex("c142 cafe0001 fffffffffffffffe 10111213")));
}

#[test]
fn check_65_rdmap_read_responses_in_request_order() {
    let mut pair = established();
    for (n, length) in [(0u64, 2000u32), (1, 3), (2, 900), (3, 1)] {
        pair.initiator.connection.post(Work::Read {
            sink: REGION,
            sink_to: n * 1000,
            length: length.min(1000),
            source: REGION,
            source_to: 0,
        });
    }
    pair.run();
    let starts: Vec<u64> = headers(&pair.sent[1])
        .iter()
        .filter_map(|(header, _)| if let Header::Tagged { to, .. } = header { Some(*to) } else { None })
        .collect();
    assert!(starts.is_sorted(), "{starts:?}");
    assert_eq!(pair.initiator.completed(), [Ok(()); 4]);
}

#[test]
fn check_66_rdmap_read_completes_only_on_last_response_segment() {
    let mut end = super::by_hand::reader();
    feed(&mut end, &[ulpdu("8142 00000100 0000000000000000", b"1234567")]);
    assert_eq!(end.completed(), []);
    feed(&mut end, &[ulpdu("8142 00000100 0000000000000007", b"8")]);
    assert_eq!(end.completed(), [], "all bytes are there, but it was not the last segment");
    feed(&mut end, &[ulpdu("c142 00000100 0000000000000008", b"")]);
    assert_eq!(end.completed(), [Ok(())]);
    assert_eq!(end.memory.0[&REGION][..8], *b"12345678");
}

#[test]
fn check_69_rdmap_send_consumes_one_receive_even_if_empty() {
    let mut end = responder();
    end.posted = 2;
    for msn in ["00000001", "00000002"] {
        feed(&mut end, &[ulpdu(&format!("4143 00000000 00000000 {msn} 00000000"), b"")]);
    }
    assert_eq!((end.received().len(), end.posted), (2, 0));
    let answer = feed(&mut end, &[ulpdu("4143 00000000 00000000 00000003 00000000", b"")]);
    assert_eq!(answer[20..22], [0x12, 0x02], "a third has no buffer");
}

#[test]
fn check_74_rdmap_completions_in_posting_order() {
    let mut pair = established();
    // A Read, and then what could be done at once.
    pair.initiator.connection.post(read(5000));
    pair.initiator.connection.post(write(10));
    pair.initiator.connection.post(send(b"x"));
    let out = pair.initiator.transmit(1 << 20);
    pair.initiator.take(1);
    assert_eq!(pair.initiator.completed(), [], "the transport has all of it, but the Read is not done");
    pair.responder.inbound = out;
    pair.run();
    assert_eq!(pair.initiator.completed(), [Ok(()); 3]);
}

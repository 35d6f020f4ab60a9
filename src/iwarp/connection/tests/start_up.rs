//! From the first frame to the first FPDU.

use super::*;

#[test]
fn established_with_what_was_settled() {
    let mut pair = Pair::new(Config { ord: 2, ..config() }, Config { crc: false, ird: 1, ..config() });
    pair.run();
    let expected = |ird, ord| Negotiated { crc: true, ird, ord, private_data: Bytes::from_static(b"pd") };
    assert_eq!(pair.initiator.events, [Event::Connected(expected(4, 1))]);
    assert_eq!(pair.responder.events, [Event::Connected(expected(1, 4))]);
}

#[test]
fn check_24_mpa_responder_holds_fpdus_until_first_fpdu_received() {
    let mut pair = Pair::default();
    pair.responder.connection.post(send(b"held"));
    pair.run();
    assert_eq!(pair.seen(Side::Responder), []);
    pair.initiator.connection.post(write(0));
    pair.run();
    assert_eq!(pair.seen(Side::Responder), [(PLAIN, true, 4)]);
    assert_eq!(pair.initiator.received()[0].bytes, "held");
}

#[test]
fn check_22_mpa_rtr_is_first_fpdu_and_precedes_established() {
    for (ord, rtr) in [(4, Opcode::Write), (0, Opcode::Write)] {
        let mut pair = Pair::new(Config { peer_to_peer: true, ord, ..config() }, config());
        pair.initiator.connection.post(send(b"posted early"));
        assert!(pair.responder.connection.poll_event().is_none(), "not established before the RTR");
        pair.run();
        assert_eq!(pair.seen(Side::Initiator), [(rtr, true, 0), (PLAIN, true, 12)]);
        assert!(matches!(pair.responder.events[0], Event::Connected(_)));
        // mpa_rtr_write_and_read_produce_no_user_completion
        assert_eq!(pair.initiator.completed(), [Ok(())]);
    }
}

#[test]
fn an_rtr_read_is_answered_and_seen_by_no_program() {
    let mut initiator = End::new(Connection::initiate(Config { peer_to_peer: true, ..config() }).unwrap());
    initiator.transmit(1000);
    // The Reply takes an RTR by Read only.
    initiator.inbound = hex("4d504120494420526570204672616d65 50020004 80044004");
    initiator.take(1);
    let out = initiator.transmit(1000);
    assert_eq!((out.len(), out[3]), (52, 0x41), "a Read Request");
    initiator.connection.post(send(b"x"));
    initiator.transmit(1000);
    assert_eq!(initiator.completed(), [], "completions stay in order behind it");
    let mut response = Vec::new();
    let start = fpdu::begin(&mut response);
    response.extend_from_slice(&hex("c142 00000000 0000000000000000"));
    fpdu::seal(&mut response, start, true);
    initiator.inbound = response;
    initiator.take(1);
    assert_eq!(initiator.completed(), [Ok(())]);
}

#[test]
fn check_12_mpa_reply_r_bit_surfaces_reject_with_private_data() {
    let mut initiator = End::new(Connection::initiate(config()).unwrap());
    initiator.inbound = hex("4d504120494420526570204672616d65 30020006 00000000 6e6f");
    initiator.take(3);
    assert_eq!(initiator.events, [Event::Rejected(Bytes::from_static(b"no"))]);
    assert!(initiator.transmit(1000).starts_with(b"MPA ID Req"));
    assert!(initiator.connection.is_drained());
}

#[test]
fn check_20_mpa_insufficient_ird_terminates_2_0_06() {
    let mut initiator = End::new(Connection::initiate(config()).unwrap());
    initiator.transmit(1000);
    initiator.inbound = hex("4d504120494420526570204672616d65 50020004 00100010");
    initiator.take(1000);
    assert!(matches!(initiator.closed(), Some(CloseReason::Start(NegotiationError::Ird { .. }))));
    let out = initiator.transmit(1000);
    assert_eq!(out[20..24], [0x20, 0x06, 0, 0]);
    assert_eq!(initiator.transmit(1000), b"", "rdmap_nothing_sent_after_terminate");
}

/// RFC 5044, section 8: after an invalid frame "the TCP connection MUST be immediately closed", so 2/0/04 is what we
/// report and never what we send.
#[test]
fn mpa_2_0_04_invalid_reply_closes_without_a_terminate() {
    let replies = [
        ("4d504120494420526570204672616d66 50020004 00040004", "the key"),
        ("4d504120494420526571204672616d65 50020004 00040004", "a second Request"),
        ("4d504120494420526570204672616d65 50000004 00040004", "revision 0"),
        ("4d504120494420526570204672616d65 50030004 00040004", "revision 3"),
        ("4d504120494420526570204672616d65 40010000", "revision 1 to a Request of 2"),
        ("4d504120494420526570204672616d65 40020000", "no enhanced header"),
        ("4d504120494420526570204672616d65 50020003 000400", "half an enhanced header"),
        ("4d504120494420526570204672616d65 50020201 00040004", "513 bytes of private data"),
        ("4d504120494420526570204672616d65 d0020004 00040004", "markers"),
    ];
    for (reply, what) in replies {
        let mut initiator = End::new(Connection::initiate(config()).unwrap());
        initiator.transmit(1000);
        initiator.inbound = hex(reply);
        initiator.take(7);
        assert!(matches!(initiator.closed(), Some(CloseReason::Start(_))), "{what}: {:?}", initiator.events);
        assert_eq!(initiator.transmit(1000), b"", "{what}");
        assert!(initiator.connection.is_drained(), "{what}");
        initiator.connection.post(send(b"x"));
        assert_eq!(initiator.transmit(1000), b"", "{what}");
    }
}

/// siw answers an invalid Reply by a Terminate all the same; who gets one knows what it says.
#[test]
fn mpa_2_0_04_of_a_peer_is_understood() {
    for body in ["20040000", "02040000"] {
        let mut pair = Pair::default();
        let mut terminate = hex(&format!("00164147 00000000 00000002 00000001 00000000 {body} 00000000"));
        pair.responder.inbound.append(&mut terminate);
        pair.responder.take(1000);
        let expected = Code::MPA_START;
        assert!(matches!(pair.responder.closed(), Some(CloseReason::Terminated(t)) if t.code == expected));
    }
}

/// RFC 6581, section 8: 2/0/05 is for a local failure between the Reply and the RTR. There is none: the RTR of each form is
/// made without memory, whatever becomes of that.
#[test]
fn mpa_2_0_05_no_local_failure_between_reply_and_rtr() {
    for (reply, control) in [("80044004", 0x41), ("80048004", 0x40), ("c0040004", 0x43)] {
        let mut initiator =
            End::new(Connection::initiate(Config { peer_to_peer: true, ..config() }).unwrap());
        initiator.memory.0.clear();
        initiator.memory.1 = Some(Denied::InvalidStag);
        initiator.transmit(1000);
        initiator.inbound = hex(&format!("4d504120494420526570204672616d65 50020004 {reply}"));
        initiator.take(1000);
        let rtr = initiator.transmit(1000);
        assert_eq!(rtr[3], control, "{reply}: the RTR, not a Terminate");
        assert!(initiator.closed().is_none());
    }
}

#[test]
fn check_40_fpdu_start_up_terminate_with_zero_crc_tolerated() {
    let mut pair = Pair::default();
    let mut terminate = hex("00164147 00000000 00000002 00000001 00000000 02060100 00000000");
    pair.responder.inbound.append(&mut terminate);
    pair.responder.take(1000);
    let expected = Code::MPA_IRD;
    assert!(matches!(pair.responder.closed(), Some(CloseReason::Terminated(t)) if t.code == expected));
}

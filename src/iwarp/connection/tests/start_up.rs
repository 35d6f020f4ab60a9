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

#[test]
fn check_40_fpdu_start_up_terminate_with_zero_crc_tolerated() {
    let mut pair = Pair::default();
    let mut terminate = hex("00164147 00000000 00000002 00000001 00000000 02060100 00000000");
    pair.responder.inbound.append(&mut terminate);
    pair.responder.take(1000);
    let expected = Code::MPA_IRD;
    assert!(matches!(pair.responder.closed(), Some(CloseReason::Terminated(t)) if t.code == expected));
}

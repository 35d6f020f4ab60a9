//! Messages, their order, their errors, and the end.

use super::*;

#[test]
fn check_60_rdmap_write_not_surfaced_to_target_ulp() {
    let mut pair = Pair::default();
    pair.initiator.memory.0.insert(REGION, (0..5000).map(|i| i as u8).collect());
    pair.initiator.connection.post(write(5000));
    pair.run();
    assert_eq!(pair.responder.events.len(), 1, "established, and no more");
    assert_eq!(pair.responder.memory.0[&REGION], pair.initiator.memory.0[&REGION]);
    // ddp_last_flag_only_on_final_segment
    let flags: Vec<bool> = pair.seen(Side::Initiator).iter().map(|s| s.1).collect();
    assert_eq!(flags.len(), 10);
    assert!(flags[9] && flags[..9].iter().all(|last| !last));
}

#[test]
fn rdmap_zero_length_skips_all_checks() {
    let mut pair = Pair::default();
    let nowhere = Stag(0xdead_0001);
    let work = Work::Write { source: nowhere, source_to: 9, length: 0, sink: nowhere, sink_to: u64::MAX };
    pair.initiator.connection.post(work);
    let work = Work::Read { sink: nowhere, sink_to: 9, length: 0, source: nowhere, source_to: u64::MAX };
    pair.initiator.connection.post(work);
    pair.initiator.connection.post(send(b""));
    pair.run();
    assert_eq!(pair.initiator.completed(), [Ok(()); 3]);
    assert_eq!(pair.responder.received()[0].bytes, "", "rdmap_send_consumes_one_receive_even_if_empty");
    assert_eq!(pair.responder.posted, 999);
}

#[test]
fn check_67_rdmap_ord_limit_never_exceeded() {
    let mut pair = Pair::new(Config { ord: 2, ..config() }, config());
    pair.run();
    for _ in 0..7 {
        pair.initiator.connection.post(read(10));
    }
    pair.initiator.connection.post(send(b"behind"));
    let out = pair.initiator.transmit(1 << 20);
    assert_eq!(out.len(), 2 * 52, "two requests, and nothing overtakes the third");
    pair.responder.inbound.extend(out);
    pair.run();
    assert_eq!(pair.initiator.completed(), [Ok(()); 8], "rdmap_completions_in_posting_order");
    assert_eq!(pair.responder.received()[0].bytes, "behind");
}

#[test]
fn check_68_rdmap_ird_overflow_terminates() {
    let mut pair = Pair::new(config(), Config { ird: 2, ..config() });
    pair.run();
    pair.initiator.connection.transmitter.ord = 3;
    for _ in 0..3 {
        pair.initiator.connection.post(read(10));
    }
    let out = pair.initiator.transmit(1 << 20);
    pair.responder.inbound.extend(out);
    pair.responder.take(1 << 20);
    let reason = pair.responder.closed().cloned();
    assert!(matches!(reason, Some(CloseReason::Violation(v)) if v.code == Code::UNTAGGED_NO_BUFFER));
}

#[test]
fn rdmap_read_without_ord_fails_alone() {
    let mut pair = Pair::new(Config { ord: 0, ..config() }, config());
    pair.initiator.connection.post(read(10));
    pair.initiator.connection.post(send(b"x"));
    pair.run();
    assert_eq!(pair.initiator.completed(), [Err(WorkError::NoReads), Ok(())]);
}

#[test]
fn check_73_rdmap_read_after_write_returns_new_data() {
    let mut pair = Pair::default();
    pair.initiator.memory.0.insert(Stag(2 << 8), vec![7; 3000]);
    let source = Stag(2 << 8);
    pair.initiator.connection.post(Work::Write {
        source,
        source_to: 0,
        length: 3000,
        sink: REGION,
        sink_to: 0,
    });
    pair.initiator.connection.post(read(3000));
    pair.run();
    assert_eq!(pair.initiator.memory.0[&REGION][..3000], [7; 3000]);
}

#[test]
fn responses_and_work_take_turns_by_whole_messages() {
    let mut pair = Pair::new(Config { ord: 16, ..config() }, Config { ird: 16, ..config() });
    pair.run();
    for _ in 0..10 {
        pair.initiator.connection.post(read(1000));
        pair.responder.connection.post(write(1000));
    }
    pair.run();
    let seen = pair.seen(Side::Responder);
    let messages: Vec<Opcode> = seen.iter().filter(|s| s.1).map(|s| s.0).collect();
    let works: Vec<usize> = (0..messages.len()).filter(|i| messages[*i] == Opcode::Write).collect();
    assert_eq!((messages.len(), works.len()), (20, 10));
    assert!(works[0] <= 4 && works[1] <= 9, "at most four responses before work has its turn: {messages:?}");
    for pair in seen.windows(2) {
        assert!(pair[0].1 || pair[0].0 == pair[1].0, "no message is interrupted");
    }
}

#[test]
fn a_region_that_goes_away_in_the_middle_of_a_response() {
    let mut pair = Pair::default();
    pair.run();
    pair.initiator.connection.post(read(5000));
    let request = pair.initiator.transmit(1000);
    pair.responder.inbound.extend(request);
    pair.responder.take(1000);
    let first = pair.responder.transmit(1);
    assert!(!first.is_empty());
    pair.initiator.inbound.extend(first);
    pair.responder.memory.0.clear();
    pair.run();
    let Some(CloseReason::Terminated(terminate)) = pair.initiator.closed() else { panic!() };
    assert_eq!(terminate.code, Code::READ_INVALID_STAG);
    let request = terminate.quote.as_ref().unwrap().read_request.unwrap();
    assert_eq!((request.source_to, request.length), (516, 4484), "adjusted to the progress made");
}

#[test]
fn a_source_that_goes_away_in_the_middle_of_a_write() {
    let mut pair = Pair::default();
    pair.run();
    pair.initiator.connection.post(write(5000));
    let first = pair.initiator.transmit(1);
    pair.responder.inbound.extend(first);
    pair.initiator.memory.0.clear();
    pair.run();
    assert!(matches!(pair.initiator.closed(), Some(CloseReason::Local(Denied::InvalidStag))));
    let reason = pair.responder.closed();
    assert!(matches!(reason, Some(CloseReason::Terminated(t)) if t.code == Code::LOCAL_CATASTROPHIC));
}

#[test]
fn a_sink_that_goes_away_fails_its_read_alone() {
    let mut pair = Pair::default();
    pair.run();
    pair.initiator.connection.post(read(5000));
    pair.initiator.connection.post(send(b"after"));
    pair.initiator.memory.0.clear();
    pair.run();
    assert_eq!(pair.initiator.completed(), [Err(WorkError::Region(Denied::InvalidStag)), Ok(())]);
    assert_eq!(pair.initiator.closed(), None);
}

#[test]
fn check_71_rdmap_send_inv_invalidates_before_completion() {
    let mut pair = Pair::default();
    let inv =
        |stag| Work::Send { message: Bytes::from_static(b"m"), invalidate: Some(stag), solicited: true };
    pair.initiator.connection.post(inv(REGION));
    pair.run();
    let message = Message { bytes: Bytes::from_static(b"m"), invalidated: Some(REGION), solicited: true };
    assert_eq!(pair.responder.received(), [&message], "rdmap_solicited_event_signalled");
    assert!(!pair.responder.memory.0.contains_key(&REGION));
    pair.initiator.connection.post(inv(REGION));
    pair.run();
    let reason = pair.initiator.closed();
    assert!(matches!(reason, Some(CloseReason::Terminated(t)) if t.code == Code::INVALIDATE_OPERATION));
}

#[test]
fn check_43_ddp_msn_starts_at_one_per_queue_and_wraps() {
    let mut pair = Pair::default();
    pair.initiator.connection.post(send(b"a"));
    pair.run();
    assert_eq!(pair.sent[0][pair.sent[0].len() - 16..][..4], 1u32.to_be_bytes());
    pair.initiator.connection.transmitter.set_send_msn(u32::MAX);
    pair.responder.connection.receiver.set_send_msn(u32::MAX);
    pair.initiator.connection.post(send(b"b"));
    pair.initiator.connection.post(send(b"c"));
    pair.run();
    assert_eq!(pair.responder.received().len(), 3);
}

#[test]
fn close_waits_for_what_is_posted_and_asked_for() {
    let mut pair = Pair::default();
    pair.run();
    pair.initiator.connection.post(read(5000));
    pair.initiator.connection.post(send(b"last"));
    pair.initiator.connection.close();
    pair.initiator.connection.post(send(b"too late"));
    assert!(!pair.initiator.connection.is_drained());
    pair.run();
    assert!(pair.initiator.connection.is_drained());
    assert_eq!(pair.initiator.completed(), [Ok(()); 2]);
    pair.responder.connection.handle_eof(0);
    pair.responder.take(1);
    assert_eq!(pair.responder.closed(), Some(&CloseReason::PeerClosed));
    assert!(pair.responder.connection.is_drained());
}

#[test]
fn reads_are_answered_after_the_peer_has_half_closed() {
    let mut pair = Pair::default();
    pair.run();
    pair.initiator.connection.post(read(5000));
    pair.initiator.connection.close();
    let request = pair.initiator.transmit(1000);
    pair.responder.inbound.extend(request);
    pair.responder.take(1000);
    pair.responder.connection.handle_eof(0);
    assert!(!pair.responder.connection.is_drained());
    pair.run();
    assert_eq!(pair.initiator.completed(), [Ok(())]);
    assert!(pair.responder.connection.is_drained());
}

#[test]
fn the_answers_of_a_half_closed_peer_end_if_their_source_does() {
    let mut pair = Pair::default();
    pair.run();
    pair.initiator.connection.post(read(5000));
    let request = pair.initiator.transmit(1000);
    pair.responder.inbound.extend(request);
    pair.responder.take(1000);
    pair.responder.connection.handle_eof(0);
    pair.responder.memory.0.clear();
    assert_eq!(pair.responder.transmit(1000), b"");
    assert!(pair.responder.connection.is_drained());
}

#[test]
fn check_77_rdmap_first_error_wins() {
    let mut pair = Pair::default();
    pair.run();
    let mut bytes = hex(golden::SEND);
    bytes[22] ^= 1;
    bytes.extend(hex(golden::TERMINATE_TAGGED));
    pair.responder.inbound = bytes;
    pair.responder.take(1 << 20);
    let reasons: Vec<_> = pair.responder.events.iter().filter(|e| matches!(e, Event::Closed(_))).collect();
    let [Event::Closed(CloseReason::Violation(violation))] = reasons.as_slice() else {
        panic!("{reasons:?}")
    };
    assert_eq!(violation.code, Code::MPA_CRC);
}

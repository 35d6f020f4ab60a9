//! Two connections in one process, joined by byte strings that are delivered in pieces of any size.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::iwarp::decode::{CrcVerdict, Decoder, Item, Side};
use crate::iwarp::golden::{self, hex};
use crate::iwarp::memory::{Reach, locate};
use crate::iwarp::mpa::Revision;
use crate::iwarp::rdmap::Opcode;

/// Regions with all rights, by STag.
#[derive(Default)]
struct Regions(HashMap<Stag, Vec<u8>>);

impl Regions {
    fn find(&mut self, stag: Stag, to: u64, length: usize) -> Result<&mut [u8], Denied> {
        let region = self.0.get_mut(&stag).ok_or(Denied::InvalidStag)?;
        let range = locate(0, region.len(), to, length)?;
        Ok(&mut region[range])
    }
}

impl Memory for Regions {
    fn place(&mut self, _: Reach, stag: Stag, to: u64, payload: &[u8]) -> Result<(), Denied> {
        self.find(stag, to, payload.len())?.copy_from_slice(payload);
        Ok(())
    }

    fn check_source(&mut self, stag: Stag, to: u64, length: u32) -> Result<(), Denied> {
        self.find(stag, to, length as usize).map(drop)
    }

    fn fetch(
        &mut self,
        _: Reach,
        stag: Stag,
        to: u64,
        length: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Denied> {
        out.extend_from_slice(self.find(stag, to, length)?);
        Ok(())
    }

    fn invalidate(&mut self, stag: Stag) -> Result<(), Denied> {
        self.0.remove(&stag).map(drop).ok_or(Denied::InvalidStag)
    }
}

fn config() -> Config {
    Config {
        revision: Revision::V2,
        crc: true,
        ird: 4,
        ord: 4,
        peer_to_peer: false,
        receive_size: 1 << 20,
        private_data: Bytes::from_static(b"pd"),
    }
}

/// One end with its memory and what came of it.
struct End {
    connection: Connection,
    memory: Regions,
    /// Bytes on their way to it.
    inbound: Vec<u8>,
    events: Vec<Event>,
    posted: usize,
}

impl End {
    fn new(connection: Connection) -> Self {
        let mut memory = Regions::default();
        memory.0.insert(Stag(1 << 8), vec![0; 5000]);
        Self { connection, memory, inbound: Vec::new(), events: Vec::new(), posted: 1000 }
    }

    /// Takes what has arrived, `piece` bytes at a time.
    fn take(&mut self, piece: usize) {
        let mut available = 0;
        loop {
            self.connection.set_posted_receives(self.posted);
            let used = self.connection.handle_bytes(&self.inbound[..available], &mut self.memory);
            self.inbound.drain(..used);
            available -= used;
            let before = self.events.len();
            while let Some(event) = self.connection.poll_event() {
                self.posted -= usize::from(matches!(event, Event::Received(_)));
                self.events.push(event);
            }
            if used == 0 && before == self.events.len() {
                if available == self.inbound.len() {
                    return;
                }
                available = (available + piece).min(self.inbound.len());
            }
        }
    }

    fn transmit(&mut self, limit: usize) -> Vec<u8> {
        let mut out = Vec::new();
        self.connection.poll_transmit(&mut out, limit, &mut self.memory);
        self.connection.handle_transmitted(out.len());
        out
    }

    fn received(&self) -> Vec<&Message> {
        self.events.iter().filter_map(|e| if let Event::Received(m) = e { Some(m) } else { None }).collect()
    }

    fn completed(&self) -> Vec<Result<(), WorkError>> {
        self.events.iter().filter_map(|e| if let Event::Completed(r) = e { Some(*r) } else { None }).collect()
    }

    fn closed(&self) -> Option<&CloseReason> {
        self.events.iter().find_map(|e| if let Event::Closed(reason) = e { Some(reason) } else { None })
    }
}

/// Both ends, and all that each has sent, for the decoder.
struct Pair {
    initiator: End,
    responder: End,
    sent: [Vec<u8>; 2],
    piece: usize,
    emss: usize,
}

impl Pair {
    fn new(ours: Config, theirs: Config) -> Self {
        let mut initiator = End::new(Connection::initiate(ours).unwrap());
        let request_bytes = initiator.transmit(1000);
        let (request, used) = StartFrame::decode(FrameKind::Request, &request_bytes).unwrap().unwrap();
        assert_eq!(used, request_bytes.len(), "no FPDU before the Reply");
        let responder = End::new(Connection::respond(&request, &theirs).unwrap());
        Self { initiator, responder, sent: [request_bytes, Vec::new()], piece: 1 << 20, emss: 536 }
    }

    fn default() -> Self {
        Self::new(config(), config())
    }

    /// Carries bytes until nothing moves.
    fn run(&mut self) {
        loop {
            self.initiator.take(self.piece);
            self.responder.take(self.piece);
            self.initiator.connection.set_emss(self.emss);
            self.responder.connection.set_emss(self.emss);
            let (a, b) = (self.initiator.transmit(2000), self.responder.transmit(2000));
            self.responder.inbound.extend_from_slice(&a);
            self.initiator.inbound.extend_from_slice(&b);
            self.sent[0].extend_from_slice(&a);
            self.sent[1].extend_from_slice(&b);
            if a.is_empty() && b.is_empty() {
                return;
            }
        }
    }

    /// What a bystander saw: opcode, last flag and payload length of each FPDU of one side.
    fn seen(&self, side: Side) -> Vec<(Opcode, bool, usize)> {
        let mut decoder = Decoder::new();
        decoder.push(Side::Initiator, &self.sent[0]).unwrap();
        decoder.push(Side::Responder, &self.sent[1]).unwrap();
        std::iter::from_fn(|| decoder.next_item())
            .filter_map(|item| match item {
                Item::Fpdu { side: from, crc, segment, .. } if from == side => {
                    assert_ne!(crc, CrcVerdict::Bad);
                    let segment = segment.unwrap();
                    Some((segment.opcode, segment.is_last(), segment.payload_length))
                }
                _ => None,
            })
            .collect()
    }
}

const REGION: Stag = Stag(1 << 8);
const PLAIN: Opcode = Opcode::Send { solicited: false, invalidate: false };

fn send(message: &[u8]) -> Work {
    Work::Send { message: Bytes::copy_from_slice(message), invalidate: None, solicited: false }
}

fn write(length: u64) -> Work {
    Work::Write { source: REGION, source_to: 0, length, sink: REGION, sink_to: 0 }
}

fn read(length: u32) -> Work {
    Work::Read { sink: REGION, sink_to: 0, length, source: REGION, source_to: 0 }
}

#[test]
fn established_with_what_was_settled() {
    let mut pair = Pair::new(Config { ord: 2, ..config() }, Config { crc: false, ird: 1, ..config() });
    pair.run();
    let expected = |ird, ord| Negotiated { crc: true, ird, ord, private_data: Bytes::from_static(b"pd") };
    assert_eq!(pair.initiator.events, [Event::Connected(expected(4, 1))]);
    assert_eq!(pair.responder.events, [Event::Connected(expected(1, 4))]);
}

#[test]
fn mpa_responder_holds_fpdus_until_first_fpdu_received() {
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
fn mpa_rtr_is_first_fpdu_and_precedes_established() {
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
fn mpa_reply_r_bit_surfaces_reject_with_private_data() {
    let mut initiator = End::new(Connection::initiate(config()).unwrap());
    initiator.inbound = hex("4d504120494420526570204672616d65 30020006 00000000 6e6f");
    initiator.take(3);
    assert_eq!(initiator.events, [Event::Rejected(Bytes::from_static(b"no"))]);
    assert!(initiator.transmit(1000).starts_with(b"MPA ID Req"));
    assert!(initiator.connection.is_drained());
}

#[test]
fn mpa_insufficient_ird_terminates_2_0_06() {
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
fn fpdu_start_up_terminate_with_zero_crc_tolerated() {
    let mut pair = Pair::default();
    let mut terminate = hex("00164147 00000000 00000002 00000001 00000000 02060100 00000000");
    pair.responder.inbound.append(&mut terminate);
    pair.responder.take(1000);
    let expected = Code::MPA_IRD;
    assert!(matches!(pair.responder.closed(), Some(CloseReason::Terminated(t)) if t.code == expected));
}

#[test]
fn rdmap_write_not_surfaced_to_target_ulp() {
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
fn rdmap_ord_limit_never_exceeded() {
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
fn rdmap_ird_overflow_terminates() {
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
fn rdmap_read_after_write_returns_new_data() {
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
fn rdmap_send_inv_invalidates_before_completion() {
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
fn ddp_msn_starts_at_one_per_queue_and_wraps() {
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
fn rdmap_first_error_wins() {
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

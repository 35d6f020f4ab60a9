//! Every error that a peer can make after the start-up (RFC 5041, section 7; RFC 5040, section 7), made by hand, and
//! its Terminate compared byte for byte.

use super::by_hand::{Quotes, expect, feed, framed, reader, responder, terminate, ulpdu};
use super::*;

const WRITE: &str = "c140 00000100 0000000000000000";

/// A Read Request of 8 bytes of region 0x100, with `source_to`.
fn request(control: &str, queue: u32, msn: u32, offset: u32, source: u32, source_to: u64) -> Vec<u8> {
    let mut out = hex(control);
    for word in [0, queue, msn, offset, 0x0044_5566] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    out.extend_from_slice(&0x2000u64.to_be_bytes());
    out.extend_from_slice(&8u32.to_be_bytes());
    out.extend_from_slice(&source.to_be_bytes());
    out.extend_from_slice(&source_to.to_be_bytes());
    out
}

/// A segment of a Send.
fn sent(control: &str, queue: u32, msn: u32, offset: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = hex(control);
    for word in [0, queue, msn, offset] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    out.extend_from_slice(payload);
    out
}

fn write_to(stag: u32, to: u64) -> Vec<u8> {
    let mut out = hex("c140");
    out.extend_from_slice(&stag.to_be_bytes());
    out.extend_from_slice(&to.to_be_bytes());
    out.extend_from_slice(b"0123456789");
    out
}

fn denying(denied: Denied) -> End {
    let mut end = responder();
    end.memory.1 = Some(denied);
    end
}

#[test]
fn tagged_segments() {
    // RFC 5041, section 7.2: an unknown STag, one whose key alone is wrong, one that was invalidated.
    for stag in [0xdead_0001, 0x101, 0] {
        expect(responder(), &[write_to(stag, 0)], [1, 1, 0x00], Quotes::Header);
    }
    let mut end = responder();
    end.memory.0.clear();
    expect(end, &[write_to(0x100, 0)], [1, 1, 0x00], Quotes::Header);
    for to in [4991, 5000, u64::from(u32::MAX), u64::MAX - 10] {
        expect(responder(), &[write_to(0x100, to)], [1, 1, 0x01], Quotes::Header);
    }
    expect(responder(), &[write_to(0x100, u64::MAX - 9)], [1, 1, 0x03], Quotes::Header);
    expect(responder(), &[ulpdu("c040 00000100 0000000000000000", b"x")], [1, 1, 0x04], Quotes::Header);
    expect(responder(), &[ulpdu("c240 00000100 0000000000000000", b"x")], [1, 1, 0x04], Quotes::Header);
    // A Read Response in the middle of a Write.
    let begun = ulpdu("8140 00000100 0000000000000000", b"");
    let response = ulpdu("c142 00000100 0000000000000000", b"12345678");
    expect(reader(), &[begun, response], [0, 2, 0x06], Quotes::Header);
}

#[test]
fn check_78_mem_pd_mismatch() {
    expect(denying(Denied::NotAssociated), &[ulpdu(WRITE, b"x")], [1, 1, 0x02], Quotes::Header);
    let bytes = request("4141", 1, 1, 0, 0x100, 0);
    expect(denying(Denied::NotAssociated), &[bytes], [0, 1, 0x03], Quotes::Request);
    let bytes = ulpdu("4144 00000100 00000000 00000001 00000000", b"x");
    expect(denying(Denied::NotAssociated), &[bytes], [0, 1, 0x09], Quotes::Header);
}

#[test]
fn check_78_mem_full_32bit_stag_match() {
    for bit in 0..32 {
        expect(responder(), &[write_to(0x100 ^ 1 << bit, 0)], [1, 1, 0x00], Quotes::Header);
        let bytes = request("4141", 1, 1, 0, 0x100 ^ 1 << bit, 0);
        expect(responder(), &[bytes], [0, 1, 0x00], Quotes::Request);
    }
}

#[test]
fn check_78_mem_read_right_required() {
    // A Write without the right has no code of its own: to the peer the STag is not valid for this.
    expect(denying(Denied::Access), &[ulpdu(WRITE, b"x")], [1, 1, 0x00], Quotes::Header);
    let bytes = request("4141", 1, 1, 0, 0x100, 0);
    expect(denying(Denied::Access), &[bytes], [0, 1, 0x02], Quotes::Request);
}

#[test]
fn read_requests() {
    let cases = [
        (request("4141", 1, 1, 0, 0x200, 0), [0, 1, 0x00], Quotes::Request),
        (request("4141", 1, 1, 0, 0x100, 4993), [0, 1, 0x01], Quotes::Request),
        (request("4141", 1, 1, 0, 0x100, u64::MAX), [0, 1, 0x04], Quotes::Request),
        (request("4141", 1, 2, 0, 0x100, 0), [1, 2, 0x03], Quotes::Header),
        (request("4141", 1, 0, 0, 0x100, 0), [1, 2, 0x03], Quotes::Header),
        (request("4141", 0, 1, 0, 0x100, 0), [1, 2, 0x01], Quotes::Header),
        (request("4141", 2, 1, 0, 0x100, 0), [1, 2, 0x01], Quotes::Header),
        (request("4141", 1, 1, 4, 0x100, 0), [1, 2, 0x04], Quotes::Header),
        // Not the last segment, too long, too short.
        (request("0141", 1, 1, 0, 0x100, 0), [1, 2, 0x05], Quotes::Header),
        ([request("4141", 1, 1, 0, 0x100, 0), vec![0]].concat(), [1, 2, 0x05], Quotes::Header),
        (request("4141", 1, 1, 0, 0x100, 0)[..45].to_vec(), [0, 2, 0xff], Quotes::Header),
    ];
    for (bytes, code, quotes) in cases {
        expect(responder(), &[bytes], code, quotes);
    }
}

#[test]
fn one_read_request_more_than_the_ird() {
    let mut pair = Pair::new(config(), Config { ird: 2, ..config() });
    pair.run();
    let mut end = pair.responder;
    let reads: Vec<_> = (1..=3).map(|msn| framed(&request("4141", 1, msn, 0, 0x100, 0))).collect();
    end.inbound = reads.concat();
    end.take(1 << 20);
    assert_eq!(
        end.transmit(1 << 20),
        terminate([1, 2, 0x02], Quotes::Header, &request("4141", 1, 3, 0, 0x100, 0))
    );
}

#[test]
fn read_responses() {
    let cases = [
        // Into another region, to another place, too long, and last but too short.
        (ulpdu("c142 00000200 0000000000000000", b"12345678"), [1, 1, 0x00]),
        (ulpdu("c142 00000100 0000000000000001", b"12345678"), [1, 1, 0x01]),
        (ulpdu("c142 00000100 0000000000000000", b"123456789"), [1, 1, 0x01]),
        (ulpdu("c142 00000100 0000000000000000", b"1234567"), [1, 1, 0x01]),
    ];
    for (bytes, code) in cases {
        expect(reader(), &[bytes], code, Quotes::Header);
    }
    let unasked = ulpdu("c142 00000100 0000000000000000", b"12345678");
    expect(responder(), &[unasked], [1, 1, 0x00], Quotes::Header);
}

#[test]
fn check_49_ddp_unknown_queue_1_2_01() {
    for queue in [1, 2, 3, 4, u32::MAX] {
        expect(responder(), &[sent("4143", queue, 1, 0, b"x")], [1, 2, 0x01], Quotes::Header);
    }
}

#[test]
fn check_50_ddp_no_buffer_1_2_02() {
    let mut end = responder();
    end.posted = 0;
    expect(end, &[sent("4143", 0, 1, 0, b"x")], [1, 2, 0x02], Quotes::Header);
}

#[test]
fn check_51_ddp_msn_out_of_range_1_2_03() {
    for msn in [0, 2, u32::MAX] {
        expect(responder(), &[sent("4143", 0, msn, 0, b"x")], [1, 2, 0x03], Quotes::Header);
    }
    // One that was delivered already.
    let mut end = responder();
    feed(&mut end, &[sent("4143", 0, 1, 0, b"x")]);
    assert_eq!(end.received().len(), 1);
    let again = sent("4143", 0, 1, 0, b"x");
    assert_eq!(feed(&mut end, std::slice::from_ref(&again)), terminate([1, 2, 0x03], Quotes::Header, &again));
}

#[test]
fn check_52_ddp_bad_mo_1_2_04() {
    expect(responder(), &[sent("4143", 0, 1, 1, b"x")], [1, 2, 0x04], Quotes::Header);
    // A gap, and an overlap.
    for offset in [0, 3, 5, u32::MAX] {
        let segments = [sent("0143", 0, 1, 0, b"four"), sent("4143", 0, 1, offset, b"x")];
        expect(responder(), &segments, [1, 2, 0x04], Quotes::Header);
    }
}

#[test]
fn check_53_ddp_message_too_long_1_2_05() {
    let mut pair = Pair::new(config(), Config { receive_size: 10, ..config() });
    pair.run();
    pair.responder.events.clear();
    expect(pair.responder, &[sent("4143", 0, 1, 0, b"eleven byte")], [1, 2, 0x05], Quotes::Header);
    let mut pair = Pair::new(config(), Config { receive_size: 10, ..config() });
    pair.run();
    pair.responder.events.clear();
    let segments = [sent("0143", 0, 1, 0, b"0123456789"), sent("4143", 0, 1, 10, b"x")];
    expect(pair.responder, &segments, [1, 2, 0x05], Quotes::Header);
}

#[test]
fn versions_and_opcodes() {
    for control in ["4043", "4243", "4343"] {
        expect(responder(), &[sent(control, 0, 1, 0, b"x")], [1, 2, 0x06], Quotes::Header);
    }
    for control in ["4103", "4183", "41c3"] {
        expect(responder(), &[sent(control, 0, 1, 0, b"x")], [0, 2, 0x05], Quotes::Header);
    }
    // Those of RFC 7306, those that nobody has, and those of the other form.
    for control in ["4148", "4149", "414a", "414b", "414f", "4140", "4142"] {
        expect(responder(), &[sent(control, 0, 1, 0, b"x")], [0, 2, 0x06], Quotes::Header);
    }
    for control in ["c141", "c143", "c147", "c148"] {
        let bytes = ulpdu(&format!("{control} 00000100 0000000000000000"), b"x");
        expect(responder(), &[bytes], [0, 2, 0x06], Quotes::Header);
    }
    // A Send of another kind in the middle of one.
    let segments = [sent("0143", 0, 1, 0, b"four"), sent("4145", 0, 1, 4, b"x")];
    expect(responder(), &segments, [0, 2, 0x06], Quotes::Header);
}

#[test]
fn operations_of_rfc_7306_are_unexpected_opcodes() {
    // Immediate Data, with and without a solicited event; an Atomic Request and a Response, each well-formed.
    for (control, queue, body) in [("4148", 0, 8), ("4149", 0, 8), ("414a", 1, 52), ("414b", 3, 12)] {
        expect(responder(), &[sent(control, queue, 1, 0, &vec![1; body])], [0, 2, 0x06], Quotes::Header);
    }
}

#[test]
fn invalidation() {
    for control in ["4144", "4146"] {
        let bytes = ulpdu(&format!("{control} 00000200 00000000 00000001 00000000"), b"x");
        expect(responder(), &[bytes], [0, 2, 0x09], Quotes::Header);
    }
}

#[test]
fn mpa_errors() {
    let mut end = responder();
    end.inbound = framed(&ulpdu(WRITE, b"x"));
    *end.inbound.last_mut().unwrap() ^= 1;
    end.take(1 << 20);
    assert_eq!(end.transmit(1000), terminate([2, 0, 0x02], Quotes::Nothing, &[]));
    for length in [0, 1, 13, 17] {
        let mut end = responder();
        // Only an untagged header needs more than 14 bytes.
        end.inbound = framed(&ulpdu("4143 00000000 00000000 00000001 00000000", b"")[..length]);
        end.take(1 << 20);
        assert_eq!(end.transmit(1000), terminate([2, 0, 0x03], Quotes::Nothing, &[]), "{length} bytes");
    }
}

#[test]
fn a_terminate_that_is_none() {
    let bytes = ulpdu("4147 00000000 00000002 00000001 00000000", b"abc");
    expect(responder(), &[bytes], [0, 2, 0xff], Quotes::Header);
}

#[test]
fn check_54_ddp_after_error_nothing_placed_or_delivered() {
    let mut end = responder();
    let good = sent("4143", 0, 1, 0, b"before");
    let bad = write_to(0x300, 0);
    let answer = feed(&mut end, &[good, bad.clone(), sent("4143", 0, 2, 0, b"after"), write_to(0x100, 0)]);
    assert_eq!(answer, terminate([1, 1, 0x00], Quotes::Header, &bad));
    assert_eq!(end.received().iter().map(|m| m.bytes.as_ref()).collect::<Vec<_>>(), [b"before"]);
    assert_eq!(end.memory.0[&REGION], vec![0; 5000]);
}

#[test]
fn check_76_rdmap_nothing_sent_after_terminate() {
    let mut end = responder();
    end.connection.post(write(5000));
    end.connection.post(read(8));
    let bad = write_to(0x300, 0);
    let answer = feed(&mut end, &[request("4141", 1, 1, 0, 0x100, 0), bad.clone()]);
    // Neither the response that was due, nor the work that was posted.
    assert_eq!(answer, terminate([1, 1, 0x00], Quotes::Header, &bad));
    end.connection.post(send(b"x"));
    end.connection.close();
    assert_eq!(end.transmit(1 << 20), b"");
    assert!(end.connection.is_drained());
}

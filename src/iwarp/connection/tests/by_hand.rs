//! Segments made by hand, byte for byte, and what must come of them.

use super::*;

/// An FPDU around `ulpdu`, with its CRC.
pub(super) fn framed(ulpdu: &[u8]) -> Vec<u8> {
    let mut out = u16::try_from(ulpdu.len()).unwrap().to_be_bytes().to_vec();
    out.extend_from_slice(ulpdu);
    out.resize(out.len().next_multiple_of(4), 0);
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// A ULPDU: a header in hexadecimal digits, then `payload`.
pub(super) fn ulpdu(header: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = hex(header);
    out.extend_from_slice(payload);
    out
}

/// An established responder, with region 0x100 of 5000 bytes, before which its peer has sent nothing.
pub(super) fn responder() -> End {
    let mut pair = Pair::default();
    pair.run();
    pair.responder.events.clear();
    pair.responder
}

/// An established initiator that has an answer due to a Read of 8 bytes into 0x100 at 0.
pub(super) fn reader() -> End {
    let mut pair = Pair::default();
    pair.run();
    pair.initiator.connection.post(read(8));
    pair.initiator.transmit(1000);
    pair.initiator.events.clear();
    pair.initiator
}

/// Gives an end the FPDUs of these ULPDUs, in two pieces, and takes its answer.
pub(super) fn feed(end: &mut End, ulpdus: &[Vec<u8>]) -> Vec<u8> {
    for ulpdu in ulpdus {
        end.inbound.extend(framed(ulpdu));
    }
    end.take(1 << 20);
    end.transmit(1 << 20)
}

/// What a Terminate quotes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Quotes {
    Nothing,
    /// The segment's DDP and RDMAP header.
    Header,
    /// That, and the Read Request's body.
    Request,
}

/// The whole FPDU of the Terminate that answers `blamed`, field by field as RFC 5040, section 4.8 draws it: layer and
/// type, code, flags, reserved, length of the segment, its header, its Read Request.
pub(super) fn terminate([layer, kind, code]: [u8; 3], quotes: Quotes, blamed: &[u8]) -> Vec<u8> {
    let mut out = hex("4147 00000000 00000002 00000001 00000000");
    let header = if blamed.first().is_some_and(|first| first & 0x80 != 0) { 14 } else { 18 };
    let (flags, quoted) = match quotes {
        Quotes::Nothing => (0x00, 0),
        Quotes::Header => (0xc0, header),
        Quotes::Request => (0xe0, header + 28),
    };
    out.extend_from_slice(&[layer << 4 | kind, code, flags, 0]);
    if quoted > 0 {
        out.extend_from_slice(&u16::try_from(blamed.len()).unwrap().to_be_bytes());
        out.extend_from_slice(&blamed[..quoted]);
    }
    framed(&out)
}

/// The last of `ulpdus` is an error: the answer is exactly this Terminate, and nothing is placed, delivered or sent
/// after it.
pub(super) fn expect(mut end: End, ulpdus: &[Vec<u8>], code: [u8; 3], quotes: Quotes) {
    let blamed = ulpdus.last().expect("one is wrong").clone();
    let (sound, wrong) = ulpdus.split_at(ulpdus.len() - 1);
    assert_eq!(feed(&mut end, sound), b"", "nothing is wrong before");
    let (memory, events) = (end.memory.0.clone(), end.events.len());
    // Behind it come a Send and a Write that would be in order.
    let late = [
        wrong[0].clone(),
        hex("4143 00000000 00000000 00000001 00000000 6c617465"),
        hex("c140 00000100 0000000000000000 ff"),
    ];
    let answer = feed(&mut end, &late);
    let what = format!("{code:x?} for {blamed:02x?}");
    assert_eq!(answer, terminate(code, quotes, &blamed), "{what}");
    assert_eq!(end.memory.0, memory, "nothing is placed: {what}");
    assert!(
        matches!(&end.events[events..], [Event::Closed(CloseReason::Violation(v))]
            if [v.code.layer, v.code.error_type, v.code.code] == code),
        "{:?}",
        end.events
    );
    assert!(end.connection.is_drained());
    end.connection.post(send(b"no more"));
    assert_eq!(end.transmit(1000), b"", "{what}");
    assert_eq!(end.inbound, b"", "what comes later is dropped");
}

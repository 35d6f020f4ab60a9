//! Any bytes as FPDUs, segments, Terminates and a captured conversation.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[expect(dead_code, unreachable_pub, reason = "a library's module, used in part")]
#[path = "../../src/iwarp/mod.rs"]
mod iwarp;

use iwarp::decode::{Decoder, Side};
use iwarp::fpdu::{self, Fpdu};
use iwarp::rdmap::Segment;
use iwarp::terminate::Terminate;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Some(fpdu) = Fpdu::split(rest) {
        assert_eq!(fpdu.bytes().len(), fpdu::size(fpdu.ulpdu().len()));
        let mut again = Vec::new();
        let start = fpdu::begin(&mut again);
        again.extend_from_slice(fpdu.ulpdu());
        fpdu::seal(&mut again, start, true);
        assert!(Fpdu::split(&again).expect("whole").crc_is_good());
        if let Ok(segment) = Segment::decode(fpdu.ulpdu()) {
            let mut header = Vec::new();
            segment.header.encode(&mut header);
            assert_eq!(header.len() + segment.payload.len(), fpdu.ulpdu().len());
            if let Ok(terminate) = Terminate::decode(segment.payload) {
                let mut body = Vec::new();
                terminate.encode(&mut body);
                Terminate::decode(&body).expect("what was read can be written and read");
            }
        }
        rest = &rest[fpdu.bytes().len()..];
    }
    let mut decoder = Decoder::new();
    if let Some((at, bytes)) = bytes.split_first() {
        let (first, second) = bytes.split_at(bytes.len().min(usize::from(*at)));
        let _ = decoder.push(Side::Initiator, first);
        let _ = decoder.push(Side::Responder, second);
        while decoder.next_item().is_some() {}
        let _ = decoder.finish(Side::Initiator);
        let _ = decoder.finish(Side::Responder);
    }
});

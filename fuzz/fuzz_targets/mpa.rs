//! Any bytes as a start-up frame: what is read is written back the same, and it is read the same in pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;

// Only the state machine: it builds in seconds, and the HTTP stack around it is not what is tested.
#[expect(dead_code, unreachable_pub, reason = "a library's module, used in part")]
#[path = "../../src/iwarp/mod.rs"]
mod iwarp;

use iwarp::mpa::{FrameKind, StartFrame};

fuzz_target!(|bytes: &[u8]| {
    for kind in [FrameKind::Request, FrameKind::Reply] {
        let whole = StartFrame::decode(kind, bytes);
        for end in 0..bytes.len() {
            // A part of it is either not enough, or already what the whole is.
            match StartFrame::decode(kind, &bytes[..end]) {
                Ok(None) => {}
                part => assert_eq!(part, whole),
            }
        }
        if let Ok(Some((frame, used))) = whole {
            let mut again = Vec::new();
            frame.encode(&mut again).expect("what was read can be written");
            assert_eq!(again.len(), used);
            let (read, _) = StartFrame::decode(kind, &again).expect("well-formed").expect("whole");
            assert_eq!(read, frame);
        }
    }
});

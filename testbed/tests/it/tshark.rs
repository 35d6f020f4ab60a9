//! tshark as an independent judge of what went over a lab's wire, and of our own decoder.

use std::path::{Path, PathBuf};
use std::process::Command;

use testbed::scenario::wire::{self, Conversation, Item, Run};

use crate::run::golden;
use crate::support::{Labs, skip};

#[path = "../../../tests/it/tshark/dissection.rs"]
mod dissection;

use self::dissection::DISSECTION;

fn tshark(capture: &Path, args: &[&str]) -> String {
    let output = Command::new("tshark").arg("-r").arg(capture).args(DISSECTION).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs scenarios in a lab that is kept, and returns their captures.
fn captures(labs: &Labs, scenarios: &[&str]) -> Vec<PathBuf> {
    let golden = golden(labs);
    let mut args = vec!["run", "wan-10g", "--keep", "--golden", golden.to_str().unwrap()];
    args.extend(scenarios);
    labs.expect(0, &args);
    let lab = labs.lab("wan-10g");
    let entries: Vec<_> = std::fs::read_dir(&lab).unwrap().map(|entry| entry.unwrap()).collect();
    scenarios
        .iter()
        .map(|scenario| {
            let prefix = format!("run-{scenario}-");
            let mut runs = entries.iter().filter(|e| e.file_name().to_str().unwrap().starts_with(&prefix));
            runs.next().unwrap().path().join("wire.pcapng")
        })
        .collect()
}

/// One FPDU as tshark sees it.
#[derive(Debug)]
struct Fpdu {
    opcode: u8,
    last: bool,
    stag: u32,
    to: u64,
    /// Bytes after the DDP header.
    payload: u64,
}

fn number(text: &str) -> u64 {
    let parsed = match text.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|_| panic!("{text:?}"))
}

/// Every FPDU, in tshark's words. A frame holds many, so each field is a list.
fn fpdus(capture: &Path) -> Vec<Fpdu> {
    let fields = [
        "iwarp_mpa.ulpdulength",
        "iwarp_rdma.opcode",
        "iwarp_ddp.tagged_flag",
        "iwarp_ddp.last_flag",
        "iwarp_ddp.stag",
        "iwarp_ddp.tagged_offset",
    ];
    let mut args = vec!["-Y", "iwarp_mpa.fpdu", "-T", "fields"];
    args.extend(fields.iter().flat_map(|field| ["-e", *field]));
    let mut found = Vec::new();
    for line in tshark(capture, &args).lines() {
        let lists: Vec<Vec<&str>> =
            line.split('\t').map(|list| list.split(',').filter(|v| !v.is_empty()).collect()).collect();
        let [lengths, opcodes, tagged, last, stags, offsets] = &lists[..] else { panic!("{line:?}") };
        let (mut stags, mut offsets) = (stags.iter(), offsets.iter());
        for (index, length) in lengths.iter().enumerate() {
            let is = |list: &[&str]| matches!(list[index], "1" | "True");
            let (stag, to, header) = if is(tagged) {
                (number(stags.next().unwrap()), number(offsets.next().unwrap()), 14)
            } else {
                (0, 0, 18)
            };
            found.push(Fpdu {
                opcode: u8::try_from(number(opcodes[index])).unwrap(),
                last: is(last),
                stag: u32::try_from(stag).unwrap(),
                to,
                payload: number(length) - header,
            });
        }
    }
    found
}

const WRITE: u8 = 0;
const SEND: u8 = 3;

/// The RDMA connection's messages put together from tshark's FPDUs: the run of Writes, and the Sends' lengths.
fn messages(fpdus: &[Fpdu]) -> (Run, Vec<u64>) {
    let writes: Vec<&Fpdu> = fpdus.iter().filter(|fpdu| fpdu.opcode == WRITE).collect();
    let sends: Vec<u64> = fpdus.iter().filter(|fpdu| fpdu.opcode == SEND).map(|fpdu| fpdu.payload).collect();
    assert_eq!(writes.len() + sends.len(), fpdus.len(), "nothing but Writes and Sends");
    let first = writes[0];
    let mut length = 0;
    for write in &writes {
        assert_eq!((write.stag, write.to), (first.stag, first.to + length), "{write:?}");
        length += write.payload;
    }
    let messages = writes.iter().filter(|write| write.last).count() as u64;
    (Run { stag: first.stag, to: first.to, length, messages }, sends)
}

fn ours(conversation: &Conversation) -> (Run, Vec<u64>) {
    let items = conversation.connections.iter().flat_map(|c| c.forth.items.iter().chain(&c.back.items));
    let mut writes = None;
    let mut sends = Vec::new();
    for item in items {
        match item {
            Item::Writes(run) => assert_eq!(writes.replace(*run), None, "one run of Writes"),
            Item::Send { message, .. } => sends.push(message.len() as u64),
            _ => {}
        }
    }
    (writes.expect("Writes"), sends)
}

#[test]
fn a_labs_wire_is_good_iwarp_and_our_decoder_sees_what_tshark_sees() {
    let test = "a_labs_wire_is_good_iwarp_and_our_decoder_sees_what_tshark_sees";
    if Command::new("tshark").arg("--version").output().is_err() {
        return skip(test, "tshark is not installed; ci/setup installs it");
    }
    let Some(labs) = Labs::new(test) else { return };
    let sizes = [
        ("get-server-writes-1b", 1),
        ("get-server-writes-1mib", 1 << 20),
        ("get-server-writes-64mib", 64 << 20),
    ];
    let names = sizes.map(|(name, _)| name);
    for (capture, (name, size)) in captures(&labs, &names).iter().zip(sizes) {
        let conversation = wire::decode(capture).unwrap();
        let tally = conversation.connections.iter().flat_map(|c| [c.forth.crc, c.back.crc]);
        let (good, all) = tally.fold((0, 0), |(good, all), crc| (good + crc.good, all + crc.fpdus()));
        assert_eq!((good, conversation.violations()), (all, Vec::<String>::new()), "{name}");

        assert_eq!(tshark(capture, &["-Y", "_ws.malformed"]), "", "{name}: a malformed frame");
        let verdicts = tshark(capture, &["-Y", "iwarp_mpa.fpdu", "-O", "iwarp_mpa"]);
        assert_eq!(verdicts.matches("Bad CRC32").count(), 0, "{name}");
        assert_eq!(verdicts.matches("Good CRC32").count() as u64, all, "{name}");
        let theirs = fpdus(capture);
        assert_eq!(theirs.len() as u64, all, "{name}");
        assert_eq!(messages(&theirs), ours(&conversation), "{name}");
        assert_eq!(messages(&theirs).0.length, size, "{name}");
    }
}

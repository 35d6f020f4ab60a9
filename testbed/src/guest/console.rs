//! The end of what a guest's console said, for when the guest fails.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Bytes that are kept.
const KEPT: usize = 16 << 10;

/// What the line begins with that says why a kernel panicked (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing";

/// Lines that go into a message.
const SHOWN: usize = 20;

/// Bytes that go into a log; of a guest that says more, the log has the end apart.
const LOGGED: usize = 4 << 20;

/// The end of a console's output. Clones see the same.
#[derive(Clone, Debug, Default)]
pub struct Console(Arc<Mutex<VecDeque<u8>>>);

impl Console {
    /// Keeps the end of what comes from `from`, until that ends, and writes it to `log` as text that cannot do anything
    /// to a terminal.
    pub async fn follow(self, mut from: impl AsyncRead + Unpin, log: Option<Arc<File>>) {
        let mut buffer = [0; 4096];
        let mut room = LOGGED;
        loop {
            let bytes = match from.read(&mut buffer).await {
                // A console that can no longer be read is one that has ended.
                Ok(0) | Err(_) => break,
                Ok(n) => &buffer[..n],
            };
            self.keep(bytes);
            let text: Vec<u8> = bytes.iter().copied().filter(|byte| is_text(*byte)).collect();
            room = room.saturating_sub(text.len());
            if let Some(log) = log.as_ref().filter(|_| room > 0) {
                // The machine's disk may be full; the end is still kept.
                let _ = (&**log).write_all(&text);
            }
        }
        if let Some(log) = log.filter(|_| room == 0) {
            let _ = writeln!(
                &*log,
                "\n(the console said more than {LOGGED} bytes; it ends with:)\n{}",
                self.tail()
            );
        }
    }

    fn keep(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
    }

    /// The last lines, as text that cannot do anything to a terminal.
    pub fn tail(&self) -> String {
        let bytes: Vec<u8> = {
            let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.iter().copied().collect()
        };
        let text = String::from_utf8_lossy(&bytes);
        let clean = |line: &str| -> String {
            line.trim_end().chars().filter(|c| !c.is_control() || *c == '\t').collect()
        };
        let lines: Vec<String> = text.lines().map(clean).filter(|line| !line.is_empty()).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        match &end_of(&lines)[..] {
            [] => "(the console is empty)".to_owned(),
            shown => shown.join("\n"),
        }
    }
}

/// The last lines of a console or of a log that has one; before them the line that says why a kernel panicked, which a
/// dump of its stack follows.
pub(crate) fn end_of<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    let (before, end) = lines.split_at(lines.len().saturating_sub(SHOWN));
    match before.iter().rposition(|line| line.contains(PANIC)) {
        Some(panic) if !end.iter().any(|line| line.contains(PANIC)) => {
            [before[panic], "…"].into_iter().chain(end[2..].iter().copied()).collect()
        }
        _ => end.to_vec(),
    }
}

/// Of a control character only what breaks lines and columns is left.
fn is_text(byte: u8) -> bool {
    byte >= b' ' && byte != 0x7f || matches!(byte, b'\n' | b'\t')
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use super::*;

    #[test]
    fn the_reason_of_a_panic_is_not_lost_behind_a_stack() {
        let stack: Vec<String> = (0..30).map(|n| format!(" [<{n:08x}>] ? f")).collect();
        let mut lines = vec!["booting", "Kernel panic - not syncing: out of memory"];
        lines.extend(stack.iter().map(String::as_str));
        let end = end_of(&lines);
        assert_eq!(end.len(), SHOWN);
        assert_eq!(end[..2], ["Kernel panic - not syncing: out of memory", "…"]);
        assert_eq!(end.last(), lines.last());
        assert_eq!(end_of(&lines[..3]), lines[..3]);
        assert_eq!(end_of(&lines[2..]), lines[12..]);
    }

    #[tokio::test]
    async fn only_the_end_is_kept_and_it_is_text() {
        let console = Console::default();
        assert_eq!(console.tail(), "(the console is empty)");
        let mut output = Vec::new();
        for n in 0..100_000 {
            output.extend_from_slice(format!("line {n}\r\n").as_bytes());
        }
        output.extend_from_slice(b"\x1b[31mpanic\xff\x07\n\n");
        let mut log = tempfile::tempfile().unwrap();
        console.clone().follow(&output[..], Some(Arc::new(log.try_clone().unwrap()))).await;
        let tail = console.tail();
        let lines: Vec<&str> = tail.lines().collect();
        assert_eq!(lines.len(), SHOWN);
        assert_eq!(lines[SHOWN - 2..], ["line 99999", "[31mpanic\u{fffd}"]);
        assert!(console.0.lock().unwrap().len() <= KEPT);
        let mut text = Vec::new();
        log.rewind().unwrap();
        log.read_to_end(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text);
        assert!(text.starts_with("line 0\nline 1\n") && text.ends_with("line 99999\n[31mpanic\u{fffd}\n\n"));
    }
}

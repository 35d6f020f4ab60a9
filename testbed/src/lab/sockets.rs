//! The TCP connections that the kernel has in a host, of whatever program, and of programs that have ended.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::time::Duration;

use super::error::LabError;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);
/// The most that a table of sockets may say.
const MAX_TABLE: u64 = 4 << 20;

/// The tables of a network namespace's TCP sockets (proc_net_tcp(5)), each look at which is a fresh one.
#[derive(Debug)]
pub struct Sockets(Vec<File>);

impl Sockets {
    /// Those of the calling thread's namespace.
    pub(super) fn open() -> io::Result<Self> {
        let tables = ["tcp", "tcp6"].map(|table| File::open(format!("/proc/thread-self/net/{table}")));
        let there = tables.into_iter().filter(|table| {
            // Where there is no IPv6 the second is missing.
            !matches!(table, Err(error) if error.kind() == io::ErrorKind::NotFound)
        });
        there.collect::<io::Result<_>>().map(Self)
    }

    /// Waits until there is no connection that may send more.
    pub async fn settled(mut self) -> Result<(), LabError> {
        let failed = |error| LabError::operation(format!("cannot read a host's sockets: {error}"));
        while self.any(any_open).map_err(failed)? {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Whether this is so of any table as it is now.
    fn any(&mut self, so: impl Fn(&str) -> bool) -> io::Result<bool> {
        for table in &mut self.0 {
            table.rewind()?;
            let mut text = Vec::new();
            table.take(MAX_TABLE).read_to_end(&mut text)?;
            if so(&String::from_utf8_lossy(&text)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether a table has a connection that may send more. Source of the states: Linux `include/net/tcp_states.h`.
fn any_open(table: &str) -> bool {
    const TIME_WAIT: &str = "06";
    const CLOSE: &str = "07";
    const LISTEN: &str = "0A";
    let states = table.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        // "0:", addresses; the headings have no number.
        fields.next()?.strip_suffix(':')?;
        fields.nth(2)
    });
    states.into_iter().any(|state| ![TIME_WAIT, CLOSE, LISTEN].contains(&state))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn only_connections_that_may_send_more_are_open() {
        let table = |states: &[&str]| {
            let mut text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n".to_owned();
            for (index, state) in states.iter().enumerate() {
                let line =
                    format!("{index:4}: 0100000A:1F90 0200000A:C350 {state} 00000000:00000000 00:00000000\n");
                text.push_str(&line);
            }
            text
        };
        assert!(!any_open(&table(&[])));
        assert!(!any_open(&table(&["06", "0A", "07"])));
        for open in ["01", "02", "03", "04", "05", "08", "09", "0B"] {
            assert!(any_open(&table(&["0A", open])), "{open}");
        }
    }

    #[test]
    fn each_look_is_a_fresh_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // Others have connections here too: this one's other end is the listener.
        let to_it = format!(" 0100007F:{:04X} 01 ", address.port());
        let mut sockets = Sockets::open().unwrap();
        assert!(!sockets.any(|table| table.contains(&to_it)).unwrap());
        let connection = TcpStream::connect(address).unwrap();
        assert!(sockets.any(|table| table.contains(&to_it)).unwrap());
        drop((connection, listener));
        assert!(!sockets.any(|table| table.contains(&to_it)).unwrap());
    }
}

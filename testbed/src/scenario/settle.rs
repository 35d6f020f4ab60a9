//! Waits until a scenario's TCP connections have ended in the kernels of its hosts, which close them after their programs
//! have gone: only then have all their segments entered the link.

use std::time::Duration;

use crate::agent::client::{Client, ClientError, Command};

/// How long it is waited for. Something else that runs in the same hosts may keep connections open for ever.
const LIMIT: Duration = Duration::from_secs(2);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);
/// The most that a host's table of sockets may print.
const MAX_TABLE: usize = 4 << 20;

/// Returns once no host of `hosts` has a connection that is open or half closed, or after [`LIMIT`].
pub(super) async fn settled(client: &Client, hosts: &[&str]) -> Result<(), ClientError> {
    let all = async {
        for host in hosts {
            while is_busy(client, host).await? {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    };
    match tokio::time::timeout(LIMIT, all).await {
        Ok(settled) => settled,
        Err(_) => {
            tracing::warn!("connections are still open {} s after their programs ended", LIMIT.as_secs());
            Ok(())
        }
    }
}

async fn is_busy(client: &Client, host: &str) -> Result<bool, ClientError> {
    // Where there is no IPv6 the second is missing, and cat complains and goes on.
    let command = Command::new(host, "cat").args(["/proc/net/tcp", "/proc/net/tcp6"]).clean_env();
    let table = client.exec(command).await?.output(MAX_TABLE).await?.stdout;
    Ok(any_open(&String::from_utf8_lossy(&table)))
}

/// Whether a table as of proc_net_tcp(5) has a connection that may send more. Source of the states: Linux
/// `include/net/tcp_states.h`.
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
}

//! What the kernel counts for each interface of a namespace.

use std::collections::HashMap;
use std::io;

/// For each interface of the calling thread's namespace, frames that it was to send and dropped.
pub(super) fn dropped_on_sending() -> io::Result<HashMap<String, u64>> {
    Ok(parse(&std::fs::read_to_string("/proc/thread-self/net/dev")?))
}

/// proc_pid_net(5): two lines of headings; then a name, a colon, eight counters of receiving and eight of sending, of
/// which the fourth is drops.
fn parse(text: &str) -> HashMap<String, u64> {
    let interfaces = text.lines().filter_map(|line| {
        let (name, counters) = line.split_once(':')?;
        let dropped = counters.split_whitespace().nth(8 + 3)?.parse().ok()?;
        Some((name.trim().to_owned(), dropped))
    });
    interfaces.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fourth_counter_of_sending_is_read() {
        let text = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
  eth0: 4038310   60247    1    2    3     4          5         6 6118935097  105578    7   88    9    10      11         12
";
        let dropped = parse(text);
        assert_eq!(dropped["eth0"], 88);
        assert_eq!(dropped["lo"], 0);
        assert_eq!(dropped.len(), 2);
    }
}

//! Reads what the judges print: `iperf3 -J` and `ping`.

use std::time::Duration;

use serde::Deserialize;

/// Why a judge's output could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{program} did not print what was expected: {reason}")]
pub struct Unreadable {
    program: &'static str,
    reason: String,
}

/// Goodput in bits per second at the receiver, from `iperf3 -J`.
pub(super) fn iperf3_goodput(json: &[u8]) -> Result<f64, Unreadable> {
    #[derive(Deserialize)]
    struct Report {
        #[serde(default)]
        error: Option<String>,
        #[serde(default)]
        end: End,
    }
    #[derive(Default, Deserialize)]
    struct End {
        sum_received: Option<Sum>,
    }
    #[derive(Deserialize)]
    struct Sum {
        bits_per_second: f64,
    }
    let unreadable = |reason: String| Unreadable { program: "iperf3", reason };
    let report: Report = serde_json::from_slice(json).map_err(|error| unreadable(error.to_string()))?;
    if let Some(error) = report.error {
        return Err(unreadable(error));
    }
    report
        .end
        .sum_received
        .map(|sum| sum.bits_per_second)
        .ok_or_else(|| unreadable("no end.sum_received".into()))
}

/// Round-trip times from `ping`, in the order of arrival.
pub(super) fn ping_round_trips(text: &str) -> Result<Vec<Duration>, Unreadable> {
    let times: Vec<Duration> = text
        .lines()
        .filter_map(|line| line.split_once(" time=")?.1.strip_suffix(" ms")?.parse::<f64>().ok())
        .map(|milliseconds| Duration::from_secs_f64(milliseconds / 1e3))
        .collect();
    if times.is_empty() {
        return Err(Unreadable { program: "ping", reason: "no reply".into() });
    }
    Ok(times)
}

/// The `fraction` quantile (0 to 1) of `values`, by the nearest rank; `None` of nothing.
pub(super) fn quantile(values: &[f64], fraction: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (fraction * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iperf3_reports_are_read_and_its_errors_passed_on() {
        let report = br#"{"start":{},"end":{"sum_sent":{"bits_per_second":2.0},"sum_received":{"bits_per_second":9.5e9}}}"#;
        assert_eq!(iperf3_goodput(report).unwrap(), 9.5e9);
        let refused = br#"{"start":{},"error":"unable to connect to server"}"#;
        assert!(iperf3_goodput(refused).unwrap_err().to_string().contains("unable to connect"));
        assert!(iperf3_goodput(b"iperf3: nonsense").is_err());
    }

    #[test]
    fn ping_replies_are_read_and_silence_is_an_error() {
        let text = "PING 10.10.0.1 (10.10.0.1) 56(84) bytes of data.\n\
                    64 bytes from 10.10.0.1: icmp_seq=1 ttl=64 time=50.1 ms\n\
                    64 bytes from 10.10.0.1: icmp_seq=2 ttl=64 time=0.085 ms\n";
        let times = ping_round_trips(text).unwrap();
        assert_eq!(times, [Duration::from_micros(50_100), Duration::from_micros(85)]);
        assert!(ping_round_trips("2 packets transmitted, 0 received").is_err());
    }

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(&values, 0.5), Some(2.0));
        assert_eq!(quantile(&values, 0.99), Some(4.0));
        assert_eq!(quantile(&values, 0.0), Some(1.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}

//! `testbed status`: what is up.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use super::{Global, Outcome, block_on, say};
use crate::agent::client::{Client, ClientError};
use crate::agent::protocol::{DirectionStatus, HostStatus, LinkStatus, Status};
use crate::agent::runtime::{LabName, Runtime};
use crate::topology::{Impairment, Plan};

/// How long an agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  testbed status                         all labs
  testbed status wan-10g --json | jq '.[0].status.links'";

/// Show what is up: hosts, addresses, commands, links with their counters, and the settings that were made.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The labs; all of this user's by default.
    labs: Vec<LabName>,
}

impl Args {
    pub(super) fn run(self, global: &Global) -> Outcome {
        let runtime = Runtime::locate();
        let labs = if self.labs.is_empty() {
            runtime.labs()?
        } else {
            self.labs.iter().map(|name| runtime.lab(name)).collect()
        };
        let mut found = Vec::new();
        for lab in labs {
            let client = Client::new(lab);
            let status = block_on(async { Ok(tokio::time::timeout(PATIENCE, client.status()).await) })?;
            match status {
                Ok(Ok(status)) => found.push((client, Ok(status))),
                Ok(Err(ClientError::NotUp { .. })) if self.labs.is_empty() => {}
                // One that dies while it is asked is as dead.
                Ok(Err(error @ (ClientError::Dead { .. } | ClientError::Gone { .. }))) => {
                    found.push((client, Err(error.to_string())))
                }
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {
                    let name = client.lab().name();
                    let message = format!(
                        "the agent of lab `{name}` does not answer; `testbed down {name}` ends it by force"
                    );
                    found.push((client, Err(message)));
                }
            }
        }
        if global.json {
            let labs: Vec<_> = found
                .iter()
                .map(|(client, status)| match status {
                    Ok(status) => json!({ "lab": client.lab().name(), "up": true, "status": status }),
                    Err(why) => json!({ "lab": client.lab().name(), "up": false, "reason": why }),
                })
                .collect();
            say(format_args!("{:#}", json!(labs)));
            return Ok(ExitCode::SUCCESS);
        }
        if found.is_empty() {
            say(format_args!("no lab is up"));
        }
        for (n, (client, status)) in found.iter().enumerate() {
            if n > 0 {
                say("");
            }
            match status {
                Ok(status) => {
                    let up = Duration::from_millis(status.up_ms);
                    say(format_args!(
                        "lab {} ({}): up {}, agent {}, kernel {} (Linux {})",
                        status.lab,
                        status.plan.description,
                        elapsed(up),
                        status.agent_pid,
                        status.kernel,
                        status.release
                    ));
                    say(text(status, global.color_stdout()).trim_end());
                }
                Err(why) => say(format_args!("lab {}: {why}", client.lab().name())),
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn elapsed(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// A lab as tables.
pub(super) fn text(status: &Status, color: bool) -> String {
    let mut hosts = Table::new(&["HOST", "ADDRESS", "COMMANDS", "SETTINGS"]);
    for host in &status.hosts {
        let addresses = addresses(&status.plan, &host.name);
        let settings = settings(host);
        let rows = addresses.len().max(settings.len()).max(1);
        for row in 0..rows {
            let first = row == 0;
            hosts.row([
                if first { host.name.clone() } else { String::new() },
                addresses.get(row).cloned().unwrap_or_default(),
                if first { host.commands.to_string() } else { String::new() },
                settings.get(row).cloned().unwrap_or_default(),
            ]);
        }
    }
    let mut devices = Table::new(&["DEVICE", "HOST", "KIND", "PORT", "GID"]);
    for (host, device) in status.hosts.iter().flat_map(|host| host.devices.iter().map(move |d| (host, d))) {
        let mut gids = device.gids.iter().map(|gid| format!("{}: {}", gid.index, gid.gid));
        devices.row([
            device.name.clone(),
            format!("{} {}", host.name, device.interface),
            device.fabric.to_string(),
            device.state.to_string(),
            gids.next().unwrap_or_default(),
        ]);
        for gid in gids {
            let [name, host, kind, port] = Default::default();
            devices.row([name, host, kind, port, gid]);
        }
    }
    let devices = if devices.is_empty() { String::new() } else { devices.render(color) };
    hosts.render(color) + &devices + &links_text(status, None, color)
}

/// What links do now, one of them or all, as a table.
pub(super) fn links_text(status: &Status, only: Option<&str>, color: bool) -> String {
    let mut links = Table::new(&["LINK", "DIRECTION", "DOES", "FRAMES", "BYTES", "DROPPED", "BY"]);
    for (plan, link) in status.plan.links.iter().zip(&status.links) {
        let LinkStatus { name, driver, a_to_b, b_to_a } = link;
        if only.is_none_or(|only| only == name) {
            links.row(direction(name, &plan.a.host, &plan.b.host, &a_to_b.does, Some(a_to_b), driver));
            links.row(direction("", &plan.b.host, &plan.a.host, &b_to_a.does, Some(b_to_a), ""));
        }
    }
    links.render(color)
}

/// A plan as tables, for `up --dry-run`.
pub(super) fn plan_text(plan: &Plan) -> String {
    let mut hosts = Table::new(&["HOST", "ADDRESS", "SETTINGS"]);
    for host in &plan.hosts {
        let addresses = addresses(plan, &host.name);
        let settings: Vec<String> =
            host.sysctls.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        for row in 0..addresses.len().max(settings.len()).max(1) {
            hosts.row([
                if row == 0 { host.name.clone() } else { String::new() },
                addresses.get(row).cloned().unwrap_or_default(),
                settings.get(row).cloned().unwrap_or_default(),
            ]);
        }
    }
    let mut links = Table::new(&["LINK", "DIRECTION", "DOES", "BY"]);
    for link in &plan.links {
        let driver = format!("{:?}", link.driver).to_lowercase();
        for (name, from, to, impairment, by) in [
            (link.name.as_str(), &link.a, &link.b, &link.a_to_b, driver.as_str()),
            ("", &link.b, &link.a, &link.b_to_a, ""),
        ] {
            let [name, direction, does, .., by] = direction(name, &from.host, &to.host, impairment, None, by);
            links.row([name, direction, does, by]);
        }
    }
    format!("{}: {}\n", plan.name, plan.description) + &hosts.render(false) + &links.render(false)
}

fn addresses(plan: &Plan, host: &str) -> Vec<String> {
    let interfaces = plan.hosts.iter().filter(|plan| plan.name == host).flat_map(|plan| &plan.interfaces);
    interfaces.map(|interface| format!("{} {}", interface.name, interface.address)).collect()
}

fn settings(host: &HostStatus) -> Vec<String> {
    host.sysctls
        .iter()
        .map(|(name, value)| format!("{name} = {}", value.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect()
}

fn direction(
    name: &str,
    from: &str,
    to: &str,
    impairment: &Impairment,
    counters: Option<&DirectionStatus>,
    driver: &str,
) -> [String; 7] {
    let count = |f: fn(&DirectionStatus) -> u64| counters.map(|c| f(c).to_string()).unwrap_or_default();
    [
        name.to_owned(),
        format!("{from} -> {to}"),
        if counters.is_some_and(|c| c.cut) { "cut".to_owned() } else { describe(impairment) },
        count(|c| c.frames),
        count(|c| c.bytes),
        count(|c| c.dropped),
        driver.to_owned(),
    ]
}

/// `10 Gbit/s, 25 ms, queue 62.5 MB`.
fn describe(impairment: &Impairment) -> String {
    let mut parts = Vec::new();
    if let Some(rate) = impairment.rate {
        parts.push(scaled(rate, &["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"]));
    }
    if !impairment.delay.is_zero() {
        parts.push(format!("{:?}", impairment.delay));
    }
    if !impairment.jitter.is_zero() {
        parts.push(format!("jitter {:?}", impairment.jitter));
    }
    if let Some(queue) = impairment.queue {
        parts.push(format!("queue {}", scaled(queue, &["B", "kB", "MB", "GB", "TB"])));
    }
    for (name, probability) in [
        ("loss", impairment.loss),
        ("reorder", impairment.reorder),
        ("duplicate", impairment.duplicate),
        ("corrupt", impairment.corrupt),
    ] {
        if probability > 0.0 {
            parts.push(format!("{name} {} %", probability * 100.0));
        }
    }
    if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }
}

fn scaled(value: u64, units: &[&str; 5]) -> String {
    let mut unit = 0;
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut shown = value as f64;
    while shown >= 1000.0 && unit + 1 < units.len() {
        shown /= 1000.0;
        unit += 1;
    }
    let digits = (shown * 100.0).round() / 100.0;
    format!("{digits} {}", units[unit])
}

/// Columns as wide as their widest cell.
struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    fn new(head: &[&str; N]) -> Self {
        Self { rows: vec![head.map(str::to_owned)] }
    }

    fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    fn render(&self, color: bool) -> String {
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..N).map(width).collect();
        let mut text = String::new();
        for (n, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:<width$}  ");
            }
            let line = line.trim_end();
            let _ = if n == 0 && color {
                writeln!(text, "  \u{1b}[1m{line}\u{1b}[0m")
            } else {
                writeln!(text, "  {line}")
            };
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let units = &["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
        assert_eq!(scaled(10_000_000_000, units), "10 Gbit/s");
        assert_eq!(scaled(1_500, units), "1.5 kbit/s");
        assert_eq!(scaled(0, units), "0 bit/s");
        assert_eq!(elapsed(Duration::from_secs(3_725)), "1 h 2 min");
    }

    #[test]
    fn a_plan_shows_hosts_links_and_what_they_do() {
        let text = plan_text(&crate::topology::load("wan-10g").unwrap());
        for expected in ["server", "client", "10 Gbit/s, 25ms, queue", "net.ipv4.tcp_rmem"] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["A", "B"]);
        table.row(["longer".to_owned(), "x".to_owned()]);
        assert_eq!(table.render(false), "  A       B\n  longer  x\n");
    }
}

//! What a lab sees of the file system: all of the machine's, but a /proc of its own and an /etc/hosts with its hosts.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use super::refusal::{Refusal, Step};
use crate::topology::Plan;

const NONE: Option<&str> = None;

/// Makes the mounts private, so that nothing mounted here is ever seen outside, and mounts this PID namespace's /proc.
pub(super) fn isolate(privileged: bool) -> Result<(), Refusal> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .map_err(|error| Refusal::new(Step::Private, error, privileged))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, NONE)
        .map_err(|error| Refusal::new(Step::Proc, error, privileged))
}

/// Writes the lab's hosts to `file` and binds that over /etc/hosts.
pub(super) fn bind_hosts(plan: &Plan, file: &Path) -> io::Result<()> {
    fs::write(file, hosts(plan))?;
    Ok(mount(Some(file), "/etc/hosts", NONE, MsFlags::MS_BIND, NONE)?)
}

/// The text of a hosts file with all the names of a lab.
fn hosts(plan: &Plan) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
    for host in &plan.hosts {
        for interface in &host.interfaces {
            let address: IpAddr = interface.address.addr();
            let _ = writeln!(text, "{address} {}", host.name);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_of_a_host_bears_its_name() {
        let plan = crate::topology::load("wan-10g").unwrap();
        let text = hosts(&plan);
        for host in &plan.hosts {
            let line = format!("{} {}", host.address().unwrap(), host.name);
            assert!(text.lines().any(|l| l == line), "{text}");
        }
        assert!(text.starts_with("127.0.0.1 localhost\n"));
    }
}

//! What the kernel shows of a device's port under `/sys/class/infiniband`.
//!
//! Source: Linux `Documentation/ABI/stable/sysfs-class-infiniband`.

use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use crate::agent::protocol::{GidStatus, PortState};

/// A GID gets the first free place in the table, so behind this many free ones there is none; and rxe's table has 1,024.
const FREE_AT_THE_END: usize = 8;

/// The directory of a device's only port.
fn port(device: &str) -> PathBuf {
    Path::new("/sys/class/infiniband").join(device).join("ports/1")
}

/// The state of a device's only port.
pub fn state(device: &str) -> io::Result<PortState> {
    Ok(parse_state(&fs::read_to_string(port(device).join("state"))?))
}

fn parse_state(text: &str) -> PortState {
    match text.split(':').next().map(str::trim) {
        Some("1") => PortState::Down,
        Some("2") => PortState::Initializing,
        Some("3") => PortState::Armed,
        Some("4") => PortState::Active,
        _ => PortState::Unknown,
    }
}

/// The GIDs of a device's only port that are set.
pub fn gids(device: &str) -> io::Result<Vec<GidStatus>> {
    gids_in(&port(device))
}

fn gids_in(port: &Path) -> io::Result<Vec<GidStatus>> {
    let (mut gids, mut free) = (Vec::new(), 0);
    for index in 0_u32.. {
        let text = match fs::read_to_string(port.join(format!("gids/{index}"))) {
            Ok(text) => text,
            Err(error) if index > 0 && error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        let gid: Ipv6Addr = text.trim().parse().map_err(io::Error::other)?;
        if gid.is_unspecified() {
            free += 1;
            if free == FREE_AT_THE_END {
                break;
            }
            continue;
        }
        free = 0;
        let kind = fs::read_to_string(port.join(format!("gid_attrs/types/{index}"))).unwrap_or_default();
        gids.push(GidStatus { index, gid, kind: kind.trim().to_owned() });
    }
    Ok(gids)
}

/// The file of the device's verbs, `/dev/infiniband/uverbs0`.
pub(super) fn uverbs(device: &str) -> io::Result<PathBuf> {
    for entry in fs::read_dir("/sys/class/infiniband_verbs")? {
        let entry = entry?;
        let of = fs::read_to_string(entry.path().join("ibdev")).unwrap_or_default();
        if of.trim() == device {
            return Ok(Path::new("/dev/infiniband").join(entry.file_name()));
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gids_are_read_up_to_the_free_places_at_the_end() {
        let port = tempfile::tempdir().unwrap();
        for directory in ["gids", "gid_attrs/types"] {
            fs::create_dir_all(port.path().join(directory)).unwrap();
        }
        for index in 0..1024 {
            let gid = match index {
                0 => "fe80:0000:0000:0000:3048:d6ff:fe40:9300",
                // One was deleted between them.
                2 => "0000:0000:0000:0000:0000:ffff:0a09:0001",
                // Nobody reads that far.
                100 => "no GID",
                _ => "0000:0000:0000:0000:0000:0000:0000:0000",
            };
            fs::write(port.path().join(format!("gids/{index}")), format!("{gid}\n")).unwrap();
        }
        fs::write(port.path().join("gid_attrs/types/2"), "RoCE v2\n").unwrap();
        let gids = gids_in(port.path()).unwrap();
        let shown: Vec<_> = gids.iter().map(|g| (g.index, g.gid.to_string(), g.kind.as_str())).collect();
        let expected =
            [(0, "fe80::3048:d6ff:fe40:9300".to_owned(), ""), (2, "::ffff:10.9.0.1".to_owned(), "RoCE v2")];
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_table_may_be_short() {
        let port = tempfile::tempdir().unwrap();
        assert!(gids_in(port.path()).is_err());
        fs::create_dir_all(port.path().join("gids")).unwrap();
        fs::write(port.path().join("gids/0"), "3248:d640:9300:0000:0000:0000:0000:0000\n").unwrap();
        assert_eq!(gids_in(port.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_state_has_a_number_and_a_name() {
        assert_eq!(parse_state("4: ACTIVE\n"), PortState::Active);
        assert_eq!(parse_state("1: DOWN\n"), PortState::Down);
        assert_eq!(parse_state("9: ?"), PortState::Unknown);
    }
}

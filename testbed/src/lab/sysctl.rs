//! The settings under `/proc/sys/net`, which each network namespace has of its own.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

/// Why a setting was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum SysctlError {
    /// It is outside `net.`, and so belongs to the whole machine.
    #[error("the setting {0} is not a network namespace's: only those that begin with `net.` are")]
    NotNetwork(String),
    /// The kernel has none of that name in the namespace.
    #[error(
        "there is no setting {0} in this kernel's network namespaces; see the names with \
         `testbed exec HOST -- find /proc/sys/net -type f`, or leave it out of the topology"
    )]
    Unknown(String),
    /// The kernel refused the value.
    #[error("the setting {name} cannot be `{value}`: {cause}")]
    Refused { name: String, value: String, cause: io::Error },
}

/// Makes the settings in the calling thread's namespace, and reads them back.
pub(super) fn apply(settings: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, SysctlError> {
    settings
        .iter()
        .map(|(name, value)| {
            let path = path(name)?;
            // Opening does not create: a file in /proc/sys that is not there is EACCES or ENOENT to a creator.
            let written = std::fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
            let read = written.and_then(|()| std::fs::read_to_string(&path));
            match read {
                Ok(now) => Ok((name.clone(), now.split_whitespace().collect::<Vec<_>>().join(" "))),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Err(SysctlError::Unknown(name.clone())),
                Err(cause) => Err(SysctlError::Refused { name: name.clone(), value: value.clone(), cause }),
            }
        })
        .collect()
}

/// `net.ipv4.tcp_rmem` -> `/proc/sys/net/ipv4/tcp_rmem`. A `/` in the name stands for a dot in an interface's name, as in
/// sysctl(8).
fn path(name: &str) -> Result<PathBuf, SysctlError> {
    let mut path = PathBuf::from("/proc/sys");
    for part in name.split('.') {
        let part = part.replace('/', ".");
        if part.is_empty() || part == "." || part == ".." {
            return Err(SysctlError::Unknown(name.to_owned()));
        }
        path.push(part);
    }
    if path.starts_with("/proc/sys/net") { Ok(path) } else { Err(SysctlError::NotNetwork(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths() {
        let shown = |name| path(name).map(|p| p.display().to_string()).map_err(|e| e.to_string());
        assert_eq!(shown("net.ipv4.tcp_rmem").unwrap(), "/proc/sys/net/ipv4/tcp_rmem");
        assert_eq!(
            shown("net.ipv4.conf.eth0/1.arp_ignore").unwrap(),
            "/proc/sys/net/ipv4/conf/eth0.1/arp_ignore"
        );
        assert!(shown("vm.swappiness").unwrap_err().contains("only those that begin with `net.`"));
        assert!(shown("net.//.//.vm.swappiness").is_err());
        assert!(shown("net..x").is_err());
        assert!(shown("").is_err());
    }
}

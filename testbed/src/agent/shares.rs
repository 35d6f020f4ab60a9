//! In a guest, the directories of the machine's that are shared with it. A guest reads all of the machine's files, but what
//! it writes stays in its memory; only a directory that a command runs in, or that a capture goes to, is the machine's own.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::mount::{MsFlags, mount};
use tracing::{info, warn};

/// Directories that are shared at most; what is written in more of them stays in the guest.
const MAX_SHARES: usize = 1024;

/// What a guest has of its own: sharing it, or what holds it, would take that away.
const OWN: [&str; 6] = ["/dev", "/etc", "/proc", "/run/testbed", "/run/machine", "/sys"];

/// Where a QEMU guest has all of the machine's files, to be written to.
pub(crate) const MACHINE: &str = "/run/machine";

/// How a directory becomes the machine's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// The lab lives on the machine itself: they all are.
    NoNeed,
    /// UML: through hostfs, which reaches every directory.
    Hostfs,
    /// QEMU: from all of the machine's files, which lie at [`MACHINE`].
    Bind,
}

/// The directories that are shared.
#[derive(Debug)]
pub(super) struct Shares {
    kernel: String,
    shared: Mutex<BTreeSet<PathBuf>>,
}

impl How {
    fn of(kernel: &str) -> Self {
        match kernel {
            "uml" => Self::Hostfs,
            "qemu" => Self::Bind,
            _ => Self::NoNeed,
        }
    }
}

/// On a guest's kernel (`uml`, `qemu`), makes the directory the machine's own, for this mount namespace and those that come
/// of it.
pub(crate) fn mount_from_machine(kernel: &str, directory: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    match How::of(kernel) {
        How::NoNeed => Ok(()),
        How::Hostfs => Ok(mount(Some("none"), directory, Some("hostfs"), flags, Some(directory))?),
        How::Bind => {
            let from = Path::new(MACHINE).join(directory.strip_prefix("/").unwrap_or(directory));
            Ok(mount(Some(&from), directory, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
        }
    }
}

impl Shares {
    /// For a lab that lives on this: `host`, `uml` or `qemu`.
    pub(super) fn of(kernel: &str) -> Self {
        Self { kernel: kernel.to_owned(), shared: Mutex::default() }
    }

    /// Makes the directory the machine's own, if it can be. If not it is the guest's, as all the others are.
    pub(super) fn share(&self, directory: &Path) {
        if How::of(&self.kernel) == How::NoNeed {
            return;
        }
        let Some(directory) = sharable(directory) else { return };
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if directory.ancestors().any(|path| shared.contains(path)) || shared.len() >= MAX_SHARES {
            return;
        }
        match mount_from_machine(&self.kernel, &directory) {
            Ok(()) => info!("{} is shared with the machine", directory.display()),
            // One that the guest made itself, say.
            Err(error) => {
                warn!("{} is not shared with the machine: {error}", directory.display());
                return;
            }
        }
        shared.insert(directory);
    }
}

/// The directory by its real name, if sharing it does no harm.
fn sharable(directory: &Path) -> Option<PathBuf> {
    // The guest's /run is empty, but what is in the machine's can still be meant.
    if directory.starts_with("/run") && !directory.exists() {
        fs::create_dir_all(directory).ok()?;
    }
    let directory = fs::canonicalize(directory).ok()?;
    let own = OWN.iter().map(Path::new).any(|own| directory.starts_with(own) || own.starts_with(&directory));
    (!own && directory.is_dir()).then_some(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_has_of_its_own_is_not_shared_nor_what_holds_it() {
        for own in
            ["/", "/dev", "/dev/shm", "/etc", "/proc/self", "/run", "/sys/class/../class", "/no/such/place"]
        {
            assert_eq!(sharable(Path::new(own)), None, "{own}");
        }
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().canonicalize().unwrap();
        assert_eq!(sharable(&directory.path().join("../.").join(real.file_name().unwrap())), Some(real));
    }

    #[test]
    fn on_the_machine_itself_nothing_is_mounted() {
        let directory = tempfile::tempdir().unwrap();
        let shares = Shares::of("host");
        shares.share(directory.path());
        assert!(shares.shared.lock().unwrap().is_empty());
    }
}

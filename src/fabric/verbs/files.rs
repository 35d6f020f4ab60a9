//! Whether files can be registered as they lie in the page cache.
//!
//! A file is registered by a shared mapping that is only read. Kernels before 6.2 pin such pages as if they were to be
//! written to, and so give the process copies of them (Linux commit 57a196a58421 and its series took that away): what is
//! sent then is not what the file holds, and each byte is copied, which is the very thing that registering a file is for.

use std::fs::File;

use crate::fabric::{FabricError, Pd};

/// The first kernel that pins a read-only mapping's own pages.
const FIRST: (u32, u32) = (6, 2);

/// Whether this kernel does, by its release and by an attempt.
pub(super) fn check(pd: &Pd) -> Result<(), FabricError> {
    let system = nix::sys::utsname::uname().map_err(|error| FabricError::io("uname", error.into()))?;
    check_release(&system.release().to_string_lossy())?;
    let probe = tempfile::tempfile().and_then(|file: File| file.set_len(4096).map(|()| file));
    let probe = probe.map_err(|error| FabricError::io("make a file to try to register", error))?;
    pd.register_file(probe.into(), 0, 4096).map(drop)
}

fn check_release(release: &str) -> Result<(), FabricError> {
    match version(release) {
        // Of a release that says nothing, the attempt will tell.
        Some(version) if version < FIRST => Err(FabricError::Invalid(format!(
            "this kernel, {release}, copies a file's pages when they are registered; kernels from {}.{} on do not",
            FIRST.0, FIRST.1
        ))),
        _ => Ok(()),
    }
}

/// `6.1.0-28-amd64` -> (6, 1).
fn version(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = release.split_once('.')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).map_or(rest, |end| &rest[..end]);
    Some((major.parse().ok()?, digits.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_copy_are_named() {
        for copies in ["6.1.0-28-amd64", "5.15.0-91-generic", "4.18.0-553.el8", "6.1"] {
            let error = check_release(copies).unwrap_err().to_string();
            assert!(error.contains(copies) && error.contains("from 6.2 on"), "{error}");
        }
        for fine in ["6.2", "6.12.8", "7.3.4", "10.0.1", "nonsense"] {
            assert!(check_release(fine).is_ok(), "{fine}");
        }
    }
}

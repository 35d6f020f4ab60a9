//! What a kernel is built from.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{KernelError, digest};

/// The kernel that is built unless another is asked for: the first with rxe sockets in every network namespace that
/// Debian packages.
pub const DEFAULT_VERSION: &str = "7.3";

/// Files of a source tree that are looked at, at most; Linux has some 90,000.
const MAX_FILES: usize = 1_000_000;

/// Where a kernel's source comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The distribution's package `linux-source-VERSION`, by apt.
    Package {
        /// `7.3`; by default [`DEFAULT_VERSION`] where the distribution has it, else what it has.
        version: Option<String>,
    },
    /// A tarball, as kernel.org has them.
    Tarball(PathBuf),
    /// An unpacked source tree. Nothing is written to it.
    Directory(PathBuf),
}

impl Source {
    /// The file or directory at `path`.
    pub fn at(path: &Path) -> Result<Self, KernelError> {
        let path = fs::canonicalize(path).map_err(|error| {
            KernelError::usage(
                format!("cannot read {}: {error}", path.display()),
                "give a tarball of Linux, or the directory of an unpacked one",
            )
        })?;
        let known = [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".txz", ".tar.zst"];
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if path.join("Kbuild").exists() && path.join("Makefile").exists() {
                return Ok(Self::Directory(path));
            }
        } else if known.iter().any(|suffix| name.ends_with(suffix)) {
            return Ok(Self::Tarball(path));
        }
        Err(KernelError::usage(
            format!("{} is no source of Linux", path.display()),
            format!("it is a directory with Makefile and Kbuild, or a file named *{}", known.join(", *")),
        ))
    }

    /// What is asked for, as an image's manifest has it. A file or tree goes by what is in it.
    pub(super) fn request(&self) -> Result<String, KernelError> {
        match self {
            Self::Package { version } => {
                let version = version.as_deref().unwrap_or(DEFAULT_VERSION);
                // It becomes part of file names and of apt's command line.
                if !version.starts_with(|c: char| c.is_ascii_digit())
                    || !version.bytes().all(|b| b.is_ascii_alphanumeric() || b".-+~".contains(&b))
                {
                    return Err(KernelError::usage(
                        format!("{version:?} is no version of Linux"),
                        format!("for example {DEFAULT_VERSION}"),
                    ));
                }
                Ok(format!("linux-source-{version}"))
            }
            Self::Tarball(path) => {
                let hash = digest::of_file(path).map_err(KernelError::io("read", path))?;
                Ok(format!("tarball sha256:{hash}"))
            }
            Self::Directory(path) => Ok(format!("tree {}", fingerprint(path)?)),
        }
    }
}

/// Tells whether a tree was changed: names, sizes and times of its files. Reading all of it takes minutes.
fn fingerprint(root: &Path) -> Result<String, KernelError> {
    let mut lines = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let read = KernelError::io("read", &directory);
        let entries = match fs::read_dir(&directory).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
            Ok(entries) => entries,
            Err(error) => return Err(read(error)),
        };
        for entry in entries {
            let path = entry.path();
            let meta = entry.metadata().map_err(KernelError::io("read", &path))?;
            // What git keeps for itself is no source.
            if meta.is_dir() && entry.file_name() != ".git" {
                directories.push(path);
            } else if !meta.is_dir() {
                let name = path.strip_prefix(root).unwrap_or(&path);
                let (size, seconds, nanos) = (meta.len(), meta.mtime(), meta.mtime_nsec());
                lines.push(format!("{} {size} {seconds}.{nanos}", name.display()));
            }
            if lines.len() + directories.len() > MAX_FILES {
                return Err(KernelError::usage(
                    format!("{} has more than {MAX_FILES} files", root.display()),
                    "give the directory of a kernel's source",
                ));
            }
        }
    }
    lines.sort_unstable();
    Ok(digest::of_parts(lines.iter().map(String::as_str)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_tree_or_a_tarball_or_refused() {
        let home = tempfile::tempdir().unwrap();
        let tree = home.path().join("linux");
        fs::create_dir(&tree).unwrap();
        let error = Source::at(&tree).unwrap_err();
        assert!(error.to_string().contains("is no source of Linux"), "{error}");
        fs::write(tree.join("Makefile"), "").unwrap();
        fs::write(tree.join("Kbuild"), "").unwrap();
        assert!(matches!(Source::at(&tree), Ok(Source::Directory(_))));
        let tarball = home.path().join("linux-7.3.tar.xz");
        assert!(Source::at(&tarball).is_err());
        fs::write(&tarball, "").unwrap();
        assert!(matches!(Source::at(&tarball), Ok(Source::Tarball(_))));
        assert!(Source::at(&tree.join("Makefile")).is_err());
    }

    #[test]
    fn a_version_is_one() {
        let request =
            |version: Option<&str>| Source::Package { version: version.map(str::to_owned) }.request();
        assert_eq!(request(None).unwrap(), "linux-source-7.3");
        assert_eq!(request(Some("6.12")).unwrap(), "linux-source-6.12");
        for bad in ["", "../7", "-7", "7/3", "newest"] {
            assert!(request(Some(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_change_of_a_tree_shows() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("mm")).unwrap();
        fs::write(home.path().join("mm/gup.c"), "int a;").unwrap();
        let request = || Source::Directory(home.path().into()).request().unwrap();
        let before = request();
        assert_eq!(before, request());
        fs::create_dir(home.path().join(".git")).unwrap();
        fs::write(home.path().join(".git/HEAD"), "x").unwrap();
        assert_eq!(before, request());
        fs::write(home.path().join("mm/gup.c"), "int ab;").unwrap();
        assert_ne!(before, request());
    }
}

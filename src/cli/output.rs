//! Where a fetched body goes: a file that appears whole or not at all, or a stream.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

/// Takes a body, hashing it on its way if that is wanted.
pub(super) struct Output {
    sink: Sink,
    hash: Option<Sha256>,
}

enum Sink {
    /// A temporary file beside the target, which it replaces at the end.
    File { file: NamedTempFile, target: PathBuf },
    /// Standard output, a pipe, a device: bytes go there as they come.
    Stream(Box<dyn Write + Send>),
}

impl Output {
    /// Opens `target`; `-` is standard output.
    pub(super) fn open(target: &Path, hash: bool) -> io::Result<Self> {
        let hash = hash.then(Sha256::new);
        if target.as_os_str() == "-" {
            return Ok(Self { sink: Sink::Stream(Box::new(io::stdout())), hash });
        }
        // A symbolic link stays one: what it points to is replaced.
        let target = pointed_to(target)?;
        let sink = match fs::metadata(&target) {
            Ok(metadata) if metadata.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(metadata) if !metadata.is_file() => {
                Sink::Stream(Box::new(OpenOptions::new().write(true).open(&target)?))
            }
            existing => Sink::File { file: beside(&target, existing.ok().map(|m| m.permissions()))?, target },
        };
        Ok(Self { sink, hash })
    }

    pub(super) fn write(&mut self, bytes: &Bytes) -> io::Result<()> {
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        match &mut self.sink {
            Sink::File { file, .. } => file.write_all(bytes),
            Sink::Stream(stream) => stream.write_all(bytes),
        }
    }

    /// The body is whole: makes it appear. Returns its SHA-256 in hexadecimal.
    pub(super) fn finish(self) -> io::Result<Option<String>> {
        match self.sink {
            Sink::File { file, target } => drop::<File>(file.persist(target)?),
            Sink::Stream(mut stream) => stream.flush()?,
        }
        Ok(self.hash.map(|hash| hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
    }
}

/// Where the symbolic links end, whether or not there is something.
fn pointed_to(target: &Path) -> io::Result<PathBuf> {
    let mut path = target.to_owned();
    // As many as the kernel follows.
    for _ in 0..40 {
        match fs::read_link(&path) {
            Ok(next) => path = path.parent().unwrap_or(Path::new("")).join(next),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::from(nix::errno::Errno::ELOOP))
}

/// A temporary file in the target's directory, so that it can be renamed, with the permissions that the target has or
/// would get.
fn beside(target: &Path, permissions: Option<Permissions>) -> io::Result<NamedTempFile> {
    let directory = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let file = tempfile::Builder::new()
        .prefix(".rdma-fetch-")
        .suffix(".part")
        // Less the umask, as for any new file.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(directory)
        // The path in tempfile's message is one that the user never heard of.
        .map_err(|error| io::Error::from(error.kind()))?;
    if let Some(permissions) = permissions {
        // The umask has no say over what is there already.
        file.as_file().set_permissions(permissions)?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("out");
        let mut output = Output::open(&target, true).unwrap();
        output.write(&Bytes::from_static(b"ab")).unwrap();
        assert!(!target.exists());
        output.write(&Bytes::from_static(b"c")).unwrap();
        let hash = output.finish().unwrap().unwrap();
        assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(fs::read(&target).unwrap(), b"abc");

        let mut broken = Output::open(&target, false).unwrap();
        broken.write(&Bytes::from_static(b"x")).unwrap();
        drop(broken);
        assert_eq!(fs::read(&target).unwrap(), b"abc");
        assert_eq!(names(directory.path()), ["out"]);
    }

    #[test]
    fn what_the_target_is_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (target, link) = (directory.path().join("out"), directory.path().join("link"));
        fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink("out", &link).unwrap();
        for mode in [0o640, 0o666] {
            fs::set_permissions(&target, Permissions::from_mode(mode)).unwrap();
            let mut output = Output::open(&link, false).unwrap();
            output.write(&Bytes::from_static(b"new")).unwrap();
            output.finish().unwrap();
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
            assert_eq!(fs::read(&target).unwrap(), b"new");
            assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, mode);
        }
    }

    #[test]
    fn a_dangling_link_stays_one_and_gets_its_target() {
        let directory = tempfile::tempdir().unwrap();
        let (target, link) = (directory.path().join("later"), directory.path().join("link"));
        std::os::unix::fs::symlink("later", &link).unwrap();
        let mut output = Output::open(&link, false).unwrap();
        output.write(&Bytes::from_static(b"new")).unwrap();
        output.finish().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&target).unwrap(), b"new");

        let turning = directory.path().join("turning");
        std::os::unix::fs::symlink("turning", &turning).unwrap();
        assert!(Output::open(&turning, false).is_err());
        let nowhere = Output::open(&directory.path().join("no/file"), false).err().unwrap().to_string();
        assert!(!nowhere.contains(".part"), "{nowhere}");
    }

    #[test]
    fn a_directory_is_no_target_and_a_device_is_one() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Output::open(directory.path(), false).is_err());
        let mut null = Output::open(Path::new("/dev/null"), false).unwrap();
        null.write(&Bytes::from_static(b"x")).unwrap();
        null.finish().unwrap();
    }
}

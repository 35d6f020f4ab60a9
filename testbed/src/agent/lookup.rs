//! Finds the program of a command, and says what a shell would say when there is none.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

/// Where programs are looked for after the lab's own: also where Debian keeps what an ordinary user's PATH leaves out.
const USUAL: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command that cannot be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct NotExecuted {
    /// 127 for not found, 126 for not executable.
    pub(super) code: u8,
    pub(super) message: String,
}

impl NotExecuted {
    fn not_found(message: String) -> Self {
        Self { code: 127, message }
    }

    pub(super) fn not_executable(message: String) -> Self {
        Self { code: 126, message }
    }
}

/// The lab's `PATH`: its `bin/`, the usual directories, and then what the user has beyond those.
pub(super) fn path(bin: &Path) -> OsString {
    let mut directories = vec![bin.to_owned()];
    directories.extend(std::env::split_paths(USUAL));
    for directory in std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()) {
        if directory.is_absolute() && !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    std::env::join_paths(directories).unwrap_or_else(|_| USUAL.into())
}

/// The file of `program`: itself if it has a slash, else the first executable one in `path`.
pub(super) fn find(program: &str, path: &std::ffi::OsStr, cwd: &Path) -> Result<PathBuf, NotExecuted> {
    if program.is_empty() {
        return Err(NotExecuted::not_found("the command is empty".to_owned()));
    }
    if program.contains('/') {
        let file = cwd.join(program);
        return match executable(&file) {
            Some(Ok(())) => Ok(file),
            Some(Err(why)) => Err(NotExecuted::not_executable(format!("`{program}` {why}"))),
            None => Err(NotExecuted::not_found(format!("there is no file `{program}`"))),
        };
    }
    let mut blocked = None;
    for file in std::env::split_paths(path).map(|directory| directory.join(program)) {
        match executable(&file) {
            Some(Ok(())) => return Ok(file),
            Some(Err(why)) if blocked.is_none() => blocked = Some(format!("`{}` {why}", file.display())),
            _ => {}
        }
    }
    Err(match blocked {
        Some(message) => NotExecuted::not_executable(message),
        None => NotExecuted::not_found(format!("`{program}` was not found in PATH ({})", path.display())),
    })
}

/// `None` if there is no such file, else whether it can be executed.
fn executable(file: &Path) -> Option<Result<(), &'static str>> {
    let metadata = file.metadata().ok()?;
    Some(if metadata.is_dir() {
        Err("is a directory")
    } else if access(file, AccessFlags::X_OK).is_err() {
        Err("is not executable (permission denied)")
    } else {
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_shells_exit_with() {
        let directory = tempfile::tempdir().unwrap();
        let cwd = directory.path();
        fs::write(cwd.join("text"), "").unwrap();
        fs::set_permissions(cwd.join("text"), fs::Permissions::from_mode(0o644)).unwrap();
        let path = cwd.as_os_str();
        let code = |program: &str| find(program, path, cwd).unwrap_err().code;
        assert_eq!(code("no-such-program"), 127);
        assert_eq!(code("./no-such-program"), 127);
        assert_eq!(code(""), 127);
        assert_eq!(code("text"), 126);
        assert_eq!(code("./text"), 126);
        assert_eq!(code("./"), 126);
        assert_eq!(find("sh", "/bin".as_ref(), cwd).unwrap(), Path::new("/bin/sh"));
    }

    #[test]
    fn the_labs_own_programs_come_first() {
        let path = path(Path::new("/lab/bin"));
        let first: Vec<PathBuf> = std::env::split_paths(&path).take(2).collect();
        assert_eq!(first, [Path::new("/lab/bin"), Path::new("/usr/local/sbin")]);
        assert!(std::env::split_paths(&path).any(|directory| directory == Path::new("/sbin")));
    }
}

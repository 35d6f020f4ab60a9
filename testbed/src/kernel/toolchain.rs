//! Whether this machine can build a kernel, found out before anything is fetched.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{KernelError, Platform};

/// Something that a build needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Program(&'static str),
    Header(&'static str),
}

impl Need {
    fn name(self) -> &'static str {
        match self {
            Self::Program(name) | Self::Header(name) => name,
        }
    }
}

/// What is needed on every platform, and the Debian package that has it.
const NEEDS: &[(Need, &str)] = &[
    (Need::Program("make"), "make"),
    (Need::Program("gcc"), "gcc"),
    (Need::Program("ld"), "binutils"),
    (Need::Program("flex"), "flex"),
    (Need::Program("bison"), "bison"),
    (Need::Program("bc"), "bc"),
    (Need::Program("perl"), "perl"),
    (Need::Program("tar"), "tar"),
    (Need::Program("xz"), "xz-utils"),
    (Need::Program("bzip2"), "bzip2"),
    (Need::Program("cpio"), "cpio"),
    (Need::Program("zstd"), "zstd"),
    (Need::Header("stdlib.h"), "libc6-dev"),
    (Need::Header("gelf.h"), "libelf-dev"),
    (Need::Header("openssl/ssl.h"), "libssl-dev"),
];

/// Where programs are looked for, as a shell would.
pub(super) fn search_path() -> Vec<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect()
}

/// Fails unless everything is there; names all that isn't.
pub(super) fn check(platform: Platform, path: &[PathBuf]) -> Result<(), KernelError> {
    if !cfg!(target_arch = "x86_64") {
        return Err(KernelError::machine(
            format!("guest kernels ({platform}) are x86-64, and this machine isn't"),
            "use this machine's own kernel: --kernel host",
        ));
    }
    let gcc = find("gcc", path);
    let lacks = |need: Need| match need {
        Need::Program(name) => find(name, path).is_none(),
        // Without a compiler nothing is known of headers, and its package is asked for anyway.
        Need::Header(name) => gcc.as_deref().is_some_and(|gcc| !compiles_with(gcc, name)),
    };
    let missing: Vec<_> = NEEDS.iter().filter(|(need, _)| lacks(*need)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|(need, _)| need.name()).collect();
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    let help = if find("apt-get", path).is_some() {
        format!("sudo apt-get install --no-install-recommends {}", packages.join(" "))
    } else {
        format!("install what Debian calls {}", packages.join(", "))
    };
    Err(KernelError::machine(format!("to build a kernel, this machine lacks {}", names.join(", ")), help))
}

/// The first line of `gcc --version`.
pub(super) fn compiler() -> String {
    let output = Command::new("gcc").arg("--version").stderr(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}

pub(super) fn find(program: &str, path: &[PathBuf]) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    path.iter().map(|directory| directory.join(program)).find(|file| {
        file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

fn compiles_with(gcc: &Path, header: &str) -> bool {
    // The header's own includes count too, so it is read by the compiler rather than looked for.
    let status = Command::new(gcc)
        .args(["-fsyntax-only", "-include", header, "-x", "c", "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn everything_that_is_missing_is_named_at_once_with_what_mends_it() {
        let bin = tempfile::tempdir().unwrap();
        let install = |name: &str, script: &str| {
            let file = bin.path().join(name);
            std::fs::write(&file, script).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        for (need, _) in NEEDS {
            install(need.name().split('/').next().unwrap(), "#!/bin/sh\n");
        }
        // A compiler that knows every header but one.
        install("gcc", "#!/bin/sh\ncase \"$*\" in *gelf.h*) exit 1;; esac\n");
        install("apt-get", "#!/bin/sh\n");
        std::fs::remove_file(bin.path().join("flex")).unwrap();
        std::fs::set_permissions(bin.path().join("bc"), std::fs::Permissions::from_mode(0o644)).unwrap();
        let path = [bin.path().to_owned()];
        let error = check(Platform::Uml, &path).unwrap_err();
        assert_eq!(error.to_string(), "to build a kernel, this machine lacks flex, bc, gelf.h");
        let help = "sudo apt-get install --no-install-recommends flex bc libelf-dev";
        assert_eq!(error.help().as_deref(), Some(help));

        install("flex", "#!/bin/sh\n");
        install("bc", "#!/bin/sh\n");
        install("gcc", "#!/bin/sh\n");
        check(Platform::Uml, &path).unwrap();
    }
}

//! A source in the cache: its archive fetched, its tree unpacked. Each is left by a rename, so it is whole or not there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::statvfs::statvfs;

use super::KernelError;
use super::apt::{Apt, Package};
use super::cache::remove_if_there;
use super::command::Runner;
use super::progress::{Progress, Stage, Watch};

/// Bytes that a build takes: the archive, its tree and the objects, with some to spare.
const SPACE: u64 = 3 << 30;

/// What no build here looks at, a quarter of Linux's files: device trees, documentation but for the Kconfig in it, tests,
/// and half a gigabyte of GPU registers. (Other architectures cannot go: Kconfig reads files of theirs.)
const LEFT_OUT: [&str; 5] = [
    "*/arch/[!ux]*/boot",
    "*/Documentation/*/*",
    "*/tools/testing",
    "*/tools/perf",
    "*/drivers/gpu/drm/amd/include",
];

/// The directory of a source.
pub(super) struct Archive<'a>(pub(super) &'a Path);

impl Archive<'_> {
    fn package(&self) -> PathBuf {
        self.0.join("package.deb")
    }

    pub(super) fn tree(&self) -> PathBuf {
        self.0.join("tree")
    }

    /// Whether nothing needs to be fetched any more.
    pub(super) fn is_here(&self) -> bool {
        self.tree().is_dir() || self.package().is_file()
    }

    /// Downloads the package.
    pub(super) async fn fetch(
        &self,
        package: &Package,
        apt: &Apt,
        runner: &mut Runner,
        watch: &mut impl Watch,
    ) -> Result<(), KernelError> {
        enough_space(self.0)?;
        let what = format!("{} {} from {}", package.name, package.version, package.suite);
        watch.progress(Progress::Started { stage: Stage::Fetch, what });
        // Half a file from an earlier try stays: apt goes on from there.
        let partial = self.0.join("package.partial");
        fs::create_dir_all(&partial).map_err(KernelError::io("create", &partial))?;
        let total = package.size;
        let on_percent = |percent: f64| {
            // At most the size of a file; the fraction of a byte is no loss.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "0 to 100 % of a file's size"
            )]
            let done = (percent.clamp(0.0, 100.0) / 100.0 * total as f64) as u64;
            watch.progress(Progress::Reached { stage: Stage::Fetch, done, total });
        };
        apt.download(runner, package, &partial, on_percent).await?;
        let file = find(&partial, &|name| name.ends_with(".deb")).ok_or_else(|| {
            KernelError::machine("apt downloaded nothing", "run `testbed kernel prune` and try again")
        })?;
        fs::rename(&file, self.package()).map_err(KernelError::io("create", &self.package()))?;
        remove_if_there(&partial)
    }

    /// Unpacks the tree from the package that was fetched or from a tarball.
    pub(super) async fn unpack(
        &self,
        tarball: Option<&Path>,
        runner: &mut Runner,
        watch: &mut impl Watch,
    ) -> Result<(), KernelError> {
        enough_space(self.0)?;
        let unpacked = self.0.join("package.unpacked");
        let partial = self.0.join("tree.partial");
        for directory in [&unpacked, &partial] {
            remove_if_there(directory)?;
            fs::create_dir_all(directory).map_err(KernelError::io("create", directory))?;
        }
        let tarball = match tarball {
            Some(tarball) => tarball.to_owned(),
            None => {
                watch.progress(Progress::Started { stage: Stage::Unpack, what: "the package".into() });
                let mut command = Command::new("dpkg-deb");
                command.arg("-x").arg(self.package()).arg(&unpacked);
                runner.run("unpacking the package", command, |_| {}).await?;
                find(&unpacked, &|name| name.starts_with("linux-source") && name.contains(".tar."))
                    .ok_or_else(|| {
                        KernelError::machine(
                            "the package holds no kernel source that is known",
                            "give a tarball of Linux with --source",
                        )
                    })?
            }
        };
        let name = tarball.file_name().unwrap_or_default().to_string_lossy().into_owned();
        watch.progress(Progress::Started { stage: Stage::Unpack, what: name.clone() });
        let mut command = Command::new("tar");
        command.args(["--extract", "--no-same-owner", "--strip-components=1", "--file"]).arg(&tarball);
        command.arg("--directory").arg(&partial).args(["--wildcards", "--no-wildcards-match-slash"]);
        command.args(LEFT_OUT.map(|pattern| format!("--exclude={pattern}")));
        runner.run(&format!("unpacking {name}"), command, |_| {}).await?;
        if !partial.join("Kbuild").is_file() {
            remove_if_there(&partial)?;
            return Err(KernelError::usage(
                format!("{name} is no source of Linux: it has no file */Kbuild"),
                "give a tarball as kernel.org has them",
            ));
        }
        fs::rename(&partial, self.tree()).map_err(KernelError::io("create", &self.tree()))?;
        remove_if_there(&unpacked)?;
        // The tree is all that is needed from here.
        match fs::remove_file(self.package()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(KernelError::io("remove", &self.package())(error))
            }
            _ => Ok(()),
        }
    }
}

fn enough_space(directory: &Path) -> Result<(), KernelError> {
    fs::create_dir_all(directory).map_err(KernelError::io("create", directory))?;
    let stat = statvfs(directory).map_err(|error| KernelError::io("look at", directory)(error.into()))?;
    let free = stat.blocks_available() * stat.fragment_size();
    if free < SPACE {
        return Err(KernelError::machine(
            format!(
                "a build takes {}, and {} has {}",
                gibibytes(SPACE),
                directory.display(),
                gibibytes(free)
            ),
            "set TESTBED_CACHE_DIR to a directory on another disk",
        ));
    }
    Ok(())
}

fn gibibytes(bytes: u64) -> String {
    let tenths = (bytes * 10) >> 30;
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

/// The first regular file below `directory` with such a name.
fn find(directory: &Path, is_it: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(directory).ok()?.filter_map(Result::ok).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    entries.iter().find_map(|entry| {
        let kind = entry.file_type().ok()?;
        if kind.is_dir() {
            find(&entry.path(), is_it)
        } else {
            (kind.is_file() && is_it(&entry.file_name().to_string_lossy())).then(|| entry.path())
        }
    })
}

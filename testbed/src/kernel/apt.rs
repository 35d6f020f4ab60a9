//! Kernel sources from a distribution's archive, by apt, as an ordinary user and without a change to the machine.
//!
//! The mirror is the one that the machine's own apt is configured with, and so are proxies and credentials. The sources
//! list, the lists themselves, caches and hooks are ours: apt's directories all point below the cache. What arrives is
//! verified by apt against the distribution's archive keyring, whatever mirror it comes from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::command::Runner;
use super::source::DEFAULT_VERSION;
use super::{KernelError, toolchain};

/// A distribution that packages kernel sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Archive {
    /// `bookworm`.
    codename: String,
    /// What the archive calls itself in its Release files.
    origin: &'static str,
    components: &'static str,
    keyring: &'static str,
    /// Where kernel sources are looked for, in this order.
    suites: Vec<String>,
}

/// A package of kernel sources.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    /// Of the package's file, from the signed index.
    pub(super) sha256: String,
    /// Bytes of the package's file.
    pub(super) size: u64,
    pub(super) suite: String,
}

impl Package {
    /// What exactly it is.
    pub(super) fn identity(&self) -> String {
        format!("{} {} sha256:{}", self.name, self.version, self.sha256)
    }
}

impl Archive {
    /// That of the distribution that runs here, from `/etc/os-release` (os-release(5)).
    pub(super) fn of_this_machine(os_release: &str) -> Result<Self, KernelError> {
        let value = |key: &str| {
            let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.map(|value| value.trim().trim_matches(['"', '\''])).filter(|value| !value.is_empty())
        };
        let debian = |codename: &str| {
            // The backports of a release come from the next one. They also work for the release before: sources
            // depend on nothing.
            let mut suites = vec!["trixie-backports".to_owned(), codename.to_owned()];
            if !["trixie", "sid"].contains(&codename) {
                suites.push(format!("{codename}-backports"));
            }
            Self {
                codename: codename.to_owned(),
                origin: "Debian",
                components: "main",
                keyring: "/usr/share/keyrings/debian-archive-keyring.gpg",
                suites,
            }
        };
        let ubuntu = |codename: &str| Self {
            codename: codename.to_owned(),
            origin: "Ubuntu",
            components: "main universe",
            keyring: "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
            suites: vec![format!("{codename}-updates"), codename.to_owned()],
        };
        match (value("ID"), value("VERSION_CODENAME"), value("UBUNTU_CODENAME")) {
            (Some("debian"), codename, _) => Ok(debian(codename.unwrap_or("sid"))),
            (_, _, Some(codename)) | (Some("ubuntu"), Some(codename), _) => Ok(ubuntu(codename)),
            _ => Err(KernelError::machine(
                "only on Debian and Ubuntu is it known where kernel sources come from",
                "download a tarball of Linux and give it with --source",
            )),
        }
    }
}

/// apt with directories of its own.
pub(super) struct Apt {
    directory: PathBuf,
    archive: Archive,
}

impl Apt {
    pub(super) fn new(directory: &Path, archive: Archive) -> Result<Self, KernelError> {
        let path = toolchain::search_path();
        let programs = ["apt-get", "apt-cache", "dpkg-deb"];
        if let Some(missing) = programs.iter().find(|program| toolchain::find(program, &path).is_none()) {
            return Err(KernelError::machine(
                format!("{missing} is not installed, so kernel sources cannot be fetched"),
                "download a tarball of Linux and give it with --source",
            ));
        }
        if !Path::new(archive.keyring).is_file() {
            let package = format!("{}-archive-keyring", archive.origin.to_lowercase());
            return Err(KernelError::machine(
                format!("{} is not there to verify what is fetched", archive.keyring),
                format!("sudo apt-get install {package}"),
            ));
        }
        Ok(Self { directory: directory.to_owned(), archive })
    }

    /// Finds the newest package of the wanted version. Asks the archive, so it needs the network.
    pub(super) async fn resolve(
        &self,
        runner: &mut Runner,
        version: Option<&str>,
    ) -> Result<Package, KernelError> {
        let mirrors = self.mirrors(runner).await?;
        let mut failure = None;
        let mut offered = Vec::new();
        for suite in &self.archive.suites {
            for mirror in &mirrors {
                self.configure(mirror, suite)?;
                match self.update(runner).await {
                    Ok(()) => {}
                    Err(error @ KernelError::Failed { .. }) => {
                        failure = Some(error);
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                let names = self.lines(runner, "apt-cache", &["pkgnames", "linux-source-"]).await?;
                offered.extend(
                    names.iter().filter_map(|name| name.strip_prefix("linux-source-")).map(str::to_owned),
                );
                let mut name = choose(&names, version.unwrap_or(DEFAULT_VERSION));
                if name.is_none() && version.is_none() {
                    let meta =
                        self.lines(runner, "apt-cache", &["show", "--no-all-versions", "linux-source"]).await;
                    name = meta.ok().and_then(|lines| depends_on_source(&lines));
                }
                if let Some(name) = name {
                    let lines =
                        self.lines(runner, "apt-cache", &["show", "--no-all-versions", &name]).await?;
                    return stanza(&lines, suite).ok_or_else(|| {
                        KernelError::machine(
                            format!("apt says nothing that can be understood of {name}"),
                            "download a tarball of Linux and give it with --source",
                        )
                    });
                }
                break;
            }
        }
        if offered.is_empty()
            && let Some(failure) = failure
        {
            return Err(failure);
        }
        offered.sort_unstable();
        offered.dedup();
        let version = version.unwrap_or(DEFAULT_VERSION);
        let suites = self.archive.suites.join(", ");
        Err(KernelError::usage(
            format!("there is no linux-source-{version} in {suites}"),
            if offered.is_empty() {
                "give a tarball with --source".to_owned()
            } else {
                format!("there are: {}; or give a tarball with --source", offered.join(", "))
            },
        ))
    }

    /// Downloads a package that [`resolve`](Self::resolve) found, into `directory`. `on_percent` is told how far
    /// it is.
    pub(super) async fn download(
        &self,
        runner: &mut Runner,
        package: &Package,
        directory: &Path,
        mut on_percent: impl FnMut(f64),
    ) -> Result<(), KernelError> {
        let mut command = self.command("apt-get");
        command.current_dir(directory);
        command.args(["-q=2", "-o", "APT::Status-Fd=1", "download"]);
        command.arg(format!("{}={}", package.name, package.version));
        let what = format!("downloading {}", package.name);
        runner.run(&what, command, |line| on_percent(percent(line).unwrap_or(0.0))).await
    }

    /// Where the machine's own apt gets this release from.
    async fn mirrors(&self, runner: &mut Runner) -> Result<Vec<String>, KernelError> {
        let mut command = Command::new("apt-get");
        command.env("LC_ALL", "C").args(["indextargets", "--format"]);
        command.args(["$(RELEASE)|$(COMPONENT)|$(ORIGIN)|$(REPO_URI)", "Created-By: Packages"]);
        let mut lines = Vec::new();
        let what = "asking apt for the machine's mirror";
        runner.run(what, command, |line| lines.push(line.to_owned())).await?;
        let mirrors = mirrors(&lines, &self.archive);
        if mirrors.is_empty() {
            return Err(KernelError::machine(
                format!(
                    "the machine's apt has no source for {} {}",
                    self.archive.origin, self.archive.codename
                ),
                "add one below /etc/apt/sources.list.d, or give a tarball of Linux with --source",
            ));
        }
        Ok(mirrors)
    }

    fn configure(&self, mirror: &str, suite: &str) -> Result<(), KernelError> {
        let at = |name: &str| self.directory.join(name);
        for directory in ["lists/partial", "cache/archives/partial", "log"].map(at) {
            fs::create_dir_all(&directory).map_err(KernelError::io("create", &directory))?;
        }
        let write =
            |path: PathBuf, text: String| fs::write(&path, text).map_err(KernelError::io("write", &path));
        write(at("source.sources"), sources(mirror, suite, &self.archive))?;
        write(at("status"), String::new())?;
        write(at("apt.conf"), configuration(&self.directory))
    }

    async fn update(&self, runner: &mut Runner) -> Result<(), KernelError> {
        let mut command = self.command("apt-get");
        // Without it a list that could not be had is a warning.
        command.args(["-q=2", "-o", "APT::Update::Error-Mode=any", "update"]);
        runner.run("asking the archive for its packages", command, |_| {}).await
    }

    async fn lines(
        &self,
        runner: &mut Runner,
        program: &str,
        args: &[&str],
    ) -> Result<Vec<String>, KernelError> {
        let mut command = self.command(program);
        command.args(args);
        let mut lines = Vec::new();
        runner.run("asking apt", command, |line| lines.push(line.to_owned())).await?;
        Ok(lines)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").arg("-c").arg(self.directory.join("apt.conf"));
        command
    }
}

/// `apt.conf(5)`, read after the machine's own.
fn configuration(directory: &Path) -> String {
    let mut text = String::from(
        "// The machine's hooks are for the machine's own packages.\n\
         #clear APT::Update::Pre-Invoke;\n\
         #clear APT::Update::Post-Invoke;\n\
         #clear APT::Update::Post-Invoke-Success;\n\
         #clear DPkg::Post-Invoke;\n\
         // The user that root downloads as could not write to this directory.\n\
         APT::Sandbox::User \"\";\n\
         Dir::Etc::sourceparts \"/dev/null\";\n\
         Dir::Etc::preferences \"/dev/null\";\n\
         Dir::Etc::preferencesparts \"/dev/null\";\n",
    );
    let directories = [
        ("Dir::Etc::sourcelist", "source.sources"),
        ("Dir::State", "."),
        ("Dir::State::lists", "lists"),
        ("Dir::State::status", "status"),
        ("Dir::Cache", "cache"),
        ("Dir::Log", "log"),
    ];
    for (key, name) in directories {
        text.push_str(&format!("{key} \"{}\";\n", directory.join(name).display()));
    }
    text
}

/// `sources.list(5)`, of one suite.
fn sources(mirror: &str, suite: &str, archive: &Archive) -> String {
    format!(
        "Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: {}\nTargets: Packages\nSigned-By: {}\n",
        archive.components, archive.keyring
    )
}

/// What `apt-get indextargets` lists for the release itself: those that are known to be the distribution's own, else
/// (before the first update nothing is known) all.
fn mirrors(lines: &[String], archive: &Archive) -> Vec<String> {
    let mut candidates: Vec<(bool, &str)> = Vec::new();
    for line in lines {
        let mut fields = line.splitn(4, '|');
        let (Some(release), Some(component), Some(origin), Some(uri)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        // A release may be named by its role: "stable".
        let ours = release == archive.codename || origin == archive.origin && !release.contains(['-', '/']);
        if ours && component == "main" && !candidates.iter().any(|(_, known)| *known == uri) {
            candidates.push((origin == archive.origin, uri));
        }
    }
    if candidates.iter().any(|(known, _)| *known) {
        candidates.retain(|(known, _)| *known);
    }
    candidates.into_iter().map(|(_, uri)| uri.to_owned()).collect()
}

/// The package of a version: `7.3` is `linux-source-7.3`, `6.8` is Ubuntu's `linux-source-6.8.0`.
fn choose(names: &[String], version: &str) -> Option<String> {
    let exact = format!("linux-source-{version}");
    let longer = format!("{exact}.");
    names
        .iter()
        .find(|name| **name == exact)
        .or_else(|| names.iter().find(|name| name.starts_with(&longer)))
        .cloned()
}

/// What the package `linux-source` stands for.
fn depends_on_source(lines: &[String]) -> Option<String> {
    let depends = lines.iter().find_map(|line| line.strip_prefix("Depends: "))?;
    depends
        .split([',', '|'])
        .filter_map(|dependency| dependency.split_whitespace().next())
        .find(|name| name.starts_with("linux-source-"))
        .map(str::to_owned)
}

/// The first stanza of `apt-cache show`.
fn stanza(lines: &[String], suite: &str) -> Option<Package> {
    let field = |name: &str| lines.iter().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some(Package {
        name: field("Package:")?.to_owned(),
        version: field("Version:")?.to_owned(),
        sha256: field("SHA256:")?.to_owned(),
        size: field("Size:")?.parse().ok()?,
        suite: suite.to_owned(),
    })
}

/// `dlstatus:1:42.5:Retrieving file 1 of 1`, as apt tells on its status descriptor.
fn percent(line: &str) -> Option<f64> {
    line.strip_prefix("dlstatus:")?.split(':').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    fn archive(os_release: &str) -> Archive {
        Archive::of_this_machine(os_release).unwrap()
    }

    #[test]
    fn a_release_knows_where_its_kernels_are() {
        let bookworm = archive("ID=debian\nVERSION_CODENAME=bookworm\n");
        assert_eq!(bookworm.suites, ["trixie-backports", "bookworm", "bookworm-backports"]);
        assert_eq!(archive("ID=debian\n").suites, ["trixie-backports", "sid"]);
        let noble = archive("ID=ubuntu\nVERSION_CODENAME=\"noble\"\nUBUNTU_CODENAME=noble\n");
        assert_eq!(noble.suites, ["noble-updates", "noble"]);
        assert_eq!(archive("ID=linuxmint\nVERSION_CODENAME=zara\nUBUNTU_CODENAME=noble\n"), noble);
        let error = Archive::of_this_machine("ID=fedora\nVERSION_CODENAME=\n").unwrap_err();
        assert!(error.help().unwrap().contains("--source"), "{error:?}");
    }

    #[test]
    fn the_mirror_is_the_machines_own() {
        let archive = archive("ID=debian\nVERSION_CODENAME=bookworm\n");
        let known = lines(
            "bookworm|main|Vendor|http://vendor.example/apt/\n\
             bookworm-updates|main|Debian|http://mirror.example/other/\n\
             bookworm|contrib|Debian|http://mirror.example/contrib/\n\
             bookworm|main|Debian|http://mirror.example/debian/\n\
             bookworm|main|Debian|http://mirror.example/debian/\n",
        );
        assert_eq!(mirrors(&known, &archive), ["http://mirror.example/debian/"]);
        // Before the first update apt knows no origins.
        let fresh = lines(
            "bookworm|main|$(ORIGIN)|http://vendor.example/apt/\nbookworm|main|$(ORIGIN)|mirror+file:/etc/mirrors\nodd",
        );
        assert_eq!(mirrors(&fresh, &archive), ["http://vendor.example/apt/", "mirror+file:/etc/mirrors"]);
        let stable = lines("stable|main|Debian|http://mirror.example/debian/");
        assert_eq!(mirrors(&stable, &archive), ["http://mirror.example/debian/"]);
    }

    #[test]
    fn a_version_finds_its_package() {
        let debian = lines("linux-source-7.2\nlinux-source-7.3");
        assert_eq!(choose(&debian, "7.3").as_deref(), Some("linux-source-7.3"));
        assert_eq!(choose(&debian, "7"), Some("linux-source-7.2".into()));
        assert_eq!(choose(&debian, "6.1"), None);
        assert_eq!(choose(&lines("linux-source-6.8.0"), "6.8").as_deref(), Some("linux-source-6.8.0"));
        let meta = lines("Package: linux-source\nDepends: linux-source-6.8.0 (= 6.8.0-1), make | gmake\n");
        assert_eq!(depends_on_source(&meta).as_deref(), Some("linux-source-6.8.0"));
    }

    #[test]
    fn a_stanza_and_a_status_are_read() {
        let text = lines("Package: linux-source-7.3\nVersion: 7.3.4-1\nSize: 166780612\nSHA256: 703e\n");
        let package = stanza(&text, "trixie-backports").unwrap();
        assert_eq!(package.identity(), "linux-source-7.3 7.3.4-1 sha256:703e");
        assert_eq!(package.size, 166_780_612);
        assert_eq!(stanza(&lines("Package: linux-source-7.3"), "x"), None);
        assert_eq!(percent("dlstatus:1:42.5000:Retrieving file 1 of 1 (3s remaining)"), Some(42.5));
        assert_eq!(percent("dlstatus:1"), None);
        assert_eq!(percent("W: something"), None);
    }
}

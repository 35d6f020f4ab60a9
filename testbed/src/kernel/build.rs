//! From a request to an image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime};

use super::apt::{self, Apt, Package};
use super::archive::Archive;
use super::cache::{Cache, Image, Lock, Manifest, discard, remove_if_there};
use super::command::{Interrupt, Runner};
use super::progress::{Progress, Stage, Watch};
use super::{Fragment, KernelError, Platform, Source, Wanted, digest, toolchain};

/// Part of every key: raise it when the stages below would make another kernel of the same source and configuration.
const RECIPE: &str = "1";

/// Left in the directory of objects once the configuration is there and checked.
const CONFIGURED: &str = ".configured";

/// What is to be built.
#[derive(Clone, Debug)]
pub struct Request {
    /// What it runs on.
    pub platform: Platform,
    /// What it is built from.
    pub source: Source,
    /// Options on top of ours.
    pub fragments: Vec<Fragment>,
    /// Compilers that run at once.
    pub jobs: usize,
    /// Build it though it is there.
    pub rebuild: bool,
    /// Ask the distribution for a newer source.
    pub refresh: bool,
    /// Leave the source and the objects in the cache.
    pub keep_sources: bool,
}

impl Request {
    /// The kernel that labs use, for a platform.
    pub fn new(platform: Platform) -> Self {
        Self {
            platform,
            source: Source::Package { version: None },
            fragments: Vec::new(),
            jobs: std::thread::available_parallelism().map_or(1, usize::from),
            rebuild: false,
            refresh: false,
            keep_sources: false,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Built {
    /// The kernel.
    pub image: Image,
    /// Whether it was there already.
    pub cached: bool,
}

/// Builds a kernel, or finds that it is built. Interrupted, it can be called again and goes on.
pub async fn build(
    cache: &Cache,
    request: Request,
    interrupt: Interrupt,
    watch: &mut impl Watch,
) -> Result<Built, KernelError> {
    Job::new(cache, request, interrupt, watch)?.run(toolchain::check).await
}

/// A build under way.
pub(super) struct Job<'a, W> {
    cache: &'a Cache,
    request: Request,
    /// Ours and the request's.
    fragments: Vec<Fragment>,
    wanted: Wanted,
    config_sha256: String,
    /// What is asked for, in words.
    label: String,
    interrupt: Interrupt,
    watch: &'a mut W,
}

impl<'a, W: Watch> Job<'a, W> {
    pub(super) fn new(
        cache: &'a Cache,
        request: Request,
        interrupt: Interrupt,
        watch: &'a mut W,
    ) -> Result<Self, KernelError> {
        let mut fragments = Fragment::ours(request.platform);
        fragments.extend(request.fragments.iter().cloned());
        let wanted = Wanted::parse(&fragments).map_err(|error| {
            KernelError::usage(error.to_string(), "it is read as kconfig's own fragments are")
        })?;
        let config_sha256 = digest::of_parts([wanted.canonical().as_str()]);
        let label = request.source.request()?;
        Ok(Self { cache, request, fragments, wanted, config_sha256, label, interrupt, watch })
    }

    /// `check_machine` is called before anything is done that takes long.
    pub(super) async fn run(
        mut self,
        check_machine: impl FnOnce(Platform, &[PathBuf]) -> Result<(), KernelError>,
    ) -> Result<Built, KernelError> {
        let (platform, rebuild) = (self.request.platform, self.request.rebuild);
        if !rebuild && !self.request.refresh {
            let (label, config) = (self.label.clone(), self.config_sha256.clone());
            let fits =
                move |m: &Manifest| m.platform == platform && m.request == label && m.config_sha256 == config;
            if let Some(image) = self.cached(fits)? {
                return Ok(Built { image, cached: true });
            }
        }
        check_machine(platform, &toolchain::search_path())?;
        let package = self.package().await?;
        let identity = package.as_ref().map_or_else(|| self.label.clone(), Package::identity);
        let name = platform.to_string();
        let key = digest::of_parts([RECIPE, &name, &identity, &self.wanted.canonical()]);
        if !rebuild && let Some(image) = self.cached(|manifest| manifest.key == key)? {
            return Ok(Built { image, cached: true });
        }

        let directory = self.cache.build(&key);
        let (lock, waited) = self.lock(&directory, &format!("the {platform} kernel")).await?;
        if waited && let Some(image) = self.cached(|manifest| manifest.key == key)? {
            return Ok(Built { image, cached: true });
        }
        let log = directory.join("build.log");
        let mut runner = Runner::new(&log, self.interrupt.clone())?;
        let source = self.source(package.as_ref(), &mut runner).await?;
        runner.hold(lock.hold().map_err(KernelError::io("lock", &directory))?);
        let mut kbuild =
            Kbuild { platform, tree: source.tree.clone(), objects: directory.join("objects"), runner };
        let resumed = !self.configure(&mut kbuild, &directory).await?;
        let started = Instant::now();
        let objects = self.compile(&mut kbuild, &log, resumed).await?;

        let product = kbuild.objects.join(platform.product());
        let version = kbuild.release()?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let manifest = Manifest {
            platform,
            version,
            key,
            request: self.label.clone(),
            source: identity,
            config_sha256: self.config_sha256.clone(),
            compiler: toolchain::compiler(),
            image: product.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            bytes: fs::metadata(&product).map_err(KernelError::io("read", &product))?.len(),
            built_at: now.as_secs(),
            compile_seconds: started.elapsed().as_secs(),
            objects,
        };
        let files = [
            (product, manifest.image.clone()),
            (kbuild.objects.join(".config"), "config".to_owned()),
            (log, "build.log".to_owned()),
        ];
        let image = self.cache.install(manifest, |into| {
            for (from, name) in &files {
                fs::copy(from, into.join(name)).map_err(KernelError::io("copy", from))?;
            }
            Ok(())
        })?;
        if !self.request.keep_sources {
            let what = "the source and the objects".to_owned();
            self.watch.progress(Progress::Started { stage: Stage::Clean, what });
            let removing =
                tokio::task::spawn_blocking(move || discard(&directory).and_then(|()| source.remove()));
            let removed = async {
                removing.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
            };
            self.interrupt.or(removed).await?;
        }
        drop(lock);
        Ok(Built { image, cached: false })
    }

    fn cached(&self, is_it: impl Fn(&Manifest) -> bool) -> Result<Option<Image>, KernelError> {
        Ok(self.cache.images()?.into_iter().find(|image| is_it(&image.manifest)))
    }

    /// Locks `path`; the second value is whether somebody else had it.
    async fn lock(&mut self, path: &Path, what: &str) -> Result<(Lock, bool), KernelError> {
        let mut waited = false;
        let watch = &mut *self.watch;
        let waiting = || {
            waited = true;
            watch.progress(Progress::Waiting { what: what.to_owned() });
        };
        let lock = self.interrupt.or(Lock::exclusive(path, waiting)).await?;
        Ok((lock, waited))
    }

    /// Which package it is, if it is one.
    async fn package(&mut self) -> Result<Option<Package>, KernelError> {
        let Source::Package { version } = self.request.source.clone() else { return Ok(None) };
        let directory = self.cache.apt(&self.label);
        let (_lock, _) = self.lock(&directory, &self.label.clone()).await?;
        // What an earlier call found, as long as its source is here: it needs no network to go on.
        let note = directory.join("package.json");
        if !self.request.refresh
            && let Some(package) =
                fs::read_to_string(&note).ok().and_then(|text| serde_json::from_str(&text).ok())
            && Archive(&self.cache.source(&package_id(&package))).is_here()
        {
            return Ok(Some(package));
        }
        let apt = self.apt()?;
        let mut runner = Runner::new(&directory.join("apt.log"), self.interrupt.clone())?;
        let package = apt.resolve(&mut runner, version.as_deref()).await?;
        let text = serde_json::to_string(&package).map_err(std::io::Error::other);
        text.and_then(|text| fs::write(&note, text)).map_err(KernelError::io("write", &note))?;
        Ok(Some(package))
    }

    fn apt(&self) -> Result<Apt, KernelError> {
        let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        Apt::new(&self.cache.apt(&self.label), apt::Archive::of_this_machine(&os_release)?)
    }

    /// The tree, made where it isn't there.
    async fn source(&mut self, package: Option<&Package>, runner: &mut Runner) -> Result<Tree, KernelError> {
        let id = match (&self.request.source, package) {
            (Source::Directory(tree), _) => return Ok(Tree { tree: tree.clone(), ours: None }),
            (_, Some(package)) => package_id(package),
            (_, None) => format!("tarball-{}", &digest::of_parts([self.label.as_str()])[..16]),
        };
        let directory = self.cache.source(&id);
        let (lock, _) = self.lock(&directory, &id).await?;
        let archive = Archive(&directory);
        if !archive.tree().is_dir() {
            runner.hold(lock.hold().map_err(KernelError::io("lock", &directory))?);
            if let Some(package) = package
                && !archive.is_here()
            {
                let (_lock, _) = self.lock(&self.cache.apt(&self.label), &self.label.clone()).await?;
                archive.fetch(package, &self.apt()?, runner, self.watch).await?;
            }
            let tarball = match &self.request.source {
                Source::Tarball(path) => Some(path.as_path()),
                _ => None,
            };
            archive.unpack(tarball, runner, self.watch).await?;
        }
        Ok(Tree { tree: archive.tree(), ours: Some((lock.share(&directory)?, directory)) })
    }

    /// Returns whether there was anything to do.
    async fn configure(&mut self, kbuild: &mut Kbuild, directory: &Path) -> Result<bool, KernelError> {
        let done = kbuild.objects.join(CONFIGURED);
        if done.exists() {
            return Ok(false);
        }
        let what = format!("for {}", kbuild.platform);
        self.watch.progress(Progress::Started { stage: Stage::Configure, what });
        remove_if_there(&kbuild.objects)?;
        let fragments = directory.join("fragments");
        for path in [&kbuild.objects, &fragments] {
            fs::create_dir_all(path).map_err(KernelError::io("create", path))?;
        }
        kbuild.make(1, "tinyconfig", |_| {}).await?;
        let mut files = Vec::new();
        for (index, fragment) in self.fragments.iter().enumerate() {
            let file = fragments.join(format!("{index}.config"));
            fs::write(&file, &fragment.text).map_err(KernelError::io("write", &file))?;
            files.push(file);
        }
        kbuild.merge(&files).await?;
        kbuild.make(1, "olddefconfig", |_| {}).await?;
        let config = kbuild.objects.join(".config");
        let text = fs::read_to_string(&config).map_err(KernelError::io("read", &config))?;
        let missing = self.wanted.missing(&text);
        if !missing.is_empty() {
            return Err(KernelError::Configuration(missing));
        }
        fs::write(&done, "").map_err(KernelError::io("write", &done))?;
        Ok(true)
    }

    /// Returns the lines that kbuild printed.
    async fn compile(&mut self, kbuild: &mut Kbuild, log: &Path, resumed: bool) -> Result<u64, KernelError> {
        // What an earlier try has done is in the log.
        let earlier = fs::read(log).map_err(KernelError::io("read", log))?;
        let mut done = earlier.split(|byte| *byte == b'\n').filter(|line| is_object(line)).count() as u64;
        let platform = kbuild.platform;
        let known =
            self.cached(|manifest| manifest.platform == platform)?.map(|image| image.manifest.objects);
        let estimate = known.unwrap_or_else(|| platform.estimate());
        let rest = if resumed { ", from where it was" } else { "" };
        let what = format!("with {} at once{rest}", self.request.jobs);
        self.watch.progress(Progress::Started { stage: Stage::Compile, what });
        let watch = &mut *self.watch;
        let on_line = |line: &str| {
            if is_object(line.as_bytes()) {
                done += 1;
                let total = estimate.max(done);
                watch.progress(Progress::Reached { stage: Stage::Compile, done, total });
            }
        };
        kbuild.make(self.request.jobs, platform.target(), on_line).await?;
        Ok(done)
    }
}

fn package_id(package: &Package) -> String {
    format!("{}_{}", package.name, package.version.replace(['/', ':'], "_"))
}

/// `  CC      kernel/fork.o`: kbuild's line for something that it makes.
fn is_object(line: &[u8]) -> bool {
    line.starts_with(b"  ") && line.get(2).is_some_and(u8::is_ascii_uppercase)
}

/// A source tree, and what is done with it afterwards.
struct Tree {
    tree: PathBuf,
    /// Its directory in the cache with a lock that other builds share; `None` for a tree of the user's.
    ours: Option<(Lock, PathBuf)>,
}

impl Tree {
    /// Removes it, unless another build uses it.
    fn remove(self) -> Result<(), KernelError> {
        match self.ours {
            Some((lock, directory)) if lock.try_upgrade() => discard(&directory),
            _ => Ok(()),
        }
    }
}

/// The kernel's own build system, with objects in a directory of their own so that the tree stays as it is.
struct Kbuild {
    platform: Platform,
    tree: PathBuf,
    objects: PathBuf,
    runner: Runner,
}

impl Kbuild {
    async fn make(
        &mut self,
        jobs: usize,
        target: &str,
        on_line: impl FnMut(&str),
    ) -> Result<(), KernelError> {
        let mut command = Command::new("make");
        command.arg("--no-print-directory").arg(format!("-j{}", jobs.max(1))).arg("-C").arg(&self.tree);
        let mut objects = std::ffi::OsString::from("O=");
        objects.push(&self.objects);
        command.arg(objects).arg(format!("ARCH={}", self.platform.arch())).arg(target);
        clean(&mut command);
        self.runner.run(&format!("make {target}"), command, on_line).await
    }

    /// Puts fragments on top of the configuration, by the kernel's own script.
    async fn merge(&mut self, fragments: &[PathBuf]) -> Result<(), KernelError> {
        let mut command = Command::new("sh");
        command.arg(self.tree.join("scripts/kconfig/merge_config.sh"));
        command.arg("-m").arg("-O").arg(&self.objects).arg(self.objects.join(".config")).args(fragments);
        command.current_dir(&self.objects);
        clean(&mut command);
        command.env("ARCH", self.platform.arch());
        self.runner.run("merging the configuration", command, |_| {}).await
    }

    /// As `uname -r` will have it.
    fn release(&self) -> Result<String, KernelError> {
        let path = self.objects.join("include/config/kernel.release");
        let text = fs::read_to_string(&path).map_err(KernelError::io("read", &path))?;
        Ok(text.trim().to_owned())
    }
}

/// Keeps the caller's environment out of the build, and the builder's name and the time out of the kernel: the same
/// source, configuration and tools make the same kernel.
fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours = [
            "KBUILD_",
            "KCONFIG_",
            "CONFIG_",
            "MAKE",
            "MFLAGS",
            "KCFLAGS",
            "CARGO_MAKEFLAGS",
            "ARCH",
            "CROSS_",
        ];
        if ours.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
        .env("LC_ALL", "C")
        // Set, though to nothing: a cache inside some git repository adds nothing to the version.
        .env("LOCALVERSION", "")
        .env("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970")
        .env("KBUILD_BUILD_VERSION", "1")
        .env("KBUILD_BUILD_USER", "testbed")
        .env("KBUILD_BUILD_HOST", "testbed");
}

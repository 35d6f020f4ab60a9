//! Where kernels are kept: `$TESTBED_CACHE_DIR`, else `$XDG_CACHE_HOME/testbed`, else `~/.cache/testbed`.
//!
//! ```text
//! kernel/images/NAME/    the image, its .config, its log and manifest.json; appears whole or not at all
//! kernel/sources/ID/     an archive and its tree, while a build needs them
//! kernel/builds/KEY/     objects of a build that isn't through
//! kernel/apt/REQUEST/    apt's lists, apart from the machine's own
//! kernel/kvm.json        whether KVM runs a kernel here
//! ```
//! Beside each of the last three directories is its lock.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{KernelError, Platform};

/// What the name of something begins with that is being removed.
const REMOVED: &str = ".removed-";

/// The directory that kernels are kept in.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// A kernel that is ready.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Its directory; the last component is its name.
    pub directory: PathBuf,
    /// What it is.
    pub manifest: Manifest,
}

/// What is known of an image; `manifest.json` beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What it runs on.
    pub platform: Platform,
    /// As `uname -r` has it in the guest.
    pub version: String,
    /// What decides whether an image is the one that is asked for (SHA-256).
    pub key: String,
    /// What was asked for, such as `linux-source-7.3`.
    pub request: String,
    /// What it was made from, exactly.
    pub source: String,
    /// SHA-256 of the options that were asked for.
    pub config_sha256: String,
    /// The compiler's version line. It isn't part of the key.
    pub compiler: String,
    /// The image's file name.
    pub image: String,
    /// The image's size.
    pub bytes: u64,
    /// Seconds since 1970.
    pub built_at: u64,
    /// How long make ran. After an interruption, only the last time.
    pub compile_seconds: u64,
    /// Lines that kbuild printed: the estimate for the next build.
    pub objects: u64,
}

impl Image {
    /// The kernel itself.
    pub fn path(&self) -> PathBuf {
        self.directory.join(&self.manifest.image)
    }

    /// What it is called in the cache.
    pub fn name(&self) -> String {
        self.directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// How long ago it was built.
    pub fn age(&self) -> Duration {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        now.saturating_sub(Duration::from_secs(self.manifest.built_at))
    }
}

impl Cache {
    /// The user's.
    pub fn of_user() -> Result<Self, KernelError> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        // The XDG base directory specification has relative paths ignored.
        let root = set("TESTBED_CACHE_DIR")
            .or_else(|| Some(set("XDG_CACHE_HOME").filter(|path| path.is_absolute())?.join("testbed")))
            .or_else(|| Some(set("HOME")?.join(".cache/testbed")))
            .ok_or_else(|| {
                KernelError::machine(
                    "there is no directory to keep kernels in",
                    "set TESTBED_CACHE_DIR or HOME",
                )
            })?;
        let root = std::path::absolute(&root).map_err(KernelError::io("find", &root))?;
        Ok(Self::at(&root))
    }

    /// One somewhere else.
    pub fn at(root: &Path) -> Self {
        Self { root: root.join("kernel") }
    }

    /// Every image, by platform, the newest first.
    pub fn images(&self) -> Result<Vec<Image>, KernelError> {
        let mut images: Vec<Image> = entries(&self.root.join("images"))?
            .into_iter()
            // Whatever else lies there (an image that is being put together, or of another version of ours) is none.
            .filter_map(|directory| {
                let text = fs::read_to_string(directory.join("manifest.json")).ok()?;
                let manifest: Manifest = serde_json::from_str(&text).ok()?;
                directory.join(&manifest.image).is_file().then_some(Image { directory, manifest })
            })
            .collect();
        images.sort_by(|a, b| {
            let order = |image: &Image| (image.manifest.platform, std::cmp::Reverse(image.manifest.built_at));
            order(a).cmp(&order(b)).then_with(|| a.directory.cmp(&b.directory))
        });
        Ok(images)
    }

    /// The newest image for a platform.
    pub fn newest(&self, platform: Platform) -> Result<Option<Image>, KernelError> {
        Ok(self.images()?.into_iter().find(|image| image.manifest.platform == platform))
    }

    /// Removes an image, by its name or by as much of it as is unique.
    pub fn remove(&self, name: &str) -> Result<Image, KernelError> {
        let images = self.images()?;
        let named: Vec<&Image> = match images.iter().find(|image| image.name() == name) {
            Some(image) => vec![image],
            None => images.iter().filter(|image| !name.is_empty() && image.name().contains(name)).collect(),
        };
        let [image] = named[..] else {
            let names: Vec<String> = images.iter().map(Image::name).collect();
            let help = match &names[..] {
                [] => "there are none".to_owned(),
                names => format!("there are: {}", names.join(", ")),
            };
            let problem = if named.is_empty() { "no kernel is" } else { "more than one kernel is" };
            return Err(KernelError::usage(format!("{problem} named {name:?}"), help));
        };
        discard(&image.directory)?;
        Ok(image.clone())
    }

    /// Removes all that is no image and that no build is using: sources, objects, apt's lists. Returns its bytes.
    pub fn prune(&self) -> Result<u64, KernelError> {
        let mut freed = 0;
        for directory in ["sources", "builds", "apt"] {
            for path in entries(&self.root.join(directory))?.into_iter().filter(|path| path.is_dir()) {
                let Ok(Some(_held)) = Lock::try_exclusive(&path) else { continue };
                freed += size(&path);
                remove_if_there(&path)?;
            }
        }
        for path in entries(&self.root.join("images"))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(REMOVED) {
                freed += size(&path);
                remove_if_there(&path)?;
            }
        }
        Ok(freed)
    }

    /// What was seen of KVM, for as long as the machine is up.
    pub(crate) fn kvm(&self) -> PathBuf {
        self.root.join("kvm.json")
    }

    /// apt's lists for one kind of request.
    pub(super) fn apt(&self, request: &str) -> PathBuf {
        self.root.join("apt").join(request)
    }

    pub(super) fn source(&self, id: &str) -> PathBuf {
        self.root.join("sources").join(id)
    }

    pub(super) fn build(&self, key: &str) -> PathBuf {
        self.root.join("builds").join(&key[..16])
    }

    /// Puts an image in its place: `fill` makes its files in a directory that then gets its name.
    pub(super) fn install(
        &self,
        manifest: Manifest,
        fill: impl FnOnce(&Path) -> Result<(), KernelError>,
    ) -> Result<Image, KernelError> {
        let images = self.root.join("images");
        fs::create_dir_all(&images).map_err(KernelError::io("create", &images))?;
        let name = format!("{}-{}-{}", manifest.platform, manifest.version, &manifest.key[..12]);
        let making = tempfile::Builder::new()
            .prefix(".making-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir_in(&images)
            .map_err(KernelError::io("create", &images))?;
        fill(making.path())?;
        let file = making.path().join("manifest.json");
        let text = serde_json::to_string_pretty(&manifest).map_err(io::Error::other);
        text.and_then(|text| fs::write(&file, text + "\n")).map_err(KernelError::io("write", &file))?;
        let directory = images.join(name);
        // There is one only where the user wants it built once more.
        if directory.exists() {
            discard(&directory)?;
        }
        fs::rename(making.path(), &directory).map_err(KernelError::io("create", &directory))?;
        Ok(Image { directory, manifest })
    }
}

/// A lock on something in the cache, held through a file beside it. The file stays: to remove it would let two hold it.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    fn file(path: &Path) -> Result<(File, PathBuf), KernelError> {
        let path = path.with_added_extension("lock");
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(KernelError::io("create", parent))?;
        }
        let file = File::options().read(true).append(true).create(true).open(&path);
        Ok((file.map_err(KernelError::io("open", &path))?, path))
    }

    /// Takes it for oneself, if nobody has it.
    pub(super) fn try_exclusive(path: &Path) -> Result<Option<Self>, KernelError> {
        let (file, path) = Self::file(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(KernelError::io("lock", &path)(error)),
        }
    }

    /// Takes it for oneself; `waiting` is called if that has to wait.
    pub(super) async fn exclusive(path: &Path, waiting: impl FnOnce()) -> Result<Self, KernelError> {
        if let Some(lock) = Self::try_exclusive(path)? {
            return Ok(lock);
        }
        waiting();
        let (file, path) = Self::file(path)?;
        let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| Self(file)));
        locked
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(KernelError::io("lock", &path))
    }

    /// Lets others of the same kind in, and keeps out who wants it for himself.
    pub(super) fn share(self, path: &Path) -> Result<Self, KernelError> {
        self.0.lock_shared().map_err(KernelError::io("lock", path))?;
        Ok(self)
    }

    /// Whether nobody else shares it any more; it is then one's own.
    pub(super) fn try_upgrade(&self) -> bool {
        self.0.try_lock().is_ok()
    }

    /// The file, for a program that is to hold the lock too.
    pub(super) fn hold(&self) -> io::Result<File> {
        self.0.try_clone()
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, KernelError> {
    match fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<_>>()
            .map_err(KernelError::io("read", directory)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(KernelError::io("read", directory)(error)),
    }
}

/// Removes a directory with all that is in it.
pub(super) fn remove_if_there(directory: &Path) -> Result<(), KernelError> {
    match fs::remove_dir_all(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(KernelError::io("remove", directory)(error)),
    }
}

/// Removes a directory so that nobody ever finds half of it under its name.
pub(super) fn discard(directory: &Path) -> Result<(), KernelError> {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let doomed = directory.with_file_name(format!("{REMOVED}{name}"));
    remove_if_there(&doomed)?;
    fs::rename(directory, &doomed).map_err(KernelError::io("remove", directory))?;
    remove_if_there(&doomed)
}

/// Bytes of the files below a directory; what cannot be read counts nothing.
fn size(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    if !meta.is_dir() {
        return meta.len();
    }
    entries(path).unwrap_or_default().iter().map(|entry| size(entry)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn manifest(platform: Platform, version: &str, built_at: u64) -> Manifest {
        Manifest {
            platform,
            version: version.into(),
            key: format!("{built_at:064x}"),
            request: "linux-source-7.3".into(),
            source: "linux-source-7.3 7.3.4-1".into(),
            config_sha256: "c".repeat(64),
            compiler: "gcc 12".into(),
            image: "linux".into(),
            bytes: 4,
            built_at,
            compile_seconds: 1,
            objects: 1,
        }
    }

    fn install(cache: &Cache, manifest: Manifest) -> Image {
        let image = cache.install(manifest, |directory| {
            fs::write(directory.join("linux"), "ELF").map_err(KernelError::io("write", directory))
        });
        image.unwrap()
    }

    #[test]
    fn images_are_listed_by_platform_newest_first_and_removed_by_name() {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::at(home.path());
        assert_eq!(cache.images().unwrap(), []);
        let qemu = install(&cache, manifest(Platform::Qemu, "7.3.4", 3));
        let old = install(&cache, manifest(Platform::Uml, "7.3.3", 1));
        let new = install(&cache, manifest(Platform::Uml, "7.3.4", 2));
        // Neither half an image nor an image of another time is one.
        fs::create_dir(cache.root.join("images/.making-x")).unwrap();
        fs::create_dir(cache.root.join("images/uml-1")).unwrap();
        fs::write(cache.root.join("images/uml-1/manifest.json"), "{\"version\": 1}").unwrap();
        assert_eq!(cache.images().unwrap(), [new.clone(), old.clone(), qemu.clone()]);
        assert_eq!(cache.newest(Platform::Uml).unwrap(), Some(new.clone()));

        let ambiguous = cache.remove("7.3.4").unwrap_err().to_string();
        assert_eq!(ambiguous, "more than one kernel is named \"7.3.4\"");
        let error = cache.remove("7.4").unwrap_err();
        assert!(error.help().unwrap().contains(&old.name()), "{error:?}");
        assert_eq!(cache.remove("uml-7.3.4").unwrap(), new);
        assert_eq!(cache.images().unwrap(), [old, qemu]);
        assert!(!new.directory.exists());
    }

    #[test]
    fn an_image_that_cannot_be_put_together_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::at(home.path());
        let result = cache.install(manifest(Platform::Uml, "7.3.4", 1), |directory| {
            Err(KernelError::io("copy", directory)(io::ErrorKind::StorageFull.into()))
        });
        assert!(result.is_err());
        assert_eq!(fs::read_dir(cache.root.join("images")).unwrap().count(), 0);
    }

    #[test]
    fn pruning_spares_images_and_what_is_in_use() {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::at(home.path());
        let image = install(&cache, manifest(Platform::Uml, "7.3.4", 1));
        for directory in
            [cache.source("used"), cache.source("idle"), cache.build(&"ab".repeat(32)), cache.apt("x")]
        {
            fs::create_dir_all(directory.join("tree")).unwrap();
            fs::write(directory.join("tree/Makefile"), "all:").unwrap();
        }
        let held = Lock::try_exclusive(&cache.source("used")).unwrap().unwrap();
        assert_eq!(cache.prune().unwrap(), 12);
        assert!(cache.source("used").join("tree/Makefile").exists());
        assert!(!cache.source("idle").exists() && !cache.apt("x").exists());
        drop(held);
        assert_eq!(cache.prune().unwrap(), 4);
        assert_eq!(cache.images().unwrap(), [image]);
    }

    #[tokio::test]
    async fn a_lock_is_waited_for_and_lasts_as_long_as_a_program_holds_it() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("thing");
        let lock = Lock::try_exclusive(&path).unwrap().unwrap();
        let mut child = std::process::Command::new("sh")
            .args(["-c", "echo on; read -r line"])
            .stdout(lock.hold().unwrap())
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        drop(lock);
        assert!(Lock::try_exclusive(&path).unwrap().is_none(), "the program has it");
        let (tell, told) = tokio::sync::oneshot::channel();
        let (lock, ()) = tokio::join!(Lock::exclusive(&path, || tell.send(()).unwrap()), async {
            told.await.unwrap();
            drop(child.stdin.take());
            child.wait().unwrap();
        });
        let shared = lock.unwrap().share(&path).unwrap();
        assert!(Lock::try_exclusive(&path).unwrap().is_none());
        assert!(shared.try_upgrade());
    }
}

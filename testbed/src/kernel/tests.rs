//! Whole builds of a small tree that answers to kbuild's targets, so that stages, taking up again, keys and locks are
//! tested in moments. The real one is in `tests/it/kernel.rs`.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::build::Job;
use super::{
    Built, Cache, Fragment, Interrupt, KernelError, Platform, Progress, Request, Source, Stage, Watch, build,
};

/// What kbuild does, as far as a build here looks at it. `FAKE_DROPS` in the tree names an option that kconfig drops.
const MAKEFILE: &str = r#"
tinyconfig:
	@mkdir -p $(O) && echo '# CONFIG_SMP is not set' > $(O)/.config && echo '  HOSTCC  conf'
olddefconfig:
	@if [ -f drops ]; then grep -v "^$$(cat drops)=" $(O)/.config > $(O)/t && mv $(O)/t $(O)/.config; fi
linux: $(O)/a.o $(O)/b.o
	@mkdir -p $(O)/include/config && echo 7.3.99 > $(O)/include/config/kernel.release
	@echo '  LD      linux' && cat $^ > $(O)/linux && env | grep -c '^KBUILD_BUILD' >> $(O)/linux
$(O)/a.o: a.c
	@echo '  CC      a.o' && cp $< $@
$(O)/b.o: b.c $(O)/a.o
	@echo '  CC      b.o' && if [ -f broken ]; then echo 'b.c:1: error: broken' >&2; exit 1; fi && cp $< $@
	@if [ -f hangs ]; then echo '  CC      slow.o'; sleep 600; fi
"#;

/// As the kernel's own: the later fragment wins.
const MERGE: &str = "[ \"$1 $2\" = '-m -O' ] && [ \"$ARCH\" = um ] || exit 9
out=$3/.config; shift 4; cat \"$@\" > \"$out.new\"; mv \"$out.new\" \"$out\"\n";

struct Bench {
    home: tempfile::TempDir,
    cache: Cache,
}

impl Bench {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let tree = home.path().join("linux-7.3");
        fs::create_dir_all(tree.join("scripts/kconfig")).unwrap();
        for (name, text) in [
            ("Makefile", MAKEFILE),
            ("Kbuild", ""),
            ("a.c", "one\n"),
            ("b.c", "two\n"),
            ("scripts/kconfig/merge_config.sh", MERGE),
        ] {
            fs::write(tree.join(name), text).unwrap();
        }
        let cache = Cache::at(&home.path().join("cache"));
        Self { home, cache }
    }

    fn tree(&self) -> PathBuf {
        self.home.path().join("linux-7.3")
    }

    fn tarball(&self) -> PathBuf {
        let file = self.home.path().join("linux-7.3.tar");
        let mut command = Command::new("tar");
        command.args(["--create", "--mtime=@0", "--file"]).arg(&file).arg("-C").arg(self.home.path());
        assert!(command.arg("linux-7.3").status().unwrap().success());
        file
    }

    fn request(&self, source: Source) -> Request {
        Request { source, jobs: 1, ..Request::new(Platform::Uml) }
    }

    async fn build(&self, request: Request, watch: &mut impl Watch) -> Result<Built, KernelError> {
        let (_interrupter, interrupt) = Interrupt::new();
        self.build_until(request, interrupt, watch).await
    }

    async fn build_until(
        &self,
        request: Request,
        interrupt: Interrupt,
        watch: &mut impl Watch,
    ) -> Result<Built, KernelError> {
        // A fake kernel needs no compiler.
        Job::new(&self.cache, request, interrupt, watch)?.run(|_, _| Ok(())).await
    }

    fn left(&self, kind: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.home.path().join("cache/kernel").join(kind)) else {
            return Vec::new();
        };
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
    }
}

/// Remembers the stages that began.
#[derive(Default)]
struct Stages(RefCell<Vec<Stage>>);

impl Watch for Stages {
    fn progress(&mut self, progress: Progress) {
        if let Progress::Started { stage, .. } = progress {
            self.0.borrow_mut().push(stage);
        }
    }
}

impl Stages {
    fn take(&mut self) -> Vec<Stage> {
        self.0.take()
    }
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

#[tokio::test]
async fn a_tarball_becomes_an_image_and_the_second_call_does_no_work() {
    let bench = Bench::new();
    let request = bench.request(Source::Tarball(bench.tarball()));
    let mut stages = Stages::default();
    let built = bench.build(request.clone(), &mut stages).await.unwrap();
    assert_eq!(stages.take(), [Stage::Unpack, Stage::Configure, Stage::Compile, Stage::Clean]);
    assert!(!built.cached);
    let manifest = &built.image.manifest;
    assert_eq!((manifest.version.as_str(), manifest.platform), ("7.3.99", Platform::Uml));
    // One line of the configuration's and three of the compilation's.
    assert_eq!(manifest.objects, 4);
    assert_eq!(read(built.image.path()), "one\ntwo\n4\n");
    let config = read(built.image.directory.join("config"));
    assert!(config.contains("CONFIG_RDMA_SIW=y"), "{config}");
    assert!(read(built.image.directory.join("build.log")).contains("  CC      a.o"));
    assert_eq!(bench.left("sources"), Vec::<PathBuf>::new());
    assert_eq!(bench.left("builds"), Vec::<PathBuf>::new());

    // Through the door that users take: with an image there, not even the toolchain is looked at.
    let (_interrupter, interrupt) = Interrupt::new();
    let again = build(&bench.cache, request, interrupt, &mut stages).await.unwrap();
    assert_eq!(again, Built { image: built.image, cached: true });
    assert_eq!(stages.take(), []);
}

#[tokio::test]
async fn another_source_or_option_is_another_kernel() {
    let bench = Bench::new();
    let request = bench.request(Source::Directory(bench.tree()));
    let mut names = Vec::new();
    let mut watch = Stages::default();
    names.push(bench.build(request.clone(), &mut watch).await.unwrap().image.name());
    let extra = |text: &str| vec![Fragment { name: "mine".into(), text: text.into() }];
    // To ask for what is wanted anyway changes nothing, and a comment changes nothing.
    let same = Request { fragments: extra("# mine\nCONFIG_NET=y\n"), ..request.clone() };
    assert!(bench.build(same, &mut watch).await.unwrap().cached);
    let more = Request { fragments: extra("CONFIG_KASAN=y\n"), ..request.clone() };
    names.push(bench.build(more, &mut watch).await.unwrap().image.name());
    fs::write(bench.tree().join("a.c"), "another\n").unwrap();
    names.push(bench.build(request.clone(), &mut watch).await.unwrap().image.name());
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(bench.cache.images().unwrap().len(), 3);

    let rebuild = Request { rebuild: true, ..request };
    assert!(!bench.build(rebuild, &mut watch).await.unwrap().cached);
    assert_eq!(bench.cache.images().unwrap().len(), 3);
}

#[tokio::test]
async fn a_tree_of_the_users_stays_as_it_is() {
    let bench = Bench::new();
    let list = || {
        let output = Command::new("find").arg(bench.tree()).args(["-printf", "%p %T@\n"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let before = list();
    bench.build(bench.request(Source::Directory(bench.tree())), &mut Stages::default()).await.unwrap();
    assert_eq!(list(), before);
}

#[tokio::test]
async fn options_that_were_dropped_fail_the_build_before_it_compiles() {
    let bench = Bench::new();
    fs::write(bench.tree().join("drops"), "CONFIG_RDMA_SIW").unwrap();
    let mut stages = Stages::default();
    let request = bench.request(Source::Directory(bench.tree()));
    let error = bench.build(request, &mut stages).await.unwrap_err();
    let message = error.to_string();
    assert!(message.contains("CONFIG_RDMA_SIW=y: no such option"), "{message}");
    assert!(!message.contains("RXE"), "{message}");
    assert_eq!(stages.take(), [Stage::Configure]);
}

#[tokio::test]
async fn what_failed_goes_on_where_it_was() {
    let bench = Bench::new();
    fs::write(bench.tree().join("broken"), "").unwrap();
    let tarball = bench.tarball();
    let request = bench.request(Source::Tarball(tarball));
    let mut stages = Stages::default();
    let error = bench.build(request.clone(), &mut stages).await.unwrap_err();
    assert!(error.to_string().contains("  b.c:1: error: broken"), "{error}");
    let KernelError::Failed { log, .. } = &error else { panic!("{error:?}") };
    assert!(read(log).contains("error: broken"));
    assert_eq!(stages.take(), [Stage::Unpack, Stage::Configure, Stage::Compile]);
    assert_eq!(bench.cache.images().unwrap(), []);

    // Somebody mends the tree that lies in the cache.
    let [source] = &bench.left("sources")[..] else { panic!("the source stays") };
    fs::remove_file(source.join("tree/broken")).unwrap();
    let built = bench.build(request, &mut stages).await.unwrap();
    assert_eq!(stages.take(), [Stage::Compile, Stage::Clean]);
    let log = read(built.image.directory.join("build.log"));
    assert_eq!(log.matches("  CC      a.o").count(), 1, "a.o is not made twice: {log}");
    assert_eq!(bench.left("sources"), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn an_interrupt_ends_it_at_once_and_it_can_go_on() {
    let bench = Bench::new();
    let hangs = bench.tree().join("hangs");
    fs::write(&hangs, "").unwrap();
    let mut request = bench.request(Source::Tarball(bench.tarball()));
    request.keep_sources = true;
    let (interrupter, interrupt) = Interrupt::new();
    let mut stages = Stages::default();
    let mut on_slow = |progress: Progress| {
        // The line `CC slow.o` is the fourth.
        if matches!(progress, Progress::Reached { done: 4, .. }) {
            interrupter.interrupt();
        }
    };
    let error = bench.build_until(request.clone(), interrupt, &mut on_slow).await.unwrap_err();
    assert!(matches!(error, KernelError::Interrupted), "{error:?}");
    let [source] = &bench.left("sources")[..] else { panic!("the source stays") };
    fs::remove_file(source.join("tree/hangs")).unwrap();
    bench.build(request, &mut stages).await.unwrap();
    assert_eq!(stages.take(), [Stage::Compile]);
    // As it was asked for, they are kept.
    assert_eq!((bench.left("sources").len(), bench.left("builds").len()), (1, 1));
}

#[tokio::test]
async fn two_at_once_build_one_kernel() {
    let bench = Bench::new();
    let request = bench.request(Source::Tarball(bench.tarball()));
    let waited = RefCell::new(false);
    let mut first = Stages::default();
    let mut second = |progress: Progress| {
        if matches!(progress, Progress::Waiting { .. }) {
            *waited.borrow_mut() = true;
        }
        assert!(!matches!(progress, Progress::Started { .. }), "{progress:?}");
    };
    let (one, two) =
        tokio::join!(bench.build(request.clone(), &mut first), bench.build(request.clone(), &mut second));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!((one.cached, two.cached), (false, true));
    assert_eq!(one.image, two.image);
    assert!(waited.into_inner());
}

#[tokio::test]
async fn a_tarball_of_something_else_is_refused() {
    let bench = Bench::new();
    fs::remove_file(bench.tree().join("Kbuild")).unwrap();
    let request = bench.request(Source::Tarball(bench.tarball()));
    let error = bench.build(request, &mut Stages::default()).await.unwrap_err();
    assert!(error.to_string().contains("linux-7.3.tar is no source of Linux"), "{error}");
}

#[tokio::test]
async fn a_bad_fragment_is_refused_with_its_place() {
    let bench = Bench::new();
    let mut request = bench.request(Source::Directory(bench.tree()));
    request.fragments.push(Fragment { name: "my.config".into(), text: "RDMA=y".into() });
    let error = bench.build(request, &mut Stages::default()).await.unwrap_err();
    assert!(error.to_string().starts_with("my.config:1: "), "{error}");
    assert_eq!(error.blame(), crate::agent::protocol::Blame::Usage);
}

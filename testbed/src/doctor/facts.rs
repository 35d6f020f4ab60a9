//! What is the case on this machine, gathered without a judgement.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::guests::Guests;
use super::packages::{Distribution, TOOLS};
use super::probe::{Attempts, attempt};
use crate::agent::namespaces::is_privileged;

/// Where facts come from. [`Sources::system`] is this machine; a test has its own.
pub struct Sources {
    /// Below this are `proc`, `sys`, `etc` and `lib`.
    pub root: PathBuf,
    /// Where programs are looked for.
    pub path: Vec<PathBuf>,
    /// Whether the process has what makes namespaces without a user namespace, as root has.
    pub privileged: bool,
    /// What is there for guests.
    pub guests: Guests,
    /// Whether this program can use the kernel's RDMA devices itself.
    pub verbs: bool,
    /// Bytes that the user may lock in memory; `None` is any number.
    pub memlock: Option<u64>,
    /// What the kernel says.
    pub attempts: io::Result<Attempts>,
}

impl Sources {
    /// This machine. Makes the attempts.
    pub fn system() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Where Debian has nginx and others, and an ordinary user's PATH does not look.
        let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
        Self {
            root: "/".into(),
            path: std::env::split_paths(&path).chain(more).collect(),
            privileged: is_privileged(),
            guests: Guests::gather(),
            verbs: cfg!(feature = "verbs"),
            memlock: getrlimit(Resource::RLIMIT_MEMLOCK)
                .ok()
                .map(|(soft, _)| soft)
                .filter(|soft| *soft != RLIM_INFINITY),
            attempts: attempt(),
        }
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok().map(|text| text.trim().to_owned())
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.parse().ok()
    }

    fn module(&self, name: &str, release: &str) -> Module {
        if self.root.join("sys/module").join(name).is_dir() {
            return Module::Present;
        }
        let modules = self.root.join("lib/modules").join(release);
        let mentions = |file: &str| {
            let text = fs::read_to_string(modules.join(file)).unwrap_or_default();
            text.lines().any(|line| {
                // `kernel/drivers/infiniband/sw/siw/siw.ko.xz: …`
                let path = line.split(':').next().unwrap_or_default();
                path.rsplit('/').next().and_then(|file| file.split('.').next()) == Some(name)
            })
        };
        if mentions("modules.builtin") {
            Module::Present
        } else if mentions("modules.dep") {
            Module::Loadable
        } else {
            Module::Absent
        }
    }

    fn program(&self, name: &str) -> Option<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let runs = |file: &Path| {
            fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        self.path.iter().map(|directory| directory.join(name)).find(|file| runs(file))
    }
}

/// Whether the kernel has a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// It is loaded or built in.
    Present,
    /// It can be loaded.
    Loadable,
    /// It is not installed.
    Absent,
}

/// What is the case.
#[derive(Debug)]
pub struct Facts {
    /// `6.12.1-generic`.
    pub(super) release: String,
    pub(super) distribution: Distribution,
    pub(super) privileged: bool,
    pub(super) guests: Guests,
    pub(super) verbs: bool,
    /// Which of the kernel's fabrics libibverbs has a driver for.
    pub(super) providers: Vec<&'static str>,
    /// Yama's restriction of ptrace (Documentation/admin-guide/LSM/Yama.rst).
    pub(super) ptrace_scope: Option<u64>,
    /// Whether this is the machine's own user namespace: NETLINK_RDMA's administration is for it alone.
    pub(super) initial_user_namespace: bool,
    pub(super) attempts: io::Result<Attempts>,
    /// Ubuntu's AppArmor: user namespaces only for programs with a profile.
    pub(super) apparmor_restricts: bool,
    /// Ours is there.
    pub(super) apparmor_profile: bool,
    pub(super) max_user_namespaces: Option<u64>,
    /// Debian's old switch; `false` is off.
    pub(super) unprivileged_userns_clone: Option<bool>,
    pub(super) siw: Module,
    pub(super) rxe: Module,
    pub(super) netem_module: Module,
    /// Whether RDMA devices are seen from every network namespace; `None` without the RDMA subsystem.
    pub(super) rdma_shared: Option<bool>,
    pub(super) memlock: Option<u64>,
    /// Program -> where it is.
    pub(super) tools: BTreeMap<&'static str, Option<PathBuf>>,
}

impl Facts {
    /// Looks at everything.
    pub fn gather(sources: Sources) -> Self {
        let release = sources.read("proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into());
        let distribution = sources.read("etc/os-release").or_else(|| sources.read("usr/lib/os-release"));
        let uid_map = sources.read("proc/self/uid_map").unwrap_or_default();
        Self {
            distribution: Distribution::parse(&distribution.unwrap_or_default()),
            privileged: sources.privileged,
            verbs: sources.verbs,
            providers: ["siw", "rxe"]
                .into_iter()
                .filter(|name| sources.root.join(format!("etc/libibverbs.d/{name}.driver")).is_file())
                .collect(),
            ptrace_scope: sources.number("proc/sys/kernel/yama/ptrace_scope"),
            initial_user_namespace: uid_map.split_whitespace().eq(["0", "0", "4294967295"]),
            apparmor_restricts: sources.number("proc/sys/kernel/apparmor_restrict_unprivileged_userns")
                == Some(1),
            apparmor_profile: sources.root.join("etc/apparmor.d/testbed").is_file(),
            max_user_namespaces: sources.number("proc/sys/user/max_user_namespaces"),
            unprivileged_userns_clone: sources
                .number("proc/sys/kernel/unprivileged_userns_clone")
                .map(|value| value != 0),
            siw: sources.module("siw", &release),
            rxe: sources.module("rdma_rxe", &release),
            netem_module: sources.module("sch_netem", &release),
            rdma_shared: sources.read("sys/module/ib_core/parameters/netns_mode").map(|mode| mode == "Y"),
            memlock: sources.memlock,
            tools: TOOLS.iter().map(|tool| (tool.program, sources.program(tool.program))).collect(),
            guests: sources.guests,
            release,
            attempts: sources.attempts,
        }
    }

    /// Major and minor version of the kernel; zeros if it cannot be read.
    pub(super) fn kernel_version(&self) -> (u32, u32) {
        let mut numbers =
            self.release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }
}

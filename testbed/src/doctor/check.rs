//! Facts -> what they mean, and the command that mends it.

use super::facts::{Facts, Module};
use super::guests;
use super::packages::{Manager, TOOLS};
use super::probe::{Attempts, Errno};
use super::{Ability, Check, Report, Status};

/// What we ship for AppArmor, as the profile's own header says.
const APPARMOR_REMEDY: &str = "sudo install -m 0644 ci/apparmor/testbed /etc/apparmor.d/testbed && \
                               sudo apparmor_parser -r /etc/apparmor.d/testbed";
/// TCP's buffers belong to a network namespace since 4.15; 5.10 is the oldest kernel that anybody still maintains.
const OLDEST_KERNEL: (u32, u32) = (5, 10);
/// The oldest kernel on which rxe was seen to work inside a network namespace; on 6.12 it does not.
const RXE_IN_NAMESPACES: (u32, u32) = (7, 3);
/// The first kernel that registers a read-only shared mapping as it is. Older ones pin its pages as if they were to be
/// written to, by which the process gets copies of them (Linux commit 57a196a58421 and its series took that away).
const FILES_AS_THEY_ARE: (u32, u32) = (6, 2);
/// A body of 64 MiB, registered at once.
const ENOUGH_MEMLOCK: u64 = 64 << 20;

/// Judges the facts. Touches nothing.
pub fn examine(facts: &Facts) -> Report {
    let links = Links::of(facts);
    let namespaces = namespaces(facts);
    let able = facts.attempts.as_ref().is_ok_and(Attempts::allow_labs);
    let mut checks = vec![kernel(facts), namespaces, proc(facts), tap(facts), packet(facts), netem(facts)];
    checks.push(rdma("siw", facts.siw, facts));
    checks.push(rdma("rxe", facts.rxe, facts));
    checks.push(sendfile(facts));
    checks.push(memlock(facts));
    checks.push(verbs(facts));
    checks.extend(guests::checks(facts));
    checks.extend(TOOLS.iter().map(|tool| self::tool(tool, facts)));
    checks.retain(|check| !check.found.is_empty());
    let abilities = abilities(facts, links, able, &checks);
    Report { able, abilities, checks }
}

/// What carries frames between the hosts of a lab here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Links {
    Tap,
    Packet,
    None,
}

impl Links {
    fn of(facts: &Facts) -> Self {
        match &facts.attempts {
            Ok(Attempts { tap: Some(Ok(())), .. }) => Self::Tap,
            Ok(Attempts { packet: Some(Ok(())), .. }) => Self::Packet,
            _ => Self::None,
        }
    }
}

pub(super) fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, status: Status::Ok, found: found.into(), meaning: String::new(), remedy: None }
}

pub(super) fn amiss(
    name: &'static str,
    status: Status,
    found: impl Into<String>,
    meaning: impl Into<String>,
    remedy: Option<String>,
) -> Check {
    Check { name, status, found: found.into(), meaning: meaning.into(), remedy }
}

fn kernel(facts: &Facts) -> Check {
    let found = format!("Linux {} on {}", facts.release, facts.distribution.name);
    if facts.kernel_version() >= OLDEST_KERNEL {
        return ok("kernel", found);
    }
    let (major, minor) = OLDEST_KERNEL;
    amiss(
        "kernel",
        Status::Limited,
        found,
        format!("older than {major}.{minor}, with which nobody has tried"),
        None,
    )
}

fn namespaces(facts: &Facts) -> Check {
    const NAME: &str = "namespaces";
    let attempts = match &facts.attempts {
        Ok(attempts) => attempts,
        Err(error) => {
            let found = format!("could not try: {error}");
            return amiss(NAME, Status::Missing, found, "labs are made of namespaces", None);
        }
    };
    let missing = |found: String, meaning: &str, remedy: Option<&str>| {
        amiss(NAME, Status::Missing, found, meaning, remedy.map(str::to_owned))
    };
    let (what, error) = match attempts {
        Attempts { namespaces: Some(Ok(())), user_namespace: None, .. } => {
            return ok(NAME, "made as root; no user namespace is needed");
        }
        Attempts { namespaces: Some(Ok(())), .. } => {
            return ok(NAME, "made in a user namespace, without root");
        }
        Attempts { namespaces: Some(Err(error)), .. } => ("namespaces inside a user namespace", *error),
        Attempts { id_map: Some(Err(error)), .. } => ("an id map for a user namespace", *error),
        Attempts { user_namespace: Some(Err(error)), .. } => ("a user namespace", *error),
        _ => ("a user namespace", Errno::UnknownErrno),
    };
    if matches!(attempts.id_map, Some(Err(Errno::EPERM))) {
        return missing(
            format!("{what}: {}", error.desc()),
            "root without CAP_SYS_ADMIN needs CAP_SETFCAP to be mapped into a user namespace (user_namespaces(7)); give \
             it either, or run as an ordinary user",
            Some("docker run --privileged …"),
        );
    }
    let found = format!("{what}: {}", error.desc());
    if facts.apparmor_restricts {
        let meaning = if facts.apparmor_profile {
            "AppArmor restricts user namespaces to programs with a profile; testbed's is installed but this program is \
             not where it looks, or it is not loaded"
        } else {
            "AppArmor restricts user namespaces to programs with a profile (Ubuntu 23.10 and later); install testbed's, \
             the restriction stays for all others"
        };
        return missing(found, meaning, Some(APPARMOR_REMEDY));
    }
    if facts.max_user_namespaces == Some(0) {
        return missing(
            found,
            "user namespaces are turned off (user.max_user_namespaces = 0)",
            Some("sudo sysctl -w user.max_user_namespaces=15000"),
        );
    }
    if facts.unprivileged_userns_clone == Some(false) {
        return missing(
            found,
            "user namespaces are for root only (kernel.unprivileged_userns_clone = 0)",
            Some("sudo sysctl -w kernel.unprivileged_userns_clone=1"),
        );
    }
    match error {
        Errno::EINVAL => {
            missing(found, "this kernel was built without user namespaces; as root it works", None)
        }
        Errno::ENOSPC => {
            missing(found, "the limit on user namespaces is reached (user.max_user_namespaces)", None)
        }
        _ => missing(
            found,
            "something forbids it, such as a container's seccomp filter; as root it works where the container has \
             CAP_SYS_ADMIN",
            Some("docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined …"),
        ),
    }
}

/// What an attempt came to; `None` if it was not made, and then nothing is said of it.
pub(super) fn tried(
    facts: &Facts,
    which: impl Fn(&Attempts) -> Option<Result<(), Errno>>,
) -> Option<Result<(), Errno>> {
    facts.attempts.as_ref().ok().and_then(which)
}

/// A lab's processes are a PID namespace's, and are seen in its own /proc.
fn proc(facts: &Facts) -> Check {
    match tried(facts, |attempts| attempts.proc) {
        None => ok("proc", ""),
        Some(Ok(())) => ok("proc", "a lab's own /proc can be mounted"),
        Some(Err(error)) => amiss(
            "proc",
            Status::Missing,
            format!("a lab's own /proc: {}", error.desc()),
            "parts of this machine's /proc are hidden, as in a container, so the kernel allows no second one",
            Some("docker run --security-opt systempaths=unconfined …".into()),
        ),
    }
}

fn tap(facts: &Facts) -> Check {
    let meaning = "links go through AF_PACKET sockets on veth pairs instead, which is slower";
    match tried(facts, |attempts| attempts.tap) {
        None => ok("tun", ""),
        Some(Ok(())) => ok("tun", "TAP devices can be made"),
        Some(Err(error @ (Errno::ENOENT | Errno::ENODEV))) => {
            let found = format!("/dev/net/tun: {}", error.desc());
            amiss("tun", Status::Limited, found, meaning, Some("sudo modprobe tun".into()))
        }
        Some(Err(error @ Errno::EACCES)) => {
            let found = format!("/dev/net/tun: {}", error.desc());
            amiss("tun", Status::Limited, found, meaning, Some("sudo chmod 0666 /dev/net/tun".into()))
        }
        Some(Err(error)) => {
            amiss("tun", Status::Limited, format!("/dev/net/tun: {}", error.desc()), meaning, None)
        }
    }
}

fn packet(facts: &Facts) -> Check {
    match tried(facts, |attempts| attempts.packet) {
        None => ok("packet", ""),
        Some(Ok(())) => ok("packet", "AF_PACKET sockets can be made"),
        Some(Err(error)) => {
            let (status, meaning) = match Links::of(facts) {
                Links::Tap => (Status::Limited, "TAP devices are used anyway"),
                _ => (Status::Missing, "without TAP devices there is nothing to carry a link"),
            };
            amiss("packet", status, format!("AF_PACKET: {}", error.desc()), meaning, None)
        }
    }
}

fn netem(facts: &Facts) -> Check {
    match tried(facts, |attempts| attempts.netem) {
        None => ok("netem", ""),
        Some(Ok(())) => ok("netem", "the kernel has it"),
        Some(Err(Errno::ENOENT)) => {
            let remedy = match facts.netem_module {
                Module::Absent => facts.distribution.extra_modules(&facts.release),
                _ => Some("sudo modprobe sch_netem".to_owned()),
            };
            amiss(
                "netem",
                Status::Limited,
                "the kernel has none",
                "only links with driver = \"netem\" need it; the relay carries all others",
                remedy,
            )
        }
        Some(Err(error)) => amiss(
            "netem",
            Status::Limited,
            format!("the kernel refuses it: {}", error.desc()),
            "only links with driver = \"netem\" need it; the relay carries all others",
            None,
        ),
    }
}

fn rdma(name: &'static str, module: Module, facts: &Facts) -> Check {
    let module_name = if name == "rxe" { "rdma_rxe" } else { name };
    match module {
        Module::Present => match rdma_limit(name, facts) {
            None => ok(name, "the kernel has it"),
            Some((meaning, remedy)) => amiss(name, Status::Limited, "the kernel has it", meaning, remedy),
        },
        Module::Loadable => amiss(
            name,
            Status::Limited,
            "installed, not loaded",
            format!("the fabric {name} needs it; soft does not"),
            Some(format!("sudo modprobe {module_name}")),
        ),
        Module::Absent => amiss(
            name,
            Status::Missing,
            "the kernel has none",
            format!("the fabric {name} cannot be used; soft carries every flow without it"),
            facts.distribution.extra_modules(&facts.release),
        ),
    }
}

/// What stands between a module that is there and its use in a lab.
fn rdma_limit(name: &str, facts: &Facts) -> Option<(String, Option<String>)> {
    if name == "rxe" && facts.kernel_version() < RXE_IN_NAMESPACES {
        let (major, minor) = RXE_IN_NAMESPACES;
        return Some((
            format!(
                "it is known to work in network namespaces from Linux {major}.{minor}; on 6.12 its sockets live in the \
                 machine's own, and in a lab no packet arrives. `testbed up --kernel uml` has a kernel of its own"
            ),
            None,
        ));
    }
    if facts.rdma_shared == Some(false) {
        return Some((
            "the RDMA subsystem keeps devices to their namespace, and software devices cannot be moved"
                .into(),
            Some("sudo rdma system set netns shared".into()),
        ));
    }
    if !(facts.privileged && facts.initial_user_namespace) {
        return Some((
            "its devices are made with CAP_NET_ADMIN in the machine's first user namespace: as root only; `testbed up \
             --kernel uml` has them without root"
                .into(),
            None,
        ));
    }
    None
}

/// What files are registered for on siw and rxe; where there are none it does not matter.
fn sendfile(facts: &Facts) -> Check {
    const NAME: &str = "sendfile";
    if facts.siw == Module::Absent && facts.rxe == Module::Absent {
        return ok(NAME, "");
    }
    if facts.kernel_version() >= FILES_AS_THEY_ARE {
        return ok(NAME, "on siw and rxe files are registered as they lie in the page cache");
    }
    let (major, minor) = FILES_AS_THEY_ARE;
    amiss(
        NAME,
        Status::Limited,
        format!("Linux {} copies a file's pages when they are registered", facts.release),
        format!(
            "kernels before {major}.{minor} do; on siw and rxe `--memory sendfile` is refused with this reason, the other \
             strategies and soft are as ever. `testbed up --kernel uml` has a kernel of its own"
        ),
        None,
    )
}

fn memlock(facts: &Facts) -> Check {
    let Some(limit) = facts.memlock else { return ok("memlock", "unlimited") };
    let found = format!("{} KiB", limit >> 10);
    if limit >= ENOUGH_MEMLOCK {
        return ok("memlock", found);
    }
    amiss(
        "memlock",
        Status::Limited,
        found,
        "siw and rxe lock the memory that they register, and cannot register more than this; soft locks none",
        Some("sudo prlimit --pid $$ --memlock=unlimited".into()),
    )
}

/// What our own programs use siw and rxe through. Others, such as rping, need the drivers alone.
fn verbs(facts: &Facts) -> Check {
    const NAME: &str = "verbs";
    let lacking: Vec<_> = ["siw", "rxe"].into_iter().filter(|name| !facts.providers.contains(name)).collect();
    let (built, remedy) = if facts.verbs {
        ("this program has the feature verbs".to_owned(), None)
    } else {
        let build =
            "cargo build --features verbs   # needs what ci/setup installs: libibverbs-dev, libclang 14";
        ("this program was built without the feature verbs".to_owned(), Some(build.to_owned()))
    };
    match (lacking.is_empty(), facts.verbs) {
        (true, true) => ok(NAME, format!("{built}; libibverbs has drivers for siw and rxe")),
        (true, false) => {
            amiss(NAME, Status::Limited, built, "rdma-httpd and rdma-fetch use soft alone", remedy)
        }
        (false, _) => {
            let package = match facts.distribution.manager {
                Manager::Apt => Some("ibverbs-providers"),
                Manager::Dnf => Some("libibverbs"),
                Manager::Pacman => Some("rdma-core"),
                Manager::Other => None,
            };
            let found = format!("{built}; libibverbs has no driver for {}", lacking.join(" and "));
            let install = package.map(|package| format!("sudo {} {package}", facts.distribution.manager));
            amiss(NAME, Status::Limited, found, "no program can use a device without its driver", install)
        }
    }
}

fn tool(tool: &super::packages::Tool, facts: &Facts) -> Check {
    match facts.tools.get(tool.program) {
        Some(Some(path)) => ok(tool.program, path.display().to_string()),
        _ => amiss(
            tool.program,
            Status::Missing,
            "not installed",
            format!("needed by {}", tool.needed_by),
            tool.install(facts.distribution.manager),
        ),
    }
}

fn abilities(facts: &Facts, links: Links, able: bool, checks: &[Check]) -> Vec<Ability> {
    let ability = |what, able, how: &str| Ability { what, able, how: how.to_owned() };
    let status = |name: &str| checks.iter().find(|check| check.name == name).map(|check| check.status);
    let as_root = tried(facts, |attempts| attempts.user_namespace).is_none();
    let soft = match (able, as_root) {
        (true, true) => "as root",
        (true, false) => "without root",
        (false, _) => "see above for what is missing",
    };
    let relay = match links {
        Links::Tap => "over TAP devices",
        Links::Packet => "over AF_PACKET sockets",
        _ if !able && tried(facts, |attempts| attempts.packet).is_none() => "and no lab to use them in",
        Links::None => "neither TAP devices nor AF_PACKET sockets can be had",
    };
    let mut abilities =
        vec![ability("soft labs", able, soft), ability("relay links", able && links != Links::None, relay)];
    let netem = status("netem") == Some(Status::Ok);
    let how = match (netem, able) {
        (true, _) => "for links with driver = \"netem\"",
        (false, true) => "the relay does all of it",
        (false, false) => "and no lab to use it in",
    };
    abilities.push(ability("netem links", netem, how));
    for name in ["siw", "rxe"] {
        let here = able && status(name) == Some(Status::Ok);
        let in_guest = guests::can_uml(facts) && facts.guests.uml.is_some();
        let how = match (here, in_guest) {
            (true, _) => "the kernel is ready for it",
            (false, true) => "in a guest (--kernel uml)",
            (false, false) => "soft does without",
        };
        abilities.push(ability(name, here || in_guest, how));
    }
    let lacking: Vec<_> =
        TOOLS.iter().map(|tool| tool.program).filter(|name| status(name) == Some(Status::Missing)).collect();
    let install = match facts.distribution.manager {
        Manager::Apt => "`ci/setup` installs",
        _ => "install",
    };
    let how = match (lacking.is_empty(), able) {
        (true, true) => "every judge is installed".to_owned(),
        (true, false) => "every judge is installed, but there is no lab to use them in".to_owned(),
        (false, _) => format!("{install} {}", lacking.join(", ")),
    };
    abilities.push(Ability { what: "all tests", able: able && lacking.is_empty(), how });
    abilities
}

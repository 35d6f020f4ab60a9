//! Guests: whether they can run here, and whether there is a kernel for them.

use std::fs::File;

use nix::libc;

use super::check::{amiss, ok, tried};
use super::facts::Facts;
use super::{Check, Status};
use crate::kernel::{self, Cache, Platform};

/// What is there for guests.
#[derive(Clone, Debug, Default)]
pub struct Guests {
    /// The version of the newest kernel for UML guests.
    pub uml: Option<String>,
    /// The version of the newest kernel for QEMU guests.
    pub qemu: Option<String>,
    /// What a kernel cannot be built for, and what mends that.
    pub cannot_build: Option<(String, Option<String>)>,
    /// Why `/dev/kvm` cannot be opened.
    pub no_kvm: Option<String>,
}

impl Guests {
    /// This user's kernels, on this machine.
    pub(super) fn gather() -> Self {
        let images = Cache::of_user().and_then(|cache| cache.images()).unwrap_or_default();
        let newest = |platform: Platform| {
            images.iter().find(|i| i.manifest.platform == platform).map(|i| i.manifest.version.clone())
        };
        let cannot_build = kernel::can_build().err().map(|error| (error.to_string(), error.help()));
        let no_kvm = File::options().read(true).write(true).open("/dev/kvm").err();
        Self {
            uml: newest(Platform::Uml),
            qemu: newest(Platform::Qemu),
            cannot_build,
            no_kvm: no_kvm.map(|error| match error.raw_os_error() {
                Some(libc::EACCES) => "not allowed".to_owned(),
                _ => error.to_string(),
            }),
        }
    }
}

/// Everything about guests, in the order in which one needs it.
pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    vec![uml(facts), kvm(&facts.guests), kernels(&facts.guests), build(&facts.guests)]
}

/// Whether there can be a UML guest, now or once its kernel is built.
pub(super) fn can_uml(facts: &Facts) -> bool {
    uml(facts).status != Status::Missing
}

/// UML catches its programs' system calls by seccomp or, more slowly, by ptrace.
fn uml(facts: &Facts) -> Check {
    const NAME: &str = "uml";
    let (ptrace, seccomp) = (tried(facts, |a| a.ptrace), tried(facts, |a| a.seccomp));
    let (Some(ptrace), Some(seccomp)) = (ptrace, seccomp) else { return ok(NAME, "") };
    match (seccomp, ptrace) {
        (Ok(()), _) => ok(NAME, "guests can catch system calls by seccomp"),
        (Err(error), Ok(())) => amiss(
            NAME,
            Status::Limited,
            format!("seccomp filters: {}", error.desc()),
            "UML guests trace their programs by ptrace instead, which takes twice as long",
            None,
        ),
        (Err(_), Err(error)) => {
            let locked = facts.ptrace_scope == Some(3);
            amiss(
                NAME,
                Status::Missing,
                format!("neither seccomp filters nor ptrace: {}", error.desc()),
                if locked {
                    "no process may trace another (kernel.yama.ptrace_scope = 3), and that holds until the machine is \
                     booted again without it"
                } else {
                    "UML guests need one of them; a container's seccomp profile may forbid both"
                },
                (!locked).then(|| "docker run --security-opt seccomp=unconfined …".to_owned()),
            )
        }
    }
}

fn kvm(guests: &Guests) -> Check {
    const NAME: &str = "kvm";
    match &guests.no_kvm {
        // Some machines let it be opened and run nothing on it; only a boot tells.
        None => ok(
            NAME,
            "/dev/kvm can be opened; whether a kernel runs on it is seen when a QEMU guest first boots",
        ),
        Some(why) if why == "not allowed" => amiss(
            NAME,
            Status::Limited,
            "/dev/kvm: not for this user",
            "QEMU guests are emulated instead (TCG), some ten times slower; UML guests need no KVM",
            Some("sudo usermod -aG kvm $USER   # and log in again".into()),
        ),
        Some(why) => amiss(
            NAME,
            Status::Limited,
            format!("/dev/kvm: {why}"),
            "QEMU guests are emulated instead (TCG), some ten times slower; UML guests need no KVM",
            None,
        ),
    }
}

fn kernels(guests: &Guests) -> Check {
    const NAME: &str = "guest kernels";
    let has =
        |version: &Option<String>, what: &str| version.as_ref().map(|v| format!("Linux {v} for {what}"));
    let built: Vec<_> = [has(&guests.uml, "UML"), has(&guests.qemu, "QEMU")].into_iter().flatten().collect();
    if guests.uml.is_some() {
        return ok(NAME, built.join(", "));
    }
    let found = if built.is_empty() { "none is built".to_owned() } else { built.join(", ") };
    amiss(
        NAME,
        Status::Limited,
        found,
        "siw, rxe and the virtual clock can be had in a UML guest, whose kernel is built once in some minutes",
        Some("testbed kernel build uml".into()),
    )
}

fn build(guests: &Guests) -> Check {
    const NAME: &str = "kernel build";
    match &guests.cannot_build {
        None => ok(NAME, "what builds a guest's kernel is installed"),
        Some((what, remedy)) => {
            // Where the kernels are there already nobody needs to build one.
            let status = if guests.uml.is_some() { Status::Limited } else { Status::Missing };
            amiss(NAME, status, what.clone(), "needed by `testbed kernel build`", remedy.clone())
        }
    }
}
